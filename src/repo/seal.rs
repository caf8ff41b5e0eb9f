//! How a single object is stored so that any flipped bit of it is found: a sealed object (compressed) and a sealed document (JSON).
//!
//! docs/formats/repository.md is the format. `zstd -dc` reads a sealed object as it is, since its header is a skippable frame.

use std::io::Write as _;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pg::system::SystemIdentifier;

/// The format that this pgherd reads and writes.
pub const FORMAT: u32 = 1;

/// No header is longer: whoever reads so many bytes of an object has all of it.
pub const HEADER_MOST: u64 = 1024;

/// The first of the magic numbers of skippable frames (RFC 8878 §3.1.2), little-endian.
const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();

/// A BLAKE3 hash, as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blake3([u8; 32]);

impl Blake3 {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Display for Blake3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl std::str::FromStr for Blake3 {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        blake3::Hash::from_hex(text)
            .ok()
            .filter(|_| lower)
            .map(|hash| Self(*hash.as_bytes()))
            .ok_or_else(|| SealError::new("a hash is not 64 hexadecimal digits"))
    }
}

impl Serialize for Blake3 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Blake3 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a sealed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Wal,
    Files,
    Progress,
}

/// The header of a sealed object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub format: u32,
    pub kind: Kind,
    /// The WAL file's name, or the label of the backup.
    pub name: String,
    pub system_identifier: SystemIdentifier,
    /// Bytes of the content.
    pub size: u64,
    pub content_blake3: Blake3,
    /// Of the zstd frame that follows the header.
    pub stored_blake3: Blake3,
}

/// Why something sealed cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SealError(String);

impl SealError {
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// Names a sealed object: what it must say of itself to be the one that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    pub kind: Kind,
    pub name: &'a str,
    pub system_identifier: SystemIdentifier,
}

/// Compresses and seals `content`.
///
/// # Errors
/// When zstd fails, which it does for want of memory only.
pub fn seal(identity: Identity<'_>, content: &[u8], level: i32) -> Result<Vec<u8>, SealError> {
    // The hash of the content takes a fourth of the time of compressing it.
    let (frame, content_blake3) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| Blake3::of(content));
        (compress(content, level), hash.join().expect("a hash does not panic"))
    });
    let frame = frame.map_err(|error| SealError::new(format!("zstd failed: {error}")))?;
    let header = Header {
        format: FORMAT,
        kind: identity.kind,
        name: identity.name.to_owned(),
        system_identifier: identity.system_identifier,
        size: content.len() as u64,
        content_blake3,
        stored_blake3: Blake3::of(&frame),
    };
    let text = serde_json::to_vec(&header).expect("a header is plain data");
    let length = u32::try_from(text.len()).expect("a header is a few hundred bytes");
    let mut object = Vec::with_capacity(8 + text.len() + frame.len());
    object.extend_from_slice(&SKIPPABLE);
    object.extend_from_slice(&length.to_le_bytes());
    object.extend_from_slice(&text);
    object.extend_from_slice(&frame);
    Ok(object)
}

/// Compresses into one zstd frame with content size and checksum.
///
/// # Errors
/// When zstd fails, which it does for want of memory only.
fn compress(content: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::with_capacity(content.len() / 3 + 64), level)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(content.len() as u64))?;
    encoder.write_all(content)?;
    encoder.finish()
}

/// Reads the header at the beginning of an object; `object` may be cut off behind it.
///
/// # Errors
/// When it is not one that this pgherd wrote.
pub fn header(object: &[u8]) -> Result<(Header, usize), SealError> {
    let not_ours = || SealError::new("it does not begin as an object of pgherd does");
    if object.get(..4) != Some(SKIPPABLE.as_slice()) {
        return Err(not_ours());
    }
    let length: [u8; 4] = object.get(4..8).and_then(|b| b.try_into().ok()).ok_or_else(not_ours)?;
    let end = usize::try_from(u32::from_le_bytes(length)).ok().and_then(|n| n.checked_add(8));
    let text =
        end.and_then(|end| object.get(8..end)).ok_or_else(|| SealError::new("its header is cut off"))?;
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|_| SealError::new("its header is damaged"))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT) => {}
        Some(found) => {
            return Err(SealError::new(format!("it has format {found}, this pgherd reads format {FORMAT}")));
        }
        None => return Err(SealError::new("its header is damaged")),
    }
    let header: Header =
        serde_json::from_value(value).map_err(|_| SealError::new("its header is damaged"))?;
    // A header that says the same in other bytes was changed as well.
    if serde_json::to_vec(&header).ok().as_deref() != Some(text) {
        return Err(SealError::new("its header is damaged"));
    }
    Ok((header, 8 + text.len()))
}

