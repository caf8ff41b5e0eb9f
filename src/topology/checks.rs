//! The checks of `health`: their names in the topology, what each measures, and from where on it warns where the file says nothing.
//!
//! How each is made and judged is the business of `ops::health`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::{ByteCount, UnitError, human_duration, parse_duration};

/// A question about the herd that `health` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    Connect,
    Primary,
    SystemIdentifier,
    Standbys,
    Lag,
    Connections,
    Disk,
    Archive,
    BackupAge,
    Uptime,
    Crash,
    Clock,
    IdleInTransaction,
    LongQuery,
    LongTransaction,
    LockWait,
    LockTable,
    PreparedTransactions,
    LagBytes,
    Receiver,
    Replay,
    Conflicts,
    Slots,
    MissingSlots,
    Subscriptions,
    WalSize,
    XidAge,
    MultixactAge,
    Freeze,
    XminHorizon,
    DeadRows,
    Checksums,
    InvalidIndexes,
    Sequences,
    PendingRestart,
    Configuration,
    CacheHit,
    Rollbacks,
    Deadlocks,
    TempFiles,
    SlowQueries,
    Divergence,
    Settings,
    Version,
    Collation,
    Failover,
    Rpo,
    Window,
    Drill,
    Runway,
    Expiry,
    Operations,
    Poolers,
    Routes,
    PoolWait,
    PoolClients,
    Budget,
}

/// What the thresholds of a check are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Percent, from 0 to 100.
    Share,
    /// Seconds.
    Time,
    /// Bytes.
    Size,
    /// A number of things.
    Count,
}

/// On which side of its thresholds a value is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    Above,
    Below,
}

/// From where on a value is a warning, and critical; in the unit of the check's [`Measure`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub warn: Option<f64>,
    pub crit: Option<f64>,
}

/// What the file says of one check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    pub limits: Limits,
    /// A breach counts from so many looks in a row on.
    pub after: Option<u32>,
    /// The worst that it may be called.
    pub report: Option<Report>,
}

/// The worst that a check may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    Critical,
    Warning,
    /// It is not made at all.
    Never,
}

/// What the file says of checks, by check.
pub type DeclaredChecks = BTreeMap<Check, Declared>;

impl Check {
    pub const ALL: [Self; 57] = [
        Self::Connect,
        Self::Primary,
        Self::SystemIdentifier,
        Self::Standbys,
        Self::Lag,
        Self::Connections,
        Self::Disk,
        Self::Archive,
        Self::BackupAge,
        Self::Uptime,
        Self::Crash,
        Self::Clock,
        Self::IdleInTransaction,
        Self::LongQuery,
        Self::LongTransaction,
        Self::LockWait,
        Self::LockTable,
        Self::PreparedTransactions,
        Self::LagBytes,
        Self::Receiver,
        Self::Replay,
        Self::Conflicts,
        Self::Slots,
        Self::MissingSlots,
        Self::Subscriptions,
        Self::WalSize,
        Self::XidAge,
        Self::MultixactAge,
        Self::Freeze,
        Self::XminHorizon,
        Self::DeadRows,
        Self::Checksums,
        Self::InvalidIndexes,
        Self::Sequences,
        Self::PendingRestart,
        Self::Configuration,
        Self::CacheHit,
        Self::Rollbacks,
        Self::Deadlocks,
        Self::TempFiles,
        Self::SlowQueries,
        Self::Divergence,
        Self::Settings,
        Self::Version,
        Self::Collation,
        Self::Failover,
        Self::Rpo,
        Self::Window,
        Self::Drill,
        Self::Runway,
        Self::Expiry,
        Self::Operations,
        Self::Poolers,
        Self::Routes,
        Self::PoolWait,
        Self::PoolClients,
        Self::Budget,
    ];

