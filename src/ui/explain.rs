//! What a check asks, needs, and is judged by; for people and as JSON.

use std::path::Path;

use serde::Serialize;

use crate::ops::health::{Ask, Explained};
use crate::topology::checks::Check;
use crate::topology::custom::{CustomCheck, On};
use crate::topology::model::Cluster;
use crate::topology::origin::{Effective, Source};
use crate::ui::{Format, Tone, Ui};
use crate::units::human_duration;

/// What the file, or nobody, says of a check in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InEffect {
    pub cluster: String,
    /// `None` for the whole cluster.
    pub node: Option<String>,
    /// `warn`, `crit`, `after`, `report`.
    pub key: String,
    pub value: String,
    /// A line of the file, or "default of pgherd".
    pub origin: String,
}

impl InEffect {
    /// Lists what is in effect for a check in a cluster, given every value of the cluster.
    pub fn list(file: &Path, cluster: &Cluster, check: Check, values: &[Effective]) -> Vec<Self> {
        let of = |node: Option<&str>| {
            let path = match node {
                None => format!("health.{}.", check.name()),
                Some(node) => format!("nodes.{node}.health.{}.", check.name()),
            };
            let stated = values.iter().filter_map(move |value| {
                // A node's file says less than the cluster's; what it does not say is the cluster's.
                let key = value.path.strip_prefix(&path)?;
                (node.is_none() || value.source != Source::Pgherd).then(|| (key.to_owned(), value))
            });
            stated
                .map(|(key, value)| Self {
                    cluster: cluster.name.clone(),
                    node: node.map(str::to_owned),
                    key,
                    value: value.value.clone(),
                    origin: origin(file, value),
                })
                .collect::<Vec<_>>()
        };
        let mut all = of(None);
        let default = |key: &str, value: Option<f64>| {
            let (value, measure) = value.zip(check.measure())?;
            Some(Self {
                cluster: cluster.name.clone(),
                node: None,
                key: key.to_owned(),
                value: measure.written(value),
                origin: NOBODY.to_owned(),
            })
        };
        if all.is_empty() {
            let limits = check.limits();
            all.extend([default("warn", limits.warn), default("crit", limits.crit)].into_iter().flatten());
        }
        all.extend(cluster.nodes.iter().flat_map(|node| of(Some(&node.name))));
        all
    }
}

const NOBODY: &str = "default of pgherd";

fn origin(file: &Path, value: &Effective) -> String {
    let line = value.at.map(|at| format!("{}:{at}", file.display())).unwrap_or_default();
    match value.source {
        Source::Cluster => line,
        Source::Defaults => format!("{line} (defaults)"),
        Source::Pgherd => NOBODY.to_owned(),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    check: Check,
    #[serde(rename = "explained")]
    what: &'a Explained,
    in_effect: &'a [InEffect],
}

#[derive(Serialize)]
struct Item {
    check: Check,
    title: &'static str,
}

#[derive(Serialize)]
struct List<'a> {
    checks: Vec<Item>,
    /// What the topology declares.
    declared: Vec<Declared<'a>>,
}

/// A check that the topology declares.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Declared<'a> {
    pub cluster: &'a str,
    pub check: &'a CustomCheck,
}

#[derive(Serialize)]
struct DeclaredDocument<'a> {
    declared: &'a [Declared<'a>],
}

/// Prints checks that the topology declares.
pub fn print_declared(ui: &mut Ui, declared: &[Declared<'_>]) {
    if ui.format == Format::Json {
        ui.json(&DeclaredDocument { declared });
        return;
    }
    for Declared { cluster, check } in declared {
        ui.line(format!("{}: declared as checks.{} of cluster {cluster}", check.name, check.name));
        ui.line("");
        ui.line(format!("Asks {} in database {}, READ ONLY", asked(check.on), check.database));
        for line in check.sql.trim().lines() {
            ui.line(format!("    {line}"));
        }
        ui.line("Thresholds");
        for (key, limit) in [("warn", check.limits.warn), ("crit", check.limits.crit)] {
            if let Some(limit) = limit {
                ui.line(format!("    {key} {}", check.measure.written(limit)));
            }
        }
        ui.line("Gives up after");
        ui.line(format!("    {}", human_duration(check.timeout)));
    }
}

fn asked(on: On) -> &'static str {
    match on {
        On::Primary => "the primary",
        On::Standbys => "each standby that answers",
        On::All => "each node that answers",
    }
}

