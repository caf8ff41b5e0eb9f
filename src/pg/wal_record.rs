//! WAL records in the bytes of a segment: where transactions ended, and when.
//!
//! Reads commits, aborts, prepares and restore points of PostgreSQL 14 to 19, and passes over everything else. Trusts nothing that its own CRC does
//! not cover: what is left in a recycled segment behind the end of the log looks like records, too.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::lsn::Lsn;
use super::wal_file::{SegmentName, WalSegmentSize};

/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD`.
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
/// `SizeOfXLogRecord`.
const RECORD_HEADER: usize = 24;
const FIRST_IS_CONTRECORD: u16 = 1;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 8;
/// A longer one is none: the server refuses to write it since 16, and no older version could read it.
const LONGEST: usize = 1 << 30;
/// Seconds from 1970 to 2000, the epoch of `TimestampTz`.
const POSTGRES_EPOCH: i64 = 946_684_800;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const XLOG_SWITCH: u8 = 0x40;
const XLOG_RESTORE_POINT: u8 = 0x70;
/// The first page magic whose commit records name dropped statistics by 64-bit keys: PostgreSQL 18.
const WIDE_STATISTICS: u16 = 0xD118;

/// The end of a transaction, or a restore point, as the WAL has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Where its record ends.
    pub lsn: Lsn,
    pub at: Timestamp,
    pub kind: MarkKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    Commit {
        xid: u32,
    },
    Abort {
        xid: u32,
    },
    /// The first half of a two-phase commit: it outlives a crash, and is not visible yet.
    Prepare {
        xid: u32,
    },
    RestorePoint {
        name: String,
    },
}

impl Mark {
    pub fn is_commit(&self) -> bool {
        matches!(self.kind, MarkKind::Commit { .. })
    }

    /// Tells whether recovery to a time looks at it: restore points and prepares have a time, too, but are passed by
    /// (`recoveryStopsBefore` in `xlogrecovery.c`).
    pub fn ends_a_transaction(&self) -> bool {
        matches!(self.kind, MarkKind::Commit { .. } | MarkKind::Abort { .. })
    }
}

/// What one segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMarks {
    /// Of the records that are whole in it, in their order.
    pub marks: Vec<Mark>,
    /// The record that begins in it and goes on in the next segment, unless its kind is known and has no mark.
    pub tail: Option<Tail>,
    /// The end of a record that began in the segment before.
    pub head: Vec<u8>,
    /// Where the log ends in it, or the end of the segment.
    pub end: Lsn,
}

/// The beginning of a record that goes on in the next segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    bytes: Vec<u8>,
    length: usize,
    magic: u16,
}

/// The bytes are not those of a segment of the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} does not begin as a WAL segment does: {why}")]
pub struct SegmentError {
    name: String,
    why: &'static str,
}

/// Reads a segment.
///
/// # Errors
/// When its first page is not that of `name`. Where the log ends within it is no error.
///
/// Mirrors `XLogReadRecord` in `xlogreader.c`.
pub fn marks(name: SegmentName, size: WalSegmentSize, bytes: &[u8]) -> Result<SegmentMarks, SegmentError> {
    let wrong = |why| SegmentError { name: name.to_string(), why };
    let start = name.start(size).as_u64();
    if bytes.len() as u64 != size.as_u64() {
        return Err(wrong("it has another size"));
    }
    let magic = short(bytes, 0);
    if magic & 0xFF00 != 0xD100 || long(bytes, 8) != start || short(bytes, 2) & 2 == 0 {
        return Err(wrong("its first page has another address"));
    }
    let page = usize::try_from(word(bytes, 36)).unwrap_or(0);
    if !page.is_power_of_two() || !(1024..=65536).contains(&page) {
        return Err(wrong("its pages have no possible size"));
    }
    let mut reader = Reader { bytes, start, page, magic, at: 0, previous: None };
    Ok(reader.all())
}

impl Tail {
    /// Completes the record with what the next segment begins with; `None` if the two do not belong together, or it has no mark.
    pub fn complete(&self, next: &SegmentMarks, next_start: Lsn) -> Option<Mark> {
        if self.bytes.len() + next.head.len() != self.length {
            return None;
        }
        let mut record = self.bytes.clone();
        record.extend_from_slice(&next.head);
        // One page of the next segment at most holds the end of most of them; more than that is told by `end_of_head`.
        let lsn = end_of_head(next_start, next.head.len());
        is_whole(&record).then(|| mark(&record, lsn, self.magic)).flatten()
    }
}

/// Returns where a record ends of which a segment begins with `length` bytes.
fn end_of_head(start: Lsn, length: usize) -> Lsn {
    const PAGE: usize = 8192;
    let (mut left, mut at, mut header) = (length, 0, LONG_HEADER);
    while left > PAGE - header {
        left -= PAGE - header;
        at += PAGE;
        header = SHORT_HEADER;
    }
    Lsn::new(start.as_u64() + (at + header + aligned(left)) as u64)
}

/// Why a record is not whole.
enum Broken {
    /// The segment ends before it.
    Cut,
    /// The log goes on without it, from this page on.
    Overwritten { page: usize },
    /// The log ends within it.
    End,
}

struct Reader<'a> {
    bytes: &'a [u8],
    start: u64,
    page: usize,
    magic: u16,
    /// Where the next record begins, or its page.
    at: usize,
    /// Where the record before began.
    previous: Option<u64>,
}

impl<'a> Reader<'a> {
    fn all(&mut self) -> SegmentMarks {
        let mut found =
            SegmentMarks { marks: Vec::new(), tail: None, head: Vec::new(), end: Lsn::new(self.start) };
        if short(self.bytes, 2) & FIRST_IS_CONTRECORD != 0 {
            let length = usize::try_from(word(self.bytes, 16)).unwrap_or(usize::MAX);
            match self.collect(0, length) {
                Ok((head, end)) => {
                    found.head = head.into_owned();
                    self.at = aligned(end);
                }
                Err(Broken::Overwritten { page }) => self.at = page,
                // A record that is longer than a segment, or one that nobody has written to its end.
                Err(Broken::Cut | Broken::End) => {
                    found.end = Lsn::new(self.start + self.bytes.len() as u64);
                    return found;
                }
            }
        }
        while let Some(position) = self.next_record() {
            self.at = position;
            let length = usize::try_from(word(self.bytes, position)).unwrap_or(usize::MAX);
            if !(RECORD_HEADER..LONGEST).contains(&length) {
                break;
            }
            let (record, end) = match self.collect(position, length) {
                Ok(collected) => collected,
                // A server that crashed within a record goes on behind it on the next page.
                Err(Broken::Overwritten { page }) => {
                    self.at = page;
                    self.previous = None;
                    continue;
                }
                Err(Broken::Cut) => {
                    found.tail = self.tail(position, length);
                    break;
                }
                Err(Broken::End) => break,
            };
            let address = self.start + position as u64;
            if !is_whole(&record) || self.previous.is_some_and(|previous| long(&record, 8) != previous) {
                break;
            }
            self.previous = Some(address);
            let end = aligned(end);
            found.marks.extend(mark(&record, Lsn::new(self.start + end as u64), self.magic));
            self.at = end;
            if record[17] == RM_XLOG && record[16] & 0xF0 == XLOG_SWITCH {
                self.at = self.bytes.len();
            }
        }
        found.end = Lsn::new(self.start + self.at as u64);
        found
    }

    /// Returns where the next record begins; `None` where the log ends.
    fn next_record(&self) -> Option<usize> {
        let mut at = self.at;
        if at >= self.bytes.len() {
            return None;
        }
        if at.is_multiple_of(self.page) {
            at = self.behind_header(at)?;
        }
        (at + RECORD_HEADER / 3 <= self.bytes.len()).then_some(at)
    }

    /// Returns where the data of a page begins, if the page is of this log.
    fn behind_header(&self, page: usize) -> Option<usize> {
        let ours = page + SHORT_HEADER <= self.bytes.len()
            && short(self.bytes, page) == self.magic
            && long(self.bytes, page + 8) == self.start + page as u64;
        ours.then_some(page + if page == 0 { LONG_HEADER } else { SHORT_HEADER })
    }

    /// Collects `length` bytes from `at` on over the headers of pages. Returns where they end.
    fn collect(&self, at: usize, length: usize) -> Result<(Cow<'a, [u8]>, usize), Broken> {
        let mut at =
            if at.is_multiple_of(self.page) { self.behind_header(at).ok_or(Broken::End)? } else { at };
        let bytes = self.bytes;
        if length <= self.page - at % self.page {
            return Ok((Cow::Borrowed(&bytes[at..at + length]), at + length));
        }
        let mut collected = Vec::with_capacity(length.min(bytes.len() - at));
        loop {
            let step = (self.page - at % self.page).min(length - collected.len());
            collected.extend_from_slice(&bytes[at..at + step]);
            at += step;
            if collected.len() == length {
                return Ok((Cow::Owned(collected), at));
            }
            if at >= bytes.len() {
                return Err(Broken::Cut);
            }
            let data = self.behind_header(at).ok_or(Broken::End)?;
            let flags = short(bytes, at + 2);
            if flags & FIRST_IS_OVERWRITE_CONTRECORD != 0 {
                return Err(Broken::Overwritten { page: at });
            }
            if flags & FIRST_IS_CONTRECORD == 0 {
                return Err(Broken::End);
            }
            at = data;
        }
    }

    /// Keeps the beginning of a record whose end is in the next segment, if it may have a mark.
    fn tail(&self, at: usize, length: usize) -> Option<Tail> {
        let mut at = at;
        let mut bytes = Vec::new();
        while at < self.bytes.len() {
            if at.is_multiple_of(self.page) {
                at = self.behind_header(at)?;
            }
            let room = self.page - at % self.page;
            bytes.extend_from_slice(self.bytes.get(at..at + room)?);
            at += room;
        }
        let known = bytes.len() >= RECORD_HEADER;
        let may_have = !known || matches!(bytes[17], RM_XACT) || is_restore_point(&bytes);
        (bytes.len() < length && may_have).then_some(Tail { bytes, length, magic: self.magic })
    }
}

fn is_restore_point(record: &[u8]) -> bool {
    record[17] == RM_XLOG && record[16] & 0xF0 == XLOG_RESTORE_POINT
}

/// Checks a record's CRC: of what follows the header, then of the header up to the CRC itself (`ValidXLogRecord`).
fn is_whole(record: &[u8]) -> bool {
    record.len() >= RECORD_HEADER
        && crc32c::crc32c_append(crc32c::crc32c(&record[RECORD_HEADER..]), &record[..20]) == word(record, 20)
}

/// Returns what a record marks.
fn mark(record: &[u8], lsn: Lsn, magic: u16) -> Option<Mark> {
    let (info, manager) = (record[16], record[17]);
    if manager == RM_XLOG {
        let data = main_data(record).filter(|_| is_restore_point(record))?;
        let name = data.get(8..)?;
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..length]).into_owned();
        return Some(Mark { lsn, at: time(data, 0)?, kind: MarkKind::RestorePoint { name } });
    }
    if manager != RM_XACT {
        return None;
    }
    let data = main_data(record)?;
    let own = word(record, 4);
    // XLOG_XACT_OPMASK.
    let (at, kind) = match info & 0x70 {
        0x00 => (time(data, 0)?, MarkKind::Commit { xid: own }),
        0x10 => (time(data, 16)?, MarkKind::Prepare { xid: number(data, 8)? }),
        0x20 => (time(data, 0)?, MarkKind::Abort { xid: own }),
        0x30 => (time(data, 0)?, MarkKind::Commit { xid: prepared(data, info, magic, true)? }),
        0x40 => (time(data, 0)?, MarkKind::Abort { xid: prepared(data, info, magic, false)? }),
        _ => return None,
    };
    Some(Mark { lsn, at, kind })
}

/// Returns the main data, which is last in a record without block references, behind the short headers of what comes before.
fn main_data(record: &[u8]) -> Option<&[u8]> {
    let mut at = RECORD_HEADER;
    loop {
        match *record.get(at)? {
            // XLR_BLOCK_ID_DATA_SHORT, DATA_LONG, ORIGIN, TOPLEVEL_XID.
            255 => {
                let length = usize::from(*record.get(at + 1)?);
                return record.get(at + 2..at + 2 + length);
            }
            254 => {
                let length = usize::try_from(number(record, at + 1)?).ok()?;
                return record.get(at + 5..at.checked_add(5 + length)?);
            }
            253 => at += 3,
            252 => at += 5,
            _ => return None,
        }
    }
}

/// Returns the transaction that COMMIT PREPARED or ROLLBACK PREPARED ends (`ParseCommitRecord`, `ParseAbortRecord`).
fn prepared(data: &[u8], info: u8, magic: u16, commit: bool) -> Option<u32> {
    // XLOG_XACT_HAS_INFO.
    if info & 0x80 == 0 {
        return None;
    }
    let flags = number(data, 8)?;
    let mut at = 12;
    if flags & 1 != 0 {
        at += 8;
    }
    let each = if magic >= WIDE_STATISTICS { 16 } else { 12 };
    // Subtransactions, relations, dropped statistics, and for a commit invalidation messages.
    let lists: &[(u32, usize)] =
        if commit { &[(2, 4), (4, 12), (256, each), (8, 16)] } else { &[(2, 4), (4, 12), (256, each)] };
    for (flag, each) in lists {
        if flags & flag != 0 {
            let count = usize::try_from(number(data, at)?).ok()?;
            at = at.checked_add(4)?.checked_add(count.checked_mul(*each)?)?;
        }
    }
    // XACT_XINFO_HAS_TWOPHASE.
    if flags & 16 != 0 { number(data, at) } else { None }
}

/// Returns the time at `at`: microseconds since 2000.
fn time(data: &[u8], at: usize) -> Option<Timestamp> {
    let bytes: [u8; 8] = data.get(at..at + 8)?.try_into().ok()?;
    let since_1970 = i64::from_le_bytes(bytes).checked_add(POSTGRES_EPOCH * 1_000_000)?;
    Timestamp::from_microsecond(since_1970).ok()
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at + 4)) << 32 | u64::from(word(bytes, at))
}

/// Rounds up to 8 bytes: `MAXALIGN`.
fn aligned(at: usize) -> usize {
    at.next_multiple_of(8)
}
