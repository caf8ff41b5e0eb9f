//! What of a node's files and settings differs from what is declared, and what it takes to put it right.

use std::path::Path;

use crate::db::queries;
use crate::ops::observe::{Files, NodeObserved, Running};
use crate::ops::plan::crossing::{self, Crossing};
use crate::ops::plan::step::{Activation, ApplyStep, FileChange, PlannedStep, Sign};
use crate::ops::plan::{Situation, adopt, archive};
use crate::pg::guc;
use crate::pg::synchronous::SynchronousNames;
use crate::topology::declared::{self, NodeWish, Setting};
use crate::topology::model::{Cluster, Node};

/// What should stand in a node's files.
#[derive(Debug)]
pub(super) struct Desired {
    pub shared: Vec<Setting>,
    pub own: Vec<Setting>,
}

/// A setting of a running server that is not what is declared.
#[derive(Debug)]
pub(super) struct Difference {
    pub name: String,
    /// `None` if it is no longer declared: the server's own value is right again.
    pub declared: Option<String>,
    pub running: String,
    /// Only a restart changes it.
    pub restart: bool,
    /// Where the running value comes from, if not from a file of ours.
    pub origin: Option<String>,
}

/// Decides what a node's files should say; `synchronous` is the value of `synchronous_standby_names`.
pub(super) fn desired(
    situation: &Situation<'_>,
    node: &Node,
    upstream: Option<&Node>,
    synchronous: String,
) -> Desired {
    let cluster = situation.cluster;
    let memory = situation.fixed.memory.get(&node.name).copied().unwrap_or_default();
    let places = situation.node_places(node);
    let wish = NodeWish { upstream, synchronous, memory };
    let mut desired = Desired {
        shared: declared::shared_settings(cluster),
        own: declared::node_settings(cluster, node, &wish, &places),
    };
    // Those who still speak TLS are served until they do without.
    if let Some(seen) = situation.observed.node(&node.name)
        && crossing::crossing(cluster, seen) == Crossing::Ends
        && let Some(files) = &seen.files
    {
        for (settings, file) in [(&mut desired.shared, &files.shared), (&mut desired.own, &files.node)] {
            settings.extend(crossing::kept(cluster, file.as_deref()));
            settings.sort();
        }
    }
    desired
}

impl Desired {
    /// Leaves settings as the files have them: what is not written there today is in no file afterwards.
    fn sparing(&self, names: &[String], files: &Files) -> Self {
        let keep = |settings: &[Setting], file: Option<&String>| -> Vec<Setting> {
            let present = guc::ConfFile::parse(file.map_or("", String::as_str)).settings();
            let kept = settings.iter().filter_map(|(name, value)| {
                if !names.contains(name) {
                    return Some((name.clone(), value.clone()));
                }
                present.iter().rfind(|(found, _)| found.eq_ignore_ascii_case(name)).cloned()
            });
            kept.collect()
        };
        Self { shared: keep(&self.shared, files.shared.as_ref()), own: keep(&self.own, files.node.as_ref()) }
    }

