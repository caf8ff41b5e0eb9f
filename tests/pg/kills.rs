//! Commands that work on a repository, killed with SIGKILL at random moments, and what can be restored then.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pgherd::pg::system::SystemIdentifier;
use pgherd::repo::layout::{ClusterKeys, SystemKeys};
use pgherd::repo::{self, Location, archive, wait};
use rustix::process::{Signal, kill_process};

use crate::flips::{Chance, count};
use crate::herd::{Herd, Lost, Ran, Running, SINGLE, as_server, binary, newest_or_15, text, text_of, until};
use crate::kept::{Kept, Kind};

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The command itself.
    Command,
    /// The program that does its work on the node.
    Child,
}

impl Victim {
    /// Returns the one and the other in turns.
    pub fn of(turn: usize) -> Self {
        if turn.is_multiple_of(2) { Self::Command } else { Self::Child }
    }
}

/// What is killed, and when.
pub struct Work<'a> {
    pub args: &'a [&'a str],
    /// Tells that it is at its work.
    pub begun: &'a dyn Fn() -> bool,
    /// For about how long it is then; this is learned.
    pub usual: Duration,
}

impl Work<'_> {
    /// Runs it and kills it at a moment by chance: of its work, or, every fourth time, of what comes before. When this returns nothing works for it
    /// any more.
    pub fn killed(&mut self, herd: &Herd, victim: Victim, chance: &mut Chance) -> Ran {
        let mut running = herd.start(self.args);
        let waits = chance.below(4) > 0;
        let wait_for = |running: &mut Running, due: &dyn Fn() -> bool| {
            while !due() && !running.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        if waits {
            wait_for(&mut running, self.begun);
        }
        let within = if waits { self.usual } else { Duration::from_millis(300) };
        let moment = Instant::now() + within.mul_f64(chance.below(1000) as f64 / 1000.0);
        wait_for(&mut running, &|| Instant::now() >= moment);
        match victim {
            Victim::Command => running.signal(Signal::KILL),
            Victim::Child => until("there is a child", || {
                let found: Vec<_> = herd.processes().into_iter().filter(|(_, line)| is_child(line)).collect();
                // It may have ended in between.
                found.iter().for_each(|(pid, _)| kill_process(*pid, Signal::KILL).unwrap_or(()));
                (!found.is_empty() || running.has_ended()).then_some(())
            }),
        }
        let ended = running.end();
        if waits {
            self.usual = self.usual.mul_f64(if ended.code == 0 { 0.7 } else { 1.1 });
        }
        until("nothing works for it any more", || {
            (!herd.processes().iter().any(|(_, line)| is_child(line))).then_some(())
        });
        ended
    }
}

fn is_child(line: &str) -> bool {
    line.trim_end().ends_with("/pgherd node")
}

/// Restores to the end of the archive into a directory of its own, and returns what the copy answers.
#[track_caller]
pub fn restored(herd: &Herd, more: &[&str], sql: &str) -> String {
    let copies = herd.path("copies");
    fs::create_dir_all(&copies).unwrap();
    let owner = fs::metadata(herd.data("a")).unwrap();
    chown(&copies, Some(owner.uid()), Some(owner.gid())).unwrap();
    let to = copies.join("r");
    let args = ["restore", "inventory", "--to-dir", text(&to)];
    herd.restore(&[&args[..], more].concat()).ends_with(0).says(&["accepts writes"]);
    let mut psql = as_server(&herd.installation().bin().join("psql"));
    psql.args(["-XAtq", "-U", "postgres", "-d", "postgres", "-p", "5432", "-c", sql, "-h"]);
    psql.arg(herd.path("copies/r-pgherd/run/inventory-restored"));
    let found = text_of(psql).unwrap_or_else(|said| panic!("{sql}: {said}"));
    herd.program("pg_ctl", &["-D", text(&to), "-m", "fast", "-w", "stop"]);
    fs::remove_dir_all(&copies).unwrap();
    found
}

/// Finishes a segment and waits until a repository has it.
pub fn archived(herd: &Herd, kept: &Kept) -> String {
    let sql = "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')";
    let segment = herd.sql("a", sql);
    until(&format!("{segment} is there"), || kept.has_wal(&segment).then_some(()));
    segment
}

/// Returns the labels of the backups that have a manifest, oldest first.
pub fn whole(kept: &Kept) -> Vec<String> {
    let manifests = kept.with("/manifest.json");
    manifests.iter().map(|name| name.rsplit('/').nth(1).unwrap().to_owned()).collect()
}

/// Tells whether a backup has begun that has no manifest.
fn has_a_part(kept: &Kept) -> bool {
    let whole = whole(kept);
    kept.with("/backup/").iter().any(|name| !whole.iter().any(|label| name.contains(label)))
}

const ROWS: &str = "SELECT count(*), sum(n) FROM orders";

