//! A directory tree as a base.
//!
//! Each entry is opened from its directory's descriptor and through no link, so
//! that a tree that is changed meanwhile leads nowhere else; a file that changes
//! while it is read is refused.

use super::layer::owned_by_root;
use crate::archive::{Archive, ArchiveError, Content, Entry, EntryPath, PathError};
use crate::digest::Digest;
use crate::manifest::{Input, Role};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a tree may have in all, in bytes: it lies in memory.
const MAX_BYTES: u64 = 4 << 30;
const MAX_ENTRIES: u64 = 1_000_000;
/// How many directories may lie one in the other: each is open meanwhile.
const MAX_DEPTH: usize = 128;
/// An attribute that belongs to the machine the tree lies on.
const LOCAL_ATTRIBUTES: [&[u8]; 2] = [b"security.selinux", b"security.evm"];

/// Why a directory is no base.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
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
    /// A name or a link's target is not UTF-8.
    #[error("keep {0}: it is not UTF-8")]
    NotText(String),
    /// A path that is too long, or called like an archive's end.
    #[error("keep an entry")]
    Name(#[from] PathError),
    /// A socket, FIFO or device node.
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
    /// A file that was written to meanwhile.
    #[error("read {0}: it changed meanwhile")]
    Changed(PathBuf),
    /// More than an image should have.
    #[error("read {path}: more than {what}")]
    TooMuch {
        /// The tree.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
    },
    /// An entry cannot be in an image.
    #[error("put the base together")]
    Archive(#[from] ArchiveError),
}

/// A tree's entries, what could not be kept as it was, and what was read.
pub(super) fn load(root: &Path) -> Result<(Archive, Vec<String>, Input), DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|source| error("open", root, source))?;
    let mut walk = Walk {
        root,
        owner: (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
        archive: Archive::default(),
        changes: Vec::new(),
        entries: 0,
        bytes: 0,
    };
    walk.directory(&directory, "", 0)?;
    // The same as an archive, whatever order the directory has.
    let input = Input {
        role: Role::Base,
        name: "base".into(),
        size: walk.bytes,
        sha256: Digest::of(&walk.archive.to_bytes(0)),
    };
    // Found in the order in which the directory has them.
    walk.changes.sort();
    Ok((walk.archive, walk.changes, input))
}

