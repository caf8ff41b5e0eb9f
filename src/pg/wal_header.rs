//! The first page of a WAL segment: which cluster wrote it, in which version's format, and where in the log it belongs.
//!
//! Mirrors `XLogPageHeaderData` and `XLogLongPageHeaderData` in `xlog_internal.h`, little-endian.

use super::lsn::Lsn;
use super::system::SystemIdentifier;
use super::timeline::TimelineId;
use super::wal_file::{SegmentName, WalSegmentSize};

/// A page begins with a continuation of the last record of the page before.
pub const FIRST_IS_CONTINUATION: u16 = 0x0001;
/// The header is long: that of the first page of a segment.
pub const LONG: u16 = 0x0002;
/// The record whose continuation was to come here was given up.
pub const FIRST_OVERWRITES_CONTINUATION: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// `SizeOfXLogShortPHD`.
pub const SHORT_SIZE: usize = 24;
/// `SizeOfXLogLongPHD`.
pub const LONG_SIZE: usize = 40;

/// `XLOG_PAGE_MAGIC` of each major version; it changes with every format.
const MAGIC: [(u16, u32); 5] = [(0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];

/// What the first bytes of every page say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    pub magic: u16,
    pub flags: u16,
    /// Of the first record on the page.
    pub timeline: u32,
    pub address: Lsn,
    /// How many bytes of a record from the page before are still to come, this page's included.
    pub remaining: u32,
}

impl PageHeader {
    /// Reads a page's header; `None` if there are too few bytes or unknown flags, as on a page that was never written.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let header = Self {
            magic: u16::from_le_bytes(part(page, 0)?),
            flags: u16::from_le_bytes(part(page, 2)?),
            timeline: u32::from_le_bytes(part(page, 4)?),
            address: Lsn::new(u64::from_le_bytes(part(page, 8)?)),
            remaining: u32::from_le_bytes(part(page, 16)?),
        };
        (header.flags & !ALL_FLAGS == 0).then_some(header)
    }

    /// Returns how many bytes the header has.
    pub fn size(&self) -> usize {
        if self.flags & LONG == 0 { SHORT_SIZE } else { LONG_SIZE }
    }

    /// Returns the major version that writes this format; `None` for one that this pgherd does not know.
    pub fn major(&self) -> Option<u32> {
        MAGIC.iter().find(|(magic, _)| *magic == self.magic).map(|(_, major)| *major)
    }
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub page: PageHeader,
    pub system_identifier: SystemIdentifier,
    pub segment_size: WalSegmentSize,
    /// `XLOG_BLCKSZ`.
    pub page_size: usize,
}

/// Why bytes are not the segment that their name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    #[error("it does not begin with the header of a WAL segment")]
    NotOne,
    #[error("it is WAL of PostgreSQL {found}, the node is PostgreSQL {expected}")]
    Version { found: u32, expected: u32 },
    #[error("it is WAL in an unknown format (magic {0:04X})")]
    Magic(u16),
    #[error("it was written by the cluster with system identifier {found}, expected {expected}")]
    System { found: SystemIdentifier, expected: SystemIdentifier },
    #[error("it has {length} bytes, its header says segments of {size}")]
    Length { length: u64, size: u64 },
    #[error("its header says that it begins at {found}, its name says {expected}")]
    Address { found: Lsn, expected: Lsn },
    #[error("its header says timeline {found}, which the timeline {of} of its name cannot contain")]
    Timeline { found: u32, of: TimelineId },
}

impl SegmentHeader {
    /// Reads the header at the beginning of a segment.
    ///
    /// # Errors
    /// [`SegmentHeaderError::NotOne`] if there is none.
    pub fn parse(segment: &[u8]) -> Result<Self, SegmentHeaderError> {
        Self::read(segment).ok_or(SegmentHeaderError::NotOne)
    }

    fn read(segment: &[u8]) -> Option<Self> {
        let page = PageHeader::parse(segment).filter(|page| page.flags & LONG != 0)?;
        let page_size = u32::from_le_bytes(part(segment, 36)?);
        Some(Self {
            page,
            system_identifier: SystemIdentifier::new(u64::from_le_bytes(part(segment, 24)?))?,
            segment_size: WalSegmentSize::new(u64::from(u32::from_le_bytes(part(segment, 32)?))).ok()?,
            page_size: usize::try_from(page_size)
                .ok()
                .filter(|size| size.is_power_of_two() && *size >= 1024)?,
        })
    }

