//! mount_setattr(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What to change in a mount. Bits are `MOUNT_ATTR_*`, linux/mount.h.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear, before the others are set.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`; 0 leaves
    /// the propagation as it is.
    pub propagation: u64,
}

/// Read-only.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-id bits and file capabilities have no effect.
pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device nodes cannot be opened.
pub const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Nothing can be executed.
pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// The access times' mode, a field of several bits: to be cleared whole before
/// one of its values is set.
pub const ATIME_FIELD: u64 = libc::MOUNT_ATTR__ATIME;
/// A value of the field: access times are not written.
pub const NO_ATIME: u64 = libc::MOUNT_ATTR_NOATIME;
/// A value of the field: access times are always written.
pub const STRICT_ATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
/// Access times of directories are not written.
pub const NO_DIR_ATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
/// Symbolic links are not followed.
pub const NO_SYM_FOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Changes the mount whose root `mount` refers to; if `recursive`, also all
/// mounts below it.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    recursive: bool,
) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    call(mount, argument, recursive)
}

/// Has a detached mount show other owners than its file system knows: who has
/// an id in `namespace` there is shown as the id that stands for it outside
/// (mount_setattr(2), "ID-mapped mounts"). If `recursive`, also all mounts
/// below it.
///
/// # Errors
/// Those of mount_setattr(2): `EINVAL` for a file system or a kernel that does
/// not do it, `EPERM` for a mount that is mapped already.
pub fn map_ids(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    call(mount, argument, recursive)
}

fn call(mount: BorrowedFd<'_>, mut argument: libc::mount_attr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a terminated string; the structure and its size are
    // the kernel's own, and it outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw mut argument,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
