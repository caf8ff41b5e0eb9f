//! Where pgherd keeps what it knows of a node, of a pooler and of its operations (design.md §3).
//!
//! Names paths and touches none of them.

use std::path::{Path, PathBuf};

use super::model::{Cluster, Node, Reach, Repository};
use crate::error::{Error, Result};

const CONFIG: &str = "/etc/pgherd";
const STATE: &str = "/var/lib/pgherd";
const LIB: &str = "/usr/local/lib/pgherd";

/// The roots below which pgherd writes, apart from data directories and repositories.
///
/// As root `/etc/pgherd`, `/var/lib/pgherd` and `/usr/local/lib/pgherd`; otherwise the XDG directories and `~/.local/lib/pgherd`.
/// `PGHERD_CONFIG_DIR`, `PGHERD_STATE_DIR` and `PGHERD_LIB_DIR` override each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    config: PathBuf,
    state: PathBuf,
    lib: PathBuf,
    /// The same three on a host that is reached by ssh: where root's would be, whoever runs pgherd here.
    there: [PathBuf; 3],
}

impl Places {
    /// Decides from the environment; `variable` looks one up, `root` says whether the caller is root.
    ///
    /// # Errors
    /// When an ordinary user has no `HOME`, or an override is not an absolute path: from another directory the same command would
    /// then see other nodes and not see each other's locks.
    pub fn decide(root: bool, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let below_home = |xdg: &str, fallback: &str| {
            variable(xdg)
                .filter(|path| path.starts_with('/'))
                .map(PathBuf::from)
                .or_else(|| variable("HOME").map(|home| Path::new(&home).join(fallback)))
                .map(|path| path.join("pgherd"))
                .ok_or_else(|| {
                    Error::usage("cannot tell where to keep pgherd's files: HOME is not set")
                        .hint("Set PGHERD_CONFIG_DIR, PGHERD_STATE_DIR and PGHERD_LIB_DIR to absolute paths.")
                })
        };
        let chosen = |name: &str, system: &str, xdg: &str, fallback: &str| match variable(name) {
            Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
            Some(path) => Err(Error::usage(format!("{name} is {path}, expected an absolute path"))),
            None if root => Ok(PathBuf::from(system)),
            None => below_home(xdg, fallback),
        };
        let there =
            |name: &str, system: &str| variable(name).map_or_else(|| PathBuf::from(system), PathBuf::from);
        let there = [("PGHERD_CONFIG_DIR", CONFIG), ("PGHERD_STATE_DIR", STATE), ("PGHERD_LIB_DIR", LIB)]
            .map(|(name, system)| there(name, system));
        Ok(Self {
            there,
            config: chosen("PGHERD_CONFIG_DIR", CONFIG, "XDG_CONFIG_HOME", ".config")?,
            state: chosen("PGHERD_STATE_DIR", STATE, "XDG_STATE_HOME", ".local/state")?,
            // The XDG directories know no place for programs that nobody types.
            lib: chosen("PGHERD_LIB_DIR", LIB, "", ".local/lib")?,
        })
    }

    /// Returns the places of a host that is reached so.
    #[must_use]
    pub fn on(&self, reach: &Reach) -> Self {
        if reach.is_here() {
            return self.clone();
        }
        let [config, state, lib] = self.there.clone();
        Self { config, state, lib, there: self.there.clone() }
    }

    /// Returns where what belongs to nodes and poolers is configured.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Returns where journals and locks are.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Returns where copies of pgherd are.
    pub fn lib(&self) -> &Path {
        &self.lib
    }

    /// Returns the link to the copy in use: what PostgreSQL's commands call.
    pub fn program(&self) -> PathBuf {
        self.lib.join("pgherd")
    }

    /// Returns the copy of the build that has this hash.
    pub fn copy(&self, hash: &str) -> PathBuf {
        self.lib.join(hash).join("pgherd")
    }

    /// Returns the directory that holds one directory of facts a node.
    pub fn nodes(&self) -> PathBuf {
        self.config.join("nodes")
    }

    /// Returns the file that holds what it takes to open a repository beside its URL; `None` where it takes nothing else.
    pub fn access(&self, repository: &Repository) -> Option<PathBuf> {
        let file = || format!("{}.json", repository.url.replace("://", ",").replace('/', ","));
        repository.plain_directory().is_none().then(|| self.config.join("repositories").join(file()))
    }

