//! A toy operation over real files: tokens move between accounts, a seal is the pivot, a report is published after it.
//!
//! Every token is in at least one account at every moment, and in exactly one when the operation has ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgherd::engine::operation::Intent;
use pgherd::engine::record::{End, TopologyFile};
use pgherd::engine::step::{Cx, Found, Retry, Reversal, Stage, Step, StepError, Unit};
use pgherd::engine::view::Ended;
use pgherd::error::Error;
use pgherd::gate::{Blocked, Gate};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::harness::Scenario;

/// A step of the toy operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToyStep {
    /// Makes the directory of an account.
    Open { account: String },
    /// Writes the token into one account, then removes it from the other: half way it is in both.
    Move { token: String, from: String, to: String },
    /// Counts the tokens of an account.
    Count { account: String },
    /// The pivot.
    Seal,
    /// Writes what `Count` found.
    Publish,
}

/// What a step left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Left {
    Nothing,
    Counted(usize),
}

#[derive(Debug)]
pub struct World {
    pub root: PathBuf,
    pub gate: Arc<dyn Gate>,
}

impl World {
    /// Passes the gate, acts on the files, and passes it again.
    async fn act<T>(&self, call: String, act: impl FnOnce() -> std::io::Result<T>) -> Result<T, StepError> {
        self.gate.before(&call).await.map_err(blocked)?;
        // Lets the steps beside this one have their turn, as real calls do.
        tokio::task::yield_now().await;
        let result = act();
        tokio::task::yield_now().await;
        self.gate.after(&call).await.map_err(blocked)?;
        result.map_err(|error| StepError::from(Error::failed(format!("could not {call}")).source(error)))
    }

    fn token(&self, account: &str, token: &str) -> PathBuf {
        self.root.join(account).join(token)
    }

    async fn has(&self, account: &str, token: &str) -> Result<bool, StepError> {
        let path = self.token(account, token);
        self.act(format!("look for {token} in {account}"), || path.try_exists()).await
    }

    /// Puts a token into one account and only then takes it out of the other.
    async fn transfer(&self, token: &str, from: &str, to: &str) -> Result<(), StepError> {
        let (source, target) = (self.token(from, token), self.token(to, token));
        if self.has(from, token).await? {
            self.act(format!("write {token} to {to}"), || std::fs::write(&target, token)).await?;
            self.act(format!("remove {token} from {from}"), || std::fs::remove_file(&source)).await?;
        }
        Ok(())
    }
}

fn blocked(blocked: Blocked) -> StepError {
    match blocked {
        Blocked::Before(_) => StepError::passing(Error::failed(blocked.to_string())),
        Blocked::After(_) => StepError::from(Error::failed(blocked.to_string())),
    }
}

