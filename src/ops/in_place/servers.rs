//! Servers stopped, started again as they were, and what they had not archived.

use std::time::Duration;

use futures_util::future::join_all;

use crate::db::queries;
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::{Command, HostError};
use crate::ops::apply;
use crate::ops::in_place::evidence::{Evidence, LogEnd};
use crate::ops::in_place::world::{Before, State, World};
use crate::ops::observe;
use crate::ops::provision::{self, Site};
use crate::pg::control_file::ClusterState;

/// How long one file may take into the repository.
const PUSH: Duration = Duration::from_secs(300);
/// How much is told of a push that failed.
const TOLD: usize = 300;

/// Looks whether a server has ended.
pub(super) async fn look(site: &Site<'_>) -> Result<Found<Evidence>> {
    Ok(match observe::postmaster(site.host(), &site.node.data_directory).await? {
        None => Found::Done(Evidence::Stopped { log: log_end(site).await }),
        Some(_) => Found::NotDone,
    })
}

/// Stops a server; one that does not run is stopped.
pub(super) async fn stop(site: &Site<'_>) -> Result<Evidence> {
    provision::stop(site).await?;
    Ok(Evidence::Stopped { log: log_end(site).await })
}

/// What a stopped server's pg_control says; one that cannot be read may be why we are here.
async fn log_end(site: &Site<'_>) -> Option<LogEnd> {
    let control = provision::control_file(site).await.ok()?;
    Some(LogEnd {
        clean: matches!(control.state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery),
        timeline: control.checkpoint_timeline,
        checkpoint: control.checkpoint,
    })
}

/// Starts a server that ran before; it takes up its role again, since its data directory says which that is.
pub(super) async fn start_as_before(world: &World, node: &str) -> Result<()> {
    let (site, before) = (world.site(node)?, world.before(node)?);
    match before.state {
        State::Answered => {
            provision::start(&site).await?;
            if before.primary {
                lead_standbys(world, &site).await;
            }
            Ok(())
        }
        // It did not come up before; that it does now cannot be asked for.
        State::Silent => {
            if let Err(error) = provision::start(&site).await {
                tracing::warn!(%error, node, "did not come up, as before");
            }
            Ok(())
        }
        State::Stopped => Ok(()),
    }
}

/// Has the standbys, which were started before their primary, look for it at once, and waits until those stream that did: a commit may
/// wait for them.
async fn lead_standbys(world: &World, primary: &Site<'_>) {
    let standbys = world.input.before.iter().filter(|before| before.streamed);
    let follow = standbys.map(|before| async move {
        let site = world.site(&before.node)?;
        // It tries again by itself, only later.
        if let Ok(conn) = site.connect().await {
            queries::reload(&conn).await.ok();
        }
        apply::follow::until_it_streams(&site, primary).await
    });
    for ended in join_all(follow).await {
        if let Err(error) = ended {
            tracing::warn!(%error, "a standby does not stream as it did");
        }
    }
}

/// Pushes the files that wait in a stopped server's archive_status: history files first, then by name, as the archiver does
/// (`pgarch.c`). One that cannot be pushed ends it; what is left stays in the directory that is kept.
pub(super) async fn backfill(site: &Site<'_>) -> Result<Evidence> {
    let wal = site.node.data_directory.join("pg_wal");
    let could_not = |error: HostError| {
        Error::failed(format!("could not look what {} has not archived", site.name())).source(error)
    };
    let names = site.host().list(&wal.join("archive_status")).await.map_err(could_not)?.unwrap_or_default();
    let mut waiting: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".ready")).collect();
    waiting.sort_by_key(|name| (!name.ends_with(".history"), *name));
    let places = site.places();
    let mut pushed = Vec::new();
    let mut why = None;
    for name in &waiting {
        let push = Command::new(&places.program)
            .args(["wal", "push", "--profile"])
            .arg(places.profile.display().to_string())
            .arg(wal.join(name).display().to_string())
            .timeout(PUSH);
        match site.host().run(&push).await {
            Ok(_) => pushed.push((*name).to_owned()),
            Err(error) => {
                let mut text = error.to_string();
                text.truncate(text.floor_char_boundary(TOLD));
                why = Some(format!("{name}: {text}"));
                break;
            }
        }
    }
    let left = waiting[pushed.len()..].iter().map(|name| (*name).to_owned()).collect();
    let done = names.iter().filter_map(|name| name.strip_suffix(".done"));
    let last = done.chain(pushed.iter().map(String::as_str)).filter_map(|name| name.parse().ok()).max();
    Ok(Evidence::Backfilled { pushed, left, why, last })
}

/// Tells whether a node may have WAL of its own that the archive lacks: it was primary, or would have started as one.
pub(super) fn may_have_wal(before: &Before) -> bool {
    before.primary && !before.paths.is_empty()
}
