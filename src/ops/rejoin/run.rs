//! How each step of a rejoin is probed, done and undone.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::{promotion, queries};
use crate::engine::step::{Cx, Found, Retry, Reversal, Step, StepError, Unit};
use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::apply::evidence::Evidence as Applied;
use crate::ops::fence;
use crate::ops::observe;
use crate::ops::provision::{self, Site};
use crate::ops::rejoin::decide::Way;
use crate::ops::rejoin::evidence::Evidence;
use crate::ops::rejoin::step::RejoinStep;
use crate::ops::rejoin::world::World;
use crate::ops::rejoin::{copy, quarantine, rewind, surplus};
use crate::ops::succession;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::declared::{self, NodeWish};

const SHORT: Duration = Duration::from_secs(300);
/// How long what gets on may take.
const LONG: Duration = Duration::from_secs(86_400);
/// How long a standby may take that does not get on.
const STILL: Duration = Duration::from_secs(60);
/// How long a reload may take until its values are seen.
const TAKE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

impl Step for RejoinStep {
    type World = World;
    type Evidence = Evidence;

    fn describe(&self) -> String {
        match self {
            Self::Checkpoint { on } => format!("checkpoint on {on}"),
            Self::Slot { on, slot } => format!("slot {slot} on {on}"),
            Self::Stop { node } => format!("stop {node}, and mark it a standby"),
            Self::Replay { node } => format!("see where the WAL of {node} ends"),
            Self::Archived { on } => format!("see the timeline of {on} in the archive"),
            Self::Save { node } => format!("save what only {node} has"),
            Self::Keep { node } => format!("keep the own files of {node}"),
            Self::Open { on, node } => format!("let {node} read the files of {on}"),
            Self::Rewind { node, from } => format!("rewind {node} to {from}"),
            Self::Clone { node, backup: Some(label), .. } => format!("make {node} from backup {label}"),
            Self::Clone { node, from, unless_rewound: false, .. } => format!("clone {node} from {from}"),
            Self::Clone { node, from, unless_rewound: true, .. } => {
                format!("clone {node} from {from} if it was not rewound")
            }
            Self::Start { node, upstream } => format!("start {node} as a standby of {upstream}"),
            Self::Streams { node, .. } => format!("see {node} stream"),
            Self::Close { on, .. } => format!("close what was opened on {on}"),
            Self::Settle { on } => format!("settings of {on}"),
            Self::Unfence { node } => format!("unfence {node}"),
            Self::Slots { on, .. } => format!("drop the slots of {on}"),
            Self::Lead { host } => format!("pooler on {host}"),
            Self::Prove { .. } => "prove a write".to_owned(),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            // What was a second primary does not become one again: it stays stopped, and a standby whenever it is started.
            Self::Checkpoint { .. } | Self::Stop { .. } | Self::Archived { .. } | Self::Save { .. } => {
                Reversal::NothingToUndo
            }
            Self::Slot { .. }
            | Self::Replay { .. }
            | Self::Keep { .. }
            | Self::Open { .. }
            | Self::Clone { unless_rewound: false, .. }
            | Self::Start { .. } => Reversal::Undo,
            Self::Rewind { .. }
            | Self::Clone { unless_rewound: true, .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Close { .. }
            | Self::Unfence { .. }
            | Self::Slots { .. }
            | Self::Lead { .. }
            | Self::Prove { .. } => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Checkpoint { .. } | Self::Replay { .. } | Self::Archived { .. } | Self::Save { .. } => LONG,
            Self::Stop { .. } => quarantine::STOP + Duration::from_secs(60),
            Self::Rewind { .. } => rewind::REWIND + SHORT,
            Self::Clone { .. } => provision::CLONE + SHORT,
            Self::Start { .. } => provision::START + provision::STOP + Duration::from_secs(60),
            Self::Streams { .. } => LONG,
            Self::Slot { .. }
            | Self::Keep { .. }
            | Self::Open { .. }
            | Self::Settle { .. }
            | Self::Close { .. }
            | Self::Unfence { .. }
            | Self::Slots { .. }
            | Self::Lead { .. }
            | Self::Prove { .. } => SHORT,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Close { .. }
            | Self::Unfence { .. }
            | Self::Slots { .. }
            | Self::Lead { .. }
            | Self::Prove { .. } => Retry { attempts: 3, pause: Duration::from_millis(500) },
            Self::Checkpoint { .. }
            | Self::Slot { .. }
            | Self::Stop { .. }
            | Self::Replay { .. }
            | Self::Archived { .. }
            | Self::Save { .. }
            | Self::Keep { .. }
            | Self::Open { .. }
            | Self::Rewind { .. }
            | Self::Clone { .. }
            | Self::Start { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Evidence>, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Rewind { node, .. } => rewind::look(world, node).await?,
            Self::Streams { node, upstream } => look_streaming(world, node, upstream).await?,
            // Each of these is idempotent and looks for itself what is there.
            Self::Checkpoint { .. }
            | Self::Slot { .. }
            | Self::Stop { .. }
            | Self::Replay { .. }
            | Self::Archived { .. }
            | Self::Save { .. }
            | Self::Keep { .. }
            | Self::Open { .. }
            | Self::Clone { .. }
            | Self::Start { .. }
            | Self::Settle { .. }
            | Self::Close { .. }
            | Self::Unfence { .. }
            | Self::Slots { .. }
            | Self::Lead { .. }
            | Self::Prove { .. } => Found::NotDone,
        })
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Evidence, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Checkpoint { on } => checkpoint(world, on).await?,
            Self::Slot { on, slot } => ensure_slot(&world.site(on)?, slot).await?,
            Self::Stop { node } => quarantine::stop(world, node).await?,
            Self::Replay { node } => {
                let told = |lsn: Lsn| (cx.progress.0)(lsn.as_u64(), None, Unit::Bytes);
                let ended = quarantine::replay(world, node, &told).await?;
                hold_to_the_plan(world, node, &ended)?;
                ended
            }
            Self::Archived { on } => archived(cx, on).await?,
            Self::Save { node } => surplus::save(world, node, ended(cx), may_go_past(cx)).await?,
            Self::Keep { node } => rewind::keep(world, node).await?,
            Self::Open { node, .. } => rewind::open(world, node).await?,
            Self::Rewind { node, .. } => rewind::rewind(world, node, ended(cx), cx.progress).await?,
            Self::Clone { node, unless_rewound, backup, .. } => {
                if *unless_rewound && !could_not_rewind(cx) {
                    Evidence::NotCloned {}
                } else {
                    copy::clone(world, node, backup.as_ref(), cx.progress).await?
                }
            }
            Self::Start { node, upstream } => start(world, node, upstream).await?,
            Self::Streams { node, upstream } => {
                until_it_streams(world, node, upstream).await.map_err(StepError::unless_refused)?
            }
            Self::Close { node, .. } => {
                rewind::close(world, node).await.map_err(StepError::unless_refused)?;
                rewind::forget(&world.site(node)?).await.map_err(StepError::unless_refused)?;
                Evidence::Closed {}
            }
            Self::Settle { on } => {
                wait_as_declared(world, on).await.map_err(StepError::unless_refused)?;
                Evidence::Settled {}
            }
            Self::Unfence { node } => {
                let was = fence::lift(&world.site(node)?).await.map_err(StepError::unless_refused)?;
                Evidence::Unfenced { was }
            }
            Self::Slots { on, slots } => {
                let gone = world.succession.drop_slots(on, slots).await;
                Evidence::SlotsGone { slots: gone.map_err(StepError::unless_refused)? }
            }
            Self::Lead { host } => {
                let done = apply::pooler::ensure(&world.succession.apply, host).await;
                let done = done.map_err(StepError::unless_refused)?;
                let Applied::PoolerAnswers { aliases } = done else {
                    return Err(succession::unexpected(&done).into());
                };
                Evidence::Led { aliases }
            }
            Self::Prove { nodes } => {
                let proved = world.succession.prove(nodes).await.map_err(StepError::unless_refused)?;
                Evidence::Proved { nodes: proved.0, milliseconds: proved.1 }
            }
        })
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        let world = cx.world;
        match self {
            Self::Slot { on, slot } => {
                let conn = succession::connect(&world.site(on)?).await?;
                queries::drop_slot(&conn, slot).await.map_err(Error::from)?;
            }
            Self::Keep { node } => rewind::forget(&world.site(node)?).await?,
            Self::Open { node, .. } => rewind::close(world, node).await?,
            Self::Clone { node, unless_rewound: false, .. } => copy::undo(world, node).await?,
            // What it was started for is over, however that went.
            Self::Replay { node } | Self::Start { node, .. } => {
                quarantine::stop(world, node).await?;
            }
            Self::Checkpoint { .. }
            | Self::Stop { .. }
            | Self::Archived { .. }
            | Self::Save { .. }
            | Self::Rewind { .. }
            | Self::Clone { unless_rewound: true, .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Close { .. }
            | Self::Unfence { .. }
            | Self::Slots { .. }
            | Self::Lead { .. }
            | Self::Prove { .. } => {}
        }
        Ok(())
    }
}

