//! Taking over a cluster as it runs: what forbids it, how each node is claimed, and what has to wait for a restart.

use std::collections::{BTreeMap, BTreeSet};

use crate::db::queries::ServerRole;
use crate::error::{Error, ErrorKind};
use crate::ops::adopt::Candidate;
use crate::ops::observe::{Directory, NodeObserved, Running, Server};
use crate::ops::plan::Situation;
use crate::ops::plan::step::{ApplyStep, FileChange, PlannedStep, Sign};
use crate::ops::roles::{self, Lead};
use crate::ops::service::Manager;
use crate::pg::guc;
use crate::pg::synchronous::SynchronousNames;
use crate::topology::declared;
use crate::topology::model::{Cluster, Node, Service};

/// What was asked to be taken over, and what was found of it.
#[derive(Debug, Default)]
pub struct Adoption {
    /// Names of nodes within the cluster, also of those that were taken over before.
    pub asked: BTreeSet<String>,
    /// Those that run unclaimed.
    pub candidates: BTreeMap<String, Candidate>,
}

/// Plans how each node is claimed.
pub(super) fn claim(situation: &Situation<'_>) -> Vec<PlannedStep> {
    let nodes = situation.cluster.nodes.iter().zip(&situation.observed.nodes);
    nodes
        .filter_map(|(node, seen)| {
            Some(step(situation, node, seen, situation.adoption.candidates.get(&node.name)?))
        })
        .collect()
}

