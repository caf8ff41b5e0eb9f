//! `failover`: the primary is gone, another node leads, and no row that was acknowledged is lost unless that was agreed to.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{APP_PASSWORD, Frozen, Herd, PAIR, WHOLE, newest_or_15, processes, text, until};
use crate::ledger::{self, Writer, archived, led_by};
use crate::server::installations;
use crate::sshd::{Login, Sshd};

/// Ends a node's server as a power cut ends it: nothing is written any more, nobody is told.
pub fn kill(herd: &Herd, node: &str) {
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
fn what_a_primary_really_waited_for_counts_and_not_what_is_declared() {
    let mut herd = Herd::declare(&newest_or_15(0), &WHOLE);
    herd.keep_backups();
    herd.edit("wait-for: 1", "wait-for: 2");
    herd.apply().ends_with(0);
    herd.sql_in("a", "inventory", ledger::TABLE);
    let names = |node: &str| herd.sql(node, "SHOW synchronous_standby_names");
    let declared = "ANY 2 (\"inventory-a\", \"inventory-b\")";
    assert_eq!(names("c"), declared);

    // b leads alone, and nobody is waited for; what would wait in vain is not asked for by an apply either.
    herd.sql("a", "ALTER ROLE app SET synchronous_commit = off");
    herd.stop("c", "fast");
    kill(&herd, "a");
    herd.run(&["failover", "--yes"]).ends_with(0).says(&[
        // Commits that no standby was promised for are named, and brought.
        "what role app (synchronous_commit = off) committed may be on no standby: it is brought from the disk of inventory-a",
        "commits    wait for no standby",
    ]);
    herd.plan().ends_with(0).says(&["commits of inventory wait for no standby, not for ANY 2"]);
    // Nor once one of the two is back, who says no more than what b waits for.
    herd.run(&["rejoin", "c", "--yes"]).ends_with(0);
    assert_eq!((names("b"), names("c")), (String::new(), String::new()));

    // Acknowledged by b alone, and then b dies as well: what is on its disk is brought, since nothing else has it.
    let sender: i32 = herd.sql("b", "SELECT pid FROM pg_stat_replication").parse().expect("one streams");
    let sender = Frozen::new(Pid::from_raw(sender).expect("a process"));
    herd.sql_in("b", "inventory", "INSERT INTO inventory.ledger SELECT 7, n FROM generate_series(1, 1000) n");
    kill(&herd, "b");
    drop(sender);
    let done = herd.run(&["failover", "--yes"]).ends_with(0);
    done.says(&[
        "less than declared is counted on: inventory-c has synchronous_standby_names = ''",
        "bring what only inventory-b has",
        "inventory-c is primary (timeline 3)",
    ]);
    assert_eq!(herd.sql_in("c", "inventory", "SELECT count(*) FROM inventory.ledger"), "1000");

    // With both back what is declared is in effect, on the primary first.
    for node in ["b", "a"] {
        herd.run(&["rejoin", node, "--yes"]).ends_with(0);
    }
    assert_eq!(names("c"), declared);
    led_by(&herd, "c", 3, 2);
}

/// A program of the operator's that cuts the old primary off, as slowly as the test wants.
const POWER: &str = "#!/bin/sh
at=$(dirname \"$0\")
echo \"$PGHERD_POINT $PGHERD_ATTEMPT $PGHERD_OLD_PRIMARY\" >>\"$at/told\"
if [ -e \"$at/broken\" ]; then echo 'the outlet does not answer'; exit 1; fi
while [ -e \"$at/slow\" ]; do sleep 0.05; done
echo \"$PGHERD_ATTEMPT\" >>\"$at/off\"
echo 'outlet 7 is off'
";

/// Commits rows of these numbers.
fn timed(herd: &Herd, node: &str, from: u32, to: u32) {
    let sql = format!("INSERT INTO inventory.timed SELECT generate_series({from}, {to})");
    herd.sql_in(node, "inventory", &sql);
}

fn rows(herd: &Herd, node: &str) -> String {
    let sql = "SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM inventory.timed";
    herd.sql_in(node, "inventory", sql)
}

#[test]
fn a_host_that_is_lost_takes_a_fence_by_hook_or_word_and_a_loss_that_is_agreed_to() {
    let mut herd = Herd::declare(&newest_or_15(1), &PAIR);
    let mut sshd = Sshd::start(&herd, "sshd", Login::Caller);
    sshd.reaches(&mut herd);
    sshd.part();
    herd.edit(" a: {host: local", " a: {host: db1");
    herd.edit("{host: local", "{host: db2");
    herd.edit("hosts: [local]", "hosts: [db2]");
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.sql_in("a", "inventory", ledger::TABLE);
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE inventory.timed (n int); GRANT SELECT ON inventory.timed TO app",
    );
    let kept = Instant::now();
    timed(&herd, "a", 1, 2);
    until("b has them", || (rows(&herd, "b") == "1 2").then_some(()));

    // Acknowledged, and on its way to nobody; then the host is gone with it.
    let sender: i32 = herd.sql("a", "SELECT pid FROM pg_stat_replication").parse().expect("one streams");
    let sender = Frozen::new(Pid::from_raw(sender).expect("a process"));
    timed(&herd, "a", 3, 4);
    let lost = Instant::now();
    kill(&herd, "a");
    drop(sender);
    sshd.lose();

    // Both are told at once: it may still take writes, and rows may be lost, how much at most.
    let refused = herd.run(&["failover", "--yes"]).ends_with(4);
    refused.tells(&[
        "inventory-a may still take writes",
        "--old-primary-is-off",
        "rows of inventory that were acknowledged may be lost",
        "what was committed in the last",
        "--accept-data-loss inventory",
    ]);
    herd.run(&["failover", "--accept-data-loss", "inventory", "--yes"])
        .ends_with(4)
        .tells(&["may still take writes"]);
    herd.run(&["failover", "--old-primary-is-off", "I saw it", "--yes"]).ends_with(4).tells(&["may be lost"]);
    let age = lost.elapsed().as_secs_f64();
    let signed = [
        "--format",
        "json",
        "failover",
        "--dry-run",
        "--accept-data-loss",
        "inventory",
        "--old-primary-is-off",
        "x",
    ];
    let told = herd.run(&signed).ends_with(0).json()["loss"]["seconds"].as_f64().expect("how long ago");
    let (least, most) = (age, kept.elapsed().as_secs_f64());
    assert!(
        least <= told && told <= most,
        "rows of {least} s before are lost, none of {most} s, and told is {told} s"
    );

    // By nobody's word but the operator's, up to a veto; the standby follows again then.
    let follows = "SELECT setting <> '' FROM pg_settings WHERE name = 'primary_conninfo'";
    herd.edit("    schemas:\n", "    hooks: {before-promote: [/bin/false]}\n    schemas:\n");
    let word =
        ["--accept-data-loss", "inventory", "--old-primary-is-off", "remote hands, ticket 4711", "--yes"];
    herd.run(&[&["failover"][..], &word].concat())
        .ends_with(1)
        .says(&["takes no writes, by the operator's word: remote hands, ticket 4711"])
        .tells(&["the hook before-promote, "]);
    assert_eq!((herd.primaries(), herd.sql("b", follows).as_str()), (Vec::new(), "t"));

    // A hook that does not hold it is no fence, and everything is taken back.
    let hooks = herd.path("hooks");
    fs::create_dir(&hooks).unwrap();
    fs::write(hooks.join("power"), POWER).unwrap();
    fs::set_permissions(hooks.join("power"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(hooks.join("broken"), "").unwrap();
    herd.edit("{before-promote: [/bin/false]}", "{fence: {run: [hooks/power], timeout: 30 s}}");
    let agreed = ["failover", "--accept-data-loss", "inventory", "--yes"];
    herd.run(&agreed).ends_with(1).tells(&[
        "the hook fence",
        "ended with status 1",
        "the outlet does not answer",
    ]);
    assert_eq!((herd.primaries(), herd.sql("b", follows).as_str()), (Vec::new(), "t"));
    fs::remove_file(hooks.join("broken")).unwrap();

    // pgherd is killed while the hook is at work: that goes on to its end, and is run once more by whoever resumes.
    fs::remove_file(hooks.join("told")).unwrap();
    fs::write(hooks.join("slow"), "").unwrap();
    let mut killed = herd.start(&agreed);
    until("the hook is at work", || hooks.join("told").exists().then_some(()));
    killed.signal(Signal::KILL);
    killed.end();
    assert!(!hooks.join("off").exists());
    fs::remove_file(hooks.join("slow")).unwrap();
    until("it has ended by itself", || hooks.join("off").exists().then_some(()));
    let report = herd.run(&["status", "--format", "json"]).json();
    let id = report["clusters"][0]["operations"][0]["id"].as_str().expect("an operation").to_owned();
    // A repository that is away holds nothing up; what belongs there is done when it is back.
    let away = herd.path("repository.away");
    fs::rename(herd.repository(), &away).unwrap();
    herd.run(&["operation", "resume", &id, "--yes"]).ends_with(7);
    assert_eq!(herd.primaries(), ["b"]);
    let count = "SELECT count(*) FROM inventory.timed";
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", count).unwrap(), "2");
    fs::rename(&away, herd.repository()).unwrap();
    let resumed = herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
    assert!(archived(&herd, "00000002.history"));
    resumed.says(&["inventory-b is primary (timeline 2)", "the hook fence has cut it off: outlet 7 is off"]);
    assert_eq!(fs::read_to_string(hooks.join("told")).unwrap(), "fence 1 inventory-a\nfence 2 inventory-a\n");

    // What was lost is what was acknowledged in that time and no more.
    assert_eq!(rows(&herd, "b"), "1 2");

    // The host is back: what only it had is kept and named, and it follows.
    sshd.find();
    herd.run(&["rejoin", "a", "--yes"]).ends_with(0).says(&["rewound", "wal-before"]);
    assert_eq!(rows(&herd, "a"), "1 2");
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
