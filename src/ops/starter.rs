//! What has cron or systemd start the jobs, on the machine that pgherd runs on: rendered, looked at, put there, taken away.
//!
//! Each machine installs for itself: what starts pgherd names the program and the topology by their paths there. Root's line for cron is a
//! file of its own, everybody else's a marked block of their crontab; a line outside of the block is never touched. What `schedule
//! render` has written carries no mark of an installation and is left alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::record::Actor;
use crate::error::{Error, Result};
use crate::host::{Command, Host, HostError, Stdin};
use crate::topology::jobs::Starter;
use crate::topology::model::{self, Herd, Reach};
use crate::topology::timers::{self, Crontab, Rendered, Station};

const CRON_FILES: &str = "/etc/cron.d";
const UNITS: &str = "/etc/systemd/system";
/// It is there where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
const WANTED_TIMERS: &str = "/etc/systemd/system/timers.target.wants";
/// The first line of every file that is installed, and of nothing that `schedule render` writes.
const MARK: &str = "# Installed by \"pgherd apply\", which writes it anew, and removes it when nobody asks for it any more.\n";
const ROOT: &str = "root";
const ANSWER: Duration = Duration::from_secs(30);

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Place {
    /// The herd's block in the crontab of whoever runs pgherd.
    Crontab { herd: String },
    /// A file in /etc/cron.d.
    CronFile { name: String },
    /// A unit of systemd.
    Unit { name: String },
}

/// What is put there, or taken away; `before` is what the plan saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    pub place: Place,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// How what starts the jobs here differs from what is declared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// This machine, as the topology calls it.
    pub host: String,
    pub pieces: Vec<Piece>,
    /// What there will be: `crontab of root: 9 jobs, asked for every 15 min`.
    pub text: String,
    pub reason: Option<String>,
    /// What is not this machine's to do.
    pub notes: Vec<String>,
}

impl Seen {
    /// Tells whether all of it goes.
    pub fn is_removal(&self) -> bool {
        self.pieces.iter().all(|piece| piece.after.is_none())
    }

    /// Tells whether nothing was there.
    pub fn is_new(&self) -> bool {
        self.pieces.iter().all(|piece| piece.before.is_none())
    }
}

impl Place {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Crontab { .. } => None,
            Self::CronFile { name } => Some(Path::new(CRON_FILES).join(name)),
            Self::Unit { name } => Some(Path::new(UNITS).join(name)),
        }
    }

    /// The timer that it is, if it is one.
    fn timer(&self) -> Option<&str> {
        match self {
            Self::Unit { name } => name.ends_with(".timer").then_some(name),
            Self::Crontab { .. } | Self::CronFile { .. } => None,
        }
    }

    fn show(&self) -> String {
        match self.path() {
            Some(path) => path.display().to_string(),
            None => "the crontab".to_owned(),
        }
    }
}

