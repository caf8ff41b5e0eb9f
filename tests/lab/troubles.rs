//! What befalls role changes: cuts of every kind, slow and dead parts, full disks, a second pgherd, a controller that is killed.
//!
//! `make test` plays a sample, `make soak` all of them. `PGHERD_LAB_ONLY=one,other` plays those whose names have one of these words,
//! `PGHERD_LAB_SEED` is what else goes by chance, and which ones are the sample.

use std::collections::BTreeSet;
use std::time::Duration;

use super::herd::{GATE, HOSTS, Herd, NODES, OTHER};
use super::lab::{Lab, eventually, say, told};
use super::scene::{At, Ending, Scene};
use super::station::{OPS, PORT, tell};

const SSH: u16 = 22;
/// How many of them `make test` plays.
const SAMPLE: usize = 1;
const ENDINGS: [Ending; 4] = [Ending::Resume, Ending::Undo, Ending::Takeover, Ending::TakeoverUndo];

/// What befalls.
struct Trouble {
    name: String,
    act: Box<dyn Fn(&mut Scene<'_>)>,
}

type Act = fn(&mut Scene<'_>);

/// Those with names of their own.
const NAMED: [(&str, Act); 31] = [
    ("cut-to-candidate-switchover", |scene| {
        scene.herd.lab.cut_direction(scene.old.host, scene.to.host);
        scene.switchover().with(&[1, 4, 6]);
    }),
    ("cut-from-candidate-switchover", |scene| {
        scene.herd.lab.cut_direction(scene.to.host, scene.old.host);
        scene.switchover().with(&[1, 4, 6]);
    }),
    ("cut-to-candidate-failover", |scene| {
        scene.herd.lab.cut_direction(scene.old.host, scene.to.host);
        scene.failover().with(&[4]);
    }),
    ("cut-from-station-switchover", |scene| {
        scene.herd.lab.cut_direction(OPS, scene.old.host);
        scene.switchover().with(&[4, 10]);
    }),
    ("cut-from-station-failover", |scene| {
        scene.herd.lab.cut_direction(scene.old.host, OPS);
        scene.failover().with(&[4]).saying("seen alive from elsewhere");
    }),
    ("cut-station-and-candidate-switchover", |scene| {
        scene.herd.lab.cut_pair(OPS, scene.to.host);
        scene.switchover().with(&[4, 10]);
    }),
    ("cut-station-and-candidate-failover", |scene| {
        scene.kill_for_good(scene.old);
        scene.herd.lab.cut_pair(OPS, scene.to.host);
        // Its host answers: the other one takes it, with what only the old one's disk may have.
        scene.failover().with(&[4]);
        scene.run(&["failover", "--yes"]).with(&[0, 7]);
    }),
    ("cut-postgres-switchover", |scene| {
        scene.herd.lab.cut_port(scene.old.host, PORT);
        scene.switchover().with(&[1, 4, 6]);
    }),
    ("cut-postgres-failover", |scene| {
        scene.herd.lab.cut_port(scene.old.host, PORT);
        scene.failover().with(&[4]).saying("answers and takes writes");
    }),
    ("cut-ssh-switchover", |scene| {
        scene.herd.lab.cut_port(scene.old.host, SSH);
        scene.switchover().with(&[4, 10]);
    }),
    ("cut-ssh-failover", |scene| {
        scene.herd.lab.cut_port(scene.old.host, SSH);
        scene.failover().with(&[4]).saying("seen alive from elsewhere");
    }),
    ("cut-host-that-lives", |scene| {
        scene.herd.lab.cut(scene.old.host);
        scene.herd.may_fail_over();
        scene.failover().with(&[0]).saying("no commit of it ends");
        // Nobody could end it: it takes its clients' writes, and confirms none.
        scene.old_one_may_speak = true;
    }),
    ("killed", |scene| {
        scene.kill_for_good(scene.old);
        scene.failover().with(&[0]);
    }),
    ("killed-and-started-by-its-unit", |scene| {
        scene.kill(scene.old);
        scene.failover().with(&[0, 4]);
    }),
    ("frozen", |scene| {
        scene.signal_all(scene.old, "STOP");
        let refused = scene.failover();
        refused.with(&[4]);
        scene.run(&["fence", scene.old.name, "--reason", "it is frozen", "--immediate", "--yes"]).with(&[0]);
        scene.failover().with(&[0]);
    }),
    ("frozen-switchover", |scene| {
        scene.signal_all(scene.old, "STOP");
        scene.switchover().with(&[1, 4, 10]);
        scene.signal_all(scene.old, "CONT");
        scene.herd.writes_go_on(scene.old);
    }),
    ("archiver-hangs-switchover", |scene| {
        scene.signal_process(scene.old, "STOP", "archiver");
        let ended = scene.switchover();
        ended.with(&[1, 6]);
        scene.signal_process(scene.old, "CONT", "archiver");
    }),
    ("archiver-is-slow-switchover", |scene| {
        scene.signal_process(scene.old, "STOP", "archiver");
        let goes_on = || scene.signal_process(scene.old, "CONT", "archiver");
        scene
            .run_and(&["switchover", "--to", scene.to.name, "--yes"], Some(At::Step("stop")), goes_on)
            .with(&[0]);
    }),
    ("repository-is-away-failover", |scene| {
        scene.kill_for_good(scene.old);
        for host in [scene.to.host, scene.third.host] {
            scene.herd.lab.prints(host, &["mount", "-t", "tmpfs", "-o", "mode=0755", "none", "/srv/shared"]);
        }
        scene.failover().with(&[0, 1, 4, 7]);
        for host in [scene.to.host, scene.third.host] {
            scene.herd.lab.prints(host, &["umount", "--lazy", "/srv/shared"]);
        }
    }),
    ("receiver-hangs-switchover", |scene| {
        scene.signal_process(scene.to, "STOP", "walreceiver");
        scene.switchover().with(&[1, 4, 6]);
        scene.signal_process(scene.to, "CONT", "walreceiver");
    }),
    ("receiver-hangs-failover", |scene| {
        scene.signal_process(scene.to, "STOP", "walreceiver");
        scene.kill_for_good(scene.old);
        scene.failover().with(&[1, 4]);
        scene.signal_process(scene.to, "CONT", "walreceiver");
        scene.failover().with(&[0]);
    }),
    ("replay-hangs-switchover", |scene| {
        scene.signal_process(scene.to, "STOP", "startup");
        scene.switchover().with(&[1, 4]);
        scene.signal_process(scene.to, "CONT", "startup");
    }),
    ("replay-is-paused", |scene| {
        scene.sql(scene.to, "SELECT pg_wal_replay_pause()");
        scene.switchover().with(&[4]).saying("replay is paused");
        scene.kill_for_good(scene.old);
        scene.failover().with(&[4]).saying("replay is paused");
        scene.sql(scene.to, "SELECT pg_wal_replay_resume()");
        scene.failover().with(&[0]);
    }),
    ("replay-is-delayed", |scene| {
        scene.sql(scene.to, "ALTER SYSTEM SET recovery_min_apply_delay = '20s'");
        scene.sql(scene.to, "SELECT pg_reload_conf()");
        scene.switchover().with(&[1, 4]);
        scene.sql(scene.to, "ALTER SYSTEM RESET recovery_min_apply_delay");
        scene.sql(scene.to, "SELECT pg_reload_conf()");
    }),
    ("pooler-is-dead", |scene| {
        let unit = format!("pgbouncer-inventory-{GATE}.service");
        scene.systemctl(GATE, &["stop", &unit]);
        scene.switchover().with(&[10]).saying("the pooler on gate does not answer");
        scene.kill_for_good(scene.old);
        scene.failover().with(&[0, 7]);
    }),
    ("pooler-is-unreachable", |scene| {
        scene.herd.lab.cut_pair(OPS, GATE);
        scene.switchover().with(&[10]).saying("the pooler on gate does not answer");
        scene.kill_for_good(scene.old);
        scene.failover().with(&[0]).saying("the pooler on gate does not answer");
    }),
    ("disk-of-candidate-is-full", |scene| {
        scene.herd.lab.fill_disk(scene.to.host);
        scene.switchover().with(&[1, 4, 6]);
        scene.kill_for_good(scene.old);
        scene.failover().with(&[1, 4, 6]);
        scene.herd.lab.free_disk(scene.to.host);
        scene.end();
        scene.run(&["failover", "--yes"]).with(&[0, 4]);
    }),
    ("disk-of-candidate-fills-at-the-promotion", |scene| {
        let fills = || scene.herd.lab.fill_disk(scene.to.host);
        let args = ["switchover", "--to", scene.to.name, "--yes"];
        scene.run_and(&args, Some(At::Step("promote")), fills).with(&[0, 1, 6, 7]);
        scene.herd.lab.free_disk(scene.to.host);
    }),
    ("second-pgherd", second_pgherd),
    ("other-station-when-the-lock-has-expired", other_station_when_the_lock_has_expired),
    ("guard-asks-its-peers", guard_asks_its_peers),
];

/// A second one, here and elsewhere, is told who is at work and since when.
fn second_pgherd(scene: &mut Scene<'_>) {
    let Herd { station, other, .. } = scene.herd;
    let args = ["switchover", "--to", scene.to.name, "--yes"];
    let third = ["switchover", "--to", scene.third.name, "--yes"];
    let told_here = std::cell::RefCell::new(Vec::new());
    let first = scene.run_and(&args, Some(At::Step("checkpoint")), || {
        // Beside one another, as long as the first one is at work.
        let begun = [station.begin(&third), station.begin(&["apply", "--yes"]), other.begin(&third)];
        told_here.replace(begun.into_iter().map(super::station::ended).collect());
    });
    let told_here = told_here.into_inner();
    first.with(&[0]);
    for refused in &told_here {
        tell("a second one", &told(refused));
        assert_eq!(refused.status.code(), Some(5), "{}", told(refused));
        let said = told(refused);
        assert!(said.contains("oncall") && said.contains("since"), "{said}");
    }
}

/// Without --force it waits until the first one has not been heard for so long.
fn other_station_when_the_lock_has_expired(scene: &mut Scene<'_>) {
    let Herd { station, other, .. } = scene.herd;
    let args = ["switchover", "--to", scene.to.name, "--yes"];
    let killed = scene.run_and(&args, Some(At::Step("stop")), || station.kill());
    assert!(killed.befell, "{killed:?}");
    let id = station.unfinished();
    let listed = other.json(&["operation", "list", "--hosts"]);
    assert!(listed.to_string().contains(&id), "{listed:#}");
    let refused = other.pgherd(&["operation", "takeover", &id]);
    assert!(matches!(refused.status.code(), Some(4 | 5)), "{}", told(&refused));
    let begun = std::time::Instant::now();
    let taken = loop {
        let taken = other.pgherd(&["operation", "takeover", &id, "--yes"]);
        if !matches!(taken.status.code(), Some(4 | 5)) || begun.elapsed() > Duration::from_secs(180) {
            break taken;
        }
        std::thread::sleep(Duration::from_secs(5));
    };
    assert_eq!(taken.status.code(), Some(0), "{}", told(&taken));
    let late = station.pgherd(&["operation", "resume", &id, "--yes"]);
    assert_eq!(late.status.code(), Some(5), "{}", told(&late));
}

/// The host comes back without the repository: those who answer say who is primary.
fn guard_asks_its_peers(scene: &mut Scene<'_>) {
    let lab = scene.herd.lab;
    let hide = "printf '%s\\n' '[Unit]' 'DefaultDependencies=no' 'Before=multi-user.target' '[Service]' 'Type=oneshot' \
                'ExecStart=/bin/mount -t tmpfs -o mode=0755 none /srv/shared' >/etc/systemd/system/hide.service && \
                mkdir -p /etc/systemd/system/UNIT.service.d && \
                printf '%s\\n' '[Unit]' 'Requires=hide.service' 'After=hide.service' >/etc/systemd/system/UNIT.service.d/hide.conf"
        .replace("UNIT", &scene.old.unit());
    lab.prints(scene.old.host, &["sh", "-c", &hide]);
    lab.power_off(scene.old.host);
    scene.herd.may_fail_over();
    scene.failover().with(&[0]);
    lab.power_on(scene.old.host);
    let unit = scene.old.unit();
    let log = || lab.prints(scene.old.host, &["journalctl", "--no-pager", "--boot", "-u", &unit]);
    let refused = format!("cannot start inventory-{} as a primary: inventory-", scene.old.name);
    assert!(eventually(|| log().contains(&refused)), "{}", log());
    assert!(log().contains("It answers, on timeline"), "{}", log());
    assert!(scene.herd.sql(scene.old, "SELECT 1").is_none());
    let show = format!(
        "umount --lazy /srv/shared; rm -rf /etc/systemd/system/hide.service /etc/systemd/system/{unit}.service.d; systemctl daemon-reload"
    );
    lab.prints(scene.old.host, &["sh", "-c", &show]);
}

/// A cut in the middle of each step, of what is by turns the old primary's host, the new one's, or the station's.
fn at_each_step() -> Vec<Trouble> {
    let mut all = Vec::new();
    for (kind, stages) in [("switchover", 17), ("failover", 15)] {
        for stage in 0..stages {
            let act = move |scene: &mut Scene<'_>| {
                let lab = scene.herd.lab;
                let which = (chance(stage as u64) % 4) as usize;
                let cut = || match which {
                    0 => lab.cut_pair(OPS, scene.old.host),
                    1 => lab.cut_pair(OPS, scene.to.host),
                    2 => lab.cut(OPS),
                    _ => lab.cut(scene.to.host),
                };
                let what = ["station-old", "station-new", "station", "new"][which];
                if kind == "failover" {
                    scene.kill_for_good(scene.old);
                }
                let args = [kind, "--to", scene.to.name, "--yes"];
                let ended = scene.run_and(&args, Some(At::Stage(stage)), cut);
                say(&format!("trouble {}: cut {what}", scene.name));
                ended.with(&[0, 1, 6, 7, 10]);
                scene.herd.mend();
                if ended.code == Some(1) && kind == "switchover" {
                    assert_eq!(scene.herd.leaders(), [scene.old], "{}", ended.said);
                    scene.herd.writes_go_on(scene.old);
                }
            };
            all.push(Trouble { name: format!("{kind}-cut-at-stage-{stage}"), act: Box::new(act) });
        }
    }
    all
}

/// The controller killed at each line of its journal; what follows goes round.
fn killed_at_each_line() -> Vec<Trouble> {
    let mut all = Vec::new();
    for (kind, lines) in [("switchover", 46), ("failover", 40)] {
        for line in 1..=lines {
            let act = move |scene: &mut Scene<'_>| {
                if kind == "failover" {
                    scene.kill_for_good(scene.old);
                }
                let args = [kind, "--to", scene.to.name, "--yes"];
                scene.ending = ENDINGS[(line + usize::try_from(seed()).unwrap_or(0)) % ENDINGS.len()];
                scene.run_and(&args, Some(At::Line(line)), || scene.herd.station.kill());
                scene.end();
            };
            all.push(Trouble { name: format!("{kind}-killed-at-line-{line}"), act: Box::new(act) });
        }
    }
    all
}

