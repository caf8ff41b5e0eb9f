//! From the file to the herd: gather what is needed to plan, then drive the plan under a journal.

pub(crate) mod access;
mod adopt;
pub(crate) mod archive;
pub(crate) mod configure;
pub mod evidence;
pub(crate) mod follow;
pub(crate) mod logins;
pub(crate) mod pooler;
pub(crate) mod proof;
mod repository;
mod rotation;
pub mod step;
mod tls;
pub mod world;

pub(crate) use pooler::remove as remove_pooler;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::db::logins::Purpose;
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::engine::operation::{self, Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, Record, TopologyFile};
use crate::error::{Error, Result};
use crate::host::{Command, Host, RunAs, programs};
use crate::net::vault;
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::{Input, World};
use crate::ops::certificate;
use crate::ops::context::Context;
use crate::ops::objects::{self, ObjectsObserved, ToPrimary};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors};
use crate::ops::plan::step::{ApplyStep, PlannedStep};
use crate::ops::plan::{self, Adoption, ClusterPlan, Fixed, Logins, PoolerDrift, Situation};
use crate::ops::preflight;
use crate::ops::roles::{self, Lead};
use crate::ops::split;
use crate::ops::starter;
use crate::secret::Secret;
use crate::topology::model::{Cluster, Herd, Node, SecretReference, VaultReference};
use crate::topology::secrets;
use crate::units::ByteCount;

/// The kind of this operation in its journal.
pub const KIND: &str = "apply";

/// Looks at a cluster and plans its way to what is declared.
///
/// # Errors
/// Every obstacle at once: a missing program or secret, a directory that is not ours, two primaries, an unreachable primary.
pub async fn prepare(context: &Context, herd: &Herd, cluster: &Cluster) -> Result<ClusterPlan, Vec<Error>> {
    prepare_wishing(context, herd, cluster, &Wishes::default()).await
}

/// What a plan is asked for beside what the topology declares.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// A new password for one of pgherd's own logins.
    pub rotate: Option<Purpose>,
    /// Nodes that may be taken over as they run, by their names within the cluster.
    pub adopt: BTreeSet<String>,
    /// Nothing but the poolers.
    pub only_poolers: bool,
}

/// As [`prepare`], with something besides.
///
/// # Errors
/// As [`prepare`]; refused while a node cannot get a new password, or cannot be taken over.
pub async fn prepare_wishing(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wishes: &Wishes,
) -> Result<ClusterPlan, Vec<Error>> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate).map_err(|error| vec![error])?;
    let preflight = preflight::look(&doors, cluster).await;
    let mut missing: Vec<Error> = preflight.errors;
    let open = |host: &&String| !preflight.closed.contains(*host);
    // While a process drives an operation the journal is its business; what nobody drives must be ended first.
    match lock::holder(&context.store, &cluster.name) {
        Ok(Some(_)) => {}
        Ok(None) => missing.extend(operation::refuse_beside_unfinished(&context.store, &cluster.name).err()),
        Err(error) => missing.push(error),
    }
    let node_hosts = cluster.nodes.iter().map(|node| &node.host).filter(open);
    for found in join_all(node_hosts.map(|host| doors.programs(cluster, host))).await {
        missing.extend(found.err().filter(|error| !missing.iter().any(|m| m.what() == error.what())));
    }
    for host in cluster.pooler_hosts().filter(open) {
        let found = programs::find_pgbouncer(doors.host(host)).await;
        let possible =
            found.and_then(|(_, version)| pooler::obstacle(cluster, host, version, &context.places));
        missing.extend(possible.err());
    }
    missing.extend(certificate::obstacles(cluster));
    let passwords = match passwords(context, cluster).await {
        Ok(passwords) => passwords,
        Err(errors) => {
            missing.extend(errors);
            BTreeMap::new()
        }
    };
    if !missing.is_empty() {
        return Err(missing);
    }
    let mut observed = observe::observe(&doors, cluster, Depth::Files).await;
    let adoption = Adoption {
        candidates: crate::ops::adopt::look(&doors, cluster, &mut observed, &wishes.adopt).await,
        asked: wishes.adopt.clone(),
    };
    let mut fixed = fix(&doors, herd, cluster, &observed).await.map_err(|error| vec![error])?;
    fixed.adopted.extend(adoption.candidates.keys().cloned());
    let cluster = &cluster.with_adopted(&fixed.adopted);
    let seen =
        look_closer(&doors, cluster, &observed, &adoption, &passwords).await.map_err(|error| vec![error])?;
    let archive =
        archive::look(&doors, cluster, &context.build, &context.store).await.map_err(|error| vec![error])?;
    let tls = tls::look(&doors, cluster, &observed).await.map_err(|error| vec![error])?;
    let split = split::look(&doors, cluster, &observed).await;
    let starter = starter::look(doors.own(), herd).await.map_err(|error| vec![error])?;
    let plan = plan::plan(&Situation {
        cluster,
        places: &context.places,
        fixed: &fixed,
        observed: &observed,
        objects: seen.objects.as_ref(),
        logins: seen.logins,
        poolers: &seen.poolers,
        archive: archive.as_ref(),
        tls: tls.as_ref(),
        rotate: wishes.rotate,
        adoption: &adoption,
        split: split.as_ref(),
        starter: &starter,
    })?;
    if wishes.only_poolers { plan.only_poolers().map_err(|error| vec![error]) } else { Ok(plan) }
}