/// Says how pgherd is run on this machine.
///
/// # Errors
/// When the program does not know its own path.
pub fn with_station<T>(herd: &Herd, render: impl FnOnce(&Station<'_>) -> Result<T>) -> Result<T> {
    let program = std::env::current_exe()
        .map_err(|error| Error::failed("could not find the path of pgherd itself").source(error))?;
    let user = (!rustix::process::geteuid().is_root()).then(|| Actor::here().user);
    let roots = ["PGHERD_CONFIG_DIR", "PGHERD_STATE_DIR", "PGHERD_LIB_DIR"];
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let environment = roots.iter().filter_map(|name| Some(((*name).to_owned(), set(name)?))).collect();
    render(&Station { program: &program, file: &herd.file, user: user.as_deref(), environment })
}

/// Looks at what starts the jobs of a herd here; `own` is the caller's own door.
///
/// # Errors
/// Refused where what is declared cannot be installed here, otherwise when a file cannot be read.
pub async fn look(own: &dyn Host, herd: &Herd) -> Result<Seen> {
    let here =
        herd.hosts.iter().filter(|host| herd.scheduler.hosts.contains(&host.name)).find(|host| is_here(host));
    let install = herd.scheduler.install.filter(|_| !herd.jobs.is_empty());
    let wanted = match (install, here) {
        (Some(starter), Some(_)) => wanted(own, herd, starter).await?,
        (Some(_) | None, _) => BTreeMap::new(),
    };
    let found = present(own, &herd.name).await?;
    let mut pieces = Vec::new();
    let mut reason = None;
    for (place, text) in &wanted {
        let before = found.get(place);
        let why = match before {
            None => None,
            Some(before) if before != text => Some(format!("{} is not what pgherd writes", place.show())),
            Some(_) if !is_enabled(own, place).await? => Some(format!("{} is not enabled", place.show())),
            Some(_) => continue,
        };
        reason = reason.or(why);
        pieces.push(Piece { place: place.clone(), before: before.cloned(), after: Some(text.clone()) });
    }
    let gone = found.iter().filter(|(place, _)| !wanted.contains_key(*place));
    for (place, text) in gone {
        reason = reason.or_else(|| Some(format!("{} is not asked for", place.show())));
        pieces.push(Piece { place: place.clone(), before: Some(text.clone()), after: None });
    }
    Ok(Seen {
        host: here.map_or_else(|| Actor::here().host, |host| host.name.clone()),
        text: describe(own, herd, &wanted, &found),
        reason,
        notes: notes(herd, here),
        pieces,
    })
}

fn describe(
    own: &dyn Host,
    herd: &Herd,
    wanted: &BTreeMap<Place, String>,
    found: &BTreeMap<Place, String>,
) -> String {
    let jobs = match herd.jobs.len() {
        1 => "1 job".to_owned(),
        more => format!("{more} jobs"),
    };
    let kind = |places: &BTreeMap<Place, String>| match places.keys().next() {
        Some(Place::Crontab { .. }) => format!("crontab of {}", own.caller()),
        Some(place @ Place::CronFile { .. }) => format!("cron: {}", place.show()),
        Some(Place::Unit { .. }) => {
            format!("{} timers of systemd", places.keys().filter(|place| place.timer().is_some()).count())
        }
        None => String::new(),
    };
    if wanted.is_empty() {
        format!("remove {}", kind(found))
    } else {
        format!("{}, for {jobs}", kind(wanted))
    }
}

fn notes(herd: &Herd, here: Option<&model::Host>) -> Vec<String> {
    if herd.scheduler.install.is_none() || herd.jobs.is_empty() {
        return Vec::new();
    }
    let others: Vec<&str> = herd
        .scheduler
        .hosts
        .iter()
        .map(String::as_str)
        .filter(|name| here.is_none_or(|here| here.name != *name))
        .collect();
    if others.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "what starts the jobs is installed on {} by apply there, and not from here",
        others.join(", ")
    )]
}

/// Tells whether a host of the topology is this machine, also where the file is the same on all of them.
fn is_here(host: &model::Host) -> bool {
    let own = Actor::here().host;
    let short = own.split('.').next().unwrap_or(&own).to_owned();
    let named = |name: &str| name == own || name == short;
    // Only what is this machine's can be bound to.
    let bound =
        |address: &str| address.parse::<IpAddr>().is_ok_and(|address| UdpSocket::bind((address, 0)).is_ok());
    match &host.reach {
        Reach::Local | Reach::Here { .. } => true,
        Reach::Ssh(ssh) => named(&host.name) || named(&ssh.address) || bound(&ssh.address),
    }
}

