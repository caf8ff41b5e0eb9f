//! WAL archiving: the program that the servers call, the repository, what a node knows of both, and the proof.

use crate::error::{Error, ErrorKind};
use crate::ops::binary::{self, Installed};
use crate::ops::builds::Copy;
use crate::ops::observe::{Files, NodeObserved};
use crate::ops::plan::step::{ApplyStep, FileChange, PlannedStep, Sign};
use crate::ops::plan::{
    AccessSeen, ArchiveHost, ArchiveSeen, ClusterPlan, Reached, RecordSeen, RepositorySeen, SHARE, Situation,
};
use crate::ops::roles;
use crate::repo::primary::Primary;
use crate::topology::claim::{self, Archive, Peer, Profile};
use crate::topology::declared;
use crate::topology::model::{Backups, Node, Repository};
use crate::units::ByteCount;

/// Adds what archiving needs before a server is told of it: on each host the program, then the repositories.
pub(super) fn prepare(situation: &Situation<'_>, plan: &mut ClusterPlan) {
    let Some((seen, backups)) = declared(situation) else { return };
    plan.stages.push(seen.hosts.iter().filter_map(|(host, at)| install(situation, seen, host, at)).collect());
    plan.stages.push(
        reached(seen, backups)
            .filter_map(|(repository, host, at)| access(situation, repository, host, at))
            .collect(),
    );
    // One host makes a repository, the others see that it is the same one.
    plan.stages.extend(reached(seen, backups).filter_map(|(declared, host, at)| match at.repository {
        _ if is_lost(situation, declared, at) => None,
        RepositorySeen::Missing { directory } => Some(vec![repository(host, declared, directory)]),
        // Whoever archives there knows that it is there.
        RepositorySeen::NoAccess if !is_in_use(situation, declared) => {
            Some(vec![repository(host, declared, false)])
        }
        RepositorySeen::NoAccess
        | RepositorySeen::Ready { .. }
        | RepositorySeen::Foreign { .. }
        | RepositorySeen::Overlaps { .. }
        | RepositorySeen::Unknown { .. } => None,
    }));
}

fn declared<'a>(situation: &Situation<'a>) -> Option<(&'a ArchiveSeen, &'a Backups)> {
    situation.archive.zip(situation.cluster.backups.as_ref())
}

/// Returns each repository with each host and how it is seen there.
fn reached<'a>(
    seen: &'a ArchiveSeen,
    backups: &'a Backups,
) -> impl Iterator<Item = (&'a Repository, &'a str, &'a Reached)> {
    backups.repositories().enumerate().flat_map(|(number, repository)| {
        seen.hosts
            .iter()
            .filter_map(move |(host, at)| Some((repository, host.as_str(), at.repositories.get(number)?)))
    })
}

/// A repository that nodes archive to and that is not there is not made anew: a disk may only not be mounted.
fn is_lost(situation: &Situation<'_>, repository: &Repository, at: &Reached) -> bool {
    match &at.repository {
        RepositorySeen::Missing { .. } | RepositorySeen::Unknown { .. } => is_in_use(situation, repository),
        RepositorySeen::NoAccess
        | RepositorySeen::Ready { .. }
        | RepositorySeen::Foreign { .. }
        | RepositorySeen::Overlaps { .. } => false,
    }
}

/// Tells whether a node archives to a repository.
fn is_in_use(situation: &Situation<'_>, repository: &Repository) -> bool {
    let archives = situation
        .observed
        .nodes
        .iter()
        .filter_map(|node| node.profile.as_ref().and_then(|profile| profile.archive.as_ref()));
    let mut urls = archives
        .flat_map(|archive| std::iter::once(&archive.url).chain(archive.copies.iter().map(|copy| &copy.url)));
    urls.any(|url| *url == repository.url)
}

/// Brings a host what it takes to open the repository.
fn access(
    situation: &Situation<'_>,
    repository: &Repository,
    host: &str,
    at: &Reached,
) -> Option<PlannedStep> {
    let (sign, existed, reason) = match at.access {
        AccessSeen::NotNeeded | AccessSeen::Right => return None,
        AccessSeen::Missing => (Sign::Create, false, None),
        AccessSeen::Differs => (
            Sign::Change,
            true,
            Some("it has other credentials, or another way to the server, than declared".to_owned()),
        ),
    };
    let file = situation.places_on(host).access(repository).unwrap_or_default();
    Some(PlannedStep {
        sign,
        subject: host.to_owned(),
        text: format!(
            "access to repository {}, into {}, tried before it is used",
            repository.name,
            file.display()
        ),
        reason,
        impact: None,
        undo: if existed { "none; what was seen to open the repository stays" } else { "remove the file" }
            .to_owned(),
        step: ApplyStep::Access {
            host: host.to_owned(),
            name: repository.name.clone(),
            url: repository.url.clone(),
            existed,
        },
    })
}

