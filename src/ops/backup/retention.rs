//! Which backups and which WAL stay, and why. Decides, never acts: no I/O, no clock.
//!
//! What cannot be told is never a reason to remove: a manifest, a pin, a lease or a history file that cannot be read keeps what it
//! might be about.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{WalFile, WalSegmentSize};
use crate::repo::layout::Label;
use crate::repo::manifest::Manifest;
use crate::units::ByteCount;

/// The store's clock, which dates WAL, and the servers' clocks, which date backups, may differ by so much.
const SLACK: SignedDuration = SignedDuration::from_hours(1);

/// What the topology wants to be kept: a backup stays if either wish keeps it, or if there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub window: Option<Duration>,
    pub keep_full: Option<u32>,
    /// These stay whatever the wishes say.
    pub minimum_full: u32,
}

/// What the repository holds of a cluster with one system identifier.
#[derive(Debug, Clone)]
pub struct System {
    pub id: SystemIdentifier,
    /// Folders with a manifest.
    pub backups: Vec<Backup>,
    /// Folders without one: a backup that runs, was interrupted, or is half removed.
    pub unfinished: Vec<Unfinished>,
    pub wal: Vec<StoredWal>,
    /// The history files that can be read.
    pub histories: Vec<TimelineHistory>,
    /// What is in use now.
    pub uses: Vec<Use>,
}

#[derive(Debug, Clone)]
pub struct Backup {
    pub label: Label,
    /// Bytes of everything in its folder.
    pub stored: ByteCount,
    /// `None`: it cannot be read.
    pub manifest: Option<Manifest>,
    /// Why it cannot be restored, as far as the manifest and a listing tell. Such a one counts for no rule.
    pub broken: Option<String>,
    pub pin: Pinned,
    /// Until when the store lets nobody remove all of it.
    pub locked: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinned {
    No,
    /// Without a time: until the pin is removed.
    Until(Option<Timestamp>, String),
    /// The pin cannot be read.
    Unknown(String),
}

#[derive(Debug, Clone)]
pub struct Unfinished {
    pub label: Label,
    pub stored: ByteCount,
    /// Whether it is noted what it has stored.
    pub noted: bool,
    /// As of a [`Backup`].
    pub locked: Option<Timestamp>,
}

/// How old the begin of an aborted backup may be with which the next one goes on.
const GOES_ON: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Tells whether the next backup goes on with an aborted one that has noted what it stored: if it is the cluster's `newest` and not too
/// old, since it keeps its label, and labels are the order of backups.
pub(super) fn goes_on(label: &Label, newest: Option<&Label>, now: Timestamp) -> bool {
    newest == Some(label) && now.duration_since(label.at()) < GOES_ON
}

#[derive(Debug, Clone)]
pub struct StoredWal {
    pub file: WalFile,
    pub stored: ByteCount,
    /// By the store's clock.
    pub at: Timestamp,
    /// Until when the store lets nobody remove it.
    pub locked: Option<Timestamp>,
}

/// A lease that has not ended.
#[derive(Debug, Clone)]
pub struct Use {
    /// `None`: it cannot be read, so it may be about anything.
    pub labels: Option<Vec<Label>>,
    pub who: String,
    /// Whether it is a copy: what it names and is not there is being brought.
    pub copies: bool,
}

/// What stays and what goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Where the window begins.
    pub window_begin: Option<Timestamp>,
    /// Every backup of the cluster, the oldest first.
    pub backups: Vec<Verdict>,
    pub wal: Vec<WalVerdict>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub system_identifier: SystemIdentifier,
    pub label: Label,
    pub state: State,
    pub stored: ByteCount,
    pub fate: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Whole,
    Broken(String),
    Unfinished,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// With every reason.
    Stays(Vec<Because>),
    Goes(Gone),
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// It ended in the window.
    Window,
    /// The newest one before the window from which this timeline can be restored: the first seconds of the window need it.
    WindowBegin(TimelineId),
    /// Among the newest `keep-full`; which one, from 1.
    KeepFull(u32),
    /// Among the newest `minimum-full`; which one, from 1.
    MinimumFull(u32),
    /// The newest one from which the newest timeline can be restored.
    LeadsTo(TimelineId),
    /// The topology wants neither a window nor a number.
    NoRule,
    Pinned {
        until: Option<Timestamp>,
        reason: String,
    },
    PinUnreadable(String),
    InUse(String),
    /// Chunks of this backup are in it.
    NeededBy(Label),
    /// It was aborted, and the next backup goes on with it.
    GoesOn,
    /// The operator agreed to something else.
    NotAgreed,
    /// No rule keeps it, and the store lets nobody remove it before.
    Locked(Timestamp),
    /// It cannot be restored, but a backup of its age would stay, and somebody may want to see what happened to it.
    Age,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window => f.write_str("in the window"),
            Self::WindowBegin(timeline) => write!(f, "the window begins on it (timeline {timeline})"),
            Self::KeepFull(rank) => write!(f, "keep-full {rank}"),
            Self::MinimumFull(rank) => write!(f, "minimum-full {rank}"),
            Self::LeadsTo(timeline) => write!(f, "the way to timeline {timeline}"),
            Self::NoRule => f.write_str("neither window nor keep-full is stated"),
            Self::Pinned { until: Some(until), reason } => {
                write!(f, "pinned until {}{}", until.strftime("%Y-%m-%d %H:%M:%S UTC"), in_words(reason))
            }
            Self::Pinned { until: None, reason } => write!(f, "pinned{}", in_words(reason)),
            Self::PinUnreadable(why) => write!(f, "its pin cannot be read: {why}"),
            Self::InUse(who) => write!(f, "in use: {who}"),
            Self::NeededBy(label) => write!(f, "{label} needs it"),
            Self::GoesOn => f.write_str("the next backup goes on with it"),
            Self::NotAgreed => f.write_str("it was not among those that were agreed to go"),
            Self::Locked(until) => write!(f, "locked until {}", until.strftime("%Y-%m-%d %H:%M:%S UTC")),
            Self::Age => f.write_str("younger than what goes"),
        }
    }
}

