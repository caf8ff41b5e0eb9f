//! What the configuration files say that is not in effect.

use super::super::report::{Finding, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::{Of, Status, command, few, limits};
use crate::topology::checks::Check;
use crate::topology::model::Node;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    seen.each()
        .flat_map(|(node, _, asked)| [pending_restart(seen, node, asked), configuration(seen, node, asked)])
        .collect()
}

fn pending_restart(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::PendingRestart);
    of.told(Subject::Node(node.name.clone()), &asked.pending_restart, |subject, names| {
        if names.is_empty() {
            return of.says(subject, Status::Ok, "no setting waits for a restart");
        }
        let text = format!("{} in effect after a restart only", few(names));
        of.measures(
            subject,
            count(names.len()),
            limits(seen.cluster, Some(node), Check::PendingRestart),
            text,
        )
        .next(command(seen.cluster, "plan"))
    })
}

fn configuration(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Configuration);
    of.told(Subject::Node(node.name.clone()), &asked.bad_lines, |subject, lines| {
        if lines.is_empty() {
            return of.says(subject, Status::Ok, "every line of its files can be applied");
        }
        let texts: Vec<String> = lines
            .iter()
            .map(|bad| match bad.line {
                Some(line) => format!("{}:{line}: {}", bad.file, bad.error),
                None => format!("{}: {}", bad.file, bad.error),
            })
            .collect();
        of.measures(
            subject,
            count(lines.len()),
            limits(seen.cluster, Some(node), Check::Configuration),
            few(&texts),
        )
        .next("mend the line; with it the server reads no change of that file, and may not start again")
    })
}

#[expect(clippy::cast_precision_loss, reason = "lists of names are short")]
fn count(number: usize) -> f64 {
    number as f64
}
