//! What a plan does to the budget of connections, and what its cluster is warned of.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ops::objects::Change;
use crate::ops::observe::NodeObserved;
use crate::ops::plan::step::ApplyStep;
use crate::ops::plan::{ClusterPlan, PoolerDrift, Situation};
use crate::topology::budget::{self, Known, Layout, Limits};
use crate::topology::lints::lints;

/// The connections that the poolers may open to each node once the plan is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedBudget {
    /// Whether the plan changes anything that is counted: a node, a pool, or a limit of a server or role.
    pub changes: bool,
    pub layouts: Vec<Layout>,
}

/// Adds budget and warnings to a plan.
///
/// # Errors
/// Refused if the plan gives pools to a node that has no room for them. While it leaves the pools as they are they are only warned of: a
/// standby must not be kept from coming back.
pub(super) fn add(
    situation: &Situation<'_>,
    primary: &str,
    plan: &mut ClusterPlan,
) -> Result<(), Vec<Error>> {
    let cluster = situation.cluster;
    plan.warnings = lints(cluster);
    if cluster.poolers.is_none() {
        return Ok(());
    }
    let known = Known { primary: Some(primary), limits: limits(situation) };
    let mut budget = budget::budget(cluster, &known);
    for layout in budget.layouts.iter_mut().filter(|layout| layout.today) {
        layout.name = "as planned".to_owned();
    }
    let pools_change = situation
        .poolers
        .values()
        .any(|drift| matches!(drift, PoolerDrift::Missing | PoolerDrift::Differs { connections: true, .. }));
    let over: Vec<String> = budget
        .over()
        .map(|(layout, node)| {
            let sum = node.pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!(
                "the pools may open {} connections to {} ({}), it has {} for them: {sum}; {} - {} of roles without a pool",
                node.demand,
                cluster.full_name(&node.node),
                layout.name,
                node.cap(),
                node.limits,
                node.direct
            )
        })
        .collect();
    if pools_change && let Some(first) = over.first() {
        let (what, why) = first.split_once(": ").expect("it was written just now");
        return Err(vec![
            Error::refused(format!("cannot plan {}: {what}", cluster.name))
                .detail(format!("{why}. Nothing was changed."))
                .hint("Lower a size or a reserve, or declare max_connections under \"settings\"."),
        ]);
    }
    plan.warnings.extend(over);
    let changes = pools_change || plan.steps().any(|planned| is_counted(&planned.step));
    plan.budget = Some(PlannedBudget { changes, layouts: budget.layouts });
    Ok(())
}

/// What each server will have: what is declared, else what it has in effect now.
fn limits(situation: &Situation<'_>) -> std::collections::BTreeMap<String, Limits> {
    let of = |seen: &NodeObserved| {
        let running = seen.running()?;
        let limits = Limits::read(|name| {
            let declared = situation.cluster.postgres.settings.get(name).map(String::as_str);
            declared.or_else(|| running.settings.get(name).map(|row| row.setting.as_str()))
        });
        Some((seen.node.clone(), limits))
    };
    situation.observed.nodes.iter().filter_map(of).collect()
}

/// Tells whether a step changes what the budget counts.
fn is_counted(step: &ApplyStep) -> bool {
    match step {
        ApplyStep::Initdb { .. }
        | ApplyStep::Adopt { .. }
        | ApplyStep::Clone { .. }
        | ApplyStep::Objects { .. } => true,
        ApplyStep::Configure { expect, resets, .. } => {
            expect.iter().chain(resets).any(|(name, _)| budget::SETTINGS.contains(&name.as_str()))
        }
        ApplyStep::Mend { change } => match change {
            Change::CreateRole { .. } => true,
            Change::AlterRole { before, after, .. } => before.connection_limit != after.connection_limit,
            Change::SetPassword { .. }
            | Change::RevokeMembership(_)
            | Change::CreateDatabase { .. }
            | Change::ChangeOwner { .. }
            | Change::CreateSchema { .. }
            | Change::Grant { .. }
            | Change::Revoke { .. }
            | Change::GrantDefault { .. }
            | Change::RevokeDefault { .. } => false,
        },
        // What a pooler is to do may be what it does: its drift says.
        ApplyStep::Pooler { .. }
        | ApplyStep::Install { .. }
        | ApplyStep::Repository { .. }
        | ApplyStep::Access { .. }
        | ApplyStep::Authority { .. }
        | ApplyStep::Certificate { .. }
        | ApplyStep::Unit { .. }
        | ApplyStep::Start { .. }
        | ApplyStep::Logins { .. }
        | ApplyStep::Slot { .. }
        | ApplyStep::Follow { .. }
        | ApplyStep::Archive { .. }
        | ApplyStep::Record { .. }
        | ApplyStep::Open { .. }
        | ApplyStep::StagePassword { .. }
        | ApplyStep::RotatePassword { .. }
        | ApplyStep::ForgetPassword { .. }
        | ApplyStep::Keep {}
        | ApplyStep::Prove { .. }
        | ApplyStep::Schedule { .. }
        | ApplyStep::Prune { .. } => false,
    }
}
