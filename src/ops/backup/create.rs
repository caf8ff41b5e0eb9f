//! `backup create`, from the choice of the node to the manifest.
//!
//! The session that starts the backup is held here and stays open until the backup is stopped; when it ends, however that comes about,
//! PostgreSQL aborts the backup. The manifest is the commit: before it there is nothing but data, with which the next run goes on, or which it
//! removes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::aborted::{Next, leave, may_go_on, next, progress_of};
use super::leftovers;
use crate::db::backup::{self as server, Facts, Replay, Started, Stopped};
use crate::db::queries::{self, ServerRole};
use crate::db::{Conn, NodeConn, PrimaryConn, classify};
use crate::engine::interrupt::Interrupt;
use crate::engine::lease::{Held, LeaseProgress};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::node::{
    self, Copied, CopyForBackup, DamagedFile, DeclaredTablespace, NodeDoor, NodeRequest, Priority, Progress,
};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors, NodeObserved};
use crate::ops::roles::{self, Lead};
use crate::pg::lsn::Lsn;
use crate::pg::page::BLOCK_SIZE;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile};
use crate::repo::layout::{BackupKeys, ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::{Manifest, Source};
use crate::repo::{Put, SharedRepo, seal};
use crate::topology::model::{BackupSource, Backups, Cluster, Herd, Node};
use crate::units::{ByteCount, human_duration};

/// How long a checkpoint may take.
const CHECKPOINT: Duration = Duration::from_secs(3600);
/// How long a standby may take to replay a checkpoint that the primary has just written.
const REPLAY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(250);
/// How often the session is used, so that its end and a promotion are noticed.
const WATCH: Duration = Duration::from_secs(5);

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Where to read from, if not from where the topology says.
    pub from: Option<BackupSource>,
    /// 0: as many as there are cores.
    pub workers: u32,
    pub priority: Priority,
    /// Bytes a second that may be read, if there is a limit.
    pub rate_limit: Option<ByteCount>,
    /// How long a WAL segment may take to arrive in the repository.
    pub archive_timeout: Duration,
}

/// What a backup does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A switched segment must arrive in the repository.
    ChecksArchiving,
    /// A checkpoint, and on a standby its replay.
    Starts,
    Copies,
    WaitsForWal,
}

impl Phase {
    /// Says it in a fragment.
    pub const fn text(self) -> &'static str {
        match self {
            Self::ChecksArchiving => "checks that WAL arrives in the repository",
            Self::Starts => "waits for a checkpoint",
            Self::Copies => "copies",
            Self::WaitsForWal => "waits until its WAL is in the repository",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A node was chosen, and the backup has its name.
    Chosen {
        label: Label,
        node: String,
        from: Source,
        why: String,
    },
    Phase(Phase),
    Progress(Progress),
}

/// A backup that is whole and in the repository.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Created {
    pub cluster: String,
    pub label: Label,
    pub repository: String,
    /// `inventory-b`.
    pub node: String,
    pub from: Source,
    /// Why that node.
    pub why: String,
    pub begun: Timestamp,
    pub ended: Timestamp,
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// The first and the last WAL segment that a restore of it needs.
    pub wal: (SegmentName, SegmentName),
    pub size_bytes: ByteCount,
    pub stored_bytes: ByteCount,
    pub files: u64,
    pub workers: u32,
    /// From the command to the commit.
    pub seconds: f64,
    /// Of which the copy took so much.
    pub copy_seconds: f64,
    pub damaged_pages: u64,
    pub damaged: Vec<DamagedFile>,
    /// Of `stored_bytes`, what an aborted backup with which this one went on had stored already.
    pub taken_over_bytes: ByteCount,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
}

/// Where events go.
pub type Tell = Arc<dyn Fn(Event) + Send + Sync>;

