//! `pgherd pooler` against a herd that runs: what it says is compared with what is done by hand.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::herd::{Herd, PAIR, as_server, newest_or_15, text, text_of};

/// Gives the pooler a command over its console, as a person would.
#[track_caller]
pub fn console(herd: &Herd, statement: &str) -> String {
    let mut psql = as_server(&herd.installation().bin().join("psql"));
    psql.args(["-XAtq", "-U", "pgbouncer", "-d", "pgbouncer", "-h", text(&herd.pooler()), "-c", statement]);
    psql.arg("-p").arg(herd.port("pooler").to_string());
    text_of(psql).unwrap_or_else(|said| panic!("{statement}: {said}"))
}

#[test]
fn what_is_done_to_a_pooler_by_hand_is_seen_told_as_a_diff_and_mended() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    let ini = herd.pooler().join("pgbouncer.ini");
    let good = fs::read_to_string(&ini).unwrap();

    let status = herd.run(&["pooler", "status", "--format", "json"]).ends_with(0).json();
    let cluster = &status["clusters"][0];
    assert_eq!(cluster["primary"], "a");
    assert_eq!(cluster["problems"], serde_json::json!([]), "{cluster:#}");
    for route in cluster["routes"].as_array().unwrap() {
        assert_eq!(route["truth"], "true", "{route}");
    }
    assert_eq!(cluster["budget"]["layouts"][0]["today"], true);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0).says(&["No changes."]);

    // What pgherd would write is what is there; no verifier is printed.
    let rendered = herd.run(&["pooler", "render"]).ends_with(0).says(&[&good, "\"app\" \"...\""]);
    assert!(!rendered.stdout.contains("SCRAM-SHA-256$"), "{}", rendered.stdout);

    fs::write(&ini, good.replace("max_client_conn = 50", "max_client_conn = 5000") + "verbose = 1\n")
        .unwrap();
    herd.run(&["pooler", "status"]).ends_with(0).says(&[
        "- max_client_conn = 5000\n",
        "- verbose = 1\n",
        "+ max_client_conn = 50\n",
        "WARNING  the pooler on local differs",
    ]);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0).says(&["PgBouncer on local"]);
    assert_eq!(fs::read_to_string(&ini).unwrap(), good);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // An alias that leads to another node than it says is false, whatever the process answers.
    let elsewhere = good.replace(&format!("port={} ", herd.port("a")), &format!("port={} ", herd.port("b")));
    fs::write(&ini, &elsewhere).unwrap();
    console(&herd, "RELOAD");
    herd.run(&["pooler", "status"]).ends_with(0).says(&["it leads to b, a standby; the primary is a"]);
    herd.run(&["pooler", "apply", "--yes"]).ends_with(0);
    herd.run(&["pooler", "status"]).ends_with(0).does_not_say("WARNING");

    // A node that was demoted by hand makes the route to it false at once.
    herd.stop("a", "fast");
    fs::write(herd.data("a").join("standby.signal"), "").unwrap();
    herd.program("pg_ctl", &["-D", text(&herd.data("a")), "-w", "-l", "/dev/null", "start"]);
    let status = herd.run(&["pooler", "status"]);
    let status = status.says(&["it leads to a, a standby"]);
    assert!(status.code == 0 || status.code == 3, "{status:?}");

    let process = herd.pgbouncer().unwrap();
    kill_process(process, Signal::STOP).unwrap();
    let begun = Instant::now();
    let frozen = herd.run(&["pooler", "status"]);
    kill_process(process, Signal::CONT).unwrap();
    frozen.ends_with(3).says(&["unknown"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
}
