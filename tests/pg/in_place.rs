//! `restore --in-place`: a whole cluster goes back to a moment while its clients wait, and comes back whole whatever befalls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use pgherd::db::{Connector, Endpoint, Login, Session};
use pgherd::gate;
use pgherd::secret::Secret;
use rustix::process::{Signal, kill_process};

use crate::herd::{
    APP_PASSWORD, Herd, PAIR, Ran, SINGLE, Shape, WHOLE, hash_of, is_root, newest_or_15, text, text_of, until,
};
use crate::server::{Installation, installations, newest};

/// A herd with a backup and a table, `inventory.items`, of which `kept` rows are in the backup.
struct Scene {
    herd: Herd,
}

impl Scene {
    fn up(installation: &Installation, shape: &Shape<'_>) -> Self {
        let mut herd = Herd::declare(installation, shape);
        herd.keep_backups();
        herd.apply().ends_with(0);
        let scene = Self { herd };
        scene.sql(
            "SET ROLE inventory_owner;
             CREATE TABLE inventory.items (id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
             CREATE TABLE inventory.ticks (id bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())",
        );
        scene.sql("INSERT INTO inventory.items SELECT generate_series(1, 1000)");
        scene.herd.run(&["backup", "create"]).ends_with(0);
        scene
    }

    fn sql(&self, sql: &str) -> String {
        let primary = self.herd.primaries().first().expect("a primary").clone();
        self.herd.sql_in(&primary, "inventory", sql)
    }

    fn items(&self, node: &str) -> String {
        self.herd.sql_in(node, "inventory", "SELECT count(*) FROM inventory.items")
    }

    /// Returns this very moment, as `--target-time` takes it; what is committed before is before it.
    fn now(&self) -> String {
        self.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    }

    /// Rows that are kept, the moment after them, and the accident.
    fn accident(&self, rows: &str) -> String {
        self.sql(&format!("INSERT INTO inventory.items SELECT generate_series({rows})"));
        let before = self.now();
        self.sql("DROP TABLE inventory.items");
        self.sql("SET ROLE inventory_owner; CREATE TABLE inventory.after_the_accident ()");
        before
    }

    fn restore(&self, to: &str) -> Ran {
        self.herd.run(&["restore", "inventory", "--in-place", "--target-time", to, "--yes"])
    }

    /// Returns what was set aside and is still there.
    fn aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.herd.path("data")).expect("readable");
        let paths = entries.map(|entry| entry.expect("readable").path());
        let mut found: Vec<PathBuf> = paths.filter(|path| text(path).contains(".before-")).collect();
        found.sort();
        found
    }

    fn archived(&self, name: &str) -> bool {
        self.herd.kept().has_wal(name)
    }

    /// Holds the herd to be whole on a timeline, and its archive to go on.
    fn whole_on(&self, timeline: u32) {
        let nodes = self.herd.primaries();
        assert_eq!(nodes, ["a"]);
        let standbys =
            self.herd.sql("a", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'");
        let declared = fs::read_dir(self.herd.path("config/nodes")).expect("readable").count();
        assert_eq!(standbys, (declared - 1).to_string());
        self.herd.is_as_declared();
        let segment = self.sql(
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
        );
        assert_eq!(&segment[..8], format!("{timeline:08X}"));
        until(&format!("{segment} is archived"), || self.archived(&segment).then_some(()));
        assert_eq!(self.herd.sql("a", "SELECT failed_count FROM pg_stat_archiver"), "0");
    }

    /// Tells whether a client that comes in now has to wait.
    fn holds_back(&self) -> bool {
        let patience = Duration::from_secs(2);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let connector = Connector::new(gate::open()).timeouts(patience, patience);
            match connector.connect(&login(self.herd.port("pooler"))).await {
                Ok(conn) => conn.batch("look", "SELECT 1").await.is_err(),
                Err(_) => true,
            }
        })
    }
}

/// A client that writes a row again and again through the pooler, over one session.
struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

#[derive(Debug, Default)]
struct Written {
    rows: u64,
    longest: Duration,
    errors: Vec<String>,
}

