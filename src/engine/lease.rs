//! A lease in the repository: what a backup, a restore or another long look at it uses, so that nobody removes that meanwhile.
//!
//! `CLUSTER/SYSTEM/lease/ID.json`; docs/formats/repository.md. It expires unless it is renewed, and one whose holder is a dead process of
//! this machine has ended at once. Flag first: whoever uses a backup writes a lease that names it, durably, and only then looks whether a
//! living lease of another removes it; whoever removes one does the same the other way round. So no compare-and-swap is needed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared_lock::{boot, pid_namespace, process_exists};
use crate::engine::journal::hex;
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::repo::layout::{Label, SystemKeys};
use crate::repo::seal::SealError;
use crate::repo::{Key, Put, SharedRepo, seal};
use crate::units::ByteCount;

/// A holder that does not renew for so long has lost the lease.
const LIFE: Duration = Duration::from_secs(120);
const RENEW: Duration = Duration::from_secs(10);
/// The clocks of two machines may differ by so much.
const SKEW: Duration = Duration::from_secs(30);
/// So long before its end a lease that could not be renewed counts as lost.
const MARGIN: Duration = Duration::from_secs(30);
/// So long a copy waits for whoever removes something in this moment.
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(250);
/// What cannot be read may be a lease that lives.
const UNREADABLE: Duration = Duration::from_secs(24 * 3600);
/// A cluster with one system identifier makes one backup at a time.
const BACKUP: &str = "backup";
/// And into one repository one process copies what another one holds of it.
const COPY: &str = "copy";

/// What somebody does with what a lease names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Makes the backup that it names.
    Backup,
    Restore,
    Verify,
    /// Removes what it names.
    Expire,
    /// Copies what it names into this repository, or from it into another one.
    Copy,
}

/// A lease as it is stored: a sealed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub format: u32,
    /// Tells one taking from every other.
    pub token: String,
    pub kind: Purpose,
    /// The backups that it is for.
    pub labels: Vec<Label>,
    pub by: Actor,
    /// The machine's boot and the process's pid namespace: only within both does the pid say whether the holder lives.
    pub boot: String,
    pub pid_namespace: String,
    pub since: Timestamp,
    pub expires: Timestamp,
    /// How far the holder was when it renewed the lease.
    pub progress: Option<LeaseProgress>,
}

/// How far a holder is, for those who ask from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseProgress {
    /// A fragment: `copies`.
    pub phase: String,
    pub done: ByteCount,
    pub total: ByteCount,
    /// Bytes a second, lately.
    pub rate: ByteCount,
    pub at: Timestamp,
}

impl Lease {
    fn new(kind: Purpose, labels: Vec<Label>) -> Result<Self> {
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
        let now = Timestamp::now();
        Ok(Self {
            format: seal::FORMAT,
            token: hex(&random),
            kind,
            labels,
            by: Actor::here(),
            boot: boot(),
            pid_namespace: pid_namespace(),
            since: now,
            expires: now + signed(LIFE),
            progress: None,
        })
    }

    /// Returns whether its holder may still use what it names.
    pub fn lives(&self, now: Timestamp) -> bool {
        now < self.expires + signed(SKEW) && !self.is_of_the_dead()
    }

    /// Tells whether its holder was a process of this machine that is no more.
    fn is_of_the_dead(&self) -> bool {
        let here = !self.boot.is_empty() && self.boot == boot() && self.pid_namespace == pid_namespace();
        here && !process_exists(self.by.pid)
    }
}

/// A lease in a listing; what cannot be read counts as living for a day after its last change.
#[derive(Debug, Clone)]
pub struct Found {
    pub key: Key,
    /// When it was stored, by the store's clock.
    pub modified: Timestamp,
    pub lease: Result<Lease, SealError>,
}

impl Found {
    /// Returns whether somebody may still use what it names, or would name.
    pub fn lives(&self, now: Timestamp) -> bool {
        match &self.lease {
            Ok(lease) => lease.lives(now),
            Err(_) => now < self.modified + signed(UNREADABLE),
        }
    }
}

