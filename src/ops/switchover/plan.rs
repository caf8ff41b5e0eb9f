//! What a switchover will do, decided before anything happens, or every reason why it cannot be done.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;

use crate::db::promotion::{self, Hindrances, Room};
use crate::db::queries::{self, ServerRole, SlotKind};
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs;
use crate::ops::apply;
use crate::ops::apply::world::LeftOut;
use crate::ops::backup::care::Way;
use crate::ops::context::Context;
use crate::ops::hold;
use crate::ops::hook::{self, Point};
use crate::ops::observe::{self, Claim, ClusterObserved, Depth, Doors, NodeObserved, Running};
use crate::ops::plan::step::{PlannedStep, Sign};
use crate::ops::preflight::without_twins;
use crate::ops::roles::{self, Lead};
use crate::ops::succession::{self, Input};
use crate::ops::switchover::step::SwitchStep;
use crate::pg::lsn::Lsn;
use crate::topology::declared;
use crate::topology::model::{Cluster, Herd, Node, Promote};
use crate::units::{ByteCount, human_duration};

type Planned = PlannedStep<SwitchStep>;

/// How long clients are held back at most: longer than the primary may take to end.
const HOLD: Duration = Duration::from_secs(90);
/// The points at which hooks are run.
const POINTS: [Point; 5] = [
    Point::BeforeSwitchover,
    Point::BeforePromote,
    Point::AfterPromote,
    Point::AfterSwitchover,
    Point::AfterUndo,
];
/// A transaction of this age may go on for longer than clients can wait.
const LONG: Duration = Duration::from_secs(10);
/// What a candidate may be behind, in bytes.
const BEHIND: u64 = 16 << 20;
/// PostgreSQL does not end before everything is archived.
const BACKLOG: u64 = 8;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wish {
    /// The node that is to lead; the most suitable one if nobody names one.
    pub to: Option<String>,
    /// The region that it is to be in, if none is named.
    pub region: Option<String>,
    /// How long transactions that run may take to end, whole seconds.
    pub grace: Duration,
    /// Logical slots of the old primary may stay behind.
    pub leave_logical_slots: bool,
}

/// What is to be done, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwitchPlan {
    pub cluster: String,
    /// One line: what there is now.
    pub headline: String,
    pub wish: Wish,
    pub input: Input,
    /// Steps of one stage run side by side; none where the node leads already.
    pub stages: Vec<Vec<Planned>>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl SwitchPlan {
    /// Tells whether a plan that was made just now asks for the same.
    pub fn is_still(&self, shown: &Self) -> bool {
        self.input == shown.input && self.stages == shown.stages
    }
}

