//! The steps of a switchover in their order, from what was decided.

use std::time::Duration;

use crate::db::queries::SlotKind;
use crate::ops::hook::{self, Point};
use crate::ops::plan::step::{PlannedStep, Sign};
use crate::ops::succession::Input;
use crate::ops::switchover::standbys::Up;
use crate::ops::switchover::step::SwitchStep;
use crate::ops::switchover::wish::Wish;
use crate::topology::model::Cluster;
use crate::units::human_duration;

type Planned = PlannedStep<SwitchStep>;

/// How long clients are held back at most: longer than the primary may take to end.
const HOLD: Duration = Duration::from_secs(90);

pub(super) fn step(
    sign: Sign,
    subject: String,
    text: impl Into<String>,
    undo: &str,
    step: SwitchStep,
) -> Planned {
    Planned { sign, subject, text: text.into(), reason: None, impact: None, undo: undo.to_owned(), step }
}

/// How long clients are held back at most: a hook of the operator's may take its part.
pub(super) fn held_back(cluster: &Cluster) -> Duration {
    HOLD + hook::of(cluster, Point::BeforePromote).map_or(Duration::ZERO, |hook| hook.timeout)
}

const POOLER: &str = "pooler";

pub(super) fn stages(input: &Input, to: &Up<'_>, wish: &Wish) -> Vec<Vec<Planned>> {
    let cluster = &input.cluster;
    let (from_name, to_name) = (cluster.full_name(&input.from), cluster.full_name(&input.to));
    let hosts: Vec<String> = cluster.pooler_hosts().cloned().collect();
    let hook = |point: Point| -> Vec<Planned> {
        hook::planned(cluster, point, "nothing to undo", SwitchStep::Hook { point }).into_iter().collect()
    };
    let told = hook::planned(cluster, Point::AfterUndo, "run it", SwitchStep::WhenUndone {});
    let told = told.map(|told| Planned { sign: Sign::Look, ..told });
    let mut stages = vec![told.into_iter().collect(), hook(Point::BeforeSwitchover), slots(input, to)];
    let checkpoint = |node: &str| {
        let text = "checkpoint while clients write, until one is short";
        let step_of = SwitchStep::Checkpoint { node: node.to_owned() };
        step(Sign::Change, cluster.full_name(node), text, "nothing to undo", step_of)
    };
    stages.push(vec![checkpoint(&input.from), checkpoint(&input.to)]);
    if !hosts.is_empty() {
        let hold = held_back(cluster);
        let arm = SwitchStep::Arm { hosts: hosts.clone(), seconds: hold.as_secs() };
        let text = format!("have clients go on by themselves after {}", human_duration(hold));
        stages.push(vec![step(Sign::Look, POOLER.to_owned(), text, "end it", arm)]);
        let grace = wish.grace.as_secs().max(1);
        let pause = SwitchStep::Pause { hosts: hosts.clone(), grace };
        let text = format!(
            "PAUSE, all or none: clients wait; running transactions get {}",
            human_duration(Duration::from_secs(grace))
        );
        stages.push(vec![step(Sign::Disrupt, POOLER.to_owned(), text, "RESUME", pause)]);
    }
    let mut stop = step(
        Sign::Disrupt,
        from_name.clone(),
        "stop (fast), and a standby whenever it is started again",
        "start it as the primary that it was",
        SwitchStep::Stop { node: input.from.clone() },
    );
    stop.impact = Some("direct connections to it end".to_owned());
    stages.push(vec![stop]);
    stages.push(vec![step(
        Sign::Look,
        to_name.clone(),
        format!("has the last record of {from_name}"),
        "nothing to undo",
        SwitchStep::Has { node: input.to.clone() },
    )]);
    stages.push(hook(Point::BeforePromote));
    stages.push(vec![step(
        Sign::Look,
        to_name.clone(),
        "may be promoted",
        "see that nobody asked it to",
        SwitchStep::Ready { node: input.to.clone() },
    )]);
    stages.push(vec![step(
        Sign::Disrupt,
        to_name.clone(),
        format!("promote, timeline {}", input.timeline.as_u32() + 1),
        "none",
        SwitchStep::Promote { node: input.to.clone() },
    )]);
    stages.extend(afterwards(input, &hosts));
    stages.retain(|stage| !stage.is_empty());
    stages
}

/// Returns the slots of nodes that are to follow the candidate and that it does not have.
pub(super) fn missing_slots(cluster: &Cluster, from: &str, siblings: &[&str], to: &Up<'_>) -> Vec<String> {
    let there = |slot: &String| {
        to.running.slots.iter().any(|is| is.name == *slot && is.kind == SlotKind::Physical && !is.is_lost())
    };
    let wanted = siblings.iter().copied().chain([from]).map(|node| cluster.slot_name(node));
    wanted.filter(|slot| !there(slot)).collect()
}

