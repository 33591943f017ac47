//! Holds an image against its manifest, and its data against the hash tree.
//!
//! Something has to be trusted: the manifest, or the words that the kernel is
//! told ([`Trusted`]). Where the disk itself says something else than they do,
//! the disk is wrong.

mod disk;
mod trusted;

use crate::digest::Digest;
use crate::input::{self, InputError};
use crate::manifest::{self, Manifest};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

pub use trusted::{Trusted, WordsError};

/// The longest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: usize = 64 << 20;

/// Why an image cannot be held against its manifest.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The manifest cannot be read.
    #[error("read the manifest")]
    Input(#[from] InputError),
    /// It is no manifest.
    #[error("read the manifest {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It is a manifest of another layout.
    #[error(
        "read the manifest {path}: its format is {found}, this program knows {}",
        manifest::FORMAT
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// It is one from the inside of an image.
    #[error("read the manifest {0}: it says nothing of the image's file")]
    Inside(PathBuf),
    /// A call failed.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Where the manifest of an image lies, unless it is said otherwise.
#[must_use]
pub fn manifest_beside(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".json");
    path.into()
}

/// Reads a manifest.
///
/// # Errors
/// See [`VerifyError`].
pub fn read_manifest(path: &Path) -> Result<Manifest, VerifyError> {
    let bytes = input::read_regular(path, MAX_MANIFEST_BYTES)?;
    let json = |source| VerifyError::Json {
        path: path.into(),
        source,
    };
    // The format first: what another one has is not for us to know.
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(json)?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(manifest::FORMAT) => Err(VerifyError::Format {
            path: path.into(),
            found: u32::try_from(found).unwrap_or(u32::MAX),
        }),
        _ => serde_json::from_value(value).map_err(json),
    }
}

/// What is wrong with the image, a line each; nothing if all is right. The
/// manifest is trusted: it says what each byte is, and where the partitions lie.
///
/// # Errors
/// See [`VerifyError`]: when it cannot be told.
pub fn verify(image: &Path, manifest_path: &Path) -> Result<Vec<String>, VerifyError> {
    let manifest = read_manifest(manifest_path)?;
    let Some(expected) = &manifest.image else {
        return Err(VerifyError::Inside(manifest_path.into()));
    };
    let read_error = |source| VerifyError::Read {
        path: image.into(),
        source,
    };
    let mut file = File::open(image).map_err(read_error)?;
    let (sha256, size) = Digest::of_reader(&file).map_err(read_error)?;
    let mut findings = Vec::new();
    if size != expected.size {
        findings.push(format!("it has {size} bytes, not {}", expected.size));
    }
    if sha256 != expected.sha256 {
        findings.push(format!("its sha256 is {sha256}, not {}", expected.sha256));
    }
    let Some(described) = &manifest.disk else {
        return Ok(findings);
    };
    if described.offset == 0 {
        return Ok(findings);
    }
    let found = disk::table(&mut file, size).map_err(read_error)?;
    findings.extend(found.findings);
    if let Some(table) = &found.table {
        findings.extend(disk::places(table, described));
        if let Some(tree) = &described.verity {
            let trusted = Trusted {
                salt: Some(tree.salt),
                ..Trusted::of(tree.root_hash, tree.data_blocks)
            };
            let damage = disk::tree(&mut file, table, &trusted);
            findings.extend(damage.map_err(read_error)?);
        }
    }
    Ok(findings)
}

/// What is wrong with a disk of which no manifest is trusted, but what the
/// kernel will be told. Nothing on the disk is believed: where data and tree lie
/// is what the kernel will find, too, and how much there is and what it must be
/// comes from `trusted`. Beyond the data nothing is bound: see [`NOT_BOUND`].
///
/// # Errors
/// See [`VerifyError`]: when it cannot be told.
pub fn verify_by(image: &Path, trusted: &Trusted) -> Result<Vec<String>, VerifyError> {
    let read_error = |source| VerifyError::Read {
        path: image.into(),
        source,
    };
    let mut file = File::open(image).map_err(read_error)?;
    let size = file.seek(SeekFrom::End(0)).map_err(read_error)?;
    let found = disk::table(&mut file, size).map_err(read_error)?;
    let mut findings = found.findings;
    if let Some(table) = &found.table {
        let damage = disk::tree(&mut file, table, trusted);
        findings.extend(damage.map_err(read_error)?);
    }
    Ok(findings)
}

/// What [`verify_by`] says nothing of.
pub const NOT_BOUND: &str = "the data is what the root hash stands for; names and UUIDs of disk and partitions, and \
     what lies outside the partitions, are bound by a manifest only";
