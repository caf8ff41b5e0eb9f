//! The process that works ahead for a server, in one of the two directions: started by a call, alone in its spool, ended by itself.
//!
//! Knows nothing of what it does with a file.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};

use super::spool::Spool;
use super::{Archive, read_profile};
use crate::error::{Error, Result};
use crate::host::aside;
use crate::pg::wal_file::WalFile;

/// How many files are worked on side by side: more hide no more of a network's delay, and take memory.
const SIDE_BY_SIDE: usize = 4;
/// How much WAL is held in memory, if segments are large: at least one.
const IN_MEMORY: u64 = 128 << 20;
/// How long a worker lives: what it runs as, and what it knows of the node, is of its beginning.
const LIFE: Duration = Duration::from_secs(600);
/// How long it stays when nothing is asked for.
const IDLE: Duration = Duration::from_secs(5);

pub(super) struct Worker {
    pub(super) archive: Archive,
    pub(super) spool: Spool,
    /// The profile's.
    file: PathBuf,
    began: Instant,
    _alone: fs::File,
}

/// A file that a worker was asked for.
pub(super) enum Done {
    Yes,
    /// It is not there, or somebody else is at it.
    No,
}

/// What is done with the files of one direction.
pub(super) trait Job: Sync {
    /// Returns what is asked for and not done yet, in its order.
    fn asked(&self, worker: &Worker) -> Result<Vec<WalFile>>;
    /// Returns how large a file is.
    fn size(&self, worker: &Worker, file: WalFile) -> u64;
    fn one(&self, worker: &Worker, file: WalFile) -> Result<Done>;
}

/// Starts the worker of a spool unless it has one. What keeps it from starting is left to the calls that follow: they do the work themselves.
pub(super) fn start(spool: &Spool, verb: &str, profile: &Path, more: &[OsString]) {
    if spool.alone().is_none() {
        return;
    }
    let Ok(data) = std::env::current_dir() else { return };
    let mut words = vec!["--data-directory".into(), data.into()];
    words.extend_from_slice(more);
    start_aside(verb, profile, &words);
}

/// Starts a worker of a node.
pub(super) fn start_aside(verb: &str, profile: &Path, more: &[OsString]) {
    let (Ok(program), Ok(profile)) = (std::env::current_exe(), std::path::absolute(profile)) else { return };
    let mut words: Vec<OsString> = vec!["wal".into(), verb.into(), "--profile".into(), profile.into()];
    words.extend_from_slice(more);
    if let Err(error) = aside::start(&program, &words) {
        tracing::debug!(%error, verb, "it is left to the next call");
    }
}

/// Tells whether a server runs in a data directory.
pub(super) fn runs(data: &Path) -> bool {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else { return false };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid).is_ok())
}

impl Worker {
    /// Begins to work in a direction; `None` where there is no spool, or somebody else works in it.
    ///
    /// # Errors
    /// When the profile or the repository cannot be used.
    pub(super) fn begin(profile: &Path, data: &Path, direction: &str) -> Result<Option<Self>> {
        let node = read_profile(profile)?;
        let Some(spool) = Spool::there(&node, direction) else { return Ok(None) };
        let Some(alone) = spool.alone() else { return Ok(None) };
        let archive = Archive::of(node, data.to_owned())?;
        Ok(Some(Self { archive, spool, file: profile.to_owned(), began: Instant::now(), _alone: alone }))
    }

    /// Does what it is asked for until that is nothing for a while, or something fails; `look` is the pause between two looks.
    ///
    /// # Errors
    /// The one that ended it.
    pub(super) fn work(&self, look: Duration, job: &impl Job) -> Result<()> {
        let mut busy = Instant::now();
        while self.goes_on() && busy.elapsed() < IDLE {
            if self.side_by_side(&job.asked(self)?, job)? {
                busy = Instant::now();
            } else {
                thread::sleep(look);
            }
        }
        Ok(())
    }

    /// Tells whether the server runs that this worker was started for, by the profile that it has read.
    fn goes_on(&self) -> bool {
        self.began.elapsed() < LIFE
            && runs(&self.archive.data)
            && read_profile(&self.file).is_ok_and(|now| now == self.archive.profile)
    }

    /// Does all of `files`, histories one by one before everything else; tells whether there was anything to do.
    fn side_by_side(&self, files: &[WalFile], job: &impl Job) -> Result<bool> {
        let histories = files.iter().take_while(|file| matches!(file, WalFile::TimelineHistory(_))).count();
        let (histories, rest) = files.split_at(histories);
        for history in histories {
            if matches!(job.one(self, *history)?, Done::No) {
                return Ok(false);
            }
        }
        let next = AtomicUsize::new(0);
        let outcome: Mutex<(bool, Option<Error>)> = Mutex::new((!histories.is_empty(), None));
        let take = || {
            while let Some(file) = rest.get(next.fetch_add(1, Ordering::Relaxed)) {
                let ended = if self.goes_on() { job.one(self, *file) } else { Ok(Done::No) };
                let (any, failed) = &mut *outcome.lock().expect("nobody panics with it");
                match ended {
                    Ok(Done::Yes) => *any = true,
                    Ok(Done::No) => {}
                    Err(error) => {
                        failed.get_or_insert(error);
                        next.store(rest.len(), Ordering::Relaxed);
                    }
                }
            }
        };
        thread::scope(|scope| {
            let size = rest.first().map_or(1, |file| job.size(self, *file)).max(1);
            let fit = usize::try_from(IN_MEMORY / size).unwrap_or(usize::MAX);
            for _ in 1..fit.clamp(1, SIDE_BY_SIDE).min(rest.len()) {
                scope.spawn(take);
            }
            take();
        });
        let (any, failed) = outcome.into_inner().expect("nobody panics with it");
        failed.map_or(Ok(any), Err)
    }

    /// Returns where the server has a file, or would.
    pub(super) fn path(&self, file: WalFile) -> PathBuf {
        self.archive.data.join("pg_wal").join(file.to_string())
    }
}
