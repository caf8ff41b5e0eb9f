//! What is wrong with a topology file: every problem of the file, each with its place, in the three lines of an error.
//!
//! Never holds the value of a secret: whoever reports a problem names the key, and shows a value only where it cannot be one.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A place in the file; both numbers begin at 1, and a column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One problem of a topology file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// `None` where the file as a whole is meant: it is missing, or cannot be read.
    pub at: Option<Position>,
    /// A lowercase fact without a full stop.
    pub what: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    /// Writes ERROR, DETAIL and HINT, one a line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERROR:  {}:", self.file.display())?;
        if let Some(at) = self.at {
            write!(f, "{at}:")?;
        }
        write!(f, " {}", self.what)?;
        if let Some(detail) = &self.detail {
            write!(f, "\nDETAIL: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nHINT:   {hint}")?;
        }
        Ok(())
    }
}

/// Every problem of a file, in the order of their places; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems while a file is read and checked.
#[derive(Debug)]
pub(super) struct Report {
    file: PathBuf,
    problems: Vec<Problem>,
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), problems: Vec::new() }
    }

    /// Adds a problem; detail and hint are added to what is returned.
    pub(super) fn add(&mut self, at: impl Into<Option<Position>>, what: impl Into<String>) -> &mut Problem {
        self.problems.push(Problem {
            file: self.file.clone(),
            at: at.into(),
            what: what.into(),
            detail: None,
            hint: None,
        });
        self.problems.last_mut().expect("one was pushed just now")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Gives `value` if there was no problem; else all of them, sorted, each once: what several clusters take from
    /// `defaults` is found wrong for each of them.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => {
                self.problems.sort_by_key(|problem| problem.at);
                let mut seen = HashSet::new();
                self.problems.retain(|problem| seen.insert((problem.at, problem.what.clone())));
                Err(Problems(self.problems))
            }
        }
    }
}

impl Problem {
    pub(super) fn detail(&mut self, detail: impl Into<String>) -> &mut Self {
        self.detail = Some(detail.into());
        self
    }

    pub(super) fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what names there are, and `Did you mean "x"?` if one of them is near.
    pub(super) fn suggest<'a>(&mut self, found: &str, names: impl IntoIterator<Item = &'a str>) -> &mut Self {
        let names: Vec<&str> = names.into_iter().collect();
        self.hint = Some(match (nearest(found, &names), names.len()) {
            (Some(near), _) => format!("Did you mean \"{near}\"?"),
            (None, 0) => "Declare it first, or remove it.".to_owned(),
            (None, _) => "Write one of them, or declare it first.".to_owned(),
        });
        self.detail = Some(match names.len() {
            0 => "None is declared.".to_owned(),
            1..=12 => format!("Declared: {}.", names.join(", ")),
            more => format!("Declared are {more}: {}, ….", names[..12].join(", ")),
        });
        self
    }
}

/// Finds the name that a person most likely meant: at most a third of its letters away.
pub(crate) fn nearest<'a>(found: &str, names: &[&'a str]) -> Option<&'a str> {
    let lower = found.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= found.chars().count().max(name.chars().count()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        let names = ["synchronous", "schemas", "roles"];
        assert_eq!(nearest("synchronus", &names), Some("synchronous"));
        assert_eq!(nearest("Schema", &names), Some("schemas"));
        assert_eq!(nearest("backups", &names), None);
        assert_eq!(nearest("z", &["a", "b"]), None);
    }

    #[test]
    fn problems_come_in_the_order_of_the_file_and_each_once() {
        let mut report = Report::new(Path::new("pgherd.yml"));
        report.add(Position { line: 9, column: 1 }, "later");
        report.add(Position { line: 2, column: 3 }, "sooner").detail("Why.").hint("What now.");
        report.add(Position { line: 9, column: 1 }, "later");
        let problems = report.finish(Some(())).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "ERROR:  pgherd.yml:2:3: sooner\nDETAIL: Why.\nHINT:   What now.\nERROR:  pgherd.yml:9:1: later"
        );
    }
}