/// Makes a full backup of a cluster.
///
/// # Errors
/// [`ErrorKind::Refused`] without declared backups or where archiving does not work, [`ErrorKind::NotFound`] without a primary,
/// [`ErrorKind::Locked`] while another backup of the cluster runs, [`ErrorKind::Interrupted`] on request. The next backup goes on with what
/// was stored by then, or it is removed.
pub async fn create(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
    tell: Tell,
    interrupt: &Interrupt,
) -> Result<Created> {
    let begun = Instant::now();
    let backups = cluster.backups.as_ref().ok_or_else(|| no_backups(cluster))?;
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    let primary = primary(cluster, &observed)?;
    let door = NodeDoor::open(&doors, &primary.host).await?;
    let repo = node::repository(&door, &backups.repository).await?;
    let to_primary = connect_primary(&doors, cluster, primary).await?;
    let facts = server::facts(&to_primary).await?;
    archives(cluster, primary, &facts)?;
    let system = ClusterKeys::new(&cluster.name).system(facts.system_identifier);
    let Next { label, goes_on } = next(&repo, &system).await?;
    let held = Held::take_for_backup(&repo, &system, label.clone()).await?;
    if goes_on && let Err(error) = may_go_on(&repo, &system, &label).await {
        release(held).await;
        return Err(error);
    }
    let run = Run {
        herd,
        cluster,
        backups,
        wish,
        doors: &doors,
        observed: &observed,
        primary,
        to_primary,
        facts,
        repo: repo.clone(),
        keys: system.backup(&label),
        system,
        label,
        tell,
        held: &held,
        begun,
    };
    let copied = tokio::select! {
        biased;
        () = interrupt.asked(1) => Err(interrupted(&run.label)),
        why = held.lost() => Err(why),
        copied = run.copied() => copied,
    };
    // An interrupt comes before the commit or after it, and not into it.
    let ended = match copied {
        Ok(whole) => run.commit(whole).await,
        Err(error) => Err(error),
    };
    let ended = match ended {
        Ok(created) => Ok(created),
        // Dropped with the future, the session has aborted the backup on the server, and the child is dead.
        Err(error) => Err(leave(&repo, &run.keys, &held, error).await),
    };
    drop(run);
    release(held).await;
    ended
}

async fn release(held: Held) {
    if let Err(error) = held.release().await {
        tracing::warn!(%error, "could not give the lease back; it expires by itself");
    }
}

fn interrupted(label: &Label) -> Error {
    Error::new(ErrorKind::Interrupted, format!("backup {label} was interrupted"))
        .detail("The server has ended it.")
}

struct Run<'a> {
    herd: &'a Herd,
    cluster: &'a Cluster,
    backups: &'a Backups,
    wish: &'a Wish,
    doors: &'a Doors,
    observed: &'a ClusterObserved,
    primary: &'a Node,
    to_primary: PrimaryConn,
    facts: Facts,
    repo: SharedRepo,
    system: SystemKeys,
    keys: BackupKeys,
    label: Label,
    tell: Tell,
    held: &'a Held,
    begun: Instant,
}

/// Everything of a backup but its manifest is in the repository.
struct Whole {
    manifest: Manifest,
    copied: Copied,
    /// Why that node.
    why: String,
    copy_seconds: f64,
}

/// The node that is read, with the session that has started the backup on it.
struct Reading<'a> {
    node: &'a Node,
    from: Source,
    why: String,
    conn: Conn,
    started: Started,
}

