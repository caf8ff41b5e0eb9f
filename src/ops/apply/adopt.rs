//! A node taken over as it runs, and given back.
//!
//! Writes beside what is there and has the server read it again; never stops, starts or initialises anything.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::queries;
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::{Command, HostError};
use crate::ops::apply::configure;
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::observe::{self, Claim};
use crate::ops::plan::step::FileChange;
use crate::ops::provision::{self, Site};
use crate::topology::claim::{self, Adopted, AsFound, Marker};
use crate::topology::declared;
use crate::units::ByteCount;

/// How long a reload may take until pgherd is let in.
const TAKE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// How a node is taken over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub node: &'a str,
    pub owner: &'a str,
    pub unit: Option<&'a str>,
    pub files: &'a [FileChange],
}

/// The marker carries the system identifier when all is done: that is written last.
pub(super) async fn look(site: &Site<'_>) -> Result<Found<Evidence>> {
    Ok(match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::Ours(marker) if marker.operation == site.operation => match marker.system_identifier {
            Some(system_identifier) => Found::Done(Evidence::Adopted { system_identifier }),
            None => Found::NotDone,
        },
        Claim::None => Found::NotDone,
        Claim::Ours(marker) | Claim::Other(marker) => Found::CannotTell(format!(
            "the marker of {} is operation {}'s and claims {}",
            site.name(),
            marker.operation,
            marker.data_directory.display()
        )),
        Claim::Unknown { why } => {
            Found::CannotTell(format!("the marker of {} cannot be read: {why}", site.name()))
        }
    })
}

/// Claims the node, has its server let pgherd in, and completes the claim.
pub(super) async fn apply(world: &World, wanted: Wanted<'_>) -> Result<Evidence> {
    let site = world.site(wanted.node)?;
    if let Found::CannotTell(why) = look(&site).await? {
        return Err(
            Error::refused(format!("cannot adopt {}: {why}", site.name())).detail("It was left as it is.")
        );
    }
    let expected = provision::control_file(&site).await?.system_identifier;
    let places = site.places();
    let marker = Marker {
        format: claim::FORMAT,
        host: site.node.host.clone(),
        data_directory: site.node.data_directory.clone(),
        system_identifier: None,
        operation: site.operation.to_owned(),
        directory_existed: true,
        replaced: None,
        adopted: Some(Adopted { owner: wanted.owner.to_owned() }),
    };
    // The marker first: what no marker claims, no undo touches.
    provision::make_directory(&site, &places.facts, 0o750).await?;
    provision::write(&site, &places.marker, &claim::write(&marker), 0o640).await?;
    if site.node.log_directory.is_none() {
        provision::make_directory(&site, &places.log, 0o750).await?;
    }
    provision::make_directory(&site, &places.spool, 0o700).await?;
    // What ALTER SYSTEM has set may hold a password, which no journal does.
    let auto = site.node.data_directory.join(declared::AUTO_FILE);
    let altered = site
        .host()
        .read(&auto)
        .await
        .map_err(|error| Error::failed(format!("could not read {}", auto.display())).source(error))?;
    provision::write(&site, &places.facts.join(declared::AUTO_FILE), &altered.unwrap_or_default(), 0o600)
        .await?;
    for change in wanted.files {
        configure::write(&site, change).await?;
    }
    reload(&site).await?;
    let found = until_let_in(&site).await?;
    if found != expected {
        return Err(Error::refused(format!("cannot adopt {}: another server answers for it", site.name()))
            .detail(format!(
                "Its system identifier is {found}, that of {} is {expected}.",
                site.node.data_directory.display()
            )));
    }
    let memory = world.input.fixed.memory.get(wanted.node).copied().unwrap_or(ByteCount(0));
    let own = AsFound {
        config_directory: site.node.config_directory.clone(),
        unit: wanted.unit.map(str::to_owned),
    };
    let profile = provision::profile_of(&site, expected, memory, Some(own));
    provision::write(&site, &places.profile, &claim::write(&profile), 0o640).await?;
    let complete = Marker { system_identifier: Some(expected), ..marker };
    provision::write(&site, &places.marker, &claim::write(&complete), 0o640).await?;
    Ok(Evidence::Adopted { system_identifier: expected })
}

/// Gives the node back: its files as they were, and nothing of pgherd's beside them.
pub(super) async fn undo(site: &Site<'_>, files: &[FileChange]) -> Result<()> {
    match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::None => return provision::remove_bare_facts(site).await,
        Claim::Ours(marker) if marker.operation == site.operation && marker.adopted.is_some() => {}
        Claim::Ours(_) | Claim::Other(_) => return Ok(()),
        Claim::Unknown { why } => {
            return Err(
                Error::failed(format!("cannot tell whose {} is", site.name())).detail(format!("{why}."))
            );
        }
    }
    for change in files.iter().rev() {
        configure::take_back(site, change).await?;
    }
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_some() {
        reload(site).await?;
    }
    provision::forget(site).await
}

/// Has the postmaster read its files again; as the owner of the files, since nobody may be let in yet.
async fn reload(site: &Site<'_>) -> Result<()> {
    let directory = site.node.data_directory.display().to_string();
    let command = Command::new(site.programs.path("pg_ctl")).args(["reload", "-D", directory.as_str(), "-s"]);
    site.host().run(&command).await.map(drop).map_err(|error| {
        let failed = Error::failed(format!("could not reload {}", site.name()));
        match &error {
            HostError::Exited { stderr, .. } => failed.detail(stderr.clone()),
            HostError::NotStarted { .. } | HostError::Lost { .. } | HostError::File { .. } => failed,
        }
        .source(error)
    })
}

async fn until_let_in(site: &Site<'_>) -> Result<crate::pg::system::SystemIdentifier> {
    let deadline = Instant::now() + TAKE;
    loop {
        match site.connect().await {
            Ok(conn) => return Ok(queries::server_facts(&conn).await?.system_identifier),
            Err(error) if Instant::now() >= deadline => {
                return Err(Error::failed(format!("{} does not let pgherd in", site.name()))
                    .detail("A line of pg_hba.conf or pg_ident.conf may be wrong: the server then keeps the rules that it had, and its log says which.")
                    .hint(format!("Its log is in {}.", site.places().log.display()))
                    .source(error));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
