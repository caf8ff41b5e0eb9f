//! The statements that change roles, databases, schemas and who may do what. Each does nothing where it is so already.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;

use super::{Attributes, Class, Grantee, MADE_BY_PGHERD, Membership, Privilege, RELATIONS, list};
use crate::db::connect::{Conn, DbError, Param, PrimaryConn};
use crate::pg::ident::{quote_identifier, quote_literal};
use crate::pg::scram::Verifier;

/// Makes a role without a password, marked as made by pgherd; an existing one gets the attributes and keeps its comment.
///
/// # Errors
/// [`DbError`].
pub async fn ensure_role(conn: &PrimaryConn, role: &str, attributes: &Attributes) -> Result<(), DbError> {
    if exists(conn, "SELECT FROM pg_roles WHERE rolname = $1", role).await? {
        return alter_role(conn, role, attributes, attributes).await;
    }
    let (name, mark) = (quote_identifier(role), quote_literal(MADE_BY_PGHERD));
    let sql = format!("CREATE ROLE {name} {}; COMMENT ON ROLE {name} IS {mark}", attributes.sql());
    conn.batch(&format!("create role {role}"), &sql).await
}

/// Gives a role all the attributes of `after`. An expiry that it had is taken off.
///
/// # Errors
/// [`DbError`].
pub async fn alter_role(
    conn: &PrimaryConn,
    role: &str,
    before: &Attributes,
    after: &Attributes,
) -> Result<(), DbError> {
    let until = if before.valid_until.is_some() { " VALID UNTIL 'infinity'" } else { "" };
    let sql = format!("ALTER ROLE {} {}{until}", quote_identifier(role), after.sql());
    conn.batch(&format!("alter role {role}"), &sql).await
}

/// Stores a verifier as the password of each role, all in one transaction. Over a session that is [`super::Session::Quiet`], or
/// the verifiers are logged.
///
/// # Errors
/// [`DbError`].
pub async fn set_verifiers(conn: &PrimaryConn, verifiers: &[(&str, Verifier)]) -> Result<(), DbError> {
    let roles: Vec<&str> = verifiers.iter().map(|(role, _)| *role).collect();
    let sql: Vec<String> = verifiers
        .iter()
        .map(|(role, verifier)| {
            let text = verifier.text();
            format!("ALTER ROLE {} PASSWORD {}", quote_identifier(role), quote_literal(text.reveal()))
        })
        .collect();
    // Several statements in one simple query are one transaction (PostgreSQL docs, "Multiple Statements in a Simple Query").
    conn.batch(&format!("set password of {}", roles.join(", ")), &sql.join("; ")).await
}

/// Ends a membership, as it was granted by whoever granted it; what depends on it is left and makes this fail.
///
/// # Errors
/// [`DbError`]; `Sql` with 2BP01 if the member has granted the membership to others.
pub async fn revoke_membership(conn: &PrimaryConn, membership: &Membership) -> Result<(), DbError> {
    let grantor = membership.grantor.as_deref().map(|name| format!(" GRANTED BY {}", quote_identifier(name)));
    let (group, member) = (quote_identifier(&membership.group), quote_identifier(&membership.member));
    let sql = format!("REVOKE {group} FROM {member}{}", grantor.unwrap_or_default());
    conn.batch(&format!("revoke membership in {} from {}", membership.group, membership.member), &sql).await
}

/// Makes a database from template1 and marks it as made by pgherd; an existing one is left as it is.
///
/// # Errors
/// [`DbError`]; `Sql` with 55006 while somebody is connected to template1.
pub async fn ensure_database(conn: &PrimaryConn, database: &str) -> Result<(), DbError> {
    if exists(conn, "SELECT FROM pg_database WHERE datname = $1", database).await? {
        return Ok(());
    }
    // Copies the template, and writes checkpoints where the copy is made file by file.
    conn.set_deadline(Duration::from_secs(300)).await?;
    let name = quote_identifier(database);
    conn.batch(&format!("create database {database}"), &format!("CREATE DATABASE {name}")).await?;
    let sql = format!("COMMENT ON DATABASE {name} IS {}", quote_literal(MADE_BY_PGHERD));
    conn.batch(&format!("mark database {database}"), &sql).await
}

/// Makes a schema and marks it as made by pgherd; an existing one is left as it is.
///
/// # Errors
/// [`DbError`].
pub async fn ensure_schema(conn: &PrimaryConn, schema: &str, owner: &str) -> Result<(), DbError> {
    if exists(conn, "SELECT FROM pg_namespace WHERE nspname = $1", schema).await? {
        return Ok(());
    }
    let (name, mark) = (quote_identifier(schema), quote_literal(MADE_BY_PGHERD));
    let owner = quote_identifier(owner);
    let sql = format!("CREATE SCHEMA {name} AUTHORIZATION {owner}; COMMENT ON SCHEMA {name} IS {mark}");
    conn.batch(&format!("create schema {schema}"), &sql).await
}

