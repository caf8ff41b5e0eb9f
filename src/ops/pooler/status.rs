//! The poolers of a cluster as they are: what they hold, how long clients wait, whether each alias leads where it says, and how each differs
//! from what is declared.
//!
//! Reads only. What is not known is unknown, with its reason.

use serde::Serialize;

use super::routes::{PoolerSeen, RouteTruth, Truth, routes};
use super::{ConsoleSeen, Drift, Place, PoolerObserved, PoolerProcess, drift, expiry};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors};
use crate::ops::roles::{self, Lead};
use crate::topology::budget::{self, Budget, Known, Limits};
use crate::topology::model::Cluster;
use crate::units::human_duration;

/// The poolers of one cluster. `docs/formats/pooler.md` describes it as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolersStatus {
    pub cluster: String,
    /// The node that accepts writes, if exactly one does.
    pub primary: Option<String>,
    pub processes: Vec<ProcessStatus>,
    pub routes: Vec<RouteTruth>,
    pub budget: Budget,
    /// What is wrong, most urgent first.
    pub problems: Vec<String>,
}

impl PoolersStatus {
    /// Tells whether something could not be known.
    pub fn is_partial(&self) -> bool {
        self.processes.iter().any(|process| process.state == ProcessState::Unknown)
            || self.routes.iter().any(|route| route.truth == Truth::Unknown)
    }
}

/// One PgBouncer process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProcessStatus {
    pub host: String,
    pub process: u32,
    pub port: u16,
    pub state: ProcessState,
    pub why: Option<String>,
    pub pid: Option<u32>,
    pub version: Option<String>,
    /// Clients that are connected, and those of them that wait for a server connection.
    pub clients: u32,
    pub waiting: u32,
    pub max_clients: u32,
    /// How long the client that waits longest has waited.
    pub max_wait_seconds: f64,
    pub pools: Vec<PoolStatus>,
    /// How it differs from what is declared; `None` where that could not be told.
    pub drift: Option<Vec<DriftStatus>>,
    /// When the clients that are held back go on by themselves, at the latest; in seconds from now.
    pub resumes_in_seconds: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    Up,
    Stopped,
    Missing,
    Unknown,
}

/// One pool: an alias and a user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolStatus {
    pub alias: String,
    pub user: String,
    pub mode: String,
    pub clients_active: u32,
    pub clients_waiting: u32,
    pub max_wait_seconds: f64,
    pub servers_active: u32,
    pub servers_idle: u32,
    pub servers_used: u32,
    pub servers_tested: u32,
    pub servers_login: u32,
    pub pool_size: u32,
    pub paused: bool,
    pub disabled: bool,
}

/// One difference to what is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriftStatus {
    pub what: String,
    /// Only a restart of the process takes the declared value over.
    pub restart: bool,
    /// The lines of a file, as a diff shows them; empty for what runs.
    pub diff: Vec<String>,
}

/// Looks at the poolers of a cluster.
///
/// # Errors
/// None: what does not answer is in the report.
pub async fn status(doors: &Doors, cluster: &Cluster) -> PoolersStatus {
    let observed = observe::observe(doors, cluster, Depth::Servers).await;
    let seen = look(doors, cluster).await;
    let primary = match roles::lead(&observed) {
        Lead::Primary(name) => Some(name),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
    };
    let mut processes = Vec::new();
    for one in &seen {
        let found = process_status(cluster, one);
        let drift = drift_of(doors, cluster, &observed, primary.as_deref(), one).await;
        let resumes_in_seconds = held_for(doors, cluster, one).await;
        processes.push(ProcessStatus { drift, resumes_in_seconds, ..found });
    }
    let routes = routes(cluster, &observed, &seen);
    let budget = budget_of(cluster, &observed, primary.as_deref());
    let problems = problems(&processes, &routes, &budget);
    PoolersStatus { cluster: cluster.name.clone(), primary, processes, routes, budget, problems }
}

/// Looks at every process of every pooler host, side by side.
pub async fn look(doors: &Doors, cluster: &Cluster) -> Vec<PoolerSeen> {
    let one = async |host: &String, process: u32| {
        let look = async {
            let place = Place::find(doors, cluster, host, process).await.map_err(|error| told(&error))?;
            place.door().observe().await.map_err(|error| told(&error))
        };
        let limit = doors.at_most(observe::PATIENCE * 3);
        let observed = tokio::time::timeout(limit, look)
            .await
            .unwrap_or_else(|_| Err(format!("host {host} did not answer within {}", human_duration(limit))));
        PoolerSeen { host: host.clone(), process, observed }
    };
    let processes = super::processes(cluster);
    let all = cluster.pooler_hosts().flat_map(|host| (1..=processes).map(move |process| (host, process)));
    futures_util::future::join_all(all.map(|(host, process)| one(host, process))).await
}

