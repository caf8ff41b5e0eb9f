//! Restores of real clusters: to every kind of target, judged by PostgreSQL's own programs, and what becomes of them when something goes wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use pgherd::engine::lease::{Lease, Purpose};
use pgherd::engine::record::Actor;
use pgherd::repo::seal;

use crate::flips::{Chance, Flip, count};
use crate::herd::{Herd, Ran, SINGLE, Shape, as_server, files_below, is_root, text, text_of, until};
use crate::kept::{Kept, Kind};
use crate::server::{Installation, installations, newest};

/// A herd with backups, a table of moments, and one in a tablespace.
pub(crate) struct Shop {
    pub(crate) herd: Herd,
}

/// A moment of a shop to which it is restored.
pub(crate) struct Moment {
    pub(crate) dump: String,
    time: String,
    lsn: String,
    xid: String,
    name: String,
}

impl Drop for Shop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for file in files_below(&self.herd.path("copies/r-pgherd/log")) {
            let log = fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {}\n{}", file.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// Holds two dumps to be the same, and shows where they are not.
#[track_caller]
pub(crate) fn same(found: &str, wanted: &str, of: &str) {
    let differs = found.lines().zip(wanted.lines()).find(|(one, other)| one != other);
    assert!(found == wanted, "{of}: {differs:?}, {} and {} bytes", found.len(), wanted.len());
}

/// A pgbench that runs; it is ended when it is dropped.
pub(crate) struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Shop {
    fn up(installation: &Installation, shape: &Shape<'_>) -> Self {
        Self::up_with(Kind::of_this_run(), installation, shape).expect("an S3 server")
    }

    /// The same with this kind of repository; nothing where there is no S3 server for this machine.
    pub(crate) fn up_with(kind: Kind, installation: &Installation, shape: &Shape<'_>) -> Option<Self> {
        let mut herd = Herd::declare(installation, shape);
        if !herd.keep_backups_in(kind) {
            return None;
        }
        herd.apply().ends_with(0);
        let shop = Self { herd };
        let mut far = "";
        if shape.nodes.len() == 1 {
            // Standbys of the same machine would write into the same directory.
            let space = shop.directory("space");
            shop.sql(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
            far = "TABLESPACE far";
        }
        shop.sql(&format!(
            "CREATE TABLE moments (n serial, at timestamptz DEFAULT clock_timestamp(), note text);
             CREATE TABLE far_away (n int PRIMARY KEY, note text) {far};
             CREATE UNLOGGED TABLE passing (n int);
             INSERT INTO far_away SELECT n, repeat('far', n % 50) FROM generate_series(1, 5000) n;
             INSERT INTO passing SELECT generate_series(1, 100)"
        ));
        Some(shop)
    }

    /// Makes a directory that belongs to the servers' user.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.herd.path(name);
        fs::create_dir_all(&path).unwrap();
        if is_root() {
            let status = Command::new("chown").args(["postgres", text(&path)]).status().unwrap();
            assert!(status.success());
        }
        path
    }

    fn sql(&self, sql: &str) -> String {
        self.herd.sql("a", sql)
    }

    /// Writes while it lives.
    pub(crate) fn load(&self) -> Load {
        self.pgbench(&["-i", "-q", "-s", "2"]);
        let mut command = self.pgbench_command();
        command.args(["-c", "2", "-R", "300", "-T", "600", "-n", "postgres"]);
        let load = Load(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let count = || self.sql("SELECT count(*) FROM pgbench_history").parse::<u64>().unwrap();
        until("pgbench writes", || (count() > 50).then_some(()));
        load
    }

    fn pgbench_command(&self) -> Command {
        let mut command = as_server(&self.herd.installation().bin().join("pgbench"));
        command.args(["-h", text(&self.herd.path("state/run/inventory-a")), "-U", "postgres", "-p"]);
        command.arg(self.herd.port("a").to_string());
        command
    }

    fn pgbench(&self, args: &[&str]) {
        let mut command = self.pgbench_command();
        command.args(args).arg("postgres");
        text_of(command).unwrap();
    }

    #[track_caller]
    fn backup(&self) {
        self.herd.back_up().ends_with(0);
    }

    /// Stores the lease under which another machine removes every backup.
    fn expires_elsewhere(&self) -> String {
        let manifests = self.kept().with("/manifest.json");
        let labels = manifests.iter().map(|name| name.rsplit('/').nth(1).unwrap().parse().unwrap());
        let now = Timestamp::now();
        let lease = Lease {
            format: 1,
            token: "0123456789abcdef".to_owned(),
            kind: Purpose::Expire,
            labels: labels.collect(),
            by: Actor { user: "operator".to_owned(), host: "elsewhere".to_owned(), pid: 1, ..Actor::here() },
            boot: "another".to_owned(),
            pid_namespace: "another".to_owned(),
            since: now,
            expires: now + SignedDuration::from_mins(10),
            progress: None,
        };
        let name = self.below("lease/0123456789abcdef.json");
        self.kept().write(&name, &seal::write_document(&lease));
        name
    }

    /// Writes a moment and remembers the shop as it is then; what comes later is not part of it.
    pub(crate) fn moment(&self, name: &str) -> Moment {
        let xid = self.sql(&format!(
            "WITH written AS (INSERT INTO moments (note) VALUES ('{name}') RETURNING pg_current_xact_id()) SELECT * FROM written"
        ));
        let dump = self.dump();
        self.sql(&format!("SELECT pg_create_restore_point('{name}')"));
        let time = self.sql("SET timezone = 'UTC'; SELECT clock_timestamp()");
        let lsn = self.sql("SELECT pg_current_wal_insert_lsn()");
        self.sql("SELECT pg_logical_emit_message(false, 'test', 'what a target LSN takes with it')");
        self.sql(&format!("INSERT INTO moments (note) VALUES ('after {name}')"));
        Moment { dump, time, lsn, xid, name: name.to_owned() }
    }

    fn dump(&self) -> String {
        let port = self.herd.port("a").to_string();
        dump(&self.herd, &self.herd.path("state/run/inventory-a"), &port)
    }

    /// Finishes the present segment and waits until it is in the repository.
    pub(crate) fn archive(&self) -> String {
        let segment = self.sql(
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
        );
        self.wait_archived(&segment);
        segment
    }

    fn wait_archived(&self, segment: &str) {
        until(&format!("{segment} is there"), || self.kept().has_wal(segment).then_some(()));
    }

    pub(crate) fn kept(&self) -> Kept {
        self.herd.kept()
    }

    /// Returns the name of what the cluster has in the repository.
    fn below(&self, name: &str) -> String {
        let system = self.sql("SELECT system_identifier FROM pg_control_system()");
        format!("inventory/{system}/{name}")
    }

    fn stored(&self, segment: &str) -> String {
        self.kept().only(&format!("/{segment}.zst"))
    }

    pub(crate) fn to(&self) -> PathBuf {
        self.herd.path("copies/r")
    }

    #[track_caller]
    pub(crate) fn restore(&self, more: &[&str]) -> Ran {
        self.start(more).end()
    }

    fn start(&self, more: &[&str]) -> crate::herd::Running {
        self.directory("copies");
        let to = self.to();
        let mut args = vec!["restore", "inventory", "--to-dir", text(&to)];
        args.extend(more);
        self.herd.start_restore(&args)
    }

    fn socket(&self) -> PathBuf {
        self.herd.path("copies/r-pgherd/run/inventory-restored")
    }

    /// Asks the copy.
    #[track_caller]
    fn ask(&self, sql: &str) -> String {
        let mut command = as_server(&self.herd.installation().bin().join("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", sql, "-h"]);
        command.arg(self.socket()).args(["-p", "5432"]);
        text_of(command).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }

    pub(crate) fn dump_of_copy(&self) -> String {
        dump(&self.herd, &self.socket(), "5432")
    }

    /// Stops the copy, if it runs, and removes it.
    pub(crate) fn remove(&self) {
        if self.to().join("postmaster.pid").exists() {
            self.herd.program("pg_ctl", &["-D", text(&self.to()), "-m", "fast", "-w", "stop"]);
        }
        fs::remove_dir_all(self.herd.path("copies")).unwrap();
    }

    /// Holds the copy not to start, as it is not complete.
    #[track_caller]
    fn cannot_start(&self) {
        assert!(!self.to().join("global/pg_control").exists());
        if self.to().join("PG_VERSION").exists() {
            let mut command = as_server(&self.herd.installation().bin().join("postgres"));
            command.args(["-D", text(&self.to())]);
            text_of(command).expect_err("a half restore must not start");
        }
    }
}

fn dump(herd: &Herd, socket: &Path, port: &str) -> String {
    let text = herd.program(
        "pg_dump",
        &["-h", text(socket), "-p", port, "-U", "postgres", "--no-unlogged-table-data", "postgres"],
    );
    // A word by chance since the minor versions of August 2025; and a sequence is logged 32 numbers ahead.
    let same = |line: &&str| !line.contains("restrict ") && !line.contains("pg_catalog.setval(");
    text.lines().filter(same).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_version_comes_back_as_it_was_at_its_target_and_postgresql_agrees() {
    for installation in installations() {
        let shop = Shop::up(&installation, &SINGLE);
        let load = shop.load();
        shop.backup();
        drop(load);
        let moment = shop.moment("one");
        shop.archive();
        // Nothing of the copy is the original's: not its tablespace, not its archive, not its port.
        let archived = shop.kept().names();

        shop.restore(&["--target-name", "one", "--no-start"]).ends_with(0).says(&["complete, not started"]);
        shop.herd.program("pg_verifybackup", &["-n", text(&shop.to())]);
        let oid = shop.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'far'");
        let link = fs::read_link(shop.to().join("pg_tblspc").join(&oid)).unwrap();
        assert_eq!(link, shop.herd.path("copies/r-tablespaces").join(&oid));

        // What was left ready to start is a finished copy.
        shop.restore(&["--target-name", "one"]).ends_with(4).tells(&["it holds a finished copy", "--delta"]);
        shop.restore(&["--target-name", "one", "--delta", "--action", "shutdown"]).ends_with(0);
        shop.herd.program("pg_checksums", &["--check", "-D", text(&shop.to())]);

        shop.restore(&["--target-name", "one", "--delta"]).ends_with(0).says(&["accepts writes", "connect"]);
        same(&shop.dump_of_copy(), &moment.dump, "one");
        assert_eq!(shop.ask("SELECT count(*) FROM passing"), "0", "unlogged tables come back empty");
        assert_eq!(shop.ask("SHOW archive_mode"), "off");
        assert_eq!(shop.ask("SHOW primary_conninfo"), "");
        assert_eq!(shop.ask("SHOW listen_addresses"), "");
        let socket = shop.socket();
        let args = ["-h", text(&socket), "-p", "5432", "-U", "postgres"];
        shop.herd.program(
            "pg_amcheck",
            &[&args[..], &["--all", "--heapallindexed", "--install-missing"]].concat(),
        );
        shop.ask("INSERT INTO moments (note) VALUES ('only here'); SELECT pg_switch_wal()");
        assert_eq!(shop.kept().names(), archived);
        shop.remove();
    }
}

#[test]
fn each_kind_of_target_is_reached_exactly() {
    let shop = Shop::up(&newest(), &SINGLE);
    shop.backup();
    let one = shop.moment("one");
    let two = shop.moment("two");
    shop.archive();
    let end = shop.dump();
    for (moment, flag, value) in [
        (&one, "--target-time", one.time.clone()),
        (&two, "--target-time", two.time.clone()),
        (&one, "--target-lsn", one.lsn.clone()),
        (&two, "--target-xid", two.xid.clone()),
        (&one, "--target-name", one.name.clone()),
    ] {
        let ran =
            shop.restore(&[flag, &value, "--action", "pause"]).ends_with(0).says(&["paused at its target"]);
        same(&shop.dump_of_copy(), &moment.dump, &format!("{flag} {value}\n{}", ran.stdout));
        assert_eq!(shop.ask("SELECT pg_is_in_recovery()"), "t");
        shop.remove();
    }
    shop.restore(&[]).ends_with(0);
    same(&shop.dump_of_copy(), &end, "latest");
    shop.remove();
    shop.restore(&["--target-immediate"]).ends_with(0);
    assert_eq!(shop.ask("SELECT count(*) FROM moments"), "0");
    shop.remove();
}

#[test]
fn a_restore_follows_the_cluster_over_a_switch_of_timeline() {
    follows_over_a_switch_of_timeline(&Shop::up(&newest(), &crate::herd::PAIR));
}

pub(crate) fn follows_over_a_switch_of_timeline(shop: &Shop) {
    shop.backup();
    let one = shop.moment("one");
    shop.archive();
    shop.herd.stop("a", "fast");
    shop.herd.program("pg_ctl", &["-D", text(&shop.herd.data("b")), "-w", "promote"]);
    shop.herd.sql("b", "INSERT INTO moments (note) VALUES ('on the second timeline')");
    let segment = shop
        .herd
        .sql("b", "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(true, 'a', 'b')");
    shop.wait_archived(&segment);
    let preview =
        shop.restore(&["--preview"]).ends_with(0).says(&["timelines 1 → 2, every history file present"]);
    assert!(!shop.to().exists(), "{}", preview.stdout);
    shop.restore(&[]).ends_with(0);
    assert_eq!(shop.ask("SELECT note FROM moments ORDER BY n DESC LIMIT 1"), "on the second timeline");
    assert_eq!(shop.ask("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
    shop.remove();
    // The moment before is on both timelines.
    shop.restore(&["--target-time", &one.time, "--target-timeline", "1"]).ends_with(0);
    same(&shop.dump_of_copy(), &one.dump, "on timeline 1");
    shop.remove();
    shop.restore(&["--target-time", &one.time]).ends_with(0);
    same(&shop.dump_of_copy(), &one.dump, "on timeline 2");
    shop.remove();

    shop.kept().take(&shop.kept().only("wal/00000002.history.zst"));
    shop.restore(&[])
        .ends_with(4)
        .tells(&["the history of timeline 2 is not in the archive", "00000002.history"]);
    assert!(!shop.to().exists());
}

#[test]
fn what_is_missing_or_damaged_is_told_and_nothing_is_promoted_short() {
    tells_what_is_missing_or_damaged(&Shop::up(&newest(), &SINGLE));
}

pub(crate) fn tells_what_is_missing_or_damaged(shop: &Shop) {
    shop.restore(&[]).ends_with(10).tells(&["there is no backup of inventory to restore"]);
    shop.backup();
    shop.moment("one");
    let first = shop.archive();
    shop.moment("two");
    let second = shop.archive();
    let three = shop.moment("three");
    shop.archive();
    let (first, second) = (shop.stored(&first), shop.stored(&second));

    // A target that nobody can reach is refused before anything is written.
    shop.restore(&["--target-time", "2020-01-01 00:00:00 UTC"]).ends_with(4).tells(&["ends later"]);
    shop.restore(&["--target-time", "2099-01-01 00:00:00 UTC"])
        .ends_with(4)
        .tells(&["does not reach that far"]);
    shop.restore(&["--target-lsn", "FFF/0"]).ends_with(4).tells(&["does not reach"]);
    shop.restore(&["--target-name", "never"]).ends_with(4).tells(&["is not in the archive"]);
    assert!(!shop.to().exists() && !shop.herd.path("copies/r-pgherd").exists());

    // A segment that is missing on the way.
    let kept = shop.kept();
    let good = kept.take(&second);
    shop.restore(&["--target-lsn", &three.lsn]).ends_with(4).tells(&["WAL is missing on the way"]);
    shop.restore(&["--target-name", "one"]).ends_with(0);
    shop.remove();
    kept.write(&second, &good);

    // One that vanishes, or a repository that does, when the server recovers already.
    let prepare = || shop.restore(&["--target-lsn", &three.lsn, "--no-start"]).ends_with(0);
    let recovery_fails = || {
        let mut start = as_server(&shop.herd.installation().bin().join("postgres"));
        start.args(["-D", text(&shop.to())]);
        text_of(start).expect_err("recovery must end with an error");
        assert!(shop.to().join("recovery.signal").exists(), "it was not promoted");
    };
    prepare();
    kept.take(&second);
    recovery_fails();
    kept.write(&second, &good);
    shop.remove();
    prepare();
    kept.gone(recovery_fails);
    shop.remove();

    // One that is damaged: no listing shows that. With encryption the look for the last commit before the target may, when it comes by.
    kept.damage(&second);
    let ran = shop.restore(&["--target-lsn", &three.lsn]).ends_with(1);
    if shop.herd.is_encrypted() && !ran.stderr.contains("did not get to its target") {
        ran.tells(&[&second, "is not what was stored there"]);
        shop.cannot_start();
    } else {
        ran.tells(&["did not get to its target", "Nothing was promoted"]);
        assert!(shop.to().join("recovery.signal").exists(), "it was not promoted");
    }
    assert!(!shop.to().join("postmaster.pid").exists(), "nothing is left running");
    kept.write(&second, &good);
    // The same again goes on with what is there.
    shop.restore(&["--target-lsn", &three.lsn]).ends_with(0);
    same(&shop.dump_of_copy(), &three.dump, "three");
    shop.remove();

    // The last segment: the end of the archive is not taken for what it is not.
    let good = kept.take(&first);
    shop.restore(&[]).ends_with(4).tells(&["WAL is missing on the way"]);
    kept.write(&first, &good);

    // A data object of the backup.
    kept.damage(&kept.only("data/000001"));
    shop.restore(&[]).ends_with(1).tells(&[
        "is damaged",
        "data/000001",
        "They hold a part of",
        "--backup LABEL",
    ]);
    shop.cannot_start();
}

#[test]
fn a_directory_that_is_not_free_is_refused_and_left_alone() {
    let shop = Shop::up(&newest(), &SINGLE);
    shop.backup();
    let to = shop.directory("copies/r");
    fs::write(to.join("mine"), "precious").unwrap();
    shop.restore(&["--preview"]).ends_with(4).says(&["OBSTACLE", "it is not empty"]);
    shop.restore(&[]).ends_with(4).tells(&["it is not empty"]);
    assert_eq!(fs::read_to_string(to.join("mine")).unwrap(), "precious");
    assert!(!shop.herd.path("copies/r-pgherd").exists());
    fs::remove_dir_all(&to).unwrap();

    // A copy that runs, and the data directory of a node.
    shop.restore(&["--target-immediate"]).ends_with(0);
    shop.restore(&["--target-immediate", "--delta"]).ends_with(4).tells(&["a server runs in it"]);
    assert_eq!(shop.ask("SELECT pg_is_in_recovery()"), "f");
    shop.remove();
    let data = shop.herd.data("a");
    shop.herd
        .restore(&["restore", "inventory", "--to-dir", text(&data)])
        .ends_with(4)
        .tells(&["it is the place of inventory-a"]);
    shop.herd.is_as_declared();

    // What is beside it may be somebody's too; half a file of a restore that was killed is nobody's.
    let beside = shop.herd.path("copies/other-pgherd");
    let to = shop.herd.path("copies/other");
    for (name, code) in [("notes.txt", 4), (".restore.json.pgherd-x1Yz2W3v", 0)] {
        shop.directory("copies/other-pgherd");
        let file = beside.join(name);
        fs::write(&file, "").unwrap();
        let ran =
            shop.herd.restore(&["restore", "inventory", "--to-dir", text(&to), "--no-start"]).ends_with(code);
        if code == 4 {
            ran.tells(&["copies/other-pgherd: it is not empty"]);
            assert!(!to.exists());
            fs::remove_file(&file).unwrap();
        }
    }

    // Somebody else's parent, and a directory of another user.
    if is_root() {
        fs::create_dir(shop.herd.path("locked")).unwrap();
        fs::set_permissions(shop.herd.path("locked"), fs::Permissions::from_mode(0o700)).unwrap();
        let inside = shop.herd.path("locked/r");
        let ran = shop.herd.restore(&["restore", "inventory", "--to-dir", text(&inside)]);
        assert_ne!(ran.code, 0, "{}", ran.stdout);
        assert!(!inside.join("PG_VERSION").exists());
        shop.directory("copies");
        fs::create_dir(shop.to()).unwrap();
        shop.restore(&["--target-immediate"]).ends_with(4).tells(&["it belongs to another user"]);
    }
    let long = shop.herd.path(&"x".repeat(90));
    shop.herd
        .restore(&["restore", "inventory", "--to-dir", text(&long)])
        .ends_with(2)
        .tells(&["is too long"]);
}

#[test]
fn a_restore_that_was_killed_is_ended_by_the_next() {
    let shop = Shop::up(&crate::herd::newest_or_15(1), &SINGLE);
    shop.backup();
    let one = shop.moment("one");
    shop.archive();
    let whole = shop.restore(&["--target-name", "one"]).ends_with(0).took;
    shop.remove();
    let mut killed = 0;
    let mut chance = Chance::new("kills of a restore");
    let rounds = count(7, 50);
    for round in 0..rounds {
        let mut run = shop.start(&["--target-name", "one"]);
        // Each part of its time gets its share.
        let after = (round as f64 + chance.below(1000) as f64 / 1000.0) / rounds as f64;
        let moment = std::time::Instant::now() + whole.mul_f64(after);
        until("it is time", || (std::time::Instant::now() >= moment || run.has_ended()).then_some(()));
        run.signal(rustix::process::Signal::KILL);
        killed += u32::from(run.end().code == 137);
        // The copy on the node ends once nobody listens, or with its last file.
        until("the copy has ended", || {
            (!shop.herd.processes().iter().any(|(_, line)| line.trim_end().ends_with("/pgherd node")))
                .then_some(())
        });
        // Nothing that did not reach its target accepts writes.
        if shop.to().exists() && !shop.to().join("global/pg_control").exists() {
            shop.cannot_start();
        }
        let saved = fs::read_to_string(shop.herd.path("copies/r-pgherd/restore.json")).unwrap_or_default();
        if saved.contains("\"finished\": true") {
            shop.remove();
        }
    }
    // How many runs end before their moment depends on how busy the machine was when the first was measured.
    assert!(killed >= 1, "none was killed");
    shop.restore(&["--target-name", "one"]).ends_with(0);
    same(&shop.dump_of_copy(), &one.dump, "after all those kills");
    shop.remove();
}

#[test]
fn no_flipped_bit_is_restored_silently() {
    restores_no_flipped_bit_silently(&Shop::up(&crate::herd::newest_or_15(1), &SINGLE));
}

pub(crate) fn restores_no_flipped_bit_silently(shop: &Shop) {
    shop.backup();
    let one = shop.moment("one");
    shop.archive();
    let mut chance = Chance::new("flipped bits of what is restored");
    let mut noticed = 0;
    let mut turn = 0;
    // Some hit what this restore has no use for: then it is as it was.
    while noticed < count(3, 100) {
        turn += 1;
        let flip = Flip::choose(&shop.kept(), &mut chance);
        flip.flip(&shop.kept());
        let ran = shop.restore(&["--target-name", "one"]);
        flip.flip(&shop.kept());
        if ran.code == 0 {
            same(&shop.dump_of_copy(), &one.dump, &format!("turn {turn}: {flip:?}"));
        } else {
            noticed += 1;
            assert!(ran.stderr.starts_with("ERROR:  "), "turn {turn}: {flip:?}\n{}", ran.stderr);
            // Nothing that took writes: a copy that is there waits for the rest of its WAL.
            assert!(!shop.to().join("postmaster.pid").exists(), "turn {turn}: {flip:?}");
            let started = shop.to().join("global/pg_control").exists();
            assert!(!started || shop.to().join("recovery.signal").exists(), "turn {turn}: {flip:?}");
        }
        shop.remove();
    }
    assert!(shop.restore(&["--target-name", "one"]).code == 0, "the repository is whole again");
    shop.remove();
}

#[test]
fn an_interrupted_restore_leaves_nothing_running() {
    let shop = Shop::up(&newest(), &SINGLE);
    shop.backup();
    shop.archive();
    let mut run = shop.start(&[]);
    until("it copies", || (run.has_ended() || shop.to().join("base").exists()).then_some(()));
    run.signal(rustix::process::Signal::INT);
    run.end().ends_with(130).tells(&["the restore was interrupted", "Run the same restore again"]);
    let to = shop.to().display().to_string();
    until("nothing of it runs", || {
        (!shop.herd.processes().iter().any(|(_, line)| line.contains(&to))).then_some(())
    });
    shop.restore(&[]).ends_with(0);
    shop.remove();
}

#[test]
fn a_preview_says_what_would_be_done_and_writes_nothing() {
    let shop = Shop::up(&newest(), &SINGLE);
    shop.backup();
    let one = shop.moment("one");
    shop.archive();
    let args = ["--target-time", one.time.as_str(), "--preview"];
    shop.restore(&args).ends_with(0).says(&[
        "restore to",
        "last commit: xid",
        "consistent from",
        "0 missing",
        "room",
        "no estimate",
        "gives up",
        "production is not touched",
        "next     the same without --preview",
    ]);
    let json = shop.restore(&[&args[..], &["--format", "json"]].concat()).ends_with(0).json();
    assert_eq!(json["format_version"], "1.0");
    assert_eq!(json["directory_state"], "new");
    assert_eq!(json["survey"]["choice"]["timeline"], 1);
    assert_eq!(json["survey"]["beyond"]["commits"], 1, "{json:#}");
    assert!(!shop.to().exists() && !shop.herd.path("copies/r-pgherd").exists());
    assert_eq!(shop.kept().with("/lease/"), Vec::<String>::new());
}

#[test]
fn a_backup_is_restored_by_hand_as_its_page_says() {
    // The page begins with files in the clear.
    let shop = Shop::up_with(Kind::Directory, &newest(), &SINGLE).unwrap();
    let load = shop.load();
    shop.backup();
    drop(load);
    shop.archive();
    let dump = shop.dump();
    shop.archive();
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats/backup.md")).unwrap();
    let (_, script) = page.split_once("```sh\n").expect("the page has a script");
    let (script, _) = script.split_once("```").expect("it ends");
    let by_hand = shop.herd.path("restore-by-hand");
    fs::write(&by_hand, script).unwrap();
    // The tablespace is where it was: the original must go first.
    shop.herd.stop("a", "fast");
    let space = shop.herd.path("space");
    fs::rename(&space, shop.herd.path("space-before")).unwrap();
    shop.directory("space");
    shop.directory("copies");
    let manifest = shop.kept().only("/manifest.json");
    let backup = shop.herd.repository().join(manifest.strip_suffix("/manifest.json").unwrap());
    let mut run = as_server(Path::new("/bin/sh"));
    run.args([text(&by_hand), text(&backup), text(&shop.to())]);
    text_of(run).unwrap_or_else(|said| panic!("{said}"));
    let socket = shop.directory("copies/socket");
    let options = format!("-p 5432 -k {} -c listen_addresses= -c logging_collector=off", socket.display());
    let log = shop.herd.path("copies/log");
    fs::write(&log, "").unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
    shop.herd.program(
        "pg_ctl",
        &["-D", text(&shop.to()), "-o", &options, "-l", text(&log), "-w", "-t", "60", "start"],
    );
    let promoted = || {
        let mut ask = as_server(&shop.herd.installation().bin().join("psql"));
        ask.args(["-XAtq", "-h", text(&socket), "-U", "postgres", "-c", "SELECT pg_is_in_recovery()"]);
        (text_of(ask).as_deref() == Ok("f")).then_some(())
    };
    until("it has recovered", promoted);
    same(&super::restore::dump(&shop.herd, &socket, "5432"), &dump, "by hand");
}

/// A file system in memory; root alone may make one.
struct Memory(PathBuf);

impl Memory {
    fn mount(at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs", text(&at)]);
        text_of(mount).expect("root may mount");
        Self(at)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.args(["--lazy", text(&self.0)]);
        if let Err(said) = text_of(unmount) {
            eprintln!("{said}");
        }
    }
}

#[test]
fn a_disk_without_room_is_refused_and_one_that_fills_up_is_told() {
    if !is_root() {
        // Only root can mount a small file system.
        return;
    }
    let shop = Shop::up(&newest(), &SINGLE);
    shop.backup();
    shop.archive();
    let small = Memory::mount(shop.herd.path("small"), "size=24m,mode=0777");
    let to = small.0.join("r");
    let ran = shop.herd.restore(&["restore", "inventory", "--to-dir", text(&to), "--target-immediate"]);
    ran.ends_with(4).tells(&["there is no room for the copy in", "Nothing was written"]);
    assert!(!to.exists());

    // Files can run out before bytes do, and nobody sees that coming.
    let few = Memory::mount(shop.herd.path("few"), "size=4g,mode=0777,nr_inodes=300");
    let to = few.0.join("r");
    let args = ["restore", "inventory", "--to-dir", text(&to), "--target-immediate"];
    shop.herd
        .restore(&args)
        .ends_with(1)
        .tells(&["No space left on device", "it goes on with what is there"]);
    assert!(!to.join("global/pg_control").exists());
    let mut remount = Command::new("mount");
    remount.args(["-o", "remount,nr_inodes=0", text(&few.0)]);
    text_of(remount).unwrap();
    shop.herd.restore(&args).ends_with(0);
    shop.herd.program("pg_ctl", &["-D", text(&to), "-m", "fast", "-w", "stop"]);
}

#[test]
fn a_standby_is_made_anew_from_the_backup_and_streams_again() {
    let shop = Shop::up(&crate::herd::newest_or_15(0), &crate::herd::PAIR);
    let load = shop.load();
    shop.backup();
    let to_node = |node: &str| shop.herd.run(&["restore", "inventory", "--to-node", node]);
    to_node("a").ends_with(4).tells(&["it is the primary of a living cluster"]);
    to_node("b").ends_with(4).tells(&["it streams from the primary"]);
    to_node("x").ends_with(10).tells(&["has no node x"]);
    assert_eq!(shop.herd.primaries(), ["a"]);

    // Its disk is gone, and another machine is removing the only backup.
    shop.herd.stop("b", "immediate");
    fs::remove_dir_all(shop.herd.data("b")).unwrap();
    let expires = shop.expires_elsewhere();
    to_node("b").ends_with(5).tells(&["is being removed", "operator on elsewhere"]);
    assert!(!shop.herd.data("b").exists());
    shop.kept().take(&expires);
    to_node("b")
        .ends_with(0)
        .says(&["inventory-b streams from inventory-a on timeline 1"])
        .does_not_say("remove");
    let rows = |node: &str| shop.herd.sql(node, "SELECT count(*) FROM far_away");
    assert_eq!(rows("b"), "5000");
    shop.herd.is_as_declared();

    // It lies too far behind: its slot is gone, and so is the WAL that it needs.
    shop.herd.stop("b", "fast");
    shop.sql("SELECT pg_drop_replication_slot('inventory_b')");
    shop.archive();
    let ran = to_node("b").ends_with(0).says(&["before", "remove"]);
    let aside =
        ran.stdout.lines().find_map(|line| line.trim().strip_prefix("remove   rm -r ")).unwrap().to_owned();
    assert!(Path::new(&aside).join("PG_VERSION").exists(), "{aside}");
    drop(load);
    shop.sql("INSERT INTO moments (note) VALUES ('after all')");
    until("it follows", || {
        (shop.herd.sql("b", "SELECT count(*) FROM moments WHERE note = 'after all'") == "1").then_some(())
    });
    shop.herd.is_as_declared();

    // A directory that is not the node's is left alone.
    shop.herd.stop("b", "fast");
    fs::remove_dir_all(shop.herd.facts("b")).unwrap();
    to_node("b").ends_with(4).tells(&["it is not empty, and not inventory-b's"]);
    assert!(shop.herd.data("b").join("PG_VERSION").exists());
}
