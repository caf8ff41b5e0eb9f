//! Partitions on real servers: what is made, detached, exported, dropped, brought back; who is waited for, and who waits.

use std::process::Stdio;
use std::time::Instant;

use rustix::process::Signal;

use crate::herd::{Herd, Ran, SINGLE, as_server, newest_or_15, until};
use crate::server::{Installation, installations};

/// Declares the partitions of a herd of one node with a repository, and applies it.
pub fn herd(installation: &Installation, partitions: &str) -> Herd {
    let mut herd = Herd::declare(installation, &SINGLE);
    herd.keep_backups();
    herd.edit("    nodes:\n", &format!("    partitions:\n{partitions}    nodes:\n"));
    herd.apply().ends_with(0);
    herd
}

pub fn sql(herd: &Herd, sql: &str) -> String {
    herd.sql_in("a", "inventory", sql)
}

/// Starts psql in a database of its own, which runs until it is dropped.
pub struct Client(std::process::Child);

impl Client {
    pub fn start(herd: &Herd, text: &str) -> Self {
        let mut command = as_server(&herd.installation().bin().join("psql"));
        command
            .args([
                "-XAtq",
                "-U",
                "postgres",
                "-d",
                "inventory",
                "-c",
                text,
                "-p",
                &herd.port("a").to_string(),
                "-h",
            ])
            .arg(herd.path("state/run/inventory-a"));
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("psql starts"),
        )
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Returns what the server of the node has written.
pub fn server_log(herd: &Herd) -> String {
    let files = std::fs::read_dir(herd.path("state/log/inventory-a")).expect("a directory");
    files.map(|entry| std::fs::read_to_string(entry.expect("readable").path()).expect("readable")).collect()
}

fn apply(herd: &Herd, more: &[&str]) -> Ran {
    herd.run(&[&["partition", "apply"], more].concat())
}

fn partitions(herd: &Herd, table: &str) -> String {
    sql(
        herd,
        &format!(
            "SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = '{table}'::regclass"
        ),
    )
}

pub const TABLE: &str = "SET ROLE inventory_owner; CREATE TABLE inventory.moves (id bigint, at timestamptz, note text, len int GENERATED ALWAYS AS (length(note)) STORED,
    PRIMARY KEY (id, at), CHECK (id > 0)) PARTITION BY RANGE (at); CREATE INDEX ON inventory.moves (note)";

