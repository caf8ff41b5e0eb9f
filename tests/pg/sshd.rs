//! A real sshd on loopback, with keys, configuration and known hosts of its own, started and ended by the test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pgherd::host::ssh::Target;
use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{Herd, Port, as_server, is_root, processes, text, text_of, until};

/// Who logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// Whoever runs the tests.
    Caller,
    /// An ordinary user that exists only for this sshd, and may become the os-user if `sudo` is set. Takes root.
    Operator { sudo: bool },
}

/// Twenty hosts, as far as anybody can tell; sshd itself answers at the first ten of them, since it takes no more than 16 (`MAX_LISTEN_SOCKS`).
fn addresses() -> impl Iterator<Item = String> {
    (1..=20).map(|number| format!("127.0.0.{number}"))
}

/// How many of them one sshd answers at.
const EACH: usize = 10;

/// The name of [`Login::Operator`].
pub const OPERATOR: &str = "pgherd-operator";

/// An sshd; it is ended when it is dropped, with every session that it has.
#[derive(Debug)]
pub struct Sshd {
    directory: PathBuf,
    port: Port,
    login: Login,
    child: Child,
    /// Another one with the same keys, at the other addresses.
    other: Option<Child>,
}

impl Sshd {
    /// Starts one below the herd's directory and waits until it answers.
    pub fn start(herd: &Herd, name: &str, login: Login) -> Self {
        let directory = herd.path(name);
        fs::create_dir(&directory).expect("a new directory");
        let port = Port::reserve();
        for key in ["host", "user", "other"] {
            key_pair(&directory.join(key));
        }
        fs::copy(directory.join("user.pub"), directory.join("authorized_keys")).expect("a key");
        let pam = if is_root() { "yes" } else { "no" };
        let config = format!(
            "Port {}\n{}HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
             UsePAM {pam}\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             MaxStartups 100\nPrintMotd no\n\
             # The bash of whoever runs the tests would read that user's own .bashrc for each command (bash(1), INVOCATION).\n\
             SetEnv SHLVL=1\n",
            port.number,
            listen(addresses().take(EACH)),
            directory.join("host").display(),
            directory.join("authorized_keys").display(),
        );
        fs::write(directory.join("sshd_config"), config).expect("a file");
        let child = start(&directory, "sshd_config", login);
        let sshd = Self { child, other: None, directory, port, login };
        sshd.know(&addresses().collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(), "host");
        until("sshd answers", || std::net::TcpStream::connect(("127.0.0.1", sshd.port.number)).ok());
        sshd
    }

    /// Writes the file of known hosts: each of these addresses has this key.
    pub fn know(&self, addresses: &[&str], key: &str) {
        let public = fs::read_to_string(self.directory.join(format!("{key}.pub"))).expect("a key");
        let lines: String =
            addresses.iter().map(|address| format!("[{address}]:{} {public}", self.port.number)).collect();
        fs::write(self.directory.join("known_hosts"), lines).expect("a file");
    }

    /// Returns the fingerprint of a key: `host`, or `other`, which it does not have.
    pub fn fingerprint(&self, key: &str) -> String {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-l", "-f"]).arg(self.directory.join(format!("{key}.pub")));
        let shown = text_of(keygen).expect("ssh-keygen");
        shown.split_whitespace().nth(1).expect("a fingerprint").to_owned()
    }

    /// Has the hosts db1 and db2 of a herd be reached through this sshd.
    pub fn reaches(&self, herd: &mut Herd) {
        let user = match self.login {
            Login::Operator { .. } => OPERATOR.to_owned(),
            Login::Caller => caller(),
        };
        let file = |name: &str| format!("{{file: {}}}", self.directory.join(name).display());
        herd.edit(
            "{hosts: {local: local}}",
            &format!(
                "{{hosts: {{db1: {{address: 127.0.0.1, port: {}}}, db2: 127.0.0.2}}}}",
                self.port.number
            ),
        );
        herd.edit(
            "clusters:\n",
            &format!(
                "ssh: {{user: {user}, port: {}, key: {}, host-keys: {}}}\nclusters:\n",
                self.port.number,
                file("user"),
                file("known_hosts")
            ),
        );
        if !is_root() {
            herd.edit("    postgres:\n", &format!("    postgres:\n      os-user: {user}\n"));
        }
        herd.variable("XDG_RUNTIME_DIR", Some(&herd.root().display().to_string()));
    }

