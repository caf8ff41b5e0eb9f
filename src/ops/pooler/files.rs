//! What PgBouncer is to read, from what is declared and where each pool leads now: pgbouncer.ini, its
//! access lines and userlist.txt.
//!
//! Pure: who may serve a pool is decided here, from facts that are handed in. Knows no process and no console.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{self, Line, Section};
use crate::db::pooler::QUERY;
use crate::error::Error;
use crate::host::programs::PgBouncerVersion;
use crate::pg::scram::Verifier;
use crate::secret::Secret;
use crate::topology::budget::serves;
use crate::topology::declared::{PROBE_ROLE, pooler_role};
use crate::topology::model::{Cluster, Pool, PoolMode, PoolTarget, PoolUser, PoolerAuth, Poolers, Service};
use crate::topology::render::{PgbouncerIni, Setting, Template, render as fill};
use crate::topology::unit::{self, PoolerService};

/// How long a client's query may wait for a server connection: longer than any pause that pgherd makes.
pub const QUERY_WAIT_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest path of a Unix socket, without the final NUL (`sockaddr_un`).
const SOCKET_PATH_LIMIT: usize = 107;

/// The directory of one cluster's PgBouncer on one host; the os-user's alone, so that nobody else reaches the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolerPaths {
    directory: PathBuf,
}

impl PoolerPaths {
    /// Takes the absolute directory that holds everything: both files, the log, the pidfile and the console's socket.
    ///
    /// # Errors
    /// When PgBouncer could not read the path from its configuration, or not make a socket of that length (it would cut the name).
    pub fn new(directory: PathBuf) -> Result<Self, Error> {
        let shown = directory.display().to_string();
        let unusable = |why: &str| {
            Error::usage(format!("cannot use {shown} as the directory of a PgBouncer")).detail(why.to_owned())
        };
        let socket = shown.len() + "/.s.PGSQL.65535".len();
        if !directory.is_absolute() || directory.to_str().is_none() {
            return Err(unusable("The path is not absolute, or not UTF-8."));
        }
        if socket > SOCKET_PATH_LIMIT {
            return Err(unusable(&format!(
                "Its socket's path would have {socket} bytes, the system takes {SOCKET_PATH_LIMIT}."
            )));
        }
        if shown.contains(|letter: char| letter.is_control() || letter == ',' || letter == '\'') {
            return Err(unusable("The path has a comma, a quote or a control character."));
        }
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn ini(&self) -> PathBuf {
        self.directory.join("pgbouncer.ini")
    }

    pub fn userlist(&self) -> PathBuf {
        self.directory.join("userlist.txt")
    }

    /// The certificate authorities that it believes.
    pub fn authorities(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// What it proves itself by: its certificate, those above it, and its key.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("server.pem")
    }

    /// Which role may use which alias.
    pub fn hba(&self) -> PathBuf {
        self.directory.join("pgbouncer_hba.conf")
    }

    pub fn pidfile(&self) -> PathBuf {
        self.directory.join("pgbouncer.pid")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("pgbouncer.log")
    }

    /// Returns the directory of another process of the same host; `own` is the number of this one.
    fn of_process(&self, own: u32, other: u32) -> PathBuf {
        let first = if own == 1 { Some(self.directory.as_path()) } else { self.directory.parent() };
        let first = first.unwrap_or(&self.directory);
        if other == 1 { first.to_owned() } else { first.join(other.to_string()) }
    }

    /// A socket directory that nobody makes: where an alias leads that has no node.
    fn nowhere(&self) -> PathBuf {
        self.directory.join("nowhere")
    }
}

/// Where a pool may lead now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub primary: Target,
    /// In the order of the file.
    pub standbys: Vec<Standby>,
    /// Where each alias leads now: host and port.
    pub kept: BTreeMap<String, (String, u16)>,
}

impl Layout {
    /// A layout of which no alias is there yet.
    pub fn new(primary: Target, standbys: Vec<Standby>) -> Self {
        Self { primary, standbys, kept: BTreeMap::new() }
    }
}

/// A node as PgBouncer connects to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The node's name within the cluster.
    pub node: String,
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    pub target: Target,
    /// Whether it was seen streaming.
    pub streams: bool,
    /// How far its replay is behind, if that is known.
    pub behind: Option<Duration>,
}

/// Returns how one of several processes of a host is called: the first one like the host.
pub(super) fn named(host: &str, process: u32) -> String {
    if process == 1 { host.to_owned() } else { format!("{host}.{process}") }
}

/// Everything that the files of one PgBouncer follow from.
#[derive(Debug)]
pub struct Declared<'a> {
    pub cluster: &'a Cluster,
    /// The host that this PgBouncer runs on: one of the cluster's poolers.
    pub host: &'a str,
    /// Which one of the processes there, from 1.
    pub process: u32,
    /// Who runs it there.
    pub os_user: &'a str,
    /// The address that clients reach that host at.
    pub listen: IpAddr,
    pub layout: &'a Layout,
    pub paths: &'a PoolerPaths,
    pub program: &'a Path,
    pub version: PgBouncerVersion,
    /// The verifiers as the primary stores them (`pg_authid`), by role: with any other one PgBouncer could not log in.
    pub verifiers: &'a BTreeMap<String, Verifier>,
    /// The password of its own login, where it asks the server.
    pub password: Option<&'a Secret>,
}

/// One alias and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub alias: String,
    pub database: String,
    /// The nodes behind it; none if no node may serve this pool now: then the alias is there and refuses clients.
    pub to: Vec<Target>,
    /// What PgBouncer shows as its host: an address, or several with commas between.
    pub host: String,
    pub port: u16,
    /// Server connections for each user.
    pub pool_size: u32,
    pub reserve: u32,
    /// When a server connection goes back to the pool.
    pub mode: PoolMode,
}

