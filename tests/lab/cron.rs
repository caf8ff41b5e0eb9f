//! Jobs that cron and systemd really start: as apply has installed them, with their failures told, and after the host was off.

use std::fmt::Write as _;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::{Lab, told};
use super::services::newest_server;

const HOST: &str = "db1";
const TOPOLOGY: &str = "/etc/pgherd/pgherd.yml";
const RECORDS: &str = "/var/lib/pgherd/schedule/shop";
/// cron looks once a minute, and a timer fires at the full minute; the rest is for a machine on which other tests run.
const A_MINUTE: Duration = Duration::from_secs(150);

/// A host with a cluster, and jobs that are due every minute: one that ends well, one that fails, and one that is due once a day.
struct Station {
    lab: Lab,
    postgres: String,
    /// A clock time that has just passed, in UTC.
    daily: String,
}

impl Station {
    fn up() -> Option<Self> {
        let lab = Lab::up(&[HOST])?;
        let (major, bin) = newest_server();
        let postgres = format!("{{version: {major}, bin-directory: {bin}, tune: {{memory: 256 MiB}}}}");
        let daily = lab.prints(HOST, &["date", "--utc", "--date=2 hours ago", "+%H:%M"]);
        Some(Self { lab, postgres, daily })
    }

    /// Writes the topology, with these keys of the scheduler.
    fn declare(&self, scheduler: &str) {
        let postgres = &self.postgres;
        let topology = format!(
            "pgherd: 1\nherd: shop\nregions: {{here: {{hosts: {{{HOST}: local}}}}}}\nscheduler: {scheduler}\n\
             clusters:\n  inventory:\n    postgres: {postgres}\n    nodes:\n      \
             a: {{host: {HOST}, port: 5441, data-directory: /var/lib/pgherd/inventory-a}}\n    maintenance:\n      \
             vacuum: {{when: every 1 min}}\n      \
             refresh: {{gone: {{when: every 1 min, views: [public.gone]}}}}\n"
        );
        let write = format!("mkdir -p /etc/pgherd && printf '%s' '{topology}' > {TOPOLOGY}");
        self.sh(&write);
    }

    /// The same, which apply installs; the daily job is the judgement of the herd, which needs no server.
    fn declare_with(&self, install: &str) {
        self.declare(&format!("{{hosts: [{HOST}], {install}, health: daily {}}}", self.daily));
    }

    fn sh(&self, script: &str) -> String {
        self.lab.prints(HOST, &["sh", "-c", script])
    }

    fn pgherd(&self, args: &[&str]) -> Output {
        self.lab.console(HOST, &[&[env!("CARGO_BIN_EXE_pgherd")], args].concat())
    }

