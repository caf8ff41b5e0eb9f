//! Partitions: what there is, what would run, what was done.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::{Format, Tone, Ui, Verbosity};
use crate::db::partition::sql::{Block, Script};
use crate::engine::record::Failure;
use crate::ops::partition::{
    Applied, BroughtBack, Drained, Kind, Plan, SetApplied, SetFacts, SetListed, SetPlanned, Step,
};
use crate::repo::export::ExportManifest;
use crate::units::{ByteCount, human_duration};

/// Prints the sets of clusters; `whole` with every partition.
pub fn print_list(ui: &mut Ui, herd: &str, lists: &[(String, Vec<SetListed>)], whole: bool) {
    if ui.format == Format::Json {
        let clusters: Vec<_> =
            lists.iter().map(|(cluster, sets)| json!({"cluster": cluster, "sets": sets})).collect();
        ui.json(&json!({"herd": herd, "clusters": clusters}));
        return;
    }
    for (cluster, sets) in lists {
        ui.line(format!("{herd}/{cluster}"));
        let width = sets.iter().map(|set| set.table.to_string().chars().count()).max().unwrap_or(0);
        for listed in sets {
            let name = format!("{:width$}", listed.table.to_string());
            match (&listed.set, &listed.failure) {
                (Some(facts), _) => {
                    set_lines(ui, &name, listed.every, facts, whole || ui.verbosity == Verbosity::Verbose)
                }
                (None, failure) => {
                    let why = failure.as_ref().map_or("", |failure| failure.what.as_str());
                    let word = ui.paint(Tone::Bad, "cannot be maintained");
                    ui.line(format!("  {name}   {word}: {why}"));
                    if let Some(failure) = failure {
                        evidence(ui, failure);
                    }
                }
            }
        }
    }
}

fn evidence(ui: &mut Ui, failure: &Failure) {
    for (word, text) in [("DETAIL:", &failure.detail), ("HINT:  ", &failure.hint)] {
        if let Some(text) = text {
            ui.line(format!("    {word} {text}"));
        }
    }
}

fn set_lines(ui: &mut Ui, name: &str, every: &str, facts: &SetFacts, whole: bool) {
    let count = facts.partitions.len();
    let until = facts.horizon.as_ref().map_or("nothing".to_owned(), |horizon| format!("up to {horizon}"));
    let short = facts.ahead < facts.ahead_declared;
    let ahead = format!("{} of {} ahead", facts.ahead, facts.ahead_declared);
    let ahead = ui.paint(if short { Tone::Warning } else { Tone::Good }, &ahead);
    let to_do = match facts.to_do {
        Some(0) => String::new(),
        Some(steps) => format!("   {steps} to do: pgherd partition plan"),
        None => "   cannot go on: pgherd partition plan".to_owned(),
    };
    ui.line(format!(
        "  {name}   every {every}   {count} partitions, {}   {until}   {ahead}{to_do}",
        facts.bytes
    ));
    if let Some(default) = &facts.default_partition {
        let rows = match facts.default_rows {
            Some(0) | None => "empty".to_owned(),
            Some(rows) => ui.paint(Tone::Warning, &format!("{rows} rows")),
        };
        ui.line(format!("    default partition {default}: {rows}"));
    }
    for pending in &facts.detach_pending {
        let word = ui.paint(Tone::Warning, "detach pending");
        ui.line(format!("    {word}: {pending}"));
    }
    if !facts.detached.is_empty() {
        let names: Vec<String> = facts.detached.iter().map(ToString::to_string).collect();
        ui.line(format!("    detached: {}", names.join(", ")));
    }
    if !whole {
        return;
    }
    let name = |partition: &crate::ops::partition::PartitionFacts| partition.table.name.clone();
    let width = facts.partitions.iter().map(|partition| name(partition).chars().count()).max().unwrap_or(0);
    let bounds =
        facts.partitions.iter().map(|partition| partition.from.len() + partition.to.len()).max().unwrap_or(0);
    for partition in &facts.partitions {
        let note = match (partition.detach_pending, partition.over, partition.restored) {
            (true, ..) => "   detach pending",
            (_, true, _) => "   no longer kept",
            (_, _, true) => "   brought back",
            _ => "",
        };
        let range = format!("[{}, {})", partition.from, partition.to);
        let (name, bytes, bounds) = (name(partition), partition.bytes.to_string(), bounds + 4);
        ui.line(format!("    {name:width$}   {range:bounds$}   {bytes:>10}{note}"));
    }
}

