//! Who starts and stops a server or a pooler on its host: a unit of systemd, Debian's pg_ctlcluster, or pgherd itself with pg_ctl.
//!
//! What is found on the host decides, not what is declared: a server that systemd or Debian knows is never started or stopped behind
//! their back. Declared is only whether there should be a unit. The names are the host's, so a copy of the data elsewhere is nobody's.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::{Command, Host, HostError, RunAs, Stdin};
use crate::topology::claim::Profile;
use crate::topology::unit::Unit;

/// How long systemd may take to read or answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Where Debian keeps the configuration of each cluster: `VERSION/NAME` (pg_createcluster(1)).
const DEBIAN: &str = "/etc/postgresql";

/// A node's server on its host.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    pub host: &'a dyn Host,
    /// The node's name in the herd: `inventory-a`.
    pub node: &'a str,
    pub data_directory: &'a Path,
}

impl Server<'_> {
    /// The unit that it would have.
    pub fn unit(&self) -> Unit {
        Unit::of_node(self.node, self.data_directory)
    }
}

/// Who starts and stops a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manager {
    PgCtl,
    /// The name of the unit.
    Systemd(String),
    /// `pg_ctlcluster VERSION NAME`.
    Debian {
        version: String,
        name: String,
    },
}

impl UnitState {
    /// Tells whether it has given up, or should have: a postmaster that was killed can leave its lock file to its last process, and
    /// then only the first starts fail.
    pub fn has_given_up(self) -> bool {
        match self {
            Self::Active => false,
            Self::Ended => true,
            Self::Restarting(count) => count >= 5,
        }
    }
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitState {
    /// It runs, or is about to.
    Active,
    /// It does not run and nothing will start it.
    Ended,
    /// It has ended and systemd starts it again; how often it has done so.
    Restarting(u32),
}

/// A unit as it was found on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSeen {
    pub text: Option<String>,
    pub enabled: bool,
}

impl UnitSeen {
    /// Says how it is not what it should be, if it is not.
    pub fn differs_from(&self, wanted: &str) -> Option<&'static str> {
        match &self.text {
            None => Some("there is none: nothing starts it with its host"),
            Some(text) if text != wanted => Some("it is not what pgherd writes"),
            Some(_) if !self.enabled => Some("it is not enabled: nothing starts it with its host"),
            Some(_) => None,
        }
    }
}

/// Finds who starts and stops a server.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn manager(server: Server<'_>) -> Result<Manager, HostError> {
    let unit = server.unit();
    if is_installed(server.host, &unit).await? {
        return Ok(Manager::Systemd(unit.name().to_owned()));
    }
    Ok(find_debian(server.host, server.data_directory).await?.unwrap_or(Manager::PgCtl))
}

/// Finds who starts and stops a node of ours: a unit that is not pgherd's is known from when the node was taken over.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn manager_of(server: Server<'_>, profile: Option<&Profile>) -> Result<Manager, HostError> {
    Ok(match manager(server).await? {
        Manager::PgCtl => {
            let unit = profile.and_then(|profile| profile.adopted.as_ref()).and_then(|own| own.unit.clone());
            unit.map_or(Manager::PgCtl, Manager::Systemd)
        }
        found @ (Manager::Systemd(_) | Manager::Debian { .. }) => found,
    })
}

/// Tells whether a server comes back when its host boots; what cannot be told is no.
pub async fn starts_with_host(host: &dyn Host, manager: &Manager) -> bool {
    match manager {
        Manager::PgCtl => false,
        Manager::Systemd(unit) => is_enabled(host, unit).await,
        Manager::Debian { version, name } => {
            let file = Path::new(DEBIAN).join(version).join(name).join("start.conf");
            let text = host.read(&file).await.ok().flatten().unwrap_or_default();
            // Without the file it is auto (pg_createcluster(1)).
            let text = String::from_utf8_lossy(&text).into_owned();
            let word = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
            word.is_none_or(|word| word == "auto")
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PgCtl => f.write_str("pg_ctl"),
            Self::Systemd(unit) => f.write_str(unit),
            Self::Debian { version, name } => write!(f, "pg_ctlcluster {version} {name}"),
        }
    }
}

/// Finds who runs a server that is up and that pgherd did not start: Debian's wrapper, a unit of somebody else's, or nobody.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn who_runs(server: Server<'_>, postmaster: u32) -> Result<Manager, HostError> {
    match manager(server).await? {
        Manager::PgCtl => {
            let unit = unit_of(server.host, postmaster).await?;
            Ok(unit.map_or(Manager::PgCtl, Manager::Systemd))
        }
        known @ (Manager::Systemd(_) | Manager::Debian { .. }) => Ok(known),
    }
}

