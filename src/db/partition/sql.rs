//! The statements that maintain partitions, as text: what a plan prints is what runs.
//!
//! Pure. Each [`Script`] can be run again after it was cut off anywhere between its blocks.

use std::fmt::Write as _;

use serde::Serialize;

use crate::pg::ident::{quote_identifier, quote_literal};

/// Statements that bring about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Script {
    /// A fragment: `attach inventory.movements_2026_12`.
    pub what: String,
    pub blocks: Vec<Block>,
    /// The locks that it takes, strongest first: relation and mode.
    pub locks: Vec<Lock>,
}

/// What is sent at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// All or nothing.
    Transaction(Vec<String>),
    /// What may not be in a transaction.
    Alone(String),
    /// What may not be in a transaction, and what is sent where the first is found begun (SQLSTATE 55000).
    Concurrent { first: String, again: String },
}

impl Script {
    /// Returns what of a wait for locks each of them may take, so that all of them together take no longer than `whole`: nobody who waits
    /// behind a lock that is held already waits longer than that.
    pub fn share(&self, whole: std::time::Duration) -> std::time::Duration {
        let locks = u32::try_from(self.locks.len()).unwrap_or(u32::MAX).max(1);
        (whole / locks).max(std::time::Duration::from_millis(10))
    }
}

/// A lock that a script takes, in PostgreSQL's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lock {
    pub relation: String,
    pub mode: &'static str,
}

const ACCESS_EXCLUSIVE: &str = "ACCESS EXCLUSIVE";
const SHARE_ROW_EXCLUSIVE: &str = "SHARE ROW EXCLUSIVE";
const SHARE_UPDATE_EXCLUSIVE: &str = "SHARE UPDATE EXCLUSIVE";

fn lock(relation: &str, mode: &'static str) -> Lock {
    Lock { relation: relation.to_owned(), mode }
}

/// The constraint that says of a detached table what it holds.
pub const BOUND: &str = "pgherd_bound";
/// How a constraint begins that keeps rows of a range out of a default partition while that range is attached.
pub const EXCLUSION: &str = "pgherd_not_";

/// What all scripts of a set need to know of it; names are quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub parent: String,
    pub owner: String,
    pub key: String,
    pub default: Option<String>,
    /// Tables that it has foreign keys to, and those that have foreign keys to it.
    pub references: Vec<String>,
    pub referenced_by: Vec<String>,
}

impl Names {
    fn own(&self) -> String {
        format!("SET LOCAL ROLE {}", self.owner)
    }

    /// A foreign key is cloned for each partition (`CloneForeignKeyConstraints` in `tablecmds.c`).
    fn foreign_locks(&self, incoming: &'static str) -> impl Iterator<Item = Lock> {
        let referenced = self.references.iter().map(|table| lock(table, SHARE_ROW_EXCLUSIVE));
        referenced.chain(self.referenced_by.iter().map(move |table| lock(table, incoming)))
    }
}

/// How a new partition is made; names are quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    pub table: String,
    pub tablespace: Option<String>,
    pub access_method: Option<String>,
    /// `fillfactor=70`.
    pub options: Vec<String>,
    pub full_replica_identity: bool,
    pub no_replica_identity: bool,
    /// `GRANT … ON TABLE` without the table.
    pub grants: Vec<Grant>,
}

/// Privileges that one role is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub privileges: String,
    /// `PUBLIC`, or a quoted role.
    pub to: String,
    pub with_grant_option: bool,
}

