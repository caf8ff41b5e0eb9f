//! What a node's server tells of itself: every check fires once by what it is made for, and clears again.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::health::{becomes, finding};
use crate::herd::{Frozen, Herd, PAIR, SINGLE, as_server, newest_or_15, until};
use crate::server::installations;

/// A session that stays where it is until this is dropped.
struct Session(Child);

impl Session {
    fn open(herd: &Herd, node: &str, sql: &str) -> Self {
        let mut command = as_server(&herd.installation().bin().join("psql"));
        command
            .args(["-XAtq", "-U", "postgres", "-d", "inventory", "-p", &herd.port(node).to_string(), "-h"])
            .arg(herd.path("state/run").join(format!("inventory-{node}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().expect("psql starts");
        writeln!(child.stdin.as_mut().expect("piped"), "{sql}").expect("psql reads");
        Self(child)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // psql ends with its input; one that waits for an answer is killed.
        drop(self.0.stdin.take());
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Holds a check to have a status, and to say something.
#[track_caller]
fn says(herd: &Herd, check: &str, subject: &str, status: &str, words: &str) -> Value {
    let found = becomes(herd, check, subject, status);
    let told = found["text"].as_str().expect("a text");
    assert!(told.contains(words), "{words:?} in {found:#}");
    found
}

/// Every threshold of time is so low that nobody has to wait for it.
const SOON: &str = "    health:\n      disk: {report: never}\n      idle-in-transaction: {warn: 100 ms}\n      \
     long-query: {warn: 100 ms}\n      long-transaction: {warn: 100 ms}\n      lock-wait: {warn: 100 ms}\n      \
     prepared-transactions: {warn: 100 ms}\n      lock-table: {warn: 5 %}\n      slots: {warn: 100 ms}\n      \
     wal-size: {warn: 60 %}\n      receiver: {warn: 3 s}\n      dead-rows: {warn: 10 %}\n      uptime: {warn: 1 s}\n    nodes:\n";

fn append(path: &Path, line: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).expect("it is there");
    writeln!(file, "{line}").expect("it can be written");
}

fn without_last_line(path: &Path) {
    let text = fs::read_to_string(path).expect("it is there");
    let end = text.trim_end().rfind('\n').expect("lines") + 1;
    fs::write(path, &text[..end]).expect("it can be written");
}

#[test]
fn what_a_primary_tells_of_itself_fires_and_clears() {
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.edit("    nodes:\n", SOON);
    herd.edit("        work_mem: 4 MiB\n", "        work_mem: 4 MiB\n        max_prepared_transactions: 5\n        max_locks_per_transaction: 10\n");
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.run(&["backup", "create"]).ends_with(0);
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    let fine = |check: &str| becomes(&herd, check, "cluster", "ok");
    let node_is_fine = |check: &str| becomes(&herd, check, "a", "ok");
    sql("CREATE TABLE public.item (id serial PRIMARY KEY, n int)");
    sql("INSERT INTO public.item (n) SELECT 1 FROM generate_series(1, 30000)");

    // One sits on a lock, another waits for it, a third has everything locked.
    let idle = Session::open(&herd, "a", "BEGIN; LOCK TABLE public.item;");
    let found = says(&herd, "idle-in-transaction", "a", "warning", "is idle in a transaction for");
    assert!(found["text"].as_str().expect("text").contains("LOCK TABLE public.item;"), "{found:#}");
    let waits = Session::open(&herd, "a", "SELECT count(*) FROM public.item;");
    says(&herd, "lock-wait", "a", "warning", "at the root for pid");
    says(&herd, "long-query", "a", "warning", "SELECT count(*) FROM public.item;");
    says(&herd, "long-transaction", "a", "warning", "has been in a transaction");
    drop((waits, idle));
    for check in ["idle-in-transaction", "lock-wait", "long-query", "long-transaction"] {
        node_is_fine(check);
    }
    let locks = Session::open(
        &herd,
        "a",
        "BEGIN; DO $$BEGIN FOR i IN 1..60 LOOP PERFORM pg_advisory_xact_lock(i); END LOOP; END$$;",
    );
    says(&herd, "lock-table", "a", "warning", "locks (");
    drop(locks);
    node_is_fine("lock-table");

    // All connections that clients can have.
    let crowd: Vec<Session> = (0..35).map(|_| Session::open(&herd, "a", "SELECT 1;")).collect();
    says(&herd, "connections", "a", "critical", "of 37 connections");
    drop(crowd);
    node_is_fine("connections");

    sql("BEGIN; INSERT INTO public.item (n) VALUES (2); PREPARE TRANSACTION 'order-7'");
    says(&herd, "prepared-transactions", "cluster", "warning", "the oldest order-7 of postgres in inventory");
    assert_eq!(
        finding(&herd, "xmin-horizon", "cluster")["text"],
        "prepared transaction order-7 holds it for 1 transactions"
    );
    sql("ROLLBACK PREPARED 'order-7'");
    fine("prepared-transactions");

    sql("UPDATE public.item SET n = 2; ALTER TABLE public.item SET (autovacuum_enabled = off)");
    sql("UPDATE public.item SET n = 3");
    says(&herd, "dead-rows", "cluster", "warning", "public.item in inventory has");
    sql("VACUUM public.item");
    fine("dead-rows");

    // An index that could not be built, and one that is being built.
    herd.try_sql("a", "inventory", "CREATE UNIQUE INDEX CONCURRENTLY item_n ON public.item (n)")
        .expect_err("not unique");
    says(&herd, "invalid-indexes", "cluster", "warning", "public.item_n of public.item in inventory");
    sql("DROP INDEX public.item_n");
    let holds = Session::open(&herd, "a", "BEGIN; UPDATE public.item SET n = 4 WHERE id = 1;");
    until("it is held", || {
        (herd.sql("a", "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == "1")
            .then_some(())
    });
    let builds = Session::open(&herd, "a", "CREATE INDEX CONCURRENTLY item_n ON public.item (n);");
    until("it is being built", || {
        (herd.sql("a", "SELECT count(*) FROM pg_stat_progress_create_index") == "1").then_some(())
    });
    assert_eq!(finding(&herd, "invalid-indexes", "cluster")["status"], "ok");
    drop((builds, holds));

    // The column ends long before the sequence does.
    sql("ALTER SEQUENCE public.item_id_seq AS bigint");
    sql("SELECT setval('public.item_id_seq', 2000000000)");
    let ends =
        says(&herd, "sequences", "cluster", "critical", "public.item_id_seq in inventory has used 93.1 %");
    assert!(
        ends["text"].as_str().expect("text").contains("what its column of type int4 can hold"),
        "{ends:#}"
    );
    sql("ALTER TABLE public.item ALTER id TYPE bigint");
    fine("sequences");
    sql(
        "CREATE SEQUENCE public.down INCREMENT -1 MINVALUE -100 MAXVALUE -1; SELECT setval('public.down', -80)",
    );
    says(
        &herd,
        "sequences",
        "cluster",
        "warning",
        "public.down in inventory has used 80 % of what it can give",
    );
    sql("ALTER SEQUENCE public.down CYCLE");
    fine("sequences");

    // A setting that waits, and lines that nobody can read.
    sql("ALTER SYSTEM SET max_connections = 41");
    sql("SELECT pg_reload_conf()");
    says(&herd, "pending-restart", "a", "warning", "max_connections in effect after a restart only");
    assert_eq!(finding(&herd, "configuration", "a")["status"], "ok");
    sql("ALTER SYSTEM RESET max_connections");
    sql("SELECT pg_reload_conf()");
    node_is_fine("pending-restart");
    let hba = herd.data("a").join("pg_hba.conf");
    append(&hba, "hots all all all trust");
    says(&herd, "configuration", "a", "critical", "pg_hba.conf:");
    without_last_line(&hba);
    node_is_fine("configuration");

    // An archive command that fails, none, and one that works again.
    sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    sql("SELECT pg_reload_conf()");
    sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    says(&herd, "archive", "cluster", "critical", "and nothing was archived since");
    sql("ALTER SYSTEM SET archive_command = ''");
    sql("SELECT pg_reload_conf()");
    says(&herd, "archive", "cluster", "critical", "neither archive_command nor archive_library is set");
    sql("ALTER SYSTEM RESET archive_command");
    sql("SELECT pg_reload_conf()");
    sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    fine("archive");

    // A slot that somebody left, which keeps WAL until it may keep no more of it.
    sql("ALTER SYSTEM SET max_wal_size = '64MB'");
    sql("ALTER SYSTEM SET min_wal_size = '32MB'");
    sql("SELECT pg_reload_conf()");
    sql("SELECT pg_create_physical_replication_slot('left_behind', true)");
    says(&herd, "slots", "a", "warning", "left_behind ");
    for _ in 0..6 {
        sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'x', 'x')");
    }
    says(&herd, "wal-size", "a", "warning", "most of it is kept by slot left_behind");
    sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    sql("SELECT pg_reload_conf()");
    sql("CHECKPOINT");
    says(&herd, "slots", "a", "critical", "left_behind is ");
    sql("SELECT pg_drop_replication_slot('left_behind')");
    node_is_fine("slots");

    // A process that is killed takes all others with it, but the postmaster.
    let victim = Session::open(&herd, "a", "SELECT 1;");
    until("ten seconds have passed since the start", || {
        (herd.sql("a", "SELECT clock_timestamp() - pg_postmaster_start_time() > '11 s'") == "t").then_some(())
    });
    let pid = herd.sql("a", "SELECT min(pid) FROM pg_stat_activity WHERE datname = 'inventory'");
    let pid = rustix::process::Pid::from_raw(pid.parse().expect("a number")).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    says(&herd, "crash", "a", "warning", "a process crashed, and all were started anew");
    drop(victim);
    becomes(&herd, "uptime", "a", "ok");
}

#[test]
fn what_a_standby_tells_of_itself_fires_and_clears() {
    let mut herd = Herd::declare(&newest_or_15(1), &PAIR);
    herd.edit("    nodes:\n", SOON);
    herd.apply().ends_with(0);
    let fine = |check: &str| becomes(&herd, check, "b", "ok");
    let write =
        || herd.sql_in("a", "inventory", "SELECT pg_logical_emit_message(true, 'x', repeat('x', 100000))");
    write();
    fine("lag");

    // Idle for longer than the limit: no lag, although the last commit is old.
    until("the last commit is older than the limit", || {
        (herd.sql("b", "SELECT now() - pg_last_xact_replay_timestamp() > '6 s'") == "t").then_some(())
    });
    assert_eq!(finding(&herd, "lag", "b")["text"], "nothing is missing");

    herd.sql("b", "SELECT pg_wal_replay_pause()");
    says(&herd, "replay", "b", "warning", "it is paused");
    write();
    let late = says(&herd, "lag", "b", "critical", "age of the last transaction that was replayed");
    assert!(late["text"].as_str().expect("text").contains("stuck for"), "{late:#}");
    herd.sql("b", "SELECT pg_wal_replay_resume()");
    fine("replay");
    fine("lag");

    // A sender that says nothing: the receiver streams, and hears nothing.
    let sender = herd.sql("a", "SELECT pid FROM pg_stat_replication");
    let frozen =
        Frozen::new(rustix::process::Pid::from_raw(sender.parse().expect("a number")).expect("a process"));
    says(&herd, "receiver", "b", "warning", "heard of the primary");
    drop(frozen);
    fine("receiver");

    // A receiver that was cut off: no slot for it, on an idle primary and on one that writes.
    herd.sql("b", "ALTER SYSTEM SET primary_slot_name = 'nobodys'");
    herd.sql("b", "SELECT pg_reload_conf()");
    says(&herd, "standbys", "b", "critical", "receive");
    says(&herd, "missing-slots", "cluster", "critical", "a has no slot nobodys");
    says(&herd, "lag", "b", "critical", "time since its last sign of the primary");
    write();
    let late = says(&herd, "lag", "b", "critical", "time since its last sign of the primary");
    assert!(!late["text"].as_str().expect("text").contains("(0 B"), "{late:#}");
    says(&herd, "slots", "a", "warning", "inventory_b ");
    herd.sql("b", "ALTER SYSTEM RESET primary_slot_name");
    herd.sql("b", "SELECT pg_reload_conf()");
    fine("standbys");
    fine("lag");
    becomes(&herd, "slots", "a", "ok");
}

#[test]
fn a_role_with_pg_monitor_sees_all_but_what_takes_a_grant_of_its_own() {
    for installation in installations().into_iter().filter(|found| [14, 15, 18].contains(&found.major)) {
        let mut herd = Herd::declare(&installation, &SINGLE);
        // What a lone node would lose is not known to anybody.
        herd.edit("    nodes:\n", "    health: {disk: {report: never}, rpo: {report: never}}\n    nodes:\n");
        herd.apply().ends_with(0);
        let hba = herd.data("a").join("pg_hba.conf");
        let lines = fs::read_to_string(&hba).expect("it is there");
        fs::write(&hba, format!("local all mon trust\n{lines}")).expect("it can be written");
        herd.sql("a", "CREATE ROLE mon LOGIN");
        herd.sql("a", "SELECT pg_reload_conf()");
        herd.sql_in("a", "inventory", "GRANT CONNECT ON DATABASE inventory TO mon; CREATE SEQUENCE public.s");
        let asked = || {
            let report = herd.run(&["--format", "json", "health", "--role", "mon"]).json();
            let findings = report["findings"].as_array().expect("a list").clone();
            let of = |status: &str| -> Vec<(String, String)> {
                let of = findings.iter().filter(|finding| finding["status"] == status);
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                of.map(|finding| (text(&finding["check"]), text(&finding["next"]))).collect()
            };
            (of("unknown"), of("ok"), findings.len())
        };

        // Without it nothing is fine that the role does not see.
        let (unknown, fine, _) =
            until("the role is let in", || Some(asked()).filter(|(_, fine, _)| fine.len() > 5));
        let seen: Vec<&str> = fine.iter().map(|(check, _)| check.as_str()).collect();
        for check in [
            "connections",
            "idle-in-transaction",
            "lock-wait",
            "wal-size",
            "crash",
            "xid-age",
            "subscriptions",
        ] {
            assert!(!seen.contains(&check), "{check} is fine on {}", installation.major);
            let grant = unknown.iter().find(|(of, _)| of == check).map(|(_, next)| next.as_str());
            assert_eq!(grant, Some("GRANT pg_monitor TO \"mon\""), "{check} on {}", installation.major);
        }

        herd.sql("a", "GRANT pg_monitor TO mon");
        let (unknown, fine, all) = asked();
        let names: Vec<&str> = unknown.iter().map(|(check, _)| check.as_str()).collect();
        assert_eq!(names, ["sequences", "configuration"], "{unknown:#?}");
        assert_eq!(fine.len() + 2, all, "on {}", installation.major);
        for (_, grant) in unknown {
            herd.sql_in("a", "postgres", &grant);
        }
        let (unknown, _, _) = asked();
        assert_eq!(unknown, [], "on {}", installation.major);
    }
}
