//! Collects entries and writes them as a newc archive.

use super::path::EntryPath;
use super::{HEADER_LENGTH, MAGIC, TRAILER, padding};
use std::collections::BTreeMap;
use std::io::Write;

/// The type bits of a mode: inode(7).
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_REGULAR: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory,
    /// A regular file with these bytes.
    File(Vec<u8>),
    /// A symbolic link to this text.
    Symlink(String),
    /// A character device node.
    CharacterDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// An entry without its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The low twelve bits of its mode.
    pub permissions: u32,
    /// What it is.
    pub content: Content,
}

/// Why an entry cannot be in an archive.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// There is one of that path already.
    #[error("add {0}: the path is taken")]
    Duplicate(EntryPath),
    /// Something that is no directory lies above it.
    #[error("add {0}: {1} is not a directory")]
    NotADirectory(EntryPath, EntryPath),
    /// More than the twelve permission bits.
    #[error("add {0}: the permissions {1:o} have more than twelve bits")]
    Permissions(EntryPath, u32),
    /// Files of 4 GiB and more do not fit into the format.
    #[error("add {0}: a file of 4 GiB or more does not fit into the archive")]
    TooLarge(EntryPath),
    /// The kernel ignores empty link targets, and those it cannot terminate.
    #[error("add {0}: the link's target is empty, too long, or has a NUL in it")]
    LinkTarget(EntryPath),
    /// Links that lead in a circle, or to a path that is too long.
    #[error("find {0}: too many links lead there")]
    Links(EntryPath),
}

/// The entries of an archive to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    pub(super) entries: BTreeMap<EntryPath, Entry>,
}

impl Archive {
    /// Adds an entry, and the directories above it (0755) where they are not
    /// there yet.
    ///
    /// # Errors
    /// See [`ArchiveError`]; the archive is then unchanged.
    pub fn add(&mut self, path: EntryPath, entry: Entry) -> Result<(), ArchiveError> {
        if entry.permissions > 0o7777 {
            return Err(ArchiveError::Permissions(path, entry.permissions));
        }
        match &entry.content {
            Content::File(bytes) if u32::try_from(bytes.len()).is_err() => {
                return Err(ArchiveError::TooLarge(path));
            }
            Content::Symlink(target)
                if target.is_empty()
                    || target.len() >= super::MAX_NAME
                    || target.contains('\0') =>
            {
                return Err(ArchiveError::LinkTarget(path));
            }
            _ => {}
        }
        if self.entries.contains_key(&path) {
            return Err(ArchiveError::Duplicate(path));
        }
        let above: Vec<_> = std::iter::successors(path.parent(), EntryPath::parent).collect();
        for parent in &above {
            if let Some(present) = self.entries.get(parent)
                && present.content != Content::Directory
            {
                return Err(ArchiveError::NotADirectory(path, parent.clone()));
            }
        }
        for parent in above {
            self.entries.entry(parent).or_insert(Entry {
                permissions: 0o755,
                content: Content::Directory,
            });
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// The entries in the order in which they are written.
    pub fn entries(&self) -> impl Iterator<Item = (&EntryPath, &Entry)> {
        self.entries.iter()
    }

    /// The archive's bytes, with `modified` (seconds since 1970) as the time
    /// of every entry.
    #[must_use]
    pub fn to_bytes(&self, modified: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A directory sorts before what lies in it, as the kernel needs it.
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let (kind, data, device): (u32, &[u8], (u32, u32)) = match &entry.content {
                Content::Directory => (TYPE_DIRECTORY, &[], (0, 0)),
                Content::File(bytes) => (TYPE_REGULAR, bytes, (0, 0)),
                Content::Symlink(target) => (TYPE_SYMLINK, target.as_bytes(), (0, 0)),
                Content::CharacterDevice { major, minor } => {
                    (TYPE_CHARACTER_DEVICE, &[], (*major, *minor))
                }
            };
            let header = Header {
                inode,
                mode: kind | entry.permissions,
                links: if kind == TYPE_DIRECTORY { 2 } else { 1 },
                modified,
                device,
            };
            write_member(&mut bytes, &header, path.as_str(), data);
        }
        let trailer = Header {
            inode: 0,
            mode: 0,
            links: 1,
            modified: 0,
            device: (0, 0),
        };
        write_member(&mut bytes, &trailer, TRAILER, &[]);
        bytes
    }
}

struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    modified: u32,
    device: (u32, u32),
}

fn write_member(to: &mut Vec<u8>, header: &Header, name: &str, data: &[u8]) {
    to.extend_from_slice(MAGIC);
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let fields = [
        header.inode,
        header.mode,
        0, // uid
        0, // gid
        header.links,
        header.modified,
        length(data.len()), // checked when the entry was added
        0,                  // major and minor of the file system it came from
        0,
        header.device.0,
        header.device.1,
        length(name.len() + 1),
        0, // checksum: none in this variant
    ];
    for field in fields {
        // A Vec takes every write.
        let _ = write!(to, "{field:08x}");
    }
    to.extend_from_slice(name.as_bytes());
    to.push(0);
    to.resize(to.len() + padding(HEADER_LENGTH + name.len() + 1), 0);
    to.extend_from_slice(data);
    to.resize(to.len() + padding(data.len()), 0);
}
