//! Goes on, from the copies of its journal, with an operation that another station began and cannot end.
//!
//! Two stations never drive one operation: the first one's lock in the repository must have expired, or the operator says that it is gone;
//! and before anything is done the takeover is written to every copy within reach, where the first station finds it.

use std::time::Duration;

use futures_util::future::join_all;

use crate::engine::lock::Lock;
use crate::engine::operation::{FromCopy, Operation};
use crate::engine::record::OperationId;
use crate::engine::step::Step;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::copies::{self, Chain, Gathered, Whose};
use crate::topology::model::Cluster;

/// What the copies on the hosts of some clusters say.
pub async fn look(context: &Context, clusters: &[&Cluster], prefix: &str) -> Vec<(String, Gathered)> {
    join_all(clusters.iter().map(|cluster| async move {
        let shelves = copies::shelves(cluster, &context.places, Whose::Anybodys);
        (cluster.name.clone(), copies::gather(&shelves, prefix).await)
    }))
    .await
}

/// Finds the operation whose id begins so among the copies on the hosts of some clusters.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, with the hosts that did not answer; [`ErrorKind::Usage`] if there are several;
/// [`ErrorKind::Stuck`] if no copy can be trusted, or two of them contradict each other.
pub async fn find(context: &Context, clusters: &[&Cluster], prefix: &str) -> Result<Chain> {
    let mut found: Vec<(OperationId, Result<Chain>)> = Vec::new();
    let mut silent = Vec::new();
    for (_, gathered) in look(context, clusters, prefix).await {
        found.extend(gathered.chains);
        silent.extend(gathered.unreachable);
    }
    if found.len() > 1 && found.iter().any(|(id, _)| id.as_str() == prefix) {
        found.retain(|(id, _)| id.as_str() == prefix);
    }
    match found.len() {
        1 => found.remove(0).1,
        0 => {
            let error = Error::new(
                ErrorKind::NotFound,
                format!("there is no operation {prefix} here or on any host"),
            );
            Err(match told(&silent) {
                Some(hosts) => error.detail(format!("Not looked at: {hosts}.")),
                None => error.detail("No host of the topology has a copy of its journal."),
            }
            .hint("See them all: pgherd operation list --hosts"))
        }
        _ => {
            let names: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
            Err(Error::usage(format!("operation {prefix:?} is ambiguous"))
                .detail(format!("It could be {}.", names.join(", "))))
        }
    }
}

/// Returns the hosts that did not answer, with the reasons; `None` if all did.
pub fn told(silent: &[(String, Error)]) -> Option<String> {
    let hosts: Vec<String> = silent.iter().map(|(host, error)| format!("{host} ({error})")).collect();
    (!hosts.is_empty()).then(|| hosts.join(", "))
}

/// Takes an operation over from the copies of its journal; `declared` is its cluster as this station has it, `cluster` as the operation has.
///
/// # Errors
/// [`ErrorKind::Refused`] if nothing shows that the first station is gone and no `reason` is given, or if the operation has to be driven
/// from there; [`ErrorKind::Locked`] while that station holds the lock; [`ErrorKind::Stuck`] as [`find`].
pub async fn take_over<S: Step>(
    context: &Context,
    id: &OperationId,
    cluster: &Cluster,
    declared: Option<&Cluster>,
    reason: Option<&str>,
) -> Result<Operation<S>> {
    refuse_other_machines(id, cluster, declared)?;
    let lock = match choose(context, id, cluster).await? {
        // Nobody drives what has ended: its journal is all that there is to take.
        (chain, _) if chain.content.view.is_finished() => {
            Lock::take(&context.store, &cluster.name, Duration::ZERO).await?
        }
        _ => context.locker(cluster).take_over(id, reason.is_some()).await?,
    };
    // Only now does nobody else write to the copies.
    let chosen = choose(context, id, cluster).await;
    let (lock, (chain, unreachable)) = lock.keep_for(chosen).await?;
    let from = FromCopy {
        id: id.clone(),
        lines: chain.lines,
        copies: chain.hosts,
        unreachable,
        reason: reason.unwrap_or("its station is gone").to_owned(),
    };
    Operation::take_from_copy(&context.store, lock, from).await
}

