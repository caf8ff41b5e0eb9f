//! How the bytes of a chunk are stored: compressed by zstd or lz4, or as they are.
//!
//! Both write frames that their own command-line tools read. Which one a chunk has is written beside it (`files.zst`), so that a backup may
//! hold chunks of several.

use std::io::{self, Read as _, Write as _};

use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use crate::topology::model::Codec;

/// Gives chunks their bytes back, one after another.
pub struct Decoder(zstd::bulk::Decompressor<'static>);

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// # Errors
    /// When there is no memory.
    pub fn new() -> io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// Puts the `size` bytes that `stored` holds into `bytes`, in place of what is there.
    ///
    /// # Errors
    /// A fragment that says why they cannot be had: `does not decompress: …`.
    pub fn decode(
        &mut self,
        codec: Codec,
        stored: &[u8],
        size: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), String> {
        bytes.clear();
        let decoded = match codec {
            Codec::Zstd => {
                bytes.reserve(size);
                self.0.decompress_to_buffer(stored, bytes).map(drop)
            }
            Codec::Lz4 => {
                let most = u64::try_from(size).unwrap_or(u64::MAX).saturating_add(1);
                FrameDecoder::new(stored).take(most).read_to_end(bytes).map(drop)
            }
            Codec::None => {
                bytes.extend_from_slice(stored);
                Ok(())
            }
        };
        decoded.map_err(|error| format!("does not decompress: {error}"))?;
        if bytes.len() == size {
            return Ok(());
        }
        Err(format!("holds {} bytes, expected {size}", bytes.len()))
    }
}

/// Makes an LZ4 frame of `bytes` in `frame`, in place of what is there. Blocks that do not shrink are stored in it as they are.
///
/// # Errors
/// Never, but for a broken encoder: it writes into memory.
pub fn lz4_frame(bytes: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
    let info = FrameInfo::new()
        .block_size(BlockSize::Max256KB)
        .content_size(Some(bytes.len() as u64))
        .content_checksum(true);
    frame.clear();
    let mut encoder = FrameEncoder::with_frame_info(info, std::mem::take(frame));
    encoder.write_all(bytes)?;
    *frame = encoder.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_comes_back_and_nothing_else() {
        let bytes = b"select 1; ".repeat(100_000);
        let mut lz4 = vec![7];
        lz4_frame(&bytes, &mut lz4).unwrap();
        assert!(lz4.len() < bytes.len() / 50);
        let zstd = zstd::bulk::compress(&bytes, 3).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let mut found = vec![1];
        for (codec, stored) in [(Codec::Zstd, &zstd), (Codec::Lz4, &lz4), (Codec::None, &bytes)] {
            decoder.decode(codec, stored, bytes.len(), &mut found).unwrap();
            assert!(found == bytes, "{codec:?}");
            for size in [bytes.len() - 1, bytes.len() + 1] {
                assert!(decoder.decode(codec, stored, size, &mut found).is_err(), "{codec:?}");
            }
            if codec != Codec::None {
                let cut = decoder.decode(codec, &stored[..stored.len() - 1], bytes.len(), &mut found);
                assert!(cut.unwrap_err().starts_with("does not decompress"), "{codec:?}");
            }
        }
    }
}
