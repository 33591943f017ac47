//! SHA-256 of content, as text.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::config::{NameError, TemplateDigest, hexadecimal};

/// How much is read at a time.
const CHUNK: usize = 1 << 20;

/// The SHA-256 of some content (FIPS 180-4), 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(String);

impl Sha256 {
    /// Of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Sha256 {
        Sha256::from_hash(&sha2::Sha256::digest(bytes))
    }

    /// Of a whole file, from its begin, wherever its cursor stands.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(file: &File) -> io::Result<Sha256> {
        let mut hasher = sha2::Sha256::new();
        let mut chunk = vec![0u8; CHUNK];
        let mut offset = 0;
        loop {
            match file.read_at(&mut chunk, offset) {
                Ok(0) => return Ok(Sha256::from_hash(&hasher.finalize())),
                Ok(count) => {
                    hasher.update(&chunk[..count]);
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn from_hash(hash: &[u8]) -> Sha256 {
        Sha256(hexadecimal(hash))
    }

    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Sha256 {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Sha256, NameError> {
        // One rule for both kinds of digest.
        text.parse::<TemplateDigest>()
            .map(|digest| Sha256(digest.into()))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = NameError;

    fn try_from(text: String) -> Result<Sha256, NameError> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> String {
        digest.0
    }
}
