//! A standby that is started and seen streaming.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::queries::{self, ServerFacts, ServerRole};
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::provision::{self, Site};

/// How long a standby that answers may take until it streams.
const STREAM: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Starts a standby and waits until it streams from its upstream on the upstream's timeline.
pub(crate) async fn start(world: &World, node: &str, upstream: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    provision::start(&site).await?;
    until_it_streams(&site, &world.site(upstream)?).await
}

/// Waits until a running standby streams from `upstream` on its timeline.
pub(crate) async fn until_it_streams(site: &Site<'_>, upstream: &Site<'_>) -> Result<Evidence> {
    let deadline = Instant::now() + STREAM;
    loop {
        let why = match streams(site, upstream).await {
            Ok(Ok(evidence)) => return Ok(evidence),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("{} does not stream from {}", site.name(), upstream.name()))
                .detail(format!(
                    "After {} s: {why}\n{}",
                    STREAM.as_secs(),
                    provision::last_log_lines(site).await.join("\n")
                ))
                .hint(format!("Its log is in {}.", site.places().log.display())));
        }
        sleep(PAUSE).await;
    }
}

/// Has the standbys look for their upstream at once: one that lost it tries again only every `wal_retrieve_retry_interval` (5 s),
/// during which a commit that waits for it hangs, and a reload wakes its startup process.
pub(crate) async fn wake_standbys(world: &World) {
    for node in world.input.cluster.nodes.iter().filter(|node| node.name != world.input.primary) {
        let Ok(site) = world.site(&node.name) else { continue };
        // One that does not answer has nothing to be woken from.
        if let Ok(conn) = site.connect().await {
            queries::reload(&conn).await.ok();
        }
    }
}

/// Looks whether a standby streams.
pub(crate) async fn look(world: &World, node: &str, upstream: &str) -> Result<Found<Evidence>> {
    // Whatever it does now, `start` starts it or waits for it.
    Ok(match streams(&world.site(node)?, &world.site(upstream)?).await {
        Ok(Ok(evidence)) => Found::Done(evidence),
        Ok(Err(_)) | Err(_) => Found::NotDone,
    })
}

/// Asks both ends: the standby's receiver must stream on the upstream's timeline, and the upstream must see it streaming.
async fn streams(site: &Site<'_>, upstream: &Site<'_>) -> Result<std::result::Result<Evidence, String>> {
    let above = upstream.connect().await?;
    let facts = queries::server_facts(&above).await?;
    let own = queries::server_facts(&site.connect().await?).await?;
    if own.system_identifier != facts.system_identifier {
        return Err(Error::refused(format!(
            "{} belongs to another cluster than {}",
            site.name(),
            upstream.name()
        ))
        .detail(format!(
            "Its system identifier is {}, the other's is {}.",
            own.system_identifier, facts.system_identifier
        )));
    }
    if let Err(why) = receives(&own, &facts) {
        return Ok(Err(why));
    }
    let name = site.name();
    let senders = queries::replication(&above).await?;
    let seen = senders.iter().any(|sender| sender.application_name == name && sender.state == "streaming");
    Ok(if seen {
        Ok(Evidence::Streams { timeline: own.timeline, lsn: own.role.lsn() })
    } else {
        Err(format!("{} does not list {name} as streaming", upstream.name()))
    })
}

fn receives(own: &ServerFacts, above: &ServerFacts) -> std::result::Result<(), String> {
    match &own.role {
        ServerRole::Primary { .. } => Err("it is not in recovery".to_owned()),
        ServerRole::Standby { receiver: None, .. } => Err("it has no WAL receiver".to_owned()),
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status != "streaming" => {
            Err(format!("its WAL receiver is {}", receiver.status))
        }
        ServerRole::Standby { .. } if own.timeline != above.timeline => {
            Err(format!("it is on timeline {}, its upstream on {}", own.timeline, above.timeline))
        }
        ServerRole::Standby { .. } => Ok(()),
    }
}
