//! One trouble, from a herd that is whole to a herd that is whole again, under load all the while.
//!
//! Whatever befalls it: no row that was acknowledged is lost, never two nodes take writes, exit code 0 only when writes are possible, and
//! in the end everything is as declared.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use super::herd::{APP, GATE, Herd, NODES, Node};
use super::lab::{eventually, say, told};
use super::ledger::{Clients, Ledger};
use super::station::{Station, ended, tell};

/// No command of an operator takes longer, whatever befalls it.
const LONGEST: Duration = Duration::from_secs(600);
/// How often a busy machine may have a command refused.
const REFUSED: usize = 4;
/// How often it may be necessary to go on until an operation has ended.
const DRIVES: usize = 4;
const BETWEEN_WRITES: Duration = Duration::from_millis(20);
/// After the number of this scene come those of its writers.
const WRITERS: usize = 10;

/// When something befalls a command, by what its journal says.
#[derive(Debug, Clone, Copy)]
pub enum At {
    /// A step whose line begins so has begun.
    Step(&'static str),
    /// This stage has begun.
    Stage(usize),
    /// So many lines are written.
    Line(usize),
}

/// How an operation that was cut off is brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Resume,
    Undo,
    /// From the other station, which has no file of the first one's.
    Takeover,
    TakeoverUndo,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub said: String,
    pub took: Duration,
    /// Whether the moment came at which something was to befall it.
    pub befell: bool,
}

/// Who plays which part.
pub struct Scene<'a> {
    pub herd: &'a Herd<'a>,
    pub name: String,
    /// The primary, when it begins.
    pub old: Node,
    /// Who is to lead.
    pub to: Node,
    pub third: Node,
    pub ending: Ending,
    /// Whether an old primary that nobody could reach may say that it takes writes, until somebody ends it.
    pub old_one_may_speak: bool,
}

impl Ended {
    #[track_caller]
    pub fn with(&self, codes: &[i32]) -> &Self {
        assert!(self.code.is_some_and(|code| codes.contains(&code)), "{codes:?}: {self:#?}");
        self
    }

    #[track_caller]
    pub fn saying(&self, words: &str) -> &Self {
        assert!(self.said.contains(words), "no {words:?}: {}", self.said);
        self
    }
}

impl<'a> Scene<'a> {
    /// Sees it through: what `act` does, and what must hold then. `number` is that of the scene among those of a herd.
    pub fn play(herd: &'a Herd<'a>, number: usize, name: &str, ending: Ending, act: &dyn Fn(&mut Self)) {
        let begun = Instant::now();
        let [old] = herd.leaders()[..] else { panic!("{name}: not one primary: {:?}", herd.leaders()) };
        let mut others = NODES.into_iter().filter(|node| *node != old);
        let (Some(one), Some(two)) = (others.next(), others.next()) else { panic!("three nodes") };
        let (to, third) = if number.is_multiple_of(2) { (one, two) } else { (two, one) };
        // Fewer than where it is measured how long they wait.
        let clients = Clients { pooled: 2, direct: 2, ..herd.clients() };
        let first = 100_000 + number * WRITERS;
        say(&format!("trouble {name}: {} leads, {} is to", old.name, to.name));
        let ledger = Ledger::start_slowly(&clients, first, BETWEEN_WRITES);
        herd.writes_go_on(old);
        let mut scene =
            Self { herd, name: name.to_owned(), old, to, third, ending, old_one_may_speak: false };
        act(&mut scene);
        herd.mend();
        let leader = scene.heal();
        herd.writes_go_on(leader);
        let outcome = ledger.stop(&clients, first, || herd.rows(leader));
        say(&format!(
            "trouble {name}: {:.0} s; {} rows acknowledged, {} unknown, {} lost, {} twice; longest without a write {:.1} s through a pooler, {:.1} s directly; errors {} and {}",
            begun.elapsed().as_secs_f64(),
            outcome.acknowledged,
            outcome.unknown,
            outcome.lost.len(),
            outcome.twice.len(),
            outcome.pooled.longest_gap.as_secs_f64(),
            outcome.direct.longest_gap.as_secs_f64(),
            outcome.pooled.errors,
            outcome.direct.errors,
        ));
        herd.sql(leader, "TRUNCATE inventory.ledger").expect("it is emptied");
        if scene.old_one_may_speak { outcome.loses_nothing() } else { outcome.is_sound() }
    }

