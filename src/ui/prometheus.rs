//! Metrics in Prometheus' text format, for the textfile collector and for a scrape.
//!
//! Each family once, its samples together (prometheus.io/docs/instrumenting/exposition_formats); no timestamps, which the collector refuses.

use std::collections::BTreeMap;
#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::Timestamp;

use crate::ops::health::{CheckName, Finding, Health, Measured, Status, Subject};
#[cfg(test)]
use crate::topology::checks::Check;
use crate::topology::checks::Measure;
use crate::ui::ended::Ended;

/// Families that every run has.
pub const STATUS: &str = "pgherd_check_status";
pub const WORST: &str = "pgherd_status";
pub const LAST_RUN: &str = "pgherd_last_run_timestamp_seconds";
pub const LAST_SUCCESS: &str = "pgherd_last_success_timestamp_seconds";
pub const DURATION: &str = "pgherd_run_duration_seconds";
pub const BUILD: &str = "pgherd_build_info";
/// What checks measure that the topology declares.
pub const CUSTOM: &str = "pgherd_custom_value";

const FIXED: [(&str, &str); 7] = [
    (STATUS, "How a check ended: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."),
    (WORST, "How the worst check ended: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."),
    (LAST_RUN, "When the herd was looked at last, whether or not that came to an end."),
    (LAST_SUCCESS, "When the herd was judged last."),
    (DURATION, "How long the last look took."),
    (BUILD, "The program that looked; always 1."),
    (
        CUSTOM,
        "What a check measures that the topology declares: seconds, bytes, a part of 1, or a number of things.",
    ),
];

/// Returns the family of a number: its name, and the unit that Prometheus' rules ask for.
pub fn family(name: &str, measure: Measure) -> String {
    let unit = match measure {
        Measure::Share => "_ratio",
        Measure::Time => "_seconds",
        Measure::Size => "_bytes",
        Measure::Count => "",
    };
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    let name = name.strip_suffix(unit).unwrap_or(&name);
    format!("pgherd_{name}{unit}")
}

/// Returns the families that rules and dashboards can count on: those of every run, and the number that each check is judged by.
#[cfg(test)]
pub fn families() -> BTreeSet<String> {
    let judged = Check::ALL
        .into_iter()
        .filter_map(|check| Some(family(&check.name().replace('-', "_"), check.measure()?)));
    FIXED.into_iter().map(|(name, _)| name.to_owned()).chain(judged).collect()
}

/// Writes how a run ended.
pub fn text(ended: Ended<'_>) -> String {
    match ended {
        Ended::Judged(health) => judged(health),
        Ended::Failed(failed) => {
            let mut metrics = Metrics::default();
            let herd = failed.herd.as_deref().map(|herd| ("herd", herd));
            metrics.add(WORST, herd.as_slice(), f64::from(Status::Unknown.code()));
            metrics.add(LAST_RUN, herd.as_slice(), seconds(Timestamp::now()));
            if let Some(at) = failed.last_success {
                metrics.add(LAST_SUCCESS, herd.as_slice(), seconds(at));
            }
            metrics.add(BUILD, &[("version", env!("PGHERD_VERSION"))], 1.0);
            metrics.written()
        }
    }
}

fn judged(health: &Health) -> String {
    let mut metrics = Metrics::default();
    let herd = [("herd", health.herd.as_str())];
    metrics.add(WORST, &herd, f64::from(health.status.code()));
    metrics.add(LAST_RUN, &herd, seconds(health.at));
    metrics.add(LAST_SUCCESS, &herd, seconds(health.at));
    metrics.add(DURATION, &herd, health.took_seconds);
    metrics.add(BUILD, &[("version", env!("PGHERD_VERSION"))], 1.0);
    let mut worst_first: Vec<&Finding> = health.findings.iter().collect();
    worst_first.sort_by_key(|finding| std::cmp::Reverse(finding.status));
    for finding in worst_first {
        let mut labels = of(health, finding);
        for measured in &finding.measured {
            add_number(&mut metrics, finding, &labels, measured);
        }
        labels.insert(1, ("check", finding.check.name()));
        metrics.add(STATUS, &labels, f64::from(finding.status.code()));
    }
    metrics.written()
}

fn add_number(metrics: &mut Metrics, finding: &Finding, labels: &[(&str, &str)], measured: &Measured) {
    let value = match measured.measure {
        // A ratio is from 0 to 1.
        Measure::Share => measured.value / 100.0,
        Measure::Time | Measure::Size | Measure::Count => measured.value,
    };
    match &finding.check {
        CheckName::Own(_) => {
            let name = family(&measured.name, measured.measure);
            metrics.describe(&name, || help(&measured.name, measured.measure));
            metrics.add(&name, labels, value);
        }
        CheckName::Custom { name, .. } => {
            let mut labels = labels.to_vec();
            labels.insert(1, ("check", name));
            labels.push(("value", &measured.name));
            metrics.add(CUSTOM, &labels, value);
        }
    }
}

fn of<'a>(health: &'a Health, finding: &'a Finding) -> Vec<(&'static str, &'a str)> {
    let mut labels = vec![("cluster", finding.cluster.as_str()), ("herd", health.herd.as_str())];
    match &finding.subject {
        Subject::Cluster => labels.push(("node", "")),
        Subject::Node(node) => labels.push(("node", node)),
        Subject::Pooler(host) => labels.extend([("node", ""), ("pooler", host.as_str())]),
        Subject::Part(part) => labels.extend([("node", ""), ("part", part.as_str())]),
    }
    labels
}

