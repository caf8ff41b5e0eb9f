//! What clients leave in server connections that are lent for transactions: it belongs to a session, and the next client has it.
//!
//! Looks at the servers' side of each pooled connection, by the process number that PgBouncer knows. It sees what is there at that moment:
//! of what a client gave, only its last statement. What nobody can see from outside (a prepared statement, LISTEN of a while ago) is not found.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::place;
use super::routes::{PoolerSeen, RouteTruth};
use super::{ConsoleSeen, ServerRow};
use crate::db::pooler::{SessionRow, sessions, temporary_tables};
use crate::ops::observe::{ClusterObserved, Doors, PATIENCE};
use crate::topology::model::{Cluster, Node};

/// From when on a client that keeps a connection in an idle transaction is told.
const IDLE: Duration = Duration::from_secs(10);
/// What PgBouncer itself gives to the next client's connection as that client has it (PgBouncer docs, "track_extra_parameters").
const TRACKED: [&str; 8] = [
    "client_encoding",
    "names",
    "datestyle",
    "timezone",
    "time",
    "standard_conforming_strings",
    "application_name",
    "intervalstyle",
];

/// Something that an application may not do where connections are lent for transactions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Habit {
    pub node: String,
    pub alias: String,
    pub user: String,
    pub kind: HabitKind,
    /// In how many server connections, or of how many tables.
    pub count: u32,
    /// The sentence, without a full stop.
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HabitKind {
    AdvisoryLock,
    IdleInTransaction,
    Set,
    Listen,
    Prepare,
    HoldCursor,
    TemporaryTable,
}

impl HabitKind {
    /// Says what it comes to.
    fn consequence(self) -> &'static str {
        match self {
            Self::AdvisoryLock => {
                "whoever gets the connection next has them, and who took them cannot give them back; use pg_advisory_xact_lock"
            }
            Self::IdleInTransaction => "nobody else gets the connection meanwhile",
            Self::Set => "whoever gets the connection next has it; use SET LOCAL, or ALTER ROLE ... SET",
            Self::Listen => "what is notified does not reach who asked for it; connect to the node",
            Self::Prepare => "the next transaction may get a connection that does not know the statement",
            Self::HoldCursor => "the next transaction may get a connection that does not know the cursor",
            Self::TemporaryTable => {
                "the next transaction may get a connection that does not see them; use ON COMMIT DROP"
            }
        }
    }
}

/// Looks at the pooled connections of a cluster; `None` where no node could be asked.
pub async fn look(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    seen: &[PoolerSeen],
    routes: &[RouteTruth],
) -> Option<Vec<Habit>> {
    let lent = lent(cluster, seen, routes);
    let asked = cluster.nodes.iter().filter(|node| {
        lent.contains_key(node.name.as_str())
            && observed.node(&node.name).is_some_and(|seen| seen.running().is_some())
    });
    let looks = asked.map(async |node| {
        let look = of_node(doors, cluster, node, &lent[node.name.as_str()]);
        tokio::time::timeout(PATIENCE, look).await.ok()?.ok()
    });
    let answers: Vec<Option<Vec<Habit>>> = futures_util::future::join_all(looks).await;
    if lent.is_empty() {
        return Some(Vec::new());
    }
    let answered = answers.iter().any(Option::is_some);
    answered.then(|| answers.into_iter().flatten().flatten().collect())
}

/// The connections that are lent for transactions, by node: alias and user by process number of the server.
fn lent<'a>(
    cluster: &'a Cluster,
    seen: &'a [PoolerSeen],
    routes: &[RouteTruth],
) -> BTreeMap<&'a str, BTreeMap<i32, (String, String)>> {
    let mut found: BTreeMap<&str, BTreeMap<i32, (String, String)>> = BTreeMap::new();
    for pooler in seen {
        let Ok(observed) = &pooler.observed else { continue };
        let ConsoleSeen::Answered(console) = &observed.console else { continue };
        let whole = |row: &ServerRow| {
            let pool = console.pools.iter().find(|pool| pool.alias == row.alias && pool.user == row.user);
            pool.is_none_or(|pool| pool.mode == "session")
        };
        for row in console.servers.iter().filter(|row| !whole(row)) {
            let route = routes.iter().find(|route| {
                (&route.host, route.process, &route.alias) == (&pooler.host, pooler.process, &row.alias)
            });
            let to = route.map(|route| route.to.as_slice()).unwrap_or_default();
            let leads = |node: &&Node| {
                let target = place::target(cluster, node);
                let same = target.host == row.address || target.host.parse::<IpAddr>().is_err();
                to.contains(&node.name) && target.port == row.port && same
            };
            let mut nodes = cluster.nodes.iter().filter(leads);
            // With two that it may be, nobody can say which.
            if let (Some(pid), Some(node), None) = (row.pid, nodes.next(), nodes.next()) {
                found.entry(&node.name).or_default().insert(pid, (row.alias.clone(), row.user.clone()));
            }
        }
    }
    found
}

