//! What a switchover will do, decided before anything happens, or every reason why it cannot be done.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply;
use crate::ops::apply::world::LeftOut;
use crate::ops::context::Context;
use crate::ops::hold;
use crate::ops::hook::{self, Point};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors, NodeObserved};
use crate::ops::plan::step::PlannedStep;
use crate::ops::preflight::{self, without_twins};
use crate::ops::roles::{self, Lead};
use crate::ops::succession::{self, Input};
use crate::ops::switchover::obstacles::{no_room, not_rewound, of_backups, of_nodes, of_primary, room_on};
use crate::ops::switchover::stages::{held_back, missing_slots, stages};
use crate::ops::switchover::standbys::{Up, standbys};
use crate::ops::switchover::step::SwitchStep;
use crate::ops::switchover::wish::Wish;
use crate::pg::lsn::Lsn;
use crate::topology::model::{Cluster, Herd, Node, Promote};

type Planned = PlannedStep<SwitchStep>;

/// The points at which hooks are run.
const POINTS: [Point; 5] = [
    Point::BeforeSwitchover,
    Point::BeforePromote,
    Point::AfterPromote,
    Point::AfterSwitchover,
    Point::AfterUndo,
];

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
    let nodes = cluster.nodes.iter().map(|node| &node.host);
    let mut obstacles = preflight::programs(&doors, cluster, nodes, cluster.pooler_hosts()).await;
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
            obstacles.extend(hold::obstacles(context, cluster, held_back(cluster)).await);
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