fn step(situation: &Situation<'_>, node: &Node, seen: &NodeObserved, candidate: &Candidate) -> PlannedStep {
    let cluster = situation.cluster;
    let users = situation.fixed.users.get(&node.host).cloned().unwrap_or_default();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let files = seen.files.as_ref();
    let change = |name: &str, before: Option<&String>, after: &dyn Fn(&str) -> String| {
        let before = before.cloned().unwrap_or_default();
        let after = after(&before);
        (before != after).then(|| FileChange {
            path: node.configuration().join(name),
            before: Some(before),
            after,
        })
    };
    let files: Vec<FileChange> = [
        change(declared::HBA_FILE, files.map(|files| &files.pg_hba), &|text| {
            declared::with_access(text, cluster)
        }),
        change(declared::IDENT_FILE, files.map(|files| &files.pg_ident), &|text| {
            declared::with_users(text, &users)
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    let owner = match &seen.directory {
        Directory::Cluster { owner, .. } => owner.clone(),
        Directory::Missing | Directory::Empty | Directory::Foreign { .. } | Directory::Unknown { .. } => {
            String::new()
        }
    };
    let system =
        seen.running().map(|running| format!(", system identifier {}", running.facts.system_identifier));
    PlannedStep {
        sign: Sign::Create,
        subject: cluster.full_name(&node.name),
        text: format!(
            "adopt {} as it runs: marker, profile, pgherd's lines in pg_hba.conf and pg_ident.conf, reload",
            node.data_directory.display()
        ),
        reason: Some(format!(
            "owner {owner}{}, {}; nothing is initialised, stopped or restarted",
            system.unwrap_or_default(),
            started_by(&candidate.manager)
        )),
        impact: Some(format!(
            "over the Unix socket only {} log in as postgres from then on",
            users.join(" and ")
        )),
        undo: "the files as they were, reload".to_owned(),
        step: ApplyStep::Adopt { node: node.name.clone(), owner, unit: foreign_unit(candidate), files },
    }
}

fn foreign_unit(candidate: &Candidate) -> Option<String> {
    match &candidate.manager {
        Manager::Systemd(unit) => Some(unit.clone()),
        Manager::PgCtl | Manager::Debian { .. } => None,
    }
}

fn started_by(manager: &Manager) -> String {
    match manager {
        Manager::PgCtl => "started by hand".to_owned(),
        Manager::Systemd(unit) => format!("run by {unit}"),
        Manager::Debian { version, name } => format!("run by pg_ctlcluster {version} {name}"),
    }
}

/// Tells whether pgherd's own unit would be a second one: somebody else's starts the node already.
pub(super) fn has_other_manager(situation: &Situation<'_>, node: &Node, seen: &NodeObserved) -> bool {
    let found = situation
        .adoption
        .candidates
        .get(&node.name)
        .is_some_and(|candidate| candidate.manager != Manager::PgCtl);
    let known = seen
        .profile
        .as_ref()
        .and_then(|profile| profile.adopted.as_ref())
        .is_some_and(|own| own.unit.is_some());
    found || known
}

/// Tells whether what needs a restart is not to be done by this plan: taking over restarts nothing.
pub(super) fn spares(situation: &Situation<'_>, node: &Node) -> bool {
    node.adopted && situation.adoption.asked.contains(&node.name)
}

/// What forbids taking a node over.
pub(super) fn obstacles(
    situation: &Situation<'_>,
    node: &Node,
    seen: &NodeObserved,
    candidate: &Candidate,
) -> Vec<Error> {
    let name = situation.cluster.full_name(&node.name);
    let refuse = |what: &str, why: String, hint: String| {
        vec![
            Error::refused(format!("cannot adopt {name}: {what}"))
                .detail(format!("{why} Nothing was changed."))
                .hint(hint),
        ]
    };
    if let Some(other) = &candidate.claimed_by {
        return refuse(
            "its data directory is another node's",
            format!("{} is {other}, as its profile says.", node.data_directory.display()),
            "A node has one name in one herd: keep it there, or remove it there by name first.".to_owned(),
        );
    }
    if situation.cluster.has_tls() {
        return refuse(
            "it is to speak TLS at the same time",
            "Whom TLS is forced upon is told from one step to the next, and this would be one.".to_owned(),
            "Adopt it without `tls` first, then declare that and apply.".to_owned(),
        );
    }
    let Some(listens) = &candidate.listens else {
        return refuse(
            "it does not run",
            "Only a running server tells where its files are and whom it belongs to.".to_owned(),
            format!(
                "Start it as it is always started, {}, then adopt it.",
                start_hint(&candidate.manager, node)
            ),
        );
    };
    if listens.port != node.port {
        return refuse(
            "it listens on another port",
            format!("Its postmaster.pid says {}, declared is {}.", listens.port, node.port),
            format!("Declare port: {}", listens.port),
        );
    }
    let socket = situation.node_places(node).socket;
    if listens.socket_directory != socket {
        return refuse(
            "its Unix socket is elsewhere",
            format!("It is in {}, expected in {}.", listens.socket_directory.display(), socket.display()),
            format!(
                "Declare socket-directory: {} at node {}.",
                listens.socket_directory.display(),
                node.name
            ),
        );
    }
    let told = match &candidate.told {
        Ok(told) => told,
        Err(why) => {
            return refuse(
                "its owner cannot log in to it as postgres",
                format!("{}.", why.trim_end_matches('.')),
                login_hint(situation, node),
            );
        }
    };
    if !told.superuser {
        return refuse(
            "its role postgres is no superuser",
            "pgherd works as the superuser postgres, over the Unix socket.".to_owned(),
            "Make it one: ALTER ROLE postgres SUPERUSER LOGIN".to_owned(),
        );
    }
    let found = [
        (&told.config_file, declared::CONF_FILE),
        (&told.hba_file, declared::HBA_FILE),
        (&told.ident_file, declared::IDENT_FILE),
    ];
    if let Some((elsewhere, file)) =
        found.iter().find(|(path, file)| **path != node.configuration().join(file))
    {
        let hint = match elsewhere.parent().filter(|_| elsewhere.file_name().is_some_and(|name| name == *file)) {
            Some(directory) => format!("Declare config-directory: {} at node {}.", directory.display(), node.name),
            None => "postgresql.conf, pg_hba.conf and pg_ident.conf must have these names and be in one directory.".to_owned(),
        };
        return refuse(
            "its configuration is elsewhere",
            format!(
                "Its {file} is {}, expected is {}.",
                elsewhere.display(),
                node.configuration().join(file).display()
            ),
            hint,
        );
    }
    if let Some(link) = candidate.links.first() {
        return refuse(
            "a file of its configuration is a link",
            format!("{} leads elsewhere, and pgherd replaces files as a whole.", link.display()),
            "Put the file itself there, or declare config-directory where it is.".to_owned(),
        );
    }
    if seen.files.is_none() {
        return refuse(
            "its files cannot be read",
            format!(
                "{} may not read what is in {}.",
                situation
                    .fixed
                    .users
                    .get(&node.host)
                    .and_then(|users| users.first())
                    .map_or("The os-user", String::as_str),
                node.configuration().display()
            ),
            "Declare the os-user that owns them.".to_owned(),
        );
    }
    let own = seen.files.as_ref().map_or("", |files| files.postgresql_conf.as_str());
    if let Some((setting, _)) =
        guc::ConfFile::parse(own).settings().iter().find(|(_, value)| guc::without_password(value) != *value)
    {
        return refuse(
            "its postgresql.conf holds a password",
            format!(
                "It is in {setting}, and pgherd keeps the text of the files that it changes in its journal."
            ),
            "Put it into a password file, and name that with passfile=; or have ALTER SYSTEM set it."
                .to_owned(),
        );
    }
    if let (Manager::PgCtl, Some(running)) = (&candidate.manager, seen.running()) {
        let lost = only_on_the_command_line(running, own);
        if !lost.is_empty() {
            return refuse(
                "settings of it are on its command line only",
                format!("{}; a start by pgherd would not have them.", lost.join(", ")),
                format!("Write them into {}.", node.configuration().join(declared::CONF_FILE).display()),
            );
        }
    }
    let service = situation.cluster.postgres.service;
    let hint = match (&candidate.manager, service) {
        (Manager::Debian { .. }, Service::Systemd) => Some("debian"),
        (Manager::PgCtl | Manager::Systemd(_), Service::Debian) => Some(match candidate.manager {
            Manager::Systemd(_) => "systemd",
            Manager::PgCtl | Manager::Debian { .. } => "pg_ctl",
        }),
        (Manager::Debian { .. } | Manager::Systemd(_) | Manager::PgCtl, _) => None,
    };
    if let Some(service) = hint {
        return refuse(
            "something else starts it than the topology says",
            format!("It is {}.", started_by(&candidate.manager)),
            format!("Declare service: {service}"),
        );
    }
    seen.running()
        .map(|running| of_server(situation, node, running, told.wal_level.as_str()))
        .unwrap_or_default()
}

/// Settings that a start with pg_ctl alone would not have: those of its arguments that postgresql.conf does not say as well.
fn only_on_the_command_line(running: &Running, postgresql_conf: &str) -> Vec<String> {
    const PLACES: [&str; 5] =
        ["config_file", "data_directory", "external_pid_file", "hba_file", "ident_file"];
    let file = guc::ConfFile::parse(postgresql_conf);
    running
        .settings
        .values()
        .filter(|row| row.source == "command line" && !PLACES.contains(&row.name.as_str()))
        .filter(|row| {
            let same = |value: &str| guc::same_value(value, &row.setting, row.unit.as_deref(), &row.vartype);
            let starts_with = file.value(&row.name).or(row.boot_val.as_deref());
            !starts_with.is_some_and(same)
        })
        .map(|row| format!("{} is {}", row.name, row.shown))
        .collect()
}

fn of_server(situation: &Situation<'_>, node: &Node, running: &Running, wal_level: &str) -> Vec<Error> {
    let cluster = situation.cluster;
    let name = cluster.full_name(&node.name);
    let names = &running.facts.synchronous_standby_names;
    let mut found = Vec::new();
    if running.is_primary() && !names.is_empty() && cluster.synchronous.is_none() {
        found.push(
            Error::refused(format!(
                "cannot adopt {name}: its commits wait for standbys, and the topology does not say so"
            ))
            .detail(format!(
                "synchronous_standby_names is {names}; pgherd would take it away. Nothing was changed."
            ))
            .hint("Declare synchronous: {wait-for: 1, of: [NODE, NODE]}, or take the setting away yourself."),
        );
    }
    if running.is_primary() && cluster.synchronous.is_some() && merged(names, "").is_none() {
        found.push(
            Error::refused(format!("cannot adopt {name}: its synchronous_standby_names cannot be read"))
                .detail(format!("It is {names}. Nothing was changed."))
                .hint("Write it as ANY 1 (NAME, NAME)."),
        );
    }
    if wal_level == "minimal"
        && cluster.backups.is_some()
        && !cluster.postgres.settings.contains_key("wal_level")
    {
        found.push(
            Error::refused(format!("cannot adopt {name}: its WAL has not enough in it to be archived"))
                .detail("wal_level is minimal; with archive_mode = on the server would not start any more. Nothing was changed.")
                .hint("Declare wal_level: replica under settings."),
        );
    }
    found
}

fn start_hint(manager: &Manager, node: &Node) -> String {
    match manager {
        Manager::PgCtl => format!("such as pg_ctl start -D {}", node.data_directory.display()),
        Manager::Systemd(unit) => format!("systemctl start {unit}"),
        Manager::Debian { version, name } => format!("pg_ctlcluster {version} {name} start"),
    }
}

fn login_hint(situation: &Situation<'_>, node: &Node) -> String {
    let owner =
        situation.fixed.users.get(&node.host).and_then(|users| users.first()).cloned().unwrap_or_default();
    let file = node.configuration().join(declared::HBA_FILE);
    let reload = format!("pg_ctl reload -D {}", node.data_directory.display());
    if owner == declared::SUPERUSER {
        return format!(
            "Add as the first line of {}: local all postgres peer\nThen: {reload}",
            file.display()
        );
    }
    format!(
        "Add as the first line of {}: local all postgres peer map=pgherd\nand to {}: pgherd {owner} postgres\nThen: {reload}",
        file.display(),
        node.configuration().join(declared::IDENT_FILE).display()
    )
}

/// What forbids taking over nodes that do not belong together.
pub(super) fn strangers(situation: &Situation<'_>) -> Vec<Error> {
    if situation.adoption.candidates.is_empty() {
        return Vec::new();
    }
    let cluster = situation.cluster;
    let mut systems: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for seen in &situation.observed.nodes {
        let system = seen
            .running()
            .map(|running| running.facts.system_identifier)
            .or_else(|| seen.control().map(|control| control.system_identifier));
        if let Some(system) = system {
            systems.entry(system.to_string()).or_default().push(cluster.full_name(&seen.node));
        }
    }
    if systems.len() > 1 {
        let told: Vec<String> =
            systems.iter().map(|(system, nodes)| format!("{} has {system}", nodes.join(" and "))).collect();
        return vec![
            Error::refused(format!("cannot adopt {}: its nodes are not one cluster", cluster.name))
                .detail(format!("Of the system identifiers, {}. Nothing was changed.", told.join("; ")))
                .hint("Declare each cluster by itself; \"pgherd init NAME --from HOST\" shows what belongs together."),
        ];
    }
    match roles::lead(situation.observed) {
        Lead::Primary(primary) => foreign_standbys(situation, &primary),
        Lead::Unknown { .. } => without_primary(situation),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) => Vec::new(),
    }
}

/// A standby belongs to the primary whose WAL it streams: it must name the port of a node, and the primary must know of it.
fn foreign_standbys(situation: &Situation<'_>, primary: &str) -> Vec<Error> {
    let cluster = situation.cluster;
    let ports: Vec<i32> = cluster.nodes.iter().map(|node| i32::from(node.port)).collect();
    let above = situation.observed.node(primary).and_then(NodeObserved::running);
    let senders = above.map_or(0, |above| above.senders.len());
    let timeline = above.map(|above| above.facts.timeline);
    let mut direct = 0;
    let mut found = Vec::new();
    for (node, seen) in cluster.nodes.iter().zip(&situation.observed.nodes) {
        let Some(running) = seen.running().filter(|_| situation.adoption.candidates.contains_key(&node.name))
        else {
            continue;
        };
        let ServerRole::Standby { receiver: Some(receiver), .. } = &running.facts.role else { continue };
        let from = format!(
            "{}:{}",
            receiver.sender_host.as_deref().unwrap_or("?"),
            receiver.sender_port.map_or_else(|| "?".to_owned(), |port| port.to_string())
        );
        direct += 1;
        let of_nobody = receiver.sender_port.is_some_and(|port| !ports.contains(&port));
        if of_nobody || direct > senders || timeline.is_some_and(|timeline| running.facts.timeline > timeline)
        {
            found.push(
                Error::refused(format!(
                    "cannot adopt {}: it is a standby of another primary than {}",
                    cluster.full_name(&node.name),
                    cluster.full_name(primary)
                ))
                .detail(format!(
                    "It streams from {from}, timeline {}; {} has {senders} standbys. Nothing was changed.",
                    running.facts.timeline,
                    cluster.full_name(primary)
                ))
                .hint("Declare the primary that it follows, or leave it out."),
            );
        }
    }
    found
}

/// A standby alone tells whom it follows.
fn without_primary(situation: &Situation<'_>) -> Vec<Error> {
    let cluster = situation.cluster;
    // What does not answer may be the primary, and is told already.
    if situation.observed.nodes.iter().any(|seen| !matches!(seen.server, Server::Up(_))) {
        return Vec::new();
    }
    let from: Vec<String> = situation
        .observed
        .nodes
        .iter()
        .filter_map(|seen| match &seen.running()?.facts.role {
            ServerRole::Standby { receiver: Some(receiver), .. } => Some(format!(
                "{} streams from {}:{}",
                cluster.full_name(&seen.node),
                receiver.sender_host.as_deref().unwrap_or("?"),
                receiver.sender_port.map_or_else(|| "?".to_owned(), |port| port.to_string())
            )),
            ServerRole::Standby { receiver: None, .. } => {
                Some(format!("{} is a standby and receives nothing", cluster.full_name(&seen.node)))
            }
            ServerRole::Primary { .. } => None,
        })
        .collect();
    vec![
        Error::new(
            ErrorKind::Refused,
            format!("cannot adopt {}: its primary is not among its nodes", cluster.name),
        )
        .detail(format!("{}. Nothing was changed.", from.join("; ")))
        .hint("Declare the primary as a node, too."),
    ]
}

/// Says what waits for a restart, with both values.
pub(super) fn waits(cluster: &Cluster, node: &Node, waiting: &[String]) -> Option<String> {
    (!waiting.is_empty()).then(|| {
        format!(
            "{} waits for a restart: {}; adopting does not restart it, this does: pgherd apply --allow-restart",
            cluster.full_name(&node.name),
            waiting.join(", ")
        )
    })
}

/// Returns a value of `synchronous_standby_names` that counts a standby under its old name and under its new one: while standbys take
/// their new names no commit waits in vain, and none is acknowledged by fewer of them. `None` if one of the two cannot be read.
pub(super) fn merged(old: &str, new: &str) -> Option<String> {
    let (old, new) = (SynchronousNames::parse(old)?, SynchronousNames::parse(new)?);
    if old.names.is_empty() {
        return Some(String::new());
    }
    let mut names = old.names;
    names.extend(new.names.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    Some(format!("{} {} ({})", old.method, old.count, names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_names_count_while_standbys_change_theirs() {
        let new = "ANY 1 (\"inventory-b\")";
        assert_eq!(merged("s1", new).unwrap(), "FIRST 1 (s1, \"inventory-b\")");
        assert_eq!(merged("ANY 2 (s1, s2)", new).unwrap(), "ANY 2 (s1, s2, \"inventory-b\")");
        assert_eq!(merged("first 1 (*)", new).unwrap(), "FIRST 1 (*, \"inventory-b\")");
        assert_eq!(merged("", new).unwrap(), "");
        assert_eq!(merged("ANY 1 (\"a(b\")", new), None);
        assert_eq!(merged(new, new).unwrap(), new);
    }
}
