//! One connection to a machine, shared by everything that speaks to it: OpenSSH's master, what was found behind it, its tunnels.
//!
//! The master is OpenSSH's own (`ControlMaster`); it outlives us by `ControlPersist`, so that the next run finds a warm connection.
//! Commands go only through it: one that would have to connect by itself is told so before anything was sent.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::calls::{self, Call, Calls};
use super::facts::Facts;
use super::quote;
use super::trouble::{self, Trouble};
use crate::error::{Error, ErrorKind};
use crate::gate::{BoxFuture, Tunnel};
use crate::host::process::{self, End, Input};
use crate::host::{LineSink, SILENCE};

/// How long the master may take to connect, to exchange keys and to log in.
const CONNECT_SECONDS: u32 = 10;
/// The same with the first look at the machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long a master that is there may take to answer: one whose host was cut off meanwhile says nothing until TCP tries again, or gives up.
const WARM_LIMIT: Duration = Duration::from_secs(3);
/// How long a failed attempt stands for the next ones: a look asks a host many things at once.
const FAILED_STANDS: Duration = Duration::from_secs(2);
/// How long the master stays without work.
const PERSIST: &str = "ControlPersist=60";
/// How many commands may run at once over one connection: sshd allows 10 by default (`MaxSessions`), and another pgherd may share it.
const SESSIONS: usize = 8;
/// How long a command waits for the server to allow one more session.
const CROWDED: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the master may take to answer a question about itself.
const CONTROL_LIMIT: Duration = Duration::from_secs(5);

/// For how long it stands that nothing runs there which nobody waits for.
const SETTLED_STANDS: Duration = Duration::from_secs(5);
/// How long what a lost call has begun may take to end: it learns within [`SILENCE`] that it is lost, and has a while to put things away.
const SETTLE: Duration = SILENCE.saturating_add(Duration::from_secs(30));

/// Where a machine is and how it is logged in to. What is not stated is OpenSSH's own configuration's business.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: String,
    pub port: Option<u16>,
    pub user: Option<String>,
    /// The private key to use, and no other.
    pub key: Option<PathBuf>,
    /// The only file of known host keys.
    pub host_keys: Option<PathBuf>,
    /// An ssh_config(5) in place of the user's own.
    pub config: Option<PathBuf>,
}

/// A machine's connection.
#[derive(Debug)]
pub(super) struct Connection {
    target: Target,
    /// Who logs in.
    pub(super) user: String,
    control: PathBuf,
    /// Tells our own word on standard error from everybody else's.
    token: String,
    state: tokio::sync::Mutex<State>,
    sessions: Semaphore,
    tunnels: tokio::sync::Mutex<Tunnels>,
    /// What the destructor has to take back.
    open: Mutex<Vec<String>>,
    generation: AtomicU64,
    calls: Calls,
    settled: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct State {
    /// By os-user.
    facts: BTreeMap<String, Arc<Facts>>,
    failed: BTreeMap<String, (Instant, Vec<Trouble>)>,
}

/// Tunnels by their far end; each is a directory here.
#[derive(Debug, Default)]
struct Tunnels {
    base: Option<PathBuf>,
    made: BTreeMap<String, (u64, PathBuf)>,
}

/// How a command through the master ended.
pub(super) enum Sent {
    Ended(End),
    /// Nothing was sent.
    NotSent(String),
}

/// Returns the connection to a target; everybody in this process has the same one.
pub(super) fn connection(target: &Target) -> Result<Arc<Connection>, Error> {
    static CONNECTIONS: Mutex<BTreeMap<Target, Weak<Connection>>> = Mutex::new(BTreeMap::new());
    let mut connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = connections.get(target).and_then(Weak::upgrade) {
        return Ok(known);
    }
    let made = Arc::new(Connection::new(target)?);
    connections.insert(target.clone(), Arc::downgrade(&made));
    Ok(made)
}

impl Connection {
    fn new(target: &Target) -> Result<Self, Error> {
        let user = effective_user(target)?;
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
        let name = blake3::hash(format!("{target:?} {user}").as_bytes()).to_hex();
        Ok(Self {
            target: target.clone(),
            user,
            control: control_directory()?.join(&name[..16]),
            token: format!("pgherd-{:016x}-not-sent", u64::from_ne_bytes(random)),
            state: tokio::sync::Mutex::default(),
            sessions: Semaphore::new(SESSIONS),
            tunnels: tokio::sync::Mutex::default(),
            open: Mutex::default(),
            generation: AtomicU64::new(0),
            calls: Calls::default(),
            settled: tokio::sync::Mutex::default(),
        })
    }

