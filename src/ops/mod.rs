//! What an operator asks for. Returns reports and emits events; prints nothing.
//!
//! `binary`, `observe`, `roles`, `plan`, `provision`, `objects` and `pooler` are what the other rooms are built of.

pub mod apply;
pub mod binary;
pub mod destroy;
pub mod objects;
pub mod observe;
pub mod plan;
pub mod pooler;
pub mod provision;
pub mod roles;
pub mod status;
