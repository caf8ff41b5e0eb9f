//! What pgherd asks and tells a server about itself: state, replication, slots, settings, and the proof of a write.
//!
//! SQL for PostgreSQL 14 to 19. Roles, databases and grants have their own room.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, PgLsn, Type};

use super::connect::{Conn, DbError, PrimaryConn};
use crate::pg::guc::is_quoted_list;
use crate::pg::ident::{quote_identifier, quote_literal};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::version::PgVersion;
use crate::pg::wal_file::SegmentName;
use crate::units::ByteCount;

impl<'a> FromSql<'a> for Lsn {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        PgLsn::from_sql(ty, raw).map(|lsn| Self::new(u64::from(lsn)))
    }

    fn accepts(ty: &Type) -> bool {
        <PgLsn as FromSql>::accepts(ty)
    }
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerFacts {
    pub version: PgVersion,
    pub system_identifier: SystemIdentifier,
    pub timeline: TimelineId,
    pub timeline_from: TimelineSource,
    pub role: ServerRole,
    /// When the postmaster started.
    pub started: Timestamp,
    /// The server's clock when it answered.
    pub now: Timestamp,
    pub data_checksums: bool,
    /// `synchronous_standby_names` as it is in effect.
    pub synchronous_standby_names: String,
}

/// Where a timeline was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimelineSource {
    /// The WAL file that a primary writes: the present one.
    WalFile,
    /// What a standby's WAL receiver streams: the present one.
    WalReceiver,
    /// The last checkpoint in pg_control, on a standby that receives nothing: it may be behind by a promotion.
    Checkpoint,
}

/// In recovery or not, with what only one of them has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerRole {
    Primary {
        /// Written to the operating system; what a standby can have at most.
        written_lsn: Lsn,
    },
    Standby {
        /// Received and flushed; `None` after a start until something is streamed.
        received_lsn: Option<Lsn>,
        /// `None` if nothing was replayed since the start.
        replayed_lsn: Option<Lsn>,
        replay_paused: bool,
        /// Commit time, by the primary's clock, of the last transaction that was replayed.
        last_replayed: Option<Timestamp>,
        receiver: Option<Box<WalReceiver>>,
    },
}

impl ServerRole {
    /// Returns how far the server's WAL reaches.
    ///
    /// On a standby the later of both: the received LSN is NULL after a restart, and the replayed one counts whole records only.
    pub fn lsn(&self) -> Option<Lsn> {
        match self {
            Self::Primary { written_lsn } => Some(*written_lsn),
            Self::Standby { received_lsn, replayed_lsn, .. } => *received_lsn.max(replayed_lsn),
        }
    }
}

/// A row of `pg_stat_wal_receiver`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WalReceiver {
    /// `streaming`, `starting`, `waiting`, …
    pub status: String,
    pub received_timeline: Option<TimelineId>,
    pub written_lsn: Option<Lsn>,
    pub flushed_lsn: Option<Lsn>,
    /// The end of WAL on the sender, as last reported to us.
    pub latest_end_lsn: Option<Lsn>,
    pub latest_end_at: Option<Timestamp>,
    /// When the last message of the sender came in, by this server's clock.
    pub last_message_at: Option<Timestamp>,
    pub sender_host: Option<String>,
    pub sender_port: Option<i32>,
    pub slot: Option<String>,
}

pub const SERVER_FACTS: &str = "
SELECT current_setting('server_version_num')::int AS version,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       r.in_recovery,
       CASE WHEN r.in_recovery THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END AS wal_file,
       (SELECT timeline_id FROM pg_control_checkpoint()) AS checkpoint_timeline,
       CASE WHEN r.in_recovery THEN NULL ELSE pg_current_wal_lsn() END AS written_lsn,
       pg_last_wal_receive_lsn() AS received_lsn,
       pg_last_wal_replay_lsn() AS replayed_lsn,
       CASE WHEN r.in_recovery THEN pg_is_wal_replay_paused() ELSE false END AS replay_paused,
       pg_last_xact_replay_timestamp() AS last_replayed,
       w.pid IS NOT NULL AS has_receiver,
       w.status, w.received_tli, w.written_lsn AS receiver_written_lsn, w.flushed_lsn, w.latest_end_lsn,
       w.latest_end_time, w.last_msg_receipt_time, w.sender_host, w.sender_port, w.slot_name,
       pg_postmaster_start_time() AS started,
       clock_timestamp() AS now,
       current_setting('data_checksums') AS data_checksums,
       current_setting('synchronous_standby_names') AS synchronous_standby_names
  FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r
  LEFT JOIN pg_stat_wal_receiver w ON true";

