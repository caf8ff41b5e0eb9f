//! Damage behind a repository's back: single bits flipped at random places, as a failing disk does it.

use crate::kept::Kept;

/// A bit of an object; flipped once it is damaged, twice it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flip {
    pub object: String,
    pub bit: u64,
}

impl Flip {
    /// Chooses one by chance: every other time any object is as likely as any other, else any bit.
    pub fn choose(kept: &Kept, chance: &mut Chance) -> Self {
        let objects: Vec<(String, u64)> = kept.objects().into_iter().filter(|(_, size)| *size > 0).collect();
        assert!(!objects.is_empty(), "nothing is in {kept:?}");
        let index = if chance.below(2) == 0 {
            usize::try_from(chance.below(objects.len() as u64)).expect("an index")
        } else {
            let total = objects.iter().map(|(_, size)| size).sum();
            let mut at = chance.below(total);
            let holds = |(_, size): &(String, u64)| {
                let found = at < *size;
                at = at.saturating_sub(*size);
                found
            };
            objects.iter().position(holds).expect("a byte of some object")
        };
        let (object, size) = objects[index].clone();
        Self { object, bit: chance.below(size * 8) }
    }

    /// Flips the bit in place; the second time takes it back.
    pub fn flip(&self, kept: &Kept) {
        let mut bytes = kept.read(&self.object);
        bytes[usize::try_from(self.bit / 8).expect("an index")] ^= 1 << (self.bit % 8);
        kept.write(&self.object, &bytes);
    }
}

/// Numbers by chance that a seed repeats; the seed is printed, and taken from `PGHERD_SEED` if that is set.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(what: &str) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let given = std::env::var("PGHERD_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(now.subsec_nanos()));
        eprintln!("{what}: PGHERD_SEED={seed}");
        Self(seed)
    }

    /// Returns a number below `limit`: SplitMix64.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// Returns how often something is tried: more in a soak.
pub fn count(sample: usize, soak: usize) -> usize {
    if std::env::var_os("PGHERD_SOAK").is_some() { soak } else { sample }
}
