//! What lies in a directory, copied into the tmpfs that is to cover it
//! (`tmpcopyup`): with modes, owners and links, without extended attributes and
//! without what is mounted in it.
//!
//! All of it goes by descriptors: no symbolic link is followed, and nobody else
//! sees the tmpfs yet.

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fchmod, fchown,
    fstat, linkat, mkdirat, mknodat, openat, openat2, readlinkat, symlinkat,
};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most files that are copied, and how deep they may lie. Each level takes
/// some descriptors and some stack.
const FILES_MAX: usize = 1 << 16;
const DEPTH_MAX: usize = 64;

/// Why something was not copied.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CopyError {
    pub(super) errno: Errno,
    /// The path of the device node that it was about, which only root of the
    /// guest may make.
    pub(super) device: Option<String>,
}

impl From<Errno> for CopyError {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            device: None,
        }
    }
}

/// Copies what is in `from` to `to`, the empty root of a file system of the
/// container's own. The size of that is what bounds the bytes.
///
/// # Errors
/// `NOSPC` for more files than are copied, or bytes than there is room for;
/// `NAMETOOLONG` for what lies too deep; otherwise those of the calls.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> std::result::Result<(), CopyError> {
    let from = open_directory(from, c".", ResolveFlags::empty())?;
    let top = open_directory(to, c".", ResolveFlags::empty())?;
    let mut copier = Copier {
        top: top.as_fd(),
        files: 0,
        linked: HashMap::new(),
    };
    copier.fill(&from, &top, b"", 0)
}

/// Makes the root of the copy what the directory itself is.
pub(super) fn copy_owner_and_mode(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let to = open_directory(to, c".", ResolveFlags::empty())?;
    own(to.as_fd(), &fstat(from)?)
}

struct Copier<'a> {
    top: BorrowedFd<'a>,
    files: usize,
    /// Files that have several names, and the path of the first copy below the
    /// top.
    linked: HashMap<(u64, u64), CString>,
}

impl Copier<'_> {
    fn fill(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &[u8],
        depth: usize,
    ) -> std::result::Result<(), CopyError> {
        if depth > DEPTH_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.files += 1;
            if self.files > FILES_MAX {
                return Err(Errno::NOSPC.into());
            }
            let mut below = path.to_vec();
            below.extend_from_slice(name.to_bytes());
            self.copy_one(from, to, name, below, depth)?;
        }
        Ok(())
    }

    fn copy_one(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        mut path: Vec<u8>,
        depth: usize,
    ) -> std::result::Result<(), CopyError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat(from, name, flags, Mode::empty())?;
        let stat = fstat(&found)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            mkdirat(to, name, Mode::RWXU)?;
            let copy = open_directory(to.as_fd(), name, ResolveFlags::empty())?;
            path.push(b'/');
            let inside = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
            match open_directory(from.as_fd(), name, inside) {
                Ok(found) => self.fill(&found, &copy, &path, depth + 1)?,
                // Something is mounted there.
                Err(Errno::XDEV) => {}
                Err(error) => return Err(error.into()),
            }
            // Last: its mode may keep files from being made in it.
            return Ok(own(copy.as_fd(), &stat)?);
        }
        let file = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&file) {
                let first = first.as_c_str();
                return Ok(linkat(self.top, first, to, name, AtFlags::empty())?);
            }
            let path = CString::new(path.clone()).map_err(|_| Errno::INVAL)?;
            self.linked.insert(file, path);
        }
        let copied = match kind {
            FileType::RegularFile => copy_file(from, to, name),
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(target.as_c_str(), to, name)?;
                let (user, group) = owner(&stat);
                chownat(to, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                mknodat(to, name, kind, mode, stat.st_rdev).map_err(|errno| {
                    let is_device = errno == Errno::PERM && kind != FileType::Fifo;
                    let path = String::from_utf8_lossy(&path).into_owned();
                    CopyError {
                        errno,
                        device: is_device.then_some(path),
                    }
                })?;
                let (user, group) = owner(&stat);
                chownat(to, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
            }
        };
        Ok(copied?)
    }
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<()> {
    // A FIFO that has taken its place is not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let found = File::from(openat(from, name, flags, Mode::empty())?);
    let stat = fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = File::from(openat(to, name, flags, Mode::RUSR)?);
    std::io::copy(&mut &found, &mut &copy)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    own(copy.as_fd(), &stat)
}

/// The owner first: to change it takes set-user-id bits away.
fn own(copy: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    let (user, group) = owner(stat);
    fchown(copy, user, group)?;
    fchmod(copy, Mode::from_raw_mode(stat.st_mode))
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    let user = Uid::from_raw(stat.st_uid);
    let group = Gid::from_raw(stat.st_gid);
    (Some(user), Some(group))
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr, more: ResolveFlags) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(parent, name, flags, Mode::empty(), more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    fn copied(from: &Path, to: &Path) -> std::result::Result<(), CopyError> {
        let open = |path: &Path| File::open(path).unwrap();
        copy(open(from).as_fd(), open(to).as_fd())
    }

    #[test]
    fn modes_and_links_are_kept_and_no_link_is_followed() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let at = |name: &str| from.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "content").unwrap();
        fs::hard_link(at("a/b/file"), at("other")).unwrap();
        fs::hard_link(at("a/b/file"), at("a/third")).unwrap();
        symlink(outside.path(), at("a/away")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::set_permissions(at("a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(at("a/b"), fs::Permissions::from_mode(0o1555)).unwrap();
        copied(from.path(), to.path()).unwrap();
        let made = |name: &str| to.path().join(name);
        assert_eq!(fs::read(made("a/b/file")).unwrap(), b"content");
        let stat = fs::symlink_metadata(made("a/b/file")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.nlink()), (0o4751, 3));
        for name in ["other", "a/third"] {
            assert_eq!(fs::metadata(made(name)).unwrap().ino(), stat.ino());
        }
        assert_eq!(fs::metadata(made("a/b")).unwrap().mode() & 0o7777, 0o1555);
        assert_eq!(fs::read_link(made("a/away")).unwrap(), outside.path());
        assert_eq!(
            fs::read_link(made("dangling")).unwrap(),
            Path::new("nowhere")
        );
        let pipe = fs::symlink_metadata(made("pipe")).unwrap().mode();
        assert_eq!(FileType::from_raw_mode(pipe), FileType::Fifo);
    }

    #[test]
    fn what_lies_too_deep_is_an_error_and_no_end_of_the_stack() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = |levels: usize| {
            let path: std::path::PathBuf = std::iter::repeat_n("d", levels).collect();
            fs::create_dir_all(from.path().join(path)).unwrap();
        };
        deep(DEPTH_MAX);
        copied(from.path(), to.path()).unwrap();
        deep(DEPTH_MAX + 2);
        let again = tempfile::tempdir().unwrap();
        let error = copied(from.path(), again.path()).unwrap_err();
        assert_eq!(error, Errno::NAMETOOLONG.into());
    }

    #[test]
    fn more_files_than_are_copied_are_an_error() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("one"), "").unwrap();
        let from = OwnedFd::from(File::open(from.path()).unwrap());
        let to = OwnedFd::from(File::open(to.path()).unwrap());
        let mut copier = Copier {
            top: to.as_fd(),
            files: FILES_MAX,
            linked: HashMap::new(),
        };
        let copied = copier.fill(&from, &to, b"", 0);
        assert_eq!(copied, Err(Errno::NOSPC.into()));
    }
}
