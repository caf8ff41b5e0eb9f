//! A standby of a living cluster, made anew from a backup and the archive: the primary gives it only what is not archived yet.
//!
//! What the node had is renamed aside and never removed. A run that was killed leaves a directory that only this restore's marker claims; the next
//! run begins that copy anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::fill::{self, Filling};
use super::prepare::{self, Moved, Prepared, Remap};
use super::scratch::{Event, Phase, Seconds, Tell};
use crate::db::queries::{self, ServerRole};
use crate::engine::interrupt::Interrupt;
use crate::engine::lease::{Held, Purpose};
use crate::engine::operation;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Host, RunAs};
use crate::ops::apply::{self, follow};
use crate::ops::certificate::{self, Holder};
use crate::ops::context::Context;
use crate::ops::node::restore::{Restored, Target, Wish};
use crate::ops::observe::{self, NodeObserved, Server};
use crate::ops::plan::Fixed;
use crate::ops::provision::{self, Site};
use crate::ops::roles;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::{ClusterKeys, Label};
use crate::topology::declared::NodeWish;
use crate::topology::model::{Cluster, Herd, Node};

/// What the operator asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// `c`.
    pub node: String,
    /// The backup to begin with, if the operator says so.
    pub backup: Option<Label>,
    pub remap: Remap,
    /// 0: as many as there are cores.
    pub workers: u32,
    /// How long to wait for another operation of the cluster.
    pub wait: Duration,
}

/// A path that was renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Aside {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// A standby that streams again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rebuilt {
    pub cluster: String,
    /// `inventory-c`.
    pub node: String,
    pub primary: String,
    pub repository: String,
    pub label: Label,
    pub copied: Restored,
    pub timeline: TimelineId,
    pub lsn: Option<Lsn>,
    pub tablespaces: Vec<Moved>,
    /// What the node had before.
    pub set_aside: Vec<Aside>,
    pub seconds: Seconds,
    pub notes: Vec<String>,
}

/// Rebuilds a standby from the newest backup that leads to the primary.
///
/// # Errors
/// `Refused` for the primary, for a node that streams, and for a directory that is not the node's; `NotFound` without a primary or a backup;
/// `Locked` beside another operation; `Interrupted` on request.
pub async fn rebuild(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    request: &Request,
    tell: Tell,
    interrupt: &Interrupt,
) -> Result<Rebuilt> {
    let node = cluster.node(&request.node).ok_or_else(|| {
        let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        Error::new(ErrorKind::NotFound, format!("cluster {} has no node {}", cluster.name, request.node))
            .hint(format!("Its nodes are: {}.", names.join(", ")))
    })?;
    let lock = context.locker(cluster).take(request.wait).await?;
    let rebuilt = rebuild_locked(context, herd, cluster, node, request, tell, interrupt).await;
    lock.give_back().await;
    rebuilt
}

/// The same, while nobody else changes the cluster.
async fn rebuild_locked(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    node: &Node,
    request: &Request,
    tell: Tell,
    interrupt: &Interrupt,
) -> Result<Rebuilt> {
    let all = Instant::now();
    operation::refuse_beside_unfinished(&context.store, &cluster.name)?;
    let wish = Wish { target: Target::Latest, timeline: None, backup: request.backup.clone() };
    let prepared = prepare::prepare(context, cluster, &node.host, &wish).await?;
    let primary = allowed(cluster, node, &prepared)?;
    let moved = request.remap.decide(&prepared.survey, &node.data_directory)?;
    let chosen = all.elapsed();
    let fixed = apply::fix(&prepared.doors, herd, cluster, &prepared.observed).await?;
    let programs = prepared.doors.programs(cluster, &node.host).await?;
    let operation = format!("restore-to-{}", cluster.full_name(&node.name));
    let site = |node: &'_ Node| -> Site<'_> {
        Site {
            herd: &herd.name,
            operation: &operation,
            cluster,
            node: cluster.node(&node.name).expect("it is one of the cluster's"),
            doors: &prepared.doors,
            programs,
            users: fixed.users.get(&node.host).map_or(&[], Vec::as_slice),
        }
    };
    let (own, above) = (site(node), site(primary));
    let keys = ClusterKeys::new(&cluster.name).system(prepared.survey.system_identifier);
    let label = prepared.survey.choice.backup.clone();
    let held = Held::take_to_use(&prepared.repo, &keys, Purpose::Restore, vec![label]).await?;
    let job = Job { prepared: &prepared, request, own: &own, above: &above, fixed: &fixed, moved: &moved };
    let ended = tokio::select! {
        biased;
        () = interrupt.asked(1) => Err(Error::new(ErrorKind::Interrupted, "the restore was interrupted")
            .detail(format!("{} is not complete and does not start.", own.name()))
            .hint("Run the same restore again: it begins the copy anew.")),
        why = held.lost() => Err(why),
        ended = job.run(&tell, chosen, all) => ended,
    };
    if let Err(error) = held.release().await {
        tracing::warn!(%error, "could not give the lease back; it expires by itself");
    }
    ended
}

