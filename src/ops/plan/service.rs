//! The units of nodes that systemd shall start, and what Debian's wrapper cannot do.

use crate::error::Error;
use crate::ops::observe::{Claim, Directory, NodeObserved};
use crate::ops::plan::step::{ApplyStep, PlannedStep, Sign};
use crate::ops::plan::{Situation, adopt};
use crate::topology::claim::{Archive, Profile};
use crate::topology::model::{Node, Service};
use crate::topology::unit::{self, Peers, Unit};

/// Plans the units of nodes that are being made, once their data directories are there.
pub(super) fn new_units(situation: &Situation<'_>, nodes: &[&Node]) -> Vec<PlannedStep> {
    match situation.cluster.postgres.service {
        Service::Systemd => nodes.iter().map(|node| step(situation, node, None, None)).collect(),
        Service::PgCtl | Service::Debian => Vec::new(),
    }
}

/// Plans the units of nodes that are there, where they are missing or differ.
pub(super) fn units(situation: &Situation<'_>) -> Vec<PlannedStep> {
    match situation.cluster.postgres.service {
        Service::Systemd => {
            let nodes = situation.cluster.nodes.iter().zip(&situation.observed.nodes);
            nodes.filter_map(|(node, seen)| changed(situation, node, seen)).collect()
        }
        Service::PgCtl | Service::Debian => Vec::new(),
    }
}

fn changed(situation: &Situation<'_>, node: &Node, seen: &NodeObserved) -> Option<PlannedStep> {
    let (files, profile) = (seen.files.as_ref()?, seen.profile.as_ref()?);
    if adopt::has_other_manager(situation, node, seen) {
        return None;
    }
    let places = situation.node_places(node);
    // A profile that is written anew by this plan says where the archive is.
    let profile = Profile {
        archive: Archive::of(situation.cluster, &situation.places_on(&node.host)),
        ..profile.clone()
    };
    let wanted = unit::render(&profile, &places, Peers::of(situation.cluster)).ok()?;
    let reason = files.unit.differs_from(&wanted)?;
    Some(step(situation, node, files.unit.text.clone(), Some(reason.to_owned())))
}

fn step(
    situation: &Situation<'_>,
    node: &Node,
    before: Option<String>,
    reason: Option<String>,
) -> PlannedStep {
    let name = situation.cluster.full_name(&node.name);
    PlannedStep {
        sign: if before.is_none() { Sign::Create } else { Sign::Change },
        text: format!("unit {}, started with its host", Unit::of_node(&name, &node.data_directory).name()),
        subject: name,
        reason,
        impact: None,
        undo: if before.is_none() { "remove it" } else { "the unit as it was" }.to_owned(),
        step: ApplyStep::Unit { node: node.name.clone(), before },
    }
}

/// Debian's clusters are made by pg_createcluster: what pgherd makes, its wrapper would not know.
pub(super) fn obstacle(situation: &Situation<'_>, node: &Node, seen: &NodeObserved) -> Option<Error> {
    let missing =
        matches!(seen.directory, Directory::Missing | Directory::Empty) && matches!(seen.marker, Claim::None);
    let debian = situation.cluster.postgres.service == Service::Debian;
    (debian && missing).then(|| {
        Error::refused(format!(
            "cannot make {} as a Debian cluster",
            situation.cluster.full_name(&node.name)
        ))
        .detail("Only pg_createcluster makes clusters that pg_ctlcluster starts and stops. Nothing was changed.")
        .hint("Declare \"service: systemd\" or \"service: pg_ctl\" for a cluster that pgherd makes.")
    })
}
