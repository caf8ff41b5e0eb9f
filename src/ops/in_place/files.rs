//! The configuration of a restored node: closed until the pivot, then as it is declared.
//!
//! The operator's own lines come from the directory that was set aside, since it is the data that is to be of another day and not
//! the access rules; from the backup where that one cannot be read. While a node is closed, nobody but pgherd and the standbys gets
//! in, and its archiver has no command: a timeline that may still be undone must not be in the archive, where every standby that
//! looks for the newest one would find it.

use std::path::{Path, PathBuf};

use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::HostError;
use crate::ops::in_place::aside::aside;
use crate::ops::in_place::evidence::Evidence;
use crate::ops::in_place::world::World;
use crate::ops::provision::{self, Site};
use crate::topology::declared::{self, NodeWish, Setting};

const CONF: &str = "postgresql.conf";
const HBA: &str = "pg_hba.conf";
const IDENT: &str = "pg_ident.conf";
/// The access rules that a closed node gets when it is opened.
const OPEN_HBA: &str = "pg_hba.conf.pgherd-open";

/// How far a node may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Over its socket alone.
    Socket,
    /// Also by standbys.
    Standbys,
}

/// Returns what goes into `pgherd.node.conf` of a node that is closed.
pub(super) fn closed_settings(site: &Site<'_>, wish: &NodeWish<'_>, door: Door) -> Vec<Setting> {
    let mut settings = declared::node_settings(site.cluster, site.node, wish, &site.places());
    let mut set = |name: &str, value: &str| {
        settings.retain(|(other, _)| other != name);
        settings.push((name.to_owned(), value.to_owned()));
    };
    set("archive_command", "");
    match door {
        Door::Socket => set("listen_addresses", ""),
        Door::Standbys => {}
    }
    settings.sort();
    settings
}

/// Gives a restored directory the operator's own files, and closes it.
pub(super) async fn close(site: &Site<'_>) -> Result<()> {
    let own = aside(&site.node.data_directory, site.operation);
    let users: Vec<&str> = site.users.iter().map(String::as_str).collect();
    let text = first_of(site, [own.join(CONF), here(site, CONF)]).await?;
    write(site, CONF, &declared::with_includes(&text)).await?;
    let text = first_of(site, [own.join(declared::AUTO_FILE), here(site, declared::AUTO_FILE)]).await?;
    write(site, declared::AUTO_FILE, &without_declared(&text)).await?;
    let text = first_of(site, [own.join(IDENT), here(site, IDENT)]).await?;
    write(site, IDENT, &declared::with_users(&text, &users)).await?;
    // The second is what an earlier attempt, or the node that this is a clone of, has kept.
    let text = first_of(site, [own.join(HBA), here(site, OPEN_HBA), here(site, HBA)]).await?;
    write(site, OPEN_HBA, &declared::with_access(&text, site.cluster)).await?;
    write(site, HBA, &declared::with_access("", site.cluster)).await
}

/// Returns what ALTER SYSTEM set without what the topology declares or what says how a server recovers: that file wins over every
/// other.
fn without_declared(auto_conf: &str) -> String {
    crate::ops::restore::dress::neutralised(auto_conf, &owned_names())
}

/// The settings that pgherd writes itself while a node is closed, or that would keep it from recovering as it should.
fn owned_names() -> Vec<String> {
    const OURS: [&str; 12] = [
        "archive_mode",
        "archive_command",
        "archive_library",
        "archive_timeout",
        "cluster_name",
        "hot_standby",
        "listen_addresses",
        "log_directory",
        "port",
        "synchronous_standby_names",
        "unix_socket_directories",
        "default_transaction_read_only",
    ];
    OURS.iter().chain(&crate::ops::restore::dress::OLD_PLACE).map(|name| (*name).to_owned()).collect()
}

/// Writes both files of settings.
pub(super) async fn settings(site: &Site<'_>, own: &[Setting]) -> Result<()> {
    let shared = declared::settings_file(&declared::shared_settings(site.cluster));
    write(site, declared::SHARED_FILE, &shared).await?;
    write(site, declared::NODE_FILE, &declared::settings_file(own)).await
}

/// Tells whether a node has these settings of its own.
pub(super) async fn has_settings(site: &Site<'_>, own: &[Setting]) -> Result<bool> {
    let present = read(site, &here(site, declared::NODE_FILE)).await?;
    Ok(present == Some(declared::settings_file(own)))
}

/// Looks whether a node is open.
pub(super) async fn look(world: &World, node: &str) -> Result<Found<Evidence>> {
    let site = world.site(node)?;
    let closed = read(&site, &here(&site, OPEN_HBA)).await?.is_some();
    Ok(if has_settings(&site, &open_settings(world, &site)).await? && !closed {
        Found::Done(Evidence::Opened {})
    } else {
        Found::NotDone
    })
}

/// Gives a node the declared configuration and its own access rules, and has the server take them.
pub(super) async fn open(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    settings(&site, &open_settings(world, &site)).await?;
    let rules = here(&site, OPEN_HBA);
    if let Some(text) = read(&site, &rules).await? {
        write(&site, HBA, &text).await?;
    }
    let conn = site.connect().await?;
    crate::db::queries::reload(&conn).await?;
    // Its absence says that the node is open, so it goes last.
    site.host()
        .remove_file(&rules)
        .await
        .map_err(|error| Error::failed(format!("could not remove {}", rules.display())).source(error))?;
    Ok(Evidence::Opened {})
}

fn open_settings(world: &World, site: &Site<'_>) -> Vec<Setting> {
    let cluster = world.cluster();
    let seed = cluster.node(&world.input.seed).expect("World::open was given the seed as primary");
    let upstream = (site.node.name != seed.name).then_some(seed);
    let names = declared::synchronous_names(cluster, site.node);
    declared::node_settings(cluster, site.node, &world.wish(site.node, upstream, names), &site.places())
}

fn here(site: &Site<'_>, name: &str) -> PathBuf {
    site.node.data_directory.join(name)
}

/// Returns the text of the first of these files that is there; one that the operating system cannot give is as good as missing.
async fn first_of<const N: usize>(site: &Site<'_>, paths: [PathBuf; N]) -> Result<String> {
    for path in paths {
        match site.host().read(&path).await {
            Ok(Some(bytes)) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(None) | Err(HostError::File { .. }) => {}
            Err(error) => {
                return Err(Error::failed(format!("could not read {}", path.display())).source(error));
            }
        }
    }
    Ok(String::new())
}

async fn read(site: &Site<'_>, path: &Path) -> Result<Option<String>> {
    let bytes = site
        .host()
        .read(path)
        .await
        .map_err(|error| Error::failed(format!("could not read {}", path.display())).source(error))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

async fn write(site: &Site<'_>, name: &str, text: &str) -> Result<()> {
    provision::write(site, &here(site, name), text.as_bytes(), 0o600).await
}
