//! A rehearsal of a restore: to a scratch directory, started, proved, measured, removed.
//!
//! Changes nothing of the cluster and writes nothing into its archive. The copy listens only on a Unix socket in its own directory, archives
//! nothing, follows nobody and subscribes to nothing.

mod archive;
mod proofs;
mod report;
mod scratch;
mod window;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

pub use archive::{Kept, list, root, write_whole};
pub use report::{Freshness, Held, Judged, Phase, PhaseTime, Proof, Reached, Report, Verdict};
pub use scratch::guard;

use crate::db::assertion::{self, ProbeRow};
use crate::db::{promotion, recovery};
use crate::engine::interrupt::Interrupt;
use crate::engine::lease::{Held as Lease, Purpose};
use crate::engine::record::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply::Context;
use crate::ops::binary;
use crate::ops::node::restore::{
    Claim, CopyForRestore, Dressing, PlanForRestore, Restored, Target, Wish as RestoreWish,
};
use crate::ops::node::{self, NodeDoor, NodeRequest, Priority, Progress, Told};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors};
use crate::ops::provision::{self, Site};
use crate::ops::restore::survey::Survey;
use crate::ops::restore::{dress, recover};
use crate::ops::roles::{self, Lead};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::{ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::Manifest;
use crate::repo::{SharedRepo, primary, seal};
use crate::topology::claim::{self, Archive, Profile};
use crate::topology::declared::{self, NodeWish, Setting};
use crate::topology::model::{Cluster, DrillTarget, Herd, Node, Promote, RestoreDrill, RestoreProof};
use crate::topology::places::Places;
use crate::units::ByteCount;

/// The name of the copy within the cluster, and of its only node.
const NODE: &str = "drill";
/// What the copy is tuned for: it runs beside the nodes.
const MEMORY: ByteCount = ByteCount(512 << 20);
/// Room for WAL that is replayed: what the server keeps of it until its next restartpoint.
const WAL_ROOM: u64 = 2 << 30;
/// How long the end of recovery may take.
const PROMOTE: Duration = Duration::from_secs(600);
/// Seeds are short, since people type them.
const SEEDS: u64 = 1_000_000;
/// Settings that no copy keeps from `postgresql.conf` or ALTER SYSTEM: they would lead it to the outside.
const OUTSIDE: [&str; 14] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "cluster_name",
    "default_transaction_read_only",
    "hot_standby",
    "listen_addresses",
    "log_directory",
    "port",
    "shared_buffers",
    "synchronous_standby_names",
    "unix_socket_directories",
    "max_logical_replication_workers",
];

/// What the operator asked for beyond the topology.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub to: Option<DrillTarget>,
    pub seed: Option<u64>,
    /// An absolute path.
    pub scratch: Option<PathBuf>,
    /// Leave the copy there, stopped.
    pub keep: bool,
}

/// What happens while a drill runs.
#[derive(Debug, Clone)]
pub enum Event {
    Phase(Phase),
    Chosen { backup: Label, target: Target, seed: Option<u64>, directory: PathBuf },
    Progress(Progress),
}

/// Where events go.
pub type Tell = Arc<dyn Fn(Event) + Send + Sync>;

/// Returns what a cluster is drilled with, also if it declares nothing.
fn declared(cluster: &Cluster) -> RestoreDrill {
    let undeclared = || {
        let prove = vec![RestoreProof::Checksums, RestoreProof::Amcheck];
        RestoreDrill { to: DrillTarget::Newest, prove, assertions: Vec::new() }
    };
    cluster.drills.clone().unwrap_or_else(undeclared)
}

/// Runs the drill that [`begin`] has begun; how it ended is in the report, which is kept in the state directory as well.
///
/// # Errors
/// Only when the report cannot be written: before anything is restored, or in the end.
pub async fn run(
    context: &Context,
    (herd, cluster): (&Herd, &Cluster),
    wish: &Wish,
    begun: Report,
    tell: Tell,
    interrupt: &Interrupt,
) -> Result<Report> {
    let declared = declared(cluster);
    let mut report = begun;
    // Who is killed has said so beforehand.
    archive::write(&context.places, &report)?;
    let ended = match Doors::open(cluster, context.places.clone(), &context.gate) {
        Err(error) => Err(error),
        Ok(doors) => {
            let mut stage = Stage::default();
            let drill = Drill { context, herd, cluster, declared: &declared, wish, doors: &doors, tell };
            let ended = tokio::select! {
                biased;
                () = interrupt.asked(1) => Err(Error::new(ErrorKind::Interrupted, "the drill was interrupted")
                    .detail("It proves nothing. What it had made was removed.")),
                ended = drill.all(&mut report, &mut stage) => ended,
            };
            let cleared = stage.end(&doors, wish.keep, &mut report).await;
            ended.and(cleared)
        }
    };
    report.error = ended.err().map(|error| Failure::from(&error));
    report.ended = Timestamp::now();
    report.verdict = report.judge();
    archive::write(&context.places, &report)?;
    Ok(report)
}

