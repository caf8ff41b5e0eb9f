//! What runs on hosts that no topology knows yet: clusters grouped by their system identifier, as the draft of a topology.
//!
//! Reads only. What could not be seen is a note, in the draft and on the screen.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::db::look::{self, Look};
use crate::db::queries::ServerRole;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::host::decorate::{DryRun, Gated, Layered, Traced};
use crate::host::{Command, Host, HostError, RunAs};
use crate::ops::adopt::{self, Listens};
use crate::ops::observe;
use crate::ops::service::{self, Manager};
use crate::topology::init;
use crate::topology::model::{Reach, Ssh};
use crate::topology::places::Places;
use crate::topology::render::{FoundCluster, FoundHost, FoundNode, FoundTopology, Template, render};

/// A host as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    told: String,
    reach: Reach,
}

/// What was drafted.
#[derive(Debug)]
pub struct Drafted {
    pub lines: usize,
    /// One line a cluster.
    pub clusters: Vec<(String, String)>,
    pub notes: Vec<String>,
}

impl From {
    /// Reads `local`, an address, or `user@address:port`; an IPv6 address with a port stands in brackets.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn parse(text: &str) -> Result<Self> {
        let told = text.to_owned();
        if text == "local" {
            return Ok(Self { told, reach: Reach::Local });
        }
        let (user, rest) = text.split_once('@').map_or((None, text), |(user, rest)| (Some(user), rest));
        let (address, port) = match (rest.strip_prefix('['), rest.parse::<IpAddr>()) {
            (Some(inner), _) => match inner.split_once(']') {
                Some((address, port)) => (address, port.strip_prefix(':')),
                None => (inner, None),
            },
            (None, Ok(_)) => (rest, None),
            (None, Err(_)) => {
                rest.split_once(':').map_or((rest, None), |(address, port)| (address, Some(port)))
            }
        };
        let port = port.map(str::parse::<u16>).transpose();
        let (Ok(_), Ok(port), true) = (address.parse::<IpAddr>(), port, user != Some("")) else {
            return Err(Error::usage(format!("cannot look at {text:?}"))
                .detail("A host is local, an IP address, or USER@ADDRESS:PORT.")
                .hint("Standbys and poolers get the address, so a name will not do."));
        };
        let ssh = Ssh {
            address: address.to_owned(),
            port,
            user: user.map(str::to_owned),
            key: None,
            host_keys: None,
            config: None,
        };
        Ok(Self { told, reach: Reach::Ssh(ssh) })
    }
}

/// One server that answered.
struct Seen {
    host: usize,
    owner: String,
    data_directory: PathBuf,
    bin_directory: PathBuf,
    at: Listens,
    manager: Manager,
    look: Look,
    /// Database, schema, owner.
    schemas: Vec<(String, String, String)>,
}

/// Looks at the hosts and writes `pgherd.yml` into `directory`.
///
/// # Errors
/// When the file exists, a host cannot be reached, nothing runs on any of them, or what was found makes no valid topology.
pub async fn draft(
    herd: &str,
    from: &[From],
    directory: &Path,
    places: &Places,
    gate: &Arc<dyn Gate>,
) -> Result<Drafted> {
    init::refuse_existing(directory)?;
    let mut notes = Vec::new();
    let mut seen = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (index, one) in from.iter().enumerate() {
        let door = open(one, None, gate)?;
        door.reach().await.map_err(|mut missing| missing.remove(0))?;
        names.push(host_name(&*door, one, &names).await);
        seen.extend(look_at(one, index, &*door, places, gate, &mut notes).await?);
    }
    if seen.is_empty() {
        let told: Vec<&str> = from.iter().map(|one| one.told.as_str()).collect();
        let error = Error::new(
            crate::error::ErrorKind::NotFound,
            format!("no PostgreSQL that could be looked at runs on {}", told.join(", ")),
        );
        return Err(if notes.is_empty() { error } else { error.detail(format!("{}.", notes.join("; "))) }
            .hint("A first topology for a cluster that is to be made: pgherd init NAME --local"));
    }
    let clusters = group(&seen, &names, &mut notes);
    let hosts = names
        .iter()
        .zip(from)
        .map(|(name, one)| FoundHost { name: name.clone(), told: one.told.clone(), reach: reach(&one.reach) })
        .collect();
    let found = FoundTopology { herd: herd.to_owned(), hosts, notes: notes.clone(), clusters };
    let text = render(Template::FoundTopology, &found)?;
    init::write_draft(directory, &text)?;
    let told = found.clusters.iter().map(|cluster| {
        let nodes: Vec<String> =
            cluster.nodes.iter().map(|node| format!("{} {}", node.name, node.told)).collect();
        (cluster.name.clone(), format!("PostgreSQL {}, {}", cluster.version, nodes.join("; ")))
    });
    Ok(Drafted { lines: text.lines().count(), clusters: told.collect(), notes })
}

