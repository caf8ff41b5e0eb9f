//! Roles, databases, schemas and who may do what: the SQL that reads them, and ([`change`]) that changes them.
//!
//! Reads catalogs, not the information schema, which hides what the asking role has no part in. Does not know what is declared.
//! Functions, types, languages and large objects are not looked at; neither is what belongs to an extension, to PostgreSQL
//! itself or to the schema `pgherd`.

pub mod change;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::connect::{Conn, DbError};
use crate::pg::ident::quote_identifier;
use crate::secret::Secret;

/// What stands in the comment of a role, database or schema that pgherd made, so that it can tell what has left the topology.
pub const MADE_BY_PGHERD: &str = "made by pgherd";

/// Whom a privilege is granted to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grantee {
    Public,
    Role(String),
}

impl Grantee {
    /// Returns the name of the role; `None` for PUBLIC.
    pub fn role(&self) -> Option<&str> {
        match self {
            Self::Public => None,
            Self::Role(name) => Some(name),
        }
    }

    fn sql(&self) -> String {
        match self {
            Self::Public => "PUBLIC".to_owned(),
            Self::Role(name) => quote_identifier(name),
        }
    }
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("PUBLIC"),
            Self::Role(name) => f.write_str(name),
        }
    }
}

/// A privilege on a database, schema, table or sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Privilege {
    Connect,
    Temporary,
    Create,
    Usage,
    Select,
    Insert,
    Update,
    Delete,
    Truncate,
    References,
    Trigger,
    /// Since 17.
    Maintain,
}

impl Privilege {
    const ALL: [Self; 12] = [
        Self::Connect,
        Self::Temporary,
        Self::Create,
        Self::Usage,
        Self::Select,
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Truncate,
        Self::References,
        Self::Trigger,
        Self::Maintain,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Temporary => "TEMPORARY",
            Self::Create => "CREATE",
            Self::Usage => "USAGE",
            Self::Select => "SELECT",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
            Self::References => "REFERENCES",
            Self::Trigger => "TRIGGER",
            Self::Maintain => "MAINTAIN",
        }
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Joins privileges as GRANT writes them.
pub fn list(privileges: &[Privilege]) -> String {
    privileges.iter().map(|privilege| privilege.word()).collect::<Vec<_>>().join(", ")
}

/// The attributes of a role that pgherd decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub login: bool,
    pub superuser: bool,
    pub create_database: bool,
    pub create_role: bool,
    pub replication: bool,
    pub bypass_row_security: bool,
    /// -1 is without limit.
    pub connection_limit: i32,
    /// `None` if the password does not expire.
    pub valid_until: Option<String>,
}

impl Attributes {
    fn sql(&self) -> String {
        let word = |set: bool, word: &str| if set { word.to_owned() } else { format!("NO{word}") };
        format!(
            "{} {} {} {} {} {} CONNECTION LIMIT {}",
            word(self.login, "LOGIN"),
            word(self.superuser, "SUPERUSER"),
            word(self.create_database, "CREATEDB"),
            word(self.create_role, "CREATEROLE"),
            word(self.replication, "REPLICATION"),
            word(self.bypass_row_security, "BYPASSRLS"),
            self.connection_limit
        )
    }
}

/// A role as `pg_authid` has it. Not serializable: it holds the verifier.
#[derive(Debug, Clone)]
pub struct RoleRow {
    pub name: String,
    pub attributes: Attributes,
    pub comment: Option<String>,
    /// What is stored as its password: a SCRAM verifier or an md5 hash.
    pub verifier: Option<Secret>,
}

const ROLES: &str = "
SELECT rolname::text AS name, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolconnlimit,
       CASE WHEN isfinite(rolvaliduntil) THEN rolvaliduntil::text END AS valid_until, rolpassword,
       shobj_description(oid, 'pg_authid') AS comment
  FROM pg_authid
 WHERE rolname !~ '^pg_'
 ORDER BY rolname";

