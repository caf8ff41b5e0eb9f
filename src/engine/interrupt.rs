//! The operator's wish to stop, from Ctrl-C or SIGTERM to the driver.
//!
//! Says only how often it was asked; what follows is decided in [`operation`](crate::engine::operation).

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Error, Result};

/// Asks a running operation to stop. Clones ask the same operation.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<watch::Sender<u32>>);

impl Default for Interrupt {
    fn default() -> Self {
        Self::new()
    }
}

impl Interrupt {
    /// One that nobody has asked yet.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// One that SIGINT and SIGTERM ask, from now on as long as the runtime lives.
    ///
    /// # Errors
    /// When the operating system gives no signal handler.
    pub fn on_signals() -> Result<Self> {
        let listen = |kind: SignalKind| {
            signal(kind).map_err(|error| Error::failed("could not listen for signals").source(error))
        };
        let interrupt = Self::new();
        for signal in [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?] {
            tokio::spawn(interrupt.clone().follow(signal));
        }
        Ok(interrupt)
    }

    async fn follow(self, mut signal: Signal) {
        while signal.recv().await.is_some() {
            self.ask();
        }
    }

    /// Asks once more.
    pub fn ask(&self) {
        self.0.send_modify(|times| *times = times.saturating_add(1));
    }

    /// Tells whether it was asked at all.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Returns when it was asked at least so often.
    pub async fn asked(&self, times: u32) {
        let mut receiver = self.0.subscribe();
        receiver.wait_for(|asked| *asked >= times).await.expect("the sender lives as long as self");
    }
}
