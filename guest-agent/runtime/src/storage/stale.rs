//! Mounts of the host's directory whose files are gone from it.

use super::{StorageError, failed, tree};
use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::path::Path;

/// Looks at every mount below `directory`: that has the file system ask the
/// host again, and forget what is no more there. One that says itself that it
/// is stale is detached.
///
/// # Errors
/// Those of reading the table of mounts; a mount's own do not matter.
pub fn detach_stale(directory: &Path) -> Result<(), StorageError> {
    for point in tree::mounts_below(directory)? {
        if matches!(
            statat(CWD, &point, AtFlags::SYMLINK_NOFOLLOW),
            Err(Errno::STALE)
        ) {
            unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(failed("umount", &point))
                // Somebody else may have been quicker.
                .ok();
        }
    }
    Ok(())
}
