//! The first topology: finds PostgreSQL, PgBouncer and free ports on this machine, and writes the file.
//!
//! Starts no program: it reads a version out of the program's file. Never writes over a file that exists.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::render::{FirstNode, FirstTopology, Template, render};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::version::{NEWEST_MAJOR, OLDEST_MAJOR, PgVersion};
use crate::secret::Secret;
use crate::units::ByteCount;

/// What the first topology is made from.
#[derive(Debug, Clone)]
pub struct Wish {
    pub herd: String,
    pub cluster: String,
    /// 1 to 26, since nodes are called a to z.
    pub nodes: u8,
    /// The first node's port; the others follow, and the pooler is 1000 above it.
    pub port: u16,
    /// Where data directories go.
    pub data_root: PathBuf,
    /// The directory that the file is written to.
    pub directory: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub lines: usize,
    pub postgres: PgVersion,
    /// `None` if there is no PgBouncer; the topology then has no poolers.
    pub pgbouncer: Option<String>,
    pub last_port: u16,
    pub pooler_port: Option<u16>,
    /// The file with the password of the cluster's first role, relative to the topology.
    pub password_file: String,
}

/// The name of the file that is written.
pub const FILE_NAME: &str = "pgherd.yml";

/// Writes the first topology and the password that it refers to.
///
/// # Errors
/// When the file exists, PostgreSQL is not found, a port is taken, or a file cannot be written; then nothing is left behind.
pub fn write(wish: &Wish) -> Result<Written> {
    let file = wish.directory.join(FILE_NAME);
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let (postgres, bin_directory, usual) = newest_postgres()?;
    let pgbouncer = pgbouncer();
    let ports = Ports::of(wish)?;
    ports.check_free(pgbouncer.is_some())?;
    let pooler_port = pgbouncer.as_ref().map(|_| ports.pooler);
    let schema = wish.cluster.replace('-', "_");
    let role = format!("{schema}_app");
    let password_file = format!("secrets/{role}");
    let repository = wish.data_root.join("repository");
    let topology = FirstTopology {
        herd: wish.herd.clone(),
        cluster: wish.cluster.clone(),
        version: postgres.major,
        bin_directory: (!usual).then(|| bin_directory.display().to_string()),
        memory: memory_of_one(host_memory(), wish.nodes).to_string(),
        nodes: nodes(wish),
        repository: repository_url(&repository)?,
        pooler_port,
        schema,
        role,
        password_file: password_file.clone(),
    };
    let text = render(Template::FirstTopology, &topology)?;
    let made_password = write_password(&wish.directory.join(&password_file))?;
    if let Err(error) = write_new(&file, text.as_bytes(), 0o644) {
        if made_password {
            fs::remove_file(wish.directory.join(&password_file)).unwrap_or(());
        }
        return Err(if error.kind() == io::ErrorKind::AlreadyExists {
            exists()
        } else {
            Error::failed(format!("could not write {FILE_NAME}")).source(error)
        });
    }
    Ok(Written {
        lines: text.lines().count(),
        postgres,
        pgbouncer,
        last_port: ports.last,
        pooler_port,
        password_file,
    })
}

/// Refuses to write where a topology is already.
///
/// # Errors
/// When there is one.
pub fn refuse_existing(directory: &Path) -> Result<()> {
    if directory.join(FILE_NAME).symlink_metadata().is_ok() { Err(exists()) } else { Ok(()) }
}

/// Writes a topology that was drafted, once it is seen to be valid.
///
/// # Errors
/// When it is not valid, a file is in the way, or it cannot be written.
pub fn write_draft(directory: &Path, text: &str) -> Result<()> {
    let file = directory.join(FILE_NAME);
    if let Err(problems) = super::load_text(&file, text, directory) {
        return Err(
            Error::failed("what was found makes no topology that pgherd takes").detail(problems.to_string())
        );
    }
    write_new(&file, text.as_bytes(), 0o644).map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            exists()
        } else {
            Error::failed(format!("could not write {FILE_NAME}")).source(error)
        }
    })
}

