//! The WAL archive by real servers: what `wal push` stores and `wal fetch` hands over, and what goes wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use pgherd::ops::node::ListWal;
use pgherd::ops::wal::{self, WalList};
use pgherd::pg::control_bytes;
use pgherd::pg::lsn::Lsn;
use pgherd::pg::system::SystemIdentifier;
use pgherd::pg::wal_file::SegmentName;
use pgherd::repo::archive::{self, WalArchive};
use pgherd::repo::layout::{ClusterKeys, SystemKeys};
use pgherd::repo::{self, Location, SharedRepo, wait};
use pgherd::topology::claim::{self, Profile};

use crate::flips::{Chance, count};
use crate::herd::{Herd, SINGLE, as_server, binary, is_root, text, text_of, until};
use crate::server::{Installation, Server, installations, newest, place};
use crate::weed::Weed;

const PROFILE: &[u8] = include_bytes!("../../src/topology/testdata/profile-1.json");

/// A repository of its own, below a directory that the servers' user may write.
pub struct Archive {
    directory: tempfile::TempDir,
    repo: SharedRepo,
    /// What it takes the servers to open it.
    access: Option<PathBuf>,
}

impl Archive {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("pgherd-test-").tempdir_in(place()).unwrap();
        open_up(directory.path());
        Self::at(directory, "repository")
    }

    fn at(directory: tempfile::TempDir, name: &str) -> Self {
        let root = directory.path().join(name);
        let repo = repo::create(&Location::plain(format!("file://{}", root.display()))).unwrap();
        give_away(&root);
        Self { directory, repo, access: None }
    }

    /// One in a bucket of its own, to which the servers come through `endpoint`.
    pub fn in_a_bucket(weed: &Weed, endpoint: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("pgherd-test-").tempdir_in(place()).unwrap();
        open_up(directory.path());
        let url = format!("s3://{}/wal", weed.bucket());
        let own = Weed::location(directory.path(), &weed.access(&url, &weed.endpoint()));
        let repo = repo::create(&own).unwrap();
        let access = Weed::location(directory.path(), &weed.access(&url, endpoint)).access;
        give_away(access.as_deref().unwrap());
        Self { directory, repo, access }
    }

    /// Returns where what is on its way between a server and the repository lies.
    pub fn spool(&self, server: &Server) -> PathBuf {
        self.directory.path().join(format!("spool-{}", server.port()))
    }

    pub fn root(&self) -> PathBuf {
        PathBuf::from(self.repo.url().strip_prefix("file://").unwrap())
    }

    pub fn keys(&self, server: &Server) -> SystemKeys {
        ClusterKeys::new("inventory").system(system_of(server))
    }

    /// Writes the profile of a server that archives here, and returns its path.
    pub fn profile(&self, server: &Server) -> PathBuf {
        self.profile_of(server, system_of(server))
    }

    fn profile_of(&self, server: &Server, system: SystemIdentifier) -> PathBuf {
        let mut profile: Profile = claim::read(PROFILE).unwrap();
        profile.version = server.installation().major;
        profile.system_identifier = system;
        profile.data_directory = server.data();
        let named = profile.archive.as_mut().unwrap();
        named.url = self.repo.url().to_owned();
        named.access = self.access.clone();
        named.spool = Some(self.spool(server));
        let path = self.directory.path().join(format!("profile-{}.json", server.port()));
        fs::write(&path, claim::write(&profile)).unwrap();
        path
    }

    /// Has a stopped server archive here and recover from here.
    pub fn connect(&self, server: &Server) {
        let profile = self.profile(server);
        server.append(
            "postgresql.conf",
            &format!(
                "archive_mode = on\narchive_command = '{}'\nrestore_command = '{}'\n",
                push(&profile),
                fetch(&profile)
            ),
        );
    }

    /// Returns the names of the WAL files that are stored, but for those that a backup leaves.
    pub fn files(&self, server: &Server) -> BTreeSet<String> {
        let all = wait(self.repo.list_all(&self.keys(server).wal_folder())).unwrap();
        let names = all.iter().map(|listed| listed.key.name().strip_suffix(".zst").unwrap().to_owned());
        names.filter(|name| !name.ends_with(".backup")).collect()
    }

    pub fn object(&self, server: &Server, name: &str) -> PathBuf {
        self.root().join(self.keys(server).wal(name.parse().unwrap()).as_str())
    }

    /// Returns a stored file, checked.
    #[track_caller]
    pub fn content(&self, server: &Server, name: &str) -> Vec<u8> {
        let keys = self.keys(server);
        let file = archive::file(&*self.repo, &keys, name.parse().unwrap());
        wait(Box::pin(file)).unwrap().unwrap_or_else(|| panic!("{name} is not stored"))
    }

    pub fn look(&self, server: &Server) -> WalArchive {
        wait(Box::pin(WalArchive::look(&*self.repo, &self.keys(server)))).unwrap()
    }

    fn list(&self) -> WalList {
        wal::run(&ListWal { repository: Location::plain(self.repo.url()), cluster: "inventory".to_owned() })
            .unwrap()
    }
}