    /// Sees that the master is there, and returns what is behind it.
    ///
    /// Whoever stops waiting does not stop the attempt, so that a slow host is reached for the next one who asks.
    pub(super) async fn ensure(self: &Arc<Self>, os_user: &str) -> Result<Arc<Facts>, Vec<Trouble>> {
        if let Ok(state) = self.state.try_lock()
            && let Some(facts) = state.facts.get(os_user)
        {
            return Ok(Arc::clone(facts));
        }
        let (this, os_user) = (Arc::clone(self), os_user.to_owned());
        let attempt = tokio::spawn(async move {
            let mut state = this.state.lock().await;
            if let Some(facts) = state.facts.get(&os_user) {
                return Ok(Arc::clone(facts));
            }
            if let Some((at, troubles)) = state.failed.get(&os_user)
                && at.elapsed() < FAILED_STANDS
            {
                return Err(troubles.clone());
            }
            match this.connect(&os_user).await {
                Ok(facts) => {
                    let facts = Arc::new(facts);
                    state.failed.remove(&os_user);
                    state.facts.insert(os_user, Arc::clone(&facts));
                    this.generation.fetch_add(1, Ordering::Relaxed);
                    Ok(facts)
                }
                Err(troubles) => {
                    state.failed.insert(os_user, (Instant::now(), troubles.clone()));
                    Err(troubles)
                }
            }
        });
        attempt.await.unwrap_or_else(|error| Err(vec![trouble::other(&self.address(), &error.to_string())]))
    }

    /// Connects, unless a master is there, and looks at the machine: who we are, what we may, what is missing.
    async fn connect(&self, os_user: &str) -> Result<Facts, Vec<Trouble>> {
        let line = quote::line(["exec", "sh", "-c", LOOK, "pgherd", os_user]);
        if self.control.exists() {
            match process::run(self.through_master(&line), Input::Nothing, WARM_LIMIT, None).await {
                End::Exited { status: 0, stdout, .. } => {
                    let look = String::from_utf8_lossy(&stdout).into_owned();
                    return trouble::read_look(&self.address(), &self.user, os_user, &look);
                }
                // It takes nothing more and leaves its place; what others still have going through it goes on, if anything does.
                End::Lost(_) => {
                    if let Err(why) = self.control(&["-O", "stop"]).await {
                        tracing::debug!(why, "a master that does not answer was not stopped");
                    }
                }
                End::Exited { .. } | End::NotStarted(_) => {}
            }
        }
        let mut ssh = self.ssh();
        ssh.args(["-T", "-o", "ControlMaster=auto", "-o", PERSIST])
            // What the user's configuration forwards is not ours to forward.
            .args(["-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"])
            .args(["--", &self.target.address, &line]);
        let look = match process::run(ssh, Input::Nothing, CONNECT_LIMIT, None).await {
            End::Exited { status: 0, stdout, .. } => String::from_utf8_lossy(&stdout).into_owned(),
            End::Exited { status: 255, stderr, .. } => {
                return Err(vec![self.explain(&stderr).await]);
            }
            End::Exited { status, stderr, .. } => {
                let why = format!("its shell ended with status {status}: {}", stderr.trim());
                return Err(vec![trouble::other(&self.address(), &why)]);
            }
            End::NotStarted(error) => {
                return Err(vec![trouble::other(&self.address(), &format!("ssh: {error}"))]);
            }
            End::Lost(_) => {
                return Err(vec![trouble::silent(&self.address(), CONNECT_LIMIT)]);
            }
        };
        trouble::read_look(&self.address(), &self.user, os_user, &look)
    }

