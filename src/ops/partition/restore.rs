//! A partition comes back from the repository, row for row: into a table of its own first, which is then attached, or stays beside.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::export::{self, connect, holds};
use super::grid::Bound;
use super::look;
use super::mark::{Mark, State};
use super::plan::{self, bound_sql, new_table};
use super::worker::{self, Options, Way, Worker};
use crate::db::partition::{self as catalog, session, sql};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::node::{NodeDoor, NodeRequest, Priority, Reporter, RestorePartition};
use crate::pg::ident::quote_identifier;
use crate::repo::export::{ExportKeys, ExportManifest};
use crate::repo::rows::Reader;
use crate::repo::{self};
use crate::topology::model::{Cluster, Herd};
use crate::topology::partitions::{PartitionSet, TableName};
use crate::units::ByteCount;

/// Where a partition is brought back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// It is a partition again, and retention leaves it alone until then.
    Attached { until: Timestamp },
    /// A table of its own, which nobody removes.
    Beside,
}

/// What is brought back.
#[derive(Debug, Clone)]
pub struct RestoreWish {
    pub table: TableName,
    /// The name that the partition had.
    pub partition: String,
    /// When it was exported; the last time if it is not said.
    pub exported_at: Option<Timestamp>,
    pub destination: Destination,
}

/// A partition that was brought back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BroughtBack {
    pub table: TableName,
    pub rows: u64,
    pub size: ByteCount,
    pub from: Option<jiff::civil::DateTime>,
    pub to: Option<jiff::civil::DateTime>,
    pub exported_at: Timestamp,
    /// An earlier run had brought the rows back already.
    pub was_there: bool,
    pub attached: bool,
}

/// Lists what the repository of a cluster holds of its partitions.
///
/// # Errors
/// [`ErrorKind::Refused`] without a repository; as that fails.
pub async fn exports(context: &Context, herd: &Herd, cluster: &Cluster) -> Result<Vec<ExportManifest>> {
    let way = Way::open(context, herd, cluster).await?;
    let backups = cluster.backups.as_ref().ok_or_else(|| export::no_repository(cluster))?;
    let door = NodeDoor::with(&way.doors, &way.node.host, &context.build).await?;
    let request = NodeRequest::ListExports {
        repository: door.location(&backups.repository),
        cluster: cluster.name.clone(),
    };
    door.call(&request, Priority::Normal, worker::silent()).await
}

/// Brings a partition back.
///
/// # Errors
/// [`ErrorKind::NotFound`] if it was never exported, [`ErrorKind::Refused`] if its name is taken, its columns do not fit or its range has a
/// partition; [`ErrorKind::Locked`] while somebody else maintains the set.
pub async fn restore(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &RestoreWish,
    options: &Options,
    interrupt: &Interrupt,
) -> Result<BroughtBack> {
    let set = worker::chosen(cluster, std::slice::from_ref(&wish.table))?.remove(0);
    let way = Way::open(context, herd, cluster).await?;
    let backups = cluster.backups.as_ref().ok_or_else(|| export::no_repository(cluster))?;
    let mut worker = Worker::open(&way, &set.database, options).await?;
    let seen = look::look(&worker.conn, set, options.now()).await?;
    worker.hold(set, seen.parent.oid).await?;
    // What was read before the set was held may have been changed by who held it.
    let seen = look::look(&worker.conn, set, options.now()).await?;
    let request = NodeRequest::RestorePartition(Box::new(RestorePartition {
        repository: way.doors.location(&way.node.host, &backups.repository),
        cluster: cluster.name.clone(),
        server: export::server(&way, options),
        set: set.clone(),
        partition: wish.partition.clone(),
        exported_at: wish.exported_at,
        until: match wish.destination {
            Destination::Attached { until } => Some(until),
            Destination::Beside => None,
        },
        at: seen.at,
    }));
    let door = NodeDoor::with(&way.doors, &way.node.host, &context.build).await?;
    let mut back: BroughtBack = tokio::select! {
        biased;
        () = interrupt.asked(1) => return Err(Error::new(ErrorKind::Interrupted, "interrupted").detail("Nothing was brought back.")),
        back = door.call(&request, Priority::Normal, worker::silent()) => back?,
    };
    if let Destination::Attached { until } = wish.destination {
        let names = plan::names(set, &seen);
        let range = (back.from.map_or(Bound::Lowest, Bound::At), back.to.map_or(Bound::Highest, Bound::At));
        let mark = Mark {
            until: Some(until),
            ..Mark::new(State::Restored, &set.table, &wish.partition, range, seen.at)
        };
        let literals = (bound_sql(&seen.grid, range.0), bound_sql(&seen.grid, range.1));
        let script =
            sql::attach_again(&names, &back.table.quoted(), (&literals.0, &literals.1), &mark.text());
        worker
            .insist(&script)
            .await
            .map_err(|error| error.context(format!("attach {}, whose rows are all there", back.table)))?;
        back.attached = true;
    }
    Ok(back)
}

