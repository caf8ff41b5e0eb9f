//! Declared roles, databases, schemas and grants against what the primary has.
//!
//! For a role that the topology names (also as the owner of a schema) attributes, memberships and grants on declared databases and
//! schemas are exact: what is missing is granted, what is too much is revoked. Whatever else is there is only told
//! ([`notes`]): roles that the topology does not name, schemas that it does not declare, and what has left the file. Nothing is
//! ever dropped, no object but a database or a schema changes its owner, and functions and types keep PostgreSQL's defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::db::objects::{
    self as sql, Attributes, Class, Container, DefaultGrant, Future, Grant, Grantee, MADE_BY_PGHERD,
    Membership, Owned, Privilege, RelationGrant, Taken, Target, list,
};
use crate::db::{Connector, DbError, Login, NodeConn, PrimaryConn, Session, classify};
use crate::pg::scram::{DEFAULT_ITERATIONS, SALT_LENGTH, Verifier};
use crate::secret::Secret;
use crate::topology::declared::{PROBE_ROLE, SUPERUSER};
use crate::topology::model::Cluster;

/// What a role in `write` may do.
const WRITE: [Privilege; 4] = [Privilege::Select, Privilege::Insert, Privilege::Update, Privilege::Delete];
const WRITE_SEQUENCES: [Privilege; 3] = [Privilege::Usage, Privilege::Select, Privilege::Update];
/// What a role in `read` may do.
const READ: [Privilege; 1] = [Privilege::Select];

