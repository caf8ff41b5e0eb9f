//! The copy of pgherd that PostgreSQL's commands and the work on a node's files call.
//!
//! Copies are kept by their content, `LIB/HASH/pgherd`, and never replaced: a command that runs goes on with the build that it began with,
//! and rebuilding or deleting the program that ran `apply` changes nothing. `LIB/pgherd` is a link to the one in use. When a copy may go is
//! the business of `ops::builds`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::engine::journal::hex;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, FileKind, Host, HostError, RunAs, Stdin};
use crate::topology::places::Places;

/// How many digits of its hash name a build.
const DIGITS: usize = 16;
/// How long the program may take on its way to a host: 25 MB at a tenth of a Mbit/s. A cut way is noticed by ssh.
pub const SEND: Duration = Duration::from_secs(3600);

/// The program that is installed: the one that runs.
#[derive(Debug, Clone)]
pub struct Build {
    source: PathBuf,
    version: String,
    hash: Arc<OnceLock<String>>,
}

impl Build {
    /// Returns the program of this process. It stays the same when its file is replaced or removed while it runs.
    pub fn own() -> Self {
        // The link in /proc leads to the file that was started, also when its name is gone; `self` would be the one that copies.
        let source = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
        Self::of(source, env!("PGHERD_VERSION"))
    }

    /// Returns a program file that calls itself `version`.
    pub fn of(source: PathBuf, version: &str) -> Self {
        Self { source, version: version.to_owned(), hash: Arc::default() }
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns what tells this build from every other: the first digits of the BLAKE3 hash of its file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn hash(&self) -> Result<&str> {
        if let Some(known) = self.hash.get() {
            return Ok(known);
        }
        let mut hasher = blake3::Hasher::new();
        std::fs::File::open(&self.source)
            .and_then(|mut file| std::io::copy(&mut file, &mut hasher))
            .map_err(|error| Error::failed("could not read the program of pgherd itself").source(error))?;
        let mut digits = hasher.finalize().to_hex().to_string();
        digits.truncate(DIGITS);
        Ok(self.hash.get_or_init(|| digits))
    }
}

/// What the link `LIB/pgherd` of a host leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Installed {
    /// There is no link.
    Missing,
    /// The link and the copy that it names are there.
    Build { hash: String },
    /// The link is there and leads to nothing of ours.
    Other { target: String },
    /// Something that is not a link has its place.
    Foreign,
}

/// Looks where the link of a host leads.
///
/// # Errors
/// When the host cannot tell.
pub async fn look(host: &dyn Host, places: &Places) -> Result<Installed> {
    let link = places.program();
    let could_not =
        |error: HostError| Error::failed(format!("could not look at {}", link.display())).source(error);
    match host.stat(&link).await.map_err(could_not)?.map(|stat| stat.kind) {
        None => return Ok(Installed::Missing),
        Some(FileKind::Link) => {}
        Some(FileKind::File | FileKind::Directory | FileKind::Other) => return Ok(Installed::Foreign),
    }
    let readlink = Command::new("readlink").args(["-n", "--", text(&link)?]).reads();
    let target = host.run(&readlink).await.map_err(could_not)?.text();
    let hash = target.strip_suffix("/pgherd").filter(|hash| is_hash(hash));
    let Some(hash) = hash else { return Ok(Installed::Other { target }) };
    match host.stat(&places.copy(hash)).await.map_err(could_not)? {
        Some(copy) if copy.kind == FileKind::File => Ok(Installed::Build { hash: hash.to_owned() }),
        Some(_) | None => Ok(Installed::Other { target }),
    }
}

