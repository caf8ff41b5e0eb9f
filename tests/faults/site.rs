//! The place where the operations meet real servers: directories and ports of its own, a copy of a cluster that is put back in
//! a moment, and a picture of everything that pgherd could have changed.
//!
//! Knows nothing of faults. Whatever it started, or pgherd started in it, is ended by its process number when it is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pgherd::db::{Conn, DbError, Endpoint, Login, Session};
use pgherd::engine::store::Store;
use pgherd::gate::{self, Gate};
use pgherd::ops::binary::Build;
use pgherd::ops::context::Context;
use pgherd::ops::observe::Doors;
use pgherd::secret::Secret;
use pgherd::topology;
use pgherd::topology::model::{Cluster, Herd};
use pgherd::topology::places::Places;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

pub const CLUSTER: &str = "toys";
/// In the order of the topology; the first is primary at birth.
pub const NODES: [&str; 2] = ["a", "b"];
const APP: &str = "toys_app";
const PASSWORD: &str = "a-password-for-a-test";

/// What the topology declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One node and a pooler.
    Single,
    /// Two nodes, of which the standby is synchronous, and a pooler.
    Pair,
    /// The same, and its WAL is archived.
    Archived,
    /// A pair with a setting of which both nodes must be restarted, the standby first.
    Larger,
    /// A pair whose connections between hosts are encrypted, by certificates of the herd's own.
    Encrypted,
}

/// Where one case after the other takes place.
#[derive(Debug)]
pub struct Site {
    directory: TempDir,
    major: u32,
    bin: PathBuf,
    ports: Vec<u16>,
    places: Places,
    /// What is installed: pgherd without what a debugger wants of it, since it is copied again and again.
    build: Build,
}

impl Site {
    /// Finds free ports and makes the directories; in memory where the machine has such a place, since hundreds of servers are made.
    pub fn new() -> Self {
        let (major, bin) = newest();
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory } else { Path::new("/tmp") };
        // A Unix socket's path may have about 100 bytes.
        let directory = tempfile::Builder::new()
            .prefix(&format!("pgherd-{}-", std::process::id()))
            .tempdir_in(place)
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| Some(directory.path().join("live").join(name).display().to_string());
        let places = Places::decide(rustix::process::geteuid().is_root(), |variable| match variable {
            "PGHERD_CONFIG_DIR" => path("config"),
            "PGHERD_STATE_DIR" => path("state"),
            "PGHERD_LIB_DIR" => path("lib"),
            other => std::env::var(other).ok(),
        })
        .unwrap();
        let program = directory.path().join("pgherd");
        run(Command::new("strip").arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_pgherd")));
        let version = Command::new(&program).arg("--version").output().unwrap().stdout;
        let version = String::from_utf8(version).unwrap();
        let build = Build::of(program, version.trim_end().strip_prefix("pgherd ").unwrap());
        let site = Self { directory, major, bin, ports: free_ports(3), places, build };
        site.make_empty();
        site
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("live")
    }

    pub fn data(&self, node: &str) -> PathBuf {
        self.root().join("data").join(node)
    }

    pub fn repository(&self) -> PathBuf {
        self.root().join("repository")
    }

    /// Tells whether a WAL segment is in the repository.
    pub fn is_stored(&self, segment: &str) -> bool {
        let systems = fs::read_dir(self.repository().join(CLUSTER)).into_iter().flatten().flatten();
        let below = format!("wal/{}/{segment}.zst", &segment[..16]);
        systems.map(|system| system.path().join(&below)).any(|file| file.exists())
    }

    /// Puts two builds of before on the host.
    pub fn have_older_builds(&self) {
        for hash in ["0000000000000001", "0000000000000002"] {
            let copy = self.places.copy(hash);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::write(copy, hash).unwrap();
        }
    }

    /// Tells whether anything of the program is on the host.
    pub fn has_program(&self) -> bool {
        self.places.lib().exists()
    }

    /// Tells whether the repository has a folder of a system identifier.
    pub fn has_wal(&self) -> bool {
        let systems = fs::read_dir(self.repository().join(CLUSTER)).into_iter().flatten().flatten();
        systems.filter(|entry| entry.path().is_dir()).count() > 0
    }

