//! What clients see while roles change: writers that remember what was acknowledged, and a prober that asks every node again and again
//! whether it takes writes.
//!
//! A row is written once and never tried again: what was not acknowledged is unknown, and may be there or not. Knows nothing of how roles
//! change; works from the network of the namespace that it is given, or from this one.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgherd::db::{Conn, Connector, Endpoint, Login, Session};
use pgherd::gate;
use pgherd::secret::Secret;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The table that is written to, for a superuser of the database `inventory`.
pub const TABLE: &str = "SET ROLE inventory_owner; CREATE TABLE inventory.ledger (client int, number int); \
                         CREATE INDEX ON inventory.ledger (client, number)";
/// Every row with how often it is there, for [`Ledger::stop`].
pub const ROWS: &str =
    "SELECT client || ' ' || number || ' ' || count(*) FROM inventory.ledger GROUP BY client, number";

/// Longer than any pooler holds its clients back.
const PATIENCE: Duration = Duration::from_secs(130);
/// How long a direct connection may take until the next node is tried.
const CONNECT: Duration = Duration::from_secs(2);
const BETWEEN_WRITES: Duration = Duration::from_millis(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
/// How long a statement that is on its way when the writers are to stop is waited for. What becomes of it then is unknown.
const AT_LAST: Duration = Duration::from_secs(3);
/// Two looks at one node are of the same reign if they are no further apart: no role goes there and back in less.
const REIGN: Duration = Duration::from_millis(500);
/// How many errors are kept word by word.
const KEPT: usize = 20;

/// Who is written to, and by whom.
#[derive(Debug)]
pub struct Clients {
    /// The network that they are in; this one if there is none.
    pub network: Option<File>,
    pub password: String,
    /// Writers through each of these poolers, in turns.
    pub pooled: usize,
    pub poolers: Vec<(Ipv4Addr, u16)>,
    /// Writers that look for the primary among the nodes themselves, as with `target_session_attrs=read-write`.
    pub direct: usize,
    /// Every node, by its name.
    pub nodes: Vec<(String, Ipv4Addr, u16)>,
}

/// Writers and a prober at work.
#[derive(Debug)]
pub struct Ledger {
    stop: Arc<AtomicBool>,
    pooled: Vec<JoinHandle<Written>>,
    direct: Vec<JoinHandle<Written>>,
    prober: JoinHandle<Vec<Look>>,
}

/// What they have seen.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Rows whose commit was acknowledged, and those of which nobody knows.
    pub acknowledged: usize,
    pub unknown: usize,
    /// Of statements, and of attempts to connect after the first: through poolers, and directly.
    pub pooled: Seen,
    pub direct: Seen,
    /// Acknowledged rows that are not there.
    pub lost: Vec<(usize, u32)>,
    /// Rows that are there more than once.
    pub twice: Vec<(usize, u32)>,
    /// How often a node was seen to take writes.
    pub looks: usize,
    /// Moments at which two nodes took writes, with their names.
    pub two_primaries: Vec<String>,
}

/// What some of the writers have seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub errors: usize,
    pub failed_connects: usize,
    /// The first errors, word by word.
    pub told: Vec<String>,
    /// The longest time without a write that was acknowledged, of the writer that fared worst.
    pub longest_gap: Duration,
}

#[derive(Debug, Default)]
struct Written {
    acknowledged: Vec<u32>,
    unknown: usize,
    seen: Seen,
}

/// One question to one node: whether it took writes at some moment between the two.
#[derive(Debug, Clone, Copy)]
struct Look {
    node: usize,
    asked: Instant,
    answered: Instant,
}

impl Ledger {
    /// Starts to write and to look. Client numbers begin at `first`, so that several may write to one table.
    pub fn start(clients: &Clients, first: usize) -> Self {
        Self::start_slowly(clients, first, BETWEEN_WRITES)
    }

    /// The same, where each writer waits so long after every row.
    pub fn start_slowly(clients: &Clients, first: usize, between: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let connector = Connector::new(gate::open());
        let nodes: Vec<Login> =
            clients.nodes.iter().map(|(_, host, port)| clients.login(*host, *port)).collect();
        let mut next = first;
        let mut writers = |count: usize, ways: &dyn Fn(usize) -> Vec<Login>| -> Vec<JoinHandle<Written>> {
            let start = |index| {
                let (stop, ways, number) = (Arc::clone(&stop), ways(index), next + index);
                let connector = connector.clone();
                clients.spawn(async move { write(&connector, &ways, number, (between, &stop)).await })
            };
            let started = (0..count).map(start).collect();
            next += count;
            started
        };
        let pooled = writers(clients.pooled, &|index| {
            let (host, port) = clients.poolers[index % clients.poolers.len()];
            vec![clients.login(host, port)]
        });
        let direct = writers(clients.direct, &|_| nodes.clone());
        let prober = {
            let stop = Arc::clone(&stop);
            clients.spawn(async move { probe(&connector, &nodes, &stop).await })
        };
        Self { stop, pooled, direct, prober }
    }

