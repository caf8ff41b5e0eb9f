//! Who is primary, whether every declared standby streams, and how far behind it is.

use super::super::asked::{Asked, Why};
use super::super::report::{Finding, Status, Subject};
use super::super::seen::{NodeSeen, Position, Seen};
use super::{Of, command, limits, limits_or, to_f64};
use crate::db::health::wal::{Pause, Replay};
use crate::db::queries::ServerRole;
use crate::ops::observe::{NodeObserved, Running};
use crate::ops::roles::Lead;
use crate::topology::checks::{Check, Limits, Measure};
use crate::topology::model::{Node, PoolTarget};
use crate::units::ByteCount;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = vec![primary(seen), subscriptions(seen)];
    for (node, observed, asked) in seen.each() {
        // Who is primary has no upstream; who does not answer may be either.
        if seen.primary().is_some_and(|primary| primary.node == node.name) {
            continue;
        }
        found.push(streams(seen, node, observed, asked));
        let behind = behind(seen, node, observed, asked);
        found.push(lag(seen, node, &behind, asked));
        found.push(lag_bytes(seen, node, &behind));
        found.extend(receiver(seen, node, observed, asked));
        found.push(replay(seen, node, asked));
    }
    found
}

/// Exactly one node accepts writes. An unreachable one is no proof that there is none.
fn primary(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Primary);
    let says = |status, text: String| of.says(Subject::Cluster, status, text);
    match &seen.lead {
        Lead::Primary(name) => says(Status::Ok, format!("{name} is primary")),
        Lead::Split(names) => {
            let parts = seen.split.as_ref().map_or_else(String::new, |split| {
                let sides = split.sides.iter().map(|side| format!("; {}: {}", side.node, side.tell()));
                format!("; {}{}", split.fork(), sides.collect::<String>())
            });
            let text = format!("{} are primaries at the same time{parts}", names.join(" and "));
            says(Status::Critical, text)
                .next("keep clients away, decide which one is right, then fence the other: pgherd fence NODE")
        }
        Lead::StoppedPrimary(name) => says(Status::Critical, format!("the primary {name} is stopped"))
            .next(command(seen.cluster, "plan")),
        Lead::Unborn => says(Status::Critical, "the cluster is not there yet".to_owned())
            .next(command(seen.cluster, "plan")),
        Lead::Unknown { why } => says(Status::Unknown, why.clone()).next(command(seen.cluster, "status -v")),
    }
}

/// A declared standby streams. It is known by its name, not by its address.
fn streams(seen: &Seen<'_>, node: &Node, observed: &NodeObserved, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Standbys);
    let subject = Subject::Node(node.name.clone());
    let Some(running) = observed.running() else { return of.unknown(subject, &Why::NotUp) };
    let says = |status, text: String| of.says(subject.clone(), status, text);
    // The row of a receiver is full of NULLs for a role that may not see it.
    if let (true, Err(why)) = (hidden(running), &asked.replay) {
        return of.unknown(subject, why);
    }
    match &running.facts.role {
        ServerRole::Primary { .. } => {
            says(Status::Critical, "it is a primary and receives nothing".to_owned())
        }
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming" => {
            let slot = receiver.slot.as_deref().map(|slot| format!(" from slot {slot}")).unwrap_or_default();
            says(Status::Ok, format!("streams{slot}"))
        }
        ServerRole::Standby { receiver: Some(receiver), .. } => {
            says(Status::Critical, format!("its WAL receiver is {}", receiver.status))
        }
        ServerRole::Standby { receiver: None, .. } => {
            says(Status::Critical, "it has no WAL receiver".to_owned())
        }
    }
    .next(command(seen.cluster, "plan"))
}

/// Tells whether there is a WAL receiver of which the role that asks sees nothing.
pub(super) fn hidden(running: &Running) -> bool {
    match &running.facts.role {
        ServerRole::Standby { receiver: Some(receiver), .. } => receiver.status.is_empty(),
        ServerRole::Standby { receiver: None, .. } | ServerRole::Primary { .. } => false,
    }
}

