//! The agent's files that give a container its identity, mounted read-only
//! where software looks for it.
//!
//! A thaw rewrites the files in place, and every container sees it at once.

use crate::container::destination::{Kind, attach, find, find_or_make, is_in_proc};
use crate::container::error::{Failure, Step};
use crate::container::spec::BOOT_ID;
use guest_kernel::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Mounts them, each with its place. A place that is missing is made; in a root
/// that cannot be written it stays missing, and so does the file: there is
/// then nothing there that could be another copy's.
pub(super) fn mount(
    root: BorrowedFd<'_>,
    files: &[(&'static str, OwnedFd)],
) -> Result<(), Failure> {
    files.iter().try_for_each(|(path, file)| {
        cover(root, file.as_fd(), path).map_err(Failure::at(Step::Identity, *path))
    })
}

fn cover(root: BorrowedFd<'_>, file: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let place = if path == BOOT_ID {
        // A container without a procfs has no boot_id; one is not made up.
        match find(root, Path::new(path)) {
            Ok(place) if is_in_proc(place.as_fd())? => place,
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    } else {
        match find_or_make(root, Path::new(path), Kind::File) {
            Ok(place) => place,
            // Those after the first are root's of a user namespace.
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::OVERFLOW) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    };
    let attributes = Attributes {
        set: READ_ONLY | NO_SUID | NO_DEV | NO_EXEC,
        ..Attributes::default()
    };
    set_attributes(file, attributes, false)?;
    Ok(attach(file, place.as_fd())?)
}