impl Client {
    fn start(herd: &Herd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (port, asked) = (herd.port("pooler"), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(write(port, &asked))
        });
        Self { stop, thread }
    }

    fn end(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a client")
    }
}

fn login(port: u16) -> Login {
    Login {
        server: "pooler".to_owned(),
        endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port },
        user: "app".to_owned(),
        database: "inventory".to_owned(),
        password: Some(Secret::new(APP_PASSWORD)),
        session: Session::Plain,
        tunnel: None,
        tls: None,
    }
}

async fn write(port: u16, stop: &AtomicBool) -> Written {
    let patience = Duration::from_secs(110);
    let connector = Connector::new(gate::open()).timeouts(patience, patience);
    let mut written = Written::default();
    let conn = connector.connect(&login(port)).await.unwrap();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        match conn.batch("write", "INSERT INTO inventory.ticks DEFAULT VALUES").await {
            Ok(()) => written.rows += 1,
            Err(error) => {
                written.errors.push(error.to_string());
                return written;
            }
        }
        written.longest = written.longest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    written
}

#[test]
fn a_dropped_table_is_back_while_its_clients_wait_and_the_next_accident_is_undone_as_well() {
    for installation in installations() {
        let scene = Scene::up(&installation, &WHOLE);
        let herd = &scene.herd;
        let before = scene.accident("1001, 1500");
        let clients: Vec<Client> = (0..3).map(|_| Client::start(herd)).collect();
        let preview =
            herd.run(&["restore", "inventory", "--in-place", "--target-time", &before, "--preview"]);
        preview.ends_with(0).says(&[
            "PAUSE: clients wait",
            "! inventory-a   stop (fast)",
            ".before-ID",
            "pivot",
            "RESUME: clients go on",
        ]);
        assert_eq!(scene.aside(), Vec::<PathBuf>::new());

        let restored = scene.restore(&before).ends_with(0).says(&[
            "inventory is restored to",
            "on timeline 2",
            "primary inventory-a",
            "clients    waited",
            "Nothing removes the old data",
            "rm -rf -- ",
        ]);
        assert_eq!(scene.items("a"), "1500");
        for standby in ["b", "c"] {
            until("the rows are on the standby", || (scene.items(standby) == "1500").then_some(()));
        }
        assert_eq!(scene.sql("SELECT to_regclass('inventory.after_the_accident')"), "");
        scene.whole_on(2);
        assert!(scene.archived("00000002.history"));
        let written: Vec<Written> = clients.into_iter().map(Client::end).collect();
        for client in &written {
            assert_eq!(client.errors, Vec::<String>::new(), "{written:?}");
            assert!(client.rows > 0);
        }
        // The old data is whole and can be removed by the command that was told.
        let aside = scene.aside();
        assert_eq!(aside.len(), 3, "{aside:?}");
        let command = restored.stdout.lines().filter(|line| line.trim_start().starts_with("rm -rf -- "));
        for line in command {
            let mut words = line.split_whitespace();
            assert_eq!(words.next(), Some("rm"));
            assert!(words.skip(2).all(|path| aside.contains(&PathBuf::from(path))), "{line}");
        }

        // Once more, from the same backup, over the new timeline; no version does that in another way.
        if installation.major != newest().major {
            continue;
        }
        let again = scene.accident("1501, 2000");
        scene.restore(&again).ends_with(0).says(&["on timeline 3"]);
        assert_eq!(scene.items("a"), "2000");
        scene.whole_on(3);
        assert_eq!(scene.aside().len(), 6);
        for path in scene.aside() {
            fs::remove_dir_all(path).expect("it is ours to remove");
        }
        scene.whole_on(3);
    }
}

/// Kills a restore once `reached` holds and returns its operation.
fn killed_when(scene: &Scene, to: &str, what: &str, mut reached: impl FnMut() -> bool) -> String {
    let mut restore = scene.herd.start(&["restore", "inventory", "--in-place", "--target-time", to, "--yes"]);
    until(what, || (reached() || restore.has_ended()).then_some(()));
    restore.signal(Signal::KILL);
    let ended = restore.end();
    assert_eq!(ended.code, 128 + 9, "{}\n{}", ended.stdout, ended.stderr);
    operation(scene).expect("an operation is left")
}

