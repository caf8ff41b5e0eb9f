//! Databases, roles and schemas.

use super::super::declared::POOLER_ROLE;
use super::super::decode::{Named, NamedEntry, Spanned};
use super::super::model::{Role, Schema};
use super::super::problem::Position;
use super::super::raw;
use super::super::yaml::Value;
use super::{Checker, Draft};
use std::collections::HashSet;

/// Roles that pgherd or PostgreSQL or PgBouncer have for themselves.
const OWN_ROLES: [&str; 5] = ["pgbouncer", "pgherd_probe", "pgherd_replicator", "postgres", "replicator"];
/// Databases that every cluster has, and the admin console of PgBouncer.
const OWN_DATABASES: [&str; 4] = ["pgbouncer", "postgres", "template0", "template1"];

impl Checker<'_> {
    pub(super) fn databases(
        &mut self,
        draft: &Draft<'_>,
        raw: Option<&Spanned<Named<raw::Database>>>,
    ) -> Vec<String> {
        let Some(raw) = raw else {
            return vec![draft.name.to_owned()];
        };
        if raw.value.0.is_empty() && draft.names("databases").is_empty() {
            self.report
                .add(raw.at, format!("{} names no database", draft.path(".databases")))
                .hint("Remove the key: the cluster then has one database that is named like it.");
        }
        for entry in &raw.value.0 {
            if OWN_DATABASES.contains(&entry.name.as_str()) {
                self.report
                    .add(entry.at, format!("database \"{}\" cannot be declared", entry.name))
                    .detail("PostgreSQL or PgBouncer has it for its own use.")
                    .hint("Choose another name.");
            } else {
                self.object_name(entry.at, "database", &entry.name);
            }
        }
        raw.value.names().map(str::to_owned).collect()
    }

    fn role_name(&mut self, at: Position, name: &str) -> bool {
        if OWN_ROLES.contains(&name) || name.starts_with(POOLER_ROLE) {
            self.report
                .add(at, format!("role \"{name}\" cannot be declared: pgherd has it for its own use"))
                .hint("Choose another name.");
            return false;
        }
        self.object_name(at, "role", name)
    }

    pub(super) fn roles(&mut self, draft: &Draft<'_>, raw: Option<&Spanned<Named<raw::Role>>>) -> Vec<Role> {
        let pools: Vec<&str> =
            match draft.tree.find("poolers").and_then(|tree| tree.find("pools")).map(|tree| &tree.value) {
                Some(Value::Mapping(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
                Some(Value::Scalar(_) | Value::Sequence(_) | Value::Alias) | None => Vec::new(),
            };
        let mut roles = Vec::new();
        for NamedEntry { name, at, value } in raw.map(|raw| raw.value.0.as_slice()).unwrap_or_default() {
            self.role_name(*at, name);
            let used = value.pools.as_ref().map(|pools| pools.value.as_slice()).unwrap_or_default();
            for pool in used {
                if !pools.contains(&pool.value.as_str()) {
                    self.report
                        .add(pool.at, format!("unknown pool \"{}\" of role {name}", pool.value))
                        .suggest(&pool.value, pools.iter().copied());
                }
            }
            self.twice(used, &format!("pool of role {name}"));
            if let Some(pool) = used.first()
                && !draft.has(&["roles", name, "password"])
            {
                self.report
                    .add(*at, format!("role {name} may use the pool \"{}\" but has no password", pool.value))
                    .detail("Without a password it cannot log in.")
                    .hint("Say where its password is: password: {env: NAME} or {file: PATH}; or remove its pools.");
            }
            if let Some(limit) = value.connections.as_ref().filter(|limit| limit.value == 0) {
                self.report
                    .add(limit.at, format!("connections of role {name} must be 1 or more"))
                    .hint("Remove the key if the role is not to be limited.");
            }
            let password = value.password.as_ref().map(|password| self.reference(&password.value));
            roles.push(Role {
                name: name.clone(),
                password,
                pools: used.iter().map(|pool| pool.value.clone()).collect(),
                connections: value.connections.as_ref().map(|limit| limit.value),
            });
        }
        roles
    }

    pub(super) fn twice(&mut self, names: &[Spanned<String>], what: &str) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name.value.as_str()) {
                self.report
                    .add(name.at, format!("{what} \"{}\" is named twice", name.value))
                    .hint("Keep one of the two.");
            }
        }
    }

    pub(super) fn schemas(
        &mut self,
        draft: &Draft<'_>,
        raw: Option<&Spanned<Named<raw::Schema>>>,
        databases: &[String],
    ) -> Vec<Schema> {
        let roles = draft.names("roles");
        let known: HashSet<&str> = roles.iter().copied().collect();
        let mut schemas = Vec::new();
        for NamedEntry { name, at, value } in raw.map(|raw| raw.value.0.as_slice()).unwrap_or_default() {
            let path = draft.path(&format!(".schemas.{name}"));
            self.object_name(*at, "schema", name);
            match &value.owner {
                Some(owner) => {
                    self.role_name(owner.at, &owner.value);
                }
                None if !draft.has(&["schemas", name, "owner"]) => {
                    self.missing(*at, &path, "owner", &format!("owner: {name}_owner"));
                }
                None => {}
            }
            let [write, read] = [&value.write, &value.read]
                .map(|list| list.as_ref().map(|list| list.value.as_slice()).unwrap_or_default());
            for role in write.iter().chain(read) {
                if !known.contains(role.value.as_str()) {
                    self.report
                        .add(role.at, format!("unknown role \"{}\" in {path}", role.value))
                        .suggest(&role.value, roles.iter().copied());
                }
            }
            self.twice(write, &format!("role in {path}.write"));
            self.twice(read, &format!("role in {path}.read"));
            let database =
                self.database_of(draft, (&["schemas", name], *at), value.database.as_ref(), databases, false);
            let (Some(owner), Some(database)) = (&value.owner, database) else {
                continue;
            };
            let names = |list: &[Spanned<String>]| list.iter().map(|role| role.value.clone()).collect();
            schemas.push(Schema {
                name: name.clone(),
                database,
                owner: owner.value.clone(),
                write: names(write),
                read: names(read),
            });
        }
        schemas
    }
}
