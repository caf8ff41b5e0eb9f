//! Regions, their hosts and how each is reached, and what no two things may share: an address with a port, a directory.

use super::super::decode::{Address, Spanned, Via};
use super::super::model::{Host, Reach, Ssh};
use super::super::problem::Position;
use super::super::yaml::{Node as Tree, Value};
use super::super::{foreign, raw};
use super::{Checker, Directory};
use std::collections::HashMap;

/// The machine behind every host that is not reached by ssh.
const HERE: &str = "this machine";

impl Checker<'_> {
    pub(super) fn regions(&mut self, topology: &raw::Topology, tree: &Tree) {
        self.ssh_files(topology);
        let ssh = topology.ssh.as_ref().map(|ssh| &ssh.value);
        let Some(regions) = &topology.regions else {
            if tree.find("regions").is_none() {
                self.missing(tree.at, "the file", "regions", "regions: {here: {hosts: {local: local}}}");
            }
            return;
        };
        let mut seen: HashMap<String, Position> = HashMap::new();
        for region in &regions.value.0 {
            self.name(region.at, "region", &region.name);
            // The names come from the tree, so that a host whose address is wrong is still a known host.
            let hosts = tree.find("regions").and_then(|tree| tree.find(&region.name)?.find("hosts"));
            let Some(Tree { value: Value::Mapping(hosts), .. }) = hosts else {
                self.missing(
                    region.at,
                    &format!("regions.{}", region.name),
                    "hosts",
                    "hosts: {local: local}",
                );
                continue;
            };
            let path = format!("regions.{}.hosts", region.name);
            for host in hosts {
                if !foreign::report_managed_host(self.report, host.at, &path, &host.key) {
                    self.name(host.at, "host", &host.key);
                }
                if let Some(first) = seen.insert(host.key.clone(), host.at) {
                    self.report
                        .add(host.at, format!("host \"{}\" is in two regions", host.key))
                        .detail(format!("It was given first at {first}."))
                        .hint("Keep one of the two.");
                    continue;
                }
                let raw =
                    region.value.hosts.as_ref().map(|hosts| hosts.value.0.as_slice()).unwrap_or_default();
                let raw = raw.iter().find(|raw| raw.name == host.key).map(|raw| &raw.value);
                let reach = raw.and_then(|raw| self.reach(raw, &format!("{path}.{}", host.key), ssh));
                self.host_index.insert(host.key.clone(), self.hosts.len());
                self.hosts.push(Host {
                    name: host.key.clone(),
                    region: region.name.clone(),
                    reach: reach.unwrap_or(Reach::Local),
                });
            }
        }
    }

    /// Decides how a host is reached; `None` after a problem was reported.
    fn reach(&mut self, raw: &Spanned<Address>, path: &str, ssh: Option<&raw::Ssh>) -> Option<Reach> {
        let place = match &raw.value {
            Address::Local => return Some(Reach::Local),
            Address::Plain(address) => {
                let address = self.address(raw.at, address, path)?;
                return Some(Reach::Ssh(self.ssh(address, None, None, ssh)?));
            }
            Address::Place(place) => place,
        };
        let Some(address) = &place.address else {
            self.missing(raw.at, path, "address", "address: 10.0.0.1");
            return None;
        };
        let address = self.address(address.at, &address.value, &format!("{path}.address"))?;
        match place.via.as_ref().map(|via| via.value) {
            Some(Via::Local) => {
                for (key, at) in [
                    ("user", place.user.as_ref().map(|user| user.at)),
                    ("port", place.port.as_ref().map(|port| port.at)),
                ] {
                    if let Some(at) = at {
                        self.report
                            .add(at, format!("{path}.{key} is of ssh, which does not reach this machine"))
                            .hint("Remove it, or remove \"via: local\".");
                    }
                }
                Some(Reach::Here { address })
            }
            Some(Via::Ssh) | None => {
                Some(Reach::Ssh(self.ssh(address, place.user.as_ref(), place.port.as_ref(), ssh)?))
            }
        }
    }

    /// Checks what ends up in PostgreSQL's files and on ssh's command line.
    fn address(&mut self, at: Position, address: &str, path: &str) -> Option<String> {
        let ip = address.parse::<std::net::IpAddr>();
        if ip.is_ok_and(|ip| !ip.is_unspecified() && !ip.is_multicast()) {
            return Some(address.to_owned());
        }
        self.report
            .add(at, format!("{path} must be an IP address"))
            .detail("It goes into PostgreSQL's and PgBouncer's files; user and port of ssh have keys of their own.")
            .hint("Write {address: 10.0.0.1, user: USER, port: 22}, or \"local\" for this machine.");
        None
    }

    fn ssh(
        &mut self,
        address: String,
        user: Option<&Spanned<String>>,
        port: Option<&Spanned<u32>>,
        raw: Option<&raw::Ssh>,
    ) -> Option<Ssh> {
        let user = user.or(raw.and_then(|raw| raw.user.as_ref()));
        if let Some(user) = user.filter(|user| !is_user_name(&user.value)) {
            self.report
                .add(user.at, format!("{:?} cannot be the name of a user", user.value))
                .hint("Write the name alone, such as user: dba.");
            return None;
        }
        let port = match port.or(raw.and_then(|raw| raw.port.as_ref())) {
            None => None,
            Some(port) => match u16::try_from(port.value) {
                Ok(number @ 1..) => Some(number),
                _ => {
                    self.report
                        .add(
                            port.at,
                            format!("the port of sshd must be from 1 to 65535, found {}", port.value),
                        )
                        .hint("sshd listens on 22 if nobody said otherwise.");
                    return None;
                }
            },
        };
        let file = |place: Option<&Spanned<raw::FilePlace>>| {
            place.and_then(|place| place.value.file.as_ref()).map(|file| self.base.join(&file.value))
        };
        let key = file(raw.and_then(|raw| raw.key.as_ref()));
        let host_keys = file(raw.and_then(|raw| raw.host_keys.as_ref()));
        let config = file(raw.and_then(|raw| raw.config.as_ref()));
        Some(Ssh { address, port, user: user.map(|user| user.value.clone()), key, host_keys, config })
    }

    /// Checks the files that "ssh" names: one without a path, or whose path ssh would read differently.
    fn ssh_files(&mut self, topology: &raw::Topology) {
        let Some(ssh) = &topology.ssh else { return };
        for (key, place) in
            [("key", &ssh.value.key), ("host-keys", &ssh.value.host_keys), ("config", &ssh.value.config)]
        {
            let Some(place) = place else { continue };
            match &place.value.file {
                None => self.missing(
                    place.at,
                    &format!("ssh.{key}"),
                    "file",
                    &format!("{key}: {{file: keys/{key}}}"),
                ),
                Some(file)
                    if file.value.contains(['"', '\\']) || file.value.chars().any(char::is_control) =>
                {
                    self.report
                        .add(
                            file.at,
                            format!("ssh.{key}.file holds a character that ssh's options cannot hold"),
                        )
                        .hint("Choose a path without quotes and backslashes.");
                }
                Some(_) => {}
            }
        }
    }

    pub(super) fn known_host(&mut self, host: &Spanned<String>) -> bool {
        if self.host_index.contains_key(&host.value) {
            return true;
        }
        if !foreign::report_managed_host(self.report, host.at, "host", &host.value) {
            let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            self.report.add(host.at, format!("unknown host \"{}\"", host.value)).suggest(&host.value, names);
        }
        false
    }

    /// Names the machine behind a host: all local hosts are one.
    pub(super) fn machine(&self, host: &str) -> String {
        match self.host_index.get(host).map(|index| &self.hosts[*index].reach) {
            Some(Reach::Local | Reach::Here { .. }) => HERE.to_owned(),
            Some(Reach::Ssh(ssh)) => match ssh.port {
                // Several machines may be behind one address.
                Some(port) => format!("{} port {port}", ssh.address),
                None => ssh.address.clone(),
            },
            None => host.to_owned(),
        }
    }

    /// Takes a port for a node or a pooler; two on one are a problem.
    pub(super) fn listen(&mut self, at: Position, host: &str, port: u16, owner: String) {
        let machine = self.machine(host);
        match self.taken.get(&(machine.clone(), port)) {
            None => {
                self.taken.insert((machine, port), (owner, at));
            }
            Some((other, first)) => {
                let other = other.clone();
                let first = *first;
                let same = if machine == HERE { "that are \"local\"" } else { "with one address" };
                self.report
                    .add(at, format!("{owner} and {other} both listen on port {port} of {host}"))
                    .detail(format!("{other} has the port at {first}; hosts {same} are one machine."))
                    .hint("Give one of them another port.");
            }
        }
    }

    pub(super) fn data_directories(&mut self) {
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by(|a, b| (&a.machine, &a.path, a.at).cmp(&(&b.machine, &b.path, b.at)));
        // Paths sort by component, so whatever is below a directory follows it before anything else does.
        let mut above: Option<&Directory> = None;
        for directory in &directories {
            match above {
                Some(other)
                    if other.machine == directory.machine && directory.path.starts_with(&other.path) =>
                {
                    let (first, second) =
                        if other.at <= directory.at { (other, directory) } else { (directory, other) };
                    let what = if other.path == directory.path {
                        format!("{} and {} have the same data directory", second.owner, first.owner)
                    } else {
                        format!("the data directory of {} is inside that of {}", directory.owner, other.owner)
                    };
                    self.report
                        .add(second.at, what)
                        .detail(format!("{} is at {}, {} at {}.", other.owner, other.path.display(), directory.owner, directory.path.display()))
                        .hint("Give each node a data directory of its own, such as \"data-directory: /var/lib/pgherd/CLUSTER-NODE\".");
                }
                _ => above = Some(directory),
            }
        }
    }
}

/// Tells whether a text can be the name of a user: it becomes a word of command lines and of sudoers.
pub(super) fn is_user_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !text.starts_with('-')
}
