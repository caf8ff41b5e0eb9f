//! Prints an [`Error`] or the [`Problems`] of a topology in PostgreSQL's three lines, or as one JSON document; on stderr.

use std::error::Error as _;

use serde::Serialize;

use super::exit::Exit;
use super::{Format, Tone, Ui, paint, versioned};
use crate::error::Error;
use crate::topology::problem::Problems;

#[derive(Serialize)]
struct Document<'a> {
    exit_code: u8,
    errors: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    what: &'a str,
    detail: Option<&'a str>,
    hint: Option<&'a str>,
    /// What was being done, outermost first.
    context: Vec<&'a str>,
    /// The chain of causes.
    causes: Vec<String>,
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

/// Prints an error and returns how the run ends.
pub fn print_error(ui: &Ui, error: &Error) -> Exit {
    print_errors(ui, std::slice::from_ref(error))
}

/// Prints several errors and returns how the run ends: as the first of them says.
pub fn print_errors(ui: &Ui, errors: &[Error]) -> Exit {
    let exit = errors.first().map_or(Exit::Failed, |error| Exit::from(error.kind()));
    match ui.format {
        Format::Json => print_json(ui, exit, errors.iter().map(item).collect()),
        Format::Human | Format::Markdown => {
            for error in errors {
                let trail: Vec<String> = contexts(error)
                    .into_iter()
                    .map(str::to_owned)
                    .chain(causes(error))
                    .filter(|text| !text.is_empty())
                    .collect();
                let evidence = (!trail.is_empty()).then(|| sentence(&trail.join(": ")));
                let detail: Vec<&str> = error.detail_text().into_iter().chain(evidence.as_deref()).collect();
                let detail = (!detail.is_empty()).then(|| detail.join(" "));
                print_lines(ui, error.what(), detail.as_deref(), error.hint_text());
            }
        }
    }
    exit
}

fn contexts(error: &Error) -> Vec<&str> {
    error.contexts().iter().rev().map(String::as_str).collect()
}

fn item(error: &Error) -> Item<'_> {
    Item {
        what: error.what(),
        detail: error.detail_text(),
        hint: error.hint_text(),
        context: contexts(error),
        causes: causes(error),
        file: None,
        line: None,
        column: None,
    }
}

/// Prints every problem of a topology and returns how the run ends.
pub fn print_problems(ui: &Ui, problems: &Problems) -> Exit {
    match ui.format {
        Format::Json => {
            let items = problems.iter().map(|problem| Item {
                what: &problem.what,
                detail: problem.detail.as_deref(),
                hint: problem.hint.as_deref(),
                context: Vec::new(),
                causes: Vec::new(),
                file: Some(problem.file.display().to_string()),
                line: problem.at.map(|at| at.line),
                column: problem.at.map(|at| at.column),
            });
            print_json(ui, Exit::Usage, items.collect());
        }
        Format::Human | Format::Markdown => {
            for problem in problems.iter() {
                let at = problem.at.map(|at| format!("{at}:")).unwrap_or_default();
                let what = format!("{}:{at} {}", problem.file.display(), problem.what);
                print_lines(ui, &what, problem.detail.as_deref(), problem.hint.as_deref());
            }
        }
    }
    Exit::Usage
}

fn print_json(ui: &Ui, exit: Exit, errors: Vec<Item<'_>>) {
    ui.message(versioned(&Document { exit_code: exit.code(), errors }));
}

fn print_lines(ui: &Ui, what: &str, detail: Option<&str>, hint: Option<&str>) {
    let mut text = format!("{}  {what}", paint(ui.stderr_color, Tone::Bad, "ERROR:"));
    if let Some(detail) = detail {
        text.push_str(&format!("\nDETAIL: {detail}"));
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\nHINT:   {hint}"));
    }
    ui.message(text);
}

/// Walks the chain of sources; each says only its own part.
fn causes(error: &Error) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = error.source();
    while let Some(source) = next {
        chain.push(source.to_string());
        next = source.source();
    }
    chain
}

/// Makes a whole sentence of a fragment.
fn sentence(fragment: &str) -> String {
    let mut letters = fragment.chars();
    let first: String = letters.next().map(|letter| letter.to_uppercase().collect()).unwrap_or_default();
    let stop = if fragment.ends_with('.') { "" } else { "." };
    format!("{first}{}{stop}", letters.as_str())
}