/// Looks at the cluster and its poolers, and decides.
///
/// # Errors
/// Every obstacle at once.
pub async fn plan(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
) -> Result<SwitchPlan, Vec<Error>> {
    let one = |error: Error| vec![error];
    let doors = Doors::look(cluster, context.places.clone(), &context.gate).map_err(one)?;
    let mut obstacles = Vec::new();
    for found in join_all(cluster.nodes.iter().map(|node| doors.programs(cluster, &node.host))).await {
        obstacles.extend(found.err());
    }
    for host in cluster.pooler_hosts() {
        obstacles.extend(programs::find_pgbouncer(doors.host(host)).await.err());
    }
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    let from = leads(cluster, &observed).map_err(one)?;
    let to = candidate(cluster, &observed, &from, wish).map_err(one)?;
    let name = cluster.full_name(&from.node.name);
    let siblings: Vec<&str> = standbys(cluster, &observed, &from)
        .filter(|(node, _)| node.name != to.node.name)
        .map(|(node, _)| node.name.as_str())
        .collect();
    let mut notes = Vec::new();
    if to.node.name != from.node.name {
        obstacles.extend(of_nodes(cluster, &observed, &from, &to));
        match of_primary(&doors, cluster, &from).await {
            Ok(found) => obstacles.extend(found.obstacles(cluster, &name, wish, &mut notes)),
            Err(error) => obstacles.push(error),
        }
        let wanted = missing_slots(cluster, &from.node.name, &siblings, &to).len();
        match room_on(&doors, cluster, to.node).await {
            Ok(room) => obstacles.extend(no_room(cluster, &to.node.name, room, (siblings.len() + 1, wanted))),
            Err(error) => obstacles.push(error),
        }
        match room_on(&doors, cluster, from.node).await {
            Ok(room) => notes.extend(not_rewound(&name, room)),
            Err(error) => obstacles.push(error),
        }
        if cluster.backups.is_some() {
            obstacles.extend(of_backups(context, cluster, &from, &mut notes).await);
        }
        if to.node.promote == Promote::ByHand {
            let name = cluster.full_name(&to.node.name);
            notes.push(format!(
                "{name} is never chosen by itself (promote: by-hand); it leads because it was named"
            ));
        }
        if cluster.poolers.is_some() {
            obstacles.extend(hold::check(context, cluster, held_back(cluster)).await.err());
        } else {
            notes.push("no pooler holds clients back: connections to the old primary end".to_owned());
        }
        let nodes = (Some(from.node.name.as_str()), Some(to.node.name.as_str()));
        obstacles.extend(hook::missing(&doors, cluster, &POINTS, nodes).await);
        let missing = cluster.nodes.iter().filter(|node| {
            node.name != from.node.name
                && node.name != to.node.name
                && !siblings.contains(&node.name.as_str())
        });
        for node in missing {
            let name = cluster.full_name(&node.name);
            notes
                .push(format!("{name} does not stream; lead it to the new primary afterwards: pgherd apply"));
        }
    }
    if !obstacles.is_empty() {
        return Err(without_twins(obstacles));
    }
    let fixed = apply::fix(&doors, herd, cluster, &observed).await.map_err(one)?;
    let input = Input {
        herd: herd.name.clone(),
        cluster: cluster.with_adopted(&fixed.adopted),
        fixed,
        system_identifier: from.running.facts.system_identifier,
        timeline: from.running.facts.timeline,
        from: from.node.name.clone(),
        to: to.node.name.clone(),
        siblings: siblings.iter().map(|name| (*name).to_owned()).collect(),
        synchronous: None,
        before: BTreeMap::new(),
        left_out: LeftOut::default(),
    };
    let stages = if input.from == input.to { Vec::new() } else { stages(&input, &to, wish) };
    Ok(SwitchPlan {
        cluster: cluster.name.clone(),
        headline: format!("primary {}, timeline {}", input.from, input.timeline),
        wish: wish.clone(),
        input,
        stages,
        notes,
    })
}

/// A node that answers.
#[derive(Debug, Clone, Copy)]
struct Up<'a> {
    node: &'a Node,
    running: &'a Running,
}

fn leads<'a>(cluster: &'a Cluster, observed: &'a ClusterObserved) -> Result<Up<'a>> {
    let what = format!("cannot switch {} over", cluster.name);
    let name = match roles::lead(observed) {
        Lead::Primary(name) => name,
        Lead::StoppedPrimary(name) => {
            return Err(Error::refused(format!("{what}: its primary {name} is stopped"))
                .detail("There is nothing to hand over from. Nothing was changed.")
                .hint("Start it: pgherd apply"));
        }
        Lead::Split(names) => {
            return Err(Error::refused(format!("{what}: {} accept writes", names.join(", ")))
                .detail(
                    "Which of them has the rows that count is not for pgherd to say. Nothing was changed.",
                )
                .hint("See what each of them has: pgherd health"));
        }
        Lead::Unborn => {
            return Err(Error::new(ErrorKind::NotFound, format!("{what}: it is not there yet"))
                .hint("Make it: pgherd apply"));
        }
        Lead::Unknown { why } => {
            return Err(Error::new(ErrorKind::NotFound, format!("{what}: no primary answers"))
                .detail(format!("{why}. Nothing was changed."))
                .hint("See what each node says: pgherd status"));
        }
    };
    let node = cluster.node(&name).expect("roles::lead names nodes of the cluster");
    let running = observed.node(&name).and_then(NodeObserved::running);
    Ok(Up { node, running: running.expect("roles::lead names a primary that answers") })
}

/// The standbys that stream from the primary itself.
fn standbys<'a>(
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    from: &'a Up<'a>,
) -> impl Iterator<Item = (&'a Node, &'a Running)> {
    cluster.nodes.iter().filter_map(move |node| {
        let running = observed.node(&node.name).and_then(NodeObserved::running)?;
        streams_from(cluster, node, running, from).then_some((node, running))
    })
}