impl Route {
    /// Server connections over all users.
    pub fn max_connections(&self) -> u32 {
        self.pool_size + self.reserve
    }
}

/// What one PgBouncer is to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolerFiles {
    /// In the order of the file.
    pub routes: Vec<Route>,
    /// Section [pgbouncer]: name and value.
    pub settings: Vec<(String, String)>,
    pub ini: String,
    /// Which role may use which alias: one line each.
    pub hba: String,
    /// Names and verifiers; a verifier is as good as a password to whoever wants to guess it.
    pub userlist: Secret,
    /// The unit that systemd starts it by, where it shall.
    pub unit: Option<String>,
}

impl PoolerFiles {
    /// Returns the same files for another directory, with no port opened: what a trial reads. Certificates stay where they are.
    pub(super) fn moved(&self, from: &PoolerPaths, to: &PoolerPaths) -> Self {
        let text = |path: &Path| path.display().to_string();
        let (was, is) = (|path: PathBuf| text(&path), |path: PathBuf| text(&path));
        let changes = [
            ("unix_socket_dir", was(from.directory.clone()), is(to.directory.clone())),
            ("logfile", was(from.log()), is(to.log())),
            ("pidfile", was(from.pidfile()), is(to.pidfile())),
            ("auth_hba_file", was(from.hba()), is(to.hba())),
            ("auth_file", was(from.userlist()), is(to.userlist())),
        ];
        let mut files = self.clone();
        for (name, value) in &mut files.settings {
            let changed = match name.as_str() {
                "listen_addr" => Some(String::new()),
                _ => changes
                    .iter()
                    .find(|(key, old, _)| key == name && old == value)
                    .map(|(_, _, new)| new.clone()),
            };
            if let Some(changed) = changed {
                files.ini =
                    files.ini.replace(&format!("\n{name} = {value}\n"), &format!("\n{name} = {changed}\n"));
                *value = changed;
            }
        }
        files.unit = None;
        files
    }

    /// Returns the userlist with its names and no secret.
    pub fn redacted_userlist(&self) -> String {
        let lines = read_userlist(self.userlist.reveal()).unwrap_or_default();
        lines.iter().map(|(name, _)| format!("\"{}\" \"...\"\n", name.replace('"', "\"\""))).collect()
    }
}

/// Decides what the files of a PgBouncer say.
///
/// # Errors
/// When a name cannot stand in PgBouncer's files, a size cannot be divided, or a role's verifier is missing.
pub fn render(declared: &Declared<'_>) -> Result<PoolerFiles, Error> {
    let cluster = declared.cluster;
    let poolers = cluster
        .poolers
        .as_ref()
        .ok_or_else(|| Error::failed(format!("cluster {} declares no poolers", cluster.name)))?;
    let share = Share::of(declared, poolers)?;
    supported(declared, poolers)?;
    let mut routes = Vec::new();
    for (index, database) in cluster.databases.iter().enumerate() {
        for pool in &poolers.pools {
            routes.push(route(declared, poolers, pool, database, &share.of_database(index))?);
        }
    }
    let users = limits(declared, poolers, &share)?;
    let settings = settings(declared, poolers);
    let entry = |(name, value): (String, String)| Setting { name, value };
    let ini = fill(
        Template::PgbouncerIni,
        &PgbouncerIni {
            cluster: cluster.name.clone(),
            databases: routes
                .iter()
                .map(|route| entry((route.alias.clone(), connection_string(declared, poolers, route))))
                .collect(),
            users: users.into_iter().map(entry).collect(),
            peers: peers(declared, poolers, &share).into_iter().map(entry).collect(),
            settings: settings.iter().cloned().map(entry).collect(),
        },
    )?;
    let (hba, userlist) = (access(declared, poolers), userlist(declared)?);
    Ok(PoolerFiles { routes, settings, ini, hba, userlist, unit: wanted_unit(declared)? })
}

/// Refuses what is declared and the installed version has no key for.
fn supported(declared: &Declared<'_>, poolers: &Poolers) -> Result<(), Error> {
    let needs = |section, key, wish: &str| keys::require(declared.version, section, key, wish, declared.host);
    if (declared.version.major, declared.version.minor) < keys::OLDEST {
        let (major, minor) = keys::OLDEST;
        return Err(Error::refused(format!(
            "cannot write files for PgBouncer {} on host {}",
            declared.version, declared.host
        ))
        .detail(format!("The oldest version that pgherd knows is {major}.{minor}."))
        .hint("Install a newer PgBouncer there."));
    }
    if poolers.processes > 1 {
        // Without peers a cancel request that reaches another process is lost.
        needs(Section::Pgbouncer, "peer_id", &format!("processes: {}", poolers.processes))?;
    }
    for user in &poolers.users {
        if let Some(size) = user.size {
            needs(Section::User, "pool_size", &format!("users.{}.size: {size}", user.name))?;
        }
        if let Some(clients) = user.clients {
            let wish = format!("users.{}.clients: {clients}", user.name);
            needs(Section::User, "max_user_client_connections", &wish)?;
        }
    }
    Ok(())
}

