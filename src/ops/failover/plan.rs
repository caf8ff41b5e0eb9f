//! What a failover will do, decided before anything happens, or every reason why it cannot be done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Serialize;

use crate::db::commits::Unconfirmed;
use crate::db::queries::{self, ServerRole};
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs;
use crate::ops::apply;
use crate::ops::apply::world::LeftOut;
use crate::ops::context::Context;
use crate::ops::failover::quorum::{self, Quorum, Said};
use crate::ops::failover::stages::{Fence, Salvage, stages};
use crate::ops::failover::step::FailStep;
use crate::ops::failover::waited;
use crate::ops::failover::witness::{self, Sees, Witness, host_answers};
use crate::ops::hook::{self, Point};
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::{self, Claim, ClusterObserved, Depth, Doors, NodeObserved, Running};
use crate::ops::plan::step::PlannedStep;
use crate::ops::preflight::without_twins;
use crate::ops::roles::{self, Lead};
use crate::ops::succession::{self, Input};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::primary;
use crate::topology::declared;
use crate::topology::model::{Cluster, Herd, Node, Promote};
use crate::units::{ByteCount, human_duration};

type Planned = PlannedStep<FailStep>;

/// The points at which hooks are run.
const POINTS: [Point; 4] =
    [Point::BeforePromote, Point::AfterPromote, Point::AfterFailover, Point::AfterUndo];

/// How long the repository may take to say who is primary: it never holds a failover up.
const RECORD: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wish {
    /// The node that is to lead; the most suitable one if nobody names one.
    pub to: Option<String>,
    /// The region that it is to be in.
    pub region: Option<String>,
    /// Whether rows that were acknowledged may be lost.
    pub loss: Accept,
    /// What the operator says of the old primary, where nothing else proves that it takes no writes.
    pub statement: Option<String>,
}

/// How much may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    Nothing,
    /// What was committed in so long a time, as the topology says: the RPO of losing a primary.
    UpTo(Duration),
    /// The operator has named the cluster.
    Anything,
}

impl Accept {
    fn agrees_to(self, loss: &Loss) -> bool {
        match self {
            Self::Nothing => false,
            Self::UpTo(rpo) => loss.seconds.is_some_and(|seconds| seconds <= rpo.as_secs_f64()),
            Self::Anything => true,
        }
    }
}

/// What may be lost, at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// What the old primary is known to have written and nobody has; it may have written more since. `None` if it told nobody.
    pub bytes_known: Option<ByteCount>,
    /// How long ago the new primary has heard of the old one last: commits of that time may be lost.
    pub seconds: Option<f64>,
}

/// What is to be done, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailPlan {
    pub cluster: String,
    /// One line: what there is now.
    pub headline: String,
    pub wish: Wish,
    /// Who sees the old primary.
    pub witnesses: Vec<Witness>,
    /// Why the one that is to lead.
    pub because: String,
    /// What may be lost; `None` if nothing that was acknowledged.
    pub loss: Option<Loss>,
    pub input: Input,
    /// Steps of one stage run side by side.
    pub stages: Vec<Vec<Planned>>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// When it was made.
    #[serde(skip)]
    pub made: Instant,
}

/// Within this time a plan need not be made again: clients wait, and who was silent just now would be asked in vain once more.
const FRESH: Duration = Duration::from_secs(5);

impl FailPlan {
    /// Tells whether a plan that was made just now asks for the same.
    pub fn is_still(&self, shown: &Self) -> bool {
        self.input == shown.input
            && self.stages == shown.stages
            && self.loss.is_some() == shown.loss.is_some()
    }
}

/// A standby that answers.
#[derive(Debug, Clone, Copy)]
struct Up<'a> {
    node: &'a Node,
    seen: &'a NodeObserved,
    running: &'a Running,
    timeline: TimelineId,
    has: Lsn,
}

