//! The operation lock in the repository: one operator at a time changes a cluster, from whichever machine.
//!
//! `CLUSTER/lock.json` names its holder and expires unless it is renewed; docs/formats/repository.md. The lock of
//! [`lock`](crate::engine::lock) keeps processes of one machine apart and is taken first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::engine::journal::hex;
use crate::engine::record::{Actor, OperationId};
use crate::error::{Error, ErrorKind, Result};
use crate::repo::layout::ClusterKeys;
use crate::repo::{Key, Put, SharedRepo, Version, seal};

/// A holder that does not renew for so long no longer holds the lock.
pub(super) const LIFE: Duration = Duration::from_secs(60);
pub(super) const RENEW: Duration = Duration::from_secs(15);
/// The clocks of two operators' machines may differ by so much.
pub(super) const SKEW: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(500);
/// How often the lock is stored anew while its version is not the one that we know.
const TRIES: u32 = 3;
/// So long before its end a lock that could not be renewed counts as lost: what was begun then still ends within it.
pub(super) const MARGIN: Duration = Duration::from_secs(15);

/// `lock.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    pub format: u32,
    /// Tells one taking of the lock from every other.
    pub token: String,
    /// `None` while the operation is being planned.
    pub operation: Option<OperationId>,
    pub by: Actor,
    /// The machine's boot and the process's pid namespace: only within both does the pid say whether the holder lives.
    pub boot: String,
    pub pid_namespace: String,
    pub since: Timestamp,
    pub expires: Timestamp,
}

/// The lock of a cluster in its repository, renewed until it is released.
#[derive(Debug)]
pub struct SharedLock {
    repo: SharedRepo,
    key: Key,
    cluster: String,
    state: Arc<Mutex<State>>,
    lost: watch::Receiver<Option<Error>>,
    renewal: JoinHandle<()>,
    is_given_back: AtomicBool,
}

#[derive(Debug)]
struct State {
    held: Held,
    version: Version,
}

