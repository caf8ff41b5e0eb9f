#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgherd::db::{Conn, Connector, DbError, Endpoint, Login, Session};
use pgherd::gate;
use pgherd::host::Host as _;
use pgherd::host::decorate::{DryRun, Layered};
use pgherd::host::local::LocalHost;
use pgherd::host::programs::{PgBouncerVersion, Programs, find_pgbouncer, find_postgres};
use pgherd::ops::pooler::{
    ConsoleSeen, Declared, Drift, Layout, Pooler, PoolerFiles, PoolerObserved, PoolerPaths, PoolerProcess,
    Standby, Target, drift, render,
};
use pgherd::pg::scram::Verifier;
use pgherd::secret::Secret;
use pgherd::topology::declared::PROBE_ROLE;
use pgherd::topology::load_text;
use pgherd::topology::model::{Cluster, Service};
use pgherd::topology::unit::Unit;

use crate::server::{Server, newest, place};

const TOPOLOGY: &str = "
pgherd: 1
herd: shop
timezone: UTC
regions: {here: {hosts: {local: local}}}
clusters:
  shop:
    postgres: {version: 15, tune: {memory: 512 MiB}}
    ports: {postgres: 5441, pooler: 6441}
    nodes:
      a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /srv/b}
    poolers:
      hosts: [local]
      mode: transaction
      max-clients: 100
      pools:
        rw: {to: primary, size: 8, reserve: 2}
        ro: {to: standbys, size: 8}
    schemas: {shop: {owner: shop_owner, write: [app]}}
    roles: {app: {password: {env: APP_PASSWORD}, pools: [rw, ro], connections: 9}}
    objectives: {lose-primary: {rpo: 5 s, rto: 1 min}}
";

/// A PgBouncer of its own, ended when it is dropped.
struct House {
    host: LocalHost,
    programs: Programs,
    pgbouncer: PathBuf,
    version: PgBouncerVersion,
    cluster: Cluster,
    verifiers: BTreeMap<String, Verifier>,
    paths: PoolerPaths,
    unit: Unit,
    _directory: tempfile::TempDir,
}

impl House {
    async fn build() -> Self {
        let host = LocalHost::new("local", None).unwrap();
        let newest = newest();
        let programs = find_postgres(&host, newest.major, Some(newest.bin())).await.unwrap();
        let (pgbouncer, version) =
            find_pgbouncer(&host).await.expect("PgBouncer is installed: scripts/setup --test");
        let directory = tempfile::Builder::new().prefix("pgherd-test-").tempdir_in(place()).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let paths = PoolerPaths::new(directory.path().join("pooler")).unwrap();
        let herd = load_text(Path::new("/pgherd.yml"), TOPOLOGY, Path::new("/")).unwrap();
        let mut cluster = herd.cluster("shop").unwrap().clone();
        cluster.poolers.as_mut().unwrap().port = free_port();
        let verifier = Verifier::derive(&Secret::new("no-server-here"), b"0123456789abcdef", 4096);
        let verifiers =
            BTreeMap::from([("app".to_owned(), verifier.clone()), (PROBE_ROLE.to_owned(), verifier)]);
        let unit = Unit::of_pooler("shop", "local", &paths.ini());
        Self { host, programs, pgbouncer, version, cluster, verifiers, paths, unit, _directory: directory }
    }

