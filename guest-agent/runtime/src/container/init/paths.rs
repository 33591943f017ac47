//! Paths a container can not write, or not see.

use super::devices::guest_node;
use crate::container::destination::{Kind, attach, clone_mount, find, is_directory, new_mount};
use crate::container::error::{Failure, Step};
use guest_kernel::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

const HIDDEN: Attributes = Attributes {
    set: READ_ONLY | NO_SUID | NO_DEV | NO_EXEC,
    clear: 0,
    propagation: 0,
};

/// Makes each path read-only, with all that is mounted below it.
pub(super) fn make_readonly(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Failure> {
    each(root, paths, Step::ReadonlyPath, |place| {
        let mount = clone_mount(place, true)?;
        let read_only = Attributes {
            set: READ_ONLY,
            ..Attributes::default()
        };
        set_attributes(mount.as_fd(), read_only, true)?;
        Ok(attach(mount.as_fd(), place)?)
    })
}

/// Hides each path: a file behind /dev/null, a directory behind an empty one.
pub(super) fn mask(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Failure> {
    each(root, paths, Step::MaskedPath, |place| {
        let kind = if is_directory(place)? {
            Kind::Directory
        } else {
            Kind::File
        };
        let mount = match kind {
            Kind::Directory => empty_directory()?,
            Kind::File => null_device()?,
        };
        Ok(attach(mount.as_fd(), place)?)
    })
}

fn empty_directory() -> io::Result<OwnedFd> {
    let data = [("size", "4k"), ("mode", "555")];
    let data = data.map(|(key, value)| (key.to_owned(), Some(value.to_owned())));
    let mount = new_mount("tmpfs", Path::new("tmpfs"), &data)?;
    set_attributes(mount.as_fd(), HIDDEN, false)?;
    Ok(mount)
}

/// It must be possible to open it: programs that read the file read nothing.
fn null_device() -> io::Result<OwnedFd> {
    let mount = clone_mount(guest_node("null", 1, 3)?.as_fd(), false)?;
    let attributes = Attributes {
        set: HIDDEN.set & !NO_DEV,
        ..HIDDEN
    };
    set_attributes(mount.as_fd(), attributes, false)?;
    Ok(mount)
}

/// What does not exist needs nothing done.
fn each(
    root: BorrowedFd<'_>,
    paths: &[PathBuf],
    step: Step,
    act: impl Fn(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<(), Failure> {
    for path in paths {
        let failed = Failure::at(step, path.to_string_lossy());
        match find(root, Path::new(path)) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(failed(error.into())),
            Ok(place) => act(place.as_fd()).map_err(failed)?,
        }
    }
    Ok(())
}