/// Makes sure that the node may be rebuilt, and returns the primary.
fn allowed<'c>(cluster: &'c Cluster, node: &Node, prepared: &Prepared) -> Result<&'c Node> {
    let name = cluster.full_name(&node.name);
    let Some(primary) = &prepared.primary else {
        return Err(Error::new(ErrorKind::NotFound, format!("cannot rebuild {name}: nobody is the primary that it would follow"))
            .hint("See what is wrong with \"pgherd status\". To bring the whole cluster back: pgherd restore --in-place"));
    };
    if primary.node == node.name {
        return Err(Error::refused(format!("cannot rebuild {name}: it is the primary of a living cluster"))
            .detail("Its data is what the standbys are copies of. Nothing was changed.")
            .hint("To bring the whole cluster back to a moment: pgherd restore --in-place"));
    }
    if prepared.survey.system_identifier != primary.system_identifier {
        return Err(Error::refused(format!(
            "backup {} is of another cluster than {}",
            prepared.survey.choice.backup, primary.node
        ))
        .detail(format!(
            "Its system identifier is {}, the primary's is {}.",
            prepared.survey.system_identifier, primary.system_identifier
        )));
    }
    let seen = prepared.observed.node(&node.name);
    if let Some(adopted) = prepared.observed.nodes.iter().find(|seen| seen.is_adopted()) {
        return Err(Error::refused(format!("cannot rebuild {name}: {} was adopted", cluster.full_name(&adopted.node)))
            .detail("What pgherd did not make it does not know how to make anew: where its configuration is, who starts it. Nothing was changed.")
            .hint("Make the standby as it was made before, with pg_basebackup, or restore a copy: pgherd restore --to-dir DIRECTORY"));
    }
    if seen.is_some_and(streams) {
        return Err(Error::refused(format!("cannot rebuild {name}: it streams from the primary"))
            .detail("It is a standby as it should be. Nothing was changed.")
            .hint("To rebuild it all the same, stop it first."));
    }
    if let Some(NodeObserved { server: Server::Unknown { why } | Server::Foreign { what: why }, .. }) = seen {
        return Err(Error::refused(format!("cannot rebuild {name}: what runs there is not known"))
            .detail(format!("{why}. Nothing was changed.")));
    }
    Ok(cluster.node(&primary.node).expect("the primary is one of the cluster's nodes"))
}

fn streams(node: &NodeObserved) -> bool {
    node.running().is_some_and(|running| match &running.facts.role {
        ServerRole::Standby { receiver, .. } => {
            receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming")
        }
        ServerRole::Primary { .. } => false,
    })
}

struct Job<'a> {
    prepared: &'a Prepared,
    request: &'a Request,
    own: &'a Site<'a>,
    above: &'a Site<'a>,
    fixed: &'a Fixed,
    moved: &'a [Moved],
}