fn install(
    situation: &Situation<'_>,
    seen: &ArchiveSeen,
    host: &str,
    at: &ArchiveHost,
) -> Option<PlannedStep> {
    let places = situation.places_on(host);
    let lib = places.lib().display();
    let (before, reason) = match &at.installed {
        Installed::Build { hash } if *hash == seen.hash => return None,
        Installed::Missing | Installed::Foreign => (None, None),
        Installed::Build { hash } => {
            (Some(binary::target(hash)), Some(format!("{lib}/pgherd is {hash}, another build")))
        }
        Installed::Other { target } => (
            Some(target.clone()),
            Some(format!("{lib}/pgherd leads to {target}, which is no copy of pgherd")),
        ),
    };
    Some(PlannedStep {
        sign: if before.is_some() { Sign::Change } else { Sign::Create },
        subject: host.to_owned(),
        text: format!("install pgherd {} ({}) in {lib}", seen.version, seen.hash),
        reason,
        impact: None,
        undo: "the link as it was; the copy stays".to_owned(),
        step: ApplyStep::Install {
            host: host.to_owned(),
            version: seen.version.clone(),
            hash: seen.hash.clone(),
            before,
        },
    })
}

/// Says where a repository is: a path, or a URL.
fn place(repository: &Repository) -> &str {
    repository.url.strip_prefix("file://").unwrap_or(&repository.url)
}

fn repository(host: &str, repository: &Repository, directory_existed: bool) -> PlannedStep {
    PlannedStep {
        sign: Sign::Create,
        subject: host.to_owned(),
        text: format!(
            "repository {} in {}, write to it and read it back",
            repository.name,
            place(repository)
        ),
        reason: None,
        impact: None,
        undo: "remove it (nobody has used it)".to_owned(),
        step: ApplyStep::Repository {
            host: host.to_owned(),
            name: repository.name.clone(),
            url: repository.url.clone(),
            directory_existed,
        },
    }
}

/// Tells whether a step changes how WAL gets into the repository, so that it must be shown that it still does.
pub(super) fn changes(step: &ApplyStep) -> bool {
    const SETTINGS: [&str; 3] = ["archive_mode", "archive_command", "archive_library"];
    match step {
        ApplyStep::Install { .. } | ApplyStep::Repository { .. } | ApplyStep::Access { .. } => true,
        ApplyStep::Configure { files, resets, expect, .. } => {
            let set = |name: &str| SETTINGS.contains(&name);
            let touched = |change: &FileChange| {
                let differs = |name: &str| {
                    let line =
                        |text: &str| text.lines().rfind(|line| line.starts_with(name)).map(str::to_owned);
                    change.before.as_deref().and_then(line) != line(&change.after)
                };
                moves_the_archive(change) || SETTINGS.iter().any(|name| differs(name))
            };
            resets.iter().any(|(name, _)| set(name))
                || expect.iter().any(|(name, _)| set(name))
                || files.iter().any(touched)
        }
        ApplyStep::Adopt { .. }
        | ApplyStep::Initdb { .. }
        | ApplyStep::Unit { .. }
        | ApplyStep::Authority { .. }
        | ApplyStep::Certificate { .. }
        | ApplyStep::Start { .. }
        | ApplyStep::Logins { .. }
        | ApplyStep::Slot { .. }
        | ApplyStep::Clone { .. }
        | ApplyStep::Follow { .. }
        | ApplyStep::Objects { .. }
        | ApplyStep::Archive { .. }
        | ApplyStep::Record { .. }
        | ApplyStep::Open { .. }
        | ApplyStep::Mend { .. }
        | ApplyStep::StagePassword { .. }
        | ApplyStep::RotatePassword { .. }
        | ApplyStep::ForgetPassword { .. }
        | ApplyStep::Keep {}
        | ApplyStep::Pooler { .. }
        | ApplyStep::Prove { .. }
        | ApplyStep::Schedule { .. }
        | ApplyStep::Prune { .. } => false,
    }
}

