//! An object store: where backups and WAL live. Keys and bytes; what they mean is in [`layout`], [`seal`] and [`manifest`].
//!
//! Every backend passes `tests/repo_conformance.rs`. Knows no cluster by name, no process and no server.

pub mod about;
pub mod access;
pub mod archive;
pub mod catalog;
pub mod codec;
pub mod crypt;
pub mod dir;
pub mod document;
pub mod dump;
pub mod export;
pub mod faulty;
pub mod layout;
pub mod location;
pub mod manifest;
pub mod place;
pub mod primary;
mod relock;
pub mod retry;
pub(crate) mod rows;
mod runtime;
pub mod s3;
pub mod seal;
pub mod several;

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::about::About;
use self::access::Access;
use self::crypt::Encrypted;
use self::crypt::keyring::Keyring;
use self::crypt::rekey::{self, Half, Rekeyed};
use self::dir::DirRepo;
pub use self::location::{Location, Place};
use self::retry::Retry;
use self::s3::{S3Repo, Waits};
use crate::error::{Error, ErrorKind};
pub use crate::gate::BoxFuture;
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;

/// The name of an object: parts of letters, digits and `._-` divided by `/`; no part begins with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// The text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of an object in a repository")]
pub struct KeyError(String);

impl Key {
    /// Takes a text.
    ///
    /// # Errors
    /// When a part is empty, begins with a dot, or holds anything but ASCII letters, digits and `._-`.
    ///
    /// ```
    /// use pgherd::repo::Key;
    /// assert!(Key::new("inventory/lock.json").is_ok());
    /// assert!(Key::new("inventory/../orders").is_err());
    /// ```
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        let part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if text.len() <= 1000 && text.split('/').all(part) { Ok(Self(text)) } else { Err(KeyError(text)) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part behind the last `/`.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Returns the key of `name` below this one.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn join(&self, name: &str) -> Result<Self, KeyError> {
        Self::new(format!("{}/{name}", self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

/// What tells one content of an object from the next, for [`Repo::replace_if`]: an ETag, or a hash of the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub String);

/// An object's bytes with their version.
pub type Versioned = (Vec<u8>, Version);

/// How a conditional put ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Put {
    /// Stored, durably.
    Stored,
    /// The condition did not hold; nothing was stored.
    Refused,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub key: Key,
    pub size: ByteCount,
    /// When it was stored, by the store's clock.
    pub modified: Timestamp,
}

/// One level of a listing, both sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// Objects directly below.
    pub objects: Vec<Listed>,
    /// Names of the folders directly below, without `/`.
    pub folders: Vec<String>,
}

/// What went wrong with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoErrorKind {
    /// The store cannot be reached, or answered with what passes: try again.
    Passing,
    /// The store, or the directory it is in, is not there.
    Missing,
    /// The store does not let us.
    Denied,
    /// No room is left.
    Full,
    /// What is stored is not what was stored.
    Damaged,
    /// It is encrypted, and none of the keys that we have opens it.
    WrongKey,
    /// Anything else; trying again does not help.
    Other,
}

/// A call to a repository that failed. Nothing is said of an object that is merely not there: that is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("could not {doing} in {url}: {why}")]
pub struct RepoError {
    pub kind: RepoErrorKind,
    /// The repository.
    pub url: String,
    /// A fragment: `store inventory/lock.json`.
    pub doing: String,
    pub why: String,
}

impl From<RepoError> for Error {
    fn from(error: RepoError) -> Self {
        let RepoError { kind, url, doing, why } = error;
        let made = |error_kind| {
            Self::new(error_kind, format!("could not {doing} in the repository {url}"))
                .detail(format!("{why}."))
        };
        match kind {
            RepoErrorKind::Passing | RepoErrorKind::Missing => made(ErrorKind::NotFound),
            RepoErrorKind::Full => {
                made(ErrorKind::Failed).hint("Make room in the repository, then run the same again.")
            }
            RepoErrorKind::Denied => {
                made(ErrorKind::Failed).hint("Give the user that owns the nodes' files the right to do that.")
            }
            RepoErrorKind::Damaged => made(ErrorKind::Failed).hint(
                "See what else is damaged, and what can no longer be restored: pgherd backup verify --full",
            ),
            RepoErrorKind::WrongKey => made(ErrorKind::Failed).hint(
                "Give the key that it was encrypted with to this repository in the topology; nothing is lost while that key is kept.",
            ),
            RepoErrorKind::Other => made(ErrorKind::Failed),
        }
    }
}

pub type Result<T, E = RepoError> = std::result::Result<T, E>;

/// An object that is being written; without [`Upload::finish`] it never appears.
pub trait Upload: Send {
    /// Appends bytes.
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>>;
    /// Makes the object appear under its key, whole and durable; replaces one that is there.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// The door to an object store.
///
/// An object appears whole or not at all, and is durable when the call that stored it returns. What was listed before a call ended
/// may miss it; what is listed afterwards does not.
pub trait Repo: Send + Sync + fmt::Debug {
    /// Returns the URL, without anything secret.
    fn url(&self) -> &str;
    /// Reads an object; `None` if there is none.
    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>>;
    /// Reads an object with its version, for [`Repo::replace_if`]; `None` if there is none.
    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>>;
    /// Reads `length` bytes from `offset`; `None` if there is no object, less than `length` only where the object ends.
    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>>;
    /// Stores an object if there is none of that key.
    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>>;
    /// Replaces an object if it still has `version`.
    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>>;
    /// Stores an object, or replaces it.
    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>>;
    /// Begins an object that is written piece by piece.
    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>>;
    /// Lists one level below `folder` (`None`: the root). A folder that is not there is empty.
    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>>;
    /// Lists every object below `folder`, at any depth, sorted by key.
    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>>;
    /// Removes an object; `false` if there was none.
    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>>;
    /// Removes what writers that were killed have left of uploads and nobody has added to since `before`; returns of how many.
    ///
    /// A store that shows nothing of it to anybody and sees to it by itself has nothing to do here.
    fn sweep<'a>(&'a self, before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        let _ = before;
        Box::pin(std::future::ready(Ok(0)))
    }
    /// Returns for how long what is stored now cannot be removed; `None` where it can be at once.
    ///
    /// [`Repo::remove`] hides such an object all the same: who wants it kept for as long as it is locked asks by its age.
    fn object_lock(&self) -> Option<ObjectLock> {
        None
    }
    /// Returns the room that is left, where the store can tell.
    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>>;
}

/// A repository that everybody who needs it shares.
pub type SharedRepo = Arc<dyn Repo>;

/// Opens a repository.
///
/// # Errors
/// When there is none, when what it takes to open it is not there, and what the store says.
pub fn open(location: &Location) -> Result<SharedRepo> {
    reach(location, Reach::Open)
}

/// Makes a repository unless it is there, and opens it.
///
/// # Errors
/// As [`open`]; when something else is there, or it cannot be written.
pub fn create(location: &Location) -> Result<SharedRepo> {
    reach(location, Reach::Create)
}

/// Sees that a repository opens with what is at hand, that it locks what it is to lock, and, if it is encrypted, that its keys are the ones that it was written with.
///
/// # Errors
/// As [`open`]; [`RepoErrorKind::WrongKey`].
pub fn prove(location: &Location) -> Result<()> {
    let stored = reach_stored(location, Reach::Prove)?;
    match stored.checked(location)? {
        Some(keyring) => wait(Box::pin(rekey::prove(&*stored.inner, &keyring))),
        None => Ok(()),
    }
}

/// Locks again what a cluster needs for longer than it is locked. Does nothing in a repository without object lock.
///
/// # Errors
/// As [`open`], and as the repository fails.
pub fn lock_again(location: &Location, cluster: &str) -> Result<()> {
    let stored = reach_stored(location, Reach::Open)?;
    match stored.inner.object_lock() {
        Some(_) => wait(Box::pin(relock::lock_again(&*stored.inner, cluster))),
        None => Ok(()),
    }
}

/// Exchanges the key of an encrypted repository: one half of it.
///
/// # Errors
/// As [`open`] and [`rekey::rekey`]; when it is not encrypted.
pub fn rekey(location: &Location, half: Half) -> Result<Rekeyed> {
    let stored = reach_stored(location, Reach::Open)?;
    let keyring = stored.checked(location)?.ok_or_else(|| RepoError {
        kind: RepoErrorKind::Other,
        url: location.url.clone(),
        doing: "exchange its key".to_owned(),
        why: "it is not encrypted".to_owned(),
    })?;
    wait(Box::pin(rekey::rekey(&*stored.inner, &keyring, half)))
}

/// How a repository is come to.
#[derive(Debug, Clone, Copy)]
enum Reach {
    Open,
    Create,
    /// Open, and see that it does what is asked of it.
    Prove,
}

fn reach(location: &Location, how: Reach) -> Result<SharedRepo> {
    let stored = reach_stored(location, how)?;
    match stored.checked(location)? {
        Some(keyring) => Ok(Arc::new(Encrypted::new(stored.inner, &stored.about, keyring)?)),
        None => Ok(stored.inner),
    }
}

/// What is stored, encrypted or not.
struct Stored {
    inner: SharedRepo,
    about: About,
    keyring: Option<Keyring>,
}

impl Stored {
    /// Returns the keys that it is to be opened with, once it is sure that it is encrypted, or that it lies in the clear if there are none.
    fn checked(&self, location: &Location) -> Result<Option<Keyring>> {
        match &self.keyring {
            Some(_) => self.about.expect_encrypted(&location.url)?,
            None => self.about.expect_plain(&location.url)?,
        }
        Ok(self.keyring.clone())
    }
}

fn reach_stored(location: &Location, how: Reach) -> Result<Stored> {
    let access = match &location.access {
        Some(file) => Some(Access::load(location, file)?),
        None => None,
    };
    let keys = access.as_ref().map_or(&[][..], |access| &access.keys);
    let unusable = |why: String| RepoError {
        kind: RepoErrorKind::Other,
        url: location.url.clone(),
        doing: "read its repository keys".to_owned(),
        why,
    };
    let keyring = match keys {
        [] => None,
        keys => Some(Keyring::parse(keys).map_err(|error| unusable(error.to_string()))?),
    };
    let encrypted = keyring.is_some();
    match Place::of(&location.url) {
        Some(Place::Directory(path)) => {
            match (how, encrypted) {
                (Reach::Open | Reach::Prove, _) => {}
                (Reach::Create, false) => drop(DirRepo::create(path)?),
                (Reach::Create, true) => drop(DirRepo::create_encrypted(path)?),
            }
            let (repo, about) = DirRepo::read(path)?;
            Ok(Stored { inner: Arc::new(repo), about, keyring })
        }
        Some(Place::Bucket { .. }) => {
            let s3 = access.and_then(|access| access.s3).unwrap_or_default();
            let url = location.url.clone();
            let (repo, about) = runtime::OnRuntime::open(&location.url, async move {
                // The one that opens is as patient as those that follow.
                let waits = Waits::default();
                let (repo, about) = retry::patiently(waits.patience, || {
                    let (url, s3) = (url.clone(), s3.clone());
                    Box::pin(async move {
                        match how {
                            Reach::Open => S3Repo::open(&url, &s3, waits).await,
                            Reach::Prove => S3Repo::prove(&url, &s3, waits).await,
                            Reach::Create => S3Repo::create(&url, &s3, waits, encrypted).await,
                        }
                    })
                })
                .await?;
                Ok((Arc::new(Retry::new(Arc::new(repo), waits.patience)) as SharedRepo, about))
            })?;
            Ok(Stored { inner: Arc::new(repo), about, keyring })
        }
        None => Err(RepoError {
            kind: RepoErrorKind::Other,
            url: location.url.clone(),
            doing: "read repository.json".to_owned(),
            why: "its URL is neither file:// and an absolute path nor s3:// and a bucket".to_owned(),
        }),
    }
}

/// Runs a call to its end on this thread, without tokio. A directory answers at its first poll: the WAL hot path.
pub fn wait<T>(call: BoxFuture<'_, T>) -> T {
    pollster::block_on(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_leaves_the_repository() {
        for text in [
            "",
            "/",
            "/etc",
            "a//b",
            "a/",
            "a/../b",
            "./a",
            "a/.hidden",
            "a b",
            "a\\b",
            "ä",
            &"x".repeat(1001),
        ] {
            assert!(Key::new(text).is_err(), "{text:?}");
        }
        assert_eq!(Key::new("a").unwrap().join("b.zst").unwrap().as_str(), "a/b.zst");
    }
}
