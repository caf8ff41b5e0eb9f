//! `health` on real servers: every check fires once by what it is made for, and clears again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::herd::{
    APP_PASSWORD, Frozen, Herd, PAIR, Port, Shape, files_below, newest_or_15, text, text_of, until,
};
use crate::pooler_verb::console;

/// Judges the herd and returns the finding of one check of one thing.
pub fn finding(herd: &Herd, check: &str, subject: &str) -> Value {
    let report = herd.run(&["--format", "json", "health"]).json();
    let of = |finding: &Value| match &finding["subject"] {
        Value::String(word) => word == "cluster" && ["-", "cluster"].contains(&subject),
        named => ["node", "pooler", "part"].iter().any(|kind| named[kind] == subject),
    };
    let findings = report["findings"].as_array().expect("a list");
    findings
        .iter()
        .find(|finding| finding["check"] == check && of(finding))
        .unwrap_or_else(|| panic!("no {check} of {subject} in {report:#}"))
        .clone()
}

/// Waits until a check of one thing has a status.
pub fn becomes(herd: &Herd, check: &str, subject: &str, status: &str) -> Value {
    until(&format!("{check} of {subject} is {status}"), || {
        let found = finding(herd, check, subject);
        (found["status"] == status).then_some(found)
    })
}

#[test]
fn a_sound_herd_is_fine_and_each_lost_node_is_told_by_what_it_is() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.run(&["health"]).ends_with(0).says(&["shop/inventory   OK", "fine      connect, primary"]);
    becomes(&herd, "lag", "b", "ok");

    herd.stop("b", "fast");
    let stopped = herd.run(&["health"]).ends_with(2);
    stopped.says(&["CRITICAL  connect   b ", "it is stopped", "more are not known because of that"]);
    let failover = finding(&herd, "failover", "-");
    assert_eq!(failover["text"], "nobody could take over: b: it does not answer");
    let rpo = finding(&herd, "rpo", "lose-primary");
    assert_eq!(rpo["text"], "the standbys that would survive do not answer");
    let lag = finding(&herd, "lag", "b");
    assert_eq!((lag["status"].as_str(), lag["follows"].as_str()), (Some("unknown"), Some("connect")));
    herd.apply().ends_with(0);
    becomes(&herd, "connect", "b", "ok");
    becomes(&herd, "standbys", "b", "ok");
}

