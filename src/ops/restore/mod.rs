//! Bringing a cluster back to a moment: which backup and which WAL, the copy, the recovery, what was achieved.

pub mod copy;
pub mod dress;
mod place;
pub mod recover;
mod source;
pub mod survey;
pub mod target;
