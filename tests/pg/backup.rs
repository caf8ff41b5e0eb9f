//! Backups of real clusters: what is in them, and what becomes of them when something goes wrong.
//!
//! What is in one is checked as a stranger would: restored with the script that docs/formats/backup.md prints, started, and compared.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pgherd::repo::codec::Decoder;
use pgherd::repo::manifest::{Contents, Manifest};
use pgherd::repo::seal::{self, Identity, Kind};
use rustix::process::Signal;

use crate::apply_kills::Dice;
use crate::herd::{
    Herd, PAIR, Port, Ran, Running, SINGLE, Shape, as_server, files_below, is_root, text, text_of, until,
};
use crate::server::{Installation, installations, newest};

const FORMAT: &str = include_str!("../../docs/formats/backup.md");

/// Makes a herd whose WAL is archived.
fn up(installation: &Installation, shape: &Shape<'_>) -> Herd {
    let mut herd = Herd::declare(installation, shape);
    herd.keep_backups();
    herd.apply().ends_with(0);
    herd
}

#[track_caller]
fn create(herd: &Herd) -> Ran {
    herd.run(&["backup", "create"])
}

/// Fills a database with as much as takes a while when it is read slowly.
fn fill(herd: &Herd, database: &str) {
    herd.sql_in(
        "a",
        database,
        "CREATE TABLE ballast AS SELECT g, repeat(md5(g::text), 8) AS filler FROM generate_series(1, 60000) g; CHECKPOINT",
    );
}

/// A backup in a repository, opened as a test sees it.
struct Stored {
    folder: PathBuf,
    manifest: Manifest,
    contents: Contents,
}

/// Returns the folders of all backups, oldest first.
fn folders(herd: &Herd) -> Vec<PathBuf> {
    let systems = fs::read_dir(herd.repository().join("inventory")).into_iter().flatten();
    let mut found: Vec<PathBuf> = systems
        .flat_map(|system| fs::read_dir(system.unwrap().path().join("backup")).into_iter().flatten())
        .map(|label| label.unwrap().path())
        .collect();
    found.sort();
    found
}

impl Stored {
    #[track_caller]
    fn newest(herd: &Herd) -> Self {
        Self::open(folders(herd).pop().expect("a backup"))
    }

