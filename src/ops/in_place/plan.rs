//! What a restore in place will do to a cluster, decided before anything happens, or why it cannot be done.
//!
//! Everything that can be refused is refused here: what is looked at while the old data is still in its place cannot fail when it is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::db::queries::ServerRole;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Command;
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::in_place::aside;
use crate::ops::in_place::lookup::Look;
use crate::ops::in_place::poolers::GRACE;
use crate::ops::in_place::servers::may_have_wal;
use crate::ops::in_place::step::RestoreStep;
use crate::ops::in_place::world::{Before, Input, State};
use crate::ops::node::restore::{Wish, clock};
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::{
    self, Claim, ClusterObserved, Depth, Directory, Doors, NodeObserved, Running, Server,
};
use crate::ops::plan::step::{PlannedStep, Sign};
use crate::ops::pooler::{self, ConsoleSeen, PoolerProcess};
use crate::ops::preflight::{self, without_twins};
use crate::ops::restore::survey::Survey;
use crate::ops::restore::target::Choice;
use crate::ops::roles::{self, Lead};
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::manifest::Manifest;
use crate::repo::primary;
use crate::topology::model::{Backups, Cluster, Herd, Node, PoolMode};
use crate::units::{ByteCount, human_duration};

type Planned = PlannedStep<RestoreStep>;

/// What is to be done, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestorePlan {
    pub cluster: String,
    /// One line: what there is now.
    pub headline: String,
    pub input: Input,
    /// Steps of one stage run side by side.
    pub stages: Vec<Vec<Planned>>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl RestorePlan {
    /// Tells whether a plan that was made just now asks for the same.
    ///
    /// Where the archive ends moves on by itself and is no reason to ask again.
    pub fn is_still(&self, shown: &Self) -> bool {
        let same_way = |one: &Choice, other: &Choice| {
            one.target == other.target && one.backup == other.backup && one.timelines == other.timelines
        };
        let steps = |plan: &Self| -> Vec<RestoreStep> {
            let steps = plan.stages.iter().flatten().map(|planned| planned.step.clone());
            steps.filter(|step| !matches!(step, RestoreStep::LastWal { .. })).collect()
        };
        // Whether a server answers, or streams, in this very moment is no reason to ask again.
        let nodes = |plan: &Self| -> Vec<Before> {
            let settled = |before: &Before| match before.state {
                State::Answered | State::Silent => {
                    Before { state: State::Answered, streamed: false, ..before.clone() }
                }
                State::Stopped => before.clone(),
            };
            plan.input.before.iter().map(settled).collect()
        };
        let same_nodes = nodes(self) == nodes(shown);
        same_way(&self.input.choice, &shown.input.choice) && same_nodes && steps(self) == steps(shown)
    }
}

