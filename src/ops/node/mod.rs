//! Work on a node's own files: it runs on the node, as its os-user, in a copy of this very program.
//!
//! The controller starts `LIB/HASH/pgherd node` through the host's door, gives it one [`NodeRequest`] as a line of JSON on standard input,
//! and reads [`Message`]s, one a line, on standard output. The last one is the report or the error. A child that ends without it is lost:
//! what it did is unknown, and nothing is done again blindly. A child stops when nobody reads its messages any more, when its input ends,
//! and when no empty line has come on it for a while: then the way to whoever started it is cut.

mod repository;
pub mod restore;
pub mod scratch;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use repository::{RepoCall, RepoReply, make_repository, prove, rekey, repository, serve, through};

use crate::engine::record::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Effect, Host, HostError, LineSink, Output, RunAs, Stdin};
use crate::ops::binary::{self, Build};
use crate::ops::observe::Doors;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::Label;
use crate::repo::manifest::Tablespace;
use crate::repo::{Key, Location};
use crate::topology::model::{Compression, Repository};
use crate::topology::partitions::{Keep, PartitionSet, TableName};
use crate::topology::places::Places;
use crate::units::ByteCount;

/// What a child can be asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRequest {
    /// One call to a repository; answered by [`RepoReply`].
    Repository { repository: Location, call: RepoCall },
    /// Copies a data directory into a backup; answered by [`Copied`].
    CopyForBackup(Box<CopyForBackup>),
    /// Chooses backup and WAL for a restore; answered by `ops::restore::survey::Survey`.
    PlanForRestore(Box<restore::PlanForRestore>),
    /// Copies a backup into a data directory; answered by [`restore::Restored`].
    CopyForRestore(Box<restore::CopyForRestore>),
    /// Removes the backups and the WAL that no rule keeps; answered by `ops::backup::expire::Expired`.
    ExpireBackups(ExpireBackups),
    /// Checks what the repository holds of a cluster; answered by `ops::backup::verify::Verified`.
    VerifyBackups(VerifyBackups),
    /// Stays, and ends and removes a scratch directory when whoever asked for it has died; never answered otherwise.
    GuardScratch(Box<scratch::Scratch>),
    /// Lists the WAL archive of a cluster; answered by `ops::wal::WalList`.
    ListWal(ListWal),
    /// Looks at what the repository keeps of a cluster; answered by `ops::kept::Kept`.
    LookAtKept(LookAtKept),
    /// Has pg_dump make a dump and stores it; answered by `ops::dump::Dumped`.
    MakeDump(Box<MakeDump>),
    /// Starts what lets the clients of a paused pooler go on by itself; answered when it stands.
    ExpirePause(Box<ExpirePause>),
    /// Holds back the clients of a host's pooler, or leads them elsewhere; answered as [`Wanted`] says.
    OnPoolers(Box<OnPoolers>),
    /// Stores the rows of a detached partition and drops it; answered by `ops::partition::Exported`.
    ExportPartition(Box<ExportPartition>),
    /// Brings the rows of a partition back into a table of their own; answered by `ops::partition::BroughtBack`.
    RestorePartition(Box<RestorePartition>),
    /// Copies what one repository holds of a cluster into another one; answered by `ops::backup::transfer::Transferred`.
    CopyBackups(CopyBackups),
    /// Lists the partitions whose rows are stored; answered by a list of [`crate::repo::export::ExportManifest`].
    ListExports { repository: Location, cluster: String },
}

/// The server of a node, as its os-user reaches it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalServer {
    /// As messages call it.
    pub name: String,
    /// Directory of its socket.
    pub socket: PathBuf,
    pub port: u16,
    pub user: String,
    /// How long a lock is waited for, and how often that is tried.
    pub lock_timeout: Duration,
    pub tries: u32,
}

/// Stores the rows of a detached partition and drops it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportPartition {
    pub repository: Location,
    pub herd: String,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    pub server: LocalServer,
    pub set: PartitionSet,
    pub table: TableName,
    /// The moment that the set is looked at for.
    pub at: Timestamp,
}

/// Brings the rows of a partition back into a table of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestorePartition {
    pub repository: Location,
    pub cluster: String,
    pub server: LocalServer,
    pub set: PartitionSet,
    /// The name that it had.
    pub partition: String,
    /// When it was exported; the last time if it is not said.
    pub exported_at: Option<Timestamp>,
    /// What the comment of the table says of it.
    pub until: Option<Timestamp>,
    pub at: Timestamp,
}