fn in_words(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

/// Why a backup goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gone {
    /// No rule keeps it.
    Expired,
    /// It was never finished, or is half removed, and nobody works on it.
    Unfinished,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "no rule keeps it",
            Self::Unfinished => "without a manifest, and nobody works on it",
        })
    }
}

/// What becomes of the WAL of one system identifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalVerdict {
    pub system_identifier: SystemIdentifier,
    pub because: WalBecause,
    pub goes: Tally,
    pub stays: Tally,
    /// What would go, but the store lets nobody remove it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<LockedWal>,
    /// What goes, the oldest first, so that what is left is always without a new gap.
    #[serde(skip)]
    pub going: Vec<WalFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalBecause {
    /// The oldest backup that stays begins here; no restore needs an earlier segment.
    From(Label, Lsn),
    /// No backup of this system identifier stays, and those of a later one begin after its last WAL: nothing can be restored with it.
    NothingLeft,
    /// A backup or a lease that cannot be read may need any of it.
    CannotTell(String),
    /// There is no backup yet, or none any more, and it may still be written.
    NoBackup,
    /// The topology wants neither a window nor a number.
    NoRule,
}

impl fmt::Display for WalBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(label, lsn) => write!(f, "{label} needs it from {lsn} on"),
            Self::NothingLeft => f.write_str("no backup is left that it could be replayed on"),
            Self::CannotTell(why) => write!(f, "{why}"),
            Self::NoRule => f.write_str("neither window nor keep-full is stated"),
            Self::NoBackup => f.write_str("no backup to replay it on; a new one may be running"),
        }
    }
}

/// WAL that the store lets nobody remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedWal {
    pub tally: Tally,
    /// When all of it may be removed.
    pub until: Timestamp,
}

/// Files, their bytes, and the first and the last of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub files: u64,
    pub stored: ByteCount,
    pub first: Option<WalFile>,
    pub last: Option<WalFile>,
}

impl Tally {
    fn of<'a>(files: impl Iterator<Item = &'a StoredWal>) -> Self {
        files.fold(Self::default(), |sum, wal| Self {
            files: sum.files + 1,
            stored: ByteCount(sum.stored.0.saturating_add(wal.stored.0)),
            first: sum.first.or(Some(wal.file)),
            last: Some(wal.file),
        })
    }
}

impl Decision {
    /// Returns what goes.
    pub fn going(&self) -> impl Iterator<Item = &Verdict> {
        self.backups.iter().filter(|verdict| matches!(verdict.fate, Fate::Goes(_)))
    }

    /// Returns the bytes that removing all of it frees.
    pub fn freed(&self) -> ByteCount {
        let backups = self.going().map(|verdict| verdict.stored.0);
        ByteCount(backups.chain(self.wal.iter().map(|wal| wal.goes.stored.0)).sum())
    }