/// Looks at the cluster, its poolers and its repository, and decides.
///
/// # Errors
/// Every obstacle at once.
pub async fn plan(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
    seed: Option<&str>,
) -> Result<RestorePlan, Vec<Error>> {
    let one = |error: Error| vec![error];
    let Some(backups) = &cluster.backups else {
        return Err(vec![
            Error::refused(format!("cannot restore {}: it declares no backups", cluster.name))
                .detail("Without a repository there is nothing to restore from. Nothing was changed.")
                .hint("Declare `backups` in the topology, then: pgherd apply"),
        ]);
    };
    let seed = match seed {
        None => cluster.preferred(),
        Some(name) => cluster.node(name).ok_or_else(|| {
            let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
            one(Error::new(ErrorKind::NotFound, format!("{} has no node {name:?}", cluster.name))
                .hint(format!("Its nodes are: {}.", names.join(", "))))
        })?,
    };
    let doors = Doors::open(cluster, context.places.clone(), &context.gate).map_err(one)?;
    let nodes = cluster.nodes.iter().map(|node| &node.host);
    let mut obstacles = preflight::programs(&doors, cluster, nodes, cluster.pooler_hosts()).await;
    if !obstacles.is_empty() {
        return Err(without_twins(obstacles));
    }
    let observed = observe::observe(&doors, cluster, Depth::Files).await;
    if let Some(adopted) = observed.nodes.iter().find(|seen| seen.is_adopted()) {
        let name = cluster.full_name(&adopted.node);
        return Err(one(Error::refused(format!(
            "cannot restore {} in place: {name} was adopted",
            cluster.name
        ))
        .detail("pgherd did not make it, and sets no data aside that it did not make. Nothing was changed.")
        .hint("Restore a copy beside it: pgherd restore --to-dir DIRECTORY")));
    }
    let mut before = Vec::new();
    for node in &cluster.nodes {
        let seen = observed.node(&node.name).expect("every node is observed");
        match look_at_node(&doors, cluster, node, seen).await {
            Ok(found) => before.push(found),
            Err(error) => obstacles.push(error),
        }
    }
    let system = match system_of(cluster, &observed) {
        Ok(system) => Some(system),
        Err(error) => {
            obstacles.push(error);
            None
        }
    };
    obstacles.extend(shared_tablespaces(cluster, &before));
    let mut notes = Vec::new();
    let held = match poolers(&doors, cluster, &mut notes).await {
        Ok(held) => held,
        Err(errors) => {
            obstacles.extend(errors);
            Vec::new()
        }
    };
    let fixed = apply::fix(&doors, herd, cluster, &observed).await.map_err(one)?;
    let Some(system) = system.filter(|_| obstacles.is_empty()) else { return Err(without_twins(obstacles)) };
    let primary = match present_timeline(&observed) {
        Some(timeline) => Some(timeline),
        None => recorded_timeline(context, &doors, seed, backups, cluster, &mut notes).await.map_err(one)?,
    };
    let look = Look {
        doors: &doors,
        build: &context.build,
        cluster,
        repository: &backups.repository,
        node: seed,
        system,
        timeline: primary,
    };
    let lead = roles::lead(&observed);
    let writes = match &lead {
        Lead::Primary(name) => cluster.node(name),
        Lead::StoppedPrimary(_) | Lead::Unborn | Lead::Unknown { .. } | Lead::Split(_) => None,
    };
    let survey = look.survey_to_the_present(wish, writes).await.map_err(one)?;
    obstacles.extend(new_places(&doors, seed, &survey.manifest, &before).await.map_err(one)?);
    obstacles.extend(room(&doors, cluster, needs(&survey)).await.map_err(one)?);
    if !obstacles.is_empty() {
        return Err(obstacles);
    }
    let missing = apply::passwords(context, cluster).await.err().unwrap_or_default();
    if !missing.is_empty() {
        let what: Vec<String> = missing.iter().map(ToString::to_string).collect();
        notes.push(format!(
            "the passwords of the declared roles stay as they were then, since not all of them are at hand here: {}",
            what.join("; ")
        ));
    }
    notes.extend(survey.notes.iter().cloned());
    notes.extend(telling(cluster, &survey, &held));
    let input = Input {
        herd: herd.name.clone(),
        cluster: cluster.clone(),
        fixed,
        wish: wish.clone(),
        choice: survey.choice,
        system_identifier: system,
        tablespaces: survey
            .manifest
            .tablespaces
            .iter()
            .map(|space| (space.oid, space.location.clone()))
            .collect(),
        seed: seed.name.clone(),
        before,
    };
    let facts = Facts {
        input: &input,
        held: &held,
        lead,
        repository: &backups.repository.name,
        size: survey.manifest.size,
        passwords: missing.is_empty(),
    };
    let stages = stages(&facts);
    Ok(RestorePlan {
        cluster: cluster.name.clone(),
        headline: headline(&observed, &input.choice),
        input,
        stages,
        notes,
    })
}

