//! A PgBouncer newer than Debian 12's: several processes behind one port, prepared statements, and what it says of a PAUSE.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{
    APP_PASSWORD, Herd, PAIR, Ran, as_server, binary, is_root, newest_or_15, text, text_of, until,
};

/// Whether a PgBouncer knows several processes (1.19).
fn has_processes(program: &Path) -> bool {
    let mut version = Command::new(program);
    version.arg("--version");
    let said = text_of(version).expect("PgBouncer is installed: scripts/setup --test");
    said.split(['.', ' ']).nth(2).and_then(|minor| minor.parse::<u32>().ok()).expect("a version") >= 19
}

#[track_caller]
fn newer() -> PathBuf {
    let built = std::env::var_os("PGHERD_TEST_PGBOUNCER").map(PathBuf::from);
    let program = built.unwrap_or_else(|| PathBuf::from("/usr/sbin/pgbouncer"));
    assert!(
        has_processes(&program),
        "{} is older than 1.19: scripts/setup --test builds one",
        program.display()
    );
    program
}

/// A herd whose PgBouncer is that one, wherever the system has its own: for root in a mount namespace of each run, since what runs as the
/// os-user has a PATH of its own, for others by their PATH.
struct Newer {
    herd: Herd,
    pgherd: PathBuf,
}

impl Newer {
    fn declare() -> Self {
        let mut herd = Herd::declare(&newest_or_15(0), &PAIR);
        herd.edit("mode: transaction", "mode: transaction\n      processes: 2\n      auth: query");
        // As many as one of them may be given by chance.
        herd.edit("rw: {to: primary, size: 8,", "rw: {to: primary, size: 16,");
        herd.edit("    schemas:", "      users: {bi: {connections: 4, size: 2, clients: 9}}\n    schemas:");
        let pgherd = herd.path("pgherd.sh");
        let (program, newer) = (binary().display(), newer());
        let script = if is_root() {
            format!(
                "#!/bin/sh\nexec unshare --mount --propagation private \\\n  sh -c 'mount --bind {} /usr/sbin/pgbouncer && exec \"$@\"' sh {program} \"$@\"\n",
                newer.display()
            )
        } else {
            let directory = newer.parent().expect("a program is in a directory").display();
            format!("#!/bin/sh\nPATH={directory}:$PATH exec {program} \"$@\"\n")
        };
        std::fs::write(&pgherd, script).unwrap();
        std::fs::set_permissions(&pgherd, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { herd, pgherd }
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        self.herd.run_by(&self.pgherd, args)
    }
}

fn psql(herd: &Herd) -> Command {
    let mut command = Command::new(herd.installation().bin().join("psql"));
    command.args(["-XAtq", "-h", "127.0.0.1", "-U", "app", "-d", "inventory", "-p"]);
    command.arg(herd.port("pooler").to_string()).env("PGPASSWORD", APP_PASSWORD);
    command
}

fn console(herd: &Herd, directory: &Path, statement: &str) -> String {
    let mut psql = as_server(&herd.installation().bin().join("psql"));
    psql.args(["-XAtq", "-U", "pgbouncer", "-d", "pgbouncer", "-h", text(directory), "-c", statement]);
    psql.arg("-p").arg(herd.port("pooler").to_string());
    text_of(psql).unwrap_or_else(|said| panic!("{statement}: {said}"))
}

#[test]
fn two_processes_share_a_port_cancel_for_one_another_and_are_held_back_together() {
    let newer = Newer::declare();
    let herd = &newer.herd;
    // Debian 12's own cannot do that, which is said before anything is made.
    if !has_processes(Path::new("/usr/sbin/pgbouncer")) {
        herd.run(&["apply", "--yes"])
            .ends_with(4)
            .tells(&["cannot have \"processes: 2\" with PgBouncer 1.", "Install PgBouncer 1.19 or newer"]);
        assert!(!herd.data("a").exists());
    }
    newer.run(&["apply", "--yes"]).ends_with(0);
    newer.run(&["plan"]).ends_with(0).says(&["No changes."]);
    let [first, second] = [herd.pooler(), herd.pooler().join("2")];
    let status = newer.run(&["pooler", "status"]).ends_with(0);
    status.says(&["process 1", "process 2", "PgBouncer 1."]).does_not_say("WARNING");

    // Eight clients, on either process by chance; a cancel request comes over a connection of its own and finds the right one.
    let mut clients: Vec<_> = (0..8)
        .map(|_| {
            let mut command = psql(herd);
            command.args(["-c", "SELECT pg_sleep(60)"]).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'";
    until("all of them sleep", || (herd.sql("a", sleeping) == "8").then_some(()));
    for client in &clients {
        kill_process(Pid::from_child(client), Signal::INT).unwrap();
    }
    until("none sleeps any more", || (herd.sql("a", sleeping) == "0").then_some(()));
    for client in clients.drain(..) {
        let told = String::from_utf8(client.wait_with_output().unwrap().stderr).unwrap();
        assert!(told.contains("canceling statement due to user request"), "{told}");
    }

    // Prepared statements of the protocol, with another server connection each time.
    let script = herd.path("select.sql");
    std::fs::write(&script, "SELECT 1;\n").unwrap();
    let mut bench = Command::new(herd.installation().bin().join("pgbench"));
    bench.args([
        "-n",
        "-c",
        "6",
        "-t",
        "50",
        "-M",
        "prepared",
        "-h",
        "127.0.0.1",
        "-U",
        "app",
        "-f",
        text(&script),
        "-p",
    ]);
    bench.arg(herd.port("pooler").to_string()).arg("inventory").env("PGPASSWORD", APP_PASSWORD);
    let told = text_of(bench).expect("no client got an error");
    assert!(told.contains("300/300"), "{told}");

    // Both are held back, and let go.
    newer.run(&["pooler", "pause", "--for", "30s"]).ends_with(0);
    for directory in [&first, &second] {
        assert!(console(herd, directory, "SHOW STATE").contains("paused|yes"));
    }
    newer.run(&["pooler", "resume"]).ends_with(0);
    newer.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // This one says that somebody has given PAUSE, so nobody has to guess.
    console(herd, &second, "PAUSE");
    newer
        .run(&["pooler", "status"])
        .ends_with(0)
        .says(&["clients of the pooler on local, process 2 are held back (PAUSE)"])
        .does_not_say("may be held back");
    newer.run(&["pooler", "resume"]).ends_with(0);
    assert!(console(herd, &second, "SHOW STATE").contains("paused|no"));

    // One that is gone is told and brought back, while the other one takes clients.
    let pid = std::fs::read_to_string(second.join("pgbouncer.pid")).unwrap();
    kill_process(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    until("it is told", || {
        newer
            .run(&["pooler", "status"])
            .stdout
            .contains("the pooler on local, process 2 is stopped")
            .then_some(())
    });
    let mut ask = psql(herd);
    ask.args(["-c", "SELECT 1"]);
    assert_eq!(text_of(ask).as_deref(), Ok("1"));
    newer.run(&["pooler", "apply", "--yes"]).ends_with(0);
    newer.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");
    newer.run(&["plan"]).ends_with(0).says(&["No changes."]);
    newer.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    assert!(!herd.processes().iter().any(|(_, line)| line.contains("pgbouncer")));
}
