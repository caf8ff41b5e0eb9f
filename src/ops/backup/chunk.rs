//! A chunk: bytes of files as one frame of zstd or LZ4, or as they are.

use std::io;

use crate::pg::page::is_zero;
use crate::repo::codec;
use crate::topology::model::Compression;

/// Runs of zeros shorter than this are compressed: each hole costs a part in the list.
const HOLE: usize = 64 << 10;
const BLOCK: usize = 8 << 10;
/// A chunk that shrinks by less than a 32nd is stored as it is.
const WORTH: usize = 32;
/// How much is tried before a chunk is compressed whole, while the chunks before it did not shrink.
const SAMPLE: usize = 32 << 10;
/// The most that a block of zstd may hold (RFC 8878 §3.1.1.2.4).
const RAW_BLOCK: usize = 128 << 10;

/// Makes frames, one after another.
#[derive(Debug)]
pub(super) enum Frames {
    Zstd(ZstdFrames),
    Lz4,
    None,
}

impl Frames {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd { level } => Self::Zstd(ZstdFrames::new(level)?),
            Compression::Lz4 {} => Self::Lz4,
            Compression::None {} => Self::None,
        })
    }

    /// Puts `bytes` into `frame` as they are stored, in place of what is there.
    ///
    /// # Errors
    /// For want of memory.
    pub(super) fn frame(&mut self, bytes: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Zstd(frames) => frames.frame(bytes, frame),
            Self::Lz4 => codec::lz4_frame(bytes, frame),
            Self::None => {
                frame.clear();
                frame.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// Makes frames of zstd.
pub(super) struct ZstdFrames {
    compressor: zstd::bulk::Compressor<'static>,
    probe: zstd::bulk::Compressor<'static>,
    probed: Vec<u8>,
    /// Whether the chunk before did not shrink.
    doubt: bool,
}

impl std::fmt::Debug for ZstdFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdFrames").field("doubt", &self.doubt).finish_non_exhaustive()
    }
}

impl ZstdFrames {
    fn new(level: i32) -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        compressor.include_checksum(true)?;
        let probe = zstd::bulk::Compressor::new(1)?;
        let probed = Vec::with_capacity(zstd::zstd_safe::compress_bound(SAMPLE));
        Ok(Self { compressor, probe, probed, doubt: false })
    }

    /// Makes a frame of `bytes` in `frame`, in place of what is there.
    ///
    /// # Errors
    /// When zstd fails, which it does for want of memory only.
    fn frame(&mut self, bytes: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        if self.doubt && !self.seems_to_shrink(bytes)? {
            raw(bytes, frame);
            return Ok(());
        }
        frame.clear();
        frame.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
        self.compressor.compress_to_buffer(bytes, frame)?;
        self.doubt = frame.len() + bytes.len() / WORTH > bytes.len();
        if self.doubt {
            raw(bytes, frame);
        }
        Ok(())
    }

    /// Compresses three samples quickly.
    fn seems_to_shrink(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let (mut before, mut after) = (0, 0);
        let step = bytes.len() / 3;
        for at in [0, step, 2 * step] {
            let sample = &bytes[at..bytes.len().min(at + SAMPLE)];
            self.probed.clear();
            self.probed.reserve(zstd::zstd_safe::compress_bound(sample.len()));
            after += self.probe.compress_to_buffer(sample, &mut self.probed)?;
            before += sample.len();
        }
        Ok(after + before / WORTH <= before)
    }
}

