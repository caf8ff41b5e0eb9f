//! A scratch copy: restored to a directory of its own, recovered to the target, and never part of the herd.
//!
//! It archives nothing, follows nobody, is reached over its own Unix socket alone, and runs no logical replication. What belongs to it lies
//! beside it in `DIR-pgherd`: its profile, socket, log, and the state by which an interrupted restore is repeated.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::dress::OLD_PLACE;
use super::prepare::{self, GivenUp, Moved, Prepared, Remap, Room, beside};
use super::recover::{self, Achieved};
use crate::db::{promotion, queries};
use crate::engine::interrupt::Interrupt;
use crate::engine::journal::hex;
use crate::engine::lease::{Held, Purpose};
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs::Programs;
use crate::host::{Command, FileKind, Host, HostError};
use crate::ops::binary::{self, Build};
use crate::ops::context::Context;
use crate::ops::node::restore::{Claim, CopyForRestore, Dressing, Restored, Wish};
use crate::ops::node::{NodeRequest, Priority, Progress};
use crate::ops::observe::{self, Doors};
use crate::ops::provision::{self, Site};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::{ClusterKeys, Label};
use crate::topology::checks::DeclaredChecks;
use crate::topology::claim::{self, Archive, Profile};
use crate::topology::declared::{self, NodeWish, Setting};
use crate::topology::model::{Cluster, Herd, Node, Promote};
use crate::topology::places::Places;
use crate::units::ByteCount;

/// The name of the copy within its cluster.
pub const NAME: &str = "restored";
/// The memory that a copy is tuned for, if the topology states none: it shares the host with others.
const MEMORY: ByteCount = ByteCount(1 << 30);
/// Where `psql -h DIRECTORY` looks without being told a port.
pub const PORT: u16 = 5432;
/// What fits into the path of a Unix socket (`UNIXSOCK_PATH_BUFLEN`), with its end.
const SOCKET_PATH: usize = 107;
const PROMOTION: Duration = Duration::from_secs(600);

/// What becomes of a copy at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It accepts writes.
    Promote,
    /// It can be read, and goes no further.
    Pause,
    /// It is stopped there; when it is started again it is paused.
    Shutdown,
}

/// What the operator asks for.
#[derive(Debug, Clone)]
pub struct Request {
    pub wish: Wish,
    /// Absolute.
    pub directory: PathBuf,
    pub remap: Remap,
    pub port: u16,
    pub action: Action,
    /// Whether it is started at all.
    pub start: bool,
    /// Whether a finished copy may be there, of which only what differs is written.
    pub delta: bool,
    /// 0: as many as there are cores.
    pub workers: u32,
}

/// What a restore does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Copies,
    Recovers,
    Promotes,
}

impl Phase {
    /// Says it in a fragment.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Copies => "copies",
            Self::Recovers => "replays WAL",
            Self::Promotes => "promotes",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Phase(Phase),
    Progress(Progress),
    /// Recovery is here, on its way from the first LSN to the last.
    Replay {
        at: Lsn,
        from: Lsn,
        to: Lsn,
    },
}

/// Where events go.
pub type Tell = Arc<dyn Fn(Event) + Send + Sync>;

/// What is in the target directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectoryState {
    New,
    Empty,
    /// An earlier run of this command did not end.
    Unfinished,
    /// A copy that this command has made.
    Finished,
    /// Something else.
    NotEmpty,
}

/// What would be done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    pub cluster: String,
    pub repository: String,
    pub target: String,
    pub directory: PathBuf,
    pub directory_state: DirectoryState,
    pub survey: super::survey::Survey,
    pub primary: Option<prepare::SeenPrimary>,
    pub tablespaces: Vec<Moved>,
    pub room: Vec<Room>,
    pub gives_up: GivenUp,
    /// What keeps it from being done, as whole sentences.
    pub obstacles: Vec<String>,
    pub notes: Vec<String>,
}