/// Asks a server for everything that tells what it is and where it stands, in one round trip.
///
/// # Errors
/// [`DbError`]; `Sql` with 55000 if the server was promoted in this very moment.
pub async fn server_facts(conn: &Conn) -> Result<ServerFacts, DbError> {
    const WHAT: &str = "read its state";
    let row = conn.query_one(WHAT, SERVER_FACTS, &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    let in_recovery: bool = f.at("in_recovery")?;
    let receiver =
        if in_recovery && f.at("has_receiver")? { Some(Box::new(wal_receiver(&f)?)) } else { None };
    let (timeline, timeline_from) = if in_recovery {
        match receiver.as_ref().and_then(|receiver| receiver.received_timeline) {
            Some(timeline) => (timeline, TimelineSource::WalReceiver),
            None => (f.timeline("checkpoint_timeline")?, TimelineSource::Checkpoint),
        }
    } else {
        let file: String = f.at("wal_file")?;
        let timeline = TimelineId::from_wal_file_name(&file)
            .ok_or_else(|| conn.unexpected(WHAT, format!("WAL file name {file:?}")))?;
        (timeline, TimelineSource::WalFile)
    };
    let role = if in_recovery {
        ServerRole::Standby {
            received_lsn: f.at("received_lsn")?,
            replayed_lsn: f.at("replayed_lsn")?,
            replay_paused: f.at("replay_paused")?,
            last_replayed: f.at("last_replayed")?,
            receiver,
        }
    } else {
        ServerRole::Primary { written_lsn: f.at("written_lsn")? }
    };
    let version: i32 = f.at("version")?;
    let identifier: i64 = f.at("system_identifier")?;
    Ok(ServerFacts {
        version: PgVersion::from_number(version.unsigned_abs()),
        system_identifier: SystemIdentifier::new(identifier.cast_unsigned())
            .ok_or_else(|| conn.unexpected(WHAT, "system identifier 0".to_owned()))?,
        timeline,
        timeline_from,
        role,
        started: f.at("started")?,
        now: f.at("now")?,
        data_checksums: f.at::<String>("data_checksums")? == "on",
        synchronous_standby_names: f.at("synchronous_standby_names")?,
    })
}

fn wal_receiver(f: &Fields<'_>) -> Result<WalReceiver, DbError> {
    Ok(WalReceiver {
        // NULL for a role that may not see it.
        status: f.at::<Option<String>>("status")?.unwrap_or_default(),
        received_timeline: f
            .at::<Option<i32>>("received_tli")?
            .and_then(|id| TimelineId::new(id.cast_unsigned())),
        written_lsn: f.at("receiver_written_lsn")?,
        flushed_lsn: f.at("flushed_lsn")?,
        latest_end_lsn: f.at("latest_end_lsn")?,
        latest_end_at: f.at("latest_end_time")?,
        last_message_at: f.at("last_msg_receipt_time")?,
        sender_host: f.at("sender_host")?,
        sender_port: f.at("sender_port")?,
        slot: f.at("slot_name")?,
    })
}

/// A row of `pg_stat_replication`, with the slot that it uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WalSender {
    /// The `cluster_name` of a standby that says nothing else.
    pub application_name: String,
    pub user: String,
    /// `None` over a Unix socket.
    pub client_address: Option<String>,
    pub slot: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: String,
    pub sent_lsn: Option<Lsn>,
    pub written_lsn: Option<Lsn>,
    pub flushed_lsn: Option<Lsn>,
    pub replayed_lsn: Option<Lsn>,
    /// When the last reply was sent, by the standby's clock.
    pub replied_at: Option<Timestamp>,
}

