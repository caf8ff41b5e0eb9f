//! From what is observed to what is declared: ordered steps, each with its reason, its cost and its undo.
//!
//! Decides, never acts: no I/O, no clock. Everything it needs arrives in [`Situation`].

mod adopt;
mod archive;
mod change;
mod connections;
mod crossing;
mod rotation;
mod schedule;
mod service;
mod settings;
pub mod step;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::db::logins::Purpose;
use crate::db::queries::{Slot, SlotKind};
use crate::error::Error;
use crate::ops::binary::Installed;
use crate::ops::builds::Copy;
use crate::ops::certificate::AuthoritySeen;
use crate::ops::objects::{self, Change, ObjectsObserved};
use crate::ops::observe::{ClusterObserved, Directory, Fence, NodeObserved, Server};
use crate::ops::plan::step::{ApplyStep, PlannedStep, Sign};
use crate::ops::roles::{self, Lead};
use crate::ops::split::SplitBrain;
use crate::ops::starter;
use crate::repo::primary::PrimaryRecord;
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};
use crate::topology::places::{NodePlaces, Places};
use crate::units::ByteCount;

pub use adopt::Adoption;
pub use connections::PlannedBudget;

/// The format of a saved plan.
pub const FORMAT: u32 = 1;

/// Everything that a decision about one cluster needs.
#[derive(Debug)]
pub struct Situation<'a> {
    pub cluster: &'a Cluster,
    /// Those of this machine.
    pub places: &'a Places,
    pub fixed: &'a Fixed,
    pub observed: &'a ClusterObserved,
    /// `None` while no primary answers.
    pub objects: Option<&'a ObjectsObserved>,
    /// Whether the logins that pgherd needs are there and the password files name them; `None` while no primary answers.
    pub logins: Option<Logins>,
    /// By host.
    pub poolers: &'a BTreeMap<String, PoolerDrift>,
    /// `None` where the cluster declares no backups.
    pub archive: Option<&'a ArchiveSeen>,
    /// `None` where the cluster declares no TLS.
    pub tls: Option<&'a TlsSeen>,
    /// The login of pgherd's that is to have a new password.
    pub rotate: Option<Purpose>,
    pub adoption: &'a Adoption,
    /// What starts the jobs on this machine.
    pub starter: &'a starter::Seen,
    /// What each primary has, where there are several.
    pub split: Option<&'a SplitBrain>,
}

impl Situation<'_> {
    /// Returns the places on a host.
    pub fn places_on(&self, host: &str) -> Places {
        self.places.on(self.cluster.reach(host))
    }

    /// Returns the places of a node.
    pub fn node_places(&self, node: &Node) -> NodePlaces {
        self.places_on(&node.host).of_node(self.cluster, node)
    }
}

/// What stands behind the certificates of a cluster, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSeen {
    /// `None` where certificates are given.
    pub authority: Option<AuthoritySeen>,
    /// The nodes that are there and must have another certificate, and why.
    pub nodes: BTreeMap<String, String>,
}

/// What WAL archiving needs beside the servers, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSeen {
    /// The build that would be installed.
    pub version: String,
    pub hash: String,
    /// By host of a node.
    pub hosts: BTreeMap<String, ArchiveHost>,
    pub primary: RecordSeen,
}

/// The primary record, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordSeen {
    Missing,
    Says(PrimaryRecord),
    Unknown { why: String },
}

/// One host's ends of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveHost {
    pub installed: Installed,
    /// Copies of pgherd that nobody needs: neither the one to be in use nor the one before it.
    pub older: Vec<Copy>,
    /// The repositories of the cluster in their order, the first one first.
    pub repositories: Vec<Reached>,
}

/// One of a cluster's repositories from one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub access: AccessSeen,
    pub repository: RepositorySeen,
}

/// What a host has of what it takes to open the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessSeen {
    /// It takes nothing but the right to read its files.
    NotNeeded,
    Right,
    Missing,
    Differs,
}

/// What to do when the hosts of a cluster do not have one repository.
pub(crate) const SHARE: &str =
    "Mount one file system that both hosts share there, or keep the nodes of this cluster on one machine.";

