//! What a backup says of itself: the manifest, which is the commit, and the list of objects, chunks and files.
//!
//! docs/formats/backup.md is the format. A file's bytes are found in chunks; a chunk is one frame of zstd or LZ4 in a data object of this backup or of
//! an earlier one, so that a file's blocks may come from several backups.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalSegmentSize};
use crate::repo::layout::Label;
use crate::repo::seal::{Blake3, SealError};
use crate::topology::model::Codec;
use crate::units::ByteCount;

/// The most bytes of files that one chunk holds.
pub const CHUNK: ByteCount = ByteCount(4 << 20);
/// A data object is ended once it has so many stored bytes.
pub const OBJECT: ByteCount = ByteCount(64 << 20);

/// `manifest.json`: a sealed document, stored last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub label: Label,
    pub herd: String,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    /// The version of pgherd that made it.
    pub pgherd: String,
    /// `server_version_num`: 180006.
    pub server_version: u32,
    /// The node that it was read from, within the cluster: `b`.
    pub node: String,
    pub from: Source,
    /// When `pg_backup_start` was called and when `pg_backup_stop` had returned, by the server's clock.
    pub begun: Timestamp,
    pub ended: Timestamp,
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    /// A restore is consistent from here on, and no earlier.
    pub stop_lsn: Lsn,
    pub wal_segment_size: WalSegmentSize,
    pub data_checksums: bool,
    /// `block_size` and blocks a file of `pg_control`: 8192 and 131072.
    pub block_size: u32,
    pub blocks_a_file: u32,
    /// What `pg_backup_stop` returned, byte for byte.
    pub backup_label: String,
    /// What `pg_backup_stop` returned, byte for byte; empty without tablespaces.
    pub tablespace_map: String,
    pub tablespaces: Vec<Tablespace>,
    /// Level of zstd; 0 where the backup was made with something else.
    pub level: i32,
    /// What it was made with; each chunk says for itself what it is in.
    #[serde(default, skip_serializing_if = "Codec::is_default")]
    pub compression: Codec,
    /// The backups that hold chunks of this one besides itself; empty for a full backup.
    pub needs: Vec<Label>,
    pub files: u64,
    pub directories: u64,
    /// Bytes of all files.
    pub size: ByteCount,
    /// Bytes of the data objects of this backup.
    pub stored: ByteCount,
    /// Pages whose checksum was wrong twice, in all; `files.zst` says which.
    pub damaged_pages: u64,
    /// Of the whole object `files.zst`.
    pub files_blake3: Blake3,
    pub files_stored: ByteCount,
}

impl Manifest {
    /// Returns the first and the last segment that a restore of this backup needs at least.
    pub fn wal(&self) -> (SegmentName, SegmentName) {
        (
            SegmentName::holding(self.start_lsn, self.timeline, self.wal_segment_size),
            SegmentName::ending_at(self.stop_lsn, self.timeline, self.wal_segment_size),
        )
    }

    /// Returns PostgreSQL's major version.
    pub fn major(&self) -> u32 {
        self.server_version / 10_000
    }
}

/// Which kind of node a backup was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Primary,
    Standby,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tablespace {
    pub oid: u32,
    /// Where it was on the node.
    pub location: PathBuf,
    pub size: ByteCount,
}

/// A line of `files.zst`: `{"object":…}` lines first, then chunks, directories, links, files, and one `{"end":…}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Object(DataObject),
    Chunk(Chunk),
    Dir(Dir),
    Link(Link),
    File(File),
    End(End),
}

/// A data object of this backup; the first line is number 1, and each other one more than the line before it, unless it says its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataObject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    pub size: ByteCount,
    pub blake3: Blake3,
}

/// Bytes of files, compressed by themselves, in a data object; lines count from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Number of the data object.
    pub object: u32,
    /// Where it begins in the object, and how long it is there.
    pub offset: u64,
    pub stored: u32,
    /// Bytes that it holds, at most [`CHUNK`].
    pub size: u32,
    /// Of the stored bytes.
    pub blake3: Blake3,
    /// The backup whose data object it is in, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Label>,
    #[serde(default, skip_serializing_if = "Codec::is_default")]
    pub codec: Codec,
    /// Of the bytes that it holds; earlier versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Blake3>,
}

