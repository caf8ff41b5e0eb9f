//! A throw-away herd: its own topology, directories, ports and passwords, driven through the real binary as a user would.
//!
//! Nothing of it outlives the value: what runs for its directory is ended by its process number, also when a test panics.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use crate::kept::{self, Kept, Kind};
use crate::server::{Installation, installations, newest, place};
use crate::weed::{self, weed};

/// What no command of a test may take longer than.
const LIMIT: Duration = Duration::from_secs(180);

pub const APP_PASSWORD: &str = "Xq7-known-to-app";
/// A key of a repository.
pub const REPO_KEY: &str = "5a0b1f0e9d8c7b6a59483726150403f2e1d0cfbeadfceb9a8978675645342312";
/// What has a repository encrypted.
pub const ENCRYPT: &str = ", encrypt: {env: REPO_KEY}";
pub const BI_PASSWORD: &str = "Zw9-known-to-bi";

/// One run of pgherd.
#[derive(Debug, Clone)]
pub struct Ran {
    pub args: String,
    /// The exit code; 128 + signal if a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    /// Holds the run to have ended with `code`.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "pgherd {}\n{}--- stderr\n{}", self.args, self.stdout, self.stderr);
        self
    }

    /// Holds standard output to hold each of `texts`.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stdout.contains(text), "no {text:?} in\n{}--- stderr\n{}", self.stdout, self.stderr);
        }
        self
    }

    /// Holds standard output not to hold `text`.
    #[track_caller]
    pub fn does_not_say(self, text: &str) -> Self {
        assert!(!self.stdout.contains(text), "{text:?} in\n{}", self.stdout);
        self
    }

    /// Holds the messages to hold each of `texts`.
    #[track_caller]
    pub fn tells(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in\n{}--- stdout\n{}", self.stderr, self.stdout);
        }
        self
    }

    /// Returns standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }
}

/// What a herd is made of. Node a is the preferred primary.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    pub nodes: &'a [&'a str],
    /// Whether a commit waits for one standby.
    pub synchronous: bool,
    pub pooler: bool,
}

/// Three nodes, of which one standby acknowledges, and a pooler.
pub const WHOLE: Shape<'static> = Shape { nodes: &["a", "b", "c"], synchronous: true, pooler: true };
/// Two nodes and a pooler.
pub const PAIR: Shape<'static> = Shape { nodes: &["a", "b"], synchronous: false, pooler: true };
/// One node, no pooler.
pub const SINGLE: Shape<'static> = Shape { nodes: &["a"], synchronous: false, pooler: false };

/// Returns the newest version or 15, in turns, so that both see the scenarios.
pub fn newest_or_15(turn: u32) -> Installation {
    let fifteen = installations().into_iter().find(|installation| installation.major == 15);
    fifteen.filter(|_| turn % 2 == 1).unwrap_or_else(newest)
}

/// A cluster `inventory` of a herd `shop`, in a short directory of its own.
#[derive(Debug)]
pub struct Herd {
    directory: tempfile::TempDir,
    installation: Installation,
    ports: BTreeMap<String, Port>,
    text: String,
    variables: BTreeMap<&'static str, String>,
    bucket: Option<String>,
    /// Whether what is restored comes from the copy ([`Kind::Copy`]).
    from_a_copy: bool,
}

impl Herd {
    /// Declares a herd; nothing is made yet.
    pub fn declare(installation: &Installation, shape: &Shape<'_>) -> Self {
        let directory = tempfile::Builder::new().prefix("pgh-").tempdir_in(place()).expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        let mut ports: BTreeMap<String, Port> =
            shape.nodes.iter().map(|node| ((*node).to_owned(), Port::reserve())).collect();
        ports.insert("pooler".to_owned(), Port::reserve());
        let mut herd = Self {
            directory,
            installation: installation.clone(),
            ports,
            text: String::new(),
            variables: BTreeMap::from([
                ("APP_PASSWORD", APP_PASSWORD.to_owned()),
                ("BI_PASSWORD", BI_PASSWORD.to_owned()),
            ]),
            bucket: None,
            from_a_copy: false,
        };
        herd.text = herd.topology(shape);
        herd.write();
        herd
    }