#[test]
fn what_only_the_topology_makes_sense_of_fires_and_clears() {
    let mut herd = Herd::declare(&newest_or_15(1), &PAIR);
    herd.edit(
        "    nodes:\n",
        "    health: {connections: {warn: 1 %, crit: 2 %}, disk: {report: never}}\n    nodes:\n",
    );
    herd.apply().ends_with(0);

    // Thresholds of the file count, and a check that is not wanted is not made.
    let used = becomes(&herd, "connections", "a", "critical");
    assert_eq!(used["measured"][0]["limits"]["crit"], 2.0, "{used:#}");
    assert!(!herd.run(&["--format", "json", "health"]).stdout.contains("\"disk\""));

    herd.sql("a", "ALTER ROLE app VALID UNTIL 'tomorrow'");
    let ends = becomes(&herd, "expiry", "password of app", "critical");
    assert!(ends["text"].as_str().unwrap().starts_with("it ends in "), "{ends:#}");
    herd.sql("a", "ALTER ROLE app VALID UNTIL 'infinity'");

    herd.sql("a", "UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'inventory'");
    let moved = becomes(&herd, "collation", "b", "warning");
    assert!(moved["text"].as_str().unwrap().contains("inventory was built with 1.0"), "{moved:#}");
    herd.sql("a", "UPDATE pg_database SET datcollversion = pg_database_collation_actual_version(oid) WHERE datname = 'inventory'");
    becomes(&herd, "collation", "b", "ok");

    let raised = |node: &str| {
        herd.sql(node, "ALTER SYSTEM SET max_worker_processes = 20");
        herd.stop(node, "fast");
        herd.program("pg_ctl", &["-D", text(&herd.data(node)), "-l", "/dev/null", "-w", "start"]);
    };
    raised("a");
    let low = becomes(&herd, "settings", "b", "critical");
    assert!(
        low["text"].as_str().unwrap().contains("max_worker_processes is 8, on the primary 20"),
        "{low:#}"
    );
    // It has stopped to replay at the record that tells of it, does not start again, and goes on only as high as the primary.
    let paused = "SELECT pg_get_wal_replay_pause_state()";
    until("b has stopped to replay", || (herd.sql("b", paused) == "paused").then_some(()));
    herd.stop("b", "fast");
    let mut start = crate::herd::as_server(&herd.installation().bin().join("pg_ctl"));
    start.args(["-D", text(&herd.data("b")), "-l", "/dev/null", "-w", "start"]);
    text_of(start).expect_err("it is lower than the primary");
    let logs = files_below(&herd.path("state/log/inventory-b")).into_iter();
    let said: String = logs.map(|path| std::fs::read_to_string(path).expect("readable")).collect();
    assert!(said.contains("insufficient parameter settings"), "{said}");
    assert_eq!(becomes(&herd, "connect", "b", "critical")["text"], "it is stopped");
    let conf = herd.data("b").join("postgresql.auto.conf");
    let lines = std::fs::read_to_string(&conf).expect("readable");
    std::fs::write(&conf, format!("{lines}max_worker_processes = 20\n")).expect("writable");
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-l", "/dev/null", "-w", "start"]);
    becomes(&herd, "settings", "b", "ok");
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);

    let mut apply = {
        herd.add_node("c");
        herd.start(&["apply", "--yes"])
    };
    until("an operation runs", || {
        let text = finding(&herd, "operations", "-")["text"].as_str()?.to_owned();
        text.contains("apply runs since").then_some(())
    });
    apply.signal(Signal::KILL);
    apply.end();
    let report = herd.run(&["--format", "json", "health"]).json();
    let findings = report["findings"].as_array().expect("a list").clone();
    let unfinished = findings.iter().find(|finding| finding["check"] == "operations").expect("it is made");
    assert_eq!(unfinished["status"], "warning", "{unfinished:#}");
    let next = unfinished["next"].as_str().expect("a command").to_owned();
    herd.run(&next.split(' ').skip(1).chain(["--yes"]).collect::<Vec<_>>()).ends_with(0);
    assert_eq!(finding(&herd, "operations", "-")["text"], "nothing is unfinished");
}

#[test]
fn two_primaries_and_what_only_one_of_them_has_are_told() {
    let herd = Herd::up(&newest_or_15(0), &Shape { pooler: false, ..PAIR });
    becomes(&herd, "lag", "b", "ok");
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-w", "promote"]);
    let split = becomes(&herd, "primary", "-", "critical");
    let told = split["text"].as_str().expect("a text");
    assert!(told.starts_with("a and b are primaries at the same time; they part at "), "{told}");
    herd.sql("a", "CREATE TABLE only_here AS SELECT generate_series(1, 1000)");
    herd.stop("a", "fast");
    becomes(&herd, "primary", "-", "ok");
    let fork = becomes(&herd, "divergence", "a", "critical");
    let says = fork["text"].as_str().expect("a text");
    assert!(
        says.contains("of timeline 1, which the primary left at") && says.contains("that only it has"),
        "{says}"
    );
    // What it says is to be done is enough.
    let next = fork["next"].as_str().expect("a command");
    assert!(next.contains("pgherd destroy inventory --node a and pgherd apply"), "{next}");
    herd.run(&["destroy", "inventory", "--node", "a", "--confirm", "inventory-a"]).ends_with(0);
    herd.apply().ends_with(0);
    becomes(&herd, "divergence", "a", "ok");
}