    /// Returns what a restore in place has set aside of a node.
    pub fn aside(&self, node: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root().join("data")).into_iter().flatten().flatten();
        let before = format!("{node}.before-");
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&before))
            .map(|entry| entry.path())
            .collect()
    }

    /// Where pgherd keeps its facts of a node.
    pub fn facts(&self, node: &str) -> PathBuf {
        self.places.node(&format!("{CLUSTER}-{node}")).facts
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("pgherd.yml")
    }

    fn make_empty(&self) {
        for path in [self.root(), self.root().join("data")] {
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            run(Command::new("chown").args(["postgres:", "--"]).arg(self.root().join("data")));
        }
        let secret = self.directory.path().join("password");
        fs::write(&secret, format!("{PASSWORD}\n")).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes the topology of a shape and loads it.
    pub fn declare(&self, shape: Shape) -> Herd {
        let nodes = if shape == Shape::Single { &NODES[..1] } else { &NODES[..] };
        let nodes: String = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let prefer = if index == 0 { ", prefer: primary" } else { "" };
                let (port, data) = (self.ports[index], self.data(node));
                format!(
                    "      {node}: {{host: local, port: {port}, data-directory: {}{prefer}}}\n",
                    data.display()
                )
            })
            .collect();
        let synchronous = if shape == Shape::Single { "none" } else { "{wait-for: 1, of: [a, b]}" };
        let (repositories, backups) = match shape {
            Shape::Archived => (
                format!("repositories: {{main: {{url: file://{}}}}}\n", self.repository().display()),
                "    backups: {repository: main}\n",
            ),
            Shape::Single | Shape::Pair | Shape::Larger | Shape::Encrypted => (String::new(), ""),
        };
        let connections = if shape == Shape::Larger { 40 } else { 30 };
        let tls = if shape == Shape::Encrypted { "\n      tls: own" } else { "" };
        let text = format!(
            "pgherd: 1
herd: faults
timezone: UTC
regions: {{here: {{hosts: {{local: local}}}}}}
{repositories}clusters:
  {CLUSTER}:
    ports: {{pooler: {pooler}}}
    postgres:
      version: {major}
      bin-directory: {bin}{tls}
      tune: {{memory: 128 MiB}}
      settings: {{max_connections: {connections}, work_mem: 4 MiB}}
    nodes:
{nodes}{backups}    synchronous: {synchronous}
    schemas: {{{CLUSTER}: {{owner: toys_owner, write: [{APP}]}}}}
    roles: {{{APP}: {{password: {{file: password}}, pools: [rw, ro]}}}}
    poolers:
      hosts: [local]
      mode: transaction
      max-clients: 20
      pools:
        rw: {{to: primary, size: 4}}
        ro: {{to: standbys, size: 4, fallback: primary}}
",
            pooler = self.ports[2],
            major = self.major,
            bin = self.bin.display(),
        );
        fs::write(self.file(), text).unwrap();
        match topology::load(&self.file()) {
            Ok(herd) => herd,
            Err(problems) => panic!("{problems:?}"),
        }
    }

    /// Runs the program itself, which has to succeed: at the latest when the machine has a moment.
    pub fn pgherd(&self, args: &[&str]) {
        self.until("pgherd succeeds", || {
            let mut command = self.command(args);
            command.stdout(std::process::Stdio::null()).status().unwrap().success()
        });
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
        for (variable, name) in
            [("PGHERD_CONFIG_DIR", "config"), ("PGHERD_STATE_DIR", "state"), ("PGHERD_LIB_DIR", "lib")]
        {
            command.env(variable, self.root().join(name));
        }
        command.arg("--file").arg(self.file()).args(args);
        command
    }

    pub fn context(&self, gate: std::sync::Arc<dyn Gate>, store: Store) -> Context {
        Context { places: self.places.clone(), gate, store, build: self.build.clone(), role: None }
    }

    pub fn store(&self) -> Store {
        Store::new(self.places.state())
    }

    /// Ends every process, and keeps what is there as what [`Site::restore`] puts back.
    pub fn keep(&self, name: &str) {
        let running = self.running();
        self.end_all(Signal::INT);
        let kept = self.directory.path().join(name);
        run(Command::new("cp").arg("-a").arg(self.root()).arg(&kept));
        fs::write(kept.join("running"), running.join("\n")).unwrap();
    }

    /// Puts back what was kept, and starts what ran then; an unknown name is an empty place.
    pub fn restore(&self, name: &str) {
        self.end_all(Signal::QUIT);
        if self.root().exists() {
            fs::remove_dir_all(self.root()).unwrap();
        }
        let kept = self.directory.path().join(name);
        if !kept.exists() {
            self.make_empty();
            return;
        }
        run(Command::new("cp").arg("-a").arg(&kept).arg(self.root()));
        let running = fs::read_to_string(self.root().join("running")).unwrap();
        fs::remove_file(self.root().join("running")).unwrap();
        for node in NODES.iter().filter(|node| running.contains(&format!("postgres {node}"))) {
            self.start(node);
        }
        if running.contains("pgbouncer") {
            run(self.as_os_user("pgbouncer").arg("-d").arg(self.pooler().join("pgbouncer.ini")));
            self.until("PgBouncer listens", || {
                std::net::TcpStream::connect(("127.0.0.1", self.ports[2])).is_ok()
            });
        }
    }

    /// Removes the lock of a command that died while it planned. Everywhere else it ends with the process; here that is the harness itself.
    pub fn end_planners_lock(&self) {
        let path = self.repository().join(CLUSTER).join("lock.json");
        let Ok(text) = fs::read_to_string(&path) else { return };
        let lock: serde_json::Value = serde_json::from_str(&text).unwrap();
        if lock["operation"].is_null() {
            fs::remove_file(&path).unwrap();
        }
    }

    /// Starts a server behind pgherd's back.
    pub fn start(&self, node: &str) {
        let log = self.places.node(&format!("{CLUSTER}-{node}")).log.join("startup.log");
        let mut start = self.as_os_user(&self.bin.join("pg_ctl").display().to_string());
        run(start.args(["start", "-w", "-s", "-D"]).arg(self.data(node)).arg("-l").arg(log));
    }

    /// Stops a server as an operator would.
    pub fn stop(&self, node: &str) {
        let mut stop = self.as_os_user(&self.bin.join("pg_ctl").display().to_string());
        run(stop.args(["stop", "-w", "-s", "-m", "fast", "-D"]).arg(self.data(node)));
    }

    /// Ends a node's server as a power cut ends it.
    pub fn kill(&self, node: &str) {
        let name = format!("postgres {node}");
        for process in self.processes().iter().filter(|process| process.name == name) {
            rustix::process::kill_process(process.pid, Signal::KILL).ok();
        }
        self.until("the server is gone", || !self.running().contains(&name));
        let directory = self.data(node);
        self.until("its children are gone", || {
            let works_there = |entry: fs::DirEntry| {
                fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory)
            };
            !fs::read_dir("/proc").unwrap().flatten().any(works_there)
        });
    }

    /// Stops PgBouncer behind pgherd's back.
    pub fn stop_pooler(&self) {
        for process in self.processes().iter().filter(|process| process.name == "pgbouncer") {
            rustix::process::kill_process(process.pid, Signal::TERM).ok();
        }
        self.until("PgBouncer ends", || !self.running().iter().any(|name| name == "pgbouncer"));
    }

    pub fn pooler(&self) -> PathBuf {
        self.places.pooler(CLUSTER, "local")
    }

    fn as_os_user(&self, program: &str) -> Command {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--", program]);
            command
        } else {
            Command::new(program)
        };
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        command
    }

    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is() {
            assert!(Instant::now() < deadline, "not within 20 s: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Opens a session as the superuser.
    pub async fn connect(&self, cluster: &Cluster, node: &str, database: &str) -> Result<Conn, DbError> {
        let doors = Doors::open(cluster, self.places.clone(), &gate::open()).unwrap();
        let Some(node) = cluster.node(node) else {
            return Err(DbError::NoDatabase { server: node.to_owned(), database: database.to_owned() });
        };
        doors.connector.connect(&doors.superuser(cluster, node, database)).await
    }

    /// Comes in as a client does: through the pooler, by password.
    pub async fn enter(&self, cluster: &Cluster, alias: &str) -> Result<Conn, DbError> {
        let doors = Doors::open(cluster, self.places.clone(), &gate::open()).unwrap();
        let login = Login {
            server: alias.to_owned(),
            endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: self.ports[2] },
            user: APP.to_owned(),
            database: alias.to_owned(),
            password: Some(Secret::new(PASSWORD)),
            session: Session::Plain,
            tunnel: None,
            tls: None,
        };
        doors.connector.connect(&login).await
    }

    /// Asks a server for one column of text; `None` if it does not answer.
    pub async fn ask(&self, cluster: &Cluster, node: &str, sql: &str) -> Option<Vec<String>> {
        let conn = self.connect(cluster, node, "postgres").await.ok()?;
        let rows = conn.simple("ask", sql).await.unwrap();
        Some(rows.into_iter().filter_map(|row| row.into_values().next().flatten()).collect())
    }

    /// Writes what a client has in the cluster before an operation.
    pub async fn write_row(&self, cluster: &Cluster) {
        let conn = self.connect(cluster, NODES[0], "postgres").await.unwrap();
        conn.batch("write a row", "CREATE TABLE public.kept AS SELECT 'a row'::text AS content")
            .await
            .unwrap();
    }

    /// Tells whether a node has the row of [`Site::write_row`].
    pub async fn has_row(&self, cluster: &Cluster, node: &str) -> Result<bool, String> {
        let conn = self.connect(cluster, node, "postgres").await.map_err(|error| error.to_string())?;
        let rows = conn.simple("read the row", "SELECT content FROM public.kept").await;
        let rows = rows.map_err(|error| format!("{node}: {error}"))?;
        Ok(rows.into_iter().flat_map(|row| row.into_values().flatten()).eq(["a row".to_owned()]))
    }

    /// Tells whether clients may have come in: the declared role can log in.
    pub async fn is_open(&self, cluster: &Cluster) -> bool {
        let sql = "SELECT rolname FROM pg_authid WHERE rolcanlogin AND rolpassword IS NOT NULL AND rolname = 'toys_app'";
        self.ask(cluster, NODES[0], sql).await.is_some_and(|names| !names.is_empty())
    }

    /// Returns the programs that run in this place: `postgres a`, `pgbouncer`, and whatever was left behind.
    pub fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lasting().map(|process| process.name).collect();
        names.sort();
        names
    }

    /// Returns the same with process numbers.
    pub fn running_exactly(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.lasting().map(|p| format!("{} {}", p.name, p.pid.as_raw_nonzero())).collect();
        names.sort();
        names
    }

    /// Processes that do not come and go with each WAL segment.
    fn lasting(&self) -> impl Iterator<Item = Process> {
        const PASSING: [&str; 5] =
            [" wal push ", " wal fetch ", " wal ahead ", " wal prefetch ", " wal settle "];
        let passing = |name: &str| PASSING.iter().any(|words| name.contains(words));
        self.processes().into_iter().filter(move |process| !passing(&process.name))
    }

    fn processes(&self) -> Vec<Process> {
        let root = self.root().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) =
                entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
            else {
                continue;
            };
            let Ok(cmdline) = fs::read(entry.path().join("cmdline")) else { continue };
            let words: Vec<String> = cmdline
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .filter(|word| !word.is_empty())
                .collect();
            let Some(word) = words.iter().find(|word| word.starts_with(&root)) else { continue };
            let program = Path::new(&words[0]).file_name().map(|name| name.to_string_lossy().into_owned());
            let name = match program.unwrap_or_default().as_str() {
                "pgbouncer" => "pgbouncer".to_owned(),
                "postgres" => format!("postgres {}", word.rsplit('/').next().unwrap_or_default()),
                _ => words.join(" "),
            };
            found.push(Process { pid, name });
        }
        found
    }

    /// Ends every process of this place by its number: servers with `signal`, and with SIGKILL what does not heed it.
    fn end_all(&self, signal: Signal) {
        let mut signal = signal;
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                return;
            }
            for process in &processes {
                rustix::process::kill_process(process.pid, process.signal(signal)).ok();
            }
            let begun = Instant::now();
            let lives = |process: &Process| rustix::process::test_kill_process(process.pid).is_ok();
            while processes.iter().any(lives) && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if begun.elapsed() >= Duration::from_secs(10) {
                signal = Signal::KILL;
            }
        }
    }

    /// Draws everything that pgherd could have changed, apart from grants, journals, logs and process numbers.
    pub async fn picture(&self, cluster: &Cluster) -> String {
        let mut lines: Vec<String> = self.running();
        for (path, text) in self.files() {
            lines.push(format!("{path}: {text}"));
        }
        for node in NODES {
            let slots = "SELECT slot_name::text FROM pg_replication_slots ORDER BY 1";
            let roles = "SELECT rolname || CASE WHEN rolpassword IS NULL THEN '' ELSE ' with a password' END FROM pg_authid \
                         WHERE rolname !~ '^pg_' ORDER BY 1";
            let settings = "SELECT name || ' = ' || setting FROM pg_settings WHERE source = 'configuration file' \
                            ORDER BY name";
            for sql in [slots, roles, settings] {
                if let Some(rows) = self.ask(cluster, node, sql).await {
                    lines.push(format!("{node}: {}", rows.join(", ")));
                }
            }
        }
        lines.join("\n")
    }

    /// Returns the files that pgherd writes, by path, with their text; of others only that they are there.
    fn files(&self) -> BTreeMap<String, String> {
        const OURS: [&str; 12] = [
            "pgherd.conf",
            "pgherd.node.conf",
            "postgresql.conf",
            "pg_hba.conf",
            "pg_ident.conf",
            "postgresql.auto.conf",
            "marker.json",
            "profile.json",
            "passfile",
            "pgbouncer.ini",
            "userlist.txt",
            "standby.signal",
        ];
        let mut found = BTreeMap::new();
        let mut open = vec![self.root()];
        while let Some(directory) = open.pop() {
            // Servers come and go, and their files with them.
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.filter_map(Result::ok) {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                let shown = path.strip_prefix(self.root()).unwrap().display().to_string();
                if shown == "lib" {
                    // Copies stay; what counts is where the link leads.
                    let link = fs::read_link(path.join("pgherd")).ok();
                    found.extend(link.map(|to| ("lib/pgherd".to_owned(), to.display().to_string())));
                    continue;
                }
                if path == self.repository() {
                    continue;
                }
                let inside_data = shown.starts_with("data/") && shown.matches('/').count() >= 2;
                if OURS.contains(&name.as_str()) {
                    found.insert(shown, fs::read_to_string(&path).unwrap_or_default());
                } else if path.is_dir() {
                    if !inside_data {
                        open.push(path);
                    }
                    let ended = shown.starts_with("state/operations") || shown.starts_with("state/locks");
                    // Empty parents that pgherd made for itself, and the authority of the herd, are no trace of a node.
                    let own = [
                        "config",
                        "config/nodes",
                        "state",
                        "state/run",
                        "state/log",
                        "state/spool",
                        "state/poolers",
                    ];
                    let ended = ended || shown.starts_with("state/authority");
                    // What lies in a node's spool comes and goes with its WAL; the spool itself is a trace.
                    let passing = shown.starts_with("state/spool/") && shown.matches('/').count() >= 3;
                    let ended = ended || passing;
                    if !inside_data && !ended && !own.contains(&shown.as_str()) {
                        found.insert(shown, String::new());
                    }
                }
            }
        }
        found
    }

    /// Returns what one wants to see of a case that went wrong.
    pub fn evidence(&self) -> String {
        let mut text = format!("processes: {}\n", self.running_exactly().join("; "));
        text.push_str("files:\n");
        for path in self.files().keys() {
            text.push_str(&format!("  {path}\n"));
        }
        let mut logs: Vec<PathBuf> = NODES
            .iter()
            .flat_map(|node| {
                let log = self.places.node(&format!("{CLUSTER}-{node}")).log;
                fs::read_dir(log).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
            })
            .collect();
        logs.push(self.pooler().join("pgbouncer.log"));
        for log in logs {
            let Ok(all) = fs::read_to_string(&log) else { continue };
            let lines: Vec<&str> = all.lines().collect();
            text.push_str(&format!("the end of {}:\n", log.display()));
            for line in &lines[lines.len().saturating_sub(15)..] {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.end_all(Signal::QUIT);
    }
}

struct Process {
    pid: Pid,
    name: String,
}

impl Process {
    /// Which signal ends it as fast as `server` ends a server. PgBouncer before 1.23 does not catch SIGQUIT, which a shell has its
    /// background jobs ignore.
    fn signal(&self, server: Signal) -> Signal {
        match self.name.as_str() {
            "pgbouncer" if server == Signal::QUIT => Signal::TERM,
            name if name == "pgbouncer" || name.starts_with("postgres ") => server,
            _ => Signal::KILL,
        }
    }
}

fn run(command: &mut Command) {
    // Of a daemon that keeps its pipes open, only the start is waited for.
    let ended = command.stdout(std::process::Stdio::null()).status().unwrap();
    assert!(ended.success(), "{command:?} ended with {ended}");
}

/// Finds the newest PostgreSQL among `PGHERD_TEST_PG`, else Debian's.
fn newest() -> (u32, PathBuf) {
    let named = std::env::var("PGHERD_TEST_PG").unwrap_or_default();
    let mut homes: Vec<PathBuf> =
        named.split(':').filter(|home| !home.is_empty()).map(PathBuf::from).collect();
    if homes.is_empty() {
        let found =
            fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: scripts/setup --test");
        homes = found.map(|entry| entry.unwrap().path()).collect();
    }
    let version = |home: &PathBuf| {
        let bin = home.join("bin");
        let printed = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
        let line = String::from_utf8_lossy(&printed.stdout).into_owned();
        Some((pgherd::pg::version::PgVersion::from_version_line(&line)?.major, bin))
    };
    homes.iter().filter_map(version).max().expect("one is installed")
}

/// Chooses ports below those that the kernel gives to outgoing connections, so that none of them gets ours in between.
fn free_ports(count: usize) -> Vec<u16> {
    let mut random = [0_u8; 2];
    getrandom::fill(&mut random).unwrap();
    let first = 15_000 + u16::from_ne_bytes(random) % 15_000;
    (first..32_000).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}