/// How a restore ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub cluster: String,
    pub repository: String,
    pub target: String,
    pub directory: PathBuf,
    pub label: Label,
    /// Where replay begins.
    pub from: Lsn,
    pub state: State,
    pub copied: Restored,
    /// `None` if it was not started.
    pub achieved: Option<Achieved>,
    /// The copy's own timeline, once promoted; nobody else will see it.
    pub promoted_to: Option<TimelineId>,
    pub gives_up: GivenUp,
    pub tablespaces: Vec<Moved>,
    pub socket_directory: PathBuf,
    pub port: u16,
    pub superuser: String,
    /// Its profile, socket and log.
    pub beside: PathBuf,
    pub bin_directory: PathBuf,
    pub seconds: Seconds,
    pub notes: Vec<String>,
}

/// What a restored copy is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepts writes.
    Promoted,
    /// Can be read.
    Paused,
    Stopped,
    /// Complete; recovers when it is started.
    ReadyToStart,
}

/// How long each phase took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    pub choose: f64,
    pub copy: f64,
    pub replay: f64,
    pub promote: f64,
    pub all: f64,
}

/// The state of a copy, beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: u32,
    /// Of the restore; repeating it keeps the number.
    id: String,
    cluster: String,
    directory: PathBuf,
    finished: bool,
}

impl Saved {
    fn text(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("plain data");
        bytes.push(b'\n');
        bytes
    }
}

const FORMAT: u32 = 1;
/// The file that holds [`Saved`].
const SAVED: &str = "restore.json";
/// The program that the copy's restore_command calls.
const PROGRAM: &str = "pgherd";

/// Says what a restore would do.
///
/// # Errors
/// As [`prepare::prepare`].
pub async fn preview(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    request: &Request,
) -> Result<Preview> {
    let begun = prepare_all(context, herd, cluster, request).await?;
    let Begun { prepared, moved, room, found, .. } = begun;
    let mut obstacles = Vec::new();
    let mut obstacle = |error: Error| {
        obstacles.push(format!("{}. {}", error.what(), error.detail_text().unwrap_or_default()));
    };
    prepare::refuse_without_room(&room).unwrap_or_else(&mut obstacle);
    found.allow(request).map(drop).unwrap_or_else(&mut obstacle);
    let last = prepared.survey.choice.last.as_ref().map(|mark| mark.at);
    let next = next_of(&prepared);
    Ok(Preview {
        cluster: cluster.name.clone(),
        repository: prepared.repository.name.clone(),
        target: request.wish.target.to_string(),
        directory: request.directory.clone(),
        directory_state: found.state,
        tablespaces: moved,
        room,
        gives_up: prepare::given_up(&prepared, last.or(reached_by_name(request)), next),
        obstacles,
        primary: prepared.primary,
        survey: prepared.survey,
        notes: prepared.notes,
    })
}

/// The moment that the target itself names.
fn reached_by_name(request: &Request) -> Option<Timestamp> {
    match request.wish.target {
        crate::ops::node::restore::Target::Time(at) => Some(at),
        crate::ops::node::restore::Target::Latest
        | crate::ops::node::restore::Target::Immediate
        | crate::ops::node::restore::Target::Lsn(_)
        | crate::ops::node::restore::Target::Xid(_)
        | crate::ops::node::restore::Target::Name(_) => None,
    }
}

/// Returns about which number the first transaction behind the target has, with the primary's epoch.
fn next_of(prepared: &Prepared) -> Option<u64> {
    let primary = prepared.primary.as_ref()?.next_transaction?;
    let crate::pg::wal_record::MarkKind::Commit { xid } = prepared.survey.choice.next.as_ref()?.kind else {
        return None;
    };
    let same_epoch = primary >> 32 << 32 | u64::from(xid);
    Some(if same_epoch > primary { same_epoch - (1 << 32) } else { same_epoch })
}

