//! Renders the files that pgherd writes for others to read, from the embedded templates.
//!
//! A value that a template asks for and the context does not have is an error, never an empty text.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use crate::error::{Error, Result};

/// A file that is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// PgBouncer's configuration, readable from 1.18 on: [`PgbouncerIni`].
    PgbouncerIni,
    /// The first topology file: [`FirstTopology`].
    FirstTopology,
    /// A topology drafted from what runs: [`FoundTopology`].
    FoundTopology,
    /// The systemd unit of a node, made by [`super::unit`].
    NodeUnit,
    /// The systemd unit of a PgBouncer, made by [`super::unit`].
    PoolerUnit,
    /// The line for cron, made by [`super::timers`] as the next two.
    Crontab,
    /// The systemd service of a job.
    JobUnit,
    /// Its timer.
    JobTimer,
}

impl Template {
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::PgbouncerIni => ("pgbouncer.ini", include_str!("../../templates/pgbouncer.ini.j2")),
            Self::NodeUnit => ("postgresql.service", include_str!("../../templates/postgresql.service.j2")),
            Self::PoolerUnit => ("pgbouncer.service", include_str!("../../templates/pgbouncer.service.j2")),
            Self::Crontab => ("crontab", include_str!("../../templates/crontab.j2")),
            Self::JobUnit => ("job.service", include_str!("../../templates/job.service.j2")),
            Self::JobTimer => ("job.timer", include_str!("../../templates/job.timer.j2")),
            Self::FoundTopology => ("found.yml", include_str!("../../templates/found.yml.j2")),
            Self::FirstTopology => ("pgherd.yml", include_str!("../../templates/pgherd.yml.j2")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub name: String,
    /// Unquoted.
    pub value: String,
}

/// PgBouncer's own syntax is the business of whoever fills this in: nothing is quoted here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PgbouncerIni {
    pub cluster: String,
    /// Section [databases]: a connection string for each alias.
    pub databases: Vec<Setting>,
    /// Section [users], left out if it is empty.
    pub users: Vec<Setting>,
    /// Section [peers].
    pub peers: Vec<Setting>,
    /// Section [pgbouncer].
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirstTopology {
    pub herd: String,
    pub cluster: String,
    pub version: u32,
    /// Stated where the programs are in no usual place.
    pub bin_directory: Option<String>,
    /// What one node is tuned for, as it is written in the file.
    pub memory: String,
    pub nodes: Vec<FirstNode>,
    /// The URL of its repository.
    pub repository: String,
    /// `None` if there is no PgBouncer.
    pub pooler_port: Option<u16>,
    pub schema: String,
    pub role: String,
    pub password_file: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirstNode {
    pub name: String,
    pub port: u16,
    pub data_directory: String,
}

/// What was found running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundTopology {
    pub herd: String,
    pub hosts: Vec<FoundHost>,
    /// What could not be seen, and what to look at.
    pub notes: Vec<String>,
    pub clusters: Vec<FoundCluster>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundHost {
    pub name: String,
    /// As the operator named it.
    pub told: String,
    /// As the file says how it is reached.
    pub reach: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundCluster {
    pub name: String,
    pub system: String,
    pub version: u32,
    pub bin_directory: Option<String>,
    pub os_user: Option<String>,
    pub service: String,
    /// The primary first.
    pub nodes: Vec<FoundNode>,
    /// As the file has it.
    pub synchronous: Option<String>,
    pub databases: Vec<String>,
    /// What is there besides, a comment each.
    pub outline: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundNode {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub data_directory: String,
    pub config_directory: Option<String>,
    pub socket_directory: Option<String>,
    pub log_directory: Option<String>,
    /// Its role and who runs it.
    pub told: String,
}

/// Renders a template.
///
/// # Errors
/// When the template asks for something that the context does not have.
pub fn render<T: Serialize>(template: Template, context: &T) -> Result<String> {
    let (name, source) = template.source();
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true);
    environment.set_syntax(syntax.build().expect("these are the usual delimiters"));
    environment.add_filter("yaml", yaml);
    environment.add_filter("unit_path", unit_path);
    environment.add_filter("unit_word", unit_word);
    environment.add_filter("unit_argument", unit_argument);
    environment
        .render_named_str(name, source, minijinja::value::Serde(context))
        .map_err(|error| Error::failed(format!("could not render {name}")).source(error))
}

/// Quotes a path or a URL for YAML where it needs it; a JSON string is a YAML string.
fn yaml(value: &str) -> String {
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:".contains(&b));
    let plain = plain && !value.ends_with(':');
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

/// Has a path stand for itself in a setting of a unit that is a path: only `%` means something there (systemd.unit(5), "Specifiers").
pub(super) fn unit_path(path: &str) -> String {
    path.replace('%', "%%")
}

/// Has a word stand for itself in a setting of a unit that is a list of words (systemd.syntax(7), "Quoting").
pub(super) fn unit_word(word: &str) -> String {
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:,+@".contains(&b));
    if plain && !word.is_empty() {
        return word.to_owned();
    }
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", unit_path(&escaped))
}

/// Has a word stand for itself in a command line of a unit, where `$` means something too (systemd.service(5), "Command lines").
pub(super) fn unit_argument(word: &str) -> String {
    unit_word(&word.replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_missing_is_an_error() {
        #[derive(Serialize)]
        struct Nothing {}
        let error = render(Template::PgbouncerIni, &Nothing {}).unwrap_err();
        assert_eq!(error.what(), "could not render pgbouncer.ini");
    }
}
