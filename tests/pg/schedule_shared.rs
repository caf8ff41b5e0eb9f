//! Jobs that several stations share through the repository: none runs twice, each station sees how they stand, and one goes on for the other.

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;

use crate::herd::{Herd, SINGLE, text, until};
use crate::server::newest;

/// A herd whose jobs two stations share, and the state of the second one: its nodes' sockets are where they are.
fn shared() -> (Herd, String) {
    let mut herd = Herd::declare(&newest(), &SINGLE);
    herd.keep_backups();
    herd.edit("backups: {repository: main}", "backups: {repository: main, full: monthly 1 00:00}");
    herd.edit("clusters:\n", "scheduler: {lease: main, health: monthly 1 05:00}\nclusters:\n");
    herd.edit(
        "    schemas:\n",
        "    maintenance: {refresh: {sales: {when: monthly 1 00:00, views: [public.slow]}}}\n    schemas:\n",
    );
    herd.apply().ends_with(0);
    let second = herd.path("second");
    fs::create_dir(&second).unwrap();
    std::os::unix::fs::symlink(herd.path("state/run"), second.join("run")).unwrap();
    let second = text(&second).to_owned();
    (herd, second)
}

/// Makes a job due on a station: it was first seen there two months ago.
fn is_due(state: &Path, job: &str) {
    let since = Timestamp::now() - SignedDuration::from_hours(60 * 24);
    let record = format!(
        "{{\"format\": 1, \"herd\": \"shop\", \"job\": \"inventory/{job}\", \"when\": \"monthly 1 00:00\", \"zone\": \"UTC\",\n\
         \"since\": \"{since}\", \"last\": null, \"last_success\": null, \"failures\": 0}}\n"
    );
    let directory = state.join("schedule/shop");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(format!("inventory.{job}.json")), record).unwrap();
}

fn listed(herd: &Herd, job: &str) -> serde_json::Value {
    let list = herd.run(&["schedule", "list", "--format", "json"]).ends_with(0).json();
    let found = list["jobs"].as_array().unwrap().iter().find(|listed| listed["job"] == job);
    found.unwrap_or_else(|| panic!("no {job} in {list:#}")).clone()
}

#[test]
fn of_two_stations_one_runs_what_is_due_and_both_know_how_it_ended() {
    let (mut herd, second) = shared();
    for state in [herd.path("state"), Path::new(&second).to_owned()] {
        is_due(&state, "full");
    }
    let one = herd.start(&["run", "--due"]);
    herd.variable("PGHERD_STATE_DIR", Some(&second));
    let other = herd.start(&["run", "--due"]);
    for ran in [one.end().ends_with(0), other.end().ends_with(0)] {
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    }
    let backups = herd.run(&["backup", "list", "--format", "json"]).ends_with(0);
    assert_eq!(backups.stdout.matches("-full\"").count(), 1, "{}", backups.stdout);
    let seen = listed(&herd, "inventory/full");
    assert_eq!((&seen["standing"], &seen["last"]["attempt"]), (&"met".into(), &1.into()), "{seen:#}");
    // The third look, whoever has it, finds nothing to do.
    herd.run(&["run", "inventory/full", "--due"]).ends_with(0);
    herd.variable("PGHERD_STATE_DIR", None);
    herd.run(&["run", "inventory/full", "--due"]).ends_with(0);
    assert_eq!(listed(&herd, "inventory/full")["last"], seen["last"]);
    let judged = herd.run(&["health", "--format", "json"]);
    assert!(judged.stdout.contains("it ended well last"), "{}", judged.stdout);
    // Whether anybody judges the herd is judged too.
    assert_eq!(listed(&herd, "health")["standing"], "new");
    assert!(judged.stdout.contains("it has not been due yet"), "{}", judged.stdout);
}

#[test]
fn a_job_that_another_station_runs_is_left_to_it_and_taken_over_when_that_is_dead() {
    let (mut herd, second) = shared();
    let sql = |herd: &Herd, sql: &str| herd.sql_in("a", "inventory", sql);
    sql(&herd, "CREATE TABLE pace AS SELECT 60 AS seconds");
    sql(
        &herd,
        "CREATE MATERIALIZED VIEW slow AS SELECT seconds, pg_sleep(seconds)::text AS slept FROM pace WITH NO DATA",
    );
    let job = "inventory/refresh-sales";
    let mut first = herd.start(&["run", job]);
    until("the job is at work", || {
        let at_work = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'REFRESH%slow%'";
        (sql(&herd, at_work) == "1").then_some(())
    });
    herd.variable("PGHERD_STATE_DIR", Some(&second));
    let pid = format!("(pid {})", first.pid().as_raw_nonzero());
    herd.run(&["run", job])
        .ends_with(5)
        .tells(&["ERROR:  job inventory/refresh-sales runs already, on another station", &pid]);
    herd.run(&["schedule", "list"]).ends_with(0).says(&["runs since ", &pid]);
    first.signal(Signal::KILL);
    first.end().ends_with(137);
    assert_eq!(listed(&herd, job)["standing"], "failed");
    sql(&herd, "UPDATE pace SET seconds = 0");
    herd.run(&["run", job, "--wait-lock", "10s"]).ends_with(0);
    assert_eq!(listed(&herd, job)["failures"], 0);

    // Without the repository nobody knows who runs what: nothing is begun, and it is said once. What judges the herd goes on.
    fs::rename(herd.repository(), herd.path("away")).unwrap();
    is_due(Path::new(&second), "full");
    let unknown = herd.run(&["run", "--due"]).ends_with(10);
    let told = "cannot read what stations share of their jobs: repository main cannot be reached";
    assert_eq!(unknown.stderr.matches(told).count(), 1, "{}", unknown.stderr);
    herd.run(&["schedule", "list"]).ends_with(10);
    let judged = herd.run(&["run", "health"]);
    assert!(judged.code == 3 && judged.stdout.contains("UNKNOWN   jobs"), "{judged:?}");
    fs::rename(herd.path("away"), herd.repository()).unwrap();
}
