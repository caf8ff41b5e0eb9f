//! Rows of a partition that is no longer kept go to the repository, are read back from there, and only then the table is dropped.
//!
//! All of it is one transaction, in a child on the primary's host: SHARE ROW EXCLUSIVE keeps others from changing a row, and another export away,
//! from before the first row is read until the table is gone. What was stored is what is dropped.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::look;
use super::worker::{self, Options, Way};
use crate::db::partition::{self as catalog, session};
use crate::db::{Conn, Connector, Endpoint, Login, Session, queries};
use crate::error::{Error, ErrorKind, Result};
use crate::gate;
use crate::ops::context::Context;
use crate::ops::node::{ExportPartition, LocalServer, NodeDoor, NodeRequest, Priority, Reporter};
use crate::pg::system::SystemIdentifier;
use crate::repo::export::{ExportColumn, ExportKeys, ExportManifest, folder_of, partition_folder};
use crate::repo::layout::ClusterKeys;
use crate::repo::rows::{Counted, Reader, Writer};
use crate::repo::{self, Location, Repo, SharedRepo, document, seal};
use crate::topology::declared;
use crate::topology::model::Cluster;
use crate::topology::partitions::{PartitionSet, TableName};
use crate::units::ByteCount;

/// What was stored of a partition before it was dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    pub table: TableName,
    pub at: Timestamp,
    pub rows: u64,
    pub size: ByteCount,
    pub stored: ByteCount,
    /// The same rows had been stored before.
    pub was_there: bool,
}

/// Has a child on the primary's host store the rows and drop the table.
///
/// # Errors
/// [`ErrorKind::Refused`] without a repository; the child's own.
pub(super) async fn export_and_drop(
    context: &Context,
    way: &Way<'_>,
    set: &PartitionSet,
    seen: &look::Seen,
    table: &TableName,
    options: &Options,
) -> Result<Exported> {
    let cluster = way.cluster;
    let backups = cluster.backups.as_ref().ok_or_else(|| no_repository(cluster))?;
    let conn = way.connect(&set.database, options).await?;
    let system_identifier = queries::server_facts(&conn).await?.system_identifier;
    drop(conn);
    let request = NodeRequest::ExportPartition(Box::new(ExportPartition {
        repository: way.doors.location(&way.node.host, &backups.repository),
        herd: way.herd.name.clone(),
        cluster: cluster.name.clone(),
        system_identifier,
        server: server(way, options),
        set: set.clone(),
        table: table.clone(),
        at: seen.at,
    }));
    let door = NodeDoor::with(&way.doors, &way.node.host, &context.build).await?;
    door.call(&request, Priority::Normal, worker::silent()).await
}

pub(super) fn no_repository(cluster: &Cluster) -> Error {
    Error::refused(format!("cluster {} has no repository", cluster.name))
        .hint("Declare it in the topology: backups: {repository: NAME}.")
}

/// Says how a child on the primary's host reaches its server.
pub(super) fn server(way: &Way<'_>, options: &Options) -> LocalServer {
    LocalServer {
        name: way.cluster.full_name(&way.node.name),
        socket: way.doors.node_places(way.cluster, way.node).socket,
        port: way.node.port,
        user: declared::SUPERUSER.to_owned(),
        lock_timeout: options.lock_timeout,
        tries: options.tries,
    }
}

/// Logs in from a child on the server's own host.
///
/// # Errors
/// [`crate::db::DbError`].
pub(super) async fn connect(server: &LocalServer, database: &str) -> Result<Conn> {
    let login = Login {
        server: server.name.clone(),
        endpoint: Endpoint::Socket { directory: server.socket.clone(), port: server.port },
        user: server.user.clone(),
        database: database.to_owned(),
        password: None,
        session: Session::Tool,
        tunnel: None,
        tls: None,
    };
    let connector = Connector::new(gate::open()).timeouts(std::time::Duration::from_secs(5), worker::LONG);
    let conn = connector.connect(&login).await?;
    session::prepare(&conn, server.lock_timeout, "pgherd partition").await?;
    Ok(conn)
}

/// Stores the rows of a detached partition and drops it; in the child.
///
/// # Errors
/// [`ErrorKind::Refused`] if it is not a table that was detached; [`ErrorKind::Failed`] if others hold its lock, or what is read back is not what was
/// stored. The table is then as it was.
pub async fn export_here(request: &ExportPartition, reporter: &Reporter) -> Result<Exported> {
    let repo = repo::open(&request.repository)?;
    let conn = connect(&request.server, &request.set.database).await?;
    let seen = look::look(&conn, &request.set, request.at).await?;
    let table = request.table.quoted();
    lock(&conn, request, &table).await?;
    let work = Work { request, repo, conn, seen, table };
    let ended = work.run(reporter).await;
    if ended.is_err() {
        session::end(&work.conn).await?;
    }
    ended
}

