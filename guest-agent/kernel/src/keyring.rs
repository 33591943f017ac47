//! Keys, keyrings(7).

use std::io;

/// Gives the process a new, empty, anonymous session keyring.
///
/// # Errors
/// Those of keyctl(2) KEYCTL_JOIN_SESSION_KEYRING; `ENOSYS` where the kernel
/// has no keys at all.
pub fn join_new_session() -> io::Result<()> {
    let anonymous: *const libc::c_char = std::ptr::null();
    // SAFETY: this operation reads one pointer, and takes null for "anonymous".
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            anonymous,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