/// Returns the report of a drill that begins now: until it is replaced by another, it says that the drill did not end.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn begin(herd: &Herd, cluster: &Cluster, wish: &Wish) -> Result<Report> {
    let to = wish.to.unwrap_or(declared(cluster).to);
    let now = Timestamp::now();
    let unfinished = Error::new(ErrorKind::Interrupted, "the drill did not end")
        .detail("Its process was killed, or is still at work. It proves nothing.");
    Ok(Report {
        format: report::FORMAT,
        id: format!("{:08x}", random()? as u32),
        drill: "restore".to_owned(),
        herd: herd.name.clone(),
        cluster: cluster.name.clone(),
        pgherd: env!("PGHERD_VERSION").to_owned(),
        verdict: Verdict::Error,
        begun: now,
        ended: now,
        to,
        seed: None,
        target: None,
        repository: cluster.backups.as_ref().map(|backups| backups.repository.name.clone()),
        host: None,
        backup: None,
        restored: None,
        reached: None,
        phases: Vec::new(),
        rto_seconds: None,
        freshness: None,
        proofs: Vec::new(),
        objectives: Vec::new(),
        error: Some(Failure::from(&unfinished)),
        left: None,
        notes: Vec::new(),
    })
}

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    Ok(u64::from_le_bytes(bytes))
}

/// What has to be ended, whatever happens.
#[derive(Debug, Default)]
struct Stage {
    held: Option<scratch::Held>,
    guard: Option<scratch::Guard>,
    lease: Option<Lease>,
}

impl Stage {
    async fn end(self, doors: &Doors, keep: bool, report: &mut Report) -> Result<()> {
        if let Some(lease) = self.lease
            && let Err(error) = lease.release().await
        {
            tracing::warn!(%error, "could not give the lease back; it expires by itself");
        }
        let Some(held) = self.held else { return Ok(()) };
        let directory = held.scratch.directory.display().to_string();
        let host = doors.host(&held.scratch.host);
        // Kept is what is whole: after an error, too, but nothing that runs.
        if keep {
            drop(self.guard);
            report.left = Some(directory);
            scratch::stop(host, &held.scratch).await?;
            return held.forget();
        }
        let cleared = scratch::clear(host, &held.scratch).await;
        drop(self.guard);
        match cleared {
            Ok(()) => held.forget(),
            Err(error) => {
                report.left = Some(directory);
                Err(error)
            }
        }
    }
}

struct Drill<'a> {
    context: &'a Context,
    herd: &'a Herd,
    cluster: &'a Cluster,
    declared: &'a RestoreDrill,
    wish: &'a Wish,
    doors: &'a Doors,
    tell: Tell,
}

/// What is known of the cluster before anything is chosen.
struct Known {
    system_identifier: Option<SystemIdentifier>,
    timeline: Option<TimelineId>,
    /// What only a primary that answers can say.
    primary: Option<FromPrimary>,
}

struct FromPrimary {
    next_transaction: u64,
    at_least: [u32; 5],
    probe: Option<ProbeRow>,
}

