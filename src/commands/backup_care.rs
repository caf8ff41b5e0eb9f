//! `pgherd backup verify`, `expire`, `pin`, `unpin` and `copy`.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{App, Failure, Outcome};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::backup::care::{CopyWish, Hear, VerifyWish, Way};
use crate::ops::backup::expire::Expired;
use crate::ops::backup::transfer::Transferred;
use crate::ops::backup::verify::Verdict;
use crate::ops::node::{Priority, Progress, VerifyDepth};
use crate::repo::layout::Label;
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Check that backups and WAL in the repository are what was stored
///
/// Without a flag: every object is there in its size, every manifest, list of files, history file, lock, lease and pin is what was stored,
/// and so are chunks and WAL files chosen by chance: 32 and a hundredth of each backup and of the WAL. The seed that is printed chooses
/// the same again. --quick leaves that out. --full reads every byte: every chunk against its hash, every file against its checksum,
/// every WAL file, and finds every flipped bit. Gaps in the WAL are found at every depth. What is damaged or missing is named, and what
/// can no longer be restored: which backups, and which times.
///
/// Exports of partitions and dumps are looked at as well: each is there in its size and its manifest is what was stored; some, by chance, are
/// held against their hashes, with --full all of them, and rows are decompressed and counted.
///
/// Needs no server. Changes nothing but a lease of its own, which keeps `backup expire` from what is being read. With labels only these
/// backups are checked, and the WAL that each needs to become consistent.
///
/// Exit codes: 0 nothing is wrong, 1 something is damaged or missing, 3 something could not be read and nothing was found to be damaged, 10
/// there is no backup, export or dump, or no repository, 130 interrupted.
///
/// Example: pgherd backup verify --full --low-priority
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The backups; without one all of them, and everything else that the repository holds of the cluster
    #[arg(value_name = "LABEL")]
    labels: Vec<Label>,
    /// Look at listings and small documents only
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Read every byte
    #[arg(long)]
    full: bool,
    /// What chance begins with, to check the same chunks again
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["quick", "full"])]
    seed: Option<u64>,
    /// How many threads read and check; as many as the node has cores, but not more than 12
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    workers: u32,
    /// Take processor and disk only when nobody else wants them (nice 19, ionice idle)
    #[arg(long)]
    low_priority: bool,
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Remove the backups and the WAL that no rule keeps
///
/// Shows every backup, with each reason why it stays, and what goes and how much that frees. Then it asks. The rules are declared with
/// `backups` in the topology: `window` keeps all that is needed to restore any second of it, `keep-full` a number of backups, and
/// `minimum-full` stays whatever they say; a backup stays if one of them wants it, or if neither window nor keep-full is stated. A pinned
/// backup stays, and so does what a backup, a restore or a verification uses in this moment. A backup that is known not to be whole counts
/// for no rule. WAL stays from the oldest backup that stays; where that cannot be told, all of it.
///
/// Exports of partitions go when their rows are older than `keep-exports` of their table says; without it they stay for ever. Dumps have a
/// `keep` of their own, and go when the next one is made.
///
/// A manifest goes before its data and the oldest WAL first: killed at any moment it leaves a repository that can be restored from, and
/// the next run removes the rest. What pgherd did not put there is told and left. In a bucket it gives up uploads, of whichever cluster, that
/// nobody has added to for a day: their writers were killed.
///
/// Exit codes: 0 done or nothing to do, 1 failed, 2 there is nobody to ask and no --yes, 10 no repository, 130 interrupted or not agreed.
///
/// Example: pgherd backup expire --yes
#[derive(Debug, clap::Args)]
pub struct ExpireArgs {
    /// Only show; ask nothing and remove nothing
    #[arg(long)]
    preview: bool,
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Keep a backup whatever the rules say
///
/// Writes who pinned it, until when and why beside the backup, in place of a pin that it has. A pinned backup keeps the WAL from its start
/// on, so that it can be restored to any moment after it.
///
/// Exit codes: 0 pinned, 1 failed, 10 no cluster has such a backup.
///
/// Example: pgherd backup pin 20261121T100203Z-full --until "90 days" --reason "audit 2026"
#[derive(Debug, clap::Args)]
pub struct PinArgs {
    /// The backup
    #[arg(value_name = "LABEL")]
    label: Label,
    /// Until then, such as 2027-01-31, 2027-01-31T12:00:00Z or "90 days"; without it until it is unpinned
    #[arg(long, value_name = "TIME", value_parser = parse_until)]
    until: Option<Timestamp>,
    /// Why, for whoever reads it later
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Leave a pinned backup to the rules again
///
/// Removes nothing but the pin; the next `backup expire` shows what becomes of the backup.
///
/// Exit codes: 0 it is not pinned, 1 failed, 10 no cluster has such a backup.
///
/// Example: pgherd backup unpin 20261121T100203Z-full
#[derive(Debug, clap::Args)]
pub struct UnpinArgs {
    /// The backup
    #[arg(value_name = "LABEL")]
    label: Label,
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Copy backups and the WAL that they need from one repository into another one
///
/// Into --to come the backups that it lacks, the oldest first, the WAL from the beginning of the oldest one on, timeline histories, and exports of
/// partitions. Every object is held against the hash that was stored with it; a backup that is damaged where it is stays out, and is
/// told. A backup is there when everything of it is, and all WAL that it needs. An interrupted copy goes on where it was: what it
/// had brought is read, and taken over if it is the same. No server is asked, and the database is not read.
///
/// What is encrypted is decrypted with the one repository's key and encrypted with the other's, on the host that copies. A backup that is
/// pinned is pinned there as well. Dumps are not copied. `copies` in the topology says when this is done by itself.
///
/// Exit codes: 0 everything is there, 1 failed, 3 done, but what is damaged where it is was left out, 5 another copy into that
/// repository runs, 10 no such backup, or no repository, 130 interrupted.
///
/// Example: pgherd backup copy --to far
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// The backups; without one all that are not there
    #[arg(value_name = "LABEL")]
    labels: Vec<Label>,
    /// Into this one of the cluster's repositories
    #[arg(long, value_name = "REPOSITORY")]
    to: String,
    /// From this one; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    from: Option<String>,
    /// How many objects are copied at once; as many as the host has cores, but not more than 8
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    workers: u32,
    /// Take processor and disk only when nobody else wants them (nice 19, ionice idle)
    #[arg(long)]
    low_priority: bool,
}

fn parse_until(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    // What follows a date would be read over: the time of a day must have its zone.
    if let Some(date) = text.parse::<jiff::civil::Date>().ok().filter(|date| date.to_string() == text) {
        let at = date.to_zoned(TimeZone::UTC).map_err(|error| error.to_string())?;
        return Ok(at.timestamp());
    }
    let span = units::parse_duration(text)
        .map_err(|_| "expected a date, a time with its zone, or a span such as 90 days".to_owned())?;
    let span = SignedDuration::try_from(span).map_err(|error| error.to_string())?;
    Timestamp::now().checked_add(span).map_err(|error| error.to_string())
}

/// Verifies what there is, as a job does.
pub(super) async fn verify_scheduled(full: bool, app: &mut App) -> Outcome {
    let args = VerifyArgs {
        labels: Vec::new(),
        quick: false,
        full,
        seed: None,
        workers: 0,
        low_priority: true,
        repository: None,
    };
    verify(&args, app).await
}

/// Copies into another repository what it lacks, as a job does.
pub(super) async fn copy_scheduled(to: &str, app: &mut App) -> Outcome {
    let args = CopyArgs { labels: Vec::new(), to: to.to_owned(), from: None, workers: 0, low_priority: true };
    copy(&args, app).await
}

/// Removes what no rule keeps, from each repository, as a job does: the schedule in the topology is the answer to the question.
pub(super) async fn expire_scheduled(app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let names: BTreeSet<String> = app
        .clusters(&herd)?
        .iter()
        .filter_map(|cluster| cluster.backups.as_ref())
        .flat_map(|backups| backups.repositories().map(|repository| repository.name.clone()))
        .collect();
    let mut failed = Vec::new();
    for name in names {
        match expire(&ExpireArgs { preview: false, repository: Some(name) }, app).await {
            Ok(_) => {}
            Err(Failure::Errors(errors)) => failed.extend(errors),
            Err(other) => return Err(other),
        }
    }
    if failed.is_empty() { Ok(Exit::Done) } else { Err(Failure::Errors(failed)) }
}

pub(super) async fn verify(args: &VerifyArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let interrupt = app.interrupt()?;
    let mut clusters = app.clusters_with_backups(&herd)?;
    if let Some(label) = args.labels.first()
        && clusters.len() > 1
    {
        clusters = vec![find(app, &herd, label).await?];
    }
    let wish = VerifyWish {
        labels: args.labels.clone(),
        depth: match (args.quick, args.full) {
            (true, _) => VerifyDepth::Quick,
            (false, true) => VerifyDepth::Full,
            (false, false) => VerifyDepth::Sampled,
        },
        seed: args.seed.map_or_else(chance, Ok)?,
        workers: args.workers,
        priority: if args.low_priority { Priority::Low } else { Priority::Normal },
    };
    let (mut worst, mut failed) = (Verdict::Sound, Vec::new());
    for cluster in clusters {
        let verified = async {
            let way = Way::open(&context.places, &context.gate, cluster).await?;
            hearing(app, &herd.name, &cluster.name, "verify_progress", &interrupt, async |hear, interrupt| {
                way.verify(&wish, hear, interrupt).await
            })
            .await
        };
        match verified.await {
            Ok(verified) => {
                worst = worst.max(verified.verdict);
                ui::trust::print_verified(&mut app.ui, &herd.name, &verified);
                if verified.wal.iter().any(|wal| !wal.missing.is_empty()) {
                    tell_where_it_may_be(cluster, app)?;
                }
            }
            Err(error) => failed.push(error),
        }
        if interrupt.is_asked() {
            break;
        }
    }
    match (failed.is_empty(), worst) {
        (false, Verdict::Damaged) => {
            Failure::Errors(failed).print(&app.ui);
            Ok(Exit::Failed)
        }
        (false, Verdict::Sound | Verdict::CannotTell) => Err(Failure::Errors(failed)),
        (true, Verdict::Damaged) => Ok(Exit::Failed),
        (true, Verdict::CannotTell) => Ok(Exit::Partial),
        (true, Verdict::Sound) => Ok(Exit::Done),
    }
}

/// Says how WAL is brought that another one of the cluster's repositories may have: a node that died owed it to this one alone.
fn tell_where_it_may_be(cluster: &Cluster, app: &App) -> Result<(), Failure> {
    let Some(looked) = &cluster.backups else { return Ok(()) };
    let to = &looked.repository.name;
    let herd = app.herd()?;
    let declared = super::find_cluster(&herd, &cluster.name)?;
    let others = declared.backups.iter().flat_map(|backups| backups.repositories());
    for from in others.map(|repository| &repository.name).filter(|name| *name != to) {
        app.ui.note(format!(
            "NOTE:   {from} may have the WAL that is missing in {to}: pgherd backup copy --from {from} --to {to}"
        ));
    }
    Ok(())
}

/// Returns a seed that a person can type.
fn chance() -> Result<u64> {
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

/// Does work that tells how far it is, and shows that.
async fn hearing<T>(
    app: &mut App,
    herd: &str,
    cluster: &str,
    message_type: &str,
    interrupt: &Interrupt,
    work: impl AsyncFnOnce(Hear, &Interrupt) -> Result<T>,
) -> Result<T> {
    let (told, stream) = mpsc::unbounded_channel::<Progress>();
    // Nobody is left to hear it only when the screen is gone.
    let hear: Hear = Arc::new(move |progress| told.send(progress).unwrap_or(()));
    let (ended, ()) = tokio::join!(
        work(hear, interrupt),
        ui::trust::draw(&mut app.ui, herd, cluster, message_type, stream),
    );
    ended
}

/// Copies.
pub(super) async fn copy(args: &CopyArgs, app: &mut App) -> Outcome {
    let whole = app.herd_with_repository(Some(&args.to))?;
    let herd = app.herd()?;
    let interrupt = app.interrupt()?;
    let (mut failed, mut left) = (Vec::new(), false);
    let targets = app.clusters_with_backups(&whole)?;
    for (name, to) in
        targets.into_iter().filter_map(|cluster| Some((&cluster.name, cluster.backups.as_ref()?)))
    {
        let declared = super::find_cluster(&herd, name)?;
        let source = match &args.from {
            None => declared.clone(),
            Some(from) => declared.with_repository(from).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("cluster {name} uses no repository {from}"))
            })?,
        };
        let priority = if args.low_priority { Priority::Low } else { Priority::Normal };
        let wish = CopyWish { to: &to.repository, labels: &args.labels, workers: args.workers, priority };
        match bring(app, &herd, &source, &wish, &interrupt).await {
            Ok(transferred) => left |= !transferred.is_whole(),
            Err(error) => failed.push(error),
        }
        if interrupt.is_asked() {
            break;
        }
    }
    match (failed.is_empty(), left) {
        (false, _) => Err(Failure::Errors(failed)),
        (true, true) => Ok(Exit::Partial),
        (true, false) => Ok(Exit::Done),
    }
}

