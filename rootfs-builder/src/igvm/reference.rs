//! What the maker of an IGVM file says of it, for who verifies the reports of
//! its guests: the reference measurements (JSON), which name no path either.

use super::{Expected, Platform, Vmm};
use crate::digest::Digest;
use crate::input::{self, InputError};
use crate::manifest::Input;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The number of this layout.
pub const FORMAT: u32 = 1;

/// The reference measurements of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// [`FORMAT`].
    pub format: u32,
    /// The file.
    pub image: File,
    /// What isolates its guests.
    pub platform: Platform,
    /// Whose loader it is for.
    pub vmm: Vmm,
    /// How many virtual processors a guest has.
    pub vcpus: u32,
    /// How much memory a guest uses, in bytes.
    pub memory: u64,
    /// The kernel's command line.
    pub command_line: String,
    /// Of the root disk's hash tree, which the command line has, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_hash: Option<Digest>,
    /// The security version number that its maker gave it. Reports show it if
    /// there is a signed identity; see [`Expected::guest_svn`].
    pub svn: u32,
    /// The files that were put in.
    pub inputs: Vec<Input>,
    /// What reports say; none where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Of its bytes.
    pub sha256: Digest,
    /// In bytes.
    pub size: u64,
}

/// The longest that are read, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Why reference measurements can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// They cannot be read.
    #[error("read the reference measurements")]
    Input(#[from] InputError),
    /// They are none.
    #[error("read the reference measurements {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// They are of another layout.
    #[error("read the reference measurements {path}: their format is {found}, not {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
}

/// Reads reference measurements.
///
/// # Errors
/// See [`ReferenceError`].
pub fn read(path: &Path) -> Result<Reference, ReferenceError> {
    let bytes = input::read_regular(path, MAX_BYTES)?;
    let reference: Result<Reference, _> = serde_json::from_slice(&bytes);
    let reference = reference.map_err(|source| ReferenceError::Json {
        path: path.into(),
        source,
    })?;
    if reference.format != FORMAT {
        return Err(ReferenceError::Format {
            path: path.into(),
            found: reference.format,
        });
    }
    Ok(reference)
}

impl Reference {
    /// What of a file is not what is said here, a line each: `bytes` are the
    /// file's, `expected` what was measured of them.
    #[must_use]
    pub fn findings(&self, bytes: &[u8], expected: &[Expected]) -> Vec<String> {
        let mut findings = Vec::new();
        let sha256 = Digest::of(bytes);
        if sha256 != self.image.sha256 {
            findings.push(format!("its sha256 is {sha256}, not {}", self.image.sha256));
        }
        let found: Vec<&Expected> = expected.iter().collect();
        let referred: Vec<&Expected> = self.expected.iter().collect();
        if found != referred {
            findings.push(String::from(
                "its reports will be other than the reference measurements say",
            ));
        }
        findings
    }
}
