//! Throw-away PostgreSQL servers on loopback, ended when they are dropped.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgherd::db::{Conn, Connector, Endpoint, Login, NodeConn, PrimaryConn, Session, classify};
use pgherd::gate;
use pgherd::secret::Secret;

/// The programs of one major version.
#[derive(Debug, Clone)]
pub struct Installation {
    pub major: u32,
    bin: PathBuf,
}

impl Installation {
    /// The directory of its programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }
}

/// Returns every installed major version, oldest first.
pub fn installations() -> Vec<Installation> {
    let named = std::env::var("PGHERD_TEST_PG").unwrap_or_default();
    let mut directories: Vec<PathBuf> =
        named.split(':').filter(|text| !text.is_empty()).map(PathBuf::from).collect();
    for directory in &directories {
        assert!(
            directory.join("bin/initdb").exists(),
            "PGHERD_TEST_PG: no PostgreSQL in {}",
            directory.display()
        );
    }
    if directories.is_empty() {
        let found =
            fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: scripts/setup --test");
        directories = found.map(|entry| entry.expect("readable").path()).collect();
    }
    let mut found: Vec<Installation> = directories
        .into_iter()
        .filter(|directory| directory.join("bin/initdb").exists())
        .map(|directory| {
            let bin = directory.join("bin");
            let printed =
                Command::new(bin.join("postgres")).arg("--version").output().expect("postgres runs");
            let line = String::from_utf8_lossy(&printed.stdout).into_owned();
            let version = pgherd::pg::version::PgVersion::from_version_line(&line).expect("a version");
            Installation { major: version.major, bin }
        })
        .collect();
    found.sort_by_key(|installation| installation.major);
    assert!(!found.is_empty(), "no PostgreSQL found");
    found
}

/// The newest installed major version.
pub fn newest() -> Installation {
    installations().pop().expect("one is installed")
}

/// Finds a port below those that the kernel gives to outgoing connections, which could take it before the server does.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(37) % 12_000 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(20_000 + next % 12_000).expect("below 32000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A server in a directory of its own. Over the socket everybody is trusted, over TCP nobody without a password.
#[derive(Debug)]
pub struct Server {
    installation: Installation,
    directory: tempfile::TempDir,
    port: u16,
}

impl Server {
    /// Makes a cluster with these lines at the end of its postgresql.conf, and starts it.
    pub fn start(installation: &Installation, settings: &str) -> Self {
        let server = Self::make(installation, settings);
        server.run();
        server
    }

    /// Makes a cluster and leaves it stopped.
    pub fn make(installation: &Installation, settings: &str) -> Self {
        Self::make_with(installation, settings, &[])
    }

    /// Makes a cluster with more arguments for initdb, and leaves it stopped.
    pub fn make_with(installation: &Installation, settings: &str, more: &[&str]) -> Self {
        let server = Self::empty(installation);
        let data = server.data();
        server.program(
            "initdb",
            &["-D", text(&data), "-U", "postgres", "--no-sync", "-k", "--auth-local=trust"]
                .into_iter()
                .chain(["--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"])
                .chain(more.iter().copied())
                .collect::<Vec<_>>(),
        );
        server.append("postgresql.conf", settings);
        server
    }

    /// Clones a running server through a slot and starts it as its standby.
    pub fn standby_of(primary: &Self, name: &str, slot: &str) -> Self {
        let server = Self::empty(&primary.installation);
        let data = server.data();
        let (socket, port) = (primary.socket(), primary.port.to_string());
        server.program(
            "pg_basebackup",
            &[
                "-D",
                text(&data),
                "-h",
                text(&socket),
                "-p",
                &port,
                "-U",
                "postgres",
                "-R",
                "-c",
                "fast",
                "-S",
                slot,
            ],
        );
        server.append("postgresql.conf", &format!("cluster_name = '{name}'\n"));
        server.run();
        server
    }

    /// Takes a base backup of a running server, without any WAL, and leaves it stopped.
    pub fn backup_of(primary: &Self, settings: &str) -> Self {
        let server = Self::empty(&primary.installation);
        let (data, socket, port) = (server.data(), primary.socket(), primary.port.to_string());
        let from = ["-h", text(&socket), "-p", &port, "-U", "postgres"];
        let how = ["-D", text(&data), "-c", "fast", "-X", "none", "--no-sync"];
        server.program("pg_basebackup", &[&from[..], &how[..]].concat());
        server.append("postgresql.conf", settings);
        server
    }

    /// Copies the data directory of a stopped server, and leaves the copy stopped.
    pub fn twin_of(stopped: &Self, settings: &str) -> Self {
        let server = Self::empty(&stopped.installation);
        if let Err(said) = server.as_server("cp", &["-a", text(&stopped.data()), text(&server.data())]) {
            panic!("{said}");
        }
        server.append("postgresql.conf", settings);
        server
    }