/// Prints what the repository holds of a cluster's partitions.
pub fn print_exports(ui: &mut Ui, herd: &str, cluster: &str, exports: &[ExportManifest]) {
    if ui.format == Format::Json {
        ui.json(&json!({"herd": herd, "cluster": cluster, "exports": exports}));
        return;
    }
    ui.line(format!("{herd}/{cluster}   {} partitions in the repository", exports.len()));
    let width = exports.iter().map(|export| export.partition.chars().count()).max().unwrap_or(0);
    for export in exports {
        ui.line(format!(
            "  {}   {:width$}   {} rows, {} ({} stored)   exported {}",
            export.of, export.partition, export.rows, export.size, export.stored, export.at
        ));
    }
}

/// Prints what would be done, with every statement.
pub fn print_plans(ui: &mut Ui, herd: &str, plans: &[(String, Vec<SetPlanned>)], lock_timeout: Duration) {
    if ui.format == Format::Json {
        let clusters: Vec<_> =
            plans.iter().map(|(cluster, sets)| json!({"cluster": cluster, "sets": sets})).collect();
        ui.json(
            &json!({"herd": herd, "lock_timeout_seconds": lock_timeout.as_secs_f64(), "clusters": clusters}),
        );
        return;
    }
    let mut steps = 0;
    for (cluster, sets) in plans {
        ui.line(format!("{herd}/{cluster}"));
        for planned in sets {
            if let Some(plan) = &planned.plan {
                steps += plan.steps.len();
                plan_lines(ui, plan, planned.failure.is_none());
            }
            if let Some(failure) = &planned.failure {
                let word = if planned.plan.is_some() { "it goes no further" } else { "nothing can be done" };
                let word = ui.paint(Tone::Bad, word);
                ui.line(format!("  {}   {word}: {}", planned.table, failure.what));
                evidence(ui, failure);
            }
        }
    }
    let timeout = human_duration(lock_timeout);
    if steps > 0 {
        ui.line(format!("Locks are waited for no longer than {timeout}, all of a transaction together; then it is tried again."));
        ui.line("next     pgherd partition apply");
    }
}

fn plan_lines(ui: &mut Ui, plan: &Plan, whole: bool) {
    if plan.steps.is_empty() && whole {
        ui.line(format!("  {}   nothing to do", plan.table));
    } else if !plan.steps.is_empty() {
        ui.line(format!("  {}", plan.table));
    }
    for step in &plan.steps {
        let bytes = if step.bytes == ByteCount(0) { String::new() } else { format!("   {}", step.bytes) };
        let what = words(step);
        ui.line(format!("  {} {what}{bytes}", sign(step.kind)));
        for script in &step.scripts {
            script_lines(ui, script);
        }
    }
    for note in &plan.notes {
        ui.line(format!("    NOTE: {note}"));
    }
}

fn sign(kind: Kind) -> &'static str {
    match kind {
        Kind::CreateDefault | Kind::Create => "+",
        Kind::Drop | Kind::ExportAndDrop | Kind::Detach => "-",
        Kind::TakeOver | Kind::CleanUp | Kind::Analyze | Kind::Finalize => "~",
    }
}

fn words(step: &Step) -> String {
    let table = &step.table;
    match step.kind {
        Kind::TakeOver => format!("take {table} over from pg_partman"),
        Kind::CleanUp => format!(
            "{}, which an interrupted run has left",
            step.scripts.first().map_or("", |script| &script.what)
        ),
        Kind::CreateDefault => format!("create {table} as the default partition"),
        Kind::Create => format!("create {} as {table}", step.period),
        Kind::Analyze => "renew the statistics of the table".to_owned(),
        Kind::Finalize => format!("finish the detach of {} ({table})", step.period),
        Kind::Detach => format!("detach {} ({table})", step.period),
        Kind::Drop => format!("drop {} ({table})", step.period),
        Kind::ExportAndDrop => {
            format!("export {} ({table}) to the repository, read it back, drop it", step.period)
        }
    }
}

fn script_lines(ui: &mut Ui, script: &Script) {
    for block in &script.blocks {
        match block {
            Block::Transaction(statements) => {
                ui.line("      begin;");
                for statement in statements {
                    ui.line(format!("        {statement};"));
                }
                ui.line("      commit;");
            }
            Block::Alone(statement) | Block::Concurrent { first: statement, .. } => {
                ui.line(format!("      {statement};"))
            }
        }
    }
    let locks: Vec<String> =
        script.locks.iter().map(|lock| format!("{} on {}", lock.mode, lock.relation)).collect();
    let text = format!("      -- locks: {}", locks.join(", "));
    let text = ui.paint(Tone::Faint, &text);
    ui.line(text);
}

