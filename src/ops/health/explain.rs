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
