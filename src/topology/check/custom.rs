//! What the checks say that the file declares itself.

use super::super::checks::{Check, Limits, Measure};
use super::super::custom::{CustomCheck, On};
use super::super::decode::{NamedEntry, SettingText, Spanned};
use super::super::raw;
use super::{Checker, Draft};
use crate::units::human_duration;

impl Checker<'_> {
    /// Checks what stands under "checks" in a cluster.
    pub(super) fn custom_checks(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Cluster,
        databases: &[String],
    ) -> Vec<CustomCheck> {
        let entries = raw.checks.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        entries.iter().filter_map(|entry| self.custom_check(draft, entry, databases)).collect()
    }

    fn custom_check(
        &mut self,
        draft: &Draft<'_>,
        entry: &NamedEntry<raw::CustomCheck>,
        databases: &[String],
    ) -> Option<CustomCheck> {
        let NamedEntry { name, at, value: raw } = entry;
        let path = draft.path(&format!(".checks.{name}"));
        let valid = self.name(*at, "check", name);
        if Check::named(name).is_some() {
            self.report
                .add(*at, format!("{path} has the name of a check of pgherd's own"))
                .hint(format!("Give it another one; thresholds of \"{name}\" belong under \"health\"."));
            return None;
        }
        let has = |key| draft.has(&["checks", name, key]);
        if !has("sql") {
            self.missing(*at, &path, "sql", "sql: \"select count(*) from SCHEMA.TABLE\"");
        }
        if !has("warn") && !has("crit") {
            self.missing(*at, &path, "crit", "crit: 10, or \"warn\"");
        }
        let database =
            self.database_of(draft, (&["checks", name], *at), raw.database.as_ref(), databases, true);
        let measure = raw.measure.as_ref().map_or(Measure::Count, |measure| measure.value);
        let mut limit = |key: &str, stated: Option<&Spanned<SettingText>>| {
            let stated = stated?;
            let read = measure.parse(&stated.value.0);
            if let Err(error) = &read {
                self.report.add(stated.at, format!("{path}.{key}: {error}")).hint(
                    "\"measure\" says what it is written in: share (80 %), time (30 s), size (64 MiB) or count (12).",
                );
            }
            read.ok()
        };
        let limits =
            Limits { warn: limit("warn", raw.warn.as_ref()), crit: limit("crit", raw.crit.as_ref()) };
        let timeout = raw.timeout.as_ref();
        if let Some(timeout) =
            timeout.filter(|timeout| timeout.value.is_zero() || timeout.value > CustomCheck::LONGEST)
        {
            self.report.add(
                timeout.at,
                format!(
                    "{path}.timeout must be above 0 and at most {}",
                    human_duration(CustomCheck::LONGEST)
                ),
            );
        }
        valid.then_some(CustomCheck {
            name: name.clone(),
            database: database?,
            sql: raw.sql.as_ref()?.value.clone(),
            measure,
            limits,
            timeout: timeout.map_or(CustomCheck::TIMEOUT, |timeout| timeout.value),
            on: raw.on.as_ref().map_or(On::Primary, |on| on.value),
        })
    }
}
