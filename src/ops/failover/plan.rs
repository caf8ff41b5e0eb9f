//! What a failover will do, decided before anything happens, or every reason why it cannot be done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;

use crate::db::commits::Unconfirmed;
use crate::db::queries::{self, ServerRole};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply;
use crate::ops::apply::world::LeftOut;
use crate::ops::context::Context;
use crate::ops::failover::loss::{self, Accept, Loss};
use crate::ops::failover::obstacles::{of_candidate, of_record, of_witnesses};
use crate::ops::failover::quorum::{self, Quorum, Said};
use crate::ops::failover::sight::old_primary;
use crate::ops::failover::stages::{Fence, Salvage, stages};
use crate::ops::failover::standbys::{Up, is_paused, standbys};
use crate::ops::failover::step::FailStep;
use crate::ops::failover::waited;
use crate::ops::failover::witness::{self, Witness, host_answers};
use crate::ops::hook::{self, Point};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors};
use crate::ops::plan::step::PlannedStep;
use crate::ops::preflight::{self, without_twins};
use crate::ops::succession::{self, Input};
use crate::topology::declared;
use crate::topology::model::{Cluster, Herd, Node, Promote};

type Planned = PlannedStep<FailStep>;

/// The points at which hooks are run.
const POINTS: [Point; 4] =
    [Point::BeforePromote, Point::AfterPromote, Point::AfterFailover, Point::AfterUndo];

/// How long the way to a host without nodes may take.
const WAY: Duration = Duration::from_secs(2);

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
    let hosts: Vec<String> =
        cluster.pooler_hosts().filter(|host| !left_out.hosts.contains(*host)).cloned().collect();
    let nodes = (Some(old.name.as_str()), Some(to.node.name.as_str()));
    // A hook that cannot be run stops the change only where it is needed.
    let points: Vec<Point> = POINTS.into_iter().chain((!reach).then_some(Point::Fence)).collect();
    let (record, programs, hooks, unconfirmed) = futures_util::join!(
        of_record(context, &doors, cluster, old, &to),
        preflight::programs(&doors, cluster, standbys.iter().map(|up| &up.node.host), hosts.iter()),
        hook::missing(&doors, cluster, &points, nodes),
        waited::unconfirmed(&doors, cluster, to.node),
    );
    obstacles.extend(record);
    obstacles.extend(programs);
    obstacles.extend(hooks);
    let unconfirmed = unconfirmed.unwrap_or_else(|error| {
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
    let loss = (!quorum.holds() && !reach).then(|| loss::at_most(&to, &standbys));
    if let Some(loss) = &loss
        && !wish.loss.agrees_to(loss)
    {
        obstacles.push(loss::refused(cluster, &quorum, loss));
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
    let reached =
        join_all(without_node.iter().map(async |host| {
            matches!(tokio::time::timeout(WAY, doors.host(host).reach()).await, Ok(Ok(())))
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
