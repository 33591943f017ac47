//! dm-verity's hash tree: what the kernel checks each block of a disk against.
//!
//! The tree is as the kernel's Documentation/admin-guide/device-mapper/verity.rst
//! has it (version 1: the salt comes first), with SHA-256 and blocks of 4096
//! bytes. Before it lies the superblock of cryptsetup's veritysetup(8), which
//! the kernel does not read, but other tools do.

mod check;
mod superblock;

use crate::digest::Digest;
use std::io::{self, Read};

pub use check::{CheckError, check};
pub use superblock::{Superblock, SuperblockError};

/// Of data and of hashes, in bytes.
pub const BLOCK: usize = 4096;
/// Where the tree starts, in blocks: after the superblock's.
pub const HASH_START: u64 = 1;
/// How many digests a block holds.
const FANOUT: u64 = (BLOCK / 32) as u64;

/// A tree with its superblock, as it lies on the disk.
#[derive(Clone, Debug)]
pub struct Tree {
    /// What the kernel is told, and all that has to be trusted.
    pub root: Digest,
    /// Superblock and levels: whole blocks.
    pub area: Vec<u8>,
}

/// How many blocks each level has, from the one above the data to the top. None
/// if there is one block of data: its digest is the root.
#[must_use]
pub fn levels(data_blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(FANOUT);
        levels.push(below);
    }
    levels
}

/// How many blocks superblock and tree take.
#[must_use]
pub fn area_blocks(data_blocks: u64) -> u64 {
    HASH_START + levels(data_blocks).iter().sum::<u64>()
}

/// Builds the tree over what `data` yields, which must be `data_blocks` blocks.
///
/// # Errors
/// Those of reading; [`io::ErrorKind::UnexpectedEof`] if there is less, and
/// [`io::ErrorKind::InvalidInput`] if nothing is asked for.
pub fn build(mut data: impl Read, superblock: &Superblock) -> io::Result<Tree> {
    let salt = superblock.salt.as_bytes();
    if superblock.data_blocks == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut block = [0; BLOCK];
    let mut digests = Vec::new();
    for _ in 0..superblock.data_blocks {
        data.read_exact(&mut block)?;
        digests.extend_from_slice(Digest::of_both(salt, &block).as_bytes());
    }
    let mut levels = Vec::new();
    while digests.len() > 32 {
        digests.resize(digests.len().next_multiple_of(BLOCK), 0);
        let above = digests
            .chunks_exact(BLOCK)
            .flat_map(|block| *Digest::of_both(salt, block).as_bytes())
            .collect();
        levels.push(std::mem::replace(&mut digests, above));
    }
    let mut root = [0; 32];
    root.copy_from_slice(&digests);
    let mut area = superblock.to_block().to_vec();
    // The top lies first.
    area.extend(levels.into_iter().rev().flatten());
    Ok(Tree {
        root: Digest::from_bytes(root),
        area,
    })
}

#[cfg(test)]
mod tests;