fn exists() -> Error {
    Error::failed(format!("{FILE_NAME} exists already"))
        .detail("It was not touched.")
        .hint("Remove or rename it first, or start in another directory.")
}

/// Writes a directory as the URL of a repository, which lacks what a URL and a path read differently.
fn repository_url(directory: &Path) -> Result<String> {
    let path = directory.display().to_string();
    if path.contains(['%', '?', '#']) {
        return Err(Error::usage(format!("cannot keep backups in {path}"))
            .detail("The topology names it by a URL, where \"%\", \"?\" and \"#\" do not mean themselves.")
            .hint("Choose another directory with --data-root."));
    }
    Ok(format!("file://{path}"))
}

fn nodes(wish: &Wish) -> Vec<FirstNode> {
    (0..wish.nodes)
        .map(|index| {
            let name = char::from(b'a' + index).to_string();
            let data_directory = wish.data_root.join(format!("{}-{name}", wish.cluster));
            FirstNode {
                port: wish.port + u16::from(index),
                data_directory: data_directory.display().to_string(),
                name,
            }
        })
        .collect()
}

/// Returns what one of `nodes` is tuned for: they share half of the host's memory, the rest is for everybody else's work. It is
/// stated in the file, and not left to be derived, so that one more node on the host makes no other one restart.
fn memory_of_one(host: ByteCount, nodes: u8) -> ByteCount {
    // Whole numbers of a unit, as the file wants them.
    const STEPS: [u64; 2] = [1 << 30, 256 << 20];
    let share = host.0 / 2 / u64::from(nodes);
    let step = STEPS.into_iter().find(|step| share >= *step).unwrap_or(STEPS[1]);
    ByteCount((share / step * step).max(step))
}

/// Reads the host's memory; none where the kernel does not tell.
fn host_memory() -> ByteCount {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    ByteCount(total.unwrap_or_default() << 10)
}

struct Ports {
    first: u16,
    last: u16,
    pooler: u16,
}

impl Ports {
    fn of(wish: &Wish) -> Result<Self> {
        let last = wish.port.checked_add(u16::from(wish.nodes) - 1);
        let pooler = wish.port.checked_add(1000);
        match (last, pooler) {
            (Some(last), Some(pooler)) => Ok(Self { first: wish.port, last, pooler }),
            _ => Err(Error::usage(format!("port {} leaves no room for the nodes and the pooler", wish.port))
                .detail("The nodes take the ports from it on, the pooler the one 1000 above it; the last port is 65535.")
                .hint("Choose a lower one with --port.")),
        }
    }

    fn check_free(&self, pooler: bool) -> Result<()> {
        let taken =
            (self.first..=self.last).chain(pooler.then_some(self.pooler)).find(|port| !is_free(*port));
        let Some(taken) = taken else {
            return Ok(());
        };
        let width = self.last - self.first;
        let error = Error::failed(format!("port {taken} of this machine is in use")).detail(format!(
            "The nodes would take {} to {}, the pooler {}.",
            self.first, self.last, self.pooler
        ));
        let other = (self.last..60_000)
            .step_by(10)
            .map(|port| port / 10 * 10 + 11)
            .find(|first| (*first..=first + width).chain([first + 1000]).all(is_free));
        Err(match other {
            Some(first) => error.hint(format!("Start at a free one: --port {first}")),
            None => error.hint("Choose another one with --port."),
        })
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Finds the newest PostgreSQL that pgherd runs; `true` if it is where pgherd finds it again by itself.
fn newest_postgres() -> Result<(PgVersion, PathBuf, bool)> {
    let path = search_path();
    let usual = usual_directories();
    let found = usual
        .iter()
        .map(|directory| (directory, true))
        .chain(path.iter().map(|directory| (directory, false)))
        .filter_map(|(directory, usual)| {
            let version = version_in(&directory.join("postgres"), "postgres (PostgreSQL) ")?
                .parse::<PgVersion>()
                .ok()?;
            // Without initdb it is a client's or a broken installation.
            let whole =
                directory.join("initdb").is_file() && (OLDEST_MAJOR..=NEWEST_MAJOR).contains(&version.major);
            whole.then(|| (version, directory.clone(), usual))
        })
        .max_by_key(|(version, _, usual)| (*version, *usual));
    found.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("no PostgreSQL {OLDEST_MAJOR} to {NEWEST_MAJOR} was found on this machine"))
            .detail("Looked in /usr/lib/postgresql/*/bin, /usr/pgsql-*/bin, /usr/local/pgsql/bin and PATH for postgres and initdb.")
            .hint("Install the server's package, such as postgresql on Debian; or put its directory into PATH.")
    })
}