/// How far behind a standby is, and by what that is known.
#[derive(Debug, Clone, PartialEq)]
struct Behind {
    bytes: ByteCount,
    seconds: f64,
    source: Source,
    /// `recovery_min_apply_delay`: so many of the seconds are on purpose.
    delay_seconds: f64,
}

/// By what the seconds are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Nothing is missing.
    Nothing,
    /// What was missing at one moment was there at the next.
    TwoLooks,
    /// What the walsender has measured.
    ReplayLag,
    /// Since the primary told of WAL that is still missing.
    Known,
    /// Since the commit of the last transaction that was replayed.
    LastReplayed,
    /// Since the last sign of the primary.
    LastSign,
}

impl Source {
    const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing is missing",
            Self::TwoLooks => "at most, all of it was there at the next look",
            Self::ReplayLag => "replay_lag of pg_stat_replication",
            Self::Known => "time since the primary told of what is missing",
            Self::LastReplayed => "age of the last transaction that was replayed",
            Self::LastSign => "time since its last sign of the primary",
        }
    }
}

/// Measures how far behind a standby is (facts/health.md A2).
///
/// Bytes: what it had replayed before the primary was asked, and what the primary had flushed then. Seconds: none where nothing is missing,
/// whatever the clock says, but for a standby that receives nothing: it cannot know. Never "0" where the primary cannot be asked.
fn behind(seen: &Seen<'_>, node: &Node, observed: &NodeObserved, asked: &NodeSeen) -> Asked<Behind> {
    let failed = |text: &str| Err(Why::Failed(text.to_owned()));
    let running = observed.running().ok_or(Why::NotUp)?;
    let ServerRole::Standby { receiver, .. } = &running.facts.role else {
        return failed("it is a primary: nothing says what it is behind");
    };
    let Some((_, primary)) = seen.primary_asked() else { return failed("the primary is not known") };
    let (end, first, again) = (primary.position.clone()?, asked.position.clone()?, asked.again.clone()?);
    let replay = asked.replay.as_ref().map_err(Clone::clone)?;
    let Some(replay) = replay else { return failed("it has become a primary meanwhile") };
    let (Some(replayed), Some(flushed)) = (first.lsn, end.lsn) else {
        return failed("it has replayed nothing since it started");
    };
    let bytes = replayed.lag_behind(flushed);
    let is = |seconds: f64, source| {
        Ok(Behind { bytes, seconds: seconds.max(0.0), source, delay_seconds: replay.delay_seconds })
    };
    if receiver.as_ref().is_none_or(|receiver| receiver.status != "streaming") {
        return match replay.silent_seconds.or(replay.last_replayed_seconds) {
            Some(seconds) => is(seconds, Source::LastSign),
            None => failed("it receives nothing, and never did"),
        };
    }
    if bytes.0 == 0 {
        return is(0.0, Source::Nothing);
    }
    if again.lsn.is_some_and(|lsn| lsn >= flushed) {
        return is(again.received.duration_since(end.sent).as_secs_f64(), Source::TwoLooks);
    }
    let name = seen.cluster.full_name(&node.name);
    let senders = primary.senders.as_ref().map_err(Clone::clone)?;
    let sender = senders.iter().find(|sender| sender.application_name == name && sender.state != "backup");
    let passed = again.sent.duration_since(end.received).as_secs_f64().max(0.0);
    let (seconds, source) = late(
        replay,
        sender.and_then(|sender| sender.replay_lag_seconds),
        sender.is_some_and(|sender| sender.state == "streaming"),
        &again,
    )
    .ok_or_else(|| Why::Failed(format!("{bytes} behind, for a time that is not known")))?;
    is(seconds.max(passed), source)
}

