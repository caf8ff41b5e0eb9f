//! Schedules: every way in which one is refused, what is listed and rendered, and that the real crontab and systemd take what is rendered.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use insta::assert_snapshot;

const HERD: &str = "\
pgherd: 1
herd: shop
timezone: Europe/Berlin
regions: {here: {hosts: {local: local}}}
repositories: {main: {url: file:///srv/repository}}
scheduler: {jitter: 2 min, health: every 15 min}
clusters:
  inventory:
    postgres: {version: 15}
    nodes: {a: {host: local, port: 5441, data-directory: /srv/inventory-a}}
    backups: {repository: main, full: daily 02:30, verify: daily 05:00, verify-full: monthly 1 06:00, expire: daily 06:00}
    drills: {restore: {when: weekly Sun 04:00}}
    maintenance:
      vacuum: {when: daily 03:30, dead: 30 %}
      reindex: {when: weekly Sat 23:00, timeout: 2 h}
      refresh: {sales: {when: every 1 h, timeout: 20 min, views: [reporting.sales]}}
      clean: {when: daily 00:30, logs: 30 days}
    dumps: {legal: {when: weekly Mon 01:00, schemas: [orders], keep: 90 days}}
";

fn herd(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory can be made");
    fs::write(directory.path().join("pgherd.yml"), text).expect("a file can be written");
    directory
}

/// Runs pgherd as cron does: with nothing but a short PATH.
fn run(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgherd"))
        .args(args)
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("PGHERD_STATE_DIR", directory.join("state"))
        .env("PGHERD_CONFIG_DIR", directory.join("config"))
        .env("PGHERD_LIB_DIR", directory.join("lib"))
        .output()
        .expect("the binary starts")
}

fn shown(directory: &Path, args: &[&str]) -> String {
    let output = run(directory, args);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).expect("output is UTF-8");
    format!(
        "{}--- stderr\n{}--- exit {}\n",
        text(&output.stdout),
        text(&output.stderr),
        output.status.code().expect("it was not killed by a signal")
    )
}

/// Hides what differs from run to run: the directory, the program, and times to come.
fn settled(directory: &Path, text: &str) -> String {
    let real = directory.canonicalize().expect("the directory exists");
    let text =
        text.replace(&real.display().to_string(), "[DIR]").replace(&directory.display().to_string(), "[DIR]");
    let text = text.replace(env!("CARGO_BIN_EXE_pgherd"), "[PGHERD]");
    let time = |word: &str| word.len() == 16 && word.as_bytes()[4] == b'-' && word.as_bytes()[13] == b':';
    let lines = text.lines().map(|line| {
        let mut out = String::new();
        let mut rest = line;
        while let Some(at) = rest.find("20") {
            match rest.get(at..at + 16).filter(|word| time(word)) {
                Some(_) => {
                    out.push_str(&rest[..at]);
                    out.push_str("[A TIME TO COME]");
                    rest = &rest[at + 16..];
                }
                None => {
                    out.push_str(&rest[..at + 2]);
                    rest = &rest[at + 2..];
                }
            }
        }
        out + rest + "\n"
    });
    lines.collect()
}

#[test]
fn a_list_shows_every_job_before_anything_has_run() {
    let place = herd(HERD);
    assert_snapshot!(settled(place.path(), &shown(place.path(), &["schedule", "list"])));
    let json: serde_json::Value =
        serde_json::from_slice(&run(place.path(), &["schedule", "list", "--format", "json"]).stdout).unwrap();
    assert_eq!(json["timezone"], "Europe/Berlin");
    assert_eq!(json["jobs"][0]["job"], "inventory/full");
    assert_eq!(json["jobs"][0]["standing"], "unseen");
    assert_eq!(json["jobs"].as_array().unwrap().len(), 11);
}

#[test]
fn the_line_that_is_rendered_for_cron_is_taken_by_crontab() {
    let place = herd(HERD);
    let rendered = shown(place.path(), &["schedule", "render", "--as", "cron"]);
    assert_snapshot!(settled(place.path(), &rendered));
    let lines = run(place.path(), &["schedule", "render", "--as", "cron"]).stdout;
    let file = place.path().join("crontab");
    fs::write(&file, &lines).unwrap();
    // Debian's crontab checks a file with -n and installs nothing.
    let taken =
        Command::new("crontab").arg("-n").arg(&file).output().expect("scripts/setup --test installs cron");
    assert!(taken.status.success(), "{taken:?}");
    fs::write(&file, String::from_utf8(lines).unwrap().replace("*/15", "*/nothing")).unwrap();
    let refused = Command::new("crontab").arg("-n").arg(&file).output().unwrap();
    assert!(!refused.status.success(), "a check that takes everything: {refused:?}");
}

#[test]
fn the_units_that_are_rendered_are_taken_by_systemd_as_they_are() {
    let place = herd(HERD);
    let units = place.path().join("units");
    fs::create_dir(&units).unwrap();
    let wrote =
        run(place.path(), &["schedule", "render", "--as", "systemd", "--to-dir", units.to_str().unwrap()]);
    assert!(wrote.status.success(), "{wrote:?}");
    let mut files: Vec<_> = fs::read_dir(&units).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 22);
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .args(&files)
        .output()
        .expect("scripts/setup --test installs systemd");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("pgherd-job")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
    for schedule in
        ["*-*-* 02:30:00 Europe/Berlin", "*-*-* *:00/15:00 UTC", "Sun *-*-* 04:00:00 Europe/Berlin"]
    {
        let timer = files.iter().map(|file| fs::read_to_string(file).unwrap());
        assert!(
            timer.into_iter().any(|text| text.contains(&format!("OnCalendar={schedule}\n"))),
            "{schedule}"
        );
    }
}

