//! `rejoin`: a node that went its own way comes back as a standby, never as a primary, and what only it had is not lost.

use std::path::Path;

use rustix::process::{Signal, kill_process};

use crate::herd::{Herd, PAIR, Ran, Shape, WHOLE, as_server, files_below, newest_or_15, text, until};
use crate::server::{Installation, installations};

const TABLE: &str = "
SET ROLE inventory_owner;
CREATE TABLE inventory.ledger (number int PRIMARY KEY)";

fn up(installation: &Installation, shape: &Shape<'_>) -> Herd {
    let mut herd = Herd::declare(installation, shape);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.sql_in("a", "inventory", TABLE);
    herd
}

#[track_caller]
fn rejoin(herd: &Herd, node: &str) -> Ran {
    herd.run(&["rejoin", node, "--yes"])
}

#[track_caller]
fn rejoin_with(herd: &Herd, args: &[&str]) -> Ran {
    herd.run(&[&["rejoin"], args, &["--yes"]].concat())
}

/// Kills a node as a power cut would.
fn kill(herd: &Herd, node: &str) {
    kill_process(herd.postmaster(node).expect("it runs"), Signal::KILL).expect("it runs");
    until("it is gone", || herd.postmaster(node).is_none().then_some(()));
}

/// Starts a node behind pgherd's back, as somebody or something may.
#[track_caller]
fn start(herd: &Herd, node: &str) {
    let data = herd.data(node);
    until(&format!("{node} starts"), || {
        let mut command = as_server(&herd.installation().bin().join("pg_ctl"));
        command.args(["-D", text(&data), "-w", "-l", "/dev/null", "start"]);
        command.output().expect("pg_ctl").status.success().then_some(())
    });
}

/// Has b lead while a cannot know of it; `before` happens on a when b is away already.
fn fork(herd: &Herd, others: &[&str], before: impl FnOnce()) {
    let written = herd.sql("a", "SELECT pg_current_wal_lsn()");
    for node in others {
        until("it has everything", || {
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
            (herd.sql(node, &sql) == "t").then_some(())
        });
        herd.stop(node, "fast");
    }
    before();
}

/// Has b lead without a word to a, which may still run.
fn promote(herd: &Herd) {
    let auto = herd.data("b").join("postgresql.auto.conf");
    let before = std::fs::read_to_string(&auto).unwrap();
    std::fs::write(&auto, format!("{before}primary_conninfo = ''\n")).unwrap();
    start(herd, "b");
    herd.sql("b", "SELECT pg_promote()");
    herd.sql("b", "ALTER SYSTEM RESET primary_conninfo");
}

fn insert(herd: &Herd, node: &str, number: u32) {
    // Its standbys are away, and nobody waits for them.
    let sql = format!("SET synchronous_commit = local; INSERT INTO inventory.ledger VALUES ({number})");
    herd.sql_in(node, "inventory", &sql);
}

fn ledger(herd: &Herd, node: &str) -> String {
    herd.sql_in(
        node,
        "inventory",
        "SELECT string_agg(number::text, ' ' ORDER BY number) FROM inventory.ledger",
    )
}