    /// Finds out why ssh did not connect. Asks once more where the first answer does not tell the key that was offered.
    async fn explain(&self, stderr: &str) -> Trouble {
        if !trouble::is_about_host_key(stderr) {
            return trouble::not_connected(&self.address(), &self.user, stderr);
        }
        let mut ssh = self.ssh();
        // The first value of an option is the one that counts, so this one is put before.
        ssh.args(["-T", "-v", "-o", "ControlMaster=no", "-S", "none", "--", &self.target.address, "true"]);
        let told = match process::run(ssh, Input::Nothing, CONNECT_LIMIT, None).await {
            End::Exited { stderr, .. } => stderr,
            End::NotStarted(_) | End::Lost(_) => String::new(),
        };
        let known = match trouble::offending_line(stderr) {
            Some((file, line)) => self.fingerprint_in(&file, line).await,
            None => None,
        };
        trouble::host_key(&self.address(), stderr, &told, known.as_deref(), self.target.host_keys.as_deref())
    }

    /// Returns the fingerprint of a line of a file of known host keys.
    async fn fingerprint_in(&self, file: &Path, line: usize) -> Option<String> {
        let text = std::fs::read_to_string(file).ok()?;
        let entry = text.lines().nth(line.checked_sub(1)?)?;
        let mut keygen = tokio::process::Command::new("ssh-keygen");
        keygen.args(["-l", "-f", "-"]);
        match process::run(keygen, Input::Bytes(entry.as_bytes()), CONTROL_LIMIT, None).await {
            End::Exited { status: 0, stdout, .. } => {
                let shown = String::from_utf8_lossy(&stdout).into_owned();
                shown.split_whitespace().find(|word| word.starts_with("SHA256:")).map(str::to_owned)
            }
            End::Exited { .. } | End::NotStarted(_) | End::Lost(_) => None,
        }
    }

