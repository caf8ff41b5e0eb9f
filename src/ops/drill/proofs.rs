//! What is proved of the restored copy, each by somebody else's word: PostgreSQL's own programs, and queries that the operator declared.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::db::assertion::{self, ProbeRow};
use crate::db::{Conn, DbError, Session, promotion};
use crate::error::{Error, Result};
use crate::host::{Command, HostError, LineSink};
use crate::ops::drill::report::{Held, Proof};
use crate::ops::provision::{self, Site};
use crate::topology::declared;
use crate::topology::model::{Assertion, RestoreDrill, RestoreProof};

/// How long one of PostgreSQL's programs may take.
const LONG: Duration = Duration::from_secs(86_400);
/// How long an assertion may take.
const ASSERTION: Duration = Duration::from_secs(3600);
/// So long before the target the probe row must have been written to be surely in the copy: its time is taken before its commit.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);
/// How many lines of a program are heard, and how many are told.
const HEARD: usize = 10_000;
const TOLD: usize = 10;

/// What was found, before it has a name and a time.
struct Found {
    held: Held,
    text: String,
}

fn yes(text: impl Into<String>) -> Found {
    Found { held: Held::Yes, text: text.into() }
}

fn no(text: impl Into<String>) -> Found {
    Found { held: Held::No, text: text.into() }
}

fn skipped(text: impl Into<String>) -> Found {
    Found { held: Held::Skipped, text: text.into() }
}

async fn timed(name: String, proof: impl Future<Output = Result<Found>>) -> Result<Proof> {
    let begun = Instant::now();
    let found = proof.await.map_err(|error| error.context(format!("prove {name}")))?;
    Ok(Proof { name, held: found.held, found: found.text, seconds: begun.elapsed().as_secs_f64() })
}

/// Proves everything that is declared; the server is stopped in the end. `probe` is what the primary has in the first database.
///
/// # Errors
/// When a proof could not be tried although what it needs is there.
pub(super) async fn prove(
    site: &Site<'_>,
    declared: &RestoreDrill,
    probe: Option<&ProbeRow>,
    reached: Timestamp,
    done: &mut Vec<Proof>,
) -> Result<()> {
    done.push(timed("probe".to_owned(), probe_row(site, probe, reached)).await?);
    if declared.prove.contains(&RestoreProof::Assertions) {
        for assertion in &declared.assertions {
            done.push(timed(format!("assertion {}", assertion.name), holds(site, assertion)).await?);
        }
    }
    if declared.prove.contains(&RestoreProof::Amcheck) {
        done.push(timed("amcheck".to_owned(), amcheck(site)).await?);
    }
    provision::stop(site).await?;
    if declared.prove.contains(&RestoreProof::Checksums) {
        done.push(timed("checksums".to_owned(), checksums(site)).await?);
    }
    Ok(())
}

/// Compares the row that `apply` wrote when the cluster was last proved to take writes.
async fn probe_row(site: &Site<'_>, original: Option<&ProbeRow>, reached: Timestamp) -> Result<Found> {
    let Some(database) = site.cluster.databases.first() else {
        return Ok(skipped("no database is declared"));
    };
    let conn = match site.connect_to(database).await {
        Ok(conn) => conn,
        Err(DbError::NoDatabase { .. }) => return Ok(no(format!("the copy has no database {database}"))),
        Err(error) => return Err(error.into()),
    };
    let copied = assertion::probe_row(&conn).await?;
    Ok(match (original, copied) {
        (Some(original), Some(copied)) if *original == copied => {
            yes(format!("the row of {} is there", moment(copied.at)))
        }
        (Some(original), copied) if original.at + MARGIN <= reached => no(match copied {
            Some(copied) => {
                format!("the row of {} is there, not the one of {}", moment(copied.at), moment(original.at))
            }
            None => format!("the row of {} is not there", moment(original.at)),
        }),
        (Some(original), _) => skipped(format!(
            "the primary's row was written at {}, about or after the target",
            moment(original.at)
        )),
        (None, Some(copied)) if copied.at <= reached + MARGIN => skipped(format!(
            "the row of {} is there; no primary answers to compare it with",
            moment(copied.at)
        )),
        (None, Some(copied)) => no(format!("the row of {} is there, after the target", moment(copied.at))),
        (None, None) => skipped("neither the primary nor the copy has one"),
    })
}

fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

