//! The removal of a cluster, or of one node, by its name: what the profiles and markers claim, and nothing else.
//!
//! Needs no topology file: what has left the file can still be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::db::queries;
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{self, Intent, Operation, Outcome, Way};
use crate::engine::record::{End, OperationId, PlannedStep, Record, TopologyFile};
use crate::engine::shared_lock::SharedLock;
use crate::engine::step::{Cx, Found, Retry, Reversal, Stage, Step, StepError};
use crate::engine::store::Store;
use crate::engine::view::Ended;
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs::Programs;
use crate::host::{self, HostError};
use crate::ops::apply;
use crate::ops::binary;
use crate::ops::builds;
use crate::ops::context::Context;
use crate::ops::observe::{self, Claim, ClusterObserved, Depth, Directory, Doors};
use crate::ops::provision::{self, Site};
use crate::ops::roles::{self, Lead};
use crate::ops::starter::{self, Piece};
use crate::ops::takeover;
use crate::topology::checks::DeclaredChecks;
use crate::topology::claim::{self, Archive, PoolerProfile, Profile};
use crate::topology::model::{
    BackupSource, Backups, Cluster, Compression, Host, Node, PoolMode, PoolerAuth, Poolers, Postgres,
    Promote, Reach, Repository, Service,
};
use crate::topology::places::Places;
use crate::units::ByteCount;

/// The kind of this operation in its journal.
pub const KIND: &str = "destroy";
/// How long a command of a server that was stopped may go on.
const ENDS: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// One removal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DestroyStep {
    /// The pivot: changes nothing. What is removed by half cannot be put back, so from here on there is only forward.
    Begin {},
    /// Take away what starts the jobs of the cluster on the machine that pgherd runs on.
    Schedule { pieces: Vec<Piece> },
    /// Stop a PgBouncer and remove its files.
    Pooler { host: String },
    /// Drop the slot of a node that leaves a cluster which stays.
    Slot { on: String, slot: String },
    /// Stop a node (fast) and remove its data directory, its log, and at last its profile and marker.
    Node { node: String },
    /// Remove pgherd's own copies, the link to them and the directories that are empty then from a host that has no node any more; all of it
    /// stays if somebody needs it when it is its turn.
    Program { host: String },
}

/// What a removal keeps of its input in the journal: the profiles say all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub cluster: String,
    /// Every node of the cluster, also those that stay.
    pub profiles: Vec<Profile>,
    pub poolers: Vec<PoolerProfile>,
    /// Those of its hosts that are more than this machine under another name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
}

/// What will be removed, in words, and the steps that do it.
#[derive(Debug)]
pub struct Removal {
    /// The one node that goes; `None` for the whole cluster.
    node: Option<String>,
    pub input: Input,
    pub stages: Vec<Vec<DestroyStep>>,
    /// One line for each thing that goes.
    pub lines: Vec<String>,
    /// One line for each thing that stays although it was the cluster's.
    pub stays: Vec<String>,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    operation: String,
    cluster: Cluster,
    doors: Doors,
    programs: BTreeMap<String, Programs>,
    store: Store,
    /// The lock in the repository: the way there may lead through what is removed.
    lock: Option<Arc<SharedLock>>,
}

