//! Other machines, reached by a real sshd: two hosts with an address each, on loopback.

use std::path::Path;
use std::time::{Duration, Instant};

use pgherd::host::ssh::SshHost;
use pgherd::host::{Command, Host as _, HostError};

use crate::herd::{APP_PASSWORD, Herd, PAIR, SINGLE, Shape, is_root, processes, until};
use crate::server::newest;
use crate::sshd::{Login, OPERATOR, Sshd, make_for_servers};

/// Declares a herd whose nodes are on hosts behind ssh: a on db1, every other one on db2.
fn declare(shape: &Shape<'_>, login: Login) -> (Herd, Sshd) {
    let mut herd = Herd::declare(&newest(), shape);
    let sshd = Sshd::start(&herd, "sshd", login);
    sshd.reaches(&mut herd);
    herd.edit(" a: {host: local", " a: {host: db1");
    if shape.nodes.len() > 1 {
        herd.edit("{host: local", "{host: db2");
    }
    if shape.pooler {
        herd.edit("hosts: [local]", "hosts: [db1]");
    }
    (herd, sshd)
}

#[test]
fn a_pair_comes_up_on_two_hosts_behind_ssh() {
    let (herd, _sshd) = declare(&PAIR, Login::Caller);
    herd.plan().ends_with(0).says(&["inventory-a", "inventory-b"]);
    herd.apply().ends_with(0);
    herd.is_as_declared();
    herd.status().ends_with(0).says(&["pooler db1", "streaming"]);
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1").unwrap(), "1");
    assert_eq!(herd.sql("b", "SELECT sender_host FROM pg_stat_wal_receiver"), "127.0.0.1");
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    let servers = |line: &str| line.contains("postgres") || line.contains("pgbouncer");
    assert!(!herd.processes().iter().any(|(_, line)| servers(line)), "{:?}", herd.processes());
    assert!(!herd.data("a").exists() && !herd.data("b").exists() && !herd.facts("a").exists());
}

#[test]
fn an_unknown_host_key_and_a_changed_one_are_refused_with_their_fingerprints() {
    let (herd, sshd) = declare(&SINGLE, Login::Caller);
    sshd.know(&[], "host");
    herd.plan().ends_with(4).tells(&[
        "the host key of 127.0.0.1 port",
        "is not known",
        &sshd.fingerprint("host"),
    ]);
    sshd.know(&["127.0.0.1"], "other");
    herd.plan().ends_with(4).tells(&["has changed", &sshd.fingerprint("host"), &sshd.fingerprint("other")]);
    assert!(!herd.path("data").exists());
    sshd.know(&["127.0.0.1"], "host");
    herd.plan().ends_with(0);
}

#[test]
fn a_host_that_says_nothing_is_unknown_within_the_deadline() {
    let (herd, sshd) = declare(&SINGLE, Login::Caller);
    herd.apply().ends_with(0);
    // The listener and every session stand still: connections are accepted by the kernel and never answered.
    let mut frozen: Vec<_> =
        crate::sshd::children(sshd.pid()).into_iter().map(crate::herd::Frozen::new).collect();
    frozen.push(crate::herd::Frozen::new(sshd.pid()));
    let ran = herd.status();
    assert!(ran.took < Duration::from_secs(30), "{:?}", ran.took);
    ran.says(&["unknown"]);
    drop(frozen);
    herd.status().ends_with(0);
}

#[test]
fn an_operator_without_rights_is_told_all_that_is_missing_and_with_them_needs_no_root() {
    assert!(is_root(), "sshd lets an operator in that the tests make: run them as root");
    let (mut herd, sshd) = declare(&SINGLE, Login::Operator { sudo: false });
    herd.plan().ends_with(4).tells(&[
        &format!("{OPERATOR} may not work as postgres on 127.0.0.1 port"),
        &format!("{OPERATOR} ALL=(postgres) NOPASSWD: ALL"),
    ]);
    let old = sshd.port();
    drop(sshd);

    let sshd = Sshd::start(&herd, "sshd2", Login::Operator { sudo: true });
    sshd.replaces(&mut herd, old);
    herd.keep_backups();
    let told = herd.plan().ends_with(4);
    for (owner, place) in [
        ("postgres", "config"),
        ("postgres", "state"),
        ("postgres", "data/a"),
        ("postgres", "repository"),
        (OPERATOR, "lib"),
    ] {
        let line = format!("install -d -o {owner} -m 0755 {}", herd.path(place).display());
        assert!(told.stderr.contains(&line), "no {line:?} in\n{}", told.stderr);
    }
    for place in ["config", "state", "data", "repository"] {
        make_for_servers(&herd.path(place));
    }
    std::fs::create_dir(herd.path("lib")).unwrap();
    std::os::unix::fs::chown(herd.path("lib"), Some(4711), Some(4711)).unwrap();
    herd.apply().ends_with(0);
    herd.is_as_declared();
    herd.run(&["backup", "create"]).ends_with(0);
    assert_eq!(herd.sql("a", "SELECT 1"), "1");
}

