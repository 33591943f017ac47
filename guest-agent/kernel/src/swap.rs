//! swapon(2).

use std::ffi::CStr;
use std::io;

/// Has the kernel swap to the device or file at `path`.
///
/// # Errors
/// Those of swapon(2): `EINVAL` for what was not made with mkswap(8), `EBUSY`
/// for what is swapped to already.
pub fn on(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a terminated string that outlives the call.
    let result = unsafe { libc::swapon(path.as_ptr(), 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
