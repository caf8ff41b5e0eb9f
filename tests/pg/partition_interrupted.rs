//! A role change, or a kill, in the middle of what cron runs: it stops with an exit code of its own, and the next run ends it with nothing lost or twice.

use rustix::process::{Pid, Signal, kill_process};

use crate::failover::kill;
use crate::herd::{Frozen, Herd, PAIR, Running, Shape, files_below, newest_or_15, until};
use crate::kept::Kept;
use crate::partition::{TABLE, herd as single, sql};
use crate::sshd::make_for_servers;

const JANUARY: &str = "2026-01-15";
const APRIL: &str = "2026-04-15";
const ROWS: u64 = 120_000;
/// What tells whether rows are the same.
const SUM: &str =
    "SELECT count(*) || ' ' || coalesce(sum(hashtext(id::text || at::text || note)::int8), 0) FROM";

/// Which role change comes in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Switchover,
    Failover,
}

impl Change {
    fn run(self, herd: &Herd) {
        match self {
            Self::Switchover => herd.run(&["switchover", "--to", "b", "--yes"]).ends_with(0),
            Self::Failover => {
                kill(herd, "a");
                herd.run(&["failover", "--to", "b", "--yes"]).ends_with(0)
            }
        };
        assert_eq!(herd.primaries(), ["b"], "{self:?}");
    }
}

/// A pair with a table whose January is to be exported, one with a default partition, and a dump.
fn pair(turn: u32) -> Herd {
    let mut herd = Herd::declare(&newest_or_15(turn), &Shape { pooler: false, ..PAIR });
    herd.keep_backups();
    let sets = "    partitions:\n      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months, then: export and drop}\n      \
                inventory.visits: {by: at, every: month, ahead: 1, default-partition: create}\n";
    let dumps = "    dumps:\n      legal: {when: monthly 28 01:00, keep: 2 days}\n";
    herd.edit("    nodes:\n", &format!("{sets}{dumps}    nodes:\n"));
    herd.apply().ends_with(0);
    sql(&herd, TABLE);
    sql(
        &herd,
        "SET ROLE inventory_owner; CREATE TABLE inventory.visits (at timestamptz, n int) PARTITION BY RANGE (at)",
    );
    herd.run(&["partition", "apply", "--at", JANUARY]).ends_with(0);
    sql(
        &herd,
        &format!(
            "INSERT INTO inventory.moves SELECT n, '2026-01-01'::timestamptz + n * interval '1 second', repeat(md5(n::text), 8) FROM generate_series(1, {ROWS}) n"
        ),
    );
    herd
}

/// Returns the process of this herd whose command line has all of these in it.
fn process(herd: &Herd, words: &[&str]) -> Option<Pid> {
    let of = herd.processes().into_iter();
    of.filter(|(_, line)| words.iter().all(|word| line.contains(word))).map(|(pid, _)| pid).next()
}

/// Starts what exports January, and stops it while the server sends it the rows.
fn export_in_its_middle(herd: &Herd, node: &str) -> (Running, Frozen) {
    let run = herd.start(&["partition", "apply", "--at", APRIL]);
    let copies = "SELECT count(*) FROM pg_stat_progress_copy WHERE command = 'COPY TO'";
    let child = until("rows come out", || {
        (herd.sql(node, copies) == "1").then(|| process(herd, &["lib/", "/pgherd node"])).flatten()
    });
    (run, Frozen::new(child))
}

/// Ends what was interrupted and holds January to be in the repository once, and to come back row for row.
fn january_is_whole(herd: &Herd, primary: &str, sum: &str) {
    let again = ["partition", "apply", "--at", APRIL];
    until("the next run ends it", || (herd.run(&again).code == 0).then_some(()));
    herd.run(&again).ends_with(0).says(&["nothing to do"]);
    let of = |text: &str| herd.sql_in(primary, "inventory", text);
    assert_eq!(of("SELECT to_regclass('inventory.moves_2026_01') IS NULL"), "t");
    assert_eq!(of("SELECT count(*) FROM pg_description WHERE description LIKE 'pgherd partition: %'"), "0");
    let list = herd.run(&["--format", "json", "partition", "list", "inventory.moves", "--exported"]).json();
    let exports = list["exports"].as_array().expect("a list");
    let january: Vec<_> = exports.iter().filter(|one| one["partition"] == "moves_2026_01").collect();
    assert_eq!((january.len(), january[0]["rows"].as_u64()), (1, Some(ROWS)), "{list:#}");
    herd.run(&["backup", "verify", "--full"]).ends_with(0).says(&["exports   "]);
    herd.run(&["partition", "restore", "inventory.moves", "moves_2026_01"]).ends_with(0);
    assert_eq!(of(&format!("{SUM} inventory.moves")), sum);
}

