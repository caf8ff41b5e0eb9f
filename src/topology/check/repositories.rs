//! Repositories, and that no two of them lie in each other.

use super::super::decode::Spanned;
use super::super::model::Repository;
use super::super::problem::Position;
use super::super::raw;
use super::super::yaml::{Node as Tree, Value};
use super::{Checker, DeclaredRepository};
use std::path::{Component, Path, PathBuf};

impl Checker<'_> {
    pub(super) fn repositories(&mut self, topology: &raw::Topology, tree: &Tree) {
        // The names come from the tree, so that a repository whose URL is wrong is still a known one.
        let Some(Tree { value: Value::Mapping(entries), .. }) = tree.find("repositories") else {
            return;
        };
        let raw = topology.repositories.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for entry in entries {
            let named = self.name(entry.at, "repository", &entry.key);
            let path = format!("repositories.{}", entry.key);
            if entry.value.find("url").is_none() && matches!(entry.value.value, Value::Mapping(_)) {
                self.missing(entry.at, &path, "url", "url: file:///var/lib/pgherd/repository");
            }
            let url = raw.iter().find(|raw| raw.name == entry.key).and_then(|raw| raw.value.url.as_ref());
            let checked = url.and_then(|url| self.repository_url(url, &format!("{path}.url")));
            self.repositories.push(DeclaredRepository {
                name: entry.key.clone(),
                at: url.map_or(entry.at, |url| url.at),
                repository: checked.filter(|_| named).map(|url| Repository { name: entry.key.clone(), url }),
            });
        }
    }

    /// Checks the URL of a repository and writes it without what does not matter. A URL may hold a password: only its scheme
    /// is shown.
    fn repository_url(&mut self, url: &Spanned<String>, path: &str) -> Option<String> {
        const HINT: &str = "Write the whole path of a directory: url: file:///var/lib/pgherd/repository.";
        let Some((scheme, rest)) = url.value.split_once("://") else {
            self.report.add(url.at, format!("{path} must be file:///ABSOLUTE/PATH")).hint(HINT);
            return None;
        };
        if scheme != "file" {
            self.report
                .add(url.at, format!("{path} must be file:///ABSOLUTE/PATH, found the scheme {scheme:?}"))
                .detail("This version keeps backups and WAL in directories.")
                .hint(HINT);
            return None;
        }
        // What a URL and a path would read differently is not taken.
        let odd = rest.chars().find(|c| matches!(c, '%' | '?' | '#') || c.is_control());
        let components: Vec<Component<'_>> = Path::new(rest).components().collect();
        let plain = components.iter().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if let Some(odd) = odd {
            self.report
                .add(url.at, format!("{path} holds the character {odd:?}"))
                .detail("In a URL it does not mean itself.")
                .hint("Choose a directory without it.");
            return None;
        }
        if components.first() != Some(&Component::RootDir) || components.len() < 2 || !plain {
            self.report
                .add(url.at, format!("{path} must be file:///ABSOLUTE/PATH, with no host and no \"..\""))
                .hint(HINT);
            return None;
        }
        let directory: PathBuf = components.iter().collect();
        Some(format!("file://{}", directory.display()))
    }

    /// No repository may lie in or over a data directory or another repository: one of the two would be backed up, counted or
    /// removed with the other.
    pub(super) fn repository_directories(&mut self) {
        let overlap = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let declared: Vec<(&str, Position, &Path)> = self
            .repositories
            .iter()
            .filter_map(|declared| {
                Some((declared.name.as_str(), declared.at, declared.repository.as_ref()?.directory()))
            })
            .collect();
        for (index, (name, at, directory)) in declared.iter().enumerate() {
            if let Some((other, first, shared)) =
                declared[..index].iter().find(|(_, _, other)| overlap(directory, other))
            {
                self.report
                    .add(*at, format!("the repositories {other} and {name} overlap"))
                    .detail(format!(
                        "{other} is at {} (given at {first}), {name} at {}.",
                        shared.display(),
                        directory.display()
                    ))
                    .hint("Give each a directory of its own; clusters may share a repository.");
            }
            if let Some(data) = self.directories.iter().find(|data| overlap(directory, &data.path)) {
                self.report
                    .add(*at, format!("the repository {name} overlaps the data directory of {}", data.owner))
                    .detail(format!(
                        "The repository is at {}, the data directory at {}: whoever loses or removes one loses the other.",
                        directory.display(),
                        data.path.display()
                    ))
                    .hint("Give the repository a directory of its own, best on another disk.");
            }
        }
    }
}
