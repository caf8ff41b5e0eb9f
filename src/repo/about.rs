//! What a repository says of itself: `repository.json`. Without it a directory is no repository, and nothing is stored in it: a disk that is not
//! mounted is not mistaken for an empty repository.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repo::seal::{self, FORMAT, SealError};

/// `repository.json`: a sealed document, stored once when the repository is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    pub format: u32,
    /// Tells this repository from every other, also after it was moved.
    pub id: String,
    pub created: Timestamp,
}

impl About {
    /// Describes a new repository.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn new(created: Timestamp) -> Result<Self, getrandom::Error> {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random)?;
        let id = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { format: FORMAT, id, created })
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_repository_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../tests/golden/repository-v1.json");
        let about = About::read(golden.as_bytes()).unwrap();
        assert_eq!(about.created, "2026-11-21T10:02:03Z".parse().unwrap());
        assert_eq!(String::from_utf8(about.write()).unwrap(), golden);
    }
}
