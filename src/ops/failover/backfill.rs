//! The WAL that a dead primary had not archived: its standbys were sent it, and never archive by themselves what they were sent.
//!
//! PostgreSQL marks segments that were streamed as done, so that without this a restore to a time before the failover may find a hole.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::{Command, HostError};
use crate::ops::failover::evidence::Evidence;
use crate::ops::provision::{self, Site};
use crate::ops::shelf::Shelf;
use crate::ops::succession::World;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::layout::{ClusterKeys, SystemKeys};

/// How long one segment may take.
const PUSH: Duration = Duration::from_secs(120);

/// Archives, from the new primary's pg_wal, every whole segment of the old timeline that the archive lacks, up to where the new one begins.
/// What is in the archive stays as it is, and of what differs from it the error tells.
///
/// # Errors
/// When the repository cannot be read, or does not take a segment.
pub async fn fill(world: &World, node: &str, promoted: (TimelineId, Lsn)) -> Result<Evidence> {
    let site = world.site(node)?;
    let Some(backups) = &world.input.cluster.backups else {
        return Err(Error::failed("the operation knows no repository"));
    };
    let control = provision::control_file(&site).await?;
    let size = WalSegmentSize::new(u64::from(control.wal_segment_size))
        .map_err(|error| Error::failed("could not read the segment size").source(error))?;
    let old = world.input.timeline;
    // The segment in which the timeline changes goes on in the new one, and PostgreSQL archives its beginning as .partial.
    let end = SegmentName::holding(promoted.1, old, size).number(size);
    let keys = ClusterKeys::new(&site.cluster.name).system(control.system_identifier);
    let shelf =
        Shelf::of(&world.apply.doors, &site.node.host, &backups.repository, &world.apply.build).await?;
    let wal = site.node.data_directory.join("pg_wal");
    let here = site.host().list(&wal).await?.unwrap_or_default();
    let here: BTreeSet<u64> =
        segments(&here, "", old).map(|segment| segment.number(size)).filter(|n| *n < end).collect();
    let there = archived(&shelf, &keys, old, end, size).await?;
    let mut archived = Vec::new();
    let mut missing = Vec::new();
    let first =
        here.first().copied().into_iter().chain(there.last().map(|last| last + 1)).min().unwrap_or(end);
    for number in first..end {
        let segment = SegmentName::at(number, old, size);
        if there.contains(&number) {
            continue;
        }
        if !here.contains(&number) {
            missing.push(segment);
            continue;
        }
        push(&site, segment).await?;
        archived.push(segment);
    }
    Ok(Evidence::Backfilled { archived, missing })
}

/// Returns the segments of a timeline among these names.
fn segments<'a>(
    names: &'a [String],
    suffix: &'a str,
    timeline: TimelineId,
) -> impl Iterator<Item = SegmentName> + 'a {
    let parsed = names.iter().filter_map(move |name| name.strip_suffix(suffix)?.parse::<WalFile>().ok());
    parsed.filter_map(move |file| match file {
        WalFile::Segment(segment) if segment.on(timeline) == segment => Some(segment),
        WalFile::Segment(_)
        | WalFile::Partial(_)
        | WalFile::TimelineHistory(_)
        | WalFile::BackupHistory(_, _) => None,
    })
}

/// Returns the numbers of the segments of a timeline before `end` that the archive has, of the last folders: what is older was archived long
/// before.
async fn archived(
    shelf: &Shelf<'_>,
    keys: &SystemKeys,
    timeline: TimelineId,
    end: u64,
    size: WalSegmentSize,
) -> Result<BTreeSet<u64>> {
    let last = SegmentName::at(end, timeline, size);
    let in_a_folder = (1 << 32) / size.as_u64();
    let before = SegmentName::at(end.saturating_sub(in_a_folder), timeline, size);
    let mut found = BTreeSet::new();
    for folder in BTreeSet::from([before.folder(), last.folder()]) {
        let folder = keys.wal_folder().join(&folder).expect("a folder of segments is a part of a key");
        let names = shelf.names(&folder).await?;
        let there = segments(&names, ".zst", timeline);
        found.extend(there.map(|segment| segment.number(size)).filter(|number| *number < end));
    }
    Ok(found)
}

async fn push(site: &Site<'_>, segment: SegmentName) -> Result<()> {
    let places = site.places();
    let path = site.node.data_directory.join("pg_wal").join(segment.to_string());
    let command = Command::new(&places.program)
        .args(["wal", "push", "--profile"])
        .arg(places.profile.display().to_string())
        .arg(path.display().to_string())
        .timeout(PUSH);
    match site.host().run(&command).await {
        Ok(_) => Ok(()),
        Err(HostError::Exited { stderr, .. }) => {
            Err(Error::failed(format!("the archive does not take {segment}"))
                .detail(stderr)
                .hint("What is in the archive under that name is left as it is: pgherd wal verify"))
        }
        Err(error) => Err(error.into()),
    }
}