async fn look_at_node(doors: &Doors, cluster: &Cluster, node: &Node, seen: &NodeObserved) -> Result<Before> {
    let name = cluster.full_name(&node.name);
    let (host, path) = (doors.host(&node.host), &node.data_directory);
    let cannot = |why: String| {
        Error::refused(format!("cannot restore over {}: {why}", path.display()))
            .detail("Nothing was changed.")
    };
    let Claim::Ours(marker) = &seen.marker else {
        let why = match &seen.marker {
            Claim::Other(marker) => {
                format!("the marker of {name} claims {}", marker.data_directory.display())
            }
            Claim::Unknown { why } => format!("the marker of {name} cannot be read: {why}"),
            Claim::None | Claim::Ours(_) => format!("no marker of {name} claims it"),
        };
        return Err(cannot(why).hint("pgherd restores only over what it made itself."));
    };
    if marker.system_identifier.is_none() {
        return Err(cannot(format!("operation {} has not finished making {name}", marker.operation))
            .hint(format!("pgherd operation resume {0}, or pgherd operation undo {0}", marker.operation)));
    }
    if let Server::Foreign { what } = &seen.server {
        return Err(cannot(what.clone()).hint("End what listens there, or give the node another port."));
    }
    let primary = match &seen.directory {
        Directory::Cluster { standby_signal, .. } => !standby_signal,
        Directory::Missing | Directory::Empty => false,
        Directory::Foreign { names } => {
            return Err(cannot(format!("it holds {} and no PG_VERSION", names.join(", ")))
                .hint("Look at it, and move it away if it may go."));
        }
        Directory::Unknown { why } => return Err(cannot(why.clone())),
    };
    let mut paths = Vec::new();
    if let Directory::Cluster { version, .. } = &seen.directory {
        paths.push(path.clone());
        paths.extend(tablespaces(doors, node, version).await?);
    }
    for path in &paths {
        if let Some(why) = aside::obstacle(host, path).await? {
            return Err(Error::refused(format!("cannot set {} aside: {why}", path.display()))
                .detail("A restore in place keeps the old data under another name beside the new. Nothing was changed.")
                .hint(
                    "Restore beside it and put it in place by hand: pgherd restore --to-dir. Or declare a directory below it as the \
                     `data-directory`.",
                ));
        }
    }
    let state = match (&seen.server, observe::postmaster(host, path).await?) {
        (Server::Up(_), _) => State::Answered,
        (_, Some(_)) => State::Silent,
        (_, None) => State::Stopped,
    };
    let streamed = seen.running().is_some_and(|running| match &running.facts.role {
        ServerRole::Standby { receiver: Some(receiver), .. } => receiver.status == "streaming",
        ServerRole::Standby { receiver: None, .. } | ServerRole::Primary { .. } => false,
    });
    Ok(Before { node: node.name.clone(), state, primary, streamed, paths })
}

/// Returns the directories that this major version has in the node's tablespaces: `LOCATION/PG_18_202506291`.
async fn tablespaces(doors: &Doors, node: &Node, version: &str) -> Result<Vec<PathBuf>> {
    let host = doors.host(&node.host);
    let links = node.data_directory.join("pg_tblspc");
    // A directory that is so damaged that it has none is set aside as it is.
    let names = host.list(&links).await?.unwrap_or_default();
    let mut found = Vec::new();
    for name in names.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let link = links.join(name).display().to_string();
        let target =
            host.run(&Command::new("readlink").args(["-n", "-f", "--", &link]).reads()).await?.text();
        let location = PathBuf::from(target);
        let prefix = format!("PG_{version}_");
        let inside = host.list(&location).await?.unwrap_or_default();
        found.extend(
            inside
                .iter()
                .filter(|name| name.starts_with(&prefix) && !name.contains(".before-"))
                .map(|name| location.join(name)),
        );
    }
    Ok(found)
}