    /// Returns its name in the topology and in every report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Primary => "primary",
            Self::SystemIdentifier => "system-identifier",
            Self::Standbys => "standbys",
            Self::Lag => "lag",
            Self::Connections => "connections",
            Self::Disk => "disk",
            Self::Archive => "archive",
            Self::BackupAge => "backup-age",
            Self::Uptime => "uptime",
            Self::Crash => "crash",
            Self::Clock => "clock",
            Self::IdleInTransaction => "idle-in-transaction",
            Self::LongQuery => "long-query",
            Self::LongTransaction => "long-transaction",
            Self::LockWait => "lock-wait",
            Self::LockTable => "lock-table",
            Self::PreparedTransactions => "prepared-transactions",
            Self::LagBytes => "lag-bytes",
            Self::Receiver => "receiver",
            Self::Replay => "replay",
            Self::Conflicts => "conflicts",
            Self::Slots => "slots",
            Self::MissingSlots => "missing-slots",
            Self::Subscriptions => "subscriptions",
            Self::WalSize => "wal-size",
            Self::XidAge => "xid-age",
            Self::MultixactAge => "multixact-age",
            Self::Freeze => "freeze",
            Self::XminHorizon => "xmin-horizon",
            Self::DeadRows => "dead-rows",
            Self::Checksums => "checksums",
            Self::InvalidIndexes => "invalid-indexes",
            Self::Sequences => "sequences",
            Self::PendingRestart => "pending-restart",
            Self::Configuration => "configuration",
            Self::CacheHit => "cache-hit",
            Self::Rollbacks => "rollbacks",
            Self::Deadlocks => "deadlocks",
            Self::TempFiles => "temp-files",
            Self::SlowQueries => "slow-queries",
            Self::Divergence => "divergence",
            Self::Settings => "settings",
            Self::Version => "version",
            Self::Collation => "collation",
            Self::Failover => "failover",
            Self::Rpo => "rpo",
            Self::Window => "window",
            Self::Drill => "drill",
            Self::Runway => "runway",
            Self::Expiry => "expiry",
            Self::Operations => "operations",
            Self::Poolers => "poolers",
            Self::Routes => "routes",
            Self::PoolWait => "pool-wait",
            Self::PoolClients => "pool-clients",
            Self::Budget => "budget",
        }
    }

    /// Finds a check by its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.name() == name)
    }

    /// Returns what its thresholds are measured in; `None` for a question of yes or no.
    pub const fn measure(self) -> Option<Measure> {
        match self {
            Self::Connect
            | Self::Primary
            | Self::SystemIdentifier
            | Self::Standbys
            | Self::Divergence
            | Self::Settings
            | Self::Version
            | Self::Collation
            | Self::Failover
            | Self::Operations
            | Self::Poolers
            | Self::Routes
            | Self::Budget
            | Self::MissingSlots => None,
            Self::Lag
            | Self::PoolWait
            | Self::BackupAge
            | Self::Rpo
            | Self::Window
            | Self::Drill
            | Self::Runway
            | Self::Expiry
            | Self::Uptime
            | Self::Crash
            | Self::Clock
            | Self::IdleInTransaction
            | Self::LongQuery
            | Self::LongTransaction
            | Self::LockWait
            | Self::PreparedTransactions
            | Self::Receiver
            | Self::Replay
            | Self::Slots
            | Self::SlowQueries => Some(Measure::Time),
            Self::Connections
            | Self::Disk
            | Self::PoolClients
            | Self::LockTable
            | Self::WalSize
            | Self::Freeze
            | Self::DeadRows
            | Self::Sequences
            | Self::CacheHit
            | Self::Rollbacks => Some(Measure::Share),
            Self::Archive
            | Self::Conflicts
            | Self::Subscriptions
            | Self::XidAge
            | Self::MultixactAge
            | Self::XminHorizon
            | Self::Checksums
            | Self::InvalidIndexes
            | Self::PendingRestart
            | Self::Configuration
            | Self::Deadlocks => Some(Measure::Count),
            Self::LagBytes | Self::TempFiles => Some(Measure::Size),
        }
    }

    /// Returns on which side of its thresholds a value is worse.
    pub const fn worse(self) -> Worse {
        match self {
            // What is left: of a disk, of a certificate; and how long something has gone well.
            Self::Runway | Self::Expiry | Self::Uptime | Self::Crash | Self::CacheHit => Worse::Below,
            Self::Connect
            | Self::Primary
            | Self::SystemIdentifier
            | Self::Standbys
            | Self::Lag
            | Self::Connections
            | Self::Disk
            | Self::Archive
            | Self::BackupAge
            | Self::Divergence
            | Self::Settings
            | Self::Version
            | Self::Collation
            | Self::Failover
            | Self::Rpo
            | Self::Window
            | Self::Drill
            | Self::Operations
            | Self::Poolers
            | Self::Routes
            | Self::PoolWait
            | Self::PoolClients
            | Self::Budget
            | Self::Clock
            | Self::IdleInTransaction
            | Self::LongQuery
            | Self::LongTransaction
            | Self::LockWait
            | Self::LockTable
            | Self::PreparedTransactions
            | Self::LagBytes
            | Self::Receiver
            | Self::Replay
            | Self::Conflicts
            | Self::Slots
            | Self::MissingSlots
            | Self::Subscriptions
            | Self::WalSize
            | Self::XidAge
            | Self::MultixactAge
            | Self::Freeze
            | Self::XminHorizon
            | Self::DeadRows
            | Self::Checksums
            | Self::InvalidIndexes
            | Self::Sequences
            | Self::PendingRestart
            | Self::Configuration
            | Self::Rollbacks
            | Self::Deadlocks
            | Self::TempFiles
            | Self::SlowQueries => Worse::Above,
        }
    }

    /// Returns its thresholds where the file says nothing.
    pub const fn limits(self) -> Limits {
        const MINUTE: f64 = 60.0;
        const HOUR: f64 = 60.0 * MINUTE;
        const MIB: f64 = 1_048_576.0;
        const GIB: f64 = 1024.0 * MIB;
        match self {
            // Of `rpo` and `window` what is declared under `objectives` and `backups` is the threshold; a restart is what an operator does.
            Self::Connect
            | Self::Primary
            | Self::SystemIdentifier
            | Self::Standbys
            | Self::Divergence
            | Self::Settings
            | Self::Version
            | Self::Collation
            | Self::Failover
            | Self::Operations
            | Self::Poolers
            | Self::Routes
            | Self::Budget
            // What is declared under `objectives` and `backups` is the threshold.
            | Self::Rpo
            | Self::Window
            | Self::Uptime
            | Self::MissingSlots => Limits { warn: None, crit: None },
            // Of a standby that nobody reads from and no commit waits for.
            Self::Lag => Limits { warn: Some(30.0), crit: Some(300.0) },
            Self::Connections | Self::Disk => Limits { warn: Some(80.0), crit: Some(90.0) },
            Self::PoolClients => Limits { warn: Some(80.0), crit: Some(95.0) },
            Self::PoolWait => Limits { warn: Some(1.0), crit: Some(10.0) },
            Self::Archive => Limits { warn: Some(10.0), crit: Some(50.0) },
            Self::BackupAge => Limits { warn: Some(26.0 * HOUR), crit: Some(50.0 * HOUR) },
            Self::Drill => Limits { warn: Some(35.0 * 24.0 * HOUR), crit: Some(95.0 * 24.0 * HOUR) },
            Self::Runway => Limits { warn: Some(24.0 * HOUR), crit: Some(4.0 * HOUR) },
            Self::Expiry => Limits { warn: Some(30.0 * 24.0 * HOUR), crit: Some(7.0 * 24.0 * HOUR) },
            Self::Crash | Self::Slots => Limits { warn: Some(10.0 * MINUTE), crit: None },
            Self::Clock => Limits { warn: Some(2.0), crit: Some(5.0) },
            Self::IdleInTransaction => Limits { warn: Some(5.0 * MINUTE), crit: Some(15.0 * MINUTE) },
            Self::LongQuery | Self::LongTransaction => Limits { warn: Some(HOUR), crit: Some(12.0 * HOUR) },
            Self::LockWait => Limits { warn: Some(30.0), crit: Some(2.0 * MINUTE) },
            Self::LockTable => Limits { warn: Some(50.0), crit: Some(80.0) },
            Self::PreparedTransactions => Limits { warn: Some(MINUTE), crit: Some(5.0 * MINUTE) },
            Self::LagBytes => Limits { warn: Some(64.0 * MIB), crit: Some(1024.0 * MIB) },
            Self::Receiver => Limits { warn: Some(MINUTE), crit: None },
            // Since nobody pauses it for good.
            Self::Replay => Limits { warn: Some(0.0), crit: Some(HOUR) },
            Self::Conflicts | Self::Rollbacks | Self::Deadlocks => Limits { warn: Some(10.0), crit: None },
            Self::Subscriptions | Self::InvalidIndexes | Self::PendingRestart => {
                Limits { warn: Some(1.0), crit: None }
            }
            Self::WalSize => Limits { warn: Some(200.0), crit: Some(400.0) },
            Self::XidAge | Self::MultixactAge => Limits { warn: Some(500e6), crit: Some(1000e6) },
            Self::Freeze => Limits { warn: Some(125.0), crit: Some(200.0) },
            Self::XminHorizon => Limits { warn: Some(10e6), crit: Some(100e6) },
            Self::DeadRows => Limits { warn: Some(30.0), crit: None },
            Self::Checksums | Self::Configuration => Limits { warn: None, crit: Some(1.0) },
            Self::Sequences => Limits { warn: Some(75.0), crit: Some(90.0) },
            Self::CacheHit => Limits { warn: Some(90.0), crit: None },
            Self::TempFiles => Limits { warn: Some(10.0 * GIB), crit: None },
            Self::SlowQueries => Limits { warn: Some(0.5), crit: Some(2.0) },
        }
    }
}

