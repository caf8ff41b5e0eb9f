//! A machine behind the system's own OpenSSH, with its configuration, agent, jump hosts and known host keys.
//!
//! Every call is one command through one shared connection ([`connection`]), as the os-user: directly where that user logs in, through
//! setpriv(1) where root does, through `sudo -n` otherwise. Host keys are always checked. A command that was sent and whose end did not
//! come back is [`HostError::Lost`], whatever the reason; nothing is sent twice. What a lost call has begun is waited for before the next
//! call of anybody who changes the host: a look that came before its end would find what is not so a moment later.

mod calls;
mod connection;
mod facts;
mod quote;
mod trouble;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use connection::Target;
use connection::{Connection, Sent, Way};
use facts::Facts;

use super::local::tail;
use super::process::{End, Input};
use super::{
    BoxFuture, Command, DiskSpace, Effect, FileStat, Host, HostError, LineSink, Output, RunAs, SILENCE,
    Stdin, Tunnel, coreutils,
};
use crate::error::Error;
use crate::units::ByteCount;

/// Where programs are looked for there.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that changes something and reads nothing gets an input on which we say every few seconds that we are there. When that ends, or
/// nothing has come for so many seconds (`NAME SECONDS PROGRAM...`), the program is ended with everything in its process group, as a local
/// one is when nobody waits for it any more: sshd learns only after hours that the way to us is cut. A daemon that left the group stays.
const WATCH: &str = r#"n=$1
shift
exec 3<&0
"$@" </dev/null 3<&- &
p=$!
{ while [ -n "$(timeout --foreground "$n" head -c 1 <&3 | tr '\n' x)" ]; do :; done; kill -s KILL 0; } >/dev/null 2>&1 &
w=$!
exec 3<&-
wait "$p"; s=$?
kill -s KILL "$w" 2>/dev/null
exit "$s""#;

/// A program that watches by itself whether we are there; the shell stays, so that its name tells of the call.
const NAMED: &str = r#""$@"
exit "$?""#;

/// Replaces a file: `DIRECTORY NAME MODE SIZE`. What a broken connection cut short is not what was sent, so its size is checked; and the end
/// of the input is not waited for, since it may come hours later, when the file has long been replaced by another.
const WRITE: &str = r#"t=$(mktemp -- "$1/.$2.pgherd-XXXXXXXX") || exit 1
dd "of=$t" bs=64K count="$4" iflag=fullblock,count_bytes conv=notrunc,nocreat,fsync status=none &&
    { [ "$(stat -c %s -- "$t")" = "$4" ] || { echo 'not all of it arrived' >&2; false; }; } &&
    chmod "$3" -- "$t" && mv -f -T -- "$t" "$1/$2" && exec sync -- "$1" "$1/$2"
s=$?
rm -f -- "$t"
exit "$s""#;

/// Appends to a file: `DIRECTORY NAME LENGTH SIZE`; prints how long it was, and leaves one of another length as it is. All of it has to be
/// there before the file is touched, and one call at a time touches it.
const APPEND: &str = r#"umask 077
t=$(mktemp -- "$1/.$2.pgherd-XXXXXXXX") || exit 1
dd "of=$t" bs=64K count="$4" iflag=fullblock,count_bytes conv=notrunc,nocreat status=none &&
    { [ "$(stat -c %s -- "$t")" = "$4" ] || { echo 'not all of it arrived' >&2; false; }; } &&
    exec 9>>"$1/$2" && flock -w 2 9 && n=$(stat -c %s -- "$1/$2") && echo "$n" &&
    { [ "$n" != "$3" ] || { cat -- "$t" >&9 && sync -- "$1/$2" "$1"; }; }
s=$?
rm -f -- "$t"
exit "$s""#;

/// Makes a directory for another user, as root: `PATH MODE OWNER`. Ends with 3, and does nothing, where somebody else than root could
/// change the directories above, or has made a link on the way there. The new directory gets its name only when it has its owner and mode.
const HAND_OVER: &str = r#"p=$1
a=$p
while [ ! -e "$a" ]; do a=$(dirname -- "$a"); done
[ "$a" != "$p" ] || { echo 'File exists' >&2; exit 1; }
r=$(realpath -e -- "$a") || exit 1
for d in "$r" "$a"; do
    while :; do
        o=$(stat -c %u -- "$d") && m=$(stat -c %a -- "$d") || exit 1
        [ "$o" = 0 ] || exit 3
        if [ ! -L "$d" ] && [ $((0$m & 022)) != 0 ] && [ $((0$m & 01000)) = 0 ]; then exit 3; fi
        [ "$d" != / ] || break
        d=$(dirname -- "$d")
    done