async fn lock(conn: &Conn, request: &ExportPartition, table: &str) -> Result<()> {
    let statement = format!("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE");
    let mut tried = 1;
    loop {
        session::begin(conn).await?;
        // While it is read back, this session has nothing to say; that it lives is seen to by whoever waits for the child.
        let begun = "SET LOCAL idle_in_transaction_session_timeout = 0";
        match conn.batch("lock the partition", &format!("{begun}; {statement}")).await {
            Ok(()) => return Ok(()),
            Err(error) if session::was_in_the_way(&error) && tried < request.server.tries => {
                session::end(conn).await?;
                tokio::time::sleep(worker::jittered(worker::BACKOFF * 2_u32.pow(tried.min(5) - 1))).await;
                tried += 1;
            }
            Err(error) => {
                session::end(conn).await?;
                return Err(Error::from(error)
                    .context(format!("lock {}, which nobody should use any more", request.table)));
            }
        }
    }
}

struct Work<'a> {
    request: &'a ExportPartition,
    repo: SharedRepo,
    conn: Conn,
    seen: look::Seen,
    table: String,
}

impl Work<'_> {
    async fn run(&self, reporter: &Reporter) -> Result<Exported> {
        let Self { request, conn, .. } = self;
        worker::still_the_one(conn, &self.seen, &request.set, &request.table).await?;
        let columns = catalog::columns(conn, &request.table.schema, &request.table.name).await?;
        let names: Vec<String> = columns.iter().map(|(name, _)| name.clone()).collect();
        let rows = catalog::count(conn, &self.table).await?;
        let system = ClusterKeys::new(&request.cluster).system(request.system_identifier);
        let (schema, name) = (request.table.schema.as_str(), request.table.name.as_str());
        let folder = partition_folder(&system, &request.set.database, (schema, name))
            .map_err(|error| Error::failed("the partition cannot be named in a repository").source(error))?;
        let mut before = Vec::new();
        for second in repo::wait(self.repo.list(Some(&folder)))?.folders {
            let Ok(keys) = folder.join(&second).map(ExportKeys::at) else { continue };
            let manifest = keys.manifest();
            match repo::wait(Box::pin(document::read::<ExportManifest>(&*self.repo, &manifest)))? {
                Some(found) => before.push((keys, found.ok())),
                // An export that was cut off; the lock says that nobody makes it now.
                None => {
                    repo::wait(self.repo.remove(&keys.rows()))?;
                }
            }
        }
        let alike = before.iter().rev().find_map(|(keys, manifest)| {
            let manifest = manifest.as_ref()?;
            (manifest.rows == rows && same_columns(&manifest.columns, &columns)).then_some((keys, manifest))
        });
        if let Some((keys, manifest)) = alike {
            let mut counted = Counted::default();
            catalog::copy_out(conn, &self.table, &names, |piece| {
                counted.take(piece);
                Ok(())
            })
            .await??;
            let now = counted.seen();
            if (now.rows, now.size, now.content) == (manifest.rows, manifest.size, manifest.content_blake3)
                && read_back(&*self.repo, keys, manifest).is_ok()
            {
                self.drop_table(reporter).await?;
                return Ok(exported(&request.table, manifest, true));
            }
        }
        let manifest = self.store(&columns, &names, rows, &before).await?;
        self.drop_table(reporter).await?;
        Ok(exported(&request.table, &manifest, false))
    }

    /// Stores the rows, reads them back, and only then stores the manifest.
    async fn store(
        &self,
        columns: &[(String, String)],
        names: &[String],
        rows: u64,
        before: &[(ExportKeys, Option<ExportManifest>)],
    ) -> Result<ExportManifest> {
        let request = self.request;
        let system = ClusterKeys::new(&request.cluster).system(request.system_identifier);
        let partition = (request.table.schema.as_str(), request.table.name.as_str());
        let mut at = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        let keys = loop {
            let keys = ExportKeys::new(&system, &request.set.database, partition, at).map_err(|error| {
                Error::failed("the partition cannot be named in a repository").source(error)
            })?;
            if !before.iter().any(|(taken, _)| *taken == keys) {
                break keys;
            }
            at += SignedDuration::from_secs(1);
        };
        let mut writer = Writer::begin(&*self.repo, &keys.rows())?;
        catalog::copy_out(&self.conn, &self.table, names, |piece| writer.take(piece)).await??;
        let (written, stored, stored_blake3) = writer.end()?;
        if written.rows != rows {
            return Err(Error::failed(format!(
                "the server counts {rows} rows of {}, and {} came out",
                request.table, written.rows
            ))
            .detail("Nothing was dropped."));
        }
        let marked = catalog::marked(&self.conn, super::mark::BEGIN).await?;
        let mark = marked
            .iter()
            .find(|row| row.schema == request.table.schema && row.name == request.table.name)
            .and_then(|row| super::mark::Mark::read(&row.comment))
            .ok_or_else(|| Error::failed(format!("the mark of {} has vanished", request.table)))?;
        let manifest = ExportManifest {
            format: seal::FORMAT,
            herd: request.herd.clone(),
            cluster: request.cluster.clone(),
            system_identifier: request.system_identifier,
            pgherd: env!("PGHERD_VERSION").to_owned(),
            server_version: self.seen.session.version,
            database: request.set.database.clone(),
            of: request.set.table.to_string(),
            schema: request.table.schema.clone(),
            partition: request.table.name.clone(),
            by: request.set.by.clone(),
            key_type: self
                .seen
                .parent
                .shape
                .key
                .as_ref()
                .map(|key| key.type_name.clone())
                .unwrap_or_default(),
            from: mark.from,
            to: mark.to,
            at,
            columns: columns
                .iter()
                .map(|(name, type_name)| ExportColumn { name: name.clone(), type_name: type_name.clone() })
                .collect(),
            rows,
            size: written.size,
            content_blake3: written.content,
            stored,
            stored_blake3,
        };
        read_back(&*self.repo, &keys, &manifest)?;
        match repo::wait(self.repo.create(&keys.manifest(), &seal::write_document(&manifest)))? {
            repo::Put::Stored => Ok(manifest),
            repo::Put::Refused => {
                Err(Error::failed(format!("{} is there already", keys.manifest()))
                    .detail("Nothing was dropped."))
            }
        }
    }

    async fn drop_table(&self, reporter: &Reporter) -> Result<()> {
        if reporter.is_alone() {
            return Err(Error::new(ErrorKind::Interrupted, "nobody waits for it any more")
                .detail("Nothing was dropped."));
        }
        self.conn
            .batch(&format!("drop {}", self.request.table), &format!("DROP TABLE {}", self.table))
            .await?;
        Ok(session::commit(&self.conn).await?)
    }
}