    /// Runs a line in the login shell at the other end.
    ///
    /// It is sent at most once: what is tried again is only what surely never left.
    pub(super) async fn send(
        self: &Arc<Self>,
        os_user: &str,
        line: &str,
        stdin: Input<'_>,
        limit: Duration,
        lines: Option<&LineSink>,
    ) -> Sent {
        let Ok(_session) = self.sessions.acquire().await else {
            return Sent::NotSent("the connection is closed".to_owned());
        };
        let crowded = Instant::now() + CROWDED;
        let mut reconnected = false;
        loop {
            let end = process::run(self.through_master(line), stdin, limit, lines).await;
            if matches!(end, End::Lost(_)) {
                // Perhaps the way there is cut: whoever comes next looks whether the master still answers.
                self.forget().await;
            }
            let End::Exited { status: 255, stderr, .. } = &end else { return Sent::Ended(end) };
            if !stderr.lines().any(|line| line == self.token) {
                return Sent::Ended(end);
            }
            if stderr.contains("Session open refused by peer") {
                if Instant::now() >= crowded {
                    return Sent::NotSent("sshd allows no further session (MaxSessions)".to_owned());
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if reconnected {
                return Sent::NotSent("the connection ended twice before the command was sent".to_owned());
            }
            reconnected = true;
            self.forget().await;
            if let Err(troubles) = self.ensure(os_user).await {
                return Sent::NotSent(trouble::told(&troubles));
            }
        }
    }

    /// Returns ssh with a line for the login shell. It connects by itself where there is no master; through this one it cannot, and says so
    /// before anything is sent.
    fn through_master(&self, line: &str) -> tokio::process::Command {
        let mut ssh = self.ssh();
        let refuse = format!("ProxyCommand=/bin/sh -c 'echo {} >&2; exit 1'", self.token);
        ssh.args(["-T", "-o", "ControlMaster=no", "-o", &refuse, "-o", "RemoteCommand=none"]).args([
            "--",
            &self.target.address,
            line,
        ]);
        ssh
    }

    /// Begins a call that changes something.
    pub(super) fn begin_call(&self) -> Call<'_> {
        self.calls.begin()
    }

    /// Waits until nothing runs on the machine that a lost call, or a pgherd that is gone, has begun there.
    pub(super) async fn settle(self: &Arc<Self>, os_user: &str) -> Result<(), String> {
        let mut settled = self.settled.lock().await;
        if settled.is_some_and(|at| at.elapsed() < SETTLED_STANDS) && !self.calls.any_lost() {
            return Ok(());
        }
        let line = quote::line(["exec", "sh", "-c", calls::LIST]);
        let deadline = Instant::now() + SETTLE;
        loop {
            let listed = match self.send(os_user, &line, Input::Nothing, CONNECT_LIMIT, None).await {
                Sent::Ended(End::Exited { status: 0, stdout, .. }) => {
                    String::from_utf8_lossy(&stdout).into_owned()
                }
                Sent::Ended(End::Exited { stderr, .. }) => {
                    return Err(format!("what runs there cannot be told: {}", stderr.trim()));
                }
                Sent::Ended(End::NotStarted(error)) => return Err(format!("ssh: {error}")),
                Sent::Ended(End::Lost(why)) | Sent::NotSent(why) => return Err(why),
            };
            let strays = self.calls.strays(&listed);
            if strays.is_empty() {
                *settled = Some(Instant::now());
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "what an earlier call has begun still runs there ({}), although nobody waits for it",
                    strays.join(", ")
                ));
            }
            tracing::debug!(?strays, "waiting for what lost calls have begun");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Forgets what was known of a master that is gone.
    async fn forget(&self) {
        self.state.lock().await.facts.clear();
    }

    pub(super) fn address(&self) -> String {
        match self.target.port {
            Some(port) => format!("{} port {port}", self.target.address),
            None => self.target.address.clone(),
        }
    }

    /// Returns ssh with everything that is the same for each of its calls.
    fn ssh(&self) -> tokio::process::Command {
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.args(self.options()).current_dir("/");
        ssh
    }

    fn options(&self) -> Vec<String> {
        let mut options = target_options(&self.target);
        let connect = format!("ConnectTimeout={CONNECT_SECONDS}");
        let control = format!("ControlPath={}", option_path(&self.control));
        let fixed = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "LogLevel=ERROR",
            &connect,
            "ConnectionAttempts=1",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            &control,
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "EscapeChar=none",
            "RequestTTY=no",
            "StreamLocalBindUnlink=yes",
            "StreamLocalBindMask=0177",
        ];
        options.extend(fixed.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        options
    }

    /// Asks the master something about itself.
    async fn control(&self, request: &[&str]) -> Result<(), String> {
        let mut ssh = self.ssh();
        ssh.args(request).args(["--", &self.target.address]);
        match process::run(ssh, Input::Nothing, CONTROL_LIMIT, None).await {
            End::Exited { status: 0, .. } => Ok(()),
            End::Exited { stderr, .. } => Err(stderr.trim().to_owned()),
            End::NotStarted(error) => Err(error.to_string()),
            End::Lost(why) => Err(why),
        }
    }

    /// Leads to `far` (a socket's path, or ADDRESS:PORT) from a socket with this name in a directory of its own.
    async fn tunnel(self: &Arc<Self>, os_user: &str, far: &str, name: &str) -> Result<PathBuf, String> {
        self.ensure(os_user).await.map_err(|troubles| trouble::told(&troubles))?;
        if self.control(&["-O", "check"]).await.is_err() {
            self.forget().await;
            self.ensure(os_user).await.map_err(|troubles| trouble::told(&troubles))?;
        }
        let generation = self.generation.load(Ordering::Relaxed);
        let mut tunnels = self.tunnels.lock().await;
        if let Some((made_in, directory)) = tunnels.made.get(far)
            && *made_in == generation
        {
            return Ok(directory.clone());
        }
        let directory = match tunnels.made.get(far) {
            Some((_, directory)) => directory.clone(),
            None => {
                let count = tunnels.made.len();
                let base = match &tunnels.base {
                    Some(base) => base.clone(),
                    None => {
                        let made = private_directory().map_err(|error| error.to_string())?;
                        tunnels.base.insert(made).clone()
                    }
                };
                let directory = base.join(count.to_string());
                make_private(&directory).map_err(|error| error.to_string())?;
                directory
            }
        };
        let near = directory.join(name);
        let forward = format!("{}:{far}", near.display());
        self.control(&["-O", "forward", "-L", &forward])
            .await
            .map_err(|why| format!("ssh could not forward {far}: {why}"))?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(forward);
        tunnels.made.insert(far.to_owned(), (generation, directory.clone()));
        Ok(directory)
    }
}

impl Drop for Connection {
    /// Takes our tunnels back from the master, which outlives us.
    fn drop(&mut self) {
        let open = std::mem::take(self.open.get_mut().unwrap_or_else(PoisonError::into_inner));
        let options = self.options();
        for forward in open {
            let cancel = std::process::Command::new("ssh")
                .args(&options)
                .args(["-O", "cancel", "-L", &forward, "--", &self.target.address])
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status();
            if let Err(error) = cancel {
                tracing::debug!(%error, forward, "a tunnel was not closed");
            }
        }
        if let Some(base) = &self.tunnels.get_mut().base {
            // Empty sockets in a directory that nobody else can see: only litter.
            std::fs::remove_dir_all(base).ok();
        }
    }
}

/// The way through a connection on behalf of one os-user.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) connection: Arc<Connection>,
    pub(super) os_user: String,
}

impl Tunnel for Way {
    fn to_socket<'a>(&'a self, directory: &'a Path, port: u16) -> BoxFuture<'a, Result<PathBuf, String>> {
        Box::pin(async move {
            let name = format!(".s.PGSQL.{port}");
            let far = directory.join(&name);
            let far = far.to_str().filter(|far| !far.contains([':', '\\']));
            let far = far.ok_or_else(|| format!("ssh cannot forward to {}", directory.display()))?;
            self.connection.tunnel(&self.os_user, far, &name).await
        })
    }

