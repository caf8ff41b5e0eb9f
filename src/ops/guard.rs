//! The start guard: what a node's unit asks before it starts the server.
//!
//! Looks only, as the owner of the node's files, and needs neither topology nor tokio. A standby may always start: it follows. A server
//! that would come up as a primary may start only if nothing says that another node has become it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::error::{Error, ErrorKind, Result};
use crate::ops::observe;
use crate::pg::control_bytes::ControlBytes;
use crate::pg::timeline::TimelineId;
use crate::repo::primary::{self, PrimaryRecord};
use crate::repo::{self, now};
use crate::topology::claim::{self, FenceMark, Marker, Profile};

/// As what a node may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Standby,
    /// An operation that restores it has begun, and drives it.
    Recovery,
    /// The record, if it was asked, does not say otherwise.
    Primary(TimelineId),
}

/// Whether the record of who is primary is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    Ask,
    /// The cluster has no other node.
    Leave,
}

/// Decides whether the node whose profile is in `file` may start; returns its name and as what.
///
/// # Errors
/// [`ErrorKind::Refused`] when it must not; [`ErrorKind::NotFound`] when that cannot be told.
pub fn check(file: &Path, record: Record) -> Result<(String, Start)> {
    let profile: Profile = read(file)?;
    let marker: Marker = read(&file.with_file_name("marker.json"))?;
    let node = format!("{}-{}", profile.cluster, profile.node);
    let timeline = whose(&node, &profile, &marker)?;
    let holds = |name: &str| profile.data_directory.join(name).exists();
    if holds("recovery.signal") {
        return Ok((node, Start::Recovery));
    }
    if holds("standby.signal") {
        return Ok((node, Start::Standby));
    }
    not_fenced(&node, file)?;
    match record {
        Record::Leave => {}
        Record::Ask => ask(&node, &profile, timeline)?,
    }
    Ok((node, Start::Primary(timeline)))
}

/// A fenced node does not come up as a primary, whoever starts it.
fn not_fenced(node: &str, profile: &Path) -> Result<()> {
    let file = profile.with_file_name("fenced.json");
    let cannot_tell = |why: String| {
        Error::new(ErrorKind::NotFound, format!("cannot tell whether {node} is fenced"))
            .detail(format!("{}: {why}. It was not started.", file.display()))
    };
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot_tell(error.to_string())),
    };
    let mark: FenceMark = claim::read(&bytes).map_err(|error| cannot_tell(error.to_string()))?;
    Err(Error::refused(format!("cannot start {node} as a primary: it is fenced"))
        .detail(format!("It is {mark}."))
        .hint(observe::ways_out_of_a_fence(node)))
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let unusable = |why: String| {
        Error::new(ErrorKind::NotFound, format!("cannot tell which node this is by {}", file.display()))
            .detail(format!("{why}."))
            .hint("\"pgherd plan\" shows what is wrong with the node's files, and \"pgherd apply\" writes them anew.")
    };
    let bytes = fs::read(file).map_err(|error| unusable(format!("It cannot be read: {error}")))?;
    claim::read(&bytes).map_err(|error| unusable(format!("In it, {error}")))
}

