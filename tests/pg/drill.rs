//! Drills of real clusters: what they prove, what they measure, and that nothing stays of them.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use rustix::process::{Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::flips::{Chance, count};
use crate::health::finding;
use crate::herd::{Herd, Ran, SINGLE, files_below, text, until};
use crate::server::{Installation, installations, newest};

const OBJECTIVES: &str =
    "objectives: {undo-mistake: {rpo: 1 h, rto: 1 h}, lose-primary: {rpo: 1 h, rto: 1 h}}";
const DRILLS: &str = "    drills:\n      restore:\n        to: newest\n        prove: [checksums, amcheck, assertions]\n        \
                      assertions:\n          rows: {database: inventory, sql: \"select count(*) = 1000 from public.stock\"}\n";

/// A herd with a backup, and rows that were written after it.
fn backed(installation: &Installation) -> Herd {
    let mut herd = Herd::declare(installation, &SINGLE);
    herd.keep_backups();
    herd.edit("objectives: {lose-primary: {rpo: 5 s, rto: 1 min}}", OBJECTIVES);
    herd.edit("    schemas:\n", &format!("{DRILLS}    schemas:\n"));
    herd.apply().ends_with(0);
    herd.back_up().ends_with(0);
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE public.stock AS SELECT n AS item, n % 7 AS pieces FROM generate_series(1, 1000) n",
    );
    herd.sql_in("a", "inventory", "CREATE INDEX ON public.stock (item)");
    archive(&herd);
    herd
}

/// Has everything that was written so far archived.
fn archive(herd: &Herd) {
    let segment = herd.sql("a", "SELECT pg_walfile_name(pg_switch_wal())");
    let archived = format!("SELECT coalesce(last_archived_wal >= '{segment}', false) FROM pg_stat_archiver");
    until("the segment is archived", || (herd.sql("a", &archived) == "t").then_some(()));
}

fn drill(herd: &Herd, more: &[&str]) -> Ran {
    let mut args = vec!["drill", "run", "restore"];
    args.extend(more);
    herd.restore(&args)
}

/// Returns the scratch directories that are there.
pub fn scratch(herd: &Herd) -> Vec<PathBuf> {
    let below = fs::read_dir(herd.path("data")).expect("it is there");
    let paths = below.map(|entry| entry.expect("readable").path());
    paths.filter(|path| text(path).contains("pgherd-drill-")).collect()
}

/// Holds nothing of a drill to be there: no directory, no process, no document that says that it runs, no lease.
#[track_caller]
fn nothing_is_left(herd: &Herd) {
    assert_eq!(scratch(herd), Vec::<PathBuf>::new());
    no_process_is_left(herd);
    assert_eq!(files_below(&herd.path("state/drills/.running")), Vec::<PathBuf>::new());
    assert_eq!(herd.kept().with("/lease/"), Vec::<String>::new());
}

#[track_caller]
fn no_process_is_left(herd: &Herd) {
    until("no process is left", || {
        let left = herd.processes().into_iter().any(|(_, line)| line.contains("pgherd-drill-"));
        (!left).then_some(())
    });
}

fn proof<'a>(report: &'a Value, name: &str) -> &'a Value {
    let proofs = report["drills"][0]["proofs"].as_array().expect("proofs");
    proofs
        .iter()
        .find(|proof| proof["name"] == name)
        .unwrap_or_else(|| panic!("no proof {name} in {report:#}"))
}

