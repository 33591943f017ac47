//! The process's working directory.

use crate::container::destination::{Kind, find_or_make};
use crate::container::error::{Failure, Step};
use rustix::io::Errno;
use rustix::process::{chdir, getcwd};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Makes it in the tree `root`, if it is missing and the tree can be written.
pub(super) fn make(root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    match find_or_make(root, path, Kind::Directory) {
        // Entering it will tell.
        Ok(_) | Err(Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::OVERFLOW) => Ok(()),
        Err(error) => Err(failed(path, error)),
    }
}

/// Goes there, and makes sure that it is inside the root: a descriptor that
/// leaked in could be named by a path below /proc.
pub(super) fn enter(path: &Path) -> Result<(), Failure> {
    chdir(path).map_err(|error| failed(path, error))?;
    let reached = getcwd(Vec::new()).map_err(|error| failed(path, error))?;
    if reached.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(failed(path, Errno::NOENT))
    }
}

fn failed(path: &Path, error: Errno) -> Failure {
    Failure::at(Step::WorkingDirectory, path.to_string_lossy())(error.into())
}
