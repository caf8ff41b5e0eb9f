//! Two poolers on two hosts behind ssh, with TLS on both sides and SCRAM by asking the server: every route, and both held back or none.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgherd::tls::Authority;
use rustix::process::{Pid, Signal};

use crate::herd::{APP_PASSWORD, Frozen, Herd, PAIR, text_of, until};
use crate::server::newest;
use crate::sshd::{Login, Sshd};
use crate::tls::plain_from;

/// Where the poolers of db1 and db2 are reached; on one machine the loopback address itself is whoever's came first.
const HOSTS: [(&str, &str); 2] = [("db1", "127.0.0.3"), ("db2", "127.0.0.2")];

struct Two {
    herd: Herd,
    ca: PathBuf,
    _sshd: Sshd,
}

impl Two {
    fn up() -> Self {
        let mut herd = Herd::declare(&newest(), &PAIR);
        let sshd = Sshd::start(&herd, "sshd", Login::Caller);
        sshd.reaches(&mut herd);
        herd.edit("db1: {address: 127.0.0.1,", "db1: {address: 127.0.0.3,");
        herd.edit(" a: {host: local", " a: {host: db1");
        herd.edit("{host: local", "{host: db2");
        herd.edit("hosts: [local]", "hosts: [db1, db2]");
        herd.edit("mode: transaction", "mode: transaction\n      auth: query");
        herd.edit("    schemas:", "        nb: {to: standbys, of: [b], size: 4}\n    schemas:");
        herd.edit("pools: [rw, ro]", "pools: [rw, ro, nb]");
        let ca = certificates(&mut herd);
        herd.apply().ends_with(0);
        Self { herd, ca, _sshd: sshd }
    }

    fn pooler(&self, host: &str) -> PathBuf {
        self.herd.path("state/poolers").join(format!("inventory-{host}"))
    }

    /// Asks through an alias of a host's pooler, as a client that believes nobody but our authority.
    fn ask(&self, address: &str, alias: &str, sql: &str) -> Result<String, String> {
        self.ask_believing(&self.ca, address, alias, sql)
    }

    fn ask_believing(&self, ca: &Path, address: &str, alias: &str, sql: &str) -> Result<String, String> {
        let conninfo = format!(
            "host={address} port={} dbname={alias} user=app sslmode=verify-full sslrootcert={}",
            self.herd.port("pooler"),
            ca.display()
        );
        let mut psql = Command::new(self.herd.installation().bin().join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-c", sql])
            .env("PGPASSWORD", APP_PASSWORD);
        text_of(psql)
    }

    fn asks<'s>(
        &'s self,
        scope: &'s std::thread::Scope<'s, '_>,
        address: &'static str,
        sql: &'static str,
    ) -> std::thread::ScopedJoinHandle<'s, Duration> {
        scope.spawn(move || {
            let begun = Instant::now();
            self.ask(address, "inventory", sql).expect("a client that waits is answered");
            begun.elapsed()
        })
    }

    fn pgbouncer(&self, host: &str) -> Pid {
        let ini = self.pooler(host).join("pgbouncer.ini").display().to_string();
        let found = self.herd.processes().into_iter().find(|(_, line)| line.contains(&ini));
        found.expect("its pooler runs").0
    }
}

/// Whether a client goes unanswered for two seconds. With `auth: query` one that logs in waits for the answer about itself, in no pool of its own.
fn waits<T>(client: &std::thread::ScopedJoinHandle<'_, T>) -> bool {
    let begun = Instant::now();
    until("it is answered or has waited", || {
        (client.is_finished() || begun.elapsed() > Duration::from_secs(2)).then(|| !client.is_finished())
    })
}

/// Gives both hosts a certificate of an authority of the operator's, and returns the file of that authority.
fn certificates(herd: &mut Herd) -> PathBuf {
    let directory = herd.path("tls");
    fs::create_dir(&directory).unwrap();
    let write = |name: &str, content: &str, mode: u32| {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let authority = Authority::make("corp", Timestamp::now(), None).unwrap();
    write("ca.pem", &authority.pem, 0o644);
    let names = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "localhost", "db1", "db2"].map(str::to_owned);
    for (host, _) in HOSTS {
        let pair = authority.issue(&names, Timestamp::now()).unwrap();
        let pem = pair.pem.reveal();
        let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE").unwrap());
        write(&format!("{host}-certificate.pem"), certificate, 0o600);
        write(&format!("{host}-key.pem"), key, 0o600);
    }
    herd.edit(
        "      tune:",
        "      tls:\n        ca: {file: tls/ca.pem}\n        certificate: {file: \"tls/{host}-certificate.pem\"}\n        \
         key: {file: \"tls/{host}-key.pem\"}\n      tune:",
    );
    directory.join("ca.pem")
}

