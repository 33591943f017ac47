//! Sets owner and times of every inode of an ext4 file system that has just
//! been made: Documentation/filesystems/ext4 of the kernel has the layout.

use super::BLOCK;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// Feature bits with which an inode cannot be changed by itself: checksums of
/// metadata (read-only compatible), and descriptors of another size
/// (incompatible).
const METADATA_CSUM: u32 = 0x400;
const WIDE_DESCRIPTORS: u32 = 0x80;
const INODE: usize = 256;
const DESCRIPTOR: u64 = 32;

/// A file system that is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A field has another value.
    #[error("mke2fs made a file system with an odd {0}")]
    Odd(&'static str),
    /// A call failed.
    #[error("{0}")]
    Call(&'static str, #[source] io::Error),
}

struct Superblock([u8; 1024]);

impl Superblock {
    fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

/// Root owns everything, and everything has one time.
pub(super) fn settle(file: &File, time: u32) -> Result<(), LayoutError> {
    let mut superblock = Superblock([0; 1024]);
    read(file, &mut superblock.0, SUPERBLOCK)?;
    let expect = |what, right| {
        if right {
            Ok(())
        } else {
            Err(LayoutError::Odd(what))
        }
    };
    expect("magic number", superblock.half(56) == MAGIC)?;
    expect("block size", superblock.word(24) == 2)?;
    expect("inode size", superblock.half(88) == 256)?;
    expect(
        "set of features",
        superblock.word(100) & METADATA_CSUM == 0 && superblock.word(96) & WIDE_DESCRIPTORS == 0,
    )?;
    let inodes_per_group = superblock.word(40);
    expect("count of inodes", inodes_per_group > 0)?;
    let groups = superblock.word(0) / inodes_per_group;
    // The descriptors lie in the block after the superblock's.
    for group in 0..u64::from(groups) {
        let mut table = [0; 4];
        read(file, &mut table, BLOCK + group * DESCRIPTOR + 8)?;
        let start = u64::from(u32::from_le_bytes(table)) * BLOCK;
        for index in 0..u64::from(inodes_per_group) {
            let at = start + index * INODE as u64;
            let mut inode = [0; INODE];
            read(file, &mut inode, at)?;
            // One that is not used, in a table of zeros.
            if inode == [0; INODE] {
                continue;
            }
            settle_inode(&mut inode, time);
            file.write_all_at(&inode, at)
                .map_err(|source| LayoutError::Call("write an inode", source))?;
        }
    }
    Ok(())
}

/// The fields of `struct ext4_inode`.
fn settle_inode(inode: &mut [u8; INODE], time: u32) {
    let mut set = |at: usize, value: u32| {
        inode[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    // Access, change, modification, creation.
    for at in [8, 12, 16, 144] {
        set(at, time);
    }
    // Their halves of less than a second. The lowest two bits are counted in
    // spans of 2^32 seconds, from a time that has a sign.
    let span = u32::from(time > i32::MAX.unsigned_abs());
    for at in [132, 136, 140, 148] {
        set(at, span);
    }
    // The low and the high halves of user and group.
    for at in [2, 24, 120, 122] {
        inode[at..at + 2].fill(0);
    }
}

fn read(file: &File, bytes: &mut [u8], at: u64) -> Result<(), LayoutError> {
    file.read_exact_at(bytes, at)
        .map_err(|source| LayoutError::Call("read the file system", source))
}