    pub fn is_empty(&self) -> bool {
        self.going().next().is_none() && self.wal.iter().all(|wal| wal.goes.files == 0)
    }
}

/// Decides about everything that the repository holds of a cluster. `spared` stays whatever the rules say: what the operator was not
/// shown.
pub fn decide(
    rules: &Rules,
    systems: &[System],
    spared: &dyn Fn(&Label) -> bool,
    now: Timestamp,
) -> Decision {
    let mut reasons = Reasons::default();
    let window_begin = rules.window.map(|window| begin_of(window, systems, now));
    by_rules(rules, systems, window_begin, &mut reasons);
    by_timeline(systems, &mut reasons);
    by_hand(systems, spared, now, &mut reasons);
    by_progress(systems, now, &mut reasons);
    by_lock(systems, now, &mut reasons);
    by_need(systems, &mut reasons);
    let mut backups: Vec<Verdict> = systems.iter().flat_map(|system| verdicts(system, &reasons)).collect();
    backups.sort_by(|a, b| (&a.label, a.system_identifier).cmp(&(&b.label, b.system_identifier)));
    let wish = rules.window.is_some() || rules.keep_full.is_some();
    let wal = systems.iter().map(|system| {
        let because = match wish {
            true => wal_because(system, systems, &reasons, window_begin),
            false => WalBecause::NoRule,
        };
        wal_verdict(system, because, now)
    });
    let wal = wal.collect();
    Decision { window_begin, backups, wal }
}

/// Why each backup stays; who has no entry goes.
#[derive(Debug, Default)]
struct Reasons(BTreeMap<(SystemIdentifier, Label), Vec<Because>>);

impl Reasons {
    fn add(&mut self, system: SystemIdentifier, label: &Label, because: Because) {
        let all = self.0.entry((system, label.clone())).or_default();
        if !all.contains(&because) {
            all.push(because);
        }
    }

    fn of(&self, system: SystemIdentifier, label: &Label) -> Option<&Vec<Because>> {
        self.0.get(&(system, label.clone()))
    }
}

/// Returns where the window begins. It is counted back from the newest that the archive has, if that is older than now: where
/// archiving stands still, or a clock went wrong, nothing goes only because time passes.
fn begin_of(window: Duration, systems: &[System], now: Timestamp) -> Timestamp {
    let wal = systems.iter().flat_map(|system| &system.wal).map(|wal| wal.at);
    let backups = systems.iter().flat_map(wholes).map(|(_, manifest)| manifest.ended);
    let newest = wal.chain(backups).max().unwrap_or(now).min(now);
    let window = SignedDuration::try_from(window).unwrap_or(SignedDuration::MAX);
    newest.checked_sub(window).unwrap_or(Timestamp::MIN)
}

fn wholes(system: &System) -> impl Iterator<Item = (&Backup, &Manifest)> {
    let whole = system.backups.iter().filter(|backup| backup.broken.is_none());
    whole.filter_map(|backup| backup.manifest.as_ref().map(|manifest| (backup, manifest)))
}

fn by_rules(rules: &Rules, systems: &[System], window_begin: Option<Timestamp>, reasons: &mut Reasons) {
    // Labels of a cluster rise even when a clock goes back, and across system identifiers: they are the order in which backups were made.
    let mut newest: Vec<_> = systems
        .iter()
        .flat_map(|system| wholes(system).map(move |(backup, manifest)| (system.id, backup, manifest)))
        .collect();
    newest.sort_by_key(|(_, backup, _)| Reverse(backup.label.clone()));
    for (rank, (system, backup, _)) in (1..).zip(&newest) {
        if rank <= rules.minimum_full.max(1) {
            reasons.add(*system, &backup.label, Because::MinimumFull(rank));
        }
        if rules.keep_full.is_some_and(|keep| rank <= keep) {
            reasons.add(*system, &backup.label, Because::KeepFull(rank));
        }
        if rules.keep_full.is_none() && window_begin.is_none() {
            reasons.add(*system, &backup.label, Because::NoRule);
        }
    }
    if let Some(begin) = window_begin {
        // Whatever timeline it is on: there is always one backup that is as old as the window.
        if let Some((system, backup, manifest)) = newest.iter().find(|(_, _, of)| of.ended < begin) {
            reasons.add(*system, &backup.label, Because::WindowBegin(manifest.timeline));
        }
        for system in systems {
            by_window(system, begin, reasons);
        }
    }
    let count = rules.minimum_full.max(1).max(rules.keep_full.unwrap_or(0)) as usize;
    for system in systems {
        for broken in system.backups.iter().filter(|backup| backup.broken.is_some()) {
            let newer = newest.iter().filter(|(_, whole, _)| whole.label > broken.label);
            let outdated = newer.clone().count() >= count
                && (rules.keep_full.is_some() || window_begin.is_some())
                && window_begin.is_none_or(|begin| newer.clone().any(|(_, _, of)| of.ended < begin));
            if !outdated {
                reasons.add(system.id, &broken.label, Because::Age);
            }
        }
    }
}

