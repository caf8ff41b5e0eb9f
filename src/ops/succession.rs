//! One node that leads after another: what every change of the primary shares, planned or forced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::db::promotion::{self, Recovery};
use crate::db::queries::{self, ServerRole};
use crate::db::{Conn, DbError};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Command;
use crate::ops::apply;
use crate::ops::apply::evidence::Evidence as Applied;
use crate::ops::apply::world::LeftOut;
use crate::ops::context::Context;
use crate::ops::hold::Holder;
use crate::ops::hook::{self, Facts, Point, Ran};
use crate::ops::observe::{self, Doors};
use crate::ops::plan::Fixed;
use crate::ops::pooler::turn;
use crate::ops::provision::{self, Site};
use crate::pg::control_file::ClusterState;
use crate::pg::lsn::Lsn;
use crate::pg::synchronous::SynchronousNames;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::topology::declared::{self, NodeWish};
use crate::topology::model::{Cluster, Node};
use crate::units::ByteCount;

/// What the journal keeps of the input: enough to go on, or back, without the topology file. Holds no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub herd: String,
    pub cluster: Cluster,
    pub fixed: Fixed,
    pub system_identifier: SystemIdentifier,
    /// The timeline of the old primary.
    pub timeline: TimelineId,
    /// The node that is primary before.
    pub from: String,
    /// The node that is primary afterwards.
    pub to: String,
    /// The other standbys that are led to the new primary.
    pub siblings: Vec<String>,
    /// Whom the new primary's commits wait for, where that is not what is declared: too few of those answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronous: Option<String>,
    /// What standbys would have their commits wait for before, where that is not what is declared: it is put back when this is undone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<String, String>,
    /// What does not answer.
    #[serde(default, skip_serializing_if = "is_nobody")]
    pub left_out: LeftOut,
}

fn is_nobody(left_out: &LeftOut) -> bool {
    left_out.nodes.is_empty() && left_out.hosts.is_empty()
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    pub input: Input,
    /// The steps that an `apply` has as well take this: the cluster with the candidate as its primary.
    pub apply: apply::world::World,
}

impl World {
    /// Opens the doors and finds the programs.
    ///
    /// # Errors
    /// When a door cannot be opened or a program is missing.
    pub async fn open(context: &Context, operation: String, input: Input) -> Result<Self> {
        let as_apply = apply::world::Input {
            herd: input.herd.clone(),
            cluster: input.cluster.clone(),
            primary: input.to.clone(),
            fixed: input.fixed.clone(),
        };
        // No step sets a password of a role, so none is looked for; what logs in for the write proof has its own.
        let left_out = input.left_out.clone();
        let apply =
            apply::world::World::open_but(operation, as_apply, BTreeMap::new(), context, left_out).await?;
        Ok(Self { input, apply })
    }

    /// Returns a node with everything that working on it needs.
    ///
    /// # Errors
    /// When a journal names a node that its own input does not have.
    pub fn site(&self, node: &str) -> Result<Site<'_>> {
        self.apply.site(node)
    }

    /// Returns who holds clients back in this operation's name.
    pub fn holder(&self) -> Holder<'_> {
        Holder {
            doors: &self.apply.doors,
            cluster: &self.input.cluster,
            build: &self.apply.build,
            operation: &self.apply.operation,
        }
    }

    /// Returns whom a node's commits wait for, or would, while `primary` leads. What a standby has is never more than what its primary waits
    /// for: when that one is gone, the standbys are who tells.
    fn synchronous(&self, node: &Node, primary: &str) -> String {
        let Input { cluster, to, from, synchronous, before, .. } = &self.input;
        match (synchronous, before.get(&node.name)) {
            (_, Some(before)) if primary == from => before.clone(),
            (Some(fewer), _) if primary == to && node.name == *to => fewer.clone(),
            (Some(fewer), _) if primary == to => {
                let fewer = SynchronousNames::parse(fewer).filter(|fewer| !fewer.names.is_empty());
                declared::synchronous_names_for(cluster, node, fewer.map_or(0, |fewer| fewer.count))
            }
            (_, _) => declared::synchronous_names(cluster, node),
        }
    }

    /// Returns what a node should be while `primary` leads.
    ///
    /// # Errors
    /// As [`World::site`].
    pub fn wish(&self, node: &Node, primary: &str) -> Result<NodeWish<'_>> {
        let leads = self.apply.node(primary)?;
        let memory = self.input.fixed.memory.get(&node.name).copied().unwrap_or(ByteCount(0));
        let upstream = (node.name != leads.name).then_some(leads);
        Ok(NodeWish { upstream, synchronous: self.synchronous(node, primary), memory })
    }
}

