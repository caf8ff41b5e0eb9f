//! `health` on real servers: every check fires once by what it is made for, and clears again.

use serde_json::Value;

use crate::herd::{Herd, PAIR, newest_or_15, until};

/// Judges the herd and returns the finding of one check of one thing.
pub fn finding(herd: &Herd, check: &str, subject: &str) -> Value {
    let report = herd.run(&["--format", "json", "health"]).json();
    let of = |finding: &Value| match &finding["subject"] {
        Value::String(word) => word == subject,
        named => named["node"] == subject || named["pooler"] == subject,
    };
    let findings = report["findings"].as_array().expect("a list");
    findings
        .iter()
        .find(|finding| finding["check"] == check && of(finding))
        .unwrap_or_else(|| panic!("no {check} of {subject} in {report:#}"))
        .clone()
}

/// Waits until a check of one thing has a status.
pub fn becomes(herd: &Herd, check: &str, subject: &str, status: &str) -> Value {
    until(&format!("{check} of {subject} is {status}"), || {
        let found = finding(herd, check, subject);
        (found["status"] == status).then_some(found)
    })
}

#[test]
fn a_sound_herd_is_fine_and_each_lost_node_is_told_by_what_it_is() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.run(&["health"]).ends_with(0).says(&["shop/inventory   OK", "fine      connect, primary"]);
    becomes(&herd, "lag", "b", "ok");

    herd.stop("b", "fast");
    let stopped = herd.run(&["health"]).ends_with(2);
    stopped.says(&["CRITICAL  connect  b  it is stopped", "more are not known because of that"]);
    let lag = finding(&herd, "lag", "b");
    assert_eq!((lag["status"].as_str(), lag["follows"].as_str()), (Some("unknown"), Some("connect")));
    herd.apply().ends_with(0);
    becomes(&herd, "connect", "b", "ok");
    becomes(&herd, "standbys", "b", "ok");
}
