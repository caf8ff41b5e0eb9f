//! The journal of one operation: a file of JSON lines that is only ever appended to.
//!
//! Each line carries its SHA-256 and that of the line before; each append is on disk before the caller goes on. Knows what records
//! say only as far as [`OperationView`] can fold them; decides nothing. The format is written down in `docs/formats/journal.md`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::clock::Clock;
use crate::engine::feed::Feed;
use crate::engine::record::{Entry, FORMAT, Header, OperationId, Record};
use crate::engine::view::OperationView;
use crate::error::{Error, ErrorKind, Result};

/// What befalls an append in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The process dies before anything is written.
    KilledBefore,
    /// The process dies when half of the line is written.
    KilledWithin,
    /// The process dies when the line is on disk.
    KilledAfter,
    /// The disk is full when half of the line is written.
    DiskFull,
}

/// Where a test stands between the driver and the file: it is asked with the number of each record. Production has none.
#[derive(Clone)]
pub struct Tap(pub Arc<dyn Fn(u64) -> Option<Mishap> + Send + Sync>);

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

/// How long an append of another process may take before a takeover gives up.
const APPEND_LOCK_WAIT: Duration = Duration::from_secs(5);
const HASH_KEY: &[u8] = br#","sha256":""#;
const LINE_END: &[u8] = b"\"}\n";
const HASH_LENGTH: usize = 64;

/// The journal of one operation, open for append.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    header: Header,
    view: OperationView,
    next: u64,
    /// `sha256` of the last line.
    last_hash: String,
    /// Length of the file in bytes, as this writer left it.
    length: u64,
    /// Set when an append failed: what is on disk is not known, so nothing may follow.
    closed: bool,
    clock: Arc<dyn Clock>,
    tap: Option<Tap>,
    /// Takes each line that is on disk.
    feed: Option<Arc<Feed>>,
}

/// What a journal file holds.
#[derive(Debug)]
pub struct Content {
    pub header: Header,
    pub view: OperationView,
    pub entries: Vec<Entry>,
    last_hash: String,
    /// Bytes of the complete lines; what follows is torn.
    length: u64,
}

/// Reads a journal without changing it; `None` if not even its header is complete, so that nothing was ever done under it.
///
/// # Errors
/// [`ErrorKind::Stuck`] with file and line if a line is damaged, out of its chain, of another format, or not to be understood.
pub fn read(path: &Path) -> Result<Option<Content>> {
    let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    parse(path, &bytes)
}

/// Parses the bytes of a journal; `path` is for the errors. See [`read`].
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Option<Content>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut view: Option<OperationView> = None;
    let mut last_hash = String::new();
    let mut length = 0;
    // A line without its end was torn by a crash: its record was never acknowledged, so no effect followed it.
    for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let number = entries.len() + 1;
        let damaged = |why: String| damaged(path, number, &why);
        let (entry, hash) = parse_line(line).map_err(damaged)?;
        if entry.seq != entries.len() as u64 {
            return Err(damaged(format!("its number is {}, expected {}", entry.seq, entries.len())));
        }
        if entry.previous != last_hash {
            return Err(damaged(
                "it does not follow the line before it (the hash chain is broken)".to_owned(),
            ));
        }
        match &mut view {
            None => {
                view = Some(OperationView::begin(&entry).map_err(|illegal| damaged(illegal.to_string()))?)
            }
            Some(view) => {
                view.fold(entry.at, &entry.record).map_err(|illegal| damaged(illegal.to_string()))?;
            }
        }
        last_hash = hash;
        length += line.len() as u64;
        entries.push(entry);
    }
    let (Some(view), Some(Record::Header(header))) = (view, entries.first().map(|entry| &entry.record))
    else {
        return Ok(None);
    };
    // A copy that somebody put beside it would be taken for a second operation, and block its cluster for good.
    if path.file_stem().is_some_and(|name| name != header.operation.as_str()) {
        return Err(damaged(path, 1, &format!("it is the journal of operation {}", header.operation)));
    }
    let header = (**header).clone();
    Ok(Some(Content { header, view, entries, last_hash, length }))
}

