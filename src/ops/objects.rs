//! Declared roles, databases, schemas and grants against what the primary has.
//!
//! For a role that the topology names (also as the owner of a schema) attributes, memberships and grants on declared databases and
//! schemas are exact: what is missing is granted, what is too much is revoked. Whatever else is there is only told
//! ([`notes`]): roles that the topology does not name, schemas that it does not declare, and what has left the file. Nothing is
//! ever dropped, no object but a database or a schema changes its owner, and functions and types keep PostgreSQL's defaults.

mod plan;
mod tell;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use plan::plan;
pub use tell::notes;

use crate::db::objects::change::{self as sql, Future, Taken, Target};
use crate::db::objects::{
    self as catalog, Attributes, Container, DefaultGrant, Grantee, Membership, Owned, Privilege,
    RelationGrant,
};
use crate::db::{Connector, DbError, Login, NodeConn, PrimaryConn, Session, classify};
use crate::pg::scram::{DEFAULT_ITERATIONS, SALT_LENGTH, Verifier};
use crate::secret::Secret;
use crate::topology::model::Cluster;

/// How to get to the primary; the database and the session of `login` are replaced as needed.
#[derive(Debug, Clone, Copy)]
pub struct ToPrimary<'a> {
    pub connector: &'a Connector,
    /// As the superuser, to a database that is always there.
    pub login: &'a Login,
}

impl ToPrimary<'_> {
    async fn open(&self, database: &str, session: Session) -> Result<PrimaryConn, DbError> {
        let login = Login { database: database.to_owned(), session, ..self.login.clone() };
        match classify(self.connector.connect(&login).await?).await? {
            NodeConn::Primary(conn) => Ok(conn),
            NodeConn::Standby(_) => Err(DbError::NotSent {
                server: login.server,
                what: "look at roles and grants".to_owned(),
                why: "it is a standby".to_owned(),
            }),
        }
    }
}

/// What the primary has. Holds no verifier: only whether it is one of the declared password.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ObjectsObserved {
    /// By name, without PostgreSQL's own.
    pub roles: BTreeMap<String, RoleFacts>,
    pub memberships: Vec<Membership>,
    pub databases: Vec<Container>,
    /// What is in each declared database that exists.
    pub inside: BTreeMap<String, DatabaseInside>,
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleFacts {
    pub attributes: Attributes,
    pub comment: Option<String>,
    pub password: StoredPassword,
}

/// What is stored as a role's password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredPassword {
    Missing,
    /// A SCRAM verifier of the declared password.
    Declared,
    /// A SCRAM verifier of another one.
    Other,
    /// An md5 hash, or what is none at all.
    NotScram,
    /// A SCRAM verifier, and no declared password was at hand to compare.
    NotCompared,
}

/// What is in one database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DatabaseInside {
    pub schemas: Vec<Container>,
    pub owned: Vec<Owned>,
    pub relations: Vec<RelationGrant>,
    pub defaults: Vec<DefaultGrant>,
}

/// Looks at roles, databases, schemas and grants; changes nothing.
///
/// `passwords` are the declared ones by role, as far as they could be resolved.
///
/// # Errors
/// [`DbError`]; `NotSent` from a standby.
pub async fn observe(
    to: ToPrimary<'_>,
    cluster: &Cluster,
    passwords: &BTreeMap<String, Secret>,
) -> Result<ObjectsObserved, DbError> {
    let conn = to.open(&to.login.database, Session::Tool).await?;
    let roles = catalog::roles(&conn).await?.into_iter().map(|row| {
        let password = compare(row.verifier.as_ref(), passwords.get(&row.name));
        (row.name, RoleFacts { attributes: row.attributes, comment: row.comment, password })
    });
    let mut observed = ObjectsObserved {
        roles: roles.collect(),
        memberships: catalog::memberships(&conn).await?,
        databases: catalog::databases(&conn).await?,
        inside: BTreeMap::new(),
    };
    for database in &cluster.databases {
        if observed.databases.iter().any(|there| there.name == *database) {
            let conn = to.open(database, Session::Tool).await?;
            let inside = DatabaseInside {
                schemas: catalog::schemas(&conn).await?,
                owned: catalog::owned_relations(&conn).await?,
                relations: catalog::relation_grants(&conn).await?,
                defaults: catalog::default_grants(&conn).await?,
            };
            observed.inside.insert(database.clone(), inside);
        }
    }
    Ok(observed)
}

fn compare(stored: Option<&Secret>, declared: Option<&Secret>) -> StoredPassword {
    let Some(stored) = stored else { return StoredPassword::Missing };
    match (Verifier::parse(stored.reveal()), declared) {
        (Err(_), _) => StoredPassword::NotScram,
        (Ok(_), None) => StoredPassword::NotCompared,
        (Ok(verifier), Some(password)) if verifier.matches(password) => StoredPassword::Declared,
        (Ok(_), Some(_)) => StoredPassword::Other,
    }
}

