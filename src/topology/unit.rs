//! The systemd units of nodes and of poolers: what they are called, where they are, what they say.
//!
//! Renders and touches nothing.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Result;
use crate::topology::claim::Profile;
use crate::topology::model::Cluster;
use crate::topology::places::NodePlaces;
use crate::topology::render::{self, Template};

/// Where an administrator's units are (systemd.unit(5)).
const UNITS: &str = "/etc/systemd/system";

/// Whether a node's start has to ask who is primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// It is the cluster's only node: nobody else can be primary.
    None,
    /// Another node may have been promoted while this one was down.
    Some,
}

impl Peers {
    /// Says what the start of a node of this cluster has to ask.
    pub fn of(cluster: &Cluster) -> Self {
        if cluster.nodes.len() > 1 { Self::Some } else { Self::None }
    }
}

/// What `templates/postgresql.service.j2` takes.
#[derive(Debug, Serialize)]
struct NodeUnit<'a> {
    herd: &'a str,
    node: String,
    version: u32,
    os_user: &'a str,
    data_directory: &'a Path,
    postgres: PathBuf,
    drop_in: PathBuf,
    /// The start guard; none where nothing is installed that could be asked.
    guard: Vec<String>,
}

/// What `templates/pgbouncer.service.j2` takes.
#[derive(Debug, Serialize)]
struct PoolerUnit<'a> {
    service: PoolerService<'a>,
    drop_in: PathBuf,
}

/// What the unit of one PgBouncer follows from.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PoolerService<'a> {
    pub cluster: &'a str,
    pub host: &'a str,
    pub os_user: &'a str,
    /// The program.
    pub pgbouncer: &'a Path,
    pub ini: &'a Path,
    pub pidfile: &'a Path,
}

/// A unit of ours on a host: by its name, and by the file that it wants to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    name: String,
    asserted: PathBuf,
}

impl Unit {
    /// The unit of a node: `pgherd-inventory-a.service`.
    pub fn of_node(node: &str, data_directory: &Path) -> Self {
        Self { name: format!("pgherd-{node}.service"), asserted: data_directory.join("PG_VERSION") }
    }

    /// The unit of a cluster's PgBouncer on a host: `pgbouncer-inventory-db1.service`, which no node's can be called.
    pub fn of_pooler(cluster: &str, host: &str, ini: &Path) -> Self {
        Self { name: format!("pgbouncer-{cluster}-{host}.service"), asserted: ini.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(UNITS).join(&self.name)
    }

    /// Returns the link that starts it with the host.
    pub fn enabling_link(&self) -> PathBuf {
        Path::new(UNITS).join("multi-user.target.wants").join(&self.name)
    }

    fn drop_in(&self) -> PathBuf {
        Path::new(UNITS).join(format!("{}.d", self.name))
    }

    /// Tells whether a unit of this name is this one: a scratch copy of a node has the node's name, not its unit.
    pub fn wrote(&self, text: &str) -> bool {
        let line = format!("AssertPathExists={}", render::unit_path(&self.asserted.display().to_string()));
        text.lines().any(|found| found == line)
    }
}

/// Renders the unit of the node that `profile` tells of.
///
/// The guard needs the copy of pgherd that archiving has installed, and the record that is in the repository.
///
/// # Errors
/// When the template asks for something that there is not.
pub fn render(profile: &Profile, places: &NodePlaces, peers: Peers) -> Result<String> {
    let node = format!("{}-{}", profile.cluster, profile.node);
    let guard = profile.archive.iter().map(|_| {
        let argument = |path: &Path| render::unit_argument(&path.display().to_string());
        let ask = match peers {
            Peers::None => "",
            Peers::Some => " --ask-record",
        };
        format!("{} guard --profile {}{ask}", argument(&places.program), argument(&places.profile))
    });
    let unit = NodeUnit {
        herd: &profile.herd,
        version: profile.version,
        os_user: &profile.os_user,
        data_directory: &profile.data_directory,
        postgres: profile.bin_directory.join("postgres"),
        drop_in: Unit::of_node(&node, &profile.data_directory).drop_in(),
        guard: guard.collect(),
        node,
    };
    render::render(Template::NodeUnit, &unit)
}

/// Renders the unit of a PgBouncer.
///
/// # Errors
/// When the template asks for something that there is not.
pub fn render_pooler(service: PoolerService<'_>) -> Result<String> {
    let drop_in = Unit::of_pooler(service.cluster, service.host, service.ini).drop_in();
    let unit = PoolerUnit { service, drop_in };
    render::render(Template::PoolerUnit, &unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::claim;
    use crate::topology::places::Places;

    fn profile() -> Profile {
        claim::read(include_bytes!("testdata/profile-1.json")).unwrap()
    }

    fn places() -> NodePlaces {
        Places::decide(true, |_| None).unwrap().node("inventory-b")
    }

    #[test]
    fn the_unit_of_a_node_is_what_it_was() {
        let unit = render(&profile(), &places(), Peers::Some).unwrap();
        assert_eq!(unit, include_str!("testdata/pgherd-inventory-b.service"));
        assert!(Unit::of_node("inventory-b", Path::new("/var/lib/pgherd/shop/inventory-b")).wrote(&unit));
        assert!(!Unit::of_node("inventory-b", Path::new("/var/lib/pgherd/shop/inventory")).wrote(&unit));
    }

    #[test]
    fn the_unit_of_a_pooler_is_what_it_was() {
        let ini = Path::new("/var/lib/pgherd/poolers/inventory-db1/pgbouncer.ini");
        let unit = render_pooler(PoolerService {
            cluster: "inventory",
            host: "db1",
            os_user: "postgres",
            pgbouncer: Path::new("/usr/sbin/pgbouncer"),
            ini,
            pidfile: Path::new("/var/lib/pgherd/poolers/inventory-db1/pgbouncer.pid"),
        });
        let unit = unit.unwrap();
        assert_eq!(unit, include_str!("testdata/pgbouncer-inventory-db1.service"));
        assert!(Unit::of_pooler("inventory", "db1", ini).wrote(&unit));
        assert!(!Unit::of_pooler("inventory", "db1", Path::new("/elsewhere/pgbouncer.ini")).wrote(&unit));
    }

    #[test]
    fn an_only_node_asks_nobody_and_one_without_an_archive_has_nobody_to_ask() {
        let alone = render(&profile(), &places(), Peers::None).unwrap();
        assert!(alone.contains("/profile.json\nExecStart="), "{alone}");
        let bare = Profile { archive: None, ..profile() };
        let unit = render(&bare, &places(), Peers::Some).unwrap();
        assert!(!unit.contains("ExecStartPre"), "{unit}");
    }

    #[test]
    fn what_systemd_would_expand_stands_for_itself() {
        let odd = Profile { data_directory: PathBuf::from("/srv/50% \"of\" $HOME"), ..profile() };
        let unit = render(&odd, &places(), Peers::Some).unwrap();
        assert!(unit.contains("-D \"/srv/50%% \\\"of\\\" $$HOME\"\n"), "{unit}");
        assert!(Unit::of_node("inventory-b", &odd.data_directory).wrote(&unit));
    }
}
