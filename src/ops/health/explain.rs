//! What each check asks, and of whom; what it takes to be answered; what to do when it fires. `pgherd health explain` prints it.
//!
//! Holds no words of its own about thresholds: those are in `topology::checks` and in the file.

use serde::Serialize;

use crate::db::{health as ask, queries};
use crate::topology::checks::Check;

/// One check, for those who want to know what it does before they believe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// A fragment: "how far each standby is behind the primary".
    pub title: &'static str,
    pub asks: Vec<Ask>,
    pub needs: Needs,
    /// What its numbers do not say; whole sentences.
    pub remark: Option<&'static str>,
    /// What to do when it fires; whole sentences.
    pub act: &'static str,
    /// Where PostgreSQL or PgBouncer documents what is asked.
    pub source: &'static str,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// A statement, exactly as it is sent.
    Sql { of: &'static str, sql: &'static str },
    /// Anything else; a fragment: "the file system of the data directory (statvfs)".
    Look { of: &'static str, what: &'static str },
}

/// What the role that asks must be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// No more than to connect, or no server at all.
    Nothing,
    /// Membership of `pg_monitor`.
    Monitor,
}

impl Needs {
    /// Returns the statement that gives it to `role`, if it takes any.
    pub fn grant(self, role: &str) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Monitor => {
                Some(format!("GRANT pg_monitor TO {}", crate::pg::ident::quote_identifier(role)))
            }
        }
    }
}

/// Every node that answers.
const EACH: &str = "each node that answers";
const THE_PRIMARY: &str = "the primary";
const THE_REPOSITORY: &str = "the repository";
const EACH_POOLER: &str = "each pooler process";