/// Copies from the first repository of a cluster, and says what was copied.
pub(super) async fn bring(
    app: &mut App,
    herd: &Herd,
    cluster: &Cluster,
    wish: &CopyWish<'_>,
    interrupt: &Interrupt,
) -> Result<Transferred> {
    let context = app.context()?;
    let way = Way::open(&context.places, &context.gate, cluster).await?;
    if way.backups().repository.url == wish.to.url {
        return Err(Error::usage(format!("{} is the repository that is copied from", wish.to.name))
            .hint("Say where from: pgherd backup copy --from REPOSITORY --to REPOSITORY"));
    }
    let transferred =
        hearing(app, &herd.name, &cluster.name, "copy_progress", interrupt, async |hear, interrupt| {
            way.copy(wish, hear, interrupt).await
        })
        .await?;
    ui::trust::print_transferred(&mut app.ui, &herd.name, &transferred);
    Ok(transferred)
}

pub(super) async fn expire(args: &ExpireArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let interrupt = app.interrupt()?;
    let mut failed = Vec::new();
    let mut shown: Vec<(Way<'_>, Expired)> = Vec::new();
    for cluster in app.clusters_with_backups(&herd)? {
        let looked = async {
            let way = Way::open(&context.places, &context.gate, cluster).await?;
            let expired = way.expire(None, Arc::new(|_| ()), &interrupt).await?;
            Ok((way, expired))
        };
        match looked.await {
            Ok((way, expired)) => {
                ui::trust::print_expiry(&mut app.ui, &herd.name, way.backups(), &expired);
                shown.push((way, expired));
            }
            Err(error) => failed.push(error),
        }
    }
    if !args.preview {
        if shown.iter().any(|(_, expired)| !expired.is_empty()) {
            agree(app, &herd)?;
        }
        // Where nothing goes there may be what killed writers have left, and locks to renew.
        for (way, expired) in shown {
            let agreed = expired.agreement();
            let name = &way.cluster().name;
            let removed =
                hearing(app, &herd.name, name, "expire_progress", &interrupt, async |hear, interrupt| {
                    way.expire(Some(agreed), hear, interrupt).await
                });
            match removed.await {
                Ok(expired) => ui::trust::print_removed(&mut app.ui, &herd.name, &expired),
                Err(error) => failed.push(error),
            }
            if interrupt.is_asked() {
                break;
            }
        }
    }
    if failed.is_empty() { Ok(Exit::Done) } else { Err(Failure::Errors(failed)) }
}

fn agree(app: &App, herd: &Herd) -> Result<()> {
    if app.globals.yes {
        return Ok(());
    }
    if !app.ui.is_interactive() {
        return Err(Error::usage("expire needs an answer, and there is no terminal to ask")
            .detail("Nothing was removed.")
            .hint("Say yes beforehand: pgherd backup expire --yes   or only look: pgherd backup expire --preview"));
    }
    if app
        .ui
        .ask(&format!("There is no undo. Remove that from the repository of {}? type yes: ", herd.name))?
        == "yes"
    {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Interrupted, "not removed").detail("Nothing was removed."))
}

