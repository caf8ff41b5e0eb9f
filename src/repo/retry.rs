//! A decorator that makes a call once more when the failure may pass.
//!
//! Waits on tokio's clock, so it is not for the WAL hot path over a directory. Leaves the pieces of an upload alone: whoever uploads
//! begins again.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoErrorKind, Result, SharedRepo, Upload, Version, Versioned,
};
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;

/// How often, and after what time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Calls in all; at least one is made.
    pub calls: u32,
    /// Before the second call; doubles each time. What is waited is between half of it and all of it.
    pub first: Duration,
    /// It doubles no further.
    pub longest: Duration,
}

impl Default for Patience {
    /// Five calls within about four seconds.
    fn default() -> Self {
        Self { calls: 5, first: Duration::from_millis(250), longest: Duration::from_secs(5) }
    }
}

impl Patience {
    /// Returns the pause before call `next`, which is at least the second. `chance` is any number.
    fn pause(self, next: u32, chance: u64) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(next.saturating_sub(2)).unwrap_or(u32::MAX));
        let whole = doubled.min(self.longest);
        let share = u32::try_from(chance % 1001).expect("it is at most 1000");
        whole / 2 + whole / 2 * share / 1000
    }
}

/// A repository of which failures that pass are not seen.
#[derive(Debug, Clone)]
pub struct Retry {
    inner: SharedRepo,
    patience: Patience,
}

/// What a call that was made more than once came to.
struct Answer<T> {
    value: T,
    /// An earlier call failed, and may have done its work all the same.
    again: bool,
}

impl Retry {
    pub fn new(inner: SharedRepo, patience: Patience) -> Self {
        Self { inner, patience }
    }

    async fn call<'a, T>(&self, make: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<Answer<T>> {
        answered(self.patience, make).await
    }

    /// A refusal after a failure may be of what the failed call has stored. Bytes that only one writer writes tell.
    async fn put(&self, answer: Answer<Put>, key: &Key, bytes: &[u8]) -> Result<Put> {
        if answer.value == Put::Stored || !answer.again {
            return Ok(answer.value);
        }
        let found = self.call(|| self.inner.read(key)).await?.value;
        Ok(if found.as_deref() == Some(bytes) { Put::Stored } else { Put::Refused })
    }
}

/// Makes a call until it succeeds, or fails by what does not pass, or patience ends.
pub(super) async fn patiently<'a, T>(
    patience: Patience,
    make: impl Fn() -> BoxFuture<'a, Result<T>>,
) -> Result<T> {
    Ok(answered(patience, make).await?.value)
}