fn open(from: &From, owner: Option<&str>, gate: &Arc<dyn Gate>) -> Result<Arc<dyn Host>> {
    let door = observe::open_door(&from.told, &from.reach, owner, None)?;
    let gated = Layered::new(Arc::new(Layered::new(door, Traced)), Gated(Arc::clone(gate)));
    Ok(Arc::new(Layered::new(Arc::new(gated), DryRun)))
}

/// Names a host as its machine is named.
async fn host_name(host: &dyn Host, from: &From, taken: &[String]) -> String {
    if from.reach == Reach::Local {
        return "local".to_owned();
    }
    let said = host.run(&Command::new("uname").arg("-n").reads()).await.map(|output| output.text());
    let said = said.unwrap_or_default();
    let first = said.trim().split('.').next().unwrap_or_default();
    unique(&valid(first, "db"), taken)
}

fn reach(reach: &Reach) -> String {
    match reach {
        Reach::Local => "local".to_owned(),
        Reach::Here { address } => format!("{{address: \"{address}\", via: local}}"),
        Reach::Ssh(Ssh { address, port: None, user: None, .. }) => format!("\"{address}\""),
        Reach::Ssh(ssh) => {
            let user = ssh.user.as_ref().map(|user| format!(", user: {user}")).unwrap_or_default();
            let port = ssh.port.map(|port| format!(", port: {port}")).unwrap_or_default();
            format!("{{address: \"{}\"{user}{port}}}", ssh.address)
        }
    }
}

async fn look_at(
    from: &From,
    index: usize,
    door: &dyn Host,
    places: &Places,
    gate: &Arc<dyn Gate>,
    notes: &mut Vec<String>,
) -> Result<Vec<Seen>> {
    let told = &from.told;
    let ours = observe::profiles(door, &places.on(&from.reach)).await.unwrap_or_default();
    let mut found = Vec::new();
    for (pid, owner) in postmasters(door).await? {
        let door = match open(from, Some(&owner), gate) {
            Ok(door) => door,
            Err(error) => {
                notes.push(format!("{told}: process {pid} of {owner} could not be looked at: {error}"));
                continue;
            }
        };
        match one(&*door, index, pid, owner).await {
            Ok(seen) => match ours.iter().find(|profile| profile.data_directory == seen.data_directory) {
                Some(profile) => notes.push(format!(
                    "{told}: {} is {}-{} of herd {} already",
                    seen.data_directory.display(),
                    profile.cluster,
                    profile.node,
                    profile.herd
                )),
                None => found.push(seen),
            },
            Err(why) => notes.push(format!("{told}: {why}")),
        }
    }
    notes.extend(stopped(door).await.into_iter().map(|why| format!("{told}: {why}")));
    Ok(found)
}