/// Explains a check.
pub fn explained(check: Check) -> Explained {
    let facts = || Ask::Sql { of: EACH, sql: queries::SERVER_FACTS };
    match check {
        Check::Connect => Explained {
            title: "whether the server of each node answers",
            asks: vec![
                facts(),
                Ask::Look {
                    of: "each node whose socket refuses",
                    what: "postmaster.pid, and whether its process works in the data directory",
                },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "Stopped is critical, starting up a warning; a server that says nothing in time is unknown, never down.",
            ),
            act: "\"pgherd status -v\" says why; \"pgherd plan\" shows what apply would start.",
            source: "https://www.postgresql.org/docs/current/server-start.html",
        },
        Check::Primary => Explained {
            title: "whether exactly one node accepts writes",
            asks: vec![
                facts(),
                Ask::Look { of: "each node that is stopped", what: "pg_control (pg_controldata)" },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "A node that does not answer may be a primary: then it is unknown who is, and not \"nobody\".",
            ),
            act: "Two primaries: keep clients away, and stop the wrong one with pg_ctl stop -m fast. None: \"pgherd plan\".",
            source: "https://www.postgresql.org/docs/current/warm-standby-failover.html",
        },
        Check::SystemIdentifier => Explained {
            title: "whether each node still is of its cluster",
            asks: vec![
                facts(),
                Ask::Look {
                    of: "each node",
                    what: "its marker: the system identifier that it was made with",
                },
            ],
            needs: Needs::Nothing,
            remark: None,
            act: "Somebody put another cluster into the data directory. Find out who before anything is started or removed.",
            source: "https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA",
        },
        Check::Standbys => Explained {
            title: "whether every declared standby streams",
            asks: vec![facts()],
            needs: Needs::Monitor,
            remark: None,
            act: "The standby's log says why its WAL receiver ends; \"pgherd plan\" shows what is not as declared.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-WAL-RECEIVER-VIEW",
        },
        Check::Lag => Explained {
            title: "how far each standby is behind the primary",
            asks: vec![facts(), Ask::Sql { of: THE_PRIMARY, sql: queries::REPLICATION }],
            needs: Needs::Monitor,
            remark: Some(
                "Nothing is missing, no seconds: an idle primary makes no lag. A standby that receives nothing counts from its last sign \
                 of the primary. A standby that a commit waits for, or that clients read from, warns at 1.0 s and is critical at 5.0 s, \
                 unless the file says otherwise.",
            ),
            act: "Compare sent, flushed and replayed LSN in pg_stat_replication: the network, the disk, or a query that holds replay up.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-REPLICATION-VIEW",
        },
        Check::Connections => Explained {
            title: "how many of the connections that clients can have are taken",
            asks: vec![Ask::Sql { of: EACH, sql: ask::CONNECTIONS }],
            needs: Needs::Monitor,
            remark: Some(
                "Walsenders and background workers do not count; connections that are reserved are no client's.",
            ),
            act: "See who holds them: SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 DESC.",
            source: "https://www.postgresql.org/docs/current/runtime-config-connection.html",
        },
        Check::Disk => Explained {
            title: "how full the file system of each data directory is",
            asks: vec![Ask::Look {
                of: "the host of each node",
                what: "the file system of the data directory (statvfs)",
            }],
            needs: Needs::Nothing,
            remark: Some("What is reserved for root counts as taken: the server cannot write there."),
            act: "Free space or grow the disk. Never remove files from pg_wal by hand.",
            source: "https://www.postgresql.org/docs/current/disk-full.html",
        },
        Check::Archive => Explained {
            title: "whether WAL gets into the repository",
            asks: vec![Ask::Sql { of: THE_PRIMARY, sql: queries::ARCHIVER }],
            needs: Needs::Monitor,
            remark: Some(
                "A failure that nothing was archived after is critical at once, whatever the number of files that wait.",
            ),
            act: "The server's log has the words of \"pgherd wal push\". Until it works again pg_wal grows.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ARCHIVER-VIEW",
        },
        Check::BackupAge => Explained {
            title: "how long ago the newest backup ended",
            asks: vec![Ask::Look { of: THE_REPOSITORY, what: "the manifests of the cluster's backups" }],
            needs: Needs::Nothing,
            remark: Some("Only a backup that is complete counts."),
            act: "\"pgherd backup list\" shows them, \"pgherd backup create\" makes one.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html",
        },
        Check::Divergence => Explained {
            title: "whether a node has WAL that the primary never had",
            asks: vec![
                facts(),
                Ask::Look {
                    of: THE_PRIMARY,
                    what: "the history file of its timeline in pg_wal: where each timeline was left",
                },
                Ask::Look { of: "each other node", what: "pg_control (pg_controldata)" },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "A node is past the point where the primary left its timeline: it can follow only after pg_rewind, or cloned anew. \
                 Numbers of timelines alone say nothing.",
            ),
            act: "Save what only that node has before it is made anew.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES",
        },
        Check::Settings => Explained {
            title: "whether each standby is as high as the primary in the five settings that must match",
            asks: vec![Ask::Sql { of: EACH, sql: ask::herd::FIVE }],
            needs: Needs::Nothing,
            remark: Some("A standby that is lower stops to replay, and does not start again."),
            act: "\"pgherd plan\" shows what is not as declared, and in which order it is put right.",
            source: "https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-ADMIN",
        },
        Check::Version => Explained {
            title: "whether all nodes run the same version",
            asks: vec![facts()],
            needs: Needs::Nothing,
            remark: Some(
                "Another major version than declared is critical, several minor ones are a warning.",
            ),
            act: "Install the same packages on every host and restart, standbys first.",
            source: "https://www.postgresql.org/docs/current/warm-standby.html#STANDBY-PLANNING",
        },
        Check::Collation => Explained {
            title: "whether each host sorts as the databases were built",
            asks: vec![Ask::Sql { of: EACH, sql: ask::herd::COLLATIONS }],
            needs: Needs::Nothing,
            remark: Some("PostgreSQL 14 does not record it for databases, and C needs none."),
            act: "Another version of the library can sort otherwise, and an index finds rows no more: REINDEX, then ALTER DATABASE … REFRESH COLLATION VERSION.",
            source: "https://www.postgresql.org/docs/current/sql-alterdatabase.html",
        },
        Check::Failover => Explained {
            title: "whether somebody could take over now",
            asks: vec![facts(), Ask::Sql { of: THE_PRIMARY, sql: queries::REPLICATION }],
            needs: Needs::Monitor,
            remark: Some(
                "Standbys that stream and replay, are not \"by-hand\", a primary that could be rewound, and enough synchronous standbys \
                 after the loss of one. What only a trial shows, it does not.",
            ),
            act: "\"pgherd status\" shows which standby does not stream.",
            source: "https://www.postgresql.org/docs/current/warm-standby-failover.html",
        },
        Check::Rpo => Explained {
            title: "what each loss that an objective names would cost now",
            asks: vec![
                facts(),
                Ask::Sql { of: THE_PRIMARY, sql: queries::REPLICATION },
                Ask::Look { of: THE_REPOSITORY, what: "up to which commit WAL is archived without a gap" },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "The threshold is the declared rpo. Of lose-region only standbys in another region count: where a repository stands is not declared.",
            ),
            act: "See which standby is behind, or why WAL does not get into the repository: \"pgherd status\".",
            source: "https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION",
        },
        Check::Window => Explained {
            title: "how far back every second can be restored",
            asks: vec![Ask::Look {
                of: THE_REPOSITORY,
                what: "the backups, and the archived WAL behind each without a gap",
            }],
            needs: Needs::Nothing,
            remark: Some(
                "WAL that is missing is critical; a window that has not grown to what is declared yet is a warning.",
            ),
            act: "A new backup begins a window without the gap: \"pgherd backup create\". \"pgherd wal list\" names what is missing.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html",
        },
        Check::Drill => Explained {
            title: "when a restore was rehearsed last, and how it ended",
            asks: vec![Ask::Look { of: "this station", what: "the reports of its drills" }],
            needs: Needs::Nothing,
            remark: None,
            act: "\"pgherd drill list\" shows them, \"pgherd drill run restore\" rehearses.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-PITR-RECOVERY",
        },
        Check::Runway => Explained {
            title: "how long until WAL fills the primary's disk, if nothing takes it away",
            asks: vec![
                Ask::Sql { of: EACH, sql: ask::herd::WAL },
                Ask::Look {
                    of: "the host of the primary",
                    what: "the file system of the data directory (statvfs)",
                },
            ],
            needs: Needs::Nothing,
            remark: Some("The rate is the mean since the server's statistics were reset."),
            act: "Free space, grow the disk, or bound what slots keep: max_slot_wal_keep_size.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-WAL-VIEW",
        },
        Check::Expiry => Explained {
            title: "when certificates and passwords end",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: ask::herd::LOGINS },
                Ask::Look {
                    of: "each server and pooler that runs",
                    what: "the certificate that it shows over the wire",
                },
            ],
            needs: Needs::Nothing,
            remark: None,
            act: "\"pgherd plan\" renews the herd's own certificates; a role is given a new password, or ALTER ROLE … VALID UNTIL.",
            source: "https://www.postgresql.org/docs/current/sql-createrole.html",
        },
        Check::Operations => Explained {
            title: "whether an operation was left unfinished",
            asks: vec![Ask::Look { of: "this station", what: "the journals of its operations" }],
            needs: Needs::Nothing,
            remark: Some("It keeps its cluster locked, and something may be half done."),
            act: "\"pgherd operation show\" tells how far it is; resume it or undo it.",
            source: "https://www.postgresql.org/docs/current/high-availability.html",
        },
        Check::Poolers => Explained {
            title: "whether every declared PgBouncer runs, answers, and reads the files that pgherd wrote",
            asks: vec![Ask::Look {
                of: EACH_POOLER,
                what: "its process, its files, and SHOW CONFIG on its console",
            }],
            needs: Needs::Nothing,
            remark: None,
            act: "\"pgherd pooler status\" shows what differs, \"pgherd pooler apply\" puts it right.",
            source: "https://www.pgbouncer.org/usage.html#admin-console",
        },
        Check::Routes => Explained {
            title: "whether every alias leads where it should: to the live primary, to live standbys",
            asks: vec![Ask::Look { of: EACH_POOLER, what: "SHOW DATABASES and SHOW SERVERS on its console" }],
            needs: Needs::Nothing,
            remark: Some(
                "What it should be is decided by who is primary now, never by the file. A paused or disabled alias is told, too.",
            ),
            act: "\"pgherd pooler apply\" leads them to where they should.",
            source: "https://www.pgbouncer.org/usage.html#show-databases",
        },
        Check::PoolWait => Explained {
            title: "how long the first client in any queue has waited for a server connection",
            asks: vec![Ask::Look { of: EACH_POOLER, what: "SHOW POOLS on its console: maxwait" }],
            needs: Needs::Nothing,
            remark: Some("While an alias is paused its clients wait on purpose, and do not count."),
            act: "Find what holds the server connections (long transactions), or give the pool more.",
            source: "https://www.pgbouncer.org/usage.html#show-pools",
        },
        Check::PoolClients => Explained {
            title: "how many of the clients that a PgBouncer takes are connected",
            asks: vec![Ask::Look { of: EACH_POOLER, what: "SHOW POOLS and max_client_conn" }],
            needs: Needs::Nothing,
            remark: None,
            act: "Raise max-clients, within the limit of open files, or find who keeps connections that it does not use.",
            source: "https://www.pgbouncer.org/config.html#max_client_conn",
        },
        Check::Budget => Explained {
            title: "whether the poolers fit into max_connections, today and after each failover",
            asks: vec![
                facts(),
                Ask::Look {
                    of: "the topology",
                    what: "sizes of all pools, for each node that could be promoted",
                },
            ],
            needs: Needs::Nothing,
            remark: Some("What is in effect on each server counts, not what the file says it should be."),
            act: "Make pools smaller or raise max_connections: a failover into a full server is an outage of its own.",
            source: "https://www.pgbouncer.org/config.html#max_db_connections",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_what_it_asks_and_what_to_do() {
        for check in Check::ALL {
            let Explained { title, asks, act, source, remark, .. } = explained(check);
            assert!(!title.is_empty() && !title.ends_with('.'), "{check:?}: {title}");
            assert!(!asks.is_empty(), "{check:?}");
            assert!(act.ends_with('.') && remark.is_none_or(|remark| remark.ends_with('.')), "{check:?}");
            assert!(source.starts_with("https://"), "{check:?}");
        }
    }
}