/// Tells whether a word has the form of the hash that names a build.
pub fn is_hash(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Copies a build to a host, unless it is there, and returns where it is. Everybody may run it, only the caller may change it.
///
/// # Errors
/// When the host cannot, or the os-user cannot run the copy.
pub async fn ensure_copy(host: &dyn Host, places: &Places, build: &Build) -> Result<PathBuf> {
    let copy = places.copy(build.hash()?);
    let there = host.stat(&copy).await.map_err(|error| could_not_install(places, error))?;
    if there.is_none() {
        write_copy(host, places, build, &copy).await?;
    }
    let run = Command::new(&copy).arg("--version").reads();
    let version = host.run(&run).await.map_err(|error| cannot_run(host, &copy, error))?.text();
    let expected = format!("pgherd {}", build.version);
    if version.trim_end() != expected {
        return Err(Error::failed(format!("{} is not pgherd {}", copy.display(), build.version))
            .detail(format!("It calls itself {:?}.", version.trim_end()))
            .hint("Remove it, then run the same again."));
    }
    Ok(copy)
}

async fn write_copy(host: &dyn Host, places: &Places, build: &Build, copy: &Path) -> Result<()> {
    let run = async |program: &str, args: &[&str]| {
        let command = Command::new(program).args(args.iter().copied()).user(RunAs::Caller);
        host.run(&command).await.map_err(|error| could_not_install(places, error))
    };
    let folder = copy.parent().expect("a copy is in a folder of its own");
    for directory in [places.lib(), folder] {
        run("mkdir", &["-p", "-m", "0755", "--", text(directory)?]).await?;
    }
    let template = folder.join(".pgherd.pgherd-XXXXXXXX");
    let made = run("mktemp", &["--", text(&template)?]).await?.text();
    let temporary = made.trim_end_matches('\n');
    let finished = async {
        if host.tunnel().is_none() {
            let source = text(&build.source)?;
            run("cp", &["--", source, temporary]).await?;
            // A disk that lies, or a program that was replaced while it was copied, would otherwise have the name of another.
            run("cmp", &["--", source, temporary]).await?;
        } else {
            send(host, places, build, temporary).await?;
        }
        run("chmod", &["0755", "--", temporary]).await?;
        run("sync", &["--", temporary]).await?;
        run("mv", &["-f", "-T", "--", temporary, text(copy)?]).await?;
        run("sync", &["--", text(folder)?, text(places.lib())?]).await.map(drop)
    };
    let ended = finished.await;
    if ended.is_err() {
        // The first error is the one to tell; a temporary file that stays behind is only litter.
        run("rm", &["-f", "--", temporary]).await.ok();
    }
    ended
}

/// Sends the program to another machine, and compares what arrived there with what it should be.
async fn send(host: &dyn Host, places: &Places, build: &Build, temporary: &str) -> Result<()> {
    let bytes = std::fs::read(&build.source)
        .map_err(|error| Error::failed("could not read the program of pgherd itself").source(error))?;
    let mut read = blake3::hash(&bytes).to_hex().to_string();
    read.truncate(DIGITS);
    if read != build.hash()? {
        return Err(Error::failed("the program of pgherd itself has changed while it runs")
            .hint("Run the same again."));
    }
    let expected: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let of = format!("of={temporary}");
    let receive = Command::new("dd")
        .args([of.as_str(), "bs=64K", "iflag=fullblock", "conv=notrunc,nocreat", "status=none"])
        .stdin(Stdin::Bytes(bytes))
        .user(RunAs::Caller)
        .timeout(SEND);
    host.run(&receive).await.map_err(|error| could_not_install(places, error))?;
    let sum = Command::new("sha256sum").args(["-b", "--", temporary]).user(RunAs::Caller).reads();
    let said = host.run(&sum).await.map_err(|error| could_not_install(places, error))?.text();
    if said.trim_start_matches('\\').split_whitespace().next() == Some(expected.as_str()) {
        return Ok(());
    }
    Err(Error::failed(format!("the copy of pgherd on host {} is not what was sent", host.name()))
        .detail(format!(
            "Its SHA-256 is {}, expected {expected}.",
            said.split_whitespace().next().unwrap_or("unknown")
        ))
        .hint("Run the same again; if it happens twice, do not trust that machine's memory or disk."))
}

/// Marks the copy that a link led to as used until now: of those that are not in use it is the one that stays.
///
/// # Errors
/// When the host cannot.
pub async fn mark_used(host: &dyn Host, places: &Places, target: &str) -> Result<()> {
    let Some(hash) = target.strip_suffix("/pgherd").filter(|hash| is_hash(hash)) else { return Ok(()) };
    let directory = places.lib().join(hash);
    let touch = Command::new("touch").args(["-c", "--", text(&directory)?]).user(RunAs::Caller);
    host.run(&touch).await.map(drop).map_err(|error| could_not_install(places, error))
}

/// Has the link lead to a copy, in one moment.
///
/// # Errors
/// When the host cannot.
pub async fn link(host: &dyn Host, places: &Places, target: &str) -> Result<()> {
    let run = async |program: &str, args: &[&str]| {
        let command = Command::new(program).args(args.iter().copied()).user(RunAs::Caller);
        host.run(&command).await.map_err(|error| could_not_install(places, error))
    };
    // A name of its own each time: two that swap it at once, as for two names of one host, each put a whole link in its place.
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    let own = format!(".pgherd.{}-{}", target.replace('/', "-"), hex(&random));
    let beside = places.lib().join(own);
    run("ln", &["-s", "-f", "-T", "--", target, text(&beside)?]).await?;
    run("mv", &["-f", "-T", "--", text(&beside)?, text(&places.program())?]).await?;
    run("sync", &["--", text(places.lib())?]).await.map(drop)
}

/// Removes the link; no error if there is none.
///
/// # Errors
/// When the host cannot.
pub async fn unlink(host: &dyn Host, places: &Places) -> Result<()> {
    let remove = Command::new("rm").args(["-f", "--", text(&places.program())?]).user(RunAs::Caller);
    host.run(&remove).await.map(drop).map_err(|error| could_not_install(places, error))
}

/// Returns where a link leads that has `hash` in use.
pub fn target(hash: &str) -> String {
    format!("{hash}/pgherd")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::usage(format!("the path {} is not UTF-8", path.display())))
}

