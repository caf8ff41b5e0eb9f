//! WAL archiving: switched on by `apply`, shown to work, and independent of the program that switched it on.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::herd::{
    Herd, PAIR, SINGLE, as_server, binary, files_below, is_root, newest_or_15, text, text_of, until,
};
use crate::server::installations;

/// A herd that archives; nothing is made yet.
fn declared(installation: &crate::server::Installation, shape: &crate::herd::Shape<'_>) -> Herd {
    let mut herd = Herd::declare(installation, shape);
    herd.keep_backups();
    herd
}

/// Finishes a segment and returns its name.
#[track_caller]
fn finish_segment(herd: &Herd) -> String {
    herd.sql(
        "a",
        "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')",
    )
}

/// Returns where a segment is stored.
fn stored(herd: &Herd, segment: &str) -> PathBuf {
    let system = herd.sql("a", "SELECT system_identifier FROM pg_control_system()");
    herd.repository().join(format!("inventory/{system}/wal/{}/{segment}.zst", &segment[..16]))
}

#[track_caller]
fn arrives(herd: &Herd) {
    let segment = finish_segment(herd);
    let file = stored(herd, &segment);
    until(&format!("{} is there", file.display()), || file.is_file().then_some(()));
}

fn failures(herd: &Herd) -> String {
    herd.sql("a", "SELECT failed_count FROM pg_stat_archiver")
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn a_herd_of_every_version_is_born_into_its_repository() {
    for installation in installations() {
        let herd = declared(&installation, &SINGLE);
        herd.plan().ends_with(0).says(&[
            "+ local         install pgherd",
            "+ local         repository main in",
            ". inventory-a   switch the WAL segment, see it arrive in repository main",
        ]);
        herd.apply().ends_with(0);
        herd.is_as_declared();
        arrives(&herd);
        assert_eq!(failures(&herd), "0");
        // The first segment of its life is there too.
        assert!(stored(&herd, "000000010000000000000001").is_file(), "{:?}", files_below(&herd.repository()));
        assert_eq!(mode(&herd.repository()), 0o750);
        let owner = fs::metadata(herd.repository()).expect("it is there").uid();
        assert_eq!(owner, fs::metadata(herd.data("a")).expect("it is there").uid());
        let link = fs::read_link(herd.path("lib/pgherd")).expect("a link");
        let copy = herd.path("lib").join(link);
        assert_eq!(
            (mode(&copy), fs::metadata(&copy).expect("a copy").uid()),
            (0o755, rustix::process::geteuid().as_raw())
        );
        assert_eq!(mode(&herd.path("lib")), 0o755);
    }
}

#[test]
fn clusters_share_a_repository_and_the_installed_program() {
    let mut herd = declared(&newest_or_15(1), &SINGLE);
    herd.add_cluster("orders");
    // What belongs to the host is done, and shown, once.
    let plan = herd.run(&["plan", "--out", "birth.plan"]).ends_with(0);
    for text in ["install pgherd", "repository main in"] {
        assert_eq!(plan.stdout.matches(text).count(), 1, "{}", plan.stdout);
    }
    assert_eq!(plan.stdout.matches("see it arrive in repository main").count(), 2, "{}", plan.stdout);
    herd.run(&["apply", "birth.plan", "--yes"])
        .ends_with(0)
        .says(&["shop/inventory is up", "shop/orders is up"]);
    herd.is_as_declared();
    for cluster in ["inventory", "orders"] {
        let kept = files_below(&herd.repository().join(cluster));
        assert!(kept.iter().any(|file| file.extension().is_some_and(|end| end == "zst")), "{kept:?}");
    }

    // What is refused keeps nobody away, on no machine.
    herd.run(&["apply", "birth.plan", "--yes"]).ends_with(4);
    let lock = herd.repository().join("inventory/lock.json");
    assert!(!lock.exists(), "{}", lock.display());

    // One installs again what somebody has removed; each shows that its own WAL arrives.
    fs::remove_file(herd.path("lib/pgherd")).expect("removable");
    let mended = herd.apply().ends_with(0);
    assert_eq!(mended.stderr.matches("see WAL arrive in main").count(), 2, "{}", mended.stderr);
    fs::remove_dir_all(herd.path("lib")).expect("removable");
    herd.apply().ends_with(0);
    herd.is_as_declared();
    arrives(&herd);
    for cluster in ["inventory", "orders"] {
        herd.run(&["destroy", cluster, "--confirm", cluster]).ends_with(0);
    }

    // And from nothing without a saved plan.
    fs::remove_dir_all(herd.repository()).expect("removable");
    assert!(!herd.path("lib").exists());
    herd.apply().ends_with(0);
    herd.is_as_declared();
}

#[test]
fn archiving_that_is_switched_on_restarts_what_it_must_and_only_when_it_may() {
    let mut herd = Herd::up(&newest_or_15(0), &PAIR);
    assert_eq!(herd.sql("a", "SHOW archive_mode"), "off");
    herd.keep_backups();
    herd.plan().ends_with(0).says(&[
        "! inventory-a",
        "! inventory-b",
        "archive_mode off → on",
        "needs --allow-restart",
    ]);
    herd.apply().ends_with(4);
    assert!(!herd.repository().exists() && !herd.path("lib").exists());
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    herd.is_as_declared();
    for node in ["a", "b"] {
        assert_eq!(herd.sql(node, "SHOW archive_mode"), "on");
        let profile = fs::read_to_string(herd.facts(node).join("profile.json")).expect("readable");
        assert!(profile.contains("\"repository\": \"main\""), "{profile}");
    }
    arrives(&herd);
    assert_eq!(failures(&herd), "0");
    // And off again: no WAL waits for anybody.
    let declared = "    backups: {repository: main}\n";
    herd.edit(declared, "");
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    herd.is_as_declared();
    assert_eq!(herd.sql("a", "SELECT setting FROM pg_settings WHERE name = 'archive_mode'"), "off");
    assert!(!files_below(&herd.repository()).is_empty(), "what was archived stays");
}

#[test]
fn a_command_that_was_changed_by_hand_is_drift_and_is_shown_to_work_again() {
    let herd = declared(&newest_or_15(1), &SINGLE);
    herd.apply().ends_with(0);
    herd.sql("a", "ALTER SYSTEM SET archive_command = '/bin/false'");
    herd.sql("a", "SELECT pg_reload_conf()");
    // The archiver may take one more segment before it has read the new value.
    let tried = || herd.sql("a", "SELECT archived_count + failed_count FROM pg_stat_archiver");
    until("the archiver fails", || {
        let before = tried();
        finish_segment(&herd);
        until("a segment is tried", || (tried() != before).then_some(()));
        (failures(&herd) != "0").then_some(())
    });
    herd.plan().ends_with(0).says(&[
        "ALTER SYSTEM set archive_command = /bin/false",
        "see it arrive in repository main",
        "Nothing restarts",
    ]);
    herd.apply().ends_with(0);
    herd.is_as_declared();
    arrives(&herd);
    // What waited meanwhile went first.
    let waiting =
        || herd.sql("a", "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'");
    until("nothing waits", || (waiting() == "0").then_some(()));
}

/// Runs a verb through a program of its own.
fn run_by(herd: &Herd, program: &std::path::Path, args: &[&str]) -> Result<String, String> {
    let prepared = herd.command(args);
    let mut command = Command::new(program);
    command.args(prepared.get_args()).current_dir(herd.root()).env_clear();
    command.envs(prepared.get_envs().filter_map(|(name, value)| Some((name, value?))));
    text_of(command)
}

#[test]
fn archiving_goes_on_when_the_program_that_ran_apply_is_rebuilt_or_removed() {
    let herd = declared(&newest_or_15(0), &SINGLE);
    let built = herd.path("built");
    fs::create_dir(&built).expect("a directory");
    let program = built.join("pgherd");
    fs::copy(binary(), &program).expect("a copy");
    run_by(&herd, &program, &["apply", "--yes"]).expect("it is made");
    fs::write(&program, "no program any more").expect("writable");
    arrives(&herd);
    fs::remove_dir_all(&built).expect("it is ours");
    arrives(&herd);
    assert_eq!(failures(&herd), "0");

    // The same build is the same file; another is a step that says so, and the old one stays.
    herd.is_as_declared();
    let old = fs::read_link(herd.path("lib/pgherd")).expect("a link");
    fs::create_dir(&built).expect("a directory");
    let mut bytes = fs::read(binary()).expect("readable");
    bytes.extend_from_slice(b"another build");
    fs::write(&program, bytes).expect("writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let plan = run_by(&herd, &program, &["plan"]).expect("it is planned");
    for words in ["~ local", "install pgherd", "another build", "see it arrive in repository main"] {
        assert!(plan.contains(words), "no {words:?} in\n{plan}");
    }
    assert_eq!(fs::read_link(herd.path("lib/pgherd")).expect("a link"), old);
    let first = finish_segment(&herd);
    let load = Load::start(&herd);
    run_by(&herd, &program, &["apply", "--yes"]).expect("it is installed");
    drop(load);
    assert_ne!(fs::read_link(herd.path("lib/pgherd")).expect("a link"), old);
    assert!(herd.path("lib").join(old).is_file());
    let segments = segments_since(&herd, &first);
    let all = || segments.iter().all(|segment| stored(&herd, segment).is_file());
    until("every segment is there", || all().then_some(()));
    assert!(segments.len() > 5, "{segments:?}");
    println!("{} segments were archived while the program was replaced", segments.len());
    assert_eq!(failures(&herd), "0");
}

#[test]
fn older_builds_go_when_nobody_uses_them_and_the_one_before_stays() {
    let herd = declared(&newest_or_15(1), &SINGLE);
    let [one, two, three] = ["one", "two", "three"].map(|name| herd.build(name));
    herd.run_by(&one, &["apply", "--yes"]).ends_with(0);
    let first = herd.build_in_use();
    herd.run_by(&two, &["plan"]).ends_with(0).does_not_say("remove");
    herd.run_by(&two, &["apply", "--yes"]).ends_with(0);
    let second = herd.build_in_use();
    // A station that still has the build before works on, and sends it to nobody.
    herd.run_by(&one, &["wal", "list"]).ends_with(0);
    herd.run_by(&two, &["plan"]).ends_with(0).says(&["No changes."]);
    let mut both = vec![first.clone(), second.clone()];
    both.sort();
    assert_eq!(herd.builds(), both);

    // Somebody runs the first one, and a directory that is not pgherd's has such a name.
    let mut command = Command::new(herd.path("lib").join(&first).join("pgherd"));
    let mut runs =
        command.arg("node").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    let foreign = herd.path("lib/0123456789abcdef");
    fs::create_dir(&foreign).expect("a directory");
    fs::write(foreign.join("notes.txt"), "of somebody").expect("writable");
    herd.run_by(&three, &["apply", "--yes"]).ends_with(0);
    let third = herd.build_in_use();
    herd.run_by(&three, &["plan"]).ends_with(0).says(&["No changes."]);
    assert!(herd.path("lib").join(&first).join("pgherd").is_file());
    drop(runs.stdin.take());
    runs.wait().expect("it ends");
    let plan = herd.run_by(&three, &["plan", "--detailed-exitcode"]).ends_with(2);
    plan.says(&[
        "- local",
        "remove 1 older build of pgherd",
        &first[..6],
        "Plan: 0 to add, 0 to change, 1 to remove, 0 to destroy.",
    ]);
    herd.run_by(&three, &["apply", "--yes"]).ends_with(0);
    herd.run_by(&three, &["plan"]).ends_with(0).says(&["No changes."]);
    let mut left = vec![second, third, "0123456789abcdef".to_owned()];
    left.sort();
    assert_eq!(herd.builds(), left);

    // With the last cluster all of it goes, but for what is not pgherd's.
    arrives(&herd);
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    herd.nothing_is_left();
    assert_eq!(herd.builds(), ["0123456789abcdef"]);
    assert!(!herd.path("lib/pgherd").exists() && !herd.path("config").exists());
    assert_eq!(fs::read_to_string(foreign.join("notes.txt")).expect("readable"), "of somebody");
}

#[test]
fn the_program_stays_as_long_as_a_cluster_or_a_server_needs_it() {
    let mut herd = declared(&newest_or_15(0), &SINGLE);
    herd.add_cluster("orders");
    herd.apply().ends_with(0);
    let wrong = ["destroy", "inventory", "--confirm", "no"];
    herd.run(&wrong).ends_with(4).tells(&["(orders-a): stays"]);
    herd.run(&["destroy", "orders", "--confirm", "orders"]).ends_with(0).tells(&["(inventory-a): stays"]);
    assert!(herd.path("lib/pgherd").exists());

    // A copy as restores made them before they brought a program of their own, and one of today.
    herd.run(&["--cluster", "inventory", "backup", "create"]).ends_with(0);
    let copies = herd.path("copies");
    fs::create_dir(&copies).expect("a directory");
    if is_root() {
        let mut chown = Command::new("chown");
        chown.arg("postgres").arg(&copies);
        text_of(chown).expect("root may");
    }
    let [old_copy, copy] = ["old", "r"].map(|name| copies.join(name));
    for copy in [&old_copy, &copy] {
        herd.run(&["restore", "inventory", "--to-dir", text(copy), "--no-start"]).ends_with(0);
    }
    let settings = old_copy.join("pgherd.node.conf");
    let own = fs::read_to_string(&settings).expect("readable");
    let beside = format!("{}-pgherd/pgherd wal fetch", old_copy.display());
    assert!(own.contains(&beside), "{own}");
    let build = herd.path("lib").join(herd.build_in_use()).join("pgherd");
    let old = own.replace(&beside, &format!("{} wal fetch", build.display()));
    fs::write(&settings, old).expect("writable");
    let log = copies.join("log");
    let start = |copy: &Path| herd.program("pg_ctl", &["-D", text(copy), "-l", text(&log), "-w", "start"]);
    let stop = |copy: &Path| herd.program("pg_ctl", &["-D", text(copy), "-m", "fast", "-w", "stop"]);
    start(&old_copy);
    herd.run(&wrong).ends_with(4).tells(&[&format!("(the server in {}): stays", old_copy.display())]);
    stop(&old_copy);

    // Without a cluster and without the program that was installed the copy of today finds its WAL.
    herd.run(&["destroy", "inventory", "--confirm", "inventory"])
        .ends_with(0)
        .tells(&["and the directories that are empty then"]);
    herd.nothing_is_left();
    assert!(!herd.path("lib").exists());
    let archived_before = archived(&herd).len();
    start(&copy);
    let log_of = herd.path("copies/r-pgherd/log");
    let fetched = |file: &PathBuf| {
        fs::read_to_string(file).is_ok_and(|text| text.contains("restored log file \"0000000"))
    };
    until("it fetches WAL", || files_below(&log_of).iter().any(fetched).then_some(()));
    stop(&copy);
    assert_eq!(archived(&herd).len(), archived_before);
}

/// Writes and ends segments, several a second, until it is dropped.
struct Load(std::process::Child);

impl Load {
    fn start(herd: &Herd) -> Self {
        let script = herd.path("load.sql");
        fs::write(&script, "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'test', 'load');\n")
            .expect("a file");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).expect("it is ours");
        let mut command = as_server(&herd.installation().bin().join("pgbench"));
        let (socket, port) = (herd.path("state/run/inventory-a"), herd.port("a").to_string());
        command.args(["-n", "-R", "8", "-T", "600", "-f", text(&script), "-h", text(&socket), "-p", &port]);
        command.args(["-U", "postgres", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
        let load = Self(command.spawn().expect("pgbench starts"));
        let before = finish_segment(herd);
        until("it writes", || (segments_since(herd, &before).len() > 2).then_some(()));
        load
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Returns the names of all segments from `first` to one that is finished now.
fn segments_since(herd: &Herd, first: &str) -> Vec<String> {
    let last = finish_segment(herd);
    let number = |name: &str| {
        let (log, segment) = name[8..].split_at(8);
        let parse = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        // 256 segments of 16 MiB have one log number.
        parse(log) * 256 + parse(segment)
    };
    (number(first)..=number(&last))
        .map(|number| format!("{}{:08X}{:08X}", &first[..8], number / 256, number % 256))
        .collect()
}

#[test]
fn wal_that_does_not_arrive_is_told_with_the_servers_words_and_everything_is_undone() {
    let herd = declared(&newest_or_15(1), &SINGLE);
    // A folder of the cluster's name that the servers may not write to.
    fs::create_dir(herd.repository()).expect("a directory");
    let foreign = herd.repository().join("inventory");
    fs::create_dir(&foreign).expect("a directory");
    herd.apply().ends_with(4).tells(&[
        "cannot use",
        "as repository main: it is not empty",
        "It holds inventory",
    ]);
    fs::remove_dir(&foreign).expect("it is ours");
    if is_root() {
        // Root's own directory: postgres may look and not write.
        herd.apply().ends_with(1).tells(&[
            "ERROR:  could not make the repository main",
            "Permission denied",
            "HINT:   Give postgres the right to write to",
            "was undone",
        ]);
        herd.nothing_is_left();
        assert_eq!(files_below(&herd.repository()), Vec::<PathBuf>::new());
    }
    fs::remove_dir(herd.repository()).expect("it is ours");
    herd.apply().ends_with(0);
    herd.is_as_declared();
}

/// Has the installed copy fail at WAL and do everything else; returns where it is.
fn break_the_copy(herd: &Herd, build: &str) -> PathBuf {
    let copy = herd.path("lib").join(build).join("pgherd");
    fs::create_dir_all(herd.path("lib").join(build)).expect("a directory");
    // A program that runs is not written over.
    fs::remove_file(&copy).ok();
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in wal) echo 'ERROR:  the disk is on fire' >&2; exit 1;; esac\nexec {} \"$@\"\n",
        text(binary())
    );
    fs::write(&copy, script).expect("writable");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is ours");
    copy
}

fn archived(herd: &Herd) -> Vec<PathBuf> {
    let mut files = files_below(&herd.repository());
    files.retain(|file| file.extension().is_some_and(|end| end == "zst"));
    files
}

#[test]
fn a_birth_whose_wal_is_refused_says_what_the_server_said_and_leaves_nothing() {
    let herd = declared(&newest_or_15(0), &SINGLE);
    herd.apply().ends_with(0);
    let build = herd.build_in_use();
    let gone = herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    gone.tells(&["WAL, backups, exports and dumps of inventory in repository main, file://", "stays"]);
    assert!(!herd.path("lib").exists());
    let kept = archived(&herd);
    assert!(!kept.is_empty());
    let copy = break_the_copy(&herd, &build);
    let apply = herd.apply().ends_with(1);
    apply.tells(&[
        "ERROR:  the WAL of inventory-a does not arrive in repository main",
        "ERROR:  the disk is on fire",
        "The archiver has failed 3 times, last with 0000000100000000",
        "was undone",
    ]);
    herd.nothing_is_left();
    assert_eq!(archived(&herd), kept);
    fs::remove_file(&copy).and_then(|()| fs::copy(binary(), &copy)).expect("it is ours");
    // What another cluster of this name archived stays apart, and the plan says so.
    herd.plan()
        .ends_with(0)
        .says(&["also holds WAL or backups of another cluster that was called inventory"]);
    herd.apply().ends_with(0);
    arrives(&herd);
}

#[test]
fn a_birth_that_is_undone_takes_its_wal_along() {
    let herd = declared(&newest_or_15(1), &PAIR);
    let mut apply = herd.start(&["apply", "--yes"]);
    // The copy for the standby finishes a segment, long before clients come in.
    until("a segment is in the repository", || {
        let found = files_below(&herd.repository());
        found.iter().any(|file| file.extension().is_some_and(|end| end == "zst")).then_some(())
    });
    apply.signal(Signal::KILL);
    apply.end();
    let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
    let id = report["clusters"][0]["operations"][0]["id"].as_str().expect("an operation").to_owned();
    herd.run(&["operation", "undo", &id, "--yes"]).ends_with(0);
    herd.nothing_is_left();
    let mut left = files_below(&herd.repository());
    left.retain(|file| !file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    assert_eq!(left, [herd.repository().join("repository.json")]);
    assert!(!herd.repository().join("inventory").exists());
    assert!(!herd.path("lib/pgherd").exists());
    herd.apply().ends_with(0);
    herd.is_as_declared();
    arrives(&herd);
}

/// A file system in memory with little room.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k,mode=0777", "tmpfs", text(&at)]);
        text_of(mount).expect("root may mount");
        Self(at)
    }

    fn grow(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,size=64m", text(&self.0)]);
        text_of(mount).expect("root may mount");
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
fn a_repository_without_room_is_told_and_everything_is_undone() {
    if !is_root() {
        return;
    }
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.keep_backups();
    let small = Small::mount(herd.repository());
    herd.apply().ends_with(1).tells(&[
        "ERROR:  the WAL of inventory-a does not arrive in repository main",
        "No space left on device",
        "was undone",
    ]);
    herd.nothing_is_left();
    small.grow();
    herd.apply().ends_with(0);
    herd.is_as_declared();
    arrives(&herd);
}

#[test]
fn a_repository_that_is_gone_is_not_made_anew() {
    let herd = declared(&newest_or_15(0), &SINGLE);
    herd.apply().ends_with(0);
    let aside = herd.path("unmounted");
    fs::rename(herd.repository(), &aside).expect("it is ours");
    herd.plan().ends_with(0).says(&[
        "No changes.",
        "the repository main of inventory is not there",
        "mounted?",
    ]);
    herd.apply().ends_with(0);
    assert!(!herd.repository().exists());
    finish_segment(&herd);
    until("the archiver fails", || (failures(&herd) != "0").then_some(()));
    assert!(!herd.repository().exists(), "{:?}", files_below(&herd.repository()));
    fs::rename(&aside, herd.repository()).expect("it is ours");
    // The archiver waits for a minute after three failures, unless something new comes.
    arrives(&herd);
}

#[test]
fn a_tablespace_in_the_repository_is_refused() {
    let mut herd = Herd::up(&newest_or_15(1), &SINGLE);
    let tablespace = herd.repository().join("space");
    fs::create_dir_all(&tablespace).expect("a directory");
    if is_root() {
        let owner = fs::metadata(herd.data("a")).expect("it is there");
        for directory in [herd.repository(), tablespace.clone()] {
            std::os::unix::fs::chown(directory, Some(owner.uid()), Some(owner.gid())).expect("root may");
        }
    }
    herd.sql("a", &format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display()));
    herd.keep_backups();
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(4).tells(&[
        "as repository main: it overlaps",
        text(&tablespace),
        "Nothing was changed.",
    ]);
    assert_eq!(herd.sql("a", "SHOW archive_mode"), "off");
}

#[test]
fn paths_with_blanks_quotes_and_percent_signs_reach_the_command_whole() {
    let mut herd = Herd::declare(&newest_or_15(0), &SINGLE);
    herd.keep_backups();
    let odd = herd.path("it's 100 %p \"odd\" $HOME");
    herd.variable("PGHERD_LIB_DIR", Some(text(&odd.join("lib"))));
    herd.variable("PGHERD_CONFIG_DIR", Some(text(&odd.join("config"))));
    herd.edit(text(&herd.repository()), text(&herd.path("the repository")));
    herd.apply().ends_with(0);
    herd.is_as_declared();
    let segment = finish_segment(&herd);
    let system = herd.sql("a", "SELECT system_identifier FROM pg_control_system()");
    let file =
        herd.path("the repository").join(format!("inventory/{system}/wal/{}/{segment}.zst", &segment[..16]));
    until("it is there", || file.is_file().then_some(()));
    assert_eq!(failures(&herd), "0");
}

/// Returns what status says of the backups, as JSON, and its problems as one text.
fn backups_status(herd: &Herd) -> (serde_json::Value, String) {
    let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
    let cluster = &report["clusters"][0];
    (cluster["backups"].clone(), cluster["problems"].to_string())
}

#[test]
fn status_tells_backup_archive_and_window_and_says_unknown_when_it_cannot_look() {
    let herd = declared(&newest_or_15(0), &SINGLE);
    herd.apply().ends_with(0);
    herd.status()
        .ends_with(0)
        .says(&["backup  none   archive 0 waiting", "WARNING  there is no backup in repository main"]);
    let (told, problems) = backups_status(&herd);
    assert_eq!(told["why"], serde_json::Value::Null);
    assert_eq!((&told["last"], &told["restorable"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(told["archive"]["on"], true);
    assert!(problems.contains("pgherd backup create"), "{problems}");

    herd.run(&["backup", "create"]).ends_with(0);
    herd.sql("a", "CREATE TABLE kept AS SELECT 1");
    arrives(&herd);
    herd.status().ends_with(0).says(&["backup  full ", " ago, ", "archive 0 waiting   restorable ", " UTC"]);
    let (told, problems) = backups_status(&herd);
    assert!(told["last"]["label"].as_str().expect("a label").ends_with("-full"), "{told}");
    assert!(told["last"]["age_seconds"].as_i64().is_some_and(|age| age < 120), "{told}");
    assert!(told["restorable"]["from"].as_str() < told["restorable"]["to"].as_str(), "{told}");
    for word in ["WAL", "backup", "restored"] {
        assert!(!problems.contains(word), "{problems}");
    }

    // An archiver that fails is told with the file and what waits.
    let copy = break_the_copy(&herd, &herd.build_in_use());
    finish_segment(&herd);
    until("the archiver fails", || (failures(&herd) != "0").then_some(()));
    herd.status().ends_with(0).says(&[
        "archive failing, 1 waiting",
        "WARNING  WAL does not get into repository main: 0000000100000000",
    ]);
    fs::remove_file(&copy).and_then(|()| fs::copy(binary(), &copy)).expect("it is ours");
    arrives(&herd);

    // A repository that is not there, and one that cannot be read, are unknown and never fine.
    let aside = herd.path("unmounted");
    fs::rename(herd.repository(), &aside).expect("it is ours");
    herd.status()
        .ends_with(0)
        .says(&["backup  unknown   archive ", "WARNING  what repository main holds is unknown: "]);
    let (told, _) = backups_status(&herd);
    assert!(told["why"].as_str().is_some_and(|why| why.contains("repository.json")), "{told}");
    fs::rename(&aside, herd.repository()).expect("it is ours");
    if is_root() {
        fs::set_permissions(herd.repository(), fs::Permissions::from_mode(0o000)).expect("root may");
        herd.status().ends_with(0).says(&["backup  unknown   archive "]);
        fs::set_permissions(herd.repository(), fs::Permissions::from_mode(0o750)).expect("root may");
    }

    // While no primary tells, what is in the repository is still told, and the archive is unknown.
    herd.stop("a", "fast");
    let (told, _) = backups_status(&herd);
    assert!(told["last"]["label"].is_string() && told["restorable"]["to"].is_string(), "{told}");
    assert_eq!(told["archive"], serde_json::Value::Null);
}
