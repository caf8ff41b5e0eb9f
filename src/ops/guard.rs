//! The start guard: what a node's unit asks before it starts the server.
//!
//! Looks only, as the owner of the node's files, and needs no topology. A standby may always start: it follows. A server that would come up
//! as a primary may start only if nothing says that another node has become it, and if somebody could be asked: the record in the
//! repository, or one of the other nodes. Alone it may start only if its commits wait for a standby anyway, or on an operator's word.
//!
//! It never makes a standby of what was a primary: to replay on from its own WAL would change what `rejoin` decides from.

mod peers;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use jiff::Timestamp;
use tokio::sync::oneshot;

use self::peers::Asked;
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Host};
use crate::ops::observe;
use crate::pg::control_bytes::ControlBytes;
use crate::pg::timeline::TimelineId;
use crate::repo::primary::{self, PrimaryRecord};
use crate::repo::{self, wait};
use crate::topology::claim::{self, Archive, FenceMark, Marker, Profile, StartAnyway};
use crate::topology::declared;
use crate::topology::model::Reach;

/// How long a repository may take to say who is primary.
const RECORD: Duration = Duration::from_secs(10);
/// How long an operator's word counts: until the unit has asked again, and not until some other boot.
const WORD: Duration = Duration::from_secs(600);

/// As what a node may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Standby,
    /// An operation that restores it has begun, and drives it.
    Recovery,
    Primary {
        timeline: TimelineId,
        because: Because,
    },
}

/// Why a node may come up as a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// Whoever could be asked, the record or another node, knows of no other one; or there is nobody to ask.
    NobodyElse,
    /// Nobody could be asked, and its commits wait for a standby: alone it acknowledges none.
    Waits,
    /// Nobody could be asked, and an operator said so.
    Allowed(StartAnyway),
}

/// Whether others are asked who is primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    Ask,
    /// The cluster has no other node.
    Leave,
}

/// What a look at a node found.
enum Look {
    May(Start),
    /// It would be a primary, and nobody could be asked: the error says who.
    Alone {
        timeline: TimelineId,
        why: Error,
    },
}

/// Decides whether the node whose profile is in `file` may start; returns its name and as what. An operator's word is used up by it.
///
/// # Errors
/// [`ErrorKind::Refused`] when it must not; [`ErrorKind::NotFound`] when that cannot be told.
pub async fn check(file: &Path, record: Record) -> Result<(String, Start)> {
    let (node, look) = look(file, record).await?;
    let word = word_beside(file);
    match look {
        Look::May(start) => {
            if matches!(start, Start::Primary { .. }) && word.is_some() {
                use_up(file)?;
            }
            Ok((node, start))
        }
        Look::Alone { timeline, why } => match word {
            Some(word) if Timestamp::now().duration_since(word.since).unsigned_abs() <= WORD => {
                use_up(file)?;
                Ok((node, Start::Primary { timeline, because: Because::Allowed(word) }))
            }
            Some(_) | None => Err(why.hint(format!(
                "Its unit asks again every few seconds: make one of them answer. Only if you know that no other node is primary: \
                 pgherd guard --profile {} --ask-record --start-anyway --reason TEXT",
                file.display()
            ))),
        },
    }
}

/// What an operator's word came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It may start without it.
    NotNeeded(Start),
    /// The next start of the node as a primary may go on it.
    Given,
}

/// Writes down that an operator takes it upon himself to start the node as a primary although nobody can be asked; its next start uses that
/// up.
///
/// # Errors
/// [`ErrorKind::Refused`] if another node is primary or ahead, or the node is fenced: no word helps against that.
pub async fn start_anyway(file: &Path, record: Record, why: &str) -> Result<(String, Word)> {
    let (node, look) = look(file, record).await?;
    if let Look::May(start) = look {
        return Ok((node, Word::NotNeeded(start)));
    }
    let profile: Profile = read(file)?;
    let by = Actor::here();
    let word = StartAnyway {
        format: claim::FORMAT,
        by: format!("{} on {}", by.user, by.host),
        since: Timestamp::now(),
        why: why.to_owned(),
    };
    let host = own_door(&profile)?;
    host.write_atomic(&file.with_file_name(WORD_FILE), &claim::write(&word), 0o640).await?;
    Ok((node, Word::Given))
}

const WORD_FILE: &str = "start-anyway.json";
const USED_FILE: &str = "started-anyway.json";

/// Reads an operator's word; one that cannot be read is none.
fn word_beside(file: &Path) -> Option<StartAnyway> {
    claim::read(&fs::read(file.with_file_name(WORD_FILE)).ok()?).ok()
}