/// Sees pg_control of the primary name its timeline (patroni#3367: a rewind that finds the old one there does nothing).
async fn checkpoint(world: &World, on: &str) -> Result<Evidence> {
    let site = world.site(on)?;
    let conn = succession::connect(&site).await?;
    let facts = queries::server_facts(&conn).await?;
    let wanted = world.succession.input.timeline;
    if facts.timeline != wanted || !matches!(facts.role, queries::ServerRole::Primary { .. }) {
        return Err(Error::refused(format!(
            "{} is not the primary on timeline {wanted} any more",
            site.name()
        )));
    }
    let last = promotion::last_checkpoint(&conn).await?;
    if last.timeline == wanted {
        return Ok(Evidence::Checkpointed { timeline: wanted });
    }
    Err(Error::failed(format!(
        "pg_control of {} names timeline {} after a checkpoint on timeline {wanted}",
        site.name(),
        last.timeline
    )))
}

/// Makes the slot; one that has lost its WAL is made anew, since nobody can stream from it.
async fn ensure_slot(site: &Site<'_>, slot: &str) -> Result<Evidence> {
    let conn = succession::connect(site).await?;
    let there = queries::slots(&conn).await?;
    if there.iter().any(|found| found.name == slot && found.is_lost() && !found.active) {
        queries::drop_slot(&conn, slot).await?;
    }
    Ok(Evidence::SlotThere { created: queries::ensure_physical_slot(&conn, slot).await? })
}

