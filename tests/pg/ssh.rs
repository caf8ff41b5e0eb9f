//! Other machines, reached by a real sshd: two hosts with an address each, on loopback.

use std::time::Duration;

use crate::herd::{APP_PASSWORD, Herd, PAIR, SINGLE, Shape};
use crate::server::newest;
use crate::sshd::{Login, Sshd};

/// Declares a herd whose nodes are on hosts behind ssh: a on db1, every other one on db2.
fn declare(shape: &Shape<'_>, login: Login) -> (Herd, Sshd) {
    let mut herd = Herd::declare(&newest(), shape);
    let sshd = Sshd::start(&herd, "sshd", login);
    sshd.reaches(&mut herd);
    herd.edit(" a: {host: local", " a: {host: db1");
    if shape.nodes.len() > 1 {
        herd.edit("{host: local", "{host: db2");
    }
    if shape.pooler {
        herd.edit("hosts: [local]", "hosts: [db1]");
    }
    (herd, sshd)
}

#[test]
fn a_pair_comes_up_on_two_hosts_behind_ssh() {
    let (herd, _sshd) = declare(&PAIR, Login::Caller);
    herd.plan().ends_with(0).says(&["inventory-a", "inventory-b"]);
    herd.apply().ends_with(0);
    herd.is_as_declared();
    herd.status().ends_with(0).says(&["pooler db1", "streaming"]);
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1").unwrap(), "1");
    assert_eq!(herd.sql("b", "SELECT sender_host FROM pg_stat_wal_receiver"), "127.0.0.1");
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    let servers = |line: &str| line.contains("postgres") || line.contains("pgbouncer");
    assert!(!herd.processes().iter().any(|(_, line)| servers(line)), "{:?}", herd.processes());
    assert!(!herd.data("a").exists() && !herd.data("b").exists() && !herd.facts("a").exists());
}

#[test]
fn an_unknown_host_key_and_a_changed_one_are_refused_with_their_fingerprints() {
    let (herd, sshd) = declare(&SINGLE, Login::Caller);
    sshd.know(&[], "host");
    herd.plan().ends_with(4).tells(&[
        "the host key of 127.0.0.1 port",
        "is not known",
        &sshd.fingerprint("host"),
    ]);
    sshd.know(&["127.0.0.1"], "other");
    herd.plan().ends_with(4).tells(&["has changed", &sshd.fingerprint("host"), &sshd.fingerprint("other")]);
    assert!(!herd.path("data").exists());
    sshd.know(&["127.0.0.1"], "host");
    herd.plan().ends_with(0);
}

#[test]
fn a_host_that_says_nothing_is_unknown_within_the_deadline() {
    let (herd, sshd) = declare(&SINGLE, Login::Caller);
    herd.apply().ends_with(0);
    // The listener and every session stand still: connections are accepted by the kernel and never answered.
    let mut frozen: Vec<_> =
        crate::sshd::children(sshd.pid()).into_iter().map(crate::herd::Frozen::new).collect();
    frozen.push(crate::herd::Frozen::new(sshd.pid()));
    let ran = herd.status();
    assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
    ran.says(&["unknown"]);
    drop(frozen);
    herd.status().ends_with(0);
}
