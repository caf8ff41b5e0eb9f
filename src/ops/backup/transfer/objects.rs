//! Brings single objects from one repository into another, several at a time, each held against its hash before it appears there.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::Work;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::Progress;
use crate::repo::seal::Blake3;
use crate::repo::{Key, RepoError, RepoErrorKind, SharedRepo, wait};
use crate::units::ByteCount;

/// So much of an object is in memory at once, a worker.
const PIECE: u64 = 8 << 20;

/// An object that is to be brought to the other repository.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) key: Key,
    pub(super) size: ByteCount,
    pub(super) blake3: Blake3,
    /// Its size there, if an earlier run brought one of that name.
    pub(super) there: Option<ByteCount>,
}

/// Why something was not brought.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is not what was stored, on one of the sides: it stays out, for this reason, and the others are copied.
    Left(String),
    /// The copy cannot go on.
    Ends(Error),
}

impl From<RepoError> for Trouble {
    fn from(error: RepoError) -> Self {
        match error.kind {
            RepoErrorKind::Damaged => Self::Left(error.to_string()),
            RepoErrorKind::Passing
            | RepoErrorKind::Missing
            | RepoErrorKind::Denied
            | RepoErrorKind::Full
            | RepoErrorKind::WrongKey
            | RepoErrorKind::Other => Self::Ends(error.into()),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Ends(error)
    }
}

/// What came of an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Brought {
    Stored,
    TakenOver,
}

impl Work<'_> {
    /// Brings an object, unless the very same is there.
    pub(super) fn bring(&self, object: &Object) -> Result<Brought, Trouble> {
        if self.is_the_same(object)? {
            self.tell(object.size.0);
            return Ok(Brought::TakenOver);
        }
        let mut upload = wait(self.to.upload(&object.key))?;
        let read = self.hash(self.from, &object.key, |piece| {
            wait(upload.write(piece))?;
            self.tell(piece.len() as u64);
            Ok(())
        })?;
        match read {
            None => return Err(self.damaged(&object.key, "it is not there")),
            Some((_, size)) if size != object.size.0 => {
                let why = format!("it has {size} bytes, expected {}", object.size.0);
                return Err(self.damaged(&object.key, why));
            }
            Some((hash, _)) if hash != object.blake3 => {
                return Err(self.damaged(&object.key, "it does not have the hash that is listed"));
            }
            Some(_) => {}
        }
        // Only now does it appear.
        wait(upload.finish())?;
        Ok(Brought::Stored)
    }

    /// Tells whether the very same object is there. One that is damaged there is another one.
    fn is_the_same(&self, object: &Object) -> Result<bool, Trouble> {
        if object.there != Some(object.size) {
            return Ok(false);
        }
        match self.hash(self.to, &object.key, |_| Ok(())) {
            Ok(found) => Ok(found == Some((object.blake3, object.size.0))),
            Err(Trouble::Left(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads an object piece by piece; returns its hash and its size, `None` if it is not there.
    fn hash(
        &self,
        repo: &SharedRepo,
        key: &Key,
        mut each: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<Option<(Blake3, u64)>, Trouble> {
        let (mut hasher, mut offset) = (blake3::Hasher::new(), 0);
        loop {
            self.go_on()?;
            let Some(piece) = wait(repo.read_range(key, offset, PIECE))? else {
                return Ok(None);
            };
            hasher.update(&piece);
            each(&piece)?;
            offset += piece.len() as u64;
            if (piece.len() as u64) < PIECE {
                return Ok(Some((Blake3::from_bytes(*hasher.finalize().as_bytes()), offset)));
            }
        }
    }

    /// Does the same with each of them, several at a time; the first error ends it.
    pub(super) fn side_by_side<T: Sync>(
        &self,
        each: &[T],
        work: impl Fn(&T) -> Result<(), Trouble> + Sync,
    ) -> Result<(), Trouble> {
        let (next, first) = (AtomicUsize::new(0), Mutex::new(None));
        thread::scope(|scope| {
            for _ in 0..self.workers.min(each.len()) {
                scope.spawn(|| {
                    while let Some(one) = each.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.go_on().map_err(Trouble::from).and_then(|()| work(one)) {
                            next.store(each.len(), Ordering::Relaxed);
                            first
                                .lock()
                                .unwrap_or_else(std::sync::PoisonError::into_inner)
                                .get_or_insert(error);
                        }
                    }
                });
            }
        });
        first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn go_on(&self) -> Result<()> {
        if self.reporter.is_alone() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted")
                .detail("What was copied by then is taken over by the next copy."));
        }
        Ok(())
    }

    pub(super) fn tell(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = ByteCount(self.total.load(Ordering::Relaxed).max(done));
        self.reporter.progress(Progress { done: ByteCount(done), total, stored: ByteCount(0) });
    }

    /// Says that what lies where it is copied from is not what was stored.
    pub(super) fn damaged(&self, key: &Key, why: impl fmt::Display) -> Trouble {
        Trouble::Left(format!("could not copy {key} from {}: {why}", self.from.url()))
    }
}