/// Lists the roles that are not PostgreSQL's own. For superusers.
///
/// # Errors
/// [`DbError`].
pub async fn roles(conn: &Conn) -> Result<Vec<RoleRow>, DbError> {
    const WHAT: &str = "read pg_authid";
    let rows = conn.query(WHAT, ROLES, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(RoleRow {
                name: conn.field(WHAT, row, "name")?,
                attributes: Attributes {
                    login: conn.field(WHAT, row, "rolcanlogin")?,
                    superuser: conn.field(WHAT, row, "rolsuper")?,
                    create_database: conn.field(WHAT, row, "rolcreatedb")?,
                    create_role: conn.field(WHAT, row, "rolcreaterole")?,
                    replication: conn.field(WHAT, row, "rolreplication")?,
                    bypass_row_security: conn.field(WHAT, row, "rolbypassrls")?,
                    connection_limit: conn.field(WHAT, row, "rolconnlimit")?,
                    valid_until: conn.field(WHAT, row, "valid_until")?,
                },
                comment: conn.field(WHAT, row, "comment")?,
                verifier: conn.field::<Option<String>>(WHAT, row, "rolpassword")?.map(Secret::new),
            })
        })
        .collect()
}

/// `member` is a member of `group`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub member: String,
    pub group: String,
    pub group_is_superuser: bool,
    /// Who granted it, where that is part of the membership (since 16).
    pub grantor: Option<String>,
}

const MEMBERSHIPS: &str = "
SELECT m.rolname::text AS member, g.rolname::text AS grp, g.rolsuper,
       CASE WHEN current_setting('server_version_num')::int >= 160000 THEN pg_get_userbyid(a.grantor)::text END AS grantor
  FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member JOIN pg_roles g ON g.oid = a.roleid
 WHERE m.rolname !~ '^pg_'
 ORDER BY 1, 2, 4";

/// Lists who is a member of what.
///
/// # Errors
/// [`DbError`].
pub async fn memberships(conn: &Conn) -> Result<Vec<Membership>, DbError> {
    const WHAT: &str = "read pg_auth_members";
    let rows = conn.query(WHAT, MEMBERSHIPS, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Membership {
                member: conn.field(WHAT, row, "member")?,
                group: conn.field(WHAT, row, "grp")?,
                group_is_superuser: conn.field(WHAT, row, "rolsuper")?,
                grantor: conn.field(WHAT, row, "grantor")?,
            })
        })
        .collect()
}

/// A privilege that somebody other than the owner has on one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub to: Grantee,
    pub privilege: Privilege,
    pub with_grant_option: bool,
}

/// A database or a schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub name: String,
    pub owner: String,
    pub comment: Option<String>,
    pub grants: Vec<Grant>,
}

const DATABASES: &str = "
SELECT d.datname::text AS name, pg_get_userbyid(d.datdba)::text AS owner, shobj_description(d.oid, 'pg_database') AS comment,
       a.privilege_type, a.is_grantable, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END AS grantee
  FROM pg_database d
  LEFT JOIN LATERAL aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a ON a.grantee <> d.datdba
 WHERE NOT d.datistemplate
 ORDER BY d.datname, a.grantee, a.privilege_type";

/// Lists the databases that are no templates.
///
/// # Errors
/// [`DbError`].
pub async fn databases(conn: &Conn) -> Result<Vec<Container>, DbError> {
    containers(conn, "read pg_database", DATABASES).await
}

const SCHEMAS: &str = "
SELECT n.nspname::text AS name, pg_get_userbyid(n.nspowner)::text AS owner, obj_description(n.oid, 'pg_namespace') AS comment,
       a.privilege_type, a.is_grantable, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END AS grantee
  FROM pg_namespace n
  LEFT JOIN LATERAL aclexplode(n.nspacl) a ON a.grantee <> n.nspowner
 WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgherd')
 ORDER BY n.nspname, a.grantee, a.privilege_type";

/// Lists the schemas of a database that are not PostgreSQL's own or pgherd's.
///
/// # Errors
/// [`DbError`].
pub async fn schemas(conn: &Conn) -> Result<Vec<Container>, DbError> {
    containers(conn, "read pg_namespace", SCHEMAS).await
}