fn help(name: &str, measure: Measure) -> String {
    let unit = match measure {
        Measure::Share => ", as a part of 1",
        Measure::Time => ", in seconds",
        Measure::Size => ", in bytes",
        Measure::Count => "",
    };
    format!("What \"pgherd health\" measured: {}{unit}.", name.replace('_', " "))
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

/// Families with their samples; a sample that is there already stays.
#[derive(Debug, Default)]
struct Metrics {
    families: BTreeMap<String, Family>,
}

#[derive(Debug, Default)]
struct Family {
    help: String,
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    fn describe(&mut self, name: &str, help: impl FnOnce() -> String) {
        self.families.entry(name.to_owned()).or_insert_with(|| Family { help: help(), ..Family::default() });
    }

    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let written: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if written.is_empty() { String::new() } else { format!("{{{}}}", written.join(",")) };
        let family = self.families.entry(name.to_owned()).or_default();
        family.samples.entry(labels).or_insert(value);
    }

    fn written(&self) -> String {
        let mut text = String::new();
        for (name, family) in &self.families {
            let fixed = FIXED.iter().find(|(fixed, _)| fixed == name).map(|(_, help)| *help);
            let help = fixed.unwrap_or(&family.help);
            let mut line = |line: String| writeln!(text, "{line}").expect("a String takes everything");
            line(format!("# HELP {name} {}", help.replace('\\', "\\\\").replace('\n', "\\n")));
            line(format!("# TYPE {name} gauge"));
            for (labels, value) in &family.samples {
                line(format!("{name}{labels} {}", number(*value)));
            }
        }
        text
    }
}

/// Writes a number as Go reads it.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}

/// Escapes the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::checks::Worse;
    use crate::ui::health::tests::{finding, health};

    /// The text without what differs from build to build.
    fn settled(health: &Health) -> String {
        text(Ended::Judged(health)).replace(env!("PGHERD_VERSION"), "VERSION")
    }

    #[test]
    fn a_herd_in_trouble_as_a_scrape_reads_it() {
        insta::assert_snapshot!(settled(&health()));
    }

    #[test]
    fn a_run_that_failed_is_unknown_and_says_when() {
        let failed = crate::ui::ended::Failed::from(&crate::error::Error::failed("x"));
        let text = text(Ended::Failed(&failed));
        assert!(
            text.contains("\npgherd_status 3\n") && text.contains("\npgherd_last_run_timestamp_seconds "),
            "{text}"
        );
        assert!(!text.contains(LAST_SUCCESS), "{text}");
    }

    #[test]
    fn a_family_ends_with_its_unit_once() {
        assert_eq!(family("lag", Measure::Time), "pgherd_lag_seconds");
        assert_eq!(family("lag_bytes", Measure::Size), "pgherd_lag_bytes");
        assert_eq!(family("connections", Measure::Share), "pgherd_connections_ratio");
        assert_eq!(family("clients", Measure::Count), "pgherd_clients");
        assert_eq!(family("it's Ünusual", Measure::Count), "pgherd_it_s__nusual");
    }

    #[test]
    fn every_number_that_a_check_is_judged_by_is_in_a_family_that_is_told() {
        for check in Check::ALL {
            if let Some(measure) = check.measure() {
                assert!(families().contains(&family(&check.name().replace('-', "_"), measure)), "{check:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_a_name_holds_a_series_is_one_line_and_its_family_stands_together(
            names in proptest::collection::vec("\\PC{0,20}|[\"\\\\\n{},=]{0,6}", 1..8),
            values in proptest::collection::vec(proptest::num::f64::ANY, 8),
        ) {
            let mut health = health();
            for (name, value) in names.iter().zip(values) {
                let mut one = finding(Check::Lag, name, Status::Critical);
                one.measured[0].value = value;
                health.findings.push(one.clone());
                one.check = CheckName::Custom { name: name.clone(), worse: Worse::Above };
                health.findings.push(one);
            }
            let text = text(Ended::Judged(&health));
            prop_assert!(text.ends_with('\n') && !text.contains("\n\n"));
            let mut ended = BTreeSet::new();
            let mut series = BTreeSet::new();
            let mut current = String::new();
            // A carriage return is a part of a label, so these are the lines as Prometheus sees them.
            for line in text.trim_end_matches('\n').split('\n') {
                if let Some(rest) = line.strip_prefix("# HELP ") {
                    let name = rest.split(' ').next().unwrap().to_owned();
                    prop_assert!(ended.insert(name.clone()), "{} comes twice", name);
                    current = name;
                } else if !line.starts_with("# TYPE ") {
                    let name = line.split(['{', ' ']).next().unwrap();
                    prop_assert_eq!(name, &current);
                    let (before, number) = line.rsplit_once(' ').unwrap();
                    prop_assert!(series.insert(before.to_owned()), "{} comes twice", before);
                    prop_assert!(number.parse::<f64>().is_ok(), "{}", line);
                    // Within the labels every quote but those around a value is escaped.
                    let unescaped = before.replace("\\\\", "").replace("\\\"", "");
                    prop_assert_eq!(unescaped.matches('"').count() % 2, 0);
                }
            }
        }
    }
}
