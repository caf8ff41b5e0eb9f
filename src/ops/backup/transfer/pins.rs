//! Brings pins: a backup that is kept by hand in one repository is kept in the other, where no rule may keep it.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::objects::Trouble;
use super::{LeftObject, Transferred, Work};
use crate::error::Result;
use crate::ops::backup::holdings::OfSystem;
use crate::ops::backup::pin::Pin;
use crate::ops::backup::retention::{Backup, Pinned};
use crate::repo::layout::{Label, SystemKeys};
use crate::repo::{Put, document, seal};

impl Work<'_> {
    /// Returns the backups that are pinned, or may be, where they are copied from, and not there.
    pub(super) fn unpinned<'o>(
        &self,
        of: &'o OfSystem,
        there: Option<&'o OfSystem>,
    ) -> impl Iterator<Item = &'o Label> {
        let now = Timestamp::now();
        let theirs = move |label: &Label| {
            let mut backups = there.into_iter().flat_map(|of| &of.system.backups);
            backups.find(|backup| backup.label == *label)
        };
        let pinned = of.system.backups.iter().filter(move |backup| {
            is_pinned(backup, now) && theirs(&backup.label).is_none_or(|theirs| !is_pinned(theirs, now))
        });
        pinned.map(|backup| &backup.label).filter(|label| self.is_asked(label))
    }

    /// Pins each of `backups` there as it is pinned where it is copied from. A pin that it has there stays.
    pub(super) async fn pins(
        &self,
        of: &OfSystem,
        there: Option<&OfSystem>,
        backups: &BTreeSet<&Label>,
        transferred: &mut Transferred,
    ) -> Result<()> {
        for label in self.unpinned(of, there).filter(|label| backups.contains(label)) {
            match self.pin(&of.keys, label).await {
                Ok(brought) => transferred.pins += u64::from(brought),
                Err(Trouble::Left(why)) => {
                    let object = of.keys.backup(label).pin();
                    transferred.left_objects.push(LeftObject { object, why });
                }
                Err(Trouble::Ends(error)) => return Err(error),
            }
        }
        Ok(())
    }

    async fn pin(&self, system: &SystemKeys, label: &Label) -> Result<bool, Trouble> {
        let key = system.backup(label).pin();
        let Some(bytes) = self.from.read(&key).await? else { return Ok(false) };
        seal::read_document::<Pin>(&bytes).map_err(|error| self.damaged(&key, error))?;
        if self.to.create(&key, &bytes).await? == Put::Stored {
            return Ok(true);
        }
        match document::read::<Pin>(&**self.to, &key).await? {
            Some(Ok(theirs)) if theirs.is_over(Timestamp::now()) => {
                self.to.store(&key, &bytes).await?;
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }
}

fn is_pinned(backup: &Backup, now: Timestamp) -> bool {
    match &backup.pin {
        Pinned::No => false,
        Pinned::Until(until, _) => until.is_none_or(|until| until > now),
        Pinned::Unknown(_) => true,
    }
}
