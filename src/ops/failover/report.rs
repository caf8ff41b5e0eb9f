//! What a failover has come to, read from its journal.

use jiff::Timestamp;
use serde::Serialize;

use crate::engine::record::{OperationId, ProbeFound, Record};
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::failover::evidence::Evidence;
use crate::ops::failover::step::FailStep;
use crate::ops::succession::Input;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::SegmentName;
use crate::units::ByteCount;

/// What a failover has come to.
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
    /// How the old primary is kept from taking writes.
    pub fence: Option<String>,
    /// What was brought from the data directory of the old primary.
    pub salvaged: Option<ByteCount>,
    /// Why that could not be brought, where that may be: the operator had agreed to lose it, or it is of commits that waited for no standby.
    pub not_salvaged: Option<String>,
    /// Whom the new primary's commits wait for, where that is not what is declared.
    pub synchronous: Option<String>,
    /// From the first step until the poolers lead to the new primary; without poolers until it is promoted.
    pub serving_after_seconds: Option<f64>,
    /// From the first step to the last.
    pub seconds: f64,
    /// Segments that were archived in place of the old primary, and those that nobody has any more.
    pub backfilled: Vec<SegmentName>,
    pub missing: Vec<SegmentName>,
    /// Whether the new timeline was seen in the archive without a gap; `None` without an archive.
    pub archive_whole: Option<bool>,
    /// The nodes that stream from the new primary.
    pub streaming: Vec<String>,
    /// The nodes that the written row was read on.
    pub write_seen_on: Vec<String>,
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
        fence: None,
        salvaged: None,
        not_salvaged: None,
        synchronous: input.synchronous.clone(),
        serving_after_seconds: None,
        seconds: 0.0,
        backfilled: Vec::new(),
        missing: Vec::new(),
        archive_whole: input.cluster.backups.as_ref().map(|_| false),
        streaming: Vec::new(),
        write_seen_on: Vec::new(),
    };
    let first = content.entries.first().map(|entry| entry.at);
    let since = |at: Timestamp| first.map(|first| at.duration_since(first).as_secs_f64());
    report.seconds = content.entries.last().and_then(|entry| since(entry.at)).unwrap_or(0.0);
    let mut led = Vec::new();
    for entry in content.entries {
        let (Record::StepDone { stage, step, evidence }
        | Record::StepFound { stage, step, found: ProbeFound::Done { evidence } }) = entry.record
        else {
            continue;
        };
        let planned = header.stages.get(stage).and_then(|stage| stage.steps.get(step));
        let planned: Option<FailStep> = planned
            .map(|planned| serde_json::from_value(planned.step.clone()))
            .transpose()
            .map_err(unreadable)?;
        let evidence: Evidence = serde_json::from_value(evidence).map_err(unreadable)?;
        match (planned, evidence) {
            (_, Evidence::Promoted { timeline, begins }) => {
                report.timeline = Some(timeline);
                report.begins = Some(begins);
                report.serving_after_seconds = since(entry.at);
            }
            (Some(FailStep::Turn { host } | FailStep::Lead { host }), Evidence::Led { .. }) => {
                // The second time only the aliases of standbys move.
                if !led.contains(&host) {
                    report.serving_after_seconds = since(entry.at);
                    led.push(host);
                }
            }
            (Some(FailStep::ShutOut { node }), Evidence::ShutOut { .. }) => {
                let name = input.cluster.full_name(&node);
                report.fence =
                    Some(format!("{name} was stopped, and nothing starts it: pgherd rejoin {node}"));
            }
            (Some(FailStep::FenceHook { .. }), Evidence::Hooked { ran: Some(ran), .. }) => {
                let said = ran.said.last().map(|said| format!(": {said}")).unwrap_or_default();
                report.fence = Some(format!("the hook fence has cut it off{said}"));
            }
            (_, Evidence::Starved { frozen }) => {
                report.fence = Some(format!("no commit of it ends: {} confirm nothing", frozen.join(", ")));
            }
            (Some(FailStep::Statement { said }), Evidence::Stated {}) => {
                report.fence = Some(format!("by the operator's word: {said}"));
            }
            (_, Evidence::Salvaged { bytes, .. }) => report.salvaged = Some(bytes),
            (_, Evidence::NotSalvaged { why }) => report.not_salvaged = Some(why),
            (Some(FailStep::Streams { node }), Evidence::Streams { .. }) => report.streaming.push(node),
            (_, Evidence::Backfilled { archived, missing }) => {
                report.backfilled = archived;
                report.missing = missing;
            }
            (_, Evidence::ArchiveGoesOn { .. }) => report.archive_whole = Some(true),
            (_, Evidence::Proved { nodes, .. }) => report.write_seen_on = nodes,
            (_, _) => {}
        }
    }
    Ok(report)
}
