//! This machine.
//!
//! Where root works for another user, every program is started through setpriv(1) as that user, and every file operation is done by a
//! thread that has that user's rights in place of root's ([`super::acting`]), so that root itself never opens a file in a directory that
//! somebody else can change. Uses no sudo and no shell.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::acting::{self, Identity};
use super::process::{self, End, Input};
use super::{
    BoxFuture, Command, DiskSpace, Effect, FileStat, Host, HostError, LineSink, Output, RunAs, Tunnel,
    coreutils, direct, whole,
};
use crate::error::{Error, ErrorKind};
use crate::units::{ByteCount, human_duration};

/// Where programs are looked for, before the caller's own PATH.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of a failed program's messages an error carries: the end.
const STDERR_TOLD: usize = 2 * 1024;
/// How long a file operation may take; a disk that syncs slowly is no failure, one that hangs is.
const FILE_LIMIT: Duration = Duration::from_secs(120);

/// This machine, on behalf of one os-user.
#[derive(Debug, Clone)]
pub struct LocalHost {
    name: String,
    os_user: User,
    caller: User,
    /// How the os-user is acted for, where that is not the caller.
    other: Option<Other>,
    search_path: String,
}

/// How root acts for an os-user.
#[derive(Debug, Clone)]
struct Other {
    /// The absolute path of setpriv.
    setpriv: PathBuf,
    identity: Identity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl LocalHost {
    /// Opens the door to this machine for `os_user`; by default `postgres` for root, and the caller for everybody else.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such user, [`ErrorKind::Refused`] if the caller may not become that user.
    pub fn new(name: &str, os_user: Option<&str>) -> Result<Self, Error> {
        let caller = caller();
        let os_user = match os_user {
            Some(wanted) if wanted == caller.name => caller.clone(),
            Some(wanted) => user(wanted)?.ok_or_else(|| no_such_user(wanted))?,
            None if caller.uid == 0 => user("postgres")?.ok_or_else(|| no_such_user("postgres"))?,
            None => caller.clone(),
        };
        let other = match (os_user.uid == caller.uid, caller.uid) {
            (true, _) => None,
            (false, 0) => Some(Other { setpriv: find_setpriv()?, identity: identity(&os_user)? }),
            (false, _) => {
                return Err(Error::refused(format!(
                    "{} may not work as the user {}",
                    caller.name, os_user.name
                ))
                .detail(format!(
                    "The files on {name} belong to {}; this version does not use sudo here.",
                    os_user.name
                ))
                .hint(format!("Run pgherd as {} or as root.", os_user.name)));
            }
        };
        Ok(Self { name: name.to_owned(), os_user, caller, other, search_path: search_path() })
    }

    /// Opens the door to this machine on the caller's own behalf.
    pub fn own(name: &str) -> Self {
        let caller = caller();
        Self {
            name: name.to_owned(),
            os_user: caller.clone(),
            caller,
            other: None,
            search_path: search_path(),
        }
    }

    async fn run_with(&self, command: &Command, lines: Option<&LineSink>) -> Result<Output, HostError> {
        let (user, setpriv) = match command.user {
            RunAs::OsUser => (&self.os_user, self.other.as_ref().map(|other| &other.setpriv)),
            RunAs::Caller => (&self.caller, None),
        };
        let mut child = match setpriv {
            None => tokio::process::Command::new(&command.program),
            Some(setpriv) => {
                let mut child = tokio::process::Command::new(setpriv);
                child.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
                child.args(["--init-groups", "--"]).arg(&command.program);
                child
            }
        };
        child
            .args(&command.args)
            .env_clear()
            .env("PATH", &self.search_path)
            .env("HOME", &user.home)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("LANG", "C.UTF-8")
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/");
        let host = self.name.clone();
        let what = command.title();
        let program = command.program.display();
        match process::run(child, Input::from(&command.stdin), command.timeout, lines).await {
            End::Exited { status: 0, stdout, stderr } => Ok(Output { stdout, stderr }),
            End::Exited { status, stderr, .. } => match refused_by_setpriv(setpriv, status, &stderr) {
                Some(why) => Err(HostError::NotStarted { host, what, why: format!("{program}: {why}") }),
                None => Err(HostError::Exited { host, what, status, stderr: tail(&stderr) }),
            },
            End::NotStarted(error) if error.kind() == io::ErrorKind::NotFound => Err(HostError::NotStarted {
                host,
                what,
                why: format!("{program}: No such file or directory"),
            }),
            End::NotStarted(error) => {
                Err(HostError::NotStarted { host, what, why: format!("{program}: {error}") })
            }
            End::Lost(why) => Err(HostError::Lost { host, what, why }),
        }
    }

    /// Does a file operation with the rights of one of the door's users.
    async fn file<T: Send + 'static>(
        &self,
        (user, effect): (RunAs, Effect),
        doing: String,
        operation: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let identity = match user {
            RunAs::OsUser => self.other.as_ref().map(|other| other.identity.clone()),
            RunAs::Caller => None,
        };
        let host = self.name.clone();
        match tokio::time::timeout(FILE_LIMIT, acting::run(effect, &doing, identity, operation)).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(HostError::File { host, what: doing, kind: error.kind(), why: message(&error) })
            }
            Err(_) => {
                let why = format!("it did not end within {}", human_duration(FILE_LIMIT));
                Err(HostError::Lost { host, what: doing, why })
            }
        }
    }

    /// Makes a directory that belongs to the os-user where that user may not, or not yet, make it itself.
    async fn make_directory_for_the_os_user(&self, path: &Path, mode: u32) -> Result<(), HostError> {
        let doing = "make the directory";
        let what = format!("{doing} {}", path.display());
        let make_one = async |path: &Path, mode: u32| {
            let target = path.to_owned();
            self.file((RunAs::OsUser, Effect::Changes), what.clone(), move || {
                direct::make_with_mode(&target, mode)
            })
            .await
        };
        let can_enter = async |path: &Path| {
            let target = path.to_owned();
            self.file((RunAs::OsUser, Effect::Reads), what.clone(), move || Ok(direct::can_enter(&target)))
                .await
        };
        match make_one(path, mode).await {
            Ok(()) => return Ok(()),
            Err(HostError::File { kind: io::ErrorKind::AlreadyExists, .. }) => {
                if can_enter(path).await? {
                    return Ok(());
                }
                let why = format!("it is there, and is not a directory that {} may enter", self.os_user.name);
                return Err(coreutils::refused(self, doing, path, io::ErrorKind::AlreadyExists, &why));
            }
            Err(HostError::File {
                kind: io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied, ..
            }) => {}
            Err(error) => return Err(error),
        }
        let target = path.to_owned();
        let (ancestor, missing) =
            self.file((RunAs::Caller, Effect::Reads), what.clone(), move || direct::nearest(&target)).await?;
        if !can_enter(&ancestor).await? {
            let why = format!("{} may not be entered by {}", ancestor.display(), self.os_user.name);
            return Err(coreutils::refused(self, doing, path, io::ErrorKind::PermissionDenied, &why));
        }
        let (target, uid, gid) = (path.to_owned(), self.os_user.uid, self.os_user.gid);
        let handed_over = self
            .file((RunAs::Caller, Effect::Changes), what.clone(), move || {
                direct::hand_over_directory(&target, mode, uid, gid)
            })
            .await?;
        if handed_over {
            return Ok(());
        }
        let mut at = ancestor;
        for (index, name) in missing.iter().enumerate() {
            at.push(name);
            make_one(&at, if index + 1 == missing.len() { mode } else { 0o755 }).await?;
        }
        Ok(())
    }

    /// Names the owner of a file, by its number where it has no name.
    async fn owner(&self, doing: String, uid: u32) -> Result<String, HostError> {
        if let Some(user) = [&self.os_user, &self.caller].into_iter().find(|user| user.uid == uid) {
            return Ok(user.name.clone());
        }
        // Whoever runs a program does it as the caller.
        let found =
            self.file((RunAs::Caller, Effect::Reads), doing, move || lookup(&uid.to_string())).await?;
        Ok(found.map_or_else(|| uid.to_string(), |user| user.name))
    }
}

