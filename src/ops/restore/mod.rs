//! Bringing a cluster back to a moment: which backup and which WAL, the copy, the recovery, what was achieved.

pub mod copy;
pub mod dress;
pub mod job;
mod place;
mod source;
pub mod target;
