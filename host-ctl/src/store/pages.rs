//! The digest of a guest's memory file, at a cost of the pages it touched.
//!
//! SHA-256 over the length of the file and, in order, the index and content of
//! every 4 KiB page that is not all zero. A hole and a page of zeros are the
//! same memory to a guest, so they are the same to the digest: a copy that
//! fills holes, or makes some, still verifies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::Digest;

use super::Sha256;

/// Size of a page on every machine we run on (x86-64).
const PAGE: usize = 4096;
/// How much is read at a time; whole pages.
const CHUNK: usize = 256 * PAGE;

/// What was found in a memory file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pages {
    /// The digest described above.
    pub(super) sha256: Sha256,
    /// Bytes in pages that are not all zero.
    pub(super) touched: u64,
}

impl Pages {
    /// Reads the parts of a file that are not holes.
    pub(super) fn of_file(file: &File) -> io::Result<Pages> {
        let size = file.metadata()?.len();
        let mut hasher = sha2::Sha256::new();
        hasher.update(size.to_le_bytes());
        let mut touched = 0;
        let mut chunk = vec![0u8; CHUNK];
        let mut at = 0;
        while let Some((start, end)) = next_data(file, at, size)? {
            at = start;
            while at < end {
                let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                read_padded(file, &mut chunk[..wanted.next_multiple_of(PAGE)], at, size)?;
                for page in chunk[..wanted.next_multiple_of(PAGE)].chunks(PAGE) {
                    if page.iter().any(|byte| *byte != 0) {
                        hasher.update((at / PAGE as u64).to_le_bytes());
                        hasher.update(page);
                        touched += PAGE as u64;
                    }
                    at += PAGE as u64;
                }
            }
        }
        Ok(Pages {
            sha256: Sha256::from_hash(&hasher.finalize()),
            touched,
        })
    }
}

/// The next stretch of data at or after a page boundary, widened to whole
/// pages; `None` when only holes are left.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // lseek(2): nothing but a hole up to the end.
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?.min(size);
    let page = PAGE as u64;
    Ok(Some((start / page * page, end.next_multiple_of(page))))
}

/// Fills a buffer of whole pages; what lies behind the end of the file is zero.
fn read_padded(file: &File, buffer: &mut [u8], at: u64, size: u64) -> io::Result<()> {
    let there = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
    let (data, padding) = buffer.split_at_mut(there.min(buffer.len()));
    padding.fill(0);
    file.read_exact_at(data, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A file of `pages` pages with the given ones written.
    fn file(pages: u64, written: &BTreeMap<u64, u8>) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE as u64).unwrap();
        for (page, byte) in written {
            file.write_all_at(&[*byte; PAGE], page * PAGE as u64)
                .unwrap();
        }
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn holes_and_zeros_are_the_same_and_all_else_differs(
            written in proptest::collection::btree_map(0u64..600, 0u8..3, 0..20),
            changed in 0u64..600,
        ) {
            let sparse: BTreeMap<u64, u8> =
                written.iter().filter(|(_, byte)| **byte != 0).map(|(p, b)| (*p, *b)).collect();
            let found = Pages::of_file(&file(600, &written)).unwrap();
            prop_assert_eq!(&found, &Pages::of_file(&file(600, &sparse)).unwrap());
            prop_assert_eq!(found.touched, sparse.len() as u64 * PAGE as u64);
            let longer = Pages::of_file(&file(601, &sparse)).unwrap();
            prop_assert_ne!(&found.sha256, &longer.sha256);
            let mut other = sparse.clone();
            other.insert(changed, sparse.get(&changed).copied().unwrap_or(0) + 1);
            let other = Pages::of_file(&file(600, &other)).unwrap();
            prop_assert_ne!(&found.sha256, &other.sha256);
        }
    }

    #[test]
    fn a_file_that_ends_within_a_page_is_hashed_whole() {
        let first = tempfile::tempfile().unwrap();
        first.write_all_at(b"abc", 0).unwrap();
        let second = tempfile::tempfile().unwrap();
        second.write_all_at(b"abd", 0).unwrap();
        let [first, second] = [first, second].map(|file| Pages::of_file(&file).unwrap());
        assert_eq!(first.touched, PAGE as u64);
        assert_ne!(first.sha256, second.sha256);
    }
}