struct Begun {
    prepared: Prepared,
    host: Arc<dyn Host>,
    moved: Vec<Moved>,
    room: Vec<Room>,
    found: Found,
    chosen_in: Duration,
}

async fn prepare_all(context: &Context, herd: &Herd, cluster: &Cluster, request: &Request) -> Result<Begun> {
    let begun = Instant::now();
    let nodes: Vec<(String, &Node)> = herd
        .clusters
        .iter()
        .flat_map(|cluster| cluster.nodes.iter().map(|node| (cluster.full_name(&node.name), node)))
        .collect();
    prepare::refuse_nodes(&request.directory, &nodes)?;
    let on = &cluster.preferred().host;
    let prepared = prepare::prepare(context, cluster, on, &request.wish).await?;
    let host = prepared.doors.shared_host(on);
    let moved = request.remap.decide(&prepared.survey, &request.directory)?;
    let room = prepare::room(&*host, &prepared.survey, &request.directory, &moved).await?;
    let found = look(&*host, cluster, &request.directory).await?;
    Ok(Begun { prepared, host, moved, room, found, chosen_in: begun.elapsed() })
}

/// What is in the target directory, and what an earlier run has left beside it.
struct Found {
    state: DirectoryState,
    saved: Option<Saved>,
}

impl Found {
    /// Returns the number under which the directory is used.
    fn allow(&self, request: &Request) -> Result<String> {
        let directory = request.directory.display();
        match (self.state, &self.saved) {
            (DirectoryState::New | DirectoryState::Empty, _) => new_id(),
            (DirectoryState::Unfinished, Some(saved)) => Ok(saved.id.clone()),
            (DirectoryState::Finished, Some(saved)) if request.delta => Ok(saved.id.clone()),
            (DirectoryState::Finished, _) => {
                Err(Error::refused(format!("cannot restore into {directory}: it holds a finished copy"))
                    .detail("An earlier restore made it, and it may be in use.")
                    .hint("Name another directory, or write only what differs into this one with --delta, which takes all that was \
                           changed in it."))
            }
            (DirectoryState::NotEmpty | DirectoryState::Unfinished, _) => {
                Err(Error::refused(format!("cannot restore into {directory}: it is not empty"))
                    .detail("No unfinished restore of this command made what is in it. Nothing in it was changed.")
                    .hint("Name a directory that is not there yet, or move this one away."))
            }
        }
    }
}

fn new_id() -> Result<String> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    Ok(hex(&random))
}

/// WAL that its restore_command has fetched ahead.
const SPOOL: &str = "spool";

fn facts_of(directory: &Path) -> PathBuf {
    beside(directory, "-pgherd")
}

async fn look(host: &dyn Host, cluster: &Cluster, directory: &Path) -> Result<Found> {
    if let Some(stat) = host.stat(directory).await?
        && !matches!(stat.kind, FileKind::Directory | FileKind::Link)
    {
        return Ok(Found { state: DirectoryState::NotEmpty, saved: None });
    }
    let saved = host
        .read(&facts_of(directory).join(SAVED))
        .await?
        .and_then(|bytes| serde_json::from_slice::<Saved>(&bytes).ok())
        .filter(|saved| {
            saved.format == FORMAT && saved.directory == directory && saved.cluster == cluster.name
        });
    let state = match (host.list(directory).await?, &saved) {
        (None, _) => DirectoryState::New,
        (Some(names), _) if names.is_empty() => DirectoryState::Empty,
        (Some(_), Some(saved)) if saved.finished => DirectoryState::Finished,
        (Some(_), Some(_)) => DirectoryState::Unfinished,
        (Some(_), None) => DirectoryState::NotEmpty,
    };
    Ok(Found { state, saved })
}

