//! `destroy`: by name only, only what the markers claim, and again after a kill.

use std::fs;

use rustix::process::Signal;

use crate::herd::{Herd, PAIR, WHOLE, hash_of, newest_or_15, text, until};

#[test]
fn one_standby_goes_with_its_slot_and_the_primary_of_others_is_refused() {
    let mut herd = Herd::up(&newest_or_15(0), &WHOLE);
    herd.run(&["destroy", "inventory", "--node", "a", "--confirm", "inventory-a"]).ends_with(4).tells(&[
        "ERROR:  cannot remove inventory-a: it is the primary of nodes that stay",
        "Nothing was changed.",
    ]);
    herd.run(&["destroy", "inventory", "--node", "x", "--confirm", "inventory-x"])
        .ends_with(10)
        .tells(&["inventory has no node \"x\"", "Its nodes are: a, b, c."]);
    herd.run(&["destroy", "orders", "--confirm", "orders"])
        .ends_with(10)
        .tells(&["there is no cluster \"orders\""]);

    // What has left the file is told, is left as it is, and goes by its name.
    herd.leave_out("c");
    herd.edit("of: [a, b, c]", "of: [a, b]");
    let next = "pgherd destroy inventory --node c";
    herd.status().ends_with(0).says(&["inventory-c is no longer in the file and still there", next]);
    herd.plan().ends_with(0).says(&["inventory-c is no longer in the file and stays as it is", next]);
    herd.apply().ends_with(0);
    assert!(herd.postmaster("c").is_some());
    herd.apply().ends_with(0).says(&["No changes.", "inventory-c is no longer in the file"]);
    herd.run(&["destroy", "inventory", "--node", "c", "--yes"]).ends_with(2);
    herd.run(&["destroy", "inventory", "--node", "c", "--confirm", "inventory"]).ends_with(4);
    herd.run(&["destroy", "inventory", "--node", "c", "--confirm", "inventory-c"])
        .ends_with(0)
        .says(&["inventory-c is removed"]);
    assert!(!herd.data("c").exists() && !herd.facts("c").exists());
    assert_eq!(herd.sql("a", "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots"), "inventory_b");
    herd.is_as_declared();
    // The machine's disk may be full; the slot of the standby that is gone is nobody's worry.
    herd.status().ends_with(0).does_not_say("WARNING  slot").does_not_say("WARNING  c ");
}

#[test]
fn what_no_marker_claims_is_left_alone() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    // A file of somebody else beside, and another cluster in the place of ours.
    fs::write(herd.path("data/notes.txt"), "of somebody").expect("writable");
    fs::set_permissions(herd.path("data"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("it is ours");
    herd.stop("b", "fast");
    let (ours, aside) = (herd.data("b"), herd.path("data/aside"));
    fs::rename(&ours, &aside).expect("a rename");
    herd.program("initdb", &["-D", text(&ours), "-U", "postgres", "--no-sync"]);
    let before = hash_of(&ours);
    let refused = herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(4);
    refused.tells(&[
        "the marker of inventory-b does not claim it",
        "It holds a cluster with system identifier",
        "Nothing was changed.",
    ]);
    assert_eq!(hash_of(&ours), before);
    assert_eq!(herd.primaries(), ["a"]);
    fs::remove_dir_all(&ours).expect("it is there");
    fs::rename(&aside, &ours).expect("a rename");
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    assert_eq!(fs::read_to_string(herd.path("data/notes.txt")).expect("readable"), "of somebody");
    fs::remove_file(herd.path("data/notes.txt")).expect("it is there");
    herd.nothing_is_left();
}

#[test]
fn a_removal_that_was_killed_is_named_by_the_next_one_and_finished_by_resume() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    let mut destroy = herd.start(&["destroy", "inventory", "--confirm", "inventory"]);
    // In the middle: one node is being removed, or has been.
    until("a node is being removed", || {
        ["a", "b"].iter().any(|node| !herd.data(node).join("PG_VERSION").exists()).then_some(())
    });
    destroy.signal(Signal::KILL);
    if destroy.end().code == 128 + 9 {
        let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
        let id = report["clusters"][0]["operations"][0]["id"].as_str().expect("an operation").to_owned();
        let resume = format!("pgherd operation resume {id}");
        herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(5).tells(&[&resume]);
        herd.apply().ends_with(5).tells(&[&resume]);
        herd.run(&["operation", "resume", &id, "--yes"]).ends_with(0);
    }
    herd.nothing_is_left();
    herd.plan().ends_with(0).says(&["not there yet"]);
}
