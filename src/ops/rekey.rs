//! The exchange of a repository's key, from a host of a cluster that uses it: every data key is wrapped by the new one too, then by it alone. No
//! data is written anew.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply::access;
use crate::ops::context::Context;
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::Doors;
use crate::ops::plan::AccessSeen;
use crate::repo::crypt::rekey::{Half, Rekeyed};
use crate::topology::model::{Cluster, Herd, Repository};

/// Does one half of the exchange for the repository `name`.
///
/// # Errors
/// [`ErrorKind::Refused`] when it is not encrypted, or a host does not have the declared keys yet: what is wrapped by the new one alone would be closed to
/// it; [`ErrorKind::NotFound`] when no cluster uses it, or a host does not answer; otherwise as the repository fails.
pub async fn rekey(context: &Context, herd: &Herd, name: &str, half: Half) -> Result<Rekeyed> {
    let users: Vec<(&Cluster, &Repository)> = herd
        .clusters
        .iter()
        .flat_map(|cluster| {
            let backups = cluster.backups.iter();
            backups
                .flat_map(move |backups| backups.repositories().map(move |repository| (cluster, repository)))
        })
        .filter(|(_, repository)| repository.name == name)
        .collect();
    let Some((cluster, repository)) = users.first() else {
        let mut error =
            Error::new(ErrorKind::NotFound, format!("no cluster keeps its backups in a repository {name:?}"));
        let names: BTreeSet<&str> = herd.repositories.iter().map(|known| known.name.as_str()).collect();
        if !names.is_empty() {
            error = error.detail(format!("Declared: {}.", names.into_iter().collect::<Vec<_>>().join(", ")));
        }
        return Err(error);
    };
    if !repository.is_encrypted() {
        return Err(Error::refused(format!("repository {name} is not encrypted"))
            .hint("What is to be encrypted needs a repository of its own, made with: encrypt: {env: PGHERD_REPO_KEY}"));
    }
    for (cluster, repository) in &users {
        has_the_keys(context, cluster, repository).await?;
    }
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let door = NodeDoor::with(&doors, &cluster.preferred().host, &context.build).await?;
    Ok(node::rekey(&door, repository, half).await?)
}

/// Sees that every host of a cluster has the declared keys.
async fn has_the_keys(context: &Context, cluster: &Cluster, repository: &Repository) -> Result<()> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let hosts: BTreeSet<&String> = cluster.nodes.iter().map(|node| &node.host).collect();
    for host in hosts {
        match access::look(&doors, host, repository).await? {
            AccessSeen::Right | AccessSeen::NotNeeded => {}
            AccessSeen::Missing | AccessSeen::Differs => {
                return Err(Error::refused(format!(
                    "host {host} does not have the declared keys of repository {}",
                    repository.name
                ))
                .detail("What only the new key opens would be closed to it. Nothing was changed.")
                .hint("Bring them there, the new one and the one before: pgherd apply"));
            }
        }
    }
    Ok(())
}