/// Looks whether the data directory is the node's; returns the timeline of its latest checkpoint.
fn whose(node: &str, profile: &Profile, marker: &Marker) -> Result<TimelineId> {
    let directory = profile.data_directory.display();
    if marker.data_directory != profile.data_directory
        || marker.system_identifier != Some(profile.system_identifier)
    {
        return Err(Error::refused(format!("cannot start {node}: its marker does not claim {directory}"))
            .detail(format!(
                "It claims {}, system identifier {}.",
                marker.data_directory.display(),
                marker.system_identifier.map_or_else(|| "not known yet".to_owned(), |id| id.to_string())
            ))
            .hint("An operation that makes or moves the node has not ended: pgherd operation list"));
    }
    let path: PathBuf = profile.data_directory.join("global/pg_control");
    let cannot_tell = |why: String| {
        Error::new(ErrorKind::NotFound, format!("cannot tell which cluster {directory} holds"))
            .detail(format!("{}: {why}.", path.display()))
            .hint("Look whether its disk is mounted.")
    };
    let bytes = fs::read(&path).map_err(|error| cannot_tell(error.to_string()))?;
    let control =
        ControlBytes::parse(&bytes).ok_or_else(|| cannot_tell("its checksum does not fit".to_owned()))?;
    if control.system_identifier != profile.system_identifier {
        return Err(Error::refused(format!("cannot start {node}: {directory} holds another cluster"))
            .detail(format!(
                "Its system identifier is {}, the node's is {}.",
                control.system_identifier, profile.system_identifier
            ))
            .hint("Put the node's own directory there, or give the node another `data-directory`."));
    }
    Ok(control.timeline)
}

/// Asks the record in the repository who is primary.
fn ask(node: &str, profile: &Profile, timeline: TimelineId) -> Result<()> {
    let Some(archive) = &profile.archive else { return Ok(()) };
    let recorded = repo::open(&archive.url)
        .map_err(Error::from)
        .and_then(|repo| Ok(now(Box::pin(primary::read(&*repo, &profile.cluster)))?))
        .map_err(|error| {
            Error::new(
                ErrorKind::NotFound,
                format!("cannot tell whether another node of {} is primary", profile.cluster),
            )
            .detail(format!(
                "{node} would start as a primary, and the record in repository {} cannot be read.",
                archive.repository
            ))
            .hint("Its unit asks again every few seconds; make the repository reachable.")
            .source(error)
        })?;
    match recorded {
        Some(record) if supersedes(&record, profile, timeline) => {
            Err(superseded(node, profile, &record, timeline))
        }
        Some(_) | None => Ok(()),
    }
}

/// A record of another system identifier is of a cluster that had the name before. A node that is ahead of the record was promoted after
/// it was written: the record says nothing of that.
fn supersedes(record: &PrimaryRecord, profile: &Profile, timeline: TimelineId) -> bool {
    record.system_identifier == profile.system_identifier
        && record.node != profile.node
        && timeline <= record.timeline
}