/// Makes the table and fills it; in the child.
///
/// # Errors
/// As [`restore`]; when what is read is not what was stored, and then there is no table.
pub async fn restore_here(request: &RestorePartition, _reporter: &Reporter) -> Result<BroughtBack> {
    let repo = repo::open(&request.repository)?;
    let set = &request.set;
    let (keys, manifest) = find(request, export::all(&*repo, &request.cluster)?)?;
    let conn = connect(&request.server, &set.database).await?;
    let seen = look::look(&conn, set, request.at).await?;
    let table = TableName { schema: manifest.schema.clone(), name: manifest.partition.clone() };
    let back = BroughtBack {
        table: table.clone(),
        rows: manifest.rows,
        size: manifest.size,
        from: manifest.from,
        to: manifest.to,
        exported_at: manifest.at,
        was_there: false,
        attached: false,
    };
    fits(set, &seen, &manifest, request.until.is_some())?;
    let columns = columns(&conn, set, &manifest).await?;
    let range =
        (manifest.from.map_or(Bound::Lowest, Bound::At), manifest.to.map_or(Bound::Highest, Bound::At));
    let taken = catalog::names_taken(&conn, &table.schema, std::slice::from_ref(&table.name)).await?;
    if let Some(found) = taken.first() {
        let mark = found.comment.as_deref().and_then(Mark::read);
        let ours = mark.is_some_and(|mark| {
            mark.state == State::Restored && mark.of == set.table && mark.range() == range
        });
        if ours
            && found.partition_of.is_none()
            && catalog::count(&conn, &table.quoted()).await? == manifest.rows
        {
            return Ok(BroughtBack { was_there: true, ..back });
        }
        return Err(Error::refused(format!("cannot bring {table} back: there is a relation of that name"))
            .detail(match &found.partition_of {
                Some(parent) => format!("It is a partition of {parent}. Nothing was changed."),
                None => "Nothing was changed.".to_owned(),
            })
            .hint(format!("Rename it first: alter table {} rename to NAME.", table.quoted())));
    }
    let mark = Mark {
        until: request.until,
        ..Mark::new(State::Restored, &set.table, &table.name, range, request.at)
    };
    let names = plan::names(set, &seen);
    let create = sql::create(&names, &new_table(set, &seen, &table), &mark.text());
    let [sql::Block::Transaction(statements)] = create.blocks.as_slice() else {
        unreachable!("a table is made in one transaction");
    };
    session::begin(&conn).await?;
    let filled = async {
        conn.batch(
            &create.what,
            &format!("SET LOCAL idle_in_transaction_session_timeout = 0; {}", statements.join("; ")),
        )
        .await?;
        let mut reader = Reader::begin(&*repo, &keys.rows())?;
        let taken = catalog::copy_in(&conn, &table.quoted(), &columns, || reader.next().map_err(Error::from))
            .await??;
        holds(&reader, &*repo, &keys, &manifest)?;
        if taken != manifest.rows {
            return Err(Error::failed(format!(
                "the server took {taken} rows of {table}, and {} were stored",
                manifest.rows
            )));
        }
        // So that ATTACH need not read it, and whoever looks knows what it holds.
        let key = quote_identifier(&set.by);
        let lower = manifest
            .from
            .map(|from| format!(" AND {key} >= {}", seen.grid.literal(from)))
            .unwrap_or_default();
        let upper =
            manifest.to.map(|to| format!(" AND {key} < {}", seen.grid.literal(to))).unwrap_or_default();
        conn.batch(
            "check the rows",
            &format!(
                "ALTER TABLE {} ADD CONSTRAINT {} CHECK ({key} IS NOT NULL{lower}{upper})",
                table.quoted(),
                quote_identifier(sql::BOUND)
            ),
        )
        .await?;
        Ok(session::commit(&conn).await?)
    };
    match filled.await {
        Ok(()) => Ok(back),
        Err(error) => {
            session::end(&conn).await?;
            Err(error)
        }
    }
}

