//! `pgherd restore`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{App, Outcome, in_place};
use crate::clock;
use crate::error::{Error, Result};
use crate::ops::drill;
use crate::ops::node::restore::{Target, Wish};
use crate::ops::restore::prepare::Remap;
use crate::ops::restore::scratch::{self, Action, Request};
use crate::ops::restore::standby;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::Label;
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Bring a cluster back as it was at a moment
///
/// Takes the newest backup that ended before the target and replays WAL up to it: to the end of the archive, or to a time, an LSN, a
/// transaction or a restore point. By default on the timeline of the cluster's primary, never on one that merely is newer. Without such a
/// backup, or with WAL missing on the way, it says why and writes nothing; --preview shows all of it beforehand.
///
/// --to-dir makes a copy in a directory of its own. It archives nothing, follows nobody and is reached over its own Unix socket alone;
/// production is not touched. Every byte is checked against its hash before it is written, and pg_control comes last: a copy that is
/// not complete does not start. It is promoted only after it was seen to have reached its target. Run again after an interruption, it goes on.
/// Tablespaces go to DIR-tablespaces unless you say otherwise; the copy's socket, log and profile are in DIR-pgherd.
///
/// --to-node makes a standby anew, whose data is lost or too old to follow: what it had is renamed aside and never removed, the backup is copied,
/// and it follows the primary through archive and slot. Refuses the primary, and a standby that streams.
///
/// --in-place brings the whole cluster back: its poolers are paused, its nodes stopped, their directories renamed (DIR.before-ID, and
/// never removed), one node is restored and checked, the others are cloned from it, the archive goes on with a new timeline, and the
/// clients go on. It shows the plan and asks for the cluster's name. Until clients are let in, whatever fails is undone, and so it is by
/// `pgherd operation undo`: then everything is as it was. Killed in between it leaves clients waiting; resume or undo it.
///
/// Exit codes: 0 done, 1 failed (nothing was promoted, or in place everything was undone), 2 bad usage, 4 refused: no way to the target, or the directory is not free, 5 the
/// backup is being removed or another operation holds the cluster, 6 stuck, 7 in place: clients may be let in and something is left, 10 no
/// backup or no repository, 130 interrupted.
///
/// Example: pgherd restore inventory --to-dir /srv/r --target-time "2026-11-21 09:41:07 UTC" --preview
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("place").args(["to_dir", "to_node", "in_place"]))]
pub struct RestoreArgs {
    /// The cluster's name
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// Make a copy in this directory, which must be new or empty
    #[arg(long, value_name = "DIR")]
    pub to_dir: Option<PathBuf>,
    /// Make this standby anew from a backup and the archive, and have it follow the primary
    #[arg(
        long,
        value_name = "NODE",
        conflicts_with_all = ["TargetArgs", "target_timeline", "preview", "action", "no_start", "delta", "port"]
    )]
    pub to_node: Option<String>,
    /// Bring the whole cluster back in its own place, while its clients wait
    #[arg(long, conflicts_with_all = ["tablespace", "tablespaces", "action", "no_start", "delta", "port", "workers"])]
    pub in_place: bool,
    /// In place: the node that comes from the backup and is primary afterwards, instead of the preferred one
    #[arg(long, value_name = "NODE", requires = "in_place")]
    pub node: Option<String>,
    /// In place or to a node: wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", conflicts_with = "to_dir", value_parser = units::parse_duration)]
    pub wait_lock: Option<Duration>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub preview: bool,
    #[command(flatten)]
    pub target: TargetArgs,
    /// The timeline that the target is on, instead of the primary's
    #[arg(long, value_name = "TIMELINE", value_parser = parse_timeline)]
    pub target_timeline: Option<TimelineId>,
    /// Read this one of the cluster's repositories instead of the first one, which may be lost; to make a copy
    #[arg(long, value_name = "REPOSITORY", conflicts_with_all = ["in_place", "to_node"])]
    pub repository: Option<String>,
    /// Begin with this backup
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<Label>,
    /// Where a tablespace goes; may be given several times
    #[arg(long, value_name = "OID=DIR", value_parser = parse_tablespace)]
    pub tablespace: Vec<(u32, PathBuf)>,
    /// Where all other tablespaces go, each in a directory of its OID
    #[arg(long, value_name = "DIR")]
    pub tablespaces: Option<PathBuf>,
    /// What becomes of the copy at its target
    #[arg(long, value_name = "ACTION", default_value = "promote", value_parser = action_parser())]
    pub action: Action,
    /// Leave the copy ready to start
    #[arg(long, conflicts_with = "action")]
    pub no_start: bool,
    /// Let DIR hold a copy that this command has made before, and fetch and write only what differs
    #[arg(long)]
    pub delta: bool,
    /// The number in the name of the copy's Unix socket
    #[arg(long, value_name = "PORT", default_value_t = scratch::PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// How many threads copy; as many as the host has cores
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    pub workers: u32,
}

/// Where to stop; without any, at the end of the archive.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// Up to this moment: the last transaction that had ended by then
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
    /// Up to the record that begins here
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<Lsn>,
    /// Up to the end of this transaction
    #[arg(long, value_name = "XID")]
    pub target_xid: Option<u64>,
    /// Up to this restore point
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// As soon as the backup is consistent
    #[arg(long)]
    pub target_immediate: bool,
}