#[test]
fn a_pooler_that_is_frozen_paused_misled_or_stopped_is_told() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    let sound = becomes(&herd, "routes", "local", "ok");
    assert_eq!(sound["text"], "inventory to a; inventory_ro to b");

    let frozen = Frozen::new(herd.pgbouncer().expect("it runs"));
    becomes(&herd, "poolers", "local", "unknown");
    assert_eq!(finding(&herd, "pool-wait", "local")["follows"], "poolers");
    drop(frozen);

    console(&herd, "PAUSE inventory");
    let paused = becomes(&herd, "routes", "local", "critical");
    assert_eq!(paused["text"], "inventory is paused");
    console(&herd, "RESUME inventory");
    becomes(&herd, "routes", "local", "ok");

    let ini = herd.pooler().join("pgbouncer.ini");
    let good = std::fs::read_to_string(&ini).expect("readable");
    let (a, b) = (format!("port={} ", herd.port("a")), format!("port={} ", herd.port("b")));
    std::fs::write(&ini, good.replace(&a, &b)).expect("writable");
    console(&herd, "RELOAD");
    let wrong = becomes(&herd, "routes", "local", "critical");
    assert!(wrong["text"].as_str().unwrap().starts_with("inventory: it leads to b"), "{wrong:#}");
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0);
    becomes(&herd, "routes", "local", "ok");

    kill_process(herd.pgbouncer().expect("it runs"), Signal::KILL).expect("it runs");
    assert_eq!(becomes(&herd, "poolers", "local", "critical")["text"], "it is stopped");
    herd.apply().ends_with(0);
    becomes(&herd, "poolers", "local", "ok");

    // A server that was given fewer connections than the poolers may open.
    assert_eq!(finding(&herd, "budget", "-")["status"], "ok");
    herd.sql("b", "ALTER SYSTEM SET superuser_reserved_connections = 36");
    herd.stop("b", "fast");
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-l", "/dev/null", "-w", "start"]);
    let over = becomes(&herd, "budget", "-", "critical");
    assert!(over["text"].as_str().unwrap().contains("b (today):"), "{over:#}");
    herd.sql("b", "ALTER SYSTEM RESET superuser_reserved_connections");
    herd.stop("b", "fast");
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-l", "/dev/null", "-w", "start"]);
    becomes(&herd, "budget", "-", "ok");
}

/// Asks an HTTP server, and returns the status and the body.
fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut told = String::new();
    stream.read_to_string(&mut told).ok()?;
    let (head, body) = told.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Has promtool read metrics.
fn prometheus_takes(metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: \"scripts/setup --test\" installs it");
    promtool.stdin.take().expect("piped").write_all(metrics.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{metrics}");
}

