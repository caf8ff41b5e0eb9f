//! Encrypted repositories of real clusters: the key that is not the one, its exchange under load, and what becomes of it when something goes wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::flips::{Chance, count};
use crate::herd::{Herd, PAIR, REPO_KEY, SINGLE, files_below};
use crate::kills::{Victim, Work, archived, restored};
use crate::server::{installations, newest};

const NEW_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const STORED: &str = "a-row-that-nobody-else-should-read";

/// A herd with an encrypted repository and one backup in it.
fn kept(herd: &mut Herd) {
    herd.keep_backups_encrypted();
    herd.apply().ends_with(0);
    herd.sql(
        "a",
        &format!(
            "CREATE TABLE moments AS SELECT '{STORED}'::text AS note, n FROM generate_series(1, 2000) n"
        ),
    );
    herd.run(&["backup", "create"]).ends_with(0);
}

/// Restores into a directory of its own and looks whether everything is there.
#[track_caller]
fn restores(herd: &Herd, name: &str) {
    let copies = herd.path("copies");
    fs::create_dir_all(&copies).unwrap();
    fs::set_permissions(&copies, fs::Permissions::from_mode(0o777)).unwrap();
    let to = copies.join(name);
    herd.run(&["restore", "inventory", "--to-dir", to.to_str().unwrap(), "--no-start"]).ends_with(0);
}

/// The files that hold what clients wrote.
fn holds(herd: &Herd, text: &str) -> bool {
    files_below(&herd.repository()).iter().any(|file| {
        let bytes = fs::read(file).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

fn declare(herd: &mut Herd, from: &str, to: &str) {
    herd.edit(&format!("encrypt: {{env: {from}}}"), to);
}

#[test]
fn nothing_that_clients_wrote_is_read_in_the_repository_and_another_key_changes_nothing() {
    for installation in installations() {
        let mut herd = Herd::declare(&installation, &SINGLE);
        // Uncompressed it would show.
        kept(&mut herd);
        assert!(!holds(&herd, STORED));
        assert!(!holds(&herd, REPO_KEY));
        let manifests =
            files_below(&herd.repository()).into_iter().filter(|file| file.ends_with("manifest.json"));
        for manifest in manifests {
            assert!(serde_json::from_slice::<serde_json::Value>(&fs::read(manifest).unwrap()).is_err());
        }
        herd.run(&["backup", "verify", "--full"]).ends_with(0);
        restores(&herd, "one");

        // Another key is seen before it is used: the servers go on with the one that fits.
        herd.variable("REPO_KEY", Some(NEW_KEY));
        herd.run(&["plan"]).ends_with(0).says(&["it has other credentials"]);
        herd.apply()
            .ends_with(1)
            .tells(&["cannot open the repository main", "What it had before was left as it was"]);
        herd.variable("REPO_KEY", Some("too-short"));
        herd.run(&["plan"])
            .ends_with(2)
            .tells(&["what is declared as the key of repository main is none", "openssl rand -hex 32"]);
        herd.variable("REPO_KEY", Some(REPO_KEY));
        herd.run(&["plan", "--detailed-exitcode"]).ends_with(0);
        // Nor is it read in the clear.
        declare(&mut herd, "REPO_KEY", "storage-class: x");
        herd.edit(", storage-class: x", "");
        herd.run(&["backup", "list"]).tells(&["encrypted"]);
    }
}

#[test]
fn the_key_is_exchanged_under_load_and_the_old_one_opens_nothing_any_more() {
    let mut herd = Herd::declare(&newest(), &PAIR);
    kept(&mut herd);
    let data = |herd: &Herd| -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
        let all = files_below(&herd.repository())
            .into_iter()
            .filter(|file| !file.to_string_lossy().contains("key"));
        let objects = all.filter(|file| file.to_string_lossy().contains("/backup/"));
        objects.map(|file| (file.clone(), fs::metadata(file).unwrap().modified().unwrap())).collect()
    };
    let before = data(&herd);
    herd.variable("OLD_KEY", Some(REPO_KEY));
    herd.variable("REPO_KEY", Some(NEW_KEY));
    // The new one alone is not taken; nor is anything exchanged before every host has both.
    herd.run(&["repo", "rekey"]).ends_with(4).tells(&["does not have the declared keys", "pgherd apply"]);
    declare(&mut herd, "REPO_KEY", "encrypt: {env: REPO_KEY}, encrypt-before: {env: OLD_KEY}");
    herd.apply().ends_with(0);
    let backup = herd.start(&["backup", "create"]);
    herd.run(&["repo", "rekey", "main"]).ends_with(0).says(&["wrapped anew", "Both keys open it now"]);
    backup.end().ends_with(0);
    herd.run(&["repo", "rekey"]).ends_with(0);
    herd.run(&["repo", "rekey", "--drop-old"]).ends_with(0).says(&["Only the declared key opens it now"]);
    let again = herd.run(&["repo", "rekey", "--drop-old", "--format", "json"]).ends_with(0).json();
    assert_eq!(again["rekeyed"]["rewrapped"], 0, "{again}");
    herd.edit(", encrypt-before: {env: OLD_KEY}", "");
    herd.apply().ends_with(0);
    herd.run(&["plan", "--detailed-exitcode"]).ends_with(0);
    for (file, modified) in before {
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), modified, "{}", file.display());
    }
    herd.run(&["backup", "verify", "--full"]).ends_with(0);
    restores(&herd, "after");
    // The old one opens nothing; whoever has none removes the cluster all the same, and what opened the repository with it.
    herd.variable("REPO_KEY", Some(REPO_KEY));
    herd.apply().ends_with(1).tells(&["cannot open the repository main"]);
    herd.variable("REPO_KEY", None);
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    assert!(files_below(&herd.path("config")).is_empty());
}

