//! What an operator asks for. Returns reports and never prints.

pub mod objects;
pub mod pooler;
