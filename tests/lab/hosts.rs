//! A cluster on hosts of its own, made and seen from a station that reaches them by ssh alone.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::lab::{Lab, STATION, told};
use super::services::newest_server;

/// How long the way to a host that was cut off may take to carry again.
const AGAIN: Duration = Duration::from_secs(120);

/// The operator's station: this machine, with places of its own that no host shares.
struct Station {
    lab: Lab,
    places: tempfile::TempDir,
}

impl Station {
    fn with(lab: Lab) -> Self {
        // Hosts see what is below "/" as it was when they were made, but not what is in /run.
        let places = tempfile::Builder::new().prefix("pgherd-station-").tempdir_in("/run").unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(places.path(), open).unwrap();
        let (major, bin) = newest_server();
        let (one, other) = (lab.address("db1"), lab.address("db2"));
        let topology = format!(
            "pgherd: 1\nherd: shop\nssh: {{config: {{file: {}}}}}\n\
             regions:\n  west: {{hosts: {{db1: {one}}}}}\n  east: {{hosts: {{db2: {other}}}}}\n\
             clusters:\n  inventory:\n    ports: {{postgres: 5441, pooler: 6441}}\n    \
             postgres: {{version: {major}, bin-directory: {bin}, tune: {{memory: 256 MiB}}}}\n    nodes:\n      \
             a: {{host: db1, data-directory: /srv/inventory-a, prefer: primary}}\n      \
             b: {{host: db2, data-directory: /srv/inventory-b}}\n    \
             poolers: {{hosts: [db1, db2], mode: transaction, max-clients: 50, pools: {{rw: {{to: primary, size: 8}}}}}}\n    \
             schemas: {{inventory: {{owner: inventory_owner, write: [app]}}}}\n    \
             roles: {{app: {{password: {{env: APP_PASSWORD}}, pools: [rw]}}}}\n    \
             objectives: {{lose-primary: {{rpo: 5 s, rto: 1 min}}}}\n",
            lab.ssh_config().display()
        );
        std::fs::write(places.path().join("pgherd.yml"), topology).unwrap();
        Self { lab, places }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.places.path().join(name)
    }

    fn pgherd(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
        command.args(args).current_dir(self.places.path()).stdin(Stdio::null());
        command.env("APP_PASSWORD", "Xq7-known-to-app");
        for (variable, name) in
            [("PGHERD_CONFIG_DIR", "config"), ("PGHERD_STATE_DIR", "state"), ("PGHERD_LIB_DIR", "lib")]
        {
            command.env(variable, self.place(name));
        }
        command.output().unwrap()
    }

    /// Runs pgherd, which must end with 0.
    fn done(&self, args: &[&str]) -> String {
        let output = self.pgherd(args);
        assert!(output.status.success(), "{args:?}: {}", told(&output));
        told(&output)
    }

    /// What status says of a node: its state, and why where it is not known.
    fn node(&self, name: &str) -> (String, String) {
        let output = self.pgherd(&["status", "--format", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let nodes = report["clusters"][0]["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["node"] == name).unwrap();
        let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("why"))
    }

    fn streams(&self) -> bool {
        self.node("b").0 == "streaming"
    }

    /// Waits until the standby streams, as the station sees it: after a cut, TCP tries again at longer and longer intervals (RFC 6298).
    fn streams_again(&self) {
        let deadline = Instant::now() + AGAIN;
        while !self.streams() {
            assert!(Instant::now() < deadline, "{:?}", self.node("b"));
        }
    }
}

#[test]
fn a_cluster_on_two_hosts_is_made_and_seen_from_a_station_that_has_only_ssh() {
    let Some(lab) = Lab::up(&["db1", "db2"]) else { return };
    let station = Station::with(lab);
    let lab = &station.lab;
    // Nothing but sshd answers the station.
    for host in ["db1", "db2"] {
        lab.cut_port_between(STATION, host, 5441);
        lab.cut_port_between(STATION, host, 6441);
    }
    let shown = station.done(&["apply", "--yes"]);
    assert!(shown.contains("shop/inventory is up"), "{shown}");
    let shown = station.done(&["plan", "--detailed-exitcode"]);
    assert!(shown.contains("No changes."), "{shown}");
    station.streams_again();
    // Each host has its own node and nothing of the other's.
    assert!(lab.console("db1", &["test", "-e", "/srv/inventory-a/PG_VERSION"]).status.success());
    assert!(!lab.console("db1", &["test", "-e", "/srv/inventory-b"]).status.success());

    // A host that is cut off from the station alone is unknown, with the reason, and hides nobody; its standby goes on.
    lab.cut_pair("db2", STATION);
    let (state, why) = station.node("b");
    assert!(state == "unknown" && !why.is_empty(), "{state}: {why}");
    assert_eq!(station.node("a").0, "up");
    let refused = station.pgherd(&["apply", "--yes"]);
    assert_eq!(refused.status.code(), Some(10), "{}", told(&refused));
    lab.mend();
    station.streams_again();

    station.done(&["apply", "--yes"]);

    station.done(&["destroy", "inventory", "--confirm", "inventory"]);
    for (host, directory) in [("db1", "/srv/inventory-a"), ("db2", "/srv/inventory-b")] {
        assert!(!lab.console(host, &["test", "-e", directory]).status.success(), "{host}");
    }
}
