//! Clusters that pgherd did not make, taken over as they run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgherd::db::queries;
use rustix::process::Signal;

use crate::herd::{Herd, SINGLE, files_below, until};
use crate::server::{Installation, Server, installations, newest};
use crate::sshd::{Login, Sshd};

/// A primary and its standby as somebody made them by hand, and a topology that declares them.
struct Found {
    a: Server,
    b: Option<Server>,
    herd: Herd,
}

/// What is on the command line of a test's server is in its file, too, as pgherd wants it.
const OWN: &str = "work_mem = '7MB'\nlog_line_prefix = 'mine '\nwal_level = logical\nsynchronous_commit = local\nfsync = off\n\
     lc_messages = 'C'\nlisten_addresses = '127.0.0.1'\n";

impl Found {
    /// The primary alone.
    fn single(installation: &Installation) -> Self {
        let a = Server::make(installation, OWN);
        name_place(&a);
        a.run();
        program(&a, "psql", &query(&a, "CREATE DATABASE inventory"));
        program(&a, "psql", &query(&a, "ALTER SYSTEM SET maintenance_work_mem = '77MB'"));
        let mut found = Self { a, b: None, herd: Herd::declare(installation, &SINGLE) };
        found.declare("");
        found
    }

    /// Both; commits wait for the standby under a name of its own.
    fn pair(installation: &Installation) -> Self {
        let mut found = Self::single(installation);
        for sql in [
            "CREATE ROLE replicator REPLICATION LOGIN PASSWORD 'theirs'",
            "SELECT pg_create_physical_replication_slot('theirs')",
            "ALTER SYSTEM SET synchronous_standby_names = 's1'",
            "SELECT pg_reload_conf()",
        ] {
            program(&found.a, "psql", &query(&found.a, sql));
        }
        let b = Server::backup_of(&found.a, "");
        name_place(&b);
        b.append("standby.signal", "");
        b.append(
            "postgresql.auto.conf",
            &format!(
                "primary_conninfo = 'host=127.0.0.1 port={} user=replicator password=theirs application_name=s1'\n\
                 primary_slot_name = 'theirs'\n",
                found.a.port()
            ),
        );
        // Its WAL comes from the slot's server.
        b.run();
        found.b = Some(b);
        found.declare("    synchronous: {wait-for: 1, of: [a, b]}\n");
        until("it streams", || (found.sql("a", STREAMING) == "s1").then_some(()));
        found
    }

