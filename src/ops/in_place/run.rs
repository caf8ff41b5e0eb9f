//! How each step of a restore in place is probed, done and undone.

use std::time::Duration;

use crate::db::{Login, promotion, queries};
use crate::engine::step::{Cx, Found, Retry, Reversal, Step, StepError, Unit};
use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::apply::evidence::Evidence as Applied;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::step::RestoreStep;
use crate::ops::in_place::world::World;
use crate::ops::in_place::{archive, aside, files, poolers, seed, servers};
use crate::ops::objects::{self, ToPrimary};
use crate::ops::observe::{self, Claim};
use crate::ops::provision::{self, Site};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::declared;

/// How long a copy, or a replay, may take.
const LONG: Duration = Duration::from_secs(7 * 86_400);
const SHORT: Duration = Duration::from_secs(300);

impl Step for RestoreStep {
    type World = World;
    type Evidence = Evidence;

    fn describe(&self) -> String {
        match self {
            Self::Pause { hosts } => format!("hold back the clients of the pooler on {}", hosts.join(", ")),
            Self::LastWal { node } => format!("archive the last WAL of {node}"),
            Self::Stop { node } => format!("stop {node}"),
            Self::Backfill { node } => format!("archive what {node} had left"),
            Self::SetAside { node, .. } => format!("set the data of {node} aside"),
            Self::Copy { node } => format!("copy the backup to {node}"),
            Self::Recover { node } => format!("replay {node} to the target"),
            Self::Promote { node } => format!("promote {node}"),
            Self::Logins { .. } => "logins of standbys and of the write proof".to_owned(),
            Self::Passwords { .. } => "passwords as declared".to_owned(),
            Self::Slot { on, slot } => format!("slot {slot} on {on}"),
            Self::Clone { node, from } => format!("clone {node} from {from}"),
            Self::Follow { node, upstream } => format!("start {node}, stream from {upstream}"),
            Self::Catalogs { node } => format!("read the system catalogs of {node}"),
            Self::Keep {} => "keep what is restored".to_owned(),
            Self::Open { node } => format!("open {node}"),
            Self::Archive { node } => format!("see the archive of {node} go on"),
            Self::Record { node } => format!("record {node} as primary"),
            Self::Pooler { host } => format!("pooler on {host}"),
            Self::Resume { hosts } => format!("let the clients of the pooler on {} go on", hosts.join(", ")),
            Self::Prove { .. } => "prove a write".to_owned(),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::Pause { .. }
            | Self::Stop { .. }
            | Self::SetAside { .. }
            | Self::Copy { .. }
            | Self::Recover { .. }
            | Self::Promote { .. }
            | Self::Clone { .. }
            | Self::Follow { .. } => Reversal::Undo,
            // What it changes goes with the copy.
            Self::Logins { .. } | Self::Passwords { .. } | Self::Slot { .. } => Reversal::NothingToUndo,
            // WAL that is in the archive stays there; the rest only looks.
            Self::LastWal { .. } | Self::Backfill { .. } | Self::Catalogs { .. } | Self::Prove { .. } => {
                Reversal::NothingToUndo
            }
            Self::Keep {}
            | Self::Open { .. }
            | Self::Archive { .. }
            | Self::Record { .. }
            | Self::Pooler { .. }
            | Self::Resume { .. } => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Copy { .. } | Self::Recover { .. } | Self::Clone { .. } => LONG,
            // These end by themselves when the archiver stands still.
            Self::LastWal { .. } | Self::Backfill { .. } | Self::Archive { .. } => LONG,
            Self::Catalogs { .. } => Duration::from_secs(3600),
            Self::Promote { .. } => seed::PROMOTE,
            Self::Stop { .. } | Self::Follow { .. } | Self::Open { .. } => {
                provision::START + provision::STOP + Duration::from_secs(60)
            }
            Self::Pause { .. }
            | Self::SetAside { .. }
            | Self::Logins { .. }
            | Self::Passwords { .. }
            | Self::Slot { .. }
            | Self::Keep {}
            | Self::Record { .. }
            | Self::Pooler { .. }
            | Self::Resume { .. }
            | Self::Prove { .. } => SHORT,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            // Past the pivot each of them may be done again, and a connection that broke is no reason to leave it.
            Self::Open { .. }
            | Self::Record { .. }
            | Self::Pooler { .. }
            | Self::Resume { .. }
            | Self::Prove { .. } => Retry { attempts: 3, pause: Duration::from_millis(500) },
            Self::Pause { .. }
            | Self::LastWal { .. }
            | Self::Stop { .. }
            | Self::Backfill { .. }
            | Self::SetAside { .. }
            | Self::Copy { .. }
            | Self::Recover { .. }
            | Self::Promote { .. }
            | Self::Logins { .. }
            | Self::Passwords { .. }
            | Self::Slot { .. }
            | Self::Clone { .. }
            | Self::Follow { .. }
            | Self::Catalogs { .. }
            | Self::Keep {}
            | Self::Archive { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Evidence>, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Stop { node } => servers::look(&world.site(node)?).await?,
            Self::SetAside { node, paths } => aside::look(&world.site(node)?, paths).await?,
            Self::Copy { node } | Self::Clone { node, .. } => made(&world.site(node)?).await?,
            Self::Promote { node } => seed::look_promoted(world, node).await?,
            Self::Follow { node, upstream } => {
                match apply::follow::look(&world.apply, node, upstream).await? {
                    Found::Done(evidence) => Found::Done(streams(evidence)?),
                    Found::NotDone => Found::NotDone,
                    Found::CannotTell(why) => Found::CannotTell(why),
                }
            }
            Self::Keep {} => Found::Done(Evidence::Kept {}),
            Self::Open { node } => files::look(world, node).await?,
            // Each of these is idempotent and looks for itself what is there; and what was proved before is proved again.
            Self::Pause { .. }
            | Self::LastWal { .. }
            | Self::Backfill { .. }
            | Self::Recover { .. }
            | Self::Logins { .. }
            | Self::Passwords { .. }
            | Self::Slot { .. }
            | Self::Catalogs { .. }
            | Self::Archive { .. }
            | Self::Record { .. }
            | Self::Pooler { .. }
            | Self::Resume { .. }
            | Self::Prove { .. } => Found::NotDone,
        })
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Evidence, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Pause { hosts } => poolers::pause(world, hosts).await?,
            Self::LastWal { node } => archive::last_wal(world, node, cx.progress).await?,
            Self::Stop { node } => servers::stop(&world.site(node)?).await?,
            Self::Backfill { node } => servers::backfill(&world.site(node)?).await?,
            Self::SetAside { node, paths } => aside::set_aside(&world.site(node)?, paths).await?,
            Self::Copy { node } => seed::copy(world, node, cx.progress).await?,
            Self::Recover { node } => seed::recover(world, node, cx.progress).await?,
            Self::Promote { node } => seed::promote(world, node).await?,
            Self::Logins { nodes } => {
                apply::logins::ensure(&world.apply, nodes).await?;
                Evidence::LoginsSet {}
            }
            Self::Passwords { roles } => passwords(world, roles).await?,
            Self::Slot { on, slot } => {
                let conn = world.site(on)?.connect().await.map_err(Error::from)?;
                let created = queries::ensure_physical_slot(&conn, slot).await.map_err(Error::from)?;
                Evidence::SlotThere { created }
            }
            Self::Clone { node, from } => {
                let site = world.site(node)?;
                let from = world.apply.node(from)?;
                let wish = world.wish(
                    site.node,
                    Some(from),
                    declared::synchronous_names(world.cluster(), site.node),
                );
                let report =
                    |done: u64, total: u64| (cx.progress.0)(done << 10, Some(total << 10), Unit::Bytes);
                let system_identifier = provision::clone(&site, from, &wish, &report).await?;
                Evidence::Made { system_identifier }
            }
            Self::Follow { node, upstream } => {
                // What the clone has brought along are the other node's.
                files::close(&world.site(node)?).await?;
                streams(apply::follow::start(&world.apply, node, upstream).await?)?
            }
            Self::Catalogs { node } => catalogs(world, node, cx).await?,
            Self::Keep {} => Evidence::Kept {},
            Self::Open { node } => files::open(world, node).await.map_err(StepError::unless_refused)?,
            Self::Archive { node } => archive::goes_on(world, node, promoted(cx)?, cx.progress)
                .await
                .map_err(StepError::unless_refused)?,
            Self::Record { node } => {
                let done =
                    apply::archive::record(&world.apply, node).await.map_err(StepError::unless_refused)?;
                let Applied::Recorded { term } = done else { return Err(unexpected(&done).into()) };
                Evidence::Recorded { term }
            }
            Self::Pooler { host } => {
                let done =
                    apply::pooler::ensure(&world.apply, host).await.map_err(StepError::unless_refused)?;
                let Applied::PoolerAnswers { aliases } = done else { return Err(unexpected(&done).into()) };
                Evidence::PoolerAnswers { aliases }
            }
            Self::Resume { hosts } => {
                poolers::resume(world, hosts).await.map_err(StepError::unless_refused)?
            }
            Self::Prove { nodes } => {
                let done =
                    apply::proof::prove(&world.apply, nodes).await.map_err(StepError::unless_refused)?;
                let Applied::Proved { nodes, milliseconds } = done else {
                    return Err(unexpected(&done).into());
                };
                Evidence::Proved { nodes, milliseconds }
            }
        })
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        let world = cx.world;
        match self {
            Self::Pause { hosts } => {
                poolers::resume(world, hosts).await?;
            }
            Self::Stop { node } => servers::start_as_before(world, node).await?,
            Self::SetAside { node, paths } => aside::put_back(&world.site(node)?, paths).await?,
            Self::Copy { node } | Self::Clone { node, .. } => seed::remove(cx, node).await?,
            Self::Recover { node } | Self::Promote { node } | Self::Follow { node, .. } => {
                stop_made(&world.site(node)?).await?;
            }
            Self::LastWal { .. }
            | Self::Backfill { .. }
            | Self::Logins { .. }
            | Self::Passwords { .. }
            | Self::Slot { .. }
            | Self::Catalogs { .. }
            | Self::Keep {}
            | Self::Open { .. }
            | Self::Archive { .. }
            | Self::Record { .. }
            | Self::Pooler { .. }
            | Self::Resume { .. }
            | Self::Prove { .. } => {}
        }
        Ok(())
    }
}

