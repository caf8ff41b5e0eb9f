//! Exports of partitions whose rows are older than they are kept. No lease keeps them: whoever brings one back reads it to its end, or is told that it is gone.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ops::backup::holdings::Holdings;
use crate::ops::node::ExportsKept;
use crate::repo::export::{ExportKeys, ExportManifest};
use crate::repo::seal::SealError;
use crate::repo::{Key, Repo, document};
use crate::topology::partitions::{Keep, TableName};
use crate::units::ByteCount;

/// An export that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpiredExport {
    pub folder: Key,
    pub table: TableName,
    pub rows: u64,
    pub stored: ByteCount,
    /// Its last moment: UTC for a `timestamptz`.
    pub to: DateTime,
    pub keep: Keep,
}

/// An export that no rule keeps, and that the store lets nobody remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedExport {
    pub table: TableName,
    pub stored: ByteCount,
    pub until: Timestamp,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Old {
    pub(super) go: Vec<ExpiredExport>,
    /// What would go, but the store lets nobody remove it yet.
    pub(super) locked: Vec<LockedExport>,
    /// Manifests that cannot be used; what they are of stays.
    pub(super) unusable: Vec<(Key, SealError)>,
}

/// Finds the exports that go. Of a table of which nothing is said everything stays.
///
/// # Errors
/// As the repository fails.
pub(super) async fn old(
    repo: &dyn Repo,
    holdings: &Holdings,
    rules: &[ExportsKept],
    now: Timestamp,
) -> Result<Old> {
    let mut old = Old::default();
    if rules.is_empty() {
        return Ok(old);
    }
    let ended =
        holdings.systems.iter().flat_map(|of| &of.exports).filter(|(_, found)| found.manifest.is_some());
    for (folder, found) in ended {
        let key = ExportKeys::at(folder.clone()).manifest();
        let Some(manifest) = document::read::<ExportManifest>(repo, &key).await? else { continue };
        match manifest {
            Ok(manifest) => {
                let Some((to, keep)) = goes(&manifest, rules, now) else { continue };
                let (rows, stored) = (manifest.rows, manifest.stored);
                let table = TableName { schema: manifest.schema, name: manifest.partition };
                match found.locked.filter(|until| *until > now) {
                    Some(until) => old.locked.push(LockedExport { table, stored, until }),
                    None => {
                        let folder = folder.clone();
                        old.go.push(ExpiredExport { folder, table, rows, stored, to, keep });
                    }
                }
            }
            Err(error) => old.unusable.push((key, error)),
        }
    }
    Ok(old)
}

/// Returns the last moment of an export that goes, and how long it was kept.
fn goes(manifest: &ExportManifest, rules: &[ExportsKept], now: Timestamp) -> Option<(DateTime, Keep)> {
    let of =
        |rule: &&ExportsKept| rule.database == manifest.database && rule.table.to_string() == manifest.of;
    let rule = rules.iter().find(of)?;
    // What reaches to MAXVALUE has no last moment, and where the zone is not known nothing is over.
    let (to, zone) = (manifest.to?, TimeZone::get(&rule.timezone).ok()?);
    let then = rule.keep.before(&now.to_zoned(zone))?;
    let then = if manifest.key_type == "timestamp with time zone" {
        TimeZone::UTC.to_datetime(then.timestamp())
    } else {
        then.datetime()
    };
    (to <= then).then_some((to, rule.keep))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::seal;

    fn manifest(key_type: &str, to: &str) -> ExportManifest {
        let golden = include_str!("../../../../tests/golden/partition-export-v1.json");
        let manifest: ExportManifest = seal::read_document(golden.as_bytes()).unwrap();
        ExportManifest { key_type: key_type.to_owned(), to: Some(to.parse().unwrap()), ..manifest }
    }

    #[test]
    fn an_export_goes_when_its_last_moment_is_as_long_ago_as_it_is_kept() {
        let kept = manifest("timestamp with time zone", "2016-11-30T23:00:00");
        let rule = |timezone: &str| ExportsKept {
            database: kept.database.clone(),
            table: kept.of.parse().unwrap(),
            keep: Keep::parse("10 years").unwrap(),
            timezone: timezone.to_owned(),
        };
        let goes_at = |manifest: &ExportManifest, rule: ExportsKept, now: &str| {
            goes(manifest, &[rule], now.parse().unwrap()).is_some()
        };
        // The last midnight of November in Berlin.
        assert!(!goes_at(&kept, rule("Europe/Berlin"), "2026-11-30T22:59:59Z"));
        assert!(goes_at(&kept, rule("Europe/Berlin"), "2026-11-30T23:00:00Z"));
        let days = manifest("date", "2016-12-01T00:00:00");
        assert!(!goes_at(&days, rule("Europe/Berlin"), "2026-11-30T22:59:59Z"));
        assert!(goes_at(&days, rule("Europe/Berlin"), "2026-11-30T23:00:00Z"));
        assert!(!goes_at(&days, rule("No/Where"), "2036-11-30T23:00:00Z"));
        let other = ExportsKept { table: "shop.other".parse().unwrap(), ..rule("UTC") };
        assert!(!goes_at(&days, other, "2036-11-30T23:00:00Z"));
        let open = ExportManifest { to: None, ..days };
        assert!(!goes_at(&open, rule("UTC"), "2036-11-30T23:00:00Z"));
    }
}
