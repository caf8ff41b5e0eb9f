//! pgherd: runs a herd of PostgreSQL clusters from one YAML topology file.
//!
//! The house has seven floors; a floor imports only floors below it (`tests/architecture.rs` enforces it):
//!
//! | floor | room | holds |
//! |---|---|---|
//! | roof | `main.rs`, [`cli`] | parse, dispatch, error to exit code |
//! | 6 | [`commands`] | one file a verb |
//! | 5 | [`ui`] | the only floor that knows a terminal |
//! | 4 | [`ops`] | what an operator asks for; returns reports, prints nothing |
//! | 3 | [`engine`] | journaled execution; knows no operation by name |
//! | 2 | [`host`], [`db`], [`repo`] | a machine; a server; an object store |
//! | 1 | [`topology`] | the declared herd |
//! | 0 | [`pg`], [`error`], [`secret`], [`units`], [`clock`], [`gate`], [`tls`] | nouns, no I/O |

pub mod cli;
pub mod clock;
pub mod commands;
pub mod db;
pub mod engine;
pub mod error;
pub mod gate;
pub mod host;
pub mod ops;
pub mod pg;
pub mod repo;
pub mod secret;
pub mod tls;
pub mod topology;
pub mod ui;
pub mod units;
