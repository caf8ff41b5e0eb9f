//! The steps of a failover in their order, from what was decided.

use crate::db::queries::{Slot, SlotKind};
use crate::ops::failover::step::FailStep;
use crate::ops::hook::{self, Point};
use crate::ops::plan::step::{PlannedStep, Sign};
use crate::ops::succession::Input;

type Planned = PlannedStep<FailStep>;

const POOLER: &str = "pooler";
const NOTHING: &str = "nothing to undo";

/// How the old primary is kept from taking writes.
#[derive(Debug)]
pub(super) enum Fence {
    /// Its host answers.
    ShutOut,
    /// Too few standbys are left to confirm its commits.
    Starve { nodes: Vec<String>, need: usize },
    /// A program of the operator's cuts it off.
    Hook,
    /// The operator says that it is off.
    Statement { said: String },
}

/// That what only the old primary's disk has is needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Salvage {
    /// The operator has agreed to go on without it, or enough standbys have every commit that waited for one.
    pub may_lose: bool,
}

fn step(sign: Sign, subject: String, text: impl Into<String>, undo: &str, step: FailStep) -> Planned {
    Planned { sign, subject, text: text.into(), reason: None, impact: None, undo: undo.to_owned(), step }
}

/// Orders the steps: `slots` are those of the new primary, `hosts` those whose poolers answer, `frozen` the standbys that answer.
pub(super) fn stages(
    input: &Input,
    slots: &[Slot],
    (fence, salvage): (&Fence, Option<Salvage>),
    hosts: &[String],
    frozen: &[&str],
) -> Vec<Vec<Planned>> {
    let cluster = &input.cluster;
    let name = |node: &str| cluster.full_name(node);
    let (old, new) = (name(&input.from), name(&input.to));
    let freeze = |node: &&str| {
        let text = format!("receives nothing from {old} any more");
        let of = FailStep::Freeze { node: (*node).to_owned() };
        step(Sign::Change, name(node), text, "follow it again", of)
    };
    let told = hook::planned(cluster, Point::AfterUndo, "run it", FailStep::WhenUndone {});
    let mut held: Vec<Planned> = frozen.iter().map(freeze).collect();
    held.extend(missing_slots(input, slots));
    let mut stages = vec![told.into_iter().collect(), held];
    match fence {
        // What runs on a host that answers is ended there, whatever the standbys receive meanwhile.
        Fence::ShutOut => stages[1].extend(fenced(input, fence)),
        Fence::Starve { .. } | Fence::Hook | Fence::Statement { .. } => stages.push(fenced(input, fence)),
    }
    let complete = FailStep::Complete { node: input.to.clone(), others: input.siblings.clone() };
    stages.push(vec![step(Sign::Look, new.clone(), "has what every standby has", NOTHING, complete)]);
    if let Some(Salvage { may_lose }) = salvage {
        let of = FailStep::Salvage { from: input.from.clone(), node: input.to.clone(), may_lose };
        let text = match may_lose {
            true => format!("bring what only {old} has, if that can be"),
            false => format!("bring what only {old} has"),
        };
        stages.push(vec![step(Sign::Change, new.clone(), text, NOTHING, of)]);
    }
    let ready = FailStep::Ready { node: input.to.clone() };
    let text = "has replayed everything, and may be promoted";
    stages.push(vec![step(Sign::Look, new.clone(), text, "see that nobody asked it to", ready)]);
    let asked = FailStep::Hook { point: Point::BeforePromote };
    stages.push(hook::planned(cluster, Point::BeforePromote, NOTHING, asked).into_iter().collect());
    let promote = FailStep::Promote { node: input.to.clone() };
    let text = format!("promote, timeline {}", input.timeline.as_u32() + 1);
    stages.push(vec![step(Sign::Disrupt, new, text, "none", promote)]);
    stages.extend(afterwards(input, hosts));
    stages.retain(|stage| !stage.is_empty());
    stages
}