impl Host for LocalHost {
    fn name(&self) -> &str {
        &self.name
    }

    fn os_user(&self) -> &str {
        &self.os_user.name
    }

    fn caller(&self) -> &str {
        &self.caller.name
    }

    fn tunnel(&self) -> Option<Arc<dyn Tunnel>> {
        None
    }

    fn reach<'a>(&'a self) -> BoxFuture<'a, Result<(), Vec<Error>>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Runs a program to its end.
    ///
    /// Dropping the future kills the program and what it started in its process group. Killing pgherd itself does not: the
    /// program runs on, and whoever resumes has to look at what it did.
    fn run<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<Output, HostError>> {
        Box::pin(self.run_with(command, None))
    }

    fn stream<'a>(
        &'a self,
        command: &'a Command,
        lines: LineSink,
    ) -> BoxFuture<'a, Result<Output, HostError>> {
        Box::pin(async move { self.run_with(command, Some(&lines)).await })
    }

    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<u8>>, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "read", path)?;
            let target = path.to_owned();
            self.file((RunAs::OsUser, Effect::Reads), format!("read {}", path.display()), move || {
                direct::read(&target)
            })
            .await
        })
    }

    fn write_atomic<'a>(
        &'a self,
        path: &'a Path,
        bytes: &'a [u8],
        mode: u32,
    ) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "write", path)?;
            let (target, bytes) = (path.to_owned(), bytes.to_vec());
            self.file((RunAs::OsUser, Effect::Changes), format!("write {}", path.display()), move || {
                whole::replace(&target, mode, &bytes)
            })
            .await
        })
    }

    fn append<'a>(
        &'a self,
        path: &'a Path,
        at: u64,
        bytes: &'a [u8],
    ) -> BoxFuture<'a, Result<u64, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "append to", path)?;
            let (target, bytes) = (path.to_owned(), bytes.to_vec());
            self.file((RunAs::OsUser, Effect::Changes), format!("append to {}", path.display()), move || {
                direct::append(&target, at, &bytes)
            })
            .await
        })
    }

    fn make_directory<'a>(&'a self, path: &'a Path, mode: u32) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "make the directory", path)?;
            if self.other.is_some() {
                return self.make_directory_for_the_os_user(path, mode).await;
            }
            let target = path.to_owned();
            self.file(
                (RunAs::OsUser, Effect::Changes),
                format!("make the directory {}", path.display()),
                move || direct::make_directory(&target, mode),
            )
            .await
        })
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "remove", path)?;
            let target = path.to_owned();
            self.file((RunAs::OsUser, Effect::Changes), format!("remove {}", path.display()), move || {
                direct::remove_file(&target)
            })
            .await
        })
    }

    fn remove_tree<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "remove", path)?;
            let removed = coreutils::remove_tree(self, path).await;
            if removed.is_ok() || self.other.is_none() {
                return removed;
            }
            // The os-user could empty the directory but not take it out of a parent that is root's: rmdir takes no files with it.
            match coreutils::remove_empty_directory_as_caller(self, path).await {
                Ok(()) => Ok(()),
                Err(_) => removed,
            }
        })
    }

    fn stat<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<FileStat>, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "look at", path)?;
            let (doing, target) = (format!("look at {}", path.display()), path.to_owned());
            let found = self
                .file((RunAs::OsUser, Effect::Reads), doing.clone(), move || direct::stat(&target))
                .await?;
            let Some(found) = found else { return Ok(None) };
            let owner = self.owner(doing, found.owner).await?;
            Ok(Some(FileStat { kind: found.kind, mode: found.mode, size: ByteCount(found.size), owner }))
        })
    }

    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<String>>, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "list", path)?;
            let target = path.to_owned();
            self.file((RunAs::OsUser, Effect::Reads), format!("list {}", path.display()), move || {
                direct::list(&target)
            })
            .await
        })
    }

    fn disk<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<DiskSpace, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "measure the disk of", path)?;
            let (doing, target) = (format!("measure the disk of {}", path.display()), path.to_owned());
            self.file((RunAs::OsUser, Effect::Reads), doing, move || direct::disk(&target)).await
        })
    }

    fn process_exists<'a>(&'a self, pid: u32) -> BoxFuture<'a, Result<bool, HostError>> {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        // Not being allowed to signal it (EPERM) means that it is there.
        let exists =
            pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
        Box::pin(std::future::ready(Ok(exists)))
    }

    fn memory<'a>(&'a self) -> BoxFuture<'a, Result<ByteCount, HostError>> {
        let info = rustix::system::sysinfo();
        let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
        Box::pin(std::future::ready(Ok(ByteCount(bytes))))
    }
}