/// Keeps the way to where the cluster is now: after a restore to an earlier time newer backups than the one that it began from lie on a timeline that
/// was left, however many of them the rules keep.
fn by_timeline(systems: &[System], reasons: &mut Reasons) {
    let newest = |system: &&System| system.backups.iter().map(|backup| backup.label.clone()).max();
    let Some(system) = systems.iter().max_by_key(newest) else { return };
    let of_wal = system.wal.iter().map(|wal| wal.file.timeline());
    let of_backups = wholes(system).map(|(_, manifest)| manifest.timeline);
    let Some(timeline) = of_wal.chain(of_backups).max() else { return };
    for backup in newest_on_the_way(system, wholes(system), timeline) {
        if reasons.of(system.id, &backup.label).is_none() {
            reasons.add(system.id, &backup.label, Because::LeadsTo(timeline));
        }
    }
}

/// Keeps what every second of the window needs: the backups that ended in it, and for each timeline that reaches into it the newest
/// backup that ended before and from which that timeline can be restored.
fn by_window(system: &System, begin: Timestamp, reasons: &mut Reasons) {
    for (backup, _) in wholes(system).filter(|(_, manifest)| manifest.ended >= begin) {
        reasons.add(system.id, &backup.label, Because::Window);
    }
    let from = begin.checked_sub(SLACK).unwrap_or(Timestamp::MIN);
    let wal = system.wal.iter().filter(|wal| wal.at >= from).map(|wal| wal.file.timeline());
    let backups =
        wholes(system).filter(|(_, manifest)| manifest.ended >= from).map(|(_, manifest)| manifest.timeline);
    for timeline in wal.chain(backups).collect::<BTreeSet<_>>() {
        let before = wholes(system).filter(|(_, manifest)| manifest.ended < begin);
        for backup in newest_on_the_way(system, before, timeline) {
            reasons.add(system.id, &backup.label, Because::WindowBegin(timeline));
        }
    }
}

/// Returns the newest backup from which `timeline` can be restored, and those of which that cannot be told.
fn newest_on_the_way<'a>(
    system: &System,
    among: impl Iterator<Item = (&'a Backup, &'a Manifest)>,
    timeline: TimelineId,
) -> Vec<&'a Backup> {
    // Of each timeline on the way; one that surely leads here stands for those before it.
    let mut newest: BTreeMap<TimelineId, (&Backup, Leads)> = BTreeMap::new();
    for (backup, manifest) in among {
        let leads = leads_to(system, manifest, timeline);
        let is_newer = newest.get(&manifest.timeline).is_none_or(|(of, _)| of.label < backup.label);
        if leads != Leads::No && is_newer {
            newest.insert(manifest.timeline, (backup, leads));
        }
    }
    let sure =
        newest.values().filter(|(_, leads)| *leads == Leads::Yes).map(|(backup, _)| &backup.label).max();
    let wanted =
        newest.values().filter(|(backup, leads)| *leads == Leads::CannotTell || Some(&backup.label) == sure);
    wanted.map(|(backup, _)| *backup).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leads {
    Yes,
    No,
    /// The history file is missing or damaged.
    CannotTell,
}

/// Tells whether a restore of this backup can follow `timeline`.
pub(super) fn leads_to(system: &System, manifest: &Manifest, timeline: TimelineId) -> Leads {
    if manifest.timeline == timeline {
        return Leads::Yes;
    }
    if manifest.timeline > timeline {
        return Leads::No;
    }
    match system.histories.iter().find(|history| history.timeline() == timeline) {
        Some(history) if history.is_ancestor(manifest.timeline, manifest.stop_lsn) => Leads::Yes,
        Some(_) => Leads::No,
        None => Leads::CannotTell,
    }
}

