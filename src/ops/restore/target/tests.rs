//! Invented catalogues: a backup every hundred MiB, segments of 16 MiB, a transaction a segment.

use super::*;

const SIZE: u64 = 16 << 20;

fn size() -> WalSegmentSize {
    WalSegmentSize::new(SIZE).unwrap()
}

fn tl(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

/// The LSN a little into segment `number`.
fn lsn(number: u64) -> Lsn {
    Lsn::new(number * SIZE + 0x28)
}

/// Minute `m` of the day.
fn at(minute: u64) -> Timestamp {
    let begin: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
    Timestamp::from_second(begin.as_second() + i64::try_from(minute).unwrap() * 60).unwrap()
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::holding(Lsn::new(number * SIZE), tl(timeline), size())
}

/// A backup that begins in segment `first`, ends in segment `last`, and ends in minute `last`.
fn backup(timeline: u32, first: u64, last: u64) -> Manifest {
    let golden = include_str!("../../../../tests/golden/manifest-v1.json");
    let mut manifest: Manifest = crate::repo::seal::read_document(golden.as_bytes()).unwrap();
    manifest.label = Label::full(at(first));
    manifest.timeline = tl(timeline);
    manifest.start_lsn = lsn(first);
    manifest.stop_lsn = lsn(last);
    manifest.begun = at(first);
    manifest.ended = at(last);
    manifest
}

fn archived(timeline: u32, history: &[(u32, Lsn)], runs: &[(u64, u64)]) -> (TimelineId, Archived) {
    let text: String = history.iter().map(|(from, at)| format!("{from}\t{at}\tno reason\n")).collect();
    let history = (timeline > 1).then(|| TimelineHistory::parse(tl(timeline), &text).unwrap());
    let spans = runs
        .iter()
        .map(|(first, last)| Span { first: segment(timeline, *first), last: segment(timeline, *last) })
        .collect();
    (tl(timeline), Archived { history, spans })
}

fn known(
    backups: Vec<Manifest>,
    timelines: impl IntoIterator<Item = (TimelineId, Archived)>,
    primary: Option<u32>,
) -> Known {
    Known {
        backups,
        segment_size: size(),
        timelines: timelines.into_iter().collect(),
        primary: primary.map(tl),
    }
}

/// One timeline, two backups, segments 1 to 40.
fn simple() -> Known {
    known(vec![backup(1, 10, 12), backup(1, 20, 22)], [archived(1, &[], &[(1, 40)])], Some(1))
}

fn wish(target: Target) -> Wish {
    Wish { target, timeline: None, backup: None }
}

/// In the middle of segment n, minute n, transaction 1000 + n commits.
fn minutely(name: SegmentName) -> Result<Vec<Mark>> {
    let number = name.number(size());
    let xid = u32::try_from(1000 + number).unwrap();
    Ok(vec![Mark { lsn: Lsn::new(number * SIZE + SIZE / 2), at: at(number), kind: MarkKind::Commit { xid } }])
}

#[track_caller]
fn choose(known: &Known, target: Target) -> Choice {
    decide(known, &wish(target), &mut minutely)
        .unwrap_or_else(|error| panic!("{error}: {:?}", error.detail_text()))
}

#[track_caller]
fn refusal(known: &Known, wish: &Wish) -> String {
    let error = decide(known, wish, &mut minutely).expect_err("it must be refused");
    format!("{}: {}", error.what(), error.detail_text().unwrap_or_default())
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

fn last_number(choice: &Choice) -> u64 {
    choice.wal.last().unwrap().last.number(size())
}

#[test]
fn the_latest_is_the_newest_backup_and_all_wal_behind_it() {
    let choice = choose(&simple(), Target::Latest);
    assert_eq!(choice.backup, Label::full(at(20)));
    assert_eq!(choice.wal, [Span { first: segment(1, 20), last: segment(1, 40) }]);
    assert_eq!(choice.last.unwrap().at, at(40));
}

#[test]
fn a_time_takes_the_newest_backup_that_ended_before_it() {
    let choice = choose(&simple(), Target::Time(at(21)));
    assert_eq!(choice.backup, Label::full(at(10)));
    assert_eq!(choice.last.unwrap().at, at(21));
    assert_eq!(choice.next.unwrap().at, at(22));
    assert_eq!(choice.wal, [Span { first: segment(1, 10), last: segment(1, 22) }]);

    let later = choose(&simple(), Target::Time(at(23)));
    assert_eq!(later.backup, Label::full(at(20)));
    assert_eq!(later.wal, [Span { first: segment(1, 20), last: segment(1, 24) }]);
}

#[test]
fn a_time_between_two_transactions_ends_before_the_second() {
    let between = Timestamp::from_millisecond(at(30).as_millisecond() + 1).unwrap();
    let choice = choose(&simple(), Target::Time(between));
    assert_eq!(choice.last.unwrap().at, at(30));
    assert_eq!(choice.next.unwrap().at, at(31));
}

#[test]
fn every_time_of_the_window_finds_its_transaction_although_most_segments_have_none() {
    let mut sparse = |name: SegmentName| {
        let number = name.number(size());
        if number.is_multiple_of(7) { minutely(name) } else { Ok(Vec::new()) }
    };
    for minute in 23..35 {
        let choice = decide(&simple(), &wish(Target::Time(at(minute))), &mut sparse).unwrap();
        let expected = minute / 7 * 7 + 7;
        assert_eq!(choice.next.clone().unwrap().at, at(expected), "minute {minute}");
        assert_eq!(last_number(&choice), expected, "minute {minute}");
    }
    let error = decide(&simple(), &wish(Target::Time(at(35))), &mut sparse).unwrap_err();
    assert!(error.what().contains("does not reach that far"), "{error}");
}

#[test]
fn refuses_a_time_before_the_end_of_every_backup() {
    let told = refusal(&simple(), &wish(Target::Time(at(12))));
    assert_has(
        &told,
        &[
            "the oldest backup that leads there ends later",
            "20261121T001000Z-full",
            "2026-11-21 00:12:00 UTC",
        ],
    );
}

#[test]
fn refuses_a_time_behind_the_last_archived_transaction() {
    let told = refusal(&simple(), &wish(Target::Time(at(40))));
    assert_has(&told, &["the archive does not reach that far", "ended at 2026-11-21 00:40:00 UTC"]);
}

#[test]
fn refuses_an_lsn_before_the_end_of_every_backup_and_one_behind_the_archive() {
    let before = Lsn::new(lsn(12).as_u64() - 1);
    assert_has(
        &refusal(&simple(), &wish(Target::Lsn(before))),
        &["the oldest backup that leads there ends later"],
    );
    assert_eq!(choose(&simple(), Target::Lsn(lsn(12))).backup, Label::full(at(10)));
    assert_eq!(choose(&simple(), Target::Lsn(lsn(22))).backup, Label::full(at(20)));
    assert_has(
        &refusal(&simple(), &wish(Target::Lsn(Lsn::new(41 * SIZE)))),
        &["the archive does not reach LSN 0/29000001", "ends with 000000010000000000000028"],
    );
}

#[test]
fn an_lsn_at_the_very_end_of_a_segment_needs_no_more_than_the_segment() {
    let choice = choose(&simple(), Target::Lsn(Lsn::new(30 * SIZE + SIZE - 8)));
    assert_eq!(last_number(&choice), 30);
    assert_eq!(last_number(&choose(&simple(), Target::Lsn(Lsn::new(31 * SIZE)))), 31);
}

#[test]
fn a_missing_segment_on_the_way_is_refused_by_its_name() {
    let known = known(vec![backup(1, 10, 12)], [archived(1, &[], &[(1, 24), (26, 40)])], Some(1));
    for target in [Target::Latest, Target::Lsn(lsn(30))] {
        let told = refusal(&known, &wish(target));
        assert_has(
            &told,
            &["WAL is missing", "000000010000000000000019", "goes on with 00000001000000000000001A"],
        );
    }
    let told = refusal(&known, &wish(Target::Time(at(30))));
    assert_has(&told, &["does not reach that far", "000000010000000000000019 is missing"]);
    // Before the gap everything can be reached.
    assert_eq!(last_number(&choose(&known, Target::Time(at(20)))), 21);
    assert_eq!(last_number(&choose(&known, Target::Lsn(lsn(24)))), 24);
}

#[test]
fn a_backup_whose_own_wal_is_missing_is_refused() {
    let known = known(vec![backup(1, 10, 12)], [archived(1, &[], &[(1, 10), (12, 40)])], Some(1));
    for target in [Target::Immediate, Target::Latest, Target::Lsn(lsn(20))] {
        assert_has(&refusal(&known, &wish(target)), &["WAL is missing", "00000001000000000000000B"]);
    }
}

#[test]
fn without_wal_at_all_nothing_is_promised() {
    let known = known(vec![backup(1, 10, 12)], [], Some(1));
    for target in [Target::Immediate, Target::Latest, Target::Lsn(lsn(20)), Target::Time(at(20))] {
        assert!(decide(&known, &wish(target), &mut minutely).is_err());
    }
}

#[test]
fn immediate_needs_the_wal_of_the_backup_alone() {
    let choice = choose(&simple(), Target::Immediate);
    assert_eq!(choice.wal, [Span { first: segment(1, 20), last: segment(1, 22) }]);
}

/// Timeline 2 left 1 in segment 30, timeline 3 left 2 in segment 35.
fn three() -> Vec<(TimelineId, Archived)> {
    vec![
        archived(1, &[], &[(1, 29)]),
        archived(2, &[(1, lsn(30))], &[(30, 34)]),
        archived(3, &[(1, lsn(30)), (2, lsn(35))], &[(35, 40)]),
    ]
}

#[test]
fn recovery_goes_over_every_switch_of_timeline() {
    let known = known(vec![backup(1, 20, 22)], three(), Some(3));
    let choice = choose(&known, Target::Latest);
    assert_eq!(choice.timelines, [tl(1), tl(2), tl(3)]);
    assert_eq!(
        choice.wal,
        [
            Span { first: segment(1, 20), last: segment(1, 29) },
            Span { first: segment(2, 30), last: segment(2, 34) },
            Span { first: segment(3, 35), last: segment(3, 40) },
        ]
    );
    assert_eq!(choose(&known, Target::Time(at(33))).timelines, [tl(1), tl(2)]);
}

#[test]
fn two_switches_within_one_segment_are_one_step() {
    let forks = [(1, lsn(30)), (2, Lsn::new(lsn(30).as_u64() + 80))];
    let timelines =
        [archived(1, &[], &[(1, 29)]), archived(2, &forks[..1], &[]), archived(3, &forks, &[(30, 40)])];
    let choice = choose(&known(vec![backup(1, 20, 22)], timelines, Some(3)), Target::Latest);
    assert_eq!(choice.timelines, [tl(1), tl(3)]);
}

#[test]
fn the_forks_segment_of_the_timeline_before_will_do_up_to_the_fork_and_no_further() {
    let timelines = [archived(1, &[], &[(1, 30)]), archived(2, &[(1, lsn(30))], &[(31, 40)])];
    let known = known(vec![backup(1, 20, 22)], timelines, Some(2));
    let choice = choose(&known, Target::Lsn(Lsn::new(30 * SIZE + 8)));
    assert_eq!(choice.wal.last().unwrap().last, segment(1, 30));
    assert_has(&refusal(&known, &wish(Target::Latest)), &["WAL is missing", "00000002000000000000001E"]);
}

#[test]
fn wal_that_the_old_primary_wrote_behind_the_fork_is_not_replayed() {
    let timelines = [archived(1, &[], &[(1, 36)]), archived(2, &[(1, lsn(30))], &[(30, 40)])];
    let known = known(vec![backup(1, 20, 22)], timelines, Some(2));
    let choice = choose(&known, Target::Latest);
    assert_eq!(choice.wal[0].last, segment(1, 29));
    assert_eq!(choice.timelines, [tl(1), tl(2)]);
}

#[test]
fn a_timeline_that_a_test_restore_made_is_not_followed() {
    // The primary is on 2; somebody's test restore of an earlier moment has archived timeline 3.
    let timelines = || {
        [
            archived(1, &[], &[(1, 29)]),
            archived(2, &[(1, lsn(30))], &[(30, 40)]),
            archived(3, &[(1, lsn(25))], &[(25, 28)]),
        ]
    };
    let with = known(vec![backup(1, 20, 22)], timelines(), Some(2));
    let choice = choose(&with, Target::Latest);
    assert_eq!((choice.timeline, last_number(&choice)), (tl(2), 40));

    let without = known(vec![backup(1, 20, 22)], timelines(), None);
    let told = refusal(&without, &wish(Target::Latest));
    assert_has(
        &told,
        &[
            "cannot tell whether timeline 3 is the cluster's own",
            "timeline 1, archived up to 00000001000000000000001D; timeline 2",
        ],
    );
    let named = Wish { timeline: Some(tl(2)), ..wish(Target::Latest) };
    assert_eq!(decide(&without, &named, &mut minutely).unwrap().timeline, tl(2));
}

#[test]
fn without_a_primary_a_single_line_is_followed_to_its_end() {
    let known = known(vec![backup(1, 20, 22)], three(), None);
    assert_eq!(choose(&known, Target::Latest).timeline, tl(3));
}

#[test]
fn a_history_file_that_is_missing_is_refused() {
    let mut timelines = three();
    timelines[2].1.history = None;
    let known = known(vec![backup(1, 20, 22)], timelines, Some(3));
    assert_has(
        &refusal(&known, &wish(Target::Latest)),
        &["the history of timeline 3 is not in the archive", "00000003.history"],
    );
    let unknown = Wish { timeline: Some(tl(9)), ..wish(Target::Latest) };
    assert_has(&refusal(&known, &unknown), &["the history of timeline 9 is not in the archive"]);
}

#[test]
fn refuses_a_timeline_that_forked_before_the_backup_ended() {
    // The only backup ended on timeline 1 in segment 32, behind the fork of timeline 2 in segment 30.
    let known = known(vec![backup(1, 28, 32)], three(), Some(3));
    let told = refusal(&known, &wish(Target::Latest));
    assert_has(
        &told,
        &[
            "no backup leads to timeline 3 (the primary's)",
            "ended at 0/20000028 on timeline 1, behind 0/1E000028",
        ],
    );
    let named = Wish { backup: Some(Label::full(at(28))), ..wish(Target::Latest) };
    assert_has(&refusal(&known, &named), &["backup 20261121T002800Z-full does not lead to timeline 3"]);
}

#[test]
fn a_newer_backup_on_another_line_does_not_hide_the_one_that_leads_there() {
    let timelines = [archived(1, &[], &[(1, 36)]), archived(2, &[(1, lsn(30))], &[(30, 40)])];
    let known = known(vec![backup(1, 20, 22), backup(1, 33, 35)], timelines, Some(2));
    assert_eq!(choose(&known, Target::Latest).backup, Label::full(at(20)));
}

#[test]
fn a_transaction_is_found_behind_the_newest_backup_that_ended_before_it() {
    let choice = choose(&simple(), Target::Xid(1030));
    assert_eq!((choice.backup.clone(), last_number(&choice)), (Label::full(at(20)), 30));
    assert_eq!(choice.last.unwrap().kind, MarkKind::Commit { xid: 1030 });
    // It ended while the newest backup ran: that backup has it, and cannot stop at it.
    let within = choose(&simple(), Target::Xid(1021));
    assert_eq!((within.backup.clone(), last_number(&within)), (Label::full(at(10)), 21));
    assert_eq!(choose(&simple(), Target::Xid((1 << 32) + 1030)).backup, Label::full(at(20)));
    assert_has(
        &refusal(&simple(), &wish(Target::Xid(5))),
        &["transaction 5 is not in the archive", "20261121T001000Z-full"],
    );
}

#[test]
fn a_restore_point_is_found_by_its_name() {
    let mut marks = |name: SegmentName| {
        let mut found = minutely(name)?;
        if name.number(size()) == 15 {
            let lsn = Lsn::new(found[0].lsn.as_u64() + 8);
            found.push(Mark { lsn, at: at(15), kind: MarkKind::RestorePoint { name: "before".to_owned() } });
        }
        Ok(found)
    };
    let found = decide(&simple(), &wish(Target::Name("before".to_owned())), &mut marks).unwrap();
    assert_eq!((found.backup.clone(), last_number(&found)), (Label::full(at(10)), 15));
    assert!(decide(&simple(), &wish(Target::Name("after".to_owned())), &mut marks).is_err());
}

#[test]
fn a_backup_that_was_named_is_used_or_refused() {
    let named = |target| Wish { backup: Some(Label::full(at(10))), ..wish(target) };
    assert_eq!(decide(&simple(), &named(Target::Latest), &mut minutely).unwrap().backup, Label::full(at(10)));
    assert_has(&refusal(&simple(), &named(Target::Time(at(11)))), &["the backup ends later"]);
    let none = Wish { backup: Some(Label::full(at(11))), ..wish(Target::Latest) };
    assert_has(&refusal(&simple(), &none), &["there is no backup 20261121T001100Z-full"]);
}

#[test]
fn without_a_backup_there_is_nothing_to_restore() {
    let known = known(Vec::new(), [archived(1, &[], &[(1, 40)])], Some(1));
    for target in [Target::Latest, Target::Immediate, Target::Time(at(20))] {
        assert_has(&refusal(&known, &wish(target)), &["there is no backup to restore"]);
    }
}

#[test]
fn any_size_of_segments_will_do() {
    for mib in [1_u64, 64, 1024] {
        let size = WalSegmentSize::new(mib << 20).unwrap();
        let name = |number: u64| SegmentName::holding(Lsn::new(number * (mib << 20)), tl(1), size);
        let mut backup = backup(1, 10, 12);
        backup.start_lsn = Lsn::new(10 * (mib << 20) + 40);
        backup.stop_lsn = Lsn::new(12 * (mib << 20) + 40);
        let archived = Archived { history: None, spans: vec![Span { first: name(1), last: name(5000) }] };
        let known = Known {
            backups: vec![backup],
            segment_size: size,
            timelines: [(tl(1), archived)].into(),
            primary: None,
        };
        let choice = decide(&known, &wish(Target::Latest), &mut |_| Ok(Vec::new())).unwrap();
        assert_eq!(choice.wal, [Span { first: name(10), last: name(5000) }]);
        assert_eq!(names(&choice.wal, size).len(), 4991);
    }
}
