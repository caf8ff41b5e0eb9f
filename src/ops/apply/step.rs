//! How each step of an apply is probed, done and undone.

use std::time::Duration;

use crate::db::{Login, queries};
use crate::engine::step::{Cx, Found, Retry, Reversal, Step, StepError, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply::archive::{self, Install};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::apply::{access, adopt, configure, follow, logins, pooler, proof, repository, rotation, tls};
use crate::ops::binary;
use crate::ops::certificate;
use crate::ops::objects::{self, Change, ToPrimary};
use crate::ops::observe::{self, Claim};
use crate::ops::plan::step::ApplyStep;
use crate::ops::provision::{self, Site};
use crate::ops::service;
use crate::ops::starter;
use crate::topology::declared::{self, NodeWish};
use crate::topology::model::Node;
use crate::units::ByteCount;

impl Step for ApplyStep {
    type World = World;
    type Evidence = Evidence;

    fn describe(&self) -> String {
        match self {
            Self::Install { version, .. } => format!("install pgherd {version}"),
            Self::Repository { name, .. } => format!("repository {name}"),
            Self::Access { host, name, .. } => format!("access of {host} to repository {name}"),
            Self::Authority { herd } => format!("certificate authority of {herd}"),
            Self::Certificate { node } => format!("certificate of {node}"),
            Self::Adopt { node, .. } => format!("adopt {node}"),
            Self::Initdb { node } => format!("initdb {node}"),
            Self::Unit { node, .. } => format!("unit of {node}"),
            Self::Start { node } => format!("start {node}"),
            Self::Logins { .. } => "logins of standbys and of the write proof".to_owned(),
            Self::Slot { on, slot } => format!("slot {slot} on {on}"),
            Self::Clone { node, from } => format!("clone {node} from {from}"),
            Self::Follow { node, upstream } => format!("start {node}, stream from {upstream}"),
            Self::Configure { node, activation, .. } => format!("configure {node}{}", activation.suffix()),
            Self::Objects { .. } => "roles, databases, schemas, grants".to_owned(),
            Self::Archive { repository, .. } => format!("see WAL arrive in {repository}"),
            Self::Record { node } => format!("record {node} as primary"),
            Self::Open { .. } => "passwords: open to clients".to_owned(),
            Self::Mend { change } => change.describe(),
            Self::StagePassword { login } => format!("new password for {}", login.whose()),
            Self::RotatePassword { login, .. } => format!("rotate the password of {}", login.whose()),
            Self::ForgetPassword { login } => format!("forget the old password of {}", login.whose()),
            Self::Keep {} => "keep what is done".to_owned(),
            Self::Pooler { host } => format!("pooler on {host}"),
            Self::Prove { .. } => "prove a write".to_owned(),
            Self::Schedule { pieces } if pieces.iter().all(|piece| piece.after.is_none()) => {
                format!("remove {}", starter::name(pieces))
            }
            Self::Schedule { pieces } => format!("have {} start the jobs", starter::name(pieces)),
            Self::Prune { host, builds } => match builds.len() {
                1 => format!("remove 1 older build of pgherd from {host}"),
                more => format!("remove {more} older builds of pgherd from {host}"),
            },
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::Install { .. }
            | Self::Repository { .. }
            | Self::Access { .. }
            | Self::Adopt { .. }
            | Self::Initdb { .. }
            | Self::Unit { .. }
            | Self::Start { .. }
            | Self::Slot { .. }
            | Self::Clone { .. }
            | Self::Follow { .. }
            | Self::StagePassword { .. }
            | Self::RotatePassword { .. }
            | Self::Schedule { .. }
            | Self::Configure { .. } => Reversal::Undo,
            // The password stays, but a pooler must not be left with another one than the server.
            Self::Mend { change: Change::SetPassword { .. } } => Reversal::Undo,
            // A login, a grant or a certificate that was put right stays right: undoing would bring the drift back.
            Self::Authority { .. }
            | Self::Certificate { .. }
            | Self::Logins { .. }
            | Self::Objects { .. }
            | Self::Mend { .. }
            | Self::Archive { .. }
            | Self::Record { .. }
            | Self::Prove { .. } => Reversal::NothingToUndo,
            // A copy that could not be removed is no reason to take back what is done.
            Self::Open { .. }
            | Self::ForgetPassword { .. }
            | Self::Keep {}
            | Self::Pooler { .. }
            | Self::Prune { .. } => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Clone { .. } => provision::CLONE + provision::STOP,
            Self::Start { .. } | Self::Follow { .. } | Self::Configure { .. } => {
                provision::START + provision::STOP + Duration::from_secs(60)
            }
            // It ends by itself when the archiver stands still.
            Self::Archive { .. } => Duration::from_secs(24 * 3600),
            Self::Record { .. } => Duration::from_secs(60),
            // The program goes through the link that there is, which may be a slow one.
            Self::Install { .. } => binary::SEND + Duration::from_secs(300),
            Self::Repository { .. }
            | Self::Access { .. }
            | Self::Authority { .. }
            | Self::Certificate { .. }
            | Self::Adopt { .. }
            | Self::Initdb { .. }
            | Self::Unit { .. }
            | Self::Logins { .. }
            | Self::Slot { .. }
            | Self::Objects { .. }
            | Self::Open { .. }
            | Self::Mend { .. }
            | Self::StagePassword { .. }
            | Self::RotatePassword { .. }
            | Self::ForgetPassword { .. }
            | Self::Keep {}
            | Self::Pooler { .. }
            | Self::Prove { .. }
            | Self::Schedule { .. }
            | Self::Prune { .. } => Duration::from_secs(300),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            // Both look until a deadline of their own; a second try helps against a connection that broke in between.
            Self::Pooler { .. } | Self::Prove { .. } => {
                Retry { attempts: 2, pause: Duration::from_millis(500) }
            }
            Self::Install { .. }
            | Self::Repository { .. }
            | Self::Access { .. }
            | Self::Authority { .. }
            | Self::Certificate { .. }
            | Self::Archive { .. }
            | Self::Record { .. }
            | Self::Adopt { .. }
            | Self::Initdb { .. }
            | Self::Unit { .. }
            | Self::Start { .. }
            | Self::Logins { .. }
            | Self::Slot { .. }
            | Self::Clone { .. }
            | Self::Follow { .. }
            | Self::Configure { .. }
            | Self::Objects { .. }
            | Self::Open { .. }
            | Self::Mend { .. }
            | Self::StagePassword { .. }
            | Self::RotatePassword { .. }
            | Self::ForgetPassword { .. }
            | Self::Keep {}
            | Self::Schedule { .. }
            | Self::Prune { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Evidence>, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Install { host, hash, before, .. } => {
                let wanted = Install { host, hash, before: before.as_deref() };
                archive::look_at_install(world, wanted).await?
            }
            // Both are idempotent; what was shown before the crash is shown again.
            Self::Repository { .. } | Self::Archive { .. } | Self::Record { .. } => Found::NotDone,
            Self::Access { host, name, .. } if access::is_there(world, host, name).await? => {
                Found::Done(Evidence::AccessThere {})
            }
            Self::Access { .. } => Found::NotDone,
            // Both look for themselves what is there, and the server is asked anew what it shows.
            Self::Authority { .. } | Self::Certificate { .. } => Found::NotDone,
            Self::Adopt { node, .. } => adopt::look(&world.site(node)?).await?,
            Self::Initdb { node } | Self::Clone { node, .. } => made(&world.site(node)?).await?,
            Self::Unit { node, .. } => {
                if provision::has_unit(&world.site(node)?).await? {
                    Found::Done(Evidence::UnitThere {})
                } else {
                    Found::NotDone
                }
            }
            Self::Start { node } => answers(&world.site(node)?).await?,
            Self::Logins { nodes } => match logins::look(world, nodes).await? {
                logins::Look::Right => Found::Done(Evidence::LoginsSet {}),
                logins::Look::Wrong { .. } => Found::NotDone,
            },
            Self::Slot { on, slot } => {
                let conn = world.site(on)?.connect().await.map_err(Error::from)?;
                let slots = queries::slots(&conn).await.map_err(Error::from)?;
                // It is planned only where there is none, so this operation made it.
                if slots.iter().any(|found| found.name == *slot && !found.is_lost()) {
                    Found::Done(Evidence::SlotThere { created: true })
                } else {
                    Found::NotDone
                }
            }
            Self::Follow { node, upstream } => follow::look(world, node, upstream).await?,
            Self::Configure { node, files, resets, expect, .. } => {
                configure::look(&world.site(node)?, files, resets, expect).await?
            }
            // Each change is idempotent and looks for itself what is there.
            Self::Objects { .. } | Self::Mend { .. } => Found::NotDone,
            Self::Open { roles } => {
                let login = superuser(world)?;
                match objects::passwords_set(to(world, &login), roles, &world.passwords)
                    .await
                    .map_err(Error::from)?
                {
                    Some(true) => Found::Done(Evidence::Opened {}),
                    Some(false) => Found::NotDone,
                    None => Found::CannotTell(format!(
                        "some of the roles {} have their declared password and others do not",
                        roles.join(", ")
                    )),
                }
            }
            Self::StagePassword { login } => rotation::look_staged(world, *login).await?,
            // Every part of it can be done again, and the login with the new password is seen anew.
            Self::RotatePassword { .. } | Self::ForgetPassword { .. } => Found::NotDone,
            Self::Keep {} => Found::Done(Evidence::Kept {}),
            Self::Pooler { host } => pooler::look(world, host).await?,
            // A proof is of its own moment: what was proved before the crash is proved again.
            Self::Prove { .. } => Found::NotDone,
            Self::Schedule { pieces } if starter::is_installed(world.doors.own(), pieces).await? => {
                Found::Done(Evidence::ScheduleInstalled {})
            }
            Self::Schedule { .. } => Found::NotDone,
            Self::Prune { host, builds } => archive::look_at_pruned(world, host, builds).await?,
        })
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Evidence, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Install { host, hash, before, .. } => {
                archive::install(world, Install { host, hash, before: before.as_deref() }).await?
            }
            Self::Repository { host, name, .. } => repository::make(world, host, name).await?,
            Self::Access { host, name, .. } => access::bring(world, host, name).await?,
            Self::Record { node } => archive::record(world, node).await?,
            Self::Archive { node, repository } => {
                let report = |done: u64, total: u64| (cx.progress.0)(done, Some(total), Unit::Items);
                archive::prove(world, node, repository, &report).await?
            }
            Self::Authority { herd } => {
                let made = certificate::station::ensure(&world.doors.station, herd)?;
                Evidence::AuthorityThere { fingerprint: made.certificate.fingerprint() }
            }
            Self::Certificate { node } => {
                tls::renew(&world.site(node)?).await?;
                Evidence::CertificateThere {}
            }
            Self::Adopt { node, owner, unit, files } => {
                let wanted = adopt::Wanted { node, owner, unit: unit.as_deref(), files };
                adopt::apply(world, wanted).await?
            }
            Self::Initdb { node } => {
                let site = world.site(node)?;
                // No standby is there to wait for yet.
                let wish = wish(world, site.node, None, String::new());
                Evidence::Made { system_identifier: provision::initdb(&site, &wish).await? }
            }
            Self::Unit { node, before } => {
                let site = world.site(node)?;
                let wanted = provision::wanted_unit(&site).await?;
                service::install_unit(site.host(), &site.unit(), &wanted, before.as_deref()).await?;
                Evidence::UnitThere {}
            }
            Self::Start { node } => {
                let site = world.site(node)?;
                provision::start(&site).await?;
                Evidence::Answers {
                    system_identifier: provision::control_file(&site).await?.system_identifier,
                }
            }
            Self::Logins { nodes } => {
                logins::ensure(world, nodes).await?;
                Evidence::LoginsSet {}
            }
            Self::Slot { on, slot } => {
                let conn = world.site(on)?.connect().await.map_err(Error::from)?;
                let created = queries::ensure_physical_slot(&conn, slot).await.map_err(Error::from)?;
                Evidence::SlotThere { created }
            }
            Self::Clone { node, from } => {
                let site = world.site(node)?;
                let from = world.node(from)?;
                let names = declared::synchronous_names(&world.input.cluster, site.node);
                let wish = wish(world, site.node, Some(from), names);
                let report =
                    |done: u64, total: u64| (cx.progress.0)(done << 10, Some(total << 10), Unit::Bytes);
                Evidence::Made { system_identifier: provision::clone(&site, from, &wish, &report).await? }
            }
            Self::Follow { node, upstream } => follow::start(world, node, upstream).await?,
            Self::Configure { node, files, resets, activation, expect } => {
                let step = configure::Wanted { files, resets, activation: *activation, expect };
                configure::apply(world, node, &step).await?;
                Evidence::Configured {}
            }
            Self::Objects { changes } => {
                let login = superuser(world)?;
                for (done, change) in changes.iter().enumerate() {
                    (cx.progress.0)(done as u64, Some(changes.len() as u64), Unit::Items);
                    objects::apply(change, to(world, &login), &world.passwords).await.map_err(Error::from)?;
                }
                Evidence::Granted {}
            }
            Self::Open { roles } => {
                let login = superuser(world)?;
                objects::set_passwords(to(world, &login), roles, &world.passwords)
                    .await
                    .map_err(Error::from)?;
                Evidence::Opened {}
            }
            Self::Mend { change } => {
                if let Change::SetPassword { role, .. } = change {
                    rotation::set_declared(world, role).await?;
                } else {
                    let login = superuser(world)?;
                    objects::apply(change, to(world, &login), &world.passwords).await.map_err(Error::from)?;
                }
                Evidence::Granted {}
            }
            Self::StagePassword { login } => rotation::stage(world, *login).await?,
            Self::RotatePassword { login, nodes } => rotation::replace(world, *login, nodes).await?,
            Self::ForgetPassword { login } => rotation::forget(world, *login).await?,
            Self::Keep {} => Evidence::Kept {},
            Self::Pooler { host } => pooler::ensure(world, host).await.map_err(maybe_passing)?,
            Self::Prove { nodes } => proof::prove(world, nodes).await.map_err(maybe_passing)?,
            Self::Schedule { pieces } => {
                starter::install(world.doors.own(), pieces).await?;
                Evidence::ScheduleInstalled {}
            }
            Self::Prune { host, builds } => archive::prune(world, host, builds).await?,
        })
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        let world = cx.world;
        match self {
            Self::Install { host, hash, before, .. } => {
                archive::uninstall(world, Install { host, hash, before: before.as_deref() }).await?;
            }
            Self::Adopt { node, files, .. } => adopt::undo(&world.site(node)?, files).await?,
            Self::Initdb { node } => {
                let site = world.site(node)?;
                // Whatever still runs archives on: it ends first.
                provision::stop_made(&site).await?;
                archive::forget(world, &site).await?;
                provision::remove_made(&site).await?;
            }
            Self::Clone { node, .. } => provision::remove_made(&world.site(node)?).await?,
            Self::Unit { node, before } => {
                let site = world.site(node)?;
                service::restore_unit(site.host(), &site.unit(), before.as_deref()).await?;
            }
            Self::Start { node } | Self::Follow { node, .. } => provision::stop(&world.site(node)?).await?,
            Self::Slot { on, slot } => drop_slot(&world.site(on)?, slot).await?,
            Self::Configure { node, files, resets, activation, expect } => {
                let step = configure::Wanted { files, resets, activation: *activation, expect };
                configure::undo(world, node, &step).await?;
            }
            Self::Repository { host, name, directory_existed, .. } => {
                repository::unmake(world, host, name, *directory_existed).await?;
            }
            Self::Access { host, name, existed, .. } => {
                access::take_away(world, host, name, *existed).await?;
            }
            Self::StagePassword { login } => {
                rotation::forget(world, *login).await?;
            }
            Self::RotatePassword { login, nodes } => rotation::put_back(world, *login, nodes).await?,
            Self::Schedule { pieces } => starter::take_back(world.doors.own(), pieces).await?,
            Self::Mend { change: Change::SetPassword { role, .. } } => rotation::agree(world, role).await?,
            Self::Archive { .. }
            | Self::Authority { .. }
            | Self::Certificate { .. }
            | Self::ForgetPassword { .. }
            | Self::Record { .. }
            | Self::Logins { .. }
            | Self::Objects { .. }
            | Self::Mend { .. }
            | Self::Prove { .. }
            | Self::Open { .. }
            | Self::Keep {}
            | Self::Pooler { .. }
            | Self::Prune { .. } => {}
        }
        Ok(())
    }
}

