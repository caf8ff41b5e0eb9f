//! The operation lock and the primary record, as operators on other machines see them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use pgherd::engine::record::Actor;
use pgherd::engine::shared_lock::Held;
use pgherd::repo::seal;

use crate::herd::{Herd, SINGLE, newest_or_15};

fn herd(turn: u32) -> Herd {
    let mut herd = Herd::declare(&newest_or_15(turn), &SINGLE);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd
}

fn lock(herd: &Herd) -> PathBuf {
    herd.repository().join("inventory/lock.json")
}

/// Puts the lock of an operator on another machine into the repository.
fn hold_elsewhere(herd: &Herd, operation: Option<&str>, expires: SignedDuration) {
    let now = Timestamp::now();
    let operation = operation.map(|id| serde_json::from_value(id.into()).expect("an id"));
    let by =
        Actor { user: "ada".to_owned(), host: "station2".to_owned(), pid: 1, version: "0.1.0".to_owned() };
    let held = Held {
        format: 1,
        token: "0123456789abcdef".to_owned(),
        operation,
        by,
        boot: "another machine".to_owned(),
        pid_namespace: String::new(),
        since: now - SignedDuration::from_secs(600),
        expires: now + expires,
    };
    let file = lock(herd);
    fs::write(&file, seal::write_document(&held)).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
    let owner = fs::metadata(herd.repository()).expect("it is there");
    chown(&file, Some(owner.uid()), Some(owner.gid())).expect("given away");
}

fn declare_a_change(herd: &mut Herd) {
    herd.edit("work_mem: 4 MiB", "work_mem: 5 MiB");
}

#[test]
fn a_cluster_that_another_station_changes_is_locked() {
    let mut herd = herd(0);
    assert!(!lock(&herd).exists(), "a lock is given back");
    declare_a_change(&mut herd);
    hold_elsewhere(&herd, Some("7f3a"), SignedDuration::from_secs(60));
    herd.apply().ends_with(5).tells(&[
        "cluster inventory is locked by operation 7f3a",
        "Held in the repository by ada on station2",
    ]);
    assert_ne!(herd.sql("a", "SHOW work_mem"), "5MB");
    // It has not been renewed for longer than clocks may differ; its operation is unfinished all the same.
    hold_elsewhere(&herd, Some("7f3a"), SignedDuration::from_secs(-120));
    herd.apply()
        .ends_with(5)
        .tells(&["cluster inventory has the unfinished operation 7f3a", "Where its journal is"]);
    hold_elsewhere(&herd, None, SignedDuration::from_secs(-120));
    herd.apply().ends_with(0);
    assert_eq!(herd.sql("a", "SHOW work_mem"), "5MB");
    assert!(!lock(&herd).exists());
    hold_elsewhere(&herd, Some("7f3a"), SignedDuration::from_secs(60));
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(5);
    fs::remove_file(lock(&herd)).expect("removed");
}

#[test]
fn whoever_finds_the_middle_of_another_stations_change_is_told_whose_it_is() {
    let herd = herd(2);
    // As in a switchover between the stop of one and the promotion of another.
    herd.stop("a", "fast");
    hold_elsewhere(&herd, Some("7f3a"), SignedDuration::from_secs(60));
    for change in [["switchover", "--yes"], ["failover", "--yes"], ["failback", "--yes"]] {
        herd.run(&change).ends_with(5).tells(&[
            "cluster inventory is locked by operation 7f3a",
            "Held in the repository by ada on station2",
            "unless it is renewed, until",
            "or at once with --force: pgherd operation takeover 7f3a",
        ]);
    }
    // Nobody has it any more: then what is in the way is told.
    fs::remove_file(lock(&herd)).expect("removed");
    herd.run(&["switchover", "--yes"]).ends_with(4).tells(&["its primary a is stopped"]);
    herd.apply().ends_with(0);
}

#[test]
fn who_is_primary_stands_in_the_repository() {
    let herd = herd(1);
    let record = || -> serde_json::Value {
        let text = fs::read(herd.repository().join("inventory/primary.json")).expect("a record");
        serde_json::from_slice(&text).expect("JSON")
    };
    let first = record();
    let system = herd.sql("a", "SELECT system_identifier FROM pg_control_system()");
    assert_eq!(
        (&first["node"], &first["timeline"], &first["term"], &first["system_identifier"]),
        (&"a".into(), &1.into(), &1.into(), &system.into())
    );
    fs::remove_file(herd.repository().join("inventory/primary.json")).expect("removed");
    herd.plan().ends_with(0).says(&["+ inventory-a   record it as primary in repository main"]);
    herd.apply().ends_with(0);
    assert_eq!(record()["node"], "a");
    herd.is_as_declared();
}