/// What only a primary that answers can tell.
struct Closer {
    objects: Option<ObjectsObserved>,
    logins: Option<Logins>,
    poolers: BTreeMap<String, PoolerDrift>,
}

async fn look_closer(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    adoption: &Adoption,
    passwords: &BTreeMap<String, Secret>,
) -> Result<Closer> {
    let lead = roles::lead(observed);
    let Lead::Primary(name) = &lead else {
        let poolers = pooler::drift_without_primary(doors, cluster).await;
        return Ok(Closer { objects: None, logins: None, poolers });
    };
    let primary = cluster.node(name).expect("roles::lead names nodes of the cluster");
    if adoption.candidates.get(name).is_some_and(|candidate| !candidate.logs_in) {
        let missing = Logins::Wrong {
            what: format!("{} has no password file", cluster.full_name(name)),
            nodes: adoption.candidates.keys().cloned().collect(),
        };
        return Ok(Closer { objects: None, logins: Some(missing), poolers: BTreeMap::new() });
    }
    // A node that is not there yet gets its password file with its clone.
    let present: Vec<&Node> = cluster
        .nodes
        .iter()
        .filter(|node| observed.node(&node.name).is_some_and(|seen| seen.files.is_some()))
        .collect();
    let login = doors.superuser(cluster, primary, "postgres");
    let to = ToPrimary { connector: &doors.connector, login: &login };
    let (objects, logins, poolers) = futures_util::join!(
        objects::observe(to, cluster, passwords),
        logins::examine(doors, cluster, primary, &present),
        pooler::drift(doors, cluster, primary, observed),
    );
    let logins = match logins? {
        logins::Look::Right => Logins::Right,
        logins::Look::Wrong { what, nodes } => Logins::Wrong { what, nodes },
    };
    Ok(Closer { objects: Some(objects?), logins: Some(logins), poolers })
}

/// Finds what stays the same for the whole operation.
pub(crate) async fn fix(
    doors: &Doors,
    herd: &Herd,
    cluster: &Cluster,
    observed: &ClusterObserved,
) -> Result<Fixed> {
    let mut fixed = Fixed { memory: BTreeMap::new(), users: BTreeMap::new(), adopted: BTreeSet::new() };
    let adopted = observed.nodes.iter().filter(|seen| seen.is_adopted());
    fixed.adopted.extend(adopted.map(|seen| seen.node.clone()));
    for node in &cluster.nodes {
        let host = doors.host(&node.host);
        let mut users = vec![host.os_user().to_owned(), host.caller().to_owned()];
        users.dedup();
        fixed.users.insert(node.host.clone(), users);
        let made_for =
            observed.node(&node.name).and_then(|seen| seen.profile.as_ref()).map(|profile| profile.memory);
        // What was shared out when a node was made stays: a node that comes to the host later, or a machine that has grown, is no
        // reason to restart it.
        let memory = match cluster.postgres.tune_memory.or(made_for) {
            Some(stated) => stated,
            None => {
                let all = host.memory().await.map_err(|error| {
                    Error::failed(format!("could not read the memory of host {}", node.host)).source(error)
                })?;
                let beside =
                    herd.clusters.iter().flat_map(|c| &c.nodes).filter(|n| n.host == node.host).count();
                share(all, u64::try_from(beside).unwrap_or(u64::MAX))
            }
        };
        fixed.memory.insert(node.name.clone(), memory);
    }
    Ok(fixed)
}

