//! How large a file system for a tree must be.

use super::BLOCK;
use std::fs;
use std::io;
use std::path::Path;

/// Inodes that are not the tree's: the ten reserved ones, lost+found, and some
/// room for rounding.
const OWN_INODES: u64 = 32;
/// Blocks for superblock, descriptors, bitmaps, lost+found.
const OWN_BLOCKS: u64 = 128;
/// In bytes.
const INODE: u64 = 256;

/// What mke2fs is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needed {
    /// Of 4096 bytes.
    pub(super) blocks: u64,
    /// All of them.
    pub(super) inodes: u64,
}

/// Enough for the tree, and little more.
pub(super) fn of_tree(root: &Path) -> io::Result<Needed> {
    let (mut blocks, mut inodes) = (OWN_BLOCKS, OWN_INODES);
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        // An entry has 8 bytes and a name of at most 255, padded to four; none
        // spans two blocks.
        let mut entries = 2;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            entries += 1;
            inodes += 1;
            let metadata = entry.path().symlink_metadata()?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else {
                // An extent's block for each 128 MiB that are not in one piece.
                let data = metadata.len().div_ceil(BLOCK);
                blocks += data + data / (128 << 8) + 1;
            }
        }
        blocks += 1 + (entries * (8 + 256_u64)).div_ceil(BLOCK);
    }
    blocks += (inodes * INODE).div_ceil(BLOCK) + 8;
    // Each group of 32768 blocks has bitmaps of its own.
    blocks += blocks / 1000 * 4;
    Ok(Needed { blocks, inodes })
}
