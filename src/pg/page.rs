//! The header and the checksum of a data page.
//!
//! Mirrors `bufpage.h` and `checksum_impl.h`. Fields are in the byte order of the machine that wrote them: little-endian on every one that
//! pgherd runs on.

use super::lsn::Lsn;

/// `BLCKSZ` as every package builds it; pg_control says what a cluster has.
pub const BLOCK_SIZE: usize = 8192;

/// One page as it was read.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a>(&'a [u8; BLOCK_SIZE]);

/// What the checksum of a page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The checksum fits, or the page was never written: all its bytes are zero.
    Right,
    Wrong,
}

const SUMS: usize = 32;
const ROW: usize = SUMS * 4;
const FNV_PRIME: u32 = 16_777_619;
const BASE: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

impl<'a> Page<'a> {
    pub const fn new(bytes: &'a [u8; BLOCK_SIZE]) -> Self {
        Self(bytes)
    }

    /// Returns `pd_lsn`: where the record ends that changed the page last.
    pub fn lsn(self) -> Lsn {
        let half = |at: usize| u64::from(u32::from_le_bytes(word(&self.0[at..])));
        Lsn::new(half(0) << 32 | half(4))
    }

    /// Returns `pd_checksum`.
    pub fn stored_checksum(self) -> u16 {
        u16::from_le_bytes([self.0[8], self.0[9]])
    }

    /// Computes the checksum that the page should have as block number `block` of its relation, counted over all its segments.
    ///
    /// Mirrors `pg_checksum_page`.
    pub fn checksum(self, block: u32) -> u16 {
        let mut sums = BASE;
        for (index, row) in self.0.chunks_exact(ROW).enumerate() {
            let row: &[u8; ROW] = row.try_into().expect("chunks_exact");
            let mut words = words(row);
            if index == 0 {
                // pd_checksum itself counts as zero.
                words[2] &= 0xFFFF_0000;
            }
            mix(&mut sums, &words);
        }
        mix(&mut sums, &[0; SUMS]);
        mix(&mut sums, &[0; SUMS]);
        let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
        u16::try_from(folded % 65_535 + 1).expect("at most 65535")
    }

    /// Checks the page as block number `block` of its relation.
    ///
    /// Mirrors `PageIsVerified`: a page whose `pd_upper` is 0 was never written, and then all of it must be zero.
    pub fn verify(self, block: u32) -> Verdict {
        let is_new = self.0[14] == 0 && self.0[15] == 0;
        let right = if is_new { self.is_zero() } else { self.stored_checksum() == self.checksum(block) };
        if right { Verdict::Right } else { Verdict::Wrong }
    }

    /// Tells whether every byte is zero.
    pub fn is_zero(self) -> bool {
        is_zero(self.0)
    }
}

/// Tells whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // What is not zero mostly shows at once; the rest is folded without a branch, so that it is as fast as memory.
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|byte| *byte == 0)
        && rest.chunks(1024).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

fn word(bytes: &[u8]) -> [u8; 4] {
    [bytes[0], bytes[1], bytes[2], bytes[3]]
}

fn words(row: &[u8; ROW]) -> [u32; SUMS] {
    let mut words = [0; SUMS];
    for (word, bytes) in words.iter_mut().zip(row.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// One round of the 32 parallel sums (`CHECKSUM_COMP`).
#[inline(always)]
fn mix(sums: &mut [u32; SUMS], words: &[u32; SUMS]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Block 0 of pg_authid of a new cluster of PostgreSQL 18.
    const REAL: &[u8; BLOCK_SIZE] = include_bytes!("../../tests/data/pages/18-block-0.page");

    #[test]
    fn the_checksum_of_a_real_page_is_the_one_that_the_server_wrote() {
        let page = Page::new(REAL);
        assert_eq!(page.checksum(0), page.stored_checksum());
        assert_eq!(page.verify(0), Verdict::Right);
        assert!(page.lsn() > Lsn::new(0));
    }

    #[test]
    fn a_page_in_the_wrong_place_is_wrong() {
        assert_eq!(Page::new(REAL).verify(1), Verdict::Wrong);
        assert_eq!(Page::new(REAL).verify(131_072), Verdict::Wrong);
    }

    #[test]
    fn every_changed_byte_of_a_page_is_seen() {
        for at in 0..BLOCK_SIZE {
            let mut page = *REAL;
            page[at] ^= 0x10;
            assert_eq!(Page::new(&page).verify(0), Verdict::Wrong, "byte {at}");
        }
    }

    #[test]
    fn an_empty_page_is_right_only_if_all_of_it_is_empty() {
        let mut page = [0; BLOCK_SIZE];
        assert_eq!(Page::new(&page).verify(7), Verdict::Right);
        page[BLOCK_SIZE - 1] = 1;
        assert_eq!(Page::new(&page).verify(7), Verdict::Wrong);
    }
}