#[test]
fn an_export_that_a_role_change_cuts_off_is_ended_by_the_next_run() {
    for (turn, change) in [(0, Change::Switchover), (1, Change::Failover)] {
        let herd = pair(turn);
        let sum = sql(&herd, &format!("{SUM} inventory.moves"));
        let (run, child) = export_in_its_middle(&herd, "a");
        change.run(&herd);
        drop(child);
        let cut = run.end();
        // One table's rows came out, and the other one's half was not even begun.
        assert_eq!(cut.code, 3, "{change:?}: {}", cut.stderr);
        cut.tells(&["ERROR:  the outcome of copy rows out on inventory-a is unknown: connection closed"]);
        january_is_whole(&herd, "b", &sum);
    }
}

#[test]
fn an_export_that_is_killed_in_its_middle_is_ended_by_the_next_run() {
    let herd = pair(1);
    let sum = sql(&herd, &format!("{SUM} inventory.moves"));
    let (mut run, child) = export_in_its_middle(&herd, "a");
    run.signal(Signal::KILL);
    run.end();
    drop(child);
    january_is_whole(&herd, "a", &sum);
}

/// Starts a dump and stops pg_dump before it has read everything.
fn dump_in_its_middle(herd: &Herd) -> (Running, Frozen) {
    let run = herd.start(&["run", "inventory/dump-legal"]);
    let copies = "SELECT count(*) FROM pg_stat_progress_copy WHERE command = 'COPY TO'";
    let dump = until("rows come out", || {
        (herd.sql("a", copies) == "1").then(|| process(herd, &["/pg_dump ", "--format=custom"])).flatten()
    });
    (run, Frozen::new(dump))
}

