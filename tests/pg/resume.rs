//! Backups that were aborted, and those that go on with them, under load.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, chown};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::apply_kills::Dice;
use crate::herd::{Running, SINGLE, is_root, newest_or_15, until};
use crate::kept::Kind;
use crate::restore::{Shop, same};

/// Two data objects and some more, of what does not shrink.
const BALLAST: u64 = 168 << 20;

/// A shop with a large file beside its relations, if this machine can have such a repository.
fn shop(kind: Kind, turn: u32) -> Option<Shop> {
    let shop = Shop::up_with(kind, &newest_or_15(turn), &SINGLE)?;
    let mut chance = fs::File::open("/dev/urandom").unwrap().take(BALLAST);
    io::copy(&mut chance, &mut fs::File::create(ballast(&shop)).unwrap()).unwrap();
    if is_root() {
        let owner = fs::metadata(shop.herd.data("a")).unwrap();
        let (uid, gid) =
            (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
        chown(ballast(&shop), Some(uid), Some(gid)).unwrap();
    }
    Some(shop)
}

fn ballast(shop: &Shop) -> PathBuf {
    shop.herd.data("a").join("base/ballast")
}

/// Changes a page of the ballast, and leaves its size and its time as they were.
fn change(shop: &Shop, at: u64) {
    let file = fs::File::options().write(true).open(ballast(shop)).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[7; 8192], at).unwrap();
    file.set_modified(before).unwrap();
}

/// Begins a backup that is slow enough to be aborted in the middle.
fn slow(shop: &Shop) -> Running {
    shop.herd.start(&["backup", "create", "--workers", "1", "--rate-limit", "30 MiB/s"])
}

fn notes(shop: &Shop) -> usize {
    shop.kept().with("/progress/").len()
}

/// Begins a backup and ends it by a signal to itself or to its child, after it has noted something more.
fn abort(shop: &Shop, signal: Signal, child: bool) {
    let before = notes(shop);
    let mut running = slow(shop);
    until("it has noted what it stored", || {
        assert!(!running.has_ended(), "it ended: {:?}", running.so_far());
        // The first note of one that goes on says only that it does.
        (notes(shop) > before + usize::from(before > 0)).then_some(())
    });
    if child {
        for (pid, _) in children(shop) {
            rustix::process::kill_process(pid, signal).ok();
        }
    } else {
        running.signal(signal);
    }
    assert_ne!(running.end().code, 0);
    until("its child has ended", || children(shop).is_empty().then_some(()));
}

fn children(shop: &Shop) -> Vec<(rustix::process::Pid, String)> {
    let mut all = shop.herd.processes();
    all.retain(|(_, line)| line.trim_end().ends_with("/pgherd node"));
    all
}

fn labels(shop: &Shop) -> Vec<String> {
    let mut labels: Vec<String> =
        shop.kept().with("/backup/").iter().map(|name| name.split('/').nth(3).unwrap().to_owned()).collect();
    labels.dedup();
    labels
}

#[track_caller]
fn create(shop: &Shop) -> serde_json::Value {
    let ran = shop.herd.run(&["backup", "create", "--format", "json"]).ends_with(0);
    serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap()
}

/// Restores to a moment of now, and holds everything to be there.
#[track_caller]
fn comes_back(shop: &Shop, name: &str) {
    let moment = shop.moment(name);
    shop.archive();
    shop.restore(&["--target-name", name]).ends_with(0);
    same(&shop.dump_of_copy(), &moment.dump, name);
    assert!(fs::read(shop.to().join("base/ballast")).unwrap() == fs::read(ballast(shop)).unwrap());
    shop.remove();
}

/// Aborts backups again and again, and has the next one go on.
fn goes_on(shop: &Shop, seed: u64) {
    let load = shop.load();
    let mut dice = Dice::new(seed);
    for (signal, child) in [(Signal::KILL, false), (Signal::KILL, true), (Signal::INT, false)] {
        abort(shop, signal, child);
        assert_eq!(labels(shop).len(), 1, "each goes on with the one before");
        change(shop, dice.below(BALLAST / 8192) * 8192);
    }
    let label = labels(shop).remove(0);
    shop.herd.run(&["backup", "expire", "--yes"]).ends_with(0);
    assert_eq!(labels(shop), std::slice::from_ref(&label), "the next one goes on with it");

    let created = create(shop);
    assert_eq!(created["label"], label.as_str());
    let taken_over = created["taken_over_bytes"].as_u64().unwrap();
    assert!(taken_over >= 60 << 20, "{created}");
    assert!(taken_over <= created["stored_bytes"].as_u64().unwrap(), "{created}");
    assert_eq!(notes(shop), 0);
    shop.herd.run(&["backup", "verify", "--full"]).ends_with(0);
    drop(load);
    comes_back(shop, "after");

    // One that is whole is not gone on with.
    let other = create(shop);
    assert_eq!(other["taken_over_bytes"], 0);
    assert_ne!(other["label"], label.as_str());
}

#[test]
fn a_backup_goes_on_with_the_one_that_was_aborted_and_what_has_changed_is_stored_anew() {
    goes_on(&shop(Kind::Directory, 0).unwrap(), 11);
}

#[test]
fn an_encrypted_backup_goes_on_with_its_own_key() {
    goes_on(&shop(Kind::EncryptedDirectory, 1).unwrap(), 12);
}

#[test]
fn a_backup_in_an_encrypted_bucket_goes_on() {
    if let Some(shop) = shop(Kind::EncryptedBucket, 0) {
        goes_on(&shop, 13);
    }
}

#[test]
fn what_an_aborted_backup_has_lost_meanwhile_is_stored_again() {
    let shop = shop(Kind::Directory, 1).unwrap();
    abort(&shop, Signal::KILL, false);
    let kept = shop.kept();
    let data = kept.with("/data/");
    for name in &data {
        kept.take(name);
    }
    let created = create(&shop);
    assert_eq!(created["taken_over_bytes"], 0, "{created}");
    shop.herd.run(&["backup", "verify", "--full"]).ends_with(0);
    comes_back(&shop, "lost");
}