    /// Holds a segment of `length` bytes to its name, and to the cluster and major version that it should come from.
    ///
    /// The timeline in the header may be older than the one of the name: a promotion copies what the segment had so far.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(
        &self,
        name: SegmentName,
        length: u64,
        system: SystemIdentifier,
        major: u32,
    ) -> Result<(), SegmentHeaderError> {
        match self.page.major() {
            Some(found) if found != major => {
                return Err(SegmentHeaderError::Version { found, expected: major });
            }
            None if MAGIC.iter().any(|(_, known)| *known == major) => {
                return Err(SegmentHeaderError::Magic(self.page.magic));
            }
            Some(_) | None => {}
        }
        if self.system_identifier != system {
            let found = self.system_identifier;
            return Err(SegmentHeaderError::System { found, expected: system });
        }
        if length != self.segment_size.as_u64() {
            return Err(SegmentHeaderError::Length { length, size: self.segment_size.as_u64() });
        }
        let expected = name.start(self.segment_size);
        if !name.fits(self.segment_size) || self.page.address != expected {
            return Err(SegmentHeaderError::Address { found: self.page.address, expected });
        }
        if self.page.timeline == 0 || self.page.timeline > name.timeline().as_u32() {
            return Err(SegmentHeaderError::Timeline { found: self.page.timeline, of: name.timeline() });
        }
        Ok(())
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: u64 = 7_398_812_045_532_218_841;

    /// The header of segment 3 of timeline 2 of a cluster of 15 with segments of 1 MiB.
    fn header() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xD110_u16.to_le_bytes());
        bytes.extend((LONG | FIRST_IS_CONTINUATION).to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(0x30_0000_u64.to_le_bytes());
        bytes.extend(77_u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(SYSTEM.to_le_bytes());
        bytes.extend(0x10_0000_u32.to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes
    }

    fn check(
        bytes: &[u8],
        name: &str,
        length: u64,
        system: u64,
        major: u32,
    ) -> Result<(), SegmentHeaderError> {
        let header = SegmentHeader::parse(bytes)?;
        header.check(name.parse().unwrap(), length, SystemIdentifier::new(system).unwrap(), major)
    }

    #[test]
    fn a_segment_is_held_to_its_name_and_to_its_cluster() {
        use SegmentHeaderError as E;
        let (name, length) = ("000000020000000000000003", 1 << 20);
        assert_eq!(SegmentHeader::parse(&header()).unwrap().page.remaining, 77);
        assert_eq!(check(&header(), name, length, SYSTEM, 15), Ok(()));
        let version = check(&header(), name, length, SYSTEM, 14);
        assert_eq!(version, Err(E::Version { found: 15, expected: 14 }));
        assert!(matches!(check(&header(), name, length, SYSTEM - 1, 15), Err(E::System { .. })));
        assert!(matches!(check(&header(), name, length - 1, SYSTEM, 15), Err(E::Length { .. })));
        let other = "000000020000000000000004";
        assert!(matches!(check(&header(), other, length, SYSTEM, 15), Err(E::Address { .. })));
        let mut later = header();
        later[4] = 3;
        assert!(matches!(check(&later, name, length, SYSTEM, 15), Err(E::Timeline { found: 3, .. })));
    }

    #[test]
    fn a_format_that_is_not_known_is_taken_from_a_version_that_is_not_known() {
        let mut newer = header();
        newer[0] = 0x99;
        let check = |major| check(&newer, "000000020000000000000003", 1 << 20, SYSTEM, major);
        assert_eq!(check(18), Err(SegmentHeaderError::Magic(0xD199)));
        assert_eq!(check(19), Ok(()));
    }

    #[test]
    fn what_is_no_segment_is_told_apart() {
        assert_eq!(SegmentHeader::parse(&[0; 8192]), Err(SegmentHeaderError::NotOne));
        assert_eq!(SegmentHeader::parse(&[0xff; 8192]), Err(SegmentHeaderError::NotOne));
        for length in 0..LONG_SIZE {
            assert_eq!(SegmentHeader::parse(&header()[..length]), Err(SegmentHeaderError::NotOne));
        }
    }
}
