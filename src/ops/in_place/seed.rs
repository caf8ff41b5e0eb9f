//! The node that comes from the backup: copied, replayed to the target and checked, promoted while nobody else can see it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::db::promotion;
use crate::db::queries::{self, ServerRole};
use crate::engine::step::{Cx, Found, Progress, Unit};
use crate::error::{Error, Result};
use crate::host::HostError;
use crate::ops::in_place::aside::aside;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::files::{self, Door};
use crate::ops::in_place::step::RestoreStep;
use crate::ops::in_place::world::World;
use crate::ops::observe::{self, Claim};
use crate::ops::provision::{self, Site};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::repo::layout::ClusterKeys;

/// How long the step may take that promotes: after a kill it replays once more.
pub(super) const PROMOTE: Duration = Duration::from_secs(86_400);
/// How long the promotion itself may take.
const ENDS: Duration = Duration::from_secs(300);

/// Promotes the restored node, checks that its timeline is a new one, and starts it anew with no recovery settings, closed.
pub(super) async fn promote(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    if !is_primary(&site).await? {
        // After a kill it may be on its way to the target, and must not be promoted short of it.
        recover(world, node, Progress(&|_, _, _| ())).await?;
        let conn = site.connect().await?;
        if matches!(queries::server_facts(&conn).await?.role, ServerRole::Standby { .. })
            && !promotion::promote(&conn, ENDS).await?
        {
            return Err(Error::failed(format!("{} did not end its recovery", site.name()))
                .detail(provision::last_log_lines(&site).await.join("\n")));
        }
    }
    let conn = site.connect().await?;
    let facts = queries::server_facts(&conn).await?;
    let timeline = facts.timeline;
    // Until then pg_control names the old timeline, and a standby would be cloned from it.
    promotion::checkpoint(&conn).await?;
    drop(conn);
    let begins = begin(&site, timeline).await?;
    refuse_taken(world, &site, timeline).await?;
    provision::stop(&site).await?;
    files::settings(&site, &files::closed_settings(&site, &wish(world, &site), Door::Standbys)).await?;
    provision::start(&site).await?;
    Ok(Evidence::Promoted { timeline, begins })
}

/// Looks whether the restored node is a primary that was started anew.
pub(super) async fn look_promoted(world: &World, node: &str) -> Result<Found<Evidence>> {
    let site = world.site(node)?;
    let wanted = files::closed_settings(&site, &wish(world, &site), Door::Standbys);
    if !files::has_settings(&site, &wanted).await? || !is_primary(&site).await? {
        return Ok(Found::NotDone);
    }
    let timeline = queries::server_facts(&site.connect().await?).await?.timeline;
    Ok(Found::Done(Evidence::Promoted { timeline, begins: begin(&site, timeline).await? }))
}

fn wish<'a>(world: &World, site: &Site<'a>) -> crate::topology::declared::NodeWish<'a> {
    // No standby is there yet that a commit could wait for.
    world.wish(site.node, None, String::new())
}

async fn is_primary(site: &Site<'_>) -> Result<bool> {
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
        // Whether it was promoted is in its files: the signal goes with the end of recovery (`xlog.c`).
        let signal = site.node.data_directory.join("recovery.signal");
        let left = site.host().stat(&signal).await?.is_some();
        if left {
            return Ok(false);
        }
        provision::start(site).await?;
    }
    match site.connect().await {
        Ok(conn) => Ok(matches!(queries::server_facts(&conn).await?.role, ServerRole::Primary { .. })),
        Err(error) if error.is_state("57P03") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns where a timeline begins; the first one begins nowhere else.
async fn begin(site: &Site<'_>, timeline: TimelineId) -> Result<Lsn> {
    let name = WalFile::TimelineHistory(timeline).to_string();
    let path = site.node.data_directory.join("pg_wal").join(&name);
    let could_not = || Error::failed(format!("could not read {name} of {}", site.name()));
    let bytes = site.host().read(&path).await.map_err(|error| could_not().source(error))?;
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let history =
        TimelineHistory::parse(timeline, &text).map_err(|error| could_not().source(error))?;
    history.ancestors().last().map(|ancestor| ancestor.switchpoint).ok_or_else(|| {
        Error::failed(format!("{} was promoted onto timeline {timeline}, which comes from no other", site.name()))
    })
}

/// Refuses a timeline that the archive knows already: two of one number would overwrite each other there.
async fn refuse_taken(world: &World, site: &Site<'_>, timeline: TimelineId) -> Result<()> {
    let system = provision::control_file(site).await?.system_identifier;
    let keys = ClusterKeys::new(&site.cluster.name).system(system);
    let object =
        world.repository()?.directory().join(keys.wal(WalFile::TimelineHistory(timeline)).as_str());
    let taken = site.host().stat(&object).await.map_err(|error: HostError| {
        Error::failed(format!("could not look for timeline {timeline} in the repository")).source(error)
    })?;
    match taken {
        None => Ok(()),
        Some(_) => Err(Error::refused(format!("timeline {timeline} is in the archive already"))
            .detail(format!("{} was promoted onto it all the same. Nothing of it was archived.", site.name()))
            .hint("Its restore_command did not find that file; see the server's log.")),
    }
}

/// Removes what this operation copied to a node, with what it put into tablespaces that it had emptied before.
pub(super) async fn remove(cx: &Cx<'_, RestoreStep>, node: &str) -> Result<()> {
    let site = cx.world.site(node)?;
    let ours = match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::Ours(marker) => marker.operation == site.operation,
        Claim::None | Claim::Other(_) | Claim::Unknown { .. } => false,
    };
    if ours {
        provision::stop_made(&site).await?;
        empty_tablespaces(cx.world, &site).await?;
    }
    provision::remove_made(&site).await
}

/// Removes the version directories of tablespaces whose former ones are aside: they can only be this operation's.
async fn empty_tablespaces(world: &World, site: &Site<'_>) -> Result<()> {
    let before = world.before(&site.node.name)?;
    for path in before.paths.iter().filter(|path| **path != site.node.data_directory) {
        if is_there(site, &aside(path, site.operation)).await? && is_there(site, path).await? {
            site.host().remove_tree(path).await.map_err(|error| {
                Error::failed(format!("could not remove {}", path.display())).source(error)
            })?;
        }
    }
    Ok(())
}

async fn is_there(site: &Site<'_>, path: &Path) -> Result<bool> {
    let found = site.host().stat(path).await.map_err(|error| {
        Error::failed(format!("could not look at {}", path.display())).source(error)
    })?;
    Ok(found.is_some())
}