impl Job<'_> {
    async fn run(&self, tell: &Tell, chosen: Duration, all: Instant) -> Result<Rebuilt> {
        let own = self.own;
        let mut seconds = Seconds { choose: chosen.as_secs_f64(), ..Seconds::default() };
        provision::stop(own).await?;
        let set_aside = self.set_aside().await?;
        let room =
            prepare::room(own.host(), &self.prepared.survey, &own.node.data_directory, self.moved).await?;
        prepare::refuse_without_room(&room)?;
        provision::claim_directory(own).await?;
        provision::copy_passfile(own, self.above.node).await?;
        certificate::equip(own.doors, own.cluster, Holder::Node(own.node)).await?;
        for moved in self.moved {
            own.host().make_directory(&moved.to, 0o700).await?;
        }
        // From now on the primary keeps what the archive does not have yet.
        let slot = own.cluster.slot_name(&own.node.name);
        queries::ensure_physical_slot(&self.above.connect().await?, &slot).await?;
        tell(Event::Phase(Phase::Copies));
        let copying = Instant::now();
        let copied = self.copy(tell).await?;
        seconds.copy = copying.elapsed().as_secs_f64();
        provision::complete_claim(own, self.memory()).await?;
        tell(Event::Phase(Phase::Recovers));
        let replaying = Instant::now();
        provision::start(own).await?;
        let (timeline, lsn) = self.until_it_streams(tell).await?;
        seconds.replay = replaying.elapsed().as_secs_f64();
        seconds.all = all.elapsed().as_secs_f64();
        let mut notes = self.prepared.notes.clone();
        notes.extend(copied.notes.iter().cloned());
        Ok(Rebuilt {
            cluster: own.cluster.name.clone(),
            node: own.name(),
            primary: self.above.name(),
            repository: self.prepared.repository.name.clone(),
            label: self.prepared.survey.choice.backup.clone(),
            copied,
            timeline,
            lsn,
            tablespaces: self.moved.to_vec(),
            set_aside,
            seconds,
            notes,
        })
    }

    fn memory(&self) -> crate::units::ByteCount {
        self.fixed.memory.get(&self.own.node.name).copied().unwrap_or_default()
    }

    /// Renames what the node had: its data directory, if its marker claims it, and what is where its tablespaces go.
    async fn set_aside(&self) -> Result<Vec<Aside>> {
        let own = self.own;
        let host = own.host();
        let mut paths = Vec::new();
        if holds_something(host, &own.node.data_directory).await? {
            match observe::observe_claim(host, &own.places(), own.node).await {
                // What an earlier run of this very restore has begun; it is emptied when the directory is claimed.
                observe::Claim::Ours(marker)
                    if marker.operation == own.operation && marker.system_identifier.is_none() => {}
                observe::Claim::Ours(_) => paths.push(own.node.data_directory.clone()),
                observe::Claim::None | observe::Claim::Other(_) | observe::Claim::Unknown { .. } => {
                    return Err(Error::refused(format!(
                        "cannot use {}: it is not empty, and not {}'s",
                        own.node.data_directory.display(),
                        own.name()
                    ))
                    .detail("No marker of pgherd claims what is in it. Nothing in it was changed.")
                    .hint("Move it away, or give the node another `data-directory`."));
                }
            }
        }
        for moved in self.moved {
            if holds_something(host, &moved.to).await? {
                paths.push(moved.to.clone());
            }
        }
        let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut done = Vec::new();
        for from in paths {
            let to = prepare::beside(&from, &format!(".before-{stamp}"));
            rename(host, &from, &to).await?;
            done.push(Aside { from, to });
        }
        Ok(done)
    }

    async fn copy(&self, tell: &Tell) -> Result<Restored> {
        let own = self.own;
        let above = self.prepared.observed.node(&self.above.node.name).and_then(NodeObserved::running);
        let names = roles::synchronous_beside(own.cluster, own.node, (self.above.node, above));
        let wish = NodeWish { upstream: Some(self.above.node), synchronous: names, memory: self.memory() };
        let survey = &self.prepared.survey;
        let filling = Filling {
            repository: &self.prepared.repository,
            system_identifier: survey.system_identifier,
            label: &survey.choice.backup,
            tablespaces: self.moved.iter().map(|moved| (moved.oid, moved.to.clone())).collect(),
            workers: self.request.workers,
        };
        let tell = Arc::clone(tell);
        let told = Arc::new(move |progress| tell(Event::Progress(progress)));
        fill::fill(&self.prepared.door, own, &wish, filling, told).await
    }

    /// Waits as long as it replays.
    async fn until_it_streams(&self, tell: &Tell) -> Result<(TimelineId, Option<Lsn>)> {
        let from = self.prepared.survey.manifest.start_lsn;
        let to = self.prepared.primary.as_ref().map_or(from, |primary| primary.written_lsn);
        let mut before = None;
        loop {
            match follow::until_it_streams(self.own, self.above).await {
                Ok(_) => {
                    let facts = queries::server_facts(&self.own.connect().await?).await?;
                    return Ok((facts.timeline, facts.role.lsn()));
                }
                Err(error) => {
                    let facts = queries::server_facts(&self.own.connect().await?).await?;
                    let at = facts.role.lsn();
                    if at <= before {
                        return Err(error);
                    }
                    if let Some(at) = at {
                        tell(Event::Replay { at, from, to });
                    }
                    before = at;
                }
            }
        }
    }
}

async fn holds_something(host: &dyn Host, path: &Path) -> Result<bool> {
    Ok(host.list(path).await?.is_some_and(|names| !names.is_empty()))
}

/// Renames a directory within its parent, durably. The parent may belong to root, so it is the caller who renames.
async fn rename(host: &dyn Host, from: &Path, to: &Path) -> Result<()> {
    let words = [from, to].map(|path| path.display().to_string());
    let program = Command::new("mv").args(["-T", "-n", "--"]).args(words).user(RunAs::Caller);
    host.run(&program).await?;
    // -n keeps quiet about a name that is taken.
    if host.stat(from).await?.is_some() {
        return Err(Error::failed(format!("could not rename {}: {} is there", from.display(), to.display())));
    }
    let parent = to.parent().unwrap_or(to).display().to_string();
    host.run(&Command::new("sync").args(["--", &parent]).user(RunAs::Caller)).await?;
    Ok(())
}
