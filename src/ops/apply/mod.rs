//! From the file to the herd: gather what is needed to plan, then drive the plan under a journal.

mod configure;
mod follow;
mod logins;
mod pooler;
mod proof;
pub mod step;
pub mod world;