    /// Writes a topology of one cluster with a node on each of its addresses, none of which is there, and returns the file.
    pub fn declare_many(&mut self, herd: &Herd) -> PathBuf {
        let config = fs::read_to_string(self.directory.join("sshd_config")).expect("a file");
        let (first, rest) = (listen(addresses().take(EACH)), listen(addresses().skip(EACH)));
        fs::write(self.directory.join("sshd_config.other"), config.replace(&first, &rest)).expect("a file");
        self.other = Some(start(&self.directory, "sshd_config.other", self.login));
        let last = addresses().last().expect("there are some");
        until("the other sshd answers", || {
            std::net::TcpStream::connect((last.as_str(), self.port.number)).ok()
        });
        let (major, bin) = (herd.installation().major, herd.installation().bin().display().to_string());
        let numbered = || (1..).zip(addresses());
        let hosts: Vec<String> = numbered().map(|(n, address)| format!("db{n}: {address}")).collect();
        let nodes: String = numbered()
            .map(|(n, _)| {
                format!("      n{n}: {{host: db{n}, data-directory: {}/many{n}}}\n", herd.root().display())
            })
            .collect();
        let file = |name: &str| format!("{{file: {}}}", self.directory.join(name).display());
        let topology = format!(
            "pgherd: 1\nherd: many\nregions: {{here: {{hosts: {{{}}}}}}}\n\
             ssh: {{user: {}, port: {}, key: {}, host-keys: {}}}\nclusters:\n  inventory:\n    \
             ports: {{postgres: {}}}\n    postgres: {{version: {major}, bin-directory: {bin}, os-user: {}, \
             tune: {{memory: 256 MiB}}}}\n    nodes:\n{nodes}",
            hosts.join(", "),
            caller(),
            self.port.number,
            file("user"),
            file("known_hosts"),
            herd.port("a"),
            if is_root() { "postgres".to_owned() } else { caller() },
        );
        let path = herd.path("many.yml");
        fs::write(&path, topology).expect("a file");
        path
    }

    /// Takes the place of another one in a herd's topology.
    pub fn replaces(&self, herd: &mut Herd, port: u16) {
        herd.edit(&port.to_string(), &self.port.number.to_string());
        let old = format!("{}/", herd.path("sshd").display());
        let new = format!("{}/", self.directory.display());
        herd.edit(&old, &new);
    }

