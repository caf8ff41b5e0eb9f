//! A turn in the repository: of several stations one at a time does something, and all of them read how it ended.
//!
//! One document holds who has the turn and what is known; every change of it is a conditional put, so that of two stations that want the
//! same turn one gets it. A turn expires unless it is renewed, and one whose holder is a dead process of this machine has ended at once.
//! docs/formats/job.md.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared_lock::{LIFE, MARGIN, RENEW, SKEW, boot, pid_namespace, process_exists};
use crate::engine::journal::hex;
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::repo::{Key, Put, SharedRepo, Version, seal};

const TRIES: u32 = 5;

/// What is stored: a sealed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document<T> {
    pub format: u32,
    /// `None` while nobody has the turn.
    pub holder: Option<Holder>,
    pub record: T,
}

/// Who has a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Tells one turn from every other.
    pub token: String,
    pub by: Actor,
    /// The machine's boot and the process's pid namespace: only within both does the pid say whether the holder lives.
    pub boot: String,
    pub pid_namespace: String,
    pub since: Timestamp,
    pub expires: Timestamp,
}

impl Holder {
    fn new() -> Result<Self> {
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
        let now = Timestamp::now();
        Ok(Self {
            token: hex(&random),
            by: Actor::here(),
            boot: boot(),
            pid_namespace: pid_namespace(),
            since: now,
            expires: now + signed(LIFE),
        })
    }

    /// Tells whether it may still do what the turn is for.
    pub fn lives(&self, now: Timestamp) -> bool {
        let here = !self.boot.is_empty() && self.boot == boot() && self.pid_namespace == pid_namespace();
        now < self.expires + signed(SKEW) && (!here || process_exists(self.by.pid))
    }
}

/// What was read, with what it takes to replace it.
#[derive(Debug, Clone)]
pub struct Known<T> {
    pub document: Document<T>,
    version: Version,
}

impl<T> Known<T> {
    /// Returns who has the turn now, if anybody does.
    pub fn holder(&self) -> Option<&Holder> {
        self.document.holder.as_ref().filter(|holder| holder.lives(Timestamp::now()))
    }
}

/// Reads what is known; `None` if nothing was ever stored.
///
/// # Errors
/// As the repository fails; [`ErrorKind::Stuck`] when it cannot be read: nobody knows then who has the turn.
pub async fn read<T: DeserializeOwned>(repo: &SharedRepo, key: &Key) -> Result<Option<Known<T>>> {
    let Some((bytes, version)) = repo.read_versioned(key).await? else { return Ok(None) };
    let document = seal::read_document(&bytes).map_err(|error| {
        Error::new(ErrorKind::Stuck, format!("cannot read {key} in the repository {}", repo.url()))
            .detail(format!("{error}."))
            .hint("If it runs on no station, remove that file; the job then counts as new.")
    })?;
    Ok(Some(Known { document, version }))
}

/// Stores what is known while nobody has the turn; [`Put::Refused`] if somebody else has changed it since.
///
/// # Errors
/// As the repository fails.
pub async fn store<T: Serialize>(
    repo: &SharedRepo,
    key: &Key,
    before: Option<&Known<T>>,
    record: T,
) -> Result<Put> {
    put(repo, key, before.map(|known| &known.version), None, &record).await
}

async fn put<T: Serialize>(
    repo: &SharedRepo,
    key: &Key,
    before: Option<&Version>,
    holder: Option<Holder>,
    record: &T,
) -> Result<Put> {
    let bytes = seal::write_document(&Document { format: seal::FORMAT, holder, record });
    Ok(match before {
        Some(version) => repo.replace_if(key, &bytes, version).await?,
        None => repo.create(key, &bytes).await?,
    })
}

/// A turn that this process has, and renews until it is ended or dropped.
#[derive(Debug)]
pub struct Turn {
    repo: SharedRepo,
    key: Key,
    token: String,
    lost: watch::Receiver<bool>,
    renewal: JoinHandle<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Turn {
    /// Takes the turn that nobody has, as was just read; `None` if somebody was faster.
    ///
    /// # Errors
    /// As the repository fails.
    pub async fn take<T>(
        repo: &SharedRepo,
        key: &Key,
        before: Option<&Known<T>>,
        record: &T,
    ) -> Result<Option<Self>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let holder = Holder::new()?;
        let token = holder.token.clone();
        let version = before.map(|known| &known.version);
        if put(repo, key, version, Some(holder), record).await? == Put::Refused {
            return Ok(None);
        }
        let (tell, lost) = watch::channel(false);
        let renewal = tokio::spawn(renew::<T>(repo.clone(), key.clone(), token.clone(), tell));
        Ok(Some(Self { repo: repo.clone(), key: key.clone(), token, lost, renewal }))
    }

