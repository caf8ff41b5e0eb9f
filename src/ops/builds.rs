//! The copies of pgherd that stand on a host, and who still needs one of them or the link to the one in use.
//!
//! Removes only what has our layout, `LIB/HASH/pgherd`; a pgherd that stands anywhere else is its owner's. What cannot be told counts as
//! needed by the caller: nothing here guesses. A process that runs a copy would go on without its file, but whoever started it may start it
//! again by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use crate::engine::record::{Header, PlannedStage};
use crate::engine::store::{Listed, Store};
use crate::error::{Error, Result};
use crate::host::{Command, Host, HostError, LineSink, RunAs};
use crate::ops::binary::{self, Installed};
use crate::topology::declared;
use crate::topology::places::Places;
use crate::units::ByteCount;

/// What a copy is called while it is written (`binary::ensure_copy`), and a link while it is made.
const UNFINISHED: &str = ".pgherd.";
/// A copy that is not finished after so long is nobody's any more: sending one ends within [`binary::SEND`].
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// The files of a data directory that name a command: pgherd writes two of them, and ALTER SYSTEM the third.
const SETTINGS: [&str; 3] = ["pgherd.conf", "pgherd.node.conf", "postgresql.auto.conf"];
/// What is said of a process that has ended (ENOENT and ESRCH of strerror(3)).
const ENDED: [&str; 2] = ["No such file or directory", "No such process"];

/// A copy of pgherd on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub hash: String,
    pub size: ByteCount,
    /// When it was put there or, later, was replaced as the one in use.
    pub used: Timestamp,
    /// Whether the program is there, and not only what is left of writing or removing it.
    pub is_whole: bool,
}

/// Who needs what of the copies on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// By hash; each in words.
    pub builds: BTreeMap<String, BTreeSet<String>>,
    /// Of the link.
    pub link: BTreeSet<String>,
    /// Those of `builds` that are processes: they may be gone in a moment.
    passing: BTreeSet<String>,
}

impl Needed {
    /// Returns everybody who needs anything.
    pub fn by(&self) -> BTreeSet<String> {
        self.builds.values().flatten().chain(&self.link).cloned().collect()
    }

    /// Returns everybody but processes.
    pub fn lasting(&self) -> BTreeSet<String> {
        self.by().difference(&self.passing).cloned().collect()
    }
}

/// Lists the copies on a host, by their hashes. A directory that holds anything else is not ours and is left out.
///
/// # Errors
/// When the host cannot tell.
pub async fn copies(host: &dyn Host, places: &Places) -> Result<Vec<Copy>> {
    let lib = format!("{}/", text(places.lib())?);
    let find = Command::new("find")
        .args([
            &lib,
            "-ignore_readdir_race",
            "-mindepth",
            "1",
            "-maxdepth",
            "2",
            "-printf",
            "%P\\0%y\\0%s\\0%T@\\0",
        ])
        .user(RunAs::Caller)
        .reads();
    match host.run(&find).await {
        Ok(output) => Ok(parse_copies(&output.text())),
        Err(HostError::Exited { .. }) if host.stat(places.lib()).await?.is_none() => Ok(Vec::new()),
        Err(error) => Err(could_not_look(places, error)),
    }
}

fn parse_copies(found: &str) -> Vec<Copy> {
    let words: Vec<&str> = found.split('\0').collect();
    let mut copies: BTreeMap<&str, Copy> = BTreeMap::new();
    let mut foreign: BTreeSet<&str> = BTreeSet::new();
    for entry in words.chunks_exact(4) {
        let &[path, kind, size, changed] = entry else { continue };
        match path.split_once('/') {
            None if kind == "d" && binary::is_hash(path) => {
                let seconds =
                    changed.split('.').next().and_then(|text| text.parse().ok()).unwrap_or_default();
                let used = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
                copies
                    .insert(path, Copy { hash: path.to_owned(), size: ByteCount(0), used, is_whole: false });
            }
            None => {}
            Some((hash, name)) => match copies.get_mut(hash) {
                Some(copy) if kind == "f" && (name == "pgherd" || name.starts_with(UNFINISHED)) => {
                    copy.size.0 += size.parse::<u64>().unwrap_or_default();
                    copy.is_whole |= name == "pgherd";
                }
                Some(_) | None => {
                    foreign.insert(hash);
                }
            },
        }
    }
    copies.into_values().filter(|copy| !foreign.contains(copy.hash.as_str())).collect()
}

