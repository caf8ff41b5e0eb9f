//! What keeps a table from being maintained: each has its error, its evidence and the way out, and none of them stops the tables beside it.

use crate::herd::newest_or_15;
use crate::partition::{herd, sql};

/// Table, what is declared of it, how it is made, and what is said.
const CASES: &[(&str, &str, &str, &[&str])] = &[
    (
        "missing",
        "",
        "",
        &[
            "there is no table inventory.missing in database inventory",
            "create table \"inventory\".\"missing\"",
        ],
    ),
    (
        "mixedcase",
        "",
        "CREATE TABLE inventory.\"MixedCase\" (at date) PARTITION BY RANGE (at)",
        &["There is inventory.MixedCase", "exact"],
    ),
    (
        "plain",
        "",
        "CREATE TABLE inventory.plain (at timestamptz)",
        &["it is a plain table", "rename to \"plain_before\"", "partition by range (\"at\")"],
    ),
    ("a_view", "", "CREATE VIEW inventory.a_view AS SELECT current_date AS at", &["it is a view"]),
    (
        "far",
        "",
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; CREATE FOREIGN TABLE inventory.far (at date) SERVER files OPTIONS (filename '/dev/null')",
        &["it is a foreign table"],
    ),
    (
        "by_list",
        "",
        "CREATE TABLE inventory.by_list (at date) PARTITION BY LIST (at)",
        &["it is partitioned by LIST"],
    ),
    (
        "by_hash",
        "",
        "CREATE TABLE inventory.by_hash (at date) PARTITION BY HASH (at)",
        &["it is partitioned by HASH"],
    ),
    (
        "by_two",
        "",
        "CREATE TABLE inventory.by_two (at date, n int) PARTITION BY RANGE (at, n)",
        &["it is partitioned by 2 columns"],
    ),
    (
        "by_expression",
        "",
        "CREATE TABLE inventory.by_expression (at date) PARTITION BY RANGE ((at + 1))",
        &["it is partitioned by an expression"],
    ),
    (
        "by_other",
        "",
        "CREATE TABLE inventory.by_other (at date, day date) PARTITION BY RANGE (day)",
        &["it is partitioned by day, the topology says at", "Write by: day."],
    ),
    (
        "of_text",
        "",
        "CREATE TABLE inventory.of_text (at text) PARTITION BY RANGE (at)",
        &["at is of type text"],
    ),
    (
        "weeks",
        "",
        "CREATE TABLE inventory.weeks (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.w PARTITION OF inventory.weeks FOR VALUES FROM ('2026-01-05') TO ('2026-01-12')",
        &["w is not one month of UTC", "the month 2026-01 is [2026-01-01, 2026-02-01)"],
    ),
    (
        "shifted",
        "",
        "CREATE TABLE inventory.shifted (at timestamptz) PARTITION BY RANGE (at); CREATE TABLE inventory.s PARTITION OF inventory.shifted FOR VALUES FROM ('2026-01-01 05:00+00') TO ('2026-02-01 05:00+00')",
        &["s is not one month of UTC", "begin at 05:00 UTC"],
    ),
    (
        "gap",
        "",
        "CREATE TABLE inventory.gap (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.g1 PARTITION OF inventory.gap FOR VALUES FROM ('2026-01-01') TO ('2026-02-01'); CREATE TABLE inventory.g2 PARTITION OF inventory.gap FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')",
        &[
            "a gap between g1 and g2",
            "g1 [2026-01-01, 2026-02-01) is followed by g2 [2026-03-01, 2026-04-01)",
            "create table \"inventory\".\"gap_2026_02\" partition of",
        ],
    ),
    (
        "max",
        "",
        "CREATE TABLE inventory.max (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.m PARTITION OF inventory.max FOR VALUES FROM ('2026-01-01') TO (MAXVALUE)",
        &["m reaches to MAXVALUE"],
    ),
    (
        "taken",
        "",
        "CREATE TABLE inventory.taken (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.taken_2026_03 (n int)",
        &["inventory.taken_2026_03 is taken", "a table that has nothing to do with it"],
    ),
    (
        "collides",
        ", names: \"same_{year}_{month}\"",
        "CREATE TABLE inventory.collides (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.o (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.same_2026_03 PARTITION OF inventory.o DEFAULT",
        &["inventory.same_2026_03 is taken", "a partition of inventory.o"],
    ),
    (
        "full_default",
        "",
        "CREATE TABLE inventory.full_default (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.f PARTITION OF inventory.full_default DEFAULT; INSERT INTO inventory.f VALUES ('2026-03-05'), ('2026-03-07')",
        &[
            "the default partition inventory.f has rows of 2026-03",
            "It is 2 rows, from 2026-03-05 to 2026-03-07",
        ],
    ),
    (
        "no_default",
        ", default-partition: refuse",
        "CREATE TABLE inventory.no_default (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.n PARTITION OF inventory.no_default DEFAULT",
        &["it has the default partition inventory.n, and the topology refuses one"],
    ),
    (
        "no_space",
        ", tablespace: nowhere",
        "CREATE TABLE inventory.no_space (at date) PARTITION BY RANGE (at)",
        &["there is no tablespace nowhere"],
    ),
    (
        "poor",
        "",
        "CREATE ROLE poor; CREATE TABLE inventory.poor (at date) PARTITION BY RANGE (at); ALTER TABLE inventory.poor OWNER TO poor",
        &["its owner poor may not make tables in schema inventory", "grant create on schema"],
    ),
    (
        "hyper",
        "",
        "CREATE SCHEMA _timescaledb_catalog; CREATE TABLE _timescaledb_catalog.hypertable (schema_name name, table_name name); INSERT INTO _timescaledb_catalog.hypertable VALUES ('inventory', 'hyper'); CREATE TABLE inventory.hyper (at date)",
        &["it is a hypertable of TimescaleDB"],
    ),
    (
        "old",
        "",
        "CREATE TABLE inventory.old (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.o1 PARTITION OF inventory.old FOR VALUES FROM ('0099-01-01 BC') TO ('2026-01-01')",
        &["the bound of inventory.o1 cannot be read"],
    ),
    (
        "ancient",
        "",
        "CREATE TABLE inventory.ancient (at date) PARTITION BY RANGE (at); CREATE TABLE inventory.a1 PARTITION OF inventory.ancient FOR VALUES FROM ('1999-01-01') TO ('1999-02-01')",
        &["more than 120 partitions are missing"],
    ),
];