/// Section [peers]: the other processes of the same host, which hand one another's cancel requests on.
fn peers(declared: &Declared<'_>, poolers: &Poolers, share: &Share) -> Vec<(String, String)> {
    if poolers.processes < 2 {
        return Vec::new();
    }
    let first = share.first_of_host(declared.process);
    let numbers = 1..=poolers.processes;
    numbers
        .map(|process| {
            let line = Line::new(Section::Peer, declared.version)
                .with(
                    "host",
                    quote(&declared.paths.of_process(declared.process, process).display().to_string()),
                )
                .with("port", poolers.port);
            ((first + process).to_string(), line.text())
        })
        .collect()
}

fn wanted_unit(declared: &Declared<'_>) -> Result<Option<String>, Error> {
    let Declared { cluster, host, process, os_user, program, paths, .. } = *declared;
    match cluster.postgres.service {
        Service::PgCtl | Service::Debian => Ok(None),
        Service::Systemd => unit::render_pooler(PoolerService {
            cluster: &cluster.name,
            host: &named(host, process),
            os_user,
            pgbouncer: program,
            ini: &paths.ini(),
            pidfile: &paths.pidfile(),
        })
        .map(Some),
    }
}

/// Which part of a size that is declared for a whole node falls to this PgBouncer and one of its databases.
#[derive(Clone, Copy)]
struct Share {
    parts: u32,
    index: u32,
    databases: u32,
}

impl Share {
    fn of(declared: &Declared<'_>, poolers: &Poolers) -> Result<Self, Error> {
        let index = poolers.hosts.iter().position(|host| host == declared.host).ok_or_else(|| {
            Error::failed(format!("host {} runs no pooler of {}", declared.host, declared.cluster.name))
        })?;
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let processes = poolers.processes.max(1);
        Ok(Self {
            parts: count(poolers.hosts.len()) * processes,
            index: count(index) * processes + declared.process.saturating_sub(1),
            databases: count(declared.cluster.databases.len()),
        })
    }

    /// Returns how many processes stand before the first one of this host.
    fn first_of_host(self, process: u32) -> u32 {
        (self.index + 1).saturating_sub(process)
    }

    fn of_database(self, index: usize) -> Self {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self { parts: self.parts * self.databases, index: self.index * self.databases + index, databases: 1 }
    }

    /// Divides without losing any: the first ones get one more where it does not come out even.
    fn take(&self, total: u32) -> u32 {
        total / self.parts + u32::from(self.index < total % self.parts)
    }
}

fn route(
    declared: &Declared<'_>,
    poolers: &Poolers,
    pool: &Pool,
    database: &str,
    share: &Share,
) -> Result<Route, Error> {
    let alias = pool.alias(database);
    check_name("database", &alias)?;
    let pool_size = share.take(pool.size);
    if pool_size == 0 {
        return Err(Error::usage(format!(
            "pool {} of {} has {} connections for {} PgBouncers and databases",
            pool.name, declared.cluster.name, pool.size, share.parts
        ))
        .hint("Raise its size: each database needs one connection through each pooler."));
    }
    let to = targets(pool, &alias, declared.layout);
    let (host, port) = match to.first() {
        Some(first) => {
            let hosts: Vec<&str> = to.iter().map(|target| target.host.as_str()).collect();
            (hosts.join(","), first.port)
        }
        None => (declared.paths.nowhere().display().to_string(), poolers.port),
    };
    Ok(Route {
        alias,
        database: database.to_owned(),
        to,
        host,
        port,
        pool_size,
        reserve: share.take(pool.reserve),
        mode: poolers.mode_of(pool),
    })
}

/// Chooses the nodes of a pool: the primary, or the standbys that stream and are near enough; of those that the pool names the first one,
/// else the one that the alias leads to already, else the first one of the file.
///
/// PgBouncer takes several hosts for an alias, in turn and without looking at their health, but only one port; of standbys with
/// different ports it gets those that share the first one's.
pub(super) fn targets(pool: &Pool, alias: &str, layout: &Layout) -> Vec<Target> {
    match pool.to {
        PoolTarget::Primary => vec![layout.primary.clone()],
        PoolTarget::Standbys => {
            let near = |standby: &&Standby| match (pool.max_lag, standby.behind) {
                (None, _) => true,
                (Some(limit), Some(behind)) => behind <= limit,
                (Some(_), None) => false,
            };
            let mut fit: Vec<&Standby> = layout
                .standbys
                .iter()
                .filter(|standby| standby.streams && serves(pool, &standby.target.node))
                .filter(near)
                .collect();
            let kept = layout.kept.get(alias);
            fit.sort_by_key(|standby| {
                let at = (&standby.target.host, standby.target.port);
                let wanted = pool.of.iter().position(|name| *name == standby.target.node);
                (wanted, kept.is_none_or(|(host, port)| (host, *port) != at))
            });
            let mut chosen: Vec<Target> = Vec::new();
            for standby in fit {
                // A pool that names its nodes has one at a time, the most wanted that is there.
                let fits = (pool.of.is_empty() || chosen.is_empty())
                    && chosen
                        .iter()
                        .all(|other| other.port == standby.target.port && other.host != standby.target.host);
                if fits {
                    chosen.push(standby.target.clone());
                }
            }
            if chosen.is_empty() && pool.fallback_to_primary {
                chosen.push(layout.primary.clone());
            }
            chosen
        }
    }
}

fn connection_string(declared: &Declared<'_>, poolers: &Poolers, route: &Route) -> String {
    // An alias without a mode of its own has the general one.
    let own_mode = (route.mode != poolers.mode).then(|| route.mode.word());
    Line::new(Section::Database, declared.version)
        .with("host", quote(&route.host))
        .with("port", route.port)
        .with("dbname", quote(&route.database))
        .with("pool_size", route.pool_size)
        .with("reserve_pool", route.reserve)
        .with("max_db_connections", route.max_connections())
        .with_some("pool_mode", own_mode)
        .text()
}