impl Drill<'_> {
    async fn all(&self, report: &mut Report, stage: &mut Stage) -> Result<()> {
        let backups = self.cluster.backups.as_ref().ok_or_else(|| {
            Error::refused(format!("cannot drill {}: it has no backups", self.cluster.name))
                .hint("Declare \"backups\" in the topology, run \"pgherd apply\", then make one: pgherd backup create")
        })?;
        let node = self.cluster.preferred();
        report.host = Some(node.host.clone());
        self.remove_leftovers(report).await?;
        let door = Arc::new(NodeDoor::with(self.doors, &node.host, &self.context.build).await?);
        let repo = node::repository(&door, &backups.repository.url).await?;
        let known = self.look(&repo).await?;

        let clock = self.begin_phase(Phase::Choose);
        let newest = self.survey(&door, &backups.repository.url, &known, Target::Latest).await?;
        let keys = ClusterKeys::new(&self.cluster.name).system(newest.system_identifier);
        let survey = match report.to {
            DrillTarget::Newest => newest.clone(),
            DrillTarget::RandomSecond => {
                let at = self.random_second(&repo, &keys, &newest, report).await?;
                self.survey(&door, &backups.repository.url, &known, Target::Time(at)).await?
            }
        };
        clock.end(report);
        report.backup = Some(survey.choice.backup.clone());
        report.notes.extend(survey.notes.iter().cloned());

        let labels = vec![survey.choice.backup.clone()];
        let lease = stage.lease.insert(Lease::take_to_use(&repo, &keys, Purpose::Restore, labels).await?);
        let scratch = self.scratch(node, report, &survey).await?;
        let doors = self.doors_to(&scratch)?;
        let copy = copy_of(node, &scratch);
        let programs = self.doors.programs(self.cluster, &node.host).await?;
        let users = [
            self.doors.host(&node.host).os_user().to_owned(),
            self.doors.host(&node.host).caller().to_owned(),
        ];
        let site = Site {
            herd: &self.herd.name,
            operation: &report.id.clone(),
            cluster: self.cluster,
            node: &copy,
            doors: &doors,
            programs,
            users: &users,
        };
        scratch::socket_fits(&site.places().socket, copy.port)?;
        let held = stage.held.insert(scratch::make(&self.context.places, site.host(), scratch).await?);
        stage.guard = Some(scratch::guarded(Arc::clone(&door), held.scratch.clone()));
        (self.tell)(Event::Chosen {
            backup: survey.choice.backup.clone(),
            target: survey.choice.target.clone(),
            seed: report.seed,
            directory: held.scratch.directory.clone(),
        });
        tokio::select! {
            biased;
            why = lease.lost() => return Err(why),
            restored = self.restore(&site, &door, &survey, &known, report) => restored?,
        }
        let reached = report.reached.as_ref().expect("restore fills it in");
        let until = match survey.choice.target {
            Target::Time(at) => at,
            _ => reached.last_transaction.unwrap_or(survey.manifest.ended),
        };
        let clock = self.begin_phase(Phase::Checks);
        let probe = known.primary.as_ref().and_then(|primary| primary.probe.as_ref());
        proofs::prove(&site, self.declared, probe, until, &mut report.proofs).await?;
        clock.end(report);
        report.rto_seconds = Some(report.phases.iter().map(|time| time.seconds).sum());
        report.objectives = self.judge(report);
        Ok(())
    }

    fn begin_phase(&self, phase: Phase) -> Clock {
        (self.tell)(Event::Phase(phase));
        Clock { phase, begun: Instant::now() }
    }

    /// Ends and removes what drills of this cluster left that were killed.
    async fn remove_leftovers(&self, report: &mut Report) -> Result<()> {
        for held in scratch::of_the_dead(&self.context.places, self.cluster)? {
            if self.cluster.nodes.iter().all(|node| node.host != held.scratch.host) {
                continue;
            }
            scratch::clear(self.doors.host(&held.scratch.host), &held.scratch).await?;
            report.notes.push(format!("Drill {} was killed; what it had left was removed.", held.scratch.id));
            held.forget()?;
        }
        Ok(())
    }

    /// Looks who is primary, and asks it what the copy is compared with. A cluster of which nothing is left can be drilled, too.
    async fn look(&self, repo: &SharedRepo) -> Result<Known> {
        let observed = observe::observe(self.doors, self.cluster, Depth::Servers).await;
        let profiles = observed.nodes.iter().filter_map(|node| node.profile.as_ref());
        let system_identifier = profiles.map(|profile| profile.system_identifier).next();
        let lead = match roles::lead(&observed) {
            Lead::Primary(name) | Lead::StoppedPrimary(name) => Some(name),
            Lead::Unborn | Lead::Split(_) | Lead::Unknown { .. } => None,
        };
        let led = lead.as_deref().and_then(|name| observed.node(name)).and_then(roles::timeline);
        let timeline = match led {
            Some(timeline) => Some(timeline),
            None => primary::read(&**repo, &self.cluster.name).await?.map(|record| record.timeline),
        };
        let primary = self.ask_primary(&observed).await;
        Ok(Known { system_identifier, timeline, primary })
    }

    async fn ask_primary(&self, observed: &ClusterObserved) -> Option<FromPrimary> {
        let Lead::Primary(name) = roles::lead(observed) else { return None };
        let node = self.cluster.node(&name)?;
        let asked = async {
            let login = self.doors.superuser(self.cluster, node, "postgres");
            let conn = self.doors.connector.connect(&login).await?;
            let next_transaction = recovery::next_transaction(&conn).await?;
            let at_least = recovery::at_least(&conn).await?;
            let probe = match self.cluster.databases.first() {
                None => None,
                Some(database) => {
                    let login = self.doors.superuser(self.cluster, node, database);
                    assertion::probe_row(&self.doors.connector.connect(&login).await?).await?
                }
            };
            Ok::<_, Error>(FromPrimary { next_transaction, at_least, probe })
        };
        match asked.await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(%error, "the primary did not say what the copy could be compared with");
                None
            }
        }
    }

    async fn survey(&self, door: &NodeDoor, url: &str, known: &Known, target: Target) -> Result<Survey> {
        let request = PlanForRestore {
            url: url.to_owned(),
            cluster: self.cluster.name.clone(),
            system_identifier: known.system_identifier,
            wish: RestoreWish { target, timeline: None, backup: None },
            primary: known.timeline,
        };
        door.call(&NodeRequest::PlanForRestore(Box::new(request)), Priority::Normal, Arc::new(|_| ())).await
    }

    /// Draws a second between the end of the oldest backup and the newest commit.
    async fn random_second(
        &self,
        repo: &SharedRepo,
        keys: &SystemKeys,
        newest: &Survey,
        report: &mut Report,
    ) -> Result<Timestamp> {
        let seed = match self.wish.seed {
            Some(seed) => seed,
            None => random()? % SEEDS,
        };
        report.seed = Some(seed);
        let first = oldest(repo, keys).await?.unwrap_or(newest.manifest.ended);
        let last = newest_commit(newest);
        let drawn = window::draw(seed, first, last).ok_or_else(|| {
            Error::refused("there is no second to choose from")
                .detail(format!(
                    "The oldest backup ended at {first}, and the newest archived transaction committed at {last}."
                ))
                .hint("Let the cluster work and archive for a while, or drill the newest moment: --to newest")
        })?;
        report.target = Some(drawn);
        Ok(drawn)
    }

    /// Names a scratch directory where there is room for the copy.
    async fn scratch(&self, node: &Node, report: &Report, survey: &Survey) -> Result<node::scratch::Scratch> {
        let wal = survey.choice.segments().saturating_mul(survey.choice.segment_size.as_u64()).min(WAL_ROOM);
        let size = survey.manifest.size.0;
        let needed = ByteCount(size.saturating_add(size / 10).saturating_add(wal));
        let named = self.wish.scratch.as_deref();
        let base = scratch::base(self.doors, self.cluster, &node.host, named, needed).await?;
        let programs = self.doors.programs(self.cluster, &node.host).await?;
        Ok(scratch::name(&base, &report.id, self.cluster, &node.host, &programs.directory))
    }

    /// Returns the same doors, with every place of the copy in its scratch directory.
    fn doors_to(&self, scratch: &node::scratch::Scratch) -> Result<Doors> {
        let lib = self.doors.places.lib().display().to_string();
        let within = scratch.directory.display().to_string();
        let mut doors = self.doors.clone();
        doors.places = Places::decide(false, |name| match name {
            "PGHERD_LIB_DIR" => Some(lib.clone()),
            "PGHERD_CONFIG_DIR" | "PGHERD_STATE_DIR" => Some(within.clone()),
            _ => None,
        })?;
        Ok(doors)
    }

    /// Copies, replays to the target, and ends recovery.
    async fn restore(
        &self,
        site: &Site<'_>,
        door: &NodeDoor,
        survey: &Survey,
        known: &Known,
        report: &mut Report,
    ) -> Result<()> {
        let clock = self.begin_phase(Phase::Fetch);
        let settings = self.settings(site, survey).await?;
        write_profile(site, survey.system_identifier).await?;
        report.restored = Some(self.copy(site, door, survey, &settings).await?);
        clock.end(report);

        let clock = self.begin_phase(Phase::Replay);
        let socket = site.places().socket.display().to_string();
        let closed = [
            ("archive_mode", "off"),
            ("listen_addresses", ""),
            ("unix_socket_directories", socket.as_str()),
            ("synchronous_standby_names", ""),
            ("primary_conninfo", ""),
            ("max_logical_replication_workers", "0"),
        ];
        recover::hold_in_effect(site, &closed).await?;
        recover::start(site, known.primary.as_ref().map(|primary| primary.at_least)).await?;
        let achieved = recover::until_target(site, &survey.choice, &|_: Lsn| ()).await?;
        clock.end(report);
        report.freshness = Some(self.freshness(report, survey, known, achieved.next_transaction));

        let clock = self.begin_phase(Phase::Start);
        let conn = site.connect().await?;
        if !promotion::promote(&conn, PROMOTE).await? {
            return Err(Error::failed("the copy did not end its recovery")
                .detail(provision::last_log_lines(site).await.join("\n")));
        }
        clock.end(report);
        report.reached = Some(Reached {
            lsn: achieved.lsn,
            timeline: achieved.timeline,
            last_transaction: achieved.last_transaction,
            segments: survey.choice.segments(),
            wal_stored: survey.wal_stored,
        });
        Ok(())
    }

    /// Returns what goes into `pgherd.node.conf` of the copy.
    async fn settings(&self, site: &Site<'_>, survey: &Survey) -> Result<Vec<Setting>> {
        let mut places = site.places();
        // The link to pgherd may be another version's, or not be there any more.
        places.program = binary::ensure_copy(site.host(), &self.doors.places, &self.context.build).await?;
        let wish = NodeWish { upstream: None, synchronous: String::new(), memory: MEMORY };
        let mut settings = declared::node_settings(site.cluster, site.node, &wish, &places);
        let own = [
            ("archive_command", ""),
            ("archive_mode", "off"),
            ("listen_addresses", ""),
            // A subscription of the copy would drain the slot of the original.
            ("max_logical_replication_workers", "0"),
            ("shared_buffers", "128MB"),
            ("ssl", "off"),
            // Its jobs belong to the original (pg_cron; without it an unused name).
            ("cron.launch_active_jobs", "off"),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (name, value) in own.into_iter().chain(recover::settings(&survey.choice)) {
            settings.retain(|(other, _)| *other != name);
            settings.push((name, value));
        }
        settings.sort();
        Ok(settings)
    }

    async fn copy(
        &self,
        site: &Site<'_>,
        door: &NodeDoor,
        survey: &Survey,
        settings: &[Setting],
    ) -> Result<Restored> {
        let directory = site.node.data_directory.parent().expect("it is in the scratch directory");
        let tablespaces: BTreeMap<u32, PathBuf> = survey
            .manifest
            .tablespaces
            .iter()
            .map(|tablespace| (tablespace.oid, directory.join(format!("tablespaces/{}", tablespace.oid))))
            .collect();
        for path in
            std::iter::once(directory.join("tablespaces")).chain([site.places().socket, site.places().log])
        {
            site.host()
                .make_directory(&path, 0o700)
                .await
                .map_err(|error| Error::failed(format!("could not make {}", path.display())).source(error))?;
        }
        let request = CopyForRestore {
            url: self.url(),
            cluster: self.cluster.name.clone(),
            system_identifier: survey.system_identifier,
            label: survey.choice.backup.clone(),
            data_directory: site.node.data_directory.clone(),
            tablespaces,
            claim: Claim::Scratch { id: site.operation.to_owned() },
            dressing: Dressing {
                shared: None,
                node: declared::settings_file(settings),
                users: site.users.to_vec(),
                neutral: dress::OLD_PLACE.iter().chain(&OUTSIDE).map(|name| (*name).to_owned()).collect(),
                signal: Some(recover::signal(&survey.choice.target)),
            },
            workers: 0,
        };
        let (told, mut heard) = watch::channel(Progress::default());
        let listen: Told = Arc::new(move |progress| {
            told.send_replace(progress);
        });
        let request = NodeRequest::CopyForRestore(Box::new(request));
        let mut copy = std::pin::pin!(door.call::<Restored>(&request, Priority::Normal, listen));
        loop {
            tokio::select! {
                ended = &mut copy => return ended,
                Ok(()) = heard.changed() => (self.tell)(Event::Progress(*heard.borrow_and_update())),
            }
        }
    }

    fn url(&self) -> String {
        self.cluster.backups.as_ref().map(|backups| backups.repository.url.clone()).unwrap_or_default()
    }

    /// Says what the loss of everything but the repository would have cost when the drill began.
    fn freshness(&self, report: &Report, survey: &Survey, known: &Known, next_transaction: u64) -> Freshness {
        let newest_commit = match report.to {
            DrillTarget::Newest => newest_commit(survey),
            DrillTarget::RandomSecond => {
                survey.beyond.last.as_ref().map_or_else(|| newest_commit(survey), |mark| mark.at)
            }
        };
        let age_seconds = report.begun.duration_since(newest_commit).as_secs_f64().max(0.0);
        // What a copy of the newest moment would give its next transaction, the primary would, too, if none has begun since.
        let written_since = match (report.to, &known.primary) {
            (DrillTarget::Newest, Some(primary)) => Some(primary.next_transaction != next_transaction),
            (DrillTarget::Newest | DrillTarget::RandomSecond, _) => None,
        };
        let rpo_seconds = if written_since == Some(false) { 0.0 } else { age_seconds };
        Freshness { newest_commit, age_seconds, written_since, rpo_seconds }
    }

    /// Holds what was measured to the objectives that a restore answers.
    fn judge(&self, report: &Report) -> Vec<Judged> {
        let (Some(rto), Some(freshness)) = (report.rto_seconds, &report.freshness) else { return Vec::new() };
        let judged = self.cluster.objectives.iter().filter_map(|(name, declared)| {
            let why = self.answers(name)?;
            let (declared_rto_seconds, declared_rpo_seconds) =
                (declared.rto.as_secs_f64(), declared.rpo.as_secs_f64());
            Some(Judged {
                objective: name.clone(),
                why,
                declared_rto_seconds,
                rto_met: rto <= declared_rto_seconds,
                declared_rpo_seconds,
                rpo_met: freshness.rpo_seconds <= declared_rpo_seconds,
            })
        });
        judged.collect()
    }

    /// Says why a restore from the repository is what happens in a scenario; `None` if it is not.
    fn answers(&self, scenario: &str) -> Option<String> {
        match scenario {
            "undo-mistake" => Some("a mistake is undone by a restore".to_owned()),
            "lose-primary" if self.cluster.nodes.len() == 1 => Some("there is no standby".to_owned()),
            "lose-region" => {
                let regions =
                    self.cluster.nodes.iter().map(|node| self.herd.host(&node.host).map(|host| &host.region));
                let mut regions: Vec<_> = regions.collect();
                regions.dedup();
                (regions.len() == 1).then(|| "every node is in one region".to_owned())
            }
            _ => None,
        }
    }
}

