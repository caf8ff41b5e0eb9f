//! What a base backup asks and tells a server: start, stop, and whether the archive works.
//!
//! The session that starts a backup must stay open until it stops it: PostgreSQL aborts the backup when it ends.

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::connect::{Conn, DbError, PrimaryConn};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalSegmentSize;

/// What a backup must know of the server that it is taken from, and of its archiving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub system_identifier: SystemIdentifier,
    /// `server_version_num`.
    pub version_number: u32,
    pub data_checksums: bool,
    pub block_size: u32,
    pub blocks_a_file: u32,
    pub wal_segment_size: WalSegmentSize,
    pub in_recovery: bool,
    pub full_page_writes: bool,
    /// `off`, `on` or `always`.
    pub archive_mode: String,
    pub archive_command: String,
    pub archive_library: String,
    pub config_file: String,
    pub tablespaces: Vec<Tablespace>,
}

/// A tablespace besides pg_default and pg_global.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub oid: u32,
    /// What its link in pg_tblspc leads to.
    pub location: String,
}

const FACTS: &str = "
SELECT (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       current_setting('server_version_num')::int AS version,
       current_setting('data_checksums') = 'on' AS data_checksums,
       current_setting('block_size')::int AS block_size,
       (SELECT setting::int FROM pg_settings WHERE name = 'segment_size') AS blocks_a_file,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS wal_segment_size,
       pg_is_in_recovery() AS in_recovery,
       current_setting('full_page_writes') = 'on' AS full_page_writes,
       current_setting('archive_mode') AS archive_mode,
       (SELECT setting FROM pg_settings WHERE name = 'archive_command') AS archive_command,
       coalesce(current_setting('archive_library', true), '') AS archive_library,
       current_setting('config_file') AS config_file";

const TABLESPACES: &str = "
SELECT oid::bigint AS oid, pg_tablespace_location(oid) AS location
  FROM pg_tablespace
 WHERE spcname NOT IN ('pg_default', 'pg_global')
 ORDER BY oid";

/// Reads the facts.
///
/// # Errors
/// [`DbError`].
pub async fn facts(conn: &Conn) -> Result<Facts, DbError> {
    const WHAT: &str = "read what a backup needs";
    let row = conn.query_one(WHAT, FACTS, &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    let mut tablespaces = Vec::new();
    for row in conn.query("list tablespaces", TABLESPACES, &[]).await? {
        let f = Fields { conn, what: WHAT, row: &row };
        tablespaces.push(Tablespace { oid: f.number::<i64>("oid")?, location: f.at("location")? });
    }
    let segment: i64 = f.at("wal_segment_size")?;
    Ok(Facts {
        system_identifier: f.system("system_identifier")?,
        version_number: f.number::<i32>("version")?,
        data_checksums: f.at("data_checksums")?,
        block_size: f.number::<i32>("block_size")?,
        blocks_a_file: f.number::<i32>("blocks_a_file")?,
        wal_segment_size: WalSegmentSize::new(segment.unsigned_abs())
            .map_err(|error| conn.unexpected(WHAT, error.to_string()))?,
        in_recovery: f.at("in_recovery")?,
        full_page_writes: f.at("full_page_writes")?,
        archive_mode: f.at("archive_mode")?,
        archive_command: f.at::<Option<String>>("archive_command")?.unwrap_or_default(),
        archive_library: f.at("archive_library")?,
        config_file: f.at("config_file")?,
        tablespaces,
    })
}

/// A row of `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archiver {
    pub archived_count: i64,
    pub last_archived: Option<String>,
    pub last_archived_at: Option<Timestamp>,
    pub failed_count: i64,
    pub last_failed: Option<String>,
    pub last_failed_at: Option<Timestamp>,
}

impl Archiver {
    /// Tells whether the last thing that the archiver did was to fail.
    pub fn is_failing(&self) -> bool {
        self.last_failed_at.is_some() && self.last_failed_at >= self.last_archived_at
    }
}

/// Reads how archiving goes.
///
/// # Errors
/// [`DbError`].
pub async fn archiver(conn: &Conn) -> Result<Archiver, DbError> {
    const WHAT: &str = "read pg_stat_archiver";
    let sql = "SELECT archived_count, last_archived_wal, last_archived_time, failed_count, last_failed_wal, last_failed_time
                 FROM pg_stat_archiver";
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    Ok(Archiver {
        archived_count: f.at("archived_count")?,
        last_archived: f.at("last_archived_wal")?,
        last_archived_at: f.at("last_archived_time")?,
        failed_count: f.at("failed_count")?,
        last_failed: f.at("last_failed_wal")?,
        last_failed_at: f.at("last_failed_time")?,
    })
}

/// Writes a restore point, so that there is something to archive, and ends the segment; returns the restore point's LSN, which lies in it.
///
/// # Errors
/// [`DbError`].
pub async fn end_segment(conn: &PrimaryConn, restore_point: &str) -> Result<Lsn, DbError> {
    const WHAT: &str = "switch to a new WAL segment";
    let row = conn
        .query_one(WHAT, "SELECT pg_create_restore_point($1) AS lsn", &[(&restore_point, Type::TEXT)])
        .await?;
    let lsn = conn.field(WHAT, &row, "lsn")?;
    conn.query_one(WHAT, "SELECT pg_switch_wal()", &[]).await?;
    Ok(lsn)
}

/// Makes the primary write a checkpoint, from which a standby can make a restartpoint; returns where its replay begins.
///
/// # Errors
/// [`DbError`].
pub async fn checkpoint(conn: &PrimaryConn) -> Result<Lsn, DbError> {
    const WHAT: &str = "write a checkpoint";
    conn.batch(WHAT, "CHECKPOINT").await?;
    let row = conn.query_one(WHAT, "SELECT checkpoint_lsn FROM pg_control_checkpoint()", &[]).await?;
    conn.field(WHAT, &row, "checkpoint_lsn")
}

/// How far a server in recovery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    pub in_recovery: bool,
    pub replayed_lsn: Option<Lsn>,
    /// Of the latest restartpoint.
    pub redo: Lsn,
    /// Where a restore would be consistent, on which timeline; none on a primary.
    pub minimum_recovery: Option<(Lsn, TimelineId)>,
}

