//! The operator's own programs at named points of a role change.
//!
//! A hook is argv and never a shell line. It may be run more than once: whoever is killed while one runs cannot tell how it ended, so
//! `PGHERD_ATTEMPT` counts, and doing the same twice is the hook's business. What becomes of a failure is the caller's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Host, HostError, LineSink, RunAs};
use crate::ops::observe::Doors;
use crate::ops::plan::step::{PlannedStep, Sign};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::topology::hooks::{Hook, Place};
use crate::topology::model::Cluster;
use crate::units::human_duration;

pub use crate::topology::hooks::Point;

/// How many of the last lines that a hook prints are kept.
const LINES: usize = 8;
/// How much of each of them.
const LETTERS: usize = 300;

/// What a hook is told. Nodes are named as within the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub herd: &'a str,
    /// The kind of the operation, and its id.
    pub kind: &'a str,
    pub operation: &'a str,
    /// How often this hook has been begun in this operation, this time included.
    pub attempt: u32,
    pub old_primary: Option<&'a str>,
    pub new_primary: Option<&'a str>,
    pub system_identifier: Option<SystemIdentifier>,
    /// The timeline of the old primary until the promotion, and of the new one after it.
    pub timeline: Option<TimelineId>,
    /// Where that of the new primary begins; `None` until then.
    pub begins: Option<Lsn>,
}

/// How a hook ended well. Persisted. What it printed is the operator's own: it must not print secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    pub milliseconds: u64,
    /// The last lines that it printed.
    pub said: Vec<String>,
}

/// Finds the hook of a point.
pub fn of(cluster: &Cluster, point: Point) -> Option<&Hook> {
    cluster.hooks.iter().find(|hook| hook.point == point)
}

/// Runs the hook of a point to its end; `None` if there is none.
///
/// # Errors
/// When it cannot be started, ends with another status than 0, or is not done in its time: then it was killed with what it had started.
/// The error says what it printed.
pub async fn run(doors: &Doors, cluster: &Cluster, point: Point, facts: &Facts<'_>) -> Result<Option<Ran>> {
    let Some(hook) = of(cluster, point) else { return Ok(None) };
    let host = door(doors, cluster, hook, (facts.old_primary, facts.new_primary))?;
    let mut command = Command::new(&hook.program).args(hook.args.iter().cloned()).user(RunAs::Caller);
    command.timeout = hook.timeout;
    command.env = environment(cluster, hook, facts);
    let said: Arc<Mutex<VecDeque<String>>> = Arc::default();
    let sink: LineSink = {
        let said = Arc::clone(&said);
        Arc::new(move |_, line| {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() == LINES {
                said.pop_front();
            }
            said.push_back(printable(line));
        })
    };
    let begun = Instant::now();
    let ended = host.stream(&command, sink).await;
    let took = begun.elapsed();
    let said: Vec<String> = said.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
    match ended {
        Ok(_) => {
            let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            Ok(Some(Ran { milliseconds, said }))
        }
        Err(error) => Err(failed(hook, &error, &said)),
    }
}

fn failed(hook: &Hook, error: &HostError, said: &[String]) -> Error {
    let (point, program) = (hook.point.word(), hook.program.display());
    let printed = if said.is_empty() {
        "It printed nothing.".to_owned()
    } else {
        format!("It printed: {}", said.join(" | "))
    };
    let (what, detail) = match error {
        HostError::NotStarted { why, .. } => {
            (format!("could not start the hook {point}, {program}"), format!("{why}."))
        }
        HostError::Exited { status, .. } => {
            (format!("the hook {point}, {program}, ended with status {status}"), printed)
        }
        HostError::Lost { why, .. } => {
            (format!("how the hook {point}, {program}, ended is unknown"), format!("{why}. {printed}"))
        }
        HostError::File { why, .. } => {
            (format!("could not run the hook {point}, {program}"), format!("{why}."))
        }
    };
    Error::failed(what).detail(detail)
}

/// Leaves out what a terminal would obey, and what is too long.
fn printable(line: &str) -> String {
    let mut kept: String = line.chars().filter(|c| !c.is_control()).take(LETTERS).collect();
    if line.chars().count() > LETTERS {
        kept.push('…');
    }
    kept
}