#[test]
fn a_job_that_there_is_not_is_told_with_its_neighbour() {
    let place = herd(HERD);
    assert_snapshot!(settled(place.path(), &shown(place.path(), &["run", "inventory/ful"])));
    let text = HERD
        .replace(
            ", full: daily 02:30, verify: daily 05:00, verify-full: monthly 1 06:00, expire: daily 06:00",
            "",
        )
        .replace("scheduler: {jitter: 2 min, health: every 15 min}\n", "");
    let none = herd(text.split("    drills:").next().unwrap());
    assert_snapshot!(settled(none.path(), &shown(none.path(), &["run", "--due"])));
}

#[test]
fn what_is_not_due_is_not_run_and_nothing_is_said() {
    let place = herd(HERD);
    // The first look begins the records; no server is there that anything could be asked of.
    for _ in 0..2 {
        assert_eq!(shown(place.path(), &["run", "--due"]), "--- stderr\n--- exit 0\n");
    }
    let record = place.path().join("state/schedule/shop/inventory.full.json");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains("\"last\": null"), "{text}");
}

#[test]
fn a_timer_of_its_own_that_fires_for_the_first_time_is_not_told_to_wait_for_the_second() {
    let place = herd(&HERD.replace("health: every 15 min", "health: every 5 min"));
    let first = shown(place.path(), &["run", "health", "--due", "--jitter", "0s"]);
    assert!(first.contains("health of shop, due at "), "{first}");
    assert_eq!(
        shown(place.path(), &["run", "health", "--due", "--jitter", "0s"]),
        "--- stderr\n--- exit 0\n"
    );
}

