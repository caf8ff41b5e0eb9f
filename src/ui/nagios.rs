//! One line for Nagios and what speaks its protocol (Icinga, Naemon, Checkmk): status, text, performance data; then what is wrong, line by line.
//!
//! Format: "Plugin Output" in the Monitoring Plugins' development guidelines. No more than 4 KiB in all, the worst first.

use std::fmt::Write as _;

use crate::ops::health::{CheckName, Finding, Health, Measured, Status, Subject};
use crate::topology::checks::{Limits, Measure, Worse};
use crate::ui::Verbosity;
use crate::ui::ended::Ended;

/// What agents and databases of Nagios take without cutting it.
const WHOLE: usize = 4096;
/// What the first line says in words.
const WORDS: usize = 1024;
/// Up to where performance data may go.
const NUMBERS: usize = 3072;
/// Findings that the first line names.
const NAMED: usize = 4;

/// Writes how a run ended.
pub fn text(ended: Ended<'_>, verbosity: Verbosity) -> String {
    match ended {
        Ended::Judged(health) => judged(health, verbosity),
        Ended::Failed(failed) => {
            let mut text = String::new();
            fit(&mut text, WORDS, &format!("PGHERD {}: {}", Status::Unknown.word(), plain(&failed.what)));
            text.push('\n');
            for line in failed.lines() {
                add_line(&mut text, &line);
            }
            text
        }
    }
}

fn judged(health: &Health, verbosity: Verbosity) -> String {
    let mut worst_first: Vec<&Finding> = health.findings.iter().collect();
    worst_first.sort_by_key(|finding| std::cmp::Reverse(finding.status));
    let trouble: Vec<&Finding> = worst_first.iter().copied().filter(|finding| finding.is_trouble()).collect();
    let mut text = String::new();
    fit(&mut text, WORDS, &format!("PGHERD {}: {}", health.status.word(), summary(health, &trouble)));
    let left_out = add_numbers(&mut text, &worst_first);
    text.push('\n');
    let mut shown = trouble;
    if verbosity == Verbosity::Verbose {
        shown = worst_first;
    }
    if left_out > 0 {
        add_line(&mut text, &format!("{left_out} numbers did not fit: ask for one cluster with --cluster"));
    }
    for (index, finding) in shown.iter().enumerate() {
        let more = format!("and {} more", shown.len() - index);
        let next = finding.next.as_ref().map(|next| format!("; next: {next}")).unwrap_or_default();
        let line = plain(&format!("{}: {}{next}", finding.status.word(), told(finding)));
        if text.len() + line.len() + more.len() + 2 > WHOLE {
            add_line(&mut text, &more);
            break;
        }
        add_line(&mut text, &line);
    }
    text
}

fn summary(health: &Health, trouble: &[&Finding]) -> String {
    if trouble.is_empty() {
        let checks = health.findings.len();
        return format!("{} of {}, {checks} checks", health.clusters.join(", "), health.herd);
    }
    let named: Vec<String> = trouble.iter().take(NAMED).map(|finding| told(finding)).collect();
    let more = trouble.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    plain(&format!("{}{more}", named.join("; ")))
}

fn told(finding: &Finding) -> String {
    let subject = match &finding.subject {
        Subject::Cluster => String::new(),
        subject @ (Subject::Node(_) | Subject::Pooler(_) | Subject::Part(_)) => format!("{subject}: "),
    };
    format!("{}/{}: {subject}{}", finding.cluster, finding.check.name(), finding.text)
}

/// Adds performance data and returns how many numbers did not fit.
fn add_numbers(text: &mut String, findings: &[&Finding]) -> usize {
    let mut labels = std::collections::BTreeSet::new();
    let mut left_out = 0;
    let mut begun = false;
    for finding in findings {
        for measured in &finding.measured {
            let label = label(finding, measured);
            if !labels.insert(label.clone()) {
                continue;
            }
            let number = format!(" {}={}", quoted(&label), number(&finding.check, measured));
            let bar = if begun { "" } else { " |" };
            if text.len() + bar.len() + number.len() > NUMBERS {
                left_out += 1;
                continue;
            }
            text.push_str(bar);
            text.push_str(&number);
            begun = true;
        }
    }
    left_out
}

