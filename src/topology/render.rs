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
    /// What every node of a cluster shares: [`SharedConf`].
    SharedConf,
    /// What depends on a node and its role: [`NodeConf`].
    NodeConf,
    /// The block at the top of pg_hba.conf: [`HbaBlock`].
    HbaBlock,
    /// PgBouncer's configuration, readable from 1.18 on: [`PgbouncerIni`].
    PgbouncerIni,
    /// The first topology file: [`FirstTopology`].
    FirstTopology,
}

impl Template {
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::SharedConf => ("pgherd.conf", include_str!("../../templates/pgherd.conf.j2")),
            Self::NodeConf => ("pgherd.node.conf", include_str!("../../templates/pgherd.node.conf.j2")),
            Self::HbaBlock => ("pg_hba.block", include_str!("../../templates/pg_hba.block.j2")),
            Self::PgbouncerIni => ("pgbouncer.ini", include_str!("../../templates/pgbouncer.ini.j2")),
            Self::FirstTopology => ("pgherd.yml", include_str!("../../templates/pgherd.yml.j2")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedConf {
    pub cluster: String,
    /// In the order in which they are written.
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub name: String,
    /// Unquoted.
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeConf {
    /// Full name: `inventory-a`.
    pub node: String,
    pub port: u16,
    pub listen_addresses: String,
    pub socket_directory: String,
    /// Empty for none.
    pub synchronous_standby_names: String,
    /// `None` for a primary.
    pub primary_conninfo: Option<String>,
    /// `None` for a primary.
    pub primary_slot_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HbaBlock {
    pub cluster: String,
    /// Addresses that standbys come from, as pg_hba.conf has them: `127.0.0.1/32`.
    pub replication_addresses: Vec<String>,
}

/// PgBouncer's own syntax is the business of whoever fills this in: nothing is quoted here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PgbouncerIni {
    pub cluster: String,
    /// Section [databases]: a connection string for each alias.
    pub databases: Vec<Setting>,
    /// Section [users], left out if it is empty.
    pub users: Vec<Setting>,
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
    environment.add_filter("quote", quote);
    environment.add_filter("yaml", yaml);
    environment
        .render_named_str(name, source, minijinja::value::Serde(context))
        .map_err(|error| Error::failed(format!("could not render {name}")).source(error))
}

/// Quotes a value for postgresql.conf. Mirrors what `DeescapeQuotedString` in `guc-file.l` takes apart.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// Quotes a path for YAML where it needs it; a JSON string is a YAML string.
fn yaml(value: &str) -> String {
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted_so_that_postgresql_reads_them_back() {
        let setting = |name: &str, value: &str| Setting { name: name.into(), value: value.into() };
        let settings = vec![setting("work_mem", "4MB"), setting("log_line_prefix", "%m it's \\ ")];
        let text =
            render(Template::SharedConf, &SharedConf { cluster: "inventory".into(), settings }).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["work_mem = '4MB'", "log_line_prefix = '%m it''s \\\\ '"]);
    }

    #[test]
    fn a_primary_has_no_conninfo_and_a_standby_has_one() {
        let mut conf = NodeConf {
            node: "inventory-a".into(),
            port: 5441,
            listen_addresses: "127.0.0.1".into(),
            socket_directory: "/run/pgherd".into(),
            synchronous_standby_names: "ANY 1 (\"inventory-b\")".into(),
            primary_conninfo: None,
            primary_slot_name: None,
        };
        let primary = render(Template::NodeConf, &conf).unwrap();
        assert!(!primary.contains("primary_"), "{primary}");
        assert!(primary.contains("synchronous_standby_names = 'ANY 1 (\"inventory-b\")'\n"), "{primary}");
        conf.primary_conninfo = Some("host=127.0.0.1 port=5442 user=replicator".into());
        conf.primary_slot_name = Some("inventory_a".into());
        let standby = render(Template::NodeConf, &conf).unwrap();
        assert!(
            standby.contains("primary_conninfo = 'host=127.0.0.1 port=5442 user=replicator'\n"),
            "{standby}"
        );
        assert!(standby.ends_with("primary_slot_name = 'inventory_a'\n"), "{standby}");
    }

    #[test]
    fn the_hba_block_lets_standbys_in_by_password() {
        let block =
            HbaBlock { cluster: "inventory".into(), replication_addresses: vec!["127.0.0.1/32".into()] };
        let text = render(Template::HbaBlock, &block).unwrap();
        assert!(text.contains("\nhost replication replicator 127.0.0.1/32 scram-sha-256\n# END"), "{text}");
    }

    #[test]
    fn a_value_that_is_missing_is_an_error() {
        #[derive(Serialize)]
        struct Nothing {}
        let error = render(Template::HbaBlock, &Nothing {}).unwrap_err();
        assert_eq!(error.what(), "could not render pg_hba.block");
    }
}