    fn to_port<'a>(&'a self, port: u16) -> BoxFuture<'a, Result<PathBuf, String>> {
        Box::pin(async move {
            let far = format!("127.0.0.1:{port}");
            self.connection.tunnel(&self.os_user, &far, &format!(".s.PGSQL.{port}")).await
        })
    }
}

/// What the machine is asked first, as `sh -c LOOK pgherd OS-USER`. Reads only.
const LOOK: &str = r#"
echo "pgherd-look 1"
u=$(id -un); n=$(id -u)
echo "login $n $u"
echo "machine $(uname -s) $(uname -m)"
echo "home $(getent passwd "$u")"
echo "os-user $(getent passwd "$1")"
for t in getent env cat stat find mktemp dd chmod mv ln rm rmdir mkdir df sync test printenv readlink realpath dirname sha256sum timeout head tr \
    grep sed; do
    command -v "$t" >/dev/null 2>&1 || echo "lacks $t"
done
if [ "$n" = 0 ]; then
    command -v setpriv >/dev/null 2>&1 || echo "lacks setpriv"
else
    if sudo -n -l -u root true >/dev/null 2>&1 </dev/null && sudo -n true >/dev/null 2>&1 </dev/null; then echo "root yes"; fi
    if [ "$u" != "$1" ]; then
        m=$(sudo -n -u "$1" true 2>&1 </dev/null) || echo "sudo-says $(printf %s "$m" | head -n 1)"
    fi