/// Chooses the copies that may go when `wanted` is in use and nobody needs them: all but `wanted` and the one before it.
///
/// The one before stays, since not every station has the new build at the same moment: one that still has the old build would send it
/// anew for each backup, and the next `apply` would remove it again.
pub fn spare<'a>(copies: &'a [Copy], installed: &Installed, wanted: &str, now: Timestamp) -> Vec<&'a Copy> {
    let others = || copies.iter().filter(|copy| copy.hash != wanted);
    let before = match installed {
        Installed::Build { hash } if hash != wanted => Some(hash.as_str()),
        Installed::Build { .. } | Installed::Missing | Installed::Other { .. } | Installed::Foreign => {
            others()
                .filter(|copy| copy.is_whole)
                .max_by_key(|copy| (copy.used, &copy.hash))
                .map(|copy| copy.hash.as_str())
        }
    };
    let is_abandoned =
        |copy: &&Copy| copy.is_whole || now.duration_since(copy.used).unsigned_abs() > ABANDONED;
    others().filter(|copy| Some(copy.hash.as_str()) != before).filter(is_abandoned).collect()
}

/// Finds who needs the copies on a host: processes, servers that run and their commands, operations of this station that are not
/// finished. `own` is the operation that asks; the servers in `without` do not count.
///
/// # Errors
/// When the host, or a journal, cannot tell: then nothing may be removed.
pub async fn needed(
    host: &dyn Host,
    places: &Places,
    store: &Store,
    own: Option<&str>,
    without: &[PathBuf],
) -> Result<Needed> {
    let mut needed = Needed::default();
    let running = processes(host, places).await?;
    for (pid, hash) in running.programs {
        let who = format!("process {pid}");
        needed.builds.entry(hash).or_default().insert(who.clone());
        needed.passing.insert(who);
    }
    let without = resolved(host, without).await?;
    let servers: Vec<PathBuf> = running.servers.into_iter().filter(|path| !without.contains(path)).collect();
    let calls = link_in_settings(places);
    for read in join_all(servers.iter().map(|path| settings(host, path))).await {
        let (directory, files) = read?;
        let who = format!("the server in {}", directory.display());
        for file in files {
            for hash in named_builds(&file) {
                needed.builds.entry(hash).or_default().insert(who.clone());
            }
            if file.contains(&calls) {
                needed.link.insert(who.clone());
            }
        }
    }
    for header in unfinished(store, own)? {
        let who = format!("operation {} of {}", header.operation, header.cluster);
        for hash in installs(&header.stages) {
            needed.builds.entry(hash).or_default().insert(who.clone());
        }
        if header.input.to_string().contains(&format!("\"{}\"", host.name())) {
            needed.link.insert(who);
        }
    }
    Ok(needed)
}

/// Removes one copy; no error if it is gone.
///
/// # Errors
/// When the host cannot.
pub async fn remove(host: &dyn Host, places: &Places, hash: &str) -> Result<()> {
    let directory = places.lib().join(hash);
    // As the caller, to whom the directory belongs: the os-user may not even have to see it.
    for name in list(host, places, &directory).await? {
        if name == "pgherd" || name.starts_with(UNFINISHED) {
            run(host, places, "rm", &["-f", "--", text(&directory.join(name))?]).await?;
        }
    }
    remove_if_empty(host, places, &directory).await?;
    run(host, places, "sync", &["--", text(places.lib())?]).await
}

/// Removes the link, every copy, and the directories that are empty then.
///
/// # Errors
/// When the host cannot. A directory that it may not remove stays.
pub async fn remove_all(host: &dyn Host, places: &Places) -> Result<()> {
    if is_ours(&binary::look(host, places).await?) {
        binary::unlink(host, places).await?;
    }
    for copy in copies(host, places).await? {
        remove(host, places, &copy.hash).await?;
    }
    for name in list(host, places, places.lib()).await? {
        // A link that was killed before it had its name (`binary::link`).
        if name.starts_with(UNFINISHED) {
            run(host, places, "rm", &["-f", "--", text(&places.lib().join(name))?]).await?;
        }
    }
    let state = places.state();
    let poolers = places.poolers();
    for directory in [
        places.lib(),
        &places.nodes(),
        places.config(),
        &state.join("run"),
        &state.join("log"),
        &poolers,
        state,
    ] {
        remove_if_empty(host, places, directory).await?;
    }
    Ok(())
}

