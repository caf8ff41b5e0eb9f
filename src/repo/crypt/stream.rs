//! An encrypted object: chunks, each authenticated in its place; docs/formats/encryption.md is the format.
//!
//! No I/O. Whatever is done to the bytes of an object, it is found when the chunk that they are in is opened: a bit flipped, an end cut off,
//! chunks dropped, added or exchanged, the whole of it moved to another name.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

use super::envelope::{DataKey, chance};
use crate::repo::Key;
use crate::repo::about::Encryption;

/// Bytes of the content in every chunk but the last.
pub const CHUNK: u64 = 65_536;
const TAG: u64 = 16;
/// A whole chunk as it is stored.
const STORED_CHUNK: u64 = CHUNK + TAG;
/// Bytes before the first chunk.
pub const HEADER: u64 = 72;
/// Bytes behind the last chunk.
const TRAILER: u64 = 16;

const BEGIN: &[u8; 8] = b"\x89PGHENC\n";
const END: &[u8; 8] = b"\x89PGHEND\n";

/// The header of an object, byte for byte.
pub type Header = [u8; HEADER as usize];

/// Why an encrypted object cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it is not encrypted, and everything of its kind is in this repository")]
    Clear,
    #[error("its header was changed")]
    Header,
    #[error("it is encrypted in format {0}, this pgherd reads format {ours}", ours = Encryption::OURS.format)]
    Format(u32),
    #[error("it is encrypted in chunks of {0} bytes, this pgherd reads chunks of {CHUNK}")]
    ChunkSize(u32),
    #[error("it was stored under another name, or with another data key")]
    Name,
    #[error("its end is missing, or something was added to it")]
    CutOff,
    #[error("it is not as long as its trailer says")]
    Length,
    #[error("its trailer was changed")]
    Trailer,
    #[error("its chunk {0} is not what was stored there")]
    Chunk(u64),
}

/// What an object's length says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub chunks: u64,
    /// Bytes of the content.
    pub content: u64,
}

impl Extent {
    fn of_content(content: u64) -> Self {
        Self { chunks: content.div_ceil(CHUNK).max(1), content }
    }

    /// Returns what is in an object of `stored` bytes; `None` if no whole object has so many.
    pub fn of_stored(stored: u64) -> Option<Self> {
        let body = stored.checked_sub(HEADER + TRAILER)?;
        let chunks = body.div_ceil(STORED_CHUNK).max(1);
        let found = Self { chunks, content: body.checked_sub(chunks * TAG)? };
        (Self::of_content(found.content) == found).then_some(found)
    }

    fn stored(self) -> u64 {
        HEADER + self.content + self.chunks * TAG + TRAILER
    }
}

/// Returns the size of the content of an object, to be shown; of one that is not whole something near it.
pub fn content_size(stored: u64) -> u64 {
    Extent::of_stored(stored).map_or(stored.saturating_sub(HEADER + TAG + TRAILER), |extent| extent.content)
}

/// Where the stored bytes of chunk `number` begin.
pub fn begin_of(number: u64) -> u64 {
    number.saturating_mul(STORED_CHUNK).saturating_add(HEADER)
}

/// Returns how many bytes must be asked for to have `chunks` chunks, and to see whether the last of them is the object's last: behind every
/// other one there is more than a trailer.
pub fn window_of(chunks: u64) -> u64 {
    chunks.saturating_mul(STORED_CHUNK).saturating_add(TRAILER + 1)
}

/// Takes what [`window_of`] asks for beyond the chunks off the end of what was found.
pub fn leave_what_is_behind(window: &mut Vec<u8>) {
    window.truncate(window.len().saturating_sub((TRAILER + 1) as usize));
}

/// The key of an object that is there, and its header.
pub struct ObjectKey {
    cipher: LessSafeKey,
    header: Header,
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectKey").finish_non_exhaustive()
    }
}

