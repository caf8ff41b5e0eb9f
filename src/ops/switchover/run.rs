//! How each step of a switchover is probed, done and undone.

use std::time::Duration;

use futures_util::future::{join, join_all};
use tokio::time::{Instant, sleep};

use crate::db::queries::{self, ServerRole};
use crate::db::{Conn, DbError, promotion};
use crate::engine::step::{Cx, Found, Retry, Reversal, Step, StepError};
use crate::error::{Error, Result};
use crate::host::Command;
use crate::ops::apply;
use crate::ops::hook::{Point, Ran};
use crate::ops::observe;
use crate::ops::provision::{self, Site};
use crate::ops::succession;
use crate::ops::succession::{Look, Promoted, Streaming, World, connect, signal, streaming, within};
use crate::ops::switchover::KIND;
use crate::ops::switchover::evidence::Evidence;
use crate::ops::switchover::step::SwitchStep;
use crate::pg::control_file::ClusterState;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::hooks::Hook;

/// How long the primary may take to end while clients wait.
pub(super) const STOP: Duration = Duration::from_secs(45);
/// How long the candidate may take to replay what the old primary wrote last.
const HAS: Duration = Duration::from_secs(15);
/// How long a checkpoint of the candidate may take to name it after that.
const PROVED: Duration = Duration::from_secs(2);
/// How long the reading of one record may take.
const RECORD: Duration = Duration::from_secs(5);
/// How long clients wait for a standby that their commits may need.
const MOMENT: Duration = Duration::from_secs(5);
/// How long clients wait for the standbys of an old primary that serves again.
const BACK: Duration = Duration::from_secs(10);
/// How long a shutdown that did not end is waited for when its undo is tried once more.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the candidate may take to replay what was written while clients write on.
const KEEPS_UP: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(300);
/// How long the archiver may take; it ends by itself when it stands still.
const LONG: Duration = Duration::from_secs(86_400);
const PAUSE: Duration = Duration::from_millis(20);
/// A checkpoint that took longer than this is followed by another one, which then is short.
const BRIEF: Duration = Duration::from_secs(1);
const CHECKPOINTS: usize = 3;

impl Step for SwitchStep {
    type World = World;
    type Evidence = Evidence;