/// Tells why setpriv did not become the program, if it did not: it keeps 127 and 126 for that and begins its messages with its name.
fn refused_by_setpriv(setpriv: Option<&PathBuf>, status: i32, stderr: &str) -> Option<String> {
    setpriv?;
    let message = stderr.trim().strip_prefix("setpriv: ")?;
    match status {
        126 | 127 => Some(message.rsplit(": ").next().unwrap_or(message).to_owned()),
        1 => Some(message.to_owned()),
        _ => None,
    }
}

/// Cuts a program's messages down to their end, at a line if that is possible.
pub(super) fn tail(messages: &str) -> String {
    let messages = messages.trim();
    let mut from = messages.len().saturating_sub(STDERR_TOLD);
    if from == 0 {
        return messages.to_owned();
    }
    while !messages.is_char_boundary(from) {
        from += 1;
    }
    let end = &messages[from..];
    format!("… {}", end.split_once('\n').map_or(end, |(_, rest)| rest))
}

fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(own) if !own.is_empty() => format!("{SEARCH_PATH}:{own}"),
        _ => SEARCH_PATH.to_owned(),
    }
}

fn find_setpriv() -> Result<PathBuf, Error> {
    ["/usr/bin/setpriv", "/bin/setpriv", "/usr/sbin/setpriv"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "cannot work as another user: there is no setpriv on this machine",
            )
            .hint("Install util-linux, or run pgherd as the owner of the files.")
        })
}

