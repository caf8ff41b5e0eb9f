//! The repository, for a controller that is not the os-user: each call is one child on a node.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{NodeDoor, NodeRequest, Priority};
use crate::error::{Error, Result};
use crate::host::{Effect, is_own};
use crate::repo::about::About;
use crate::repo::crypt::rekey::{Half, Rekeyed};
use crate::repo::{
    self, BoxFuture, Key, Level, Listed, Location, Put, Repo, RepoError, RepoErrorKind, SharedRepo, Upload,
    Version, Versioned,
};
use crate::topology::model::Repository;
use crate::units::ByteCount;
use std::sync::Arc;

/// Bytes, in JSON as base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A call of [`Repo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoCall {
    Read {
        key: Key,
    },
    ReadVersioned {
        key: Key,
    },
    ReadRange {
        key: Key,
        offset: u64,
        length: u64,
    },
    Create {
        key: Key,
        bytes: Bytes,
    },
    ReplaceIf {
        key: Key,
        bytes: Bytes,
        version: Version,
    },
    Store {
        key: Key,
        bytes: Bytes,
    },
    List {
        folder: Option<Key>,
    },
    ListAll {
        folder: Key,
    },
    Remove {
        key: Key,
    },
    FreeSpace,
    /// Makes the repository, unless it is there.
    Make,
    /// Sees that it opens, with the keys that it was written with.
    Prove,
    /// Exchanges its key.
    Rekey {
        half: Half,
    },
}

impl RepoCall {
    pub(super) fn effect(&self) -> Effect {
        match self {
            Self::Read { .. }
            | Self::ReadVersioned { .. }
            | Self::ReadRange { .. }
            | Self::List { .. }
            | Self::ListAll { .. }
            | Self::FreeSpace
            | Self::Prove => Effect::Reads,
            Self::Create { .. }
            | Self::ReplaceIf { .. }
            | Self::Store { .. }
            | Self::Remove { .. }
            | Self::Make
            | Self::Rekey { .. } => Effect::Changes,
        }
    }