fn fenced(input: &Input, fence: &Fence) -> Vec<Planned> {
    let cluster = &input.cluster;
    let old = cluster.full_name(&input.from);
    let cut_off =
        |needed: bool| hook::planned(cluster, Point::Fence, NOTHING, FailStep::FenceHook { needed });
    match fence {
        Fence::ShutOut => {
            let text = "shut out: nothing starts it, and what is left of it is stopped";
            let of = FailStep::ShutOut { node: input.from.clone() };
            let mut out = step(Sign::Disrupt, old, text, "may be started again", of);
            out.impact = Some("whoever is still connected to it is cut off".to_owned());
            vec![out]
        }
        Fence::Starve { nodes, need } => {
            let names: Vec<String> = nodes.iter().map(|node| cluster.full_name(node)).collect();
            let text = format!("no commit of it ends: {need} of {} confirm nothing", names.join(", "));
            let of = FailStep::Starve { nodes: nodes.clone(), need: *need };
            let starved = step(Sign::Look, old, text, NOTHING, of);
            std::iter::once(starved).chain(cut_off(false)).collect()
        }
        Fence::Hook => cut_off(true).into_iter().collect(),
        Fence::Statement { said } => {
            let text = format!("takes no writes, by the operator's word: {said}");
            vec![step(Sign::Look, old, text, NOTHING, FailStep::Statement { said: said.clone() })]
        }
    }
}

fn missing_slots(input: &Input, slots: &[Slot]) -> Vec<Planned> {
    let cluster = &input.cluster;
    let there = |slot: &String| {
        slots.iter().any(|is| is.name == *slot && is.kind == SlotKind::Physical && !is.is_lost())
    };
    let wanted = input.siblings.iter().map(|node| cluster.slot_name(node)).filter(|slot| !there(slot));
    wanted
        .map(|slot| {
            let text = format!("slot {slot}");
            let of = FailStep::Slot { on: input.to.clone(), slot };
            step(Sign::Create, cluster.full_name(&input.to), text, "drop it", of)
        })
        .collect()
}

/// What comes when there is only forward: first what clients wait for.
fn afterwards(input: &Input, hosts: &[String]) -> Vec<Vec<Planned>> {
    let cluster = &input.cluster;
    let name = |node: &str| cluster.full_name(node);
    let new = name(&input.to);
    let follow = |node: &String| {
        let of = FailStep::Follow { node: node.clone() };
        step(Sign::Change, name(node), format!("follow {new}"), "none", of)
    };
    let on_poolers = |text: &str, of: fn(String) -> FailStep| -> Vec<Planned> {
        let one = |host: &String| step(Sign::Change, POOLER.to_owned(), text, "none", of(host.clone()));
        hosts.iter().map(one).collect()
    };
    let settle = FailStep::Settle { node: input.to.clone() };
    let text = "its own settings, checkpoint of the new timeline";
    let mut settled = vec![step(Sign::Change, new.clone(), text, "none", settle)];
    settled.extend(input.siblings.iter().map(|node| {
        let of = FailStep::Streams { node: node.clone() };
        step(Sign::Change, name(node), format!("stream from {new}"), "none", of)
    }));
    let mut first: Vec<Planned> = input.siblings.iter().map(follow).collect();
    // All that clients wait for goes side by side: a commit that came before its standby waits for it.
    let text = format!("lead {} to {new}", cluster.name);
    first.extend(on_poolers(&text, |host| FailStep::Turn { host }));
    let asked = FailStep::Hook { point: Point::AfterPromote };
    first.extend(hook::planned(cluster, Point::AfterPromote, "none", asked));
    let mut stages = vec![first, settled];
    if cluster.backups.is_some() {
        let record = FailStep::Record { node: input.to.clone() };
        let text = format!("{new} is primary in the repository's record");
        stages.push(vec![step(Sign::Change, cluster.name.clone(), text, "none", record)]);
    }
    stages.push(on_poolers("every alias to where the nodes are now", |host| FailStep::Lead { host }));
    if cluster.backups.is_some() {
        let backfill = FailStep::Backfill { node: input.to.clone() };
        let text = format!("archive what {} had not archived", name(&input.from));
        stages.push(vec![step(Sign::Change, new.clone(), text, "none", backfill)]);
        let archive = FailStep::Archive { node: input.to.clone() };
        stages.push(vec![step(Sign::Look, new, "the archive goes on, without a gap", "none", archive)]);
    }
    let text =
        if input.siblings.is_empty() { "write a row" } else { "write a row and read it on every standby" };
    let prove = FailStep::Prove { nodes: input.siblings.clone() };
    stages.push(vec![step(Sign::Look, cluster.name.clone(), text, "none", prove)]);
    let mut left = Vec::new();
    if hook::of(cluster, Point::AfterPromote).is_some() {
        let done = FailStep::Hooked { point: Point::AfterPromote };
        left.push(step(Sign::Look, "hook".to_owned(), "after-promote is done", "none", done));
    }
    stages.push(left);
    let last = FailStep::Hooked { point: Point::AfterFailover };
    stages.push(hook::planned(cluster, Point::AfterFailover, "none", last).into_iter().collect());
    stages
}