fn told(error: &crate::error::Error) -> String {
    match error.detail_text() {
        Some(detail) => format!("{}: {}", error.what(), detail.trim_end_matches('.')),
        None => error.what().to_owned(),
    }
}

/// Adds up the connections of a cluster with what its servers have in effect.
pub fn budget_of(cluster: &Cluster, observed: &ClusterObserved, primary: Option<&str>) -> Budget {
    let limits = observed.nodes.iter().filter_map(|node| {
        let running = node.running()?;
        let setting = |name: &str| {
            let seen = running.settings.get(name).map(|row| row.setting.as_str());
            // What is not looked for is what the file declares.
            seen.or_else(|| cluster.postgres.settings.get(name).map(String::as_str))
        };
        Some((node.node.clone(), Limits::read(setting)))
    });
    budget::budget(cluster, &Known { primary, limits: limits.collect() })
}

fn process_status(cluster: &Cluster, seen: &PoolerSeen) -> ProcessStatus {
    let declared = cluster.poolers.as_ref();
    let mut status = ProcessStatus {
        host: seen.host.clone(),
        process: seen.process,
        port: declared.map_or(0, |poolers| poolers.port),
        state: ProcessState::Unknown,
        why: None,
        pid: None,
        version: None,
        clients: 0,
        waiting: 0,
        max_clients: declared.map_or(0, |poolers| poolers.max_clients),
        max_wait_seconds: 0.0,
        pools: Vec::new(),
        drift: None,
        resumes_in_seconds: None,
    };
    let observed = match &seen.observed {
        Ok(observed) => observed,
        Err(why) => {
            status.why = Some(why.clone());
            return status;
        }
    };
    (status.state, status.why) = state(observed);
    if let PoolerProcess::Running { pid } = observed.process {
        status.pid = Some(pid);
    }
    let ConsoleSeen::Answered(console) = &observed.console else { return status };
    status.version = Some(console.version.to_string());
    for row in &console.pools {
        let database = console.databases.iter().find(|database| database.alias == row.alias);
        let pool = PoolStatus {
            alias: row.alias.clone(),
            user: row.user.clone(),
            mode: row.mode.clone(),
            clients_active: row.clients_active,
            clients_waiting: row.clients_waiting,
            max_wait_seconds: row.longest_wait.as_secs_f64(),
            servers_active: row.servers_active,
            servers_idle: row.servers_idle,
            servers_used: row.servers_used,
            servers_tested: row.servers_tested,
            servers_login: row.servers_login,
            pool_size: database.map_or(0, |database| database.pool_size),
            paused: database.is_some_and(|database| database.paused),
            disabled: database.is_some_and(|database| database.disabled),
        };
        status.clients += pool.clients_active + pool.clients_waiting;
        status.waiting += pool.clients_waiting;
        status.max_wait_seconds = status.max_wait_seconds.max(pool.max_wait_seconds);
        status.pools.push(pool);
    }
    status
}

/// Returns for how long clients are held back at most, if they are.
async fn held_for(doors: &Doors, cluster: &Cluster, seen: &PoolerSeen) -> Option<u64> {
    seen.observed.as_ref().ok()?;
    let place = Place::find(doors, cluster, &seen.host, 1).await.ok()?;
    let hold = expiry::held(&place).await.ok()??;
    Some(u64::try_from(hold.until.duration_since(jiff::Timestamp::now()).as_secs()).unwrap_or(0))
}

fn state(observed: &PoolerObserved) -> (ProcessState, Option<String>) {
    match (&observed.process, &observed.ini, &observed.console) {
        (PoolerProcess::Running { .. }, _, ConsoleSeen::Answered(_)) => (ProcessState::Up, None),
        (PoolerProcess::Running { .. }, _, ConsoleSeen::Unknown { why })
        | (PoolerProcess::Unknown { why }, _, _) => (ProcessState::Unknown, Some(why.clone())),
        (PoolerProcess::Stopped, None, _) => (ProcessState::Missing, None),
        (PoolerProcess::Stopped, Some(_), _) => (ProcessState::Stopped, None),
    }
}