/// PostgreSQL's own roles that reach data or the operating system whatever is granted.
const MIGHTY: [&str; 7] = [
    "pg_read_all_data",
    "pg_write_all_data",
    "pg_read_server_files",
    "pg_write_server_files",
    "pg_execute_server_program",
    "pg_create_subscription",
    "pg_maintain",
];

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
    let roles = sql::roles(&conn).await?.into_iter().map(|row| {
        let password = compare(row.verifier.as_ref(), passwords.get(&row.name));
        (row.name, RoleFacts { attributes: row.attributes, comment: row.comment, password })
    });
    let mut observed = ObjectsObserved {
        roles: roles.collect(),
        memberships: sql::memberships(&conn).await?,
        databases: sql::databases(&conn).await?,
        inside: BTreeMap::new(),
    };
    for database in &cluster.databases {
        if observed.databases.iter().any(|there| there.name == *database) {
            let conn = to.open(database, Session::Tool).await?;
            let inside = DatabaseInside {
                schemas: sql::schemas(&conn).await?,
                owned: sql::owned_relations(&conn).await?,
                relations: sql::relation_grants(&conn).await?,
                defaults: sql::default_grants(&conn).await?,
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

/// Compares what is declared with what is there. The order is the order in which the changes can be made.
pub fn plan(cluster: &Cluster, observed: &ObjectsObserved) -> Vec<Change> {
    let managed = managed_roles(cluster);
    let mut changes = Vec::new();
    plan_roles(cluster, &managed, observed, &mut changes);
    for database in &cluster.databases {
        DatabasePlan::new(cluster, &managed, observed, database).run(&mut changes);
    }
    changes
}

/// The roles that the topology names, with the attributes that follow; never the superuser.
fn managed_roles(cluster: &Cluster) -> BTreeMap<&str, Attributes> {
    let owners = cluster.schemas.iter().map(|schema| (schema.owner.as_str(), plain(false, None)));
    let roles = cluster
        .roles
        .iter()
        .map(|role| (role.name.as_str(), plain(role.password.is_some(), role.connections)));
    owners.chain(roles).filter(|(name, _)| *name != SUPERUSER).collect()
}

fn plain(login: bool, connections: Option<u32>) -> Attributes {
    Attributes {
        login,
        superuser: false,
        create_database: false,
        create_role: false,
        replication: false,
        bypass_row_security: false,
        connection_limit: connections.map_or(-1, |limit| i32::try_from(limit).unwrap_or(i32::MAX)),
        valid_until: None,
    }
}

fn plan_roles(
    cluster: &Cluster,
    managed: &BTreeMap<&str, Attributes>,
    observed: &ObjectsObserved,
    changes: &mut Vec<Change>,
) {
    for (name, after) in managed {
        let role = (*name).to_owned();
        match observed.roles.get(*name) {
            None => changes.push(Change::CreateRole { role, attributes: after.clone() }),
            Some(there) if there.attributes != *after => changes.push(Change::AlterRole {
                role,
                before: there.attributes.clone(),
                after: after.clone(),
            }),
            Some(_) => {}
        }
    }
    for role in cluster.roles.iter().filter(|role| role.password.is_some() && role.name != SUPERUSER) {
        let found = observed.roles.get(&role.name).map_or(StoredPassword::Missing, |there| there.password);
        match found {
            StoredPassword::Declared | StoredPassword::NotCompared => {}
            StoredPassword::Missing | StoredPassword::Other | StoredPassword::NotScram => {
                changes.push(Change::SetPassword { role: role.name.clone(), found });
            }
        }
    }
    let too_much = observed.memberships.iter().filter(|one| is_too_much(one, managed));
    changes.extend(too_much.cloned().map(Change::RevokeMembership));
}

/// A declared role belongs to no other declared role, to no superuser, and to none of PostgreSQL's own that reach everything.
fn is_too_much(membership: &Membership, managed: &BTreeMap<&str, Attributes>) -> bool {
    let group = membership.group.as_str();
    managed.contains_key(membership.member.as_str())
        && (managed.contains_key(group) || membership.group_is_superuser || MIGHTY.contains(&group))
}

/// What is declared for and found in one database.
struct DatabasePlan<'a> {
    cluster: &'a Cluster,
    managed: &'a BTreeMap<&'a str, Attributes>,
    observed: &'a ObjectsObserved,
    database: &'a str,
    inside: DatabaseInside,
}

impl<'a> DatabasePlan<'a> {
    fn new(
        cluster: &'a Cluster,
        managed: &'a BTreeMap<&'a str, Attributes>,
        observed: &'a ObjectsObserved,
        database: &'a str,
    ) -> Self {
        let inside =
            observed.inside.get(database).cloned().unwrap_or_else(|| new_inside(cluster.postgres.version));
        Self { cluster, managed, observed, database, inside }
    }

    fn run(&self, changes: &mut Vec<Change>) {
        let mut here = Vec::new();
        self.plan_everything(&mut here);
        here.sort_by_key(turn);
        changes.append(&mut here);
    }

    fn plan_everything(&self, changes: &mut Vec<Change>) {
        self.plan_database(changes);
        if let Some(public) = self.schema_there("public")
            && !self.is_declared("public")
        {
            let on = Target::Schema("public".to_owned());
            let create: Vec<Grant> =
                public.grants.iter().filter(|grant| grant.privilege == Privilege::Create).cloned().collect();
            self.plan_container(&on, &Grantee::Public, &[], &create, changes);
        }
        for schema in self.cluster.schemas.iter().filter(|schema| schema.database == self.database) {
            self.plan_schema(&schema.name, &schema.owner, changes);
        }
        self.plan_global_defaults(changes);
    }

    fn plan_database(&self, changes: &mut Vec<Change>) {
        let database = self.database.to_owned();
        let there = self.observed.databases.iter().find(|there| there.name == self.database);
        let grants = match there {
            Some(there) => {
                if there.owner != SUPERUSER {
                    changes.push(Change::ChangeOwner {
                        database,
                        schema: None,
                        before: there.owner.clone(),
                        after: SUPERUSER.to_owned(),
                    });
                }
                there.grants.clone()
            }
            None => {
                changes.push(Change::CreateDatabase { database });
                new_database_grants()
            }
        };
        self.plan_container(&Target::Database, &Grantee::Public, &[], &grants, changes);
        for name in self.managed.keys() {
            // What PostgreSQL gives to everybody, for those who have a part in the database.
            let part: &[Privilege] = if self.has_part_in_database(name) {
                &[Privilege::Connect, Privilege::Temporary]
            } else {
                &[]
            };
            self.plan_container(&Target::Database, &role(name), part, &grants, changes);
        }
        if self.observed.roles.contains_key(PROBE_ROLE) {
            let on = Target::Database;
            self.plan_container(&on, &role(PROBE_ROLE), &[Privilege::Connect], &grants, changes);
        }
    }

    /// Owns, writes or reads one of the database's schemas, and can log in.
    fn has_part_in_database(&self, name: &str) -> bool {
        let schemas = || self.cluster.schemas.iter().filter(|schema| schema.database == self.database);
        self.managed.get(name).is_some_and(|attributes| attributes.login)
            && schemas().any(|schema| schema.owner == name || self.declared(&schema.name, name).is_some())
    }

    fn plan_schema(&self, schema: &str, owner: &str, changes: &mut Vec<Change>) {
        let there = self.schema_there(schema);
        match there {
            None => changes.push(Change::CreateSchema {
                database: self.database.to_owned(),
                schema: schema.to_owned(),
                owner: owner.to_owned(),
            }),
            Some(there) if there.owner != owner => changes.push(Change::ChangeOwner {
                database: self.database.to_owned(),
                schema: Some(schema.to_owned()),
                before: there.owner.clone(),
                after: owner.to_owned(),
            }),
            Some(_) => {}
        }
        let on = Target::Schema(schema.to_owned());
        let grants = there.map_or(&[][..], |there| &there.grants);
        // Whoever may call functions in the schema public needs its USAGE, such as those of extensions.
        let everybody: &[Privilege] = if schema == "public" { &[Privilege::Usage] } else { &[] };
        self.plan_container(&on, &Grantee::Public, everybody, grants, changes);
        for name in self.managed.keys().filter(|name| **name != owner) {
            let usage: &[Privilege] =
                if self.declared(schema, name).is_some() { &[Privilege::Usage] } else { &[] };
            self.plan_container(&on, &role(name), usage, grants, changes);
        }
        for class in [Class::Tables, Class::Sequences] {
            for to in self.grantees(owner) {
                self.plan_relations(schema, class, &to, changes);
                self.plan_defaults(schema, owner, class, &to, changes);
            }
        }
    }

    /// PUBLIC and every managed role but the schema's owner.
    fn grantees(&self, owner: &str) -> Vec<Grantee> {
        let others = self.managed.keys().filter(|name| **name != owner).map(|name| role(name));
        std::iter::once(Grantee::Public).chain(others).collect()
    }

    /// Grants and revokes on one database or schema.
    fn plan_container(
        &self,
        on: &Target,
        to: &Grantee,
        declared: &[Privilege],
        grants: &[Grant],
        changes: &mut Vec<Change>,
    ) {
        let has: Vec<&Grant> = grants.iter().filter(|grant| grant.to == *to).collect();
        let missing = without(declared, |one| has.iter().any(|grant| grant.privilege == one));
        let extra = |with_option: bool| -> Vec<Privilege> {
            let too_much = |grant: &&&Grant| {
                !declared.contains(&grant.privilege) && grant.with_grant_option == with_option
            };
            has.iter().filter(too_much).map(|grant| grant.privilege).collect()
        };
        let (alone, both) = (extra(false), extra(true));
        let passed_on: Vec<Privilege> = has
            .iter()
            .filter(|grant| grant.with_grant_option && declared.contains(&grant.privilege))
            .map(|grant| grant.privilege)
            .collect();
        for (privileges, taken) in
            [(alone, Taken::Privilege), (both, Taken::Both), (passed_on, Taken::GrantOption)]
        {
            self.push_revoke(on, to, privileges, taken, declared, None, changes);
        }
        if let (false, Grantee::Role(name)) = (missing.is_empty(), to) {
            changes.push(Change::Grant {
                database: self.database.to_owned(),
                on: on.clone(),
                to: name.clone(),
                privileges: missing,
                declared: declared.to_vec(),
                extent: None,
            });
        }
    }

    /// Grants and revokes on the relations that a schema has.
    fn plan_relations(&self, schema: &str, class: Class, to: &Grantee, changes: &mut Vec<Change>) {
        let declared = self.declared_on(schema, class, to);
        let owned = self.inside.owned.iter().filter(|one| one.schema == schema && one.class == class);
        let of: i64 = owned.clone().map(|one| one.count).sum();
        let own: i64 = owned.filter(|one| to.role() == Some(one.owner.as_str())).map(|one| one.count).sum();
        let has: Vec<&RelationGrant> = self
            .inside
            .relations
            .iter()
            .filter(|one| one.schema == schema && one.class == class && one.to == *to)
            .collect();
        let whole = |privilege| has.iter().find(|one| one.privilege == privilege).map_or(0, |one| one.whole);
        let missing = without(&declared, |privilege| whole(privilege) + own >= of);
        let on = Target::All { schema: schema.to_owned(), class };
        for (taken, with_option) in [(Taken::Privilege, false), (Taken::Both, true)] {
            let too_much = |one: &&RelationGrant| {
                !declared.contains(&one.privilege) && (one.with_grant_option > 0) == with_option
            };
            let extra: Vec<&RelationGrant> = has.iter().copied().filter(too_much).collect();
            let extent = extra.iter().max_by_key(|one| one.whole + one.columns).map(|one| Extent {
                found: one.whole + one.columns,
                of,
                example: Some(one.example.clone()),
            });
            let words = extra.iter().map(|one| one.privilege).collect();
            self.push_revoke(&on, to, words, taken, &declared, extent, changes);
        }
        let passed_on: Vec<&RelationGrant> = has
            .iter()
            .filter(|one| one.with_grant_option > 0 && declared.contains(&one.privilege))
            .copied()
            .collect();
        let extent = passed_on.iter().max_by_key(|one| one.with_grant_option).map(|one| Extent {
            found: one.with_grant_option,
            of,
            example: None,
        });
        let words = passed_on.iter().map(|one| one.privilege).collect();
        self.push_revoke(&on, to, words, Taken::GrantOption, &declared, extent, changes);
        if let (false, Grantee::Role(name)) = (missing.is_empty(), to) {
            let found = missing.iter().map(|privilege| of - own - whole(*privilege)).max().unwrap_or(0);
            changes.push(Change::Grant {
                database: self.database.to_owned(),
                on,
                to: name.clone(),
                privileges: missing,
                declared,
                extent: Some(Extent { found, of, example: None }),
            });
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of Change::Revoke, pushed if there is anything to revoke"
    )]
    fn push_revoke(
        &self,
        on: &Target,
        from: &Grantee,
        privileges: Vec<Privilege>,
        taken: Taken,
        declared: &[Privilege],
        extent: Option<Extent>,
        changes: &mut Vec<Change>,
    ) {
        if !privileges.is_empty() {
            changes.push(Change::Revoke {
                database: self.database.to_owned(),
                on: on.clone(),
                from: from.clone(),
                privileges,
                taken,
                declared: declared.to_vec(),
                extent,
            });
        }
    }

    /// Grants and revokes on the relations that a schema will have.
    fn plan_defaults(
        &self,
        schema: &str,
        owner: &str,
        class: Class,
        to: &Grantee,
        changes: &mut Vec<Change>,
    ) {
        let declared = self.declared_on(schema, class, to);
        let here = || {
            let in_schema = |one: &&DefaultGrant| one.schema.as_deref() == Some(schema) && one.class == class;
            self.inside.defaults.iter().filter(in_schema).filter(|one| one.to == *to)
        };
        let makers: BTreeSet<&str> = here().map(|one| one.maker.as_str()).collect();
        for maker in makers {
            let of_maker: Vec<&DefaultGrant> = here().filter(|one| one.maker == maker).collect();
            self.revoke_defaults(&of_maker, &declared, changes);
        }
        let missing = without(&declared, |privilege| {
            here().any(|one| one.maker == owner && one.privilege == privilege)
        });
        if let (false, Grantee::Role(name)) = (missing.is_empty(), to) {
            changes.push(Change::GrantDefault {
                database: self.database.to_owned(),
                on: Future { maker: owner.to_owned(), schema: Some(schema.to_owned()), class },
                to: name.clone(),
                privileges: missing,
                declared,
            });
        }
    }

    /// A default for every schema gives rights where none are declared.
    fn plan_global_defaults(&self, changes: &mut Vec<Change>) {
        let of_managed = |to: &Grantee| to.role().is_none_or(|name| self.managed.contains_key(name));
        let mut groups: BTreeMap<(&str, Class, &Grantee), Vec<&DefaultGrant>> = BTreeMap::new();
        for one in self.inside.defaults.iter().filter(|one| one.schema.is_none() && of_managed(&one.to)) {
            groups.entry((&one.maker, one.class, &one.to)).or_default().push(one);
        }
        for group in groups.values() {
            self.revoke_defaults(group, &[], changes);
        }
    }

    /// Takes `grants`, all of one maker, schema, class and grantee, back to what is declared.
    fn revoke_defaults(&self, grants: &[&DefaultGrant], declared: &[Privilege], changes: &mut Vec<Change>) {
        let Some(first) = grants.first() else { return };
        let words = |keep: &dyn Fn(&DefaultGrant) -> bool| -> Vec<Privilege> {
            grants.iter().filter(|one| keep(one)).map(|one| one.privilege).collect()
        };
        let extra = words(&|one| !declared.contains(&one.privilege));
        let passed_on = words(&|one| one.with_grant_option && declared.contains(&one.privilege));
        // Nothing depends on a default, so that both kinds of extra go together.
        for (privileges, taken) in [(extra, Taken::Privilege), (passed_on, Taken::GrantOption)] {
            if !privileges.is_empty() {
                changes.push(Change::RevokeDefault {
                    database: self.database.to_owned(),
                    on: Future {
                        maker: first.maker.clone(),
                        schema: first.schema.clone(),
                        class: first.class,
                    },
                    from: first.to.clone(),
                    privileges,
                    taken,
                    declared: declared.to_vec(),
                });
            }
        }
    }

    fn declared_on(&self, schema: &str, class: Class, to: &Grantee) -> Vec<Privilege> {
        let part = to.role().and_then(|name| self.declared(schema, name));
        match (part, class) {
            (Some(Part::Write), Class::Tables) => WRITE.to_vec(),
            (Some(Part::Write), Class::Sequences) => WRITE_SEQUENCES.to_vec(),
            (Some(Part::Read), Class::Tables) => READ.to_vec(),
            (Some(Part::Read), Class::Sequences) | (None, _) => Vec::new(),
        }
    }

    fn declared(&self, schema: &str, name: &str) -> Option<Part> {
        let schema =
            self.cluster.schemas.iter().find(|one| one.database == self.database && one.name == schema)?;
        if schema.write.iter().any(|one| one == name) {
            Some(Part::Write)
        } else if schema.read.iter().any(|one| one == name) {
            Some(Part::Read)
        } else {
            None
        }
    }

    fn is_declared(&self, schema: &str) -> bool {
        self.cluster.schemas.iter().any(|one| one.database == self.database && one.name == schema)
    }

    fn schema_there(&self, name: &str) -> Option<&Container> {
        self.inside.schemas.iter().find(|there| there.name == name)
    }
}

/// What is there comes first. A privilege that was passed on can be revoked only after those that depend on it.
fn turn(change: &Change) -> u8 {
    match change {
        Change::Revoke { taken, .. } | Change::RevokeDefault { taken, .. } => match taken {
            Taken::Privilege => 1,
            Taken::Both => 2,
            Taken::GrantOption => 3,
        },
        Change::Grant { .. } | Change::GrantDefault { .. } => 4,
        Change::CreateRole { .. }
        | Change::AlterRole { .. }
        | Change::SetPassword { .. }
        | Change::RevokeMembership(_)
        | Change::CreateDatabase { .. }
        | Change::ChangeOwner { .. }
        | Change::CreateSchema { .. } => 0,
    }
}

/// What the topology gives a role in a schema.
#[derive(Debug, Clone, Copy)]
enum Part {
    Write,
    Read,
}

fn role(name: &str) -> Grantee {
    Grantee::Role(name.to_owned())
}

fn without(declared: &[Privilege], has: impl Fn(Privilege) -> bool) -> Vec<Privilege> {
    declared.iter().copied().filter(|privilege| !has(*privilege)).collect()
}

/// What a database has that was made from an untouched template1.
fn new_inside(version: u32) -> DatabaseInside {
    let public = |privilege| Grant { to: Grantee::Public, privilege, with_grant_option: false };
    let mut grants = vec![public(Privilege::Usage)];
    // Until 14 everybody may create in the schema public (release notes of 15).
    if version < 15 {
        grants.push(public(Privilege::Create));
    }
    let owner = if version < 15 { SUPERUSER } else { "pg_database_owner" };
    let schemas =
        vec![Container { name: "public".to_owned(), owner: owner.to_owned(), comment: None, grants }];
    DatabaseInside { schemas, ..DatabaseInside::default() }
}

/// What everybody may do with a new database (PostgreSQL docs, "Privileges").
fn new_database_grants() -> Vec<Grant> {
    let public = |privilege| Grant { to: Grantee::Public, privilege, with_grant_option: false };
    vec![public(Privilege::Connect), public(Privilege::Temporary)]
}

impl Change {
    /// `+` for what is added, `~` for what is put right.
    pub fn sign(&self) -> char {
        match self {
            Self::CreateRole { .. }
            | Self::CreateDatabase { .. }
            | Self::CreateSchema { .. }
            | Self::Grant { .. }
            | Self::GrantDefault { .. } => '+',
            Self::AlterRole { .. }
            | Self::SetPassword { .. }
            | Self::RevokeMembership(_)
            | Self::ChangeOwner { .. }
            | Self::Revoke { .. }
            | Self::RevokeDefault { .. } => '~',
        }
    }

    /// Says what is done, in a short line.
    pub fn describe(&self) -> String {
        match self {
            Self::CreateRole { role, attributes } => {
                let login = if attributes.login { "LOGIN" } else { "NOLOGIN" };
                match attributes.connection_limit {
                    -1 => format!("create role {role} ({login})"),
                    limit => format!("create role {role} ({login}, connection limit {limit})"),
                }
            }
            Self::AlterRole { role, .. } => format!("alter role {role}"),
            Self::SetPassword { role, .. } => format!("set password of {role} (SCRAM verifier)"),
            Self::RevokeMembership(one) => format!("revoke membership in {} from {}", one.group, one.member),
            Self::CreateDatabase { database } => format!("create database {database}"),
            Self::ChangeOwner { database, schema: None, after, .. } => {
                format!("change owner of database {database} to {after}")
            }
            Self::ChangeOwner { database, schema: Some(schema), after, .. } => {
                format!("change owner of schema {schema} in {database} to {after}")
            }
            Self::CreateSchema { database, schema, owner } => {
                format!("create schema {schema} in {database}, owner {owner}")
            }
            Self::Grant { database, on, to, privileges, .. } => {
                format!("grant {} on {} to {to}", list(privileges), thing(database, on))
            }
            Self::Revoke { database, on, from, privileges, taken, .. } => {
                format!(
                    "revoke {}{} on {} from {from}",
                    option(*taken),
                    list(privileges),
                    thing(database, on)
                )
            }
            Self::GrantDefault { database, on, to, privileges, .. } => {
                format!("grant {} on {} to {to}", list(privileges), future(database, on))
            }
            Self::RevokeDefault { database, on, from, privileges, taken, .. } => {
                format!(
                    "revoke {}{} on {} from {from}",
                    option(*taken),
                    list(privileges),
                    future(database, on)
                )
            }
        }
    }

    /// Says why, with what was found and what is declared.
    pub fn reason(&self) -> String {
        match self {
            Self::CreateRole { .. } | Self::CreateDatabase { .. } | Self::CreateSchema { .. } => {
                "declared, not there".to_owned()
            }
            Self::AlterRole { role, before, after } => {
                format!("{role} has {}, declared: {}", differing(before, after), differing(after, before))
            }
            Self::SetPassword { role, found } => {
                let found = match found {
                    StoredPassword::Missing => "no password",
                    StoredPassword::NotScram => "a password hash that is not SCRAM-SHA-256",
                    StoredPassword::Other | StoredPassword::Declared | StoredPassword::NotCompared => {
                        "another password"
                    }
                };
                format!("{role} has {found}, declared: one by reference")
            }
            Self::RevokeMembership(one) => {
                format!("{} is a member of {}, declared: of nothing", one.member, one.group)
            }
            Self::ChangeOwner { before, after, .. } => format!("owner is {before}, declared: {after}"),
            Self::Grant { database, on, to, privileges, declared, extent } => {
                let extent = extent.as_ref().filter(|extent| extent.of > 0).map(spell).unwrap_or_default();
                let (missing, on) = (list(privileges), thing(database, on));
                format!("{to} lacks {missing} on {on}{extent}, declared: {}", declared_list(declared))
            }
            Self::Revoke { database, on, from, privileges, taken, declared, extent } => {
                let extent = extent.as_ref().map(spell).unwrap_or_default();
                let (has, on) = (list(privileges), thing(database, on));
                format!(
                    "{from} has {has}{} on {on}{extent}, declared: {}",
                    grantable(*taken),
                    declared_list(declared)
                )
            }
            Self::GrantDefault { database, on, to, privileges, declared } => {
                let (missing, on) = (list(privileges), future(database, on));
                format!("{to} will lack {missing} on {on}, declared: {}", declared_list(declared))
            }
            Self::RevokeDefault { database, on, from, privileges, taken, declared } => {
                let (has, on) = (list(privileges), future(database, on));
                format!(
                    "{from} will have {has}{} on {on}, declared: {}",
                    grantable(*taken),
                    declared_list(declared)
                )
            }
        }
    }
}

fn thing(database: &str, on: &Target) -> String {
    match on {
        Target::Database => format!("database {database}"),
        Target::Schema(schema) => format!("schema {database}.{schema}"),
        Target::All { schema, class } => format!("{class} of {database}.{schema}"),
    }
}

fn future(database: &str, on: &Future) -> String {
    let place = on.schema.as_deref().map(|schema| format!(".{schema}")).unwrap_or_default();
    format!("future {} of {} in {database}{place}", on.class, on.maker)
}

fn option(taken: Taken) -> &'static str {
    match taken {
        Taken::Privilege | Taken::Both => "",
        Taken::GrantOption => "grant option for ",
    }
}

fn grantable(taken: Taken) -> &'static str {
    match taken {
        Taken::Privilege => "",
        Taken::Both | Taken::GrantOption => " with grant option",
    }
}

