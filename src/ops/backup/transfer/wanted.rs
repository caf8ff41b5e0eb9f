//! Tells which backups are to be copied. Decides, never acts.

use std::collections::{BTreeMap, BTreeSet};

use super::{LeftBackup, Work};
use crate::ops::backup::holdings::OfSystem;
use crate::repo::layout::Label;
use crate::repo::manifest::Manifest;

/// What is to be copied of a system.
pub(super) struct Wanted {
    /// The oldest first: a later one may need chunks of an earlier one.
    pub(super) manifests: Vec<Manifest>,
    pub(super) left: Vec<LeftBackup>,
}

impl Work<'_> {
    /// Tells which backups are to be copied.
    pub(super) fn wanted(&self, of: &OfSystem, present: &BTreeSet<Label>) -> Wanted {
        let mut manifests: BTreeMap<Label, Manifest> = BTreeMap::new();
        let mut left = Vec::new();
        for backup in of.system.backups.iter().filter(|backup| !present.contains(&backup.label)) {
            match (&backup.manifest, &backup.broken) {
                (Some(manifest), None) => drop(manifests.insert(backup.label.clone(), manifest.clone())),
                (_, why) if self.is_asked(&backup.label) => left.push(LeftBackup {
                    label: backup.label.clone(),
                    why: why.clone().unwrap_or_else(|| "its manifest cannot be read".to_owned()),
                }),
                (_, _) => {}
            }
        }
        let mut wanted: BTreeSet<Label> =
            manifests.keys().filter(|label| self.is_asked(label)).cloned().collect();
        for label in manifests.keys().rev() {
            if wanted.contains(label) {
                wanted.extend(manifests[label].needs.iter().cloned());
            }
        }
        manifests.retain(|label, _| wanted.contains(label));
        Wanted { manifests: manifests.into_values().collect(), left }
    }

    pub(super) fn is_asked(&self, label: &Label) -> bool {
        self.request.labels.is_empty() || self.request.labels.contains(label)
    }
}

/// Returns the whole backups.
pub(super) fn whole(of: Option<&OfSystem>) -> BTreeSet<Label> {
    let whole = of.into_iter().flat_map(|of| &of.system.backups).filter(|backup| backup.broken.is_none());
    whole.map(|backup| backup.label.clone()).collect()
}