/// Section [users]: a role that has a limit on the server must not be sent there more often than that, and what the file says of it.
fn limits(declared: &Declared<'_>, poolers: &Poolers, share: &Share) -> Result<Vec<(String, String)>, Error> {
    let mut users = Vec::new();
    for role in clients(declared.cluster) {
        let stated: Option<&PoolUser> = poolers.users.iter().find(|user| user.name == role.name);
        let connections = match (role.connections, stated.and_then(|user| user.connections)) {
            (Some(of_server), Some(of_pooler)) => Some(of_server.min(of_pooler)),
            (one, other) => one.or(other),
        };
        let part = |total: Option<u32>| total.map(|total| share.take(total).max(1));
        let line = Line::new(Section::User, declared.version)
            .with_some("pool_mode", stated.and_then(|user| user.mode).map(PoolMode::word))
            .with_some("pool_size", part(stated.and_then(|user| user.size)))
            .with_some("max_user_connections", part(connections))
            .with_some("max_user_client_connections", part(stated.and_then(|user| user.clients)))
            .text();
        if !line.is_empty() {
            check_name("role", role.name)?;
            users.push((role.name.to_owned(), line));
        }
    }
    Ok(users)
}

fn settings(declared: &Declared<'_>, poolers: &Poolers) -> Vec<(String, String)> {
    let paths = declared.paths;
    let path = |path: &Path| path.display().to_string();
    let mut settings = vec![
        ("listen_addr", listen_addresses(declared.listen)),
        ("listen_port", poolers.port.to_string()),
        ("unix_socket_dir", path(paths.directory())),
        ("unix_socket_mode", "0700".to_owned()),
        ("logfile", path(&paths.log())),
        ("pidfile", path(&paths.pidfile())),
        // By SCRAM, and only those pairs of role and alias that are declared.
        ("auth_type", "hba".to_owned()),
        ("auth_hba_file", path(&paths.hba())),
        ("auth_file", path(&paths.userlist())),
        ("pool_mode", poolers.mode.word().to_owned()),
        ("max_client_conn", poolers.max_clients.to_string()),
        // The default of 15 s makes a one-second switch of the primary an outage of 15 s for new clients.
        ("server_login_retry", "1".to_owned()),
        // A host that swallows packets is given up in 5 s and not in 15 s, so that what RELOAD says next is tried soon.
        ("server_connect_timeout", "5".to_owned()),
        // A session is not kept for ever: what a long life leaves in a backend (memory, plans) goes within the hour.
        ("server_lifetime", "3600".to_owned()),
        ("server_idle_timeout", "600".to_owned()),
        // Who logs in while the pooler is paused waits as long as this.
        ("client_login_timeout", "60".to_owned()),
        // Longer than any planned pause: a client that has waited so long is told.
        ("query_wait_timeout", QUERY_WAIT_TIMEOUT.as_secs().to_string()),
        // A driver's log then says what its query waits for.
        ("query_wait_notify", "5".to_owned()),
        // A node that vanished without a word is noticed after about 20 s, not after the system's two hours.
        ("tcp_keepalive", "1".to_owned()),
        ("tcp_keepidle", "10".to_owned()),
        ("tcp_keepintvl", "3".to_owned()),
        ("tcp_keepcnt", "3".to_owned()),
        ("tcp_user_timeout", "20000".to_owned()),
        // With anything but `disable` each RELOAD closes every server connection (seen with 1.18: "database configuration changed"), and a
        // server without TLS has nothing to gain from it.
        (
            "server_tls_sslmode",
            match (declared.cluster.has_tls(), serves_tls(declared.cluster)) {
                (true, _) => "verify-full",
                (false, true) => "prefer",
                (false, false) => "disable",
            }
            .to_owned(),
        ),
        ("ignore_startup_parameters", "extra_float_digits".to_owned()),
        // A line for each client that comes and goes, in a log that nobody rotates.
        ("log_connections", "0".to_owned()),
        ("log_disconnections", "0".to_owned()),
    ];
    if declared.cluster.has_tls() {
        // Who must and who may is said line by line in the access file; one file holds certificate and key.
        settings.push(("client_tls_sslmode", "prefer".to_owned()));
        // All processes of a host show the same one.
        let first = PoolerPaths { directory: paths.of_process(declared.process, 1) };
        settings.push(("client_tls_cert_file", path(&first.certificate())));
        settings.push(("client_tls_key_file", path(&first.certificate())));
        settings.push(("server_tls_ca_file", path(&first.authorities())));
    }
    if poolers.auth == PoolerAuth::Query {
        settings.push(("auth_user", pooler_role(declared.host)));
        settings.push(("auth_query", QUERY.to_owned()));
        // One database is asked for all of them; before 1.19 each one is.
        if let Some(alias) = asked(declared.cluster, poolers) {
            settings.push(("auth_dbname", alias));
        }
    }
    if poolers.pools.iter().any(|pool| poolers.mode_of(pool) == PoolMode::Session)
        || poolers.users.iter().any(|user| user.mode == Some(PoolMode::Session))
    {
        // A session whose alias was led elsewhere ends with its transaction, and does not go on at a node that was demoted.
        settings.push(("server_fast_close", "1".to_owned()));
    }
    if poolers.processes > 1 {
        settings.push(("so_reuseport", "1".to_owned()));
        settings.push(("peer_id", peer_id(declared, poolers).to_string()));
    }
    settings.push(("max_prepared_statements", "200".to_owned()));
    settings
        .into_iter()
        .filter(|(name, _)| keys::takes(declared.version, Section::Pgbouncer, name))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The alias through which verifiers are asked for: one that leads to the primary, where a new one is at once.
fn asked(cluster: &Cluster, poolers: &Poolers) -> Option<String> {
    let pool = poolers.pools.iter().find(|pool| pool.to == PoolTarget::Primary).or(poolers.pools.first())?;
    Some(pool.alias(cluster.databases.first()?))
}

/// The number of a process among those of all hosts, from 1: a cancel key names it.
fn peer_id(declared: &Declared<'_>, poolers: &Poolers) -> u32 {
    let host = poolers.hosts.iter().position(|host| host == declared.host).unwrap_or_default();
    u32::try_from(host).unwrap_or_default() * poolers.processes + declared.process
}

fn serves_tls(cluster: &Cluster) -> bool {
    let value = cluster.postgres.settings.get("ssl").map(|value| value.to_ascii_lowercase());
    value.is_some_and(|value| ["on", "true", "yes", "1"].contains(&value.as_str()))
}

/// Its own machine reaches it at the loopback address, everybody else at the host's.
fn listen_addresses(listen: IpAddr) -> String {
    if listen == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        listen.to_string()
    } else {
        format!("{},{listen}", Ipv4Addr::LOCALHOST)
    }
}

