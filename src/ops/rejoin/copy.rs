//! A new copy of the primary in the node's place, read from it or from a backup; what was there is renamed and never removed.

use std::path::Path;
use std::sync::Arc;

use crate::db::queries;
use crate::engine::lease::{Held, Purpose};
use crate::engine::step::{Progress, Unit};
use crate::error::{Error, Result};
use crate::host::HostError;
use crate::ops::certificate::{self, Holder};
use crate::ops::in_place::aside;
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::{self, Claim};
use crate::ops::provision::{self, Site};
use crate::ops::rejoin::evidence::Evidence;
use crate::ops::rejoin::world::World;
use crate::ops::rejoin::{quarantine, rewind};
use crate::ops::restore::fill::{self, Filling};
use crate::pg::system::SystemIdentifier;
use crate::repo::layout::{ClusterKeys, Label};
use crate::topology::declared::NodeWish;

/// Sets aside what the node has and copies the primary, or what a backup has of it.
pub(super) async fn clone(
    world: &World,
    node: &str,
    backup: Option<&Label>,
    progress: Progress<'_>,
) -> Result<Evidence> {
    let (site, primary) = (world.site(node)?, world.primary()?);
    let system_identifier = match made(&site).await? {
        Some(system_identifier) => system_identifier,
        None => {
            provision::stop_within(&site, quarantine::STOP).await?;
            provision::end_leftovers(&site).await?;
            if is_there(&site, &site.node.data_directory).await? {
                aside::set_aside(&site, std::slice::from_ref(&site.node.data_directory)).await?;
            }
            let wish = world.succession.wish(site.node, &world.succession.input.to)?;
            match backup {
                Some(label) => from_backup(&site, &primary, &wish, label).await?,
                None => {
                    let told =
                        |done: u64, total: u64| (progress.0)(done << 10, Some(total << 10), Unit::Bytes);
                    provision::clone(&site, primary.node, &wish, &told).await?
                }
            }
        }
    };
    // What is the node's own comes from itself and not from the primary.
    rewind::give_back(&site).await?;
    let old = aside::aside(&site.node.data_directory, site.operation);
    let aside = is_there(&site, &old).await?.then_some(old);
    Ok(Evidence::Cloned { system_identifier, aside, backup: backup.cloned() })
}

/// Fills the node's directory from a backup, which nobody may remove meanwhile; the archive and the primary give it the rest when it starts.
async fn from_backup(
    site: &Site<'_>,
    primary: &Site<'_>,
    wish: &NodeWish<'_>,
    label: &Label,
) -> Result<SystemIdentifier> {
    let Some(backups) = &site.cluster.backups else {
        return Err(Error::refused(format!("{} has no backups declared", site.cluster.name)));
    };
    let system_identifier = queries::server_facts(&primary.connect().await?).await?.system_identifier;
    provision::claim_directory(site).await?;
    provision::copy_passfile(site, primary.node).await?;
    certificate::equip(site.doors, site.cluster, Holder::Node(site.node)).await?;
    let door = NodeDoor::open(site.doors, &site.node.host).await?;
    let repo = node::repository(&door, &backups.repository).await?;
    let keys = ClusterKeys::new(&site.cluster.name).system(system_identifier);
    let held = Held::take_to_use(&repo, &keys, Purpose::Restore, vec![label.clone()]).await?;
    let filling = Filling {
        repository: &backups.repository,
        system_identifier,
        label,
        tablespaces: Vec::new(),
        workers: 0,
    };
    let filled = tokio::select! {
        biased;
        why = held.lost() => Err(why),
        filled = fill::fill(&door, site, wish, filling, Arc::new(|_| ())) => filled,
    };
    if let Err(error) = held.release().await {
        tracing::warn!(%error, "could not give the lease back; it expires by itself");
    }
    filled?;
    provision::complete_claim(site, wish.memory).await
}

/// Tells whether this operation has cloned the node: the marker gets the system identifier last.
async fn made(site: &Site<'_>) -> Result<Option<SystemIdentifier>> {
    match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::Ours(marker) if marker.operation == site.operation => Ok(marker.system_identifier),
        Claim::Ours(_) => Ok(None),
        Claim::None | Claim::Other(_) => Err(Error::refused(format!(
            "no marker of {} claims {}",
            site.name(),
            site.node.data_directory.display()
        ))),
        Claim::Unknown { why } => {
            Err(Error::failed(format!("cannot read the marker of {}", site.name())).detail(why))
        }
    }
}

/// Removes the copy, and gives what was there its name back.
pub(super) async fn undo(world: &World, node: &str) -> Result<()> {
    let site = world.site(node)?;
    provision::remove_made(&site).await?;
    aside::put_back(&site, std::slice::from_ref(&site.node.data_directory)).await
}

async fn is_there(site: &Site<'_>, path: &Path) -> Result<bool> {
    let found = site.host().stat(path).await.map_err(|error: HostError| {
        Error::failed(format!("could not look at {}", path.display())).source(error)
    })?;
    Ok(found.is_some())
}