/// Finds what carries the name of the cluster, or of one of its nodes.
///
/// # Errors
/// [`ErrorKind::Locked`] beside an unfinished operation, [`ErrorKind::NotFound`] if nothing carries it, `Refused` if a directory is not what its marker says or the node is the primary of
/// others.
pub async fn plan(context: &Context, hosts: &[Host], cluster: &str, node: Option<&str>) -> Result<Removal> {
    operation::refuse_beside_unfinished(&context.store, cluster)?;
    let machines = machines(hosts);
    let mut profiles: Vec<Profile> = Vec::new();
    let mut poolers = Vec::new();
    let mut on_machines = Vec::new();
    for (name, reach) in &machines {
        let host = observe::open_door(name, reach, None, None)?;
        host.reach().await.map_err(|mut missing| missing.remove(0))?;
        let places = context.places.on(reach);
        // Two hosts of the topology may be one machine after all: each thing is its own host's.
        let here = |named: &String| {
            let other = hosts.iter().find(|host| host.name == *named);
            other.is_none_or(|other| other.reach == **reach || (other.reach.is_here() && reach.is_here()))
        };
        let found = observe::profiles(&*host, &places).await?;
        on_machines.push((*reach, found.clone()));
        profiles
            .extend(found.into_iter().filter(|profile| profile.cluster == cluster && here(&profile.host)));
        let found = pooler_profiles(&*host, &places, cluster).await?;
        poolers.extend(found.into_iter().filter(|pooler| here(&pooler.host)));
    }
    profiles.sort_by(|a, b| a.node.cmp(&b.node));
    if profiles.is_empty() && poolers.is_empty() {
        let looked: Vec<&str> = machines.iter().map(|(name, _)| *name).collect();
        let place = match looked.as_slice() {
            [LOCAL] => "this machine".to_owned(),
            all => all.join(", "),
        };
        return Err(Error::new(ErrorKind::NotFound, format!("there is no cluster {cluster:?} on {place}"))
            .detail(format!(
                "No profile in {} names it. Nothing was changed.",
                context.places.on(machines[0].1).nodes().display()
            )));
    }
    let used = |host: &&Host| {
        host.reach != Reach::Local
            && (profiles.iter().any(|profile| profile.host == host.name)
                || poolers.iter().any(|pooler| pooler.host == host.name))
    };
    let hosts = hosts.iter().filter(used).cloned().collect();
    let input = Input { cluster: cluster.to_owned(), profiles, poolers, hosts };
    let world = World::open(context, "plan".to_owned(), input.clone()).await?;
    let observed = observe::observe(&world.doors, &world.cluster, Depth::Servers).await;
    let mut removal = match node {
        None => {
            for profile in &input.profiles {
                claimed(profile, &observed)?;
            }
            whole(input)
        }
        Some(node) => one(&observed, input, node)?,
    };
    if node.is_none() {
        removal.add_schedule(&world, &on_machines).await?;
    }
    let mut steps = Vec::new();
    for (reach, there) in &on_machines {
        match program(&world, &removal, reach, there).await? {
            Program::None => {}
            Program::Stays { line } => removal.stays.push(line),
            Program::Goes { line, host } => {
                removal.lines.push(line);
                steps.push(DestroyStep::Program { host });
            }
        }
    }
    // One after the other: two names may be one machine after all.
    removal.stages.extend(steps.into_iter().map(|step| vec![step]));
    Ok(removal)
}

/// What becomes of pgherd's own copies on a machine.
enum Program {
    /// None is there, or none of the nodes that go.
    None,
    Stays {
        line: String,
    },
    Goes {
        line: String,
        host: String,
    },
}

/// Decides for a machine with these nodes. Who needs the program for a moment only is not asked for before it is its turn.
async fn program(world: &World, removal: &Removal, reach: &Reach, there: &[Profile]) -> Result<Program> {
    let going: Vec<&Profile> =
        removal.input.profiles.iter().filter(|profile| removal.takes(&profile.node)).collect();
    let is_here = |profile: &&&Profile| {
        let own = world.cluster.reach(&profile.host);
        there.contains(profile) && (own == reach || (own.is_here() && reach.is_here()))
    };
    let Some(host) = going.iter().find(is_here).map(|first| &first.host) else {
        return Ok(Program::None);
    };
    let (door, places) = (world.doors.host(host), world.doors.places(host));
    let size: u64 = builds::copies(door, places).await?.iter().map(|copy| copy.size.0).sum();
    let has_link = builds::is_ours(&binary::look(door, places).await?);
    if size == 0 && !has_link {
        return Ok(Program::None);
    }
    let what = format!("pgherd in {} on {host}", places.lib().display());
    let names: BTreeSet<String> = going.iter().map(|profile| full_name(profile)).collect();
    let mut users: BTreeSet<String> =
        there.iter().map(full_name).filter(|name| !names.contains(name)).collect();
    // The servers of nodes are known by their profiles.
    let without: Vec<_> = there.iter().map(|profile| profile.data_directory.clone()).collect();
    match builds::needed(door, places, &world.store, None, &without).await {
        Ok(needed) => users.extend(needed.lasting()),
        Err(error) => {
            users.insert(format!("{error}, and who uses it cannot be told"));
        }
    }
    if users.is_empty() {
        let line = format!("{what}, {}, and the directories that are empty then", ByteCount(size));
        return Ok(Program::Goes { line, host: host.clone() });
    }
    Ok(Program::Stays { line: format!("{what} ({})", joined(&users)) })
}

