//! What a driver tells while it runs.
//!
//! The lifecycle is lossless: a slow reader slows the operation down. Progress is lossy: only the newest of each step is kept,
//! and handed over at most ten times a second. Draws nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock};
use crate::engine::record::{OperationId, Record};
use crate::engine::view::{OperationView, ProgressView};

/// One thing that happened. `seq` counts within this process, over all its operations.
#[derive(Debug, Clone)]
pub struct Event {
    pub seq: u64,
    pub at: Timestamp,
    pub operation: OperationId,
    pub kind: EventKind,
}

#[derive(Debug, Clone)]
pub enum EventKind {
    /// A drive begins with the operation as the journal has it; the records that follow fold into this view.
    Begun(Box<OperationView>),
    /// A record was written to the journal.
    Recorded(Box<Record>),
    /// A step waits before it is tried again.
    Pausing {
        stage: usize,
        step: usize,
        pause: Duration,
    },
    /// Something went wrong that does not concern how the operation ends.
    Warning {
        text: String,
    },
    /// The operator asked to stop; the driver waits for the steps that run.
    Interrupted,
    Progress {
        stage: usize,
        step: usize,
        progress: ProgressView,
    },
}

const UNREAD: usize = 256;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

type Newest = BTreeMap<(OperationId, usize, usize), (Timestamp, ProgressView)>;

#[derive(Debug)]
struct Shared {
    seq: AtomicU64,
    newest: Mutex<Newest>,
    changed: Notify,
    /// How many more lifecycle events may lie unread.
    room: Semaphore,
    clock: Arc<dyn Clock>,
}

/// Where a driver tells its events; cloned for several operations at once.
#[derive(Debug, Clone)]
pub struct EventSink(Option<(mpsc::UnboundedSender<Event>, Arc<Shared>)>);

/// Where a reader gets them.
#[derive(Debug)]
pub struct EventStream {
    lifecycle: mpsc::UnboundedReceiver<Event>,
    shared: Arc<Shared>,
    progress_from: Instant,
}

/// Makes a sink and its stream.
pub fn channel() -> (EventSink, EventStream) {
    let (sender, lifecycle) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        seq: AtomicU64::new(0),
        newest: Mutex::default(),
        changed: Notify::new(),
        room: Semaphore::new(UNREAD),
        clock: Arc::new(SystemClock),
    });
    let stream = EventStream { lifecycle, shared: shared.clone(), progress_from: Instant::now() };
    (EventSink(Some((sender, shared))), stream)
}

impl Shared {
    fn event(&self, at: Timestamp, operation: OperationId, kind: EventKind) -> Event {
        Event { seq: self.seq.fetch_add(1, Ordering::Relaxed), at, operation, kind }
    }
}

impl EventSink {
    /// A sink that nobody reads.
    pub fn none() -> Self {
        Self(None)
    }

    /// Tells a lifecycle event; waits while the reader is behind, and goes on without one that is gone.
    ///
    /// The event takes its place in the stream before the first wait, so that the steps of a stage tell theirs in the order of
    /// the journal.
    pub async fn tell(&self, operation: &OperationId, at: Timestamp, kind: EventKind) {
        if let Some((sender, shared)) = &self.0
            && sender.send(shared.event(at, operation.clone(), kind)).is_ok()
            && let Ok(room) = shared.room.acquire().await
        {
            // The reader gives it back.
            room.forget();
        }
    }

    /// Tells of something that went wrong beside the operation; waits for nobody.
    pub fn warn(&self, operation: &OperationId, text: String) {
        if let Some((sender, shared)) = &self.0 {
            let kind = EventKind::Warning { text };
            // A reader that is gone misses it, as it misses everything.
            sender.send(shared.event(shared.clock.now(), operation.clone(), kind)).ok();
        }
    }

    /// Returns the time for an event that has no record of its own.
    pub fn now(&self) -> Timestamp {
        self.0.as_ref().map_or_else(Timestamp::now, |(_, shared)| shared.clock.now())
    }

    /// Tells how far a step is, in place of what was told and not yet read.
    pub fn progress(&self, operation: &OperationId, stage: usize, step: usize, progress: ProgressView) {
        if let Some((_, shared)) = &self.0 {
            let mut newest = shared.newest.lock().unwrap_or_else(PoisonError::into_inner);
            newest.insert((operation.clone(), stage, step), (shared.clock.now(), progress));
            drop(newest);
            shared.changed.notify_one();
        }
    }
}

impl EventStream {
    /// Returns the next event; `None` when every sink is gone.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                biased;
                event = self.lifecycle.recv() => {
                    self.shared.room.add_permits(usize::from(event.is_some()));
                    return event;
                }
                () = wait_for_progress(&self.shared, self.progress_from) => {
                    let mut newest = self.shared.newest.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(((operation, stage, step), (at, progress))) = newest.pop_first() {
                        if newest.is_empty() {
                            self.progress_from = Instant::now() + PROGRESS_EVERY;
                        }
                        let kind = EventKind::Progress { stage, step, progress };
                        return Some(self.shared.event(at, operation, kind));
                    }
                }
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.shared.room.close();
    }
}

async fn wait_for_progress(shared: &Shared, from: Instant) {
    loop {
        let changed = shared.changed.notified();
        if !shared.newest.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            tokio::time::sleep_until(from).await;
            return;
        }
        changed.await;
    }
}
