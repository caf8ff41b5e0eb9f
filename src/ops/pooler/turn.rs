//! The poolers of a host held back, and led from one node to another, by one program on that host.
//!
//! Clients wait meanwhile. Seen from elsewhere each file and each question to a console is a program of its own, over ssh some twenty of
//! them one after the other; here it is one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::expiry;
use super::files::PoolerPaths;
use super::{Paused, Place, Process, ServerRow};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::local::LocalHost;
use crate::ops::binary::Build;
use crate::ops::node::{Aim, NodeDoor, NodeRequest, OnPoolers, Priority, Wanted};
use crate::ops::observe::Doors;
use crate::pg::ident::quote_identifier;
use crate::topology::model::{Cluster, Node};

/// How long connections to a server that is gone may take to end by themselves: those to one that was killed do at once.
const HUNG: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);

fn aim(cluster: &Cluster, node: &Node) -> Aim {
    let target = super::place::target(cluster, node);
    Aim { host: target.host, port: target.port }
}

async fn call<T: serde::de::DeserializeOwned>(
    (doors, cluster, build): (&Doors, &Cluster, &Build),
    host: &str,
    operation: &str,
    wanted: Wanted,
) -> Result<T> {
    let places = Place::all(doors, cluster, host).await?;
    let Some(first) = places.first() else {
        return Err(Error::failed(format!("there is no pooler on {host}")));
    };
    let request = OnPoolers {
        operation: operation.to_owned(),
        directories: places.iter().map(|place| place.paths.directory().to_owned()).collect(),
        psql: first.programs.path("psql"),
        listen: first.listen,
        port: first.port,
        wanted,
    };
    let door = NodeDoor::unseen(doors, host, build)?;
    door.call(&NodeRequest::OnPoolers(Box::new(request)), Priority::Normal, Arc::new(|_| ())).await
}

/// Holds back the clients of a host's pooler: none begins a transaction, and those that run have `grace` to end.
///
/// # Errors
/// When nothing beside the pooler would end the pause, or it does not say that it is paused.
pub async fn pause(
    of: (&Doors, &Cluster, &Build),
    host: &str,
    operation: &str,
    grace: Duration,
) -> Result<Paused> {
    call(of, host, operation, Wanted::Pause { grace }).await
}

/// Leads the aliases of a host's pooler that lead to `from` to `to`, and lets its clients go on; returns those that lead there now.
///
/// Everything else of its files stays as it is. With `lost`, connections to the former node that hang are closed, and with them the clients
/// of their aliases.
///
/// # Errors
/// When it does not run, no alias leads to either node, or it does not do what it was told.
pub async fn turn(
    of: (&Doors, &Cluster, &Build),
    host: &str,
    operation: &str,
    (from, to): (&Node, &Node),
    lost: bool,
) -> Result<Vec<String>> {
    let (_, cluster, _) = of;
    let wanted = Wanted::Turn { from: aim(cluster, from), to: aim(cluster, to), lost };
    call(of, host, operation, wanted).await
}

/// Runs on the host.
///
/// # Errors
/// As [`pause`] and [`turn`].
pub async fn run(request: &OnPoolers) -> Result<serde_json::Value> {
    let host = LocalHost::own("here");
    let paths = request.directories.iter().map(|directory| PoolerPaths::new(directory.clone()));
    let paths: Vec<PoolerPaths> = paths.collect::<Result<_>>()?;
    let process = |paths| Process {
        host: &host,
        psql: request.psql.clone(),
        paths,
        listen: request.listen,
        port: request.port,
    };
    let processes: Vec<Process<'_>> = paths.iter().map(process).collect();
    let first = request.directories.first().map(PathBuf::as_path).unwrap_or(Path::new("/"));
    let answer = match &request.wanted {
        Wanted::Pause { grace } => {
            serde_json::to_value(pause_all(&host, first, &request.operation, &processes, *grace).await?)
        }
        Wanted::Turn { from, to, lost } => {
            let aliases = turn_all(&processes, from, to).await?;
            join_all(processes.iter().map(Process::resume)).await.into_iter().collect::<Result<()>>()?;
            expiry::disarm_here(&host, first).await?;
            if *lost {
                join_all(processes.iter().map(|process| end_what_hangs(process, from, &aliases))).await;
            }
            serde_json::to_value(aliases)
        }
    };
    answer.map_err(|error| Error::failed("could not tell what was done").source(error))
}

