//! `backup_manifest`, PostgreSQL's own list of a backup's files, by which `pg_verifybackup` checks a restored directory.
//!
//! Writes the text only. Mirrors `backup_manifest.c`; the format is in the PostgreSQL documentation, "Backup Manifest Format".

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::lsn::Lsn;
use super::system::SystemIdentifier;
use super::timeline::TimelineId;

/// The first major version whose `pg_verifybackup` knows the manifest's version 2, which names the system identifier.
const SINCE_VERSION_2: u32 = 17;

/// A file as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the data directory, with `/`.
    pub path: String,
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// CRC-32C of the whole file.
    pub crc32c: u32,
}

/// WAL that the backup needs to become consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub end: Lsn,
}

/// Writes the manifest of a backup of PostgreSQL `major`.
///
/// ```
/// use pgherd::pg::{backup_manifest, system::SystemIdentifier};
/// let system = SystemIdentifier::new(7398812045532218841).unwrap();
/// let text = backup_manifest::write(18, system, &[], &[]);
/// assert!(text.starts_with("{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7398812045532218841,\n"));
/// ```
pub fn write(major: u32, system: SystemIdentifier, files: &[Listed], wal: &[WalRange]) -> String {
    let mut text = if major >= SINCE_VERSION_2 {
        format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system},\n")
    } else {
        "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n".to_owned()
    };
    text.push_str("\"Files\": [");
    for (index, file) in files.iter().enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        text.push_str(&file_line(file));
    }
    text.push_str("\n],\n\"WAL-Ranges\": [");
    for (index, range) in wal.iter().enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        text.push_str(&format!(
            "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
            range.timeline, range.start, range.end
        ));
    }
    text.push_str("\n],\n");
    let checksum: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    text.push_str(&format!("\"Manifest-Checksum\": \"{checksum}\"}}\n"));
    text
}

fn file_line(file: &Listed) -> String {
    let modified = Timestamp::from_second(file.mtime).unwrap_or(Timestamp::UNIX_EPOCH);
    // The bytes of the CRC in memory order (`pg_checksum_final`), on the little-endian machines that we run on.
    let checksum: String = file.crc32c.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{{ \"Path\": {}, \"Size\": {}, \"Last-Modified\": \"{} GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}",
        serde_json::Value::from(file.path.as_str()),
        file.size,
        modified.strftime("%Y-%m-%d %H:%M:%S"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(major: u32) -> String {
        let system = SystemIdentifier::new(7_398_812_045_532_218_841).unwrap();
        let file = Listed {
            path: "base/5/\"odd\"".to_owned(),
            size: 8192,
            mtime: 1_795_255_200,
            crc32c: 0x1234_5678,
        };
        let wal = WalRange {
            timeline: TimelineId::new(3).unwrap(),
            start: "1/28".parse().unwrap(),
            end: "1/4000000".parse().unwrap(),
        };
        write(major, system, &[file], &[wal])
    }

    #[test]
    fn the_manifest_is_json_that_ends_with_its_own_hash() {
        let text = one(18);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["PostgreSQL-Backup-Manifest-Version"], 2);
        assert_eq!(value["Files"][0]["Path"], "base/5/\"odd\"");
        assert_eq!(value["Files"][0]["Checksum"], "78563412");
        assert_eq!(value["Files"][0]["Last-Modified"], "2026-11-21 10:00:00 GMT");
        assert_eq!(value["WAL-Ranges"][0]["End-LSN"], "1/4000000");
        let (body, _) = text.split_once("\"Manifest-Checksum\"").unwrap();
        let hash: String = Sha256::digest(body.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(value["Manifest-Checksum"], hash.as_str());
    }

    #[test]
    fn before_17_the_manifest_names_no_system() {
        assert!(one(16).starts_with("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": ["));
    }
}
