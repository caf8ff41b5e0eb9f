//! How each step of a failover is probed, done and undone.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::db::queries::{self, ServerRole};
use crate::db::recovery;
use crate::engine::step::{Cx, Found, Retry, Reversal, Step, StepError};
use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::failover::evidence::{Evidence, Fetched};
use crate::ops::failover::step::FailStep;
use crate::ops::failover::{KIND, backfill, salvage};
use crate::ops::fence::{self, Force, ShutOut};
use crate::ops::hook::Point;
use crate::ops::provision::{self, Site};
use crate::ops::succession::{self, Look, Promoted, Streaming, World, connect, streaming};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::declared::NodeWish;
use crate::topology::hooks::Hook;
use crate::units::ByteCount;

/// How long a standby may take to let go of a primary that is gone.
const FREEZE: Duration = Duration::from_secs(15);
/// How long what is left of the old primary may take to end by itself before it is killed.
const ENDS: Duration = Duration::from_secs(3);
/// How long a standby may take to get what another one has. It ends by itself when nothing comes any more.
const FETCH: Duration = Duration::from_secs(60);
/// How long clients wait for a standby that their commits may need.
const MOMENT: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_secs(300);
/// How long replay and the archiver may take; each ends by itself when it stands still.
const LONG: Duration = Duration::from_secs(86_400);
const STILL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// How often a server must say that there is no more WAL before it is believed.
const PARKED: usize = 2;

impl Step for FailStep {
    type World = World;
    type Evidence = Evidence;

