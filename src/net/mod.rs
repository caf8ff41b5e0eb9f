//! What is spoken to over HTTP, and who asks us over it. The only room that uses reqwest and hyper.

pub mod http;
pub mod vault;
pub mod webhook;