/// Has a step that may be done twice tried once more, unless it was refused for good.
fn maybe_passing(error: Error) -> StepError {
    let again = !matches!(error.kind(), ErrorKind::Refused | ErrorKind::Usage);
    StepError { error, again }
}

fn wish<'a>(world: &World, node: &Node, upstream: Option<&'a Node>, synchronous: String) -> NodeWish<'a> {
    let memory = world.input.fixed.memory.get(&node.name).copied().unwrap_or(ByteCount(0));
    NodeWish { upstream, synchronous, memory }
}

/// A directory is complete when its marker carries the system identifier: that is written last.
async fn made(site: &Site<'_>) -> Result<Found<Evidence>> {
    match observe::observe_claim(site.host(), &site.places(), site.node).await {
        Claim::Ours(marker) if marker.operation == site.operation => Ok(match marker.system_identifier {
            Some(system_identifier) => Found::Done(Evidence::Made { system_identifier }),
            None => Found::NotDone,
        }),
        Claim::None | Claim::Ours(_) => Ok(Found::NotDone),
        Claim::Other(marker) => Ok(Found::CannotTell(format!(
            "the marker of {} claims {}",
            site.name(),
            marker.data_directory.display()
        ))),
        Claim::Unknown { why } => {
            Ok(Found::CannotTell(format!("the marker of {} cannot be read: {why}", site.name())))
        }
    }
}

async fn answers(site: &Site<'_>) -> Result<Found<Evidence>> {
    match site.connect().await {
        Ok(conn) => {
            let facts = queries::server_facts(&conn).await.map_err(Error::from)?;
            Ok(Found::Done(Evidence::Answers { system_identifier: facts.system_identifier }))
        }
        // Whatever it does now, `apply` starts it or waits for it.
        Err(_) => Ok(Found::NotDone),
    }
}

async fn drop_slot(site: &Site<'_>, slot: &str) -> Result<()> {
    // With the whole cluster undone the server may be gone, and the slot with it.
    if observe::postmaster(site.host(), &site.node.data_directory).await?.is_none() {
        return Ok(());
    }
    let conn = site.connect().await?;
    queries::drop_slot(&conn, slot).await?;
    Ok(())
}

fn superuser(world: &World) -> Result<Login> {
    Ok(world.doors.superuser(&world.input.cluster, world.primary()?.node, "postgres"))
}

fn to<'a>(world: &'a World, login: &'a Login) -> ToPrimary<'a> {
    ToPrimary { connector: &world.doors.connector, login }
}