fn push(profile: &Path) -> String {
    format!("{} wal push --profile {} \"%p\"", binary().display(), profile.display())
}

fn fetch(profile: &Path) -> String {
    format!("{} wal fetch --profile {} \"%f\" \"%p\"", binary().display(), profile.display())
}

fn open_up(directory: &Path) {
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
}

/// Gives a directory to the user that owns the servers.
fn give_away(directory: &Path) {
    if is_root() {
        let mut chown = Command::new("chown");
        chown.args(["-R", "postgres:", text(directory)]);
        text_of(chown).unwrap();
    }
}

fn system_of(server: &Server) -> SystemIdentifier {
    let control = fs::read(server.data().join("global/pg_control")).unwrap();
    control_bytes::system_identifier(&control).unwrap()
}

pub fn try_sql(server: &Server, sql: &str) -> Result<String, String> {
    let mut psql = as_server(&server.installation().bin().join("psql"));
    psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", sql]);
    psql.args(["-h", text(&server.socket()), "-p", &server.port().to_string()]);
    text_of(psql)
}

#[track_caller]
pub fn sql(server: &Server, sql: &str) -> String {
    try_sql(server, sql).unwrap_or_else(|said| panic!("{sql}: {said}\n{}", server.log()))
}

fn program(server: &Server, name: &str, args: &[&str]) -> Result<String, String> {
    let mut command = as_server(&server.installation().bin().join(name));
    command.args(args);
    text_of(command)
}