done
up=$(dirname -- "$p")
[ -e "$up" ] || mkdir -p -m 0755 -- "$up" || exit 1
n="$up/.${p##*/}.pgherd-new"
[ ! -e "$n" ] || rmdir -- "$n" || exit 1
mkdir -m "$2" -- "$n" && chown -h "$3" -- "$n" && mv -T -- "$n" "$p" && exec sync -- "$up""#;

/// Who sees that a program on the host ends when nobody waits for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// [`WATCH`].
    ByUs,
    ByItself,
    /// It is short, or only looks.
    Nobody,
}

impl Watch {
    fn of(command: &Command) -> Self {
        match (&command.stdin, command.effect) {
            (Stdin::Nothing, Effect::Changes) => Self::ByUs,
            (Stdin::Line(_), _) => Self::ByItself,
            (Stdin::Nothing | Stdin::Bytes(_) | Stdin::Secret(_), _) => Self::Nobody,
        }
    }
}

/// A machine behind ssh, on behalf of one os-user.
#[derive(Debug, Clone)]
pub struct SshHost {
    name: String,
    os_user: String,
    connection: Arc<Connection>,
    /// No command may take longer.
    patience: Option<Duration>,
}

impl SshHost {
    /// Prepares the door; nothing is sent before the first call.
    ///
    /// # Errors
    /// When there is no ssh on this machine, or no private directory for its sockets.
    pub fn new(name: &str, target: &Target, os_user: &str) -> Result<Self, Error> {
        let connection = connection::connection(target)?;
        Ok(Self { name: name.to_owned(), os_user: os_user.to_owned(), connection, patience: None })
    }

