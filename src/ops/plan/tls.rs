//! Certificates of a cluster, and the two halves of a change between plain and encrypted connections: first everybody can speak TLS,
//! then everybody must.

use crate::error::Error;
use crate::ops::certificate::AuthoritySeen;
use crate::ops::observe::Files;
use crate::ops::plan::crossing::{Crossing, crossing, has_tls_settings, is_ours};
use crate::ops::plan::step::{Activation, ApplyStep, FileChange, PlannedStep, Sign};
use crate::ops::plan::{ClusterPlan, Situation, settings};
use crate::topology::declared::{self, Setting};
use crate::topology::model::{Cluster, Node, Tls};

/// The herd's authority, and certificates for the nodes that are there; a node that is made gets its own with its directory, a
/// pooler with its files.
pub(super) fn prepare(situation: &Situation<'_>, plan: &mut ClusterPlan) {
    let cluster = situation.cluster;
    let Some(seen) = situation.tls else { return };
    if let (Some(Tls::Own { herd }), Some(authority)) = (&cluster.postgres.tls, &seen.authority) {
        let (sign, text, reason) = match authority {
            AuthoritySeen::Right => return certificates(situation, plan),
            AuthoritySeen::Missing => {
                (Sign::Create, "certificate authority, on this machine; its key stays here", None)
            }
            AuthoritySeen::Old { not_after } => (
                Sign::Change,
                "another certificate for the same key of the authority",
                Some(format!("it ends {not_after}: less than a third of its life is left")),
            ),
        };
        plan.stages.push(vec![PlannedStep {
            sign,
            subject: herd.clone(),
            text: text.to_owned(),
            reason,
            impact: None,
            undo: "nothing to undo".to_owned(),
            step: ApplyStep::Authority { herd: herd.clone() },
        }]);
    }
    certificates(situation, plan);
}

fn certificates(situation: &Situation<'_>, plan: &mut ClusterPlan) {
    let cluster = situation.cluster;
    let Some(seen) = situation.tls else { return };
    let wrong = cluster.nodes.iter().filter_map(|node| Some((node, seen.nodes.get(&node.name)?)));
    plan.stages.push(
        wrong
            .map(|(node, why)| PlannedStep {
                sign: Sign::Change,
                subject: cluster.full_name(&node.name),
                text: "certificate, reload".to_owned(),
                reason: Some(why.clone()),
                impact: None,
                undo: "nothing to undo".to_owned(),
                step: ApplyStep::Certificate { node: node.name.clone() },
            })
            .collect(),
    );
}

/// Another authority in place of the one that everybody believes would shut clients out: it is brought here, or given up on purpose.
pub(super) fn obstacle(situation: &Situation<'_>) -> Option<Error> {
    let cluster = situation.cluster;
    let Some(Tls::Own { herd }) = &cluster.postgres.tls else { return None };
    situation.tls?.authority.as_ref().filter(|authority| **authority == AuthoritySeen::Missing)?;
    let seen = situation
        .observed
        .nodes
        .iter()
        .find(|seen| seen.files.as_ref().is_some_and(|files| has_tls_settings(cluster, files)))?;
    Some(
        Error::refused(format!("the certificate authority of {herd} is not on this machine"))
            .detail(format!(
                "{} has a certificate of it, and clients believe it; another one would shut them out. Nothing was changed.",
                cluster.full_name(&seen.node)
            ))
            .hint(format!(
                "Copy {} from the machine that made it. If it is lost: take \"tls\" out of the file and apply, then declare it again.",
                situation.places.authority(herd).display()
            )),
    )
}

/// The second half: what forces TLS, or no longer offers it, when poolers and standbys are ready for that.
pub(super) fn settle(situation: &Situation<'_>, primary: &Node) -> Vec<PlannedStep> {
    let cluster = situation.cluster;
    let each = cluster.nodes.iter().filter_map(|node| {
        let seen = situation.observed.node(&node.name)?;
        let files = seen.files.as_ref()?;
        match crossing(cluster, seen) {
            Crossing::None => None,
            Crossing::Begins => force(cluster, node, files),
            Crossing::Ends => Some(leave(situation, node, primary)),
        }
    });
    each.collect()
}

fn force(cluster: &Cluster, node: &Node, files: &Files) -> Option<PlannedStep> {
    let lines = |lines: String| declared::with_access_lines(&files.pg_hba, &lines);
    let (before, after) =
        (lines(declared::plain_access_lines(cluster)), lines(declared::access_lines(cluster)));
    let reason = "standbys and poolers speak TLS by now: whoever comes from another machine must";
    let impact = "who is connected stays; from other machines a new connection without TLS is refused";
    (before != after).then(|| settings::rewrite_access(cluster, node, (before, after), reason, Some(impact)))
}

fn leave(situation: &Situation<'_>, node: &Node, primary: &Node) -> PlannedStep {
    let cluster = situation.cluster;
    let upstream = (node.name != primary.name).then_some(primary);
    let names = declared::synchronous_names(cluster, node);
    let now = settings::desired(situation, node, upstream, names);
    let without = |settings: &[Setting]| -> Vec<Setting> {
        let kept = settings.iter().filter(|(name, _)| !is_ours(cluster, name));
        kept.cloned().collect()
    };
    let change = |name: &str, settings: &[Setting]| FileChange {
        path: node.configuration().join(name),
        before: Some(declared::settings_file(settings)),
        after: declared::settings_file(&without(settings)),
    };
    PlannedStep {
        sign: Sign::Change,
        subject: cluster.full_name(&node.name),
        text: "ssl = off, reload".to_owned(),
        reason: Some("no TLS is declared, and standbys and poolers do without it by now".to_owned()),
        impact: Some("who is connected stays; a new connection that insists on TLS is refused".to_owned()),
        undo: "write what was there before, reload".to_owned(),
        step: ApplyStep::Configure {
            node: node.name.clone(),
            files: vec![change(declared::SHARED_FILE, &now.shared), change(declared::NODE_FILE, &now.own)],
            resets: Vec::new(),
            activation: Activation::Reload,
            expect: vec![("ssl".to_owned(), "off".to_owned())],
        },
    }
}

/// Raising a setting that a standby must match begins with the standbys, a change of TLS with the primary.
pub(super) fn too_much_at_once(cluster: &Cluster, raised: &[String]) -> Error {
    Error::refused(format!(
        "cannot change TLS and raise what a standby must match in one go in {}",
        cluster.name
    ))
    .detail(format!(
        "Raised: {}. That begins with the standbys, a change of TLS with the primary. Nothing was changed.",
        raised.join(", ")
    ))
    .hint("Declare one of them and apply, then the other.")
}