async fn containers(conn: &Conn, what: &str, sql: &str) -> Result<Vec<Container>, DbError> {
    let mut found: Vec<Container> = Vec::new();
    for row in conn.query(what, sql, &[]).await? {
        let name: String = conn.field(what, &row, "name")?;
        if found.last().is_none_or(|last| last.name != name) {
            found.push(Container {
                name,
                owner: conn.field(what, &row, "owner")?,
                comment: conn.field(what, &row, "comment")?,
                grants: Vec::new(),
            });
        }
        if let (Some(word), Some(container)) =
            (conn.field::<Option<String>>(what, &row, "privilege_type")?, found.last_mut())
        {
            let grant = Grant {
                to: grantee(conn.field(what, &row, "grantee")?),
                privilege: privilege(conn, what, &word)?,
                with_grant_option: conn.field(what, &row, "is_grantable")?,
            };
            // The same privilege from two grantors is one for us; who granted it matters only when it is revoked.
            match container
                .grants
                .iter_mut()
                .find(|known| known.to == grant.to && known.privilege == grant.privilege)
            {
                Some(known) => known.with_grant_option |= grant.with_grant_option,
                None => container.grants.push(grant),
            }
        }
    }
    Ok(found)
}

/// What a schema holds that privileges are granted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Tables, partitioned and foreign ones, views and materialized views.
    Tables,
    Sequences,
}

impl Class {
    fn keyword(self) -> &'static str {
        match self {
            Self::Tables => "TABLE",
            Self::Sequences => "SEQUENCE",
        }
    }

    /// `relkind`s as a list of literals.
    fn kinds(self) -> &'static str {
        match self {
            Self::Tables => "'r', 'p', 'v', 'm', 'f'",
            Self::Sequences => "'S'",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tables => "tables",
            Self::Sequences => "sequences",
        })
    }
}

/// A privilege that one role has on relations of one schema that it does not own, counted, since there may be thousands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationGrant {
    pub schema: String,
    pub class: Class,
    pub to: Grantee,
    pub privilege: Privilege,
    /// On how many whole relations.
    pub whole: i64,
    /// On how many relations only through single columns.
    pub columns: i64,
    /// On how many it may be passed on.
    pub with_grant_option: i64,
    /// The first of them by name.
    pub example: String,
}

/// How many relations of a schema a role owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    pub schema: String,
    pub class: Class,
    pub owner: String,
    pub count: i64,
}

/// The relations that count: not PostgreSQL's own, not pgherd's, not an extension's.
const RELATIONS: &str = "
  SELECT c.oid, n.nspname, c.relname, c.relowner, c.relacl, c.relkind, CASE WHEN c.relkind = 'S' THEN 'S' ELSE 'r' END AS class
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
     AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgherd')
     AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// Counts who has what on the relations of each schema of a database.
///
/// # Errors
/// [`DbError`].
pub async fn relation_grants(conn: &Conn) -> Result<Vec<RelationGrant>, DbError> {
    const WHAT: &str = "read the privileges on tables";
    let sql = format!(
        "WITH relation AS ({RELATIONS}),
              granted AS (
         SELECT r.oid, r.nspname, r.class, r.relname, a.grantee, a.privilege_type, a.is_grantable, true AS whole
           FROM relation r, aclexplode(r.relacl) a WHERE a.grantee <> r.relowner
         UNION ALL
         SELECT r.oid, r.nspname, r.class, r.relname, a.grantee, a.privilege_type, a.is_grantable, false
           FROM relation r JOIN pg_attribute t ON t.attrelid = r.oid AND t.attacl IS NOT NULL AND NOT t.attisdropped,
                aclexplode(t.attacl) a WHERE a.grantee <> r.relowner),
              one AS (
         SELECT oid, nspname, class, relname, grantee, privilege_type, bool_or(is_grantable) AS grantable, bool_or(whole) AS whole
           FROM granted GROUP BY 1, 2, 3, 4, 5, 6)
         SELECT nspname::text AS schema, class, CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee)::text END AS grantee,
                privilege_type, count(*) FILTER (WHERE whole) AS whole, count(*) FILTER (WHERE NOT whole) AS columns,
                count(*) FILTER (WHERE grantable) AS grantable, min(relname::text) AS example
           FROM one GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
    );
    let rows = conn.query(WHAT, &sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let word: String = conn.field(WHAT, row, "privilege_type")?;
            Ok(RelationGrant {
                schema: conn.field(WHAT, row, "schema")?,
                class: class(conn.field(WHAT, row, "class")?),
                to: grantee(conn.field(WHAT, row, "grantee")?),
                privilege: privilege(conn, WHAT, &word)?,
                whole: conn.field(WHAT, row, "whole")?,
                columns: conn.field(WHAT, row, "columns")?,
                with_grant_option: conn.field(WHAT, row, "grantable")?,
                example: conn.field(WHAT, row, "example")?,
            })
        })
        .collect()
}

