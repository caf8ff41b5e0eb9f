//! The judgement of the herd: for people, as JSON, and for what monitoring reads; to stdout, or as a whole into a file.

use serde::Serialize;

use crate::error::Result;
use crate::ops::health::{Finding, Health, Status};
use crate::ui::ended::{Ended, Failed};
use crate::ui::{Asked, Format, Monitoring, Tone, Ui, Verbosity, file, junit, nagios, prometheus, versioned};

#[derive(Serialize)]
struct Unknown<'a> {
    status: Status,
    error: &'a Failed,
}

/// Prints how a run ended, in the form that was asked for.
pub fn print(ui: &mut Ui, asked: Asked, ended: Ended<'_>) {
    let color = ui.stdout_color;
    let text = render(asked, ui.verbosity, ended, |tone, text| super::paint(color, tone, text));
    ui.bytes(text.as_bytes());
}

/// Writes how a run ended into a file, as a whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &std::path::Path, ui: &Ui, asked: Asked, ended: Ended<'_>) -> Result<()> {
    let text = render(asked, ui.verbosity, ended, |_, text| text.to_owned());
    file::write_whole(path, text.as_bytes())
}

/// Returns how a run ended, as others than people read it.
pub fn text(asked: Asked, ended: Ended<'_>) -> String {
    render(asked, Verbosity::Normal, ended, |_, text| text.to_owned())
}

/// Prints what is not as it was: each change with its time, one a line.
pub fn print_changes(ui: &mut Ui, before: &Health, now: &Health) {
    for finding in changes(before, now) {
        let word = ui.paint(tone(finding.status), &format!("{:<8}", finding.status.word()));
        let place = format!("{}/{}", finding.cluster, finding.check.name());
        ui.line(format!("{:.0}  {word}  {place}  {}  {}", now.at, finding.subject, finding.text));
    }
}

/// Returns the findings whose status is another one; what follows from others is not told again.
fn changes<'a>(before: &Health, now: &'a Health) -> Vec<&'a Finding> {
    let was = |finding: &Finding| {
        let same = |other: &&Finding| {
            other.cluster == finding.cluster
                && other.check == finding.check
                && other.subject == finding.subject
        };
        before.findings.iter().find(same).map(|other| (other.status, other.follows.is_some()))
    };
    let is_told = |finding: &&Finding| match was(finding) {
        None => finding.is_trouble(),
        Some((_, true)) => finding.is_trouble(),
        Some((status, false)) => finding.follows.is_none() && status != finding.status,
    };
    now.findings.iter().filter(is_told).collect()
}

fn render(
    asked: Asked,
    verbosity: Verbosity,
    ended: Ended<'_>,
    paint: impl Fn(Tone, &str) -> String,
) -> String {
    match asked {
        Asked::Monitoring(Monitoring::Nagios) => nagios::text(ended, verbosity),
        Asked::Monitoring(Monitoring::Prometheus) => prometheus::text(ended),
        Asked::Monitoring(Monitoring::Junit) => junit::health(ended),
        Asked::Usual(Format::Json) => {
            let document = match ended {
                Ended::Judged(health) => versioned(health),
                Ended::Failed(error) => versioned(&Unknown { status: Status::Unknown, error }),
            };
            format!("{document:#}\n")
        }
        Asked::Usual(Format::Human | Format::Markdown) => match ended {
            Ended::Judged(health) => {
                let of = |cluster: &String| human(health, cluster, verbosity, &paint);
                health.clusters.iter().flat_map(of).map(|line| format!("{line}\n")).collect()
            }
            Ended::Failed(failed) => failed.lines().iter().map(|line| format!("{line}\n")).collect(),
        },
    }
}

