//! What the repository has for the restore: asked on the node, before anything is changed, and once more when all WAL is archived.

use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::ops::binary::Build;
use crate::ops::node::restore::{PlanForRestore, Wish};
use crate::ops::node::{NodeDoor, NodeRequest, Priority};
use crate::ops::observe::Doors;
use crate::ops::present;
use crate::ops::restore::survey::Survey;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::topology::model::{Cluster, Node, Repository};

/// Where to look.
#[derive(Debug)]
pub(super) struct Look<'a> {
    pub doors: &'a Doors,
    pub build: &'a Build,
    pub cluster: &'a Cluster,
    pub repository: &'a Repository,
    /// The node on whose host it is looked.
    pub node: &'a Node,
    pub system: SystemIdentifier,
    /// The timeline of the primary, if anybody can say.
    pub timeline: Option<TimelineId>,
}

impl Look<'_> {
    /// Chooses backup and WAL.
    ///
    /// # Errors
    /// As the survey.
    pub(super) async fn survey(&self, wish: &Wish) -> Result<Survey> {
        let request = PlanForRestore {
            repository: self.doors.location(&self.node.host, self.repository),
            cluster: self.cluster.name.clone(),
            system_identifier: Some(self.system),
            wish: wish.clone(),
            primary: self.timeline,
        };
        let door = NodeDoor::with(self.doors, &self.node.host, self.build).await?;
        door.call(&NodeRequest::PlanForRestore(Box::new(request)), Priority::Normal, Arc::new(|_| ())).await
    }

    /// As [`Look::survey`]; where the archive does not reach the target, `primary`, which still writes, finishes its segment, and the
    /// archive is asked again. What happened a minute ago is usually in the segment that is not full yet.
    ///
    /// # Errors
    /// As the survey.
    pub(super) async fn survey_to_the_present(&self, wish: &Wish, primary: Option<&Node>) -> Result<Survey> {
        let refused = match (self.survey(wish).await, primary) {
            (Err(error), Some(_)) if error.kind() == ErrorKind::Refused => error,
            (looked, _) => return looked,
        };
        let primary = primary.expect("matched above");
        let finished = present::finish_segment(
            self.doors,
            self.cluster,
            primary,
            self.system,
            self.repository,
            self.build,
        )
        .await;
        if let Err(error) = finished {
            tracing::warn!(%error, "could not have the primary finish its WAL segment");
            return Err(refused);
        }
        self.survey(wish).await
    }
}