fn find(
    request: &RestorePartition,
    exports: Vec<(ExportKeys, ExportManifest)>,
) -> Result<(ExportKeys, ExportManifest)> {
    let set = &request.set;
    let of = set.table.to_string();
    let mut of_set: Vec<_> = exports
        .into_iter()
        .filter(|(_, manifest)| manifest.of == of && manifest.database == set.database)
        .collect();
    let wanted = of_set.iter().rposition(|(_, manifest)| {
        manifest.partition == request.partition && request.exported_at.is_none_or(|at| at == manifest.at)
    });
    if let Some(index) = wanted {
        return Ok(of_set.swap_remove(index));
    }
    let error = Error::new(
        ErrorKind::NotFound,
        format!("the repository has no export of the partition {} of {of}", request.partition),
    );
    Err(match (of_set.first(), of_set.last()) {
        (Some((_, first)), Some((_, last))) => error.detail(format!(
            "It has {} of that table, from {} to {}.",
            of_set.len(),
            first.partition,
            last.partition
        )),
        _ => error.detail("It has none of that table."),
    }
    .hint(format!("See which there are: pgherd partition list {of} --exported")))
}

/// Checks that the range of what is brought back is free.
fn fits(set: &PartitionSet, seen: &look::Seen, manifest: &ExportManifest, attached: bool) -> Result<()> {
    let from = manifest.from.map_or(Bound::Lowest, Bound::At);
    let to = manifest.to.map_or(Bound::Highest, Bound::At);
    let other = seen.parts.iter().find(|part| part.range.0 < to && from < part.range.1);
    match other.filter(|_| attached) {
        None => Ok(()),
        Some(part) => Err(Error::refused(format!(
            "cannot attach {} again: its range has the partition {}",
            manifest.partition, part.row.name
        ))
        .detail(format!(
            "{} has [{}, {}). Nothing was changed.",
            part.row.name,
            seen.grid.shown(part.range.0),
            seen.grid.shown(part.range.1)
        ))
        .hint(format!(
            "Bring it back as a table of its own: pgherd partition restore {} {} --beside",
            set.table, manifest.partition
        ))),
    }
}

/// Returns the columns that the rows have, if the table has them still.
async fn columns(
    conn: &crate::db::Conn,
    set: &PartitionSet,
    manifest: &ExportManifest,
) -> Result<Vec<String>> {
    let now = catalog::columns(conn, &set.table.schema, &set.table.name).await?;
    for stored in &manifest.columns {
        let found = now.iter().find(|(name, _)| *name == stored.name);
        let why = match found {
            None => format!("the table has no column {} any more", stored.name),
            Some((_, kind)) if *kind != stored.type_name => {
                format!("its column {} was {} and is {kind}", stored.name, stored.type_name)
            }
            Some(_) => continue,
        };
        return Err(Error::refused(format!(
            "cannot bring {} back as a part of {}: {why}",
            manifest.partition, set.table
        ))
        .detail("Nothing was changed.")
        .hint(
            "Its rows are CSV under zstd: docs/formats/partitions.md says how they are read without pgherd.",
        ));
    }
    Ok(manifest.columns.iter().map(|column| column.name.clone()).collect())
}