/// Returns the unit whose main process a postmaster is. What somebody started in a session or from another service is nobody's: it has
/// that one's control group, and another main process.
async fn unit_of(host: &dyn Host, postmaster: u32) -> Result<Option<String>, HostError> {
    let file = format!("/proc/{postmaster}/cgroup");
    let groups = host.read(Path::new(&file)).await?.unwrap_or_default();
    let Some(unit) = parse_unit(&String::from_utf8_lossy(&groups)) else { return Ok(None) };
    let show = systemctl(&["show", "--property=MainPID", "--value", "--", &unit]).reads().timeout(ANSWER);
    Ok(match host.run(&show).await {
        Ok(output) => (output.text().trim() == postmaster.to_string()).then_some(unit),
        // No systemd runs there; the control groups are somebody else's.
        Err(HostError::Exited { .. } | HostError::NotStarted { .. }) => None,
        Err(error @ (HostError::Lost { .. } | HostError::File { .. })) => return Err(error),
    })
}

/// Reads `0::/system.slice/postgresql-15.service`, a line of `/proc/PID/cgroup` (cgroups(7)).
fn parse_unit(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.rsplit('/').next())
        .find(|name| name.ends_with(".service"))
        .map(str::to_owned)
}

/// Tells whether a unit starts with its host.
async fn is_enabled(host: &dyn Host, unit: &str) -> bool {
    let ask = systemctl(&["is-enabled", "--quiet", "--", unit]).reads().timeout(ANSWER);
    host.run(&ask).await.is_ok()
}

async fn find_debian(host: &dyn Host, directory: &Path) -> Result<Option<Manager>, HostError> {
    if host.list(Path::new(DEBIAN)).await?.is_none_or(|names| names.is_empty()) {
        return Ok(None);
    }
    let list = Command::new("pg_lsclusters").arg("--no-header").reads();
    Ok(parse_clusters(&host.run(&list).await?.text(), directory))
}

/// Reads `15  main  5432 online postgres /var/lib/postgresql/15/main /var/log/...`, which pg_lsclusters prints.
fn parse_clusters(text: &str, directory: &Path) -> Option<Manager> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (version, name) = (words.next()?, words.next()?);
        // Port, status and owner.
        let data = words.nth(3)?;
        (Path::new(data) == directory)
            .then(|| Manager::Debian { version: version.to_owned(), name: name.to_owned() })
    })
}

impl Manager {
    /// Returns the command that starts the server, where it is not pgherd that starts it.
    pub fn start(&self) -> Option<Command> {
        match self {
            Self::PgCtl => None,
            Self::Systemd(unit) => Some(systemctl(&["start", "--", unit])),
            Self::Debian { version, name } => {
                Some(Command::new("pg_ctlcluster").args([version, name, "start"]).user(RunAs::Caller))
            }
        }
    }

    /// Returns the command that stops the server with a fast shutdown, where it is not pgherd that stops it.
    pub fn stop(&self) -> Option<Command> {
        match self {
            Self::PgCtl => None,
            Self::Systemd(unit) => Some(systemctl(&["stop", "--", unit])),
            Self::Debian { version, name } => Some(
                Command::new("pg_ctlcluster").args([version, name, "stop", "-m", "fast"]).user(RunAs::Caller),
            ),
        }
    }
}

fn systemctl(args: &[&str]) -> Command {
    Command::new("systemctl").args(args.iter().copied()).user(RunAs::Caller)
}

/// Asks systemd how a unit fares.
///
/// # Errors
/// When the host cannot tell.
pub async fn unit_state(host: &dyn Host, unit: &str) -> Result<UnitState, HostError> {
    let show = systemctl(&["show", "--property=ActiveState,SubState,NRestarts", "--", unit]);
    Ok(parse_state(&host.run(&show.reads().timeout(ANSWER)).await?.text()))
}

fn parse_state(text: &str) -> UnitState {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (value("ActiveState"), value("SubState")) {
        (Some("inactive" | "failed"), _) => UnitState::Ended,
        (_, Some("auto-restart")) => {
            UnitState::Restarting(value("NRestarts").and_then(|count| count.parse().ok()).unwrap_or(0))
        }
        _ => UnitState::Active,
    }
}

/// Returns the last lines that a unit has written to the journal.
pub async fn last_journal_lines(host: &dyn Host, unit: &str) -> Vec<String> {
    let command = Command::new("journalctl")
        .args(["--unit", unit, "--lines=8", "--output=cat", "--no-pager", "--quiet"])
        .user(RunAs::Caller)
        .reads();
    match host.run(&command).await {
        Ok(output) => output.text().lines().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

/// Looks at a unit.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn look_at_unit(host: &dyn Host, unit: &Unit) -> Result<UnitSeen, HostError> {
    let text = host.read(&unit.path()).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let enabled = host.stat(&unit.enabling_link()).await?.is_some();
    Ok(UnitSeen { text, enabled })
}

/// Tells whether the unit is there, and not another one of its name.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn is_installed(host: &dyn Host, unit: &Unit) -> Result<bool, HostError> {
    let text = host.read(&unit.path()).await?;
    Ok(text.is_some_and(|bytes| unit.wrote(&String::from_utf8_lossy(&bytes))))
}

