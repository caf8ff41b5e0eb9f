//! The end of the archive, brought up to the present: the primary finishes the segment that it writes, and the archive gets it.
//!
//! What happened a minute ago is usually in a segment that is not full yet, and a restore to just before it needs that segment.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::queries;
use crate::error::{Error, Result};
use crate::ops::apply::logins;
use crate::ops::binary::Build;
use crate::ops::observe::Doors;
use crate::ops::shelf::Shelf;
use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::WalFile;
use crate::repo::layout::ClusterKeys;
use crate::topology::model::{Cluster, Node, Repository};

/// How long the segment may take to arrive.
const ARRIVES: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Has `primary` finish its present segment, and waits until it is in the repository.
///
/// # Errors
/// When the primary does not answer, or the segment does not arrive within half a minute.
pub async fn finish_segment(
    doors: &Doors,
    cluster: &Cluster,
    primary: &Node,
    system: SystemIdentifier,
    repository: &Repository,
    build: &Build,
) -> Result<()> {
    let conn = doors.connector.connect(&doors.superuser(cluster, primary, "postgres")).await?;
    let conn = logins::as_primary(conn, &cluster.full_name(&primary.name)).await?;
    let segment = queries::finish_segment(&conn).await?;
    let key = ClusterKeys::new(&cluster.name).system(system).wal(WalFile::Segment(segment));
    let shelf = Shelf::of(doors, &primary.host, repository, build).await?;
    let deadline = Instant::now() + ARRIVES;
    while !shelf.has(&key).await? {
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("{segment} does not arrive in the repository")));
        }
        sleep(PAUSE).await;
    }
    Ok(())
}
