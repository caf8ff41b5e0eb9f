//! TLS between hosts: turned on under clients, verified by everybody, renewed, turned off; and files that are wrong, refused.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use pgherd::db::{Conn, Connector, DbError, Endpoint, Identity, Login, Session};
use pgherd::secret::Secret;
use pgherd::tls::{Authority, LIFE, Trust, chain_of};
use rustix::process::{Signal, kill_process};
use tokio::runtime::Runtime;

use crate::herd::{APP_PASSWORD, Herd, PAIR, Ran, Shape, as_server, text, text_of, until};
use crate::server::{Installation, installations, newest};

/// Reached from everywhere at this address; what comes from it is no loopback line's business.
const ADDRESS: &str = "127.0.0.2";
const LONG: Duration = Duration::from_secs(300 * 24 * 3600);

fn of_major(major: u32) -> Installation {
    installations().into_iter().find(|found| found.major == major).unwrap_or_else(newest)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn with_address(herd: &mut Herd) {
    herd.edit("{local: local}", &format!("{{local: {{address: {ADDRESS}, via: local}}}}"));
}

fn authority(herd: &Herd) -> Authority {
    let at = herd.path("state/authority/shop");
    let [pem, key] = ["ca.pem", "ca.key"].map(|name| fs::read_to_string(at.join(name)).unwrap());
    Authority::read(&pem, &Secret::new(key)).unwrap()
}

fn names() -> Vec<String> {
    [ADDRESS, "local", "localhost", "127.0.0.1"].map(str::to_owned).into()
}

/// Puts a file where the server's user can read it and nobody else.
fn put(path: &Path, content: &str) {
    let script = "umask 077; cat > \"$1.new\" && mv \"$1.new\" \"$1\"";
    let mut command = as_server(Path::new("sh"));
    command.args(["-c", script, "sh", text(path)]).stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), content.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn login(herd: &Herd, port: &str, tls: Option<Identity>) -> Login {
    Login {
        server: port.to_owned(),
        endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: herd.port(port) },
        tunnel: None,
        tls,
        user: "app".to_owned(),
        database: "inventory".to_owned(),
        password: Some(Secret::new(APP_PASSWORD)),
        session: Session::Plain,
    }
}

fn identity(pem: &str) -> Identity {
    Identity { trust: Trust::in_authorities(pem).unwrap(), name: ADDRESS.to_owned() }
}

fn connector() -> Connector {
    Connector::new(pgherd::gate::open())
}

/// Logs in without TLS and from another address than the loopback one, and returns what the other end says.
fn plain_from_elsewhere(herd: &Herd, port: &str) -> String {
    plain_from(ADDRESS, herd.port(port), "inventory")
}

/// Logs in without TLS from one of this machine's addresses to the same one, and returns what the other end says.
pub fn plain_from(address: &str, port: u16, database: &str) -> String {
    runtime().block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse::<SocketAddr>().unwrap()).unwrap();
        let stream = socket.connect(format!("{address}:{port}").parse().unwrap()).await.unwrap();
        let mut config = tokio_postgres::Config::new();
        config.user("app").dbname(database).password(APP_PASSWORD);
        match config.connect_raw(stream, tokio_postgres::NoTls).await {
            Ok(_) => "let in".to_owned(),
            Err(error) => error.as_db_error().map_or(error.to_string(), |said| said.message().to_owned()),
        }
    })
}

/// A client that begins one transaction after the other until it is asked how that went.
struct Busy {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<Option<String>>,
}

impl Busy {
    fn through(herd: &Herd, port: &str, tls: Option<Identity>) -> Self {
        let login = login(herd, port, tls);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                // A pooler that has no server connection yet keeps a login waiting.
                let patient = connector().timeouts(Duration::from_secs(50), Duration::from_secs(30));
                let conn = match patient.connect(&login).await {
                    Ok(conn) => conn,
                    Err(error) => return Some(error.to_string()),
                };
                while !told.load(Ordering::Relaxed) {
                    if let Err(error) = conn.batch("work", "BEGIN; SELECT 1; COMMIT").await {
                        return Some(error.to_string());
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                None
            })
        });
        Self { stop, done, thread }
    }

    /// Holds every one of its transactions to have succeeded, and one more to have been done since now.
    #[track_caller]
    fn saw_nothing(self) {
        let before = self.done.load(Ordering::Relaxed);
        until("the client works or has ended", || {
            (self.thread.is_finished() || self.done.load(Ordering::Relaxed) > before).then_some(())
        });
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.thread.join().unwrap(), None);
    }
}

