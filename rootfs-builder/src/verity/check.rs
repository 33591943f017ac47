//! Checks data against its tree, from the root down, as the kernel does.

use super::{BLOCK, FANOUT, HASH_START, Superblock, SuperblockError, levels};
use crate::digest::Digest;
use std::io::{self, Read};

/// Why data and tree are not what the root hash stands for.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The superblock is not ours.
    #[error("read the hash partition")]
    Superblock(#[from] SuperblockError),
    /// The partitions are smaller than the superblock says.
    #[error("the superblock speaks of {0} blocks, which the partitions do not have")]
    TooSmall(u64),
    /// The top of the tree has another digest.
    #[error("the root hash is {found}, not {expected}")]
    Root {
        /// That of the tree.
        found: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// A block of hashes is not what the level above says.
    #[error("hash block {0} is corrupted")]
    HashBlock(u64),
    /// A block of data is not what the tree says.
    #[error("data block {0} is corrupted")]
    DataBlock(u64),
    /// A call failed.
    #[error("read the disk")]
    Read(#[from] io::Error),
}

/// Checks what `data` yields and the hash partition `area` against `root`;
/// returns the superblock. Numbers of damaged blocks count from the start of
/// their partition.
///
/// # Errors
/// See [`CheckError`]; the first damage that is found.
pub fn check(mut data: impl Read, area: &[u8], root: &Digest) -> Result<Superblock, CheckError> {
    let block: &[u8; BLOCK] = area.first_chunk().ok_or(SuperblockError::Magic)?;
    let superblock = Superblock::from_block(block)?;
    let salt = superblock.salt.as_bytes();
    let too_small = || CheckError::TooSmall(superblock.data_blocks);
    // Each level is smaller than the one below; a tree larger than the disk is
    // not walked.
    if superblock.data_blocks == 0 || superblock.data_blocks / FANOUT > area.len() as u64 {
        return Err(too_small());
    }
    let mut at = HASH_START;
    // What the level above says of this one; the root is a level of one digest.
    let mut digests = root.as_bytes().as_slice();
    let levels = levels(superblock.data_blocks);
    for (depth, count) in levels.iter().rev().enumerate() {
        let start = usize::try_from(at).map_err(|_| too_small())? * BLOCK;
        let length = usize::try_from(*count).map_err(|_| too_small())? * BLOCK;
        let level = area.get(start..start + length).ok_or_else(too_small)?;
        for (number, (block, digest)) in
            (at..).zip(level.chunks_exact(BLOCK).zip(digests.chunks_exact(32)))
        {
            let found = Digest::of_both(salt, block);
            if found.as_bytes() != digest {
                return Err(if depth == 0 {
                    CheckError::Root {
                        found,
                        expected: *root,
                    }
                } else {
                    CheckError::HashBlock(number)
                });
            }
        }
        digests = level;
        at += count;
    }
    let mut block = [0; BLOCK];
    for (number, digest) in (0..superblock.data_blocks).zip(digests.chunks_exact(32)) {
        data.read_exact(&mut block)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => too_small(),
                _ => CheckError::Read(error),
            })?;
        if Digest::of_both(salt, &block).as_bytes() != digest {
            return Err(CheckError::DataBlock(number));
        }
    }
    Ok(superblock)
}