    /// Runs pgherd, which must end with this code.
    fn ends(&self, args: &[&str], code: i32) -> String {
        let output = self.pgherd(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        told(&output)
    }

    fn listed(&self, job: &str) -> Value {
        let output = self.pgherd(&["schedule", "list", "--format", "json"]);
        let list: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)));
        let found = list["jobs"].as_array().unwrap().iter().find(|listed| listed["job"] == job);
        found.unwrap_or_else(|| panic!("no {job} in {list:#}")).clone()
    }

    fn last_success(&self, job: &str) -> String {
        self.listed(job)["last_success"]["begun"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a job has ended well, later than it had.
    fn runs_again(&self, job: &str) {
        let before = self.last_success(job);
        self.comes(&format!("{job} runs again"), || self.last_success(job) > before);
    }

    fn comes(&self, what: &str, mut is: impl FnMut() -> bool) {
        let deadline = Instant::now() + A_MINUTE;
        while !is() {
            assert!(Instant::now() < deadline, "not seen: {what}\n{}", self.evidence());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn evidence(&self) -> String {
        let mut text = String::new();
        for script in [
            "cat /etc/cron.d/pgherd-shop",
            "journalctl --no-pager --lines=60 --output=short",
            "systemctl list-timers --all --no-pager",
            "cat /var/tmp/mail",
            "cat /var/lib/pgherd/schedule/shop/*.json",
        ] {
            let output = self.lab.console(HOST, &["sh", "-c", script]);
            writeln!(text, "---- {script}\n{}", told(&output)).unwrap();
        }
        text
    }

    /// Turns the host off and on, and has its record say that the daily job was first seen the day before yesterday.
    fn misses_the_daily_job(&self) {
        let ago = self.sh("date --utc --date='2 days ago' +%Y-%m-%dT%H:%M:%SZ");
        let record = format!("{RECORDS}/health.json");
        // systemd knows by the time of this file when it started the job last (systemd.timer(5), Persistent=).
        let stamp = "/var/lib/systemd/timers/stamp-pgherd-job.shop.health.timer";
        self.sh(&format!(
            "sed -i 's/\"since\": \"[^\"]*\"/\"since\": \"{ago}\"/' {record} && \
             if test -e {stamp}; then touch --date='2 days ago' {stamp}; fi"
        ));
        self.lab.power_off(HOST);
        self.lab.power_on(HOST);
    }

    /// The daily job was missed: it is run once, for its last time.
    fn makes_up_for_it(&self) {
        self.comes("the missed job runs", || !self.last_success("health").is_empty());
        let run = self.listed("health");
        let due = run["last_success"]["due"].as_str().unwrap_or_default();
        assert!(due.contains(&format!("T{}", self.daily)), "{run:#}");
        assert_eq!(run["last_success"]["attempt"], 1, "{run:#}");
    }
}

#[test]
fn cron_starts_what_apply_has_installed_mails_what_fails_and_makes_up_for_what_was_missed() {
    let Some(station) = Station::up() else { return };
    station.declare_with("install: cron");
    // What cron hands its mail to.
    station.sh(
        "printf '#!/bin/sh\\nexec cat >> /var/tmp/mail\\n' > /usr/sbin/sendmail && chmod 755 /usr/sbin/sendmail && \
         systemctl enable --now cron",
    );
    let applied = station.ends(&["apply", "--yes"], 0);
    assert!(applied.contains("cron: /etc/cron.d/pgherd-shop, for 3 jobs"), "{applied}");
    station.ends(&["plan", "--detailed-exitcode"], 0);

    station.runs_again("inventory/vacuum");
    let mail = || station.sh("cat /var/tmp/mail 2>/dev/null || true");
    station.comes("the mail", || mail().contains("there is no materialized view public.gone"));
    let mail = mail();
    assert!(mail.contains("run --due") && mail.contains("inventory/refresh-gone of shop, due at "), "{mail}");
    assert!(!mail.contains("inventory/vacuum"), "what ends well says nothing: {mail}");

    // Somebody edits it: that is told, and mended.
    station.sh("sed -i 's/^\\* /*\\/5 /' /etc/cron.d/pgherd-shop");
    let drift = station.ends(&["plan", "--detailed-exitcode"], 2);
    assert!(drift.contains("/etc/cron.d/pgherd-shop is not what pgherd writes"), "{drift}");
    station.ends(&["apply", "--yes"], 0);
    station.ends(&["plan", "--detailed-exitcode"], 0);

    station.misses_the_daily_job();
    station.makes_up_for_it();
    station.ends(&["apply", "--yes"], 0);

    station.ends(&["destroy", "inventory", "--confirm", "inventory"], 0);
    assert_eq!(station.sh("ls /etc/cron.d | grep pgherd || true"), "");
}

#[test]
fn systemd_starts_what_apply_has_installed_tells_what_fails_and_makes_up_for_what_was_missed() {
    let Some(station) = Station::up() else { return };
    station.declare_with("install: systemd");
    // Whoever is to be told, as systemd.unit(5) has it: beside the units that pgherd writes.
    station.sh("mkdir -p /etc/systemd/system/pgherd-job.shop.inventory.refresh-gone.service.d && \
         printf '[Unit]\\nOnFailure=tell@%%n.service\\n' \
             > /etc/systemd/system/pgherd-job.shop.inventory.refresh-gone.service.d/tell.conf && \
         printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c \"echo %%i >> /var/tmp/mail\"\\n' \
             > /etc/systemd/system/tell@.service");
    let applied = station.ends(&["apply", "--yes"], 0);
    assert!(applied.contains("3 timers of systemd, for 3 jobs"), "{applied}");
    station.ends(&["plan", "--detailed-exitcode"], 0);
    // A job counts from then on, although nobody has looked for it yet.
    assert_eq!(station.listed("health")["standing"], "new");
    let timer = "pgherd-job.shop.inventory.vacuum.timer";
    assert_eq!(
        station.sh(&format!("systemctl is-enabled {timer} && systemctl is-active {timer}")),
        "enabled\nactive"
    );

    station.runs_again("inventory/vacuum");
    let failed = "pgherd-job.shop.inventory.refresh-gone.service";
    station.comes("who is told", || station.sh("cat /var/tmp/mail 2>/dev/null || true").contains(failed));
    let journal = station.sh(&format!("journalctl --unit {failed} --output=cat --no-pager"));
    assert!(journal.contains("there is no materialized view public.gone"), "{journal}");
    let quiet =
        station.sh("journalctl --unit pgherd-job.shop.inventory.vacuum.service --output=cat --no-pager");
    assert!(!quiet.contains("inventory   "), "what ends well says nothing: {quiet}");

    // A timer that was switched off is told, and switched on.
    station.sh(&format!("systemctl disable --now {timer}"));
    let drift = station.ends(&["plan", "--detailed-exitcode"], 2);
    assert!(drift.contains(&format!("{timer} is not enabled")), "{drift}");
    station.ends(&["apply", "--yes"], 0);
    station.runs_again("inventory/vacuum");

    // What fails waits for its next time; what cannot get at the server is started again before, here within seconds.
    let restarts = |job: &str| {
        let unit = format!("pgherd-job.shop.inventory.{job}.service");
        station.sh(&format!("systemctl show --property=NRestarts --value {unit}"))
    };
    assert_eq!(restarts("refresh-gone"), "0");
    let drop_in = "/etc/systemd/system/pgherd-job.shop.inventory.vacuum.service.d";
    station.sh(&format!(
        "mkdir {drop_in} && printf '[Service]\\nRestartSec=2s\\n' > {drop_in}/soon.conf && systemctl daemon-reload && \
         kill -INT $(head -n 1 /var/lib/pgherd/inventory-a/postmaster.pid)"
    ));
    station.comes("a job without a server is started again", || restarts("vacuum") != "0");
    station.sh(&format!("rm -r {drop_in} && systemctl daemon-reload"));

    station.misses_the_daily_job();
    station.makes_up_for_it();
    station.ends(&["apply", "--yes"], 0);

    // Another thing shall start them: the units go.
    station.declare_with("install: cron");
    station.ends(&["apply", "--yes"], 0);
    assert_eq!(station.sh("ls /etc/systemd/system | grep -E 'pgherd-job.*(service|timer)$' || true"), "");
    assert_eq!(station.sh("ls /etc/cron.d | grep pgherd"), "pgherd-shop");
    // And nothing shall: all of it goes.
    station.declare("{jitter: 1 min}");
    let shown = station.ends(&["plan", "--detailed-exitcode"], 2);
    assert!(shown.contains("/etc/cron.d/pgherd-shop is not asked for"), "{shown}");
    station.ends(&["apply", "--yes"], 0);
    station.ends(&["plan", "--detailed-exitcode"], 0);
    assert_eq!(station.sh("ls /etc/cron.d | grep pgherd || true"), "");
}

#[test]
fn a_user_who_is_not_root_gets_a_block_in_their_crontab_and_keeps_every_other_line() {
    let Some(station) = Station::up() else { return };
    station.declare("{hosts: [db1], install: cron}");
    let own = "MAILTO=dba@example.org\n0 3 * * * /usr/local/bin/own";
    station.sh(&format!(
        "useradd --create-home --shell /bin/sh oncall && systemctl enable --now cron && \
         sed -i s:/var/lib/pgherd/inventory-a:/home/oncall/inventory-a: {TOPOLOGY} && \
         printf '{}\\n' | crontab -u oncall -",
        own.replace('\n', "\\n")
    ));
    let as_user = |args: &[&str], code: i32| {
        let user = ["setpriv", "--reuid=oncall", "--regid=oncall", "--init-groups", "--", "env", "-i"];
        let env = ["HOME=/home/oncall", "USER=oncall", "PATH=/usr/bin:/bin", env!("CARGO_BIN_EXE_pgherd")];
        let output = station.lab.console(HOST, &[&user[..], &env[..], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", told(&output));
        told(&output)
    };
    let applied = as_user(&["apply", "--yes"], 0);
    assert!(applied.contains("crontab of oncall, for 2 jobs"), "{applied}");
    as_user(&["plan", "--detailed-exitcode"], 0);
    as_user(&["run", "--due"], 0);
    let crontab = station.sh("crontab -u oncall -l");
    assert!(crontab.starts_with(own) && crontab.contains("# BEGIN pgherd shop: "), "{crontab}");
    let record = "/home/oncall/.local/state/pgherd/schedule/shop/inventory.vacuum.json";
    station
        .comes("cron runs the job as the user", || station.sh(&format!("cat {record}")).contains("\"done\""));

    station.sh(&format!("sed -i 's/install: cron/install: systemd/' {TOPOLOGY}"));
    let refused = as_user(&["plan"], 4);
    assert!(refused.contains("oncall may not install units"), "{refused}");
    station.sh(&format!("sed -i 's/install: systemd/install: cron/' {TOPOLOGY}"));
    as_user(&["destroy", "inventory", "--confirm", "inventory"], 0);
    assert_eq!(station.sh("crontab -u oncall -l"), own);
}
