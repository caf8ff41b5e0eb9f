//! What runs by itself: every job of a herd with its schedule, as operations see it. Made by `topology::load` from the schedules of the file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::units::ByteCount;

/// Something that runs by its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// `None` for what is of the whole herd.
    pub cluster: Option<String>,
    /// Its name within the cluster: `full`, `refresh-sales`.
    pub name: String,
    pub when: Schedule,
    /// After this long it is asked to end.
    pub timeout: Duration,
    pub work: Work,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Makes a full backup.
    Full,
    /// Checks the backups, and chunks and WAL by chance.
    Verify,
    /// Reads every byte of the backups and the WAL.
    VerifyFull,
    /// Removes the backups that no rule keeps.
    Expire,
    /// Copies backups and WAL into another repository of the cluster.
    Copy {
        to: String,
    },
    /// Restores a copy on scratch and proves it.
    DrillRestore,
    /// Judges the herd.
    Health,
    /// Makes partitions ahead of time and lets old ones go.
    Partitions,
    Vacuum(Vacuum),
    Reindex(Reindex),
    Refresh(Refresh),
    Clean(Clean),
    Dump(Dump),
}

/// Vacuums and analyzes tables that autovacuum has neglected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vacuum {
    /// A table with this share of dead rows, in percent, is vacuumed.
    pub dead: u32,
    /// A table that was not analyzed while this share of its rows changed, in percent, is analyzed.
    pub changed: u32,
    /// Smaller tables are left alone.
    pub rows: u32,
}

/// Builds indexes anew without keeping writers waiting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reindex {
    /// An index of which this share is wasted, in percent, is built anew.
    pub bloat: u32,
    /// Smaller ones are left alone.
    pub at_least: ByteCount,
}

/// Refreshes materialized views.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refresh {
    pub database: String,
    /// `SCHEMA.NAME`, in this order.
    pub views: Vec<View>,
}

/// A materialized view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub schema: String,
    pub name: String,
}

/// Removes old files of servers that nobody else removes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clean {
    /// Log files that were not written for so long.
    pub logs: Duration,
}

/// Dumps a database, or some of its schemas, into the repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    pub name: String,
    pub database: String,
    /// Empty: all of them.
    pub schemas: Vec<String>,
    /// Older ones are removed, but never the newest.
    pub keep: Duration,
}

/// Where jobs run, and how they are started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scheduler {
    /// A job begins up to so much later than its time, drawn by chance.
    pub jitter: Duration,
    /// The hosts that start the jobs; empty: whichever machine somebody has set up for it.
    pub hosts: Vec<String>,
    /// The repository in which several of them tell each other who runs a job, and how the last run ended.
    pub lease: Option<String>,
    /// What `apply` installs on each of the hosts.
    pub install: Option<Starter>,
}

/// What starts the jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Starter {
    Cron,
    Systemd,
}

impl Job {
    /// Returns `inventory/full`: its name in the whole herd.
    pub fn full_name(&self) -> String {
        match &self.cluster {
            Some(cluster) => format!("{cluster}/{}", self.name),
            None => self.name.clone(),
        }
    }

    /// Returns `inventory.full`: its name where `/` cannot stand. No name of a cluster holds a dot.
    pub fn file_name(&self) -> String {
        self.full_name().replace('/', ".")
    }
}

impl Work {
    /// Says what it does, in a few words.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Full => "full backup",
            Self::Verify => "verify backups and WAL, chunks by chance",
            Self::VerifyFull => "verify every byte of backups and WAL",
            Self::Expire => "expire backups and WAL",
            Self::Copy { .. } => "copy backups and WAL into another repository",
            Self::DrillRestore => "restore drill",
            Self::Health => "judge the herd",
            Self::Partitions => "make partitions ahead of time, let old ones go",
            Self::Vacuum(_) => "vacuum and analyze neglected tables",
            Self::Reindex(_) => "reindex invalid and bloated indexes",
            Self::Refresh(_) => "refresh materialized views",
            Self::Clean(_) => "remove old logs",
            Self::Dump(_) => "dump a database into the repository",
        }
    }
}