    fn door(&self) -> Pooler<'_> {
        Pooler {
            host: &self.host,
            programs: &self.programs,
            paths: &self.paths,
            listen: Ipv4Addr::LOCALHOST.into(),
            port: self.port(),
            unit: &self.unit,
            service: Service::PgCtl,
        }
    }

    fn port(&self) -> u16 {
        self.cluster.poolers.as_ref().unwrap().port
    }

    fn files(&self, layout: &Layout) -> PoolerFiles {
        render(&Declared {
            cluster: &self.cluster,
            host: "local",
            process: 1,
            os_user: self.host.os_user(),
            program: &self.pgbouncer,
            listen: Ipv4Addr::LOCALHOST.into(),
            layout,
            paths: &self.paths,
            version: self.version,
            verifiers: &self.verifiers,
        })
        .unwrap()
    }

    async fn start(&self, files: &PoolerFiles) -> u32 {
        self.door().install(files, &self.observe().await).await.unwrap();
        self.door()
            .ensure_started(&self.pgbouncer, files, false)
            .await
            .unwrap_or_else(|error| panic!("{error:?}"))
    }

    async fn observe(&self) -> PoolerObserved {
        self.door().observe().await.unwrap()
    }

    async fn drift(&self, files: &PoolerFiles) -> Vec<String> {
        drift(files, &self.observe().await).iter().map(ToString::to_string).collect()
    }

    async fn login(&self, alias: &str) -> Result<Conn, DbError> {
        let login = Login {
            server: "pooler".to_owned(),
            endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: self.port() },
            user: "app".to_owned(),
            database: alias.to_owned(),
            password: Some(Secret::new("of-the-app")),
            session: Session::Plain,
            tunnel: None,
            tls: None,
        };
        Connector::new(gate::open()).connect(&login).await
    }

    /// The port of the server that an alias leads to, asked of the server.
    async fn leads_to(&self, alias: &str) -> u16 {
        let conn = self.login(alias).await.unwrap_or_else(|error| panic!("{error}"));
        let rows = conn.simple("ask for the port", "SELECT inet_server_port() AS port").await.unwrap();
        rows[0]["port"].as_ref().unwrap().parse().unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // The process that its own pidfile names, or what a test left there: only a PgBouncer of this directory is ended.
        let Ok(text) = std::fs::read_to_string(self.paths.pidfile()) else { return };
        let Ok(pid) = text.trim().parse::<i32>() else { return };
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&cmdline).contains(&self.paths.ini().display().to_string());
        if let (true, Some(pid)) = (ours, rustix::process::Pid::from_raw(pid)) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn target(node: &str, port: u16) -> Target {
    Target { node: node.to_owned(), host: "127.0.0.1".to_owned(), port }
}

fn standby(node: &str, port: u16) -> Standby {
    Standby { target: target(node, port), streams: true, behind: Some(Duration::ZERO) }
}

/// A layout whose nodes do not exist, for what only PgBouncer itself is asked.
fn of_nobody() -> Layout {
    Layout::new(target("a", 1), vec![standby("b", 2)])
}

fn pid(observed: &PoolerObserved) -> u32 {
    let PoolerProcess::Running { pid } = observed.process else { panic!("{:?}", observed.process) };
    pid
}

