//! Planning for a cluster that is there: what stopped, what drifted, what the file newly declares.

use crate::db::logins::Purpose;
use crate::db::queries::ServerRole;
use crate::error::Error;
use crate::ops::objects;
use crate::ops::observe::{Claim, Directory, Fence, NodeObserved, Server};
use crate::ops::plan::adopt;
use crate::ops::plan::archive;
use crate::ops::plan::crossing::{self, Crossing};
use crate::ops::plan::rotation;
use crate::ops::plan::service;
use crate::ops::plan::settings;
use crate::ops::plan::step::{Activation, ApplyStep, PlannedStep, Sign};
use crate::ops::plan::tls;
use crate::ops::plan::{
    ClusterPlan, Logins, POOLER_RESTARTS, PoolerDrift, Situation, add_pooler_and_proof, add_standbys, keep,
    proof,
};
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

/// What has to happen to one standby.
enum Fate<'a> {
    /// It is not there: clone it.
    Add,
    /// It is stopped: start it.
    Start(&'a NodeObserved),
    /// It runs: compare.
    Compare(&'a NodeObserved),
    /// It is left alone, and the text says why.
    Leave(String),
}

/// Plans the change of a cluster whose primary is `primary`.
pub(super) fn plan(
    situation: &Situation<'_>,
    primary: &Node,
    plan: &mut ClusterPlan,
) -> Result<(), Vec<Error>> {
    let cluster = situation.cluster;
    let lead = situation.observed.node(&primary.name).expect("the primary was observed");
    let standbys: Vec<(&Node, Fate<'_>)> = cluster
        .nodes
        .iter()
        .filter(|node| node.name != primary.name)
        .map(|node| (node, fate(situation, node, lead)))
        .collect();
    let added: Vec<&Node> =
        standbys.iter().filter(|(_, fate)| matches!(fate, Fate::Add)).map(|(node, _)| *node).collect();

    // A commit must not begin to wait for a standby that is only being made.
    let declared_names = declared::synchronous_names(cluster, primary);
    let found_names = lead.running().map(|running| running.facts.synchronous_standby_names.clone());
    let moving = standbys.iter().any(|(node, _)| situation.adoption.candidates.contains_key(&node.name));
    let waits_for_too_few = too_few_to_wait_for(situation, primary, &standbys, found_names.as_deref());
    let declared_names = match (&found_names, waits_for_too_few) {
        (Some(found), true) => {
            plan.notes.push(format!(
                "commits of {} wait for {}, not for {declared_names} as declared, until more standbys stream: bring them back, pgherd rejoin \
                 NODE, or pgherd apply once they do",
                cluster.name,
                if found.is_empty() { "no standby" } else { found }
            ));
            found.clone()
        }
        (_, _) => declared_names,
    };
    let present_names = match found_names.clone() {
        // Standbys that are taken over change their names while commits wait for them.
        Some(found) if moving => adopt::merged(&found, &declared_names),
        Some(found) if !added.is_empty() => Some(found),
        Some(_) | None => None,
    }
    .unwrap_or_else(|| declared_names.clone());
    let wanted = settings::desired(situation, primary, None, present_names.clone());
    // Taking over restarts nobody, so neither is done.
    let (raised, lowered) = match situation.adoption.asked.is_empty() {
        true => settings::standby_five(situation, &wanted),
        false => (Vec::new(), Vec::new()),
    };
    if !raised.is_empty() && !lowered.is_empty() {
        return Err(vec![mixed_five(cluster, &raised, &lowered)]);
    }

    let crosses = crossing::crossing(cluster, lead) != Crossing::None;
    if crosses && !raised.is_empty() {
        return Err(vec![tls::too_much_at_once(cluster, &raised)]);
    }

    plan.stages.push(adopt::claim(situation));
    archive::prepare(situation, plan);
    tls::prepare(situation, plan);
    plan.stages.push(service::units(situation));
    // A standby that comes in is let in first: from a host that is new to the cluster it could not even be cloned.
    let comes = standbys.iter().any(|(_, fate)| matches!(fate, Fate::Add | Fate::Start(_)));
    let opened = if comes { settings::open_to_standbys(situation, primary, lead) } else { None };
    let (access, lead) = opened.as_ref().map_or((None, lead), |(step, then)| (Some(step), then));
    let primary_step = settings::configure(situation, primary, lead, &wanted);
    start_primary(situation, primary, lead, primary_step.as_ref(), plan);
    logins(situation, plan);
    missing_slots(situation, primary, lead, &standbys, plan);
    plan.stages.push(access.cloned().into_iter().collect());
    let primary_now = primary_step.filter(|_| matches!(lead.server, Server::Up(_)));
    // A standby that speaks TLS, or no longer does, needs a primary that takes it.
    let reloads = primary_now.as_ref().is_some_and(|step| step.sign != Sign::Disrupt);
    // What a standby says of whom commits wait for is never more than what its primary waits for.
    let stricter = reloads && found_names.is_some_and(|found| settings::is_less(&found, &declared_names));
    let primary_first = crosses || moving || !lowered.is_empty() || stricter;
    let (first, last) = if primary_first { (primary_now, None) } else { (None, primary_now) };
    plan.stages.push(first.into_iter().collect());
    change_standbys(situation, primary, &standbys, waits_for_too_few, plan);
    if !added.is_empty() {
        add_standbys(situation, primary, &added, plan);
        for (node, seen) in
            added.iter().filter_map(|node| situation.observed.node(&node.name).map(|seen| (node, seen)))
        {
            if matches!(seen.marker, Claim::Ours(_)) {
                plan.notes.push(format!(
                    "the data directory of {} is gone from {}: it is cloned anew",
                    cluster.full_name(&node.name),
                    node.data_directory.display()
                ));
            }
        }
    }
    plan.stages.push(last.into_iter().collect());
    if present_names != declared_names {
        plan.stages.extend(settings::change_synchronous(situation, primary, present_names, declared_names));
    }
    if let Some(seen) = situation.objects {
        let (stays, changes): (Vec<_>, Vec<_>) = objects::plan(cluster, seen)
            .into_iter()
            .partition(|change| cluster.is_adopted() && takes_away(change));
        plan.notes.extend(
            stays
                .iter()
                .map(|change| format!("{}; it stays, since the cluster was adopted", change.reason())),
        );
        plan.stages.extend(changes.into_iter().map(|change| vec![mend(cluster, change)]));
    }
    let waiting = settings::waiting(situation, primary, lead, &wanted);
    plan.notes.extend(adopt::waits(cluster, primary, &waiting));
    let archives = !waiting.iter().any(|text| text.starts_with("archive_mode "));
    if archives && plan.steps().any(|step| archive::changes(&step.step)) {
        plan.stages.extend(archive::prove(situation, primary));
    }
    plan.stages.extend(archive::record(situation, primary));
    if let Some(login) = situation.rotate {
        plan.stages.extend(rotation::replace(situation, login));
    }
    let nodes_move = plan.steps().any(|step| moves_a_node(&step.step));
    let passwords_change = plan.steps().any(|step| changes_a_password(&step.step));
    // On a standby that is left alone nothing can be proved.
    let proved = standbys
        .iter()
        .filter(|(_, fate)| !matches!(fate, Fate::Leave(_)))
        .map(|(node, _)| node.name.clone())
        .collect();
    let settle = tls::settle(situation, primary);
    pooler_and_proof(situation, plan, Reach { nodes_move, passwords_change }, settle, proved);
    Ok(())
}

/// Tells whether commits wait for fewer standbys than is declared, and would wait in vain for as many: after a failover that left too few.
fn too_few_to_wait_for(
    situation: &Situation<'_>,
    primary: &Node,
    standbys: &[(&Node, Fate<'_>)],
    found: Option<&str>,
) -> bool {
    let cluster = situation.cluster;
    let (Some(synchronous), Some(found)) = (&cluster.synchronous, found) else { return false };
    let comes = |fate: &Fate<'_>| {
        match fate {
        Fate::Add | Fate::Start(_) => true,
        Fate::Compare(seen) => seen.running().is_some_and(|running| {
            matches!(&running.facts.role, ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming")
        }),
        Fate::Leave(_) => false,
    }
    };
    let there =
        standbys.iter().filter(|(node, fate)| synchronous.of.contains(&node.name) && comes(fate)).count();
    there < synchronous.wait_for as usize
        && settings::is_less(found, &declared::synchronous_names(cluster, primary))
}

fn moves_a_node(step: &ApplyStep) -> bool {
    match step {
        ApplyStep::Start { .. }
        | ApplyStep::Clone { .. }
        | ApplyStep::Follow { .. }
        | ApplyStep::Pooler { .. } => true,
        ApplyStep::Configure { activation, .. } => *activation == Activation::Restart,
        ApplyStep::Install { .. }
        | ApplyStep::Repository { .. }
        | ApplyStep::Access { .. }
        | ApplyStep::Authority { .. }
        | ApplyStep::Certificate { .. }
        | ApplyStep::Archive { .. }
        | ApplyStep::Record { .. }
        | ApplyStep::Adopt { .. }
        | ApplyStep::Initdb { .. }
        | ApplyStep::Unit { .. }
        | ApplyStep::Logins { .. }
        | ApplyStep::Slot { .. }
        | ApplyStep::Objects { .. }
        | ApplyStep::Open { .. }
        | ApplyStep::Mend { .. }
        | ApplyStep::StagePassword { .. }
        | ApplyStep::RotatePassword { .. }
        | ApplyStep::ForgetPassword { .. }
        | ApplyStep::Keep {}
        | ApplyStep::Prove { .. }
        | ApplyStep::Schedule { .. }
        | ApplyStep::Prune { .. } => false,
    }
}

/// PgBouncer has the verifiers of all who come through it in a file of its own.
fn changes_a_password(step: &ApplyStep) -> bool {
    matches!(
        step,
        ApplyStep::Logins { .. }
            | ApplyStep::Mend { change: objects::Change::SetPassword { .. } }
            | ApplyStep::RotatePassword { login: Purpose::Probe, .. }
    )
}

/// What of a plan reaches beyond the nodes.
#[derive(Debug, Clone, Copy)]
struct Reach {
    nodes_move: bool,
    passwords_change: bool,
}

/// Decides what has to happen to a standby.
fn fate<'a>(situation: &'a Situation<'_>, node: &Node, lead: &NodeObserved) -> Fate<'a> {
    let name = situation.cluster.full_name(&node.name);
    let seen = situation.observed.node(&node.name).expect("every node of the file was observed");
    if let (Fence::Fenced(mark), Server::Stopped) = (&seen.fence, &seen.server) {
        return Fate::Leave(format!("{name} is left stopped: it is {mark}; {}", way_back(seen, &name)));
    }
    match (&seen.server, &seen.directory) {
        (Server::Up(_), _) => Fate::Compare(seen),
        (Server::Stopped, Directory::Missing | Directory::Empty) => Fate::Add,
        (Server::Stopped, Directory::Cluster { standby_signal: true, .. }) => match stranger(seen, lead) {
            Some(why) => Fate::Leave(format!("{name} is left stopped: {why}")),
            None => Fate::Start(seen),
        },
        (Server::Stopped, Directory::Cluster { standby_signal: false, .. }) => Fate::Leave(format!(
            "{name} is left stopped: it has no standby.signal and would come back as a second primary; to rebuild it: pgherd destroy {} \
             --node {}, then pgherd apply",
            situation.cluster.name, node.name
        )),
        (Server::Stopped, Directory::Foreign { .. } | Directory::Unknown { .. }) => {
            Fate::Leave(format!("{name} is left as it is: its data directory cannot be read"))
        }
        // Both are told by `notes` already, with the reason.
        (Server::Starting | Server::Unknown { .. } | Server::Foreign { .. }, _) => Fate::Leave(String::new()),
    }
}

/// Where another node is primary a fenced one comes back behind it.
fn way_back(seen: &NodeObserved, name: &str) -> String {
    if seen.ended_as_standby() {
        format!("when it is well: pgherd unfence {name}")
    } else {
        format!("to bring it back as a standby: pgherd rejoin {name}")
    }
}

/// Says why a stopped standby does not belong to the primary.
fn stranger(seen: &NodeObserved, lead: &NodeObserved) -> Option<String> {
    let (own, theirs) = (seen.control()?.system_identifier, lead.control()?.system_identifier);
    (own != theirs).then(|| format!("its system identifier is {own}, the primary's is {theirs}"))
}

fn start_primary(
    situation: &Situation<'_>,
    primary: &Node,
    lead: &NodeObserved,
    configure: Option<&PlannedStep>,
    plan: &mut ClusterPlan,
) {
    if !matches!(lead.server, Server::Stopped) {
        return;
    }
    plan.stages.push(configure.into_iter().cloned().collect());
    plan.stages.push(vec![PlannedStep {
        sign: Sign::Create,
        subject: situation.cluster.full_name(&primary.name),
        text: "start, wait until it answers".to_owned(),
        reason: Some("it is stopped, and no other node is primary".to_owned()),
        impact: None,
        undo: "stop".to_owned(),
        step: ApplyStep::Start { node: primary.name.clone() },
    }]);
}

fn logins(situation: &Situation<'_>, plan: &mut ClusterPlan) {
    if let Some(Logins::Wrong { what, nodes }) = &situation.logins {
        plan.stages.push(vec![PlannedStep {
            sign: Sign::Change,
            subject: situation.cluster.name.clone(),
            text: format!(
                "roles {} and {}, and the password files",
                declared::replication_role(situation.cluster),
                declared::PROBE_ROLE
            ),
            reason: Some(what.clone()),
            impact: None,
            undo: "nothing to undo".to_owned(),
            step: ApplyStep::Logins { nodes: nodes.clone() },
        }]);
    }
}

fn missing_slots(
    situation: &Situation<'_>,
    primary: &Node,
    lead: &NodeObserved,
    standbys: &[(&Node, Fate<'_>)],
    plan: &mut ClusterPlan,
) {
    let Some(running) = lead.running() else { return };
    let missing = standbys
        .iter()
        .filter(|(_, fate)| matches!(fate, Fate::Start(_) | Fate::Compare(_)))
        .map(|(node, _)| (situation.cluster.slot_name(&node.name), node))
        .filter(|(slot, _)| !running.slots.iter().any(|found| found.name == *slot));
    plan.stages.push(
        missing
            .map(|(slot, node)| PlannedStep {
                sign: Sign::Change,
                subject: situation.cluster.full_name(&primary.name),
                text: format!("slot {slot}"),
                reason: Some(format!(
                    "it is not there; {} could lose the WAL that it needs",
                    situation.cluster.full_name(&node.name)
                )),
                impact: None,
                undo: "drop".to_owned(),
                step: ApplyStep::Slot { on: primary.name.clone(), slot },
            })
            .collect(),
    );
}

fn change_standbys(
    situation: &Situation<'_>,
    primary: &Node,
    standbys: &[(&Node, Fate<'_>)],
    waits_for_too_few: bool,
    plan: &mut ClusterPlan,
) {
    let cluster = situation.cluster;
    // What only needs a reload goes side by side; restarts one after the other, so that a synchronous standby is left to
    // acknowledge commits.
    let mut together = Vec::new();
    let mut restarts = Vec::new();
    let mut starts = Vec::new();
    for (node, fate) in standbys {
        let seen = match fate {
            Fate::Start(seen) | Fate::Compare(seen) => seen,
            Fate::Leave(why) => {
                plan.notes.extend((!why.is_empty()).then(|| why.clone()));
                continue;
            }
            Fate::Add => continue,
        };
        let names = declared::synchronous_names(cluster, node);
        let names = match seen.running().map(|running| &running.facts.synchronous_standby_names) {
            Some(found) if waits_for_too_few && settings::is_less(found, &names) => found.clone(),
            Some(_) | None if waits_for_too_few => String::new(),
            Some(_) | None => names,
        };
        let wanted = settings::desired(situation, node, Some(primary), names);
        let configure = settings::configure(situation, node, seen, &wanted);
        plan.notes.extend(adopt::waits(cluster, node, &settings::waiting(situation, node, seen, &wanted)));
        if let Fate::Start(_) = fate {
            starts.push(PlannedStep {
                sign: Sign::Create,
                subject: cluster.full_name(&node.name),
                text: format!("start, wait until it streams from {}", cluster.full_name(&primary.name)),
                reason: Some("it is stopped".to_owned()),
                impact: None,
                undo: "stop".to_owned(),
                step: ApplyStep::Follow { node: node.name.clone(), upstream: primary.name.clone() },
            });
        } else if configure.is_none() {
            plan.notes.extend(not_streaming(situation, node, seen));
        }
        match configure {
            Some(step) if step.sign == Sign::Disrupt => restarts.push(step),
            other => together.extend(other),
        }
    }
    plan.stages.push(together);
    plan.stages.extend(restarts.into_iter().map(|step| vec![step]));
    plan.stages.push(starts);
}

/// Says that a standby with the right settings still does not stream.
fn not_streaming(situation: &Situation<'_>, node: &Node, seen: &NodeObserved) -> Option<String> {
    let name = situation.cluster.full_name(&node.name);
    let places = situation.node_places(node);
    match &seen.running()?.facts.role {
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming" => None,
        ServerRole::Standby { .. } => Some(format!(
            "{name} does not stream although its settings are right; its log in {} says why",
            places.log.display()
        )),
        ServerRole::Primary { .. } => None,
    }
}

/// Tells whether somebody loses something by a change: whoever came in before the cluster was adopted goes on to.
fn takes_away(change: &objects::Change) -> bool {
    match change {
        objects::Change::Revoke { .. }
        | objects::Change::RevokeDefault { .. }
        | objects::Change::RevokeMembership(_)
        | objects::Change::ChangeOwner { schema: None, .. } => true,
        objects::Change::CreateRole { .. }
        | objects::Change::AlterRole { .. }
        | objects::Change::SetPassword { .. }
        | objects::Change::CreateDatabase { .. }
        | objects::Change::ChangeOwner { schema: Some(_), .. }
        | objects::Change::CreateSchema { .. }
        | objects::Change::Grant { .. }
        | objects::Change::GrantDefault { .. } => false,
    }
}

fn replaces_a_password(change: &objects::Change) -> bool {
    matches!(change, objects::Change::SetPassword { found: objects::StoredPassword::Other, .. })
}

fn mend(cluster: &Cluster, change: objects::Change) -> PlannedStep {
    PlannedStep {
        sign: if change.sign() == '+' { Sign::Create } else { Sign::Change },
        subject: cluster.name.clone(),
        text: change.describe(),
        reason: Some(change.reason()),
        impact: replaces_a_password(&change).then(|| {
            "who is connected stays; who logs in with the old password is refused from then on".to_owned()
        }),
        undo: "nothing to undo".to_owned(),
        step: ApplyStep::Mend { change },
    }
}

fn pooler_and_proof(
    situation: &Situation<'_>,
    plan: &mut ClusterPlan,
    reach: Reach,
    settle: Vec<PlannedStep>,
    proved: Vec<String>,
) {
    let cluster = situation.cluster;
    let wrong: Vec<(&String, String, bool)> = situation
        .poolers
        .iter()
        .filter_map(|(host, drift)| match drift {
            PoolerDrift::Right | PoolerDrift::Foreign { .. } => None,
            PoolerDrift::Missing => Some((host, "it is not there".to_owned(), false)),
            PoolerDrift::Stopped => Some((host, "it is stopped".to_owned(), false)),
            PoolerDrift::Differs { what, restart, .. } => Some((host, what.join("\n"), *restart)),
            PoolerDrift::Unknown { why } => Some((host, format!("unknown: {why}"), false)),
        })
        .collect();
    // Nodes that come or go change where the aliases point, passwords who may come in; what was seen of the pooler is then of the past.
    let reached = reach.nodes_move || (reach.passwords_change && cluster.poolers.is_some());
    if reached || situation.rotate.is_some() || !wrong.is_empty() || !settle.is_empty() {
        plan.stages.push(vec![keep(cluster)]);
    }
    plan.stages.extend(situation.rotate.map(|login| vec![rotation::forget(situation, login)]));
    if reached && cluster.poolers.is_some() {
        add_pooler_and_proof(situation, plan, proved);
        plan.stages.insert(plan.stages.len() - 1, settle);
        return;
    }
    if !wrong.is_empty() {
        plan.stages.push(
            wrong
                .into_iter()
                .map(|(host, why, restart)| PlannedStep {
                    sign: if restart { Sign::Disrupt } else { Sign::Change },
                    subject: "pooler".to_owned(),
                    text: format!("PgBouncer on {host}: write its files, reload or start it"),
                    reason: Some(why),
                    impact: restart.then(|| POOLER_RESTARTS.to_owned()),
                    undo: "none, clients may be connected".to_owned(),
                    step: ApplyStep::Pooler { host: host.clone() },
                })
                .collect(),
        );
        plan.stages.push(settle);
        plan.stages.push(vec![proof(cluster, proved)]);
    } else if reach.nodes_move || situation.rotate.is_some() || !settle.is_empty() {
        plan.stages.push(settle);
        plan.stages.push(vec![proof(cluster, proved)]);
    }
}

fn mixed_five(cluster: &Cluster, raised: &[String], lowered: &[String]) -> Error {
    Error::refused(format!("cannot raise and lower settings that a standby must match in one go in {}", cluster.name))
        .detail(format!(
            "Raised: {}. Lowered: {}. Raising begins with the standbys, lowering with the primary. Nothing was changed.",
            raised.join(", "),
            lowered.join(", ")
        ))
        .hint("Declare the raised ones first and apply, then the lowered ones.")
}

/// Says why a node's data directory must not be touched.
pub(super) fn claim_obstacle(cluster: &Cluster, node: &Node, seen: &NodeObserved) -> Option<Error> {
    let name = cluster.full_name(&node.name);
    let path = node.data_directory.display();
    match (&seen.marker, &seen.directory) {
        (Claim::Ours(marker), Directory::Cluster { control: Some(control), .. })
            if marker.system_identifier.is_some_and(|claimed| claimed != control.system_identifier) =>
        {
            Some(
                Error::refused(format!("cannot use {path}: it holds another cluster than the one that pgherd made"))
                    .detail(format!(
                        "Its system identifier is {}; the marker of {name} names {}. Nothing was changed.",
                        control.system_identifier,
                        marker.system_identifier.map_or_else(String::new, |id| id.to_string())
                    ))
                    .hint("Move it away, or give the node another `data-directory`."),
            )
        }
        (Claim::Ours(marker), _) if marker.system_identifier.is_none() => Some(
            Error::new(
                crate::error::ErrorKind::Locked,
                format!("cannot use {path}: operation {} has not finished making {name}", marker.operation),
            )
            .detail("Nothing was changed.")
            .hint(format!("pgherd operation resume {0}, or pgherd operation undo {0}", marker.operation)),
        ),
        (Claim::Ours(_), Directory::Foreign { names }) => Some(
            Error::refused(format!("cannot use {path}: what is in it is no PostgreSQL cluster any more"))
                .detail(format!("It holds {}; there is no PG_VERSION. Nothing was changed.", super::few(names)))
                .hint(format!("Move it away, then: pgherd destroy {} --node {}, and pgherd apply", cluster.name, node.name)),
        ),
        (Claim::Ours(_), Directory::Cluster { control: None, .. }) => Some(
            Error::new(crate::error::ErrorKind::NotFound, format!("cannot tell which cluster {path} holds"))
                .detail(format!("The pg_control of {name} could not be read. Nothing was changed."))
                .hint("Look whether the disk answers and pg_controldata reads it, and try again."),
        ),
        (Claim::Ours(_), _) => None,
        (Claim::Other(marker), _) => Some(
            Error::refused(format!("cannot use {path}: the marker of {name} claims {}", marker.data_directory.display()))
                .detail(format!(
                    "It was made by operation {} on host {}. Nothing was changed.",
                    marker.operation, marker.host
                ))
                .hint(format!(
                    "To move a node, remove it first: pgherd destroy {} --node {}. Another herd on this machine needs other cluster names.",
                    cluster.name, node.name
                )),
        ),
        (Claim::None, Directory::Missing | Directory::Empty) => None,
        (Claim::None, Directory::Cluster { version, owner, control, .. }) => Some(
            Error::refused(format!("cannot use {path}: it holds a cluster that pgherd did not make"))
                .detail(format!(
                    "PG_VERSION {version}{}, owner {owner}; no marker of {name} claims it. Nothing was changed.",
                    control
                        .as_ref()
                        .map_or_else(String::new, |control| format!(", system identifier {}", control.system_identifier))
                ))
                .hint(format!("To take it over as it is: pgherd apply --adopt {name}. Else give the node another `data-directory`.")),
        ),
        (Claim::None, Directory::Foreign { names }) => Some(
            Error::refused(format!("cannot use {path}: it is not empty"))
                .detail(format!("It holds {}; no marker of {name} claims it. Nothing was changed.", super::few(names)))
                .hint("Give the node another `data-directory`, or move this one away."),
        ),
        (Claim::Unknown { why }, _) | (Claim::None, Directory::Unknown { why }) => Some(
            Error::new(crate::error::ErrorKind::NotFound, format!("cannot tell whether {path} belongs to {name}"))
                .detail(format!("{why}. Nothing was changed."))
                .hint("Make it readable for the user that owns the node's files, and try again."),
        ),
    }
}