/// Lets the clients of a host's pooler go on after a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpirePause {
    /// The operation that holds them back.
    pub operation: String,
    /// Of its processes, the first one first.
    pub directories: Vec<PathBuf>,
    pub psql: PathBuf,
    pub port: u16,
    pub time: Duration,
    /// Whether it is the process that waits, and not the one that starts it.
    pub detached: bool,
}

/// Where an alias leads: what PgBouncer has as `host` and `port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aim {
    pub host: String,
    pub port: u16,
}

/// What is done to the processes of a host's pooler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Wanted {
    /// Hold their clients back; transactions that run have `grace` to end. Answered by `ops::pooler::Paused`.
    Pause { grace: Duration },
    /// Lead what leads to one node to another one, and let their clients go on. Answered by the aliases that lead there then.
    Turn {
        from: Aim,
        to: Aim,
        /// Whether nothing ends well on the way to the former node any more.
        lost: bool,
    },
}

/// One call to the poolers of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnPoolers {
    /// The operation that does it.
    pub operation: String,
    /// Of the processes, the first one first.
    pub directories: Vec<PathBuf>,
    pub psql: PathBuf,
    pub listen: IpAddr,
    pub port: u16,
    pub wanted: Wanted,
}

/// Looks at what the repository keeps of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookAtKept {
    pub repository: Location,
    pub cluster: String,
}

/// Copies backups, the WAL that they need, and exports from one repository into another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyBackups {
    pub from: Location,
    pub to: Location,
    pub cluster: String,
    /// Empty: all that are not there.
    pub labels: Vec<Label>,
    /// 0: as many as there are cores.
    pub workers: u32,
}

/// Makes a dump on the host of the primary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeDump {
    pub repository: Location,
    pub herd: String,
    pub cluster: String,
    pub node: String,
    pub name: String,
    pub database: String,
    pub schemas: Vec<String>,
    /// Holds pg_dump and pg_restore.
    pub programs: PathBuf,
    pub socket: PathBuf,
    pub port: u16,
    pub user: String,
    /// The scratch directory is made in this one.
    pub scratch: PathBuf,
    pub keep: Duration,
    pub timeout: Duration,
}

/// Lists the WAL archive of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListWal {
    pub repository: Location,
    pub cluster: String,
}

/// Removes the backups and the WAL of a cluster that no rule keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpireBackups {
    pub repository: Location,
    pub cluster: String,
    pub window: Option<Duration>,
    pub keep_full: Option<u32>,
    pub minimum_full: u32,
    /// How long exports are kept, of the partitioned tables of which that is said.
    pub exports: Vec<ExportsKept>,
    /// What the operator agreed to lose; `None`: only look.
    pub agreed: Option<Agreed>,
}

/// How long the exports of a partitioned table are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportsKept {
    pub database: String,
    pub table: TableName,
    pub keep: Keep,
    /// IANA name of the zone by which that is counted.
    pub timezone: String,
}

/// What may be removed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreed {
    pub backups: Vec<Label>,
    /// By their folders.
    pub exports: Vec<Key>,
}

/// Checks what the repository holds of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyBackups {
    pub repository: Location,
    pub cluster: String,
    /// Empty: all of them, and everything else.
    pub labels: Vec<Label>,
    pub depth: VerifyDepth,
    /// For what is chosen by chance.
    pub seed: u64,
    /// 0: as many as there are cores.
    pub workers: u32,
}

/// How deep a verification goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyDepth {
    /// Listings, and every small document.
    Quick,
    /// And chunks and WAL files by chance.
    Sampled,
    /// And every byte.
    Full,
}

/// Copies the data directory of a node, in which a backup was started, into the repository: everything but the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyForBackup {
    pub repository: Location,
    pub cluster: String,
    pub label: Label,
    pub system_identifier: SystemIdentifier,
    pub data_directory: PathBuf,
    /// Major version.
    pub version: u32,
    pub start_lsn: Lsn,
    pub timeline: TimelineId,
    pub tablespaces: Vec<DeclaredTablespace>,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    pub blocks_a_file: u32,
    /// 0: as many as there are cores.
    pub workers: u32,
    /// Bytes a second that may be read, if there is a limit.
    pub rate_limit: Option<ByteCount>,
    pub compression: Compression,
}