impl Run<'_> {
    /// Does all but the commit.
    async fn copied(&self) -> Result<Whole> {
        self.phase(Phase::ChecksArchiving);
        self.remove_leftovers().await;
        self.archiving_works().await?;
        self.phase(Phase::Starts);
        let reading = self.start().await?;
        (self.tell)(Event::Chosen {
            label: self.label.clone(),
            node: self.cluster.full_name(&reading.node.name),
            from: reading.from,
            why: reading.why.clone(),
        });
        self.phase(Phase::Copies);
        let copying = Instant::now();
        let copied = self.copy(&reading).await?;
        let copy_seconds = copying.elapsed().as_secs_f64();
        let stopped = self.stop(&reading).await?;
        self.phase(Phase::WaitsForWal);
        let manifest = self.manifest(&reading, &stopped, &copied);
        self.wait_for_wal(&manifest).await?;
        Ok(Whole { manifest, copied, why: reading.why, copy_seconds })
    }

    fn phase(&self, phase: Phase) {
        self.held.progress(LeaseProgress {
            phase: phase.text().to_owned(),
            done: ByteCount(0),
            total: ByteCount(0),
            rate: ByteCount(0),
            at: Timestamp::now(),
        });
        (self.tell)(Event::Phase(phase));
    }

    /// Removes what backups left that were interrupted. What cannot be removed is no reason not to make a backup.
    async fn remove_leftovers(&self) {
        if let Err(error) = leftovers::remove(&self.repo, &self.system, &self.label).await {
            tracing::warn!(%error, "could not remove what interrupted backups left");
        }
    }

    /// Has the primary end a segment and waits until it is in the repository: a long copy shall not be for nothing.
    async fn archiving_works(&self) -> Result<()> {
        let segment = self.end_segment("checks archiving").await?;
        self.wait_for(segment, segment).await.map_err(|error| {
            error
                .context(format!("check that WAL of {} arrives before anything is copied", self.cluster.name))
        })
    }

    async fn end_segment(&self, why: &str) -> Result<SegmentName> {
        let point = format!("pgherd backup {} {why}", self.label);
        let lsn = server::end_segment(&self.to_primary, &point).await?;
        let timeline = self.primary_timeline().await?;
        Ok(SegmentName::holding(lsn, timeline, self.facts.wal_segment_size))
    }

    async fn primary_timeline(&self) -> Result<TimelineId> {
        Ok(queries::server_facts(&self.to_primary).await?.timeline)
    }

    /// Starts the backup on a standby that can give it, else on the primary.
    async fn start(&self) -> Result<Reading<'_>> {
        let wanted = self.wish.from.unwrap_or(self.backups.from);
        let mut refused = Vec::new();
        for node in self.cluster.nodes.iter().filter(|node| node.name != self.primary.name) {
            if wanted == BackupSource::Primary {
                break;
            }
            match self.start_on_standby(node).await? {
                Ok(reading) => return Ok(reading),
                Err(why) => refused.push(format!("{} {why}", node.name)),
            }
        }
        let why = match (wanted, refused.is_empty()) {
            (BackupSource::Primary, _) => "as asked for".to_owned(),
            (BackupSource::Standby, true) => "there is no standby".to_owned(),
            (BackupSource::Standby, false) => format!("no standby can give it: {}", refused.join("; ")),
        };
        let conn = self.session(self.primary).await?;
        let started = server::start(&conn, self.facts.version_number, &self.text()).await?;
        Ok(Reading { node: self.primary, from: Source::Primary, why, conn, started })
    }

    /// Starts the backup on a standby, or says why it cannot give one.
    async fn start_on_standby<'r>(&'r self, node: &'r Node) -> Result<Result<Reading<'r>, String>> {
        if let Err(why) = self.can_give(node) {
            return Ok(Err(why));
        }
        // A restartpoint is made from a checkpoint of the primary: without a new one the backup would begin at an old one.
        let checkpoint = server::checkpoint(&self.to_primary).await?;
        let timeline = self.primary_timeline().await?;
        let conn = match self.session(node).await {
            Ok(conn) => conn,
            Err(error) => return Ok(Err(format!("does not answer: {error}"))),
        };
        let tried = async {
            if let Err(why) = replayed(&conn, checkpoint).await? {
                return Ok(Err(why));
            }
            let started = server::start(&conn, self.facts.version_number, &self.text()).await?;
            let replay = server::replay(&conn).await?;
            if !replay.in_recovery || started.timeline != timeline {
                return Ok(Err(format!("is on timeline {}, the primary on {timeline}", started.timeline)));
            }
            Ok::<_, Error>(Ok(started))
        };
        match tried.await {
            Ok(Ok(started)) => {
                let why = "a standby that streams".to_owned();
                Ok(Ok(Reading { node, from: Source::Standby, why, conn, started }))
            }
            Ok(Err(why)) => Ok(Err(why)),
            Err(error) => Ok(Err(format!("refuses: {error}"))),
        }
    }

    /// Says by what was observed whether a standby can give a backup.
    fn can_give(&self, node: &Node) -> Result<(), String> {
        let seen = self.observed.node(&node.name).and_then(NodeObserved::running);
        let Some(facts) = seen.map(|running| &running.facts) else {
            return Err("does not answer".to_owned());
        };
        if facts.system_identifier != self.facts.system_identifier {
            return Err(format!("has the system identifier {}", facts.system_identifier));
        }
        if !self.facts.full_page_writes {
            return Err("would need full_page_writes, which the primary has off".to_owned());
        }
        let why_not = match &facts.role {
            ServerRole::Primary { .. } => "is no standby".to_owned(),
            ServerRole::Standby { replay_paused: true, .. } => "has its replay paused".to_owned(),
            ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming" => {
                return Ok(());
            }
            ServerRole::Standby { .. } => "does not stream".to_owned(),
        };
        Err(why_not)
    }

    /// Opens a session that may wait for a checkpoint.
    async fn session(&self, node: &Node) -> Result<Conn> {
        let conn =
            self.doors.connector.connect(&self.doors.superuser(self.cluster, node, "postgres")).await?;
        conn.set_deadline(CHECKPOINT).await?;
        server::may_be_idle(&conn).await?;
        Ok(conn)
    }

    /// What stands in backup_label.
    fn text(&self) -> String {
        format!("pgherd {}", self.label)
    }

    async fn copy(&self, reading: &Reading<'_>) -> Result<Copied> {
        let door = NodeDoor::open(self.doors, &reading.node.host).await?;
        let facts = server::facts(&reading.conn).await?;
        let request = NodeRequest::CopyForBackup(Box::new(CopyForBackup {
            repository: door.location(&self.backups.repository),
            cluster: self.cluster.name.clone(),
            label: self.label.clone(),
            system_identifier: facts.system_identifier,
            data_directory: reading.node.data_directory.clone(),
            version: facts.version_number / 10_000,
            start_lsn: reading.started.lsn,
            timeline: reading.started.timeline,
            tablespaces: declared(&facts),
            data_checksums: facts.data_checksums && facts.block_size as usize == BLOCK_SIZE,
            blocks_a_file: facts.blocks_a_file,
            workers: self.wish.workers,
            rate_limit: self.wish.rate_limit,
            compression: self.backups.compression,
        }));
        let tell = Arc::clone(&self.tell);
        let newest = Arc::new(std::sync::Mutex::new(Progress::default()));
        let heard = Arc::clone(&newest);
        let told: node::Told = Arc::new(move |progress| {
            *heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = progress;
            tell(Event::Progress(progress));
        });
        tokio::select! {
            biased;
            error = self.watch(reading, &newest) => Err(error),
            copied = door.call::<Copied>(&request, self.wish.priority, told) => copied,
        }
    }

    /// Keeps the session alive and ends when the backup cannot succeed any more; tells others meanwhile how far it is.
    async fn watch(&self, reading: &Reading<'_>, newest: &std::sync::Mutex<Progress>) -> Error {
        let mut before = (Instant::now(), 0);
        loop {
            tokio::time::sleep(WATCH).await;
            match server::replay(&reading.conn).await {
                Ok(replay) => {
                    if let Err(error) = still(reading, &replay) {
                        return error;
                    }
                }
                Err(error) => {
                    return Error::failed(format!("the session that holds backup {} has ended", self.label))
                        .detail("PostgreSQL has aborted the backup.")
                        .source(error);
                }
            }
            let progress = *newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let rate = (progress.done.0 - before.1) as f64 / before.0.elapsed().as_secs_f64().max(0.001);
            before = (Instant::now(), progress.done.0);
            self.held.progress(LeaseProgress {
                phase: Phase::Copies.text().to_owned(),
                done: progress.done,
                total: progress.total,
                rate: ByteCount(rate as u64),
                at: Timestamp::now(),
            });
        }
    }

    async fn stop(&self, reading: &Reading<'_>) -> Result<Stopped> {
        let stopped = server::stop(&reading.conn, self.facts.version_number).await?;
        if reading.from == Source::Standby {
            let replay = server::replay(&reading.conn).await?;
            still(reading, &replay)?;
        }
        Ok(stopped)
    }

    fn manifest(&self, reading: &Reading<'_>, stopped: &Stopped, copied: &Copied) -> Manifest {
        Manifest {
            format: seal::FORMAT,
            label: self.label.clone(),
            herd: self.herd.name.clone(),
            cluster: self.cluster.name.clone(),
            system_identifier: self.facts.system_identifier,
            pgherd: env!("PGHERD_VERSION").to_owned(),
            server_version: self.facts.version_number,
            node: reading.node.name.clone(),
            from: reading.from,
            begun: reading.started.at,
            ended: stopped.at,
            timeline: reading.started.timeline,
            start_lsn: reading.started.lsn,
            stop_lsn: stopped.lsn,
            wal_segment_size: self.facts.wal_segment_size,
            data_checksums: self.facts.data_checksums,
            block_size: self.facts.block_size,
            blocks_a_file: self.facts.blocks_a_file,
            backup_label: stopped.backup_label.clone(),
            tablespace_map: stopped.tablespace_map.clone(),
            tablespaces: copied.tablespaces.clone(),
            level: self.backups.compression.level(),
            compression: self.backups.compression.codec(),
            needs: Vec::new(),
            files: copied.files,
            directories: copied.directories,
            size: copied.size,
            stored: copied.stored,
            damaged_pages: copied.damaged_pages,
            files_blake3: copied.files_blake3,
            files_stored: copied.files_stored,
        }
    }

    /// Waits until every segment that a restore needs is in the repository.
    async fn wait_for_wal(&self, manifest: &Manifest) -> Result<()> {
        let (first, last) = manifest.wal();
        if manifest.from == Source::Standby {
            // A standby cannot end a segment; what the backup needs of the present one is archived when the primary does.
            self.end_segment("is complete").await?;
        }
        self.wait_for(first, last).await
    }

    /// Waits for the segments from `first` to `last`; each that arrives gives the others more time.
    async fn wait_for(&self, first: SegmentName, last: SegmentName) -> Result<()> {
        let size = self.facts.wal_segment_size;
        let mut missing: Vec<SegmentName> =
            std::iter::successors(Some(first), |name| (*name < last).then(|| name.next(size))).collect();
        let mut since = Instant::now();
        loop {
            let before = missing.len();
            let folders: BTreeSet<String> = missing.iter().map(|name| name.folder()).collect();
            let mut there = BTreeSet::new();
            for folder in folders {
                let key = self.system.wal_folder().join(&folder).expect("16 hexadecimal digits");
                there.extend(self.repo.list(Some(&key)).await?.objects.into_iter().map(|listed| listed.key));
            }
            missing.retain(|name| !there.contains(&self.system.wal(WalFile::Segment(*name))));
            let Some(next) = missing.first() else { return Ok(()) };
            if missing.len() < before {
                since = Instant::now();
            }
            if since.elapsed() >= self.wish.archive_timeout {
                return Err(self.not_archived(*next, missing.len()).await);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn not_archived(&self, next: SegmentName, missing: usize) -> Error {
        let primary = self.cluster.full_name(&self.primary.name);
        let waited = human_duration(self.wish.archive_timeout);
        let more = if missing > 1 { format!(", with {} after it", missing - 1) } else { String::new() };
        let said = match server::archiver(&self.to_primary).await {
            Ok(archiver) if archiver.is_failing() => format!(
                " The archiver of {primary} fails since {} ({} failures).",
                archiver.last_failed.unwrap_or_default(),
                archiver.failed_count
            ),
            Ok(archiver) => {
                let last = archiver.last_archived.unwrap_or_else(|| "nothing".to_owned());
                format!(" The archiver of {primary} has archived {last} last.")
            }
            Err(_) => String::new(),
        };
        Error::failed(format!(
            "WAL segment {next} did not arrive in the repository {}",
            self.backups.repository.name
        ))
        .detail(format!("Waited {waited} for it{more}.{said}"))
        .hint(format!("The log of {primary} says why archive_command fails. See also: pgherd status"))
    }

    /// Stores the manifest, if everything that it names is still ours and there.
    async fn commit(&self, whole: Whole) -> Result<Created> {
        let Whole { manifest, copied, why, copy_seconds } = whole;
        self.held.confirm().await?;
        self.is_there(&copied).await?;
        let key = self.keys.manifest();
        if self.repo.create(&key, &seal::write_document(&manifest)).await? == Put::Refused {
            return Err(Error::failed(format!("there is already a backup {}", self.label)));
        }
        // Had this process been stopped for long in between, somebody could have removed the data of a backup without a manifest.
        if self.held.confirm().await.is_err()
            && let Err(gone) = self.is_there(&copied).await
        {
            // It is ours: nobody stores over a manifest.
            self.repo.remove(&key).await?;
            return Err(gone);
        }
        self.remove_progress().await;
        Ok(Created {
            cluster: self.cluster.name.clone(),
            label: self.label.clone(),
            repository: self.backups.repository.name.clone(),
            node: self.cluster.full_name(&manifest.node),
            from: manifest.from,
            why,
            begun: manifest.begun,
            ended: manifest.ended,
            timeline: manifest.timeline,
            start_lsn: manifest.start_lsn,
            stop_lsn: manifest.stop_lsn,
            wal: manifest.wal(),
            size_bytes: manifest.size,
            stored_bytes: manifest.stored,
            files: manifest.files,
            workers: copied.workers,
            seconds: self.begun.elapsed().as_secs_f64(),
            copy_seconds,
            damaged_pages: copied.damaged_pages,
            damaged: copied.damaged,
            taken_over_bytes: copied.taken_over,
            notes: copied.notes,
        })
    }

    /// Removes the notes of what was stored: the list of files says it now. What stays is of no harm.
    async fn remove_progress(&self) {
        let removed = async {
            for key in progress_of(&self.repo, &self.keys).await? {
                self.repo.remove(&key).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "could not remove the notes of what was stored");
        }
    }

    /// Makes sure that every object that was stored is there in its size.
    async fn is_there(&self, copied: &Copied) -> Result<()> {
        let (mut objects, mut bytes, mut files) = (0, 0, None);
        for listed in self.repo.list_all(self.keys.folder()).await? {
            if listed.key == self.keys.files() {
                files = Some(listed.size);
            } else if self.keys.data_number(&listed.key).is_some() {
                objects += 1;
                bytes += listed.size.0;
            }
        }
        if (objects, bytes, files) == (copied.objects, copied.stored.0, Some(copied.files_stored)) {
            return Ok(());
        }
        let Copied { objects: wanted, stored, .. } = copied;
        Err(Error::failed(format!("what backup {} has stored is not there any more", self.label)).detail(
            format!("Found {objects} data objects with {bytes} bytes, expected {wanted} with {}.", stored.0),
        ))
    }
}

/// Returns the tablespaces that are elsewhere; those for tests (`allow_in_place_tablespaces`) are directories like any other.
fn declared(facts: &Facts) -> Vec<DeclaredTablespace> {
    let found = facts.tablespaces.iter();
    found
        .map(|found| DeclaredTablespace { oid: found.oid, location: PathBuf::from(&found.location) })
        .filter(|found| found.location.is_absolute())
        .collect()
}

/// Waits until a standby has replayed a checkpoint; else says how far behind it is.
async fn replayed(conn: &Conn, checkpoint: Lsn) -> Result<Result<(), String>> {
    let since = Instant::now();
    loop {
        let replay = server::replay(conn).await?;
        if !replay.in_recovery {
            return Ok(Err("was promoted".to_owned()));
        }
        // What was replayed last ends behind the checkpoint's record only when that has been replayed itself.
        if replay.replayed_lsn.is_some_and(|lsn| lsn > checkpoint) {
            return Ok(Ok(()));
        }
        if since.elapsed() >= REPLAY {
            let behind = replay.replayed_lsn.map_or(ByteCount(0), |lsn| lsn.lag_behind(checkpoint));
            return Ok(Err(format!(
                "has not replayed a new checkpoint within {}, {behind} behind",
                human_duration(REPLAY)
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Makes sure that the server that is read is still what it was.
fn still(reading: &Reading<'_>, replay: &Replay) -> Result<()> {
    let node = &reading.node.name;
    let changed = match (reading.from, replay.in_recovery) {
        (Source::Primary, true) => format!("{node} is not the primary any more"),
        (Source::Standby, false) => format!("{node} was promoted"),
        (Source::Primary, false) => return Ok(()),
        (Source::Standby, true) => match replay.minimum_recovery {
            Some((_, timeline)) if timeline != reading.started.timeline => {
                format!(
                    "{node} follows timeline {timeline} now, the backup began on {}",
                    reading.started.timeline
                )
            }
            Some(_) | None => return Ok(()),
        },
    };
    Err(Error::failed(format!("the backup cannot be finished: {changed}"))
        .hint("Make another one: pgherd backup create"))
}

fn primary<'a>(cluster: &'a Cluster, observed: &ClusterObserved) -> Result<&'a Node> {
    let why = match roles::lead(observed) {
        Lead::Primary(name) => {
            return Ok(cluster.node(&name).expect("roles::lead names nodes of the cluster"));
        }
        Lead::Unborn => "It has no node yet.".to_owned(),
        Lead::StoppedPrimary(name) => format!("{} is stopped.", cluster.full_name(&name)),
        Lead::Split(names) => format!("{} all accept writes.", names.join(", ")),
        Lead::Unknown { why } => format!("{why}."),
    };
    Err(Error::new(ErrorKind::NotFound, format!("cannot back up {}: nobody is its primary", cluster.name))
        .detail(why)
        .hint("See what is wrong: pgherd status"))
}

async fn connect_primary(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<PrimaryConn> {
    let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
    conn.set_deadline(CHECKPOINT).await?;
    server::may_be_idle(&conn).await?;
    match classify(conn).await? {
        NodeConn::Primary(conn) => Ok(conn),
        NodeConn::Standby(_) => {
            Err(Error::failed(format!("{} is not the primary any more", cluster.full_name(&node.name))))
        }
    }
}

/// Makes sure that the settings let WAL into the archive at all.
fn archives(cluster: &Cluster, primary: &Node, facts: &Facts) -> Result<()> {
    let command = facts.archive_command.trim();
    let wrong = if facts.archive_mode == "off" {
        "archive_mode is off".to_owned()
    } else if facts.archive_library.is_empty()
        && matches!(command, "" | "(disabled)" | "true" | "/bin/true" | ":")
    {
        format!("archive_command is {command:?}")
    } else {
        return Ok(());
    };
    Err(Error::refused(format!("cannot back up {}: it archives no WAL", cluster.name))
        .detail(format!(
            "On {} {wrong}. A backup without the WAL after it cannot be restored.",
            cluster.full_name(&primary.name)
        ))
        .hint("Switch archiving on as declared: pgherd apply"))
}

fn no_backups(cluster: &Cluster) -> Error {
    Error::refused(format!("cannot back up {}: it has no backups declared", cluster.name))
        .hint("Declare \"repositories: {main: {url: file:///…}}\" and \"backups: {repository: main}\", then: pgherd apply")
}