#[test]
fn a_drill_restores_proves_and_measures_and_leaves_nothing_on_every_major() {
    for installation in installations() {
        let herd = backed(&installation);
        let archived = |herd: &Herd| herd.kept().with("/wal/").len();
        let before = archived(&herd);
        let ran =
            drill(&herd, &["--format", "json", "--junit", "drill.xml", "--json", "drill.json"]).ends_with(0);
        let report = ran.json();
        assert_eq!(report["format_version"], "1.0");
        let one = &report["drills"][0];
        assert_eq!(one["verdict"], "passed", "{report:#}");
        // What it measured is what a restore is expected to take.
        let id = one["id"].as_str().expect("an id");
        let preview = ["restore", "inventory", "--preview"];
        herd.restore(&preview).ends_with(0).says(&["RTO      about", &format!("by drill {id}")]);
        let estimate = herd.restore(&[&preview[..], &["--format", "json"]].concat()).ends_with(0).json();
        assert!(estimate["estimate"]["seconds"].as_f64().expect("seconds") > 0.0, "{estimate:#}");
        for name in ["probe", "checksums", "assertion rows"] {
            assert_eq!(proof(&report, name)["held"], "yes", "{report:#}");
        }
        assert_ne!(proof(&report, "amcheck")["held"], "no", "{report:#}");
        eprintln!("{}: amcheck {}", installation.major, proof(&report, "amcheck")["found"]);
        let phases: Vec<&Value> =
            one["phases"].as_array().expect("phases").iter().map(|time| &time["phase"]).collect();
        assert_eq!(phases, ["choose", "fetch", "replay", "start", "checks"]);
        // Nothing was written since the switch, whatever the age.
        assert_eq!(one["freshness"]["written_since"], false, "{report:#}");
        let judged: Vec<&Value> = one["objectives"]
            .as_array()
            .expect("objectives")
            .iter()
            .map(|judged| &judged["objective"])
            .collect();
        assert_eq!(judged, ["lose-primary", "undo-mistake"]);
        let written: Value =
            serde_json::from_slice(&fs::read(herd.path("drill.json")).expect("written")).expect("JSON");
        assert_eq!(written, report);
        let junit = fs::read_to_string(herd.path("drill.xml")).expect("written");
        assert!(junit.contains("failures=\"0\" errors=\"0\""), "{junit}");
        nothing_is_left(&herd);
        // The copy archived nothing and the original is as it was.
        assert_eq!(archived(&herd), before);
        herd.is_as_declared();
        herd.run(&["drill", "list"]).ends_with(0).says(&["passed", "the newest archived moment"]);
    }
}

#[test]
fn a_random_second_is_drawn_again_with_its_seed() {
    let herd = backed(&newest());
    // The window has seconds in it only when the clock has moved.
    herd.sql("a", "SELECT pg_sleep(2.1)");
    herd.sql_in("a", "inventory", "CREATE TABLE public.later AS SELECT 1 AS one");
    archive(&herd);
    let draw = |more: &[&str]| {
        let mut args = vec!["--format", "json"];
        args.extend(more);
        let ran = drill(&herd, &args);
        // Before the table was made, the assertion fails; the moment is what counts here.
        assert!([0, 1].contains(&ran.code), "{}{}", ran.stdout, ran.stderr);
        ran.json()["drills"][0].clone()
    };
    let first = draw(&["--to", "random-second"]);
    let seed = first["seed"].as_u64().expect("a seed").to_string();
    let again = draw(&["--seed", &seed]);
    assert_eq!(first["target"], again["target"]);
    let reached = again["reached"]["last_transaction"].as_str().unwrap_or_default().to_owned();
    assert!(reached.as_str() <= again["target"].as_str().expect("a target"), "{again:#}");
    nothing_is_left(&herd);
}

#[test]
fn what_does_not_hold_and_what_is_missed_are_failures() {
    let mut herd = backed(&newest());
    drill(&herd, &[]).ends_with(0);
    assert_eq!(finding(&herd, "drill", "cluster")["status"], "ok");
    herd.edit("count(*) = 1000", "count(*) = 999");
    let ran = drill(&herd, &["--junit", "drill.xml"]).ends_with(1);
    ran.says(&["FAILED", "assertion rows   does not hold: it yields false"]);
    let failed = finding(&herd, "drill", "cluster");
    assert_eq!(failed["status"], "critical");
    assert!(failed["text"].as_str().unwrap().ends_with("did not pass"), "{failed}");
    let junit = fs::read_to_string(herd.path("drill.xml")).expect("written");
    assert!(junit.contains("failures=\"1\" errors=\"0\"") && junit.contains("it yields false"), "{junit}");
    for (sql, why) in [
        ("select 1", "a value of type int4"),
        ("select true, true", "2 columns"),
        ("select true from generate_series(1, 2)", "2 rows"),
        ("delete from public.stock returning true", "25006"),
        ("select true from nowhere", "42P01"),
        ("select null::boolean", "null"),
    ] {
        herd.edit("select count(*) = 999 from public.stock", sql);
        drill(&herd, &[]).ends_with(1).says(&["assertion rows   does not hold", why]);
        herd.edit(sql, "select count(*) = 999 from public.stock");
    }
    herd.edit("count(*) = 999", "count(*) = 1000");
    herd.edit("undo-mistake: {rpo: 1 h, rto: 1 h}", "undo-mistake: {rpo: 1 h, rto: 10 ms}");
    let ran = drill(&herd, &["--junit", "drill.xml"]).ends_with(1);
    ran.says(&["FAILED", "goal     undo-mistake   rto", "MISSED"]);
    let junit = fs::read_to_string(herd.path("drill.xml")).expect("written");
    assert!(junit.contains("name=\"undo-mistake rto\"") && junit.contains("declared 10 ms"), "{junit}");
    herd.edit("undo-mistake: {rpo: 1 h, rto: 10 ms}", "undo-mistake: {rpo: 1 h, rto: 1 h}");
    drill(&herd, &[]).ends_with(0);
    assert_eq!(finding(&herd, "drill", "cluster")["status"], "ok");
    nothing_is_left(&herd);
}

