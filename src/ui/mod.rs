//! The only floor that knows a terminal: what goes to stdout (data) and to stderr (messages), in which form and colour.
//!
//! Decides nothing and asks nobody: it is handed reports and prints them.

mod events_json;
pub(crate) mod file;
mod held;
mod lines;
mod nagios;
mod progress;
mod prometheus;
mod told;

pub mod backup;
pub mod drill;
pub mod dump;
pub mod ended;
pub mod error;
pub mod exit;
pub mod explain;
pub mod failover;
pub mod fence;
pub mod health;
pub mod in_place;
pub mod journal;
pub mod junit;
pub mod operation;
pub mod partition;
pub mod plan;
pub mod pooler;
pub mod rejoin;
pub mod repo;
pub mod restore;
pub mod schedule;
pub mod status;
pub mod switchover;
pub mod templates;
pub mod trust;
pub mod wal;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::error::Error;

/// The version of every JSON document that pgherd prints: fields are added, and never change what they mean.
pub const FORMAT_VERSION: &str = "1.0";

/// The form of what goes to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Human,
    Json,
    Markdown,
}

/// The form of what goes to stdout as the command line asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Usual(Format),
    /// Only `health` has these.
    Monitoring(Monitoring),
}

/// The forms that monitoring reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Monitoring {
    Nagios,
    Prometheus,
    Junit,
}

impl Asked {
    /// Returns the usual form; that of people where monitoring reads.
    pub fn usual(self) -> Format {
        match self {
            Self::Usual(format) => format,
            Self::Monitoring(_) => Format::Human,
        }
    }
}

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verbosity {
    /// Nothing on success.
    Quiet,
    #[default]
    Normal,
    Verbose,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColorChoice {
    /// NO_COLOR, then FORCE_COLOR or CLICOLOR_FORCE, then whether it is a terminal.
    #[default]
    Auto,
    Always,
    Never,
}

/// What a word means, for those who see colours; nothing depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warning,
    Bad,
    Faint,
}

/// The terminal, pipe or file that a command talks to.
#[derive(Debug)]
pub struct Ui {
    pub format: Format,
    pub verbosity: Verbosity,
    stdout_color: bool,
    stderr_color: bool,
    /// The first error of writing to stdout; nothing is written after it.
    stdout_error: Option<io::Error>,
    /// What is not written yet, while output is held back.
    held: Option<Mutex<held::Held>>,
}

impl Ui {
    pub fn new(format: Format, verbosity: Verbosity, color: ColorChoice) -> Self {
        Self {
            format,
            verbosity,
            stdout_color: wants_color(color, io::stdout().is_terminal()),
            stderr_color: wants_color(color, io::stderr().is_terminal()),
            stdout_error: None,
            held: None,
        }
    }

    /// Writes a line of data to stdout, quiet or not.
    pub fn line(&mut self, text: impl Display) {
        if let Some(held) = &mut self.held {
            held.get_mut().unwrap_or_else(PoisonError::into_inner).keep(held::Stream::Data, text.to_string());
        } else if self.stdout_error.is_none()
            && let Err(error) = writeln!(io::stdout().lock(), "{text}")
        {
            self.stdout_error = Some(error);
        }
    }

    /// Writes a line to stdout that a quiet run leaves out: what a person likes to read after success.
    pub fn remark(&mut self, text: impl Display) {
        if self.verbosity > Verbosity::Quiet {
            self.line(text);
        }
    }

    /// Begins a new screen, if stdout is one.
    pub fn clear_screen(&mut self) {
        if io::stdout().is_terminal() {
            self.bytes(b"\x1b[H\x1b[2J");
        }
    }

