//! `pg_rewind`: what it needs, what it takes with it, and how one that was interrupted is known again.
//!
//! While it works, what lies in the data directory is neither the old cluster nor the new one, and it takes the standby's mark away before it is
//! done. Two things hold meanwhile: the directory has a mode with which PostgreSQL refuses to start (`checkDataDir` in `miscinit.c`), and a
//! file beside the node's facts says what is going on (docs/formats/rewind.md).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::db::{Conn, logins as roles, queries};
use crate::engine::step::{Found, Progress, Unit};
use crate::error::{Error, Result};
use crate::host::{Command, Host, HostError, LineSink};
use crate::ops::apply::{configure, logins};
use crate::ops::observe;
use crate::ops::provision::{self, Site};
use crate::ops::rejoin::evidence::Evidence;
use crate::ops::rejoin::quarantine;
use crate::ops::rejoin::world::World;
use crate::ops::succession;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::declared;
use crate::topology::places::NodePlaces;

/// The format of the marker.
pub const FORMAT: u32 = 1;
/// How long a rewind may take: as long as it moves.
pub(super) const REWIND: Duration = Duration::from_secs(60 * 86_400);
/// How long the primary may take to let the node in.
const LET_IN: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);
/// The database that `pg_rewind` reads the files through; the functions are granted there.
const DATABASE: &str = "postgres";
/// With it PostgreSQL does not start; nobody but the owner can do anything with it that they could not before.
const CLOSED: u32 = 0o701;
/// The files of a node that `pg_rewind` replaces by its source's.
const OWN: [&str; 6] = [
    declared::SHARED_FILE,
    declared::CONF_FILE,
    declared::HBA_FILE,
    declared::IDENT_FILE,
    declared::AUTO_FILE,
    declared::NODE_FILE,
];
const CONTROL: &str = "pg_control";

/// What is written down before a rewind begins, and taken away when the node streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewinding {
    pub format: u32,
    pub operation: String,
    /// The node that it is rewound to.
    pub source: String,
    /// Where the WAL of the node ended before.
    pub timeline: TimelineId,
    pub lsn: Lsn,
    pub begun: Timestamp,
    /// The mode of the data directory before.
    pub mode: u32,
    /// Whether `pg_rewind` came to its end.
    pub ended: bool,
}

fn marker(places: &NodePlaces) -> PathBuf {
    places.facts.join("rewinding.json")
}

fn kept(places: &NodePlaces) -> PathBuf {
    places.facts.join("before-rewind")
}

/// Reads what is written down about a rewind of a node, if there is anything.
///
/// # Errors
/// When it cannot be read, or another version of pgherd wrote it.
pub async fn rewinding(host: &dyn Host, places: &NodePlaces) -> Result<Option<Rewinding>> {
    let path = marker(places);
    let could_not = || Error::failed(format!("could not read {}", path.display()));
    let Some(bytes) = host.read(&path).await.map_err(|error| could_not().source(error))? else {
        return Ok(None);
    };
    let found: Rewinding = serde_json::from_slice(&bytes).map_err(|error| could_not().source(error))?;
    if found.format == FORMAT {
        return Ok(Some(found));
    }
    Err(could_not().detail(format!("It has format {}, this pgherd reads format {FORMAT}.", found.format)))
}

async fn write_down(site: &Site<'_>, rewinding: &Rewinding) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(rewinding).expect("a marker holds only text and numbers");
    bytes.push(b'\n');
    provision::write(site, &marker(&site.places()), &bytes, 0o640).await
}

/// Keeps the files of a node that a rewind, or a clone, replaces, and its pg_control.
pub(super) async fn keep(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    let directory = kept(&site.places());
    provision::make_directory(&site, &directory, 0o700).await?;
    let data = &site.node.data_directory;
    let configuration = OWN.map(|name| {
        let from =
            if name == declared::AUTO_FILE { data.join(name) } else { site.node.configuration().join(name) };
        (name, from)
    });
    for (name, from) in configuration.into_iter().chain([(CONTROL, data.join("global").join(CONTROL))]) {
        let bytes = site.host().read(&from).await.map_err(Error::from)?;
        if let Some(bytes) = bytes {
            provision::write(&site, &directory.join(name), &bytes, 0o600).await?;
        }
    }
    Ok(Evidence::FilesKept { directory })
}

