//! The checks of `health`: their names in the topology, what each measures, and from where on it warns where the file says nothing.
//!
//! How each is made and judged is the business of `ops::health`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::{ByteCount, UnitError, human_duration, parse_duration};

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

/// What holds for a check wherever it is made.
#[derive(Debug, Clone, Copy)]
struct About {
    name: &'static str,
    measure: Option<Measure>,
    worse: Worse,
    limits: Limits,
}

/// A question of yes or no.
const fn holds(name: &'static str) -> About {
    About { name, measure: None, worse: Worse::Above, limits: Limits { warn: None, crit: None } }
}

/// A value that is worse the larger it is.
const fn above(name: &'static str, measure: Measure, warn: Option<f64>, crit: Option<f64>) -> About {
    About { name, measure: Some(measure), worse: Worse::Above, limits: Limits { warn, crit } }
}

/// A value that is worse the smaller it is: what is left, or how long something has gone well.
const fn below(name: &'static str, measure: Measure, warn: Option<f64>, crit: Option<f64>) -> About {
    About { name, measure: Some(measure), worse: Worse::Below, limits: Limits { warn, crit } }
}

/// Declares [`Check`] and what holds for each; the name is that of the variant in kebab case.
macro_rules! checks {
    ($($(#[$note:meta])* $check:ident = $about:expr,)+) => {
        /// A question about the herd that `health` answers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Check {
            $($(#[$note])* $check,)+
        }

        impl Check {
            pub const ALL: [Self; [$(Self::$check),+].len()] = [$(Self::$check),+];

            const fn about(self) -> About {
                match self {
                    $(Self::$check => $about,)+
                }
            }
        }
    };
}

const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

// The thresholds, a warning and what is critical, are those where the file says nothing.
checks! {
    Connect = holds("connect"),
    Primary = holds("primary"),
    SystemIdentifier = holds("system-identifier"),
    Standbys = holds("standbys"),
    /// Of a standby that nobody reads from and no commit waits for.
    Lag = above("lag", Measure::Time, Some(30.0), Some(300.0)),
    Connections = above("connections", Measure::Share, Some(80.0), Some(90.0)),
    Disk = above("disk", Measure::Share, Some(80.0), Some(90.0)),
    Archive = above("archive", Measure::Count, Some(10.0), Some(50.0)),
    /// In percent of how long the last one took.
    BackupRunning = above("backup-running", Measure::Share, Some(200.0), None),
    /// Whether every repository of the cluster has what it should.
    Copies = holds("copies"),
    BackupAge = above("backup-age", Measure::Time, Some(26.0 * HOUR), Some(50.0 * HOUR)),
    /// Without thresholds: a restart is what an operator does.
    Uptime = below("uptime", Measure::Time, None, None),
    Crash = below("crash", Measure::Time, Some(10.0 * MINUTE), None),
    Clock = above("clock", Measure::Time, Some(2.0), Some(5.0)),
    IdleInTransaction = above("idle-in-transaction", Measure::Time, Some(5.0 * MINUTE), Some(15.0 * MINUTE)),
    LongQuery = above("long-query", Measure::Time, Some(HOUR), Some(12.0 * HOUR)),
    LongTransaction = above("long-transaction", Measure::Time, Some(HOUR), Some(12.0 * HOUR)),
    LockWait = above("lock-wait", Measure::Time, Some(30.0), Some(2.0 * MINUTE)),
    LockTable = above("lock-table", Measure::Share, Some(50.0), Some(80.0)),
    PreparedTransactions = above("prepared-transactions", Measure::Time, Some(MINUTE), Some(5.0 * MINUTE)),
    LagBytes = above("lag-bytes", Measure::Size, Some(64.0 * MIB), Some(GIB)),
    Receiver = above("receiver", Measure::Time, Some(MINUTE), None),
    /// From the first moment on: nobody pauses it for good.
    Replay = above("replay", Measure::Time, Some(0.0), Some(HOUR)),
    Conflicts = above("conflicts", Measure::Count, Some(10.0), None),
    Slots = above("slots", Measure::Time, Some(10.0 * MINUTE), None),
    MissingSlots = holds("missing-slots"),
    Subscriptions = above("subscriptions", Measure::Count, Some(1.0), None),
    WalSize = above("wal-size", Measure::Share, Some(200.0), Some(400.0)),
    XidAge = above("xid-age", Measure::Count, Some(500e6), Some(1e9)),
    MultixactAge = above("multixact-age", Measure::Count, Some(500e6), Some(1e9)),
    Freeze = above("freeze", Measure::Share, Some(125.0), Some(200.0)),
    XminHorizon = above("xmin-horizon", Measure::Count, Some(10e6), Some(100e6)),
    DeadRows = above("dead-rows", Measure::Share, Some(30.0), None),
    Checksums = above("checksums", Measure::Count, None, Some(1.0)),
    InvalidIndexes = above("invalid-indexes", Measure::Count, Some(1.0), None),
    Sequences = above("sequences", Measure::Share, Some(75.0), Some(90.0)),
    Partitions = holds("partitions"),
    /// How many periods are declared under `partitions` is the threshold.
    PartitionHorizon = below("partition-horizon", Measure::Count, None, None),
    DefaultPartition = above("default-partition", Measure::Count, Some(1.0), None),
    PendingDetach = above("pending-detach", Measure::Count, Some(1.0), None),
    PendingRestart = above("pending-restart", Measure::Count, Some(1.0), None),
    Configuration = above("configuration", Measure::Count, None, Some(1.0)),
    CacheHit = below("cache-hit", Measure::Share, Some(90.0), None),
    Rollbacks = above("rollbacks", Measure::Share, Some(10.0), None),
    Deadlocks = above("deadlocks", Measure::Count, Some(10.0), None),
    TempFiles = above("temp-files", Measure::Size, Some(10.0 * GIB), None),
    Growth = below("growth", Measure::Time, Some(14.0 * DAY), Some(3.0 * DAY)),
    SlowQueries = above("slow-queries", Measure::Time, Some(0.5), Some(2.0)),
    Divergence = holds("divergence"),
    Settings = holds("settings"),
    Version = holds("version"),
    Collation = holds("collation"),
    Failover = holds("failover"),
    Fenced = holds("fenced"),
    /// What is declared under `objectives` is the threshold.
    Rpo = above("rpo", Measure::Time, None, None),
    /// What is declared under `backups` is the threshold.
    Window = above("window", Measure::Time, None, None),
    Drill = above("drill", Measure::Time, Some(35.0 * DAY), Some(95.0 * DAY)),
    Jobs = holds("jobs"),
    Runway = below("runway", Measure::Time, Some(DAY), Some(4.0 * HOUR)),
    Expiry = below("expiry", Measure::Time, Some(30.0 * DAY), Some(7.0 * DAY)),
    Operations = holds("operations"),
    /// An operation takes minutes, a large restore or backup hours.
    Lock = above("lock", Measure::Time, Some(6.0 * HOUR), None),
    Poolers = holds("poolers"),
    Routes = holds("routes"),
    PoolWait = above("pool-wait", Measure::Time, Some(1.0), Some(10.0)),
    PoolClients = above("pool-clients", Measure::Share, Some(80.0), Some(95.0)),
    Budget = holds("budget"),
}

impl Check {
    /// Returns its name in the topology and in every report.
    pub const fn name(self) -> &'static str {
        self.about().name
    }

    /// Finds a check by its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.name() == name)
    }

    /// Returns what its thresholds are measured in; `None` for a question of yes or no.
    pub const fn measure(self) -> Option<Measure> {
        self.about().measure
    }

    /// Returns on which side of its thresholds a value is worse.
    pub const fn worse(self) -> Worse {
        self.about().worse
    }

    /// Returns its thresholds where the file says nothing.
    pub const fn limits(self) -> Limits {
        self.about().limits
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