async fn of_node(
    doors: &Doors,
    cluster: &Cluster,
    node: &Node,
    lent: &BTreeMap<i32, (String, String)>,
) -> crate::error::Result<Vec<Habit>> {
    let pids: Vec<i32> = lent.keys().copied().collect();
    let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
    let rows = sessions(&conn, &pids).await?;
    let mut found = habits(&node.name, lent, &rows);
    for database in &cluster.databases {
        let conn = doors.connector.connect(&doors.superuser(cluster, node, database)).await?;
        for (user, tables) in temporary_tables(&conn, &pids).await? {
            let alias =
                lent.values().find(|(_, other)| *other == user).map_or("", |(alias, _)| alias.as_str());
            let what = format!("{tables} temporary tables of {user} are left in {database}");
            found.push(habit(&node.name, alias, &user, HabitKind::TemporaryTable, tables, &what));
        }
    }
    Ok(found)
}

fn habit(node: &str, alias: &str, user: &str, kind: HabitKind, count: u32, what: &str) -> Habit {
    Habit {
        node: node.to_owned(),
        alias: alias.to_owned(),
        user: user.to_owned(),
        kind,
        count,
        what: format!("{what} on {node}: {}", kind.consequence()),
    }
}

/// Says what is wrong with the sessions of one node.
fn habits(node: &str, lent: &BTreeMap<i32, (String, String)>, rows: &[SessionRow]) -> Vec<Habit> {
    let mut counted: BTreeMap<(&str, &str, HabitKind, String), (u32, Duration)> = BTreeMap::new();
    for row in rows {
        let Some((alias, user)) = lent.get(&row.pid) else { continue };
        let mut count = |kind, word: &str, more| {
            let (sum, longest) = counted.entry((alias, user, kind, word.to_owned())).or_default();
            *sum += more;
            *longest = row.since.max(*longest);
        };
        match row.state.as_str() {
            "idle" => {
                if row.advisory_locks > 0 {
                    count(HabitKind::AdvisoryLock, "", row.advisory_locks);
                }
                if let Some((kind, word)) = left_by(&row.statement) {
                    count(kind, &word, 1);
                }
            }
            "idle in transaction" | "idle in transaction (aborted)" if row.since >= IDLE => {
                count(HabitKind::IdleInTransaction, "", 1);
            }
            _ => {}
        }
    }
    let told = counted.into_iter().map(|((alias, user, kind, word), (count, longest))| {
        let who = format!("{user} through {alias}");
        let what = match kind {
            HabitKind::AdvisoryLock => {
                format!("{count} advisory locks of {who} are held by connections that nobody uses")
            }
            HabitKind::IdleInTransaction => {
                format!(
                    "{count} clients of {who} are idle in a transaction, the longest for {} s,",
                    longest.as_secs()
                )
            }
            HabitKind::Set
            | HabitKind::Listen
            | HabitKind::Prepare
            | HabitKind::HoldCursor
            | HabitKind::TemporaryTable => format!("{who} gave {word}"),
        };
        habit(node, alias, user, kind, count, &what)
    });
    told.collect()
}

