//! `pgherd pooler` against a herd that runs: what it says is compared with what is done by hand.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::herd::{APP_PASSWORD, Herd, PAIR, as_server, newest_or_15, text, text_of, until};

/// Gives the pooler a command over its console, as a person would.
#[track_caller]
pub fn console(herd: &Herd, statement: &str) -> String {
    let mut psql = as_server(&herd.installation().bin().join("psql"));
    psql.args(["-XAtq", "-U", "pgbouncer", "-d", "pgbouncer", "-h", text(&herd.pooler()), "-c", statement]);
    psql.arg("-p").arg(herd.port("pooler").to_string());
    text_of(psql).unwrap_or_else(|said| panic!("{statement}: {said}"))
}

/// Whether a client has waited for a second and longer for a server's connection, of which there are enough: PgBouncer holds it back.
fn holds_back(herd: &Herd) -> bool {
    let pools = console(herd, "SHOW POOLS");
    let pool = pools.lines().find(|line| line.starts_with("inventory|app|")).expect("the pool is there");
    // The last three columns of PgBouncer 1.18: maxwait, maxwait_us, pool_mode.
    let seconds = pool.rsplit('|').nth(2).expect("the column is there");
    seconds.parse::<u64>().expect("it is a number") > 0
}

#[test]
fn what_is_done_to_a_pooler_by_hand_is_seen_told_as_a_diff_and_mended() {
    let mut herd = Herd::up(&newest_or_15(0), &PAIR);
    let ini = herd.pooler().join("pgbouncer.ini");
    let good = fs::read_to_string(&ini).unwrap();

    let status = herd.run(&["pooler", "status", "--format", "json"]).ends_with(0).json();
    let cluster = &status["clusters"][0];
    assert_eq!(cluster["primary"], "a");
    assert_eq!(cluster["problems"], serde_json::json!([]), "{cluster:#}");
    for route in cluster["routes"].as_array().unwrap() {
        assert_eq!(route["truth"], "true", "{route}");
    }
    assert_eq!(cluster["budget"]["layouts"][0]["today"], true);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0).says(&["No changes."]);

    // A plan that changes a pool adds the connections up and repeats what validate warns of.
    herd.edit("standbys, size: 8", "standbys, size: 9");
    herd.edit("max-clients: 50", "max-clients: 9");
    herd.plan().ends_with(0).says(&[
        "warning pool rw never fills: it has 10 connections for at most 9 clients",
        "connections, at most when",
        "alone                      a, b  primary   40         3       0         37              19  fits  rw 8 + 2, ro 9",
    ]);
    let plan = herd.run(&["plan", "--format", "json"]).ends_with(0).json();
    assert_eq!(plan["clusters"][0]["budget"]["changes"], true);
    assert_eq!(plan["clusters"][0]["warnings"].as_array().unwrap().len(), 1);
    herd.edit("standbys, size: 9", "standbys, size: 8");
    herd.edit("max-clients: 9", "max-clients: 50");
    herd.plan().ends_with(0).says(&["No changes."]).does_not_say("connections, at most");
    herd.run(&["plan", "-v"]).ends_with(0).says(&["connections when", "as planned", "b alone"]);

    // What pgherd would write is what is there; no verifier is printed.
    let rendered = herd.run(&["pooler", "render"]).ends_with(0).says(&[&good, "\"app\" \"...\""]);
    assert!(!rendered.stdout.contains("SCRAM-SHA-256$"), "{}", rendered.stdout);

    fs::write(&ini, good.replace("max_client_conn = 50", "max_client_conn = 5000") + "verbose = 1\n")
        .unwrap();
    herd.run(&["pooler", "status"]).ends_with(0).says(&[
        "- max_client_conn = 5000\n",
        "- verbose = 1\n",
        "+ max_client_conn = 50\n",
        "WARNING  the pooler on local differs",
    ]);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0).says(&["PgBouncer on local"]);
    assert_eq!(fs::read_to_string(&ini).unwrap(), good);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // What clients left in a connection that others get next: seen, told, and gone with the connection.
    let asks = |sql: &str| herd.client("pooler", "app", APP_PASSWORD, "inventory", sql).unwrap();
    asks("CREATE TEMP TABLE kept_by_nobody AS SELECT 1");
    asks("SELECT pg_advisory_lock(4711)");
    asks("SET work_mem = '7MB'");
    let status = herd.run(&["pooler", "status"]).ends_with(0).says(&[
        "WARNING  1 advisory locks of app through inventory are held by connections that nobody uses on a: ",
        "WARNING  app through inventory gave SET work_mem on a: ",
        "WARNING  1 temporary tables of app are left in inventory on a: ",
    ]);
    assert!(!status.stdout.contains("7MB"), "no value is shown: {}", status.stdout);
    asks("LISTEN orders");
    let status = herd.run(&["pooler", "status", "--format", "json"]).ends_with(0).json();
    let kinds = |status: &serde_json::Value| -> Vec<String> {
        let habits = status["clusters"][0]["habits"].as_array().unwrap();
        habits.iter().map(|habit| habit["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds(&status), ["advisory_lock", "listen", "temporary_table"]);
    // A session of the role's own may have made a table: nothing is said of it.
    console(&herd, "RECONNECT");
    until("the connections of before are closed, which PgBouncer does in its own time", || {
        asks("SELECT 1");
        let status = herd.run(&["pooler", "status", "--format", "json"]).ends_with(0).json();
        kinds(&status).is_empty().then_some(())
    });

    // A PAUSE that was given by hand: PgBouncer 1.18 says nothing of it, and clients that wait beside idle connections do.
    console(&herd, "PAUSE");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| asks("SELECT 1"));
        until("a client waits for a second", || holds_back(&herd).then_some(()));
        herd.run(&["pooler", "status"]).ends_with(0).says(&[
            "clients of the pooler on local may be held back by a PAUSE that was given by hand: ",
            "pgherd pooler resume lets them go on",
        ]);
        herd.run(&["pooler", "resume"]).ends_with(0);
        client.join().unwrap();
    });
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // An alias that leads to another node than it says is false, whatever the process answers.
    let elsewhere = good.replace(&format!("port={} ", herd.port("a")), &format!("port={} ", herd.port("b")));
    fs::write(&ini, &elsewhere).unwrap();
    console(&herd, "RELOAD");
    herd.run(&["pooler", "status"]).ends_with(0).says(&["it leads to b, a standby; the primary is a"]);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // A node that was demoted by hand makes the route to it false at once.
    herd.stop("a", "fast");
    fs::write(herd.data("a").join("standby.signal"), "").unwrap();
    herd.program("pg_ctl", &["-D", text(&herd.data("a")), "-w", "-l", "/dev/null", "start"]);
    let status = herd.run(&["pooler", "status"]);
    let status = status.says(&["it leads to a, a standby"]);
    assert!(status.code == 0 || status.code == 3, "{status:?}");

    let process = herd.pgbouncer().unwrap();
    kill_process(process, Signal::STOP).unwrap();
    let begun = Instant::now();
    let frozen = herd.run(&["pooler", "status"]);
    kill_process(process, Signal::CONT).unwrap();
    frozen.ends_with(3).says(&["unknown"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// Starts a client that asks through the pooler, and tells how long it took to be answered.
fn asks<'s>(
    scope: &'s std::thread::Scope<'s, '_>,
    herd: &'s Herd,
    sql: &'static str,
) -> std::thread::ScopedJoinHandle<'s, Duration> {
    scope.spawn(move || {
        let begun = Instant::now();
        herd.client("pooler", "app", APP_PASSWORD, "inventory", sql)
            .expect("a client that waits is answered");
        begun.elapsed()
    })
}