fn shared_tablespaces(cluster: &Cluster, before: &[Before]) -> Option<Error> {
    let mut owner: BTreeMap<(&str, &Path), &str> = BTreeMap::new();
    for before in before {
        let node = cluster.node(&before.node)?;
        for path in &before.paths {
            if let Some(other) = owner.insert((&node.host, path), &before.node) {
                return Some(
                    Error::refused(format!(
                        "cannot restore {}: {other} and {} share {}",
                        cluster.name,
                        before.node,
                        path.display()
                    ))
                    .detail(
                        "Two nodes on one host cannot have one tablespace directory. Nothing was changed.",
                    ),
                );
            }
        }
    }
    None
}

/// All nodes must be of one system; a node whose data is gone has its marker's word.
fn system_of(cluster: &Cluster, observed: &ClusterObserved) -> Result<SystemIdentifier> {
    let mut found: BTreeMap<SystemIdentifier, Vec<&str>> = BTreeMap::new();
    for node in &observed.nodes {
        let marked = match &node.marker {
            Claim::Ours(marker) => marker.system_identifier,
            Claim::None | Claim::Other(_) | Claim::Unknown { .. } => None,
        };
        let own = node.control().map(|control| control.system_identifier);
        for system in marked.into_iter().chain(own) {
            found.entry(system).or_default().push(&node.node);
        }
    }
    match found.len() {
        1 => Ok(*found.keys().next().expect("there is one")),
        0 => Err(Error::refused(format!("cannot tell which system {} is", cluster.name))
            .detail("No marker and no pg_control names a system identifier. Nothing was changed.")),
        _ => {
            let told: Vec<String> = found
                .iter()
                .map(|(system, nodes)| {
                    let mut nodes = nodes.clone();
                    nodes.dedup();
                    format!("{system} on {}", nodes.join(", "))
                })
                .collect();
            Err(Error::refused(format!("the nodes of {} are not of one system", cluster.name))
                .detail(format!("Found {}. Nothing was changed.", told.join("; "))))
        }
    }
}

/// Returns the timeline that the cluster is on now, if anybody can say.
fn present_timeline(observed: &ClusterObserved) -> Option<TimelineId> {
    match roles::lead(observed) {
        Lead::Primary(name) | Lead::StoppedPrimary(name) => observed.node(&name).and_then(roles::timeline),
        Lead::Unborn | Lead::Unknown { .. } | Lead::Split(_) => None,
    }
}

/// Returns the timeline that the repository has on record for the primary.
async fn recorded_timeline(
    context: &Context,
    doors: &Doors,
    seed: &Node,
    backups: &Backups,
    cluster: &Cluster,
    notes: &mut Vec<String>,
) -> Result<Option<TimelineId>> {
    let door = NodeDoor::with(doors, &seed.host, &context.build).await?;
    let repo = node::repository(&door, &backups.repository).await?;
    let Some(record) = primary::read(&*repo, &cluster.name).await? else { return Ok(None) };
    notes.push(format!(
        "no primary answers; the repository has {} on timeline {} on record since {}",
        cluster.full_name(&record.node),
        record.timeline,
        clock(record.since)
    ));
    Ok(Some(record.timeline))
}

/// Returns the hosts whose pooler runs and can be told to hold its clients back.
async fn poolers(
    doors: &Doors,
    cluster: &Cluster,
    notes: &mut Vec<String>,
) -> Result<Vec<String>, Vec<Error>> {
    let mut held = Vec::new();
    let mut obstacles = Vec::new();
    for host in cluster.pooler_hosts() {
        let seen = match pooler::observe_poolers(doors, cluster, host).await {
            Ok(seen) => seen,
            Err(error) => {
                obstacles.push(error);
                continue;
            }
        };
        for seen in seen {
            match (&seen.process, &seen.console) {
                (PoolerProcess::Running { .. }, ConsoleSeen::Answered(_)) => {
                    if held.last() != Some(host) {
                        held.push(host.clone());
                    }
                }
                (PoolerProcess::Stopped, _) => {
                    notes.push(format!("the pooler on {host} does not run; it is started at the end"));
                }
                (PoolerProcess::Unknown { why }, _)
                | (PoolerProcess::Running { .. }, ConsoleSeen::Unknown { why }) => {
                    obstacles.push(
                        Error::new(
                            ErrorKind::NotFound,
                            format!(
                                "cannot hold back the clients of {}: the pooler on {host} does not answer",
                                cluster.name
                            ),
                        )
                        .detail(format!("{why}. Nothing was changed."))
                        .hint("Stop that PgBouncer, or see why its console is silent, and try again."),
                    );
                }
            }
        }
    }
    if obstacles.is_empty() { Ok(held) } else { Err(obstacles) }
}

