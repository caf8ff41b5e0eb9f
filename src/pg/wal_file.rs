//! Names of the files in pg_wal and in an archive, and where in the log a segment lies.
//!
//! Where an LSN meets a segment, the cluster's segment size is an argument: 16 MiB is only initdb's default.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::units::ByteCount;

/// The cluster's `wal_segment_size`: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize` in `xlog_internal.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct WalSegmentSize(u64);

/// The number is no segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes is no WAL segment size: it is a power of two from 1 MiB to 1 GiB")]
pub struct WalSegmentSizeError(u64);

impl WalSegmentSize {
    /// Takes a size in bytes.
    ///
    /// # Errors
    /// When it is not a power of two from 1 MiB to 1 GiB.
    ///
    /// ```
    /// use pgherd::pg::wal_file::WalSegmentSize;
    /// assert!(WalSegmentSize::new(16 << 20).is_ok());
    /// assert!(WalSegmentSize::new(16_000_000).is_err());
    /// ```
    pub fn new(bytes: u64) -> Result<Self, WalSegmentSizeError> {
        if bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(WalSegmentSizeError(bytes))
        }
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    pub const fn bytes(self) -> ByteCount {
        ByteCount(self.0)
    }

    /// Returns how many segments share the first 16 digits of their names.
    const fn in_a_log(self) -> u64 {
        (1 << 32) / self.0
    }
}

impl TryFrom<u64> for WalSegmentSize {
    type Error = WalSegmentSizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<WalSegmentSize> for u64 {
    fn from(size: WalSegmentSize) -> Self {
        size.0
    }
}

/// The name of a WAL segment: timeline, log and segment, 8 hexadecimal digits each.
///
/// Two names compare by timeline first, then by place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// Returns the segment that holds `lsn`.
    ///
    /// ```
    /// use pgherd::pg::{timeline::TimelineId, wal_file::{SegmentName, WalSegmentSize}};
    /// let size = WalSegmentSize::new(16 << 20).unwrap();
    /// let name = SegmentName::holding("1/A1F20".parse().unwrap(), TimelineId::new(3).unwrap(), size);
    /// assert_eq!(name.to_string(), "000000030000000100000000");
    /// ```
    ///
    /// Mirrors `XLByteToSeg` and `XLogFileName` in `xlog_internal.h`.
    pub fn holding(lsn: Lsn, timeline: TimelineId, size: WalSegmentSize) -> Self {
        Self::numbered(lsn.as_u64() / size.0, timeline, size)
    }

    /// Returns the segment that holds the byte before `lsn`: the last one that WAL up to `lsn` needs.
    ///
    /// Mirrors `XLByteToPrevSeg` in `xlog_internal.h`.
    pub fn ending_at(lsn: Lsn, timeline: TimelineId, size: WalSegmentSize) -> Self {
        Self::numbered(lsn.as_u64().saturating_sub(1) / size.0, timeline, size)
    }

    /// Returns segment `number` from the beginning of the log.
    pub fn at(number: u64, timeline: TimelineId, size: WalSegmentSize) -> Self {
        Self::numbered(number.min(u64::MAX / size.0), timeline, size)
    }

    fn numbered(number: u64, timeline: TimelineId, size: WalSegmentSize) -> Self {
        let part = |part: u64| u32::try_from(part).expect("an LSN has 64 bits and a segment at least 20");
        Self { timeline, log: part(number / size.in_a_log()), segment: part(number % size.in_a_log()) }
    }

    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// Returns the segment's number from the beginning of the log.
    pub fn number(self, size: WalSegmentSize) -> u64 {
        u64::from(self.log) * size.in_a_log() + u64::from(self.segment)
    }

    /// Returns the first LSN of the segment.
    pub fn start(self, size: WalSegmentSize) -> Lsn {
        Lsn::new(self.number(size) * size.0)
    }

    /// Returns the LSN behind the segment.
    pub fn end(self, size: WalSegmentSize) -> Lsn {
        Lsn::new((self.number(size) * size.0).saturating_add(size.0))
    }

    /// Returns the segment after this one on the same timeline.
    #[must_use]
    pub fn next(self, size: WalSegmentSize) -> Self {
        Self::numbered(self.number(size) + 1, self.timeline, size)
    }

    /// Returns the same place in the log on another timeline.
    #[must_use]
    pub fn on(self, timeline: TimelineId) -> Self {
        Self { timeline, ..self }
    }

    /// Returns whether a cluster with segments of this size can have a segment of this name.
    pub fn fits(self, size: WalSegmentSize) -> bool {
        u64::from(self.segment) < size.in_a_log()
    }

    /// Returns the first 16 digits: timeline and log, by which an archive has its folders.
    pub fn folder(self) -> String {
        format!("{:08X}{:08X}", self.timeline.as_u32(), self.log)
    }

