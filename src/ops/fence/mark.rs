//! What keeps a node from being a primary: its mark, and a server that is seen not to run.
//!
//! Everything here may be done twice. Knows no journal; the operations that fence by it have one.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::observe::{self, Fence};
use crate::ops::provision::{self, Site};
use crate::pg::control_file::ClusterState;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::claim::{self, FenceMark};
use crate::units::human_duration;

/// What says that a node must not come up as a primary: `fenced.json`.
pub type Mark = FenceMark;

/// How long an immediate shutdown may take before its processes are killed.
const IMMEDIATE: Duration = Duration::from_secs(1);

/// What may be done to end a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Force {
    /// A fast shutdown and nothing else.
    Fast,
    /// An immediate one, and SIGKILL, for what a fast shutdown does not end in time.
    ThenKill,
}

/// How a server that does not run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It did not run.
    Before,
    /// By a fast shutdown.
    Fast,
    /// By force; its last WAL may not have been sent.
    Killed,
}

/// Evidence that a node is no primary and does not become one: it is marked, and none of its processes runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutOut {
    pub ended: Ended,
    /// Whether it starts as a standby whoever starts it; else only pgherd and the units that it writes heed the mark.
    pub sealed: bool,
    /// What its pg_control says then; `None` if it cannot be read.
    pub control: Option<LastControl>,
}

/// What the pg_control of a server that does not run says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastControl {
    pub state: ClusterState,
    /// Of its last checkpoint.
    pub timeline: TimelineId,
    /// Where that begins; of a server that was shut down it is its last record.
    pub checkpoint: Lsn,
}

impl ShutOut {
    /// Tells whether it was a primary that ended with everything written and sent.
    pub fn is_clean(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.state == ClusterState::ShutDown)
    }
}

/// Returns the mark of a node for the operation that works on it, made by whoever runs it.
pub fn new_mark(site: &Site<'_>, why: &str) -> Mark {
    let by = Actor::here();
    Mark {
        format: claim::FORMAT,
        operation: site.operation.to_owned(),
        by: format!("{} on {}", by.user, by.host),
        since: Timestamp::now(),
        why: why.to_owned(),
    }
}

/// Reads the mark of a node; `None` if it is not fenced.
///
/// # Errors
/// [`ErrorKind::NotFound`] when that cannot be told.
pub async fn read(site: &Site<'_>) -> Result<Option<Mark>> {
    match observe::observe_fence(site.host(), &site.places()).await {
        Fence::Open => Ok(None),
        Fence::Fenced(mark) => Ok(Some(mark)),
        Fence::Unknown { why } => {
            Err(Error::new(ErrorKind::NotFound, format!("cannot tell whether {} is fenced", site.name()))
                .detail(format!("{why}.")))
        }
    }
}

/// Marks a node; one that is fenced already keeps the mark that it has.
///
/// # Errors
/// When the host cannot, or what is there cannot be read.
pub async fn mark(site: &Site<'_>, mark: &Mark) -> Result<()> {
    if read(site).await?.is_some() {
        return Ok(());
    }
    provision::write(site, &site.places().fence, &claim::write(mark), 0o640).await
}

/// Removes the mark of a node, whoever made it; returns whether there was one.
///
/// # Errors
/// When the host cannot.
pub async fn lift(site: &Site<'_>) -> Result<bool> {
    let file = site.places().fence;
    let could_not = |error| Error::failed(format!("could not unfence {}", site.name())).source(error);
    let there = site.host().stat(&file).await.map_err(could_not)?.is_some();
    site.host().remove_file(&file).await.map_err(could_not)?;
    Ok(there)
}

/// Removes the mark of a node if this operation made it.
///
/// # Errors
/// As [`lift`] and [`read`].
pub async fn take_back(site: &Site<'_>) -> Result<()> {
    if read(site).await?.is_some_and(|mark| mark.operation == site.operation) {
        lift(site).await?;
    }
    Ok(())
}

/// Takes back what [`shut_out`] did to a node whose mark this operation made: it starts again as what it was.
///
/// # Errors
/// As [`lift`] and [`read`]; when it cannot be told what it was.
pub async fn let_in(site: &Site<'_>) -> Result<()> {
    if read(site).await?.is_some_and(|mark| mark.operation == site.operation) {
        unseal(site).await?;
        lift(site).await?;
    }
    Ok(())
}

