//! A busy table for a year, on every installed major version: never late, nobody waits longer than the lock timeout, nothing deadlocks, what is kept is
//! exactly what is declared, and an exported month comes back row for row.

use std::process::{Child, Stdio};

use jiff::{Timestamp, ToSpan as _, Zoned, tz::TimeZone};

use crate::herd::{Herd, as_server};
use crate::partition::{Client, herd, server_log, sql};
use crate::server::installations;

/// Writers, until it is dropped.
struct Writers(Child);

impl Writers {
    fn start(herd: &Herd) -> Self {
        let script = herd.path("writers.sql");
        // Rows of the simulated present: from now to the end of the second month ahead.
        let text = "\\set span random(0, 60 * 24 * 3600)\n\\set who random(1, 100)\n\
            WITH now AS (SELECT at FROM public.clock), row AS (INSERT INTO inventory.moves (at, who) SELECT at + :span * interval '1 second', :who FROM now RETURNING *)\n\
            INSERT INTO public.ledger SELECT id, at, who FROM row;\n\
            INSERT INTO inventory.events (on_day, n) SELECT at::date + (:span / 86400)::int, :who FROM public.clock;\n";
        std::fs::write(&script, text).expect("writable");
        let mut command = as_server(&herd.installation().bin().join("pgbench"));
        command
            .args(["-n", "-c", "3", "-T", "600", "-U", "postgres", "-p", &herd.port("a").to_string(), "-h"])
            .arg(herd.path("state/run/inventory-a"))
            .arg("-f")
            .arg(&script)
            .arg("inventory");
        let errors = std::fs::File::create(herd.path("writers.err")).expect("writable");
        Self(command.stdout(Stdio::null()).stderr(errors).spawn().expect("pgbench starts"))
    }

    /// Ends them; a writer whose statement failed has ended before.
    fn end(mut self, herd: &Herd) {
        let said = std::fs::read_to_string(herd.path("writers.err")).expect("readable");
        assert!(
            self.0.try_wait().expect("a child").is_none() && !said.contains("ERROR"),
            "a writer failed: {said}"
        );
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        // It may have ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_busy_table_through_a_year() {
    for installation in installations() {
        let herd = herd(
            &installation,
            "      inventory.moves: {by: at, every: month, ahead: 2, keep: 3 months, then: export and drop}\n      \
             inventory.events: {by: on_day, every: month, ahead: 2, keep: 5 months, then: drop, default-partition: create}\n",
        );
        sql(&herd, "SET ROLE inventory_owner;
            CREATE TABLE inventory.people (who int PRIMARY KEY);
            CREATE TABLE inventory.moves (id bigserial, at timestamptz NOT NULL, who int REFERENCES inventory.people, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
            CREATE TABLE inventory.events (on_day date NOT NULL, n int) PARTITION BY RANGE (on_day);
            RESET ROLE; INSERT INTO inventory.people SELECT generate_series(1, 100);
            CREATE TABLE public.ledger (id bigint, at timestamptz, who int); CREATE TABLE public.clock (at timestamptz)");
        for setting in ["deadlock_timeout = '100ms'", "log_lock_waits = on"] {
            sql(&herd, &format!("ALTER SYSTEM SET {setting}"));
        }
        sql(&herd, "SELECT pg_reload_conf()");
        let end: Zoned = Timestamp::now().to_zoned(TimeZone::UTC).first_of_month().expect("a day");
        let begin = end.checked_sub(12.months()).expect("a year ago");
        let apply = |at: &Zoned| {
            let at = at.timestamp().to_string();
            herd.run(&["partition", "apply", "--at", &at, "--lock-timeout", "1s", "--tries", "20"])
                .ends_with(0);
            // The clock of the writers goes on only when what they will write has a partition: never late.
            sql(&herd, &format!("DELETE FROM public.clock; INSERT INTO public.clock VALUES ('{at}')"));
        };
        apply(&begin);
        let writers = Writers::start(&herd);
        let _reader = Client::start(
            &herd,
            "DO $$ BEGIN LOOP PERFORM count(*) FROM inventory.moves; PERFORM count(*) FROM inventory.events; PERFORM pg_sleep(0.4); COMMIT; END LOOP; END $$",
        );
        for month in 1..=12_i32 {
            let now = begin.checked_add(month.months()).expect("within the year");
            apply(&now);
            let list = herd
                .run(&["partition", "list", "--format", "json", "--at", &now.timestamp().to_string()])
                .ends_with(0)
                .json();
            for (set, kept) in list["clusters"][0]["sets"].as_array().expect("sets").iter().zip([3, 5]) {
                let facts = &set["set"];
                // The present month, two ahead, and those that ended less than `keep` ago; at the first moment of a month one ended just now.
                let expected = 3 + kept.min(month);
                let found = facts["partitions"].as_array().expect("a list");
                assert_eq!(found.len(), usize::try_from(expected).expect("small"), "{now}: {facts}");
                assert_eq!(facts["ahead"], 2, "{now}");
                assert_eq!(facts["default_rows"].as_i64().unwrap_or(0), 0, "{now}");
                assert_eq!(facts["detached"].as_array().map(Vec::len), Some(0), "{now}");
            }
        }
        writers.end(&herd);
        // Who was killed may have left a statement behind that still commits.
        let backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        crate::herd::until("the writers' sessions have ended", || {
            (sql(&herd, backends) == "0").then_some(())
        });
        let log = server_log(&herd);
        assert!(!log.contains("deadlock detected"), "{}", installation.major);
        let waits: Vec<f64> = log
            .lines()
            .filter_map(|line| {
                line.split(" acquired ").nth(1)?.split(" after ").nth(1)?.split(' ').next()?.parse().ok()
            })
            .collect();
        let longest = waits.iter().copied().fold(0.0, f64::max);
        // The lock timeout, and what a machine that is busy with other tests takes to give it back.
        assert!(longest < 1500.0, "{}: somebody waited {longest} ms", installation.major);
        // Nothing was lost: what is there and what was exported is what was written.
        let there: i64 = sql(&herd, "SELECT count(*) FROM inventory.moves").parse().expect("a number");
        let exports = herd.run(&["partition", "list", "--exported", "--format", "json"]).ends_with(0).json();
        let exports = exports["exports"].as_array().expect("a list").clone();
        let exported: i64 = exports.iter().map(|one| one["rows"].as_i64().expect("a number")).sum();
        let written: i64 = sql(&herd, "SELECT count(*) FROM public.ledger").parse().expect("a number");
        assert_eq!(there + exported, written);
        assert!(written > 100 && exports.len() == 9, "{written} rows, {} exports", exports.len());
        let month = exports[4]["partition"].as_str().expect("a name");
        herd.run(&["partition", "restore", "inventory.moves", month]).ends_with(0);
        let bounds =
            (exports[4]["from"].as_str().expect("a time"), exports[4]["to"].as_str().expect("a time"));
        let differs = sql(
            &herd,
            &format!(
                "SELECT count(*) FROM (SELECT id, at, who FROM inventory.{month} EXCEPT ALL TABLE public.ledger) d"
            ),
        );
        let missing = sql(
            &herd,
            &format!(
                "SELECT count(*) FROM (SELECT * FROM public.ledger WHERE at >= '{}Z' AND at < '{}Z' EXCEPT ALL SELECT id, at, who FROM inventory.{month}) d",
                bounds.0, bounds.1
            ),
        );
        assert_eq!((differs.as_str(), missing.as_str()), ("0", "0"));
    }
}
