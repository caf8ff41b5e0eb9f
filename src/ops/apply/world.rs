//! What the steps of an apply share while they run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::store::Store;
use crate::error::{Error, Result};
use crate::host::programs::Programs;
use crate::ops::binary::Build;
use crate::ops::context::Context;
use crate::ops::observe::Doors;
use crate::ops::plan::Fixed;
use crate::ops::provision::Site;
use crate::secret::Secret;
use crate::topology::model::{Cluster, Node};

/// What the journal of an apply keeps of its input: enough to go on without the topology file. Holds no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub herd: String,
    pub cluster: Cluster,
    /// The node that is or will be primary.
    pub primary: String,
    pub fixed: Fixed,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    pub operation: String,
    pub input: Input,
    pub doors: Doors,
    /// By node.
    programs: BTreeMap<String, Programs>,
    /// The program that is installed.
    pub build: Build,
    /// The journals of this station.
    pub store: Store,
    /// Resolved passwords of declared roles, by role.
    pub passwords: BTreeMap<String, Secret>,
}

impl World {
    /// Opens the doors and finds the programs.
    ///
    /// # Errors
    /// When a door cannot be opened or a program is missing.
    pub async fn open(
        operation: String,
        input: Input,
        passwords: BTreeMap<String, Secret>,
        context: &Context,
    ) -> Result<Self> {
        let doors = Doors::open(&input.cluster, context.places.clone(), &context.gate)?;
        let mut programs = BTreeMap::new();
        for node in &input.cluster.nodes {
            programs.insert(node.name.clone(), doors.programs(&input.cluster, &node.host).await?.clone());
        }
        let (build, store) = (context.build.clone(), context.store.clone());
        Ok(Self { operation, input, doors, programs, build, store, passwords })
    }

    /// Returns a node of the cluster that a step names.
    ///
    /// # Errors
    /// When a journal names a node that its own input does not have.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.input
            .cluster
            .node(name)
            .ok_or_else(|| Error::failed(format!("the operation knows no node {name:?}")))
    }

    /// Returns a node with everything that working on it needs.
    ///
    /// # Errors
    /// As [`World::node`].
    pub fn site(&self, name: &str) -> Result<Site<'_>> {
        let node = self.node(name)?;
        Ok(Site {
            herd: &self.input.herd,
            operation: &self.operation,
            cluster: &self.input.cluster,
            node,
            doors: &self.doors,
            programs: self.programs.get(name).expect("open finds the programs of every node"),
            users: self.input.fixed.users.get(&node.host).map_or(&[], Vec::as_slice),
        })
    }

    /// Returns the primary with everything that working on it needs.
    ///
    /// # Errors
    /// As [`World::node`].
    pub fn primary(&self) -> Result<Site<'_>> {
        self.site(&self.input.primary)
    }
}