/// A word is for one start; who gave it stays on record.
fn use_up(file: &Path) -> Result<()> {
    let (word, used) = (file.with_file_name(WORD_FILE), file.with_file_name(USED_FILE));
    fs::rename(&word, used).map_err(|error| {
        Error::new(ErrorKind::NotFound, format!("could not use up {}", word.display())).source(error)
    })
}

fn own_door(profile: &Profile) -> Result<std::sync::Arc<dyn Host>> {
    observe::open_door("here", &Reach::Local, Some(&profile.os_user), None)
}

async fn look(file: &Path, record: Record) -> Result<(String, Look)> {
    let profile: Profile = read(file)?;
    let marker: Marker = read(&file.with_file_name("marker.json"))?;
    let node = format!("{}-{}", profile.cluster, profile.node);
    let timeline = whose(&node, &profile, &marker)?;
    let holds = |name: &str| profile.data_directory.join(name).exists();
    if holds("recovery.signal") {
        return Ok((node, Look::May(Start::Recovery)));
    }
    if holds("standby.signal") {
        return Ok((node, Look::May(Start::Standby)));
    }
    not_fenced(&node, file)?;
    let may = |because| Look::May(Start::Primary { timeline, because });
    let nobody_to_ask = profile.archive.is_none() && profile.peers.is_empty();
    if record == Record::Leave || nobody_to_ask {
        return Ok((node, may(Because::NobodyElse)));
    }
    let host = own_door(&profile)?;
    let (recorded, asked) = tokio::join!(recorded(&profile), peers::ask(&*host, &profile));
    if anybody_answers(&node, &profile, timeline, &recorded, &asked)? {
        return Ok((node, may(Because::NobodyElse)));
    }
    if waits_for_a_standby(&*host, &profile).await {
        return Ok((node, may(Because::Waits)));
    }
    let why = alone(&node, &profile, recorded, &asked);
    Ok((node, Look::Alone { timeline, why }))
}

/// Tells whether the record or another node was heard, and neither knows of another primary.
fn anybody_answers(
    node: &str,
    profile: &Profile,
    timeline: TimelineId,
    recorded: &Recorded,
    asked: &[Asked],
) -> Result<bool> {
    if let Recorded::Says(found) = recorded
        && supersedes(found, profile, timeline)
    {
        return Err(superseded(node, profile, found, timeline));
    }
    for asked in asked {
        overtaken_by(node, profile, timeline, asked)?;
    }
    Ok(matches!(recorded, Recorded::Says(_) | Recorded::Nothing)
        || asked.iter().any(|asked| answers(asked, profile)))
}

/// Tells whether one of the node's own cluster has answered.
fn answers(asked: &Asked, profile: &Profile) -> bool {
    matches!(&asked.answer, Ok(said) if said.system_identifier == profile.system_identifier)
}

/// A node that takes writes, or that has followed one to a later timeline, says that this one must not.
fn overtaken_by(node: &str, profile: &Profile, timeline: TimelineId, asked: &Asked) -> Result<()> {
    let Ok(said) = &asked.answer else { return Ok(()) };
    if said.system_identifier != profile.system_identifier || (!said.primary && said.timeline <= timeline) {
        return Ok(());
    }
    let other = format!("{}-{}", profile.cluster, asked.node);
    let is = if said.primary { "is primary" } else { "is ahead" };
    Err(Error::refused(format!("cannot start {node} as a primary: {other} {is}"))
        .detail(format!(
            "It answers, on timeline {}; {node} is on timeline {timeline} and has no standby.signal.",
            said.timeline
        ))
        .hint(rejoin(&profile.node)))
}

fn rejoin(node: &str) -> String {
    format!("Bring it back as a standby: pgherd rejoin {node}")
}

/// What the record in the repository says.
enum Recorded {
    Says(PrimaryRecord),
    /// Nobody was recorded.
    Nothing,
    /// The cluster has none.
    None,
    Unknown(Archive, Error),
}

/// Asks the record in the repository who is primary. A file system that does not answer is not waited for.
async fn recorded(profile: &Profile) -> Recorded {
    let Some(archive) = profile.archive.clone() else { return Recorded::None };
    let (tell, told) = oneshot::channel();
    let (location, cluster) = (crate::ops::wal::location(&archive), profile.cluster.clone());
    std::thread::spawn(move || {
        let read = repo::open(&location)
            .map_err(Error::from)
            .and_then(|repo| Ok(wait(Box::pin(primary::read(&*repo, &cluster)))?));
        // Who asked may have given up.
        tell.send(read).unwrap_or(());
    });
    match tokio::time::timeout(RECORD, told).await {
        Ok(Ok(Ok(Some(record)))) => Recorded::Says(record),
        Ok(Ok(Ok(None))) => Recorded::Nothing,
        Ok(Ok(Err(error))) => Recorded::Unknown(archive, error),
        Ok(Err(_)) | Err(_) => {
            let error = Error::failed(format!("it did not answer within {} s", RECORD.as_secs()));
            Recorded::Unknown(archive, error)
        }
    }
}