pub(super) fn slots(input: &Input, to: &Up<'_>) -> Vec<Planned> {
    let cluster = &input.cluster;
    let siblings: Vec<&str> = input.siblings.iter().map(String::as_str).collect();
    missing_slots(cluster, &input.from, &siblings, to)
        .into_iter()
        .map(|slot| {
            let text = format!("slot {slot}");
            let step_of = SwitchStep::Slot { on: input.to.clone(), slot };
            step(Sign::Create, cluster.full_name(&input.to), text, "drop it", step_of)
        })
        .collect()
}

/// What comes when there is only forward: first what clients wait for.
pub(super) fn afterwards(input: &Input, hosts: &[String]) -> Vec<Vec<Planned>> {
    let cluster = &input.cluster;
    let name = |node: &str| cluster.full_name(node);
    let follow = |node: &String| {
        let text = format!("follow {}", name(&input.to));
        step(Sign::Change, name(node), text, "none", SwitchStep::Follow { node: node.clone() })
    };
    let mut first: Vec<Planned> = input.siblings.iter().map(follow).collect();
    if let Some(synchronous) = &cluster.synchronous {
        let waited_for = input.siblings.iter().filter(|node| synchronous.of.contains(node)).count();
        // Without it no commit ends.
        if waited_for < synchronous.wait_for as usize {
            first.push(follow(&input.from));
        }
    }
    let on_poolers = |text: &str, of: fn(String) -> SwitchStep| -> Vec<Planned> {
        let one = |host: &String| step(Sign::Change, POOLER.to_owned(), text, "none", of(host.clone()));
        hosts.iter().map(one).collect()
    };
    let mut back: Vec<Planned> = vec![step(
        Sign::Change,
        name(&input.to),
        "its own settings, checkpoint of the new timeline",
        "none",
        SwitchStep::Settle { node: input.to.clone() },
    )];
    back.extend(input.siblings.iter().chain([&input.from]).map(|node| {
        let text = format!("stream from {}", name(&input.to));
        step(Sign::Change, name(node), text, "none", SwitchStep::Streams { node: node.clone() })
    }));
    // All that clients wait for goes side by side: a commit that came before its standby waits for it.
    let text = format!("lead {} to {}, RESUME", cluster.name, name(&input.to));
    first.extend(on_poolers(&text, |host| SwitchStep::Turn { host }));
    let asked = SwitchStep::Hook { point: Point::AfterPromote };
    first.extend(hook::planned(cluster, Point::AfterPromote, "none", asked));
    let mut stages = vec![first, back];
    if cluster.backups.is_some() {
        let record = SwitchStep::Record { node: input.to.clone() };
        let text = format!("{} is primary in the repository's record", name(&input.to));
        stages.push(vec![step(Sign::Change, cluster.name.clone(), text, "none", record)]);
    }
    stages.push(on_poolers("every alias to where the nodes are now", |host| SwitchStep::Lead { host }));
    let others = cluster.nodes.iter().filter(|node| node.name != input.from);
    let slots: Vec<String> = others.map(|node| cluster.slot_name(&node.name)).collect();
    let text = "drop its slots, which nobody reads any more";
    let drop = SwitchStep::Slots { on: input.from.clone(), slots };
    stages.push(vec![step(Sign::Remove, name(&input.from), text, "none", drop)]);
    if cluster.backups.is_some() {
        let archive = SwitchStep::Archive { node: input.to.clone() };
        let text = "the archive goes on, without a gap";
        stages.push(vec![step(Sign::Look, name(&input.to), text, "none", archive)]);
    }
    let nodes: Vec<String> = input.siblings.iter().chain([&input.from]).cloned().collect();
    let text = "write a row and read it on every standby";
    stages.push(vec![step(Sign::Look, cluster.name.clone(), text, "none", SwitchStep::Prove { nodes })]);
    let mut left = Vec::new();
    if hook::of(cluster, Point::AfterPromote).is_some() {
        let done = SwitchStep::Hooked { point: Point::AfterPromote };
        left.push(step(Sign::Look, "hook".to_owned(), "after-promote is done", "none", done));
    }
    stages.push(left);
    let last = SwitchStep::Hooked { point: Point::AfterSwitchover };
    stages.push(hook::planned(cluster, Point::AfterSwitchover, "none", last).into_iter().collect());
    stages
}