fn joined(users: &BTreeSet<String>) -> String {
    users.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn full_name(profile: &Profile) -> String {
    format!("{}-{}", profile.cluster, profile.node)
}

impl Removal {
    /// Tells whether a node of the cluster goes.
    fn takes(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|one| one == node)
    }
}

impl Removal {
    /// Adds what apply has installed here to start the jobs of the cluster; what starts those of other clusters stays.
    async fn add_schedule(&mut self, world: &World, there: &[(&Reach, Vec<Profile>)]) -> Result<()> {
        let Some(herd) = self.input.profiles.first().map(|profile| profile.herd.clone()) else {
            return Ok(());
        };
        let all = there.iter().flat_map(|(_, profiles)| profiles);
        let is_last =
            all.filter(|profile| profile.herd == herd).all(|profile| profile.cluster == self.input.cluster);
        let found = starter::present(world.doors.own(), &herd).await?;
        let pieces = starter::of_cluster(&found, &herd, &self.input.cluster, is_last);
        if !pieces.is_empty() {
            self.lines.insert(0, format!("what starts its jobs: {}", starter::name(&pieces)));
            self.stages.insert(1, vec![DestroyStep::Schedule { pieces }]);
        }
        Ok(())
    }
}

fn whole(input: Input) -> Removal {
    let poolers: Vec<DestroyStep> =
        input.poolers.iter().map(|pooler| DestroyStep::Pooler { host: pooler.host.clone() }).collect();
    let nodes: Vec<DestroyStep> =
        input.profiles.iter().map(|profile| DestroyStep::Node { node: profile.node.clone() }).collect();
    let lines = input.poolers.iter().map(pooler_line).chain(input.profiles.iter().map(node_line)).collect();
    let stays = stays(&input);
    Removal {
        node: None,
        input,
        stays,
        stages: vec![vec![DestroyStep::Begin {}], poolers, nodes]
            .into_iter()
            .filter(|stage| !stage.is_empty())
            .collect(),
        lines,
    }
}

/// Backups outlive what they are of.
fn stays(input: &Input) -> Vec<String> {
    let archives: BTreeSet<(&str, &str)> = input
        .profiles
        .iter()
        .filter_map(|profile| profile.archive.as_ref())
        .map(|archive| (archive.repository.as_str(), archive.url.as_str()))
        .collect();
    archives
        .into_iter()
        .map(|(name, url)| {
            format!("WAL, backups, exports and dumps of {} in repository {name}, {url}", input.cluster)
        })
        .collect()
}

fn pooler_line(pooler: &PoolerProfile) -> String {
    format!("PgBouncer of {} on {}:{}", pooler.cluster, pooler.host, pooler.port)
}

fn node_line(profile: &Profile) -> String {
    format!(
        "{}-{}: data directory {}, system identifier {}, port {}",
        profile.cluster,
        profile.node,
        profile.data_directory.display(),
        profile.system_identifier,
        profile.port
    )
}

fn one(observed: &ClusterObserved, input: Input, node: &str) -> Result<Removal> {
    let Some(profile) = input.profiles.iter().find(|profile| profile.node == node).cloned() else {
        let names: Vec<&str> = input.profiles.iter().map(|profile| profile.node.as_str()).collect();
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("{} has no node {node:?} on this machine", input.cluster),
        )
        .hint(format!("Its nodes are: {}.", names.join(", "))));
    };
    claimed(&profile, observed)?;
    let others = input.profiles.len() > 1;
    let mut stages = Vec::new();
    let mut lines = Vec::new();
    match roles::lead(observed) {
        Lead::Primary(name) if name == node && others => return Err(is_primary(&input.cluster, node)),
        Lead::StoppedPrimary(name) if name == node && others => return Err(is_primary(&input.cluster, node)),
        Lead::Primary(primary) if primary != node => {
            lines.push(format!("slot {} on {}-{primary}", profile.slot, input.cluster));
            stages.push(vec![DestroyStep::Slot { on: primary, slot: profile.slot.clone() }]);
        }
        Lead::Primary(_) | Lead::StoppedPrimary(_) | Lead::Unborn | Lead::Unknown { .. } | Lead::Split(_) => {
        }
    }
    lines.push(node_line(&profile));
    // The node goes first: while it streams, its slot is in use.
    stages.insert(0, vec![DestroyStep::Node { node: node.to_owned() }]);
    stages.insert(0, vec![DestroyStep::Begin {}]);
    Ok(Removal { node: Some(node.to_owned()), input, stages, lines, stays: Vec::new() })
}

