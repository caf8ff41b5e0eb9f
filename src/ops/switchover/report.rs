//! What a switchover has come to, read from its journal.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::engine::record::{OperationId, ProbeFound, Record};
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::succession::Input;
use crate::ops::switchover::evidence::Evidence;
use crate::ops::switchover::step::SwitchStep;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::hooks::Point;

/// What a switchover has come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub cluster: String,
    pub operation: OperationId,
    /// The node that was primary.
    pub from: String,
    /// The node that is primary now.
    pub to: String,
    /// The timeline that was begun, and where.
    pub timeline: Option<TimelineId>,
    pub begins: Option<Lsn>,
    /// How long clients of the poolers waited, until the last pooler let them go on; none without a pooler.
    pub clients_waited_seconds: Option<f64>,
    /// From the order to stop to the end of the promotion: how long no node took writes.
    pub without_primary_seconds: Option<f64>,
    /// From the first step to the last.
    pub seconds: f64,
    /// Whether the new timeline was seen in the archive without a gap; `None` without an archive.
    pub archive_whole: Option<bool>,
    /// The nodes that stream from the new primary.
    pub streaming: Vec<String>,
    /// The nodes that the written row was read on.
    pub write_seen_on: Vec<String>,
    /// The hooks that have done their work, in the order that they were run in.
    pub hooks: Vec<RanHook>,
}

/// A hook that has done its work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RanHook {
    pub point: Point,
    pub seconds: f64,
    /// The last lines that it printed.
    pub said: Vec<String>,
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
    let input: Input = serde_json::from_value(header.input.clone()).map_err(unreadable)?;
    let mut report = Report {
        cluster: header.cluster.clone(),
        operation: id.clone(),
        from: input.cluster.full_name(&input.from),
        to: input.cluster.full_name(&input.to),
        timeline: None,
        begins: None,
        clients_waited_seconds: None,
        without_primary_seconds: None,
        seconds: 0.0,
        archive_whole: input.cluster.backups.as_ref().map(|_| false),
        streaming: Vec::new(),
        write_seen_on: Vec::new(),
        hooks: Vec::new(),
    };
    let first = content.entries.first().map(|entry| entry.at);
    let last = content.entries.last().map(|entry| entry.at);
    report.seconds = first.zip(last).map_or(0.0, |(first, last)| between(first, last));
    let planned = |stage: usize, step: usize| -> Result<Option<SwitchStep>> {
        let planned = header.stages.get(stage).and_then(|stage| stage.steps.get(step));
        planned.map(|planned| serde_json::from_value(planned.step.clone())).transpose().map_err(unreadable)
    };
    let (mut held, mut stopping): (Option<Timestamp>, Option<Timestamp>) = (None, None);
    let mut led = Vec::new();
    for entry in content.entries {
        let (stage, step, evidence) = match entry.record {
            Record::StepDone { stage, step, evidence } => (stage, step, evidence),
            Record::StepFound { stage, step, found: ProbeFound::Done { evidence } } => {
                (stage, step, evidence)
            }
            Record::StepStarted { stage, step, .. } => {
                match planned(stage, step)? {
                    Some(SwitchStep::Pause { .. }) => held = Some(entry.at),
                    Some(SwitchStep::Stop { .. }) => stopping = Some(entry.at),
                    Some(_) | None => {}
                }
                continue;
            }
            Record::Header(_)
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
        let evidence: Evidence = serde_json::from_value(evidence).map_err(unreadable)?;
        match (planned(stage, step)?, evidence) {
            (_, Evidence::Promoted { timeline, begins }) => {
                report.timeline = Some(timeline);
                report.begins = Some(begins);
                report.without_primary_seconds = stopping.map(|stopping| between(stopping, entry.at));
            }
            (Some(SwitchStep::Turn { host } | SwitchStep::Lead { host }), Evidence::Led { .. }) => {
                // The second time only the aliases of standbys move.
                if !led.contains(&host) {
                    report.clients_waited_seconds = held.map(|held| between(held, entry.at));
                    led.push(host);
                }
            }
            (Some(SwitchStep::Streams { node }), Evidence::Streams { .. }) => report.streaming.push(node),
            (_, Evidence::ArchiveGoesOn { .. }) => report.archive_whole = Some(true),
            (_, Evidence::Proved { nodes, .. }) => report.write_seen_on = nodes,
            // What was done before is found done once more at the end.
            (_, Evidence::Hooked { point, ran: Some(ran), .. })
                if !report.hooks.iter().any(|known| known.point == point) =>
            {
                let seconds = Duration::from_millis(ran.milliseconds).as_secs_f64();
                report.hooks.push(RanHook { point, seconds, said: ran.said });
            }
            (_, _) => {}
        }
    }
    Ok(report)
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