impl Drop for SharedLock {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Who may have the lock although it names an unfinished operation.
#[derive(Debug, Clone, Copy)]
pub enum Claim<'a> {
    /// A new operation.
    New,
    /// The operation that is to be resumed, undone or abandoned.
    Operation(&'a OperationId),
    /// The same, although its holder may live: the journal has stopped it.
    TakeOver(&'a OperationId),
}

impl SharedLock {
    /// Takes the lock of `cluster`; waits up to `wait` for a holder that lives. `ended` tells whether the journal of an operation is
    /// here and says that it has ended: its holder then only did not get to release the lock.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] with the holder, or with the unfinished operation that it left; otherwise as the repository fails.
    pub async fn take(
        repo: SharedRepo,
        cluster: &str,
        claim: Claim<'_>,
        wait: Duration,
        ended: &(dyn Fn(&OperationId) -> bool + Sync),
    ) -> Result<Self> {
        let key = ClusterKeys::new(cluster).lock();
        let deadline = Instant::now() + wait;
        let mut held = fresh()?;
        if let Claim::Operation(id) | Claim::TakeOver(id) = claim {
            held.operation = Some(id.clone());
        }
        loop {
            held.since = Timestamp::now();
            held.expires = held.since + life();
            let bytes = seal::write_document(&held);
            let put = match read(&repo, &key).await? {
                None => repo.create(&key, &bytes).await?,
                Some((other, version)) => match other.state(claim, ended) {
                    Standing::Free => repo.replace_if(&key, &bytes, &version).await?,
                    Standing::Unfinished(id) => return Err(unfinished(cluster, &other, &id)),
                    Standing::Held if Instant::now() >= deadline => {
                        return Err(locked(cluster, &other, wait));
                    }
                    Standing::Held => Put::Refused,
                },
            };
            match put {
                Put::Stored => return Self::hold(repo, key, cluster, held).await,
                Put::Refused => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn hold(repo: SharedRepo, key: Key, cluster: &str, held: Held) -> Result<Self> {
        let version = match read(&repo, &key).await? {
            Some((now, version)) if now.token == held.token => version,
            Some((other, _)) => return Err(locked(cluster, &other, Duration::ZERO)),
            None => return Err(gone(cluster)),
        };
        let state = Arc::new(Mutex::new(State { held, version }));
        let (tell, lost) = watch::channel(None);
        let renewal = tokio::spawn(renew(repo.clone(), key.clone(), cluster.to_owned(), state.clone(), tell));
        let is_given_back = AtomicBool::new(false);
        Ok(Self { repo, key, cluster: cluster.to_owned(), state, lost, renewal, is_given_back })
    }

    /// Writes into the lock which operation it is held for, so that it stays held if this process dies.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if somebody else has the lock by now, otherwise as the repository fails.
    pub async fn name_operation(&self, operation: &OperationId) -> Result<()> {
        write(&self.repo, &self.key, &self.cluster, &self.state, Some(operation)).await
    }

    /// Ends when the lock is lost, with the reason.
    pub async fn lost(&self) -> Error {
        let mut lost = self.lost.clone();
        if lost.wait_for(Option::is_some).await.is_err() {
            // The renewal ends only by being aborted, which happens when this lock is dropped.
            std::future::pending::<()>().await;
        }
        let why = lost.borrow();
        why.as_ref().map_or_else(|| gone(&self.cluster), again)
    }

    /// As [`SharedLock::release`]; what cannot be given back expires by itself.
    pub async fn give_back(&self, unfinished: bool) {
        if let Err(error) = self.release(unfinished).await {
            tracing::warn!(%error, "could not release the lock in the repository; it expires by itself");
        }
    }

    /// Gives the lock back. One that was held for an operation that has not ended stays, and names it.
    ///
    /// # Errors
    /// As the repository fails; the lock then expires by itself.
    pub async fn release(&self, unfinished: bool) -> Result<()> {
        self.renewal.abort();
        // Once given back it is somebody else's; and the way to the repository may be gone with what was removed under it.
        if self.is_given_back.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let token = self.state.lock().await.held.token.clone();
        let Some((mut held, version)) = read(&self.repo, &self.key).await? else { return Ok(()) };
        if held.token != token {
            return Ok(());
        }
        // Nobody drives it any more, whatever the clocks say.
        held.expires = held.since;
        // Replacing it first makes sure that it is ours that is removed.
        let bytes = seal::write_document(&held);
        if self.repo.replace_if(&self.key, &bytes, &version).await? == Put::Stored && !unfinished {
            self.repo.remove(&self.key).await?;
        }
        Ok(())
    }
}

/// Returns who holds the lock of a cluster, or left an unfinished operation in it.
///
/// # Errors
/// As the repository fails, or when the lock is damaged.
pub async fn holder(repo: &SharedRepo, cluster: &str) -> Result<Option<Held>> {
    Ok(read(repo, &ClusterKeys::new(cluster).lock()).await?.map(|(held, _)| held))
}

/// Sees that nobody holds the lock of a cluster; `ended` as of [`SharedLock::take`].
///
/// # Errors
/// As [`SharedLock::take`].
pub async fn refuse_held(
    repo: &SharedRepo,
    cluster: &str,
    ended: &(dyn Fn(&OperationId) -> bool + Sync),
) -> Result<()> {
    let Some(held) = holder(repo, cluster).await? else { return Ok(()) };
    match held.state(Claim::New, ended) {
        Standing::Free => Ok(()),
        Standing::Held => Err(locked(cluster, &held, Duration::ZERO)),
        Standing::Unfinished(id) => Err(unfinished(cluster, &held, &id)),
    }
}

enum Standing {
    Free,
    Held,
    /// Nobody drives the operation any more, and it has not ended.
    Unfinished(OperationId),
}

impl Held {
    fn state(&self, claim: Claim<'_>, ended: &(dyn Fn(&OperationId) -> bool + Sync)) -> Standing {
        let wanted = match claim {
            Claim::New => None,
            Claim::Operation(id) | Claim::TakeOver(id) => Some(id),
        };
        let same = self.operation.is_some() && self.operation.as_ref() == wanted;
        if self.lives() && !(same && matches!(claim, Claim::TakeOver(_))) {
            return Standing::Held;
        }
        match &self.operation {
            Some(left) if !same && !ended(left) => Standing::Unfinished(left.clone()),
            Some(_) | None => Standing::Free,
        }
    }

    /// Returns whether the holder may still do something.
    pub fn lives(&self) -> bool {
        if self.expires <= self.since {
            return false;
        }
        if self.boot == boot() && self.pid_namespace == pid_namespace() && !self.boot.is_empty() {
            return process_exists(self.by.pid) && Timestamp::now() < self.expires + skew();
        }
        Timestamp::now() < self.expires + skew()
    }
}

fn fresh() -> Result<Held> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    let now = Timestamp::now();
    Ok(Held {
        format: seal::FORMAT,
        token: hex(&random),
        operation: None,
        by: Actor::here(),
        boot: boot(),
        pid_namespace: pid_namespace(),
        since: now,
        expires: now + life(),
    })
}

pub(super) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub(super) fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default()
}

pub(super) fn process_exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn life() -> SignedDuration {
    SignedDuration::try_from(LIFE).expect("a minute")
}

fn skew() -> SignedDuration {
    SignedDuration::try_from(SKEW).expect("half a minute")
}

async fn read(repo: &SharedRepo, key: &Key) -> Result<Option<(Held, Version)>> {
    let Some((bytes, version)) = repo.read_versioned(key).await? else { return Ok(None) };
    let held = seal::read_document(&bytes).map_err(|error| {
        Error::new(ErrorKind::Stuck, format!("cannot read the lock {key} in the repository {}", repo.url()))
            .detail(format!("{error}."))
            .hint("If no operation runs on any machine, remove that file.")
    })?;
    Ok(Some((held, version)))
}

/// Renews the lock until it is lost.
async fn renew(
    repo: SharedRepo,
    key: Key,
    cluster: String,
    state: Arc<Mutex<State>>,
    lost: watch::Sender<Option<Error>>,
) {
    let mut good = Instant::now();
    loop {
        tokio::time::sleep(RENEW).await;
        match write(&repo, &key, &cluster, &state, None).await {
            Ok(()) => good = Instant::now(),
            Err(error) if error.kind() == ErrorKind::Locked => {
                lost.send_replace(Some(error));
                return;
            }
            Err(error) if good.elapsed() + MARGIN >= LIFE => {
                // What was begun is neither done nor undone.
                let what = format!("lost the lock of cluster {cluster}: it could not be renewed");
                let why = Error::new(ErrorKind::Stuck, what)
                    .detail("Another operator may take it now. Nothing further was begun.")
                    .source(error);
                lost.send_replace(Some(why));
                return;
            }
            Err(error) => tracing::warn!(%error, cluster, "could not renew the lock"),
        }
    }
}

/// Stores what the state says, if the lock is still ours; from now on for this operation, if one is named.
///
/// One write after the other: of a renewal and a naming at the same time one would find the other's version.
async fn write(
    repo: &SharedRepo,
    key: &Key,
    cluster: &str,
    state: &Mutex<State>,
    operation: Option<&OperationId>,
) -> Result<()> {
    let mut state = state.lock().await;
    if let Some(operation) = operation {
        state.held.operation = Some(operation.clone());
    }
    for _ in 0..TRIES {
        state.held.expires = Timestamp::now() + life();
        let put = repo.replace_if(key, &seal::write_document(&state.held), &state.version).await?;
        match read(repo, key).await? {
            // An answer that was lost leaves a version that we do not know; the token says that it is ours.
            Some((held, version)) if held.token == state.held.token => {
                state.version = version;
                if put == Put::Stored {
                    return Ok(());
                }
            }
            Some((other, _)) => return Err(locked(cluster, &other, Duration::ZERO)),
            None => return Err(gone(cluster)),
        }
    }
    Err(Error::failed(format!("the lock of cluster {cluster} changed whenever it was renewed")))
}

fn again(error: &Error) -> Error {
    let made = Error::new(error.kind(), error.what());
    match error.detail_text() {
        Some(detail) => made.detail(detail),
        None => made,
    }
}

fn gone(cluster: &str) -> Error {
    Error::new(ErrorKind::Locked, format!("lost the lock of cluster {cluster}: somebody removed it"))
        .detail("Another operator may be at work. Nothing further was begun.")
        .hint("See what runs: pgherd operation list")
}

fn locked(cluster: &str, held: &Held, waited: Duration) -> Error {
    let doing = match &held.operation {
        Some(id) => format!("operation {id}"),
        None => "a process that is still planning".to_owned(),
    };
    let after = if waited.is_zero() {
        String::new()
    } else {
        format!(" Waited {} for it.", crate::units::human_duration(waited))
    };
    let since = held.since.strftime("%Y-%m-%d %H:%M:%S UTC");
    Error::new(ErrorKind::Locked, format!("cluster {cluster} is locked by {doing}"))
        .detail(format!(
            "Held in the repository by {} since {since}; unless it is renewed, until {}.{after}",
            held.by,
            (held.expires + skew()).strftime("%H:%M:%S UTC")
        ))
        .hint(match &held.operation {
            Some(id) => format!(
                "Wait for it with --wait-lock. If that station is gone, go on with it from here after that, or at once with --force: {}",
                id.takeover_command()
            ),
            None => "Wait for it with --wait-lock.".to_owned(),
        })
}

fn unfinished(cluster: &str, held: &Held, id: &OperationId) -> Error {
    Error::new(ErrorKind::Locked, format!("cluster {cluster} has the unfinished operation {id}"))
        .detail(format!("It was begun by {}; its journal is there.", held.by))
        .hint(format!(
            "Where its journal is: {}   or   pgherd operation abandon {id} --reason TEXT. On another station: {}",
            id.resume_command(),
            id.takeover_command()
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::dir::DirRepo;

    const CLUSTER: &str = "inventory";
    const NO_WAIT: Duration = Duration::ZERO;

    fn repository() -> (tempfile::TempDir, SharedRepo) {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        (directory, Arc::new(repo))
    }

    fn id(text: &str) -> OperationId {
        OperationId(text.to_owned())
    }

    async fn take(repo: &SharedRepo, claim: Claim<'_>) -> Result<SharedLock> {
        SharedLock::take(repo.clone(), CLUSTER, claim, NO_WAIT, &|id| id.as_str() == "ended").await
    }

    /// Puts a lock there as another machine, or a dead process of this one, would have left it.
    async fn leave(repo: &SharedRepo, change: impl FnOnce(&mut Held)) {
        let mut held = fresh().unwrap();
        change(&mut held);
        repo.store(&ClusterKeys::new(CLUSTER).lock(), &seal::write_document(&held)).await.unwrap();
    }

    fn dead(held: &mut Held) {
        // No process has the highest number that the kernel gives (pid_max is at most 4194304, and numbers stay below it).
        held.by.pid = 4_194_304;
    }

    fn elsewhere(held: &mut Held) {
        held.boot = "another boot".to_owned();
    }

    #[tokio::test]
    async fn a_second_operator_is_told_who_holds_the_cluster() {
        let (_directory, repo) = repository();
        let lock = take(&repo, Claim::New).await.unwrap();
        lock.name_operation(&id("7f3a")).await.unwrap();
        let error = take(&repo, Claim::New).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        assert_eq!(error.what(), "cluster inventory is locked by operation 7f3a");
        lock.release(false).await.unwrap();
        assert_eq!(holder(&repo, CLUSTER).await.unwrap(), None);
        take(&repo, Claim::New).await.unwrap();
    }

    #[tokio::test]
    async fn of_many_operators_at_once_one_gets_the_lock() {
        let (_directory, repo) = repository();
        let all = (0..16).map(|_| take(&repo, Claim::New));
        let won = futures_util::future::join_all(all).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(won, 1);
    }

    #[tokio::test]
    async fn what_a_dead_process_was_only_planning_is_taken_at_once() {
        let (_directory, repo) = repository();
        leave(&repo, dead).await;
        take(&repo, Claim::New).await.unwrap();
    }

    #[tokio::test]
    async fn an_operation_that_a_dead_process_left_keeps_others_away_until_it_is_ended() {
        let (_directory, repo) = repository();
        let begun = |held: &mut Held| {
            dead(held);
            held.operation = Some(id("7f3a"));
        };
        leave(&repo, begun).await;
        let error = take(&repo, Claim::New).await.unwrap_err();
        assert_eq!(error.what(), "cluster inventory has the unfinished operation 7f3a");
        assert!(take(&repo, Claim::Operation(&id("90c1"))).await.is_err());
        let lock = take(&repo, Claim::Operation(&id("7f3a"))).await.unwrap();
        lock.release(true).await.unwrap();
        assert!(take(&repo, Claim::New).await.is_err(), "it stays until the operation has ended");
        let lock = take(&repo, Claim::Operation(&id("7f3a"))).await.unwrap();
        lock.release(false).await.unwrap();
        take(&repo, Claim::New).await.unwrap();
    }

    #[tokio::test]
    async fn an_operation_whose_journal_says_that_it_ended_keeps_nobody_away() {
        let (_directory, repo) = repository();
        leave(&repo, |held| {
            dead(held);
            held.operation = Some(id("ended"));
        })
        .await;
        take(&repo, Claim::New).await.unwrap();
    }

    #[tokio::test]
    async fn another_machine_holds_its_lock_until_it_has_expired_by_any_clock() {
        let (_directory, repo) = repository();
        leave(&repo, elsewhere).await;
        assert_eq!(take(&repo, Claim::New).await.unwrap_err().kind(), ErrorKind::Locked);
        let aged = |seconds: i64| {
            move |held: &mut Held| {
                elsewhere(held);
                held.since = Timestamp::now() - SignedDuration::from_secs(600);
                held.expires = Timestamp::now() - SignedDuration::from_secs(seconds);
            }
        };
        leave(&repo, aged(20)).await;
        assert_eq!(take(&repo, Claim::New).await.unwrap_err().kind(), ErrorKind::Locked, "within the skew");
        leave(&repo, aged(40)).await;
        take(&repo, Claim::New).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_renewed_and_its_loss_is_noticed() {
        let (_directory, repo) = repository();
        let lock = take(&repo, Claim::New).await.unwrap();
        let before = holder(&repo, CLUSTER).await.unwrap().unwrap();
        tokio::time::sleep(2 * RENEW).await;
        let after = holder(&repo, CLUSTER).await.unwrap().unwrap();
        assert_eq!(after.token, before.token);
        assert!(after.expires > before.expires);
        leave(&repo, elsewhere).await;
        let lost = tokio::time::timeout(2 * RENEW, lock.lost()).await.unwrap();
        assert_eq!(lost.kind(), ErrorKind::Locked);
        lock.release(false).await.unwrap();
        assert!(holder(&repo, CLUSTER).await.unwrap().is_some(), "what is somebody else's is left alone");
    }

    #[tokio::test]
    async fn a_renewal_while_the_operation_is_named_does_not_take_the_lock_for_anothers() {
        let (_directory, repo) = repository();
        let lock = take(&repo, Claim::New).await.unwrap();
        let named = id("7f3a");
        let renewals = (0..8).map(|_| write(&lock.repo, &lock.key, CLUSTER, &lock.state, None));
        let (renewed, naming) =
            tokio::join!(futures_util::future::join_all(renewals), lock.name_operation(&named));
        naming.unwrap();
        for ended in renewed {
            ended.unwrap();
        }
        // Nor does an answer that was lost: what is stored then is ours and of another version.
        let (held, _) = read(&repo, &lock.key).await.unwrap().unwrap();
        repo.store(&lock.key, &seal::write_document(&held)).await.unwrap();
        lock.name_operation(&named).await.unwrap();
        assert_eq!(holder(&repo, CLUSTER).await.unwrap().unwrap().operation, Some(named));
    }

    #[tokio::test(start_paused = true)]
    async fn a_repository_that_is_gone_loses_the_lock_before_it_expires() {
        let (directory, repo) = repository();
        let lock = take(&repo, Claim::New).await.unwrap();
        std::fs::remove_dir_all(directory.path().join("repository")).unwrap();
        let begun = Instant::now();
        let lost = tokio::time::timeout(LIFE, lock.lost()).await.unwrap();
        assert_eq!(lost.what(), "lost the lock of cluster inventory: it could not be renewed");
        assert_eq!(lost.kind(), ErrorKind::Stuck);
        assert!(begun.elapsed() < LIFE);
    }

    #[tokio::test]
    async fn a_damaged_lock_is_not_taken_for_a_free_one() {
        let (_directory, repo) = repository();
        repo.store(&ClusterKeys::new(CLUSTER).lock(), b"{}").await.unwrap();
        assert_eq!(take(&repo, Claim::New).await.unwrap_err().kind(), ErrorKind::Stuck);
    }
}