/// Restores a cluster to a directory of its own, and has it recover to the target.
///
/// # Errors
/// `Refused` when the directory may not be used or no backup reaches the target; `Interrupted` on request; when the backup, the archive or
/// the server fails. A copy that did not reach its target is never promoted; running the same again goes on.
pub async fn restore(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    request: &Request,
    tell: Tell,
    interrupt: &Interrupt,
) -> Result<Report> {
    let all = Instant::now();
    let begun = prepare_all(context, herd, cluster, request).await?;
    let id = begun.found.allow(request)?;
    prepare::refuse_without_room(&begun.room)?;
    let survey = &begun.prepared.survey;
    let keys = ClusterKeys::new(&cluster.name).system(survey.system_identifier);
    let labels = vec![survey.choice.backup.clone()];
    let held = Held::take_to_use(&begun.prepared.repo, &keys, Purpose::Restore, labels).await?;
    let ended = async {
        let copy = Copy::new(context, herd, cluster, request, &begun, id).await?;
        copy.end_leftover(&copy.site()).await?;
        let run = copy.run(&tell, all);
        let ended = tokio::select! {
            biased;
            () = interrupt.asked(1) => Err(Error::new(ErrorKind::Interrupted, "the restore was interrupted")
                .detail("The copy did not reach its target, and was not promoted.")
                .hint("Run the same restore again: it goes on with what is there.")),
            why = held.lost() => Err(why),
            ended = run => ended,
        };
        if let Err(error) = ended {
            return Err(copy.stop_after(error).await);
        }
        ended
    }
    .await;
    if let Err(error) = held.release().await {
        tracing::warn!(%error, "could not give the lease back; it expires by itself");
    }
    ended
}

/// A copy that is being made.
struct Copy<'a> {
    herd: &'a Herd,
    /// The cluster with the copy as its only node.
    cluster: Cluster,
    request: &'a Request,
    begun: &'a Begun,
    id: String,
    doors: Doors,
    programs: Programs,
    /// This build in `LIB/HASH`, from which the copy gets its own.
    installed: PathBuf,
    users: Vec<String>,
}

impl<'a> Copy<'a> {
    async fn new(
        context: &Context,
        herd: &'a Herd,
        cluster: &Cluster,
        request: &'a Request,
        begun: &'a Begun,
        id: String,
    ) -> Result<Self> {
        let on = cluster.preferred().host.clone();
        let found = begun.prepared.survey.manifest.major();
        if found != cluster.postgres.version {
            return Err(Error::refused(format!(
                "backup {} is of PostgreSQL {found}, and {} is declared with {}",
                begun.prepared.survey.choice.backup, cluster.name, cluster.postgres.version
            ))
            .hint("Restore it with a topology that declares that version."));
        }
        let programs = begun.prepared.doors.programs(cluster, &on).await?.clone();
        let mut own = cluster.clone();
        own.nodes = vec![Node {
            name: NAME.to_owned(),
            host: on,
            port: request.port,
            data_directory: request.directory.clone(),
            config_directory: None,
            socket_directory: None,
            log_directory: None,
            adopted: false,
            preferred: true,
            promote: Promote::ByHand,
            pool_connections: None,
            health: DeclaredChecks::new(),
        }];
        own.synchronous = None;
        own.poolers = None;
        // What they tune for is the whole host; the copy has what pgherd.conf of the backup says, but for memory.
        own.postgres.settings.clear();
        let facts = facts_of(&request.directory);
        let on_host = context.places.on(own.reach(&own.nodes[0].host));
        let lib = on_host.lib().display().to_string();
        let beside = facts.display().to_string();
        let places = Places::decide(true, |name| match name {
            "PGHERD_CONFIG_DIR" | "PGHERD_STATE_DIR" => Some(beside.clone()),
            "PGHERD_LIB_DIR" => Some(lib.clone()),
            _ => None,
        })?;
        let doors = Doors::open(&own, places, &context.gate)?;
        let installed = on_host.copy(Build::own().hash()?);
        let mut users = vec![begun.host.os_user().to_owned(), begun.host.caller().to_owned()];
        users.dedup();
        let copy = Self { herd, cluster: own, request, begun, id, doors, programs, installed, users };
        copy.refuse_long_socket()?;
        Ok(copy)
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    fn site(&self) -> Site<'_> {
        Site {
            herd: &self.herd.name,
            operation: &self.id,
            cluster: &self.cluster,
            node: self.node(),
            doors: &self.doors,
            programs: &self.programs,
            users: &self.users,
        }
    }

