//! Whether a new copy of the primary is read from a backup: where that is asked for, or less has to be read than the primary has.
//!
//! Reads only.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::db::promotion::Source;
use crate::db::queries::ServerFacts;
use crate::error::{Error, Result};
use crate::ops::context::Context;
use crate::ops::node::restore::{PlanForRestore, Target, Wish};
use crate::ops::node::{NodeDoor, NodeRequest, Priority};
use crate::ops::observe::Doors;
use crate::ops::rejoin::look;
use crate::ops::restore::survey::Survey;
use crate::repo::layout::Label;
use crate::topology::model::{Cluster, Node};
use crate::units::ByteCount;

/// How long the repository may take to say what it has, where nobody asked for a backup.
const LOOK: Duration = Duration::from_secs(10);

/// Where a new copy is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneFrom {
    /// The primary, by pg_basebackup.
    Primary,
    /// The newest backup that leads to the primary, and the archive.
    Backup,
}

/// A backup that is read in place of the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nearer {
    pub label: Label,
    /// What is read of the repository: the backup and the WAL after it, as they are stored.
    pub bytes: ByteCount,
}

/// Finds the backup that a new copy is to be read from; `None` for the primary.
///
/// # Errors
/// When a backup was asked for and none leads to the primary.
pub(super) async fn backup(
    context: &Context,
    (doors, cluster, node): (&Doors, &Cluster, &Node),
    primary: &ServerFacts,
    source: &Source,
    from: Option<CloneFrom>,
) -> Result<Option<Nearer>> {
    match from {
        Some(CloneFrom::Primary) => Ok(None),
        Some(CloneFrom::Backup) => find(context, (doors, cluster, node), primary).await.map(Some),
        None if cluster.backups.is_none() || source.has_tablespaces => Ok(None),
        None => {
            let found = tokio::time::timeout(LOOK, find(context, (doors, cluster, node), primary)).await;
            Ok(match found {
                Ok(Ok(found)) => Some(found).filter(|found| found.bytes < look::size(source)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no backup takes the place of the primary");
                    None
                }
                Err(_) => None,
            })
        }
    }
}

async fn find(
    context: &Context,
    (doors, cluster, node): (&Doors, &Cluster, &Node),
    primary: &ServerFacts,
) -> Result<Nearer> {
    let backups = cluster.backups.as_ref().ok_or_else(|| {
        Error::refused(format!("cannot make {} from a backup", cluster.full_name(&node.name)))
            .detail(format!("{} has no backups declared. Nothing was changed.", cluster.name))
            .hint("Clone the primary: --from primary")
    })?;
    let door = NodeDoor::if_installed(doors, &node.host, &context.build).await?;
    let request = NodeRequest::PlanForRestore(Box::new(PlanForRestore {
        repository: door.location(&backups.repository),
        cluster: cluster.name.clone(),
        system_identifier: Some(primary.system_identifier),
        wish: Wish { target: Target::Latest, timeline: None, backup: None },
        primary: Some(primary.timeline),
    }));
    let survey: Survey = door.call(&request, Priority::Normal, Arc::new(|_| ())).await?;
    let manifest = &survey.manifest;
    let bytes = ByteCount(manifest.stored.0 + manifest.files_stored.0 + survey.wal_stored.0);
    Ok(Nearer { label: survey.choice.backup.clone(), bytes })
}