fn is_primary(cluster: &str, node: &str) -> Error {
    Error::refused(format!("cannot remove {cluster}-{node}: it is the primary of nodes that stay"))
        .detail("Nothing was changed.")
        .hint(format!("Remove the whole cluster: pgherd destroy {cluster}"))
}

/// How this machine is called where no topology names it.
const LOCAL: &str = "local";

/// Returns every machine of the topology once; this one where there is no topology.
fn machines(hosts: &[Host]) -> Vec<(&str, &Reach)> {
    let mut found: Vec<(&str, &Reach)> = Vec::new();
    if hosts.is_empty() || hosts.iter().any(|host| host.reach.is_here()) {
        found.push((LOCAL, &Reach::Local));
    }
    for host in hosts.iter().filter(|host| !host.reach.is_here()) {
        if !found.iter().any(|(_, reach)| **reach == host.reach) {
            found.push((&host.name, &host.reach));
        }
    }
    found
}

async fn pooler_profiles(
    host: &dyn host::Host,
    places: &Places,
    cluster: &str,
) -> Result<Vec<PoolerProfile>> {
    let could_not = |error: HostError| {
        Error::new(ErrorKind::NotFound, "could not read the pooler profiles").source(error)
    };
    let directory = places.poolers();
    let mut found = Vec::new();
    for name in host.list(&directory).await.map_err(could_not)?.unwrap_or_default() {
        let bytes = host.read(&directory.join(&name).join("profile.json")).await.map_err(could_not)?;
        let profile = bytes.and_then(|bytes| claim::read::<PoolerProfile>(&bytes).ok());
        found.extend(profile.filter(|profile| profile.cluster == cluster));
    }
    Ok(found)
}

/// Runs a removal that was agreed to by name.
///
/// # Errors
/// As [`Operation::begin`] and [`operation::run`].
pub async fn run(
    context: &Context,
    hosts: &[Host],
    removal: Removal,
    wait: Duration,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<(OperationId, Outcome)> {
    let lock = context.locker(&as_cluster(&removal.input)).take(wait).await?;
    let fresh = plan(context, hosts, &removal.input.cluster, removal.node.as_deref()).await;
    let same = fresh.and_then(|fresh| {
        if fresh.input == removal.input && fresh.stages == removal.stages {
            return Ok(());
        }
        Err(Error::refused(format!("{} has changed since it was asked about", removal.input.cluster))
            .detail("What is there now is not what was to be removed. Nothing was changed.")
            .hint("Look at it again: pgherd status"))
    });
    let (lock, ()) = lock.keep_for(same).await?;
    let topology = TopologyFile { file: context.places.nodes(), sha256: String::new() };
    let stages = removal.stages.into_iter().map(|steps| Stage { steps }).collect();
    let intent = Intent::of(KIND, topology, &removal.input, stages)?;
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let world = World::open(context, id.as_str().to_owned(), removal.input).await;
    let (mut operation, world) = operation.or_call_off(world).await?;
    let world = World { lock: operation.shared_lock(), ..world };
    let outcome = operation::run(&mut operation, &world, events, interrupt).await?;
    forget_copies(context, operation, &world.cluster, &outcome).await;
    Ok((id, outcome))
}

/// Removes the copies of the cluster's journals, that of this operation too, from hosts on which nothing of the cluster is left.
async fn forget_copies(
    context: &Context,
    operation: Operation<DestroyStep>,
    cluster: &Cluster,
    outcome: &Outcome,
) {
    if !matches!(outcome, Outcome::Done | Outcome::AlreadyEnded(Ended::By(End::Done))) {
        return;
    }
    let planned = operation.header().stages;
    let steps = planned.into_iter().flat_map(|stage| stage.steps);
    let gone: Vec<DestroyStep> = steps.filter_map(|step| serde_json::from_value(step.step).ok()).collect();
    // Nothing is copied any more once it is closed.
    drop(operation);
    takeover::forget(context, cluster, |host| {
        let nodes = cluster.nodes.iter().filter(|node| node.host == host);
        let stays = |name: &String| {
            !gone.iter().any(|step| matches!(step, DestroyStep::Node { node } if node == name))
        };
        let pooler = cluster.pooler_hosts().any(|name| name == host)
            && !gone.iter().any(|step| matches!(step, DestroyStep::Pooler { host: name } if name == host));
        pooler || nodes.map(|node| &node.name).any(stays)
    })
    .await;
}

/// Goes on with a removal that no process drives any more, or takes it back while nothing is removed.
///
/// # Errors
/// As [`operation::run`] and [`operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<DestroyStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    context.locker(&as_cluster(&input)).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), input).await?;
    let world = World { lock: operation.shared_lock(), ..world };
    let outcome = operation::go(&mut operation, &world, way, events, interrupt).await?;
    if matches!(outcome, Outcome::Done) {
        // The lock in the repository was taken through a copy of pgherd, which is there again where the step had been done before.
        for host in operation.header().stages.iter().flat_map(|stage| &stage.steps).filter_map(program_of) {
            remove_program(&world, &host).await?;
        }
    }
    forget_copies(context, operation, &world.cluster, &outcome).await;
    Ok(outcome)
}