    /// A socket whose path is too long cannot be made; better now than after the copy.
    fn refuse_long_socket(&self) -> Result<()> {
        let socket = self.site().places().socket.join(format!(".s.PGSQL.{}", self.request.port));
        if socket.as_os_str().len() <= SOCKET_PATH {
            return Ok(());
        }
        Err(Error::usage(format!("the path {} is too long", self.request.directory.display())).detail(format!(
            "The copy's Unix socket would be {}, which has more than the {SOCKET_PATH} bytes that the operating system takes.",
            socket.display()
        )))
    }

    async fn run(&self, tell: &Tell, all: Instant) -> Result<Report> {
        let site = self.site();
        self.make_beside(&site).await?;
        let (program, note) = self.own_program(&site).await?;
        tell(Event::Phase(Phase::Copies));
        let copying = Instant::now();
        let mut copied = self.copy(tell, &program).await?;
        copied.notes.extend(note);
        let mut seconds = Seconds {
            choose: self.begun.chosen_in.as_secs_f64(),
            copy: copying.elapsed().as_secs_f64(),
            ..Seconds::default()
        };
        self.hold_settings(&site).await?;
        let mut report = self.report(copied);
        if self.request.start {
            self.recover(&site, tell, &mut report, &mut seconds).await?;
        }
        self.save(&site, true).await?;
        seconds.all = all.elapsed().as_secs_f64();
        report.seconds = seconds;
        Ok(report)
    }

    /// Stops the server that an earlier run of this restore has left recovering.
    async fn end_leftover(&self, site: &Site<'_>) -> Result<()> {
        let host = site.host();
        if observe::postmaster(host, &self.request.directory).await?.is_none() {
            return Ok(());
        }
        match self.begun.found.state {
            // Nobody was told of it yet.
            DirectoryState::Unfinished => provision::stop(site).await,
            DirectoryState::New
            | DirectoryState::Empty
            | DirectoryState::Finished
            | DirectoryState::NotEmpty => Err(Error::refused(format!(
                "cannot restore into {}: a server runs in it",
                self.request.directory.display()
            ))
            .detail("Nothing in the directory was changed.")
            .hint(format!(
                "Stop it first: {} stop -D {}",
                self.programs.path("pg_ctl").display(),
                self.request.directory.display()
            ))),
        }
    }