fn streams_from(cluster: &Cluster, node: &Node, running: &Running, from: &Up<'_>) -> bool {
    let receives = matches!(
        &running.facts.role,
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming"
    );
    let name = cluster.full_name(&node.name);
    receives
        && from
            .running
            .senders
            .iter()
            .any(|sender| sender.application_name == name && sender.state == "streaming")
}

fn candidate<'a>(
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    from: &'a Up<'a>,
    wish: &Wish,
) -> Result<Up<'a>> {
    if let Some(name) = wish.to.as_deref() {
        let node = cluster.node(name).ok_or_else(|| {
            let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
            Error::new(ErrorKind::NotFound, format!("{} has no node {name:?}", cluster.name))
                .hint(format!("Its nodes are: {}.", names.join(", ")))
        })?;
        if node.name == from.node.name {
            return Ok(*from);
        }
        let running = observed.node(name).and_then(NodeObserved::running).ok_or_else(|| {
            Error::refused(format!("cannot switch over to {}: it does not answer", cluster.full_name(name)))
                .detail("Nothing was changed.")
                .hint("See what is the matter with it: pgherd status -v")
        })?;
        return Ok(Up { node, running });
    }
    let fits = |node: &Node| wish.region.is_none() || wish.region.as_deref() == cluster.region(node);
    if let Some(region) = &wish.region {
        succession::has_region(cluster, region)?;
        if fits(from.node) {
            return Ok(*from);
        }
    }
    // The preferred one, if it does not lead already; else who has most, and of those the first in the file.
    let mut best: Option<(bool, Option<Lsn>, Up<'a>)> = None;
    let automatic = |node: &Node| node.promote == Promote::Automatic && fits(node);
    for (node, running) in standbys(cluster, observed, from).filter(|(node, _)| automatic(node)) {
        let rank = (node.name == cluster.preferred().name, running.facts.role.lsn());
        if best.as_ref().is_none_or(|(preferred, lsn, _)| rank > (*preferred, *lsn)) {
            best = Some((rank.0, rank.1, Up { node, running }));
        }
    }
    best.map(|(_, _, up)| up).ok_or_else(|| {
        let place = wish.region.as_ref().map(|region| format!(" in region {region}")).unwrap_or_default();
        Error::refused(format!(
            "cannot switch {} over: no standby{place} streams from {}",
            cluster.name, from.node.name
        ))
        .detail("Those whose `promote` is by-hand lead only when they are named. Nothing was changed.")
        .hint("See what is the matter with them: pgherd status -v")
    })
}

/// What both nodes say is in the way.
fn of_nodes(cluster: &Cluster, observed: &ClusterObserved, from: &Up<'_>, to: &Up<'_>) -> Vec<Error> {
    let name = cluster.full_name(&to.node.name);
    let cannot = |why: &str| {
        Error::refused(format!("cannot switch over to {name}: {why}")).detail("Nothing was changed.")
    };
    let mut found = Vec::new();
    for node in [from.node, to.node] {
        let seen = observed.node(&node.name).expect("every node is observed");
        if !matches!(seen.marker, Claim::Ours(_)) {
            let full = cluster.full_name(&node.name);
            found.push(
                cannot(&format!("no marker of {full} claims {}", node.data_directory.display())).hint(
                    "pgherd changes only what it made itself or has taken over: pgherd apply --adopt NODE",
                ),
            );
        }
    }
    let (own, theirs) = (&to.running.facts, &from.running.facts);
    if own.system_identifier != theirs.system_identifier {
        found.push(cannot("it belongs to another system").hint("See both: pgherd status -v"));
        return found;
    }
    if !streams_from(cluster, to.node, to.running, from) {
        found.push(
            cannot(&format!("it does not stream from {} itself", cluster.full_name(&from.node.name)))
                .hint("See what its receiver says: pgherd health -v"),
        );
    }
    if own.timeline != theirs.timeline {
        found
            .push(cannot(&format!("it is on timeline {}, the primary on {}", own.timeline, theirs.timeline)));
    }
    if let ServerRole::Standby { replay_paused: true, .. } = own.role {
        found.push(cannot("replay is paused").hint("Go on there: SELECT pg_wal_replay_resume()"));
    }
    let behind = match (&theirs.role, &own.role) {
        (ServerRole::Primary { written_lsn }, ServerRole::Standby { replayed_lsn: Some(replayed), .. }) => {
            written_lsn.as_u64().saturating_sub(replayed.as_u64())
        }
        (_, _) => u64::MAX,
    };
    if behind > BEHIND {
        let told = if behind == u64::MAX {
            "it has replayed nothing".to_owned()
        } else {
            format!("it is {} behind", ByteCount(behind))
        };
        found.push(
            cannot(&told)
                .hint("Clients would wait until it has replayed that. Wait for it: pgherd status --watch"),
        );
    }
    let names = declared::synchronous_names(cluster, to.node);
    if own.synchronous_standby_names != names {
        found.push(
            cannot("its synchronous_standby_names are not as declared")
                .detail(format!(
                    "It has {:?}, declared is {names:?}: commits would wait for others than the file says. Nothing was changed.",
                    own.synchronous_standby_names
                ))
                .hint("Put it right before: pgherd apply; where standbys are missing since a failover: pgherd rejoin NODE"),
        );
    }
    found
}

