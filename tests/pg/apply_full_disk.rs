//! A full disk: said plainly, undone, and nothing left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::herd::{Herd, PAIR, SINGLE, is_root, newest_or_15, text, text_of};

/// A file system in memory that is too small for a data directory; root alone may make one.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", text(&at)]);
        text_of(mount).expect("root may mount");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.args(["--lazy", text(&self.0)]);
        if let Err(said) = text_of(unmount) {
            eprintln!("{said}");
        }
    }
}

/// Has `apply` fail at the first file that is larger than 4 MB, and returns what it says.
fn apply_with_small_files(herd: &Herd) -> String {
    let prepared = herd.command(&["apply", "--yes"]);
    let mut limited = Command::new("prlimit");
    limited.args(["--fsize=4000000", "--"]).arg(prepared.get_program()).args(prepared.get_args());
    limited.current_dir(herd.root()).env_clear();
    limited.envs(prepared.get_envs().filter_map(|(name, value)| Some((name, value?))));
    text_of(limited).expect_err("it fails")
}

/// Root sees a file system without room; an ordinary user, who cannot mount one, a limit on the size of files.
#[test]
fn a_birth_without_room_says_so_and_leaves_nothing() {
    let herd = Herd::declare(&newest_or_15(0), &PAIR);
    if is_root() {
        let small = Small::mount(herd.path("data"));
        let apply = herd.apply().ends_with(1);
        apply.tells(&[
            "ERROR:  could not initdb inventory-a",
            "No space left on device",
            "Free space on the file system of",
            "was undone",
        ]);
        herd.nothing_is_left();
        drop(small);
    } else {
        let said = apply_with_small_files(&herd);
        assert!(said.contains("ERROR:  could not initdb inventory-a"), "{said}");
        herd.nothing_is_left();
    }
    // With room again the same command does it.
    herd.apply().ends_with(0);
}

#[test]
fn a_standby_without_room_is_undone_and_the_primary_goes_on() {
    if !is_root() {
        // The clone of an ordinary user meets the limit on the size of files at the first WAL segment.
        return a_standby_that_may_not_write_is_undone();
    }
    let mut herd = Herd::up(&newest_or_15(1), &SINGLE);
    let small = Small::mount(herd.path("small"));
    fs::set_permissions(&small.0, fs::Permissions::from_mode(0o777)).expect("it is ours");
    herd.add_node("b");
    let (from, to) = (herd.data("b"), small.0.join("b"));
    herd.edit(text(&from), text(&to));
    let apply = herd.apply().ends_with(1);
    apply.tells(&[
        "ERROR:  could not clone inventory-b",
        "No space left on device",
        "Free space on the file system of",
    ]);
    assert!(!to.exists() && !herd.facts("b").exists());
    assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_replication_slots"), "0");
    herd.edit(text(&to), text(&from));
    herd.apply().ends_with(0);
    herd.is_as_declared();
}

fn a_standby_that_may_not_write_is_undone() {
    let mut herd = Herd::up(&newest_or_15(1), &SINGLE);
    let closed = herd.path("closed");
    fs::create_dir(&closed).expect("a directory");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("it is ours");
    herd.add_node("b");
    let (from, to) = (herd.data("b"), closed.join("b"));
    herd.edit(text(&from), text(&to));
    herd.apply()
        .ends_with(1)
        .tells(&["ERROR:  could not make the directories of inventory-b", "Permission denied"]);
    assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_replication_slots"), "0");
    herd.edit(text(&to), text(&from));
    herd.apply().ends_with(0);
}

#[test]
fn a_standby_that_cannot_be_made_anew_is_the_nodes_again_when_its_disk_comes_back() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.stop("b", "fast");
    let (data, away) = (herd.data("b"), herd.path("not-mounted"));
    fs::rename(&data, &away).expect("it is there");
    let facts = || {
        ["marker.json", "profile.json", "passfile"]
            .map(|name| fs::read_to_string(herd.facts("b").join(name)).expect("it is there"))
    };
    let before = facts();
    let said = apply_with_small_files(&herd);
    assert!(said.contains("ERROR:  could not clone inventory-b"), "{said}");
    assert!(!data.exists());
    assert_eq!(facts(), before);
    assert_eq!(herd.sql("a", "SELECT slot_name FROM pg_replication_slots"), "inventory_b");
    fs::rename(&away, &data).expect("it is there");
    herd.plan().ends_with(0).says(&["inventory-b", "it is stopped"]);
    herd.apply().ends_with(0);
    herd.is_as_declared();
}