/// A tablespace as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredTablespace {
    pub oid: u32,
    pub location: PathBuf,
}

/// What a child has copied for a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copied {
    pub tablespaces: Vec<Tablespace>,
    pub files: u64,
    pub directories: u64,
    pub size: ByteCount,
    pub stored: ByteCount,
    pub objects: u32,
    pub damaged: Vec<DamagedFile>,
    pub damaged_pages: u64,
    pub files_blake3: crate::repo::seal::Blake3,
    pub files_stored: ByteCount,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
    pub workers: u32,
    /// Of what is stored, what an aborted run of this backup had stored already.
    pub taken_over: ByteCount,
}

/// A file with pages whose checksum is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedFile {
    /// Relative to the data directory.
    pub path: String,
    /// Block numbers within the relation.
    pub blocks: Vec<u32>,
}

/// How far a child is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub done: ByteCount,
    pub total: ByteCount,
    /// What `done` has become in the repository, for work that stores.
    pub stored: ByteCount,
}

/// A line of a child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The first line, before anything is done.
    Started {
        pid: u32,
    },
    Progress(Progress),
    Report(serde_json::Value),
    Error(Failure),
}

/// Where a child's progress goes.
pub type Told = Arc<dyn Fn(Progress) + Send + Sync>;

/// How a child runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Normal,
    /// Takes processor and disk only when nobody else wants them (`nice -n 19`, `ionice -c 3`).
    Low,
}

/// How long the work of a child may take: it ends itself, or is ended with the call.
const LONG: Duration = Duration::from_secs(60 * 86_400);

/// A host on which children can be started.
#[derive(Debug, Clone)]
pub struct NodeDoor {
    host: Arc<dyn Host>,
    program: PathBuf,
    places: Places,
    /// What is put there again when it is gone; `None` where nothing may be put.
    source: Option<Build>,
}

impl NodeDoor {
    /// Opens the door of a host that the cluster uses, and puts the program there unless it is.
    ///
    /// # Errors
    /// As [`binary::ensure_copy`].
    pub async fn open(doors: &Doors, host: &str) -> Result<Self> {
        Self::with(doors, host, &Build::own()).await
    }

    /// Opens it for another build than the one that runs.
    ///
    /// # Errors
    /// As [`NodeDoor::open`].
    pub async fn with(doors: &Doors, host: &str, build: &Build) -> Result<Self> {
        let places = doors.places(host);
        let host = doors.shared_host(host);
        let program = binary::ensure_copy(&*host, places, build).await?;
        Ok(Self { host, program, places: places.clone(), source: Some(build.clone()) })
    }

    /// Opens it without a look whether the program is there: that it is not shows when it is called, and then it is put there.
    ///
    /// # Errors
    /// When the build cannot be told.
    pub fn unseen(doors: &Doors, host: &str, build: &Build) -> Result<Self> {
        let places = doors.places(host);
        let program = places.copy(build.hash()?);
        let source = Some(build.clone());
        Ok(Self { host: doors.shared_host(host), program, places: places.clone(), source })
    }

