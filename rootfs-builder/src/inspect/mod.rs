//! Says what is in an image, from whatever source: an initrd member by member,
//! a disk by its partitions, file system and hash tree.

mod archive;
mod disk;

use crate::archive::ReadError;
use crate::disk::gpt::TableError;
use crate::input::{self, InputError};
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use archive::{Line, Listing, MAX_ARCHIVE_BYTES};
pub use disk::{DiskListing, FileSystem, HashTree, PartitionLine};

/// Why an image cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file cannot be read.
    #[error("inspect")]
    Input(#[from] InputError),
    /// The file cannot be unpacked.
    #[error("decompress the archive")]
    Decompress(#[source] io::Error),
    /// What came out is no archive.
    #[error("list the archive")]
    Read(#[from] ReadError),
    /// A disk whose table is damaged.
    #[error("list the disk")]
    Table(#[from] TableError),
    /// A call failed.
    #[error("{call} {path}")]
    Path {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// What is in an image.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Report {
    /// An initrd.
    Archive(Listing),
    /// A disk.
    Disk(DiskListing),
}

/// Inspects the file `path`.
///
/// # Errors
/// See [`InspectError`].
pub fn inspect(path: &Path) -> Result<Report, InspectError> {
    let error = |call| {
        move |source| InspectError::Path {
            call,
            path: path.into(),
            source,
        }
    };
    let metadata = std::fs::metadata(path).map_err(error("open"))?;
    if metadata.is_file() {
        let file = File::open(path).map_err(error("open"))?;
        if disk::is_disk(&file).map_err(error("read"))? {
            return Ok(Report::Disk(disk::list(file).map_err(
                |problem| match problem {
                    disk::Problem::Table(table) => table.into(),
                    disk::Problem::Read(source) => error("read")(source),
                },
            )?));
        }
    }
    let bytes = input::read_regular(path, MAX_ARCHIVE_BYTES)?;
    archive::list(bytes).map(Report::Archive)
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(listing) => listing.fmt(to),
            Self::Disk(listing) => listing.fmt(to),
        }
    }
}