#[test]
fn clients_are_held_back_all_or_none_and_go_on_by_themselves_whatever_becomes_of_pgherd() {
    let mut herd = Herd::up(&newest_or_15(1), &PAIR);
    let hold = herd.pooler().join("hold.json");

    // Held back and let go: a client that comes meanwhile waits and is answered.
    herd.run(&["pooler", "pause", "--for", "60s"]).ends_with(0).tells(&["the clients of inventory wait"]);
    std::thread::scope(|scope| {
        let client = asks(scope, &herd, "SELECT 1");
        herd.run(&["pooler", "status"]).ends_with(0).says(&["held back, goes on in"]);
        herd.run(&["pooler", "pause"]).ends_with(4).tells(&["are held back already", "pooler resume"]);
        assert!(!client.is_finished());
        herd.run(&["pooler", "resume"]).ends_with(0);
        client.join().unwrap();
    });
    assert!(!hold.exists());
    herd.run(&["pooler", "resume"]).ends_with(0);

    // A primary that restarts behind held-back clients costs them a wait and no error.
    let script = herd.path("select.sql");
    fs::write(&script, "SELECT 1;\n").unwrap();
    let mut bench = std::process::Command::new(herd.installation().bin().join("pgbench"));
    bench.args(["-n", "-c", "2", "-T", "6", "-h", "127.0.0.1", "-U", "app", "-f", text(&script), "-p"]);
    bench.arg(herd.port("pooler").to_string()).arg("inventory").env("PGPASSWORD", APP_PASSWORD);
    let bench = std::thread::spawn(move || text_of(bench));
    until("clients are there", || {
        let clients = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        (herd.sql("a", clients) != "0").then_some(())
    });
    herd.run(&["pooler", "pause", "--for", "30s"]).ends_with(0);
    herd.program("pg_ctl", &["-D", text(&herd.data("a")), "-w", "-m", "fast", "-l", "/dev/null", "restart"]);
    herd.run(&["pooler", "resume"]).ends_with(0);
    let told = bench.join().unwrap().expect("no client got an error");
    assert!(!told.contains("aborted"), "{told}");

    // A transaction that does not end: nobody is held back.
    std::thread::scope(|scope| {
        let busy = asks(scope, &herd, "BEGIN; SELECT pg_sleep(6); COMMIT");
        until("the transaction runs", || {
            let running =
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(6)%' AND usename = 'app'";
            (herd.sql("a", running) == "1").then_some(())
        });
        herd.run(&["pooler", "pause", "--grace", "1s"]).ends_with(1).tells(&["did not end within 1.0 s"]);
        let other = asks(scope, &herd, "SELECT 1").join().unwrap();
        assert!(other < Duration::from_secs(3), "{other:?}");
        assert!(!busy.is_finished());
        busy.join().unwrap();
    });
    assert!(!hold.exists());

    // pgherd is killed while it waits for a transaction: what it has begun ends by itself, and nobody gets an error.
    std::thread::scope(|scope| {
        let busy = asks(scope, &herd, "BEGIN; SELECT pg_sleep(5); COMMIT");
        until("the transaction runs", || {
            let running =
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(5)%' AND usename = 'app'";
            (herd.sql("a", running) == "1").then_some(())
        });
        let mut pause = herd.start(&["pooler", "pause", "--for", "8s", "--grace", "8s"]);
        let waits = until("a client is held back", || {
            let client = asks(scope, &herd, "SELECT 1");
            loop {
                if client.is_finished() {
                    client.join().unwrap();
                    return None;
                }
                if holds_back(&herd) {
                    return Some(client);
                }
            }
        });
        assert!(hold.exists(), "it was armed before");
        pause.signal(Signal::KILL);
        pause.end();
        let waited = waits.join().unwrap();
        assert!(waited < Duration::from_secs(12), "{waited:?}");
        busy.join().unwrap();
    });
    until("the expiry has ended", || (!hold.exists()).then_some(()));
    let refused = herd.run(&["pooler", "pause"]).ends_with(5);
    refused.tells(&["unfinished operation", "pgherd operation undo"]);
    herd.run(&["pooler", "resume"]).ends_with(0);
    herd.run(&["pooler", "pause", "--for", "5s"]).ends_with(0);
    herd.run(&["pooler", "resume"]).ends_with(0);

    // A client that keeps its connection would keep PAUSE waiting: refused, with the reason.
    herd.edit("mode: transaction", "mode: session");
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0);
    std::thread::scope(|scope| {
        let kept = asks(scope, &herd, "SELECT pg_sleep(4)");
        until("the session runs", || {
            let running =
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND usename = 'app'";
            (herd.sql("a", running) == "1").then_some(())
        });
        let refused = herd.run(&["pooler", "pause", "--for", "3s"]).ends_with(4);
        refused.tells(&["keep their connections", "PAUSE would wait until they leave"]);
        kept.join().unwrap();
    });
    herd.run(&["pooler", "pause", "--for", "121s"]).ends_with(4).tells(&["query_wait_timeout"]);

    // The server is asked what clients must prove: a password that was changed there holds at once, and one whose time is over does not.
    herd.edit("mode: session", "mode: transaction\n      auth: query");
    herd.run(&["apply", "--yes"]).ends_with(4).tells(&["pgherd apply --allow-restart"]);
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    let login = |password: &str| herd.client("pooler", "app", password, "inventory", "SELECT current_user");
    assert_eq!(login(APP_PASSWORD).unwrap(), "app");
    let userlist = fs::read_to_string(herd.pooler().join("userlist.txt")).unwrap();
    assert!(!userlist.contains("\"app\""), "it is asked for");
    herd.sql("a", "ALTER ROLE app PASSWORD 'changed-on-the-server'");
    assert_eq!(login("changed-on-the-server").unwrap(), "app");
    assert!(login(APP_PASSWORD).is_err());
    herd.sql("a", "ALTER ROLE app VALID UNTIL '2020-01-01'");
    assert!(login("changed-on-the-server").is_err());
    herd.sql("a", "ALTER ROLE app VALID UNTIL 'infinity'");
    assert!(herd.try_sql("a", "inventory", "SET ROLE app; SELECT pgherd.pooler_login('app')").is_err());
    // What was changed on the server is not what the file declares.
    herd.apply().ends_with(0);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0).says(&["No changes."]);
    herd.sql_in("a", "inventory", "GRANT EXECUTE ON FUNCTION pgherd.pooler_login TO PUBLIC");
    herd.run(&["pooler", "status"])
        .ends_with(0)
        .says(&["others than the poolers may call pgherd.pooler_login"]);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");
}
