//! Backups: made from a running cluster, listed, shown.
//!
//! `create` is the controller's side, who has the server's session; `copy` is the node's side, who reads the data directory.

mod chunk;
pub mod copy;
mod create;
mod walk;

pub use create::{Created, Event, Phase, Tell, Wish, create};