    fn describe(&self) -> String {
        match self {
            Self::WhenUndone {} => "tell of an undo".to_owned(),
            Self::Hook { point } => format!("hook {}", point.word()),
            Self::Slot { on, slot } => format!("slot {slot} on {on}"),
            Self::Checkpoint { node } => format!("checkpoint on {node}"),
            Self::Arm { hosts, seconds } => {
                format!("on {}: let clients go on by itself after {seconds} s", hosts.join(", "))
            }
            Self::Pause { hosts, .. } => {
                format!("hold back the clients of the pooler on {}", hosts.join(", "))
            }
            Self::Stop { node } => format!("stop {node}"),
            Self::Has { node } => format!("see that {node} has everything"),
            Self::Ready { node } => format!("see that {node} may be promoted"),
            Self::Promote { node } => format!("promote {node}"),
            Self::Follow { node } => format!("lead {node} to the new primary"),
            Self::Turn { host } => format!("lead the pooler on {host}"),
            Self::Lead { host } => format!("pooler on {host}"),
            Self::Streams { node } => format!("see {node} stream"),
            Self::Settle { node } => format!("checkpoint of the new timeline on {node}"),
            Self::Record { node } => format!("record {node} as primary"),
            Self::Archive { node } => format!("see the archive of {node} go on"),
            Self::Slots { on, .. } => format!("drop the slots of {on}"),
            Self::Prove { .. } => "prove a write".to_owned(),
            Self::Hooked { point } => format!("see that hook {} is done", point.word()),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::WhenUndone {}
            | Self::Slot { .. }
            | Self::Arm { .. }
            | Self::Pause { .. }
            | Self::Stop { .. }
            | Self::Ready { .. } => Reversal::Undo,
            Self::Checkpoint { .. } | Self::Has { .. } => Reversal::NothingToUndo,
            Self::Hook { point } => match point {
                Point::BeforeSwitchover | Point::BeforePromote | Point::Fence | Point::AfterUndo => {
                    Reversal::NothingToUndo
                }
                Point::AfterPromote | Point::AfterSwitchover | Point::AfterFailover => Reversal::ForwardOnly,
            },
            Self::Promote { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Archive { .. }
            | Self::Slots { .. }
            | Self::Prove { .. }
            | Self::Hooked { .. } => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Checkpoint { .. } | Self::Archive { .. } => LONG,
            Self::Pause { grace, .. } => Duration::from_secs(grace + 30),
            Self::Stop { .. } | Self::Ready { .. } | Self::Streams { .. } => {
                provision::START + provision::STOP + Duration::from_secs(60)
            }
            // Its own limit is shorter.
            Self::WhenUndone {} | Self::Hook { .. } | Self::Hooked { .. } => {
                Hook::LONGEST + Duration::from_secs(60)
            }
            Self::Promote { .. } => succession::PROMOTE + Duration::from_secs(30),
            Self::Slot { .. }
            | Self::Arm { .. }
            | Self::Has { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Slots { .. }
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
            | Self::Slots { .. }
            | Self::Prove { .. } => Retry { attempts: 3, pause: Duration::from_millis(500) },
            Self::WhenUndone {}
            | Self::Hook { .. }
            | Self::Hooked { .. }
            | Self::Slot { .. }
            | Self::Checkpoint { .. }
            | Self::Arm { .. }
            | Self::Pause { .. }
            | Self::Stop { .. }
            | Self::Has { .. }
            | Self::Ready { .. }
            | Self::Promote { .. }
            | Self::Follow { .. }
            | Self::Archive { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Evidence>, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Stop { node } => match stopped(&world.site(node)?).await? {
                Some(evidence) => Found::Done(evidence),
                None => Found::NotDone,
            },
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
            | Self::Hooked { .. }
            | Self::Slot { .. }
            | Self::Checkpoint { .. }
            | Self::Arm { .. }
            | Self::Pause { .. }
            | Self::Has { .. }
            | Self::Ready { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Archive { .. }
            | Self::Slots { .. }
            | Self::Prove { .. } => Found::NotDone,
        })
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Evidence, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::WhenUndone {} => Evidence::WillBeTold {},
            Self::Hook { point } => hook(cx, *point).await?,
            Self::Hooked { point } => match hooked(cx, *point) {
                Some(evidence) => evidence,
                None => Evidence::Hooked { point: *point, ran: run_hook(cx, *point).await?, why_not: None },
            },
            Self::Slot { on, slot } => {
                let conn = connect(&world.site(on)?).await?;
                queries::ensure_physical_slot(&conn, slot).await.map_err(Error::from)?;
                Evidence::SlotThere {}
            }
            Self::Checkpoint { node } => {
                let written = checkpoint(&world.site(node)?).await?;
                if *node == world.input.from {
                    keeps_up(world).await?;
                }
                written
            }
            Self::Arm { hosts, seconds } => {
                world.holder().arm(hosts, Duration::from_secs(*seconds)).await?;
                Evidence::Armed {}
            }
            Self::Pause { hosts, grace } => {
                world.holder().pause(hosts, Duration::from_secs(*grace)).await?;
                Evidence::Held {}
            }
            Self::Stop { node } => stop(&world.site(node)?).await?,
            Self::Has { node } => has_all(world, node, ended(cx)?).await?,
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
                let aliases = world.turn_pooler(host, false).await.map_err(StepError::unless_refused)?;
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
            Self::Archive { node } => {
                let found = apply::archive::goes_on(&world.apply, node, promoted(cx)?, cx.progress).await;
                let found = found.map_err(StepError::unless_refused)?;
                Evidence::ArchiveGoesOn { history: found.history, first: found.first, last: found.last }
            }
            Self::Slots { on, slots } => {
                let gone = world.drop_slots(on, slots).await.map_err(StepError::unless_refused)?;
                Evidence::SlotsGone { slots: gone }
            }
            Self::Prove { nodes } => {
                let proved = world.prove(nodes).await.map_err(StepError::unless_refused)?;
                let (nodes, milliseconds) = proved;
                Evidence::Proved { nodes, milliseconds }
            }
        })
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        let world = cx.world;
        match self {
            Self::Slot { on, slot } => {
                let conn = connect(&world.site(on)?).await?;
                queries::drop_slot(&conn, slot).await.map_err(Error::from)?;
            }
            Self::Arm { hosts, .. } | Self::Pause { hosts, .. } => world.holder().take_back(hosts).await?,
            Self::Stop { node } => start_again(cx, node).await?,
            Self::Ready { node } => world.no_longer_asked(node).await?,
            // Everything is as it was: that somebody could not be told of it does not make the operation stuck.
            Self::WhenUndone {} => {
                let told = world.hook(Point::AfterUndo, (KIND, cx.attempt), None).await;
                if let Err(error) = told {
                    let detail = error.detail_text().unwrap_or_default();
                    (cx.warn.0)(format!("{error}. {detail}"));
                }
            }
            Self::Hook { .. }
            | Self::Hooked { .. }
            | Self::Checkpoint { .. }
            | Self::Has { .. }
            | Self::Promote { .. }
            | Self::Follow { .. }
            | Self::Turn { .. }
            | Self::Lead { .. }
            | Self::Streams { .. }
            | Self::Settle { .. }
            | Self::Record { .. }
            | Self::Archive { .. }
            | Self::Slots { .. }
            | Self::Prove { .. } => {}
        }
        Ok(())
    }
}

async fn run_hook(cx: &Cx<'_, SwitchStep>, point: Point) -> Result<Option<Ran>> {
    let done = promoted(cx).ok().map(|(timeline, begins)| Promoted { timeline, begins });
    // Told apart by what it is run after: the second step of a hook is its second attempt.
    let before = cx
        .evidence
        .iter()
        .filter(|(_, left)| matches!(left, Evidence::Hooked { point: of, .. } if *of == point));
    let attempt = cx.attempt + u32::try_from(before.count()).unwrap_or(u32::MAX);
    cx.world.hook(point, (KIND, attempt), done).await
}

/// Runs a hook. Before the pivot its failure is that of the step; after it clients go on first, and `Hooked` sees to what is left.
async fn hook(cx: &Cx<'_, SwitchStep>, point: Point) -> Result<Evidence> {
    match run_hook(cx, point).await {
        Ok(ran) => Ok(Evidence::Hooked { point, ran, why_not: None }),
        Err(error) if promoted(cx).is_ok() => {
            Ok(Evidence::Hooked { point, ran: None, why_not: Some(error.to_string()) })
        }
        Err(error) => Err(error),
    }
}

/// Returns what a hook left that has done its work.
fn hooked(cx: &Cx<'_, SwitchStep>, point: Point) -> Option<Evidence> {
    let done =
        |left: &&Evidence| matches!(left, Evidence::Hooked { point: of, why_not: None, .. } if *of == point);
    cx.evidence.iter().map(|(_, left)| left).find(done).cloned()
}

fn streams(Streaming { timeline, lsn }: Streaming) -> Evidence {
    Evidence::Streams { timeline, lsn }
}

/// Writes checkpoints until one is short, so that the one of the shutdown is short too.
async fn checkpoint(site: &Site<'_>) -> Result<Evidence> {
    let conn = connect(site).await?;
    let mut took = Duration::ZERO;
    for _ in 0..CHECKPOINTS {
        let begun = Instant::now();
        promotion::checkpoint(&conn).await?;
        took = begun.elapsed();
        if took < BRIEF {
            break;
        }
    }
    Ok(Evidence::Checkpointed { milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) })
}

