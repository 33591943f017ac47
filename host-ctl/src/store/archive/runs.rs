//! A file as runs: a byte that says what follows, 1 for bytes and 0 for a hole,
//! then how many (eight bytes, the highest first), then the bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// How much is looked at at once: what is zero in all of it becomes a hole.
const BLOCK: usize = 64 << 10;
const HOLE: u8 = 0;
const BYTES: u8 = 1;

/// Writes `size` bytes of a file.
pub(super) fn write(file: &File, size: u64, out: &mut impl Write) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let (mut at, mut hole) = (0, 0);
    while at < size {
        let length = usize::try_from(size - at).unwrap_or(BLOCK).min(BLOCK);
        let bytes = &mut block[..length];
        file.read_exact_at(bytes, at)?;
        at += bytes.len() as u64;
        if bytes.iter().all(|byte| *byte == 0) {
            hole += bytes.len() as u64;
            continue;
        }
        put(out, HOLE, std::mem::take(&mut hole))?;
        put(out, BYTES, bytes.len() as u64)?;
        out.write_all(bytes)?;
    }
    put(out, HOLE, hole)
}

fn put(out: &mut impl Write, kind: u8, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    out.write_all(&[kind])?;
    out.write_all(&length.to_be_bytes())
}

/// Reads a file of `size` bytes into an empty one. `None` when the runs are not
/// those of such a file: no more than `size` bytes were written then.
pub(super) fn read(input: &mut impl Read, size: u64, file: &File) -> io::Result<Option<()>> {
    file.set_len(size)?;
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < size {
        let mut head = [0; 9];
        input.read_exact(&mut head)?;
        let mut length = [0; 8];
        length.copy_from_slice(&head[1..]);
        let length = u64::from_be_bytes(length);
        if length == 0 || length > size - at {
            return Ok(None);
        }
        match head[0] {
            HOLE => at += length,
            BYTES => {
                let end = at + length;
                while at < end {
                    let most = usize::try_from(end - at).unwrap_or(BLOCK).min(BLOCK);
                    let bytes = &mut block[..most];
                    input.read_exact(bytes)?;
                    file.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(()))
}