    fn describe(&self) -> String {
        match self {
            Self::WhenUndone {} => "tell of it if this is taken back".to_owned(),
            Self::Hook { point } => format!("hook {}", point.word()),
            Self::FenceHook { .. } => "hook fence".to_owned(),
            Self::Hooked { point } => format!("see that hook {} is done", point.word()),
            Self::Freeze { node } => format!("have {node} receive nothing"),
            Self::ShutOut { node } => format!("shut {node} out"),
            Self::Starve { .. } => "see that no commit of the old primary ends".to_owned(),
            Self::Statement { .. } => "take the operator's word for the old primary".to_owned(),
            Self::Complete { node, .. } => format!("see that {node} has what every standby has"),
            Self::Salvage { from, node, .. } => format!("bring what only {from} has to {node}"),
            Self::Slot { on, slot } => format!("slot {slot} on {on}"),
            Self::Ready { node } => format!("see that {node} may be promoted"),
            Self::Promote { node } => format!("promote {node}"),
            Self::Follow { node } => format!("lead {node} to the new primary"),
            Self::Turn { host } => format!("lead the pooler on {host}"),
            Self::Lead { host } => format!("pooler on {host}"),
            Self::Streams { node } => format!("see {node} stream"),
            Self::Settle { node } => format!("checkpoint of the new timeline on {node}"),
            Self::Record { node } => format!("record {node} as primary"),
            Self::Backfill { .. } => "archive what the old primary had not archived".to_owned(),
            Self::Archive { node } => format!("see the archive of {node} go on"),
            Self::Prove { .. } => "prove a write".to_owned(),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::WhenUndone {}
            | Self::Freeze { .. }
            | Self::ShutOut { .. }
            | Self::Slot { .. }
            | Self::Ready { .. } => Reversal::Undo,
            Self::Hook { point: Point::AfterPromote | Point::AfterSwitchover | Point::AfterFailover } => {
                Reversal::ForwardOnly
            }
            Self::Hook {
                point: Point::BeforeSwitchover | Point::Fence | Point::BeforePromote | Point::AfterUndo,
            }
            | Self::FenceHook { .. } => Reversal::NothingToUndo,
            // What a standby was given of the primary's own log is the primary's own log.
            Self::Starve { .. } | Self::Statement { .. } | Self::Complete { .. } | Self::Salvage { .. } => {
                Reversal::NothingToUndo
            }
            Self::Promote { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Backfill { .. }
            | Self::Archive { .. }
            | Self::Prove { .. }
            | Self::Hooked { .. } => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::WhenUndone {} | Self::Hook { .. } | Self::FenceHook { .. } | Self::Hooked { .. } => {
                Hook::LONGEST + Duration::from_secs(60)
            }
            Self::Ready { .. } | Self::Backfill { .. } | Self::Archive { .. } | Self::Salvage { .. } => LONG,
            Self::Promote { .. } => succession::PROMOTE + Duration::from_secs(30),
            Self::Streams { .. } => provision::START + provision::STOP + Duration::from_secs(60),
            Self::Freeze { .. }
            | Self::ShutOut { .. }
            | Self::Starve { .. }
            | Self::Statement { .. }
            | Self::Complete { .. }
            | Self::Slot { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Prove { .. } => SHORT,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            // Past the pivot each of them may be done again, and a connection that broke is no reason to leave it.
            Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Backfill { .. }
            | Self::Prove { .. } => Retry { attempts: 3, pause: Duration::from_millis(500) },
            Self::WhenUndone {}
            | Self::Hook { .. }
            | Self::FenceHook { .. }
            | Self::Hooked { .. }
            | Self::Freeze { .. }
            | Self::ShutOut { .. }
            | Self::Starve { .. }
            | Self::Statement { .. }
            | Self::Complete { .. }
            | Self::Salvage { .. }
            | Self::Slot { .. }
            | Self::Ready { .. }
            | Self::Promote { .. }
            | Self::Follow { .. }
            | Self::Archive { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Evidence>, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Promote { node } => match world.look_promoted(node).await? {
                Look::Primary(Promoted { timeline, begins }) => {
                    Found::Done(Evidence::Promoted { timeline, begins })
                }
                Look::Standby => Found::NotDone,
                Look::Strange { why } => Found::CannotTell(why),
            },
            Self::Streams { node } => match apply::follow::look(&world.apply, node, &world.input.to).await? {
                Found::Done(evidence) => Found::Done(streams(streaming(&evidence)?)),
                Found::NotDone | Found::CannotTell(_) => Found::NotDone,
            },
            // Each of these is idempotent and looks for itself what is there; and what was proved before is proved again.
            Self::WhenUndone {}
            | Self::Hook { .. }
            | Self::FenceHook { .. }
            | Self::Hooked { .. }
            | Self::Freeze { .. }
            | Self::ShutOut { .. }
            | Self::Starve { .. }
            | Self::Statement { .. }
            | Self::Complete { .. }
            | Self::Salvage { .. }
            | Self::Slot { .. }
            | Self::Ready { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Backfill { .. }
            | Self::Archive { .. }
            | Self::Prove { .. } => Found::NotDone,
        })
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Evidence, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::WhenUndone {} => Evidence::WhenUndone {},
            Self::Hook { point } => hook(cx, *point, promoted(cx).is_err()).await?,
            Self::FenceHook { needed } => hook(cx, Point::Fence, *needed).await?,
            Self::Hooked { point } => match hooked(cx, *point) {
                Some(done) => done,
                None => hook(cx, *point, true).await?,
            },
            Self::Freeze { node } => freeze(world, node).await?,
            Self::ShutOut { node } => {
                let site = world.site(node)?;
                let why = format!("{} takes its place", world.input.cluster.full_name(&world.input.to));
                shut_out(fence::shut_out(&site, &why, Force::ThenKill, ENDS).await?)
            }
            Self::Starve { nodes, need } => starve(world, nodes, *need).await?,
            Self::Statement { .. } => Evidence::Stated {},
            Self::Complete { node, others } => complete(world, node, others).await?,
            Self::Salvage { from, node, may_lose } => match salvage::bring(world, from, node).await {
                Err(error) if *may_lose => Evidence::NotSalvaged { why: error.to_string() },
                brought => brought?,
            },
            Self::Slot { on, slot } => {
                let conn = connect(&world.site(on)?).await?;
                queries::ensure_physical_slot(&conn, slot).await.map_err(Error::from)?;
                Evidence::SlotThere {}
            }
            Self::Ready { node } => ready(world, node).await?,
            Self::Promote { node } => {
                let Promoted { timeline, begins } = world.promote(node).await?;
                Evidence::Promoted { timeline, begins }
            }
            Self::Follow { node } => {
                let led = world.lead_for_a_moment(node, MOMENT).await;
                Evidence::Pointed { why_not: led.err().map(|error| error.to_string()) }
            }
            Self::Turn { host } => {
                let aliases = world.turn_pooler(host, true).await.map_err(StepError::unless_refused)?;
                Evidence::Led { aliases }
            }
            Self::Lead { host } => {
                Evidence::Led { aliases: world.lead_pooler(host).await.map_err(StepError::unless_refused)? }
            }
            Self::Streams { node } => {
                world.point(node).await.map_err(StepError::unless_refused)?;
                streams(world.until_it_streams(node).await.map_err(StepError::unless_refused)?)
            }
            Self::Settle { node } => {
                world.settle(node).await.map_err(StepError::unless_refused)?;
                Evidence::Settled {}
            }
            Self::Record { node } => {
                Evidence::Recorded { term: world.record(node).await.map_err(StepError::unless_refused)? }
            }
            Self::Backfill { node } => {
                backfill::fill(world, node, promoted(cx)?).await.map_err(StepError::unless_refused)?
            }
            Self::Archive { node } => {
                let found = apply::archive::goes_on(&world.apply, node, promoted(cx)?, cx.progress).await;
                let found = found.map_err(StepError::unless_refused)?;
                Evidence::ArchiveGoesOn { history: found.history, first: found.first, last: found.last }
            }
            Self::Prove { nodes } => {
                let (nodes, milliseconds) = world.prove(nodes).await.map_err(StepError::unless_refused)?;
                Evidence::Proved { nodes, milliseconds }
            }
        })
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        let world = cx.world;
        match self {
            Self::Freeze { node } => thaw(world, node).await?,
            // It did not run, and is not started: who is primary then is for the operator to say.
            Self::ShutOut { node } => fence::let_in(&world.site(node)?).await?,
            Self::Slot { on, slot } => {
                let conn = connect(&world.site(on)?).await?;
                queries::drop_slot(&conn, slot).await.map_err(Error::from)?;
            }
            Self::Ready { node } => world.no_longer_asked(node).await?,
            // Everything is as it was: that somebody could not be told of it does not make the operation stuck.
            Self::WhenUndone {} => {
                if let Err(error) = world.hook(Point::AfterUndo, (KIND, cx.attempt), None).await {
                    tracing::warn!(%error, detail = error.detail_text(), "the hook after-undo failed");
                }
            }
            Self::Hook { .. }
            | Self::FenceHook { .. }
            | Self::Hooked { .. }
            | Self::Starve { .. }
            | Self::Statement { .. }
            | Self::Complete { .. }
            | Self::Salvage { .. }
            | Self::Promote { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Backfill { .. }
            | Self::Archive { .. }
            | Self::Prove { .. } => {}
        }
        Ok(())
    }
}

/// Runs a hook; the failure of one that is not needed here is kept, and the operation goes on.
async fn hook(cx: &Cx<'_, FailStep>, point: Point, needed: bool) -> Result<Evidence> {
    let done = promoted(cx).ok().map(|(timeline, begins)| Promoted { timeline, begins });
    // Told apart by what it is run after: the second step of a hook is its second attempt.
    let is_of = |left: &Evidence| matches!(left, Evidence::Hooked { point: of, .. } if *of == point);
    let before = cx.evidence.iter().filter(|(_, left)| is_of(left)).count();
    let attempt = cx.attempt + u32::try_from(before).unwrap_or(u32::MAX);
    match cx.world.hook(point, (KIND, attempt), done).await {
        Ok(ran) => Ok(Evidence::Hooked { point, ran, why_not: None }),
        Err(error) if !needed => Ok(Evidence::Hooked { point, ran: None, why_not: Some(error.to_string()) }),
        Err(error) => Err(error),
    }
}

/// Returns what a hook left that has done its work.
fn hooked(cx: &Cx<'_, FailStep>, point: Point) -> Option<Evidence> {
    let done =
        |left: &&Evidence| matches!(left, Evidence::Hooked { point: of, why_not: None, .. } if *of == point);
    cx.evidence.iter().map(|(_, left)| left).find(done).cloned()
}

fn streams(Streaming { timeline, lsn }: Streaming) -> Evidence {
    Evidence::Streams { timeline, lsn }
}

fn shut_out(out: ShutOut) -> Evidence {
    let control = out.control.as_ref();
    Evidence::ShutOut {
        state: control.map(|control| control.state.to_string()),
        timeline: control.map(|control| control.timeline),
        checkpoint: control.map(|control| control.checkpoint),
    }
}

/// Gives a standby settings of its own that lead it to `upstream`, or to nobody, and waits until its receiver has let go of everybody else.
async fn follow_only(world: &World, site: &Site<'_>, upstream: Option<&str>) -> Result<()> {
    let upstream = upstream.map(|name| world.apply.node(name)).transpose()?;
    let own = world.wish(site.node, &world.input.to)?;
    let wish = NodeWish { upstream, synchronous: own.synchronous, memory: own.memory };
    apply::configure::set_own(site, &wish).await?;
    let conn = connect(site).await?;
    queries::reload(&conn).await?;
    Ok(())
}

/// A standby that receives nothing can confirm nothing, and what it has stands still.
async fn freeze(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    follow_only(world, &site, None).await?;
    let (timeline, has) = until_it_receives_nothing(world, &site).await?;
    Ok(Evidence::Frozen { timeline, has })
}

async fn until_it_receives_nothing(world: &World, site: &Site<'_>) -> Result<(TimelineId, Lsn)> {
    let conn = connect(site).await?;
    let deadline = Instant::now() + FREEZE;
    loop {
        let facts = queries::server_facts(&conn).await?;
        match &facts.role {
            ServerRole::Standby { receiver: None, .. } => {
                let (timeline, reached) =
                    succession::identify(&world.apply.doors, &world.input.cluster, site.node).await?;
                return Ok((timeline, facts.role.lsn().map_or(reached, |lsn| lsn.max(reached))));
            }
            ServerRole::Standby { receiver: Some(receiver), .. } if Instant::now() >= deadline => {
                return Err(Error::failed(format!("{} still receives WAL", site.name())).detail(format!(
                    "Its receiver is {} after {} s without an upstream in its settings.",
                    receiver.status,
                    FREEZE.as_secs()
                )));
            }
            ServerRole::Standby { receiver: Some(_), .. } => sleep(PAUSE).await,
            ServerRole::Primary { .. } => {
                return Err(Error::refused(format!("{} is a primary already", site.name())));
            }
        }
    }
}

/// Has a standby follow the old primary again, unless it has become something else.
async fn thaw(world: &World, node: &str) -> Result<()> {
    let site = world.site(node)?;
    if let Ok(conn) = site.connect().await
        && matches!(queries::server_facts(&conn).await?.role, ServerRole::Primary { .. })
    {
        return Err(Error::refused(format!("{} is a primary", site.name())));
    }
    apply::configure::set_own(&site, &world.wish(site.node, &world.input.from)?).await?;
    // One that does not run reads it when it starts.
    if let Ok(conn) = site.connect().await {
        queries::reload(&conn).await?;
    }
    Ok(())
}

/// Sees that so many standbys receive nothing, at one and the same time.
async fn starve(world: &World, nodes: &[String], need: usize) -> Result<Evidence> {
    let looks = join_all(nodes.iter().map(async |node| {
        let facts = queries::server_facts(&connect(&world.site(node)?).await?).await?;
        Ok::<_, Error>(matches!(facts.role, ServerRole::Standby { receiver: None, .. }))
    }));
    let mut frozen = Vec::new();
    let mut why = Vec::new();
    for (node, look) in nodes.iter().zip(looks.await) {
        match look {
            Ok(true) => frozen.push(node.clone()),
            Ok(false) => why.push(format!("{node} still receives")),
            Err(error) => why.push(error.to_string()),
        }
    }
    if frozen.len() >= need {
        return Ok(Evidence::Starved { frozen });
    }
    Err(Error::failed("commits of the old primary may still be confirmed").detail(format!(
        "{} of {} standbys receive nothing, {need} are needed: {}.",
        frozen.len(),
        nodes.len(),
        why.join("; ")
    )))
}

/// Sees that nobody has more than the node, and has it fetch what it lacks.
async fn complete(world: &World, node: &str, others: &[String]) -> Result<Evidence> {
    let site = world.site(node)?;
    let theirs = others.iter().map(async |other| {
        let (timeline, has) = until_it_receives_nothing(world, &world.site(other)?).await?;
        Ok::<_, Error>((other, timeline, has))
    });
    let (own, theirs) = futures_util::join!(until_it_receives_nothing(world, &site), join_all(theirs));
    let (timeline, mut has) = own?;
    let mut most: Option<(&String, Lsn)> = None;
    for found in theirs {
        let (other, theirs, reached) = found?;
        if theirs != timeline {
            return Err(Error::failed(format!("{other} is on timeline {theirs}, {node} on {timeline}")));
        }
        if most.is_none_or(|(_, lsn)| reached > lsn) {
            most = Some((other, reached));
        }
    }
    let mut fetched = None;
    if let Some((from, wanted)) = most
        && wanted > has
    {
        let bytes = ByteCount(wanted.as_u64() - has.as_u64());
        has = fetch(world, &site, from, wanted).await?;
        fetched = Some(Fetched { from: from.clone(), bytes });
    }
    Ok(Evidence::Complete { has, fetched })
}

/// Has a standby stream from another one until it has everything up to `wanted`.
async fn fetch(world: &World, site: &Site<'_>, from: &str, wanted: Lsn) -> Result<Lsn> {
    let donor = world.site(from)?;
    let slot = world.input.cluster.slot_name(&site.node.name);
    let there = connect(&donor).await?;
    queries::ensure_physical_slot(&there, &slot).await?;
    follow_only(world, site, Some(from)).await?;
    let conn = connect(site).await?;
    let deadline = Instant::now() + FETCH;
    let got = loop {
        let facts = queries::server_facts(&conn).await?;
        if facts.role.lsn().is_some_and(|lsn| lsn >= wanted) {
            break Ok(());
        }
        if Instant::now() >= deadline {
            break Err(Error::failed(format!("{} does not get what {} has", site.name(), donor.name()))
                .detail(format!(
                    "After {} s it has {}, and {} has {wanted}.\n{}",
                    FETCH.as_secs(),
                    facts.role.lsn().map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string()),
                    donor.name(),
                    provision::last_log_lines(site).await.join("\n")
                )));
        }
        sleep(PAUSE).await;
    };
    follow_only(world, site, None).await?;
    let frozen = until_it_receives_nothing(world, site).await;
    queries::drop_slot(&there, &slot).await.ok();
    got?;
    Ok(frozen?.1)
}

/// Waits until everything that was received is replayed. A record that was cut off is never replayed: then the server has to say twice, at
/// the same place, that there is no more WAL.
async fn ready(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    let conn = connect(&site).await?;
    let mut last: Option<Lsn> = None;
    let (mut since, mut parked) = (Instant::now(), 0);
    loop {
        let facts = queries::server_facts(&conn).await?;
        let ServerRole::Standby { received_lsn, replay_paused, receiver, .. } = &facts.role else {
            return Err(Error::failed(format!("{} is a primary already", site.name())));
        };
        if *replay_paused {
            return Err(Error::failed(format!("replay is paused on {}", site.name())));
        }
        if receiver.is_some() {
            return Err(Error::failed(format!("{} receives WAL again", site.name())));
        }
        let state = recovery::recovery(&conn).await?;
        let replayed = state.replayed_lsn;
        if replayed > last {
            (last, since, parked) = (replayed, Instant::now(), 0);
        }
        if state.startup_waits.as_deref() == Some(recovery::NO_MORE_WAL) {
            parked += 1;
        }
        if parked >= PARKED || received_lsn.is_none_or(|received| replayed >= Some(received)) {
            return Ok(Evidence::Ready { replayed });
        }
        if since.elapsed() >= STILL {
            let told = |lsn: Option<Lsn>| lsn.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string());
            return Err(Error::failed(format!("{} does not replay what it has", site.name())).detail(
                format!(
                    "It has received up to {}, and stands at {} for {} s.",
                    told(*received_lsn),
                    told(replayed),
                    STILL.as_secs()
                ),
            ));
        }
        sleep(PAUSE).await;
    }
}

/// Returns the timeline that the promotion began, and where.
fn promoted(cx: &Cx<'_, FailStep>) -> Result<(TimelineId, Lsn)> {
    let found = cx.evidence.iter().rev().find_map(|(_, evidence)| {
        if let Evidence::Promoted { timeline, begins } = evidence { Some((*timeline, *begins)) } else { None }
    });
    found.ok_or_else(|| Error::failed("the journal does not say which timeline was begun"))
}
