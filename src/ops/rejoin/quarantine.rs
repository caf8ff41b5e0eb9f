//! A node that is no primary any more: marked, stopped, and brought to the end of its own WAL without anybody being able to reach it.
//!
//! The mark comes first: from then on nothing that starts it has it lead. Its archiver has no command by then, so that its end puts no
//! segment of the old timeline into the archive, where a standby would take it for the new one's (cnpg#4990). A node that was killed replays
//! its WAL as a standby without an upstream: `pg_rewind` would have a single-user server do that, which cannot start with the mark in place
//! (`validateRecoveryParameters` in `xlogrecovery.c`) and writes a checkpoint of its own behind what was there.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::{DbError, queries, recovery};
use crate::error::{Error, Result};
use crate::host::HostError;
use crate::ops::apply::configure;
use crate::ops::fence;
use crate::ops::observe;
use crate::ops::provision::{self, Site};
use crate::ops::rejoin::evidence::Evidence;
use crate::ops::rejoin::world::World;
use crate::ops::restore::{dress, recover};
use crate::ops::succession;
use crate::pg::control_file::ClusterState;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::declared::{self, NodeWish, Setting};
use crate::units::ByteCount;

/// How long a primary may take to end. Its archiver has nothing to do by then.
pub(super) const STOP: Duration = Duration::from_secs(120);
/// How long a node may take that does not get on with its replay.
const STILL: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(50);
/// How long what a killed postmaster left may take to notice.
const LEFT: Duration = Duration::from_secs(5);
/// How long a server may take to see that its archiver has no command.
const TAKE: Duration = Duration::from_secs(10);
/// What the startup process waits for where nobody has more WAL for it (`WaitForWALToBecomeAvailable` in `xlogrecovery.c`).
const NO_MORE_WAL: &str = "RecoveryRetrieveRetryInterval";
/// Settings of ALTER SYSTEM that would win over what pgherd writes for a node's role.
const OF_A_ROLE: [&str; 4] = ["archive_command", "archive_library", "listen_addresses", "recovery_prefetch"];

/// Returns what a node in quarantine runs with.
fn settings(site: &Site<'_>, memory: ByteCount) -> Vec<Setting> {
    let wish = NodeWish { upstream: None, synchronous: String::new(), memory };
    let mut settings = declared::node_settings(site.cluster, site.node, &wish, &site.places());
    let closed = [
        ("archive_command", ""),
        ("hot_standby", "on"),
        ("listen_addresses", ""),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        // Another timeline may lie in pg_wal or in the archive: what is asked is where its own one ends.
        ("recovery_target_timeline", "current"),
        ("restore_command", ""),
        ("wal_retrieve_retry_interval", "200ms"),
    ];
    for (name, value) in closed {
        settings.retain(|(other, _)| other != name);
        settings.push((name.to_owned(), value.to_owned()));
    }
    settings.sort();
    settings
}

/// Marks a node, closes it, and stops it.
pub(super) async fn stop(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    let runs = observe::postmaster(site.host(), &site.node.data_directory).await?.is_some();
    let why = format!("it comes back as a standby of {}", world.primary()?.name());
    fence::mark(&site, &fence::new_mark(&site, &why)).await?;
    provision::write(&site, &succession::signal(&site), b"", 0o600).await?;
    close(world, &site).await?;
    if runs {
        take_its_archive_command(&site).await?;
    }
    // Also where nothing runs: a unit may be about to start it again. And children of a postmaster that was killed may still write.
    provision::stop_within(&site, STOP).await?;
    provision::kill(&site, LEFT).await?;
    strip(&site).await?;
    Ok(Evidence::Stopped {})
}

/// Looks whether a node is stopped and marked.
pub(super) async fn is_stopped(site: &Site<'_>) -> Result<bool> {
    let could_not =
        |error: HostError| Error::failed(format!("could not look at {}", site.name())).source(error);
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_some() {
        return Ok(false);
    }
    Ok(site.host().stat(&succession::signal(site)).await.map_err(could_not)?.is_some())
}

async fn close(world: &World, site: &Site<'_>) -> Result<()> {
    let input = &world.succession.input;
    let memory = input.fixed.memory.get(&site.node.name).copied().unwrap_or(ByteCount(0));
    configure::set_own_to(site, &settings(site, memory)).await
}

/// Has a server that runs lose its archive command, and waits until it has. A server that lets nobody in cannot be told; it is stopped all the
/// same, and what it archives at its end is what it would have archived a moment later.
async fn take_its_archive_command(site: &Site<'_>) -> Result<()> {
    let Ok(conn) = site.connect().await else { return Ok(()) };
    queries::reset_system(&conn, "archive_command").await.ok();
    queries::reload(&conn).await?;
    let deadline = Instant::now() + TAKE;
    loop {
        let row = queries::settings(&conn, &["archive_command"]).await?;
        // Without archive_mode it is shown as disabled.
        if row.first().is_none_or(|row| row.setting.is_empty() || row.setting == "(disabled)") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("{} does not let go of its archive_command", site.name()))
                .detail("What it archives while it ends would be taken for the new timeline's.")
                .hint("Look for a line of your own that sets it later."));
        }
        sleep(PAUSE).await;
    }
}