#[test]
fn every_table_that_cannot_be_maintained_says_why_and_stops_no_other() {
    let names: String = CASES
        .iter()
        .map(|(table, more, ..)| {
            format!("      inventory.{table}: {{by: at, every: month, ahead: 1{more}}}\n")
        })
        .collect();
    let herd =
        herd(&newest_or_15(0), &format!("{names}      inventory.good: {{by: at, every: month, ahead: 1}}\n"));
    for (_, _, make, _) in CASES {
        if !make.is_empty() {
            sql(&herd, make);
        }
    }
    sql(&herd, "CREATE TABLE inventory.good (at date) PARTITION BY RANGE (at)");
    let at = "2026-03-15";
    let plan = herd.run(&["partition", "plan", "--at", at, "--format", "json"]).ends_with(3).json();
    let sets = plan["clusters"][0]["sets"].as_array().expect("sets");
    for (set, (table, _, _, says)) in sets.iter().zip(CASES) {
        let failure = &set["failure"];
        let text = [&failure["what"], &failure["detail"], &failure["hint"]]
            .map(|part| part.as_str().unwrap_or_default())
            .join("\n");
        for said in *says {
            assert!(text.contains(said), "{table}: no {said:?} in\n{text}");
        }
        assert!(failure["hint"].is_string(), "{table} has no way out: {text}");
    }
    let applied = herd.run(&["partition", "apply", "--at", at]).ends_with(3);
    applied.says(&["inventory.good", "+2 (2026-03, 2026-04)"]).tells(&["it is a plain table"]);
    // What is printed for a plain table works: it becomes the first partition, and the set goes on from there.
    sql(
        &herd,
        "INSERT INTO inventory.plain SELECT '2026-01-01'::timestamptz + n * interval '1 day' FROM generate_series(1, 50) n",
    );
    let plan = herd
        .run(&["partition", "plan", "inventory.plain", "--at", at, "--format", "json"])
        .ends_with(3)
        .json();
    let hint = plan["clusters"][0]["sets"][0]["failure"]["hint"].as_str().expect("a hint").to_owned();
    let (_, conversion) = hint.split_once('\n').expect("a line of its own");
    sql(&herd, conversion);
    herd.run(&["partition", "apply", "inventory.plain", "--at", "2026-04-15"])
        .ends_with(0)
        .says(&["+1 (2026-05)"]);
    assert_eq!(sql(&herd, "SELECT count(*) FROM inventory.plain"), "50");
    // Read-only, and no primary.
    sql(&herd, "ALTER DATABASE inventory SET default_transaction_read_only = on");
    herd.run(&["partition", "apply", "inventory.good"])
        .ends_with(4)
        .tells(&["takes no writes in database inventory"]);
    herd.sql("a", "ALTER DATABASE inventory RESET default_transaction_read_only");
    herd.stop("a", "fast");
    herd.run(&["partition", "apply"])
        .ends_with(10)
        .tells(&["no primary of inventory is seen: inventory-a is stopped"]);
    herd.run(&["partition", "apply", "inventory.unknown"])
        .ends_with(10)
        .tells(&["inventory.unknown is not among the partitions of inventory"]);
}
