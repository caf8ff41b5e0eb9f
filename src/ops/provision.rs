//! What is done to one node: make, clone, write its files, start, stop, remove.
//!
//! Each function is idempotent and knows nothing of plans or journals. Nothing here touches a directory that no marker claims.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::db::{Conn, DbError};
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs::Programs;
use crate::host::{Command, Host, HostError, LineSink, RunAs};
use crate::ops::certificate::{self, Holder};
use crate::ops::observe::{self, Doors, Fence};
use crate::ops::service::{self, Manager};
use crate::pg::control_file::ControlFile;
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::topology::claim::{self, Archive, AsFound, Marker, Profile, Replaced};
use crate::topology::declared::{self, NodeWish};
use crate::topology::model::{Cluster, Node};
use crate::topology::places::NodePlaces;
use crate::topology::unit::{self, Peers, Unit};
use crate::units::ByteCount;

/// How long a server may take to start: crash recovery replays what a checkpoint interval has written.
pub const START: Duration = Duration::from_secs(600);
/// How long a fast stop may take.
pub const STOP: Duration = Duration::from_secs(120);
/// How long the processes of a postmaster that was killed may take to go.
const RELEASE: Duration = Duration::from_secs(10);
const MAKE: Duration = Duration::from_secs(300);
/// How long a clone may take: as long as it moves. A cut way is noticed by its silence, from the station by ssh and from the standby by TCP.
pub const CLONE: Duration = Duration::from_secs(60 * 86_400);
const PAUSE: Duration = Duration::from_millis(50);

/// One node with everything that working on it needs.
#[derive(Debug, Clone)]
pub struct Site<'a> {
    pub herd: &'a str,
    pub operation: &'a str,
    pub cluster: &'a Cluster,
    pub node: &'a Node,
    pub doors: &'a Doors,
    pub programs: &'a Programs,
    pub users: &'a [String],
}

impl Site<'_> {
    /// Returns the node's name in the herd: `inventory-a`.
    pub fn name(&self) -> String {
        self.cluster.full_name(&self.node.name)
    }

    pub fn places(&self) -> NodePlaces {
        self.doors.node_places(self.cluster, self.node)
    }

    pub fn host(&self) -> &dyn Host {
        self.doors.host(&self.node.host)
    }

    /// Opens a session as the superuser.
    ///
    /// # Errors
    /// [`DbError`] as it came.
    pub async fn connect(&self) -> Result<Conn, DbError> {
        self.connect_to("postgres").await
    }

    /// Opens a session as the superuser in a database.
    ///
    /// # Errors
    /// [`DbError`] as it came.
    pub async fn connect_to(&self, database: &str) -> Result<Conn, DbError> {
        self.doors.connector.connect(&self.doors.superuser(self.cluster, self.node, database)).await
    }

    fn directory(&self) -> &Path {
        &self.node.data_directory
    }

    /// Returns its server as the host's service managers know it; `name` is the node's in the herd.
    pub fn server<'b>(&'b self, name: &'b str) -> service::Server<'b> {
        service::Server { host: self.host(), node: name, data_directory: self.directory() }
    }

    /// The unit that systemd would start it by.
    pub fn unit(&self) -> Unit {
        Unit::of_node(&self.name(), self.directory())
    }
}

fn could_not(doing: &str, site: &Site<'_>, error: HostError) -> Error {
    let disk_full = matches!(&error, HostError::File { kind: std::io::ErrorKind::StorageFull, .. })
        || matches!(&error, HostError::Exited { stderr, .. } if stderr.contains("No space left on device"));
    let failed = Error::failed(format!("could not {doing} {}", site.name()));
    let failed = match &error {
        HostError::Exited { stderr, .. } => failed.detail(stderr.clone()),
        HostError::NotStarted { why, .. } | HostError::Lost { why, .. } | HostError::File { why, .. } => {
            failed.detail(format!("{why}."))
        }
    };
    let failed = if disk_full {
        failed
            .hint(format!("Free space on the file system of {}, then try again.", site.directory().display()))
    } else {
        failed
    };
    failed.source(error)
}

/// Makes the first data directory of a cluster: `initdb` with checksums, our files, the profile, and the marker last.
///
/// # Errors
/// When the directory is not empty or not ours, or a program fails.
pub async fn initdb(site: &Site<'_>, wish: &NodeWish<'_>) -> Result<SystemIdentifier> {
    claim_directory(site).await?;
    certificate::equip(site.doors, site.cluster, Holder::Node(site.node)).await?;
    let directory = site.directory().display().to_string();
    let command = Command::new(site.programs.path("initdb"))
        .args(["-D", directory.as_str(), "-U", declared::SUPERUSER])
        .args(["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"])
        .args(["--auth-local=peer", "--auth-host=scram-sha-256"])
        .timeout(MAKE);
    site.host().run(&command).await.map_err(|error| could_not("initdb", site, error))?;
    write_files(site, wish).await?;
    complete_claim(site, wish.memory).await
}

