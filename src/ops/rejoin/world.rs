//! What the steps of a rejoin share while they run.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ops::context::Context;
use crate::ops::provision::Site;
use crate::ops::rejoin::decide::Decision;
use crate::ops::succession;

/// What the journal keeps of the input: enough to go on without the topology file. Holds no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// `from` is the node that comes back, `to` the primary, `timeline` the primary's.
    pub succession: succession::Input,
    pub decision: Decision,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    pub decision: Decision,
    pub succession: succession::World,
}

impl World {
    /// Opens the doors and finds the programs.
    ///
    /// # Errors
    /// When a door cannot be opened or a program is missing.
    pub async fn open(context: &Context, operation: String, input: Input) -> Result<Self> {
        let succession = succession::World::open(context, operation, input.succession).await?;
        Ok(Self { decision: input.decision, succession })
    }

    /// Returns a node with everything that working on it needs.
    ///
    /// # Errors
    /// When a journal names a node that its own input does not have.
    pub fn site(&self, node: &str) -> Result<Site<'_>> {
        self.succession.site(node)
    }

    /// Returns the primary.
    ///
    /// # Errors
    /// As [`World::site`].
    pub fn primary(&self) -> Result<Site<'_>> {
        self.site(&self.succession.input.to)
    }
}
