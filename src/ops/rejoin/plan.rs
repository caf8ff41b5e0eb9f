//! What a rejoin will do, decided before anything happens, or every reason why it cannot be done.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::db::promotion::{self, Source};
use crate::db::queries::{ServerRole, SlotKind};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply;
use crate::ops::apply::world::LeftOut;
use crate::ops::context::Context;
use crate::ops::failover;
use crate::ops::in_place::aside;
use crate::ops::observe::{
    self, Claim, ClusterObserved, Depth, Directory, Doors, Fence, NodeObserved, Running, Server,
};
use crate::ops::plan::step::{PlannedStep, Sign};
use crate::ops::preflight::{self, without_twins};
use crate::ops::rejoin::decide::{self, Decision, Lineage, Way};
use crate::ops::rejoin::look::{self, Found, Place, Primary};
use crate::ops::rejoin::nearer::{self, CloneFrom, Nearer};
use crate::ops::rejoin::step::RejoinStep;
use crate::ops::rejoin::world::Input;
use crate::ops::roles::{self, Lead};
use crate::ops::shelf::Shelf;
use crate::ops::succession;
use crate::repo::layout::ClusterKeys;
use crate::repo::primary::PrimaryRecord;
use crate::repo::seal;
use crate::topology::declared;
use crate::topology::model::{Cluster, Herd, Node};
use crate::units::ByteCount;

type Planned = PlannedStep<RejoinStep>;

const POOLER: &str = "pooler";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wish {
    pub node: String,
    /// The primary to follow, where more than one node claims to be it.
    pub primary: Option<String>,
    /// A new copy, also where less would do.
    pub clone: bool,
    /// Where a new copy is read from; else where less has to be read.
    pub from: Option<CloneFrom>,
}

/// What is to be done, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RejoinPlan {
    pub cluster: String,
    /// One line: what there is now.
    pub headline: String,
    pub wish: Wish,
    pub input: Input,
    /// What the decision rests on, a line a fact.
    pub evidence: Vec<String>,
    /// Steps of one stage run side by side; none where the node is a standby as it should be.
    pub stages: Vec<Vec<Planned>>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl RejoinPlan {
    /// Tells whether a plan that was made just now asks for the same. How far a node has got does not count: it may be writing.
    pub fn is_still(&self, shown: &Self) -> bool {
        self.input.succession == shown.input.succession
            && self.input.decision.way == shown.input.decision.way
            && self.input.decision.fork == shown.input.decision.fork
            && self.stages == shown.stages
    }
}