async fn answered<'a, T>(
    patience: Patience,
    make: impl Fn() -> BoxFuture<'a, Result<T>>,
) -> Result<Answer<T>> {
    let mut calls = 1;
    loop {
        match make().await {
            Ok(value) => return Ok(Answer { value, again: calls > 1 }),
            Err(error) if error.kind == RepoErrorKind::Passing && calls < patience.calls => {
                calls += 1;
                tokio::time::sleep(patience.pause(calls, chance())).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Any number; without the kernel's help all pauses are of one length.
fn chance() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_or(0, |()| u64::from_ne_bytes(bytes))
}

impl Repo for Retry {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move { Ok(self.call(|| self.inner.read(key)).await?.value) })
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(async move { Ok(self.call(|| self.inner.read_versioned(key)).await?.value) })
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move { Ok(self.call(|| self.inner.read_range(key, offset, length)).await?.value) })
    }

    /// Two writers of the same bytes may both be told that theirs were stored, if a call failed.
    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        Box::pin(
            async move { self.put(self.call(|| self.inner.create(key, bytes)).await?, key, bytes).await },
        )
    }

    /// As [`Retry::create`].
    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(async move {
            self.put(self.call(|| self.inner.replace_if(key, bytes, version)).await?, key, bytes).await
        })
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.call(|| self.inner.store(key, bytes)).await.map(|stored| stored.value) })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        Box::pin(async move { Ok(self.call(|| self.inner.upload(key)).await?.value) })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        Box::pin(async move { Ok(self.call(|| self.inner.list(folder)).await?.value) })
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(async move { Ok(self.call(|| self.inner.list_all(folder)).await?.value) })
    }

    /// One that is gone after a failed call was there before it, as far as anybody can tell.
    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let answer = self.call(|| self.inner.remove(key)).await?;
            Ok(answer.value || answer.again)
        })
    }

    fn sweep<'a>(&'a self, before: Timestamp) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move { Ok(self.call(|| self.inner.sweep(before)).await?.value) })
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.object_lock()
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        Box::pin(async move { Ok(self.call(|| self.inner.free_space()).await?.value) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::repo::dir::DirRepo;
    use crate::repo::faulty::{Fault, Faulty};
    use crate::repo::seal::Blake3;

    /// A repository whose calls up to `until` fail by `fault`, with patience around it.
    fn failing(until: u64, fault: Fault) -> (tempfile::TempDir, Arc<Faulty>, Retry) {
        let directory = tempfile::tempdir().unwrap();
        let inner = Arc::new(DirRepo::create(&directory.path().join("repository")).unwrap());
        let faulty = Arc::new(Faulty::new(inner, move |number, _| (number <= until).then_some(fault)));
        let retry = Retry::new(faulty.clone(), Patience::default());
        (directory, faulty, retry)
    }

    fn key() -> Key {
        Key::new("inventory/lock.json").unwrap()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_never_vanish() {
        let patience = Patience { first: Duration::from_secs(1), ..Patience::default() };
        let pauses = |chance| (2..7).map(|next| patience.pause(next, chance).as_millis()).collect::<Vec<_>>();
        assert_eq!(pauses(0), [500, 1000, 2000, 2500, 2500]);
        assert_eq!(pauses(1000), [1000, 2000, 4000, 5000, 5000]);
        assert_eq!(patience.pause(u32::MAX, 1000), patience.longest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_passes_is_not_seen() {
        let (_directory, faulty, retry) = failing(4, Fault::Before(RepoErrorKind::Passing));
        assert_eq!(retry.create(&key(), b"held").await, Ok(Put::Stored));
        assert_eq!(faulty.calls(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_stays_is_told() {
        let (_directory, faulty, retry) = failing(u64::MAX, Fault::Before(RepoErrorKind::Passing));
        assert_eq!(retry.read(&key()).await.unwrap_err().kind, RepoErrorKind::Passing);
        assert_eq!(faulty.calls(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_pass_is_tried_once() {
        for kind in [
            RepoErrorKind::Missing,
            RepoErrorKind::Denied,
            RepoErrorKind::Full,
            RepoErrorKind::Damaged,
            RepoErrorKind::Other,
        ] {
            let (_directory, faulty, retry) = failing(u64::MAX, Fault::Before(kind));
            assert_eq!(retry.store(&key(), b"x").await.unwrap_err().kind, kind);
            assert_eq!(faulty.calls(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_whose_answer_was_lost_was_stored_by_us() {
        let (_directory, _, retry) = failing(1, Fault::After(RepoErrorKind::Passing));
        assert_eq!(retry.create(&key(), b"ours").await, Ok(Put::Stored));
        let (_directory, _, retry) = failing(1, Fault::Before(RepoErrorKind::Passing));
        retry.inner.store(&key(), b"theirs").await.unwrap_err();
        retry.inner.store(&key(), b"theirs").await.unwrap();
        assert_eq!(retry.create(&key(), b"ours").await, Ok(Put::Refused));
        let old = Version(Blake3::of(b"older").to_string());
        assert_eq!(retry.replace_if(&key(), b"ours", &old).await, Ok(Put::Refused));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_whose_answer_was_lost_removed_it() {
        let (_directory, faulty, retry) = failing(0, Fault::Before(RepoErrorKind::Passing));
        assert_eq!(retry.remove(&key()).await, Ok(false));
        retry.store(&key(), b"x").await.unwrap();
        faulty.now_decide(|number, _| (number == 3).then_some(Fault::After(RepoErrorKind::Passing)));
        assert_eq!(retry.remove(&key()).await, Ok(true));
        assert_eq!(retry.read(&key()).await, Ok(None));
    }
}