fn caller() -> User {
    let uid = rustix::process::geteuid().as_raw();
    lookup(&uid.to_string()).ok().flatten().unwrap_or_else(|| User {
        // A container may run us as a number that has no name.
        name: uid.to_string(),
        uid,
        gid: rustix::process::getegid().as_raw(),
        home: std::env::var("HOME").unwrap_or_else(|_| "/".to_owned()),
    })
}

/// What an error of the operating system says, without its number.
fn message(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|number| format!(" (os error {number})"));
    number.and_then(|number| text.strip_suffix(&number).map(str::to_owned)).unwrap_or(text)
}

fn user(name: &str) -> Result<Option<User>, Error> {
    lookup(name).map_err(|error| Error::failed(format!("could not look up the user {name}")).source(error))
}

fn no_such_user(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("the user {name} does not exist on this machine"))
        .detail("It should own the data directories; PostgreSQL does not run as root.")
        .hint("Install PostgreSQL's package, which makes the user postgres, or name another user with postgres.os-user.")
}

/// Asks the machine's user database (files, LDAP or whatever nsswitch.conf names) for a name or a number, once for each that is there.
fn lookup(name: &str) -> io::Result<Option<User>> {
    static KNOWN: Mutex<BTreeMap<String, User>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(user) = known().get(name) {
        return Ok(Some(user.clone()));
    }
    let user = parse_passwd(&asked("getent", &["passwd", "--", name])?);
    if let Some(user) = &user {
        known().insert(name.to_owned(), user.clone());
    }
    Ok(user)
}

/// Finds the groups of a user, as setpriv(1) does with `--init-groups`; asks once for each user.
fn identity(user: &User) -> Result<Identity, Error> {
    static KNOWN: Mutex<BTreeMap<String, Vec<u32>>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let of = |groups| Identity { uid: user.uid, gid: user.gid, groups };
    if let Some(groups) = known().get(&user.name) {
        return Ok(of(groups.clone()));
    }
    let failed = || Error::failed(format!("could not look up the groups of the user {}", user.name));
    let told = asked("id", &["-G", "--", &user.name]).map_err(|error| failed().source(error))?;
    let groups: Option<Vec<u32>> = told.split_whitespace().map(|group| group.parse().ok()).collect();
    let groups = groups
        .filter(|groups| groups.contains(&user.gid))
        .ok_or_else(|| failed().detail(format!("id(1) says {told:?}.")))?;
    known().insert(user.name.clone(), groups.clone());
    Ok(of(groups))
}

