//! Server settings that are measured in something: which they are, and the units that PostgreSQL reads.
//!
//! Taken from `pg_settings` where `unit is not null` of PostgreSQL 15, without what cannot be set, together with every
//! `GUC_UNIT_*` of `guc_parameters.dat` of PostgreSQL 19 (in development). Where both have a setting, its unit is the same.

/// What a setting is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Memory or disk; a number alone counts this many bytes.
    Bytes(u32),
    /// Time; a number alone counts this many milliseconds.
    Milliseconds(u32),
}

const B: Measure = Measure::Bytes(1);
const KB: Measure = Measure::Bytes(1 << 10);
const PAGES: Measure = Measure::Bytes(8 << 10);
const MB: Measure = Measure::Bytes(1 << 20);
const MS: Measure = Measure::Milliseconds(1);
const S: Measure = Measure::Milliseconds(1_000);
const MIN: Measure = Measure::Milliseconds(60_000);

/// Sorted by name.
const MEASURED: &[(&str, Measure)] = &[
    ("archive_timeout", S),
    ("authentication_timeout", S),
    ("autovacuum_naptime", S),
    ("autovacuum_vacuum_cost_delay", MS),
    ("autovacuum_work_mem", KB),
    ("backend_flush_after", PAGES),
    ("bgwriter_delay", MS),
    ("bgwriter_flush_after", PAGES),
    ("checkpoint_flush_after", PAGES),
    ("checkpoint_timeout", S),
    ("checkpoint_warning", S),
    ("client_connection_check_interval", MS),
    ("commit_timestamp_buffers", PAGES),
    ("deadlock_timeout", MS),
    ("effective_cache_size", PAGES),
    ("gin_pending_list_limit", KB),
    ("huge_page_size", KB),
    ("idle_in_transaction_session_timeout", MS),
    ("idle_replication_slot_timeout", S),
    ("idle_session_timeout", MS),
    ("io_combine_limit", PAGES),
    ("io_max_combine_limit", PAGES),
    ("io_worker_idle_timeout", MS),
    ("io_worker_launch_interval", MS),
    ("lock_timeout", MS),
    ("log_autoanalyze_min_duration", MS),
    ("log_autovacuum_min_duration", MS),
    ("log_min_duration_sample", MS),
    ("log_min_duration_statement", MS),
    ("log_parameter_max_length", B),
    ("log_parameter_max_length_on_error", B),
    ("log_rotation_age", MIN),
    ("log_rotation_size", KB),
    ("log_startup_progress_interval", MS),
    ("log_statement_max_length", B),
    ("log_temp_files", KB),
    ("logical_decoding_work_mem", KB),
    ("maintenance_work_mem", KB),
    ("max_slot_wal_keep_size", MB),
    ("max_stack_depth", KB),
    ("max_standby_archive_delay", MS),
    ("max_standby_streaming_delay", MS),
    ("max_wal_size", MB),
    ("min_dynamic_shared_memory", MB),
    ("min_parallel_index_scan_size", PAGES),
    ("min_parallel_table_scan_size", PAGES),
    ("min_wal_size", MB),
    ("multixact_member_buffers", PAGES),
    ("multixact_offset_buffers", PAGES),
    ("notify_buffers", PAGES),
    ("old_snapshot_threshold", MIN),
    ("password_expiration_warning_threshold", S),
    ("post_auth_delay", S),
    ("pre_auth_delay", S),
    ("recovery_min_apply_delay", MS),
    ("serializable_buffers", PAGES),
    ("shared_buffers", PAGES),
    ("statement_timeout", MS),
    ("subtransaction_buffers", PAGES),
    ("tcp_keepalives_idle", S),
    ("tcp_keepalives_interval", S),
    ("tcp_user_timeout", MS),
    ("temp_buffers", PAGES),
    ("temp_file_limit", KB),
    ("track_activity_query_size", B),
    ("transaction_buffers", PAGES),
    ("transaction_timeout", MS),
    ("vacuum_buffer_usage_limit", KB),
    ("vacuum_cost_delay", MS),
    ("wal_buffers", PAGES),
    ("wal_decode_buffer_size", B),
    ("wal_keep_size", MB),
    ("wal_receiver_status_interval", S),
    ("wal_receiver_timeout", MS),
    ("wal_retrieve_retry_interval", MS),
    ("wal_sender_shutdown_timeout", MS),
    ("wal_sender_timeout", MS),
    ("wal_skip_threshold", KB),
    ("wal_summary_keep_time", MIN),
    ("wal_writer_delay", MS),
    ("wal_writer_flush_after", PAGES),
    ("work_mem", KB),
];

