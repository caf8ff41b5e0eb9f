//! The place where a test may stand between pgherd and the world: every call through a door (`host`, `db`) passes a [`Gate`].
//!
//! In production the gate is [`Open`] and does nothing. The fault harness puts a counting gate here that fails a call before it
//! happens, after it happened, or never answers.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

/// A future that a door returns; boxed because doors are trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a gate did not let a call through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The call was not made.
    #[error("injected fault: {0} was not started")]
    Before(String),
    /// The call was made; its outcome did not come back.
    #[error("injected fault: the answer of {0} was lost")]
    After(String),
}

/// Watches calls through the doors. `call` is a short text such as `inventory-a: pg_ctl start` or `inventory-a: sql create slot`.
pub trait Gate: Send + Sync + std::fmt::Debug {
    /// Comes before the effect; `Err` means that the effect does not happen.
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>>;
    /// Comes after the effect; `Err` means that the caller does not learn how it ended.
    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>>;
}

/// The gate of production: lets everything through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open;

impl Gate for Open {
    fn before<'a>(&'a self, _call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn after<'a>(&'a self, _call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The way from here to what listens only on another machine. Between the room that reaches machines and the room that speaks to servers.
pub trait Tunnel: Send + Sync + std::fmt::Debug {
    /// Leads to the Unix socket `DIRECTORY/.s.PGSQL.PORT` there; returns a directory here that holds a socket of the same name.
    ///
    /// # Errors
    /// Why there is no way, as a fragment. That nothing listens at its end is not one.
    fn to_socket<'a>(&'a self, directory: &'a Path, port: u16) -> BoxFuture<'a, Result<PathBuf, String>>;
    /// Leads to the TCP port of the machine's own loopback address; returns as [`Tunnel::to_socket`].
    ///
    /// # Errors
    /// As [`Tunnel::to_socket`].
    fn to_port<'a>(&'a self, port: u16) -> BoxFuture<'a, Result<PathBuf, String>>;
}

/// Returns the gate of production.
pub fn open() -> Arc<dyn Gate> {
    Arc::new(Open)
}