/// Looks at the cluster, and decides.
///
/// # Errors
/// Every obstacle at once.
pub async fn plan(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
) -> Result<RejoinPlan, Vec<Error>> {
    let one = |error: Error| vec![error];
    let node = named(cluster, &wish.node).map_err(one)?;
    let doors = Doors::look(cluster, context.places.clone(), &context.gate).map_err(one)?;
    let mut obstacles = Vec::new();
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    let leads = leads(context, &doors, cluster, &observed, node, wish).await.map_err(one)?;
    let (above, primary) = leads;
    obstacles.extend(of_node(cluster, &observed, node, primary));
    let left_out = left_out(&doors, cluster, &observed, [node, above]).await;
    let present = failover::plan::without(cluster, &left_out);
    let nodes = [&node.host, &above.host].into_iter();
    obstacles.extend(preflight::programs(&doors, cluster, nodes, present.pooler_hosts()).await);
    if !obstacles.is_empty() {
        return Err(without_twins(obstacles));
    }
    let seen = observed.node(&node.name).expect("every node is observed");
    let facts = &primary.facts;
    let fixed = apply::fix(&doors, herd, &present, &observed).await.map_err(one)?;
    let as_declared = facts.synchronous_standby_names == declared::synchronous_names(cluster, above);
    let succession = succession::Input {
        herd: herd.name.clone(),
        cluster: cluster.with_adopted(&fixed.adopted),
        fixed,
        system_identifier: facts.system_identifier,
        timeline: facts.timeline,
        from: node.name.clone(),
        to: above.name.clone(),
        siblings: if as_declared { Vec::new() } else { following(cluster, node, primary) },
        // A standby says no more than what the primary waits for; that is put right when enough of them are back.
        synchronous: (!as_declared).then(String::new),
        before: BTreeMap::new(),
        left_out,
    };
    let headline = format!("primary {}, timeline {}", above.name, facts.timeline);
    let fenced = matches!(seen.fence, Fence::Fenced(_));
    if !wish.clone && streams(cluster, node, seen, primary) {
        let why = format!("it streams from {} already", above.name);
        let decision = Decision { way: Way::Follow, why, fork: None };
        return Ok(RejoinPlan {
            cluster: cluster.name.clone(),
            headline,
            wish: wish.clone(),
            input: Input { succession, decision },
            evidence: if fenced {
                vec![format!("it streams from {} already, and is fenced", above.name)]
            } else {
                Vec::new()
            },
            stages: if fenced { vec![vec![unfence(cluster, node)]] } else { Vec::new() },
            notes: Vec::new(),
        });
    }
    let conn = doors.connector.connect(&doors.superuser(cluster, above, "postgres")).await;
    let conn = conn.map_err(|error| vec![Error::from(error)])?;
    let source = promotion::source(&conn).await.map_err(|error| vec![Error::from(error)])?;
    let programs = doors.programs(cluster, &node.host).await.map_err(one)?;
    let theirs = doors.programs(cluster, &above.host).await.map_err(one)?;
    let own = Place { doors: &doors, cluster, node, seen, programs, build: &context.build };
    let above_seen = observed.node(&above.name).expect("every node is observed");
    let above_place = Place {
        doors: &doors,
        cluster,
        node: above,
        seen: above_seen,
        programs: theirs,
        build: &context.build,
    };
    let leader = Primary { place: above_place, running: primary, source: &source };
    let found = look::measure(own, &leader, wish.clone).await.map_err(one)?;
    let decision = decide::decide(&found.measured);
    obstacles.extend(look::newer_history(&own, facts, &found).await.map_err(one)?);
    let mut notes = Vec::new();
    obstacles.extend(of_primary(cluster, above, primary, &source));
    let mut backup = None;
    if decision.way == Way::Clone {
        match nearer::backup(context, (&doors, cluster, node), facts, &source, wish.from).await {
            Ok(found) => backup = found,
            Err(error) => obstacles.push(error),
        }
        obstacles.extend(of_clone(&doors, cluster, node, seen, &source, &decision).await);
    } else if let Some(disk) = seen.disk
        && decision.way == Way::Rewind
        && disk.free < look::size(&source)
    {
        notes.push(format!(
            "if it could not be rewound after all, a clone would need {} on {}, where {} are free",
            look::size(&source),
            node.host,
            disk.free
        ));
    }
    if !obstacles.is_empty() {
        return Err(without_twins(obstacles));
    }
    let evidence = evidence(cluster, node, above, &found, &decision);
    let input = Input { succession, decision };
    let settles = settles(cluster, &input, primary);
    let mut stages = stages(&input, (seen, &found), primary, &source, backup.as_ref());
    if settles {
        let of = RejoinStep::Settle { on: above.name.clone() };
        let text = "its commits wait for whom the topology declares";
        let at = stages.iter().position(
            |stage| matches!(stage.as_slice(), [one] if matches!(one.step, RejoinStep::Streams { .. })),
        );
        let settle = vec![step(Sign::Change, cluster.full_name(&above.name), text, "none", of)];
        stages.insert(at.map_or(stages.len(), |at| at + 1), settle);
    }
    Ok(RejoinPlan {
        cluster: cluster.name.clone(),
        headline,
        wish: wish.clone(),
        input,
        evidence,
        stages,
        notes,
    })
}

