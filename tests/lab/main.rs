//! Several hosts on one machine, with real faults between them and on them.
//!
//! [`lab`] makes them; [`faults`] shows that each fault happens and is mended; [`removal`] that nothing of a lab stays;
//! [`services`] that systemd starts nodes in it; [`adoption`] that what Debian or a unit of somebody else's runs is taken over; [`shared`]
//! that hosts have one repository; [`cron`] that cron and systemd really start the jobs, [`stations`] that of two stations one runs each; [`roles`] that roles change under the load of a [`ledger`]; [`story`] what happens to a herd that is run from a [`station`] over ssh.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends by panicking, with what it found"
)]

mod adoption;
mod cron;
mod faults;
mod herd;
mod lab;
mod ledger;
mod removal;
mod roles;
mod scene;
mod services;
mod shared;
mod station;
mod stations;
mod story;
mod troubles;
