//! What `health` says of partitions, each state reached for real.

use serde_json::Value;

use crate::health::finding;
use crate::herd::{Herd, until};
use crate::partition::{Client, herd, sql};
use crate::server::installations;

const MOVES: &str = "inventory.moves";
const STOCK: &str = "inventory.stock";

/// Returns the finding of one check of one table, which ends so and says these texts.
#[track_caller]
fn says(herd: &Herd, (check, table): (&str, &str), status: &str, texts: &[&str]) -> Value {
    let found = finding(herd, check, table);
    assert_eq!(found["status"], status, "{found:#}");
    let text = found["text"].as_str().expect("a text");
    assert!(texts.iter().all(|wanted| text.contains(wanted)), "{texts:?} in {found:#}");
    assert!(["ok", "unknown"].contains(&status) || found["next"].is_string(), "{found:#}");
    found
}

/// Takes the last partitions away, as somebody does by hand.
fn drop_last(herd: &Herd, table: &str, count: u32) {
    sql(
        herd,
        &format!(
            "DO $$ DECLARE last text; BEGIN FOR last IN SELECT i.inhrelid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = '{table}'::regclass AND pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT' ORDER BY c.relname DESC LIMIT {count}
              LOOP EXECUTE 'DROP TABLE ' || last; END LOOP; END $$"
        ),
    );
}

fn apply(herd: &Herd) {
    herd.run(&["partition", "apply"]).ends_with(0);
}

#[test]
fn partitions_that_end_too_early_rows_in_a_default_one_and_half_a_detach_are_told_on_every_major() {
    for installation in installations() {
        let mut herd = herd(
            &installation,
            "      inventory.moves: {by: at, every: day, ahead: 5, default-partition: create}\n      \
             inventory.stock: {by: on_day, every: day, ahead: 2, keep: 3 days}\n",
        );
        let missing = says(&herd, ("partitions", MOVES), "critical", &["there is no table inventory.moves"]);
        assert_eq!(missing["next"], "pgherd --cluster inventory partition plan inventory.moves");
        sql(&herd, "SET ROLE inventory_owner; CREATE TABLE inventory.moves (at timestamptz, note text) PARTITION BY RANGE (at);
            CREATE TABLE inventory.stock (on_day date, n int) PARTITION BY RANGE (on_day)");
        says(&herd, ("partition-horizon", STOCK), "critical", &["no partition holds ", ", the present day"]);
        says(&herd, ("partitions", MOVES), "warning", &["it has no default partition"]);
        apply(&herd);
        let ahead = says(&herd, ("partition-horizon", MOVES), "ok", &["5 of 5 days ahead, up to "]);
        assert_eq!(ahead["measured"][0]["value"], 5.0, "{ahead:#}");
        says(&herd, ("default-partition", MOVES), "ok", &["inventory.moves_default is empty"]);
        for table in [MOVES, STOCK] {
            says(&herd, ("pending-detach", table), "ok", &["none"]);
            says(&herd, ("partitions", table), "ok", &["as declared"]);
        }
        horizon(&mut herd);
        default_rows(&mut herd);
        half_a_detach(&herd);
        not_as_declared(&herd);
    }
}

/// From fewer than declared to none at all, in every form that monitoring reads; and the file's own thresholds.
fn horizon(herd: &mut Herd) {
    drop_last(herd, MOVES, 3);
    says(herd, ("partition-horizon", MOVES), "warning", &["2 of 5 days ahead, up to ", ", warning up to "]);
    herd.run(&["health"]).says(&["WARNING   partition-horizon", "partition apply inventory.moves"]);
    let nagios = herd.run(&["--format", "nagios", "health"]).stdout;
    assert!(nagios.contains("inventory/partition-horizon: inventory.moves: 2 of 5 days ahead"), "{nagios}");
    let metrics = herd.run(&["--format", "prometheus", "health"]).stdout;
    let sample = "pgherd_partition_horizon{cluster=\"inventory\",herd=\"shop\",node=\"\",part=\"inventory.moves\"} 2\n";
    assert!(metrics.contains(sample), "{metrics}");
    let junit = herd.run(&["--format", "junit", "health"]).stdout;
    assert!(junit.contains("partition-horizon"), "{junit}");
    herd.edit(
        "    nodes:\n",
        "    health: {partition-horizon: {warn: 3, crit: 2}, default-partition: {warn: 2}}\n    nodes:\n",
    );
    says(herd, ("partition-horizon", MOVES), "critical", &["critical up to 2"]);
    herd.edit("partition-horizon: {warn: 3, crit: 2}", "partition-horizon: {warn: 1}");
    says(herd, ("partition-horizon", MOVES), "ok", &["2 of 5 days ahead"]);
    herd.edit("partition-horizon: {warn: 1}, ", "");
    drop_last(herd, MOVES, 2);
    says(herd, ("partition-horizon", MOVES), "critical", &["no partition holds ", ", the next day"]);
    drop_last(herd, MOVES, 1);
    says(herd, ("partition-horizon", MOVES), "critical", &["no partition holds ", ", the present day"]);
    apply(herd);
    says(herd, ("partition-horizon", MOVES), "ok", &["5 of 5 days ahead"]);
}

/// Rows whose partition nobody has made; a role that may not look says which grant it takes.
fn default_rows(herd: &mut Herd) {
    let held = ("default-partition", MOVES);
    sql(herd, "INSERT INTO inventory.moves VALUES ('2126-01-01', 'a slip of the pen')");
    says(herd, held, "ok", &["inventory.moves_default has 1 rows, from 2126-01-01"]);
    sql(herd, "INSERT INTO inventory.moves VALUES ('2126-01-03', 'another')");
    let two = says(herd, held, "warning", &["has 2 rows", "to 2126-01-03", "warning from 2 on"]);
    assert_eq!(two["next"], "pgherd --cluster inventory partition drain inventory.moves --preview");
    let hba = herd.data("a").join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).expect("it can be read");
    std::fs::write(&hba, format!("local all mon trust\n{lines}")).expect("it can be written");
    sql(
        herd,
        "CREATE ROLE mon LOGIN; GRANT pg_monitor TO mon; GRANT CONNECT ON DATABASE inventory TO mon; SELECT pg_reload_conf()",
    );
    herd.variable("PGHERD_ROLE", Some("mon"));
    until("mon is let in", || {
        herd.run(&["--format", "json", "health"]).stdout.contains("role mon may not see it").then_some(())
    });
    let hidden = says(herd, held, "unknown", &["role mon may not see it"]);
    assert_eq!(hidden["next"], "GRANT SELECT ON \"inventory\".\"moves_default\" TO \"mon\"");
    says(herd, ("partition-horizon", MOVES), "ok", &["5 of 5 days ahead"]);
    herd.variable("PGHERD_ROLE", None);
    sql(herd, "DELETE FROM inventory.moves WHERE at > '2126-01-01'");
    says(herd, held, "ok", &["has 1 rows"]);
    // Somebody keeps it to themselves: that is not waited for.
    let holder = Client::start(herd, "BEGIN; LOCK TABLE inventory.moves_default; SELECT pg_sleep(600)");
    until("it is locked", || (finding(herd, held.0, held.1)["status"] == "unknown").then_some(()));
    says(herd, held, "unknown", &["somebody keeps it locked"]);
    end(herd, holder);
    until("it is free", || (finding(herd, held.0, held.1)["status"] == "ok").then_some(()));
}