    fn parse(name: &str) -> Option<Self> {
        if name.len() != 24 || !name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')) {
            return None;
        }
        let part = |range: std::ops::Range<usize>| u32::from_str_radix(name.get(range)?, 16).ok();
        Some(Self { timeline: TimelineId::new(part(0..8)?)?, log: part(8..16)?, segment: part(16..24)? })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.as_u32(), self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = WalFileError;

    fn from_str(name: &str) -> Result<Self, WalFileError> {
        Self::parse(name).ok_or_else(|| WalFileError(name.to_owned()))
    }
}

impl Serialize for SegmentName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SegmentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A file that PostgreSQL hands to `archive_command` or asks `restore_command` for.
///
/// ```
/// use pgherd::pg::wal_file::WalFile;
/// for name in ["00000001000000000000002A", "00000001000000000000002A.partial", "00000002.history", "00000001000000000000002A.00000028.backup"] {
///     assert_eq!(name.parse::<WalFile>().unwrap().to_string(), name);
/// }
/// assert!("00000001000000000000002a".parse::<WalFile>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    Segment(SegmentName),
    /// The last segment of a timeline that ended by a promotion.
    Partial(SegmentName),
    TimelineHistory(TimelineId),
    /// What `pg_backup_stop` leaves; the second number is the backup's first byte within the segment.
    BackupHistory(SegmentName, u32),
}

/// The text is no name of a WAL file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a WAL segment, a .partial, .history or .backup file")]
pub struct WalFileError(String);

impl WalFile {
    /// Returns the timeline that the name begins with.
    pub const fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupHistory(name, _) => name.timeline(),
            Self::TimelineHistory(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::TimelineHistory(timeline) => write!(f, "{:08X}.history", timeline.as_u32()),
            Self::BackupHistory(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFile {
    type Err = WalFileError;

    fn from_str(name: &str) -> Result<Self, WalFileError> {
        let wrong = || WalFileError(name.to_owned());
        let hex = |digits: &str| {
            let upper = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
            upper.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let (stem, rest) = name.split_once('.').map_or((name, None), |(stem, rest)| (stem, Some(rest)));
        match rest {
            None => SegmentName::parse(stem).map(Self::Segment),
            Some("partial") => SegmentName::parse(stem).map(Self::Partial),
            Some("history") => hex(stem).and_then(TimelineId::new).map(Self::TimelineHistory),
            Some(rest) => rest
                .strip_suffix(".backup")
                .and_then(hex)
                .zip(SegmentName::parse(stem))
                .map(|(offset, name)| Self::BackupHistory(name, offset)),
        }
        .ok_or_else(wrong)
    }
}

impl Serialize for WalFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WalFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(mib: u64) -> WalSegmentSize {
        WalSegmentSize::new(mib << 20).unwrap()
    }

    fn timeline(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    proptest! {
        #[test]
        fn a_segment_holds_the_lsn_that_named_it(position in any::<u64>(), power in 20_u32..=30, id in 1_u32..) {
            let size = WalSegmentSize::new(1 << power).unwrap();
            let name = SegmentName::holding(Lsn::new(position), timeline(id), size);
            prop_assert!(name.start(size) <= Lsn::new(position));
            prop_assert!(name.fits(size));
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
        }
    }

    #[test]
    fn the_last_segment_of_a_log_is_followed_by_the_first_of_the_next() {
        for (mib, last) in [(1, "FFF"), (16, "FF"), (64, "3F"), (1024, "3")] {
            let name: SegmentName = format!("0000000200000000{last:0>8}").parse().unwrap();
            assert_eq!(name.next(size(mib)).to_string(), "000000020000000100000000");
            assert_eq!(name.end(size(mib)).to_string(), "1/0");
        }
    }

    #[test]
    fn wal_up_to_a_segment_boundary_does_not_need_the_next_segment() {
        let lsn = "0/3000000".parse().unwrap();
        assert_eq!(
            SegmentName::ending_at(lsn, timeline(1), size(16)).to_string(),
            "000000010000000000000002"
        );
        assert_eq!(SegmentName::holding(lsn, timeline(1), size(16)).to_string(), "000000010000000000000003");
    }

    #[test]
    fn a_name_beyond_the_segments_of_a_log_does_not_fit() {
        let name: SegmentName = "000000010000000000000100".parse().unwrap();
        assert!(!name.fits(size(16)));
        assert!(name.fits(size(1)));
    }

    #[test]
    fn what_is_no_wal_file_is_refused() {
        for name in [
            "",
            "00000001.hist",
            "0000001.history",
            "00000000.history",
            "00000001000000000000002A.part",
            "00000001000000000000002A.0000002.backup",
            "000000010000000000000g2A",
            "../../etc/passwd",
            "00000001000000000000002A.partial.partial",
        ] {
            assert!(name.parse::<WalFile>().is_err(), "{name:?}");
        }
    }
}