/// Gives a node the files back that were kept, without what they say about its role.
pub(super) async fn give_back(site: &Site<'_>) -> Result<()> {
    let directory = kept(&site.places());
    for name in OWN {
        let bytes = site.host().read(&directory.join(name)).await.map_err(Error::from)?;
        let Some(bytes) = bytes else { continue };
        let (path, bytes) = if name == declared::AUTO_FILE {
            let text = quarantine::stripped(&String::from_utf8_lossy(&bytes));
            (site.node.data_directory.join(name), text.into_bytes())
        } else {
            (site.node.configuration().join(name), bytes)
        };
        provision::write(site, &path, &bytes, 0o600).await?;
    }
    Ok(())
}

/// Forgets what was kept, and that there was a rewind.
pub(super) async fn forget(site: &Site<'_>) -> Result<()> {
    let places = site.places();
    let could_not = |error: HostError| {
        Error::failed(format!("could not forget the rewind of {}", site.name())).source(error)
    };
    site.host().remove_tree(&kept(&places)).await.map_err(could_not)?;
    site.host().remove_file(&marker(&places)).await.map_err(could_not)
}

fn line(world: &World, node: &Site<'_>, primary: &Site<'_>) -> String {
    let cluster = &world.succession.input.cluster;
    // Machines of one host reach each other at the loopback address.
    let address = if cluster.address(&node.node.host) == cluster.address(&primary.node.host) {
        declared::LOOPBACK
    } else {
        cluster.address(&node.node.host)
    };
    declared::rewind_line(cluster, DATABASE, address)
}

async fn change_access(primary: &Site<'_>, change: impl Fn(&str) -> String) -> Result<()> {
    let path = primary.node.configuration().join(declared::HBA_FILE);
    let bytes = primary.host().read(&path).await.map_err(Error::from)?.unwrap_or_default();
    let before = String::from_utf8_lossy(&bytes).into_owned();
    let after = change(&before);
    if after == before {
        return Ok(());
    }
    let stat = primary.host().stat(&path).await.map_err(Error::from)?;
    provision::write(primary, &path, after.as_bytes(), stat.map_or(0o600, |stat| stat.mode)).await
}

async fn reload(primary: &Site<'_>) -> Result<Conn> {
    let conn = succession::connect(primary).await?;
    queries::reload(&conn).await?;
    Ok(conn)
}

