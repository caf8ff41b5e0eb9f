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
const WRITERS: usize = 8;
const CALM: Duration = Duration::from_secs(1);

/// How the primary's role gets to another node.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A switchover.
    Planned,
    /// The primary's server is killed, and the failover begins at once.
    Forced,
}

/// How the writers come in. One way at a time: those who look for the primary themselves would otherwise take the processors from the others
/// while there is none.
#[derive(Debug, Clone, Copy)]
enum Way {
    Pooled,
    Direct,
}

/// What the runs of one kind have come to.
#[derive(Debug, Default)]
struct Outcomes {
    gaps: Vec<Duration>,
    commands: Vec<Duration>,
    errors: usize,
    failed_connects: usize,
    lost: usize,
    rows: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [pgherd, pooler, runs, nodes @ ..] = args.as_slice() else { return };
    let (pooler, runs): (u16, usize) = (pooler.parse().unwrap(), runs.parse().unwrap());
    let mut data = Vec::new();
    let mut places = Vec::new();
    for node in nodes {
        let [name, port, directory] = node.split('=').collect::<Vec<_>>().try_into().unwrap();
        places.push((name.to_owned(), Ipv4Addr::LOCALHOST, port.parse().unwrap()));
        data.push(directory.to_owned());
    }
    let mut leads = 0;
    let mut first = 0;
    println!(
        "| {runs} runs each, {WRITERS} writers | rows | longest without a write, median | worst | errors | failed connects \
         | lost rows | the whole command, median | worst |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for kind in [Kind::Planned, Kind::Forced] {
        for way in [Way::Pooled, Way::Direct] {
            let (pooled, direct) = match way {
                Way::Pooled => (WRITERS, 0),
                Way::Direct => (0, WRITERS),
            };
            let clients = Clients {
                network: None,
                password: PASSWORD.to_owned(),
                pooled,
                poolers: vec![(Ipv4Addr::LOCALHOST, pooler)],
                direct,
                nodes: places.clone(),
            };
            let mut outcomes = Outcomes::default();
            for _ in 0..runs {
                let to = (leads + 1) % places.len();
                change(kind, pgherd, pooler, (&clients, first), (&data[leads], leads, to), &mut outcomes);
                leads = to;
                first += WRITERS;
            }
            print(kind, way, outcomes);
        }
    }
}

/// Has the role go from one node to another while clients write.
fn change(
    kind: Kind,
    pgherd: &str,
    pooler: u16,
    (clients, first): (&Clients, usize),
    (data, from, to): (&str, usize, usize),
    outcomes: &mut Outcomes,
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
    outcomes.commands.push(begun.elapsed());
    std::thread::sleep(CALM);
    let outcome = ledger.stop(clients, first, || read(pooler));
    outcome.is_sound();
    if let Kind::Forced = kind {
        done(&["rejoin", name(from), "--yes"]);
    }
    for seen in [&outcome.pooled, &outcome.direct] {
        outcomes.errors += seen.errors;
        outcomes.failed_connects += seen.failed_connects;
    }
    outcomes.gaps.push(outcome.pooled.longest_gap.max(outcome.direct.longest_gap));
    outcomes.lost += outcome.lost.len();
    outcomes.rows += outcome.acknowledged;
}

fn print(kind: Kind, way: Way, outcomes: Outcomes) {
    let Outcomes { mut gaps, mut commands, errors, failed_connects, lost, rows } = outcomes;
    let what = match kind {
        Kind::Planned => "planned",
        Kind::Forced => "forced, after kill -9",
    };
    let by = match way {
        Way::Pooled => "through PgBouncer",
        Way::Direct => "directly, every node tried",
    };
    gaps.sort();
    commands.sort();
    let middle = |times: &[Duration]| times[times.len() / 2];
    let worst = |times: &[Duration]| times[times.len() - 1];
    println!(
        "| {what}, {by} | {rows} | {:.2?} | {:.2?} | {errors} | {failed_connects} | {lost} | {:.2?} | {:.2?} |",
        middle(&gaps),
        worst(&gaps),
        middle(&commands),
        worst(&commands),
    );
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