/// Holds `node` to be a standby of `primary`, with its rows, and everything to be as declared.
#[track_caller]
fn follows(herd: &Herd, node: &str, primary: &str) {
    assert_eq!(herd.primaries(), [primary]);
    let sql = format!("SELECT state FROM pg_stat_replication WHERE application_name = 'inventory-{node}'");
    assert_eq!(herd.sql(primary, &sql), "streaming");
    assert_eq!(herd.sql(node, "SELECT count(*) FROM pg_replication_slots"), "0");
    assert_eq!(ledger(herd, node), ledger(herd, primary));
    // What was opened for pg_rewind is closed, and nothing of it is left.
    let granted = "SELECT count(*) FROM pg_proc WHERE proname IN ('pg_ls_dir', 'pg_stat_file', 'pg_read_binary_file') AND proacl::text LIKE '%replicator%'";
    assert_eq!(herd.sql(primary, granted), "0");
    let hba = std::fs::read_to_string(herd.data(primary).join("pg_hba.conf")).unwrap();
    assert!(!hba.contains("postgres    replicator"), "{hba}");
    for left in ["rewinding.json", "before-rewind"] {
        assert!(!herd.facts(node).join(left).exists(), "{left} is left");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&herd.data(node).metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

fn archived(herd: &Herd, name: &str) -> bool {
    herd.kept().has_wal(name)
}

/// Returns what lies beside the data directory of a node.
fn beside(herd: &Herd, node: &str, what: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(herd.path("data")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| text(path).contains(&format!("/{node}.{what}-"))).collect()
}

#[test]
fn an_old_primary_that_was_killed_is_rewound_and_what_only_it_had_is_kept_on_every_major() {
    for installation in installations() {
        let herd = up(&installation, &WHOLE);
        insert(&herd, "a", 1);
        // The node's own line, which the primary does not have.
        let conf = herd.data("a").join("postgresql.conf");
        let own = format!("{}# the operator's own line\n", std::fs::read_to_string(&conf).unwrap());
        std::fs::write(&conf, own).unwrap();
        fork(&herd, &["c", "b"], || {
            insert(&herd, "a", 2);
            kill(&herd, "a");
        });
        promote(&herd);
        insert(&herd, "b", 3);
        assert_eq!(herd.primaries(), ["b"]);

        let dry = herd.run(&["rejoin", "a", "--dry-run"]).ends_with(0);
        dry.says(&["a comes back: rewind", "timeline 1", "timeline 2", "past it", "crashed", "pivot"]);
        assert!(!herd.data("a").join("standby.signal").exists(), "a look changes nothing");
        let done = rejoin(&herd, "a").ends_with(0);
        done.says(&["inventory-a follows inventory-b on timeline 2   rewound", "past it", "kept"]);
        follows(&herd, "a", "b");
        assert_eq!(ledger(&herd, "a"), "1 3");
        assert!(std::fs::read_to_string(&conf).unwrap().contains("# the operator's own line"));
        // The row that only a had is in the WAL that was kept.
        let kept = beside(&herd, "a", "wal-before");
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(!files_below(&kept[0]).is_empty());
        rejoin(&herd, "a").ends_with(0).says(&["streams from it already. No changes."]);

        // A fence is lifted at the end.
        assert!(!herd.facts("a").join("fenced.json").exists());

        // One that was only away follows, and then there is nothing more to do.
        let away = rejoin(&herd, "c").ends_with(0);
        away.says(&["c comes back: follow", "nothing had to be taken back"]);
        follows(&herd, "c", "b");
        herd.apply().ends_with(0);
        herd.is_as_declared();
        assert_eq!(herd.sql("b", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"), "2");
    }
}

#[test]
fn an_old_primary_that_ended_where_it_was_left_follows_and_its_unarchived_wal_is_archived() {
    let herd = up(&newest_or_15(0), &PAIR);
    insert(&herd, "a", 1);
    // Nothing of a goes into the archive any more: a hole that the new primary does not fill.
    herd.sql("a", "ALTER SYSTEM SET archive_command = 'false'");
    herd.sql("a", "SELECT pg_reload_conf()");
    until("it is taken", || (herd.sql("a", "SHOW archive_command") == "false").then_some(()));
    let hole = herd.sql("a", "SELECT pg_walfile_name(pg_switch_wal())");
    insert(&herd, "a", 2);
    let replayed = herd.sql("a", "SELECT pg_current_wal_lsn()");
    until("b has it", || {
        (herd.sql("b", &format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'")) == "t").then_some(())
    });
    herd.sql("a", "ALTER SYSTEM SET archive_command = ''");
    herd.sql("a", "SELECT pg_reload_conf()");
    until("it is taken", || herd.sql("a", "SHOW archive_command").is_empty().then_some(()));
    herd.stop("a", "fast");
    herd.sql("b", "SELECT pg_promote()");
    insert(&herd, "b", 3);
    assert!(!archived(&herd, &hole));

    let done = rejoin(&herd, "a").ends_with(0);
    done.says(&["a comes back: follow", "0 B past it", "nothing had to be taken back", &hole]);
    follows(&herd, "a", "b");
    assert_eq!(ledger(&herd, "a"), "1 2 3");
    assert!(archived(&herd, &hole), "the hole is filled");
    let auto = std::fs::read_to_string(herd.data("a").join("postgresql.auto.conf")).unwrap();
    assert!(!auto.contains("archive_command"), "{auto}");

    // It was the preferred one, and goes away once more: failback brings it back and gives it its role, with one confirmation.
    herd.apply().ends_with(0);
    herd.stop("a", "fast");
    let dry = herd.run(&["failback", "--dry-run"]).ends_with(0);
    dry.says(&["a comes back: follow"]).tells(&["then     switches over from b to a"]);
    let done = herd.run(&["failback", "--yes"]).ends_with(0);
    done.says(&["inventory-a follows inventory-b", "inventory-a is primary (timeline 3)"]);
    assert_eq!(herd.primaries(), ["a"]);
    assert_eq!(ledger(&herd, "a"), "1 2 3");
    herd.is_as_declared();
    herd.run(&["failback", "--yes"]).ends_with(0).says(&["is primary already. No changes."]);
}

#[test]
fn a_second_primary_is_stopped_and_rewound_or_cloned_beside_what_it_has() {
    let herd = up(&newest_or_15(1), &PAIR);
    insert(&herd, "a", 1);
    fork(&herd, &["b"], || insert(&herd, "a", 2));
    promote(&herd);
    insert(&herd, "b", 3);
    assert_eq!(herd.primaries(), ["a", "b"]);
    // Nobody has said yet which of them counts: the record in the repository says a.
    rejoin(&herd, "b").ends_with(4).tells(&["a, b accept writes", "Nothing says which of them"]);
    let onto = herd.run(&["rejoin", "b", "--primary", "a", "--yes"]).ends_with(4);
    onto.tells(&["the archive has 00000002.history, and the primary is on timeline 1"]);
    rejoin(&herd, "a").ends_with(4).tells(&["says that a is the primary since"]);
    assert_eq!(herd.primaries(), ["a", "b"]);
    kill(&herd, "a");
    herd.apply().ends_with(0);
    start(&herd, "a");
    insert(&herd, "a", 4);

    // Now it says b.
    let done = rejoin(&herd, "a").ends_with(0);
    done.says(&["runs as a primary", "rewound"]);
    follows(&herd, "a", "b");
    assert_eq!(ledger(&herd, "a"), "1 3");

    // Back as a primary on b's own timeline: pg_rewind sees no fork there.
    herd.stop("a", "fast");
    std::fs::remove_file(herd.data("a").join("standby.signal")).unwrap();
    start(&herd, "a");
    insert(&herd, "a", 5);
    insert(&herd, "b", 6);
    let done = rejoin(&herd, "a").ends_with(0);
    done.says(&[
        "a comes back: clone",
        "it was a primary on the primary's own timeline 2",
        "cloned",
        "a.before-",
    ]);
    follows(&herd, "a", "b");
    assert_eq!(ledger(&herd, "a"), "1 3 6");
    let old = beside(&herd, "a", "before");
    assert_eq!(old.len(), 1);
    assert!(old[0].join("PG_VERSION").exists(), "what it had is there");
    herd.apply().ends_with(0);
    herd.is_as_declared();
}

#[test]
fn a_rewind_that_was_interrupted_starts_nothing_and_ends_as_a_clone() {
    let herd = up(&newest_or_15(0), &PAIR);
    // Enough for a rewind to take a moment.
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE bulk AS SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i",
    );
    fork(&herd, &["b"], || {
        herd.sql_in("a", "inventory", "SET synchronous_commit = local; UPDATE bulk SET i = i + 1");
        insert(&herd, "a", 2);
        kill(&herd, "a");
    });
    promote(&herd);
    insert(&herd, "b", 3);
    let mut running = herd.start(&["rejoin", "a", "--yes"]);
    let marker = herd.facts("a").join("rewinding.json");
    let mode = |path: &Path| {
        std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777
    };
    until("it rewinds", || (marker.exists() && mode(&herd.data("a")) == 0o701).then_some(()));
    running.signal(Signal::KILL);
    running.end();
    for (pid, line) in herd.processes() {
        if line.contains("pg_rewind") {
            kill_process(pid, Signal::KILL).ok();
        }
    }
    // Whoever starts it now does not get a primary, nor anything else.
    let mut command = as_server(&herd.installation().bin().join("pg_ctl"));
    command.args(["-D", text(&herd.data("a")), "-w", "-t", "5", "-l", "/dev/null", "start"]);
    // Its answer does not count: that of 18 takes a server that ended for one that reached its target.
    command.output().expect("pg_ctl");
    assert_eq!(herd.postmaster("a"), None, "it has started");
    assert_eq!(herd.primaries(), ["b"]);
    let ended = std::fs::read_to_string(&marker).unwrap().contains("\"ended\": true");

    let report = herd.run(&["status", "--format", "json"]).json();
    let id = report["clusters"][0]["operations"][0]["id"].as_str().expect("it is there").to_owned();
    let done = herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
    if ended {
        done.says(&["rewound"]);
    } else {
        done.says(&["cloned", "did not get to its end", "a.before-"]);
    }
    follows(&herd, "a", "b");
    assert_eq!(ledger(&herd, "a"), "3");
    herd.apply().ends_with(0);
    herd.is_as_declared();
}

#[test]
fn a_clone_is_read_from_a_backup_where_that_holds_less_than_the_primary() {
    let herd = up(&newest_or_15(0), &PAIR);
    herd.sql_in(
        "a",
        "inventory",
        "SELECT lo_from_bytea(0, convert_to(repeat('compressible ', 2000000), 'UTF8'))",
    );
    let asked = herd.run(&["rejoin", "b", "--clone", "--from", "backup", "--yes"]);
    asked.ends_with(10).tells(&["there is no backup of inventory to restore"]);
    herd.run(&["rejoin", "b", "--clone", "--dry-run"]).ends_with(0).says(&["clone inventory-a ("]);
    herd.run(&["backup", "create"]).ends_with(0);
    insert(&herd, "a", 1);
    let primary = herd.run(&["rejoin", "b", "--clone", "--from", "primary", "--dry-run"]).ends_with(0);
    primary.says(&["set it aside, clone inventory-a ("]);

    // What is not in the archive yet comes from the primary.
    let done = rejoin_with(&herd, &["b", "--clone"]).ends_with(0);
    done.says(&[
        "set it aside, restore backup ",
        " to read; inventory-a has ",
        "from       backup ",
        "b.before-",
    ]);
    follows(&herd, "b", "a");
    assert_eq!(ledger(&herd, "b"), "1");
    let basebackups = "SELECT count(*) FROM pg_stat_progress_basebackup";
    assert_eq!(herd.sql("a", basebackups), "0");
    let leases = herd.kept().with("/lease/").len();
    assert_eq!(leases, 0, "a lease is left");
    insert(&herd, "a", 2);
    until("it streams", || (ledger(&herd, "b") == "1 2").then_some(()));

    // A backup that somebody damaged is no copy: what the node had gets its name back.
    let (kept, data) = (herd.kept(), herd.kept().only("/files.zst"));
    let whole = kept.read(&data);
    kept.write(&data, &whole[..whole.len() / 2]);
    rejoin_with(&herd, &["b", "--clone", "--from", "backup"]).ends_with(1);
    assert_eq!(beside(&herd, "b", "before").len(), 1, "what was set aside has its name back");
    kept.write(&data, &whole);
    rejoin_with(&herd, &["b"]).ends_with(0);
    follows(&herd, "b", "a");
    herd.apply().ends_with(0);
    herd.is_as_declared();
}

#[test]
fn every_obstacle_is_told_and_nothing_is_changed() {
    let herd = up(&newest_or_15(1), &PAIR);
    rejoin(&herd, "nobody").ends_with(10).tells(&["has no node \"nobody\""]);
    rejoin(&herd, "a").ends_with(4).tells(&["it is the primary"]);
    rejoin(&herd, "b").ends_with(0).says(&["No changes."]);
    herd.run(&["rejoin", "b"]).ends_with(0).says(&["No changes."]);
    herd.stop("b", "fast");
    herd.run(&["rejoin", "b"]).ends_with(2).tells(&["needs the node's name"]);
    std::fs::remove_file(herd.facts("b").join("marker.json")).unwrap();
    rejoin(&herd, "b").ends_with(4).tells(&["no marker of it claims"]);
}