/// From the first partition to the one that comes back from the repository, and everything that a second run must not do again.
#[test]
fn a_set_is_made_kept_exported_dropped_and_brought_back() {
    for installation in installations() {
        let herd = herd(
            &installation,
            "      inventory.moves: {by: at, every: month, ahead: 2, keep: 3 months, then: export and drop, timezone: Europe/Berlin}\n",
        );
        sql(&herd, TABLE);
        // Five months ago.
        let at = "2026-03-15 10:00 UTC";
        herd.run(&["partition", "plan", "--at", at]).ends_with(0).says(&[
            "create 2026-03 as inventory.moves_2026_03",
            "LIKE \"inventory\".\"moves\"",
            "ATTACH PARTITION",
            "('2026-02-28 23:00:00+00') TO ('2026-03-31 22:00:00+00')",
            "SHARE UPDATE EXCLUSIVE on \"inventory\".\"moves\"",
        ]);
        apply(&herd, &["--at", at]).ends_with(0).says(&["+3 (2026-03, 2026-04, 2026-05)"]);
        apply(&herd, &["--at", at]).ends_with(0).says(&["nothing to do"]);
        // What is made is whole: primary key, index, check, owner, generated column, and what the roles of the schema may do.
        assert_eq!(
            sql(&herd, "SELECT count(*) FROM pg_index WHERE indrelid = 'inventory.moves_2026_03'::regclass"),
            "2"
        );
        assert_eq!(
            sql(&herd, "SELECT tableowner FROM pg_tables WHERE tablename = 'moves_2026_03'"),
            "inventory_owner"
        );
        assert_eq!(sql(&herd, "SELECT obj_description('inventory.moves_2026_03'::regclass) IS NULL"), "t");
        herd.is_as_declared();
        sql(&herd, "INSERT INTO inventory.moves SELECT n, '2026-03-01 00:00:00+01'::timestamptz + n * interval '10 minutes',
            CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'a \"b\"\\n,c' ELSE 'plain ' || n END FROM generate_series(1, 4000) n");
        sql(&herd, "CREATE TABLE public.ledger AS SELECT * FROM inventory.moves");
        // April, in Berlin, is over for three months from July on.
        apply(&herd, &["--at", "2026-06-30 21:59:59 UTC"])
            .ends_with(0)
            .says(&["+3 (2026-06, 2026-07, 2026-08)"])
            .does_not_say("detached");
        assert!(partitions(&herd, "inventory.moves").contains("moves_2026_03"));
        let gone = apply(&herd, &["--at", "2026-06-30 22:00:00 UTC"]).ends_with(0);
        gone.says(&[
            "+1 (2026-09)",
            "detached 1 (2026-03)",
            "exported 1",
            "rows, checksum verified",
            "dropped 1",
        ]);
        assert_eq!(partitions(&herd, "inventory.moves").split(' ').count(), 6);
        assert_eq!(sql(&herd, "SELECT to_regclass('inventory.moves_2026_03') IS NULL"), "t");
        herd.run(&["partition", "list", "inventory.moves", "--exported"])
            .ends_with(0)
            .says(&["moves_2026_03", "1 partitions"]);
        for depth in [&["backup", "verify"][..], &["backup", "verify", "--full"]] {
            herd.run(depth).ends_with(0).says(&["exports   1 with ", "1 read"]);
        }
        // Row for row, in its old place; and retention leaves it there.
        herd.run(&["partition", "restore", "inventory.moves", "moves_2026_03"])
            .ends_with(0)
            .says(&["count and checksum verified", "attached"]);
        assert_eq!(
            sql(
                &herd,
                "(TABLE inventory.moves EXCEPT TABLE public.ledger) UNION ALL (TABLE public.ledger EXCEPT TABLE inventory.moves)"
            ),
            ""
        );
        assert_eq!(sql(&herd, "SELECT count(*) FROM inventory.moves"), "4000");
        apply(&herd, &["--at", "2026-07-05"]).ends_with(0).says(&["nothing to do", "was brought back"]);
        herd.run(&["partition", "restore", "inventory.moves", "moves_2026_03"])
            .ends_with(4)
            .tells(&["its range has the partition"]);
        herd.run(&["partition", "restore", "inventory.moves", "moves_2026_02"])
            .ends_with(10)
            .tells(&["no export of the partition moves_2026_02"]);
        // A flipped bit in the repository is found, and nothing is made of it.
        sql(
            &herd,
            "ALTER TABLE inventory.moves DETACH PARTITION inventory.moves_2026_03; DROP TABLE inventory.moves_2026_03",
        );
        herd.kept().damage(&herd.kept().only("/rows.csv.zst"));
        herd.run(&["partition", "restore", "inventory.moves", "moves_2026_03"]).ends_with(1);
        assert_eq!(sql(&herd, "SELECT to_regclass('inventory.moves_2026_03') IS NULL"), "t");
        let quick = herd.run(&["backup", "verify", "--quick"]).ends_with(0);
        quick.says(&["exports   1 with "]).does_not_say("not put there by pgherd");
        for depth in [&["backup", "verify"][..], &["backup", "verify", "--full"]] {
            let found = herd.run(depth).ends_with(1);
            found.says(&[
                "DAMAGED  inventory/",
                "/rows.csv.zst: ",
                "LOST     the rows of inventory.moves_2026_03",
            ]);
        }
    }
}

/// A default partition: no rows are lost in it, no partition is late for it, and it is proved empty without being read under a lock.
#[test]
fn a_default_partition_is_proved_empty_and_drained_by_periods() {
    for installation in installations() {
        let herd = herd(
            &installation,
            "      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months, then: drop, default-partition: create}\n",
        );
        sql(&herd, TABLE);
        sql(&herd, "ALTER ROLE postgres SET log_min_messages = debug1");
        apply(&herd, &["--at", "2026-03-15"]).ends_with(0).says(&["+3 (2026-03, 2026-04, default)"]);
        apply(&herd, &["--at", "2026-04-15"]).ends_with(0).says(&["+1 (2026-05)"]);
        let log = server_log(&herd);
        assert!(log.contains("is implied by existing constraints"), "{}", installation.major);
        assert_eq!(sql(&herd, "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'pgherd%'"), "0");
        // With rows in the way it stops, and says how to go on.
        sql(
            &herd,
            "INSERT INTO inventory.moves SELECT n, '2026-06-03'::timestamptz + n * interval '1 hour', 'x' FROM generate_series(1, 300) n",
        );
        sql(&herd, "INSERT INTO inventory.moves VALUES (9001, 'infinity', 'x'), (9002, '2126-01-01', 'x')");
        apply(&herd, &["--at", "2026-05-15"]).ends_with(4).tells(&[
            "has rows of 2026-06",
            "It is 300 rows",
            "pgherd partition drain inventory.moves",
        ]);
        herd.run(&["partition", "drain", "inventory.moves", "--preview"]).ends_with(0).says(&[
            "2026-06",
            "300 rows   would go to inventory.moves_2026_06",
            "slip of the pen",
            "1 rows have no time",
        ]);
        herd.run(&["partition", "drain", "inventory.moves", "--rows", "100", "--yes"])
            .ends_with(3)
            .says(&["more than 100 rows"]);
        herd.run(&["partition", "drain", "inventory.moves"]).ends_with(2);
        herd.run(&["partition", "drain", "inventory.moves", "--yes"])
            .ends_with(3)
            .says(&["moved to inventory.moves_2026_06"]);
        assert_eq!(sql(&herd, "SELECT count(*) FROM inventory.moves_2026_06"), "300");
        assert_eq!(sql(&herd, "SELECT count(*) FROM inventory.moves"), "302");
        // Plain DETACH beside a default partition leaves the bound as a CHECK, and only such a table is dropped.
        let gone = apply(&herd, &["--at", "2026-06-15"]).ends_with(0);
        gone.says(&["+1 (2026-07)", "detached 1 (2026-03)", "dropped 1"]);
        assert_eq!(sql(&herd, "SELECT to_regclass('inventory.moves_2026_03') IS NULL"), "t");
    }
}

/// A table that was not detached by pgherd, or is not what it was, stays whatever it is called.
#[test]
fn only_what_pgherd_has_detached_is_dropped() {
    let herd = herd(
        &newest_or_15(0),
        "      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months, then: detach}\n",
    );
    sql(&herd, TABLE);
    apply(&herd, &["--at", "2026-01-15"]).ends_with(0);
    apply(&herd, &["--at", "2026-06-15"]).ends_with(0).says(&["detached 3 (2026-01, 2026-02, 2026-03)"]);
    sql(&herd, "ALTER TABLE inventory.moves_2026_02 RENAME TO kept_by_hand");
    sql(&herd, "CREATE TABLE inventory.other (LIKE inventory.moves_2026_03)");
    let check = sql(
        &herd,
        "SELECT conname FROM pg_constraint WHERE conrelid = 'inventory.moves_2026_03'::regclass AND contype = 'c' AND pg_get_constraintdef(oid) LIKE '%2026-03-01%'",
    );
    sql(&herd, &format!("ALTER TABLE inventory.moves_2026_03 DROP CONSTRAINT \"{check}\""));
    sql(&herd, "CREATE TABLE inventory.moves_2025_12 (id int)");
    let mut herd = herd;
    herd.edit("then: detach", "then: drop");
    apply(&herd, &["--at", "2026-06-15"]).ends_with(0).says(&[
        "dropped 1",
        "kept_by_hand was detached and is left as it is: it was called moves_2026_02 then",
        "it has no CHECK of the bounds",
    ]);
    for (table, gone) in
        [("moves_2026_01", "t"), ("kept_by_hand", "f"), ("moves_2026_03", "f"), ("moves_2025_12", "f")]
    {
        assert_eq!(sql(&herd, &format!("SELECT to_regclass('inventory.{table}') IS NULL")), gone, "{table}");
    }
}

/// Who holds a lock is named; a second operator is kept away; and a reader for hours makes a detach pending, which the next run ends.
#[test]
fn who_is_in_the_way_is_named_and_nothing_is_left_half_done() {
    let herd =
        herd(&newest_or_15(1), "      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months}\n");
    sql(&herd, TABLE);
    apply(&herd, &["--at", "2026-01-15"]).ends_with(0);
    let quick = ["--at", "2026-04-15", "--lock-timeout", "1s", "--tries", "2"];
    let reader = Client::start(&herd, "BEGIN; SELECT count(*) FROM inventory.moves; SELECT pg_sleep(600)");
    until("the reader reads", || {
        (sql(&herd, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND wait_event = 'PgSleep'") == "1").then_some(())
    });
    // Making goes on beside the reader; the detach does not end, and who is in the way is told.
    apply(&herd, &quick).ends_with(1).says(&["+3 (2026-03, 2026-04, 2026-05)"]).tells(&[
        "could not detach",
        "In the way: pid",
        "pg_sleep(600)",
        "pg_terminate_backend(",
    ]);
    herd.run(&["partition", "list", "--at", "2026-04-15"])
        .ends_with(0)
        .says(&["detach pending: inventory.moves_2026_01"]);
    // What is missing is made all the same.
    let later = ["--at", "2026-05-15", "--lock-timeout", "1s", "--tries", "2"];
    apply(&herd, &later).ends_with(1).says(&["+1 (2026-06)"]);
    drop(reader);
    until("the reader is gone", || {
        sql(
            &herd,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()",
        );
        (sql(&herd, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()") == "0").then_some(())
    });
    apply(&herd, &quick).ends_with(0).says(&["finished a detach of 1 (2026-01)"]);
    assert_eq!(partitions(&herd, "inventory.moves").split(' ').count(), 5);

    let oid = sql(&herd, "SELECT 'inventory.moves'::regclass::oid");
    let holder =
        Client::start(&herd, &format!("SELECT pg_advisory_lock(1885434484, {oid}); SELECT pg_sleep(600)"));
    until("the set is held", || {
        (sql(&herd, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "1").then_some(())
    });
    apply(&herd, &["--at", "2026-05-15"])
        .ends_with(5)
        .tells(&["somebody else maintains the partitions of inventory.moves now", "pid "]);
    drop(holder);
}

/// Killed at any moment, the next run ends it right.
#[test]
fn killed_at_any_moment_the_next_run_ends_it() {
    let herd = herd(
        &newest_or_15(0),
        "      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months, then: export and drop}\n      \
         inventory.stock: {by: on_day, every: day, ahead: 2, keep: 3 days, then: drop, default-partition: create}\n",
    );
    sql(&herd, TABLE);
    sql(
        &herd,
        "SET ROLE inventory_owner; CREATE TABLE inventory.stock (on_day date, n int) PARTITION BY RANGE (on_day)",
    );
    apply(&herd, &["--at", "2026-01-15"]).ends_with(0);
    sql(
        &herd,
        "INSERT INTO inventory.moves SELECT n, '2026-01-01'::timestamptz + n * interval '1 minute', 'x' FROM generate_series(1, 50000) n",
    );
    let whole = Instant::now();
    apply(&herd, &["--at", "2026-02-15"]).ends_with(0);
    let whole = whole.elapsed();
    for (index, month) in ["2026-03-15", "2026-04-15", "2026-05-15"].iter().enumerate() {
        let args = ["partition", "apply", "--at", month];
        for part in 1..=4_u32 {
            let mut run = herd.start(&args);
            let kill_at = Instant::now() + whole * (part + u32::try_from(index).expect("small")) / 6;
            until("it is time, or it has ended", || {
                (Instant::now() >= kill_at || run.has_ended()).then_some(())
            });
            run.signal(Signal::KILL);
            run.end();
        }
        // The server ends what it was doing for the dead one first.
        until("nobody else is at it", || (herd.run(&args).code == 0).then_some(()));
        apply(&herd, &["--at", month]).ends_with(0).says(&["nothing to do"]);
        assert_eq!(
            sql(&herd, "SELECT count(*) FROM pg_description WHERE description LIKE 'pgherd partition: %'"),
            "0",
            "{month}"
        );
        assert_eq!(
            sql(&herd, "SELECT count(*) FROM pg_constraint WHERE conname LIKE 'pgherd%'"),
            "0",
            "{month}"
        );
    }
    let list = herd
        .run(&["partition", "list", "inventory.moves", "--exported", "--format", "json"])
        .ends_with(0)
        .json();
    let exports = list["exports"].as_array().expect("a list");
    let january: Vec<_> = exports.iter().filter(|one| one["partition"] == "moves_2026_01").collect();
    assert_eq!(january.len(), 1, "{list}");
    assert_eq!(january[0]["rows"], 44639);
    assert_eq!(sql(&herd, "SELECT count(*) FROM inventory.moves"), (50_000 - 44_639 - 5361).to_string());
}

/// A set of pg_partman is recognised, left alone, and taken over with the partitions that it has.
#[test]
fn a_set_of_pg_partman_is_taken_over() {
    // Debian 12's server is the one that has a package of it here; `scripts/setup` installs it.
    let Some(installation) = installations().into_iter().find(|one| one.major == 15) else {
        eprintln!("NOT SHOWN: taking a set over from pg_partman needs Debian's PostgreSQL 15");
        return;
    };
    let herd = herd(
        &installation,
        "      inventory.moves: {by: at, every: month, ahead: 5, keep: 1 year, names: \"{table}_p{year}_{month}\"}\n",
    );
    sql(&herd, TABLE);
    sql(
        &herd,
        "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
        SELECT partman.create_parent('inventory.moves', 'at', 'native', 'monthly', p_premake => 3)",
    );
    let before = partitions(&herd, "inventory.moves");
    apply(&herd, &[]).ends_with(4).tells(&[
        "pg_partman maintains it",
        "partman.part_config has it",
        "--adopt",
    ]);
    herd.run(&["partition", "plan", "--adopt"])
        .ends_with(0)
        .says(&["take inventory.moves over from pg_partman", "DELETE FROM \"partman\".part_config"]);
    assert_eq!(sql(&herd, "SELECT count(*) FROM partman.part_config"), "1");
    apply(&herd, &["--adopt"]).ends_with(0).says(&["taken over from pg_partman", "+2 ("]);
    assert_eq!(sql(&herd, "SELECT count(*) FROM partman.part_config"), "0");
    assert!(before.split(' ').all(|name| partitions(&herd, "inventory.moves").contains(name)), "{before}");
    apply(&herd, &[]).ends_with(0).says(&["nothing to do"]);
}