/// What a graph is known by: it stays the same as long as the number means the same.
fn label(finding: &Finding, measured: &Measured) -> String {
    let Finding { cluster, subject, .. } = finding;
    let name = match &finding.check {
        // Two declared checks may have columns of one name.
        CheckName::Custom { name, .. } if *name != measured.name => format!("{name}.{}", measured.name),
        CheckName::Custom { .. } | CheckName::Own(_) => measured.name.clone(),
    };
    match subject {
        Subject::Cluster => format!("{name}_{cluster}"),
        Subject::Node(node) => format!("{name}_{cluster}/{node}"),
        Subject::Pooler(host) => format!("{name}_{cluster}/pooler:{host}"),
        Subject::Part(part) => format!("{name}_{cluster}/{part}"),
    }
}

/// Writes a label; within quotes everything but `=` and line ends may stand, a quote twice.
fn quoted(label: &str) -> String {
    let clean: String =
        label.chars().map(|c| if c == '=' || c == '|' || c.is_control() { '_' } else { c }).collect();
    format!("'{}'", clean.replace('\'', "''"))
}

/// Writes `value[UOM];warn;crit;min;max` without what is empty at its end.
fn number(check: &CheckName, measured: &Measured) -> String {
    let unit = match measured.measure {
        Measure::Share => "%",
        Measure::Time => "s",
        Measure::Size => "B",
        Measure::Count => "",
    };
    let value = if measured.value.is_finite() {
        format!("{}{unit}", decimal(measured.value))
    } else {
        // "U" is "could not be determined".
        "U".to_owned()
    };
    let Limits { warn, crit } = measured.limits.unwrap_or_default();
    let range = |limit: Option<f64>| match (limit, check.worse()) {
        (None, _) => String::new(),
        (Some(limit), Worse::Above) => decimal(limit),
        (Some(limit), Worse::Below) => format!("{}:", decimal(limit)),
    };
    let min = if measured.value < 0.0 { "" } else { "0" };
    let max = match (measured.max, measured.measure) {
        (Some(max), _) => decimal(max),
        (None, Measure::Share) => "100".to_owned(),
        (None, Measure::Time | Measure::Size | Measure::Count) => String::new(),
    };
    let fields = format!("{value};{};{};{min};{max}", range(warn), range(crit));
    fields.trim_end_matches(';').to_owned()
}

/// Writes a number in digits, without an exponent.
fn decimal(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Makes one line of a text, without the character that begins performance data.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '|' => '/',
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => ' ',
            c => c,
        })
        .collect()
}

/// Adds a line, if there is room for any of it.
fn add_line(text: &mut String, line: &str) {
    let room = WHOLE.saturating_sub(text.len() + 1);
    if room > 0 {
        fit(text, text.len() + room, &plain(line));
        text.push('\n');
    }
}

