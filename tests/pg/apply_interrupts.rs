//! `apply` interrupted by a signal, and two at once.

use rustix::process::Signal;

use crate::herd::{Herd, PAIR, newest_or_15, until};

#[test]
fn an_interrupt_undoes_the_birth_and_leaves_nothing() {
    for (turn, signal) in [(0, Signal::INT), (1, Signal::TERM)] {
        let herd = Herd::declare(&newest_or_15(turn), &PAIR);
        let mut apply = herd.start(&["apply", "--yes"]);
        until("the primary runs and its clone begins", || herd.data("b").exists().then_some(()));
        apply.signal(signal);
        let ended = apply.end().ends_with(130);
        ended.tells(&["interrupted"]);
        herd.nothing_is_left();
        herd.plan().ends_with(0).says(&["not there yet"]);
    }
}

#[test]
fn a_second_apply_names_the_holder_or_waits_for_it() {
    let herd = Herd::declare(&newest_or_15(0), &PAIR);
    let first = herd.start(&["apply", "--yes"]);
    let pid = first.pid().as_raw_nonzero();
    until("the primary runs", || herd.postmaster("a"));
    let second = herd.apply().ends_with(5);
    let second = second.tells(&[
        "ERROR:  cluster inventory is locked by operation ",
        &format!("(pid {pid})"),
        "HINT:   Wait for it",
    ]);
    assert_eq!(second.stdout, "");
    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(5);
    let third = herd.run(&["apply", "--yes", "--wait-lock", "2min"]);
    first.end().ends_with(0);
    third.ends_with(0).says(&["No changes."]);
}
