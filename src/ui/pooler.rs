//! PgBouncer as people read it: its files, what it holds, where its aliases lead, and the arithmetic of its connections.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::ops::pooler::status::{PoolersStatus, ProcessState, ProcessStatus};
use crate::ops::pooler::{PoolerFiles, PoolerPaths, RouteTruth, Truth};
use crate::topology::budget::{Budget, Layout, NodeBudget, at_most};
use crate::topology::model::Cluster;
use crate::ui::{Format, Tone, Ui, Verbosity};

/// The files of one process.
#[derive(Debug, Serialize)]
pub struct Rendered {
    cluster: String,
    host: String,
    process: u32,
    version: String,
    files: Vec<RenderedFile>,
}

#[derive(Debug, Serialize)]
struct RenderedFile {
    path: String,
    content: String,
}

impl Rendered {
    /// Takes the files of a process; no verifier is kept.
    pub fn new(
        cluster: &Cluster,
        host: &str,
        process: u32,
        version: &str,
        paths: &PoolerPaths,
        files: &PoolerFiles,
    ) -> Self {
        let file = |path: std::path::PathBuf, content: &str| RenderedFile {
            path: path.display().to_string(),
            content: content.to_owned(),
        };
        Self {
            cluster: cluster.name.clone(),
            host: host.to_owned(),
            process,
            version: version.to_owned(),
            files: vec![
                file(paths.ini(), &files.ini),
                file(paths.hba(), &files.hba),
                file(paths.userlist(), &files.redacted_userlist()),
            ],
        }
    }
}

#[derive(Serialize)]
struct RenderedDocument<'a> {
    herd: &'a str,
    poolers: &'a [Rendered],
}

/// Prints the files of processes.
pub fn print_rendered(ui: &mut Ui, herd: &str, rendered: &[Rendered]) {
    if ui.format == Format::Json {
        ui.json(&RenderedDocument { herd, poolers: rendered });
        return;
    }
    let mut first = true;
    for one in rendered {
        for file in &one.files {
            if !first {
                ui.line("");
            }
            first = false;
            ui.line(format!("; {} on {}, PgBouncer {}", file.path, one.host, one.version));
            ui.line(file.content.trim_end());
        }
    }
}

#[derive(Serialize)]
struct StatusDocument<'a> {
    herd: &'a str,
    clusters: &'a [PoolersStatus],
}

/// Prints the poolers of clusters in the form that was asked for.
pub fn print_status(ui: &mut Ui, herd: &str, clusters: &[PoolersStatus]) {
    if ui.format == Format::Json {
        ui.json(&StatusDocument { herd, clusters });
        return;
    }
    for (index, cluster) in clusters.iter().enumerate() {
        if index > 0 {
            ui.line("");
        }
        let primary = cluster.primary.as_deref().unwrap_or("?");
        ui.line(format!("{herd}/{}   primary {primary}", cluster.cluster));
        let several = cluster.processes.iter().any(|process| process.process > 1);
        for process in &cluster.processes {
            let line = process_line(ui, process, several);
            ui.line(format!("  {line}"));
            for line in pools(process).lines() {
                ui.line(format!("    {}", line.trim_end()));
            }
        }
        routes(ui, &cluster.routes, several);
        for process in &cluster.processes {
            drift(ui, process);
        }
        if ui.verbosity == Verbosity::Verbose {
            budget(ui, &cluster.budget);
        }
        for problem in &cluster.problems {
            let word = ui.paint(Tone::Warning, "WARNING");
            ui.line(format!("{word}  {problem}."));
        }
        if ui.verbosity == Verbosity::Verbose {
            for note in &cluster.notes {
                ui.line(format!("note     {note}."));
            }
        }
    }
}

