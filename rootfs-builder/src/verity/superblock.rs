//! veritysetup's superblock: `struct verity_sb` of cryptsetup's
//! lib/verity/verity.c.

use super::BLOCK;
use crate::digest::Digest;
use crate::uuid::Uuid;

const MAGIC: &[u8; 8] = b"verity\0\0";
/// Of superblock and of hashes: both 1, the normal ones.
const VERSION: u32 = 1;
const ALGORITHM: &[u8; 32] = b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What it says, of the kind that we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Of the hash device.
    pub uuid: Uuid,
    /// What the tree covers, in blocks.
    pub data_blocks: u64,
    /// What each digest starts with.
    pub salt: Digest,
}

/// Bytes that are no superblock, or one of another kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// No superblock at all.
    #[error("there is no dm-verity superblock")]
    Magic,
    /// One that we do not write.
    #[error("the dm-verity superblock has another {0} than we write")]
    Kind(&'static str),
}

impl Superblock {
    /// The block in which it lies.
    #[must_use]
    pub fn to_block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let size = (BLOCK as u32).to_le_bytes();
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &VERSION.to_le_bytes());
        put(16, &self.uuid.to_bytes());
        put(32, ALGORITHM);
        put(64, &size);
        put(68, &size);
        put(72, &self.data_blocks.to_le_bytes());
        put(80, &32_u16.to_le_bytes());
        put(88, self.salt.as_bytes());
        block
    }

    /// Reads it.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn from_block(block: &[u8; BLOCK]) -> Result<Self, SuperblockError> {
        if !block.starts_with(MAGIC) {
            return Err(SuperblockError::Magic);
        }
        let word = |at: usize| [block[at], block[at + 1], block[at + 2], block[at + 3]];
        let expect = |what, right| {
            if right {
                Ok(())
            } else {
                Err(SuperblockError::Kind(what))
            }
        };
        let version = VERSION.to_le_bytes();
        expect("version", word(8) == version && word(12) == version)?;
        expect("algorithm", block[32..64] == ALGORITHM[..])?;
        let size = (BLOCK as u32).to_le_bytes();
        expect("block size", word(64) == size && word(68) == size)?;
        expect("salt size", block[80..82] == 32_u16.to_le_bytes())?;
        let (mut blocks, mut salt, mut uuid) = ([0; 8], [0; 32], [0; 16]);
        blocks.copy_from_slice(&block[72..80]);
        salt.copy_from_slice(&block[88..120]);
        uuid.copy_from_slice(&block[16..32]);
        Ok(Self {
            uuid: Uuid::new(u128::from_be_bytes(uuid)),
            data_blocks: u64::from_le_bytes(blocks),
            salt: Digest::from_bytes(salt),
        })
    }
}
