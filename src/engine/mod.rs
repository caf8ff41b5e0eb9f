//! Journaled execution: steps, the operation that drives them, its journal, its lock and its events.
//!
//! | module | holds |
//! |---|---|
//! | [`step`] | what a step is, and what it is given |
//! | [`record`] | what a journal line can say |
//! | [`view`] | the state of an operation, folded from records by one exhaustive match |
//! | [`journal`] | the file: checksums, hash chain, fsync, torn tails, a second writer noticed |
//! | `feed` | from a journal to its copies: every line that is on disk |
//! | [`copies`] | copies of a journal on the machines that its operation changes |
//! | [`store`] | where journals live and how one is found |
//! | [`lock`] | who may change a cluster now |
//! | [`operation`] | the driver: forward, back, resume, undo, take over |
//! | [`turn`] | who of several stations does something, and how it ended, in a repository |
//! | [`interrupt`] | the operator's Ctrl-C |
//! | [`event`] | what the driver tells while it runs |
//!
//! Knows no operation by name and prints nothing.

pub mod copies;
pub mod event;
mod feed;
pub mod interrupt;
pub mod journal;
pub mod lease;
pub mod lock;
pub mod operation;
pub mod record;
pub mod shared_lock;
pub mod step;
pub mod store;
pub mod turn;
pub mod view;
