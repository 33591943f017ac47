//! Looks at every entry of a directory tree before it becomes an image.
//!
//! What an image cannot hold exactly is refused by name, not dropped: files
//! that cannot be read, sockets, device nodes, and attributes that mean
//! something (capabilities, access lists). Symbolic links are kept as they are
//! and never followed, wherever they point. On the way the tree's digest is
//! taken: it names the content, and is the same wherever the tree lies.

use crate::digest::Digest;
use crate::uuid::Uuid;
use rustix::fs::{Mode, OFlags};
use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The most entries of a tree. A full desktop has about a million.
const MAX_ENTRIES: u64 = 4_000_000;
/// Attributes that belong to the machine the tree lies on, not to the tree.
const LOCAL_ATTRIBUTES: [&[u8]; 2] = [b"security.selinux", b"security.evm"];

/// Why a tree cannot become an image.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A call failed; for files without read permission, `open`.
    #[error("{call} {path}")]
    Path {
        /// The call.
        call: &'static str,
        /// The entry.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The tree's root.
    #[error("read tree {0}: it is not a directory")]
    NotADirectory(PathBuf),
    /// A socket or device node.
    #[error("keep {path}: {kind} have no place in an image")]
    Kind {
        /// The entry.
        path: PathBuf,
        /// What it is, in the plural.
        kind: &'static str,
    },
    /// An extended attribute that would be lost.
    #[error("keep {path}: its attribute {attribute} would be lost in the image")]
    Attribute {
        /// The entry.
        path: PathBuf,
        /// The attribute's name, escaped.
        attribute: String,
    },
    /// More entries than an image should have.
    #[error("read tree {0}: more than {MAX_ENTRIES} entries")]
    TooMany(PathBuf),
}

/// What a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Over path, type, permissions, and bytes or link target of each entry.
    pub digest: Digest,
    /// The entries, without the root.
    pub entries: u64,
    /// The bytes of its files.
    pub bytes: u64,
}

impl Survey {
    /// The UUID of a file system with this tree.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        Uuid::of(&self.digest)
    }
}

/// Walks the tree at `root`.
///
/// # Errors
/// See [`TreeError`].
pub fn survey(root: &Path) -> Result<Survey, TreeError> {
    let metadata = std::fs::symlink_metadata(root).map_err(path_error("stat", root))?;
    if !metadata.is_dir() {
        return Err(TreeError::NotADirectory(root.into()));
    }
    let mut walk = Walk {
        root,
        record: Vec::new(),
        entries: 0,
        bytes: 0,
    };
    walk.note(b"", &metadata, b"directory");
    walk.check_attributes(root)?;
    // Sorted, depth first: the order in which directories are listed must not
    // show.
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let first = pending.len();
        for path in sorted_entries(&directory)? {
            if walk.visit(&path)?.is_dir() {
                pending.push(path);
            }
        }
        pending[first..].reverse();
    }
    Ok(Survey {
        digest: Digest::of(&walk.record),
        entries: walk.entries,
        bytes: walk.bytes,
    })
}

fn sorted_entries(directory: &Path) -> Result<Vec<PathBuf>, TreeError> {
    let mut paths = std::fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(path_error("list", directory))?;
    paths.sort();
    Ok(paths)
}

struct Walk<'a> {
    root: &'a Path,
    /// One record an entry; its digest is the tree's.
    record: Vec<u8>,
    entries: u64,
    bytes: u64,
}

impl Walk<'_> {
    fn visit(&mut self, path: &Path) -> Result<FileType, TreeError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(TreeError::TooMany(self.root.into()));
        }
        let metadata = std::fs::symlink_metadata(path).map_err(path_error("stat", path))?;
        let kind = metadata.file_type();
        let refuse = |kind| {
            Err(TreeError::Kind {
                path: path.into(),
                kind,
            })
        };
        if kind.is_file() {
            let (digest, length) = digest_file(path)?;
            self.bytes += length;
            self.note(relative(self.root, path), &metadata, digest.as_bytes());
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(path_error("readlink", path))?;
            self.note(
                relative(self.root, path),
                &metadata,
                target.as_os_str().as_bytes(),
            );
        } else if kind.is_dir() {
            self.note(relative(self.root, path), &metadata, b"directory");
        } else if kind.is_fifo() {
            self.note(relative(self.root, path), &metadata, b"fifo");
        } else if kind.is_socket() {
            return refuse("sockets");
        } else {
            return refuse("device nodes");
        }
        self.check_attributes(path)?;
        Ok(kind)
    }

    /// Lengths come first, so that no two trees have one record.
    fn note(&mut self, path: &[u8], metadata: &Metadata, content: &[u8]) {
        for part in [path, content] {
            self.record.extend((part.len() as u64).to_be_bytes());
            self.record.extend(part);
        }
        self.record
            .extend(metadata.permissions().mode().to_be_bytes());
    }

    fn check_attributes(&self, path: &Path) -> Result<(), TreeError> {
        // The kernel's limit for all names of a file: XATTR_LIST_MAX.
        let mut names = vec![0; 64 << 10];
        let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
            Ok(length) => length,
            // A file system without attributes.
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
            Err(source) => return Err(path_error("listxattr", path)(source.into())),
        };
        let names = names[..length].split(|&byte| byte == 0);
        for name in names.filter(|name| !name.is_empty()) {
            if !LOCAL_ATTRIBUTES.contains(&name) {
                return Err(TreeError::Attribute {
                    path: path.into(),
                    attribute: name.escape_ascii().to_string(),
                });
            }
        }
        Ok(())
    }
}

fn digest_file(path: &Path) -> Result<(Digest, u64), TreeError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|source| path_error("open", path)(source.into()))?;
    Digest::of_reader(File::from(file)).map_err(path_error("read", path))
}

fn relative<'a>(root: &Path, path: &'a Path) -> &'a [u8] {
    path.strip_prefix(root)
        .unwrap_or(path)
        .as_os_str()
        .as_bytes()
}

fn path_error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError + use<> {
    let path = path.to_path_buf();
    move |source| TreeError::Path { call, path, source }
}

#[cfg(test)]
mod tests;
