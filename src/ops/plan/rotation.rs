//! Planning for a new password of one of pgherd's own logins.

use crate::db::logins::Purpose;
use crate::error::Error;
use crate::ops::plan::Situation;
use crate::ops::plan::step::{ApplyStep, PlannedStep, Sign};
use crate::ops::roles::Lead;

/// Says why the password cannot be replaced now: a node that does not get the new one is locked out.
pub(super) fn obstacle(situation: &Situation<'_>, login: Purpose, lead: &Lead) -> Option<Error> {
    let (cluster, role) = (situation.cluster, login.role(situation.cluster));
    if !matches!(lead, Lead::Primary(_)) {
        return Some(
            Error::refused(format!(
                "cannot rotate the password of {role}: no primary of {} answers",
                cluster.name
            ))
            .detail("Nothing was changed.")
            .hint("Have it up first: pgherd apply"),
        );
    }
    let missing: Vec<String> = situation
        .observed
        .nodes
        .iter()
        .filter(|node| node.files.is_none())
        .map(|node| cluster.full_name(&node.node))
        .collect();
    (!missing.is_empty()).then(|| {
        Error::refused(format!(
            "cannot rotate the password of {role}: the files of {} cannot be reached",
            missing.join(", ")
        ))
        .detail("With the old password in its password file a node could not log in any more. Nothing was changed.")
        .hint("Have all nodes there first: pgherd plan")
    })
}

/// The steps before the pivot.
pub(super) fn replace(situation: &Situation<'_>, login: Purpose) -> Vec<Vec<PlannedStep>> {
    let (cluster, role) = (situation.cluster, login.role(situation.cluster));
    let step = |text: String, impact: Option<&str>, undo: &str, step| PlannedStep {
        sign: Sign::Change,
        subject: cluster.name.clone(),
        text,
        reason: None,
        impact: impact.map(str::to_owned),
        undo: undo.to_owned(),
        step,
    };
    let (text, impact) = match login {
        Purpose::Replication => (
            format!(
                "password of {role}: password files of all nodes, verifier on the primary, a login from each"
            ),
            Some(
                "streaming goes on; a standby that reconnects in that moment tries again within wal_retrieve_retry_interval",
            ),
        ),
        Purpose::Probe => (
            format!(
                "password of {role}: password files of all nodes, verifier on the primary and in the pooler"
            ),
            None,
        ),
    };
    vec![
        vec![step(
            format!("generate a new password for {role}"),
            None,
            "forget it",
            ApplyStep::StagePassword { login },
        )],
        vec![step(
            text,
            impact,
            "the old password again",
            ApplyStep::RotatePassword {
                login,
                nodes: cluster.nodes.iter().map(|node| node.name.clone()).collect(),
            },
        )],
    ]
}

/// The step after the pivot.
pub(super) fn forget(situation: &Situation<'_>, login: Purpose) -> PlannedStep {
    PlannedStep {
        sign: Sign::Remove,
        subject: situation.cluster.name.clone(),
        text: format!("forget the old password of {}", login.role(situation.cluster)),
        reason: None,
        impact: None,
        undo: "none, it is gone".to_owned(),
        step: ApplyStep::ForgetPassword { login },
    }
}