pub const REPLICATION: &str = "
SELECT coalesce(r.application_name, '') AS application_name, r.usename::text AS usename, host(r.client_addr) AS client_address,
       s.slot_name::text AS slot, coalesce(r.state, '') AS state, coalesce(r.sync_state, '') AS sync_state,
       r.sent_lsn, r.write_lsn, r.flush_lsn, r.replay_lsn, r.reply_time
  FROM pg_stat_replication r
  LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
 ORDER BY r.application_name, r.pid";

/// Lists who streams from a server.
///
/// # Errors
/// [`DbError`].
pub async fn replication(conn: &Conn) -> Result<Vec<WalSender>, DbError> {
    const WHAT: &str = "read pg_stat_replication";
    let rows = conn.query(WHAT, REPLICATION, &[]).await?;
    rows.iter()
        .map(|row| {
            let f = Fields { conn, what: WHAT, row };
            Ok(WalSender {
                application_name: f.at("application_name")?,
                user: f.at::<Option<String>>("usename")?.unwrap_or_default(),
                client_address: f.at("client_address")?,
                slot: f.at("slot")?,
                state: f.at("state")?,
                sync_state: f.at("sync_state")?,
                sent_lsn: f.at("sent_lsn")?,
                written_lsn: f.at("write_lsn")?,
                flushed_lsn: f.at("flush_lsn")?,
                replayed_lsn: f.at("replay_lsn")?,
                replied_at: f.at("reply_time")?,
            })
        })
        .collect()
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    pub kind: SlotKind,
    pub active: bool,
    /// The oldest WAL that it keeps; `None` if it keeps none.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` if it keeps no WAL.
    pub wal_status: Option<String>,
    /// WAL between `restart_lsn` and the end.
    pub retained: Option<ByteCount>,
    /// What may still be written before the slot can be lost; `None` without `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
}

impl Slot {
    /// Tells whether the WAL that it kept is gone: PostgreSQL 18 lets nobody stream from such a slot any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotKind {
    Physical,
    Logical,
}

pub const SLOTS: &str = "
SELECT s.slot_name::text AS name, s.slot_type = 'physical' AS physical, s.active, s.restart_lsn, s.wal_status,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                            ELSE pg_current_wal_lsn() END, s.restart_lsn)::bigint AS retained,
       s.safe_wal_size
  FROM pg_replication_slots s
 WHERE NOT s.temporary
 ORDER BY s.slot_name";

/// Lists the permanent replication slots of a server.
///
/// # Errors
/// [`DbError`].
pub async fn slots(conn: &Conn) -> Result<Vec<Slot>, DbError> {
    const WHAT: &str = "read pg_replication_slots";
    let rows = conn.query(WHAT, SLOTS, &[]).await?;
    rows.iter()
        .map(|row| {
            let f = Fields { conn, what: WHAT, row };
            let retained: Option<i64> = f.at("retained")?;
            Ok(Slot {
                name: f.at("name")?,
                kind: if f.at("physical")? { SlotKind::Physical } else { SlotKind::Logical },
                active: f.at("active")?,
                restart_lsn: f.at("restart_lsn")?,
                wal_status: f.at("wal_status")?,
                // Negative on a standby whose slot was just copied ahead of its replay.
                retained: retained.map(|bytes| ByteCount(u64::try_from(bytes).unwrap_or(0))),
                safe_wal_size: f.at("safe_wal_size")?,
            })
        })
        .collect()
}

/// A row of `pg_settings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub name: String,
    /// In units of `unit`.
    pub setting: String,
    pub unit: Option<String>,
    /// `bool`, `enum`, `integer`, `real` or `string`.
    pub vartype: String,
    /// `postmaster` is a restart, `sighup` a reload, …
    pub context: String,
    /// `default`, `configuration file`, `command line`, …
    pub source: String,
    pub sourcefile: Option<String>,
    pub sourceline: Option<i32>,
    pub reset_val: Option<String>,
    pub boot_val: Option<String>,
    /// Changed in a file, in effect only after a restart.
    pub pending_restart: bool,
    /// As `SHOW` prints it: `4MB`.
    pub shown: String,
}

