//! WAL that is stored ahead of the archiver: by a process of its own, through whatever befalls it, the server and the repository.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::archive::{Archive, archived, finish, recovers, sql, try_sql, write_wal};
use crate::flips::{Chance, count};
use crate::herd::{Herd, SINGLE, as_server, processes, text, text_of, until};
use crate::server::{Server, installations, newest};
use crate::weed::weed;

/// A line to a server that can be cut.
struct Line {
    port: u16,
    whole: Arc<AtomicBool>,
}

impl Line {
    fn to(endpoint: &str) -> Self {
        let far = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let whole = Arc::new(AtomicBool::new(true));
        let state = Arc::clone(&whole);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if state.load(Ordering::Relaxed)
                    && let Ok(far) = TcpStream::connect(&far)
                {
                    let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                    let (there, back) = (Arc::clone(&state), Arc::clone(&state));
                    thread::spawn(move || pass(near, far, &there));
                    thread::spawn(move || pass(far_too, near_too, &back));
                }
            }
        });
        Self { port, whole }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Passes on what comes until the line is cut.
fn pass(mut from: TcpStream, mut to: TcpStream, whole: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut bytes = [0; 65536];
    while whole.load(Ordering::Relaxed) {
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => {
                if to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

/// A repository that can be taken away.
struct Kept {
    archive: Archive,
    line: Option<Line>,
}

impl Kept {
    /// In a directory, and in a bucket where this machine has an S3 server.
    fn each() -> Vec<Self> {
        let mut all = vec![Self { archive: Archive::new(), line: None }];
        if let Some(weed) = weed() {
            let line = Line::to(&weed.endpoint());
            let archive = Archive::in_a_bucket(weed, &line.endpoint());
            all.push(Self { archive, line: Some(line) });
        }
        all
    }

    fn is_there(&self, there: bool) {
        match &self.line {
            Some(line) => line.whole.store(there, Ordering::Relaxed),
            None => {
                let (root, away) = (self.archive.root(), self.archive.root().with_extension("away"));
                let (from, to) = if there { (away, root) } else { (root, away) };
                if from.exists() {
                    fs::rename(from, to).unwrap();
                }
            }
        }
    }

    /// Before 16 what a server starts inherits more from it than it knows.
    fn server(&self, settings: &str) -> Server {
        let installation = if self.line.is_some() { newest() } else { installations().remove(0) };
        let server = Server::make_with(&installation, settings, &["--wal-segsize=1"]);
        self.archive.connect(&server);
        server.run();
        server
    }

    /// Returns the worker that stores ahead for a server.
    fn worker(&self, server: &Server) -> Option<Pid> {
        let data = text(&server.data()).to_owned();
        let mut found =
            processes().into_iter().filter(|(_, line)| line.contains(" wal ahead ") && line.contains(&data));
        found.next().map(|(pid, _)| pid)
    }
}

/// Returns the files of archive_status that end so.
fn states(server: &Server, end: &str) -> Vec<String> {
    let names = fs::read_dir(server.data().join("pg_wal/archive_status")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect()
}

fn waiting(server: &Server) -> usize {
    states(server, ".ready").len()
}

/// Has so many segments wait while the repository is away.
fn pile_up(kept: &Kept, server: &Server, segments: usize) {
    kept.is_there(false);
    while waiting(server) < segments {
        write_wal(server, 2);
        finish(server);
    }
    kept.is_there(true);
}

/// Waits until nothing waits; the archiver rests for a minute after three failures, unless a segment is finished.
#[track_caller]
fn drained(server: &Server) {
    until(&format!("nothing waits\n{}", server.log()), || {
        if waiting(server) > 0 {
            try_sql(server, "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'test', 'wake')")
                .ok();
            thread::sleep(Duration::from_millis(300));
        }
        (waiting(server) == 0).then_some(())
    });
}

/// Sees that what was acknowledged is stored, whole, as long as the server still has it to compare.
#[track_caller]
fn nothing_acknowledged_is_lost(archive: &Archive, server: &Server) {
    for name in states(server, ".done") {
        // It may be recycled meanwhile.
        let Ok(content) = fs::read(server.data().join("pg_wal").join(&name)) else { continue };
        if !states(server, ".done").contains(&name) {
            continue;
        }
        assert!(archive.content(server, &name) == content, "{name} was acknowledged");
    }
}

#[test]
fn what_piled_up_is_stored_by_a_process_that_holds_nothing_of_the_server_and_ends_by_itself() {
    for kept in Kept::each() {
        let server = kept.server("wal_keep_size = '1 GB'\nmax_wal_size = '2 GB'\n");
        archived(&server);
        assert_eq!(kept.worker(&server), None, "nothing waits, so nothing runs");
        pile_up(&kept, &server, 40);
        drained(&server);
        let worker = kept.worker(&server).expect("it stays for some seconds");
        let proc = PathBuf::from(format!("/proc/{}", worker.as_raw_nonzero()));
        assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
        let stat = fs::read_to_string(proc.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        assert_eq!(fields[3], worker.as_raw_nonzero().to_string(), "a session of its own: {stat}");
        let held: Vec<PathBuf> = fs::read_dir(proc.join("fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect();
        let of_the_server =
            |path: &&PathBuf| path.starts_with(server.data()) || text(path).starts_with("pipe:");
        assert!(!held.iter().any(|path| of_the_server(&path)), "{held:?}");
        let sockets = held.iter().filter(|path| text(path).starts_with("socket:")).count();
        assert!(kept.line.is_some() || sockets == 0, "{held:?}");

        nothing_acknowledged_is_lost(&kept.archive, &server);
        // It outlives the server's archiver, not the server.
        server.stop("fast");
        until("the worker ends", || kept.worker(&server).is_none().then_some(()));
        let left = fs::read_dir(kept.archive.spool(&server).join("inventory-b/push")).unwrap();
        let left: Vec<String> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left, ["worker.lock"]);
    }
}

/// Writes as fast as it can for as long as this lives.
struct Load(Child);

impl Load {
    fn on(server: &Server) -> Self {
        let mut pgbench = as_server(&server.installation().bin().join("pgbench"));
        pgbench.args(["-h", text(&server.socket()), "-p", &server.port().to_string(), "-U", "postgres"]);
        pgbench.args(["-n", "-c", "4", "-T", "3600", "postgres"]);
        Self(pgbench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn make_tables(server: &Server) {
    let mut pgbench = as_server(&server.installation().bin().join("pgbench"));
    pgbench.args([
        "-h",
        text(&server.socket()),
        "-p",
        &server.port().to_string(),
        "-U",
        "postgres",
        "-i",
        "-q",
        "-s",
        "2",
        "postgres",
    ]);
    text_of(pgbench).unwrap();
}

#[test]
fn under_load_whatever_dies_nothing_acknowledged_is_lost_and_it_catches_up() {
    for kept in Kept::each() {
        let server = kept.server("wal_keep_size = '2 GB'\nmax_wal_size = '4 GB'\nfsync = off\n");
        make_tables(&server);
        let mut chance = Chance::new("what dies under load");
        let (mut load, mut killed) = (Load::on(&server), BTreeMap::new());
        let began = Instant::now();
        while killed.values().sum::<usize>() < count(12, 120) {
            thread::sleep(Duration::from_millis(100 + chance.below(600)));
            let dead = match chance.below(10) {
                0 => {
                    kept.is_there(false);
                    "repository"
                }
                1..=2 => {
                    drop(load);
                    server.stop("immediate");
                    server.run();
                    load = Load::on(&server);
                    "server"
                }
                3..=4 => {
                    match try_sql(&server, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'")
                    {
                        Ok(pid) if !pid.is_empty() => {
                            kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).ok();
                            "archiver"
                        }
                        _ => continue,
                    }
                }
                _ => match kept.worker(&server) {
                    Some(pid) => {
                        kill_process(pid, Signal::KILL).ok();
                        "worker"
                    }
                    // Whatever waits makes one.
                    None => {
                        kept.is_there(false);
                        thread::sleep(Duration::from_millis(500));
                        kept.is_there(true);
                        continue;
                    }
                },
            };
            *killed.entry(dead).or_insert(0) += 1;
            thread::sleep(Duration::from_millis(chance.below(300)));
            kept.is_there(true);
            assert!(began.elapsed() < Duration::from_secs(1800), "{killed:?}");
        }
        eprintln!("killed: {killed:?} in {:.0?}", began.elapsed());
        drop(load);
        until("the server answers", || try_sql(&server, "SELECT 1").ok());
        drained(&server);
        nothing_acknowledged_is_lost(&kept.archive, &server);
        let found = kept.archive.look(&server);
        let spans = &found.timelines.values().next().unwrap().spans;
        assert_eq!(spans.len(), 1, "no gap is left: {spans:?}");
        assert!(spans[0].count(found.segment_size.unwrap()) > 20);
        assert!(found.strays.is_empty(), "{:?}", found.strays);
        // Its log says what the repository said, and no word of the worker's own.
        let log = server.log();
        assert!(!log.contains("bug in itself"), "{log}");
        sql(&server, "SELECT 1");
    }
}

#[test]
fn an_error_of_what_was_to_be_stored_ahead_is_told_by_the_call_of_that_file() {
    let kept = Kept { archive: Archive::new(), line: None };
    let server = kept.server("wal_keep_size = '1 GB'\n");
    archived(&server);
    pile_up(&kept, &server, 20);
    // Somebody else's segment is in the way of the twelfth.
    let mut names = states(&server, ".ready");
    names.sort();
    let path = kept.archive.object(&server, &names[12]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "something else").unwrap();
    until("the archiver comes to it", || {
        finish(&server);
        thread::sleep(Duration::from_millis(300));
        server.log().contains("has to be removed by hand").then_some(())
    });
    let failed = sql(&server, "SELECT last_failed_wal FROM pg_stat_archiver");
    assert_eq!(failed, names[12]);
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    fs::remove_file(&path).unwrap();
    drained(&server);
    nothing_acknowledged_is_lost(&kept.archive, &server);
}

#[test]
fn a_backlog_is_shown_with_its_age_and_the_time_until_the_disk_is_full() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.run(&["backup", "create"]).ends_with(0);
    let spool = herd.path("state/spool/inventory-a");
    assert_eq!(fs::metadata(&spool).unwrap().permissions().mode() & 0o777, 0o700);
    herd.sql("a", "ALTER SYSTEM SET archive_command = 'false'");
    herd.sql("a", "SELECT pg_reload_conf()");
    until("it is taken", || (herd.sql("a", "SHOW archive_command") == "false").then_some(()));
    herd.sql("a", "CREATE TABLE t (i int)");
    let begun = Instant::now();
    let shown = until("three segments wait for a second", || {
        herd.sql("a", "INSERT INTO t VALUES (1)");
        herd.sql("a", "SELECT pg_switch_wal()");
        let shown = herd.run(&["status", "--format", "json"]).json();
        let archive = shown["clusters"][0]["backups"]["archive"].clone();
        let told = archive["waiting"].as_u64()? >= 3 && archive["disk_full_seconds"].as_f64().is_some();
        told.then_some(archive)
    });
    let oldest = shown["oldest_seconds"].as_f64().unwrap();
    assert!(oldest >= 1.0 && oldest <= begun.elapsed().as_secs_f64() + 1.0, "{shown}");
    assert!(shown["wal_bytes_per_second"].as_f64().unwrap() > 0.0, "{shown}");
    herd.run(&["status"]).says(&[" waiting for ", "(disk full in "]);
    herd.run(&["health"]).says(&["the first one for ", "WAL comes at "]);

    // What was switched off is not stored by anybody else.
    let waiting = herd
        .sql("a", "SELECT string_agg(name, ' ') FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'");
    let name = waiting.split(' ').next().unwrap().trim_end_matches(".ready").to_owned();
    assert!(!herd.kept().has_wal(&name));
    herd.sql("a", "ALTER SYSTEM RESET archive_command");
    herd.sql("a", "SELECT pg_reload_conf()");
    // The archiver rests for a minute after three failures, unless a segment is finished.
    herd.sql("a", "INSERT INTO t VALUES (1)");
    herd.sql("a", "SELECT pg_switch_wal()");
    until("nothing waits", || {
        let shown = herd.run(&["status", "--format", "json"]).json();
        let archive = &shown["clusters"][0]["backups"]["archive"];
        (archive["waiting"] == 0 && archive["oldest_seconds"].is_null()).then_some(())
    });
    assert!(herd.kept().has_wal(&name));
}

/// Returns the workers that fetch ahead by this profile's spool.
fn prefetchers(server: &Server) -> Vec<Pid> {
    let data = text(&server.data()).to_owned();
    let found =
        processes().into_iter().filter(|(_, line)| line.contains(" wal prefetch ") && line.contains(&data));
    found.map(|(pid, _)| pid).collect()
}

#[test]
fn a_recovery_takes_what_was_fetched_ahead_whatever_dies_and_leaves_nothing_behind() {
    for kept in Kept::each() {
        let server = kept.server("");
        let backup = Server::backup_of(&server, "archive_mode = off\n");
        let late = Server::backup_of(&server, "archive_mode = off\n");
        sql(&server, "CREATE TABLE kept (i int)");
        for number in 0..60 {
            sql(&server, &format!("INSERT INTO kept VALUES ({number})"));
            finish(&server);
        }
        drained(&server);
        server.stop("fast");
        let fetched = kept.archive.spool(&server).join("inventory-b/fetch");
        for (recovering, kills) in [(&backup, false), (&late, true)] {
            recovers(recovering, "");
            let over = AtomicBool::new(false);
            let seen = thread::scope(|scope| {
                let watch = scope.spawn(|| {
                    let mut seen = 0;
                    while !over.load(Ordering::Relaxed) {
                        for pid in prefetchers(recovering) {
                            seen += 1;
                            if kills {
                                kill_process(pid, Signal::KILL).ok();
                            }
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                    seen
                });
                recovering.run();
                until("it is promoted", || {
                    let ended = try_sql(recovering, "SELECT pg_is_in_recovery()").ok()? == "f";
                    ended.then_some(())
                });
                over.store(true, Ordering::Relaxed);
                watch.join().unwrap()
            });
            assert!(seen > 0, "somebody fetches ahead");
            assert_eq!(sql(recovering, "SELECT count(*), max(i) FROM kept"), "60|59");
            until("the worker ends", || prefetchers(recovering).is_empty().then_some(()));
            if !kills {
                let left = fs::read_dir(&fetched).unwrap();
                let mut left: Vec<String> =
                    left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
                left.sort();
                assert_eq!(left, ["pace", "worker.lock"]);
            }
            let wal = fs::read_dir(recovering.data().join("pg_wal")).unwrap();
            let names = wal.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let strays: Vec<String> = names.filter(|name| name.contains("pgherd")).collect();
            assert!(strays.is_empty(), "{strays:?}");
            recovering.stop("immediate");
        }
    }
}
