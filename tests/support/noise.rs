//! Bytes for tests of what is stored.

/// Bytes that neither compress nor repeat.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}
