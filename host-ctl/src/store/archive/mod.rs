//! A template in one file, to be carried to another store.
//!
//! ```text
//! magic     "tardigrade template 1\n"
//! kind      a byte: `e` encrypted, `s` signed, `p` plain
//! salt      32 random bytes
//! chunks    64 KiB each but for the last, each followed by its tag
//! ```
//!
//! What the chunks hold, one after the other: how long the [`Contents`] are
//! (four bytes, the highest first), the contents as JSON, then each file, as
//! runs of bytes and of holes ([`runs`]).
//!
//! Who trusts whom is a matter of one secret that both sides have, 32 bytes in a
//! file: an archive that opens with it was made by somebody who has it. Each
//! archive has a key of its own, HMAC-SHA-256 of kind and salt with the secret.
//! Encrypted chunks are ChaCha20-Poly1305 (RFC 8439), signed ones have an
//! HMAC-SHA-256; number and end are part of either ([`chunks`]), so that none can
//! be left out, changed for another or cut off. A plain archive proves nothing.
//!
//! What an import reads it has verified, chunk by chunk, before it looks at it;
//! it writes to a staging directory of its own, to regular files it makes there,
//! and publishes what lies in them as any template: under its own digest, sealed
//! with its own store's key.

mod chunks;
mod contents;
mod export;
mod import;
mod key;
mod runs;
mod whole;

#[cfg(test)]
mod tests;

use std::io;

use thiserror::Error;

use super::{CloneRefusal, StoreError};
use crate::host::CallFailed;

pub use import::{Imported, Trust};
pub use key::{ArchiveKey, Protection};

/// How every archive begins.
const MAGIC: &[u8] = b"tardigrade template 1\n";
/// Bytes of the salt that an archive's key is made with.
const SALT: usize = 32;

/// What two owners' clones of one template have in common, whatever a thaw does.
pub const LEAKS: &str = "how fast pages of the template are read (whoever shares them in the host's \
     cache can tell what the other touches), the addresses of kernel and programs, stack canaries, \
     tcp sequence secrets, and whatever else lay in memory";

/// Why there is no archive, or no template of it.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// A call on a file failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The archive could not be read or written to its end.
    #[error("{0} the archive")]
    Stream(&'static str, #[source] io::Error),
    /// It is none.
    #[error("no archive of a template that this program knows")]
    Unknown,
    /// The key file is not as it should be.
    #[error("{path}: {reason}")]
    Key {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing shows who made it.
    #[error("{0}")]
    Untrusted(&'static str),
    /// It was not made with this key, or was changed since.
    #[error("it was not made with this key, or was changed or cut off since")]
    Forged,
    /// What it says of itself cannot be.
    #[error("it describes no template: {0}")]
    Contents(String),
    /// A file in it is not what it says.
    #[error("its file {0} is not what it says")]
    Damaged(String),
    /// It is too large.
    #[error("it takes {declared} bytes of disk, and may take {limit}")]
    Limit {
        /// What its files take.
        declared: u64,
        /// What was allowed, or is free.
        limit: u64,
    },
    /// Another user made it.
    #[error(
        "uid {owner} made it, and this is uid {user}; --share takes it all the same, and with it \
         that clones of both have in common {LEAKS}"
    )]
    Owner {
        /// Who made it.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// The store does not take or give it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The template to be exported is not whole.
    #[error(transparent)]
    Template(#[from] CloneRefusal),
}