/// Prints the checks that there are.
pub fn print_list(ui: &mut Ui, checks: &[(Check, Explained)], clusters: &[&Cluster]) {
    let declared = || {
        clusters
            .iter()
            .flat_map(|cluster| cluster.checks.iter().map(|check| Declared { cluster: &cluster.name, check }))
    };
    match ui.format {
        Format::Json => {
            let item =
                |(check, explained): &(Check, Explained)| Item { check: *check, title: explained.title };
            ui.json(&List { checks: checks.iter().map(item).collect(), declared: declared().collect() });
        }
        Format::Human | Format::Markdown => {
            let names = checks.iter().map(|(check, _)| check.name().len());
            let names = names.chain(declared().map(|declared| declared.check.name.len()));
            let width = names.max().unwrap_or(0);
            for (check, explained) in checks {
                ui.line(format!("{:<width$}  {}", check.name(), explained.title));
            }
            for Declared { cluster, check } in declared() {
                ui.line(format!("{:<width$}  declared for cluster {cluster}", check.name));
            }
        }
    }
}

/// Prints one check.
pub fn print(ui: &mut Ui, check: Check, explained: &Explained, in_effect: &[InEffect]) {
    if ui.format == Format::Json {
        ui.json(&Document { check, what: explained, in_effect });
        return;
    }
    for line in lines(check, explained, in_effect) {
        // A heading begins a line, what is below it does not.
        let heading = !line.is_empty() && !line.starts_with(' ');
        let line = if heading { ui.paint(Tone::Good, &line) } else { line };
        ui.line(line);
    }
}

fn lines(check: Check, explained: &Explained, in_effect: &[InEffect]) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", check.name(), explained.title), String::new()];
    for ask in &explained.asks {
        match ask {
            Ask::Sql { of, sql } => {
                lines.push(format!("Asks {of}"));
                lines.extend(sql.trim_matches('\n').lines().map(|line| format!("    {line}")));
            }
            Ask::Look { of, what } => {
                lines.push(format!("Looks at {of}"));
                lines.push(format!("    {what}"));
            }
        }
    }
    lines.push("Needs".to_owned());
    lines.push(match explained.needs.grant("ROLE") {
        Some(grant) => format!("    {}", grant.replace("\"ROLE\"", "ROLE")),
        None => "    no grant".to_owned(),
    });
    lines.push("Thresholds".to_owned());
    match check.measure() {
        None => lines.push("    none: it holds or it does not".to_owned()),
        Some(measure) if in_effect.is_empty() => {
            let limits = check.limits();
            for (key, value) in [("warn", limits.warn), ("crit", limits.crit)] {
                if let Some(value) = value {
                    lines.push(format!("    {key} {}   {NOBODY}", measure.written(value)));
                }
            }
        }
        Some(_) => {}
    }
    let place = |one: &InEffect| match &one.node {
        None => one.cluster.clone(),
        Some(node) => format!("{}, node {node}", one.cluster),
    };
    let width = |text: &dyn Fn(&InEffect) -> usize| in_effect.iter().map(text).max().unwrap_or(0);
    let places = width(&|one| place(one).chars().count());
    let values = width(&|one| one.value.chars().count());
    for one in in_effect {
        let line =
            format!("    {:places$}  {:6} {:values$}   {}", place(one), one.key, one.value, one.origin);
        lines.push(line);
    }
    if let Some(remark) = explained.remark {
        lines.push(format!("    {remark}"));
    }
    lines.push("When it fires".to_owned());
    lines.push(format!("    {}", explained.act));
    lines.push("See".to_owned());
    lines.push(format!("    {}", explained.source));
    lines
}
