//! The rotation of a repository key: every key document is wrapped by the new one too, and then no longer by the others.
//!
//! Writes key documents and nothing else, each by a conditional put, so that at every moment each of them opens with the old or the new key, or both.
//! Needs no lock: two rotations at once, and backups that make key documents meanwhile, only have it look once more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::envelope::{EnvelopeError, KeyDocument};
use super::keyring::Keyring;
use super::protection::Protection;
use crate::repo::layout::{ClusterKeys, Label};
use crate::repo::{Key, Put, Repo, RepoError, RepoErrorKind, Result, catalog, dump};

/// How often a key document that others change meanwhile is looked at anew.
const TRIES: u32 = 100;

/// Which half of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// Wraps with the first key whatever it does not open yet.
    Add,
    /// The same, and leaves nothing that another key opens.
    DropOthers,
}

/// What a rotation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rekeyed {
    /// Key documents that there are.
    pub documents: u64,
    /// Those of them that were written anew.
    pub rewrapped: u64,
    /// Those that were as they should be.
    pub already: u64,
    /// Those that no key at hand opens, or that are damaged. They are as they were.
    pub failed: Vec<RepoError>,
}

enum Outcome {
    Rewrapped,
    Already,
    Gone,
}

/// Does one half of a rotation to the first key of `keyring`, until it finds nothing more to do.
///
/// `repo` is what lies below [`super::Encrypted`].
///
/// # Errors
/// As the repository fails: what was done by then stays, and running it again goes on. A key document that does not open is no error.
pub async fn rekey(repo: &dyn Repo, keyring: &Keyring, half: Half) -> Result<Rekeyed> {
    let mut rewrapped: BTreeSet<Key> = BTreeSet::new();
    loop {
        let (mut failed, mut already, mut is_quiet) = (Vec::new(), 0, true);
        for document in key_documents(repo).await? {
            match rewrap(repo, &document, keyring, half).await {
                Ok(Outcome::Rewrapped) => {
                    rewrapped.insert(document);
                    is_quiet = false;
                }
                Ok(Outcome::Already) if rewrapped.contains(&document) => {}
                Ok(Outcome::Already) => already += 1,
                Ok(Outcome::Gone) => {
                    rewrapped.remove(&document);
                }
                Err(error) if matches!(error.kind, RepoErrorKind::Damaged | RepoErrorKind::WrongKey) => {
                    rewrapped.remove(&document);
                    failed.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        if is_quiet {
            let rewrapped = rewrapped.len() as u64;
            let documents = rewrapped + already + failed.len() as u64;
            return Ok(Rekeyed { documents, rewrapped, already, failed });
        }
    }
}

/// Makes sure that `keyring` opens everything in a repository. What is damaged, and would open with no key, is left to a verification.
///
/// # Errors
/// As the repository fails; [`RepoErrorKind::WrongKey`] with the first key document that none of the keys opens.
pub async fn expect_to_open(repo: &dyn Repo, keyring: &Keyring) -> Result<()> {
    for name in key_documents(repo).await? {
        let Some(bytes) = repo.read(&name).await? else { continue };
        let opened = KeyDocument::read(&bytes, &name).and_then(|document| document.open(keyring));
        if let Err(wrong @ EnvelopeError::WrongKey { .. }) = opened {
            return Err(wrong.at(repo.url(), &format!("open {name}"), &name));
        }
    }
    Ok(())
}

/// Finds every key document of a repository, of which a backup that was just removed may have been one.
async fn key_documents(repo: &dyn Repo) -> Result<Vec<Key>> {
    let mut found = Vec::new();
    for name in repo.list(None).await?.folders {
        let cluster = ClusterKeys::new(&name);
        for system in catalog::systems(repo, &cluster).await? {
            let keys = cluster.system(system);
            let level = repo.list(Some(&keys.key_documents())).await?;
            let documents = level.objects.into_iter().map(|listed| listed.key);
            found.extend(documents.filter(|key| Protection::of(key) == Protection::KeyDocument));
            let folders = repo.list(Some(&keys.backups())).await?.folders;
            let labels = folders.iter().filter_map(|name| name.parse::<Label>().ok());
            found.extend(labels.map(|label| keys.backup(&label).key_document()));
        }
    }
    found.extend(dump::clusters(repo).await?.iter().map(|cluster| dump::key_document(cluster)));
    Ok(found)
}

async fn rewrap(repo: &dyn Repo, name: &Key, keyring: &Keyring, half: Half) -> Result<Outcome> {
    let doing = format!("rewrap {name}");
    let failed =
        |kind, why: String| RepoError { kind, url: repo.url().to_owned(), doing: doing.clone(), why };
    let unusable = |error: EnvelopeError| error.at(repo.url(), &doing, name);
    for _ in 0..TRIES {
        let Some((bytes, version)) = repo.read_versioned(name).await? else { return Ok(Outcome::Gone) };
        let document = KeyDocument::read(&bytes, name).map_err(unusable)?;
        let data_key = document.open(keyring).map_err(unusable)?;
        let mut next = document.clone();
        if !document.is_opened_by(keyring.first()) {
            let no_chance = |error: getrandom::Error| failed(RepoErrorKind::Other, error.to_string());
            next.wrap(&data_key, keyring.first()).map_err(no_chance)?;
        }
        match half {
            Half::Add => {}
            Half::DropOthers => next.leave_only(keyring.first()),
        }
        if next == document {
            return Ok(Outcome::Already);
        }
        if repo.replace_if(name, &next.write(), &version).await? == Put::Stored {
            return Ok(Outcome::Rewrapped);
        }
    }
    Err(failed(RepoErrorKind::Passing, "somebody else changes it again and again".to_owned()))
}