/// Renders what should be here.
async fn wanted(own: &dyn Host, herd: &Herd, starter: Starter) -> Result<BTreeMap<Place, String>> {
    let is_root = own.caller() == ROOT;
    match starter {
        Starter::Cron if is_root => {
            if own.list(Path::new(CRON_FILES)).await?.is_none() {
                return Err(Error::refused("cannot have cron start the jobs: there is no /etc/cron.d here")
                    .hint("Install cron, or declare \"install: systemd\"."));
            }
            let text = with_station(herd, |station| timers::crontab(herd, station, Crontab::Of(ROOT)))?;
            let place = Place::CronFile { name: cron_file(&herd.name) };
            Ok(BTreeMap::from([(place, format!("{MARK}{text}"))]))
        }
        Starter::Cron => {
            let text = with_station(herd, |station| timers::crontab(herd, station, Crontab::Own))?;
            Ok(BTreeMap::from([(Place::Crontab { herd: herd.name.clone() }, text)]))
        }
        Starter::Systemd if is_root => {
            if own.stat(Path::new(BOOTED)).await?.is_none() {
                return Err(Error::refused("cannot have systemd start the jobs: it does not run here")
                    .hint("Declare \"install: cron\"."));
            }
            let units = with_station(herd, |station| timers::units(herd, station))?;
            let marked = |Rendered { name, text }| (Place::Unit { name }, format!("{MARK}{text}"));
            Ok(units.into_iter().map(marked).collect())
        }
        Starter::Systemd => Err(Error::refused(format!(
            "cannot have systemd start the jobs: {} may not install units",
            own.caller()
        ))
        .hint("Run pgherd as root there, or declare \"install: cron\".")),
    }
}

