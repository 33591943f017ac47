//! Removes a directory tree by descriptors: no symlink is followed, no mount
//! is crossed, and where a mount lies below nothing at all is removed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use thiserror::Error;

use super::call::{CallFailed, failed};

/// Deeper than anything we ever make; bounds the descriptors held at once.
const DEPTH_MAX: usize = 16;

/// Why a tree was not removed.
#[derive(Debug, Error)]
pub enum TreeError {
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// Not a directory, or a symlink in a directory's place.
    #[error("{0}: not a directory of ours")]
    NotOurs(PathBuf),
    /// Something is mounted there; unmount it first.
    #[error("{0}: something is mounted here, nothing was removed")]
    Mounted(PathBuf),
    /// Deeper than anything we make.
    #[error("{0}: too deep")]
    TooDeep(PathBuf),
}

/// One directory on the way down.
struct Level<'a> {
    descriptor: BorrowedFd<'a>,
    path: &'a Path,
    mount: u64,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Only look: refuse before the first removal.
    Look,
    Remove,
}

/// Removes `name` in the directory `parent` with all it holds. `parent_path`
/// serves messages only. What is not there is not an error.
///
/// # Errors
/// [`TreeError::NotOurs`] for a symlink, a file or another user's directory,
/// [`TreeError::Mounted`] when something is mounted on or below it.
pub fn remove_tree(
    parent: BorrowedFd<'_>,
    parent_path: &Path,
    name: &OsStr,
) -> Result<(), TreeError> {
    let path = parent_path.join(name);
    let top = match open_directory(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(TreeError::NotOurs(path)),
        Err(error) => return Err(failed("openat", &path)(error).into()),
    };
    let mount = mount_of(parent, OsStr::new(""), AtFlags::EMPTY_PATH)
        .map_err(failed("statx", parent_path))?
        .mount;
    let found = mount_of(top.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
        .map_err(failed("statx", &path))?;
    if found.mount != mount {
        return Err(TreeError::Mounted(path));
    }
    if found.owner != geteuid().as_raw() {
        return Err(TreeError::NotOurs(path));
    }
    for pass in [Pass::Look, Pass::Remove] {
        let level = Level {
            descriptor: top.as_fd(),
            path: &path,
            mount,
            depth: 0,
        };
        walk(&level, pass)?;
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("rmdir", &path)(error).into()),
    }
}

fn walk(level: &Level<'_>, pass: Pass) -> Result<(), TreeError> {
    if level.depth > DEPTH_MAX {
        return Err(TreeError::TooDeep(level.path.to_owned()));
    }
    for name in entries(level)? {
        let path = level.path.join(&name);
        let entry = match mount_of(level.descriptor, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(entry) => entry,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(failed("statx", &path)(error).into()),
        };
        if entry.mount != level.mount {
            return Err(TreeError::Mounted(path));
        }
        if entry.kind == FileType::Directory {
            walk_into(level, &name, &path, pass)?;
        } else if pass == Pass::Remove {
            unlink(level, &name, &path, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn walk_into(level: &Level<'_>, name: &OsStr, path: &Path, pass: Pass) -> Result<(), TreeError> {
    let child = match open_directory(level.descriptor, name) {
        Ok(child) => child,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("openat", path)(error).into()),
    };
    // Looked at again through the descriptor that is walked: what the name
    // meant a moment ago does not count.
    let opened = mount_of(child.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)
        .map_err(failed("statx", path))?;
    if opened.mount != level.mount {
        return Err(TreeError::Mounted(path.to_owned()));
    }
    walk(
        &Level {
            descriptor: child.as_fd(),
            path,
            mount: level.mount,
            depth: level.depth + 1,
        },
        pass,
    )?;
    if pass == Pass::Remove {
        unlink(level, name, path, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn unlink(level: &Level<'_>, name: &OsStr, path: &Path, flags: AtFlags) -> Result<(), CallFailed> {
    match unlinkat(level.descriptor, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("unlinkat", path)(error)),
    }
}

/// All names, read before anything is removed: removing while reading may skip
/// entries (readdir(3)).
fn entries(level: &Level<'_>) -> Result<Vec<OsString>, CallFailed> {
    let mut names = Vec::new();
    for entry in Dir::read_from(level.descriptor).map_err(failed("opendir", level.path))? {
        let entry = entry.map_err(failed("readdir", level.path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

struct Found {
    kind: FileType,
    owner: u32,
    /// Differs between two mounts of one filesystem too (statx(2), Linux 5.8).
    mount: u64,
}

fn mount_of(directory: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<Found, Errno> {
    let wanted = StatxFlags::TYPE | StatxFlags::UID | StatxFlags::MNT_ID;
    let found = statx(
        directory,
        OsStr::from_bytes(name.as_bytes()),
        flags | AtFlags::NO_AUTOMOUNT,
        wanted,
    )?;
    Ok(Found {
        kind: FileType::from_raw_mode(found.stx_mode.into()),
        owner: found.stx_uid,
        mount: found.stx_mnt_id,
    })
}