async fn holds(site: &Site<'_>, declared: &Assertion) -> Result<Found> {
    let mut login = site.doors.superuser(site.cluster, site.node, &declared.database);
    // Whoever declared it counts on the database's own search_path.
    login.session = Session::Plain;
    let conn = match site.doors.connector.connect(&login).await {
        Ok(conn) => conn,
        Err(DbError::NoDatabase { .. }) => {
            return Ok(no(format!("the copy has no database {}", declared.database)));
        }
        Err(error) => return Err(error.into()),
    };
    conn.set_deadline(ASSERTION).await?;
    Ok(match assertion::why_not(&conn, &declared.sql).await? {
        None => yes("true"),
        Some(why) => no(why),
    })
}

/// Has pg_amcheck look at every table and every B-tree index, and for each row of a table in its indexes.
async fn amcheck(site: &Site<'_>) -> Result<Found> {
    let program = site.programs.path("pg_amcheck");
    if !is_there(site, &program).await? {
        return Ok(skipped(format!("pg_amcheck is not installed in {}", site.programs.directory.display())));
    }
    let conn: Conn = site.connect().await?;
    if !assertion::has_extension(&conn, "amcheck").await? {
        return Ok(skipped(
            "the server has no extension amcheck; it comes with PostgreSQL's contrib modules",
        ));
    }
    let databases = promotion::databases(&conn).await?.len();
    drop(conn);
    let command = Command::new(&program)
        .args(["--all", "--heapallindexed", "--install-missing", "--no-password", "-U", declared::SUPERUSER])
        .args(["-h", &site.places().socket.display().to_string(), "-p", &site.node.port.to_string()])
        .timeout(LONG);
    let (status, said) = run(site, &command).await?;
    match status {
        0 => Ok(yes(format!("every table and index of {databases} databases"))),
        // It has run to its end and found something (PostgreSQL docs, pg_amcheck).
        2 => Ok(no(short(&said))),
        _ => Err(could_not_run(&command, &said)),
    }
}

/// Has pg_checksums read every page of the stopped copy.
async fn checksums(site: &Site<'_>) -> Result<Found> {
    let program = site.programs.path("pg_checksums");
    if !is_there(site, &program).await? {
        return Ok(skipped(format!(
            "pg_checksums is not installed in {}",
            site.programs.directory.display()
        )));
    }
    if !provision::control_file(site).await?.data_checksums {
        return Ok(skipped("the cluster has no data checksums"));
    }
    let data = site.node.data_directory.display().to_string();
    let command = Command::new(&program).args(["--check", "-D", &data]).timeout(LONG);
    let (status, said) = run(site, &command).await?;
    let count = |of: &str| said.iter().find_map(|line| line.strip_prefix(of)?.trim().parse::<u64>().ok());
    match (status, count("Bad checksums:"), count("Blocks scanned:")) {
        (0, Some(0), Some(pages)) => Ok(yes(format!("0 of {pages} pages bad"))),
        (1, Some(bad), _) if bad > 0 => Ok(no(format!("{bad} pages bad\n{}", short(&said)))),
        _ => Err(could_not_run(&command, &said)),
    }
}

/// Runs a program to its end, whatever that is, and returns its status with what it said.
async fn run(site: &Site<'_>, command: &Command) -> Result<(i32, Vec<String>)> {
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&said);
    let lines: LineSink = Arc::new(move |_, line| {
        let mut said = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() < HEARD {
            said.push(line.to_owned());
        }
    });
    let ended = site.host().stream(command, lines).await;
    let said = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
    match ended {
        Ok(_) => Ok((0, said)),
        // 128 and a signal's number: it did not end by itself.
        Err(HostError::Exited { status, .. }) if status < 126 => Ok((status, said)),
        Err(error) => Err(could_not_run(command, &said).source(error)),
    }
}

fn short(said: &[String]) -> String {
    let more = said.len().saturating_sub(TOLD);
    let told = said[..said.len() - more].join("\n");
    if more == 0 { told } else { format!("{told}\n… and {more} lines more") }
}

fn could_not_run(command: &Command, said: &[String]) -> Error {
    Error::failed(format!("could not run {} on the copy", command.title())).detail(short(said))
}

async fn is_there(site: &Site<'_>, program: &std::path::Path) -> Result<bool> {
    let found = site.host().stat(program).await;
    Ok(found
        .map_err(|error| Error::failed(format!("could not look at {}", program.display())).source(error))?
        .is_some())
}
