//! Holds an image against its manifest, and its data against the hash tree.

use crate::digest::Digest;
use crate::disk::Verity;
use crate::disk::gpt::{RESERVED_SECTORS, SECTOR, Table};
use crate::input::{self, InputError};
use crate::manifest::{self, Manifest};
use crate::verity;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The longest manifest that is read, in bytes.
const MAX_MANIFEST_BYTES: usize = 64 << 20;
/// The largest hash partition, in bytes: of a disk of 128 GiB.
const MAX_TREE_BYTES: u64 = 1 << 30;

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

/// What is wrong with the image, a line each; nothing if all is right. If a
/// root hash is given, it counts, and not the manifest's.
///
/// # Errors
/// See [`VerifyError`]: when it cannot be told.
pub fn verify(
    image: &Path,
    manifest_path: &Path,
    root_hash: Option<Digest>,
) -> Result<Vec<String>, VerifyError> {
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
    let Some(disk) = &manifest.disk else {
        return Ok(findings);
    };
    if disk.offset != 0 {
        findings.extend(table_findings(&mut file, size).map_err(read_error)?);
    }
    match (&disk.verity, root_hash) {
        (Some(verity), _) => {
            let root_hash = root_hash.unwrap_or(verity.root_hash);
            let found = tree_finding(&mut file, disk.offset, verity, &root_hash);
            findings.extend(found.map_err(read_error)?);
        }
        (None, Some(_)) => findings.push("it has no hash tree".into()),
        (None, None) => {}
    }
    Ok(findings)
}

/// Table and copy, both.
fn table_findings(file: &mut File, size: u64) -> io::Result<Vec<String>> {
    let mut start = Vec::new();
    file.rewind()?;
    let length = RESERVED_SECTORS * SECTOR;
    file.by_ref().take(length).read_to_end(&mut start)?;
    let table = match Table::read(&start) {
        Ok(table) => table,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let mut findings = Vec::new();
    if table.sectors.checked_mul(SECTOR) != Some(size) {
        findings.push("the partition table is of a disk of another size".into());
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(length - SECTOR)))?;
    file.read_to_end(&mut end)?;
    if end != table.end() {
        findings.push("the copy of the partition table at the disk's end is another".into());
    }
    Ok(findings)
}

fn tree_finding(
    file: &mut File,
    data_offset: u64,
    verity: &Verity,
    root_hash: &Digest,
) -> io::Result<Option<String>> {
    let mut area = Vec::new();
    file.seek(SeekFrom::Start(verity.offset))?;
    let length = verity.size.min(MAX_TREE_BYTES);
    file.by_ref().take(length).read_to_end(&mut area)?;
    file.seek(SeekFrom::Start(data_offset))?;
    let data = io::BufReader::with_capacity(1 << 20, file);
    match verity::check(data, &area, root_hash) {
        Ok(superblock) if superblock.data_blocks != verity.data_blocks => {
            Ok(Some("the hash tree covers another count of blocks".into()))
        }
        Ok(superblock) if superblock.salt != verity.salt => {
            Ok(Some("the hash tree has another salt".into()))
        }
        Ok(_) => Ok(None),
        Err(verity::CheckError::Read(error)) => Err(error),
        Err(verity::CheckError::Superblock(error)) => Ok(Some(error.to_string())),
        Err(error) => Ok(Some(error.to_string())),
    }
}
