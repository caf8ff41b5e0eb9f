//! Which version of PgBouncer knows which key: one table, asked for every key that is written.
//!
//! PgBouncer refuses to start with a key that it does not know, so nothing reaches a file past this table. Read from `src/main.c`,
//! `src/loader.c` and `src/admin.c` of the tags from 1.18 to 1.25.

use crate::error::Error;
use crate::host::programs::PgBouncerVersion;

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    /// In an entry of `[databases]`.
    Database,
    /// In an entry of `[users]`.
    User,
    /// In an entry of `[peers]`.
    Peer,
    /// In `[pgbouncer]`.
    Pgbouncer,
}

/// The oldest version that is written for.
pub(super) const OLDEST: (u32, u32) = (1, 18);

/// Every key that pgherd writes, with the first version that takes it; those without one are older than [`OLDEST`].
const KEYS: &[(Section, &str, (u32, u32))] = &[
    (Section::Database, "host", OLDEST),
    (Section::Database, "port", OLDEST),
    (Section::Database, "dbname", OLDEST),
    (Section::Database, "pool_size", OLDEST),
    // Since 1.24 also under the name reserve_pool_size; the old one stays.
    (Section::Database, "reserve_pool", OLDEST),
    (Section::Database, "max_db_connections", OLDEST),
    (Section::Database, "pool_mode", OLDEST),
    (Section::User, "pool_mode", OLDEST),
    (Section::User, "max_user_connections", OLDEST),
    (Section::User, "pool_size", (1, 23)),
    (Section::User, "max_user_client_connections", (1, 24)),
    (Section::Peer, "host", (1, 19)),
    (Section::Peer, "port", (1, 19)),
    (Section::Pgbouncer, "listen_addr", OLDEST),
    (Section::Pgbouncer, "listen_port", OLDEST),
    (Section::Pgbouncer, "so_reuseport", OLDEST),
    (Section::Pgbouncer, "peer_id", (1, 19)),
    (Section::Pgbouncer, "unix_socket_dir", OLDEST),
    (Section::Pgbouncer, "unix_socket_mode", OLDEST),
    (Section::Pgbouncer, "logfile", OLDEST),
    (Section::Pgbouncer, "pidfile", OLDEST),
    (Section::Pgbouncer, "auth_type", OLDEST),
    (Section::Pgbouncer, "auth_hba_file", OLDEST),
    (Section::Pgbouncer, "auth_file", OLDEST),
    (Section::Pgbouncer, "auth_user", OLDEST),
    (Section::Pgbouncer, "auth_query", OLDEST),
    (Section::Pgbouncer, "auth_dbname", (1, 19)),
    (Section::Pgbouncer, "pool_mode", OLDEST),
    (Section::Pgbouncer, "max_client_conn", OLDEST),
    (Section::Pgbouncer, "max_prepared_statements", (1, 21)),
    (Section::Pgbouncer, "server_login_retry", OLDEST),
    (Section::Pgbouncer, "server_connect_timeout", OLDEST),
    (Section::Pgbouncer, "server_lifetime", OLDEST),
    (Section::Pgbouncer, "server_idle_timeout", OLDEST),
    (Section::Pgbouncer, "server_fast_close", OLDEST),
    (Section::Pgbouncer, "client_login_timeout", OLDEST),
    (Section::Pgbouncer, "query_wait_timeout", OLDEST),
    // A NOTICE to a client that waits, 5 s after it began to: what a driver's log then says.
    (Section::Pgbouncer, "query_wait_notify", (1, 25)),
    (Section::Pgbouncer, "tcp_keepalive", OLDEST),
    (Section::Pgbouncer, "tcp_keepidle", OLDEST),
    (Section::Pgbouncer, "tcp_keepintvl", OLDEST),
    (Section::Pgbouncer, "tcp_keepcnt", OLDEST),
    (Section::Pgbouncer, "tcp_user_timeout", OLDEST),
    (Section::Pgbouncer, "server_tls_sslmode", OLDEST),
    (Section::Pgbouncer, "server_tls_ca_file", OLDEST),
    (Section::Pgbouncer, "client_tls_sslmode", OLDEST),
    (Section::Pgbouncer, "client_tls_cert_file", OLDEST),
    (Section::Pgbouncer, "client_tls_key_file", OLDEST),
    (Section::Pgbouncer, "ignore_startup_parameters", OLDEST),
    (Section::Pgbouncer, "log_connections", OLDEST),
    (Section::Pgbouncer, "log_disconnections", OLDEST),
];

/// Returns the first version that takes a key.
///
/// # Panics
/// For a key that is not in the table: a name that nobody has looked up.
fn since(section: Section, key: &str) -> (u32, u32) {
    let found = KEYS.iter().find(|(known_section, known, _)| *known_section == section && *known == key);
    found.expect("every key that is written is in the table").2
}

/// Tells whether a version takes a key.
pub(super) fn takes(version: PgBouncerVersion, section: Section, key: &str) -> bool {
    (version.major, version.minor) >= since(section, key)
}

/// Checks that a version takes the key that something in the topology asks for.
///
/// # Errors
/// Refused, with both versions.
pub(super) fn require(
    version: PgBouncerVersion,
    section: Section,
    key: &str,
    wish: &str,
    host: &str,
) -> Result<(), Error> {
    if takes(version, section, key) {
        return Ok(());
    }
    let (major, minor) = since(section, key);
    Err(Error::refused(format!("cannot have \"{wish}\" with PgBouncer {version} on host {host}"))
        .detail(format!("It is written as {key}, which PgBouncer knows since {major}.{minor}."))
        .hint(format!("Install PgBouncer {major}.{minor} or newer there, or remove \"{wish}\".")))
}

/// Entries of a section that stand in one line: `host=… port=…`.
pub(super) struct Line {
    section: Section,
    version: PgBouncerVersion,
    words: Vec<String>,
}

impl Line {
    pub(super) fn new(section: Section, version: PgBouncerVersion) -> Self {
        Self { section, version, words: Vec::new() }
    }

    /// Adds a key if the version takes it.
    pub(super) fn with(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        if takes(self.version, self.section, key) {
            self.words.push(format!("{key}={value}"));
        }
        self
    }

    /// Adds a key that has a value, if the version takes it.
    pub(super) fn with_some(self, key: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    pub(super) fn text(self) -> String {
        self.words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_stands_twice_and_none_is_newer_than_what_is_released() {
        for (index, (section, key, since)) in KEYS.iter().enumerate() {
            assert!(!KEYS[..index].iter().any(|(other, known, _)| other == section && known == key), "{key}");
            assert!((OLDEST..=(1, 25)).contains(since), "{key}");
        }
    }

    #[test]
    fn what_an_old_pgbouncer_does_not_know_is_refused_with_both_versions() {
        let old = PgBouncerVersion { major: 1, minor: 18, patch: 0 };
        let error = require(old, Section::Pgbouncer, "peer_id", "processes: 2", "db1").unwrap_err();
        assert_eq!(error.what(), "cannot have \"processes: 2\" with PgBouncer 1.18.0 on host db1");
        assert_eq!(error.detail_text(), Some("It is written as peer_id, which PgBouncer knows since 1.19."));
        let new = PgBouncerVersion { minor: 19, ..old };
        assert!(require(new, Section::Pgbouncer, "peer_id", "processes: 2", "db1").is_ok());
    }
}