/// Marks a node, ends its server and sees that none of its processes runs; then has whatever starts it start a standby.
///
/// A fast shutdown gets `limit`; what it does not end is killed with [`Force::ThenKill`], else goes on ending.
///
/// # Errors
/// When the host cannot be asked, or a process is left: then it is not known to be shut out, and stays marked.
pub async fn shut_out(site: &Site<'_>, why: &str, force: Force, limit: Duration) -> Result<ShutOut> {
    mark(site, &new_mark(site, why)).await?;
    let ran = runs(site).await?;
    // Also where nothing runs: a unit may be about to start it again.
    let stopped = provision::stop_within(site, limit).await;
    let ended = match (stopped, force) {
        (Ok(()), _) if !ran => Ended::Before,
        (Ok(()), _) => Ended::Fast,
        (Err(error), Force::Fast) => {
            return Err(Error::failed(format!("{} did not end within {}", site.name(), human_duration(limit)))
                .detail("A shutdown that has begun cannot be called back: it goes on ending. Whether it has ended is not known.")
                .hint("What does not end can be ended as a power cut would: --immediate")
                .source(error));
        }
        (Err(error), Force::ThenKill) => {
            tracing::info!(%error, "a fast shutdown did not end it");
            Ended::Killed
        }
    };
    // Children outlive a postmaster that was killed, and may still write.
    provision::kill(site, IMMEDIATE).await?;
    // A disk that takes no file is no reason to let it go: the mark is there.
    let sealed = match seal(site).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the node would still start as a primary if its mark was not asked");
            false
        }
    };
    Ok(ShutOut { ended, sealed, control: last_control(site).await })
}

/// Looks whether a node is shut out, as [`shut_out`] leaves it.
///
/// # Errors
/// When the host cannot be asked.
pub async fn look(site: &Site<'_>) -> Result<Option<ShutOut>> {
    if read(site).await?.is_none() || runs(site).await? {
        return Ok(None);
    }
    let sealed = is_sealed(site).await?;
    Ok(Some(ShutOut { ended: Ended::Before, sealed, control: last_control(site).await }))
}

/// Tells whether any process of its server is there.
async fn runs(site: &Site<'_>) -> Result<bool> {
    let directory = &site.node.data_directory;
    Ok(observe::postmaster(site.host(), directory).await?.is_some()
        || !observe::processes(site.host(), directory).await?.is_empty())
}

async fn last_control(site: &Site<'_>) -> Option<LastControl> {
    let control = provision::control_file(site).await.ok()?;
    Some(LastControl {
        state: control.state,
        timeline: control.checkpoint_timeline,
        checkpoint: control.checkpoint,
    })
}

/// Has the node start as a standby, whoever starts it: Debian's wrapper and a unit of somebody else's ask no guard.
async fn seal(site: &Site<'_>) -> Result<()> {
    if is_sealed(site).await? {
        return Ok(());
    }
    provision::write(site, &site.node.data_directory.join("standby.signal"), b"", 0o600).await
}

/// Tells whether the node would start as a standby, or has nothing that could be started.
async fn is_sealed(site: &Site<'_>) -> Result<bool> {
    let there = async |name: &str| {
        let found = site.host().stat(&site.node.data_directory.join(name)).await;
        found.map(|stat| stat.is_some()).map_err(|error| {
            Error::new(ErrorKind::NotFound, format!("cannot tell how {} would start", site.name()))
                .source(error)
        })
    };
    Ok(there("standby.signal").await? || !there("PG_VERSION").await?)
}

/// Has a node that ended as a primary start as one again; one that has been a standby since stays one.
///
/// # Errors
/// When its pg_control cannot be read, it runs, or the host cannot.
pub(super) async fn unseal(site: &Site<'_>) -> Result<()> {
    if runs(site).await? {
        return Ok(());
    }
    match provision::control_file(site).await?.state {
        ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery => Ok(()),
        ClusterState::StartingUp
        | ClusterState::ShutDown
        | ClusterState::ShuttingDown
        | ClusterState::InCrashRecovery
        | ClusterState::InProduction => {
            let signal = site.node.data_directory.join("standby.signal");
            site.host().remove_file(&signal).await.map_err(|error| {
                Error::failed(format!("could not remove {}", signal.display())).source(error)
            })
        }
        ClusterState::Other(state) => Err(Error::refused(format!(
            "cannot tell whether {} was a primary: its pg_control says {state:?}",
            site.name()
        ))),
    }
}

/// Puts a mark and its seal back.
///
/// # Errors
/// When the host cannot.
pub(super) async fn put_back(site: &Site<'_>, before: &Mark) -> Result<()> {
    mark(site, before).await?;
    seal(site).await
}
