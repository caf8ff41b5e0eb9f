//! What the operator should know of a set beside its steps, as whole sentences.

use super::table_of;
use crate::ops::partition::look::Seen;
use crate::ops::partition::mark::{BEGIN, Mark};
use crate::topology::partitions::PartitionSet;

pub(super) fn notes(set: &PartitionSet, seen: &Seen) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(rows), Some(default)) = (&seen.default_rows, &seen.default)
        && rows.rows > 0
    {
        notes.push(format!(
            "The default partition {} has {}: pgherd partition drain {} --preview",
            table_of(default),
            rows.told(),
            set.table
        ));
    }
    if seen.parent.replica_identity == 'i' {
        notes.push("The table has REPLICA IDENTITY USING INDEX, which a new partition does not inherit: set it on each.".to_owned());
    }
    if !seen.wanted.is_empty() && !seen.publications.is_empty() {
        notes.push(format!(
            "Its partitions are published by {}; subscribers need ALTER SUBSCRIPTION … REFRESH PUBLICATION for new ones.",
            seen.publications.join(", ")
        ));
    }
    let references = seen.foreign_keys.iter().any(|key| key.from_oid == seen.parent.oid);
    let (major, minor) = (seen.session.version / 10_000, seen.session.version % 10_000);
    let fixed = match major {
        14 => Some(14),
        15 => Some(9),
        16 => Some(5),
        _ => None,
    };
    if let Some(fixed) = fixed.filter(|fixed| minor < *fixed)
        && references
    {
        notes.push(format!(
            "Before {major}.{fixed}, DETACH loses triggers of the foreign keys that a partition has (release notes of {major}.{fixed}): a table that is attached again does not check them."
        ));
    }
    for part in seen.parts.iter().filter(|part| part.is_restored()) {
        let until = part.mark.as_ref().and_then(|mark| mark.until);
        let until = until.map_or("for ever".to_owned(), |until| format!("until {until}"));
        notes.push(format!("{} was brought back from the repository and stays {until}.", part.table()));
    }
    if let Some(comment) = seen.taken.iter().find_map(|(found, _)| {
        found.comment.as_deref().filter(|c| c.starts_with(BEGIN) && Mark::read(c).is_none())
    }) {
        notes.push(format!("A comment is a mark of another version of pgherd: {comment}"));
    }
    notes
}