/// What does not answer and is not needed: another node, or a pooler.
async fn left_out(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    needed: [&Node; 2],
) -> LeftOut {
    let mut left_out = LeftOut::default();
    let is_needed = |host: &String| needed.iter().any(|node| node.host == *host);
    for node in cluster.nodes.iter().filter(|node| !needed.iter().any(|needed| needed.name == node.name)) {
        let seen = observed.node(&node.name).expect("every node is observed");
        if matches!(seen.directory, Directory::Unknown { .. }) && !is_needed(&node.host) {
            left_out.hosts.insert(node.host.clone());
        }
        if seen.running().is_none() {
            left_out.nodes.insert(node.name.clone());
        }
    }
    for host in cluster.pooler_hosts().filter(|host| !cluster.nodes.iter().any(|node| node.host == **host)) {
        if !matches!(tokio::time::timeout(observe::PATIENCE, doors.host(host).reach()).await, Ok(Ok(()))) {
            left_out.hosts.insert(host.clone());
        }
    }
    left_out
}

/// The other standbys that stream from the primary.
fn following(cluster: &Cluster, node: &Node, primary: &Running) -> Vec<String> {
    let streams = |other: &&Node| {
        let name = cluster.full_name(&other.name);
        other.name != node.name
            && primary
                .senders
                .iter()
                .any(|sender| sender.application_name == name && sender.state == "streaming")
    };
    cluster.nodes.iter().filter(streams).map(|other| other.name.clone()).collect()
}

/// Tells whether the primary's commits wait for others than is declared, and enough of those are there when the node is back.
fn settles(cluster: &Cluster, input: &Input, primary: &Running) -> bool {
    let succession::Input { from, to, .. } = &input.succession;
    let Some(synchronous) = &cluster.synchronous else { return false };
    let Some(leads) = cluster.node(to) else { return false };
    let back = synchronous.of.iter().filter(|name| {
        let full = cluster.full_name(name);
        *name == from
            || primary
                .senders
                .iter()
                .any(|sender| sender.application_name == full && sender.state == "streaming")
    });
    primary.facts.synchronous_standby_names != declared::synchronous_names(cluster, leads)
        && back.count() >= synchronous.wait_for as usize
}

fn unfence(cluster: &Cluster, node: &Node) -> Planned {
    let of = RejoinStep::Unfence { node: node.name.clone() };
    step(Sign::Change, cluster.full_name(&node.name), "unfence it", "none", of)
}

fn named<'c>(cluster: &'c Cluster, name: &str) -> Result<&'c Node> {
    cluster.node(name).ok_or_else(|| {
        let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        Error::new(ErrorKind::NotFound, format!("{} has no node {name:?}", cluster.name))
            .hint(format!("Its nodes are: {}.", names.join(", ")))
    })
}

/// Finds the primary that the node is to follow: the only one there is, or, where the node is a second one, the other one if what is known says
/// that it is the one that counts.
async fn leads<'a>(
    context: &Context,
    doors: &Doors,
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    node: &Node,
    wish: &Wish,
) -> Result<(&'a Node, &'a Running)> {
    let full = cluster.full_name(&node.name);
    let what = format!("cannot bring {full} back");
    let name = match roles::lead(observed) {
        Lead::Primary(name) if name == node.name => {
            return Err(Error::refused(format!("{what}: it is the primary"))
                .detail("There is no other one that it could follow. Nothing was changed.")
                .hint("See what each node says: pgherd status"));
        }
        Lead::Primary(name) => name,
        Lead::Split(names) => of_two(context, doors, cluster, observed, node, &names, wish).await?,
        Lead::StoppedPrimary(name) => {
            return Err(Error::refused(format!("{what}: the primary {name} is stopped"))
                .detail("There is nobody to follow. Nothing was changed.")
                .hint("Start it: pgherd apply"));
        }
        Lead::Unborn => {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{what}: {} is not there yet", cluster.name),
            )
            .hint("Make it: pgherd apply"));
        }
        Lead::Unknown { why } => {
            return Err(Error::new(ErrorKind::NotFound, format!("{what}: no primary answers"))
                .detail(format!("{why}. Nothing was changed."))
                .hint("See what each node says: pgherd status"));
        }
    };
    if let Some(wished) = &wish.primary
        && *wished != name
    {
        return Err(Error::refused(format!("{what}: {wished} is not the primary, {name} is"))
            .detail("Nothing was changed."));
    }
    let leads = cluster.node(&name).expect("roles::lead names nodes of the cluster");
    let running = observed.node(&name).and_then(NodeObserved::running);
    Ok((leads, running.expect("roles::lead names a primary that answers")))
}

