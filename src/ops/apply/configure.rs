//! A node's files and settings put right: written, taken, and seen in effect.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::Conn;
use crate::db::queries::{self, ServerRole};
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::follow;
use crate::ops::apply::world::World;
use crate::ops::observe;
use crate::ops::plan::step::{Activation, FileChange};
use crate::ops::provision::{self, Site};
use crate::pg::guc;
use crate::topology::declared::{self, NodeWish, Setting};

/// How long a reload may take until every value is seen.
const TAKE: Duration = Duration::from_secs(10);
/// How long a standby may take to replay what its primary has written before it restarts.
const CATCH_UP: Duration = Duration::from_secs(60);
/// How long a session may take to see that a reload asks for a restart.
const SETTLE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// What one configure step wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub files: &'a [FileChange],
    pub resets: &'a [Setting],
    pub activation: Activation,
    pub expect: &'a [Setting],
}

impl Wanted<'_> {
    fn touches_the_five(&self) -> bool {
        self.expect.iter().any(|(name, _)| guc::STANDBY_FIVE.contains(&name.as_str()))
    }
}

/// Looks whether files, resets and running values are as wanted.
pub(super) async fn look(
    site: &Site<'_>,
    files: &[FileChange],
    resets: &[Setting],
    expect: &[Setting],
) -> Result<Found<Evidence>> {
    for change in files {
        if read(site, &change.path).await?.as_deref() != Some(change.after.as_str()) {
            return Ok(Found::NotDone);
        }
    }
    if !resets.is_empty() {
        let auto = read(site, &site.node.data_directory.join(declared::AUTO_FILE)).await?;
        let left = guc::ConfFile::parse(&auto.unwrap_or_default()).settings();
        if resets.iter().any(|(name, _)| left.iter().any(|(found, _)| found == name)) {
            return Ok(Found::NotDone);
        }
    }
    if expect.is_empty() {
        return Ok(Found::Done(Evidence::Configured {}));
    }
    let Ok(conn) = site.connect().await else { return Ok(Found::NotDone) };
    let wrong = wrong_values(&conn, expect).await?;
    Ok(if wrong.is_empty() { Found::Done(Evidence::Configured {}) } else { Found::NotDone })
}

/// Writes the files, takes back what ALTER SYSTEM set, and has the server take the values.
pub(super) async fn apply(world: &World, node: &str, wanted: &Wanted<'_>) -> Result<()> {
    let site = world.site(node)?;
    for change in wanted.files {
        write(&site, change).await?;
    }
    if !wanted.resets.is_empty() {
        let conn = site.connect().await?;
        for (name, _) in wanted.resets {
            queries::reset_system(&conn, name).await?;
        }
    }
    activate(world, &site, wanted).await
}

/// Puts back what the plan saw, and has the server take it.
pub(super) async fn undo(world: &World, node: &str, wanted: &Wanted<'_>) -> Result<()> {
    let site = world.site(node)?;
    if wanted.activation == Activation::Restart && node != world.input.primary && wanted.touches_the_five() {
        // It may have been stopped and not started again; if the new values are why, it cannot be behind because of them.
        provision::start(&site).await.ok();
        catch_up(&site, &world.primary()?).await?;
    }
    // A file that another one includes goes after it: with an include line and no file the server does not start.
    for change in wanted.files.iter().rev() {
        take_back(&site, change).await?;
    }
    if wanted.activation == Activation::AtStart {
        return Ok(());
    }
    // A restart with the new values may have failed: then it must come up with the old ones.
    provision::start(&site).await?;
    let conn = site.connect().await?;
    let known = altered_before(&site).await?;
    for (name, before) in wanted.resets {
        let whole =
            known.iter().find(|(found, value)| found == name && guc::without_password(value) == *before);
        queries::set_system(&conn, name, whole.map_or(before, |(_, value)| value)).await?;
    }
    queries::reload(&conn).await?;
    if wanted.activation == Activation::Restart && pending_restart(&conn, wanted.expect).await? {
        drop(conn);
        restart(world, &site).await?;
    }
    Ok(())
}