    /// Ends the writers and holds what they remember against the rows that are there, as [`ROWS`] prints them.
    pub fn stop(self, clients: &Clients, first: usize, rows: impl FnOnce() -> String) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut outcome = Outcome::default();
        let mut written = Vec::new();
        for (of_pooler, writers) in [(true, self.pooled), (false, self.direct)] {
            for writer in writers {
                let one = writer.join().expect("a writer");
                let seen = if of_pooler { &mut outcome.pooled } else { &mut outcome.direct };
                seen.errors += one.seen.errors;
                seen.failed_connects += one.seen.failed_connects;
                seen.longest_gap = seen.longest_gap.max(one.seen.longest_gap);
                seen.told.extend(one.seen.told);
                seen.told.truncate(KEPT);
                outcome.acknowledged += one.acknowledged.len();
                outcome.unknown += one.unknown;
                written.push(one.acknowledged);
            }
        }
        let looks = self.prober.join().expect("the prober");
        outcome.looks = looks.len();
        outcome.two_primaries = two_primaries(&looks, clients);
        let mut there: BTreeMap<(usize, u32), u32> = BTreeMap::new();
        for row in rows().lines() {
            let mut numbers = row.split(' ').map(|number| number.parse::<u32>().expect("a number"));
            let mut number = || numbers.next().expect("three of them");
            let (client, row, count) = (number() as usize, number(), number());
            there.insert((client, row), count);
        }
        for (client, rows) in (first..).zip(written) {
            let is_lost = |row: &u32| !there.contains_key(&(client, *row));
            outcome.lost.extend(rows.into_iter().filter(is_lost).map(|row| (client, row)));
        }
        outcome.twice = there.into_iter().filter(|(_, count)| *count > 1).map(|(row, _)| row).collect();
        outcome
    }
}

impl Outcome {
    /// Holds what must be so whatever happens: no acknowledged row is lost, none is there twice, and never did two nodes take writes.
    #[track_caller]
    pub fn is_sound(&self) {
        self.loses_nothing();
        assert!(self.two_primaries.is_empty(), "{:?}", self.two_primaries);
    }

    /// Holds that no acknowledged row is lost, and none is there twice.
    #[track_caller]
    pub fn loses_nothing(&self) {
        assert!(self.acknowledged > 0 && self.looks > 0, "nothing was written, or nobody looked: {self:?}");
        assert!(self.lost.is_empty(), "acknowledged rows are lost: {:?}", self.lost);
        assert!(self.twice.is_empty(), "rows are there twice: {:?}", self.twice);
    }
}

impl Clients {
    fn login(&self, host: Ipv4Addr, port: u16) -> Login {
        Login {
            server: format!("{host}:{port}"),
            endpoint: Endpoint::Tcp { host: host.to_string(), port },
            user: "app".to_owned(),
            database: "inventory".to_owned(),
            password: Some(Secret::new(self.password.as_str())),
            session: Session::Plain,
            tunnel: None,
            tls: None,
        }
    }

    /// Runs work on a thread of its own in the clients' network.
    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let network = self.network.as_ref().map(|network| network.try_clone().expect("a namespace"));
        std::thread::spawn(move || {
            if let Some(network) = network {
                // It is this thread that moves, and it ends here; its runtime has no other.
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the clients' network");
            }
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work)
        })
    }
}

