//! What only a node has: the WAL of its timeline that nobody else got, into the archive or aside.
//!
//! Into the archive it goes through `pgherd wal push`, which never replaces anything by something else. What lies past the fork goes there only
//! when the primary's own timeline is there: until then a standby that reads the archive would take the old timeline's segment for the one that
//! it needs (`XLogFileReadAnyTLI` in `xlogrecovery.c` looks for the newest timeline first, and takes what there is).

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::{Command, HostError};
use crate::ops::provision::{self, Site};
use crate::ops::rejoin::decide::{Decision, Fork, Way};
use crate::ops::rejoin::evidence::Evidence;
use crate::ops::rejoin::world::World;
use crate::ops::shelf::Shelf;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::layout::ClusterKeys;

/// How long one file may take into the repository, or aside.
const FILE: Duration = Duration::from_secs(300);
/// How much is told of a push that failed.
const TOLD: usize = 300;

/// Returns where the WAL of a node goes that cannot be archived: `a` becomes `a.wal-before-7f3a`.
pub(super) fn aside(site: &Site<'_>) -> PathBuf {
    let mut name = site.node.data_directory.as_os_str().to_owned();
    name.push(format!(".wal-before-{}", site.operation));
    PathBuf::from(name)
}

/// Saves what only the node has; `ended` is where its WAL ends, if that is known, `past_too` whether what lies past the fork may be archived.
pub(super) async fn save(
    world: &World,
    node: &str,
    ended: Option<(TimelineId, Lsn)>,
    past_too: bool,
) -> Result<Evidence> {
    let site = world.site(node)?;
    let wal = site.node.data_directory.join("pg_wal");
    let could_not = |error: HostError| {
        Error::failed(format!("could not look what WAL only {} has", site.name())).source(error)
    };
    let size = match provision::control_file(&site).await {
        Ok(control) => WalSegmentSize::new(u64::from(control.wal_segment_size)).ok(),
        // What cannot be read may be why the node is cloned.
        Err(_) => None,
    };
    let there = site.host().list(&wal).await.map_err(could_not)?.unwrap_or_default();
    let states = site.host().list(&wal.join("archive_status")).await.map_err(could_not)?.unwrap_or_default();
    let may = |name: &str| size.is_some_and(|size| may_be_archived(name, &world.decision, size, past_too));
    let mut waiting: Vec<&str> = states.iter().filter_map(|name| name.strip_suffix(".ready")).collect();
    waiting.retain(|name| there.iter().any(|file| file == name));
    // As the archiver does (`pgarch.c`): history files first.
    waiting.sort_by_key(|name| (!name.ends_with(".history"), *name));
    let (mut stored, mut known, mut why) = (Vec::new(), Vec::new(), None);
    if site.cluster.backups.is_some() {
        for name in waiting.iter().filter(|name| may(name)) {
            match push(world, &site, &wal, name).await? {
                Ok(true) => stored.push((*name).to_owned()),
                Ok(false) => known.push((*name).to_owned()),
                Err(told) => why = Some(format!("{name}: {told}")),
            }
        }
    }
    let archived = |name: &str| {
        let done = format!("{name}.done");
        stored.iter().chain(&known).any(|pushed| pushed == name)
            || (site.cluster.backups.is_some() && states.contains(&done))
    };
    let mut left: Vec<String> = there
        .iter()
        .filter(|name| !archived(name.as_str()))
        .filter(|name| {
            let waits = waiting.iter().any(|other| other == name);
            let unfinished = size.is_some_and(|size| is_of_it(name, world.decision.fork, ended, size));
            waits || unfinished
        })
        .cloned()
        .collect();
    left.sort();
    let directory = if left.is_empty() { None } else { Some(copy_aside(&site, &wal, &left).await?) };
    Ok(Evidence::Saved { stored, there: known, aside: left, directory, why })
}

/// Tells whether a file of WAL may go into the archive. One of a timeline that is not the primary's as well may not: its number may be another
/// promotion's (patroni#890), and a history there leads others onto it (cnpg#3147).
fn may_be_archived(name: &str, decision: &Decision, size: WalSegmentSize, past_too: bool) -> bool {
    let Ok(file) = name.parse::<WalFile>() else { return false };
    let Some(fork) = decision.fork else {
        // Of two that wrote the same timeline, what the other one has is under these names, or will be.
        return decision.way == Way::Follow;
    };
    let past = match file {
        WalFile::Segment(segment) | WalFile::Partial(segment) | WalFile::BackupHistory(segment, _) => {
            segment.number(size) >= SegmentName::holding(fork.at, fork.timeline, size).number(size)
        }
        WalFile::TimelineHistory(_) => false,
    };
    file.timeline() <= fork.timeline && (past_too || !past)
}

