//! What the steps of a restore in place share while they run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::node::restore::Wish;
use crate::ops::observe::Doors;
use crate::ops::plan::Fixed;
use crate::ops::provision::Site;
use crate::ops::restore::target::Choice;
use crate::pg::system::SystemIdentifier;
use crate::topology::declared::NodeWish;
use crate::topology::model::{Cluster, Node, Repository};
use crate::units::ByteCount;

/// What the journal keeps of the input: enough to go on, or back, without the topology file. Holds no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub herd: String,
    pub cluster: Cluster,
    pub fixed: Fixed,
    pub wish: Wish,
    pub choice: Choice,
    pub system_identifier: SystemIdentifier,
    /// Where each tablespace of the backup goes, by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// The node that is restored from the backup, and primary afterwards.
    pub seed: String,
    /// Every node as it was, in the order of the file.
    pub before: Vec<Before>,
}

/// A node as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    pub node: String,
    pub state: State,
    /// Whether it has no `standby.signal`.
    pub primary: bool,
    /// Whether it was seen streaming.
    pub streamed: bool,
    /// What is renamed aside: its data directory, if there is one, and the version directories of its tablespaces.
    pub paths: Vec<PathBuf>,
}

/// Whether a server ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Answered,
    /// A process worked on the data directory, and nobody could log in.
    Silent,
    Stopped,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    pub input: Input,
    /// The steps that an `apply` has as well take this: the cluster with the seed as its primary.
    pub apply: apply::world::World,
}

impl World {
    /// Opens the doors and finds the programs.
    ///
    /// # Errors
    /// When a door cannot be opened or a program is missing.
    pub async fn open(context: &Context, operation: String, input: Input) -> Result<Self> {
        let as_apply = apply::world::Input {
            herd: input.herd.clone(),
            cluster: input.cluster.clone(),
            primary: input.seed.clone(),
            fixed: input.fixed.clone(),
        };
        // A password that cannot be had now keeps nobody from getting the data back; the step that needs it says so.
        let passwords = apply::passwords(context, &input.cluster).await.unwrap_or_default();
        let apply = apply::world::World::open(operation, as_apply, passwords, context).await?;
        Ok(Self { input, apply })
    }

    pub fn operation(&self) -> &str {
        &self.apply.operation
    }

    pub fn cluster(&self) -> &Cluster {
        &self.input.cluster
    }

    pub fn doors(&self) -> &Doors {
        &self.apply.doors
    }

    /// Returns a node with everything that working on it needs.
    ///
    /// # Errors
    /// When a journal names a node that its own input does not have.
    pub fn site(&self, node: &str) -> Result<Site<'_>> {
        self.apply.site(node)
    }

    /// Returns the node that is restored.
    ///
    /// # Errors
    /// As [`World::site`].
    pub fn seed(&self) -> Result<Site<'_>> {
        self.apply.primary()
    }

    /// Returns how a node was before.
    ///
    /// # Errors
    /// As [`World::site`].
    pub fn before(&self, node: &str) -> Result<&Before> {
        let found = self.input.before.iter().find(|before| before.node == node);
        found.ok_or_else(|| Error::failed(format!("the operation knows no node {node:?}")))
    }

    /// Returns the repository that the cluster is restored from.
    ///
    /// # Errors
    /// When a journal's own input has none.
    pub fn repository(&self) -> Result<&Repository> {
        let backups = self.input.cluster.backups.as_ref();
        backups
            .map(|backups| &backups.repository)
            .ok_or_else(|| Error::failed(format!("{} has no repository", self.input.cluster.name)))
    }

    /// Returns what a node should be.
    pub fn wish<'a>(&self, node: &Node, upstream: Option<&'a Node>, synchronous: String) -> NodeWish<'a> {
        let memory = self.input.fixed.memory.get(&node.name).copied().unwrap_or(ByteCount(0));
        NodeWish { upstream, synchronous, memory }
    }
}
