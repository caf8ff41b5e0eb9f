//! What befalls an operation: calls that fail, answers that are lost, hangs, kills, full disks, second operators.
//!
//! [`harness`] knows no operation; [`toy`] is one over real files, on which the engine's mechanics are shown case by case;
//! [`apply`] shows the operations themselves on real servers, in a place that [`site`] makes.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends by panicking, with what it found"
)]

mod apply;
mod copies;
mod driver;
mod harness;
mod site;
mod sweep;
mod toy;