/// Reads what an earlier apply has installed for a herd.
///
/// # Errors
/// When a file cannot be read.
pub async fn present(own: &dyn Host, herd: &str) -> Result<BTreeMap<Place, String>> {
    let mut found = BTreeMap::new();
    let mut places = vec![Place::CronFile { name: cron_file(herd) }];
    let units = own.list(Path::new(UNITS)).await?.unwrap_or_default();
    // Drop-ins are directories, and the user's.
    let ours = units.into_iter().filter(|name| {
        name.starts_with(&timers::unit_prefix(herd))
            && (name.ends_with(".service") || name.ends_with(".timer"))
    });
    places.extend(ours.map(|name| Place::Unit { name }));
    for place in places {
        if let Some(text) = read(own, &place).await?.filter(|text| text.starts_with(MARK)) {
            found.insert(place, text);
        }
    }
    if own.caller() != ROOT {
        let place = Place::Crontab { herd: herd.to_owned() };
        match read(own, &place).await {
            Ok(text) => found.extend(text.map(|text| (place, text))),
            // Whom cron does not serve has nothing there; who is to write one is told then.
            Err(HostError::Exited { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// What of it goes with a cluster: its units; and all of it with the last cluster of the herd.
pub fn of_cluster(found: &BTreeMap<Place, String>, herd: &str, cluster: &str, is_last: bool) -> Vec<Piece> {
    let prefix = format!("{}{cluster}.", timers::unit_prefix(herd));
    let goes = |place: &Place| is_last || matches!(place, Place::Unit { name } if name.starts_with(&prefix));
    found
        .iter()
        .filter(|(place, _)| goes(place))
        .map(|(place, text)| Piece { place: place.clone(), before: Some(text.clone()), after: None })
        .collect()
}

/// Names the places of some pieces, timers for their jobs.
pub fn name(pieces: &[Piece]) -> String {
    let timers = pieces.iter().filter(|piece| piece.place.timer().is_some()).count();
    let units = (timers > 0).then(|| format!("{timers} timers of systemd"));
    let others = pieces.iter().filter(|piece| !matches!(piece.place, Place::Unit { .. }));
    others.map(|piece| piece.place.show()).chain(units).collect::<Vec<_>>().join(", ")
}

/// Puts pieces in their places, each unless it is there; timers are enabled and begin to count, those that go are stopped first.
///
/// # Errors
/// When something else than the plan saw is there by now, or the machine cannot.
pub async fn install(own: &dyn Host, pieces: &[Piece]) -> Result<()> {
    for piece in pieces {
        let now = read(own, &piece.place).await?;
        if now != piece.before && now != piece.after {
            return Err(Error::refused(format!("{} changed after the plan was made", piece.place.show()))
                .detail("Somebody else edits it. It was left as it is.")
                .hint("Look at it, then plan again: pgherd plan"));
        }
    }
    let timers = |stays: bool| {
        pieces
            .iter()
            .filter(move |piece| piece.after.is_some() == stays)
            .filter_map(|piece| piece.place.timer())
    };
    for timer in timers(false) {
        // One that is not there is no error to stop.
        systemctl(own, &["disable", "--quiet", "--now", "--", timer]).await.ok();
    }
    for piece in pieces {
        put(own, piece).await.map_err(|error| could_not(&piece.place, error))?;
    }
    if pieces.iter().any(|piece| matches!(piece.place, Place::Unit { .. })) {
        systemctl(own, &["daemon-reload"]).await?;
    }
    for timer in timers(true) {
        systemctl(own, &["enable", "--quiet", "--", timer]).await?;
        systemctl(own, &["restart", "--", timer]).await?;
    }
    Ok(())
}

/// Takes pieces back to what the plan saw.
///
/// # Errors
/// As [`install`].
pub async fn take_back(own: &dyn Host, pieces: &[Piece]) -> Result<()> {
    let back = |piece: &Piece| Piece {
        place: piece.place.clone(),
        before: piece.after.clone(),
        after: piece.before.clone(),
    };
    install(own, &pieces.iter().map(back).collect::<Vec<_>>()).await
}

/// Tells whether everything is in its place.
///
/// # Errors
/// When a file cannot be read.
pub async fn is_installed(own: &dyn Host, pieces: &[Piece]) -> Result<bool> {
    for piece in pieces {
        let enabled = piece.after.is_none() || is_enabled(own, &piece.place).await?;
        if read(own, &piece.place).await? != piece.after || !enabled {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn put(own: &dyn Host, piece: &Piece) -> Result<(), HostError> {
    match (piece.place.path(), &piece.after) {
        (Some(path), Some(text)) => own.write_atomic(&path, text.as_bytes(), 0o644).await,
        (Some(path), None) => own.remove_file(&path).await,
        (None, after) => {
            let Place::Crontab { herd } = &piece.place else { return Ok(()) };
            let whole = crontab(own).await?;
            let changed = with_block(&whole, herd, after.as_deref());
            if changed == whole {
                return Ok(());
            }
            let write = Command::new("crontab").arg("-").stdin(Stdin::Bytes(changed.into_bytes()));
            own.run(&write.timeout(ANSWER)).await.map(drop)
        }
    }
}

async fn read(own: &dyn Host, place: &Place) -> Result<Option<String>, HostError> {
    match (place, place.path()) {
        (_, Some(path)) => {
            Ok(own.read(&path).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        }
        (Place::Crontab { herd }, None) => Ok(block(&crontab(own).await?, herd).map(str::to_owned)),
        (Place::CronFile { .. } | Place::Unit { .. }, None) => Ok(None),
    }
}

/// The whole crontab of the caller; empty where there is none, or no cron.
async fn crontab(own: &dyn Host) -> Result<String, HostError> {
    match own.run(&Command::new("crontab").arg("-l").reads().timeout(ANSWER)).await {
        Ok(output) => Ok(output.text()),
        // crontab(1) has one exit code for everything; what it only could not read must not be taken for empty, and written over.
        Err(HostError::Exited { stderr, .. }) if stderr.contains("no crontab for") => Ok(String::new()),
        Err(HostError::NotStarted { .. }) => Ok(String::new()),
        Err(error @ (HostError::Exited { .. } | HostError::Lost { .. } | HostError::File { .. })) => {
            Err(error)
        }
    }
}

/// Whether a timer starts with the machine; everything else does so by being there.
async fn is_enabled(own: &dyn Host, place: &Place) -> Result<bool, HostError> {
    match place.timer() {
        Some(timer) => Ok(own.stat(&Path::new(WANTED_TIMERS).join(timer)).await?.is_some()),
        None => Ok(true),
    }
}

async fn systemctl(own: &dyn Host, args: &[&str]) -> Result<()> {
    let command = Command::new("systemctl").args(args.iter().copied()).timeout(ANSWER);
    let failed = |error: HostError| {
        Error::failed(format!("systemctl {} failed", args.join(" ")))
            .hint("Units are systemd's: where it does not run, declare \"install: cron\".")
            .source(error)
    };
    own.run(&command).await.map(drop).map_err(failed)
}

fn could_not(place: &Place, error: HostError) -> Error {
    Error::failed(format!("could not change {}", place.show())).source(error)
}

/// `/etc/cron.d` takes no name with a dot (cron(8)), and no herd's has one.
fn cron_file(herd: &str) -> String {
    format!("pgherd-{herd}")
}

fn begin(herd: &str) -> String {
    format!("# BEGIN pgherd {herd}: installed by \"pgherd apply\", which writes these lines anew\n")
}

fn end(herd: &str) -> String {
    format!("# END pgherd {herd}\n")
}

/// Finds the herd's lines in a crontab.
fn block<'a>(crontab: &'a str, herd: &str) -> Option<&'a str> {
    let (begin, end) = (begin(herd), end(herd));
    let from = crontab.find(&begin)? + begin.len();
    let length = crontab[from..].find(&end)?;
    Some(&crontab[from..from + length])
}

/// Replaces the herd's lines in a crontab; new ones come at its end.
fn with_block(crontab: &str, herd: &str, lines: Option<&str>) -> String {
    let (begin, end) = (begin(herd), end(herd));
    let new = lines.map(|lines| format!("{begin}{lines}{end}")).unwrap_or_default();
    match block(crontab, herd) {
        Some(old) => crontab.replacen(&format!("{begin}{old}{end}"), &new, 1),
        None if crontab.is_empty() || crontab.ends_with('\n') => format!("{crontab}{new}"),
        None => format!("{crontab}\n{new}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_crontab_that_are_not_the_herds_stay_as_they_are() {
        let own = "MAILTO=dba@example.org\n0 3 * * * /usr/local/bin/own\n";
        let with = with_block(own, "shop", Some("*/15 * * * * pgherd\n"));
        assert_eq!(block(&with, "shop"), Some("*/15 * * * * pgherd\n"));
        assert_eq!(block(&with, "sho"), None);
        let two = with_block(&format!("{with}1 1 * * * later\n"), "bank", Some("* * * * * pgherd\n"));
        let changed = with_block(&two, "shop", Some("*/5 * * * * pgherd\n"));
        assert!(changed.starts_with(own) && changed.contains("1 1 * * * later\n"), "{changed}");
        assert_eq!(block(&changed, "shop"), Some("*/5 * * * * pgherd\n"));
        assert_eq!(
            with_block(&with_block(&changed, "shop", None), "bank", None),
            format!("{own}1 1 * * * later\n")
        );
        assert_eq!(with_block("", "shop", None), "");
    }

    #[test]
    fn of_a_cluster_that_goes_its_units_go_and_everything_with_the_last_one() {
        let unit = |name: &str| (Place::Unit { name: name.to_owned() }, "text".to_owned());
        let found = BTreeMap::from([
            (Place::CronFile { name: cron_file("shop") }, "text".to_owned()),
            unit("pgherd-job.shop.inventory.full.timer"),
            unit("pgherd-job.shop.inventory-2.full.timer"),
            unit("pgherd-job.shop.health.timer"),
        ]);
        let names = |is_last| of_cluster(&found, "shop", "inventory", is_last).len();
        assert_eq!((names(false), names(true)), (1, 4));
    }

    #[test]
    fn a_host_is_this_machine_by_its_name_or_its_address() {
        let host = |name: &str, address: &str| model::Host {
            name: name.to_owned(),
            region: "here".to_owned(),
            reach: Reach::Ssh(model::Ssh {
                address: address.to_owned(),
                port: None,
                user: None,
                key: None,
                host_keys: None,
                config: None,
            }),
        };
        assert!(is_here(&host("db4", "127.0.0.1")));
        assert!(is_here(&host(&Actor::here().host, "192.0.2.7")));
        assert!(!is_here(&host("db4", "192.0.2.7")));
    }
}