fn spell(extent: &Extent) -> String {
    match &extent.example {
        Some(example) => format!(" ({} of {}, such as {example})", extent.found, extent.of),
        None => format!(" ({} of {})", extent.found, extent.of),
    }
}

fn declared_list(declared: &[Privilege]) -> String {
    if declared.is_empty() { "none".to_owned() } else { list(declared) }
}

/// Writes those attributes of `one` that `other` has not.
fn differing(one: &Attributes, other: &Attributes) -> String {
    let word = |set: bool, word: &str| if set { word.to_owned() } else { format!("NO{word}") };
    let flags = [
        (one.login, other.login, "LOGIN"),
        (one.superuser, other.superuser, "SUPERUSER"),
        (one.create_database, other.create_database, "CREATEDB"),
        (one.create_role, other.create_role, "CREATEROLE"),
        (one.replication, other.replication, "REPLICATION"),
        (one.bypass_row_security, other.bypass_row_security, "BYPASSRLS"),
    ];
    let mut words: Vec<String> = flags
        .into_iter()
        .filter(|(one, other, _)| one != other)
        .map(|(one, _, name)| word(one, name))
        .collect();
    if one.connection_limit != other.connection_limit {
        words.push(format!("CONNECTION LIMIT {}", one.connection_limit));
    }
    if one.valid_until != other.valid_until {
        words.push(format!("VALID UNTIL {}", one.valid_until.as_deref().unwrap_or("infinity")));
    }
    words.join(" ")
}