#[test]
fn what_cannot_be_restored_is_an_error() {
    let herd = backed(&newest());
    let kept = herd.kept();
    let wal: Vec<String> = kept.with("/wal/").into_iter().filter(|name| !name.contains(".backup")).collect();
    // One more behind it: now the one that goes is a hole.
    herd.sql_in("a", "inventory", "INSERT INTO public.stock VALUES (0, 0)");
    archive(&herd);
    let gone = wal.iter().max().expect("a segment");
    let good = kept.take(gone);
    let ran = drill(&herd, &["--junit", "drill.xml", "--json", "drill.json"]).ends_with(3);
    let name = gone.rsplit('/').next().expect("a name").replace(".zst", "");
    ran.says(&["ERROR"]).tells(&["ERROR:  ", &name]);
    let junit = fs::read_to_string(herd.path("drill.xml")).expect("written");
    assert!(junit.contains("errors=\"1\"") && junit.contains(&name), "{junit}");
    nothing_is_left(&herd);
    kept.write(gone, &good);
    drill(&herd, &[]).ends_with(1).says(&["it yields false"]);
    herd.run(&["drill", "list", "--format", "json"]).ends_with(0).says(&["\"error\"", "\"failed\""]);
}

#[test]
fn a_damaged_page_in_the_backup_is_found() {
    let herd = backed(&newest());
    herd.sql("a", "CHECKPOINT");
    let file =
        herd.data("a").join(herd.sql_in("a", "inventory", "SELECT pg_relation_filepath('public.stock')"));
    let mut bytes = fs::read(&file).expect("readable");
    bytes[5000] ^= 0x10;
    fs::write(&file, bytes).expect("it is ours");
    herd.back_up().ends_with(3);
    let ran = drill(&herd, &["--format", "json"]).ends_with(1);
    let checksums = proof(&ran.json(), "checksums").clone();
    assert_eq!(checksums["held"], "no");
    assert!(checksums["found"].as_str().expect("text").starts_with("1 pages bad"), "{checksums}");
    nothing_is_left(&herd);
}

#[test]
fn an_interrupted_drill_says_so_and_leaves_nothing() {
    let herd = backed(&newest());
    let mut running =
        herd.start_restore(&["drill", "run", "restore", "--junit", "drill.xml", "--json", "drill.json"]);
    until("the scratch directory is there", || (!scratch(&herd).is_empty()).then_some(()));
    // From the beginning on the files say that nothing is proved.
    let junit = fs::read_to_string(herd.path("drill.xml")).expect("written");
    assert!(junit.contains("errors=\"1\"") && junit.contains("did not end"), "{junit}");
    running.signal(Signal::INT);
    running.end().ends_with(130).tells(&["the drill was interrupted"]);
    let junit = fs::read_to_string(herd.path("drill.xml")).expect("written");
    assert!(junit.contains("the drill was interrupted"), "{junit}");
    nothing_is_left(&herd);
}