/// What is where the repository should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositorySeen {
    /// Nothing, or an empty directory.
    Missing {
        directory: bool,
    },
    /// `id`: the one in its `repository.json`; `systems`: the system identifiers under the cluster's name.
    Ready {
        id: String,
        systems: Vec<String>,
    },
    /// Something that is no repository.
    Foreign {
        names: Vec<String>,
    },
    /// It is the same directory as `path`, or in it or over it.
    Overlaps {
        path: PathBuf,
    },
    /// The host cannot look yet: it does not have what it takes to open it.
    NoAccess,
    Unknown {
        why: String,
    },
}

/// What is found once for an operation and then stays: the memory to tune for and the users of each node's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    /// By node.
    pub memory: BTreeMap<String, ByteCount>,
    /// By host: who may be the superuser over the Unix socket.
    pub users: BTreeMap<String, Vec<String>>,
    /// Nodes that were taken over as they ran.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub adopted: BTreeSet<String>,
}

/// What is wrong with the logins of standbys and of the write proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Logins {
    Right,
    /// The text says what is missing or different; `nodes` need their password file.
    Wrong {
        what: String,
        nodes: Vec<String>,
    },
}

/// How a pooler differs from what is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolerDrift {
    Right,
    Missing,
    Stopped,
    /// Differences with both values; `restart` if only a restart takes one of them over.
    Differs {
        what: Vec<String>,
        restart: bool,
        /// Whether a pool is given another number of connections.
        connections: bool,
    },
    /// Something that is not our pooler has its port.
    Foreign {
        what: String,
    },
    Unknown {
        why: String,
    },
}

/// A plan for one cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterPlan {
    pub cluster: String,
    /// One line: what there is now.
    pub headline: String,
    /// The node that is or will be primary.
    pub primary: String,
    /// Steps of one stage run side by side.
    pub stages: Vec<Vec<PlannedStep>>,
    /// What was seen and is not changed.
    pub notes: Vec<String>,
    /// What is allowed and seldom meant, as `validate` tells it, and pools that a server has no room for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// `None` for a cluster without poolers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<PlannedBudget>,
    /// Whether more may be found once the primary answers.
    pub more: bool,
    /// Nodes that were asked to be taken over.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub adopt: BTreeSet<String>,
    /// Whether it was asked for the poolers alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub only_poolers: bool,
    /// Changes when the world that the plan was made for moves.
    pub fingerprint: String,
    pub fixed: Fixed,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl ClusterPlan {
    /// Leaves out everything but the poolers and the proof that goes through them.
    ///
    /// # Errors
    /// Refused while nodes are to come or to be started: where the aliases then lead is not known yet.
    pub fn only_poolers(mut self) -> Result<Self, Error> {
        let moves = |planned: &&PlannedStep| {
            matches!(
                planned.step,
                ApplyStep::Initdb { .. }
                    | ApplyStep::Adopt { .. }
                    | ApplyStep::Clone { .. }
                    | ApplyStep::Start { .. }
                    | ApplyStep::Follow { .. }
            )
        };
        if let Some(first) = self.steps().find(moves) {
            return Err(Error::refused(format!(
                "cannot put the poolers of {} right alone: nodes are to be made or started too",
                self.cluster
            ))
            .detail(format!("The first of them is {}. Nothing was changed.", first.subject))
            .hint("Everything at once: pgherd plan, then pgherd apply."));
        }
        let is_part = |planned: &PlannedStep| {
            matches!(planned.step, ApplyStep::Pooler { .. } | ApplyStep::Keep {} | ApplyStep::Prove { .. })
        };
        let left = self.steps().filter(|planned| !is_part(planned)).count();
        let any = self.steps().any(|planned| matches!(planned.step, ApplyStep::Pooler { .. }));
        self.stages = if any { self.keeping(is_part) } else { Vec::new() };
        if left > 0 {
            self.notes
                .push(format!("left out, since not the poolers': {left} steps that \"pgherd plan\" shows"));
        }
        (self.more, self.only_poolers) = (false, true);
        Ok(self)
    }

    /// Returns the steps in order.
    pub fn steps(&self) -> impl Iterator<Item = &PlannedStep> {
        self.stages.iter().flatten()
    }

    /// Returns the stages with only the steps that `wanted` names; a stage without any is left out.
    pub fn keeping(&self, wanted: impl Fn(&PlannedStep) -> bool) -> Vec<Vec<PlannedStep>> {
        let stages =
            self.stages.iter().map(|stage| stage.iter().filter(|step| wanted(step)).cloned().collect());
        stages.filter(|stage: &Vec<PlannedStep>| !stage.is_empty()).collect()
    }

    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.iter().all(Vec::is_empty)
    }

    /// Returns the restarts that the plan holds.
    pub fn restarts(&self) -> Vec<&PlannedStep> {
        self.steps().filter(|step| step.sign == Sign::Disrupt).collect()
    }

    /// Counts what is added, changed, and interrupted: `(add, change, disrupt)`.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |sign: Sign| self.steps().filter(|step| step.sign == sign).count();
        (count(Sign::Create), count(Sign::Change), count(Sign::Disrupt))
    }
}