/// Returns one key after the other.
fn key(number: usize) -> String {
    if number == 0 { REPO_KEY.to_owned() } else { format!("{number:064x}") }
}

#[test]
fn an_exchange_that_is_killed_at_any_moment_loses_nothing_and_the_next_one_ends_it() {
    const ROWS: &str = "SELECT count(*), sum(n) FROM moments";
    let mut herd = Herd::declare(&newest(), &SINGLE);
    kept(&mut herd);
    for _ in 0..count(5, 11) {
        herd.run(&["backup", "create"]).ends_with(0);
    }
    declare(&mut herd, "REPO_KEY", "encrypt: {env: REPO_KEY}, encrypt-before: {env: OLD_KEY}");
    let halves: [&[&str]; 2] = [&["repo", "rekey"], &["repo", "rekey", "--drop-old"]];
    let exchange = |herd: &Herd, half: &[&str]| {
        let ran = herd.run(&[half, &["--format", "json"]].concat()).ends_with(0);
        let rekeyed = &ran.json()["rekeyed"];
        (rekeyed["rewrapped"].as_u64().unwrap(), rekeyed["documents"].as_u64().unwrap())
    };
    let mut chance = Chance::new("kills of an exchange of keys");
    let (mut turn, mut hit, mut parts, mut usual) = (0, 0, 0, Duration::from_millis(20));
    let documents = |herd: &Herd| -> Vec<(String, u64)> {
        herd.kept().objects().into_iter().filter(|(name, _)| name.contains("/key")).collect()
    };
    while hit < count(3, 50) {
        // Each turn kills the one half, and has the other one done.
        herd.variable("OLD_KEY", Some(&key(turn)));
        herd.variable("REPO_KEY", Some(&key(turn + 1)));
        herd.apply().ends_with(0);
        herd.sql("a", "INSERT INTO moments SELECT 'later', generate_series(1, 100)");
        archived(&herd, &herd.kept());
        let rows = herd.sql("a", ROWS);
        for (number, half) in halves.into_iter().enumerate() {
            if number == turn % 2 {
                let before = documents(&herd);
                let begun = || documents(&herd) != before;
                let mut work = Work { args: half, begun: &begun, usual };
                let ended = work.killed(&herd, Victim::of(turn / 2), &mut chance);
                usual = work.usual;
                hit += usize::from(ended.code != 0);
                herd.run(&["backup", "verify", "--full"]).ends_with(0);
                assert_eq!(restored(&herd, &[], ROWS), rows, "turn {turn}: {ended:?}");
            }
            let (rewrapped, of) = exchange(&herd, half);
            parts += usize::from(rewrapped > 0 && rewrapped < of);
            assert_eq!(exchange(&herd, half).0, 0, "turn {turn}: it was ended");
        }
        herd.run(&["backup", "verify", "--full"]).ends_with(0);
        turn += 1;
    }
    eprintln!("{hit} killed in {turn} turns, {parts} in the middle of the data keys");
    // The declared one alone opens all of it.
    herd.edit(", encrypt-before: {env: OLD_KEY}", "");
    herd.apply().ends_with(0);
    herd.run(&["backup", "verify", "--full"]).ends_with(0);
    assert_eq!(restored(&herd, &[], ROWS), herd.sql("a", ROWS));
}
