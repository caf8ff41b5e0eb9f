//! Several repositories a cluster: WAL in each, backups copied from the first into another one, and what can be done when the first is lost.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use crate::herd::{Herd, PAIR, SINGLE, Shape, as_server, newest_or_15, text, text_of, until};
use crate::kept::{Kept, Kind};

/// A herd with the repository `main` of this kind, and `far` in a directory of its own.
fn herd(kind: Kind, turn: u32, shape: &Shape<'_>) -> Option<Herd> {
    let mut herd = Herd::declare(&newest_or_15(turn), shape);
    if !herd.keep_backups_in(kind) {
        return None;
    }
    let far = far(&herd);
    herd.edit(
        "repositories: {main: {",
        &format!("repositories: {{far: {{url: file://{}}}, main: {{", far.display()),
    );
    herd.edit("backups: {repository: main}", "backups: {repository: main, copies: {far: {}}}");
    herd.apply().ends_with(0).says(&["see it arrive in repository main", "see it arrive in repository far"]);
    herd.is_as_declared();
    Some(herd)
}

fn far(herd: &Herd) -> PathBuf {
    herd.path("far")
}

fn kept_far(herd: &Herd) -> Kept {
    Kept::Directory(far(herd))
}

/// Finishes a segment and waits until a repository has it.
fn archived(herd: &Herd, kept: &Kept) -> String {
    let sql = "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')";
    let segment = herd.sql("a", sql);
    until(&format!("{segment} is there"), || kept.has_wal(&segment).then_some(()));
    segment
}

fn away(path: &Path) {
    fs::rename(path, path.with_extension("away")).unwrap();
}

fn back(path: &Path) {
    fs::rename(path.with_extension("away"), path).unwrap();
}

/// Restores from `far` alone and returns how many rows the copy has.
fn rows_from_far(herd: &Herd, more: &[&str]) -> String {
    let copies = herd.path("copies");
    fs::create_dir_all(&copies).unwrap();
    let owner = fs::metadata(far(herd)).unwrap();
    chown(&copies, Some(owner.uid()), Some(owner.gid())).unwrap();
    let to = copies.join("r");
    let mut args = vec!["restore", "inventory", "--to-dir", text(&to)];
    args.extend(more);
    herd.run(&args).ends_with(0).says(&["accepts writes"]);
    let mut psql = as_server(&herd.installation().bin().join("psql"));
    psql.args([
        "-XAtq",
        "-U",
        "postgres",
        "-d",
        "postgres",
        "-c",
        "SELECT count(*), sum(n) FROM orders",
        "-h",
    ]);
    psql.arg(herd.path("copies/r-pgherd/run/inventory-restored")).args(["-p", "5432"]);
    let found = text_of(psql).unwrap();
    herd.program("pg_ctl", &["-D", text(&to), "-m", "fast", "-w", "stop"]);
    fs::remove_dir_all(&copies).unwrap();
    found.trim().to_owned()
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
    let whole = herd.sql("a", "SELECT count(*), sum(n) FROM orders");
    match herd.kept() {
        Kept::Directory(directory) => away(&directory),
        bucket @ Kept::Bucket(_) => bucket.names().iter().for_each(|name| drop(bucket.take(name))),
    }
    assert_eq!(rows_from_far(herd, &["--repository", "far"]), whole);
}

#[test]
fn a_repository_that_is_away_stops_nothing_and_gets_what_it_lacks_when_it_is_back() {
    let herd = herd(Kind::Directory, 1, &PAIR).unwrap();
    let (main, other) = (herd.kept(), kept_far(&herd));
    herd.sql("a", "CREATE TABLE orders (n int)");
    for (lost, holds, lacks) in [(far(&herd), &main, &other), (herd.repository(), &other, &main)] {
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
    away(&far(&herd));
    away(&herd.repository());
    herd.sql("a", "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'test', 'test')");
    until("the server is told that its WAL is not archived", || {
        (herd.sql("a", "SELECT failed_count > 0 FROM pg_stat_archiver") == "t").then_some(())
    });
    back(&far(&herd));
    back(&herd.repository());
    archived(&herd, &main);
}

#[test]
fn a_cluster_whose_first_repository_is_lost_goes_on_with_the_other_one_as_its_first() {
    let mut herd = herd(Kind::Directory, 0, &SINGLE).unwrap();
    herd.sql("a", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n");
    away(&far(&herd));
    let ran = herd.run(&["backup", "create", "--copy"]).ends_with(3);
    assert!(ran.stderr.contains("ERROR"), "the other repository does not have it: {}", ran.stderr);
    back(&far(&herd));
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
    let whole = herd.sql("a", "SELECT count(*), sum(n) FROM orders");
    assert_eq!(rows_from_far(&herd, &[]), whole);
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
