//! What `apply` refuses: it says what, why and what to do, with the exit code of a refusal, and leaves everything as it was.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::herd::{Herd, PAIR, Ran, SINGLE, as_server, hash_of, is_root, newest_or_15, text, text_of};
use crate::server::{Server, installations, newest};

/// Holds `plan` and `apply` to refuse with one message, and a directory to stay as it is.
#[track_caller]
fn refused(herd: &Herd, code: i32, left_alone: &Path, tells: &[&str]) -> Ran {
    let before = hash_of(left_alone);
    herd.plan().ends_with(code).tells(tells);
    let apply = herd.apply().ends_with(code).tells(tells).tells(&["HINT:"]);
    assert_eq!(hash_of(left_alone), before);
    apply
}

/// Makes a directory that belongs to the servers' user.
fn make_directory(path: &Path) {
    let parent = path.parent().expect("below the herd");
    fs::create_dir_all(parent).expect("a directory");
    fs::set_permissions(parent, fs::Permissions::from_mode(0o777)).expect("it is ours");
    let mut command = as_server(Path::new("/bin/mkdir"));
    command.arg(path);
    text_of(command).expect("mkdir");
}

#[test]
fn a_directory_that_is_not_empty_is_refused_and_left_alone() {
    let herd = Herd::declare(&newest(), &PAIR);
    make_directory(&herd.data("b"));
    fs::write(herd.data("b").join("letters.txt"), "of somebody").expect("a file");
    let apply = refused(
        &herd,
        4,
        &herd.path("data"),
        &["is not empty", "It holds letters.txt", "Nothing was changed."],
    );
    insta::assert_snapshot!(herd.settled(&apply.stderr));
    assert_eq!(herd.processes(), []);
}

#[test]
fn a_cluster_that_pgherd_did_not_make_is_refused_and_left_alone() {
    let herd = Herd::declare(&newest_or_15(1), &PAIR);
    make_directory(&herd.data("a"));
    herd.program("initdb", &["-D", text(&herd.data("a")), "-U", "postgres", "--no-sync"]);
    let major = format!("PG_VERSION {}, ", herd.installation().major);
    refused(
        &herd,
        4,
        &herd.path("data"),
        &["it holds a cluster that pgherd did not make", &major, "Nothing was changed."],
    );
    assert_eq!(herd.processes(), []);
}

#[test]
fn a_data_directory_of_another_major_is_refused_and_left_alone() {
    let mut herd = Herd::up(&newest_or_15(0), &SINGLE);
    if let Some(other) = installations().into_iter().find(|other| other.major != herd.installation().major) {
        let (from, to) = (herd.installation().clone(), other);
        herd.edit(&format!("version: {}", from.major), &format!("version: {}", to.major));
        herd.edit(text(from.bin()), text(to.bin()));
        let started = herd.sql("a", "SELECT pg_postmaster_start_time()");
        herd.apply().ends_with(4).tells(&[
            "it is of another major version",
            &format!("PG_VERSION says {}; the topology declares {}.", from.major, to.major),
        ]);
        assert_eq!(herd.sql("a", "SELECT pg_postmaster_start_time()"), started);
        herd.edit(&format!("version: {}", to.major), &format!("version: {}", from.major));
        herd.edit(text(to.bin()), text(from.bin()));
    }
    herd.stop("a", "fast");
    fs::write(herd.data("a").join("PG_VERSION"), "9.6\n").expect("a file of the server");
    refused(
        &herd,
        4,
        &herd.data("a"),
        &["it is of another major version", "PG_VERSION says 9.6;", "Nothing was changed."],
    );
}

#[test]
fn a_node_that_moved_to_another_directory_is_refused_and_left_alone() {
    let mut herd = Herd::up(&newest_or_15(1), &SINGLE);
    herd.stop("a", "fast");
    let (old, new) = (herd.data("a"), herd.data("elsewhere"));
    herd.edit(text(&old), text(&new));
    let claims = format!("the marker of inventory-a claims {}", old.display());
    refused(
        &herd,
        4,
        &herd.path("data"),
        &[&claims, "To move a node, remove it first: pgherd destroy inventory --node a"],
    );
    assert!(!new.exists());
}