    /// Returns what is not there on a host before `pgherd apply` has made a repository known to it.
    pub fn telltale(&self, repository: &Repository) -> PathBuf {
        self.access(repository)
            .or_else(|| Some(repository.directory()?.join("repository.json")))
            .unwrap_or_default()
    }

    /// Returns the directory that holds one directory a pooler.
    pub fn poolers(&self) -> PathBuf {
        self.state.join("poolers")
    }

    /// Returns the directory of the PgBouncer of `cluster` on `host`: its files, its socket, its log.
    pub fn pooler(&self, cluster: &str, host: &str) -> PathBuf {
        self.poolers().join(format!("{cluster}-{host}"))
    }

    /// Returns the directory of the copies of journals that stations have written of a cluster.
    pub fn copies(&self, cluster: &str) -> PathBuf {
        self.state.join("copies").join(cluster)
    }

    /// Returns the directory that holds one directory a node, for WAL that is on its way.
    pub fn spools(&self) -> PathBuf {
        self.state.join("spool")
    }

    /// Returns the directory of the certificate authority of a herd, on the station.
    pub fn authority(&self, herd: &str) -> PathBuf {
        self.state.join("authority").join(herd)
    }

    /// Returns the places of a node of `cluster`.
    pub fn of_node(&self, cluster: &Cluster, node: &Node) -> NodePlaces {
        let own = self.node(&cluster.full_name(&node.name));
        NodePlaces {
            socket: node.socket_directory.clone().unwrap_or(own.socket),
            log: node.log_directory.clone().unwrap_or(own.log),
            ..own
        }
    }

    /// Returns the places of the node `full_name` (`inventory-a`), as pgherd has them.
    pub fn node(&self, full_name: &str) -> NodePlaces {
        let facts = self.nodes().join(full_name);
        NodePlaces {
            marker: facts.join("marker.json"),
            profile: facts.join("profile.json"),
            passfile: facts.join("passfile"),
            fence: facts.join("fenced.json"),
            rotation: facts.join("rotation.json"),
            authorities: facts.join("ca.pem"),
            certificate: facts.join("server.pem"),
            facts,
            program: self.program(),
            socket: self.state.join("run").join(full_name),
            log: self.state.join("log").join(full_name),
            spool: self.spools().join(full_name),
        }
    }
}

/// Where one node's facts are, all outside its data directory, and the program that its server calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlaces {
    pub facts: PathBuf,
    pub marker: PathBuf,
    pub profile: PathBuf,
    pub passfile: PathBuf,
    /// There while the node must not come up as a primary.
    pub fence: PathBuf,
    /// The old and the new password of a login, on the primary, while one replaces the other.
    pub rotation: PathBuf,
    /// The certificate authorities that it believes.
    pub authorities: PathBuf,
    /// What it proves itself by: its certificate, those above it, and its key.
    pub certificate: PathBuf,
    /// The link to pgherd.
    pub program: PathBuf,
    /// Holds the Unix socket.
    pub socket: PathBuf,
    /// Holds the server's log.
    pub log: PathBuf,
    /// Holds what is on its way between the node and the repository of its WAL.
    pub spool: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_uses_the_system_directories_and_others_their_own() {
        let none = |_: &str| None;
        assert_eq!(Places::decide(true, none).unwrap().nodes(), Path::new("/etc/pgherd/nodes"));
        assert!(Places::decide(false, none).is_err());
        let home = |name: &str| (name == "HOME").then(|| "/home/dba".to_owned());
        let places = Places::decide(false, home).unwrap();
        assert_eq!(
            places.node("inventory-a").marker,
            Path::new("/home/dba/.config/pgherd/nodes/inventory-a/marker.json")
        );
        assert_eq!(places.state(), Path::new("/home/dba/.local/state/pgherd"));
        assert_eq!(places.lib(), Path::new("/home/dba/.local/lib/pgherd"));
        assert_eq!(Places::decide(true, none).unwrap().program(), Path::new("/usr/local/lib/pgherd/pgherd"));
    }

    #[test]
    fn a_relative_override_is_refused() {
        let relative = |name: &str| (name == "PGHERD_STATE_DIR").then(|| "state".to_owned());
        let error = Places::decide(true, relative).unwrap_err();
        assert_eq!(error.what(), "PGHERD_STATE_DIR is state, expected an absolute path");
    }
}
