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
        let begins = !has_tls_settings(cluster, files) || !(same || declared::forces_tls(&files.pg_hba));
        if begins { Crossing::Begins } else { Crossing::None }
    } else if has_tls_settings(cluster, files) {
        Crossing::Ends
    } else {
        Crossing::None
    }
}

/// Tells whether a server of ours speaks TLS by our own settings.
pub(super) fn has_tls_settings(cluster: &Cluster, files: &Files) -> bool {
    !kept(cluster, files.shared.as_deref()).is_empty()
}

/// The settings by which a server speaks TLS, as a file of ours has them now.
pub(super) fn kept(cluster: &Cluster, file: Option<&str>) -> Vec<Setting> {
    let mut settings = guc::ConfFile::parse(file.unwrap_or_default()).settings();
    settings.retain(|(name, _)| is_ours(cluster, name));
    settings
}

/// Tells whether a setting follows from `tls` and from nothing else: without it people may set them as they like.
pub(super) fn is_ours(cluster: &Cluster, name: &str) -> bool {
    declared::TLS_SETTINGS.contains(&name) && !cluster.postgres.settings.contains_key(name)
}