impl Limits {
    /// Returns these thresholds, with those of `other` where there are none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { warn: self.warn.or(other.warn), crit: self.crit.or(other.crit) }
    }
}

impl Measure {
    /// Returns its word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Time => "time",
            Self::Size => "size",
            Self::Count => "count",
        }
    }

    /// Parses a threshold with its unit: `80 %`, `30 s`, `64 MiB`; a count may be written in thousands and millions: `500 M`.
    ///
    /// # Errors
    /// [`UnitError`] as for any quantity.
    pub fn parse(self, text: &str) -> Result<f64, UnitError> {
        const SHARE: &str = "a share such as 80 %";
        const COUNT: &str = "a number such as 12, 10 k or 500 M";
        match self {
            Self::Share => {
                let number = text.trim().strip_suffix('%').map(str::trim);
                let share = number.and_then(|number| number.parse::<f64>().ok());
                share
                    .filter(|share| share.is_finite() && *share >= 0.0)
                    .ok_or_else(|| UnitError::NotANumber(text.trim().to_owned(), SHARE))
            }
            Self::Time => parse_duration(text).map(|span| span.as_secs_f64()),
            Self::Size => ByteCount::parse(text).map(|size| to_f64(size.0)),
            Self::Count => {
                let trimmed = text.trim();
                let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
                let factor = match trimmed[digits..].trim() {
                    "" => 1.0,
                    "k" => 1e3,
                    "M" => 1e6,
                    _ => return Err(UnitError::NotANumber(trimmed.to_owned(), COUNT)),
                };
                let number: u32 = trimmed[..digits]
                    .parse()
                    .map_err(|_| UnitError::NotANumber(trimmed.to_owned(), COUNT))?;
                Ok(f64::from(number) * factor)
            }
        }
    }

    /// Writes a value as an operator reads it: `80 %`, `4.2 s`, `64 MiB`, `12`.
    pub fn written(self, value: f64) -> String {
        match self {
            Self::Share => format!("{} %", trimmed(value)),
            Self::Time => match std::time::Duration::try_from_secs_f64(value) {
                Ok(span) => human_duration(span),
                Err(_) => format!("{} s", trimmed(value)),
            },
            Self::Size => ByteCount(from_f64(value)).to_string(),
            Self::Count if value >= 1e6 => format!("{} M", trimmed(value / 1e6)),
            Self::Count => trimmed(value),
        }
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes of disks and logs are far below 2^53 bytes' worth of precision that anybody reads"
)]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, and a value below zero is shown as none"
)]
fn from_f64(bytes: f64) -> u64 {
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_found_by_its_name_and_no_two_share_one() {
        for check in Check::ALL {
            assert_eq!(Check::named(check.name()), Some(check));
            let word = serde_json::to_value(check).unwrap();
            assert_eq!(word, check.name());
        }
        assert_eq!(Check::named("lagg"), None);
    }

    #[test]
    fn only_a_check_that_measures_has_thresholds_and_the_warning_comes_first() {
        for check in Check::ALL {
            let Limits { warn, crit } = check.limits();
            assert!(check.measure().is_some() || (warn.is_none() && crit.is_none()), "{check:?}");
            if let (Some(warn), Some(crit)) = (warn, crit) {
                assert!(if check.worse() == Worse::Above { warn <= crit } else { warn >= crit }, "{check:?}");
            }
        }
    }

    #[test]
    fn thresholds_are_read_with_their_units() {
        assert_eq!(Measure::Share.parse("80 %"), Ok(80.0));
        assert_eq!(Measure::Share.parse("99.5%"), Ok(99.5));
        assert!(Measure::Share.parse("80").is_err());
        assert_eq!(Measure::Time.parse("5 min"), Ok(300.0));
        assert_eq!(Measure::Size.parse("64 MiB"), Ok(67_108_864.0));
        assert_eq!(Measure::Count.parse("500 M"), Ok(5e8));
        assert_eq!(Measure::Count.parse("12"), Ok(12.0));
        assert!(Measure::Count.parse("12 s").is_err());
        assert!(Measure::Count.parse("many").is_err());
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        assert_eq!(Measure::Share.written(41.0), "41 %");
        assert_eq!(Measure::Share.written(41.26), "41.3 %");
        assert_eq!(Measure::Time.written(336.0), "5m36s");
        assert_eq!(Measure::Size.written(67_108_864.0), "64 MiB");
        assert_eq!(Measure::Count.written(12.0), "12");
        assert_eq!(Measure::Count.written(5e8), "500 M");
    }
}
