//! The node that comes from the backup: copied, replayed to the target and checked, promoted while nobody else can see it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::db::queries::{self, ServerRole};
use crate::db::{DbError, promotion};
use crate::engine::lease::{Held, Purpose};
use crate::engine::step::{Cx, Found, Progress, Unit};
use crate::error::{Error, Result};
use crate::host::{Command, HostError};
use crate::ops::certificate::{self, Holder};
use crate::ops::in_place::aside::aside;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::files::{self, Door};
use crate::ops::in_place::lookup::Look;
use crate::ops::in_place::step::RestoreStep;
use crate::ops::in_place::world::World;
use crate::ops::node::restore::{self as node_restore, CopyForRestore, Dressing, Restored, Wish};
use crate::ops::node::{self, NodeDoor, NodeRequest, Priority, Told};
use crate::ops::observe::{self, Claim};
use crate::ops::provision::{self, Site};
use crate::ops::restore::survey::Survey;
use crate::ops::restore::{dress, recover};
use crate::ops::shelf::Shelf;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::repo::layout::ClusterKeys;
use crate::topology::declared::{self, NodeWish, Setting};

/// How long the step may take that promotes: after a kill it replays once more.
pub(super) const PROMOTE: Duration = Duration::from_secs(86_400);
const PAUSE: Duration = Duration::from_millis(50);
/// How long the promotion itself may take.
const ENDS: Duration = Duration::from_secs(300);

/// Copies the backup into the node's data directory, which this operation claims first, and closes it; the marker comes last.
pub(super) async fn copy(world: &World, node: &str, progress: Progress<'_>) -> Result<Evidence> {
    let site = world.site(node)?;
    end_copier(&site).await?;
    provision::claim_directory(&site).await?;
    certificate::equip(site.doors, site.cluster, Holder::Node(site.node)).await?;
    // What an earlier attempt of this operation left there.
    empty_tablespaces(world, &site).await?;
    let choice = &world.input.choice;
    let settings = recovery_settings(world, &site);
    let request = CopyForRestore {
        repository: world.doors().location(&site.node.host, world.repository()?),
        cluster: world.cluster().name.clone(),
        system_identifier: world.input.system_identifier,
        label: choice.backup.clone(),
        data_directory: site.node.data_directory.clone(),
        tablespaces: world.input.tablespaces.clone(),
        claim: node_restore::Claim::Node {},
        dressing: Dressing {
            shared: Some(declared::settings_file(&declared::shared_settings(site.cluster))),
            node: declared::settings_file(&settings),
            access: declared::access_lines(site.cluster),
            users: site.users.to_vec(),
            neutral: dress::OLD_PLACE.map(str::to_owned).into(),
            signal: Some(recover::signal(&choice.target)),
        },
        workers: 0,
    };
    let door = NodeDoor::with(world.doors(), &site.node.host, &world.apply.build).await?;
    let (told, mut heard) = watch::channel((0, 0));
    let tell: Told = Arc::new(move |seen| {
        told.send_replace((seen.done.0, seen.total.0));
    });
    let request = NodeRequest::CopyForRestore(Box::new(request));
    let held = lease(world, &door).await?;
    let mut copy = std::pin::pin!(door.call::<Restored>(&request, Priority::Normal, tell));
    loop {
        tokio::select! {
            ended = &mut copy => {
                ended?;
                break;
            }
            why = held.lost() => return Err(why),
            Ok(()) = heard.changed() => {
                let (done, total) = *heard.borrow_and_update();
                (progress.0)(done, Some(total), Unit::Bytes);
            }
        }
    }
    give_back(held).await;
    files::close(&site).await?;
    let memory = world.wish(site.node, None, String::new()).memory;
    Ok(Evidence::Made { system_identifier: provision::complete_claim(&site, memory).await? })
}

