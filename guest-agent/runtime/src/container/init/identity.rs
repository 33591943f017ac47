//! The agent's files that give a container its identity, mounted read-only
//! where software looks for it.
//!
//! A thaw rewrites the files in place, and every container sees it at once.

use super::destination::{
    Kind, attach, clone_mount, find, find_in_guest, find_or_make, is_in_proc,
};
use crate::container::error::{Failure, Step};
use crate::container::spec::IdentityFiles;
use guest_kernel::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const GENERATION: &str = "/run/tardigrade/generation";

/// Mounts those that are given. A place that is missing is made; in a root
/// that cannot be written it stays missing, and so does the file: there is
/// then nothing there that could be another copy's.
pub(super) fn mount(root: BorrowedFd<'_>, files: &IdentityFiles) -> Result<(), Failure> {
    for (file, path) in [
        (&files.machine_id, MACHINE_ID),
        (&files.boot_id, BOOT_ID),
        (&files.generation, GENERATION),
    ] {
        if let Some(file) = file {
            cover(root, file, Path::new(path)).map_err(Failure::at(Step::Identity, path))?;
        }
    }
    Ok(())
}

fn cover(root: BorrowedFd<'_>, file: &Path, path: &Path) -> io::Result<()> {
    let place = if path == Path::new(BOOT_ID) {
        // A container without a procfs has no boot_id; one is not made up.
        match find(root, path) {
            Ok(place) if is_in_proc(place.as_fd())? => place,
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    } else {
        match find_or_make(root, path, Kind::File) {
            Ok(place) => place,
            Err(Errno::ROFS) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    };
    let mount = clone_mount(find_in_guest(file)?.as_fd(), false)?;
    let attributes = Attributes {
        set: READ_ONLY | NO_SUID | NO_DEV | NO_EXEC,
        ..Attributes::default()
    };
    set_attributes(mount.as_fd(), attributes, false)?;
    Ok(attach(mount.as_fd(), place.as_fd())?)
}