fn by_hand(systems: &[System], spared: &dyn Fn(&Label) -> bool, now: Timestamp, reasons: &mut Reasons) {
    for system in systems {
        for backup in &system.backups {
            match &backup.pin {
                Pinned::No => {}
                Pinned::Until(until, reason) if until.is_none_or(|until| until > now) => {
                    let because = Because::Pinned { until: *until, reason: reason.clone() };
                    reasons.add(system.id, &backup.label, because);
                }
                Pinned::Until(..) => {}
                Pinned::Unknown(why) => {
                    reasons.add(system.id, &backup.label, Because::PinUnreadable(why.clone()));
                }
            }
        }
        let labels = system.backups.iter().map(|backup| &backup.label);
        for label in labels.chain(system.unfinished.iter().map(|unfinished| &unfinished.label)) {
            for lease in &system.uses {
                if lease.labels.as_ref().is_none_or(|labels| labels.contains(label)) {
                    reasons.add(system.id, label, Because::InUse(lease.who.clone()));
                }
            }
            if spared(label) {
                reasons.add(system.id, label, Because::NotAgreed);
            }
        }
    }
}

/// Keeps the aborted backup with which the next one goes on.
fn by_progress(systems: &[System], now: Timestamp, reasons: &mut Reasons) {
    let labels = systems.iter().flat_map(|system| {
        let whole = system.backups.iter().map(|backup| &backup.label);
        whole.chain(system.unfinished.iter().map(|unfinished| &unfinished.label))
    });
    let newest = labels.max();
    for system in systems {
        for unfinished in system.unfinished.iter().filter(|unfinished| unfinished.noted) {
            if goes_on(&unfinished.label, newest, now) {
                reasons.add(system.id, &unfinished.label, Because::GoesOn);
            }
        }
    }
}

/// Keeps what nothing else keeps for as long as the store lets nobody remove it: it would be hidden, and paid for all the same.
fn by_lock(systems: &[System], now: Timestamp, reasons: &mut Reasons) {
    for system in systems {
        let backups = system.backups.iter().map(|backup| (&backup.label, backup.locked));
        let unfinished = system.unfinished.iter().map(|unfinished| (&unfinished.label, unfinished.locked));
        for (label, locked) in backups.chain(unfinished) {
            if let Some(until) = locked.filter(|until| *until > now)
                && reasons.of(system.id, label).is_none()
            {
                reasons.add(system.id, label, Because::Locked(until));
            }
        }
    }
}

/// Keeps what backups that stay have chunks in.
fn by_need(systems: &[System], reasons: &mut Reasons) {
    for system in systems {
        let mut newest: Vec<&Backup> = system.backups.iter().collect();
        newest.sort_by_key(|backup| Reverse(backup.label.clone()));
        // A backup needs only older ones, so one pass from the newest on is enough.
        for backup in newest {
            let Some(manifest) = backup.manifest.as_ref() else { continue };
            if reasons.of(system.id, &backup.label).is_some() {
                for needed in &manifest.needs {
                    reasons.add(system.id, needed, Because::NeededBy(backup.label.clone()));
                }
            }
        }
    }
}

fn verdicts(system: &System, reasons: &Reasons) -> Vec<Verdict> {
    let verdict = |label: &Label, state: State, stored: ByteCount, gone: Gone| Verdict {
        system_identifier: system.id,
        label: label.clone(),
        state,
        stored,
        fate: reasons.of(system.id, label).map_or(Fate::Goes(gone), |because| Fate::Stays(because.clone())),
    };
    let backups = system.backups.iter().map(|backup| {
        let state = backup.broken.clone().map_or(State::Whole, State::Broken);
        verdict(&backup.label, state, backup.stored, Gone::Expired)
    });
    let unfinished = system
        .unfinished
        .iter()
        .map(|unfinished| verdict(&unfinished.label, State::Unfinished, unfinished.stored, Gone::Unfinished));
    backups.chain(unfinished).collect()
}