/// Two nodes accept writes, and one of them is to come back as a standby: the other one must be known to be the primary, by the record in the
/// repository or by the operator's word, and by nothing else. A higher timeline alone does not tell (facts of pg_auto_failover#1161).
async fn of_two(
    context: &Context,
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    node: &Node,
    names: &[String],
    wish: &Wish,
) -> Result<String> {
    let full = cluster.full_name(&node.name);
    let others: Vec<&String> = names.iter().filter(|name| **name != node.name).collect();
    let refused = |why: &str| {
        Error::refused(format!("cannot bring {full} back: {} accept writes", names.join(", ")))
            .detail(format!("{why} Nothing was changed."))
    };
    if !names.contains(&node.name) {
        return Err(refused("Which of them is the primary is to be settled first.")
            .hint(format!("Bring the one back that is not: pgherd rejoin {}", names.join(" or "))));
    }
    let [other] = others.as_slice() else {
        return Err(refused("Bring the others back first.").hint("See them: pgherd status"));
    };
    let recorded = record(context, doors, cluster).await?;
    let timeline = |name: &str| observed.node(name).and_then(roles::timeline);
    match (recorded, &wish.primary) {
        (Some(record), _) if record.node == node.name => Err(refused(&format!(
            "The record in the repository says that {} is the primary since {:.0}, on timeline {}.",
            record.node, record.since, record.timeline
        ))
        .hint(format!("If {other} is not the primary, bring it back: pgherd rejoin {other}"))),
        (Some(record), wished)
            if record.node == **other
                && timeline(other) == Some(record.timeline)
                // Whoever is on a later timeline was promoted since, by somebody who did not write it down.
                && timeline(&node.name) <= Some(record.timeline)
                && wished.as_ref().is_none_or(|wished| wished == *other) =>
        {
            Ok((*other).clone())
        }
        (_, Some(wished)) if wished == *other => Ok((*other).clone()),
        (_, _) => Err(refused("Nothing says which of them has the rows that count.")
            .hint(format!("If it is {other}, say so: pgherd rejoin {} --primary {other}", node.name))),
    }
}

/// Reads who is the primary, by the repository; what cannot be read says nothing.
async fn record(context: &Context, doors: &Doors, cluster: &Cluster) -> Result<Option<PrimaryRecord>> {
    let Some(backups) = &cluster.backups else { return Ok(None) };
    let key = ClusterKeys::new(&cluster.name).primary();
    for node in &cluster.nodes {
        let Ok(shelf) = Shelf::of(doors, &node.host, &backups.repository, &context.build).await else {
            continue;
        };
        if let Ok(Some(bytes)) = shelf.read(&key).await {
            return seal::read_document(&bytes).map(Some).map_err(|error| {
                let shown = shelf.shown(&key);
                Error::failed(format!("cannot read the record of who is primary: {shown}")).source(error)
            });
        }
    }
    Ok(None)
}