/// How long a promotion may take.
pub const PROMOTE: Duration = Duration::from_secs(60);

/// A promotion that has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    pub timeline: TimelineId,
    /// Where the timeline begins.
    pub begins: Lsn,
}

/// What a look at the node that is to lead tells.
#[derive(Debug)]
pub enum Look {
    Standby,
    Primary(Promoted),
    /// It takes writes on a timeline that does not come after the old one.
    Strange {
        why: String,
    },
}

/// A standby that streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    pub timeline: TimelineId,
    pub lsn: Option<Lsn>,
}

/// Connects to a node's server.
///
/// # Errors
/// When it does not answer.
pub async fn connect(site: &Site<'_>) -> Result<Conn> {
    site.connect().await.map_err(Error::from)
}

/// Returns the file that makes a node start as a standby.
pub fn signal(site: &Site<'_>) -> PathBuf {
    site.node.data_directory.join("standby.signal")
}

/// Waits for work no longer than `limit`.
///
/// # Errors
/// That of the work, or that it took longer.
pub async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(ended) => ended,
        Err(_) => Err(Error::failed(format!("not within {} s", limit.as_secs()))),
    }
}

/// Tells that a step that is shared with `apply` left what it never leaves.
pub fn unexpected(evidence: &Applied) -> Error {
    Error::failed(format!("a step that is shared with apply left {evidence:?}"))
}

/// Returns what evidence of `apply` says about a standby that streams.
///
/// # Errors
/// When it is of another step.
pub fn streaming(evidence: &Applied) -> Result<Streaming> {
    let Applied::Streams { timeline, lsn } = evidence else { return Err(unexpected(evidence)) };
    Ok(Streaming { timeline: *timeline, lsn: *lsn })
}

