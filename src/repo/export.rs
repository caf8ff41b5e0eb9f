//! Rows of a partition that was dropped: the manifest, which is the commit, and where it lies; docs/formats/partitions.md.

use jiff::Timestamp;
use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

use crate::pg::system::SystemIdentifier;
use crate::repo::layout::SystemKeys;
use crate::repo::seal::Blake3;
use crate::repo::{Key, KeyError};
use crate::units::ByteCount;

/// `manifest.json` of an export: a sealed document, stored last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportManifest {
    pub format: u32,
    pub herd: String,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    /// The version of pgherd that made it.
    pub pgherd: String,
    /// `server_version_num`: 180006.
    pub server_version: u32,
    pub database: String,
    /// The partitioned table: `orders.order_events`, quoted where it must be.
    pub of: String,
    /// The partition, within the schema of `schema`.
    pub schema: String,
    pub partition: String,
    /// The column that the table is partitioned by, and its type.
    pub by: String,
    pub key_type: String,
    /// What the partition held: UTC for a `timestamptz`; `None` for MINVALUE.
    pub from: Option<DateTime>,
    pub to: Option<DateTime>,
    pub at: Timestamp,
    /// In the order of the fields of a row; generated columns are left out.
    pub columns: Vec<ExportColumn>,
    pub rows: u64,
    /// Of the rows as COPY … WITH (FORMAT csv) writes them.
    pub size: ByteCount,
    pub content_blake3: Blake3,
    /// Of `rows.csv.zst`.
    pub stored: ByteCount,
    pub stored_blake3: Blake3,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportColumn {
    pub name: String,
    /// As `format_type` writes it.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// Where the parts of an export are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportKeys(Key);

/// Which part of an export a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InExport {
    Manifest,
    Rows,
}

/// The folder of all exports of a system identifier.
pub const FOLDER: &str = "partition";
/// How `at` is written in a key.
const SECOND: &str = "%Y%m%dT%H%M%SZ";

impl ExportKeys {
    /// Names the export of a partition that is made at `at`.
    ///
    /// # Errors
    /// When the names are so long that their key would be too long.
    pub fn new(
        system: &SystemKeys,
        database: &str,
        partition: (&str, &str),
        at: Timestamp,
    ) -> Result<Self, KeyError> {
        partition_folder(system, database, partition)?.join(&at.strftime(SECOND).to_string()).map(Self)
    }

    /// Takes the folder of an export.
    pub fn at(folder: Key) -> Self {
        Self(folder)
    }

    pub fn folder(&self) -> &Key {
        &self.0
    }

    pub fn manifest(&self) -> Key {
        self.part(InExport::Manifest)
    }

    pub fn rows(&self) -> Key {
        self.part(InExport::Rows)
    }

    fn part(&self, part: InExport) -> Key {
        self.0.join(part.name()).expect("the folder of an export leaves room for its parts")
    }
}

impl InExport {
    const ALL: [Self; 2] = [Self::Manifest, Self::Rows];

    fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest.json",
            Self::Rows => "rows.csv.zst",
        }
    }
}

/// Returns the folder of the export that a key is a part of.
pub fn folder_of(part: &Key) -> Key {
    let folder = part.as_str().rsplit_once('/').map_or(part.as_str(), |(folder, _)| folder);
    Key::new(folder).expect("what a key begins with, up to a slash, is a key")
}

/// Returns the folder of all exports of one system identifier.
pub fn exports(system: &SystemKeys) -> Key {
    system.folder().join(FOLDER).expect("a folder of a system leaves room for others")
}

/// Returns the folder of the exports of a partition: `partition/DATABASE/SCHEMA/NAME`.
///
/// # Errors
/// As [`Key::new`].
pub fn partition_folder(
    system: &SystemKeys,
    database: &str,
    (schema, name): (&str, &str),
) -> Result<Key, KeyError> {
    let parts = [database, schema, name].map(spelled);
    // What `join` adds to it later must fit as well.
    let folder = exports(system).join(&parts.join("/"))?;
    folder.join(&"x".repeat(40)).map(|_| folder)
}

/// Tells what a key is below the folder of exports: `DATABASE/SCHEMA/NAME/SECOND/PART`.
pub fn part_of(below: &str) -> Option<InExport> {
    let parts: Vec<&str> = below.split('/').collect();
    let [database, schema, name, second, part] = parts.as_slice() else { return None };
    let known = [database, schema, name]
        .into_iter()
        .all(|part| read(part).is_some_and(|text| spelled(&text) == **part));
    let is_second = second.len() == 16
        && second.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    InExport::ALL.into_iter().find(|found| found.name() == *part).filter(|_| known && is_second)
}

/// Writes any name with what a key may hold: letters, digits and `_` as they are, other bytes as `-` and two hexadecimal digits.
fn spelled(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            other => format!("-{other:02x}"),
        })
        .collect()
}

fn read(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        if *first == b'-' {
            let digits = std::str::from_utf8(others.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &others[2..];
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8(bytes).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::layout::ClusterKeys;
    use crate::repo::seal;

    #[test]
    fn the_golden_export_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../tests/golden/partition-export-v1.json");
        let manifest: ExportManifest = seal::read_document(golden.as_bytes()).unwrap();
        assert_eq!((manifest.rows, manifest.columns.len()), (9_114_202, 3));
        assert_eq!(String::from_utf8(seal::write_document(&manifest)).unwrap(), golden);
    }

    #[test]
    fn every_name_has_a_key_of_its_own_that_is_known_again() {
        let system = ClusterKeys::new("orders").system(SystemIdentifier::new(7).unwrap());
        let at = "2026-12-01T03:15:00Z".parse().unwrap();
        let keys = ExportKeys::new(&system, "shop", ("Ord.ers", "events-é"), at).unwrap();
        let text = "orders/7/partition/shop/Ord-2eers/events-2d-c3-a9/20261201T031500Z/rows.csv.zst";
        assert_eq!(keys.rows().as_str(), text);
        let below = |key: &Key| key.as_str().strip_prefix("orders/7/partition/").unwrap().to_owned();
        assert_eq!(part_of(&below(&keys.rows())), Some(InExport::Rows));
        assert_eq!(part_of(&below(&keys.manifest())), Some(InExport::Manifest));
        for text in [
            "a/b/c/20261201T031500Z/notes",
            "a/b/20261201T031500Z/rows.csv.zst",
            "a/b/c-2/20261201T031500Z/rows.csv.zst",
            "a/b/c/yesterday/rows.csv.zst",
            "a/b/c-41/20261201T031500Z/rows.csv.zst",
        ] {
            assert_eq!(part_of(text), None, "{text}");
        }
        let long = "ä".repeat(31);
        assert!(ExportKeys::new(&system, &long, (&long, &long), at).is_ok());
    }
}
