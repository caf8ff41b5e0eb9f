//! `backup expire`, on the node: shows what goes, or removes it.
//!
//! Every order of removal leaves a repository that can be restored from: a manifest goes before its data, a backup before the ones whose
//! chunks it has, WAL from the oldest on. So whoever is killed in the middle leaves only what the next run removes. Before anything
//! is removed a lease says what; whoever wants to use that from then on is told, and what somebody used before stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

mod exports;

use self::exports::{ExpiredExport, LockedExport};
use super::holdings::{self, Holdings, OfSystem};
use super::pin::Pin;
use super::retention::{Decision, Fate, Rules, State, Verdict, WalVerdict, decide};
use crate::engine::lease::{self, Held, Purpose};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::{Agreed, ExpireBackups, Progress, Reporter};
use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::WalFile;
use crate::repo::export::ExportKeys;
use crate::repo::layout::{ClusterKeys, Label};
use crate::repo::{self, Key, SharedRepo, document};
use crate::units::ByteCount;

/// A lease that ended so long ago is of no use to anybody.
const DEAD_LEASE: SignedDuration = SignedDuration::from_hours(24);
/// An upload that nobody has added to for so long has nobody any more.
const DEAD_UPLOAD: SignedDuration = SignedDuration::from_hours(24);
const TELL: Duration = Duration::from_millis(250);

/// What goes or is gone, and what stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expired {
    pub cluster: String,
    /// The repository's URL.
    pub url: String,
    pub decision: Decision,
    /// Exports of partitions that go: their rows are older than they are kept.
    pub exports: Vec<ExpiredExport>,
    /// Exports that would go, but the store lets nobody remove them yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locked_exports: Vec<LockedExport>,
    /// `None`: only looked.
    pub removed: Option<Removed>,
    /// What was agreed to go and stays all the same: somebody began to use it.
    pub spared: Vec<Label>,
    /// Objects that pgherd did not put there; they stay.
    pub strays: Vec<Key>,
    /// Documents that cannot be used; they keep what they might be about.
    pub unusable: Vec<Unusable>,
}

/// An object that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unusable {
    pub object: Key,
    pub why: String,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    pub backups: Vec<Label>,
    pub wal_files: u64,
    pub exports: u64,
    /// Of uploads that nobody finished, because whoever wrote was killed: what the store kept of them. Nobody saw it.
    pub uploads: u64,
    pub freed: ByteCount,
}

impl Expired {
    /// Tells whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.decision.is_empty() && self.exports.is_empty()
    }

    /// Returns what the operator agrees to.
    pub fn agreement(&self) -> Agreed {
        Agreed {
            backups: self.decision.going().map(|verdict| verdict.label.clone()).collect(),
            exports: self.exports.iter().map(|export| export.folder.clone()).collect(),
        }
    }

    pub fn freed(&self) -> ByteCount {
        let exports: u64 = self.exports.iter().map(|export| export.stored.0).sum();
        ByteCount(self.decision.freed().0 + exports)
    }
}

/// Looks, or removes what was agreed to go.
///
/// # Errors
/// As the repository fails; what was removed by then is whole, and the next run goes on. [`ErrorKind::Interrupted`] when nobody listens
/// any more.
pub async fn run(request: &ExpireBackups, reporter: &Reporter) -> Result<Expired> {
    let repo = repo::open(&request.repository)?;
    if request.agreed.is_some() && repo.object_lock().is_some() {
        repo::lock_again(&request.repository, &request.cluster)?;
    }
    run_in(repo, request, reporter).await
}

async fn run_in(repo: SharedRepo, request: &ExpireBackups, reporter: &Reporter) -> Result<Expired> {
    let rules =
        Rules { window: request.window, keep_full: request.keep_full, minimum_full: request.minimum_full };
    let holdings = Holdings::read_all(&repo, &request.cluster, Timestamp::now()).await?;
    let decision = decide(&rules, &holdings.systems(), &|_| false, Timestamp::now());
    let exports = exports::old(&*repo, &holdings, &request.exports, Timestamp::now()).await?;
    let unusable = holdings.systems.iter().flat_map(|of| &of.unusable).chain(&exports.unusable);
    let mut expired = Expired {
        cluster: request.cluster.clone(),
        url: request.repository.url.clone(),
        removed: None,
        spared: Vec::new(),
        strays: holdings.strays.iter().map(|listed| listed.key.clone()).collect(),
        unusable: unusable
            .map(|(key, error)| Unusable { object: key.clone(), why: error.to_string() })
            .collect(),
        decision,
        exports: exports.go,
        locked_exports: exports.locked,
    };
    if let Some(agreed) = &request.agreed {
        let exports: Vec<ExpiredExport> = expired
            .exports
            .iter()
            .filter(|export| agreed.exports.contains(&export.folder))
            .cloned()
            .collect();
        let total = expired.freed();
        let agreed: BTreeSet<Label> = agreed.backups.iter().cloned().collect();
        let mut run = Run {
            repo,
            name: &request.cluster,
            cluster: ClusterKeys::new(&request.cluster),
            rules,
            holdings,
            agreed,
            reporter,
            told: Instant::now(),
            removed: Removed::default(),
        };
        expired.decision = run.all().await?;
        for export in &exports {
            run.remove_export(export, total).await?;
        }
        run.sweep().await;
        let stays = |label: &&Label| !run.removed.backups.contains(label);
        expired.spared = run.agreed.iter().filter(stays).cloned().collect();
        expired.removed = Some(run.removed);
    }
    Ok(expired)
}

