//! Nodes that systemd starts: as units that apply installs, through kills and reboots, and not where another is primary.

use std::path::Path;

use super::lab::{Lab, eventually, told};

/// A lab host with a cluster of two nodes whose units systemd runs.
struct Herd {
    lab: Lab,
    bin: String,
}

const HOST: &str = "db1";
const TOPOLOGY: &str = "/etc/pgherd/pgherd.yml";

impl Herd {
    fn up() -> Option<Self> {
        let lab = Lab::up(&[HOST])?;
        let (major, bin) = newest_server();
        let topology = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{{HOST}: local}}}}}}\n\
             repositories: {{main: {{url: \"file:///var/lib/pgherd/repository\"}}}}\n\
             clusters:\n  inventory:\n    \
             postgres: {{version: {major}, bin-directory: {bin}, service: systemd, tune: {{memory: 256 MiB}}}}\n    \
             nodes:\n      \
             a: {{host: {HOST}, port: 5441, data-directory: /var/lib/pgherd/inventory-a, prefer: primary}}\n      \
             b: {{host: {HOST}, port: 5442, data-directory: /var/lib/pgherd/inventory-b}}\n    \
             backups: {{repository: main}}\n"
        );
        let write = format!("mkdir -p /etc/pgherd && printf '%s' '{topology}' > {TOPOLOGY}");
        lab.prints(HOST, &["sh", "-c", &write]);
        Some(Self { lab, bin })
    }

    fn pgherd(&self, args: &[&str]) -> std::process::Output {
        self.lab.console(HOST, &[&[env!("CARGO_BIN_EXE_pgherd")], args].concat())
    }

    /// Runs pgherd, which must end with 0.
    fn done(&self, args: &[&str]) -> String {
        let output = self.pgherd(args);
        assert!(output.status.success(), "{args:?}: {}", told(&output));
        told(&output)
    }

    fn sql(&self, node: &str, sql: &str) -> Option<String> {
        let port = if node == "a" { "5441" } else { "5442" };
        let socket = format!("/var/lib/pgherd/run/inventory-{node}");
        let psql = format!("{}/psql", self.bin);
        let argv = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", psql.as_str()];
        let query = ["-X", "-A", "-t", "-h", &socket, "-p", port, "-U", "postgres", "-c", sql];
        let output = self.lab.console(HOST, &[&argv[..], &query[..]].concat());
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn systemctl(&self, args: &[&str]) -> String {
        let output = self.lab.console(HOST, &[&["systemctl"], args].concat());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The process that the unit says is the node's, which must be what the node itself says.
    fn postmaster(&self, node: &str) -> String {
        let pid = self.systemctl(&["show", "--property=MainPID", "--value", &unit(node)]);
        let file = format!("/var/lib/pgherd/inventory-{node}/postmaster.pid");
        assert_eq!(self.lab.prints(HOST, &["head", "-n", "1", &file]), pid);
        pid
    }

    fn is_whole(&self) -> bool {
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        self.sql("a", streams).as_deref() == Some("1")
            && self.sql("b", "SELECT word FROM kept").as_deref() == Some("row")
    }
}

fn unit(node: &str) -> String {
    format!("pgherd-inventory-{node}.service")
}

/// The newest server that the tests are given: its major version and its programs.
fn newest_server() -> (u32, String) {
    let named = std::env::var("PGHERD_TEST_PG").unwrap_or_else(|_| "/usr/lib/postgresql/15".to_owned());
    let servers = named.split(':').filter(|text| !text.is_empty());
    let majors = servers.map(|directory| {
        assert!(Path::new(directory).join("bin/postgres").exists(), "PGHERD_TEST_PG: none in {directory}");
        let major = directory.rsplit('/').next().and_then(|name| name.parse().ok());
        (major.expect("a directory is named by its major version"), format!("{directory}/bin"))
    });
    majors.max().expect("one is named")
}

#[test]
fn systemd_starts_what_apply_has_installed_after_a_kill_and_after_a_reboot() {
    let Some(herd) = Herd::up() else { return };
    let shown = herd.done(&["apply", "--yes"]);
    assert!(shown.contains("unit pgherd-inventory-a.service"), "{shown}");
    for node in ["a", "b"] {
        assert_eq!(herd.systemctl(&["is-enabled", &unit(node)]), "enabled");
        assert_eq!(herd.systemctl(&["is-active", &unit(node)]), "active");
        herd.postmaster(node);
    }
    herd.sql("a", "CREATE TABLE kept AS SELECT 'row' AS word").expect("it is made");
    assert!(eventually(|| herd.is_whole()));
    herd.done(&["plan", "--detailed-exitcode"]);

    let before = herd.postmaster("a");
    herd.lab.prints(HOST, &["kill", "-KILL", &before]);
    assert!(eventually(|| herd.is_whole()), "{}", herd.systemctl(&["status", &unit("a")]));
    assert_ne!(herd.postmaster("a"), before);

    herd.lab.power_off(HOST);
    herd.lab.power_on(HOST);
    assert!(eventually(|| herd.is_whole()), "{}", herd.systemctl(&["status", &unit("a")]));
    assert_eq!(herd.systemctl(&["is-system-running"]), "running");
    herd.done(&["plan", "--detailed-exitcode"]);

    // What was stopped through its unit comes back through it.
    herd.systemctl(&["stop", &unit("b")]);
    assert!(!herd.is_whole());
    herd.done(&["apply", "--yes"]);
    assert!(eventually(|| herd.is_whole()));
    herd.postmaster("b");

    herd.done(&["destroy", "inventory", "--confirm", "inventory"]);
    let left = herd.lab.prints(HOST, &["sh", "-c", "ls -A /etc/systemd/system | grep pgherd || true"]);
    assert_eq!(left, "");
    assert_eq!(herd.systemctl(&["list-units", "--all", "--plain", "--no-legend", "pgherd*"]), "");
}

#[test]
fn a_primary_whose_standby_was_promoted_is_not_started_by_its_unit() {
    let Some(herd) = Herd::up() else { return };
    herd.done(&["apply", "--yes"]);
    herd.systemctl(&["stop", &unit("a")]);
    herd.sql("b", "SELECT pg_promote()").expect("it is promoted");
    herd.sql("b", "CHECKPOINT").expect("it is written");
    // It records who is primary; the old one has no standby.signal and is left alone.
    herd.done(&["apply", "--yes"]);

    herd.lab.power_off(HOST);
    herd.lab.power_on(HOST);
    assert!(eventually(|| herd.sql("b", "SELECT pg_is_in_recovery()").as_deref() == Some("f")));
    let journal = || {
        let unit = unit("a");
        herd.lab.prints(HOST, &["journalctl", "--boot", "--unit", &unit, "--output=cat", "--no-pager"])
    };
    let refused = "cannot start inventory-a as a primary: inventory-b is primary";
    assert!(eventually(|| journal().contains(refused)), "{}", journal());
    assert_eq!(herd.sql("a", "SELECT 1"), None);
}