fn parse_line(line: &[u8]) -> std::result::Result<(Entry, String), String> {
    let broken = || "it is damaged (not a journal line)".to_owned();
    let content = line.strip_suffix(LINE_END).ok_or_else(broken)?;
    let split = content.len().checked_sub(HASH_LENGTH).ok_or_else(broken)?;
    let (rest, hash) = content.split_at(split);
    let body = rest.strip_suffix(HASH_KEY).ok_or_else(broken)?;
    let mut digest = Sha256::new();
    digest.update(body);
    digest.update(b"}");
    let expected = hex(&digest.finalize());
    if expected.as_bytes() != hash {
        return Err("it is damaged (its checksum does not match)".to_owned());
    }
    let json = [body, b"}"].concat();
    let entry: std::result::Result<Entry, _> = serde_json::from_slice(&json);
    // A newer journal is to be refused by its format, not by the first word that is new in it.
    let format = match &entry {
        Ok(Entry { record: Record::Header(header), .. }) => Some(u64::from(header.format)),
        Ok(_) => None,
        Err(_) => serde_json::from_slice::<Value>(&json)
            .ok()
            .and_then(|any| any.pointer("/record/format").and_then(Value::as_u64)),
    };
    match (format, entry) {
        (Some(format), _) if format != u64::from(FORMAT) => {
            Err(format!("it has format {format}, and this pgherd knows only format {FORMAT}"))
        }
        (_, Ok(entry)) => Ok((entry, expected)),
        (_, Err(error)) => Err(format!("this pgherd does not understand it: {error}")),
    }
}

fn render_line(entry: &Entry) -> (Vec<u8>, String) {
    let mut line = serde_json::to_vec(entry).expect("records have only string keys and serialize to JSON");
    let hash = hex(&Sha256::digest(&line));
    line.pop();
    line.extend_from_slice(HASH_KEY);
    line.extend_from_slice(hash.as_bytes());
    line.extend_from_slice(LINE_END);
    (line, hash)
}

/// Returns bytes in lowercase hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn damaged(path: &Path, line: usize, why: &str) -> Error {
    Error::new(ErrorKind::Stuck, format!("cannot trust the journal {} at line {line}: {why}", path.display()))
        .detail("Nothing was read from it and nothing was changed; what its operation did is not known from here on.")
        .hint(
            "Look at the lines before it (docs/formats/journal.md says how), compare them with the cluster, settle what is left \
             by hand, and then move the file out of the directory.",
        )
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorKind::Stuck, format!("could not read the journal {}", path.display()))
        .detail(format!("{error}."))
}