/// Tells what a setting is measured in; `None` for one that is a plain number or no number, and for those of extensions.
///
/// ```
/// use pgherd::pg::guc_units::{Measure, measure};
/// assert_eq!(measure("shared_buffers"), Some(Measure::Bytes(8192)));
/// assert_eq!(measure("max_connections"), None);
/// ```
pub fn measure(setting: &str) -> Option<Measure> {
    MEASURED.binary_search_by_key(&setting, |(name, _)| name).ok().map(|found| MEASURED[found].1)
}

/// Why a value does not fit a setting that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueError {
    /// A number without a unit; it would count `each`, such as "8 kB".
    NoUnit { each: String },
    /// Not `number unit`, or a unit of another kind.
    Unfit { expected: &'static str },
    /// `m` could be minutes or months.
    AmbiguousM,
}

/// PostgreSQL's units of memory, and the binary ones that mean the same (`convert_to_base_unit` in `guc.c`: its kB is 1024 B).
const MEMORY: [(&str, &str); 9] = [
    ("B", "B"),
    ("kB", "kB"),
    ("KiB", "kB"),
    ("MB", "MB"),
    ("MiB", "MB"),
    ("GB", "GB"),
    ("GiB", "GB"),
    ("TB", "TB"),
    ("TiB", "TB"),
];
const TIME: [(&str, &str); 6] =
    [("us", "us"), ("ms", "ms"), ("s", "s"), ("min", "min"), ("h", "h"), ("d", "d")];

/// Writes a value of a measured setting as postgresql.conf has it: `4 MiB` is `4MB`, `30 s` is `30s`.
///
/// 0 and -1 need no unit: to nearly all of these settings they mean "off", "no limit" or "by itself".
///
/// ```
/// use pgherd::pg::guc_units::{Measure, spell};
/// assert_eq!(spell(Measure::Bytes(1024), "4 MiB").as_deref(), Ok("4MB"));
/// assert!(spell(Measure::Bytes(1024), "4096").is_err());
/// ```
///
/// # Errors
/// [`ValueError`] if the unit is missing, ambiguous or of another kind.
pub fn spell(measure: Measure, value: &str) -> Result<String, ValueError> {
    let (units, expected): (&[(&str, &str)], _) = match measure {
        Measure::Bytes(_) => (&MEMORY, "a size such as 64 MiB or 64MB"),
        Measure::Milliseconds(_) => (&TIME, "a time such as 30 s or 30s"),
    };
    let value = value.trim();
    if value == "0" || value == "-1" {
        return Ok(value.to_owned());
    }
    let digits = value.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = (&value[..digits], value[digits..].trim());
    if number.parse::<f64>().is_err() {
        return Err(ValueError::Unfit { expected });
    }
    match unit {
        "" => Err(ValueError::NoUnit { each: each(measure) }),
        "m" => Err(ValueError::AmbiguousM),
        _ => units
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, postgres)| format!("{number}{postgres}"))
            .ok_or(ValueError::Unfit { expected }),
    }
}

fn each(measure: Measure) -> String {
    match measure {
        Measure::Bytes(1) => "1 B".to_owned(),
        Measure::Bytes(bytes) if bytes < 1 << 20 => format!("{} kB", bytes >> 10),
        Measure::Bytes(bytes) => format!("{} MB", bytes >> 20),
        Measure::Milliseconds(1) => "1 ms".to_owned(),
        Measure::Milliseconds(ms) if ms < 60_000 => format!("{} s", ms / 1_000),
        Measure::Milliseconds(ms) => format!("{} min", ms / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_it_can_be_searched() {
        assert!(MEASURED.is_sorted_by_key(|(name, _)| *name));
    }

    #[test]
    fn values_are_spelled_as_postgresql_reads_them() {
        let bytes = |value| spell(Measure::Bytes(8192), value);
        let time = |value| spell(Measure::Milliseconds(1), value);
        assert_eq!(bytes("64 GiB").as_deref(), Ok("64GB"));
        assert_eq!(bytes("512kB").as_deref(), Ok("512kB"));
        assert_eq!(bytes("-1").as_deref(), Ok("-1"));
        assert_eq!(time("5 min").as_deref(), Ok("5min"));
        assert_eq!(time("1.5s").as_deref(), Ok("1.5s"));
        assert_eq!(time("5 m"), Err(ValueError::AmbiguousM));
        assert_eq!(bytes("16384"), Err(ValueError::NoUnit { each: "8 kB".to_owned() }));
        assert!(matches!(bytes("4 s"), Err(ValueError::Unfit { .. })));
        assert!(matches!(bytes("4 mb"), Err(ValueError::Unfit { .. })));
        assert!(matches!(time("soon"), Err(ValueError::Unfit { .. })));
    }
}