/// Holds that there is no dump yet, and that the next run makes one and cleans up.
fn the_next_dump_is_the_only_one(herd: &Herd) {
    let none = herd.run(&["dump", "list"]).ends_with(0);
    assert!(!none.stdout.contains("legal") || none.stdout.contains("never finished"), "{}", none.stdout);
    until("the next one is made", || (herd.run(&["run", "inventory/dump-legal"]).code == 0).then_some(()));
    let list = herd.run(&["dump", "list"]).ends_with(0);
    assert_eq!(
        list.stdout.matches("pg_dump").count().max(list.stdout.matches("legal").count()),
        1,
        "{}",
        list.stdout
    );
    if let Kept::Directory(root) = herd.kept() {
        let left: Vec<_> = files_below(&root)
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("/.dump-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let to = herd.path("legal.dump");
    herd.run(&["dump", "fetch", "legal", "--to", to.to_str().expect("text")]).ends_with(0);
    herd.run(&["backup", "verify", "--full"]).ends_with(0).says(&["dumps   1"]);
}

#[test]
fn a_dump_that_a_role_change_cuts_off_is_none_and_the_next_one_is_whole() {
    for (turn, change) in [(1, Change::Switchover), (0, Change::Failover)] {
        let herd = pair(turn);
        let (run, dump) = dump_in_its_middle(&herd);
        change.run(&herd);
        drop(dump);
        let cut = run.end();
        assert_eq!(cut.code, 1, "{change:?}: {}", cut.stderr);
        the_next_dump_is_the_only_one(&herd);
    }
}

/// As by the out-of-memory killer: who waits, who works, and pg_dump.
pub fn a_killed_dump_is_none(herd: &Herd) {
    let (mut run, dump) = dump_in_its_middle(herd);
    let child = process(herd, &["lib/", "/pgherd node"]).expect("the child waits for pg_dump");
    run.signal(Signal::KILL);
    run.end();
    kill_process(child, Signal::KILL).expect("it waits");
    let pg_dump = process(herd, &["/pg_dump ", "--format=custom"]).expect("it stands still");
    kill_process(pg_dump, Signal::KILL).expect("it stands still");
    drop(dump);
    the_next_dump_is_the_only_one(herd);
}

#[test]
fn a_dump_that_is_killed_in_its_middle_is_none_and_the_next_one_cleans_up() {
    a_killed_dump_is_none(&pair(0));
}

#[test]
fn rows_that_a_role_change_catches_on_their_way_out_of_a_default_partition_are_there_once() {
    for (turn, change) in [(0, Change::Switchover), (1, Change::Failover)] {
        let herd = pair(turn);
        sql(
            &herd,
            "INSERT INTO inventory.visits SELECT '2026-05-03'::timestamptz + n * interval '1 minute', n FROM generate_series(1, 5000) n",
        );
        // Each row takes so long that the middle is long enough.
        sql(
            &herd,
            "CREATE FUNCTION public.slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN OLD; END';
             CREATE TRIGGER slowly BEFORE DELETE ON inventory.visits_default FOR EACH ROW EXECUTE FUNCTION public.slowly();
             ALTER TABLE inventory.visits_default ENABLE ALWAYS TRIGGER slowly",
        );
        let drain = ["partition", "drain", "inventory.visits", "--yes"];
        let run = herd.start(&drain);
        let moves = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%WITH moved AS%' AND wait_event = 'PgSleep'";
        until("rows are moved", || (sql(&herd, moves) == "1").then_some(()));
        change.run(&herd);
        let cut = run.end();
        assert_eq!(cut.code, 1, "{change:?}: {}", cut.stderr);
        let of = |text: &str| herd.sql_in("b", "inventory", text);
        assert_eq!(of("SELECT count(*) FROM inventory.visits_default"), "5000", "{change:?}");
        of("DROP TRIGGER slowly ON inventory.visits_default");
        herd.run(&drain).ends_with(0).says(&["moved to inventory.visits_2026_05"]);
        let counts = of(
            "SELECT (SELECT count(*) FROM ONLY inventory.visits_2026_05) || ' ' || count(*) || ' ' || count(DISTINCT n) FROM inventory.visits",
        );
        assert_eq!(counts, "5000 5000 5000", "{change:?}");
        herd.run(&drain).ends_with(0);
    }
}

#[test]
fn a_partition_in_a_tablespace_is_exported_and_comes_back_there() {
    let mut herd = single(
        &newest_or_15(1),
        "      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months, then: export and drop, tablespace: cold}\n",
    );
    make_for_servers(&herd.path("cold"));
    sql(&herd, &format!("CREATE TABLESPACE cold LOCATION '{}'", herd.path("cold").display()));
    sql(&herd, "GRANT CREATE ON TABLESPACE cold TO inventory_owner");
    sql(&herd, TABLE);
    herd.run(&["partition", "apply", "--at", JANUARY]).ends_with(0);
    let cold = "SELECT count(*) FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE t.spcname = 'cold' AND c.relname = 'moves_2026_01'";
    assert_eq!(sql(&herd, cold), "1");
    sql(
        &herd,
        "INSERT INTO inventory.moves SELECT n, '2026-01-01'::timestamptz + n * interval '1 second', 'x' FROM generate_series(1, 5000) n",
    );
    let sum = sql(&herd, &format!("{SUM} inventory.moves"));
    herd.run(&["partition", "apply", "--at", APRIL]).ends_with(0).says(&["exported 1", "dropped 1"]);
    assert_eq!(sql(&herd, "SELECT count(*) FROM inventory.moves"), "0");
    herd.run(&["partition", "restore", "inventory.moves", "moves_2026_01"]).ends_with(0);
    assert_eq!((sql(&herd, cold).as_str(), sql(&herd, &format!("{SUM} inventory.moves"))), ("1", sum));
    exports_expire(&mut herd);
}

/// What is kept for ever stays, and what is not goes when its last moment is as long ago as declared.
fn exports_expire(herd: &mut Herd) {
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["backup", "expire", "--preview"]).ends_with(0).says(&["Nothing goes."]);
    herd.edit("then: export and drop", "then: export and drop, keep-exports: 3 months");
    let preview = herd.run(&["backup", "expire", "--preview"]).ends_with(0);
    preview.says(&[
        "- export inventory.moves_2026_01",
        "5000 rows, up to 2026-02-01 00:00:00, kept for 3 months",
    ]);
    herd.run(&["partition", "list", "--exported"]).ends_with(0).says(&["moves_2026_01"]);
    herd.run(&["backup", "expire", "--yes"]).ends_with(0).says(&["and 1 exports"]);
    herd.run(&["partition", "list", "--exported"]).ends_with(0).does_not_say("moves_2026_01");
    assert_eq!(herd.kept().with("/partition/"), Vec::<String>::new());
    herd.run(&["backup", "expire", "--yes"]).ends_with(0).says(&["Nothing goes."]);
    herd.run(&["backup", "verify", "--full"]).ends_with(0).does_not_say("exports");
}

#[test]
fn the_job_maintains_partitions_and_says_nothing() {
    let mut herd = single(
        &newest_or_15(0),
        "      inventory.moves: {by: at, every: month, ahead: 2, keep: 2 months, then: drop}\n",
    );
    herd.edit("    nodes:\n", "    maintenance:\n      partitions: {when: daily 03:00}\n    nodes:\n");
    // Nobody has made the table yet: all of it is told.
    herd.run(&["run", "inventory/partitions"]).ends_with(10).tells(&["there is no table inventory.moves"]);
    sql(&herd, TABLE);
    for _ in 0..2 {
        let quiet = herd.run(&["run", "inventory/partitions"]).ends_with(0);
        assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    }
    assert_eq!(
        sql(&herd, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'inventory.moves'::regclass"),
        "3"
    );
    let record = herd.path("state/schedule/shop/inventory.partitions.json");
    let kept = std::fs::read_to_string(record).expect("a record");
    assert!(kept.contains("\"failures\": 0"), "{kept}");
    let jobs = crate::health::finding(&herd, "jobs", "partitions");
    assert_eq!(jobs["status"], "ok", "{jobs:#}");
    assert_eq!(crate::health::finding(&herd, "partition-horizon", "inventory.moves")["status"], "ok");
}