/// Tells what was found that is not declared and is left alone, a sentence each.
pub fn notes(cluster: &Cluster, observed: &ObjectsObserved) -> Vec<String> {
    let managed = managed_roles(cluster);
    let mut notes = Vec::new();
    note_what_left(cluster, &managed, observed, &mut notes);
    for role in cluster.roles.iter().filter(|role| role.password.is_some()) {
        if observed.roles.get(&role.name).is_some_and(|there| there.password == StoredPassword::NotCompared) {
            notes.push(format!(
                "The stored password of {} was not compared with the declared one.",
                role.name
            ));
        }
    }
    for one in observed.memberships.iter().filter(|one| !is_too_much(one, &managed)) {
        let (member, group) = (one.member.as_str(), one.group.as_str());
        if managed.contains_key(group) && !is_superuser(observed, member) {
            notes.push(format!("Role {member}, which is not declared, is a member of {group}."));
        } else if managed.contains_key(member) {
            notes.push(format!("Role {member} is a member of {group}, which is not declared."));
        }
    }
    for database in &cluster.databases {
        if let Some(inside) = observed.inside.get(database) {
            note_inside(cluster, &managed, observed, database, inside, &mut notes);
        }
    }
    notes
}

fn is_superuser(observed: &ObjectsObserved, name: &str) -> bool {
    observed.roles.get(name).is_some_and(|there| there.attributes.superuser)
}