/// A node whose WAL ends elsewhere than the plan took for granted is not made to follow.
fn hold_to_the_plan(world: &World, node: &str, ended: &Evidence) -> Result<()> {
    if world.decision.way != Way::Follow {
        return Ok(());
    }
    let refused = |why: String| {
        Err(Error::refused(format!("{node} cannot simply follow"))
            .detail(format!("{why}. It stays stopped, and is a standby whenever it is started."))
            .hint(format!("Plan again with what is known now: pgherd rejoin {node}")))
    };
    match (ended, world.decision.fork) {
        (Evidence::Ended { timeline, lsn }, Some(fork)) if *timeline != fork.timeline || *lsn > fork.at => {
            refused(format!(
                "Its WAL ends at {lsn} on timeline {timeline}, and timeline {} was left at {}",
                fork.timeline, fork.at
            ))
        }
        (Evidence::Ended { .. }, _) => Ok(()),
        (Evidence::NotReplayed { why }, _) => refused(format!("Its WAL could not be replayed: {why}")),
        (other, _) => Err(Error::failed(format!("a replay left {other:?}"))),
    }
}

/// Sees the primary's timeline in the archive; one that is not there keeps what lies past the fork out of it, and nothing else.
async fn archived(cx: &Cx<'_, RejoinStep>, on: &str) -> Result<Evidence> {
    let world = cx.world;
    let site = world.site(on)?;
    let timeline = world.succession.input.timeline;
    let begins = provision::timeline_begins(&site, timeline).await?;
    let seen = apply::archive::goes_on(&world.succession.apply, on, (timeline, begins), cx.progress).await;
    Ok(Evidence::Archived { why_not: seen.err().map(|error| error.to_string()) })
}

fn may_go_past(cx: &Cx<'_, RejoinStep>) -> bool {
    cx.evidence.iter().any(|(_, evidence)| matches!(evidence, Evidence::Archived { why_not: None }))
}