    #[track_caller]
    fn open(folder: PathBuf) -> Self {
        let manifest: Manifest =
            seal::read_document(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
        let object = fs::read(folder.join("files.zst")).unwrap();
        assert_eq!(seal::Blake3::of(&object), manifest.files_blake3);
        let identity = Identity {
            kind: Kind::Files,
            name: manifest.label.as_str(),
            system_identifier: manifest.system_identifier,
        };
        let contents = Contents::read(&seal::open(identity, &object).unwrap()).unwrap();
        Self { folder, manifest, contents }
    }

    fn has(&self, path: &str) -> bool {
        self.contents.files.iter().any(|file| file.path == path)
            || self.contents.dirs.iter().any(|dir| dir.path == path)
    }

    /// Holds every object, chunk and file to be what the lists say.
    #[track_caller]
    fn is_sound(&self) {
        let Self { folder, manifest, contents } = self;
        let mut objects = std::collections::BTreeMap::new();
        for (number, object) in contents.numbered() {
            let bytes = fs::read(folder.join(format!("data/{number:06}"))).unwrap();
            assert_eq!(bytes.len() as u64, object.size.0);
            assert_eq!(seal::Blake3::of(&bytes), object.blake3);
            objects.insert(number, bytes);
        }
        assert_eq!(fs::read_dir(folder.join("data")).unwrap().count(), objects.len());
        let chunks: Vec<Vec<u8>> = contents
            .chunks
            .iter()
            .map(|chunk| {
                let from = usize::try_from(chunk.offset).unwrap();
                let object = &objects[&chunk.object];
                let frame = &object[from..from + usize::try_from(chunk.stored).unwrap()];
                assert_eq!(seal::Blake3::of(frame), chunk.blake3);
                let (mut bytes, size) = (Vec::new(), usize::try_from(chunk.size).unwrap());
                Decoder::new().unwrap().decode(chunk.codec, frame, size, &mut bytes).unwrap();
                assert_eq!(chunk.content, Some(seal::Blake3::of(&bytes)));
                assert!(bytes.len() as u64 <= pgherd::repo::manifest::CHUNK.0);
                bytes
            })
            .collect();
        let mut size = 0;
        for file in &contents.files {
            let mut bytes = vec![0; usize::try_from(file.size).unwrap()];
            let mut end = 0;
            for part in &file.parts {
                assert!(part.at >= end, "{} has parts that overlap", file.path);
                let (at, from) = (usize::try_from(part.at).unwrap(), usize::try_from(part.from).unwrap());
                let length = usize::try_from(part.length).unwrap();
                let chunk = &chunks[usize::try_from(part.chunk).unwrap()];
                bytes[at..at + length].copy_from_slice(&chunk[from..from + length]);
                end = part.at + u64::from(part.length);
            }
            assert_eq!(crc32c::crc32c(&bytes), file.crc32c, "{}", file.path);
            size += file.size;
        }
        assert_eq!(size, manifest.size.0);
        assert_eq!(contents.files.len() as u64, manifest.files);
        assert_eq!(contents.files.last().unwrap().path, "global/pg_control");
        assert_eq!(contents.objects.iter().map(|object| object.size.0).sum::<u64>(), manifest.stored.0);
    }
}

/// A copy that was restored by hand, and its server.
struct Copy {
    directory: PathBuf,
    socket: PathBuf,
    port: Port,
    bin: PathBuf,
}

impl Copy {
    /// Restores with the script of the format's page, and recovers to the end of the archive.
    #[track_caller]
    fn restored(herd: &Herd, stored: &Stored) -> Self {
        let script = FORMAT.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
        let file = herd.path("restore-by-hand");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let socket = herd.path("copies");
        if fs::create_dir(&socket).is_ok() {
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let directory = socket.join(format!("copy-{}", fs::read_dir(&socket).unwrap().count()));
        let mut command = as_server(&file);
        command.arg(&stored.folder).arg(&directory);
        text_of(command).unwrap_or_else(|said| panic!("restore-by-hand: {said}"));
        let copy =
            Self { directory, socket, port: Port::reserve(), bin: herd.installation().bin().to_owned() };
        copy.start();
        copy
    }

    #[track_caller]
    fn start(&self) {
        let options = format!(
            "-p {} -k {} -c listen_addresses= -c logging_collector=off",
            self.port.number,
            self.socket.display()
        );
        let log = self.directory.with_extension("log");
        let mut start = as_server(&self.bin.join("pg_ctl"));
        start.args(["-D", text(&self.directory), "-w", "-o", &options, "-l", text(&log), "start"]);
        text_of(start)
            .unwrap_or_else(|said| panic!("{said}\n{}", fs::read_to_string(&log).unwrap_or_default()));
        until("recovery has ended", || {
            (self.sql("postgres", "SELECT pg_is_in_recovery()") == "f").then_some(())
        });
    }

    #[track_caller]
    fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = as_server(&self.bin.join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql]);
        psql.args(["-p", &self.port.number.to_string(), "-h", text(&self.socket)]);
        text_of(psql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }

    /// Holds every index, heap and page to be whole, and stops the server.
    #[track_caller]
    fn proves_whole_and_stops(self) {
        let mut amcheck = as_server(&self.bin.join("pg_amcheck"));
        amcheck.args(["--all", "--install-missing", "--heapallindexed", "-U", "postgres"]);
        amcheck.args(["-p", &self.port.number.to_string(), "-h", text(&self.socket)]);
        text_of(amcheck).unwrap_or_else(|said| panic!("pg_amcheck: {said}"));
        self.stop();
        let mut checksums = as_server(&self.bin.join("pg_checksums"));
        checksums.args(["--check", "-D", text(&self.directory)]);
        text_of(checksums).unwrap_or_else(|said| panic!("pg_checksums: {said}"));
    }

