//! What starts the jobs of a herd: lines for cron, units for systemd. Renders and touches nothing.
//!
//! Cron gets one line: it knows neither the zone of the file nor what was missed, so that pgherd itself is asked often what is due.
//! systemd gets a service and a timer a job.

use std::path::Path;

use serde::Serialize;

use super::jobs::Job;
use super::model::Herd;
use super::render::{self, Template};
use crate::error::{Error, Result};

/// cron asks at least so often, in minutes: what was missed waits no longer. Every zone that differs from UTC by a part of an hour
/// differs by a multiple of this.
const OFTEN: u32 = 15;
/// What a job may take beyond its timeout to end by itself.
const GRACE: u64 = 300;

/// What is the same for every job.
#[derive(Debug, Clone, Serialize)]
pub struct Station<'a> {
    /// pgherd, by its absolute path.
    pub program: &'a Path,
    /// The topology, by its absolute path.
    pub file: &'a Path,
    /// Who runs it, unless that is root.
    pub user: Option<&'a str>,
    /// What pgherd is told where it keeps its files by.
    pub environment: Vec<(String, String)>,
}

/// A file with what stands in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rendered {
    pub name: String,
    pub text: String,
}

#[derive(Serialize)]
struct Lines<'a> {
    herd: &'a str,
    file: &'a Path,
    zone: &'a str,
    /// In words, and as cron writes it.
    often: String,
    minutes: String,
    jobs: Vec<Line>,
    /// Whoever runs it, where a line names them.
    user: Option<&'a str>,
    command: String,
}

#[derive(Serialize)]
struct Line {
    name: String,
    when: String,
}

#[derive(Serialize)]
struct Unit<'a> {
    herd: &'a str,
    job: String,
    when: String,
    does: &'a str,
    user: Option<&'a str>,
    environment: Vec<String>,
    command: String,
    timeout: u64,
    calendar: String,
    jitter: u64,
}

/// Whose lines they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crontab<'a> {
    /// A user's own: crontab(1).
    Own,
    /// A file in /etc/cron.d, whose lines say who runs them.
    Of(&'a str),
}

/// Renders the lines for a crontab(5). No line sets a variable: it would be that of the user's own lines too.
///
/// # Errors
/// When a path holds what cron takes for something else.
pub fn crontab(herd: &Herd, station: &Station<'_>, whose: Crontab<'_>) -> Result<String> {
    let words = [station.program, station.file].map(|path| path.display().to_string());
    let values = station.environment.iter().map(|(_, value)| value);
    for text in words.iter().chain(values) {
        // To cron a percent sign is the end of the line.
        if text.contains(['%', '\'', '"', '\\']) || text.contains(char::is_control) || text.trim() != text {
            return Err(Error::usage(format!("cannot write {text:?} into a crontab"))
                .detail("A percent sign, a quote, a backslash or a line break means something else there.")
                .hint("Move it to another path, or use systemd: pgherd schedule render --as systemd"));
        }
    }
    let [program, file] = words.map(|word| shell_word(&word));
    let often = herd.jobs.iter().map(|job| job.when.grain()).fold(OFTEN, divisor);
    let width = herd.jobs.iter().map(|job| job.full_name().len()).max().unwrap_or(0);
    let line = |job: &Job| Line { name: format!("{:width$}", job.full_name()), when: job.when.to_string() };
    let environment: String =
        station.environment.iter().map(|(name, value)| format!("{name}={} ", shell_word(value))).collect();
    let lines = Lines {
        herd: &herd.name,
        file: station.file,
        zone: &herd.timezone,
        often: if often == 1 { "every minute".to_owned() } else { format!("every {often} min") },
        minutes: if often == 1 { "*".to_owned() } else { format!("*/{often}") },
        jobs: herd.jobs.iter().map(line).collect(),
        user: match whose {
            Crontab::Own => None,
            Crontab::Of(user) => Some(user),
        },
        command: format!("{environment}{program} --file {file} run --due"),
    };
    render::render(Template::Crontab, &lines)
}

