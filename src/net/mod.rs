//! Services that are spoken to over HTTP. The only room that uses reqwest.

pub mod vault;