/// Lists the postmasters of a machine with their owners: processes of PostgreSQL whose parent is none.
async fn postmasters(host: &dyn Host) -> Result<Vec<(u32, String)>> {
    let list = Command::new("ps").args(["-eo", "pid=,ppid=,user:64=,comm="]).user(RunAs::Caller).reads();
    let text = host.run(&list).await.map_err(|error| {
        Error::failed(format!("could not list the processes of {}", host.name())).source(error)
    })?;
    Ok(parse_processes(&text.text()))
}

fn parse_processes(text: &str) -> Vec<(u32, String)> {
    let rows: Vec<(u32, u32, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (pid, parent, user) =
                (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
            matches!(words.next(), Some("postgres" | "postmaster")).then_some((pid, parent, user))
        })
        .collect();
    let is_child = |parent: u32| rows.iter().any(|(pid, _, _)| *pid == parent);
    rows.iter()
        .filter(|(_, parent, _)| !is_child(*parent))
        .map(|(pid, _, user)| (*pid, (*user).to_owned()))
        .collect()
}

/// Looks at one server as the owner of its files.
///
/// # Errors
/// Why it could not be looked at, as a fragment.
async fn one(host: &dyn Host, index: usize, pid: u32, owner: String) -> Result<Seen, String> {
    let links = [format!("/proc/{pid}/cwd"), format!("/proc/{pid}/exe")];
    let read = Command::new("readlink").args(["-f", "--", &links[0], &links[1]]).reads();
    let output = host.run(&read).await.map_err(|_| {
        format!("process {pid} of {owner} does not show its data directory to {}", host.os_user())
    })?;
    let text = output.text();
    let mut paths = text.lines().map(PathBuf::from);
    let (data_directory, program) =
        paths.next().zip(paths.next()).ok_or_else(|| format!("process {pid} has ended"))?;
    let bin_directory = program.parent().map(Path::to_owned).unwrap_or_default();
    let of = data_directory.display();
    let at = adopt::listens(host, &data_directory)
        .await
        .ok_or_else(|| format!("{of} has no postmaster.pid that could be read"))?;
    let psql = bin_directory.join("psql");
    let answer = adopt::ask(host, &psql, &at, "postgres", &look::query()).await.map_err(|why| {
        format!(
            "{of}, port {}, owner {owner}: cannot log in as postgres: {}",
            at.port,
            why.trim_end_matches('.')
        )
    })?;
    let look = look::parse(&answer).map_err(|why| format!("{of}: its answer cannot be read: {why}"))?;
    let mut schemas = Vec::new();
    for database in &look.databases {
        let list = adopt::ask(host, &psql, &at, database, look::schemas_query()).await.unwrap_or_default();
        let list: Vec<(String, String)> = serde_json::from_str(list.trim()).unwrap_or_default();
        schemas.extend(list.into_iter().map(|(schema, owner)| (database.clone(), schema, owner)));
    }
    let server = service::Server { host, node: "-", data_directory: &data_directory };
    let manager = service::who_runs(server, pid).await.unwrap_or(Manager::PgCtl);
    Ok(Seen { host: index, owner, data_directory, bin_directory, at, manager, look, schemas })
}

/// Says which of Debian's clusters are down: they can only be adopted while they run.
async fn stopped(host: &dyn Host) -> Vec<String> {
    let list = Command::new("pg_lsclusters").arg("--no-header").reads();
    let text = match host.run(&list).await {
        Ok(output) => output.text(),
        // There is no such program, or no cluster.
        Err(HostError::NotStarted { .. } | HostError::Exited { .. }) => return Vec::new(),
        Err(error @ (HostError::Lost { .. } | HostError::File { .. })) => return vec![error.to_string()],
    };
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (version, name, status) = (words.first()?, words.get(1)?, words.get(3)?);
            status.starts_with("down").then(|| {
                format!("Debian's cluster {version} {name} is down and was not looked at: pg_ctlcluster {version} {name} start")
            })
        })
        .collect()
}

