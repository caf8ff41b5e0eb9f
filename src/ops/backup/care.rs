//! The controller's side of what becomes of finished backups: expired, pinned, verified. No server is asked; a node's host only leads to
//! the repository.

use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::expire::Expired;
use super::pin::{self, Before};
use super::transfer::Transferred;
use super::verify::Verified;
use crate::engine::interrupt::Interrupt;
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::gate::Gate;
use crate::ops::node::{
    self, Agreed, CopyBackups, ExpireBackups, ExportsKept, NodeDoor, NodeRequest, Priority, Progress,
    VerifyBackups, VerifyDepth,
};
use crate::ops::observe::Doors;
use crate::pg::system::SystemIdentifier;
use crate::repo::layout::{ClusterKeys, Label};
use crate::topology::model::{Backups, Cluster, Repository};
use crate::topology::places::Places;

/// Where progress goes.
pub type Hear = Arc<dyn Fn(Progress) + Send + Sync>;

/// The way to the repository of a cluster.
#[derive(Debug)]
pub struct Way<'a> {
    cluster: &'a Cluster,
    backups: &'a Backups,
    door: NodeDoor,
}

/// What a verification is asked for.
#[derive(Debug, Clone)]
pub struct VerifyWish {
    /// Empty: all of them, and everything else.
    pub labels: Vec<Label>,
    pub depth: VerifyDepth,
    pub seed: u64,
    /// 0: as many as there are cores.
    pub workers: u32,
    pub priority: Priority,
}

/// What a copy is asked for.
#[derive(Debug, Clone, Copy)]
pub struct CopyWish<'a> {
    pub to: &'a Repository,
    /// Empty: all that are not there.
    pub labels: &'a [Label],
    /// 0: as many as there are cores.
    pub workers: u32,
    pub priority: Priority,
}

impl<'a> Way<'a> {
    /// Opens the door of the first host that lets us, the preferred primary's before the others.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] without declared backups; when no host lets us, why the first one does not.
    pub async fn open(places: &Places, gate: &Arc<dyn Gate>, cluster: &'a Cluster) -> Result<Self> {
        let backups = cluster.backups.as_ref().ok_or_else(|| {
            Error::refused(format!("cluster {} declares no backups", cluster.name))
                .hint("Declare them in the topology: backups: {repository: NAME}.")
        })?;
        let doors = Doors::open(cluster, places.clone(), gate)?;
        let mut hosts = vec![&cluster.preferred().host];
        for node in &cluster.nodes {
            if !hosts.contains(&&node.host) {
                hosts.push(&node.host);
            }
        }
        let mut first = None;
        for host in hosts {
            match NodeDoor::open(&doors, host).await {
                Ok(door) => return Ok(Self { cluster, backups, door }),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.expect("a cluster has a node"))
    }

    /// Shows what expires, or with `agreed` removes that.
    ///
    /// # Errors
    /// As [`super::expire::run`]; [`ErrorKind::Interrupted`] on request.
    pub async fn expire(&self, agreed: Option<Agreed>, hear: Hear, interrupt: &Interrupt) -> Result<Expired> {
        let request = NodeRequest::ExpireBackups(ExpireBackups {
            repository: self.door.location(&self.backups.repository),
            cluster: self.cluster.name.clone(),
            window: self.backups.window,
            keep_full: self.backups.keep_full,
            minimum_full: self.backups.minimum_full,
            exports: exports_kept(self.cluster),
            agreed,
        });
        let detail = "What was removed by then is removed whole. The next run goes on.";
        self.call(&request, Priority::Normal, hear, interrupt, detail).await
    }

    /// Copies what this repository holds into another one of the cluster.
    ///
    /// # Errors
    /// As [`super::transfer::run`]; [`ErrorKind::Interrupted`] on request.
    pub async fn copy(&self, wish: &CopyWish<'_>, hear: Hear, interrupt: &Interrupt) -> Result<Transferred> {
        let request = NodeRequest::CopyBackups(CopyBackups {
            from: self.door.location(&self.backups.repository),
            to: self.door.location(wish.to),
            cluster: self.cluster.name.clone(),
            labels: wish.labels.to_vec(),
            workers: wish.workers,
        });
        let detail = "What was copied by then is taken over by the next copy.";
        self.call(&request, wish.priority, hear, interrupt, detail).await
    }

    /// Verifies.
    ///
    /// # Errors
    /// As [`super::verify::run`]; [`ErrorKind::Interrupted`] on request.
    pub async fn verify(&self, wish: &VerifyWish, hear: Hear, interrupt: &Interrupt) -> Result<Verified> {
        let request = NodeRequest::VerifyBackups(VerifyBackups {
            repository: self.door.location(&self.backups.repository),
            cluster: self.cluster.name.clone(),
            labels: wish.labels.clone(),
            depth: wish.depth,
            seed: wish.seed,
            workers: wish.workers,
        });
        self.call(&request, wish.priority, hear, interrupt, "Nothing is known of what was not read yet.")
            .await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: &NodeRequest,
        priority: Priority,
        hear: Hear,
        interrupt: &Interrupt,
        detail: &str,
    ) -> Result<T> {
        tokio::select! {
            biased;
            () = interrupt.asked(1) => Err(Error::new(ErrorKind::Interrupted, "interrupted").detail(detail)),
            ended = self.door.call(request, priority, hear) => ended,
        }
    }

    /// Returns the backups that are being made: each with who makes it, on which machine.
    ///
    /// # Errors
    /// As the repository fails.
    pub async fn being_made(&self, system: SystemIdentifier) -> Result<Vec<(Label, Actor)>> {
        let repo = node::repository(&self.door, &self.backups.repository).await?;
        let keys = ClusterKeys::new(&self.cluster.name).system(system);
        let made = super::list::being_made(&repo, &keys).await?;
        Ok(made.into_iter().map(|((_, label), running)| (label, running.by)).collect())
    }

    /// Tells whether the cluster has a backup of this label.
    ///
    /// # Errors
    /// As the repository fails.
    pub async fn has(&self, label: &Label) -> Result<bool> {
        let repo = node::repository(&self.door, &self.backups.repository).await?;
        Ok(pin::find(&*repo, &self.cluster.name, label).await?.is_some())
    }

    /// Pins a backup.
    ///
    /// # Errors
    /// As [`pin::pin`].
    pub async fn pin(&self, label: &Label, until: Option<Timestamp>, reason: &str) -> Result<Before> {
        let repo = node::repository(&self.door, &self.backups.repository).await?;
        pin::pin(&repo, &self.cluster.name, label, until, reason).await
    }

    /// Removes the pin of a backup.
    ///
    /// # Errors
    /// As [`pin::unpin`].
    pub async fn unpin(&self, label: &Label) -> Result<Before> {
        let repo = node::repository(&self.door, &self.backups.repository).await?;
        pin::unpin(&*repo, &self.cluster.name, label).await
    }

    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    pub fn backups(&self) -> &Backups {
        self.backups
    }
}

/// Returns the rules of the tables whose exports are not kept for ever.
fn exports_kept(cluster: &Cluster) -> Vec<ExportsKept> {
    let kept = cluster.partitions.iter().filter_map(|set| {
        Some(ExportsKept {
            database: set.database.clone(),
            table: set.table.clone(),
            keep: set.keep_exports?,
            timezone: set.timezone.clone(),
        })
    });
    kept.collect()
}
