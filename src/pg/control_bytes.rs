//! The bytes of `global/pg_control`: whose storage is this, and which checkpoint does it start from.
//!
//! Only what has been in the same place since PostgreSQL 14 (`ControlFileData` in `pg_control.h`); [`super::control_file`] reads the rest from
//! what pg_controldata prints.

use super::lsn::Lsn;
use super::system::SystemIdentifier;
use super::timeline::TimelineId;

/// `PG_CONTROL_FILE_SIZE`.
pub const SIZE: usize = 8192;
/// `PG_CONTROL_MAX_SAFE_SIZE`: all that is used fits into one sector.
const USED: usize = 512;
/// Where the fields that we read end; the CRC cannot be before.
const READ: usize = 56;

/// A pg_control whose CRC is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlBytes {
    pub system_identifier: SystemIdentifier,
    pub catalog_version: u32,
    /// Where the latest checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    pub timeline: TimelineId,
}

impl ControlBytes {
    /// Reads the file; `None` if no CRC fits, as when it was read while the server wrote it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..USED)?;
        // The CRC follows what it covers, and how long that is differs by version.
        let whole = (READ..USED - 4)
            .step_by(4)
            .any(|end| number(bytes, end) != 0 && crc32c::crc32c(&bytes[..end]) == number(bytes, end));
        if !whole {
            return None;
        }
        Some(Self {
            system_identifier: SystemIdentifier::new(long(bytes, 0))?,
            catalog_version: number(bytes, 12),
            checkpoint: Lsn::new(long(bytes, 32)),
            redo: Lsn::new(long(bytes, 40)),
            timeline: TimelineId::new(number(bytes, 48))?,
        })
    }
}

/// Reads whose storage it is, of a file that may be being written: the field is the first one and never changes.
pub fn system_identifier(bytes: &[u8]) -> Option<SystemIdentifier> {
    let first: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    SystemIdentifier::new(u64::from_le_bytes(first))
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(number(bytes, at + 4)) << 32 | u64::from(number(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: [(&[u8], &str, u32, &str); 3] = [
        (
            include_bytes!("../../tests/data/pg_control/14.bytes"),
            "7710597789660355314",
            202_107_181,
            "0/18CCB00",
        ),
        (
            include_bytes!("../../tests/data/pg_control/15.bytes"),
            "7710597795210275751",
            202_209_061,
            "0/17414F8",
        ),
        (
            include_bytes!("../../tests/data/pg_control/18.bytes"),
            "7710597077672817665",
            202_506_291,
            "0/16EF458",
        ),
    ];

    #[test]
    fn says_what_pg_controldata_says() {
        for (bytes, system, catalog, checkpoint) in REAL {
            let control = ControlBytes::parse(bytes).unwrap();
            assert_eq!(control.system_identifier.to_string(), system);
            assert_eq!(system_identifier(bytes), Some(control.system_identifier));
            assert_eq!(control.catalog_version, catalog);
            assert_eq!(control.checkpoint.to_string(), checkpoint);
            assert_eq!(control.redo, control.checkpoint);
            assert_eq!(control.timeline.as_u32(), 1);
        }
    }

    #[test]
    fn a_torn_read_is_no_control_file() {
        for (bytes, ..) in REAL {
            for at in [0, 24, 33, 48, 120, 200, 240] {
                let mut torn = bytes.to_vec();
                torn[at] ^= 1;
                assert_eq!(ControlBytes::parse(&torn), None, "byte {at}");
            }
            assert_eq!(ControlBytes::parse(&bytes[..100]), None);
            assert_eq!(ControlBytes::parse(&[0; SIZE]), None);
        }
    }
}