/// Writes a cluster: what is wrong first, what is fine in one line.
fn human(
    health: &Health,
    cluster: &str,
    verbosity: Verbosity,
    paint: &impl Fn(Tone, &str) -> String,
) -> Vec<String> {
    let of: Vec<&Finding> = health.findings.iter().filter(|finding| finding.cluster == *cluster).collect();
    let worst = of.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    if worst == Status::Ok && verbosity == Verbosity::Quiet {
        return Vec::new();
    }
    let mut lines = vec![format!("{}/{cluster}   {}", health.herd, paint(tone(worst), worst.word()))];
    let mut shown: Vec<&Finding> = of
        .iter()
        .copied()
        .filter(|finding| verbosity == Verbosity::Verbose || finding.is_trouble())
        .collect();
    shown.sort_by_key(|finding| std::cmp::Reverse(finding.status));
    let width =
        |text: fn(&Finding) -> String| shown.iter().map(|finding| text(finding).chars().count()).max();
    let checks = width(|finding| finding.check.name().to_owned()).unwrap_or(0);
    let subjects = width(|finding| finding.subject.to_string()).unwrap_or(0);
    for finding in &shown {
        let word = paint(tone(finding.status), &format!("{:<8}", finding.status.word()));
        let (check, subject) = (finding.check.name(), finding.subject.to_string());
        lines.push(format!("  {word}  {check:<checks$}  {subject:<subjects$}  {}", finding.text));
        if let Some(next) = &finding.next {
            lines.push(format!("  {:<8}  {:<checks$}  {:<subjects$}  next: {next}", "", "", ""));
        }
    }
    if verbosity == Verbosity::Verbose {
        return lines;
    }
    let follow = of.iter().filter(|finding| finding.follows.is_some()).count();
    if follow > 0 {
        lines.push(format!("  {follow} more are not known because of that"));
    }
    let mut fine: Vec<&str> = of.iter().map(|finding| finding.check.name()).collect();
    fine.dedup();
    // One node's trouble is enough.
    fine.retain(|name| {
        of.iter().all(|finding| finding.check.name() != *name || finding.status == Status::Ok)
    });
    let mut label = "  fine      ";
    for line in wrapped(&fine) {
        lines.push(format!("{label}{line}"));
        label = "            ";
    }
    lines
}

/// How much of a line names may take.
const WIDTH: usize = 100;

/// Writes names as lines that fit a screen.
fn wrapped(names: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let word = if index + 1 < names.len() { format!("{name},") } else { (*name).to_owned() };
        match lines.last_mut().filter(|line| line.len() + word.len() < WIDTH) {
            Some(line) => {
                line.push(' ');
                line.push_str(&word);
            }
            None => lines.push(word),
        }
    }
    lines
}

fn tone(status: Status) -> Tone {
    match status {
        Status::Ok => Tone::Good,
        Status::Warning | Status::Unknown => Tone::Warning,
        Status::Critical => Tone::Bad,
    }
}

#[cfg(test)]
pub(in crate::ui) mod tests {
    use super::*;
    use crate::ops::health::{CheckName, Measured, Subject};
    use crate::topology::checks::{Check, Limits, Measure, Worse};

    pub(in crate::ui) fn finding(check: Check, node: &str, status: Status) -> Finding {
        let measured = check.measure().map(|measure| Measured {
            name: check.name().replace('-', "_"),
            value: 41.5,
            measure,
            limits: Some(check.limits()),
            max: None,
        });
        Finding {
            check: check.into(),
            cluster: "orders".to_owned(),
            subject: Subject::Node(node.to_owned()),
            status,
            text: "as it is".to_owned(),
            next: None,
            follows: None,
            damped: None,
            measured: measured.into_iter().collect(),
        }
    }