/// Sees the candidate replay what the primary has just written: while it does not, clients would be held back for nothing.
async fn keeps_up(world: &World) -> Result<()> {
    let (from, to) = (world.site(&world.input.from)?, world.site(&world.input.to)?);
    let written = queries::server_facts(&connect(&from).await?).await?.role.lsn();
    let conn = connect(&to).await?;
    let deadline = Instant::now() + KEEPS_UP;
    loop {
        let replayed = match queries::server_facts(&conn).await?.role {
            ServerRole::Standby { replayed_lsn, .. } => replayed_lsn,
            ServerRole::Primary { .. } => {
                return Err(Error::failed(format!("{} is a primary already", to.name())));
            }
        };
        if replayed >= written {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let told = |lsn: Option<Lsn>| lsn.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string());
            return Err(Error::failed(format!("{} does not keep up with {}", to.name(), from.name()))
                .detail(format!(
                    "{} s after {} was written it has replayed {}. No client was held back.",
                    KEEPS_UP.as_secs(),
                    told(written),
                    told(replayed)
                ))
                .hint("See whether it receives and replays: pgherd health -v"));
        }
        sleep(PAUSE).await;
    }
}

/// Tells where a server ended, if it has ended as it should and would start as a standby.
async fn stopped(site: &Site<'_>) -> Result<Option<Evidence>> {
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_some() {
        return Ok(None);
    }
    let control = provision::control_file(site).await?;
    let there = site.host().stat(&signal(site)).await;
    let there = there.map_err(|error| {
        Error::failed(format!("could not look for {}", signal(site).display())).source(error)
    })?;
    Ok((control.state == ClusterState::ShutDown && there.is_some()).then_some(Evidence::Stopped {
        timeline: control.checkpoint_timeline,
        checkpoint: control.checkpoint,
    }))
}

