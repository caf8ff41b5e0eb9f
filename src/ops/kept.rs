//! What the repository keeps of a cluster, as far as it fits on a screen: the newest backup, what is being made, what can be restored.
//!
//! Reads only, in one child where the repository is another user's.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::host::is_own;
use crate::ops::backup::list::{self, BackupItem, BackupState};
use crate::ops::binary::Build;
use crate::ops::node::{ListWal, LookAtKept, NodeDoor, NodeRequest, Priority};
use crate::ops::observe::Doors;
use crate::ops::wal::{self, SystemWal, Window};
use crate::pg::system::SystemIdentifier;
use crate::repo;
use crate::repo::layout::Label;
use crate::topology::model::{Cluster, Repository};
use crate::units::ByteCount;

/// What the repository keeps of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The newest one that can be read.
    pub last: Option<LastBackup>,
    /// Those that are being made.
    pub running: Vec<MadeNow>,
    /// Those whose manifest cannot be read.
    pub unreadable: Vec<Label>,
    /// Which moments can be restored, by system identifier.
    pub windows: Vec<(SystemIdentifier, Vec<Window>)>,
}

/// The newest backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastBackup {
    pub label: Label,
    pub system_identifier: SystemIdentifier,
    pub begun: Timestamp,
    pub ended: Timestamp,
    pub size: ByteCount,
    pub stored: ByteCount,
}

/// A backup that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeNow {
    pub label: Label,
    pub by: String,
    pub since: Timestamp,
    /// A fragment: `copies`.
    pub phase: Option<String>,
    pub done: Option<ByteCount>,
    pub total: Option<ByteCount>,
}

/// Looks at what the repository keeps of a cluster. Installs nothing: a build that is not on the host cannot look there for another user.
///
/// # Errors
/// When the repository is not there or cannot be read, or this build is not installed.
pub async fn look(doors: &Doors, build: &Build, cluster: &Cluster, repository: &Repository) -> Result<Kept> {
    let name = &cluster.preferred().host;
    let request = LookAtKept { repository: doors.location(name, repository), cluster: cluster.name.clone() };
    let host = doors.host(name);
    if is_own(host) {
        // A disk that does not answer must not hold up whoever asks, nor the end of the program.
        let (tell, told) = tokio::sync::oneshot::channel();
        // Nobody waits for it any more when the time that a look may take is over.
        std::thread::spawn(move || drop(tell.send(run(&request))));
        return told
            .await
            .map_err(|error| Error::failed("the look at the repository broke off").source(error))?;
    }
    let door = NodeDoor::if_installed(doors, name, build).await?;
    door.call(&NodeRequest::LookAtKept(request), Priority::Normal, Arc::new(|_| ())).await
}

/// Looks, where the repository is.
///
/// # Errors
/// As [`look`].
pub fn run(request: &LookAtKept) -> Result<Kept> {
    let repo = repo::open(&request.repository)?;
    let backups = repo::wait(Box::pin(list::in_repository(&repo, &request.cluster)))?;
    let windows =
        match wal::run(&ListWal { repository: request.repository.clone(), cluster: request.cluster.clone() })
        {
            Ok(list) => list
                .systems
                .into_iter()
                .map(|SystemWal { system_identifier, windows, .. }| (system_identifier, windows))
                .collect(),
            // There is no WAL of it yet.
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
    Ok(Kept {
        last: backups.iter().rev().find_map(last),
        running: backups.iter().filter_map(made_now).collect(),
        unreadable: backups
            .iter()
            .filter(|item| item.state == BackupState::Unreadable)
            .map(|item| item.label.clone())
            .collect(),
        windows,
    })
}

fn last(item: &BackupItem) -> Option<LastBackup> {
    let facts = item.facts.as_ref()?;
    Some(LastBackup {
        label: item.label.clone(),
        system_identifier: item.system_identifier,
        begun: facts.begun,
        ended: facts.ended,
        size: facts.size_bytes,
        stored: facts.stored_bytes,
    })
}

fn made_now(item: &BackupItem) -> Option<MadeNow> {
    let running = item.running.as_ref()?;
    let progress = running.progress.as_ref();
    Some(MadeNow {
        label: item.label.clone(),
        by: running.by.to_string(),
        since: running.since,
        phase: progress.map(|progress| progress.phase.clone()),
        done: progress.map(|progress| progress.done),
        total: progress.map(|progress| progress.total),
    })
}
