//! `failover`: the primary is gone, another node leads, and no row that was acknowledged is lost unless that was agreed to.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{Frozen, Herd, PAIR, WHOLE, newest_or_15, processes, text, until};
use crate::ledger::{self, Writer, archived, led_by};
use crate::server::installations;

/// Ends a node's server as a power cut ends it: nothing is written any more, nobody is told.
fn kill(herd: &Herd, node: &str) {
    // First who would restart the others.
    kill_process(herd.postmaster(node).expect("it runs"), Signal::KILL).expect("kill it");
    for child in server(herd, node) {
        kill_process(child, Signal::KILL).ok();
    }
    until("none of its processes is left", || server(herd, node).is_empty().then_some(()));
}

#[test]
fn a_primary_that_was_killed_is_followed_by_who_has_everything_on_every_major() {
    for installation in installations() {
        let herd = ledger::up(&installation, &WHOLE);
        herd.run(&["failover", "--yes"])
            .ends_with(4)
            .tells(&["a answers and takes writes", "pgherd switchover"]);
        let writers: Vec<Writer> = (0..3).map(|client| Writer::start(&herd, client)).collect();
        ledger::writes_go_on(&herd, "a");
        kill(&herd, "a");
        let dry = herd.run(&["failover", "--dry-run"]).ends_with(0);
        dry.says(&[
            "seen   inventory-a: no process runs for its data directory",
            "nobody has more",
            "shut out",
            "promote, timeline 2",
            "pivot",
        ]);
        assert_eq!(herd.primaries(), [""; 0]);
        let done = herd.run(&["failover", "--to", "b", "--yes"]).ends_with(0);
        println!("{}: {:?}\n{}", installation.major, done.took, done.stdout);
        done.says(&["inventory-b is primary (timeline 2)", "inventory-a was stopped, and nothing starts it"]);
        ledger::writes_go_on(&herd, "b");
        let written = ledger::nothing_is_lost(&herd, "b", writers);
        println!("longest without a write {:?}, {} errors", written.longest, written.errors.len());
        led_by_without(&herd, "b", 2, 1);
        assert!(archived(&herd, "00000002.history"));
        // Whatever had been written, every segment of the old timeline is in the archive, and the old primary stays away.
        herd.run(&["wal", "list"]).ends_with(0).does_not_say("gap");
        herd.run(&["failover", "--yes"]).ends_with(4).tells(&["b answers and takes writes"]);
    }
}

/// As [`led_by`], where what is declared is not whole.
#[track_caller]
fn led_by_without(herd: &Herd, primary: &str, timeline: u32, standbys: usize) {
    assert_eq!(herd.primaries(), [primary]);
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    until("the standbys stream", || (herd.sql(primary, streaming) == standbys.to_string()).then_some(()));
    let segment = herd.sql(
        primary,
        "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
    );
    assert_eq!(&segment[..8], format!("{timeline:08X}"));
    until(&format!("{segment} is archived"), || archived(herd, &segment).then_some(()));
}

/// The processes of a node's server.
fn server(herd: &Herd, node: &str) -> Vec<Pid> {
    let directory = herd.data(node);
    let works_there = |pid: &Pid| {
        fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).is_ok_and(|cwd| cwd == directory)
    };
    processes().into_iter().map(|(pid, _)| pid).filter(works_there).collect()
}

#[test]
fn what_no_standby_was_sent_is_brought_from_the_disk_of_the_dead_primary() {
    let herd = ledger::up(&newest_or_15(0), &PAIR);
    let sender: i32 = herd.sql("a", "SELECT pid FROM pg_stat_replication").parse().expect("one streams");
    let sender = Frozen::new(Pid::from_raw(sender).expect("a process"));
    // Acknowledged, since nobody is waited for, over several segments.
    herd.sql_in("a", "inventory", "INSERT INTO inventory.ledger SELECT 7, n FROM generate_series(1, 1000) n");
    for _ in 0..3 {
        herd.sql_in(
            "a",
            "inventory",
            "SELECT pg_switch_wal(); INSERT INTO inventory.ledger SELECT 8, count(*) FROM inventory.ledger",
        );
    }
    kill(&herd, "a");
    drop(sender);
    let there = "SELECT count(*) FROM inventory.ledger WHERE client IN (7, 8)";
    assert_eq!(herd.sql_in("b", "inventory", there), "0");
    // While it cannot be read nothing is promoted, unless that is agreed to.
    let (wal, aside) = (herd.data("a").join("pg_wal"), herd.data("a").join("pg_wal.aside"));
    fs::rename(&wal, &aside).expect("take it away");
    let refused = herd.run(&["failover", "--yes"]).ends_with(1);
    refused.tells(&["could not bring what only inventory-a has", "--accept-data-loss inventory"]);
    assert_eq!(herd.primaries(), [""; 0]);
    herd.run(&["failover", "--accept-data-loss", "orders", "--yes"]).ends_with(2);
    let dry = herd.run(&["failover", "--accept-data-loss", "inventory", "--dry-run"]).ends_with(0);
    dry.says(&["bring what only inventory-a has, if that can be"]);
    fs::rename(&aside, &wal).expect("put it back");
    let done = herd.run(&["failover", "--yes"]).ends_with(0);
    done.says(&["inventory-b is primary (timeline 2)", "that only inventory-a had"]);
    assert_eq!(herd.sql_in("b", "inventory", there), "1003");
    led_by_without(&herd, "b", 2, 0);
    assert!(archived(&herd, "00000002.history"));
    herd.run(&["wal", "list"]).ends_with(0).does_not_say("gap");
}