fn alone(node: &str, profile: &Profile, recorded: Recorded, asked: &[Asked]) -> Error {
    let what = format!("cannot tell whether another node of {} is primary", profile.cluster);
    let mut silent: Vec<String> = asked
        .iter()
        .map(|asked| {
            let why = match &asked.answer {
                Ok(said) => format!("it is of another cluster, system identifier {}", said.system_identifier),
                Err(why) => why.clone(),
            };
            format!("{}-{} does not answer: {why}", profile.cluster, asked.node)
        })
        .collect();
    let mut error = Error::new(ErrorKind::NotFound, what);
    if let Recorded::Unknown(archive, why) = recorded {
        silent.insert(0, format!("the record in repository {} cannot be read", archive.repository));
        error = error.source(why);
    }
    error.detail(format!(
        "{node} would start as a primary whose commits wait for nobody, and {}.",
        silent.join("; ")
    ))
}

/// Tells whether the server's commits would wait for a standby, by what it would start with; what cannot be told is no.
async fn waits_for_a_standby(host: &dyn Host, profile: &Profile) -> bool {
    let setting = async |name: &str| {
        let directory = profile.data_directory.display().to_string();
        let mut command =
            Command::new(profile.bin_directory.join("postgres")).args(["-D", directory.as_str(), "-C", name]);
        let configuration = profile.adopted.as_ref().and_then(|own| own.config_directory.as_ref());
        if let Some(configuration) = configuration {
            let file = configuration.join(declared::CONF_FILE);
            command = command.args(["-c", &format!("config_file={}", file.display())]);
        }
        let output = host.run(&command.reads().timeout(RECORD)).await.ok()?;
        Some(output.text().trim().to_owned())
    };
    let names = setting("synchronous_standby_names").await;
    let commit = setting("synchronous_commit").await;
    // With off and local a commit is acknowledged by the node alone (PostgreSQL docs, "synchronous_commit").
    names.is_some_and(|names| !names.is_empty())
        && commit.is_some_and(|commit| ["on", "remote_apply", "remote_write"].contains(&commit.as_str()))
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
        .hint(rejoin(&profile.node))
}

