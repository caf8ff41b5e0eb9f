//! The operation lock: one process at a time changes a cluster.
//!
//! `STATE/locks/CLUSTER.lock` is held by `flock`, so the kernel frees it when the holder dies; what is written in the file only
//! tells others who that is. Reaches as far as the state directory does: another machine's pgherd does not see it.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::engine::copies::Shelf;
use crate::engine::record::{Actor, OperationId};
use crate::engine::shared_lock::SharedLock;
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::host::whole;

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    pub format: u32,
    /// `None` while the operation is being planned.
    pub operation: Option<OperationId>,
    pub by: Actor,
    pub since: Timestamp,
}

/// The lock of a cluster, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    cluster: String,
    holder: Holder,
    shared: Option<Arc<SharedLock>>,
    /// Where copies of the journal go that is written under it.
    shelves: Vec<Shelf>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a program that is being started has it open as well, from fork until exec.
        give_back(&self.file);
    }
}

fn give_back(file: &File) {
    // It can only fail for a file that is not open.
    rustix::fs::flock(file, FlockOperation::Unlock).unwrap_or(());
}

const POLL: Duration = Duration::from_millis(50);
/// Others look whether a lock is held by holding it for an instant; that is no reason to refuse.
const GLANCE: Duration = Duration::from_millis(200);

impl Lock {
    /// Takes the lock of `cluster`; waits up to `wait` for another holder to end.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] with the holder's pid, host and time.
    pub async fn take(store: &Store, cluster: &str, wait: Duration) -> Result<Self> {
        let deadline = Instant::now() + wait.max(GLANCE);
        let path = path(store, cluster);
        store.make_directory(&store.locks())?;
        loop {
            if let Some(file) = try_lock(&path)? {
                return Self::hold(store, file, path, cluster);
            }
            if Instant::now() >= deadline {
                return Err(locked(cluster, read_holder(&path).as_ref(), wait));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Takes the lock of `cluster` away from a holder that may still live: the lock file is replaced by a new one, held.
    ///
    /// The old holder is not stopped by this; the record that the caller writes to the journal stops it.
    ///
    /// # Errors
    /// When the lock file cannot be replaced.
    pub(crate) fn take_away(store: &Store, cluster: &str) -> Result<Self> {
        let path = path(store, cluster);
        let could_not = |error: std::io::Error| {
            Error::failed(format!("could not replace the lock {}", path.display())).source(error)
        };
        store.make_directory(&store.locks())?;
        let held = |file: &mut File| Ok(rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive)?);
        let file = whole::replace_with(&path, 0o600, held).map_err(could_not)?;
        Self::hold(store, file, path, cluster)
    }

    fn hold(store: &Store, file: File, path: PathBuf, cluster: &str) -> Result<Self> {
        let holder = Holder { format: 1, operation: None, by: Actor::here(), since: store.clock().now() };
        let mut lock =
            Self { file, path, cluster: cluster.to_owned(), holder, shared: None, shelves: Vec::new() };
        lock.write_holder()?;
        Ok(lock)
    }

    /// Writes into the lock which operation it is held for.
    pub(crate) fn name_operation(&mut self, operation: &OperationId) {
        self.holder.operation = Some(operation.clone());
        // The kernel's lock is what counts; a text that could not be written only makes a refusal less helpful.
        self.write_holder().ok();
    }

    fn write_holder(&mut self) -> Result<()> {
        let text = serde_json::to_vec(&self.holder).expect("a holder has only string keys");
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(&text))
            .map_err(|error| {
                Error::failed(format!("could not write the lock {}", self.path.display())).source(error)
            })
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Adds the lock of the same cluster in its repository, which keeps other machines away.
    #[must_use]
    pub fn with_shared(mut self, shared: SharedLock) -> Self {
        self.set_shared(shared);
        self
    }

    /// States where copies of the journal go that is written under it.
    #[must_use]
    pub fn with_copies(mut self, shelves: Vec<Shelf>) -> Self {
        self.shelves = shelves;
        self
    }

    pub(crate) fn take_shelves(&mut self) -> Vec<Shelf> {
        std::mem::take(&mut self.shelves)
    }

    pub(crate) fn set_shared(&mut self, shared: SharedLock) {
        self.shared = Some(Arc::new(shared));
    }

    /// Returns the lock in the repository, to give it back before this one; nothing more is asked of the repository then.
    pub fn shared(&self) -> Option<&Arc<SharedLock>> {
        self.shared.as_ref()
    }

    /// Keeps the lock for what was made under it, or gives it back with the error.
    ///
    /// # Errors
    /// The one that `made` is.
    pub async fn keep_for<T>(self, made: Result<T>) -> Result<(Self, T)> {
        match made {
            Ok(made) => Ok((self, made)),
            Err(error) => {
                self.give_back().await;
                Err(error)
            }
        }
    }

    /// Gives the lock back, also in the repository, where it would otherwise keep other machines away until it expires.
    pub async fn give_back(self) {
        if let Some(shared) = &self.shared {
            shared.give_back(false).await;
        }
    }
}

/// Returns who holds the lock of a cluster now, if anybody does.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn holder(store: &Store, cluster: &str) -> Result<Option<Holder>> {
    let path = path(store, cluster);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unopened(&path, error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            give_back(&file);
            Ok(None)
        }
        Err(Errno::WOULDBLOCK) => Ok(read_holder(&path)),
        Err(error) => Err(unopened(&path, error.into())),
    }
}

