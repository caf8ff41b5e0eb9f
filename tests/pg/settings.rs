use std::collections::BTreeMap;

use pgherd::db::queries::settings;
use pgherd::pg::guc::{ConfContent, ConfFile, same_value};
use pgherd::pg::guc_units::{Measure, measure};

use crate::server::{Server, installations};

#[tokio::test]
async fn the_server_and_we_read_settings_alike_on_every_major() {
    for installation in installations() {
        let lines = "log_line_prefix = '%m ''[%p]\\' \\101'\nDateStyle = 'iso, dmy' # '\nmy.thing=0x1F\n\twork_mem 5MB\r\n\
                     log_timezone=Etc/UTC\nseq_page_cost = +1.5e0\nwork_mem = '6MB'\n";
        let server = Server::start(&installation, lines);
        let conn = server.connect("postgres").await;
        let major = installation.major;

        let sql = "SELECT name, unit FROM pg_settings WHERE context <> 'internal'";
        for row in conn.simple("read units", sql).await.unwrap() {
            let name = row["name"].clone().unwrap();
            assert_eq!(measure(&name), row["unit"].as_deref().map(measured_in), "{name} of {major}");
        }

        let file = server.data().join("postgresql.conf");
        let ours = ConfFile::parse(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(ours.errors, []);
        let ours: Vec<(String, String, String)> = ours
            .entries
            .into_iter()
            .filter_map(|entry| match entry.content {
                ConfContent::Setting { name, value } => Some((entry.line.to_string(), name, value)),
                ConfContent::Include(_)
                | ConfContent::IncludeIfExists(_)
                | ConfContent::IncludeDirectory(_) => None,
            })
            .collect();
        let sql = "SELECT sourceline, name, setting FROM pg_file_settings WHERE sourcefile LIKE '%/postgresql.conf' ORDER BY seqno";
        let theirs: Vec<(String, String, String)> = conn
            .simple("read pg_file_settings", sql)
            .await
            .unwrap()
            .into_iter()
            .map(|mut row| {
                let mut column = |name: &str| row.remove(name).flatten().unwrap();
                (column("sourceline"), column("name"), column("setting"))
            })
            .collect();
        assert_eq!(ours, theirs, "{major}");
        assert!(ours.len() > 10);

        for (name, value) in VALUES {
            conn.batch("set", &format!("SET {name} = '{value}'")).await.unwrap();
            let found = settings(&conn, &[name]).await.unwrap().remove(0);
            let same = |value: &str| same_value(value, &found.setting, found.unit.as_deref(), &found.vartype);
            assert!(same(value), "{name} = {value} on {major}: {found:?}");
            assert!(!same(OTHER[found.vartype.as_str()]), "{name} on {major}: {found:?}");
        }
    }
}

fn measured_in(unit: &str) -> Measure {
    match unit {
        "B" => Measure::Bytes(1),
        "kB" => Measure::Bytes(1 << 10),
        "8kB" => Measure::Bytes(8 << 10),
        "MB" => Measure::Bytes(1 << 20),
        "ms" => Measure::Milliseconds(1),
        "s" => Measure::Milliseconds(1_000),
        "min" => Measure::Milliseconds(60_000),
        _ => panic!("unit {unit}"),
    }
}

const VALUES: [(&str, &str); 15] = [
    ("work_mem", "1.1GB"),
    ("work_mem", "1234567B"),
    ("work_mem", "0x100"),
    ("temp_buffers", "9MB"),
    ("temp_buffers", "12345kB"),
    ("lock_timeout", "1.5min"),
    ("lock_timeout", "2500us"),
    ("idle_in_transaction_session_timeout", "1d"),
    ("vacuum_cost_delay", "1500us"),
    ("random_page_cost", "1.23456789"),
    ("enable_seqscan", "FALS"),
    ("synchronous_commit", "yes"),
    ("client_min_messages", "debug"),
    ("application_name", "A b"),
    ("constraint_exclusion", "Partition"),
];

static OTHER: std::sync::LazyLock<BTreeMap<&'static str, &'static str>> = std::sync::LazyLock::new(|| {
    BTreeMap::from([("integer", "77"), ("real", "77"), ("bool", "on"), ("enum", "other"), ("string", "a b")])
});
