//! What has cron or systemd start the jobs on the machine that pgherd runs on. It is the herd's: the first cluster that is applied does it for all.

use crate::ops::plan::Situation;
use crate::ops::plan::step::{ApplyStep, PlannedStep, Sign};

/// Puts it there when everything else is done: a job needs the cluster.
pub(super) fn install(situation: &Situation<'_>) -> Vec<PlannedStep> {
    let seen = situation.starter;
    if seen.pieces.is_empty() {
        return Vec::new();
    }
    let sign = match (seen.is_removal(), seen.is_new()) {
        (true, _) => Sign::Remove,
        (false, true) => Sign::Create,
        (false, false) => Sign::Change,
    };
    vec![PlannedStep {
        sign,
        subject: seen.host.clone(),
        text: seen.text.clone(),
        reason: seen.reason.clone(),
        impact: None,
        undo: if seen.is_new() { "remove it" } else { "as it was" }.to_owned(),
        step: ApplyStep::Schedule { pieces: seen.pieces.clone() },
    }]
}
