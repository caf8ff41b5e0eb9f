//! Journaled execution: steps, the operation that drives them, its journal, its lock and its events.
//!
//! Knows no operation by name and prints nothing.

pub mod step;