/// Removes the copies of pgherd that nobody needs any more, when everything else is done: what fails before may lead the link back.
pub(super) fn prune(situation: &Situation<'_>) -> Vec<PlannedStep> {
    let Some((seen, _)) = declared(situation) else { return Vec::new() };
    let unneeded = seen.hosts.iter().filter(|(_, at)| !at.older.is_empty());
    unneeded
        .map(|(host, at)| PlannedStep {
            sign: Sign::Remove,
            subject: host.clone(),
            text: prune_text(&at.older),
            reason: Some("no process, server or operation uses it, and it is not the one before".to_owned()),
            impact: None,
            undo: "none; whoever needs one brings it along".to_owned(),
            step: ApplyStep::Prune {
                host: host.clone(),
                builds: at.older.iter().map(|copy| copy.hash.clone()).collect(),
            },
        })
        .collect()
}

/// `remove 2 older builds of pgherd (8c1f02…, a07b11…, 22 MiB)`
fn prune_text(older: &[Copy]) -> String {
    let short = |copy: &Copy| format!("{}…", copy.hash.chars().take(6).collect::<String>());
    let names: Vec<String> = older.iter().map(short).collect();
    let size = ByteCount(older.iter().map(|copy| copy.size.0).sum());
    let builds =
        if older.len() == 1 { "1 older build".to_owned() } else { format!("{} older builds", older.len()) };
    format!("remove {builds} of pgherd ({}, {size})", super::few(&names))
}

/// Shows that a segment of the primary arrives in each repository.
pub(super) fn prove(situation: &Situation<'_>, primary: &Node) -> Option<Vec<PlannedStep>> {
    let (_, backups) = declared(situation)?;
    let step = |Repository { name, .. }: &Repository| PlannedStep {
        sign: Sign::Look,
        subject: situation.cluster.full_name(&primary.name),
        text: format!("switch the WAL segment, see it arrive in repository {name}"),
        reason: None,
        impact: None,
        undo: "nothing to undo".to_owned(),
        step: ApplyStep::Archive { node: primary.name.clone(), repository: name.clone() },
    };
    Some(backups.repositories().map(step).collect())
}

/// Writes down who is primary, where the record does not say so.
pub(super) fn record(situation: &Situation<'_>, primary: &Node) -> Option<Vec<PlannedStep>> {
    let (seen, backups) = declared(situation)?;
    let lost = |at: &ArchiveHost| is_lost(situation, &backups.repository, &at.repositories[0]);
    if seen.hosts.values().any(lost) {
        return None;
    }
    let node = situation.observed.node(&primary.name);
    let timeline = node.and_then(roles::timeline);
    let system = node.and_then(NodeObserved::control).map(|control| control.system_identifier);
    let (sign, reason) = match &seen.primary {
        RecordSeen::Missing => (Sign::Create, None),
        RecordSeen::Says(found) => {
            let is = system.zip(timeline).map(|(system_identifier, timeline)| Primary {
                system_identifier,
                node: &primary.name,
                timeline,
            });
            if is.is_some_and(|is| found.says(is)) {
                return None;
            }
            let now = timeline.map_or_else(String::new, |timeline| format!(", timeline {timeline}"));
            let says = match system {
                Some(own) if own != found.system_identifier => format!(
                    "{} of an earlier cluster, system identifier {}",
                    found.node, found.system_identifier
                ),
                Some(_) | None => format!("{}, timeline {}", found.node, found.timeline),
            };
            let reason = format!("it says {says} → {}{now}", primary.name);
            (Sign::Change, Some(reason))
        }
        RecordSeen::Unknown { .. } => return None,
    };
    Some(vec![PlannedStep {
        sign,
        subject: situation.cluster.full_name(&primary.name),
        text: format!("record it as primary in repository {}", backups.repository.name),
        reason,
        impact: None,
        undo: "a new record takes the place of this one".to_owned(),
        step: ApplyStep::Record { node: primary.name.clone() },
    }])
}

/// Says that a stopped primary must not be started as one, because another node is recorded as its successor.
pub(super) fn overtaken(situation: &Situation<'_>, primary: &str) -> Option<Error> {
    let (seen, backups) = declared(situation)?;
    let RecordSeen::Says(record) = &seen.primary else { return None };
    let node = situation.observed.node(primary)?;
    let own = roles::timeline(node)?;
    let same = node.control().is_some_and(|control| control.system_identifier == record.system_identifier);
    if !same || record.node == primary || record.timeline < own {
        return None;
    }
    let (name, other) = (situation.cluster.full_name(primary), situation.cluster.full_name(&record.node));
    Some(
        Error::refused(format!("cannot start {name} as a primary: {other} is recorded as primary"))
            .detail(format!(
                "In repository {}, since {:.0} on timeline {}; {name} is on timeline {own}. Nothing was changed.",
                backups.repository.name, record.since, record.timeline
            ))
            .hint(format!(
                "Bring it back as a standby: pgherd rejoin {name}. If {other} is lost for good, start {name} by hand with pg_ctl, \
                 then: pgherd apply"
            )),
    )
}