/// Looks at the cluster from everywhere, and decides.
///
/// # Errors
/// Every obstacle at once.
pub async fn plan(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
) -> Result<FailPlan, Vec<Error>> {
    let one = |error: Error| vec![error];
    let doors = Doors::look(cluster, context.places.clone(), &context.gate).map_err(one)?;
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    let old = old_primary(cluster, &observed).map_err(one)?;
    let old_seen = observed.node(&old.name).expect("every node is observed");
    let reach = host_answers(old_seen);
    let (witnesses, standbys, left_out, own) = futures_util::join!(
        witness::ask(&doors, cluster, &observed, old),
        standbys(&doors, cluster, &observed, old),
        left_out(&doors, cluster, &observed, old),
        async { if reach { waited::by_its_files(&doors, cluster, old).await } else { None } },
    );
    let mut obstacles = of_witnesses(cluster, old, &witnesses);
    let to = match candidate(cluster, old, &standbys, wish) {
        Ok(to) => to,
        Err(error) => {
            obstacles.push(error);
            return Err(without_twins(obstacles));
        }
    };
    obstacles.extend(of_candidate(cluster, &to, old_seen, &standbys));
    obstacles.extend(of_record(context, &doors, cluster, old, &to).await);
    for node in standbys.iter().map(|up| up.node) {
        obstacles.extend(doors.programs(cluster, &node.host).await.err());
    }
    let hosts: Vec<String> =
        cluster.pooler_hosts().filter(|host| !left_out.hosts.contains(*host)).cloned().collect();
    for host in &hosts {
        obstacles.extend(programs::find_pgbouncer(doors.host(host)).await.err());
    }
    let nodes = (Some(old.name.as_str()), Some(to.node.name.as_str()));
    obstacles.extend(hook::missing(&doors, cluster, &POINTS, nodes).await);
    if !reach {
        obstacles.extend(hook::missing(&doors, cluster, &[Point::Fence], nodes).await);
    }
    let unconfirmed = waited::unconfirmed(&doors, cluster, to.node).await.unwrap_or_else(|error| {
        let name = cluster.full_name(&to.node.name);
        obstacles.push(error.context(format!("see on {name} whose commits wait for a standby")));
        Vec::new()
    });
    let said: Vec<Said> =
        standbys.iter().map(|up| waited::by_a_standby(up.node, up.running, &unconfirmed)).collect();
    let quorum = Quorum::of(cluster, old, &said, own.as_ref());
    let mut notes = Vec::new();
    let fence = match fence(cluster, old, reach, &quorum, wish) {
        Ok(fence) => Some(fence),
        Err(error) => {
            obstacles.push(error);
            None
        }
    };
    // What is in the data directory of the old primary can be brought; else enough standbys must have confirmed every commit.
    let loss = (!quorum.holds() && !reach).then(|| loss(&to, &standbys));
    if let Some(loss) = &loss
        && !wish.loss.agrees_to(loss)
    {
        obstacles.push(may_lose(cluster, &quorum, loss));
    }
    let (Some(fence), true) = (fence, obstacles.is_empty()) else { return Err(without_twins(obstacles)) };

    let present = without(cluster, &left_out);
    let fixed = apply::fix(&doors, herd, &present, &observed).await.map_err(one)?;
    let siblings: Vec<String> =
        standbys.iter().map(|up| up.node.name.clone()).filter(|name| *name != to.node.name).collect();
    notes.extend(quorum.less().map(|why| format!("less than declared is counted on: {why}")));
    notes.extend(of_unconfirmed(cluster, old, &quorum, &unconfirmed, reach));
    let fewer = quorum::fewer(cluster, &siblings);
    let synchronous = fewer.map(|fewer| declared::synchronous_names_for(cluster, to.node, fewer));
    if let Some(fewer) = &synchronous {
        notes.push(format!(
            "too few standbys are left for what is declared: commits wait for {} until the others are back",
            if fewer.is_empty() { "nobody" } else { fewer }
        ));
    }
    for node in &left_out.nodes {
        if *node != old.name {
            notes.push(format!("{} does not answer and is left out", cluster.full_name(node)));
        }
    }
    for host in cluster.pooler_hosts().filter(|host| left_out.hosts.contains(*host)) {
        notes.push(format!("the pooler on {host} does not answer; lead it afterwards: pgherd pooler apply"));
    }
    let input = Input {
        herd: herd.name.clone(),
        cluster: cluster.with_adopted(&fixed.adopted),
        fixed,
        system_identifier: to.running.facts.system_identifier,
        timeline: to.timeline,
        from: old.name.clone(),
        to: to.node.name.clone(),
        siblings,
        synchronous,
        before: before(cluster, &standbys),
        left_out,
    };
    // Also for commits that wait for nobody: what of them is on the disk need not be lost.
    let salvage = (reach && !(quorum.holds() && unconfirmed.is_empty()))
        .then_some(Salvage { may_lose: quorum.holds() || wish.loss == Accept::Anything });
    let frozen: Vec<&str> = standbys.iter().map(|up| up.node.name.as_str()).collect();
    let stages = stages(&input, &to.running.slots, (&fence, salvage), &hosts, &frozen);
    let because = because(cluster, &to, &standbys, wish);
    Ok(FailPlan {
        cluster: cluster.name.clone(),
        headline: format!("primary {} is down, timeline {}", old.name, to.timeline),
        wish: wish.clone(),
        witnesses,
        because,
        loss,
        input,
        stages,
        notes,
        made: Instant::now(),
    })
}