/// Reads all leases of a cluster with one system identifier.
///
/// # Errors
/// As the repository fails.
pub async fn read_all(repo: &SharedRepo, keys: &SystemKeys) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for listed in repo.list(Some(&keys.leases())).await?.objects {
        // One that was given back meanwhile is none.
        let Some(bytes) = repo.read(&listed.key).await? else { continue };
        found.push(Found { key: listed.key, modified: listed.modified, lease: seal::read_document(&bytes) });
    }
    Ok(found)
}

/// Returns the living leases of those who remove something, and clears away what killed processes of this machine have left.
async fn removers(repo: &SharedRepo, keys: &SystemKeys) -> Result<Vec<Lease>> {
    let now = Timestamp::now();
    let mut removers = Vec::new();
    for found in read_all(repo, keys).await? {
        let lives = found.lives(now);
        let Ok(lease) = found.lease else { continue };
        // The lease of a backup or a copy is taken over by the next one.
        if lease.is_of_the_dead() && ![BACKUP, COPY].map(|name| keys.lease(name)).contains(&found.key) {
            repo.remove(&found.key).await?;
        } else if lives && lease.kind == Purpose::Expire {
            removers.push(lease);
        }
    }
    Ok(removers)
}

/// A lease that this process holds and renews until it is released or dropped.
#[derive(Debug)]
pub struct Held {
    stored: Arc<Stored>,
    /// Asks for a renewal before its time.
    soon: Arc<Notify>,
    lost: watch::Receiver<Option<String>>,
    renewal: JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

#[derive(Debug)]
struct Stored {
    repo: SharedRepo,
    key: Key,
    lease: Mutex<Lease>,
    /// One renewal at a time: of two at once one would find the other's content and take it for a stranger's.
    turn: tokio::sync::Mutex<()>,
}

impl Held {
    /// Takes a lease under a name of its own.
    ///
    /// # Errors
    /// As the repository fails.
    pub async fn take(
        repo: &SharedRepo,
        keys: &SystemKeys,
        kind: Purpose,
        labels: Vec<Label>,
    ) -> Result<Self> {
        let lease = Lease::new(kind, labels)?;
        let key = keys.lease(&lease.token);
        repo.store(&key, &seal::write_document(&lease)).await?;
        Ok(Self::hold(repo, key, lease))
    }

    /// Takes a lease to use finished backups: to restore or to verify them. Read their manifests only afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while one of them is being removed, otherwise as the repository fails.
    pub async fn take_to_use(
        repo: &SharedRepo,
        keys: &SystemKeys,
        kind: Purpose,
        labels: Vec<Label>,
    ) -> Result<Self> {
        let held = Self::take(repo, keys, kind, labels.clone()).await?;
        let remover = removers(repo, keys).await?.into_iter().find_map(|lease| {
            Some((lease.labels.iter().find(|label| labels.contains(label))?.clone(), lease.by))
        });
        let Some((label, by)) = remover else { return Ok(held) };
        held.release().await?;
        Err(Error::new(ErrorKind::Locked, format!("backup {label} is being removed"))
            .detail(format!("{by} expires it."))
            .hint(format!("See what stays: pgherd backup list --cluster {}", keys.cluster())))
    }

    /// Takes the one lease under which a backup is made.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while another process makes one, otherwise as the repository fails.
    pub async fn take_for_backup(repo: &SharedRepo, keys: &SystemKeys, label: Label) -> Result<Self> {
        Self::take_alone(repo, keys, BACKUP, Lease::new(Purpose::Backup, vec![label])?).await
    }

    /// Takes the one lease under which backups are copied into this repository, and waits until nobody removes anything there: whoever begins
    /// to remove later sees the lease. See what is there only afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while another process copies, or removes for longer than is waited; otherwise as the repository fails.
    pub async fn take_for_copy(repo: &SharedRepo, keys: &SystemKeys, labels: Vec<Label>) -> Result<Self> {
        let held = Self::take_alone(repo, keys, COPY, Lease::new(Purpose::Copy, labels)?).await?;
        let since = Instant::now();
        let ended = loop {
            match removers(repo, keys).await.map(|mut found| found.pop()) {
                Ok(None) => return Ok(held),
                Ok(Some(_)) if since.elapsed() < PATIENCE => tokio::time::sleep(POLL).await,
                Ok(Some(lease)) => break removing(keys, &lease),
                Err(error) => break error,
            }
        };
        held.release().await?;
        Err(ended)
    }