fn started(herd: &Herd) -> Vec<String> {
    let each = ["a", "b"].map(|node| herd.sql(node, "SELECT pg_postmaster_start_time()"));
    each.into_iter().chain([format!("{:?}", herd.pgbouncer())]).collect()
}

fn replication_is_encrypted(herd: &Herd) -> String {
    let sql =
        "SELECT s.ssl FROM pg_stat_replication r JOIN pg_stat_ssl s USING (pid) WHERE r.state = 'streaming'";
    herd.sql("a", sql)
}

fn served_days(herd: &Herd, of: &str) -> i64 {
    let status = herd.run(&["status", "--format", "json"]).json();
    let all = status["clusters"][0]["tls"]["certificates"].as_array().unwrap().clone();
    let one = all.iter().find(|one| one["of"] == of).unwrap_or_else(|| panic!("no {of} in {all:?}"));
    let at: Timestamp = one["not_after"].as_str().unwrap_or_else(|| panic!("{one}")).parse().unwrap();
    at.duration_since(Timestamp::now()).as_secs() / 86_400
}

#[test]
fn tls_is_turned_on_verified_renewed_and_turned_off_and_nobody_who_is_connected_notices() {
    let mut herd = Herd::declare(&newest(), &PAIR);
    with_address(&mut herd);
    herd.apply().ends_with(0);
    let before = started(&herd);
    assert_eq!(plain_from_elsewhere(&herd, "pooler"), "let in");
    let client = Busy::through(&herd, "pooler", None);
    let direct = Busy::through(&herd, "a", None);

    // On.
    herd.edit("      tune:", "      tls: own\n      tune:");
    herd.plan().ends_with(0).says(&[
        "certificate authority, on this machine; its key stays here",
        "certificate, reload",
        "ssl (not there) → on",
        "sslmode=verify-full",
        "from other machines a new connection without TLS is refused",
        "server_tls_sslmode",
    ]);
    let key = "BEGIN PRIVATE KEY";
    let applied = herd.apply().ends_with(0);
    assert!(!applied.stdout.contains(key) && !applied.stderr.contains(key));
    assert_eq!(started(&herd), before, "somebody was restarted");
    client.saw_nothing();
    direct.saw_nothing();
    herd.is_as_declared();
    assert_eq!(replication_is_encrypted(&herd), "t");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for path in [herd.facts("a"), herd.facts("b"), herd.pooler()] {
        assert_eq!(mode(path.join("server.pem")), 0o600);
    }
    assert_eq!(mode(herd.path("state/authority/shop/ca.key")), 0o600);
    let journals = herd.path("state/operations");
    let told = text_of({
        let mut grep = std::process::Command::new("grep");
        grep.args(["-rl", "PRIVATE KEY", text(&journals), text(&herd.facts("a").join("ca.pem"))]);
        grep
    });
    assert!(told.is_err(), "a key is in {told:?}");

    // From elsewhere only with TLS.
    for port in ["a", "pooler"] {
        let said = plain_from_elsewhere(&herd, port);
        assert!(
            said.contains("no encryption")
                || said.contains("no such user")
                || said.contains("login rejected"),
            "{port}: {said}"
        );
    }
    let own = identity(&authority(&herd).pem);
    runtime().block_on(async {
        for port in ["a", "pooler"] {
            let conn: Conn = connector().connect(&login(&herd, port, Some(own.clone()))).await.unwrap();
            conn.batch("work", "SELECT 1").await.unwrap();
        }
        // Whoever believes another authority, or means another host, logs in nowhere.
        let other = Authority::make("shop", Timestamp::now(), None).unwrap();
        let stranger = connector().connect(&login(&herd, "a", Some(identity(&other.pem)))).await.unwrap_err();
        assert_eq!(
            stranger.to_string(),
            format!(
                "a at 127.0.0.1:{} does not prove who it is: no authority of ours signed it",
                herd.port("a")
            )
        );
        let elsewhere = Identity { name: "10.9.9.9".to_owned(), ..own.clone() };
        let wrong = connector().connect(&login(&herd, "a", Some(elsewhere))).await.unwrap_err();
        assert!(matches!(&wrong, DbError::NotProved { why, .. } if why.contains(ADDRESS)), "{wrong}");
    });

    // A standby and a pooler that believe somebody else do without the server, and an apply mends it.
    let other = Authority::make("shop", Timestamp::now(), None).unwrap();
    put(&herd.facts("b").join("ca.pem"), &other.pem);
    put(&herd.pooler().join("ca.pem"), &other.pem);
    kill_process(herd.pgbouncer().unwrap(), Signal::HUP).unwrap();
    herd.sql("a", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    until("the standby refuses the primary", || {
        (herd.node_status("b")["state"] == "not_streaming").then_some(())
    });
    let waits = Busy::through(&herd, "pooler", Some(own.clone()));
    until("the pooler refuses the primary", || {
        let log = fs::read_to_string(herd.pooler().join("pgbouncer.log")).unwrap();
        log.contains("certificate verify failed").then_some(())
    });
    assert_eq!(
        waits.done.load(Ordering::Relaxed),
        0,
        "the pooler spoke to a server that it does not believe"
    );
    herd.plan().ends_with(0).says(&["the authorities that it believes are others than declared"]);
    herd.apply().ends_with(0);
    waits.saw_nothing();
    until("the standby streams", || (herd.node_status("b")["state"] == "streaming").then_some(()));
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1").as_deref(), Ok("1"));
    herd.is_as_declared();

    // Certificates that end soon are told, and renewed under clients that go on.
    let issuer = authority(&herd);
    let soon = issuer.issue(&names(), Timestamp::now() - LONG - Duration::from_secs(40 * 24 * 3600)).unwrap();
    put(&herd.facts("a").join("server.pem"), soon.pem.reveal());
    put(&herd.pooler().join("server.pem"), soon.pem.reveal());
    herd.sql("a", "SELECT pg_reload_conf()");
    kill_process(herd.pgbouncer().unwrap(), Signal::HUP).unwrap();
    until("both show what ends soon", || {
        (served_days(&herd, "inventory-a") < 30 && served_days(&herd, "the pooler on local") < 30)
            .then_some(())
    });
    herd.status().ends_with(0).says(&[
        "TLS   ",
        "ends first: ",
        "WARNING  the certificate of inventory-a ends in 24 days",
    ]);
    crate::health::becomes(&herd, "expiry", "certificate of inventory-a", "warning");
    let client = Busy::through(&herd, "pooler", Some(own.clone()));
    let direct = Busy::through(&herd, "a", Some(own.clone()));
    herd.plan()
        .ends_with(0)
        .says(&["less than a third of its life is left", "2 to change"])
        .does_not_say("inventory-b");
    herd.apply().ends_with(0);
    assert!(served_days(&herd, "inventory-a") > 300 && served_days(&herd, "the pooler on local") > 300);
    client.saw_nothing();
    direct.saw_nothing();
    assert_eq!(started(&herd), before, "somebody was restarted");
    herd.status().ends_with(0).does_not_say("WARNING  the certificate");
    crate::health::becomes(&herd, "expiry", "certificate of inventory-a", "ok");

    // Off.
    let client = Busy::through(&herd, "pooler", None);
    herd.edit("      tls: own\n", "");
    herd.apply().ends_with(0);
    client.saw_nothing();
    assert_eq!(herd.sql("a", "SHOW ssl"), "off");
    // The connection that the standby had stays as it is; the next one is plain.
    herd.sql("a", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    until("the standby streams in the clear", || (replication_is_encrypted(&herd) == "f").then_some(()));
    assert_eq!(started(&herd), before, "somebody was restarted");
    assert_eq!(plain_from_elsewhere(&herd, "a"), "let in");
    herd.is_as_declared();
}

/// Files of an authority that is not pgherd's, as an operator has them.
struct Given {
    authority: Authority,
    directory: PathBuf,
}

impl Given {
    fn beside(herd: &Herd) -> Self {
        let directory = herd.path("tls");
        fs::create_dir(&directory).unwrap();
        let authority = Authority::make("corp", Timestamp::now() - LONG, None).unwrap();
        fs::write(directory.join("ca.pem"), &authority.pem).unwrap();
        let given = Self { authority, directory };
        given.issue(&names(), Timestamp::now());
        given
    }

    fn issue(&self, names: &[String], at: Timestamp) {
        let pair = self.authority.issue(names, at).unwrap();
        let (certificate, key) =
            pair.pem.reveal().split_at(pair.pem.reveal().find("-----BEGIN PRIVATE").unwrap());
        self.write("certificate", certificate);
        self.write("key", key);
    }

    fn write(&self, what: &str, content: &str) {
        let path = self.directory.join(format!("local-{what}.pem"));
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn declare(herd: &mut Herd) {
        herd.edit(
            "      tune:",
            "      tls:\n        ca: {file: tls/ca.pem}\n        certificate: {file: \"tls/{host}-certificate.pem\"}\n        \
             key: {file: \"tls/{host}-key.pem\"}\n      tune:",
        );
    }
}

#[test]
fn a_cluster_is_born_with_given_certificates_and_takes_those_that_changed() {
    for major in [14, 15] {
        let mut herd = Herd::declare(&of_major(major), &PAIR);
        with_address(&mut herd);
        let given = Given::beside(&herd);
        Given::declare(&mut herd);
        herd.keep_backups();
        herd.apply().ends_with(0);
        herd.is_as_declared();
        assert_eq!(replication_is_encrypted(&herd), "t");
        assert!(plain_from_elsewhere(&herd, "a").contains("no encryption"));
        let before = started(&herd);
        if major == 15 {
            restored(&herd);
        }
        let before = if major == 15 { started(&herd) } else { before };
        given.issue(&names(), Timestamp::now() - Duration::from_secs(24 * 3600));
        herd.plan().ends_with(0).says(&["certificate, reload", " → "]);
        herd.apply().ends_with(0);
        let text = fs::read_to_string(given.directory.join("local-certificate.pem")).unwrap();
        let ends = chain_of(&text).unwrap()[0].not_after;
        let days = ends.duration_since(Timestamp::now()).as_secs() / 86_400;
        for of in ["inventory-a", "inventory-b", "the pooler on local"] {
            assert_eq!(served_days(&herd, of), days, "{of}");
        }
        assert_eq!(started(&herd), before, "somebody was restarted");
        herd.is_as_declared();
        herd.run(&["destroy", "inventory", "--confirm", "inventory"]);
    }
}

/// Makes a standby whose host was lost anew from a backup, and brings the whole cluster back to it.
fn restored(herd: &Herd) {
    herd.run(&["backup", "create"]).ends_with(0);
    herd.stop("b", "immediate");
    fs::remove_dir_all(herd.data("b")).unwrap();
    fs::remove_file(herd.facts("b").join("server.pem")).unwrap();
    herd.run(&["restore", "inventory", "--to-node", "b"]).ends_with(0);
    assert_eq!(replication_is_encrypted(herd), "t");
    herd.is_as_declared();
    herd.run(&["restore", "inventory", "--in-place", "--target-immediate", "--yes"]).ends_with(0);
    until("the standby streams", || (replication_is_encrypted(herd) == "t").then_some(()));
    assert!(plain_from_elsewhere(herd, "a").contains("no encryption"));
    herd.is_as_declared();
}

#[test]
fn files_that_prove_nothing_are_refused_before_anything_is_changed() {
    const ALONE: Shape<'static> = Shape { nodes: &["a"], synchronous: false, pooler: false };
    let mut herd = Herd::declare(&newest(), &ALONE);
    with_address(&mut herd);
    let given = Given::beside(&herd);
    Given::declare(&mut herd);
    let now = Timestamp::now();
    let refused = |code: i32, texts: &[&str]| -> Ran {
        let ran = herd.run(&["apply", "--yes"]).ends_with(code).tells(texts).tells(&["Nothing was changed."]);
        assert!(!herd.data("a").exists() && !herd.facts("a").exists(), "something was changed");
        ran
    };
    let certificate = "ERROR:  cannot use the certificate [herd]/tls/local-certificate.pem for host local";
    let certificate = certificate.replace("[herd]", text(herd.root()));
    let key = certificate.replace("certificate", "key");
    given.issue(&names(), now - LIFE * 2);
    refused(2, &[&certificate, "DETAIL: It has expired at ", "HINT:   Renew it"]);
    given.issue(&["db7".to_owned()], now);
    refused(2, &[&certificate, "The host is known as 127.0.0.2, and it is for db7.", "subjectAltName"]);
    given.issue(&names(), now);
    let other = Authority::make("corp", now, None).unwrap();
    given.write("key", other.key.reveal());
    refused(2, &[&key, "It does not belong to the certificate "]);
    given.write("key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    refused(2, &[&key, "It is encrypted", "openssl pkey"]);
    // Self-signed and its own root: libpq would take it.
    given.write("certificate", &other.pem);
    given.write("key", other.key.reveal());
    fs::write(given.directory.join("ca.pem"), &other.pem).unwrap();
    refused(2, &[&certificate, "an authority's own (CA:TRUE)", "tls: own"]);
    given.issue(&names(), now);
    refused(2, &[&certificate, "None of the authorities in ", "signed it."]);
    fs::write(given.directory.join("ca.pem"), "no PEM\n").unwrap();
    refused(2, &["cannot use the authorities in ", "BEGIN CERTIFICATE"]);
    fs::remove_file(given.directory.join("ca.pem")).unwrap();
    refused(10, &["ERROR:  there is no file "]);
}