/// Everything that a hook finds in its environment; what is not known is there and empty.
fn environment(cluster: &Cluster, hook: &Hook, facts: &Facts<'_>) -> Vec<(String, String)> {
    let poolers = cluster.poolers.iter().flat_map(|poolers| {
        poolers.hosts.iter().map(|host| format!("{}:{}", cluster.address(host), poolers.port))
    });
    let text = |value: Option<String>| value.unwrap_or_default();
    let mut all: Vec<(String, String)> = [
        ("POINT", hook.point.word().to_owned()),
        ("KIND", facts.kind.to_owned()),
        ("OPERATION", facts.operation.to_owned()),
        ("ATTEMPT", facts.attempt.to_string()),
        ("HERD", facts.herd.to_owned()),
        ("CLUSTER", cluster.name.clone()),
        ("SYSTEM_IDENTIFIER", text(facts.system_identifier.map(|identifier| identifier.to_string()))),
        ("TIMELINE", text(facts.timeline.map(|timeline| timeline.to_string()))),
        ("LSN", text(facts.begins.map(|lsn| lsn.to_string()))),
        ("POOLERS", poolers.collect::<Vec<_>>().join(" ")),
    ]
    .map(|(name, value)| (format!("PGHERD_{name}"), value))
    .into();
    for (role, node) in [("OLD_PRIMARY", facts.old_primary), ("NEW_PRIMARY", facts.new_primary)] {
        let node = node.and_then(|name| cluster.node(name));
        all.extend([
            (format!("PGHERD_{role}"), text(node.map(|node| cluster.full_name(&node.name)))),
            (format!("PGHERD_{role}_HOST"), text(node.map(|node| node.host.clone()))),
            (format!("PGHERD_{role}_ADDRESS"), text(node.map(|node| cluster.address(&node.host).to_owned()))),
            (format!("PGHERD_{role}_PORT"), text(node.map(|node| node.port.to_string()))),
        ]);
    }
    all
}

fn door<'d>(
    doors: &'d Doors,
    cluster: &Cluster,
    hook: &Hook,
    (old, new): (Option<&str>, Option<&str>),
) -> Result<&'d dyn Host> {
    let node = match &hook.on {
        Place::Station => return Ok(doors.own()),
        Place::Host(host) => return Ok(doors.host(host)),
        Place::OldPrimary => old,
        Place::NewPrimary => new,
    };
    let node = node.and_then(|name| cluster.node(name));
    node.map(|node| doors.host(&node.host)).ok_or_else(|| {
        Error::refused(format!(
            "cannot run the hook {}: there is no {} yet",
            hook.point.word(),
            hook.on.word()
        ))
        .hint("Give it another place: on: station, or a host.")
    })
}

/// Sees that the programs of these points are where they are to be run; returns everything that is missing.
pub async fn missing(
    doors: &Doors,
    cluster: &Cluster,
    points: &[Point],
    nodes: (Option<&str>, Option<&str>),
) -> Vec<Error> {
    let mut missing = Vec::new();
    for hook in points.iter().filter_map(|point| of(cluster, *point)) {
        let host = match door(doors, cluster, hook, nodes) {
            Ok(host) => host,
            Err(error) => {
                missing.push(error);
                continue;
            }
        };
        let program = hook.program.to_string_lossy();
        let look =
            Command::new("test").args(["-f", &program, "-a", "-x", &program]).user(RunAs::Caller).reads();
        let what = format!("cannot run the hook {}", hook.point.word());
        match host.run(&look).await {
            Ok(_) => {}
            Err(HostError::Exited { .. }) => missing.push(
                Error::refused(format!("{what}: {program} is not a program"))
                    .detail(format!(
                        "On {}, {} finds no file there that may be run. Nothing was changed.",
                        place(hook, host),
                        host.caller()
                    ))
                    .hint("Put it there and make it executable, or take the hook out of the topology."),
            ),
            Err(error) => {
                missing.push(
                    Error::new(ErrorKind::NotFound, format!("{what}: could not look for {program}"))
                        .source(error),
                );
            }
        }
    }
    missing
}

fn place(hook: &Hook, host: &dyn Host) -> String {
    match hook.on {
        Place::Station => "this machine".to_owned(),
        Place::OldPrimary | Place::NewPrimary | Place::Host(_) => format!("host {}", host.name()),
    }
}