    async fn take_alone(repo: &SharedRepo, keys: &SystemKeys, name: &str, lease: Lease) -> Result<Self> {
        let key = keys.lease(name);
        let bytes = seal::write_document(&lease);
        let put = match repo.read_versioned(&key).await? {
            None => repo.create(&key, &bytes).await?,
            Some((found, version)) => match seal::read_document::<Lease>(&found) {
                Ok(other) if other.lives(Timestamp::now()) => return Err(busy(keys, name, &other)),
                Ok(_) => repo.replace_if(&key, &bytes, &version).await?,
                Err(error) => {
                    return Err(Error::new(ErrorKind::Locked, format!("cannot read the lease {key}"))
                        .detail(format!("{error}."))
                        .hint(format!(
                            "If no {name} of this cluster runs on any machine, remove that file from the repository."
                        )));
                }
            },
        };
        match put {
            Put::Stored => Ok(Self::hold(repo, key, lease)),
            Put::Refused => Err(Error::new(
                ErrorKind::Locked,
                format!("another {name} of cluster {} began in this moment", keys.cluster()),
            )
            .hint("See it: pgherd backup list")),
        }
    }

    fn hold(repo: &SharedRepo, key: Key, lease: Lease) -> Self {
        let (tell, lost) = watch::channel(None);
        let soon = Arc::new(Notify::new());
        let turn = tokio::sync::Mutex::default();
        let stored = Arc::new(Stored { repo: repo.clone(), key, lease: Mutex::new(lease), turn });
        let renewal = tokio::spawn(renew(stored.clone(), soon.clone(), tell));
        Self { stored, soon, lost, renewal }
    }

    /// Says how far the holder is; others see another phase at once, and the rest after the next renewal.
    pub fn progress(&self, progress: LeaseProgress) {
        let mut lease = lock(&self.stored.lease);
        if lease.progress.as_ref().is_none_or(|before| before.phase != progress.phase) {
            self.soon.notify_one();
        }
        lease.progress = Some(progress);
    }

    /// Makes sure that the lease is still ours, for a while from now on.
    ///
    /// # Errors
    /// When it is not, or that cannot be told.
    pub async fn confirm(&self) -> Result<()> {
        if self.stored.renew().await? { Ok(()) } else { Err(gone(&self.stored.key)) }
    }

    /// Ends when the lease is lost, with the reason.
    pub async fn lost(&self) -> Error {
        let mut lost = self.lost.clone();
        let why = lost.wait_for(Option::is_some).await.map(|why| why.clone());
        match why {
            Ok(why) => {
                let gone = gone(&self.stored.key);
                match why {
                    Some(why) => gone.detail(why),
                    None => gone,
                }
            }
            // The renewal ends only by being aborted, which happens when this is dropped.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives the lease back.
    ///
    /// # Errors
    /// As the repository fails; the lease then expires by itself.
    pub async fn release(self) -> Result<()> {
        self.renewal.abort();
        let Stored { repo, key, lease, .. } = &*self.stored;
        let token = lock(lease).token.clone();
        let Some(bytes) = repo.read(key).await? else { return Ok(()) };
        if seal::read_document::<Lease>(&bytes).is_ok_and(|found| found.token == token) {
            repo.remove(key).await?;
        }
        Ok(())
    }
}

/// Renews a lease until it is lost.
async fn renew(stored: Arc<Stored>, soon: Arc<Notify>, lost: watch::Sender<Option<String>>) {
    let mut good = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            () = soon.notified() => {}
        }
        match stored.renew().await {
            Ok(true) => good = Instant::now(),
            Ok(false) => {
                lost.send_replace(Some("Somebody else has taken or removed it.".to_owned()));
                return;
            }
            Err(error) if good.elapsed() + MARGIN >= LIFE => {
                lost.send_replace(Some(format!("It could not be renewed: {error}.")));
                return;
            }
            Err(error) => tracing::warn!(%error, key = %stored.key, "could not renew the lease"),
        }
    }
}

impl Stored {
    /// Stores the lease anew; `false` if it is no longer ours.
    async fn renew(&self) -> Result<bool> {
        let _turn = self.turn.lock().await;
        let Some((bytes, version)) = self.repo.read_versioned(&self.key).await? else { return Ok(false) };
        let mut renewed = lock(&self.lease).clone();
        let now = Timestamp::now();
        let ours = seal::read_document::<Lease>(&bytes).is_ok_and(|found| found.token == renewed.token);
        // One that has ended may have been passed over by whoever removes what it names.
        if !ours || now >= renewed.expires {
            return Ok(false);
        }
        renewed.expires = now + signed(LIFE);
        if self.repo.replace_if(&self.key, &seal::write_document(&renewed), &version).await? == Put::Refused {
            return Ok(false);
        }
        lock(&self.lease).expires = renewed.expires;
        Ok(true)
    }
}

fn lock(lease: &Mutex<Lease>) -> MutexGuard<'_, Lease> {
    lease.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).expect("a day at most")
}