/// What the node itself says is in the way.
fn of_node(cluster: &Cluster, observed: &ClusterObserved, node: &Node, primary: &Running) -> Vec<Error> {
    let full = cluster.full_name(&node.name);
    let cannot = |why: String| {
        Error::refused(format!("cannot bring {full} back: {why}")).detail("Nothing was changed.")
    };
    let seen = observed.node(&node.name).expect("every node is observed");
    let mut found = Vec::new();
    let unknown = |why: &str| {
        Error::new(ErrorKind::NotFound, format!("cannot bring {full} back: what is there is not known"))
            .detail(format!("{why}. Nothing was changed."))
            .hint("What is not known is never taken for stopped. See what it says: pgherd status -v")
    };
    match &seen.server {
        Server::Unknown { why } | Server::Foreign { what: why } => found.push(unknown(why)),
        Server::Starting => found.push(
            cannot("it is starting up".to_owned()).hint("Wait until it answers, or stop it; then try again."),
        ),
        Server::Up(_) | Server::Stopped => {}
    }
    match &seen.marker {
        Claim::Ours(_) => {}
        Claim::None | Claim::Other(_) => found
            .push(cannot(format!("no marker of it claims {}", node.data_directory.display())).hint(
                "pgherd changes only what it made itself or has taken over: pgherd apply --adopt NODE",
            )),
        // The same trouble keeps the server from being seen.
        Claim::Unknown { why } if found.is_empty() => found.push(unknown(why)),
        Claim::Unknown { .. } => {}
    }
    if node.config_directory.is_some()
        || (seen.is_adopted() && seen.profile.as_ref().is_some_and(is_elsewhere))
    {
        found.push(
            cannot("its configuration is not in its data directory".to_owned())
                .hint("Bring it back as it was made, with pg_rewind or pg_basebackup; then: pgherd plan"),
        );
    }
    let identifier = seen
        .running()
        .map(|running| running.facts.system_identifier)
        .or_else(|| seen.control().map(|control| control.system_identifier));
    if let Some(identifier) = identifier
        && identifier != primary.facts.system_identifier
    {
        found.push(cannot(format!(
            "its system identifier is {identifier}, that of the primary {}",
            primary.facts.system_identifier
        )));
    }
    found
}

fn is_elsewhere(profile: &crate::topology::claim::Profile) -> bool {
    profile.adopted.as_ref().is_some_and(|adopted| adopted.config_directory.is_some())
}

/// What the primary has no room for.
fn of_primary(cluster: &Cluster, above: &Node, primary: &Running, source: &Source) -> Vec<Error> {
    let full = cluster.full_name(&above.name);
    let mut found = Vec::new();
    let senders = u64::try_from(primary.senders.len()).unwrap_or(u64::MAX);
    // One streams, and one more serves a clone.
    if senders + 2 > source.max_wal_senders {
        found.push(
            Error::refused(format!("{full} has {senders} of {} WAL senders in use", source.max_wal_senders))
                .detail("A clone needs two. Nothing was changed.")
                .hint("Raise max_wal_senders, or end one that is not needed."),
        );
    }
    let slots = u64::try_from(primary.slots.len()).unwrap_or(u64::MAX);
    if slots >= source.max_replication_slots {
        found.push(
            Error::refused(format!(
                "{full} has all of its {} replication slots in use",
                source.max_replication_slots
            ))
            .detail("The node needs one. Nothing was changed.")
            .hint("Drop one that nobody reads: pgherd health -v"),
        );
    }
    found
}

/// What keeps a node from being cloned beside what it has.
async fn of_clone(
    doors: &Doors,
    cluster: &Cluster,
    node: &Node,
    seen: &NodeObserved,
    source: &Source,
    decision: &Decision,
) -> Vec<Error> {
    let full = cluster.full_name(&node.name);
    let mut found = Vec::new();
    let cannot = |why: String| {
        Error::refused(format!("cannot clone {full}: {why}"))
            .detail(format!("It has to be cloned: {}. Nothing was changed.", decision.why))
    };
    if let Some(disk) = seen.disk
        && disk.free < look::size(source)
    {
        found.push(
            cannot(format!(
                "a copy beside what it has needs {}, and {} are free",
                look::size(source),
                disk.free
            ))
            .hint(format!(
                "Make room on the file system of {}. What the node has is never removed first.",
                node.data_directory.display()
            )),
        );
    }
    if source.has_tablespaces {
        found.push(
            cannot("the cluster has tablespaces, whose places are taken by what it has".to_owned()).hint(
                format!(
                    "Make it from a backup: pgherd restore --to-node {} --tablespace-mapping OLD=NEW",
                    node.name
                ),
            ),
        );
    }
    if seen.is_adopted() {
        found.push(
            cannot("it was adopted".to_owned())
                .hint("Make it as it was made before, with pg_basebackup; then: pgherd plan"),
        );
    }
    if !matches!(seen.directory, Directory::Missing) {
        match aside::obstacle(doors.host(&node.host), &node.data_directory).await {
            Ok(None) => {}
            Ok(Some(why)) => {
                found.push(cannot(format!("{} cannot be renamed: {why}", node.data_directory.display())))
            }
            Err(error) => found.push(error),
        }
    }
    found
}

