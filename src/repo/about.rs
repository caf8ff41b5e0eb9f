//! What a repository says of itself: `repository.json`. Without it a directory is no repository, and nothing is stored in it: a disk that is not
//! mounted is not mistaken for an empty repository.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repo::seal::{self, FORMAT, SealError};
use crate::repo::{Repo, RepoError, RepoErrorKind, Result, layout};

/// `repository.json`: a sealed document, stored once when the repository is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    pub format: u32,
    /// Tells this repository from every other, also after it was moved.
    pub id: String,
    pub created: Timestamp,
    /// How its objects are encrypted; `None`: they lie in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// How the objects of a repository are encrypted. By which keys is not here, so that a rotation never writes this anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    pub cipher: Cipher,
    /// The format of an encrypted object.
    pub format: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

impl Encryption {
    /// What this pgherd writes.
    pub const OURS: Self = Self { cipher: Cipher::Aes256Gcm, format: 1 };
}

impl About {
    /// Describes a new repository, whose objects lie in the clear.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn new(created: Timestamp) -> Result<Self, getrandom::Error> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random)?;
        let id = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { format: FORMAT, id, created, encryption: None })
    }

    /// Describes the same repository, whose objects are encrypted from the first one on.
    #[must_use]
    pub fn encrypted(self) -> Self {
        Self { encryption: Some(Encryption::OURS), ..self }
    }

    pub fn write(&self) -> Vec<u8> {
        seal::write_document(self)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is damaged, or of another format.
    pub fn read(bytes: &[u8]) -> Result<Self, SealError> {
        seal::read_document(bytes)
    }

    /// Reads what `repo` says of itself.
    ///
    /// # Errors
    /// As the repository fails; [`RepoErrorKind::Missing`] when it says nothing, [`RepoErrorKind::Damaged`] as [`About::read`].
    pub async fn of(repo: &dyn Repo) -> Result<Self> {
        let failed = |kind, why: String| RepoError {
            kind,
            url: repo.url().to_owned(),
            doing: READING.to_owned(),
            why,
        };
        let bytes = repo.read(&layout::repository()).await?;
        let bytes = bytes.ok_or_else(|| failed(RepoErrorKind::Missing, "it is not there".to_owned()))?;
        Self::read(&bytes).map_err(|error| failed(RepoErrorKind::Damaged, error.to_string()))
    }

    /// Makes sure that the repository at `url` may be used without a key.
    ///
    /// # Errors
    /// [`RepoErrorKind::WrongKey`] when it is encrypted.
    pub fn expect_plain(&self, url: &str) -> Result<()> {
        if self.encryption.is_none() {
            return Ok(());
        }
        let why = "the repository is encrypted, and it is to be used without a key";
        Err(refused(url, RepoErrorKind::WrongKey, why.to_owned()))
    }

    /// Makes sure that the repository at `url` may be used with keys.
    ///
    /// # Errors
    /// When it lies in the clear, or is encrypted in a way that this pgherd does not know.
    pub fn expect_encrypted(&self, url: &str) -> Result<()> {
        let why = match self.encryption {
            Some(found) if found == Encryption::OURS => return Ok(()),
            Some(found) => format!(
                "its objects are encrypted in format {}, this pgherd reads format {}",
                found.format,
                Encryption::OURS.format
            ),
            None => "the repository was made without encryption, and it is to be used with a key; \
                     what is encrypted needs a repository of its own"
                .to_owned(),
        };
        Err(refused(url, RepoErrorKind::Other, why))
    }
}

const READING: &str = "read repository.json";

fn refused(url: &str, kind: RepoErrorKind, why: String) -> RepoError {
    RepoError { kind, url: url.to_owned(), doing: "use what is stored".to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = include_str!("../../tests/golden/repository-v1.json");
    const ENCRYPTED: &str = include_str!("../../tests/golden/repository-v1-encrypted.json");

    #[test]
    fn the_golden_repositories_read_and_write_byte_for_byte() {
        for (golden, encryption) in [(PLAIN, None), (ENCRYPTED, Some(Encryption::OURS))] {
            let about = About::read(golden.as_bytes()).unwrap();
            assert_eq!(about.created, "2026-11-21T10:02:03Z".parse().unwrap());
            assert_eq!(about.encryption, encryption);
            assert_eq!(String::from_utf8(about.write()).unwrap(), golden);
        }
    }

    #[test]
    fn an_encrypted_repository_is_not_used_without_a_key_and_a_plain_one_not_with_one() {
        let plain = About::read(PLAIN.as_bytes()).unwrap();
        let encrypted = About::read(ENCRYPTED.as_bytes()).unwrap();
        plain.expect_plain("file:///r").unwrap();
        encrypted.expect_encrypted("file:///r").unwrap();
        let without = encrypted.expect_plain("file:///r").unwrap_err();
        assert_eq!(without.kind, RepoErrorKind::WrongKey);
        assert!(without.why.contains("is encrypted"), "{without}");
        let with = plain.expect_encrypted("file:///r").unwrap_err();
        assert_eq!(with.kind, RepoErrorKind::Other);
        assert!(with.why.contains("made without encryption"), "{with}");
        let newer = Encryption { format: 2, ..Encryption::OURS };
        let newer = About { encryption: Some(newer), ..encrypted }.expect_encrypted("file:///r").unwrap_err();
        assert!(newer.why.contains("in format 2, this pgherd reads format 1"), "{newer}");
    }
}