#[test]
fn a_hung_primary_is_seen_alive_until_nobody_hears_it_and_is_ended_before_another_leads() {
    let herd = ledger::up(&newest_or_15(1), &WHOLE);
    let writer = Writer::start(&herd, 0);
    ledger::writes_go_on(&herd, "a");
    let server: Vec<Frozen> = server(&herd, "a").into_iter().map(Frozen::new).collect();
    assert!(server.len() > 3);
    herd.run(&["failover", "--dry-run"]).ends_with(4).tells(&[
        "seen alive from elsewhere",
        "heard it",
        "pgherd fence a",
    ]);
    until("nobody has heard it for a while", || {
        (herd.run(&["failover", "--dry-run"]).code == 0).then_some(())
    });
    let done = herd.run(&["failover", "--yes"]).ends_with(0);
    done.says(&["is primary (timeline 2)", "inventory-a was stopped"]);
    drop(server);
    let primaries = herd.primaries();
    assert_eq!(primaries.len(), 1);
    assert!(herd.postmaster("a").is_none());
    ledger::writes_go_on(&herd, &primaries[0]);
    ledger::nothing_is_lost(&herd, &primaries[0], vec![writer]);
}

#[test]
fn a_veto_takes_everything_back_and_the_standbys_follow_again() {
    let mut herd = ledger::up(&newest_or_15(0), &WHOLE);
    let hook = herd.path("veto");
    fs::write(&hook, "#!/bin/sh\necho not at night\nexit 9\n").expect("write the hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("make it a program");
    herd.edit("    nodes:\n", &format!("    hooks: {{before-promote: [{}]}}\n    nodes:\n", hook.display()));
    kill(&herd, "a");
    let vetoed = herd.run(&["failover", "--yes"]).ends_with(1);
    vetoed.tells(&["the hook before-promote", "ended with status 9", "not at night"]);
    assert_eq!(herd.primaries(), [""; 0]);
    assert!(!herd.facts("a").join("fenced.json").exists(), "what was marked is let go again");
    // The standbys were led back to where they were: the old primary starts, and they follow it.
    herd.apply().ends_with(0);
    led_by(&herd, "a", 1, 2);
}

#[test]
fn a_watcher_leaves_a_restart_alone_and_fails_over_once_when_the_primary_is_gone() {
    let herd = ledger::up(&newest_or_15(1), &WHOLE);
    let mut watch = herd.start(&["failover", "--watch", "--when-down", "5s"]);
    until("it has seen the primary", || watch.so_far().0.contains("inventory: a leads").then_some(()));
    let second = herd.run(&["failover", "--watch"]).ends_with(5);
    second.tells(&["another process watches inventory already"]);
    herd.run(&["failover", "--watch", "--when-down", "1s"]).ends_with(2);

    herd.program("pg_ctl", &["-D", text(&herd.data("a")), "-w", "-l", "/dev/null", "restart"]);
    until("the standbys stream again", || {
        (herd.sql("a", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2")
            .then_some(())
    });
    let writer = Writer::start(&herd, 0);
    ledger::writes_go_on(&herd, "a");
    assert!(!watch.has_ended());

    kill(&herd, "a");
    until("it has failed over", || watch.has_ended().then_some(()));
    let ended = watch.end().ends_with(0);
    ended.says(&["inventory: nobody sees a", "is primary (timeline 2)"]);
    let primaries = herd.primaries();
    assert_eq!(primaries.len(), 1);
    ledger::writes_go_on(&herd, &primaries[0]);
    let written = ledger::nothing_is_lost(&herd, &primaries[0], vec![writer]);
    println!("with 5 s of patience the longest without a write was {:?}", written.longest);
    assert!(written.longest > Duration::from_secs(5));
}
