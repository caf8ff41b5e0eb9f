//! What the steps of an apply share while they run.

use std::collections::{BTreeMap, BTreeSet};

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

/// What does not answer, and is not waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    pub nodes: BTreeSet<String>,
    pub hosts: BTreeSet<String>,
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
    pub left_out: LeftOut,
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
        Self::open_but(operation, input, passwords, context, LeftOut::default()).await
    }

    /// Does the same without what does not answer.
    ///
    /// # Errors
    /// As [`World::open`].
    pub async fn open_but(
        operation: String,
        input: Input,
        passwords: BTreeMap<String, Secret>,
        context: &Context,
        left_out: LeftOut,
    ) -> Result<Self> {
        let doors = Doors::open(&input.cluster, context.places.clone(), &context.gate)?;
        let mut programs = BTreeMap::new();
        for node in input.cluster.nodes.iter().filter(|node| !left_out.hosts.contains(&node.host)) {
            programs.insert(node.name.clone(), doors.programs(&input.cluster, &node.host).await?.clone());
        }
        let (build, store) = (context.build.clone(), context.store.clone());
        Ok(Self { operation, input, doors, programs, build, store, passwords, left_out })
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
            programs: self.programs.get(name).ok_or_else(|| {
                Error::failed(format!("the host of {} was left out", self.input.cluster.full_name(name)))
            })?,
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
