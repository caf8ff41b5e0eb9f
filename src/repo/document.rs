//! Reads a sealed document through a repository, and tells one that is damaged from one that could not be read.
//!
//! Whether the repository has found the damage itself, as one that decrypts does, or the document's hash, is all the same to whoever asks.

use serde::de::DeserializeOwned;

use super::seal::{self, SealError};
use super::{Key, Repo, RepoErrorKind, Result};

/// Reads a document; `None` if there is none.
///
/// # Errors
/// As the repository fails; a damaged document is no error here.
pub async fn read<T: DeserializeOwned>(repo: &dyn Repo, key: &Key) -> Result<Option<Result<T, SealError>>> {
    match repo.read(key).await {
        Ok(found) => Ok(found.map(|bytes| seal::read_document(&bytes))),
        Err(error) if error.kind == RepoErrorKind::Damaged => Ok(Some(Err(SealError::new(error.why)))),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::repo::dir::DirRepo;
    use crate::repo::faulty::{Fault, Faulty};
    use crate::repo::wait;

    #[test]
    fn what_is_damaged_is_told_from_what_is_not_there_and_what_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let inner = Arc::new(DirRepo::create(&directory.path().join("repository")).unwrap());
        let faulty = Faulty::new(inner, |_, _| None);
        let key = Key::new("inventory/lock.json").unwrap();
        let read = || wait(Box::pin(read::<serde_json::Value>(&faulty, &key)));
        assert_eq!(read(), Ok(None));
        wait(faulty.store(&key, &seal::write_document(&serde_json::json!({"format": 1})))).unwrap();
        assert!(matches!(read(), Ok(Some(Ok(_)))));
        wait(faulty.store(&key, b"{}")).unwrap();
        assert!(matches!(read(), Ok(Some(Err(_)))));
        let failing = |kind| faulty.now_decide(move |_, _| Some(Fault::Before(kind)));
        failing(RepoErrorKind::Damaged);
        assert!(matches!(read(), Ok(Some(Err(_)))));
        failing(RepoErrorKind::WrongKey);
        assert_eq!(read().unwrap_err().kind, RepoErrorKind::WrongKey);
    }
}
