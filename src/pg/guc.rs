//! Server settings: their spelling in postgresql.conf, and which of them a standby must match.

/// Tells whether PostgreSQL keeps the value of a setting as a list of quoted names, so that `ALTER SYSTEM` takes one literal
/// for each of them.
///
/// Mirrors `variable_is_guc_list_quote` in `dumputils.c`.
pub fn is_quoted_list(name: &str) -> bool {
    const QUOTED_LISTS: [&str; 6] = [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ];
    QUOTED_LISTS.iter().any(|list| list.eq_ignore_ascii_case(name))
}
