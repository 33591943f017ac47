//! Attributes of mounts.
#![expect(unsafe_code, reason = "mount_setattr(2) has no safe interface")]

use std::ffi::CStr;
use std::os::fd::RawFd;

use rustix::io::Errno;

/// What is changed of mounts.
pub(super) type Attributes = libc::mount_attr;

/// Nothing.
pub(super) const UNCHANGED: Attributes = Attributes {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

/// Changes a mount and all below it. Allocates nothing.
pub(super) fn set_attributes(
    directory: RawFd,
    path: &CStr,
    flags: libc::c_int,
    wanted: &Attributes,
) -> Result<(), Errno> {
    // SAFETY: mount_setattr(2) reads a string that ends in 0 and a structure of
    // the size that it is told; both outlive the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            libc::AT_RECURSIVE | flags,
            std::ptr::from_ref(wanted),
            size_of_val(wanted),
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(super::spawn::last_errno())
    }
}