    /// Declares a herd and applies it.
    pub fn up(installation: &Installation, shape: &Shape<'_>) -> Self {
        let herd = Self::declare(installation, shape);
        herd.apply().ends_with(0);
        herd
    }

    fn topology(&self, shape: &Shape<'_>) -> String {
        let nodes: String = shape
            .nodes
            .iter()
            .map(|node| {
                let prefer = if *node == shape.nodes[0] { ", prefer: primary" } else { "" };
                self.node_line(node, prefer)
            })
            .collect();
        let synchronous = if shape.synchronous {
            format!("    synchronous: {{wait-for: 1, of: [{}]}}\n", shape.nodes.join(", "))
        } else {
            String::new()
        };
        let poolers = if shape.pooler {
            "    poolers:\n      hosts: [local]\n      mode: transaction\n      max-clients: 50\n      pools:\n        \
             rw: {to: primary, size: 8, reserve: 2}\n        ro: {to: standbys, size: 8, fallback: primary}\n"
        } else {
            ""
        };
        let pools = |names: &str| if shape.pooler { format!(", pools: [{names}]") } else { String::new() };
        format!(
            "pgherd: 1\nherd: shop\ntimezone: UTC\nregions: {{here: {{hosts: {{local: local}}}}}}\nclusters:\n  inventory:\n    \
             postgres:\n      version: {}\n      bin-directory: {}\n      tune: {{memory: 128 MiB}}\n      settings:\n        \
             max_connections: 40\n        work_mem: 4 MiB\n{}    nodes:\n{nodes}{synchronous}{poolers}    \
             schemas:\n      inventory: {{owner: inventory_owner, write: [app], read: [bi]}}\n    \
             roles:\n      app: {{password: {{env: APP_PASSWORD}}{}}}\n      \
             bi: {{password: {{env: BI_PASSWORD}}{}, connections: 4}}\n    \
             objectives: {{lose-primary: {{rpo: 5 s, rto: 1 min}}}}\n",
            self.installation.major,
            self.installation.bin().display(),
            if shape.pooler {
                format!("    ports: {{pooler: {}}}\n", self.port("pooler"))
            } else {
                String::new()
            },
            pools("rw, ro"),
            pools("ro"),
        )
    }

    /// Returns the line that declares a node.
    fn node_line(&self, node: &str, more: &str) -> String {
        let (port, data) = (self.port(node), self.data(node));
        format!("      {node}: {{host: local, port: {port}, data-directory: {}{more}}}\n", data.display())
    }

    /// Declares one more node, after the others.
    pub fn add_node(&mut self, node: &str) {
        self.ports.insert(node.to_owned(), Port::reserve());
        let line = self.node_line(node, "");
        let at = self.text.find("    synchronous:").or_else(|| self.text.find("    poolers:"));
        let at = at.or_else(|| self.text.find("    schemas:")).expect("what follows the nodes");
        self.text.insert_str(at, &line);
        self.write();
    }

    /// Declares something else altogether.
    pub fn rewrite(&mut self, text: String) {
        self.text = text;
        self.write();
    }

    /// Takes the line of a node out of the file.
    pub fn leave_out(&mut self, node: &str) {
        let line = self.node_line(node, "");
        self.edit(&line, "");
    }

