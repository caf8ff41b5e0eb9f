//! stub
use std::collections::BTreeMap;
use crate::engine::step::Found;
use crate::error::Result;
use crate::ops::apply::step::Evidence;
use crate::ops::apply::world::World;
use crate::ops::observe::{ClusterObserved, Doors};
use crate::ops::plan::PoolerDrift;
use crate::topology::model::{Cluster, Node};
pub(super) async fn look(_w: &World, _h: &str) -> Result<Found<Evidence>> { Ok(Found::NotDone) }
pub(super) async fn ensure(_w: &World, _h: &str) -> Result<Evidence> { Ok(Evidence::PoolerAnswers { aliases: vec![] }) }
pub(super) async fn drift_without_primary(_d: &Doors, _c: &Cluster) -> BTreeMap<String, PoolerDrift> { BTreeMap::new() }
pub(super) async fn drift(_d: &Doors, _c: &Cluster, _p: &Node, _o: &ClusterObserved) -> BTreeMap<String, PoolerDrift> { BTreeMap::new() }
