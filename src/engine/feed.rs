//! From a journal to those who copy it: every line that is on disk. Knows neither of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The lines of a journal that are on disk, for those who copy them.
#[derive(Debug)]
pub(crate) struct Feed {
    lines: Mutex<Vec<u8>>,
    length: watch::Sender<u64>,
}

impl Feed {
    pub(crate) fn new(lines: Vec<u8>) -> Self {
        let length = watch::Sender::new(lines.len() as u64);
        Self { lines: Mutex::new(lines), length }
    }

    pub(crate) fn add(&self, line: &[u8]) {
        let mut lines = self.lines();
        lines.extend_from_slice(line);
        self.length.send_replace(lines.len() as u64);
    }

    pub(crate) fn length(&self) -> u64 {
        *self.length.borrow()
    }

    pub(crate) fn lines(&self) -> MutexGuard<'_, Vec<u8>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of each change of the length.
    pub(crate) fn lengths(&self) -> watch::Receiver<u64> {
        self.length.subscribe()
    }
}
