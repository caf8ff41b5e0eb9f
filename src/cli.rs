//! The root of the command line: global flags and the list of commands, nothing else.

use clap::{Parser, Subcommand};

use crate::commands::{
    Globals, apply, backup, completions, config, destroy, drill, dump, failback, failover, fence, guard,
    health, init, man, node, operation, partition, plan, pooler, rejoin, repo, restore, run, schedule,
    schema, status, switchover, unfence, validate, wal,
};
use crate::ui::exit;

/// Run a herd of PostgreSQL clusters from one topology file
///
/// pgherd reads a YAML file that says which clusters there should be, looks at the ones that there are, and shows or makes the
/// difference. stdout is data, stderr is messages.
#[derive(Debug, Parser)]
#[command(name = "pgherd", version = env!("PGHERD_VERSION"), after_long_help = exit::table())]
#[command(
    propagate_version = false,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(init::InitArgs),
    Validate(validate::ValidateArgs),
    Schema(schema::SchemaArgs),
    Plan(plan::PlanArgs),
    Apply(apply::ApplyArgs),
    Status(status::StatusArgs),
    Health(health::HealthArgs),
    Backup(backup::BackupArgs),
    Restore(restore::RestoreArgs),
    Wal(wal::WalArgs),
    Partition(partition::PartitionArgs),
    Drill(drill::DrillArgs),
    Dump(dump::DumpArgs),
    Repo(repo::RepoArgs),
    Switchover(switchover::SwitchoverArgs),
    Failover(failover::FailoverArgs),
    Rejoin(rejoin::RejoinArgs),
    Failback(failback::FailbackArgs),
    Fence(fence::FenceArgs),
    Unfence(unfence::UnfenceArgs),
    Pooler(pooler::PoolerArgs),
    Schedule(schedule::ScheduleArgs),
    Run(run::RunArgs),
    Destroy(destroy::DestroyArgs),
    Guard(guard::GuardArgs),
    Operation(operation::OperationArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[command(hide = true)]
    Node(node::NodeArgs),
}