#[test]
fn a_copy_that_is_killed_at_any_moment_loses_nothing_and_the_next_one_ends_it() {
    let mut herd = Herd::declare(&newest_or_15(0), &SINGLE);
    assert!(herd.keep_backups_in(Kind::Directory));
    herd.keep_copies();
    herd.edit("copies: {far: {}}", "copies: {far: {}}, keep-full: 2");
    herd.apply().ends_with(0);
    let (main, far) = (herd.kept(), Kept::Directory(herd.far()));
    herd.sql("a", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n");
    // What does not shrink.
    herd.sql(
        "a",
        "CREATE TABLE ballast AS SELECT decode(string_agg(md5(random()::text), ''), 'hex') \
         FROM generate_series(1, 2000000) AS n GROUP BY n % 10000",
    );
    herd.run(&["backup", "create"]).ends_with(0);
    let copy = ["backup", "copy", "--to", "far", "--workers", "1"];
    // It is at its work when it has its lease.
    let begun = || !far.with("/lease/").is_empty();
    let mut work = Work { args: &copy, begun: &begun, usual: Duration::from_millis(200) };
    herd.run(&copy).ends_with(0);
    let verify = ["backup", "verify", "--full"];
    let verify_far = ["backup", "verify", "--full", "--repository", "far"];
    let mut chance = Chance::new("kills of a copy");
    let (mut turn, mut hit, mut parts, mut goes_on) = (0, 0, 0, 0);
    while hit < count(3, 50) {
        turn += 1;
        herd.sql("a", "INSERT INTO orders SELECT generate_series(1, 100)");
        herd.run(&["backup", "create"]).ends_with(0);
        herd.sql("a", "INSERT INTO orders SELECT generate_series(1, 100)");
        let last = archived(&herd, &far);
        let there = (whole(&main), far.names());
        let ended = work.killed(&herd, Victim::of(turn), &mut chance);
        hit += usize::from(ended.code != 0);
        parts += usize::from(has_a_part(&far));

        // Both have what they had, and what is there is whole.
        assert_eq!(whole(&main), there.0, "turn {turn}: {ended:?}");
        let now = far.names();
        let kept = |name: &&String| !name.contains("/lease/");
        let gone: Vec<&String> = there.1.iter().filter(kept).filter(|name| !now.contains(name)).collect();
        assert!(gone.is_empty(), "turn {turn}: {gone:?}\n{ended:?}");
        assert!(far.has_wal(&last));
        assert!(ended.code != 0 || whole(&far) == whole(&main), "turn {turn}: {ended:?}");
        herd.run(&verify_far).ends_with(0);
        let rows = herd.sql("a", ROWS);
        let lost = herd.lose_the_first();
        assert_eq!(restored(&herd, &["--repository", "far"], ROWS), rows, "turn {turn}: {ended:?}");
        drop(lost);

        let again = herd.run(&[&copy[..], &["--format", "json"]].concat()).ends_with(0);
        let said: serde_json::Value = serde_json::from_str(again.stdout.lines().last().unwrap()).unwrap();
        goes_on += usize::from(said["backups"][0]["taken_over"].as_u64() > Some(0));
        assert_eq!(whole(&far), whole(&main), "turn {turn}");
        assert!(!has_a_part(&far), "turn {turn}");
        for verify in [&verify[..], &verify_far] {
            herd.run(verify).ends_with(0);
        }
        for expire in
            [&["backup", "expire", "--yes"][..], &["backup", "expire", "--yes", "--repository", "far"]]
        {
            herd.run(expire).ends_with(0);
        }
    }
    eprintln!("{hit} killed in {turn} turns, {parts} left a part, {goes_on} were gone on with");
}

/// Two repositories that WAL goes to, and what calls push by hand.
struct Archives {
    herd: Herd,
    keys: SystemKeys,
}

impl Archives {
    fn up() -> Self {
        let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
        assert!(herd.keep_backups_in(Kind::Directory));
        herd.keep_copies();
        herd.apply().ends_with(0);
        // Nobody else archives.
        herd.sql("a", "ALTER SYSTEM SET archive_command = 'false'");
        herd.sql("a", "SELECT pg_reload_conf()");
        until("it is taken", || (herd.sql("a", "SHOW archive_command") == "false").then_some(()));
        let system = herd.sql("a", "SELECT system_identifier FROM pg_control_system()").parse().unwrap();
        let keys = ClusterKeys::new("inventory").system(SystemIdentifier::new(system).unwrap());
        Self { herd, keys }
    }

    fn push(&self, name: &str) -> Command {
        let mut push = as_server(binary());
        push.current_dir(self.herd.data("a")).stdout(Stdio::null()).stderr(Stdio::null());
        push.args(["wal", "push", "--profile", text(&self.herd.facts("a").join("profile.json"))]);
        push.arg(format!("pg_wal/{name}"));
        push
    }

    fn each(&self) -> [(&str, PathBuf); 2] {
        [("main", self.herd.repository()), ("far", self.herd.far())]
    }

    /// Tells whether a repository has a segment, and has it as the server does.
    fn has(&self, root: &Path, name: &str) -> bool {
        let repo = repo::open(&Location::plain(format!("file://{}", root.display()))).unwrap();
        let stored = wait(Box::pin(archive::file(&*repo, &self.keys, name.parse().unwrap()))).unwrap();
        let Some(stored) = stored else { return false };
        assert!(stored == fs::read(self.herd.data("a").join("pg_wal").join(name)).unwrap(), "{name}");
        true
    }

    fn is_owed(&self, repository: &str, name: &str) -> bool {
        self.herd.path("state/spool/inventory-a/owed").join(repository).join(name).exists()
    }

    /// Kills what stores ahead, and what brings a repository that which it lacked; returns how many.
    fn kill_helpers(&self) -> usize {
        let is_helper = |line: &str| line.contains(" wal ahead ") || line.contains(" wal settle ");
        let helpers = self.herd.processes().into_iter().filter(|(_, line)| is_helper(line));
        helpers.filter(|(pid, _)| kill_process(*pid, Signal::KILL).is_ok()).count()
    }
}

#[test]
fn pushes_that_are_killed_while_repositories_come_and_go_lose_nothing_that_they_acknowledged() {
    let archives = Archives::up();
    let herd = &archives.herd;
    let sql = "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(true, 'a', repeat('b', 100000))";
    let segments: Vec<String> = (0..count(10, 40)).map(|_| herd.sql("a", sql)).collect();
    let begun = Instant::now();
    assert!(archives.push(&segments[0]).status().unwrap().success());
    let mut usual = begun.elapsed();
    let mut chance = Chance::new("kills of wal push with two repositories");
    let (mut hit, mut helpers, mut acknowledged, mut at) = (0, 0, 0, 1);
    while hit < count(10, 50) {
        let name = &segments[at % segments.len()];
        let lost = match chance.below(4) {
            0 => Some(herd.lose_the_first()),
            1 => Some(Lost::now(herd.far())),
            _ => None,
        };
        let mut push = archives.push(name).spawn().unwrap();
        std::thread::sleep(usual.mul_f64(chance.below(1100) as f64 / 1000.0));
        push.kill().unwrap();
        let code = push.wait().unwrap().code();
        if chance.below(3) == 0 {
            helpers += archives.kill_helpers();
        }
        drop(lost);
        match code {
            // It is where it is not owed, and somewhere in any case.
            Some(0) => {
                let missing = archives.each().into_iter().filter(|(repository, root)| {
                    let owed = archives.is_owed(repository, name);
                    let has = archives.has(root, name);
                    assert!(owed || has, "{name} is neither in {repository} nor owed to it");
                    !has
                });
                assert!(missing.count() < 2, "{name} was acknowledged");
                acknowledged += 1;
                at += 1;
                // What is stored already is pushed in no time.
                usual = usual.mul_f64(0.8);
            }
            Some(code) => panic!("{name}: exit code {code}"),
            None => {
                hit += 1;
                usual = usual.mul_f64(1.25);
                // Half of them are tried again at once, as the archiver does; the others are left as they are.
                at += usize::try_from(chance.below(2)).unwrap();
            }
        }
    }
    eprintln!("{hit} killed, {helpers} helpers killed, {acknowledged} acknowledged in between");
    for name in &segments {
        assert!(archives.push(name).status().unwrap().success(), "{name}");
    }
    until("each repository has all of it", || {
        let all =
            archives.each().iter().all(|(_, root)| segments.iter().all(|name| archives.has(root, name)));
        all.then_some(())
    });
}

#[test]
fn what_was_stored_ahead_while_a_repository_was_away_is_brought_there_whoever_died_meanwhile() {
    let archives = Archives::up();
    let herd = &archives.herd;
    let sql = "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(true, 'a', 'b')";
    let segments: Vec<String> = (0..4).map(|_| herd.sql("a", sql)).collect();
    let lost = Lost::now(herd.far());
    assert!(archives.push(&segments[0]).status().unwrap().success());
    let runs = |verb: &str| herd.processes().iter().any(|(_, line)| line.contains(&format!(" wal {verb} ")));
    until("the others are stored ahead", || {
        let all = segments.iter().all(|name| archives.is_owed("far", name));
        (all && !runs("ahead")).then_some(())
    });
    until("nobody brings them there", || {
        archives.kill_helpers();
        (!runs("settle")).then_some(())
    });
    drop(lost);
    // The calls of the others have nothing to store.
    for name in &segments[1..] {
        assert!(archives.push(name).status().unwrap().success(), "{name}");
    }
    until("it has all of it", || segments.iter().all(|name| archives.has(&herd.far(), name)).then_some(()));
}
