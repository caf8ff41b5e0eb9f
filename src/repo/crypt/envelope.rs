//! Key documents: a data key, wrapped with each of the repository keys that may open it; docs/formats/encryption.md.
//!
//! No I/O. A rotation of the repository key writes key documents anew, and nothing else.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::keyring::{KeyId, Keyring, RepositoryKey};
use crate::repo::seal::{self, FORMAT, SealError};
use crate::repo::{Key, RepoError, RepoErrorKind};

/// What the objects of one backup, of one timeline's WAL, or of the rest are encrypted with.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// Makes one by chance.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        chance().map(Self)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(redacted)")
    }
}

/// Returns bytes by chance.
pub(super) fn chance<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// A key document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDocument {
    pub format: u32,
    /// Its own name in the repository, which is what each wrap is bound to.
    pub name: Key,
    /// The same data key, once a repository key.
    pub wraps: Vec<Wrap>,
}

/// A data key, encrypted with a repository key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    pub key: KeyId,
    pub nonce: Hex<12>,
    /// The 32 bytes of the data key and a tag of 16.
    pub wrapped: Hex<48>,
}

/// Why a key document gives no data key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("{0}")]
    Unreadable(SealError),
    #[error("it is the key document {0}, which was moved")]
    Moved(Key),
    #[error("what key {0} has wrapped was changed since")]
    Changed(KeyId),
    #[error("it is for key {}, and the keys given are {}", one_of(wanted), one_of(given))]
    WrongKey { wanted: Vec<KeyId>, given: Vec<KeyId> },
}

impl EnvelopeError {
    /// Says it of `document`, which was needed for `doing`.
    pub fn at(self, url: &str, doing: &str, document: &Key) -> RepoError {
        let kind = match self {
            Self::WrongKey { .. } => RepoErrorKind::WrongKey,
            Self::Unreadable(_) | Self::Moved(_) | Self::Changed(_) => RepoErrorKind::Damaged,
        };
        let why = format!("its key document {document} does not open: {self}");
        RepoError { kind, url: url.to_owned(), doing: doing.to_owned(), why }
    }
}

fn one_of(ids: &[KeyId]) -> String {
    ids.iter().map(KeyId::to_string).collect::<Vec<_>>().join(" or ")
}

impl KeyDocument {
    /// Wraps a data key with the first key of `keyring`.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn new(name: Key, data_key: &DataKey, keyring: &Keyring) -> Result<Self, getrandom::Error> {
        let mut document = Self { format: FORMAT, name, wraps: Vec::new() };
        document.wrap(data_key, keyring.first())?;
        Ok(document)
    }

    pub fn write(&self) -> Vec<u8> {
        seal::write_document(self)
    }

    /// Reads the document that lies under `name`.
    ///
    /// # Errors
    /// When it is damaged, of another format, or another document.
    pub fn read(bytes: &[u8], name: &Key) -> Result<Self, EnvelopeError> {
        let document: Self = seal::read_document(bytes).map_err(EnvelopeError::Unreadable)?;
        if document.name == *name { Ok(document) } else { Err(EnvelopeError::Moved(document.name)) }
    }

    /// Opens it with whichever key of `keyring` does.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongKey`] when it is wrapped with none of them, [`EnvelopeError::Changed`] when what is wrapped is not what was.
    pub fn open(&self, keyring: &Keyring) -> Result<DataKey, EnvelopeError> {
        let mut changed = None;
        for key in keyring.keys() {
            let id = key.id();
            for wrap in self.wraps.iter().filter(|wrap| wrap.key == id) {
                match self.unwrap(wrap, key) {
                    Some(data_key) => return Ok(data_key),
                    None => changed = Some(id),
                }
            }
        }
        Err(match changed {
            Some(id) => EnvelopeError::Changed(id),
            None => EnvelopeError::WrongKey {
                wanted: self.wraps.iter().map(|wrap| wrap.key).collect(),
                given: keyring.ids(),
            },
        })
    }

    /// Tells whether `key` opens it.
    pub fn is_opened_by(&self, key: &RepositoryKey) -> bool {
        let id = key.id();
        self.wraps.iter().any(|wrap| wrap.key == id && self.unwrap(wrap, key).is_some())
    }

    /// Adds a wrap of `data_key`, which must be what it holds, by `key`, in front and in the place of one that does not open.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn wrap(&mut self, data_key: &DataKey, key: &RepositoryKey) -> Result<(), getrandom::Error> {
        let (id, nonce) = (key.id(), chance()?);
        let mut wrapped = [0; 48];
        let (text, tag) = wrapped.split_at_mut(32);
        text.copy_from_slice(data_key.bytes());
        let made = cipher(key)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), self.bound(), text)
            .expect("32 bytes are not too long for the cipher");
        tag.copy_from_slice(made.as_ref());
        self.wraps.retain(|wrap| wrap.key != id);
        self.wraps.insert(0, Wrap { key: id, nonce: Hex(nonce), wrapped: Hex(wrapped) });
        Ok(())
    }

    /// Leaves only what `key` has wrapped.
    pub fn leave_only(&mut self, key: &RepositoryKey) {
        let id = key.id();
        self.wraps.retain(|wrap| wrap.key == id);
    }

    fn unwrap(&self, wrap: &Wrap, key: &RepositoryKey) -> Option<DataKey> {
        let mut wrapped = wrap.wrapped.0;
        let nonce = Nonce::assume_unique_for_key(wrap.nonce.0);
        let opened = cipher(key).open_in_place(nonce, self.bound(), &mut wrapped).ok()?;
        Some(DataKey((&*opened).try_into().ok()?))
    }

    fn bound(&self) -> Aad<&[u8]> {
        Aad::from(self.name.as_str().as_bytes())
    }
}

