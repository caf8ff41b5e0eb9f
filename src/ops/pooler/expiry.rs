//! What lets the clients of a paused pooler go on by itself: a process beside it, which nobody has to reach.
//!
//! It is started before anything is paused, on the pooler's own host and apart from whoever started it, so that neither the end of pgherd
//! nor of the way to the host keeps clients waiting. Whoever resumes removes its file, and it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::console::Line;
use super::files::PoolerPaths;
use super::{NOT_PAUSED, POLL, Place};
use crate::error::{Error, Result};
use crate::host::local::LocalHost;
use crate::host::{Command, Host, HostError, Stdin};
use crate::ops::node::{ExpirePause, NodeDoor, NodeRequest, Priority};
use crate::ops::observe::Doors;
use crate::topology::model::Cluster;

/// How often it looks whether its file is still its own.
const LOOK: Duration = Duration::from_millis(200);
/// How long it may take until it stands.
const STANDS: Duration = Duration::from_secs(10);
/// How long it goes on trying when a pooler does not answer.
const PATIENCE: Duration = Duration::from_secs(600);
/// The format of the file that says until when clients are held back.
const FORMAT: u32 = 1;

/// Until when clients are held back; `hold.json` in the directory of a host's pooler, described in docs/formats/pooler.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    pub format: u32,
    /// The operation that holds them back.
    pub operation: String,
    /// The process that lets them go on.
    pub pid: u32,
    /// When it does, by the clock of the host.
    pub until: Timestamp,
}

/// The file beside the pooler of a host.
fn file(directory: &Path) -> PathBuf {
    directory.join("hold.json")
}

/// Reads who holds the clients of a host's pooler back; `None` if nobody does.
///
/// # Errors
/// When the host does not tell, or the file is not one of ours.
pub async fn held(place: &Place<'_>) -> Result<Option<Hold>> {
    held_here(place.doors.host(place.host), place.paths.directory()).await
}

/// As [`held`], of the directory of a host's first process.
///
/// # Errors
/// As [`held`].
pub(super) async fn held_here(host: &dyn Host, directory: &Path) -> Result<Option<Hold>> {
    let Some(hold) = read(host, directory).await? else { return Ok(None) };
    // A host that was booted since holds nobody back.
    Ok(host.process_exists(hold.pid).await?.then_some(hold))
}

async fn read(host: &dyn Host, directory: &Path) -> Result<Option<Hold>> {
    let Some(bytes) = host.read(&file(directory)).await? else { return Ok(None) };
    let hold: Hold = serde_json::from_slice(&bytes)
        .map_err(|error| Error::failed(format!("cannot read {}", file(directory).display())).source(error))?;
    if hold.format == FORMAT {
        return Ok(Some(hold));
    }
    Err(Error::failed(format!("{} has format {}, expected {FORMAT}", file(directory).display(), hold.format)))
}

/// Starts the process that lets the clients of a host's pooler go on after `time`, and sees that it stands.
///
/// One that another operation has started ends by itself: its file is replaced.
///
/// # Errors
/// When it does not stand; nothing is paused then.
pub async fn arm(
    doors: &Doors,
    cluster: &Cluster,
    host: &str,
    build: &crate::ops::binary::Build,
    operation: &str,
    time: Duration,
) -> Result<()> {
    let places = Place::all(doors, cluster, host).await?;
    let Some(first) = places.first() else { return Ok(()) };
    let request = ExpirePause {
        operation: operation.to_owned(),
        directories: places.iter().map(|place| place.paths.directory().to_owned()).collect(),
        psql: first.programs.path("psql"),
        port: first.port,
        time,
        detached: false,
    };
    let door = NodeDoor::with(doors, host, build).await?;
    let request = NodeRequest::ExpirePause(Box::new(request));
    door.call::<()>(&request, Priority::Normal, std::sync::Arc::new(|_| ())).await
}

/// Ends the process beside a host's pooler.
///
/// # Errors
/// When its file cannot be removed.
pub async fn disarm(doors: &Doors, cluster: &Cluster, host: &str) -> Result<()> {
    let place = Place::find(doors, cluster, host, 1).await?;
    disarm_here(doors.host(host), place.paths.directory()).await
}

/// As [`disarm`], of the directory of a host's first process.
///
/// # Errors
/// As [`disarm`].
pub(super) async fn disarm_here(host: &dyn Host, directory: &Path) -> Result<()> {
    Ok(host.remove_file(&file(directory)).await?)
}