fn asked(program: &str, args: &[&str]) -> io::Result<String> {
    let answer = std::process::Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .stdin(std::process::Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

/// Reads a line of passwd(5): `name:password:uid:gid:comment:home:shell`.
fn parse_passwd(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
        return None;
    };
    Some(User {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: (*home).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::super::FileKind;
    use super::super::Stdin;
    use super::*;

    /// A door and a directory that its os-user owns.
    struct Door {
        host: LocalHost,
        own: PathBuf,
        /// Where [`Self::own`] is: the caller's, and open to all.
        base: tempfile::TempDir,
    }

    /// Every door that this caller can open: the direct one, and for root also the one to `postgres`.
    async fn doors() -> Vec<Door> {
        let caller = caller();
        let mut users = vec![caller.name];
        if caller.uid == 0 {
            users.push("postgres".to_owned());
        }
        let mut doors = Vec::new();
        for user in users {
            let host = LocalHost::new("here", Some(&user)).unwrap();
            let base = tempfile::tempdir().unwrap();
            std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            let own = base.path().join("own");
            host.make_directory(&own, 0o700).await.unwrap();
            doors.push(Door { host, own, base });
        }
        doors
    }

    async fn text(door: &Door, command: Command) -> String {
        door.host.run(&command).await.unwrap().text().trim().to_owned()
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Running processes with this argument; a zombie has none.
    fn processes_with(argument: &str) -> usize {
        let has = |directory: &Path| {
            let cmdline = std::fs::read(directory.join("cmdline")).unwrap_or_default();
            cmdline.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| has(&entry.path())).count()
    }

    #[tokio::test]
    async fn a_program_runs_as_the_os_user_in_a_small_environment() {
        for door in doors().await {
            let user = door.host.os_user().to_owned();
            assert_eq!(text(&door, Command::new("id").arg("-un")).await, user);
            let environment = text(&door, Command::new("env").env("PGPASSFILE", "/p")).await;
            let mut names: Vec<&str> =
                environment.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
            names.sort_unstable();
            assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "PGPASSFILE", "USER"]);
            let own = format!("USER={user}");
            assert!(environment.lines().any(|line| line == own), "{environment}");
            assert_eq!(text(&door, Command::new("pwd")).await, "/");
            let caller = text(&door, Command::new("id").arg("-un").user(RunAs::Caller)).await;
            assert_eq!(caller, door.host.caller());
        }
    }

    #[tokio::test]
    async fn a_program_of_the_os_user_has_all_its_groups() {
        for door in doors().await {
            let expected = text(&door, Command::new("id").args(["-G", "--", door.host.os_user()])).await;
            assert_eq!(text(&door, Command::new("id").arg("-G")).await, expected);
        }
    }

    #[tokio::test]
    async fn standard_input_is_what_was_given_or_nothing() {
        for door in doors().await {
            assert_eq!(text(&door, Command::new("cat")).await, "");
            let large = vec![b'x'; 1 << 20];
            let output =
                door.host.run(&Command::new("cat").stdin(Stdin::Bytes(large.clone()))).await.unwrap();
            assert_eq!(output.stdout, large);
            let unread = Command::new("true").stdin(Stdin::Bytes(large));
            assert!(door.host.run(&unread).await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_failed_program_tells_its_status_and_the_end_of_its_messages() {
        for door in doors().await {
            let script = "i=0; while [ $i -lt 1000 ]; do echo line $i >&2; i=$((i+1)); done; exit 7";
            let error = door.host.run(&Command::new("sh").args(["-c", script])).await.unwrap_err();
            let HostError::Exited { status, stderr, what, .. } = error else { panic!("{error}") };
            assert_eq!((status, what.as_str()), (7, "sh"));
            assert!(
                stderr.len() <= STDERR_TOLD + 8
                    && stderr.starts_with("… line ")
                    && stderr.ends_with("line 999")
            );
            let error = door.host.run(&Command::new("sh").args(["-c", "kill -9 $$"])).await.unwrap_err();
            assert!(matches!(error, HostError::Exited { status: 137, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_missing_program_was_not_started_and_is_named() {
        for door in doors().await {
            let error = door.host.run(&Command::new("/usr/lib/postgresql/99/bin/initdb")).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "initdb on host here was not started: /usr/lib/postgresql/99/bin/initdb: No such file or directory"
            );
            let error = door.host.run(&Command::new("/etc/passwd")).await.unwrap_err();
            assert!(
                matches!(&error, HostError::NotStarted { why, .. } if why.contains("ermission denied")),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_program_over_its_time_is_killed_with_what_it_started() {
        for door in doors().await {
            let mark = format!("61.{}", rand_digits());
            let script = format!("echo asleep >&2; sleep {mark} & sleep {mark}");
            let command = Command::new("sh").args(["-c", &script]).timeout(Duration::from_millis(300));
            let error = door.host.run(&command).await.unwrap_err();
            let HostError::Lost { why, .. } = &error else { panic!("{error}") };
            assert_eq!(why, "it did not end within 300 ms and was killed; its last message: asleep");
            until("both sleeps end", || processes_with(&mark) == 0).await;
        }
    }

    #[tokio::test]
    async fn dropping_the_call_kills_the_program() {
        for door in doors().await {
            let mark = format!("62.{}", rand_digits());
            let (host, argument) = (door.host.clone(), mark.clone());
            let call = tokio::spawn(async move { host.run(&Command::new("sleep").arg(argument)).await });
            until("the program runs", || processes_with(&mark) == 1).await;
            call.abort();
            until("the program is gone", || processes_with(&mark) == 0).await;
        }
    }

    #[tokio::test]
    async fn a_daemon_outlives_the_program_that_started_it_and_does_not_hold_it_up() {
        for door in doors().await {
            let mark = format!("63.{}", rand_digits());
            // The daemon keeps both pipes, as a server without a log file does.
            let script = format!("setsid sleep {mark} & echo $!");
            let begun = Instant::now();
            let command = Command::new("sh").args(["-c", &script]).timeout(Duration::from_secs(30));
            let daemon = text(&door, command).await;
            assert!(begun.elapsed() < Duration::from_secs(10));
            until("the daemon runs on", || processes_with(&mark) == 1).await;
            door.host.run(&Command::new("sh").args(["-c", &format!("kill {daemon}")])).await.unwrap();
        }
    }

    #[tokio::test]
    async fn lines_come_while_the_program_runs() {
        for door in doors().await {
            let seen: Arc<Mutex<Vec<(bool, String)>>> = Arc::default();
            let sink: LineSink = {
                let seen = seen.clone();
                Arc::new(move |is_stderr, line| seen.lock().unwrap().push((is_stderr, line.to_owned())))
            };
            let go = door.own.join("go");
            let script = format!(
                "printf '10%%\\r20%%\\r' >&2; until [ -e {} ]; do sleep 0.02; done; printf 'end' ",
                go.display()
            );
            let (host, command) = (door.host.clone(), Command::new("sh").args(["-c", &script]));
            let call = tokio::spawn(async move { host.stream(&command, sink).await });
            until("two lines come before the end", || seen.lock().unwrap().len() == 2).await;
            door.host.write_atomic(&go, b"", 0o600).await.unwrap();
            assert_eq!(call.await.unwrap().unwrap().text(), "end");
            let lines = seen.lock().unwrap().clone();
            let expected =
                [(true, "10%"), (true, "20%"), (false, "end")].map(|(err, line)| (err, line.to_owned()));
            assert_eq!(lines, expected);
        }
    }

    #[tokio::test]
    async fn a_file_is_replaced_whole_with_its_mode() {
        for door in doors().await {
            let path = door.own.join("pgherd.conf");
            for (bytes, mode) in
                [(b"port = 5441\n".to_vec(), 0o600), (vec![0, 255, b'\n'], 0o640), (Vec::new(), 0o400)]
            {
                door.host.write_atomic(&path, &bytes, mode).await.unwrap();
                assert_eq!(door.host.read(&path).await.unwrap(), Some(bytes.clone()));
                let stat = door.host.stat(&path).await.unwrap().unwrap();
                assert_eq!((stat.kind, stat.mode), (FileKind::File, mode));
                assert_eq!(stat.size.0, u64::try_from(bytes.len()).unwrap());
                assert_eq!(stat.owner, door.host.os_user());
            }
            assert_eq!(door.host.list(&door.own).await.unwrap().unwrap(), ["pgherd.conf"]);
        }
    }

    #[tokio::test]
    async fn a_link_is_replaced_and_never_written_through() {
        for door in doors().await {
            let (elsewhere, link) = (door.own.join("elsewhere"), door.own.join("link"));
            door.host.write_atomic(&elsewhere, b"kept", 0o600).await.unwrap();
            let (from, to) = (elsewhere.to_str().unwrap(), link.to_str().unwrap());
            door.host.run(&Command::new("ln").args(["-s", "--", from, to])).await.unwrap();
            assert_eq!(door.host.stat(&link).await.unwrap().unwrap().kind, FileKind::Link);
            door.host.write_atomic(&link, b"new", 0o600).await.unwrap();
            assert_eq!(door.host.stat(&link).await.unwrap().unwrap().kind, FileKind::File);
            assert_eq!(door.host.read(&elsewhere).await.unwrap().as_deref(), Some(b"kept".as_slice()));
        }
    }

    #[tokio::test]
    async fn no_link_of_the_os_user_leads_to_what_only_root_may_see() {
        for door in doors().await {
            let closed = door.base.path().join("closed");
            std::fs::create_dir(&closed).unwrap();
            let secret = closed.join("secret");
            std::fs::write(&secret, "of root").unwrap();
            std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
            let link = |to: &Path, name: &str| {
                let link = door.own.join(name);
                std::os::unix::fs::symlink(to, &link).unwrap();
                std::os::unix::fs::lchown(&link, Some(door.host.os_user.uid), None).unwrap();
                link
            };
            let (to_file, to_directory) = (link(&secret, "file"), link(&closed, "directory"));
            let host = &door.host;
            // First a file that may be reached and not read, then a directory that may not even be entered.
            for mode in [0o755, 0o700] {
                std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(mode)).unwrap();
                let through = to_directory.join("secret");
                let told = [
                    host.read(&to_file).await.map(drop),
                    host.read(&through).await.map(drop),
                    host.append(&to_file, 7, b"x").await.map(drop),
                    host.write_atomic(&to_directory.join("new"), b"x", 0o600).await,
                    host.write_atomic(&through, b"x", 0o600).await,
                    host.make_directory(&to_directory.join("sub"), 0o700).await,
                    host.remove_file(&through).await,
                ];
                if host.other.is_none() {
                    continue;
                }
                for told in told {
                    let refused =
                        matches!(&told, Err(HostError::File { kind: io::ErrorKind::PermissionDenied, .. }));
                    assert!(refused, "{told:?}");
                }
                assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of root");
            }
            if host.other.is_some() {
                assert!(host.list(&to_directory).await.is_err());
                assert!(host.stat(&to_directory.join("secret")).await.is_err());
                let names = std::fs::read_dir(&closed).unwrap().count();
                assert_eq!(names, 1);
            }
        }
    }

    #[tokio::test]
    async fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        for door in doors().await {
            let pipe = door.own.join("pipe");
            door.host.run(&Command::new("mkfifo").arg(pipe.to_str().unwrap())).await.unwrap();
            let error = door.host.read(&pipe).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("could not read {} on host here: it is not a file", pipe.display())
            );
        }
    }

    #[tokio::test]
    async fn what_is_appended_goes_to_a_file_of_that_length_alone() {
        for door in doors().await {
            let path = door.own.join("log");
            assert_eq!(door.host.append(&path, 3, b"x").await.unwrap(), 0);
            assert_eq!(door.host.read(&path).await.unwrap(), None);
            let nowhere = door.host.append(&door.own.join("missing/log"), 0, b"x").await.unwrap_err();
            assert!(matches!(nowhere, HostError::File { kind: io::ErrorKind::NotFound, .. }), "{nowhere}");
            assert_eq!(door.host.append(&path, 0, b"one").await.unwrap(), 0);
            assert_eq!(door.host.append(&path, 0, b"two").await.unwrap(), 3);
            assert_eq!(door.host.append(&path, 3, b"two").await.unwrap(), 3);
            assert_eq!(door.host.read(&path).await.unwrap().as_deref(), Some(b"onetwo".as_slice()));
            let stat = door.host.stat(&path).await.unwrap().unwrap();
            assert_eq!((stat.mode, stat.owner.as_str()), (0o600, door.host.os_user()));
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_none_and_may_be_removed() {
        for door in doors().await {
            let absent = door.own.join("absent");
            assert_eq!(door.host.read(&absent).await.unwrap(), None);
            assert_eq!(door.host.stat(&absent).await.unwrap(), None);
            assert_eq!(door.host.list(&absent).await.unwrap(), None);
            door.host.remove_file(&absent).await.unwrap();
            door.host.remove_tree(&absent).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_refusal_tells_its_kind() {
        for door in doors().await {
            let file = door.own.join("file");
            door.host.write_atomic(&file, b"", 0o600).await.unwrap();
            let kind = |error: HostError| {
                let HostError::File { kind, .. } = error else { panic!("{error}") };
                kind
            };
            assert_eq!(kind(door.host.list(&file).await.unwrap_err()), io::ErrorKind::NotADirectory);
            assert_eq!(kind(door.host.read(&door.own).await.unwrap_err()), io::ErrorKind::IsADirectory);
            assert_eq!(
                kind(door.host.remove_file(&door.own).await.unwrap_err()),
                io::ErrorKind::IsADirectory
            );
            let below_a_file = door.host.write_atomic(&file.join("x"), b"", 0o600).await.unwrap_err();
            assert_eq!(kind(below_a_file), io::ErrorKind::NotADirectory);
            let relative = door.host.read(Path::new("etc/passwd")).await.unwrap_err();
            assert_eq!(kind(relative), io::ErrorKind::InvalidInput);
        }
    }

    #[tokio::test]
    async fn a_failed_write_leaves_what_was_there_and_no_litter() {
        for door in doors().await {
            let taken = door.own.join("taken");
            door.host.make_directory(&taken.join("kept"), 0o700).await.unwrap();
            assert!(door.host.write_atomic(&taken, b"x", 0o600).await.is_err());
            assert_eq!(door.host.list(&door.own).await.unwrap().unwrap(), ["taken"]);
            assert_eq!(door.host.list(&taken).await.unwrap().unwrap(), ["kept"]);
        }
    }

    #[tokio::test]
    async fn a_directory_is_the_os_users_and_its_parents_are_the_callers() {
        for door in doors().await {
            let path = door.base.path().join("x/y/data");
            door.host.make_directory(&path, 0o700).await.unwrap();
            let stat = door.host.stat(&path).await.unwrap().unwrap();
            assert_eq!(
                (stat.kind, stat.mode, stat.owner.as_str()),
                (FileKind::Directory, 0o700, door.host.os_user())
            );
            let parent = std::fs::metadata(door.base.path().join("x/y")).unwrap();
            assert_eq!((parent.mode() & 0o7777, parent.uid()), (0o755, door.host.caller.uid));
            assert_eq!(door.host.list(&door.base.path().join("x/y")).await.unwrap().unwrap(), ["data"]);
        }
    }

    #[tokio::test]
    async fn below_the_os_users_directory_everything_is_the_os_users() {
        for door in doors().await {
            let path = door.own.join("a/b");
            door.host.make_directory(&path, 0o750).await.unwrap();
            let stat = door.host.stat(&door.own.join("a")).await.unwrap().unwrap();
            assert_eq!((stat.mode, stat.owner.as_str()), (0o755, door.host.os_user()));
            let stat = door.host.stat(&path).await.unwrap().unwrap();
            assert_eq!((stat.mode, stat.owner.as_str()), (0o750, door.host.os_user()));
        }
    }

    #[tokio::test]
    async fn an_existing_directory_is_left_as_it_is() {
        for door in doors().await {
            let before = std::fs::metadata(&door.own).unwrap();
            door.host.make_directory(&door.own, 0o755).await.unwrap();
            let after = std::fs::metadata(&door.own).unwrap();
            assert_eq!((before.mode(), before.uid()), (after.mode(), after.uid()));
            let file = door.own.join("file");
            door.host.write_atomic(&file, b"", 0o600).await.unwrap();
            assert!(door.host.make_directory(&file, 0o700).await.is_err());
            let closed = door.base.path().join("closed");
            std::fs::create_dir(&closed).unwrap();
            std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
            let refused = door.host.make_directory(&closed.join("data"), 0o700).await;
            match door.host.other {
                Some(_) => {
                    assert!(refused.unwrap_err().to_string().ends_with("may not be entered by postgres"))
                }
                None => refused.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn a_tree_is_removed_without_following_its_links() {
        for door in doors().await {
            let (tree, outside) = (door.base.path().join("tree"), door.own.join("outside"));
            door.host.make_directory(&tree, 0o700).await.unwrap();
            door.host.make_directory(&tree.join("sub"), 0o700).await.unwrap();
            door.host.make_directory(&outside, 0o700).await.unwrap();
            door.host.write_atomic(&outside.join("kept"), b"", 0o600).await.unwrap();
            let (from, to) =
                (outside.to_str().unwrap().to_owned(), tree.join("sub/link").to_str().unwrap().to_owned());
            door.host
                .run(&Command::new("ln").args(["-s".to_owned(), "--".to_owned(), from, to]))
                .await
                .unwrap();
            door.host.remove_tree(&tree).await.unwrap();
            assert!(!tree.exists());
            assert_eq!(door.host.list(&outside).await.unwrap().unwrap(), ["kept"]);
        }
    }

    #[tokio::test]
    async fn the_machine_is_measured() {
        for door in doors().await {
            let disk = door.host.disk(&door.own.join("not/there/yet")).await.unwrap();
            assert!(disk.total >= disk.free && disk.total.0 > 0);
            let kilobytes: u64 = std::fs::read_to_string("/proc/meminfo")
                .unwrap()
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(door.host.memory().await.unwrap(), ByteCount(kilobytes * 1024));
            assert!(door.host.process_exists(std::process::id()).await.unwrap());
            assert!(door.host.process_exists(1).await.unwrap());
            assert!(!door.host.process_exists(0).await.unwrap());
            assert!(!door.host.process_exists(u32::MAX).await.unwrap());
        }
    }

    #[test]
    fn refuses_a_user_that_does_not_exist() {
        let error = LocalHost::new("here", Some("nobody-of-that-name")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.what(), "the user nobody-of-that-name does not exist on this machine");
    }

    #[test]
    fn an_unprivileged_caller_may_not_become_somebody_else() {
        let caller = caller();
        match (caller.uid, LocalHost::new("here", Some("daemon"))) {
            (0, opened) => assert_eq!(opened.unwrap().os_user(), "daemon"),
            (_, refused) => {
                let error = refused.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused);
                assert_eq!(error.hint_text(), Some("Run pgherd as daemon or as root."));
            }
        }
    }

    #[test]
    fn reads_a_passwd_line() {
        let user =
            parse_passwd("postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n")
                .unwrap();
        assert_eq!(
            (user.name.as_str(), user.uid, user.gid, user.home.as_str()),
            ("postgres", 101, 104, "/var/lib/postgresql")
        );
        assert_eq!(parse_passwd(""), None);
    }

    fn rand_digits() -> u32 {
        let mut bytes = [0_u8; 4];
        getrandom::fill(&mut bytes).unwrap();
        u32::from_ne_bytes(bytes)
    }
}