/// Reads how far a server has come; also what keeps the session of a backup alive and sees a promotion.
///
/// # Errors
/// [`DbError`].
pub async fn replay(conn: &Conn) -> Result<Replay, DbError> {
    const WHAT: &str = "ask how far it has replayed";
    let sql = "SELECT pg_is_in_recovery() AS in_recovery, pg_last_wal_replay_lsn() AS replayed, c.redo_lsn, r.min_recovery_end_lsn,
                      r.min_recovery_end_timeline
                 FROM pg_control_checkpoint() c, pg_control_recovery() r";
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    let timeline: i32 = f.at("min_recovery_end_timeline")?;
    let lsn: Lsn = f.at("min_recovery_end_lsn")?;
    Ok(Replay {
        in_recovery: f.at("in_recovery")?,
        replayed_lsn: f.at("replayed")?,
        redo: f.at("redo_lsn")?,
        minimum_recovery: TimelineId::new(timeline.cast_unsigned()).map(|timeline| (lsn, timeline)),
    })
}

/// Lets a session be idle for two minutes, whatever an administrator allows (`idle_session_timeout`, since 14): it is used every few
/// seconds, so that one that is not is one whose client is cut off. Through ssh the server would hold its backup for hours.
///
/// # Errors
/// [`DbError`].
pub async fn may_be_idle(conn: &Conn) -> Result<(), DbError> {
    conn.batch("limit how long the session may be idle", "SET idle_session_timeout = '2min'").await
}

/// A backup that this session has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The server's clock before the start.
    pub at: Timestamp,
    pub lsn: Lsn,
    /// Of the checkpoint that it starts from.
    pub timeline: TimelineId,
}

/// Starts a non-exclusive backup; writes a checkpoint at once.
///
/// # Errors
/// [`DbError`].
pub async fn start(conn: &Conn, version: u32, label: &str) -> Result<Started, DbError> {
    const WHAT: &str = "start the backup";
    let row = conn.query_one(WHAT, "SELECT clock_timestamp() AS now", &[]).await?;
    let at = conn.field(WHAT, &row, "now")?;
    let sql = if version >= 150_000 {
        "SELECT pg_backup_start($1, true) AS lsn"
    } else {
        // The third argument is "exclusive", which 15 has removed.
        "SELECT pg_start_backup($1, true, false) AS lsn"
    };
    let row = conn.query_one(WHAT, sql, &[(&label, Type::TEXT)]).await?;
    let lsn = conn.field(WHAT, &row, "lsn")?;
    let row = conn.query_one(WHAT, "SELECT timeline_id FROM pg_control_checkpoint()", &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    Ok(Started { at, lsn, timeline: f.timeline("timeline_id")? })
}

/// What the server says of a backup that has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    pub lsn: Lsn,
    /// Byte for byte what must stand in `backup_label`.
    pub backup_label: String,
    /// Byte for byte what must stand in `tablespace_map`, if it is not empty.
    pub tablespace_map: String,
    /// The server's clock afterwards.
    pub at: Timestamp,
}

/// Stops the backup of this session; does not wait until its WAL is archived.
///
/// # Errors
/// [`DbError`]; `Sql` with 55000 if the standby was promoted meanwhile.
pub async fn stop(conn: &Conn, version: u32) -> Result<Stopped, DbError> {
    const WHAT: &str = "stop the backup";
    let sql = if version >= 150_000 {
        "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)"
    } else {
        "SELECT lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
    };
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    let now = conn.query_one(WHAT, "SELECT clock_timestamp() AS now", &[]).await?;
    Ok(Stopped {
        lsn: f.at("lsn")?,
        backup_label: f.at("labelfile")?,
        tablespace_map: f.at("spcmapfile")?,
        at: conn.field(WHAT, &now, "now")?,
    })
}

/// One row, with whom and what it answers.
struct Fields<'a> {
    conn: &'a Conn,
    what: &'static str,
    row: &'a Row,
}

impl<'a> Fields<'a> {
    fn at<T: FromSql<'a>>(&self, column: &str) -> Result<T, DbError> {
        self.conn.field(self.what, self.row, column)
    }

    /// Reads a number that SQL has only as a signed one.
    fn number<T: FromSql<'a> + Into<i64>>(&self, column: &str) -> Result<u32, DbError> {
        let number: i64 = self.at::<T>(column)?.into();
        u32::try_from(number).map_err(|_| self.conn.unexpected(self.what, format!("{column} is {number}")))
    }

    fn system(&self, column: &str) -> Result<SystemIdentifier, DbError> {
        let identifier: i64 = self.at(column)?;
        SystemIdentifier::new(identifier.cast_unsigned())
            .ok_or_else(|| self.conn.unexpected(self.what, "system identifier 0".to_owned()))
    }

    fn timeline(&self, column: &str) -> Result<TimelineId, DbError> {
        let id: i32 = self.at(column)?;
        TimelineId::new(id.cast_unsigned())
            .ok_or_else(|| self.conn.unexpected(self.what, format!("timeline {id}")))
    }
}