/// A directory; paths are relative to the data directory, with `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dir {
    pub path: String,
    /// Permission bits.
    pub mode: u32,
}

/// A tablespace's link: `pg_tblspc/16385`. What it holds is listed below that path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub path: String,
    pub target: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: String,
    pub mode: u32,
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// CRC-32C of the whole file, as PostgreSQL's backup_manifest has it.
    pub crc32c: u32,
    /// Where its bytes are, in order of `at`; what no part covers is zeros.
    pub parts: Vec<Part>,
    /// Block numbers within the relation whose checksum was wrong twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_blocks: Vec<u32>,
}

impl File {
    /// Returns the CRC-32C of the file whose parts have these, with zeros where no part is.
    pub fn crc_of(&self, parts: impl IntoIterator<Item = u32>) -> u32 {
        let (mut crc, mut at) = (0, 0);
        for (part, own) in self.parts.iter().zip(parts) {
            crc = with_zeros(crc, part.at - at);
            crc = crc32c::crc32c_combine(crc, own, usize::try_from(part.length).unwrap_or(usize::MAX));
            at = part.at + u64::from(part.length);
        }
        with_zeros(crc, self.size - at)
    }
}

/// Returns the CRC of what has `crc` with `count` zero bytes behind it.
fn with_zeros(crc: u32, count: u64) -> u32 {
    let (mut crc, mut left) = (crc, count);
    let (mut zeros, mut length) = (crc32c::crc32c(&[0]), 1_usize);
    while left > 0 {
        if left & 1 == 1 {
            crc = crc32c::crc32c_combine(crc, zeros, length);
        }
        left >>= 1;
        if left > 0 {
            zeros = crc32c::crc32c_combine(zeros, zeros, length);
            length <<= 1;
        }
    }
    crc
}

/// A run of a file's bytes: `[at, length, chunk, from]`, written as an array since there are millions of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u32, u32, u32)", into = "(u64, u32, u32, u32)")]
pub struct Part {
    /// Offset in the file.
    pub at: u64,
    pub length: u32,
    /// Number of the chunk's line.
    pub chunk: u32,
    /// Offset in the chunk's bytes.
    pub from: u32,
}

impl From<(u64, u32, u32, u32)> for Part {
    fn from((at, length, chunk, from): (u64, u32, u32, u32)) -> Self {
        Self { at, length, chunk, from }
    }
}

impl From<Part> for (u64, u32, u32, u32) {
    fn from(part: Part) -> Self {
        (part.at, part.length, part.chunk, part.from)
    }
}

/// How many lines of each kind there are: a list that was cut off does not pass for a whole one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub objects: u32,
    pub chunks: u32,
    pub dirs: u64,
    pub links: u64,
    pub files: u64,
}

/// `files.zst`, whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    pub objects: Vec<DataObject>,
    pub chunks: Vec<Chunk>,
    pub dirs: Vec<Dir>,
    pub links: Vec<Link>,
    pub files: Vec<File>,
}

impl Contents {
    /// Writes the lines.
    pub fn write(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut line = |line: Line| {
            serde_json::to_writer(&mut text, &line).expect("lines are plain data");
            text.push(b'\n');
        };
        self.objects.iter().for_each(|object| line(Line::Object(*object)));
        self.chunks.iter().for_each(|chunk| line(Line::Chunk(chunk.clone())));
        self.dirs.iter().for_each(|dir| line(Line::Dir(dir.clone())));
        self.links.iter().for_each(|link| line(Line::Link(link.clone())));
        self.files.iter().for_each(|file| line(Line::File(file.clone())));
        line(Line::End(self.end()));
        text
    }