    /// A fragment that says what is done.
    fn doing(&self) -> String {
        match self {
            Self::Read { key } | Self::ReadVersioned { key } | Self::ReadRange { key, .. } => {
                format!("read {key}")
            }
            Self::Create { key, .. } | Self::Store { key, .. } => format!("store {key}"),
            Self::ReplaceIf { key, .. } => format!("replace {key}"),
            Self::List { folder: None } => "list the clusters".to_owned(),
            Self::List { folder: Some(folder) } | Self::ListAll { folder } => format!("list {folder}"),
            Self::Remove { key } => format!("remove {key}"),
            Self::FreeSpace => "see how much room is left".to_owned(),
            Self::Make => "make repository.json".to_owned(),
            Self::Prove => "open it".to_owned(),
            Self::Rekey { .. } => "exchange its key".to_owned(),
        }
    }
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoReply {
    Bytes(Option<Bytes>),
    Versioned(Option<(Bytes, Version)>),
    Put(Put),
    Stored,
    Level(Level),
    Listed(Vec<Listed>),
    Removed(bool),
    Space(Option<ByteCount>),
    Made(About),
    Proved,
    Rekeyed(Rekeyed),
    Failed(RepoError),
}

/// Makes a call, in the child.
pub fn serve(repository: &Location, call: RepoCall) -> RepoReply {
    if let RepoCall::Prove = call {
        return reply(repo::prove(repository).map(|()| RepoReply::Proved));
    }
    if let RepoCall::Rekey { half } = call {
        return reply(repo::rekey(repository, half).map(RepoReply::Rekeyed));
    }
    let opened = if let RepoCall::Make = call { repo::create(repository) } else { repo::open(repository) };
    let repo = match opened {
        Ok(repo) => repo,
        Err(error) => return RepoReply::Failed(error),
    };
    let made = match call {
        RepoCall::Read { key } => repo::wait(repo.read(&key)).map(|bytes| RepoReply::Bytes(bytes.map(Bytes))),
        RepoCall::ReadVersioned { key } => repo::wait(repo.read_versioned(&key))
            .map(|found| RepoReply::Versioned(found.map(|(bytes, version)| (Bytes(bytes), version)))),
        RepoCall::ReadRange { key, offset, length } => {
            repo::wait(repo.read_range(&key, offset, length)).map(|bytes| RepoReply::Bytes(bytes.map(Bytes)))
        }
        RepoCall::Create { key, bytes } => repo::wait(repo.create(&key, &bytes.0)).map(RepoReply::Put),
        RepoCall::ReplaceIf { key, bytes, version } => {
            repo::wait(repo.replace_if(&key, &bytes.0, &version)).map(RepoReply::Put)
        }
        RepoCall::Store { key, bytes } => repo::wait(repo.store(&key, &bytes.0)).map(|()| RepoReply::Stored),
        RepoCall::List { folder } => repo::wait(repo.list(folder.as_ref())).map(RepoReply::Level),
        RepoCall::ListAll { folder } => repo::wait(repo.list_all(&folder)).map(RepoReply::Listed),
        RepoCall::Remove { key } => repo::wait(repo.remove(&key)).map(RepoReply::Removed),
        RepoCall::FreeSpace => repo::wait(repo.free_space()).map(RepoReply::Space),
        RepoCall::Make => about(&*repo).map(RepoReply::Made),
        RepoCall::Prove | RepoCall::Rekey { .. } => unreachable!("they were answered before it was opened"),
    };
    reply(made)
}

fn reply(made: repo::Result<RepoReply>) -> RepoReply {
    made.unwrap_or_else(RepoReply::Failed)
}

/// Reads what a repository that was just made says of itself.
fn about(repo: &dyn Repo) -> repo::Result<About> {
    let key = repo::layout::repository();
    let damaged = |why: String| RepoError {
        kind: RepoErrorKind::Damaged,
        url: repo.url().to_owned(),
        doing: format!("read {key}"),
        why,
    };
    let bytes = repo::wait(repo.read(&key))?.ok_or_else(|| damaged("it is not there any more".to_owned()))?;
    About::read(&bytes).map_err(|error| damaged(error.to_string()))
}

/// Returns the repository behind a door, without a look whether it is there.
pub fn through(door: &NodeDoor, repository: &Repository) -> SharedRepo {
    Arc::new(ThroughNode { door: door.clone(), location: door.location(repository) })
}

/// Makes a repository, unless it is there, by a child behind the door.
///
/// # Errors
/// When something else is there, or it cannot be made.
pub async fn make_repository(door: &NodeDoor, repository: &Repository) -> Result<About> {
    let repo = ThroughNode { door: door.clone(), location: door.location(repository) };
    let doing = RepoCall::Make.doing();
    if let RepoReply::Made(about) = repo.call(RepoCall::Make).await? {
        return Ok(about);
    }
    Err(repo.unexpected(doing).into())
}

/// Sees that what is at this place behind a door opens.
///
/// # Errors
/// As [`repo::prove`].
pub async fn prove(door: &NodeDoor, location: Location) -> repo::Result<()> {
    let repo = ThroughNode { door: door.clone(), location };
    if let RepoReply::Proved = repo.call(RepoCall::Prove).await? {
        return Ok(());
    }
    Err(repo.unexpected(RepoCall::Prove.doing()))
}

/// Exchanges the key of a repository: one half of it.
///
/// # Errors
/// As [`repo::rekey`].
pub async fn rekey(door: &NodeDoor, repository: &Repository, half: Half) -> repo::Result<Rekeyed> {
    let repo = ThroughNode { door: door.clone(), location: door.location(repository) };
    let call = RepoCall::Rekey { half };
    if let RepoReply::Rekeyed(rekeyed) = repo.call(call.clone()).await? {
        return Ok(rekeyed);
    }
    Err(repo.unexpected(call.doing()))
}

/// Opens a repository for the controller: directly where the caller is the os-user, else through children on this node.
///
/// # Errors
/// When it is not there, or cannot be read.
pub async fn repository(door: &NodeDoor, repository: &Repository) -> Result<SharedRepo> {
    let location = door.location(repository);
    if is_own(door.host()) {
        return Ok(repo::open(&location)?);
    }
    let repo = ThroughNode { door: door.clone(), location };
    // A repository that is not there is told now, and not in the middle of something.
    let about = repo::layout::repository();
    match repo.read(&about).await? {
        Some(_) => Ok(Arc::new(repo)),
        None => Err(Error::from(RepoError {
            kind: RepoErrorKind::Missing,
            url: repository.url.clone(),
            doing: format!("read {about}"),
            why: "it is not there".to_owned(),
        })),
    }
}

/// A repository behind the door of a node.
#[derive(Debug)]
struct ThroughNode {
    door: NodeDoor,
    location: Location,
}

impl ThroughNode {
    async fn call(&self, call: RepoCall) -> repo::Result<RepoReply> {
        let doing = call.doing();
        let request = NodeRequest::Repository { repository: self.location.clone(), call };
        let reply = self.door.call::<RepoReply>(&request, Priority::Normal, Arc::new(|_| ())).await;
        match reply {
            Ok(RepoReply::Failed(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(error) => {
                let why = error.detail_text().map_or_else(String::new, |detail| format!(": {detail}"));
                Err(self.error(RepoErrorKind::Passing, doing, format!("{error}{why}")))
            }
        }
    }

    fn error(&self, kind: RepoErrorKind, doing: String, why: String) -> RepoError {
        RepoError { kind, url: self.location.url.clone(), doing, why }
    }

    fn unexpected(&self, doing: String) -> RepoError {
        self.error(RepoErrorKind::Other, doing, "the answer was one to another question".to_owned())
    }
}

/// Makes a call and takes the one kind of answer that fits.
macro_rules! answer {
    ($repo:ident, $call:expr, $reply:pat => $value:expr) => {
        Box::pin(async move {
            let call = $call;
            let doing = call.doing();
            match $repo.call(call).await? {
                $reply => Ok($value),
                _ => Err($repo.unexpected(doing)),
            }
        })
    };
}

impl Repo for ThroughNode {
    fn url(&self) -> &str {
        &self.location.url
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, repo::Result<Option<Vec<u8>>>> {
        answer!(self, RepoCall::Read { key: key.clone() }, RepoReply::Bytes(bytes) => bytes.map(|b| b.0))
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, repo::Result<Option<Versioned>>> {
        answer!(self, RepoCall::ReadVersioned { key: key.clone() },
            RepoReply::Versioned(found) => found.map(|(bytes, version)| (bytes.0, version)))
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, repo::Result<Option<Vec<u8>>>> {
        answer!(self, RepoCall::ReadRange { key: key.clone(), offset, length },
            RepoReply::Bytes(bytes) => bytes.map(|b| b.0))
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, repo::Result<Put>> {
        answer!(self, RepoCall::Create { key: key.clone(), bytes: Bytes(bytes.to_vec()) }, RepoReply::Put(put) => put)
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, repo::Result<Put>> {
        let (key, bytes, version) = (key.clone(), Bytes(bytes.to_vec()), version.clone());
        answer!(self, RepoCall::ReplaceIf { key, bytes, version }, RepoReply::Put(put) => put)
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, repo::Result<()>> {
        answer!(self, RepoCall::Store { key: key.clone(), bytes: Bytes(bytes.to_vec()) }, RepoReply::Stored => ())
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, repo::Result<Box<dyn Upload>>> {
        Box::pin(async move {
            // What is large is written on the node itself.
            let (door, location) = (self.door.clone(), self.location.clone());
            let upload = Collected { repo: Self { door, location }, key: key.clone(), bytes: Vec::new() };
            Ok(Box::new(upload) as Box<dyn Upload>)
        })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, repo::Result<Level>> {
        answer!(self, RepoCall::List { folder: folder.cloned() }, RepoReply::Level(level) => level)
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, repo::Result<Vec<Listed>>> {
        answer!(self, RepoCall::ListAll { folder: folder.clone() }, RepoReply::Listed(listed) => listed)
    }

    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, repo::Result<bool>> {
        answer!(self, RepoCall::Remove { key: key.clone() }, RepoReply::Removed(removed) => removed)
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, repo::Result<Option<ByteCount>>> {
        answer!(self, RepoCall::FreeSpace, RepoReply::Space(space) => space)
    }
}

/// A small object that is collected and then stored in one call.
struct Collected {
    repo: ThroughNode,
    key: Key,
    bytes: Vec<u8>,
}

impl Upload for Collected {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, repo::Result<()>> {
        self.bytes.extend_from_slice(bytes);
        Box::pin(std::future::ready(Ok(())))
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, repo::Result<()>> {
        Box::pin(async move { self.repo.store(&self.key, &self.bytes).await })
    }
}
