//! What a server tells its owner's `psql` while pgherd itself cannot log in to it yet: one query, one JSON document.
//!
//! The query and its answer only; `ops` has the host run it. What is in it is what [`super::queries`] reads over a session.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::queries::{
    REPLICATION, SERVER_FACTS, SLOTS, ServerFacts, ServerRole, Setting, Slot, SlotKind, TimelineSource,
    WalReceiver, WalSender,
};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::version::PgVersion;
use crate::units::ByteCount;

/// What a session of the look has set from its first moment, as `PGOPTIONS` has it.
pub const OPTIONS: &str =
    "-c search_path=pg_catalog,pg_temp -c statement_timeout=5000 -c default_transaction_read_only=on";

const SETTINGS: &str = "
SELECT name, setting, unit, vartype, context, source, sourcefile, sourceline, reset_val, boot_val, pending_restart,
       current_setting(name, true) AS shown
  FROM pg_settings";

const DATABASES: &str = "
SELECT datname AS name FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' ORDER BY datname";

const ROLES: &str = "
SELECT rolname AS name, rolcanlogin AS logs_in, rolsuper AS is_super, rolreplication AS replicates
  FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY rolname";

/// What a server told.
#[derive(Debug, Clone)]
pub struct Look {
    pub facts: ServerFacts,
    pub senders: Vec<WalSender>,
    pub slots: Vec<Slot>,
    /// All of them, by name.
    pub settings: BTreeMap<String, Setting>,
    /// Those that clients may use, but for `postgres`.
    pub databases: Vec<String>,
    pub roles: Vec<RoleSeen>,
    /// Whether the role that asked is a superuser.
    pub superuser: bool,
}

/// A role in outline.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RoleSeen {
    pub name: String,
    pub logs_in: bool,
    pub is_super: bool,
    pub replicates: bool,
}

impl Look {
    /// Returns the path that a setting names.
    pub fn path(&self, setting: &str) -> PathBuf {
        self.settings.get(setting).map(|row| PathBuf::from(&row.setting)).unwrap_or_default()
    }
}

/// Returns the query.
pub fn query() -> String {
    let list = |name: &str, sql: &str| {
        format!("'{name}', (SELECT coalesce(json_agg(row_to_json(q)), '[]') FROM ({sql}) q)")
    };
    let parts = [
        list("facts", SERVER_FACTS),
        list("senders", REPLICATION),
        list("slots", SLOTS),
        list("settings", SETTINGS),
        list("databases", DATABASES),
        list("roles", ROLES),
        "'superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)".to_owned(),
    ];
    format!("SELECT json_build_object({})", parts.join(", "))
}

/// Returns the query for the schemas of one database, a JSON list of `[schema, owner]`.
pub fn schemas_query() -> &'static str {
    "SELECT coalesce(json_agg(json_build_array(n.nspname, pg_get_userbyid(n.nspowner)) ORDER BY n.nspname), '[]')
       FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')"
}

/// Reads the answer to [`query`].
///
/// # Errors
/// What is missing in it, or not what PostgreSQL would say.
pub fn parse(text: &str) -> Result<Look, String> {
    let document: Value = serde_json::from_str(text.trim()).map_err(|error| error.to_string())?;
    let rows = |name: &str| -> Result<Vec<Row<'_>>, String> {
        let list = document.get(name).and_then(Value::as_array).ok_or_else(|| format!("it has no {name}"))?;
        Ok(list.iter().map(Row).collect())
    };
    let facts = rows("facts")?;
    let settings: Vec<Setting> = decode(&document, "settings", settled)?;
    let databases = rows("databases")?.iter().map(|row| row.at("name")).collect::<Result<_, _>>()?;
    Ok(Look {
        facts: server_facts(facts.first().ok_or("it has no facts")?)?,
        senders: rows("senders")?.iter().map(sender).collect::<Result<_, _>>()?,
        slots: rows("slots")?.iter().map(slot).collect::<Result<_, _>>()?,
        settings: settings.into_iter().map(|row| (row.name.clone(), row)).collect(),
        databases,
        roles: decode(&document, "roles", |row| row)?,
        superuser: document.get("superuser").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn decode<T: DeserializeOwned>(
    document: &Value,
    name: &str,
    settle: impl Fn(Value) -> Value,
) -> Result<Vec<T>, String> {
    let list =
        document.get(name).and_then(Value::as_array).cloned().ok_or_else(|| format!("it has no {name}"))?;
    list.into_iter()
        .map(|row| serde_json::from_value(settle(row)).map_err(|error| error.to_string()))
        .collect()
}

/// A text that the server shows as NULL is empty, as it is over a session.
fn settled(mut row: Value) -> Value {
    for name in ["setting", "shown"] {
        if row.get(name).is_some_and(Value::is_null) {
            row[name] = Value::String(String::new());
        }
    }
    row
}

struct Row<'a>(&'a Value);

impl Row<'_> {
    /// Reads a column that has a value.
    fn at<T: DeserializeOwned>(&self, column: &str) -> Result<T, String> {
        let value = self.0.get(column).cloned().unwrap_or_default();
        serde_json::from_value(value).map_err(|error| format!("column {column}: {error}"))
    }

    fn text(&self, column: &str) -> Result<String, String> {
        Ok(self.at::<Option<String>>(column)?.unwrap_or_default())
    }

    fn lsn(&self, column: &str) -> Result<Option<Lsn>, String> {
        let text: Option<String> = self.at(column)?;
        text.map(|text| text.parse().map_err(|_| format!("column {column}: LSN {text:?}"))).transpose()
    }

    fn time(&self, column: &str) -> Result<Option<Timestamp>, String> {
        let text: Option<String> = self.at(column)?;
        text.map(|text| text.parse().map_err(|_| format!("column {column}: time {text:?}"))).transpose()
    }

    fn needed<T>(column: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or_else(|| format!("column {column} is NULL"))
    }
}