fn could_not_install(places: &Places, error: HostError) -> Error {
    let failed = Error::failed(format!("could not install pgherd in {}", places.lib().display()));
    let failed = match &error {
        HostError::Exited { stderr, .. } => failed.detail(stderr.clone()),
        HostError::NotStarted { why, .. } | HostError::Lost { why, .. } | HostError::File { why, .. } => {
            failed.detail(format!("{why}."))
        }
    };
    failed
        .hint("PostgreSQL's commands call it there. Make room or give the right to write, or set PGHERD_LIB_DIR to another directory.")
        .source(error)
}

fn cannot_run(host: &dyn Host, copy: &Path, error: HostError) -> Error {
    let why = match &error {
        HostError::Exited { stderr, status, .. } if stderr.is_empty() => {
            format!("It ended with status {status}.")
        }
        HostError::Exited { stderr, .. } => stderr.clone(),
        HostError::NotStarted { why, .. } | HostError::Lost { why, .. } | HostError::File { why, .. } => {
            format!("{why}.")
        }
    };
    Error::new(ErrorKind::Failed, format!("{} cannot run {}", host.os_user(), copy.display()))
        .detail(why)
        .hint("Set PGHERD_LIB_DIR to a directory that this user may enter, on a file system without noexec.")
        .source(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::host::local::LocalHost;

    /// A directory that everybody may enter, and places whose programs are in it.
    fn place() -> (tempfile::TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| Some(directory.path().join(name).display().to_string());
        let places = Places::decide(true, |variable| match variable {
            "PGHERD_LIB_DIR" => at("the lib"),
            "PGHERD_CONFIG_DIR" => at("config"),
            "PGHERD_STATE_DIR" => at("state"),
            _ => None,
        })
        .unwrap();
        (directory, places)
    }

    fn script(directory: &Path, name: &str, says: &str) -> Build {
        let file = directory.join(name);
        std::fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        Build::of(file, "1.2.3")
    }

    #[tokio::test]
    async fn a_build_is_copied_once_and_stays_when_its_source_is_gone() {
        let (directory, places) = place();
        let host = LocalHost::new("here", None).unwrap();
        let build = script(directory.path(), "one", "pgherd 1.2.3");
        let copy = ensure_copy(&host, &places, &build).await.unwrap();
        assert_eq!(copy, places.lib().join(build.hash().unwrap()).join("pgherd"));
        let made = std::fs::metadata(&copy).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, 0o755);
        std::fs::remove_file(directory.path().join("one")).unwrap();
        assert_eq!(ensure_copy(&host, &places, &build).await.unwrap(), copy);
        let kept = std::fs::metadata(&copy).unwrap();
        assert_eq!(made.modified().unwrap(), kept.modified().unwrap());
        let names: Vec<_> = std::fs::read_dir(copy.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[tokio::test]
    async fn the_link_moves_from_build_to_build_and_the_old_one_stays() {
        let (directory, places) = place();
        let host = LocalHost::new("here", None).unwrap();
        assert_eq!(look(&host, &places).await.unwrap(), Installed::Missing);
        let mut hashes = Vec::new();
        for name in ["one", "two"] {
            let build = script(directory.path(), name, &format!("pgherd 1.2.3' # '{name}"));
            let hash = build.hash().unwrap().to_owned();
            ensure_copy(&host, &places, &build).await.unwrap();
            link(&host, &places, &target(&hash)).await.unwrap();
            assert_eq!(look(&host, &places).await.unwrap(), Installed::Build { hash: hash.clone() });
            hashes.push(hash);
        }
        assert_ne!(hashes[0], hashes[1]);
        assert!(places.copy(&hashes[0]).is_file());
        unlink(&host, &places).await.unwrap();
        assert_eq!(look(&host, &places).await.unwrap(), Installed::Missing);
    }

    #[tokio::test]
    async fn a_link_to_nothing_and_a_file_in_its_place_are_told() {
        let (_directory, places) = place();
        let host = LocalHost::new("here", None).unwrap();
        std::fs::create_dir(places.lib()).unwrap();
        for target in ["0123456789abcdef/pgherd", "/usr/bin/true"] {
            link(&host, &places, target).await.unwrap();
            assert_eq!(look(&host, &places).await.unwrap(), Installed::Other { target: target.to_owned() });
        }
        unlink(&host, &places).await.unwrap();
        std::fs::write(places.program(), "mine").unwrap();
        assert_eq!(look(&host, &places).await.unwrap(), Installed::Foreign);
    }

    #[tokio::test]
    async fn a_copy_that_the_os_user_cannot_run_is_refused() {
        let (directory, places) = place();
        let host = LocalHost::new("here", None).unwrap();
        let build = script(directory.path(), "other", "pgherd 9.9.9");
        let error = ensure_copy(&host, &places, &build).await.unwrap_err();
        assert_eq!(error.detail_text(), Some("It calls itself \"pgherd 9.9.9\"."));
        let build = script(directory.path(), "failing", "pgherd 1.2.3'; exit 3; echo '");
        let error = ensure_copy(&host, &places, &build).await.unwrap_err();
        assert_eq!(error.detail_text(), Some("It ended with status 3."));
    }
}