/// Gives a node the settings of its own that `wish` asks for; whoever calls has the server take them.
///
/// # Errors
/// When the host cannot.
pub(crate) async fn set_own(site: &Site<'_>, wish: &NodeWish<'_>) -> Result<()> {
    set_own_to(site, &declared::node_settings(site.cluster, site.node, wish, &site.places())).await
}

/// Gives a node these settings of its own; whoever calls has the server take them.
///
/// # Errors
/// When the host cannot.
pub(crate) async fn set_own_to(site: &Site<'_>, settings: &[Setting]) -> Result<()> {
    let path = site.node.configuration().join(declared::NODE_FILE);
    let before = read(site, &path).await?;
    write(site, &FileChange { path, before, after: declared::settings_file(settings) }).await
}

/// What ALTER SYSTEM had set of a node when it was taken over.
async fn altered_before(site: &Site<'_>) -> Result<Vec<Setting>> {
    let kept = read(site, &site.places().facts.join(declared::AUTO_FILE)).await?;
    Ok(guc::ConfFile::parse(&kept.unwrap_or_default()).settings())
}

/// Puts back what the plan saw of a file; what is neither ours nor that belongs to somebody else by now.
pub(super) async fn take_back(site: &Site<'_>, change: &FileChange) -> Result<()> {
    if read(site, &change.path).await?.as_deref() != Some(change.after.as_str()) {
        return Ok(());
    }
    match &change.before {
        Some(before) => {
            let mode = mode(site, &change.path).await?;
            provision::write(site, &change.path, before.as_bytes(), mode).await
        }
        None => site.host().remove_file(&change.path).await.map_err(|error| {
            Error::failed(format!("could not remove {}", change.path.display())).source(error)
        }),
    }
}

async fn restart(world: &World, site: &Site<'_>) -> Result<()> {
    provision::stop(site).await?;
    provision::start(site).await?;
    if site.node.name == world.input.primary {
        follow::wake_standbys(world).await;
    } else {
        follow::until_it_streams(site, &world.primary()?).await?;
    }
    Ok(())
}

async fn activate(world: &World, site: &Site<'_>, wanted: &Wanted<'_>) -> Result<()> {
    match wanted.activation {
        Activation::AtStart => return Ok(()),
        Activation::Reload => queries::reload(&site.connect().await?).await?,
        Activation::Restart => {
            let standby = site.node.name != world.input.primary;
            if standby && wanted.touches_the_five() {
                catch_up(site, &world.primary()?).await?;
            }
            restart(world, site).await?;
        }
    }
    let conn = site.connect().await?;
    let deadline = Instant::now() + TAKE;
    loop {
        let wrong = wrong_values(&conn, wanted.expect).await?;
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let told: Vec<String> = wrong
                .iter()
                .map(|(name, is, declared)| format!("{name} is {is}, declared is {declared}"))
                .collect();
            let errors = queries::file_settings_errors(&conn).await?;
            let said: Vec<String> = errors
                .iter()
                .filter(|error| error.context.as_deref() != Some("postmaster"))
                .map(|error| {
                    let place = error
                        .file
                        .as_deref()
                        .map(|file| format!("{file}:{}: ", error.line.unwrap_or_default()));
                    format!("{}{}", place.unwrap_or_default(), error.error)
                })
                .collect();
            return Err(Error::failed(format!("{} did not take every value", site.name()))
                .detail(told.into_iter().chain(said).collect::<Vec<_>>().join("\n"))
                .hint("Look for a line of your own that sets it later, on the command line or per database or role."));
        }
        sleep(PAUSE).await;
    }
}