fn operation(scene: &Scene) -> Option<String> {
    let report = scene.herd.run(&["status", "--format", "json"]).ends_with(0).json();
    let left = report["clusters"][0]["operations"].as_array().expect("operations").clone();
    assert!(left.len() <= 1, "{left:?}");
    Some(left.first()?["id"].as_str()?.to_owned())
}

#[test]
fn undo_before_the_pivot_brings_back_everything_and_its_clients_never_knew() {
    let scene = Scene::up(&newest_or_15(1), &WHOLE);
    let herd = &scene.herd;
    let before = scene.accident("1001, 1200");
    let client = Client::start(herd);
    let id = killed_when(&scene, &before, "a node is cloned", || {
        herd.data("b").join("PG_VERSION").exists() && { scene.aside().len() == 3 }
    });
    assert!(scene.holds_back());
    herd.status().ends_with(0).says(&[&id]);
    herd.run(&["operation", "undo", &id, "--yes"]).ends_with(0);
    // What was committed after the target is there, and so are the roles.
    assert_eq!(
        scene.sql("SELECT to_regclass('inventory.after_the_accident')"),
        "inventory.after_the_accident"
    );
    assert_eq!(scene.aside(), Vec::<PathBuf>::new());
    assert!(!scene.archived("00000002.history"));
    until("the standbys stream", || {
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        (herd.sql("a", sql) == "2").then_some(())
    });
    let written = client.end();
    assert_eq!(written.errors, Vec::<String>::new());
    let rows: u64 = scene.sql("SELECT count(*) FROM inventory.ticks").parse().expect("a number");
    assert_eq!(rows, written.rows);
    scene.whole_on(1);
    // And then it is done after all.
    scene.restore(&before).ends_with(0);
    assert_eq!(scene.items("a"), "1200");
    scene.whole_on(2);
}

/// A small generator of its own (xorshift64*): the numbers must be the same in every run of one seed.
struct Dice(u64);

