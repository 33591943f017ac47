//! The archive the kernel unpacks at boot: cpio in the "newc" format.
//!
//! The format is that of the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst. [`Archive`]
//! collects entries and writes them in one way only: sorted by path, owned by
//! root, inodes counted from 1, one time for all. [`members`] reads archives of
//! any origin.

mod edit;
mod path;
mod read;
mod write;

pub use path::{EntryPath, PathError};
pub use read::{Kind, Member, ReadError, members};
pub use write::{Archive, ArchiveError, Content, Entry};

/// The first bytes of each header: newc without checksums.
const MAGIC: &[u8; 6] = b"070701";
/// The magic and 13 fields of 8 hex digits.
const HEADER_LENGTH: usize = 6 + 13 * 8;
/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";
/// The longest name with its final NUL, in bytes: the kernel's PATH_MAX.
const MAX_NAME: usize = 4096;

/// What a position lacks to the next multiple of four.
fn padding(position: usize) -> usize {
    position.wrapping_neg() % 4
}

#[cfg(test)]
mod tests;