/// Ends a client; its session does not notice by itself.
fn end(herd: &Herd, client: Client) {
    drop(client);
    sql(
        herd,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()",
    );
}

/// A concurrent detach waits for a reader and is given up; the next run ends it.
fn half_a_detach(herd: &Herd) {
    let oldest =
        sql(herd, "SELECT min(relname) FROM pg_class WHERE relname LIKE 'stock\\_%' AND relkind = 'r'");
    let reader = Client::start(herd, "BEGIN; SELECT count(*) FROM inventory.stock; SELECT pg_sleep(600)");
    let reads = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%inventory.stock; SELECT pg_sleep(600)%' AND wait_event = 'PgSleep'";
    until("the reader reads", || (sql(herd, reads) == "1").then_some(()));
    let detach = format!("ALTER TABLE inventory.stock DETACH PARTITION inventory.{oldest} CONCURRENTLY");
    sql(herd, "ALTER ROLE postgres IN DATABASE inventory SET statement_timeout = '500ms'");
    herd.try_sql("a", "inventory", &detach).expect_err("somebody reads");
    sql(herd, "ALTER ROLE postgres IN DATABASE inventory RESET statement_timeout");
    let told = format!("the detach of inventory.{oldest} was begun and not ended, warning from 1 on");
    says(herd, ("pending-detach", STOCK), "warning", &[&told]);
    end(herd, reader);
    until("it is ended", || (herd.run(&["partition", "apply"]).code == 0).then_some(()));
    says(herd, ("pending-detach", STOCK), "ok", &["none"]);
}

/// What a run that was cut off has left, and what somebody has done by hand.
fn not_as_declared(herd: &Herd) {
    let of = ("partitions", MOVES);
    sql(
        herd,
        "ALTER TABLE inventory.moves_default ADD CONSTRAINT pgherd_not_moves_2125 CHECK (at < '2125-01-01' OR at >= '2125-01-02') NOT VALID",
    );
    says(herd, of, "critical", &["pgherd_not_moves_2125 of inventory.moves_default", "refuses rows"]);
    herd.run(&["partition", "apply", MOVES]).ends_with(0);
    says(herd, of, "ok", &["as declared"]);
    let before = "current_date - 40";
    sql(
        herd,
        &format!(
            "DO $$ BEGIN EXECUTE format('CREATE TABLE inventory.stock_by_hand PARTITION OF inventory.stock FOR VALUES FROM (%L) TO (%L)', {before}, {before} + 1); END $$"
        ),
    );
    says(
        herd,
        ("partitions", STOCK),
        "warning",
        &[
            "there is a gap between stock_by_hand and ",
            "stock_by_hand should have been detached more than a week ago (keep: 3 days)",
        ],
    );
}
