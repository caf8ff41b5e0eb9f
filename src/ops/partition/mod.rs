//! Partitions by time: what is missing is made ahead, what is no longer kept is detached, exported, dropped.
//!
//! No journal: every step is one small change that a server makes whole or not at all, and what is left to do is read from the catalog again. A run
//! that was killed is ended by the next one (docs/architecture.md, "Partitions").

mod drain;
mod export;
mod grid;
mod look;
mod mark;
mod plan;
mod refuse;
mod restore;
mod run;
mod set;
mod standing;
mod worker;

pub use drain::{DrainWish, Drained, DrainedPeriod, drain};
pub use export::{Exported, export_here, exports_here};
pub use mark::BEGIN as MARK;
pub use plan::{Adopt, Kind, Plan, Step};
pub use restore::{BroughtBack, Destination, RestoreWish, exports, restore, restore_here};
pub use run::{
    Applied, PartitionFacts, SetApplied, SetFacts, SetListed, SetPlanned, StepDone, apply, list,
    plan as plan_sets,
};
pub use standing::{Amiss, Standing, standing};
pub use worker::Options;
