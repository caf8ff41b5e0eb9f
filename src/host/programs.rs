//! Where a host keeps PostgreSQL's and PgBouncer's programs, and which versions they are.
//!
//! Looks, and installs nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Command, FileKind, Host, HostError};
use crate::error::{Error, ErrorKind};
use crate::pg::version::PgVersion;

/// The programs of one PostgreSQL version on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// The directory that holds all of them.
    pub directory: PathBuf,
    pub version: PgVersion,
}

/// What pgherd calls; all of them must be there before anything is planned.
const NEEDED: [&str; 7] =
    ["postgres", "initdb", "pg_ctl", "pg_basebackup", "pg_controldata", "psql", "pg_rewind"];

impl Programs {
    /// Returns the path of one of the programs: `initdb`, `pg_ctl`, `pg_basebackup`, `pg_controldata`, `psql`, `pg_rewind`.
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }
}

/// Finds the programs of PostgreSQL `major`: in `bin_directory` alone if it is given, else in Debian's and PGDG's directories, in
/// /usr/local/pgsql/bin and on PATH.
///
/// # Errors
/// [`ErrorKind::NotFound`] says where it looked, what is there instead and what to install.
pub async fn find_postgres(
    host: &dyn Host,
    major: u32,
    bin_directory: Option<&Path>,
) -> Result<Programs, Error> {
    let mut expected = match bin_directory {
        Some(given) => vec![given.to_owned()],
        None => usual_directories(major).to_vec(),
    };
    let mut found = Vec::new();
    if let Some(programs) = complete(host, major, &expected, &mut found).await? {
        return Ok(programs);
    }
    if bin_directory.is_none() {
        // What is where it usually is costs no look at anything else.
        let mut path = search_path(host).await?;
        path.retain(|directory| !expected.contains(directory));
        if let Some(programs) = complete(host, major, &path, &mut found).await? {
            return Ok(programs);
        }
        expected.extend(path);
        for directory in other_directories(host).await?.iter().filter(|other| !expected.contains(other)) {
            if let Some(version) = postgres_version(host, directory).await? {
                found.push(format!("{version} in {}", directory.display()));
            }
        }
    }
    let looked: Vec<String> = expected.iter().map(|directory| directory.display().to_string()).collect();
    let instead = if found.is_empty() { "no PostgreSQL".to_owned() } else { found.join("; ") };
    Err(Error::new(ErrorKind::NotFound, format!("PostgreSQL {major} is not on host {}", host.name()))
        .detail(format!("Looked in {}; found {instead}.", looked.join(", ")))
        .hint(format!(
            "Install it (Debian: postgresql-{major}; PGDG rpm: postgresql{major}-server), or name its directory with \
             postgres.bin-directory, or declare a version that is there."
        )))
}

/// Returns the first of `directories` that holds everything that is needed of `major`, and adds what the ones before it hold to `found`.
async fn complete(
    host: &dyn Host,
    major: u32,
    directories: &[PathBuf],
    found: &mut Vec<String>,
) -> Result<Option<Programs>, Error> {
    for directory in directories {
        let Some(version) = postgres_version(host, directory).await? else {
            continue;
        };
        if version.major != major {
            found.push(format!("{version} in {}", directory.display()));
            continue;
        }
        let missing = missing_programs(host, directory).await?;
        if missing.is_empty() {
            return Ok(Some(Programs { directory: directory.clone(), version }));
        }
        found.push(format!("{version} in {} without {}", directory.display(), missing.join(", ")));
    }
    Ok(None)
}

fn usual_directories(major: u32) -> [PathBuf; 3] {
    [
        PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
        PathBuf::from(format!("/usr/pgsql-{major}/bin")),
        PathBuf::from("/usr/local/pgsql/bin"),
    ]
}

/// Returns the directories of all versions that packages have installed, of which an error should tell.
async fn other_directories(host: &dyn Host) -> Result<Vec<PathBuf>, Error> {
    let debian = Path::new("/usr/lib/postgresql");
    let rpm = Path::new("/usr");
    let versions = host.list(debian).await?.unwrap_or_default();
    let packages = host.list(rpm).await?.unwrap_or_default();
    let packages = packages.into_iter().filter(|name| name.starts_with("pgsql-"));
    let versions = versions.into_iter().map(|version| debian.join(version).join("bin"));
    Ok(versions.chain(packages.map(|name| rpm.join(name).join("bin"))).collect())
}

/// Returns the host's PATH, as the os-user's programs see it.
async fn search_path(host: &dyn Host) -> Result<Vec<PathBuf>, Error> {
    let path = host.run(&Command::new("printenv").arg("PATH").reads()).await?;
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in
        path.text().trim().split(':').map(PathBuf::from).filter(|directory| directory.is_absolute())
    {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    Ok(directories)
}

async fn postgres_version(host: &dyn Host, directory: &Path) -> Result<Option<PgVersion>, Error> {
    let postgres = directory.join("postgres");
    let Some(line) = version_line(host, &postgres).await? else {
        return Ok(None);
    };
    PgVersion::from_version_line(&line).map(Some).ok_or_else(|| unknown_version(host, &postgres, &line))
}

async fn missing_programs(host: &dyn Host, directory: &Path) -> Result<Vec<&'static str>, Error> {
    let there = host.list(directory).await?.unwrap_or_default();
    Ok(NEEDED
        .into_iter()
        .filter(|needed| there.binary_search_by(|name| name.as_str().cmp(needed)).is_err())
        .collect())
}