/// Waits until a standby that runs has replayed what its primary has written: a lowered setting of the five is in that WAL, and a
/// standby that starts before it refuses to come up (PostgreSQL docs, "Hot Standby").
async fn catch_up(site: &Site<'_>, primary: &Site<'_>) -> Result<()> {
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
        return Ok(());
    }
    let target = queries::server_facts(&primary.connect().await?).await?.role.lsn();
    let conn = site.connect().await?;
    let deadline = Instant::now() + CATCH_UP;
    loop {
        let replayed = match queries::server_facts(&conn).await?.role {
            ServerRole::Standby { replayed_lsn, .. } => replayed_lsn,
            ServerRole::Primary { .. } => None,
        };
        if replayed >= target {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("{} did not catch up with {}", site.name(), primary.name()))
                .detail(format!(
                    "It has replayed up to {}, the primary has written up to {}.",
                    replayed.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string()),
                    target.map_or_else(|| "nothing".to_owned(), |lsn| lsn.to_string())
                )));
        }
        sleep(PAUSE).await;
    }
}

/// Returns the settings that are not in effect: name, running value, declared value.
async fn wrong_values(conn: &Conn, expect: &[Setting]) -> Result<Vec<(String, String, String)>> {
    let names: Vec<&str> = expect.iter().map(|(name, _)| name.as_str()).collect();
    let rows = queries::settings(conn, &names).await?;
    Ok(expect
        .iter()
        .filter_map(|(name, declared)| {
            let row = rows.iter().find(|row| row.name.eq_ignore_ascii_case(name))?;
            let same = guc::same_value(declared, &row.setting, row.unit.as_deref(), &row.vartype);
            (!same).then(|| (name.clone(), row.shown.clone(), declared.clone()))
        })
        .collect())
}

/// Tells whether, after a reload, one of the settings waits for a restart.
async fn pending_restart(conn: &Conn, expect: &[Setting]) -> Result<bool> {
    let names: Vec<&str> = expect.iter().map(|(name, _)| name.as_str()).collect();
    // pg_reload_conf() only sends a signal; the flag is there when this session has read the files as well.
    let deadline = Instant::now() + SETTLE;
    loop {
        if queries::settings(conn, &names).await?.iter().any(|row| row.pending_restart) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(PAUSE).await;
    }
}

async fn read(site: &Site<'_>, path: &Path) -> Result<Option<String>> {
    let bytes = site
        .host()
        .read(path)
        .await
        .map_err(|error| Error::failed(format!("could not read {}", path.display())).source(error))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Replaces a file, unless it is neither what the plan saw nor what the plan wants: then somebody was here in between.
pub(super) async fn write(site: &Site<'_>, change: &FileChange) -> Result<()> {
    let present = read(site, &change.path).await?;
    if present.as_deref() == Some(change.after.as_str()) {
        return Ok(());
    }
    if present != change.before {
        return Err(Error::refused(format!("{} changed after the plan was made", change.path.display()))
            .detail("Somebody else edits it. It was left as it is.")
            .hint("Look at it, then plan again: pgherd plan"));
    }
    let places = site.places();
    // Of a node that an older pgherd made.
    if change.path == places.profile {
        provision::make_directory(site, &places.spool, 0o700).await?;
    }
    let mode = mode(site, &change.path).await?;
    provision::write(site, &change.path, change.after.as_bytes(), mode).await
}

/// What is in the data directory is the server's alone; the profile has no secret. A file of somebody else's keeps the mode that it has:
/// Debian's programs read postgresql.conf as any user.
async fn mode(site: &Site<'_>, path: &Path) -> Result<u32> {
    if !site.node.adopted {
        return Ok(if path.starts_with(&site.node.data_directory) { 0o600 } else { 0o640 });
    }
    let beside = path.with_file_name(declared::CONF_FILE);
    for known in [path, &beside] {
        let stat =
            site.host().stat(known).await.map_err(|error| {
                Error::failed(format!("could not look at {}", known.display())).source(error)
            })?;
        if let Some(stat) = stat {
            return Ok(stat.mode);
        }
    }
    Ok(0o640)
}