async fn room_on(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<Room> {
    let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
    Ok(promotion::room(&conn).await?)
}

/// Holds what a candidate has room for against what it needs: so many senders, one a follower, and so many slots that are not there yet.
fn no_room(cluster: &Cluster, node: &str, room: Room, (senders, slots): (usize, usize)) -> Vec<Error> {
    let name = cluster.full_name(node);
    let mut found = Vec::new();
    for (share, wanted, what, setting) in [
        (room.senders, senders, "WAL senders", "max_wal_senders"),
        (room.slots, slots, "replication slots", "max_replication_slots"),
    ] {
        if share.free() < wanted {
            found.push(
                Error::refused(format!(
                    "cannot switch over to {name}: it has no room for {wanted} more {what}"
                ))
                .detail(format!(
                    "{} of {} are used there ({setting}). Nothing was changed.",
                    share.used, share.all
                ))
                .hint(format!("Declare a larger {setting} and restart: pgherd apply --allow-restart")),
            );
        }
    }
    found
}

/// What is not in the way today, and will be when this node has to come back one day.
fn not_rewound(name: &str, room: Room) -> Option<String> {
    let why = match (room.can_be_rewound, room.full_page_writes) {
        (true, true) => return None,
        (false, _) => "has neither data checksums nor wal_log_hints",
        (true, false) => "has full_page_writes off",
    };
    Some(format!("{name} {why}: if it ever has rows of its own, it is cloned anew, not rewound"))
}

/// A backup that is read on a standby ends when that is promoted, and one of the primary when that stops.
async fn of_backups(
    context: &Context,
    cluster: &Cluster,
    from: &Up<'_>,
    notes: &mut Vec<String>,
) -> Vec<Error> {
    let made = async {
        let way = Way::open(&context.places, &context.gate, cluster).await?;
        way.being_made(from.running.facts.system_identifier).await
    };
    match made.await {
        Ok(made) => made
            .into_iter()
            .map(|(label, by)| {
                Error::refused(format!("cannot switch {} over: backup {label} is being made", cluster.name))
                    .detail(format!("By {} on {}; it would be lost. Nothing was changed.", by.user, by.host))
                    .hint("Wait for it: pgherd backup list")
            })
            .collect(),
        Err(error) => {
            notes.push(format!("whether a backup is being made is not known: {error}"));
            Vec::new()
        }
    }
}

/// What the primary tells about itself.
struct OfPrimary {
    hindrances: Hindrances,
    archiver: Option<queries::Archiver>,
}

async fn of_primary(doors: &Doors, cluster: &Cluster, from: &Up<'_>) -> Result<OfPrimary> {
    let conn = doors.connector.connect(&doors.superuser(cluster, from.node, "postgres")).await?;
    let hindrances = promotion::hindrances(&conn, LONG).await?;
    let archiver = if cluster.backups.is_some() { Some(queries::archiver(&conn).await?) } else { None };
    Ok(OfPrimary { hindrances, archiver })
}

impl OfPrimary {
    fn obstacles(&self, cluster: &Cluster, name: &str, wish: &Wish, notes: &mut Vec<String>) -> Vec<Error> {
        let cannot = |why: String| {
            Error::refused(format!("cannot switch over from {name}: {why}")).detail("Nothing was changed.")
        };
        let mut found = Vec::new();
        for (pid, user, database, application, seconds) in &self.hindrances.long {
            let age = human_duration(Duration::from_secs_f64(seconds.max(0.0)));
            found.push(
                cannot(format!("process {pid} has been in a transaction for {age}"))
                    .detail(format!(
                        "User {user} in {database}, application {application:?}. Clients would wait for it, or it would be ended. \
                         Nothing was changed."
                    ))
                    .hint(format!("Let it end, or end it: SELECT pg_terminate_backend({pid})")),
            );
        }
        if !self.hindrances.prepared.is_empty() {
            notes.push(format!(
                "prepared transactions go along and stay prepared: {}",
                self.hindrances.prepared.join(", ")
            ));
        }
        if !self.hindrances.logical.is_empty() {
            let slots = self.hindrances.logical.join(", ");
            if wish.leave_logical_slots {
                notes.push(format!("logical slots stay behind on the old primary: {slots}"));
            } else {
                found.push(
                    cannot(format!("its logical slots would stay behind: {slots}"))
                        .detail(
                            "Whoever reads them would miss what is written afterwards. Nothing was changed.",
                        )
                        .hint("Stop their readers, and say so: --leave-logical-slots"),
                );
            }
        }
        for backup in &self.hindrances.backups {
            found.push(
                cannot(format!("a base backup runs ({backup})"))
                    .hint("Wait for it, or end it: it would be lost."),
            );
        }
        if let Some(archiver) = &self.archiver {
            let repository = cluster.backups.as_ref().map_or("", |backups| backups.repository.name.as_str());
            if let Some((file, at)) = archiver.failing() {
                found.push(
                    cannot(format!("its archiver fails on {file} since {at:.0}"))
                        .detail("PostgreSQL does not end before its WAL is archived. Nothing was changed.")
                        .hint(format!("See why repository {repository} does not take it: pgherd health -v")),
                );
            } else if archiver.waiting > BACKLOG {
                found.push(
                    cannot(format!("{} WAL files wait to be archived", archiver.waiting))
                        .detail("PostgreSQL does not end before they are. Nothing was changed.")
                        .hint("Wait until they are: pgherd health --watch"),
                );
            }
        }
        found
    }
}

fn step(sign: Sign, subject: String, text: impl Into<String>, undo: &str, step: SwitchStep) -> Planned {
    Planned { sign, subject, text: text.into(), reason: None, impact: None, undo: undo.to_owned(), step }
}

/// How long clients are held back at most: a hook of the operator's may take its part.
fn held_back(cluster: &Cluster) -> Duration {
    HOLD + hook::of(cluster, Point::BeforePromote).map_or(Duration::ZERO, |hook| hook.timeout)
}

const POOLER: &str = "pooler";

fn stages(input: &Input, to: &Up<'_>, wish: &Wish) -> Vec<Vec<Planned>> {
    let cluster = &input.cluster;
    let (from_name, to_name) = (cluster.full_name(&input.from), cluster.full_name(&input.to));
    let hosts: Vec<String> = cluster.pooler_hosts().cloned().collect();
    let hook = |point: Point| -> Vec<Planned> {
        hook::planned(cluster, point, "nothing to undo", SwitchStep::Hook { point }).into_iter().collect()
    };
    let told = hook::planned(cluster, Point::AfterUndo, "run it", SwitchStep::WhenUndone {});
    let told = told.map(|told| Planned { sign: Sign::Look, ..told });
    let mut stages = vec![told.into_iter().collect(), hook(Point::BeforeSwitchover), slots(input, to)];
    let checkpoint = |node: &str| {
        let text = "checkpoint while clients write, until one is short";
        let step_of = SwitchStep::Checkpoint { node: node.to_owned() };
        step(Sign::Change, cluster.full_name(node), text, "nothing to undo", step_of)
    };
    stages.push(vec![checkpoint(&input.from), checkpoint(&input.to)]);
    if !hosts.is_empty() {
        let hold = held_back(cluster);
        let arm = SwitchStep::Arm { hosts: hosts.clone(), seconds: hold.as_secs() };
        let text = format!("have clients go on by themselves after {}", human_duration(hold));
        stages.push(vec![step(Sign::Look, POOLER.to_owned(), text, "end it", arm)]);
        let grace = wish.grace.as_secs().max(1);
        let pause = SwitchStep::Pause { hosts: hosts.clone(), grace };
        let text = format!(
            "PAUSE, all or none: clients wait; running transactions get {}",
            human_duration(Duration::from_secs(grace))
        );
        stages.push(vec![step(Sign::Disrupt, POOLER.to_owned(), text, "RESUME", pause)]);
    }
    let mut stop = step(
        Sign::Disrupt,
        from_name.clone(),
        "stop (fast), and a standby whenever it is started again",
        "start it as the primary that it was",
        SwitchStep::Stop { node: input.from.clone() },
    );
    stop.impact = Some("direct connections to it end".to_owned());
    stages.push(vec![stop]);
    stages.push(vec![step(
        Sign::Look,
        to_name.clone(),
        format!("has the last record of {from_name}"),
        "nothing to undo",
        SwitchStep::Has { node: input.to.clone() },
    )]);
    stages.push(hook(Point::BeforePromote));
    stages.push(vec![step(
        Sign::Look,
        to_name.clone(),
        "may be promoted",
        "restart as the standby that it was",
        SwitchStep::Ready { node: input.to.clone() },
    )]);
    stages.push(vec![step(
        Sign::Disrupt,
        to_name.clone(),
        format!("promote, timeline {}", input.timeline.as_u32() + 1),
        "none",
        SwitchStep::Promote { node: input.to.clone() },
    )]);
    stages.extend(afterwards(input, &hosts));
    stages.retain(|stage| !stage.is_empty());
    stages
}

/// Returns the slots of nodes that are to follow the candidate and that it does not have.
fn missing_slots(cluster: &Cluster, from: &str, siblings: &[&str], to: &Up<'_>) -> Vec<String> {
    let there = |slot: &String| {
        to.running.slots.iter().any(|is| is.name == *slot && is.kind == SlotKind::Physical && !is.is_lost())
    };
    let wanted = siblings.iter().copied().chain([from]).map(|node| cluster.slot_name(node));
    wanted.filter(|slot| !there(slot)).collect()
}

fn slots(input: &Input, to: &Up<'_>) -> Vec<Planned> {
    let cluster = &input.cluster;
    let siblings: Vec<&str> = input.siblings.iter().map(String::as_str).collect();
    missing_slots(cluster, &input.from, &siblings, to)
        .into_iter()
        .map(|slot| {
            let text = format!("slot {slot}");
            let step_of = SwitchStep::Slot { on: input.to.clone(), slot };
            step(Sign::Create, cluster.full_name(&input.to), text, "drop it", step_of)
        })
        .collect()
}

/// What comes when there is only forward: first what clients wait for.
fn afterwards(input: &Input, hosts: &[String]) -> Vec<Vec<Planned>> {
    let cluster = &input.cluster;
    let name = |node: &str| cluster.full_name(node);
    let follow = |node: &String| {
        let text = format!("follow {}", name(&input.to));
        step(Sign::Change, name(node), text, "none", SwitchStep::Follow { node: node.clone() })
    };
    let mut first: Vec<Planned> = input.siblings.iter().map(follow).collect();
    if let Some(synchronous) = &cluster.synchronous {
        let waited_for = input.siblings.iter().filter(|node| synchronous.of.contains(node)).count();
        // Without it no commit ends.
        if waited_for < synchronous.wait_for as usize {
            first.push(follow(&input.from));
        }
    }
    let on_poolers = |text: &str, of: fn(String) -> SwitchStep| -> Vec<Planned> {
        let one = |host: &String| step(Sign::Change, POOLER.to_owned(), text, "none", of(host.clone()));
        hosts.iter().map(one).collect()
    };
    let mut back: Vec<Planned> = vec![step(
        Sign::Change,
        name(&input.to),
        "its own settings, checkpoint of the new timeline",
        "none",
        SwitchStep::Settle { node: input.to.clone() },
    )];
    back.extend(input.siblings.iter().chain([&input.from]).map(|node| {
        let text = format!("stream from {}", name(&input.to));
        step(Sign::Change, name(node), text, "none", SwitchStep::Streams { node: node.clone() })
    }));
    // All that clients wait for goes side by side: a commit that came before its standby waits for it.
    let text = format!("lead {} to {}, RESUME", cluster.name, name(&input.to));
    first.extend(on_poolers(&text, |host| SwitchStep::Turn { host }));
    let asked = SwitchStep::Hook { point: Point::AfterPromote };
    first.extend(hook::planned(cluster, Point::AfterPromote, "none", asked));
    let mut stages = vec![first, back];
    if cluster.backups.is_some() {
        let record = SwitchStep::Record { node: input.to.clone() };
        let text = format!("{} is primary in the repository's record", name(&input.to));
        stages.push(vec![step(Sign::Change, cluster.name.clone(), text, "none", record)]);
    }
    stages.push(on_poolers("every alias to where the nodes are now", |host| SwitchStep::Lead { host }));
    let others = cluster.nodes.iter().filter(|node| node.name != input.from);
    let slots: Vec<String> = others.map(|node| cluster.slot_name(&node.name)).collect();
    let text = "drop its slots, which nobody reads any more";
    let drop = SwitchStep::Slots { on: input.from.clone(), slots };
    stages.push(vec![step(Sign::Remove, name(&input.from), text, "none", drop)]);
    if cluster.backups.is_some() {
        let archive = SwitchStep::Archive { node: input.to.clone() };
        let text = "the archive goes on, without a gap";
        stages.push(vec![step(Sign::Look, name(&input.to), text, "none", archive)]);
    }
    let nodes: Vec<String> = input.siblings.iter().chain([&input.from]).cloned().collect();
    let text = "write a row and read it on every standby";
    stages.push(vec![step(Sign::Look, cluster.name.clone(), text, "none", SwitchStep::Prove { nodes })]);
    let mut left = Vec::new();
    if hook::of(cluster, Point::AfterPromote).is_some() {
        let done = SwitchStep::Hooked { point: Point::AfterPromote };
        left.push(step(Sign::Look, "hook".to_owned(), "after-promote is done", "none", done));
    }
    stages.push(left);
    let last = SwitchStep::Hooked { point: Point::AfterSwitchover };
    stages.push(hook::planned(cluster, Point::AfterSwitchover, "none", last).into_iter().collect());
    stages
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::db::promotion::Share;
    use crate::topology::load_text;

    fn room(senders: (i32, i32), slots: (i32, i32)) -> Room {
        let share = |(used, all)| Share { used, all };
        Room { senders: share(senders), slots: share(slots), can_be_rewound: true, full_page_writes: true }
    }

    #[test]
    fn a_candidate_has_room_for_those_who_will_follow_it() {
        let text = "pgherd: 1\nherd: shop\nregions: {here: {hosts: {local: local}}}\nclusters:\n  inventory:\n    postgres: {version: 15}\n    \
                    nodes: {a: {host: local, port: 5441}}\n";
        let herd =
            load_text(Path::new("pgherd.yml"), text, Path::new("/d")).unwrap_or_else(|why| panic!("{why}"));
        let told = |room| -> Vec<String> {
            let found = no_room(&herd.clusters[0], "b", room, (2, 1));
            found.iter().map(|error| error.what().to_owned()).collect()
        };
        assert!(told(room((0, 2), (1, 2))).is_empty());
        assert_eq!(
            told(room((1, 2), (2, 2))),
            [
                "cannot switch over to inventory-b: it has no room for 2 more WAL senders",
                "cannot switch over to inventory-b: it has no room for 1 more replication slots",
            ]
        );
    }

    #[test]
    fn a_node_that_could_not_be_rewound_one_day_is_noted() {
        let well = room((0, 1), (0, 1));
        assert_eq!(not_rewound("inventory-a", well), None);
        let told = not_rewound("inventory-a", Room { can_be_rewound: false, ..well }).unwrap();
        assert!(told.starts_with("inventory-a has neither data checksums nor wal_log_hints: "), "{told}");
        let told = not_rewound("inventory-a", Room { full_page_writes: false, ..well }).unwrap();
        assert!(told.starts_with("inventory-a has full_page_writes off: "), "{told}");
    }
}
