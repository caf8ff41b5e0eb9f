//! Damage behind a repository's back: single bits flipped at random places, as a failing disk does it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A bit of a file; flipped once it is damaged, twice it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flip {
    pub file: PathBuf,
    pub bit: u64,
}

impl Flip {
    /// Chooses one below `root` by chance: every other time any file is as likely as any other, else any bit. Hidden files are no objects.
    pub fn choose(root: &Path, chance: &mut Chance) -> Self {
        let files: Vec<(PathBuf, u64)> = objects(root).into_iter().filter(|(_, size)| *size > 0).collect();
        assert!(!files.is_empty(), "nothing below {}", root.display());
        let index = if chance.below(2) == 0 {
            usize::try_from(chance.below(files.len() as u64)).expect("an index")
        } else {
            let total = files.iter().map(|(_, size)| size).sum();
            let mut at = chance.below(total);
            let holds = |(_, size): &(PathBuf, u64)| {
                let found = at < *size;
                at = at.saturating_sub(*size);
                found
            };
            files.iter().position(holds).expect("a byte of some file")
        };
        let (file, size) = files[index].clone();
        Self { file, bit: chance.below(size * 8) }
    }

    /// Flips the bit in place; the second time takes it back.
    pub fn flip(&self) {
        let file = OpenOptions::new().read(true).write(true).open(&self.file).expect("an object");
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.bit / 8).expect("a byte of it");
        byte[0] ^= 1 << (self.bit % 8);
        file.write_all_at(&byte, self.bit / 8).expect("a byte of it");
    }
}

/// Returns every object below `root` with its size, sorted.
pub fn objects(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable") {
            let entry = entry.expect("readable");
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let meta = entry.metadata().expect("readable");
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort();
    found
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
