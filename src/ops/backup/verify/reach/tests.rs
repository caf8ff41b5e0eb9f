use super::*;
use crate::ops::backup::retention::{Pinned, StoredWal};
use crate::ops::backup::trial::{MIB, manifest};
use crate::pg::history::TimelineHistory;
use crate::units::ByteCount;

fn size() -> WalSegmentSize {
    WalSegmentSize::new(MIB).unwrap()
}

fn timeline(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

/// Day `number` of the archive, at noon.
fn day(number: u64) -> Timestamp {
    "2026-06-01T12:00:00Z".parse::<Timestamp>().unwrap()
        + jiff::SignedDuration::from_hours(24 * i64::try_from(number).unwrap())
}

fn backup(on: u32, number: u64) -> Backup {
    let made = Manifest {
        timeline: timeline(on),
        start_lsn: Lsn::new(number * MIB + 40),
        stop_lsn: Lsn::new(number * MIB + 400),
        ..manifest(day(number))
    };
    Backup {
        label: made.label.clone(),
        stored: ByteCount(1),
        manifest: Some(made),
        broken: None,
        pin: Pinned::No,
        locked: None,
    }
}

fn system(
    backups: &[(u32, u64)],
    wal: &[(u32, std::ops::RangeInclusive<u64>)],
    histories: &[(u32, &str)],
) -> System {
    let stored = |on, number| StoredWal {
        file: WalFile::Segment(segment(timeline(on), number, size())),
        stored: ByteCount(1),
        at: day(number),
        locked: None,
    };
    System {
        id: SystemIdentifier::new(1).unwrap(),
        backups: backups.iter().map(|(on, number)| backup(*on, *number)).collect(),
        unfinished: Vec::new(),
        wal: wal.iter().flat_map(|(on, numbers)| numbers.clone().map(|number| stored(*on, number))).collect(),
        histories: histories
            .iter()
            .map(|(on, text)| TimelineHistory::parse(timeline(*on), text).unwrap())
            .collect(),
        uses: Vec::new(),
    }
}

/// Says what is missing and lost, a line each; segments by their number.
fn said(system: &System, bad: &[(u32, u64)], broken: &[u64]) -> Vec<String> {
    let bad =
        bad.iter().map(|(on, number)| WalFile::Segment(segment(timeline(*on), *number, size()))).collect();
    let broken = broken.iter().map(|number| Label::full(day(*number))).collect();
    let reach = reach(system, &bad, &broken);
    let days = |at: Option<Timestamp>| at.map_or(-1, |at| (at - day(0)).get_seconds() / 86_400);
    let missing = reach.missing.iter().map(|run| {
        let (first, last) = (run.first.number(size()), run.last.number(size()));
        format!("missing {}: {first} to {last}", run.first.timeline())
    });
    let without = reach
        .without_wal
        .iter()
        .map(|(label, name)| format!("backup of {} without {}", days(Some(label.at())), name.number(size())));
    let lost = reach.lost.iter().map(|span| {
        format!(
            "lost {}: {} to {}, days {} to {}",
            span.timeline,
            span.from_lsn.as_u64() / MIB,
            span.to_lsn.as_u64() / MIB - 1,
            days(span.after),
            days(span.until)
        )
    });
    missing.chain(without).chain(lost).collect()
}

#[test]
fn nothing_is_lost_where_nothing_is_missing() {
    assert_eq!(said(&system(&[(1, 2), (1, 5)], &[(1, 0..=9)], &[]), &[], &[]), Vec::<String>::new());
    // What lies before the first backup was never of use.
    assert_eq!(
        said(&system(&[(1, 5)], &[(1, 0..=2), (1, 4..=9)], &[]), &[(1, 0)], &[]),
        Vec::<String>::new()
    );
}

#[test]
fn a_gap_costs_the_time_up_to_the_next_backup() {
    let gap = system(&[(1, 2), (1, 6)], &[(1, 0..=3), (1, 5..=9)], &[]);
    assert_eq!(said(&gap, &[], &[]), ["missing 1: 4 to 4", "lost 1: 4 to 5, days 3 to 5"]);
    let damaged = system(&[(1, 2), (1, 6)], &[(1, 0..=9)], &[]);
    assert_eq!(said(&damaged, &[(1, 8)], &[]), ["lost 1: 8 to 9, days 7 to -1"]);
}

#[test]
fn a_backup_that_is_not_whole_costs_what_no_older_one_reaches() {
    let of = system(&[(1, 2), (1, 6)], &[(1, 0..=9)], &[]);
    assert_eq!(said(&of, &[], &[6]), Vec::<String>::new());
    assert_eq!(said(&of, &[], &[2]), ["lost 1: 2 to 5, days 1 to 5"]);
    assert_eq!(said(&of, &[(1, 4)], &[6]), ["lost 1: 4 to 9, days 3 to -1"]);
}

#[test]
fn a_backup_needs_its_own_wal() {
    let of = system(&[(1, 2), (1, 6)], &[(1, 0..=5)], &[]);
    assert_eq!(said(&of, &[], &[]), ["missing 1: 6 to 6", "backup of 6 without 6"]);
}

#[test]
fn a_later_timeline_is_reached_through_its_history() {
    let wal = [(1, 0..=6), (2, 5..=9)];
    let history = [(2, "1\t0/500100\tno recovery target specified\n")];
    let of = system(&[(1, 2)], &wal, &history);
    assert_eq!(said(&of, &[], &[]), Vec::<String>::new());
    // Of the old timeline nothing behind the switch is needed for the new one.
    assert_eq!(said(&of, &[(1, 5)], &[]), ["lost 1: 5 to 6, days 4 to -1"]);
    assert_eq!(said(&of, &[(1, 4)], &[]), ["lost 1: 4 to 6, days 3 to -1", "lost 2: 5 to 9, days 4 to -1"]);
    // What the old timeline lost at its end is on the way to the new one.
    let of = system(&[(1, 2)], &[(1, 0..=3), (2, 5..=9)], &history);
    assert_eq!(
        said(&of, &[], &[]),
        ["missing 1: 4 to 4", "lost 1: 4 to 4, days 3 to -1", "lost 2: 5 to 9, days -1 to -1"]
    );
    // A backup of the new timeline mends that.
    let of = system(&[(1, 2), (2, 7)], &[(1, 0..=3), (2, 5..=9)], &history);
    assert_eq!(
        said(&of, &[], &[]),
        ["missing 1: 4 to 4", "lost 1: 4 to 4, days 3 to -1", "lost 2: 5 to 6, days -1 to 6"]
    );
}
