//! The words of a change, and of what is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::plan::{is_too_much, managed_roles};
use super::{Change, DatabaseInside, Extent, ObjectsObserved, StoredPassword};
use crate::db::objects::change::{Future, Taken, Target};
use crate::db::objects::{Attributes, Grantee, MADE_BY_PGHERD, Privilege, list};
use crate::topology::declared::{POOLER_ROLE, PROBE_ROLE};
use crate::topology::model::Cluster;

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
        let foreign =
            !ours && name != PROBE_ROLE && !name.starts_with(POOLER_ROLE) && !is_superuser(observed, name);
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
