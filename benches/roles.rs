//! What clients see of switchovers: writers through the pooler and directly, one switchover after the other, and a table of it.
//!
//! Run by scripts/bench-roles, which makes the herd: `roles PGHERD POOLER-PORT RUNS NODE=PORT...`. Without arguments it does nothing, so that
//! `cargo bench` as a whole does not wait for servers.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where something fails"
)]
#![expect(dead_code, reason = "the tests use more of the ledger")]

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

#[path = "../tests/lab/ledger.rs"]
mod ledger;

use ledger::{Clients, Ledger, ROWS};
use pgherd::db::{Connector, Endpoint, Login, Session};
use pgherd::gate;
use pgherd::secret::Secret;

const PASSWORD: &str = "known-to-app";
const EACH: usize = 8;
const CALM: Duration = Duration::from_secs(1);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [pgherd, pooler, runs, nodes @ ..] = args.as_slice() else { return };
    let (pooler, runs): (u16, usize) = (pooler.parse().unwrap(), runs.parse().unwrap());
    let nodes = nodes.iter().map(|node| {
        let (name, port) = node.split_once('=').unwrap();
        (name.to_owned(), Ipv4Addr::LOCALHOST, port.parse().unwrap())
    });
    let clients = Clients {
        network: None,
        password: PASSWORD.to_owned(),
        pooled: EACH,
        poolers: vec![(Ipv4Addr::LOCALHOST, pooler)],
        direct: EACH,
        nodes: nodes.collect(),
    };
    let (mut pooled, mut direct, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    let (mut errors, mut direct_errors, mut failed, mut lost, mut rows) = (0, 0, 0, 0, 0);
    for run in 0..runs {
        let to = &clients.nodes[(run + 1) % clients.nodes.len()].0;
        let first = run * EACH * 2;
        let ledger = Ledger::start(&clients, first);
        std::thread::sleep(CALM);
        let begun = Instant::now();
        let output = Command::new(pgherd).args(["switchover", "--to", to, "--yes"]).output().unwrap();
        commands.push(begun.elapsed());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(CALM);
        let outcome = ledger.stop(&clients, first, || read(pooler));
        outcome.is_sound();
        pooled.push(outcome.pooled.longest_gap);
        direct.push(outcome.direct.longest_gap);
        errors += outcome.pooled.errors;
        direct_errors += outcome.direct.errors;
        failed += outcome.pooled.failed_connects;
        lost += outcome.lost.len();
        rows += outcome.acknowledged;
    }
    println!(
        "| planned, {runs} runs, {rows} rows | longest without a write, median | worst | errors | failed connects | lost rows |"
    );
    println!("|---|---|---|---|---|---|");
    let row = |what: &str, mut gaps: Vec<Duration>, rest: String| {
        gaps.sort();
        println!("| {what} | {:.2?} | {:.2?} | {rest} |", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    };
    row("through PgBouncer, 8 writers", pooled, format!("{errors} | {failed} | {lost}"));
    row("directly, 8 writers, every node tried", direct, format!("{direct_errors} | - | {lost}"));
    row("the whole command", commands, "| |".to_owned());
}

/// Reads the rows through the pooler, as a client would.
fn read(port: u16) -> String {
    let login = Login {
        server: "pooler".to_owned(),
        endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port },
        user: "app".to_owned(),
        database: "inventory".to_owned(),
        password: Some(Secret::new(PASSWORD)),
        session: Session::Plain,
        tunnel: None,
        tls: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rows = runtime.block_on(async {
        let connector = Connector::new(gate::open()).timeouts(CALM * 10, CALM * 120);
        connector.connect(&login).await.unwrap().simple("read the ledger", ROWS).await.unwrap()
    });
    let lines: Vec<String> = rows.into_iter().filter_map(|row| row.into_values().next().flatten()).collect();
    lines.join("\n")
}