    /// Replaces a part of the topology.
    #[track_caller]
    pub fn edit(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "no {from:?} in\n{}", self.text);
        self.text = self.text.replace(from, to);
        self.write();
    }

    /// Declares backups; the repository is in the herd's own directory, or where `PGHERD_TEST_REPOSITORY` says: `encrypted` is there too, `s3` and
    /// `s3-encrypted` are in a bucket, `copy` has a second one.
    pub fn keep_backups(&mut self) {
        let kind = Kind::of_this_run();
        assert!(self.keep_backups_in(kind), "there is no S3 server for this machine");
    }

    /// Declares backups in a repository of this kind; tells whether this machine can have one.
    #[must_use]
    pub fn keep_backups_in(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Directory => self.keep_backups_in_the_clear(),
            Kind::EncryptedDirectory => self.keep_backups_encrypted(),
            Kind::Bucket => return self.keep_backups_in_a_bucket("").is_some(),
            Kind::EncryptedBucket => return self.keep_backups_in_a_bucket(ENCRYPT).is_some(),
            Kind::Copy => {
                self.keep_backups_in_the_clear();
                self.keep_copies();
                self.from_a_copy = true;
            }
        }
        true
    }

    fn keep_backups_in_the_clear(&mut self) {
        let repository = format!("repositories: {{main: {{url: file://{}}}}}\n", self.repository().display());
        self.edit("clusters:\n", &format!("{repository}clusters:\n"));
        self.edit("    nodes:\n", "    backups: {repository: main}\n    nodes:\n");
    }

    /// The same, encrypted.
    pub fn keep_backups_encrypted(&mut self) {
        let repository = self.repository();
        self.declare_repository(&format!("url: \"file://{}\"{ENCRYPT}", repository.display()));
    }

    /// The same in a bucket of its own, which locks objects if that is declared, with these keys beside; returns its URL, and nothing where there is no S3 server for this machine.
    pub fn keep_backups_in_a_bucket(&mut self, more: &str) -> Option<String> {
        let weed = weed()?;
        let bucket = if more.contains("object-lock") { weed.locking_bucket() } else { weed.bucket() };
        let url = format!("s3://{bucket}/{}", kept::PREFIX);
        self.bucket = Some(bucket);
        self.variable("S3_ACCESS_KEY", Some(weed::ACCESS_KEY));
        self.variable("S3_SECRET_KEY", Some(weed::SECRET_KEY));
        let endpoint = weed.endpoint();
        self.declare_repository(&format!(
            "url: \"{url}\", endpoint: \"{endpoint}\", access-key: {{env: S3_ACCESS_KEY}}, secret-key: {{env: S3_SECRET_KEY}}{more}"
        ));
        Some(url)
    }

    fn declare_repository(&mut self, keys: &str) {
        self.variable("REPO_KEY", Some(REPO_KEY));
        self.edit("clusters:\n", &format!("repositories: {{main: {{{keys}}}}}\nclusters:\n"));
        self.edit("    nodes:\n", "    backups: {repository: main}\n    nodes:\n");
    }

    /// Declares a further repository, `far`, in a directory of its own.
    pub fn keep_copies(&mut self) {
        let far = format!("repositories: {{far: {{url: file://{}}}, main: {{", self.far().display());
        self.edit("repositories: {main: {", &far);
        self.edit("backups: {repository: main}", "backups: {repository: main, copies: {far: {}}}");
    }

    /// Declares one more cluster, of one node, with the backups of the first.
    pub fn add_cluster(&mut self, name: &str) {
        let port = Port::reserve();
        let backups = if self.text.contains("backups:") { "    backups: {repository: main}\n" } else { "" };
        let (major, bin, number) = (self.installation.major, self.installation.bin(), port.number);
        self.text.push_str(&format!(
            "  {name}:\n    postgres: {{version: {major}, bin-directory: {}, tune: {{memory: 128 MiB}}}}\n{backups}    nodes:\n      \
             a: {{host: local, port: {number}, data-directory: {}}}\n    objectives: {{lose-primary: {{rpo: 5 s, rto: 1 min}}}}\n",
            bin.display(),
            self.path(&format!("data/{name}-a")).display(),
        ));
        self.ports.insert(format!("{name}-a"), port);
        self.write();
    }

    /// Where the repository is, if it is a directory.
    pub fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// Where the further repository is.
    pub fn far(&self) -> PathBuf {
        self.path("far")
    }

    /// Whether what is in the repository is encrypted: damage is then found where it is read, not where it is used.
    pub fn is_encrypted(&self) -> bool {
        self.text.contains(ENCRYPT)
    }

    /// What lies in the repository that is restored from, whichever kind it is.
    pub fn kept(&self) -> Kept {
        if self.from_a_copy {
            return Kept::Directory(self.far());
        }
        self.bucket.clone().map_or_else(|| Kept::Directory(self.repository()), Kept::Bucket)
    }

    fn write(&self) {
        fs::write(self.path("pgherd.yml"), &self.text).expect("write the topology");
    }

    /// Sets or, with `None`, takes away a variable of pgherd's environment.
    pub fn variable(&mut self, name: &'static str, value: Option<&str>) {
        match value {
            Some(value) => self.variables.insert(name, value.to_owned()),
            None => self.variables.remove(name),
        };
    }

    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The herd's own directory, which everybody may read.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn data(&self, node: &str) -> PathBuf {
        self.path("data").join(node)
    }

    /// Where the facts of a node are.
    pub fn facts(&self, node: &str) -> PathBuf {
        self.path("config/nodes").join(format!("inventory-{node}"))
    }

    pub fn pooler(&self) -> PathBuf {
        self.path("state/poolers/inventory-local")
    }

    #[track_caller]
    pub fn port(&self, of: &str) -> u16 {
        self.ports[of].number
    }

    /// Returns an output of this herd without what differs from run to run: its ports, its directory, the width of its columns.
    pub fn settled(&self, output: &str) -> String {
        let mut text = output.replace(&self.root().display().to_string(), "[herd]");
        for (of, port) in &self.ports {
            text = text.replace(&port.number.to_string(), &format!("[{of}'s port]"));
        }
        text.lines()
            .map(|line| match line.split_once("undo:") {
                Some((before, after)) => format!("{}   undo:{after}\n", before.trim_end()),
                None => format!("{line}\n"),
            })
            .collect()
    }

    /// Prepares a run of pgherd.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(binary(), args)
    }

    fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.root())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root())
            .env("PGHERD_CONFIG_DIR", self.path("config"))
            .env("PGHERD_STATE_DIR", self.path("state"))
            .env("PGHERD_LIB_DIR", self.path("lib"))
            .envs(&self.variables)
            .stdin(Stdio::null());
        command
    }

    /// Runs pgherd to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        self.start(args).end()
    }

    /// Makes another build of pgherd, which behaves the same.
    pub fn build(&self, name: &str) -> PathBuf {
        let program = self.path("built").join(name).join("pgherd");
        fs::create_dir_all(program.parent().expect("a directory")).expect("a directory");
        // Without what a debugger wants of it, since it is copied again and again.
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(&program).arg(binary());
        text_of(strip).expect("binutils are there");
        let mut file = OpenOptions::new().append(true).open(&program).expect("writable");
        std::io::Write::write_all(&mut file, name.as_bytes()).expect("writable");
        program
    }

    /// Runs another build.
    #[track_caller]
    pub fn run_by(&self, program: &Path, args: &[&str]) -> Ran {
        Running::start(self.command_of(program, args), args).end()
    }

    /// Returns the builds that are installed, by their hashes.
    pub fn builds(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("lib")).into_iter().flatten();
        let names = entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
        let mut builds: Vec<String> = names.filter(|name| name != "pgherd").collect();
        builds.sort();
        builds
    }

    /// Returns the build that the link leads to.
    #[track_caller]
    pub fn build_in_use(&self) -> String {
        let link = fs::read_link(self.path("lib/pgherd")).expect("a link");
        link.parent().expect("HASH/pgherd").display().to_string()
    }

    /// Starts pgherd and does not wait.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args), args)
    }

    /// Makes a backup, and brings it to where it is restored from.
    #[track_caller]
    pub fn back_up(&self) -> Ran {
        let made = self.run(&["backup", "create"]);
        if self.from_a_copy {
            self.run(&["backup", "copy", "--to", "far"]).ends_with(0);
        }
        made
    }

    /// Starts what restores a copy of the cluster. Where that comes from a copy of the repository, the first one is lost until it has ended.
    pub fn start_restore(&self, args: &[&str]) -> Running {
        if !self.from_a_copy {
            return self.start(args);
        }
        let lost = self.lose_the_first();
        let mut running = self.start(&[args, &["--repository", "far"]].concat());
        running.lost = Some(lost);
        running
    }

    /// The same, to its end.
    #[track_caller]
    pub fn restore(&self, args: &[&str]) -> Ran {
        self.start_restore(args).end()
    }

    /// Has the first repository, a directory, gone for as long as what this returns lives.
    pub fn lose_the_first(&self) -> Lost {
        Lost::now(self.repository())
    }

    #[track_caller]
    pub fn apply(&self) -> Ran {
        self.run(&["apply", "--yes"])
    }

    #[track_caller]
    pub fn plan(&self) -> Ran {
        self.run(&["plan"])
    }

    #[track_caller]
    pub fn status(&self) -> Ran {
        self.run(&["status"])
    }

    /// Holds the herd to be as declared: `apply` finds nothing to do.
    #[track_caller]
    pub fn is_as_declared(&self) {
        self.apply().ends_with(0).says(&["No changes."]);
    }

    /// Returns what status says of a node, as JSON.
    #[track_caller]
    pub fn node_status(&self, node: &str) -> serde_json::Value {
        let report = self.run(&["status", "--format", "json"]).ends_with(0).json();
        let nodes = report["clusters"][0]["nodes"].as_array().expect("nodes").clone();
        nodes.into_iter().find(|found| found["node"] == node).unwrap_or_else(|| panic!("no node {node}"))
    }

    /// Asks a node over its Unix socket as the superuser, and returns rows as lines with `|` between columns.
    #[track_caller]
    pub fn sql(&self, node: &str, sql: &str) -> String {
        self.sql_in(node, "postgres", sql)
    }

    #[track_caller]
    pub fn sql_in(&self, node: &str, database: &str, sql: &str) -> String {
        self.try_sql(node, database, sql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }

    pub fn try_sql(&self, node: &str, database: &str, sql: &str) -> Result<String, String> {
        let socket = self.path("state/run").join(format!("inventory-{node}"));
        let psql = self.installation.bin().join("psql");
        let mut command = as_server(&psql);
        command
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql, "-p"])
            .arg(self.port(node).to_string())
            .arg("-h")
            .arg(socket);
        text_of(command)
    }

    /// Logs in to the pooler, or to a node's own port, as a client with a password.
    pub fn client(
        &self,
        port: &str,
        user: &str,
        password: &str,
        database: &str,
        sql: &str,
    ) -> Result<String, String> {
        let mut command = Command::new(self.installation.bin().join("psql"));
        command
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-U",
                user,
                "-d",
                database,
                "-c",
                sql,
                "-p",
            ])
            .arg(self.port(port).to_string())
            .env("PGPASSWORD", password);
        text_of(command)
    }

    /// Runs one of PostgreSQL's programs as the user that owns the data directories.
    #[track_caller]
    pub fn program(&self, name: &str, args: &[&str]) -> String {
        let mut command = as_server(&self.installation.bin().join(name));
        command.args(args);
        text_of(command).unwrap_or_else(|said| panic!("{name} {args:?}: {said}"))
    }

    /// Stops a node by hand, in one of pg_ctl's modes.
    #[track_caller]
    pub fn stop(&self, node: &str, mode: &str) {
        self.program("pg_ctl", &["-D", text(&self.data(node)), "-m", mode, "-w", "stop"]);
    }

    /// Returns the process number of a node's postmaster, if it runs.
    pub fn postmaster(&self, node: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.data(node).join("postmaster.pid")).ok()?;
        // A standalone server, as initdb runs one, writes its number with a minus.
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 0)?)?;
        let data = self.data(node).display().to_string();
        command_line(pid).contains(&data).then_some(pid)
    }

    /// Returns the process number of the pooler.
    pub fn pgbouncer(&self) -> Option<Pid> {
        let ini = self.pooler().join("pgbouncer.ini").display().to_string();
        self.processes()
            .into_iter()
            .find(|(_, line)| line.contains("pgbouncer") && line.contains(&ini))
            .map(|(pid, _)| pid)
    }

    /// Returns every process that runs for a file of this herd, but for the ones that the tests themselves are.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let root = self.root().display().to_string();
        processes().into_iter().filter(|(_, line)| line.contains(&root)).collect()
    }

    /// Returns the nodes that accept writes.
    pub fn primaries(&self) -> Vec<String> {
        self.ports
            .keys()
            .filter(|node| self.try_sql(node, "postgres", "SELECT pg_is_in_recovery()").as_deref() == Ok("f"))
            .cloned()
            .collect()
    }

    /// Holds nothing to be there: no process, no directory of a node, no fact, socket, log or pooler of one.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        until("no process is left", || self.processes().is_empty().then_some(()));
        let left: Vec<PathBuf> = ["data", "config/nodes", "state/run", "state/log", "state/poolers"]
            .iter()
            .flat_map(|place| fs::read_dir(self.path(place)).into_iter().flatten())
            .map(|entry| entry.expect("readable").path())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        let end = |signal: Signal| {
            for (pid, _) in self.processes() {
                // It may have ended in between.
                kill_process(pid, signal).ok();
            }
        };
        // The order matters: a pgherd that lives would start again what is ended.
        for (pid, line) in self.processes() {
            if line.starts_with(text(binary())) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        end(Signal::CONT);
        end(Signal::QUIT);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.processes().is_empty() {
            if Instant::now() >= deadline {
                end(Signal::KILL);
            }
            if Instant::now() >= deadline + Duration::from_secs(5) {
                eprintln!("processes of a test are left: {:?}", self.processes());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A pgherd that runs; it is killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    args: String,
    begun: Instant,
    out: File,
    err: File,
    /// What is lost for as long as it runs.
    lost: Option<Lost>,
}

impl Running {
    fn start(mut command: Command, args: &[&str]) -> Self {
        // Files, not pipes: what pgherd starts may outlive it and would keep a pipe open.
        let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let copy = |file: &File| Stdio::from(file.try_clone().expect("a second handle"));
        let child = command.stdout(copy(&out)).stderr(copy(&err)).spawn().expect("the binary starts");
        Self { child, args: args.join(" "), begun: Instant::now(), out, err, lost: None }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.child.try_wait().expect("a child").is_none() {
            kill_process(self.pid(), signal).expect("it is our child");
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Returns what it has said so far: standard output and messages.
    pub fn so_far(&mut self) -> (String, String) {
        (whole(&mut self.out), whole(&mut self.err))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Ran {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if self.begun.elapsed() > LIMIT {
                let (out, err) = self.so_far();
                panic!("pgherd {} does not end\n{out}--- stderr\n{err}", self.args);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = self.so_far();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().expect("it ended"));
        Ran { args: self.args.clone(), code, stdout, stderr, took: self.begun.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn whole(file: &mut File) -> String {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(file).and_then(|()| file.read_to_end(&mut bytes)).expect("a file of our own");
    String::from_utf8(bytes).expect("output is UTF-8")
}

/// A repository that is lost, and found again when this is dropped.
#[derive(Debug)]
pub struct Lost(PathBuf);

impl Lost {
    pub fn now(root: PathBuf) -> Self {
        fs::rename(&root, root.with_extension("lost")).expect("it is ours");
        Self(root)
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        if let Err(error) = fs::rename(self.0.with_extension("lost"), &self.0) {
            assert!(std::thread::panicking(), "{} is not back: {error}", self.0.display());
        }
    }
}

/// A process that was stopped with SIGSTOP and goes on when this is dropped.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Frozen {
    pub fn new(pid: Pid) -> Self {
        kill_process(pid, Signal::STOP).expect("it runs");
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        kill_process(self.0, Signal::CONT).ok();
    }
}

/// A TCP port that no other test takes while this lives: below the range of outgoing connections, claimed by a locked file.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _claim: File,
}

impl Port {
    pub fn reserve() -> Self {
        static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let directory = Path::new("/tmp/pgherd-test-ports");
        if fs::create_dir(directory).is_ok() {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o1777)).expect("it is ours");
        }
        let begin = u16::try_from(std::process::id() % 8000).expect("below 8000");
        loop {
            let step = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(step < 8000, "no free port");
            let number = 20_000 + (begin + step) % 8000;
            let file = directory.join(number.to_string());
            let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o666).open(file);
            // A file that another user made is a port that another user's tests may have.
            let Ok(claim) = open else { continue };
            let free = rustix::fs::flock(&claim, rustix::fs::FlockOperation::NonBlockingLockExclusive)
                .is_ok()
                && TcpListener::bind(("127.0.0.1", number)).is_ok();
            if free {
                return Self { number, _claim: claim };
            }
        }
    }
}

/// Returns every file below a directory that is there, sorted.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Returns the binary under test, in a place that every user may reach.
pub fn binary() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_pgherd"));
        let digest = Sha256::digest(text(built).as_bytes());
        let of: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let user = rustix::process::geteuid().as_raw();
        let directory = PathBuf::from(format!("/tmp/pgherd-test-binary-{user}-{of}"));
        if fs::create_dir(&directory).is_ok() {
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        let place = directory.join("pgherd");
        // A link costs nothing; across file systems it takes a copy. It is renamed into place, since others may be doing the same.
        let beside = directory.join(format!("pgherd.{}", std::process::id()));
        fs::hard_link(built, &beside).or_else(|_| fs::copy(built, &beside).map(drop)).expect("a copy");
        fs::rename(&beside, &place).expect("a copy");
        // Of two links to one file rename removes none (POSIX).
        fs::remove_file(&beside).unwrap_or(());
        place
    })
}

/// Prepares a program to run as the user that owns the servers, since PostgreSQL refuses root.
pub fn as_server(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program and returns what it printed, or what it complained of.
pub fn text_of(mut command: Command) -> Result<String, String> {
    let (mut out, mut err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    let copy = |file: &File| Stdio::from(file.try_clone().expect("a second handle"));
    let status = command.stdout(copy(&out)).stderr(copy(&err)).status().map_err(|error| error.to_string())?;
    if status.success() { Ok(whole(&mut out).trim_end().to_owned()) } else { Err(whole(&mut err)) }
}

/// Waits until `look` finds something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns every process with its command line, the arguments separated by blanks.
pub fn processes() -> Vec<(Pid, String)> {
    fs::read_dir("/proc")
        .expect("Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
        .map(|pid| (pid, command_line(pid)))
        .filter(|(_, line)| !line.is_empty())
        .collect()
}

pub fn command_line(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Returns one hash for everything below a directory: names, kinds, modes, owners and contents.
pub fn hash_of(directory: &Path) -> String {
    let mut hash = Sha256::new();
    hash_into(directory, &mut hash);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash_into(path: &Path, hash: &mut Sha256) {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::symlink_metadata(path).expect("it is there");
    hash.update(format!("{} {:o} {} {}\n", path.display(), found.mode(), found.uid(), found.mtime_nsec()));
    if found.is_dir() {
        let mut names: Vec<PathBuf> =
            fs::read_dir(path).expect("readable").map(|entry| entry.expect("readable").path()).collect();
        names.sort();
        names.iter().for_each(|name| hash_into(name, hash));
    } else if found.is_file() {
        hash.update(fs::read(path).expect("readable"));
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