/// Lets each role through its pools and no other; the console needs no line.
fn access(declared: &Declared<'_>, poolers: &Poolers) -> String {
    let everywhere: &[(&str, &str)] = match (declared.cluster.has_tls(), declared.listen.is_ipv4()) {
        (false, true) => &[("host", "0.0.0.0/0")],
        (false, false) => &[("host", "0.0.0.0/0"), ("host", "::/0")],
        (true, true) => &[("host", "127.0.0.1/32"), ("hostssl", "0.0.0.0/0")],
        (true, false) => &[("host", "127.0.0.1/32"), ("hostssl", "0.0.0.0/0"), ("hostssl", "::/0")],
    };
    let doubled = |name: &str| name.replace('"', "\"\"");
    let mut lines = String::new();
    for role in clients(declared.cluster) {
        for pool in poolers.pools.iter().filter(|pool| role.pools.contains(&pool.name.as_str())) {
            for database in &declared.cluster.databases {
                let (alias, role) = (doubled(&pool.alias(database)), doubled(role.name));
                for (kind, from) in everywhere {
                    lines.push_str(&format!("{kind} \"{alias}\" \"{role}\" {from} scram-sha-256\n"));
                }
            }
        }
    }
    lines
}

/// A role that may come through PgBouncer.
struct Client<'a> {
    name: &'a str,
    pools: Vec<&'a str>,
    connections: Option<u32>,
}

/// Server connections of the write proof: it needs one an alias, and never more.
const PROBE_CONNECTIONS: u32 = 4;

/// The declared roles that have pools and a password, and the login of the write proof, which has every pool.
fn clients(cluster: &Cluster) -> impl Iterator<Item = Client<'_>> {
    let declared = cluster.roles.iter().filter(|role| !role.pools.is_empty() && role.password.is_some());
    let pools = cluster.poolers.iter().flat_map(|poolers| &poolers.pools);
    let probe = Client {
        name: PROBE_ROLE,
        pools: pools.map(|pool| pool.name.as_str()).collect(),
        connections: Some(PROBE_CONNECTIONS),
    };
    declared
        .map(|role| Client {
            name: &role.name,
            pools: role.pools.iter().map(String::as_str).collect(),
            connections: role.connections,
        })
        .chain([probe])
}

fn userlist(declared: &Declared<'_>) -> Result<Secret, Error> {
    let mut lines = String::new();
    let mut expected = Vec::new();
    let poolers = declared.cluster.poolers.as_ref();
    let asks = poolers.is_some_and(|poolers| poolers.auth == PoolerAuth::Query);
    if asks {
        let password = declared.password.ok_or_else(|| {
            Error::failed(format!(
                "the pooler of {} on {} has no password",
                declared.cluster.name, declared.host
            ))
        })?;
        // A verifier would not do: it never sees a client log in as this role.
        let own = pooler_role(declared.host);
        lines.push_str(&line(&own, password));
        expected.push((own, password.clone()));
    }
    // A role that stands in [users] is known without a password, and PgBouncer asks only for those that it does not know (seen with 1.18).
    let limited = |client: &Client<'_>| {
        let stated = poolers.is_some_and(|poolers| poolers.users.iter().any(|user| user.name == client.name));
        client.connections.is_some() || stated
    };
    for role in clients(declared.cluster).filter(|client| !asks || limited(client)).map(|client| client.name)
    {
        let verifier = declared.verifiers.get(role).ok_or_else(|| {
            Error::failed(format!(
                "the primary of {} has no SCRAM verifier for role {role}",
                declared.cluster.name
            ))
            .detail("PgBouncer can log in for a role only with the verifier that the server stores.")
        })?;
        let verifier = verifier.text();
        lines.push_str(&line(role, &verifier));
        expected.push((role.to_owned(), verifier));
    }
    // A line that PgBouncer does not understand would take the passwords of all roles away, and it would report success.
    if read_userlist(&lines).as_deref() != Some(expected.as_slice()) {
        return Err(Error::usage(format!(
            "the roles of {} cannot be written for PgBouncer",
            declared.cluster.name
        ))
        .detail("A name has a line break, or more than 63 bytes."));
    }
    Ok(Secret::new(lines))
}

/// Returns the names of the roles in a userlist.
pub(super) fn userlist_names(files: &PoolerFiles) -> Vec<String> {
    let lines = read_userlist(files.userlist.reveal()).unwrap_or_default();
    lines.into_iter().map(|(name, _)| name).collect()
}