struct Walk<'a> {
    root: &'a Path,
    /// Who builds, and their group.
    owner: (u32, u32),
    archive: Archive,
    changes: Vec<String>,
    entries: u64,
    bytes: u64,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        directory: &OwnedFd,
        above: &str,
        depth: usize,
    ) -> Result<(), DirectoryError> {
        let here = self.root.join(above);
        if depth > MAX_DEPTH {
            return Err(self.too_much("128 directories one in the other"));
        }
        check_attributes(directory.as_fd(), &here)?;
        let entries = Dir::read_from(directory).map_err(|source| error("list", &here, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| error("list", &here, source))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(self.too_much("a million entries"));
            }
            let text = text(name.to_bytes())?;
            let path = if above.is_empty() {
                text
            } else {
                format!("{above}/{text}")
            };
            self.entry(directory, name, &path, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        path: &str,
        depth: usize,
    ) -> Result<(), DirectoryError> {
        let shown = self.root.join(path);
        let target: EntryPath = path.parse()?;
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| error("stat", &shown, source))?;
        let open = |flags| {
            let flags =
                flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            rustix::fs::openat(directory, name, flags, Mode::empty())
                .map_err(|source| error("open", &shown, source))
        };
        let refuse = |kind| {
            Err(DirectoryError::Kind {
                path: shown.clone(),
                kind,
            })
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = open(OFlags::DIRECTORY)?;
                self.add(target, &stat, Content::Directory)?;
                self.directory(&below, path, depth + 1)
            }
            FileType::RegularFile => {
                let file = open(OFlags::empty())?;
                check_attributes(file.as_fd(), &shown)?;
                let left = MAX_BYTES - self.bytes;
                let bytes = read_unchanged(File::from(file), &stat, left, &shown)?;
                self.bytes += bytes.len() as u64;
                if self.bytes >= MAX_BYTES {
                    return Err(self.too_much("4 GiB"));
                }
                self.add(target, &stat, Content::File(bytes))
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(directory, name, Vec::new())
                    .map_err(|source| error("readlink", &shown, source))?;
                let entry = Entry {
                    permissions: 0o777,
                    content: Content::Symlink(text(link.to_bytes())?),
                };
                Ok(self.archive.add(target, entry)?)
            }
            FileType::Socket => refuse("sockets"),
            FileType::Fifo => refuse("FIFOs"),
            _ => refuse("device nodes"),
        }
    }

    fn add(
        &mut self,
        path: EntryPath,
        stat: &Stat,
        content: Content,
    ) -> Result<(), DirectoryError> {
        let permissions = stat.st_mode & 0o7777;
        // Whoever builds an image from files of their own means them as root's.
        let user = ![0, self.owner.0].contains(&stat.st_uid);
        let group = ![0, self.owner.1].contains(&stat.st_gid);
        let kept = owned_by_root(permissions, user, group);
        if kept != permissions {
            self.changes.push(format!(
                "/{path}: mode {permissions:04o} became {kept:04o}, for its owner {}:{} became \
                 root",
                stat.st_uid, stat.st_gid
            ));
        }
        // A directory that was made for what lies below it has its own mode.
        self.archive.put(
            path,
            Entry {
                permissions: kept,
                content,
            },
        )?;
        Ok(())
    }

    fn too_much(&self, what: &'static str) -> DirectoryError {
        DirectoryError::TooMuch {
            path: self.root.into(),
            what,
        }
    }
}

/// Reads a file that is the one that was looked at, before and afterwards.
fn read_unchanged(
    mut file: File,
    before: &Stat,
    limit: u64,
    path: &Path,
) -> Result<Vec<u8>, DirectoryError> {
    let mut bytes = Vec::new();
    let read = file.by_ref().take(limit).read_to_end(&mut bytes);
    read.map_err(|source| DirectoryError::Path {
        call: "read",
        path: path.into(),
        source,
    })?;
    let after = rustix::fs::fstat(&file).map_err(|source| error("stat", path, source))?;
    let known = |stat: &Stat| {
        (
            (stat.st_dev, stat.st_ino, stat.st_mode, stat.st_size),
            (
                stat.st_mtime,
                stat.st_mtime_nsec,
                stat.st_ctime,
                stat.st_ctime_nsec,
            ),
        )
    };
    // A limit that is reached is told by the caller.
    let whole =
        u64::try_from(after.st_size) == Ok(bytes.len() as u64) || bytes.len() as u64 == limit;
    if known(before) == known(&after) && whole {
        Ok(bytes)
    } else {
        Err(DirectoryError::Changed(path.into()))
    }
}

fn check_attributes(file: BorrowedFd<'_>, path: &Path) -> Result<(), DirectoryError> {
    // The kernel's limit for all names of a file: XATTR_LIST_MAX.
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
        Ok(length) => length,
        // A file system without attributes.
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(source) => return Err(error("listxattr", path, source)),
    };
    let names = names[..length].split(|&byte| byte == 0);
    let mut foreign = names.filter(|name| !name.is_empty() && !LOCAL_ATTRIBUTES.contains(name));
    match foreign.next() {
        None => Ok(()),
        Some(name) => Err(DirectoryError::Attribute {
            path: path.into(),
            attribute: name.escape_ascii().to_string(),
        }),
    }
}

fn text(bytes: &[u8]) -> Result<String, DirectoryError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| DirectoryError::NotText(bytes.escape_ascii().to_string()))
}

fn error(call: &'static str, path: &Path, source: rustix::io::Errno) -> DirectoryError {
    DirectoryError::Path {
        call,
        path: path.into(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests;
