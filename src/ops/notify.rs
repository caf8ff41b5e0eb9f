//! Somebody is told over HTTP that a role change begins and how it ended.
//!
//! Never delays an operation and never makes one fail: what is told goes its own way beside it, and only after the end it is waited for,
//! for a moment. Nothing here is tried for ever: who is not there misses it, and the operator is warned.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{self, Operation, Outcome, Way};
use crate::engine::record::{Actor, Failure, OperationId};
use crate::engine::step::Step;
use crate::error::{Error, ErrorKind, Result};
use crate::net::webhook::{NotTaken, Webhook};
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::observe;
use crate::ops::succession::Input;
use crate::topology::model::{Cluster, Notify};
use crate::topology::notices::Occasion;

/// The format of [`Notice`].
pub const FORMAT: u32 = 1;
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one notice is tried.
const EACH: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How long the end of an operation waits until what was told is taken.
const LAST: Duration = Duration::from_secs(5);

/// What is told. See docs/formats/notice.md; a change is a new format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice {
    pub format: u32,
    pub event: Occasion,
    /// All of it in one sentence; what chat systems show.
    pub text: String,
    pub at: Timestamp,
    pub herd: String,
    pub cluster: String,
    pub operation: OperationId,
    pub kind: String,
    pub outcome: How,
    /// The nodes whose role changes, where the operation has them: `inventory-a`.
    pub old_primary: Option<String>,
    pub new_primary: Option<String>,
    pub by: By,
    /// Why it did not end well.
    pub why: Option<Why>,
    /// The command that goes on with it.
    pub next: Option<String>,
}

/// How it is with the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Running,
    Done,
    /// Taken back; everything is as it was.
    Undone,
    /// What counts has happened, and something is left.
    Incomplete,
    /// It neither goes on nor back without an operator.
    Stuck,
}

/// Who runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct By {
    pub user: String,
    pub host: String,
}

/// An error, in PostgreSQL's three lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    pub what: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

/// What is driven, as those who are told know it.
#[derive(Debug)]
pub struct Subject<'a> {
    pub context: &'a Context,
    pub herd: &'a str,
    pub cluster: &'a Cluster,
    /// Names of nodes within the cluster.
    pub old_primary: Option<&'a str>,
    pub new_primary: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// One node that leads after another.
    pub fn of(context: &'a Context, input: &'a Input) -> Self {
        Self {
            context,
            herd: &input.herd,
            cluster: &input.cluster,
            old_primary: Some(&input.from),
            new_primary: Some(&input.to),
        }
    }

    /// A cluster whose primary stays.
    pub fn without_change(context: &'a Context, herd: &'a str, cluster: &'a Cluster) -> Self {
        Self { context, herd, cluster, old_primary: None, new_primary: None }
    }
}

impl Subject<'_> {
    /// Drives an operation to its end as [`operation::run`] does, and tells of it.
    ///
    /// # Errors
    /// As [`operation::run`].
    pub async fn run<S: Step>(
        &self,
        operation: &mut Operation<S>,
        world: &S::World,
        events: &EventSink,
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let teller = self.begin(operation, "begins", events);
        let ended = operation::run(operation, world, events, interrupt).await;
        self.end(teller, operation, &ended).await;
        ended
    }

    /// Goes on with an operation, or takes it back, as [`operation::go`] does, and tells of it.
    ///
    /// # Errors
    /// As [`operation::go`].
    pub async fn go<S: Step>(
        &self,
        operation: &mut Operation<S>,
        world: &S::World,
        way: Way,
        events: &EventSink,
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let doing = match way {
            Way::Forward => "goes on",
            Way::Back => "is being taken back",
        };
        let teller = self.begin(operation, doing, events);
        let ended = operation::go(operation, world, way, events, interrupt).await;
        self.end(teller, operation, &ended).await;
        ended
    }

    fn begin<S: Step>(&self, operation: &Operation<S>, doing: &str, events: &EventSink) -> Option<Teller> {
        // One that has ended is only looked at.
        let notify = self.cluster.notify.clone().filter(|_| !operation.view().is_finished())?;
        let teller = Teller::start(self.context.clone(), notify, operation.id(), events.clone());
        teller.tell(self.notice(operation, (How::Running, doing), None));
        Some(teller)
    }

    async fn end<S: Step>(&self, teller: Option<Teller>, operation: &Operation<S>, ended: &Result<Outcome>) {
        let Some(teller) = teller else { return };
        let (how, why) = match ended {
            Ok(Outcome::Done) => ((How::Done, "is done"), None),
            Ok(Outcome::Restored { why }) => ((How::Undone, "was taken back"), Some(why)),
            Ok(Outcome::Incomplete { why, .. }) => ((How::Incomplete, "is done but incomplete"), Some(why)),
            Ok(Outcome::Stuck { why, .. }) => ((How::Stuck, "needs an operator"), Some(why)),
            Ok(Outcome::AlreadyEnded(_)) => return teller.finish().await,
            // Another process goes on with it, and tells.
            Err(error) if error.kind() == ErrorKind::Locked => return teller.finish().await,
            // It stands where it stood, or was left in its middle.
            Err(error) => ((How::Stuck, "needs an operator"), Some(error)),
        };
        teller.tell(self.notice(operation, how, why));
        teller.finish().await;
    }

    fn notice<S: Step>(
        &self,
        operation: &Operation<S>,
        (outcome, what): (How, &str),
        why: Option<&Error>,
    ) -> Notice {
        let header = operation.header();
        let Actor { user, host, .. } = Actor::here();
        let event = match outcome {
            How::Running => Occasion::Started,
            How::Done | How::Undone => Occasion::Done,
            How::Incomplete | How::Stuck => Occasion::Stuck,
        };
        let full = |node: Option<&str>| node.map(|node| self.cluster.full_name(node));
        let (old_primary, new_primary) = (full(self.old_primary), full(self.new_primary));
        let roles = match (&old_primary, &new_primary) {
            (Some(old), Some(new)) => format!(" from {old} to {new}"),
            (Some(_), None) | (None, Some(_)) | (None, None) => String::new(),
        };
        let why = why.map(|error| {
            let Failure { what, detail, hint, .. } = Failure::from(error);
            Why { what, detail, hint }
        });
        let because = why.as_ref().map(|why| format!(": {}", why.what)).unwrap_or_default();
        let next = match outcome {
            How::Running | How::Done | How::Undone => None,
            How::Incomplete => Some(header.operation.resume_command()),
            How::Stuck => Some(format!("pgherd operation show {}", header.operation)),
        };
        Notice {
            format: FORMAT,
            event,
            text: format!(
                "{}/{}: {}{roles} {what}{because} (operation {}, {user} on {host})",
                self.herd, self.cluster.name, header.kind, header.operation
            ),
            at: Timestamp::now(),
            herd: self.herd.to_owned(),
            cluster: self.cluster.name.clone(),
            operation: header.operation,
            kind: header.kind,
            outcome,
            old_primary,
            new_primary,
            by: By { user, host },
            why,
            next,
        }
    }
}

