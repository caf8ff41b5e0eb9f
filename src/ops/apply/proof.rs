//! A row written through the pooler and read on every standby: only then is a cluster up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::queries;
use crate::db::{Conn, DbError, Endpoint, Login, Session};
use crate::error::{Error, Result};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::logins;
use crate::ops::apply::world::World;
use crate::ops::certificate;
use crate::topology::declared;
use crate::topology::model::PoolTarget;

/// How long the row may take to be written, and to be seen everywhere.
const SEEN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// One way for clients into the cluster.
struct Door {
    what: String,
    host: String,
    port: u16,
    alias: String,
}

/// Proves every database of the cluster: a row written through each way in is read on `standbys`.
pub(crate) async fn prove(world: &World, standbys: &[String]) -> Result<Evidence> {
    let begun = Instant::now();
    for database in &world.input.cluster.databases {
        prove_database(world, database, standbys).await?;
    }
    let nodes = standbys.iter().map(|node| world.input.cluster.full_name(node)).collect();
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Evidence::Proved { nodes, milliseconds })
}

async fn prove_database(world: &World, database: &str, standbys: &[String]) -> Result<()> {
    let primary = world.primary()?;
    let conn = logins::as_primary(primary.connect_to(database).await?, &primary.name()).await?;
    queries::ensure_probe_table(&conn).await?;
    drop(conn);

    let nonce = format!("{} {}", world.operation, jiff::Timestamp::now());
    let deadline = Instant::now() + SEEN;
    for door in doors(world, database, PoolTarget::Primary) {
        let written = until(deadline, || async {
            let conn = enter(world, &door).await?;
            queries::write_probe(&conn, &nonce).await
        });
        written
            .await
            .map_err(|error| not_proved(&format!("could not write through {}", door.what), error))?;
    }
    for node in standbys {
        let site = world.site(node)?;
        let read = until(deadline, || async { arrived(&site.connect_to(database).await?, &nonce).await });
        read.await
            .map_err(|error| not_proved(&format!("the row did not arrive on {}", site.name()), error))?;
    }
    for door in doors(world, database, PoolTarget::Standbys) {
        let read = until(deadline, || async { arrived(&enter(world, &door).await?, &nonce).await });
        read.await.map_err(|error| not_proved(&format!("could not read through {}", door.what), error))?;
    }
    Ok(())
}

/// Returns the ways in for what a pool is meant for; without a pooler the primary's own port.
fn doors(world: &World, database: &str, to: PoolTarget) -> Vec<Door> {
    let cluster = &world.input.cluster;
    match &cluster.poolers {
        Some(poolers) => poolers
            .hosts
            .iter()
            .filter(|host| !world.left_out.hosts.contains(*host))
            .flat_map(|host| poolers.pools.iter().filter(|pool| pool.to == to).map(move |pool| (host, pool)))
            .map(|(host, pool)| {
                let alias = pool.alias(database);
                Door {
                    what: format!("the pooler's {alias} on port {}", poolers.port),
                    host: host.clone(),
                    port: poolers.port,
                    alias,
                }
            })
            .collect(),
        None if to == PoolTarget::Primary => {
            let node = cluster.node(&world.input.primary).expect("World::primary was asked before");
            vec![Door {
                what: format!("port {}", node.port),
                host: node.host.clone(),
                port: node.port,
                alias: database.to_owned(),
            }]
        }
        None => Vec::new(),
    }
}

async fn enter(world: &World, door: &Door) -> Result<Conn, DbError> {
    let not_sent = |error: Error| DbError::NotSent {
        server: world.input.cluster.name.clone(),
        what: "log in".to_owned(),
        why: error.to_string(),
    };
    let password = logins::probe_password(world).await.map_err(not_sent)?;
    let tls = certificate::identity(&world.doors, &world.input.cluster, &door.host).map_err(not_sent)?;
    let login = Login {
        server: door.what.clone(),
        endpoint: Endpoint::Tcp { host: declared::LOOPBACK.to_owned(), port: door.port },
        tunnel: world.doors.host(&door.host).tunnel(),
        user: declared::PROBE_ROLE.to_owned(),
        database: door.alias.clone(),
        password: Some(password),
        tls,
        // The commit waits for the synchronous standbys, as a client's would.
        session: Session::Plain,
    };
    world.doors.connector.connect(&login).await
}

async fn arrived(conn: &Conn, nonce: &str) -> Result<(), DbError> {
    match queries::read_probe(conn).await? {
        Some(found) if found == nonce => Ok(()),
        found => Err(DbError::Unexpected {
            server: conn.server().to_owned(),
            what: "the probe".to_owned(),
            why: found
                .map_or_else(|| "no row has arrived".to_owned(), |_| "an older row is there".to_owned()),
        }),
    }
}

/// Tries until it succeeds or the time is up.
async fn until<F: Future<Output = Result<(), DbError>>>(
    deadline: Instant,
    attempt: impl Fn() -> F,
) -> Result<(), DbError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if Instant::now() >= deadline => return Err(error),
            Ok(Err(_)) => sleep(PAUSE).await,
            Err(_) => {
                return Err(DbError::Timeout {
                    server: "the way in".to_owned(),
                    what: "the write proof".to_owned(),
                    after: SEEN,
                });
            }
        }
    }
}

fn not_proved(what: &str, error: DbError) -> Error {
    Error::failed(what.to_owned())
        .detail(format!("Tried for {} s. {error}.", SEEN.as_secs()))
        .hint("\"pgherd status\" shows where it stands.")
        .source(error)
}
