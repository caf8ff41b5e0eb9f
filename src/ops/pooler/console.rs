//! PgBouncer's console: what it says about itself, as rows.
//!
//! Spoken through `psql` as the os-user, whom PgBouncer lets in as `pgbouncer` over its socket without a password. The console
//! knows only the simple protocol, which `psql -c` uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::PoolerPaths;
use crate::host::programs::PgBouncerVersion;
use crate::host::{Command, Host, HostError};

/// How long the console may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);
const FIELD: &str = "\x1f";
const RECORD: &str = "\x1e";
const TABLE: &str = "\x1d";

/// What a running PgBouncer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    pub version: PgBouncerVersion,
    /// SHOW DATABASES, without the console itself.
    pub databases: Vec<DatabaseRow>,
    /// SHOW POOLS, without the console itself.
    pub pools: Vec<PoolRow>,
    /// SHOW SERVERS: its connections to servers.
    pub servers: Vec<ServerRow>,
    /// SHOW CONFIG by name.
    pub settings: BTreeMap<String, SettingRow>,
    /// SHOW STATE: whether the whole process holds its clients back; `None` before 1.19, which has no word for it.
    pub held_back: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseRow {
    pub alias: String,
    pub host: String,
    pub port: u16,
    pub database: String,
    pub pool_size: u32,
    pub reserve: u32,
    pub max_connections: u32,
    pub current_connections: u32,
    /// Its own mode, if it has one.
    pub mode: Option<String>,
    pub paused: bool,
    pub disabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    pub alias: String,
    pub user: String,
    pub clients_active: u32,
    pub clients_waiting: u32,
    pub servers_active: u32,
    pub servers_idle: u32,
    /// Idle for a while, to be checked before they are used again.
    pub servers_used: u32,
    pub servers_tested: u32,
    pub servers_login: u32,
    /// How long the first client in the queue has waited.
    pub longest_wait: Duration,
    pub mode: String,
}

/// A connection to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRow {
    pub alias: String,
    pub user: String,
    pub address: String,
    pub port: u16,
    /// Whether it is closed as soon as it is not in use.
    pub closes: bool,
    /// The server's process behind it, as the server says.
    pub pid: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRow {
    pub value: String,
    /// Whether RELOAD takes it over; else only a restart does.
    pub reloads: bool,
}

/// Why the console's answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the console's answer to {0} is not understood")]
    Answer(&'static str),
}

/// The way to one console.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) host: &'a dyn Host,
    pub(super) psql: PathBuf,
    pub(super) paths: &'a PoolerPaths,
    pub(super) port: u16,
}

impl Line<'_> {
    /// Asks for everything in one session.
    pub(super) async fn show(&self) -> Result<Console, ConsoleError> {
        let mut command = self.psql();
        for (index, statement) in
            ["SHOW VERSION", "SHOW DATABASES", "SHOW POOLS", "SHOW SERVERS", "SHOW CONFIG"].iter().enumerate()
        {
            if index > 0 {
                command = command.args(["-c".to_owned(), format!("\\echo {TABLE}")]);
            }
            command = command.args(["-c", statement]);
        }
        let output = self.host.run(&command.reads()).await?;
        let mut console = parse(&output.text())?;
        // An older one would write into its log that it does not know the question.
        if (console.version.major, console.version.minor) >= (1, 19) {
            let output = self.host.run(&self.psql().args(["-c", "SHOW STATE"]).reads()).await?;
            console.held_back = Some(held_back(&output.text()).ok_or(ConsoleError::Answer("SHOW STATE"))?);
        }
        Ok(console)
    }

    /// Returns the names of the roles that it knows.
    pub(super) async fn users(&self) -> Result<Vec<String>, HostError> {
        let output = self.host.run(&self.psql().args(["-c", "SHOW USERS"]).reads()).await?;
        let rows = rows(&output.text()).unwrap_or_default();
        Ok(rows.into_iter().filter_map(|mut row| row.remove("name")).collect())
    }

    /// Gives the console a command that changes something, such as RELOAD.
    pub(super) async fn tell(&self, statement: &str) -> Result<(), HostError> {
        self.tell_within(statement, LIMIT).await
    }

    /// As [`Line::tell`], for a command that waits for clients: [`HostError::Lost`] if it still waits after `limit`.
    pub(super) async fn tell_within(&self, statement: &str, limit: Duration) -> Result<(), HostError> {
        self.host.run(&self.psql().args(["-c", statement]).timeout(limit)).await.map(|_| ())
    }

    fn psql(&self) -> Command {
        Command::new(&self.psql)
            .env("PGCONNECT_TIMEOUT", "5")
            .args(["-X", "-w", "-q", "-A", "-v", "ON_ERROR_STOP=1", "-P", "footer=off"])
            .args(["-F", FIELD, "-R", RECORD, "-U", "pgbouncer", "-d", "pgbouncer"])
            .arg("-h")
            .arg(self.paths.directory().display().to_string())
            .arg("-p")
            .arg(self.port.to_string())
            .timeout(LIMIT)
    }
}

