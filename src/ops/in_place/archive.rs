//! The archive before and after: nothing of the old line left out, nothing of the new one missing.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::step::{Progress, Unit};
use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::apply::evidence::Evidence as Applied;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::world::World;
use crate::ops::provision;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::layout::{ClusterKeys, SystemKeys};

/// How long what was archived before may take to be seen.
const SEEN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Has the primary finish its segment and sees it arrive.
pub(super) async fn last_wal(world: &World, node: &str, progress: Progress<'_>) -> Result<Evidence> {
    let (segment, milliseconds) = arrives(world, node, progress).await?;
    Ok(Evidence::Archived { segment, milliseconds })
}

/// Sees the restored cluster's timeline in the archive: its history, if it has one, and every segment from its first one to one that is
/// finished now.
///
/// `promoted` is that timeline and where it begins.
pub(super) async fn goes_on(
    world: &World,
    node: &str,
    promoted: (TimelineId, Lsn),
    progress: Progress<'_>,
) -> Result<Evidence> {
    let (last, _) = arrives(world, node, progress).await?;
    let last: SegmentName =
        last.parse().map_err(|error| Error::failed(format!("{last} is no segment")).source(error))?;
    let site = world.site(node)?;
    let control = provision::control_file(&site).await?;
    let size = WalSegmentSize::new(u64::from(control.wal_segment_size))
        .map_err(|error| Error::failed("could not read the segment size").source(error))?;
    let (timeline, begins) = promoted;
    let first = SegmentName::holding(begins, timeline, size);
    let keys = ClusterKeys::new(&site.cluster.name).system(control.system_identifier);
    let history = timeline.as_u32() > 1;
    if history {
        seen(world, node, &keys, WalFile::TimelineHistory(timeline)).await?;
    }
    let mut segment = first;
    while segment.number(size) <= last.number(size) {
        seen(world, node, &keys, WalFile::Segment(segment)).await?;
        segment = segment.next(size);
    }
    Ok(Evidence::ArchiveGoesOn { history, first, last })
}

/// Returns the segment that arrived, and how long that took.
async fn arrives(world: &World, node: &str, progress: Progress<'_>) -> Result<(String, u64)> {
    let repository = world.repository()?.name.clone();
    let report = |done: u64, total: u64| (progress.0)(done, Some(total), Unit::Items);
    let proved = apply::archive::prove(&world.apply, node, &repository, &report).await?;
    if let Applied::Archived { segment, milliseconds } = proved {
        return Ok((segment, milliseconds));
    }
    Err(Error::failed(format!("the archive was proved by {proved:?}")))
}

async fn seen(world: &World, node: &str, keys: &SystemKeys, file: WalFile) -> Result<()> {
    let site = world.site(node)?;
    let object = world.repository()?.directory().join(keys.wal(file).as_str());
    let deadline = Instant::now() + SEEN;
    loop {
        let found = site.host().stat(&object).await.map_err(|error| {
            Error::failed(format!("could not look for {file} in the repository")).source(error)
        })?;
        if found.is_some() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("the archive has a gap: {file} is not in it"))
                .detail(format!("Looked for {} for {} s.", object.display(), SEEN.as_secs()))
                .hint(format!("The server's log in {} says why.", site.places().log.display())));
        }
        sleep(PAUSE).await;
    }
}