#[test]
fn every_route_of_two_poolers_leads_where_it_says_and_both_hold_back_or_none() {
    let two = Two::up();
    let herd = &two.herd;
    every_route(&two);

    // Held back over ssh on both, and let go.
    herd.run(&["pooler", "pause", "--for", "60s"]).ends_with(0);
    std::thread::scope(|scope| {
        let clients = HOSTS.map(|(_, address)| two.asks(scope, address, "SELECT 1"));
        assert!(clients.iter().all(waits), "both wait");
        herd.run(&["pooler", "resume"]).ends_with(0);
        for client in clients {
            client.join().unwrap();
        }
    });

    // One of them freezes before it is told: nobody is held back.
    let mut pause = herd.start(&["pooler", "pause", "--for", "25s", "--grace", "5s"]);
    let hold = |host: &str| two.pooler(host).join("hold.json");
    let frozen = loop {
        if hold("db2").exists() {
            break Frozen::new(two.pgbouncer("db2"));
        }
        assert!(!pause.has_ended(), "{:?}", pause.so_far());
    };
    pause.end().ends_with(1).tells(&["on db2"]);
    let begun = Instant::now();
    two.ask(HOSTS[0].1, "inventory", "SELECT 1").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(frozen);
    two.ask(HOSTS[1].1, "inventory", "SELECT 1").unwrap();
    herd.run(&["pooler", "resume"]).ends_with(0);
    assert!(!hold("db1").exists() && !hold("db2").exists());

    // pgherd is killed while a transaction keeps it waiting: on both hosts clients go on by themselves.
    std::thread::scope(|scope| {
        let busy = two.asks(scope, HOSTS[0].1, "BEGIN; SELECT pg_sleep(5); COMMIT");
        let running =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(5)%' AND usename = 'app'";
        until("the transaction runs", || (herd.sql("a", running) == "1").then_some(()));
        let mut pause = herd.start(&["pooler", "pause", "--for", "9s", "--grace", "9s"]);
        until("both are armed", || (hold("db1").exists() && hold("db2").exists()).then_some(()));
        let other = until("a client of the other pooler is held back", || {
            let client = two.asks(scope, HOSTS[1].1, "SELECT 1");
            waits(&client).then_some(client)
        });
        pause.signal(Signal::KILL);
        pause.end();
        for client in [busy, other] {
            let waited = client.join().unwrap();
            assert!(waited < Duration::from_secs(14), "{waited:?}");
        }
        two.ask(HOSTS[0].1, "inventory", "SELECT 1").unwrap();
    });
    until("both have ended", || (!hold("db1").exists() && !hold("db2").exists()).then_some(()));
    herd.run(&["pooler", "resume"]).ends_with(0);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");
}

/// A client of each alias of each pooler lands on the node that the route names, with TLS all the way; without TLS nobody comes in.
fn every_route(two: &Two) {
    let status = two.herd.run(&["pooler", "status", "--format", "json"]).ends_with(0).json();
    let routes = status["clusters"][0]["routes"].as_array().unwrap();
    assert_eq!(routes.len(), 6, "{routes:#?}");
    let lands = "SELECT current_setting('port') || ' ' || ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (host, address) in HOSTS {
        for (alias, node) in [("inventory", "a"), ("inventory_ro", "b"), ("inventory_nb", "b")] {
            let route = routes.iter().find(|route| route["host"] == host && route["alias"] == alias).unwrap();
            let to = route["to"][0].as_str().unwrap();
            assert!(to == node && route["truth"] == "true", "{route}");
            let expected = format!("{} true", two.herd.port(to));
            assert_eq!(two.ask(address, alias, lands).as_deref(), Ok(expected.as_str()), "{host} {alias}");
            let said = plain_from(address, two.herd.port("pooler"), alias);
            assert!(
                said.contains("no such user") || said.contains("login rejected") || said.contains("SSL"),
                "{host} {alias}: {said}"
            );
        }
    }
    let other = two.herd.path("other.pem");
    fs::write(&other, Authority::make("other", Timestamp::now(), None).unwrap().pem).unwrap();
    let stranger = two.ask_believing(&other, HOSTS[0].1, "inventory", "SELECT 1").unwrap_err();
    assert!(stranger.contains("certificate verify failed"), "{stranger}");
    for (host, _) in HOSTS {
        let userlist = fs::read_to_string(two.pooler(host).join("userlist.txt")).unwrap();
        assert!(!userlist.contains("\"app\""), "the server is asked for it");
    }
}
