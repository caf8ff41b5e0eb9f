//! What runs by itself: which job is due, who runs it now, and what is recorded of it. Runs none: what a job does is a verb's.

pub mod due;
pub mod lock;
pub mod record;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

pub use due::{Due, Standing};
pub use lock::JobLock;
pub use record::{Ended, Record, Run};

use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::topology::jobs::Job;
use crate::topology::model::Herd;
use crate::topology::problem::nearest;

/// No timer that works fires later than this.
const PUNCTUAL: Duration = Duration::from_secs(5 * 60);

/// The jobs of a herd on this station.
#[derive(Debug)]
pub struct Jobs<'a> {
    context: &'a Context,
    herd: &'a Herd,
    zone: TimeZone,
}

/// A job as a listing shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    pub job: String,
    pub does: &'static str,
    pub when: String,
    pub timeout_seconds: u64,
    /// When it is due next; in the past if it is due now.
    pub next: Timestamp,
    pub standing: Standing,
    /// Who runs it in this moment, and since when.
    pub running: Option<Running>,
    pub last: Option<Run>,
    pub last_success: Option<Run>,
    /// Runs in a row that did not end as they should.
    pub failures: u32,
}

/// Who runs a job.
#[derive(Debug, Clone, Serialize)]
pub struct Running {
    pub by: Actor,
    pub since: Timestamp,
}

/// Who wants a job to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Somebody, at any time.
    ByHand,
    /// Who looks often what is due.
    Looking,
    /// A timer of its own, which nobody has looked before.
    ByTimer,
}

/// What a run of a job has got: nobody else runs it until this is dropped.
#[derive(Debug)]
pub struct Begun {
    _lock: JobLock,
    file: PathBuf,
    record: Record,
    pub due: Option<Timestamp>,
}

/// What came of the wish to run a job.
#[derive(Debug)]
pub enum Turn {
    Begun(Box<Begun>),
    NotDue,
    /// Somebody runs it.
    Busy(Error),
}

impl<'a> Jobs<'a> {
    /// Takes the jobs of a herd.
    ///
    /// # Errors
    /// When this machine does not know the zone of the file any more.
    pub fn of(context: &'a Context, herd: &'a Herd) -> Result<Self> {
        let zone = zone(&herd.timezone)?;
        Ok(Self { context, herd, zone })
    }

    fn now(&self) -> Timestamp {
        self.context.store.clock().now()
    }