/// Says what a statement that has ended leaves in its session, by its first words; no value of it is shown.
fn left_by(statement: &str) -> Option<(HabitKind, String)> {
    let mut rest = statement.trim_start();
    while let Some(after) = comment_end(rest) {
        rest = after.trim_start();
    }
    let words: Vec<String> = rest
        .split(|c: char| c.is_whitespace() || matches!(c, '=' | ';' | '(' | ','))
        .filter(|word| !word.is_empty())
        .take(12)
        .map(str::to_ascii_lowercase)
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_name = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    match words.as_slice() {
        ["set", "local" | "transaction" | "constraints", ..] => None,
        ["set", "session", "characteristics", ..] => {
            Some((HabitKind::Set, "SET SESSION CHARACTERISTICS".to_owned()))
        }
        ["set", "session", name, ..] | ["set", name, ..] if is_name(name) && !TRACKED.contains(name) => {
            Some((HabitKind::Set, format!("SET {name}")))
        }
        ["listen", ..] => Some((HabitKind::Listen, "LISTEN".to_owned())),
        ["prepare", "transaction", ..] => None,
        [word @ ("prepare" | "execute"), ..] => Some((HabitKind::Prepare, word.to_ascii_uppercase())),
        ["declare", ..] if words.windows(2).any(|pair| pair == ["with", "hold"]) => {
            Some((HabitKind::HoldCursor, "DECLARE ... WITH HOLD".to_owned()))
        }
        _ => None,
    }
}

/// Returns what follows a comment at the beginning.
fn comment_end(text: &str) -> Option<&str> {
    if let Some(line) = text.strip_prefix("--") {
        return Some(line.split_once('\n').map_or("", |(_, after)| after));
    }
    text.strip_prefix("/*")?.split_once("*/").map(|(_, after)| after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(statement: &str) -> Option<String> {
        left_by(statement).map(|(_, word)| word)
    }

    #[test]
    fn a_statement_that_leaves_something_in_its_session_is_known_by_its_first_words() {
        let left = |statement: &str| told(statement).unwrap_or_default();
        assert_eq!(left("/* app */ SET statement_timeout='5s'"), "SET statement_timeout");
        assert_eq!(left("set session work_mem to '1GB';"), "SET work_mem");
        assert_eq!(left("-- x\nSET ROLE auditor"), "SET role");
        assert_eq!(left("listen orders"), "LISTEN");
        assert_eq!(left("PREPARE p (int) AS SELECT $1"), "PREPARE");
        assert_eq!(left("EXECUTE p(1)"), "EXECUTE");
        assert_eq!(left("DECLARE c CURSOR WITH HOLD FOR SELECT 1"), "DECLARE ... WITH HOLD");
        for fine in [
            "SET LOCAL work_mem = '1GB'",
            "SET TRANSACTION READ ONLY",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET TIME ZONE 'UTC'",
            "SET client_encoding = 'UTF8'",
            "PREPARE TRANSACTION 'x'",
            "DECLARE c CURSOR FOR SELECT 1",
            "SELECT set_config('a.b', '1', true)",
            "COMMIT",
            "",
            "/* open",
        ] {
            assert_eq!(told(fine), None, "{fine}");
        }
    }

    #[test]
    fn what_is_left_is_told_once_for_all_connections_of_a_pool() {
        let row = |pid, state: &str, statement: &str, advisory_locks| SessionRow {
            pid,
            state: state.to_owned(),
            since: Duration::from_secs(40),
            advisory_locks,
            statement: statement.to_owned(),
        };
        let lent = (1..=5).map(|pid| (pid, ("shop".to_owned(), "app".to_owned()))).collect();
        let rows = [
            row(1, "idle", "SET work_mem = '1GB'", 0),
            row(2, "idle", "SET work_mem = '2GB'", 0),
            row(3, "idle", "COMMIT", 2),
            // A transaction that runs has its locks to itself.
            row(4, "active", "SELECT pg_advisory_xact_lock(1)", 1),
            row(5, "idle in transaction", "SELECT 1", 1),
            row(6, "idle", "LISTEN somebody_else", 0),
        ];
        let found = habits("a", &lent, &rows);
        let told: Vec<(HabitKind, u32, &str)> = found
            .iter()
            .map(|habit| (habit.kind, habit.count, habit.what.split_once(": ").unwrap().0))
            .collect();
        assert_eq!(
            told,
            [
                (
                    HabitKind::AdvisoryLock,
                    2,
                    "2 advisory locks of app through shop are held by connections that nobody uses on a"
                ),
                (
                    HabitKind::IdleInTransaction,
                    1,
                    "1 clients of app through shop are idle in a transaction, the longest for 40 s, on a"
                ),
                (HabitKind::Set, 2, "app through shop gave SET work_mem on a"),
            ]
        );
    }
}
