//! The copies of journals on the hosts of a cluster: where they are, and what they say.
//!
//! Goes around the gate that counts an operation's calls: copies are written by the clock, beside the steps, and none of their failures is one
//! of the operation's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::engine::copies::{Kin, Shelf, overtaken, parted};
use crate::engine::journal::{self, Content};
use crate::engine::record::OperationId;
use crate::error::{Error, ErrorKind, Result};
use crate::host::decorate::{Layered, Traced};
use crate::ops::observe;
use crate::topology::model::{Cluster, Reach};
use crate::topology::places::Places;

/// How long one call for a copy may take on a host.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whose copies are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those that this station's own journals have: on other machines only.
    Ours,
    /// All, also what another station has put on this machine.
    Anybodys,
}

/// Returns where the copies of a cluster's journals lie, once a machine.
pub fn shelves(cluster: &Cluster, places: &Places, whose: Whose) -> Vec<Shelf> {
    let mut seen: Vec<&Reach> = Vec::new();
    let mut shelves = Vec::new();
    for name in cluster.used_hosts() {
        let reach = cluster.reach(name);
        if seen.contains(&reach) || (reach.is_here() && whose == Whose::Ours) {
            continue;
        }
        seen.push(reach);
        match observe::open_door(name, reach, cluster.postgres.os_user.as_deref(), Some(PATIENCE)) {
            Ok(door) => shelves.push(Shelf {
                host: Arc::new(Layered::new(door, Traced)),
                directory: places.on(reach).copies(&cluster.name),
            }),
            Err(error) => tracing::warn!(%error, host = name, "no copies of journals are kept there"),
        }
    }
    shelves
}

/// Why this station may not go on with an operation, and whether the operation is unfinished where it went on.
pub(crate) struct Lost {
    pub(crate) error: Error,
    pub(crate) unfinished: bool,
}

/// Looks at all copies of a journal of ours for one that shows that another station has the operation. What does not answer is left out.
pub(crate) async fn lost_to_another(shelves: &[Shelf], id: &OperationId, lines: &[u8]) -> Option<Lost> {
    let looks = shelves.iter().map(|shelf| async move {
        let copy = match shelf.read(id).await {
            Ok(copy) => copy?,
            Err(error) => {
                tracing::debug!(%error, operation = %id, "the copy of the journal was not looked at");
                return None;
            }
        };
        let host = shelf.host.name();
        let (error, content) = match Kin::of(&shelf.path(id), lines, &copy) {
            Kin::Ahead(content) | Kin::TakenOver(content) => (overtaken(id, host, &content), content),
            Kin::Parted(content) => (parted(id, host, &content), content),
            Kin::Behind | Kin::Torn | Kin::Damaged(_) | Kin::Other(_) | Kin::Superseded => return None,
        };
        Some(Lost { error, unfinished: !content.view.is_finished() })
    });
    join_all(looks).await.into_iter().flatten().next()
}

/// Refuses while the copies tell of an unfinished operation of the cluster that another station began; `known` are those whose journals are
/// here, which say more. Best effort: what does not answer is left out.
///
/// # Errors
/// [`ErrorKind::Locked`] with how it can be gone on with.
pub(crate) async fn refuse_beside_unfinished(
    shelves: &[Shelf],
    cluster: &str,
    known: &(dyn Fn(&OperationId) -> bool + Sync),
) -> Result<()> {
    for (id, chain) in gather_but(shelves, "", known).await.chains {
        let Ok(Chain { content, hosts, .. }) = chain else { continue };
        if !content.view.is_finished() {
            return Err(Error::new(
                ErrorKind::Locked,
                format!("cluster {cluster} has the unfinished operation {id} of another station"),
            )
            .detail(format!(
                "It is \"{}\", begun by {} at {:.0} and last heard of at {:.0}; its journal is copied on {}.",
                content.view.kind,
                content.view.by,
                content.view.begun,
                content.view.last,
                hosts.join(", ")
            ))
            .hint(format!(
                "Go on with it there: {}. If that station is gone, go on with it from here: {}",
                id.resume_command(),
                id.takeover_command()
            )));
        }
    }
    Ok(())
}

/// A journal as copies have it.
#[derive(Debug)]
pub struct Chain {
    pub lines: Vec<u8>,
    pub content: Content,
    /// The hosts that have all of it.
    pub hosts: Vec<String>,
}