    /// Makes the directories and writes the profile that the copy's restore_command reads.
    async fn make_beside(&self, site: &Site<'_>) -> Result<()> {
        let (host, places, facts) = (site.host(), site.places(), facts_of(&self.request.directory));
        let in_it = host.list(&facts).await?.unwrap_or_default();
        // A command that was killed may have left the half of its first file (`Host::write_atomic`).
        let is_ours = |name: &String| *name == SAVED || name.starts_with(&format!(".{SAVED}."));
        if self.begun.found.saved.is_none() && !in_it.is_empty() && !in_it.iter().any(is_ours) {
            return Err(Error::refused(format!("cannot use {}: it is not empty", facts.display()))
                .detail("The profile, socket and log of the copy belong there. Nothing in it was changed."));
        }
        // First of all: by this a repetition knows the rest again.
        host.make_directory(&facts, 0o755).await?;
        self.save(site, false).await?;
        let mut directories = vec![
            (places.facts.clone(), 0o750),
            (places.socket.clone(), 0o755),
            (places.log.clone(), 0o750),
            (self.request.directory.clone(), 0o700),
        ];
        directories.extend(self.begun.moved.iter().map(|moved| (moved.to.clone(), 0o700)));
        for (path, mode) in directories {
            host.make_directory(&path, mode).await?;
        }
        let survey = &self.begun.prepared.survey;
        let profile = Profile {
            format: claim::FORMAT,
            herd: self.herd.name.clone(),
            cluster: self.cluster.name.clone(),
            node: NAME.to_owned(),
            host: self.node().host.clone(),
            os_user: host.os_user().to_owned(),
            version: self.programs.version.major,
            system_identifier: survey.system_identifier,
            data_directory: self.request.directory.clone(),
            bin_directory: self.programs.directory.clone(),
            socket_directory: places.socket.clone(),
            log_directory: places.log.clone(),
            passfile: places.passfile.clone(),
            port: self.request.port,
            slot: self.cluster.slot_name(NAME),
            memory: self.memory(),
            archive: Archive::of(
                &self.cluster,
                self.begun.prepared.doors.places(&self.cluster.preferred().host),
            )
            .map(|archive| Archive { spool: Some(facts.join(SPOOL)), ..archive }),
            adopted: None,
            // A copy belongs to no cluster.
            peers: Vec::new(),
        };
        provision::write(site, &places.profile, &claim::write(&profile), 0o640).await
    }

    /// Gives the copy a program of its own beside it, for its restore_command, and returns where that is; with a note if it has to be
    /// another one.
    ///
    /// A copy may be stopped for months and then be started again. `LIB/HASH` is removed when no operation needs that build any more, and
    /// `LIB/pgherd` leads to a build that may know another format, or to nothing: where nobody has run `apply` there is no link, and
    /// `destroy` takes it. What lies beside the copy is left alone by all three, and moves and goes together with the profile that it reads.
    async fn own_program(&self, site: &Site<'_>) -> Result<(PathBuf, Option<String>)> {
        let (host, own) = (site.host(), facts_of(&self.request.directory).join(PROGRAM));
        let [from, to, beside] = [self.installed.clone(), own.clone(), own.with_extension("new")]
            .map(|path| path.display().to_string());
        let run = async |program: &str, args: &[&str]| {
            let command = Command::new(program).args(args.iter().copied()).timeout(binary::SEND);
            host.run(&command).await
        };
        let compare = Command::new("cmp").args(["-s", "--", &from, &to]).reads();
        if host.run(&compare).await.is_err() {
            let could_not = |error: HostError| {
                Error::failed(format!("could not put pgherd beside {}", self.request.directory.display()))
                    .hint("Its restore_command calls it there. Make room, then run the same restore again.")
                    .source(error)
            };
            run("cp", &["--reflink=auto", "--", &from, &beside]).await.map_err(could_not)?;
            run("chmod", &["0755", "--", &beside]).await.map_err(could_not)?;
            run("sync", &["--", &beside]).await.map_err(could_not)?;
            run("mv", &["-f", "-T", "--", &beside, &to]).await.map_err(could_not)?;
        }
        let version = Command::new(&own).arg("--version").reads();
        match host.run(&version).await {
            Ok(_) => Ok((own, None)),
            Err(error @ (HostError::Lost { .. } | HostError::File { .. })) => Err(error.into()),
            // A file system for data may be mounted noexec.
            Err(HostError::NotStarted { .. } | HostError::Exited { .. }) => {
                host.remove_file(&own).await?;
                let note = format!(
                    "no program can run beside {}, so its restore_command names {from}: before that build is removed, let the copy reach its \
                     target",
                    self.request.directory.display()
                );
                Ok((self.installed.clone(), Some(note)))
            }
        }
    }

    fn memory(&self) -> ByteCount {
        self.cluster.postgres.tune_memory.map_or(MEMORY, |stated| stated.min(MEMORY))
    }

