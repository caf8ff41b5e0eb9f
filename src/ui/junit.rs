//! Reports as JUnit XML, in the dialect that Jenkins reads: what did not hold is a failure, what could not be tried an error.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::ops::drill::{self, Held, Judged, Proof};
use crate::ops::health::{Finding, Health, Status, Subject};
use crate::ui::ended::{Ended, Failed};
use crate::units::human_duration;

/// Writes drills as one document.
pub fn drills(reports: &[drill::Report]) -> String {
    let mut document = Report::new("pgherd drill run restore");
    for report in reports {
        document.add_test_suite(suite(report));
    }
    document.to_string().expect("names and texts are written escaped")
}

/// Writes the judgement of a herd as one document: a suite a cluster, a case a check. What only follows from another check is skipped.
pub fn health(ended: Ended<'_>) -> String {
    let mut document = Report::new("pgherd health");
    match ended {
        Ended::Judged(health) => {
            document.set_time(seconds(health.took_seconds));
            for cluster in &health.clusters {
                document.add_test_suite(cluster_suite(health, cluster));
            }
        }
        Ended::Failed(failed) => {
            let mut suite = TestSuite::new("pgherd");
            let mut case = TestCase::new("run", could_not_run(failed));
            case.set_classname("health");
            suite.add_test_case(case);
            document.add_test_suite(suite);
        }
    }
    document.to_string().expect("names and texts are written escaped")
}

fn cluster_suite(health: &Health, cluster: &str) -> TestSuite {
    let mut suite = TestSuite::new(format!("{}/{cluster}", health.herd));
    suite
        .extra
        .insert("timestamp".into(), health.at.strftime("%Y-%m-%dT%H:%M:%S").to_string().as_str().into());
    suite
        .extra
        .insert("hostname".into(), rustix::system::uname().nodename().to_string_lossy().as_ref().into());
    suite.set_time(seconds(health.took_seconds));
    let of = health.findings.iter().filter(|finding| finding.cluster == cluster);
    suite.add_test_cases(of.map(check_case));
    suite
}

fn check_case(finding: &Finding) -> TestCase {
    let next = finding.next.as_ref().map(|next| format!("\nnext: {next}")).unwrap_or_default();
    let text = format!("{}{next}", finding.text);
    let not_held = |kind| {
        let mut status = TestCaseStatus::non_success(kind);
        status
            .set_type(finding.status.word())
            .set_message(finding.text.as_str())
            .set_description(text.as_str());
        status
    };
    let status = match finding.status {
        Status::Ok => TestCaseStatus::success(),
        Status::Warning | Status::Critical => not_held(NonSuccessKind::Failure),
        Status::Unknown if finding.follows.is_some() => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(finding.text.as_str());
            status
        }
        Status::Unknown => not_held(NonSuccessKind::Error),
    };
    let name = match &finding.subject {
        Subject::Cluster => finding.check.name().to_owned(),
        subject @ (Subject::Node(_) | Subject::Pooler(_) | Subject::Part(_)) => {
            format!("{} {subject}", finding.check.name())
        }
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(format!("health.{}", finding.cluster));
    case.set_time(Duration::ZERO);
    if finding.status == Status::Ok {
        case.set_system_out(finding.text.as_str());
    }
    case
}

fn could_not_run(failed: &Failed) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_message(failed.what.as_str()).set_description(failed.lines().join("\n"));
    status
}

fn suite(report: &drill::Report) -> TestSuite {
    let mut suite = TestSuite::new(format!("{}/{}", report.herd, report.cluster));
    if let Some(host) = &report.host {
        suite.add_property(("host", host.as_str()));
    }
    suite.add_property(("drill", report.id.as_str()));
    if let Some(seed) = report.seed {
        suite.add_property(("seed", seed.to_string().as_str()));
    }
    suite.set_time(seconds(report.ended.duration_since(report.begun).as_secs_f64()));
    let mut cases = vec![case(report, "restore", restored(report), report.rto_seconds.unwrap_or(0.0))];
    cases.extend(report.proofs.iter().map(|proof| case(report, &proof.name, proved(proof), proof.seconds)));
    for judged in &report.objectives {
        let (rto, rpo) = met(report, judged);
        cases.push(case(report, &format!("{} rto", judged.objective), rto, 0.0));
        cases.push(case(report, &format!("{} rpo", judged.objective), rpo, 0.0));
    }
    suite.add_test_cases(cases);
    suite
}

fn case(report: &drill::Report, name: &str, status: TestCaseStatus, took: f64) -> TestCase {
    let mut case = TestCase::new(name, status);
    case.set_classname(format!("drill.restore.{}", report.cluster));
    case.set_time(seconds(took));
    case
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

fn restored(report: &drill::Report) -> TestCaseStatus {
    match &report.error {
        None => TestCaseStatus::success(),
        Some(error) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            let lines = [Some(&error.what), error.detail.as_ref(), error.hint.as_ref()];
            let text: Vec<&str> =
                lines.into_iter().flatten().chain(&error.causes).map(String::as_str).collect();
            status.set_message(error.what.as_str()).set_description(text.join("\n"));
            status
        }
    }
}

fn proved(proof: &Proof) -> TestCaseStatus {
    match proof.held {
        Held::Yes => TestCaseStatus::success(),
        Held::No => failure(&proof.found),
        Held::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(proof.found.as_str());
            status
        }
    }
}

fn met(report: &drill::Report, judged: &Judged) -> (TestCaseStatus, TestCaseStatus) {
    let decide = |met: bool, found: Option<f64>, declared: f64| match (met, found) {
        (true, _) => TestCaseStatus::success(),
        (false, found) => failure(&format!(
            "{}, declared {}",
            found.map_or_else(|| "not measured".to_owned(), |found| human_duration(seconds(found))),
            human_duration(seconds(declared)),
        )),
    };
    let rpo = report.freshness.as_ref().map(|freshness| freshness.rpo_seconds);
    (
        decide(judged.rto_met, report.rto_seconds, judged.declared_rto_seconds),
        decide(judged.rpo_met, rpo, judged.declared_rpo_seconds),
    )
}

fn failure(text: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_message(text.lines().next().unwrap_or_default()).set_description(text);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_as_ci_reads_it() {
        let golden = include_str!("../ops/drill/testdata/report-1.json");
        let mut report: drill::Report = serde_json::from_str(golden).unwrap();
        insta::assert_snapshot!(drills(&[report.clone()]));
        report.proofs[0].held = Held::No;
        report.proofs[0].found = "it yields <false>\u{1b}[0m & more".to_owned();
        report.proofs[1].held = Held::Skipped;
        report.objectives[0].rto_met = false;
        insta::assert_snapshot!(drills(&[report]));
    }
}