fn superseded(node: &str, profile: &Profile, record: &PrimaryRecord, timeline: TimelineId) -> Error {
    let other = format!("{}-{}", profile.cluster, record.node);
    Error::refused(format!("cannot start {node} as a primary: {other} is primary"))
        .detail(format!(
            "Since {} on timeline {} (term {}); {node} is on timeline {timeline} and has no standby.signal.",
            record.since, record.timeline, record.term
        ))
        .hint(format!(
            "To rebuild it as a standby: pgherd destroy {} --node {}, then pgherd apply",
            profile.cluster, profile.node
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::system::SystemIdentifier;
    use crate::repo::primary::Primary;

    struct Place {
        directory: tempfile::TempDir,
        profile: Profile,
    }

    impl Place {
        /// A node `inventory-b` on timeline 2, whose data says that it would be a primary.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut profile: Profile =
                claim::read(include_bytes!("../topology/testdata/profile-1.json")).unwrap();
            profile.data_directory = directory.path().join("data");
            fs::create_dir_all(profile.data_directory.join("global")).unwrap();
            let url = format!("file://{}", directory.path().join("repository").display());
            repo::create(&url).unwrap();
            profile.archive.as_mut().unwrap().url = url;
            let place = Self { directory, profile };
            place.write_control(place.profile.system_identifier, 2);
            let mut marker: Marker =
                claim::read(include_bytes!("../topology/testdata/marker-1.json")).unwrap();
            marker.data_directory = place.profile.data_directory.clone();
            marker.system_identifier = Some(place.profile.system_identifier);
            fs::write(place.file("marker.json"), claim::write(&marker)).unwrap();
            fs::write(place.file("profile.json"), claim::write(&place.profile)).unwrap();
            place
        }

        fn file(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write_control(&self, system: SystemIdentifier, timeline: u32) {
            let mut bytes = vec![0; 8192];
            bytes[..8].copy_from_slice(&system.to_string().parse::<u64>().unwrap().to_le_bytes());
            bytes[48..52].copy_from_slice(&timeline.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..288]);
            bytes[288..292].copy_from_slice(&crc.to_le_bytes());
            fs::write(self.profile.data_directory.join("global/pg_control"), bytes).unwrap();
        }

        fn record(&self, node: &str, timeline: u32) {
            let repo = repo::open(&self.profile.archive.as_ref().unwrap().url).unwrap();
            let is = Primary {
                system_identifier: self.profile.system_identifier,
                node,
                timeline: TimelineId::new(timeline).unwrap(),
            };
            now(Box::pin(primary::record(&*repo, &self.profile.cluster, is, "7f3a"))).unwrap();
        }

        fn check(&self) -> Result<Start> {
            check(&self.file("profile.json"), Record::Ask).map(|(_, start)| start)
        }
    }

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    #[test]
    fn a_primary_starts_while_the_record_names_it_or_nobody() {
        let place = Place::new();
        assert_eq!(place.check().unwrap(), Start::Primary(timeline(2)));
        place.record("b", 2);
        assert_eq!(place.check().unwrap(), Start::Primary(timeline(2)));
    }

    #[test]
    fn a_fenced_node_starts_as_a_standby_and_not_as_a_primary() {
        let place = Place::new();
        fs::write(place.file("fenced.json"), include_bytes!("../topology/testdata/fenced-1.json")).unwrap();
        let error = place.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.what(), "cannot start inventory-b as a primary: it is fenced");
        assert_eq!(
            error.detail_text(),
            Some(
                "It is fenced since 2026-11-22T03:12:07Z by ada on station (operation 7f3a): its host loses packets."
            )
        );
        fs::write(place.file("fenced.json"), b"{").unwrap();
        assert_eq!(place.check().unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(place.profile.data_directory.join("standby.signal"), b"").unwrap();
        assert_eq!(place.check().unwrap(), Start::Standby);
    }

    #[test]
    fn a_primary_that_another_has_taken_over_from_is_refused() {
        let place = Place::new();
        for recorded in [2, 3] {
            place.record("a", recorded);
            let error = place.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert_eq!(error.what(), "cannot start inventory-b as a primary: inventory-a is primary");
        }
        fs::write(place.profile.data_directory.join("standby.signal"), "").unwrap();
        assert_eq!(place.check().unwrap(), Start::Standby);
        fs::write(place.profile.data_directory.join("recovery.signal"), "").unwrap();
        assert_eq!(place.check().unwrap(), Start::Recovery);
    }

    #[test]
    fn a_record_that_is_older_than_the_promotion_says_nothing_of_it() {
        let place = Place::new();
        place.record("a", 1);
        assert_eq!(place.check().unwrap(), Start::Primary(timeline(2)));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_unknown_and_an_only_node_does_not_ask() {
        let place = Place::new();
        fs::remove_dir_all(place.file("repository")).unwrap();
        assert_eq!(place.check().unwrap_err().kind(), ErrorKind::NotFound);
        let (_, start) = check(&place.file("profile.json"), Record::Leave).unwrap();
        assert_eq!(start, Start::Primary(timeline(2)));
    }

    #[test]
    fn a_directory_of_another_cluster_or_of_none_is_refused_even_for_a_standby() {
        let place = Place::new();
        fs::write(place.profile.data_directory.join("standby.signal"), "").unwrap();
        place.write_control(SystemIdentifier::new(7).unwrap(), 2);
        assert_eq!(place.check().unwrap_err().kind(), ErrorKind::Refused);
        fs::remove_file(place.profile.data_directory.join("global/pg_control")).unwrap();
        assert_eq!(place.check().unwrap_err().kind(), ErrorKind::NotFound);
    }
}