    async fn save(&self, site: &Site<'_>, finished: bool) -> Result<()> {
        let saved = Saved {
            format: FORMAT,
            id: self.id.clone(),
            cluster: self.cluster.name.clone(),
            directory: self.request.directory.clone(),
            finished,
        };
        provision::write(site, &facts_of(&self.request.directory).join(SAVED), &saved.text(), 0o640).await
    }

    /// Returns the content of the copy's `pgherd.node.conf`.
    fn settings(&self, program: &Path) -> Vec<Setting> {
        let site = self.site();
        let mut places = site.places();
        program.clone_into(&mut places.program);
        let wish = NodeWish { upstream: None, synchronous: String::new(), memory: self.memory() };
        let mut settings = declared::node_settings(&self.cluster, self.node(), &wish, &places);
        let mut set = |name: &str, value: &str| {
            settings.retain(|(other, _)| other != name);
            settings.push((name.to_owned(), value.to_owned()));
        };
        for (name, value) in CLOSED {
            set(name, value);
        }
        for (name, value) in recover::settings(&self.begun.prepared.survey.choice) {
            set(&name, &value);
        }
        settings.sort();
        settings
    }

    async fn copy(&self, tell: &Tell, program: &Path) -> Result<Restored> {
        let prepared = &self.begun.prepared;
        let settings = self.settings(program);
        let mut neutral: Vec<String> = OLD_PLACE.iter().map(|name| (*name).to_owned()).collect();
        neutral.extend(settings.iter().map(|(name, _)| name.clone()));
        let request = NodeRequest::CopyForRestore(Box::new(CopyForRestore {
            repository: prepared.doors.location(&self.cluster.preferred().host, &prepared.repository),
            cluster: self.cluster.name.clone(),
            system_identifier: prepared.survey.system_identifier,
            label: prepared.survey.choice.backup.clone(),
            data_directory: self.request.directory.clone(),
            tablespaces: self.begun.moved.iter().map(|moved| (moved.oid, moved.to.clone())).collect(),
            claim: Claim::Scratch { id: self.id.clone() },
            dressing: Dressing {
                shared: None,
                node: declared::settings_file(&settings),
                access: declared::access_lines(&self.cluster),
                users: self.users.clone(),
                neutral,
                signal: Some(recover::signal(&self.request.wish.target)),
            },
            workers: self.request.workers,
        }));
        let tell = Arc::clone(tell);
        let told = Arc::new(move |progress| tell(Event::Progress(progress)));
        prepared.door.call(&request, Priority::Normal, told).await
    }