/// Copies the primary into the node's data directory and gives it its own files; `progress` takes kilobytes done and in all.
///
/// # Errors
/// When the directory is not empty or not ours, or `pg_basebackup` fails.
pub async fn clone(
    site: &Site<'_>,
    from: &Node,
    wish: &NodeWish<'_>,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<SystemIdentifier> {
    claim_directory(site).await?;
    copy_passfile(site, from).await?;
    certificate::equip(site.doors, site.cluster, Holder::Node(site.node)).await?;
    let directory = site.directory().display().to_string();
    let command = Command::new(site.programs.path("pg_basebackup"))
        .args(["-D", directory.as_str(), "-p", &from.port.to_string()])
        .args(["-d", declared::server_of(site.cluster, from).as_str()])
        .args(["-U", declared::replication_role(site.cluster), "-w", "-X", "stream"])
        .args(["-S", site.cluster.slot_name(&site.node.name).as_str(), "-c", "fast", "-P"])
        .args(["-l", format!("pgherd clone of {}", site.name()).as_str()])
        .env("PGPASSFILE", site.places().passfile.display().to_string())
        .env("PGAPPNAME", site.name())
        .timeout(CLONE);
    let command = verifying(site, command);
    let (told, mut heard) = watch::channel((0, 0));
    let lines: LineSink = Arc::new(move |_, line| {
        if let Some(seen) = parse_progress(line) {
            told.send_replace(seen);
        }
    });
    let mut copy = site.host().stream(&command, lines);
    loop {
        tokio::select! {
            ended = &mut copy => {
                ended.map_err(|error| could_not("clone", site, error))?;
                break;
            }
            Ok(()) = heard.changed() => {
                let (done, total) = *heard.borrow_and_update();
                progress(done, total);
            }
        }
    }
    write_files(site, wish).await?;
    write(site, &site.directory().join("standby.signal"), b"", 0o600).await?;
    complete_claim(site, wish.memory).await
}

/// Has a program of PostgreSQL's that connects to another node make sure that it is that node.
pub fn verifying(site: &Site<'_>, command: Command) -> Command {
    if !site.cluster.has_tls() {
        return command;
    }
    let places = site.places();
    command
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", places.authorities.display().to_string())
        .env("PGSSLCERT", declared::no_client_certificate(&places).display().to_string())
}

/// Gives the node the same password file as another node of the cluster has.
///
/// # Errors
/// When the other has none, or a host cannot.
pub async fn copy_passfile(site: &Site<'_>, from: &Node) -> Result<()> {
    let source = site.doors.node_places(site.cluster, from);
    let passfile = site
        .doors
        .host(&from.host)
        .read(&source.passfile)
        .await
        .map_err(|error| could_not("read the password file for", site, error))?
        .ok_or_else(|| {
            Error::failed(format!("{} has no password file", site.cluster.full_name(&from.name)))
        })?;
    write(site, &site.places().passfile, &passfile, 0o600).await
}

/// Reads `24063/24063 kB (100%), 1/1 tablespace`, which `pg_basebackup -P` prints.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let total = rest.split_whitespace().next()?;
    Some((done.trim().parse().ok()?, total.parse().ok()?))
}

/// Claims the data directory for this operation, and empties what an earlier attempt of the same operation left in it.
///
/// # Errors
/// [`ErrorKind::Refused`] if it is not empty and not this operation's.
pub async fn claim_directory(site: &Site<'_>) -> Result<()> {
    let (host, places) = (site.host(), site.places());
    let existing = host.list(site.directory()).await.map_err(|error| could_not("look at", site, error))?;
    let marker = observe::observe_claim(host, &places, site.node).await;
    let mine = match &marker {
        observe::Claim::Ours(marker) => {
            marker.operation == site.operation || existing.as_ref().is_none_or(Vec::is_empty)
        }
        observe::Claim::None | observe::Claim::Other(_) | observe::Claim::Unknown { .. } => false,
    };
    match (&existing, mine) {
        (Some(names), false) if !names.is_empty() => {
            return Err(Error::refused(format!(
                "cannot use {}: it is not empty",
                site.directory().display()
            ))
            .detail(format!(
                "No marker of {} claims it for this operation. Nothing in it was changed.",
                site.name()
            ))
            .hint("Give the node another `data-directory`, or move this one away."));
        }
        (_, true) => empty_directory(site).await?,
        (_, false) => {}
    }
    let make = async |path: &Path, mode: u32| make_directory(site, path, mode).await;
    let claimed = match marker {
        observe::Claim::Ours(marker) if marker.operation == site.operation => {
            Marker { system_identifier: None, ..marker }
        }
        // The node was there, and its data is gone.
        observe::Claim::Ours(marker) => {
            let replaced = marker.system_identifier.map(|system_identifier| Replaced {
                system_identifier,
                operation: marker.operation,
                directory_there: existing.is_some(),
            });
            Marker { replaced, ..new_marker(site, marker.directory_existed) }
        }
        observe::Claim::None | observe::Claim::Other(_) | observe::Claim::Unknown { .. } => {
            new_marker(site, existing.is_some())
        }
    };
    // The marker first: what no marker claims, no undo removes.
    make(&places.facts, 0o750).await?;
    write_marker(site, &claimed).await?;
    make(&places.socket, 0o755).await?;
    make(&places.log, 0o750).await?;
    make(&places.spool, 0o700).await?;
    make(site.directory(), 0o700).await
}

