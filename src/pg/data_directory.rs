//! The names in a data directory: which files are pages of a relation, and what a base backup leaves out.
//!
//! Mirrors `sendDir` in `basebackup.c`, but for one thing: what is left out is known by its whole path, and not by its last name
//! wherever that stands.

/// A relation's file within the directory of its database: number, fork and segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// `relfilenode`.
    pub number: u32,
    pub fork: Fork,
    /// Files of `blocks_a_file` blocks each, from 0.
    pub segment: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    Main,
    FreeSpaceMap,
    VisibilityMap,
    Init,
}

impl RelationFile {
    /// Reads a file's name: `16384`, `16384.2`, `16384_vm`, `16384_fsm.1`, `16384_init`.
    ///
    /// ```
    /// use pgherd::pg::data_directory::{Fork, RelationFile};
    /// let file = RelationFile::parse("16384_vm.2").unwrap();
    /// assert_eq!((file.number, file.fork, file.segment), (16384, Fork::VisibilityMap, 2));
    /// assert!(RelationFile::parse("pg_filenode.map").is_none());
    /// ```
    pub fn parse(name: &str) -> Option<Self> {
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) => (stem, number(segment).filter(|segment| *segment > 0)?),
            None => (name, 0),
        };
        let (relation, fork) = match stem.split_once('_') {
            Some((relation, "fsm")) => (relation, Fork::FreeSpaceMap),
            Some((relation, "vm")) => (relation, Fork::VisibilityMap),
            Some((relation, "init")) => (relation, Fork::Init),
            Some(_) => return None,
            None => (stem, Fork::Main),
        };
        Some(Self { number: number(relation)?, fork, segment })
    }
}

/// A number as PostgreSQL writes it: no sign, no leading zero but for 0 itself.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let short = text == "0" || !text.starts_with('0');
    (plain && short).then(|| text.parse().ok()).flatten()
}

/// Tells whether a name is that of a temporary relation: `t3_16450`, with fork and segment as for any other.
///
/// Mirrors `looks_like_temp_rel_name` in `fd.c`.
pub fn is_temporary_relation(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, rest)| number(backend).is_some() && RelationFile::parse(rest).is_some())
}

/// Tells whether a directory, by its path in the data directory, holds the relations of one database, or the shared ones.
///
/// ```
/// use pgherd::pg::data_directory::holds_relations;
/// assert!(holds_relations("global") && holds_relations("base/5") && holds_relations("pg_tblspc/16385/PG_18_202506291/5"));
/// assert!(!holds_relations("base") && !holds_relations("pg_xact") && !holds_relations("base/pgsql_tmp"));
/// ```
pub fn holds_relations(directory: &str) -> bool {
    let parts: Vec<&str> = directory.split('/').collect();
    match parts.as_slice() {
        ["global"] => true,
        ["base", database] => number(database).is_some(),
        ["pg_tblspc", tablespace, version, database] => {
            number(tablespace).is_some() && version.starts_with("PG_") && number(database).is_some()
        }
        _ => false,
    }
}

/// What becomes of a path in a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Whole,
    /// The directory, and the directories in it, without files: the server wants to find them.
    OnlyDirectories,
    Nothing,
}

/// Directories whose contents a server must not find again, or would only throw away.
const EMPTIED: &[&str] = &[
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_stat_tmp",
];

/// Files that belong to the running server, to another backup, or to the node's role.
const LEFT_OUT: &[&str] = &[
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "backup_manifest",
    "backup_manifest.tmp",
    "recovery.signal",
    "standby.signal",
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
];