    /// Ends when the turn is lost: another station may have it now.
    pub async fn lost(&self) {
        // The renewal ends by being aborted only when this is dropped.
        if self.lost.clone().wait_for(|lost| *lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives the turn back with what is known now.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] when somebody else has it by now; otherwise as the repository fails, and the turn then expires.
    pub async fn end<T: Serialize + DeserializeOwned>(self, record: &T) -> Result<()> {
        self.renewal.abort();
        // A renewal that was cut off may still arrive.
        for _ in 0..TRIES {
            let known = own::<T>(&self.repo, &self.key, &self.token).await?;
            if put(&self.repo, &self.key, Some(&known.version), None, record).await? == Put::Stored {
                return Ok(());
            }
        }
        Err(gone(&self.key))
    }
}

/// Reads a turn that must be ours.
async fn own<T: DeserializeOwned>(repo: &SharedRepo, key: &Key, token: &str) -> Result<Known<T>> {
    let known = read::<T>(repo, key).await?;
    known
        .filter(|known| known.document.holder.as_ref().is_some_and(|holder| holder.token == token))
        .ok_or_else(|| gone(key))
}

/// Renews a turn until it is lost.
async fn renew<T>(repo: SharedRepo, key: Key, token: String, lost: watch::Sender<bool>)
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let mut good = Instant::now();
    loop {
        tokio::time::sleep(RENEW).await;
        let renewed = async {
            let known = own::<T>(&repo, &key, &token).await?;
            let Document { holder, record, .. } = known.document;
            let holder = holder.map(|holder| Holder { expires: Timestamp::now() + signed(LIFE), ..holder });
            match put(&repo, &key, Some(&known.version), holder, &record).await? {
                Put::Stored => Ok(()),
                Put::Refused => Err(gone(&key)),
            }
        };
        match renewed.await {
            Ok(()) => good = Instant::now(),
            Err(error) if error.kind() == ErrorKind::Locked || good.elapsed() + MARGIN >= LIFE => {
                tracing::warn!(%error, %key, "lost the turn");
                lost.send_replace(true);
                return;
            }
            Err(error) => tracing::warn!(%error, %key, "could not renew the turn"),
        }
    }
}

fn gone(key: &Key) -> Error {
    Error::new(
        ErrorKind::Locked,
        format!("lost the turn {key}: another station has it, or somebody removed it"),
    )
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).expect("a minute at most")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::dir::DirRepo;
    use std::sync::Arc;

    fn place() -> (tempfile::TempDir, SharedRepo, Key) {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        (directory, Arc::new(repo), Key::new("_jobs/shop/inventory.full.json").unwrap())
    }

    async fn known(repo: &SharedRepo, key: &Key) -> Known<String> {
        read(repo, key).await.unwrap().unwrap()
    }

    /// Has another station begin, which renewed last so long ago.
    async fn held_elsewhere(repo: &SharedRepo, key: &Key, expired: i64) {
        let mut holder = Holder::new().unwrap();
        holder.boot = "another boot".to_owned();
        holder.expires = Timestamp::now() - SignedDuration::from_secs(expired);
        let document = Document { format: 1, holder: Some(holder), record: "began".to_owned() };
        repo.store(key, &seal::write_document(&document)).await.unwrap();
    }

    #[tokio::test]
    async fn of_many_stations_one_gets_the_turn_and_all_read_how_it_ended() {
        let (_directory, repo, key) = place();
        let record = "began".to_owned();
        let all = (0..16).map(|_| Turn::take(&repo, &key, None, &record));
        let taken = futures_util::future::join_all(all).await.into_iter().filter_map(|turn| turn.unwrap());
        let mut taken: Vec<Turn> = taken.collect();
        assert_eq!(taken.len(), 1);
        assert_eq!(known(&repo, &key).await.holder().unwrap().by.pid, std::process::id());
        taken.remove(0).end(&"done".to_owned()).await.unwrap();
        let after = known(&repo, &key).await;
        assert_eq!((after.holder(), after.document.record.as_str()), (None, "done"));
        assert!(Turn::take(&repo, &key, Some(&after), &record).await.unwrap().is_some());
        assert!(
            Turn::take(&repo, &key, Some(&after), &record).await.unwrap().is_none(),
            "it has changed since"
        );
    }

    #[tokio::test]
    async fn the_turn_of_another_station_is_its_own_until_it_has_expired_by_any_clock() {
        let (_directory, repo, key) = place();
        for (expired, lives) in [(-60, true), (20, true), (40, false)] {
            held_elsewhere(&repo, &key, expired).await;
            assert_eq!(known(&repo, &key).await.holder().is_some(), lives, "{expired} s");
        }
    }

    #[tokio::test]
    async fn the_turn_of_a_dead_process_of_this_machine_is_free_at_once() {
        let (_directory, repo, key) = place();
        let mut holder = Holder::new().unwrap();
        holder.by.pid = 1 << 30;
        assert!(!holder.lives(Timestamp::now()));
        let document = Document { format: 1, holder: Some(holder), record: String::new() };
        repo.store(&key, &seal::write_document(&document)).await.unwrap();
        assert!(known(&repo, &key).await.holder().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_renewed_and_whoever_has_lost_it_is_told_and_leaves_the_others_record_alone() {
        let (_directory, repo, key) = place();
        let turn = Turn::take(&repo, &key, None, &"began".to_owned()).await.unwrap().unwrap();
        let first = known(&repo, &key).await.document.holder.unwrap();
        tokio::time::sleep(2 * RENEW).await;
        let renewed = known(&repo, &key).await.document.holder.unwrap();
        assert!(renewed.token == first.token && renewed.expires > first.expires);
        held_elsewhere(&repo, &key, -60).await;
        tokio::time::timeout(2 * RENEW, turn.lost()).await.unwrap();
        assert_eq!(turn.end(&"done".to_owned()).await.unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(known(&repo, &key).await.document.record, "began");
    }

    #[tokio::test]
    async fn a_damaged_document_is_nobodys_leave_to_begin() {
        let (_directory, repo, key) = place();
        repo.store(&key, b"{}").await.unwrap();
        assert_eq!(read::<String>(&repo, &key).await.unwrap_err().kind(), ErrorKind::Stuck);
    }
}