/// Tells whether a segment lies between the fork and the end of the node's WAL, past the fork: what was recycled has names of later ones.
fn is_of_it(name: &str, fork: Option<Fork>, ended: Option<(TimelineId, Lsn)>, size: WalSegmentSize) -> bool {
    let (Some(fork), Some((timeline, lsn))) = (fork, ended) else { return false };
    if timeline == fork.timeline && lsn <= fork.at {
        return false;
    }
    let Ok(WalFile::Segment(segment)) = name.parse() else { return false };
    let first = SegmentName::holding(fork.at, fork.timeline, size).number(size);
    let last = SegmentName::ending_at(lsn, timeline, size).number(size);
    segment.timeline() >= fork.timeline
        && segment.timeline() <= timeline
        && (first..=last).contains(&segment.number(size))
}

/// Pushes a file; tells whether it was stored now, or why it could not be.
async fn push(
    world: &World,
    site: &Site<'_>,
    wal: &Path,
    name: &str,
) -> Result<std::result::Result<bool, String>> {
    let places = site.places();
    let before = match (name.parse(), &site.cluster.backups, provision::control_file(site).await) {
        (Ok(file), Some(backups), Ok(control)) => {
            let keys = ClusterKeys::new(&site.cluster.name).system(control.system_identifier);
            let shelf =
                Shelf::of(site.doors, &site.node.host, &backups.repository, &world.succession.apply.build)
                    .await?;
            shelf.has(&keys.wal(file)).await?
        }
        _ => false,
    };
    let push = Command::new(&places.program)
        .args(["wal", "push", "--profile"])
        .arg(places.profile.display().to_string())
        .arg(wal.join(name).display().to_string())
        .timeout(FILE);
    match site.host().run(&push).await {
        Ok(_) => {
            let status = wal.join("archive_status");
            let [ready, done] =
                ["ready", "done"].map(|state| status.join(format!("{name}.{state}")).display().to_string());
            let rename = Command::new("mv").args(["-T", "--", ready.as_str(), done.as_str()]);
            if let Err(error) = site.host().run(&rename).await {
                tracing::warn!(%error, "the server will try to archive {name} once more");
            }
            Ok(Ok(!before))
        }
        Err(HostError::Exited { stderr, .. }) => {
            let mut text = stderr.lines().next().unwrap_or_default().to_owned();
            text.truncate(text.floor_char_boundary(TOLD));
            Ok(Err(text))
        }
        Err(error) => {
            Err(Error::failed(format!("could not archive {name} of {}", site.name())).source(error))
        }
    }
}

/// Copies files of WAL out of the data directory, durably.
async fn copy_aside(site: &Site<'_>, wal: &Path, names: &[String]) -> Result<PathBuf> {
    let directory = aside(site);
    let could_not = |error: HostError| {
        Error::failed(format!("could not copy WAL of {} to {}", site.name(), directory.display()))
            .detail("It is nowhere else, so nothing is taken back before it is safe.")
            .source(error)
    };
    site.host().make_directory(&directory, 0o700).await.map_err(could_not)?;
    for name in names {
        let words = [wal.join(name), directory.join(name)].map(|path| path.display().to_string());
        let copy = Command::new("cp").args(["--preserve=timestamps", "--"]).args(words).timeout(FILE);
        site.host().run(&copy).await.map_err(could_not)?;
    }
    let paths = names.iter().map(|name| directory.join(name).display().to_string());
    let sync = Command::new("sync").arg("--").args(paths).arg(directory.display().to_string()).timeout(FILE);
    site.host().run(&sync).await.map_err(could_not)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_primary_shares_goes_into_the_archive_and_what_lies_past_the_fork_last() {
        let size = WalSegmentSize::new(16 << 20).unwrap();
        let timeline = |id| TimelineId::new(id).unwrap();
        let fork = Some(Fork { timeline: timeline(1), at: "0/5000148".parse().unwrap() });
        let decision = |way, fork| Decision { way, why: String::new(), fork };
        let rewind = decision(Way::Rewind, fork);
        for (name, before, after) in [
            ("000000010000000000000004", true, true),
            ("000000010000000000000005", false, true),
            ("000000010000000000000006", false, true),
            ("000000020000000000000004", false, false),
            ("00000002.history", false, false),
            ("archive_status", false, false),
        ] {
            assert_eq!(may_be_archived(name, &rewind, size, false), before, "{name}");
            assert_eq!(may_be_archived(name, &rewind, size, true), after, "{name}");
        }
        let name = "000000010000000000000004";
        assert!(may_be_archived(name, &decision(Way::Follow, None), size, false));
        assert!(!may_be_archived(name, &decision(Way::Clone, None), size, true), "two wrote this timeline");
        let ended = |text: &str| Some((timeline(1), text.parse().unwrap()));
        assert!(is_of_it("000000010000000000000005", fork, ended("0/6000028"), size));
        assert!(is_of_it("000000010000000000000006", fork, ended("0/6000028"), size));
        // Recycled, and not written to yet.
        assert!(!is_of_it("000000010000000000000007", fork, ended("0/6000028"), size));
        assert!(!is_of_it("000000010000000000000004", fork, ended("0/6000028"), size));
        assert!(
            !is_of_it("000000010000000000000005", fork, ended("0/5000148"), size),
            "it has nothing of its own"
        );
    }
}
