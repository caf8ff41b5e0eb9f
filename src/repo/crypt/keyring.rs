//! The keys of a repository that somebody has: which one wraps, which ones open.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::hex::{self, Hex};
use crate::secret::Secret;

/// What tells one repository key from another, without telling the key.
pub type KeyId = Hex<8>;

/// A key of a repository: 256 bits by chance. It wraps data keys and encrypts nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct RepositoryKey([u8; 32]);

/// The text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    #[error("no key is given")]
    Empty,
    #[error(
        "key {0} is neither 64 hexadecimal digits nor 44 characters of base64, which is 32 bytes by chance: openssl rand -hex 32"
    )]
    NoKey(usize),
}

impl RepositoryKey {
    fn parse(text: &str) -> Option<Self> {
        match text.len() {
            64 => hex::bytes_of(text).map(Self),
            44 => STANDARD.decode(text).ok()?.try_into().ok().map(Self),
            _ => None,
        }
    }

    pub fn id(&self) -> KeyId {
        let hash = blake3::derive_key("pgherd 2026 repository key id", &self.0);
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Hex(id)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepositoryKey({})", self.id())
    }
}

/// The repository keys that somebody has, at least one. New data keys are wrapped with the first; the others only open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    first: RepositoryKey,
    others: Vec<RepositoryKey>,
}

impl Keyring {
    /// Takes keys as they were written down; white space around one does not count, nor does one that is there twice.
    ///
    /// # Errors
    /// When there is none, or one is anything but 32 bytes in hexadecimal or base64. Says which, and nothing of what it is.
    pub fn parse(texts: &[Secret]) -> Result<Self, KeyringError> {
        let mut keys: Vec<RepositoryKey> = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let key =
                RepositoryKey::parse(text.reveal().trim_ascii()).ok_or(KeyringError::NoKey(index + 1))?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or(KeyringError::Empty)?;
        Ok(Self { first, others: keys.collect() })
    }

    /// Returns the key that new data keys are wrapped with.
    pub fn first(&self) -> &RepositoryKey {
        &self.first
    }

    /// Returns all of them, the first one first.
    pub fn keys(&self) -> impl Iterator<Item = &RepositoryKey> {
        std::iter::once(&self.first).chain(&self.others)
    }

    pub fn ids(&self) -> Vec<KeyId> {
        self.keys().map(RepositoryKey::id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn parse(texts: &[&str]) -> Result<Keyring, KeyringError> {
        Keyring::parse(&texts.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>())
    }

    #[test]
    fn a_key_is_the_same_in_either_writing() {
        let keyring = parse(&[HEX]).unwrap();
        for text in [BASE64, &HEX.to_uppercase(), &format!(" {HEX}\n")] {
            assert_eq!(parse(&[text]).unwrap(), keyring, "{text:?}");
        }
        assert_eq!(parse(&[HEX, BASE64]).unwrap(), keyring, "one that is there twice is one");
        assert_eq!(keyring.first().bytes(), &std::array::from_fn(|n| n as u8));
        assert_eq!(keyring.first().id().to_string().len(), 16);
    }

    #[test]
    fn the_first_one_wraps_and_all_of_them_open() {
        let other = HEX.replace('0', "f");
        let keyring = parse(&[&other, HEX]).unwrap();
        assert_eq!(keyring.first(), parse(&[&other]).unwrap().first());
        assert_eq!(keyring.ids().len(), 2);
    }

    #[test]
    fn anything_but_32_bytes_is_refused_and_not_shown() {
        let words = "correct horse battery staple";
        for text in [
            "",
            words,
            &HEX[..62],
            &format!("{HEX}00"),
            &HEX.replace('f', "g"),
            &BASE64[..43],
            &BASE64.replace('=', "A"),
            &BASE64.replace('A', "-"),
        ] {
            let error = parse(&[HEX, text]).unwrap_err();
            assert_eq!(error, KeyringError::NoKey(2), "{text:?}");
            assert!(text.is_empty() || !error.to_string().contains(text));
        }
        assert_eq!(parse(&[]), Err(KeyringError::Empty));
    }

    #[test]
    fn a_keyring_shows_which_keys_it_has_and_never_what_they_are() {
        let shown = format!("{:?}", parse(&[HEX]).unwrap());
        assert!(shown.contains(&parse(&[HEX]).unwrap().first().id().to_string()));
        assert!(!shown.contains("0001") && !shown.contains("0, 1"), "{shown}");
    }
}