pub(super) async fn pin(args: &PinArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let cluster = find(app, &herd, &args.label).await?;
    let context = app.context()?;
    let way = Way::open(&context.places, &context.gate, cluster).await?;
    let before = way.pin(&args.label, args.until, &args.reason).await?;
    ui::trust::print_pinned(&mut app.ui, &herd.name, &cluster.name, &args.label, args.until, &before);
    Ok(Exit::Done)
}

pub(super) async fn unpin(args: &UnpinArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let cluster = find(app, &herd, &args.label).await?;
    let context = app.context()?;
    let way = Way::open(&context.places, &context.gate, cluster).await?;
    let before = way.unpin(&args.label).await?;
    ui::trust::print_unpinned(&mut app.ui, &herd.name, &cluster.name, &args.label, &before);
    Ok(Exit::Done)
}

/// Finds the cluster that has a backup of this label.
async fn find<'h>(app: &App, herd: &'h Herd, label: &Label) -> Result<&'h Cluster> {
    let context = app.context()?;
    let clusters = app.clusters_with_backups(herd)?;
    if let [only] = clusters.as_slice() {
        return Ok(only);
    }
    let mut found = Vec::new();
    for cluster in clusters {
        if Way::open(&context.places, &context.gate, cluster).await?.has(label).await? {
            found.push(cluster);
        }
    }
    match found.as_slice() {
        [only] => Ok(only),
        [] => {
            Err(Error::new(ErrorKind::NotFound, format!("no cluster of {} has a backup {label}", herd.name))
                .hint("See which there are: pgherd backup list"))
        }
        [_, _, ..] => {
            let names: Vec<&str> = found.iter().map(|cluster| cluster.name.as_str()).collect();
            Err(Error::usage(format!("{} have each a backup {label}", names.join(" and ")))
                .hint("Name the one that is meant: --cluster NAME"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_keep_until_is_a_date_a_time_or_a_span() {
        assert_eq!(parse_until("2027-01-31"), Ok("2027-01-31T00:00:00Z".parse().unwrap()));
        assert_eq!(parse_until("2027-01-31T12:00:00+02:00"), Ok("2027-01-31T10:00:00Z".parse().unwrap()));
        let days = parse_until("90 days").unwrap() - Timestamp::now();
        assert!((89..=90).contains(&(days.get_seconds() / 86_400)), "{days}");
        for text in ["", "soon", "2027-01-31 12:00", "90", "2027-02-30"] {
            assert!(parse_until(text).is_err(), "{text:?}");
        }
    }
}
