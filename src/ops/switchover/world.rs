//! What the steps of a switchover share while they run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::hold::Holder;
use crate::ops::plan::Fixed;
use crate::ops::provision::Site;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::topology::declared::{self, NodeWish};
use crate::topology::model::{Cluster, Node};
use crate::units::ByteCount;

/// What the journal keeps of the input: enough to go on, or back, without the topology file. Holds no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub herd: String,
    pub cluster: Cluster,
    pub fixed: Fixed,
    pub system_identifier: SystemIdentifier,
    /// The timeline of the old primary.
    pub timeline: TimelineId,
    /// The node that is primary before.
    pub from: String,
    /// The node that is primary afterwards.
    pub to: String,
    /// The standbys that stream from the old primary, without the candidate.
    pub siblings: Vec<String>,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    pub input: Input,
    /// The steps that an `apply` has as well take this: the cluster with the candidate as its primary.
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
            primary: input.to.clone(),
            fixed: input.fixed.clone(),
        };
        // No step sets a password of a role, so none is looked for; what logs in for the write proof has its own.
        let apply = apply::world::World::open(operation, as_apply, BTreeMap::new(), context).await?;
        Ok(Self { input, apply })
    }

    /// Returns a node with everything that working on it needs.
    ///
    /// # Errors
    /// When a journal names a node that its own input does not have.
    pub fn site(&self, node: &str) -> Result<Site<'_>> {
        self.apply.site(node)
    }

    /// Returns who holds clients back in this operation's name.
    pub fn holder(&self) -> Holder<'_> {
        Holder {
            doors: &self.apply.doors,
            cluster: &self.input.cluster,
            build: &self.apply.build,
            operation: &self.apply.operation,
        }
    }

    /// Returns what a node should be while `primary` leads.
    ///
    /// # Errors
    /// As [`World::site`].
    pub fn wish(&self, node: &Node, primary: &str) -> Result<NodeWish<'_>> {
        let cluster = &self.input.cluster;
        let leads = self.apply.node(primary)?;
        let memory = self.input.fixed.memory.get(&node.name).copied().unwrap_or(ByteCount(0));
        let upstream = (node.name != leads.name).then_some(leads);
        Ok(NodeWish { upstream, synchronous: declared::synchronous_names(cluster, node), memory })
    }
}
