//! Removal of a directory with all that is in it, however deep a workload has
//! made it: in constant stack and descriptors. A function that calls itself a
//! level would end with the stack, and the agent with it.

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, ResolveFlags, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Removes the directory at `path` and all that is in it; symbolic links are
/// removed, not followed. It blocks.
///
/// # Errors
/// Those of unlinkat(2), renameat2(2) and openat2(2): `NOENT` without such a
/// directory, `NOTDIR` if it is none, `XDEV` or `BUSY` where something is mounted
/// below it, of which nothing is touched.
pub fn remove_directory(path: &Path) -> Result<(), Errno> {
    remove_directory_at(CWD, path)
}

/// The same below the directory `parent`.
///
/// # Errors
/// See [`remove_directory`].
pub fn remove_directory_at(parent: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    // The first may lie on another file system than its parent.
    let top = open(parent, path, ResolveFlags::empty())?;
    let mut hoisted = Hoisted::default();
    while empty(&top, &mut hoisted)? {}
    match unlinkat(parent, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        outcome => outcome,
    }
}

fn open<P: rustix::path::Arg>(
    parent: impl AsFd,
    path: P,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(parent, path, flags, Mode::empty(), more)
}

/// Names for what is moved up.
#[derive(Default)]
struct Hoisted(u64);

impl Hoisted {
    /// Moves `name` of `from` up to `top`, under a name that is free there.
    fn take(&mut self, from: &OwnedFd, name: &CStr, top: &OwnedFd) -> Result<(), Errno> {
        loop {
            self.0 = self.0.wrapping_add(1);
            let free = format!(".removed-{}", self.0);
            match renameat_with(from, name, top, free, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                outcome => return outcome,
            }
        }
    }
}

/// Removes what is in `top`, but for directories two levels below it, which come
/// up one. Gives whether there may be more to remove: each turn that says so has
/// removed a directory.
fn empty(top: &OwnedFd, hoisted: &mut Hoisted) -> Result<bool, Errno> {
    let mut more = false;
    for name in names(top)? {
        if !remove_unless_full(top, &name)? {
            continue;
        }
        more = true;
        let directory = open(top, &name, ResolveFlags::BENEATH | ResolveFlags::NO_XDEV)?;
        for below in names(&directory)? {
            if remove_unless_full(&directory, &below)? {
                hoisted.take(&directory, &below, top)?;
            }
        }
        // What came in meanwhile is for the next turn.
        remove_unless_full(top, &name)?;
    }
    Ok(more)
}

/// Removes `name`, unless it is a directory with something in it: that stays, and
/// is told as true.
fn remove_unless_full(parent: &OwnedFd, name: &CStr) -> Result<bool, Errno> {
    let removed = match unlinkat(parent, name, AtFlags::empty()) {
        // The second is POSIX's, unlink(2).
        Err(Errno::ISDIR | Errno::PERM) => unlinkat(parent, name, AtFlags::REMOVEDIR),
        outcome => outcome,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_directory_goes_with_all_that_is_in_it_and_nothing_that_links_lead_to() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        for branch in ["a/b/c", "a/d", ".removed-1/x/y", "e"] {
            fs::create_dir_all(top.join(branch)).unwrap();
            fs::write(top.join(branch).join("file"), branch).unwrap();
            let link = top.join(branch).join("link");
            std::os::unix::fs::symlink(outside.path(), link).unwrap();
        }
        remove_directory(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.path().join("precious").exists());
        assert_eq!(remove_directory(&top), Err(Errno::NOENT));
    }

    #[test]
    fn no_depth_is_too_deep() {
        const LEVELS: usize = 20_000;
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut at = open(CWD, &top, ResolveFlags::empty()).unwrap();
        for _ in 0..LEVELS {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open(&at, "d", ResolveFlags::empty()).unwrap();
        }
        drop(at);
        remove_directory(&top).unwrap();
        assert!(!top.exists());
    }
}