impl Journal {
    /// Makes the file of a new journal with its header, on disk when this returns; `None` if the file exists.
    ///
    /// # Errors
    /// [`ErrorKind::Failed`] if the file cannot be made or written; then there is none.
    pub(crate) fn create(
        path: &Path,
        header: Header,
        clock: Arc<dyn Clock>,
        tap: Option<Tap>,
    ) -> Result<Option<Self>> {
        let could_not = |error: io::Error| {
            Error::failed(format!("could not write the journal {}", path.display()))
                .detail("Nothing was changed: no operation begins without its journal.")
                .source(error)
        };
        let file = match OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(could_not(error)),
        };
        let record = Record::Header(Box::new(header.clone()));
        let entry = Entry { seq: 0, at: now(&*clock), previous: String::new(), record };
        let view = OperationView::begin(&entry).expect("the record is a header");
        let mut journal = Self {
            path: path.to_owned(),
            file,
            header,
            view,
            next: 0,
            last_hash: String::new(),
            length: 0,
            closed: false,
            clock,
            tap,
            feed: None,
        };
        let directory = path.parent().expect("a journal lies in its store");
        let written = journal.write(&entry).and_then(|()| Ok(File::open(directory)?.sync_all()?));
        match written {
            Ok(()) => Ok(Some(journal)),
            Err(Unwritten::Io(error)) => {
                std::fs::remove_file(path).map_err(could_not)?;
                Err(could_not(error))
            }
            Err(Unwritten::Killed) => Err(killed()),
        }
    }

    /// Opens an existing journal for append and cuts off a torn last line; `None` if not even its header is complete.
    ///
    /// The caller holds the operation lock of the cluster.
    ///
    /// # Errors
    /// As [`read`]; [`ErrorKind::Locked`] if another process is writing to it.
    pub(crate) fn open(path: &Path, clock: Arc<dyn Clock>, tap: Option<Tap>) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(|error| unreadable(path, &error))?;
        lock_for_append(&file, APPEND_LOCK_WAIT).map_err(|error| {
            Error::new(ErrorKind::Locked, format!("another process is writing to {}", path.display()))
                .hint("See who it is: pgherd operation list")
                .source(error)
        })?;
        let content = read(path);
        if let Ok(Some(content)) = &content {
            file.set_len(content.length).and_then(|()| file.sync_data()).map_err(|error| {
                Error::new(ErrorKind::Stuck, format!("could not write {}", path.display())).source(error)
            })?;
        }
        unlock(&file);
        let Some(content) = content? else { return Ok(None) };
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            next: content.entries.len() as u64,
            header: content.header,
            view: content.view,
            last_hash: content.last_hash,
            length: content.length,
            closed: false,
            clock,
            tap,
            feed: None,
        }))
    }

    /// Appends a record and returns when it is on disk.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if it could not be written, or another driver has taken the operation over. Then nothing may be
    /// done any more under this journal, and every later append fails too.
    pub(crate) fn append(&mut self, record: Record) -> Result<Entry> {
        let id = self.header.operation.clone();
        let unwritten = |why: &str| {
            Error::new(ErrorKind::Stuck, format!("could not write the journal of operation {id}"))
                .detail(format!(
                    "{why} No step is begun, ended or undone without its record, so everything stopped here."
                ))
                .hint(format!("Mend that, then run \"{}\".", id.resume_command()))
        };
        if self.closed {
            return Err(unwritten("An earlier record could not be written."));
        }
        let at = now(&*self.clock).max(self.view.last);
        let entry = Entry { seq: self.next, at, previous: self.last_hash.clone(), record };
        self.view.fold(at, &entry.record).expect("the driver writes only what can follow");
        self.closed = true;
        match lock_for_append(&self.file, Duration::ZERO) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(self.taken_over()),
            Err(error) => return Err(unwritten("The file could not be locked.").source(error)),
        }
        let written = if self.still_ours() { Some(self.write(&entry)) } else { None };
        unlock(&self.file);
        match written {
            Some(Ok(())) => {
                self.closed = false;
                Ok(entry)
            }
            Some(Err(Unwritten::Io(error))) => {
                let full = error.kind() == io::ErrorKind::StorageFull;
                let why = if full { "The disk is full." } else { "The operating system refused it." };
                Err(unwritten(why).source(error))
            }
            Some(Err(Unwritten::Killed)) => Err(killed()),
            None => Err(self.taken_over()),
        }
    }

    fn write(&mut self, entry: &Entry) -> std::result::Result<(), Unwritten> {
        let (line, hash) = render_line(entry);
        let half = &line[..line.len() / 2];
        match self.tap.as_ref().and_then(|tap| (tap.0)(entry.seq)) {
            None => {}
            Some(Mishap::KilledBefore) => return Err(Unwritten::Killed),
            Some(Mishap::KilledWithin) => {
                self.file.write_all(half)?;
                return Err(Unwritten::Killed);
            }
            Some(Mishap::KilledAfter) => {
                self.file.write_all(&line)?;
                return Err(Unwritten::Killed);
            }
            Some(Mishap::DiskFull) => {
                self.file.write_all(half)?;
                self.file.set_len(self.length)?;
                return Err(Unwritten::Io(io::ErrorKind::StorageFull.into()));
            }
        }
        if let Err(error) = self.file.write_all(&line).and_then(|()| self.file.sync_data()) {
            // What a failed write left would read as a torn line at best, and as damage once something follows it.
            self.file.set_len(self.length)?;
            return Err(error.into());
        }
        self.next = entry.seq + 1;
        self.last_hash = hash;
        self.length += line.len() as u64;
        if let Some(feed) = &self.feed {
            feed.add(&line);
        }
        Ok(())
    }

    /// Returns all lines, and every one that follows from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if the file cannot be read.
    pub(crate) fn feed(&mut self) -> Result<Arc<Feed>> {
        let feed = Arc::new(Feed::new(self.lines()?));
        self.feed = Some(Arc::clone(&feed));
        Ok(feed)
    }

    /// Returns all lines that this writer knows of.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if the file cannot be read.
    pub(crate) fn lines(&self) -> Result<Vec<u8>> {
        let mut lines = std::fs::read(&self.path).map_err(|error| unreadable(&self.path, &error))?;
        lines.truncate(usize::try_from(self.length).unwrap_or(usize::MAX));
        Ok(lines)
    }

    /// Tells whether the file is as this writer left it, so that no other driver has taken the operation over.
    pub(crate) fn still_ours(&self) -> bool {
        self.file.metadata().is_ok_and(|now| now.len() == self.length && now.nlink() > 0)
            && self.ends_as_left()
    }

    fn ends_as_left(&self) -> bool {
        let end = [self.last_hash.as_bytes(), LINE_END].concat();
        let mut found = vec![0; end.len()];
        let from = self.length.checked_sub(end.len() as u64);
        match from {
            Some(from) => self.file.read_exact_at(&mut found, from).is_ok() && found == end,
            None => self.length == 0,
        }
    }

    /// The error of a driver that finds another one's record in its journal.
    pub(crate) fn taken_over(&self) -> Error {
        let id = &self.header.operation;
        Error::new(ErrorKind::Locked, format!("operation {id} was taken over by another process"))
            .detail(format!(
                "{} is not as this process left it. This process stopped without touching anything more.",
                self.path.display()
            ))
            .hint(format!("See how it goes on: pgherd operation show {id}"))
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn id(&self) -> &OperationId {
        &self.header.operation
    }

    /// Returns the operation as its records tell it.
    pub fn view(&self) -> &OperationView {
        &self.view
    }
}

