//! The archive before and after: nothing of the old line left out, nothing of the new one missing.

use crate::engine::step::Progress;
use crate::error::Result;
use crate::ops::apply;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::world::World;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;

/// Has the primary finish its segment and sees it arrive.
pub(super) async fn last_wal(world: &World, node: &str, progress: Progress<'_>) -> Result<Evidence> {
    let (segment, milliseconds) = arrives(world, node, progress).await?;
    Ok(Evidence::Archived { segment, milliseconds })
}

/// Sees the restored cluster's timeline in the archive; see [`apply::archive::goes_on`].
pub(super) async fn goes_on(
    world: &World,
    node: &str,
    promoted: (TimelineId, Lsn),
    progress: Progress<'_>,
) -> Result<Evidence> {
    let found = apply::archive::goes_on(&world.apply, node, promoted, progress).await?;
    Ok(Evidence::ArchiveGoesOn { history: found.history, first: found.first, last: found.last })
}

/// Has the primary finish its segment; returns the segment that arrived, and how long that took.
async fn arrives(world: &World, node: &str, progress: Progress<'_>) -> Result<(String, u64)> {
    apply::archive::arrives(&world.apply, node, progress).await
}
