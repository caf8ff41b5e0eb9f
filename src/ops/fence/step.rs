//! The steps of a fence as data, and how each is probed, done and undone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::World;
use super::mark::{self, Force, Mark, ShutOut};
use crate::engine::step::{Cx, Found, Retry, Reversal, Step, StepError};
use crate::ops::provision;

/// One change on the way. Node names are names within the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FenceStep {
    /// Write down beside the node that it must not come up as a primary.
    Mark { node: String, why: String },
    /// The pivot: end its server, see that nothing of it runs, and have whatever starts it start a standby. A server that is ending cannot
    /// be called back.
    ShutOut { node: String, why: String, force: Force, seconds: u64 },
    /// Let the node be what it was.
    Lift { node: String, mark: Mark },
}

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Done {
    Marked {},
    ShutOut(ShutOut),
    Lifted {},
}

impl Step for FenceStep {
    type World = World;
    type Evidence = Done;

    fn describe(&self) -> String {
        match self {
            Self::Mark { node, .. } => format!("mark {node} as fenced"),
            Self::ShutOut { node, .. } => format!("stop {node} and see that nothing of it runs"),
            Self::Lift { node, .. } => format!("unfence {node}"),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::Mark { .. } | Self::Lift { .. } => Reversal::Undo,
            Self::ShutOut { .. } => Reversal::ForwardOnly,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Mark { .. } | Self::Lift { .. } => Duration::from_secs(60),
            Self::ShutOut { seconds, .. } => {
                Duration::from_secs(*seconds) + provision::STOP + Duration::from_secs(60)
            }
        }
    }

    fn retry(&self) -> Retry {
        Retry::NEVER
    }

    async fn probe(&self, cx: &Cx<'_, Self>) -> Result<Found<Done>, StepError> {
        let world = cx.world;
        Ok(match self {
            Self::Mark { node, .. } => match mark::read(&world.site(node)?).await? {
                Some(_) => Found::Done(Done::Marked {}),
                None => Found::NotDone,
            },
            Self::ShutOut { node, .. } => match mark::look(&world.site(node)?).await? {
                Some(found) => Found::Done(Done::ShutOut(found)),
                None => Found::NotDone,
            },
            Self::Lift { node, .. } => match mark::read(&world.site(node)?).await? {
                Some(_) => Found::NotDone,
                None => Found::Done(Done::Lifted {}),
            },
        })
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Done, StepError> {
        let world = cx.world;
        match self {
            Self::Mark { node, why } => {
                let site = world.site(node)?;
                mark::mark(&site, &mark::new_mark(&site, why)).await?;
                Ok(Done::Marked {})
            }
            Self::ShutOut { node, why, force, seconds } => {
                let site = world.site(node)?;
                let done = mark::shut_out(&site, why, *force, Duration::from_secs(*seconds)).await?;
                Ok(Done::ShutOut(done))
            }
            Self::Lift { node, .. } => {
                let site = world.site(node)?;
                // The mark goes last: until then nothing of pgherd's starts it.
                mark::unseal(&site).await?;
                mark::lift(&site).await?;
                Ok(Done::Lifted {})
            }
        }
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        let world = cx.world;
        match self {
            Self::Mark { node, .. } => Ok(mark::take_back(&world.site(node)?).await?),
            Self::Lift { node, mark } => Ok(mark::put_back(&world.site(node)?, mark).await?),
            Self::ShutOut { .. } => Ok(()),
        }
    }
}