fn server_facts(row: &Row<'_>) -> Result<ServerFacts, String> {
    let in_recovery: bool = row.at("in_recovery")?;
    let receiver =
        if in_recovery && row.at("has_receiver")? { Some(Box::new(wal_receiver(row)?)) } else { None };
    let timeline = |column: &str| -> Result<TimelineId, String> {
        TimelineId::new(row.at(column)?).ok_or_else(|| format!("column {column} is 0"))
    };
    let streamed = receiver.as_ref().and_then(|receiver| receiver.received_timeline);
    let (timeline, timeline_from) = match (in_recovery, streamed) {
        (true, Some(timeline)) => (timeline, TimelineSource::WalReceiver),
        (true, None) => (timeline("checkpoint_timeline")?, TimelineSource::Checkpoint),
        (false, _) => {
            let file = row.text("wal_file")?;
            let timeline =
                TimelineId::from_wal_file_name(&file).ok_or_else(|| format!("WAL file name {file:?}"))?;
            (timeline, TimelineSource::WalFile)
        }
    };
    let role = if in_recovery {
        ServerRole::Standby {
            received_lsn: row.lsn("received_lsn")?,
            replayed_lsn: row.lsn("replayed_lsn")?,
            replay_paused: row.at("replay_paused")?,
            last_replayed: row.time("last_replayed")?,
            receiver,
        }
    } else {
        ServerRole::Primary { written_lsn: Row::needed("written_lsn", row.lsn("written_lsn")?)? }
    };
    let identifier: i64 = row.at("system_identifier")?;
    Ok(ServerFacts {
        version: PgVersion::from_number(row.at("version")?),
        system_identifier: SystemIdentifier::new(identifier.cast_unsigned()).ok_or("system identifier 0")?,
        timeline,
        timeline_from,
        role,
        started: Row::needed("started", row.time("started")?)?,
        now: Row::needed("now", row.time("now")?)?,
        data_checksums: row.text("data_checksums")? == "on",
        synchronous_standby_names: row.text("synchronous_standby_names")?,
    })
}

fn wal_receiver(row: &Row<'_>) -> Result<WalReceiver, String> {
    Ok(WalReceiver {
        status: row.text("status")?,
        received_timeline: row.at::<Option<u32>>("received_tli")?.and_then(TimelineId::new),
        written_lsn: row.lsn("receiver_written_lsn")?,
        flushed_lsn: row.lsn("flushed_lsn")?,
        latest_end_lsn: row.lsn("latest_end_lsn")?,
        latest_end_at: row.time("latest_end_time")?,
        last_message_at: row.time("last_msg_receipt_time")?,
        sender_host: row.at("sender_host")?,
        sender_port: row.at("sender_port")?,
        slot: row.at("slot_name")?,
    })
}

fn sender(row: &Row<'_>) -> Result<WalSender, String> {
    Ok(WalSender {
        application_name: row.text("application_name")?,
        user: row.text("usename")?,
        client_address: row.at("client_address")?,
        slot: row.at("slot")?,
        state: row.text("state")?,
        sync_state: row.text("sync_state")?,
        sent_lsn: row.lsn("sent_lsn")?,
        written_lsn: row.lsn("write_lsn")?,
        flushed_lsn: row.lsn("flush_lsn")?,
        replayed_lsn: row.lsn("replay_lsn")?,
        replied_at: row.time("reply_time")?,
    })
}

fn slot(row: &Row<'_>) -> Result<Slot, String> {
    let retained: Option<i64> = row.at("retained")?;
    Ok(Slot {
        name: row.text("name")?,
        kind: if row.at("physical")? { SlotKind::Physical } else { SlotKind::Logical },
        active: row.at("active")?,
        restart_lsn: row.lsn("restart_lsn")?,
        wal_status: row.at("wal_status")?,
        retained: retained.map(|bytes| ByteCount(u64::try_from(bytes).unwrap_or(0))),
        safe_wal_size: row.at("safe_wal_size")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_whole_is_told() {
        assert!(parse("").is_err());
        assert_eq!(parse("{}").unwrap_err(), "it has no facts");
    }
}
