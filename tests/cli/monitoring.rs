//! What monitoring is given without any server: explanations, alert rules, and a run that fails.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use insta::assert_snapshot;

const HERD: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
defaults: {health: {disk: {warn: 70 %}}}
clusters:
  inventory:
    postgres: {version: 15, tune: {memory: 512 MiB}}
    health: {disk: {crit: 95 %, after: 3}}
    checks:
      open-orders: {sql: select count(*) from inventory.orders where open, warn: 100, crit: 500}
    nodes:
      a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /srv/b, health: {disk: {warn: 60 %}}}
    poolers: none
";

fn pgherd(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgherd"))
        .args(args)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .output()
        .expect("the binary starts")
}

fn with_topology(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("pgherd.yml"), text).expect("writable");
    directory
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

/// Runs promtool, which checks what Prometheus will read.
fn promtool(args: &[&str]) {
    let output = Command::new("promtool")
        .args(args)
        .output()
        .expect("promtool is there: \"scripts/setup --test\" installs it");
    assert!(output.status.success(), "promtool {args:?}\n{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn explain_shows_the_very_statements_and_the_line_of_every_threshold() {
    let herd = with_topology(HERD);
    let told = pgherd(herd.path(), &["health", "explain", "disk"]);
    assert_eq!(told.status.code(), Some(0), "{}", text(&told.stderr));
    assert_snapshot!(text(&told.stdout));
    let archive = pgherd(herd.path(), &["health", "explain", "archive"]);
    assert!(
        text(&archive.stdout).contains("\n    FROM pg_stat_archiver AS s,\n"),
        "{}",
        text(&archive.stdout)
    );
    assert!(text(&archive.stdout).contains("GRANT pg_monitor TO ROLE"), "{}", text(&archive.stdout));
}

#[test]
fn explain_knows_the_checks_of_the_topology_and_lists_them_all() {
    let herd = with_topology(HERD);
    assert_snapshot!(text(&pgherd(herd.path(), &["health", "explain", "open-orders"]).stdout));
    let list = pgherd(herd.path(), &["health", "explain"]);
    let (list, names) = (text(&list.stdout), ["lag", "disk", "open-orders"]);
    assert!(names.iter().all(|name| list.lines().any(|line| line.starts_with(name))), "{list}");
    let unknown = pgherd(herd.path(), &["health", "explain", "lagg"]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(text(&unknown.stderr).contains("there is no check \"lagg\""), "{}", text(&unknown.stderr));
    // What a check asks is worth knowing before there is a topology.
    let nowhere = tempfile::tempdir().unwrap();
    let bare = pgherd(nowhere.path(), &["health", "explain", "disk"]);
    assert!(text(&bare.stdout).contains("warn 80 %   default of pgherd"), "{}", text(&bare.stdout));
}

#[test]
fn a_run_that_fails_is_unknown_to_the_plugin_and_to_the_file() {
    let herd = with_topology(&HERD.replace("disk", "dsk"));
    let nagios = pgherd(herd.path(), &["health", "--format", "nagios"]);
    assert_eq!(nagios.status.code(), Some(3));
    let line = "PGHERD UNKNOWN: pgherd.yml:8:14: unknown check \"dsk\" in clusters.inventory.health";
    assert!(text(&nagios.stdout).starts_with(line), "{}", text(&nagios.stdout));
    for (format, says) in [
        ("prometheus", "\npgherd_status 3\n"),
        ("junit", "errors=\"1\""),
        ("json", "\"status\": \"unknown\""),
        ("human", "ERROR:  pgherd.yml:8:14: unknown check"),
        ("nagios", "PGHERD UNKNOWN: "),
    ] {
        let ran = pgherd(herd.path(), &["health", "--format", format, "--output", "out"]);
        assert_eq!((ran.status.code(), text(&ran.stdout)), (Some(3), ""));
        let written = fs::read_to_string(herd.path().join("out")).unwrap();
        assert!(written.contains(says), "{format}: {written}");
    }
    let bad = pgherd(herd.path(), &["health", "--formt"]);
    assert_eq!(bad.status.code(), Some(3));
    let device = pgherd(herd.path(), &["health", "--output", "/dev/null"]);
    assert_eq!(device.status.code(), Some(3));
    assert!(text(&device.stderr).contains("/dev/null is no file"), "{}", text(&device.stderr));
}

#[test]
fn prometheus_takes_the_alert_rules_and_they_fire_when_they_should() {
    let directory = tempfile::tempdir().unwrap();
    let printed = pgherd(directory.path(), &["health", "rules"]);
    let shipped = fs::read(crate::project("templates/prometheus-rules.yml")).unwrap();
    assert_eq!((printed.status.code(), printed.stdout), (Some(0), shipped));
    promtool(&["check", "rules", crate::project("templates/prometheus-rules.yml").to_str().unwrap()]);
    promtool(&["test", "rules", crate::project("tests/data/prometheus-rules-test.yml").to_str().unwrap()]);
    let dashboard = pgherd(directory.path(), &["health", "dashboard"]);
    let shipped = fs::read(crate::project("templates/grafana-dashboard.json")).unwrap();
    assert_eq!(dashboard.stdout, shipped);
}

#[test]
fn only_health_writes_what_monitoring_reads() {
    let herd = with_topology(HERD);
    for format in ["nagios", "prometheus", "junit"] {
        let ran = pgherd(herd.path(), &["validate", "--format", format]);
        assert_eq!(ran.status.code(), Some(2), "{format}");
    }
    let watched = pgherd(herd.path(), &["health", "--watch", "1s", "--format", "nagios"]);
    assert_eq!(watched.status.code(), Some(3));
    assert!(text(&watched.stderr).contains("Add --output FILE"), "{}", text(&watched.stderr));
}

/// Listens, takes whoever connects and says nothing: a host that is frozen.
fn silent_host() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    port
}

#[test]
fn silent_hosts_behind_ssh_are_unknown_within_five_seconds() {
    let ports: Vec<u16> = (0..6).map(|_| silent_host()).collect();
    let mut herd = "pgherd: 1\nherd: far\nregions:\n  there:\n    hosts:\n".to_owned();
    for (number, port) in ports.iter().enumerate() {
        herd += &format!("      h{number}: {{address: 127.0.0.1, port: {port}, user: nobody}}\n");
    }
    herd += "defaults: {postgres: {version: 15, tune: {memory: 64 MiB}}}\nclusters:\n";
    for (cluster, hosts) in [("one", 0..3), ("two", 3..6)] {
        herd += &format!("  {cluster}:\n    nodes:\n");
        for host in hosts {
            herd += &format!("      n{host}: {{host: h{host}, port: 5440, data-directory: /srv/n}}\n");
        }
    }
    let herd = with_topology(&herd);
    let begun = std::time::Instant::now();
    let judged = pgherd(herd.path(), &["health", "--format", "json"]);
    let took = begun.elapsed();
    assert_eq!(judged.status.code(), Some(3), "{}", text(&judged.stderr));
    let json = text(&judged.stdout);
    for host in 0..6 {
        let told = format!("\"host h{host} did not answer within 3.5 s\"");
        assert!(json.contains(&told), "{json}");
    }
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}