fn wal_verdict(system: &System, because: WalBecause, now: Timestamp) -> WalVerdict {
    let goes = |wal: &&StoredWal| match &because {
        WalBecause::From(_, floor) => is_before(wal.file, *floor, largest_segment(system)),
        WalBecause::NothingLeft => true,
        WalBecause::CannotTell(_) | WalBecause::NoBackup | WalBecause::NoRule => false,
    };
    let mut sorted: Vec<&StoredWal> = system.wal.iter().collect();
    // By place in the log, and history files last: they are needed for as long as there is a segment.
    sorted.sort_by_key(|wal| match wal.file {
        WalFile::Segment(name) | WalFile::Partial(name) | WalFile::BackupHistory(name, _) => {
            (false, name.start(largest_segment(system)), wal.file)
        }
        WalFile::TimelineHistory(_) => (true, Lsn::new(0), wal.file),
    });
    let (going, staying): (Vec<&StoredWal>, Vec<&StoredWal>) = sorted.into_iter().partition(goes);
    let is_locked = |wal: &&StoredWal| wal.locked.is_some_and(|until| until > now);
    let (locked, going): (Vec<&StoredWal>, Vec<&StoredWal>) = going.into_iter().partition(is_locked);
    let until = locked.iter().filter_map(|wal| wal.locked).max();
    WalVerdict {
        locked: until.map(|until| LockedWal { tally: Tally::of(locked.iter().copied()), until }),
        system_identifier: system.id,
        goes: Tally::of(going.iter().copied()),
        stays: Tally::of(staying.into_iter()),
        going: going.iter().map(|wal| wal.file).collect(),
        because,
    }
}

fn wal_because(
    system: &System,
    systems: &[System],
    reasons: &Reasons,
    window_begin: Option<Timestamp>,
) -> WalBecause {
    let stays = |label: &Label| reasons.of(system.id, label).is_some();
    if system.uses.iter().any(|lease| lease.labels.is_none()) {
        return WalBecause::CannotTell("a lease that cannot be read may need any of it".to_owned());
    }
    if let Some(copy) = system.uses.iter().find(|lease| brings(system, lease)) {
        return WalBecause::CannotTell(format!("{} may bring a backup that needs any of it", copy.who));
    }
    let mut staying = system.backups.iter().filter(|backup| stays(&backup.label));
    if let Some(unreadable) = staying.clone().find(|backup| backup.manifest.is_none()) {
        let why = format!("the manifest of {} cannot be read, so it may need any of it", unreadable.label);
        return WalBecause::CannotTell(why);
    }
    let starts = staying.clone().filter_map(|backup| {
        let manifest = backup.manifest.as_ref()?;
        Some((manifest.wal().0.start(manifest.wal_segment_size), &backup.label))
    });
    if let Some((lsn, label)) = starts.min() {
        return WalBecause::From(label.clone(), lsn);
    }
    let in_work = system.unfinished.iter().any(|unfinished| stays(&unfinished.label));
    let last = system.wal.iter().map(|wal| wal.at).max();
    // Its own backups are gone, so it can only be that the cluster lives on under another system identifier.
    let replaced = last.is_none_or(|last| {
        window_begin.is_none_or(|begin| last < begin.checked_sub(SLACK).unwrap_or(Timestamp::MIN))
            && systems.iter().filter(|other| other.id != system.id).any(|other| {
                wholes(other).any(|(backup, manifest)| {
                    reasons.of(other.id, &backup.label).is_some()
                        && manifest.begun > last.checked_add(SLACK).unwrap_or(Timestamp::MAX)
                })
            })
    });
    if staying.next().is_none() && !in_work && system.uses.is_empty() && replaced {
        WalBecause::NothingLeft
    } else {
        WalBecause::NoBackup
    }
}

/// Tells whether a lease is that of a copy whose backups are not there yet: their WAL comes before them.
fn brings(system: &System, lease: &Use) -> bool {
    let is_there = |label: &Label| system.backups.iter().any(|backup| backup.label == *label);
    lease.copies && lease.labels.iter().flatten().any(|label| !is_there(label))
}

/// Returns the largest segment size of the system's backups, so that the end of a segment is never taken for earlier than it is:
/// `pg_resetwal` can change the size.
fn largest_segment(system: &System) -> WalSegmentSize {
    let sizes = system.backups.iter().filter_map(|backup| backup.manifest.as_ref());
    sizes
        .map(|manifest| manifest.wal_segment_size)
        .max()
        .unwrap_or_else(|| WalSegmentSize::new(1 << 30).expect("1 GiB is a segment size"))
}

/// Tells whether all of a file lies before `floor`. Position is enough, whatever the timeline: a timeline begins where its parent is
/// left, so no restore of a backup that begins at `floor` reads an earlier byte on any of them.
fn is_before(file: WalFile, floor: Lsn, size: WalSegmentSize) -> bool {
    match file {
        WalFile::Segment(name) | WalFile::Partial(name) | WalFile::BackupHistory(name, _) => {
            name.end(size) <= floor
        }
        // They are tiny, and the way from an old backup to a new timeline leads through them.
        WalFile::TimelineHistory(_) => false,
    }
}

#[cfg(test)]
mod tests;