/// Journal times are whole milliseconds: nobody reads nanoseconds.
fn now(clock: &dyn Clock) -> Timestamp {
    Timestamp::from_millisecond(clock.now().as_millisecond()).expect("a shortened time is in range")
}

fn killed() -> Error {
    Error::failed("killed by the test")
}

enum Unwritten {
    Io(io::Error),
    /// Only from a [`Tap`].
    Killed,
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Holds the file for one append, so that a driver and the one that takes over from it never write between each other's look and
/// write. The kernel frees it with the process.
fn lock_for_append(file: &File, wait: Duration) -> io::Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            taken => return Ok(taken?),
        }
    }
}

fn unlock(file: &File) {
    rustix::fs::flock(file, FlockOperation::Unlock).expect("a lock on an open file can be given back");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::clock::SystemClock;
    use crate::engine::record::{Actor, End, Failure, PlannedStage, PlannedStep, ProbeFound, TopologyFile};
    use crate::engine::step::Reversal;

    const RESTORED: &[u8] = include_bytes!("../../tests/golden/journal-v1-restored.jsonl");
    const DONE: &[u8] = include_bytes!("../../tests/golden/journal-v1-done.jsonl");
    const ABANDONED: &[u8] = include_bytes!("../../tests/golden/journal-v1-abandoned.jsonl");

    fn ada(pid: u32) -> Actor {
        Actor { user: "ada".to_owned(), host: "db1".to_owned(), pid, version: "0.1.0".to_owned() }
    }

    fn failure(what: &str) -> Failure {
        Failure {
            kind: ErrorKind::Failed,
            what: what.to_owned(),
            detail: Some("Port 5442 is in use.".to_owned()),
            hint: None,
            context: vec!["start inventory-b".to_owned()],
            causes: vec!["pg_ctl start ended with status 1".to_owned()],
        }
    }

    fn header() -> Record {
        let step =
            |describe: &str, reversal, step| PlannedStep { describe: describe.to_owned(), reversal, step };
        Record::Header(Box::new(Header {
            format: FORMAT,
            operation: OperationId("7f3a".to_owned()),
            kind: "apply".to_owned(),
            cluster: "inventory".to_owned(),
            by: ada(4711),
            topology: TopologyFile { file: "/etc/pgherd/pgherd.yml".into(), sha256: "5".repeat(64) },
            plan_digest: "d".repeat(64),
            input: json!({"name": "inventory"}),
            stages: vec![
                PlannedStage {
                    steps: vec![
                        step("initdb inventory-a", Reversal::Undo, json!({"initdb": {"node": "a"}})),
                        step("start inventory-b", Reversal::Undo, json!({"start": {"node": "b"}})),
                    ],
                },
                PlannedStage { steps: vec![step("open inventory", Reversal::ForwardOnly, json!("open"))] },
                PlannedStage { steps: vec![step("start pooler", Reversal::Undo, json!("pooler"))] },
            ],
        }))
    }

    fn started(stage: usize, step: usize, attempt: u32) -> Record {
        Record::StepStarted { stage, step, attempt }
    }

    fn done(stage: usize, step: usize) -> Record {
        Record::StepDone { stage, step, evidence: json!({"port": 5441}) }
    }

    fn restored() -> Vec<Record> {
        let why = failure("could not start inventory-b");
        let failed = |again, timed_out| Record::StepFailed {
            stage: 0,
            step: 1,
            again,
            timed_out,
            error: failure("could not start inventory-b"),
        };
        let found = |found| Record::StepFound { stage: 0, step: 1, found };
        vec![
            header(),
            started(0, 0, 1),
            started(0, 1, 1),
            done(0, 0),
            failed(true, false),
            started(0, 1, 2),
            failed(false, true),
            found(ProbeFound::CannotTell { text: "a postmaster.pid of another host".to_owned() }),
            Record::Ended { end: End::Stuck { why: why.clone() } },
            Record::Resumed { by: ada(4712) },
            found(ProbeFound::NotDone),
            started(0, 1, 3),
            Record::TakenOver { by: ada(4713), reason: "it hangs".to_owned() },
            found(ProbeFound::Done { evidence: json!(null) }),
            Record::TurnedBack { by: ada(4713), why: why.clone() },
            Record::UndoStarted { stage: 0, step: 0, attempt: 1 },
            Record::UndoStarted { stage: 0, step: 1, attempt: 1 },
            Record::UndoDone { stage: 0, step: 1 },
            Record::UndoFailed { stage: 0, step: 0, error: failure("could not remove it") },
            Record::UndoStarted { stage: 0, step: 0, attempt: 2 },
            Record::UndoDone { stage: 0, step: 0 },
            Record::Ended { end: End::Restored { why } },
        ]
    }

    fn incomplete() -> Vec<Record> {
        let why = failure("could not start the pooler");
        vec![
            header(),
            started(0, 0, 1),
            done(0, 0),
            started(0, 1, 1),
            done(0, 1),
            started(1, 0, 1),
            done(1, 0),
            started(2, 0, 1),
            Record::StepFailed { stage: 2, step: 0, again: false, timed_out: false, error: why.clone() },
            Record::Ended { end: End::Incomplete { why } },
        ]
    }

    fn finished(end: Vec<Record>) -> Vec<Record> {
        incomplete().into_iter().chain(end).collect()
    }

    fn render(records: Vec<Record>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut previous = String::new();
        for (seq, record) in (0..).zip(records) {
            let at = Timestamp::from_millisecond(1_795_252_447_120 + seq * 250).unwrap();
            let (line, hash) = render_line(&Entry { seq: seq.unsigned_abs(), at, previous, record });
            bytes.extend(line);
            previous = hash;
        }
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<Option<Content>> {
        parse(Path::new("7f3a.jsonl"), bytes)
    }

    #[test]
    fn the_golden_journals_are_what_this_binary_writes_and_reads() {
        let ended = vec![
            Record::Resumed { by: ada(4712) },
            Record::StepFound { stage: 2, step: 0, found: ProbeFound::NotDone },
            started(2, 0, 2),
            done(2, 0),
            Record::Ended { end: End::Done },
        ];
        let abandoned = vec![Record::Abandoned { by: ada(4712), reason: "started by hand".to_owned() }];
        for (golden, records) in
            [(RESTORED, restored()), (DONE, finished(ended)), (ABANDONED, finished(abandoned))]
        {
            assert_eq!(String::from_utf8_lossy(golden), String::from_utf8_lossy(&render(records.clone())));
            let content = parsed(golden).unwrap().unwrap();
            let read: Vec<Record> = content.entries.into_iter().map(|entry| entry.record).collect();
            assert_eq!(read, records);
            assert!(content.view.is_finished());
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let text = String::from_utf8(RESTORED.to_vec()).unwrap();
        let line = text.lines().next().unwrap().replace(r#""format":1,"#, r#""format":2,"colour":"red","#);
        let body = &line[..line.len() - HASH_KEY.len() - HASH_LENGTH - 2];
        let hash = hex(&Sha256::digest(format!("{body}}}")));
        let error = parsed(format!("{body},\"sha256\":\"{hash}\"}}\n").as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stuck);
        let what = "cannot trust the journal 7f3a.jsonl at line 1: it has format 2, and this pgherd knows only format 1";
        assert_eq!(error.what(), what);
    }

    #[test]
    fn an_unknown_record_is_refused_with_its_line() {
        let entry = |record| Entry { seq: 1, at: Timestamp::UNIX_EPOCH, previous: String::new(), record };
        let (line, _) = render_line(&entry(started(0, 0, 1)));
        let body = String::from_utf8(line).unwrap().replace("step_started", "step_dreamt");
        let body = &body[..body.len() - HASH_KEY.len() - HASH_LENGTH - LINE_END.len()];
        let line = format!("{body},\"sha256\":\"{}\"}}\n", hex(&Sha256::digest(format!("{body}}}"))));
        let why = parse_line(line.as_bytes()).unwrap_err();
        assert!(
            why.starts_with("this pgherd does not understand it: unknown variant `step_dreamt`"),
            "{why}"
        );
    }

    #[test]
    fn a_record_that_cannot_follow_is_refused() {
        let why = |records| parsed(&render(records)).unwrap_err().what().to_owned();
        let after_the_header = |record| why(vec![header(), record]);
        assert!(why(vec![started(0, 0, 1)]).ends_with("line 1: the first record is not a header"));
        assert!(
            after_the_header(done(0, 0)).ends_with("line 2: step initdb inventory-a ends without a start")
        );
        assert!(after_the_header(started(7, 0, 1)).ends_with("line 2: the plan has no step 0 in stage 7"));
        assert!(after_the_header(header()).ends_with("line 2: a second header"));
        let early = Record::Ended { end: End::Done };
        assert!(after_the_header(early).ends_with("line 2: the end does not fit what came before it"));
        let twice = vec![header(), started(0, 0, 1), started(0, 0, 2)];
        assert!(why(twice).ends_with("line 3: step initdb inventory-a is started twice"));
        let back = Record::TurnedBack { by: ada(1), why: failure("no") };
        let after_the_pivot = vec![header(), started(1, 0, 1), done(1, 0), back];
        assert!(why(after_the_pivot).ends_with("line 4: the operation turns back after its pivot"));
        let mut ended = restored();
        ended.push(Record::Resumed { by: ada(1) });
        assert!(why(ended).ends_with("line 23: a record follows the end of the operation"));
    }

    #[test]
    fn a_line_that_was_taken_out_breaks_the_chain() {
        let text = String::from_utf8(RESTORED.to_vec()).unwrap();
        let without: String =
            text.split_inclusive('\n').enumerate().filter(|(at, _)| *at != 3).map(|(_, line)| line).collect();
        let error = parsed(without.as_bytes()).unwrap_err();
        assert_eq!(
            error.what(),
            "cannot trust the journal 7f3a.jsonl at line 4: its number is 4, expected 3"
        );
    }

    #[test]
    fn a_journal_under_another_name_is_refused() {
        let error = parse(Path::new("7f3a copy.jsonl"), DONE).unwrap_err();
        let what = "cannot trust the journal 7f3a copy.jsonl at line 1: it is the journal of operation 7f3a";
        assert_eq!(error.what(), what);
    }

    fn created(directory: &Path) -> Journal {
        let Record::Header(header) = header() else { unreachable!("header() makes a header") };
        let path = directory.join("7f3a.jsonl");
        Journal::create(&path, *header, Arc::new(SystemClock), None).unwrap().unwrap()
    }

    #[test]
    fn a_torn_line_is_cut_off_before_the_next_append() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = created(directory.path());
        let path = journal.path.clone();
        journal.append(started(0, 0, 1)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        drop(journal);
        std::fs::write(&path, [&whole[..], br#"{"seq":2,"at"#].concat()).unwrap();
        let mut journal = Journal::open(&path, Arc::new(SystemClock), None).unwrap().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        journal.append(done(0, 0)).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().entries.len(), 3);
    }

    #[test]
    fn another_writers_record_stops_the_first_one_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let mut old = created(directory.path());
        let mut new = Journal::open(&old.path, Arc::new(SystemClock), None).unwrap().unwrap();
        new.append(Record::TakenOver { by: ada(2), reason: "it hangs".to_owned() }).unwrap();
        let bytes = std::fs::read(&old.path).unwrap();
        assert_eq!(old.append(started(0, 0, 1)).unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(old.append(started(0, 0, 1)).unwrap_err().kind(), ErrorKind::Stuck);
        assert_eq!(std::fs::read(&old.path).unwrap(), bytes);
        new.append(started(0, 0, 1)).unwrap();
    }

    #[test]
    fn only_its_owner_may_read_a_journal() {
        let directory = tempfile::tempdir().unwrap();
        let journal = created(directory.path());
        assert_eq!(journal.file.metadata().unwrap().mode() & 0o777, 0o600);
        let Record::Header(header) = header() else { unreachable!("header() makes a header") };
        let again = Journal::create(&journal.path, *header, Arc::new(SystemClock), None).unwrap();
        assert!(again.is_none(), "an existing journal is never written over");
    }

    proptest! {
        #[test]
        fn any_prefix_folds_with_at_most_the_torn_line_missing(length in 0..=RESTORED.len()) {
            let prefix = &RESTORED[..length];
            let whole = prefix.iter().filter(|byte| **byte == b'\n').count();
            match parsed(prefix).unwrap() {
                Some(content) => prop_assert_eq!(content.entries.len(), whole),
                None => prop_assert_eq!(whole, 0),
            }
        }

        #[test]
        fn any_changed_byte_is_refused_but_the_last_which_reads_as_torn(at in 0..RESTORED.len(), flip in 1..=255_u8) {
            let mut bytes = RESTORED.to_vec();
            bytes[at] ^= flip;
            let result = parsed(&bytes);
            if at == RESTORED.len() - 1 {
                prop_assert!(result.unwrap().is_some_and(|content| !content.view.is_finished()));
            } else {
                prop_assert_eq!(result.map(|_| ()).unwrap_err().kind(), ErrorKind::Stuck);
            }
        }
    }
}
