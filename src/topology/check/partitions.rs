//! Partitioned tables: what can be known to be wrong before a server is asked.

use jiff::civil::date;

use super::super::decode::{NamedEntry, Spanned};
use super::super::partitions::{Keep, MOST_KEPT, NamePattern, PartitionSet, TableName, TableNameError, Then};
use super::super::problem::Position;
use super::super::raw;
use super::{Checker, Draft};
use crate::pg::ident::MOST_BYTES;

/// How many periods ahead have a partition, if it is not said.
const AHEAD: u32 = 3;

impl Checker<'_> {
    pub(super) fn partitions(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Cluster,
        databases: &[String],
    ) -> Vec<PartitionSet> {
        let entries = raw.partitions.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        let mut sets: Vec<(PartitionSet, Position)> = Vec::new();
        for entry in entries {
            let Some(set) = self.partition_set(draft, entry, databases) else { continue };
            let twin =
                sets.iter().find(|(other, _)| other.table == set.table && other.database == set.database);
            if let Some((_, first)) = twin {
                self.report
                    .add(
                        entry.at,
                        format!("table {} is named twice in {}", set.table, draft.path(".partitions")),
                    )
                    .detail(format!("It was given first at {first}."))
                    .hint("Keep one of the two.");
            }
            sets.push((set, entry.at));
        }
        sets.into_iter().map(|(set, _)| set).collect()
    }

    fn partition_set(
        &mut self,
        draft: &Draft<'_>,
        entry: &NamedEntry<raw::Partitions>,
        databases: &[String],
    ) -> Option<PartitionSet> {
        let NamedEntry { name, at, value: raw } = entry;
        let keys = ["partitions", name.as_str()];
        let path = draft.path(&format!(".{}", keys.join(".")));
        let table = self.table_name(*at, &path, name);
        for (key, example) in [("by", "by: created_at"), ("every", "every: month")] {
            if !draft.has(&[keys[0], keys[1], key]) {
                self.missing(*at, &path, key, example);
            }
        }
        let database = self.database_of(draft, (&keys, *at), raw.database.as_ref(), databases, false);
        if let Some(zone) = &raw.timezone {
            self.known_zone(zone);
        }
        let every = raw.every.as_ref()?.value;
        let ahead = raw.ahead.as_ref();
        if let Some(ahead) = ahead.filter(|ahead| !(1..every.ten_years()).contains(&ahead.value)) {
            self.report
                .add(ahead.at, format!("{path}.ahead must be from 1 to {}, found {}", every.ten_years() - 1, ahead.value))
                .detail(format!(
                    "It counts {}s after the present one. Without one the next {0} begins without a partition; ten years of them fill the lock table and slow down every query.",
                    every.word()
                ))
                .hint(format!("Write ahead: {AHEAD}."));
        }
        let keep = self.keep(&path, raw, every);
        self.then(draft, &path, raw);
        let keep_exports = self.keep_exports(&path, raw, keep);
        for (key, stated) in [("by", &raw.by), ("tablespace", &raw.tablespace)] {
            if let Some(stated) = stated
                && stated.value.len() > MOST_BYTES
            {
                let what =
                    format!("{path}.{key} has {} bytes, PostgreSQL takes {MOST_BYTES}", stated.value.len());
                self.report.add(stated.at, what).hint("Write the name as the catalog has it.");
            }
        }
        let names = self.names(*at, &path, raw, table.as_ref(), every)?;
        Some(PartitionSet {
            table: table?,
            database: database?,
            by: raw.by.as_ref()?.value.clone(),
            every,
            ahead: ahead.map_or(AHEAD, |ahead| ahead.value),
            keep,
            then: raw.then.as_ref().map_or(Then::default(), |then| then.value),
            keep_exports,
            timezone: raw.timezone.as_ref().map_or_else(|| self.timezone.clone(), |zone| zone.value.clone()),
            default_partition: raw.default_partition.as_ref().map(|policy| policy.value).unwrap_or_default(),
            tablespace: raw.tablespace.as_ref().map(|tablespace| tablespace.value.clone()),
            copies_grants: raw.grants.is_some(),
            names,
        })
    }

    fn table_name(&mut self, at: Position, path: &str, name: &str) -> Option<TableName> {
        let error = match TableName::parse(name) {
            Ok(table) => return Some(table),
            Err(error) => error,
        };
        let problem = self.report.add(at, format!("{path} is not the name of a table: {error}"));
        match error {
            TableNameError::NoSchema => problem
                .detail("No search_path decides which table is meant.")
                .hint(format!("Write it with its schema: public.{name}.")),
            TableNameError::TooManyParts
            | TableNameError::Quotes
            | TableNameError::Empty
            | TableNameError::TooLong(..) => problem.hint(
                "Write SCHEMA.TABLE exactly as the catalog has it; a name that holds a dot stands in double quotes: '\"my.schema\".events'.",
            ),
        };
        None
    }

    fn keep(
        &mut self,
        path: &str,
        raw: &raw::Partitions,
        every: super::super::partitions::Every,
    ) -> Option<Keep> {
        let stated: &Spanned<String> = raw.keep.as_ref()?;
        let keep = self.span(path, "keep", stated)?;
        if keep.is_shorter_than(every) {
            self.report
                .add(stated.at, format!("{path}.keep is shorter than one {}: {keep}", every.word()))
                .detail("A partition would go before the period after it has ended, and the one that is written to could follow.")
                .hint(format!("Keep one {} or more.", every.word()));
            return None;
        }
        Some(keep)
    }

    /// Reads a span of the calendar.
    fn span(&mut self, path: &str, key: &str, stated: &Spanned<String>) -> Option<Keep> {
        match Keep::parse(&stated.value) {
            Ok(keep) if keep.count > MOST_KEPT => {
                self.report
                    .add(stated.at, format!("{path}.{key} is out of the calendar: {keep}"))
                    .hint(format!("Leave \"{key}\" out to keep them for ever."));
                None
            }
            Ok(keep) => Some(keep),
            Err(why) => {
                self.report
                    .add(stated.at, format!("{path}.{key}: {why}"))
                    .hint(format!("Write a number and a unit: {key}: 2 years."));
                None
            }
        }
    }

    /// What is exported must be worth it: it is older than `keep` already.
    fn keep_exports(&mut self, path: &str, raw: &raw::Partitions, keep: Option<Keep>) -> Option<Keep> {
        let stated = raw.keep_exports.as_ref()?;
        let exports = self.span(path, "keep-exports", stated)?;
        if raw.then.as_ref().is_none_or(|then| then.value != Then::ExportAndDrop) {
            self.report
                .add(stated.at, format!("{path} says how long exports are kept, and exports nothing"))
                .hint("Write then: export and drop; or leave \"keep-exports\" out.");
            return None;
        }
        if let Some(keep) = keep.filter(|keep| exports.is_within(*keep)) {
            self.report
                .add(stated.at, format!("{path}.keep-exports is no longer than keep: {exports} and {keep}"))
                .detail("Both count from the last moment of a partition, so that its export would go as soon as it is made.")
                .hint("Keep exports longer; or write then: drop.");
            return None;
        }
        Some(exports)
    }

    fn then(&mut self, draft: &Draft<'_>, path: &str, raw: &raw::Partitions) {
        let Some(then) = &raw.then else { return };
        if raw.keep.is_none() {
            self.report
                .add(then.at, format!("{path} says \"then\" and not how long a partition is kept"))
                .hint("Add it: keep: 2 years; or remove \"then\": partitions are kept for ever.");
        }
        if then.value == Then::ExportAndDrop && !draft.has(&["backups", "repository"]) {
            self.report
                .add(then.at, format!("{path} exports, and {} has no repository", draft.name))
                .detail(
                    "The rows of a partition that is dropped go to the repository of the cluster's backups.",
                )
                .hint("Declare it: backups: {repository: NAME}; or write then: detach.");
        }
    }

    fn names(
        &mut self,
        at: Position,
        path: &str,
        raw: &raw::Partitions,
        table: Option<&TableName>,
        every: super::super::partitions::Every,
    ) -> Option<NamePattern> {
        let usual = NamePattern::usual(every);
        let pattern = match &raw.names {
            None => usual.clone(),
            Some(stated) => match NamePattern::parse(&stated.value, every) {
                Ok(pattern) => pattern,
                Err(why) => {
                    self.report
                        .add(stated.at, format!("{path}.names cannot name the partitions"))
                        .detail(why)
                        .hint(format!(
                            "Write it as pgherd does where nothing is said: \"{}\".",
                            usual.as_str()
                        ));
                    return None;
                }
            },
        };
        if let Some(table) = table {
            let name = pattern.name(&table.name, date(2026, 12, 28), every);
            if name.len() > MOST_BYTES {
                self.report
                    .add(raw.names.as_ref().map_or(at, |names| names.at), format!("the partitions of {table} would have names of {} bytes, PostgreSQL takes {MOST_BYTES}", name.len()))
                    .detail(format!("PostgreSQL cuts \"{name}\" off, and what is left may be the name of another partition."))
                    .hint(format!("Name them with something shorter: names: \"{}\".", usual.as_str().replace("{table}", "SHORT")));
            }
        }
        Some(pattern)
    }
}
