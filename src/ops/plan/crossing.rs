//! Whether a running node is on its way between plain and encrypted connections.

use crate::ops::observe::{Files, NodeObserved};
use crate::pg::guc;
use crate::topology::declared::{self, Setting};
use crate::topology::model::Cluster;

/// Which way a running node goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crossing {
    /// It is where it should be, or nobody is connected to it.
    None,
    /// It is to force TLS and does not yet.
    Begins,
    /// It speaks TLS and is not to.
    Ends,
}

/// Decides which way a node goes.
pub(super) fn crossing(cluster: &Cluster, seen: &NodeObserved) -> Crossing {
    let (Some(files), Some(_)) = (&seen.files, seen.running()) else { return Crossing::None };
    if cluster.has_tls() {
        let same = declared::access_lines(cluster) == declared::plain_access_lines(cluster);
        let begins = !has_tls_settings(files) || !(same || declared::forces_tls(&files.pg_hba));
        if begins { Crossing::Begins } else { Crossing::None }
    } else if has_tls_settings(files) {
        Crossing::Ends
    } else {
        Crossing::None
    }
}

fn has_tls_settings(files: &Files) -> bool {
    !kept(files.shared.as_deref()).is_empty()
}

/// The settings by which a server speaks TLS, as a file of ours has them now.
pub(super) fn kept(file: Option<&str>) -> Vec<Setting> {
    let mut settings = guc::ConfFile::parse(file.unwrap_or_default()).settings();
    settings.retain(|(name, _)| declared::TLS_SETTINGS.contains(&name.as_str()));
    settings
}
