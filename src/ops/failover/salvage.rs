//! What only the data directory of the old primary has: commits that were acknowledged, and that no standby was sent.
//!
//! Its last segments are laid into the pg_wal of the node that is to lead. That reads them as it would read them after a crash of its own:
//! only whole records count, and each has its checksum.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::queries;
use crate::db::recovery;
use crate::error::{Error, Result};
use crate::ops::failover::evidence::{Evidence, LastCommit};
use crate::ops::provision::{self, Site};
use crate::ops::succession::{World, connect, identify};
use crate::pg::lsn::Lsn;
use crate::pg::wal_file::{SegmentName, WalSegmentSize};
use crate::pg::wal_record;
use crate::units::ByteCount;

/// More than this is not carried through the station: then the standby was that far behind, or did not receive at all.
const MOST: u64 = 4 << 30;
/// How long replay may stand still before what was brought counts as not read.
const STILL: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Brings the node every whole record of the old primary's WAL that it has not, and waits until it has replayed the last commit among them.
///
/// # Errors
/// When the WAL of the old primary cannot be read, does not go on where the node's ends, or is not replayed.
pub async fn bring(world: &World, from: &str, node: &str) -> Result<Evidence> {
    let (old, new) = (world.site(from)?, world.site(node)?);
    let could_not = |why: String| {
        Error::failed(format!("could not bring what only {} has", old.name())).detail(why).hint(format!(
            "Nothing was promoted. Without it rows may be lost; accept that: --accept-data-loss {}",
            world.input.cluster.name
        ))
    };
    let control = provision::control_file(&old).await.map_err(|error| could_not(error.to_string()))?;
    if control.system_identifier != world.input.system_identifier {
        return Err(could_not("It belongs to another system.".to_owned()));
    }
    let size = WalSegmentSize::new(u64::from(control.wal_segment_size))
        .map_err(|error| could_not(error.to_string()))?;
    let (timeline, has) = identify(&world.apply.doors, &world.input.cluster, new.node).await?;
    let mut segment = SegmentName::holding(has, timeline, size);
    let (mut segments, mut end, mut last) = (0, None, None);
    loop {
        let path = old.node.data_directory.join("pg_wal").join(segment.to_string());
        let Some(bytes) = old.host().read(&path).await? else { break };
        // One that was kept for later use holds another part of the log.
        let Ok(found) = wal_record::marks(segment, size, &bytes) else { break };
        let commit = found.marks.iter().rev().find(|mark| mark.is_commit() && mark.lsn > has);
        last = commit.map(|mark| LastCommit { lsn: mark.lsn, at: mark.at }).or(last);
        let whole = found.end >= segment.end(size);
        if found.end > has {
            if u64::from(segments) * size.as_u64() >= MOST {
                return Err(could_not(format!(
                    "It has more than {} that {} has not.",
                    ByteCount(MOST),
                    new.name()
                )));
            }
            lay(&new, &segment.to_string(), &bytes).await?;
            segments += 1;
        }
        end = Some(found.end);
        if !whole {
            break;
        }
        segment = segment.next(size);
    }
    let Some(end) = end else {
        return Err(could_not(format!(
            "Its pg_wal does not have {}, where the WAL of {} ends.",
            SegmentName::holding(has, timeline, size),
            new.name()
        )));
    };
    let bytes = ByteCount(end.as_u64().saturating_sub(has.as_u64()));
    if segments > 0 {
        until_replayed(&new, last.as_ref().map(|commit| commit.lsn)).await?;
    }
    Ok(Evidence::Salvaged { segments, bytes, last_commit: last })
}

async fn lay(site: &Site<'_>, name: &str, bytes: &[u8]) -> Result<()> {
    let path = Path::new("pg_wal").join(name);
    provision::write(site, &site.node.data_directory.join(path), bytes, 0o600).await
}

/// Waits until the server has replayed up to `wanted` and has found no more WAL.
async fn until_replayed(site: &Site<'_>, wanted: Option<Lsn>) -> Result<()> {
    let conn = connect(site).await?;
    // It looks for WAL only every wal_retrieve_retry_interval; a reload wakes it.
    queries::reload(&conn).await?;
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let state = recovery::recovery(&conn).await?;
        if state.replayed_lsn >= wanted {
            return Ok(());
        }
        if state.replayed_lsn > last {
            (last, since) = (state.replayed_lsn, Instant::now());
        }
        if since.elapsed() >= STILL {
            let told = |lsn: Option<Lsn>| lsn.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string());
            return Err(Error::failed(format!("{} does not replay what was brought", site.name())).detail(
                format!(
                    "It stands at {} and was brought commits up to {}.\n{}",
                    told(state.replayed_lsn),
                    told(wanted),
                    provision::last_log_lines(site).await.join("\n")
                ),
            ));
        }
        sleep(PAUSE).await;
    }
}