/// Asks a server for the timeline that it writes or replays, and how far its WAL reaches. What `SQL` tells of a standby that receives
/// nothing may be behind by a promotion (`IDENTIFY_SYSTEM`, "Streaming Replication Protocol").
///
/// # Errors
/// When it does not answer.
pub async fn identify(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<(TimelineId, Lsn)> {
    let programs = doors.programs(cluster, &node.host).await?;
    let socket = doors.node_places(cluster, node).socket;
    let conninfo = format!(
        "host='{}' port={} user={} dbname=postgres replication=database connect_timeout=5",
        socket.display(),
        node.port,
        declared::SUPERUSER
    );
    let command = Command::new(programs.path("psql"))
        .args(["-XAtqw", "-d", conninfo.as_str(), "-c", "IDENTIFY_SYSTEM"])
        .reads()
        .timeout(Duration::from_secs(8));
    let output = doors.host(&node.host).run(&command).await?.text();
    let mut fields = output.trim().split('|').skip(1);
    let timeline = fields.next().and_then(|text| text.parse().ok()).and_then(TimelineId::new);
    let reached = fields.next().and_then(|text| text.parse().ok());
    timeline.zip(reached).ok_or_else(|| {
        Error::failed(format!("{} did not say where it is", cluster.full_name(&node.name)))
            .detail(format!("It answered {:?} to IDENTIFY_SYSTEM.", output.trim()))
    })
}

/// Sees that a cluster has nodes in a region.
///
/// # Errors
/// [`ErrorKind::NotFound`] with the regions that there are.
pub fn has_region(cluster: &Cluster, region: &str) -> Result<()> {
    let there: BTreeSet<&str> = cluster.nodes.iter().filter_map(|node| cluster.region(node)).collect();
    if there.contains(region) {
        return Ok(());
    }
    let known = if there.is_empty() {
        "Its nodes are on this machine, which is one region.".to_owned()
    } else {
        format!("Its nodes are in: {}.", there.into_iter().collect::<Vec<_>>().join(", "))
    };
    Err(Error::new(ErrorKind::NotFound, format!("{} has no node in a region {region:?}", cluster.name))
        .hint(known))
}

impl World {
    /// Runs the hook of a point, if there is one: before the promotion if none is given.
    ///
    /// # Errors
    /// As [`hook::run`].
    pub async fn hook(
        &self,
        point: Point,
        (kind, attempt): (&str, u32),
        promoted: Option<Promoted>,
    ) -> Result<Option<Ran>> {
        let facts = Facts {
            herd: &self.input.herd,
            kind,
            operation: &self.apply.operation,
            attempt,
            old_primary: Some(&self.input.from),
            new_primary: Some(&self.input.to),
            system_identifier: Some(self.input.system_identifier),
            timeline: Some(promoted.map_or(self.input.timeline, |promoted| promoted.timeline)),
            begins: promoted.map(|promoted| promoted.begins),
        };
        hook::run(&self.apply.doors, &self.input.cluster, point, &facts).await
    }

    /// Makes a standby the primary, and waits until it is.
    ///
    /// # Errors
    /// When its recovery does not end, or it is primary on no later timeline.
    pub async fn promote(&self, node: &str) -> Result<Promoted> {
        let site = self.site(node)?;
        let conn = connect(&site).await?;
        if matches!(queries::server_facts(&conn).await?.role, ServerRole::Standby { .. })
            && !promotion::promote(&conn, PROMOTE).await?
        {
            return Err(Error::failed(format!("{} did not end its recovery", site.name()))
                .detail(provision::last_log_lines(&site).await.join("\n")));
        }
        match self.look_promoted(node).await? {
            Look::Primary(promoted) => Ok(promoted),
            Look::Standby => Err(Error::failed(format!("{} is not primary", site.name()))),
            Look::Strange { why } => Err(Error::failed(why)),
        }
    }

    /// Looks whether the candidate is primary, on a timeline that comes from the old one. Waits for a promotion that is on its way.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn look_promoted(&self, node: &str) -> Result<Look> {
        let site = self.site(node)?;
        self.look_whether_promoted(&site, &connect(&site).await?).await
    }

    async fn look_whether_promoted(&self, site: &Site<'_>, conn: &Conn) -> Result<Look> {
        match promotion::recovery(conn).await? {
            Recovery::Unasked => return Ok(Look::Standby),
            Recovery::Ended => {}
            Recovery::Asked => {
                if !promotion::ended(conn, PROMOTE).await? {
                    let why = format!(
                        "{} was asked to end its recovery and has not in {} s",
                        site.name(),
                        PROMOTE.as_secs()
                    );
                    return Ok(Look::Strange { why });
                }
            }
        }
        let facts = queries::server_facts(conn).await?;
        if facts.timeline <= self.input.timeline {
            return Ok(Look::Strange {
                why: format!(
                    "{} is primary on timeline {}, which is not later than {}",
                    site.name(),
                    facts.timeline,
                    self.input.timeline
                ),
            });
        }
        let begins = provision::timeline_begins(site, facts.timeline).await?;
        Ok(Look::Primary(Promoted { timeline: facts.timeline, begins }))
    }

    /// Leads a node to the new primary: a standby by a reload, the old primary by a start as a standby.
    ///
    /// # Errors
    /// When it cannot be changed or does not answer.
    pub async fn point(&self, node: &str) -> Result<()> {
        let site = self.site(node)?;
        apply::configure::set_own(&site, &self.wish(site.node, &self.input.to)?).await?;
        if node == self.input.from {
            provision::write(&site, &signal(&site), b"", 0o600).await?;
            if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
                return provision::start(&site).await;
            }
        }
        queries::reload(&connect(&site).await?).await.map_err(Error::from)
    }

    /// Waits until a node streams from the new primary.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn until_it_streams(&self, node: &str) -> Result<Streaming> {
        let (site, primary) = (self.site(node)?, self.site(&self.input.to)?);
        streaming(&apply::follow::until_it_streams(&site, &primary).await?)
    }

    /// Leads a node to the new primary and waits a moment for it; clients may need it for their commits.
    pub async fn lead_for_a_moment(&self, node: &str, moment: Duration) -> Result<Streaming> {
        self.point(node).await?;
        within(moment, self.until_it_streams(node)).await
    }

    /// Leads the aliases of the pooler on a host to where the nodes are now, and lets its clients go on; returns the aliases.
    ///
    /// # Errors
    /// When the pooler does not answer through each of them.
    pub async fn lead_pooler(&self, host: &String) -> Result<Vec<String>> {
        let done = apply::pooler::ensure(&self.apply, host).await?;
        let Applied::PoolerAnswers { aliases } = done else { return Err(unexpected(&done)) };
        self.holder().resume(std::slice::from_ref(host)).await?;
        Ok(aliases)
    }

    /// Leads what leads to the old primary to the new one and lets the clients of the pooler on a host go on, as fast as that can be; returns
    /// the aliases. The rest of its files is put right later, by [`World::lead_pooler`], and at once where this does not do.
    ///
    /// # Errors
    /// When the pooler does not answer through each of them.
    pub async fn turn_pooler(&self, host: &String, lost: bool) -> Result<Vec<String>> {
        let of = (&self.apply.doors, &self.input.cluster, &self.apply.build);
        let nodes = (self.apply.node(&self.input.from)?, self.apply.node(&self.input.to)?);
        match turn::turn(of, host, &self.apply.operation, nodes, lost).await {
            Ok(aliases) => Ok(aliases),
            Err(error) => {
                tracing::warn!(%error, "the pooler on {host} is put right as a whole");
                self.lead_pooler(host).await
            }
        }
    }

    /// Gives the new primary its own settings and writes a checkpoint of its timeline.
    ///
    /// # Errors
    /// When pg_control does not name its timeline afterwards.
    pub async fn settle(&self, node: &str) -> Result<()> {
        let site = self.site(node)?;
        apply::configure::set_own(&site, &self.wish(site.node, &self.input.to)?).await?;
        let conn = connect(&site).await?;
        queries::reload(&conn).await?;
        let facts = queries::server_facts(&conn).await?;
        let last = promotion::last_checkpoint(&conn).await?;
        if last.timeline == facts.timeline {
            return Ok(());
        }
        Err(Error::failed(format!(
            "pg_control of {} names timeline {} after a checkpoint on timeline {}",
            site.name(),
            last.timeline,
            facts.timeline
        )))
    }

    /// Writes down in the repository that a node is primary; returns the term.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub async fn record(&self, node: &str) -> Result<u64> {
        let done = apply::archive::record(&self.apply, node).await?;
        let Applied::Recorded { term } = done else { return Err(unexpected(&done)) };
        Ok(term)
    }

    /// Drops slots that nobody is to use any more; returns those that were there.
    ///
    /// A standby that was away may still read through one, by settings of before: it would keep the operation from ever ending, and WAL here
    /// for good once it is led elsewhere.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn drop_slots(&self, on: &str, slots: &[String]) -> Result<Vec<String>> {
        let conn = connect(&self.site(on)?).await?;
        let mut gone = Vec::new();
        for slot in slots {
            if queries::take_slot(&conn, slot).await? {
                gone.push(slot.clone());
            }
        }
        Ok(gone)
    }

    /// Writes a row and reads it on these standbys; returns which have it, and after how many milliseconds.
    ///
    /// # Errors
    /// When it cannot be written, or is not seen on one of them.
    pub async fn prove(&self, nodes: &[String]) -> Result<(Vec<String>, u64)> {
        let done = apply::proof::prove(&self.apply, nodes).await?;
        let Applied::Proved { nodes, milliseconds } = done else { return Err(unexpected(&done)) };
        Ok((nodes, milliseconds))
    }

    /// Sees that the candidate is the standby that it was, and that nobody's request to end that is on its way.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when it has been promoted, will be, or it cannot be told.
    pub async fn no_longer_asked(&self, node: &str) -> Result<()> {
        let site = self.site(node)?;
        let conn = match site.connect().await {
            Ok(conn) => conn,
            Err(DbError::NotListening { .. }) => return self.not_promoted(&site).await,
            Err(error) => return Err(error.into()),
        };
        let why = match self.look_whether_promoted(&site, &conn).await? {
            Look::Standby => return Ok(()),
            Look::Primary(Promoted { timeline, .. }) => format!("It is primary on timeline {timeline}."),
            Look::Strange { why } => format!("{why}."),
        };
        Err(Error::refused(format!("{} has been promoted", site.name())).detail(why))
    }

    /// Sees that a candidate that does not run ended as a standby on the old timeline, and starts as one.
    ///
    /// A server that is stopped in the last steps of its promotion has lost the file that makes it a standby, and its pg_control still says
    /// what it said before (`StartupXLOG` in `xlog.c`): it would start as a primary on the old timeline.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when its files say otherwise.
    pub async fn not_promoted(&self, candidate: &Site<'_>) -> Result<()> {
        let refused = |why: String| {
            Error::refused(format!("cannot tell that {} has not been promoted", candidate.name()))
                .detail(format!("It does not run, and {why}."))
        };
        let control = provision::control_file(candidate).await?;
        if control.state != ClusterState::ShutDownInRecovery
            || control.checkpoint_timeline != self.input.timeline
        {
            return Err(refused(format!(
                "its pg_control says that it is {} on timeline {}",
                control.state, control.checkpoint_timeline
            )));
        }
        let signal = signal(candidate);
        let found = candidate.host().stat(&signal).await;
        let found = found.map_err(|error| {
            Error::failed(format!("could not look at {}", signal.display())).source(error)
        })?;
        if found.is_none() {
            return Err(refused(format!("it has no {}: a promotion had begun", signal.display())));
        }
        Ok(())
    }
}
