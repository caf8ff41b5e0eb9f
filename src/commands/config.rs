//! `pgherd config`.

use serde::Serialize;

use super::{App, Outcome};
use crate::topology::origin::{Effective, Source, explain};
use crate::ui::Format;
use crate::ui::exit::Exit;

/// Show what the topology file comes to
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    Show(ShowArgs),
}

/// Show every effective value of a cluster
///
/// Prints each value that the cluster has after `defaults` were merged in and pgherd's own defaults filled in, one a line. With
/// --origin also where it was said: the line of the cluster, the line of `defaults`, or nobody.
///
/// Changes nothing, connects to nothing, and shows where a secret is but never the secret.
///
/// Exit codes: 0 shown, 2 the file is not valid, 10 there is no such cluster.
///
/// Example: pgherd config show orders --origin
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    name: String,
    /// Also show the line that each value comes from
    #[arg(long)]
    origin: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    cluster: &'a str,
    file: String,
    values: &'a [Effective],
}

pub fn run(args: &ConfigArgs, app: &mut App) -> Outcome {
    let ConfigCommand::Show(args) = &args.command;
    let file = app.topology_file()?;
    let (herd, values) = explain(&file, &args.name)?;
    super::find_cluster(&herd, &args.name)?;
    let values = values.unwrap_or_default();
    match app.ui.format {
        Format::Json => {
            app.ui.json(&Report {
                cluster: &args.name,
                file: herd.file.display().to_string(),
                values: &values,
            });
        }
        Format::Human | Format::Markdown => {
            let width =
                |text: fn(&Effective) -> &str| values.iter().map(|value| text(value).chars().count()).max();
            let paths = width(|value| &value.path).unwrap_or(0);
            let texts = width(|value| &value.value).unwrap_or(0);
            for Effective { path, value, source, at } in &values {
                if !args.origin {
                    app.ui.line(format!("{path:paths$}  {value}"));
                    continue;
                }
                let line = at.map(|at| format!("{}:{at}", file.display())).unwrap_or_default();
                let origin = match source {
                    Source::Cluster => line,
                    Source::Defaults => format!("{line} (defaults)"),
                    Source::Pgherd => "default of pgherd".to_owned(),
                };
                app.ui.line(format!("{path:paths$}  {value:texts$}  {origin}"));
            }
        }
    }
    Ok(Exit::Done)
}
