//! Two stations with the same schedule: one runs a job, the other waits for it, and goes on when the first is gone or cut off.

use std::process::Child;
use std::time::{Duration, Instant};

use super::lab::{Lab, eventually, say, told};
use super::services::newest_server;
use super::station::{OPS, PORT, Station, Way, ended};

const OTHER: &str = "ops2";
const DB: &str = "db1";
const JOB: &str = "inventory/refresh-sales";
const WAYS: [Way<'_>; 1] = [Way { host: DB, user: "root", through: None }];

struct Stations<'a> {
    lab: &'a Lab,
    first: Station<'a>,
    other: Station<'a>,
}

impl<'a> Stations<'a> {
    fn furnish(lab: &'a Lab) -> Self {
        let (major, bin) = newest_server();
        let first = Station::furnish(lab, &bin, &WAYS);
        let other = Station::another(lab, OTHER, &bin, &WAYS);
        let topology = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{{DB}: {}}}}}}}\n\
             repositories: {{main: {{url: \"file:///srv/repository\"}}}}\nscheduler: {{lease: main}}\n\
             clusters:\n  inventory:\n    ports: {{postgres: {PORT}}}\n    \
             postgres: {{version: {major}, bin-directory: {bin}, tune: {{memory: 256 MiB}}}}\n    \
             nodes: {{a: {{host: {DB}, data-directory: /srv/inventory-a}}}}\n    backups: {{repository: main}}\n    \
             maintenance: {{refresh: {{sales: {{when: monthly 1 00:00, views: [public.slow]}}}}}}\n",
            lab.address(DB)
        );
        for station in [&first, &other] {
            station.write("/home/oncall/pgherd.yml", &topology);
        }
        first.done(&["apply", "--yes"]);
        let stations = Self { lab, first, other };
        stations.sql("CREATE TABLE pace AS SELECT 600 AS seconds");
        stations.sql(
            "CREATE MATERIALIZED VIEW slow AS SELECT seconds, pg_sleep(seconds)::text AS slept FROM pace WITH NO DATA",
        );
        stations
    }

    fn sql(&self, sql: &str) -> String {
        self.first.sql(DB, "a", "inventory", sql).expect("the primary answers")
    }

    /// Has the first station begin the job, which then does not end by itself.
    fn begin(&self) -> Child {
        let job = self.first.begin(&["run", JOB]);
        let at_work = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'REFRESH%slow%'";
        assert!(eventually(|| self.sql(at_work) == "1"), "the job is not at work");
        job
    }

    /// What the server still does for a station that is gone.
    fn end_what_is_left(&self) {
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'REFRESH%slow%'");
    }

    /// The other station has the job as soon as nobody else has.
    fn other_goes_on(&self) {
        self.sql("UPDATE pace SET seconds = 0");
        let since = Instant::now();
        self.other.done(&["run", JOB, "--wait-lock", "4 min"]);
        say(&format!("stations: the other one had the job after {:.0} s", since.elapsed().as_secs_f64()));
        let job = self.other.json(&["schedule", "list"])["jobs"][0].clone();
        assert_eq!(
            (&job["failures"], &job["last_success"]["by"]["host"]),
            (&0.into(), &OTHER.into()),
            "{job:#}"
        );
        self.sql("UPDATE pace SET seconds = 600");
    }
}

#[test]
fn a_job_of_a_station_that_is_gone_or_cut_off_is_run_by_the_other_one() {
    let Some(lab) = Lab::up(&[OPS, OTHER, DB]) else { return };
    let stations = Stations::furnish(&lab);
    let job = stations.begin();
    let refused = stations.other.ends(&["run", JOB], 5);
    assert!(
        refused.contains("runs already, on another station") && refused.contains("oncall on ops "),
        "{refused}"
    );

    // The way to the repository is cut: it ends what it does before anybody else may have the turn.
    stations.lab.cut(OPS);
    let since = Instant::now();
    let output = ended(job);
    assert!(since.elapsed() < Duration::from_secs(90), "{:?}", since.elapsed());
    assert!(output.status.code().is_some_and(|code| code != 0), "{}", told(&output));
    say(&format!(
        "stations: cut off, it ended after {:.0} s with {}\n{}",
        since.elapsed().as_secs_f64(),
        output.status,
        told(&output)
    ));
    stations.end_what_is_left();
    stations.other_goes_on();
    stations.first.mend();
    stations.other.only_ssh();

    let job = stations.begin();
    stations.lab.power_off(OPS);
    ended(job);
    stations.end_what_is_left();
    stations.other_goes_on();
    stations.lab.power_on(OPS);
    let seen = stations.first.json(&["schedule", "list"])["jobs"][0].clone();
    assert_eq!(seen["last_success"]["by"]["host"], OTHER, "{seen:#}");
}
