//! Takes the lock of a cluster: on this machine, and in the cluster's repository, where other machines see it.
//!
//! A cluster without a repository, or whose repository is not made yet, has the local lock alone.

use std::time::Duration;

use crate::engine::copies::Shelf;
use crate::engine::lock::Lock;
use crate::engine::operation::Operation;
use crate::engine::record::OperationId;
use crate::engine::shared_lock::{self, Claim, SharedLock};
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::gate;
use crate::ops::binary::Build;
use crate::ops::copies::{self, Whose, not_proven};
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::Doors;
use crate::repo::SharedRepo;
use crate::topology::model::{Cluster, Repository};
use crate::topology::places::Places;

/// What taking a lock needs.
#[derive(Debug, Clone, Copy)]
pub struct Locker<'a> {
    pub store: &'a Store,
    pub places: &'a Places,
    pub build: &'a Build,
    /// Its nodes' hosts lead to the repository.
    pub cluster: &'a Cluster,
    pub repository: Option<&'a Repository>,
    /// Whether a repository that does not answer holds it up. A failover is not kept waiting.
    pub without_answer: WithoutAnswer,
}

/// What becomes of a lock whose repository does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutAnswer {
    Fail,
    /// The local lock alone, with a warning; one that somebody else is seen to hold is an error all the same.
    GoOn,
}

/// How long a repository may take to answer before it is gone on without it.
const ANSWER: Duration = Duration::from_secs(3);

impl Locker<'_> {
    /// Takes both locks for a new operation; waits up to `wait` for each.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Locked`] with the holder; otherwise as the repository fails.
    pub async fn take(&self, wait: Duration) -> Result<Lock> {
        let lock = Lock::take(self.store, &self.cluster.name, wait).await?;
        let lock = lock.with_copies(self.shelves());
        let lock = match self.share(Claim::New, wait).await? {
            Some(shared) => lock.with_shared(shared),
            None => lock,
        };
        // A cluster without a repository has nothing else that would tell of another station's operation.
        let everywhere = copies::shelves(self.cluster, self.places, Whose::Anybodys);
        let known = |id: &OperationId| self.store.path(id).exists();
        let alone = copies::refuse_beside_unfinished(&everywhere, &self.cluster.name, &known).await;
        Ok(lock.keep_for(alone).await?.0)
    }

    /// Takes both locks to go on with an operation that another station began; `forced`: the operator says that it is gone.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Refused`] if nothing shows that and nobody says so; otherwise as [`Locker::take`].
    pub async fn take_over(&self, id: &OperationId, forced: bool) -> Result<Lock> {
        let lock = Lock::take(self.store, &self.cluster.name, Duration::ZERO).await?;
        let lock = lock.with_copies(self.shelves());
        let Some(repo) = self.repository().await? else {
            let why = format!("The cluster {} has no repository that would hold a lock.", self.cluster.name);
            return if forced { Ok(lock) } else { Err(not_proven(id, &why)) };
        };
        if !forced && shared_lock::holder(&repo, &self.cluster.name).await?.is_none() {
            return Err(not_proven(id, &format!("There is no lock of it in the repository {}.", repo.url())));
        }
        let claim = if forced { Claim::TakeOver(id) } else { Claim::Operation(id) };
        let shared = self.take_from(repo, claim, Duration::ZERO).await?;
        Ok(lock.with_shared(shared))
    }

    /// Says who is changing the cluster from another station, if somebody is. A repository that does not answer says nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] with the holder.
    pub async fn refuse_held_elsewhere(&self) -> Result<()> {
        let ended = |id: &OperationId| self.has_ended(id);
        let look = async {
            match self.repository().await? {
                Some(repo) => shared_lock::refuse_held(&repo, &self.cluster.name, &ended).await,
                None => Ok(()),
            }
        };
        match tokio::time::timeout(ANSWER, look).await {
            Ok(Err(error)) if error.kind() == ErrorKind::Locked => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn has_ended(&self, id: &OperationId) -> bool {
        self.store.read(id).is_ok_and(|content| content.view.is_finished())
    }

    fn shelves(&self) -> Vec<Shelf> {
        copies::shelves(self.cluster, self.places, Whose::Ours)
    }

    /// Takes the lock in the repository for an operation that was opened, beside the local one that it holds, and has its journal copied.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Locked`] if a copy shows that another station took the operation over; otherwise as [`Locker::take`].
    pub async fn join<S>(&self, operation: &mut Operation<S>) -> Result<()> {
        let id = operation.id();
        if operation.is_copied() {
            return Ok(());
        }
        let claim = if operation.is_taken_over() { Claim::TakeOver(&id) } else { Claim::Operation(&id) };
        if !operation.is_shared()
            && let Some(shared) = self.share(claim, Duration::ZERO).await?
        {
            operation.share(shared);
        }
        let everywhere = copies::shelves(self.cluster, self.places, Whose::Anybodys);
        if let Some(lost) = copies::lost_to_another(&everywhere, &id, &operation.lines()?).await {
            operation.let_go(lost.unfinished).await;
            return Err(lost.error);
        }
        operation.copy_to(self.shelves());
        Ok(())
    }

    /// Takes the name of an operation that was abandoned out of the lock in the repository.
    ///
    /// # Errors
    /// As [`Locker::take`].
    pub async fn forget(&self, id: &OperationId) -> Result<()> {
        let Some(repo) = self.repository().await? else { return Ok(()) };
        match shared_lock::holder(&repo, &self.cluster.name).await? {
            Some(held) if held.operation.as_ref() == Some(id) => {
                let shared = self.take_from(repo, Claim::Operation(id), Duration::ZERO).await?;
                shared.release(false).await
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn share(&self, claim: Claim<'_>, wait: Duration) -> Result<Option<SharedLock>> {
        let take = async {
            match self.repository().await? {
                Some(repo) => self.take_from(repo, claim, wait).await.map(Some),
                None => Ok(None),
            }
        };
        if self.without_answer == WithoutAnswer::Fail {
            return take.await;
        }
        match tokio::time::timeout(wait + ANSWER, take).await {
            Ok(Err(error)) if error.kind() != ErrorKind::Locked => {
                tracing::warn!(%error, "no lock in the repository: only operations of this machine are kept away");
                Ok(None)
            }
            Ok(taken) => taken,
            Err(_) => {
                tracing::warn!(
                    "the repository does not answer: only operations of this machine are kept away"
                );
                Ok(None)
            }
        }
    }

    async fn take_from(&self, repo: SharedRepo, claim: Claim<'_>, wait: Duration) -> Result<SharedLock> {
        let ended = |id: &OperationId| self.has_ended(id);
        SharedLock::take(repo, &self.cluster.name, claim, wait, &ended).await
    }

    /// Opens the repository, if it is made already.
    async fn repository(&self) -> Result<Option<SharedRepo>> {
        let Some(repository) = self.repository else { return Ok(None) };
        // Renewals come by the clock: they pass no gate that counts calls.
        let doors = Doors::open(self.cluster, self.places.clone(), &gate::open())?;
        let host = &self.cluster.preferred().host;
        let about = doors.places(host).telltale(repository);
        let made = doors.host(host).stat(&about).await.map_err(|error| {
            Error::failed(format!("could not look at the repository {}", repository.url)).source(error)
        })?;
        if made.is_none() {
            return Ok(None);
        }
        let door = NodeDoor::with(&doors, host, self.build).await?;
        node::repository(&door, repository).await.map(Some)
    }
}