async fn stop(site: &Site<'_>) -> Result<Evidence> {
    if let Err(error) = provision::stop_within(site, STOP).await {
        return Err(match provision::what_is_left(site).await {
            left if left.is_empty() => error,
            left => error.detail(format!("It waits for {left}.")),
        });
    }
    let control = provision::control_file(site).await?;
    if control.state != ClusterState::ShutDown {
        return Err(Error::failed(format!("{} did not end as it should", site.name())).detail(format!(
            "Its pg_control says {:?}: whether its last WAL was sent is not known.",
            control.state
        )));
    }
    // Whatever starts it from now on, a boot of its host above all, it does not come up as a primary.
    provision::write(site, &signal(site), b"", 0o600).await?;
    Ok(Evidence::Stopped { timeline: control.checkpoint_timeline, checkpoint: control.checkpoint })
}

/// Has the old primary serve again, unless another node may have taken over.
async fn start_again(cx: &Cx<'_, SwitchStep>, node: &str) -> Result<()> {
    let world = cx.world;
    let candidate = world.site(&world.input.to)?;
    let facts = match candidate.connect().await {
        Ok(conn) => queries::server_facts(&conn).await,
        Err(error) => Err(error),
    };
    match facts {
        Ok(facts) if matches!(facts.role, ServerRole::Primary { .. }) => {
            return Err(Error::refused(format!("cannot start {node} as a primary again")).detail(format!(
                "{} is one, on timeline {}.",
                candidate.name(),
                facts.timeline
            )));
        }
        Ok(_) => {}
        Err(DbError::NotListening { .. }) => world.not_promoted(&candidate).await?,
        // Nobody has asked it to be promoted, or the step that sees to that would have failed: clients are not kept waiting for it.
        Err(error) => tracing::warn!(%error, "could not ask {} whether it is a standby", candidate.name()),
    }
    let site = world.site(node)?;
    // Whoever waited in vain before does not wait as long again.
    let patience = if cx.attempt == 1 { provision::STOP } else { AGAIN };
    let (deadline, mut told) = (Instant::now() + patience, false);
    // A shutdown that took too long cannot be taken back: it ends, and then the server is started.
    while stopping(&site).await? {
        let waits = async || match provision::what_is_left(&site).await {
            left if left.is_empty() => "What it waits for cannot be told.".to_owned(),
            left => format!("It waits for {left}."),
        };
        if !told {
            (cx.warn.0)(format!(
                "{} is still shutting down, and is started again when it has ended; that is waited for {} s. {}",
                site.name(),
                patience.as_secs(),
                waits().await
            ));
            told = true;
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("{} is still shutting down", site.name()))
                .detail(waits().await)
                .hint(format!("Its log in {} says more.", site.places().log.display())));
        }
        sleep(PAUSE).await;
    }
    site.host().remove_file(&signal(&site)).await.map_err(|error| {
        Error::failed(format!("could not remove {}", signal(&site).display())).source(error)
    })?;
    provision::start(&site).await?;
    let standbys = world.input.siblings.iter().chain([&world.input.to]);
    let back = standbys.map(async |standby| {
        let follower = world.site(standby)?;
        // One that lost its upstream tries again by itself only every wal_retrieve_retry_interval (5 s), and commits may wait for it.
        if let Ok(conn) = follower.connect().await {
            queries::reload(&conn).await.ok();
        }
        within(BACK, apply::follow::until_it_streams(&follower, &site)).await
    });
    for ended in join_all(back).await {
        if let Err(error) = ended {
            tracing::warn!(%error, "a standby does not stream as it did");
        }
    }
    Ok(())
}

/// Tells whether a server runs and lets nobody in because it is ending.
async fn stopping(site: &Site<'_>) -> Result<bool> {
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
        return Ok(false);
    }
    Ok(site.connect().await.is_err())
}

