//! A new password for one of pgherd's own logins, while standbys stream and clients work.
//!
//! PostgreSQL knows one password a role, and libpq takes the first line of a password file that fits, so there is a moment in which
//! files and server differ. It is the time of one statement: whoever logs in just then is refused and tries again, and whoever is
//! connected notices nothing. Both passwords are kept on the primary until nothing is taken back any more.

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::db::logins::{self as sql, Purpose};
use crate::db::{Conn, objects};
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::Command;
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::apply::{follow, logins, pooler};
use crate::ops::provision::{self, Site};
use crate::pg::scram::Verifier;
use crate::secret::Secret;
use crate::topology::declared;

/// The format of the file that holds both passwords; docs/formats/rotation.md.
const FORMAT: u32 = 1;

/// Both passwords of a login, in a file that only the os-user may read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    format: u32,
    operation: String,
    login: Purpose,
    old: Credential,
    new: Credential,
}

/// A password, and what the server stores of it: an undo brings back the very same.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Credential {
    password: String,
    verifier: String,
}

impl Credential {
    fn password(&self) -> Secret {
        Secret::new(self.password.clone())
    }

    fn verifier(&self) -> Secret {
        Secret::new(self.verifier.clone())
    }
}

/// Looks whether this operation has generated the new password.
pub(crate) async fn look_staged(world: &World, login: Purpose) -> Result<Found<Evidence>> {
    Ok(match read(world, login).await? {
        Some(_) => Found::Done(Evidence::PasswordStaged {}),
        None => Found::NotDone,
    })
}

/// Generates the new password and writes it down beside the old one.
pub(crate) async fn stage(world: &World, login: Purpose) -> Result<Evidence> {
    if read(world, login).await?.is_some() {
        return Ok(Evidence::PasswordStaged {});
    }
    let primary = world.primary()?;
    let role = login.role(&world.input.cluster);
    let current = logins::read(&world.doors, &world.input.cluster, primary.node).await?;
    let stored = sql::stored_login(&primary.connect().await?, role, login).await?;
    let stored = stored.and_then(|stored| stored.verifier);
    let (Some(current), Some(verifier)) = (current, stored) else {
        return Err(Error::failed(format!("{role} of {} has no password yet", world.input.cluster.name))
            .hint("Have pgherd make it: pgherd apply"));
    };
    let password =
        Secret::generate().map_err(|error| Error::failed("could not generate a password").source(error))?;
    let rotation = Rotation {
        format: FORMAT,
        operation: world.operation.clone(),
        login,
        old: Credential {
            password: current.of(login).reveal().to_owned(),
            verifier: verifier.reveal().to_owned(),
        },
        new: Credential {
            password: password.reveal().to_owned(),
            verifier: logins::new_verifier(&password)?.reveal().to_owned(),
        },
    };
    let text = serde_json::to_string_pretty(&rotation).expect("plain text") + "\n";
    provision::write(&primary, &primary.places().rotation, text.as_bytes(), 0o600).await?;
    Ok(Evidence::PasswordStaged {})
}

/// Gives `nodes` and the server the new password, and logs in with it from each node.
pub(crate) async fn replace(world: &World, login: Purpose, nodes: &[String]) -> Result<Evidence> {
    let Some(rotation) = read(world, login).await? else {
        return Err(Error::failed(format!(
            "the new password of {} is not there",
            login.role(&world.input.cluster)
        )));
    };
    set(world, login, nodes, &rotation.new).await?;
    if login == Purpose::Replication {
        let sites: Vec<Site<'_>> = nodes.iter().map(|node| world.site(node)).collect::<Result<_>>()?;
        try_join_all(sites.iter().map(|site| log_in(world, site))).await?;
    }
    Ok(Evidence::PasswordRotated { nodes: nodes.to_vec() })
}

/// Gives `nodes` and the server the old password again, if this operation has begun to replace it.
pub(crate) async fn put_back(world: &World, login: Purpose, nodes: &[String]) -> Result<()> {
    match read(world, login).await? {
        Some(rotation) => set(world, login, nodes, &rotation.old).await,
        None => Ok(()),
    }
}

/// Forgets what was written down.
pub(crate) async fn forget(world: &World, login: Purpose) -> Result<Evidence> {
    let primary = world.primary()?;
    let path = primary.places().rotation;
    primary.host().remove_file(&path).await.map_err(|error| {
        Error::failed(format!("could not remove the old password of {}", login.role(&world.input.cluster)))
            .source(error)
    })?;
    Ok(Evidence::PasswordForgotten {})
}