#[test]
fn what_was_missed_is_run_once_everything_is_said_of_its_failure_and_it_waits() {
    let place = herd(HERD);
    run(place.path(), &["run", "--due"]);
    let record = place.path().join("state/schedule/shop/inventory.vacuum.json");
    let text = fs::read_to_string(&record).unwrap();
    let since = text.lines().find(|line| line.contains("since")).unwrap().to_owned();
    fs::write(&record, text.replace(&since, "  \"since\": \"2026-01-01T00:00:00Z\",")).unwrap();
    // There is no cluster: what cannot be reached is tried again, and not at once.
    let failed = shown(place.path(), &["run", "inventory/vacuum", "--due", "--jitter", "0s"]);
    assert!(failed.contains("ERROR:  cannot tell the primary of inventory"), "{failed}");
    assert!(failed.contains("inventory/vacuum of shop, due at "), "{failed}");
    assert!(failed.ends_with("--- exit 10\n"), "{failed}");
    assert_eq!(
        shown(place.path(), &["run", "inventory/vacuum", "--due", "--jitter", "0s"]),
        "--- stderr\n--- exit 0\n"
    );
    let list = shown(place.path(), &["schedule", "list"]);
    let line = list.lines().find(|line| line.contains("inventory/vacuum")).unwrap();
    assert!(line.contains("exit code 10 at "), "{line}");
    // A killed run has no end in its record; it is tried again at once.
    let text = fs::read_to_string(&record).unwrap();
    let begun = text.lines().find(|line| line.contains("\"ended\"")).unwrap().to_owned();
    let killed = text
        .replace(&begun, "    \"ended\": null,")
        .replace("\"outcome\": \"again\"", "\"outcome\": null")
        .replace("\"exit\": 10", "\"exit\": null");
    fs::write(&record, killed).unwrap();
    let again = shown(place.path(), &["run", "--due", "--jitter", "0s"]);
    assert!(again.contains("cannot tell the primary"), "{again}");
    assert!(fs::read_to_string(&record).unwrap().contains("\"attempt\": 2"));
    // A record that is damaged is told, and keeps no other job from being looked at.
    fs::write(place.path().join("state/schedule/shop/inventory.full.json"), "{").unwrap();
    let looked = place.path().join("state/schedule/shop/health.json");
    fs::remove_file(&looked).unwrap();
    let damaged = shown(place.path(), &["run", "--due", "--jitter", "0s"]);
    assert!(
        damaged.contains("ERROR:  could not read the record ") && damaged.ends_with("--- exit 1\n"),
        "{damaged}"
    );
    assert!(looked.exists());
}

/// Holds a part of a topology to be refused in these words.
#[track_caller]
fn refuses(from: &str, to: &str, wanted: &str) {
    assert!(HERD.contains(from), "no {from:?}");
    let place = herd(&HERD.replace(from, to));
    let said = shown(place.path(), &["validate"]);
    assert!(said.contains(wanted), "no {wanted:?} in\n{said}");
    assert!(said.ends_with("--- exit 2\n"), "{said}");
}