fn process_line(ui: &Ui, process: &ProcessStatus, several: bool) -> String {
    let (state, tone) = match process.state {
        ProcessState::Up => ("up", Tone::Good),
        ProcessState::Stopped => ("stopped", Tone::Bad),
        ProcessState::Missing => ("missing", Tone::Bad),
        ProcessState::Unknown => ("unknown", Tone::Warning),
    };
    let number = if several { format!(" process {}", process.process) } else { String::new() };
    let mut parts = vec![format!("pooler {}:{}{number}", process.host, process.port), ui.paint(tone, state)];
    parts.extend(process.version.as_ref().map(|version| format!("PgBouncer {version}")));
    if process.state == ProcessState::Up {
        parts.push(format!("clients {}/{}", process.clients, process.max_clients));
        parts.push(if process.waiting == 0 {
            "waiting 0".to_owned()
        } else {
            format!("waiting {} for up to {:.1} s", process.waiting, process.max_wait_seconds)
        });
    }
    if process.held_back == Some(true) && process.resumes_in_seconds.is_none() {
        parts.push("held back".to_owned());
    }
    parts.extend(process.resumes_in_seconds.map(|seconds| format!("held back, goes on in {seconds} s")));
    parts.extend(process.why.clone());
    parts.join("   ")
}

fn pools(process: &ProcessStatus) -> Table {
    let mut table = plain();
    let busy: Vec<_> = process.pools.iter().collect();
    if busy.is_empty() {
        return table;
    }
    table.set_header([
        "alias", "user", "mode", "clients", "waiting", "longest", "active", "idle", "used", "tested",
        "login", "of", "",
    ]);
    for pool in busy {
        let note = match (pool.paused, pool.disabled) {
            (true, _) => "paused",
            (false, true) => "refuses clients",
            (false, false) => "",
        };
        table.add_row([
            pool.alias.clone(),
            pool.user.clone(),
            pool.mode.clone(),
            pool.clients_active.to_string(),
            pool.clients_waiting.to_string(),
            if pool.clients_waiting == 0 {
                "-".to_owned()
            } else {
                format!("{:.1} s", pool.max_wait_seconds)
            },
            pool.servers_active.to_string(),
            pool.servers_idle.to_string(),
            pool.servers_used.to_string(),
            pool.servers_tested.to_string(),
            pool.servers_login.to_string(),
            pool.pool_size.to_string(),
            note.to_owned(),
        ]);
    }
    for column in 3..12 {
        right(&mut table, column);
    }
    table
}

fn routes(ui: &mut Ui, routes: &[RouteTruth], several: bool) {
    let mut table = plain();
    for route in routes {
        let (word, tone) = match route.truth {
            Truth::True => ("true", Tone::Good),
            Truth::False => ("false", Tone::Bad),
            Truth::Unknown => ("unknown", Tone::Warning),
        };
        let to = if route.to.is_empty() { "nowhere".to_owned() } else { route.to.join(", ") };
        let at =
            if several { format!("{} process {}", route.host, route.process) } else { route.host.clone() };
        table.add_row([
            "route".to_owned(),
            at,
            route.alias.clone(),
            format!("→ {to}"),
            ui.paint(tone, word),
            route.why.clone().unwrap_or_default(),
        ]);
    }
    for line in table.lines() {
        ui.line(format!("  {}", line.trim_end()));
    }
}

fn drift(ui: &mut Ui, process: &ProcessStatus) {
    let Some(found) = process.drift.as_ref().filter(|found| !found.is_empty()) else { return };
    ui.line(format!("  differs on {}, what is there with -, what is declared with +", process.host));
    for one in found {
        if one.diff.is_empty() {
            // What a diff shows is not told again.
            let in_diff = one.what.starts_with("pgbouncer.ini") || one.what.starts_with("pgbouncer_hba.conf");
            if !in_diff {
                ui.line(format!("    {}", one.what));
            }
        }
        for line in &one.diff {
            ui.line(format!("    {line}"));
        }
    }
}

#[derive(Serialize)]
struct BudgetDocument<'a> {
    herd: &'a str,
    clusters: &'a [Budget],
}

/// Prints the arithmetic of the connections alone.
pub fn print_budgets(ui: &mut Ui, herd: &str, budgets: &[Budget]) {
    if ui.format == Format::Json {
        ui.json(&BudgetDocument { herd, clusters: budgets });
        return;
    }
    for (index, one) in budgets.iter().enumerate() {
        if index > 0 {
            ui.line("");
        }
        ui.line(format!("{herd}/{}", one.cluster));
        budget(ui, one);
    }
}

