use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgherd::db::queries::{ensure_probe_table, read_probe, write_probe};
use pgherd::db::{Connector, DbError, Endpoint, Login};
use pgherd::gate::{self, Blocked, BoxFuture, Gate};

use crate::server::{Server, free_port, newest};

/// Fails one call, before or after its effect.
#[derive(Debug)]
enum FailsOne {
    Before(&'static str),
    After(&'static str),
}

impl Gate for FailsOne {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let blocked = matches!(self, Self::Before(wanted) if *wanted == call);
        Box::pin(async move { if blocked { Err(Blocked::Before(call.to_owned())) } else { Ok(()) } })
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let blocked = matches!(self, Self::After(wanted) if *wanted == call);
        Box::pin(async move { if blocked { Err(Blocked::After(call.to_owned())) } else { Ok(()) } })
    }
}

fn connector() -> Connector {
    Connector::new(gate::open())
}

async fn refusal(login: &Login) -> DbError {
    match connector().connect(login).await {
        Ok(_) => panic!("the login succeeds"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_login_that_fails_says_why() {
    let server = Server::start(&newest(), "");
    let conn = server.primary("postgres").await;
    conn.batch(
        "create roles",
        "CREATE ROLE app LOGIN PASSWORD 'right-one'; CREATE ROLE nobody PASSWORD 'right-one'",
    )
    .await
    .unwrap();

    let conn = connector().connect(&server.tcp_login("app", "right-one", "postgres")).await.unwrap();
    assert_eq!(
        conn.simple("ask who", "SELECT current_user AS me").await.unwrap()[0]["me"].as_deref(),
        Some("app")
    );

    let wrong = refusal(&server.tcp_login("app", "guessed-wrong", "postgres")).await;
    assert!(matches!(wrong, DbError::Authentication { .. }), "{wrong:?}");
    assert_eq!(
        wrong.to_string(),
        "inventory-a refused the login of app to database postgres: password authentication failed for user \"app\""
    );
    assert!(!format!("{wrong:?}").contains("guessed-wrong"));
    let unable = refusal(&server.tcp_login("nobody", "right-one", "postgres")).await;
    assert!(matches!(unable, DbError::Authentication { .. }), "{unable:?}");
    let silent = refusal(&Login { password: None, ..server.tcp_login("app", "", "postgres") }).await;
    assert!(matches!(silent, DbError::Authentication { .. }), "{silent:?}");

    let missing = refusal(&server.login("no_such")).await;
    assert_eq!(missing, DbError::NoDatabase { server: "inventory-a".into(), database: "no_such".into() });

    server.stop("fast");
    for login in [server.login("postgres"), server.tcp_login("app", "right-one", "postgres")] {
        let gone = refusal(&login).await;
        assert!(matches!(gone, DbError::NotListening { .. }), "{gone:?}");
    }
}

#[tokio::test]
async fn a_server_that_starts_up_is_not_gone() {
    let server = Server::make(&newest(), "");
    let hold = server.socket().join("hold");
    std::fs::write(&hold, "").unwrap();
    server.append(
        "postgresql.conf",
        &format!("restore_command = 'while [ -e {} ]; do sleep 0.05; done; false'\n", hold.display()),
    );
    server.append("standby.signal", "");
    server.run_unready();
    let starting = refusal(&server.login("postgres")).await;
    assert!(matches!(starting, DbError::Starting { .. }), "{starting:?}");
    std::fs::remove_file(&hold).unwrap();
    server.connect("postgres").await;
}

#[tokio::test]
async fn a_peer_that_is_silent_or_no_postgresql_holds_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let login = Login {
        server: "orders-a".into(),
        endpoint: Endpoint::Tcp { host: "127.0.0.1".into(), port },
        user: "postgres".into(),
        database: "postgres".into(),
        password: None,
        session: pgherd::db::Session::Tool,
        tunnel: None,
        tls: None,
    };
    let quick = connector().timeouts(Duration::from_millis(200), Duration::from_secs(1));
    let begin = Instant::now();
    let error = quick.connect(&login).await.unwrap_err();
    assert!(matches!(error, DbError::Timeout { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(2));

    let answers = std::thread::spawn(move || {
        // The first connection in the queue is the one that was given up.
        for _ in 0..2 {
            let (mut stream, _) = silent.accept().unwrap();
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        }
    });
    let error = connector().connect(&login).await.unwrap_err();
    assert!(matches!(error, DbError::Unreachable { .. }), "{error:?}");
    answers.join().unwrap();
}

#[tokio::test]
async fn a_statement_that_takes_too_long_had_no_effect() {
    let server = Server::start(&newest(), "");
    let quick = connector().timeouts(Duration::from_secs(3), Duration::from_millis(200));
    let conn = quick.connect(&server.login("postgres")).await.unwrap();
    let error = conn.batch("sleep", "CREATE TABLE public.t (); SELECT pg_sleep(60)").await.unwrap_err();
    assert!(matches!(error, DbError::Timeout { .. }) && !error.outcome_unknown(), "{error:?}");
    conn.set_deadline(Duration::from_secs(20)).await.unwrap();
    let rows = conn.simple("look", "SELECT to_regclass('public.t') AS t FROM pg_sleep(0.5)").await.unwrap();
    assert_eq!(rows[0]["t"], None);
}

#[tokio::test]
async fn a_statement_without_an_answer_has_an_unknown_outcome() {
    let server = Server::start(&newest(), "");
    let quick = connector().timeouts(Duration::from_secs(3), Duration::from_millis(200));
    let conn = quick.connect(&server.login("postgres")).await.unwrap();
    let rows = conn.simple("ask its process", "SELECT pg_backend_pid() AS pid").await.unwrap();
    let pid = rows[0]["pid"].clone().unwrap();
    server.as_server("kill", &["-STOP", &pid]).unwrap();
    let error = conn.batch("create table", "CREATE TABLE public.t ()").await.unwrap_err();
    server.as_server("kill", &["-CONT", &pid]).unwrap();
    assert!(matches!(error, DbError::Lost { .. }) && error.outcome_unknown(), "{error:?}");
    let error = conn.batch("create table", "CREATE TABLE public.t ()").await.unwrap_err();
    assert!(matches!(error, DbError::NotSent { .. }), "{error:?}");
}

#[tokio::test]
async fn a_session_that_the_server_ends_has_an_unknown_outcome() {
    let server = Server::start(&newest(), "");
    let conn = server.connect("postgres").await;
    let victim = server.connect("postgres").await;
    let rows = victim.simple("ask its process", "SELECT pg_backend_pid() AS pid").await.unwrap();
    let pid = rows[0]["pid"].clone().unwrap();
    let end = async {
        let waits = format!("SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        while conn.simple("look", &waits).await.unwrap().is_empty() {}
        conn.batch("end it", &format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
    };
    let (error, ()) = tokio::join!(victim.batch("sleep", "SELECT pg_sleep(60)"), end);
    let error = error.unwrap_err();
    assert!(matches!(error, DbError::ShuttingDown { .. }) && error.outcome_unknown(), "{error:?}");
}

#[tokio::test]
async fn a_gate_tells_not_sent_from_lost() {
    let server = Server::start(&newest(), "");
    let login = server.login("postgres");
    let exists = async || {
        let conn = server.connect("postgres").await;
        let rows = conn.simple("look", "SELECT to_regclass('public.t') AS t").await.unwrap();
        rows[0]["t"].is_some()
    };
    let before = Connector::new(Arc::new(FailsOne::Before("inventory-a: sql create table")));
    let conn = before.connect(&login).await.unwrap();
    let error = conn.batch("create table", "CREATE TABLE public.t ()").await.unwrap_err();
    assert!(matches!(error, DbError::NotSent { .. }), "{error:?}");
    assert!(!exists().await);
    let after = Connector::new(Arc::new(FailsOne::After("inventory-a: sql create table")));
    let conn = after.connect(&login).await.unwrap();
    let error = conn.batch("create table", "CREATE TABLE public.t ()").await.unwrap_err();
    assert!(matches!(error, DbError::Lost { .. }), "{error:?}");
    assert!(exists().await);
    let closed = Connector::new(Arc::new(FailsOne::Before("inventory-a: connect")));
    assert!(matches!(closed.connect(&login).await, Err(DbError::NotSent { .. })));
}

#[tokio::test]
async fn a_tool_session_finds_only_what_postgresql_made() {
    let server = Server::start(&newest(), "");
    let conn = server.primary("postgres").await;
    let trap = "CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
                CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.trap);
                ALTER ROLE postgres SET search_path = public, pg_catalog;
                ALTER DATABASE postgres SET synchronous_commit = on";
    conn.batch("lay a trap", trap).await.unwrap();
    let conn = server.connect("postgres").await;
    let rows = conn.simple("compare", "SELECT 'a'::text = 'a'::text AS same").await.unwrap();
    assert_eq!(rows[0]["same"].as_deref(), Some("t"));
    let rows = conn.simple("read a setting", "SHOW synchronous_commit").await.unwrap();
    assert_eq!(rows[0]["synchronous_commit"].as_deref(), Some("local"));
    let plain = Login { session: pgherd::db::Session::Plain, ..server.login("postgres") };
    let conn = connector().connect(&plain).await.unwrap();
    let error = conn.simple("compare", "SELECT 'a'::text = 'a'::text AS same").await.unwrap_err();
    assert!(error.is_state("P0001"), "{error:?}");
}

#[tokio::test]
async fn a_plain_session_works_through_pgbouncer_in_transaction_mode() {
    let server = Server::start(&newest(), "");
    ensure_probe_table(&server.primary("postgres").await).await.unwrap();
    let port = free_port();
    let Endpoint::Tcp { port: target, .. } = server.tcp_login("postgres", "", "postgres").endpoint else {
        panic!("not TCP")
    };
    let directory = server.socket().display().to_string();
    let ini = format!(
        "[databases]\nshop = host={directory} port={target} dbname=postgres user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = any\nadmin_users = postgres\npool_mode = transaction\n\
         default_pool_size = 1\npidfile = {directory}/pgbouncer.pid\nlogfile = {directory}/pgbouncer.log\n"
    );
    std::fs::write(server.socket().join("pgbouncer.ini"), ini).unwrap();
    server.as_server("pgbouncer", &["-d", &format!("{directory}/pgbouncer.ini")]).unwrap();

    let login = |database: &str| Login {
        endpoint: Endpoint::Tcp { host: "127.0.0.1".into(), port },
        session: pgherd::db::Session::Plain,
        ..server.login(database)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    // Two sessions on one server connection.
    let one = loop {
        match connector().connect(&login("shop")).await {
            Ok(conn) => break conn,
            Err(error) => assert!(Instant::now() < deadline, "PgBouncer does not start: {error}"),
        }
    };
    let two = connector().connect(&login("shop")).await.unwrap();
    for nonce in ["first", "second"] {
        write_probe(&one, nonce).await.unwrap();
        assert_eq!(read_probe(&two).await.unwrap().as_deref(), Some(nonce));
    }
    let console = connector().connect(&login("pgbouncer")).await.unwrap();
    let rows = console.simple("show databases", "SHOW DATABASES").await.unwrap();
    let shop = rows.iter().find(|row| row["name"].as_deref() == Some("shop")).unwrap();
    assert_eq!(shop["port"].as_deref(), Some(target.to_string().as_str()));
    // It ends at once, without an answer.
    assert!(console.batch("shut down", "SHUTDOWN").await.is_err());
}
