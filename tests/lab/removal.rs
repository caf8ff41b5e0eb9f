//! Nothing of a lab stays, however its test ends. Each test names its host as no other does, and looks for that.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::lab::{Lab, eventually};

#[test]
fn a_lab_is_removed_when_it_is_dropped() {
    let Some(lab) = Lab::up(&["dropped"]) else { return };
    let (paths, init) = traces(&lab, "dropped");
    assert!(paths.iter().all(|path| path.exists()), "{paths:?}");
    drop(lab);
    assert_gone(&paths, init);
}

#[test]
fn a_lab_is_removed_when_its_test_panics() {
    let mut left = None;
    let test = std::panic::AssertUnwindSafe(|| {
        let Some(lab) = Lab::up(&["panicked"]) else { return };
        left = Some(traces(&lab, "panicked"));
        std::panic::resume_unwind(Box::new("as a failed assertion does"));
    });
    let ended = std::panic::catch_unwind(test);
    let Some((paths, init)) = left else { return };
    assert!(ended.is_err());
    assert_gone(&paths, init);
}

#[test]
fn a_lab_is_removed_when_its_test_is_killed() {
    const HOLD: &str = "PGHERD_TEST_HOLD_A_LAB";
    if std::env::var_os(HOLD).is_some() {
        hold_a_lab();
        return;
    }
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "removal::a_lab_is_removed_when_its_test_is_killed", "--nocapture"])
        .env(HOLD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(run.stdout.take().unwrap()).lines();
    let held = lines.map_while(Result::ok).find_map(|line| {
        let (_, words) = line.split_once("held ")?;
        let mut words = words.split(' ').map(str::to_owned);
        Some((words.next()?.parse::<u32>().ok()?, words.map(PathBuf::from).collect::<Vec<_>>()))
    });
    let Some((init, paths)) = held else {
        // It has said why.
        assert!(run.wait().unwrap().success());
        return;
    };
    assert!(paths.iter().all(|path| path.exists()), "{paths:?}");
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(eventually(|| paths.iter().all(|path| !path.exists())), "{paths:?}");
    assert_gone(&paths, init);
}

/// Waits for its death with a lab in its hands.
fn hold_a_lab() {
    let Some(lab) = Lab::up(&["held"]) else { return };
    let (paths, init) = traces(&lab, "held");
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    println!("held {init} {}", paths.join(" "));
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn what_a_killed_keeper_left_is_removed_by_the_next_lab() {
    let Some(lab) = Lab::up(&["orphan"]) else { return };
    let (paths, init) = traces(&lab, "orphan");
    let keeper = i32::try_from(lab.keeper_id()).unwrap();
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    drop(lab);
    // Whoever makes a lab next finds it, this test or another one.
    let next = Lab::up(&["next"]).unwrap();
    assert!(eventually(|| paths.iter().all(|path| !path.exists())), "{paths:?}");
    drop(next);
    assert_gone(&paths, init);
}

/// What there is of a lab only while it stands, and the PID of that host's systemd.
fn traces(lab: &Lab, host: &str) -> (Vec<PathBuf>, u32) {
    let number = lab.number();
    let paths =
        [format!("/run/netns/pgherd{number}-{host}"), format!("/var/tmp/pgherd-lab/{number}/{host}/disk")];
    (paths.map(PathBuf::from).to_vec(), lab.init(host).unwrap())
}

fn assert_gone(paths: &[PathBuf], init: u32) {
    for path in paths {
        assert!(!path.exists(), "{}", path.display());
    }
    let environment = std::fs::read(Path::new("/proc").join(init.to_string()).join("environ"));
    assert!(!environment.is_ok_and(|bytes| bytes.starts_with(b"container=lab")), "{init} runs");
    let loops = Command::new("losetup").args(["--list", "--noheadings"]).output().unwrap();
    let disk = paths.last().unwrap().display().to_string();
    assert!(!String::from_utf8_lossy(&loops.stdout).contains(&disk), "{disk} is in use");
}