/// What the standbys would have their commits wait for, where that is not what is declared.
fn before(cluster: &Cluster, standbys: &[Up<'_>]) -> BTreeMap<String, String> {
    let names = standbys.iter().map(|up| (up.node, &up.running.facts.synchronous_standby_names));
    names
        .filter(|(node, names)| **names != declared::synchronous_names(cluster, node))
        .map(|(node, names)| (node.name.clone(), names.clone()))
        .collect()
}

/// Says of whose commits enough standbys say nothing.
fn of_unconfirmed(
    cluster: &Cluster,
    old: &Node,
    quorum: &Quorum,
    unconfirmed: &[Unconfirmed],
    reach: bool,
) -> Option<String> {
    let told = waited::told(unconfirmed).filter(|_| quorum.holds())?;
    let name = cluster.full_name(&old.name);
    Some(if reach {
        format!(
            "what {told} committed may be on no standby: it is brought from the disk of {name} if that can be read"
        )
    } else {
        format!("what {told} committed last may be on {name} alone, and is lost then")
    })
}

/// What one look at a cluster tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// This node answers, and takes writes.
    Leads(String),
    /// It does not answer here; somebody sees it, or it is coming back.
    Seen { why: String },
    /// Nobody sees it.
    Gone { node: String, why: String },
    /// There is no primary that could be gone.
    Unclear { why: String },
}

/// Looks from everywhere whether the primary is there.
///
/// # Errors
/// When the doors cannot be opened.
pub async fn look(context: &Context, cluster: &Cluster) -> Result<Sight> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    if let Lead::Primary(name) = roles::lead(&observed) {
        return Ok(Sight::Leads(name));
    }
    let old = match old_primary(cluster, &observed) {
        Ok(old) => old,
        Err(error) => return Ok(Sight::Unclear { why: error.what().to_owned() }),
    };
    let witnesses = witness::ask(&doors, cluster, &observed, old).await;
    let told = |witness: &Witness| format!("{}: {}", witness.who, witness.told);
    let seen = witnesses.iter().find(|witness| matches!(witness.sees, Sees::Alive | Sees::Starting));
    Ok(match seen {
        Some(witness) => Sight::Seen { why: told(witness) },
        None => Sight::Gone {
            node: old.name.clone(),
            why: witnesses.iter().map(told).collect::<Vec<_>>().join("; "),
        },
    })
}

/// Tells whether a plan that was made just now still holds: every standby in it is one, on the same timeline. Nobody else is asked again.
pub async fn holds(context: &Context, cluster: &Cluster, plan: &FailPlan) -> bool {
    if plan.made.elapsed() >= FRESH {
        return false;
    }
    let Ok(doors) = Doors::look(cluster, context.places.clone(), &context.gate) else { return false };
    let names = plan.input.siblings.iter().chain([&plan.input.to]);
    let asked = names.filter_map(|name| cluster.node(name)).map(async |node| {
        let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
        let facts = queries::server_facts(&conn).await?;
        let (timeline, _) = succession::identify(&doors, cluster, node).await?;
        Ok::<_, Error>(matches!(facts.role, ServerRole::Standby { .. }) && timeline == plan.input.timeline)
    });
    join_all(asked).await.into_iter().all(|held| matches!(held, Ok(true)))
}