/// Makes a directory of the node, owned by the os-user.
///
/// # Errors
/// When the host cannot.
pub async fn make_directory(site: &Site<'_>, path: &Path, mode: u32) -> Result<()> {
    let made = site.host().make_directory(path, mode).await;
    made.map_err(|error| could_not("make the directories of", site, error))
}

fn new_marker(site: &Site<'_>, directory_existed: bool) -> Marker {
    Marker {
        format: claim::FORMAT,
        host: site.node.host.clone(),
        data_directory: site.node.data_directory.clone(),
        system_identifier: None,
        operation: site.operation.to_owned(),
        directory_existed,
        replaced: None,
        adopted: None,
    }
}

async fn write_marker(site: &Site<'_>, marker: &Marker) -> Result<()> {
    write(site, &site.places().marker, &claim::write(marker), 0o640).await
}

/// Writes the profile and then the marker with its system identifier: from here on the directory is a node's.
///
/// # Errors
/// When pg_control cannot be read, or the host cannot.
pub async fn complete_claim(site: &Site<'_>, memory: ByteCount) -> Result<SystemIdentifier> {
    let control = control_file(site).await?;
    let claimed = match observe::observe_claim(site.host(), &site.places(), site.node).await {
        observe::Claim::Ours(marker) => marker,
        observe::Claim::None | observe::Claim::Other(_) | observe::Claim::Unknown { .. } => {
            new_marker(site, true)
        }
    };
    write_profile(site, control.system_identifier, memory).await?;
    let complete = Marker { system_identifier: Some(control.system_identifier), ..claimed };
    write_marker(site, &complete).await?;
    Ok(control.system_identifier)
}

async fn write_profile(
    site: &Site<'_>,
    system_identifier: SystemIdentifier,
    memory: ByteCount,
) -> Result<()> {
    let profile = profile_of(site, system_identifier, memory, None);
    write(site, &site.places().profile, &claim::write(&profile), 0o640).await
}

/// Returns what the node should know of itself.
pub fn profile_of(
    site: &Site<'_>,
    system_identifier: SystemIdentifier,
    memory: ByteCount,
    adopted: Option<AsFound>,
) -> Profile {
    let places = site.places();
    Profile {
        format: claim::FORMAT,
        herd: site.herd.to_owned(),
        cluster: site.cluster.name.clone(),
        node: site.node.name.clone(),
        host: site.node.host.clone(),
        os_user: site.host().os_user().to_owned(),
        version: site.programs.version.major,
        system_identifier,
        data_directory: site.node.data_directory.clone(),
        bin_directory: site.programs.directory.clone(),
        socket_directory: places.socket.clone(),
        log_directory: places.log.clone(),
        passfile: places.passfile.clone(),
        port: site.node.port,
        slot: site.cluster.slot_name(&site.node.name),
        memory,
        archive: Archive::of(site.cluster, site.doors.places(&site.node.host)),
        adopted,
        peers: declared::peers(site.cluster, site.node, &places),
    }
}

/// Writes all files of which pgherd writes a part.
async fn write_files(site: &Site<'_>, wish: &NodeWish<'_>) -> Result<()> {
    let users: Vec<&str> = site.users.iter().map(String::as_str).collect();
    let shared = declared::settings_file(&declared::shared_settings(site.cluster));
    let own =
        declared::settings_file(&declared::node_settings(site.cluster, site.node, wish, &site.places()));
    let conf = declared::with_includes(&read_text(site, declared::CONF_FILE).await?);
    let hba = declared::with_access(&read_text(site, declared::HBA_FILE).await?, site.cluster);
    let ident = declared::with_users(&read_text(site, declared::IDENT_FILE).await?, &users);
    // The files that postgresql.conf includes come first: with an include line and no file the server does not start.
    let files = [
        (declared::SHARED_FILE, shared),
        (declared::NODE_FILE, own),
        (declared::HBA_FILE, hba),
        (declared::IDENT_FILE, ident),
        (declared::CONF_FILE, conf),
    ];
    for (name, text) in files {
        write(site, &site.node.configuration().join(name), text.as_bytes(), 0o600).await?;
    }
    Ok(())
}