fn busy(keys: &SystemKeys, name: &str, lease: &Lease) -> Error {
    let label = lease.labels.first().map(|label| format!(" {label}")).unwrap_or_default();
    let since = lease.since.strftime("%Y-%m-%d %H:%M:%S UTC");
    let what = match name {
        COPY => format!("backups of cluster {} are being copied here", keys.cluster()),
        _ => format!("cluster {} is making the backup{label}", keys.cluster()),
    };
    Error::new(ErrorKind::Locked, what)
        .detail(format!("Begun by {} at {since}.", lease.by))
        .hint("Wait until it has ended; \"pgherd status\" shows how far it is.")
}

fn removing(keys: &SystemKeys, lease: &Lease) -> Error {
    let since = lease.since.strftime("%Y-%m-%d %H:%M:%S UTC");
    Error::new(ErrorKind::Locked, format!("backups of cluster {} are being removed here", keys.cluster()))
        .detail(format!("By {}, since {since}. Nothing was copied.", lease.by))
        .hint("Copy when that has ended.")
}

fn gone(key: &Key) -> Error {
    Error::failed(format!("lost the lease {key} in the repository"))
        .detail("What it kept may have been removed meanwhile.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::system::SystemIdentifier;
    use crate::repo;
    use crate::repo::layout::ClusterKeys;

    struct Place {
        _directory: tempfile::TempDir,
        repo: SharedRepo,
        keys: SystemKeys,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().join("repository").display());
        let keys = ClusterKeys::new("inventory").system(SystemIdentifier::new(7).unwrap());
        Place { repo: repo::create(&repo::Location::plain(url)).unwrap(), keys, _directory: directory }
    }

    fn label() -> Label {
        "20261121T100203Z-full".parse().unwrap()
    }

    /// Stores what another process would have stored under the name of the one backup.
    async fn held_by(place: &Place, change: impl FnOnce(&mut Lease)) {
        let mut lease = Lease::new(Purpose::Backup, vec![label()]).unwrap();
        change(&mut lease);
        place.repo.store(&place.keys.lease(BACKUP), &seal::write_document(&lease)).await.unwrap();
    }

    async fn take(place: &Place) -> Result<Held> {
        Held::take_for_backup(&place.repo, &place.keys, label()).await
    }

    /// No process has this number: it is beyond what Linux gives.
    fn dead(lease: &mut Lease) {
        lease.by.pid = 1 << 30;
    }

    fn elsewhere(lease: &mut Lease) {
        lease.boot = "another machine".to_owned();
        lease.by.host = "db2".to_owned();
        dead(lease);
    }

    #[tokio::test]
    async fn a_second_backup_is_told_who_makes_the_first_and_may_begin_when_it_has_ended() {
        let place = place();
        let held = take(&place).await.unwrap();
        let refused = take(&place).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        assert!(refused.detail_text().unwrap().contains(&format!("pid {}", std::process::id())));
        held.release().await.unwrap();
        take(&place).await.unwrap();
    }

    #[tokio::test]
    async fn the_lease_of_a_dead_process_of_this_machine_is_free_at_once() {
        let place = place();
        held_by(&place, dead).await;
        take(&place).await.unwrap();
    }

    #[tokio::test]
    async fn a_lease_of_another_machine_lives_until_it_has_expired_by_any_clock() {
        let place = place();
        held_by(&place, elsewhere).await;
        assert!(take(&place).await.is_err());
        held_by(&place, |lease| {
            elsewhere(lease);
            lease.expires = Timestamp::now() - SignedDuration::from_secs(1);
        })
        .await;
        assert!(take(&place).await.is_err(), "the clocks of two machines differ");
        held_by(&place, |lease| {
            elsewhere(lease);
            lease.expires = Timestamp::now() - signed(SKEW) - SignedDuration::from_secs(1);
        })
        .await;
        take(&place).await.unwrap();
    }

    #[tokio::test]
    async fn a_lease_that_cannot_be_read_is_somebody_s_for_a_day() {
        let place = place();
        place.repo.store(&place.keys.lease(BACKUP), b"{}").await.unwrap();
        assert_eq!(take(&place).await.unwrap_err().kind(), ErrorKind::Locked);
        let found = read_all(&place.repo, &place.keys).await.unwrap();
        assert!(found[0].lease.is_err());
        assert!(found[0].lives(found[0].modified + SignedDuration::from_hours(23)));
        assert!(!found[0].lives(found[0].modified + SignedDuration::from_hours(25)));
    }

    #[tokio::test]
    async fn whoever_has_lost_the_lease_is_told_before_it_commits_and_leaves_the_other_s_alone() {
        let place = place();
        let held = take(&place).await.unwrap();
        held.confirm().await.unwrap();
        held_by(&place, elsewhere).await;
        assert!(held.confirm().await.is_err());
        held.release().await.unwrap();
        assert_eq!(read_all(&place.repo, &place.keys).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_lease_that_has_expired_is_lost_although_nobody_has_taken_it() {
        let place = place();
        let held = take(&place).await.unwrap();
        lock(&held.stored.lease).expires = Timestamp::now();
        assert!(held.confirm().await.is_err());
    }

    #[tokio::test]
    async fn another_phase_is_seen_at_once() {
        let place = place();
        let held = take(&place).await.unwrap();
        held.progress(LeaseProgress {
            phase: "copies".to_owned(),
            done: ByteCount(1),
            total: ByteCount(2),
            rate: ByteCount(0),
            at: Timestamp::now(),
        });
        let seen = async {
            loop {
                let found = read_all(&place.repo, &place.keys).await.unwrap();
                if found[0].lease.as_ref().is_ok_and(|lease| lease.progress.is_some()) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), seen).await.unwrap();
    }

    #[tokio::test]
    async fn what_dead_processes_of_this_machine_have_left_goes_with_the_next_use() {
        let place = place();
        for (change, token) in [(dead as fn(&mut Lease), "dead"), (elsewhere, "elsewhere")] {
            let mut lease = Lease::new(Purpose::Restore, vec![label()]).unwrap();
            change(&mut lease);
            place.repo.store(&place.keys.lease(token), &seal::write_document(&lease)).await.unwrap();
        }
        held_by(&place, dead).await;
        let held = Held::take_to_use(&place.repo, &place.keys, Purpose::Verify, vec![label()]).await.unwrap();
        let left = read_all(&place.repo, &place.keys).await.unwrap();
        let names: Vec<&str> = left.iter().map(|found| found.key.name()).collect();
        assert!(names.contains(&"elsewhere.json") && names.contains(&"backup.json"), "{names:?}");
        assert_eq!(names.len(), 3, "{names:?}");
        held.release().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_waits_until_nobody_removes_anything_but_not_for_ever() {
        let place = place();
        let expiry = Held::take(&place.repo, &place.keys, Purpose::Expire, Vec::new()).await.unwrap();
        let copy = || Held::take_for_copy(&place.repo, &place.keys, vec![label()]);
        let begun = Instant::now();
        let refused = copy().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        assert_eq!(refused.what(), "backups of cluster inventory are being removed here");
        assert!(begun.elapsed() >= PATIENCE);
        let (held, ()) = tokio::join!(copy(), async {
            tokio::time::sleep(PATIENCE / 2).await;
            expiry.release().await.unwrap();
        });
        held.unwrap();
        let left = read_all(&place.repo, &place.keys).await.unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[tokio::test]
    async fn many_may_use_one_backup() {
        let place = place();
        let one = Held::take(&place.repo, &place.keys, Purpose::Restore, vec![label()]).await.unwrap();
        let two = Held::take(&place.repo, &place.keys, Purpose::Verify, vec![label()]).await.unwrap();
        assert_eq!(read_all(&place.repo, &place.keys).await.unwrap().len(), 2);
        one.release().await.unwrap();
        two.release().await.unwrap();
        assert!(read_all(&place.repo, &place.keys).await.unwrap().is_empty());
    }
}
