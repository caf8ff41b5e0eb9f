//! Several hosts on one machine, with real faults between them and on them.
//!
//! [`lab`] makes them; [`faults`] shows that each fault happens and is mended; [`removal`] that nothing of a lab stays;
//! [`services`] that systemd starts nodes in it; [`adoption`] that what Debian or a unit of somebody else's runs is taken over;
//! [`hosts`] that a station makes a cluster on them over ssh; [`shared`] that they have one repository.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends by panicking, with what it found"
)]

mod adoption;
mod faults;
mod hosts;
mod lab;
mod removal;
mod services;
mod shared;
