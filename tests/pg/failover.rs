//! `failover`: the primary is gone, another node leads, and no row that was acknowledged is lost unless that was agreed to.

use std::fs;

use rustix::process::{Signal, kill_process};

use crate::herd::{Herd, WHOLE, until};
use crate::ledger::{self, Writer, archived};
use crate::server::installations;

/// Ends a node's server as a power cut ends it: nothing is written any more, nobody is told.
fn kill(herd: &Herd, node: &str) {
    kill_process(herd.postmaster(node).expect("it runs"), Signal::KILL).expect("kill it");
    let directory = herd.data(node);
    until("none of its processes is left", || {
        let left = herd.processes().into_iter().any(|(pid, line)| {
            let cwd = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
            line.contains("postgres") && cwd.is_ok_and(|cwd| cwd == directory)
        });
        (!left).then_some(())
    });
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