/// Returns where the WAL of the node ends, if it was replayed.
fn ended(cx: &Cx<'_, RejoinStep>) -> Option<(TimelineId, Lsn)> {
    cx.evidence.iter().rev().find_map(|(_, evidence)| {
        if let Evidence::Ended { timeline, lsn } = evidence { Some((*timeline, *lsn)) } else { None }
    })
}

fn could_not_rewind(cx: &Cx<'_, RejoinStep>) -> bool {
    cx.evidence.iter().any(|(_, evidence)| matches!(evidence, Evidence::NotRewound { .. }))
}

/// Starts a node as a standby: the mark, its own settings, and only then what lets it start.
async fn start(world: &World, node: &str, upstream: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    provision::write(&site, &succession::signal(&site), b"", 0o600).await?;
    let runs = observe::postmaster(site.host(), &site.node.data_directory).await?.is_some();
    if !runs {
        quarantine::strip(&site).await?;
    }
    apply::configure::set_own(&site, &world.succession.wish(site.node, upstream)?).await?;
    rewind::let_start(&site).await?;
    if runs {
        queries::reload(&succession::connect(&site).await?).await?;
    } else {
        provision::start(&site).await?;
    }
    Ok(Evidence::Started {})
}

/// Has commits wait for whom the topology declares. The primary first: what a standby says is never more than what its primary waits for.
async fn wait_as_declared(world: &World, on: &str) -> Result<()> {
    let world = &world.succession;
    let nodes = [on, &world.input.from].into_iter().chain(world.input.siblings.iter().map(String::as_str));
    for node in nodes {
        let site = world.site(node)?;
        let synchronous = declared::synchronous_names(&world.input.cluster, site.node);
        let own = world.wish(site.node, on)?;
        let wish = NodeWish { synchronous: synchronous.clone(), ..own };
        apply::configure::set_own(&site, &wish).await?;
        let conn = succession::connect(&site).await?;
        queries::reload(&conn).await?;
        let deadline = Instant::now() + TAKE;
        while queries::server_facts(&conn).await?.synchronous_standby_names != synchronous {
            if Instant::now() >= deadline {
                return Err(Error::failed(format!("{} does not take its settings", site.name())).detail(
                    format!("Its synchronous_standby_names are not {synchronous:?} after a reload."),
                ));
            }
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

async fn look_streaming(world: &World, node: &str, upstream: &str) -> Result<Found<Evidence>> {
    Ok(match apply::follow::look(&world.succession.apply, node, upstream).await? {
        Found::Done(evidence) => {
            let streaming = succession::streaming(&evidence)?;
            Found::Done(Evidence::Streams { timeline: streaming.timeline, lsn: streaming.lsn })
        }
        Found::NotDone | Found::CannotTell(_) => Found::NotDone,
    })
}

/// Waits until the node streams; how long depends on whether it gets on with its replay (pg_auto_failover#1172).
async fn until_it_streams(world: &World, node: &str, upstream: &str) -> Result<Evidence> {
    let (site, above) = (world.site(node)?, world.site(upstream)?);
    let (mut since, mut last) = (Instant::now(), None);
    loop {
        if let Found::Done(evidence) = look_streaming(world, node, upstream).await? {
            return Ok(evidence);
        }
        let now = match site.connect().await {
            Ok(conn) => queries::server_facts(&conn).await.ok().and_then(|facts| facts.role.lsn()),
            Err(_) => provision::control_file(&site).await.ok().map(|control| control.checkpoint_redo),
        };
        if now != last {
            (since, last) = (Instant::now(), now);
        }
        if since.elapsed() >= STILL {
            return Err(Error::failed(format!("{} does not stream from {}", site.name(), above.name()))
                .detail(format!(
                    "For {} s it has not got on{}.\n{}",
                    STILL.as_secs(),
                    last.map(|lsn| format!(", from {lsn}")).unwrap_or_default(),
                    provision::last_log_lines(&site).await.join("\n")
                ))
                .hint(format!("Its log is in {}.", site.places().log.display())));
        }
        sleep(PAUSE).await;
    }
}