fn all() -> Vec<Trouble> {
    let named = NAMED.iter().map(|(name, act)| Trouble { name: (*name).to_owned(), act: Box::new(act) });
    named.chain(at_each_step()).chain(killed_at_each_line()).collect()
}

fn seed() -> u64 {
    std::env::var("PGHERD_LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// A number that the seed and `of` decide (splitmix64).
fn chance(of: u64) -> u64 {
    let mut mixed = seed().wrapping_add(of.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn is_soak() -> bool {
    std::env::var_os("PGHERD_SOAK").is_some() || std::env::var_os("PGHERD_LAB_ONLY").is_some()
}

/// Those of less than a minute, of which `make test` plays a sample.
const BRIEF: [&str; 10] = [
    "cut-from-station-switchover",
    "cut-from-station-failover",
    "cut-station-and-candidate-switchover",
    "cut-postgres-failover",
    "cut-ssh-switchover",
    "cut-ssh-failover",
    "killed",
    "killed-and-started-by-its-unit",
    "replay-is-paused",
    "pooler-is-dead",
];

/// Plays some of them on a herd that is there already.
pub fn befall_a_sample(herd: &Herd<'_>) {
    if is_soak() {
        return;
    }
    let brief: Vec<Trouble> =
        all().into_iter().filter(|trouble| BRIEF.contains(&trouble.name.as_str())).collect();
    assert_eq!(brief.len(), BRIEF.len(), "each of them is one of all");
    for number in 0..SAMPLE {
        let one = &brief[usize::try_from(chance(1000 + number as u64)).unwrap_or(0) % brief.len()];
        Scene::play(herd, number, &one.name, Ending::Resume, &*one.act);
    }
}

/// All of them, or those that are named, on a herd of their own.
#[test]
fn whatever_befalls_a_role_change_no_row_is_lost_and_there_are_never_two_primaries() {
    if !is_soak() {
        return;
    }
    let Some(lab) = Lab::with_disks(&HOSTS) else { return };
    let herd = Herd::furnish(&lab);
    let only = std::env::var("PGHERD_LAB_ONLY").unwrap_or_default();
    let words: Vec<&str> = only.split(',').filter(|word| !word.is_empty()).collect();
    let names: BTreeSet<String> = all().into_iter().map(|trouble| trouble.name).collect();
    // A whole name means itself alone.
    let is_meant = |name: &str, word: &str| name == word || (!names.contains(word) && name.contains(word));
    let is_asked_for = |name: &str| words.is_empty() || words.iter().any(|word| is_meant(name, word));
    let mut wrong = Vec::new();
    for (number, trouble) in all().into_iter().enumerate().filter(|(_, trouble)| is_asked_for(&trouble.name))
    {
        let ending = ENDINGS[number % 2];
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Scene::play(&herd, number, &trouble.name, ending, &*trouble.act);
        }));
        if played.is_err() {
            wrong.push(trouble.name);
            // What the next one begins with is not known: it is mended as far as it can be.
            herd.mend();
            if !revive(&herd) {
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "wrong: {wrong:?}");
}

/// Has every node of a scene that went wrong run again.
fn revive(herd: &Herd<'_>) -> bool {
    for node in NODES {
        if herd.lab.init(node.host).is_none() {
            herd.lab.power_on(node.host);
        }
        herd.lab.free_disk(node.host);
        herd.lab.console(node.host, &["sh", "-c", "pkill -CONT -u postgres; rm -rf /run/systemd/system/pgherd-inventory-*.d; systemctl daemon-reload"]);
    }
    for station in [&herd.station, &herd.other] {
        if let Some(id) = station.left_open() {
            for verb in ["resume", "undo"] {
                station.pgherd(&["operation", verb, &id, "--yes"]);
            }
        }
    }
    for node in NODES {
        herd.station.pgherd(&["rejoin", node.name, "--yes"]);
    }
    herd.station.pgherd(&["apply", "--yes"]);
    let whole = herd.station.pgherd(&["plan", "--detailed-exitcode"]).status.success();
    say(&format!(
        "trouble: the herd is {} again, of station {OTHER} too",
        if whole { "whole" } else { "not whole" }
    ));
    whole && herd.leaders().len() == 1
}
