//! `archive_command`, and the worker that stores ahead of it what the server has ready.
//!
//! The server asks for one file after the other. Where more than one waits, the call that has stored one asks for those that follow, in the
//! [spool](super::spool), and starts a worker, which stores them, several side by side, and marks each. A call whose file is marked is done; one whose file is
//! being stored waits for that; every other one stores its file itself. So a worker that ends, however it does, costs time and nothing
//! else, and what it could not store is told by the call of that very file. It stores nothing that no call has asked for: where the archive command was
//! taken from a server, to leave something out of the archive, nothing more gets there. It ends when nothing is asked for, at its first error, with
//! the server, and after ten minutes in any case.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::item::Pushed;
use super::owed::settle_aside;
use super::push::push_into;
use super::spool::{Claim, Mark, Spool};
use super::worker::{self, Done, Job, Worker};
use super::{Archive, data_directory, prefetch, read_profile};
use crate::error::{Error, Result};
use crate::host::aside;
use crate::pg::wal_file::WalFile;
use crate::topology::claim::Profile;

const DIRECTION: &str = "push";
/// How many files a call asks for.
const BATCH: usize = 32;
const LOOK: Duration = Duration::from_millis(100);
/// How long a call waits for whoever stores its file, before it does so itself.
const PATIENCE: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(2);

/// Stores the WAL file at `path` in the archive of the node whose profile is in `profile`. It is durable when this returns.
///
/// # Errors
/// When it is not: PostgreSQL keeps the file and tries again. Nothing in the archive is ever replaced by something else.
pub fn push(profile: &Path, path: &Path, level: i32) -> Result<Pushed> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file: WalFile = name
        .parse()
        .map_err(|error| Error::failed(format!("cannot archive {}", path.display())).source(error))?;
    let node = read_profile(profile)?;
    let spool = Spool::of(&node, DIRECTION);
    let mut turn = spool.as_ref().map_or(Turn::Late, |spool| turn(spool, &node, file, path));
    if let (Some(spool), Turn::Theirs) = (&spool, &turn) {
        turn = wait_for(spool, &node, file, path);
    } else if matches!(turn, Turn::Stored) {
        // Who stored it ahead may have written down that a repository lacks it.
        settle_aside(profile, &node);
        return Ok(Pushed::Ahead { file });
    }
    let pushed = match turn {
        Turn::Stored => Pushed::Ahead { file },
        Turn::Mine(_) | Turn::Theirs | Turn::Late => {
            let data = data_directory(&node);
            push_into(&Archive::of(node.clone(), data)?, file, path, level)?
        }
    };
    drop(turn);
    settle_aside(profile, &node);
    if let Some(spool) = spool
        && ask_for_more(&spool, file, path)
    {
        worker::start(&spool, "ahead", profile, &["--level".into(), level.to_string().into()]);
    }
    Ok(pushed)
}

