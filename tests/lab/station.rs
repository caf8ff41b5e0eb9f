//! An operator's station: a host of the lab that has ssh, pgherd and a topology file, and an ordinary user.
//!
//! Nothing but the port of sshd answers it, and one host only through another one.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use super::lab::{Lab, told};

/// The station's name in the lab.
pub const OPS: &str = "ops";
/// Who works there.
const OPERATOR: &str = "oncall";
/// How long a host that was cut off, or booted, may take until all is as it was: generous, since other tests run beside this one.
const AGAIN: Duration = Duration::from_secs(120);
pub const APP_PASSWORD: &str = "Xq7-known-to-app";
pub const PORT: u16 = 5441;
pub const POOLER: u16 = 6441;

/// Who logs in to a host, and through which other host.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    pub host: &'a str,
    /// root, or a user who may become anybody through sudo.
    pub user: &'a str,
    pub through: Option<&'a str>,
}

/// The station.
pub struct Station<'a> {
    pub lab: &'a Lab,
    host: &'static str,
    ways: Vec<Way<'a>>,
    bin: String,
    program: String,
}

impl<'a> Station<'a> {
    /// Furnishes the lab's host [`OPS`], and lets its operator in to all others; `bin` has the servers' programs.
    pub fn furnish(lab: &'a Lab, bin: &str, ways: &[Way<'a>]) -> Self {
        for way in ways.iter().filter(|way| way.user != "root") {
            let rule = format!(
                "useradd --create-home --shell /bin/sh {0} && usermod --password '*' {0} && \
                 echo '{0} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{0} && chmod 0440 /etc/sudoers.d/{0}",
                way.user
            );
            lab.prints(way.host, &["sh", "-c", &rule]);
        }
        Self::another(lab, OPS, bin, ways)
    }

    /// Furnishes a station on a host of any name, for the same hosts, with nothing of the first one's.
    pub fn another(lab: &'a Lab, host: &'static str, bin: &str, ways: &[Way<'a>]) -> Self {
        let program = env!("CARGO_BIN_EXE_pgherd").to_owned();
        let station = Self { lab, host, ways: ways.to_vec(), bin: bin.to_owned(), program };
        lab.prints(host, &["useradd", "--create-home", "--shell", "/bin/sh", OPERATOR]);
        let mut config = "Host *\n    IdentitiesOnly yes\n    IdentityFile ~/.ssh/id\n".to_owned();
        for way in ways {
            let address = lab.address(way.host);
            write!(config, "Host {address}\n    User {}\n", way.user).unwrap();
            if let Some(through) = way.through {
                let hop = ways.iter().find(|way| way.host == through).unwrap();
                writeln!(config, "    ProxyJump {}@{}", hop.user, lab.address(through)).unwrap();
            }
        }
        let [key, known] = lab.keys();
        for (name, text) in [("id", key), ("known_hosts", known), ("config", config)] {
            station.write(&format!("/home/{OPERATOR}/.ssh/{name}"), &text);
        }
        station.only_ssh();
        station
    }

    /// Writes a file of the operator's.
    pub fn write(&self, path: &str, text: &str) {
        let script = "umask 077; mkdir -p \"$(dirname \"$1\")\" && printf '%s' \"$2\" > \"$1\"";
        let output = self.lab.console(self.host, &self.as_operator(&["sh", "-c", script, "sh", path, text]));
        assert!(output.status.success(), "{path}: {}", told(&output));
    }

    /// Ends every fault of the network but the ones that make it a station.
    pub fn mend(&self) {
        self.lab.mend();
        self.only_ssh();
    }

    /// Loses what a station has no business with.
    pub fn only_ssh(&self) {
        for way in &self.ways {
            self.lab.cut_port_between(self.host, way.host, PORT);
            self.lab.cut_port_between(self.host, way.host, POOLER);
            if way.through.is_some() {
                self.lab.cut_pair(self.host, way.host);
            }
        }
    }

    fn as_operator<'b>(&self, argv: &[&'b str]) -> Vec<&'b str> {
        let become_it = ["setpriv", "--reuid=oncall", "--regid=oncall", "--init-groups", "--", "env", "-i"];
        let env = [
            "HOME=/home/oncall",
            "USER=oncall",
            "LC_ALL=C.UTF-8",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "PGHERD_TOPOLOGY=/home/oncall/pgherd.yml",
            "APP_PASSWORD=Xq7-known-to-app",
        ];
        [&become_it[..], &env[..], argv].concat()
    }

    pub fn pgherd(&self, args: &[&str]) -> Output {
        let begun = Instant::now();
        let argv = [&[self.program.as_str()], args].concat();
        let output = self.lab.console(self.host, &self.as_operator(&argv));
        tell(&format!("{:.1} s  pgherd {args:?}", begun.elapsed().as_secs_f64()), &told(&output));
        output
    }

    /// Starts pgherd, to be waited for.
    pub fn begin(&self, args: &[&str]) -> std::process::Child {
        let argv = [&[self.program.as_str()], args].concat();
        let words = self.as_operator(&argv);
        let mut command = self.lab.on_console(self.host, &words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("nsenter runs")
    }

    /// Runs pgherd, which must end with 0.
    pub fn done(&self, args: &[&str]) -> String {
        self.ends(args, 0)
    }

    /// Runs pgherd, which must end with this code.
    pub fn ends(&self, args: &[&str], code: i32) -> String {
        let output = self.pgherd(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        told(&output)
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.pgherd(&[args, &["--format", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(&output)))
    }

    /// What status says of a node: its state, and why where it is not known.
    pub fn node(&self, name: &str) -> (String, String) {
        let report = self.json(&["status"]);
        let nodes = report["clusters"][0]["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["node"] == name).unwrap();
        let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("why"))
    }

    /// Waits until these standbys stream, as the station sees it.
    pub fn stream(&self, standbys: &[&str]) {
        let deadline = Instant::now() + AGAIN;
        loop {
            let report = self.json(&["status"]);
            let nodes = report["clusters"][0]["nodes"].as_array().unwrap();
            let state =
                |name: &str| nodes.iter().find(|node| node["node"] == name).map(|node| &node["state"]);
            if standbys.iter().all(|name| state(name).is_some_and(|state| state == "streaming")) {
                return;
            }
            assert!(Instant::now() < deadline, "{report:#}");
        }
    }

    /// The operation that has not ended.
    pub fn unfinished(&self) -> String {
        self.left_open().expect("an operation that has not ended")
    }

    /// The operation that has not ended, if there is one.
    pub fn left_open(&self) -> Option<String> {
        let listed = self.json(&["operation", "list"]);
        let open = |operation: &&serde_json::Value| {
            ["stopped", "stuck", "incomplete"].iter().any(|state| operation["state"] == *state)
        };
        let found = listed["operations"].as_array().unwrap().iter().find(open)?;
        Some(found["operation"].as_str().unwrap().to_owned())
    }

    /// Where the journals of this station are, as the machine sees them.
    pub fn journals(&self) -> PathBuf {
        let init = self.lab.init(self.host).expect("the station is on");
        PathBuf::from(format!("/proc/{init}/root/home/{OPERATOR}/.local/state/pgherd/operations"))
    }

    /// Kills what pgherd does here, without a word.
    pub fn kill(&self) {
        self.lab.console(self.host, &["pkill", "--signal", "KILL", "-x", "pgherd"]);
    }

    // ---- what an application and a local superuser do, on a host's console

    /// What the superuser gets on the node of that host.
    pub fn sql(&self, host: &str, node: &str, database: &str, sql: &str) -> Option<String> {
        self.superuser(host, &format!("/var/lib/pgherd/run/inventory-{node}"), PORT, database, sql)
    }

    pub fn superuser(
        &self,
        host: &str,
        socket: &str,
        port: u16,
        database: &str,
        sql: &str,
    ) -> Option<String> {
        let (psql, port) = (format!("{}/psql", self.bin), port.to_string());
        let argv = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--", psql.as_str()];
        let query =
            ["-X", "-q", "-A", "-t", "-h", socket, "-p", &port, "-U", "postgres", "-d", database, "-c", sql];
        let output = self.lab.console(host, &[&argv[..], &query[..]].concat());
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What the application gets through the pooler of a host, from another one.
    pub fn client(&self, on: &str, pooler: Ipv4Addr, sql: &str) -> Result<String, String> {
        let psql = format!("{}/psql", self.bin);
        let password = format!("PGPASSWORD={APP_PASSWORD}");
        let place = format!("host={pooler} port={POOLER} dbname=inventory user=app connect_timeout=20");
        let argv = ["env", password.as_str(), psql.as_str(), "-X", "-q", "-A", "-t", &place, "-c", sql];
        let output = self.lab.console(on, &argv);
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(told(&output))
        }
    }
}

/// Waits for a program that was begun.
pub fn ended(child: std::process::Child) -> Output {
    child.wait_with_output().expect("it ends")
}

/// Shows what was said to whoever looks at the test with `PGHERD_TEST_TELL=1`.
pub fn tell(what: &str, said: &str) {
    if std::env::var_os("PGHERD_TEST_TELL").is_some() {
        super::lab::say(&format!("{what}\n{said}"));
    }
}