/// Plans the way of one cluster from what is observed to what is declared.
///
/// # Errors
/// Every obstacle that was found, all at once; nothing may be changed while there is one.
pub fn plan(situation: &Situation<'_>) -> Result<ClusterPlan, Vec<Error>> {
    let mut obstacles = obstacles(situation);
    let lead = roles::lead(situation.observed);
    let primary = match &lead {
        Lead::Unborn => situation.cluster.preferred().name.clone(),
        Lead::Primary(name) => name.clone(),
        Lead::StoppedPrimary(name) => {
            obstacles.extend(archive::overtaken(situation, name));
            name.clone()
        }
        Lead::Split(names) => {
            obstacles.push(split_brain(situation, names));
            return Err(obstacles);
        }
        Lead::Unknown { why } => {
            obstacles.extend(adopt::strangers(situation));
            if obstacles.is_empty() {
                obstacles.push(no_lead(situation, why));
            }
            return Err(obstacles);
        }
    };
    obstacles.extend(adopt::strangers(situation));
    if let Some(login) = situation.rotate {
        obstacles.extend(rotation::obstacle(situation, login, &lead));
    }
    if !obstacles.is_empty() {
        return Err(obstacles);
    }
    let primary_node = situation.cluster.node(&primary).expect("roles::lead names nodes of the cluster");
    let mut plan = ClusterPlan {
        cluster: situation.cluster.name.clone(),
        headline: headline(situation, &lead),
        primary: primary.clone(),
        stages: Vec::new(),
        notes: notes(situation),
        warnings: Vec::new(),
        budget: None,
        // What pgherd's own roles need is seen when they are there.
        more: matches!(lead, Lead::StoppedPrimary(_)) || !situation.adoption.candidates.is_empty(),
        adopt: situation.adoption.asked.clone(),
        only_poolers: false,
        fingerprint: fingerprint(situation),
        fixed: situation.fixed.clone(),
    };
    match lead {
        Lead::Unborn => birth(situation, primary_node, &mut plan),
        Lead::Primary(_) | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => {
            change::plan(situation, primary_node, &mut plan)?;
        }
    }
    plan.stages.push(schedule::install(situation));
    plan.stages.push(archive::prune(situation));
    plan.stages.retain(|stage| !stage.is_empty());
    connections::add(situation, &primary, &mut plan)?;
    Ok(plan)
}

fn headline(situation: &Situation<'_>, lead: &Lead) -> String {
    match lead {
        Lead::Unborn => "not there yet; nothing claims its ports or directories".to_owned(),
        Lead::StoppedPrimary(name) => format!("primary {name} is stopped"),
        Lead::Primary(name) => {
            let up = situation.observed.nodes.iter().filter(|node| node.running().is_some()).count();
            let found = if situation.adoption.candidates.is_empty() {
                ""
            } else {
                "runs, and pgherd did not make it: "
            };
            format!("{found}primary {name}, {up} of {} nodes answer", situation.cluster.nodes.len())
        }
        Lead::Split(_) | Lead::Unknown { .. } => String::new(),
    }
}