/// Compares what the nodes need with what their file systems have: nodes that share one need it together.
async fn room(doors: &Doors, cluster: &Cluster, needs: ByteCount) -> Result<Vec<Error>> {
    let mut of: BTreeMap<(String, String), (ByteCount, Vec<String>)> = BTreeMap::new();
    for node in &cluster.nodes {
        let host = doors.host(&node.host);
        let parent = node.data_directory.parent().unwrap_or(&node.data_directory);
        let device = aside::device(host, parent).await?;
        let free = host.disk(parent).await?.free;
        of.entry((node.host.clone(), device))
            .or_insert((free, Vec::new()))
            .1
            .push(cluster.full_name(&node.name));
    }
    Ok(of
        .into_values()
        .filter_map(|(free, nodes)| {
            let wanted = ByteCount(needs.0.saturating_mul(nodes.len() as u64));
            (free < wanted).then(|| {
                Error::refused(format!("there is not enough room to restore {} beside what it has", nodes.join(", ")))
                    .detail(format!(
                        "Needs {wanted} ({needs} each), {free} are free. The old data stays beside the new. Nothing was changed."
                    ))
                    .hint("Make room there; directories of earlier restores end in \".before-\" and the operation's id.")
            })
        })
        .collect())
}

/// What one node needs at most: the backup, the WAL that is replayed, a segment or two that are being written, and what replay adds.
fn needs(survey: &Survey) -> ByteCount {
    let segment = survey.choice.segment_size.as_u64();
    let wal = survey.choice.segments().saturating_mul(segment);
    // WAL is fetched as it is replayed and recycled behind a restartpoint; what it does to the data is not known before.
    let spare = segment.saturating_mul(4).saturating_add(wal.min(1 << 30));
    ByteCount(survey.manifest.size.0.saturating_add(spare))
}

/// Says what is in the way where the backup has a tablespace that the node has not: what is not set aside must not be there.
async fn new_places(
    doors: &Doors,
    seed: &Node,
    manifest: &Manifest,
    before: &[Before],
) -> Result<Vec<Error>> {
    let host = doors.host(&seed.host);
    let own = before.iter().find(|before| before.node == seed.name).map_or(&[][..], |before| &before.paths);
    let mut obstacles = Vec::new();
    for space in &manifest.tablespaces {
        let prefix = format!("PG_{}_", manifest.major());
        let names = host.list(&space.location).await?;
        let Some(names) = names else {
            obstacles.push(
                Error::refused(format!(
                    "cannot restore tablespace {}: there is no {}",
                    space.oid,
                    space.location.display()
                ))
                .detail("The backup has that tablespace, and its directory is gone. Nothing was changed.")
                .hint("Make the directory, owned by the user that owns the node's files, and try again."),
            );
            continue;
        };
        let others: Vec<&String> = names
            .iter()
            .filter(|name| name.starts_with(&prefix) && !name.contains(".before-"))
            .filter(|name| !own.contains(&space.location.join(name)))
            .collect();
        if let Some(other) = others.first() {
            obstacles.push(
                Error::refused(format!(
                    "cannot restore tablespace {}: {} is there",
                    space.oid,
                    space.location.join(other).display()
                ))
                .detail("It is not of the cluster as it is now, so it is not set aside. Nothing was changed.")
                .hint("Look at it, and move it away if it may go."),
            );
        }
    }
    Ok(obstacles)
}

