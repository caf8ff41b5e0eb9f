//! A WAL file on its way into one repository: stored if nothing is there, known again if the same is, and never put in the place of something else.

use std::sync::OnceLock;

use super::Archive;
use crate::error::{Error, Result};
use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::WalFile;
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{Key, Put, RepoError, RepoErrorKind, SharedRepo, wait};
use crate::units::ByteCount;

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    Stored {
        file: WalFile,
        size: ByteCount,
        stored: ByteCount,
    },
    /// It was stored ahead, before the server asked for it.
    Ahead {
        file: WalFile,
    },
    /// The same content is there already, whole. The server pushes again after a crash.
    AlreadyThere {
        file: WalFile,
    },
    /// What was there of the same content was damaged and is replaced.
    Mended {
        file: WalFile,
        damage: String,
    },
}

/// A file that is to be stored.
pub(super) struct Item {
    cluster: String,
    system: SystemIdentifier,
    pub(super) file: WalFile,
    key: Key,
    content: Vec<u8>,
    level: i32,
    /// Compressed once for all repositories.
    sealed: OnceLock<Result<Vec<u8>, String>>,
}

/// Why a file is not in a repository.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) error: Box<Error>,
    /// Something else is there in its place, and not the repository is away.
    pub(super) wrong: bool,
}

impl Trouble {
    pub(super) fn away(error: Error) -> Self {
        Self { error: Box::new(error), wrong: false }
    }

    fn wrong(error: Error) -> Self {
        Self { error: Box::new(error), wrong: true }
    }
}

impl From<RepoError> for Trouble {
    fn from(error: RepoError) -> Self {
        Self::away(error.into())
    }
}

impl Item {
    pub(super) fn of(archive: &Archive, file: WalFile, content: Vec<u8>, level: i32) -> Self {
        Self {
            cluster: archive.profile.cluster.clone(),
            system: archive.profile.system_identifier,
            file,
            key: archive.keys.wal(file),
            content,
            level,
            sealed: OnceLock::new(),
        }
    }

    /// Stores it in a repository, unless the same is there.
    pub(super) fn put(&self, repo: &SharedRepo) -> Result<Pushed, Trouble> {
        if let Some(pushed) = self.compare(repo)? {
            return Ok(pushed);
        }
        let object = self.seal()?;
        match wait(repo.create(&self.key, object))? {
            Put::Stored => Ok(Pushed::Stored {
                file: self.file,
                size: ByteCount(self.content.len() as u64),
                stored: ByteCount(object.len() as u64),
            }),
            Put::Refused => self.compare(repo)?.ok_or_else(|| {
                let what = format!("could not store {} in the repository {}", self.key, repo.url());
                Trouble::away(
                    Error::failed(what)
                        .detail("Something was there when it was to be stored, and was removed meanwhile."),
                )
            }),
        }
    }

    fn identity<'a>(&self, name: &'a str) -> Identity<'a> {
        Identity { kind: Kind::Wal, name, system_identifier: self.system }
    }

    fn seal(&self) -> Result<&[u8], Trouble> {
        let made = self.sealed.get_or_init(|| {
            seal::seal(self.identity(&self.file.to_string()), &self.content, self.level)
                .map_err(|error| error.to_string())
        });
        made.as_deref().map_err(|why| {
            Trouble::wrong(
                Error::failed(format!("could not compress {}", self.file)).detail(format!("{why}.")),
            )
        })
    }

    /// Compares with what is there under the name, all of it; `None` if nothing is.
    fn compare(&self, repo: &SharedRepo) -> Result<Option<Pushed>, Trouble> {
        let object = match wait(repo.read(&self.key)) {
            Ok(None) => return Ok(None),
            Ok(Some(object)) => object,
            // Whoever decrypts gives nothing of an object that is damaged, but for a range that is not.
            Err(error) if error.kind == RepoErrorKind::Damaged => {
                let begin = wait(repo.read_range(&self.key, 0, seal::HEADER_MOST)).ok().flatten();
                return self.compare_damaged(repo, &begin.unwrap_or_default(), error.why).map(Some);
            }
            Err(error) => return Err(error.into()),
        };
        match seal::open(self.identity(&self.file.to_string()), &object) {
            Ok(stored) if stored == self.content => Ok(Some(Pushed::AlreadyThere { file: self.file })),
            Ok(stored) => Err(self.differs(repo, Blake3::of(&stored))),
            Err(damage) => self.compare_damaged(repo, &object, damage.to_string()).map(Some),
        }
    }

    /// Compares with what is there and damaged, by its beginning: it may be thrown away only if its header says that it was this very
    /// content.
    fn compare_damaged(&self, repo: &SharedRepo, begin: &[u8], damage: String) -> Result<Pushed, Trouble> {
        match seal::header(begin).map(|(header, _)| header.content_blake3) {
            Ok(hash) if hash == Blake3::of(&self.content) => {
                wait(repo.store(&self.key, self.seal()?))?;
                Ok(Pushed::Mended { file: self.file, damage })
            }
            Ok(hash) => Err(self.differs(repo, hash)),
            Err(_) => Err(self.damaged(repo, damage)),
        }
    }

    /// PostgreSQL docs, "Continuous Archiving": the archive command should refuse to overwrite a file of other content.
    fn differs(&self, repo: &SharedRepo, stored: Blake3) -> Trouble {
        let cluster = &self.cluster;
        let what =
            format!("cannot archive {}: the archive of {cluster} has another one of this name", self.file);
        Trouble::wrong(
            Error::failed(what)
                .detail(format!(
                    "Stored in {} is content with BLAKE3 {stored}; here it is {}. Two servers write WAL of timeline {} of {cluster}: there may \
                     be two primaries. Nothing was overwritten.",
                    repo.url(),
                    Blake3::of(&self.content),
                    self.file.timeline().as_u32(),
                ))
                .hint("See who is primary with \"pgherd status\", and stop the other one."),
        )
    }

    /// Nothing tells what it was: where another repository has the file, this one lacks it, and that is all.
    fn damaged(&self, repo: &SharedRepo, why: String) -> Trouble {
        Trouble::away(Error::from(RepoError {
            kind: RepoErrorKind::Damaged,
            url: repo.url().to_owned(),
            doing: format!("store {}", self.key),
            why: format!(
                "Something is there under this name and {why}; it was left as it is, and has to be removed by hand"
            ),
        }))
    }
}
