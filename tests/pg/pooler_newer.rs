//! A PgBouncer newer than Debian 12's: several processes behind one port, prepared statements, and what it says of a PAUSE.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{APP_PASSWORD, Herd, PAIR, as_server, newest_or_15, text, text_of, until};

/// Returns a PgBouncer that knows several processes (1.19).
#[track_caller]
fn newer() -> PathBuf {
    let built = std::env::var_os("PGHERD_TEST_PGBOUNCER").map(PathBuf::from);
    let program = built.unwrap_or_else(|| PathBuf::from("/usr/sbin/pgbouncer"));
    let mut version = Command::new(&program);
    version.arg("--version");
    let said = text_of(version).expect("PgBouncer is installed: scripts/setup --test");
    let minor = said.split(['.', ' ']).nth(2).and_then(|minor| minor.parse::<u32>().ok()).expect("a version");
    assert!(minor >= 19, "{} is older than 1.19: scripts/setup --test builds one", program.display());
    program
}

/// Declares a herd with two processes of it.
fn declare() -> Herd {
    let mut herd = Herd::declare(&newest_or_15(0), &PAIR);
    let directory = newer().parent().expect("a program is in a directory").display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    herd.variable("PATH", Some(&format!("{directory}:{path}")));
    herd.edit("mode: transaction", "mode: transaction\n      processes: 2\n      auth: query");
    herd.edit("    schemas:", "      users: {bi: {connections: 4, size: 2, clients: 9}}\n    schemas:");
    herd
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
    let mut herd = declare();
    herd.apply().ends_with(0);
    herd.is_as_declared();
    let [first, second] = [herd.pooler(), herd.pooler().join("2")];
    let status = herd.run(&["pooler", "status"]).ends_with(0);
    status.says(&["process 1", "process 2", "PgBouncer 1."]).does_not_say("WARNING");

    // Eight clients, on either process by chance; a cancel request comes over a connection of its own and finds the right one.
    let mut clients: Vec<_> = (0..8)
        .map(|_| {
            let mut command = psql(&herd);
            command.args(["-c", "SELECT pg_sleep(60)"]).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'";
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
    bench.args(["-n", "-c", "6", "-t", "50", "-M", "prepared", "-h", "127.0.0.1", "-U", "app", "-f", text(&script), "-p"]);
    bench.arg(herd.port("pooler").to_string()).arg("inventory").env("PGPASSWORD", APP_PASSWORD);
    let told = text_of(bench).expect("no client got an error");
    assert!(told.contains("300/300"), "{told}");

    // Both are held back, and let go.
    herd.run(&["pooler", "pause", "--for", "30s"]).ends_with(0);
    for directory in [&first, &second] {
        assert!(console(&herd, directory, "SHOW STATE").contains("paused|yes"));
    }
    herd.run(&["pooler", "resume"]).ends_with(0);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // This one says that somebody has given PAUSE, so nobody has to guess.
    console(&herd, &second, "PAUSE");
    herd.run(&["pooler", "status"])
        .ends_with(0)
        .says(&["clients of the pooler on local, process 2 are held back (PAUSE)"])
        .does_not_say("may be held back");
    herd.run(&["pooler", "resume"]).ends_with(0);
    assert!(console(&herd, &second, "SHOW STATE").contains("paused|no"));

    // One that is gone is told and brought back, while the other one takes clients.
    let pid = std::fs::read_to_string(second.join("pgbouncer.pid")).unwrap();
    kill_process(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    until("it is told", || {
        herd.run(&["pooler", "status"]).stdout.contains("the pooler on local, process 2 is stopped").then_some(())
    });
    let mut ask = psql(&herd);
    ask.args(["-c", "SELECT 1"]);
    assert_eq!(text_of(ask).as_deref(), Ok("1"));
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");
    herd.is_as_declared();
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    assert!(!herd.processes().iter().any(|(_, line)| line.contains("pgbouncer")));
}
