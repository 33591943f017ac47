//! A root disk: the contents as a file system, on a disk as asked for.

use crate::compression::Compression;
use crate::contents::Contents;
use crate::digest::Digest;
use crate::disk::{self, Architecture, Layout};
use crate::erofs::{self, ErofsError, Packing};
use crate::ext4::{self, Ext4Error};
use crate::manifest::{Image, Kind, Manifest};
use crate::output::{OutputError, Partial};
use crate::staging::{Staging, StagingError};
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file system of a root disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, without a journal.
    Ext4,
    /// EROFS, its files packed like this.
    Erofs(Packing),
}

/// What becomes a root disk, but for its contents.
#[derive(Clone, Debug)]
pub struct Request {
    /// As what they are laid out.
    pub file_system: FileSystem,
    /// How the disk is laid out.
    pub layout: Layout,
    /// What sizes and starts are multiples of, in bytes: see
    /// [`disk::is_alignment`].
    pub alignment: u64,
    /// The disk's file.
    pub output: PathBuf,
    /// How long the program that makes the file system may take.
    pub deadline: Duration,
}

/// Why no disk was written. What had been written is gone again.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An alignment no disk can have.
    #[error("align to {0} bytes: not a power of two from 4096 to 1 GiB")]
    Alignment(u64),
    /// A machine whose partition types are not known.
    #[error("make partitions for ELF machine {0}: their types are not known")]
    Machine(u16),
    /// The contents cannot be laid out.
    #[error("lay the contents out")]
    Staging(#[from] StagingError),
    /// The file system cannot be made.
    #[error("make an EROFS file system")]
    Erofs(#[from] ErofsError),
    /// The file system cannot be made.
    #[error("make an ext4 file system")]
    Ext4(#[from] Ext4Error),
    /// The disk's file cannot be written.
    #[error("write the disk")]
    Output(#[from] OutputError),
    /// A call failed.
    #[error("write the disk")]
    Write(#[from] io::Error),
}

impl FileSystem {
    /// What an image with it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Ext4 => Kind::Ext4,
            Self::Erofs(_) => Kind::Erofs,
        }
    }
}

/// Makes a root disk of contents that were assembled for it.
///
/// # Errors
/// See [`ImageError`].
pub fn build(contents: Contents, request: &Request) -> Result<Manifest, ImageError> {
    if !disk::is_alignment(request.alignment) {
        return Err(ImageError::Alignment(request.alignment));
    }
    let machine = contents.machine.0;
    let architecture = Architecture::of(machine).ok_or(ImageError::Machine(machine))?;
    let staging = Staging::beside(&request.output)?;
    let tree = staging.lay_out(&contents.archive)?;
    let file_system = staging.file_system();
    let time = contents.manifest.source_date_epoch;
    let (uuid, compression) = make(request, time, tree, &file_system)?;
    let mut partial = Partial::create(&request.output)?;
    let disk = disk::write(
        &mut File::open(&file_system)?,
        uuid,
        request.layout,
        request.alignment,
        architecture,
        partial.file(),
    )?;
    partial.file().rewind()?;
    let (sha256, size) = Digest::of_reader(&*partial.file())?;
    partial.commit()?;
    let mut manifest = contents.manifest;
    manifest.image = Some(Image {
        sha256,
        size,
        compression,
    });
    manifest.disk = Some(disk);
    Ok(manifest)
}

/// The file system, its UUID and its packing.
fn make(
    request: &Request,
    source_date_epoch: u32,
    tree: PathBuf,
    output: &Path,
) -> Result<(crate::uuid::Uuid, Compression), ImageError> {
    Ok(match request.file_system {
        FileSystem::Ext4 => {
            let uuid = ext4::build(&ext4::Request {
                tree,
                output: output.into(),
                source_date_epoch,
                deadline: request.deadline,
            })?;
            (uuid, Compression::None)
        }
        FileSystem::Erofs(packing) => {
            let image = erofs::build(&erofs::Request {
                tree,
                output: output.into(),
                packing,
                source_date_epoch,
                deadline: request.deadline,
            })?;
            (image.uuid, packing.into())
        }
    })
}

/// The words of the kernel command line with which it boots from `disk` at
/// `device`, such as `/dev/vda`.
#[must_use]
pub fn kernel_parameters(manifest: &Manifest, device: &str) -> Option<String> {
    let disk = manifest.disk.as_ref()?;
    let file_system = match manifest.kind {
        Kind::Initrd => return None,
        Kind::Ext4 => "ext4",
        Kind::Erofs => "erofs",
    };
    let root = match &disk.verity {
        Some(verity) => {
            let table = verity.table(device);
            format!("dm-mod.create=\"root,,,ro,{table}\" root=/dev/dm-0")
        }
        None if disk.offset == 0 => format!("root={device}"),
        None if device.ends_with(|last: char| last.is_ascii_digit()) => format!("root={device}p1"),
        None => format!("root={device}1"),
    };
    Some(format!("{root} rootfstype={file_system} ro"))
}
