//! `switchover`: another node leads, nobody loses a row, and whatever befalls it one primary serves afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::herd::{Herd, PAIR, Ran, Shape, WHOLE, as_server, newest_or_15, text, until};
use crate::ledger::{self, Writer, archived, led_by};
use crate::server::installations;
use crate::sshd::make_for_servers;

/// Ends the writers; none had an error, and every row that was acknowledged is there, on `primary` and once.
#[track_caller]
fn nothing_is_lost(herd: &Herd, primary: &str, writers: Vec<Writer>) -> Duration {
    let written = ledger::nothing_is_lost(herd, primary, writers);
    assert_eq!(written.errors, Vec::<String>::new());
    written.longest
}

fn switch(herd: &Herd, to: &str) -> Ran {
    herd.run(&["switchover", "--to", to, "--yes"])
}

#[test]
fn clients_of_the_pooler_see_a_pause_and_no_error_and_no_row_is_lost_on_every_major() {
    for installation in installations() {
        let herd = ledger::up(&installation, &WHOLE);
        let dry = herd.run(&["switchover", "--to", "b", "--dry-run"]).ends_with(0);
        dry.says(&[
            "PAUSE",
            "stop (fast)",
            "has the last record of inventory-a",
            "promote, timeline 2",
            "pivot",
        ]);
        assert_eq!(herd.primaries(), ["a"]);

        let writers: Vec<Writer> = (0..3).map(|client| Writer::start(&herd, client)).collect();
        let switched = switch(&herd, "b").ends_with(0);
        switched.says(&[
            "inventory-b is primary (timeline 2)",
            "of the poolers waited",
            "goes on without a gap",
        ]);
        let longest = nothing_is_lost(&herd, "b", writers);
        println!("{}: the longest write took {longest:?}", installation.major);
        led_by(&herd, "b", 2, 2);
        assert!(archived(&herd, "00000002.history"));
        assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_replication_slots"), "0");

        // Once more is no change, and back again is the same thing.
        switch(&herd, "b").ends_with(0).says(&["is primary already. No changes."]);
        let writers: Vec<Writer> = (3..6).map(|client| Writer::start(&herd, client)).collect();
        herd.run(&["switchover", "--yes"]).ends_with(0).says(&["inventory-a is primary (timeline 3)"]);
        nothing_is_lost(&herd, "a", writers);
        led_by(&herd, "a", 3, 2);
    }
}

#[test]
fn everything_that_is_in_the_way_is_told_at_once_and_nothing_is_changed() {
    let herd = ledger::up(&newest_or_15(1), &PAIR);
    herd.sql("b", "SELECT pg_wal_replay_pause()");
    let herd = &herd;
    std::thread::scope(|scope| {
        // Its end is told by whoever waits for it below.
        let long = scope.spawn(|| herd.try_sql("a", "inventory", "BEGIN; SELECT 1; SELECT pg_sleep(60)"));
        until("a transaction is old", || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE xact_start < now() - interval '10 s' AND query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()";
            (herd.sql("a", sql) == "1").then_some(())
        });
        let before = herd.sql("a", "SELECT pg_postmaster_start_time()");
        let refused = switch(herd, "b").ends_with(4);
        refused.tells(&["replay is paused", "has been in a transaction for", "Nothing was changed."]);
        assert_eq!(herd.sql("a", "SELECT pg_postmaster_start_time()"), before);
        assert_eq!(herd.primaries(), ["a"]);
        herd.sql("a", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid()");
        assert!(long.join().unwrap().is_err());
    });
    switch(herd, "nobody").ends_with(10).tells(&["has no node \"nobody\""]);
}

#[test]
fn a_candidate_that_does_not_get_the_last_record_is_not_promoted_and_the_old_primary_serves_again() {
    let herd = ledger::up(&newest_or_15(0), &WHOLE);
    let writer = Writer::start(&herd, 0);
    let mut switch = herd.start(&["switchover", "--to", "b", "--yes"]);
    until("the poolers hold their clients back", || herd.pooler().join("hold.json").exists().then_some(()));
    // After everything was found well.
    herd.sql("b", "SELECT pg_wal_replay_pause()");
    until("it has ended", || switch.has_ended().then_some(()));
    let ended = switch.end().ends_with(1);
    ended.tells(&["inventory-b does not have everything", "the old primary's at"]);
    herd.sql("b", "SELECT pg_wal_replay_resume()");
    let longest = nothing_is_lost(&herd, "a", vec![writer]);
    assert!(longest > Duration::from_secs(10), "they waited meanwhile: {longest:?}");
    led_by(&herd, "a", 1, 2);
    assert_eq!(
        herd.sql("b", "SELECT count(*) FROM pg_replication_slots"),
        "0",
        "what was made for it is gone"
    );
    assert!(!herd.data("a").join("standby.signal").exists());
}