/// Finds the node that was primary: the one that the standbys were told to follow, else the only one that is no standby.
fn old_primary<'a>(cluster: &'a Cluster, observed: &ClusterObserved) -> Result<&'a Node> {
    let what = format!("cannot fail {} over", cluster.name);
    match roles::lead(observed) {
        Lead::Primary(name) => {
            return Err(Error::refused(format!("{what}: {name} answers and takes writes"))
                .detail("A failover is for a primary that is gone. Nothing was changed.")
                .hint(format!(
                    "Hand over without an error: pgherd switchover --cluster {}; with --to NODE or --region REGION.",
                    cluster.name
                )));
        }
        Lead::Split(names) => {
            return Err(Error::refused(format!("{what}: {} accept writes", names.join(", ")))
                .detail(
                    "Which of them has the rows that count is not for pgherd to say. Nothing was changed.",
                )
                .hint("See what each of them has: pgherd status"));
        }
        Lead::Unborn => {
            return Err(Error::new(ErrorKind::NotFound, format!("{what}: it is not there yet"))
                .hint("Make it: pgherd apply"));
        }
        Lead::StoppedPrimary(_) | Lead::Unknown { .. } => {}
    }
    let stands_by = |node: &Node| {
        let seen = observed.node(&node.name).expect("every node is observed");
        seen.running().is_some() || seen.ended_as_standby()
    };
    let told: BTreeSet<&str> = cluster
        .nodes
        .iter()
        .filter_map(|node| observed.node(&node.name)?.running())
        .filter_map(|running| Some(running.settings.get("primary_conninfo")?.setting.as_str()))
        .filter_map(|conninfo| upstream(cluster, conninfo))
        .filter(|name| cluster.node(name).is_some_and(|node| !stands_by(node)))
        .collect();
    let others = cluster.nodes.iter().filter(|node| !stands_by(node)).map(|node| node.name.as_str());
    let suspects: BTreeSet<&str> = if told.is_empty() { others.collect() } else { told };
    let names = || suspects.iter().copied().collect::<Vec<_>>().join(", ");
    match suspects.iter().next() {
        Some(name) if suspects.len() == 1 => Ok(cluster.node(name).expect("its name was taken from there")),
        Some(_) => Err(Error::refused(format!("{what}: each of {} may be its primary", names()))
            .detail("None of them answers as a standby. Nothing was changed.")
            .hint("See what each node says: pgherd status -v")),
        None => {
            Err(Error::refused(format!("{what}: every node is a standby, and none follows another primary"))
                .detail("A role change may have ended in its middle. Nothing was changed.")
                .hint("See what is unfinished: pgherd operation list"))
        }
    }
}

/// Finds the node that a `primary_conninfo` leads to.
fn upstream<'a>(cluster: &'a Cluster, conninfo: &str) -> Option<&'a str> {
    let node = cluster.nodes.iter().find(|node| {
        conninfo.starts_with(&format!("{} port={} ", declared::server_of(cluster, node), node.port))
    })?;
    Some(&node.name)
}

