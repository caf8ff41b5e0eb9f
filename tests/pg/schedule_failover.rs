//! Jobs that are cut in their middle: by a failover, and by their timeout. Each stops with its exit code, and the next run ends it.

use crate::drill::scratch;
use crate::herd::{Frozen, Herd, PAIR, Ran, SINGLE, until};
use crate::server::newest;

const SCHEDULES: &str = "backups: {repository: main, full: monthly 1 00:00, verify: monthly 1 01:00, \
                         verify-full: monthly 1 02:00, expire: monthly 1 03:00, keep-full: 2}";

const DRILLS: &str = "    drills:\n      restore: {to: newest, prove: [checksums], when: monthly 1 05:00}\n";

fn declared(shape: &crate::herd::Shape<'_>) -> Herd {
    let mut herd = Herd::declare(&newest(), shape);
    herd.keep_backups();
    herd.edit("backups: {repository: main}", SCHEDULES);
    herd.edit(
        "    schemas:\n",
        "    maintenance: {refresh: {sales: {when: monthly 1 04:00, views: [public.slow]}}}\n    schemas:\n",
    );
    herd.edit("    schemas:\n", &format!("{DRILLS}    schemas:\n"));
    herd.apply().ends_with(0);
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 60000) n",
    );
    herd
}

fn kept(herd: &Herd, part: &str) -> usize {
    herd.kept().with(part).len()
}

/// What a job has recorded of its last run.
fn last(herd: &Herd, job: &str) -> serde_json::Value {
    let path = herd.path(&format!("state/schedule/shop/inventory.{job}.json"));
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| "{}".to_owned());
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["last"].clone()
}

#[test]
fn a_failover_in_the_middle_of_a_job_ends_it_cleanly_and_the_next_run_does_it() {
    let herd = declared(&PAIR);
    herd.run(&["run", "inventory/full"]).ends_with(0);
    let sql = |node: &str, sql: &str| herd.sql_in(node, "inventory", sql);
    sql("a", "CREATE TABLE pace AS SELECT 60 AS seconds");
    sql(
        "a",
        "CREATE MATERIALIZED VIEW slow AS SELECT seconds, pg_sleep(seconds)::text AS slept FROM pace WITH NO DATA",
    );
    let drill = herd.start(&["run", "inventory/drill-restore"]);
    until("the drill restores a copy", || (!scratch(&herd).is_empty()).then_some(()));
    let paused = Frozen::new(drill.pid());
    let refresh = herd.start(&["run", "inventory/refresh-sales"]);
    until("the refresh is at work", || {
        let at_work = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'REFRESH%slow%'";
        (sql("a", at_work) == "1").then_some(())
    });
    let before = kept(&herd, "/data/");
    let full = herd.start(&["run", "inventory/full"]);
    until("the backup copies", || (kept(&herd, "/data/") > before).then_some(()));
    let frozen = Frozen::new(full.pid());
    // Both look at what the repository holds: that a node becomes primary meanwhile does not concern them.
    let beside: Vec<_> = ["verify", "expire"]
        .map(|job| {
            let running = herd.start(&["run", &format!("inventory/{job}")]);
            until(&format!("{job} has begun"), || last(&herd, job)["begun"].is_string().then_some(()));
            let frozen = Frozen::new(running.pid());
            (job, running, frozen)
        })
        .into();

    herd.stop("a", "immediate");
    herd.run(&["failover", "--yes"]).ends_with(0);
    drop(frozen);
    let ended = full.end();
    assert!([1, 10].contains(&ended.code), "{ended:?}");
    assert!(ended.stderr.contains("inventory/full of shop: exit code "), "{ended:?}");
    let refreshed = refresh.end().ends_with(10);
    refreshed.tells(&["ERROR:  the primary went away in the middle of maintenance"]);
    for (job, running, frozen) in beside {
        drop(frozen);
        let ended = running.end();
        // Expiry gives way to a backup that is being made.
        assert!(ended.code == 0 || job == "expire" && ended.code == 5, "{ended:?}");
    }

    drop(paused);
    // The copy is of a backup and its WAL: whoever leads meanwhile, it is proved.
    drill.end().ends_with(0);

    herd.sql_in("b", "inventory", "UPDATE pace SET seconds = 0");
    for job in ["full", "refresh-sales", "verify", "verify-full", "expire", "drill-restore"] {
        let quiet = herd.run(&["run", &format!("inventory/{job}")]).ends_with(0);
        assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""), "{job}");
        assert_eq!(last(&herd, job)["outcome"], "done", "{job}");
    }
    let backups = herd.run(&["backup", "list", "--format", "json"]).ends_with(0);
    assert_eq!(backups.stdout.matches("-full\"").count(), 2, "{}", backups.stdout);
    assert_eq!((kept(&herd, "/lease/"), scratch(&herd).len()), (0, 0));
}

#[test]
fn what_a_job_has_not_done_when_its_time_is_over_is_left_to_its_next_time() {
    let herd = declared(&SINGLE);
    let late = |job: &str, timeout: &str| -> Ran {
        herd.run(&["run", &format!("inventory/{job}"), "--timeout", timeout])
    };
    late("full", "200ms")
        .ends_with(130)
        .tells(&["inventory/full of shop: exit code 130 after ", "ended after its timeout"]);
    assert_eq!((last(&herd, "full")["outcome"].as_str(), kept(&herd, "/lease/")), (Some("failed"), 0));
    assert_eq!(kept(&herd, "/backup/"), 0, "nothing of it is left");
    herd.run(&["run", "inventory/full"]).ends_with(0);
    late("drill-restore", "1s").ends_with(130).tells(&["ended after its timeout"]);
    assert_eq!(scratch(&herd).len(), 0, "nothing of the copy is left");
    herd.run(&["run", "inventory/drill-restore"]).ends_with(0);
    for job in ["verify", "verify-full", "expire"] {
        late(job, "1ms").ends_with(130).tells(&["ended after its timeout"]);
        assert_eq!(last(&herd, job)["outcome"], "failed", "{job}");
        herd.run(&["run", &format!("inventory/{job}")]).ends_with(0);
    }
    assert_eq!(kept(&herd, "/lease/"), 0);
}