impl ObjectKey {
    /// Returns the key of the object `name` that begins with `header`.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn of(data_key: &DataKey, name: &Key, header: &Header) -> Result<Self, Damage> {
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| header[at + n]));
        match (header[..8] == *BEGIN, header[64..] == sum(header)) {
            (true, true) => {}
            (false, false) => return Err(Damage::Clear),
            (true, false) | (false, true) => return Err(Damage::Header),
        }
        if number(8) != Encryption::OURS.format {
            return Err(Damage::Format(number(8)));
        }
        if u64::from(number(12)) != CHUNK {
            return Err(Damage::ChunkSize(number(12)));
        }
        let (cipher, tag) = derive(data_key, &header[16..48], name);
        if header[48..64] == tag { Ok(Self { cipher, header: *header }) } else { Err(Damage::Name) }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Opens a whole object, in the memory that it is in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, mut object: Vec<u8>) -> Result<Vec<u8>, Damage> {
        let stored = object.len() as u64;
        take_trailer(&mut object, stored)?;
        self.open_chunks(&mut object, self.header.len(), 0, true)?;
        Ok(object)
    }

    /// Encrypts a chunk into `stored`, which is longer by a tag.
    fn seal_chunk(&self, number: u64, is_last: bool, content: &[u8], stored: &mut [u8]) {
        let (text, tag) = stored.split_at_mut(content.len());
        self.cipher
            .seal_out_of_place_scatter(nonce(number, is_last), self.bound(), content, text, &[], tag)
            .expect("a chunk is not too long for the cipher");
    }

    /// Opens the chunks that `bytes` holds from `from` on, of which the first is `first`, and leaves their content alone in it. `ends`: the last
    /// one is the object's last.
    ///
    /// # Errors
    /// [`Damage::Chunk`], the first that is not what was stored there.
    pub fn open_chunks(
        &self,
        bytes: &mut Vec<u8>,
        from: usize,
        first: u64,
        ends: bool,
    ) -> Result<(), Damage> {
        let (mut at, mut done, mut number) = (from, 0, first);
        while at < bytes.len() {
            let end = bytes.len().min(at + STORED_CHUNK as usize);
            let is_last = ends && end == bytes.len();
            let opened = self.cipher.open_within(
                nonce(number, is_last),
                self.bound(),
                &mut bytes[done..end],
                at - done..,
            );
            done += opened.map_err(|_| Damage::Chunk(number))?.len();
            (at, number) = (end, number + 1);
        }
        bytes.truncate(done);
        Ok(())
    }

    fn bound(&self) -> Aad<&Header> {
        Aad::from(&self.header)
    }
}

/// The key of an object that is about to be made. It encrypts one content and is gone: the same key on another would give both away.
#[derive(Debug)]
pub struct NewObject(ObjectKey);

impl NewObject {
    /// Makes a key that no other object has ever had.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate(data_key: &DataKey, name: &Key) -> Result<Self, getrandom::Error> {
        let salt: [u8; 32] = chance()?;
        let (cipher, tag) = derive(data_key, &salt, name);
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(BEGIN);
        header[8..12].copy_from_slice(&Encryption::OURS.format.to_le_bytes());
        header[12..16].copy_from_slice(&(CHUNK as u32).to_le_bytes());
        header[16..48].copy_from_slice(&salt);
        header[48..64].copy_from_slice(&tag);
        let sum = sum(&header);
        header[64..].copy_from_slice(&sum);
        Ok(Self(ObjectKey { cipher, header }))
    }

    /// Encrypts the object as a whole.
    pub fn seal(self, content: &[u8]) -> Vec<u8> {
        let Self(key) = self;
        let extent = Extent::of_content(content.len() as u64);
        let mut object = vec![0; extent.stored() as usize];
        object[..key.header.len()].copy_from_slice(&key.header);
        let (mut at, mut rest) = (key.header.len(), content);
        for number in 0..extent.chunks {
            let (chunk, behind) = rest.split_at(rest.len().min(CHUNK as usize));
            let end = at + chunk.len() + TAG as usize;
            key.seal_chunk(number, number + 1 == extent.chunks, chunk, &mut object[at..end]);
            (at, rest) = (end, behind);
        }
        object[at..].copy_from_slice(&trailer(extent.content));
        object
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Derives the key of an object, and what tells in its header that this is the key.
fn derive(data_key: &DataKey, salt: &[u8], name: &Key) -> (LessSafeKey, [u8; 16]) {
    let info = [name.as_str().as_bytes()];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(data_key.bytes());
    let mut derived = [0; 48];
    let filled = extracted.expand(&info, Length(derived.len())).and_then(|made| made.fill(&mut derived));
    filled.expect("48 bytes are no more than HKDF gives");
    let (key, tag) = derived.split_at(32);
    let key = UnboundKey::new(&AES_256_GCM, key).expect("the first part has 32 bytes");
    (LessSafeKey::new(key), tag.try_into().expect("the second part has 16 bytes"))
}

/// Tells a header that was changed from what is no header at all. No protection: whoever changes a header can change this too.
fn sum(header: &Header) -> [u8; 8] {
    let sum = digest(&SHA256, &header[8..64]);
    std::array::from_fn(|n| sum.as_ref()[n])
}

fn nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&number.to_be_bytes());
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

