//! Which second a drill goes to.
//!
//! Decides, never acts. Every second of the window gets a number from the seed and itself, and the smallest wins: the same seed
//! finds the same second again also when the window has grown since, unless one of the new seconds wins.

use jiff::Timestamp;

/// Draws a second between `first` and `last`, both of which can be restored; `None` if no whole second lies there.
pub fn draw(seed: u64, first: Timestamp, last: Timestamp) -> Option<Timestamp> {
    let begin = first.as_second() + i64::from(first.subsec_nanosecond() > 0);
    let second =
        (begin..=last.as_second()).min_by_key(|second| mixed(seed ^ mixed(second.cast_unsigned())))?;
    Some(Timestamp::from_second(second).expect("it lies between two timestamps"))
}

/// The finalizer of SplitMix64: each bit of the input moves half the bits of the output.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_seed_finds_its_second_again_when_the_window_has_grown() {
        let (first, last) = (at("2026-11-20T10:00:00.5Z"), at("2026-11-21T10:00:00.5Z"));
        let drawn = draw(7719, first, last).unwrap();
        assert!(first <= drawn && drawn <= last && drawn.subsec_nanosecond() == 0);
        assert_eq!(draw(7719, first, last), Some(drawn));
        let grown = (0..100)
            .filter(|seed| draw(*seed, first, last) == draw(*seed, first, at("2026-11-21T10:01:00Z")));
        assert!(grown.count() > 95);
    }

    #[test]
    fn seeds_reach_every_second() {
        let (first, last) = (at("2026-11-21T10:00:00Z"), at("2026-11-21T10:00:09.9Z"));
        let drawn: BTreeSet<_> = (0..1000).map(|seed| draw(seed, first, last).unwrap()).collect();
        assert_eq!(drawn.len(), 10);
        assert_eq!((drawn.first(), drawn.last()), (Some(&first), Some(&at("2026-11-21T10:00:09Z"))));
    }

    #[test]
    fn a_window_without_a_whole_second_has_none() {
        assert_eq!(draw(1, at("2026-11-21T10:00:00.1Z"), at("2026-11-21T10:00:00.9Z")), None);
    }
}