#[test]
fn a_candidate_that_does_not_keep_up_is_found_out_before_any_client_waits() {
    let herd = ledger::up(&newest_or_15(1), &WHOLE);
    // Nobody would call it behind: it has everything, and replays it a minute later.
    herd.sql("b", "ALTER SYSTEM SET recovery_min_apply_delay = '1min'");
    herd.sql("b", "SELECT pg_reload_conf()");
    let writer = Writer::start(&herd, 0);
    herd.run(&["switchover", "--to", "b", "--yes"])
        .ends_with(1)
        .tells(&["inventory-b does not keep up with inventory-a", "No client was held back."]);
    herd.sql("b", "ALTER SYSTEM RESET recovery_min_apply_delay");
    herd.sql("b", "SELECT pg_reload_conf()");
    let longest = nothing_is_lost(&herd, "a", vec![writer]);
    assert!(longest < Duration::from_secs(5), "clients waited for {longest:?}");
    led_by(&herd, "a", 1, 2);
}

#[test]
fn without_a_pooler_at_a_moment_to_come_the_gap_without_writes_is_told_and_a_base_backup_is_in_the_way() {
    let herd = ledger::up(&newest_or_15(1), &Shape { nodes: &["a", "b"], synchronous: true, pooler: false });
    // A base backup of somebody else's, which the end of the primary would end as well.
    let target = herd.path("basebackup");
    let mut backup = as_server(&herd.installation().bin().join("pg_basebackup"));
    backup.args(["-D", text(&target), "--max-rate=32k", "-c", "fast", "-X", "none", "-U", "postgres", "-p"]);
    backup.arg(herd.port("a").to_string()).arg("-h").arg(herd.path("state/run/inventory-a"));
    make_for_servers(&target);
    let mut backup = backup.spawn().expect("pg_basebackup starts");
    let runs = "SELECT count(*) FROM pg_stat_progress_basebackup";
    until("the backup is read", || (herd.sql("a", runs) == "1").then_some(()));
    switch(&herd, "b").ends_with(4).tells(&["a base backup runs", "Nothing was changed."]);
    assert_eq!(herd.primaries(), ["a"]);
    backup.kill().expect("end it");
    backup.wait().expect("it has ended");
    until("nobody reads it", || (herd.sql("a", runs) == "0").then_some(()));

    // Nothing is done before its moment, and nothing is held.
    let writer = Writer::direct(&herd, 0, &["a", "b"]);
    let moment = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(5);
    let at = moment.to_string();
    let mut waits = herd.start(&["switchover", "--to", "b", "--at", &at, "--yes"]);
    until("it waits", || waits.so_far().1.contains("waits until").then_some(()));
    assert_eq!(herd.primaries(), ["a"]);
    assert!(jiff::Timestamp::now() < moment);
    herd.run(&["operation", "list"]).ends_with(0).does_not_say("switchover");
    until("it has ended", || waits.has_ended().then_some(()));
    let done = waits.end().ends_with(0);
    assert!(jiff::Timestamp::now() > moment);
    done.clone().says(&["inventory-b is primary (timeline 2)", "clients    no node took writes for"]);
    let written = ledger::nothing_is_lost(&herd, "b", vec![writer]);
    led_by(&herd, "b", 2, 1);

    // What it tells is what a client sees, less what that takes to come back.
    let list = herd.run(&["--format", "json", "operation", "list"]).json().to_string();
    assert!(list.contains("switchover"), "{list}");
    let told = done
        .stdout
        .lines()
        .find_map(|line| line.split_once("took writes for "))
        .expect("the gap")
        .1
        .to_owned();
    let (number, unit) = told.trim().split_once(' ').expect("a number and its unit");
    let number: f64 = number.parse().expect("a number");
    let gap = match unit {
        "ms" => Duration::from_secs_f64(number / 1000.0),
        "s" => Duration::from_secs_f64(number),
        other => panic!("{told}: {other}"),
    };
    println!("told {gap:?}, a client saw {:?}, with {} errors", written.longest, written.errors.len());
    assert!(gap <= written.longest + Duration::from_millis(250), "{gap:?}, {:?}", written.longest);
    assert!(written.longest <= gap + Duration::from_secs(2), "{gap:?}, {:?}", written.longest);
}

/// How many switchovers are killed.
fn kills() -> u32 {
    if std::env::var_os("PGHERD_SOAK").is_some() { 50 } else { 4 }
}

