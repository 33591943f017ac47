//! All file descriptors of the process at once.

use std::io;

/// Has every descriptor from `first` on closed by the next execve(2).
///
/// # Errors
/// Those of close_range(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the flag closes nothing now: every descriptor stays valid for
    // its owner.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