/// Reads the four tables that [`Line::show`] asked for.
fn parse(text: &str) -> Result<Console, ConsoleError> {
    let mut tables = text.split(TABLE).map(rows);
    let mut next = |statement| tables.next().flatten().ok_or(ConsoleError::Answer(statement));
    let (version, databases, pools, servers, config) = (
        next("SHOW VERSION")?,
        next("SHOW DATABASES")?,
        next("SHOW POOLS")?,
        next("SHOW SERVERS")?,
        next("SHOW CONFIG")?,
    );
    let version = version
        .first()
        .and_then(|row| PgBouncerVersion::from_version_line(row.get("version")?))
        .ok_or(ConsoleError::Answer("SHOW VERSION"))?;
    let databases = databases
        .iter()
        .filter(|row| row.get("name").is_none_or(|name| name != "pgbouncer"))
        .map(|row| database(row).ok_or(ConsoleError::Answer("SHOW DATABASES")))
        .collect::<Result<_, _>>()?;
    let pools = pools
        .iter()
        .filter(|row| row.get("database").is_none_or(|name| name != "pgbouncer"))
        .map(|row| pool(row).ok_or(ConsoleError::Answer("SHOW POOLS")))
        .collect::<Result<_, _>>()?;
    let servers = servers
        .iter()
        .map(|row| server(row).ok_or(ConsoleError::Answer("SHOW SERVERS")))
        .collect::<Result<_, _>>()?;
    let settings = config
        .iter()
        .map(|row| setting(row).ok_or(ConsoleError::Answer("SHOW CONFIG")))
        .collect::<Result<_, _>>()?;
    Ok(Console { version, databases, pools, servers, settings, held_back: None })
}

/// Reads the states, each with yes or no: active, paused, suspended.
fn held_back(text: &str) -> Option<bool> {
    let rows = rows(text)?;
    let is = |state: &str| {
        let row = rows.iter().find(|row| row.get("key").is_some_and(|key| key == state))?;
        Some(row.get("value")? == "yes")
    };
    Some(is("paused")? || is("suspended")?)
}

type Row = BTreeMap<String, String>;

/// Reads a table with its header. Columns are known by their names, since versions add some in the middle.
fn rows(table: &str) -> Option<Vec<Row>> {
    let mut records = table.trim_matches('\n').split(RECORD);
    let names: Vec<&str> = records.next()?.split(FIELD).collect();
    records
        .map(|record| {
            let values: Vec<&str> = record.split(FIELD).collect();
            (values.len() == names.len()).then(|| {
                names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect()
            })
        })
        .collect()
}

fn database(row: &Row) -> Option<DatabaseRow> {
    let number = |name: &str| row.get(name)?.parse().ok();
    Some(DatabaseRow {
        alias: row.get("name")?.clone(),
        host: row.get("host")?.clone(),
        port: row.get("port")?.parse().ok()?,
        database: row.get("database")?.clone(),
        pool_size: number("pool_size")?,
        // Renamed in 1.24.
        reserve: number("reserve_pool_size").or_else(|| number("reserve_pool"))?,
        max_connections: number("max_connections")?,
        current_connections: number("current_connections")?,
        mode: row.get("pool_mode").filter(|mode| !mode.is_empty()).cloned(),
        paused: number("paused")? != 0,
        disabled: number("disabled")? != 0,
    })
}

