//! What is asked of a switchover.

use std::time::Duration;

use serde::Serialize;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wish {
    /// The node that is to lead; the most suitable one if nobody names one.
    pub to: Option<String>,
    /// The region that it is to be in, if none is named.
    pub region: Option<String>,
    /// How long transactions that run may take to end, whole seconds.
    pub grace: Duration,
    /// Logical slots of the old primary may stay behind.
    pub leave_logical_slots: bool,
}
