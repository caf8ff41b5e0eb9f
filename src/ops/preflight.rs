//! What is missing on hosts that are reached by ssh, found on all of them before anything is planned.
//!
//! Reads only. What is missing is said with the command or the line that mends it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use crate::error::{Error, Result};
use crate::host::{Command, Host, HostError, RunAs, programs};
use crate::ops::observe::Doors;
use crate::topology::model::Cluster;

/// Prints each of its arguments that could not be made: where the nearest directory that is there may not be written.
const UNMAKEABLE: &str = r#"for p in "$@"; do
    a=$p
    while [ ! -e "$a" ] && [ ! -h "$a" ]; do a=$(dirname -- "$a"); done
    if [ ! -d "$a" ] || [ ! -w "$a" ] || [ ! -x "$a" ]; then printf '%s\0' "$p"; fi
done"#;

/// What is missing on the hosts of a cluster.
#[derive(Debug, Default)]
pub struct Missing {
    pub errors: Vec<Error>,
    /// Hosts of which nothing else can be said.
    pub closed: BTreeSet<String>,
}

/// Looks at every host that `cluster` uses, side by side.
pub async fn look(doors: &Doors, cluster: &Cluster) -> Missing {
    let names = cluster.used_hosts();
    let looks = join_all(names.iter().map(|name| look_at(doors, cluster, name))).await;
    let mut missing = Missing::default();
    for (name, look) in names.into_iter().zip(looks) {
        match look {
            Ok(errors) => missing.errors.extend(errors),
            Err(errors) => {
                missing.errors.extend(errors);
                missing.closed.insert(name.clone());
            }
        }
    }
    missing
}

/// Tells what of PostgreSQL's and PgBouncer's programs is missing on the hosts of nodes and of poolers, and which of those hosts cannot be
/// asked.
pub async fn programs(
    doors: &Doors,
    cluster: &Cluster,
    nodes: impl Iterator<Item = &String>,
    poolers: impl Iterator<Item = &String>,
) -> Vec<Error> {
    let (nodes, poolers): (BTreeSet<&String>, BTreeSet<&String>) = (nodes.collect(), poolers.collect());
    let looks = nodes.union(&poolers).map(async |name| {
        let host = doors.host(name);
        if let Err(errors) = host.reach().await {
            return errors;
        }
        let postgres =
            async { if nodes.contains(name) { doors.programs(cluster, name).await.err() } else { None } };
        let pgbouncer =
            async { if poolers.contains(name) { programs::find_pgbouncer(host).await.err() } else { None } };
        let (postgres, pgbouncer) = futures_util::join!(postgres, pgbouncer);
        postgres.into_iter().chain(pgbouncer).collect()
    });
    join_all(looks).await.into_iter().flatten().collect()
}

async fn look_at(doors: &Doors, cluster: &Cluster, name: &str) -> Result<Vec<Error>, Vec<Error>> {
    let host = doors.host(name);
    host.reach().await?;
    if host.tunnel().is_none() {
        return Ok(Vec::new());
    }
    let could_not = |error: HostError| {
        vec![Error::failed(format!("could not see what may be made on host {name}")).source(error)]
    };
    let places = doors.places(name);
    let mut owned: Vec<PathBuf> = vec![places.config().to_owned(), places.state().to_owned()];
    owned.extend(
        cluster.nodes.iter().filter(|node| node.host == name).map(|node| node.data_directory.clone()),
    );
    let mut programs = Vec::new();
    if let Some(backups) = &cluster.backups {
        owned.extend(backups.repository.directory().map(Path::to_owned));
        programs.push(places.lib().to_owned());
    }
    let closed = unmakeable(host, &owned, RunAs::OsUser).await.map_err(could_not)?;
    let lib = unmakeable(host, &programs, RunAs::Caller).await.map_err(could_not)?;
    if closed.is_empty() && lib.is_empty() {
        return Ok(Vec::new());
    }
    let id = Command::new("id").arg("-u").user(RunAs::Caller).reads();
    // Root makes a directory for the os-user.
    let root = host.run(&id).await.map_err(could_not)?.text().trim() == "0";
    let closed = if root { Vec::new() } else { closed };
    let forbidden_to = |owner: &str, paths: Vec<PathBuf>| -> Vec<Error> {
        paths.iter().map(|path| forbidden(name, owner, path)).collect()
    };
    let mut errors = forbidden_to(host.os_user(), closed);
    errors.extend(forbidden_to(host.caller(), lib));
    Ok(errors)
}

async fn unmakeable(host: &dyn Host, paths: &[PathBuf], user: RunAs) -> Result<Vec<PathBuf>, HostError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let words = paths.iter().map(|path| path.display().to_string());
    let look = Command::new("sh").args(["-c", UNMAKEABLE, "pgherd"]).args(words).user(user).reads();
    let said = host.run(&look).await?.text();
    Ok(said.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect())
}

fn forbidden(host: &str, owner: &str, path: &Path) -> Error {
    Error::refused(format!("{owner} may not write {} on host {host}", path.display()))
        .detail("It is not there, or belongs to somebody else, and pgherd does not become root there. Nothing was changed.")
        .hint(format!("Have root make it there: install -d -o {owner} -m 0755 {}", path.display()))
}

/// The same obstacle of two nodes of one host is told once.
pub fn without_twins(errors: Vec<Error>) -> Vec<Error> {
    let mut told: Vec<Error> = Vec::new();
    for error in errors {
        if !told.iter().any(|other| other.what() == error.what()) {
            told.push(error);
        }
    }
    told
}
