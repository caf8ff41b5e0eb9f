//! Jobs on real servers: maintenance does what it says, says nothing when it is well, and keeps out of everybody's way.

use std::fs;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::herd::{Herd, PAIR, SINGLE, until};
use crate::server::{installations, newest};

const MAINTENANCE: &str = "    maintenance:
      vacuum: {when: monthly 28 03:00, rows: 1000}
      reindex: {when: monthly 28 03:30, bloat: 40 %, at-least: 64 KiB}
      refresh: {sales: {when: monthly 28 04:00, views: [public.sales, public.plain]}}
      clean: {when: monthly 28 05:00, logs: 2 days}
";

fn maintained(herd: &mut Herd) {
    herd.edit("    schemas:\n", &format!("{MAINTENANCE}    schemas:\n"));
}

fn record(herd: &Herd, job: &str) -> PathBuf {
    herd.path(&format!("state/schedule/shop/inventory.{job}.json"))
}

fn is_valid(herd: &Herd, index: &str) -> String {
    let sql = format!(
        "SELECT coalesce((SELECT indisvalid::text FROM pg_index WHERE indexrelid = to_regclass('{index}')), 'gone')"
    );
    herd.sql_in("a", "inventory", &sql)
}

#[test]
fn old_logs_of_a_server_go_and_what_it_writes_and_what_is_no_log_stays() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    maintained(&mut herd);
    herd.apply().ends_with(0);
    let logs = herd.path("state/log/inventory-a");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10 * 86_400);
    for name in ["postgresql-old.log", "notes.txt"] {
        let file = fs::File::create(logs.join(name)).expect("made");
        file.set_modified(old).expect("aged");
    }
    let there = || -> Vec<String> {
        let entries = fs::read_dir(&logs).expect("a directory");
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text")).collect()
    };
    let before = there().len();
    let shown = herd.run(&["run", "inventory/clean", "--dry-run"]).ends_with(0);
    shown.says(&["inventory-a   removed 1 log file, "]);
    assert_eq!(there().len(), before, "a look removes nothing");
    let quiet = herd.run(&["run", "inventory/clean"]).ends_with(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert!(!logs.join("postgresql-old.log").exists() && logs.join("notes.txt").exists());
    assert_eq!(there().len(), before - 1, "what the server writes stays");
}

