//! A machine: programs, files and disks. The only room that starts processes.
//!
//! A [`Host`] takes argv, never a shell line. Knows nothing of PostgreSQL or of the topology.

mod acting;
pub mod aside;
mod coreutils;
pub mod decorate;
mod direct;
pub mod local;
mod process;
pub mod programs;
pub mod sockets;
pub mod ssh;
pub mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
pub use crate::gate::{BoxFuture, Tunnel};
use crate::secret::Secret;
use crate::units::ByteCount;

/// A program with its arguments, run without a shell.
#[derive(Debug, Clone)]
pub struct Command {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Added to a minimal environment (PATH, HOME of the user, LANG=C.UTF-8).
    pub env: Vec<(String, String)>,
    pub stdin: Stdin,
    pub user: RunAs,
    pub effect: Effect,
    /// After this the process is killed and the outcome is [`HostError::Lost`].
    pub timeout: Duration,
}

/// Whether a call can change the host; what may be called while only looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Reads,
    Changes,
}

#[derive(Debug, Clone)]
pub enum Stdin {
    Nothing,
    Bytes(Vec<u8>),
    Secret(Secret),
    /// One line, and then an empty one every [`BEAT`] for as long as somebody waits: who reads no more of them for [`SILENCE`], or the
    /// end of its input, works for nobody any more.
    Line(Vec<u8>),
}

/// How often whoever works for us is told that we are there.
pub const BEAT: Duration = Duration::from_secs(5);
/// After how long without a word a program on a host ends itself: longer than ssh takes to give up a silent connection (15 to 20 s), so
/// that nothing is ended that we still wait for.
pub const SILENCE: Duration = Duration::from_secs(30);

/// As whom a program runs or a file is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// The owner of the node's files (the door's `os_user`).
    OsUser,
    /// Whoever runs pgherd: only for what the os-user may not do or see, such as a directory below one that is not its own.
    Caller,
}

impl Command {
    /// A program without input, run as the os-user, that may change things and take a minute.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Stdin::Nothing,
            user: RunAs::OsUser,
            effect: Effect::Changes,
            timeout: Duration::from_secs(60),
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    #[must_use]
    pub fn user(mut self, user: RunAs) -> Self {
        self.user = user;
        self
    }

    /// States that the program only looks.
    #[must_use]
    pub fn reads(mut self) -> Self {
        self.effect = Effect::Reads;
        self
    }

    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the program's short name with its subcommand, if it has one: `pg_ctl start`, `initdb`.
    pub fn title(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy();
        match self.args.first() {
            Some(word) if !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase()) => {
                format!("{program} {word}")
            }
            _ => program.into_owned(),
        }
    }
}

/// What a program that ended with status 0 printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    /// Returns standard output as text, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// How a call to a host ended without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing happened on the host; safe to try again.
    #[error("{what} on host {host} was not started: {why}")]
    NotStarted { host: String, what: String, why: String },
    /// The program ended with a status other than 0 (128 + signal if a signal ended it).
    #[error("{what} on host {host} ended with status {status}: {stderr}")]
    Exited { host: String, what: String, status: i32, stderr: String },
    /// The outcome is unknown: probe before anything is done again.
    #[error("the outcome of {what} on host {host} is unknown: {why}")]
    Lost { host: String, what: String, why: String },
    /// The operating system refused a file operation; `kind` tells permission, missing and full disk apart.
    #[error("could not {what} on host {host}: {why}")]
    File { host: String, what: String, kind: std::io::ErrorKind, why: String },
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        match error {
            HostError::NotStarted { host, what, why } => {
                Self::failed(format!("could not start {what} on host {host}")).detail(sentence(&why))
            }
            HostError::Exited { host, what, status, stderr } => {
                Self::failed(format!("{what} failed on host {host} with status {status}"))
                    .detail(if stderr.is_empty() { "It printed no message.".to_owned() } else { stderr })
            }
            HostError::Lost { host, what, why } => {
                Self::failed(format!("the outcome of {what} on host {host} is unknown"))
                    .detail(sentence(&why))
            }
            HostError::File { host, what, kind, why } => {
                let error = Self::failed(format!("could not {what} on host {host}")).detail(sentence(&why));
                if matches!(kind, std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
                    error.hint("Make room on that file system, then run the same again.")
                } else {
                    error
                }
            }
        }
    }
}