fn program_of(planned: &PlannedStep) -> Option<String> {
    match serde_json::from_value(planned.step.clone()) {
        Ok(DestroyStep::Program { host }) => Some(host),
        Ok(
            DestroyStep::Begin {}
            | DestroyStep::Schedule { .. }
            | DestroyStep::Pooler { .. }
            | DestroyStep::Slot { .. }
            | DestroyStep::Node { .. },
        )
        | Err(_) => None,
    }
}

impl World {
    async fn open(context: &Context, operation: String, input: Input) -> Result<Self> {
        let cluster = as_cluster(&input);
        let doors = Doors::open(&cluster, context.places.clone(), &context.gate)?;
        let mut programs = BTreeMap::new();
        for profile in &input.profiles {
            let node = cluster.node(&profile.node).expect("as_cluster takes every profile");
            programs.insert(profile.node.clone(), doors.programs(&cluster, &node.host).await?.clone());
        }
        Ok(Self { operation, cluster, doors, programs, store: context.store.clone(), lock: None })
    }

    fn site(&self, name: &str) -> Result<Site<'_>> {
        let unknown = || Error::failed(format!("the operation knows no node {name:?}"));
        Ok(Site {
            herd: "",
            operation: &self.operation,
            cluster: &self.cluster,
            node: self.cluster.node(name).ok_or_else(unknown)?,
            doors: &self.doors,
            programs: self.programs.get(name).ok_or_else(unknown)?,
            users: &[],
        })
    }
}

/// Refuses unless the marker claims the directory and the directory is what the marker says.
fn claimed(profile: &Profile, observed: &ClusterObserved) -> Result<()> {
    let seen = observed.node(&profile.node).expect("every node of the profiles was observed");
    let refuse = |why: String| {
        Err(Error::refused(format!(
            "cannot remove {}: the marker of {}-{} does not claim it",
            profile.data_directory.display(),
            profile.cluster,
            profile.node
        ))
        .detail(format!("{why} Nothing was changed."))
        .hint("Look at it, and remove it by hand if it may go."))
    };
    if profile.adopted.is_some() && matches!(seen.directory, Directory::Cluster { .. }) {
        let (name, path) =
            (format!("{}-{}", profile.cluster, profile.node), profile.data_directory.display());
        return Err(Error::refused(format!("cannot remove {path}: {name} was adopted, pgherd did not make it"))
            .detail("pgherd removes no data that it did not make. Nothing was changed.")
            .hint(format!(
                "Remove it the way it was made, such as pg_dropcluster; when {path} is gone this removes what pgherd has beside it."
            )));
    }
    match &seen.marker {
        Claim::Ours(marker) if marker.system_identifier == Some(profile.system_identifier) => {}
        Claim::Ours(_) => {
            return refuse("The marker names another system identifier than the profile.".to_owned());
        }
        Claim::None => return refuse("There is no marker.".to_owned()),
        Claim::Other(marker) => return refuse(format!("It claims {}.", marker.data_directory.display())),
        Claim::Unknown { why } => return refuse(format!("{why}.")),
    }
    match &seen.directory {
        Directory::Cluster { control: Some(control), .. }
            if control.system_identifier != profile.system_identifier =>
        {
            refuse(format!("It holds a cluster with system identifier {}.", control.system_identifier))
        }
        Directory::Foreign { names } => refuse(format!("It holds {} and no PG_VERSION.", names.join(", "))),
        Directory::Unknown { why } => refuse(format!("{why}.")),
        Directory::Missing | Directory::Empty | Directory::Cluster { .. } => Ok(()),
    }
}