const SETTINGS: &str = "
SELECT name, setting, unit, vartype, context, source, sourcefile, sourceline, reset_val, boot_val, pending_restart,
       current_setting(name, true) AS shown
  FROM pg_settings
 WHERE lower(name) = ANY (SELECT lower(n) FROM unnest($1::text[]) n) OR (sourcefile IS NOT NULL AND $2::bool)
 ORDER BY name";

/// Reads settings by name; one that the server does not know, or hides from this role, is missing in the answer.
///
/// # Errors
/// [`DbError`].
pub async fn settings(conn: &Conn, names: &[&str]) -> Result<Vec<Setting>, DbError> {
    read_settings(conn, names, false).await
}

/// Reads settings by name, and all those whose value comes from a configuration file.
///
/// # Errors
/// [`DbError`].
pub async fn settings_and_files(conn: &Conn, names: &[&str]) -> Result<Vec<Setting>, DbError> {
    read_settings(conn, names, true).await
}

async fn read_settings(conn: &Conn, names: &[&str], from_files: bool) -> Result<Vec<Setting>, DbError> {
    const WHAT: &str = "read pg_settings";
    let rows = conn.query(WHAT, SETTINGS, &[(&names, Type::TEXT_ARRAY), (&from_files, Type::BOOL)]).await?;
    rows.iter()
        .map(|row| {
            let f = Fields { conn, what: WHAT, row };
            Ok(Setting {
                name: f.at("name")?,
                setting: f.at::<Option<String>>("setting")?.unwrap_or_default(),
                unit: f.at("unit")?,
                vartype: f.at("vartype")?,
                context: f.at("context")?,
                source: f.at("source")?,
                sourcefile: f.at("sourcefile")?,
                sourceline: f.at("sourceline")?,
                reset_val: f.at("reset_val")?,
                boot_val: f.at("boot_val")?,
                pending_restart: f.at("pending_restart")?,
                shown: f.at::<Option<String>>("shown")?.unwrap_or_default(),
            })
        })
        .collect()
}

/// A line of a configuration file that the server could not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSettingError {
    /// `None` for what is not a setting, such as a syntax error.
    pub name: Option<String>,
    pub setting: Option<String>,
    pub file: Option<String>,
    pub line: Option<i32>,
    pub error: String,
    /// The context of the setting. A `postmaster` setting with another value than the running one is listed here as well, and
    /// only waits for a restart.
    pub context: Option<String>,
}

const FILE_SETTINGS_ERRORS: &str = "
SELECT f.name, f.setting, f.sourcefile, f.sourceline, f.error, s.context
  FROM pg_file_settings f
  LEFT JOIN pg_settings s ON lower(s.name) = lower(f.name)
 WHERE f.error IS NOT NULL
 ORDER BY f.seqno";

/// Reads the configuration files anew, without applying them, and lists what could not be applied. For superusers.
///
/// # Errors
/// [`DbError`].
pub async fn file_settings_errors(conn: &Conn) -> Result<Vec<FileSettingError>, DbError> {
    const WHAT: &str = "read pg_file_settings";
    let rows = conn.query(WHAT, FILE_SETTINGS_ERRORS, &[]).await?;
    rows.iter()
        .map(|row| {
            let f = Fields { conn, what: WHAT, row };
            Ok(FileSettingError {
                name: f.at("name")?,
                setting: f.at("setting")?,
                file: f.at("sourcefile")?,
                line: f.at("sourceline")?,
                error: f.at("error")?,
                context: f.at("context")?,
            })
        })
        .collect()
}

