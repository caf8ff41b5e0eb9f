//! What a drill came to: plain data, kept in a file (docs/formats/drill-report.md).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::record::Failure;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::Label;
use crate::topology::model::DrillTarget;
use crate::units::ByteCount;

/// The format that this pgherd reads and writes.
pub const FORMAT: u32 = 1;

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Restored, every proof held, every objective met.
    Passed,
    /// It ran to its end, and a proof did not hold or an objective was missed.
    Failed,
    /// It did not run to its end, so that nothing is proved.
    Error,
}

/// A part of the way from "restore it" to "clients may come", in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Which backup, which WAL.
    Choose,
    /// The files of the backup.
    Fetch,
    /// From the start of the server to the target.
    Replay,
    /// The end of recovery.
    Start,
    /// What is proved.
    Checks,
}

impl Phase {
    /// Returns its one word.
    pub fn text(self) -> &'static str {
        match self {
            Self::Choose => "choose",
            Self::Fetch => "fetch",
            Self::Replay => "replay",
            Self::Start => "start",
            Self::Checks => "checks",
        }
    }
}

/// How long a phase took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTime {
    pub phase: Phase,
    pub seconds: f64,
}

/// What became of a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    Yes,
    No,
    /// It could not be tried, and the text says why.
    Skipped,
}

/// One thing that was to be proved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// `checksums`, `amcheck`, `probe`, or `assertion NAME`.
    pub name: String,
    pub held: Held,
    /// What was found, as a fragment.
    pub found: String,
    pub seconds: f64,
}

/// How old what the archive has is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    /// When the newest transaction that is archived committed.
    pub newest_commit: Timestamp,
    /// From then to the beginning of the drill.
    pub age_seconds: f64,
    /// Whether the primary has begun a transaction since then; `None` if it did not say.
    pub written_since: Option<bool>,
    /// What a loss of everything but the repository would have cost: the age, or 0 where nothing was written since.
    pub rpo_seconds: f64,
}

/// What an objective asks, and what was achieved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judged {
    /// Its name in the topology: `undo-mistake`.
    pub objective: String,
    /// Why a restore is the answer to it.
    pub why: String,
    pub declared_rto_seconds: f64,
    pub rto_met: bool,
    pub declared_rpo_seconds: f64,
    pub rpo_met: bool,
}

/// What was copied from the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copied {
    pub files: u64,
    /// Of all files.
    pub size_bytes: ByteCount,
    /// Read from the repository.
    pub fetched_bytes: ByteCount,
    pub workers: u32,
}

/// Where recovery began and ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    pub from: Lsn,
    pub lsn: Lsn,
    pub timeline: TimelineId,
    /// When the last transaction that was replayed ended.
    pub last_transaction: Option<Timestamp>,
}

/// A drill, as it ended or as far as it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub format: u32,
    /// Names the drill: 8 hexadecimal digits.
    pub id: String,
    /// `restore`.
    pub drill: String,
    pub herd: String,
    pub cluster: String,
    /// The version of pgherd that ran it.
    pub pgherd: String,
    pub verdict: Verdict,
    pub begun: Timestamp,
    pub ended: Timestamp,
    pub to: DrillTarget,
    /// What the random second was drawn with.
    pub seed: Option<u64>,
    /// The moment that was asked for; `None`: the end of the archive.
    pub target: Option<Timestamp>,
    pub repository: Option<String>,
    pub host: Option<String>,
    pub backup: Option<Label>,
    pub copied: Option<Copied>,
    pub reached: Option<Reached>,
    /// Those that ended, in order.
    pub phases: Vec<PhaseTime>,
    /// All of them together, if all of them ended.
    pub rto_seconds: Option<f64>,
    pub freshness: Option<Freshness>,
    pub proofs: Vec<Proof>,
    pub objectives: Vec<Judged>,
    /// Why it did not run to its end.
    pub error: Option<Failure>,
    /// The directory that was kept on demand, or could not be removed.
    pub left: Option<String>,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
}

impl Report {
    /// Returns how long a phase took.
    pub fn seconds(&self, phase: Phase) -> Option<f64> {
        self.phases.iter().find(|time| time.phase == phase).map(|time| time.seconds)
    }

    /// Decides how it ended, from everything else.
    pub fn judge(&self) -> Verdict {
        let missed = self.objectives.iter().any(|judged| !judged.rto_met || !judged.rpo_met);
        match &self.error {
            Some(_) => Verdict::Error,
            None if missed || self.proofs.iter().any(|proof| proof.held == Held::No) => Verdict::Failed,
            None => Verdict::Passed,
        }
    }
}
