//! What one look hands to the next: how often in a row a check was in breach, and where each server stood, so that a rate can be told.
//!
//! One small file a herd, on the station: `docs/formats/health-memory.md` describes it. It is worth nothing: one that cannot be read is begun
//! anew. While it cannot be written, no breach is held back, since nobody would count it to its end.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::before::{self, Before, Counted, NodeBefore, SizeBefore};
use super::report::{Damped, Finding, Status, Subject};
use super::seen::Seen;
use crate::host::whole;
use crate::topology::model::Cluster;

const FORMAT: u32 = 1;

/// What is remembered of a herd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    format: u32,
    /// When the herd was judged last.
    pub last_success: Option<Timestamp>,
    /// Those that are counted, in the order of the last look.
    breaches: Vec<Breach>,
    /// By cluster.
    looks: BTreeMap<String, Before>,
}

/// A check that was in breach when it was looked at last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Breach {
    cluster: String,
    check: String,
    subject: Subject,
    /// Looks in a row.
    looks: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self { format: FORMAT, last_success: None, breaches: Vec::new(), looks: BTreeMap::new() }
    }
}

impl Memory {
    /// Returns what was seen of a cluster before.
    pub fn before(&self, cluster: &str) -> Option<&Before> {
        self.looks.get(cluster)
    }

    /// Keeps what was seen for the next look.
    pub fn keep(&mut self, seen: &Seen<'_>) {
        let name = &seen.cluster.name;
        let mut now = Before::of(seen);
        // Also with two looks in one run, of which the first one remembers nothing.
        now.sizes = self.looks.remove(name).map(|before| before.sizes).unwrap_or_default();
        if let Some(bytes) = seen.size() {
            before::remember(&mut now.sizes, SizeBefore { at: seen.at, bytes });
        }
        self.looks.insert(name.clone(), now);
    }

    /// Counts breaches, and holds back those that have not lasted as long as the file says. What is not known neither counts nor clears.
    pub fn damp(&mut self, cluster: &Cluster, findings: &mut [Finding]) {
        let old: Vec<Breach> =
            self.breaches.extract_if(.., |breach| breach.cluster == cluster.name).collect();
        for finding in findings {
            let after = after(cluster, finding);
            if after <= 1 {
                continue;
            }
            let is_this =
                |breach: &&Breach| breach.check == finding.check.name() && breach.subject == finding.subject;
            let before = old.iter().find(is_this).map_or(0, |breach| breach.looks);
            let looks = match finding.status {
                Status::Ok => 0,
                Status::Unknown => before,
                Status::Warning | Status::Critical => before.saturating_add(1),
            };
            if looks > 0 {
                self.breaches.push(Breach {
                    cluster: cluster.name.clone(),
                    check: finding.check.name().to_owned(),
                    subject: finding.subject.clone(),
                    looks,
                });
            }
            let breaks = matches!(finding.status, Status::Warning | Status::Critical);
            if breaks && looks < after {
                finding.text = format!("{} ({looks} of {after})", finding.text);
                finding.damped = Some(Damped { status: finding.status, looks, after });
                finding.status = Status::Ok;
                finding.next = None;
            }
        }
    }
}

impl Before {
    /// Takes from a look what the next one compares itself with.
    pub fn of(seen: &Seen<'_>) -> Self {
        use crate::db::queries::ServerRole;
        let nodes = seen.each().filter_map(|(_, node, asked)| {
            let role = &node.running()?.facts.role;
            let replayed_lsn = match role {
                ServerRole::Primary { .. } => None,
                ServerRole::Standby { replayed_lsn, .. } => *replayed_lsn,
            };
            let replay = asked.replay.as_ref().ok().and_then(Option::as_ref);
            let conflicts = replay.map_or(0, |replay| replay.conflicts);
            let counted = asked.counters.as_ref().ok().map(|rows| Counted::of(rows, conflicts));
            Some((node.node.clone(), NodeBefore { lsn: role.lsn(), replayed_lsn, counted }))
        });
        Self { at: seen.at, nodes: nodes.collect(), sizes: Vec::new() }
    }
}

/// Returns from how many looks in a row on a breach counts.
fn after(cluster: &Cluster, finding: &Finding) -> u32 {
    let Some(check) = finding.check.own() else { return 1 };
    let of_node = match &finding.subject {
        Subject::Node(name) => cluster.node(name).and_then(|node| node.health.get(&check)),
        Subject::Cluster | Subject::Pooler(_) | Subject::Part(_) => None,
    };
    let of_cluster = cluster.health.get(&check);
    let stated = of_node.and_then(|declared| declared.after);
    stated.or(of_cluster.and_then(|declared| declared.after)).unwrap_or(1)
}

/// The file, held by one run at a time while it counts.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    /// The kernel frees it when the run ends, however it ends.
    _lock: File,
}

/// What was read.
#[derive(Debug)]
pub struct Remembered {
    pub memory: Memory,
    /// Why it begins anew, where something was there.
    pub lost: Option<String>,
}

/// How long a run waits for another that counts; counting takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

impl Keeper {
    /// Holds the memory of a herd.
    ///
    /// # Errors
    /// When this user cannot write it, or another run holds it for longer than any count takes.
    pub async fn hold(state: &Path, herd: &str) -> io::Result<Self> {
        let path = path(state, herd);
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.with_extension("lock"))?;
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { path, _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what is remembered.
    pub fn read(&self) -> Remembered {
        read(&self.path)
    }

    /// Puts it in place, as a whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, memory: &Memory) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(memory).expect("a memory has only text keys");
        bytes.push(b'\n');
        whole::replace(&self.path, 0o644, &bytes)
    }
}