/// Debian's, PGDG's and PostgreSQL's own layout.
fn usual_directories() -> Vec<PathBuf> {
    let below = |root: &str, prefix: &str| {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let versioned = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?;
            (!version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()))
                .then(|| entry.path().join("bin"))
        });
        versioned.collect::<Vec<_>>()
    };
    let mut directories = below("/usr/lib/postgresql", "");
    directories.extend(below("/usr", "pgsql-"));
    directories.push(PathBuf::from("/usr/local/pgsql/bin"));
    directories
}

fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

fn pgbouncer() -> Option<String> {
    let mut directories = search_path();
    directories.extend(["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from));
    directories.iter().find_map(|directory| version_in(&directory.join("pgbouncer"), "PgBouncer "))
}

/// Reads the version that a program would print out of its file: what follows `marker` and begins with a digit.
fn version_in(program: &Path, marker: &str) -> Option<String> {
    let bytes = fs::read(program).ok()?;
    let marker = marker.as_bytes();
    bytes.windows(marker.len()).enumerate().filter(|(_, window)| *window == marker).find_map(|(at, _)| {
        let rest = &bytes[at + marker.len()..];
        let end = rest.iter().take(20).take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count();
        let version = std::str::from_utf8(&rest[..end]).ok()?;
        version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
    })
}

/// Makes a password unless there is one; tells whether it did.
fn write_password(path: &Path) -> Result<bool> {
    let directory = path.parent().expect("the path has a directory of ours before it");
    let could_not =
        |error: io::Error| Error::failed(format!("could not write {}", path.display())).source(error);
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(could_not(error)),
        Ok(()) => {
            // A topology belongs into version control; what is in here does not.
            write_new(&directory.join(".gitignore"), b"*\n", 0o600).map_err(could_not)?;
        }
        Err(_) => {}
    }
    let password = Secret::generate().map_err(|error| could_not(error.into()))?;
    match write_new(path, format!("{}\n", password.reveal()).as_bytes(), 0o600) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(could_not(error)),
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| fs::remove_file(path).unwrap_or(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_out_of_a_program_without_starting_it() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("postgres");
        fs::write(&program, b"\x7fELF\0postgres (PostgreSQL) %s\0postgres (PostgreSQL) 15.18 (Debian)\n\0")
            .unwrap();
        assert_eq!(version_in(&program, "postgres (PostgreSQL) ").as_deref(), Some("15.18"));
        assert_eq!(version_in(&program, "PgBouncer "), None);
        assert_eq!(version_in(&directory.path().join("missing"), "PgBouncer "), None);
    }

    #[test]
    fn nodes_share_half_of_the_host_in_round_numbers() {
        let gib = |count: u64| ByteCount(count << 30);
        assert_eq!(memory_of_one(gib(24), 3), gib(4));
        assert_eq!(memory_of_one(gib(16), 3).to_string(), "2 GiB");
        assert_eq!(memory_of_one(gib(4), 3).to_string(), "512 MiB");
        assert_eq!(memory_of_one(ByteCount(0), 3).to_string(), "256 MiB");
    }

    #[test]
    fn a_port_near_the_end_is_refused() {
        let wish = Wish {
            herd: "shop".into(),
            cluster: "inventory".into(),
            nodes: 3,
            port: 65_000,
            data_root: "/var/lib/pgherd".into(),
            directory: ".".into(),
        };
        assert!(Ports::of(&wish).is_err());
    }
}
