//! What clients see of planned and of forced changes of the primary: writers through the pooler and directly, one change after the other, and a
//! table of it.
//!
//! Run by scripts/bench-roles, which makes the herd: `roles PGHERD POOLER-PORT RUNS NODE=PORT=DATA...`. Without arguments it does nothing, so that
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
use rustix::process::{Pid, Signal, kill_process};

const PASSWORD: &str = "known-to-app";
const EACH: usize = 8;
const CALM: Duration = Duration::from_secs(1);

/// How the primary's role gets to another node.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A switchover.
    Planned,
    /// The primary's server is killed, and the failover begins at once.
    Forced,
}

/// What the runs of one kind have come to.
#[derive(Debug, Default)]
struct Seen {
    pooled: Vec<Duration>,
    direct: Vec<Duration>,
    commands: Vec<Duration>,
    errors: usize,
    direct_errors: usize,
    failed_connects: usize,
    lost: usize,
    rows: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [pgherd, pooler, runs, nodes @ ..] = args.as_slice() else { return };
    let (pooler, runs): (u16, usize) = (pooler.parse().unwrap(), runs.parse().unwrap());
    let mut data = Vec::new();
    let mut clients = Clients {
        network: None,
        password: PASSWORD.to_owned(),
        pooled: EACH,
        poolers: vec![(Ipv4Addr::LOCALHOST, pooler)],
        direct: EACH,
        nodes: Vec::new(),
    };
    for node in nodes {
        let [name, port, directory] = node.split('=').collect::<Vec<_>>().try_into().unwrap();
        clients.nodes.push((name.to_owned(), Ipv4Addr::LOCALHOST, port.parse().unwrap()));
        data.push(directory.to_owned());
    }
    let mut leads = 0;
    for (at, kind) in [Kind::Planned, Kind::Forced].into_iter().enumerate() {
        let mut seen = Seen::default();
        for run in 0..runs {
            let to = (leads + 1) % clients.nodes.len();
            let first = (at * runs + run) * EACH * 2;
            change(kind, pgherd, pooler, (&clients, first), (&data[leads], leads, to), &mut seen);
            leads = to;
        }
        print(kind, runs, seen);
    }
}

/// Has the role go from one node to another while clients write.
fn change(
    kind: Kind,
    pgherd: &str,
    pooler: u16,
    (clients, first): (&Clients, usize),
    (data, from, to): (&str, usize, usize),
    seen: &mut Seen,
) {
    let name = |node: usize| clients.nodes[node].0.as_str();
    let done = |args: &[&str]| {
        let output = Command::new(pgherd).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let ledger = Ledger::start(clients, first);
    std::thread::sleep(CALM);
    let begun = Instant::now();
    match kind {
        Kind::Planned => done(&["switchover", "--to", name(to), "--yes"]),
        Kind::Forced => {
            let file = std::fs::read_to_string(format!("{data}/postmaster.pid")).unwrap();
            let pid = Pid::from_raw(file.lines().next().unwrap().parse().unwrap()).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
            done(&["failover", "--to", name(to), "--yes"]);
        }
    }
    seen.commands.push(begun.elapsed());
    std::thread::sleep(CALM);
    let outcome = ledger.stop(clients, first, || read(pooler));
    outcome.is_sound();
    if let Kind::Forced = kind {
        done(&["rejoin", name(from), "--yes"]);
    }
    seen.pooled.push(outcome.pooled.longest_gap);
    seen.direct.push(outcome.direct.longest_gap);
    seen.errors += outcome.pooled.errors;
    seen.direct_errors += outcome.direct.errors;
    seen.failed_connects += outcome.pooled.failed_connects;
    seen.lost += outcome.lost.len();
    seen.rows += outcome.acknowledged;
}

fn print(kind: Kind, runs: usize, seen: Seen) {
    let Seen { pooled, direct, commands, errors, direct_errors, failed_connects, lost, rows } = seen;
    let what = match kind {
        Kind::Planned => "planned",
        Kind::Forced => "forced, after kill -9",
    };
    println!(
        "| {what}, {runs} runs, {rows} rows | longest without a write, median | worst | errors | failed connects | lost rows |"
    );
    println!("|---|---|---|---|---|---|");
    let row = |what: &str, mut gaps: Vec<Duration>, rest: String| {
        gaps.sort();
        println!("| {what} | {:.2?} | {:.2?} | {rest} |", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    };
    row("through PgBouncer, 8 writers", pooled, format!("{errors} | {failed_connects} | {lost}"));
    row("directly, 8 writers, every node tried", direct, format!("{direct_errors} | - | {lost}"));
    row("the whole command", commands, "| |".to_owned());
    println!();
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
