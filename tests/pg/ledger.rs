//! Clients that keep a ledger of what they wrote: every row that was acknowledged must be there afterwards, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgherd::db::{Connector, Endpoint, Login, Session};
use pgherd::gate;
use pgherd::secret::Secret;

use crate::herd::{APP_PASSWORD, Herd, Shape, until};
use crate::server::Installation;

pub const TABLE: &str = "
SET ROLE inventory_owner;
CREATE TABLE inventory.ledger (client int, number int, PRIMARY KEY (client, number))";

/// A herd with backups and the clients' table.
pub fn up(installation: &Installation, shape: &Shape<'_>) -> Herd {
    let mut herd = Herd::declare(installation, shape);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.sql_in("a", "inventory", TABLE);
    herd
}

/// A client that writes one row after the other through the pooler, each with a number of its own.
pub struct Writer {
    client: u32,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub struct Written {
    /// The numbers that were acknowledged.
    pub acknowledged: Vec<u32>,
    /// The longest time from one acknowledged row to the next.
    pub longest: Duration,
    /// What became of those that were not: whether they are there is not known.
    pub errors: Vec<String>,
}

impl Writer {
    pub fn start(herd: &Herd, client: u32) -> Self {
        Self::at(vec![herd.port("pooler")], client)
    }

    /// One that knows these nodes and goes to the next one whenever it has an error, as a connection string with several hosts does.
    pub fn direct(herd: &Herd, client: u32, nodes: &[&str]) -> Self {
        Self::at(nodes.iter().map(|node| herd.port(node)).collect(), client)
    }

    fn at(ports: Vec<u16>, client: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(write(&ports, client, &asked))
        });
        Self { client, stop, thread }
    }

    fn end(self) -> (u32, Written) {
        self.stop.store(true, Ordering::Relaxed);
        (self.client, self.thread.join().expect("a writer"))
    }
}

async fn write(ports: &[u16], client: u32, stop: &AtomicBool) -> Written {
    let patience = Duration::from_secs(110);
    let mut ports = ports.iter().cycle();
    let mut login = Login {
        server: "pooler".to_owned(),
        endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: *ports.next().expect("a port") },
        user: "app".to_owned(),
        database: "inventory".to_owned(),
        password: Some(Secret::new(APP_PASSWORD)),
        session: Session::Plain,
        tunnel: None,
        tls: None,
    };
    let connector = Connector::new(gate::open()).timeouts(patience, patience);
    let (mut written, mut conn) = (Written::default(), None);
    let mut last = Instant::now();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let ended = match conn.take() {
            Some(conn) => Ok(conn),
            None => connector.connect(&login).await,
        };
        let ended = match ended {
            Ok(opened) => {
                let sql = format!("INSERT INTO inventory.ledger VALUES ({client}, {number})");
                opened.batch("write", &sql).await.map(|()| opened)
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(opened) => {
                conn = Some(opened);
                written.acknowledged.push(number);
                written.longest = written.longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) => {
                written.errors.push(error.to_string());
                let port = *ports.next().expect("a port");
                login.endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port };
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    written
}

/// Waits until every writer has had a row acknowledged since now.
pub fn writes_go_on(herd: &Herd, primary: &str) {
    let count = || herd.sql_in(primary, "inventory", "SELECT count(*) FROM inventory.ledger");
    let before = count();
    until("clients write again", || (count() != before).then_some(()));
}

/// Ends the writers: every row that was acknowledged is there, on `primary`.
#[track_caller]
pub fn nothing_is_lost(herd: &Herd, primary: &str, writers: Vec<Writer>) -> Written {
    let mut all = Written::default();
    for (client, written) in writers.into_iter().map(Writer::end) {
        assert!(!written.acknowledged.is_empty());
        let sql = format!("SELECT number FROM inventory.ledger WHERE client = {client} ORDER BY number");
        let there = herd.sql_in(primary, "inventory", &sql);
        let there: Vec<u32> = there.lines().map(|line| line.parse().expect("a number")).collect();
        let lost: Vec<&u32> =
            written.acknowledged.iter().filter(|number| there.binary_search(number).is_err()).collect();
        assert!(lost.is_empty(), "of client {client} {lost:?} were acknowledged and are gone");
        all.longest = all.longest.max(written.longest);
        all.errors.extend(written.errors);
        all.acknowledged.extend(written.acknowledged);
    }
    all
}

/// Holds the herd to be led by `primary`, whole, and as declared.
#[track_caller]
pub fn led_by(herd: &Herd, primary: &str, timeline: u32, standbys: usize) {
    assert_eq!(herd.primaries(), [primary]);
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    until("the standbys stream", || (herd.sql(primary, streaming) == standbys.to_string()).then_some(()));
    herd.is_as_declared();
    let segment = herd.sql(
        primary,
        "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
    );
    assert_eq!(&segment[..8], format!("{timeline:08X}"));
    until(&format!("{segment} is archived"), || archived(herd, &segment).then_some(()));
}

pub fn archived(herd: &Herd, name: &str) -> bool {
    herd.kept().has_wal(name)
}