async fn read_text(site: &Site<'_>, name: &str) -> Result<String> {
    let bytes = site
        .host()
        .read(&site.node.configuration().join(name))
        .await
        .map_err(|error| could_not("read the files of", site, error))?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

/// Replaces a file of the node.
///
/// # Errors
/// When the host cannot.
pub async fn write(site: &Site<'_>, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    site.host()
        .write_atomic(path, bytes, mode)
        .await
        .map_err(|error| could_not(&format!("write {} of", path.display()), site, error))
}

/// Reads the node's pg_control.
///
/// # Errors
/// When it cannot be read.
pub async fn control_file(site: &Site<'_>) -> Result<ControlFile> {
    observe::read_control_file(site.host(), site.programs, site.directory()).await
}

/// Returns where the timeline that a node was promoted onto begins, by the history file that it wrote.
///
/// # Errors
/// When there is no such file, or it names no ancestor.
pub async fn timeline_begins(site: &Site<'_>, timeline: TimelineId) -> Result<Lsn> {
    let name = WalFile::TimelineHistory(timeline).to_string();
    let path = site.node.data_directory.join("pg_wal").join(&name);
    let could_not = || Error::failed(format!("could not read {name} of {}", site.name()));
    let bytes = site.host().read(&path).await.map_err(|error| could_not().source(error))?;
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let history = TimelineHistory::parse(timeline, &text).map_err(|error| could_not().source(error))?;
    history.ancestors().last().map(|ancestor| ancestor.switchpoint).ok_or_else(|| {
        Error::failed(format!(
            "{} was promoted onto timeline {timeline}, which comes from no other",
            site.name()
        ))
    })
}

/// Starts the server if it does not run, and waits until it answers as the cluster that the marker names.
///
/// # Errors
/// [`ErrorKind::Refused`] if it is fenced and would come up as a primary; with the last lines of the server's log if it does not come up.
pub async fn start(site: &Site<'_>) -> Result<()> {
    let manager = manager(site).await?;
    if observe::postmaster(site.host(), site.directory()).await?.is_none() {
        may_start(site).await?;
        let command =
            manager.start().unwrap_or_else(|| pg_ctl_start(site)).timeout(START + Duration::from_secs(5));
        if let Err(error) = launch(site, &command).await? {
            let lines = last_words(site, &manager).await;
            let failed = could_not("start", site, error);
            return Err(if lines.is_empty() { failed } else { failed.detail(lines.join("\n")) });
        }
    }
    wait_until_it_answers(site, &manager).await
}

/// What a unit asks its guard, pgherd asks itself: a fenced node comes up as a standby or not at all.
async fn may_start(site: &Site<'_>) -> Result<()> {
    let name = site.name();
    let mark = match observe::observe_fence(site.host(), &site.places()).await {
        Fence::Open => return Ok(()),
        Fence::Fenced(mark) => mark,
        Fence::Unknown { why } => {
            return Err(Error::new(ErrorKind::NotFound, format!("cannot tell whether {name} is fenced"))
                .detail(format!("{why}. It was not started.")));
        }
    };
    for signal in ["standby.signal", "recovery.signal"] {
        let found = site.host().stat(&site.directory().join(signal)).await;
        if found.map_err(|error| could_not("look how it would start", site, error))?.is_some() {
            return Ok(());
        }
    }
    Err(Error::refused(format!("cannot start {name} as a primary: it is fenced"))
        .detail(format!("It is {mark}."))
        .hint(observe::ways_out_of_a_fence(&name)))
}

/// Runs what starts the server, and again for as long as one that was killed holds its lock files.
///
/// # Errors
/// When the host cannot tell how it stands; inside, what the last try ended with.
pub async fn launch(site: &Site<'_>, command: &Command) -> Result<Result<(), HostError>> {
    let deadline = Instant::now() + RELEASE;
    while let Err(error) = site.host().run(command).await {
        let waits = Instant::now() < deadline
            && observe::postmaster(site.host(), site.directory()).await?.is_none()
            && lock_file_is_left(site).await?;
        if !waits {
            return Ok(Err(error));
        }
        sleep(PAUSE).await;
    }
    Ok(Ok(()))
}

fn pg_ctl_start(site: &Site<'_>) -> Command {
    let log = site.places().log.join("startup.log").display().to_string();
    let seconds = START.as_secs().to_string();
    let directory = site.directory().display().to_string();
    let start = Command::new(site.programs.path("pg_ctl")).args([
        "start",
        "-D",
        directory.as_str(),
        "-l",
        log.as_str(),
        "-w",
        "-t",
        seconds.as_str(),
        "-s",
    ]);
    match &site.node.config_directory {
        None => start,
        Some(configuration) => {
            // pg_ctl gives the options to a shell.
            let file = configuration.join(declared::CONF_FILE).display().to_string().replace('\'', "'\\''");
            start.args(["-o", &format!("-c config_file='{file}'")])
        }
    }
}

async fn manager(site: &Site<'_>) -> Result<Manager> {
    let name = site.name();
    let could_not = |error| could_not("find out who starts and stops", site, error);
    let profile: Option<Profile> = if site.node.adopted {
        let bytes = site.host().read(&site.places().profile).await.map_err(could_not)?;
        bytes.and_then(|bytes| claim::read(&bytes).ok())
    } else {
        None
    };
    service::manager_of(site.server(&name), profile.as_ref()).await.map_err(could_not)
}

/// Tells whether a server that was told to start has ended, and nobody will start it again.
async fn has_given_up(site: &Site<'_>, manager: &Manager) -> Result<bool> {
    match manager {
        Manager::Systemd(unit) => {
            let state = service::unit_state(site.host(), unit).await;
            Ok(state.map_err(|error| could_not("ask after the unit of", site, error))?.has_given_up())
        }
        Manager::PgCtl | Manager::Debian { .. } => {
            Ok(observe::postmaster(site.host(), site.directory()).await?.is_none())
        }
    }
}

/// Renders the unit that the node should have, by its profile.
///
/// # Errors
/// When there is no profile that can be read.
pub async fn wanted_unit(site: &Site<'_>) -> Result<String> {
    let places = site.places();
    let bytes = site.host().read(&places.profile).await;
    let profile: Profile = bytes
        .map_err(|error| could_not("read the profile of", site, error))?
        .and_then(|bytes| claim::read(&bytes).ok())
        .ok_or_else(|| Error::failed(format!("cannot read the profile of {}", site.name())))?;
    // A profile that a later step writes anew says where the archive is.
    let profile =
        Profile { archive: Archive::of(site.cluster, site.doors.places(&site.node.host)), ..profile };
    unit::render(&profile, &places, Peers::of(site.cluster))
}

/// Tells whether the node's unit is there as it should be, and starts with its host.
///
/// # Errors
/// As [`wanted_unit`], and when the host cannot tell.
pub async fn has_unit(site: &Site<'_>) -> Result<bool> {
    let wanted = wanted_unit(site).await?;
    let seen = service::look_at_unit(site.host(), &site.unit()).await;
    let seen = seen.map_err(|error| could_not("look at the unit of", site, error))?;
    Ok(seen.enabled && seen.text == Some(wanted))
}

/// What the server has said last, and its unit, which knows of a guard or a start that never came to a log.
async fn last_words(site: &Site<'_>, manager: &Manager) -> Vec<String> {
    let mut lines = last_log_lines(site).await;
    if let Manager::Systemd(unit) = manager {
        lines.extend(service::last_journal_lines(site.host(), unit).await);
    }
    lines
}

/// A postmaster that was killed can hold its lock files, in the data directory and beside its socket, and its shared memory until the last of
/// its processes has gone and its parent has noticed, and no other starts before that. One that fails for another reason removes its own.
async fn lock_file_is_left(site: &Site<'_>) -> Result<bool> {
    let socket = site.places().socket.join(format!(".s.PGSQL.{}.lock", site.node.port));
    for file in [site.directory().join("postmaster.pid"), socket] {
        let found = site.host().stat(&file).await;
        if found.map_err(|error| could_not("look at the lock file of", site, error))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn wait_until_it_answers(site: &Site<'_>, manager: &Manager) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let error = match site.connect().await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let gone = matches!(error, DbError::NotListening { .. }) && has_given_up(site, manager).await?;
        if gone || Instant::now() >= deadline {
            return Err(Error::failed(format!("{} does not answer after its start", site.name()))
                .detail(last_words(site, manager).await.join("\n"))
                .hint(format!("Its log is in {}.", site.places().log.display()))
                .source(error));
        }
        sleep(PAUSE).await;
    }
}

/// Returns the last lines of the server's log that say what went wrong.
pub async fn last_log_lines(site: &Site<'_>) -> Vec<String> {
    let log = site.places().log;
    let mut names = site.host().list(&log).await.ok().flatten().unwrap_or_default();
    let own = debian_log(site);
    names.retain(|name| name.ends_with(".log") && own.as_ref().is_none_or(|own| own == name));
    let mut found = Vec::new();
    for name in names {
        let command =
            Command::new("tail").args(["-n", "40", "--", &log.join(&name).display().to_string()]).reads();
        let Ok(output) = site.host().run(&command).await else { continue };
        found.extend(
            output
                .text()
                .lines()
                .filter(|line| {
                    ["FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:"].iter().any(|word| line.contains(word))
                        && !line.contains("HINT:  Future log output will appear")
                })
                .map(str::to_owned),
        );
    }
    let skip = found.len().saturating_sub(4);
    found.split_off(skip)
}

/// Debian keeps the logs of all clusters in one directory: `postgresql-15-main.log`.
fn debian_log(site: &Site<'_>) -> Option<String> {
    site.node.log_directory.as_ref().filter(|log| log.ends_with("log/postgresql"))?;
    let mut names = site.directory().iter().rev().map(|name| name.to_string_lossy());
    let (name, version) = (names.next()?, names.next()?);
    Some(format!("postgresql-{version}-{name}.log"))
}

/// Stops the server with a fast shutdown; nothing happens if it does not run. Never turns into an immediate one.
///
/// # Errors
/// When it still runs after [`STOP`].
pub async fn stop(site: &Site<'_>) -> Result<()> {
    stop_within(site, STOP).await
}

/// Names what is left of a server that is ending, as its processes call themselves: `archiver archiving 0000…`. Empty if nothing is, or it
/// cannot be told.
pub async fn what_is_left(site: &Site<'_>) -> String {
    let pids = observe::processes(site.host(), site.directory()).await.unwrap_or_default();
    let mut left = Vec::new();
    for pid in pids {
        let title = site.host().read(Path::new(&format!("/proc/{pid}/cmdline"))).await.ok().flatten();
        let title = String::from_utf8_lossy(&title.unwrap_or_default()).replace('\0', " ");
        // The postmaster is called as it was started.
        if let Some(name) = title.trim().strip_prefix("postgres: ") {
            left.push(format!("{name} (process {pid})"));
        }
    }
    left.join(", ")
}

/// As [`stop`], with another limit. A server that does not end in time goes on ending: nothing takes a shutdown back.
///
/// # Errors
/// When it still runs after `limit`.
pub async fn stop_within(site: &Site<'_>, limit: Duration) -> Result<()> {
    let manager = manager(site).await?;
    let runs = observe::postmaster(site.host(), site.directory()).await?.is_some();
    // A unit whose server is down may be about to start it again.
    if !runs && !matches!(manager, Manager::Systemd(_)) {
        return Ok(());
    }
    let by_manager = manager.stop().map(|command| command.timeout(limit + Duration::from_secs(5)));
    let commands = by_manager.into_iter().chain([pg_ctl_stop(site, "fast", limit)]);
    for command in commands {
        let ended = site.host().run(&command).await;
        match (ended, observe::postmaster(site.host(), site.directory()).await?) {
            // It may have ended by itself between the look and the command.
            (_, None) => return Ok(()),
            // Somebody has started it behind its unit.
            (Ok(_), Some(_)) => {}
            (Err(error), Some(_)) => return Err(could_not("stop", site, error)),
        }
    }
    Err(Error::failed(format!("could not stop {}", site.name()))
        .detail("Something starts it again.")
        .hint(format!("Look who does: {}.", site.directory().join("postmaster.pid").display())))
}

/// Ends the server as a power cut would, also one whose processes are held (SIGSTOP) or that answers nobody: an immediate shutdown, and
/// after `patience` SIGKILL for what is left of it. Children that a postmaster has left behind, which end by themselves when they notice, get
/// none.
///
/// What starts it again by itself has to be told before: [`stop_within`].
///
/// # Errors
/// When one of its processes is still there after that.
pub async fn kill(site: &Site<'_>, patience: Duration) -> Result<()> {
    let leads = observe::postmaster(site.host(), site.directory()).await?.is_some();
    if leads && let Err(error) = site.host().run(&pg_ctl_stop(site, "immediate", Duration::ZERO)).await {
        tracing::debug!(%error, "an immediate shutdown");
    }
    let patience = if leads { patience } else { Duration::ZERO };
    let begun = Instant::now();
    loop {
        let left = observe::processes(site.host(), site.directory()).await?;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= patience {
            // All at once: what is held does not go on for a last step, as it would if it was let go first.
            let kill = Command::new("kill").args(["-s", "KILL", "--"]).args(left.iter().map(u32::to_string));
            match site.host().run(&kill).await {
                // One that has ended by itself is what we want.
                Ok(_) | Err(HostError::Exited { .. }) => {}
                Err(error) => return Err(could_not("end the processes of", site, error)),
            }
        }
        if begun.elapsed() >= patience + RELEASE {
            return Err(Error::failed(format!("could not end {}", site.name()))
                .detail(format!("Processes {left:?} still work in {}.", site.directory().display()))
                .hint("What SIGKILL does not end waits for a disk: power the host off."));
        }
        sleep(PAUSE).await;
    }
}

fn pg_ctl_stop(site: &Site<'_>, mode: &str, limit: Duration) -> Command {
    let directory = site.directory().display().to_string();
    let seconds = limit.as_secs().to_string();
    let wait: &[&str] = if limit.is_zero() { &["-W"] } else { &["-w", "-t", seconds.as_str()] };
    Command::new(site.programs.path("pg_ctl"))
        .args(["stop", "-D", directory.as_str(), "-m", mode, "-s"])
        .args(wait.iter().copied())
        .timeout(limit + Duration::from_secs(5))
}

/// Stops a node that this operation made.
///
/// # Errors
/// When it still runs after [`STOP`], and when the host cannot.
pub async fn stop_made(site: &Site<'_>) -> Result<()> {
    match observe::observe_claim(site.host(), &site.places(), site.node).await {
        observe::Claim::Ours(marker) if marker.operation == site.operation => {
            end_leftovers(site).await?;
            stop(site).await
        }
        observe::Claim::Ours(_)
        | observe::Claim::Other(_)
        | observe::Claim::None
        | observe::Claim::Unknown { .. } => Ok(()),
    }
}

/// Removes a node that this operation made: its data, its facts, its socket and its log; of one that took the place of a node whose
/// data was gone, only the data. Nothing happens where the marker names another operation: the marker is the first that is written.
///
/// # Errors
/// [`ErrorKind::Refused`] if the marker claims another directory, [`ErrorKind::NotFound`] if it cannot be read; and when the host cannot.
pub async fn remove_made(site: &Site<'_>) -> Result<()> {
    match observe::observe_claim(site.host(), &site.places(), site.node).await {
        observe::Claim::None => remove_bare_facts(site).await,
        observe::Claim::Ours(marker) if marker.operation == site.operation => {
            end_leftovers(site).await?;
            stop(site).await?;
            match marker.replaced.clone() {
                Some(replaced) => give_back(site, marker, replaced).await,
                None => remove(site, marker.directory_existed).await,
            }
        }
        observe::Claim::Ours(_) => Ok(()),
        observe::Claim::Other(_) => Err(Error::new(
            ErrorKind::Refused,
            format!("cannot remove {}: this operation did not make it", site.directory().display()),
        )
        .detail(format!("The marker of {} claims another directory.", site.name()))),
        observe::Claim::Unknown { why } => Err(Error::new(
            ErrorKind::NotFound,
            format!("could not see whether this operation made {}", site.directory().display()),
        )
        .detail(format!("The marker of {} could not be read: {why}.", site.name()))),
    }
}

/// Removes the data of a node that was made anew, and gives its directory back to the claim that it had before.
async fn give_back(site: &Site<'_>, marker: Marker, replaced: Replaced) -> Result<()> {
    empty_directory(site).await?;
    if !replaced.directory_there {
        remove_directory(site, site.directory()).await?;
    }
    let before = Marker {
        system_identifier: Some(replaced.system_identifier),
        operation: replaced.operation,
        replaced: None,
        ..marker
    };
    write_marker(site, &before).await
}

/// Removes everything of a stopped node, the marker last, so that a second run continues.
///
/// # Errors
/// When the host cannot.
pub async fn remove(site: &Site<'_>, keep_directory: bool) -> Result<()> {
    service::remove_unit(site.host(), &site.unit())
        .await
        .map_err(|error| could_not("remove the unit of", site, error))?;
    empty_directory(site).await?;
    if !keep_directory {
        remove_directory(site, site.directory()).await?;
    }
    forget(site).await
}

/// Removes what pgherd has beside the data of a node, the marker last.
///
/// # Errors
/// When the host cannot.
pub async fn forget(site: &Site<'_>) -> Result<()> {
    let places = site.places();
    // Of a socket or a log that stands elsewhere the directory is not pgherd's.
    let own = site.doors.places(&site.node.host).node(&site.name());
    for path in [&own.socket, &own.log, &own.spool] {
        remove_contents(site, path).await?;
        remove_directory(site, path).await?;
    }
    for path in [&places.passfile, &places.profile, &places.marker] {
        site.host().remove_file(path).await.map_err(|error| could_not("remove the files of", site, error))?;
    }
    remove_contents(site, &places.facts).await?;
    remove_directory(site, &places.facts).await
}

/// Removes what is left of the facts of a node when its marker is not there yet, or not any more: their empty directory.
///
/// # Errors
/// When the host cannot.
pub async fn remove_bare_facts(site: &Site<'_>) -> Result<()> {
    let facts = site.places().facts;
    let names =
        site.host().list(&facts).await.map_err(|error| could_not("look at the files of", site, error))?;
    // A write that was killed leaves its temporary file.
    let bare =
        |names: Vec<String>| names.iter().all(|name| name.starts_with('.') && name.contains(".pgherd-"));
    if !names.is_some_and(bare) {
        return Ok(());
    }
    remove_contents(site, &facts).await?;
    remove_directory(site, &facts).await
}

async fn empty_directory(site: &Site<'_>) -> Result<()> {
    end_leftovers(site).await?;
    if let Some(pid) = observe::postmaster(site.host(), site.directory()).await? {
        return Err(Error::refused(format!(
            "cannot empty {}: process {pid} runs for it",
            site.directory().display()
        )));
    }
    remove_contents(site, site.directory()).await
}

async fn remove_contents(site: &Site<'_>, path: &Path) -> Result<()> {
    remove_what_is_in(site.host(), path).await.map_err(|error| could_not("remove the files of", site, error))
}

async fn remove_directory(site: &Site<'_>, path: &Path) -> Result<()> {
    remove_empty(site.host(), path).await.map_err(|error| could_not("remove the directories of", site, error))
}

/// Removes a directory with all that is in it; no error if there is none.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn remove_whole(host: &dyn Host, path: &Path) -> Result<(), HostError> {
    remove_what_is_in(host, path).await?;
    remove_empty(host, path).await
}

async fn remove_what_is_in(host: &dyn Host, path: &Path) -> Result<(), HostError> {
    for name in host.list(path).await?.unwrap_or_default() {
        host.remove_tree(&path.join(name)).await?;
    }
    Ok(())
}

/// Removes an empty directory. Its parent may belong to root, so it is the caller who removes it; `rmdir` removes nothing else.
///
/// # Errors
/// [`HostError`] as told by the host.
pub async fn remove_empty(host: &dyn Host, path: &Path) -> Result<(), HostError> {
    if host.stat(path).await?.is_none() {
        return Ok(());
    }
    let command = Command::new("rmdir").args(["--", &path.display().to_string()]).user(RunAs::Caller);
    host.run(&command).await.map(drop)
}

/// Ends an `initdb`, `pg_basebackup` or `pg_rewind` that a killed pgherd left running for this data directory.
///
/// # Errors
/// When it does not end, and when the host cannot.
pub async fn end_leftovers(site: &Site<'_>) -> Result<()> {
    let pattern = format!(
        "(initdb|pg_basebackup|pg_rewind) -D {}( |$)",
        escape_pattern(&site.directory().display().to_string())
    );
    let look = Command::new("pgrep").args(["-f", "--", &pattern]).reads();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let pids: Vec<String> = match site.host().run(&look).await {
            Ok(output) => output.text().split_whitespace().map(str::to_owned).collect(),
            // pgrep ends with 1 when it found nothing.
            Err(HostError::Exited { status: 1, .. }) => match standalone_server(site).await? {
                None => return Ok(()),
                Some(pid) => vec![pid],
            },
            Err(error) => return Err(could_not("look for processes of", site, error)),
        };
        if Instant::now() >= deadline {
            return Err(Error::failed(format!(
                "processes {} still work on {}",
                pids.join(", "),
                site.directory().display()
            ))
            .hint("End them, then try again."));
        }
        // One that ends by itself in the meantime is what we want, so the status of kill does not matter.
        match site.host().run(&Command::new("kill").arg("-KILL").args(pids)).await {
            Ok(_) | Err(HostError::Exited { .. }) => sleep(PAUSE).await,
            Err(error) => return Err(could_not("end the processes of", site, error)),
        }
    }
}

