//! Brings the WAL that the backups need which will be there, before them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::objects::Trouble;
use super::{LeftObject, Transferred, Work};
use crate::error::{Error, Result};
use crate::ops::backup::holdings::OfSystem;
use crate::pg::lsn::Lsn;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::manifest::Manifest;
use crate::repo::seal::{self, Identity, Kind};
use crate::repo::{Put, wait};

/// The WAL that is there in the end, and what could not be copied.
pub(super) struct WalThere {
    pub(super) there: BTreeSet<WalFile>,
    pub(super) left: BTreeMap<WalFile, String>,
}

impl Work<'_> {
    /// Copies the WAL that the backups need which will be there: from the oldest one's beginning on, and every history.
    pub(super) fn wal(
        &self,
        of: &OfSystem,
        there: Option<&OfSystem>,
        wanted: &[Manifest],
        transferred: &mut Transferred,
    ) -> Result<WalThere> {
        let there_wal: BTreeSet<WalFile> =
            there.iter().flat_map(|there| &there.system.wal).map(|wal| wal.file).collect();
        let present =
            there.iter().flat_map(|there| &there.system.backups).filter_map(|b| b.manifest.as_ref());
        let begins = present.chain(wanted).map(|manifest| (manifest.start_lsn, manifest.wal_segment_size));
        let floor = begins.min_by_key(|(lsn, _)| *lsn);
        let is_needed = |file: WalFile| match (file, floor) {
            (WalFile::TimelineHistory(_), _) | (_, None) => true,
            (
                WalFile::Segment(name) | WalFile::Partial(name) | WalFile::BackupHistory(name, _),
                Some((lsn, size)),
            ) => holds_or_follows(name, lsn, size),
        };
        let missing: Vec<_> = of
            .system
            .wal
            .iter()
            .filter(|wal| is_needed(wal.file) && !there_wal.contains(&wal.file))
            .collect();
        self.total.fetch_add(missing.iter().map(|wal| wal.stored.0).sum(), Ordering::Relaxed);
        let ended = Mutex::new(BTreeMap::new());
        let brought = self.side_by_side(&missing, |wal| {
            let bytes = match self.wal_file(of, wal.file) {
                Ok(bytes) => Ok(bytes),
                Err(Trouble::Left(why)) => Err(why),
                Err(ends @ Trouble::Ends(_)) => return Err(ends),
            };
            self.tell(wal.stored.0);
            ended.lock().unwrap_or_else(PoisonError::into_inner).insert(wal.file, bytes);
            Ok(())
        });
        match brought {
            Ok(()) => {}
            Err(Trouble::Ends(error)) => return Err(error),
            Err(Trouble::Left(why)) => return Err(Error::failed(why)),
        }
        let mut wal = WalThere { there: there_wal, left: BTreeMap::new() };
        for (file, ended) in ended.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match ended {
                // Expired meanwhile: nothing that is kept needs it.
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    transferred.wal += 1;
                    transferred.stored.0 += bytes;
                    wal.there.insert(file);
                }
                Err(why) => {
                    transferred.left_objects.push(LeftObject { object: of.keys.wal(file), why: why.clone() });
                    wal.left.insert(file, why);
                }
            }
        }
        Ok(wal)
    }

    /// Copies a WAL file; returns its bytes, `None` if it is not there any more.
    fn wal_file(&self, of: &OfSystem, file: WalFile) -> Result<Option<u64>, Trouble> {
        let (key, name) = (of.keys.wal(file), file.to_string());
        let Some(object) = wait(self.from.read(&key))? else { return Ok(None) };
        let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: of.keys.system() };
        seal::open(identity, &object).map_err(|error| self.damaged(&key, error))?;
        // Who pushes it there at the same moment stores the same, or would have been refused here.
        match wait(self.to.create(&key, &object))? {
            Put::Stored | Put::Refused => Ok(Some(object.len() as u64)),
        }
    }
}

/// Tells whether a segment holds `lsn` or what follows it.
fn holds_or_follows(name: SegmentName, lsn: Lsn, size: WalSegmentSize) -> bool {
    name.end(size) > lsn
}