/// Waits up to `wait` until nobody holds the lock of a cluster; who plans before that sees a world that is still being changed.
///
/// Only looks, and makes no file.
///
/// # Errors
/// As [`Lock::take`].
pub async fn until_free(store: &Store, cluster: &str, wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait.max(GLANCE);
    while let Some(found) = holder(store, cluster)? {
        if Instant::now() >= deadline {
            return Err(locked(cluster, Some(&found), wait));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn path(store: &Store, cluster: &str) -> PathBuf {
    store.locks().join(format!("{cluster}.lock"))
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn unopened(path: &Path, error: std::io::Error) -> Error {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    let failed = Error::failed(format!("could not open the lock {}", path.display())).source(error);
    match path.parent().filter(|_| denied) {
        Some(locks) => failed.hint(format!("Run pgherd as the user that {} belongs to.", locks.display())),
        None => failed,
    }
}

/// Returns the locked file, or `None` if another process holds it.
fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = open(path).map_err(|error| unopened(path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(unopened(path, error.into())),
    }
    // Between our open and our lock a takeover may have put another file in this place: then we hold what nobody looks at.
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) if same(&ours, &theirs) => Ok(Some(file)),
        _ => Ok(None),
    }
}

fn read_holder(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(path).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    serde_json::from_str(&text).ok()
}

fn locked(cluster: &str, holder: Option<&Holder>, waited: Duration) -> Error {
    let after = if waited.is_zero() {
        String::new()
    } else {
        format!(" Waited {} for it.", crate::units::human_duration(waited))
    };
    let Some(holder) = holder else {
        return Error::new(ErrorKind::Locked, format!("cluster {cluster} is locked by another process"))
            .detail(format!("The lock does not say by whom.{after}"))
            .hint("Try again, or wait for it with --wait-lock.");
    };
    let (doing, hint) = match &holder.operation {
        Some(id) => (
            format!("operation {id}"),
            format!(
                "Wait for it with --wait-lock, watch it with \"pgherd operation show {id}\", or, if that process hangs, take it \
                 over: pgherd operation takeover {id} --force --reason TEXT"
            ),
        ),
        None => ("a process that is still planning".to_owned(), "Wait for it with --wait-lock.".to_owned()),
    };
    let since = holder.since.strftime("%Y-%m-%d %H:%M:%S UTC");
    Error::new(ErrorKind::Locked, format!("cluster {cluster} is locked by {doing}"))
        .detail(format!("Held by {} since {since}.{after}", holder.by))
        .hint(hint)
}