/// Returns what a userlist has for a role.
pub(super) fn password_of(userlist: &str, role: &str) -> Option<Secret> {
    read_userlist(userlist)?.into_iter().find(|(name, _)| name == role).map(|(_, secret)| secret)
}

/// Returns a userlist with another verifier for a role; `None` if it cannot be read, or has no such role.
pub(super) fn with_verifier(userlist: &str, role: &str, verifier: &Verifier) -> Option<Secret> {
    let mut lines = read_userlist(userlist)?;
    lines.iter_mut().find(|(name, _)| name == role)?.1 = verifier.text();
    Some(Secret::new(lines.iter().map(|(name, secret)| line(name, secret)).collect::<String>()))
}

fn line(role: &str, verifier: &Secret) -> String {
    format!("\"{}\" \"{}\"\n", role.replace('"', "\"\""), verifier.reveal())
}

/// Reads a userlist as PgBouncer does, but gives up where it would stop half way.
///
/// Mirrors `load_auth_file` in `loader.c`.
fn read_userlist(text: &str) -> Option<Vec<(String, Secret)>> {
    text.lines()
        .map(|line| {
            let (name, rest) = quoted(line)?;
            let (secret, rest) = quoted(rest.strip_prefix(' ')?)?;
            (rest.is_empty() && name.len() < 64).then(|| (name, Secret::new(secret)))
        })
        .collect()
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        value.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

/// Checks a name that stands left of an equals sign; PgBouncer's parser has no quotes there (`cfparser.c` of libusual).
fn check_name(kind: &str, name: &str) -> Result<(), Error> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if plain && name != "pgbouncer" {
        return Ok(());
    }
    Err(Error::usage(format!("cannot put the {kind} {name:?} behind PgBouncer"))
        .detail("Its configuration takes names of letters, digits, \"_\", \".\" and \"-\" only, and \"pgbouncer\" is its console.")
        .hint(format!("Rename the {kind}, or connect to it without the pooler.")))
}