/// One change. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    CreateRole {
        role: String,
        attributes: Attributes,
    },
    AlterRole {
        role: String,
        before: Attributes,
        after: Attributes,
    },
    SetPassword {
        role: String,
        found: StoredPassword,
    },
    RevokeMembership(Membership),
    CreateDatabase {
        database: String,
    },
    /// Of a schema, or (`None`) of the database.
    ChangeOwner {
        database: String,
        schema: Option<String>,
        before: String,
        after: String,
    },
    CreateSchema {
        database: String,
        schema: String,
        owner: String,
    },
    Grant {
        database: String,
        on: Target,
        to: String,
        privileges: Vec<Privilege>,
        declared: Vec<Privilege>,
        extent: Option<Extent>,
    },
    Revoke {
        database: String,
        on: Target,
        from: Grantee,
        privileges: Vec<Privilege>,
        taken: Taken,
        declared: Vec<Privilege>,
        extent: Option<Extent>,
    },
    GrantDefault {
        database: String,
        on: Future,
        to: String,
        privileges: Vec<Privilege>,
        declared: Vec<Privilege>,
    },
    RevokeDefault {
        database: String,
        on: Future,
        from: Grantee,
        privileges: Vec<Privilege>,
        taken: Taken,
        declared: Vec<Privilege>,
    },
}

/// On how many relations of a schema something was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub found: i64,
    pub of: i64,
    /// One of them.
    pub example: Option<String>,
}

/// Makes one change, in one transaction; a second time it changes nothing.
///
/// # Errors
/// [`DbError`]; `NotSent` from a standby, and if the password to be set is not among `passwords`.
pub async fn apply(
    change: &Change,
    to: ToPrimary<'_>,
    passwords: &BTreeMap<String, Secret>,
) -> Result<(), DbError> {
    let everywhere = to.login.database.as_str();
    match change {
        Change::CreateRole { role, attributes } => {
            sql::ensure_role(&to.open(everywhere, Session::Tool).await?, role, attributes).await
        }
        Change::AlterRole { role, before, after } => {
            sql::alter_role(&to.open(everywhere, Session::Tool).await?, role, before, after).await
        }
        Change::SetPassword { role, .. } => set_passwords(to, std::slice::from_ref(role), passwords).await,
        Change::RevokeMembership(membership) => {
            sql::revoke_membership(&to.open(everywhere, Session::Tool).await?, membership).await
        }
        Change::CreateDatabase { database } => {
            sql::ensure_database(&to.open(everywhere, Session::Tool).await?, database).await
        }
        Change::ChangeOwner { database, schema, after, .. } => {
            sql::change_owner(&to.open(database, Session::Tool).await?, schema.as_deref(), after).await
        }
        Change::CreateSchema { database, schema, owner } => {
            sql::ensure_schema(&to.open(database, Session::Tool).await?, schema, owner).await
        }
        Change::Grant { database, on, to: role, privileges, .. } => {
            sql::grant(&to.open(database, Session::Tool).await?, on, role, privileges).await
        }
        Change::Revoke { database, on, from, privileges, taken, .. } => {
            sql::revoke(&to.open(database, Session::Tool).await?, on, from, privileges, *taken).await
        }
        Change::GrantDefault { database, on, to: role, privileges, .. } => {
            sql::grant_default(&to.open(database, Session::Tool).await?, on, role, privileges).await
        }
        Change::RevokeDefault { database, on, from, privileges, taken, .. } => {
            sql::revoke_default(&to.open(database, Session::Tool).await?, on, from, privileges, *taken).await
        }
    }
}

/// Sets the declared passwords of `roles` in one transaction: either all of them can log in, or none.
///
/// Only verifiers travel, over a session of which nothing is logged; one that is right is left as it is, since poolers hold it.
///
/// # Errors
/// [`DbError`]; `NotSent` from a standby, and if a password is not among `passwords`.
pub async fn set_passwords(
    to: ToPrimary<'_>,
    roles: &[String],
    passwords: &BTreeMap<String, Secret>,
) -> Result<(), DbError> {
    let not_sent = |why: String| DbError::NotSent {
        server: to.login.server.clone(),
        what: format!("set password of {}", roles.join(", ")),
        why,
    };
    let conn = to.open(&to.login.database, Session::Quiet).await?;
    let stored = catalog::roles(&conn).await?;
    let mut verifiers = Vec::new();
    for role in roles {
        let password = passwords
            .get(role)
            .ok_or_else(|| not_sent(format!("the declared password of {role} is not at hand")))?;
        let there = stored.iter().find(|row| row.name == *role).and_then(|row| row.verifier.as_ref());
        if compare(there, Some(password)) != StoredPassword::Declared {
            let mut salt = [0_u8; SALT_LENGTH];
            getrandom::fill(&mut salt).map_err(|error| not_sent(error.to_string()))?;
            verifiers.push((role.as_str(), Verifier::derive(password, &salt, DEFAULT_ITERATIONS)));
        }
    }
    if verifiers.is_empty() { Ok(()) } else { sql::set_verifiers(&conn, &verifiers).await }
}

