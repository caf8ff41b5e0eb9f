//! A cluster's repository as the controller looks at it from one host: the files of a directory through the host itself, which costs nothing, and
//! anything else through a child there that knows how to open it.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
use crate::host::{Host, HostError};
use crate::ops::binary::Build;
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::Doors;
use crate::repo::{Key, RepoError, RepoErrorKind, SharedRepo};
use crate::topology::model::Repository;

/// A repository, looked at from one host.
#[derive(Debug)]
pub struct Shelf<'a> {
    host: &'a dyn Host,
    url: &'a str,
    way: Way<'a>,
}

#[derive(Debug)]
enum Way<'a> {
    Directory(&'a Path),
    Child(SharedRepo),
}

/// Why nobody can tell what is there.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    Other(#[from] Error),
}

impl ShelfError {
    /// Tells whether nobody answered, so that asking later may help.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Host(error) => matches!(error, HostError::NotStarted { .. } | HostError::Lost { .. }),
            Self::Repo(error) => error.kind == RepoErrorKind::Passing,
            Self::Other(_) => false,
        }
    }
}

impl From<ShelfError> for Error {
    fn from(error: ShelfError) -> Self {
        match error {
            ShelfError::Host(error) => error.into(),
            ShelfError::Repo(error) => error.into(),
            ShelfError::Other(error) => error,
        }
    }
}

type Result<T> = std::result::Result<T, ShelfError>;

impl<'a> Shelf<'a> {
    /// Opens the way to it; installs nothing: where this build is not on the host, the one that servers call there is asked.
    ///
    /// # Errors
    /// When it takes a child to look at it, and no pgherd is on the host or that does not answer.
    pub async fn of(doors: &'a Doors, host: &str, repository: &'a Repository, build: &Build) -> Result<Self> {
        let way = match repository.plain_directory() {
            Some(directory) => Way::Directory(directory),
            None => {
                let door = NodeDoor::to_look(doors, host, build).await?.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("there is no pgherd on host {host}"))
                        .hint("Install it: pgherd apply")
                })?;
                Way::Child(node::through(&door, repository))
            }
        };
        Ok(Self { host: doors.host(host), url: &repository.url, way })
    }

    /// Says where an object is, for a message.
    pub fn shown(&self, key: &Key) -> String {
        match &self.way {
            Way::Directory(root) => path(root, key).display().to_string(),
            Way::Child(_) => format!("{}/{key}", self.url),
        }
    }

    /// Tells whether an object is there.
    ///
    /// # Errors
    /// When nobody can tell.
    pub async fn has(&self, key: &Key) -> Result<bool> {
        Ok(match &self.way {
            Way::Directory(root) => self.host.stat(&path(root, key)).await?.is_some(),
            Way::Child(repo) => repo.read_range(key, 0, 1).await?.is_some(),
        })
    }

    /// Reads an object.
    ///
    /// # Errors
    /// As [`Shelf::has`].
    pub async fn read(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        match &self.way {
            Way::Directory(root) => Ok(self.host.read(&path(root, key)).await?),
            Way::Child(repo) => Ok(repo.read(key).await?),
        }
    }

    /// Returns the names of what is directly below a folder; a folder that is not there is empty.
    ///
    /// # Errors
    /// As [`Shelf::has`].
    pub async fn names(&self, folder: &Key) -> Result<Vec<String>> {
        match &self.way {
            Way::Directory(root) => Ok(self.host.list(&path(root, folder)).await?.unwrap_or_default()),
            Way::Child(repo) => {
                let level = repo.list(Some(folder)).await?;
                let objects = level.objects.into_iter().map(|object| object.key.name().to_owned());
                Ok(objects.chain(level.folders).collect())
            }
        }
    }

    /// Removes everything below a folder.
    ///
    /// # Errors
    /// As what is there cannot be removed.
    pub async fn remove_all(&self, folder: &Key) -> Result<()> {
        match &self.way {
            Way::Directory(root) => {
                self.host.remove_tree(&path(root, folder)).await?;
            }
            Way::Child(repo) => {
                for listed in repo.list_all(folder).await? {
                    repo.remove(&listed.key).await?;
                }
            }
        }
        Ok(())
    }
}

fn path(root: &Path, key: &Key) -> PathBuf {
    root.join(key.as_str())
}