/// Returns the process of the copy's server.
fn server(herd: &Herd) -> Option<rustix::process::Pid> {
    let directory = scratch(herd).pop()?;
    let text = fs::read_to_string(directory.join("c/postmaster.pid")).ok()?;
    rustix::process::Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

#[test]
fn of_a_killed_drill_the_guard_ends_the_server_and_removes_the_copy() {
    let herd = backed(&newest());
    let mut running = herd.start_restore(&["drill", "run", "restore"]);
    until("the server of the copy runs", || server(&herd));
    running.signal(Signal::KILL);
    running.end();
    // A directory that only root may take out of its parent stays, empty.
    until("the guard has removed it", || {
        let files: Vec<PathBuf> =
            scratch(&herd).iter().flat_map(|directory| files_below(directory)).collect();
        files.is_empty().then_some(())
    });
    no_process_is_left(&herd);
    drill(&herd, &[]).ends_with(0).tells(&["was killed; nothing of it is left now"]);
    assert_eq!(scratch(&herd), Vec::<PathBuf>::new());
    herd.run(&["drill", "list"]).ends_with(0).says(&["error", "passed"]);
}

#[test]
fn what_a_killed_drill_and_its_guard_left_the_next_drill_ends() {
    let herd = backed(&newest());
    let mut running = herd.start_restore(&["drill", "run", "restore"]);
    let server = until("the server of the copy runs", || server(&herd));
    // Everything but the servers: the drill and what it has started, so that nobody is left to clean up.
    let children: Vec<_> = herd
        .processes()
        .into_iter()
        .filter(|(_, line)| line.contains("/pgherd") && line.trim_end().ends_with("node"))
        .collect();
    assert!(!children.is_empty(), "a guard: {:?}", herd.processes());
    for (pid, _) in children {
        kill_process(pid, Signal::KILL).expect("it runs");
    }
    running.signal(Signal::KILL);
    running.end();
    assert!(!scratch(&herd).is_empty());
    assert!(test_kill_process(server).is_ok(), "it runs on alone");
    drill(&herd, &[]).ends_with(0).tells(&["was killed; nothing of it is left now"]);
    assert_eq!(scratch(&herd), Vec::<PathBuf>::new());
    no_process_is_left(&herd);
}

#[test]
fn a_drill_that_is_killed_at_any_moment_proves_nothing_and_the_next_one_leaves_nothing() {
    let herd = backed(&newest());
    let whole = drill(&herd, &[]).ends_with(0).took;
    let mut chance = Chance::new("kills of a drill");
    for round in 0..count(2, 50) {
        let mut running = herd.start_restore(&["drill", "run", "restore", "--json", "drill.json"]);
        let moment = Instant::now() + whole.mul_f64(chance.below(1000) as f64 / 1000.0);
        until("it is time", || (Instant::now() >= moment || running.has_ended()).then_some(()));
        if round % 2 == 1 {
            for (pid, line) in herd.processes() {
                if line.trim_end().ends_with("/pgherd node") {
                    // It may have ended in between.
                    kill_process(pid, Signal::KILL).ok();
                }
            }
        }
        running.signal(Signal::KILL);
        let ended = running.end();
        if ended.code != 0 && herd.path("drill.json").exists() {
            let report = fs::read_to_string(herd.path("drill.json")).expect("readable");
            assert!(!report.contains("\"passed\""), "{ended:?}: {report}");
        }
        fs::remove_file(herd.path("drill.json")).ok();
        drill(&herd, &[]).ends_with(0);
        nothing_is_left(&herd);
        herd.is_as_declared();
    }
}

#[test]
fn a_kept_copy_is_there_and_nothing_runs_in_it() {
    let herd = backed(&newest());
    let place = herd.path("elsewhere");
    fs::create_dir(&place).expect("a directory");
    drill(&herd, &["--keep", "--scratch-dir", "elsewhere"])
        .ends_with(0)
        .tells(&[text(&place), "nothing runs there"]);
    let copy = fs::read_dir(&place).expect("it is there").next().expect("a copy").expect("readable").path();
    assert!(copy.join("c/global/pg_control").is_file());
    assert!(!copy.join("c/postmaster.pid").exists());
    assert_eq!(files_below(&herd.path("state/drills/.running")), Vec::<PathBuf>::new());
    drill(&herd, &["--scratch-dir", text(&herd.data("a"))])
        .ends_with(3)
        .tells(&["it belongs to inventory-a"]);
}