fn telling(cluster: &Cluster, survey: &Survey, held: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(next) = &survey.choice.next {
        let commits = match survey.beyond.commits {
            Some(commits) => format!("{commits} transactions that are in the archive by now, "),
            None => String::new(),
        };
        notes.push(format!(
            "gives up what was committed from {} on ({commits}and what comes until then): it stays in the directories that are set \
             aside and in the archive",
            clock(next.at)
        ));
    }
    if let Some(poolers) = &cluster.poolers
        && !held.is_empty()
    {
        notes.push(
            "clients of the pooler wait; one that waits longer than query_wait_timeout (120 s) gets an error and has to come again"
                .to_owned(),
        );
        if poolers.mode == PoolMode::Session {
            notes.push(format!(
                "the pooler lends connections for whole sessions: what is connected after {} is cut off",
                human_duration(GRACE)
            ));
        }
    }
    notes
}

fn headline(observed: &ClusterObserved, choice: &Choice) -> String {
    let now = match roles::lead(observed) {
        Lead::Primary(name) => {
            let timeline = observed.node(&name).and_then(NodeObserved::running).map(timeline_of);
            format!("primary {name}{}", timeline.unwrap_or_default())
        }
        Lead::StoppedPrimary(name) => format!("primary {name} is stopped"),
        Lead::Split(names) => format!("{} accept writes", names.join(", ")),
        Lead::Unborn | Lead::Unknown { .. } => "nobody can be named as primary".to_owned(),
    };
    format!("{now}; goes back to {}", choice.target)
}

fn timeline_of(running: &Running) -> String {
    format!(", timeline {}", running.facts.timeline)
}

/// What the stages are made from.
struct Facts<'a> {
    input: &'a Input,
    held: &'a [String],
    lead: Lead,
    repository: &'a str,
    size: ByteCount,
    passwords: bool,
}

impl Facts<'_> {
    fn cluster(&self) -> &Cluster {
        &self.input.cluster
    }

    fn name(&self, node: &str) -> String {
        self.input.cluster.full_name(node)
    }

    fn seed(&self) -> &Node {
        self.input.cluster.node(&self.input.seed).expect("the seed is one of the nodes")
    }
}

fn stages(facts: &Facts<'_>) -> Vec<Vec<Planned>> {
    let mut stages = vec![hold(facts), last_wal(facts)];
    stages.extend(stop(facts));
    stages.push(backfill(facts));
    stages.push(set_aside(facts));
    stages.extend(restore(facts));
    stages.extend(standbys(facts));
    stages.push(vec![step(
        Sign::Look,
        facts.name(&facts.input.seed),
        "read every system catalog",
        "nothing to undo",
        RestoreStep::Catalogs { node: facts.input.seed.clone() },
    )]);
    stages.push(vec![step(
        Sign::Look,
        facts.cluster().name.clone(),
        "keep what is restored",
        "none",
        RestoreStep::Keep {},
    )]);
    stages.extend(open(facts));
    stages.retain(|stage| !stage.is_empty());
    stages
}

fn step(sign: Sign, subject: String, text: impl Into<String>, undo: &str, step: RestoreStep) -> Planned {
    Planned { sign, subject, text: text.into(), reason: None, impact: None, undo: undo.to_owned(), step }
}

const POOLER: &str = "pooler";

fn hold(facts: &Facts<'_>) -> Vec<Planned> {
    if facts.held.is_empty() {
        return Vec::new();
    }
    let text = format!("PAUSE: clients wait; transactions that run have {} to end", human_duration(GRACE));
    let mut planned = step(
        Sign::Disrupt,
        POOLER.to_owned(),
        text,
        "RESUME",
        RestoreStep::Pause { hosts: facts.held.to_vec() },
    );
    planned.impact = Some("nobody reads or writes until the end".to_owned());
    vec![planned]
}

fn last_wal(facts: &Facts<'_>) -> Vec<Planned> {
    let Lead::Primary(primary) = &facts.lead else { return Vec::new() };
    vec![step(
        Sign::Look,
        facts.name(primary),
        format!("finish the WAL segment and see it in repository {}", facts.repository),
        "nothing to undo",
        RestoreStep::LastWal { node: primary.clone() },
    )]
}

