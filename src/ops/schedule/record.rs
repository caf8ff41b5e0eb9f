//! What is recorded of a job on its station: when it was due, began and ended, and when it last ended well. `docs/formats/job.md`.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::record::Actor;
use crate::error::{Error, Result};
use crate::host::whole;
use crate::topology::jobs::Job;

const FORMAT: u32 = 1;

/// The record of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub format: u32,
    pub herd: String,
    pub job: String,
    /// The schedule, and the zone of its clock times, that its times are counted by.
    pub when: String,
    pub zone: String,
    /// No time before this one counts: the job, or its schedule, was new then.
    pub since: Timestamp,
    pub last: Option<Run>,
    pub last_success: Option<Run>,
    /// Runs in a row, up to now, that did not end well.
    pub failures: u32,
}

/// One run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The time of the schedule that it was for; `None`: somebody wanted it.
    pub due: Option<Timestamp>,
    /// How often it was begun for this time.
    pub attempt: u32,
    pub begun: Timestamp,
    /// `None` while it runs; of one that runs no more, that it was killed.
    pub ended: Option<Timestamp>,
    pub outcome: Option<Ended>,
    /// Its exit code.
    pub exit: Option<u8>,
    pub by: Actor,
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    Done,
    /// Not to be tried again before its next time.
    Failed,
    /// What it needs is used by somebody, or cannot be reached, or it was interrupted: to be tried again.
    Again,
}

impl Record {
    /// Begins the record of a job that is first seen at `now`.
    pub fn new(herd: &str, job: &Job, zone: &str, now: Timestamp) -> Self {
        Self {
            format: FORMAT,
            herd: herd.to_owned(),
            job: job.full_name(),
            when: job.when.to_string(),
            zone: zone.to_owned(),
            since: now,
            last: None,
            last_success: None,
            failures: 0,
        }
    }

    /// Records that a run begins; one that has no end yet was killed.
    pub fn begin(&mut self, due: Option<Timestamp>, now: Timestamp) {
        let before = self.last.as_ref().filter(|last| due.is_some() && last.due == due);
        if self.last.as_ref().is_some_and(|last| last.outcome.is_none()) {
            self.failures += 1;
        }
        let attempt = before.map_or(1, |last| last.attempt.saturating_add(1));
        let by = Actor::here();
        self.last = Some(Run { due, attempt, begun: now, ended: None, outcome: None, exit: None, by });
    }

    /// Records how the run that was begun has ended.
    pub fn end(&mut self, ended: Ended, exit: u8, now: Timestamp) {
        let Some(last) = &mut self.last else { return };
        last.ended = Some(now);
        last.outcome = Some(ended);
        last.exit = Some(exit);
        match ended {
            Ended::Done => {
                self.failures = 0;
                self.last_success = Some(last.clone());
            }
            Ended::Failed | Ended::Again => self.failures += 1,
        }
    }
}

/// Reads a record; `None` if there is none.
///
/// # Errors
/// When it cannot be read, or is of another format: then nobody knows when the job ran last.
pub fn read(path: &Path) -> Result<Option<Record>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::failed(format!("could not read the record {}", path.display())).source(error));
        }
    };
    let unreadable = || Error::failed(format!("could not read the record {}", path.display()));
    let record: Record = serde_json::from_slice(&bytes)
        .map_err(|error| unreadable().hint("Remove it; the job then counts as new.").source(error))?;
    if record.format != FORMAT {
        return Err(unreadable()
            .detail(format!(
                "It is of format {}, this version of pgherd reads format {FORMAT}.",
                record.format
            ))
            .hint("Use the version of pgherd that wrote it, or remove it; the job then counts as new."));
    }
    Ok(Some(record))
}

/// Writes a record, on disk when this returns.
///
/// # Errors
/// As the operating system says.
pub fn write(path: &Path, record: &Record) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(record).expect("a record has only text keys");
    bytes.push(b'\n');
    whole::replace(path, 0o644, &bytes).map_err(|error| {
        Error::failed(format!("could not write the record {}", path.display()))
            .hint("Run pgherd as the user who keeps its state there, or set PGHERD_STATE_DIR.")
            .source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_record_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../../tests/golden/job-v1.json");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inventory.full.json");
        assert!(read(&path).unwrap().is_none());
        std::fs::write(&path, golden).unwrap();
        let record = read(&path).unwrap().unwrap();
        assert_eq!(record.last.as_ref().unwrap().outcome, Some(Ended::Again));
        write(&path, &record).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), golden);
    }

    #[test]
    fn a_record_of_another_format_or_a_damaged_one_is_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inventory.full.json");
        let golden = include_str!("../../../tests/golden/job-v1.json");
        for text in [golden.replace("\"format\": 1", "\"format\": 2"), golden[..40].to_owned()] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.hint_text().unwrap().contains("emove it"), "{error:?}");
        }
    }
}