/// What tells, beside the operation.
#[derive(Debug)]
struct Teller {
    notices: mpsc::UnboundedSender<Notice>,
    occasions: Vec<Occasion>,
    work: JoinHandle<()>,
    operation: OperationId,
    events: EventSink,
}

impl Teller {
    fn start(context: Context, notify: Notify, operation: OperationId, events: EventSink) -> Self {
        let (notices, mut waiting) = mpsc::unbounded_channel::<Notice>();
        let occasions = notify.events.clone();
        let (id, sink) = (operation.clone(), events.clone());
        let work = tokio::spawn(async move {
            let mut hook = None;
            while let Some(notice) = waiting.recv().await {
                let told = async {
                    let hook = match hook.take() {
                        Some(hook) => hook,
                        None => open(&context, &notify).await?,
                    };
                    give(&hook, &notice).await?;
                    Ok::<_, Error>(hook)
                };
                match told.await {
                    Ok(open) => hook = Some(open),
                    Err(error) => sink.warn(&id, warning(notice.event, &error)),
                }
            }
        });
        Self { notices, occasions, work, operation, events }
    }

    fn tell(&self, notice: Notice) {
        if self.occasions.contains(&notice.event) {
            // The task ends with this sender and not before.
            self.notices.send(notice).ok();
        }
    }

    async fn finish(self) {
        let Self { notices, work, operation, events, .. } = self;
        drop(notices);
        let stop = work.abort_handle();
        if timeout_at(Instant::now() + LAST, work).await.is_err() {
            stop.abort();
            let text =
                format!("nobody took the notification within {} s; it is not tried any more", LAST.as_secs());
            events.warn(&operation, text);
        }
    }
}

fn warning(event: Occasion, error: &Error) -> String {
    let detail = error.detail_text().map(|detail| format!(" {detail}")).unwrap_or_default();
    format!("nobody was told \"{}\": {error}.{detail}", event.word())
}

async fn open(context: &Context, notify: &Notify) -> Result<Webhook> {
    let here = observe::open_own_door(&context.gate);
    let url = apply::resolve(&*here, &notify.url).await;
    let url = url.map_err(|error| error.context("find the address for notifications"))?;
    let authorities = match &notify.ca {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
            Error::failed(format!("could not read the authorities for notifications in {}", path.display()))
                .source(error)
        })?),
    };
    Webhook::to(&url, authorities.as_deref(), PATIENCE)
}

/// Gives a notice to its address, again and again for a while where that may help.
async fn give(hook: &Webhook, notice: &Notice) -> Result<()> {
    let json = serde_json::to_vec(notice)
        .map_err(|error| Error::failed("could not write a notification").source(error))?;
    let deadline = Instant::now() + EACH;
    let mut pause = FIRST_PAUSE;
    loop {
        let NotTaken { error, again } = match hook.post(&json).await {
            Ok(()) => return Ok(()),
            Err(not_taken) => not_taken,
        };
        if !again || Instant::now() + pause >= deadline {
            return Err(error);
        }
        sleep(pause).await;
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_reads_as_its_format_page_says() {
        let notice = Notice {
            format: FORMAT,
            event: Occasion::Stuck,
            text: "shop/inventory: switchover from inventory-a to inventory-b is done but incomplete: inventory-c does not \
                   stream (operation 7f3a, dba on station)"
                .to_owned(),
            at: "2026-11-21T09:14:07.37Z".parse().unwrap(),
            herd: "shop".to_owned(),
            cluster: "inventory".to_owned(),
            operation: OperationId("7f3a".to_owned()),
            kind: "switchover".to_owned(),
            outcome: How::Incomplete,
            old_primary: Some("inventory-a".to_owned()),
            new_primary: Some("inventory-b".to_owned()),
            by: By { user: "dba".to_owned(), host: "station".to_owned() },
            why: Some(Why {
                what: "inventory-c does not stream".to_owned(),
                detail: Some("Its receiver is not running.".to_owned()),
                hint: None,
            }),
            next: Some("pgherd operation resume 7f3a".to_owned()),
        };
        let golden = include_str!("../../tests/golden/notice-v1.json");
        assert_eq!(serde_json::to_string_pretty(&notice).unwrap(), golden.trim_end());
    }
}