/// Tells whether the declared passwords of `roles` are stored; `None` if that is so for some of them only.
///
/// # Errors
/// [`DbError`]; `NotSent` from a standby.
pub async fn passwords_set(
    to: ToPrimary<'_>,
    roles: &[String],
    passwords: &BTreeMap<String, Secret>,
) -> Result<Option<bool>, DbError> {
    let conn = to.open(&to.login.database, Session::Tool).await?;
    let stored = catalog::roles(&conn).await?;
    let right = roles
        .iter()
        .filter(|role| {
            let there = stored.iter().find(|row| row.name == **role).and_then(|row| row.verifier.as_ref());
            compare(there, passwords.get(*role)) == StoredPassword::Declared
        })
        .count();
    Ok(match right {
        0 => Some(false),
        all if all == roles.len() => Some(true),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::declared::SUPERUSER;
    use crate::topology::model::{Postgres, Role, Schema, SecretReference};

    fn cluster() -> Cluster {
        let role = |name: &str, connections| Role {
            name: name.to_owned(),
            password: Some(SecretReference::Env(name.to_uppercase())),
            pools: Vec::new(),
            connections,
        };
        Cluster {
            name: "inventory".to_owned(),
            postgres: Postgres {
                version: 14,
                bin_directory: None,
                os_user: None,
                service: crate::topology::model::Service::PgCtl,
                tls: None,
                tune_memory: None,
                settings: BTreeMap::new(),
            },
            nodes: Vec::new(),
            synchronous: None,
            health: BTreeMap::new(),
            checks: Vec::new(),
            hooks: Vec::new(),
            notify: None,
            partitions: Vec::new(),
            databases: vec!["inventory".to_owned()],
            schemas: vec![Schema {
                name: "stock".to_owned(),
                database: "inventory".to_owned(),
                owner: "stock_owner".to_owned(),
                write: vec!["stock_app".to_owned()],
                read: vec!["bi".to_owned()],
            }],
            roles: vec![role("stock_app", None), role("bi", Some(4))],
            poolers: None,
            objectives: BTreeMap::new(),
            backups: None,
            drills: None,
            hosts: Vec::new(),
        }
    }

    fn empty() -> ObjectsObserved {
        ObjectsObserved {
            roles: BTreeMap::new(),
            memberships: Vec::new(),
            databases: Vec::new(),
            inside: BTreeMap::new(),
        }
    }

    #[test]
    fn a_new_cluster_gets_its_objects_in_an_order_that_works() {
        let changes = plan(&cluster(), &empty());
        let lines: Vec<String> =
            changes.iter().map(|change| format!("{} {}", change.sign(), change.describe())).collect();
        assert_eq!(
            lines,
            [
                "+ create role bi (LOGIN, connection limit 4)",
                "+ create role stock_app (LOGIN)",
                "+ create role stock_owner (NOLOGIN)",
                "~ set password of stock_app (SCRAM verifier)",
                "~ set password of bi (SCRAM verifier)",
                "+ create database inventory",
                "+ create schema stock in inventory, owner stock_owner",
                "~ revoke CONNECT, TEMPORARY on database inventory from PUBLIC",
                "~ revoke CREATE on schema inventory.public from PUBLIC",
                "+ grant CONNECT, TEMPORARY on database inventory to bi",
                "+ grant CONNECT, TEMPORARY on database inventory to stock_app",
                "+ grant USAGE on schema inventory.stock to bi",
                "+ grant USAGE on schema inventory.stock to stock_app",
                "+ grant SELECT on future tables of stock_owner in inventory.stock to bi",
                "+ grant SELECT, INSERT, UPDATE, DELETE on future tables of stock_owner in inventory.stock to stock_app",
                "+ grant USAGE, SELECT, UPDATE on future sequences of stock_owner in inventory.stock to stock_app",
            ]
        );
    }

    #[test]
    fn a_change_reads_back_from_the_journal_and_holds_no_secret() {
        for change in plan(&cluster(), &empty()) {
            let text = serde_json::to_string(&change).unwrap();
            assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change);
        }
    }

    #[test]
    fn the_superuser_is_never_touched() {
        let mut cluster = cluster();
        cluster.schemas[0].owner = SUPERUSER.to_owned();
        cluster.schemas[0].write = vec![SUPERUSER.to_owned()];
        cluster.roles[0].name = SUPERUSER.to_owned();
        for change in plan(&cluster, &empty()) {
            let touched = matches!(&change, Change::CreateRole { role, .. } | Change::SetPassword { role, .. } if role == SUPERUSER);
            assert!(!touched, "{change:?}");
        }
    }
}