/// Makes a frame of raw blocks (RFC 8878 §3.1.1): magic, a descriptor that says "single segment, content size in 4 bytes", the size, blocks.
fn raw(bytes: &[u8], frame: &mut Vec<u8>) {
    const MAGIC: u32 = 0xFD2F_B528;
    const DESCRIPTOR: u8 = 0b1010_0000;
    let size = u32::try_from(bytes.len()).expect("a chunk holds some MiB");
    frame.clear();
    frame.reserve(bytes.len() + 16 + 3 * bytes.len() / RAW_BLOCK);
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.push(DESCRIPTOR);
    frame.extend_from_slice(&size.to_le_bytes());
    let mut blocks = bytes.chunks(RAW_BLOCK).peekable();
    if bytes.is_empty() {
        frame.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let length = u32::try_from(block.len()).expect("at most 128 KiB");
        let header = length << 3 | u32::from(blocks.peek().is_none());
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
}

/// Finds what of `bytes` is worth storing: `(at, length)` of each run between long runs of zeros.
pub(super) fn runs(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut begin = 0;
    let mut zeros_from = None;
    for at in (0..bytes.len()).step_by(BLOCK) {
        let block = &bytes[at..bytes.len().min(at + BLOCK)];
        match (is_zero(block), zeros_from) {
            (true, None) => zeros_from = Some(at),
            (false, Some(from)) => {
                if at - from >= HOLE || from == 0 {
                    runs.push((begin, from - begin));
                    begin = at;
                }
                zeros_from = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
    let end = match zeros_from {
        Some(from) if bytes.len() - from >= HOLE || from == begin => from,
        Some(_) | None => bytes.len(),
    };
    runs.push((begin, end - begin));
    runs.retain(|(_, length)| *length > 0);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn what_does_not_shrink_is_a_frame_of_raw_blocks_that_zstd_reads() {
        for length in [1, 100, RAW_BLOCK - 1, RAW_BLOCK, RAW_BLOCK + 1, 1 << 20] {
            let bytes = noise(length);
            let mut frame = Vec::new();
            raw(&bytes, &mut frame);
            assert!(frame.len() <= length + 16 + 3 * (length / RAW_BLOCK + 1));
            assert_eq!(zstd::decode_all(frame.as_slice()).unwrap(), bytes);
            assert_eq!(zstd::bulk::decompress(&frame, length).unwrap(), bytes);
        }
        let mut frame = vec![1];
        raw(&[], &mut frame);
        assert!(zstd::decode_all(frame.as_slice()).unwrap().is_empty());
    }

    #[test]
    fn noise_is_noticed_and_text_after_it_is_compressed_again() {
        let mut frames = ZstdFrames::new(3).unwrap();
        let (noise, text) = (noise(1 << 20), b"select 1; ".repeat(100_000));
        let mut frame = Vec::new();
        let mut made = |bytes: &[u8]| {
            frames.frame(bytes, &mut frame).unwrap();
            assert_eq!(zstd::decode_all(frame.as_slice()).unwrap(), bytes);
            (frame.len(), frames.doubt)
        };
        for _ in 0..3 {
            let (length, doubt) = made(&noise);
            assert!(length < noise.len() + 64 && doubt);
        }
        let (length, doubt) = made(&text);
        assert!(length < text.len() / 10 && !doubt);
    }

    #[test]
    fn long_runs_of_zeros_are_holes() {
        let mut bytes = vec![1; 1 << 20];
        assert_eq!(runs(&bytes), [(0, 1 << 20)]);
        bytes[256 << 10..512 << 10].fill(0);
        assert_eq!(runs(&bytes), [(0, 256 << 10), (512 << 10, 512 << 10)]);
        bytes[768 << 10..].fill(0);
        assert_eq!(runs(&bytes), [(0, 256 << 10), (512 << 10, 256 << 10)]);
        bytes[..256 << 10].fill(0);
        assert_eq!(runs(&bytes), [(512 << 10, 256 << 10)]);
        bytes.fill(0);
        assert_eq!(runs(&bytes), []);
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[0; 100]), []);
    }

    #[test]
    fn a_single_empty_page_is_no_hole() {
        let mut bytes = vec![1; 128 << 10];
        bytes[8 << 10..16 << 10].fill(0);
        assert_eq!(runs(&bytes), [(0, 128 << 10)]);
    }
}