/// Makes the line of a plan for the hook of a point; `None` if there is none.
pub fn planned<S>(cluster: &Cluster, point: Point, undo: &str, step: S) -> Option<PlannedStep<S>> {
    let hook = of(cluster, point)?;
    let on = match &hook.on {
        Place::Station => "here".to_owned(),
        on @ (Place::OldPrimary | Place::NewPrimary | Place::Host(_)) => format!("on {}", on.word()),
    };
    Some(PlannedStep {
        sign: Sign::Change,
        subject: "hook".to_owned(),
        text: format!(
            "{}: {} {on}, at most {}",
            point.word(),
            hook.program.display(),
            human_duration(hook.timeout)
        ),
        reason: None,
        impact: None,
        undo: undo.to_owned(),
        step,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::gate;
    use crate::topology::load_text;
    use crate::topology::places::Places;

    const FACTS: Facts<'_> = Facts {
        herd: "shop",
        kind: "switchover",
        operation: "7f3a",
        attempt: 2,
        old_primary: Some("a"),
        new_primary: Some("b"),
        system_identifier: None,
        timeline: None,
        begins: None,
    };

    /// A cluster with this under `hooks`, and the script in `script`.
    fn cluster(directory: &Path, script: &str, hooks: &str) -> (Cluster, Doors) {
        let program = directory.join("hook");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{db1: {{address: 127.0.0.1, via: local}}}}}}}}\nclusters:\n  inventory:\n    \
             ports: {{pooler: 6441}}\n    postgres: {{version: 15}}\n    nodes:\n      a: {{host: db1, port: 5441, data-directory: /d/a}}\n      \
             b: {{host: db1, port: 5442, data-directory: /d/b}}\n    poolers: {{hosts: [db1], pools: {{rw: {{to: primary, size: 4}}}}}}\n    \
             hooks: {hooks}\n"
        );
        let herd = load_text(Path::new("pgherd.yml"), &text, directory).unwrap_or_else(|why| panic!("{why}"));
        let cluster = herd.clusters.into_iter().next().unwrap();
        let doors = Doors::open(&cluster, Places::decide(true, |_| None).unwrap(), &gate::open()).unwrap();
        (cluster, doors)
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn a_hook_is_told_everything_in_its_environment_and_nothing_of_ours_leaks_in() {
        let at = directory();
        let (cluster, doors) = cluster(
            at.path(),
            "env | grep ^PGHERD_ | sort; echo \"$1|$2\"",
            "{fence: [./hook, 'a b', '$HOME']}",
        );
        let ran = run(&doors, &cluster, Point::Fence, &FACTS).await.unwrap().unwrap();
        assert_eq!(ran.said.last().unwrap(), "a b|$HOME");
        let seen = environment(&cluster, of(&cluster, Point::Fence).unwrap(), &FACTS);
        let seen: Vec<String> = seen.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            seen,
            [
                "PGHERD_POINT=fence",
                "PGHERD_KIND=switchover",
                "PGHERD_OPERATION=7f3a",
                "PGHERD_ATTEMPT=2",
                "PGHERD_HERD=shop",
                "PGHERD_CLUSTER=inventory",
                "PGHERD_SYSTEM_IDENTIFIER=",
                "PGHERD_TIMELINE=",
                "PGHERD_LSN=",
                "PGHERD_POOLERS=127.0.0.1:6441",
                "PGHERD_OLD_PRIMARY=inventory-a",
                "PGHERD_OLD_PRIMARY_HOST=db1",
                "PGHERD_OLD_PRIMARY_ADDRESS=127.0.0.1",
                "PGHERD_OLD_PRIMARY_PORT=5441",
                "PGHERD_NEW_PRIMARY=inventory-b",
                "PGHERD_NEW_PRIMARY_HOST=db1",
                "PGHERD_NEW_PRIMARY_ADDRESS=127.0.0.1",
                "PGHERD_NEW_PRIMARY_PORT=5442",
            ]
        );
        // The last lines are kept, so the last variables in the order of the alphabet.
        assert_eq!(ran.said.len(), LINES);
        assert_eq!(ran.said[LINES - 2], "PGHERD_TIMELINE=");
        assert_eq!(run(&doors, &cluster, Point::AfterPromote, &FACTS).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_hook_that_fails_is_told_with_what_it_printed() {
        let at = directory();
        let (cluster, doors) = cluster(
            at.path(),
            "echo one; printf 'two\\033[31m\\n' >&2; exit 3",
            "{before-promote: [./hook]}",
        );
        let error = run(&doors, &cluster, Point::BeforePromote, &FACTS).await.unwrap_err();
        assert_eq!(
            error.what(),
            format!("the hook before-promote, {}, ended with status 3", at.path().join("hook").display())
        );
        let detail = error.detail_text().unwrap();
        assert!(detail == "It printed: one | two[31m" || detail == "It printed: two[31m | one", "{detail}");
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_killed_with_what_it_has_started() {
        let at = directory();
        let mark = at.path().join("mark");
        let script = format!("(sleep 1; touch {}) & echo waiting; wait", mark.display());
        let (cluster, doors) = cluster(at.path(), &script, "{fence: {run: [./hook], timeout: 300 ms}}");
        let error = run(&doors, &cluster, Point::Fence, &FACTS).await.unwrap_err();
        assert!(error.what().starts_with("how the hook fence, "), "{error}");
        let detail = error.detail_text().unwrap();
        assert!(detail.contains("was killed") && detail.contains("It printed: waiting"), "{detail}");
        // What it had started would have left a mark by then.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(!mark.exists());
    }

    #[tokio::test]
    async fn what_is_not_there_is_missed_before_anything_is_done() {
        let at = directory();
        let hooks =
            "{before-promote: [./hook], after-promote: {run: [./none], on: new-primary}, fence: [/etc, x]}";
        let (cluster, doors) = cluster(at.path(), "", hooks);
        let points = [Point::BeforePromote, Point::AfterPromote, Point::Fence, Point::AfterUndo];
        let found = missing(&doors, &cluster, &points, (Some("a"), Some("b"))).await;
        let told: Vec<&str> = found.iter().map(Error::what).collect();
        let none = format!(
            "cannot run the hook after-promote: {} is not a program",
            at.path().join("none").display()
        );
        assert_eq!(told, [none.as_str(), "cannot run the hook fence: /etc is not a program"]);
        let found = missing(&doors, &cluster, &[Point::AfterPromote], (Some("a"), None)).await;
        assert_eq!(found[0].what(), "cannot run the hook after-promote: there is no new-primary yet");
    }
}