/// Stops a server that this operation made; nothing else is behind that directory, or the marker says so.
async fn stop_made(site: &Site<'_>) -> Result<()> {
    provision::stop_made(site).await
}

/// A directory is complete when its marker carries the system identifier: that is written last.
async fn made(site: &Site<'_>) -> Result<Found<Evidence>> {
    match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::Ours(marker) if marker.operation == site.operation => Ok(match marker.system_identifier {
            Some(system_identifier) => Found::Done(Evidence::Made { system_identifier }),
            None => Found::NotDone,
        }),
        Claim::None | Claim::Ours(_) => Ok(Found::NotDone),
        Claim::Other(marker) => Ok(Found::CannotTell(format!(
            "the marker of {} claims {}",
            site.name(),
            marker.data_directory.display()
        ))),
        Claim::Unknown { why } => {
            Ok(Found::CannotTell(format!("the marker of {} cannot be read: {why}", site.name())))
        }
    }
}

fn streams(evidence: Applied) -> Result<Evidence> {
    let Applied::Streams { timeline, lsn } = evidence else { return Err(unexpected(&evidence)) };
    Ok(Evidence::Streams { timeline, lsn })
}

fn unexpected(evidence: &Applied) -> Error {
    Error::failed(format!("a step that is shared with apply left {evidence:?}"))
}