/// Tells whether the node is a standby as it should be.
fn streams(cluster: &Cluster, node: &Node, seen: &NodeObserved, primary: &Running) -> bool {
    let name = cluster.full_name(&node.name);
    let receives = seen.running().is_some_and(|running| {
        running.facts.timeline == primary.facts.timeline
            && matches!(
                &running.facts.role,
                ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming"
            )
    });
    receives
        && primary.senders.iter().any(|sender| sender.application_name == name && sender.state == "streaming")
}

fn evidence(cluster: &Cluster, node: &Node, above: &Node, found: &Found, decision: &Decision) -> Vec<String> {
    let (own, theirs) = (cluster.full_name(&node.name), cluster.full_name(&above.name));
    let Found { measured, state } = found;
    let mut lines = Vec::new();
    if measured.reached.lsn.as_u64() > 0 {
        lines.push(format!(
            "{own}   timeline {}, at {}, {state}",
            measured.reached.timeline, measured.reached.lsn
        ));
    } else {
        lines.push(format!("{own}   {state}"));
    }
    lines.push(format!("{theirs}   timeline {}, at {}", measured.primary, measured.primary_lsn));
    if let Lineage::Parts(fork) = measured.lineage {
        let past = if measured.reached.past { decide::past(fork, measured.reached) } else { ByteCount(0) };
        lines.push(format!("fork   {} on timeline {}; {past} past it", fork.at, fork.timeline));
    }
    lines.push(format!("{}   {}", decision.way, decision.why));
    lines
}

fn step(sign: Sign, subject: String, text: impl Into<String>, undo: &str, step: RejoinStep) -> Planned {
    Planned { sign, subject, text: text.into(), reason: None, impact: None, undo: undo.to_owned(), step }
}