/// Returns the cluster that a journal's input names.
pub fn cluster_of(input: &serde_json::Value) -> Option<Cluster> {
    serde_json::from_value(input.clone()).ok().map(|input| as_cluster(&input))
}

/// What a profile knows of backups: where they are. Nothing is kept or removed by the rest.
fn archived(archive: &Archive) -> Backups {
    let mut repositories = archive.repositories().map(|known| Repository {
        access: known.access.is_some(),
        name: known.repository,
        url: known.url,
        // What it takes to open it is on the host already.
        s3: None,
        keys: Vec::new(),
    });
    Backups {
        repository: repositories.next().expect("the archive itself is the first"),
        copies: repositories.collect(),
        from: BackupSource::Standby,
        compression: Compression::default(),
        window: None,
        keep_full: None,
        minimum_full: 1,
    }
}

/// The cluster as its profiles tell it.
fn as_cluster(input: &Input) -> Cluster {
    let first = input.profiles.first();
    Cluster {
        name: input.cluster.clone(),
        postgres: Postgres {
            version: first.map_or(0, |profile| profile.version),
            bin_directory: first.map(|profile| profile.bin_directory.clone()),
            os_user: first
                .map(|profile| profile.os_user.clone())
                .or_else(|| input.poolers.first().map(|pooler| pooler.os_user.clone())),
            // What is found on a host decides who stops its servers.
            service: Service::default(),
            tls: None,
            tune_memory: None,
            settings: BTreeMap::new(),
        },
        nodes: input
            .profiles
            .iter()
            .enumerate()
            .map(|(index, profile)| Node {
                name: profile.node.clone(),
                host: profile.host.clone(),
                port: profile.port,
                data_directory: profile.data_directory.clone(),
                config_directory: profile.adopted.as_ref().and_then(|own| own.config_directory.clone()),
                // What pgherd made may have moved with PGHERD_STATE_DIR; what it took over stays where it is.
                socket_directory: profile.adopted.as_ref().map(|_| profile.socket_directory.clone()),
                log_directory: profile.adopted.as_ref().map(|_| profile.log_directory.clone()),
                adopted: profile.adopted.is_some(),
                preferred: index == 0,
                promote: Promote::Automatic,
                pool_connections: None,
                health: DeclaredChecks::new(),
            })
            .collect(),
        synchronous: None,
        health: DeclaredChecks::new(),
        checks: Vec::new(),
        hooks: Vec::new(),
        notify: None,
        partitions: Vec::new(),
        databases: Vec::new(),
        schemas: Vec::new(),
        roles: Vec::new(),
        poolers: input.poolers.first().map(|pooler| Poolers {
            hosts: input.poolers.iter().map(|pooler| pooler.host.clone()).collect(),
            port: pooler.port,
            mode: PoolMode::Transaction,
            max_clients: 0,
            processes: 1,
            auth: PoolerAuth::Userlist,
            users: Vec::new(),
            pools: Vec::new(),
        }),
        objectives: BTreeMap::new(),
        backups: first.and_then(|profile| profile.archive.as_ref()).map(archived),
        drills: None,
        hosts: input.hosts.clone(),
    }
}

/// What a removal leaves in the journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Gone {
    /// What stays after all, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stays: Vec<String>,
}

/// Returns what an operation has left although it was to be removed, a line each.
///
/// # Errors
/// When its journal cannot be read.
pub fn left_by(context: &Context, id: &OperationId) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in context.store.read(id)?.entries {
        if let Record::StepDone { evidence, .. } = entry.record
            && let Ok(gone) = serde_json::from_value::<Gone>(evidence)
        {
            left.extend(gone.stays);
        }
    }
    Ok(left)
}

