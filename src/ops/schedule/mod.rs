//! What runs by itself: which job is due, who runs it now, and what is recorded of it. Runs none: what a job does is a verb's.

pub mod due;
pub mod lock;
pub mod record;
pub mod shared;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::time::Instant;

pub use due::{Due, Standing};
pub use lock::JobLock;
pub use record::{Ended, Record, Run};
pub use shared::{Purpose, Shared};

use crate::engine::record::Actor;
use crate::engine::turn::{Holder, Known, Turn as SharedTurn};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::topology::jobs::{Job, Work};
use crate::topology::model::Herd;
use crate::topology::problem::nearest;

/// How often a station that waits looks whether another one has ended.
const POLL: Duration = Duration::from_secs(1);
/// No timer that works fires later than this.
const PUNCTUAL: Duration = Duration::from_secs(5 * 60);

/// The jobs of a herd on this station.
#[derive(Debug)]
pub struct Jobs<'a> {
    context: &'a Context,
    herd: &'a Herd,
    zone: TimeZone,
    /// `None` where this station is the only one.
    shared: Option<Shared>,
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
    turn: Option<SharedTurn>,
    file: PathBuf,
    record: Record,
    pub due: Option<Timestamp>,
}

impl Begun {
    /// Ends when another station may have the turn: the job is to be ended then.
    pub async fn lost(&self) {
        match &self.turn {
            Some(turn) => turn.lost().await,
            None => std::future::pending().await,
        }
    }
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
    /// Takes the jobs of a herd, and finds where stations share them; that this cannot be had is told when it is needed.
    ///
    /// # Errors
    /// When this machine does not know the zone of the file any more.
    pub async fn open(context: &'a Context, herd: &'a Herd, purpose: Purpose) -> Result<Self> {
        let zone = zone(&herd.timezone)?;
        let shared = Shared::open(context, herd, purpose).await;
        Ok(Self { context, herd, zone, shared })
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
    pub async fn is_due(&self, job: &Job) -> Result<bool> {
        let known = self.shared_by(job).await?;
        let Some(mut record) = self.known(job, known.as_ref())? else { return Ok(false) };
        let decided = due::decide(&mut record, &job.when, (&self.zone, &self.herd.timezone), self.now());
        let elsewhere = known.as_ref().and_then(Known::holder).is_some();
        Ok(decided != Due::NotYet && !elsewhere && lock::holder(&self.lock_file(job))?.is_none())
    }

    /// Reads what stations share of a job; nothing of the judgement of the herd while that cannot be had, since it is what tells of it.
    async fn shared_by(&self, job: &Job) -> Result<Option<Known<Record>>> {
        let Some(shared) = &self.shared else { return Ok(None) };
        match shared.read(job).await {
            Err(error) if job.work == Work::Health && error.kind() == ErrorKind::NotFound => Ok(None),
            known => known,
        }
    }

    /// Returns what is known of a job: to all stations, or to this one.
    fn known(&self, job: &Job, shared: Option<&Known<Record>>) -> Result<Option<Record>> {
        match shared {
            Some(known) => Ok(Some(known.document.record.clone())),
            None => record::read(&self.file(job)),
        }
    }

    /// Takes a job's turn, if nobody else has it: when it is due, or by hand at any time.
    ///
    /// Records that it has begun, durably.
    ///
    /// # Errors
    /// When the record cannot be read or written, or it cannot be told whether another station runs the job.
    pub async fn take(&self, job: &Job, asked: Asked, wait: Duration) -> Result<Turn> {
        let until = Instant::now() + wait;
        let lock = match JobLock::take(&self.lock_file(job), &job.full_name(), self.now(), wait).await {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::Locked => return Ok(Turn::Busy(error)),
            Err(error) => return Err(error),
        };
        loop {
            let known = self.shared_by(job).await?;
            match known.as_ref().and_then(Known::holder) {
                Some(_) if Instant::now() < until => tokio::time::sleep(POLL).await,
                Some(holder) => return Ok(Turn::Busy(runs_elsewhere(job, holder))),
                None => return self.decide(job, asked, lock, known).await,
            }
        }
    }

    /// Begins a job that nobody runs, if it is its time.
    async fn decide(
        &self,
        job: &Job,
        asked: Asked,
        lock: JobLock,
        known: Option<Known<Record>>,
    ) -> Result<Turn> {
        let file = self.file(job);
        let now = self.now();
        let found = self.known(job, known.as_ref())?;
        let is_new = found.is_none();
        // A timer of its own fires at the first time of a job, and a little later: that time counts already.
        let since = match asked {
            Asked::ByTimer => now - signed(self.herd.scheduler.jitter + PUNCTUAL),
            Asked::ByHand | Asked::Looking => now,
        };
        let mut record =
            found.unwrap_or_else(|| Record::new(&self.herd.name, job, &self.herd.timezone, since));
        let before = record.clone();
        let decided = due::decide(&mut record, &job.when, (&self.zone, &self.herd.timezone), now);
        let shared = self.shared.as_ref().filter(|_| known.is_some() || self.shares(job));
        let due = match decided {
            Due::Now { at } => Some(at),
            Due::NotYet if asked == Asked::ByHand => None,
            Due::NotYet => {
                if is_new || record != before {
                    record::write(&file, &record)?;
                }
                if let Some(shared) = shared.filter(|_| known.is_none() || record != before) {
                    shared.store(job, known.as_ref(), &record).await?;
                }
                return Ok(Turn::NotDue);
            }
        };
        record.begin(due, now);
        let turn = match shared {
            None => None,
            Some(shared) => match shared.take(job, known.as_ref(), &record).await? {
                Some(turn) => Some(turn),
                None => return Ok(Turn::Busy(was_faster(job))),
            },
        };
        record::write(&file, &record)?;
        Ok(Turn::Begun(Box::new(Begun { _lock: lock, turn, file, record, due })))
    }

    /// Begins the records of jobs that are new here: what is due from now on counts, also if the first to look for it comes late.
    ///
    /// # Errors
    /// As [`Jobs::take`].
    pub async fn see(&self) -> Result<()> {
        for job in &self.herd.jobs {
            let Ok(_lock) =
                JobLock::take(&self.lock_file(job), &job.full_name(), self.now(), Duration::ZERO).await
            else {
                // Whoever runs it has begun its record.
                continue;
            };
            let shared = self.shared_by(job).await?;
            if self.known(job, shared.as_ref())?.is_some() {
                continue;
            }
            let record = Record::new(&self.herd.name, job, &self.herd.timezone, self.now());
            record::write(&self.file(job), &record)?;
            if let Some(stations) = self.shared.as_ref().filter(|_| self.shares(job)) {
                stations.store(job, None, &record).await?;
            }
        }
        Ok(())
    }

    /// Tells whether other stations are told of a job now.
    fn shares(&self, job: &Job) -> bool {
        self.shared.as_ref().is_some_and(|shared| job.work != Work::Health || shared.is_reached())
    }

    /// Records how a run has ended.
    ///
    /// # Errors
    /// When that cannot be written; the next look then takes it for killed.
    pub async fn end(&self, mut begun: Begun, ended: Ended, exit: u8) -> Result<()> {
        begun.record.end(ended, exit, self.now());
        record::write(&begun.file, &begun.record)?;
        match begun.turn.take() {
            Some(turn) => turn.end(&begun.record).await,
            None => Ok(()),
        }
    }

    /// Lists the jobs of these clusters and of the whole herd.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub async fn list(&self, cluster: Option<&str>) -> Result<Vec<Listed>> {
        self.list_those(|job| cluster.is_none() || job.cluster.as_deref() == cluster).await
    }