/// The standbys that answer, each with where its WAL ends.
async fn standbys<'a>(
    doors: &Doors,
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    old: &Node,
) -> Vec<Up<'a>> {
    let asked = cluster.nodes.iter().filter(|node| node.name != old.name).map(async |node| {
        let seen = observed.node(&node.name)?;
        let running = seen.running()?;
        let ServerRole::Standby { .. } = running.facts.role else { return None };
        // One that does not say is left out, as if it did not answer.
        let (timeline, reached) = succession::identify(doors, cluster, node).await.ok()?;
        let has = running.facts.role.lsn().map_or(reached, |lsn| lsn.max(reached));
        Some(Up { node, seen, running, timeline, has })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn left_out(doors: &Doors, cluster: &Cluster, observed: &ClusterObserved, old: &Node) -> LeftOut {
    let mut left_out = LeftOut::default();
    for node in &cluster.nodes {
        let seen = observed.node(&node.name).expect("every node is observed");
        if !host_answers(seen) {
            left_out.hosts.insert(node.host.clone());
        }
        if node.name == old.name || seen.running().is_none() {
            left_out.nodes.insert(node.name.clone());
        }
    }
    let without_node: Vec<&String> =
        cluster.pooler_hosts().filter(|host| !cluster.nodes.iter().any(|node| node.host == **host)).collect();
    let reached = join_all(without_node.iter().map(async |host| {
        matches!(tokio::time::timeout(RECORD, doors.host(host).reach()).await, Ok(Ok(())))
    }));
    for (host, reached) in without_node.iter().zip(reached.await) {
        if !reached {
            left_out.hosts.insert((*host).clone());
        }
    }
    left_out
}

/// The same cluster with what answers.
pub fn without(cluster: &Cluster, left_out: &LeftOut) -> Cluster {
    let mut present = cluster.clone();
    present.nodes.retain(|node| !left_out.hosts.contains(&node.host));
    if let Some(poolers) = &mut present.poolers {
        poolers.hosts.retain(|host| !left_out.hosts.contains(host));
    }
    if !present.nodes.iter().any(|node| node.preferred)
        && let Some(first) = present.nodes.first_mut()
    {
        first.preferred = true;
    }
    present
}

/// A primary that somebody sees is not gone, and one that recovers is coming back.
fn of_witnesses(cluster: &Cluster, old: &Node, witnesses: &[Witness]) -> Vec<Error> {
    let name = cluster.full_name(&old.name);
    let what = format!("cannot fail {} over", cluster.name);
    let told = |sees: Sees| {
        let told = witnesses.iter().filter(|witness| witness.sees == sees);
        told.map(|witness| format!("{} {}", witness.who, witness.told)).collect::<Vec<_>>()
    };
    let (alive, starting) = (told(Sees::Alive), told(Sees::Starting));
    if !alive.is_empty() {
        return vec![
            Error::refused(format!("{what}: {name} does not answer here, and is seen alive from elsewhere"))
                .detail(format!("{}. Nothing was changed.", alive.join("; ")))
                .hint(format!(
                    "Mend the way to it, or shut it out and ask again: pgherd fence {} --cluster {}",
                    old.name, cluster.name
                )),
        ];
    }
    if !starting.is_empty() {
        return vec![
            Error::refused(format!("{what}: {name} is coming back"))
                .detail(format!("{}. Nothing was changed.", starting.join("; ")))
                .hint(format!(
                    "Wait for it: pgherd status --watch. If that takes too long, shut it out and ask again: pgherd fence {} --cluster {}",
                    old.name, cluster.name
                )),
        ];
    }
    Vec::new()
}

fn candidate<'a>(cluster: &Cluster, old: &Node, standbys: &[Up<'a>], wish: &Wish) -> Result<Up<'a>> {
    let what = format!("cannot fail {} over", cluster.name);
    if let Some(name) = &wish.to {
        if cluster.node(name).is_none() {
            let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(Error::new(ErrorKind::NotFound, format!("{} has no node {name:?}", cluster.name))
                .hint(format!("Its nodes are: {}.", names.join(", "))));
        }
        if *name == old.name {
            return Err(Error::refused(format!("{what} to {name}: that is the primary that is gone"))
                .detail("Nothing was changed.")
                .hint("Name one of its standbys, or none."));
        }
        return standbys.iter().find(|up| up.node.name == *name).copied().ok_or_else(|| {
            Error::refused(format!("{what} to {name}: it does not answer as a standby"))
                .detail("Nothing was changed.")
                .hint("See what is the matter with it: pgherd status -v")
        });
    }
    if let Some(region) = &wish.region {
        succession::has_region(cluster, region)?;
    }
    let latest = standbys.iter().map(|up| up.timeline).max();
    let in_region = |node: &Node| wish.region.is_none() || wish.region.as_deref() == cluster.region(node);
    let fit = standbys.iter().filter(|up| {
        up.node.promote == Promote::Automatic && Some(up.timeline) == latest && in_region(up.node)
    });
    let mut best: Option<Up<'a>> = None;
    for up in fit {
        // Among equals the preferred one, and then the first of the file.
        let rank = |up: &Up<'_>| (!is_paused(up), up.has, up.node.preferred);
        if best.is_none_or(|best| rank(up) > rank(&best)) {
            best = Some(*up);
        }
    }
    best.ok_or_else(|| {
        let place = wish.region.as_ref().map(|region| format!(" in region {region}")).unwrap_or_default();
        Error::refused(format!("{what}: no standby{place} may lead"))
            .detail("Those that do not answer cannot, and those whose `promote` is by-hand lead only when they are named. Nothing was changed.")
            .hint("See what each node says: pgherd status -v")
    })
}

fn is_paused(up: &Up<'_>) -> bool {
    matches!(up.running.facts.role, ServerRole::Standby { replay_paused: true, .. })
}

