//! The primary record: who is primary, since which timeline. Never expires; docs/formats/repository.md.
//!
//! What stands in it counts only up: each new primary, timeline or system identifier is a new term.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::ClusterKeys;
use crate::repo::seal::{self, FORMAT};
use crate::repo::{Put, Repo, RepoError, RepoErrorKind, Result, Version};

/// `primary.json`: a sealed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrimaryRecord {
    pub format: u32,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    /// Name within the cluster: `a`.
    pub node: String,
    pub timeline: TimelineId,
    /// Counts from 1; raised with each change.
    pub term: u64,
    pub since: Timestamp,
    /// The operation that made it primary, or found that it is.
    pub operation: String,
}

/// Who is primary, as an operation knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Primary<'a> {
    pub system_identifier: SystemIdentifier,
    pub node: &'a str,
    pub timeline: TimelineId,
}

impl PrimaryRecord {
    /// Tells whether the record says this.
    pub fn says(&self, primary: Primary<'_>) -> bool {
        self.system_identifier == primary.system_identifier
            && self.node == primary.node
            && self.timeline == primary.timeline
    }
}

/// Reads the record of a cluster; `None` if there is none.
///
/// # Errors
/// As the repository fails, or when the record is damaged.
pub async fn read(repo: &dyn Repo, cluster: &str) -> Result<Option<PrimaryRecord>> {
    Ok(read_versioned(repo, cluster).await?.map(|(record, _)| record))
}

async fn read_versioned(repo: &dyn Repo, cluster: &str) -> Result<Option<(PrimaryRecord, Version)>> {
    let key = ClusterKeys::new(cluster).primary();
    let Some((bytes, version)) = repo.read_versioned(&key).await? else { return Ok(None) };
    let record = seal::read_document(&bytes).map_err(|error| RepoError {
        kind: RepoErrorKind::Damaged,
        url: repo.url().to_owned(),
        doing: format!("read {key}"),
        why: error.to_string(),
    })?;
    Ok(Some((record, version)))
}

/// Records who is primary, and returns the record; one that says so already stays as it is.
///
/// # Errors
/// As the repository fails; [`RepoErrorKind::Passing`] when somebody else writes it at the same time.
pub async fn record(
    repo: &dyn Repo,
    cluster: &str,
    primary: Primary<'_>,
    operation: &str,
) -> Result<PrimaryRecord> {
    let key = ClusterKeys::new(cluster).primary();
    let found = read_versioned(repo, cluster).await?;
    let term = match &found {
        Some((record, _)) if record.says(primary) => return Ok(record.clone()),
        Some((record, _)) => record.term + 1,
        None => 1,
    };
    let record = PrimaryRecord {
        format: FORMAT,
        cluster: cluster.to_owned(),
        system_identifier: primary.system_identifier,
        node: primary.node.to_owned(),
        timeline: primary.timeline,
        term,
        since: Timestamp::now(),
        operation: operation.to_owned(),
    };
    let bytes = seal::write_document(&record);
    let put = match &found {
        Some((_, version)) => repo.replace_if(&key, &bytes, version).await?,
        None => repo.create(&key, &bytes).await?,
    };
    match put {
        Put::Stored => Ok(record),
        Put::Refused => Err(RepoError {
            kind: RepoErrorKind::Passing,
            url: repo.url().to_owned(),
            doing: format!("store {key}"),
            why: "somebody else changed it at the same time".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::dir::DirRepo;
    use crate::repo::wait;

    fn primary(node: &str, timeline: u32) -> Primary<'_> {
        Primary {
            system_identifier: SystemIdentifier::new(7).unwrap(),
            node,
            timeline: TimelineId::new(timeline).unwrap(),
        }
    }

    #[test]
    fn each_new_primary_or_timeline_is_a_new_term() {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        let term = |wanted| wait(Box::pin(record(&repo, "inventory", wanted, "7f3a"))).unwrap().term;
        assert_eq!(wait(Box::pin(read(&repo, "inventory"))).unwrap(), None);
        assert_eq!([term(primary("a", 1)), term(primary("a", 1)), term(primary("b", 2))], [1, 1, 2]);
        assert_eq!(term(primary("b", 3)), 3);
        assert_eq!(wait(Box::pin(read(&repo, "inventory"))).unwrap().unwrap().node, "b");
    }

    #[test]
    fn the_golden_record_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../tests/golden/primary-v1.json");
        let record: PrimaryRecord = seal::read_document(golden.as_bytes()).unwrap();
        assert_eq!(record.term, 4);
        assert_eq!(String::from_utf8(seal::write_document(&record)).unwrap(), golden);
    }
}
