//! `fence` and `unfence`: what is fenced stays down, or comes up as a standby.

use crate::herd::{Frozen, Herd, PAIR, as_server, newest_or_15, text, text_of, until};

/// Starts a node as somebody would who knows nothing of pgherd.
fn start_by_hand(herd: &Herd, node: &str) {
    let log = herd.path(&format!("state/log/inventory-{node}/startup.log"));
    let program = herd.installation().bin().join("pg_ctl");
    // A postmaster that was killed holds its lock file until whoever started it has noticed.
    until(&format!("{node} starts; its log: {}", log.display()), || {
        let mut command = as_server(&program);
        command.args(["-D", text(&herd.data(node)), "-w", "-l", text(&log), "start"]);
        text_of(command).ok()
    });
}

#[test]
fn a_fenced_node_stays_down_until_it_is_let_go_and_never_comes_up_as_a_second_primary() {
    let mut herd = Herd::declare(&newest_or_15(0), &PAIR);
    herd.keep_backups();
    herd.apply().ends_with(0);
    let profile = herd.facts("a").join("profile.json");
    let guard = ["guard", "--profile", text(&profile), "--ask-record"];

    // Nobody is asked without a terminal, and nothing is guessed.
    herd.run(&["fence", "a"]).ends_with(2).tells(&["Nothing was changed."]);
    herd.run(&["fence", "z", "--yes"]).ends_with(10).tells(&["inventory-a, inventory-b"]);
    herd.run(&["unfence", "a"]).ends_with(0).says(&["inventory-a is primary, not fenced", "No changes."]);

    // A standby is fenced and let go.
    herd.run(&["fence", "inventory-b", "--yes", "--reason", "its disk answers late"])
        .ends_with(0)
        .says(&["inventory-b is a standby", "inventory-b is fenced: stopped (fast), nothing of it runs"]);
    herd.plan()
        .ends_with(0)
        .says(&["inventory-b is left stopped: it is fenced since", "pgherd unfence inventory-b"]);
    herd.apply().ends_with(0);
    assert_eq!(herd.postmaster("b"), None);
    let fenced = |herd: &Herd| {
        let report = herd.run(&["--format", "json", "health"]).json();
        let findings = report["findings"].as_array().unwrap().clone();
        let of = |check: &str| {
            let found = findings.iter().find(|finding| finding["check"] == check).unwrap();
            format!("{}: {}", found["status"].as_str().unwrap(), found["text"].as_str().unwrap())
        };
        [of("fenced"), of("failover"), of("lock")]
    };
    let [fence, failover, lock] = fenced(&herd);
    assert!(
        fence.starts_with("warning: fenced since") && fence.ends_with(": its disk answers late"),
        "{fence}"
    );
    assert_eq!(failover, "critical: nobody could take over: b: it is fenced");
    assert_eq!(lock, "ok: nobody holds it");
    let seen = herd.node_status("b");
    assert_eq!((&seen["state"], &seen["fenced"]["why"]), (&"fenced".into(), &"its disk answers late".into()));
    herd.status().says(&["b is fenced since", ": its disk answers late.   next: pgherd unfence b"]);
    herd.run(&["fence", "b", "--yes"]).ends_with(0).says(&["No changes."]);
    herd.run(&["unfence", "b"]).ends_with(0);
    herd.apply().ends_with(0);
    until("b could take over", || {
        let [fence, failover, _] = fenced(&herd);
        (fence == "ok: no node is fenced" && failover == "ok: b could take over").then_some(())
    });

    // A primary whose postmaster is held, and whose children go on: a fast shutdown does not end it.
    let frozen = Frozen::new(herd.postmaster("a").unwrap());
    let failed = herd.run(&["fence", "a", "--yes", "--within", "1s"]).ends_with(1);
    failed.tells(&["inventory-a did not end within 1.0 s", "HINT:   What does not end can be ended"]);
    assert!(!herd.facts("a").join("fenced.json").exists());
    herd.run(&["fence", "a", "--yes", "--within", "1s", "--immediate", "--reason", "it hangs"])
        .ends_with(0)
        .says(&[
            "inventory-a is unknown: it did not answer within 2 s",
            "inventory-a is fenced: killed, nothing of it runs; last checkpoint",
        ]);
    drop(frozen);
    let works_there = |herd: &Herd| {
        let data = herd.data("a");
        herd.processes().into_iter().any(|(pid, _)| {
            std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).is_ok_and(|cwd| cwd == data)
        })
    };
    assert!(!works_there(&herd));

    // Whoever starts it: not as a primary.
    std::fs::remove_file(herd.data("a").join("standby.signal")).unwrap();
    herd.run(&guard).ends_with(4).tells(&[
        "ERROR:  cannot start inventory-a as a primary: it is fenced",
        ": it hangs.",
        "pgherd rejoin inventory-a",
        "pgherd unfence inventory-a",
    ]);
    herd.apply().ends_with(10).tells(&["no node is primary, and a is fenced since", "pgherd failover"]);
    assert_eq!(herd.postmaster("a"), None);
    herd.run(&["fence", "a", "--yes"]).ends_with(0).says(&["nothing of it runs"]);
    start_by_hand(&herd, "a");
    assert_eq!(herd.primaries(), Vec::<String>::new());
    herd.stop("a", "fast");

    // It has been a standby since: it stays one. What it was before is not forgotten by a crash alone.
    herd.run(&["unfence", "a"]).ends_with(0);
    assert!(herd.data("a").join("standby.signal").exists());
    std::fs::remove_file(herd.data("a").join("standby.signal")).unwrap();
    herd.apply().ends_with(0);
    assert_eq!(herd.primaries(), ["a"]);

    // Fenced as a primary and let go as one, while nobody is ahead.
    herd.run(&["fence", "a", "--yes"]).ends_with(0).says(&[
        "inventory takes no writes from then on",
        "stopped (fast)",
        "shutdown checkpoint",
    ]);
    let silent = herd.postmaster("b").map(Frozen::new);
    herd.run(&["unfence", "a"]).ends_with(10).tells(&["whether inventory-b has become primary is not known"]);
    drop(silent);
    herd.run(&["unfence", "a"]).ends_with(0).says(&["inventory-a is not fenced any more"]);
    herd.apply().ends_with(0);
    assert_eq!(herd.primaries(), ["a"]);

    // Another one took over: it stays fenced.
    herd.run(&["fence", "a", "--yes"]).ends_with(0);
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-w", "promote"]);
    until("b is promoted", || (herd.sql("b", "SELECT pg_is_in_recovery()") == "f").then_some(()));
    herd.run(&["unfence", "a"]).ends_with(4).tells(&[
        "ERROR:  cannot unfence inventory-a: inventory-b is primary",
        "HINT:   Bring it back as a standby: pgherd rejoin a",
    ]);
    herd.apply()
        .ends_with(0)
        .says(&["inventory-a is left stopped: it is fenced", "pgherd rejoin inventory-a"]);
    herd.status().says(&["next: pgherd rejoin a"]);
    // Also with the new primary down.
    herd.stop("b", "fast");
    herd.run(&["unfence", "a"])
        .ends_with(4)
        .tells(&["cannot unfence inventory-a: inventory-b is on timeline 2"]);
    assert_eq!(herd.primaries(), Vec::<String>::new());
}