    // ---- commands

    pub fn switchover(&self) -> Ended {
        self.run(&["switchover", "--to", self.to.name, "--yes"])
    }

    pub fn failover(&self) -> Ended {
        self.run(&["failover", "--to", self.to.name, "--yes"])
    }

    /// Runs pgherd to its end, and sees that 0 is the truth.
    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_and(args, None, || {})
    }

    /// Runs pgherd, and has something befall it in the middle. On a busy machine a node may not answer in time, and the command is refused
    /// before anything could befall it: then it is run again.
    pub fn run_and(&self, args: &[&str], at: Option<At>, befalls: impl Fn()) -> Ended {
        for _ in 0..REFUSED {
            let ended = self.try_and(args, at, &befalls);
            let too_soon = at.is_some() && !ended.befell && matches!(ended.code, Some(4 | 10));
            if !(too_soon && ended.said.contains("not answer")) {
                return ended;
            }
        }
        self.try_and(args, at, &befalls)
    }

    fn try_and(&self, args: &[&str], at: Option<At>, befalls: &dyn Fn()) -> Ended {
        let known = journals(&self.herd.station);
        let begun = Instant::now();
        let mut child = self.herd.station.begin(args);
        let befell = at.is_some_and(|at| self.comes(at, &known, &mut child));
        if befell {
            befalls();
        }
        let output = waited_for(&self.herd.station, child);
        let ended = Ended { code: output.status.code(), said: told(&output), took: begun.elapsed(), befell };
        let seconds = ended.took.as_secs_f64();
        tell(&format!("{seconds:.1} s  pgherd {args:?}"), &ended.said);
        say(&format!("trouble {}: {args:?} ends with {:?} after {seconds:.1} s", self.name, ended.code));
        if at.is_some() && !befell {
            say(&format!("trouble {}: nothing befell it, it ended before", self.name));
        }
        if ended.code == Some(0) && ["switchover", "failover"].contains(&args[0]) {
            self.writes_are_possible(&ended);
        }
        ended
    }

    /// Waits until the journal of a new operation says so; not longer than the command runs.
    fn comes(&self, at: At, known: &BTreeSet<PathBuf>, child: &mut Child) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < LONGEST {
            let is_new = |path: &PathBuf| !known.contains(path);
            let journal = journals(&self.herd.station).into_iter().find(is_new);
            if journal.and_then(|path| fs::read_to_string(path).ok()).is_some_and(|text| has_come(at, &text))
            {
                return true;
            }
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Whoever was told that it is done can write, with everything that is in the way still there.
    fn writes_are_possible(&self, ended: &Ended) {
        let sql = "INSERT INTO inventory.ledger VALUES (0, (extract(epoch FROM clock_timestamp()) * 100)::bigint % 2000000000)";
        let reached = |host: &str| ended.said.contains(&format!("the pooler on {host} does not answer"));
        let poolers =
            ["db1", GATE].into_iter().filter(|host| self.herd.lab.init(host).is_some() && !reached(host));
        let mut wrote = 0;
        for host in poolers {
            // Whether the pooler is reached from here is for the scene to say.
            match self.herd.station.client(APP, self.herd.lab.address(host), sql) {
                Ok(_) => wrote += 1,
                Err(why) => say(&format!("trouble {}: not through the pooler on {host}: {why}", self.name)),
            }
        }
        assert!(wrote > 0, "exit 0, and nobody can write through any pooler: {}", ended.said);
        let leaders = self.herd.leaders();
        let to = leaders.iter().find(|node| **node != self.old || leaders.len() == 1).copied();
        self.herd.writes_go_on(to.expect("a primary"));
    }

    // ---- what may be in the way

    /// What the superuser gets on a node.
    pub fn sql(&self, node: Node, sql: &str) -> String {
        self.herd.station.sql(node.host, node.name, "postgres", sql).expect("it answers")
    }

    pub fn systemctl(&self, host: &str, args: &[&str]) {
        self.herd.lab.prints(host, &[&["systemctl"], args].concat());
    }

    /// Kills a node's postmaster, which nobody starts again.
    pub fn kill_for_good(&self, node: Node) {
        let drop_in = format!(
            "mkdir -p /run/systemd/system/{0}.service.d && printf '[Service]\\nRestart=no\\n' >/run/systemd/system/{0}.service.d/no.conf && \
             systemctl daemon-reload",
            node.unit()
        );
        self.herd.lab.prints(node.host, &["sh", "-c", &drop_in]);
        self.kill(node);
        let dead = ["sh", "-c", &format!("! systemctl is-active {}", node.unit())];
        assert!(eventually(|| self.herd.lab.console(node.host, &dead).status.success()));
    }

    /// Kills a node's postmaster; its unit starts it again.
    pub fn kill(&self, node: Node) {
        self.signal(node, "KILL", "$(head -n 1 /srv/inventory-NODE/postmaster.pid)");
    }

    /// Signals every process of a node's server.
    pub fn signal_all(&self, node: Node, signal: &str) {
        self.signal(node, signal, "$(pgrep -u postgres -f 'postgres: |inventory-NODE')");
    }

    /// Signals the process of a node's server whose title says so.
    pub fn signal_process(&self, node: Node, signal: &str, title: &str) {
        self.signal(node, signal, &format!("$(pgrep -u postgres -f '^postgres: .*{title}')"));
    }

    fn signal(&self, node: Node, signal: &str, pids: &str) {
        let pids = pids.replace("NODE", node.name);
        self.herd.lab.prints(node.host, &["sh", "-c", &format!("kill -{signal} {pids}")]);
    }

    // ---- the way back

    /// Brings the operation that was cut off to its end.
    #[track_caller]
    pub fn end(&self) {
        let station = &self.herd.station;
        let Some(id) = station.left_open() else { return };
        let mut ending = self.ending;
        for _ in 0..DRIVES {
            let why = "the other station is gone";
            let (station, args): (_, &[&str]) = match ending {
                Ending::Resume => (station, &["operation", "resume", &id, "--yes"]),
                Ending::Undo => (station, &["operation", "undo", &id, "--yes"]),
                Ending::Takeover => {
                    (&self.herd.other, &["operation", "takeover", &id, "--force", "--reason", why])
                }
                Ending::TakeoverUndo => {
                    (&self.herd.other, &["operation", "takeover", &id, "--undo", "--force", "--reason", why])
                }
            };
            let output = station.pgherd(args);
            say(&format!("trouble {}: {args:?} ends with {:?}", self.name, output.status.code()));
            match output.status.code() {
                // Whoever was taken over from is told so, and does nothing.
                Some(0 | 1) if matches!(ending, Ending::Takeover | Ending::TakeoverUndo) => {
                    let late = self.herd.station.pgherd(&["operation", "resume", &id, "--yes"]);
                    assert_eq!(late.status.code(), Some(5), "{}", told(&late));
                    self.knows_its_end(&id);
                    return;
                }
                Some(0 | 1) if station.left_open().is_none() => return,
                // The scene had the other one take it over, and end it.
                Some(5) if told(&output).contains("It has ended there") => {
                    self.knows_its_end(&id);
                    return;
                }
                // Past the pivot there is only forward.
                Some(4) if ending == Ending::Undo => ending = Ending::Resume,
                Some(4) if ending == Ending::TakeoverUndo => ending = Ending::Takeover,
                Some(1 | 5 | 6 | 7) => {}
                _ => panic!("{args:?}: {}", told(&output)),
            }
        }
        panic!("{} does not end: {}", id, told(&station.pgherd(&["operation", "show", &id])));
    }

    /// The first station gets the end that another one has brought about into its own journal: nothing is unfinished there any more.
    fn knows_its_end(&self, id: &str) {
        let station = &self.herd.station;
        let known = station.done(&["operation", "takeover", id, "--yes"]);
        assert!(known.contains("had ended"), "{known}");
        assert_eq!(station.left_open(), None);
    }

    /// Goes on from whatever there is, as an operator would; returns who leads.
    fn heal(&self) -> Node {
        let Herd { lab, station, .. } = self.herd;
        for node in NODES {
            let off =
                format!("rm -rf /run/systemd/system/{}.service.d && systemctl daemon-reload", node.unit());
            lab.prints(node.host, &["sh", "-c", &off]);
        }
        self.end();
        let mut leaders = self.herd.leaders();
        if leaders.is_empty() {
            // The old one, if it was not fenced.
            station.pgherd(&["apply", "--yes"]);
            assert!(eventually(|| !self.herd.leaders().is_empty()), "nobody leads");
            leaders = self.herd.leaders();
        }
        if leaders.len() > 1 && self.old_one_may_speak {
            assert!(told(&station.pgherd(&["status"])).contains("SPLIT BRAIN"), "two primaries are not told");
            station.done(&["fence", self.old.name, "--reason", "another one leads", "--immediate", "--yes"]);
            leaders = self.herd.leaders();
        }
        let [leader] = leaders[..] else { panic!("not one primary: {leaders:?}") };
        let report = station.json(&["status"]);
        for node in NODES.into_iter().filter(|node| *node != leader) {
            let nodes = report["clusters"][0]["nodes"].as_array().expect("nodes");
            let state = nodes.iter().find(|one| one["node"] == node.name).map(|one| one["state"].clone());
            if state.is_none_or(|state| state != "streaming" && state != "not_streaming") {
                // What moved between the plan and the start is planned once more.
                for _ in 0..REFUSED {
                    if station.pgherd(&["rejoin", node.name, "--yes"]).status.code() != Some(4) {
                        break;
                    }
                }
            }
        }
        let plan = station.pgherd(&["plan", "--detailed-exitcode"]);
        if plan.status.code() != Some(0) {
            station.done(&["apply", "--yes"]);
        }
        let others: Vec<&str> =
            NODES.iter().map(|node| node.name).filter(|name| *name != leader.name).collect();
        station.stream(&others);
        station.done(&["plan", "--detailed-exitcode"]);
        leader
    }
}