/// Compares a process with what is declared; `None` while nobody can be named primary, or it cannot be asked.
async fn drift_of(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    primary: Option<&str>,
    seen: &PoolerSeen,
) -> Option<Vec<DriftStatus>> {
    let pooler = seen.observed.as_ref().ok()?;
    let primary = cluster.node(primary?)?;
    let place = Place::find(doors, cluster, &seen.host, seen.process).await.ok()?;
    let files = place.files(primary, observed, pooler).await.ok()?;
    let lines = |file: &str| match file {
        "pgbouncer.ini" => super::drift::diff(pooler.ini.as_deref().unwrap_or_default(), &files.ini),
        _ => super::drift::diff(pooler.hba.as_deref().unwrap_or_default(), &files.hba),
    };
    let mut shown: Vec<String> = Vec::new();
    let login = place.login_drift(primary).await.ok()?;
    let found = drift(&files, pooler).into_iter().chain(login).map(|one| {
        let file = match &one {
            Drift::Entry { file, .. } | Drift::Wording { file } => Some(file.clone()),
            Drift::Stopped
            | Drift::Unknown { .. }
            | Drift::Unit { .. }
            | Drift::Userlist
            | Drift::Certificate { .. }
            | Drift::Login { .. }
            | Drift::Route { .. }
            | Drift::Setting { .. } => None,
        };
        // The diff of a file stands with its first difference.
        let first = file.filter(|file| !shown.contains(file));
        let diff = first.as_deref().map(lines).unwrap_or_default();
        shown.extend(first);
        DriftStatus {
            what: one.to_string(),
            restart: matches!(one, Drift::Setting { restart: true, .. }),
            diff,
        }
    });
    Some(found.collect())
}

fn problems(processes: &[ProcessStatus], routes: &[RouteTruth], budget: &Budget) -> Vec<String> {
    let mut found = Vec::new();
    let named = |host: &str, process: u32| {
        let several = processes.iter().any(|other| other.process > 1);
        if several { format!("{host}, process {process}") } else { host.to_owned() }
    };
    for process in processes {
        let name = named(&process.host, process.process);
        let why = process.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        match process.state {
            ProcessState::Up => {}
            ProcessState::Stopped => found.push(format!("the pooler on {name} is stopped")),
            ProcessState::Missing => found.push(format!("the pooler on {name} is not there")),
            ProcessState::Unknown => found.push(format!("the pooler on {name} is unknown{why}")),
        }
    }
    for route in routes.iter().filter(|route| route.truth != Truth::True) {
        let runs = processes.iter().any(|process| {
            process.host == route.host
                && process.process == route.process
                && process.state == ProcessState::Up
        });
        if runs {
            let word = if route.truth == Truth::False { "is not true" } else { "may not be true" };
            let why = route.why.as_deref().unwrap_or("unknown");
            found.push(format!(
                "alias {} on {} {word}: {why}",
                route.alias,
                named(&route.host, route.process)
            ));
        }
    }
    for process in processes {
        let name = named(&process.host, process.process);
        let paused: Vec<&str> =
            process.pools.iter().filter(|pool| pool.paused).map(|pool| pool.alias.as_str()).collect();
        let held = !paused.is_empty() || process.resumes_in_seconds.is_some();
        if held {
            let until = process.resumes_in_seconds.map(|seconds| format!("; they go on in {seconds} s"));
            let until = until.unwrap_or_default();
            found.push(format!("clients of the pooler on {name} are held back (PAUSE){until}"));
        }
        if process.waiting > 0 && !held {
            found.push(format!(
                "{} clients of the pooler on {name} wait for a server connection, the longest for {:.1} s",
                process.waiting, process.max_wait_seconds
            ));
        }
        let drift = process.drift.as_deref().unwrap_or_default();
        if !drift.is_empty() && process.state == ProcessState::Up {
            let restart = if drift.iter().any(|one| one.restart) { ", and needs a restart" } else { "" };
            found.push(format!(
                "the pooler on {name} differs from what is declared in {} point{}{restart}",
                drift.len(),
                if drift.len() == 1 { "" } else { "s" }
            ));
        }
    }
    for (layout, node) in budget.over() {
        let cap = node.stated.map_or(node.usable, |stated| stated.min(node.usable));
        found.push(format!(
            "the pools may open {} connections to {} when {}, which has {cap} for them",
            node.demand,
            node.node,
            if layout.today { "all is as today".to_owned() } else { layout.name.clone() }
        ));
    }
    found
}