    fn declare(&mut self, more: &str) {
        let line = |name: &str, server: &Server| {
            format!(
                "      {name}: {{host: local, port: {}, data-directory: {}, socket-directory: {}}}\n",
                server.port(),
                server.data().display(),
                server.socket().display()
            )
        };
        let nodes: String =
            line("a", &self.a) + &self.b.as_ref().map(|server| line("b", server)).unwrap_or_default();
        let installation = self.a.installation();
        let text = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{local: local}}}}}}\nclusters:\n  inventory:\n    postgres: \
             {{version: {}, bin-directory: {}, settings: {{max_connections: 120, random_page_cost: 1.5}}}}\n    nodes:\n{nodes}{more}",
            installation.major,
            installation.bin().display()
        );
        self.herd.rewrite(text);
    }

    fn server(&self, node: &str) -> &Server {
        if node == "a" { &self.a } else { self.b.as_ref().expect("there is a standby") }
    }

    fn sql(&self, node: &str, sql: &str) -> String {
        let server = self.server(node);
        let args = query(server, sql);
        self.herd.program("psql", &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn started(&self) -> Vec<String> {
        let nodes = ["a", "b"].into_iter().filter(|node| *node == "a" || self.b.is_some());
        nodes.map(|node| self.sql(node, "SELECT pg_postmaster_start_time()")).collect()
    }

    /// The text of every configuration file.
    fn configuration(&self) -> Vec<(PathBuf, String)> {
        let servers = [Some(&self.a), self.b.as_ref()];
        servers
            .into_iter()
            .flatten()
            .flat_map(|server| fs::read_dir(server.data()).expect("readable"))
            .map(|entry| entry.expect("readable").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .map(|path| (path.clone(), fs::read_to_string(&path).expect("readable")))
            .collect::<std::collections::BTreeMap<_, _>>()
            .into_iter()
            .collect()
    }

    /// Holds an adoption to be refused with these words, and nothing to have changed.
    #[track_caller]
    fn is_refused(&self, texts: &[&str]) {
        let before = (self.configuration(), files_below(&self.herd.path("config")));
        self.herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(4).tells(texts);
        assert_eq!((self.configuration(), files_below(&self.herd.path("config"))), before);
    }
}

const STREAMING: &str = "SELECT coalesce(string_agg(application_name, ','), '') FROM pg_stat_replication WHERE state = 'streaming'";

/// Writes where a server listens into its own file.
fn name_place(server: &Server) {
    let lines =
        format!("port = {}\nunix_socket_directories = '{}'\n", server.port(), server.socket().display());
    server.append("postgresql.conf", &lines);
}

fn query(server: &Server, sql: &str) -> Vec<String> {
    let (socket, port) = (server.socket().display().to_string(), server.port().to_string());
    [
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        "postgres",
        "-d",
        "postgres",
        "-h",
        &socket,
        "-p",
        &port,
        "-c",
        sql,
    ]
    .map(str::to_owned)
    .into()
}

fn program(server: &Server, name: &str, args: &[String]) {
    let program = server.installation().bin().join(name);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    server.as_server(program.to_str().expect("UTF-8"), &args).expect("it works");
}

/// Has nobody but the os-user postgres in as postgres, as Debian has it.
fn shut(server: &Server, line: &str) {
    fs::write(
        server.data().join("pg_hba.conf"),
        format!("{line}\nhost replication all 127.0.0.1/32 scram-sha-256\n"),
    )
    .expect("written");
}

#[test]
fn a_cluster_that_was_made_by_hand_is_adopted_without_a_restart_on_every_major() {
    let runtime = tokio::runtime::Runtime::new().expect("tokio");
    for installation in installations() {
        let found = Found::pair(&installation);
        for server in [&found.a, found.b.as_ref().expect("a standby")] {
            shut(server, "local all postgres peer");
            program(server, "psql", &query(server, "SELECT pg_reload_conf()"));
        }
        let (started, herd) = (found.started(), &found.herd);
        let client = runtime.block_on(async {
            // It stays connected all the way.
            found.sql("a", "CREATE ROLE app LOGIN PASSWORD 'x'");
            let line = "host all app 127.0.0.1/32 trust\n";
            found.a.append("pg_hba.conf", line);
            found.sql("a", "SELECT pg_reload_conf()");
            let login = found.a.tcp_login("app", "x", "inventory");
            pgherd::db::Connector::new(pgherd::gate::open()).connect(&login).await.expect("a client")
        });
        herd.plan()
            .ends_with(4)
            .tells(&["it holds a cluster that pgherd did not make", "pgherd apply --adopt inventory-a"]);
        let before = found.configuration();
        let planned = herd.run(&["plan", "--adopt", "inventory"]).ends_with(0);
        assert_eq!(found.configuration(), before);
        let planned = planned.says(&[
            "runs, and pgherd did not make it: primary a, 2 of 2 nodes answer",
            "adopt ",
            "started by hand; nothing is initialised, stopped or restarted",
            "random_page_cost 4 → 1.5",
            "inventory-a waits for a restart: max_connections 100 → 120",
            "slot theirs on inventory-a is not one of pgherd's",
            "Nothing restarts; nothing is interrupted.",
        ]);
        planned.does_not_say("theirs application_name").does_not_say("password=theirs");

        let applied = herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(0);
        assert!(!applied.stderr.contains("password=theirs"), "{}", applied.stderr);
        let journals = files_below(&herd.path("state/operations"));
        for journal in journals {
            let text = fs::read_to_string(&journal).unwrap_or_default();
            assert!(!text.contains("password=theirs"), "{}", journal.display());
        }
        assert_eq!(found.started(), started, "PostgreSQL {}", installation.major);
        until("it streams under its new name", || (found.sql("a", STREAMING) == "inventory-b").then_some(()));
        assert_eq!(found.sql("a", "SHOW synchronous_standby_names"), "ANY 1 (\"inventory-b\")");
        let facts = runtime
            .block_on(queries::settings(&client, &["random_page_cost", "work_mem"]))
            .expect("still there");
        assert_eq!(facts.iter().map(|row| row.shown.as_str()).collect::<Vec<_>>(), ["1.5", "7MB"]);

        // What its owner has set is as it was, also what pgherd would derive.
        for (setting, value) in [
            ("maintenance_work_mem", "77MB"),
            ("wal_level", "logical"),
            ("log_line_prefix", "mine "),
            ("max_connections", "100"),
        ] {
            assert_eq!(found.sql("a", &format!("SHOW {setting}")), value.trim_end());
        }
        assert_eq!(
            found.sql("a", "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = 'replicator'"),
            "t"
        );
        let marker = fs::read_to_string(herd.facts("a").join("marker.json")).expect("a marker");
        assert!(
            marker.contains(&found.sql("a", "SELECT system_identifier FROM pg_control_system()")),
            "{marker}"
        );
        assert!(marker.contains("\"owner\": \"postgres\""), "{marker}");

        herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(0).says(&["No changes."]);
        herd.status().ends_with(0).says(&[
            "a     primary  up",
            "b     standby  streaming",
            "service a, b by pg_ctl: after a reboot nothing starts them",
        ]);
        herd.apply().ends_with(4).tells(&["the plan restarts inventory-b, inventory-a"]);
        herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(4).tells(&["was adopted"]);
        assert_eq!(found.started(), started);
        if installation.major == newest().major {
            works_as_any_other(found);
        }
    }
}

#[test]
fn a_pair_on_hosts_behind_ssh_is_adopted_as_it_runs() {
    let mut found = Found::pair(&newest());
    let sshd = Sshd::start(&found.herd, "sshd", Login::Caller);
    sshd.reaches(&mut found.herd);
    found.herd.edit(" a: {host: local", " a: {host: db1");
    found.herd.edit(" b: {host: local", " b: {host: db2");
    let (started, before, herd) = (found.started(), found.configuration(), &found.herd);
    herd.plan().ends_with(4).tells(&["it holds a cluster that pgherd did not make"]);
    herd.run(&["plan", "--adopt", "inventory"]).ends_with(0).says(&["primary a, 2 of 2 nodes answer"]);
    assert_eq!(found.configuration(), before);
    herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(0);
    assert_eq!(found.started(), started);
    until("it streams under its new name", || (found.sql("a", STREAMING) == "inventory-b").then_some(()));
    herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(0).says(&["No changes."]);
    herd.status().ends_with(0).says(&["a     primary  up", "b     standby  streaming"]);
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(4).tells(&["was adopted"]);
}

/// What was adopted is restarted, backed up and restored.
fn works_as_any_other(mut found: Found) {
    let repository =
        format!("repositories: {{main: {{url: file://{}}}}}\nclusters:\n", found.herd.repository().display());
    found.herd.edit("clusters:\n", &repository);
    found.herd.edit("    nodes:\n", "    backups: {repository: main}\n    nodes:\n");
    let herd = &found.herd;
    herd.run(&["plan", "--adopt", "inventory"]).ends_with(0).says(&["archive_mode off → on"]);
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    herd.is_as_declared();
    assert_eq!(found.sql("a", "SHOW max_connections"), "120");
    assert_eq!(found.sql("a", "SHOW wal_level"), "logical");
    found.sql("a", "CREATE TABLE kept AS SELECT 'row' AS word");
    herd.run(&["backup", "create", "--cluster", "inventory"]).ends_with(0);
    let copy = herd.path("copy");
    herd.run(&["restore", "inventory", "--to-dir", copy.to_str().expect("UTF-8"), "--yes"]).ends_with(0);
    herd.run(&["restore", "inventory", "--in-place", "--preview"]).ends_with(4).tells(&["was adopted"]);
    // It was started by pgherd now, and is stopped like any other.
    herd.program("pg_ctl", &["-D", copy.to_str().expect("UTF-8"), "-m", "fast", "-w", "stop"]);
}

#[test]
fn an_adoption_that_is_killed_anywhere_is_finished_or_taken_back() {
    let found = Found::pair(&newest());
    let (started, before, herd) = (found.started(), found.configuration(), &found.herd);
    let mut undone = 0;
    // The last one is finished, and there is nothing to take over any more.
    for records in [1, 2, 3, 4, 5, 7, 8, 9, 10, 6] {
        let journals = records_of_journals(herd);
        let mut apply = herd.start(&["apply", "--adopt", "inventory", "--yes"]);
        while records_of_journals(herd) < journals + records && !apply.has_ended() {
            std::thread::sleep(Duration::from_micros(200));
        }
        apply.signal(Signal::KILL);
        apply.end();
        assert_eq!(found.started(), started, "after {records} records");
        let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
        let Some(id) = report["clusters"][0]["operations"][0]["id"].as_str().map(str::to_owned) else {
            // It had not begun.
            assert_eq!(found.configuration(), before, "after {records} records");
            continue;
        };
        if records == 6 {
            herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
            herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(0);
            herd.run(&["apply", "--adopt", "inventory", "--yes"]).ends_with(0).says(&["No changes."]);
            break;
        }
        herd.run(&["operation", "undo", &id, "--yes"]).ends_with(0);
        undone += 1;
        assert_eq!(found.configuration(), before, "after {records} records");
        assert_eq!(files_below(&herd.path("config")), Vec::<PathBuf>::new(), "after {records} records");
        until("it streams as before", || (found.sql("a", STREAMING) == "s1").then_some(()));
        assert_eq!(found.sql("a", "SHOW synchronous_standby_names"), "s1");
    }
    assert!(undone > 5, "{undone}");
    assert_ne!(found.configuration(), before, "it was finished");
    assert_eq!(found.started(), started);
}

fn records_of_journals(herd: &Herd) -> usize {
    let lines = |file: &PathBuf| fs::read_to_string(file).map_or(0, |text| text.lines().count());
    files_below(&herd.path("state/operations")).iter().map(lines).sum()
}

#[test]
fn what_cannot_be_adopted_is_refused_and_left_alone() {
    let mut found = Found::single(&newest());
    let (port, socket) = (found.a.port(), found.a.socket().display().to_string());
    found
        .herd
        .run(&["plan", "--adopt", "orders"])
        .ends_with(2)
        .tells(&["there is no cluster or node \"orders\""]);

    let wrong = |found: &mut Found, from: &str, to: &str, texts: &[&str]| {
        found.herd.edit(from, to);
        found.is_refused(texts);
        found.declare("");
    };
    let declared = format!("port: {port},");
    let told = format!("Declare port: {port}");
    wrong(&mut found, &declared, "port: 1999,", &["it listens on another port", &told]);
    let declared = format!(", socket-directory: {socket}");
    let told = format!("Declare socket-directory: {socket} at node a.");
    wrong(&mut found, &declared, "", &["its Unix socket is elsewhere", &told]);
    let declared = format!(", socket-directory: {socket}");
    let data = found.a.data().display().to_string();
    let elsewhere = format!("{declared}, config-directory: /etc/nowhere");
    let told = format!("Declare config-directory: {data} at node a.");
    wrong(&mut found, &declared, &elsewhere, &["its configuration is elsewhere", &told]);
    wrong(
        &mut found,
        "settings:",
        "service: debian, settings:",
        &["something else starts it", "Declare service: pg_ctl"],
    );

    let hba = fs::read_to_string(found.a.data().join("pg_hba.conf")).expect("readable");
    shut(&found.a, "local all all scram-sha-256");
    found.herd.program("pg_ctl", &["reload", "-D", &data]);
    until("it is shut", || {
        let refused = found
            .a
            .as_server("psql", &query(&found.a, "SELECT 1").iter().map(String::as_str).collect::<Vec<_>>());
        refused.is_err().then_some(())
    });
    found.is_refused(&[
        "its owner cannot log in to it as postgres",
        "Add as the first line of",
        "local all postgres peer",
    ]);
    fs::write(found.a.data().join("pg_hba.conf"), hba).expect("written");
    found.herd.program("pg_ctl", &["reload", "-D", &data]);
    until("it is open", || {
        let done = found
            .a
            .as_server("psql", &query(&found.a, "SELECT 1").iter().map(String::as_str).collect::<Vec<_>>());
        done.is_ok().then_some(())
    });

    // Another cluster, of which pgherd knows, and two that do not belong together.
    let other = Found::single(&newest());
    found.b = Some(other.a);
    found.declare("");
    found.is_refused(&["inventory has more than one primary"]);
    let _other = found.b.take();
    found.declare("");
    found.sql("a", "ALTER SYSTEM SET synchronous_standby_names = 'x'");
    found.sql("a", "SELECT pg_reload_conf()");
    found.is_refused(&["its commits wait for standbys, and the topology does not say so"]);
    found.sql("a", "ALTER SYSTEM RESET synchronous_standby_names");
    found.sql("a", "SELECT pg_reload_conf()");
    found.herd.run(&["apply", "--adopt", "inventory-a", "--yes"]).ends_with(0);
    let copy = found.herd.path("config/nodes/orders-a");
    copy_as(&found.herd.facts("a"), &copy);
    fs::remove_dir_all(found.herd.facts("a")).expect("removed");
    found.is_refused(&["its data directory is another node's", "is orders-a of herd shop"]);
    fs::remove_dir_all(copy).expect("removed");

    found.a.stop("fast");
    found.is_refused(&["it does not run", "pg_ctl start -D"]);
}

#[test]
fn a_standby_of_somebody_else_is_refused_and_so_is_one_without_its_primary() {
    let mut found = Found::pair(&newest());
    let alone = Found::single(&newest());
    // The standby beside a primary that is another cluster.
    let theirs = std::mem::replace(&mut found.a, alone.a);
    found.declare("");
    found.is_refused(&["its nodes are not one cluster"]);
    found.a = theirs;
    let both = found.b.take();
    let Some(b) = both else { panic!("there is a standby") };
    let a = std::mem::replace(&mut found.a, b);
    found.declare("");
    found.is_refused(&["its primary is not among its nodes", "inventory-a streams from 127.0.0.1:"]);
    drop(a);
}

/// Copies the facts of a node under another name.
fn copy_as(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for file in ["profile.json", "marker.json"] {
        let text =
            fs::read_to_string(from.join(file)).expect("readable").replace("\"inventory\"", "\"orders\"");
        fs::write(to.join(file), text).expect("written");
    }
    let status =
        std::process::Command::new("chown").args(["-R", "postgres"]).arg(to).status().expect("chown");
    assert!(status.success() || !crate::herd::is_root());
}