/// Makes a table that is like the parent and stands beside it, marked by a comment. LIKE copies neither tablespace nor access method; IDENTITY is
/// refused by a partition from 17 on; indexes are made by ATTACH.
pub fn create(names: &Names, new: &NewTable, mark: &str) -> Script {
    let table = &new.table;
    let mut make = format!(
        "CREATE TABLE {table} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMMENTS INCLUDING GENERATED INCLUDING COMPRESSION INCLUDING STATISTICS)",
        names.parent
    );
    // Writing to a String cannot fail.
    if let Some(method) = &new.access_method {
        write!(make, " USING {method}").unwrap_or(());
    }
    if !new.options.is_empty() {
        write!(make, " WITH ({})", new.options.join(", ")).unwrap_or(());
    }
    if let Some(tablespace) = &new.tablespace {
        write!(make, " TABLESPACE {tablespace}").unwrap_or(());
    }
    let mut statements = vec![names.own(), make, comment(table, Some(mark))];
    if new.full_replica_identity {
        statements.push(format!("ALTER TABLE {table} REPLICA IDENTITY FULL"));
    }
    if new.no_replica_identity {
        statements.push(format!("ALTER TABLE {table} REPLICA IDENTITY NOTHING"));
    }
    for Grant { privileges, to, with_grant_option } in &new.grants {
        let option = if *with_grant_option { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {privileges} ON TABLE {table} TO {to}{option}"));
    }
    Script {
        what: format!("create {table}"),
        blocks: vec![Block::Transaction(statements)],
        locks: vec![lock(&names.parent, "ACCESS SHARE")],
    }
}

/// Removes a table that was prepared and has no rows.
pub fn discard(table: &str) -> Script {
    Script {
        what: format!("remove the prepared {table}"),
        blocks: vec![Block::Transaction(vec![format!("DROP TABLE {table}")])],
        locks: vec![lock(table, ACCESS_EXCLUSIVE)],
    }
}

/// Has the default partition say that it holds nothing of a range, so that ATTACH need not read it while nobody else can.
///
/// `k < a OR k >= b` is a proof for the server; `(…) IS FALSE` is not (seen on 14, 15 and 18 by DEBUG1 "is implied by existing constraints").
pub fn exclude(names: &Names, default: &str, exclusion: &str, (from, to): (&str, &str)) -> Script {
    let (key, name) = (&names.key, quote_identifier(exclusion));
    let add = format!(
        "ALTER TABLE {default} ADD CONSTRAINT {name} CHECK ({key} < {from} OR {key} >= {to}) NOT VALID"
    );
    Script {
        what: format!("keep the range out of {default}"),
        blocks: vec![
            Block::Transaction(vec![add]),
            Block::Alone(format!("ALTER TABLE {default} VALIDATE CONSTRAINT {name}")),
        ],
        locks: vec![lock(default, ACCESS_EXCLUSIVE), lock(default, SHARE_UPDATE_EXCLUSIVE)],
    }
}

/// Takes such a constraint off again, which an interrupted run has left.
pub fn include(default: &str, exclusion: &str) -> Script {
    let name = quote_identifier(exclusion);
    Script {
        what: format!("take {exclusion} off {default}"),
        blocks: vec![Block::Transaction(vec![format!(
            "ALTER TABLE {default} DROP CONSTRAINT IF EXISTS {name}"
        )])],
        locks: vec![lock(default, ACCESS_EXCLUSIVE)],
    }
}

/// Attaches a table; the parent is locked first, as readers do (child first deadlocks with them). `comment` is what the partition says from then on.
pub fn attach(
    names: &Names,
    table: &str,
    (from, to): (&str, &str),
    exclusion: Option<&str>,
    comment_text: Option<&str>,
) -> Script {
    let mut statements = vec![
        lock_parent(names, SHARE_UPDATE_EXCLUSIVE),
        format!("ALTER TABLE {} ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})", names.parent),
        comment(table, comment_text),
    ];
    let mut locks = vec![lock(&names.parent, SHARE_UPDATE_EXCLUSIVE), lock(table, ACCESS_EXCLUSIVE)];
    if let Some(default) = &names.default {
        locks.insert(0, lock(default, ACCESS_EXCLUSIVE));
        if let Some(exclusion) = exclusion {
            statements.push(format!("ALTER TABLE {default} DROP CONSTRAINT {}", quote_identifier(exclusion)));
        }
    }
    locks.extend(names.foreign_locks(SHARE_ROW_EXCLUSIVE));
    Script { what: format!("attach {table}"), blocks: vec![Block::Transaction(statements)], locks }
}

/// Attaches a table that was filled from the repository; what said of it what it holds is the partition's bound from then on.
pub fn attach_again(names: &Names, table: &str, range: (&str, &str), comment_text: &str) -> Script {
    let mut script = attach(names, table, range, None, Some(comment_text));
    let bound = format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", quote_identifier(BOUND));
    if let Some(Block::Transaction(statements)) = script.blocks.first_mut() {
        statements.push(bound);
    }
    script
}

/// Attaches an empty default partition.
pub fn attach_default(names: &Names, table: &str) -> Script {
    let mut locks = vec![lock(&names.parent, SHARE_UPDATE_EXCLUSIVE), lock(table, ACCESS_EXCLUSIVE)];
    locks.extend(names.foreign_locks(SHARE_ROW_EXCLUSIVE));
    Script {
        what: format!("attach {table} as the default partition"),
        blocks: vec![Block::Transaction(vec![
            lock_parent(names, SHARE_UPDATE_EXCLUSIVE),
            format!("ALTER TABLE {} ATTACH PARTITION {table} DEFAULT", names.parent),
            comment(table, None),
        ])],
        locks,
    }
}

/// Detaches while others read and write; what it was is left as a CHECK of the table by the server.
pub fn detach_concurrently(names: &Names, table: &str, mark: &str) -> Script {
    let mut locks = vec![lock(table, ACCESS_EXCLUSIVE), lock(&names.parent, SHARE_UPDATE_EXCLUSIVE)];
    locks.extend(names.foreign_locks(ACCESS_EXCLUSIVE));
    Script {
        what: format!("detach {table}"),
        blocks: vec![
            Block::Transaction(vec![comment(table, Some(mark))]),
            Block::Concurrent {
                first: format!("ALTER TABLE {} DETACH PARTITION {table} CONCURRENTLY", names.parent),
                again: finish(names, table),
            },
        ],
        locks,
    }
}

fn finish(names: &Names, table: &str) -> String {
    format!("ALTER TABLE {} DETACH PARTITION {table} FINALIZE", names.parent)
}

/// Ends a concurrent detach that was cut off.
pub fn finalize(names: &Names, table: &str, mark: Option<&str>) -> Script {
    let mut blocks: Vec<Block> =
        mark.map(|mark| Block::Transaction(vec![comment(table, Some(mark))])).into_iter().collect();
    blocks.push(Block::Alone(finish(names, table)));
    let mut locks = vec![lock(table, ACCESS_EXCLUSIVE), lock(&names.parent, SHARE_UPDATE_EXCLUSIVE)];
    locks.extend(names.foreign_locks(ACCESS_EXCLUSIVE));
    Script { what: format!("finish the detach of {table}"), blocks, locks }
}

/// Detaches where there is a default partition, which forbids the concurrent way.
pub fn detach(names: &Names, table: &str, (from, to): (Option<&str>, &str), mark: &str) -> Script {
    let key = &names.key;
    let lower = from.map(|from| format!(" AND {key} >= {from}")).unwrap_or_default();
    let bound = quote_identifier(BOUND);
    let mut locks = vec![lock(&names.parent, ACCESS_EXCLUSIVE), lock(table, ACCESS_EXCLUSIVE)];
    locks.extend(names.default.iter().map(|default| lock(default, ACCESS_EXCLUSIVE)));
    locks.extend(names.foreign_locks(ACCESS_EXCLUSIVE));
    Script {
        what: format!("detach {table}"),
        blocks: vec![
            Block::Transaction(vec![
                lock_parent(names, ACCESS_EXCLUSIVE),
                format!("ALTER TABLE {} DETACH PARTITION {table}", names.parent),
                // One that was detached before, and attached again by hand, has it still.
                format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {bound}"),
                format!(
                    "ALTER TABLE {table} ADD CONSTRAINT {bound} CHECK ({key} IS NOT NULL{lower} AND {key} < {to}) NOT VALID"
                ),
                comment(table, Some(mark)),
            ]),
            Block::Alone(format!("ALTER TABLE {table} VALIDATE CONSTRAINT {bound}")),
        ],
        locks,
    }
}

/// Drops a detached table.
pub fn drop_table(table: &str) -> Script {
    Script {
        what: format!("drop {table}"),
        blocks: vec![Block::Transaction(vec![
            format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
            format!("DROP TABLE {table}"),
        ])],
        locks: vec![lock(table, ACCESS_EXCLUSIVE)],
    }
}

/// Sets or takes off the comment of a table.
pub fn mark(table: &str, text: Option<&str>) -> Script {
    Script {
        what: format!("mark {table}"),
        blocks: vec![Block::Transaction(vec![comment(table, text)])],
        locks: vec![lock(table, SHARE_UPDATE_EXCLUSIVE)],
    }
}

/// Moves the rows of a range out of the default partition into a prepared table and attaches that, all at once.
///
/// No trigger runs, since no row leaves the table: `session_replication_role` is `replica` meanwhile.
pub fn drain(names: &Names, default: &str, table: &str, columns: &str, (from, to): (&str, &str)) -> Script {
    let key = &names.key;
    let mut locks = vec![
        lock(default, ACCESS_EXCLUSIVE),
        lock(&names.parent, SHARE_UPDATE_EXCLUSIVE),
        lock(table, ACCESS_EXCLUSIVE),
    ];
    locks.extend(names.foreign_locks(SHARE_ROW_EXCLUSIVE));
    Script {
        what: format!("move rows from {default} to {table}"),
        blocks: vec![Block::Transaction(vec![
            lock_parent(names, SHARE_UPDATE_EXCLUSIVE),
            format!("LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE"),
            "SET LOCAL session_replication_role = replica".to_owned(),
            names.own(),
            format!(
                "WITH moved AS (DELETE FROM {default} WHERE {key} >= {from} AND {key} < {to} RETURNING {columns}) INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM moved"
            ),
            "RESET ROLE".to_owned(),
            "SET LOCAL session_replication_role = DEFAULT".to_owned(),
            format!(
                "ALTER TABLE {} ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})",
                names.parent
            ),
            comment(table, None),
        ])],
        locks,
    }
}

/// Renews the statistics of the whole table, which autovacuum does not do for a partitioned one.
pub fn analyze(parent: &str, version: u32) -> Script {
    // From 18 on, ONLY leaves out the partitions, which autovacuum sees to.
    let only = if version >= 180_000 { "ONLY " } else { "" };
    Script {
        what: format!("analyze {parent}"),
        blocks: vec![Block::Alone(format!("ANALYZE {only}{parent}"))],
        locks: vec![lock(parent, SHARE_UPDATE_EXCLUSIVE)],
    }
}

/// Takes a set out of pg_partman's hands.
pub fn leave_partman(schema: &str, table: &str) -> Script {
    let config = format!("{}.part_config", quote_identifier(schema));
    Script {
        what: format!("take {table} over from pg_partman"),
        blocks: vec![Block::Transaction(vec![format!(
            "DELETE FROM {config} WHERE parent_table = {}",
            quote_literal(table)
        )])],
        locks: vec![lock(&config, "ROW EXCLUSIVE")],
    }
}

fn lock_parent(names: &Names, mode: &str) -> String {
    format!("LOCK TABLE ONLY {} IN {mode} MODE", names.parent)
}

fn comment(table: &str, text: Option<&str>) -> String {
    let text = text.map_or("NULL".to_owned(), quote_literal);
    format!("COMMENT ON TABLE {table} IS {}", text.trim_start())
}