/// Checks a sealed object in every byte and returns its content.
///
/// # Errors
/// When it is damaged, or is not the object that `identity` names.
pub fn open(identity: Identity<'_>, object: &[u8]) -> Result<Vec<u8>, SealError> {
    let (header, begin) = header(object)?;
    if header.kind != identity.kind
        || header.name != identity.name
        || header.system_identifier != identity.system_identifier
    {
        return Err(SealError::new(format!(
            "it says that it is {} of system {}, expected {} of system {}",
            header.name, header.system_identifier, identity.name, identity.system_identifier
        )));
    }
    let frame = &object[begin..];
    if Blake3::of(frame) != header.stored_blake3 {
        return Err(SealError::new("what is stored does not have the hash that its header says"));
    }
    let size = usize::try_from(header.size).map_err(|_| SealError::new("its header is damaged"))?;
    let content = zstd::bulk::decompress(frame, size)
        .map_err(|error| SealError::new(format!("it does not decompress: {error}")))?;
    if content.len() != size {
        return Err(SealError::new(format!("it holds {} bytes, its header says {size}", content.len())));
    }
    if Blake3::of(&content) != header.content_blake3 {
        return Err(SealError::new("its content does not have the hash that its header says"));
    }
    Ok(content)
}

/// Writes a document: compact JSON with the hash of everything before it as the last field, and a newline.
///
/// `document` must serialize as a JSON object with at least one field, none of them named `blake3`.
pub fn write_document<T: Serialize>(document: &T) -> Vec<u8> {
    let mut text = serde_json::to_string(document).expect("documents are plain data");
    assert_eq!(text.pop(), Some('}'), "a document is a JSON object");
    let hash = Blake3::of(text.as_bytes());
    text.push_str(&format!(",\"blake3\":\"{hash}\"}}\n"));
    text.into_bytes()
}

/// Checks a document in every byte and reads it.
///
/// # Errors
/// When it is damaged, or of another format.
pub fn read_document<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SealError> {
    const TAIL: usize = ",\"blake3\":\"".len() + 64 + "\"}\n".len();
    let damaged = || SealError::new("it is damaged: its hash does not fit");
    let split = bytes.len().checked_sub(TAIL).ok_or_else(damaged)?;
    let (body, tail) = bytes.split_at(split);
    if tail != format!(",\"blake3\":\"{}\"}}\n", Blake3::of(body)).as_bytes() {
        return Err(damaged());
    }
    let mut text = body.to_vec();
    text.push(b'}');
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|_| damaged())?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT) => {
            serde_json::from_value(value).map_err(|error| SealError::new(format!("it is damaged: {error}")))
        }
        Some(found) => {
            Err(SealError::new(format!("it has format {found}, this pgherd reads format {FORMAT}")))
        }
        None => Err(SealError::new("it has no format number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity<'static> {
        let system_identifier = SystemIdentifier::new(u64::MAX).unwrap();
        Identity { kind: Kind::Wal, name: "000000010000000000000001", system_identifier }
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_object_is_found() {
        let content: Vec<u8> = (0..5000_u32).map(|n| (n * n % 251) as u8).collect();
        let object = seal(identity(), &content, 3).unwrap();
        assert_eq!(open(identity(), &object).unwrap(), content);
        for bit in 0..object.len() * 8 {
            let mut flipped = object.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(identity(), &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_sealed_object_that_is_cut_off_or_longer_is_refused() {
        let object = seal(identity(), b"content", 3).unwrap();
        for length in 0..object.len() {
            assert!(open(identity(), &object[..length]).is_err(), "{length}");
        }
        let mut longer = object.clone();
        longer.push(0);
        assert!(open(identity(), &longer).is_err());
    }

    #[test]
    fn another_segment_under_this_name_is_refused() {
        let object =
            seal(Identity { name: "000000010000000000000002", ..identity() }, b"content", 3).unwrap();
        assert!(open(identity(), &object).is_err());
    }

    #[test]
    fn the_golden_object_opens() {
        let golden = include_bytes!("../../tests/golden/sealed-v1.zst");
        let system_identifier = SystemIdentifier::new(7_398_812_045_532_218_841).unwrap();
        let content = open(Identity { kind: Kind::Wal, name: "00000002.history", system_identifier }, golden);
        assert_eq!(content.unwrap(), b"1\t0/3018170\tno recovery target specified\n");
        let (header, begin) = header(golden).unwrap();
        assert_eq!(header.size, 41);
        assert!((begin as u64) < HEADER_MOST);
    }

    #[test]
    fn zstd_reads_a_sealed_object_as_it_is() {
        let object = seal(identity(), b"content", 3).unwrap();
        assert_eq!(zstd::decode_all(object.as_slice()).unwrap(), b"content");
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Document {
        format: u32,
        by: String,
    }

    #[test]
    fn every_flipped_bit_of_a_document_is_found() {
        let document = Document { format: 1, by: "dba".to_owned() };
        let bytes = write_document(&document);
        assert_eq!(read_document::<Document>(&bytes).unwrap(), document);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read_document::<Document>(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_document_of_another_format_is_refused_by_its_number() {
        let bytes = write_document(&Document { format: 2, by: String::new() });
        assert_eq!(
            read_document::<Document>(&bytes).unwrap_err().to_string(),
            "it has format 2, this pgherd reads format 1"
        );
    }
}
