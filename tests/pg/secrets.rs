//! No secret is in a command line, a log, a journal, a saved plan, an output, or a file that others can read.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::herd::{APP_PASSWORD, BI_PASSWORD, Herd, PAIR, newest_or_15, processes};

/// The passwords of the file and those that pgherd has generated.
fn secrets(herd: &Herd) -> Vec<String> {
    let passfile = fs::read_to_string(herd.facts("a").join("passfile")).expect("readable");
    let generated = passfile.lines().filter_map(|line| line.rsplit(':').next()).map(str::to_owned);
    let all: Vec<String> = generated.chain([APP_PASSWORD.to_owned(), BI_PASSWORD.to_owned()]).collect();
    assert_eq!(all.len(), 4);
    all
}

fn every_file(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).into_iter().flatten() {
        let path = entry.expect("readable").path();
        match fs::symlink_metadata(&path) {
            Ok(status) if status.is_dir() => every_file(&path, found),
            Ok(status) if status.is_file() => found.push(path),
            // It was a socket, or is gone by now.
            Ok(_) | Err(_) => {}
        }
    }
}

fn holds(path: &Path, secrets: &[String]) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == secret.as_bytes()))
}

#[test]
fn no_secret_shows_anywhere() {
    let mut herd = Herd::declare(&newest_or_15(0), &PAIR);
    herd.variable("RUST_LOG", Some("trace"));
    herd.variable("PGHERD_LOG", Some("trace"));
    // What a server would log of it if it were told.
    herd.edit(
        "max_connections: 40",
        "max_connections: 40\n        log_statement: all\n        log_min_duration_statement: 0 ms",
    );
    herd.run(&["plan", "--out", "saved.plan"]).ends_with(0);

    let mut apply = herd.start(&["apply", "-v", "--yes"]);
    let mut lines = BTreeSet::new();
    while !apply.has_ended() {
        lines.extend(processes().into_iter().map(|(_, line)| line));
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    let mut outputs = vec![apply.end().ends_with(0)];
    // Mend every password as well: those are other ways to the server.
    herd.sql("a", "ALTER ROLE app PASSWORD NULL");
    herd.sql("a", "ALTER ROLE replicator PASSWORD NULL");
    herd.sql("a", "ALTER ROLE pgherd_probe PASSWORD NULL");
    outputs.push(herd.run(&["apply", "-v", "--yes"]).ends_with(0));
    for args in [
        &["plan", "-v"][..],
        &["status", "-v"],
        &["status", "--format", "json"],
        &["config", "show", "inventory"],
        &["operation", "list"],
    ] {
        outputs.push(herd.run(args).ends_with(0));
    }
    herd.variable("APP_PASSWORD", Some("Qv3-of-a-failing-run"));
    herd.stop("a", "fast");
    fs::write(herd.data("a").join("pg_hba.conf"), "nonsense\n").expect("writable");
    outputs.push(herd.run(&["apply", "-v", "--yes"]));

    let mut secrets = secrets(&herd);
    secrets.push("Qv3-of-a-failing-run".to_owned());
    for secret in &secrets {
        assert!(lines.iter().all(|line| !line.contains(secret)), "a command line holds {secret}");
        for ran in &outputs {
            assert!(
                !ran.stdout.contains(secret) && !ran.stderr.contains(secret),
                "pgherd {} shows {secret}",
                ran.args
            );
        }
    }
    let mut files = Vec::new();
    every_file(herd.root(), &mut files);
    let passfiles: Vec<PathBuf> = ["a", "b"].iter().map(|node| herd.facts(node).join("passfile")).collect();
    for path in &files {
        if holds(path, &secrets) {
            assert!(passfiles.contains(path), "{} holds a secret", path.display());
        }
    }
    for path in passfiles.iter().chain([&herd.pooler().join("userlist.txt")]) {
        let status = fs::metadata(path).expect("it is there");
        assert_eq!(status.permissions().mode() & 0o777, 0o600, "{}", path.display());
        assert_eq!(
            status.uid(),
            fs::metadata(herd.data("a")).expect("it is there").uid(),
            "{}",
            path.display()
        );
    }
    // A verifier is not a password, but whoever has it can guess at leisure: it is in the pooler's own file alone.
    let open = files.iter().filter(|path| {
        let text = fs::read(path).unwrap_or_default();
        text.windows(14).any(|window| window == b"SCRAM-SHA-256$")
            && fs::metadata(path).is_ok_and(|status| status.mode() & 0o044 != 0)
    });
    assert_eq!(open.collect::<Vec<_>>(), Vec::<&PathBuf>::new());
}
