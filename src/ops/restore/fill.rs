//! A standby's data directory filled from a backup and dressed as the node's own: what `restore --to-node` and a rejoin that clones share.

use std::path::PathBuf;

use super::dress::OLD_PLACE;
use crate::error::Result;
use crate::ops::node::restore::{Claim, CopyForRestore, Dressing, Restored, Signal};
use crate::ops::node::{NodeDoor, NodeRequest, Priority, Told};
use crate::ops::provision::Site;
use crate::pg::system::SystemIdentifier;
use crate::repo::layout::Label;
use crate::topology::declared::{self, NodeWish};
use crate::topology::model::Repository;

/// Settings that a node keeps from the backup although a scratch copy does not: they lead to files of the user's own.
const KEPT: [&str; 3] = ["config_file", "hba_file", "ident_file"];

/// What is copied, and how.
#[derive(Debug)]
pub struct Filling<'a> {
    /// Of the repository.
    pub repository: &'a Repository,
    pub system_identifier: SystemIdentifier,
    pub label: &'a Label,
    /// Where each tablespace goes, by OID.
    pub tablespaces: Vec<(u32, PathBuf)>,
    /// 0: as many as there are cores.
    pub workers: u32,
}

/// Copies a backup into the node's directory, which is new or empty and claimed, so that it starts as a standby.
///
/// # Errors
/// As the node's host and the repository fail; what is half there does not start.
pub async fn fill(
    door: &NodeDoor,
    site: &Site<'_>,
    wish: &NodeWish<'_>,
    filling: Filling<'_>,
    told: Told,
) -> Result<Restored> {
    let settings = declared::node_settings(site.cluster, site.node, wish, &site.places());
    let neutral = OLD_PLACE.iter().filter(|name| !KEPT.contains(name)).map(|name| (*name).to_owned());
    let request = NodeRequest::CopyForRestore(Box::new(CopyForRestore {
        repository: door.location(filling.repository),
        cluster: site.cluster.name.clone(),
        system_identifier: filling.system_identifier,
        label: filling.label.clone(),
        data_directory: site.node.data_directory.clone(),
        tablespaces: filling.tablespaces.into_iter().collect(),
        claim: Claim::Node {},
        dressing: Dressing {
            shared: Some(declared::settings_file(&declared::shared_settings(site.cluster))),
            node: declared::settings_file(&settings),
            access: declared::access_lines(site.cluster),
            users: site.users.to_vec(),
            neutral: neutral.collect(),
            signal: Some(Signal::Standby),
        },
        workers: filling.workers,
    }));
    door.call(&request, Priority::Normal, told).await
}
