//! Recovery of a restored directory: its settings, its start, the wait for the target, and the proof that it is there.
//!
//! Nothing is promoted here by PostgreSQL itself. With a target the server pauses there, and ends with an error where it runs out of WAL before;
//! without one it recovers as a standby, which waits for more. In both cases it is promoted only when what it has reached was checked.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::target::Choice;
use crate::db::recovery::{self, AT_LEAST, Recovery};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::host::Command;
use crate::ops::node::restore::{Signal, Target, clock};
use crate::ops::observe;
use crate::ops::provision::{self, Site};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::declared::Setting;

/// How long a server that was started may take until its lock file is there. Recovery goes on after that.
const LAUNCH: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// A standby that waits for WAL which the archive has is stuck after so long.
const STALLED: Duration = Duration::from_secs(30);

/// What recovery has reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Achieved {
    /// The end of the last record that was replayed, and the timeline that it is on.
    pub lsn: Lsn,
    pub timeline: TimelineId,
    /// When the last transaction ended; `None` if none was replayed after the checkpoint of the backup.
    pub last_transaction: Option<Timestamp>,
    /// The number that the next transaction gets, with its epoch.
    pub next_transaction: u64,
    /// From the start of the server.
    pub replay_seconds: f64,
}

/// Returns the settings that take a server to the target, and hold it there.
pub fn settings(choice: &Choice) -> Vec<Setting> {
    let mut settings = vec![
        // Only a server that can be asked can be held at its target.
        ("hot_standby", "on".to_owned()),
        ("recovery_target_timeline", choice.timeline.to_string()),
        ("wal_retrieve_retry_interval", "500ms".to_owned()),
    ];
    // Only one target may be set, and even an empty second one is an error in some orders: the others are left out.
    let target = match &choice.target {
        Target::Latest => None,
        Target::Immediate => Some(("recovery_target", "immediate".to_owned())),
        Target::Time(at) => Some(("recovery_target_time", server_time(*at))),
        Target::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        Target::Xid(xid) => Some(("recovery_target_xid", (xid & u64::from(u32::MAX)).to_string())),
        Target::Name(name) => Some(("recovery_target_name", name.clone())),
    };
    if let Some(target) = target {
        settings.push(target);
        settings.push(("recovery_target_inclusive", "on".to_owned()));
        settings.push(("recovery_target_action", "pause".to_owned()));
    }
    // Since 15 the server reads ahead, over the target, and must not find what is missing only behind it.
    if choice.gap_behind && choice.major >= 15 {
        settings.push(("recovery_prefetch", "off".to_owned()));
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Returns the file that has the server recover.
pub fn signal(target: &Target) -> Signal {
    match target {
        Target::Latest => Signal::Standby,
        Target::Immediate | Target::Time(_) | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => {
            Signal::Recovery
        }
    }
}

/// Writes a moment for the server, to the microsecond, which is all that it keeps.
fn server_time(at: Timestamp) -> String {
    format!("{}+00", at.strftime("%Y-%m-%d %H:%M:%S%.6f"))
}

/// Returns what a setting is when the server of a directory starts, as PostgreSQL itself reads its files.
///
/// # Errors
/// When they cannot be read, with PostgreSQL's own words.
pub async fn setting_in_effect(site: &Site<'_>, name: &str) -> Result<String> {
    let directory = site.node.data_directory.display().to_string();
    let command = Command::new(site.programs.path("postgres"))
        .args(["-D", directory.as_str(), "-C", name])
        .reads()
        .timeout(Duration::from_secs(30));
    let output = site.host().run(&command).await.map_err(|error| {
        Error::failed(format!("could not read the configuration in {directory}")).source(error)
    })?;
    Ok(output.text().trim_end_matches('\n').to_owned())
}

/// Holds settings to be in effect: a file that the user includes could have the last word.
///
/// # Errors
/// `Refused` names the first that is not.
pub async fn hold_in_effect(site: &Site<'_>, wanted: &[(&str, &str)]) -> Result<()> {
    for (name, value) in wanted {
        let found = setting_in_effect(site, name).await?;
        if found != *value {
            return Err(Error::refused(format!(
                "cannot start the copy: {name} is {found:?} in it, not {value:?}"
            ))
            .detail(format!(
                "A configuration file in {} that pgherd does not write sets it. Nothing was started.",
                site.node.data_directory.display()
            ))
            .hint(
                "Take that line out of the copy's configuration, then start it by hand, or restore again.",
            ));
        }
    }
    Ok(())
}

/// Starts the server of a restored directory, and does not wait for its recovery.
///
/// Settings that recovery needs as high as they were on the primary are raised on the command line where the configuration has less.
///
/// # Errors
/// With the last lines of the server's log if it does not come up.
pub async fn start(site: &Site<'_>, at_least: Option<[u32; 5]>) -> Result<()> {
    let control = provision::control_file(site).await?;
    let needed = [
        control.max_connections,
        control.max_worker_processes,
        control.max_wal_senders,
        control.max_prepared_transactions,
        control.max_locks_per_transaction,
    ];
    let mut options = Vec::new();
    for (index, name) in AT_LEAST.iter().enumerate() {
        let needed = needed[index].max(at_least.map_or(0, |values| values[index]));
        let found: u32 = setting_in_effect(site, name).await?.parse().unwrap_or(0);
        if found < needed {
            options.push(format!("-c {name}={needed}"));
        }
    }
    let directory = site.node.data_directory.display().to_string();
    let log = site.places().log.join("startup.log").display().to_string();
    let seconds = LAUNCH.as_secs().to_string();
    let command = Command::new(site.programs.path("pg_ctl"))
        .args(["start", "-D", directory.as_str(), "-l", log.as_str(), "-w", "-t", seconds.as_str(), "-s"])
        .args(["-o", options.join(" ").as_str()])
        .timeout(LAUNCH * 4);
    if let Err(error) = provision::launch(site, &command).await? {
        // pg_ctl waits until the server accepts connections; what counts is that it runs.
        if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
            return Err(ended(site, "did not get to its target").await.source(error));
        }
    }
    Ok(())
}

/// Waits until recovery is at its target, and proves that it is. `told` takes how far it is.
///
/// The server stays as it is then: in recovery, paused or waiting.
///
/// # Errors
/// When the server ends, when it stops elsewhere, and when WAL that the archive had does not come. Nothing was promoted then.
pub async fn until_target(
    site: &Site<'_>,
    choice: &Choice,
    told: &(dyn Fn(Lsn) + Send + Sync),
) -> Result<Achieved> {
    let begun = Instant::now();
    let mut stall = Stall { since: Instant::now(), lsn: None };
    let mut conn: Option<Conn> = None;
    loop {
        let asked = match &conn {
            Some(open) => recovery::recovery(open).await,
            None => match site.connect().await {
                Ok(open) => {
                    let asked = recovery::recovery(&open).await;
                    conn = Some(open);
                    asked
                }
                Err(error) => Err(error),
            },
        };
        match asked {
            Ok(state) => {
                if let Some(lsn) = state.replayed_lsn {
                    told(lsn);
                }
                let open = conn.as_ref().expect("it has just answered");
                if let Some(lsn) = at_target(site, choice, &state, &mut stall).await? {
                    return prove(site, choice, open, &state, lsn, begun).await;
                }
            }
            // 57P03 before it is consistent; anything else is the end of this session or of the server.
            Err(error) => {
                conn = None;
                if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
                    return Err(ended(site, "did not get to its target").await.source(error));
                }
                if let DbError::Authentication { .. } = error {
                    return Err(error.into());
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// How long replay has stood still.
struct Stall {
    since: Instant,
    lsn: Option<Lsn>,
}

/// Tells where recovery has stopped, if it has.
async fn at_target(
    site: &Site<'_>,
    choice: &Choice,
    state: &Recovery,
    stall: &mut Stall,
) -> Result<Option<Lsn>> {
    if !state.in_recovery {
        return Err(Error::failed(format!("{} has ended its recovery by itself", site.name()))
            .detail("It was to wait at its target. What it has reached is not known to be the target.")
            .hint("Do not use this copy."));
    }
    if state.paused {
        return Ok(Some(state.replayed_lsn.unwrap_or(choice.consistent_at)));
    }
    if choice.target != Target::Latest || state.startup_waits.as_deref() != Some(recovery::NO_MORE_WAL) {
        *stall = Stall { since: Instant::now(), lsn: state.replayed_lsn };
        return Ok(None);
    }
    let lsn = state.replayed_lsn.unwrap_or(choice.consistent_at);
    if stall.lsn != state.replayed_lsn {
        *stall = Stall { since: Instant::now(), lsn: state.replayed_lsn };
        return Ok(None);
    }
    if has_read_all(site, choice, state, lsn).await? {
        return Ok(Some(lsn));
    }
    if stall.since.elapsed() >= STALLED {
        return Err(Error::failed(format!("recovery of {} stands still at LSN {lsn}", site.name()))
            .detail(format!(
                "The archive goes on to {}, and the server does not get it. Nothing was promoted.\n{}",
                choice.reach(),
                provision::last_log_lines(site).await.join("\n")
            ))
            .hint("See whether the repository can be read: pgherd wal list"));
    }
    Ok(None)
}

/// Tells whether the server has read the last segment that there is: it has replayed into it, or asks for the one behind it. A record that
/// is not complete there ends before it.
async fn has_read_all(site: &Site<'_>, choice: &Choice, state: &Recovery, lsn: Lsn) -> Result<bool> {
    if choice.last.as_ref().is_some_and(|last| lsn < last.lsn) || lsn < choice.consistent_at {
        return Ok(false);
    }
    if lsn > choice.reach().start(choice.segment_size) {
        return Ok(true);
    }
    let Some(pid) = state.startup_pid else { return Ok(false) };
    // Its title names the file that it wants; the timeline in it is the last that it tried.
    let title = site.host().read(Path::new(&format!("/proc/{pid}/cmdline"))).await?.unwrap_or_default();
    let title = String::from_utf8_lossy(&title).into_owned();
    let next = choice.reach().next(choice.segment_size).to_string();
    Ok(title.contains("waiting for") && title.contains(&next[8..]))
}

/// Proves that where recovery has stopped is the target.
async fn prove(
    site: &Site<'_>,
    choice: &Choice,
    conn: &Conn,
    state: &Recovery,
    lsn: Lsn,
    begun: Instant,
) -> Result<Achieved> {
    if let Some(why) = too_low(site, conn).await? {
        return Err(Error::failed(format!("recovery of {} stopped at LSN {lsn}: {why}", site.name()))
            .detail("A server in recovery needs it as high as it was on the primary. Nothing was promoted.")
            .hint("Raise it in the copy's pgherd.node.conf and start it again."));
    }
    if let Some(why) = short_of(choice, lsn, state.last_transaction) {
        return Err(Error::failed(format!(
            "recovery of {} stopped at LSN {lsn}, which is not the target",
            site.name()
        ))
        .detail(format!("The target is {}: {why}. Nothing was promoted.", choice.target))
        .hint("Do not use this copy; the server's log says why it stopped."));
    }
    Ok(Achieved {
        lsn,
        timeline: choice.timeline_at(lsn),
        last_transaction: state.last_transaction,
        next_transaction: recovery::next_transaction(conn).await?,
        replay_seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Returns why a place is not the target, if it is not.
fn short_of(choice: &Choice, lsn: Lsn, last: Option<Timestamp>) -> Option<String> {
    if lsn < choice.consistent_at {
        return Some(format!("the backup is consistent only from {}", choice.consistent_at));
    }
    if let Some(at) = choice.stops_at
        && lsn < at
    {
        return Some(format!("its record ends at {at}"));
    }
    if let Some(mark) = &choice.last
        && lsn < mark.lsn
    {
        return Some(format!(
            "the transaction that ended at {} ({}) was not replayed",
            clock(mark.at),
            mark.lsn
        ));
    }
    if let Some(mark) = &choice.next
        && lsn >= mark.lsn
    {
        return Some(format!(
            "the transaction that ended at {} ({}) was replayed as well",
            clock(mark.at),
            mark.lsn
        ));
    }
    match (&choice.target, last) {
        (Target::Lsn(wanted), _) if lsn <= *wanted => {
            Some("no record that begins there was replayed".to_owned())
        }
        (Target::Time(at), Some(last)) if last > *at => {
            Some(format!("a transaction of {} was replayed", clock(last)))
        }
        (
            Target::Latest
            | Target::Immediate
            | Target::Time(_)
            | Target::Lsn(_)
            | Target::Xid(_)
            | Target::Name(_),
            _,
        ) => None,
    }
}

/// Names a setting that is too low for recovery to go on: the server pauses then as it does at a target.
async fn too_low(site: &Site<'_>, conn: &Conn) -> Result<Option<String>> {
    let found = recovery::at_least(conn).await?;
    let control = provision::control_file(site).await?;
    let needed = [
        control.max_connections,
        control.max_worker_processes,
        control.max_wal_senders,
        control.max_prepared_transactions,
        control.max_locks_per_transaction,
    ];
    Ok((0..AT_LEAST.len()).find(|index| found[*index] < needed[*index]).map(|index| {
        format!("{} is {}, and the primary had {}", AT_LEAST[index], found[index], needed[index])
    }))
}

/// Says that the server is gone, with its own last words.
async fn ended(site: &Site<'_>, what: &str) -> Error {
    let lines = provision::last_log_lines(site).await;
    let said = if lines.is_empty() { "Its log says nothing.".to_owned() } else { lines.join("\n") };
    Error::failed(format!("the server of {} {what}", site.name()))
        .detail(format!("{said}\nNothing was promoted."))
        .hint(format!("Its whole log is in {}.", site.places().log.display()))
}
