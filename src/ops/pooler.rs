//! PgBouncer: one process a cluster on each pooler host, run as the os-user.
//!
//! Observes it, writes its files, starts, reloads and stops it, and believes none of its answers: before 1.25 RELOAD reports success
//! for a file that it could not read, and before it listens on a port PgBouncer reports success for a port that it could not
//! get. Decides nothing about roles: where a pool leads is handed in, and so is whether there should be a unit of systemd. One that is there
//! starts and stops it.

mod console;
mod drift;
pub mod expiry;
mod files;
mod habits;
mod keys;
mod place;
mod process;
mod routes;
pub mod status;
mod trial;
pub mod turn;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

pub use console::{Console, ConsoleError, DatabaseRow, PoolRow, ServerRow, SettingRow};
pub use drift::{Drift, drift, must_restart};
pub use files::{
    Declared, Layout, PoolerFiles, PoolerPaths, QUERY_WAIT_TIMEOUT, Route, Standby, Target, render,
};
pub use habits::{Habit, HabitKind};
pub use place::{Place, layout, observe_poolers, processes, render_offline, streams};
pub use process::Process;
pub use routes::{PoolerSeen, RouteTruth, Truth, routes};

use crate::error::Error;
use crate::host::programs::Programs;
use crate::host::sockets;
use crate::host::{Command, Host, HostError, RunAs};
use crate::ops::service::{self, Manager, UnitSeen};
use crate::pg::ident::quote_identifier;
use crate::pg::scram::Verifier;
use crate::topology::model::Service;
use crate::topology::unit::Unit;
use crate::units::human_duration;