#[cfg(test)]
mod tests {
    use super::peers::Said;
    use super::*;
    use crate::host::local::LocalHost;
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
            profile.os_user = LocalHost::own("here").os_user().to_owned();
            fs::create_dir_all(profile.data_directory.join("global")).unwrap();
            let url = format!("file://{}", directory.path().join("repository").display());
            repo::create(&repo::Location::plain(url.as_str())).unwrap();
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
            let repo =
                repo::open(&repo::Location::plain(&self.profile.archive.as_ref().unwrap().url)).unwrap();
            let is = Primary {
                system_identifier: self.profile.system_identifier,
                node,
                timeline: TimelineId::new(timeline).unwrap(),
            };
            wait(Box::pin(primary::record(&*repo, &self.profile.cluster, is, "7f3a"))).unwrap();
        }

        async fn check(&self) -> Result<Start> {
            check(&self.file("profile.json"), Record::Ask).await.map(|(_, start)| start)
        }

        /// What follows from an answer of `inventory-a`.
        fn told(&self, recorded: &Recorded, answer: Result<Said, String>) -> Result<bool> {
            let asked = [Asked { node: "a".to_owned(), answer }];
            anybody_answers("inventory-b", &self.profile, timeline(2), recorded, &asked)
        }

        fn said(&self, number: u32, primary: bool) -> Result<Said, String> {
            let system_identifier = self.profile.system_identifier;
            Ok(Said { system_identifier, timeline: timeline(number), primary })
        }
    }

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn primary(because: Because) -> Start {
        Start::Primary { timeline: timeline(2), because }
    }

    #[tokio::test]
    async fn a_primary_starts_while_the_record_names_it_or_nobody() {
        let place = Place::new();
        assert_eq!(place.check().await.unwrap(), primary(Because::NobodyElse));
        place.record("b", 2);
        assert_eq!(place.check().await.unwrap(), primary(Because::NobodyElse));
    }

    #[tokio::test]
    async fn a_fenced_node_starts_as_a_standby_and_not_as_a_primary() {
        let place = Place::new();
        fs::write(place.file("fenced.json"), include_bytes!("../topology/testdata/fenced-1.json")).unwrap();
        let error = place.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.what(), "cannot start inventory-b as a primary: it is fenced");
        assert_eq!(
            error.detail_text(),
            Some(
                "It is fenced since 2026-11-22T03:12:07Z by ada on station (operation 7f3a): its host loses packets."
            )
        );
        fs::write(place.file("fenced.json"), b"{").unwrap();
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(place.profile.data_directory.join("standby.signal"), b"").unwrap();
        assert_eq!(place.check().await.unwrap(), Start::Standby);
    }

    #[tokio::test]
    async fn a_primary_that_another_has_taken_over_from_is_refused() {
        let place = Place::new();
        for recorded in [2, 3] {
            place.record("a", recorded);
            let error = place.check().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert_eq!(error.what(), "cannot start inventory-b as a primary: inventory-a is primary");
        }
        fs::write(place.profile.data_directory.join("standby.signal"), "").unwrap();
        assert_eq!(place.check().await.unwrap(), Start::Standby);
        fs::write(place.profile.data_directory.join("recovery.signal"), "").unwrap();
        assert_eq!(place.check().await.unwrap(), Start::Recovery);
    }

    #[tokio::test]
    async fn a_record_that_is_older_than_the_promotion_says_nothing_of_it() {
        let place = Place::new();
        place.record("a", 1);
        assert_eq!(place.check().await.unwrap(), primary(Because::NobodyElse));
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_unknown_and_an_only_node_does_not_ask() {
        let place = Place::new();
        fs::remove_dir_all(place.file("repository")).unwrap();
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::NotFound);
        let (_, start) = check(&place.file("profile.json"), Record::Leave).await.unwrap();
        assert_eq!(start, primary(Because::NobodyElse));
    }

    #[tokio::test]
    async fn a_directory_of_another_cluster_or_of_none_is_refused_even_for_a_standby() {
        let place = Place::new();
        fs::write(place.profile.data_directory.join("standby.signal"), "").unwrap();
        place.write_control(SystemIdentifier::new(7).unwrap(), 2);
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::Refused);
        fs::remove_file(place.profile.data_directory.join("global/pg_control")).unwrap();
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn another_node_that_takes_writes_or_is_ahead_is_enough_whatever_the_record_says() {
        let place = Place::new();
        for recorded in [Recorded::None, Recorded::Nothing] {
            for (answer, is) in [
                (place.said(1, true), "primary"),
                (place.said(2, true), "primary"),
                (place.said(3, false), "ahead"),
            ] {
                let error = place.told(&recorded, answer).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused);
                assert_eq!(
                    error.what(),
                    format!("cannot start inventory-b as a primary: inventory-a is {is}")
                );
            }
        }
        assert!(place.told(&Recorded::None, place.said(2, false)).unwrap());
        assert!(place.told(&Recorded::None, place.said(1, false)).unwrap());
    }

    #[test]
    fn who_is_silent_or_of_another_cluster_tells_nothing() {
        let place = Place::new();
        assert!(!place.told(&Recorded::None, Err("Connection refused".to_owned())).unwrap());
        let stranger = Said {
            system_identifier: SystemIdentifier::new(7).unwrap(),
            timeline: timeline(9),
            primary: true,
        };
        assert!(!place.told(&Recorded::None, Ok(stranger)).unwrap());
        assert!(place.told(&Recorded::Nothing, Err("Connection refused".to_owned())).unwrap());
    }

    #[tokio::test]
    async fn an_operators_word_counts_for_one_start_and_never_against_another_primary() {
        let place = Place::new();
        let file = place.file("profile.json");
        place.record("a", 2);
        assert_eq!(
            start_anyway(&file, Record::Ask, "b is lost").await.unwrap_err().kind(),
            ErrorKind::Refused
        );
        fs::remove_dir_all(place.file("repository")).unwrap();
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::NotFound);
        let (_, word) = start_anyway(&file, Record::Ask, "b is lost").await.unwrap();
        assert_eq!(word, Word::Given);
        let Start::Primary { because: Because::Allowed(word), .. } = place.check().await.unwrap() else {
            panic!("nobody allowed it");
        };
        assert_eq!(word.why, "b is lost");
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::NotFound);
        // Another day, another boot.
        let old = StartAnyway { since: Timestamp::now() - WORD * 2, ..word };
        fs::write(place.file(WORD_FILE), claim::write(&old)).unwrap();
        assert_eq!(place.check().await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
