//! The logins that pgherd makes for itself, and the password files that name them.
//!
//! A password is generated once, kept in the nodes' password files (0600), and only its SCRAM verifier goes to the server.

use futures_util::future::join_all;

use crate::db::logins::{self, Purpose, StoredLogin};
use crate::db::{Conn, NodeConn, PrimaryConn, Session, classify};
use crate::error::{Error, Result};
use crate::ops::apply::world::World;
use crate::ops::observe::Doors;
use crate::ops::provision::{self, Site};
use crate::pg::scram::{DEFAULT_ITERATIONS, SALT_LENGTH, Verifier};
use crate::secret::Secret;
use crate::topology::model::{Cluster, Node};

const PURPOSES: [Purpose; 2] = [Purpose::Replication, Purpose::Probe];

/// Pairs each login of a cluster with its role.
fn logins_of(cluster: &Cluster) -> [(&'static str, Purpose); PURPOSES.len()] {
    PURPOSES.map(|purpose| (purpose.role(cluster), purpose))
}

/// What was found of the logins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    Right,
    /// `nodes` are those whose password file is missing or different.
    Wrong {
        what: String,
        nodes: Vec<String>,
    },
}

/// Passwords in the order of [`PURPOSES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passwords([Secret; PURPOSES.len()]);

impl Passwords {
    fn generate() -> Result<Self> {
        let one = || {
            Secret::generate().map_err(|error| Error::failed("could not generate a password").source(error))
        };
        Ok(Self([one()?, one()?]))
    }

    pub(super) fn of(&self, login: Purpose) -> &Secret {
        let [replication, probe] = &self.0;
        match login {
            Purpose::Replication => replication,
            Purpose::Probe => probe,
        }
    }

    pub(super) fn with(&self, login: Purpose, password: Secret) -> Self {
        let [replication, probe] = self.0.clone();
        match login {
            Purpose::Replication => Self([password, probe]),
            Purpose::Probe => Self([replication, password]),
        }
    }

    /// Reads a password file (PostgreSQL docs, "The Password File"); ours holds a line a login, with nothing to escape.
    fn parse(text: &str, cluster: &Cluster) -> Option<Self> {
        let find = |role: &str| {
            text.lines().find_map(|line| line.strip_prefix(&format!("*:*:*:{role}:"))).map(Secret::new)
        };
        let [replication, probe] = PURPOSES.map(|purpose| find(purpose.role(cluster)));
        Some(Self([replication?, probe?]))
    }

    fn file(&self, cluster: &Cluster) -> String {
        logins_of(cluster)
            .iter()
            .zip(&self.0)
            .map(|((role, _), password)| format!("*:*:*:{role}:{}\n", password.reveal()))
            .collect()
    }
}

/// Looks for the logins on the primary and compares the password files of `nodes` with the primary's.
pub(crate) async fn look(world: &World, nodes: &[String]) -> Result<Look> {
    let primary = world.primary()?;
    let cluster = &world.input.cluster;
    let others: Vec<&Node> = nodes.iter().map(|name| world.node(name)).collect::<Result<_>>()?;
    examine(&world.doors, cluster, primary.node, &others).await
}

/// As [`look`], for who plans and has no operation yet.
pub(super) async fn examine(
    doors: &Doors,
    cluster: &Cluster,
    primary: &Node,
    nodes: &[&Node],
) -> Result<Look> {
    let conn = doors.connector.connect(&doors.superuser(cluster, primary, "postgres")).await?;
    let Some(passwords) = read(doors, cluster, primary).await? else {
        return Ok(Look::Wrong {
            what: format!("{} has no password file", cluster.full_name(&primary.name)),
            nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        });
    };
    let files = join_all(nodes.iter().map(|node| read(doors, cluster, node))).await;
    let mut differ = Vec::new();
    for (node, file) in nodes.iter().zip(files) {
        if file?.as_ref() != Some(&passwords) {
            differ.push(node.name.clone());
        }
    }
    let mut what: Vec<String> = differ
        .iter()
        .map(|node| format!("the password file of {} is missing or different", cluster.full_name(node)))
        .collect();
    for ((role, purpose), password) in logins_of(cluster).into_iter().zip(&passwords.0) {
        what.extend(
            wrong(logins::stored_login(&conn, role, purpose).await?, password)
                .map(|why| format!("{role} {why}")),
        );
    }
    Ok(if what.is_empty() { Look::Right } else { Look::Wrong { what: what.join("; "), nodes: differ } })
}

