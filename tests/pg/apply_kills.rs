//! `apply` killed with SIGKILL at random moments: one command ends it, forwards or backwards, and the herd is whole afterwards.
//!
//! A sample by default, every count with PGHERD_SOAK=1. PGHERD_SEED repeats a run.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{Frozen, Herd, PAIR, SINGLE, command_line, newest_or_15, until};

/// A small generator of its own (xorshift64*): the numbers must be the same in every run of one seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(turn: u64) -> Self {
        let seed = std::env::var("PGHERD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7719_u64);
        Self((seed ^ (turn + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

fn kills() -> u64 {
    if std::env::var_os("PGHERD_SOAK").is_some() { 10 } else { 2 }
}

/// Runs `apply` and kills it after a random part of `usual`, the time that it takes in all. Returns the operation that it left.
fn killed(herd: &Herd, dice: &mut Dice, usual: Duration) -> Option<String> {
    killed_at(herd, dice, usual, &["apply", "--yes"])
}

fn killed_at(herd: &Herd, dice: &mut Dice, usual: Duration, args: &[&str]) -> Option<String> {
    let after = usual * u32::try_from(dice.below(1000)).expect("small") / 1000;
    let begun = Instant::now();
    let mut apply = herd.start(args);
    while begun.elapsed() < after && !apply.has_ended() {
        std::thread::sleep(Duration::from_millis(1));
    }
    apply.signal(Signal::KILL);
    apply.end();
    let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
    let left = report["clusters"][0]["operations"].as_array().expect("operations").clone();
    assert!(left.len() <= 1, "{left:?}");
    let id = left.first()?["id"].as_str()?.to_owned();
    // Nothing else changes the cluster until it is ended, and the refusal names it.
    herd.apply().ends_with(5).tells(&[&id]);
    Some(id)
}

/// Ends an operation by `resume` or by `undo`, and then once more: the second time changes nothing.
fn ended(herd: &Herd, id: &str, dice: &mut Dice) {
    let verb = if dice.below(2) == 0 { "resume" } else { "undo" };
    let first = herd.run(&["operation", verb, id, "--yes"]);
    // Past the pivot there is only forward: undo says so, and resume is the way.
    if first.code == 4 && verb == "undo" {
        herd.run(&["operation", "resume", id, "--yes"]).ends_with(0);
    } else {
        assert!(first.code == 0, "operation {verb} {id}: {first:?}");
    }
    let journal = herd.run(&["operation", "show", id]).ends_with(0).stdout;
    herd.run(&["operation", "resume", id, "--yes"]);
    assert_eq!(herd.run(&["operation", "show", id]).ends_with(0).stdout, journal);
}

fn whole(herd: &Herd) {
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    herd.is_as_declared();
    assert_eq!(herd.primaries(), ["a"]);
}

#[test]
fn a_birth_that_was_killed_is_resumed_or_undone_without_a_trace() {
    for turn in 0..kills() {
        let mut dice = Dice::new(turn);
        let herd = Herd::declare(&newest_or_15(u32::try_from(turn).expect("small")), &PAIR);
        if let Some(id) = killed(&herd, &mut dice, Duration::from_secs(4)) {
            if dice.below(2) == 0 {
                let undo = herd.run(&["operation", "undo", &id, "--yes"]);
                if undo.code == 0 {
                    herd.nothing_is_left();
                } else {
                    herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
                }
            } else {
                ended(&herd, &id, &mut dice);
            }
        }
        whole(&herd);
    }
}

/// The server that initdb feeds outlives both pgherd and initdb, and has the directory for its own.
#[test]
fn what_initdb_left_running_is_ended_before_its_directory_is_removed() {
    let herd = Herd::declare(&newest_or_15(1), &SINGLE);
    let data = herd.data("a");
    let works = || {
        let made = std::fs::read_dir(data.join("base")).ok()?.count();
        let lock_file = std::fs::read_to_string(data.join("postmaster.pid")).ok().filter(|_| made > 1)?;
        Pid::from_raw(lock_file.lines().next()?.strip_prefix('-')?.parse().ok()?)
    };
    let (mut caught, mut tries) = (0, 0);
    while caught < 3 {
        tries += 1;
        assert!(tries <= 30, "of 30 times {caught} were caught in time");
        let mut apply = herd.start(&["apply", "--yes"]);
        // It copies a whole database then, file by file: a moment that may be over between two looks.
        let server = loop {
            match works() {
                Some(server) => break Some(server),
                None if apply.has_ended() || data.join("pgherd.conf").exists() => break None,
                None => {}
            }
        };
        let Some(server) = server else {
            until("apply has ended", || apply.has_ended().then_some(()));
            apply.end().ends_with(0);
            herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
            continue;
        };
        apply.signal(Signal::KILL);
        apply.end();
        let initdb = format!("initdb -D {}", data.display());
        for (pid, _) in herd.processes().into_iter().filter(|(_, line)| line.contains(&initdb)) {
            kill_process(pid, Signal::KILL).expect("it runs");
        }
        // It would end by itself in a moment; that moment is what this is about.
        let held = (!command_line(server).is_empty()).then(|| Frozen::new(server));
        if works() == Some(server) {
            caught += 1;
        } else {
            // It has given the directory back already.
            drop(held);
            until("its end", || command_line(server).is_empty().then_some(()));
        }
        let journals = std::fs::read_dir(herd.path("state/operations")).expect("readable");
        let newest = journals
            .map(|entry| entry.expect("readable").path())
            .max_by_key(|path| std::fs::metadata(path).and_then(|found| found.modified()).expect("readable"));
        let journal = newest.expect("a journal");
        let id = journal.file_stem().and_then(|stem| stem.to_str()).expect("an id");
        herd.run(&["operation", "undo", id, "--yes"]).ends_with(0);
        assert_eq!(command_line(server), "");
        herd.nothing_is_left();
    }
}

#[test]
fn a_standby_that_was_being_added_when_apply_was_killed_is_there_in_the_end() {
    let mut herd = Herd::up(&newest_or_15(0), &SINGLE);
    for turn in 0..kills() {
        let mut dice = Dice::new(100 + turn);
        herd.add_node("b");
        if let Some(id) = killed(&herd, &mut dice, Duration::from_secs(2)) {
            ended(&herd, &id, &mut dice);
        }
        whole(&herd);
        assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"), "1");
        herd.leave_out("b");
        herd.run(&["destroy", "inventory", "--node", "b", "--confirm", "inventory-b"]).ends_with(0);
        assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_replication_slots"), "0");
    }
}

#[test]
fn a_mend_that_was_killed_is_whole_in_the_end() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    for turn in 0..kills() {
        let mut dice = Dice::new(200 + turn);
        herd.sql("a", "ALTER SYSTEM SET work_mem = '9MB'");
        herd.sql("a", "SELECT pg_reload_conf()");
        herd.sql_in("a", "inventory", "REVOKE ALL ON SCHEMA inventory FROM bi; ALTER ROLE app CREATEDB");
        herd.stop("b", "fast");
        herd.sql("a", "SELECT pg_drop_replication_slot('inventory_b')");
        if dice.below(2) == 0 {
            kill_process(herd.pgbouncer().expect("it runs"), Signal::KILL).expect("it runs");
            until("the pooler is gone", || herd.pgbouncer().is_none().then_some(()));
        }
        if let Some(id) = killed(&herd, &mut dice, Duration::from_millis(2500)) {
            ended(&herd, &id, &mut dice);
        }
        whole(&herd);
        assert_eq!(herd.sql("a", "SHOW work_mem"), "4MB");
        assert_eq!(herd.sql("a", "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'app'"), "f");
        assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"), "1");
    }
}

#[test]
fn archiving_that_was_being_switched_on_when_apply_was_killed_is_on_in_the_end() {
    let mut herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.keep_backups();
    for turn in 0..kills() {
        let mut dice = Dice::new(300 + turn);
        let usual = Duration::from_secs(4);
        if let Some(id) = killed_at(&herd, &mut dice, usual, &["apply", "--yes", "--allow-restart"]) {
            ended(&herd, &id, &mut dice);
        }
        whole(&herd);
        let segment = herd.sql(
            "a",
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
        );
        until("the segment is in the repository", || herd.kept().has_wal(&segment).then_some(()));
        herd.edit("    backups: {repository: main}\n", "");
        whole(&herd);
        assert_eq!(herd.sql("a", "SHOW archive_mode"), "off");
        herd.edit("    nodes:\n", "    backups: {repository: main}\n    nodes:\n");
    }
}