fn exported(table: &TableName, manifest: &ExportManifest, was_there: bool) -> Exported {
    Exported {
        table: table.clone(),
        at: manifest.at,
        rows: manifest.rows,
        size: manifest.size,
        stored: manifest.stored,
        was_there,
    }
}

fn same_columns(stored: &[ExportColumn], now: &[(String, String)]) -> bool {
    stored.len() == now.len()
        && stored
            .iter()
            .zip(now)
            .all(|(stored, (name, kind))| stored.name == *name && stored.type_name == *kind)
}

/// Reads every byte of an export, and holds it against the manifest.
///
/// # Errors
/// When it is not what was stored.
pub(super) fn read_back(repo: &dyn Repo, keys: &ExportKeys, manifest: &ExportManifest) -> Result<()> {
    let mut reader = Reader::begin(repo, &keys.rows())?;
    while reader.next()?.is_some() {}
    holds(&reader, repo, keys, manifest)
}

/// Holds what was read against the manifest.
///
/// # Errors
/// When it is not what was stored.
pub(super) fn holds(
    reader: &Reader<'_>,
    repo: &dyn Repo,
    keys: &ExportKeys,
    manifest: &ExportManifest,
) -> Result<()> {
    let (read, stored, hash) = reader.seen();
    let expected =
        (manifest.rows, manifest.size, manifest.content_blake3, manifest.stored, manifest.stored_blake3);
    if (read.rows, read.size, read.content, stored, hash) == expected {
        return Ok(());
    }
    Err(Error::failed(format!("{} in the repository {} is not what was stored", keys.rows(), repo.url())).detail(format!(
        "It holds {} rows in {} with the hash {}; its manifest says {} rows in {} with the hash {}. Nothing was changed on the server.",
        read.rows, read.size, read.content, manifest.rows, manifest.size, manifest.content_blake3
    )))
}

/// Lists the exports of a cluster, the oldest first; in the child.
///
/// # Errors
/// As the repository fails; a manifest that cannot be read is one that is not there.
pub fn exports_here(repository: &Location, cluster: &str) -> Result<Vec<ExportManifest>> {
    let repo = repo::open(repository)?;
    Ok(all(&*repo, cluster)?.into_iter().map(|(_, manifest)| manifest).collect())
}

/// Reads the manifests of all exports of a cluster, whatever its system identifier was.
///
/// # Errors
/// As the repository fails.
pub(super) fn all(repo: &dyn Repo, cluster: &str) -> Result<Vec<(ExportKeys, ExportManifest)>> {
    let keys = ClusterKeys::new(cluster);
    let mut found = Vec::new();
    for name in repo::wait(repo.list(Some(&keys.folder())))?.folders {
        let Ok(system) = name.parse::<SystemIdentifier>() else { continue };
        let folder = crate::repo::export::exports(&keys.system(system));
        for listed in repo::wait(repo.list_all(&folder))? {
            if listed.key.name() != "manifest.json" {
                continue;
            }
            let Some(bytes) = repo::wait(repo.read(&listed.key))? else { continue };
            let manifest: ExportManifest = seal::read_document(&bytes).map_err(|error| {
                Error::failed(format!("{} in the repository {} cannot be read", listed.key, repo.url()))
                    .source(error)
            })?;
            found.push((ExportKeys::at(folder_of(&listed.key)), manifest));
        }
    }
    found.sort_by(|(_, one), (_, other)| (&one.of, one.from, one.at).cmp(&(&other.of, other.from, other.at)));
    Ok(found)
}