fn pool(row: &Row) -> Option<PoolRow> {
    let number = |name: &str| row.get(name)?.parse().ok();
    Some(PoolRow {
        alias: row.get("database")?.clone(),
        user: row.get("user")?.clone(),
        clients_active: number("cl_active")?,
        clients_waiting: number("cl_waiting")?,
        servers_active: number("sv_active")?,
        servers_idle: number("sv_idle")?,
        servers_used: number("sv_used")?,
        servers_tested: number("sv_tested")?,
        servers_login: number("sv_login")?,
        longest_wait: Duration::from_secs(row.get("maxwait")?.parse().ok()?)
            + Duration::from_micros(row.get("maxwait_us")?.parse().ok()?),
        mode: row.get("pool_mode")?.clone(),
    })
}

fn server(row: &Row) -> Option<ServerRow> {
    Some(ServerRow {
        alias: row.get("database")?.clone(),
        user: row.get("user")?.clone(),
        address: row.get("addr")?.clone(),
        port: row.get("port")?.parse().ok()?,
        closes: row.get("close_needed")? != "0",
        pid: row.get("remote_pid").and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0),
    })
}

fn setting(row: &Row) -> Option<(String, SettingRow)> {
    let reloads = row.get("changeable")? == "yes";
    Some((row.get("key")?.clone(), SettingRow { value: row.get("value")?.clone(), reloads }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&str]) -> String {
        let records: Vec<String> = rows.iter().map(|row| row.replace('|', FIELD)).collect();
        format!("{}\n", records.join(RECORD))
    }

    fn answer(databases: &str) -> String {
        let databases: Vec<&str> = databases.lines().collect();
        [
            table(&["version", "PgBouncer 1.18.0"]),
            table(&databases),
            table(&[
                "database|user|cl_active|cl_waiting|sv_active|sv_idle|sv_used|sv_tested|sv_login|maxwait|maxwait_us|pool_mode",
                "app|app|1|2|3|4|0|0|0|5|250000|transaction",
            ]),
            table(&[
                "type|user|database|state|addr|port|close_needed|remote_pid",
                "S|app|app|active|127.0.0.1|5441|0|4711",
            ]),
            table(&[
                "key|value|default|changeable",
                "listen_port|6441|6432|no",
                "pool_mode|transaction|session|yes",
            ]),
        ]
        .join(&format!("{TABLE}\n"))
    }

    const OF_1_18: &str = "name|host|port|database|force_user|pool_size|min_pool_size|reserve_pool|pool_mode|max_connections|current_connections|paused|disabled
app|127.0.0.1|5441|inventory||16|0|4||20|3|0|0
pgbouncer||6441|pgbouncer|pgbouncer|2|0|0|statement|0|0|0|0";

    #[test]
    fn reads_the_console_of_1_18() {
        let console = parse(&answer(OF_1_18)).unwrap();
        assert_eq!(console.version.to_string(), "1.18.0");
        let [app] = console.databases.as_slice() else { panic!("{console:?}") };
        assert_eq!((app.alias.as_str(), app.port, app.reserve, app.max_connections), ("app", 5441, 4, 20));
        assert_eq!(console.pools[0].longest_wait, Duration::from_millis(5250));
        assert_eq!((console.servers[0].address.as_str(), console.servers[0].port), ("127.0.0.1", 5441));
        assert_eq!((console.servers[0].pid, console.held_back), (Some(4711), None));
        assert!(!console.settings["listen_port"].reloads && console.settings["pool_mode"].reloads);
    }

    #[test]
    fn reads_the_columns_that_1_24_renamed() {
        let newer = OF_1_18
            .replace("reserve_pool|", "reserve_pool_size|server_lifetime|")
            .replace("|4||20", "|4|0||20");
        let newer = newer.replace("|2|0|0|statement", "|2|0|0|0|statement");
        assert_eq!(parse(&answer(&newer)).unwrap().databases[0].reserve, 4);
    }

    #[test]
    fn reads_whether_all_clients_are_held_back() {
        let states = |states: &str| table(&["key|value", states, "suspended|no"]);
        assert_eq!(held_back(&states("paused|yes")), Some(true));
        assert_eq!(held_back(&states("paused|no")), Some(false));
        assert_eq!(held_back(&states("halted|no")), None);
    }

    #[test]
    fn names_the_table_that_is_not_understood() {
        let error = parse(&answer(&OF_1_18.replace("|paused", "|halted"))).unwrap_err();
        assert_eq!(error.to_string(), "the console's answer to SHOW DATABASES is not understood");
        assert!(parse("").is_err());
    }
}
