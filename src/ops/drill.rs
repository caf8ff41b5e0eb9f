//! A rehearsal of a restore: to a scratch directory, started, proved, measured, removed.
//!
//! Changes nothing of the cluster and writes nothing into its archive. The copy listens only on a Unix socket in its own directory, archives
//! nothing, follows nobody and subscribes to nothing.

mod archive;
mod estimate;
mod proofs;
mod report;
mod scratch;
mod window;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

pub use archive::{Kept, list, root};
pub use estimate::{RtoEstimate, estimate};
pub use report::{Copied, Freshness, Held, Judged, Phase, PhaseTime, Proof, Reached, Report, Verdict};
pub use scratch::guard;

use crate::db::assertion::{self, ProbeRow};
use crate::engine::interrupt::Interrupt;
use crate::engine::record::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::node::Progress;
use crate::ops::node::restore::{Target, Wish as RestoreWish};
use crate::ops::observe::Doors;
use crate::ops::provision::Site;
use crate::ops::restore::prepare::{self, Prepared, Remap};
use crate::ops::restore::scratch as copy;
use crate::ops::restore::survey::Survey;
use crate::repo::document;
use crate::repo::layout::{ClusterKeys, Label};
use crate::repo::manifest::Manifest;
use crate::topology::checks::DeclaredChecks;
use crate::topology::model::{Cluster, DrillTarget, Herd, Node, Promote, RestoreDrill, RestoreProof};
use crate::topology::places::Places;
use crate::units::ByteCount;

/// Room for WAL that is replayed: what the server keeps of it until its next restartpoint.
const WAL_ROOM: u64 = 2 << 30;
/// Seeds are short, since people type them.
const SEEDS: u64 = 1_000_000;

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
    Chosen { target: Target, seed: Option<u64>, directory: PathBuf },
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
    let drill = Drill { context, herd, cluster, declared: &declared, wish, tell, interrupt };
    let mut stage = Stage::default();
    let ended = match drill.all(&mut report, &mut stage).await {
        // The restore would say that it goes on when it is run again.
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(interrupted()),
        ended => ended,
    };
    let cleared = stage.end(wish.keep, &mut report).await;
    let ended = ended.and(cleared);
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
        copied: None,
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

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "the drill was interrupted").detail("It proves nothing.")
}

/// What has to be ended, whatever happens.
#[derive(Debug, Default)]
struct Stage {
    doors: Option<Doors>,
    held: Option<scratch::Held>,
    guard: Option<scratch::Guard>,
}

