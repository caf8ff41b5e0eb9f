//! A wrong file never replaces a good one: new files are tried out by a PgBouncer of their own before they are installed, and what the
//! running one does not take is put back.

use std::path::Path;

use tokio::time::{Instant, sleep};

use super::files::{PoolerFiles, PoolerPaths, userlist_names};
use super::{
    ConsoleSeen, Drift, POLL, Pooler, PoolerObserved, PoolerProcess, START_LIMIT, drift, fingerprint,
};
use crate::error::Error;
use crate::host::Command;
use crate::topology::model::Service;
use crate::topology::unit::Unit;

/// Below the directory of the PgBouncer that it is for.
const DIRECTORY: &str = "trial";

/// A pgbouncer.ini without the hosts and ports that its aliases lead to.
fn without_targets(ini: &str) -> Vec<String> {
    let mut in_databases = false;
    let is_target = |word: &&str| word.starts_with("host=") || word.starts_with("port=");
    ini.lines()
        .map(|line| {
            if line.starts_with('[') {
                in_databases = line == "[databases]";
            }
            if !in_databases {
                return line.to_owned();
            }
            line.split(' ').filter(|word| !is_target(word)).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

impl Pooler<'_> {
    /// Installs new files and has the running process take them over; returns the settings that only a restart takes over.
    ///
    /// # Errors
    /// When the files would not do, which is found before anything is replaced; or the running process does not do what they say, and then
    /// the former files are put back and read again.
    pub async fn replace(
        &self,
        pgbouncer: &Path,
        files: &PoolerFiles,
        before: &PoolerObserved,
    ) -> Result<Vec<Drift>, Error> {
        self.install_tried(pgbouncer, files, before).await?;
        let former = Former { ini: before.ini.clone(), hba: before.hba.clone() };
        match self.reload_and_verify(files).await {
            Ok(restart) => Ok(restart),
            Err(error) => Err(self.put_back(former, error).await),
        }
    }

    /// Installs new files after they were tried out; what differs from files that are there already only in where the aliases lead is not
    /// tried again: clients wait for it.
    ///
    /// # Errors
    /// When they would not do; nothing was replaced then.
    pub async fn install_tried(
        &self,
        pgbouncer: &Path,
        files: &PoolerFiles,
        before: &PoolerObserved,
    ) -> Result<(), Error> {
        let userlist = fingerprint(files.userlist.reveal().as_bytes());
        let aimed_elsewhere =
            before.ini.as_deref().is_some_and(|ini| without_targets(ini) == without_targets(&files.ini));
        let same = aimed_elsewhere
            && before.hba.as_deref() == Some(files.hba.as_str())
            && before.userlist.as_deref() == Some(userlist.as_str());
        if !same {
            self.try_out(pgbouncer, files).await?;
        }
        self.install(files, before).await
    }

    /// Starts a PgBouncer with these files in a directory of its own, where only its owner reaches it and no port is opened, and compares
    /// what it does with what they say.
    ///
    /// # Errors
    /// When it does not start with them, or does something else; in its own words.
    pub async fn try_out(&self, pgbouncer: &Path, files: &PoolerFiles) -> Result<(), Error> {
        let (paths, unit) = self.trial()?;
        let trial = Pooler { paths: &paths, unit: &unit, service: Service::PgCtl, ..*self };
        trial.end_trial().await?;
        let tried = trial.run_trial(pgbouncer, &files.moved(self.paths, &paths)).await;
        let ended = trial.end_trial().await;
        let Err(error) = tried else { return ended };
        let at = format!("{}:{}", self.listen, self.port);
        let what = format!("the new files of PgBouncer {at} would not do: {}", error.what());
        let detail = error.detail_text().unwrap_or("It did not say why.");
        Err(Error::failed(what)
            .detail(format!(
                "{detail}\nThey were only tried out. What is installed and what runs is as it was."
            ))
            .hint("See what they would be: pgherd pooler render"))
    }

    /// Ends what an interrupted trial has left.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn sweep(&self) -> Result<(), Error> {
        let (paths, unit) = self.trial()?;
        Pooler { paths: &paths, unit: &unit, service: Service::PgCtl, ..*self }.end_trial().await
    }

    /// Where a trial has its directory, and a unit that nobody has.
    fn trial(&self) -> Result<(PoolerPaths, Unit), Error> {
        let paths = PoolerPaths::new(self.paths.directory().join(DIRECTORY))?;
        // No cluster's unit can be called so: a host has no dot in its name.
        let unit = Unit::of_pooler(DIRECTORY, "of.pgherd", &paths.ini());
        Ok((paths, unit))
    }

    async fn run_trial(&self, pgbouncer: &Path, files: &PoolerFiles) -> Result<(), Error> {
        let nothing = PoolerObserved {
            ini: None,
            hba: None,
            userlist: None,
            unit: None,
            process: PoolerProcess::Stopped,
            console: ConsoleSeen::Unknown { why: "it was not started yet".to_owned() },
        };
        self.host.make_directory(self.paths.directory(), 0o700).await?;
        self.install(files, &nothing).await?;
        let ini = self.paths.ini().display().to_string();
        let start = Command::new(pgbouncer).args(["-d".to_owned(), ini]);
        if let Err(error) = self.host.run(&start).await {
            return Err(self.said("it does not start with them", Some(error.into())).await);
        }
        let began = Instant::now();
        let console = loop {
            match self.process().observe().await {
                (PoolerProcess::Running { .. }, ConsoleSeen::Answered(console)) => break console,
                (PoolerProcess::Stopped, _) if self.log_since(0).await.contains(" FATAL ") => {
                    return Err(self.said("it ended at its start", None).await);
                }
                _ if began.elapsed() > START_LIMIT => {
                    return Err(self.said("it does not answer", None).await);
                }
                _ => sleep(POLL).await,
            }
        };
        let log = self.text_since(0).await;
        if let Some(line) = complaint(&log) {
            return Err(Error::failed("it goes on with a part of them").detail(format!("It says: {line}")));
        }
        if let Some((expected, limit)) = descriptors(&log)
            && expected > limit
        {
            return Err(Error::failed("its clients would need more files than the system lets it open").detail(
                format!("It says: max expected fd use {expected}, hard limit {limit}. Lower max-clients, or raise LimitNOFILE."),
            ));
        }
        let wrong: Vec<String> = drift::running_drift(files, &console)
            .iter()
            // Which aliases are closed is said over the console, not in a file.
            .filter(|drift| !matches!(drift, Drift::Route { what, .. } if what == "clients"))
            .map(ToString::to_string)
            .collect();
        if !wrong.is_empty() {
            return Err(Error::failed("it does something else than they say")
                .detail(format!("{}.", wrong.join("; "))));
        }
        // A line that it does not understand takes all passwords away, and it reports success (`load_auth_file` in `loader.c`).
        let known = self.process().console(self.port).users().await?;
        let lost: Vec<String> =
            userlist_names(files).into_iter().filter(|name| !known.contains(name)).collect();
        if !lost.is_empty() {
            return Err(Error::failed("it does not know all roles of the userlist")
                .detail(format!("{}.", lost.join(", "))));
        }
        Ok(())
    }

    /// Ends what a trial started, also an earlier one that was interrupted, and removes its directory.
    async fn end_trial(&self) -> Result<(), Error> {
        self.stop(std::time::Duration::ZERO).await?;
        self.host.remove_tree(self.paths.directory()).await?;
        Ok(())
    }

    async fn said(&self, what: &str, error: Option<Error>) -> Error {
        let lines = self.log_since(0).await;
        let told =
            error.map(|error| format!("{}: {}", error.what(), error.detail_text().unwrap_or_default()));
        let detail = if lines.is_empty() { told.unwrap_or_default() } else { format!("It says: {lines}") };
        Error::failed(what).detail(detail)
    }

    /// Has a process that did not take new files read the former ones again. The userlist stays: it was tried out, and a role that was given a
    /// new password must get in with it.
    async fn put_back(&self, former: Former, error: Error) -> Error {
        let back = async {
            for (path, content) in [(self.paths.hba(), former.hba), (self.paths.ini(), former.ini)] {
                if let Some(content) = content {
                    self.host.write_atomic(&path, content.as_bytes(), 0o600).await?;
                }
            }
            self.process().tell("RELOAD").await
        };
        let ended = match back.await {
            Ok(()) => "The former files were put back and read again.".to_owned(),
            Err(back) => format!("The former files could not be put back: {back}."),
        };
        let detail = error.detail_text().map_or_else(String::new, |detail| format!("{detail}\n"));
        let hint = format!("Its log is {}.", self.paths.log().display());
        Error::failed(error.what().to_owned()).detail(format!("{detail}{ended}")).hint(hint)
    }
}

/// What was installed before.
struct Former {
    ini: Option<String>,
    hba: Option<String>,
}

/// Finds what PgBouncer only complains about: a line of an access file or of the userlist that it leaves out.
fn complaint(log: &str) -> Option<&str> {
    let lines = log.lines().filter_map(|line| Some((line, line.split_once("] ")?.1)));
    let mut serious = lines.filter(|(_, said)| {
        said.starts_with("ERROR ") || (said.starts_with("WARNING ") && said.contains("hba"))
    });
    serious.next().map(|(_, said)| said)
}

/// Reads how many descriptors it may come to need, and how many the system lets it have at most.
///
/// Mirrors the line of `check_limits` in `main.c`: "kernel file descriptor limit: 1024 (hard: 4096); max_client_conn: 100, max expected fd
/// use: 152".
fn descriptors(log: &str) -> Option<(u64, u64)> {
    let line = log.lines().find(|line| line.contains("max expected fd use: "))?;
    let number = |after: &str| {
        let rest = line.split_once(after)?.1;
        rest[..rest.bytes().take_while(u8::is_ascii_digit).count()].parse().ok()
    };
    Some((number("max expected fd use: ")?, number("(hard: ")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-21 22:23:18.049 UTC [18434] WARNING hba line 1: failed to parse address - everywhere
2026-11-21 22:23:18.064 UTC [18439] LOG kernel file descriptor limit: 1024 (hard: 4096); max_client_conn: 5000, max expected fd use: 5052
2026-11-21 22:23:18.064 UTC [18439] LOG process up: PgBouncer 1.18.0";

    #[test]
    fn what_pgbouncer_only_complains_about_is_found() {
        assert_eq!(complaint(LOG), Some("WARNING hba line 1: failed to parse address - everywhere"));
        assert_eq!(
            complaint("2026-11-21 22:23:18 UTC [1] ERROR broken auth file"),
            Some("ERROR broken auth file")
        );
        assert_eq!(complaint("2026-11-21 22:23:18 UTC [1] LOG listening on unix:/x"), None);
    }

    #[test]
    fn the_files_that_clients_need_are_compared_with_the_limit() {
        assert_eq!(descriptors(LOG), Some((5052, 4096)));
        assert_eq!(descriptors("nothing"), None);
    }
}