/// Renders the units of systemd: a service and a timer a job.
///
/// # Errors
/// When a template asks for something that there is not.
pub fn units(herd: &Herd, station: &Station<'_>) -> Result<Vec<Rendered>> {
    let mut units = Vec::new();
    for job in &herd.jobs {
        let argument = |path: &Path| render::unit_argument(&path.display().to_string());
        let name = render::unit_argument(&job.full_name());
        let unit = Unit {
            herd: &herd.name,
            job: job.full_name(),
            when: job.when.to_string(),
            does: job.work.describe(),
            user: station.user,
            environment: station
                .environment
                .iter()
                .map(|(name, value)| render::unit_word(&format!("{name}={value}")))
                .collect(),
            // The timer has waited as long as the scheduler says.
            command: format!(
                "{} --file {} run {name} --due --jitter 0s",
                argument(station.program),
                argument(station.file)
            ),
            timeout: job.timeout.as_secs() + GRACE,
            calendar: job.when.on_calendar(&herd.timezone),
            jitter: herd.scheduler.jitter.as_secs(),
        };
        for (template, kind) in [(Template::JobUnit, "service"), (Template::JobTimer, "timer")] {
            let text = render::render(template, &unit)?;
            units.push(Rendered { name: unit_name(&herd.name, job, kind), text });
        }
    }
    Ok(units)
}

/// Returns how the names of all units of a herd's jobs begin.
pub fn unit_prefix(herd: &str) -> String {
    format!("pgherd-job.{herd}.")
}

/// Returns `pgherd-job.shop.inventory.full.timer`: no name of a herd, cluster, node or job holds a dot, so that no other unit is called so.
pub fn unit_name(herd: &str, job: &Job, kind: &str) -> String {
    format!("{}{}.{kind}", unit_prefix(herd), job.file_name())
}

fn shell_word(word: &str) -> String {
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:,+@=".contains(&b));
    if plain { word.to_owned() } else { format!("'{word}'") }
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
pgherd: 1
herd: shop
timezone: Europe/Berlin
regions: {here: {hosts: {local: local}}}
repositories: {main: {url: file:///srv/repository}}
scheduler: {jitter: 2 min, health: every 15 min}
clusters:
  inventory:
    postgres: {version: 15}
    nodes: {a: {host: local, port: 5441, data-directory: /srv/inventory-a}}
    backups: {repository: main, full: daily 02:30, verify: weekly Sun 05:00}
    maintenance: {refresh: {sales: {when: every 1 h, views: [reporting.sales]}}}
";

    fn herd() -> Herd {
        crate::topology::load_text(Path::new("/etc/pgherd/shop.yml"), FILE, Path::new("/etc/pgherd")).unwrap()
    }

    fn station<'a>(program: &'a str, environment: &[(&str, &str)]) -> Station<'a> {
        Station {
            program: Path::new(program),
            file: Path::new("/etc/pgherd/shop.yml"),
            user: None,
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn the_lines_for_cron_are_what_they_were() {
        let text = crontab(
            &herd(),
            &station("/usr/local/bin/pgherd", &[("PGHERD_STATE_DIR", "/srv/state")]),
            Crontab::Own,
        )
        .unwrap();
        assert_eq!(text, include_str!("testdata/shop.crontab"));
    }

    #[test]
    fn the_units_of_a_job_are_what_they_were() {
        let units = units(&herd(), &station("/usr/local/bin/pgherd", &[])).unwrap();
        assert_eq!(units.len(), 8);
        assert_eq!(units[0].name, "pgherd-job.shop.inventory.full.service");
        assert_eq!(units[0].text, include_str!("testdata/pgherd-job.shop.inventory.full.service"));
        assert_eq!(units[1].name, "pgherd-job.shop.inventory.full.timer");
        assert_eq!(units[1].text, include_str!("testdata/pgherd-job.shop.inventory.full.timer"));
        assert_eq!(units[7].name, "pgherd-job.shop.health.timer");
    }

    #[test]
    fn what_a_crontab_would_read_as_something_else_is_refused_and_systemd_takes_it() {
        for path in ["/opt/50%/pgherd", "/opt/it's/pgherd", "/opt/a\nb/pgherd"] {
            let error = crontab(&herd(), &station(path, &[]), Crontab::Own).unwrap_err();
            assert!(error.what().starts_with("cannot write"), "{error:?}");
        }
        let text = crontab(&herd(), &station("/opt/my tools/pgherd", &[]), Crontab::Of("postgres")).unwrap();
        assert!(text.contains(" * * * * postgres '/opt/my tools/pgherd' --file "), "{text}");
        let units = units(&herd(), &station("/opt/50% $x/pgherd", &[])).unwrap();
        assert!(units[0].text.contains("ExecStart=\"/opt/50%% $$x/pgherd\" --file"), "{}", units[0].text);
    }
}