/// Whose turn it is to store a file.
enum Turn {
    /// It is stored.
    Stored,
    /// Somebody is at it.
    Theirs,
    /// It stays so until this is dropped.
    Mine(#[expect(dead_code, reason = "it is held")] Claim),
    /// Nobody can tell.
    Late,
}

fn turn(spool: &Spool, node: &Profile, file: WalFile, path: &Path) -> Turn {
    let mark = fs::metadata(path).ok().and_then(|metadata| Mark::of(node, file, &metadata));
    let Some(mark) = mark else { return Turn::Late };
    if spool.has(file, &mark) {
        return Turn::Stored;
    }
    match spool.claim(file) {
        // Between the two it may have been stored.
        Ok(Some(claim)) if spool.has(file, &mark) => {
            claim.leave();
            Turn::Stored
        }
        Ok(Some(claim)) => Turn::Mine(claim),
        Ok(None) => Turn::Theirs,
        Err(_) => Turn::Late,
    }
}

/// Waits until whoever is at a file has stored it or has given up.
fn wait_for(spool: &Spool, node: &Profile, file: WalFile, path: &Path) -> Turn {
    let began = Instant::now();
    loop {
        match turn(spool, node, file, path) {
            Turn::Theirs if began.elapsed() < PATIENCE => thread::sleep(TURN),
            turn @ (Turn::Stored | Turn::Mine(_) | Turn::Theirs | Turn::Late) => return turn,
        }
    }
}

/// Asks for what the running server has ready beside `file`; tells whether there is anything. It names its files relative to its data directory; who names one
/// otherwise pushes what he has chosen of a server that is stopped, and nothing else may be pushed.
fn ask_for_more(spool: &Spool, file: WalFile, path: &Path) -> bool {
    let (true, Some(pg_wal)) = (path.is_relative(), path.parent()) else { return false };
    let Ok(mut waits) = waiting(pg_wal) else { return false };
    waits.remove(&file);
    if waits.is_empty() || !worker::runs(Path::new(".")) {
        return false;
    }
    in_order(waits.into_iter()).into_iter().all(|file| spool.ask(file).is_ok())
}

/// Lists the files that the server has ready.
fn waiting(pg_wal: &Path) -> std::io::Result<BTreeSet<WalFile>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(pg_wal.join("archive_status"))? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_suffix(".ready")?.parse::<WalFile>().ok()));
    }
    Ok(found)
}

/// Stores ahead what was asked for of the data directory `data`, until there is a reason to end. Does nothing where somebody else does.
///
/// # Errors
/// The one that ended it.
pub fn ahead(profile: &Path, data: &Path, level: i32) -> Result<()> {
    aside::leave_the_session();
    work_ahead(profile, data, level)
}

fn work_ahead(profile: &Path, data: &Path, level: i32) -> Result<()> {
    let Some(worker) = Worker::begin(profile, data, DIRECTION)? else { return Ok(()) };
    prefetch::forget(&worker.archive.profile, data);
    worker.work(LOOK, &Store { level, stored: Mutex::default() })
}

struct Store {
    level: i32,
    /// What has been stored of what is asked for.
    stored: Mutex<BTreeSet<WalFile>>,
}

impl Job for Store {
    fn asked(&self, worker: &Worker) -> Result<Vec<WalFile>> {
        let look = || -> std::io::Result<_> {
            worker.spool.keep(&waiting(&worker.archive.data.join("pg_wal"))?)?;
            worker.spool.asked()
        };
        let asked = look()
            .map_err(|error| Error::failed("could not see which WAL files are asked for").source(error))?;
        let stored = &mut *self.stored.lock().expect("nobody panics with it");
        stored.retain(|file| asked.contains(file));
        Ok(in_order(asked.difference(stored).copied()))
    }

    fn size(&self, worker: &Worker, file: WalFile) -> u64 {
        fs::metadata(worker.path(file)).map_or(0, |file| file.len())
    }

    /// Stores a file and marks it.
    fn one(&self, worker: &Worker, file: WalFile) -> Result<Done> {
        let (archive, path) = (&worker.archive, worker.path(file));
        let mark =
            || fs::metadata(&path).ok().and_then(|metadata| Mark::of(&archive.profile, file, &metadata));
        let Some(before) = mark() else { return Ok(Done::No) };
        let could_not = |error| Error::failed(format!("could not mark {file} in the spool")).source(error);
        let Some(claim) = worker.spool.claim_asked(file).map_err(could_not)? else { return Ok(Done::No) };
        if worker.spool.has(file, &before) {
            claim.leave();
        } else {
            push_into(archive, file, &path, self.level)?;
            // One that was replaced meanwhile is not the one that was stored.
            if mark().as_ref() == Some(&before) {
                claim.write(&before).map_err(could_not)?;
            }
        }
        self.stored.lock().expect("nobody panics with it").insert(file);
        Ok(Done::Yes)
    }
}