    /// Opens it without putting anything there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when this build is not on the host.
    pub async fn if_installed(doors: &Doors, host: &str, build: &Build) -> Result<Self> {
        let places = doors.places(host);
        let host = doors.shared_host(host);
        let program = places.copy(build.hash()?);
        match host.stat(&program).await? {
            Some(_) => Ok(Self { host, program, places: places.clone(), source: None }),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("this build of pgherd is not installed on host {}", host.name()),
            )
            .detail(format!("Looked for {}.", program.display()))
            .hint("Install it: pgherd plan, then pgherd apply.")),
        }
    }

    /// Opens it only to look, without putting anything there: where this build is not on the host, the one that servers call is asked;
    /// `None` if neither is there.
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn to_look(doors: &Doors, host: &str, build: &Build) -> Result<Option<Self>, HostError> {
        let (places, host) = (doors.places(host), doors.shared_host(host));
        let own = build.hash().ok().map(|hash| places.copy(hash));
        for program in own.into_iter().chain([places.program()]) {
            if host.stat(&program).await?.is_some() {
                return Ok(Some(Self { host, program, places: places.clone(), source: None }));
            }
        }
        Ok(None)
    }

    pub fn host(&self) -> &dyn Host {
        &*self.host
    }

    /// Returns where a repository is for whoever works behind this door.
    pub fn location(&self, repository: &Repository) -> Location {
        Location { url: repository.url.clone(), access: self.places.access(repository) }
    }

    /// Has a child do what `request` asks, and returns its report.
    ///
    /// Dropping the future kills the child.
    ///
    /// # Errors
    /// The child's own error; or that it was lost, and then what it did is unknown.
    pub async fn call<T: DeserializeOwned>(
        &self,
        request: &NodeRequest,
        priority: Priority,
        told: Told,
    ) -> Result<T> {
        let mut heard = self.stream(request, priority, &told).await;
        if heard.nothing_began() && self.bring_again().await? {
            heard = self.stream(request, priority, &told).await;
        }
        match (heard.last, heard.ended) {
            (Some(Message::Report(report)), Ok(_)) => serde_json::from_value(report).map_err(|error| {
                Error::failed(format!("could not read the report from host {}", self.host.name()))
                    .source(error)
            }),
            (Some(Message::Error(failure)), _) => Err(Error::from(&failure)),
            (_, Err(error)) => Err(error.into()),
            (_, Ok(_)) => {
                Err(Error::failed(format!("pgherd on host {} ended without a report", self.host.name()))
                    .detail("What it did is unknown."))
            }
        }
    }

    async fn stream(&self, request: &NodeRequest, priority: Priority, told: &Told) -> Heard {
        let said: Arc<Mutex<(bool, Option<Message>)>> = Arc::default();
        let (hears, told) = (Arc::clone(&said), Arc::clone(told));
        let lines: LineSink = Arc::new(move |is_stderr, line| {
            if is_stderr {
                return;
            }
            let hears = || hears.lock().unwrap_or_else(PoisonError::into_inner);
            match serde_json::from_str(line) {
                Ok(Message::Started { pid }) => {
                    hears().0 = true;
                    tracing::debug!(pid, "a child has started");
                }
                Ok(Message::Progress(progress)) => told(progress),
                Ok(message @ (Message::Report(_) | Message::Error(_))) => hears().1 = Some(message),
                Err(error) => tracing::warn!(%error, line, "a child said what we do not understand"),
            }
        });
        let ended = self.host.stream(&self.command(request, priority), lines).await;
        let (started, last) = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
        Heard { started, last, ended }
    }

    /// Puts the program there again if it is gone: another station that knew nothing of this work may have removed it as an older build.
    async fn bring_again(&self) -> Result<bool> {
        let Some(build) = &self.source else { return Ok(false) };
        if self.host.stat(&self.program).await?.is_some() {
            return Ok(false);
        }
        binary::ensure_copy(&*self.host, &self.places, build).await?;
        Ok(true)
    }

    fn command(&self, request: &NodeRequest, priority: Priority) -> Command {
        let program = self.program.display().to_string();
        let command = match priority {
            Priority::Normal => Command::new(&self.program),
            Priority::Low => Command::new("nice").args(["-n", "19", "ionice", "-c", "3", &program]),
        };
        let input = serde_json::to_vec(request).expect("requests are plain data");
        let mut command = command.arg("node").stdin(Stdin::Line(input)).user(RunAs::OsUser).timeout(LONG);
        command.effect = request.effect();
        command
    }
}

/// What came of a child.
struct Heard {
    started: bool,
    last: Option<Message>,
    ended: Result<Output, HostError>,
}

impl Heard {
    /// Tells whether the child certainly did nothing: it says that it has started before it does anything, and it was waited for.
    fn nothing_began(&self) -> bool {
        let waited = matches!(self.ended, Err(HostError::NotStarted { .. } | HostError::Exited { .. }));
        waited && !self.started && self.last.is_none()
    }
}

impl NodeRequest {
    fn effect(&self) -> Effect {
        match self {
            Self::Repository { call, .. } => call.effect(),
            Self::PlanForRestore(_) | Self::ListWal(_) | Self::LookAtKept(_) | Self::ListExports { .. } => {
                Effect::Reads
            }
            Self::CopyForBackup(_)
            | Self::CopyForRestore(_)
            | Self::ExpireBackups(_)
            | Self::VerifyBackups(_)
            | Self::CopyBackups(_)
            | Self::MakeDump(_)
            | Self::ExpirePause(_)
            | Self::OnPoolers(_)
            | Self::ExportPartition(_)
            | Self::RestorePartition(_)
            | Self::GuardScratch(_) => Effect::Changes,
        }
    }
}