/// Ensures a physical slot that keeps WAL from now on, a lost one anew; tells whether it was made. Standbys have slots, too.
///
/// # Errors
/// [`DbError`]; `Unexpected` if a logical slot has the name.
pub async fn ensure_physical_slot(conn: &Conn, name: &str) -> Result<bool, DbError> {
    const WHAT: &str = "create slot";
    match slots(conn).await?.into_iter().find(|slot| slot.name == name) {
        Some(Slot { kind: SlotKind::Logical, .. }) => {
            return Err(conn.unexpected(WHAT, format!("slot {name} exists and is logical")));
        }
        Some(slot) if !slot.is_lost() => return Ok(false),
        Some(_) => {
            drop_slot(conn, name).await?;
        }
        None => {}
    }
    let sql = "SELECT pg_create_physical_replication_slot($1, true)";
    conn.query(WHAT, sql, &[(&name, Type::NAME)]).await?;
    Ok(true)
}

/// Drops a slot; tells whether there was one.
///
/// # Errors
/// [`DbError`]; `Sql` with 55006 while somebody streams from it.
pub async fn drop_slot(conn: &Conn, name: &str) -> Result<bool, DbError> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    let rows = conn.query("drop slot", sql, &[(&name, Type::NAME)]).await?;
    Ok(!rows.is_empty())
}

/// Drops a replication slot from whoever reads through it; returns whether it was there.
///
/// A reader that is ended comes back: a standby after `wal_retrieve_retry_interval` (5 s).
///
/// # Errors
/// When it is in use again before it could be dropped.
pub async fn take_slot(conn: &Conn, name: &str) -> Result<bool, DbError> {
    let sql = "SELECT pg_terminate_backend(active_pid, 3000) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL";
    conn.query("end the reader of a slot", sql, &[(&name, Type::NAME)]).await?;
    drop_slot(conn, name).await
}

/// What the archiver of a primary has done, from `pg_stat_archiver` and `pg_wal/archive_status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archiver {
    /// Files archived and attempts failed since the counters were reset. A command that ended by a signal counts as neither.
    pub archived: i64,
    pub failed: i64,
    pub last_archived: Option<(String, Timestamp)>,
    pub last_failed: Option<(String, Timestamp)>,
    /// Files that wait to be archived.
    pub waiting: u64,
    /// Segments among them, if there are any.
    pub backlog: Option<Backlog>,
}

/// Segments that wait to be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    pub segments: u64,
    pub segment_size: ByteCount,
    /// How long the first of them has been waiting.
    pub oldest: Duration,
}

impl Backlog {
    /// Returns the bytes a second at which WAL is written: what came after the first one, in its time. `None` if that is too little to tell.
    pub fn rate(&self) -> Option<f64> {
        let later = self.segments.checked_sub(1).filter(|later| *later > 0)?;
        let bytes = later.saturating_mul(self.segment_size.0);
        let seconds = self.oldest.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is told in three digits")]
        (seconds >= 1.0).then(|| bytes as f64 / seconds)
    }

    /// Returns how long so much room lasts if WAL is written on at its rate and none is archived.
    pub fn fills(&self, free: ByteCount) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "a time is told in three digits")]
        Duration::try_from_secs_f64(free.0 as f64 / self.rate()?).ok()
    }
}

impl Archiver {
    /// Returns the file that failed last, unless something was archived since.
    pub fn failing(&self) -> Option<&(String, Timestamp)> {
        let newer = |failed: &&(String, Timestamp)| {
            self.last_archived.as_ref().is_none_or(|(_, archived)| *archived < failed.1)
        };
        self.last_failed.as_ref().filter(newer)
    }
}

pub const ARCHIVER: &str = "
SELECT s.archived_count, s.failed_count,
       s.last_archived_wal, s.last_archived_time, s.last_failed_wal, s.last_failed_time,
       w.waiting, w.segments, pg_size_bytes(current_setting('wal_segment_size')) AS segment_size,
       extract(epoch FROM clock_timestamp() - w.oldest)::float8 AS oldest