impl Dice {
    fn new(turn: u64) -> Self {
        let seed = std::env::var("PGHERD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7719_u64);
        Self((seed ^ (turn + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

fn kills() -> u64 {
    if std::env::var_os("PGHERD_SOAK").is_some() { 50 } else { 3 }
}

#[test]
fn a_restore_that_was_killed_at_any_moment_is_resumed_or_undone_and_nothing_is_lost() {
    let scene = Scene::up(&newest_or_15(0), &PAIR);
    let herd = &scene.herd;
    let mut rows = 1000;
    let mut timeline = 1;
    // How long one takes in all, to kill at every part of it.
    let mut usual = Duration::from_secs(12);
    for turn in 0..kills() {
        let mut dice = Dice::new(turn);
        let before = scene.accident(&format!("{}, {}", rows + 1, rows + 100));
        let after = usual * u32::try_from(dice.below(1000)).expect("small") / 1000;
        let begun = Instant::now();
        let mut restore =
            herd.start(&["restore", "inventory", "--in-place", "--target-time", &before, "--yes"]);
        while begun.elapsed() < after && !restore.has_ended() {
            sleep(Duration::from_millis(1));
        }
        restore.signal(Signal::KILL);
        let ended = restore.end();
        if ended.code == 0 {
            usual = ended.took;
        }
        let mut undone = false;
        if let Some(id) = operation(&scene) {
            herd.apply().ends_with(5).tells(&[&id]);
            let verb = if dice.below(2) == 0 { "resume" } else { "undo" };
            let first = herd.run(&["operation", verb, &id, "--yes"]);
            if first.code == 4 && verb == "undo" {
                herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
            } else {
                assert_eq!(first.code, 0, "turn {turn}, {verb} {id} after {after:?}: {first:?}");
                undone = verb == "undo";
            }
        } else if ended.code != 0 {
            // Killed before it had begun, or when it had just ended.
            undone = !scene.sql("SELECT to_regclass('inventory.after_the_accident')").is_empty();
        }
        if undone {
            assert_eq!(
                scene.sql("SELECT to_regclass('inventory.after_the_accident')"),
                "inventory.after_the_accident",
                "turn {turn}"
            );
            scene.restore(&before).ends_with(0);
        }
        rows += 100;
        timeline += 1;
        assert_eq!(scene.items("a"), rows.to_string(), "turn {turn}, killed after {after:?}");
        scene.whole_on(timeline);
        for path in scene.aside() {
            fs::remove_dir_all(path).expect("it is ours to remove");
        }
    }
}

#[test]
fn a_missing_segment_is_refused_before_anything_is_touched() {
    let scene = Scene::up(&newest_or_15(1), &PAIR);
    let herd = &scene.herd;
    let before = scene.accident("1001, 1100");
    let segment = scene.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    scene.sql("SELECT pg_switch_wal()");
    until("it is archived", || scene.archived(&segment).then_some(()));
    scene.sql("INSERT INTO inventory.ticks DEFAULT VALUES");
    let next = scene.sql("SELECT pg_walfile_name(pg_switch_wal())");
    until("the next is archived", || scene.archived(&next).then_some(()));
    let (kept, name) = (herd.kept(), herd.kept().only(&format!("/{segment}.zst")));
    let good = kept.take(&name);
    let pids = (herd.postmaster("a"), herd.postmaster("b"), herd.pgbouncer());
    scene.restore(&before).ends_with(4).tells(&[&segment]);
    assert_eq!((herd.postmaster("a"), herd.postmaster("b"), herd.pgbouncer()), pids);
    assert!(!scene.holds_back());
    assert_eq!(scene.aside(), Vec::<PathBuf>::new());
    assert_eq!(operation(&scene), None);
    kept.write(&name, &good);
    scene.restore(&before).ends_with(0);
    assert_eq!(scene.items("a"), "1100");
    scene.whole_on(2);
}

#[test]
fn a_cluster_that_is_down_and_cannot_start_is_restored_too() {
    let scene = Scene::up(&newest_or_15(0), &PAIR);
    let herd = &scene.herd;
    let before = scene.accident("1001, 1300");
    let segment = scene.sql("SELECT pg_walfile_name(pg_switch_wal())");
    scene.sql("INSERT INTO inventory.ticks DEFAULT VALUES");
    let archived = format!("SELECT coalesce(last_archived_wal, '') >= '{segment}' FROM pg_stat_archiver");
    until("the accident is archived", || (scene.sql(&archived) == "t").then_some(()));
    for node in ["a", "b"] {
        kill_process(herd.postmaster(node).expect("it runs"), Signal::KILL).expect("it runs");
    }
    until("the servers are gone", || {
        let left = herd
            .processes()
            .into_iter()
            .any(|(_, line)| line.contains("postgres") && !line.contains("pgbouncer"));
        (!left).then_some(())
    });
    fs::write(herd.data("a").join("global/pg_control"), "a disk that lost its mind").expect("writable");
    fs::remove_dir_all(herd.data("b")).expect("it is ours");
    scene.restore(&before).ends_with(0).says(&["is restored to"]);
    assert_eq!(scene.items("a"), "1300");
    scene.whole_on(2);
    // The damaged one is kept as it was; of the other there was nothing to keep.
    assert_eq!(scene.aside().len(), 1);

    // Without a target everything comes back that is archived, or waits to be.
    scene.sql("INSERT INTO inventory.items SELECT generate_series(1301, 1400)");
    scene.whole_on(2);
    kill_process(herd.postmaster("a").expect("it runs"), Signal::KILL).expect("it runs");
    until("it is gone", || herd.postmaster("a").is_none().then_some(()));
    fs::write(herd.data("a").join("global/pg_control"), "once more").expect("writable");
    herd.run(&["restore", "inventory", "--in-place", "--node", "b", "--yes"])
        .ends_with(0)
        .says(&["primary inventory-b", "the old inventory-a was not shut down"]);
    assert_eq!(scene.items("b"), "1400");
    assert_eq!(herd.primaries(), ["b"]);
}

#[test]
fn a_disk_without_room_is_refused_and_one_that_fills_up_is_undone() {
    if !is_root() {
        return;
    }
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.keep_backups();
    let disk = Small::mount(herd.path("data"), "400m");
    herd.apply().ends_with(0);
    let scene = Scene { herd };
    scene.sql("SET ROLE inventory_owner; CREATE TABLE inventory.items (id int PRIMARY KEY)");
    scene.sql("INSERT INTO inventory.items SELECT generate_series(1, 1000)");
    scene.herd.run(&["backup", "create"]).ends_with(0);
    scene.sql("SET ROLE inventory_owner; CREATE TABLE inventory.ticks (id bigserial)");
    let before = scene.accident("1001, 1100");
    let ballast = scene.herd.path("data/ballast");
    let fill = |leave: u64| {
        let free = disk.free().saturating_sub(leave);
        // Somebody else may be writing meanwhile; then it is full a little earlier.
        fs::write(&ballast, vec![7_u8; usize::try_from(free).expect("small")]).ok();
    };
    fill(10 << 20);
    scene.restore(&before).ends_with(4).tells(&["there is not enough room", "Nothing was changed"]);
    assert_eq!(scene.aside(), Vec::<PathBuf>::new());
    // Room that is there when it is looked for, and gone when it is needed.
    fs::remove_file(&ballast).expect("it is there");
    let hash = hash_of(&scene.herd.path("config/nodes"));
    let mut restore =
        scene.herd.start(&["restore", "inventory", "--in-place", "--target-time", &before, "--yes"]);
    until("the old data is aside", || (!scene.aside().is_empty() || restore.has_ended()).then_some(()));
    fill(4 << 20);
    let ended = restore.end().ends_with(1);
    ended.tells(&["o space left", "was undone"]);
    fs::remove_file(&ballast).expect("it is there");
    assert_eq!(scene.aside(), Vec::<PathBuf>::new());
    assert_eq!(hash_of(&scene.herd.path("config/nodes")).len(), hash.len());
    assert_eq!(
        scene.sql("SELECT to_regclass('inventory.after_the_accident')"),
        "inventory.after_the_accident"
    );
    scene.whole_on(1);
    scene.restore(&before).ends_with(0);
    assert_eq!(scene.items("a"), "1100");
}

#[test]
fn a_table_space_goes_back_with_its_data() {
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.keep_backups();
    herd.apply().ends_with(0);
    let location = herd.path("space");
    make_for_server(&location);
    let scene = Scene { herd };
    scene.herd.sql("a", &format!("CREATE TABLESPACE space LOCATION '{}'", location.display()));
    scene.herd.sql("a", "GRANT CREATE ON TABLESPACE space TO inventory_owner");
    scene.sql("SET ROLE inventory_owner; CREATE TABLE inventory.items (id int PRIMARY KEY) TABLESPACE space");
    scene.sql("INSERT INTO inventory.items SELECT generate_series(1, 1000)");
    scene.herd.run(&["backup", "create"]).ends_with(0);
    let before = scene.accident("1001, 1400");
    scene.restore(&before).ends_with(0);
    assert_eq!(scene.items("a"), "1400");
    let kept = fs::read_dir(&location).expect("readable").map(|entry| entry.expect("readable").path());
    let (old, new): (Vec<PathBuf>, Vec<PathBuf>) = kept.partition(|path| text(path).contains(".before-"));
    assert_eq!((old.len(), new.len()), (1, 1));
    scene.whole_on(2);
}

fn make_for_server(path: &Path) {
    fs::create_dir(path).expect("a directory");
    if is_root() {
        let mut chown = Command::new("chown");
        chown.args(["postgres:postgres", text(path)]).stdin(Stdio::null());
        text_of(chown).expect("root may");
    }
}

/// A file system in memory with little room.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Self {
        fs::create_dir(&at).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0777"), "tmpfs", text(&at)]);
        text_of(mount).expect("root may mount");
        Self(at)
    }

    fn free(&self) -> u64 {
        let mut df = Command::new("df");
        df.args(["-B1", "--output=avail", "--", text(&self.0)]);
        let table = text_of(df).expect("df runs");
        table.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("a number")
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
