//! Bringing a cluster back to a moment: which backup and which WAL, the copy, the recovery, what was achieved.
//!
//! `target` decides, `survey` and `copy` work on the node, `recover` takes a server to its target and proves that it is there. `scratch` is what
//! `restore --to-dir` does with them, `standby` what `restore --to-node` does.

pub mod copy;
pub mod dress;
pub mod fill;
mod place;
pub mod prepare;
pub mod recover;
pub mod scratch;
mod source;
pub mod standby;
pub mod survey;
pub mod target;