/// Returns how a node's profile must change for its server's commands to find the repository, and its start guard the other nodes, with the
/// reason.
pub(super) fn profile_change(
    situation: &Situation<'_>,
    node: &Node,
    files: &Files,
) -> Option<(FileChange, String)> {
    let before = files.profile.as_ref()?;
    let profile: Profile = claim::read(before.as_bytes()).ok()?;
    let places = situation.node_places(node);
    let (archive, peers) = (
        Archive::of(situation.cluster, &situation.places_on(&node.host)),
        declared::peers(situation.cluster, node, &places),
    );
    let shown = |archive: &Option<Archive>| {
        let Some(archive) = archive else { return "none".to_owned() };
        let copies = archive.copies.iter().map(|copy| format!(", {} ({})", copy.repository, copy.url));
        format!("{} ({}){}", archive.repository, archive.url, copies.collect::<String>())
    };
    let named = |peers: &[Peer]| match peers {
        [] => "none".to_owned(),
        some => some.iter().map(|peer| peer.node.as_str()).collect::<Vec<_>>().join(", "),
    };
    let mut reasons = Vec::new();
    if profile.archive != archive {
        let (old, new) = (shown(&profile.archive), shown(&archive));
        reasons.push(match old == new {
            true => "where WAL waits on its way to the repository".to_owned(),
            false => format!("repository {old} → {new}"),
        });
    }
    if profile.peers != peers {
        let (old, new) = (named(&profile.peers), named(&peers));
        reasons.push(match old == new {
            true => format!("other nodes {new}, elsewhere than before"),
            false => format!("other nodes {old} → {new}"),
        });
    }
    if reasons.is_empty() {
        return None;
    }
    let after = claim::write(&Profile { archive, peers, ..profile });
    let change = FileChange {
        path: places.profile,
        before: Some(before.clone()),
        after: String::from_utf8(after).expect("JSON is UTF-8"),
    };
    Some((change, format!("profile: {}", reasons.join("; "))))
}

/// Tells whether a change to a profile leads its server's commands elsewhere.
fn moves_the_archive(change: &FileChange) -> bool {
    let archive =
        |text: &str| claim::read::<Profile>(text.as_bytes()).ok().and_then(|profile| profile.archive);
    change.path.ends_with("profile.json")
        && change.before.as_deref().and_then(archive) != archive(&change.after)
}

/// What forbids archiving; each would otherwise show itself in a server's log only.
pub(super) fn obstacles(situation: &Situation<'_>) -> Vec<Error> {
    let Some((seen, backups)) = declared(situation) else { return Vec::new() };
    let mut found = Vec::new();
    for (host, at) in &seen.hosts {
        if at.installed == Installed::Foreign {
            found.push(
                Error::refused(format!(
                    "cannot install pgherd on {host}: {} is not a link",
                    situation.places_on(host).program().display()
                ))
                .detail("Nothing was changed.")
                .hint("Look what it is and move it away, or set PGHERD_LIB_DIR to another directory."),
            );
        }
    }
    found
        .extend(reached(seen, backups).filter_map(|(repository, _, at)| unusable(situation, repository, at)));
    found.extend(backups.repositories().filter_map(|repository| {
        not_shared(situation, repository, || {
            reached(seen, backups).filter(|(of, ..)| of.name == repository.name)
        })
    }));
    found
}

/// Why what is where a repository should be cannot be used as one.
fn unusable(situation: &Situation<'_>, repository: &Repository, at: &Reached) -> Option<Error> {
    let (name, directory) = (&repository.name, place(repository));
    Some(match &at.repository {
        RepositorySeen::Foreign { names } => {
            Error::refused(format!("cannot use {directory} as repository {name}: it is not empty"))
                .detail(format!(
                    "It holds {} and no repository.json that could be read. Nothing was changed.",
                    super::few(names)
                ))
                .hint("Give the repository a directory of its own.")
        }
        RepositorySeen::Overlaps { path } => Error::refused(format!(
            "cannot use {directory} as repository {name}: it overlaps {}",
            path.display()
        ))
        .detail("Whoever loses or removes one of them loses the other. Nothing was changed.")
        .hint("Give the repository a directory of its own, best on another disk."),
        RepositorySeen::Unknown { why } if !is_lost(situation, repository, at) => {
            Error::new(ErrorKind::NotFound, format!("cannot tell whether {directory} is a repository"))
                .detail(format!("{why}. Nothing was changed."))
                .hint("Make it readable for the user that owns the node's files, and try again.")
        }
        RepositorySeen::Unknown { .. }
        | RepositorySeen::Missing { .. }
        | RepositorySeen::NoAccess
        | RepositorySeen::Ready { .. } => return None,
    })
}