fn trailer(content: u64) -> [u8; TRAILER as usize] {
    let mut trailer = [0; TRAILER as usize];
    trailer[..8].copy_from_slice(&content.to_le_bytes());
    trailer[8..].copy_from_slice(END);
    trailer
}

/// Takes the trailer off the end of `bytes`, which are the end of an object of `stored` bytes.
///
/// # Errors
/// When no whole object ends like that.
pub fn take_trailer(bytes: &mut Vec<u8>, stored: u64) -> Result<Extent, Damage> {
    let extent = Extent::of_stored(stored).ok_or(Damage::CutOff)?;
    let begin = bytes.len().checked_sub(TRAILER as usize).ok_or(Damage::CutOff)?;
    let (expected, found) = (trailer(extent.content), &bytes[begin..]);
    match (found[..8] == expected[..8], found[8..] == expected[8..]) {
        (true, true) => {}
        (false, false) => return Err(Damage::CutOff),
        (false, true) => return Err(Damage::Length),
        (true, false) => return Err(Damage::Trailer),
    }
    bytes.truncate(begin);
    Ok(extent)
}

/// Takes the header off what an object begins with.
///
/// # Errors
/// When that is too short.
pub fn header_of(object: &[u8]) -> Result<Header, Damage> {
    let is_ours = object.starts_with(BEGIN) || BEGIN.starts_with(object);
    let short = if is_ours { Damage::CutOff } else { Damage::Clear };
    object.first_chunk().copied().ok_or(short)
}

/// Whole chunks that are sealed before they are handed on.
const AT_ONCE: u64 = 16;

/// An object that is encrypted piece by piece, in constant memory.
#[derive(Debug)]
pub struct Sealing {
    key: ObjectKey,
    number: u64,
    content: u64,
    /// The beginning of the next chunk; it may be a whole one, as long as nobody knows whether it is the last.
    pending: Vec<u8>,
    /// What is sealed and was not handed on, up to `filled`.
    sealed: Vec<u8>,
    filled: usize,
}

impl Sealing {
    pub fn begin(object: NewObject) -> Self {
        let NewObject(key) = object;
        let mut sealed = vec![0; (HEADER + AT_ONCE * STORED_CHUNK + TRAILER) as usize];
        sealed[..key.header.len()].copy_from_slice(&key.header);
        let filled = key.header.len();
        Self { key, number: 0, content: 0, pending: Vec::new(), sealed, filled }
    }

    /// Takes content until there is something to hand on or nothing to take, and returns what it has not taken. What [`Sealing::sealed`] has
    /// returned before counts as handed on.
    pub fn take<'c>(&mut self, mut content: &'c [u8]) -> &'c [u8] {
        const WHOLE: usize = CHUNK as usize;
        self.hand_on();
        while !content.is_empty() && !self.is_full() {
            if self.pending.is_empty() && content.len() > WHOLE {
                let (chunk, rest) = content.split_at(WHOLE);
                self.seal(chunk, false);
                content = rest;
            } else if self.pending.len() == WHOLE {
                self.seal_pending(false);
            } else {
                let (piece, rest) = content.split_at(content.len().min(WHOLE - self.pending.len()));
                self.pending.extend_from_slice(piece);
                content = rest;
            }
        }
        content
    }

    fn is_full(&self) -> bool {
        self.sealed.len() - self.filled < (STORED_CHUNK + TRAILER) as usize
    }

    /// Returns what is to be handed on: nothing, as long as it is little.
    pub fn sealed(&self) -> &[u8] {
        if self.is_full() { &self.sealed[..self.filled] } else { &[] }
    }

    fn hand_on(&mut self) {
        if self.is_full() {
            self.filled = 0;
        }
    }

    /// Ends the object and returns the rest of it; as [`Sealing::take`].
    pub fn end(mut self) -> Vec<u8> {
        self.hand_on();
        self.seal_pending(true);
        self.sealed.truncate(self.filled);
        self.sealed.extend_from_slice(&trailer(self.content));
        self.sealed
    }

    fn seal_pending(&mut self, is_last: bool) {
        let mut pending = std::mem::take(&mut self.pending);
        self.seal(&pending, is_last);
        pending.clear();
        self.pending = pending;
    }

    fn seal(&mut self, chunk: &[u8], is_last: bool) {
        let end = self.filled + chunk.len() + TAG as usize;
        self.key.seal_chunk(self.number, is_last, chunk, &mut self.sealed[self.filled..end]);
        self.filled = end;
        self.number += 1;
        self.content += chunk.len() as u64;
    }
}

#[cfg(test)]
mod tests;