fn because(cluster: &Cluster, to: &Up<'_>, standbys: &[Up<'_>], wish: &Wish) -> String {
    let most = standbys.iter().map(|up| up.has).max().unwrap_or(to.has);
    let others = standbys.iter().filter(|up| up.node.name != to.node.name);
    let others: Vec<String> =
        others.map(|up| format!("{} has {}", cluster.full_name(&up.node.name), up.has)).collect();
    let compared = if others.is_empty() { String::new() } else { format!("; {}", others.join(", ")) };
    let why = match (wish.to.is_some(), to.has >= most) {
        (true, true) => "it was named, and nobody has more",
        (true, false) => "it was named; it gets what it lacks from the others first",
        (false, _) if standbys.len() == 1 => "it is the only one that answers",
        (false, true) => "nobody has more",
        (false, false) => "the one that has most may not lead; it gets what it lacks first",
    };
    format!(
        "{} has WAL up to {} on timeline {}: {why}{compared}",
        cluster.full_name(&to.node.name),
        to.has,
        to.timeline
    )
}

/// What the nodes themselves say is in the way.
fn of_candidate(cluster: &Cluster, to: &Up<'_>, old: &NodeObserved, standbys: &[Up<'_>]) -> Vec<Error> {
    let name = cluster.full_name(&to.node.name);
    let cannot = |why: &str| {
        Error::refused(format!("cannot fail over to {name}: {why}")).detail("Nothing was changed.")
    };
    let mut found = Vec::new();
    if !matches!(to.seen.marker, Claim::Ours(_)) {
        found
            .push(cannot(&format!("no marker of {name} claims {}", to.node.data_directory.display())).hint(
                "pgherd changes only what it made itself or has taken over: pgherd apply --adopt NODE",
            ));
    }
    if is_paused(to) {
        found.push(cannot("replay is paused").hint("Go on there: SELECT pg_wal_replay_resume()"));
    }
    for other in standbys {
        let full = cluster.full_name(&other.node.name);
        if other.running.facts.system_identifier != to.running.facts.system_identifier {
            found.push(
                cannot(&format!("{full} belongs to another system")).hint("See both: pgherd status -v"),
            );
        } else if other.timeline > to.timeline {
            found.push(
                cannot(&format!("it is on timeline {}, {full} on {}", to.timeline, other.timeline)).hint(
                    format!("The later one may have rows that {name} never had: name {}.", other.node.name),
                ),
            );
        }
    }
    if let Some(control) = old.control() {
        if control.system_identifier != to.running.facts.system_identifier {
            found.push(
                cannot("the old primary belonged to another system").hint("See both: pgherd status -v"),
            );
        } else if control.checkpoint_timeline > to.timeline {
            found.push(
                cannot(&format!(
                    "the old primary was on timeline {}, and it is on {}",
                    control.checkpoint_timeline, to.timeline
                ))
                .hint("It has nothing of what was written since. Start the old primary: pgherd apply"),
            );
        }
    }
    found
}

/// What the repository says of who is primary. One that does not answer holds nothing up.
async fn of_record(
    context: &Context,
    doors: &Doors,
    cluster: &Cluster,
    old: &Node,
    to: &Up<'_>,
) -> Option<Error> {
    let backups = cluster.backups.as_ref()?;
    let read = async {
        let door = NodeDoor::if_installed(doors, &to.node.host, &context.build).await?;
        let repo = node::repository(&door, &backups.repository.url).await?;
        primary::read(&*repo, &cluster.name).await.map_err(Error::from)
    };
    let record = match tokio::time::timeout(RECORD, read).await {
        Ok(Ok(record)) => record?,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the record of who is primary was not read");
            return None;
        }
        Err(_) => {
            tracing::warn!("the record of who is primary was not read in time");
            return None;
        }
    };
    let ours = record.system_identifier == to.running.facts.system_identifier;
    let name = cluster.full_name(&to.node.name);
    if !ours || record.timeline <= to.timeline {
        return None;
    }
    Some(
        Error::refused(format!("cannot fail over to {name}: it missed the last change of the primary"))
            .detail(format!(
                "The record says that {} is primary on timeline {} since {:.0}; {name} is on timeline {}, behind {}. Nothing was changed.",
                record.node, record.timeline, record.since, to.timeline, old.name
            ))
            .hint("See what each node has: pgherd status -v"),
    )
}