/// The journals of a station.
fn journals(station: &Station<'_>) -> BTreeSet<PathBuf> {
    let listed = fs::read_dir(station.journals())
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()));
    listed
        .map(|paths| paths.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).collect())
        .unwrap_or_default()
}

/// Tells whether a journal says that the moment is there.
fn has_come(at: At, text: &str) -> bool {
    let lines = || text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    if let At::Line(number) = at {
        return lines().count() >= number;
    }
    let records: Vec<serde_json::Value> =
        lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let Some(header) = records.first() else { return false };
    records.iter().map(|line| &line["record"]).filter(|record| record["event"] == "step_started").any(
        |record| {
            let (Some(stage), Some(step)) = (record["stage"].as_u64(), record["step"].as_u64()) else {
                return false;
            };
            match at {
                At::Stage(number) => stage >= number as u64,
                At::Step(words) => {
                    let step = &header["record"]["stages"][stage as usize]["steps"][step as usize];
                    step["describe"].as_str().is_some_and(|line| line.starts_with(words))
                }
                At::Line(_) => false,
            }
        },
    )
}

/// Waits for a command; one that takes too long is killed, and that is a failure.
fn waited_for(station: &Station<'_>, mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if begun.elapsed() > LONGEST {
            station.kill();
            panic!("it does not end: {}", told(&ended(child)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ended(child)
}
