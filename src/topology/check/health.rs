//! What is said of the checks of `health`: names, units, and whether a warning comes before what is critical.

use super::super::checks::{Check, Declared, DeclaredChecks, Limits, Worse};
use super::super::decode::{Named, NamedEntry, SettingText, Spanned};
use super::super::problem::{Report, nearest};
use super::super::raw;

/// Checks what stands under `path`.
pub(super) fn checks(
    report: &mut Report,
    path: &str,
    raw: Option<&Spanned<Named<raw::Health>>>,
) -> DeclaredChecks {
    let entries = raw.map(|raw| raw.value.0.as_slice()).unwrap_or_default();
    entries.iter().filter_map(|entry| check(report, path, entry)).collect()
}

fn check(report: &mut Report, path: &str, entry: &NamedEntry<raw::Health>) -> Option<(Check, Declared)> {
    let (name, raw) = (entry.name.as_str(), &entry.value);
    let Some(check) = Check::named(name) else {
        let names: Vec<&str> = Check::ALL.map(Check::name).into();
        let near = nearest(name, &names);
        report.add(entry.at, format!("unknown check \"{name}\" in {path}")).hint(match near {
            Some(near) => format!("Did you mean \"{near}\"?"),
            None => "\"pgherd health explain\" lists the checks.".to_owned(),
        });
        return None;
    };
    let mut limit = |key: &str, stated: Option<&Spanned<SettingText>>| {
        let stated = stated?;
        let Some(measure) = check.measure() else {
            report
                .add(stated.at, format!("{path}.{name} has no thresholds: it holds or it does not"))
                .hint("Remove the key; \"report: warning\" makes it a warning at most.");
            return None;
        };
        let read = measure.parse(&stated.value.0);
        if let Err(error) = &read {
            report
                .add(stated.at, format!("{path}.{name}.{key}: {error}"))
                .hint(format!("Write it as in \"{key}: {}\".", example(check)));
        }
        read.ok()
    };
    let limits = Limits { warn: limit("warn", raw.warn.as_ref()), crit: limit("crit", raw.crit.as_ref()) };
    let whole = limits.or(check.limits());
    if let (Some(warn), Some(crit), Some(measure)) = (whole.warn, whole.crit, check.measure()) {
        let (late, side) = match check.worse() {
            Worse::Above => (warn > crit, "above"),
            Worse::Below => (warn < crit, "below"),
        };
        let at = raw.warn.as_ref().or(raw.crit.as_ref()).map(|stated| stated.at);
        if let Some(at) = at.filter(|_| late) {
            let (warn, crit) = (measure.written(warn), measure.written(crit));
            report
                .add(at, format!("{path}.{name} warns at {warn}, {side} what is critical, {crit}"))
                .hint("State both, the warning first.");
        }
    }
    let after = raw.after.as_ref();
    if let Some(after) = after.filter(|after| after.value == 0) {
        report.add(after.at, format!("{path}.{name}.after must be 1 or more"));
    }
    Some((
        check,
        Declared {
            limits,
            after: after.map(|after| after.value),
            report: raw.report.as_ref().map(|stated| stated.value),
        },
    ))
}

fn example(check: Check) -> String {
    let limits = check.limits();
    let value = limits.warn.or(limits.crit).unwrap_or_default();
    check.measure().map(|measure| measure.written(value)).unwrap_or_default()
}