/// Replays the copy to its target and sees that it is there; the server waits there then.
pub(super) async fn recover(world: &World, node: &str, progress: Progress<'_>) -> Result<Evidence> {
    let site = world.site(node)?;
    // By now all WAL of the old cluster is in the archive: only now is it known where its end is, and what is given up.
    let input = &world.input;
    let wish = Wish {
        target: input.choice.target.clone(),
        timeline: Some(input.choice.timeline),
        backup: Some(input.choice.backup.clone()),
    };
    let look = Look {
        doors: world.doors(),
        build: &world.apply.build,
        cluster: world.cluster(),
        repository: world.repository()?,
        node: site.node,
        system: input.system_identifier,
        timeline: Some(input.choice.timeline),
    };
    let Survey { choice, beyond, .. } = look.survey(&wish).await?;
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
        files::settings(&site, &recovery_settings(world, &site)).await?;
        recover::hold_in_effect(&site, &[("archive_command", ""), ("listen_addresses", "")]).await?;
        recover::start(&site, None).await?;
    }
    let first = choice.consistent_at.as_u64();
    let told = |lsn: Lsn| (progress.0)(lsn.as_u64().saturating_sub(first), None, Unit::Bytes);
    let door = NodeDoor::with(world.doors(), &site.node.host, &world.apply.build).await?;
    let held = lease(world, &door).await?;
    let achieved = tokio::select! {
        achieved = recover::until_target(&site, &choice, &told) => achieved?,
        why = held.lost() => return Err(why),
    };
    give_back(held).await;
    Ok(Evidence::Recovered { achieved: Box::new(achieved), next: choice.next, beyond })
}

/// Has nobody remove the backup and its WAL while they are read.
async fn lease(world: &World, door: &NodeDoor) -> Result<Held> {
    let repo = node::repository(door, world.repository()?).await?;
    let keys = ClusterKeys::new(&world.cluster().name).system(world.input.system_identifier);
    Held::take_to_use(&repo, &keys, Purpose::Restore, vec![world.input.choice.backup.clone()]).await
}

async fn give_back(held: Held) {
    if let Err(error) = held.release().await {
        tracing::warn!(%error, "could not give the lease back; it expires by itself");
    }
}

/// Ends the child that a killed pgherd left copying into the data directory: it has that directory open.
async fn end_copier(site: &Site<'_>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let could_not = |error: HostError| {
        Error::failed(format!("could not look for processes of {}", site.name())).source(error)
    };
    let look = Command::new("pgrep").args(["-f", "--", "/pgherd node$"]).reads();
    let directory = site.node.data_directory.display().to_string();
    let pattern: String =
        directory.chars().flat_map(|c| r"*?[]\".contains(c).then_some('\\').into_iter().chain([c])).collect();
    let below = format!("{pattern}/*");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pids: Vec<String> = match site.host().run(&look).await {
            Ok(output) => output.text().split_whitespace().map(str::to_owned).collect(),
            // pgrep ends with 1 when it found nothing.
            Err(HostError::Exited { status: 1, .. }) => return Ok(()),
            Err(error) => return Err(could_not(error)),
        };
        let mut copiers = Vec::new();
        for pid in pids {
            let open = Command::new("find")
                .args([format!("/proc/{pid}/fd").as_str(), "-maxdepth", "1", "-lname", &pattern])
                .args(["-o", "-maxdepth", "1", "-lname", &below])
                .reads();
            match site.host().run(&open).await {
                Ok(output) if output.text().trim().is_empty() => {}
                Ok(_) => copiers.push(pid),
                // It has ended, or is another user's.
                Err(HostError::Exited { .. }) => {}
                Err(error) => return Err(could_not(error)),
            }
        }
        if copiers.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("process {} still works on {directory}", copiers.join(", ")))
                .hint("End it, then try again."));
        }
        match site.host().run(&Command::new("kill").arg("-KILL").args(copiers)).await {
            Ok(_) | Err(HostError::Exited { .. }) => sleep(PAUSE).await,
            Err(error) => return Err(could_not(error)),
        }
    }
}

fn recovery_settings(world: &World, site: &Site<'_>) -> Vec<Setting> {
    let mut settings = files::closed_settings(site, &wish(world, site), Door::Socket);
    for (name, value) in recover::settings(&world.input.choice) {
        settings.retain(|(other, _)| *other != name);
        settings.push((name, value));
    }
    settings.sort();
    settings
}

/// Promotes the restored node, checks that its timeline is a new one, and starts it anew with no recovery settings, closed.
pub(super) async fn promote(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    if !is_primary(&site).await? {
        // After a kill it may be on its way to the target, and must not be promoted short of it.
        if let Err(error) = recover(world, node, Progress(&|_, _, _| ())).await {
            // A process that was killed may have asked for the promotion, which it does only at the target; it came through meanwhile.
            if !is_primary(&site).await? {
                return Err(error);
            }
        }
        let conn = site.connect().await?;
        if matches!(queries::server_facts(&conn).await?.role, ServerRole::Standby { .. })
            && !promotion::promote(&conn, ENDS).await?
        {
            return Err(Error::failed(format!("{} did not end its recovery", site.name()))
                .detail(provision::last_log_lines(&site).await.join("\n")));
        }
    }
    let conn = site.connect().await?;
    let facts = queries::server_facts(&conn).await?;
    let timeline = facts.timeline;
    // Until then pg_control names the old timeline, and a standby would be cloned from it.
    promotion::checkpoint(&conn).await?;
    drop(conn);
    let begins = provision::timeline_begins(&site, timeline).await?;
    refuse_taken(world, &site, timeline).await?;
    provision::stop(&site).await?;
    files::settings(&site, &files::closed_settings(&site, &wish(world, &site), Door::Standbys)).await?;
    provision::start(&site).await?;
    Ok(Evidence::Promoted { timeline, begins })
}

