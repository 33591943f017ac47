//! Leaving a namespace of the calling thread.

use rustix::io::Result;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a new cgroup namespace, whose root is the cgroup it
/// is in now, cgroup_namespaces(7).
///
/// # Errors
/// Those of unshare(2).
pub fn unshare_cgroup() -> Result<()> {
    // SAFETY: of all flags only CLONE_FILES can break a promise of Rust's
    // (which thread a descriptor is open in); it is not among these.
    unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }
}

/// Gives the calling thread a new mount namespace, a copy of its own.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare_mount() -> Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
}

/// Gives the calling thread a new, empty network namespace.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare_network() -> Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Gives the children of the calling thread, not itself, a new time namespace:
/// its clocks can be set until the first of them enters, time_namespaces(7).
///
/// # Errors
/// Those of unshare(2): `EINVAL` where the kernel has none.
pub fn unshare_time_of_children() -> Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }
}
