//! Real servers, of every major version that is installed (`PGHERD_TEST_PG`, or /usr/lib/postgresql).

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends by panicking, with what it found"
)]

mod adoption;
mod apply_drift;
mod apply_five;
mod apply_full_disk;
mod apply_interrupts;
mod apply_kills;
mod apply_life_cycle;
mod apply_refusals;
mod apply_split;
mod apply_tune;
mod archive;
mod archive_ahead;
mod archiving;
mod backup;
mod connect;
mod copies;
mod destroy;
mod drill;
mod encryption;
mod failover;
mod fence;
mod flips;
mod guard;
mod health;
mod health_causes;
mod health_nodes;
mod herd;
mod hooks;
mod in_place;
mod kept;
mod kills;
mod ledger;
mod notify;
mod objects;
mod partition;
mod partition_health;
mod partition_interrupted;
mod partition_refusals;
mod partition_year;
mod plan_file;
mod pooler;
mod pooler_newer;
mod pooler_routes;
mod pooler_verb;
mod promotion;
mod queries;
mod rejoin;
mod repository_lock;
mod restore;
mod restore_s3;
mod resume;
mod rotation;
mod s3;
mod schedule;
mod schedule_failover;
mod schedule_shared;
mod secrets;
mod server;
mod settings;
mod ssh;
mod sshd;
mod status;
mod switchover;
mod takeover;
mod tls;
mod trust;
mod units;
mod vault;
mod verifiers;
mod wal_records;
#[allow(dead_code, reason = "the tests of the repository alone use all of it")]
#[path = "../support/weed.rs"]
mod weed;
