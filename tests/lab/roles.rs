//! Roles that change under load, on hosts of their own: what clients see, through two poolers and directly.

use std::time::{Duration, Instant};

use super::herd::{GATE, HOOKED, HOSTS, Herd, NODES, node};
use super::lab::{Lab, eventually, say, told};
use super::ledger::{Clients, Ledger};
use super::station::{OPS, POOLER, ended};
use super::troubles;

/// How many of them may be refused at first.
const REFUSED: usize = 5;

/// How many switchovers there are in a row; `PGHERD_LAB_TURNS` says another number.
fn turns() -> usize {
    let soak = if std::env::var_os("PGHERD_SOAK").is_some() { 50 } else { 3 };
    std::env::var("PGHERD_LAB_TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(soak)
}

#[test]
fn roles_change_under_load_planned_and_forced_and_what_was_lost_comes_back() {
    let Some(lab) = Lab::with_disks(&HOSTS) else { return };
    let herd = Herd::furnish(&lab);
    again_and_again_clients_of_the_poolers_see_no_error(&herd);
    a_host_that_is_lost_is_failed_over_from_and_comes_back_as_no_primary(&herd);
    troubles::befall_a_sample(&herd);
}

fn again_and_again_clients_of_the_poolers_see_no_error(herd: &Herd<'_>) {
    let station = &herd.station;
    let clients = herd.clients();
    let ledger = Ledger::start(&clients, 0);
    let (mut leads, mut refused) = ("a", 0);
    for turn in 0..turns() {
        // Both others in turns, so that each node is led from and to.
        leads = NODES[(turn + 1) % 3].name;
        // One of them is alone in its region.
        let to = if leads == "c" { ["--region", "east"] } else { ["--to", leads] };
        let args = ["switchover", to[0], to[1], "--yes"];
        let mut output = station.pgherd(&args);
        // A node that a busy machine leaves without a processor is refused before anything is changed: the operator asks again.
        while output.status.code() == Some(4) && told(&output).contains("not answer") && refused < REFUSED {
            refused += 1;
            output = station.pgherd(&args);
        }
        let shown = told(&output);
        assert_eq!(output.status.code(), Some(0), "turn {turn}: {shown}");
        assert!(shown.contains(&format!("inventory-{leads} is primary")), "{shown}");
        assert!(shown.contains("goes on without a gap"), "{shown}");
        // What runs on the host of the new primary, behind ssh.
        let told = station.lab.prints(node(leads).host, &["tail", "-n", "1", HOOKED]);
        assert!(
            told.starts_with("after-promote of switchover: inventory-")
                && told.contains(&format!("inventory-{leads} on "))
                && told.ends_with(", it is so"),
            "{told}"
        );
    }
    let outcome = ledger.stop(&clients, 0, || herd.rows(node(leads)));
    say(&format!(
        "{} switchovers, {refused} refused at first: {} rows; poolers: longest {:.2?}, {} errors; directly: longest {:.2?}, {} errors",
        turns(),
        outcome.acknowledged,
        outcome.pooled.longest_gap,
        outcome.pooled.errors,
        outcome.direct.longest_gap,
        outcome.direct.errors,
    ));
    outcome.is_sound();
    assert_eq!((outcome.pooled.errors, outcome.pooled.failed_connects), (0, 0), "{:?}", outcome.pooled.told);
    // They are held back for no longer than that, whatever befalls.
    assert!(outcome.pooled.longest_gap < Duration::from_secs(90), "{:?}", outcome.pooled.longest_gap);
    // A connection to the primary itself ends with it, and its statement may be on its way: one error a switchover and writer.
    assert!((1..=2 * turns()).contains(&outcome.direct.errors), "{:?}", outcome.direct);
    station.done(&["plan", "--detailed-exitcode"]);
}

fn a_host_that_is_lost_is_failed_over_from_and_comes_back_as_no_primary(herd: &Herd<'_>) {
    let Herd { lab, station, .. } = herd;
    station.done(&["switchover", "--to", "a", "--yes"]);
    // The pooler that stays.
    let clients =
        Clients { poolers: vec![(lab.address(GATE), POOLER)], pooled: 4, direct: 1, ..herd.clients() };
    let ledger = Ledger::start(&clients, 1000);
    herd.writes_go_on(node("a"));

    // Only the station is cut off from it: it is alive, and stays primary.
    lab.cut_pair(OPS, "db1");
    let refused = station.ends(&["failover", "--yes"], 4);
    assert!(refused.contains("seen alive from elsewhere"), "{refused}");
    herd.mend();
    herd.writes_go_on(node("a"));

    // Everybody is: its commits are confirmed by nobody any more.
    lab.cut("db1");
    herd.may_fail_over();
    let begun = Instant::now();
    let shown = station.done(&["failover", "--region", "east", "--yes"]);
    say(&format!("a host that is cut off: failover in {:.1?}", begun.elapsed()));
    assert!(shown.contains("inventory-c is primary"), "{shown}");
    assert!(shown.contains("no commit of it ends"), "{shown}");
    herd.writes_go_on(node("c"));

    // Whoever boots it: its unit's guard finds another one ahead.
    lab.power_off("db1");
    herd.mend();
    lab.power_on("db1");
    assert!(eventually(|| station.node("a").0 == "stopped"), "{:?}", station.node("a"));
    let log = lab.prints("db1", &["journalctl", "--no-pager", "-u", "pgherd-inventory-a"]);
    assert!(log.contains("cannot start inventory-a as a primary"), "{log}");
    let outcome = ledger.stop(&clients, 1000, || herd.rows(node("c")));
    say(&format!(
        "{} rows; through the pooler: longest {:.2?}, {} errors",
        outcome.acknowledged, outcome.pooled.longest_gap, outcome.pooled.errors
    ));
    outcome.is_sound();
    station.done(&["rejoin", "a", "--yes"]);
    station.stream(&["a", "b"]);
    station.done(&["plan", "--detailed-exitcode"]);

    // The next one dies, and pgherd in the middle of it.
    let ledger = Ledger::start(&clients, 2000);
    herd.writes_go_on(node("c"));
    lab.power_off("db3");
    herd.may_fail_over();
    let killed = station.begin(&["failover", "--to", "b", "--yes"]);
    assert!(eventually(|| {
        let listed = station.json(&["operation", "list"]);
        listed["operations"].as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "running"))
    }));
    station.kill();
    ended(killed);
    station.done(&["operation", "resume", &station.unfinished(), "--yes"]);
    herd.writes_go_on(node("b"));
    let outcome = ledger.stop(&clients, 2000, || herd.rows(node("b")));
    outcome.is_sound();
    lab.power_on("db3");
    assert!(eventually(|| station.node("c").0 == "stopped"), "{:?}", station.node("c"));
    station.done(&["failback", "--yes"]);
    station.done(&["rejoin", "c", "--yes"]);
    station.stream(&["b", "c"]);
    station.done(&["plan", "--detailed-exitcode"]);
}
