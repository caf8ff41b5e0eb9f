//! Every check of a server is made to fire by really causing what it is for, many side by side, and clears when that is mended: on the oldest
//! installed PostgreSQL, on 15 and on the newest.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::health::finding;
use crate::health_nodes::{Session, append, without_last_line};
use crate::herd::{
    APP_PASSWORD, Frozen, Herd, PAIR, SINGLE, Shape, as_server, files_below, is_root, text, text_of, until,
};
use crate::server::{Installation, installations, newest};

/// What a check should say of a thing: its status, and words of its text.
type Told<'a> = (&'a str, &'a str, &'a str, &'a str);

/// Looks until every one of these was told once.
#[track_caller]
fn told(herd: &Herd, wanted: &[Told<'_>]) {
    let mut left = wanted.to_vec();
    let begun = Instant::now();
    loop {
        let report = herd.run(&["--format", "json", "health"]).json();
        let findings = report["findings"].as_array().expect("a list");
        left.retain(|wanted| !findings.iter().any(|finding| is(finding, wanted)));
        if left.is_empty() {
            return;
        }
        let found: Vec<&Value> =
            findings.iter().filter(|one| left.iter().any(|want| one["check"] == want.0)).collect();
        assert!(begun.elapsed() < Duration::from_secs(60), "not told: {left:#?}\nbut: {found:#?}");
    }
}

fn is(finding: &Value, (check, subject, status, words): &Told<'_>) -> bool {
    let of = match &finding["subject"] {
        Value::String(word) => word == subject,
        named => ["node", "pooler", "part"].iter().any(|kind| named[kind] == *subject),
    };
    let says = finding["text"].as_str().is_some_and(|text| text.contains(words));
    of && says && finding["check"] == *check && finding["status"] == *status
}

/// Looks until each of these checks has been fine.
#[track_caller]
fn fine(herd: &Herd, checks: &[(&str, &str)]) {
    let wanted: Vec<Told<'_>> = checks.iter().map(|(check, subject)| (*check, *subject, "ok", "")).collect();
    told(herd, &wanted);
}

/// Makes it longer ago that somebody looked, as if that much time had passed.
fn looked_longer_ago(herd: &Herd, by: Duration) {
    let path = herd.path("state/health/shop.json");
    let mut memory: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let at = &mut memory["looks"]["inventory"]["at"];
    let then: jiff::Timestamp = at.as_str().unwrap().parse().unwrap();
    *at = (then - by).to_string().into();
    fs::write(&path, format!("{memory}\n")).unwrap();
}

/// Makes it longer ago that the databases were measured.
fn measured_longer_ago(herd: &Herd, by: Duration) {
    let path = herd.path("state/health/shop.json");
    let mut memory: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let sizes = memory["looks"]["inventory"]["sizes"].as_array_mut().expect("they were measured");
    assert!(!sizes.is_empty());
    for size in sizes {
        let then: jiff::Timestamp = size["at"].as_str().unwrap().parse().unwrap();
        size["at"] = (then - by).to_string().into();
    }
    fs::write(&path, format!("{memory}\n")).unwrap();
}

fn oldest() -> Installation {
    installations().remove(0)
}

/// 15 where it is installed.
fn fifteen() -> Installation {
    installations().into_iter().find(|found| found.major == 15).unwrap_or_else(newest)
}

#[test]
fn a_primary_of_the_oldest_version_tells_all_that_is_wrong_with_it() {
    a_primary(&oldest());
}

#[test]
fn a_primary_of_15_tells_all_that_is_wrong_with_it() {
    a_primary(&fifteen());
}

#[test]
fn a_primary_of_the_newest_version_tells_all_that_is_wrong_with_it() {
    a_primary(&newest());
}

/// Thresholds that nobody has to wait for. Ages of transactions, checksums and what fails have pgherd's own.
const PRIMARY: &str = "    health:
      disk: {report: never}
      rpo: {report: never}
      uptime: {warn: 20 s}
      connections: {warn: 40 %, crit: 50 %}
      idle-in-transaction: {warn: 100 ms}
      long-query: {warn: 100 ms}
      long-transaction: {warn: 100 ms}
      lock-wait: {warn: 100 ms}
      lock-table: {warn: 5 %}
      multixact-age: {warn: 1 M}
      xmin-horizon: {warn: 10 k}
      slots: {warn: 100 ms}
      wal-size: {warn: 150 %}
      dead-rows: {warn: 10 %}
      deadlocks: {warn: 1}
      temp-files: {warn: 1 MiB}
      slow-queries: {warn: 5 ms}
    nodes:
";

const PRIMARY_SETTINGS: &str = "        work_mem: 4 MiB
        max_prepared_transactions: 5
        max_locks_per_transaction: 10
        shared_preload_libraries: pg_stat_statements
        autovacuum_naptime: 1s
        vacuum_multixact_freeze_min_age: 0
        deadlock_timeout: 100ms
        max_wal_size: 64 MiB
        min_wal_size: 32 MiB
";

/// What the server holds that things will go wrong with.
const TABLES: &str = "
CREATE EXTENSION pg_stat_statements;
CREATE TABLE public.item (id serial PRIMARY KEY, n int);
INSERT INTO public.item (n) SELECT 1 FROM generate_series(1, 1000);
ALTER SEQUENCE public.item_id_seq AS bigint;
SELECT setval('public.item_id_seq', 2000000000);
CREATE SEQUENCE public.down INCREMENT -1 MINVALUE -100 MAXVALUE -1;
CREATE TABLE public.worn (n int) WITH (autovacuum_enabled = off);
INSERT INTO public.worn SELECT 1 FROM generate_series(1, 30000);
CREATE TABLE public.marred (n int);
INSERT INTO public.marred SELECT 1 FROM generate_series(1, 100);
CREATE TABLE public.wide (n int, filler text) WITH (fillfactor = 10);
INSERT INTO public.wide SELECT n, repeat('x', 300) FROM generate_series(1, 12000) n;
CREATE TABLE public.hot (n int) WITH (fillfactor = 10);
INSERT INTO public.hot SELECT n FROM generate_series(1, 2000) n;
CREATE TABLE public.held (n int);
INSERT INTO public.held VALUES (1)";

/// Stops the server, and has it start 1.5 thousand million transactions and three million multixacts later, with a page that has rotted, so
/// that autovacuum, which begins at once, cannot freeze its database.
fn ages_and_rots(herd: &Herd) {
    const XID: u64 = 1_500_000_000;
    const MULTIXACT: u64 = 3_000_000;
    let data = herd.data("a");
    let rotten = data.join(herd.sql_in("a", "inventory", "SELECT pg_relation_filepath('public.marred')"));
    herd.sql("a", "CHECKPOINT");
    herd.stop("a", "fast");
    let mut file = fs::OpenOptions::new().read(true).write(true).open(rotten).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(8000)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(8000)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    // The states of transactions are kept two bits each, the members of multixacts at four bytes each, both in files of 32 pages.
    for segment in [
        format!("pg_xact/{:04X}", XID / (32 * 8192 * 4)),
        format!("pg_multixact/offsets/{:04X}", MULTIXACT / (32 * 8192 / 4)),
    ] {
        let mut zeros = as_server(Path::new("dd"));
        let to = format!("of={}", data.join(segment).display());
        zeros.args(["if=/dev/zero", &to, "bs=8192", "count=32", "status=none"]);
        text_of(zeros).unwrap();
    }
    let (xid, multixact) = (XID.to_string(), format!("{MULTIXACT},1"));
    herd.program("pg_resetwal", &["-x", &xid, "-m", &multixact, "-D", text(&data)]);
    start(herd, "a");
}

fn start(herd: &Herd, node: &str) {
    herd.program("pg_ctl", &["-D", text(&herd.data(node)), "-l", "/dev/null", "-w", "start"]);
}

fn a_primary(installation: &Installation) {
    let mut herd = Herd::declare(installation, &SINGLE);
    herd.edit("    nodes:\n", PRIMARY);
    herd.edit("        work_mem: 4 MiB\n", PRIMARY_SETTINGS);
    herd.apply().ends_with(0);
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    sql(TABLES);
    ages_and_rots(&herd);
    told(&herd, &[("uptime", "a", "warning", "up ")]);
    sql("BEGIN; UPDATE public.held SET n = 2; PREPARE TRANSACTION 'order-7'");
    sql("DO $$BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$");

    // One sits on a lock, another waits for it; one has locked everything, and everybody else is there, too.
    let idle = Session::open(&herd, "a", "BEGIN; LOCK TABLE public.item;");
    until("it has the lock", || {
        let held = "SELECT count(*) FROM pg_locks WHERE relation = 'public.item'::regclass AND granted AND mode = 'AccessExclusiveLock'";
        (sql(held) == "1").then_some(())
    });
    let waits = Session::open(&herd, "a", "SELECT count(*) FROM public.item;");
    let locks = Session::open(
        &herd,
        "a",
        "BEGIN; SELECT count(pg_advisory_xact_lock(i)) FROM generate_series(1, 60) i;",
    );
    let crowd: Vec<Session> = (0..20).map(|_| Session::open(&herd, "a", "SELECT 1;")).collect();
    deadlock(&herd);

    sql("UPDATE public.worn SET n = 2");
    herd.try_sql("a", "inventory", "CREATE UNIQUE INDEX CONCURRENTLY worn_n ON public.worn (n)")
        .expect_err("not unique");
    herd.try_sql("a", "inventory", "SELECT sum(n) FROM public.marred").expect_err("its page has rotted");
    sql(
        "SET work_mem = '64kB'; SELECT count(*) FROM (SELECT n FROM generate_series(1, 200000) n ORDER BY n DESC) sorted",
    );
    sql("DO $$BEGIN FOR i IN 1..25 LOOP PERFORM count(*) FROM public.wide; END LOOP; END$$");
    sql("DO $$BEGIN FOR i IN 1..20000 LOOP PERFORM 1; ROLLBACK; END LOOP; END$$");
    sql("ALTER SYSTEM SET max_connections = 41");
    append(&herd.data("a").join("pg_hba.conf"), "hots all all all trust");
    sql("SELECT pg_reload_conf()");
    sql("SELECT pg_create_physical_replication_slot('left_behind', true)");
    for _ in 0..10 {
        sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    }
    sql(
        "CREATE SUBSCRIPTION nobody CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p WITH (connect = false)",
    );
    sql("ALTER SUBSCRIPTION nobody ENABLE");
    sql("SELECT pg_stat_statements_reset()");
    sql("SELECT pg_sleep(2)");
    told(
        &herd,
        &[
            ("connections", "a", "critical", "of 37 connections"),
            ("idle-in-transaction", "a", "warning", "LOCK TABLE public.item;"),
            ("long-query", "a", "warning", "SELECT count(*) FROM public.item;"),
            ("long-transaction", "a", "warning", "has been in a transaction"),
            ("lock-wait", "a", "warning", "at the root for pid"),
            ("lock-table", "a", "warning", "locks ("),
            ("prepared-transactions", "cluster", "warning", "the oldest order-7 of postgres in inventory"),
            ("xmin-horizon", "cluster", "warning", "prepared transaction order-7 holds it for "),
            ("xid-age", "cluster", "critical", "is 1500 M transactions old, 69.9 % of 2^31"),
            ("multixact-age", "cluster", "warning", "is 3 M multixacts old"),
            ("freeze", "cluster", "critical", "is at 750 % of autovacuum_freeze_max_age"),
            ("dead-rows", "cluster", "warning", "public.worn in inventory has 30000 dead rows (50 %)"),
            ("invalid-indexes", "cluster", "warning", "public.worn_n of public.worn in inventory"),
            ("checksums", "a", "critical", "pages did not match their checksum, in inventory"),
            (
                "sequences",
                "cluster",
                "critical",
                "public.item_id_seq in inventory has used 93.1 % of what its column of type int4 can hold",
            ),
            ("cache-hit", "a", "warning", "of the blocks in shared buffers"),
            ("rollbacks", "a", "warning", "of the transactions rolled back"),
            ("deadlocks", "a", "warning", "deadlocks an hour"),
            ("temp-files", "a", "warning", "of temporary files an hour"),
            ("slow-queries", "cluster", "warning", "pg_sleep"),
            ("pending-restart", "a", "warning", "max_connections in effect after a restart only"),
            ("configuration", "a", "critical", "pg_hba.conf:"),
            ("slots", "a", "warning", "left_behind "),
            ("wal-size", "a", "warning", "most of it is kept by slot left_behind"),
            ("subscriptions", "cluster", "critical", "nobody in inventory does not run"),
        ],
    );

    // What only goes on from there.
    sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    sql("SELECT pg_reload_conf()");
    sql("CHECKPOINT");
    told(&herd, &[("slots", "a", "critical", "left_behind is ")]);

    // And back.
    drop((idle, waits, locks, crowd));
    sql("ALTER TABLE public.item ALTER id TYPE bigint");
    sql("ROLLBACK PREPARED 'order-7'");
    sql("DROP TABLE public.marred, public.wide");
    sql("VACUUM public.worn");
    sql("DROP INDEX public.worn_n");
    sql(
        "ALTER SUBSCRIPTION nobody DISABLE; ALTER SUBSCRIPTION nobody SET (slot_name = NONE); DROP SUBSCRIPTION nobody",
    );
    sql("SELECT pg_drop_replication_slot('left_behind')");
    sql("ALTER SYSTEM RESET max_connections");
    sql("ALTER SYSTEM RESET max_slot_wal_keep_size");
    without_last_line(&herd.data("a").join("pg_hba.conf"));
    sql("SELECT pg_reload_conf()");
    sql("CHECKPOINT");
    sql("DO $$BEGIN FOR i IN 1..40000 LOOP PERFORM 1; COMMIT; END LOOP; END$$");
    sql("DO $$BEGIN FOR i IN 1..30000 LOOP PERFORM count(*) FROM public.hot; END LOOP; END$$");
    sql("SELECT pg_stat_statements_reset()");
    sql(&"SELECT 1;".repeat(3000));
    looked_longer_ago(&herd, Duration::from_secs(600));
    fine(&herd, &[("deadlocks", "a"), ("temp-files", "a"), ("cache-hit", "a"), ("rollbacks", "a")]);
    // A page that did not match is one until somebody has seen to it.
    assert_eq!(finding(&herd, "checksums", "a")["status"], "critical");
    sql("SELECT pg_stat_reset()");
    let cluster = "prepared-transactions xmin-horizon xid-age multixact-age freeze dead-rows invalid-indexes sequences slow-queries subscriptions";
    let node = "uptime connections idle-in-transaction long-query long-transaction lock-wait lock-table checksums pending-restart \
                configuration slots wal-size crash";
    let all = cluster.split_whitespace().map(|check| (check, "cluster"));
    fine(&herd, &all.chain(node.split_whitespace().map(|check| (check, "a"))).collect::<Vec<_>>());

    // A column may be wide and its sequence end; one that cycles has no end. An index that is being built is not invalid.
    sql("SELECT setval('public.down', -80)");
    let held = Session::open(&herd, "a", "BEGIN; UPDATE public.held SET n = 4;");
    until("it is held", || {
        (herd.sql("a", "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == "1")
            .then_some(())
    });
    let builds = Session::open(&herd, "a", "CREATE INDEX CONCURRENTLY held_n ON public.held (n);");
    until("it is being built", || {
        (herd.sql("a", "SELECT count(*) FROM pg_stat_progress_create_index") == "1").then_some(())
    });
    told(
        &herd,
        &[
            ("sequences", "cluster", "warning", "public.down in inventory has used 80 % of what it can give"),
            ("invalid-indexes", "cluster", "ok", "none"),
        ],
    );
    drop((builds, held));
    sql("ALTER SEQUENCE public.down CYCLE");
    fine(&herd, &[("sequences", "cluster")]);

    // A process that is killed takes all others with it, but the postmaster.
    let victim = Session::open(&herd, "a", "SELECT 1;");
    let pid = until("it is there", || {
        let pid = herd.sql(
            "a",
            "SELECT min(pid) FROM pg_stat_activity WHERE datname = 'inventory' AND application_name = 'psql'",
        );
        Pid::from_raw(pid.parse().ok()?)
    });
    kill_process(pid, Signal::KILL).expect("it runs");
    told(&herd, &[("crash", "a", "warning", "a process crashed, and all were started anew")]);
    drop(victim);
    herd.edit("      uptime: {warn: 20 s}\n", "      crash: {warn: 1 s}\n");
    fine(&herd, &[("crash", "a")]);
}

/// Two sessions wait for each other until one of them is sent away.
fn deadlock(herd: &Herd) {
    let mut sessions =
        [1, 2].map(|own| Session::open(herd, "a", &format!("SELECT pg_advisory_lock({own}00);")));
    until("each has its own", || {
        let held =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid IN (100, 200) AND granted";
        (herd.sql("a", held) == "2").then_some(())
    });
    for (session, other) in sessions.iter_mut().zip([2, 1]) {
        session.goes_on(&format!("SELECT pg_advisory_lock({other}00);"));
    }
    let seen = "SELECT sum(deadlocks) > 0 FROM pg_stat_database";
    until("it is found", || (herd.sql("a", seen) == "t").then_some(()));
}

#[test]
fn a_herd_with_a_standby_of_the_oldest_version_tells_all_that_is_wrong_with_it() {
    a_pair(&oldest());
}

#[test]
fn a_herd_with_a_standby_of_15_tells_all_that_is_wrong_with_it() {
    a_pair(&fifteen());
}

#[test]
fn a_herd_with_a_standby_of_the_newest_version_tells_all_that_is_wrong_with_it() {
    a_pair(&newest());
}

const PAIRED: &str = "    health:
      receiver: {warn: 2 s}
      conflicts: {warn: 1}
      lag-bytes: {warn: 1 MiB}
      slots: {warn: 100 ms}
      pool-clients: {warn: 20 %}
      backup-running: {warn: 1 %}
    nodes:
";

/// A file system of a node's own; root alone may make one.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=400m,mode=0777", "tmpfs", text(&at)]);
        text_of(mount).expect("root may mount");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.args(["--lazy", text(&self.0)]);
        if let Err(said) = text_of(unmount) {
            eprintln!("{said}");
        }
    }
}

fn a_pair(installation: &Installation) {
    let mut herd = Herd::declare(installation, &PAIR);
    let small = is_root().then(|| Small::mount(herd.path("small")));
    herd.edit(
        "here: {hosts: {local: local}}",
        "here: {hosts: {local: local}}, there: {hosts: {far: {address: 127.0.0.2, via: local}}}",
    );
    let b = herd.data("b");
    let on_small = small.as_ref().map_or(b.clone(), |small| small.0.join("b"));
    herd.edit(
        &format!("      b: {{host: local, port: {}, data-directory: {}", herd.port("b"), b.display()),
        &format!("      b: {{host: far, port: {}, data-directory: {}", herd.port("b"), on_small.display()),
    );
    herd.keep_backups();
    herd.edit("    nodes:\n", PAIRED);
    herd.edit(
        "objectives: {lose-primary: {rpo: 5 s, rto: 1 min}}",
        "objectives: {lose-primary: {rpo: 1 s, rto: 1 min}, lose-region: {rpo: 1 s, rto: 1 h}, undo-mistake: {rpo: 1 s, rto: 1 h}}",
    );
    let drills = "    drills:\n      restore: {to: newest, prove: [checksums]}\n    schemas:\n";
    herd.edit("    schemas:\n", drills);
    herd.apply().ends_with(0);
    let on_b = |sql: &str| herd.sql("b", sql);
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    sql("CREATE TABLE public.item AS SELECT n FROM generate_series(1, 1000) n");

    // Promises that nobody has kept yet.
    told(
        &herd,
        &[
            ("backup-age", "cluster", "critical", "there is no backup"),
            ("window", "cluster", "critical", "nothing can be restored"),
            ("drill", "cluster", "warning", "no drill has passed"),
        ],
    );
    herd.run(&["backup", "create"]).ends_with(0);
    fine(
        &herd,
        &[
            ("backup-age", "cluster"),
            ("window", "cluster"),
            ("lag", "b"),
            ("rpo", "lose-primary"),
            ("rpo", "lose-region"),
            ("rpo", "undo-mistake"),
        ],
    );

    // Clients that hold every connection of a pool, and more that wait for one.
    let clients: Vec<Client> = (0..12).map(|_| Client::begins(&herd)).collect();
    // A query that stands in the way of replay.
    on_b("ALTER SYSTEM SET max_standby_streaming_delay = '100ms'");
    on_b("SELECT pg_reload_conf()");
    let reads =
        Session::open(&herd, "b", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM public.item;");
    until("it reads", || {
        (on_b("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == "1")
            .then_some(())
    });
    sql("DELETE FROM public.item");
    sql("VACUUM public.item");
    if let Some(small) = &small {
        let mut fill = Command::new("fallocate");
        let free = rustix::fs::statvfs(&small.0).unwrap();
        let most = free.f_bavail * free.f_frsize * 19 / 20;
        fill.args(["-l", &most.to_string(), text(&small.0.join("filler"))]);
        text_of(fill).unwrap();
    }
    let disk = if small.is_some() { "critical" } else { "ok" };
    told(
        &herd,
        &[
            ("pool-wait", "local", "warning", ""),
            ("pool-clients", "local", "warning", "of 50 clients"),
            ("conflicts", "b", "warning", "1 queries cancelled an hour"),
            ("disk", "b", disk, "full"),
        ],
    );
    drop((clients, reads));
    if let Some(small) = &small {
        fs::remove_file(small.0.join("filler")).unwrap();
    }

    // Idle for longer than the limit: no lag, although the last commit is old. A sender that says nothing: the receiver streams, and hears
    // nothing.
    let sender = herd.sql("a", "SELECT pid FROM pg_stat_replication");
    let frozen = Frozen::new(Pid::from_raw(sender.parse().expect("a number")).expect("a process"));
    told(&herd, &[("receiver", "b", "warning", "heard of the primary")]);
    drop(frozen);
    until("the last commit is older than the limit", || {
        (on_b("SELECT now() - pg_last_xact_replay_timestamp() > '6 s'") == "t").then_some(())
    });
    told(&herd, &[("lag", "b", "ok", "nothing is missing"), ("receiver", "b", "ok", "")]);
    let write = || sql("SELECT pg_logical_emit_message(true, 'x', repeat('x', 3000000))");
    on_b("SELECT pg_wal_replay_pause()");
    write();
    told(
        &herd,
        &[
            ("replay", "b", "warning", "it is paused"),
            ("lag", "b", "critical", "age of the last transaction that was replayed"),
            ("lag", "b", "critical", "stuck for"),
            ("lag-bytes", "b", "warning", "behind"),
            ("failover", "cluster", "critical", "its replay is paused"),
        ],
    );
    on_b("SELECT pg_wal_replay_resume()");
    fine(
        &herd,
        &[
            ("replay", "b"),
            ("lag", "b"),
            ("lag-bytes", "b"),
            ("failover", "cluster"),
            ("pool-wait", "local"),
            ("pool-clients", "local"),
            ("disk", "b"),
        ],
    );

    // A receiver that was cut off, with nothing in its place, and an archive command that fails.
    sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    sql("SELECT pg_reload_conf()");
    on_b("ALTER SYSTEM SET primary_slot_name = 'nobodys'");
    on_b("SELECT pg_reload_conf()");
    let stuck = herd.start(&["backup", "create"]);
    told(
        &herd,
        &[
            ("standbys", "b", "critical", "receive"),
            ("lag", "b", "critical", "time since its last sign of the primary"),
        ],
    );
    write();
    sql("SELECT pg_switch_wal()");
    told(
        &herd,
        &[
            ("missing-slots", "cluster", "critical", "a has no slot nobodys"),
            ("slots", "a", "warning", "inventory_b "),
            ("lag-bytes", "b", "warning", "behind"),
            ("rpo", "lose-primary", "critical", "b would take over"),
            ("rpo", "lose-region", "critical", "b would take over"),
            ("rpo", "undo-mistake", "critical", "has nothing newer"),
            ("failover", "cluster", "critical", "it does not stream"),
            ("archive", "cluster", "critical", "and nothing was archived since"),
            ("backup-running", "cluster", "warning", "is being made by "),
        ],
    );
    on_b("ALTER SYSTEM RESET primary_slot_name");
    on_b("SELECT pg_reload_conf()");
    sql("ALTER SYSTEM SET archive_command = ''");
    sql("SELECT pg_reload_conf()");
    told(&herd, &[("archive", "cluster", "critical", "neither archive_command nor archive_library is set")]);
    sql("ALTER SYSTEM RESET archive_command");
    sql("SELECT pg_reload_conf()");
    sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    let mended = [
        ("standbys", "b"),
        ("missing-slots", "cluster"),
        ("slots", "a"),
        ("rpo", "lose-primary"),
        ("rpo", "lose-region"),
        ("rpo", "undo-mistake"),
        ("failover", "cluster"),
        ("archive", "cluster"),
    ];
    fine(&herd, &mended);
    stuck.end().ends_with(0);
    fine(&herd, &[("backup-running", "cluster")]);

    // A segment that is gone from the repository, a backup that has grown old, WAL that would fill the disk, and our own clock, which is wrong.
    sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    let segments =
        || files_below(&herd.repository()).into_iter().filter(|path| is_segment(path)).collect::<Vec<_>>();
    let gone = segments().pop().expect("WAL was archived");
    fs::remove_file(&gone).unwrap();
    sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    herd.edit(
        "    health:\n      receiver: {warn: 2 s}\n",
        "    health:\n      backup-age: {warn: 1 s}\n      growth: {warn: 10000 days, crit: 1 s}\n      runway: {warn: 10000 days}\n",
    );
    told(
        &herd,
        &[
            ("window", "cluster", "critical", "WAL is missing from"),
            ("rpo", "undo-mistake", "critical", "has nothing newer"),
            ("backup-age", "cluster", "warning", " ago, warning from 1.0 s on"),
        ],
    );
    let wrong = skewed(&herd);
    for node in ["a", "b"] {
        assert!(wrong.iter().any(|one| is(one, &("clock", node, "critical", "ahead of ours"))), "{wrong:#?}");
    }
    told(&herd, &[("runway", "a", "warning", "of WAL an hour since")]);
    // As if the first look had been two hours ago.
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE public.grown AS SELECT repeat('x', 500) FROM generate_series(1, 20000)",
    );
    measured_longer_ago(&herd, Duration::from_secs(2 * 3600));
    told(&herd, &[("growth", "cluster", "warning", "growing by ")]);
    // What was so two days ago is forgotten.
    measured_longer_ago(&herd, Duration::from_secs(49 * 3600));
    fine(&herd, &[("growth", "cluster")]);
    herd.edit(
        "      backup-age: {warn: 1 s}\n      growth: {warn: 10000 days, crit: 1 s}\n      runway: {warn: 10000 days}\n",
        "",
    );
    herd.run(&["backup", "create"]).ends_with(0);
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    sql("SELECT pg_stat_reset_shared('wal')");
    looked_longer_ago(&herd, Duration::from_secs(600));
    fine(
        &herd,
        &[
            ("window", "cluster"),
            ("rpo", "undo-mistake"),
            ("backup-age", "cluster"),
            ("clock", "a"),
            ("clock", "b"),
            ("conflicts", "b"),
            ("runway", "a"),
        ],
    );

    // A file that says another version, and a directory in which another cluster lies.
    let version = format!("version: {}", installation.major);
    herd.edit(&version, "version: 16");
    told(&herd, &[("version", "cluster", "critical", "16 is declared")]);
    herd.edit("version: 16", &version);
    herd.program("pg_ctl", &["-D", text(&on_small), "-m", "fast", "-w", "stop"]);
    fs::create_dir(herd.path("other")).unwrap();
    fs::set_permissions(herd.path("other"), fs::Permissions::from_mode(0o777)).unwrap();
    let (other, control) = (herd.path("other/data"), on_small.join("global/pg_control"));
    herd.program("initdb", &["-D", text(&other), "-U", "postgres", "--no-sync"]);
    let own = fs::read(&control).unwrap();
    fs::write(&control, fs::read(other.join("global/pg_control")).unwrap()).unwrap();
    told(
        &herd,
        &[
            ("version", "cluster", "ok", ""),
            ("connect", "b", "critical", "it is stopped"),
            ("system-identifier", "b", "critical", "the node was made with"),
        ],
    );
    fs::write(&control, own).unwrap();
    herd.run(&["drill", "run", "restore"]).ends_with(0);
    herd.apply().ends_with(0);

    herd.edit("      conflicts: {warn: 1}\n", "");
    // And all is well: what there is was made, nothing is unknown, and the exit code says so.
    until("nothing is unknown or wrong", || {
        let judged = herd.run(&["health", "-v"]);
        eprintln!("{}", judged.stdout);
        (judged.code == 0).then_some(())
    });
}

/// A client of the pooler that sits in a transaction, or waits for one.
struct Client(Child);

impl Client {
    fn begins(herd: &Herd) -> Self {
        let mut client = Command::new(herd.installation().bin().join("psql"));
        client
            .args([
                "-XAtq",
                "-h",
                "127.0.0.1",
                "-U",
                "app",
                "-d",
                "inventory",
                "-p",
                &herd.port("pooler").to_string(),
            ])
            .env("PGPASSWORD", APP_PASSWORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = client.spawn().expect("psql starts");
        writeln!(child.stdin.as_mut().expect("piped"), "BEGIN; SELECT 1;").expect("psql reads");
        Self(child)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Looks once, with a clock that is ten seconds behind that of the servers.
fn skewed(herd: &Herd) -> Vec<Value> {
    let prepared = herd.command(&["--format", "json", "health"]);
    let mut skewed = Command::new("faketime");
    skewed.args(["-f", "-10s"]).arg(prepared.get_program()).args(prepared.get_args());
    skewed.current_dir(herd.root()).env_clear();
    skewed.envs(prepared.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = skewed.output().expect("faketime is there: \"scripts/setup --test\" installs it");
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    report["findings"].as_array().expect("a list").clone()
}

fn is_segment(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() >= 24 && name.as_bytes()[..24].iter().all(u8::is_ascii_hexdigit)
}

/// What check_pgactivity calls it, and what `health` does.
const SAME: [(&str, &str, &str); 9] = [
    ("backends -w 80% -c 90%", "connections", "a"),
    ("longest_query -w 1s -c 1h", "long-query", "a"),
    ("oldest_idlexact -w 1s -c 1h", "idle-in-transaction", "a"),
    ("oldest_2pc -w 1s -c 1h", "prepared-transactions", "cluster"),
    ("invalid_indexes", "invalid-indexes", "cluster"),
    ("sequences_exhausted -w 75% -c 90%", "sequences", "cluster"),
    ("max_freeze_age -w 500000000 -c 1000000000", "xid-age", "cluster"),
    ("archiver -w 10 -c 50", "archive", "cluster"),
    ("replication_slots", "slots", "a"),
];

/// Returns the exit code of check_pgactivity, and its first line.
fn check_pgactivity(herd: &Herd, nodes: &[&str], service: &str) -> (Option<i32>, String) {
    let of =
        |each: &dyn Fn(&str) -> String| nodes.iter().map(|node| each(node)).collect::<Vec<_>>().join(",");
    let socket = |node: &str| herd.path(&format!("state/run/inventory-{node}")).display().to_string();
    let mut words = service.split(' ');
    let mut plugin = as_server(Path::new("/usr/lib/nagios/plugins/check_pgactivity"));
    plugin.args(["-U", "postgres", "-h", &of(&socket), "-p", &of(&|node| herd.port(node).to_string())]);
    plugin.args(["-d", &of(&|_| "postgres".to_owned()), "-P", text(&herd.installation().bin().join("psql"))]);
    plugin.args(["--status-file", text(&herd.path("other/status")), "-s", words.next().unwrap()]).args(words);
    let output = plugin.output().expect("it is there: \"scripts/setup --test\" installs it");
    let said = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    (output.status.code(), said)
}

#[test]
fn check_pgactivity_agrees_where_it_asks_the_same_and_where_it_does_not_it_is_wrong() {
    let mut herd = Herd::declare(&fifteen(), &Shape { pooler: false, ..PAIR });
    herd.keep_backups();
    let soon = "    health: {long-query: {warn: 1 s}, idle-in-transaction: {warn: 1 s}, prepared-transactions: {warn: 1 s}, slots: {warn: 1 s}}\n    nodes:\n";
    herd.edit("    nodes:\n", soon);
    herd.edit("        work_mem: 4 MiB\n", "        max_prepared_transactions: 5\n");
    herd.apply().ends_with(0);
    fs::create_dir(herd.path("other")).unwrap();
    fs::set_permissions(herd.path("other"), fs::Permissions::from_mode(0o777)).unwrap();
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    fine(&herd, &SAME.map(|(_, check, subject)| (check, subject)));
    for (service, _, _) in SAME {
        let (code, said) = check_pgactivity(&herd, &["a"], service);
        assert_eq!(code, Some(0), "{said}");
    }

    let crowd: Vec<Session> = (0..30).map(|_| Session::open(&herd, "a", "SELECT 1;")).collect();
    told(&herd, &[("connections", "a", "warning", "of 37 connections")]);
    let (code, said) = check_pgactivity(&herd, &["a"], SAME[0].0);
    assert_eq!(code, Some(1), "{said}");
    drop(crowd);
    sql("CREATE TABLE public.item (id serial PRIMARY KEY, n int)");
    sql("INSERT INTO public.item (n) SELECT 1 FROM generate_series(1, 100)");
    sql("ALTER SEQUENCE public.item_id_seq AS bigint");
    sql("SELECT setval('public.item_id_seq', 2000000000)");
    herd.try_sql("a", "inventory", "CREATE UNIQUE INDEX CONCURRENTLY item_n ON public.item (n)")
        .expect_err("not unique");
    sql("BEGIN; UPDATE public.item SET n = 2 WHERE id = 2; PREPARE TRANSACTION 'order-7'");
    let idle = Session::open(&herd, "a", "BEGIN; SELECT 1;");
    let query = Session::open(&herd, "a", "SELECT pg_sleep(100);");
    sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    sql("ALTER SYSTEM SET max_wal_size = '32MB'");
    sql("ALTER SYSTEM SET min_wal_size = '32MB'");
    sql("SELECT pg_reload_conf()");
    sql("SELECT pg_create_physical_replication_slot('left_behind', true)");
    for _ in 0..4 {
        sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    }
    sql("CHECKPOINT");
    herd.sql("b", "ALTER SYSTEM SET primary_slot_name = 'nobodys'");
    herd.sql("b", "SELECT pg_reload_conf()");
    told(
        &herd,
        &[
            ("long-query", "a", "warning", ""),
            ("idle-in-transaction", "a", "warning", ""),
            ("prepared-transactions", "cluster", "warning", ""),
            ("invalid-indexes", "cluster", "warning", ""),
            ("sequences", "cluster", "critical", ""),
            ("archive", "cluster", "critical", " failed at "),
            ("slots", "a", "critical", "left_behind is "),
            ("standbys", "b", "critical", "it has no WAL receiver"),
        ],
    );
    // The one that is left out has no age yet.
    for (service, _, _) in SAME.iter().filter(|(_, check, _)| !["connections", "xid-age"].contains(check)) {
        // Ages grow, and it may round one down to its threshold.
        until(&format!("{service} fires"), || {
            matches!(check_pgactivity(&herd, &["a"], service).0, Some(1 | 2)).then_some(())
        });
    }

    // Here it is wrong: a standby that is cut off has a delta of nothing, one that is missing is unknown, and nothing waits for the archiver.
    let (code, said) = check_pgactivity(&herd, &["a", "b"], "hot_standby_delta -w 64MB -c 1GB");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = check_pgactivity(&herd, &["a"], "streaming_delta -w 64MB -c 1GB");
    assert_eq!((code, said.as_str()), (Some(3), "POSTGRES_STREAMING_DELTA UNKNOWN: No slaves connected"));
    drop((idle, query));
}
