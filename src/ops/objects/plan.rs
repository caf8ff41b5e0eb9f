//! What has to change for a cluster to have what is declared. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, DatabaseInside, Extent, ObjectsObserved, StoredPassword};
use crate::db::objects::change::{Future, Taken, Target};
use crate::db::objects::{
    Attributes, Class, Container, DefaultGrant, Grant, Grantee, Membership, Privilege, RelationGrant,
};
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
pub(super) fn managed_roles(cluster: &Cluster) -> BTreeMap<&str, Attributes> {
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
pub(super) fn is_too_much(membership: &Membership, managed: &BTreeMap<&str, Attributes>) -> bool {
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
