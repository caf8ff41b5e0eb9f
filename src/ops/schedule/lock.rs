//! One run of a job at a time: a file that is held by `flock`, so that the kernel frees it when the holder dies. What is written in it
//! only tells others who that is.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};

const POLL: Duration = Duration::from_millis(50);
/// Others look whether a lock is held by holding it for an instant; that is no reason to refuse.
const GLANCE: Duration = Duration::from_millis(200);

/// Who runs a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    pub format: u32,
    pub job: String,
    pub by: Actor,
    pub since: Timestamp,
}

/// The right to run a job, until it is dropped or the process ends.
#[derive(Debug)]
pub struct JobLock(File);

impl Drop for JobLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a program that is being started has it open as well, from fork until exec.
        give_back(&self.0);
    }
}

fn give_back(file: &File) {
    // It can only fail for a file that is not open.
    rustix::fs::flock(file, FlockOperation::Unlock).unwrap_or(());
}

impl JobLock {
    /// Takes the lock of a job; waits up to `wait` for another holder to end.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] with the holder's pid, host and time.
    pub async fn take(path: &Path, job: &str, now: Timestamp, wait: Duration) -> Result<Self> {
        let deadline = Instant::now() + wait.max(GLANCE);
        let could_not = |error: std::io::Error| {
            Error::failed(format!("could not open the lock {}", path.display()))
                .hint("Run pgherd as the user who keeps its state there, or set PGHERD_STATE_DIR.")
                .source(error)
        };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(could_not)?;
        }
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
        let mut file = open.map_err(could_not)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Err(Errno::WOULDBLOCK) => return Err(busy(path, job, wait)),
                Err(error) => return Err(could_not(error.into())),
            }
        }
        let holder = Holder { format: 1, job: job.to_owned(), by: Actor::here(), since: now };
        let text = serde_json::to_vec(&holder).expect("a holder has only text keys");
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&text)).map_err(
            |error| Error::failed(format!("could not write the lock {}", path.display())).source(error),
        )?;
        Ok(Self(file))
    }
}

/// Returns who holds a lock now, if anybody does.
///
/// # Errors
/// When the file cannot be opened.
pub fn holder(path: &Path) -> Result<Option<Holder>> {
    let could_not = |error: std::io::Error| {
        Error::failed(format!("could not open the lock {}", path.display())).source(error)
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(could_not(error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            give_back(&file);
            Ok(None)
        }
        Err(Errno::WOULDBLOCK) => Ok(read(path)),
        Err(error) => Err(could_not(error.into())),
    }
}

fn read(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(path).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    serde_json::from_str(&text).ok()
}

fn busy(path: &Path, job: &str, waited: Duration) -> Error {
    let after = if waited.is_zero() {
        String::new()
    } else {
        format!(" Waited {} for it.", crate::units::human_duration(waited))
    };
    let error = Error::new(ErrorKind::Locked, format!("job {job} runs already"))
        .hint("Wait for it with --wait-lock, or see how it stands: pgherd schedule list");
    error.detail(match read(path) {
        Some(holder) => {
            format!("Begun by {} at {}.{after}", holder.by, holder.since.strftime("%Y-%m-%d %H:%M:%S UTC"))
        }
        None => format!("The lock does not say by whom.{after}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_runs_is_not_run_beside_itself_and_the_refusal_names_who_runs_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop/inventory.full.lock");
        let now: Timestamp = "2026-11-22T01:00:00Z".parse().unwrap();
        let first = JobLock::take(&path, "inventory/full", now, Duration::ZERO).await.unwrap();
        let error = JobLock::take(&path, "inventory/full", now, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        let detail = error.detail_text().unwrap();
        assert!(detail.contains(&format!("(pid {})", std::process::id())), "{detail}");
        assert!(detail.ends_with("at 2026-11-22 01:00:00 UTC."), "{detail}");
        assert_eq!(holder(&path).unwrap().unwrap().job, "inventory/full");
        drop(first);
        assert_eq!(holder(&path).unwrap(), None);
        JobLock::take(&path, "inventory/full", now, Duration::ZERO).await.unwrap();
    }
}