#[test]
fn one_herd_is_told_in_every_form_that_monitoring_reads() {
    let mut herd = Herd::up(&newest_or_15(1), &PAIR);
    herd.edit(
        "    nodes:\n",
        "    health: {standbys: {after: 2}, disk: {report: never}}\n    checks:\n      \
         busy: {sql: select count(*) AS busy FROM pg_stat_activity, crit: 500}\n      \
         writes: {sql: 'INSERT INTO t VALUES (1) RETURNING 1', crit: 1}\n      \
         stock: {sql: 'SELECT 7 AS pieces, 2.5 AS pallets', warn: 10, crit: 5}\n    nodes:\n",
    );
    herd.sql_in("a", "inventory", "CREATE TABLE public.t (n int)");
    herd.edit("writes: {sql: 'INSERT INTO t", "writes: {sql: 'INSERT INTO public.t");
    becomes(&herd, "lag", "b", "ok");

    let writes = finding(&herd, "writes", "-");
    assert_eq!(writes["status"], "unknown");
    // The server calls the statement by its last part.
    assert_eq!(writes["text"], "cannot execute SELECT in a read-only transaction (SQLSTATE 25006)");
    let stock = finding(&herd, "stock", "-");
    assert_eq!((&stock["status"], &stock["text"]), (&"warning".into(), &"pieces 7, warning up to 10".into()));
    assert_eq!(stock["measured"][1]["name"], "pallets");
    assert_eq!(herd.sql_in("a", "inventory", "SELECT count(*) FROM public.t"), "0");

    let nagios = herd.run(&["--format", "nagios", "health"]).ends_with(3);
    nagios.says(&[
        "PGHERD UNKNOWN: inventory/writes: ",
        "'lag_inventory/b'=0s;1;5;0",
        "'stock.pallets_inventory'=2.5",
    ]);
    let file = herd.path("pgherd.prom");
    herd.run(&["--format", "prometheus", "health", "--output", text(&file)]).ends_with(3);
    let metrics = std::fs::read_to_string(&file).expect("written");
    assert!(
        metrics.contains(
            "pgherd_check_status{cluster=\"inventory\",check=\"busy\",herd=\"shop\",node=\"\"} 0\n"
        ),
        "{metrics}"
    );
    prometheus_takes(&metrics);
    let junit = herd.run(&["--format", "junit", "health"]).ends_with(3);
    junit.says(&["<testsuite name=\"shop/inventory\"", "<error message=\"cannot execute SELECT"]);

    // A breach counts from the second look in a row on, over runs.
    herd.edit("      writes: {sql: 'INSERT INTO public.t VALUES (1) RETURNING 1', crit: 1}\n", "");
    herd.sql("b", "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1 user=replicator'");
    herd.sql("b", "SELECT pg_reload_conf()");
    until("b receives nothing", || (herd.node_status("b")["state"] == "not_streaming").then_some(()));
    let first = finding(&herd, "standbys", "b");
    assert_eq!((&first["status"], &first["damped"]["status"]), (&"ok".into(), &"critical".into()));
    assert_eq!(finding(&herd, "standbys", "b")["status"], "critical");
    herd.sql("b", "ALTER SYSTEM RESET primary_conninfo");
    herd.sql("b", "SELECT pg_reload_conf()");
    becomes(&herd, "standbys", "b", "ok");
    assert!(finding(&herd, "standbys", "b")["damped"].is_null());
}

/// An HAProxy in front of both nodes, which asks `health serve` who serves whom.
struct Balancer {
    child: Child,
    writes: Port,
    reads: Port,
}