#[tokio::test]
async fn clients_reach_both_aliases_and_a_reload_leads_them_elsewhere() {
    let mut house = House::build().await;
    let primary = Server::start(&newest(), "");
    let conn = primary.connect("postgres").await;
    conn.batch("make the role", "CREATE ROLE app LOGIN PASSWORD 'of-the-app'").await.unwrap();
    conn.batch("make the database", "CREATE DATABASE shop").await.unwrap();
    conn.batch("make the slot", "SELECT pg_create_physical_replication_slot('b', true)").await.unwrap();
    let replica = Server::standby_of(&primary, "b", "b");
    replica.connect("shop").await;
    let rows = conn
        .simple("read the verifier", "SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'app'")
        .await
        .unwrap();
    let verifier = Verifier::parse(rows[0]["v"].as_ref().unwrap()).unwrap();
    house.verifiers.insert("app".to_owned(), verifier);

    let (a, b) = (primary.port(), replica.port());
    let mut layout = Layout::new(target("a", a), vec![standby("b", b)]);
    let files = house.files(&layout);
    house.start(&files).await;
    assert_eq!(house.leads_to("shop").await, a);
    assert_eq!(house.leads_to("shop_ro").await, b);
    assert_eq!(house.drift(&files).await, Vec::<String>::new());

    house.cluster.roles[0].pools = vec!["ro".to_owned()];
    let narrow = house.files(&layout);
    house.door().install(&narrow, &house.observe().await).await.unwrap();
    house.door().reload_and_verify(&narrow).await.unwrap();
    let refused = house.login("shop").await.unwrap_err();
    assert!(format!("{refused:?}").contains("login rejected"), "{refused:?}");
    assert_eq!(house.leads_to("shop_ro").await, b);
    house.cluster.roles[0].pools = vec!["rw".to_owned(), "ro".to_owned()];

    layout.standbys = vec![standby("b", a)];
    let files = house.files(&layout);
    house.door().install(&files, &house.observe().await).await.unwrap();
    assert_eq!(house.door().reload_and_verify(&files).await.unwrap(), Vec::<Drift>::new());
    assert_eq!(house.leads_to("shop_ro").await, a);

    layout.standbys.clear();
    let nowhere = house.files(&layout);
    house.door().install(&nowhere, &house.observe().await).await.unwrap();
    house.door().reload_and_verify(&nowhere).await.unwrap();
    let begun = Instant::now();
    let refused = house.login("shop_ro").await.unwrap_err();
    assert!(format!("{refused:?}").contains("is disabled"), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "a client is told at once");
    assert_eq!(house.leads_to("shop").await, a);

    house.door().stop(Duration::from_secs(5)).await.unwrap();
    house.start(&nowhere).await;
    assert_eq!(house.drift(&nowhere).await, Vec::<String>::new());
    house.door().install(&files, &house.observe().await).await.unwrap();
    house.door().reload_and_verify(&files).await.unwrap();
    assert_eq!(house.leads_to("shop_ro").await, a);
}