/// Prints what was done to a cluster's sets; errors are printed by whoever ends the run.
pub fn print_applied(ui: &mut Ui, herd: &str, applied: &Applied) {
    if ui.format == Format::Json {
        let mut body = serde_json::Map::new();
        body.insert("herd".to_owned(), herd.into());
        if let serde_json::Value::Object(fields) =
            serde_json::to_value(applied).expect("reports have text keys")
        {
            body.extend(fields);
        }
        ui.json(&body);
        return;
    }
    let width = applied.sets.iter().map(|set| set.table.to_string().chars().count()).max().unwrap_or(0);
    for set in &applied.sets {
        let name = format!("{:width$}", set.table.to_string());
        let line = format!("{name}   {}", done_words(ui, set));
        ui.remark(line);
        for note in &set.notes {
            ui.remark(format!("  NOTE: {note}"));
        }
    }
}

fn done_words(ui: &Ui, set: &SetApplied) -> String {
    let of = |kind: Kind| set.done.iter().filter(move |step| step.kind == kind);
    let periods = |kind: Kind| of(kind).map(|step| step.period.as_str()).collect::<Vec<_>>().join(", ");
    let mut words = Vec::new();
    if of(Kind::TakeOver).next().is_some() {
        words.push("taken over from pg_partman".to_owned());
    }
    let made = of(Kind::Create).count() + of(Kind::CreateDefault).count();
    if made > 0 {
        let named = [periods(Kind::Create), periods(Kind::CreateDefault)];
        let named: Vec<String> = named.into_iter().filter(|names| !names.is_empty()).collect();
        words.push(format!("+{made} ({})", named.join(", ")));
    }
    for (kind, word) in
        [(Kind::CleanUp, "cleaned up"), (Kind::Finalize, "finished a detach of"), (Kind::Detach, "detached")]
    {
        if of(kind).next().is_some() {
            words.push(format!("{word} {} ({})", of(kind).count(), periods(kind)));
        }
    }
    if !set.exported.is_empty() {
        let stored = ByteCount(set.exported.iter().map(|one| one.stored.0).sum());
        let rows: u64 = set.exported.iter().map(|one| one.rows).sum();
        words.push(format!("exported {} ({stored}, {rows} rows, checksum verified)", set.exported.len()));
    }
    let dropped = of(Kind::Drop).count() + of(Kind::ExportAndDrop).count();
    if dropped > 0 {
        let freed: u64 = of(Kind::Drop).chain(of(Kind::ExportAndDrop)).map(|step| step.bytes.0).sum();
        words.push(format!("dropped {dropped} ({})", ByteCount(freed)));
    }
    if words.is_empty() && set.failure.is_none() {
        words.push("nothing to do".to_owned());
    }
    if let Some(failure) = &set.failure {
        words.push(format!("{}: {}", ui.paint(Tone::Bad, "failed"), failure.what));
    }
    let retries = match set.retries {
        0 => String::new(),
        1 => ", 1 lock retry".to_owned(),
        more => format!(", {more} lock retries"),
    };
    words.push(format!("{}{retries}", human_duration(Duration::from_secs_f64(set.seconds))));
    words.join("   ")
}

/// Prints what was or would be moved out of a default partition.
pub fn print_drained(ui: &mut Ui, herd: &str, cluster: &str, drained: &Drained) {
    if ui.format == Format::Json {
        ui.json(&json!({"herd": herd, "cluster": cluster, "drained": drained}));
        return;
    }
    let Some(default) = &drained.default_partition else {
        ui.remark(format!("{}   has no default partition", drained.table));
        return;
    };
    if drained.periods.is_empty() && drained.timeless_rows == 0 {
        ui.remark(format!("{}   the default partition {default} is empty", drained.table));
        return;
    }
    ui.remark(format!("{}   default partition {default}", drained.table));
    for one in &drained.periods {
        let what = match (&one.left, one.moved) {
            (Some(why), _) => format!("left: {why}"),
            (None, true) => format!("moved to {}", one.partition),
            (None, false) => format!("would go to {}", one.partition),
        };
        ui.remark(format!("  {:10}   {:>12} rows   {what}", one.period, one.rows));
    }
    if drained.timeless_rows > 0 {
        let word = ui.paint(Tone::Warning, "left");
        ui.remark(format!(
            "  {} rows have no time (infinity, -infinity or NULL), which no partition holds: {word}",
            drained.timeless_rows
        ));
    }
}

/// Prints a partition that was brought back.
pub fn print_brought_back(ui: &mut Ui, herd: &str, cluster: &str, back: &BroughtBack, until: Timestamp) {
    if ui.format == Format::Json {
        let kept = back.attached.then_some(until);
        ui.json(&json!({"herd": herd, "cluster": cluster, "brought_back": back, "kept_until": kept}));
        return;
    }
    let place = if back.attached {
        format!("attached; retention leaves it alone until {until}")
    } else {
        "a table of its own; drop it when it is no longer needed".to_owned()
    };
    ui.remark(format!(
        "{}   {} rows, {}, exported {}   count and checksum verified   {place}",
        back.table, back.rows, back.size, back.exported_at
    ));
}
