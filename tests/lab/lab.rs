//! Hosts in namespaces: each with its own address, disk, hostname, systemd and sshd, on a switch that the test controls.
//!
//! `lab.sh` makes them and stays as the lab's keeper: it removes everything when its standard input ends, which it does
//! however this process goes. What a killed keeper left, the next one removes. Processes die here, the machine does
//! not: a host that is powered off loses its processes and `/run`, but not what was written and never synced.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long anything of the lab may take, before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The disk of a host for which a test asks no other, in MiB.
const DISK: u32 = 2048;

/// The switch's port that leads to the machine itself: the operator's station.
pub const STATION: &str = "station";

/// What the keeper exits with when another process has the lab of that number.
const TAKEN: i32 = 75;

/// Several hosts, until it is dropped.
#[derive(Debug)]
pub struct Lab {
    number: u8,
    keeper: Mutex<Keeper>,
    hosts: Vec<Host>,
    rules: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Host {
    name: String,
    address: Ipv4Addr,
    /// The PID of its systemd, while it is on.
    init: Mutex<Option<u32>>,
}

/// The process that makes, and at the end removes.
#[derive(Debug)]
struct Keeper {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Lab {
    /// Makes hosts with these names and turns them on; `None`, told in one loud line, where the machine forbids it.
    pub fn up(names: &[&str]) -> Option<Self> {
        Self::with_disks(&names.iter().map(|name| (*name, DISK)).collect::<Vec<_>>())
    }