/// Writes one row after the other, each with a number of its own. After an error it connects anew, to whoever takes writes.
async fn write(
    connector: &Connector,
    ways: &[Login],
    client: usize,
    (between, stop): (Duration, &AtomicBool),
) -> Written {
    let mut written = Written::default();
    let mut conn: Option<Conn> = None;
    let mut last = Instant::now();
    let mut is_first = true;
    for number in 0.. {
        while conn.is_none() {
            if stop.load(Ordering::Relaxed) {
                return written;
            }
            conn = unless_stopped(stop, connect(connector, ways)).await.flatten();
            if conn.is_none() {
                written.seen.failed_connects += usize::from(!is_first);
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return written;
        }
        if is_first {
            (is_first, last) = (false, Instant::now());
        }
        let sql = format!("INSERT INTO inventory.ledger VALUES ({client}, {number})");
        let written_to = conn.as_ref().expect("connected above");
        let Some(said) = unless_stopped(stop, written_to.batch("write", &sql)).await else {
            written.unknown += 1;
            return written;
        };
        match said {
            Ok(()) => {
                written.acknowledged.push(number);
                written.seen.longest_gap = written.seen.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) => {
                written.unknown += 1;
                written.seen.errors += 1;
                if written.seen.told.len() < KEPT {
                    written.seen.told.push(format!("{error:?}"));
                }
                conn = None;
            }
        }
        tokio::time::sleep(between).await;
    }
    written
}

/// Does it to its end, or until some time after the writers are to stop: a host that is gone answers nobody.
async fn unless_stopped<T>(stop: &AtomicBool, work: impl Future<Output = T>) -> Option<T> {
    let stopped = async {
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        tokio::time::sleep(AT_LAST).await;
    };
    tokio::select! {
        done = work => Some(done),
        () = stopped => None,
    }
}

/// Connects to the only way there is, or to the first node that takes writes.
async fn connect(connector: &Connector, ways: &[Login]) -> Option<Conn> {
    if let [pooler] = ways {
        return connector.clone().timeouts(PATIENCE, PATIENCE).connect(pooler).await.ok();
    }
    for node in ways {
        let Ok(conn) = connector.clone().timeouts(CONNECT, PATIENCE).connect(node).await else { continue };
        if takes_writes(&conn).await == Some(true) {
            return Some(conn);
        }
    }
    None
}

async fn takes_writes(conn: &Conn) -> Option<bool> {
    let sql =
        "SELECT NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::bool AS writable";
    let rows = conn.simple("whether it takes writes", sql).await.ok()?;
    Some(rows.first()?.get("writable")?.as_deref() == Some("t"))
}

/// Asks every node again and again, side by side, and keeps the moments at which one took writes.
async fn probe(connector: &Connector, nodes: &[Login], stop: &AtomicBool) -> Vec<Look> {
    let connector = connector.clone().timeouts(CONNECT, CONNECT);
    let looks = nodes.iter().enumerate().map(|(node, login)| {
        let connector = &connector;
        async move {
            let mut looks = Vec::new();
            let mut conn: Option<Conn> = None;
            while !stop.load(Ordering::Relaxed) {
                if conn.is_none() {
                    conn = connector.connect(login).await.ok();
                }
                if let Some(open) = &conn {
                    let asked = Instant::now();
                    match takes_writes(open).await {
                        Some(true) => looks.push(Look { node, asked, answered: Instant::now() }),
                        Some(false) => {}
                        None => conn = None,
                    }
                }
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            looks
        }
    });
    futures_util::future::join_all(looks).await.concat()
}

/// Finds every moment at which a node took writes between two moments of one reign of another node.
fn two_primaries(looks: &[Look], clients: &Clients) -> Vec<String> {
    let mut found = Vec::new();
    let of = |node: usize| looks.iter().filter(move |look| look.node == node);
    let count = clients.nodes.len();
    for (one, other) in
        (0..count).flat_map(|one| (0..count).map(move |other| (one, other))).filter(|(a, b)| a != b)
    {
        let reigns: Vec<(Instant, Instant)> = of(one)
            .zip(of(one).skip(1))
            .filter(|(before, after)| after.asked.duration_since(before.answered) < REIGN)
            .map(|(before, after)| (before.answered, after.asked))
            .collect();
        let mut reigns = reigns.iter().peekable();
        for look in of(other) {
            while reigns.next_if(|(_, until)| *until < look.answered).is_some() {}
            if reigns.peek().is_some_and(|(from, _)| *from <= look.asked) {
                found.push(format!(
                    "{} and {} took writes at once",
                    clients.nodes[one].0, clients.nodes[other].0
                ));
            }
        }
    }
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        let node = |name: &str| (name.to_owned(), Ipv4Addr::LOCALHOST, 1);
        Clients {
            network: None,
            password: String::new(),
            pooled: 0,
            poolers: Vec::new(),
            direct: 0,
            nodes: vec![node("a"), node("b")],
        }
    }

    #[test]
    fn two_nodes_that_take_writes_at_once_are_found_and_one_after_the_other_is_not() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let look = |node, from, to| Look { node, asked: at(from), answered: at(to) };
        let after = [look(0, 0, 5), look(0, 10, 15), look(1, 20, 25), look(1, 30, 35)];
        assert!(two_primaries(&after, &clients()).is_empty());
        let between = [look(0, 0, 5), look(0, 30, 35), look(1, 10, 15)];
        assert_eq!(two_primaries(&between, &clients()), ["a and b took writes at once"]);
        // There and back again takes its time.
        let back = [look(0, 0, 5), look(0, 3_000, 3_005), look(1, 1_000, 1_005), look(1, 1_010, 1_015)];
        assert!(two_primaries(&back, &clients()).is_empty());
    }
}