/// Runs on the host: starts itself once more, apart from whoever waits, or is the one that was started so.
///
/// # Errors
/// When the other process does not stand in time.
pub async fn run(request: &ExpirePause) -> Result<()> {
    let host = LocalHost::own("here");
    let Some(directory) = request.directories.first() else { return Ok(()) };
    if request.detached {
        return wait_and_resume(&host, request, directory).await;
    }
    // One that was left by an earlier run is not taken for the new one.
    host.remove_file(&file(directory)).await?;
    // The other process can tell nobody why it cannot write its own: a full disk shows here, and at once.
    let trial = directory.join("hold.trial");
    host.write_atomic(&trial, &[b' '; 1024], 0o600).await?;
    host.remove_file(&trial).await?;
    let program = std::env::current_exe()
        .map_err(|error| Error::failed("could not find the program of pgherd").source(error))?;
    let apart = NodeRequest::ExpirePause(Box::new(ExpirePause { detached: true, ..request.clone() }));
    let mut input = serde_json::to_vec(&apart).expect("requests are plain data");
    input.push(b'\n');
    // In a session of its own: what ends this one's, or the ssh connection, does not reach it.
    let start = Command::new("setsid")
        .args(["--fork".to_owned(), program.display().to_string(), "node".to_owned()])
        .stdin(Stdin::Bytes(input));
    host.run(&start).await.map_err(|error| Error::from(error).context("start what ends the pause"))?;
    let began = Instant::now();
    loop {
        match read(&host, directory).await? {
            Some(hold) if hold.operation == request.operation && host.process_exists(hold.pid).await? => {
                return Ok(());
            }
            _ if began.elapsed() > STANDS => {
                return Err(Error::failed("what ends the pause by itself does not stand").detail(format!(
                    "There is no {} after {} s.",
                    file(directory).display(),
                    STANDS.as_secs()
                )));
            }
            _ => sleep(POLL).await,
        }
    }
}

async fn wait_and_resume(host: &LocalHost, request: &ExpirePause, directory: &Path) -> Result<()> {
    let ends = Instant::now() + request.time;
    let hold = Hold {
        format: FORMAT,
        operation: request.operation.clone(),
        pid: std::process::id(),
        until: Timestamp::now() + request.time,
    };
    let text = serde_json::to_vec_pretty(&hold).expect("a hold is plain data");
    host.write_atomic(&file(directory), &text, 0o600).await?;
    let is_own = async || matches!(read(host, directory).await, Ok(Some(found)) if found == hold);
    while Instant::now() < ends {
        sleep(LOOK.min(ends.saturating_duration_since(Instant::now()))).await;
        if !is_own().await {
            return Ok(());
        }
    }
    let mut left = request.directories.clone();
    while !left.is_empty() && ends.elapsed() < PATIENCE && is_own().await {
        let mut silent = Vec::new();
        for directory in left {
            if resume(host, request, &directory).await.is_err() {
                silent.push(directory);
            }
        }
        left = silent;
        if !left.is_empty() {
            sleep(Duration::from_secs(1)).await;
        }
    }
    if is_own().await {
        host.remove_file(&file(directory)).await?;
    }
    Ok(())
}

/// Tells one process to let its clients go on; one that does not run has none.
async fn resume(host: &LocalHost, request: &ExpirePause, directory: &Path) -> Result<()> {
    let paths = PoolerPaths::new(directory.to_owned())?;
    let socket = directory.join(format!(".s.PGSQL.{}", request.port));
    if host.stat(&socket).await?.is_none() {
        return Ok(());
    }
    let line = Line { host, psql: request.psql.clone(), paths: &paths, port: request.port };
    match line.tell("RESUME").await {
        Ok(()) => Ok(()),
        Err(HostError::Exited { stderr, .. }) if stderr.contains(NOT_PAUSED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_that_takes_no_file_is_named_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let request = ExpirePause {
            operation: "7f3a".to_owned(),
            directories: vec![directory.path().join("gone")],
            psql: "/bin/false".into(),
            port: 1,
            time: Duration::from_secs(1),
            detached: false,
        };
        let began = Instant::now();
        let error = run(&request).await.unwrap_err();
        assert!(began.elapsed() < STANDS && error.what().contains("hold.trial"), "{error:?}");
    }
}
