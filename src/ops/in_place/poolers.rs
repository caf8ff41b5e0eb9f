//! The clients of all poolers of the cluster: held back, and let go.

use std::time::Duration;

use futures_util::future::join_all;

use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::world::World;

/// How long transactions that run may take to end; what runs longer ends with the servers.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// Holds back the clients of all poolers, or of none.
pub(super) async fn pause(world: &World, hosts: &[String]) -> Result<Evidence> {
    let asked = hosts.iter().map(|host| apply::pooler::pause(world.doors(), world.cluster(), host, GRACE));
    let mut poolers = Vec::new();
    let mut failed: Option<Error> = None;
    for (host, answer) in hosts.iter().zip(join_all(asked).await) {
        match answer {
            Ok(paused) => poolers.push((host.clone(), paused)),
            Err(error) => {
                failed = Some(error.context(format!("hold back the clients of the pooler on {host}")))
            }
        }
    }
    match failed {
        None => Ok(Evidence::Held { poolers }),
        // The others are let go by this step's undo.
        Some(error) => Err(error),
    }
}

/// Lets the clients of all poolers go on. All are asked before the first error is told.
pub(super) async fn resume(world: &World, hosts: &[String]) -> Result<Evidence> {
    let asked = hosts.iter().map(|host| apply::pooler::resume(world.doors(), world.cluster(), host));
    for (host, answer) in hosts.iter().zip(join_all(asked).await) {
        answer.map_err(|error| error.context(format!("let the clients of the pooler on {host} go on")))?;
    }
    Ok(Evidence::Resumed {})
}
