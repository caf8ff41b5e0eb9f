//! What pg_controldata prints about a data directory, whether its server runs or not.
//!
//! Reads the text (`LANG=C` or `C.UTF-8`), not the file: its layout differs between versions, its labels hardly do.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::lsn::Lsn;
use super::system::SystemIdentifier;
use super::timeline::TimelineId;

/// The facts of `pg_control` that decisions rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// `pg_control version number`, such as 1300.
    pub control_version: u32,
    /// `Catalog version number`, such as 202209061: the same only within a major version.
    pub catalog_version: u32,
    pub system_identifier: SystemIdentifier,
    pub state: ClusterState,
    /// Where the latest checkpoint record begins. Its end is not in the control file.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub checkpoint_redo: Lsn,
    /// The timeline of that checkpoint: right after a promotion still the old one, until the next checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// How far a standby must replay before it is consistent, with the timeline; `None` on a primary.
    pub minimum_recovery: Option<(Lsn, TimelineId)>,
    pub wal_level: String,
    pub wal_log_hints: bool,
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
    /// `wal_segment_size` in bytes.
    pub wal_segment_size: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

/// What the server last wrote about itself; a killed server leaves what it was doing.
///
/// Mirrors `dbState` in `pg_controldata.c`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
    /// A text that this version of pgherd does not know.
    Other(String),
}

/// The text is not what pg_controldata prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    #[error("pg_controldata printed no line {0:?}")]
    Missing(&'static str),
    #[error("pg_controldata printed {1:?} for {0:?}")]
    Value(&'static str, String),
}

impl ControlFile {
    /// Reads the output of pg_controldata.
    ///
    /// # Errors
    /// [`ControlFileError`] names the line that is missing or not understood.
    pub fn parse(text: &str) -> Result<Self, ControlFileError> {
        let lines = Lines(text);
        let recovery_timeline: u32 = lines.parsed("Min recovery ending loc's timeline")?;
        let minimum_recovery: Lsn = lines.parsed("Minimum recovery ending location")?;
        Ok(Self {
            control_version: lines.parsed("pg_control version number")?,
            catalog_version: lines.parsed("Catalog version number")?,
            system_identifier: lines.parsed("Database system identifier")?,
            state: ClusterState::from_text(lines.value("Database cluster state")?),
            checkpoint: lines.parsed("Latest checkpoint location")?,
            checkpoint_redo: lines.parsed("Latest checkpoint's REDO location")?,
            checkpoint_timeline: lines.timeline("Latest checkpoint's TimeLineID")?,
            minimum_recovery: TimelineId::new(recovery_timeline).map(|timeline| (minimum_recovery, timeline)),
            wal_level: lines.value("wal_level setting")?.to_owned(),
            wal_log_hints: lines.value("wal_log_hints setting")? == "on",
            max_connections: lines.parsed("max_connections setting")?,
            max_worker_processes: lines.parsed("max_worker_processes setting")?,
            max_wal_senders: lines.parsed("max_wal_senders setting")?,
            max_prepared_transactions: lines.parsed("max_prepared_xacts setting")?,
            max_locks_per_transaction: lines.parsed("max_locks_per_xact setting")?,
            wal_segment_size: lines.parsed("Bytes per WAL segment")?,
            data_checksums: lines.parsed::<u32>("Data page checksum version")? != 0,
        })
    }
}

impl ClusterState {
    fn from_text(text: &str) -> Self {
        match text {
            "starting up" => Self::StartingUp,
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "shutting down" => Self::ShuttingDown,
            "in crash recovery" => Self::InCrashRecovery,
            "in archive recovery" => Self::InArchiveRecovery,
            "in production" => Self::InProduction,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl std::fmt::Display for ClusterState {
    /// Writes it as pg_controldata prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
            Self::Other(text) => text,
        })
    }
}

/// `LABEL:VALUE` lines, the value after any number of spaces.
struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn value(&self, label: &'static str) -> Result<&'a str, ControlFileError> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))
            .map(str::trim)
            .ok_or(ControlFileError::Missing(label))
    }

    fn parsed<T: FromStr>(&self, label: &'static str) -> Result<T, ControlFileError> {
        let value = self.value(label)?;
        value.parse().map_err(|_| ControlFileError::Value(label, value.to_owned()))
    }

    fn timeline(&self, label: &'static str) -> Result<TimelineId, ControlFileError> {
        TimelineId::new(self.parsed(label)?).ok_or_else(|| ControlFileError::Value(label, "0".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHUT_DOWN_14: &str = include_str!("../../tests/data/pg_controldata/14-shut-down.txt");
    const STANDBY_15: &str = include_str!("../../tests/data/pg_controldata/15-in-archive-recovery.txt");
    const PRIMARY_18: &str = include_str!("../../tests/data/pg_controldata/18-in-production.txt");

    #[test]
    fn reads_a_new_cluster_of_14() {
        let control = ControlFile::parse(SHUT_DOWN_14).unwrap();
        assert_eq!((control.control_version, control.catalog_version), (1300, 202_107_181));
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!(control.checkpoint_timeline.as_u32(), 1);
        assert_eq!(control.minimum_recovery, None);
        assert!(!control.data_checksums && !control.wal_log_hints);
        assert_eq!((control.wal_level.as_str(), control.wal_segment_size), ("replica", 16 << 20));
    }

    #[test]
    fn reads_a_running_standby_of_15() {
        let control = ControlFile::parse(STANDBY_15).unwrap();
        assert_eq!(control.state, ClusterState::InArchiveRecovery);
        assert_eq!(
            control.minimum_recovery,
            Some(("0/30180F8".parse().unwrap(), TimelineId::new(1).unwrap()))
        );
        assert!(control.checkpoint_redo <= control.checkpoint);
        assert!(control.data_checksums);
        assert_eq!(control.max_connections, 60);
    }

    #[test]
    fn reads_a_running_primary_of_18_with_its_settings() {
        let control = ControlFile::parse(PRIMARY_18).unwrap();
        assert_eq!(control.state, ClusterState::InProduction);
        assert_eq!((control.wal_level.as_str(), control.wal_log_hints), ("logical", true));
        let five = (
            control.max_connections,
            control.max_worker_processes,
            control.max_wal_senders,
            control.max_prepared_transactions,
            control.max_locks_per_transaction,
        );
        assert_eq!(five, (100, 8, 10, 20, 64));
        assert_eq!(control.wal_segment_size, 64 << 20);
    }

    #[test]
    fn keeps_a_state_that_it_does_not_know() {
        let text = SHUT_DOWN_14.replace("shut down", "unrecognized status code");
        let expected = ClusterState::Other("unrecognized status code".to_owned());
        assert_eq!(ControlFile::parse(&text).unwrap().state, expected);
    }

    #[test]
    fn names_the_line_that_is_missing_or_wrong() {
        let cut = SHUT_DOWN_14.split("wal_level").next().unwrap();
        assert_eq!(ControlFile::parse(cut), Err(ControlFileError::Missing("wal_level setting")));
        let wrong = SHUT_DOWN_14.replace("16777216", "many");
        let expected = ControlFileError::Value("Bytes per WAL segment", "many".to_owned());
        assert_eq!(ControlFile::parse(&wrong), Err(expected));
    }
}