    fn empty(installation: &Installation) -> Self {
        let directory =
            tempfile::Builder::new().prefix("pgherd-test-").tempdir_in(place()).expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("open the directory");
        Self { installation: installation.clone(), directory, port: free_port() }
    }

    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory that the server's user may write, and the socket's.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Starts it and waits until it is ready.
    pub fn run(&self) {
        self.launch("-w");
    }

    /// Starts it and waits only until it listens.
    pub fn run_unready(&self) {
        self.launch("-W");
        let socket = self.directory.path().join(format!(".s.PGSQL.{}", self.port));
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the server does not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn launch(&self, wait: &str) {
        if let Err(said) = self.try_launch(wait) {
            panic!("pg_ctl start: {said}\n{}", self.log());
        }
    }

    /// Starts it and waits until it is ready, or has given up.
    pub fn run_or_fail(&self) -> Result<(), String> {
        self.try_launch("-w")
    }

    fn try_launch(&self, wait: &str) -> Result<(), String> {
        let (data, log) = (self.data(), self.directory.path().join("log"));
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c fsync=off -c lc_messages=C",
            self.port,
            self.directory.path().display()
        );
        let program = self.installation.bin.join("pg_ctl");
        let args = ["-D", text(&data), "-l", text(&log), "-o", &options, wait, "start"];
        self.as_server(text(&program), &args)
    }

    /// Stops it in one of pg_ctl's modes and waits.
    pub fn stop(&self, mode: &str) {
        self.program("pg_ctl", &["-D", text(&self.data()), "-m", mode, "-w", "stop"]);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Adds lines to a file in the data directory.
    pub fn append(&self, name: &str, lines: &str) {
        let path = self.data().join(name);
        let mut content = fs::read_to_string(&path).unwrap_or_default();
        content.push_str(lines);
        fs::write(&path, content).expect("write a file of the server");
    }

    /// Over the socket, as the superuser.
    pub fn login(&self, database: &str) -> Login {
        Login {
            server: "inventory-a".to_owned(),
            endpoint: Endpoint::Socket { directory: self.socket(), port: self.port },
            user: "postgres".to_owned(),
            database: database.to_owned(),
            password: None,
            session: Session::Tool,
            tunnel: None,
            tls: None,
        }
    }

    /// Over TCP, with a password.
    pub fn tcp_login(&self, user: &str, password: &str, database: &str) -> Login {
        Login {
            endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: self.port },
            user: user.to_owned(),
            password: Some(Secret::new(password)),
            session: Session::Plain,
            tunnel: None,
            tls: None,
            ..self.login(database)
        }
    }

    /// Connects as the superuser; waits while the server starts up.
    pub async fn connect(&self, database: &str) -> Conn {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match Connector::new(gate::open()).connect(&self.login(database)).await {
                Ok(conn) => return conn,
                Err(error) => {
                    assert!(Instant::now() < deadline, "{error}\n{}", self.log());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Connects to a server that is a primary.
    pub async fn primary(&self, database: &str) -> PrimaryConn {
        match classify(self.connect(database).await).await.expect("classify") {
            NodeConn::Primary(conn) => conn,
            NodeConn::Standby(_) => panic!("it is a standby"),
        }
    }

    fn program(&self, name: &str, args: &[&str]) {
        let program = self.installation.bin.join(name);
        if let Err(said) = self.as_server(text(&program), args) {
            panic!("{name} {args:?}: {said}\n{}", self.log());
        }
    }

    /// Runs a program as the user that owns the server, since PostgreSQL refuses root.
    pub fn as_server(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--", program]);
            command
        } else {
            Command::new(program)
        };
        // Without pipes: pg_ctl's child would keep them open.
        let log = tempfile::tempfile().expect("a file");
        let copy = log.try_clone().expect("a second handle");
        let status = command
            .args(args)
            .current_dir(self.directory.path())
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(copy)
            .status()
            .map_err(|error| error.to_string())?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        let mut log = log;
        std::io::Seek::rewind(&mut log).map_err(|error| error.to_string())?;
        std::io::Read::read_to_string(&mut log, &mut said).map_err(|error| error.to_string())?;
        Err(said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let data = self.data();
            let program = self.installation.bin.join("pg_ctl");
            let stopped =
                self.as_server(text(&program), &["-D", text(&data), "-m", "immediate", "-w", "stop"]);
            if let Err(said) = stopped {
                eprintln!("a test server was not stopped: {said}");
            }
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Where servers are made: in memory where the machine has room for that and programs may run there, since hundreds are made and most of
/// that time is the file system's.
pub fn place() -> &'static Path {
    /// What two tests at once have used at most, with room to spare.
    const ENOUGH: u64 = 6 << 30;
    let memory = Path::new("/dev/shm");
    let fits = rustix::fs::statvfs(memory).is_ok_and(|seen| {
        let programs = !seen.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC);
        programs && seen.f_bavail.saturating_mul(seen.f_frsize) >= ENOUGH
    });
    // Above that there has to be memory for it, too.
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().to_owned();
        line.strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    if fits && available.is_some_and(|kilobytes| kilobytes << 10 >= 2 * ENOUGH) {
        memory
    } else {
        Path::new("/tmp")
    }
}