#[test]
fn a_switchover_that_is_killed_at_any_moment_is_resumed_or_undone_and_no_row_is_lost() {
    let herd = ledger::up(&newest_or_15(1), &WHOLE);
    let mut timeline = 1;
    let (mut primary, mut other) = ("a", "b");
    // How long one takes in all, to kill at every part of it.
    let mut usual = Duration::from_secs(3);
    for turn in 0..kills() {
        let writer = Writer::start(&herd, turn);
        let after = usual * (turn * 37 % 100) / 100;
        let begun = Instant::now();
        let mut switch = herd.start(&["switchover", "--to", other, "--yes"]);
        while begun.elapsed() < after && !switch.has_ended() {
            std::thread::sleep(Duration::from_millis(1));
        }
        switch.signal(Signal::KILL);
        let ended = switch.end();
        if ended.code == 0 {
            usual = begun.elapsed();
        }
        let report = herd.run(&["status", "--format", "json"]).json();
        let left = report["clusters"][0]["operations"].as_array().expect("operations").clone();
        if let Some(id) = left.first().and_then(|left| left["id"].as_str()) {
            let undone = turn % 2 == 0 && herd.run(&["operation", "undo", id, "--yes"]).code == 0;
            if !undone {
                herd.run(&["operation", "resume", id, "--yes"]).ends_with(0);
            }
        }
        let leads = herd.primaries();
        assert_eq!(leads.len(), 1, "turn {turn}: {leads:?}");
        if leads == [other] {
            std::mem::swap(&mut primary, &mut other);
            timeline += 1;
        }
        nothing_is_lost(&herd, primary, vec![writer]);
        led_by(&herd, primary, timeline, 2);
    }
}

/// What a hook of the herd does: writes down what it was told, and fails if a file says so.
const HOOK: &str = "#!/bin/sh
at=$(dirname \"$0\")
echo \"$PGHERD_POINT $PGHERD_ATTEMPT $PGHERD_OLD_PRIMARY $PGHERD_NEW_PRIMARY $PGHERD_NEW_PRIMARY_PORT timeline $PGHERD_TIMELINE\" >>\"$at/told\"
if [ -e \"$at/$PGHERD_POINT\" ]; then echo \"no $PGHERD_POINT today\" >&2; exit 3; fi
echo \"$PGHERD_POINT is well\"
";

#[test]
fn hooks_are_run_at_their_points_veto_before_the_pivot_and_are_told_after_it() {
    let mut herd = ledger::up(&newest_or_15(1), &PAIR);
    herd.edit(
        "    schemas:\n",
        "    hooks:
      before-switchover: [hooks/hook]
      before-promote: {run: [hooks/hook], timeout: 10 s}
      after-promote: {run: [hooks/hook], on: new-primary}
      after-switchover: [hooks/hook]
      after-undo: [hooks/hook]
    schemas:\n",
    );
    let refused = switch(&herd, "b").ends_with(4);
    refused.tells(&[
        "cannot run the hook before-promote: ",
        "hooks/hook is not a program",
        "Nothing was changed.",
    ]);

    let hooks = herd.path("hooks");
    fs::create_dir(&hooks).unwrap();
    fs::write(hooks.join("hook"), HOOK).unwrap();
    fs::set_permissions(hooks.join("hook"), fs::Permissions::from_mode(0o755)).unwrap();
    let told = || {
        let text = fs::read_to_string(hooks.join("told")).unwrap_or_default();
        fs::remove_file(hooks.join("told")).ok();
        text.replace(&herd.port("b").to_string(), "PORT")
    };
    let who = "inventory-a inventory-b PORT timeline";

    // One that fails before the promotion stops it, and everything is as it was.
    fs::write(hooks.join("before-promote"), "").unwrap();
    let writer = Writer::start(&herd, 0);
    let vetoed = switch(&herd, "b").ends_with(1);
    vetoed.tells(&[
        "the hook before-promote, ",
        "ended with status 3",
        "It printed: no before-promote today",
    ]);
    assert_eq!(
        told(),
        format!("before-switchover 1 {who} 1\nbefore-promote 1 {who} 1\nafter-undo 1 {who} 1\n")
    );
    nothing_is_lost(&herd, "a", vec![writer]);
    led_by(&herd, "a", 1, 1);
    fs::remove_file(hooks.join("before-promote")).unwrap();

    // One that fails after it is told; clients went on long before, and a resume runs it again.
    fs::write(hooks.join("after-promote"), "").unwrap();
    let writer = Writer::start(&herd, 1);
    let incomplete = switch(&herd, "b").ends_with(7);
    incomplete.tells(&["the hook after-promote, ", "ended with status 3", "no after-promote today"]);
    nothing_is_lost(&herd, "b", vec![writer]);
    assert_eq!(
        told(),
        format!(
            "before-switchover 1 {who} 1\nbefore-promote 1 {who} 1\nafter-promote 1 {who} 2\nafter-promote 2 {who} 2\n"
        )
    );
    fs::remove_file(hooks.join("after-promote")).unwrap();
    let report = herd.run(&["status", "--format", "json"]).json();
    let id = report["clusters"][0]["operations"][0]["id"].as_str().expect("an operation").to_owned();
    herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0).says(&[
        "after-promote took",
        "after-promote is well",
        "after-switchover took",
    ]);
    assert_eq!(told(), format!("after-promote 3 {who} 2\nafter-switchover 1 {who} 2\n"));
    led_by(&herd, "b", 2, 1);
}