/// Those that may write stop first, so that their standbys receive all that they wrote.
fn stop(facts: &Facts<'_>) -> Vec<Vec<Planned>> {
    let planned = |before: &Before| {
        let undo = match before.state {
            State::Answered => "start it as it was",
            State::Silent => "start it, whether it comes up or not",
            State::Stopped => "nothing to undo",
        };
        let mut planned = step(
            Sign::Disrupt,
            facts.name(&before.node),
            "stop (fast)",
            undo,
            RestoreStep::Stop { node: before.node.clone() },
        );
        if before.state == State::Stopped {
            planned.sign = Sign::Look;
            planned.text = "is stopped, and stays so".to_owned();
        } else {
            planned.impact = Some("connections to it end".to_owned());
        }
        planned
    };
    let (first, then): (Vec<&Before>, Vec<&Before>) =
        facts.input.before.iter().partition(|before| before.primary);
    vec![first.into_iter().map(planned).collect(), then.into_iter().map(planned).collect()]
}

fn backfill(facts: &Facts<'_>) -> Vec<Planned> {
    let those = facts.input.before.iter().filter(|before| may_have_wal(before));
    those
        .map(|before| {
            step(
                Sign::Look,
                facts.name(&before.node),
                "archive what its archiver had left, or say what cannot be",
                "nothing to undo",
                RestoreStep::Backfill { node: before.node.clone() },
            )
        })
        .collect()
}

fn set_aside(facts: &Facts<'_>) -> Vec<Planned> {
    let those = facts.input.before.iter().filter(|before| !before.paths.is_empty());
    those
        .map(|before| {
            let shown: Vec<String> =
                before.paths.iter().map(|path| format!("{}.before-ID", path.display())).collect();
            let mut planned = step(
                Sign::Change,
                facts.name(&before.node),
                format!("keep the old data as {}", shown[0]),
                "its old name",
                RestoreStep::SetAside { node: before.node.clone(), paths: before.paths.clone() },
            );
            if shown.len() > 1 {
                planned.reason = Some(format!("its tablespaces hold data too: {}", shown[1..].join(", ")));
            }
            planned
        })
        .collect()
}

fn restore(facts: &Facts<'_>) -> Vec<Vec<Planned>> {
    let seed = facts.name(&facts.input.seed);
    let node = facts.input.seed.clone();
    let choice = &facts.input.choice;
    let segments = choice.segments();
    let mut copy = step(
        Sign::Create,
        seed.clone(),
        format!("copy backup {} ({})", choice.backup, facts.size),
        "remove it",
        RestoreStep::Copy { node: node.clone() },
    );
    copy.reason = Some("it is the newest backup that comes to the target".to_owned());
    let mut replay = step(
        Sign::Create,
        seed.clone(),
        format!("replay to {}, over its socket alone, and check", choice.target),
        "stop",
        RestoreStep::Recover { node: node.clone() },
    );
    replay.reason = (segments > 0).then(|| {
        let timelines: Vec<String> = choice.timelines.iter().map(ToString::to_string).collect();
        format!("{segments} WAL segments of timeline {}, all of them in the archive", timelines.join(", "))
    });
    let promote = step(
        Sign::Create,
        seed.clone(),
        "promote onto a timeline that the archive does not know; no client and no archive yet",
        "stop; it goes with the copy",
        RestoreStep::Promote { node: node.clone() },
    );
    let logins = vec![step(
        Sign::Change,
        seed.clone(),
        "the logins of standbys and of the write proof, as the password files have them",
        "goes with the copy",
        RestoreStep::Logins { nodes: facts.cluster().nodes.iter().map(|node| node.name.clone()).collect() },
    )];
    let declared = facts.cluster().roles.iter().filter(|role| role.password.is_some());
    let roles: Vec<String> = declared.map(|role| role.name.clone()).collect();
    let mut passwords = Vec::new();
    if facts.passwords && !roles.is_empty() {
        passwords.push(step(
            Sign::Change,
            seed,
            "passwords of the declared roles",
            "goes with the copy",
            RestoreStep::Passwords { roles },
        ));
    }
    vec![vec![copy], vec![replay], vec![promote], logins, passwords]
}

