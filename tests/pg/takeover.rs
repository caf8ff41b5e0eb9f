//! A station that is lost in the middle of its work, and another one that has only the topology file and ssh.
//!
//! A station's own are `state/operations` and `state/locks`; all else below `state` is the hosts'.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::herd::{Herd, SINGLE, newest_or_15, until};
use crate::sshd::{Login, Sshd};

fn declare(turn: u32) -> (Herd, Sshd) {
    let mut herd = Herd::declare(&newest_or_15(turn), &SINGLE);
    let sshd = Sshd::start(&herd, "sshd", Login::Caller);
    sshd.reaches(&mut herd);
    herd.edit(" a: {host: local", " a: {host: db1");
    (herd, sshd)
}

fn copies(herd: &Herd) -> PathBuf {
    herd.path("state/copies/inventory")
}

/// Puts a station's own files away, and another one's in their place; a new one has none.
fn change_station(herd: &Herd, from: &str, to: &str) {
    for own in ["operations", "locks"] {
        let here = herd.path("state").join(own);
        if here.exists() {
            let away = herd.path(&format!("{own}-of-{from}"));
            fs::remove_dir_all(&away).ok();
            fs::rename(&here, away).expect("moved");
        }
        let theirs = herd.path(&format!("{own}-of-{to}"));
        if theirs.exists() {
            fs::rename(theirs, here).expect("moved");
        }
    }
}

/// The newest journal in a directory, with the operation that it names.
fn newest(directory: &std::path::Path) -> Option<(String, PathBuf)> {
    let files = fs::read_dir(directory).ok()?.map(|entry| entry.expect("readable").path());
    let journals = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    let newest = journals.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).ok())?;
    Some((newest.file_stem()?.to_str()?.to_owned(), newest))
}

/// Starts `apply`, kills it when the copy of its journal says so, and returns the operation.
fn killed_at(herd: &Herd, sshd: &Sshd, word: &str) -> String {
    let before = newest(&copies(herd)).map(|(id, _)| id);
    let mut apply = herd.start(&["apply", "--yes", "--allow-restart"]);
    let id = until("the copy tells of the step", || {
        let (id, path) = newest(&copies(herd)).filter(|(id, _)| Some(id) != before.as_ref())?;
        fs::read_to_string(path).ok()?.lines().skip(1).any(|line| line.contains(word)).then_some(id)
    });
    apply.signal(Signal::KILL);
    apply.end();
    // With the station its connections are gone; what it had begun on the hosts ends.
    sshd.cut();
    id
}

#[test]
fn an_apply_whose_station_is_lost_is_ended_by_another_and_the_first_one_finds_that_out() {
    let (herd, sshd) = declare(0);
    let id = killed_at(&herd, &sshd, "\"event\":\"step_started\",\"stage\":1");
    let (journal, copy) =
        (herd.path(&format!("state/operations/{id}.jsonl")), copies(&herd).join(format!("{id}.jsonl")));
    let (journal, copied) = (fs::read(journal).expect("a journal"), fs::read(copy).expect("a copy"));
    assert!(journal.starts_with(&copied), "{} of {} bytes", copied.len(), journal.len());

    change_station(&herd, "first", "second");
    herd.run(&["operation", "list"]).ends_with(0).does_not_say(&id);
    herd.run(&["operation", "list", "--hosts"]).ends_with(0).says(&[
        &id,
        "elsewhere",
        &format!("pgherd operation takeover {id}"),
    ]);
    herd.run(&["operation", "show", &id]).ends_with(0).says(&["copied   on db1", "initdb"]);
    herd.apply().ends_with(5).tells(&[&id, "pgherd operation takeover"]);
    // Without a repository there is no lock that would expire: nothing shows that the first station is gone.
    herd.run(&["operation", "takeover", &id]).ends_with(4).tells(&[
        &format!("cannot take over operation {id}: nothing shows that its station is gone"),
        &format!("pgherd operation takeover {id} --force --reason TEXT"),
    ]);
    let took = herd.run(&["operation", "takeover", &id[..3], "--force", "--reason", "it burnt"]).ends_with(0);
    took.tells(&[&format!("operation {id} is done")]);
    herd.run(&["operation", "show", &id]).ends_with(0).says(&["taken ", "it burnt"]);
    herd.is_as_declared();
    assert_eq!(herd.primaries(), ["a"]);

    change_station(&herd, "second", "first");
    for verb in ["resume", "undo"] {
        herd.run(&["operation", verb, &id, "--yes"])
            .ends_with(5)
            .tells(&[&format!("operation {id} was taken over by"), "It has ended there. To have its end"]);
    }
    herd.run(&["operation", "takeover", &id])
        .ends_with(0)
        .tells(&[&format!("operation {id} had ended; nothing was changed")]);
    herd.is_as_declared();

    herd.run(&["destroy", "inventory", "--confirm", "inventory"]).ends_with(0);
    assert!(!copies(&herd).exists(), "the copies go with the cluster");
}

/// The copy lacks anything from one record to all but the first, although all of it has happened: what is there is found, and nothing is
/// done twice.
#[test]
fn whatever_the_copy_of_a_finished_apply_lacks_the_cluster_is_the_same_after_a_takeover() {
    let (herd, sshd) = declare(1);
    // The server runs by then: where it does not, nobody can tell whether the cluster was opened to clients, and undo is refused.
    let id = killed_at(&herd, &sshd, "\"event\":\"step_started\",\"stage\":2");
    change_station(&herd, "one", "none");
    let undone = herd.run(&["operation", "takeover", &id, "--undo", "--force", "--reason", "it burnt"]);
    if undone.code == 4 {
        undone.tells(&["its pivot has happened"]);
        herd.run(&["operation", "resume", &id]).ends_with(0);
    } else {
        undone.ends_with(0);
        assert!(!herd.data("a").exists() && !herd.facts("a").exists());
        herd.apply().ends_with(0);
    }
    herd.sql_in("a", "inventory", "CREATE TABLE public.kept AS SELECT generate_series(1, 1000) AS n");
    let (id, copy) = newest(&copies(&herd)).expect("a copy");
    let whole = fs::read_to_string(&copy).expect("readable");
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let system = herd.sql("a", "SELECT system_identifier FROM pg_control_system()");
    let soak = std::env::var_os("PGHERD_SOAK").is_some();
    for kept in (1..lines.len()).filter(|kept| soak || kept % 4 == 1) {
        change_station(&herd, "one", "none");
        fs::write(&copy, lines[..kept].concat()).expect("written");
        let took = herd.run(&["operation", "takeover", &id, "--force", "--reason", "test"]);
        println!("{kept} of {} lines: {} after {:?}\n{}", lines.len(), took.code, took.took, took.stderr);
        took.ends_with(0);
        assert_eq!(herd.sql_in("a", "inventory", "SELECT count(*) FROM public.kept"), "1000", "{kept}");
        assert_eq!(herd.sql("a", "SELECT system_identifier FROM pg_control_system()"), system, "{kept}");
        herd.is_as_declared();
    }
}