fn cipher(key: &RepositoryKey) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.bytes()).expect("a repository key has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn keyring(digits: &[char]) -> Keyring {
        let secret = |digit: &char| Secret::new(digit.to_string().repeat(64));
        Keyring::parse(&digits.iter().map(secret).collect::<Vec<_>>()).unwrap()
    }

    fn name() -> Key {
        Key::new("inventory/7/key/rest.json").unwrap()
    }

    fn document() -> (DataKey, KeyDocument) {
        let data_key = DataKey::generate().unwrap();
        let document = KeyDocument::new(name(), &data_key, &keyring(&['1'])).unwrap();
        (data_key, document)
    }

    #[test]
    fn a_data_key_comes_back_from_its_document() {
        let (data_key, document) = document();
        let read = KeyDocument::read(&document.write(), &name()).unwrap();
        assert_eq!(read, document);
        assert!(read.open(&keyring(&['2', '1'])).unwrap() == data_key);
        assert_ne!(document.write(), KeyDocument::new(name(), &data_key, &keyring(&['1'])).unwrap().write());
    }

    #[test]
    fn a_wrong_key_is_told_with_the_one_that_is_wanted() {
        let (_, document) = document();
        let given = keyring(&['2', '3']);
        let error = document.open(&given).unwrap_err();
        assert_eq!(
            error,
            EnvelopeError::WrongKey { wanted: keyring(&['1']).ids(), given: given.ids() },
            "{error}"
        );
        assert!(error.to_string().contains(" or "), "{error}");
    }

    #[test]
    fn every_flipped_bit_of_a_document_is_found_and_so_is_one_that_is_cut_off() {
        let (_, document) = document();
        let bytes = document.write();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(KeyDocument::read(&flipped, &name()), Err(EnvelopeError::Unreadable(_))),
                "{bit}"
            );
        }
        for length in 0..bytes.len() {
            let cut = KeyDocument::read(&bytes[..length], &name());
            assert!(matches!(cut, Err(EnvelopeError::Unreadable(_))), "{length}");
        }
    }

    #[test]
    fn what_is_wrapped_cannot_be_changed_even_with_a_fitting_hash() {
        let (_, document) = document();
        for byte in 0..48 {
            let mut changed = document.clone();
            changed.wraps[0].wrapped.0[byte] ^= 1;
            assert_eq!(changed.open(&keyring(&['1'])), Err(EnvelopeError::Changed(keyring(&['1']).ids()[0])));
            assert!(!changed.is_opened_by(keyring(&['1']).first()));
        }
        let mut changed = document.clone();
        changed.wraps[0].nonce.0[0] ^= 1;
        assert!(matches!(changed.open(&keyring(&['1'])), Err(EnvelopeError::Changed(_))));
    }

    #[test]
    fn a_document_that_was_moved_does_not_open() {
        let (_, document) = document();
        let other = Key::new("inventory/7/key/wal-00000001.json").unwrap();
        assert_eq!(KeyDocument::read(&document.write(), &other), Err(EnvelopeError::Moved(name())));
        let renamed = KeyDocument { name: other, ..document };
        assert!(matches!(renamed.open(&keyring(&['1'])), Err(EnvelopeError::Changed(_))));
    }

    #[test]
    fn a_second_wrap_opens_as_well_until_it_alone_is_left() {
        let (data_key, mut document) = document();
        let (old, new) = (keyring(&['1']), keyring(&['2']));
        document.wrap(&data_key, new.first()).unwrap();
        document.wrap(&data_key, new.first()).unwrap();
        assert_eq!(document.wraps.len(), 2);
        assert!(document.open(&old).unwrap() == data_key && document.open(&new).unwrap() == data_key);
        document.leave_only(new.first());
        assert!(document.open(&new).unwrap() == data_key);
        assert!(matches!(document.open(&old), Err(EnvelopeError::WrongKey { .. })));
    }

    #[test]
    fn the_golden_document_opens() {
        let golden = include_str!("../../../tests/golden/key-v1.json");
        let name = Key::new("inventory/7398812045532218841/key/wal-00000002.json").unwrap();
        let document = KeyDocument::read(golden.as_bytes(), &name).unwrap();
        let data_key = document.open(&keyring(&['1'])).unwrap();
        assert_eq!(data_key.bytes(), &[7; 32]);
        assert_eq!(String::from_utf8(document.write()).unwrap(), golden);
    }
}