#[test]
fn a_port_in_use_is_refused_whoever_has_it() {
    let mut herd = Herd::declare(&newest_or_15(0), &PAIR);
    let somebody = TcpListener::bind(("127.0.0.1", herd.port("b"))).expect("a reserved port");
    let port = herd.port("b");
    let tells = format!("cannot use port {port} for inventory-b: something else listens on 127.0.0.1:{port}");
    refused(&herd, 4, herd.root(), &[&tells, "give the node another port"]);
    drop(somebody);
    let pooler = TcpListener::bind(("127.0.0.1", herd.port("pooler"))).expect("a reserved port");
    refused(
        &herd,
        4,
        herd.root(),
        &["cannot start the pooler of inventory on local: something else listens on"],
    );
    drop(pooler);
    let other = Server::start(&newest(), "");
    let (from, to) = (herd.port("a"), other.port());
    herd.edit(&from.to_string(), &to.to_string());
    refused(&herd, 4, herd.root(), &[&format!("cannot use port {to} for inventory-a")]);
    herd.edit(&to.to_string(), &from.to_string());
    herd.nothing_is_left();
}

#[test]
fn missing_programs_are_named_with_the_places_where_they_were_looked_for() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    let bin = text(newest().bin()).to_owned();
    herd.edit(&format!("bin-directory: {bin}"), "bin-directory: /nowhere/bin");
    refused(&herd, 10, herd.root(), &["is not on host local", "Looked in /nowhere/bin"]);
    let other = installations().into_iter().find(|other| other.major != newest().major);
    herd.edit("bin-directory: /nowhere/bin", &format!("bin-directory: {bin}"));
    let (from, to) = (newest().major, other.map_or(16, |other| other.major));
    herd.edit(&format!("version: {from}"), &format!("version: {to}"));
    refused(
        &herd,
        10,
        herd.root(),
        &[&format!("PostgreSQL {to} is not on host local"), &format!("found {from}.")],
    );
    herd.edit(&format!("      bin-directory: {bin}\n"), "");
    herd.edit(&format!("version: {to}"), "version: 19");
    if !Path::new("/usr/lib/postgresql/19").exists() {
        refused(
            &herd,
            10,
            herd.root(),
            &["PostgreSQL 19 is not on host local", "/usr/lib/postgresql/19/bin", "postgresql-19"],
        );
    }
    herd.nothing_is_left();
}

/// PgBouncer is looked for in the system's directories whatever PATH says, so it takes a mount namespace, and root, to be without.
/// An ordinary user sees the same refusal for a host program that the topology itself names.
#[test]
fn a_missing_pgbouncer_is_named_before_anything_is_made() {
    let herd = Herd::declare(&newest(), &PAIR);
    if !is_root() {
        return a_secret_command_that_is_not_there_is_named(herd);
    }
    let mut hidden = Command::new("unshare");
    let hide = "for d in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do \
                if [ -e $d/pgbouncer ]; then mount --bind /dev/null $d/pgbouncer || exit 99; fi; done; exec \"$@\"";
    let prepared = herd.command(&["apply", "--yes"]);
    hidden.args(["--mount", "sh", "-c", hide, "sh"]).arg(prepared.get_program()).args(prepared.get_args());
    hidden.current_dir(herd.root()).env_clear();
    hidden.envs(prepared.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = text_of(hidden).expect_err("it refuses");
    assert!(said.starts_with("ERROR:  PgBouncer is not on host local\nDETAIL: Looked in /"), "{said}");
    assert!(said.contains("HINT:   Install the package pgbouncer"), "{said}");
    herd.nothing_is_left();
}

fn a_secret_command_that_is_not_there_is_named(mut herd: Herd) {
    herd.edit("{env: BI_PASSWORD}", "{command: [/nowhere/vault, read]}");
    herd.apply().ends_with(1).tells(&["the command /nowhere/vault gave no secret"]);
    herd.nothing_is_left();
}

#[test]
fn a_secret_that_is_missing_or_open_to_others_is_named_before_anything_is_made() {
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.variable("APP_PASSWORD", None);
    herd.variable("BI_PASSWORD", Some(""));
    refused(
        &herd,
        1,
        herd.root(),
        &["environment variable APP_PASSWORD is not set", "environment variable BI_PASSWORD is empty"],
    );
    herd.variable("APP_PASSWORD", Some("one"));
    herd.edit("{env: BI_PASSWORD}", "{file: secret}");
    fs::write(herd.path("secret"), "for-everybody\n").expect("a file");
    fs::set_permissions(herd.path("secret"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let apply = refused(&herd, 1, herd.root(), &[text(&herd.path("secret")), "0644", "chmod"]);
    assert!(!apply.stderr.contains("for-everybody"));
    herd.nothing_is_left();
}
