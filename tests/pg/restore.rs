//! Restores of real clusters: to every kind of target, judged by PostgreSQL's own programs, and what becomes of them when something goes wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::herd::{Herd, Ran, SINGLE, Shape, as_server, files_below, is_root, text, text_of, until};
use crate::server::{Installation, installations, newest};

/// A herd with backups, a table of moments, and one in a tablespace.
struct Shop {
    herd: Herd,
}

/// A moment of a shop to which it is restored.
struct Moment {
    dump: String,
    time: String,
    lsn: String,
    xid: String,
    name: String,
}

impl Drop for Shop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for file in files_below(&self.herd.path("copies/r-pgherd/state/log"))
                .iter()
                .chain(&files_below(&self.herd.path("copies/r-pgherd/log")))
            {
                let log = fs::read_to_string(file).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- {}\n{}", file.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}

/// Holds two dumps to be the same, and shows where they are not.
#[track_caller]
fn same(found: &str, wanted: &str, of: &str) {
    let differs = found.lines().zip(wanted.lines()).find(|(one, other)| one != other);
    assert!(found == wanted, "{of}: {differs:?}, {} and {} bytes", found.len(), wanted.len());
}

/// A pgbench that runs; it is ended when it is dropped.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Shop {
    fn up(installation: &Installation, shape: &Shape<'_>) -> Self {
        let mut herd = Herd::declare(installation, shape);
        herd.keep_backups();
        herd.apply().ends_with(0);
        let shop = Self { herd };
        let space = shop.directory("space");
        shop.sql(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
        shop.sql(
            "CREATE TABLE moments (n serial, at timestamptz DEFAULT clock_timestamp(), note text);
             CREATE TABLE far_away (n int PRIMARY KEY, note text) TABLESPACE far;
             CREATE UNLOGGED TABLE passing (n int);
             INSERT INTO far_away SELECT n, repeat('far', n % 50) FROM generate_series(1, 5000) n;
             INSERT INTO passing SELECT generate_series(1, 100)",
        );
        shop
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
    fn load(&self) -> Load {
        self.pgbench(&["-i", "-q", "-s", "2"]);
        let mut command = self.pgbench_command();
        command.args(["-c", "2", "-T", "600", "-n", "postgres"]);
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
        self.herd.run(&["backup", "create"]).ends_with(0);
    }

    /// Writes a moment and remembers the shop as it is then; what comes later is not part of it.
    fn moment(&self, name: &str) -> Moment {
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
    fn archive(&self) -> String {
        let segment = self.sql(
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
        );
        self.wait_archived(&segment);
        segment
    }

    fn wait_archived(&self, segment: &str) {
        let stored = self.stored(segment);
        until(&format!("{} is there", stored.display()), || stored.is_file().then_some(()));
    }

    fn system(&self) -> String {
        let folder = self.herd.repository().join("inventory");
        let name = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        name.map(|name| name.into_string().unwrap()).find(|name| name.parse::<u64>().is_ok()).unwrap()
    }

    fn below(&self) -> PathBuf {
        self.herd.repository().join("inventory").join(self.system())
    }

    fn stored(&self, segment: &str) -> PathBuf {
        self.below().join(format!("wal/{}/{segment}.zst", &segment[..16]))
    }

    fn to(&self) -> PathBuf {
        self.herd.path("copies/r")
    }

    #[track_caller]
    fn restore(&self, more: &[&str]) -> Ran {
        self.start(more).end()
    }

    fn start(&self, more: &[&str]) -> crate::herd::Running {
        self.directory("copies");
        let to = self.to();
        let mut args = vec!["restore", "inventory", "--to-dir", text(&to)];
        args.extend(more);
        self.herd.start(&args)
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

    fn dump_of_copy(&self) -> String {
        dump(&self.herd, &self.socket(), "5432")
    }

    /// Stops the copy, if it runs, and removes it.
    fn remove(&self) {
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
        let archived = files_below(&shop.herd.repository()).len();

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
        assert_eq!(files_below(&shop.herd.repository()).len(), archived);
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
