//! `pgherd plan`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{App, Outcome};
use crate::db::logins::Purpose;
use crate::error::Error;
use crate::ops::apply::{self, SavedPlan, Wishes};
use crate::ops::plan::ClusterPlan;
use crate::topology::model::{Cluster, Herd, Node};
use crate::ui;
use crate::ui::exit::Exit;

/// Show what apply would do, and change nothing
///
/// Looks at every node side by side and prints the ordered steps from what there is to what the file declares: `+` is made, `~`
/// changed, `!` interrupts clients, `.` only looks; each with its reason, what it costs and how it is undone.
///
/// Changes nothing. Reads the secrets of the file, since a password may differ from the stored one; never prints one.
///
/// Exit codes: 0 planned, 4 refused (a directory that is not ours, two primaries), 10 a primary cannot be reached. With
/// --detailed-exitcode: 0 no changes, 2 changes, 1 any error.
///
/// Example: pgherd plan --out today.plan && pgherd apply today.plan
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// Save the plan; `pgherd apply FILE` runs exactly it, or refuses if the world has moved
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Give one of pgherd's own logins a new password: the standbys' (`replication`, role replicator) or the write proof's (`probe`, role
    /// pgherd_probe)
    #[arg(long, value_name = "LOGIN")]
    pub rotate: Option<Rotate>,
    /// Take over a cluster, or one node (inventory-a), that pgherd did not make, as it runs: nothing is initialised, stopped or restarted
    #[arg(long, value_name = "NAME")]
    pub adopt: Vec<String>,
    /// End with 2 if there are changes and with 1 on any error
    #[arg(long)]
    pub detailed_exitcode: bool,
}

/// A login whose password pgherd generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rotate {
    Replication,
    Probe,
}

impl From<Rotate> for Purpose {
    fn from(rotate: Rotate) -> Self {
        match rotate {
            Rotate::Replication => Self::Replication,
            Rotate::Probe => Self::Probe,
        }
    }
}

pub fn run(args: &PlanArgs, app: &mut App) -> Outcome {
    let planned = planned(args, app);
    if !args.detailed_exitcode {
        return planned.map(|_| Exit::Done);
    }
    match planned {
        Ok(plans) if plans.iter().all(ClusterPlan::is_empty) => Ok(Exit::Done),
        Ok(_) => Ok(Exit::Changes),
        Err(failure) => {
            failure.print(&app.ui);
            Ok(Exit::Failed)
        }
    }
}

fn planned(args: &PlanArgs, app: &mut App) -> Result<Vec<ClusterPlan>, super::Failure> {
    let herd = app.herd()?;
    let plans = super::block_on(plans(app, &herd, args.rotate, &args.adopt))??;
    if let Some(file) = &args.out {
        SavedPlan::new(&herd, &plans)?.write(file)?;
    }
    ui::plan::print(&mut app.ui, &herd.name, &plans);
    if let Some(file) = &args.out {
        app.ui.note(format!("next     pgherd apply {}", file.display()));
    } else if plans.iter().any(|plan| !plan.is_empty()) {
        let adopt: String = args.adopt.iter().map(|name| format!(" --adopt {name}")).collect();
        let rotate = match args.rotate {
            Some(Rotate::Replication) => " --rotate replication",
            Some(Rotate::Probe) => " --rotate probe",
            None => "",
        };
        app.ui.note(format!("next     pgherd apply{adopt}{rotate}"));
    }
    Ok(plans)
}

/// Plans every cluster that was asked for.
///
/// # Errors
/// The obstacles of all of them.
pub async fn plans(
    app: &App,
    herd: &Herd,
    rotate: Option<Rotate>,
    adopt: &[String],
) -> Result<Vec<ClusterPlan>, super::Failure> {
    let context = app.context()?;
    let mut clusters = app.clusters(herd)?;
    let nodes_of = |cluster: &Cluster| -> BTreeSet<String> {
        let named = |node: &&Node| {
            adopt.iter().any(|name| *name == cluster.name || *name == cluster.full_name(&node.name))
        };
        cluster.nodes.iter().filter(named).map(|node| node.name.clone()).collect()
    };
    for name in adopt {
        let known = |cluster: &&Cluster| {
            *name == cluster.name || cluster.nodes.iter().any(|node| *name == cluster.full_name(&node.name))
        };
        if !clusters.iter().any(known) {
            let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            return Err(Error::usage(format!(
                "there is no cluster or node \"{name}\" in {} to adopt",
                herd.file.display()
            ))
            .hint(format!("Its clusters are: {}; a node is called CLUSTER-NODE.", names.join(", ")))
            .into());
        }
    }
    // A draft may name many clusters that run: they are taken over one after the other.
    clusters.retain(|cluster| adopt.is_empty() || !nodes_of(cluster).is_empty());
    let wishes: Vec<Wishes> = clusters
        .iter()
        .map(|cluster| Wishes {
            rotate: rotate.map(Purpose::from),
            adopt: nodes_of(cluster),
            only_poolers: false,
        })
        .collect();
    let looks = clusters
        .iter()
        .zip(&wishes)
        .map(|(cluster, wishes)| apply::prepare_wishing(&context, herd, cluster, wishes));
    let mut plans = Vec::new();
    let mut obstacles: Vec<Error> = Vec::new();
    for planned in app.within(futures_util::future::join_all(looks)).await? {
        match planned {
            Ok(plan) => plans.push(plan),
            Err(errors) => obstacles.extend(errors),
        }
    }
    if obstacles.is_empty() { Ok(plans) } else { Err(super::Failure::Errors(obstacles)) }
}
