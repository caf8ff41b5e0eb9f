//! Several repositories a cluster: WAL in each, backups copied from the first into another one, and what can be done when the first is lost.

use std::fs;
use std::path::Path;

use crate::herd::{Herd, PAIR, SINGLE, Shape, newest_or_15, until};
use crate::kept::{Kept, Kind};
use crate::kills::{archived, restored};

const ROWS: &str = "SELECT count(*), sum(n) FROM orders";

/// A herd with the repository `main` of this kind, and `far` in a directory of its own.
fn herd(kind: Kind, turn: u32, shape: &Shape<'_>) -> Option<Herd> {
    let mut herd = Herd::declare(&newest_or_15(turn), shape);
    if !herd.keep_backups_in(kind) {
        return None;
    }
    herd.keep_copies();
    herd.apply().ends_with(0).says(&["see it arrive in repository main", "see it arrive in repository far"]);
    herd.is_as_declared();
    Some(herd)
}

fn kept_far(herd: &Herd) -> Kept {
    Kept::Directory(herd.far())
}

fn away(path: &Path) {
    fs::rename(path, path.with_extension("away")).unwrap();
}

fn back(path: &Path) {
    fs::rename(path.with_extension("away"), path).unwrap();
}

#[test]
fn a_copy_restores_to_the_last_row_when_the_first_repository_is_lost() {
    for (turn, kind) in [(0, Kind::Directory), (1, Kind::EncryptedDirectory)] {
        loses_the_first(&herd(kind, turn, &SINGLE).expect("a directory is always there"));
    }
}

#[test]
fn a_copy_of_an_encrypted_bucket_restores_to_the_last_row_when_the_bucket_is_lost() {
    if let Some(herd) = herd(Kind::EncryptedBucket, 0, &SINGLE) {
        loses_the_first(&herd);
    }
}

fn loses_the_first(herd: &Herd) {
    herd.sql("a", "CREATE TABLE orders AS SELECT generate_series(1, 20000) AS n");
    herd.run(&["backup", "create"]).ends_with(0);
    herd.sql("a", "INSERT INTO orders SELECT generate_series(20001, 30000)");
    archived(herd, &kept_far(herd));
    assert_eq!(
        kept_far(herd).with("manifest.json"),
        Vec::<String>::new(),
        "WAL goes there, backups are copied"
    );

    herd.run(&["backup", "copy", "--to", "far"]).ends_with(0).says(&["1 backups, "]);
    herd.run(&["backup", "copy", "--to", "far"])
        .ends_with(0)
        .says(&["0 backups, 0 WAL files", "1 were there"]);
    herd.run(&["backup", "verify", "--full", "--repository", "far"]).ends_with(0);
    let label = herd.run(&["backup", "list", "--format", "json", "--repository", "far"]).json();
    assert_eq!(label["clusters"][0]["backups"].as_array().unwrap().len(), 1, "{label}");
    herd.run(&["wal", "list", "--repository", "far"]).ends_with(0);
    herd.run(&["backup", "list", "--repository", "near"])
        .ends_with(10)
        .tells(&["near", "There are: far, main."]);

    // What comes after the copy is in the far repository all the same: WAL goes to both.
    herd.sql("a", "INSERT INTO orders SELECT generate_series(30001, 40000)");
    archived(herd, &kept_far(herd));
    let whole = herd.sql("a", ROWS);
    match herd.kept() {
        Kept::Directory(directory) => away(&directory),
        bucket @ Kept::Bucket(_) => bucket.names().iter().for_each(|name| drop(bucket.take(name))),
    }
    assert_eq!(restored(herd, &["--repository", "far"], ROWS), whole);
}

#[test]
fn a_repository_that_is_away_stops_nothing_and_gets_what_it_lacks_when_it_is_back() {
    let herd = herd(Kind::Directory, 1, &PAIR).unwrap();
    let (main, other) = (herd.kept(), kept_far(&herd));
    herd.sql("a", "CREATE TABLE orders (n int)");
    for (lost, holds, lacks) in [(herd.far(), &main, &other), (herd.repository(), &other, &main)] {
        away(&lost);
        let segments: Vec<String> = (0..3)
            .map(|n| {
                herd.sql("a", &format!("INSERT INTO orders VALUES ({n})"));
                archived(&herd, holds)
            })
            .collect();
        let failed = herd.sql("a", "SELECT failed_count FROM pg_stat_archiver");
        assert_eq!(failed, "0", "the server was told that its WAL is archived");
        herd.run(&["health"]).says(&["owed"]);
        back(&lost);
        until("what was owed is there", || {
            segments.iter().all(|segment| lacks.has_wal(segment)).then_some(())
        });
        until("nothing is owed any more", || {
            let ran = herd.run(&["health"]);
            (!ran.stdout.contains("owed")).then_some(())
        });
    }
    // Both are away: then PostgreSQL keeps its WAL.
    away(&herd.far());
    away(&herd.repository());
    herd.sql("a", "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'test', 'test')");
    until("the server is told that its WAL is not archived", || {
        (herd.sql("a", "SELECT failed_count > 0 FROM pg_stat_archiver") == "t").then_some(())
    });
    back(&herd.far());
    back(&herd.repository());
    archived(&herd, &main);
}