/// Measures a phase.
struct Clock {
    phase: Phase,
    begun: Instant,
}

impl Clock {
    fn end(self, report: &mut Report) {
        report.phases.push(PhaseTime { phase: self.phase, seconds: self.begun.elapsed().as_secs_f64() });
    }
}

/// Returns when the newest transaction committed that a restore to the end of the archive has.
fn newest_commit(survey: &Survey) -> Timestamp {
    survey.choice.last.as_ref().map_or(survey.manifest.ended, |mark| mark.at)
}

/// Returns when the oldest backup had ended.
async fn oldest(repo: &SharedRepo, keys: &SystemKeys) -> Result<Option<Timestamp>> {
    let folders = repo.list(Some(&keys.backups())).await?.folders;
    let mut labels: Vec<Label> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
    labels.sort();
    for label in labels {
        // One without a manifest is not finished; one that is damaged counts for nothing here, and verify names it.
        if let Some(bytes) = repo.read(&keys.backup(&label).manifest()).await?
            && let Ok(manifest) = seal::read_document::<Manifest>(&bytes)
        {
            return Ok(Some(manifest.ended));
        }
    }
    Ok(None)
}

/// Declares the copy as a node.
fn copy_of(node: &Node, scratch: &node::scratch::Scratch) -> Node {
    Node {
        name: NODE.to_owned(),
        host: node.host.clone(),
        // It only names the socket.
        port: node.port,
        data_directory: scratch.data(),
        preferred: false,
        promote: Promote::ByHand,
        pool_connections: None,
    }
}

/// Writes the profile that the copy's `restore_command` names.
async fn write_profile(site: &Site<'_>, system_identifier: SystemIdentifier) -> Result<()> {
    let places = site.places();
    let profile = Profile {
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
        memory: MEMORY,
        archive: Archive::of(site.cluster),
    };
    site.host()
        .make_directory(&places.facts, 0o700)
        .await
        .map_err(|error| Error::failed(format!("could not make {}", places.facts.display())).source(error))?;
    provision::write(site, &places.profile, &claim::write(&profile), 0o600).await
}