#[tokio::test]
async fn a_transaction_may_end_before_pgbouncer_does() {
    let mut house = House::build().await;
    let server = Server::start(&newest(), "");
    let conn = server.connect("postgres").await;
    conn.batch("make the role", "CREATE ROLE app LOGIN PASSWORD 'of-the-app'").await.unwrap();
    conn.batch("make the database", "CREATE DATABASE shop").await.unwrap();
    let rows = conn
        .simple("read the verifier", "SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'app'")
        .await
        .unwrap();
    let verifier = Verifier::parse(rows[0]["v"].as_ref().unwrap()).unwrap();
    house.verifiers.insert("app".to_owned(), verifier);
    let files = house.files(&Layout::new(target("a", server.port()), Vec::new()));
    house.start(&files).await;

    let client = house.login("shop").await.unwrap();
    client.batch("begin", "BEGIN; SELECT 1").await.unwrap();
    let door = house.door();
    let (stopped, committed) =
        tokio::join!(door.stop(Duration::from_secs(30)), client.batch("commit", "COMMIT"));
    stopped.unwrap();
    committed.unwrap();

    house.start(&files).await;
    let client = house.login("shop").await.unwrap();
    client.batch("begin", "BEGIN; SELECT 1").await.unwrap();
    let begun = Instant::now();
    house.door().stop(Duration::from_millis(500)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(500), "the transaction had its time");
    assert_eq!(house.observe().await.process, PoolerProcess::Stopped);
    house.door().stop(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_hand_edit_is_seen_and_mended() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    let first = house.start(&files).await;
    let edited = files.ini.replace("pool_size=8", "pool_size=80");
    std::fs::write(house.paths.ini(), &edited).unwrap();
    let shown = house.drift(&files).await;
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(
        shown[0]
            .starts_with("pgbouncer.ini [databases] shop: host=127.0.0.1 port=1 dbname=shop pool_size=80 "),
        "{shown:?}"
    );
    house.door().install(&files, &house.observe().await).await.unwrap();
    house.door().reload_and_verify(&files).await.unwrap();
    assert_eq!(house.drift(&files).await, Vec::<String>::new());
    let observed = house.observe().await;
    assert_eq!(pid(&observed), first);
    let only_looking = Layered::new(Arc::new(house.host.clone()), DryRun);
    let looked = Pooler { host: &only_looking, ..house.door() }.observe().await.unwrap();
    assert_eq!(looked, observed);
    assert!(Pooler { host: &only_looking, ..house.door() }.reload_and_verify(&files).await.is_err());
    let mode = std::fs::metadata(house.paths.userlist()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_reload_that_pgbouncer_calls_a_success_is_not_believed() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    house.start(&files).await;
    let broken = files.ini.replace("[pgbouncer]\n", "[pgbouncer]\nno_such_key = 1\n");
    std::fs::write(house.paths.ini(), broken).unwrap();
    let error = house.door().reload_and_verify(&files).await.unwrap_err();
    assert!(error.what().ends_with("does not do what its files say"), "{error:?}");
    let detail = error.detail_text().unwrap();
    assert!(detail.contains("running pool_mode: session -> transaction"), "{detail}");
    assert!(detail.contains("unknown parameter: pgbouncer/no_such_key"), "{detail}");
}

#[tokio::test]
async fn what_only_a_restart_takes_over_is_named() {
    let mut house = House::build().await;
    house.start(&house.files(&of_nobody())).await;
    let before = house.port();
    house.cluster.poolers.as_mut().unwrap().port = free_port();
    let files = house.files(&of_nobody());
    house.door().install(&files, &house.observe().await).await.unwrap();
    let expected = format!("running listen_port: {before} -> {} (needs a restart)", house.port());
    assert_eq!(house.drift(&files).await, [expected]);
    house.door().stop(Duration::from_secs(5)).await.unwrap();
    house.start(&files).await;
    assert_eq!(house.drift(&files).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_pgbouncer_is_seen_and_started_again() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    let first = house.start(&files).await;
    assert_eq!(house.door().ensure_started(&house.pgbouncer, &files, false).await.unwrap(), first);
    let victim = rustix::process::Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while house.observe().await.process != PoolerProcess::Stopped {
        assert!(Instant::now() < deadline, "it is seen");
    }
    assert_eq!(house.drift(&files).await, ["PgBouncer does not run"]);
    assert!(house.paths.pidfile().exists());
    let second = house.start(&files).await;
    assert_ne!(first, second);
    assert_eq!(house.drift(&files).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_pidfile_that_names_another_process_does_not_count() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    house.door().install(&files, &house.observe().await).await.unwrap();
    let own = std::process::id().to_string();
    house.host.write_atomic(&house.paths.pidfile(), own.as_bytes(), 0o600).await.unwrap();
    assert_eq!(house.observe().await.process, PoolerProcess::Stopped);
    house.door().stop(Duration::ZERO).await.unwrap();
    house.host.write_atomic(&house.paths.pidfile(), own.as_bytes(), 0o600).await.unwrap();
    assert_ne!(house.start(&files).await.to_string(), own);
}

#[tokio::test]
async fn a_pgbouncer_without_its_pidfile_is_unknown_and_not_started_twice() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    let first = house.start(&files).await;
    let pidfile = std::fs::read(house.paths.pidfile()).unwrap();
    std::fs::remove_file(house.paths.pidfile()).unwrap();
    assert!(matches!(house.observe().await.process, PoolerProcess::Unknown { .. }));
    let error = house.door().ensure_started(&house.pgbouncer, &files, false).await.unwrap_err();
    assert!(error.what().starts_with("could not tell whether PgBouncer"), "{error:?}");
    assert!(house.door().stop(Duration::ZERO).await.is_err());
    std::fs::write(house.paths.pidfile(), pidfile).unwrap();
    assert_eq!(pid(&house.observe().await), first);
}

#[tokio::test]
async fn a_hanging_pgbouncer_is_unknown_within_seconds() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    let process = rustix::process::Pid::from_raw(i32::try_from(house.start(&files).await).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let begun = Instant::now();
    let observed = house.observe().await;
    rustix::process::kill_process(process, rustix::process::Signal::CONT).unwrap();
    assert!(matches!(observed.console, ConsoleSeen::Unknown { .. }), "{observed:?}");
    assert!(matches!(observed.process, PoolerProcess::Running { .. }));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_told_with_the_program() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    let taken = TcpListener::bind(("127.0.0.1", house.port())).unwrap();
    house.door().install(&files, &house.observe().await).await.unwrap();
    let error = house.door().ensure_started(&house.pgbouncer, &files, false).await.unwrap_err();
    assert_eq!(error.what(), format!("cannot start PgBouncer: 127.0.0.1:{} is in use", house.port()));
    let detail = error.detail_text().unwrap();
    assert!(detail.contains(&format!("(process {})", std::process::id())), "{detail}");
    assert_eq!(house.observe().await.process, PoolerProcess::Stopped);
    drop(taken);
    house.start(&files).await;
}

#[tokio::test]
async fn a_file_that_pgbouncer_does_not_take_is_told_in_its_own_words() {
    let house = House::build().await;
    let files = house.files(&of_nobody());
    house.door().install(&files, &house.observe().await).await.unwrap();
    std::fs::write(house.paths.ini(), files.ini.replace("[databases]\n", "[databases]\n\"a b\" = host=x\n"))
        .unwrap();
    let error = house.door().ensure_started(&house.pgbouncer, &files, false).await.unwrap_err();
    assert!(error.detail_text().unwrap().contains("syntax error in configuration"), "{error:?}");
    assert_eq!(house.observe().await.process, PoolerProcess::Stopped);
}

#[tokio::test]
async fn a_wrong_file_never_replaces_a_good_one() {
    let house = House::build().await;
    let good = house.files(&of_nobody());
    let first = house.start(&good).await;
    let installed = || {
        [house.paths.ini(), house.paths.hba(), house.paths.userlist()]
            .map(|path| std::fs::read_to_string(path).unwrap())
    };
    let before = installed();
    let with_ini = |from: &str, to: &str| PoolerFiles { ini: good.ini.replace(from, to), ..good.clone() };
    let broken_userlist = format!("{}\"app\n", good.userlist.reveal());
    let wrong = [
        (with_ini("[pgbouncer]\n", "[pgbouncer]\nno_such_key = 1\n"), "no_such_key"),
        (with_ini("pool_mode = transaction", "pool_mode = sometimes"), "pool_mode"),
        (with_ini("pool_size=8", "pool_size=9"), "pool_size 9 -> 8"),
        (with_ini("[databases]\n", "[databases]\n= host\n"), "syntax error"),
        (PoolerFiles { hba: "host all all everywhere trust\n".to_owned(), ..good.clone() }, "hba"),
        (PoolerFiles { userlist: Secret::new(broken_userlist), ..good.clone() }, "userlist"),
    ];
    for (files, why) in wrong {
        let observed = house.observe().await;
        let tried = house.door().replace(&house.pgbouncer, &files, &observed).await;
        let Err(error) = tried else { panic!("{why} was taken: {}", files.ini) };
        let told = format!("{} {}", error.what(), error.detail_text().unwrap_or_default());
        assert!(told.contains("would not do"), "{why}: {told}");
        assert_eq!(installed(), before, "{why}");
        assert_eq!(pid(&house.observe().await), first, "{why}");
        assert!(!house.paths.directory().join("trial").exists(), "{why}");
    }
    assert_eq!(house.drift(&good).await, Vec::<String>::new());

    let mut other = house;
    other.cluster.poolers.as_mut().unwrap().max_clients = 77;
    let better = other.files(&of_nobody());
    let observed = other.observe().await;
    assert_eq!(
        other.door().replace(&other.pgbouncer, &better, &observed).await.unwrap(),
        Vec::<Drift>::new()
    );
    assert_eq!(other.drift(&better).await, Vec::<String>::new());
    assert_eq!(pid(&other.observe().await), first);
}