/// The whole way from nothing: one primary, its standbys, then the door for clients.
fn birth(situation: &Situation<'_>, primary: &Node, plan: &mut ClusterPlan) {
    let cluster = situation.cluster;
    let standbys: Vec<&Node> = cluster.nodes.iter().filter(|node| node.name != primary.name).collect();
    let name = |node: &Node| cluster.full_name(&node.name);
    let step = |sign, subject: String, text: String, undo: &str, step| PlannedStep {
        sign,
        subject,
        text,
        reason: None,
        impact: None,
        undo: undo.to_owned(),
        step,
    };
    archive::prepare(situation, plan);
    tls::prepare(situation, plan);
    plan.stages.push(vec![step(
        Sign::Create,
        name(primary),
        format!(
            "initdb, checksums on, {}, port {}{}",
            primary.data_directory.display(),
            primary.port,
            if cluster.has_tls() { ", TLS" } else { "" }
        ),
        "remove it (nobody has used it)",
        ApplyStep::Initdb { node: primary.name.clone() },
    )]);
    plan.stages.push(service::new_units(situation, &[primary]));
    plan.stages.push(vec![step(
        Sign::Create,
        name(primary),
        "start, wait until it answers".to_owned(),
        "stop",
        ApplyStep::Start { node: primary.name.clone() },
    )]);
    plan.stages.push(vec![step(
        Sign::Create,
        cluster.name.clone(),
        format!(
            "roles {} and {}, passwords generated",
            declared::replication_role(cluster),
            declared::PROBE_ROLE
        ),
        "goes with the data directory",
        ApplyStep::Logins { nodes: vec![primary.name.clone()] },
    )]);
    add_standbys(situation, primary, &standbys, plan);
    if cluster.synchronous.is_some() && !standbys.is_empty() {
        plan.stages.extend(settings::wait_for_standbys(situation, primary));
    }
    let (roles, changes): (Vec<Change>, Vec<Change>) = objects::plan(cluster, &ObjectsObserved::default())
        .into_iter()
        .partition(|change| matches!(change, Change::SetPassword { .. }));
    let roles: Vec<String> = roles
        .into_iter()
        .filter_map(|change| if let Change::SetPassword { role, .. } = change { Some(role) } else { None })
        .collect();
    plan.stages.push(vec![step(
        Sign::Create,
        cluster.name.clone(),
        objects_text(cluster),
        "goes with the data directory",
        ApplyStep::Objects { changes },
    )]);
    plan.stages.extend(archive::prove(situation, primary));
    plan.stages.extend(archive::record(situation, primary));
    if roles.is_empty() {
        plan.stages.push(vec![keep(cluster)]);
    } else {
        let mut open = step(
            Sign::Create,
            cluster.name.clone(),
            format!("passwords of {} (SCRAM verifiers)", roles.join(", ")),
            "none, clients may have come in",
            ApplyStep::Open { roles },
        );
        open.impact = Some("pivot: from here on there is only forward".to_owned());
        plan.stages.push(vec![open]);
    }
    add_pooler_and_proof(situation, plan, standbys.iter().map(|node| node.name.clone()).collect());
}