    fn stop(&self) {
        let mut stop = as_server(&self.bin.join("pg_ctl"));
        stop.args(["-D", text(&self.directory), "-m", "fast", "-w", "stop"]);
        text_of(stop).unwrap();
    }
}

/// pgbench in the background, until it is dropped: enough transactions a second to be in the way of a backup, not of other tests.
struct Load(Child);

impl Load {
    /// Makes its tables, and begins to write.
    fn begin(herd: &Herd) -> Self {
        let socket = herd.path("state/run/inventory-a");
        let (port, bench) = (herd.port("a").to_string(), herd.installation().bin().join("pgbench"));
        let connection = ["-h", text(&socket), "-p", port.as_str(), "-U", "postgres"];
        let mut make = as_server(&bench);
        make.args(connection).args(["-i", "-q", "-s", "2", "inventory"]);
        text_of(make).unwrap();
        let mut write = as_server(&bench);
        write.args(connection).args(["-n", "-c", "2", "-R", "300", "-T", "600", "inventory"]);
        Self(write.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits until a backup copies: it has said from where, and a child lives longer than a small call to the repository takes.
#[track_caller]
fn copies(herd: &Herd, running: &mut Running) {
    until("the backup has begun", || {
        assert!(!running.has_ended(), "it ended: {:?}", running.so_far());
        running.so_far().1.contains("-full from").then_some(())
    });
    let mut seen = None;
    until("a child copies", || {
        assert!(!running.has_ended(), "it ended: {:?}", running.so_far());
        let child =
            herd.processes().into_iter().find(|(_, line)| line.contains("pgherd node")).map(|(pid, _)| pid);
        match (child, seen) {
            (Some(pid), Some((before, since))) if pid == before => {
                (std::time::Instant::now() - since > std::time::Duration::from_millis(400)).then_some(())
            }
            (Some(pid), _) => {
                seen = Some((pid, std::time::Instant::now()));
                None
            }
            (None, _) => None,
        }
    });
}

/// Holds nothing of an unfinished backup to be left: no folder, no lease, no session, no child.
#[track_caller]
fn nothing_is_left(herd: &Herd) {
    assert_eq!(folders(herd), Vec::<PathBuf>::new());
    let leases: Vec<PathBuf> = files_below(&herd.repository())
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("/lease/"))
        .collect();
    assert_eq!(leases, Vec::<PathBuf>::new());
    the_server_has_ended_it(herd);
}

#[track_caller]
fn the_server_has_ended_it(herd: &Herd) {
    until("no session and no child", || {
        // A pooler keeps the connection through which a write was proved.
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgherd' AND usename = 'postgres'";
        let children = herd.processes().iter().any(|(_, line)| line.contains("pgherd node"));
        (herd.sql("a", sessions) == "0" && !children).then_some(())
    });
}

#[test]
fn a_backup_of_every_major_restores_by_hand_with_tablespaces_and_without_what_is_left_out() {
    for installation in installations() {
        let herd = up(&installation, &SINGLE);
        let outside = herd.path("fast");
        let inside = herd.data("a").join("my tablespace");
        for directory in [&outside, &inside] {
            let mut make = as_server(Path::new("/bin/mkdir"));
            make.args(["-p", text(directory)]);
            if text_of(make).is_err() {
                fs::create_dir(directory).unwrap();
                own(directory);
            }
        }
        herd.sql("a", &format!("CREATE TABLESPACE fast LOCATION '{}'", outside.display()));
        herd.sql("a", &format!("CREATE TABLESPACE odd LOCATION '{}'", inside.display()));
        let make = "CREATE TABLE here AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
                    CREATE TABLE there TABLESPACE fast AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
                    CREATE TABLE odd TABLESPACE odd AS SELECT g FROM generate_series(1, 1000) g;
                    CREATE INDEX ON there (g);
                    CREATE UNLOGGED TABLE volatile AS SELECT g FROM generate_series(1, 20000) g;
                    CREATE INDEX ON volatile (g)";
        herd.sql_in("a", "inventory", make);
        let unlogged = herd.sql_in("a", "inventory", "SELECT pg_relation_filepath('volatile')");
        herd.sql("a", "CHECKPOINT");
        let data = herd.data("a");
        fs::create_dir(data.join("empty")).unwrap();
        fs::write(data.join("postmaster.opts.mine"), "kept").unwrap();
        fs::write(data.join("base/pgsql_tmp.mine"), "left out").unwrap();
        for name in ["empty", "postmaster.opts.mine", "base/pgsql_tmp.mine"] {
            own(&data.join(name));
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, data.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        own(&data.join("pipe"));
        let mut session = Session::begin(
            &herd,
            "CREATE TEMPORARY TABLE fleeting AS SELECT g FROM generate_series(1, 20000) g; SELECT pg_relation_filepath('fleeting')",
        );
        let temporary = session.answer();

        let ran = create(&herd).ends_with(0).says(&["from     inventory-a (there is no standby)"]);
        assert!(ran.stderr.contains("NOTE:   pipe is not in the backup: it is a pipe."), "{}", ran.stderr);
        let stored = Stored::newest(&herd);
        stored.is_sound();
        assert_eq!(stored.manifest.major(), installation.major);
        assert_eq!(stored.contents.links.len(), 2);
        assert_eq!(stored.manifest.tablespaces.len(), 2);
        for present in
            ["empty", "postmaster.opts.mine", "pg_wal", "pg_wal/archive_status", "pg_notify", "my tablespace"]
        {
            assert!(stored.has(present), "{present}");
        }
        assert!(stored.has(&format!("{unlogged}_init")));
        let (free, visible) = (format!("{unlogged}_fsm"), format!("{unlogged}_vm"));
        let left_out = [
            "base/pgsql_tmp.mine",
            "pipe",
            "postmaster.pid",
            "postmaster.opts",
            &unlogged,
            &free,
            &visible,
            &temporary,
        ];
        for absent in left_out {
            assert!(!stored.has(absent), "{absent}");
        }
        let twice = stored.contents.files.iter().filter(|file| file.path.starts_with("my tablespace/"));
        assert_eq!(twice.count(), 0);
        assert!(!stored.contents.files.iter().any(|file| file.path.starts_with("pg_wal/")));

        let sums = "SELECT (SELECT sum(hashtext(t::text)) FROM here t), (SELECT sum(hashtext(t::text)) FROM there t), (SELECT count(*) FROM odd)";
        let before = herd.sql_in("a", "inventory", sums);
        drop(session);
        // The copy needs the tablespaces' own places.
        herd.stop("a", "fast");
        for directory in [&outside, &inside] {
            fs::rename(directory, directory.with_extension("before")).unwrap();
            fs::create_dir(directory).unwrap();
            own(directory);
        }
        let copy = Copy::restored(&herd, &stored);
        assert_eq!(copy.sql("inventory", sums), before);
        assert_eq!(copy.sql("inventory", "SELECT count(*) FROM volatile"), "0");
        copy.proves_whole_and_stops();
    }
}

/// Gives a file that root has made to the user that runs the servers.
fn own(path: &Path) {
    if is_root() {
        let mut chown = Command::new("chown");
        chown.args(["-h", "postgres:postgres", text(path)]);
        text_of(chown).unwrap();
    }
}

/// A session of psql that stays open.
struct Session {
    child: Child,
    answer: PathBuf,
}

impl Session {
    fn begin(herd: &Herd, sql: &str) -> Self {
        let answer = herd.path("answer");
        let mut psql = as_server(&herd.installation().bin().join("psql"));
        psql.args(["-XAtq", "-U", "postgres", "-d", "inventory", "-p", &herd.port("a").to_string()]);
        psql.arg("-h").arg(herd.path("state/run/inventory-a"));
        psql.args(["-c", sql, "-c", "SELECT pg_sleep(600)"]);
        let out = fs::File::create(&answer).unwrap();
        Self { child: psql.stdout(out).stderr(Stdio::null()).spawn().unwrap(), answer }
    }

    #[track_caller]
    fn answer(&mut self) -> String {
        until("an answer", || {
            let text = fs::read_to_string(&self.answer).unwrap();
            text.lines().next().filter(|_| text.ends_with('\n')).map(str::to_owned)
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What pgbench leaves the same whatever it does: all balances are one sum.
const BALANCES: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
                           AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)
                           AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history)";

#[test]
fn a_backup_of_every_codec_restores_by_hand() {
    let mut herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    let mut stored = Vec::new();
    for more in [", compression-level: 9", ", compression: lz4", ", compression: off"] {
        herd.edit("{repository: main", &format!("{{repository: main{more}"));
        herd.run(&["plan", "--detailed-exitcode"]).ends_with(0);
        create(&herd).ends_with(0);
        herd.edit(more, "");
        let backup = Stored::newest(&herd);
        backup.is_sound();
        let codec = backup.manifest.compression;
        assert!(backup.contents.chunks.iter().all(|chunk| chunk.codec == codec));
        stored.push((codec.word(), backup.manifest.level, backup.manifest.stored.0));
        let copy = Copy::restored(&herd, &backup);
        assert_eq!(copy.sql("inventory", "SELECT count(*) FROM ballast"), "60000");
        copy.proves_whole_and_stops();
    }
    let names: Vec<(&str, i32)> = stored.iter().map(|(word, level, _)| (*word, *level)).collect();
    assert_eq!(names, [("zstd", 9), ("lz4", 0), ("off", 0)]);
    assert!(stored[0].2 < stored[1].2 && stored[1].2 * 2 < stored[2].2, "{stored:?}");
    herd.run(&["backup", "verify", "--full"]).ends_with(0);
}

#[test]
fn a_standby_is_read_by_preference_while_its_primary_writes() {
    for installation in installations() {
        let herd = up(&installation, &PAIR);
        let load = Load::begin(&herd);
        create(&herd).ends_with(0).says(&["from     inventory-b (a standby that streams)"]);
        drop(load);
        let stored = Stored::newest(&herd);
        stored.is_sound();
        assert!(stored.manifest.backup_label.contains("BACKUP FROM: standby"));
        assert!(stored.manifest.start_lsn <= stored.manifest.stop_lsn);
        let copy = Copy::restored(&herd, &stored);
        assert_eq!(copy.sql("inventory", BALANCES), "t");
        copy.proves_whole_and_stops();
    }
}

#[test]
fn the_primary_is_read_where_no_standby_can_be_or_where_it_is_asked_for() {
    let herd = up(&newest(), &PAIR);
    create_from(&herd, "primary").ends_with(0).says(&["from     inventory-a (as asked for)"]);
    herd.sql("b", "SELECT pg_wal_replay_pause()");
    create(&herd).ends_with(0).says(&["(no standby can give it: b has its replay paused)"]);
    herd.stop("b", "fast");
    create(&herd).ends_with(0).says(&["from     inventory-a (no standby can give it: b does not answer)"]);
    assert_eq!(folders(&herd).len(), 3);
}

#[track_caller]
fn create_from(herd: &Herd, from: &str) -> Ran {
    herd.run(&["backup", "create", "--from", from])
}

#[test]
fn a_promotion_during_a_backup_from_a_standby_ends_it() {
    let herd = up(&newest(), &PAIR);
    fill(&herd, "inventory");
    let mut running = herd.start(&["backup", "create", "--rate-limit", "4 MiB/s"]);
    copies(&herd, &mut running);
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-w", "promote"]);
    running.end().ends_with(1).tells(&["ERROR:  the backup cannot be finished: b was promoted"]);
    nothing_is_left(&herd);
}

#[test]
fn files_that_vanish_shrink_and_grow_under_load_are_no_trouble() {
    let herd = up(&newest(), &SINGLE);
    let tables = "CREATE TABLE vanishes AS SELECT g, repeat('v', 500) FROM generate_series(1, 20000) g;
                  CREATE TABLE shrinks AS SELECT g, repeat('s', 500) FROM generate_series(1, 20000) g;
                  CREATE TABLE grows AS SELECT g, repeat('g', 500) FROM generate_series(1, 1000) g";
    herd.sql_in("a", "inventory", tables);
    let load = Load::begin(&herd);
    let mut running = herd.start(&["backup", "create", "--rate-limit", "8 MiB/s"]);
    copies(&herd, &mut running);
    herd.sql_in("a", "inventory", "DELETE FROM shrinks WHERE g > 100");
    herd.sql_in("a", "inventory", "VACUUM shrinks");
    herd.sql_in(
        "a",
        "inventory",
        "INSERT INTO grows SELECT g, repeat('g', 500) FROM generate_series(1, 20000) g",
    );
    herd.sql_in("a", "inventory", "CREATE TABLE comes AS SELECT g FROM generate_series(1, 1000) g");
    herd.sql_in("a", "inventory", "DROP TABLE vanishes");
    // The first segment of a dropped relation goes with the next checkpoint.
    herd.sql("a", "CHECKPOINT");
    assert!(!running.has_ended(), "{:?}", running.so_far());
    running.end().ends_with(0);
    drop(load);
    let stored = Stored::newest(&herd);
    stored.is_sound();
    let copy = Copy::restored(&herd, &stored);
    assert_eq!(copy.sql("inventory", BALANCES), "t");
    let counts = "SELECT (SELECT count(*) FROM shrinks), (SELECT count(*) FROM grows), (SELECT count(*) FROM comes), to_regclass('vanishes') IS NULL";
    assert_eq!(copy.sql("inventory", counts), "100|21000|1000|t");
    copy.proves_whole_and_stops();
}

#[test]
fn damaged_pages_are_named_and_the_backup_is_made_all_the_same() {
    let herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    let path = herd.sql_in("a", "inventory", "SELECT pg_relation_filepath('ballast')");
    // So that the server neither has the pages nor writes them again.
    herd.stop("a", "fast");
    let file = OpenOptions::new().write(true).open(herd.data("a").join(&path)).unwrap();
    file.write_all_at(b"gone wrong", 3 * 8192 + 4000).unwrap();
    // Not even a damaged LSN, which looks as if the page had been written just now, hides it.
    file.write_all_at(&[0xFF; 4], 900 * 8192).unwrap();
    file.write_all_at(&[0; 8192], 901 * 8192).unwrap();
    herd.program("pg_ctl", &["-D", text(&herd.data("a")), "-w", "-l", "/dev/null", "start"]);
    create(&herd).ends_with(3).tells(&["2 pages have a wrong checksum", &format!("{path} blocks 3, 900")]);
    let stored = Stored::newest(&herd);
    stored.is_sound();
    assert_eq!(stored.manifest.damaged_pages, 2);
    let damaged = stored.contents.files.iter().find(|file| file.path == path).unwrap();
    assert_eq!(damaged.damaged_blocks, [3, 900]);
    let label = stored.manifest.label.as_str();
    herd.run(&["backup", "list"]).ends_with(0).says(&[label, "damaged pages"]);
    herd.run(&["backup", "show", label]).ends_with(0).tells(&[&format!("{path} blocks 3, 900")]);
}

#[test]
fn what_may_not_be_read_ends_the_backup_and_is_named() {
    let herd = up(&newest(), &SINGLE);
    if !is_root() {
        return;
    }
    let foreign = herd.data("a").join("base/1/foreign");
    fs::write(&foreign, "root's own").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o600)).unwrap();
    create(&herd).ends_with(1).tells(&[
        "ERROR:  could not read base/1/foreign of the data directory",
        "Permission denied",
        "HINT:",
    ]);
    nothing_is_left(&herd);
    fs::remove_file(&foreign).unwrap();
    create(&herd).ends_with(0);
}

#[test]
fn an_interrupt_ends_the_backup_on_the_server_too_and_leaves_nothing() {
    let herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = herd.start(&["backup", "create", "--rate-limit", "4 MiB/s"]);
        copies(&herd, &mut running);
        running.signal(signal);
        running.end().ends_with(130).tells(&["was interrupted"]);
        nothing_is_left(&herd);
    }
    create(&herd).ends_with(0);
}

/// A sample by default, 50 with PGHERD_SOAK=1; PGHERD_SEED repeats a run.
#[test]
fn a_backup_that_is_killed_at_any_moment_leaves_none_and_the_next_one_is_whole() {
    let herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    let limited = ["backup", "create", "--rate-limit", "40 MiB/s"];
    let usual = herd.run(&limited).ends_with(0).took;
    let first = folders(&herd);
    let mut dice = Dice::new(31);
    let kills = if std::env::var_os("PGHERD_SOAK").is_some() { 50 } else { 6 };
    for round in 0..kills {
        let after = usual * u32::try_from(dice.below(1050)).unwrap() / 1000;
        let mut running = herd.start(&limited);
        let begun = std::time::Instant::now();
        while begun.elapsed() < after && !running.has_ended() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if round % 2 == 0 {
            running.signal(Signal::KILL);
        } else {
            for (pid, line) in herd.processes() {
                if line.contains("pgherd node") {
                    // It may have ended in between.
                    rustix::process::kill_process(pid, Signal::KILL).ok();
                }
            }
        }
        let ended = running.end();
        the_server_has_ended_it(&herd);
        // Whatever the moment: what is committed is whole, and what is not goes with the next one.
        for folder in committed(&herd) {
            Stored::open(folder).is_sound();
        }
        assert!(ended.code != 0 || committed(&herd).len() == 2, "{ended:?}");
        create(&herd).ends_with(0);
        assert_eq!(committed(&herd), folders(&herd), "after {after:?}: {ended:?}");
        Stored::newest(&herd).is_sound();
        for folder in folders(&herd).into_iter().filter(|folder| !first.contains(folder)) {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

/// Returns the folders that have a manifest.
fn committed(herd: &Herd) -> Vec<PathBuf> {
    folders(herd).into_iter().filter(|folder| folder.join("manifest.json").exists()).collect()
}

#[test]
fn two_backups_at_the_same_time_are_one_and_the_second_is_told() {
    let herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    let mut running = herd.start(&["backup", "create", "--rate-limit", "8 MiB/s"]);
    copies(&herd, &mut running);
    create(&herd).ends_with(5).tells(&["ERROR:  cluster inventory is making the backup", "Begun by"]);
    until("others see that it copies", || {
        let listed = herd.run(&["backup", "list", "--format", "json"]).ends_with(0).json();
        let item = &listed["clusters"][0]["backups"][0];
        assert_eq!(item["state"], "running");
        (item["running"]["progress"]["phase"] == "copies").then_some(())
    });
    running.end().ends_with(0);
    assert_eq!(folders(&herd).len(), 1);
}

#[test]
fn the_rate_is_limited() {
    let herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    let ran = herd.run(&[
        "backup",
        "create",
        "--rate-limit",
        "16 MiB/s",
        "--low-priority",
        "--workers",
        "3",
        "--format",
        "json",
    ]);
    let ran = ran.ends_with(0);
    let lines: Vec<serde_json::Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let created = lines.last().unwrap();
    assert_eq!(created["message_type"], "backup_created");
    assert_eq!(created["workers"], 3);
    let (size, seconds) =
        (created["size_bytes"].as_f64().unwrap(), created["copy_seconds"].as_f64().unwrap());
    // The first pieces go at once.
    assert!((size - 12e6) / seconds <= 16.0 * 1048576.0, "{size} in {seconds} s");
    for message in ["backup_phase", "backup_begun"] {
        assert!(lines.iter().any(|line| line["message_type"] == message), "{message}");
    }
}

#[test]
fn archiving_that_does_not_work_is_noticed_before_anything_is_copied() {
    let herd = up(&newest(), &SINGLE);
    herd.sql("a", "ALTER SYSTEM SET archive_command = 'false'");
    herd.sql("a", "SELECT pg_reload_conf()");
    let ran = herd.run(&["backup", "create", "--archive-timeout", "3s"]).ends_with(1);
    let ran =
        ran.tells(&["did not arrive in the repository main", "The archiver of inventory-a fails since"]);
    assert!(!ran.stderr.contains("-full from"), "{}", ran.stderr);
    nothing_is_left(&herd);
    herd.sql("a", "ALTER SYSTEM SET archive_command = ''");
    herd.sql("a", "SELECT pg_reload_conf()");
    create(&herd)
        .ends_with(4)
        .tells(&["ERROR:  cannot back up inventory: it archives no WAL", "pgherd apply"]);
}

#[test]
fn archiving_that_fails_in_the_middle_leaves_no_backup_and_the_next_one_goes_on() {
    let herd = up(&newest(), &SINGLE);
    fill(&herd, "inventory");
    let mut running =
        herd.start(&["backup", "create", "--rate-limit", "16 MiB/s", "--archive-timeout", "3s"]);
    copies(&herd, &mut running);
    herd.sql("a", "ALTER SYSTEM SET archive_command = 'false'");
    herd.sql("a", "SELECT pg_reload_conf()");
    running
        .end()
        .ends_with(1)
        .tells(&["did not arrive in the repository main", "the next backup goes on with it"]);
    assert_eq!(committed(&herd), Vec::<PathBuf>::new());
    the_server_has_ended_it(&herd);
    herd.run(&["backup", "list"]).ends_with(0).says(&["it was interrupted; the next backup goes on with it"]);
    herd.sql("a", "ALTER SYSTEM RESET archive_command");
    herd.sql("a", "SELECT pg_reload_conf()");
    create(&herd).ends_with(0).says(&["had an aborted backup stored already"]);
    assert_eq!(committed(&herd), folders(&herd));
    Stored::newest(&herd).is_sound();
}

#[test]
fn a_repository_without_room_is_told_and_nothing_of_the_backup_stays() {
    if !is_root() {
        return;
    }
    let herd = Herd::declare(&newest(), &SINGLE);
    let small = Small::mount(herd.path("small"));
    let mut herd = herd;
    herd.keep_backups();
    let (from, to) =
        (herd.repository().display().to_string(), herd.path("small/repository").display().to_string());
    herd.edit(&from, &to);
    herd.apply().ends_with(0);
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE noise AS SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1500000) g GROUP BY g % 20000",
    );
    herd.run(&["backup", "create", "--archive-timeout", "3s"]).ends_with(1).tells(&[
        "in the repository file:///",
        "No space left on device",
        "HINT:   Make room in the repository",
    ]);
    let left: Vec<PathBuf> = files_below(&herd.path("small/repository"))
        .into_iter()
        .filter(|path| {
            path.to_string_lossy().contains("/backup/") || path.to_string_lossy().contains("/.tmp/")
        })
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    drop(small);
}

/// A file system in memory with little room; root alone may make one.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=40m,mode=0777", "tmpfs", text(&at)]);
        text_of(mount).unwrap();
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.args(["--lazy", text(&self.0)]);
        if let Err(said) = text_of(unmount) {
            eprintln!("{said}");
        }
    }
}

#[test]
fn a_data_directory_of_another_cluster_is_not_copied() {
    use pgherd::ops::backup::copy;
    use pgherd::ops::node::{CopyForBackup, Reporter};

    let herd = up(&newest(), &SINGLE);
    let system: u64 = herd.sql("a", "SELECT system_identifier FROM pg_control_system()").parse().unwrap();
    let request = CopyForBackup {
        repository: pgherd::repo::Location::plain(format!("file://{}", herd.repository().display())),
        cluster: "inventory".to_owned(),
        label: "20260101T000000Z-full".parse().unwrap(),
        system_identifier: pgherd::pg::system::SystemIdentifier::new(system).unwrap(),
        data_directory: herd.data("a"),
        version: herd.installation().major,
        start_lsn: "0/1".parse().unwrap(),
        timeline: pgherd::pg::timeline::TimelineId::new(1).unwrap(),
        tablespaces: Vec::new(),
        data_checksums: true,
        blocks_a_file: 131_072,
        workers: 1,
        rate_limit: None,
        compression: pgherd::topology::model::Compression::default(),
    };
    let refused = |request: CopyForBackup, why: &str| {
        let error = copy::run(&request, &Reporter::new(|_| Ok(()))).unwrap_err();
        assert!(error.detail_text().unwrap().contains(why), "{:?}", error.detail_text());
        assert_eq!(error.kind(), pgherd::error::ErrorKind::Refused);
    };
    let other = pgherd::pg::system::SystemIdentifier::new(system + 1).unwrap();
    refused(CopyForBackup { system_identifier: other, ..request.clone() }, "system identifier");
    let behind = "FFFF/0".parse().unwrap();
    refused(CopyForBackup { start_lsn: behind, ..request.clone() }, "the backup begins at FFFF/0");
    let timeline = pgherd::pg::timeline::TimelineId::new(2).unwrap();
    refused(CopyForBackup { timeline, ..request.clone() }, "the backup began on 2");
    // One whose controller has died stops by itself.
    let error =
        copy::run(&request, &Reporter::new(|_| Err(std::io::ErrorKind::BrokenPipe.into()))).unwrap_err();
    assert_eq!(error.what(), "nobody waits for this backup any more");
}

#[test]
fn backups_are_listed_and_shown_also_when_no_server_runs() {
    let herd = up(&newest(), &SINGLE);
    herd.run(&["backup", "list"]).ends_with(0).says(&["none   next: pgherd backup create"]);
    create(&herd).ends_with(0);
    create(&herd).ends_with(0);
    let labels: Vec<String> = folders(&herd)
        .iter()
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(labels.len(), 2);
    herd.stop("a", "fast");
    fs::remove_file(folders(&herd)[0].join("manifest.json")).unwrap();
    let manifest = folders(&herd)[1].join("manifest.json");
    let list = herd.run(&["backup", "list"]).ends_with(0);
    list.says(&[&labels[0], "unfinished", &labels[1], "whole", "inventory-a"]);
    let listed = herd.run(&["backup", "list", "--format", "json"]).ends_with(0).json();
    assert_eq!(listed["format_version"], "1.0");
    let items = listed["clusters"][0]["backups"].as_array().unwrap();
    assert_eq!((items[0]["state"].as_str(), items[1]["state"].as_str()), (Some("unfinished"), Some("whole")));
    assert!(items[1]["facts"]["size_bytes"].as_u64().unwrap() > 20_000_000);
    herd.run(&["backup", "show", &labels[1]]).ends_with(0).says(&[
        "state      whole",
        "LSN",
        "timeline 1",
        "occupies",
    ]);
    herd.run(&["backup", "show", "20200101T000000Z-full"]).ends_with(10);
    herd.run(&["backup", "show", "yesterday"]).ends_with(2);
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[100] ^= 1;
    fs::write(&manifest, bytes).unwrap();
    herd.run(&["backup", "list"]).ends_with(0).says(&["unreadable", "its manifest: it is damaged"]);
}

#[test]
fn a_cluster_without_backups_is_refused() {
    let herd = Herd::up(&newest(), &SINGLE);
    create(&herd)
        .ends_with(4)
        .tells(&["ERROR:  cannot back up inventory: it has no backups declared", "HINT:"]);
    herd.run(&["backup", "list"]).ends_with(4);
}