/// Since when a standby misses what it has not replayed, although the primary had it a moment ago.
///
/// `replay_lag` does not grow while replay is paused, and is NULL where a standby had replayed everything until now: then the last
/// commit that was replayed may be hours old on an idle primary, and what is missing is no older than the primary's first word of it.
fn late(replay: &Replay, replay_lag: Option<f64>, streaming: bool, at: &Position) -> Option<(f64, Source)> {
    let last = replay.last_replayed_seconds.map(|seconds| (seconds, Source::LastReplayed));
    let known = match (replay.known_seconds, replay.known_lsn, at.lsn) {
        (Some(seconds), Some(known), Some(lsn)) if lsn < known => Some((seconds, Source::Known)),
        // It has replayed all that it was told of: the rest is newer than the last message.
        _ => replay.silent_seconds.map(|seconds| (seconds, Source::Known)),
    };
    match (replay.pause, replay_lag) {
        (Pause::Paused, Some(lag)) => last.filter(|last| last.0 > lag).or(Some((lag, Source::ReplayLag))),
        (Pause::Paused, None) => last.or(known),
        (Pause::Not | Pause::Requested, Some(lag)) => Some((lag, Source::ReplayLag)),
        (Pause::Not | Pause::Requested, None) if streaming => match (known, last) {
            (Some(known), Some(last)) => Some(if known.0 <= last.0 { known } else { last }),
            (known, last) => known.or(last),
        },
        (Pause::Not | Pause::Requested, None) => last.or(known),
    }
}

fn lag(seen: &Seen<'_>, node: &Node, behind: &Asked<Behind>, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Lag);
    of.told(Subject::Node(node.name.clone()), behind, |subject, behind| {
        let delay = behind.delay_seconds;
        let mut text = if behind.source == Source::Nothing {
            "nothing is missing".to_owned()
        } else {
            let seconds = Measure::Time.written(behind.seconds);
            format!("{seconds} behind ({}; {})", behind.bytes, behind.source.words())
        };
        if delay > 0.0 {
            text = format!("{text}, of which {} on purpose", Measure::Time.written(delay));
        }
        let moves = moves(seen, &node.name, asked).filter(|_| behind.bytes.0 > 0);
        if let Some(moves) = moves {
            text = match moves {
                Moves::Stuck { seconds } => format!("{text}, stuck for {}", Measure::Time.written(seconds)),
                Moves::Replays { rate } => format!("{text}, replays {}/s", Measure::Size.written(rate)),
            };
        }
        let primary = seen.primary().and_then(NodeObserved::running);
        let default = primary.map_or(Check::Lag.limits(), |primary| lag_limits(seen, node, primary));
        let Limits { warn, crit } = limits_or(seen.cluster, Some(node), Check::Lag, default);
        let limits = Limits { warn: warn.map(|warn| warn + delay), crit: crit.map(|crit| crit + delay) };
        let finding = of.measures(subject, behind.seconds, limits, text);
        let stuck = matches!(moves, Some(Moves::Stuck { .. })) && delay == 0.0;
        if stuck { finding.at_least(Status::Warning) } else { finding }.next(command(seen.cluster, "status"))
    })
}

/// Whether a standby that is behind has replayed anything since the look before this one.
#[derive(Debug, Clone, Copy)]
enum Moves {
    Stuck {
        seconds: f64,
    },
    /// In bytes a second.
    Replays {
        rate: f64,
    },
}

fn moves(seen: &Seen<'_>, node: &str, asked: &NodeSeen) -> Option<Moves> {
    let before = seen.before.as_ref().filter(|before| before.at < seen.at)?;
    let stood = before.nodes.get(node)?.replayed_lsn?;
    let replayed = asked.again.as_ref().ok()?.lsn?;
    let seconds = seen.at.duration_since(before.at).as_secs_f64();
    Some(if stood >= replayed {
        Moves::Stuck { seconds }
    } else {
        Moves::Replays { rate: to_f64(stood.lag_behind(replayed).0) / seconds }
    })
}

fn lag_bytes(seen: &Seen<'_>, node: &Node, behind: &Asked<Behind>) -> Finding {
    let of = Of::new(seen.cluster, Check::LagBytes);
    of.told(Subject::Node(node.name.clone()), behind, |subject, behind| {
        let text = format!("{} behind", behind.bytes);
        if behind.delay_seconds > 0.0 {
            return of.says(subject, Status::Ok, format!("{text}, on purpose: recovery_min_apply_delay"));
        }
        let limits = limits(seen.cluster, Some(node), Check::LagBytes);
        of.measures(subject, to_f64(behind.bytes.0), limits, text).next(command(seen.cluster, "status"))
    })
}

