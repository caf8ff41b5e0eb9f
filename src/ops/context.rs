//! What every operation of a run shares: the places, the gate, the journals, the program.

use std::sync::Arc;

use crate::engine::store::Store;
use crate::gate::Gate;
use crate::ops::binary::Build;
use crate::ops::cluster_lock::{Locker, WithoutAnswer};
use crate::topology::model::Cluster;
use crate::topology::places::Places;

/// What every operation of a run shares.
#[derive(Debug, Clone)]
pub struct Context {
    pub places: Places,
    pub gate: Arc<dyn Gate>,
    pub store: Store,
    /// The program that is installed where PostgreSQL's commands call one.
    pub build: Build,
    /// The role that a look asks servers as, in place of the superuser.
    pub role: Option<String>,
}

impl Context {
    /// Returns what takes the locks of a cluster.
    pub fn locker<'a>(&'a self, cluster: &'a Cluster) -> Locker<'a> {
        Locker {
            store: &self.store,
            places: &self.places,
            build: &self.build,
            cluster,
            repository: cluster.backups.as_ref().map(|backups| &backups.repository),
            without_answer: WithoutAnswer::Fail,
        }
    }
}