/// Tells whether the link is one that pgherd made: it leads, or led, to a copy. Where somebody else's leads is their business.
pub fn is_ours(installed: &Installed) -> bool {
    match installed {
        Installed::Build { .. } => true,
        Installed::Other { target } => target.strip_suffix("/pgherd").is_some_and(binary::is_hash),
        Installed::Missing | Installed::Foreign => false,
    }
}

/// Removes a directory if it is empty. It may belong to the caller or to the os-user, or to neither, as where root made it for an operator: an
/// empty directory is not worth a failure.
async fn remove_if_empty(host: &dyn Host, places: &Places, directory: &Path) -> Result<()> {
    let users = [RunAs::Caller, RunAs::OsUser];
    let others = if host.caller() == host.os_user() { 1 } else { 2 };
    for user in users.into_iter().take(others) {
        let remove =
            Command::new("rmdir").args(["--ignore-fail-on-non-empty", "--", text(directory)?]).user(user);
        match host.run(&remove).await {
            Ok(_) => return Ok(()),
            Err(HostError::Exited { stderr, .. }) => tracing::debug!(%stderr, "a directory stays"),
            Err(error) => return Err(could_not_remove(places, error)),
        }
    }
    Ok(())
}

async fn list(host: &dyn Host, places: &Places, directory: &Path) -> Result<Vec<String>> {
    let find = Command::new("find")
        .args([text(directory)?, "-ignore_readdir_race", "-mindepth", "1", "-maxdepth", "1"])
        .args(["!", "-type", "d", "-printf", "%f\\0"])
        .user(RunAs::Caller)
        .reads();
    match host.run(&find).await {
        Ok(output) => {
            let found = output.text();
            Ok(found.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
        }
        Err(HostError::Exited { .. }) if host.stat(directory).await?.is_none() => Ok(Vec::new()),
        Err(error) => Err(could_not_look(places, error)),
    }
}

async fn run(host: &dyn Host, places: &Places, program: &str, args: &[&str]) -> Result<()> {
    let command = Command::new(program).args(args.iter().copied()).user(RunAs::Caller);
    host.run(&command).await.map(drop).map_err(|error| could_not_remove(places, error))
}

/// What runs on a host, as far as the caller and the os-user can see it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Processes {
    /// Process number and hash of each that is a copy of ours.
    programs: BTreeSet<(u32, String)>,
    /// Where PostgreSQL's processes are: their data directories, with every link followed.
    servers: BTreeSet<PathBuf>,
}

async fn processes(host: &dyn Host, places: &Places) -> Result<Processes> {
    // The links in /proc name what they lead to with every link followed.
    let canonical = resolved(host, &[places.lib().to_owned()]).await?;
    let libs: Vec<&Path> = canonical.iter().map(PathBuf::as_path).chain([places.lib()]).collect();
    let mut seen = Processes::default();
    let users = [RunAs::Caller, RunAs::OsUser];
    // Root sees everything; anybody else what is his own.
    let looks = if matches!(host.caller(), "root") || host.caller() == host.os_user() { 1 } else { 2 };
    for user in users.into_iter().take(looks) {
        let found = look_at_processes(host, places, user).await?;
        seen.programs.extend(programs(&found, &libs));
        seen.servers.extend(servers(&found));
    }
    Ok(seen)
}

/// Returns a line for each link that was seen. find fails when a process ends while it looks (also with `-ignore_readdir_race`), and has said by
/// then what else it saw; any other trouble is one.
async fn look_at_processes(host: &dyn Host, places: &Places, user: RunAs) -> Result<String> {
    // What belongs to others is not readable, and left out: find would fail at it.
    let find = Command::new("find")
        .args(["/proc", "-ignore_readdir_race", "-mindepth", "2", "-maxdepth", "2", "("])
        .args(["-name", "exe", "-o", "-name", "cwd", ")", "-readable", "-printf", "%P %l\\n"])
        .user(user)
        .reads();
    let said: Arc<Mutex<(String, bool)>> = Arc::default();
    let hears = Arc::clone(&said);
    let lines: LineSink = Arc::new(move |is_stderr, line| {
        let mut said = hears.lock().unwrap_or_else(PoisonError::into_inner);
        if is_stderr {
            said.1 |= !ENDED.iter().any(|words| line.ends_with(words));
        } else {
            said.0.push_str(line);
            said.0.push('\n');
        }
    });
    let ended = host.stream(&find, lines).await;
    let (found, trouble) = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
    match ended {
        Ok(_) => Ok(found),
        Err(HostError::Exited { status: 1, .. }) if !trouble => Ok(found),
        Err(error) => Err(could_not_look(places, error)),
    }
}