/// Installs a unit and has it start with the host; does not start or stop what it is of.
///
/// `before` is what the plan saw.
///
/// # Errors
/// When something else is there by now, and when the host cannot.
pub async fn install_unit(host: &dyn Host, unit: &Unit, wanted: &str, before: Option<&str>) -> Result<()> {
    let seen = look_at_unit(host, unit).await.map_err(|error| could_not("look at", unit, error))?;
    if seen.text.as_deref() != Some(wanted) {
        if seen.text.as_deref() != before {
            return Err(Error::refused(format!("{} changed after the plan was made", unit.path().display()))
                .detail("Somebody else edits it. It was left as it is.")
                .hint("Look at it, then plan again: pgherd plan"));
        }
        write_unit(host, unit, wanted).await.map_err(|error| could_not("install", unit, error))?;
    }
    enable(host, unit).await.map_err(|error| could_not("enable", unit, error))
}

/// Takes a unit back to what the plan saw.
///
/// # Errors
/// When the host cannot.
pub async fn restore_unit(host: &dyn Host, unit: &Unit, before: Option<&str>) -> Result<()> {
    match before {
        None => remove_unit(host, unit).await,
        Some(text) => write_unit(host, unit, text).await,
    }
    .map_err(|error| could_not("take back", unit, error))
}

/// Removes the unit of something that does not run; nothing happens to another one of its name.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn remove_unit(host: &dyn Host, unit: &Unit) -> Result<(), HostError> {
    if !is_installed(host, unit).await? {
        return Ok(());
    }
    let run = async |command: Command| host.run(&command.timeout(ANSWER)).await.map(drop);
    run(systemctl(&["disable", "--quiet", "--", unit.name()])).await?;
    run(Command::new("rm").args(["-f", "--", &unit.path().display().to_string()]).user(RunAs::Caller))
        .await?;
    run(systemctl(&["daemon-reload"])).await?;
    // A unit that failed is listed until it is forgotten; one that is not known is no error to say.
    run(systemctl(&["reset-failed", "--quiet", "--", unit.name()])).await.ok();
    Ok(())
}

/// The directory of units is root's, so it is the caller who writes: beside, synced, and then in its place.
async fn write_unit(host: &dyn Host, unit: &Unit, text: &str) -> Result<(), HostError> {
    let path = unit.path().display().to_string();
    let beside = format!("{path}.pgherd-new");
    let run = async |command: Command| host.run(&command.user(RunAs::Caller).timeout(ANSWER)).await.map(drop);
    let write =
        Command::new("dd").args([format!("of={beside}"), "status=none".to_owned(), "conv=fsync".to_owned()]);
    run(write.stdin(Stdin::Bytes(text.as_bytes().to_vec()))).await?;
    run(Command::new("chmod").args(["0644", "--", &beside])).await?;
    run(Command::new("mv").args(["-f", "-T", "--", &beside, &path])).await?;
    run(systemctl(&["daemon-reload"])).await
}

async fn enable(host: &dyn Host, unit: &Unit) -> Result<(), HostError> {
    host.run(&systemctl(&["enable", "--quiet", "--", unit.name()]).timeout(ANSWER)).await.map(drop)
}

fn could_not(doing: &str, unit: &Unit, error: HostError) -> Error {
    let failed = Error::failed(format!("could not {doing} {}", unit.name()));
    let failed = match &error {
        HostError::Exited { stderr, .. } => failed.detail(stderr.clone()),
        HostError::NotStarted { why, .. } | HostError::Lost { why, .. } | HostError::File { why, .. } => {
            failed.detail(format!("{why}."))
        }
    };
    failed
        .hint("Units are systemd's, and only root may change them: run pgherd as root, or declare \"service: pg_ctl\".")
        .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_cluster_is_known_by_its_data_directory() {
        let printed = "14 old  5433 down   postgres /srv/old                    /var/log/postgresql/old.log\n\
                       15 main 5432 online postgres /var/lib/postgresql/15/main /var/log/postgresql/main.log\n";
        let found = parse_clusters(printed, Path::new("/var/lib/postgresql/15/main"));
        assert_eq!(found, Some(Manager::Debian { version: "15".to_owned(), name: "main".to_owned() }));
        assert_eq!(parse_clusters(printed, Path::new("/var/lib/postgresql/15")), None);
    }

    #[test]
    fn a_unit_is_read_from_the_control_group() {
        assert_eq!(parse_unit("0::/system.slice/pg-shop.service\n").as_deref(), Some("pg-shop.service"));
        assert_eq!(parse_unit("0::/user.slice/user-0.slice/session-3.scope\n"), None);
        assert_eq!(parse_unit("0::/\n"), None);
    }

    #[test]
    fn a_unit_that_systemd_starts_again_is_neither_running_nor_ended() {
        let said = |active: &str, sub: &str| {
            parse_state(&format!("NRestarts=2\nActiveState={active}\nSubState={sub}\n"))
        };
        assert_eq!(said("active", "running"), UnitState::Active);
        assert_eq!(said("activating", "start-pre"), UnitState::Active);
        assert_eq!(said("activating", "auto-restart"), UnitState::Restarting(2));
        assert_eq!(said("failed", "failed"), UnitState::Ended);
        assert_eq!(said("inactive", "dead"), UnitState::Ended);
    }
}
