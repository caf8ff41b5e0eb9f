//! What a restore in place has come to, read from its journal.

use jiff::Timestamp;
use serde::Serialize;

use crate::engine::record::{OperationId, Record};
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::in_place::evidence::{Evidence, Moved};
use crate::ops::in_place::step::RestoreStep;
use crate::ops::in_place::world::Input;
use crate::ops::restore::recover::Achieved;
use crate::ops::restore::survey::Beyond;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::SegmentName;
use crate::pg::wal_record::Mark;

/// What a restore in place has come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub cluster: String,
    pub operation: OperationId,
    /// What was asked for.
    pub target: String,
    pub backup: String,
    /// The node that is primary now.
    pub primary: String,
    pub achieved: Option<Achieved>,
    /// The first transaction that was given up.
    pub given_up_from: Option<Mark>,
    /// What was given up: the rest of the old timeline.
    pub given_up: Option<Beyond>,
    /// The timeline that was begun.
    pub timeline: Option<TimelineId>,
    /// How long clients of the pooler had to wait.
    pub clients_waited_seconds: Option<f64>,
    /// From the first step to the last.
    pub seconds: f64,
    /// The old directories, which nothing removes.
    pub set_aside: Vec<Aside>,
    /// WAL files of the old cluster that are only in these directories.
    pub not_archived: Vec<NotArchived>,
    /// The nodes that the written row was read on.
    pub write_seen_on: Vec<String>,
}

/// What was kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Aside {
    pub node: String,
    pub moved: Vec<Moved>,
    /// The command that removes it.
    pub remove: String,
}

/// WAL that the archive does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotArchived {
    pub node: String,
    pub files: Vec<String>,
    /// It was not shut down: what it wrote behind this segment was never archived.
    pub behind: Option<SegmentName>,
    pub why: Option<String>,
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
        target: input.choice.target.to_string(),
        backup: input.choice.backup.to_string(),
        primary: input.cluster.full_name(&input.seed),
        achieved: None,
        given_up_from: None,
        given_up: None,
        timeline: None,
        clients_waited_seconds: None,
        seconds: 0.0,
        set_aside: Vec::new(),
        not_archived: Vec::new(),
        write_seen_on: Vec::new(),
    };
    let first = content.entries.first().map(|entry| entry.at);
    let last = content.entries.last().map(|entry| entry.at);
    report.seconds = first.zip(last).map_or(0.0, |(first, last)| between(first, last));
    let mut held: Option<Timestamp> = None;
    let mut unclean: Vec<String> = Vec::new();
    for entry in content.entries {
        let (stage, step, evidence) = match entry.record {
            Record::StepDone { stage, step, evidence } => (stage, step, evidence),
            Record::StepFound {
                stage,
                step,
                found: crate::engine::record::ProbeFound::Done { evidence },
            } => (stage, step, evidence),
            Record::Header(_)
            | Record::StepStarted { .. }
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
        let Some(planned) = header.stages.get(stage).and_then(|stage| stage.steps.get(step)) else {
            continue;
        };
        let planned: RestoreStep = serde_json::from_value(planned.step.clone()).map_err(unreadable)?;
        let evidence: Evidence = serde_json::from_value(evidence).map_err(unreadable)?;
        match (planned, evidence) {
            (_, Evidence::Held { .. }) => held = Some(entry.at),
            (_, Evidence::Resumed {}) => {
                report.clients_waited_seconds = held.map(|held| between(held, entry.at));
            }
            (_, Evidence::Recovered { achieved, next, beyond }) => {
                report.achieved = Some(*achieved);
                report.given_up_from = next;
                report.given_up = Some(beyond);
            }
            (_, Evidence::Promoted { timeline, .. }) => report.timeline = Some(timeline),
            (RestoreStep::SetAside { node, .. }, Evidence::SetAside { moved }) => {
                let paths: Vec<String> =
                    moved.iter().map(|moved| quoted(&moved.to.display().to_string())).collect();
                let remove = format!("rm -rf -- {}", paths.join(" "));
                report.set_aside.push(Aside { node: input.cluster.full_name(&node), moved, remove });
            }
            (RestoreStep::Stop { node }, Evidence::Stopped { log }) => {
                if !log.is_some_and(|log| log.clean) {
                    unclean.push(node);
                }
            }
            (RestoreStep::Backfill { node }, Evidence::Backfilled { left, why, last, .. }) => {
                let behind = last.filter(|_| unclean.contains(&node));
                if !left.is_empty() || behind.is_some() {
                    let node = input.cluster.full_name(&node);
                    report.not_archived.push(NotArchived { node, files: left, behind, why });
                }
            }
            (_, Evidence::Proved { nodes, .. }) => report.write_seen_on = nodes,
            (_, _) => {}
        }
    }
    Ok(report)
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// Quotes a path for a shell.
fn quoted(path: &str) -> String {
    if path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_blank_is_one_word_of_the_command() {
        assert_eq!(quoted("/srv/a.before-7f3a"), "/srv/a.before-7f3a");
        assert_eq!(quoted("/srv/it's a"), "'/srv/it'\\''s a'");
    }
}