/// Returns the timeline that the promotion began, and where.
fn promoted(cx: &Cx<'_, RestoreStep>) -> Result<(TimelineId, Lsn)> {
    let found = cx.evidence.iter().rev().find_map(|(_, evidence)| {
        if let Evidence::Promoted { timeline, begins } = evidence { Some((*timeline, *begins)) } else { None }
    });
    found.ok_or_else(|| Error::failed("the journal does not say which timeline was begun"))
}

/// Gives the declared roles that are there their declared passwords.
async fn passwords(world: &World, roles: &[String]) -> Result<Evidence> {
    let login = superuser(world)?;
    let to = ToPrimary { connector: &world.doors().connector, login: &login };
    objects::set_passwords(to, roles, &world.apply.passwords).await?;
    Ok(Evidence::PasswordsSet {})
}

fn superuser(world: &World) -> Result<Login> {
    Ok(world.doors().superuser(world.cluster(), world.seed()?.node, "postgres"))
}

async fn catalogs(world: &World, node: &str, cx: &Cx<'_, RestoreStep>) -> Result<Evidence> {
    let site = world.site(node)?;
    let databases = promotion::databases(&site.connect().await?).await?;
    let mut catalogs = 0;
    for (done, database) in databases.iter().enumerate() {
        (cx.progress.0)(done as u64, Some(databases.len() as u64), Unit::Items);
        catalogs += promotion::read_catalogs(&site.connect_to(database).await?)
            .await
            .map_err(|error| Error::from(error).context(format!("read the catalogs of {database}")))?;
    }
    Ok(Evidence::CatalogsRead { databases: databases.len() as u64, catalogs })
}