#[test]
fn maintenance_mends_what_is_neglected_on_every_major_and_says_nothing() {
    for installation in installations() {
        let mut herd = Herd::declare(&installation, &SINGLE);
        maintained(&mut herd);
        herd.apply().ends_with(0);
        let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
        // Neglected: half of its rows are dead, and autovacuum is off. Beside it one that is only not analyzed, and one that is fine.
        sql(
            "CREATE TABLE neglected WITH (autovacuum_enabled = false) AS SELECT n FROM generate_series(1, 5000) n",
        );
        sql("DELETE FROM neglected WHERE n % 2 = 0");
        sql(
            "CREATE TABLE fine WITH (autovacuum_enabled = false) AS SELECT n FROM generate_series(1, 5000) n",
        );
        sql("ANALYZE fine");
        // Of the index nine tenths of each page are empty, and no page is empty altogether.
        sql(
            "CREATE TABLE wide WITH (autovacuum_enabled = false) AS SELECT n AS id, n % 10 AS part FROM generate_series(1, 40000) n",
        );
        sql("CREATE INDEX wide_id ON wide (id)");
        sql("CREATE INDEX wide_sound ON wide (part)");
        sql("DELETE FROM wide WHERE id % 10 <> 0");
        sql("VACUUM ANALYZE wide");
        sql("REINDEX INDEX wide_sound");
        // Invalid: it was begun while there were two of a kind; and what a REINDEX that was cut off leaves.
        sql("CREATE TABLE doubled AS SELECT 1 AS n FROM generate_series(1, 2)");
        herd.try_sql("a", "inventory", "CREATE UNIQUE INDEX CONCURRENTLY doubled_n ON doubled (n)")
            .unwrap_err();
        sql("DELETE FROM doubled WHERE ctid = (SELECT min(ctid) FROM doubled)");
        sql("CREATE INDEX wide_id_ccnew ON wide (id)");
        sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'wide_id_ccnew'::regclass");
        sql("CREATE INDEX own_ccnew ON fine (n)");
        sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'own_ccnew'::regclass");
        sql("CREATE MATERIALIZED VIEW sales AS SELECT n FROM fine");
        sql("CREATE UNIQUE INDEX sales_n ON sales (n)");
        sql("CREATE MATERIALIZED VIEW plain AS SELECT count(*) AS fine FROM fine");
        sql("INSERT INTO fine VALUES (5001)");
        until("the statistics are there", || {
            let dead = sql("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'neglected'");
            (dead.parse::<u32>().unwrap() > 2000).then_some(())
        });

        // What would be done is told, and nothing is done.
        let would = |job: &str| herd.run(&["run", &format!("inventory/{job}"), "--dry-run"]).ends_with(0);
        would("vacuum").says(&[
            "would be: inventory: public.neglected   vacuumed and analyzed, 2500 of 5000 rows were dead",
        ]);
        would("reindex").says(&[
            "would be: inventory: public.wide_id_ccnew   dropped",
            "would be: inventory: public.doubled_n   built anew, it was invalid",
        ]);
        would("refresh-sales").says(&["would be: inventory: public.sales   refreshed concurrently"]);
        assert_eq!(is_valid(&herd, "wide_id_ccnew"), "false");
        assert!(!record(&herd, "vacuum").exists(), "what is not run is not recorded");

        let quiet = herd.run(&["run", "inventory/vacuum"]).ends_with(0);
        assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
        until("it is vacuumed", || {
            (sql("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'neglected'") == "0")
                .then_some(())
        });
        assert_eq!(
            sql("SELECT vacuum_count + analyze_count FROM pg_stat_user_tables WHERE relname = 'fine'"),
            "1"
        );
        assert_eq!(sql("SELECT count(*) FROM neglected"), "2500");

        let before: u64 = sql("SELECT pg_relation_size('wide_id')").parse().unwrap();
        let sound = sql("SELECT pg_relation_filenode('wide_sound')");
        let said = herd.run(&["run", "-v", "inventory/reindex"]).ends_with(0);
        said.clone().says(&[
            "inventory: public.wide_id   built anew, ",
            "public.doubled_n   built anew, it was invalid",
        ]);
        said.says(&["public.wide_id_ccnew   dropped: a REINDEX of public.wide that was cut off had left it"])
            .says(&["public.own_ccnew   built anew, it was invalid"])
            .does_not_say("wide_sound");
        let after: u64 = sql("SELECT pg_relation_size('wide_id')").parse().unwrap();
        assert!(after * 4 < before, "{before} -> {after}");
        assert_eq!(sql("SELECT pg_relation_filenode('wide_sound')"), sound);
        for (index, valid) in
            [("doubled_n", "true"), ("own_ccnew", "true"), ("wide_id", "true"), ("wide_id_ccnew", "gone")]
        {
            assert_eq!(is_valid(&herd, index), valid, "{index}");
        }
        herd.run(&["run", "-v", "inventory/reindex"]).ends_with(0).says(&["nothing to do"]);

        herd.run(&["run", "-v", "inventory/refresh-sales"]).ends_with(0).says(&[
            "public.sales   refreshed concurrently",
            "public.plain   refreshed; readers waited, since no unique index lets it be done concurrently",
        ]);
        assert_eq!(sql("SELECT count(*) || ' ' || (SELECT fine FROM plain) FROM sales"), "5001 5001");
        assert_eq!(
            sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgherd maintenance'"),
            "0"
        );
    }
}

