//! Places inside a container's tree, found and made by descriptors.
//!
//! The tree is the image's and the container's: its symbolic links lead
//! wherever they please. Every path is resolved as if the tree were the root
//! (openat2(2), RESOLVE_IN_ROOT), so that none leads out of it, and what was
//! found is used by its descriptor, so that it cannot be another meanwhile.

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, open, openat, openat2,
};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// `PROC_SUPER_MAGIC`, linux/magic.h.
const PROC: u64 = 0x9fa0;
/// `DEVPTS_SUPER_MAGIC`, linux/magic.h.
const DEVPTS: u64 = 0x1cd1;
/// Of directories made on the way.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Of files made to be mounted on.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What a destination is to be, if it has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::container) enum Kind {
    Directory,
    File,
}

/// The root of the calling process.
pub(in crate::container) fn open_root() -> Result<OwnedFd> {
    open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What `path` leads to in the tree `root`.
pub(in crate::container) fn find(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    find_with(root, path, OFlags::PATH, ResolveFlags::empty())
}

/// As [`find`], opened with `flags` and resolved with more restrictions.
pub(in crate::container) fn find_with(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | resolve,
    )
}

/// As [`find`]; what is missing is made. Nothing that exists is changed.
pub(in crate::container) fn find_or_make(
    root: BorrowedFd<'_>,
    path: &Path,
    kind: Kind,
) -> Result<OwnedFd> {
    match find(root, path) {
        Err(Errno::NOENT) => {}
        outcome => return outcome,
    }
    let names = components(path)?;
    let mut parent = root.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut so_far = PathBuf::from("/");
    for (index, name) in names.iter().enumerate() {
        so_far.push(name);
        parent = match find(root, &so_far) {
            Err(Errno::NOENT) => {
                let last = index + 1 == names.len();
                let kind = if last { kind } else { Kind::Directory };
                make(parent.as_fd(), name, kind)?;
                // A dangling link is still in the way, and is an error.
                find(root, &so_far)?
            }
            outcome => outcome?,
        };
    }
    Ok(parent)
}

fn make(parent: BorrowedFd<'_>, name: &Path, kind: Kind) -> Result<()> {
    let made = match kind {
        Kind::Directory => mkdirat(parent, name, DIRECTORY_MODE),
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat(parent, name, flags, FILE_MODE).map(drop)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        outcome => outcome,
    }
}

/// The names in an absolute path. One that goes up means something else in
/// every tree.
fn components(path: &Path) -> Result<Vec<&Path>> {
    path.components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .map(|component| match component {
            Component::Normal(name) => Ok(Path::new(name)),
            _ => Err(Errno::INVAL),
        })
        .collect()
}

/// Whether it is a directory.
pub(in crate::container) fn is_directory(place: BorrowedFd<'_>) -> Result<bool> {
    Ok(FileType::from_raw_mode(fstat(place)?.st_mode) == FileType::Directory)
}

/// Whether it lies on a procfs.
pub(in crate::container) fn is_in_proc(place: BorrowedFd<'_>) -> Result<bool> {
    on(place, PROC)
}

/// Whether it lies on a devpts.
pub(in crate::container) fn is_in_devpts(place: BorrowedFd<'_>) -> Result<bool> {
    on(place, DEVPTS)
}

fn on(place: BorrowedFd<'_>, magic: u64) -> Result<bool> {
    Ok(u64::try_from(fstatfs(place)?.f_type).is_ok_and(|found| found == magic))
}

/// A detached bind mount of what `place` refers to.
pub(in crate::container) fn clone_mount(place: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(place, "", flags)
}

/// A new, detached instance of a file system, with options of its own.
pub(in crate::container) fn new_mount(
    fstype: &str,
    source: &Path,
    data: &[(String, Option<String>)],
) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    let none = MountAttrFlags::empty();
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        none,
    )?)
}

/// What `path` leads to in the guest. None of its components may be a symbolic
/// link: a container could have made it, in a volume.
pub(in crate::container) fn find_in_guest(path: &Path) -> Result<OwnedFd> {
    openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Puts a detached mount on `place`.
pub(in crate::container) fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<()> {
    move_mount(
        mount,
        "",
        place,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let root = open(directory.path(), OFlags::PATH, Mode::empty()).unwrap();
        (directory, root)
    }

    #[test]
    fn a_link_out_of_the_tree_leads_into_it() {
        let (directory, root) = tree();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), directory.path().join("link")).unwrap();
        // The link is absolute: in the tree it leads to what is not there.
        let place = find_or_make(root.as_fd(), Path::new("/link/file"), Kind::File);
        assert_eq!(place.unwrap_err(), Errno::NOENT);
        symlink("../../../..", directory.path().join("up")).unwrap();
        find_or_make(root.as_fd(), Path::new("/up/file"), Kind::File).unwrap();
        assert!(directory.path().join("file").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_there_is_left_alone() {
        let (directory, root) = tree();
        find_or_make(root.as_fd(), Path::new("/a/b/c"), Kind::Directory).unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
        fs::write(directory.path().join("a/file"), "kept").unwrap();
        find_or_make(root.as_fd(), Path::new("/a/file"), Kind::File).unwrap();
        assert_eq!(fs::read(directory.path().join("a/file")).unwrap(), b"kept");
        let below_file = Path::new("/a/file/x");
        assert!(find_or_make(root.as_fd(), below_file, Kind::File).is_err());
        let upward = Path::new("/missing/../x");
        assert!(find_or_make(root.as_fd(), upward, Kind::File).is_err());
    }
}
