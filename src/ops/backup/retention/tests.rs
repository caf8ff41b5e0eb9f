use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::ops::backup::trial::manifest;

const MIB: u64 = 1 << 20;
/// Noon of day 0; days and hours count from here.
const EPOCH: &str = "2026-06-01T12:00:00Z";

fn at(hours: i64) -> Timestamp {
    EPOCH.parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
}

fn day(days: i64) -> Timestamp {
    at(days * 24)
}

fn timeline(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

fn size() -> WalSegmentSize {
    WalSegmentSize::new(MIB).unwrap()
}

fn id(number: u64) -> SystemIdentifier {
    SystemIdentifier::new(number).unwrap()
}

/// A backup that ends when it begins, whose WAL is of one segment.
fn backup(ended: Timestamp, timeline: TimelineId, start_lsn: Lsn, stop_lsn: Lsn) -> Backup {
    let manifest = Manifest { timeline, start_lsn, stop_lsn, ..manifest(ended) };
    let label = manifest.label.clone();
    Backup {
        label,
        stored: ByteCount(100),
        manifest: Some(manifest),
        broken: None,
        pin: Pinned::No,
        locked: None,
    }
}

fn wal(file: WalFile, at: Timestamp) -> StoredWal {
    StoredWal { file, stored: ByteCount(1), at, locked: None }
}

fn segment(on: TimelineId, number: u64) -> WalFile {
    WalFile::Segment(crate::pg::wal_file::SegmentName::holding(Lsn::new(number * MIB), on, size()))
}

/// A system on timeline 1 that fills a segment a day and is backed up on `days`: the backup of day 5 begins at segment 5.
fn daily(number: u64, days: &[i64], wal_days: std::ops::RangeInclusive<i64>) -> System {
    let lsn = |day: i64, more: u64| Lsn::new(u64::try_from(day).unwrap() * MIB + more);
    let backups = days.iter().map(|d| backup(day(*d), timeline(1), lsn(*d, 40), lsn(*d, 400))).collect();
    let wal = wal_days.map(|d| {
        wal(segment(timeline(1), u64::try_from(d).unwrap()), day(d) + SignedDuration::from_hours(12))
    });
    System {
        id: id(number),
        backups,
        unfinished: Vec::new(),
        wal: wal.collect(),
        histories: Vec::new(),
        uses: Vec::new(),
    }
}

/// A system that the repository holds nothing of.
fn empty(number: u64) -> System {
    System { wal: Vec::new(), ..daily(number, &[], 0..=0) }
}

fn rules(window_days: Option<u64>, keep_full: Option<u32>, minimum_full: u32) -> Rules {
    let window = window_days.map(|days| Duration::from_secs(days * 86_400));
    Rules { window, keep_full, minimum_full }
}

/// Decides and writes one line for each backup, by its day, and one for the WAL of each system.
fn decided(rules: &Rules, systems: &[System], now: Timestamp) -> Vec<String> {
    let decision = decide(rules, systems, &|_| false, now);
    let backups = decision.backups.iter().map(|verdict| {
        let day = (verdict.label.at() - EPOCH.parse::<Timestamp>().unwrap()).get_seconds() / 86_400;
        match &verdict.fate {
            Fate::Goes(gone) => format!("{day} goes: {gone}"),
            Fate::Stays(because) => {
                let all: Vec<String> = because.iter().map(ToString::to_string).collect();
                format!("{day} stays: {}", all.join(", "))
            }
        }
    });
    let wal = decision.wal.iter().map(|wal| {
        format!(
            "wal of {}: {} go, {} stay: {}",
            wal.system_identifier, wal.goes.files, wal.stays.files, wal.because
        )
    });
    backups.chain(wal).collect()
}

#[test]
fn a_window_keeps_what_ended_in_it_and_the_one_that_it_begins_on() {
    let system = daily(1, &[1, 5, 9, 13], 0..=14);
    assert_eq!(
        decided(&rules(Some(7), None, 1), &[system], at(14 * 24 + 12)),
        [
            "1 goes: no rule keeps it",
            "5 stays: the window begins on it (timeline 1)",
            "9 stays: in the window",
            "13 stays: minimum-full 1, in the window",
            "wal of 1: 5 go, 10 stay: 20260606T120000Z-full needs it from 0/500000 on",
        ]
    );
}

#[test]
fn a_backup_that_ended_in_the_moment_in_which_the_window_begins_is_not_what_it_begins_on() {
    // What was committed in that moment may be before the backup's stop.
    let system = daily(1, &[1, 5, 9], 0..=9);
    assert_eq!(
        decided(&rules(Some(4), None, 1), &[system], day(9))[..3],
        [
            "1 stays: the window begins on it (timeline 1)",
            "5 stays: in the window",
            "9 stays: minimum-full 1, in the window",
        ]
    );
}

#[test]
fn a_number_keeps_the_newest_and_either_wish_keeps() {
    let system = daily(1, &[1, 5, 9, 13], 0..=14);
    assert_eq!(
        decided(&rules(None, Some(2), 1), std::slice::from_ref(&system), day(15)),
        [
            "1 goes: no rule keeps it",
            "5 goes: no rule keeps it",
            "9 stays: keep-full 2",
            "13 stays: minimum-full 1, keep-full 1",
            "wal of 1: 9 go, 6 stay: 20260610T120000Z-full needs it from 0/900000 on",
        ]
    );
    assert_eq!(
        decided(&rules(Some(1), Some(3), 1), &[system], at(14 * 24 + 12))[..2],
        ["1 goes: no rule keeps it", "5 stays: keep-full 3"]
    );
}

#[test]
fn without_a_wish_everything_stays() {
    let decision = decide(&rules(None, None, 1), &[daily(1, &[1, 5], 0..=6)], &|_| false, day(900));
    assert!(decision.is_empty(), "{decision:?}");
}

#[test]
fn the_minimum_stays_however_old_it_is() {
    let mut system = daily(1, &[1, 5, 9], 0..=9);
    // The archive goes on without backups.
    system.wal.extend((10..100).map(|d| wal(segment(timeline(1), d), day(i64::try_from(d).unwrap()))));
    assert_eq!(
        decided(&rules(Some(7), None, 2), &[system], day(100))[..3],
        [
            "1 goes: no rule keeps it",
            "5 stays: minimum-full 2",
            "9 stays: minimum-full 1, the window begins on it (timeline 1)",
        ]
    );
}

#[test]
fn nothing_goes_because_time_passes_while_nothing_is_archived() {
    let system = daily(1, &[1, 5, 9], 0..=9);
    let then = decided(&rules(Some(7), None, 1), std::slice::from_ref(&system), at(9 * 24 + 12));
    assert_eq!(decided(&rules(Some(7), None, 1), &[system], day(9000)), then);
    assert_eq!(then[0], "1 stays: the window begins on it (timeline 1)");
}

#[test]
fn a_pin_keeps_until_its_time_and_one_that_cannot_be_read_keeps_on() {
    let mut system = daily(1, &[1, 2, 3, 4, 9], 0..=9);
    system.backups[0].pin = Pinned::Until(None, "audit 2026".to_owned());
    system.backups[1].pin = Pinned::Until(Some(day(11)), String::new());
    system.backups[2].pin = Pinned::Until(Some(day(9)), String::new());
    system.backups[3].pin = Pinned::Unknown("it is damaged".to_owned());
    assert_eq!(
        decided(&rules(None, Some(1), 1), &[system], day(10)),
        [
            "1 stays: pinned (audit 2026)",
            "2 stays: pinned until 2026-06-12 12:00:00 UTC",
            "3 goes: no rule keeps it",
            "4 stays: its pin cannot be read: it is damaged",
            "9 stays: minimum-full 1, keep-full 1",
            "wal of 1: 1 go, 9 stay: 20260602T120000Z-full needs it from 0/100000 on",
        ]
    );
}

#[test]
fn the_newest_backup_that_was_aborted_stays_for_a_week_if_the_next_one_goes_on_with_it() {
    let mut system = daily(1, &[1, 2], 0..=2);
    let aborted =
        |d, noted| Unfinished { label: Label::full(day(d)), stored: ByteCount(7), noted, locked: None };
    let goes = |system: &System, now| {
        decided(&rules(None, Some(2), 1), std::slice::from_ref(system), now)
            .into_iter()
            .filter(|line| line.starts_with("4 ") || line.starts_with("5 "))
            .collect::<Vec<_>>()
    };
    let gone = |d: u32| format!("{d} goes: without a manifest, and nobody works on it");
    system.unfinished = vec![aborted(4, true), aborted(5, true)];
    assert_eq!(goes(&system, day(6)), [gone(4), "5 stays: the next backup goes on with it".to_owned()]);
    assert_eq!(goes(&system, day(12)), [gone(4), gone(5)]);
    system.unfinished = vec![aborted(4, true), aborted(5, false)];
    assert_eq!(goes(&system, day(6)), [gone(4), gone(5)]);
}

#[test]
fn what_is_in_use_stays_and_so_does_everything_under_a_lease_that_cannot_be_read() {
    let mut system = daily(1, &[1, 2, 9], 0..=9);
    let unfinished =
        |d| Unfinished { label: Label::full(day(d)), stored: ByteCount(7), noted: false, locked: None };
    system.unfinished = vec![unfinished(4), unfinished(10)];
    let labels = Some(vec![Label::full(day(2)), Label::full(day(10))]);
    system.uses = vec![Use { labels, who: "restore by dba".to_owned(), copies: false }];
    assert_eq!(
        decided(&rules(None, Some(1), 1), &[system.clone()], day(10)),
        [
            "1 goes: no rule keeps it",
            "2 stays: in use: restore by dba",
            "4 goes: without a manifest, and nobody works on it",
            "9 stays: minimum-full 1, keep-full 1",
            "10 stays: in use: restore by dba",
            "wal of 1: 2 go, 8 stay: 20260603T120000Z-full needs it from 0/200000 on",
        ]
    );
    system.uses = vec![Use { labels: None, who: "a lease that is damaged".to_owned(), copies: false }];
    assert!(decide(&rules(None, Some(1), 1), &[system], &|_| false, day(10)).is_empty());
}

#[test]
fn what_no_rule_keeps_stays_for_as_long_as_the_store_lets_nobody_remove_it() {
    let mut system = daily(1, &[1, 5, 8, 9], 0..=9);
    let lock = |at: Timestamp| Some(at + SignedDuration::from_hours(4 * 24));
    system.backups.iter_mut().for_each(|backup| backup.locked = lock(backup.label.at()));
    system.wal.iter_mut().for_each(|wal| wal.locked = lock(wal.at));
    system.unfinished = vec![Unfinished {
        label: Label::full(day(7)),
        stored: ByteCount(7),
        noted: false,
        locked: lock(day(7)),
    }];
    assert_eq!(
        decided(&rules(None, Some(1), 1), std::slice::from_ref(&system), day(10)),
        [
            "1 goes: no rule keeps it",
            "5 goes: no rule keeps it",
            "7 stays: locked until 2026-06-12 12:00:00 UTC",
            "8 stays: locked until 2026-06-13 12:00:00 UTC",
            "9 stays: minimum-full 1, keep-full 1",
            "wal of 1: 6 go, 2 stay: 20260609T120000Z-full needs it from 0/800000 on",
        ]
    );
    let decision = decide(&rules(None, Some(1), 1), &[system], &|_| false, day(10));
    let locked = decision.wal[0].locked.as_ref().unwrap();
    let half_a_day = SignedDuration::from_hours(12);
    assert_eq!((locked.tally.files, Some(locked.until)), (2, lock(day(7) + half_a_day)));
}

#[test]
fn after_a_restore_to_an_earlier_time_the_backup_that_it_began_from_stays_with_its_wal_until_there_is_another()
 {
    let mut system = daily(1, &[1, 5, 9], 0..=9);
    // On day 10 it was restored to day 3: timeline 2 leaves timeline 1 before the backups of days 5 and 9.
    system.histories = vec![TimelineHistory::parse(timeline(2), "1\t0/380000\tby hand\n").unwrap()];
    system.wal.push(wal(segment(timeline(2), 3), day(10)));
    let decided_now =
        |system: &System, now| decided(&rules(None, Some(2), 1), std::slice::from_ref(system), now);
    let decision = decided_now(&system, day(11));
    assert_eq!(decision[0], "1 stays: the way to timeline 2");
    assert_eq!(decision[3], "wal of 1: 1 go, 10 stay: 20260602T120000Z-full needs it from 0/100000 on");

    let lsn = |day: u64| Lsn::new(day * MIB + 40);
    system.backups.push(backup(day(12), timeline(2), lsn(4), Lsn::new(4 * MIB + 400)));
    assert_eq!(decided_now(&system, day(13))[0], "1 goes: no rule keeps it");
}

#[test]
fn no_wal_goes_while_a_copy_brings_a_backup_that_is_not_there_yet() {
    let mut system = daily(1, &[5, 9], 0..=9);
    let bringing =
        |d| Use { labels: Some(vec![Label::full(day(d))]), who: "a copy by dba".to_owned(), copies: true };
    system.uses = vec![bringing(9)];
    let goes = |system: &System| {
        decided(&rules(None, Some(1), 1), std::slice::from_ref(system), day(10)).pop().unwrap()
    };
    assert_eq!(goes(&system), "wal of 1: 9 go, 1 stay: 20260610T120000Z-full needs it from 0/900000 on");
    system.uses.push(bringing(2));
    assert_eq!(
        goes(&system),
        "wal of 1: 0 go, 10 stay: a copy by dba may bring a backup that needs any of it"
    );
    system.uses[1].copies = false;
    assert!(goes(&system).contains("9 go"));
}

#[test]
fn a_backup_that_cannot_be_restored_counts_for_no_rule() {
    let mut system = daily(1, &[1, 5, 9], 0..=9);
    system.backups[2].broken = Some("data/000003 is missing".to_owned());
    assert_eq!(
        decided(&rules(None, Some(1), 1), &[system.clone()], day(10)),
        [
            "1 goes: no rule keeps it",
            "5 stays: minimum-full 1, keep-full 1",
            "9 stays: younger than what goes",
            "wal of 1: 5 go, 5 stay: 20260606T120000Z-full needs it from 0/500000 on",
        ]
    );
    // Where its manifest cannot be read, nobody knows which WAL it needs.
    system.backups[2].manifest = None;
    assert_eq!(
        decided(&rules(None, Some(1), 1), &[system.clone()], day(10))[3],
        "wal of 1: 0 go, 10 stay: the manifest of 20260610T120000Z-full cannot be read, so it may need any of it"
    );
    system.backups.push(daily(1, &[11], 0..=0).backups.remove(0));
    assert_eq!(decided(&rules(None, Some(1), 1), &[system], day(12))[2], "9 goes: no rule keeps it");
}

#[test]
fn after_an_upgrade_the_order_is_by_time() {
    // The new system identifier is the smaller number, as it may be.
    let old = daily(900, &[1, 5, 9], 0..=10);
    let new = daily(100, &[11, 15], 11..=16);
    assert_eq!(
        decided(&rules(Some(7), None, 2), &[new.clone(), old.clone()], at(16 * 24 + 12)),
        [
            "1 goes: no rule keeps it",
            "5 goes: no rule keeps it",
            "9 stays: the window begins on it (timeline 1)",
            "11 stays: minimum-full 2, in the window",
            "15 stays: minimum-full 1, in the window",
            "wal of 100: 0 go, 6 stay: 20260612T120000Z-full needs it from 0/B00000 on",
            "wal of 900: 9 go, 2 stay: 20260610T120000Z-full needs it from 0/900000 on",
        ]
    );
    let mut later = new;
    later.wal.extend((17..40).map(|d| wal(segment(timeline(1), d), day(i64::try_from(d).unwrap()))));
    assert_eq!(
        decided(&rules(Some(7), None, 2), &[later, old], day(40))[2..],
        [
            "9 goes: no rule keeps it",
            "11 stays: minimum-full 2",
            "15 stays: minimum-full 1, the window begins on it (timeline 1)",
            "wal of 100: 0 go, 29 stay: 20260612T120000Z-full needs it from 0/B00000 on",
            "wal of 900: 11 go, 0 stay: no backup is left that it could be replayed on",
        ]
    );
}

#[test]
fn the_wal_of_a_system_without_a_backup_stays() {
    let old = daily(1, &[1, 5, 9], 0..=10);
    let new = daily(2, &[], 11..=16);
    assert_eq!(
        decided(&rules(Some(3), None, 1), &[old, new], day(17))[4],
        "wal of 2: 0 go, 6 stay: no backup to replay it on; a new one may be running"
    );
}

#[test]
fn a_timeline_that_reaches_into_the_window_keeps_the_backup_that_leads_to_it() {
    // Day 5: a failover to timeline 2. The old primary went on, and was backed up on day 6 and 7: from there nothing leads to timeline 2.
    let mut system = daily(1, &[1, 3, 6, 7], 0..=7);
    system.wal.extend((5..20).map(|d| wal(segment(timeline(2), d), day(i64::try_from(d).unwrap()))));
    let history = |text| TimelineHistory::parse(timeline(2), text).unwrap();
    system.histories = vec![history("1\t0/500100\tno recovery target specified\n")];
    let stays = |system: &System| {
        decided(&rules(Some(7), None, 1), std::slice::from_ref(system), day(19))[..4].to_vec()
    };
    assert_eq!(
        stays(&system),
        [
            "1 goes: no rule keeps it",
            "3 stays: the window begins on it (timeline 2)",
            "6 goes: no rule keeps it",
            "7 stays: minimum-full 1, the window begins on it (timeline 1)",
        ]
    );
    // Without the history file nobody knows.
    system.histories.clear();
    assert_eq!(stays(&system)[1], "3 goes: no rule keeps it");
    assert_eq!(
        stays(&system)[3],
        "7 stays: minimum-full 1, the window begins on it (timeline 1), the window begins on it (timeline 2)"
    );
}

#[test]
fn history_files_stay() {
    let mut system = daily(1, &[1, 9], 0..=9);
    system.wal.push(wal(WalFile::TimelineHistory(timeline(2)), day(0)));
    let name = crate::pg::wal_file::SegmentName::holding(Lsn::new(0), timeline(1), size());
    system.wal.push(wal(WalFile::Partial(name), day(0)));
    system.wal.push(wal(WalFile::BackupHistory(name, 40), day(0)));
    let decision = decide(&rules(None, Some(1), 1), &[system], &|_| false, day(10));
    let going: Vec<String> = decision.wal[0].going.iter().map(ToString::to_string).collect();
    assert_eq!(
        going[..4],
        [
            "000000010000000000000000",
            "000000010000000000000000.partial",
            "000000010000000000000000.00000028.backup",
            "000000010000000000000001",
        ]
    );
    assert_eq!(going.len(), 11);
}

#[test]
fn a_backup_whose_chunks_another_one_has_stays_with_it() {
    let mut system = daily(1, &[1, 5, 9], 0..=9);
    system.backups[2].manifest.as_mut().unwrap().needs = vec![Label::full(day(5))];
    system.backups[1].manifest.as_mut().unwrap().needs = vec![Label::full(day(1))];
    assert_eq!(
        decided(&rules(None, Some(1), 1), &[system], day(10))[..2],
        ["1 stays: 20260606T120000Z-full needs it", "5 stays: 20260610T120000Z-full needs it"]
    );
}

#[test]
fn what_was_not_agreed_to_stays() {
    let system = daily(1, &[1, 5, 9], 0..=9);
    let decision =
        decide(&rules(None, Some(1), 1), &[system], &|label| *label != Label::full(day(1)), day(10));
    assert_eq!(
        decision.going().map(|verdict| verdict.label.clone()).collect::<Vec<_>>(),
        [Label::full(day(1))]
    );
    assert_eq!(decision.wal[0].goes.files, 5);
}

// ---- every second of the window ------------------------------------------------------------------------------------------

/// What happens in an hour of a cluster's life.
#[derive(Debug, Clone)]
enum Hour {
    /// So many bytes of WAL, and a commit at their end.
    Writes(u64),
    Backup,
    /// A backup that cannot be restored.
    BrokenBackup,
    /// A new timeline from here.
    Failover,
    /// A new timeline from so many bytes ago.
    Rewind(u64),
    /// A backup of the timeline before, whose old primary still runs.
    StrayBackup,
    Upgrade,
    /// The archive loses the segment that is written now.
    Loss,
    Pause(i64),
}

fn hour() -> impl Strategy<Value = Hour> {
    prop_oneof![
        8 => (1..3 * MIB).prop_map(Hour::Writes),
        4 => Just(Hour::Backup),
        1 => Just(Hour::BrokenBackup),
        1 => Just(Hour::Failover),
        1 => (1..6 * MIB).prop_map(Hour::Rewind),
        1 => Just(Hour::StrayBackup),
        1 => Just(Hour::Upgrade),
        1 => Just(Hour::Loss),
        2 => (1..40_i64).prop_map(Hour::Pause),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    system: usize,
    timeline: TimelineId,
    lsn: Lsn,
    at: Timestamp,
}

/// A cluster that lives hour by hour and archives every segment it completes.
struct Life {
    systems: Vec<System>,
    commits: Vec<Commit>,
    now: i64,
    timeline: u32,
    lsn: u64,
    lost: BTreeSet<(usize, WalFile)>,
}

impl Life {
    fn lived(hours: &[Hour]) -> Self {
        let mut life = Self {
            systems: vec![empty(1)],
            commits: Vec::new(),
            now: 0,
            timeline: 1,
            lsn: MIB,
            lost: BTreeSet::new(),
        };
        hours.iter().for_each(|hour| life.live(hour));
        // What is being written is archived in the end, so that the last commits count.
        life.write(MIB);
        life
    }

    fn system(&mut self) -> &mut System {
        self.systems.last_mut().unwrap()
    }

    fn live(&mut self, hour: &Hour) {
        self.now += 1;
        match hour {
            Hour::Writes(bytes) => self.write(*bytes),
            Hour::Backup => self.back_up(false, self.timeline, self.lsn),
            Hour::BrokenBackup => self.back_up(true, self.timeline, self.lsn),
            Hour::StrayBackup => {
                let own = self.systems.last().unwrap().histories.last();
                let Some(left) = own.and_then(|history| history.ancestors().last()).cloned() else { return };
                self.back_up(false, left.timeline.as_u32(), left.switchpoint.as_u64() + MIB);
            }
            Hour::Failover => self.fork(self.lsn),
            Hour::Rewind(bytes) => self.fork(self.lsn.saturating_sub(*bytes).max(MIB)),
            Hour::Upgrade => {
                let number = 1000 - self.systems.len() as u64;
                self.systems.push(empty(number));
                (self.timeline, self.lsn) = (1, MIB);
            }
            Hour::Loss => {
                let segment = segment(timeline(self.timeline), self.lsn / MIB);
                self.lost.insert((self.systems.len(), segment));
            }
            Hour::Pause(hours) => self.now += hours,
        }
    }

    fn write(&mut self, bytes: u64) {
        let system = self.systems.len();
        let (first, on, now) = (self.lsn / MIB, timeline(self.timeline), at(self.now));
        self.lsn += bytes;
        let commit = Commit { system: system - 1, timeline: on, lsn: Lsn::new(self.lsn - 1), at: now };
        self.commits.push(commit);
        for number in first..self.lsn / MIB {
            let file = segment(on, number);
            if !self.lost.contains(&(system, file)) {
                self.system().wal.push(wal(file, now));
            }
        }
    }

    fn back_up(&mut self, broken: bool, on: u32, lsn: u64) {
        let (ended, number) = (at(self.now), self.systems.last().unwrap().id);
        let mut made = backup(ended, timeline(on), Lsn::new(lsn), Lsn::new(lsn + 100));
        made.manifest.as_mut().unwrap().system_identifier = number;
        made.broken = broken.then(|| "data/000001 is missing".to_owned());
        self.system().backups.push(made);
        if on == self.timeline {
            self.write(100);
        }
    }

    /// A new timeline whose first segment is the one that holds `lsn`.
    fn fork(&mut self, lsn: u64) {
        let parent =
            self.systems.last().unwrap().histories.iter().find(|of| of.timeline().as_u32() == self.timeline);
        let mut text = String::new();
        for ancestor in
            parent.iter().flat_map(|of| of.ancestors()).filter(|of| of.switchpoint.as_u64() <= lsn)
        {
            text += &format!("{}\t{}\t\n", ancestor.timeline, ancestor.switchpoint);
        }
        let begun =
            parent.and_then(|of| of.ancestors().last()).is_none_or(|of| of.switchpoint.as_u64() <= lsn);
        if !begun {
            // To before this timeline began: too intricate for a model.
            return;
        }
        text += &format!("{}\t{}\t\n", self.timeline, Lsn::new(lsn));
        let new =
            self.systems.last().unwrap().histories.iter().map(|of| of.timeline().as_u32()).max().unwrap_or(1)
                + 1;
        let history = TimelineHistory::parse(timeline(new), &text).unwrap();
        self.system().histories.push(history);
        (self.timeline, self.lsn) = (new, lsn);
    }
}

/// Whether a restore reaches this commit: written from what PostgreSQL does, not from what the decision does.
fn restorable(systems: &[System], commit: &Commit) -> bool {
    let system = &systems[commit.system];
    let present: BTreeSet<WalFile> = system.wal.iter().map(|wal| wal.file).collect();
    let history = system.histories.iter().find(|of| of.timeline() == commit.timeline);
    // (timeline, its first segment, where it is left), oldest first.
    let mut way: Vec<(TimelineId, u64, u64)> = Vec::new();
    let mut begin = 0;
    for ancestor in history.iter().flat_map(|of| of.ancestors()) {
        way.push((ancestor.timeline, begin, ancestor.switchpoint.as_u64()));
        begin = ancestor.switchpoint.as_u64() / MIB;
    }
    way.push((commit.timeline, begin, u64::MAX));
    wholes(system).any(|(_, manifest)| {
        let Some(enters) = way.iter().position(|(timeline, ..)| *timeline == manifest.timeline) else {
            return false;
        };
        let stop = manifest.stop_lsn.as_u64();
        stop <= way[enters].2
            && stop <= commit.lsn.as_u64()
            && (manifest.start_lsn.as_u64() / MIB..=commit.lsn.as_u64() / MIB).all(|number| {
                let on = way[enters..]
                    .iter()
                    .rfind(|(_, begin, _)| *begin <= number)
                    .map_or(way[enters].0, |of| of.0);
                present.contains(&segment(on, number))
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_second_of_the_window_that_could_be_restored_still_can(
        hours in prop::collection::vec(hour(), 1..60),
        window in prop::option::of(1..80_u64),
        keep_full in prop::option::of(0..4_u32),
        minimum_full in 1..3_u32,
        later in 0..50_i64,
    ) {
        let life = Life::lived(&hours);
        let now = at(life.now + later);
        let rules = Rules { window: window.map(|hours| Duration::from_secs(hours * 3600)), keep_full, minimum_full };
        let decision = decide(&rules, &life.systems, &|_| false, now);
        let mut left = life.systems.clone();
        for verdict in decision.going() {
            let system = left.iter_mut().find(|system| system.id == verdict.system_identifier).unwrap();
            system.backups.retain(|backup| backup.label != verdict.label);
        }
        for wal in &decision.wal {
            let system = left.iter_mut().find(|system| system.id == wal.system_identifier).unwrap();
            system.wal.retain(|stored| !wal.going.contains(&stored.file));
        }
        let begin = window.map_or(Timestamp::MIN, |hours| now - SignedDuration::from_hours(i64::try_from(hours).unwrap()));
        let in_window = window.is_some() || keep_full.is_none();
        for commit in life.commits.iter().filter(|commit| in_window && commit.at >= begin) {
            let (before, after) = (restorable(&life.systems, commit), restorable(&left, commit));
            prop_assert!(!before || after, "{commit:?}\n{decision:#?}");
        }
        // Whatever the window, the newest stay, with all that a restore of them needs.
        let whole = |systems: &[System]| systems.iter().map(|system| wholes(system).count()).sum::<usize>();
        prop_assert!(whole(&left) >= whole(&life.systems).min(minimum_full.max(keep_full.unwrap_or(0)) as usize));
        for commit in &life.commits {
            let keeps = |backup: &&Backup| left[commit.system].backups.iter().any(|of| of.label == backup.label);
            let mut only: Vec<System> = life.systems.clone();
            only[commit.system].backups = life.systems[commit.system].backups.iter().filter(keeps).cloned().collect();
            prop_assert_eq!(restorable(&only, commit), restorable(&left, commit), "WAL of a backup that stays went");
        }
        // Once more, and nothing goes.
        let again = decide(&rules, &left, &|_| false, now);
        prop_assert!(again.is_empty(), "{again:#?}");
    }
}