/// Yields process number, `exe` or `cwd`, and where it leads. A file that was removed is called as it was.
fn links(found: &str) -> impl Iterator<Item = (u32, &str, &Path)> {
    found.lines().filter_map(|line| {
        let (path, leads) = line.split_once(' ')?;
        let (pid, link) = path.split_once('/')?;
        let leads = leads.strip_suffix(" (deleted)").unwrap_or(leads);
        Some((pid.parse().ok()?, link, Path::new(leads)))
    })
}

fn programs(found: &str, libs: &[&Path]) -> BTreeSet<(u32, String)> {
    let ours = |path: &Path| {
        let below = libs.iter().find_map(|lib| path.strip_prefix(lib).ok())?;
        let hash = below.to_str()?.strip_suffix("/pgherd")?;
        binary::is_hash(hash).then(|| hash.to_owned())
    };
    links(found)
        .filter(|(_, link, _)| *link == "exe")
        .filter_map(|(pid, _, path)| Some((pid, ours(path)?)))
        .collect()
}

/// Every process of a server has its data directory as its working directory (`ChangeToDataDir` in `miscinit.c`).
fn servers(found: &str) -> BTreeSet<PathBuf> {
    let postgres: BTreeSet<u32> = links(found)
        .filter(|(_, link, path)| *link == "exe" && path.file_name().is_some_and(|name| name == "postgres"))
        .map(|(pid, ..)| pid)
        .collect();
    links(found)
        .filter(|(pid, link, _)| *link == "cwd" && postgres.contains(pid))
        .map(|(_, _, path)| path.to_owned())
        .collect()
}

