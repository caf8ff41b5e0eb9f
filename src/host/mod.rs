//! A machine: programs, files and disks. The only room that starts processes.
//!
//! A [`Host`] takes argv, never a shell line. Knows nothing of PostgreSQL or of the topology.

pub mod local;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use crate::gate::BoxFuture;
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
    /// After this the process is killed and the outcome is [`HostError::Lost`].
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
pub enum Stdin {
    Nothing,
    Bytes(Vec<u8>),
    Secret(Secret),
}

/// As whom a program runs or a file is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// The owner of the node's files (the door's `os_user`).
    OsUser,
    /// Whoever runs pgherd; only to make a directory that belongs to the os-user below one that does not.
    Caller,
}

impl Command {
    /// A program without input, run as the os-user, that may take a minute.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Stdin::Nothing,
            user: RunAs::OsUser,
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

    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
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
    pub total: ByteCount,
    /// What the os-user may still use.
    pub free: ByteCount,
}

/// Receives a program's lines while it runs; `true` for standard error.
pub type LineSink = Arc<dyn Fn(bool, &str) + Send + Sync>;

/// The door to a machine.
///
/// Every file operation is done as the os-user, so that root never follows a link that a node's files may hold.
pub trait Host: Send + Sync + std::fmt::Debug {
    /// Returns the host's name in the topology.
    fn name(&self) -> &str;
    /// Returns the name of the user that owns the node's files.
    fn os_user(&self) -> &str;
    /// Returns the user who calls (differs from [`Host::os_user`] for root).
    fn caller(&self) -> &str;
    /// Runs a program to its end. `Err(Exited)` for any status but 0.
    fn run<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<Output, HostError>>;
    /// Runs a program and hands over each line (ended by `\n` or `\r`) as it comes.
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
