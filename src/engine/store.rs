//! Where journals live: one file an operation in `STATE/operations`, kept after its end.
//!
//! Finds and makes journals; reads what is in them through [`journal`](crate::engine::journal).

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::engine::journal::{self, Content, Journal, Tap, hex};
use crate::engine::record::{Header, OperationId};
use crate::engine::view::OperationView;
use crate::error::{Error, ErrorKind, Result};
use crate::host::whole;

/// The journals and locks below one state directory.
#[derive(Debug, Clone)]
pub struct Store {
    state: PathBuf,
    clock: Arc<dyn Clock>,
    tap: Option<Tap>,
}

/// A journal as a listing finds it.
#[derive(Debug)]
pub enum Listed {
    Readable(Box<OperationView>),
    /// The file cannot be trusted; the error says where.
    Damaged {
        file: PathBuf,
        error: Error,
    },
}

const EXTENSION: &str = "jsonl";

impl Store {
    /// Names a state directory; nothing is made until an operation begins.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), clock: Arc::new(SystemClock), tap: None }
    }

    /// Takes the time of records from another clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Puts a test between every journal and its file.
    #[must_use]
    pub fn with_tap(mut self, tap: Tap) -> Self {
        self.tap = Some(tap);
        self
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    fn operations(&self) -> PathBuf {
        self.state.join("operations")
    }

    /// Returns the directory of the locks.
    pub(crate) fn locks(&self) -> PathBuf {
        self.state.join("locks")
    }

    /// Returns the path of an operation's journal.
    pub fn path(&self, id: &OperationId) -> PathBuf {
        self.operations().join(format!("{id}.{EXTENSION}"))
    }

    /// Lists all operations, oldest first, damaged journals last.
    ///
    /// A file without a complete header is left out: nothing was ever done under it.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut readable = Vec::new();
        let mut damaged = Vec::new();
        for id in self.ids()? {
            let file = self.path(&id);
            match journal::read(&file) {
                Ok(Some(content)) => readable.push(content.view),
                Ok(None) => {}
                Err(error) => damaged.push(Listed::Damaged { file, error }),
            }
        }
        readable.sort_by(|a, b| (a.begun, &a.id).cmp(&(b.begun, &b.id)));
        let readable = readable.into_iter().map(|view| Listed::Readable(Box::new(view)));
        Ok(readable.chain(damaged).collect())
    }

    fn ids(&self) -> Result<Vec<OperationId>> {
        let directory = self.operations();
        let could_not = |error: io::Error| {
            Error::new(ErrorKind::Stuck, format!("could not list the journals in {}", directory.display()))
                .hint("Run pgherd as the user who keeps its state there, or set PGHERD_STATE_DIR.")
                .source(error)
        };
        let files = match std::fs::read_dir(&directory) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(could_not(error)),
        };
        let mut ids = Vec::new();
        for file in files {
            let path = file.map_err(could_not)?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION)
                && let Some(id) = path.file_stem().and_then(|stem| stem.to_str())
            {
                ids.push(OperationId(id.to_owned()));
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Finds the operation whose id begins with `prefix`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the nearest ids if there is none, [`ErrorKind::Usage`] if there are several.
    pub fn find(&self, prefix: &str) -> Result<OperationId> {
        let ids = self.ids()?;
        let matching: Vec<&OperationId> = ids.iter().filter(|id| id.as_str().starts_with(prefix)).collect();
        match matching.as_slice() {
            [one] if !prefix.is_empty() => Ok((*one).clone()),
            [] => Err(self.not_found(prefix, &ids)),
            several => match several.iter().find(|id| id.as_str() == prefix) {
                Some(exact) => Ok((*exact).clone()),
                None => {
                    let names: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
                    Err(Error::usage(format!("operation {prefix:?} is ambiguous"))
                        .detail(format!("It could be {}.", names.join(", "))))
                }
            },
        }
    }

    fn not_found(&self, wanted: &str, ids: &[OperationId]) -> Error {
        let error = Error::new(ErrorKind::NotFound, format!("there is no operation {wanted}"))
            .detail(format!("{} holds {} journals.", self.operations().display(), ids.len()));
        let near = ids
            .iter()
            .map(|id| (strsim::damerau_levenshtein(id.as_str(), wanted), id))
            .filter(|(distance, _)| *distance <= 2)
            .min();
        match near {
            Some((_, id)) => error.hint(format!("Did you mean {id}? See them all: pgherd operation list")),
            None => error.hint("See them all: pgherd operation list"),
        }
    }

    /// Reads an operation.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Stuck`] if its journal is damaged.
    pub fn read(&self, id: &OperationId) -> Result<Content> {
        let path = self.path(id);
        if !path.exists() {
            return Err(self.not_found(id.as_str(), &self.ids()?));
        }
        journal::read(&path)?.ok_or_else(|| never_begun(id))
    }

    /// Makes the journal of a new operation; `header` gets a new id first.
    ///
    /// # Errors
    /// [`ErrorKind::Failed`] if it cannot be made.
    pub(crate) fn create(&self, header: impl Fn(OperationId) -> Header) -> Result<Journal> {
        self.make_directory(&self.operations())?;
        // Four digits are easy to read and to type; the more journals there are, the sooner a longer id is free.
        for length in [4, 4, 4, 4, 6, 6, 8, 8] {
            let id = random_id(length)?;
            let path = self.path(&id);
            if let Some(journal) = Journal::create(&path, header(id), self.clock.clone(), self.tap.clone())? {
                return Ok(journal);
            }
        }
        Err(Error::failed(format!("could not find a free operation id in {}", self.operations().display())))
    }

    /// Puts a journal that another station wrote in its place, on disk when this returns. One that is here and has other lines is kept
    /// beside it. The caller holds the lock of its cluster.
    ///
    /// # Errors
    /// [`ErrorKind::Failed`] if it cannot be written.
    pub(crate) fn adopt(&self, id: &OperationId, lines: &[u8]) -> Result<()> {
        let directory = self.operations();
        self.make_directory(&directory)?;
        let path = self.path(id);
        let write = || -> io::Result<()> {
            if std::fs::read(&path).is_ok_and(|own| !lines.starts_with(&own)) {
                std::fs::rename(&path, path.with_extension("superseded"))?;
            }
            whole::replace(&path, 0o600, lines)
        };
        write().map_err(|error| {
            Error::failed(format!("could not write the journal {}", path.display())).source(error)
        })
    }

    /// Opens the journal of an operation for append. The caller holds the lock of its cluster.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub(crate) fn open(&self, id: &OperationId) -> Result<Journal> {
        Journal::open(&self.path(id), self.clock.clone(), self.tap.clone())?.ok_or_else(|| never_begun(id))
    }

    /// Makes a directory of the state, 0700, on disk when this returns; an existing one is left as it is. Its parents are 0755:
    /// sockets and logs of servers that run as another user are beside it.
    pub(crate) fn make_directory(&self, directory: &Path) -> Result<()> {
        if directory.is_dir() {
            return Ok(());
        }
        let make = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o755).create(&self.state)?;
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            for made in [directory, &self.state] {
                File::open(made)?.sync_all()?;
            }
            match self.state.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        make().map_err(|error| {
            Error::failed(format!("could not make the directory {}", directory.display()))
                .detail("Nothing was changed.")
                .hint("Make it yours, or set PGHERD_STATE_DIR to a directory that you may write.")
                .source(error)
        })
    }
}