/// Looks whether the restored node is a primary that was started anew.
pub(super) async fn look_promoted(world: &World, node: &str) -> Result<Found<Evidence>> {
    let site = world.site(node)?;
    let wanted = files::closed_settings(&site, &wish(world, &site), Door::Standbys);
    if !files::has_settings(&site, &wanted).await? || !is_primary(&site).await? {
        return Ok(Found::NotDone);
    }
    let timeline = queries::server_facts(&site.connect().await?).await?.timeline;
    Ok(Found::Done(Evidence::Promoted {
        timeline,
        begins: provision::timeline_begins(&site, timeline).await?,
    }))
}

fn wish<'a>(world: &World, site: &Site<'a>) -> NodeWish<'a> {
    // No standby is there yet that a commit could wait for.
    world.wish(site.node, None, String::new())
}

async fn is_primary(site: &Site<'_>) -> Result<bool> {
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
        // Whether it was promoted is in its files: the signal goes with the end of recovery (`xlog.c`).
        for signal in ["recovery.signal", "standby.signal"] {
            if is_there(site, &site.node.data_directory.join(signal)).await? {
                return Ok(false);
            }
        }
        provision::start(site).await?;
    }
    match site.connect().await {
        Ok(conn) => Ok(matches!(queries::server_facts(&conn).await?.role, ServerRole::Primary { .. })),
        Err(DbError::Starting { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Refuses a timeline that the archive knows already: two of one number would overwrite each other there.
async fn refuse_taken(world: &World, site: &Site<'_>, timeline: TimelineId) -> Result<()> {
    let system = provision::control_file(site).await?.system_identifier;
    let keys = ClusterKeys::new(&site.cluster.name).system(system);
    let shelf = Shelf::of(world.doors(), &site.node.host, world.repository()?, &world.apply.build).await?;
    let taken = shelf.has(&keys.wal(WalFile::TimelineHistory(timeline))).await.map_err(|error| {
        Error::failed(format!("could not look for timeline {timeline} in the repository")).source(error)
    })?;
    match taken {
        false => Ok(()),
        true => Err(Error::refused(format!("timeline {timeline} is in the archive already"))
            .detail(format!("{} was promoted onto it all the same. Nothing of it was archived.", site.name()))
            .hint("Its restore_command did not find that file; see the server's log.")),
    }
}

/// Removes what this operation copied to a node, with what it put into tablespaces that it had emptied before.
pub(super) async fn remove(cx: &Cx<'_, RestoreStep>, node: &str) -> Result<()> {
    let site = cx.world.site(node)?;
    let ours = match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::Ours(marker) => marker.operation == site.operation,
        Claim::None | Claim::Other(_) | Claim::Unknown { .. } => false,
    };
    if ours {
        end_copier(&site).await?;
        provision::stop_made(&site).await?;
        empty_tablespaces(cx.world, &site).await?;
    }
    provision::remove_made(&site).await
}

/// Removes the version directories of tablespaces whose former ones are aside: they can only be this operation's.
async fn empty_tablespaces(world: &World, site: &Site<'_>) -> Result<()> {
    let before = world.before(&site.node.name)?;
    for path in before.paths.iter().filter(|path| **path != site.node.data_directory) {
        if is_there(site, &aside(path, site.operation)).await? && is_there(site, path).await? {
            site.host().remove_tree(path).await.map_err(|error| {
                Error::failed(format!("could not remove {}", path.display())).source(error)
            })?;
        }
    }
    Ok(())
}

async fn is_there(site: &Site<'_>, path: &Path) -> Result<bool> {
    let found = site
        .host()
        .stat(path)
        .await
        .map_err(|error| Error::failed(format!("could not look at {}", path.display())).source(error))?;
    Ok(found.is_some())
}