    /// Finds a job by its name: `inventory/full`, or `full` with the name of its cluster, or where only one cluster has it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the nearest name, [`ErrorKind::Usage`] if several clusters have it.
    pub fn find(&self, name: &str, cluster: Option<&str>) -> Result<&'a Job> {
        let of_cluster = |job: &&Job| cluster.is_none() || job.cluster.as_deref() == cluster;
        let jobs: Vec<&Job> = self.herd.jobs.iter().filter(of_cluster).collect();
        if let Some(job) = jobs.iter().find(|job| job.full_name() == name) {
            return Ok(job);
        }
        let short: Vec<&Job> = jobs.iter().copied().filter(|job| job.name == name).collect();
        match short.as_slice() {
            [one] => Ok(one),
            [] => {
                let names: Vec<String> = self.herd.jobs.iter().map(Job::full_name).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let error = Error::new(
                    ErrorKind::NotFound,
                    format!("there is no job {name:?} in {}", self.herd.name),
                );
                Err(match nearest(name, &names) {
                    Some(near) => {
                        error.hint(format!("Did you mean {near}? See them all: pgherd schedule list"))
                    }
                    None if names.is_empty() => error
                        .detail("The topology gives nothing a schedule.")
                        .hint("Give something one, such as backups: {full: daily 02:00}."),
                    None => error.hint("See them all: pgherd schedule list"),
                })
            }
            several => {
                let names: Vec<String> = several.iter().map(|job| job.full_name()).collect();
                Err(Error::usage(format!("several clusters have a job {name}"))
                    .hint(format!("Name one: {}.", names.join(", "))))
            }
        }
    }

    /// Tells whether a job is due and nobody runs it. Changes nothing.
    ///
    /// # Errors
    /// As [`Jobs::list`].
    pub fn is_due(&self, job: &Job) -> Result<bool> {
        let Some(mut record) = record::read(&self.file(job))? else { return Ok(false) };
        let decided = due::decide(&mut record, &job.when, (&self.zone, &self.herd.timezone), self.now());
        Ok(decided != Due::NotYet && lock::holder(&self.lock_file(job))?.is_none())
    }

    /// Takes a job's turn, if nobody else has it: when it is due, or by hand at any time.
    ///
    /// Records that it has begun, durably.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub async fn take(&self, job: &Job, asked: Asked, wait: Duration) -> Result<Turn> {
        let file = self.file(job);
        let now = self.now();
        let lock = match JobLock::take(&self.lock_file(job), &job.full_name(), now, wait).await {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::Locked => return Ok(Turn::Busy(error)),
            Err(error) => return Err(error),
        };
        let now = self.now();
        let known = record::read(&file)?;
        let is_new = known.is_none();
        // A timer of its own fires at the first time of a job, and a little later: that time counts already.
        let since = match asked {
            Asked::ByTimer => now - signed(self.herd.scheduler.jitter + PUNCTUAL),
            Asked::ByHand | Asked::Looking => now,
        };
        let mut record =
            known.unwrap_or_else(|| Record::new(&self.herd.name, job, &self.herd.timezone, since));
        let before = record.clone();
        let decided = due::decide(&mut record, &job.when, (&self.zone, &self.herd.timezone), now);
        let due = match decided {
            Due::Now { at } => Some(at),
            Due::NotYet if asked == Asked::ByHand => None,
            Due::NotYet => {
                if is_new || record != before {
                    record::write(&file, &record)?;
                }
                return Ok(Turn::NotDue);
            }
        };
        record.begin(due, now);
        record::write(&file, &record)?;
        Ok(Turn::Begun(Box::new(Begun { _lock: lock, file, record, due })))
    }

    /// Records how a run has ended.
    ///
    /// # Errors
    /// When that cannot be written; the next look then takes it for killed.
    pub fn end(&self, mut begun: Begun, ended: Ended, exit: u8) -> Result<()> {
        begun.record.end(ended, exit, self.now());
        record::write(&begun.file, &begun.record)
    }

    /// Lists the jobs of these clusters and of the whole herd.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn list(&self, cluster: Option<&str>) -> Result<Vec<Listed>> {
        let wanted = |job: &&Job| cluster.is_none() || job.cluster.as_deref() == cluster;
        self.herd.jobs.iter().filter(wanted).map(|job| self.listed(job)).collect()
    }

    fn listed(&self, job: &Job) -> Result<Listed> {
        let now = self.now();
        let holder = lock::holder(&self.lock_file(job))?;
        let known = record::read(&self.file(job))?;
        let mut record =
            known.clone().unwrap_or_else(|| Record::new(&self.herd.name, job, &self.herd.timezone, now));
        let decided = due::decide(&mut record, &job.when, (&self.zone, &self.herd.timezone), now);
        let next = match decided {
            Due::Now { at } => at,
            Due::NotYet => due::next(&record, &job.when, &self.zone, now),
        };
        let standing = due::standing(known.as_ref(), job, &self.zone, now, holder.is_some());
        Ok(Listed {
            job: job.full_name(),
            does: job.work.describe(),
            when: job.when.to_string(),
            timeout_seconds: job.timeout.as_secs(),
            next,
            standing,
            running: holder.map(|holder| Running { by: holder.by, since: holder.since }),
            failures: record.failures,
            last: record.last,
            last_success: record.last_success,
        })
    }

    fn directory(&self) -> PathBuf {
        directory(self.context.places.state(), &self.herd.name)
    }

    fn file(&self, job: &Job) -> PathBuf {
        self.directory().join(format!("{}.json", job.file_name()))
    }

    fn lock_file(&self, job: &Job) -> PathBuf {
        self.directory().join(format!("{}.lock", job.file_name()))
    }
}

/// Returns where the records of a herd's jobs are.
pub fn directory(state: &Path, herd: &str) -> PathBuf {
    state.join("schedule").join(herd)
}

/// Finds a zone by its IANA name.
///
/// # Errors
/// When this machine does not know it.
pub fn zone(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|error| {
        Error::failed(format!("could not find the time zone {name}"))
            .hint("Install the package tzdata.")
            .source(error)
    })
}

/// Draws how long a job waits beyond its time.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn draw(jitter: Duration) -> Result<Duration> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    let millis = u64::try_from(jitter.as_millis()).unwrap_or(u64::MAX);
    Ok(Duration::from_millis(u64::from_le_bytes(bytes) % (millis.saturating_add(1))))
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}