fn note_what_left(
    cluster: &Cluster,
    managed: &BTreeMap<&str, Attributes>,
    observed: &ObjectsObserved,
    notes: &mut Vec<String>,
) {
    let ours = |comment: &Option<String>| comment.as_deref() == Some(MADE_BY_PGHERD);
    for (name, _) in observed.roles.iter().filter(|(_, there)| ours(&there.comment)) {
        if !managed.contains_key(name.as_str()) {
            notes.push(format!("Role {name} was made by pgherd and is no longer declared."));
        }
    }
    for there in observed.databases.iter().filter(|there| ours(&there.comment)) {
        if !cluster.databases.contains(&there.name) {
            notes.push(format!("Database {} was made by pgherd and is no longer declared.", there.name));
        }
    }
    for (database, inside) in &observed.inside {
        for there in inside.schemas.iter().filter(|there| ours(&there.comment)) {
            if !cluster.schemas.iter().any(|one| one.database == *database && one.name == there.name) {
                let name = &there.name;
                notes.push(format!("Schema {database}.{name} was made by pgherd and is no longer declared."));
            }
        }
    }
}

fn note_inside(
    cluster: &Cluster,
    managed: &BTreeMap<&str, Attributes>,
    observed: &ObjectsObserved,
    database: &str,
    inside: &DatabaseInside,
    notes: &mut Vec<String>,
) {
    let declared =
        |schema: &str| cluster.schemas.iter().find(|one| one.database == database && one.name == schema);
    // What each role has on each thing, in one sentence.
    let mut found: BTreeMap<(String, String), BTreeSet<Privilege>> = BTreeMap::new();
    let mut see = |to: &Grantee, place: String, privilege: Privilege, schema: Option<&str>| {
        let Some(name) = to.role() else { return };
        let ours = managed.contains_key(name);
        let foreign = !ours && name != PROBE_ROLE && !is_superuser(observed, name);
        let outside = schema.is_some_and(|schema| declared(schema).is_none());
        if (ours && outside) || (foreign && !outside) {
            found.entry((name.to_owned(), place)).or_default().insert(privilege);
        }
    };
    for there in observed.databases.iter().filter(|there| there.name == database) {
        for grant in &there.grants {
            see(&grant.to, format!("database {database}"), grant.privilege, None);
        }
    }
    for there in &inside.schemas {
        for grant in &there.grants {
            see(&grant.to, format!("schema {database}.{}", there.name), grant.privilege, Some(&there.name));
        }
    }
    for one in &inside.relations {
        let place = format!("{} of {database}.{}", one.class, one.schema);
        see(&one.to, place, one.privilege, Some(&one.schema));
    }
    for ((name, place), privileges) in found {
        let privileges: Vec<Privilege> = privileges.into_iter().collect();
        let mut note = format!("Role {name}");
        if !managed.contains_key(name.as_str()) {
            note.push_str(", which is not declared,");
        }
        write!(note, " has {} on {place}", list(&privileges)).expect("a String takes all text");
        note.push_str(if managed.contains_key(name.as_str()) { ", which is not declared." } else { "." });
        notes.push(note);
    }
    for one in &inside.owned {
        let other = declared(&one.schema).is_some_and(|schema| schema.owner != one.owner);
        if other && managed.contains_key(one.owner.as_str()) {
            notes.push(format!(
                "Role {} owns {} {} of {database}.{}.",
                one.owner, one.count, one.class, one.schema
            ));
        }
    }
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
    let stored = sql::roles(&conn).await?;
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
    let stored = sql::roles(&conn).await?;
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