fn standbys(facts: &Facts<'_>) -> Vec<Vec<Planned>> {
    let (cluster, seed) = (facts.cluster(), facts.seed());
    let others: Vec<&Node> = cluster.nodes.iter().filter(|node| node.name != seed.name).collect();
    let slots = others.iter().map(|node| {
        let slot = cluster.slot_name(&node.name);
        step(
            Sign::Create,
            facts.name(&seed.name),
            format!("slot {slot}"),
            "goes with the copy",
            RestoreStep::Slot { on: seed.name.clone(), slot },
        )
    });
    let clones = others.iter().map(|node| {
        step(
            Sign::Create,
            facts.name(&node.name),
            format!("clone from {}", facts.name(&seed.name)),
            "remove it",
            RestoreStep::Clone { node: node.name.clone(), from: seed.name.clone() },
        )
    });
    let follow = others.iter().map(|node| {
        step(
            Sign::Create,
            facts.name(&node.name),
            format!("start, stream from {}", facts.name(&seed.name)),
            "stop",
            RestoreStep::Follow { node: node.name.clone(), upstream: seed.name.clone() },
        )
    });
    vec![slots.collect(), clones.collect(), follow.collect()]
}

/// Standbys first: the primary's commits wait for them as soon as it is open. The archive comes last: whatever is wrong with it, clients need not
/// wait for that.
fn open(facts: &Facts<'_>) -> Vec<Vec<Planned>> {
    const FORWARD: &str = "none, there is only forward";
    let (cluster, seed) = (facts.cluster(), facts.seed());
    let open = |node: &Node| {
        step(
            Sign::Change,
            facts.name(&node.name),
            "open: its own access rules, the declared settings",
            FORWARD,
            RestoreStep::Open { node: node.name.clone() },
        )
    };
    let (seeds, others): (Vec<&Node>, Vec<&Node>) =
        cluster.nodes.iter().partition(|node| node.name == seed.name);
    let mut stages: Vec<Vec<Planned>> =
        vec![others.into_iter().map(open).collect(), seeds.into_iter().map(open).collect()];
    let hosts: Vec<String> = cluster.poolers.iter().flat_map(|poolers| poolers.hosts.clone()).collect();
    let poolers = hosts.iter().map(|host| {
        step(
            Sign::Change,
            POOLER.to_owned(),
            format!("PgBouncer on {host}: its aliases lead to {}", facts.name(&seed.name)),
            FORWARD,
            RestoreStep::Pooler { host: host.clone() },
        )
    });
    stages.push(poolers.collect());
    if !hosts.is_empty() {
        stages.push(vec![step(
            Sign::Change,
            POOLER.to_owned(),
            "RESUME: clients go on",
            FORWARD,
            RestoreStep::Resume { hosts },
        )]);
    }
    let standbys =
        cluster.nodes.iter().filter(|node| node.name != seed.name).map(|node| node.name.clone()).collect();
    stages.push(vec![step(
        Sign::Look,
        cluster.name.clone(),
        "write a row through every way in, and read it on every standby",
        FORWARD,
        RestoreStep::Prove { nodes: standbys },
    )]);
    stages.push(vec![step(
        Sign::Look,
        facts.name(&seed.name),
        format!("see the new timeline in repository {}, without a gap", facts.repository),
        FORWARD,
        RestoreStep::Archive { node: seed.name.clone() },
    )]);
    stages.push(vec![step(
        Sign::Change,
        facts.name(&seed.name),
        format!("record it as primary in repository {}", facts.repository),
        FORWARD,
        RestoreStep::Record { node: seed.name.clone() },
    )]);
    stages
}