/// Makes a whole sentence of a fragment.
fn sentence(fragment: &str) -> String {
    let mut letters = fragment.chars();
    let first: String = letters.next().map(|letter| letter.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    Link,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    pub kind: FileKind,
    /// Permission bits, such as 0o700.
    pub mode: u32,
    pub size: ByteCount,
    /// Name of the owner, or its number where it has no name.
    pub owner: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// What is used and what is free; not what is kept for root or by a quota, which `Use%` of df(1) leaves out as well.
    pub total: ByteCount,
    /// What the os-user may still use.
    pub free: ByteCount,
}

/// Receives a program's lines while it runs; `true` for standard error.
pub type LineSink = Arc<dyn Fn(bool, &str) + Send + Sync>;

/// Tells whether the caller's own files are the os-user's on this machine: then what belongs to a node can be opened directly.
pub fn is_own(host: &dyn Host) -> bool {
    host.tunnel().is_none() && host.caller() == host.os_user()
}

/// The door to a machine.
///
/// Every file operation is done as the os-user, so that root never follows a link that a node's files may hold.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// Returns the host's name in the topology.
    fn name(&self) -> &str;
    /// Returns the name of the user that owns the node's files.
    fn os_user(&self) -> &str;
    /// Returns the user who calls (differs from [`Host::os_user`] for root); on a host behind ssh the one who logs in there.
    fn caller(&self) -> &str;
    /// Returns the way to what listens only on this machine; `None` if it is the one that pgherd runs on.
    fn tunnel(&self) -> Option<Arc<dyn Tunnel>>;
    /// Sees that the machine can be worked on, and tells everything that is missing there at once.
    fn reach<'a>(&'a self) -> BoxFuture<'a, Result<(), Vec<Error>>>;
    /// Runs a program to its end. `Err(Exited)` for any status but 0.
    fn run<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<Output, HostError>>;
    /// Runs a program and hands over each line (ended by `\n` or `\r`) as it comes; of its output only the end is kept.
    fn stream<'a>(
        &'a self,
        command: &'a Command,
        lines: LineSink,
    ) -> BoxFuture<'a, Result<Output, HostError>>;
    /// Reads a file; `None` if there is none.
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<u8>>, HostError>>;
    /// Replaces a file: temporary file beside it, fsync, rename, fsync of the directory.
    fn write_atomic<'a>(
        &'a self,
        path: &'a Path,
        bytes: &'a [u8],
        mode: u32,
    ) -> BoxFuture<'a, Result<(), HostError>>;
    /// Adds to a file that is `at` bytes long, on disk when this returns; one of another length is left as it is. Returns how long it was.
    /// Makes a missing one, with mode 0600, where `at` is 0. What was cut off in its middle may have left a part.
    fn append<'a>(
        &'a self,
        path: &'a Path,
        at: u64,
        bytes: &'a [u8],
    ) -> BoxFuture<'a, Result<u64, HostError>>;
    /// Makes a directory and its parents, owned by the os-user with `mode` (parents 0755); an existing one is left as it is.
    fn make_directory<'a>(&'a self, path: &'a Path, mode: u32) -> BoxFuture<'a, Result<(), HostError>>;
    /// Removes a file; no error if there is none.
    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>>;
    /// Removes a directory with everything in it, never following links; no error if there is none.
    fn remove_tree<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>>;
    /// Looks at a path without following a link; `None` if there is nothing.
    fn stat<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<FileStat>, HostError>>;
    /// Lists the names in a directory, sorted; `None` if there is no directory.
    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<String>>, HostError>>;
    /// Tells the space of the file system that holds `path`, or its nearest existing parent.
    fn disk<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<DiskSpace, HostError>>;
    /// Tells whether a process with this number exists.
    fn process_exists<'a>(&'a self, pid: u32) -> BoxFuture<'a, Result<bool, HostError>>;
    /// Returns the machine's memory in bytes.
    fn memory<'a>(&'a self) -> BoxFuture<'a, Result<ByteCount, HostError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_the_program_with_its_subcommand() {
        assert_eq!(
            Command::new("/usr/lib/postgresql/15/bin/pg_ctl").args(["start", "-D", "/d"]).title(),
            "pg_ctl start"
        );
        assert_eq!(Command::new("initdb").args(["-D", "/d"]).title(), "initdb");
        assert_eq!(Command::new("cat").args(["--", "/etc/passwd"]).title(), "cat");
    }

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        let error = Error::from(HostError::File {
            host: "db1".to_owned(),
            what: "write /d/pgherd.conf".to_owned(),
            kind: std::io::ErrorKind::StorageFull,
            why: "no space left on device".to_owned(),
        });
        assert_eq!(error.what(), "could not write /d/pgherd.conf on host db1");
        assert_eq!(error.detail_text(), Some("No space left on device."));
        assert!(error.hint_text().unwrap().starts_with("Make room"));
    }
}
