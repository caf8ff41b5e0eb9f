//! One process that looks at the primary, and says when a failover is due.
//!
//! Not a consensus: two watchers that see different halves of a network agree on nothing but the lock in the repository. What keeps rows safe is
//! the same as by hand: the witnesses, the fence, and enough standbys.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::Conn;
use crate::db::queries::{self, ServerRole};
use crate::engine::interrupt::Interrupt;
use crate::engine::lock::Lock;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::failover::plan::{self, FailPlan, Wish};
use crate::ops::failover::sight::{self, Sight};
use crate::ops::observe::Doors;
use crate::topology::model::{Cluster, Herd};

/// How often a primary that answers is asked.
const EVERY: Duration = Duration::from_millis(500);
/// How long it may take to answer before everybody else is asked as well.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a watcher tells while it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// This node leads.
    Leads { node: String },
    /// It does not answer here, and is not gone.
    Seen { why: String },
    /// Nobody sees it.
    Gone { node: String, why: String },
    /// No primary can be told.
    Unclear { why: String },
    /// It has been gone for long enough, and nothing is done: everything that is in the way.
    Refused { why: Vec<String> },
}

/// A watcher of one cluster; there is one on a station.
#[derive(Debug)]
pub struct Watch<'a> {
    context: &'a Context,
    herd: &'a Herd,
    cluster: &'a Cluster,
    wish: &'a Wish,
    when_down: Duration,
    leads: Option<(String, Conn)>,
    /// Since when nobody sees it.
    gone: Option<Instant>,
    last: Option<Told>,
    /// Held as long as this watches.
    _lock: Lock,
}

impl<'a> Watch<'a> {
    /// Begins to watch.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] where another process of this station does.
    pub async fn begin(
        context: &'a Context,
        herd: &'a Herd,
        cluster: &'a Cluster,
        wish: &'a Wish,
        when_down: Duration,
    ) -> Result<Self> {
        // No cluster has a name with a dot.
        let lock = Lock::take(&context.store, &format!("{}.watch", cluster.name), Duration::ZERO).await;
        let lock = lock.map_err(|error| {
            if error.kind() != ErrorKind::Locked {
                return error;
            }
            Error::new(ErrorKind::Locked, format!("another process watches {} already", cluster.name))
                .detail(error.detail_text().unwrap_or_default().to_owned())
        })?;
        Ok(Self { context, herd, cluster, wish, when_down, leads: None, gone: None, last: None, _lock: lock })
    }

    /// Looks until nobody has seen the primary for long enough and a failover can be done; `None` if it is interrupted.
    ///
    /// # Errors
    /// When the doors cannot be opened.
    pub async fn until_due(
        &mut self,
        told: &mut dyn FnMut(&Told),
        interrupt: &Interrupt,
    ) -> Result<Option<FailPlan>> {
        let work = async {
            loop {
                if let Some(plan) = self.look(told).await? {
                    return Ok(Some(plan));
                }
                let left = self.gone.map(|since| self.when_down.saturating_sub(since.elapsed()));
                sleep(left.filter(|left| !left.is_zero()).map_or(EVERY, |left| left.min(EVERY))).await;
            }
        };
        tokio::select! {
            plan = work => plan,
            () = interrupt.asked(1) => Ok(None),
        }
    }

    /// Has it look from the beginning after a failover that came to nothing.
    pub fn again(&mut self) {
        (self.leads, self.gone, self.last) = (None, None, None);
    }

    async fn look(&mut self, told: &mut dyn FnMut(&Told)) -> Result<Option<FailPlan>> {
        if self.still_leads().await {
            return Ok(None);
        }
        // A plan looks from everywhere as well: once it is due, nobody waits for a look before that.
        if matches!(self.last, Some(Told::Gone { .. })) && self.is_due() {
            return Ok(match self.plan().await {
                Ok(plan) => Some(plan),
                Err(now) => {
                    self.tell(now, told);
                    None
                }
            });
        }
        let begun = Instant::now();
        let now = match sight::look(self.context, self.cluster).await? {
            Sight::Leads(node) => {
                self.gone = None;
                self.stay(&node).await;
                Told::Leads { node }
            }
            Sight::Seen { why } => {
                self.gone = None;
                Told::Seen { why }
            }
            Sight::Unclear { why } => {
                self.gone = None;
                Told::Unclear { why }
            }
            Sight::Gone { node, why } => {
                self.gone.get_or_insert(begun);
                if self.is_due() {
                    match self.plan().await {
                        Ok(plan) => return Ok(Some(plan)),
                        Err(refused) => refused,
                    }
                } else {
                    Told::Gone { node, why }
                }
            }
        };
        self.tell(now, told);
        Ok(None)
    }

    /// Tells whether nobody has seen the primary for long enough.
    fn is_due(&self) -> bool {
        self.gone.is_some_and(|since| since.elapsed() >= self.when_down)
    }

    async fn plan(&self) -> Result<FailPlan, Told> {
        let planned = plan::plan(self.context, self.herd, self.cluster, self.wish).await;
        planned.map_err(|errors| Told::Refused { why: errors.iter().map(in_a_line).collect() })
    }

    /// Tells what is another thing than what was told last.
    fn tell(&mut self, now: Told, told: &mut dyn FnMut(&Told)) {
        let same = match (&self.last, &now) {
            // Its words count the seconds.
            (Some(Told::Gone { node: before, .. }), Told::Gone { node, .. }) => before == node,
            (Some(Told::Refused { .. }), Told::Refused { .. }) => true,
            (last, now) => last.as_ref() == Some(now),
        };
        if !same {
            told(&now);
            self.last = Some(now);
        }
    }

    /// Asks the primary by the session that is open to it.
    async fn still_leads(&mut self) -> bool {
        let Some((_, conn)) = &self.leads else { return false };
        let asked = tokio::time::timeout(PATIENCE, queries::server_facts(conn)).await;
        let leads = matches!(&asked, Ok(Ok(facts)) if matches!(facts.role, ServerRole::Primary { .. }));
        if !leads {
            self.leads = None;
        }
        leads
    }

    async fn stay(&mut self, name: &str) {
        let Some(node) = self.cluster.node(name) else { return };
        let Ok(doors) = Doors::look(self.cluster, self.context.places.clone(), &self.context.gate) else {
            return;
        };
        let connector = doors.connector.clone().timeouts(PATIENCE, PATIENCE);
        let conn = connector.connect(&doors.superuser(self.cluster, node, "postgres")).await;
        self.leads = conn.ok().map(|conn| (name.to_owned(), conn));
    }
}

fn in_a_line(error: &Error) -> String {
    match error.detail_text() {
        Some(detail) => format!("{error}. {detail}"),
        None => error.to_string(),
    }
}
