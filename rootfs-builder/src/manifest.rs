//! What went into an image and what came out, with digests: the JSON manifest.
//!
//! It names no path of the machine it was built on, so that the same inputs
//! give the same manifest, too.

use crate::archive::{Archive, Content};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::packages::Package;
use serde::{Deserialize, Serialize};

/// The number of this layout of the manifest.
pub const FORMAT: u32 = 3;

/// What an image is to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An archive the kernel unpacks into memory.
    Initrd,
    /// A disk with an ext4 file system.
    Ext4,
    /// A disk with an EROFS file system.
    Erofs,
}

/// The manifest of an image. The one inside the image lacks `image`, `disk` and
/// `spdx`: no file holds its own digest, and the list has this one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What it is.
    pub kind: Kind,
    /// The image's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// What lies where on a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Of the list of what is inside, if one was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spdx: Option<Digest>,
    /// The release of the kernel its modules are for, if it has modules.
    pub kernel_release: Option<String>,
    /// The agent's version, if the caller said which it is.
    pub agent_version: Option<String>,
    /// The time of every entry, in seconds since 1970.
    pub source_date_epoch: u32,
    /// Every file that was read, in the order in which it was.
    pub inputs: Vec<Input>,
    /// The packages of its base, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<Package>,
    /// What of the base could not be kept as it was, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// The modules PID 1 loads, in load order.
    pub modules: Vec<String>,
    /// Every entry of the image, sorted by path.
    pub files: Vec<Listed>,
}

/// The image's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of the file, as packed.
    pub sha256: Digest,
    /// In bytes, as packed.
    pub size: u64,
    /// How it is packed: an initrd as a whole, a file system file by file.
    pub compression: Compression,
}

/// What an input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The kernel the image is for; not in it. In an IGVM file it is.
    Kernel,
    /// The initrd in an IGVM file.
    Initrd,
    /// The program that becomes PID 1.
    Agent,
    /// A kernel module.
    Module,
    /// The kernel's configuration; looked at, not put into the image.
    KernelConfig,
    /// The policy.
    Policy,
    /// A file put in by request.
    File,
    /// What the image starts from.
    Base,
}

/// One file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it is for.
    pub role: Role,
    /// Where it is in the image; for what is not in it, its role.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Digest,
}

impl Input {
    /// Describes an input by its bytes.
    #[must_use]
    pub fn new(role: Role, name: impl Into<String>, bytes: &[u8]) -> Self {
        Self {
            role,
            name: name.into(),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }
}

/// One entry of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Absolute.
    pub path: String,
    /// The permission bits, octal.
    pub permissions: String,
    /// What it is.
    #[serde(flatten)]
    pub content: ListedContent,
}

/// What a listed entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ListedContent {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// Of its bytes.
        sha256: Digest,
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        target: String,
    },
    /// A character device node.
    CharacterDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// The entries of an archive, as a manifest lists them.
#[must_use]
pub fn list(archive: &Archive) -> Vec<Listed> {
    let listed = archive.entries().map(|(path, entry)| Listed {
        path: format!("/{path}"),
        permissions: format!("{:04o}", entry.permissions),
        content: match &entry.content {
            Content::Directory => ListedContent::Directory,
            Content::File(bytes) => ListedContent::File {
                size: bytes.len() as u64,
                sha256: Digest::of(bytes),
            },
            Content::Symlink(target) => ListedContent::Symlink {
                target: target.clone(),
            },
            Content::CharacterDevice { major, minor } => ListedContent::CharacterDevice {
                major: *major,
                minor: *minor,
            },
        },
    });
    listed.collect()
}
