//! Backups: made from a running cluster, listed, shown, pinned, expired, verified.
//!
//! `create` is the controller's side, who has the server's session; `copy` is the node's side, who reads the data directory. `care` is the
//! controller's side of `expire`, `pin`, `verify`, and of `transfer` from one repository into another.

mod aborted;
pub mod care;
mod chunk;
pub mod copy;
mod create;
pub mod expire;
mod holdings;
mod leftovers;
pub mod list;
mod noted;
mod pages;
pub mod pin;
pub mod retention;
pub mod transfer;
#[cfg(test)]
mod trial;
pub mod verify;
mod walk;

pub use create::{Created, Event, Phase, Tell, Wish, create};