fn stages(
    input: &Input,
    (seen, found): (&NodeObserved, &Found),
    primary: &Running,
    source: &Source,
    backup: Option<&Nearer>,
) -> Vec<Vec<Planned>> {
    let succession::Input { cluster, from, to, timeline, .. } = &input.succession;
    let (own, theirs) = (cluster.full_name(from), cluster.full_name(to));
    let way = input.decision.way;
    let node = || from.clone();
    let on = || to.clone();
    let has_data = matches!(seen.directory, Directory::Cluster { .. });
    // A standby that runs and is only behind is led, not stopped.
    let runs_on = way == Way::Follow && seen.running().is_some_and(|running| !running.is_primary());
    let mut stages = vec![vec![step(
        Sign::Change,
        theirs.clone(),
        format!("checkpoint, so that pg_control names timeline {timeline}"),
        "nothing to undo",
        RejoinStep::Checkpoint { on: on() },
    )]];
    let slot = cluster.slot_name(from);
    let has_slot = primary
        .slots
        .iter()
        .any(|found| found.name == slot && found.kind == SlotKind::Physical && !found.is_lost());
    if !has_slot {
        let of = RejoinStep::Slot { on: on(), slot: slot.clone() };
        stages.push(vec![step(Sign::Create, theirs.clone(), format!("slot {slot}"), "drop it", of)]);
    }
    if has_data && !runs_on {
        let running_primary = seen.running().is_some_and(Running::is_primary);
        let mut stop = step(
            Sign::Disrupt,
            own.clone(),
            "fence it, mark it a standby, take its archive command, stop it (fast)",
            "none: it never starts as a primary again",
            RejoinStep::Stop { node: node() },
        );
        stop.impact = running_primary.then(|| "its connections end".to_owned());
        stages.push(vec![stop]);
        // What was half rewound holds no WAL of one history.
        let readable =
            matches!(found.measured.directory, decide::Directory::Whole | decide::Directory::Ahead { .. });
        if readable {
            stages.push(vec![step(
                Sign::Look,
                own.clone(),
                "replay its own WAL, as a standby that nobody can reach",
                "stop it",
                RejoinStep::Replay { node: node() },
            )]);
        }
        if cluster.backups.is_some() && timeline.as_u32() > 1 {
            let text = format!("timeline {timeline} is in the archive");
            let of = RejoinStep::Archived { on: on() };
            stages.push(vec![step(Sign::Look, theirs.clone(), text, "nothing to undo", of)]);
        }
        stages.push(vec![step(
            Sign::Change,
            own.clone(),
            "archive the WAL that only it has, or copy it aside",
            "none: nothing there is replaced",
            RejoinStep::Save { node: node() },
        )]);
        if way != Way::Follow {
            stages.push(vec![step(
                Sign::Change,
                own.clone(),
                "keep its own files and pg_control",
                "remove them",
                RejoinStep::Keep { node: node() },
            )]);
        }
    }
    if way == Way::Rewind {
        stages.push(vec![step(
            Sign::Change,
            theirs.clone(),
            format!("let {own} read its files"),
            "take it back",
            RejoinStep::Open { on: on(), node: node() },
        )]);
        stages.push(vec![step(
            Sign::Disrupt,
            own.clone(),
            format!("rewind to {theirs}"),
            "none",
            RejoinStep::Rewind { node: node(), from: on() },
        )]);
    }
    if way != Way::Follow {
        let unless_rewound = way == Way::Rewind;
        let copy = match backup {
            Some(Nearer { label, bytes }) => {
                format!("restore backup {label} ({bytes} to read; {theirs} has {})", look::size(source))
            }
            None => format!("clone {theirs} ({})", look::size(source)),
        };
        let text = if unless_rewound {
            format!("only if that fails: set it aside, {copy}")
        } else if has_data {
            format!("set it aside, {copy}")
        } else {
            copy
        };
        let undo = if unless_rewound { "none" } else { "remove the clone, put back what was there" };
        let backup = backup.map(|nearer| nearer.label.clone());
        let of = RejoinStep::Clone { node: node(), from: on(), unless_rewound, backup };
        stages.push(vec![step(Sign::Create, own.clone(), text, undo, of)]);
    }
    let text = if runs_on {
        format!("follow {theirs}")
    } else {
        format!("its own settings, start as a standby of {theirs}")
    };
    let of = RejoinStep::Start { node: node(), upstream: on() };
    let undo = if way == Way::Rewind { "none" } else { "stop it" };
    stages.push(vec![step(Sign::Change, own.clone(), text, undo, of)]);
    let of = RejoinStep::Streams { node: node(), upstream: on() };
    stages.push(vec![step(Sign::Look, own.clone(), format!("streams on timeline {timeline}"), "none", of)]);
    if way != Way::Follow {
        let text = if way == Way::Rewind {
            "close what was opened, forget what was kept"
        } else {
            "forget what was kept"
        };
        let of = RejoinStep::Close { on: on(), node: node() };
        stages.push(vec![step(Sign::Change, theirs.clone(), text, "none", of)]);
    }
    stages.push(cluster.node(from).map(|node| unfence(cluster, node)).into_iter().collect());
    let others = cluster.nodes.iter().filter(|other| other.name != *from);
    let slots: Vec<String> = others.map(|other| cluster.slot_name(&other.name)).collect();
    let of = RejoinStep::Slots { on: node(), slots };
    stages.push(vec![step(Sign::Remove, own.clone(), "drop its slots, which nobody reads", "none", of)]);
    let lead = |host: &String| {
        let of = RejoinStep::Lead { host: host.clone() };
        step(Sign::Change, POOLER.to_owned(), "aliases to where the nodes are now", "none", of)
    };
    let hosts = cluster.pooler_hosts().filter(|host| !input.succession.left_out.hosts.contains(*host));
    stages.push(hosts.map(lead).collect());
    let of = RejoinStep::Prove { nodes: vec![node()] };
    let text = format!("write a row and read it on {own}");
    stages.push(vec![step(Sign::Look, cluster.name.clone(), text, "none", of)]);
    stages.retain(|stage| !stage.is_empty());
    stages
}