async fn pause_all(
    host: &dyn Host,
    directory: &Path,
    operation: &str,
    processes: &[Process<'_>],
    grace: Duration,
) -> Result<Paused> {
    // After a kill and a resume what should end the pause may have ended itself: nothing is paused without it.
    if expiry::held_here(host, directory).await?.is_none_or(|hold| hold.operation != operation) {
        return Err(Error::failed("nothing would end the pause any more")
            .detail("The time that clients may be held back has passed."));
    }
    let pause_one = async |process: &Process<'_>| match process.pid().await {
        // It has no clients, and is not started meanwhile.
        Ok(None) => Ok(Paused::Drained),
        Ok(Some(_)) | Err(_) => process.pause(grace).await,
    };
    let mut all = Paused::Drained;
    for one in join_all(processes.iter().map(pause_one)).await {
        if one? == Paused::Draining {
            all = Paused::Draining;
        }
    }
    Ok(all)
}

/// Leads every process there before any of them lets a client go on.
async fn turn_all(processes: &[Process<'_>], from: &Aim, to: &Aim) -> Result<Vec<String>> {
    let mut led = Vec::new();
    for process in processes {
        led = turn_one(process, from, to).await?;
    }
    Ok(led)
}

async fn turn_one(process: &Process<'_>, from: &Aim, to: &Aim) -> Result<Vec<String>> {
    let at = format!("PgBouncer {}:{}", process.listen, process.port);
    let ini = process.paths.ini();
    let before = process.host.read(&ini).await?.unwrap_or_default();
    let before = String::from_utf8_lossy(&before);
    let (after, aliases) = led_elsewhere(&before, from, to);
    if aliases.is_empty() {
        return Err(Error::failed(format!("no alias of {at} leads to {}:{}", from.host, from.port)));
    }
    if after != before {
        process.host.write_atomic(&ini, after.as_bytes(), 0o600).await?;
    }
    process.tell("RELOAD").await?;
    // Up to 1.24 RELOAD says that it was done also where the file could not be read.
    let shown = process.shown().await?;
    for alias in &aliases {
        let row = shown.databases.iter().find(|row| row.alias == *alias);
        let is = row.map(|row| Aim { host: row.host.clone(), port: row.port });
        if is.as_ref() != Some(to) {
            let is = is.map_or("nowhere".to_owned(), |is| format!("to {}:{}", is.host, is.port));
            return Err(Error::failed(format!("alias {alias} of {at} leads {is} after RELOAD")));
        }
        if row.is_some_and(|row| row.disabled) {
            process.tell(&format!("ENABLE {}", quote_identifier(alias))).await?;
        }
    }
    Ok(aliases)
}

/// Rewrites the entries of `[databases]` that lead to one place alone; returns the text, and the aliases that lead to the other one then.
fn led_elsewhere(ini: &str, from: &Aim, to: &Aim) -> (String, Vec<String>) {
    let (mut text, mut aliases, mut in_databases) = (String::with_capacity(ini.len()), Vec::new(), false);
    let words = |aim: &Aim| (format!("host={}", aim.host), format!("port={}", aim.port));
    let (was, is) = (words(from), words(to));
    for line in ini.split_inclusive('\n') {
        let bare = line.trim_end_matches('\n');
        if bare.starts_with('[') {
            in_databases = bare == "[databases]";
        }
        let entry = bare.split_once(" = ").filter(|_| in_databases && !bare.starts_with(';'));
        let Some((alias, value)) = entry else {
            text.push_str(line);
            continue;
        };
        let has = |(host, port): &(String, String)| {
            let mut found = (false, false);
            for word in value.split(' ') {
                found = (found.0 || word == host, found.1 || word == port);
            }
            found == (true, true)
        };
        if has(&was) {
            let new = |word: &str| {
                if word == was.0 {
                    is.0.clone()
                } else if word == was.1 {
                    is.1.clone()
                } else {
                    word.to_owned()
                }
            };
            let value = value.split(' ').map(new).collect::<Vec<_>>().join(" ");
            text.push_str(&format!("{alias} = {value}{}", &line[bare.len()..]));
            aliases.push(alias.to_owned());
        } else {
            // One of several hosts is no place alone, and what was led there before is led there.
            aliases.extend(has(&is).then(|| alias.to_owned()));
            text.push_str(line);
        }
    }
    (text, aliases)
}

/// Ends what hangs on the way to a server that is gone: a statement that was sent there before gets no answer, and its connection counts
/// against the size of the pool, until TCP gives it up after `tcp_user_timeout`. PgBouncer closes such a connection with nothing but KILL, which
/// takes every client of the alias with it.
async fn end_what_hangs(process: &Process<'_>, from: &Aim, aliases: &[String]) {
    let began = Instant::now();
    loop {
        let Ok(shown) = process.shown().await else { return };
        let hanging: Vec<&String> =
            aliases.iter().filter(|alias| hangs(alias, from, &shown.servers)).collect();
        if hanging.is_empty() {
            return;
        }
        if began.elapsed() >= HUNG {
            for alias in hanging {
                let alias = quote_identifier(alias);
                // KILL leaves it paused.
                for verb in ["KILL", "RESUME"] {
                    if let Err(error) = process.tell(&format!("{verb} {alias}")).await {
                        tracing::warn!(%error, "could not close what hangs");
                    }
                }
            }
            return;
        }
        sleep(POLL).await;
    }
}

/// Tells whether an alias still has a connection to a node that it does not lead to any more.
fn hangs(alias: &str, from: &Aim, servers: &[ServerRow]) -> bool {
    servers
        .iter()
        .any(|server| server.alias == alias && server.address == from.host && server.port == from.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INI: &str = "; Written by pgherd\n[databases]\ninventory = host=10.0.0.1 port=5441 dbname=inventory pool_size=16\n\
                       inventory_ro = host=10.0.0.2,10.0.0.1 port=5441 dbname=inventory\nold = host=10.0.0.1 port=5442 dbname=host=10.0.0.1\n\n\
                       [pgbouncer]\nlisten_addr = 10.0.0.1\n";

    fn aim(host: &str, port: u16) -> Aim {
        Aim { host: host.to_owned(), port }
    }

    #[test]
    fn only_what_leads_to_the_node_alone_is_led_elsewhere() {
        let (text, aliases) = led_elsewhere(INI, &aim("10.0.0.1", 5441), &aim("10.0.0.3", 5443));
        let wanted =
            INI.replace("inventory = host=10.0.0.1 port=5441", "inventory = host=10.0.0.3 port=5443");
        assert_eq!((text, aliases), (wanted, vec!["inventory".to_owned()]));
    }

    #[test]
    fn what_was_led_there_before_is_led_there() {
        let (once, _) = led_elsewhere(INI, &aim("10.0.0.1", 5441), &aim("10.0.0.3", 5443));
        let (twice, aliases) = led_elsewhere(&once, &aim("10.0.0.1", 5441), &aim("10.0.0.3", 5443));
        assert_eq!((twice, aliases), (once, vec!["inventory".to_owned()]));
        assert!(led_elsewhere(INI, &aim("10.0.0.8", 1), &aim("10.0.0.9", 1)).1.is_empty());
    }

    #[test]
    fn a_connection_to_the_former_node_hangs_and_one_to_another_node_or_of_another_alias_does_not() {
        let server = |alias: &str, host: &str| ServerRow {
            alias: alias.to_owned(),
            user: "app".to_owned(),
            address: host.to_owned(),
            port: 5441,
            closes: true,
            pid: None,
        };
        let from = aim("10.0.0.1", 5441);
        assert!(hangs(
            "inventory",
            &from,
            &[server("inventory", "10.0.0.3"), server("inventory", "10.0.0.1")]
        ));
        assert!(!hangs("inventory", &from, &[server("inventory", "10.0.0.3"), server("orders", "10.0.0.1")]));
    }
}