/// Reads what is remembered without holding it: what an earlier look saw.
pub fn recall(state: &Path, herd: &str) -> Remembered {
    read(&path(state, herd))
}

fn path(state: &Path, herd: &str) -> PathBuf {
    state.join("health").join(format!("{herd}.json"))
}

fn read(path: &Path) -> Remembered {
    let anew = |why: Option<String>| Remembered {
        memory: Memory::default(),
        lost: why.map(|why| format!("{} begins anew: {why}", path.display())),
    };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return anew(None),
        Err(error) => return anew(Some(error.to_string())),
    };
    match serde_json::from_slice::<Memory>(&bytes) {
        Ok(memory) if memory.format == FORMAT => Remembered { memory, lost: None },
        Ok(memory) => anew(Some(format!("it is of format {}", memory.format))),
        Err(error) => anew(Some(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::health::report::CheckName;
    use crate::topology::checks::Check;

    const HERD: &str = "
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    postgres: {version: 15, tune: {memory: 512 MiB}}
    health: {lag: {after: 3}}
    nodes:
      a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary, health: {lag: {after: 1}}}
      b: {host: local, port: 5442, data-directory: /srv/b}
    poolers: none
";

    fn cluster() -> Cluster {
        crate::topology::load_text(Path::new("pgherd.yml"), HERD, Path::new("/")).unwrap().clusters.remove(0)
    }

    fn lag(node: &str, status: Status) -> Finding {
        Finding {
            check: CheckName::Own(Check::Lag),
            cluster: "inventory".to_owned(),
            subject: Subject::Node(node.to_owned()),
            status,
            text: "behind".to_owned(),
            next: Some("look".to_owned()),
            follows: None,
            damped: None,
            measured: Vec::new(),
        }
    }

    fn look(memory: &mut Memory, node: &str, status: Status) -> Finding {
        let mut findings = [lag(node, status)];
        memory.damp(&cluster(), &mut findings);
        let [finding] = findings;
        finding
    }

    #[test]
    fn a_breach_counts_from_the_third_look_in_a_row_on() {
        let mut memory = Memory::default();
        let first = look(&mut memory, "b", Status::Critical);
        assert_eq!((first.status, first.text.as_str()), (Status::Ok, "behind (1 of 3)"));
        assert_eq!(first.damped, Some(Damped { status: Status::Critical, looks: 1, after: 3 }));
        assert_eq!(look(&mut memory, "b", Status::Warning).text, "behind (2 of 3)");
        for _ in 0..2 {
            let third = look(&mut memory, "b", Status::Warning);
            assert_eq!((third.status, third.text.as_str()), (Status::Warning, "behind"));
            assert_eq!(third.damped, None);
        }
    }

    #[test]
    fn a_fine_look_begins_anew_and_one_that_knows_nothing_neither_counts_nor_clears() {
        let mut memory = Memory::default();
        look(&mut memory, "b", Status::Critical);
        assert_eq!(look(&mut memory, "b", Status::Unknown).status, Status::Unknown);
        assert_eq!(look(&mut memory, "b", Status::Critical).text, "behind (2 of 3)");
        look(&mut memory, "b", Status::Ok);
        assert_eq!(look(&mut memory, "b", Status::Critical).text, "behind (1 of 3)");
    }

    #[test]
    fn a_node_has_a_count_of_its_own_and_other_clusters_keep_theirs() {
        let mut memory = Memory::default();
        assert_eq!(look(&mut memory, "a", Status::Critical).status, Status::Critical);
        look(&mut memory, "b", Status::Critical);
        let other = Cluster { name: "other".to_owned(), ..cluster() };
        memory.damp(&other, &mut [Finding { cluster: "other".to_owned(), ..lag("b", Status::Critical) }]);
        assert_eq!(memory.breaches.len(), 2);
        assert_eq!(look(&mut memory, "b", Status::Critical).text, "behind (2 of 3)");
    }

    #[test]
    fn what_is_remembered_is_what_it_was() {
        let golden = include_str!("../../../tests/golden/health-memory-v1.json");
        let memory: Memory = serde_json::from_str(golden).unwrap();
        assert_eq!(memory.breaches[0].looks, 2);
        assert_eq!(format!("{}\n", serde_json::to_string(&memory).unwrap()), golden);
    }

    #[tokio::test]
    async fn a_memory_that_cannot_be_read_begins_anew_and_says_so() {
        let state = tempfile::tempdir().unwrap();
        let keeper = Keeper::hold(state.path(), "shop").await.unwrap();
        assert_eq!(keeper.read().lost, None);
        for (text, why) in [
            ("{\"format\":", "EOF"),
            ("{\"format\":2,\"last_success\":null,\"breaches\":[],\"looks\":{}}", "format 2"),
        ] {
            fs::write(state.path().join("health/shop.json"), text).unwrap();
            let read = keeper.read();
            assert_eq!(read.memory, Memory::default());
            assert!(read.lost.as_ref().is_some_and(|lost| lost.contains(why)), "{:?}", read.lost);
        }
        let mut memory = Memory::default();
        look(&mut memory, "b", Status::Critical);
        keeper.write(&memory).unwrap();
        assert_eq!(recall(state.path(), "shop").memory, memory);
    }

    #[tokio::test]
    async fn runs_at_the_same_time_count_one_after_the_other() {
        let state = tempfile::tempdir().unwrap();
        let count = || async {
            let keeper = Keeper::hold(state.path(), "shop").await.unwrap();
            let mut memory = keeper.read().memory;
            look(&mut memory, "b", Status::Critical);
            tokio::task::yield_now().await;
            keeper.write(&memory).unwrap();
        };
        futures_util::future::join_all((0..20).map(|_| count())).await;
        assert_eq!(recall(state.path(), "shop").memory.breaches[0].looks, 20);
    }
}