fn wrong(stored: Option<StoredLogin>, password: &Secret) -> Option<&'static str> {
    let Some(stored) = stored else { return Some("is not there") };
    let matches = stored
        .verifier
        .and_then(|verifier| Verifier::parse(verifier.reveal()).ok())
        .is_some_and(|verifier| verifier.matches(password));
    match (stored.fits, matches) {
        (true, true) => None,
        (false, _) => Some("has other attributes than it needs"),
        (true, false) => Some("has another password than the password file"),
    }
}

/// Makes the logins on the primary and writes the password files of the primary and of `nodes`.
pub(crate) async fn ensure(world: &World, nodes: &[String]) -> Result<()> {
    let primary = world.primary()?;
    let passwords = match read(&world.doors, &world.input.cluster, primary.node).await? {
        Some(passwords) => passwords,
        None => {
            let passwords = Passwords::generate()?;
            write(&primary, &passwords).await?;
            passwords
        }
    };
    let conn = quiet_primary(world, &primary).await?;
    for ((role, purpose), password) in logins_of(&world.input.cluster).into_iter().zip(&passwords.0) {
        if wrong(logins::stored_login(&conn, role, purpose).await?, password).is_some() {
            let verifier = new_verifier(password)?;
            logins::ensure_login(&conn, role, purpose, &verifier).await?;
        }
    }
    for node in nodes.iter().filter(|node| **node != world.input.primary) {
        provision::copy_passfile(&world.site(node)?, primary.node).await?;
    }
    Ok(())
}

/// Derives a verifier with a salt of its own.
pub(super) fn new_verifier(password: &Secret) -> Result<Secret> {
    let mut salt = [0_u8; SALT_LENGTH];
    getrandom::fill(&mut salt).map_err(|error| Error::failed("could not make a salt").source(error))?;
    Ok(Verifier::derive(password, &salt, DEFAULT_ITERATIONS).text())
}

/// Returns the password of the write proof's login.
pub(super) async fn probe_password(world: &World) -> Result<Secret> {
    let primary = world.primary()?;
    let passwords = read(&world.doors, &world.input.cluster, primary.node).await?;
    let passwords =
        passwords.ok_or_else(|| Error::failed(format!("{} has no password file", primary.name())))?;
    Ok(passwords.of(Purpose::Probe).clone())
}

pub(super) async fn quiet_primary(world: &World, primary: &Site<'_>) -> Result<PrimaryConn> {
    let mut login = world.doors.superuser(&world.input.cluster, primary.node, "postgres");
    login.session = Session::Quiet;
    as_primary(world.doors.connector.connect(&login).await?, &primary.name()).await
}

/// Holds a session to be a primary's.
pub(crate) async fn as_primary(conn: Conn, name: &str) -> Result<PrimaryConn> {
    match classify(conn).await? {
        NodeConn::Primary(conn) => Ok(conn),
        NodeConn::Standby(_) => {
            Err(Error::refused(format!("{name} is in recovery: it is not the primary any more"))
                .hint("Look again: pgherd status"))
        }
    }
}

pub(super) async fn read(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<Option<Passwords>> {
    let path = doors.node_places(cluster, node).passfile;
    let bytes = doors
        .host(&node.host)
        .read(&path)
        .await
        .map_err(|error| Error::failed(format!("could not read {}", path.display())).source(error))?;
    Ok(bytes.and_then(|bytes| Passwords::parse(&String::from_utf8_lossy(&bytes), cluster)))
}

pub(super) async fn write(site: &Site<'_>, passwords: &Passwords) -> Result<()> {
    provision::write(site, &site.places().passfile, passwords.file(site.cluster).as_bytes(), 0o600).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_reads_back_and_a_damaged_one_does_not_count() {
        let passwords = Passwords::generate().unwrap();
        let topology = "pgherd: 1\nherd: shop\nregions: {here: {hosts: {local: local}}}\nclusters: {inventory: {postgres: {version: 15}, nodes: {a: {host: local, port: 5441}}, databases: {inventory: {}}}}\n";
        let herd = crate::topology::load_text(
            std::path::Path::new("/pgherd.yml"),
            topology,
            std::path::Path::new("/"),
        )
        .unwrap();
        let cluster = herd.cluster("inventory").unwrap();
        assert_eq!(Passwords::parse(&passwords.file(cluster), cluster), Some(passwords.clone()));
        assert_eq!(Passwords::parse("*:*:*:replicator:x\n", cluster), None);
        // In a cluster that was adopted the name may be somebody else's.
        let adopted = cluster.with_adopted(&std::collections::BTreeSet::from(["a".to_owned()]));
        assert_eq!(Passwords::parse(&passwords.file(cluster), &adopted), None);
    }
}