FROM pg_stat_archiver AS s,
     (SELECT count(*) AS waiting, count(*) FILTER (WHERE name ~ '^[0-9A-F]{24}[.]ready$') AS segments,
             min(modification) FILTER (WHERE name ~ '^[0-9A-F]{24}[.]ready$') AS oldest
      FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS w";

/// Reads what the archiver has done.
///
/// # Errors
/// [`DbError`].
pub async fn archiver(conn: &Conn) -> Result<Archiver, DbError> {
    const WHAT: &str = "read archiver";
    let row = conn.query_one(WHAT, ARCHIVER, &[]).await?;
    let fields = Fields { conn, what: WHAT, row: &row };
    let last = |wal: &str, at: &str| -> Result<Option<(String, Timestamp)>, DbError> {
        Ok(fields.at::<Option<String>>(wal)?.zip(fields.at::<Option<Timestamp>>(at)?))
    };
    Ok(Archiver {
        archived: fields.at("archived_count")?,
        failed: fields.at("failed_count")?,
        last_archived: last("last_archived_wal", "last_archived_time")?,
        last_failed: last("last_failed_wal", "last_failed_time")?,
        waiting: fields.at::<i64>("waiting")?.unsigned_abs(),
        backlog: match fields.at::<Option<f64>>("oldest")? {
            None => None,
            Some(seconds) => Some(Backlog {
                segments: fields.at::<i64>("segments")?.unsigned_abs(),
                segment_size: ByteCount(fields.at::<i64>("segment_size")?.unsigned_abs()),
                oldest: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            }),
        },
    })
}

/// Tells whether the archiver still has a segment before it.
///
/// # Errors
/// [`DbError`].
pub async fn waits_to_be_archived(conn: &Conn, segment: SegmentName) -> Result<bool, DbError> {
    const WHAT: &str = "look for a segment";
    const SQL: &str = "SELECT EXISTS (SELECT FROM pg_ls_archive_statusdir() WHERE name = $1) AS waits";
    let name = format!("{segment}.ready");
    let row = conn.query_one(WHAT, SQL, &[(&name, Type::TEXT)]).await?;
    conn.field(WHAT, &row, "waits")
}

/// Writes something and has the server finish the segment that it is in; returns that segment.
///
/// # Errors
/// [`DbError`].
pub async fn finish_segment(conn: &PrimaryConn) -> Result<SegmentName, DbError> {
    const WHAT: &str = "switch the WAL segment";
    // Without the message nothing would be switched where nothing was written since the last switch.
    const SQL: &str = "
SELECT pg_walfile_name(pg_switch_wal()) AS segment
FROM pg_logical_emit_message(false, 'pgherd', 'archive')";
    let row = conn.query_one(WHAT, SQL, &[]).await?;
    let name: String = conn.field(WHAT, &row, "segment")?;
    name.parse().map_err(|_| conn.unexpected(WHAT, format!("segment {name}")))
}

/// When a server committed last, where it keeps that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastCommit {
    At(Timestamp),
    /// It has committed nothing since its start, that it knows of.
    None,
    /// `track_commit_timestamp` is off.
    NotKept,
}

/// Asks when a server committed last.
///
/// # Errors
/// [`DbError`].
pub async fn last_commit(conn: &Conn) -> Result<LastCommit, DbError> {
    const WHAT: &str = "read its last commit";
    // The function fails where nothing is kept; a branch that is not taken is not evaluated.
    let sql = "SELECT kept, CASE WHEN kept THEN (SELECT timestamp FROM pg_last_committed_xact()) END AS at
        FROM (SELECT current_setting('track_commit_timestamp')::boolean AS kept) AS setting";
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let at: Option<Timestamp> = conn.field(WHAT, &row, "at")?;
    Ok(match (conn.field(WHAT, &row, "kept")?, at) {
        (false, _) => LastCommit::NotKept,
        (true, Some(at)) => LastCommit::At(at),
        (true, None) => LastCommit::None,
    })
}

/// Has the server read its configuration files.
///
/// # Errors
/// [`DbError`].
pub async fn reload(conn: &Conn) -> Result<(), DbError> {
    conn.execute("reload", "SELECT pg_reload_conf()", &[]).await.map(|_| ())
}