/// Shares a host's memory among its nodes, in steps of 64 MiB: what the kernel reports moves a little from boot to boot, and that
/// is no reason for a restart.
fn share(all: ByteCount, nodes: u64) -> ByteCount {
    const HOST_STEP: u64 = 256 << 20;
    const NODE_STEP: u64 = 64 << 20;
    let host = all.0 / HOST_STEP * HOST_STEP;
    ByteCount((host / nodes.max(1) / NODE_STEP * NODE_STEP).max(NODE_STEP))
}

/// Resolves the passwords of all declared roles.
pub(crate) async fn passwords(
    context: &Context,
    cluster: &Cluster,
) -> Result<BTreeMap<String, Secret>, Vec<Error>> {
    let here = observe::open_own_door(&context.gate);
    let mut found = BTreeMap::new();
    let mut errors = Vec::new();
    for role in &cluster.roles {
        let Some(reference) = &role.password else { continue };
        match resolve(&*here, reference).await {
            Ok(secret) => {
                found.insert(role.name.clone(), secret);
            }
            Err(error) => errors.push(error.context(format!("resolve the password of role {}", role.name))),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

/// Resolves the password of one declared role; `None` if the topology has none for it.
///
/// # Errors
/// When it cannot be had.
pub(crate) async fn password(context: &Context, cluster: &Cluster, role: &str) -> Result<Option<Secret>> {
    let reference = cluster.roles.iter().find(|declared| declared.name == role);
    let Some(reference) = reference.and_then(|declared| declared.password.as_ref()) else { return Ok(None) };
    let here = observe::open_own_door(&context.gate);
    let resolved = resolve(&*here, reference).await;
    resolved.map(Some).map_err(|error| error.context(format!("resolve the password of role {role}")))
}

/// Looks a secret up where its reference says it is.
///
/// # Errors
/// When it cannot be had.
pub(crate) async fn resolve(here: &dyn Host, reference: &SecretReference) -> Result<Secret> {
    if let SecretReference::Vault(vault) = reference {
        return out_of_vault(here, vault).await;
    }
    resolve_here(here, reference).await
}

async fn out_of_vault(here: &dyn Host, vault: &VaultReference) -> Result<Secret> {
    let token =
        resolve_here(here, &vault.token).await.map_err(|error| error.context("find the token for Vault"))?;
    let authorities = match &vault.ca {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
            Error::failed(format!("could not read the authorities for Vault in {}", path.display()))
                .source(error)
        })?),
    };
    let wanted = vault::Wanted {
        url: &vault.url,
        path: &vault.path,
        field: &vault.field,
        namespace: vault.namespace.as_deref(),
        authorities: authorities.as_deref(),
        patience: vault::PATIENCE,
    };
    let found = vault::read(&wanted, &token).await?;
    secrets::given(&found, &format!("{} of {} at {}", vault.field, vault.path, vault.url))
}

/// Resolves what this machine has itself.
async fn resolve_here(here: &dyn Host, reference: &SecretReference) -> Result<Secret> {
    let SecretReference::Command(argv) = reference else {
        return secrets::resolve_with(reference, &|_| {
            Err(Error::failed("only a command is run for a secret"))
        });
    };
    let (program, args) =
        argv.split_first().ok_or_else(|| Error::usage("the command of a secret is empty"))?;
    // Secrets are the operator's: they are looked for where pgherd runs, and only verifiers travel.
    let command = Command::new(program)
        .args(args.iter().cloned())
        .user(RunAs::Caller)
        .reads()
        .timeout(Duration::from_secs(30));
    // What it prints may be half a secret: neither output nor error text is kept.
    let output = here.run(&command).await.map_err(|_| {
        Error::failed(format!("the command {program} gave no secret"))
            .hint("Run it by hand; its output is not shown here.")
    })?;
    secrets::resolve_with(reference, &|_| Ok(output.stdout.clone()))
}

