//! One PgBouncer that runs, or not: its process and its console, spoken to from anywhere or on its own host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::console::{Console, ConsoleError, Line};
use super::files::PoolerPaths;
use super::{CONFIRM, ConsoleSeen, NOT_PAUSED, PAUSED_ALREADY, POLL, Paused, PoolerProcess};
use crate::error::Error;
use crate::host::{Host, HostError};

/// One process of a host's pooler.
#[derive(Debug, Clone)]
pub struct Process<'a> {
    pub host: &'a dyn Host,
    /// Speaks to the console.
    pub psql: PathBuf,
    pub paths: &'a PoolerPaths,
    pub listen: IpAddr,
    pub port: u16,
}

impl Process<'_> {
    /// Tells whether it runs, and what its console says.
    pub(super) async fn observe(&self) -> (PoolerProcess, ConsoleSeen) {
        let process = match self.pid().await {
            Ok(Some(pid)) => PoolerProcess::Running { pid },
            Ok(None) => PoolerProcess::Stopped,
            Err(error) => PoolerProcess::Unknown { why: error.to_string() },
        };
        let console = self.observe_console(&process).await;
        match (process, console) {
            (PoolerProcess::Stopped, console @ ConsoleSeen::Answered(_)) => {
                let why = format!(
                    "something answers on its socket, but {} names no process of it",
                    self.paths.pidfile().display()
                );
                (PoolerProcess::Unknown { why }, console)
            }
            seen => seen,
        }
    }

    /// Asks the console. A process that was started with another port than the declared one has its socket under that.
    async fn observe_console(&self, process: &PoolerProcess) -> ConsoleSeen {
        let why = match self.console(self.port).show().await {
            Ok(console) => return ConsoleSeen::Answered(console),
            Err(error) => error.to_string(),
        };
        if matches!(process, PoolerProcess::Running { .. }) {
            let names = self.host.list(self.paths.directory()).await.ok().flatten().unwrap_or_default();
            let ports = names.iter().filter_map(|name| name.strip_prefix(".s.PGSQL.")?.parse().ok());
            for port in ports.filter(|port| *port != self.port) {
                if let Ok(console) = self.console(port).show().await {
                    return ConsoleSeen::Answered(console);
                }
            }
        }
        ConsoleSeen::Unknown { why }
    }

    /// Asks its console for everything.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn shown(&self) -> Result<Console, Error> {
        self.console(self.port).show().await.map_err(|error| match error {
            ConsoleError::Host(error) => error.into(),
            answer @ ConsoleError::Answer(_) => {
                Error::failed(format!("could not ask PgBouncer {}:{}", self.listen, self.port)).source(answer)
            }
        })
    }

    /// Has every client wait before its next transaction, also one that logs in only now, and gives those that run `grace` to end.
    ///
    /// The whole process is paused, not its aliases one by one: with a paused alias PgBouncer would still try to reach the server for
    /// a client that logs in, and then refuse the next ones. It stays paused when whoever asked for it is gone.
    ///
    /// # Errors
    /// When the console does not say that it is paused.
    pub async fn pause(&self, grace: Duration) -> Result<Paused, Error> {
        let began = Instant::now();
        match self.tell_pause(grace).await? {
            Told::Done => return Ok(Paused::Drained),
            Told::Before => {}
            // It goes on waiting without us, if it has heard us at all.
            Told::NoAnswer => match self.tell_pause(CONFIRM).await? {
                Told::Done => return Ok(Paused::Drained),
                Told::Before => {}
                Told::NoAnswer => {
                    return Err(Error::failed(format!(
                        "PgBouncer {}:{} does not say whether it is paused",
                        self.listen, self.port
                    )));
                }
            },
        }
        loop {
            let open: u32 = self.shown().await?.databases.iter().map(|row| row.current_connections).sum();
            if open == 0 {
                return Ok(Paused::Drained);
            }
            if began.elapsed() >= grace {
                return Ok(Paused::Draining);
            }
            sleep(POLL).await;
        }
    }

    async fn tell_pause(&self, limit: Duration) -> Result<Told, Error> {
        match self.console(self.port).tell_within("PAUSE", limit).await {
            Ok(()) => Ok(Told::Done),
            Err(HostError::Exited { stderr, .. }) if stderr.contains(PAUSED_ALREADY) => Ok(Told::Before),
            Err(HostError::Lost { .. }) => Ok(Told::NoAnswer),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets the clients go on. No error if they were not held back, or if it does not run.
    ///
    /// # Errors
    /// When the console does not take it.
    pub async fn resume(&self) -> Result<(), Error> {
        match self.tell("RESUME").await {
            Ok(()) => Ok(()),
            Err(HostError::Exited { stderr, .. }) if stderr.contains(NOT_PAUSED) => Ok(()),
            Err(error) => match self.pid().await? {
                Some(_) => Err(error.into()),
                None => Ok(()),
            },
        }
    }

    /// Gives its console a command that changes something.
    pub(super) async fn tell(&self, statement: &str) -> Result<(), HostError> {
        self.console(self.port).tell(statement).await
    }

    /// Returns the process that the pidfile names, if it runs and is this PgBouncer.
    pub(super) async fn pid(&self) -> Result<Option<u32>, HostError> {
        let Some(content) = self.host.read(&self.paths.pidfile()).await? else { return Ok(None) };
        let Ok(pid) = String::from_utf8_lossy(&content).trim().parse() else { return Ok(None) };
        if !self.host.process_exists(pid).await? {
            return Ok(None);
        }
        let cmdline = match self.host.read(Path::new(&format!("/proc/{pid}/cmdline"))).await {
            Ok(cmdline) => cmdline.unwrap_or_default(),
            // It ended while it was read (ESRCH).
            Err(HostError::File { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let ini = self.paths.ini();
        let mut words = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default();
        let ours = Path::new(program.as_ref()).file_name().is_some_and(|name| name == "pgbouncer")
            && words.any(|word| Path::new(word.as_ref()) == ini);
        Ok(ours.then_some(pid))
    }

    /// The way to the console under a port.
    pub(super) fn console(&self, port: u16) -> Line<'_> {
        Line { host: self.host, psql: self.psql.clone(), paths: self.paths, port }
    }
}

/// What came of a PAUSE.
enum Told {
    Done,
    /// It was paused before, or is about to be.
    Before,
    NoAnswer,
}
