//! Rows as COPY writes them, counted and hashed on their way into an object of a repository and out of it.

use std::io::Write as _;

use crate::error::{Error, Result};
use crate::repo::seal::Blake3;
use crate::repo::{self, Key, Repo, RepoError, Upload};
use crate::units::ByteCount;

/// How much is compressed or read at a time.
const PIECE: usize = 4 << 20;
/// As for backups: as fast as disks are.
const LEVEL: i32 = 3;

/// What was seen of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub rows: u64,
    pub size: ByteCount,
    pub content: Blake3,
}

/// Counts and hashes CSV.
#[derive(Debug, Default)]
pub struct Counted {
    hasher: blake3::Hasher,
    rows: u64,
    size: u64,
    /// Within double quotes, where a line end is a part of a value. A doubled quote leaves and enters again, which is the same.
    quoted: bool,
}

impl Counted {
    pub fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        for byte in bytes {
            match byte {
                b'"' => self.quoted = !self.quoted,
                b'\n' if !self.quoted => self.rows += 1,
                _ => {}
            }
        }
    }

    pub fn seen(&self) -> Seen {
        Seen {
            rows: self.rows,
            size: ByteCount(self.size),
            content: Blake3::from_bytes(*self.hasher.finalize().as_bytes()),
        }
    }
}

/// Compresses rows into an object of a repository that never waits.
pub struct Writer {
    encoder: zstd::Encoder<'static, Vec<u8>>,
    upload: Box<dyn Upload>,
    counted: Counted,
    stored: blake3::Hasher,
    length: u64,
}

impl Writer {
    /// Begins the object.
    ///
    /// # Errors
    /// As the repository fails.
    pub fn begin(repo: &dyn Repo, key: &Key) -> Result<Self> {
        let mut encoder =
            zstd::Encoder::new(Vec::with_capacity(PIECE), LEVEL).map_err(|error| zstd_failed(&error))?;
        encoder.include_checksum(true).map_err(|error| zstd_failed(&error))?;
        Ok(Self {
            encoder,
            upload: repo::wait(repo.upload(key))?,
            counted: Counted::default(),
            stored: blake3::Hasher::new(),
            length: 0,
        })
    }

    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.counted.take(bytes);
        self.encoder.write_all(bytes).map_err(|error| zstd_failed(&error))?;
        if self.encoder.get_ref().len() >= PIECE {
            let piece = std::mem::take(self.encoder.get_mut());
            self.store(&piece)?;
        }
        Ok(())
    }

    fn store(&mut self, piece: &[u8]) -> Result<()> {
        self.stored.update(piece);
        self.length += piece.len() as u64;
        Ok(repo::wait(self.upload.write(piece))?)
    }

    /// Makes the object appear; returns what went in, and size and hash of what is stored.
    ///
    /// # Errors
    /// As the repository fails.
    pub fn end(self) -> Result<(Seen, ByteCount, Blake3)> {
        let Self { encoder, mut upload, counted, mut stored, mut length } = self;
        let rest = encoder.finish().map_err(|error| zstd_failed(&error))?;
        stored.update(&rest);
        length += rest.len() as u64;
        repo::wait(upload.write(&rest))?;
        repo::wait(upload.finish())?;
        Ok((counted.seen(), ByteCount(length), Blake3::from_bytes(*stored.finalize().as_bytes())))
    }
}

/// Why an object of rows cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error("{0} is not in the repository {1}")]
    Missing(Key, String),
    /// It does not decompress.
    #[error("{0} in the repository {1} is damaged")]
    Damaged(Key, String, #[source] std::io::Error),
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Repo(error) => error.into(),
            ReadError::Missing(..) => Self::failed(error.to_string()),
            ReadError::Damaged(key, url, source) => {
                Self::failed(format!("{key} in the repository {url} is damaged")).source(source)
            }
        }
    }
}

/// Reads an object of rows piece by piece.
pub struct Reader<'a> {
    repo: &'a dyn Repo,
    key: Key,
    at: u64,
    decoder: zstd::stream::write::Decoder<'static, Vec<u8>>,
    stored: blake3::Hasher,
    counted: Counted,
}

impl<'a> Reader<'a> {
    /// Begins to read.
    ///
    /// # Errors
    /// When zstd fails, which it does for want of memory only.
    pub fn begin(repo: &'a dyn Repo, key: &Key) -> Result<Self> {
        Ok(Self {
            repo,
            key: key.clone(),
            at: 0,
            decoder: zstd::stream::write::Decoder::new(Vec::new()).map_err(|error| zstd_failed(&error))?,
            stored: blake3::Hasher::new(),
            counted: Counted::default(),
        })
    }

    /// Returns the next piece of rows; `None` at the end.
    ///
    /// # Errors
    /// As the repository fails; when the object is damaged.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        let url = || self.repo.url().to_owned();
        loop {
            let piece = repo::wait(self.repo.read_range(&self.key, self.at, PIECE as u64))?;
            let piece = piece.ok_or_else(|| ReadError::Missing(self.key.clone(), url()))?;
            if piece.is_empty() {
                return Ok(None);
            }
            self.at += piece.len() as u64;
            self.stored.update(&piece);
            let fed = self.decoder.write_all(&piece).and_then(|()| self.decoder.flush());
            fed.map_err(|error| ReadError::Damaged(self.key.clone(), url(), error))?;
            let rows = std::mem::take(self.decoder.get_mut());
            if !rows.is_empty() {
                self.counted.take(&rows);
                return Ok(Some(rows));
            }
        }
    }

    /// Returns what was read, and size and hash of the object.
    pub fn seen(&self) -> (Seen, ByteCount, Blake3) {
        (self.counted.seen(), ByteCount(self.at), Blake3::from_bytes(*self.stored.finalize().as_bytes()))
    }
}

fn zstd_failed(error: &std::io::Error) -> Error {
    Error::failed(format!("zstd failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::dir::DirRepo;

    #[test]
    fn rows_are_counted_whatever_is_in_them() {
        let mut counted = Counted::default();
        for piece in ["1,plain\n2,\"two\nlin", "es \"\"and quotes\"\"\n\"\n3,\"\"\n", "4,\n"] {
            counted.take(piece.as_bytes());
        }
        assert_eq!(counted.seen().rows, 4);
    }

    #[test]
    fn what_is_stored_is_read_back_and_a_flipped_bit_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("repository");
        let repo = DirRepo::create(&root).unwrap();
        let key = Key::new("orders/7/rows.csv.zst").unwrap();
        let mut writer = Writer::begin(&repo, &key).unwrap();
        for number in 0..600_000_u32 {
            // What does not compress well, so that there is more than one piece.
            writer
                .take(format!("{number},{}\n", blake3::hash(&number.to_le_bytes()).to_hex()).as_bytes())
                .unwrap();
        }
        let (written, stored, hash) = writer.end().unwrap();
        assert_eq!(written.rows, 600_000);
        assert!(stored.0 > 2 * PIECE as u64, "{stored}");
        let mut reader = Reader::begin(&repo, &key).unwrap();
        while reader.next().unwrap().is_some() {}
        assert_eq!(reader.seen(), (written, stored, hash));
        let file = root.join(key.as_str());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[5_000_000] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut reader = Reader::begin(&repo, &key).unwrap();
        let read: Result<(), ReadError> = (|| {
            while reader.next()?.is_some() {}
            Ok(())
        })();
        assert!(read.is_err() || reader.seen() != (written, stored, hash));
    }
}