async fn settings<'a>(host: &dyn Host, directory: &'a Path) -> Result<(&'a Path, Vec<String>)> {
    let mut found = Vec::new();
    for name in SETTINGS {
        let file = directory.join(name);
        let read = match host.read(&file).await {
            // Somebody who ends what is at work in that directory may have ended this look.
            Err(HostError::Exited { .. } | HostError::File { .. }) => host.read(&file).await,
            read => read,
        };
        let bytes = read.map_err(|error| {
            Error::failed(format!("could not see what the server in {} calls", directory.display()))
                .source(error)
        })?;
        found.extend(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok((directory, found))
}

/// Returns every hash of a `HASH/pgherd` in a text.
fn named_builds(text: &str) -> BTreeSet<String> {
    let parts: Vec<&str> = text.split('/').collect();
    parts
        .windows(2)
        .filter(|pair| binary::is_hash(pair[0]) && pair[1].starts_with("pgherd"))
        .map(|pair| pair[0].to_owned())
        .collect()
}

/// Returns the beginning of a command that goes through the link, as it stands in a settings file.
fn link_in_settings(places: &Places) -> String {
    format!("{} wal ", declared::in_settings(&places.program()))
}

/// Returns what the operations of this station are that are not finished.
fn unfinished(store: &Store, own: Option<&str>) -> Result<Vec<Header>> {
    let mut open = Vec::new();
    for listed in store.list()? {
        match listed {
            Listed::Readable(view) if view.is_finished() || Some(view.id.as_str()) == own => {}
            Listed::Readable(view) => open.push(store.read(&view.id)?.header),
            Listed::Damaged { error, .. } => return Err(error),
        }
    }
    Ok(open)
}

/// Returns the builds that an operation is to install, or to go back to.
fn installs(stages: &[PlannedStage]) -> BTreeSet<String> {
    let steps = stages.iter().flat_map(|stage| &stage.steps);
    steps
        .filter_map(|planned| planned.step.get("install"))
        .flat_map(|install| [install.get("hash"), install.get("before")])
        .filter_map(|value| value?.as_str())
        .map(|text| text.strip_suffix("/pgherd").unwrap_or(text))
        .filter(|hash| binary::is_hash(hash))
        .map(str::to_owned)
        .collect()
}

async fn resolved(host: &dyn Host, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let words = paths.iter().map(|path| path.display().to_string());
    let readlink = Command::new("readlink").args(["-z", "-m", "--"]).args(words).user(RunAs::Caller).reads();
    let output = host.run(&readlink).await?.text();
    Ok(output.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::usage(format!("the path {} is not UTF-8", path.display())))
}

fn could_not_look(places: &Places, error: HostError) -> Error {
    Error::failed(format!("could not see who uses pgherd in {}", places.lib().display())).source(error)
}

fn could_not_remove(places: &Places, error: HostError) -> Error {
    let failed = Error::failed(format!("could not remove pgherd from {}", places.lib().display()));
    match &error {
        HostError::Exited { stderr, .. } => failed.detail(stderr.clone()),
        HostError::NotStarted { why, .. } | HostError::Lost { why, .. } | HostError::File { why, .. } => {
            failed.detail(format!("{why}."))
        }
    }
    .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::record::PlannedStep;
    use crate::engine::step::Reversal;
    use crate::host::local::LocalHost;

    const NEW: &str = "0000000000000003";
    const BEFORE: &str = "0000000000000002";
    const OLD: &str = "0000000000000001";

    fn copy(hash: &str, used: i64) -> Copy {
        let used = Timestamp::from_second(used).unwrap();
        Copy { hash: hash.to_owned(), size: ByteCount(1), used, is_whole: true }
    }

    fn names<'a>(copies: &[&'a Copy]) -> Vec<&'a str> {
        copies.iter().map(|copy| copy.hash.as_str()).collect()
    }

    #[test]
    fn the_one_in_use_and_the_one_before_it_stay() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let built = |hash: &str| Installed::Build { hash: hash.to_owned() };
        let copies = [copy(OLD, 10), copy(BEFORE, 20), copy(NEW, 30)];
        assert_eq!(names(&spare(&copies, &built(NEW), NEW, now)), [OLD]);
        // The upgrade itself: what the link leads to now is the one before, however old it is.
        assert_eq!(names(&spare(&copies[..2], &built(BEFORE), NEW, now)), [OLD]);
        assert_eq!(names(&spare(&copies, &built(OLD), NEW, now)), [BEFORE]);
        // Back to the one before.
        assert_eq!(names(&spare(&copies, &built(NEW), BEFORE, now)), [OLD]);
        assert!(spare(&copies[1..], &built(NEW), NEW, now).is_empty());
        assert!(spare(&[], &Installed::Missing, NEW, now).is_empty());
        assert_eq!(names(&spare(&copies[..2], &Installed::Missing, NEW, now)), [OLD]);
    }

    #[test]
    fn what_is_being_written_stays_for_a_day() {
        let half = Copy { is_whole: false, ..copy(OLD, 0) };
        let copies = [half, copy(BEFORE, 20), copy(NEW, 30)];
        let built = Installed::Build { hash: NEW.to_owned() };
        let at = |hours: i64| Timestamp::from_second(hours * 3600).unwrap();
        assert!(spare(&copies, &built, NEW, at(23)).is_empty());
        assert_eq!(names(&spare(&copies, &built, NEW, at(25))), [OLD]);
    }

    #[test]
    fn only_what_has_our_layout_is_a_copy() {
        let found = format!(
            "pgherd\0l\023\017000.5\0{NEW}\0d\04096\017000.9\0{NEW}/pgherd\0f\0100\01\0{NEW}/.pgherd.pgherd-x\0f\07\01\0\
             {BEFORE}\0d\04096\05\0{BEFORE}/pgherd\0f\0100\01\0{BEFORE}/notes.txt\0f\01\01\0\
             {OLD}\0d\04096\06.25\0backup\0d\04096\06\0backup/pgherd\0f\09\01\0"
        );
        let copies = parse_copies(&found);
        let shown: Vec<_> =
            copies.iter().map(|copy| (copy.hash.as_str(), copy.size.0, copy.is_whole)).collect();
        assert_eq!(shown, [(OLD, 0, false), (NEW, 107, true)]);
        assert_eq!(copies[1].used, Timestamp::from_second(17000).unwrap());
    }

    #[test]
    fn processes_are_known_by_what_they_run_and_servers_by_where_they_are() {
        let found = format!(
            "7/exe /usr/bin/bash\n7/cwd /root\n\
             8/exe /opt/lib/{OLD}/pgherd (deleted)\n8/cwd /srv/a\n\
             9/exe /usr/lib/postgresql/15/bin/postgres\n9/cwd /srv/a\n\
             10/exe /usr/lib/postgresql/15/bin/postgres (deleted)\n10/cwd /srv/it's b\n\
             11/exe /elsewhere/{NEW}/pgherd\n11/cwd /\n"
        );
        let libs = [Path::new("/opt/lib")];
        assert_eq!(programs(&found, &libs), BTreeSet::from([(8, OLD.to_owned())]));
        assert_eq!(servers(&found), BTreeSet::from(["/srv/a".into(), "/srv/it's b".into()]));
    }

    #[test]
    fn a_settings_file_names_builds_and_the_link() {
        let file =
            format!("restore_command = '/l/{OLD}/pgherd wal fetch --profile /p/{NEW}/profile.json \"%f\"'\n");
        assert_eq!(named_builds(&file), BTreeSet::from([OLD.to_owned()]));
        assert!(named_builds("archive_command = '/usr/local/lib/pgherd/pgherd wal push'").is_empty());
    }

    fn place() -> (tempfile::TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(directory.path().join(name).display().to_string());
        let places = Places::decide(true, |variable| match variable {
            "PGHERD_LIB_DIR" => at("it's 100% mine"),
            "PGHERD_CONFIG_DIR" => at("config"),
            "PGHERD_STATE_DIR" => at("state"),
            _ => None,
        })
        .unwrap();
        (directory, places)
    }

    #[test]
    fn the_link_is_found_where_the_settings_are_written() {
        let (_directory, places) = place();
        let quoted = crate::pg::guc::quote_value(&format!("{} wal push", shell(&places.program())));
        assert!(quoted.contains(&link_in_settings(&places)), "{quoted}");
    }

    fn shell(path: &Path) -> String {
        format!("'{}'", path.display().to_string().replace('%', "%%").replace('\'', "'\\''"))
    }

    #[tokio::test]
    async fn a_copy_that_a_process_runs_is_needed_and_what_is_not_ours_stays() {
        let (_directory, places) = place();
        let host = LocalHost::own("here");
        let store = Store::new(places.state());
        assert!(copies(&host, &places).await.unwrap().is_empty());
        for hash in [OLD, NEW] {
            std::fs::create_dir_all(places.lib().join(hash)).unwrap();
            std::fs::copy("/bin/sleep", places.copy(hash)).unwrap();
        }
        std::fs::create_dir(places.lib().join("theirs")).unwrap();
        binary::link(&host, &places, &binary::target(NEW)).await.unwrap();
        let needed_now = async || needed(&host, &places, &store, None, &[]).await.unwrap();
        assert!(needed_now().await.builds.is_empty());

        let sleep = Command::new(places.copy(OLD)).arg("60").timeout(Duration::from_secs(60));
        let mut sleeping = std::pin::pin!(host.run(&sleep));
        let seen = async {
            loop {
                let found = needed_now().await;
                if !found.builds.is_empty() {
                    return found;
                }
            }
        };
        let found = tokio::select! {
            ended = &mut sleeping => panic!("{ended:?}"),
            found = seen => found,
        };
        assert_eq!(found.builds.keys().collect::<Vec<_>>(), [OLD]);
        assert!(found.builds[OLD].iter().all(|who| who.starts_with("process ")), "{found:?}");

        remove(&host, &places, OLD).await.unwrap();
        remove(&host, &places, OLD).await.unwrap();
        assert!(!places.lib().join(OLD).exists());
        // Without its file it is known all the same.
        assert_eq!(needed_now().await.builds.keys().collect::<Vec<_>>(), [OLD]);

        remove_all(&host, &places).await.unwrap();
        let left: Vec<_> =
            std::fs::read_dir(places.lib()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs"]);
        std::fs::remove_dir(places.lib().join("theirs")).unwrap();
        remove_all(&host, &places).await.unwrap();
        remove_all(&host, &places).await.unwrap();
        assert!(!places.lib().exists());
    }

    #[test]
    fn an_operation_that_is_not_finished_needs_what_it_installs_and_goes_back_to() {
        let step = serde_json::json!({
            "install": {"host": "db1", "version": "1", "hash": NEW, "before": format!("{OLD}/pgherd")}
        });
        let other = serde_json::json!({"prune": {"host": "db1", "builds": [BEFORE]}});
        let steps =
            [step, other].map(|step| PlannedStep { describe: String::new(), reversal: Reversal::Undo, step });
        let stages = [PlannedStage { steps: steps.into() }];
        assert_eq!(installs(&stages), BTreeSet::from([NEW.to_owned(), OLD.to_owned()]));
    }
}