    /// The same, each host with a disk of so many MiB.
    pub fn with_disks(hosts: &[(&str, u32)]) -> Option<Self> {
        let began = Instant::now();
        if is_forbidden() {
            return None;
        }
        let (number, keeper) =
            (0..100).find_map(|number| Some((number, Keeper::start(number, hosts)?))).expect("a lab is free");
        let hosts = (1..)
            .zip(hosts)
            .map(|(index, (name, _))| Host {
                name: (*name).to_owned(),
                address: Ipv4Addr::new(198, 18, number, index),
                init: Mutex::new(None),
            })
            .collect();
        let lab = Self { number, keeper: Mutex::new(keeper), hosts, rules: Mutex::new(Vec::new()) };
        lab.turn_on(&lab.hosts.iter().collect::<Vec<_>>());
        say(&format!("lab {number}: {} hosts up in {:.1} s", lab.hosts.len(), began.elapsed().as_secs_f64()));
        Some(lab)
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    /// The process that removes this lab when this test has ended.
    pub fn keeper_id(&self) -> u32 {
        lock(&self.keeper).process.id()
    }

    /// With which the operator's station reaches every host by its name, as root, or as anybody named: `ssh -F`.
    pub fn ssh_config(&self) -> PathBuf {
        self.home().join("ssh_config")
    }

    /// The private key that every host lets in, and the hosts' own public keys.
    pub fn keys(&self) -> [String; 2] {
        ["id", "known_hosts"].map(|name| fs::read_to_string(self.home().join(name)).expect("the lab has it"))
    }

    pub fn address(&self, host: &str) -> Ipv4Addr {
        self.host(host).address
    }

    /// The PID of the host's systemd, as the machine sees it, while the host is on.
    pub fn init(&self, host: &str) -> Option<u32> {
        *lock(&self.host(host).init)
    }

    // ---- work on a host

    /// Runs a program as root on the host's console, which no fault of the network cuts off.
    pub fn console(&self, host: &str, argv: &[&str]) -> Output {
        self.on_console(host, argv).stdin(Stdio::null()).output().expect("nsenter runs")
    }

    /// The same, to be started.
    pub fn on_console(&self, host: &str, argv: &[&str]) -> Command {
        let init = self.init(host).expect("the host is on").to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &init, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
            .args(argv)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/");
        command
    }

    /// What a program on the host's console prints; it must succeed.
    pub fn prints(&self, host: &str, argv: &[&str]) -> String {
        let output = self.console(host, argv);
        assert!(output.status.success(), "{host}: {argv:?}: {}", told(&output));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    /// Runs a command on a host from the operator's station, over ssh.
    pub fn ssh(&self, login: &str, command: &str) -> Output {
        Command::new("ssh")
            .arg("-F")
            .arg(self.ssh_config())
            .args([login, command])
            .stdin(Stdio::null())
            .output()
            .expect("ssh runs")
    }

    /// The host's network namespace, for threads that are to move into it.
    pub fn network_of(&self, host: &str) -> fs::File {
        fs::File::open(format!("/run/netns/pgherd{}-{host}", self.number))
            .expect("the host's network namespace")
    }

    /// Does something with sockets of that host; those that it returns stay the host's.
    pub fn network<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.network_of(host);
        let in_it = || {
            // It is this thread that moves, and it ends here.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enter the host's network");
            work()
        };
        std::thread::scope(|scope| scope.spawn(in_it).join().expect("work in a host's network"))
    }

    // ---- faults of the network: the switch loses packets, and neither end is told

    /// Cuts a host off from everybody.
    pub fn cut(&self, host: &str) {
        self.lose(&[format!("iifname {host} drop"), format!("oifname {host} drop")]);
    }

    /// Cuts two hosts off from each other. One of them may be the [`STATION`].
    pub fn cut_pair(&self, one: &str, other: &str) {
        self.lose(&[
            format!("iifname {one} oifname {other} drop"),
            format!("iifname {other} oifname {one} drop"),
        ]);
    }

    /// Loses what goes from one host to another, but not what comes back.
    pub fn cut_direction(&self, from: &str, to: &str) {
        // Not ARP: without an address in its table the other host would not send either.
        self.lose(&[format!("iifname {from} oifname {to} ether type ip drop")]);
    }

    /// Loses what goes to a TCP port of a host, from anybody.
    pub fn cut_port(&self, host: &str, port: u16) {
        self.lose(&[format!("oifname {host} tcp dport {port} drop")]);
    }

    /// Loses what goes from one host, or the [`STATION`], to a TCP port of another.
    pub fn cut_port_between(&self, from: &str, host: &str, port: u16) {
        self.lose(&[format!("iifname {from} oifname {host} tcp dport {port} drop")]);
    }

    /// Lets so many kilobits a second through to a host, and as many from it.
    pub fn slow(&self, host: &str, kilobits: u32) {
        let rate = format!("{kilobits}kbit");
        let switch = format!("pgherd{}-switch", self.number);
        let namespace = format!("pgherd{}-{host}", self.number);
        for (namespace, device) in [(&switch, host), (&namespace, "eth0")] {
            let limit = ["root", "tbf", "rate", &rate, "burst", "32k", "latency", "400ms"];
            succeeds(
                Command::new("tc").args(["-n", namespace, "qdisc", "replace", "dev", device]).args(limit),
                None,
            );
        }
    }

    /// Ends every fault of the network.
    pub fn mend(&self) {
        lock(&self.rules).clear();
        self.tell_the_switch("");
        for host in &self.hosts {
            let switch = format!("pgherd{}-switch", self.number);
            let namespace = format!("pgherd{}-{}", self.number, host.name);
            for (namespace, device) in [(&switch, host.name.as_str()), (&namespace, "eth0")] {
                // It fails where nothing was slowed.
                let _nothing_to_mend = Command::new("tc")
                    .args(["-n", namespace, "qdisc", "delete", "dev", device, "root"])
                    .stderr(Stdio::null())
                    .status()
                    .expect("tc runs");
            }
        }
    }

    fn lose(&self, rules: &[String]) {
        let mut all = lock(&self.rules);
        all.extend_from_slice(rules);
        self.tell_the_switch(&all.join("\n"));
    }

    /// Replaces all rules of the switch at once.
    fn tell_the_switch(&self, rules: &str) {
        let table = format!(
            "flush ruleset\ntable bridge faults {{\nchain forward {{\n\
             type filter hook forward priority 0\n{rules}\n}}\n}}\n"
        );
        let switch = format!("pgherd{}-switch", self.number);
        succeeds(Command::new("ip").args(["netns", "exec", &switch, "nft", "-f", "-"]), Some(&table));
    }

    // ---- faults of a host

    /// Fills the host's disk to its last block; every directory but /tmp and /run is on it.
    pub fn fill_disk(&self, host: &str) {
        let fill = "fallocate -l $(df --output=avail -B1 / | tail -n 1) /filler 2>/dev/null; \
                    dd if=/dev/zero of=/filler.rest bs=4k 2>/dev/null; sync -f /";
        self.console(host, &["sh", "-c", fill]);
        let free = self.prints(host, &["df", "--output=avail", "-B1", "/"]);
        assert!(free.lines().last().is_some_and(|bytes| bytes.trim() == "0"), "{host}: {free}");
    }

    /// Removes what filled the host's disk.
    pub fn free_disk(&self, host: &str) {
        self.prints(host, &["rm", "-f", "/filler", "/filler.rest"]);
    }

    /// Ends every process of the host at once, without a word to any of them.
    pub fn power_off(&self, host: &str) {
        let host = self.host(host);
        let mut init = lock(&host.init);
        lock(&self.keeper).order(&format!("off {}", host.name));
        lock(&self.keeper).answer();
        *init = None;
    }

    /// Boots a host that is off, and waits until it can be logged in to.
    pub fn power_on(&self, host: &str) {
        self.turn_on(&[self.host(host)]);
    }

    fn turn_on(&self, hosts: &[&Host]) {
        let mut order = "on".to_owned();
        for host in hosts {
            write!(order, " {}", host.name).expect("a string takes all");
        }
        let mut keeper = lock(&self.keeper);
        keeper.order(&order);
        for host in hosts {
            let said = keeper.answer();
            *lock(&host.init) = Some(said.parse().expect("the PID of its systemd"));
        }
        drop(keeper);
        for host in hosts {
            // pam_nologin refuses everybody but root until systemd-user-sessions.service has run.
            let ready = ["sh", "-c", "test ! -e /run/nologin && systemctl is-active ssh.service"];
            let what = || self.console(&host.name, &ready).status.success();
            assert!(eventually(what), "{} does not boot:\n{}", host.name, self.console_log(&host.name));
        }
    }

    fn console_log(&self, host: &str) -> String {
        fs::read_to_string(self.home().join(host).join("console")).unwrap_or_default()
    }

    fn home(&self) -> PathBuf {
        Path::new("/var/tmp/pgherd-lab").join(self.number.to_string())
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).expect("a host of this lab")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(keeper.orders.take());
        let status = keeper.process.wait().expect("the keeper ends");
        if !status.success() {
            say(&format!("lab {}: was not removed: {status}", self.number));
        }
    }
}

impl Keeper {
    /// Starts the keeper of a lab and waits until it has the hosts; `None` if the lab is another's.
    fn start(number: u8, hosts: &[(&str, u32)]) -> Option<Self> {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/lab.sh"))
            .args(["keep", &number.to_string()])
            .args(hosts.iter().map(|(name, disk)| format!("{name}={disk}M")))
            .env("LAB_SEES", seen_by_hosts().join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("lab.sh runs");
        let orders = process.stdin.take();
        let mut answers = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("read the keeper's answer");
        if line.trim_end() == "ok" {
            return Some(Self { process, orders, answers });
        }
        let status = process.wait().expect("the keeper ends");
        assert_eq!(status.code(), Some(TAKEN), "lab {number}: {line}");
        None
    }

    fn order(&mut self, order: &str) {
        let mut orders = self.orders.as_ref().expect("it is open until the lab is dropped");
        writeln!(orders, "{order}").expect("the keeper listens");
    }

    /// What follows "ok" in the keeper's next line.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the keeper answers");
        line.trim_end().strip_prefix("ok").unwrap_or_else(|| panic!("lab: {line}")).trim().to_owned()
    }
}

/// Directories that hosts need to see even where they are file systems of their own.
fn seen_by_hosts() -> Vec<String> {
    let servers = std::env::var("PGHERD_TEST_PG").unwrap_or_default();
    let mut seen: Vec<String> =
        servers.split(':').filter(|text| !text.is_empty()).map(str::to_owned).collect();
    let program = Path::new(env!("CARGO_BIN_EXE_pgherd"));
    seen.push(program.parent().expect("it is in a directory").display().to_string());
    seen
}

/// Whether this machine cannot have a lab, said once, loudly. What `scripts/setup --test` would bring is a failure instead.
fn is_forbidden() -> bool {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    WHY.get_or_init(|| {
        let why = find_what_is_forbidden()?;
        say(&format!(
            "THE LAB TESTS DID NOT RUN: {why}. Nothing about several hosts, their faults and systemd was tested."
        ));
        Some(why)
    })
    .is_some()
}

fn find_what_is_forbidden() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may make network namespaces, mounts and loop devices".to_owned());
    }
    for program in
        ["/usr/sbin/sshd", "/usr/sbin/nft", "/usr/bin/ssh-keygen", "/lib/systemd/systemd", "/usr/bin/nsenter"]
    {
        assert!(Path::new(program).exists(), "there is no {program}: run scripts/setup --test");
    }
    let tried: [(&str, &[&str]); 3] = [
        (
            "the machine forbids namespaces (CAP_SYS_ADMIN)",
            &["unshare", "--net", "--uts", "--ipc", "--pid", "--mount", "--cgroup", "--fork", "true"],
        ),
        ("the machine has no loop device", &["losetup", "--find"]),
        ("the machine mounts no cgroup2", &["findmnt", "--types", "cgroup2"]),
    ];
    tried.into_iter().find_map(|(why, argv)| {
        let output = Command::new(argv[0]).args(&argv[1..]).output();
        match output {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(format!("{why}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Some(format!("{why}: {error}")),
        }
    })
}

/// Prints a line past libtest, which would keep it from whoever looks at a test that passes.
pub fn say(line: &str) {
    let mut whole = line.to_owned();
    whole.push('\n');
    std::io::stderr().write_all(whole.as_bytes()).expect("stderr takes a line");
}

/// Tries until it is so, or patience ends.
pub fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All that a program has said, and how it ended.
pub fn told(output: &Output) -> String {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{error}", output.status)
}

fn succeeds(command: &mut Command, input: Option<&str>) {
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program of the lab runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.unwrap_or_default().as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}", told(&output));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