/// Each host would keep a part of the WAL, and no restore would find all of it.
fn not_shared<'a, I: Iterator<Item = (&'a Repository, &'a str, &'a Reached)>>(
    situation: &Situation<'_>,
    repository: &Repository,
    hosts: impl Fn() -> I,
) -> Option<Error> {
    let mut ready = hosts().filter_map(|(_, host, at)| match &at.repository {
        RepositorySeen::Ready { id, .. } => Some((host, id)),
        RepositorySeen::Missing { .. }
        | RepositorySeen::NoAccess
        | RepositorySeen::Foreign { .. }
        | RepositorySeen::Overlaps { .. }
        | RepositorySeen::Unknown { .. } => None,
    });
    let (first, id) = ready.next()?;
    let other = ready.find(|(_, other)| *other != id).map(|(host, other)| {
        (host, format!("It is the repository {id} on {first} and {other} on {host}. Nothing was changed."))
    });
    let without = || {
        let missing = |at: &Reached| {
            matches!(at.repository, RepositorySeen::Missing { .. }) && !is_lost(situation, repository, at)
        };
        let (_, host, _) = hosts().find(|(_, _, at)| missing(at))?;
        Some((
            host,
            format!("There is the repository {id} on {first} and none on {host}. Nothing was changed."),
        ))
    };
    let (host, detail) = other.or_else(without)?;
    let what = format!("{} is not the same directory on host {host} as on host {first}", place(repository));
    Some(Error::refused(what).detail(detail).hint(SHARE))
}

/// What of the archive an operator should know, and no step changes.
pub(super) fn notes(situation: &Situation<'_>) -> Vec<String> {
    let Some((seen, backups)) = declared(situation) else { return Vec::new() };
    let cluster = &situation.cluster.name;
    let own: Vec<String> = situation
        .observed
        .nodes
        .iter()
        .filter_map(|node| Some(node.control()?.system_identifier.to_string()))
        .collect();
    let mut notes: Vec<String> = reached(seen, backups)
        .filter_map(|(repository, _, at)| note(situation, &own, repository, at))
        .collect();
    let name = &backups.repository.name;
    if let RecordSeen::Unknown { why } = &seen.primary {
        notes.push(format!("the primary record of {cluster} in repository {name} could not be read: {why}"));
    }
    notes.dedup();
    notes
}

fn note(situation: &Situation<'_>, own: &[String], repository: &Repository, at: &Reached) -> Option<String> {
    let (cluster, name, directory) = (&situation.cluster.name, &repository.name, place(repository));
    match &at.repository {
        RepositorySeen::Missing { .. } | RepositorySeen::Unknown { .. }
            if is_lost(situation, repository, at) =>
        {
            let why = match &at.repository {
                RepositorySeen::Unknown { why } => format!(": {why}"),
                RepositorySeen::Missing { .. }
                | RepositorySeen::NoAccess
                | RepositorySeen::Ready { .. }
                | RepositorySeen::Foreign { .. }
                | RepositorySeen::Overlaps { .. } => String::new(),
            };
            Some(format!(
                "the repository {name} of {cluster} is not there: {}; is {directory} mounted?{why}",
                stays_away(situation)
            ))
        }
        RepositorySeen::Ready { systems, .. } => {
            let others: Vec<&str> =
                systems.iter().filter(|system| !own.contains(*system)).map(String::as_str).collect();
            (!others.is_empty()).then(|| {
                format!(
                    "the repository {name} also holds WAL or backups of another cluster that was called {cluster}, system identifier {}; \
                     they stay apart from this one's",
                    others.join(", ")
                )
            })
        }
        RepositorySeen::Missing { .. }
        | RepositorySeen::NoAccess
        | RepositorySeen::Unknown { .. }
        | RepositorySeen::Foreign { .. }
        | RepositorySeen::Overlaps { .. } => None,
    }
}

/// What becomes of WAL while a repository is away.
fn stays_away(situation: &Situation<'_>) -> &'static str {
    match &situation.cluster.backups {
        Some(backups) if !backups.copies.is_empty() => {
            "WAL goes to the others, and comes here when it is back"
        }
        Some(_) | None => "no WAL is archived, and it stays in pg_wal",
    }
}