fn never_begun(id: &OperationId) -> Error {
    Error::new(ErrorKind::NotFound, format!("operation {id} never began"))
        .detail("Its journal ends within the first line, so nothing was done under it.")
}

fn random_id(length: usize) -> Result<OperationId> {
    let mut bytes = [0_u8; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::failed("the operating system gave no random bytes").source(error))?;
    Ok(OperationId(hex(&bytes)[..length].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store_with(ids: &[&str]) -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("state"));
        store.make_directory(&store.operations()).unwrap();
        let journal = include_str!("../../tests/golden/journal-v1-done.jsonl");
        for id in ids {
            std::fs::write(store.path(&OperationId((*id).to_owned())), journal).unwrap();
        }
        (directory, store)
    }

    #[test]
    fn an_operation_is_found_by_the_beginning_of_its_id() {
        let (_directory, store) = store_with(&["7f3a", "7f4b", "90c1", "90c1aa"]);
        assert_eq!(store.find("7f3").unwrap().as_str(), "7f3a");
        assert_eq!(store.find("90c1").unwrap().as_str(), "90c1", "a whole id is not ambiguous");
        let ambiguous = store.find("7f").unwrap_err();
        assert_eq!(
            (ambiguous.kind(), ambiguous.detail_text()),
            (ErrorKind::Usage, Some("It could be 7f3a, 7f4b."))
        );
        let missing = store.find("7e3a").unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(missing.hint_text(), Some("Did you mean 7f3a? See them all: pgherd operation list"));
        assert_eq!(store.find("").unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_listing_leaves_out_what_never_began_and_shows_what_is_damaged() {
        let (_directory, store) = store_with(&["7f3a"]);
        std::fs::write(store.operations().join("0001.jsonl"), "{\"seq\":0").unwrap();
        std::fs::write(store.operations().join("0002.jsonl"), "rubbish\n").unwrap();
        let listed = store.list().unwrap();
        let [Listed::Readable(view), Listed::Damaged { file, error }] = listed.as_slice() else {
            panic!("{listed:?}")
        };
        assert_eq!(view.id.as_str(), "7f3a");
        assert!(file.ends_with("0002.jsonl"));
        assert_eq!(error.kind(), ErrorKind::Stuck);
    }

    #[test]
    fn a_store_that_nobody_used_is_empty_and_stays_unmade() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("state"));
        assert!(store.list().unwrap().is_empty());
        assert!(!directory.path().join("state").exists());
    }
}