/// A receiver that says "streaming" and hears nothing: the sender speaks every 30 s even if nothing is written. That there is none at all is
/// told by [`Check::Standbys`].
fn receiver(seen: &Seen<'_>, node: &Node, observed: &NodeObserved, asked: &NodeSeen) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Receiver);
    let subject = Subject::Node(node.name.clone());
    match observed.running().map(|running| &running.facts.role) {
        Some(ServerRole::Primary { .. } | ServerRole::Standby { receiver: None, .. }) => return None,
        Some(ServerRole::Standby { receiver: Some(_), .. }) | None => {}
    }
    Some(of.told(subject, &asked.replay, |subject, replay| {
        match replay.as_ref().and_then(|replay| replay.silent_seconds) {
            None => of.says(subject, Status::Unknown, "it has received nothing yet"),
            Some(silent) => {
                let silent = silent.max(0.0);
                let text = format!("heard of the primary {} ago", Measure::Time.written(silent));
                of.measures(subject, silent, limits(seen.cluster, Some(node), Check::Receiver), text)
                    .next("see whether the network between both is cut: wal_receiver_timeout ends it")
            }
        }
    }))
}

/// One that is behind on purpose (`recovery_min_apply_delay`) is not paused.
fn replay(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Replay);
    of.told(Subject::Node(node.name.clone()), &asked.replay, |subject, replay| {
        let word = match replay.as_ref().map(|replay| replay.pause) {
            None | Some(Pause::Not) => return of.says(subject, Status::Ok, "it is not paused"),
            Some(Pause::Requested) => "it is about to be paused",
            Some(Pause::Paused) => "it is paused",
        };
        let limits = limits(seen.cluster, Some(node), Check::Replay);
        match replay.as_ref().and_then(|replay| replay.last_replayed_seconds) {
            None => of.says(subject, Status::Warning, word),
            Some(seconds) => {
                let seconds = seconds.max(0.0);
                let age = Measure::Time.written(seconds);
                of.measures(subject, seconds, limits, format!("{word}, its last transaction {age} old"))
            }
        }
        .next(format!("on {}: SELECT pg_wal_replay_resume()", node.name))
    })
}

/// Errors count until their counters are reset; a worker that does not run is tried again every few seconds.
fn subscriptions(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Subscriptions);
    of.of_primary(seen, |_, asked| {
        of.told(Subject::Cluster, &asked.subscriptions, |subject, subscriptions| {
            let Some(worst) =
                subscriptions.iter().max_by_key(|one| (!one.running, one.errors.unwrap_or(0)))
            else {
                return of.says(subject, Status::Ok, "none is enabled");
            };
            let errors = worst.errors.unwrap_or(0);
            let (name, database) = (&worst.name, &worst.database);
            if worst.running {
                let text = format!("{name} in {database} has had {errors} errors");
                return of
                    .measures(subject, to_f64(errors), limits(seen.cluster, None, Check::Subscriptions), text)
                    .next(format!(
                        "in {database}, once mended: SELECT pg_stat_reset_subscription_stats(oid) FROM pg_subscription"
                    ));
            }
            of.says(subject, Status::Critical, format!("{name} in {database} does not run"))
                .next("see the server's log for why its worker ends")
        })
    })
}

/// A standby that a commit waits for, or that clients read from, is behind much sooner than one that only waits.
fn lag_limits(seen: &Seen<'_>, node: &Node, primary: &Running) -> Limits {
    let name = seen.cluster.full_name(&node.name);
    let waited_for = primary.senders.iter().any(|sender| {
        sender.application_name == name && matches!(sender.sync_state.as_str(), "sync" | "quorum")
    });
    let declared = seen.cluster.synchronous.as_ref().is_some_and(|rule| rule.of.contains(&node.name));
    let read_from = seen
        .cluster
        .poolers
        .as_ref()
        .is_some_and(|poolers| poolers.pools.iter().any(|pool| pool.to == PoolTarget::Standbys));
    if waited_for || declared || read_from {
        Limits { warn: Some(1.0), crit: Some(5.0) }
    } else {
        Check::Lag.limits()
    }
}
