//! What can be said of finished backups, and what becomes of them: verify, expire, pin, on repositories of real clusters.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::flips::{Chance, Flip, count};
use crate::herd::{Herd, Ran, SINGLE, is_root, newest_or_15, until};
use crate::kept::Kept;
use crate::kills::{Victim, Work, restored, whole};

const WORDS: &str = "SELECT count(*), md5(string_agg(word, ' ' ORDER BY n)) FROM words";

/// A cluster with so many backups, and WAL behind the last one.
fn backed_up(turn: u32, backups: usize) -> Herd {
    let mut herd = Herd::declare(&newest_or_15(turn), &SINGLE);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.sql("a", "CREATE TABLE words AS SELECT n, md5(n::text) AS word FROM generate_series(1, 20000) AS n");
    for _ in 0..backups {
        herd.run(&["backup", "create"]).ends_with(0);
        herd.sql("a", "UPDATE words SET word = md5(word) WHERE n % 7 = 0");
    }
    let segment = herd.sql("a", "SELECT pg_walfile_name(pg_switch_wal())");
    until("the last segment is archived", || herd.kept().has_wal(&segment).then_some(()));
    herd
}

fn verify(herd: &Herd, args: &[&str]) -> Ran {
    herd.run(&[&["backup", "verify"], args].concat())
}

/// Returns what a verification says, as JSON.
fn verified(ran: &Ran) -> serde_json::Value {
    let last = ran.stdout.lines().last().unwrap_or_else(|| panic!("nothing on stdout\n{}", ran.stderr));
    let said: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(said["message_type"], "backups_verified");
    said
}

fn labels(herd: &Herd) -> Vec<String> {
    whole(&herd.kept())
}

/// Returns the first object of a backup that begins with `name`.
fn of_backup(herd: &Herd, label: &str, name: &str) -> String {
    herd.kept().with(&format!("/{label}/{name}")).remove(0)
}

fn segments(herd: &Herd) -> Vec<String> {
    let is_segment = |name: &String| name.rsplit('/').next().unwrap().len() == 28;
    herd.kept().with("/wal/").into_iter().filter(is_segment).collect()
}

#[test]
fn every_flipped_bit_is_found_and_named() {
    let herd = backed_up(0, 2);
    let label = labels(&herd).remove(0);
    herd.run(&["backup", "pin", &label, "--reason", "the first"]).ends_with(0);
    verify(&herd, &["--full"]).ends_with(0).says(&["sound", "every byte is what was stored"]);
    let mut chance = Chance::new("flipped bits");
    for turn in 0..count(100, 1000) {
        let flip = Flip::choose(&herd.kept(), &mut chance);
        flip.flip(&herd.kept());
        let ran = verify(&herd, &["--full", "--format", "json"]);
        flip.flip(&herd.kept());
        if flip.object == "repository.json" {
            // Then it is no repository.
            assert_eq!(ran.code, 1, "turn {turn}: {flip:?}\n{}", ran.stderr);
            continue;
        }
        assert_eq!(ran.code, 1, "turn {turn}: {flip:?}\n{}\n{}", ran.stdout, ran.stderr);
        let said = verified(&ran);
        let named = |problem: &serde_json::Value| flip.object.ends_with(problem["object"].as_str().unwrap());
        assert!(said["problems"].as_array().unwrap().iter().any(named), "turn {turn}: {flip:?}\n{said}");
    }
    verify(&herd, &["--full"]).ends_with(0);
}

#[test]
fn what_is_missing_cut_off_or_closed_is_told_with_what_it_costs() {
    let herd = backed_up(1, 2);
    let labels = labels(&herd);
    for depth in [&["--quick"][..], &[], &["--full"]] {
        verify(&herd, depth).ends_with(0).says(&[&labels[0], &labels[1], "Nothing is wrong"]);
    }
    verify(&herd, &["--seed", "42"]).ends_with(0).says(&["seed 42"]);
    verify(&herd, &["20200101T000000Z-full"]).ends_with(10);

    // A data object.
    let data = of_backup(&herd, &labels[1], "data/");
    let kept = herd.kept();
    let whole = kept.take(&data);
    verify(&herd, &["--quick"]).ends_with(1).says(&[
        "MISSING",
        "data/000001",
        "files with bytes in it",
        "cannot be restored whole",
    ]);
    verify(&herd, &["--quick", &labels[0]]).ends_with(0).says(&[&labels[0]]).does_not_say(&labels[1]);
    kept.write(&data, &whole[..whole.len() - 1]);
    verify(&herd, &["--quick"]).ends_with(1).says(&["DAMAGED", "expected"]);
    kept.write(&data, &whole);

    // A segment between the two backups, and the last one but one.
    let segments = segments(&herd);
    let between = &segments[segments.len() - 2];
    let good = kept.take(between);
    let ran = verify(&herd, &["--quick"]).ends_with(1);
    assert!(ran.stdout.contains("MISSING") && ran.stdout.contains("LOST"), "{}", ran.stdout);
    kept.write(between, &good);

    // What the os-user may not read is neither whole nor damaged; root's own eyes do not count.
    if let (true, Kept::Directory(root)) = (is_root(), &kept) {
        let data = root.join(&data);
        fs::set_permissions(&data, fs::Permissions::from_mode(0o000)).unwrap();
        verify(&herd, &["--full"]).ends_with(3).says(&["UNREADABLE", "data/000001"]);
        fs::set_permissions(&data, fs::Permissions::from_mode(0o640)).unwrap();
        let folder = data.parent().unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o000)).unwrap();
        verify(&herd, &["--quick"]).ends_with(3).says(&["UNREADABLE"]).does_not_say("MISSING");
        herd.run(&["backup", "expire", "--preview"]).ends_with(1);
        fs::set_permissions(folder, fs::Permissions::from_mode(0o750)).unwrap();
        // A repository that cannot be written cannot be leased.
        let system = data.ancestors().nth(4).unwrap();
        fs::set_permissions(system, fs::Permissions::from_mode(0o550)).unwrap();
        verify(&herd, &["--quick"]).ends_with(1).tells(&["could not store"]);
        fs::set_permissions(system, fs::Permissions::from_mode(0o750)).unwrap();
    }
    verify(&herd, &["--full"]).ends_with(0);
    kept.gone(|| drop(verify(&herd, &["--quick"]).ends_with(10)));
}

