//! What several stations share of their jobs: the record of each, and who has its turn, in a repository that all of them reach.

use std::time::Duration;

use crate::engine::turn::{self, Known, Turn};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::Doors;
use crate::ops::schedule::record::Record;
use crate::repo::{Key, SharedRepo, layout};
use crate::topology::jobs::Job;
use crate::topology::model::{Cluster, Herd};

/// How long a host may take to lead to the repository, before the next one is asked.
const ANSWER: Duration = Duration::from_secs(20);

/// What is asked of the way to the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To take turns: the program is put on a host where it is missing.
    Take,
    /// To look: nothing is put anywhere.
    Look,
}

/// What stations share; `Err` says why it cannot be had.
#[derive(Debug)]
pub struct Shared {
    herd: String,
    /// The repository, as the topology calls it.
    name: String,
    repo: std::result::Result<SharedRepo, String>,
}

impl Shared {
    /// Opens the repository in which the stations of a herd share their jobs, through the first host that leads there; `None` where they
    /// share nothing.
    pub async fn open(context: &Context, herd: &Herd, purpose: Purpose) -> Option<Self> {
        let name = herd.scheduler.lease.clone()?;
        let mut whys = Vec::new();
        for (cluster, host) in ways(herd, &name) {
            let found = match tokio::time::timeout(ANSWER, through(context, cluster, host, purpose)).await {
                Ok(found) => found,
                Err(_) => Err(Error::failed(format!("host {host} does not answer"))),
            };
            match found {
                Ok(repo) => return Some(Self { herd: herd.name.clone(), name, repo: Ok(repo) }),
                Err(error) => whys.push(format!("{host}: {}", error.what())),
            }
        }
        Some(Self { herd: herd.name.clone(), name, repo: Err(whys.join("; ")) })
    }

    /// Tells whether the repository can be had.
    pub fn is_reached(&self) -> bool {
        self.repo.is_ok()
    }

    fn repo(&self) -> Result<&SharedRepo> {
        self.repo.as_ref().map_err(|why| {
            Error::new(
                ErrorKind::NotFound,
                format!("cannot read what stations share of their jobs: repository {} cannot be reached", self.name),
            )
            .detail(format!("{why}. Whether another station runs a job cannot be told."))
            .hint("Nothing is begun until it is back. To go on with one station alone, take scheduler.lease out of its topology.")
        })
    }

    fn key(&self, job: &Job) -> Key {
        layout::job(&self.herd, &job.file_name())
    }

    /// Reads what is known of a job.
    ///
    /// # Errors
    /// When the repository cannot be reached, or the record is damaged.
    pub async fn read(&self, job: &Job) -> Result<Option<Known<Record>>> {
        turn::read(self.repo()?, &self.key(job)).await
    }

    /// Stores what has changed of a job that is not run; that another station did so first is as good.
    ///
    /// # Errors
    /// As the repository fails.
    pub async fn store(&self, job: &Job, before: Option<&Known<Record>>, record: &Record) -> Result<()> {
        turn::store(self.repo()?, &self.key(job), before, record.clone()).await.map(drop)
    }

    /// Takes the turn that nobody has, as was just read; `None` if another station was faster.
    ///
    /// # Errors
    /// As the repository fails.
    pub async fn take(
        &self,
        job: &Job,
        before: Option<&Known<Record>>,
        record: &Record,
    ) -> Result<Option<Turn>> {
        Turn::take(self.repo()?, &self.key(job), before, record).await
    }
}

/// The hosts that lead to a repository, this machine first.
fn ways<'a>(herd: &'a Herd, repository: &str) -> Vec<(&'a Cluster, &'a str)> {
    let mut ways: Vec<(&Cluster, &str)> = Vec::new();
    for cluster in &herd.clusters {
        if cluster.backups.as_ref().is_some_and(|backups| backups.repository.name == repository) {
            for node in &cluster.nodes {
                if !ways.iter().any(|(_, host)| *host == node.host) {
                    ways.push((cluster, &node.host));
                }
            }
        }
    }
    ways.sort_by_key(|(cluster, host)| !cluster.reach(host).is_here());
    ways
}

async fn through(context: &Context, cluster: &Cluster, host: &str, purpose: Purpose) -> Result<SharedRepo> {
    let repository = &cluster.backups.as_ref().expect("ways are those of clusters with backups").repository;
    let doors = match purpose {
        Purpose::Take => Doors::open(cluster, context.places.clone(), &context.gate)?,
        Purpose::Look => Doors::look(cluster, context.places.clone(), &context.gate)?,
    };
    let about = doors.places(host).telltale(repository);
    if doors.host(host).stat(&about).await?.is_none() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no {}", about.display())));
    }
    let door = match purpose {
        Purpose::Take => NodeDoor::with(&doors, host, &context.build).await?,
        Purpose::Look => NodeDoor::if_installed(&doors, host, &context.build).await?,
    };
    node::repository(&door, repository).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::turn::Document;
    use crate::repo::seal;

    #[test]
    fn the_golden_document_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../../tests/golden/job-shared-v1.json");
        let document: Document<Record> = seal::read_document(golden.as_bytes()).unwrap();
        assert_eq!(document.holder.as_ref().unwrap().by.host, "db4");
        assert_eq!(String::from_utf8(seal::write_document(&document)).unwrap(), golden);
    }

    #[test]
    fn the_way_to_the_repository_leads_through_this_machine_first() {
        let text = "
pgherd: 1
herd: shop
regions: {here: {hosts: {db1: 192.0.2.1, db2: 192.0.2.2, own: {address: 192.0.2.3, via: local}}}}
repositories: {main: {url: file:///srv/repository}, other: {url: file:///srv/other}}
scheduler: {lease: main}
clusters:
  orders:
    postgres: {version: 15}
    nodes: {a: {host: db2, port: 5442, data-directory: /srv/orders-a}}
    backups: {repository: other}
  inventory:
    postgres: {version: 15}
    nodes:
      a: {host: db1, port: 5441, data-directory: /srv/inventory-a, prefer: primary}
      b: {host: own, port: 5441, data-directory: /srv/inventory-b}
    backups: {repository: main}
";
        let directory = std::path::Path::new("/etc/pgherd");
        let herd = crate::topology::load_text(&directory.join("shop.yml"), text, directory).unwrap();
        let hosts: Vec<&str> = ways(&herd, "main").into_iter().map(|(_, host)| host).collect();
        assert_eq!(hosts, ["own", "db1"]);
    }
}