impl Balancer {
    fn start(herd: &Herd, health: u16) -> Self {
        let (writes, reads) = (Port::reserve(), Port::reserve());
        let listen = |port: &Port, word: &str| {
            let server = |node| format!("    server {node} 127.0.0.1:{}\n", herd.port(node));
            format!(
                "listen {word}\n    bind 127.0.0.1:{}\n    option httpchk\n    \
                 http-check send meth GET uri-lf /clusters/inventory/nodes/%[srv_name]/{word}\n    \
                 default-server check addr 127.0.0.1 port {health} inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions\n{}{}",
                port.number,
                server("a"),
                server("b")
            )
        };
        let text_of_it = format!(
            "global\n    maxconn 50\ndefaults\n    mode tcp\n    timeout connect 1s\n    timeout client 1m\n    timeout server 1m\n    \
             timeout check 1s\n{}{}",
            listen(&writes, "read-write"),
            listen(&reads, "read-only")
        );
        let path = herd.path("haproxy.cfg");
        std::fs::write(&path, text_of_it).expect("writable");
        let child = Command::new("haproxy")
            .args(["-q", "-db", "-f", text(&path)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy is there: \"scripts/setup --test\" installs it");
        Self { child, writes, reads }
    }

    /// Returns the node that a client is led to.
    fn asks(&self, herd: &Herd, writes: bool) -> Option<String> {
        let port = if writes { &self.writes } else { &self.reads };
        let mut client = Command::new(herd.installation().bin().join("psql"));
        client
            .args(["-XAtq", "-h", "127.0.0.1", "-U", "app", "-d", "inventory", "-c", "SHOW port", "-p"])
            .arg(port.number.to_string())
            .env("PGPASSWORD", APP_PASSWORD);
        let told = text_of(client).ok()?;
        ["a", "b"].into_iter().find(|node| herd.port(node).to_string() == told).map(str::to_owned)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It is ours, and is not needed any more.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn who_watches_is_told_what_changes_and_no_more() {
    let herd = Herd::up(&newest_or_15(1), &Shape { pooler: false, ..PAIR });
    becomes(&herd, "lag", "b", "ok");
    let mut watch = herd.start(&["health", "--watch", "200ms"]);
    let mut says = |words: &str| {
        until(words, || watch.so_far().0.contains(words).then_some(()));
    };
    says("shop/inventory   OK");
    herd.stop("b", "fast");
    says("CRITICAL  inventory/connect  b  it is stopped");
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-l", "/dev/null", "-w", "start"]);
    says("OK        inventory/connect  b  PostgreSQL ");
    says("OK        inventory/failover  -  b could take over");
    watch.signal(Signal::INT);
    let ended = watch.end().ends_with(0);
    // Each change is one line, and what follows from the node that is stopped is none.
    let changes = |word: &str| ended.stdout.lines().filter(|line| line.contains(word)).count();
    assert_eq!(changes("CRITICAL  inventory/connect"), 1, "{}", ended.stdout);
    assert_eq!(changes("inventory/lag-bytes"), 0, "{}", ended.stdout);
}

#[test]
fn a_load_balancer_is_told_who_serves_whom_and_nobody_waits_for_a_node() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    becomes(&herd, "lag", "b", "ok");
    let port = Port::reserve();
    let address = format!("127.0.0.1:{}", port.number);
    let mut serve = herd.start(&["health", "serve", "--listen", &address, "--every", "1s"]);
    let says = |path: &str, status: u16| {
        until(&format!("{path} is {status}"), || {
            get(port.number, path).filter(|(told, _)| *told == status).map(|(_, body)| body)
        })
    };
    let of = |node: &str, word: &str| format!("/clusters/inventory/nodes/{node}/{word}");
    assert_eq!(says("/clusters/inventory/read-write", 200), "a\n");
    says(&of("a", "read-write"), 200);
    says(&of("a", "read-only"), 503);
    says(&of("b", "primary"), 503);
    says(&of("b", "read-only?max-lag=30s"), 200);
    says("/nothing", 404);
    prometheus_takes(&says("/metrics", 200));

    // A standby that cannot be asked takes no reads, a scrape does not wait for it, and nothing is critical that is not known.
    let frozen = Frozen::new(herd.postmaster("b").expect("it runs"));
    says(&of("b", "read-only"), 503);
    let before = Instant::now();
    says("/metrics", 200);
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    says(&of("a", "read-write"), 200);
    drop(frozen);
    says(&of("b", "read-only"), 200);

    // A real balancer leads writers to the primary and readers to the standby, and to nobody while there are two primaries.
    let balancer = Balancer::start(&herd, port.number);
    let led = |writes: bool, to: Option<&str>| {
        until(&format!("writes {writes} to {to:?}"), || {
            let told = balancer.asks(&herd, writes);
            (told.as_deref() == to).then_some(())
        });
    };
    led(true, Some("a"));
    led(false, Some("b"));

    // Two primaries: nobody serves anybody.
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-w", "promote"]);
    for node in ["a", "b"] {
        says(&of(node, "read-write"), 503);
        says(&of(node, "read-only"), 503);
    }
    assert!(says("/health", 503).contains("are primaries at the same time"));
    led(true, None);
    led(false, None);
    // The old one is stopped: the roles have changed places, and everybody is led there.
    herd.stop("a", "fast");
    led(true, Some("b"));
    led(false, None);

    let asked = Instant::now();
    serve.signal(Signal::TERM);
    let ended = serve.end().ends_with(0);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    ended.tells(&[&format!("listening on http://{address}")]);
}