/// What an apply is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    pub plan: ConfirmedPlan,
    pub topology: TopologyFile,
    /// How long to wait for another operation of the cluster to end.
    pub wait: Duration,
}

/// Names the topology file and its content in a journal.
///
/// # Errors
/// When it cannot be read any more.
pub fn topology_file(file: &Path) -> Result<TopologyFile> {
    let bytes = std::fs::read(file)
        .map_err(|error| Error::failed(format!("could not read {}", file.display())).source(error))?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(TopologyFile { file: file.to_owned(), sha256 })
}

/// Returns where an operation proved its write and how long it took, if it did.
///
/// # Errors
/// When its journal cannot be read.
pub fn proof_of(context: &Context, id: &OperationId) -> Result<Option<(Vec<String>, Duration)>> {
    for entry in context.store.read(id)?.entries.into_iter().rev() {
        if let Record::StepDone { evidence, .. } = entry.record
            && let Ok(Evidence::Proved { nodes, milliseconds }) = serde_json::from_value(evidence)
        {
            return Ok(Some((nodes, Duration::from_millis(milliseconds))));
        }
    }
    Ok(None)
}

/// Drives a plan that was shown and agreed to.
///
/// # Errors
/// [`crate::error::ErrorKind::Locked`] if another operation holds the cluster, `Refused` if the world moved since the plan was
/// made, and as [`operation::run`].
pub async fn run(
    context: &Context,
    request: Request<'_>,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<(OperationId, Outcome)> {
    let Request { herd, cluster, plan: confirmed, topology, wait } = request;
    let lock = context.locker(cluster).take(wait).await?;
    let wishes = confirmed.wishes();
    let checked = confirmed.check(prepare_wishing(context, herd, cluster, &wishes).await);
    let (lock, plan) = lock.keep_for(checked).await?;
    let input = Input {
        herd: herd.name.clone(),
        cluster: cluster.with_adopted(&plan.fixed.adopted),
        primary: plan.primary.clone(),
        fixed: plan.fixed.clone(),
    };
    let intent = Intent {
        kind: KIND.to_owned(),
        topology,
        plan_digest: plan.fingerprint.clone(),
        input: operation::written(&input)?,
        stages: plan::step::stages(&plan.stages),
    };
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let (mut operation, world) = operation.or_call_off(open_world(context, &id, input).await).await?;
    let outcome = operation::run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Goes on with an operation of this kind that no process drives any more, or takes it back.
///
/// # Errors
/// As [`Operation::open`], [`operation::run`] and [`operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<ApplyStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    context.locker(&input.cluster).join(&mut operation).await?;
    let world = open_world(context, &id, input).await?;
    operation::go(&mut operation, &world, way, events, interrupt).await
}

async fn open_world(context: &Context, id: &OperationId, input: Input) -> Result<World> {
    let passwords = passwords(context, &input.cluster).await.map_err(|mut errors| errors.remove(0))?;
    World::open(id.as_str().to_owned(), input, passwords, context).await
}

/// A plan that somebody has read and agreed to.
#[derive(Debug, Clone)]
pub struct ConfirmedPlan(ClusterPlan);

impl ConfirmedPlan {
    /// Takes a plan that was shown; the caller has asked, or was told not to.
    pub fn new(plan: ClusterPlan) -> Self {
        Self(plan)
    }

    /// Returns what it was asked for.
    fn wishes(&self) -> Wishes {
        let rotate = self.0.steps().find_map(|planned| {
            if let ApplyStep::StagePassword { login } = planned.step { Some(login) } else { None }
        });
        Wishes { rotate, adopt: self.0.adopt.clone(), only_poolers: self.0.only_poolers }
    }

