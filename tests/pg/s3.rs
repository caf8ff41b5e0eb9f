//! Clusters whose WAL and backups are in a bucket of a real S3 server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::herd::{ENCRYPT, Herd, PAIR, REPO_KEY, SINGLE, files_below, until};
use crate::kept::{Kept, Kind, PREFIX};
use crate::server::{installations, newest};
use crate::weed::{SECRET_KEY, weed};

#[test]
fn a_cluster_keeps_its_wal_and_its_backups_in_a_bucket_on_every_major() {
    for (installation, more) in installations().into_iter().zip(["", ENCRYPT].into_iter().cycle()) {
        let mut herd = Herd::declare(&installation, &PAIR);
        let Some(url) = herd.keep_backups_in_a_bucket(more) else { return };
        let shown = herd.run(&["plan"]).ends_with(0);
        shown.says(&["access to repository main", &format!("repository main in {url}")]);
        let applied = herd.apply().ends_with(0);
        herd.run(&["plan", "--detailed-exitcode"]).ends_with(0);
        let access = files_below(&herd.path("config/repositories"));
        assert_eq!(access.len(), 1, "{access:?}");
        let mode = fs::metadata(&access[0]).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        for file in files_below(&herd.path("state/journal")) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            assert!(!text.contains(SECRET_KEY) && !text.contains(REPO_KEY), "{}", file.display());
        }
        assert!(!applied.stdout.contains(SECRET_KEY) && !applied.stderr.contains(SECRET_KEY));

        herd.sql("a", "CREATE TABLE moments AS SELECT generate_series(1, 1000) AS n");
        herd.run(&["backup", "create"]).ends_with(0).says(&["all in the repository"]);
        herd.sql("a", "INSERT INTO moments SELECT generate_series(1001, 1500)");
        let to = herd.path("copies/one").display().to_string();
        fs::create_dir_all(herd.path("copies")).unwrap();
        fs::set_permissions(herd.path("copies"), fs::Permissions::from_mode(0o777)).unwrap();
        herd.run(&["restore", "inventory", "--to-dir", &to]).ends_with(0);
        herd.run(&["backup", "list"]).ends_with(0);
        herd.run(&["backup", "verify", "--full"]).ends_with(0);
        herd.run(&["wal", "list"]).ends_with(0);
        herd.run(&["status"]).ends_with(0).says(&["restorable"]);
        herd.run(&["switchover", "--to", "b", "--yes"]).ends_with(0);
        herd.run(&["plan", "--detailed-exitcode"]).ends_with(0);
        herd.run(&["backup", "expire", "--yes"]).ends_with(0);
        herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0).tells(&[&url]);
        assert!(files_below(&herd.path("config")).is_empty());
    }
}

#[test]
fn credentials_that_do_not_open_it_are_told_before_they_are_used_and_new_ones_come_to_every_host() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    if herd.keep_backups_in_a_bucket("").is_none() {
        return;
    }
    herd.variable("S3_SECRET_KEY", Some("not-the-one"));
    herd.apply().ends_with(1).tells(&[
        "cannot open the repository main",
        "SignatureDoesNotMatch",
        "secret key",
    ]);
    assert!(files_below(&herd.path("config/repositories")).is_empty());
    herd.variable("S3_SECRET_KEY", Some(SECRET_KEY));
    herd.apply().ends_with(0);

    // The next ones are wrong: those that work stay, and WAL goes on being archived.
    herd.variable("S3_SECRET_KEY", Some("not-the-one"));
    herd.run(&["plan"]).ends_with(0).says(&["it has other credentials"]);
    herd.apply().ends_with(1).tells(&["What it had before was left as it was"]);
    let before = herd.sql("a", "SELECT archived_count FROM pg_stat_archiver");
    herd.sql("a", "CREATE TABLE t AS SELECT generate_series(1, 10) AS n; SELECT pg_switch_wal()");
    until("WAL is archived", || {
        (herd.sql("a", "SELECT archived_count FROM pg_stat_archiver") != before).then_some(())
    });
    assert_eq!(herd.sql("a", "SELECT failed_count FROM pg_stat_archiver"), "0");
    herd.variable("S3_SECRET_KEY", None);
    herd.run(&["plan"]).ends_with(1).tells(&["S3_SECRET_KEY"]);
}

