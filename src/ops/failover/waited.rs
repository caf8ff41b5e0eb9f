//! What can still be learnt of whom commits of the old primary waited for: from its own files, from the standbys that answer, from roles and databases.

use std::time::Duration;

use futures_util::future::join;

use crate::db::commits::{self, Unconfirmed};
use crate::error::Result;
use crate::host::Command;
use crate::ops::failover::quorum::Said;
use crate::ops::observe::{Doors, Running};
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

/// How long the host of the old primary may take to read its files.
const FILES: Duration = Duration::from_secs(2);

/// Reads what the files of the old primary say, as PostgreSQL itself reads them; `None` if they cannot be read.
pub(super) async fn by_its_files(doors: &Doors, cluster: &Cluster, old: &Node) -> Option<Said> {
    let programs = doors.programs(cluster, &old.host).await.ok()?;
    let setting = async |name: &str| {
        let directory = old.data_directory.display().to_string();
        let file = old.configuration().join(declared::CONF_FILE).display().to_string();
        let command = Command::new(programs.path("postgres"))
            .args(["-D", directory.as_str(), "-c", &format!("config_file={file}"), "-C", name])
            .reads()
            .timeout(FILES);
        let output = doors.host(&old.host).run(&command).await.ok()?;
        Some(output.text().trim().to_owned())
    };
    let (names, commit) = join(setting("synchronous_standby_names"), setting("synchronous_commit")).await;
    Some(Said { node: old.name.clone(), names: names?, commit })
}

/// Returns what a standby says by the settings that it would lead with.
pub(super) fn by_a_standby(node: &Node, running: &Running, unconfirmed: &[Unconfirmed]) -> Said {
    // The files are what every node of the cluster shares; a session of ours has a value of its own.
    let everybody = unconfirmed.iter().rfind(|found| found.role.is_none() && found.database.is_none());
    Said {
        node: node.name.clone(),
        names: running.facts.synchronous_standby_names.clone(),
        commit: everybody.map(|found| found.value.clone()),
    }
}

/// Asks a standby whose commits wait for no standby's disk.
///
/// # Errors
/// When it does not say: then nothing is known to be confirmed.
pub(super) async fn unconfirmed(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<Vec<Unconfirmed>> {
    let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
    Ok(commits::unconfirmed(&conn).await?)
}

/// Says whose commits R + W > N does not speak of: a fragment, `role batch in database shop (synchronous_commit = off)`.
pub(super) fn told(unconfirmed: &[Unconfirmed]) -> Option<String> {
    let who = |found: &Unconfirmed| {
        let whose = match (&found.role, &found.database) {
            (None, None) => "every session".to_owned(),
            (Some(role), None) => format!("role {role}"),
            (None, Some(database)) => format!("database {database}"),
            (Some(role), Some(database)) => format!("role {role} in database {database}"),
        };
        format!("{whose} (synchronous_commit = {})", found.value)
    };
    let told: Vec<String> = unconfirmed.iter().map(who).collect();
    (!told.is_empty()).then(|| told.join(", "))
}