/// Sets a value in postgresql.auto.conf; in effect after a reload or a restart.
///
/// # Errors
/// [`DbError`]; `Unexpected` for the empty value of a setting that is a list of names: PostgreSQL would write a list with
/// one empty name, with which it does not start.
pub async fn set_system(conn: &Conn, name: &str, value: &str) -> Result<(), DbError> {
    let what = format!("set {name}");
    let literal = if is_quoted_list(name) {
        let items: Vec<&str> = value.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        if items.is_empty() {
            return Err(conn.unexpected(&what, "ALTER SYSTEM cannot write an empty list of names".to_owned()));
        }
        items.into_iter().map(quote_literal).collect::<Vec<_>>().join(", ")
    } else {
        quote_literal(value)
    };
    conn.batch(&what, &format!("ALTER SYSTEM SET {} = {literal}", quote_identifier(name))).await
}

/// Removes a value from postgresql.auto.conf.
///
/// # Errors
/// [`DbError`].
pub async fn reset_system(conn: &Conn, name: &str) -> Result<(), DbError> {
    conn.batch(&format!("reset {name}"), &format!("ALTER SYSTEM RESET {}", quote_identifier(name))).await
}

// A lock, since CREATE ROLE has no IF NOT EXISTS and two of us may come at once.
const ENSURE_PROBE: &str = r#"
SELECT pg_advisory_xact_lock(7161704664657462);
DO $do$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgherd_probe') THEN
    CREATE ROLE pgherd_probe LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS;
  END IF;
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO pgherd_probe', current_database());
END $do$;
CREATE SCHEMA IF NOT EXISTS pgherd;
CREATE TABLE IF NOT EXISTS pgherd.probe (
  "only" boolean PRIMARY KEY DEFAULT true CHECK ("only"),
  nonce text NOT NULL,
  at timestamptz NOT NULL
);
REVOKE ALL ON SCHEMA pgherd FROM PUBLIC;
REVOKE ALL ON pgherd.probe FROM PUBLIC;
GRANT USAGE ON SCHEMA pgherd TO pgherd_probe;
GRANT SELECT, INSERT, UPDATE ON pgherd.probe TO pgherd_probe"#;

/// Ensures the table and the role of the write proof in this database, in one transaction. The role has no password yet.
///
/// # Errors
/// [`DbError`].
pub async fn ensure_probe_table(conn: &PrimaryConn) -> Result<(), DbError> {
    conn.batch("create probe table", ENSURE_PROBE).await
}

/// Writes `nonce`, so that it can be looked for on a standby. Also through a pooler: nothing depends on the session.
///
/// # Errors
/// [`DbError`].
pub async fn write_probe(conn: &Conn, nonce: &str) -> Result<(), DbError> {
    let sql = r#"INSERT INTO pgherd.probe ("only", nonce, at) VALUES (true, $1, pg_catalog.clock_timestamp())
                 ON CONFLICT ("only") DO UPDATE SET nonce = EXCLUDED.nonce, at = EXCLUDED.at"#;
    conn.execute("write probe", sql, &[(&nonce, Type::TEXT)]).await.map(|_| ())
}

/// Reads the last nonce; `None` if none has arrived, or not even the table.
///
/// # Errors
/// [`DbError`].
pub async fn read_probe(conn: &Conn) -> Result<Option<String>, DbError> {
    const WHAT: &str = "read probe";
    match conn.query(WHAT, "SELECT nonce FROM pgherd.probe", &[]).await {
        Ok(rows) => rows.first().map(|row| conn.field(WHAT, row, "nonce")).transpose(),
        // undefined_table: the schema or the table was not replayed yet.
        Err(error) if error.is_state("42P01") => Ok(None),
        Err(error) => Err(error),
    }
}

/// One row, with whom and what it answers.
pub(super) struct Fields<'a> {
    pub(super) conn: &'a Conn,
    pub(super) what: &'static str,
    pub(super) row: &'a Row,
}

impl<'a> Fields<'a> {
    pub(super) fn at<T: FromSql<'a>>(&self, column: &str) -> Result<T, DbError> {
        self.conn.field(self.what, self.row, column)
    }

    fn timeline(&self, column: &str) -> Result<TimelineId, DbError> {
        let id: i32 = self.at(column)?;
        TimelineId::new(id.cast_unsigned())
            .ok_or_else(|| self.conn.unexpected(self.what, format!("timeline {id}")))
    }
}
