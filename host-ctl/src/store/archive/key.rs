//! The secret that two stores share, and what an archive is protected with.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::OFlags;
use rustix::process::geteuid;

use super::{ArchiveError, SALT};
use crate::config::hexadecimal_bytes;
use crate::host::failed;

/// What sets this use of the secret apart from any other.
const CONTEXT: &[u8] = b"tardigrade template archive 1";
/// Bytes of the secret.
const SECRET: usize = 32;
/// Bytes read of a key file: its digits, and room to see that there are more.
const MOST_READ: u64 = 2 * SECRET as u64 + 2;

/// A secret that whoever makes an archive and whoever imports it have.
#[derive(Clone)]
pub struct ArchiveKey([u8; SECRET]);

impl std::fmt::Debug for ArchiveKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ArchiveKey")
    }
}

/// What protects an archive.
#[derive(Debug, Clone)]
pub enum Protection {
    /// Nobody reads or changes it who has not the secret.
    Encrypted(ArchiveKey),
    /// Nobody changes it who has not the secret; everybody reads it.
    Signed(ArchiveKey),
    /// Nothing.
    Plain,
}

/// The kinds of archives, as they say it themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Encrypted,
    Signed,
    Plain,
}

impl Kind {
    pub(super) fn letter(self) -> u8 {
        match self {
            Self::Encrypted => b'e',
            Self::Signed => b's',
            Self::Plain => b'p',
        }
    }

    pub(super) fn of_letter(letter: u8) -> Option<Self> {
        let all = [Self::Encrypted, Self::Signed, Self::Plain];
        all.into_iter().find(|kind| kind.letter() == letter)
    }
}

impl ArchiveKey {
    /// Reads 64 hexadecimal digits from a file that nobody else may read.
    ///
    /// # Errors
    /// When it is another's, or has something else in it.
    pub fn read(path: &Path) -> Result<Self, ArchiveError> {
        let refused = |reason| ArchiveError::Key {
            path: path.to_owned(),
            reason,
        };
        let file = OpenOptions::new()
            .read(true)
            // A FIFO would wait for its other end.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(failed("open", path))?;
        let found = file.metadata().map_err(failed("fstat", path))?;
        if !found.is_file() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(refused("want a file of this user's that no other may read"));
        }
        let mut text = String::new();
        file.take(MOST_READ)
            .read_to_string(&mut text)
            .map_err(failed("read", path))?;
        hexadecimal_bytes(text.trim_end_matches('\n'))
            .map(Self)
            .ok_or_else(|| refused("want 64 hexadecimal digits (openssl rand -hex 32)"))
    }

    #[cfg(test)]
    pub(super) fn of(secret: [u8; SECRET]) -> Self {
        Self(secret)
    }

    /// The key of one archive.
    pub(super) fn derive(&self, kind: Kind, salt: &[u8; SALT]) -> [u8; SECRET] {
        let mut mac = keyed(&self.0);
        mac.update(CONTEXT);
        mac.update(&[kind.letter()]);
        mac.update(salt);
        mac.finalize().into_bytes().into()
    }
}

pub(super) fn keyed(key: &[u8; SECRET]) -> Hmac<sha2::Sha256> {
    // As RFC 2104 does with keys shorter than a block.
    let mut block = [0; 64];
    block[..SECRET].copy_from_slice(key);
    Hmac::<sha2::Sha256>::new((&block).into())
}