async fn exists(conn: &Conn, sql: &str, name: &str) -> Result<bool, DbError> {
    Ok(!conn.query(&format!("look for {name}"), sql, &[(&name, Type::NAME)]).await?.is_empty())
}

/// What privileges are granted on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The database itself.
    Database,
    Schema(String),
    /// Everything of one kind in a schema.
    All {
        schema: String,
        class: Class,
    },
}

/// Gives the database that `conn` is connected to, or a schema of it, another owner.
///
/// # Errors
/// [`DbError`].
pub async fn change_owner(conn: &PrimaryConn, schema: Option<&str>, owner: &str) -> Result<(), DbError> {
    let thing = match schema {
        Some(schema) => format!("SCHEMA {}", quote_identifier(schema)),
        None => format!("DATABASE {}", quote_identifier(conn.database())),
    };
    conn.batch(
        &format!("change owner to {owner}"),
        &format!("ALTER {thing} OWNER TO {}", quote_identifier(owner)),
    )
    .await
}

/// Grants privileges; of the relations of a schema, only on those where one is missing.
///
/// # Errors
/// [`DbError`].
pub async fn grant(
    conn: &PrimaryConn,
    on: &Target,
    to: &str,
    privileges: &[Privilege],
) -> Result<(), DbError> {
    let what = format!("grant {} to {to}", list(privileges));
    let (words, role) = (list(privileges), quote_identifier(to));
    let things = match on {
        Target::Database => vec![format!("DATABASE {}", quote_identifier(conn.database()))],
        Target::Schema(schema) => vec![format!("SCHEMA {}", quote_identifier(schema))],
        Target::All { schema, class } => without(conn, schema, *class, to, privileges).await?,
    };
    let statements: Vec<String> =
        things.iter().map(|thing| format!("GRANT {words} ON {thing} TO {role}")).collect();
    if statements.is_empty() { Ok(()) } else { conn.batch(&what, &statements.join("; ")).await }
}

/// Returns `TABLE "schema"."name"` for each relation on which `role`, which does not own it, lacks one of the privileges.
async fn without(
    conn: &Conn,
    schema: &str,
    class: Class,
    role: &str,
    privileges: &[Privilege],
) -> Result<Vec<String>, DbError> {
    const WHAT: &str = "look for missing privileges";
    let words: Vec<&str> = privileges.iter().map(|privilege| privilege.word()).collect();
    let sql = format!(
        "SELECT r.relname::text AS name FROM ({RELATIONS}) r
          WHERE r.nspname = $1 AND r.relkind IN ({}) AND pg_get_userbyid(r.relowner) <> $2
            AND EXISTS (SELECT FROM unnest($3::text[]) p
                         WHERE NOT EXISTS (SELECT FROM aclexplode(r.relacl) a
                                            WHERE a.grantee <> 0 AND pg_get_userbyid(a.grantee) = $2 AND a.privilege_type = p))
          ORDER BY 1",
        class.kinds()
    );
    let rows = conn
        .query(WHAT, &sql, &[(&schema, Type::NAME), (&role, Type::NAME), (&words, Type::TEXT_ARRAY)])
        .await?;
    rows.iter()
        .map(|row| {
            let name: String = conn.field(WHAT, row, "name")?;
            Ok(format!("{} {}.{}", class.keyword(), quote_identifier(schema), quote_identifier(&name)))
        })
        .collect()
}

/// What is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    Privilege,
    /// The privilege, and with it the right to pass it on.
    Both,
    /// Only the right to pass it on.
    GrantOption,
}

impl Taken {
    fn sql(self) -> &'static str {
        match self {
            Self::Privilege | Self::Both => "",
            Self::GrantOption => "GRANT OPTION FOR ",
        }
    }
}

/// Revokes privileges, whoever granted them; what was passed on is left and makes this fail.
///
/// A superuser's REVOKE acts as the owner's and leaves what others have granted, so that each grantor's part is revoked as
/// that grantor.
///
/// # Errors
/// [`DbError`]; `Sql` with 2BP01 if a privilege was passed on to others.
pub async fn revoke(
    conn: &PrimaryConn,
    on: &Target,
    from: &Grantee,
    privileges: &[Privilege],
    taken: Taken,
) -> Result<(), DbError> {
    let what = format!("revoke {} from {from}", list(privileges));
    let statements: Vec<String> = grantors(conn, on, from, privileges)
        .await?
        .into_iter()
        .map(|(grantor, thing)| {
            let revoke = format!("REVOKE {}{} ON {thing} FROM {}", taken.sql(), list(privileges), from.sql());
            match grantor {
                Some(grantor) => {
                    format!("SET LOCAL ROLE {}; {revoke}; RESET ROLE", quote_identifier(&grantor))
                }
                None => revoke,
            }
        })
        .collect();
    if statements.is_empty() { Ok(()) } else { conn.batch(&what, &statements.join("; ")).await }
}