impl Stage {
    async fn end(self, keep: bool, report: &mut Report) -> Result<()> {
        let (Some(doors), Some(held)) = (self.doors, self.held) else { return Ok(()) };
        let directory = held.scratch.directory.display().to_string();
        let host = doors.host(&held.scratch.host);
        if keep {
            report.left = Some(directory);
            scratch::stop(host, &held.scratch).await?;
            drop(self.guard);
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
    tell: Tell,
    interrupt: &'a Interrupt,
}

impl Drill<'_> {
    async fn all(&self, report: &mut Report, stage: &mut Stage) -> Result<()> {
        let node = self.cluster.preferred();
        report.host = Some(node.host.clone());
        (self.tell)(Event::Phase(Phase::Choose));
        self.remove_leftovers(report).await?;
        let wish = |target| RestoreWish { target, timeline: None, backup: None };
        let prepared = self
            .unless_interrupted(prepare::prepare(
                self.context,
                self.cluster,
                &node.host,
                &wish(Target::Latest),
            ))
            .await?;
        let target = match report.to {
            DrillTarget::Newest => Target::Latest,
            DrillTarget::RandomSecond => Target::Time(self.random_second(&prepared, report).await?),
        };
        let probe = self.probe_of_primary(&prepared).await;
        let Prepared { door, doors, survey: newest, primary, .. } = prepared;
        let scratch = self.scratch(node, report, &doors, &newest).await?;
        (self.tell)(Event::Chosen {
            target: target.clone(),
            seed: report.seed,
            directory: scratch.directory.clone(),
        });
        let doors = stage.doors.insert(doors);
        let host = doors.host(&node.host);
        let held = stage.held.insert(scratch::make(&self.context.places, host, scratch).await?);
        stage.guard = Some(scratch::guarded(Arc::new(door), held.scratch.clone()));

        let request = copy::Request {
            wish: wish(target.clone()),
            directory: held.scratch.data(),
            remap: Remap { one: Vec::new(), all: Some(held.scratch.directory.join("tablespaces")) },
            port: copy::PORT,
            action: copy::Action::Promote,
            start: true,
            delta: false,
            workers: 0,
        };
        let restored =
            copy::restore(self.context, self.herd, self.cluster, &request, self.listener(), self.interrupt)
                .await?;
        let achieved = restored.achieved.as_ref().expect("a copy that was started has reached its target");
        report.backup = Some(restored.label.clone());
        report.notes.extend(restored.notes.iter().cloned());
        report.copied = Some(Copied {
            files: restored.copied.files,
            size_bytes: restored.copied.size,
            fetched_bytes: restored.copied.fetched,
            workers: restored.copied.workers,
        });
        let seconds = restored.seconds;
        for (phase, seconds) in [
            (Phase::Choose, seconds.choose),
            (Phase::Fetch, seconds.copy),
            (Phase::Replay, seconds.replay),
            (Phase::Start, seconds.promote),
        ] {
            report.phases.push(PhaseTime { phase, seconds });
        }
        report.reached = Some(Reached {
            from: restored.from,
            lsn: achieved.lsn,
            timeline: achieved.timeline,
            last_transaction: achieved.last_transaction,
        });
        let next = match report.to {
            DrillTarget::Newest => Some(achieved.next_transaction),
            DrillTarget::RandomSecond => None,
        };
        report.freshness =
            Some(freshness(report, &newest, primary.and_then(|primary| primary.next_transaction), next));
        let until = match target {
            Target::Time(at) => at,
            Target::Latest | Target::Immediate | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => {
                newest_commit(&newest)
            }
        };

        (self.tell)(Event::Phase(Phase::Checks));
        let begun = Instant::now();
        let copied = self.copied(node, &request, &restored);
        let to_copy = doors_to(doors, &node.host, &restored)?;
        let users = Vec::new();
        let site = Site {
            herd: &self.herd.name,
            operation: &held.scratch.id,
            cluster: self.cluster,
            node: &copied,
            doors: &to_copy,
            programs: doors.programs(self.cluster, &node.host).await?,
            users: &users,
        };
        self.unless_interrupted(proofs::prove(
            &site,
            self.declared,
            probe.as_ref(),
            until,
            &mut report.proofs,
        ))
        .await?;
        report.phases.push(PhaseTime { phase: Phase::Checks, seconds: begun.elapsed().as_secs_f64() });
        report.rto_seconds = Some(report.phases.iter().map(|time| time.seconds).sum());
        report.objectives = self.judge(report);
        Ok(())
    }

    async fn unless_interrupted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.interrupt.asked(1) => Err(interrupted()),
            ended = work => ended,
        }
    }

    /// Hands on what the restore tells.
    fn listener(&self) -> copy::Tell {
        let tell = Arc::clone(&self.tell);
        Arc::new(move |event| match event {
            copy::Event::Phase(copy::Phase::Copies) => tell(Event::Phase(Phase::Fetch)),
            copy::Event::Phase(copy::Phase::Recovers) => tell(Event::Phase(Phase::Replay)),
            copy::Event::Phase(copy::Phase::Promotes) => tell(Event::Phase(Phase::Start)),
            copy::Event::Progress(progress) => tell(Event::Progress(progress)),
            copy::Event::Replay { .. } => {}
        })
    }

    /// Ends and removes what drills of this cluster left that were killed.
    async fn remove_leftovers(&self, report: &mut Report) -> Result<()> {
        let dead = scratch::of_the_dead(&self.context.places, self.cluster)?;
        if dead.is_empty() {
            return Ok(());
        }
        let doors = Doors::open(self.cluster, self.context.places.clone(), &self.context.gate)?;
        for held in dead {
            if self.cluster.nodes.iter().all(|node| node.host != held.scratch.host) {
                continue;
            }
            scratch::clear(doors.host(&held.scratch.host), &held.scratch).await?;
            report.notes.push(format!("Drill {} was killed; nothing of it is left now.", held.scratch.id));
            held.forget()?;
        }
        Ok(())
    }

    /// Reads the row of the write proof on the primary; what it does not say now is no reason not to drill.
    async fn probe_of_primary(&self, prepared: &Prepared) -> Option<ProbeRow> {
        let node = self.cluster.node(&prepared.primary.as_ref()?.node)?;
        let login = prepared.doors.superuser(self.cluster, node, self.cluster.databases.first()?);
        let conn = prepared.doors.connector.connect(&login).await.ok()?;
        assertion::probe_row(&conn).await.ok()?
    }

    /// Draws a second between the end of the oldest backup and the newest commit.
    async fn random_second(&self, prepared: &Prepared, report: &mut Report) -> Result<Timestamp> {
        let seed = match self.wish.seed {
            Some(seed) => seed,
            None => random()? % SEEDS,
        };
        report.seed = Some(seed);
        let first = oldest(self.cluster, prepared).await?.unwrap_or(prepared.survey.manifest.ended);
        let last = newest_commit(&prepared.survey);
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
    async fn scratch(
        &self,
        node: &Node,
        report: &Report,
        doors: &Doors,
        newest: &Survey,
    ) -> Result<crate::ops::node::scratch::Scratch> {
        let wal = newest.choice.segments().saturating_mul(newest.choice.segment_size.as_u64()).min(WAL_ROOM);
        let size = newest.manifest.size.0;
        let needed = ByteCount(size.saturating_add(size / 10).saturating_add(wal));
        let named = self.wish.scratch.as_deref();
        let base = scratch::base(doors, self.cluster, &node.host, named, needed).await?;
        let programs = doors.programs(self.cluster, &node.host).await?;
        let scratch = scratch::name(&base, &report.id, self.cluster, &node.host, &programs.directory);
        scratch::socket_fits(self.cluster, &scratch)?;
        Ok(scratch)
    }

    /// Declares the copy as a node.
    fn copied(&self, node: &Node, request: &copy::Request, restored: &copy::Report) -> Node {
        Node {
            name: copy::NAME.to_owned(),
            host: node.host.clone(),
            port: restored.port,
            data_directory: request.directory.clone(),
            config_directory: None,
            socket_directory: None,
            log_directory: None,
            adopted: false,
            preferred: false,
            promote: Promote::ByHand,
            pool_connections: None,
            health: DeclaredChecks::new(),
        }
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

/// Returns when the newest transaction committed that a restore to the end of the archive has.
fn newest_commit(survey: &Survey) -> Timestamp {
    survey.choice.last.as_ref().map_or(survey.manifest.ended, |mark| mark.at)
}

/// Returns when the oldest backup had ended.
async fn oldest(cluster: &Cluster, prepared: &Prepared) -> Result<Option<Timestamp>> {
    let keys = ClusterKeys::new(&cluster.name).system(prepared.survey.system_identifier);
    let folders = prepared.repo.list(Some(&keys.backups())).await?.folders;
    let mut labels: Vec<Label> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
    labels.sort();
    for label in labels {
        // One without a manifest is not finished; one that is damaged counts for nothing here, and verify names it.
        let manifest = keys.backup(&label).manifest();
        if let Some(Ok(manifest)) = document::read::<Manifest>(&*prepared.repo, &manifest).await? {
            return Ok(Some(manifest.ended));
        }
    }
    Ok(None)
}

/// Returns the same doors, with every place of a node beside the copy.
fn doors_to(doors: &Doors, host: &str, restored: &copy::Report) -> Result<Doors> {
    let lib = doors.places(host).lib().display().to_string();
    let beside = restored.beside.display().to_string();
    let places = Places::decide(true, |name| match name {
        "PGHERD_LIB_DIR" => Some(lib.clone()),
        "PGHERD_CONFIG_DIR" | "PGHERD_STATE_DIR" => Some(beside.clone()),
        _ => None,
    })?;
    Ok(doors.clone().with_places(&places))
}

/// Says what the loss of everything but the repository would have cost when the drill began.
///
/// `primary_next` is the number that the primary's next transaction had then, `copy_next` that of a copy of the newest moment.
fn freshness(
    report: &Report,
    newest: &Survey,
    primary_next: Option<u64>,
    copy_next: Option<u64>,
) -> Freshness {
    let newest_commit = newest_commit(newest);
    let age_seconds = report.begun.duration_since(newest_commit).as_secs_f64().max(0.0);
    let written_since = primary_next.zip(copy_next).map(|(primary, copy)| primary != copy);
    let rpo_seconds = if written_since == Some(false) { 0.0 } else { age_seconds };
    Freshness { newest_commit, age_seconds, written_since, rpo_seconds }
}
