//! Bringing a cluster back to a moment: which backup and which WAL, the copy, the recovery, what was achieved.

pub mod target;