/// Lets the node read the primary's files as the standbys' login, and sees that it gets in.
pub(super) async fn open(world: &World, node: &str) -> Result<Evidence> {
    let (site, primary) = (world.site(node)?, world.primary()?);
    let conn = logins::as_primary(succession::connect(&primary).await?, &primary.name()).await?;
    roles::grant_rewind(&conn, declared::replication_role(site.cluster)).await?;
    let line = line(world, &site, &primary);
    change_access(&primary, |text| declared::with_line_in_block(text, &line)).await?;
    reload(&primary).await?;
    let ask = Command::new(site.programs.path("psql"))
        .args(["-XAtqw", "-d", conninfo(&site, &primary).as_str(), "-c", "SELECT pg_is_in_recovery()"])
        .env("PGPASSFILE", site.places().passfile.display().to_string())
        .reads();
    let ask = provision::verifying(&site, ask);
    let deadline = Instant::now() + LET_IN;
    loop {
        match site.host().run(&ask).await {
            Ok(output) if output.text().trim() == "f" => return Ok(Evidence::Opened {}),
            Ok(_) => return Err(Error::refused(format!("{} is not a primary", primary.name()))),
            Err(error) if Instant::now() >= deadline => {
                return Err(Error::failed(format!(
                    "{} cannot log in to {} as {}",
                    site.name(),
                    primary.name(),
                    declared::replication_role(site.cluster)
                ))
                .detail("pg_rewind reads the files of its source through such a session.")
                .source(error));
            }
            // A reload takes a moment.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Takes back what [`open`] let in.
pub(super) async fn close(world: &World, node: &str) -> Result<()> {
    let (site, primary) = (world.site(node)?, world.primary()?);
    let line = line(world, &site, &primary);
    change_access(&primary, |text| declared::without_line_in_block(text, &line)).await?;
    let conn = reload(&primary).await?;
    let conn = logins::as_primary(conn, &primary.name()).await?;
    roles::revoke_rewind(&conn, declared::replication_role(site.cluster)).await.map_err(Error::from)
}

fn conninfo(site: &Site<'_>, primary: &Site<'_>) -> String {
    format!(
        "{} port={} user={} dbname={DATABASE} connect_timeout=10 application_name={}-rewind keepalives_idle=10 keepalives_interval=5 \
         keepalives_count=3",
        declared::server_of(site.cluster, primary.node),
        primary.node.port,
        declared::replication_role(site.cluster),
        site.name(),
    )
}

fn pg_rewind(site: &Site<'_>, primary: &Site<'_>) -> Command {
    let directory = site.node.data_directory.display().to_string();
    let command = Command::new(site.programs.path("pg_rewind"))
        .args(["-D", directory.as_str(), "--source-server", conninfo(site, primary).as_str()])
        // It never starts a server by itself: its target has ended as it should.
        .args(["--no-ensure-shutdown", "-P"])
        .env("PGPASSFILE", site.places().passfile.display().to_string())
        .env("PGAPPNAME", format!("{}-rewind", site.name()))
        .timeout(REWIND);
    let command = if site.cluster.backups.is_some() { command.arg("--restore-target-wal") } else { command };
    provision::verifying(site, command)
}

/// Looks whether a rewind has ended, or what it left.
pub(super) async fn look(world: &World, node: &str) -> Result<Found<Evidence>> {
    let site = world.site(node)?;
    Ok(match rewinding(site.host(), &site.places()).await? {
        None => Found::NotDone,
        Some(found) if found.ended && found.operation == site.operation => Found::Done(Evidence::Rewound {}),
        Some(found) => Found::Done(Evidence::NotRewound { why: interrupted(&found) }),
    })
}

fn interrupted(found: &Rewinding) -> String {
    format!("a rewind of it began at {:.0} and did not get to its end", found.begun)
}

/// Rewinds a node that has ended as a standby. What cannot be rewound is told, and is cloned then.
///
/// `ended` is where its WAL ends.
pub(super) async fn rewind(
    world: &World,
    node: &str,
    ended: Option<(TimelineId, Lsn)>,
    progress: Progress<'_>,
) -> Result<Evidence> {
    let (site, primary) = (world.site(node)?, world.primary()?);
    if let Found::Done(evidence) = look(world, node).await? {
        return Ok(evidence);
    }
    let Some((timeline, lsn)) = ended else {
        return Ok(Evidence::NotRewound { why: "what WAL it has could not be replayed".to_owned() });
    };
    if let Some(fork) = world.decision.fork
        && timeline == fork.timeline
        && lsn <= fork.at
    {
        return Ok(Evidence::NothingToRewind {});
    }
    if let Some(pid) = observe::postmaster(site.host(), &site.node.data_directory).await? {
        return Err(Error::failed(format!("cannot rewind {}: process {pid} runs for it", site.name())));
    }
    provision::end_leftovers(&site).await?;
    // pg_rewind asks the target's own configuration how WAL comes out of the archive.
    configure::set_own(&site, &world.succession.wish(site.node, &world.succession.input.to)?).await?;
    let command = pg_rewind(&site, &primary);
    let mut trial = command.clone();
    trial.args.push("--dry-run".to_owned());
    match site.host().run(&trial).await {
        Ok(_) => {}
        Err(HostError::Exited { stderr, .. }) => {
            return Ok(Evidence::NotRewound {
                why: format!("pg_rewind would fail: {}", last_words(&stderr)),
            });
        }
        Err(error) => {
            return Err(Error::failed(format!("could not try to rewind {}", site.name())).source(error));
        }
    }
    let data = site.node.data_directory.clone();
    let stat = site.host().stat(&data).await.map_err(Error::from)?;
    let mode = stat.map_or(0o700, |stat| stat.mode & 0o777);
    let down = Rewinding {
        format: FORMAT,
        operation: site.operation.to_owned(),
        source: primary.name(),
        timeline,
        lsn,
        begun: Timestamp::now(),
        mode: if mode == CLOSED { 0o700 } else { mode },
        ended: false,
    };
    write_down(&site, &down).await?;
    set_mode(&site, CLOSED).await?;
    let (told, mut heard) = watch::channel((0, 0));
    let lines: LineSink = Arc::new(move |_, line| {
        if let Some(seen) = parse_progress(line) {
            told.send_replace(seen);
        }
    });
    let mut copy = site.host().stream(&command, lines);
    let ended = loop {
        tokio::select! {
            ended = &mut copy => break ended,
            Ok(()) = heard.changed() => {
                let (done, total) = *heard.borrow_and_update();
                (progress.0)(done << 10, Some(total << 10), Unit::Bytes);
            }
        }
    };
    drop(copy);
    match ended {
        Ok(_) => {}
        Err(HostError::Exited { stderr, .. }) => {
            return Ok(Evidence::NotRewound { why: format!("pg_rewind failed: {}", last_words(&stderr)) });
        }
        Err(error) => return Err(Error::failed(format!("could not rewind {}", site.name())).source(error)),
    }
    // The mark first, then the mode, then the word that it is done.
    provision::write(&site, &succession::signal(&site), b"", 0o600).await?;
    give_back(&site).await?;
    write_down(&site, &Rewinding { ended: true, ..down }).await?;
    Ok(Evidence::Rewound {})
}

/// Lets a rewound data directory be started again.
pub(super) async fn let_start(site: &Site<'_>) -> Result<()> {
    match rewinding(site.host(), &site.places()).await? {
        Some(found) if found.ended => set_mode(site, found.mode).await,
        Some(_) | None => Ok(()),
    }
}

async fn set_mode(site: &Site<'_>, mode: u32) -> Result<()> {
    let directory = site.node.data_directory.display().to_string();
    let chmod = Command::new("chmod").args([format!("{mode:o}").as_str(), "--", directory.as_str()]);
    site.host()
        .run(&chmod)
        .await
        .map(drop)
        .map_err(|error| Error::failed(format!("could not change the mode of {directory}")).source(error))
}

/// What a program has said last.
fn last_words(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let said: Vec<&str> =
        lines.iter().copied().filter(|line| line.contains("error:") || line.contains("fatal:")).collect();
    let told = if said.is_empty() { lines.last().map(|line| vec![*line]).unwrap_or_default() } else { said };
    told.join("; ")
}

/// Reads ` 3456/123456 kB (2%) copied`, which `pg_rewind -P` prints.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, rest) = rest.split_once(" kB")?;
    rest.contains("copied").then_some(())?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_marker_reads_and_writes_byte_for_byte() {
        let golden = include_str!("testdata/rewinding-1.json");
        let rewinding: Rewinding = serde_json::from_str(golden).unwrap();
        assert_eq!((rewinding.timeline.as_u32(), rewinding.mode), (1, 0o700));
        let mut written = serde_json::to_string_pretty(&rewinding).unwrap();
        written.push('\n');
        assert_eq!(written, golden);
        assert!(serde_json::from_str::<Rewinding>(&golden.replace("\"mode\"", "\"mood\"")).is_err());
    }

    #[test]
    fn reads_what_pg_rewind_prints() {
        assert_eq!(parse_progress(" 3456/123456 kB (2%) copied"), Some((3456, 123_456)));
        assert_eq!(parse_progress("pg_rewind: connected to server"), None);
        let said = "pg_rewind: servers diverged at WAL location 0/3000000 on timeline 1\npg_rewind: error: could not open file \"x\"\n";
        assert_eq!(last_words(said), "pg_rewind: error: could not open file \"x\"");
    }
}