    /// Writes bytes to stdout as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.stdout_error.is_none()
            && let Err(error) = io::stdout().lock().write_all(bytes)
        {
            self.stdout_error = Some(error);
        }
    }

    /// Writes one JSON document to stdout: the fields of `body`, an object, after `format_version`.
    pub fn json(&mut self, body: &impl Serialize) {
        let document = versioned(body);
        self.line(serde_json::to_string_pretty(&document).expect("a JSON value can be written"));
    }

    /// Writes one line of JSON lines to stdout: `message_type`, then the fields of `body`, an object.
    pub fn json_line(&mut self, message_type: &str, body: &impl Serialize) {
        let mut line = serde_json::Map::new();
        line.insert("message_type".to_owned(), message_type.into());
        if let serde_json::Value::Object(fields) = serde_json::to_value(body).expect("reports have text keys")
        {
            line.extend(fields);
        }
        self.line(versioned(&line));
    }

    /// Writes a message to stderr, unless the run is quiet.
    pub fn note(&self, text: impl Display) {
        if self.verbosity > Verbosity::Quiet {
            self.message(text);
        }
    }

    /// Writes a message to stderr, quiet or not. There is nobody left to tell if that fails.
    pub fn message(&self, text: impl Display) {
        if let Some(held) = &self.held {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            return held.keep(held::Stream::Messages, text.to_string());
        }
        writeln!(io::stderr().lock(), "{text}").unwrap_or(());
    }

    /// Holds back what is written from now on, line by line, until [`Ui::release`] or [`Ui::discard`].
    pub fn hold(&mut self) {
        self.held = Some(Mutex::default());
    }

    /// Writes what was held back, and holds nothing back any more.
    pub fn release(&mut self) {
        let Some(held) = self.held.take() else { return };
        let held = held.into_inner().unwrap_or_else(PoisonError::into_inner);
        if held.lost > 0 {
            self.message(format!("({} lines before this are left out)", held.lost));
        }
        for (stream, text) in held.lines {
            match stream {
                held::Stream::Data => self.line(text),
                held::Stream::Messages => self.message(text),
            }
        }
    }

    /// Forgets what was held back, and holds nothing back any more.
    pub fn discard(&mut self) {
        self.held = None;
    }

    /// Colours a word for stdout.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.stdout_color, tone, text)
    }

    /// Sends the log of doors and statements to stderr, if `$PGHERD_LOG` asks for it (`debug`, or a filter of tracing's).
    pub fn begin_log(&self) {
        let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("PGHERD_LOG") else { return };
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(self.stderr_color);
        // Only a second call in one process could fail, and then the first one's log goes on.
        log.try_init().unwrap_or(());
    }

    /// Asks on stderr and returns the answer's line, trimmed.
    ///
    /// # Errors
    /// When standard input cannot be read.
    pub fn ask(&self, question: &str) -> Result<String, Error> {
        let mut stderr = io::stderr().lock();
        write!(stderr, "{question}").and_then(|()| stderr.flush()).unwrap_or(());
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| Error::failed("could not read the answer").source(error))?;
        Ok(answer.trim().to_owned())
    }

    /// Tells whether somebody is there to answer a question.
    pub fn is_interactive(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Ends the output: flushes it and tells whether all of it was written. A reader that went away (`pgherd … | head`) is
    /// no error: it has what it wanted.
    ///
    /// # Errors
    /// When stdout could not be written, such as to a full disk.
    pub fn finish(&mut self) -> io::Result<()> {
        let error = match self.stdout_error.take() {
            Some(error) => Err(error),
            None => io::stdout().lock().flush(),
        };
        match error {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

/// Writes a line to stdout at once, from any thread: what another pgherd reads.
///
/// # Errors
/// When nobody reads it any more.
pub fn line_now(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

fn wants_color(choice: ColorChoice, terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if set("NO_COLOR") => false,
        ColorChoice::Auto => terminal || set("FORCE_COLOR") || set("CLICOLOR_FORCE"),
    }
}

fn paint(color: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warning => "33",
        Tone::Bad => "1;31",
        Tone::Faint => "2",
    };
    if color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Puts `format_version` before the fields of an object.
pub(crate) fn versioned(body: &impl Serialize) -> serde_json::Value {
    let mut document = serde_json::Map::new();
    document.insert("format_version".to_owned(), FORMAT_VERSION.into());
    let body = serde_json::to_value(body).expect("reports have text keys and no failing Serialize");
    if let serde_json::Value::Object(fields) = body {
        document.extend(fields);
    }
    serde_json::Value::Object(document)
}