fn missing_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Step for ToyStep {
    type World = World;
    type Evidence = Left;

    fn describe(&self) -> String {
        match self {
            Self::Open { account } => format!("open {account}"),
            Self::Move { token, from, to } => format!("move {token} from {from} to {to}"),
            Self::Count { account } => format!("count {account}"),
            Self::Seal => "seal".to_owned(),
            Self::Publish => "publish".to_owned(),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::Open { .. } | Self::Move { .. } => Reversal::Undo,
            Self::Count { .. } => Reversal::NothingToUndo,
            Self::Seal | Self::Publish => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Publish | Self::Open { .. } => Retry { attempts: 2, pause: Duration::from_millis(100) },
            Self::Move { .. } | Self::Count { .. } | Self::Seal => Retry::NEVER,
        }
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Left>, StepError> {
        let root = &cx.world.root;
        let exists = async |path: PathBuf| {
            let call = format!("look for {}", path.file_name().unwrap().display());
            let there = cx.world.act(call, || path.try_exists()).await?;
            Ok::<_, StepError>(if there { Found::Done(Left::Nothing) } else { Found::NotDone })
        };
        match self {
            Self::Open { account } => exists(root.join(account)).await,
            Self::Move { token, from, to } => {
                match (cx.world.has(from, token).await?, cx.world.has(to, token).await?) {
                    (false, true) => Ok(Found::Done(Left::Nothing)),
                    (true, _) => Ok(Found::NotDone),
                    (false, false) => {
                        Ok(Found::CannotTell(format!("{token} is neither in {from} nor in {to}")))
                    }
                }
            }
            Self::Count { .. } => Ok(Found::NotDone),
            Self::Seal => exists(root.join("sealed")).await,
            Self::Publish => exists(root.join("report")).await,
        }
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Left, StepError> {
        let World { root, .. } = cx.world;
        match self {
            Self::Open { account } => {
                let directory = root.join(account);
                cx.world.act(format!("make {account}"), || std::fs::create_dir_all(&directory)).await?;
            }
            Self::Move { token, from, to } => {
                (cx.progress.0)(1, Some(2), Unit::Items);
                cx.world.transfer(token, from, to).await?;
            }
            Self::Count { account } => {
                let directory = root.join(account);
                let count = || std::fs::read_dir(&directory).map(Iterator::count);
                return Ok(Left::Counted(cx.world.act(format!("count {account}"), count).await?));
            }
            Self::Seal => {
                cx.world.act("seal".to_owned(), || std::fs::write(root.join("sealed"), "sealed")).await?;
            }
            Self::Publish => {
                let counted = cx.evidence.iter().find_map(|(_, left)| match left {
                    Left::Counted(count) => Some(*count),
                    Left::Nothing => None,
                });
                let report = format!("{} tokens", counted.expect("a count comes before the report"));
                cx.world
                    .act("write report".to_owned(), || std::fs::write(root.join("report"), report))
                    .await?;
            }
        }
        Ok(Left::Nothing)
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        match self {
            Self::Open { account } => {
                let directory = cx.world.root.join(account);
                let remove = || missing_is_fine(std::fs::remove_dir(&directory));
                cx.world.act(format!("remove {account}"), remove).await
            }
            Self::Move { token, from, to } => {
                // Half way the token is in both: then only the copy goes.
                if cx.world.has(to, token).await? && !cx.world.has(from, token).await? {
                    let source = cx.world.token(from, token);
                    cx.world
                        .act(format!("write {token} to {from}"), || std::fs::write(&source, token))
                        .await?;
                }
                let copy = cx.world.token(to, token);
                let remove = || missing_is_fine(std::fs::remove_file(&copy));
                cx.world.act(format!("remove {token} from {to}"), remove).await
            }
            Self::Count { .. } | Self::Seal | Self::Publish => Ok(()),
        }
    }
}

/// The toy operation that the harness runs.
#[derive(Debug)]
pub struct Toy;

#[derive(Debug)]
pub struct Site {
    _directory: TempDir,
    pub root: PathBuf,
    pub state: PathBuf,
    initial: String,
}

pub const TOKENS: [&str; 4] = ["amber", "brass", "coral", "delft"];

impl Site {
    /// Makes a bank with all tokens; in memory where the machine has such a place, since thousands of them are made.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let (root, state) = (directory.path().join("world"), directory.path().join("state"));
        std::fs::create_dir_all(root.join("bank")).unwrap();
        for token in TOKENS {
            std::fs::write(root.join("bank").join(token), token).unwrap();
        }
        let initial = listing(&root);
        Self { _directory: directory, root, state, initial }
    }

    pub fn world(&self, gate: Arc<dyn Gate>) -> World {
        World { root: self.root.clone(), gate }
    }

    pub fn listing(&self) -> String {
        listing(&self.root)
    }

    pub fn is_initial(&self) -> bool {
        self.listing() == self.initial
    }
}

fn listing(root: &Path) -> String {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                lines.push(format!("{name}/"));
                open.push(path);
            } else {
                lines.push(format!("{name}: {}", std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    lines.sort();
    lines.join("\n")
}

/// The whole plan: two accounts side by side, moves one by one and side by side, a count, the seal, and a tail.
pub fn stages() -> Vec<Stage<ToyStep>> {
    let open = |account: &str| ToyStep::Open { account: account.to_owned() };
    let moved = |token: &str, from: &str, to: &str| ToyStep::Move {
        token: token.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
    };
    let stage = |steps: Vec<ToyStep>| Stage { steps };
    vec![
        stage(vec![open("anna"), open("ben")]),
        stage(vec![moved("amber", "bank", "anna")]),
        stage(vec![moved("brass", "bank", "anna"), moved("coral", "bank", "ben")]),
        stage(vec![ToyStep::Count { account: "anna".to_owned() }]),
        stage(vec![ToyStep::Seal]),
        stage(vec![ToyStep::Publish, moved("amber", "anna", "ben")]),
    ]
}

pub fn intent(stages: Vec<Stage<ToyStep>>) -> Intent<ToyStep> {
    Intent {
        kind: "toy".to_owned(),
        topology: TopologyFile { file: PathBuf::from("/etc/pgherd/pgherd.yml"), sha256: "0".repeat(64) },
        plan_digest: "1".repeat(64),
        input: serde_json::json!({"tokens": TOKENS}),
        stages,
    }
}

const DONE: &str = "anna/\nanna/brass: brass\nbank/\nbank/delft: delft\nben/\nben/amber: amber\nben/coral: coral\n\
                    report: 2 tokens\nsealed: sealed";

impl Scenario for Toy {
    type Step = ToyStep;
    type Site = Site;

    async fn fresh(&self) -> Site {
        Site::new()
    }

    fn state<'a>(&self, site: &'a Site) -> &'a Path {
        &site.state
    }

    async fn intent(&self, _site: &Site) -> Intent<ToyStep> {
        intent(stages())
    }

    async fn world(&self, site: &Site, gate: Arc<dyn Gate>) -> World {
        site.world(gate)
    }

    async fn snapshot(&self, site: &Site) -> String {
        site.listing()
    }

    async fn check(&self, site: &Site, ended: Option<&Ended>) -> Result<(), String> {
        let listing = site.listing();
        let mut places = BTreeMap::from(TOKENS.map(|token| (token, 0)));
        for line in listing.lines() {
            if let Some(token) = TOKENS.iter().find(|token| line.ends_with(&format!("/{token}: {token}"))) {
                *places.entry(*token).or_default() += 1;
            }
        }
        if let Some((token, _)) = places.iter().find(|(_, places)| **places == 0) {
            return Err(format!("{token} is lost:\n{listing}"));
        }
        let expected = match ended {
            None => return Ok(()),
            Some(Ended::By(End::Done)) => DONE,
            Some(Ended::By(End::Restored { .. })) => &site.initial,
            Some(other) => return Err(format!("ended as {other:?}")),
        };
        if listing == expected { Ok(()) } else { Err(format!("{ended:?}, but found:\n{listing}")) }
    }
}