/// Returns the process number of the server that `initdb` feeds through a pipe, if one works in the data directory: it outlives an
/// `initdb` that was killed, and would write into what is made next. It has its number in the lock file, with a minus (`miscinit.c`).
async fn standalone_server(site: &Site<'_>) -> Result<Option<String>> {
    let lock_file = site.directory().join("postmaster.pid");
    let lock_file =
        site.host().read(&lock_file).await.map_err(|error| could_not("read the files of", site, error))?;
    let lock_file = String::from_utf8_lossy(&lock_file.unwrap_or_default()).into_owned();
    let first = lock_file.lines().next().unwrap_or_default().trim();
    let Some(pid) = first.strip_prefix('-').and_then(|pid| pid.parse::<u32>().ok()) else { return Ok(None) };
    let directory = site.directory().display().to_string();
    let look = Command::new("readlink").args(["-f", "--", &format!("/proc/{pid}/cwd"), &directory]).reads();
    match site.host().run(&look).await {
        Ok(output) => {
            let text = output.text();
            let mut paths = text.lines();
            let works_there = matches!((paths.next(), paths.next()), (Some(own), Some(ours)) if own == ours);
            Ok(works_there.then(|| pid.to_string()))
        }
        // There is no such process any more, or it is another user's.
        Err(HostError::Exited { .. }) => Ok(None),
        Err(error) => Err(could_not("look for processes of", site, error)),
    }
}

fn escape_pattern(text: &str) -> String {
    text.chars().flat_map(|c| r".^$*+?()[]{}|\".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pg_basebackup_prints() {
        assert_eq!(parse_progress("24063/31000 kB (77%), 0/1 tablespace"), Some((24_063, 31_000)));
        assert_eq!(parse_progress("waiting for checkpoint"), None);
    }

    #[test]
    fn a_path_is_a_pattern_for_itself_alone() {
        assert_eq!(escape_pattern("/srv/a-1.x"), "/srv/a-1\\.x");
    }
}