/// Reads the record of a node's own WAL that begins there, as pg_waldump prints it; `None` if it cannot be read.
async fn record_at(site: &Site<'_>, timeline: TimelineId, at: Lsn) -> Option<String> {
    let wal = site.node.data_directory.join("pg_wal").display().to_string();
    let (timeline, at) = (timeline.to_string(), at.to_string());
    let command = Command::new(site.programs.path("pg_waldump"))
        .args(["-p", wal.as_str(), "-t", timeline.as_str(), "-s", at.as_str(), "-n", "1"])
        .reads()
        .timeout(RECORD);
    let text = site.host().run(&command).await.ok()?.text();
    text.lines().find(|line| line.contains("CHECKPOINT_SHUTDOWN")).map(str::to_owned)
}

/// Tells whether the candidate has replayed the record with which the old primary ended, and whether that is the same one in the WAL of both:
/// place, length, predecessor and content as pg_waldump prints them. Clients wait meanwhile, and this is faster than a checkpoint on the
/// candidate.
async fn has_record(world: &World, node: &str, conn: &Conn, timeline: TimelineId, at: Lsn) -> Result<bool> {
    let (own, old) = (world.site(node)?, world.site(&world.input.from)?);
    let deadline = Instant::now() + HAS;
    loop {
        let facts = queries::server_facts(conn).await?;
        match facts.role {
            // It is where a record ends: behind where this one begins, this one was replayed.
            ServerRole::Standby { replayed_lsn: Some(replayed), .. } if replayed > at => break,
            ServerRole::Standby { .. } if Instant::now() < deadline => sleep(PAUSE).await,
            ServerRole::Standby { .. } | ServerRole::Primary { .. } => return Ok(false),
        }
    }
    let (own, old) = join(record_at(&own, timeline, at), record_at(&old, timeline, at)).await;
    Ok(own.is_some() && own == old)
}

/// Waits until the candidate has replayed the last record of the old primary. Where that cannot be read on both, a checkpoint on the candidate has
/// to name that very record.
async fn has_all(world: &World, node: &str, (timeline, checkpoint): (TimelineId, Lsn)) -> Result<Evidence> {
    let site = world.site(node)?;
    if timeline != world.input.timeline {
        return Err(Error::failed(format!(
            "the old primary ended on timeline {timeline}, not on {}",
            world.input.timeline
        )));
    }
    let conn = connect(&site).await?;
    if has_record(world, node, &conn, timeline, checkpoint).await? {
        return Ok(Evidence::HasAll { checkpoint });
    }
    let deadline = Instant::now() + PROVED;
    loop {
        let last = promotion::last_checkpoint(&conn).await?;
        if last.timeline == timeline && last.begins == checkpoint {
            return Ok(Evidence::HasAll { checkpoint });
        }
        if last.timeline != timeline || last.begins > checkpoint {
            return Err(Error::failed(format!("{} is not where the old primary ended", site.name())).detail(format!(
                "Its last checkpoint is at {} on timeline {}, the old primary's at {checkpoint} on timeline {timeline}.",
                last.begins, last.timeline
            )));
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("{} does not have everything", site.name())).detail(format!(
                "After {} s its last checkpoint is at {}, the old primary's at {checkpoint}.",
                (HAS + PROVED).as_secs(),
                last.begins
            )));
        }
        sleep(PAUSE).await;
    }
}

async fn ready(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    let facts = queries::server_facts(&connect(&site).await?).await?;
    match facts.role {
        ServerRole::Standby { replay_paused: false, .. } => Ok(Evidence::Ready {}),
        ServerRole::Standby { .. } => Err(Error::failed(format!("replay is paused on {}", site.name()))),
        ServerRole::Primary { .. } => Err(Error::failed(format!("{} is a primary already", site.name()))),
    }
}

/// Returns where the old primary ended.
fn ended(cx: &Cx<'_, SwitchStep>) -> Result<(TimelineId, Lsn)> {
    let found = cx.evidence.iter().rev().find_map(|(_, evidence)| {
        if let Evidence::Stopped { timeline, checkpoint } = evidence {
            Some((*timeline, *checkpoint))
        } else {
            None
        }
    });
    found.ok_or_else(|| Error::failed("the journal does not say where the old primary ended"))
}

/// Returns the timeline that the promotion began, and where.
fn promoted(cx: &Cx<'_, SwitchStep>) -> Result<(TimelineId, Lsn)> {
    let found = cx.evidence.iter().rev().find_map(|(_, evidence)| {
        if let Evidence::Promoted { timeline, begins } = evidence { Some((*timeline, *begins)) } else { None }
    });
    found.ok_or_else(|| Error::failed("the journal does not say which timeline was begun"))
}