impl TargetArgs {
    /// Returns the target; a time without an offset is one of the topology's time zone.
    fn target(&self, herd: &Herd) -> Result<Target> {
        if let Some(text) = &self.target_time {
            let at = clock::parse_moment(text, &herd.timezone)
                .map_err(|why| Error::usage(format!("cannot read the target time {text:?}: {why}")))?;
            return Ok(Target::Time(at));
        }
        let lsn = self.target_lsn.map(Target::Lsn);
        let xid = self.target_xid.map(Target::Xid);
        let name = self.target_name.clone().map(Target::Name);
        let immediate = self.target_immediate.then_some(Target::Immediate);
        Ok(lsn.or(xid).or(name).or(immediate).unwrap_or(Target::Latest))
    }
}

fn parse_timeline(text: &str) -> Result<TimelineId, String> {
    text.parse().ok().and_then(TimelineId::new).ok_or_else(|| "expected a timeline, such as 3".to_owned())
}

fn parse_tablespace(text: &str) -> Result<(u32, PathBuf), String> {
    const EXPECTED: &str = "expected OID=DIRECTORY with an absolute path, such as 16385=/srv/fast";
    let (oid, path) = text.split_once('=').ok_or(EXPECTED)?;
    let path = PathBuf::from(path);
    match oid.parse() {
        Ok(oid) if path.is_absolute() => Ok((oid, path)),
        Ok(_) | Err(_) => Err(EXPECTED.to_owned()),
    }
}

fn action_parser() -> impl clap::builder::TypedValueParser<Value = Action> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(["promote", "pause", "shutdown"]).map(|word| match word.as_str() {
        "pause" => Action::Pause,
        "shutdown" => Action::Shutdown,
        _ => Action::Promote,
    })
}

pub fn run(args: &RestoreArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &RestoreArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let cluster = super::find_cluster(&herd, &args.name)?;
    let wish = Wish {
        target: args.target.target(&herd)?,
        timeline: args.target_timeline,
        backup: args.backup.clone(),
    };
    let remap =
        Remap { one: args.tablespace.clone(), all: args.tablespaces.as_deref().map(absolute).transpose()? };
    if let Some(node) = &args.to_node {
        let request = standby::Request {
            node: node.clone(),
            backup: args.backup.clone(),
            remap,
            workers: args.workers,
            wait: args.wait_lock.unwrap_or_default(),
        };
        return rebuild(&request, app, &herd, cluster).await;
    }
    let directory = match &args.to_dir {
        Some(directory) => Some(directory.clone()),
        None if args.in_place => None,
        None if args.preview => Some(copy_of(cluster)),
        None => {
            return Err(Error::usage("restore does not know where to")
                .detail("Nothing was changed.")
                .hint("Make a copy with --to-dir, bring the cluster back with --in-place, or look first with --preview.")
                .into());
        }
    };
    let Some(directory) = &directory else {
        let asked = in_place::Asked {
            herd: &herd,
            cluster,
            wish,
            node: args.node.as_deref(),
            preview: args.preview,
            wait: args.wait_lock.unwrap_or_default(),
        };
        return in_place::execute(&asked, app).await;
    };
    let request = Request {
        wish,
        directory: absolute(directory)?,
        remap,
        port: args.port,
        action: args.action,
        start: !args.no_start,
        delta: args.delta,
        workers: args.workers,
    };
    if args.preview {
        let preview = app.within(scratch::preview(&context, &herd, cluster, &request)).await??;
        let estimate = drill::estimate(&context.places, &cluster.name, &preview.survey)?;
        ui::restore::print_preview(&mut app.ui, &herd.name, &preview, estimate.as_ref());
        return Ok(if preview.obstacles.is_empty() { Exit::Done } else { Exit::Refused });
    }
    let interrupt = app.interrupt()?;
    let (told, stream) = mpsc::unbounded_channel();
    // Nobody is left to hear it only when the screen is gone.
    let tell: scratch::Tell = Arc::new(move |event| told.send(event).unwrap_or(()));
    let (ended, ()) = tokio::join!(
        scratch::restore(&context, &herd, cluster, &request, tell, &interrupt),
        ui::restore::draw(&mut app.ui, &herd.name, &cluster.name, stream),
    );
    ui::restore::print_report(&mut app.ui, &herd.name, &ended?);
    Ok(Exit::Done)
}

/// Returns where a preview without a place has its copy: beside the primary's data directory.
fn copy_of(cluster: &Cluster) -> PathBuf {
    let data = &cluster.preferred().data_directory;
    data.with_file_name(format!("{}-restored", cluster.name))
}

async fn rebuild(request: &standby::Request, app: &mut App, herd: &Herd, cluster: &Cluster) -> Outcome {
    let context = app.context()?;
    let interrupt = app.interrupt()?;
    let (told, stream) = mpsc::unbounded_channel();
    // Nobody is left to hear it only when the screen is gone.
    let tell: scratch::Tell = Arc::new(move |event| told.send(event).unwrap_or(()));
    let (ended, ()) = tokio::join!(
        standby::rebuild(&context, herd, cluster, request, tell, &interrupt),
        ui::restore::draw(&mut app.ui, &herd.name, &cluster.name, stream),
    );
    ui::restore::print_rebuilt(&mut app.ui, &herd.name, &ended?);
    Ok(Exit::Done)
}

/// Makes a path absolute without looking at it, and takes `/` off its end.
fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Error::usage(format!("cannot tell where {} is", path.display())).source(error))?;
    let plain: PathBuf = absolute.components().collect();
    if plain.file_name().is_none() || plain.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Error::usage(format!("{} is no directory to restore into", path.display())));
    }
    Ok(plain)
}