/// What the copies of a cluster's journals say.
#[derive(Debug, Default)]
pub struct Gathered {
    /// By operation: the longest chain, or why there is none that can be trusted.
    pub chains: BTreeMap<OperationId, Result<Chain>>,
    /// The hosts that did not answer, with the reason.
    pub unreachable: Vec<(String, Error)>,
}

/// Reads the copies of a cluster's journals from all its hosts, side by side: those whose names begin so.
pub async fn gather(shelves: &[Shelf], prefix: &str) -> Gathered {
    gather_but(shelves, prefix, &|_| false).await
}

/// As [`gather`], without those that are known.
async fn gather_but(
    shelves: &[Shelf],
    prefix: &str,
    known: &(dyn Fn(&OperationId) -> bool + Sync),
) -> Gathered {
    let asked = join_all(shelves.iter().map(|shelf| async move {
        let host = shelf.host.name().to_owned();
        let read = async {
            let mut found = Vec::new();
            let mut ids = shelf.ids(prefix).await?;
            ids.retain(|id| !known(id));
            for copies in ids.chunks(SIDE_BY_SIDE) {
                let reads = copies.iter().map(|id| async move { Ok((id.clone(), shelf.read(id).await?)) });
                found.extend(join_all(reads).await.into_iter().collect::<Result<Vec<_>>>()?);
            }
            Ok(found)
        };
        (host, read.await)
    }))
    .await;
    let mut gathered = Gathered::default();
    let mut by_id: BTreeMap<OperationId, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for (host, answer) in asked {
        match answer {
            Ok(copies) => {
                for (id, copy) in copies {
                    if let Some(copy) = copy {
                        by_id.entry(id).or_default().push((host.clone(), copy));
                    }
                }
            }
            Err(error) => gathered.unreachable.push((host, error)),
        }
    }
    for (id, copies) in by_id {
        if let Some(chain) = longest(&id, &copies).transpose() {
            gathered.chains.insert(id, chain);
        }
    }
    gathered
}

/// How many copies one host is asked for at a time.
const SIDE_BY_SIDE: usize = 4;

/// Takes the longest chain that checks out; `None` where no copy has even its first line.
///
/// # Errors
/// [`ErrorKind::Stuck`] if none checks out, or if two have lines that the other has not.
pub fn longest(id: &OperationId, copies: &[(String, Vec<u8>)]) -> Result<Option<Chain>> {
    let mut chains = Vec::new();
    let mut damaged = None;
    for (host, copy) in copies {
        let path = Path::new(host).join(format!("{id}.jsonl"));
        match journal::parse(&path, copy) {
            Ok(Some(content)) => {
                // What follows the last line feed was torn.
                let whole = copy.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                chains.push((host, &copy[..whole], content));
            }
            Ok(None) => {}
            Err(error) => damaged = Some(error),
        }
    }
    chains.sort_by_key(|(_, lines, _)| std::cmp::Reverse(lines.len()));
    let mut chains = chains.into_iter();
    let Some((host, lines, content)) = chains.next() else { return damaged.map_or(Ok(None), Err) };
    let mut chain = Chain { lines: lines.to_vec(), content, hosts: vec![host.clone()] };
    for (other, lines, content) in chains {
        if !chain.lines.starts_with(lines) {
            return Err(forked(id, (host, &chain.content), (other, &content)));
        }
        if lines.len() == chain.lines.len() {
            chain.hosts.push(other.clone());
        }
    }
    Ok(Some(chain))
}

fn forked(id: &OperationId, one: (&str, &Content), other: (&str, &Content)) -> Error {
    let told = |(host, content): (&str, &Content)| {
        format!("host {host} ({} lines, the last of {:.0})", content.entries.len(), content.view.last)
    };
    Error::new(ErrorKind::Stuck, format!("operation {id} has gone on in two ways"))
        .detail(format!(
            "The copies of its journal on {} and on {} each have lines that the other has not. Nothing was changed.",
            told(one),
            told(other)
        ))
        .hint(
            "Compare both with the cluster, and move the one that is wrong out of its directory \
             (docs/formats/journal.md says where they are).",
        )
}

/// Returns the error of a takeover of which nothing shows that it is safe.
pub(crate) fn not_proven(id: &OperationId, why: &str) -> Error {
    Error::refused(format!("cannot take over operation {id}: nothing shows that its station is gone"))
        .detail(format!("{why} If that station still works on the cluster, both of them do."))
        .hint(format!(
            "Make sure that it is off, then run: pgherd operation takeover {id} --force --reason TEXT"
        ))
}