    /// Gives no command longer than this from the moment that it is sent; waiting for the connection, and for its turn on it, is apart.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    async fn facts(&self, what: &str) -> Result<Arc<Facts>, HostError> {
        self.connection.ensure(&self.os_user).await.map_err(|troubles| HostError::NotStarted {
            host: self.name.clone(),
            what: what.to_owned(),
            why: trouble::told(&troubles),
        })
    }

    async fn run_with(&self, command: &Command, lines: Option<&LineSink>) -> Result<Output, HostError> {
        let what = command.title();
        let facts = self.facts(&what).await?;
        let watch = Watch::of(command);
        let stdin = if watch == Watch::ByUs { Input::Beats(b"") } else { Input::from(&command.stdin) };
        let host = self.name.clone();
        let limit = self.patience.map_or(command.timeout, |patience| patience.min(command.timeout));
        if self.patience.is_none()
            && let Err(why) = self.connection.settle(&self.os_user).await
        {
            return Err(HostError::NotStarted { host, what, why });
        }
        let call = self.connection.begin_call();
        let argv = self.argv(&facts, command, watch, call.name());
        let line = format!("cd / && exec {}", quote::line(argv.iter().map(String::as_str)));
        let sent = self.connection.send(&self.os_user, &line, stdin, limit, lines).await;
        if let (Sent::Ended(End::Exited { status: 255, .. } | End::Lost(_)), Watch::ByUs | Watch::ByItself) =
            (&sent, watch)
        {
            drop(call);
        } else {
            call.has_ended();
        }
        let end = match sent {
            Sent::Ended(end) => end,
            Sent::NotSent(why) => return Err(HostError::NotStarted { host, what, why }),
        };
        match end {
            End::Exited { status: 0, stdout, stderr } => Ok(Output { stdout, stderr }),
            // 255 is ssh's own; a program that ends so, or by a signal, looks the same, and unknown is never wrong.
            End::Exited { status: 255, stderr, .. } => {
                let said = stderr.trim().lines().last().unwrap_or("").to_owned();
                let why = match said.as_str() {
                    "" => "the connection ended before the command did".to_owned(),
                    said => format!("the connection ended before the command did ({said})"),
                };
                Err(HostError::Lost { host, what, why })
            }
            End::Exited { status, stderr, .. } => match not_begun(&command.program, status, &stderr) {
                Some(why) => Err(HostError::NotStarted { host, what, why }),
                None => Err(HostError::Exited { host, what, status, stderr: tail(&stderr) }),
            },
            End::NotStarted(error) => Err(HostError::NotStarted { host, what, why: format!("ssh: {error}") }),
            End::Lost(why) => Err(HostError::Lost { host, what, why }),
        }
    }

    /// Returns what the login shell there starts.
    fn argv(&self, facts: &Facts, command: &Command, watch: Watch, call: &str) -> Vec<String> {
        let mut argv: Vec<String> = Vec::new();
        let (login, login_uid) = (&self.connection.user, facts.uid);
        let (os_uid, os_gid, os_home) = &facts.os_user;
        let (user, home) = match command.user {
            RunAs::OsUser if login_uid == *os_uid => (&self.os_user, os_home),
            RunAs::OsUser => {
                if login_uid == 0 {
                    let ids = [format!("--reuid={os_uid}"), format!("--regid={os_gid}")];
                    argv.push("setpriv".to_owned());
                    argv.extend(ids);
                    argv.extend(["--init-groups", "--"].map(str::to_owned));
                } else {
                    argv.extend(["sudo", "-n", "-u", &self.os_user, "--"].map(str::to_owned));
                }
                (&self.os_user, os_home)
            }
            RunAs::Caller => {
                if login_uid != 0 && facts.may_be_root {
                    argv.extend(["sudo", "-n", "--"].map(str::to_owned));
                }
                (login, &facts.home)
            }
        };
        argv.extend(["/usr/bin/env".to_owned(), "-i".to_owned()]);
        let fixed = [
            format!("PATH={SEARCH_PATH}"),
            format!("HOME={home}"),
            format!("USER={user}"),
            format!("LOGNAME={user}"),
            "LANG=C.UTF-8".to_owned(),
        ];
        argv.extend(fixed);
        argv.extend(command.env.iter().map(|(name, value)| format!("{name}={value}")));
        let program = command.program.display().to_string();
        match watch {
            Watch::ByUs => {
                argv.extend(["sh", "-c", WATCH, call].map(str::to_owned));
                argv.push(SILENCE.as_secs().to_string());
            }
            Watch::ByItself => argv.extend(["sh", "-c", NAMED, call].map(str::to_owned)),
            // env(1) would take it for a variable.
            Watch::Nobody if program.contains('=') => {
                argv.extend(["sh", "-c", "exec \"$@\"", "pgherd"].map(str::to_owned));
            }
            Watch::Nobody => {}
        }
        argv.push(program);
        argv.extend(command.args.iter().cloned());
        argv
    }

    /// Runs one of our scripts with its arguments.
    async fn script(
        &self,
        doing: &str,
        script: &str,
        arguments: &[&str],
        stdin: Stdin,
        user: RunAs,
    ) -> Result<(), HostError> {
        let command = Command::new("sh")
            .args(["-c", script, "pgherd"])
            .args(arguments.iter().copied())
            .stdin(stdin)
            .user(user);
        coreutils::run(self, doing, &command).await.map(drop)
    }

    async fn make(&self, path: &Path, mode: u32) -> Result<(), HostError> {
        let doing = "make the directory";
        if coreutils::make_where_it_may(self, path, mode).await? {
            return Ok(());
        }
        let facts = self.facts(doing).await?;
        let (os_uid, os_gid, _) = &facts.os_user;
        if facts.may_be_root && facts.uid != *os_uid {
            let owner = format!("{os_uid}:{os_gid}");
            let mode = format!("{mode:o}");
            let whole = format!("{doing} {}", path.display());
            let target = coreutils::text(self, &whole, path)?;
            let command = Command::new("sh")
                .args(["-c", HAND_OVER, "pgherd", target, &mode, &owner])
                .user(RunAs::Caller);
            match self.run_with(&command, None).await {
                // Somebody else could change what is above: there the os-user has to make it itself.
                Err(HostError::Exited { status: 3, .. }) => {}
                Ok(_) => return Ok(()),
                Err(HostError::Exited { .. }) => {
                    return coreutils::run(self, &whole, &command).await.map(drop);
                }
                Err(error) => return Err(error),
            }
        }
        let mut missing: Vec<&Path> = Vec::new();
        for above in path.ancestors() {
            if coreutils::stat(self, above).await?.is_some() {
                break;
            }
            missing.push(above);
        }
        for directory in missing.iter().rev() {
            let mode = if *directory == path { mode } else { 0o755 };
            match coreutils::make_one_directory(self, directory, mode).await {
                Err(HostError::File { kind: io::ErrorKind::PermissionDenied, .. }) => {
                    let why = format!(
                        "{} may not make it; have root make it there: install -d -o {} -m {mode:04o} {}",
                        self.os_user,
                        self.os_user,
                        directory.display()
                    );
                    return Err(coreutils::refused(
                        self,
                        doing,
                        directory,
                        io::ErrorKind::PermissionDenied,
                        &why,
                    ));
                }
                made_or_failed => made_or_failed?,
            }
        }
        Ok(())
    }
}

impl Host for SshHost {
    fn name(&self) -> &str {
        &self.name
    }

    fn os_user(&self) -> &str {
        &self.os_user
    }

    fn caller(&self) -> &str {
        &self.connection.user
    }

    fn tunnel(&self) -> Option<Arc<dyn Tunnel>> {
        Some(Arc::new(Way { connection: Arc::clone(&self.connection), os_user: self.os_user.clone() }))
    }