fi
echo "end"
"#;

/// Asks OpenSSH who would log in: its configuration may say it.
fn effective_user(target: &Target) -> Result<String, Error> {
    if let Some(user) = &target.user {
        return Ok(user.clone());
    }
    let asked = std::process::Command::new("ssh")
        .args(target_options(target))
        .args(["-G", "--", &target.address])
        .output();
    let output = asked.map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Error::failed("could not start ssh").source(error);
        }
        Error::new(ErrorKind::NotFound, "there is no ssh on this machine")
            .detail(format!("The host at {} is reached by ssh.", target.address))
            .hint("Install OpenSSH's client (Debian: openssh-client).")
    })?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().find_map(|line| line.strip_prefix("user ")).map(str::to_owned).ok_or_else(|| {
        Error::usage(format!("ssh could not say who logs in to {}", target.address))
            .detail(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    })
}

fn target_options(target: &Target) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(config) = &target.config {
        options.extend(["-F".to_owned(), config.display().to_string()]);
    }
    if let Some(key) = &target.key {
        let identity = format!("IdentityFile={}", option_path(key));
        options.extend(["-o".to_owned(), identity, "-o".to_owned(), "IdentitiesOnly=yes".to_owned()]);
    }
    if let Some(host_keys) = &target.host_keys {
        let known = format!("UserKnownHostsFile={}", option_path(host_keys));
        options.extend(["-o".to_owned(), known, "-o".to_owned(), "GlobalKnownHostsFile=none".to_owned()]);
    }
    if let Some(port) = target.port {
        options.extend(["-p".to_owned(), port.to_string()]);
    }
    if let Some(user) = &target.user {
        options.extend(["-l".to_owned(), user.clone()]);
    }
    options
}

/// Writes a path as the value of an option: one word, in which `%` begins an escape (ssh_config(5), "TOKENS").
fn option_path(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text }
}

/// Returns the directory of the masters' sockets, which every pgherd of this user shares: short, since a socket's path has 108 bytes
/// at most, of which ssh needs 17 for itself.
fn control_directory() -> Result<PathBuf, Error> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(known) = DIRECTORY.get() {
        return Ok(known.clone());
    }
    let uid = rustix::process::geteuid().as_raw();
    let short = |path: &PathBuf| path.is_absolute() && path.as_os_str().len() <= 40 && path.is_dir();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(short);
    let directory = match runtime {
        Some(runtime) => runtime.join("pgherd-ssh"),
        None => PathBuf::from(format!("/tmp/pgherd-ssh-{uid}")),
    };
    let refused = |why: String| {
        Error::refused(format!("cannot keep ssh's sockets in {}", directory.display()))
            .detail(format!("{why}. Who can change that directory could speak for us on every host."))
            .hint("Remove it, or set XDG_RUNTIME_DIR to a directory of your own.")
    };
    make_private(&directory).map_err(|error| refused(error.to_string()))?;
    Ok(DIRECTORY.get_or_init(|| directory.clone()).clone())
}

/// Makes a directory that only we can enter, or sees that it is one.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made_or_failed => return made_or_failed,
    }
    let found = std::fs::symlink_metadata(path)?;
    let own = rustix::process::geteuid().as_raw();
    if found.is_dir() && found.uid() == own && found.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(io::Error::other("It is not a directory that belongs to us alone"))
    }
}

/// Makes a new directory of this process beside the masters' sockets.
fn private_directory() -> Result<PathBuf, Error> {
    let base = control_directory()?;
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    let path = base.join(format!("t{:08x}", u32::from_ne_bytes(random)));
    make_private(&path)
        .map_err(|error| Error::failed(format!("could not make {}", path.display())).source(error))?;
    Ok(path)
}