    /// Lists the jobs of a cluster; with the first one of the file those that are of the whole herd, so that somebody judges them.
    ///
    /// # Errors
    /// As [`Jobs::list`].
    pub async fn list_to_judge(&self, cluster: &str) -> Result<Vec<Listed>> {
        let is_first = self.herd.clusters.first().is_some_and(|first| first.name == cluster);
        self.list_those(|job| job.cluster.as_deref().map_or(is_first, |of| of == cluster)).await
    }

    async fn list_those(&self, wanted: impl Fn(&Job) -> bool) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for job in self.herd.jobs.iter().filter(|job| wanted(job)) {
            listed.push(self.listed(job).await?);
        }
        Ok(listed)
    }

    async fn listed(&self, job: &Job) -> Result<Listed> {
        let now = self.now();
        let shared = self.shared_by(job).await?;
        let elsewhere = shared
            .as_ref()
            .and_then(Known::holder)
            .map(|holder| Running { by: holder.by.clone(), since: holder.since });
        let here =
            lock::holder(&self.lock_file(job))?.map(|holder| Running { by: holder.by, since: holder.since });
        let running = elsewhere.or(here);
        let known = self.known(job, shared.as_ref())?;
        let mut record =
            known.clone().unwrap_or_else(|| Record::new(&self.herd.name, job, &self.herd.timezone, now));
        let decided = due::decide(&mut record, &job.when, (&self.zone, &self.herd.timezone), now);
        let next = match decided {
            Due::Now { at } => at,
            Due::NotYet => due::next(&record, &job.when, &self.zone, now),
        };
        let standing = due::standing(known.as_ref(), job, &self.zone, now, running.is_some());
        Ok(Listed {
            job: job.full_name(),
            does: job.work.describe(),
            when: job.when.to_string(),
            timeout_seconds: job.timeout.as_secs(),
            next,
            standing,
            running,
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

fn runs_elsewhere(job: &Job, holder: &Holder) -> Error {
    let since = holder.since.strftime("%Y-%m-%d %H:%M:%S UTC");
    Error::new(ErrorKind::Locked, format!("job {} runs already, on another station", job.full_name()))
        .detail(format!("Begun by {} at {since}.", holder.by))
        .hint("Wait for it with --wait-lock, or see how it stands: pgherd schedule list")
}

fn was_faster(job: &Job) -> Error {
    Error::new(ErrorKind::Locked, format!("job {} began on another station in this moment", job.full_name()))
        .hint("Wait for it with --wait-lock, or see how it stands: pgherd schedule list")
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