/// A PgBouncer version: `1.18.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PgBouncerVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl PgBouncerVersion {
    /// Finds the version in what `pgbouncer --version` or SHOW VERSION prints: `PgBouncer 1.18.0`.
    ///
    /// ```
    /// use pgherd::host::programs::PgBouncerVersion;
    /// assert_eq!(PgBouncerVersion::from_version_line("PgBouncer 1.18.0").unwrap().to_string(), "1.18.0");
    /// assert!(PgBouncerVersion::from_version_line("psql (PostgreSQL) 15.18").is_none());
    /// ```
    pub fn from_version_line(line: &str) -> Option<Self> {
        let mut numbers = line.trim().strip_prefix("PgBouncer ")?.split_whitespace().next()?.splitn(3, '.');
        let mut number = || {
            let digits = numbers.next()?;
            digits[..digits.bytes().take_while(u8::is_ascii_digit).count()].parse().ok()
        };
        Some(Self { major: number()?, minor: number()?, patch: number()? })
    }
}

impl fmt::Display for PgBouncerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Finds PgBouncer on the host's PATH (which holds /usr/sbin) and asks it for its version.
///
/// # Errors
/// [`ErrorKind::NotFound`] says where it looked and what to install.
pub async fn find_pgbouncer(host: &dyn Host) -> Result<(PathBuf, PgBouncerVersion), Error> {
    let looked = search_path(host).await?;
    for directory in &looked {
        let program = directory.join("pgbouncer");
        let Some(line) = version_line(host, &program).await? else {
            continue;
        };
        return match PgBouncerVersion::from_version_line(&line) {
            Some(version) => Ok((program, version)),
            None => Err(unknown_version(host, &program, &line)),
        };
    }
    let looked: Vec<String> = looked.iter().map(|directory| directory.display().to_string()).collect();
    Err(Error::new(
        ErrorKind::NotFound,
        format!("PgBouncer is not on host {}", host.name()),
    )
    .detail(format!("Looked in {}.", looked.join(", ")))
    .hint(
        "Install the package pgbouncer; its own service is not needed, pgherd starts one process a cluster.",
    ))
}

/// Returns the first line that `PROGRAM --version` prints; `None` if there is no such program that the os-user may run.
async fn version_line(host: &dyn Host, program: &Path) -> Result<Option<String>, Error> {
    match host.stat(program).await {
        Ok(Some(found)) if found.kind != FileKind::Directory => {}
        // A directory of PATH that this user may not enter is one that holds nothing for it.
        Ok(_) | Err(HostError::File { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match host.run(&Command::new(program).arg("--version").reads()).await {
        Ok(output) => Ok(Some(output.text().lines().next().unwrap_or("").to_owned())),
        Err(HostError::NotStarted { .. }) => Ok(None),
        Err(error) => Err(Error::from(error).context(format!("ask {} for its version", program.display()))),
    }
}

fn unknown_version(host: &dyn Host, program: &Path, line: &str) -> Error {
    Error::failed(format!("could not tell the version of {} on host {}", program.display(), host.name()))
        .detail(format!("It says {line:?}."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::local::LocalHost;
    use super::*;

    fn here() -> LocalHost {
        LocalHost::new("here", None).unwrap()
    }

    /// A directory that the os-user may read, with programs that answer `--version` with `line`.
    fn layout(line: &str, programs: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for program in programs {
            let path = directory.path().join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho '{line}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        directory
    }

    #[tokio::test]
    async fn finds_a_complete_set_in_a_given_directory() {
        let bin = layout("postgres (PostgreSQL) 16.4", &NEEDED);
        let programs = find_postgres(&here(), 16, Some(bin.path())).await.unwrap();
        assert_eq!(programs.version, PgVersion { major: 16, minor: 4 });
        assert_eq!(programs.path("initdb"), bin.path().join("initdb"));
    }

    #[tokio::test]
    async fn tells_which_version_it_found_instead() {
        let bin = layout("postgres (PostgreSQL) 15.18", &NEEDED);
        let error = find_postgres(&here(), 16, Some(bin.path())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.what(), "PostgreSQL 16 is not on host here");
        let at = bin.path().display();
        assert_eq!(error.detail_text().unwrap(), format!("Looked in {at}; found 15.18 in {at}."));
        assert!(error.hint_text().unwrap().contains("postgresql-16"));
    }

    #[tokio::test]
    async fn names_the_programs_that_a_set_lacks() {
        let bin = layout("postgres (PostgreSQL) 16.4", &NEEDED[..5]);
        let error = find_postgres(&here(), 16, Some(bin.path())).await.unwrap_err();
        assert!(error.detail_text().unwrap().ends_with("without psql, pg_rewind."), "{error:?}");
    }

    #[tokio::test]
    async fn tells_where_it_looked_for_a_version_that_nobody_has() {
        let error = find_postgres(&here(), 99, None).await.unwrap_err();
        let detail = error.detail_text().unwrap();
        assert!(detail.starts_with("Looked in /usr/lib/postgresql/99/bin, /usr/pgsql-99/bin, "), "{detail}");
    }
}
