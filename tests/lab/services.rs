//! Nodes that systemd starts: as units that apply installs, through kills and reboots, and not where another is primary.

use std::path::Path;

use super::lab::{Lab, eventually, told};

/// A lab host with a cluster of two nodes whose units systemd runs.
struct Herd {
    lab: Lab,
    bin: String,
}

const HOST: &str = "db1";
const POOLER_UNIT: &str = "pgbouncer-inventory-db1.service";
const POOLER_PID: &str = "/var/lib/pgherd/poolers/inventory-db1/pgbouncer.pid";
const TOPOLOGY: &str = "/etc/pgherd/pgherd.yml";
const TUNE: &str = "tune: {memory: 256 MiB}";
const A: &str = "a: {host: db1, port: 5441, data-directory: /var/lib/pgherd/inventory-a, prefer: primary}";
const POOLER: &str = "ports: {pooler: 6441}\n    \
    poolers: {hosts: [db1], mode: transaction, max-clients: 100, pools: {rw: {to: primary, size: 8}}}";
const B: &str = "b: {host: db1, port: 5442, data-directory: /var/lib/pgherd/inventory-b}";

impl Herd {
    fn up() -> Option<Self> {
        let lab = Lab::up(&[HOST])?;
        let (major, bin) = newest_server();
        let herd = Self { lab, bin };
        let postgres = format!("{{version: {major}, bin-directory: {}, service: systemd, {TUNE}}}", herd.bin);
        herd.declare(&postgres, &format!("{A}\n      {B}\n    backups: {{repository: main}}\n    {POOLER}"));
        Some(herd)
    }

    /// Writes the topology.
    fn declare(&self, postgres: &str, nodes: &str) {
        let topology = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{{HOST}: local}}}}}}\n\
             repositories: {{main: {{url: \"file:///var/lib/pgherd/repository\"}}}}\n\
             clusters:\n  inventory:\n    postgres: {postgres}\n    nodes:\n      {nodes}\n"
        );
        let write = format!("mkdir -p /etc/pgherd && printf '%s' '{topology}' > {TOPOLOGY}");
        self.lab.prints(HOST, &["sh", "-c", &write]);
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
        self.postmaster_of(&unit(node), node)
    }

    fn postmaster_of(&self, unit: &str, node: &str) -> String {
        let pid = self.systemctl(&["show", "--property=MainPID", "--value", unit]);
        let file = format!("/var/lib/pgherd/inventory-{node}/postmaster.pid");
        assert_eq!(self.lab.prints(HOST, &["head", "-n", "1", &file]), pid);
        pid
    }

    /// The process of the pooler's unit; empty while nothing answers on its port.
    fn pooler(&self) -> String {
        let listens = self.lab.console(HOST, &["sh", "-c", "ss -H -l -t -n 'sport = :6441' | grep -q 6441"]);
        if !listens.status.success() {
            return String::new();
        }
        self.systemctl(&["show", "--property=MainPID", "--value", POOLER_UNIT])
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
pub fn newest_server() -> (u32, String) {
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

    let before = herd.pooler();
    herd.lab.prints(HOST, &["kill", "-KILL", &before]);
    assert!(eventually(|| !["", &before].contains(&herd.pooler().as_str())));

    herd.lab.power_off(HOST);
    herd.lab.power_on(HOST);
    assert!(eventually(|| herd.is_whole()), "{}", herd.systemctl(&["status", &unit("a")]));
    assert!(eventually(|| !herd.pooler().is_empty()), "{}", herd.systemctl(&["status", POOLER_UNIT]));
    assert_eq!(herd.systemctl(&["is-system-running"]), "running");
    // As after a boot that has given the number in the pidfile to another process.
    herd.systemctl(&["stop", POOLER_UNIT]);
    herd.lab.prints(HOST, &["sh", "-c", &format!("echo 1 > {POOLER_PID}")]);
    herd.systemctl(&["start", POOLER_UNIT]);
    assert!(eventually(|| !herd.pooler().is_empty()), "{}", herd.systemctl(&["status", POOLER_UNIT]));
    herd.done(&["plan", "--detailed-exitcode"]);

    // What was stopped through its unit comes back through it.
    herd.systemctl(&["stop", &unit("b")]);
    assert!(!herd.is_whole());
    herd.done(&["apply", "--yes"]);
    assert!(eventually(|| herd.is_whole()));
    herd.postmaster("b");
    herd.systemctl(&["disable", "--now", POOLER_UNIT]);
    assert_eq!(herd.pooler(), "");
    let shown = herd.done(&["apply", "--yes"]);
    assert!(shown.contains("it is not enabled: nothing starts it with its host"), "{shown}");
    assert_eq!(herd.systemctl(&["is-enabled", POOLER_UNIT]), "enabled");
    assert_ne!(herd.pooler(), "");

    herd.done(&["destroy", "inventory", "--confirm", "inventory"]);
    let left = herd
        .lab
        .prints(HOST, &["sh", "-c", "ls -A /etc/systemd/system | grep -E 'pgherd|pgbouncer-' || true"]);
    assert_eq!(left, "");
    assert_eq!(
        herd.systemctl(&["list-units", "--all", "--plain", "--no-legend", "pgherd*", "pgbouncer-*"]),
        ""
    );
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

#[test]
fn a_debian_cluster_is_started_and_stopped_through_its_own_wrapper() {
    let Some(lab) = Lab::up(&[HOST]) else { return };
    assert!(Path::new("/usr/bin/pg_ctlcluster").exists(), "there is no pg_ctlcluster: scripts/setup --test");
    let versions = lab.prints(HOST, &["sh", "-c", "ls /usr/lib/postgresql"]);
    let major = versions.lines().last().expect("Debian's own server").to_owned();
    let herd = Herd { lab, bin: format!("/usr/lib/postgresql/{major}/bin") };
    herd.declare(&format!("{{version: {major}, {TUNE}}}"), A);
    herd.done(&["apply", "--yes"]);

    // What pg_createcluster would have written for this directory.
    let data = "/var/lib/pgherd/inventory-a";
    let stop = format!(
        "setpriv --reuid=postgres --regid=postgres --clear-groups {}/pg_ctl stop -D {data}",
        herd.bin
    );
    let configuration = format!("/etc/postgresql/{major}/inventory");
    let lines = format!(
        "data_directory = '\\''{data}'\\''\nhba_file = '\\''{data}/pg_hba.conf'\\''\n\
         ident_file = '\\''{data}/pg_ident.conf'\\''\ninclude '\\''{data}/postgresql.conf'\\''\n"
    );
    let make = format!(
        "{stop} && mkdir -p {configuration} && printf '%s' '{lines}' > {configuration}/postgresql.conf && \
         echo auto > {configuration}/start.conf && chown -R postgres: /etc/postgresql/{major}"
    );
    herd.lab.prints(HOST, &["sh", "-c", &make]);
    herd.declare(&format!("{{version: {major}, service: debian, {TUNE}}}"), A);
    herd.done(&["apply", "--yes"]);
    let unit = format!("postgresql@{major}-inventory.service");
    assert_eq!(herd.systemctl(&["is-active", &unit]), "active");
    herd.postmaster_of(&unit, "a");
    herd.done(&["plan", "--detailed-exitcode"]);

    herd.done(&["destroy", "inventory", "--confirm", "inventory"]);
    assert_eq!(herd.systemctl(&["is-active", &unit]), "inactive");
}