fn objects_text(cluster: &Cluster) -> String {
    let list = |word: &str, names: Vec<&str>| {
        (!names.is_empty())
            .then(|| format!("{word}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", ")))
    };
    [
        list("role", cluster.roles.iter().map(|role| role.name.as_str()).collect()),
        list("database", cluster.databases.iter().map(String::as_str).collect()),
        list("schema", cluster.schemas.iter().map(|schema| schema.name.as_str()).collect()),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join("; ")
}

/// Slots, clones side by side, and starts side by side.
fn add_standbys(situation: &Situation<'_>, primary: &Node, standbys: &[&Node], plan: &mut ClusterPlan) {
    let cluster = situation.cluster;
    let running = situation.observed.node(&primary.name).and_then(NodeObserved::running);
    let found =
        |slot: &str| running.and_then(|running| running.slots.iter().find(|found| found.name == slot));
    let stage =
        |make: &dyn Fn(&Node) -> PlannedStep| standbys.iter().map(|node| make(node)).collect::<Vec<_>>();
    let slots = standbys
        .iter()
        .map(|node| cluster.slot_name(&node.name))
        .filter(|slot| found(slot).is_none_or(Slot::is_lost))
        .map(|slot| PlannedStep {
            sign: Sign::Create,
            subject: cluster.full_name(&primary.name),
            text: format!("slot {slot}"),
            reason: found(&slot).map(|_| "it is lost: the WAL that it kept is gone; made anew".to_owned()),
            impact: None,
            undo: "drop".to_owned(),
            step: ApplyStep::Slot { on: primary.name.clone(), slot },
        })
        .collect();
    plan.stages.push(slots);
    plan.stages.push(stage(&|node| PlannedStep {
        sign: Sign::Create,
        subject: cluster.full_name(&node.name),
        text: format!("clone from {} to {}", cluster.full_name(&primary.name), node.data_directory.display()),
        reason: None,
        impact: None,
        undo: "remove it (nobody has used it)".to_owned(),
        step: ApplyStep::Clone { node: node.name.clone(), from: primary.name.clone() },
    }));
    plan.stages.push(service::new_units(situation, standbys));
    plan.stages.push(stage(&|node| PlannedStep {
        sign: Sign::Create,
        subject: cluster.full_name(&node.name),
        text: format!(
            "start on port {}, wait until it streams from {}",
            node.port,
            cluster.full_name(&primary.name)
        ),
        reason: None,
        impact: None,
        undo: "stop".to_owned(),
        step: ApplyStep::Follow { node: node.name.clone(), upstream: primary.name.clone() },
    }));
}

const POOLER_RESTARTS: &str = "PgBouncer restarts: its clients are disconnected; needs --allow-restart";

/// The pooler on each of its hosts, then a write that goes through it.
fn add_pooler_and_proof(situation: &Situation<'_>, plan: &mut ClusterPlan, proved: Vec<String>) {
    let cluster = situation.cluster;
    if let Some(poolers) = &cluster.poolers {
        let aliases: Vec<String> = cluster
            .databases
            .iter()
            .flat_map(|database| poolers.pools.iter().map(move |pool| pool.alias(database)))
            .collect();
        let steps = poolers.hosts.iter().map(|host| PlannedStep {
            sign: match situation.poolers.get(host) {
                None | Some(PoolerDrift::Missing | PoolerDrift::Stopped) => Sign::Create,
                Some(PoolerDrift::Differs { restart: true, .. }) => Sign::Disrupt,
                Some(_) => Sign::Change,
            },
            subject: "pooler".to_owned(),
            text: format!("PgBouncer on {host}:{}, aliases {}", poolers.port, aliases.join(", ")),
            reason: None,
            impact: match situation.poolers.get(host) {
                Some(PoolerDrift::Differs { restart: true, .. }) => Some(POOLER_RESTARTS.to_owned()),
                Some(_) | None => None,
            },
            undo: "none, clients may be connected".to_owned(),
            step: ApplyStep::Pooler { host: host.clone() },
        });
        plan.stages.push(steps.collect());
    }
    plan.stages.push(vec![proof(cluster, proved)]);
}

/// From here on a failure leaves what is done and says what is left.
fn keep(cluster: &Cluster) -> PlannedStep {
    PlannedStep {
        sign: Sign::Look,
        subject: cluster.name.clone(),
        text: "keep what is done so far".to_owned(),
        reason: None,
        impact: Some("pivot: from here on there is only forward".to_owned()),
        undo: "none".to_owned(),
        step: ApplyStep::Keep {},
    }
}

fn proof(cluster: &Cluster, nodes: Vec<String>) -> PlannedStep {
    let through = if cluster.poolers.is_some() { "the pooler" } else { "the primary's port" };
    PlannedStep {
        sign: Sign::Look,
        subject: cluster.name.clone(),
        text: if nodes.is_empty() {
            format!("write a row through {through}")
        } else if nodes.len() + 1 == cluster.nodes.len() {
            format!("write a row through {through}, read it on every standby")
        } else {
            format!("write a row through {through}, read it on {}", nodes.join(", "))
        },
        reason: None,
        impact: None,
        undo: "nothing to undo".to_owned(),
        step: ApplyStep::Prove { nodes },
    }
}

/// What forbids any change, node by node.
fn obstacles(situation: &Situation<'_>) -> Vec<Error> {
    let cluster = situation.cluster;
    let mut found = Vec::new();
    for (node, seen) in cluster.nodes.iter().zip(&situation.observed.nodes) {
        let name = cluster.full_name(&node.name);
        match situation.adoption.candidates.get(&node.name) {
            Some(candidate) => found.extend(adopt::obstacles(situation, node, seen, candidate)),
            None => found.extend(change::claim_obstacle(cluster, node, seen)),
        }
        found.extend(configuration_obstacle(situation, node, seen));
        found.extend(socket_obstacle(situation, node));
        found.extend(moved_port(situation, node, seen));
        found.extend(service::obstacle(situation, node, seen));
        if let Server::Foreign { what } = &seen.server {
            found.push(
                Error::refused(format!("cannot use port {} for {name}: {what}", node.port))
                    .detail(format!("Nothing of {name} runs. Nothing was changed."))
                    .hint("Stop what listens there, or give the node another port in the topology file."),
            );
        }
        if let Directory::Cluster { version, .. } = &seen.directory
            && *version != cluster.postgres.version.to_string()
        {
            found.push(
                Error::refused(format!(
                    "cannot use {} for {name}: it is of another major version",
                    node.data_directory.display()
                ))
                .detail(format!(
                    "PG_VERSION says {version}; the topology declares {}. Nothing was changed.",
                    cluster.postgres.version
                ))
                .hint(
                    "Declare the version that the data directory has; a major upgrade is pg_upgrade's work.",
                ),
            );
        }
    }
    found.extend(archive::obstacles(situation));
    found.extend(tls::obstacle(situation));
    for (host, drift) in situation.poolers {
        if let PoolerDrift::Foreign { what } = drift {
            found.push(
                Error::refused(format!("cannot start the pooler of {} on {host}: {what}", cluster.name))
                    .detail("Nothing was changed.")
                    .hint("Stop what listens there, or give the pooler another port in the topology file."),
            );
        }
    }
    found
}

/// Where a node listens is part of how it, its standbys and the pooler find each other: it stays what it was made with.
fn moved_port(situation: &Situation<'_>, node: &Node, seen: &NodeObserved) -> Option<Error> {
    let was = seen.profile.as_ref().map(|profile| profile.port).filter(|port| *port != node.port)?;
    let name = situation.cluster.full_name(&node.name);
    Some(
        Error::refused(format!("cannot move {name} to port {}: it was made for port {was}", node.port))
            .detail("Nothing was changed.")
            .hint(format!(
                "Declare port {was} again; or remove the node by name and let apply clone it anew: pgherd destroy {} --node {}",
                situation.cluster.name, node.name
            )),
    )
}

/// What pgherd makes has its configuration inside, where a copy of it takes it along.
fn configuration_obstacle(situation: &Situation<'_>, node: &Node, seen: &NodeObserved) -> Option<Error> {
    let name = situation.cluster.full_name(&node.name);
    let makes = matches!(seen.directory, Directory::Missing | Directory::Empty);
    let outside = |node: &Node| node.config_directory.is_some();
    (makes && situation.cluster.nodes.iter().any(outside)).then(|| {
        Error::refused(format!(
            "cannot make {name}: the configuration of its cluster lies outside the data directories"
        ))
        .detail("A copy of a data directory would have none. Nothing was changed.")
        .hint("Make it as the others were made, and take it over: pgherd apply --adopt")
    })
}

/// A Unix socket's path has at most 107 bytes (`sockaddr_un`); PostgreSQL would not start with a longer one.
fn socket_obstacle(situation: &Situation<'_>, node: &Node) -> Option<Error> {
    const LONGEST: usize = 107;
    let name = situation.cluster.full_name(&node.name);
    let socket = situation.node_places(node).socket.join(format!(".s.PGSQL.{}", node.port));
    let length = socket.as_os_str().len();
    (length > LONGEST).then(|| {
        Error::usage(format!("the path of the Unix socket of {name} is too long"))
            .detail(format!("{} has {length} bytes, the system takes {LONGEST}.", socket.display()))
            .hint("Set PGHERD_STATE_DIR to a shorter directory, or shorten the name of the cluster.")
    })
}

fn split_brain(situation: &Situation<'_>, names: &[String]) -> Error {
    let evidence = situation.split.map_or_else(String::new, |split| {
        let sides = split.sides.iter().map(|side| format!("{}: {}", side.node, side.tell()));
        let fork = split.fork();
        let (first, rest) = fork.split_at(1);
        format!("{}{rest}. {}. ", first.to_uppercase(), sides.collect::<Vec<_>>().join("; "))
    });
    Error::refused(format!("{} has more than one primary: {}", situation.cluster.name, names.join(", ")))
        .detail(format!("{evidence}Nothing was changed."))
        .hint("Keep clients away, decide which one is right, then stop the other and keep it from coming back: pgherd fence NODE")
}

fn no_lead(situation: &Situation<'_>, why: &str) -> Error {
    Error::new(
        crate::error::ErrorKind::NotFound,
        format!("cannot tell which node of {} is primary", situation.cluster.name),
    )
    .detail(format!("{why}. Nothing was changed."))
    .hint(match situation.observed.nodes.iter().find(|node| matches!(node.fence, Fence::Fenced(_))) {
        Some(fenced) => format!(
            "Make another node primary: pgherd failover. Or let this one go on: pgherd unfence {}",
            situation.cluster.full_name(&fenced.node)
        ),
        None => format!("See what each node says: pgherd --cluster {} status", situation.cluster.name),
    })
}

fn notes(situation: &Situation<'_>) -> Vec<String> {
    let cluster = &situation.cluster.name;
    let left = situation.observed.left.iter().map(|profile| {
        format!(
            "{cluster}-{} is no longer in the file and stays as it is in {}; to remove it: pgherd destroy {cluster} --node {}",
            profile.node,
            profile.data_directory.display(),
            profile.node
        )
    });
    let unknown = situation.observed.nodes.iter().filter_map(|node| match &node.server {
        Server::Unknown { why } => Some(format!("{cluster}-{} is left as it is: unknown, {why}", node.node)),
        Server::Starting => Some(format!("{cluster}-{} is left as it is: it is starting up", node.node)),
        Server::Up(_) | Server::Stopped | Server::Foreign { .. } => None,
    });
    let objects = situation.objects.iter().flat_map(|objects| objects::notes(situation.cluster, objects));
    left.chain(unknown)
        .chain(objects)
        .chain(archive::notes(situation))
        .chain(idle_slots(situation))
        .chain(situation.starter.notes.clone())
        .collect()
}

/// In a cluster that was taken over: slots of before that keep WAL for nobody.
fn idle_slots(situation: &Situation<'_>) -> Vec<String> {
    let cluster = situation.cluster;
    if !cluster.is_adopted() {
        return Vec::new();
    }
    let own: Vec<String> = cluster.nodes.iter().map(|node| cluster.slot_name(&node.name)).collect();
    let slots = situation.observed.nodes.iter().filter_map(|seen| Some((&seen.node, &seen.running()?.slots)));
    slots
        .flat_map(|(node, slots)| slots.iter().map(move |slot| (node, slot)))
        .filter(|(_, slot)| {
            // A slot that a standby uses now is idle as soon as it uses its own.
            let leaves = slot.active && !situation.adoption.candidates.is_empty();
            slot.kind == SlotKind::Physical && !own.contains(&slot.name) && (!slot.active || leaves)
        })
        .map(|(node, slot)| {
            format!(
                "slot {} on {} is not one of pgherd's{}; if nobody else needs it: SELECT pg_drop_replication_slot('{}')",
                slot.name,
                cluster.full_name(node),
                if slot.active { "" } else { " and keeps WAL for nobody" },
                slot.name
            )
        })
        .collect()
}

/// Changes with what a plan rests on: identities, roles and timelines; not with LSNs, which always move.
fn fingerprint(situation: &Situation<'_>) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(situation.cluster).expect("a cluster is plain data"));
    for node in &situation.observed.nodes {
        let running = node.running();
        let line = format!(
            "{} {:?} {:?} {:?} {:?} {:?}\n",
            node.node,
            node.marker,
            node.fence,
            running.map(crate::ops::observe::Running::is_primary),
            running.map(|running| running.facts.system_identifier),
            roles::timeline(node)
        );
        hash.update(line);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Names the first few of many.
fn few(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(4).map(String::as_str).collect();
    match names.len() {
        0..=4 => shown.join(", "),
        more => format!("{} and {} more", shown.join(", "), more - 4),
    }
}