/// Decides by the path in the data directory, with `/`. Unlogged relations are another matter: they are known by their neighbours.
///
/// ```
/// use pgherd::pg::data_directory::{Kept, kept};
/// assert_eq!(kept("postmaster.pid"), Kept::Nothing);
/// assert_eq!(kept("base/postmaster.pid"), Kept::Whole);
/// assert_eq!(kept("pg_wal"), Kept::OnlyDirectories);
/// ```
pub fn kept(path: &str) -> Kept {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    if EMPTIED.iter().any(|emptied| path == *emptied || is_below(path, emptied)) {
        // A slot's directory is its contents; in pg_wal the server expects archive_status.
        return if EMPTIED.contains(&path) || directory == "pg_wal" {
            Kept::OnlyDirectories
        } else {
            Kept::Nothing
        };
    }
    if LEFT_OUT.contains(&path) {
        return Kept::Nothing;
    }
    let for_temporary_files = directory == "base" || is_tablespace_version(directory);
    if name.starts_with("pgsql_tmp") && for_temporary_files {
        return Kept::Nothing;
    }
    // With the number of the process that writes it while it is written.
    if name.starts_with("pg_internal.init") && holds_relations(directory) {
        return Kept::Nothing;
    }
    if is_temporary_relation(name) && holds_relations(directory) {
        return Kept::Nothing;
    }
    Kept::Whole
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn is_tablespace_version(directory: &str) -> bool {
    let parts: Vec<&str> = directory.split('/').collect();
    matches!(parts.as_slice(), ["pg_tblspc", tablespace, version] if number(tablespace).is_some() && version.starts_with("PG_"))
}

/// Names the directory in a tablespace that a server of this major version and catalog uses: `PG_18_202506291`.
///
/// Mirrors `TABLESPACE_VERSION_DIRECTORY` in `relpath.h`.
pub fn tablespace_version_directory(major: u32, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_relation_file_is_none() {
        for name in
            ["", "1.", "1.0", "1.01", "01", "-1", "1_", "1_old", "1.2.3", "PG_VERSION", "t3_5", "99999999999"]
        {
            assert_eq!(RelationFile::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn temporary_relations_are_known_by_their_name() {
        for name in ["t3_16450", "t3_16450.1", "t120_16450_fsm", "t0_1_vm.2"] {
            assert!(is_temporary_relation(name), "{name}");
        }
        for name in ["t_16450", "t3_", "t3", "t3_x", "3_16450", "tx_16450"] {
            assert!(!is_temporary_relation(name), "{name}");
        }
    }

    #[test]
    fn what_is_left_out_is_left_out_in_its_place_only() {
        for path in [
            "pg_wal/000000010000000000000001",
            "pg_replslot/inventory_b/state",
            "pg_stat_tmp/db_0.stat",
            "base/pgsql_tmp",
            "base/pgsql_tmp/pgsql_tmp123.0",
            "pg_tblspc/16385/PG_18_202506291/pgsql_tmp",
            "base/5/pg_internal.init",
            "global/pg_internal.init.4711",
            "base/5/t3_16450",
            "standby.signal",
        ] {
            let whole = path.split('/').scan(String::new(), |at, part| {
                if !at.is_empty() {
                    at.push('/');
                }
                at.push_str(part);
                Some(at.clone())
            });
            // A file is reached through its directories.
            assert!(whole.map(|at| kept(&at)).any(|kept| kept != Kept::Whole), "{path}");
        }
        for path in [
            "PG_VERSION",
            "postgresql.auto.conf",
            "base/5/standby.signal",
            "log/postmaster.pid",
            "pg_logical/snapshots/0-1.snap",
            "pg_walls",
            "base/5/pgsql_tmp1",
            "pg_twophase/0000000000000300",
            "extension/t3_16450",
        ] {
            assert_eq!(kept(path), Kept::Whole, "{path}");
        }
    }

    #[test]
    fn pg_wal_keeps_its_directories_and_no_slot_stays() {
        assert_eq!(kept("pg_wal/archive_status"), Kept::OnlyDirectories);
        assert_eq!(kept("pg_wal/summaries"), Kept::OnlyDirectories);
        assert_eq!(kept("pg_wal/archive_status/x.done"), Kept::Nothing);
        assert_eq!(kept("pg_replslot/inventory_b"), Kept::Nothing);
    }
}
