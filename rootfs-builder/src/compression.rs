//! How an image's bytes are packed.

use flate2::read::GzDecoder;
use flate2::{Compression as Level, GzBuilder};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The packing of an initrd, or of the files in an EROFS image.
///
/// `None` boots quickest, by a little: inflating 6 MB took an emulated guest
/// 100 million instructions, or 0.03 to 0.1 s of 1.5 s to PID 1. The others are
/// for where the file's size matters more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// RFC 1952, without name and time.
    Gzip,
    /// LZ4; for an initrd its legacy format, the only one the kernel unpacks
    /// (lib/decompress_unlz4.c).
    Lz4,
    /// RFC 8878, level 19.
    Zstd,
}

/// The first bytes of a gzip file (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Of the legacy LZ4 format (lz4_Frame_format.md, "Legacy frame").
const LZ4_MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// What each of its blocks unpacks to, but for the last.
const LZ4_BLOCK: usize = 8 << 20;
/// Of a Zstandard frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// The kernel unpacks windows of up to 128 MiB (ZSTD_WINDOWSIZE_MAX of
/// lib/decompress_unzstd.c); this level takes 8 MiB.
const ZSTD_LEVEL: i32 = 19;

impl Compression {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Gzip, Self::Lz4, Self::Zstd];

    /// What `bytes` are packed with, by their first bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if bytes.starts_with(&LZ4_MAGIC) {
            Self::Lz4
        } else if bytes.starts_with(&ZSTD_MAGIC) {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// Packs `bytes`; the result depends on nothing else but the packer's
    /// version.
    ///
    /// # Errors
    /// Those of the packer; packing goes to memory.
    pub fn pack(self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(bytes),
            Self::Gzip => {
                let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Level::best());
                packer.write_all(&bytes)?;
                packer.finish()
            }
            Self::Lz4 => pack_lz4(&bytes),
            Self::Zstd => zstd::bulk::compress(&bytes, ZSTD_LEVEL),
        }
    }

    /// Unpacks `bytes` into at most `limit` bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] beyond the limit, before it is
    /// allocated; [`io::ErrorKind::InvalidInput`] and the like for a damaged
    /// stream.
    pub fn unpack(self, bytes: Vec<u8>, limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(bytes),
            Self::Gzip => read_limited(GzDecoder::new(bytes.as_slice()), limit),
            Self::Lz4 => unpack_lz4(&bytes, limit),
            Self::Zstd => read_limited(zstd::stream::read::Decoder::new(bytes.as_slice())?, limit),
        }
    }
}

fn read_limited(from: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(unpacked)
}

fn pack_lz4(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = LZ4_MAGIC.to_vec();
    for block in bytes.chunks(LZ4_BLOCK) {
        let block = lz4_flex::block::compress(block);
        let length = u32::try_from(block.len()).map_err(io::Error::other)?;
        packed.extend(length.to_le_bytes());
        packed.extend(block);
    }
    Ok(packed)
}

fn unpack_lz4(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    let mut rest = bytes.get(LZ4_MAGIC.len()..).ok_or_else(damaged)?;
    let mut unpacked = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(damaged)?;
        rest = &after[length..];
        let block = lz4_flex::block::decompress(block, LZ4_BLOCK).map_err(io::Error::other)?;
        if unpacked.len() + block.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        unpacked.extend(block);
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(bytes: Vec<u8>) {
            for compression in Compression::ALL.into_iter().skip(1) {
                let packed = compression.pack(bytes.clone()).unwrap();
                prop_assert_eq!(Compression::of(&packed), compression);
                prop_assert_eq!(compression.unpack(packed, bytes.len()).unwrap(), bytes.clone());
            }
        }

        #[test]
        fn damaged_bytes_are_unpacked_to_something_or_an_error(
            bytes: Vec<u8>,
            at: prop::sample::Index,
            value: u8,
        ) {
            for compression in Compression::ALL.into_iter().skip(1) {
                let mut packed = compression.pack(bytes.clone()).unwrap();
                let at = at.index(packed.len());
                packed[at] = value;
                if let Ok(unpacked) = compression.unpack(packed, 1 << 16) {
                    prop_assert!(unpacked.len() <= 1 << 16);
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        for compression in Compression::ALL.into_iter().skip(1) {
            let bomb = compression.pack(vec![0; 1 << 20]).unwrap();
            let error = compression.unpack(bomb, 1 << 10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        }
    }
}
