//! `plan`: its forms, its exit codes, and a saved plan that runs as it was read or not at all.

use std::os::unix::fs::PermissionsExt as _;

use crate::herd::{Herd, PAIR, SINGLE, newest_or_15};

#[test]
fn a_saved_plan_runs_as_it_was_read_or_is_refused() {
    let mut herd = Herd::declare(&newest_or_15(1), &SINGLE);
    herd.run(&["plan", "--detailed-exitcode", "--out", "birth.plan"]).ends_with(2);
    let mode = std::fs::metadata(herd.path("birth.plan")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    herd.run(&["apply", "birth.plan", "--yes"]).ends_with(0);
    herd.is_as_declared();
    let stale = herd.run(&["apply", "birth.plan", "--yes"]).ends_with(4);
    stale.tells(&[
        "ERROR:  the plan for inventory is out of date: the world has moved since it was made",
        "Nothing was changed.",
    ]);

    herd.edit("work_mem: 4 MiB", "work_mem: 6 MiB");
    herd.run(&["plan", "--out", "six.plan"]).ends_with(0);
    herd.edit("work_mem: 6 MiB", "work_mem: 8 MiB");
    let other = herd.run(&["apply", "six.plan", "--yes"]).ends_with(4);
    other.tells(&["pgherd.yml has changed", "Nothing was changed.", "Make a new one: pgherd plan --out"]);
    assert_eq!(herd.sql("a", "SHOW work_mem"), "4MB");
    herd.edit("work_mem: 8 MiB", "work_mem: 6 MiB");

    // The world moves: somebody sets the same thing by hand, in another place.
    herd.sql("a", "ALTER SYSTEM SET work_mem = '5MB'");
    herd.run(&["apply", "six.plan", "--yes"]).ends_with(4).tells(&["the world has moved since it was made"]);
    herd.sql("a", "ALTER SYSTEM RESET work_mem");
    herd.run(&["apply", "six.plan", "--yes"]).ends_with(0);
    assert_eq!(herd.sql("a", "SHOW work_mem"), "6MB");
    herd.run(&["plan", "--detailed-exitcode"]).ends_with(0).says(&["No changes."]);
    std::fs::write(herd.path("no.plan"), "{}").expect("writable");
    herd.run(&["apply", "no.plan", "--yes"]).ends_with(2).tells(&["is not a saved plan of this pgherd"]);
}

#[test]
fn a_plan_reads_as_a_screen_as_markdown_and_as_json() {
    let herd = Herd::declare(&newest_or_15(0), &PAIR);
    let screen = herd.plan().ends_with(0);
    insta::assert_snapshot!("a_birth_on_a_screen", herd.settled(&screen.stdout));
    let markdown = herd.run(&["plan", "--format", "markdown"]).ends_with(0);
    insta::assert_snapshot!("a_birth_in_markdown", herd.settled(&markdown.stdout));
    let plan = herd.run(&["plan", "--format", "json"]).ends_with(0).json();
    assert_eq!(plan["format_version"], "1.0");
    assert_eq!(plan["herd"], "shop");
    assert_eq!(plan["changes"], true);
    let steps = plan["clusters"][0]["stages"].as_array().expect("stages");
    assert_eq!(steps.iter().map(|stage| stage.as_array().expect("steps").len()).sum::<usize>(), steps.len());
    assert_eq!(steps[0][0]["sign"], "create");
    assert_eq!(steps[0][0]["subject"], "inventory-a");
    // Nothing is asked where nobody is: the answer has to come with the command.
    herd.run(&["apply"])
        .ends_with(2)
        .tells(&["apply needs an answer, and there is no terminal to ask", "pgherd apply --yes"]);
    herd.nothing_is_left();
}