fn fence(cluster: &Cluster, old: &Node, reach: bool, quorum: &Quorum, wish: &Wish) -> Result<Fence> {
    if reach {
        return Ok(Fence::ShutOut);
    }
    if quorum.holds() {
        return Ok(Fence::Starve { nodes: quorum.reached.clone(), need: quorum.needed() });
    }
    if hook::of(cluster, Point::Fence).is_some() {
        return Ok(Fence::Hook);
    }
    if let Some(said) = &wish.statement {
        return Ok(Fence::Statement { said: said.clone() });
    }
    let name = cluster.full_name(&old.name);
    Err(Error::refused(format!("cannot fail {} over: {name} may still take writes", cluster.name))
        .detail(format!(
            "Its host does not answer, so that it cannot be stopped, and {}. Nothing was changed.",
            quorum.why_not()
        ))
        .hint(
            "Cut its power or its network, look that it is off, and say so: --old-primary-is-off \"how you know\". \
             A hook \"fence\" of the topology can do it.",
        ))
}

fn loss(to: &Up<'_>, standbys: &[Up<'_>]) -> Loss {
    let most = standbys.iter().map(|up| up.has).max().unwrap_or(to.has);
    let mut written: Option<Lsn> = None;
    let mut heard: Option<Duration> = None;
    for up in standbys {
        let ServerRole::Standby { receiver, .. } = &up.running.facts.role else { continue };
        written = written.max(receiver.as_ref().and_then(|receiver| receiver.latest_end_lsn));
        let age =
            has_everything_until(&up.running.facts.role).map(|at| up.running.facts.now.duration_since(at));
        // The primary's clock may be ahead of the standby's.
        let age = age.map(|age| Duration::try_from(age).unwrap_or_default());
        heard = match (heard, age) {
            (Some(least), Some(age)) => Some(least.min(age)),
            (known, age) => known.or(age),
        };
    }
    Loss {
        bytes_known: written.map(|written| ByteCount(written.as_u64().saturating_sub(most.as_u64()))),
        seconds: heard.map(|heard| heard.as_secs_f64()),
    }
}

/// Returns the moment up to which a standby has every commit. One that had received all that its primary told it of was not behind when it
/// heard it last; of any other only the time of the last commit that it has replayed is known.
fn has_everything_until(role: &ServerRole) -> Option<Timestamp> {
    let ServerRole::Standby { receiver, last_replayed, .. } = role else { return None };
    let told = receiver
        .as_ref()
        .filter(|receiver| receiver.flushed_lsn.is_some() && receiver.flushed_lsn >= receiver.latest_end_lsn);
    told.and_then(|receiver| receiver.last_message_at).or(*last_replayed)
}

fn may_lose(cluster: &Cluster, quorum: &Quorum, loss: &Loss) -> Error {
    let bytes = match loss.bytes_known {
        Some(bytes) => format!("at least {bytes} that it wrote are on no standby"),
        None => "how much it wrote that no standby has is not known".to_owned(),
    };
    let since = match loss.seconds {
        Some(seconds) => format!(
            "what was committed in the last {} may be lost",
            human_duration(Duration::from_secs_f64(seconds.max(0.0)))
        ),
        None => "when a standby heard of it last is not known".to_owned(),
    };
    Error::refused(format!("rows of {} that were acknowledged may be lost", cluster.name))
        .detail(format!(
            "{}, and its data directory is out of reach: {since}; {bytes}. Nothing was changed.",
            capital(&quorum.why_not())
        ))
        .hint(format!(
            "Bring its host or more standbys back; or accept it: --accept-data-loss {}",
            cluster.name
        ))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::queries::WalReceiver;

    #[test]
    fn a_standby_that_lags_has_everything_only_up_to_its_last_commit() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let lsn = |text: &str| Some(text.parse::<Lsn>().unwrap());
        let (commit, message) = (at("2026-11-22T04:00:00Z"), at("2026-11-22T04:10:00Z"));
        let standby = |flushed: &str, receives: bool| ServerRole::Standby {
            received_lsn: lsn(flushed),
            replayed_lsn: lsn(flushed),
            replay_paused: false,
            last_replayed: Some(commit),
            receiver: receives.then(|| {
                Box::new(WalReceiver {
                    status: "streaming".to_owned(),
                    received_timeline: None,
                    written_lsn: lsn(flushed),
                    flushed_lsn: lsn(flushed),
                    latest_end_lsn: lsn("0/5000000"),
                    latest_end_at: None,
                    last_message_at: Some(message),
                    sender_host: None,
                    sender_port: None,
                    slot: None,
                })
            }),
        };
        assert_eq!(has_everything_until(&standby("0/5000000", true)), Some(message));
        assert_eq!(has_everything_until(&standby("0/4000000", true)), Some(commit));
        assert_eq!(has_everything_until(&standby("0/5000000", false)), Some(commit));
    }
}