type WriteLine = dyn Fn(&str) -> io::Result<()> + Send + Sync;

/// How a child tells what it does. It stops when nobody listens any more: whoever started it is dead, and so is the session that
/// holds the backup.
pub struct Reporter {
    write: Box<WriteLine>,
    alone: Arc<AtomicBool>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("alone", &self.alone).finish_non_exhaustive()
    }
}

impl Reporter {
    /// Makes one that writes lines with `write`.
    pub fn new(write: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { write: Box::new(write), alone: Arc::default() }
    }

    fn say(&self, message: &Message) {
        let line = serde_json::to_string(message).expect("messages have text keys");
        if (self.write)(&line).is_err() {
            self.alone.store(true, Ordering::Relaxed);
        }
    }

    /// Tells that the request was understood and the work begins.
    pub fn begin(&self) {
        self.say(&Message::Started { pid: std::process::id() });
    }

    pub fn progress(&self, progress: Progress) {
        self.say(&Message::Progress(progress));
    }

    /// Tells how the work ended; the last line.
    pub fn end<T: Serialize>(&self, ended: &Result<T>) {
        match ended {
            Ok(report) => self.say(&Message::Report(
                serde_json::to_value(report).expect("reports have text keys and no failing Serialize"),
            )),
            Err(error) => self.say(&Message::Error(Failure::from(error))),
        }
    }

    /// Returns what says that nobody listens any more, to be set by whoever finds that out elsewhere.
    pub fn solitude(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.alone)
    }

    /// Tells whether nobody listens any more.
    pub fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::host::local::LocalHost;

    /// A program that answers with its report, and one that says nothing; each writes down that it ran.
    const ANSWERS: &str = "echo '{\"started\":{\"pid\":1}}'; echo '{\"report\":7}'";
    const SILENT: &str = "exit 3";

    fn door(directory: &std::path::Path, does: &str) -> (NodeDoor, Places) {
        let at = |name: &str| Some(directory.join(name).display().to_string());
        let places = Places::decide(true, |variable| match variable {
            "PGHERD_LIB_DIR" => at("lib"),
            "PGHERD_CONFIG_DIR" => at("config"),
            "PGHERD_STATE_DIR" => at("state"),
            _ => None,
        })
        .unwrap();
        let file = directory.join("program");
        let ran = directory.join("ran");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'pgherd 1.2.3' && exit\necho ran >>{}\n{does}\n",
            ran.display()
        );
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let build = Build::of(file, "1.2.3");
        let program = places.copy(build.hash().unwrap());
        let host = Arc::new(LocalHost::own("here"));
        (NodeDoor { host, program, places: places.clone(), source: Some(build) }, places)
    }

    async fn call(door: &NodeDoor, priority: Priority) -> Result<u32> {
        let request =
            NodeRequest::LookAtKept(LookAtKept { repository: Location::plain(""), cluster: String::new() });
        door.call(&request, priority, Arc::new(|_| ())).await
    }

    #[tokio::test]
    async fn a_copy_that_was_removed_in_the_middle_of_the_work_is_put_there_again() {
        let directory = tempfile::tempdir().unwrap();
        let (door, places) = door(directory.path(), ANSWERS);
        for priority in [Priority::Normal, Priority::Low] {
            assert_eq!(call(&door, priority).await.unwrap(), 7);
            std::fs::remove_dir_all(places.lib()).unwrap();
        }
        let only_looks = NodeDoor { source: None, ..door };
        assert!(call(&only_looks, Priority::Normal).await.is_err());
        assert!(!places.lib().exists());
    }

    #[tokio::test]
    async fn a_child_that_ends_without_a_word_is_not_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let (door, _) = door(directory.path(), SILENT);
        assert!(call(&door, Priority::Normal).await.is_err());
        let ran = || std::fs::read_to_string(directory.path().join("ran")).unwrap().lines().count();
        assert_eq!(ran(), 1);
        assert!(call(&door, Priority::Normal).await.is_err());
        assert_eq!(ran(), 2);
    }
}