    /// Returns the data objects with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &DataObject)> {
        self.objects.iter().scan(0_u32, |before, object| {
            *before = object.number.unwrap_or(before.saturating_add(1));
            Some((*before, object))
        })
    }

    fn end(&self) -> End {
        End {
            objects: u32::try_from(self.objects.len()).unwrap_or(u32::MAX),
            chunks: u32::try_from(self.chunks.len()).unwrap_or(u32::MAX),
            dirs: self.dirs.len() as u64,
            links: self.links.len() as u64,
            files: self.files.len() as u64,
        }
    }

    /// Reads the lines.
    ///
    /// # Errors
    /// When a line is not one of ours, or lines are missing.
    pub fn read(text: &[u8]) -> Result<Self, ContentsError> {
        let mut contents = Self::default();
        let mut end = None;
        for (index, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
            if end.is_some() {
                return Err(ContentsError::Line(index + 1, "a line after the end".to_owned()));
            }
            let line = serde_json::from_slice(line)
                .map_err(|error| ContentsError::Line(index + 1, error.to_string()))?;
            match line {
                Line::Object(object) => contents.objects.push(object),
                Line::Chunk(chunk) => contents.chunks.push(chunk),
                Line::Dir(dir) => contents.dirs.push(dir),
                Line::Link(link) => contents.links.push(link),
                Line::File(file) => contents.files.push(file),
                Line::End(found) => end = Some(found),
            }
        }
        if end != Some(contents.end()) {
            return Err(ContentsError::Cut);
        }
        Ok(contents)
    }
}

/// Why a list of files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentsError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("line {0} is damaged: {1}")]
    Line(usize, String),
    #[error("lines are missing")]
    Cut,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::seal;

    const MANIFEST: &str = include_str!("../../tests/golden/manifest-v1.json");
    const FILES: &str = include_str!("../../tests/golden/files-v1.ndjson");
    const PROGRESS: &str = include_str!("../../tests/golden/progress-v1.ndjson");

    #[test]
    fn the_crc_of_zeros_is_the_crc_of_zeros() {
        for count in [0_usize, 1, 7, 8192, 100_003] {
            let mut bytes = b"begin".to_vec();
            bytes.resize(5 + count, 0);
            assert_eq!(with_zeros(crc32c::crc32c(b"begin"), count as u64), crc32c::crc32c(&bytes));
        }
    }

    #[test]
    fn the_golden_manifest_reads_and_writes_byte_for_byte() {
        let manifest: Manifest = seal::read_document(MANIFEST.as_bytes()).unwrap();
        assert_eq!(manifest.wal().1.to_string(), "000000030000000100000003");
        assert_eq!(String::from_utf8(seal::write_document(&manifest)).unwrap(), MANIFEST);
    }

    #[test]
    fn the_golden_list_of_files_reads_and_writes_byte_for_byte() {
        let contents = Contents::read(FILES.as_bytes()).unwrap();
        assert_eq!(contents.files.len(), 2);
        assert_eq!(String::from_utf8(contents.write()).unwrap(), FILES);
    }

    #[test]
    fn the_golden_notes_read_and_write_byte_for_byte() {
        let contents = Contents::read(PROGRESS.as_bytes()).unwrap();
        let numbers: Vec<u32> = contents.numbered().map(|(number, _)| number).collect();
        assert_eq!(numbers, [1, 100_001]);
        let codecs: Vec<Codec> = contents.chunks.iter().map(|chunk| chunk.codec).collect();
        assert_eq!(codecs, [Codec::Zstd, Codec::Lz4, Codec::None]);
        assert_eq!(String::from_utf8(contents.write()).unwrap(), PROGRESS);
    }

    #[test]
    fn an_object_has_the_number_behind_the_one_before_unless_it_says_another() {
        let object = |number| DataObject { number, size: ByteCount(1), blake3: Blake3::of(b"") };
        let objects = vec![object(None), object(Some(7)), object(None)];
        let contents = Contents { objects, ..Contents::default() };
        assert_eq!(contents.numbered().map(|(number, _)| number).collect::<Vec<_>>(), [1, 7, 8]);
    }

    #[test]
    fn a_list_of_files_that_lost_a_line_is_refused() {
        for missing in 0..FILES.lines().count() {
            let cut: String = FILES
                .lines()
                .enumerate()
                .filter(|(n, _)| *n != missing)
                .map(|(_, line)| format!("{line}\n"))
                .collect();
            assert_eq!(Contents::read(cut.as_bytes()), Err(ContentsError::Cut), "without line {missing}");
        }
    }
}