/// Prints what the poolers may open to each node in each layout, against what the node has.
pub fn budget(ui: &mut Ui, budget: &Budget) {
    for line in budget_table(ui, "connections when", each(&budget.layouts)) {
        ui.line(format!("  {line}"));
    }
}

/// One line of a budget.
#[derive(Debug, PartialEq)]
pub struct BudgetLine<'b> {
    when: String,
    nodes: String,
    of: &'b NodeBudget,
}

/// Returns a line for each node in each layout.
pub fn each(layouts: &[Layout]) -> Vec<BudgetLine<'_>> {
    let nodes = layouts.iter().flat_map(|layout| layout.nodes.iter().map(move |node| (layout, node)));
    nodes.map(|(layout, of)| BudgetLine { when: layout.name.clone(), nodes: of.node.clone(), of }).collect()
}

/// Returns a line for each node in the layout in which most falls to it; nodes that are alike in it share one.
pub fn most(layouts: &[Layout]) -> Vec<BudgetLine<'_>> {
    let mut lines: Vec<BudgetLine<'_>> = Vec::new();
    for (layout, of) in at_most(layouts) {
        let alike =
            |line: &&mut BudgetLine<'_>| NodeBudget { node: of.node.clone(), ..line.of.clone() } == *of;
        // "b alone" of a line for several is "alone".
        let when = layout.name.strip_prefix(&format!("{} ", of.node)).unwrap_or(&layout.name);
        match lines.iter_mut().find(alike) {
            Some(line) => {
                line.nodes = format!("{}, {}", line.nodes, of.node);
                if !line.when.split(" or ").any(|word| word == when) {
                    line.when = format!("{} or {when}", line.when);
                }
            }
            None => lines.push(BudgetLine { when: when.to_owned(), nodes: of.node.clone(), of }),
        }
    }
    lines
}

/// Returns a table of nodes in layouts, a line each.
pub fn budget_table(ui: &Ui, when: &str, lines: Vec<BudgetLine<'_>>) -> Vec<String> {
    let mut table = plain();
    table.set_header([
        when,
        "node",
        "as",
        "max",
        "reserved",
        "direct",
        "for pools",
        "pools may open",
        "",
        "of",
    ]);
    for BudgetLine { when, nodes, of: node } in lines {
        let verdict = if node.fits { ui.paint(Tone::Good, "fits") } else { ui.paint(Tone::Bad, "OVER") };
        table.add_row([
            when,
            nodes,
            if node.primary { "primary" } else { "standby" }.to_owned(),
            node.limits.max_connections.to_string(),
            (node.limits.superuser_reserved + node.limits.reserved).to_string(),
            node.direct.to_string(),
            node.cap().to_string(),
            node.demand.to_string(),
            verdict,
            node.pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        ]);
    }
    for column in 3..8 {
        right(&mut table, column);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::budget::Limits;

    #[test]
    fn nodes_that_are_alike_share_a_line() {
        let node = |name: &str, primary, demand| NodeBudget {
            node: name.to_owned(),
            primary,
            pools: Vec::new(),
            demand,
            limits: Limits { max_connections: 40, superuser_reserved: 3, reserved: 0 },
            direct: 0,
            usable: 37,
            stated: None,
            fits: true,
        };
        let layout = |name: &str, primary: &str, nodes| Layout {
            name: name.to_owned(),
            primary: primary.to_owned(),
            today: name == "as planned",
            nodes,
        };
        let layouts = [
            layout("as planned", "a", vec![node("a", true, 10), node("b", false, 8), node("c", false, 12)]),
            layout("b primary", "b", vec![node("a", false, 8), node("b", true, 10), node("c", false, 12)]),
        ];
        let told: Vec<String> = most(&layouts)
            .iter()
            .map(|line| format!("{}: {} {}", line.when, line.nodes, line.of.demand))
            .collect();
        assert_eq!(told, ["as planned or primary: a, b 10", "as planned: c 12"]);
    }
}