#[test]
fn what_is_wrong_with_a_schedule_is_told_with_its_place_and_what_to_write() {
    refuses(
        "full: daily 02:30",
        "full: daily 2:30",
        "pgherd.yml:11:39: clusters.inventory.backups.full: \"2:30\" is no time of a day\nHINT:   Write hours and minutes, such as 02:00 or 23:30.",
    );
    refuses(
        "full: daily 02:30",
        "full: every 7 h",
        "\"every 7 h\" does not divide an hour or a day\nHINT:   Write minutes that divide",
    );
    refuses(
        "full: daily 02:30",
        "full: {daily: 02:30}",
        "must be a schedule such as \"daily 02:00\", found a mapping",
    );
    refuses(
        "full: daily 02:30",
        "full: weekly Sunday 02:30",
        "\"Sunday\" is no day of the week\nHINT:   Write Mon, Tue",
    );
    refuses(
        "monthly 1 06:00",
        "monthly 31 06:00",
        "\"31\" is no day that every month has\nHINT:   Write a day from 1 to 28.",
    );
    refuses(
        "full: daily 02:30",
        "full: 0 2 * * *",
        "\"0 2 * * *\" is no schedule\nHINT:   Write \"every 6 h\", \"daily 02:00\"",
    );
    refuses(
        "full: daily 02:30",
        "full: daily 02:30, incremental: every 6 h",
        "unknown key \"incremental\" in clusters.inventory.backups",
    );
    refuses(
        "when: daily 03:30, dead: 30 %",
        "dead: 30 %",
        "clusters.inventory.maintenance.vacuum has no \"when\"\nHINT:   Add it: when: daily 03:00.",
    );
    refuses("dead: 30 %", "dead: 30", "maintenance.vacuum.dead must be a share such as 20 %, found a number");
    refuses("dead: 30 %", "dead: 0 %", "maintenance.vacuum.dead must be from 1 % to 99 %");
    refuses("timeout: 2 h", "timeout: 2 days", "maintenance.reindex.timeout must be from 1 min to 1 d");
    refuses(
        "views: [reporting.sales]",
        "views: [sales]",
        "refresh.sales.views: \"sales\" is not SCHEMA.NAME",
    );
    refuses("views: [reporting.sales]", "views: []", "refresh.sales.views names nothing");
    refuses(
        "views: [reporting.sales]",
        "views: [reporting.sales, reporting.sales]",
        "names reporting.sales twice",
    );
    refuses(", views: [reporting.sales]", "", "refresh.sales has no \"views\"");
    refuses("logs: 30 days", "logs: 3 h", "maintenance.clean.logs must be a day or more");
    refuses("schemas: [orders], ", "schemas: [], ", "clusters.inventory.dumps.legal.schemas names nothing");
    refuses("keep: 90 days", "keep: 3 h", "dumps.legal.keep must be a day or more");
    refuses("when: weekly Mon 01:00, ", "", "dumps.legal has no \"when\"");
    refuses(
        "    maintenance:\n",
        "    maintenance:\n      partitions: {when: daily 01:00}\n",
        "clusters.inventory.maintenance.partitions has nothing to do: inventory declares no partitions",
    );
    refuses("jitter: 2 min", "jitter: 2 h", "scheduler.jitter must be 1 h at most");
    refuses("jitter: 2 min", "host: local", "unknown key \"host\" in scheduler");
}

#[test]
fn a_scheduler_whose_stations_would_run_every_job_twice_is_refused() {
    let scheduler = "jitter: 2 min";
    refuses(scheduler, "hosts: []", "scheduler.hosts names no host");
    refuses(scheduler, "hosts: [locall]", "unknown host \"locall\"\nDETAIL: Declared: local.");
    refuses(scheduler, "hosts: [local, local]", "host in scheduler.hosts");
    let two = HERD
        .replace("hosts: {local: local}", "hosts: {local: local, db2: 192.0.2.2}")
        .replace(scheduler, "hosts: [local, db2]");
    let place = herd(&two);
    let said = shown(place.path(), &["validate"]);
    assert!(said.contains("several hosts would each run every job"), "{said}");
    assert!(said.contains("HINT:   Add lease: main to the scheduler, or name one host."), "{said}");
    let place = herd(&two.replace("hosts: [local, db2]", "hosts: [local, db2], lease: main"));
    let said = shown(place.path(), &["validate"]);
    assert!(said.ends_with("--- exit 0\n"), "{said}");
    refuses(scheduler, "lease: mein", "unknown repository \"mein\"\nDETAIL: Declared: main.");
    refuses(
        "repositories: {main: {url: file:///srv/repository}}\nscheduler: {jitter: 2 min",
        "repositories: {main: {url: file:///srv/repository}, other: {url: file:///srv/other}}\nscheduler: {lease: other",
        "scheduler.lease names other, which no cluster is backed up to",
    );
    refuses(
        scheduler,
        "install: cron",
        "scheduler.install says what starts the jobs, and nothing says where",
    );
    refuses(scheduler, "hosts: [local], install: at", "scheduler.install must be");
}
