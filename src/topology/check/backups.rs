//! Backups, what they have to promise, and the drills that prove it.

use super::super::decode::{NamedEntry, Spanned};
use super::super::model::{
    Assertion, BackupSource, Backups, Codec, Compression, DrillTarget, Objective, Repository, RestoreDrill,
    RestoreProof,
};
use super::super::problem::Position;
use super::super::raw;
use super::{Checker, Draft};
use std::collections::BTreeMap;

impl Checker<'_> {
    pub(super) fn objectives(
        &mut self,
        draft: &Draft<'_>,
        cluster: &raw::Cluster,
    ) -> BTreeMap<String, Objective> {
        let Some(raw) = cluster.objectives.as_ref().map(|raw| &raw.value) else {
            return BTreeMap::new();
        };
        let synchronous = cluster.synchronous.is_some();
        let scenarios = [
            ("lose-primary", &raw.lose_primary),
            ("lose-region", &raw.lose_region),
            ("undo-mistake", &raw.undo_mistake),
        ];
        let mut objectives = BTreeMap::new();
        for (scenario, objective) in
            scenarios.into_iter().filter_map(|(name, objective)| Some((name, objective.as_ref()?)))
        {
            for (key, example) in [("rpo", "rpo: 5 s"), ("rto", "rto: 30 s")] {
                if !draft.has(&["objectives", scenario, key]) {
                    self.missing(objective.at, &draft.path(&format!(".objectives.{scenario}")), key, example);
                }
            }
            if scenario == "undo-mistake" && !draft.has(&["backups"]) {
                self.report
                    .add(objective.at, format!("{} cannot undo a mistake: it has no backups", draft.name))
                    .detail("What was deleted on purpose or by accident is deleted on every standby too.")
                    .hint("Declare \"backups: {repository: NAME}\", or remove the objective.");
            }
            let (Some(rpo), Some(rto)) = (&objective.value.rpo, &objective.value.rto) else {
                continue;
            };
            if scenario == "lose-primary" && rpo.value.is_zero() && !synchronous {
                let standbys: Vec<&str> = draft.names("nodes");
                let hint = if standbys.len() > 1 {
                    format!(
                        "Declare \"synchronous: {{wait-for: 1, of: [{}]}}\", or an rpo above 0 s.",
                        standbys.join(", ")
                    )
                } else {
                    "Add a standby and declare \"synchronous: {wait-for: 1, of: [...]}\", or an rpo above 0 s.".to_owned()
                };
                self.report
                    .add(rpo.at, format!("{} cannot lose its primary with an rpo of 0 s: it has no synchronous standby", draft.name))
                    .detail("A commit is acknowledged before any standby has it, so the newest ones die with the primary.")
                    .hint(hint);
            }
            objectives.insert(scenario.to_owned(), Objective { rpo: rpo.value, rto: rto.value });
        }
        objectives
    }

    pub(super) fn backups(&mut self, draft: &Draft<'_>, raw: &Spanned<raw::Backups>) -> Option<Backups> {
        let path = draft.path(".backups");
        if !draft.has(&["backups", "repository"]) {
            self.missing(raw.at, &path, "repository", "repository: NAME");
        }
        let raw = &raw.value;
        for (key, count) in [("keep-full", &raw.keep_full), ("minimum-full", &raw.minimum_full)] {
            if let Some(count) = count.as_ref().filter(|count| count.value == 0) {
                self.report
                    .add(count.at, format!("{path}.{key} must be 1 or more"))
                    .hint("Remove the key; the newest full backup always stays.");
            }
        }
        if let Some(window) = raw.window.as_ref().filter(|window| window.value.is_zero()) {
            self.report
                .add(window.at, format!("{path}.window must be longer than 0"))
                .hint("Write a span of time such as \"30 days\", or remove the key.");
        }
        if let (Some(keep), Some(minimum)) = (&raw.keep_full, &raw.minimum_full)
            && keep.value < minimum.value
        {
            self.report
                .add(
                    keep.at,
                    format!("{path}.keep-full is {}, minimum-full is {}", keep.value, minimum.value),
                )
                .detail(format!(
                    "The newest {} always stay, so {} can never be what is kept.",
                    minimum.value, keep.value
                ))
                .hint("Raise keep-full, or lower minimum-full.");
        }
        let copies = self.copies(draft, raw);
        let repository = raw.repository.as_ref()?;
        Some(Backups {
            repository: self.repository_of_backups(&repository.value, repository.at, &path)?,
            copies,
            from: raw.from.as_ref().map_or(BackupSource::Standby, |from| from.value),
            window: raw.window.as_ref().map(|window| window.value),
            keep_full: raw.keep_full.as_ref().map(|count| count.value),
            minimum_full: raw.minimum_full.as_ref().map_or(1, |count| count.value),
            compression: self.compression(&path, raw),
        })
    }

    /// Finds a repository by the name that a cluster's backups give it.
    fn repository_of_backups(&mut self, name: &str, at: Position, path: &str) -> Option<Repository> {
        let Some(known) = self.repositories.iter().find(|known| known.name == name) else {
            let names: Vec<String> = self.repositories.iter().map(|known| known.name.clone()).collect();
            self.report
                .add(at, format!("unknown repository \"{name}\" in {path}"))
                .suggest(name, names.iter().map(String::as_str));
            return None;
        };
        known.repository.clone()
    }

    /// Returns the further repositories of a cluster.
    fn copies(&mut self, draft: &Draft<'_>, raw: &raw::Backups) -> Vec<Repository> {
        let path = draft.path(".backups.copies");
        let mut found = Vec::new();
        for NamedEntry { name, at, value: _ } in
            raw.copies.as_ref().map(|copies| copies.value.0.as_slice()).unwrap_or_default()
        {
            if raw.repository.as_ref().is_some_and(|first| first.value == *name) {
                self.report
                    .add(
                        *at,
                        format!("{path} names {name}, which is the repository of the backups themselves"),
                    )
                    .hint("Name another repository: what is lost with the first one is to be found there.");
                continue;
            }
            found.extend(self.repository_of_backups(name, *at, &path));
        }
        found
    }

    fn compression(&mut self, path: &str, raw: &raw::Backups) -> Compression {
        let codec = raw.compression.as_ref().map_or(Codec::Zstd, |codec| codec.value);
        match (codec, &raw.compression_level) {
            (Codec::Zstd, None) => return Compression::default(),
            (Codec::Zstd, Some(level)) if Compression::LEVELS.contains(&level.value) => {
                return Compression::Zstd { level: i32::try_from(level.value).expect("one of LEVELS") };
            }
            (Codec::Zstd, Some(level)) => {
                let (least, most) = (Compression::LEVELS.start(), Compression::LEVELS.end());
                self.report
                    .add(level.at, format!("{path}.compression-level must be from {least} to {most}"))
                    .detail("It is the level of zstd.")
                    .hint("1 is fast, 3 is what is taken without the key; above 9 a backup takes many times as long.");
            }
            (Codec::Lz4 | Codec::None, Some(level)) => {
                self.report
                    .add(level.at, format!("{path}.compression-level is of no use with {}", codec.word()))
                    .detail("Levels are those of zstd.")
                    .hint("Remove the key, or write compression: zstd.");
            }
            (Codec::Lz4, None) => return Compression::Lz4 {},
            (Codec::None, None) => return Compression::None {},
        }
        Compression::default()
    }

    pub(super) fn restore_drill(
        &mut self,
        draft: &Draft<'_>,
        raw: &Spanned<raw::RestoreDrill>,
        databases: &[String],
    ) -> Option<RestoreDrill> {
        let path = draft.path(".drills.restore");
        if !draft.has(&["backups"]) {
            self.report
                .add(raw.at, format!("{path} has nothing to restore: {} has no backups", draft.name))
                .hint("Declare \"backups: {repository: NAME}\", or remove the drill.");
        }
        let raw = &raw.value;
        let assertions = self.assertions(draft, raw, databases);
        let prove = match &raw.prove {
            Some(prove) => {
                if prove.value.is_empty() && draft.is_empty_list(&["drills", "restore", "prove"]) {
                    self.report
                        .add(prove.at, format!("{path}.prove names nothing"))
                        .detail("A restore that is not checked proves little.")
                        .hint("Remove the key: all that can be checked is then checked.");
                }
                let mut proofs: Vec<RestoreProof> = Vec::new();
                for proof in &prove.value {
                    if proofs.contains(&proof.value) {
                        self.report
                            .add(proof.at, format!("{path}.prove names one check twice"))
                            .hint("Keep one of the two.");
                    }
                    let asks = proof.value == RestoreProof::Assertions;
                    if asks && draft.names_at(&["drills", "restore", "assertions"]).is_empty() {
                        self.report
                            .add(proof.at, format!("{path} proves assertions and has none"))
                            .hint("Declare \"assertions: {NAME: {sql: select ...}}\", or remove the word.");
                    }
                    proofs.push(proof.value);
                }
                if let Some(raw) = raw.assertions.as_ref().filter(|raw| !raw.value.0.is_empty())
                    && !proofs.contains(&RestoreProof::Assertions)
                {
                    self.report
                        .add(raw.at, format!("{path} has assertions and does not prove them"))
                        .hint("Add \"assertions\" to \"prove\", or remove \"prove\".");
                }
                proofs
            }
            None => {
                let mut all = vec![RestoreProof::Checksums, RestoreProof::Amcheck];
                all.extend((!assertions.is_empty()).then_some(RestoreProof::Assertions));
                all
            }
        };
        Some(RestoreDrill {
            to: raw.to.as_ref().map_or(DrillTarget::Newest, |to| to.value),
            prove,
            assertions,
        })
    }

    fn assertions(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::RestoreDrill,
        databases: &[String],
    ) -> Vec<Assertion> {
        let mut assertions = Vec::new();
        let entries = raw.assertions.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for NamedEntry { name, at, value } in entries {
            let path = draft.path(&format!(".drills.restore.assertions.{name}"));
            self.name(*at, "drill's assertion", name);
            let has = |key| draft.has(&["drills", "restore", "assertions", name, key]);
            if !has("sql") {
                self.missing(*at, &path, "sql", "sql: \"select count(*) > 0 from SCHEMA.TABLE\"");
            }
            let database = self.database_of(
                draft,
                (&["drills", "restore", "assertions", name], *at),
                value.database.as_ref(),
                databases,
                false,
            );
            if let (Some(database), Some(sql)) = (database, &value.sql) {
                assertions.push(Assertion { name: name.clone(), database, sql: sql.value.clone() });
            }
        }
        assertions
    }
}
