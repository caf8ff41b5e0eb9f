use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pgherd::db::objects::change::set_verifiers;
use pgherd::db::queries::ensure_probe_table;
use pgherd::db::{Connector, DbError, Login, NodeConn, Session, classify};
use pgherd::gate::{self, Blocked, BoxFuture, Gate};
use pgherd::ops::objects::{Change, ObjectsObserved, ToPrimary, apply, notes, observe, plan};
use pgherd::pg::scram::{DEFAULT_ITERATIONS, Verifier};
use pgherd::secret::Secret;
use pgherd::topology::model::{Cluster, Postgres, Role, Schema, SecretReference, Service};

use crate::server::{Installation, Server, installations, newest};

/// One database, several schemas, each with its owner; `bi` reads one of them.
fn reporting(major: u32) -> Cluster {
    let schema = |name: &str, read: &[&str]| Schema {
        name: name.to_owned(),
        database: "reporting".to_owned(),
        owner: format!("{name}_owner"),
        write: vec![format!("{name}_app")],
        read: read.iter().map(|role| (*role).to_owned()).collect(),
    };
    let role = |name: &str, connections| Role {
        name: name.to_owned(),
        password: Some(SecretReference::Env("UNUSED".to_owned())),
        pools: Vec::new(),
        connections,
    };
    Cluster {
        name: "reporting".to_owned(),
        postgres: Postgres {
            version: major,
            bin_directory: None,
            os_user: None,
            service: Service::PgCtl,
            tls: None,
            tune_memory: None,
            settings: BTreeMap::new(),
        },
        health: std::collections::BTreeMap::new(),
        checks: Vec::new(),
        hooks: Vec::new(),
        notify: None,
        partitions: Vec::new(),
        nodes: Vec::new(),
        synchronous: None,
        databases: vec!["reporting".to_owned()],
        schemas: vec![schema("catalog", &[]), schema("campaigns", &["bi"]), schema("Weird \"one", &["bi"])],
        roles: vec![
            role("catalog_app", None),
            role("campaigns_app", None),
            role("Weird \"one_app", None),
            role("bi", Some(4)),
        ],
        poolers: None,
        objectives: BTreeMap::new(),
        backups: None,
        drills: None,
        hosts: Vec::new(),
    }
}

fn passwords(cluster: &Cluster) -> BTreeMap<String, Secret> {
    let secret = |role: &Role| (role.name.clone(), Secret::new(format!("PLAIN-{}-\u{2168}", role.name)));
    cluster.roles.iter().map(secret).collect()
}

/// A server, what is declared for it, and the way to it.
struct Place {
    server: Server,
    cluster: Cluster,
    passwords: BTreeMap<String, Secret>,
    login: Login,
    connector: Connector,
}

impl Place {
    fn new(installation: &Installation, settings: &str) -> Self {
        let server = Server::start(installation, settings);
        let cluster = reporting(installation.major);
        let passwords = passwords(&cluster);
        let login = server.login("postgres");
        Self { server, cluster, passwords, login, connector: Connector::new(gate::open()) }
    }

    fn to(&self) -> ToPrimary<'_> {
        ToPrimary { connector: &self.connector, login: &self.login }
    }

    async fn observe(&self) -> ObjectsObserved {
        observe(self.to(), &self.cluster, &self.passwords).await.expect("observe")
    }

    async fn plan(&self) -> Vec<Change> {
        plan(&self.cluster, &self.observe().await)
    }

    async fn notes(&self) -> Vec<String> {
        notes(&self.cluster, &self.observe().await)
    }

    /// Plans and makes every change; then there must be none left.
    async fn mend(&self) -> Vec<Change> {
        let changes = self.plan().await;
        for change in &changes {
            let made = apply(change, self.to(), &self.passwords).await;
            assert!(made.is_ok(), "{}: {made:?}", change.describe());
        }
        let left: Vec<String> = self.plan().await.iter().map(Change::reason).collect();
        assert_eq!(left, Vec::<String>::new());
        changes
    }

    async fn sql(&self, database: &str, sql: &str) {
        let made = self.server.connect(database).await.batch("change something", sql).await;
        assert!(made.is_ok(), "{sql}: {made:?}");
    }

    /// Runs a statement as a role that logs in over TCP with its declared password.
    async fn as_role(&self, role: &str, sql: &str) -> Result<(), DbError> {
        let login = self.server.tcp_login(role, self.passwords[role].reveal(), "reporting");
        self.connector.connect(&login).await?.batch("try", sql).await
    }

    async fn refused(&self, role: &str, sql: &str) {
        let error = self.as_role(role, sql).await;
        assert!(error.as_ref().is_err_and(|error| error.is_state("42501")), "{role}: {sql}: {error:?}");
    }

    async fn allowed(&self, role: &str, sql: &str) {
        let done = self.as_role(role, sql).await;
        assert!(done.is_ok(), "{role}: {sql}: {done:?}");
    }
}

