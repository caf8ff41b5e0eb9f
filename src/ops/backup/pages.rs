//! Pages of a relation that is read while its server writes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use crate::pg::lsn::Lsn;
use crate::pg::page::{BLOCK_SIZE, Page, Verdict};

/// How long a page whose checksum is wrong is given to become right: a write that we saw half is over much sooner.
const PAUSES: [u64; 6] = [0, 1, 4, 16, 64, 200];

/// Checks pages; a wrong one is read again for a while, since we may have seen half of a write. Returns the blocks that stay wrong.
pub(super) fn check_pages(file: &File, bytes: &mut [u8], at: u64, first: u32, start: Lsn) -> Vec<u32> {
    let mut damaged = Vec::new();
    for (index, page) in bytes.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().enumerate() {
        let block = first + u32::try_from(index).expect("a chunk has some pages");
        if Page::new(page).verify(block) == Verdict::Wrong
            && !becomes_right(file, page, at + (index * BLOCK_SIZE) as u64, block, start)
        {
            damaged.push(block);
        }
    }
    damaged
}

/// Reads a page again until its checksum is right.
///
/// One that is still being written after the start of the backup (its bytes change, and its LSN is not before the start) is brought by
/// WAL as a whole, as `verify_page_checksum` in `basebackup.c` has it. One whose bytes stay the same is damaged, whatever its LSN says.
fn becomes_right(file: &File, page: &mut [u8; BLOCK_SIZE], at: u64, block: u32, start: Lsn) -> bool {
    let mut changing = false;
    for pause in PAUSES {
        thread::sleep(Duration::from_millis(pause));
        let mut again = [0; BLOCK_SIZE];
        match fill(file, &mut again, at) {
            // Cut off meanwhile: WAL does the same again.
            Ok(0) => {
                page.fill(0);
                return true;
            }
            Ok(_) => {}
            Err(_) => return false,
        }
        changing = again != *page;
        *page = again;
        if Page::new(page).verify(block) == Verdict::Right {
            return true;
        }
    }
    changing && Page::new(page).lsn() >= start
}

/// Reads until `bytes` is full or the file ends; the rest is zero. Returns how much was read.
pub(super) fn fill(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[read..].fill(0);
    Ok(read)
}