    /// Returns how it is logged in to as [`Login::Caller`].
    pub fn target(&self) -> Target {
        Target {
            address: "127.0.0.1".to_owned(),
            port: Some(self.port.number),
            user: Some(caller()),
            key: Some(self.directory.join("user")),
            host_keys: Some(self.directory.join("known_hosts")),
            config: None,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Has the first address be answered by an sshd of its own, which [`Sshd::lose`] takes away.
    pub fn part(&mut self) {
        let config = fs::read_to_string(self.directory.join("sshd_config")).expect("a file");
        let (first, rest) = (listen(addresses().take(1)), listen(addresses().take(EACH).skip(1)));
        fs::write(self.directory.join("sshd_config.other"), config.replace(&rest, "")).expect("a file");
        fs::write(self.directory.join("sshd_config"), config.replace(&first, "")).expect("a file");
        self.cut();
        self.child.kill().expect("end it");
        self.child.wait().expect("it has ended");
        self.child = start(&self.directory, "sshd_config", self.login);
        until("sshd answers", || std::net::TcpStream::connect(("127.0.0.2", self.port.number)).ok());
        self.find();
    }

    /// Loses the first host: nobody answers there, and every session has ended.
    pub fn lose(&mut self) {
        let mut lost = self.other.take().expect("it stands on its own");
        for session in children(Pid::from_child(&lost)) {
            kill_process(session, Signal::KILL).ok();
        }
        lost.kill().expect("end it");
        lost.wait().expect("it has ended");
    }

    /// Finds the first host again.
    pub fn find(&mut self) {
        self.other = Some(start(&self.directory, "sshd_config.other", self.login));
        until("sshd answers", || std::net::TcpStream::connect(("127.0.0.1", self.port.number)).ok());
    }

    /// Ends the connections that there are, but not the listener.
    pub fn cut(&self) {
        for child in children(self.pid()) {
            kill_process(child, Signal::KILL).ok();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.cut();
        for child in [Some(&mut self.child), self.other.as_mut()].into_iter().flatten() {
            for session in children(Pid::from_child(child)) {
                kill_process(session, Signal::KILL).ok();
            }
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Returns the name of whoever runs the tests.
pub fn caller() -> String {
    let mut id = Command::new("id");
    id.arg("-un");
    text_of(id).expect("id")
}

pub fn children(of: Pid) -> Vec<Pid> {
    let parent = |pid: &Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    processes()
        .into_iter()
        .map(|(pid, _)| pid)
        .filter(|pid| parent(pid) == Some(of.as_raw_nonzero().get()))
        .collect()
}

fn key_pair(path: &Path) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path);
    text_of(keygen).expect("ssh-keygen");
}

fn listen(addresses: impl Iterator<Item = String>) -> String {
    addresses.map(|address| format!("ListenAddress {address}\n")).collect()
}

fn start(directory: &Path, config: &str, login: Login) -> Child {
    let sshd = Path::new("/usr/sbin/sshd");
    assert!(sshd.exists(), "no /usr/sbin/sshd: scripts/setup --test installs openssh-server");
    if is_root() {
        // sshd keeps an empty directory for its unprivileged part; its package makes it only when the service starts.
        fs::create_dir_all("/run/sshd").expect("the directory of sshd's package");
    }
    let words = ["-D", "-f", text(&directory.join(config)), "-E", text(&directory.join("sshd.log"))]
        .map(str::to_owned);
    let mut command = match login {
        Login::Caller => Command::new(sshd),
        Login::Operator { sudo } => {
            assert!(is_root(), "a user of its own takes root");
            // In a mount namespace of its own, so that the machine's users and sudoers stay as they are.
            let prepare = private_users(directory, sudo);
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", &prepare, "sh"]).arg(sshd);
            command
        }
    };
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sshd starts")
}

/// Writes the files of a machine that has the operator; returns what puts them in place and starts the rest.
fn private_users(directory: &Path, sudo: bool) -> String {
    assert!(Path::new("/usr/bin/sudo").exists(), "no sudo: scripts/setup --test installs it");
    let home = directory.join("home");
    fs::create_dir(&home).expect("a directory");
    std::os::unix::fs::chown(&home, Some(4711), Some(4711)).expect("we are root");
    let append = |file: &str, line: &str| {
        let text = fs::read_to_string(Path::new("/etc").join(file)).expect("the machine's own");
        let mut out = fs::File::create(directory.join(file)).expect("a file");
        out.write_all(format!("{}\n{line}\n", text.trim_end()).as_bytes()).expect("a file");
    };
    append("passwd", &format!("{OPERATOR}:x:4711:4711::{}:/bin/sh", home.display()));
    append("group", &format!("{OPERATOR}:x:4711:"));
    append("shadow", &format!("{OPERATOR}:*:19000:0:99999:7:::"));
    let rule = if sudo { format!("{OPERATOR} ALL=(postgres) NOPASSWD: ALL\n") } else { String::new() };
    fs::write(directory.join("sudoers"), format!("Defaults env_reset\nroot ALL=(ALL:ALL) ALL\n{rule}"))
        .expect("a file");
    use std::os::unix::fs::PermissionsExt as _;
    for (file, mode) in [("sudoers", 0o440), ("shadow", 0o640)] {
        fs::set_permissions(directory.join(file), fs::Permissions::from_mode(mode)).expect("ours");
    }
    let mounts: String = ["passwd", "group", "shadow", "sudoers"]
        .iter()
        .map(|file| format!("mount --bind {} /etc/{file} && ", directory.join(file).display()))
        .collect();
    format!("{mounts}exec \"$@\"")
}

/// Makes a directory below the herd's own that belongs to the servers' user.
pub fn make_for_servers(path: &Path) {
    let mut install = Command::new("install");
    install.args(["-d", "-m", "0755"]);
    if is_root() {
        install.args(["-o", "postgres", "-g", "postgres"]);
    }
    text_of({
        install.arg(path);
        install
    })
    .expect("install");
    text_of({
        let mut test = as_server(Path::new("test"));
        test.arg("-w").arg(path);
        test
    })
    .expect("it belongs to the servers' user");
}
