//! What runs by itself: the schedules of a cluster, and those of the herd.

use std::time::Duration;

use super::super::decode::{NamedEntry, Percent, Spanned};
use super::super::jobs::{Clean, Dump, Job, Refresh, Reindex, Scheduler, Vacuum, View, Work};
use super::super::model::Cluster;
use super::super::problem::Position;
use super::super::raw;
use super::super::schedule::Schedule;
use super::{Checker, Draft};
use crate::units::ByteCount;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The schedules of a cluster on their way to jobs.
struct Jobs<'c> {
    cluster: &'c str,
    jobs: Vec<Job>,
}

impl Jobs<'_> {
    fn add(&mut self, name: impl Into<String>, when: Schedule, timeout: Duration, work: Work) {
        self.jobs.push(Job {
            cluster: Some(self.cluster.to_owned()),
            name: name.into(),
            when,
            timeout,
            work,
        });
    }
}

impl Checker<'_> {
    /// Returns the jobs of a cluster, in the order of this list and then of the file.
    pub(super) fn jobs_of(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Cluster,
        databases: &[String],
    ) -> Vec<Job> {
        let mut jobs = Jobs { cluster: draft.name, jobs: Vec::new() };
        if let Some(backups) = raw.backups.as_ref().map(|backups| &backups.value) {
            for (name, when, timeout, work) in [
                ("full", &backups.full, DAY, Work::Full),
                ("verify", &backups.verify, DAY, Work::Verify),
                ("verify-full", &backups.verify_full, DAY, Work::VerifyFull),
                ("expire", &backups.expire, 6 * HOUR, Work::Expire),
            ] {
                if let Some(when) = when {
                    jobs.add(name, when.value, timeout, work);
                }
            }
            for NamedEntry { name, at: _, value } in
                backups.copies.as_ref().map(|copies| copies.value.0.as_slice()).unwrap_or_default()
            {
                self.timeout(value.timeout.as_ref(), &draft.path(&format!(".backups.copies.{name}")));
                let timeout = value.timeout.as_ref().map_or(DAY, |timeout| timeout.value);
                if let Some(when) = &value.when {
                    jobs.add(format!("copy-{name}"), when.value, timeout, Work::Copy { to: name.clone() });
                }
            }
        }
        let drill = raw.drills.as_ref().and_then(|drills| drills.value.restore.as_ref());
        if let Some(when) = drill.and_then(|drill| drill.value.when.as_ref()) {
            jobs.add("drill-restore", when.value, DAY, Work::DrillRestore);
        }
        if let Some(maintenance) = &raw.maintenance {
            self.maintenance(draft, &maintenance.value, databases, &mut jobs);
        }
        self.dumps(draft, raw, databases, &mut jobs);
        jobs.jobs
    }

    fn timeout(&mut self, timeout: Option<&Spanned<Duration>>, path: &str) {
        if let Some(timeout) = timeout.filter(|limit| !(MINUTE..=DAY).contains(&limit.value)) {
            self.report
                .add(timeout.at, format!("{path}.timeout must be from 1 min to 1 d"))
                .hint("Write for how long it may run, such as \"30 min\" or \"2 h\".");
        }
    }

    fn dumps(&mut self, draft: &Draft<'_>, raw: &raw::Cluster, databases: &[String], jobs: &mut Jobs<'_>) {
        let dumps = raw.dumps.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for NamedEntry { name, at, value } in dumps {
            let named = self.name(*at, "dump", name);
            let path = ["dumps", name.as_str()];
            let said = draft.path(&format!(".dumps.{name}"));
            if !draft.has(&["backups"]) {
                self.report
                    .add(*at, format!("{said} has nowhere to go: {} has no backups", draft.name))
                    .detail("A dump is kept in the repository of the backups.")
                    .hint("Declare \"backups: {repository: NAME}\", or remove the dump.");
            }
            let when = self.when(draft, (&path, *at), value.when.as_ref());
            self.timeout(value.timeout.as_ref(), &said);
            if let Some(keep) = value.keep.as_ref().filter(|keep| keep.value < DAY) {
                self.report
                    .add(keep.at, format!("{said}.keep must be a day or more"))
                    .hint("Write for how long a dump is kept, such as \"90 days\".");
            }
            if let Some(schemas) =
                value.schemas.as_ref().filter(|_| draft.is_empty_list(&["dumps", name, "schemas"]))
            {
                self.report
                    .add(schemas.at, format!("{said}.schemas names nothing"))
                    .hint("Remove the key: the whole database is then dumped.");
            }
            let schemas: Vec<String> = value
                .schemas
                .iter()
                .flat_map(|schemas| &schemas.value)
                .filter(|schema| self.object_name(schema.at, "schema", &schema.value))
                .map(|schema| schema.value.clone())
                .collect();
            let database = self.database_of(draft, (&path, *at), value.database.as_ref(), databases, false);
            if let (true, Some(when), Some(database)) = (named, when, database) {
                let timeout = value.timeout.as_ref().map_or(6 * HOUR, |timeout| timeout.value);
                let keep = value.keep.as_ref().map_or(30 * DAY, |keep| keep.value);
                let dump = Dump { name: name.clone(), database, schemas, keep };
                jobs.add(format!("dump-{name}"), when, timeout, Work::Dump(dump));
            }
        }
    }

    fn maintenance(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Maintenance,
        databases: &[String],
        jobs: &mut Jobs<'_>,
    ) {
        if let Some(Spanned { at, value }) = &raw.partitions {
            let when = self.when(draft, (&["maintenance", "partitions"], *at), value.when.as_ref());
            let timeout = self.bound(draft, "partitions", value.timeout.as_ref());
            if draft.names("partitions").is_empty() {
                let path = draft.path(".maintenance.partitions");
                self.report
                    .add(*at, format!("{path} has nothing to do: {} declares no partitions", draft.name))
                    .hint("Declare \"partitions: {SCHEMA.TABLE: {...}}\", or remove the job.");
            }
            if let Some(when) = when {
                jobs.add("partitions", when, timeout, Work::Partitions);
            }
        }
        if let Some(Spanned { at, value }) = &raw.vacuum {
            let when = self.when(draft, (&["maintenance", "vacuum"], *at), value.when.as_ref());
            let timeout = self.bound(draft, "vacuum", value.timeout.as_ref());
            let dead = self.percent(draft, "vacuum.dead", value.dead.as_ref(), 20);
            let changed = self.percent(draft, "vacuum.changed", value.changed.as_ref(), 20);
            let rows = value.rows.as_ref().map_or(1000, |rows| rows.value);
            if let Some(when) = when {
                jobs.add("vacuum", when, timeout, Work::Vacuum(Vacuum { dead, changed, rows }));
            }
        }
        if let Some(Spanned { at, value }) = &raw.reindex {
            let when = self.when(draft, (&["maintenance", "reindex"], *at), value.when.as_ref());
            let timeout = self.bound(draft, "reindex", value.timeout.as_ref());
            let bloat = self.percent(draft, "reindex.bloat", value.bloat.as_ref(), 50);
            let at_least = value.at_least.as_ref().map_or(ByteCount(16 << 20), |size| size.value);
            if let Some(when) = when {
                jobs.add("reindex", when, timeout, Work::Reindex(Reindex { bloat, at_least }));
            }
        }
        let refresh = raw.refresh.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for NamedEntry { name, at, value } in refresh {
            let named = self.name(*at, "refresh", name);
            let path = ["maintenance", "refresh", name.as_str()];
            let when = self.when(draft, (&path, *at), value.when.as_ref());
            let timeout = self.bound(draft, &format!("refresh.{name}"), value.timeout.as_ref());
            let views = self.views(draft, (name, *at), value.views.as_ref());
            let database = self.database_of(draft, (&path, *at), value.database.as_ref(), databases, false);
            if let (true, Some(when), Some(database)) = (named, when, database) {
                jobs.add(
                    format!("refresh-{name}"),
                    when,
                    timeout,
                    Work::Refresh(Refresh { database, views }),
                );
            }
        }
        if let Some(Spanned { at, value }) = &raw.clean {
            let when = self.when(draft, (&["maintenance", "clean"], *at), value.when.as_ref());
            let timeout = self.bound(draft, "clean", value.timeout.as_ref());
            if let Some(logs) = value.logs.as_ref().filter(|logs| logs.value < DAY) {
                let path = draft.path(".maintenance.clean.logs");
                self.report
                    .add(logs.at, format!("{path} must be a day or more"))
                    .detail("A server writes into a log file for as long as log_rotation_age says, a day unless it is set.")
                    .hint("Write a span of time such as \"14 days\".");
            }
            let logs = value.logs.as_ref().map_or(14 * DAY, |logs| logs.value);
            if let Some(when) = when {
                jobs.add("clean", when, timeout, Work::Clean(Clean { logs }));
            }
        }
    }

    /// Returns the schedule of what has no sense without one.
    fn when(
        &mut self,
        draft: &Draft<'_>,
        (path, at): (&[&str], Position),
        when: Option<&Spanned<Schedule>>,
    ) -> Option<Schedule> {
        if !draft.has(&[path, &["when"]].concat()) {
            self.missing(at, &draft.path(&format!(".{}", path.join("."))), "when", "when: daily 03:00");
        }
        when.map(|when| when.value)
    }

    /// Returns how long a job of maintenance may take: an hour, if nothing else is said.
    fn bound(&mut self, draft: &Draft<'_>, name: &str, timeout: Option<&Spanned<Duration>>) -> Duration {
        let Some(timeout) = timeout else { return HOUR };
        if timeout.value < MINUTE || timeout.value > DAY {
            let path = draft.path(&format!(".maintenance.{name}.timeout"));
            self.report
                .add(timeout.at, format!("{path} must be from 1 min to 1 d"))
                .hint("Write for how long it may run, such as \"30 min\" or \"2 h\".");
        }
        timeout.value
    }

    fn percent(
        &mut self,
        draft: &Draft<'_>,
        name: &str,
        share: Option<&Spanned<Percent>>,
        default: u32,
    ) -> u32 {
        let Some(share) = share else { return default };
        if !(1..=99).contains(&share.value.0) {
            let path = draft.path(&format!(".maintenance.{name}"));
            self.report
                .add(share.at, format!("{path} must be from 1 % to 99 %"))
                .hint(format!("Write a share such as \"{default} %\"."));
        }
        share.value.0
    }

    fn views(
        &mut self,
        draft: &Draft<'_>,
        (name, at): (&str, Position),
        raw: Option<&Spanned<Vec<Spanned<String>>>>,
    ) -> Vec<View> {
        let path = draft.path(&format!(".maintenance.refresh.{name}"));
        if !draft.has(&["maintenance", "refresh", name, "views"]) {
            self.missing(at, &path, "views", "views: [SCHEMA.NAME]");
        }
        let Some(raw) = raw else { return Vec::new() };
        if draft.is_empty_list(&["maintenance", "refresh", name, "views"]) {
            self.report
                .add(raw.at, format!("{path}.views names nothing"))
                .hint("Write views: [SCHEMA.NAME], or remove the job.");
        }
        let mut views: Vec<View> = Vec::new();
        for view in &raw.value {
            let Some((schema, of)) = view
                .value
                .split_once('.')
                .filter(|(schema, of)| !schema.is_empty() && !of.is_empty() && !of.contains('.'))
            else {
                self.report
                    .add(view.at, format!("{path}.views: \"{}\" is not SCHEMA.NAME", view.value))
                    .hint("Write the schema and the name of a materialized view, such as reporting.sales.");
                continue;
            };
            let view_found = View { schema: schema.to_owned(), name: of.to_owned() };
            if views.contains(&view_found) {
                self.report
                    .add(view.at, format!("{path}.views names {} twice", view.value))
                    .hint("Keep one of the two.");
            }
            views.push(view_found);
        }
        views
    }

    /// Returns the scheduler, and adds the jobs of the whole herd.
    pub(super) fn scheduler(
        &mut self,
        topology: &raw::Topology,
        clusters: &[Cluster],
        jobs: &mut Vec<Job>,
    ) -> Scheduler {
        let mut scheduler =
            Scheduler { jitter: Duration::ZERO, hosts: Vec::new(), lease: None, install: None };
        let Some(raw) = topology.scheduler.as_ref().map(|raw| &raw.value) else { return scheduler };
        if let Some(jitter) = raw.jitter.as_ref().filter(|jitter| jitter.value > HOUR) {
            self.report
                .add(jitter.at, "scheduler.jitter must be 1 h at most")
                .hint("Write how much later than its time a job may begin, such as \"2 min\".");
        }
        scheduler.jitter = raw.jitter.as_ref().map_or(Duration::ZERO, |jitter| jitter.value);
        if let Some(when) = &raw.health {
            let (cluster, name) = (None, "health".to_owned());
            jobs.push(Job { cluster, name, when: when.value, timeout: 10 * MINUTE, work: Work::Health });
        }
        scheduler.hosts = self.scheduler_hosts(raw);
        scheduler.lease = raw.lease.as_ref().and_then(|lease| self.lease(lease, clusters));
        scheduler.install = raw.install.as_ref().map(|install| install.value);
        if let Some(install) = raw.install.as_ref().filter(|_| raw.hosts.is_none()) {
            self.report
                .add(install.at, "scheduler.install says what starts the jobs, and nothing says where")
                .hint("Name the machine with scheduler.hosts: [HOST]; apply installs it when it runs there.");
        }
        scheduler
    }

    fn scheduler_hosts(&mut self, raw: &raw::Scheduler) -> Vec<String> {
        let Some(list) = &raw.hosts else { return Vec::new() };
        if list.value.is_empty() {
            self.report
                .add(list.at, "scheduler.hosts names no host")
                .hint("Remove the key, or name the machine that starts the jobs.");
        }
        self.twice(&list.value, "host in scheduler.hosts");
        for host in &list.value {
            self.known_host(host);
        }
        if list.value.len() > 1 && raw.lease.is_none() {
            let problem = self
                .report
                .add(list.at, "several hosts would each run every job: nothing tells them who runs one")
                .detail("That is told through a repository that all of them reach.");
            match self.repositories.first() {
                Some(known) => problem.hint(format!("Add lease: {} to the scheduler, or name one host.", known.name)),
                None => problem.hint("Name one host; or declare a repository, back a cluster up to it, and add lease: REPOSITORY."),
            };
        }
        list.value.iter().map(|host| host.value.clone()).collect()
    }

    /// The way to a repository leads through the hosts of a cluster that uses it.
    fn lease(&mut self, lease: &Spanned<String>, clusters: &[Cluster]) -> Option<String> {
        let names: Vec<String> = self.repositories.iter().map(|known| known.name.clone()).collect();
        if !names.contains(&lease.value) {
            self.report
                .add(lease.at, format!("unknown repository \"{}\"", lease.value))
                .suggest(&lease.value, names.iter().map(String::as_str));
            return None;
        }
        let uses = |cluster: &Cluster| {
            cluster.backups.as_ref().is_some_and(|backups| backups.repository.name == lease.value)
        };
        if !clusters.iter().any(uses) {
            self.report
                .add(
                    lease.at,
                    format!("scheduler.lease names {}, which no cluster is backed up to", lease.value),
                )
                .detail("The way to a repository leads through the hosts of a cluster that uses it.")
                .hint("Name the repository of a cluster's backups.");
        }
        Some(lease.value.clone())
    }
}