/// Returns every thing that has such a privilege, with its grantor where that is not the owner.
async fn grantors(
    conn: &Conn,
    on: &Target,
    from: &Grantee,
    privileges: &[Privilege],
) -> Result<Vec<(Option<String>, String)>, DbError> {
    const WHAT: &str = "look for grantors";
    let (schema, keyword, acls) = match on {
        Target::Database => (
            "",
            "DATABASE",
            "SELECT datname AS name, datdba AS owner, coalesce(datacl, acldefault('d', datdba)) AS acl FROM pg_database
              WHERE datname = current_database() AND $1::text = ''"
                .to_owned(),
        ),
        Target::Schema(schema) => (
            schema.as_str(),
            "SCHEMA",
            "SELECT nspname AS name, nspowner AS owner, nspacl AS acl FROM pg_namespace WHERE nspname = $1::text".to_owned(),
        ),
        Target::All { schema, class } => (
            schema.as_str(),
            class.keyword(),
            format!(
                "SELECT r.relname AS name, r.relowner AS owner, x.acl FROM ({RELATIONS}) r,
                        LATERAL (SELECT r.relacl AS acl UNION ALL
                                 SELECT attacl FROM pg_attribute WHERE attrelid = r.oid AND NOT attisdropped) x
                  WHERE r.nspname = $1::text AND r.relkind IN ({})",
                class.kinds()
            ),
        ),
    };
    let sql = format!(
        "SELECT DISTINCT o.name::text AS name, CASE WHEN a.grantor <> o.owner THEN pg_get_userbyid(a.grantor)::text END AS grantor
           FROM ({acls}) o, aclexplode(o.acl) a
          WHERE a.privilege_type = ANY ($3::text[])
            AND CASE WHEN a.grantee = 0 THEN $2::text IS NULL ELSE pg_get_userbyid(a.grantee)::text = $2::text END
          ORDER BY 1, 2"
    );
    let words: Vec<&str> = privileges.iter().map(|privilege| privilege.word()).collect();
    let params: [Param<'_>; 3] =
        [(&schema, Type::TEXT), (&from.role(), Type::TEXT), (&words, Type::TEXT_ARRAY)];
    let rows = conn.query(WHAT, &sql, &params).await?;
    rows.iter()
        .map(|row| {
            let name = quote_identifier(&conn.field::<String>(WHAT, row, "name")?);
            let thing = match on {
                Target::Database | Target::Schema(_) => format!("{keyword} {name}"),
                Target::All { .. } => format!("{keyword} {}.{name}", quote_identifier(schema)),
            };
            Ok((conn.field(WHAT, row, "grantor")?, thing))
        })
        .collect()
}

/// Relations that `maker` is yet to make, in one schema or (`None`) in all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Future {
    pub maker: String,
    pub schema: Option<String>,
    pub class: Class,
}

impl Future {
    fn sql(&self, action: &str) -> String {
        let within = self.schema.as_deref().map(|schema| format!(" IN SCHEMA {}", quote_identifier(schema)));
        let maker = quote_identifier(&self.maker);
        format!("ALTER DEFAULT PRIVILEGES FOR ROLE {maker}{} {action}", within.unwrap_or_default())
    }
}

/// Has privileges granted on relations as they are made.
///
/// # Errors
/// [`DbError`].
pub async fn grant_default(
    conn: &PrimaryConn,
    on: &Future,
    to: &str,
    privileges: &[Privilege],
) -> Result<(), DbError> {
    let class = on.class.keyword();
    let action = format!("GRANT {} ON {class}S TO {}", list(privileges), quote_identifier(to));
    conn.batch(&format!("grant {} on future {} to {to}", list(privileges), on.class), &on.sql(&action)).await
}

/// Has privileges no longer granted on relations as they are made.
///
/// # Errors
/// [`DbError`].
pub async fn revoke_default(
    conn: &PrimaryConn,
    on: &Future,
    from: &Grantee,
    privileges: &[Privilege],
    taken: Taken,
) -> Result<(), DbError> {
    let class = on.class.keyword();
    let action = format!("REVOKE {}{} ON {class}S FROM {}", taken.sql(), list(privileges), from.sql());
    conn.batch(&format!("revoke {} on future {} from {from}", list(privileges), on.class), &on.sql(&action))
        .await
}