/// The files first: a disk that takes no more is found before the server has changed.
async fn set(world: &World, login: Purpose, nodes: &[String], to: &Credential) -> Result<()> {
    let primary = world.primary()?;
    let role = login.role(&world.input.cluster);
    let current = logins::read(&world.doors, &world.input.cluster, primary.node).await?;
    let wanted = current
        .ok_or_else(|| Error::failed(format!("{} has no password file", primary.name())))?
        .with(login, to.password());
    // Opened before the files change, so that the moment in which they differ from the server is short.
    let conn = logins::quiet_primary(world, &primary).await?;
    let sites: Vec<Site<'_>> = nodes.iter().map(|node| world.site(node)).collect::<Result<_>>()?;
    try_join_all(sites.iter().map(|site| logins::write(site, &wanted))).await?;
    let stored = sql::stored_login(&conn, role, login).await?.and_then(|stored| stored.verifier);
    if login == Purpose::Probe
        && let Ok(verifier) = Verifier::parse(&to.verifier)
    {
        pooler::let_in(world, role, &verifier, Some(&to.password())).await?;
    }
    if stored.as_ref().map(Secret::reveal) != Some(to.verifier.as_str()) {
        sql::ensure_login(&conn, role, login, &to.verifier()).await?;
    }
    if login == Purpose::Replication {
        // One that was refused in between would wait for its wal_retrieve_retry_interval.
        follow::wake_standbys(world).await;
    }
    Ok(())
}

/// Gives a role of the topology its declared password.
///
/// The pooler first: whoever comes with the old password is refused from then on, whoever comes with the new one goes to a server
/// connection that is there, and what is left until the server knows the password is one statement.
pub(crate) async fn set_declared(world: &World, role: &str) -> Result<()> {
    let primary = world.primary()?;
    let password = world
        .passwords
        .get(role)
        .ok_or_else(|| Error::failed(format!("the declared password of {role} is not at hand")))?;
    let conn = logins::quiet_primary(world, &primary).await?;
    if let Some(stored) = stored_verifier(&conn, role).await?
        && stored.matches(password)
    {
        return pooler::let_in(world, role, &stored, Some(password)).await;
    }
    let text = logins::new_verifier(password)?;
    let verifier = Verifier::parse(text.reveal()).expect("it was derived just now");
    pooler::let_in(world, role, &verifier, Some(password)).await?;
    objects::change::set_verifiers(&conn, &[(role, verifier)]).await.map_err(Error::from)
}

/// Has the poolers let a role in by what the primary stores of its password.
pub(crate) async fn agree(world: &World, role: &str) -> Result<()> {
    let conn = world.primary()?.connect().await.map_err(Error::from)?;
    match stored_verifier(&conn, role).await? {
        Some(stored) => pooler::let_in(world, role, &stored, None).await,
        None => Ok(()),
    }
}

async fn stored_verifier(conn: &Conn, role: &str) -> Result<Option<Verifier>> {
    let rows = objects::roles(conn).await?;
    let stored = rows.into_iter().find(|row| row.name == role).and_then(|row| row.verifier);
    Ok(stored.and_then(|stored| Verifier::parse(stored.reveal()).ok()))
}

/// Logs in as a standby does, with the node's own password file.
async fn log_in(world: &World, site: &Site<'_>) -> Result<()> {
    let primary = world.primary()?;
    let conninfo = format!(
        "{} port={} user={} replication=true connect_timeout=5",
        declared::server_of(&world.input.cluster, primary.node),
        primary.node.port,
        declared::replication_role(&world.input.cluster)
    );
    let command = Command::new(site.programs.path("psql"))
        .args(["-XAtqw", "-d", conninfo.as_str(), "-c", "IDENTIFY_SYSTEM"])
        .env("PGPASSFILE", site.places().passfile.display().to_string())
        .reads();
    let command = provision::verifying(site, command);
    site.host().run(&command).await.map(drop).map_err(|error| {
        Error::failed(format!(
            "{} cannot log in to {} with the new password of {}",
            site.name(),
            primary.name(),
            declared::replication_role(&world.input.cluster)
        ))
        .source(error)
    })
}

/// Reads what this operation has written down; another operation's does not count.
async fn read(world: &World, login: Purpose) -> Result<Option<Rotation>> {
    let primary = world.primary()?;
    let path = primary.places().rotation;
    let could_not = || Error::failed(format!("could not read {}", path.display()));
    let bytes = primary.host().read(&path).await.map_err(|error| could_not().source(error))?;
    let Some(bytes) = bytes else { return Ok(None) };
    Ok(parse(&bytes).filter(|found| found.operation == world.operation && found.login == login))
}

/// Reads the file; its error would show what is in it.
fn parse(bytes: &[u8]) -> Option<Rotation> {
    let rotation: Rotation = serde_json::from_slice(bytes).ok()?;
    let is_whole = |one: &Credential| {
        Verifier::parse(&one.verifier).is_ok_and(|verifier| verifier.matches(&one.password()))
    };
    (rotation.format == FORMAT && is_whole(&rotation.old) && is_whole(&rotation.new)).then_some(rotation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../../tests/golden/rotation-v1.json");

    #[test]
    fn the_golden_rotation_reads_and_writes_byte_for_byte() {
        let rotation = parse(GOLDEN.as_bytes()).expect("it is whole");
        assert_eq!(rotation.operation, "7f3a");
        assert_eq!(serde_json::to_string_pretty(&rotation).unwrap() + "\n", GOLDEN);
    }

    #[test]
    fn a_damaged_one_does_not_count() {
        assert!(parse(b"{}").is_none());
        assert!(parse(GOLDEN.replace("old-password", "another").as_bytes()).is_none());
        assert!(parse(GOLDEN.replace("\"format\": 1", "\"format\": 2").as_bytes()).is_none());
    }
}
