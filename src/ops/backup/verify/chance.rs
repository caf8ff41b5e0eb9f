//! What is read where not everything is: chosen by chance, and the same again with the same seed.

/// So many chunks of each backup are read when they are chosen by chance, and so many WAL files of each system identifier.
const SAMPLE: usize = 32;
/// And so much of all of them.
const SHARE: usize = 100;

/// Numbers by chance that a seed repeats: SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) struct Chance(u64);

impl Chance {
    /// Begins for one purpose, so that what is chosen for it does not depend on what was chosen before.
    pub(super) fn new(seed: u64, purpose: &str) -> Self {
        let hash = purpose.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        Self(seed ^ hash)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Chooses [`SAMPLE`] and a [`SHARE`]th of `count` numbers below it, in order.
    pub(super) fn pick(&mut self, count: usize) -> Vec<usize> {
        let wanted = (SAMPLE + count / SHARE).min(count);
        let mut all: Vec<usize> = (0..count).collect();
        for at in 0..wanted {
            let left = (count - at) as u64;
            let other = at + usize::try_from(self.next() % left).unwrap_or(0);
            all.swap(at, other);
        }
        all.truncate(wanted);
        all.sort_unstable();
        all
    }
}
