//! Copies a file without its holes: by sharing blocks where the filesystem can
//! (FICLONE), else extent by extent inside the kernel (copy_file_range(2)),
//! else by reading and writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// How much is read at a time where the kernel does not copy.
const CHUNK: usize = 1 << 20;

/// Makes an empty file a copy of another, holes kept.
pub(super) fn copy(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // lseek(2): nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?.min(size);
        copy_extent(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_extent(from: &File, to: &File, mut start: u64, end: u64) -> io::Result<()> {
    while start < end {
        let (mut read_at, mut write_at) = (start, start);
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
            // The file became shorter while it was copied.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => start += count as u64,
            Err(Errno::INTR) => {}
            // Two filesystems that cannot, or a kernel that does not.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return read_and_write(from, to, start, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn read_and_write(from: &File, to: &File, mut start: u64, end: u64) -> io::Result<()> {
    let mut chunk = vec![0u8; CHUNK];
    while start < end {
        let length = usize::try_from(end - start).unwrap_or(CHUNK).min(CHUNK);
        from.read_exact_at(&mut chunk[..length], start)?;
        to.write_all_at(&chunk[..length], start)?;
        start += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sha256;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_same_content_and_still_its_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"middle", (30 << 20) + 17).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(
            Sha256::of_file(&from).unwrap(),
            Sha256::of_file(&to).unwrap()
        );
        // st_blocks counts 512 bytes each (stat(2)); some filesystems round up.
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20);
    }

    #[test]
    fn reading_and_writing_copies_an_extent_exactly() {
        let from = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..CHUNK + 100).map(|index| (index % 251) as u8).collect();
        from.write_all_at(&bytes, 0).unwrap();
        let to = tempfile::tempfile().unwrap();
        read_and_write(&from, &to, 50, bytes.len() as u64).unwrap();
        let mut copied = vec![0u8; bytes.len()];
        to.read_exact_at(&mut copied, 0).unwrap();
        assert_eq!(copied[50..], bytes[50..]);
        assert!(copied[..50].iter().all(|byte| *byte == 0));
    }
}