/// Adds as much of a text as keeps the whole within `limit` bytes; three dots where something is missing.
fn fit(text: &mut String, limit: usize, more: &str) {
    const DOTS: &str = "...";
    let room = limit.saturating_sub(text.len());
    if more.len() <= room {
        text.push_str(more);
    } else if room > DOTS.len() {
        let cut = more.floor_char_boundary(room - DOTS.len());
        write!(text, "{}{DOTS}", &more[..cut]).expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::checks::Check;
    use crate::ui::ended::Failed;
    use crate::ui::health::tests::{finding, health};

    fn told_in_full(health: &Health) -> String {
        text(Ended::Judged(health), Verbosity::Normal)
    }

    #[test]
    fn a_herd_in_trouble_as_a_plugin_says_it() {
        insta::assert_snapshot!(told_in_full(&health()));
    }

    #[test]
    fn what_is_fine_is_one_line() {
        let mut health = health();
        health.findings.retain(|finding| finding.status == Status::Ok);
        health.status = Status::Ok;
        let text = told_in_full(&health);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("PGHERD OK: orders, stock of shop, "), "{text}");
    }

    #[test]
    fn a_run_that_failed_is_unknown_in_one_line_and_says_more_below() {
        let failed = Failed {
            what: "a|b\nc".to_owned(),
            detail: None,
            hint: Some("Do this.".to_owned()),
            herd: None,
            last_success: None,
        };
        assert_eq!(
            text(Ended::Failed(&failed), Verbosity::Normal),
            "PGHERD UNKNOWN: a/b c\nERROR:  a/b c\nHINT:   Do this.\n"
        );
    }

    #[test]
    fn a_value_that_is_worse_below_its_threshold_has_a_range_that_says_so() {
        let check = CheckName::Custom { name: "left".to_owned(), worse: Worse::Below };
        let limits = Limits { warn: Some(30.0), crit: Some(7.5) };
        let measured = Measured {
            name: "left".to_owned(),
            value: 12.0,
            measure: Measure::Time,
            limits: Some(limits),
            max: None,
        };
        assert_eq!(number(&check, &measured), "12s;30:;7.5:;0");
        let bare = Measured { limits: None, value: f64::NAN, measure: Measure::Count, ..measured };
        assert_eq!(number(&check, &bare), "U;;;0");
        assert_eq!(decimal(1e20), "100000000000000000000");
        assert_eq!(decimal(-0.000_000_01), "0");
    }

    #[test]
    fn a_large_herd_stays_within_four_kibibytes_and_the_worst_is_first() {
        let mut health = health();
        for number in 0..2000 {
            health.findings.push(finding(Check::Lag, &format!("n{number}"), Status::Warning));
        }
        let mut worst = finding(Check::Connect, "the-worst", Status::Critical);
        worst.text = "it is stopped".to_owned();
        health.findings.push(worst);
        health.status = Status::Critical;
        let text = told_in_full(&health);
        assert!(text.len() <= WHOLE && text.ends_with(" more\n"), "{} {text}", text.len());
        assert!(text.starts_with("PGHERD CRITICAL: orders/"), "{text}");
        assert!(text.lines().next().unwrap().contains("the-worst"), "{text}");
        assert!(text.contains("numbers did not fit"), "{text}");
    }

    proptest! {
        #[test]
        fn whatever_a_text_holds_there_is_one_bar_and_each_line_is_one_line(
            texts in proptest::collection::vec("\\PC{0,300}|[|'= \n\r\t]{0,30}", 0..12),
            name in "[a-z '=|\n]{1,12}",
        ) {
            let mut health = health();
            for text in &texts {
                let mut one = finding(Check::Lag, &name, Status::Critical);
                one.text.clone_from(text);
                one.measured[0].name.clone_from(&name);
                health.findings.push(one);
            }
            let text = told_in_full(&health);
            prop_assert!(text.len() <= WHOLE && text.ends_with('\n'));
            let mut lines = text.lines();
            let first = lines.next().unwrap();
            prop_assert_eq!(first.matches('|').count(), 1, "{}", first);
            prop_assert!(lines.all(|line| !line.contains('|')));
            // Every label is quoted, and is followed by its number.
            let numbers = first.split_once('|').unwrap().1;
            let mut rest = numbers.trim_start();
            while !rest.is_empty() {
                let label = rest.strip_prefix('\'').expect("a quote");
                let mut end = 0;
                while let Some(quote) = label[end..].find('\'') {
                    end += quote;
                    if label[end + 1..].starts_with('\'') { end += 2 } else { break }
                }
                prop_assert!(label[end..].starts_with("'="), "{}", rest);
                rest = label[end + 2..].split_once(' ').map_or("", |(_, rest)| rest);
            }
        }
    }
}
