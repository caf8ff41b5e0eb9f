//! What a rejoin has come to, read from its journal.

use std::path::PathBuf;

use serde::Serialize;

use crate::engine::record::{OperationId, ProbeFound, Record};
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::rejoin::decide::{Fork, Way};
use crate::ops::rejoin::evidence::Evidence;
use crate::ops::rejoin::world::Input;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::Label;

/// What a rejoin has come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub cluster: String,
    pub operation: OperationId,
    pub node: String,
    pub primary: String,
    /// What was decided, and why.
    pub decided: Way,
    pub why: String,
    /// What was done in the end: a rewind that was not needed follows, one that failed clones.
    pub done: Way,
    /// Why it was not rewound, if it was meant to be.
    pub not_rewound: Option<String>,
    pub fork: Option<Fork>,
    /// Where the WAL of the node ended before, and on which timeline.
    pub ended_timeline: Option<TimelineId>,
    pub ended: Option<Lsn>,
    /// Bytes that only the node had.
    pub past_bytes: Option<u64>,
    /// WAL files that were archived now, and those that were archived already.
    pub archived: Vec<String>,
    pub archived_before: Vec<String>,
    /// WAL files that were copied aside, where to, and why they could not be archived.
    pub aside: Vec<String>,
    pub aside_directory: Option<PathBuf>,
    pub not_archived: Option<String>,
    /// The backup that it was made from, if it was not cloned from the primary.
    pub backup: Option<Label>,
    /// What the node had before it was cloned.
    pub set_aside: Option<PathBuf>,
    /// The timeline that the node streams on now, and where it is.
    pub timeline: Option<TimelineId>,
    pub lsn: Option<Lsn>,
    pub slots_dropped: Vec<String>,
    pub write_seen_on: Vec<String>,
    /// From the first step to the last.
    pub seconds: f64,
}

/// Reads what an operation has come to.
///
/// # Errors
/// When its journal cannot be read.
pub fn read(store: &Store, id: &OperationId) -> Result<Report> {
    let content = store.read(id)?;
    let unreadable = |error: serde_json::Error| {
        Error::new(ErrorKind::Stuck, format!("cannot read the journal of operation {id}")).source(error)
    };
    let header = &content.header;
    let Input { succession, decision } = serde_json::from_value(header.input.clone()).map_err(unreadable)?;
    let first = content.entries.first().map(|entry| entry.at);
    let last = content.entries.last().map(|entry| entry.at);
    let mut report = Report {
        cluster: header.cluster.clone(),
        operation: id.clone(),
        node: succession.cluster.full_name(&succession.from),
        primary: succession.cluster.full_name(&succession.to),
        decided: decision.way,
        why: decision.why,
        done: decision.way,
        not_rewound: None,
        fork: decision.fork,
        ended_timeline: None,
        ended: None,
        past_bytes: None,
        archived: Vec::new(),
        archived_before: Vec::new(),
        aside: Vec::new(),
        aside_directory: None,
        not_archived: None,
        backup: None,
        set_aside: None,
        timeline: None,
        lsn: None,
        slots_dropped: Vec::new(),
        write_seen_on: Vec::new(),
        seconds: first.zip(last).map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64()),
    };
    for entry in content.entries {
        let evidence = match entry.record {
            Record::StepDone { evidence, .. }
            | Record::StepFound { found: ProbeFound::Done { evidence }, .. } => evidence,
            Record::StepStarted { .. }
            | Record::Header(_)
            | Record::StepFailed { .. }
            | Record::StepFound { .. }
            | Record::TurnedBack { .. }
            | Record::UndoStarted { .. }
            | Record::UndoDone { .. }
            | Record::UndoFailed { .. }
            | Record::Resumed { .. }
            | Record::TakenOver { .. }
            | Record::TakenFromCopy { .. }
            | Record::Abandoned { .. }
            | Record::Ended { .. } => continue,
        };
        report.take(serde_json::from_value(evidence).map_err(unreadable)?);
    }
    Ok(report)
}

impl Report {
    fn take(&mut self, evidence: Evidence) {
        match evidence {
            Evidence::Ended { timeline, lsn } => {
                (self.ended_timeline, self.ended) = (Some(timeline), Some(lsn));
                self.past_bytes = self.fork.map(|fork| fork.at.lag_behind(lsn).0);
            }
            Evidence::Saved { stored, there, aside, directory, why } => {
                (self.archived, self.archived_before) = (stored, there);
                (self.aside, self.aside_directory, self.not_archived) = (aside, directory, why);
            }
            Evidence::Rewound {} => self.done = Way::Rewind,
            Evidence::NothingToRewind {} => self.done = Way::Follow,
            Evidence::NotRewound { why } => self.not_rewound = Some(why),
            Evidence::Cloned { aside, backup, .. } => {
                self.done = Way::Clone;
                self.backup = backup;
                self.set_aside = aside;
            }
            Evidence::Streams { timeline, lsn } => (self.timeline, self.lsn) = (Some(timeline), lsn),
            Evidence::SlotsGone { slots } => self.slots_dropped = slots,
            Evidence::Proved { nodes, .. } => self.write_seen_on = nodes,
            Evidence::Checkpointed { .. }
            | Evidence::SlotThere { .. }
            | Evidence::Stopped {}
            | Evidence::NotReplayed { .. }
            | Evidence::Archived { .. }
            | Evidence::Opened {}
            | Evidence::FilesKept { .. }
            | Evidence::NotCloned {}
            | Evidence::Started {}
            | Evidence::Closed {}
            | Evidence::Settled {}
            | Evidence::Unfenced { .. }
            | Evidence::Led { .. } => {}
        }
    }
}