#[test]
fn a_cluster_whose_first_repository_is_lost_goes_on_with_the_other_one_as_its_first() {
    let mut herd = herd(Kind::Directory, 0, &PAIR).unwrap();
    herd.sql("a", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n");
    away(&herd.far());
    let ran = herd.run(&["backup", "create", "--copy"]).ends_with(3);
    assert!(ran.stderr.contains("ERROR"), "the other repository does not have it: {}", ran.stderr);
    back(&herd.far());
    // What cannot be copied is told by whoever asked for a backup, too.
    let damaged = herd.kept().only("files.zst");
    herd.kept().damage(&damaged);
    let ran = herd.run(&["backup", "create", "--copy"]).ends_with(3);
    assert!(ran.stderr.contains("was left out: could not copy"), "{}", ran.stderr);
    herd.kept().damage(&damaged);
    herd.run(&["backup", "copy", "--to", "far"]).ends_with(0).says(&["1 backups, "]);
    // WAL that a node owed to one of them when it was lost is in the other one.
    let owed = archived(&herd, &kept_far(&herd));
    until("both have it", || herd.kept().has_wal(&owed).then_some(()));
    archived(&herd, &herd.kept());
    let object = herd.kept().only(&format!("/{owed}.zst"));
    herd.kept().take(&object);
    let ran = herd.run(&["backup", "verify", "--quick"]).ends_with(1);
    assert!(ran.stderr.contains("pgherd backup copy --from far --to main"), "{}", ran.stderr);
    herd.run(&["backup", "copy", "--from", "far", "--to", "main"]).ends_with(0).says(&["1 WAL files"]);
    herd.run(&["backup", "verify", "--quick"]).ends_with(0);
    away(&herd.repository());
    herd.edit("backups: {repository: main, copies: {far: {}}}", "backups: {repository: far}");
    herd.apply().ends_with(0);
    herd.is_as_declared();
    herd.sql("a", "INSERT INTO orders SELECT generate_series(1001, 2000)");
    archived(&herd, &kept_far(&herd));
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["backup", "verify", "--full"]).ends_with(0);
    let whole = herd.sql("a", ROWS);
    assert_eq!(restored(&herd, &[], ROWS), whole);

    // A standby is made anew from there, and the whole cluster goes back.
    herd.stop("b", "immediate");
    fs::remove_dir_all(herd.data("b")).unwrap();
    herd.run(&["restore", "inventory", "--to-node", "b"]).ends_with(0).says(&["inventory-b streams"]);
    herd.is_as_declared();
    let before = herd.sql("a", "SET timezone = 'UTC'; SELECT clock_timestamp()");
    herd.sql("a", "DROP TABLE orders");
    archived(&herd, &kept_far(&herd));
    herd.run(&["restore", "inventory", "--in-place", "--target-time", &before, "--yes"])
        .ends_with(0)
        .says(&["on timeline 2"]);
    assert_eq!(herd.sql("a", ROWS), whole);
    herd.is_as_declared();
    archived(&herd, &kept_far(&herd));
}

#[test]
fn a_job_copies_and_expires_in_every_repository() {
    let mut herd = herd(Kind::Directory, 1, &SINGLE).unwrap();
    herd.edit("copies: {far: {}}}", "copies: {far: {when: daily 05:00}}, expire: daily 06:00, keep-full: 1}");
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["run", "inventory/copy-far"]).ends_with(0);
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["run", "inventory/copy-far"]).ends_with(0);
    assert_eq!(kept_far(&herd).with("manifest.json").len(), 2);
    herd.run(&["run", "inventory/expire"]).ends_with(0);
    for kept in [herd.kept(), kept_far(&herd)] {
        assert_eq!(kept.with("manifest.json").len(), 1);
    }
    herd.run(&["backup", "verify", "--full", "--repository", "far"]).ends_with(0);
    herd.run(&["schedule", "list"]).ends_with(0).says(&["inventory/copy-far"]);
}