/// Removes pgherd's copies from a host, unless somebody needs one now.
async fn remove_program(world: &World, host: &str) -> Result<Gone> {
    if let Some(lock) = &world.lock {
        // Whatever it kept apart is removed; nothing more is asked of the repository.
        lock.give_back(false).await;
    }
    let (door, places) = (world.doors.host(host), world.doors.places(host));
    forget_access(world, door, places).await?;
    let deadline = Instant::now() + ENDS;
    let users = loop {
        let profiles = observe::profiles(door, places).await?;
        let mut users: BTreeSet<String> = profiles.iter().map(full_name).collect();
        users.extend(builds::needed(door, places, &world.store, Some(&world.operation), &[]).await?.by());
        // A command of a server that was just stopped is on its way out.
        if users.is_empty() || Instant::now() >= deadline {
            break users;
        }
        sleep(PAUSE).await;
    };
    if !users.is_empty() {
        let line = format!("pgherd in {} on {host} ({})", places.lib().display(), joined(&users));
        return Ok(Gone { stays: vec![line] });
    }
    builds::remove_all(door, places).await?;
    Ok(Gone::default())
}

/// Removes what it took to open the repositories, unless another cluster on the host needs it.
async fn forget_access(world: &World, door: &dyn host::Host, places: &Places) -> Result<()> {
    let files = world.cluster.backups.iter().flat_map(Backups::repositories);
    let files: Vec<PathBuf> = files.filter_map(|repository| places.access(repository)).collect();
    if files.is_empty() {
        return Ok(());
    }
    let others = observe::profiles(door, places).await?;
    let needed: BTreeSet<PathBuf> = others
        .iter()
        .filter_map(|profile| profile.archive.as_ref())
        .flat_map(Archive::repositories)
        .filter_map(|known| known.access)
        .collect();
    for file in files.iter().filter(|file| !needed.contains(*file)) {
        door.remove_file(file).await?;
        let directory = file.parent().unwrap_or(file);
        if door.list(directory).await?.is_some_and(|names| names.is_empty()) {
            provision::remove_empty(door, directory).await?;
        }
    }
    Ok(())
}

impl Step for DestroyStep {
    type World = World;
    type Evidence = Gone;

    fn describe(&self) -> String {
        match self {
            Self::Begin {} => "begin: from here on there is only forward".to_owned(),
            Self::Schedule { pieces } => format!("remove {}", starter::name(pieces)),
            Self::Pooler { host } => format!("remove the pooler on {host}"),
            Self::Slot { on, slot } => format!("drop slot {slot} on {on}"),
            Self::Node { node } => format!("stop and remove {node}"),
            Self::Program { host } => format!("remove pgherd from {host}"),
        }
    }

    fn reversal(&self) -> Reversal {
        Reversal::ForwardOnly
    }

    fn timeout(&self) -> Duration {
        provision::STOP + Duration::from_secs(600)
    }

    fn retry(&self) -> Retry {
        match self {
            // The sender of a standby that was just stopped may still hold the slot.
            Self::Slot { .. } => Retry { attempts: 6, pause: Duration::from_millis(250) },
            Self::Begin {}
            | Self::Schedule { .. }
            | Self::Pooler { .. }
            | Self::Node { .. }
            | Self::Program { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, _cx: &Cx<'_, Self>) -> Result<Found<Gone>, StepError> {
        // Each removal is idempotent and goes on where it was.
        Ok(Found::NotDone)
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Gone, StepError> {
        let world = cx.world;
        match self {
            Self::Begin {} => {}
            Self::Schedule { pieces } => starter::install(world.doors.own(), pieces).await?,
            Self::Pooler { host } => {
                apply::remove_pooler(&world.doors, &world.cluster, host).await?;
            }
            Self::Slot { on, slot } => {
                let conn = world.site(on)?.connect().await.map_err(Error::from)?;
                queries::drop_slot(&conn, slot)
                    .await
                    .map_err(|error| StepError::passing(Error::from(error)))?;
            }
            Self::Node { node } => {
                let site = world.site(node)?;
                match observe::observe_claim(site.host(), &site.places(), site.node).await {
                    Claim::None => provision::remove_bare_facts(&site).await?,
                    Claim::Ours(marker) => {
                        provision::stop(&site).await?;
                        provision::remove(&site, marker.directory_existed).await?;
                    }
                    Claim::Other(_) | Claim::Unknown { .. } => {
                        return Err(Error::refused(format!("the marker of {} changed", site.name())).into());
                    }
                }
            }
            Self::Program { host } => return Ok(remove_program(world, host).await?),
        }
        Ok(Gone::default())
    }

    async fn undo(&self, _cx: &Cx<'_, Self>) -> Result<(), StepError> {
        Ok(())
    }
}