async fn choose(context: &Context, id: &OperationId, cluster: &Cluster) -> Result<(Chain, Vec<String>)> {
    let shelves = copies::shelves(cluster, &context.places, Whose::Anybodys);
    let mut gathered = copies::gather(&shelves, "").await;
    let chain = gathered.chains.remove(id).unwrap_or_else(|| {
        Err(Error::new(ErrorKind::NotFound, format!("the copies of operation {id} are gone")))
    })?;
    let others = gathered.chains.values().flatten();
    let newer = others.map(|other| &other.content.view).find(|other| other.begun > chain.content.view.last);
    if let Some(newer) = newer
        && !chain.content.view.is_finished()
    {
        return Err(Error::refused(format!("cannot take over operation {id}: it has ended"))
            .detail(format!(
                "The copies lack its end, but {} began operation {} of the same cluster after it.",
                newer.by, newer.id
            ))
            .hint("See what there is: pgherd plan"));
    }
    Ok((chain, gathered.unreachable.into_iter().map(|(host, _)| host).collect()))
}

/// The journal says how the first station reaches the hosts; from here that must lead to the same machines.
fn refuse_other_machines(id: &OperationId, cluster: &Cluster, declared: Option<&Cluster>) -> Result<()> {
    let refused = |host: &str, why: String| {
        Err(Error::refused(format!(
            "cannot take over operation {id}: host {host} is another machine from here"
        ))
        .detail(why)
        .hint("Declare the host as the first station has it, or go on with the operation there."))
    };
    let Some(declared) = declared else {
        return Err(Error::refused(format!(
            "cannot take over operation {id}: the topology has no cluster {}",
            cluster.name
        ))
        .hint("Name the topology file that declares it with --file."));
    };
    for host in cluster.used_hosts() {
        let (there, here) = (cluster.reach(host), declared.reach(host));
        if there.is_here() {
            return refused(host, "For the first station it is the machine that pgherd runs on.".to_owned());
        }
        if there.address() != here.address() {
            let found = here.address().unwrap_or("this machine");
            let why = format!(
                "The operation reaches it as {}, the topology here as {found}.",
                there.address().unwrap_or_default()
            );
            return refused(host, why);
        }
    }
    Ok(())
}

/// How long the removal of what a destroyed cluster leaves may take.
const FORGET_LIMIT: Duration = Duration::from_secs(10);

/// Removes the copies of a cluster's journals from hosts that have nothing of it any more. What does not answer keeps them.
pub async fn forget(context: &Context, cluster: &Cluster, keep: impl Fn(&str) -> bool) {
    let shelves = copies::shelves(cluster, &context.places, Whose::Ours);
    let gone = shelves.iter().filter(|shelf| !keep(shelf.host.name()));
    let removals = join_all(gone.map(|shelf| async move {
        if let Err(error) = shelf.clear().await {
            tracing::warn!(%error, "the copies of journals stay there");
        }
    }));
    tokio::time::timeout(FORGET_LIMIT, removals).await.ok();
}

/// Brings the copies of a journal that has ended to its end, as far as they are within reach.
pub async fn tell_copies(context: &Context, cluster: &Cluster, id: &OperationId) {
    let Ok(lines) = std::fs::read(context.store.path(id)) else { return };
    let shelves = copies::shelves(cluster, &context.places, Whose::Ours);
    join_all(shelves.iter().map(|shelf| async {
        if let Err(error) = shelf.complete(id, &lines).await {
            tracing::warn!(%error, operation = %id, "the copy of the journal is not complete");
        }
    }))
    .await;
}

/// Tells whether some copy of a journal that is here goes on where that ends, or was taken over from before its end.
pub async fn goes_on_elsewhere(context: &Context, cluster: &Cluster, id: &OperationId, lines: &[u8]) -> bool {
    let shelves = copies::shelves(cluster, &context.places, Whose::Anybodys);
    let lost = copies::lost_to_another(&shelves, id, lines).await;
    lost.is_some_and(|lost| lost.error.kind() == ErrorKind::Locked)
}
