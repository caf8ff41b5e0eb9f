//! The topology file: its model, how it is read and checked, and what is rendered from it.
//!
//! Decides nothing about the world: no network, no server. Reading the file and the secrets that it refers to are the only I/O.

pub mod claim;
pub mod declared;
pub mod model;
pub mod places;