    /// Two clusters, with one finding of every kind.
    pub(in crate::ui) fn health() -> Health {
        let fine = finding(Check::Disk, "pg-a", Status::Ok);
        let mut lag = finding(Check::Lag, "pg-b", Status::Warning);
        lag.text = "41.5 s behind (38 MiB; progressing), warning from 30.0 s on".to_owned();
        lag.next = Some("pgherd --cluster orders status".to_owned());
        lag.measured.push(Measured {
            name: "lag_bytes".to_owned(),
            value: 39_845_888.0,
            measure: Measure::Size,
            limits: None,
            max: None,
        });
        let mut connect = finding(Check::Connect, "pg-c", Status::Critical);
        connect.text = "it is stopped | \"by\" <somebody>".to_owned();
        let mut follows = finding(Check::Connections, "pg-c", Status::Unknown);
        follows.follows = Some(Check::Connect);
        follows.measured.clear();
        let mut backup = finding(Check::BackupAge, "", Status::Unknown);
        (backup.cluster, backup.subject) = ("stock".to_owned(), Subject::Cluster);
        backup.text = "it did not answer within 4 s".to_owned();
        backup.measured.clear();
        let mut custom = finding(Check::Archive, "", Status::Ok);
        custom.check = CheckName::Custom { name: "open-orders".to_owned(), worse: Worse::Below };
        custom.subject = Subject::Pooler("web".to_owned());
        custom.measured[0].limits = Some(Limits { warn: Some(10.0), crit: None });
        Health {
            herd: "shop".to_owned(),
            status: Status::Critical,
            clusters: vec!["orders".to_owned(), "stock".to_owned()],
            at: "2026-11-21T10:00:00.5Z".parse().unwrap(),
            took_seconds: 0.25,
            findings: vec![connect, lag, follows, fine, custom, backup],
            remarks: Vec::new(),
        }
    }

    fn shown(asked: Asked, ended: Ended<'_>) -> String {
        render(asked, Verbosity::Normal, ended, |_, text| text.to_owned())
    }

    #[test]
    fn names_that_do_not_fit_a_line_go_on_in_the_next() {
        assert_eq!(wrapped(&[]), Vec::<String>::new());
        assert_eq!(wrapped(&["connect", "lag"]), ["connect, lag"]);
        let names = ["invalid-indexes"; 9];
        let lines = wrapped(&names);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{lines:?}");
        assert_eq!(lines.join(" "), names.join(", "));
    }

    #[test]
    fn a_herd_in_trouble_as_people_and_programs_read_it() {
        let health = health();
        insta::assert_snapshot!(shown(Asked::Usual(Format::Human), Ended::Judged(&health)));
        insta::assert_snapshot!(shown(Asked::Usual(Format::Json), Ended::Judged(&health)));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let junit = shown(Asked::Monitoring(Monitoring::Junit), Ended::Judged(&health));
        insta::assert_snapshot!(junit.replace(&format!("hostname=\"{host}\""), "hostname=\"HOST\""));
    }

    #[test]
    fn only_changes_are_told_again() {
        let before = health();
        let mut now = health();
        let told = |now: &Health| -> Vec<(String, Status)> {
            changes(&before, now).iter().map(|change| (change.subject.to_string(), change.status)).collect()
        };
        assert_eq!(told(&now), []);
        // It is up again, and what was not known because of it is fine.
        now.findings[0].status = Status::Ok;
        now.findings[2].status = Status::Ok;
        now.findings[2].follows = None;
        now.findings[3].status = Status::Critical;
        assert_eq!(told(&now), [("pg-c".to_owned(), Status::Ok), ("pg-a".to_owned(), Status::Critical)]);
    }

    #[test]
    fn a_run_that_failed_is_told_in_every_form() {
        let failed = Failed {
            what: "pgherd.yml:3:1: <unknown> key".to_owned(),
            detail: None,
            hint: Some("Remove it.".to_owned()),
            herd: None,
            last_success: None,
        };
        let told = |asked| shown(asked, Ended::Failed(&failed));
        assert_eq!(
            told(Asked::Usual(Format::Human)),
            "ERROR:  pgherd.yml:3:1: <unknown> key\nHINT:   Remove it.\n"
        );
        assert!(told(Asked::Usual(Format::Json)).contains("\"status\": \"unknown\""));
        let junit = told(Asked::Monitoring(Monitoring::Junit));
        assert!(junit.contains("errors=\"1\"") && junit.contains("&lt;unknown&gt; key"), "{junit}");
    }
}