    fn reach<'a>(&'a self) -> BoxFuture<'a, Result<(), Vec<Error>>> {
        Box::pin(async move {
            let told = |trouble| Error::from(trouble).context(format!("reach host {}", self.name));
            let facts = self
                .connection
                .ensure(&self.os_user)
                .await
                .map_err(|troubles| troubles.into_iter().map(told).collect::<Vec<_>>())?;
            if facts.machine == std::env::consts::ARCH {
                return Ok(());
            }
            Err(vec![
                Error::refused(format!(
                    "host {} is {}, this pgherd is built for {}",
                    self.name,
                    facts.machine,
                    std::env::consts::ARCH
                ))
                .detail("The work on a node's files is done there by a copy of the program that runs here.")
                .hint(format!("Run pgherd from a {} machine.", facts.machine)),
            ])
        })
    }

    /// Runs a program to its end.
    ///
    /// Dropping the future ends the ssh that waits for it, and thereby a program that changes something and reads nothing; one that
    /// reads its input sees the end of it, and one that prints finds nobody listening.
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
            coreutils::read(self, path).await
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
            let doing = format!("write {}", path.display());
            let (directory, name) = coreutils::split(self, &doing, path)?;
            let (mode, size) = (format!("{mode:o}"), bytes.len().to_string());
            let arguments = [directory, name, &mode, &size];
            self.script(&doing, WRITE, &arguments, Stdin::Bytes(bytes.to_vec()), RunAs::OsUser).await
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
            let doing = format!("append to {}", path.display());
            let (directory, name) = coreutils::split(self, &doing, path)?;
            let (at, size) = (at.to_string(), bytes.len().to_string());
            let command = Command::new("sh")
                .args(["-c", APPEND, "pgherd", directory, name, &at, &size])
                .stdin(Stdin::Bytes(bytes.to_vec()));
            let answer = coreutils::run(self, &doing, &command).await?;
            let length = String::from_utf8_lossy(&answer);
            length.trim().parse().map_err(|_| coreutils::unreadable_answer(self, &doing, "stat", &answer))
        })
    }

    fn make_directory<'a>(&'a self, path: &'a Path, mode: u32) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "make the directory", path)?;
            self.make(path, mode).await
        })
    }

    fn remove_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "remove", path)?;
            coreutils::remove_file(self, path).await
        })
    }

    fn remove_tree<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "remove", path)?;
            let removed = coreutils::remove_tree(self, path).await;
            if removed.is_ok() || self.connection.user == self.os_user {
                return removed;
            }
            // The os-user could empty the directory but not take it out of a parent that is not its own: rmdir takes no files with it.
            match coreutils::remove_empty_directory_as_caller(self, path).await {
                Ok(()) => Ok(()),
                Err(_) => removed,
            }
        })
    }

    fn stat<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<FileStat>, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "look at", path)?;
            coreutils::stat(self, path).await
        })
    }

    fn list<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Option<Vec<String>>, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "list", path)?;
            coreutils::list(self, path).await
        })
    }

    fn disk<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<DiskSpace, HostError>> {
        Box::pin(async move {
            coreutils::absolute(self, "measure the disk of", path)?;
            coreutils::disk(self, path).await
        })
    }

    fn process_exists<'a>(&'a self, pid: u32) -> BoxFuture<'a, Result<bool, HostError>> {
        Box::pin(
            async move { Ok(coreutils::stat(self, &PathBuf::from(format!("/proc/{pid}"))).await?.is_some()) },
        )
    }

    fn memory<'a>(&'a self) -> BoxFuture<'a, Result<ByteCount, HostError>> {
        Box::pin(async move {
            let doing = "measure the memory";
            let table = coreutils::read(self, Path::new("/proc/meminfo")).await?.unwrap_or_default();
            let table = String::from_utf8_lossy(&table);
            let kilobytes =
                table.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
            match kilobytes.and_then(|number| number.parse::<u64>().ok()) {
                Some(kilobytes) => Ok(ByteCount(kilobytes * 1024)),
                None => Err(HostError::File {
                    host: self.name.clone(),
                    what: doing.to_owned(),
                    kind: io::ErrorKind::InvalidData,
                    why: "/proc/meminfo does not say MemTotal".to_owned(),
                }),
            }
        })
    }
}

/// Tells why a program did not begin, if it did not: what starts it there says so in its own name.
fn not_begun(program: &Path, status: i32, stderr: &str) -> Option<String> {
    let message = stderr.trim().lines().last()?;
    let by = |name: &str| message.starts_with(name);
    match status {
        126 | 127
            if by("/usr/bin/env: ")
                || by("env: ")
                || by("pgherd: ")
                || by(calls::PREFIX)
                || by("setpriv: ")
                || by("sh: ") =>
        {
            let why = message.rsplit(": ").next().unwrap_or(message);
            let why = if why == "not found" { "No such file or directory" } else { why };
            Some(format!("{}: {why}", program.display()))
        }
        1 if by("sudo: ") || by("setpriv: ") => Some(message.to_owned()),
        _ => None,
    }
}