struct Run<'a> {
    repo: SharedRepo,
    name: &'a str,
    cluster: ClusterKeys,
    rules: Rules,
    holdings: Holdings,
    agreed: BTreeSet<Label>,
    reporter: &'a Reporter,
    told: Instant,
    removed: Removed,
}

impl Run<'_> {
    /// Removes, and returns what was decided in the end.
    async fn all(&mut self) -> Result<Decision> {
        let mut leases = Vec::new();
        let ended = self.under_leases(&mut leases).await;
        for (_, held) in leases {
            if let Err(error) = held.release().await {
                tracing::warn!(%error, "could not give the lease back; it expires by itself");
            }
        }
        ended
    }

    async fn under_leases(&mut self, leases: &mut Vec<(SystemIdentifier, Held)>) -> Result<Decision> {
        let first = self.decide();
        let named: BTreeSet<Label> = first.going().map(|verdict| verdict.label.clone()).collect();
        for system in self.holdings.systems.iter().map(|of| of.keys.clone()) {
            let labels: Vec<Label> =
                going_of(&first, system.system()).map(|verdict| verdict.label.clone()).collect();
            // Also for WAL alone: whoever copies a backup here waits for it.
            if !labels.is_empty() || goes_of_wal(&first.wal, system.system()) {
                leases
                    .push((system.system(), Held::take(&self.repo, &system, Purpose::Expire, labels).await?));
            }
        }
        // Whoever began to use one of them before our leases were there is seen now; whoever begins later sees ours.
        self.look_again().await?;
        let decision = self.decide();
        // From the newest on: a backup has chunks in older ones only.
        // What came free between the two looks no lease of ours names, and who begins to use it now is not told: it goes the next time.
        let mut going: Vec<&Verdict> =
            decision.going().filter(|verdict| named.contains(&verdict.label)).collect();
        going.sort_by(|a, b| b.label.cmp(&a.label));
        let total = decision.freed();
        for verdict in going {
            let Some((_, held)) = leases.iter().find(|(id, _)| *id == verdict.system_identifier) else {
                continue;
            };
            held.confirm().await?;
            self.remove_backup(verdict, total).await?;
        }
        // Whatever is still there stays by now, with its WAL: it came into use or was pinned meanwhile, or it was not agreed to.
        self.look_again().await?;
        let wal = self.decide_wal().await?;
        for verdict in &wal {
            let Some((_, held)) = leases.iter().find(|(id, _)| *id == verdict.system_identifier) else {
                continue;
            };
            held.confirm().await?;
            let keys = self.cluster.system(verdict.system_identifier);
            let sizes: BTreeMap<WalFile, ByteCount> = self
                .of(verdict.system_identifier)
                .map(|of| of.system.wal.iter().map(|wal| (wal.file, wal.stored)).collect())
                .unwrap_or_default();
            for file in &verdict.going {
                let stored = sizes.get(file).copied().unwrap_or_default();
                if self.remove(&keys.wal(*file), stored, total).await? {
                    self.removed.wal_files += 1;
                }
            }
        }
        self.remove_dead_leases().await?;
        Ok(Decision { wal, ..decision })
    }

    fn decide(&self) -> Decision {
        let spared = |label: &Label| !self.agreed.contains(label);
        decide(&self.rules, &self.holdings.systems(), &spared, Timestamp::now())
    }

    /// Decides about WAL by what there is now: a backup that was copied here since the first look needs its WAL, and its lease is gone.
    async fn decide_wal(&mut self) -> Result<Vec<WalVerdict>> {
        let of_wal =
            |holdings: &Holdings| decide(&self.rules, &holdings.systems(), &|_| true, Timestamp::now()).wal;
        let wal = of_wal(&self.holdings);
        if wal.iter().all(|verdict| verdict.going.is_empty()) {
            return Ok(wal);
        }
        let mut now = Holdings::read_all(&self.repo, self.name, Timestamp::now()).await?;
        // What was in use before this listing, too: it may have ended in the middle of it.
        for of in &mut now.systems {
            let before = self.holdings.systems.iter().find(|before| before.keys == of.keys);
            of.system.uses.extend(before.into_iter().flat_map(|before| before.system.uses.clone()));
        }
        let wal = of_wal(&now);
        self.holdings = now;
        Ok(wal)
    }

    fn of(&self, system: SystemIdentifier) -> Option<&OfSystem> {
        self.holdings.systems.iter().find(|of| of.keys.system() == system)
    }

    /// Reads once more what is in use.
    async fn look_again(&mut self) -> Result<()> {
        for of in &mut self.holdings.systems {
            of.system.uses = holdings::uses(&self.repo, &of.keys, Timestamp::now()).await?;
        }
        Ok(())
    }

    /// Removes a backup, unless somebody uses it or has pinned it by now.
    async fn remove_backup(&mut self, verdict: &Verdict, total: ByteCount) -> Result<()> {
        let keys = self.cluster.system(verdict.system_identifier);
        let uses = holdings::uses(&self.repo, &keys, Timestamp::now()).await?;
        if uses.iter().any(|of| of.labels.as_ref().is_none_or(|labels| labels.contains(&verdict.label))) {
            return Ok(());
        }
        let backup = keys.backup(&verdict.label);
        let pin = document::read::<Pin>(&*self.repo, &backup.pin()).await?;
        // Of what has no manifest a pin keeps nothing.
        if verdict.state != State::Unfinished
            && pin.is_some_and(|pin| !pin.is_ok_and(|pin| pin.is_over(Timestamp::now())))
        {
            return Ok(());
        }
        let mut listed = self.repo.list_all(backup.folder()).await?;
        backup.order_of_removal(&mut listed);
        for listed in listed {
            self.remove(&listed.key, listed.size, total).await?;
        }
        self.removed.backups.push(verdict.label.clone());
        if let Some(of) =
            self.holdings.systems.iter_mut().find(|of| of.keys.system() == verdict.system_identifier)
        {
            of.system.backups.retain(|backup| backup.label != verdict.label);
            of.system.unfinished.retain(|unfinished| unfinished.label != verdict.label);
        }
        Ok(())
    }

    /// Removes an export: the manifest first, so that killed in between it is none.
    async fn remove_export(&mut self, export: &ExpiredExport, total: ByteCount) -> Result<()> {
        let keys = ExportKeys::at(export.folder.clone());
        self.remove(&keys.manifest(), ByteCount(0), total).await?;
        self.remove(&keys.rows(), export.stored, total).await?;
        self.removed.exports += 1;
        Ok(())
    }

    async fn remove(&mut self, key: &Key, size: ByteCount, total: ByteCount) -> Result<bool> {
        if self.reporter.is_alone() {
            return Err(Error::new(ErrorKind::Interrupted, "nobody waits for the expiry any more")
                .detail("What was removed by then is removed whole; the next run goes on."));
        }
        let removed = self.repo.remove(key).await.map_err(|error| self.stopped(error.into()))?;
        if removed {
            self.removed.freed.0 += size.0;
        }
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            self.reporter.progress(Progress { done: self.removed.freed, total, stored: ByteCount(0) });
        }
        Ok(removed)
    }

    /// Adds what was removed already to an error that stopped the rest.
    fn stopped(&self, error: Error) -> Error {
        let Removed { backups, wal_files, exports, freed, uploads: _ } = &self.removed;
        let so_far = format!(
            "{} backups, {wal_files} WAL files and {exports} exports were removed before, {freed}.",
            backups.len()
        );
        let detail = error.detail_text().map_or_else(String::new, |detail| format!("{detail} "));
        let hint = error.hint_text().map(str::to_owned);
        let stopped = Error::new(error.kind(), error.what()).detail(format!("{detail}{so_far}"));
        stopped.hint(hint.unwrap_or_else(|| "Run it again: it goes on where it stopped.".to_owned()))
    }

    /// What it cannot remove costs money and no more: what was to go is gone all the same.
    async fn sweep(&mut self) {
        let Ok(before) = Timestamp::now().checked_sub(DEAD_UPLOAD) else { return };
        match self.repo.sweep(before).await {
            Ok(uploads) => self.removed.uploads = uploads,
            Err(error) => {
                tracing::warn!(%error, "what killed writers left in the repository stays; the next run tries again")
            }
        }
    }

    /// Removes leases whose holders are long dead.
    async fn remove_dead_leases(&self) -> Result<()> {
        let now = Timestamp::now();
        for of in &self.holdings.systems {
            for found in lease::read_all(&self.repo, &of.keys).await? {
                if !found.lives(now) && found.modified.checked_add(DEAD_LEASE).is_ok_and(|dead| dead < now) {
                    self.repo.remove(&found.key).await?;
                }
            }
        }
        Ok(())
    }
}

fn goes_of_wal(wal: &[WalVerdict], system: SystemIdentifier) -> bool {
    wal.iter().any(|verdict| verdict.system_identifier == system && !verdict.going.is_empty())
}

fn going_of(decision: &Decision, system: SystemIdentifier) -> impl Iterator<Item = &Verdict> {
    let goes = |verdict: &&Verdict| matches!(verdict.fate, Fate::Goes(_));
    decision.backups.iter().filter(goes).filter(move |verdict| verdict.system_identifier == system)
}

#[cfg(test)]
mod tests;