/// Counts who owns the relations of each schema of a database; the sum is how many there are.
///
/// # Errors
/// [`DbError`].
pub async fn owned_relations(conn: &Conn) -> Result<Vec<Owned>, DbError> {
    const WHAT: &str = "count the tables";
    let sql = format!(
        "SELECT r.nspname::text AS schema, r.class, pg_get_userbyid(r.relowner)::text AS owner, count(*) AS count
           FROM ({RELATIONS}) r GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    );
    let rows = conn.query(WHAT, &sql, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Owned {
                schema: conn.field(WHAT, row, "schema")?,
                class: class(conn.field(WHAT, row, "class")?),
                owner: conn.field(WHAT, row, "owner")?,
                count: conn.field(WHAT, row, "count")?,
            })
        })
        .collect()
}

/// What will be granted on relations that `maker` is yet to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultGrant {
    pub maker: String,
    /// `None` is every schema.
    pub schema: Option<String>,
    pub class: Class,
    pub to: Grantee,
    pub privilege: Privilege,
    pub with_grant_option: bool,
}

const DEFAULT_GRANTS: &str = "
SELECT pg_get_userbyid(d.defaclrole)::text AS maker, n.nspname::text AS schema, d.defaclobjtype::text AS class,
       CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END AS grantee, a.privilege_type, a.is_grantable
  FROM pg_default_acl d
  LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace
  CROSS JOIN LATERAL aclexplode(d.defaclacl) a
 WHERE d.defaclobjtype IN ('r', 'S') AND a.grantee <> d.defaclrole
 ORDER BY 1, 2, 3, 4, 5";

/// Lists the default privileges on tables and sequences of a database.
///
/// # Errors
/// [`DbError`].
pub async fn default_grants(conn: &Conn) -> Result<Vec<DefaultGrant>, DbError> {
    const WHAT: &str = "read pg_default_acl";
    let rows = conn.query(WHAT, DEFAULT_GRANTS, &[]).await?;
    rows.iter()
        .map(|row| {
            let word: String = conn.field(WHAT, row, "privilege_type")?;
            Ok(DefaultGrant {
                maker: conn.field(WHAT, row, "maker")?,
                schema: conn.field(WHAT, row, "schema")?,
                class: class(conn.field(WHAT, row, "class")?),
                to: grantee(conn.field(WHAT, row, "grantee")?),
                privilege: privilege(conn, WHAT, &word)?,
                with_grant_option: conn.field(WHAT, row, "is_grantable")?,
            })
        })
        .collect()
}

fn grantee(name: Option<String>) -> Grantee {
    name.map_or(Grantee::Public, Grantee::Role)
}

fn class(letter: &str) -> Class {
    if letter == "S" { Class::Sequences } else { Class::Tables }
}

fn privilege(conn: &Conn, what: &str, word: &str) -> Result<Privilege, DbError> {
    let known = Privilege::ALL.into_iter().find(|privilege| privilege.word() == word);
    known.ok_or_else(|| conn.unexpected(what, format!("privilege {word:?}")))
}