/// Takes out what ALTER SYSTEM set of what the role of a node decides: that file wins over every other. The server is stopped.
pub(super) async fn strip(site: &Site<'_>) -> Result<()> {
    let path = site.node.data_directory.join(declared::AUTO_FILE);
    let bytes = site.host().read(&path).await.map_err(Error::from)?;
    let Some(bytes) = bytes else { return Ok(()) };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let stripped = stripped(&text);
    if stripped == text {
        return Ok(());
    }
    provision::write(site, &path, stripped.as_bytes(), 0o600).await
}

/// Returns postgresql.auto.conf without what says how a server recovers, whom it follows and where it archives.
pub(super) fn stripped(auto_conf: &str) -> String {
    let names: Vec<&str> = dress::OLD_PLACE.into_iter().chain(OF_A_ROLE).collect();
    declared::without_alter_system(auto_conf, &names)
}

/// Replays everything that a stopped node has, and stops it again.
///
/// A server that does not come up, or does not get on, is no reason to fail: then its WAL is not to be read, and it has to be cloned.
pub(super) async fn replay(
    world: &World,
    node: &str,
    told: &(dyn Fn(Lsn) + Send + Sync),
) -> Result<Evidence> {
    let site = world.site(node)?;
    provision::stop_within(&site, STOP).await?;
    if !is_stopped(&site).await? {
        return Err(Error::failed(format!("{} is not marked as a standby", site.name())));
    }
    close(world, &site).await?;
    strip(&site).await?;
    recover::hold_in_effect(
        &site,
        &[
            ("archive_command", ""),
            ("listen_addresses", ""),
            ("primary_conninfo", ""),
            ("restore_command", ""),
        ],
    )
    .await?;
    let ended = match recover::start(&site, None).await {
        Ok(()) => until_its_end(&site, told).await,
        Err(error) => Err(error),
    };
    provision::stop_within(&site, STOP).await?;
    match ended {
        Ok(replayed) => Ok(end(&site, Some(replayed)).await?),
        Err(error) => {
            let mut why = error.to_string();
            if let Some(detail) = error.detail_text() {
                why = format!("{why}: {detail}");
            }
            Ok(Evidence::NotReplayed { why })
        }
    }
}

/// Returns where a node that ended in recovery has got to, by its pg_control.
pub(super) async fn end(site: &Site<'_>, replayed: Option<Lsn>) -> Result<Evidence> {
    let control = provision::control_file(site).await?;
    if control.state != ClusterState::ShutDownInRecovery {
        return Err(Error::failed(format!("{} did not end as a standby", site.name()))
            .detail(format!("Its pg_control says {:?}.", control.state)));
    }
    let (recovered, timeline) =
        control.minimum_recovery.unwrap_or((control.checkpoint, control.checkpoint_timeline));
    let timeline: TimelineId = timeline.max(control.checkpoint_timeline);
    Ok(Evidence::Ended { timeline, lsn: replayed.map_or(recovered, |replayed| replayed.max(recovered)) })
}

/// Waits until a server has replayed everything that lies in its pg_wal; how long depends on whether it gets on, and on nothing else.
async fn until_its_end(site: &Site<'_>, told: &(dyn Fn(Lsn) + Send + Sync)) -> Result<Lsn> {
    let mut since = Instant::now();
    let (mut last, mut waited, mut redo) = (None, 0_u32, None);
    loop {
        let state = match site.connect().await {
            Ok(conn) => recovery::recovery(&conn).await,
            Err(error) => Err(error),
        };
        match state {
            Ok(state) if !state.in_recovery => {
                return Err(Error::refused(format!("{} is not in recovery", site.name()))
                    .detail("It was started as a standby without an upstream, and is a primary."));
            }
            Ok(state) => {
                if state.replayed_lsn != last {
                    (last, since, waited) = (state.replayed_lsn, Instant::now(), 0);
                    if let Some(lsn) = last {
                        told(lsn);
                    }
                } else if state.startup_waits.as_deref() == Some(NO_MORE_WAL) {
                    waited += 1;
                    // Twice: once it may wait between two segments.
                    if let (true, Some(lsn)) = (waited >= 2, last) {
                        return Ok(lsn);
                    }
                }
                if state.paused {
                    return Err(Error::failed(format!("{} has stopped replaying by itself", site.name())));
                }
            }
            Err(DbError::Starting { .. }) => {
                // Nobody can ask it yet; its pg_control tells whether it gets on.
                let now = provision::control_file(site).await.ok().map(|control| control.checkpoint_redo);
                if now != redo {
                    (redo, since) = (now, Instant::now());
                }
            }
            Err(error) => {
                if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
                    return Err(Error::failed(format!("{} ended while it replayed its WAL", site.name()))
                        .detail(provision::last_log_lines(site).await.join("\n"))
                        .source(error));
                }
            }
        }
        if since.elapsed() >= STILL {
            return Err(Error::failed(format!("{} does not get on with its replay", site.name()))
                .detail(provision::last_log_lines(site).await.join("\n")));
        }
        sleep(PAUSE * 2).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alter_system_set_of_a_role_goes_and_the_rest_stays() {
        let text =
            "# Do not edit\nprimary_conninfo = 'host=a'\nwork_mem = '9MB'\narchive_command = 'cp %p /x'\n";
        assert_eq!(stripped(text), "# Do not edit\nwork_mem = '9MB'\n");
    }
}