/// Puts files into the order in which the server asks for them (`pgarch.c`): histories first, then by name.
fn in_order(files: impl Iterator<Item = WalFile>) -> Vec<WalFile> {
    let mut files: Vec<_> = files.collect();
    files.sort_by_cached_key(|file| (!matches!(file, WalFile::TimelineHistory(_)), file.to_string()));
    files.truncate(BATCH);
    files
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::error::ErrorKind;
    use crate::ops::wal::testing::Place;

    fn names(numbers: std::ops::Range<u32>) -> Vec<String> {
        numbers.map(|number| format!("0000000100000000{number:08X}")).collect()
    }

    fn state(place: &Place, name: &str) -> PathBuf {
        place.pg_wal().join("archive_status").join(format!("{name}.ready"))
    }

    /// Has files wait to be archived.
    fn ready(place: &Place, names: &[String]) {
        for name in names {
            place.write(name, 7);
            fs::write(state(place, name), "").unwrap();
        }
    }

    /// Has them wait and asks for them, as a call does.
    fn asked(place: &Place, names: &[String]) {
        ready(place, names);
        for name in names {
            spool_of(place).ask(name.parse().unwrap()).unwrap();
        }
    }

    /// A server seems to run for as long as this is there.
    fn run(place: &Place) {
        let file = place.directory.path().join("data/postmaster.pid");
        fs::write(file, format!("{}\n/data\n", std::process::id())).unwrap();
    }

    fn stop(place: &Place) {
        fs::remove_file(place.directory.path().join("data/postmaster.pid")).unwrap();
    }

    fn worker(place: &Place) -> Result<()> {
        let data = place.directory.path().join("data");
        work_ahead(&place.profile, &data, 1)
    }

    fn call(place: &Place, name: &str) -> Result<Pushed> {
        push(&place.profile, &place.pg_wal().join(name), 1)
    }

    fn spool_of(place: &Place) -> Spool {
        Spool::of(&read_profile(&place.profile).unwrap(), DIRECTION).unwrap()
    }

    fn is_marked(place: &Place, name: &str) -> bool {
        let (file, profile) = (name.parse().unwrap(), read_profile(&place.profile).unwrap());
        let metadata = fs::metadata(place.pg_wal().join(name)).unwrap();
        spool_of(place).has(file, &Mark::of(&profile, file, &metadata).unwrap())
    }

    #[track_caller]
    fn until(what: &str, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_waits_is_stored_ahead_and_its_calls_are_done_at_once() {
        let place = Place::new();
        let mut waits = names(3..30);
        waits.push("00000002.history".to_owned());
        asked(&place, &waits);
        let unasked = names(40..41);
        ready(&place, &unasked);
        run(&place);
        thread::scope(|scope| {
            let worker = scope.spawn(|| worker(&place));
            until("all of it is marked", || waits.iter().all(|name| is_marked(&place, name)));
            for name in &waits {
                let stored = fs::metadata(place.object(name)).unwrap().modified().unwrap();
                assert!(matches!(call(&place, name).unwrap(), Pushed::Ahead { .. }), "{name}");
                assert_eq!(fs::metadata(place.object(name)).unwrap().modified().unwrap(), stored);
            }
            // The archiver has been told.
            for name in &waits {
                fs::remove_file(state(&place, name)).unwrap();
            }
            let marks =
                || fs::read_dir(place.directory.path().join("spool/inventory-b/push")).unwrap().count();
            until("only the lock is left", || marks() == 1);
            // What comes later is stored as well.
            let later = names(30..32);
            asked(&place, &later);
            until("what came later is marked", || later.iter().all(|name| is_marked(&place, name)));
            assert!(!place.object(&unasked[0]).exists(), "nobody has asked for it");
            stop(&place);
            worker.join().unwrap().unwrap();
        });
    }

    #[test]
    fn histories_come_first_and_segments_by_name() {
        let files = ["000000010000000000000004", "000000010000000000000003.partial", "00000003.history"];
        let more =
            ["000000010000000000000003", "00000002.history", "000000010000000000000003.00000028.backup"];
        let sorted = in_order(files.into_iter().chain(more).map(|name| name.parse().unwrap()));
        let sorted: Vec<_> = sorted.iter().map(WalFile::to_string).collect();
        assert_eq!(sorted[..3], ["00000002.history", "00000003.history", "000000010000000000000003"]);
        assert_eq!(sorted[5], "000000010000000000000004");
    }

    #[test]
    fn the_worker_ends_at_what_it_cannot_store_and_the_call_of_that_file_says_why() {
        let place = Place::new();
        let waits = names(3..6);
        asked(&place, &waits);
        run(&place);
        let root = place.directory.path().join("repository");
        fs::rename(&root, root.with_extension("away")).unwrap();
        assert_eq!(worker(&place).unwrap_err().kind(), ErrorKind::NotFound);
        for name in &waits {
            assert!(!is_marked(&place, name));
            let error = call(&place, name).unwrap_err();
            assert!(error.detail_text().unwrap().contains("its disk may not be mounted"), "{error:?}");
        }
        fs::rename(root.with_extension("away"), &root).unwrap();
        assert!(matches!(call(&place, &waits[0]).unwrap(), Pushed::Stored { .. }));

        // Something else is there under one of the names.
        place.archive(&waits[1], 8);
        asked(&place, &waits);
        assert!(worker(&place).unwrap_err().detail_text().unwrap().contains("two primaries"));
        assert!(!is_marked(&place, &waits[1]));
        assert!(call(&place, &waits[1]).unwrap_err().detail_text().unwrap().contains("two primaries"));
    }

    #[test]
    fn a_call_waits_for_whoever_stores_its_file_and_does_it_itself_if_that_one_ends() {
        let place = Place::new();
        let [name, other] = [&names(3..5)[0], &names(3..5)[1]];
        place.write(name, 7);
        let claim = spool_of(&place).claim(name.parse().unwrap()).unwrap().unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| call(&place, name));
            thread::sleep(TURN * 20);
            assert!(!waits.is_finished() && !place.object(name).exists());
            // Killed: nothing is marked.
            drop(claim);
            assert!(matches!(waits.join().unwrap().unwrap(), Pushed::Stored { .. }));
        });
        let path = place.write(other, 7);
        let file = other.parse().unwrap();
        let claim = spool_of(&place).claim(file).unwrap().unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| call(&place, other));
            let profile = read_profile(&place.profile).unwrap();
            claim.write(&Mark::of(&profile, file, &fs::metadata(path).unwrap()).unwrap()).unwrap();
            assert!(matches!(waits.join().unwrap().unwrap(), Pushed::Ahead { .. }));
        });
    }

    #[test]
    fn there_is_one_worker_and_none_without_a_server() {
        let place = Place::new();
        let waits = names(3..5);
        asked(&place, &waits);
        worker(&place).unwrap();
        run(&place);
        let first = spool_of(&place).alone().unwrap();
        worker(&place).unwrap();
        assert!(!waits.iter().any(|name| place.object(name).exists()));
        drop(first);
        // A process that is gone runs no server.
        fs::write(place.directory.path().join("data/postmaster.pid"), "4194304\n").unwrap();
        worker(&place).unwrap();
        assert!(!waits.iter().any(|name| place.object(name).exists()));
    }

    #[test]
    fn only_a_running_server_has_more_stored_than_it_asks_for() {
        let place = Place::new();
        let waits = names(3..5);
        ready(&place, &waits);
        run(&place);
        // An operation pushes what it has chosen, by its whole path.
        let (spool, file) = (spool_of(&place), waits[0].parse().unwrap());
        assert!(!ask_for_more(&spool, file, &place.pg_wal().join(&waits[0])));
        assert!(spool.asked().unwrap().is_empty());
    }
}