#[test]
fn a_key_that_does_not_open_what_is_in_the_repository_never_comes_to_a_host() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    if !herd.keep_backups_in(Kind::EncryptedBucket) {
        return;
    }
    herd.apply().ends_with(0);
    let another = REPO_KEY.replace('5', "6");
    herd.variable("REPO_KEY", Some(&another));
    herd.run(&["plan"]).ends_with(0).says(&["it has other credentials"]);
    herd.apply().ends_with(1).tells(&[
        "cannot open the repository main",
        "does not open: it is for key ",
        "What it had before was left as it was",
        "encrypt-before",
    ]);
    herd.sql("a", "CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    let segment = herd.sql("a", "SELECT pg_walfile_name(pg_switch_wal())");
    until("WAL is archived", || herd.kept().has_wal(&segment).then_some(()));
    assert_eq!(herd.sql("a", "SELECT failed_count FROM pg_stat_archiver"), "0");

    // Beside the one that it was encrypted with it may come: it encrypts from now on.
    herd.variable("OLD_KEY", Some(REPO_KEY));
    herd.edit("encrypt: {env: REPO_KEY}", "encrypt: {env: REPO_KEY}, encrypt-before: {env: OLD_KEY}");
    herd.apply().ends_with(0);
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["backup", "verify", "--full"]).ends_with(0);
}

/// Returns how many versions the bucket keeps of an object.
fn versions(herd: &Herd, name: &str) -> usize {
    let Kept::Bucket(bucket) = herd.kept() else { panic!("it is in a bucket") };
    let name = format!("{PREFIX}/{name}");
    weed().expect("there is a bucket").now(|client| async move {
        let found = client.list_object_versions().bucket(bucket).prefix(name).send().await.unwrap();
        found.versions().len()
    })
}

#[test]
fn what_object_lock_keeps_is_told_by_an_expiry_and_is_no_error() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    let lock = format!("{ENCRYPT}, object-lock: 1 day, object-lock-mode: governance");
    if herd.keep_backups_in_a_bucket(&lock).is_none() {
        return;
    }
    herd.edit("backups: {repository: main}", "backups: {repository: main, keep-full: 1}");
    herd.apply().ends_with(0);
    herd.sql("a", "CREATE TABLE moments AS SELECT generate_series(1, 1000) AS n");
    herd.run(&["backup", "create"]).ends_with(0);
    let first = herd.kept().only("/manifest.json");
    let first = first.split('/').nth(3).expect("CLUSTER/SYSTEM/backup/LABEL").to_owned();
    herd.sql("a", "INSERT INTO moments SELECT generate_series(1001, 1500)");
    herd.run(&["backup", "create"]).ends_with(0);

    let key = herd.kept().only("/key/wal-00000001.json");
    let before = (versions(&herd, &key), versions(&herd, "repository.json"));
    herd.run(&["backup", "expire", "--preview"]).ends_with(0).says(&[
        &first,
        "locked until",
        "Nothing goes.",
    ]);
    assert_eq!((versions(&herd, &key), versions(&herd, "repository.json")), before);
    herd.run(&["backup", "expire", "--yes"]).ends_with(0).says(&[&first, "locked until"]);
    // What is needed for longer than it is locked is locked anew.
    assert_eq!((versions(&herd, &key), versions(&herd, "repository.json")), (before.0 + 1, before.1 + 1));
    herd.run(&["backup", "verify", "--full"]).ends_with(0).says(&[&first]);
    let to = herd.path("copies/first").display().to_string();
    fs::create_dir_all(herd.path("copies")).unwrap();
    fs::set_permissions(herd.path("copies"), fs::Permissions::from_mode(0o777)).unwrap();
    herd.run(&["restore", "inventory", "--to-dir", &to, "--backup", &first]).ends_with(0);

    // Without the lock it goes, as far as anybody sees.
    herd.edit(", object-lock: 1 day, object-lock-mode: governance", "");
    herd.apply().ends_with(0);
    herd.run(&["backup", "expire", "--yes"]).ends_with(0).says(&["removed 1 backups"]);
    herd.run(&["backup", "list"]).ends_with(0).does_not_say(&first);
}

#[test]
fn object_lock_in_a_bucket_that_was_made_without_it_is_refused_before_wal_comes() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    if herd.keep_backups_in_a_bucket("").is_none() {
        return;
    }
    herd.edit("secret-key: {env: S3_SECRET_KEY}", "secret-key: {env: S3_SECRET_KEY}, object-lock: 30 days");
    herd.apply().ends_with(1).tells(&["object-lock", "the bucket was made without it"]);
    assert!(files_below(&herd.path("config/repositories")).is_empty());
}
