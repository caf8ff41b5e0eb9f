//! Passwords are replaced while clients work and standbys stream.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::herd::{APP_PASSWORD, Herd, PAIR, Ran, WHOLE, as_server, newest_or_15, text, text_of, until};
use crate::server::installations;

const NEW: &str = "Vt4-the-next-of-app";

/// Asks without end, each time over a new connection, and never with another password than the one that was taken last: when that is
/// refused, with the other one, as an application does that reads its password anew.
struct Reconnecting {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    logins: u32,
    with_new: u32,
    /// What neither of the two passwords helped against.
    errors: Vec<String>,
}

impl Reconnecting {
    fn start(herd: &Herd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let psql = herd.installation().bin().join("psql");
        let (port, asked) = (herd.port("pooler").to_string(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut passwords = [APP_PASSWORD, NEW];
            while !asked.load(Ordering::SeqCst) {
                let ask = |password: &str| {
                    let mut command = Command::new(&psql);
                    command.args([
                        "-XAtq",
                        "-h",
                        "127.0.0.1",
                        "-U",
                        "app",
                        "-d",
                        "inventory",
                        "-c",
                        "SELECT 1",
                        "-p",
                    ]);
                    command.arg(&port).env("PGPASSWORD", password);
                    text_of(command)
                };
                let mut said = ask(passwords[0]);
                if said.is_err() {
                    passwords.swap(0, 1);
                    said = ask(passwords[0]);
                }
                match said {
                    Ok(_) => {
                        seen.logins += 1;
                        seen.with_new += u32::from(passwords[0] == NEW);
                    }
                    Err(why) => seen.errors.push(why),
                }
            }
            seen
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().expect("it is started once").join().expect("it ends")
    }
}

/// pgbench that stays connected through the pooler, in transactions; killed when it is dropped.
struct Bench(Child);

impl Bench {
    fn start(herd: &Herd, script: &str) -> Self {
        let file = herd.path("bench.sql");
        fs::write(&file, script).expect("writable");
        let log = fs::File::create(herd.path("bench.log")).expect("writable");
        let child = Command::new(herd.installation().bin().join("pgbench"))
            .args([
                "-n",
                "-c",
                "6",
                "-j",
                "1",
                "-T",
                "120",
                "-M",
                "simple",
                "-h",
                "127.0.0.1",
                "-U",
                "app",
                "-f",
            ])
            .arg(&file)
            .args(["-p", &herd.port("pooler").to_string(), "inventory"])
            .env("PGPASSWORD", APP_PASSWORD)
            .stdout(Stdio::from(log.try_clone().expect("a second handle")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("pgbench starts");
        Self(child)
    }

    /// Returns what it has complained of while it still runs.
    #[track_caller]
    fn still_runs(&mut self, herd: &Herd) {
        let log = fs::read_to_string(herd.path("bench.log")).expect("readable");
        let wrong = |line: &&str| (line.contains("error") || line.contains("aborted")) && !is_unlucky(line);
        assert_eq!(log.lines().filter(wrong).collect::<Vec<_>>(), Vec::<&str>::new());
        let ended = self.0.try_wait().expect("a child").is_some();
        assert!(!ended || log.lines().any(is_unlucky), "pgbench has ended:\n{log}");
    }
}

/// What a client is told whose pool had to open a server connection in the one moment in which pooler and server have different
/// passwords: docs/guide/secrets.md says so.
fn is_unlucky(line: &str) -> bool {
    line.contains("server_login_retry")
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn backend_pids(herd: &Herd) -> Vec<String> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE usename = 'app'";
    herd.sql("a", sql).lines().map(str::to_owned).collect()
}

/// Has PgBouncer replace each of its server connections once it is free.
fn reconnect(herd: &Herd) {
    let mut command = as_server(&herd.installation().bin().join("psql"));
    command.args(["-Xq", "-U", "pgbouncer", "-d", "pgbouncer", "-c", "RECONNECT", "-h"]).arg(herd.pooler());
    command.args(["-p", &herd.port("pooler").to_string()]);
    text_of(command).expect("the console takes it");
}

#[test]
fn nobody_who_reads_the_password_anew_notices_that_a_roles_was_replaced() {
    let mut herd = Herd::up(&newest_or_15(0), &PAIR);
    let mut bench = Bench::start(&herd, "SELECT pg_sleep(0.002);\n\\sleep 20 ms\n");
    let clients = Reconnecting::start(&herd);
    until("both are at work", || (backend_pids(&herd).len() > 1).then_some(()));

    herd.variable("APP_PASSWORD", Some(NEW));
    herd.plan().ends_with(0).says(&["app", "password"]).does_not_say(NEW);
    herd.apply().ends_with(0);
    herd.is_as_declared();
    bench.still_runs(&herd);
    // Whoever came with the old password long ago gets new server connections.
    for _ in 0..3 {
        let old = backend_pids(&herd);
        reconnect(&herd);
        until("every server connection is another one", || {
            let now = backend_pids(&herd);
            (!now.is_empty() && now.iter().all(|pid| !old.contains(pid))).then_some(())
        });
    }
    bench.still_runs(&herd);
    let seen = clients.end();
    let wrong: Vec<&String> = seen.errors.iter().filter(|line| !is_unlucky(line)).collect();
    assert_eq!(wrong, Vec::<&String>::new());
    assert!(seen.logins > 5 && seen.with_new > 0, "{seen:?}");

    let refused = herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1").unwrap_err();
    assert!(refused.contains("authentication failed"), "{refused}");
    assert!(herd.client("a", "app", APP_PASSWORD, "inventory", "SELECT 1").is_err());
    assert_eq!(herd.client("a", "app", NEW, "inventory", "SELECT 1").as_deref(), Ok("1"));
}

fn passfile(herd: &Herd, node: &str) -> String {
    fs::read_to_string(herd.facts(node).join("passfile")).expect("readable")
}

fn password_of(herd: &Herd, node: &str, role: &str) -> String {
    let prefix = format!("*:*:*:{role}:");
    let text = passfile(herd, node);
    text.lines().find_map(|line| line.strip_prefix(&prefix)).expect("a line").to_owned()
}

fn receivers(herd: &Herd) -> String {
    herd.sql("a", "SELECT string_agg(application_name || ' ' || pid || ' ' || state, ', ' ORDER BY 1) FROM pg_stat_replication")
}

fn verifier(herd: &Herd, role: &str) -> String {
    herd.sql("a", &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"))
}

fn nothing_is_kept(herd: &Herd) {
    for node in ["a", "b"] {
        assert!(!herd.facts(node).join("rotation.json").exists());
    }
}

/// A standby that is made to connect anew streams again.
fn comes_back(herd: &Herd, node: &str) {
    herd.sql(node, "SELECT pg_terminate_backend(pid) FROM pg_stat_wal_receiver");
    herd.sql(node, "SELECT pg_reload_conf()");
    until("it streams again", || {
        receivers(herd)
            .split(", ")
            .any(|line| line.starts_with(&format!("inventory-{node} ")) && line.ends_with("streaming"))
            .then_some(())
    });
}

fn shows(ran: &Ran, secret: &str) -> bool {
    ran.stdout.contains(secret) || ran.stderr.contains(secret)
}

#[test]
fn the_replication_password_is_replaced_on_every_version_while_standbys_stream() {
    for installation in installations() {
        let herd = Herd::up(&installation, &WHOLE);
        let before = (password_of(&herd, "a", "replicator"), receivers(&herd));
        herd.run(&["plan", "--rotate", "replication"]).ends_with(0).says(&[
            "generate a new password for replicator",
            "undo: the old password again",
            "streaming goes on",
        ]);
        assert_eq!(password_of(&herd, "a", "replicator"), before.0, "a plan changes nothing");

        let ran = herd.run(&["apply", "--yes", "-v", "--rotate", "replication"]).ends_with(0);
        let new = password_of(&herd, "a", "replicator");
        assert_ne!(new, before.0);
        assert_eq!(receivers(&herd), before.1, "the same connections stream on");
        for node in ["b", "c"] {
            assert_eq!(passfile(&herd, node), passfile(&herd, "a"));
            comes_back(&herd, node);
        }
        herd.is_as_declared();
        nothing_is_kept(&herd);
        for secret in [&before.0, &new] {
            assert!(!shows(&ran, secret));
            for file in crate::herd::files_below(&herd.path("state/operations")) {
                assert!(
                    !fs::read_to_string(&file).expect("readable").contains(secret.as_str()),
                    "{}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn the_probes_password_is_replaced_in_the_pooler_too() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    let before = password_of(&herd, "a", "pgherd_probe");
    herd.run(&["apply", "--yes", "--rotate", "probe"]).ends_with(0);
    let new = password_of(&herd, "a", "pgherd_probe");
    assert_ne!(new, before);
    let log_in = |password: &str| herd.client("pooler", "pgherd_probe", password, "inventory", "SELECT 1");
    assert_eq!(log_in(&new).as_deref(), Ok("1"));
    assert!(log_in(&before).is_err());
    herd.is_as_declared();
    nothing_is_kept(&herd);
}

#[test]
fn a_rotation_that_is_killed_anywhere_is_finished_or_taken_back() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    let mut ways = [0, 0];
    for records in 1..14 {
        let before = (password_of(&herd, "a", "replicator"), verifier(&herd, "replicator"));
        let journals = records_of_journals(&herd);
        let mut apply = herd.start(&["apply", "--yes", "--rotate", "replication"]);
        while records_of_journals(&herd) < journals + records && !apply.has_ended() {
            std::thread::sleep(Duration::from_micros(200));
        }
        apply.signal(Signal::KILL);
        apply.end();
        let Some(id) = unfinished(&herd) else { continue };
        let back = records % 2 == 1 && {
            let undone = herd.run(&["operation", "undo", &id, "--yes"]);
            // Past its pivot there is only forward.
            assert!(undone.code == 0 || undone.code == 4, "{undone:?}");
            undone.code == 0
        };
        if back {
            let after = (password_of(&herd, "a", "replicator"), verifier(&herd, "replicator"));
            assert_eq!(after, before, "after {records} records");
        } else {
            herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
            assert_ne!(password_of(&herd, "a", "replicator"), before.0, "after {records} records");
        }
        ways[usize::from(back)] += 1;
        assert_eq!(passfile(&herd, "b"), passfile(&herd, "a"));
        nothing_is_kept(&herd);
        herd.is_as_declared();
        comes_back(&herd, "b");
    }
    assert!(ways[0] > 0 && ways[1] > 0, "{ways:?}");
}

fn records_of_journals(herd: &Herd) -> usize {
    let files = crate::herd::files_below(&herd.path("state/operations"));
    let lines = |file: &std::path::PathBuf| fs::read_to_string(file).map_or(0, |text| text.lines().count());
    files.iter().map(lines).sum()
}

fn unfinished(herd: &Herd) -> Option<String> {
    let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
    Some(report["clusters"][0]["operations"].as_array()?.first()?["id"].as_str()?.to_owned())
}

#[test]
fn a_rotation_is_refused_while_a_node_could_not_follow() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    let before = passfile(&herd, "a");
    herd.stop("b", "fast");
    fs::rename(herd.data("b"), herd.path("away")).expect("it is there");
    let refused = "cannot rotate the password of replicator: the files of inventory-b cannot be reached";
    herd.run(&["plan", "--rotate", "replication"]).ends_with(4).tells(&[refused]);
    herd.stop("a", "fast");
    herd.run(&["apply", "--yes", "--rotate", "replication"])
        .ends_with(4)
        .tells(&["no primary of inventory answers"]);
    assert_eq!(passfile(&herd, "a"), before);
    assert!(text(&herd.path("away")).ends_with("away"));
}