#[test]
fn a_job_keeps_out_of_the_way_tells_what_it_left_and_is_run_once_however_often_it_was_due() {
    let mut herd = Herd::declare(&newest(), &PAIR);
    maintained(&mut herd);
    herd.apply().ends_with(0);
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    sql("CREATE MATERIALIZED VIEW sales AS SELECT 1 AS n");
    sql("CREATE UNIQUE INDEX ON sales (n)");

    // One view is not there: the other is done, and everything is said.
    let failed = herd.run(&["run", "inventory/refresh-sales"]).ends_with(3);
    failed.says(&["public.sales   refreshed concurrently"]).tells(&[
        "ERROR:  there is no materialized view public.plain in inventory",
        "inventory/refresh-sales of shop: exit code 3 after ",
    ]);

    // Somebody reads the other one in a transaction that does not end: the job gives up and leaves it.
    sql("CREATE MATERIALIZED VIEW plain AS SELECT 1 AS n");
    std::thread::scope(|scope| {
        scope.spawn(|| herd.try_sql("a", "inventory", "SELECT * FROM plain; SELECT pg_sleep(60)"));
        until("the reader reads", || {
            (sql("SELECT count(*) FROM pg_locks WHERE relation = 'plain'::regclass") != "0").then_some(())
        });
        let left = herd.run(&["run", "-v", "inventory/refresh-sales"]);
        sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid()",
        );
        left.ends_with(0).says(&["left: inventory: public.plain: somebody has a lock on it"]);
    });

    // Somebody runs it already.
    let lock = fs::OpenOptions::new()
        .write(true)
        .open(record(&herd, "refresh-sales").with_extension("lock"))
        .unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    herd.run(&["run", "inventory/refresh-sales"])
        .ends_with(5)
        .tells(&["ERROR:  job inventory/refresh-sales runs already", "(pid "]);
    let silent = herd.run(&["run", "inventory/refresh-sales", "--due"]).ends_with(0);
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""));
    herd.run(&["schedule", "list"]).ends_with(0).says(&["runs since "]);
    drop(lock);

    // A job that takes long, and is ended in its middle: asked to, killed, at its timeout, and by a change of the primary.
    sql("CREATE TABLE pace AS SELECT 60 AS seconds");
    sql("DROP MATERIALIZED VIEW plain");
    sql(
        "CREATE MATERIALIZED VIEW plain AS SELECT seconds, pg_sleep(seconds)::text AS slept FROM pace WITH NO DATA",
    );
    let refreshes = |node: &str| {
        herd.sql_in(
            node,
            "inventory",
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'REFRESH%plain%'",
        )
    };
    let ended = || until("the server has ended it", || (refreshes("a") == "0").then_some(()));
    let begin = || {
        let job = herd.start(&["run", "inventory/refresh-sales"]);
        until("the job is at work", || (refreshes("a") == "1").then_some(()));
        job
    };
    let mut asked = begin();
    asked.signal(Signal::TERM);
    asked.end().ends_with(130).says(&["left: inventory: public.plain: it was interrupted"]);
    assert_eq!(refreshes("a"), "0");
    let mut killed = begin();
    killed.signal(Signal::KILL);
    killed.end().ends_with(137);
    herd.run(&["schedule", "list"]).ends_with(0).says(&["it was killed at "]);
    ended();
    let late = herd.run(&["run", "-v", "inventory/refresh-sales", "--timeout", "2s"]).ends_with(0);
    late.says(&["left: inventory: public.plain: it was ended after "]);
    let moved = begin();
    herd.run(&["switchover", "--to", "b", "--yes"]).ends_with(0);
    moved.end().ends_with(10).tells(&["ERROR:  the primary went away in the middle of maintenance"]);
    herd.sql_in("b", "inventory", "UPDATE pace SET seconds = 0");
    herd.run(&["run", "-v", "inventory/refresh-sales"])
        .ends_with(0)
        .says(&["public.plain   refreshed; readers waited"]);
    let kept = fs::read_to_string(record(&herd, "refresh-sales")).unwrap();
    assert!(kept.contains("\"failures\": 0") && kept.contains("\"outcome\": \"done\""), "{kept}");
}

