//! Clusters that Debian's wrapper and a unit of somebody else's run, found and taken over without a restart.

use std::path::Path;

use super::lab::{Lab, eventually, told};

const HOST: &str = "db1";

struct Machine {
    lab: Lab,
    major: String,
}

impl Machine {
    fn up() -> Option<Self> {
        let lab = Lab::up(&[HOST])?;
        assert!(
            Path::new("/usr/bin/pg_createcluster").exists(),
            "there is no pg_createcluster: scripts/setup --test"
        );
        let versions = lab.prints(HOST, &["sh", "-c", "ls /usr/lib/postgresql"]);
        let major = versions.lines().last().expect("Debian's own server").to_owned();
        Some(Self { lab, major })
    }

    fn sh(&self, script: &str) -> String {
        self.lab.prints(HOST, &["sh", "-ec", script])
    }

    fn pgherd(&self, args: &[&str]) -> std::process::Output {
        let environment = ["env", "PGHERD_TOPOLOGY=/root/pgherd.yml", env!("CARGO_BIN_EXE_pgherd")];
        self.lab.console(HOST, &[&environment[..], args].concat())
    }

    /// Runs pgherd, which must end with this code.
    #[track_caller]
    fn ends(&self, code: i32, args: &[&str]) -> String {
        let output = self.pgherd(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        told(&output)
    }

    fn sql(&self, socket: &str, port: u16, sql: &str) -> String {
        self.try_sql(socket, port, sql).unwrap_or_else(|| panic!("{sql}"))
    }

    fn try_sql(&self, socket: &str, port: u16, sql: &str) -> Option<String> {
        let psql = format!("/usr/lib/postgresql/{}/bin/psql", self.major);
        let port = port.to_string();
        let owner =
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", psql.as_str()];
        let query = ["-XAtq", "-h", socket, "-p", &port, "-U", "postgres", "-d", "postgres", "-c", sql];
        let output = self.lab.console(HOST, &[&owner[..], &query[..]].concat());
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn modes(&self) -> String {
        self.sh(&format!("stat -c '%n %a %U' /etc/postgresql/{}/shop/*.conf | grep -v pgherd", self.major))
    }
}

const STARTED: &str = "SELECT pg_postmaster_start_time()";
const SOCKET: &str = "/var/run/postgresql";

#[test]
fn what_debian_and_a_unit_of_somebody_elses_run_is_found_and_adopted_without_a_restart() {
    let Some(machine) = Machine::up() else { return };
    let major = machine.major.clone();
    // Debian's: configuration in /etc, socket in /var/run; started by its own unit, which a machine that is no server may not have enabled.
    machine.sh("systemctl enable --quiet postgresql.service");
    machine.sh(&format!("pg_createcluster {major} shop --port 5451 --start"));
    machine.sql(SOCKET, 5451, "CREATE DATABASE shop");
    // Somebody else's: made by hand, with a unit whose arguments do not name the directory as it is.
    let bin = format!("/usr/lib/postgresql/{major}/bin");
    machine.sh(&format!(
        "install -d -o postgres /srv/stock && cd /srv/stock && \
         setpriv --reuid=postgres --regid=postgres --clear-groups {bin}/initdb -D /srv/stock/data --auth=peer --no-sync >/dev/null && \
         printf '%s\\n' 'port = 5452' \"unix_socket_directories = '/srv/stock'\" >> /srv/stock/data/postgresql.conf && \
         printf '%s\\n' '[Service]' Type=notify User=postgres 'Environment=PGDATA=/srv/stock/data/' \
           'ExecStart={bin}/postgres -D ${{PGDATA}}' KillSignal=SIGINT '[Install]' WantedBy=multi-user.target \
           > /etc/systemd/system/stock-db.service && systemctl enable --quiet --now stock-db.service"
    ));
    machine.sql("/srv/stock", 5452, "CREATE DATABASE stock");
    let started =
        |machine: &Machine| [machine.sql(SOCKET, 5451, STARTED), machine.sql("/srv/stock", 5452, STARTED)];
    let (before, modes) = (started(&machine), machine.modes());
    let unit = machine.sh("cat /etc/systemd/system/stock-db.service");

    let pgherd = env!("CARGO_BIN_EXE_pgherd");
    let drafted = machine.sh(&format!("cd /root && {pgherd} init shop --from local && cat pgherd.yml"));
    for text in [
        &format!("shop   PostgreSQL {major}, a primary, run by pg_ctlcluster {major} shop"),
        &format!("stock   PostgreSQL {major}, a primary, run by stock-db.service"),
        "service: debian",
        "service: systemd",
        "socket-directory: /srv/stock",
        "databases: {stock: {}}",
    ] {
        assert!(drafted.contains(text), "{text}: {drafted}");
    }
    assert!(!drafted.contains("config-directory"), "Debian's follows from its name: {drafted}");
    machine.ends(0, &["validate"]);
    let few = machine.ends(0, &["plan", "--adopt", "shop", "--adopt", "stock"]);
    assert!(!few.contains("waits for a restart"), "{few}");
    let again =
        machine.lab.console(HOST, &["sh", "-c", &format!("cd /root && {pgherd} init shop --from local")]);
    assert_eq!(again.status.code(), Some(1), "{}", told(&again));
    machine.sh(
        "sed -i -e 's|^clusters:|repositories: {main: {url: \"file:///var/lib/pgherd/repository\"}}\\nclusters:|' \
         -e 's|^    databases: {shop|    backups: {repository: main}\\n&|' /root/pgherd.yml",
    );
    let refused = machine.ends(4, &["plan"]);
    assert!(refused.contains("To take it over as it is: pgherd apply --adopt shop-a"), "{refused}");
    let planned = machine.ends(0, &["plan", "--adopt", "shop", "--adopt", "stock"]);
    for text in [
        "run by pg_ctlcluster",
        "run by stock-db.service",
        "shop-a waits for a restart: archive_mode off → on",
    ] {
        assert!(planned.contains(text), "{text}: {planned}");
    }
    assert!(!planned.contains("unit pgherd-stock"), "{planned}");
    machine.ends(0, &["apply", "--adopt", "shop", "--adopt", "stock", "--yes"]);
    assert_eq!(started(&machine), before);
    assert_eq!(machine.modes(), modes);
    assert_eq!(machine.sh("cat /etc/systemd/system/stock-db.service"), unit);
    let again = machine.ends(0, &["apply", "--adopt", "shop", "--adopt", "stock", "--yes"]);
    assert!(again.contains("No changes."), "{again}");
    let status = machine.ends(0, &["status"]);
    assert_eq!(status.matches("primary  up").count(), 2, "{status}");
    for starter in [&format!("a by pg_ctlcluster {major} shop"), "a by stock-db.service"] {
        assert!(status.contains(&format!("service {starter}, started with their hosts")), "{status}");
    }
    // Debian's own programs still know their cluster.
    let listed = machine.sh("pg_lsclusters --no-header");
    assert!(listed.contains("shop") && listed.contains("5451 online postgres"), "{listed}");

    // The restart that archiving needs, through Debian's wrapper; then a backup and a copy of it.
    machine.ends(4, &["apply", "--yes"]);
    machine.ends(0, &["apply", "--yes", "--allow-restart"]);
    let active = |unit: &str| machine.lab.console(HOST, &["systemctl", "is-active", unit]).status.success();
    assert!(active(&format!("postgresql@{major}-shop.service")));
    machine.ends(0, &["plan", "--detailed-exitcode"]);
    machine.sql(SOCKET, 5451, "CREATE TABLE kept AS SELECT 1 AS one");
    machine.ends(0, &["backup", "create", "--cluster", "shop"]);
    machine.ends(0, &["restore", "shop", "--to-dir", "/var/lib/pgherd/copy", "--yes"]);

    // Both come back with their host, and a stopped one is started by who starts it.
    machine.lab.power_off(HOST);
    machine.lab.power_on(HOST);
    assert!(eventually(|| machine.try_sql(SOCKET, 5451, "SELECT one FROM kept").as_deref() == Some("1")));
    assert!(eventually(|| machine.try_sql("/srv/stock", 5452, "SELECT 1").is_some()));
    machine.sh("systemctl stop stock-db.service");
    machine.ends(0, &["apply", "--yes"]);
    assert!(active("stock-db.service"));
    machine.ends(0, &["plan", "--detailed-exitcode"]);

    // What pgherd did not make it does not remove.
    let refused = machine.ends(4, &["destroy", "shop", "--confirm", "shop"]);
    assert!(refused.contains("was adopted"), "{refused}");
    machine.sh(&format!("pg_dropcluster --stop {major} shop"));
    machine.ends(0, &["destroy", "shop", "--confirm", "shop"]);
    assert_eq!(machine.sh("ls /etc/pgherd/nodes"), "stock-a");
}
