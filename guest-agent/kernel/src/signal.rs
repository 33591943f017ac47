//! Signals: sending by pidfd, and a clean slate before an execve(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_NSIG`, asm-generic/signal.h.
const SIGNALS: libc::c_long = 64;
/// The size of the kernel's signal set, in bytes.
const MASK_SIZE: libc::c_long = 8;

/// Sends signal number `signal` to the process; 0 only asks whether one can.
///
/// # Errors
/// Those of pidfd_send_signal(2): `ESRCH` if the process was reaped, `EINVAL`
/// for a number that is no signal.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_details: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the null pointer stands for "as by kill(2)".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            no_details,
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives every signal its default action and unblocks all: ignored and blocked
/// ones would be inherited over execve(2), and Rust's runtime ignores SIGPIPE.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn reset_all() -> io::Result<()> {
    // The kernel's structure: handler, flags, restorer and mask, of which 0
    // means the default action, nothing, none and empty. The C library's call
    // would not take the numbers it keeps for itself, which may be ignored too.
    let default = [0_u64; 4];
    for number in 1..=SIGNALS {
        let no_old: *mut u64 = std::ptr::null_mut();
        // SAFETY: the structure has the kernel's size and outlives the call,
        // and the default action runs no code of this program. The call fails
        // for SIGKILL and SIGSTOP, which have no other action.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                no_old,
                MASK_SIZE,
            )
        };
    }
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(io::Error::from)
}