    /// Holds what keeps the copy apart to be in effect, whatever files the user includes.
    async fn hold_settings(&self, site: &Site<'_>) -> Result<()> {
        let directory = self.request.directory.display().to_string();
        let recovery = recover::settings(&self.begun.prepared.survey.choice);
        let mut wanted = vec![
            ("data_directory", directory.as_str()),
            ("archive_mode", "off"),
            ("listen_addresses", ""),
            ("primary_conninfo", ""),
        ];
        wanted.extend(
            recovery
                .iter()
                .filter(|(name, _)| name.starts_with("recovery_target"))
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        recover::hold_in_effect(site, &wanted).await
    }

    fn report(&self, copied: Restored) -> Report {
        let prepared = &self.begun.prepared;
        let mut notes = prepared.notes.clone();
        notes.extend(copied.notes.iter().cloned());
        Report {
            cluster: self.cluster.name.clone(),
            repository: prepared.repository.name.clone(),
            target: self.request.wish.target.to_string(),
            directory: self.request.directory.clone(),
            label: prepared.survey.choice.backup.clone(),
            from: prepared.survey.manifest.start_lsn,
            state: State::ReadyToStart,
            copied,
            achieved: None,
            promoted_to: None,
            gives_up: GivenUp::default(),
            tablespaces: self.begun.moved.clone(),
            socket_directory: self.site().places().socket,
            port: self.request.port,
            superuser: declared::SUPERUSER.to_owned(),
            beside: facts_of(&self.request.directory),
            bin_directory: self.programs.directory.clone(),
            seconds: Seconds::default(),
            notes,
        }
    }

    async fn recover(
        &self,
        site: &Site<'_>,
        tell: &Tell,
        report: &mut Report,
        seconds: &mut Seconds,
    ) -> Result<()> {
        let prepared = &self.begun.prepared;
        let (survey, choice) = (&prepared.survey, &prepared.survey.choice);
        tell(Event::Phase(Phase::Recovers));
        let replaying = Instant::now();
        recover::start(site, prepared.primary.as_ref().and_then(|primary| primary.at_least)).await?;
        let from = survey.manifest.start_lsn;
        let to = choice.replays_to();
        let told = |at: Lsn| tell(Event::Replay { at, from, to });
        let achieved = recover::until_target(site, choice, &told).await?;
        seconds.replay = replaying.elapsed().as_secs_f64();
        report.gives_up =
            prepare::given_up(prepared, achieved.last_transaction, Some(achieved.next_transaction));
        report.achieved = Some(achieved);
        report.state = match self.request.action {
            Action::Pause => State::Paused,
            Action::Shutdown => {
                provision::stop(site).await?;
                State::Stopped
            }
            Action::Promote => {
                tell(Event::Phase(Phase::Promotes));
                let promoting = Instant::now();
                report.promoted_to = Some(promote(site).await?);
                seconds.promote = promoting.elapsed().as_secs_f64();
                State::Promoted
            }
        };
        Ok(())
    }

    /// Stops the server of a copy that did not get there, so that nothing of it is left running.
    async fn stop_after(&self, error: Error) -> Error {
        let site = self.site();
        match observe::postmaster(site.host(), &self.request.directory).await {
            Ok(None) => error,
            Ok(Some(pid)) => match provision::stop(&site).await {
                Ok(()) => error,
                Err(_) => {
                    error.context(format!("process {pid} still runs in {}", self.request.directory.display()))
                }
            },
            Err(_) => error,
        }
    }
}

/// Settings that keep a copy apart from the cluster that it comes from.
const CLOSED: [(&str, &str); 15] = [
    ("archive_cleanup_command", ""),
    ("archive_command", ""),
    ("archive_mode", "off"),
    // The jobs that came along are the original's (pg_cron; without it a name that nobody asks for).
    ("cron.launch_active_jobs", "off"),
    ("huge_pages", "try"),
    ("listen_addresses", ""),
    ("log_destination", "stderr"),
    ("log_filename", "postgresql-%a.log"),
    ("logging_collector", "on"),
    // A subscription that came along would take its changes away from the original (PostgreSQL docs, "Logical Replication").
    ("max_logical_replication_workers", "0"),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
    ("recovery_end_command", ""),
    // Its certificate may be outside the data directory, and nobody comes in over TCP.
    ("ssl", "off"),
    ("synchronous_standby_names", ""),
];

/// Ends the recovery of a server that is at its target, and returns its new timeline.
async fn promote(site: &Site<'_>) -> Result<TimelineId> {
    let conn = site.connect().await?;
    if !promotion::promote(&conn, PROMOTION).await? {
        return Err(Error::failed(format!("{} did not end its recovery", site.name()))
            .detail(provision::last_log_lines(site).await.join("\n")));
    }
    let timeline = queries::server_facts(&conn).await?.timeline;
    // A start after a crash would replay everything again.
    promotion::checkpoint(&conn).await?;
    Ok(timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_state_reads_and_writes_byte_for_byte() {
        let golden = include_bytes!("../../../tests/golden/restore-v1.json");
        let saved: Saved = serde_json::from_slice(golden).unwrap();
        assert_eq!((saved.format, saved.cluster.as_str(), saved.finished), (FORMAT, "inventory", false));
        assert_eq!(saved.text(), golden);
    }
}