    fn all(&self) -> impl Iterator<Item = &Setting> {
        self.shared.iter().chain(&self.own)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.all().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Tells whether commits wait for fewer standbys by `found` than by `wanted`, both values of `synchronous_standby_names`.
pub(super) fn is_less(found: &str, wanted: &str) -> bool {
    let count = |names: &str| {
        SynchronousNames::parse(names).filter(|found| !found.names.is_empty()).map_or(0, |found| found.count)
    };
    count(found) < count(wanted)
}

/// Has commits of a newborn cluster wait for its standbys, now that they stream.
pub(super) fn wait_for_standbys(situation: &Situation<'_>, primary: &Node) -> Vec<Vec<PlannedStep>> {
    change_synchronous(
        situation,
        primary,
        String::new(),
        declared::synchronous_names(situation.cluster, primary),
    )
}

/// Changes for whom a commit waits, after the standbys that it adds are there.
pub(super) fn change_synchronous(
    situation: &Situation<'_>,
    primary: &Node,
    before: String,
    after: String,
) -> Vec<Vec<PlannedStep>> {
    let file =
        |synchronous: String| declared::settings_file(&desired(situation, primary, None, synchronous).own);
    let subject = situation.cluster.full_name(&primary.name);
    vec![vec![PlannedStep {
        sign: if before.is_empty() { Sign::Create } else { Sign::Change },
        subject,
        text: format!("synchronous_standby_names = '{after}', reload"),
        reason: (!before.is_empty()).then(|| format!("it is '{before}'")),
        impact: Some("from here on a commit waits for them".to_owned()),
        undo: "take it back".to_owned(),
        step: ApplyStep::Configure {
            node: primary.name.clone(),
            files: vec![FileChange {
                path: primary.configuration().join(declared::NODE_FILE),
                before: Some(file(before.clone())),
                after: file(after.clone()),
            }],
            resets: Vec::new(),
            activation: Activation::Reload,
            expect: vec![("synchronous_standby_names".to_owned(), after)],
        },
    }]]
}

/// Has a primary that runs let the standbys in, apart from everything else that it needs: the step, and the node as it is then.
pub(super) fn open_to_standbys(
    situation: &Situation<'_>,
    primary: &Node,
    seen: &NodeObserved,
) -> Option<(PlannedStep, NodeObserved)> {
    seen.running()?;
    let before = &seen.files.as_ref()?.pg_hba;
    let lines = access_lines(situation, crossing::crossing(situation.cluster, seen));
    let after = declared::with_access_lines(before, &lines);
    if *before == after {
        return None;
    }
    let reason = "pg_hba.conf: standbys come in, and pgherd's block does not let all of them";
    let step = rewrite_access(situation.cluster, primary, (before.clone(), after.clone()), reason, None);
    let mut then = seen.clone();
    if let Some(files) = &mut then.files {
        files.pg_hba = after;
    }
    Some((step, then))
}

/// Plans that pg_hba.conf alone changes, from the first text to the second.
pub(super) fn rewrite_access(
    cluster: &Cluster,
    node: &Node,
    (before, after): (String, String),
    reason: &str,
    impact: Option<&str>,
) -> PlannedStep {
    PlannedStep {
        sign: Sign::Change,
        subject: cluster.full_name(&node.name),
        text: "write pg_hba.conf, reload".to_owned(),
        reason: Some(reason.to_owned()),
        impact: impact.map(str::to_owned),
        undo: "write what was there before, reload".to_owned(),
        step: ApplyStep::Configure {
            node: node.name.clone(),
            files: vec![FileChange {
                path: node.configuration().join(declared::HBA_FILE),
                before: Some(before),
                after,
            }],
            resets: Vec::new(),
            activation: Activation::Reload,
            expect: Vec::new(),
        },
    }
}

fn access_lines(situation: &Situation<'_>, crossing: Crossing) -> String {
    match crossing {
        // Nobody is forced to speak TLS before everybody can.
        Crossing::Begins => declared::plain_access_lines(situation.cluster),
        Crossing::None | Crossing::Ends => declared::access_lines(situation.cluster),
    }
}

/// Compares a node's files and its running settings with what is declared; `None` if all is as declared.
pub(super) fn configure(
    situation: &Situation<'_>,
    node: &Node,
    seen: &NodeObserved,
    desired: &Desired,
) -> Option<PlannedStep> {
    let files = seen.files.as_ref()?;
    let running = seen.running();
    let mut differences = running.map(|running| differences(running, node, desired)).unwrap_or_default();
    let crossing = crossing::crossing(situation.cluster, seen);
    let mut altered = guc::ConfFile::parse(&files.auto_conf).settings();
    if node.adopted {
        // What its owner has set and the topology does not speak of is his.
        altered.retain(|(name, _)| desired.value(name).is_some());
    }
    let spared;
    let desired = if adopt::spares(situation, node) {
        let waits: Vec<String> = differences.iter().filter(|d| d.restart).map(|d| d.name.clone()).collect();
        // While archive_mode is off, archive_command shows as this whatever it is (`show_archive_command` in `guc_tables.c`).
        differences.retain(|d| !d.restart && d.running != "(disabled)");
        altered.retain(|(name, _)| !waits.contains(name));
        spared = desired.sparing(&waits, files);
        &spared
    } else {
        desired
    };
    let (mut changes, mut reasons) = file_changes(situation, node, files, desired, crossing);
    if !altered.is_empty() && running.is_none() {
        let names: Vec<&str> = altered.iter().map(|(name, _)| name.as_str()).collect();
        changes.push(FileChange {
            path: node.data_directory.join(declared::AUTO_FILE),
            before: Some(files.auto_conf.clone()),
            after: declared::without_alter_system(&files.auto_conf, &names),
        });
    }
    if changes.is_empty() && altered.is_empty() && differences.is_empty() {
        return None;
    }
    for (name, before) in &altered {
        reasons.push(format!(
            "ALTER SYSTEM set {name} = {}, {}",
            shown(&guc::without_password(before)),
            desired.value(name).map_or_else(
                || "and the file says nothing of it".to_owned(),
                |value| format!("declared is {}", shown(value))
            )
        ));
    }
    // A plan holds no password: the undo of a node that was taken over finds it where the node was claimed.
    let resets: Vec<Setting> = match running {
        Some(_) => altered.into_iter().map(|(name, value)| (name, guc::without_password(&value))).collect(),
        None => Vec::new(),
    };
    let told: Vec<String> = differences
        .iter()
        .filter(|d| !resets.iter().any(|(name, _)| *name == d.name))
        .map(Difference::tell)
        .collect();
    // The files already say it where nothing but a reload is missing; say a value once.
    reasons.extend(
        told.into_iter()
            .filter(|text| !reasons.iter().any(|reason| reason.contains(text.as_str())))
            .collect::<Vec<_>>(),
    );
    let restart: Vec<&str> = differences.iter().filter(|d| d.restart).map(|d| d.name.as_str()).collect();
    let activation = match (running, restart.is_empty()) {
        (None, _) => Activation::AtStart,
        (Some(_), true) => Activation::Reload,
        (Some(_), false) => Activation::Restart,
    };
    let mut doing: Vec<String> = Vec::new();
    if !changes.is_empty() {
        let names: Vec<String> = changes.iter().filter_map(file_name).collect();
        doing.push(format!("write {}", names.join(", ")));
    }
    if !resets.is_empty() {
        let names: Vec<&str> = resets.iter().map(|(name, _)| name.as_str()).collect();
        doing.push(format!("ALTER SYSTEM RESET {}", names.join(", ")));
    }
    doing.extend(match activation {
        Activation::AtStart => None,
        Activation::Reload => Some("reload".to_owned()),
        Activation::Restart => Some("restart".to_owned()),
    });
    Some(PlannedStep {
        sign: if activation == Activation::Restart { Sign::Disrupt } else { Sign::Change },
        subject: situation.cluster.full_name(&node.name),
        text: doing.join(", "),
        reason: Some(reasons.join("\n")),
        impact: (activation == Activation::Restart).then(|| {
            format!("restart for {}: its connections end; needs --allow-restart", restart.join(", "))
        }),
        undo: match activation {
            Activation::AtStart => "write what was there before".to_owned(),
            Activation::Reload => "write what was there before, reload".to_owned(),
            Activation::Restart => "write what was there before, restart".to_owned(),
        },
        step: ApplyStep::Configure {
            node: node.name.clone(),
            files: changes,
            resets,
            activation,
            expect: differences.iter().filter_map(|d| Some((d.name.clone(), d.declared.clone()?))).collect(),
        },
    })
}

/// Returns what of a node waits for a restart that this plan does not do, each with both values.
pub(super) fn waiting(
    situation: &Situation<'_>,
    node: &Node,
    seen: &NodeObserved,
    desired: &Desired,
) -> Vec<String> {
    let running = seen.running().filter(|_| adopt::spares(situation, node));
    let differences = running.map(|running| differences(running, node, desired)).unwrap_or_default();
    differences.iter().filter(|d| d.restart).map(Difference::tell).collect()
}

impl Difference {
    fn tell(&self) -> String {
        let origin = self.origin.as_ref().map(|origin| format!(" ({origin})")).unwrap_or_default();
        let declared = self.declared.as_deref().map_or("(not declared)", shown);
        format!("{} {} → {declared}{origin}", self.name, shown(&guc::without_password(&self.running)))
    }
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "''" } else { value }
}

fn file_name(change: &FileChange) -> Option<String> {
    change.path.file_name().map(|name| name.to_string_lossy().into_owned())
}

/// Returns the files that must be written, and why, with both values.
fn file_changes(
    situation: &Situation<'_>,
    node: &Node,
    files: &Files,
    desired: &Desired,
    crossing: Crossing,
) -> (Vec<FileChange>, Vec<String>) {
    let users = situation.fixed.users.get(&node.host).cloned().unwrap_or_default();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let access = access_lines(situation, crossing);
    let wanted = [
        (declared::SHARED_FILE, files.shared.clone(), declared::settings_file(&desired.shared)),
        (declared::NODE_FILE, files.node.clone(), declared::settings_file(&desired.own)),
        (
            declared::CONF_FILE,
            Some(files.postgresql_conf.clone()),
            declared::with_includes(&files.postgresql_conf),
        ),
        (declared::HBA_FILE, Some(files.pg_hba.clone()), declared::with_access_lines(&files.pg_hba, &access)),
        (declared::IDENT_FILE, Some(files.pg_ident.clone()), declared::with_users(&files.pg_ident, &users)),
    ];
    // The step that takes the node over writes them: without them nobody could log in to do the rest.
    let adopts = situation.adoption.candidates.contains_key(&node.name);
    // The profile comes first: what the server calls reads it.
    let (mut changes, mut reasons) =
        archive::profile_change(situation, node, files).into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    for (name, before, after) in wanted {
        let written = adopts && [declared::HBA_FILE, declared::IDENT_FILE].contains(&name);
        if written || before.as_deref() == Some(after.as_str()) {
            continue;
        }
        reasons.push(match name {
            declared::SHARED_FILE | declared::NODE_FILE => setting_changes(name, before.as_deref(), &after),
            declared::CONF_FILE => {
                "postgresql.conf: pgherd's include lines are missing or not last".to_owned()
            }
            _ => format!("{name}: pgherd's block is missing or was edited"),
        });
        changes.push(FileChange { path: node.configuration().join(name), before, after });
    }
    (changes, reasons)
}

/// Says which settings a file gains, loses or changes: `work_mem 4MB → 8MB`.
fn setting_changes(name: &str, before: Option<&str>, after: &str) -> String {
    let Some(before) = before else { return format!("{name} is missing") };
    let (old, new) = (guc::ConfFile::parse(before).settings(), guc::ConfFile::parse(after).settings());
    let value = |list: &[Setting], name: &str| {
        list.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    };
    let mut names: Vec<&String> = old.iter().chain(&new).map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let told: Vec<String> = names
        .into_iter()
        .filter_map(|setting| match (value(&old, setting), value(&new, setting)) {
            (Some(a), Some(b)) if a != b => Some(format!("{setting} {} → {}", shown(&a), shown(&b))),
            (None, Some(b)) => Some(format!("{setting} (not there) → {}", shown(&b))),
            (Some(a), None) => Some(format!("{setting} {} → (not declared)", shown(&a))),
            (Some(_), Some(_)) | (None, None) => None,
        })
        .collect();
    if told.is_empty() { format!("{name} was edited by hand") } else { told.join("\n") }
}

/// Compares the running settings with the declared ones, and finds those that files of ours or ALTER SYSTEM still set although
/// they are not declared.
fn differences(running: &Running, node: &Node, desired: &Desired) -> Vec<Difference> {
    let in_ours = |row: &queries::Setting| {
        let ours = [declared::SHARED_FILE, declared::NODE_FILE].map(|name| node.configuration().join(name));
        let altered = node.data_directory.join(declared::AUTO_FILE);
        let file = row.sourcefile.as_deref().map(Path::new);
        ours.iter().any(|path| file == Some(path)) || file == Some(&altered)
    };
    let declared = desired.all().filter_map(|(name, value)| {
        let row = running.settings.get(name)?;
        let same = guc::same_value(value, &row.setting, row.unit.as_deref(), &row.vartype);
        (!same).then(|| (row, Some(value.clone())))
    });
    let left = running.settings.values().filter_map(|row| {
        let known = desired.all().any(|(name, _)| name.eq_ignore_ascii_case(&row.name));
        // Of a node that was taken over, what ALTER SYSTEM has set besides is its owner's.
        let owners =
            node.adopted && row.sourcefile.as_deref().is_some_and(|file| file.ends_with(declared::AUTO_FILE));
        (!known && in_ours(row) && !owners).then_some((row, None))
    });
    declared
        .chain(left)
        .map(|(row, declared)| Difference {
            name: row.name.clone(),
            declared,
            running: row.shown.clone(),
            restart: row.context == "postmaster",
            origin: match (in_ours(row), row.source.as_str()) {
                (true, _) | (false, "default") => None,
                (false, "configuration file") => Some(format!(
                    "from {}:{}",
                    row.sourcefile.as_deref().unwrap_or_default(),
                    row.sourceline.unwrap_or_default()
                )),
                (false, source) => Some(format!("from {source}")),
            },
        })
        .collect()
}

/// Which of the five settings that a standby must match are raised, and which are lowered, anywhere in the cluster.
pub(super) fn standby_five(situation: &Situation<'_>, desired: &Desired) -> (Vec<String>, Vec<String>) {
    let mut raised = Vec::new();
    let mut lowered = Vec::new();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    for seen in &situation.observed.nodes {
        let (Some(running), Some(node)) = (seen.running(), situation.cluster.node(&seen.node)) else {
            continue;
        };
        let differences = differences(running, node, desired);
        for name in guc::STANDBY_FIVE {
            let Some(row) = running.settings.get(name) else { continue };
            // What only a file of ours or ALTER SYSTEM sets is the server's own value again.
            let left = differences.iter().any(|found| found.name == name && found.declared.is_none());
            let wanted = desired.value(name).or(row.boot_val.as_deref().filter(|_| left));
            match number(wanted).zip(number(Some(&row.setting))) {
                Some((wanted, now)) if wanted > now => raised.push(name.to_owned()),
                Some((wanted, now)) if wanted < now => lowered.push(name.to_owned()),
                Some(_) | None => {}
            }
        }
    }
    raised.sort();
    raised.dedup();
    lowered.sort();
    lowered.dedup();
    (raised, lowered)
}