/// Quotes a value of a connection string where it needs it.
fn quote(value: &str) -> String {
    let plain = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./:,".contains(&byte));
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::topology::model::{Postgres, SecretReference};
    use crate::topology::model::{Role, Tls};

    pub(in crate::ops::pooler) const V1_18: PgBouncerVersion =
        PgBouncerVersion { major: 1, minor: 18, patch: 0 };

    pub(in crate::ops::pooler) fn cluster() -> Cluster {
        let pool = |name: &str, to, size, reserve| Pool {
            name: name.to_owned(),
            to,
            size,
            reserve,
            max_lag: None,
            fallback_to_primary: false,
            mode: None,
            of: Vec::new(),
        };
        let role = |name: &str, connections| Role {
            name: name.to_owned(),
            password: Some(SecretReference::Env("PW".to_owned())),
            pools: vec!["rw".to_owned()],
            connections,
        };
        Cluster {
            name: "inventory".to_owned(),
            postgres: Postgres {
                version: 15,
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
            schemas: Vec::new(),
            roles: vec![role("inventory_app", None), role("bi", Some(4))],
            poolers: Some(Poolers {
                hosts: vec!["local".to_owned()],
                port: 6441,
                mode: PoolMode::Transaction,
                max_clients: 1000,
                processes: 1,
                auth: PoolerAuth::Userlist,
                users: Vec::new(),
                pools: vec![pool("rw", PoolTarget::Primary, 16, 4), pool("ro", PoolTarget::Standbys, 20, 0)],
            }),
            objectives: BTreeMap::new(),
            backups: None,
            drills: None,
            hosts: Vec::new(),
        }
    }

    fn target(node: &str, host: &str, port: u16) -> Target {
        Target { node: node.to_owned(), host: host.to_owned(), port }
    }

    fn standby(node: &str, host: &str, port: u16) -> Standby {
        Standby { target: target(node, host, port), streams: true, behind: Some(Duration::ZERO) }
    }

    pub(in crate::ops::pooler) fn layout() -> Layout {
        Layout::new(
            target("a", "127.0.0.1", 5441),
            vec![standby("b", "127.0.0.1", 5442), standby("c", "127.0.0.1", 5443)],
        )
    }

    fn verifier(password: &str) -> Verifier {
        Verifier::derive(&Secret::new(password), b"0123456789abcdef", 4096)
    }

    pub(in crate::ops::pooler) fn rendered(cluster: &Cluster, layout: &Layout) -> Result<PoolerFiles, Error> {
        rendered_for(cluster, layout, "local", V1_18)
    }

    fn rendered_for(
        cluster: &Cluster,
        layout: &Layout,
        host: &str,
        version: PgBouncerVersion,
    ) -> Result<PoolerFiles, Error> {
        let names = cluster.roles.iter().map(|role| role.name.as_str()).chain([PROBE_ROLE]);
        let verifiers = names.map(|name| (name.to_owned(), verifier(name))).collect();
        let paths = PoolerPaths::new(PathBuf::from("/var/lib/pgherd/poolers/inventory")).unwrap();
        let listen = Ipv4Addr::LOCALHOST.into();
        render(&Declared {
            cluster,
            host,
            process: 1,
            os_user: "postgres",
            listen,
            layout,
            paths: &paths,
            program: Path::new("/usr/sbin/pgbouncer"),
            version,
            verifiers: &verifiers,
            password: Some(&Secret::new("of-the-pooler")),
        })
    }

    fn pools(cluster: &mut Cluster) -> &mut Vec<Pool> {
        &mut cluster.poolers.as_mut().unwrap().pools
    }

    fn leads_to(files: &PoolerFiles, alias: &str) -> Vec<String> {
        let route = files.routes.iter().find(|route| route.alias == alias).unwrap();
        route.to.iter().map(|target| target.node.clone()).collect()
    }

    #[test]
    fn the_file_of_1_18_is_what_it_was() {
        insta::assert_snapshot!(rendered(&cluster(), &layout()).unwrap().ini);
    }

    /// Everything that a version has a key for.
    #[test]
    fn the_files_of_each_version_are_what_they_were() {
        for minor in 18..=25 {
            let version = PgBouncerVersion { major: 1, minor, patch: 0 };
            let mut cluster = cluster();
            cluster.postgres.tls = Some(Tls::Own { herd: "shop".to_owned() });
            let poolers = cluster.poolers.as_mut().unwrap();
            poolers.auth = PoolerAuth::Query;
            poolers.processes = if minor >= 19 { 2 } else { 1 };
            poolers.users = vec![PoolUser {
                name: "inventory_app".to_owned(),
                mode: None,
                connections: Some(12),
                size: (minor >= 23).then_some(6),
                clients: (minor >= 24).then_some(300),
            }];
            poolers.pools[1].of = vec!["c".to_owned(), "b".to_owned()];
            poolers.pools[1].mode = Some(PoolMode::Session);
            let files = rendered_for(&cluster, &layout(), "local", version).unwrap();
            insta::assert_snapshot!(format!("pgbouncer_1_{minor}"), files.ini);
        }
    }

    #[test]
    fn a_newer_pgbouncer_gets_its_newer_keys() {
        let old = rendered(&cluster(), &layout()).unwrap().ini;
        let new = PgBouncerVersion { major: 1, minor: 25, patch: 2 };
        let new = rendered_for(&cluster(), &layout(), "local", new).unwrap().ini;
        let added: Vec<&str> = new.lines().filter(|line| !old.contains(line)).collect();
        assert_eq!(added, ["query_wait_notify = 5", "max_prepared_statements = 200"]);
    }

    #[test]
    fn a_pool_of_standbys_takes_those_that_stream_and_are_near() {
        let mut cluster = cluster();
        let mut layout = layout();
        assert_eq!(leads_to(&rendered(&cluster, &layout).unwrap(), "inventory_ro"), ["b"]);
        layout.standbys[0].streams = false;
        assert_eq!(leads_to(&rendered(&cluster, &layout).unwrap(), "inventory_ro"), ["c"]);
        pools(&mut cluster)[1].max_lag = Some(Duration::from_secs(30));
        layout.standbys[1].behind = Some(Duration::from_secs(31));
        assert!(leads_to(&rendered(&cluster, &layout).unwrap(), "inventory_ro").is_empty());
        layout.standbys[1].behind = None;
        assert!(leads_to(&rendered(&cluster, &layout).unwrap(), "inventory_ro").is_empty());
        pools(&mut cluster)[1].fallback_to_primary = true;
        assert_eq!(leads_to(&rendered(&cluster, &layout).unwrap(), "inventory_ro"), ["a"]);
    }

    #[test]
    fn standbys_on_one_port_share_an_alias() {
        let mut layout = layout();
        layout.standbys = vec![
            standby("b", "10.0.0.2", 5441),
            standby("c", "10.0.0.3", 5442),
            standby("d", "10.0.0.4", 5441),
        ];
        let files = rendered(&cluster(), &layout).unwrap();
        assert_eq!(leads_to(&files, "inventory_ro"), ["b", "d"]);
        assert!(files.ini.contains("inventory_ro = host=10.0.0.2,10.0.0.4 port=5441 dbname=inventory "));
    }

    #[test]
    fn an_alias_without_a_node_stays_and_leads_nowhere() {
        let mut layout = layout();
        layout.standbys.clear();
        let files = rendered(&cluster(), &layout).unwrap();
        assert!(
            files.ini.contains("inventory_ro = host=/var/lib/pgherd/poolers/inventory/nowhere port=6441 ")
        );
    }

    #[test]
    fn sizes_are_divided_among_poolers_and_databases_without_loss() {
        let mut cluster = cluster();
        cluster.databases.push("stock".to_owned());
        let hosts = ["db1", "db2", "db3"];
        cluster.poolers.as_mut().unwrap().hosts = hosts.map(str::to_owned).into();
        let all: Vec<PoolerFiles> =
            hosts.iter().map(|host| rendered_for(&cluster, &layout(), host, V1_18).unwrap()).collect();
        let routes =
            || all.iter().flat_map(|files| &files.routes).filter(|route| !route.alias.ends_with("_ro"));
        assert_eq!(routes().map(|route| route.pool_size).sum::<u32>(), 16);
        assert_eq!(routes().map(Route::max_connections).sum::<u32>(), 20);
        pools(&mut cluster)[0].size = 5;
        let error = rendered_for(&cluster, &layout(), "db3", V1_18).unwrap_err();
        assert_eq!(error.what(), "pool rw of inventory has 5 connections for 6 PgBouncers and databases");
    }

    #[test]
    fn a_userlist_reads_back_whatever_the_names_are() {
        let mut cluster = cluster();
        cluster.roles[0].name = "we\"ird; na'me".to_owned();
        let files = rendered(&cluster, &layout()).unwrap();
        let read = read_userlist(files.userlist.reveal()).unwrap();
        assert_eq!(read[0], ("we\"ird; na'me".to_owned(), verifier("we\"ird; na'me").text()));
        assert_eq!(read.len(), 3);
        cluster.roles[0].name = "two\nlines".to_owned();
        assert!(rendered(&cluster, &layout()).is_err());
    }

    #[test]
    fn one_verifier_is_replaced_and_no_other_line() {
        let before = "\"a\" \"x\"\n\"say \"\"b\"\"\" \"y\"\n";
        let verifier = Verifier::derive(&Secret::new("next"), b"0123456789abcdef", 4096);
        let after = with_verifier(before, "say \"b\"", &verifier).unwrap();
        let expected = format!("\"a\" \"x\"\n\"say \"\"b\"\"\" \"{}\"\n", verifier.text().reveal());
        assert_eq!(after.reveal(), expected);
        assert_eq!(with_verifier(before, "c", &verifier), None);
        assert_eq!(with_verifier("\"a\" x\n", "a", &verifier), None);
    }

    #[test]
    fn a_userlist_that_pgbouncer_would_stop_in_is_refused() {
        for text in [
            "\"app SCRAM",
            "app \"x\"",
            "\"app\" \"x\" \"y\"",
            "\"app\"",
            "\"app\"  \"x\"",
            "\"a\" \"x\"\n\n",
        ] {
            assert_eq!(read_userlist(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_roles_that_may_come_through_are_listed() {
        let mut cluster = cluster();
        cluster.roles[1].pools.clear();
        let files = rendered(&cluster, &layout()).unwrap();
        let names: Vec<String> =
            read_userlist(files.userlist.reveal()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["inventory_app", PROBE_ROLE]);
        assert!(!files.ini.contains("bi ="), "{}", files.ini);
    }

    #[test]
    fn a_role_may_use_its_own_pools_and_no_other() {
        let mut cluster = cluster();
        cluster.roles[0].pools.push("ro".to_owned());
        cluster.roles[1].name = "b\"i".to_owned();
        let expected = "host \"inventory\" \"inventory_app\" 0.0.0.0/0 scram-sha-256
host \"inventory_ro\" \"inventory_app\" 0.0.0.0/0 scram-sha-256
host \"inventory\" \"b\"\"i\" 0.0.0.0/0 scram-sha-256
host \"inventory\" \"pgherd_probe\" 0.0.0.0/0 scram-sha-256
host \"inventory_ro\" \"pgherd_probe\" 0.0.0.0/0 scram-sha-256
";
        cluster.roles[1].connections = None;
        assert_eq!(rendered(&cluster, &layout()).unwrap().hba, expected);
    }

    #[test]
    fn with_tls_whoever_comes_from_elsewhere_must_speak_it_and_servers_are_verified() {
        let mut cluster = cluster();
        let plain = rendered(&cluster, &layout()).unwrap();
        cluster.postgres.tls = Some(Tls::Own { herd: "shop".to_owned() });
        let files = rendered(&cluster, &layout()).unwrap();
        let added: Vec<&str> = files.ini.lines().filter(|line| !plain.ini.contains(line)).collect();
        assert_eq!(
            added,
            [
                "server_tls_sslmode = verify-full",
                "client_tls_sslmode = prefer",
                "client_tls_cert_file = /var/lib/pgherd/poolers/inventory/server.pem",
                "client_tls_key_file = /var/lib/pgherd/poolers/inventory/server.pem",
                "server_tls_ca_file = /var/lib/pgherd/poolers/inventory/ca.pem",
            ]
        );
        let lines: Vec<&str> = files.hba.lines().take(2).collect();
        assert_eq!(
            lines,
            [
                "host \"inventory\" \"inventory_app\" 127.0.0.1/32 scram-sha-256",
                "hostssl \"inventory\" \"inventory_app\" 0.0.0.0/0 scram-sha-256",
            ]
        );
    }

    #[test]
    fn a_role_without_its_verifier_is_an_error() {
        let cluster = cluster();
        let paths = PoolerPaths::new(PathBuf::from("/p")).unwrap();
        let error = render(&Declared {
            os_user: "postgres",
            program: Path::new("/usr/sbin/pgbouncer"),
            cluster: &cluster,
            host: "local",
            process: 1,
            listen: Ipv4Addr::LOCALHOST.into(),
            layout: &layout(),
            paths: &paths,
            version: V1_18,
            verifiers: &BTreeMap::new(),
            password: None,
        })
        .unwrap_err();
        assert_eq!(error.what(), "the primary of inventory has no SCRAM verifier for role inventory_app");
    }

    #[test]
    fn a_database_that_pgbouncer_cannot_name_is_refused() {
        let mut cluster = cluster();
        for name in ["my db", "a\"b", "pgbouncer", "größe", "*", "a;b"] {
            cluster.databases = vec![name.to_owned()];
            let error = rendered(&cluster, &layout()).unwrap_err();
            assert!(error.what().starts_with("cannot put the database"), "{error}");
        }
        cluster.databases = vec!["my-db.v2_x".to_owned()];
        assert!(rendered(&cluster, &layout()).is_ok());
    }

    #[test]
    fn a_directory_whose_socket_would_be_cut_is_refused() {
        let long = format!("/{}", "x".repeat(92));
        assert!(PoolerPaths::new(PathBuf::from(&long)).is_err());
        assert!(PoolerPaths::new(PathBuf::from(&long[..92])).is_ok());
        assert!(PoolerPaths::new(PathBuf::from("relative")).is_err());
        assert!(PoolerPaths::new(PathBuf::from("/with,comma")).is_err());
    }

    #[test]
    fn no_debug_output_shows_a_verifier() {
        let shown = format!("{:?}", rendered(&cluster(), &layout()).unwrap());
        assert!(!shown.contains("SCRAM-SHA-256$"));
    }
}