/// Ends a segment and waits until it is archived.
#[track_caller]
pub fn archived(server: &Server) -> String {
    let segment = finish(server);
    until(&format!("{segment} is archived\n{}", server.log()), || {
        let last = sql(server, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver");
        (last.len() == 24 && last >= segment).then_some(())
    });
    segment
}

/// Ends a segment that something is in, and returns its name.
#[track_caller]
pub fn finish(server: &Server) -> String {
    sql(server, "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')")
}

/// Writes about `mib` MiB of WAL that does not compress.
pub fn write_wal(server: &Server, mib: u32) {
    for _ in 0..mib {
        sql(
            server,
            "SELECT count(pg_logical_emit_message(false, 'test', sha512(random()::text::bytea)::text || sha512(random()::text::bytea)::text)) \
             FROM generate_series(1, 3000)",
        );
    }
}

/// Starts a server whose recovery is to fail, sees that it is still in it, and returns its log.
#[track_caller]
fn fails_to_start(server: &Server) -> String {
    server.run_or_fail().expect_err("it must not start");
    // A promotion removes it, and writes a history.
    assert!(server.data().join("recovery.signal").exists(), "{}", server.log());
    assert!(!server.data().join("pg_wal/00000003.history").exists());
    server.log()
}

pub fn recovers(server: &Server, more: &str) {
    server.append("recovery.signal", "");
    server.append("postgresql.conf", more);
    if is_root() {
        let mut chown = Command::new("chown");
        chown.args(["postgres:", text(&server.data().join("recovery.signal"))]);
        text_of(chown).unwrap();
    }
}

/// Versions with the size of their segments in MiB: a small, the usual and a large one.
fn versions() -> Vec<(Installation, &'static str)> {
    installations().into_iter().zip(["1", "16", "64"].into_iter().cycle()).collect()
}

#[test]
fn what_a_server_writes_under_load_is_archived_and_recovered_to_the_last_row() {
    for (installation, mib) in versions() {
        let archive = Archive::new();
        let server = Server::make_with(
            &installation,
            "max_prepared_transactions = 5\n",
            &[&format!("--wal-segsize={mib}")],
        );
        archive.connect(&server);
        server.run();
        let bin = installation.bin().join("pgbench");
        let port = server.port().to_string();
        let socket = server.socket();
        let connection = ["-h", text(&socket), "-p", &port, "-U", "postgres", "postgres"];
        let bench = |args: &[&str]| {
            let mut command = as_server(&bin);
            command.args(args).args(connection);
            text_of(command).unwrap()
        };
        bench(&["-i", "-q", "-s", "2"]);
        let backup = Server::backup_of(&server, "archive_mode = off\n");
        bench(&["-n", "-c", "4", "-T", "3"]);
        sql(&server, "CREATE TABLE gone (i int)");
        sql(&server, "DROP TABLE gone");
        sql(&server, "BEGIN; INSERT INTO pgbench_history (tid) VALUES (-1); PREPARE TRANSACTION 'two'");
        sql(&server, "COMMIT PREPARED 'two'");
        let rows = sql(&server, "SELECT count(*), sum(delta) FROM pgbench_history");
        let last = archived(&server);

        let found = archive.look(&server);
        assert!(found.strays.is_empty(), "{:?}", found.strays);
        assert_eq!(found.segment_size.unwrap().as_u64(), mib.parse::<u64>().unwrap() << 20);
        let (_, timeline) = found.timelines.iter().next().unwrap();
        assert_eq!(timeline.spans.len(), 1, "{:?}", timeline.spans);
        assert_eq!(timeline.spans[0].last.to_string(), last);
        agrees_with_waldump(&archive, &server, &found);

        recovers(&backup, "");
        backup.run();
        until("it is promoted", || (sql(&backup, "SELECT pg_is_in_recovery()") == "f").then_some(()));
        assert_eq!(sql(&backup, "SELECT count(*), sum(delta) FROM pgbench_history"), rows);
    }
}

/// Holds pg_waldump to read every archived segment to its end, and to see the last commit that we see.
fn agrees_with_waldump(archive: &Archive, server: &Server, found: &WalArchive) {
    let directory = tempfile::Builder::new().prefix("pgherd-test-").tempdir_in(place()).unwrap();
    open_up(directory.path());
    let size = found.segment_size.unwrap();
    let span = found.timelines.values().next().unwrap().spans[0];
    for number in span.first.number(size)..=span.last.number(size) {
        let name = SegmentName::at(number, span.first.timeline(), size).to_string();
        fs::write(directory.path().join(&name), archive.content(server, &name)).unwrap();
    }
    let (first, last) = (span.first.to_string(), span.last.to_string());
    let path = text(directory.path());
    let end = span.last.end(size).to_string();
    // The end of the range is the end of the last segment, behind a switch.
    let whole = program(server, "pg_waldump", &["-q", "-p", path, &first, &last]);
    assert!(whole.is_ok(), "{whole:?} up to {end}");
    let dumped = program(server, "pg_waldump", &["-p", path, "-r", "Transaction", &first, &last]).unwrap();
    let commits: Vec<(u32, String)> = dumped
        .lines()
        .filter(|line| line.contains("desc: COMMIT"))
        .map(|line| {
            let field = |name: &str| line.split(name).nth(1).unwrap().trim_start();
            let prepared = line.split("COMMIT_PREPARED ").nth(1).and_then(|rest| rest.split(':').next());
            let xid = prepared.unwrap_or_else(|| field("tx:").split(',').next().unwrap());
            let time = line.split(" UTC").next().unwrap();
            (xid.trim().parse().unwrap(), time[time.len() - 26..].to_owned())
        })
        .collect();
    let (xid, time) = commits.last().expect("something committed");
    let ours = wait(Box::pin(found.last_commit(&*archive.repo, &[span], Lsn::new(0)))).unwrap().unwrap();
    assert_eq!(ours.at.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string(), *time);
    assert_eq!(ours.kind, pgherd::pg::wal_record::MarkKind::Commit { xid: *xid });

    // Every commit of every segment, those across two segments included.
    let mut found_commits = 0;
    let mut tail = None;
    for number in span.first.number(size)..=span.last.number(size) {
        let name = SegmentName::at(number, span.first.timeline(), size);
        let marks = wait(Box::pin(archive::marks(&*archive.repo, found.keys(), name, size))).unwrap();
        let across = tail
            .take()
            .and_then(|tail: pgherd::pg::wal_record::Tail| tail.complete(&marks, name.start(size)));
        found_commits += across.iter().chain(&marks.marks).filter(|mark| mark.is_commit()).count();
        tail = marks.tail;
    }
    assert_eq!(found_commits, commits.len());
}

#[test]
fn a_promotion_archives_its_history_and_what_was_left_of_the_old_timeline() {
    for (installation, mib) in versions() {
        let archive = Archive::new();
        let primary = Server::make_with(
            &installation,
            "max_wal_senders = 5\nmax_replication_slots = 5\n",
            &[&format!("--wal-segsize={mib}")],
        );
        archive.connect(&primary);
        primary.run();
        sql(&primary, "SELECT pg_create_physical_replication_slot('b', true)");
        archived(&primary);
        let backup = Server::backup_of(&primary, "archive_mode = off\n");
        let standby = Server::standby_of(&primary, "b", "b");
        sql(&primary, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");
        let wrote = sql(&primary, "SELECT pg_current_wal_lsn()");
        until("the standby has it", || {
            (sql(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{wrote}'")) == "t").then_some(())
        });
        primary.stop("immediate");
        sql(&standby, "SELECT pg_promote()");
        sql(&standby, "INSERT INTO kept VALUES (1001)");
        let last = archived(&standby);

        assert!(last.starts_with("00000002"));
        let files = archive.files(&primary);
        assert!(files.contains("00000002.history"), "{files:?}");
        let partial: Vec<&String> = files.iter().filter(|name| name.ends_with(".partial")).collect();
        assert_eq!(partial.len(), 1, "{files:?}");
        let content = archive.content(&primary, partial[0]);
        assert_eq!(content.len() as u64, mib.parse::<u64>().unwrap() << 20);

        let list = archive.list();
        let timelines = &list.systems[0].timelines;
        assert_eq!(timelines.len(), 2);
        assert!(timelines.iter().all(|timeline| timeline.gaps.is_empty() && !timeline.history_missing));
        assert_eq!(timelines[1].begins.unwrap().timeline.as_u32(), 1);

        // A recovery from the archive goes over the promotion.
        let profile = archive.profile(&backup);
        recovers(&backup, &format!("restore_command = '{}'\n", fetch(&profile)));
        backup.run();
        until("it is promoted", || (sql(&backup, "SELECT pg_is_in_recovery()") == "f").then_some(()));
        assert_eq!(sql(&backup, "SELECT count(*) FROM kept"), "1001");
        assert!(sql(&backup, "SELECT pg_walfile_name(pg_current_wal_lsn())").starts_with("00000003"));
    }
}

#[test]
fn of_two_primaries_the_second_is_refused_and_its_log_says_so() {
    let archive = Archive::new();
    let first = Server::make(&newest(), "");
    archive.connect(&first);
    let second = Server::twin_of(&first, "");
    archive.connect(&second);
    first.run();
    sql(&first, "CREATE TABLE first (i int)");
    let name = archived(&first);
    let stored = fs::read(archive.object(&first, &name)).unwrap();

    second.run();
    sql(&second, "CREATE TABLE second (i int)");
    assert_eq!(finish(&second), name);
    until("the archiver has failed", || {
        (sql(&second, "SELECT failed_count FROM pg_stat_archiver") != "0").then_some(())
    });
    let log = second.log();
    for words in
        [&*format!("cannot archive {name}"), "another one of this name", "two primaries", "exit code 1"]
    {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    assert_eq!(fs::read(archive.object(&first, &name)).unwrap(), stored);
    assert!(second.data().join("pg_wal").join(&name).exists(), "the server keeps what is not archived");
}

#[test]
fn another_cluster_under_our_name_is_refused() {
    let archive = Archive::new();
    let ours = Server::make(&newest(), "");
    let other = Server::make(&newest(), "");
    let profile = archive.profile_of(&other, system_of(&ours));
    let command = format!("archive_mode = on\narchive_command = '{}'\n", push(&profile));
    other.append("postgresql.conf", &command);
    other.run();
    let name = finish(&other);
    until("the archiver has failed", || {
        (sql(&other, "SELECT failed_count FROM pg_stat_archiver") != "0").then_some(())
    });
    let log = other.log();
    for words in ["cannot archive", "system identifier", "exit code 4"] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    assert!(!archive.object(&ours, &name).exists());
}

/// How often something is killed: a sample, and all of it in a soak run.
fn kills() -> u32 {
    let soak = std::env::var_os("PGHERD_SOAK").is_some();
    std::env::var("PGHERD_KILLS").map_or(if soak { 200 } else { 30 }, |count| count.parse().unwrap())
}

/// Makes a server that has stopped, and the names of its WAL segments.
fn written() -> (Server, Vec<String>) {
    let server =
        Server::make_with(&newest(), "max_wal_size = '2 GB'\nwal_keep_size = '2 GB'\n", &["--wal-segsize=4"]);
    server.run();
    write_wal(&server, 60);
    finish(&server);
    server.stop("fast");
    let mut segments: Vec<String> = fs::read_dir(server.data().join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.len() == 24)
        .collect();
    segments.sort();
    // The last ones were made to be used later.
    segments.retain(|name| fs::read(server.data().join("pg_wal").join(name)).unwrap()[..2] != [0, 0]);
    (server, segments)
}

#[test]
fn a_fetch_that_is_killed_hands_over_a_whole_file_or_none() {
    let archive = Archive::new();
    let (server, segments) = written();
    let profile = archive.profile(&server);
    let wal = |verb: &str, words: &[&str]| {
        let mut command = as_server(binary());
        command.current_dir(server.data()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["wal", verb, "--profile", text(&profile)]).args(words);
        command
    };
    for name in &segments {
        assert!(wal("push", &[&format!("pg_wal/{name}")]).status().unwrap().success(), "{name}");
    }
    let target = server.data().join("pg_wal/RECOVERYXLOG");
    let fetch = |name: &str| wal("fetch", &[name, "pg_wal/RECOVERYXLOG"]);
    let begin = Instant::now();
    assert!(fetch(&segments[0]).status().unwrap().success());
    let took = begin.elapsed();
    let mut chance = Chance::new("kills of wal fetch");
    let (mut killed, mut at) = (0, 0);
    while killed < count(20, 50) {
        let name = &segments[at % segments.len()];
        let right = fs::read(server.data().join("pg_wal").join(name)).unwrap();
        // PostgreSQL removes what is there before it asks (`RestoreArchivedFile`).
        fs::remove_file(&target).ok();
        let mut child = fetch(name).spawn().unwrap();
        std::thread::sleep(took.mul_f64(chance.below(1000) as f64 / 900.0));
        child.kill().unwrap();
        match child.wait().unwrap().code() {
            Some(0) => assert!(fs::read(&target).unwrap() == right, "{name}"),
            Some(code) => panic!("{name}: exit code {code}"),
            None => {
                killed += 1;
                assert!(!target.exists() || fs::read(&target).unwrap() == right, "{name}");
            }
        }
        assert!(fetch(name).status().unwrap().success(), "{name} after a kill");
        assert!(fs::read(&target).unwrap() == right, "{name} after a kill");
        at += 1;
    }
    // What the killed ones had begun is not kept for ever.
    let pg_wal = fs::read_dir(server.data().join("pg_wal")).unwrap();
    let names: Vec<String> = pg_wal.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let strays: Vec<&String> = names.iter().filter(|name| name.contains("pgherd")).collect();
    assert!(strays.is_empty(), "{strays:?}");
}

#[test]
fn a_push_that_is_killed_loses_nothing_that_it_acknowledged() {
    let archive = Archive::new();
    let (server, segments) = written();
    let profile = archive.profile(&server);
    let started = || {
        let mut command = as_server(binary());
        command.current_dir(server.data()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let begin = Instant::now();
    let whole = |name: &str| {
        let mut command = started();
        command.args(["wal", "push", "--profile", text(&profile), &format!("pg_wal/{name}")]);
        command
    };
    assert!(whole(&segments[0]).status().unwrap().success());
    let took = begin.elapsed();

    let mut acknowledged = BTreeSet::from([segments[0].clone()]);
    let (mut killed, mut at) = (0, 1);
    let mut chance = u64::from(std::process::id());
    while killed < kills() {
        let name = &segments[at % segments.len()];
        let mut child = whole(name).spawn().unwrap();
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        std::thread::sleep(took.mul_f64((chance % 1000) as f64 / 900.0));
        child.kill().unwrap();
        match child.wait().unwrap().code() {
            Some(0) => {
                acknowledged.insert(name.clone());
                at += 1;
            }
            Some(code) => panic!("{name}: exit code {code}"),
            None => {
                killed += 1;
                // Half of them are tried again at once, as the archiver does; the others are left as they are.
                at += usize::from(chance % 2 == 0);
            }
        }
        // Whatever is there is whole.
        let object = archive.object(&server, name);
        if object.exists() {
            assert!(
                archive.content(&server, name) == fs::read(server.data().join("pg_wal").join(name)).unwrap()
            );
        }
    }
    for name in &acknowledged {
        assert!(archive.object(&server, name).exists(), "{name} was acknowledged");
    }
    for name in &segments {
        assert!(whole(name).status().unwrap().success(), "{name}");
        assert!(archive.content(&server, name) == fs::read(server.data().join("pg_wal").join(name)).unwrap());
    }
    assert!(archive.look(&server).strays.is_empty());
}

/// A file system in memory that is soon full; root alone may make one.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=12m,mode=0777", "tmpfs", text(at)]);
        text_of(mount).unwrap();
        Self(at.to_owned())
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

/// An ordinary user cannot make a full disk; `repo_conformance` has one too.
#[test]
fn a_full_repository_is_told_and_archiving_goes_on_when_there_is_room() {
    if !is_root() {
        return;
    }
    let directory = tempfile::Builder::new().prefix("pgherd-test-").tempdir_in(place()).unwrap();
    open_up(directory.path());
    let small = Small::mount(&directory.path().join("disk"));
    let archive = Archive::at(directory, "disk/repository");
    fs::write(small.0.join("filler"), vec![1; 6 << 20]).unwrap();
    let server = Server::make_with(&newest(), "", &["--wal-segsize=1"]);
    archive.connect(&server);
    server.run();
    until("the disk is full", || {
        write_wal(&server, 2);
        finish(&server);
        (sql(&server, "SELECT failed_count FROM pg_stat_archiver") != "0").then_some(())
    });
    let log = server.log();
    assert!(log.contains("No space left on device") && log.contains("Make room"), "{log}");
    let found = archive.look(&server);
    assert!(found.strays.is_empty());
    for span in &found.timelines.values().next().unwrap().spans {
        archive.content(&server, &span.last.to_string());
    }

    fs::remove_file(small.0.join("filler")).unwrap();
    // The archiver rests for a minute after three failures, unless a segment is finished.
    let last = archived(&server);
    let spans = archive.look(&server).timelines.into_values().next().unwrap().spans;
    assert_eq!((spans.len(), spans[0].last.to_string()), (1, last));
    drop(server);
    drop(small);
}

/// A primary whose archive holds WAL behind a base backup, and that backup, ready to recover.
fn ready_to_recover() -> (Archive, Server, Server, Vec<String>) {
    let archive = Archive::new();
    let server = Server::make_with(&newest(), "", &["--wal-segsize=1"]);
    archive.connect(&server);
    server.run();
    let backup = Server::backup_of(&server, "archive_mode = off\n");
    sql(&server, "CREATE TABLE kept (i int)");
    let mut segments = Vec::new();
    for number in 0..6 {
        sql(&server, &format!("INSERT INTO kept VALUES ({number})"));
        segments.push(archived(&server));
    }
    recovers(&backup, "");
    (archive, server, backup, segments)
}

#[test]
fn a_recovery_with_a_missing_segment_stops_and_promotes_nothing() {
    let (archive, server, backup, segments) = ready_to_recover();
    let object = archive.object(&server, &segments[3]);
    let aside = archive.directory.path().join("aside");
    fs::rename(&object, &aside).unwrap();
    let log = fails_to_start(&backup);
    for words in [
        &*format!("{} is missing from the archive", segments[3]),
        "The archive goes on with",
        "recovery must not end here",
    ] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    // The same recovery goes on once the segment is back.
    fs::rename(&aside, &object).unwrap();
    backup.run();
    assert_eq!(sql(&backup, "SELECT count(*) FROM kept"), "6");
}

#[test]
fn a_recovery_from_a_damaged_segment_stops_and_promotes_nothing() {
    let (archive, server, backup, segments) = ready_to_recover();
    let object = archive.object(&server, &segments[2]);
    let mut bytes = fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&object, bytes).unwrap();
    let log = fails_to_start(&backup);
    assert!(log.contains("The stored object is damaged"), "{log}");
}

#[test]
fn a_recovery_whose_history_is_missing_does_not_stay_on_the_old_timeline() {
    let (archive, server, backup, _) = ready_to_recover();
    server.stop("fast");
    // A recovery makes timeline 2, which archives its own history and WAL.
    let second = Server::twin_of(&server, "");
    archive.connect(&second);
    recovers(&second, "");
    second.run();
    until("it is promoted", || (sql(&second, "SELECT pg_is_in_recovery()") == "f").then_some(()));
    sql(&second, "INSERT INTO kept VALUES (7)");
    assert!(archived(&second).starts_with("00000002"));
    let history = archive.object(&server, "00000002.history");
    fs::rename(&history, archive.directory.path().join("aside")).unwrap();
    let log = fails_to_start(&backup);
    assert!(log.contains("00000002.history is missing from the archive"), "{log}");
    assert!(archive.list().systems[0].timelines[1].history_missing);

    fs::rename(archive.directory.path().join("aside"), &history).unwrap();
    backup.run();
    until("it is promoted", || (sql(&backup, "SELECT pg_is_in_recovery()") == "f").then_some(()));
    assert_eq!(sql(&backup, "SELECT count(*) FROM kept"), "7");
}

#[test]
fn a_recovery_whose_repository_goes_away_in_the_middle_stops_and_promotes_nothing() {
    let (archive, _server, backup, segments) = ready_to_recover();
    let (root, aside) = (archive.root(), archive.directory.path().join("aside"));
    let real = fetch(&archive.profile(&backup));
    let command = format!(
        "if test \"%f\" = {} -a ! -e {}; then mv {} {}; fi; {real}",
        segments[3],
        aside.display(),
        root.display(),
        aside.display()
    );
    recovers(&backup, &format!("restore_command = '{command}'\n"));
    let log = fails_to_start(&backup);
    assert!(log.contains("its disk may not be mounted"), "{log}");
    assert!(!root.exists(), "nothing is made where the repository was");
    fs::rename(&aside, &root).unwrap();
    recovers(&backup, &format!("restore_command = '{real}'\n"));
    backup.run();
    assert_eq!(sql(&backup, "SELECT count(*) FROM kept"), "6");
}

#[test]
fn a_standby_whose_repository_is_gone_waits_for_it() {
    let (archive, server, standby, _) = ready_to_recover();
    fs::remove_file(standby.data().join("recovery.signal")).unwrap();
    standby.append("standby.signal", "");
    give_away(&standby.data());
    let (root, aside) = (archive.root(), archive.directory.path().join("aside"));
    standby.run();
    until("it has caught up", || (try_sql(&standby, "SELECT count(*) FROM kept").ok()? == "6").then_some(()));
    fs::rename(&root, &aside).unwrap();
    until("it has asked", || standby.log().contains("its disk may not be mounted").then_some(()));
    fs::rename(&aside, &root).unwrap();
    sql(&server, "INSERT INTO kept VALUES (7)");
    archived(&server);
    until("it goes on", || (sql(&standby, "SELECT count(*) FROM kept") == "7").then_some(()));
    assert_eq!(sql(&standby, "SELECT pg_is_in_recovery()"), "t");
}

#[test]
fn a_standby_is_promoted_although_its_repository_is_gone() {
    let (archive, _server, standby, _) = ready_to_recover();
    fs::remove_file(standby.data().join("recovery.signal")).unwrap();
    standby.append("standby.signal", "");
    give_away(&standby.data());
    standby.run();
    until("it has caught up", || (try_sql(&standby, "SELECT count(*) FROM kept").ok()? == "6").then_some(()));
    let (root, aside) = (archive.root(), archive.directory.path().join("aside"));
    for timeline in ["00000002", "00000003"] {
        fs::rename(&root, &aside).unwrap();
        sql(&standby, "SELECT pg_promote()");
        sql(&standby, "INSERT INTO kept VALUES (7)");
        assert!(sql(&standby, "SELECT pg_walfile_name(pg_current_wal_lsn())").starts_with(timeline));
        fs::rename(&aside, &root).unwrap();
        // Once more, from a timeline that has a history.
        standby.stop("fast");
        standby.append("standby.signal", "");
        give_away(&standby.data());
        standby.run();
    }
}

#[test]
fn the_archive_of_a_herd_is_listed() {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    herd.run(&["wal", "list"]).ends_with(10).tells(&["inventory has no archive"]);
    herd.keep_backups();
    herd.apply().ends_with(0);
    let list = herd.run(&["wal", "list"]).ends_with(0);
    list.says(&["shop/inventory   system ", "000000010000000000000001", "nothing can be restored"]);
    herd.run(&["backup", "create"]).ends_with(0);
    herd.sql("a", "CREATE TABLE kept (i int)");
    herd.sql("a", "SELECT pg_switch_wal()");
    let window = until("a commit is archived", || {
        let list = herd.run(&["wal", "list", "--format", "json"]).ends_with(0).json();
        let window = list["clusters"][0]["systems"][0]["windows"][0].clone();
        let moment = |name: &str| window[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        (moment("last") > moment("first")).then_some(window)
    });
    assert!(window["backup"].as_str().unwrap().ends_with("-full"));
    herd.run(&["wal", "list"]).ends_with(0).says(&["can be restored: ", " UTC to "]);
}

/// What `wal push` may end with, whatever is wrong, does not kill the archiver.
#[test]
fn every_failure_of_a_push_has_an_exit_code_that_the_archiver_takes() {
    let archive = Archive::new();
    let server = Server::make(&newest(), "");
    let profile = archive.profile(&server);
    let code = |args: &[&str]| {
        let mut command = as_server(binary());
        command.args(["wal", "push"]).args(args).stderr(Stdio::null()).stdout(Stdio::null());
        command.status().unwrap().code().unwrap()
    };
    let path = text(&profile);
    for args in [
        &["--profile", "/nothing", "pg_wal/000000010000000000000001"][..],
        &["--profile", path, "pg_wal/000000010000000000000009"],
        &["--profile", path, "pg_wal/whatever"],
        &["--nonsense"],
        &[],
    ] {
        let code = code(args);
        assert!((1..=125).contains(&code), "{args:?}: {code}");
    }
    let mut fetch = as_server(binary());
    fetch.args(["wal", "fetch", "--profile", "/nothing", "00000002.history", "/tmp/never"]);
    assert_eq!(fetch.stderr(Stdio::null()).status().unwrap().code(), Some(126));
}
