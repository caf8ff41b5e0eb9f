//! `pgherd init`.

use std::path::{Path, PathBuf};

use super::{App, Outcome};
use crate::error::Error;
use crate::ops::found::{self, From};
use crate::topology::init::{FILE_NAME, Wish, write};
use crate::ui::exit::Exit;

/// Write a first topology file, for new clusters or from running ones
///
/// With --local, writes ./pgherd.yml, commented, with one cluster of some nodes on this machine and a PgBouncer in front of them, and generates
/// the password of its role into ./secrets, readable by you alone. Looks for PostgreSQL and PgBouncer and checks that the ports
/// are free.
///
/// With --from, looks at the clusters that run on these hosts, changes nothing there, and drafts the topology with which
/// `pgherd apply --adopt CLUSTER` takes them over as they run: what belongs together by its system identifier, where its files and its
/// socket are, who starts it, and, as comments, its schemas and roles. What it could not see it says.
///
/// Starts nothing, and never writes over a file that exists. The cluster is called inventory, or what --cluster says.
///
/// Exit codes: 0 written, 1 a file or port is in the way, 2 bad usage, 10 PostgreSQL was not found or a host not reached.
///
/// Example: pgherd init shop --local; pgherd init shop --from 10.0.1.11 --from dba@10.0.1.12
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Name of the herd
    name: String,
    /// For new clusters on this machine
    #[arg(long, required_unless_present = "from", conflicts_with = "from")]
    local: bool,
    /// Draft it from what runs on this host: local, an address, or user@address:port; may be repeated
    #[arg(long, value_name = "HOST")]
    from: Vec<String>,
    /// How many nodes
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=26))]
    nodes: u8,
    /// Port of the first node; the others follow, and the pooler is 1000 above it
    #[arg(long, value_name = "PORT", default_value_t = 5441, value_parser = clap::value_parser!(u16).range(1024..))]
    port: u16,
    /// Where the data directories go; else /var/lib/pgherd for root and ~/.local/share/pgherd for others
    #[arg(long, value_name = "DIRECTORY")]
    data_root: Option<PathBuf>,
}

pub fn run(args: &InitArgs, app: &mut App) -> Outcome {
    let cluster = app.globals.cluster.clone().unwrap_or_else(|| "inventory".to_owned());
    for (what, name) in [("herd", &args.name), ("cluster", &cluster)] {
        crate::topology::check_name(name).map_err(|detail| {
            Error::usage(format!("\"{name}\" cannot be the name of a {what}"))
                .detail(detail)
                .hint("Choose another name, such as \"shop\".")
        })?;
    }
    if !args.from.is_empty() {
        return draft(args, app);
    }
    let wish = Wish {
        herd: args.name.clone(),
        cluster,
        nodes: args.nodes,
        port: args.port,
        data_root: match &args.data_root {
            Some(stated) => absolute(stated)?,
            None => data_root()?,
        },
        directory: PathBuf::from("."),
    };
    let written = write(&wish)?;
    let programs = match &written.pgbouncer {
        Some(version) => format!("PostgreSQL {} and PgBouncer {version} found", written.postgres),
        None => format!("PostgreSQL {} found, no PgBouncer: the cluster has no pooler", written.postgres),
    };
    let nodes = match wish.nodes {
        1 => format!("1 node on this host, port {}", wish.port),
        many => format!("{many} nodes on this host, ports {}-{}", wish.port, written.last_port),
    };
    let pooler = written.pooler_port.map(|port| format!(", pooler {port}")).unwrap_or_default();
    app.ui.remark(format!("wrote {FILE_NAME} ({} lines): {programs}, {nodes}{pooler}", written.lines));
    app.ui.remark(format!("password {} (only you can read it)", written.password_file));
    app.ui.remark("next     pgherd plan");
    Ok(Exit::Done)
}

fn draft(args: &InitArgs, app: &mut App) -> Outcome {
    let from = args.from.iter().map(|text| From::parse(text)).collect::<Result<Vec<From>, Error>>()?;
    let context = app.context()?;
    let look = found::draft(&args.name, &from, Path::new("."), &context.places, &context.gate);
    let drafted = super::block_on(app.within(look))???;
    app.ui.remark(format!("wrote {FILE_NAME} ({} lines)", drafted.lines));
    for (name, told) in &drafted.clusters {
        app.ui.remark(format!("  {name}   {told}"));
    }
    for note in &drafted.notes {
        app.ui.remark(format!("  note {note}"));
    }
    let adopt: String = drafted.clusters.iter().map(|(name, _)| format!(" --adopt {name}")).collect();
    app.ui.remark(format!("next     pgherd plan{adopt}"));
    Ok(Exit::Done)
}

/// Makes a stated directory absolute: the topology takes no other.
fn absolute(stated: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(stated).map_err(|error| {
        Error::usage(format!("cannot use {} for data directories", stated.display())).source(error)
    })
}

/// Where data directories go: the system's place for root, the user's own for everybody else.
fn data_root() -> Result<PathBuf, Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/pgherd"));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("pgherd")).ok_or_else(|| {
        Error::usage("there is no place for data directories")
            .hint("Set HOME or XDG_DATA_HOME to an absolute path.")
    })
}
