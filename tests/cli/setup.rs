//! What `scripts/setup` says of servers for the tests.

use std::process::Command;

use super::project;

#[test]
fn a_major_that_is_listed_but_missing_fails_instead_of_testing_fewer() {
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(project("scripts/setup"))
        .args(["--all-majors", "--print-env"])
        .env("PGHERD_PG_HOME", empty.path())
        .output()
        .unwrap();
    let missing: Vec<String> = (14..=18)
        .filter(|major| !project(&format!("/usr/lib/postgresql/{major}/bin/initdb")).exists())
        .map(|major| major.to_string())
        .collect();
    if missing.is_empty() || cfg!(not(target_arch = "x86_64")) {
        assert!(output.status.success(), "the system has all that can be had");
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let said = String::from_utf8_lossy(&output.stderr);
    let fact = format!("ERROR:  there is no PostgreSQL {}\n", missing.join(" "));
    assert!(said.starts_with(&fact), "{said}");
    assert!(said.ends_with("HINT:   Run \"scripts/setup --all-majors\".\n"), "{said}");
}