/// How long a started PgBouncer may take until its console answers.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a PgBouncer that was told to stop at once may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long the console may take to say that it is paused already.
const CONFIRM: Duration = Duration::from_secs(5);
/// What PgBouncer answers to a PAUSE or a RESUME that changes nothing; it gives no other sign (08P01 is its state for every error).
const PAUSED_ALREADY: &str = "already suspended/paused";
const NOT_PAUSED: &str = "not paused/suspended";
/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What was seen of a PgBouncer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolerObserved {
    /// The text of pgbouncer.ini, if there is one. It holds no secret.
    pub ini: Option<String>,
    /// The text of pgbouncer_hba.conf, if there is one.
    pub hba: Option<String>,
    /// The SHA-256 of userlist.txt, if there is one.
    pub userlist: Option<String>,
    /// Its unit, where systemd shall start it.
    pub unit: Option<UnitSeen>,
    pub process: PoolerProcess,
    pub console: ConsoleSeen,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolerProcess {
    Running { pid: u32 },
    Stopped,
    Unknown { why: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleSeen {
    Answered(Console),
    Unknown { why: String },
}

/// How a pooler holds its clients back: none begins a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Paused {
    /// No connection to a server is left.
    Drained,
    /// Transactions that had begun before still run.
    Draining,
}

/// The door to one PgBouncer.
#[derive(Debug, Clone, Copy)]
pub struct Pooler<'a> {
    pub host: &'a dyn Host,
    /// The cluster's PostgreSQL programs on that host: `psql` speaks to the console, `pg_ctl` sends signals.
    pub programs: &'a Programs,
    pub paths: &'a PoolerPaths,
    pub listen: IpAddr,
    pub port: u16,
    /// The unit that systemd would start it by.
    pub unit: &'a Unit,
    /// Who shall start it with its host.
    pub service: Service,
}

impl Pooler<'_> {
    /// Its process and its console.
    pub fn process(&self) -> Process<'_> {
        Process {
            host: self.host,
            psql: self.programs.path("psql"),
            paths: self.paths,
            listen: self.listen,
            port: self.port,
        }
    }

    /// Looks at its files, its process and its console. Changes nothing; what cannot be seen is unknown.
    ///
    /// # Errors
    /// Only if its files cannot be read, so that nothing could be said at all.
    pub async fn observe(&self) -> Result<PoolerObserved, Error> {
        let ini = self.host.read(&self.paths.ini()).await?;
        let hba = self.host.read(&self.paths.hba()).await?;
        let userlist = self.host.read(&self.paths.userlist()).await?;
        let unit = match self.service {
            Service::Systemd => Some(service::look_at_unit(self.host, self.unit).await?),
            Service::PgCtl | Service::Debian => None,
        };
        let (process, console) = self.process().observe().await;
        Ok(PoolerObserved {
            ini: ini.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            hba: hba.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            userlist: userlist.map(|bytes| fingerprint(&bytes)),
            unit,
            process,
            console,
        })
    }

    /// Writes its files and its unit where they differ; the process takes them over with [`Pooler::reload_and_verify`].
    ///
    /// `before` is what was seen of it.
    ///
    /// # Errors
    /// As told by the host, and when somebody else has changed the unit since.
    pub async fn install(&self, files: &PoolerFiles, before: &PoolerObserved) -> Result<(), Error> {
        self.host.make_directory(self.paths.directory(), 0o700).await?;
        // The userlist first: an alias is of no use before its roles can log in.
        for (path, content) in [
            (self.paths.userlist(), files.userlist.reveal()),
            (self.paths.hba(), files.hba.as_str()),
            (self.paths.ini(), files.ini.as_str()),
        ] {
            if self.host.read(&path).await?.as_deref() != Some(content.as_bytes()) {
                self.host.write_atomic(&path, content.as_bytes(), 0o600).await?;
            }
        }
        if let Some(wanted) = &files.unit {
            let found = before.unit.as_ref().and_then(|seen| seen.text.as_deref());
            if found.is_some_and(|text| !self.unit.wrote(text)) {
                return Err(Error::refused(format!("cannot install {}", self.unit.name()))
                    .detail("A unit of that name is there that is not this pooler's. It was left as it is.")
                    .hint("Rename it, or declare \"service: pg_ctl\"."));
            }
            service::install_unit(self.host, self.unit, wanted, found).await?;
        }
        Ok(())
    }

    /// Starts it with the installed files unless it runs, and returns its process number. A process that it starts was seen to
    /// serve what the files say; one that runs already may have to be reloaded.
    ///
    /// # Errors
    /// When its state is unknown, somebody else has its port, or it does not serve in time; with the last lines of its log.
    ///
    /// `shared`: other processes of the same pooler have the port already.
    pub async fn ensure_started(
        &self,
        pgbouncer: &Path,
        files: &PoolerFiles,
        shared: bool,
    ) -> Result<u32, Error> {
        let at = format!("{}:{}", self.listen, self.port);
        match self.process().observe().await {
            (PoolerProcess::Running { pid }, ConsoleSeen::Answered(_)) => return Ok(pid),
            (PoolerProcess::Unknown { why }, _)
            | (PoolerProcess::Running { .. }, ConsoleSeen::Unknown { why }) => {
                return Err(Error::failed(format!("could not tell whether PgBouncer {at} runs"))
                    .detail(why)
                    .hint(format!(
                        "Look at {} and stop what is not wanted, then run the same again.",
                        self.paths.directory().display()
                    )));
            }
            (PoolerProcess::Stopped, _) => {}
        }
        if !shared && let Some(who) = self.port_taken_by().await? {
            return Err(Error::failed(format!("cannot start PgBouncer: {at} is in use"))
                .detail(format!("{who} listens there."))
                .hint("Stop it, or declare another port for the pooler."));
        }
        // A number that was given to another process since would keep PgBouncer from starting ("another instance running?").
        self.host.remove_file(&self.paths.pidfile()).await?;
        let logged = self.log_size().await?;
        let ini = self.paths.ini().display().to_string();
        let start = match self.installed_unit().await? {
            Some(unit) => unit.start(),
            None => None,
        };
        let start = start.unwrap_or_else(|| Command::new(pgbouncer).args(["-d".to_owned(), ini]));
        let began = Instant::now();
        self.host
            .run(&start)
            .await
            .map_err(|error| Error::from(error).context(format!("start PgBouncer {at}")))?;
        loop {
            let (process, console) = self.process().observe().await;
            if let (PoolerProcess::Running { pid }, ConsoleSeen::Answered(_)) = (&process, &console) {
                self.open_and_verify(files, logged).await?;
                // PgBouncer goes on without the port if it could not have it, and says so only in its log.
                return match self.port_taken_by().await? {
                    Some(_) => Ok(*pid),
                    None => {
                        Err(self.did_not_serve(&format!("PgBouncer does not listen on {at}"), logged).await)
                    }
                };
            }
            let died = process == PoolerProcess::Stopped && self.log_since(logged).await.contains(" FATAL ");
            if died || began.elapsed() > START_LIMIT {
                let after = human_duration(began.elapsed());
                let what = if died {
                    format!("PgBouncer {at} ended at its start")
                } else {
                    format!("PgBouncer {at} does not answer {after} after its start")
                };
                return Err(self.did_not_serve(&what, logged).await);
            }
            sleep(POLL).await;
        }
    }

    /// Has the running process read the installed files, and checks that it does what they say.
    ///
    /// Returns the settings that only a restart takes over.
    ///
    /// # Errors
    /// When it does something else afterwards; with the last lines of its log.
    pub async fn reload_and_verify(&self, files: &PoolerFiles) -> Result<Vec<Drift>, Error> {
        let logged = self.log_size().await?;
        self.process().tell("RELOAD").await?;
        self.open_and_verify(files, logged).await
    }

    /// Replaces the verifier of one role in the installed userlist and has a running process read it; no other line changes.
    ///
    /// Returns an alias through which the role has a connection to a server, if there is one.
    ///
    /// # Errors
    /// When the file cannot be written, or the console does not take it.
    pub async fn replace_verifier(&self, role: &str, verifier: &Verifier) -> Result<Option<String>, Error> {
        let path = self.paths.userlist();
        let Some(before) = self.host.read(&path).await? else { return Ok(None) };
        let Some(after) = files::with_verifier(&String::from_utf8_lossy(&before), role, verifier) else {
            return Ok(None);
        };
        if before != after.reveal().as_bytes() {
            self.host.write_atomic(&path, after.reveal().as_bytes(), 0o600).await?;
        }
        if self.process().pid().await?.is_none() {
            return Ok(None);
        }
        let pools = self.process().shown().await?.pools;
        self.process().tell("RELOAD").await?;
        let connected = |row: &&PoolRow| row.user == role && row.servers_active + row.servers_idle > 0;
        Ok(pools.iter().find(connected).map(|row| row.alias.clone()))
    }

    /// Opens and closes aliases as they lead somewhere or not, and compares what runs with what is declared.
    async fn open_and_verify(&self, files: &PoolerFiles, logged: u64) -> Result<Vec<Drift>, Error> {
        let console = self.process().shown().await?;
        for route in &files.routes {
            let Some(row) = console.databases.iter().find(|row| row.alias == route.alias) else { continue };
            let verb = match (route.to.is_empty(), row.disabled) {
                (true, false) => "DISABLE",
                (false, true) => "ENABLE",
                (true, true) | (false, false) => continue,
            };
            self.process().tell(&format!("{verb} {}", quote_identifier(&route.alias))).await?;
        }
        let (restart, wrong): (Vec<Drift>, Vec<Drift>) =
            drift::running_drift(files, &self.process().shown().await?)
                .into_iter()
                .partition(|drift| matches!(drift, Drift::Setting { restart: true, .. }));
        if wrong.is_empty() {
            return Ok(restart);
        }
        let mut evidence = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        evidence.push('.');
        let lines = self.log_since(logged).await;
        if !lines.is_empty() {
            evidence.push_str(&format!("\n{lines}"));
        }
        let what = format!("PgBouncer {}:{} does not do what its files say", self.listen, self.port);
        Err(Error::failed(what).detail(evidence).hint(format!("Its log is {}.", self.paths.log().display())))
    }

    /// Stops it: lets transactions end for `grace`, then ends it at once. No error if it does not run.
    ///
    /// # Errors
    /// When its state is unknown, or it does not end.
    pub async fn stop(&self, grace: Duration) -> Result<(), Error> {
        let pid = match self.process().observe().await {
            (PoolerProcess::Running { pid }, _) => pid,
            (PoolerProcess::Stopped, _) => return Ok(()),
            (PoolerProcess::Unknown { why }, _) => {
                return Err(Error::failed(format!(
                    "could not tell whether PgBouncer {}:{} runs",
                    self.listen, self.port
                ))
                .detail(why));
            }
        };
        // A unit would start again what ended otherwise; one that it has not started is not its own to stop.
        if let Some(stop) = self.installed_unit().await?.and_then(|unit| unit.stop()) {
            self.host.run(&stop.timeout(grace + 2 * STOP_LIMIT)).await?;
        }
        // SIGINT waits for servers to be released in every version. SIGTERM ends it at once up to 1.22 and waits for its clients
        // from 1.23 on, where SIGQUIT is what SIGTERM was; older ones do not catch SIGQUIT, which ends them all the same, unless they
        // were started below a background job of a shell, which ignores it.
        for (signal, limit) in [("INT", grace), ("QUIT", STOP_LIMIT), ("TERM", STOP_LIMIT)] {
            if self.process().pid().await? != Some(pid) {
                break;
            }
            self.signal(signal, pid).await?;
            let began = Instant::now();
            while began.elapsed() < limit && self.process().pid().await? == Some(pid) {
                sleep(POLL).await;
            }
        }
        if self.process().pid().await? == Some(pid) {
            return Err(Error::failed(format!(
                "PgBouncer {}:{} (process {pid}) does not end",
                self.listen, self.port
            )));
        }
        self.host.remove_file(&self.paths.pidfile()).await?;
        Ok(())
    }

    async fn installed_unit(&self) -> Result<Option<Manager>, HostError> {
        let installed = service::is_installed(self.host, self.unit).await?;
        Ok(installed.then(|| Manager::Systemd(self.unit.name().to_owned())))
    }

    async fn signal(&self, signal: &str, pid: u32) -> Result<(), Error> {
        let kill = Command::new(self.programs.path("pg_ctl")).args([
            "kill".to_owned(),
            signal.to_owned(),
            pid.to_string(),
        ]);
        match self.host.run(&kill).await {
            // It may have ended in between, which the caller sees.
            Ok(_) | Err(HostError::Exited { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells who listens on the port of the address that clients use; `None` if it is free.
    async fn port_taken_by(&self) -> Result<Option<String>, Error> {
        if !sockets::listens(self.host, self.listen, self.port).await? {
            return Ok(None);
        }
        Ok(Some(self.listener_name().await.unwrap_or_else(|| "Another program".to_owned())))
    }

    /// Asks ss(8), if it is there and may know, for the name of the program.
    async fn listener_name(&self) -> Option<String> {
        let filter = format!("sport = :{}", self.port);
        let ss = Command::new("ss").args(["-H", "-l", "-t", "-n", "-p", &filter]).user(RunAs::Caller).reads();
        let sockets = self.host.run(&ss).await.ok()?.text();
        let (_, users) = sockets.split_once("users:((\"")?;
        let (program, rest) = users.split_once('"')?;
        let pid: u32 = rest.strip_prefix(",pid=")?.split(',').next()?.parse().ok()?;
        Some(format!("{program} (process {pid})"))
    }

    async fn did_not_serve(&self, what: &str, logged: u64) -> Error {
        let error = Error::failed(what).hint(format!("Its log is {}.", self.paths.log().display()));
        match self.log_since(logged).await {
            lines if lines.is_empty() => error.detail("It wrote nothing into its log."),
            lines => error.detail(format!("It says: {lines}")),
        }
    }

    async fn log_size(&self) -> Result<u64, Error> {
        Ok(self.host.stat(&self.paths.log()).await?.map_or(0, |log| log.size.0))
    }

    /// Returns the warnings and errors that came after the first `size` bytes of the log, at most the last six.
    async fn log_since(&self, size: u64) -> String {
        let text = self.text_since(size).await;
        let serious: Vec<&str> = text
            .lines()
            .filter(|line| [" WARNING ", " ERROR ", " FATAL "].iter().any(|level| line.contains(level)))
            .collect();
        serious[serious.len().saturating_sub(6)..].join("\n")
    }

    async fn text_since(&self, size: u64) -> String {
        let from = format!("+{}", size + 1);
        let tail = Command::new("tail")
            .args(["-c", &from, "--"])
            .arg(self.paths.log().display().to_string())
            .reads();
        self.host.run(&tail).await.map(|output| output.text()).unwrap_or_default()
    }
}

/// The SHA-256 of a file's bytes, in hexadecimal.
fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