#[test]
fn a_backup_is_made_and_restored_on_the_node_s_own_host() {
    let (mut herd, _sshd) = declare(&PAIR, Login::Caller);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd.sql_in("a", "inventory", "CREATE TABLE public.kept AS SELECT generate_series(1, 1000) AS n");
    herd.run(&["backup", "create"]).ends_with(0);
    herd.run(&["backup", "list"]).ends_with(0).says(&["full"]);
    herd.run(&["wal", "list"]).ends_with(0);
    make_for_servers(&herd.path("copies"));
    let copy = herd.path("copies/r");
    herd.run(&["restore", "inventory", "--to-dir", copy.to_str().unwrap()]).ends_with(0);
    assert!(copy.join("PG_VERSION").exists());
    herd.is_as_declared();

    // Other builds come and the oldest one goes, on a host of its own as on the station; the copy runs on with a program of its own.
    let first = herd.build_in_use();
    let [one, two] = ["one", "two"].map(|name| herd.build(name));
    herd.run_by(&one, &["apply", "--yes"]).ends_with(0);
    assert!(herd.builds().contains(&first));
    herd.run_by(&two, &["plan"]).ends_with(0).says(&["remove 1 older build of pgherd", &first[..6]]);
    herd.run_by(&two, &["apply", "--yes"]).ends_with(0);
    assert!(!herd.builds().contains(&first) && herd.builds().len() == 2, "{:?}", herd.builds());
    herd.run_by(&two, &["plan"]).ends_with(0).says(&["No changes."]);
    // A station that knows nothing of that brings its build along.
    herd.run(&["wal", "list"]).ends_with(0);
    assert!(herd.builds().contains(&first));
    herd.run_by(&two, &["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    for place in ["lib", "config", "state/run", "state/log"] {
        assert!(!herd.path(place).exists(), "{place}");
    }
    herd.program("pg_ctl", &["-D", copy.to_str().unwrap(), "-m", "fast", "-w", "stop"]);
}

#[test]
fn an_export_and_a_dump_are_made_on_the_node_s_own_host() {
    let (mut herd, _sshd) = declare(&SINGLE, Login::Caller);
    herd.keep_backups();
    herd.edit(
        "    nodes:\n",
        "    partitions:\n      inventory.moves: {by: at, every: month, ahead: 1, keep: 2 months, then: export and drop}\n    \
         dumps:\n      legal: {when: monthly 28 01:00, keep: 2 days}\n    nodes:\n",
    );
    herd.apply().ends_with(0);
    let sql = |text: &str| herd.sql_in("a", "inventory", text);
    sql(crate::partition::TABLE);
    herd.run(&["partition", "apply", "--at", "2026-01-15"]).ends_with(0);
    sql(
        "INSERT INTO inventory.moves SELECT n, '2026-01-01'::timestamptz + n * interval '1 second', repeat(md5(n::text), 4) FROM generate_series(1, 100000) n",
    );
    let sum = "SELECT count(*) || ' ' || sum(hashtext(id::text || note)::int8) FROM inventory.moves";
    let before = sql(sum);
    crate::partition_interrupted::a_killed_dump_is_none(&herd);
    herd.run(&["partition", "apply", "--at", "2026-04-15"]).ends_with(0).says(&["exported 1", "dropped 1"]);
    assert_eq!(sql("SELECT count(*) FROM inventory.moves"), "0");
    herd.run(&["backup", "verify", "--full"])
        .ends_with(0)
        .says(&["exports   1 with 100000 rows", "dumps   1, "]);
    herd.run(&["partition", "restore", "inventory.moves", "moves_2026_01"]).ends_with(0);
    assert_eq!(sql(sum), before);
}

/// Opens the door to db1 as the caller, in this process.
fn door(sshd: &Sshd) -> SshHost {
    let user = crate::sshd::caller();
    SshHost::new("db1", &sshd.target(), &user).unwrap()
}

#[tokio::test]
async fn words_and_bytes_arrive_as_they_were_sent() {
    let (herd, sshd) = declare(&SINGLE, Login::Caller);
    let host = door(&sshd);
    let nasty = ["", " ", "it's", "$HOME", "`id`", "a\nb", "\\", "*", "~", "-n", "x=y", "é\u{1}"];
    let output = host.run(&Command::new("printf").arg("%s\\0").args(nasty).reads()).await.unwrap();
    assert_eq!(output.text().split_terminator('\0').collect::<Vec<_>>(), nasty);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let directory = herd.path("files");
    host.make_directory(&directory, 0o700).await.unwrap();
    let path = directory.join("it's $HOME");
    host.write_atomic(&path, &bytes, 0o640).await.unwrap();
    assert!(host.read(&path).await.unwrap().unwrap() == bytes);
    let stat = host.stat(&path).await.unwrap().unwrap();
    assert_eq!((stat.mode, stat.size.0), (0o640, 3_000_000));
    assert_eq!(host.list(&directory).await.unwrap().unwrap(), ["it's $HOME"]);
    assert_eq!(host.read(Path::new("/nowhere/at/all")).await.unwrap(), None);
    let missing = host.run(&Command::new("no-such-program")).await.unwrap_err();
    assert!(matches!(missing, HostError::NotStarted { .. }), "{missing}");
    let failing = host.run(&Command::new("sh").args(["-c", "echo no >&2; exit 3"])).await.unwrap_err();
    assert!(matches!(&failing, HostError::Exited { status: 3, stderr, .. } if stderr == "no"), "{failing}");
    host.remove_tree(&directory).await.unwrap();
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_connection_that_is_cut_leaves_the_outcome_unknown_and_ends_the_program() {
    let (_herd, sshd) = declare(&SINGLE, Login::Caller);
    let host = door(&sshd);
    host.run(&Command::new("true")).await.unwrap();
    let runs = || processes().iter().any(|(_, line)| line.trim() == "sleep 271.828");
    let sleep = Command::new("sleep").arg("271.828");
    let (ended, ()) = tokio::join!(host.run(&sleep), async {
        while !runs() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sshd.cut();
    });
    let lost = ended.unwrap_err();
    assert!(matches!(lost, HostError::Lost { .. }), "{lost}");
    until("the program is ended", || (!runs()).then_some(()));
    // What was known of the connection is forgotten: the next call makes a new one.
    assert_eq!(host.run(&Command::new("echo").arg("back").reads()).await.unwrap().text(), "back\n");
}

#[tokio::test]
async fn a_file_that_was_cut_short_is_not_put_in_place() {
    let (herd, sshd) = declare(&SINGLE, Login::Caller);
    let host = door(&sshd);
    let directory = herd.path("files");
    host.make_directory(&directory, 0o700).await.unwrap();
    let path = directory.join("kept");
    host.write_atomic(&path, b"old", 0o600).await.unwrap();
    let begun = || {
        let mut files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap());
        files.any(|file| file.file_name() != "kept" && file.metadata().is_ok_and(|found| found.len() > 0))
    };
    let bytes = vec![7; 200 << 20];
    let (ended, ()) = tokio::join!(host.write_atomic(&path, &bytes, 0o600), async {
        while !begun() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sshd.cut();
    });
    let lost = ended.unwrap_err();
    assert!(matches!(lost, HostError::Lost { .. }), "{lost}");
    let writes = format!("of={}", directory.display());
    until("the writer has ended", || {
        (!processes().iter().any(|(_, line)| line.contains(&writes))).then_some(())
    });
    assert_eq!(host.read(&path).await.unwrap().as_deref(), Some(&b"old"[..]));
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_ends_its_program() {
    let (_herd, sshd) = declare(&SINGLE, Login::Caller);
    let host = door(&sshd);
    host.run(&Command::new("true")).await.unwrap();
    let runs = || processes().iter().any(|(_, line)| line.trim() == "sleep 314.159");
    let sleep = Command::new("sleep").arg("314.159").timeout(Duration::from_secs(2));
    let lost = host.run(&sleep).await.unwrap_err();
    assert!(matches!(lost, HostError::Lost { .. }), "{lost}");
    until("the program is ended", || (!runs()).then_some(()));
}

#[tokio::test]
async fn a_command_on_a_warm_connection_is_measured() {
    let (_herd, sshd) = declare(&SINGLE, Login::Caller);
    let host = door(&sshd);
    host.run(&Command::new("true")).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..40 {
        let begun = Instant::now();
        host.run(&Command::new("true").reads()).await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort();
    println!(
        "a command on a warm connection: median {:?}, fastest {:?}, slowest {:?}",
        took[20], took[0], took[39]
    );
}

#[test]
fn twenty_hosts_are_observed_side_by_side() {
    let (herd, mut sshd) = declare(&SINGLE, Login::Caller);
    let topology = sshd.declare_many(&herd);
    let status = || {
        let ran = herd.run(&["-f", topology.to_str().unwrap(), "--format", "json", "status"]).ends_with(0);
        let known = ran.stdout.matches("\"state\": \"missing\"").count();
        (ran.took, known)
    };
    let cold = status();
    // What is slow on a busy machine is looked at again, and then it is known.
    let warm = until("all of them are known", || Some(status()).filter(|(_, known)| *known == 20));
    println!(
        "status of 20 hosts: {:?} and {} known at first, {:?} over warm connections",
        cold.0, cold.1, warm.0
    );
}