fn group(seen: &[Seen], hosts: &[String], notes: &mut Vec<String>) -> Vec<FoundCluster> {
    let mut systems: BTreeMap<String, Vec<&Seen>> = BTreeMap::new();
    for one in seen {
        systems.entry(one.look.facts.system_identifier.to_string()).or_default().push(one);
    }
    let mut taken = Vec::new();
    let mut clusters = Vec::new();
    for (system, mut members) in systems {
        members.sort_by_key(|one| (!is_primary(one), one.host, one.at.port));
        let primaries = members.iter().filter(|one| is_primary(one)).count();
        if primaries != 1 {
            notes.push(format!(
                "of system identifier {system} {primaries} primaries run: pgherd adopts it only with one"
            ));
        }
        let name = unique(&name_of(members[0]), &taken);
        taken.push(name.clone());
        clusters.push(cluster(name, system, &members, hosts, notes));
    }
    clusters
}

fn is_primary(seen: &Seen) -> bool {
    matches!(seen.look.facts.role, ServerRole::Primary { .. })
}

/// Debian's name for it, unless that says nothing; else its first database.
fn name_of(seen: &Seen) -> String {
    let debian = match &seen.manager {
        Manager::Debian { name, .. } if name != "main" => Some(name),
        Manager::Debian { .. } | Manager::PgCtl | Manager::Systemd(_) => None,
    };
    valid(debian.or(seen.look.databases.first()).map_or("main", String::as_str), "main")
}

fn cluster(
    name: String,
    system: String,
    members: &[&Seen],
    hosts: &[String],
    notes: &mut Vec<String>,
) -> FoundCluster {
    let first = members[0];
    let major = first.look.facts.version.major;
    let usual = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let service = match &first.manager {
        Manager::Debian { .. } => "debian",
        Manager::Systemd(_) => "systemd",
        Manager::PgCtl => "pg_ctl",
    };
    let letters: Vec<String> = (0..members.len()).map(node_name).collect();
    for other in members.iter().skip(1) {
        if other.owner != first.owner
            || std::mem::discriminant(&other.manager) != std::mem::discriminant(&first.manager)
        {
            notes.push(format!(
                "the nodes of {name} differ in owner or in who starts them; the draft has the primary's"
            ));
        }
    }
    let names = &first.look.facts.synchronous_standby_names;
    let synchronous = (!names.is_empty() && members.len() > 1).then(|| {
        notes.push(format!("commits of {name} wait for standbys, synchronous_standby_names is {names}; the draft has one of all"));
        format!("{{wait-for: 1, of: [{}]}}", letters.join(", "))
    });
    let mut outline: Vec<String> = first
        .schemas
        .iter()
        .map(|(database, schema, owner)| format!("schema {schema} in database {database}, owner {owner}"))
        .collect();
    let logins: Vec<&str> = first
        .look
        .roles
        .iter()
        .filter(|role| role.logs_in && !role.is_super)
        .map(|role| role.name.as_str())
        .collect();
    outline.extend((!logins.is_empty()).then(|| format!("roles that log in: {}", logins.join(", "))));
    if first.look.databases.is_empty() {
        outline.push(format!("it has no database but postgres; apply would make one that is called {name}"));
    }
    FoundCluster {
        system,
        version: major,
        bin_directory: (first.bin_directory != usual).then(|| first.bin_directory.display().to_string()),
        os_user: (first.owner != "postgres").then(|| first.owner.clone()),
        service: service.to_owned(),
        nodes: members.iter().zip(letters).map(|(seen, letter)| node(seen, letter, hosts, members)).collect(),
        synchronous,
        databases: first.look.databases.clone(),
        outline,
        name,
    }
}

fn node_name(index: usize) -> String {
    let letter = u8::try_from(index).ok().filter(|index| *index < 26).map(|index| char::from(b'a' + index));
    letter.map_or_else(|| format!("n{index}"), String::from)
}

