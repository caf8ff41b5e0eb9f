//! The systemd unit of a node: what it is called, where it is, what it says.
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

/// Returns the unit's name: `pgherd-inventory-a.service`.
pub fn name(node: &str) -> String {
    format!("pgherd-{node}.service")
}

/// Returns where the unit of a node is.
pub fn path(node: &str) -> PathBuf {
    Path::new(UNITS).join(name(node))
}

/// Returns the link that starts it with the host.
pub fn enabling_link(node: &str) -> PathBuf {
    Path::new(UNITS).join("multi-user.target.wants").join(name(node))
}

/// Tells whether a unit is the one of a data directory: a scratch copy of a node has the node's name, not its unit.
pub fn is_of(text: &str, data_directory: &Path) -> bool {
    let line =
        format!("AssertPathExists={}/PG_VERSION", render::unit_path(&data_directory.display().to_string()));
    text.lines().any(|found| found == line)
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
        drop_in: Path::new(UNITS).join(format!("{}.d", name(&node))),
        guard: guard.collect(),
        node,
    };
    render::render(Template::NodeUnit, &unit)
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
        assert!(is_of(&unit, Path::new("/var/lib/pgherd/shop/inventory-b")));
        assert!(!is_of(&unit, Path::new("/var/lib/pgherd/shop/inventory")));
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
        assert!(is_of(&unit, &odd.data_directory));
    }
}