    /// Compares it with a plan that was made just now, under the lock.
    ///
    /// What belongs to all clusters of a host may have been done for another one since, and is left out then. That WAL arrives is shown
    /// all the same: it was agreed to because of those steps.
    fn check(&self, fresh: Result<ClusterPlan, Vec<Error>>) -> Result<ClusterPlan> {
        let fresh = fresh.map_err(|mut errors| errors.remove(0))?;
        let agreed = &self.0;
        let is_own = |planned: &PlannedStep| {
            !planned.step.is_common() && !matches!(planned.step, ApplyStep::Archive { .. })
        };
        let same = |one: &PlannedStep, other: &PlannedStep| match one.step.prunes() {
            Some(host) => other.step.prunes() == Some(host),
            None => one == other,
        };
        // Copies that were needed when the plan was shown are left for the next one.
        let is_agreed = |planned: &PlannedStep| {
            planned.step.prunes().is_some() || agreed.steps().any(|one| one == planned)
        };
        if fresh.keeping(is_own) == agreed.keeping(is_own)
            && fresh.steps().all(|planned| is_own(planned) || is_agreed(planned))
            && fresh.fingerprint == agreed.fingerprint
            && fresh.primary == agreed.primary
        {
            let is_left = |planned: &PlannedStep| fresh.steps().any(|one| same(planned, one));
            let stages = agreed.keeping(|planned| !planned.step.is_common() || is_left(planned));
            return Ok(ClusterPlan { stages, ..fresh });
        }
        Err(Error::refused(format!(
            "the plan for {} is out of date: the world has moved since it was made",
            self.0.cluster
        ))
        .detail("What is there now asks for other steps. Nothing was changed.")
        .hint("Read the new plan: pgherd plan"))
    }
}

/// Plans as `plan --out` saves them; docs/formats/plan.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    format: u32,
    herd: String,
    topology: TopologyFile,
    pub plans: Vec<ClusterPlan>,
}

impl SavedPlan {
    /// Takes plans that were just made.
    ///
    /// # Errors
    /// When the topology file cannot be read any more.
    pub fn new(herd: &Herd, plans: &[ClusterPlan]) -> Result<Self> {
        let topology = topology_file(&herd.file)?;
        Ok(Self { format: plan::FORMAT, herd: herd.name.clone(), topology, plans: plans.to_vec() })
    }

    /// Writes the plans to a file that only its owner may read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let could_not = |error: std::io::Error| {
            Error::failed(format!("could not write {}", file.display())).source(error)
        };
        let text = self.text();
        let mut open = std::fs::OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600);
        open.open(file).and_then(|mut out| out.write_all(text.as_bytes())).map_err(could_not)
    }

    fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a plan is plain data") + "\n"
    }

    /// Reads plans that were saved for this herd and this very file.
    ///
    /// # Errors
    /// When it is no plan of ours, or the topology has changed since.
    pub fn read(file: &Path, herd: &Herd) -> Result<Self> {
        let text = std::fs::read(file)
            .map_err(|error| Error::failed(format!("could not read {}", file.display())).source(error))?;
        let saved: Self = serde_json::from_slice(&text).map_err(|error| {
            Error::usage(format!("{} is not a saved plan of this pgherd", file.display()))
                .hint(format!("Make a new one: pgherd plan --out {}", file.display()))
                .source(error)
        })?;
        if saved.format != plan::FORMAT {
            return Err(Error::usage(format!(
                "{} has format {}, expected {}",
                file.display(),
                saved.format,
                plan::FORMAT
            )));
        }
        if saved.topology.sha256 != topology_file(&herd.file)?.sha256 {
            return Err(Error::refused(format!(
                "the plan in {} is out of date: {} has changed",
                file.display(),
                herd.file.display()
            ))
            .detail("Nothing was changed.")
            .hint(format!("Make a new one: pgherd plan --out {}", file.display())));
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_plan_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../../tests/golden/plan-v1.json");
        let saved: SavedPlan = serde_json::from_str(golden).unwrap();
        assert_eq!(saved.plans.iter().map(|plan| plan.steps().count()).collect::<Vec<_>>(), [20, 12, 3, 1]);
        // Every kind of step is in it.
        let kinds = saved
            .plans
            .iter()
            .flat_map(ClusterPlan::steps)
            .map(|planned| std::mem::discriminant(&planned.step));
        assert_eq!(kinds.collect::<std::collections::HashSet<_>>().len(), 27);
        assert_eq!(saved.text(), golden);
    }

    #[test]
    fn a_little_less_memory_after_a_boot_changes_no_share() {
        let shares: Vec<u64> =
            [24_600_u64, 24_650, 24_700].map(|mib| share(ByteCount(mib << 20), 7).0 >> 20).into();
        assert_eq!(shares, [3456, 3456, 3456]);
        assert_eq!(share(ByteCount(1 << 20), 3), ByteCount(64 << 20));
    }
}