const TABLES: &str = r#"
SET ROLE catalog_owner;
CREATE TABLE catalog.items (id int GENERATED ALWAYS AS IDENTITY, name text);
CREATE TABLE catalog.parts (id serial, at date) PARTITION BY RANGE (at);
CREATE TABLE catalog.parts_1 PARTITION OF catalog.parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE MATERIALIZED VIEW catalog.seen AS SELECT 1 AS one;
SET ROLE campaigns_owner;
CREATE TABLE campaigns.sent (id serial, text text);
CREATE VIEW campaigns.recent AS SELECT * FROM campaigns.sent;
SET ROLE "Weird ""one_owner";
CREATE TABLE "Weird ""one"."A b" ("C d" int);
RESET ROLE"#;

#[tokio::test]
async fn every_role_reaches_what_is_declared_and_nothing_else_on_every_major() {
    for installation in installations() {
        let place = Place::new(&installation, "");
        place.mend().await;
        place.sql("reporting", TABLES).await;
        assert_eq!(place.plan().await, [], "default privileges cover what the owner makes");
        assert_eq!(place.notes().await, Vec::<String>::new());

        place
            .allowed(
                "catalog_app",
                "INSERT INTO catalog.items (name) VALUES ('x'); SELECT * FROM catalog.items",
            )
            .await;
        place.allowed("catalog_app", "INSERT INTO catalog.parts (at) VALUES ('2026-02-03')").await;
        place
            .allowed("campaigns_app", "DELETE FROM campaigns.sent; SELECT nextval('campaigns.sent_id_seq')")
            .await;
        place.allowed("Weird \"one_app", r#"UPDATE "Weird ""one"."A b" SET "C d" = 1"#).await;
        place.allowed("bi", "SELECT * FROM campaigns.recent; SELECT * FROM campaigns.sent").await;

        for (role, sql) in [
            ("catalog_app", "SELECT * FROM campaigns.sent"),
            ("campaigns_app", "SELECT * FROM catalog.items"),
            ("campaigns_app", "CREATE TABLE campaigns.mine ()"),
            ("campaigns_app", "TRUNCATE campaigns.sent"),
            ("campaigns_app", "DROP TABLE campaigns.sent"),
            ("campaigns_app", "SET ROLE campaigns_owner"),
            ("bi", "SELECT * FROM catalog.items"),
            ("bi", "INSERT INTO campaigns.sent (text) VALUES ('x')"),
            ("bi", "CREATE TABLE public.mine ()"),
            ("bi", "CREATE SCHEMA mine"),
        ] {
            place.refused(role, sql).await;
        }
        // What PostgreSQL gives to everybody stays with those who have a part in the database.
        place.allowed("bi", "CREATE TEMPORARY TABLE mine ()").await;

        // A role that is not declared does not even get into the database.
        place.sql("postgres", "CREATE ROLE stranger LOGIN PASSWORD 'x'").await;
        let stranger = place.server.tcp_login("stranger", "x", "reporting");
        let error = place.connector.connect(&stranger).await.err();
        assert!(error.as_ref().is_some_and(|error| error.is_state("42501")), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_changed_behind_our_back_is_shown_with_both_values_and_mended_on_every_major() {
    for installation in installations() {
        let place = Place::new(&installation, "");
        place.mend().await;
        place.sql("reporting", TABLES).await;
        for (damage, expected) in damages() {
            place.sql("reporting", damage).await;
            let found: BTreeSet<String> = place.plan().await.iter().map(Change::reason).collect();
            let expected: BTreeSet<String> = expected.iter().map(|line| (*line).to_owned()).collect();
            assert_eq!(found, expected, "{damage} on {}", installation.major);
            place.mend().await;
        }
    }
}

/// What is done to the database, and all that the plan then says.
fn damages() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        (
            "REVOKE INSERT, DELETE ON catalog.items FROM catalog_app",
            vec![
                "catalog_app lacks INSERT, DELETE on tables of reporting.catalog (1 of 4), declared: SELECT, INSERT, UPDATE, DELETE",
            ],
        ),
        (
            "GRANT SELECT ON catalog.items, catalog.seen TO bi; GRANT USAGE ON SCHEMA catalog TO bi",
            vec![
                "bi has SELECT on tables of reporting.catalog (2 of 4, such as items), declared: none",
                "bi has USAGE on schema reporting.catalog, declared: none",
            ],
        ),
        (
            "GRANT UPDATE (text), SELECT (text) ON campaigns.sent TO bi; GRANT SELECT (name) ON catalog.items TO bi",
            vec![
                "bi has UPDATE on tables of reporting.campaigns (1 of 2, such as sent), declared: SELECT",
                "bi has SELECT on tables of reporting.catalog (1 of 4, such as items), declared: none",
            ],
        ),
        (
            "GRANT SELECT ON ALL TABLES IN SCHEMA catalog TO PUBLIC; GRANT ALL ON SCHEMA catalog TO PUBLIC",
            vec![
                "PUBLIC has CREATE, USAGE on schema reporting.catalog, declared: none",
                "PUBLIC has SELECT on tables of reporting.catalog (4 of 4, such as items), declared: none",
            ],
        ),
        (
            "GRANT CREATE ON SCHEMA campaigns TO campaigns_app; GRANT TRUNCATE ON campaigns.sent TO campaigns_app;
             GRANT UPDATE ON SEQUENCE campaigns.sent_id_seq TO bi; REVOKE USAGE ON SEQUENCE campaigns.sent_id_seq FROM campaigns_app",
            vec![
                "campaigns_app has CREATE on schema reporting.campaigns, declared: USAGE",
                "campaigns_app has TRUNCATE on tables of reporting.campaigns (1 of 2, such as sent), \
                 declared: SELECT, INSERT, UPDATE, DELETE",
                "bi has UPDATE on sequences of reporting.campaigns (1 of 1, such as sent_id_seq), declared: none",
                "campaigns_app lacks USAGE on sequences of reporting.campaigns (1 of 1), declared: USAGE, SELECT, UPDATE",
            ],
        ),
        (
            // Granted by somebody who may pass it on, and not by the owner.
            "GRANT SELECT ON campaigns.sent TO campaigns_app WITH GRANT OPTION;
             GRANT USAGE ON SCHEMA campaigns TO campaigns_app WITH GRANT OPTION;
             SET ROLE campaigns_app; GRANT SELECT ON campaigns.sent TO catalog_app; GRANT USAGE ON SCHEMA campaigns TO catalog_app; RESET ROLE",
            vec![
                "campaigns_app has USAGE with grant option on schema reporting.campaigns, declared: USAGE",
                "campaigns_app has SELECT with grant option on tables of reporting.campaigns (1 of 2), \
                 declared: SELECT, INSERT, UPDATE, DELETE",
                "catalog_app has USAGE on schema reporting.campaigns, declared: none",
                "catalog_app has SELECT on tables of reporting.campaigns (1 of 2, such as sent), declared: none",
            ],
        ),
        (
            "ALTER ROLE bi SUPERUSER CREATEDB CONNECTION LIMIT 10 VALID UNTIL '2020-01-01 00:00:00+00'; ALTER ROLE catalog_owner LOGIN",
            vec![
                "bi has SUPERUSER CREATEDB CONNECTION LIMIT 10 VALID UNTIL 2020-01-01 00:00:00+00, \
                 declared: NOSUPERUSER NOCREATEDB CONNECTION LIMIT 4 VALID UNTIL infinity",
                "catalog_owner has LOGIN, declared: NOLOGIN",
            ],
        ),
        (
            "ALTER ROLE bi PASSWORD 'changed'; ALTER ROLE catalog_app PASSWORD NULL; SET password_encryption = md5;
             ALTER ROLE campaigns_app PASSWORD 'PLAIN-campaigns_app-\u{2168}'",
            vec![
                "bi has another password, declared: one by reference",
                "catalog_app has no password, declared: one by reference",
                "campaigns_app has a password hash that is not SCRAM-SHA-256, declared: one by reference",
            ],
        ),
        (
            "GRANT catalog_owner, pg_read_all_data TO bi; GRANT postgres TO campaigns_app",
            vec![
                "bi is a member of catalog_owner, declared: of nothing",
                "bi is a member of pg_read_all_data, declared: of nothing",
                "campaigns_app is a member of postgres, declared: of nothing",
            ],
        ),
        (
            "ALTER SCHEMA catalog OWNER TO catalog_app",
            vec![
                "owner is catalog_app, declared: catalog_owner",
                "catalog_app lacks USAGE on schema reporting.catalog, declared: USAGE",
            ],
        ),
        (
            "ALTER DATABASE reporting OWNER TO bi; GRANT ALL ON DATABASE reporting TO PUBLIC; REVOKE CONNECT ON DATABASE reporting FROM catalog_app",
            vec![
                "owner is bi, declared: postgres",
                "bi lacks CONNECT, TEMPORARY on database reporting, declared: CONNECT, TEMPORARY",
                "PUBLIC has CONNECT, CREATE, TEMPORARY on database reporting, declared: none",
                "catalog_app lacks CONNECT on database reporting, declared: CONNECT, TEMPORARY",
            ],
        ),
        (
            "GRANT CREATE ON SCHEMA public TO PUBLIC",
            vec!["PUBLIC has CREATE on schema reporting.public, declared: none"],
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE catalog_owner IN SCHEMA catalog REVOKE INSERT ON TABLES FROM catalog_app;
             ALTER DEFAULT PRIVILEGES FOR ROLE catalog_owner IN SCHEMA catalog GRANT SELECT ON TABLES TO bi;
             ALTER DEFAULT PRIVILEGES FOR ROLE catalog_owner GRANT SELECT ON TABLES TO PUBLIC;
             ALTER DEFAULT PRIVILEGES IN SCHEMA campaigns GRANT DELETE ON TABLES TO bi;
             ALTER DEFAULT PRIVILEGES FOR ROLE campaigns_owner IN SCHEMA campaigns GRANT SELECT ON TABLES TO bi WITH GRANT OPTION",
            vec![
                "catalog_app will lack INSERT on future tables of catalog_owner in reporting.catalog, \
                 declared: SELECT, INSERT, UPDATE, DELETE",
                "bi will have SELECT on future tables of catalog_owner in reporting.catalog, declared: none",
                "PUBLIC will have SELECT on future tables of catalog_owner in reporting, declared: none",
                "bi will have DELETE on future tables of postgres in reporting.campaigns, declared: SELECT",
                "bi will have SELECT with grant option on future tables of campaigns_owner in reporting.campaigns, declared: SELECT",
            ],
        ),
        (
            "DROP SCHEMA \"Weird \"\"one\" CASCADE",
            vec![
                "declared, not there",
                "Weird \"one_app lacks USAGE on schema reporting.Weird \"one, declared: USAGE",
                "bi lacks USAGE on schema reporting.Weird \"one, declared: USAGE",
                "Weird \"one_app will lack SELECT, INSERT, UPDATE, DELETE on future tables of Weird \"one_owner in \
                 reporting.Weird \"one, declared: SELECT, INSERT, UPDATE, DELETE",
                "Weird \"one_app will lack USAGE, SELECT, UPDATE on future sequences of Weird \"one_owner in \
                 reporting.Weird \"one, declared: USAGE, SELECT, UPDATE",
                "bi will lack SELECT on future tables of Weird \"one_owner in reporting.Weird \"one, declared: SELECT",
            ],
        ),
        // A table that the superuser made: nobody's default privileges cover it.
        (
            "CREATE TABLE campaigns.made_by_hand ()",
            vec![
                "campaigns_app lacks SELECT, INSERT, UPDATE, DELETE on tables of reporting.campaigns (1 of 3), \
                 declared: SELECT, INSERT, UPDATE, DELETE",
                "bi lacks SELECT on tables of reporting.campaigns (1 of 3), declared: SELECT",
            ],
        ),
        // Not ours to decide: an extension's tables, and what a stranger has.
        ("CREATE EXTENSION pg_stat_statements SCHEMA catalog", vec![]),
        (
            "CREATE ROLE grafana LOGIN; GRANT USAGE ON SCHEMA catalog TO grafana; GRANT SELECT ON catalog.items TO grafana;
             CREATE TABLE public.shared (); GRANT SELECT ON public.shared TO bi",
            vec![],
        ),
    ]
}

#[tokio::test]
async fn strangers_and_what_left_the_file_are_told_and_left_alone() {
    let mut place = Place::new(&newest(), "");
    place.mend().await;
    ensure_probe_table(&place.server.primary("reporting").await).await.unwrap();
    place.sql("reporting", TABLES).await;
    place
        .sql(
            "reporting",
            "CREATE ROLE grafana LOGIN; GRANT CONNECT ON DATABASE reporting TO grafana; GRANT USAGE ON SCHEMA catalog TO grafana;
             GRANT SELECT ON catalog.items TO grafana; GRANT campaigns_owner TO grafana; GRANT grafana TO catalog_app;
             CREATE TABLE public.shared (); GRANT SELECT ON public.shared TO bi;
             CREATE TABLE catalog.odd (); ALTER TABLE catalog.odd OWNER TO catalog_app;
             CREATE SCHEMA theirs AUTHORIZATION grafana; GRANT ALL ON SCHEMA theirs TO grafana",
        )
        .await;
    assert_eq!(place.plan().await, []);
    assert_eq!(
        place.notes().await,
        [
            "Role catalog_app is a member of grafana, which is not declared.",
            "Role grafana, which is not declared, is a member of campaigns_owner.",
            "Role bi has SELECT on tables of reporting.public, which is not declared.",
            "Role grafana, which is not declared, has CONNECT on database reporting.",
            "Role grafana, which is not declared, has USAGE on schema reporting.catalog.",
            "Role grafana, which is not declared, has SELECT on tables of reporting.catalog.",
            "Role catalog_app owns 1 tables of reporting.catalog.",
        ]
    );

    place
        .sql("reporting", "DROP OWNED BY grafana; DROP ROLE grafana; DROP TABLE catalog.odd, public.shared")
        .await;
    place.cluster.schemas.pop();
    place.cluster.roles.retain(|role| role.name != "Weird \"one_app");
    place.cluster.roles[0].password = None;
    let reasons: Vec<String> = place.mend().await.iter().map(Change::reason).collect();
    assert_eq!(
        reasons,
        [
            "catalog_app has LOGIN, declared: NOLOGIN",
            "catalog_app has CONNECT, TEMPORARY on database reporting, declared: none",
        ]
    );
    assert_eq!(
        place.notes().await,
        [
            "Role Weird \"one_app was made by pgherd and is no longer declared.",
            "Role Weird \"one_owner was made by pgherd and is no longer declared.",
            "Schema reporting.Weird \"one was made by pgherd and is no longer declared.",
            "Role Weird \"one_app, which is not declared, has CONNECT, TEMPORARY on database reporting.",
            "Role bi has USAGE on schema reporting.Weird \"one, which is not declared.",
            "Role bi has SELECT on tables of reporting.Weird \"one, which is not declared.",
        ]
    );
}

#[tokio::test]
async fn neither_password_nor_verifier_is_seen_on_the_server() {
    let loud = "log_statement = all\nlog_min_duration_statement = 0\nlog_min_error_statement = debug5\nlog_duration = on\n\
                shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track_utility = on\n";
    let place = Place::new(&newest(), loud);
    place.sql("postgres", "CREATE EXTENSION pg_stat_statements SCHEMA public").await;
    place.mend().await;
    place.sql("postgres", "ALTER ROLE bi PASSWORD NULL").await;
    place.mend().await;
    // A password that cannot be set: the statement fails, and must not be logged for that.
    let change =
        Change::SetPassword { role: "bi".to_owned(), found: pgherd::ops::objects::StoredPassword::Missing };
    place.sql("postgres", "ALTER ROLE bi RENAME TO bi_gone").await;
    let error = apply(&change, place.to(), &place.passwords).await.unwrap_err();
    assert!(error.is_state("42704"), "{error:?}");

    // An idle session still shows its last statement.
    let quiet = Login { session: Session::Quiet, ..place.login.clone() };
    let quiet = classify(place.connector.connect(&quiet).await.unwrap()).await.unwrap();
    let NodeConn::Primary(quiet) = quiet else { panic!("it is a standby") };
    let verifier = Verifier::derive(&Secret::new("PLAIN-quiet"), b"0123456789abcdef", DEFAULT_ITERATIONS);
    set_verifiers(&quiet, &[("catalog_app", verifier)]).await.unwrap();

    let conn = place.server.connect("postgres").await;
    let mut seen = place.server.log();
    assert!(seen.contains("CREATE ROLE"), "the log shows other statements");
    for (source, column) in [("public.pg_stat_statements", "query"), ("pg_stat_activity", "query")] {
        for row in conn.simple("look", &format!("SELECT {column} FROM {source}")).await.unwrap() {
            seen.push_str(row[column].as_deref().unwrap_or_default());
        }
    }
    seen.push_str(&format!("{error:?} {:?} {:?}", place.observe().await, place.plan().await));
    seen.push_str(&serde_json::to_string(&(place.observe().await, place.plan().await)).unwrap());
    assert!(!seen.contains("PLAIN-"), "a password is seen");
    assert!(!seen.contains("SCRAM-SHA-256$"), "a verifier is seen");
}

/// Counts the calls and loses one, before or after its effect.
#[derive(Debug)]
struct Loses {
    at: usize,
    after: bool,
    calls: std::sync::atomic::AtomicUsize,
}

impl Gate for Loses {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let now = self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let blocked = now == self.at && !self.after;
        Box::pin(async move { if blocked { Err(Blocked::Before(call.to_owned())) } else { Ok(()) } })
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let last = self.calls.load(std::sync::atomic::Ordering::SeqCst) - 1;
        let blocked = last == self.at && self.after;
        Box::pin(async move { if blocked { Err(Blocked::After(call.to_owned())) } else { Ok(()) } })
    }
}

#[tokio::test]
async fn whatever_call_is_lost_planning_and_applying_again_ends_the_same() {
    let place = Place::new(&newest(), "");
    let gone = "DROP DATABASE IF EXISTS reporting";
    let roles = [
        "catalog_app",
        "campaigns_app",
        "Weird \"one_app",
        "bi",
        "catalog_owner",
        "campaigns_owner",
        "Weird \"one_owner",
    ];
    let mut lost = 0;
    // A sample: one in seven calls, in turn before and after its effect.
    for at in (0..).step_by(7) {
        let gate = Arc::new(Loses { at, after: at % 2 == 0, calls: 0.into() });
        let faulty = Connector::new(gate);
        let to = ToPrimary { connector: &faulty, login: &place.login };
        let mut failed = false;
        for change in place.plan().await {
            if let Err(error) = apply(&change, to, &place.passwords).await {
                assert!(matches!(error, DbError::NotSent { .. } | DbError::Lost { .. }), "{error:?}");
                failed = true;
                break;
            }
        }
        if !failed {
            break;
        }
        lost += 1;
        place.mend().await;
        // Each change a second time changes nothing.
        if at % 5 == 0 {
            let fresh = ObjectsObserved {
                roles: BTreeMap::new(),
                memberships: Vec::new(),
                databases: Vec::new(),
                inside: BTreeMap::new(),
            };
            for change in plan(&place.cluster, &fresh) {
                apply(&change, place.to(), &place.passwords).await.unwrap();
            }
            assert_eq!(place.plan().await, []);
        }
        place.sql("postgres", gone).await;
        for role in roles {
            place.sql("postgres", &format!("DROP ROLE \"{}\"", role.replace('"', "\"\""))).await;
        }
    }
    assert!(lost > 10, "only {lost} calls");
}
