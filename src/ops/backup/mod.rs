//! Backups: what becomes of them.

pub mod retention;