fn node(seen: &Seen, name: String, hosts: &[String], members: &[&Seen]) -> FoundNode {
    let look = &seen.look;
    let debian = match &seen.manager {
        Manager::Debian { version, name } => Some(PathBuf::from("/etc/postgresql").join(version).join(name)),
        Manager::PgCtl | Manager::Systemd(_) => None,
    };
    let config = look.path("config_file").parent().map(Path::to_owned).unwrap_or_default();
    let socket = &seen.at.socket_directory;
    let own = |path: &Path| path.display().to_string();
    let collects = look.settings.get("logging_collector").is_some_and(|row| row.setting == "on");
    FoundNode {
        host: hosts[seen.host].clone(),
        port: seen.at.port,
        data_directory: own(&seen.data_directory),
        config_directory: (config != seen.data_directory && debian.as_ref() != Some(&config))
            .then(|| own(&config)),
        socket_directory: (debian.is_none() || socket != Path::new("/var/run/postgresql"))
            .then(|| own(socket)),
        log_directory: (collects && debian.is_none())
            .then(|| own(&seen.data_directory.join(look.path("log_directory")))),
        told: role_of(seen, members),
        name,
    }
}

fn role_of(seen: &Seen, members: &[&Seen]) -> String {
    let by = match &seen.manager {
        Manager::PgCtl => "started by hand".to_owned(),
        Manager::Systemd(unit) => format!("run by {unit}"),
        Manager::Debian { version, name } => format!("run by pg_ctlcluster {version} {name}"),
    };
    match &seen.look.facts.role {
        ServerRole::Primary { .. } => {
            let known = members.len() - 1;
            let senders = seen.look.senders.len();
            let more =
                if senders > known { format!(", {senders} standbys stream from it") } else { String::new() };
            format!("primary{more}, {by}")
        }
        ServerRole::Standby { receiver: Some(receiver), .. } => format!(
            "standby, streams from {}:{}, {by}",
            receiver.sender_host.as_deref().unwrap_or("?"),
            receiver.sender_port.map_or_else(|| "?".to_owned(), |port| port.to_string())
        ),
        ServerRole::Standby { receiver: None, .. } => format!("standby, receives nothing, {by}"),
    }
}

/// Makes a name of the topology out of another one.
fn valid(text: &str, fallback: &str) -> String {
    let mapped: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .take(31)
        .collect();
    let trimmed = mapped.trim_matches('-');
    if crate::topology::check_name(trimmed).is_ok() { trimmed.to_owned() } else { fallback.to_owned() }
}

fn unique(name: &str, taken: &[String]) -> String {
    let mut chosen = name.to_owned();
    let mut number = 2;
    while taken.contains(&chosen) {
        chosen = format!("{}-{number}", name.chars().take(27).collect::<String>());
        number += 1;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_local_or_an_address() {
        assert_eq!(From::parse("local").unwrap().reach, Reach::Local);
        let told = |text: &str| reach(&From::parse(text).unwrap().reach);
        assert_eq!(told("10.0.0.1"), "\"10.0.0.1\"");
        assert_eq!(told("dba@10.0.0.1:2222"), "{address: \"10.0.0.1\", user: dba, port: 2222}");
        assert_eq!(told("[fd00::1]:22"), "{address: \"fd00::1\", port: 22}");
        assert_eq!(told("fd00::1"), "\"fd00::1\"");
        for wrong in ["db1", "10.0.0.1:ssh", "@10.0.0.1", ""] {
            assert!(From::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_postmaster_is_a_process_whose_parent_is_none() {
        let printed = "   1    0 root     systemd\n 100    1 postgres postgres\n 101  100 postgres postgres\n 200  50 deploy postmaster\n";
        let found = parse_processes(printed);
        assert_eq!(found, [(100, "postgres".to_owned()), (200, "deploy".to_owned())]);
    }

    #[test]
    fn names_are_made_valid_and_unique() {
        assert_eq!(valid("Web_Shop", "main"), "web-shop");
        assert_eq!(valid("15", "main"), "main");
        assert_eq!(unique("shop", &["shop".to_owned()]), "shop-2");
    }
}
