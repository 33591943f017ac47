//! What a VMM may open that has a user of its own.

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::geteuid;

use super::StoreError;
use crate::config::first_vmm_user;
use crate::host::failed;

/// Lets VMMs with users of their own have a file as its owner has it, those that
/// are given a descriptor of it: its directory lets nobody else through. Takes
/// root.
pub(super) fn share_with_vmms(file: &File, path: &Path, mode: u32) -> Result<(), StoreError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let group = first_vmm_user()?;
    match fchown(file, Some(0), Some(group)) {
        // A namespace without such users has no VMM with one.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        Err(error) => Err(failed("fchown", path)(error).into()),
        Ok(()) => {
            let mode = Permissions::from_mode(mode | (mode & 0o600) >> 3);
            file.set_permissions(mode)
                .map_err(|error| failed("chmod", path)(error).into())
        }
    }
}