#[test]
fn partitions_are_made_by_their_job_which_says_nothing() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    herd.edit(
        "    schemas:\n",
        "    partitions: {inventory.events: {by: at, every: month, ahead: 2}}\n    \
         maintenance: {partitions: {when: monthly 1 00:00}}\n    schemas:\n",
    );
    herd.apply().ends_with(0);
    let sql = |sql: &str| herd.sql_in("a", "inventory", sql);
    sql("CREATE TABLE inventory.events (at timestamptz NOT NULL, what text) PARTITION BY RANGE (at)");
    let quiet = herd.run(&["run", "inventory/partitions"]).ends_with(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    // This month's, and two ahead.
    assert_eq!(sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 'inventory.events'::regclass"), "3");
    sql("DROP TABLE inventory.events");
    let failed = herd.run(&["run", "inventory/partitions"]);
    assert!(
        failed.code != 0 && failed.stderr.contains("inventory/partitions of shop: exit code "),
        "{failed:?}"
    );
    let kept = fs::read_to_string(record(&herd, "partitions")).unwrap();
    assert!(kept.contains("\"failures\": 1"), "{kept}");
}

#[test]
fn a_dump_is_what_the_database_holds_is_proved_and_is_kept_as_long_as_declared() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    herd.keep_backups();
    herd.edit(
        "    schemas:\n",
        "    dumps:\n      legal: {when: monthly 28 01:00, keep: 2 days}\n      \
         part: {when: monthly 28 02:00, schemas: [inventory]}\n      gone: {when: monthly 28 03:00, schemas: [no_such_schema]}\n    schemas:\n",
    );
    herd.apply().ends_with(0);
    let sql = |database: &str, sql: &str| herd.sql_in("a", database, sql);
    sql(
        "inventory",
        "CREATE TABLE inventory.stock AS SELECT n AS item, md5(n::text) AS mark FROM generate_series(1, 20000) n",
    );
    sql("inventory", "CREATE INDEX stock_item ON inventory.stock (item)");
    sql("inventory", "CREATE TABLE public.other AS SELECT 1 AS n");

    let quiet = herd.run(&["run", "inventory/dump-legal"]).ends_with(0);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    herd.run(&["run", "-v", "inventory/dump-part"]).ends_with(0).says(&[
        "dump part ",
        " of inventory (inventory), ",
        "read whole by pg_restore",
    ]);
    // One whose schema is not there is none.
    herd.run(&["run", "inventory/dump-gone"]).ends_with(1).tells(&["no matching schemas were found"]);
    let list =
        herd.run(&["dump", "list"]).ends_with(0).says(&["legal", "part", "inventory-a"]).does_not_say("gone");
    assert_eq!(list.stdout.matches("Z").count(), 2, "{}", list.stdout);

    // Fetched and restored, it is the same row for row.
    let file = herd.path("legal.dump");
    let fetch = |name: &str, to: &str| herd.run(&["dump", "fetch", name, "--to", to]);
    fetch("legal", file.to_str().unwrap()).ends_with(0).says(&["its checksum holds"]);
    fetch("legal", file.to_str().unwrap()).ends_with(4).tells(&["could not write"]);
    fetch("none", herd.path("none").to_str().unwrap()).ends_with(10);
    // Whoever restores it is not root here: it is handed out.
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    sql("postgres", "CREATE DATABASE handed_out");
    let socket = herd.path("state/run/inventory-a");
    herd.program(
        "pg_restore",
        &[
            "--exit-on-error",
            "--no-owner",
            "-h",
            socket.to_str().unwrap(),
            "-p",
            &herd.port("a").to_string(),
            "-U",
            "postgres",
            "-d",
            "handed_out",
            file.to_str().unwrap(),
        ],
    );
    let sum = "SELECT count(*) || ' ' || sum(hashtext(item::text || mark)::int8) FROM inventory.stock";
    assert_eq!(sql("handed_out", sum), sql("inventory", sum));
    assert_eq!(sql("handed_out", "SELECT n FROM public.other"), "1");

    // A flipped byte is found, and nothing appears.
    let kept = herd.kept();
    let mut stored = kept.with("_dumps/inventory/part/");
    stored.retain(|name| name.ends_with("/data"));
    let stored = stored.remove(0);
    let mut bytes = kept.read(&stored);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    kept.write(&stored, &bytes);
    let to = herd.path("part.dump");
    fetch("part", to.to_str().unwrap()).ends_with(1).tells(if herd.is_encrypted() {
        &["is not what was stored there"]
    } else {
        &["is damaged", "its checksum is not the one of what pg_dump wrote"]
    });
    assert!(!to.exists());

    // Verification finds it as well, once it reads what is in there; whole again nothing is wrong.
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["backup", "verify", "--quick"]).ends_with(0).says(&["dumps   2, "]);
    for depth in [&["backup", "verify"][..], &["backup", "verify", "--full"]] {
        herd.run(depth).ends_with(1).says(&[
            "DAMAGED  _dumps/inventory/part/",
            "dump part ",
            "cannot be handed out",
        ]);
    }
    bytes[middle] ^= 1;
    kept.write(&stored, &bytes);
    herd.run(&["backup", "verify", "--full"]).ends_with(0).says(&["dumps   2, ", "2 read"]);
    // Expiry of the backups leaves dumps alone.
    herd.run(&["backup", "expire", "--yes"]).ends_with(0);
    herd.run(&["dump", "list"]).ends_with(0).says(&["legal", "part"]);
    let inside =
        fs::read_dir(herd.repository()).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = inside.filter(|name| name.to_string_lossy().starts_with(".dump-")).collect();
    assert!(left.is_empty(), "no scratch directory stays: {left:?}");
}