#[test]
fn a_backup_that_runs_is_no_damage_and_neither_disturbs_the_other() {
    let herd = backed_up(0, 1);
    let mut making = herd.start(&["backup", "create", "--rate-limit", "4 MiB/s"]);
    until("the second backup stores data", || {
        (herd.kept().with("/lease/backup.json").len() == 1).then_some(())
    });
    let mut looked = 0;
    while !making.has_ended() {
        verify(&herd, &["--full"]).ends_with(0);
        looked += 1;
    }
    assert!(looked > 0);
    making.end().ends_with(0);
    verify(&herd, &["--full"]).ends_with(0);
    assert_eq!(labels(&herd).len(), 2);
}

#[test]
fn expire_shows_first_removes_what_no_rule_keeps_and_nothing_the_second_time() {
    let mut herd = backed_up(0, 3);
    let all = labels(&herd);
    herd.run(&["backup", "expire", "--yes"])
        .ends_with(0)
        .says(&["neither window nor keep-full is stated", "Nothing goes."]);
    herd.edit("backups: {repository: main}", "backups: {repository: main, keep-full: 1}");
    herd.run(&["backup", "pin", &all[0], "--until", "30 days", "--reason", "audit"])
        .ends_with(0)
        .says(&["stays until"]);
    herd.run(&["backup", "pin", "20200101T000000Z-full"]).ends_with(10);
    let shown =
        [&format!("- {}", all[1])[..], "no rule keeps it", "pinned until", "(audit)", "keep-full 1", "Frees"];
    herd.run(&["backup", "expire", "--preview"]).ends_with(0).says(&shown);
    // Nobody is there to ask.
    herd.run(&["backup", "expire"]).ends_with(2).says(&shown).tells(&["no terminal to ask"]);
    assert_eq!(labels(&herd), all);

    herd.run(&["backup", "expire", "--yes"]).ends_with(0).says(&["removed 1 backups"]);
    assert_eq!(labels(&herd), [all[0].clone(), all[2].clone()]);
    verify(&herd, &["--full"]).ends_with(0);
    herd.run(&["backup", "unpin", &all[0]]).ends_with(0);
    herd.run(&["backup", "unpin", &all[0]]).ends_with(0).says(&["was not pinned"]);
    let ran = herd.run(&["backup", "expire", "--yes", "--format", "json"]).ends_with(0);
    let said: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let removed = said.iter().find(|line| line["message_type"] == "backups_expired").unwrap();
    assert_eq!(removed["removed"]["backups"].as_array().unwrap().len(), 1);
    assert!(removed["removed"]["wal_files"].as_u64().unwrap() > 0);
    assert_eq!(labels(&herd), all[2..]);
    herd.run(&["backup", "expire", "--yes"]).ends_with(0).says(&["Nothing goes."]);
    verify(&herd, &["--full"]).ends_with(0);
    // The archive goes on where it was.
    herd.run(&["backup", "create"]).ends_with(0);
    verify(&herd, &["--full"]).ends_with(0);
}

#[test]
fn an_expiry_that_is_killed_leaves_what_can_be_restored_and_the_next_one_finishes() {
    let mut herd = backed_up(1, 4);
    herd.edit("backups: {repository: main}", "backups: {repository: main, keep-full: 1}");
    let all = labels(&herd);
    let words = herd.sql("a", WORDS);
    // Nothing archives into what is put back over and over.
    herd.stop("a", "fast");
    let before = herd.kept().copy();
    let expire = ["backup", "expire", "--yes"];
    herd.run(&expire).ends_with(0);
    let begun = || labels(&herd).len() < all.len();
    let mut work = Work { args: &expire, begun: &begun, usual: Duration::from_millis(50) };
    let mut chance = Chance::new("killed expiries");
    let after = herd.kept().names();
    let (mut turn, mut hit, mut interrupted) = (0, 0, 0);
    while hit < count(6, 50) {
        turn += 1;
        herd.kept().hold(&before);
        let ended = work.killed(&herd, Victim::of(turn), &mut chance);
        let left = labels(&herd);
        assert!(all.ends_with(&left[left.len() - 1..]), "turn {turn}: {left:?}");
        hit += usize::from(ended.code != 0);
        interrupted += usize::from(herd.kept().names() != after && left.len() < all.len());
        verify(&herd, &["--full"]).ends_with(0);
        assert_eq!(restored(&herd, &[], WORDS), words, "turn {turn}: {ended:?}");
        herd.run(&["backup", "expire", "--yes"]).ends_with(0);
        assert_eq!(labels(&herd), all[3..], "turn {turn}: {ended:?}");
        let kept = herd.kept().with("/backup/");
        assert!(
            kept.iter().all(|name| name.contains(&all[3])),
            "turn {turn}: an unfinished removal is left: {kept:?}"
        );
        verify(&herd, &["--full"]).ends_with(0);
    }
    eprintln!("{hit} killed in {turn} turns, {interrupted} in the middle");
}
