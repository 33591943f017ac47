//! A user namespace that nobody is in yet but a process that does nothing.

use crate::clone::require_one_thread;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A process that holds a new user namespace, user_namespaces(7), which has no
/// mappings yet. It is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    /// Makes a user namespace whose parent is the caller's.
    ///
    /// # Errors
    /// `EBUSY` if the caller has more than one thread; otherwise those of
    /// clone3(2): `ENOSPC` for one namespace too many, `EINVAL` where the
    /// kernel has none.
    pub fn new() -> io::Result<Self> {
        require_one_thread()?;
        let parent = std::process::id();
        let mut pidfd: RawFd = -1;
        let mut arguments = libc::clone_args {
            flags: libc::CLONE_NEWUSER as u64 | libc::CLONE_PIDFD as u64,
            pidfd: (&raw mut pidfd).addr() as u64,
            child_tid: 0,
            parent_tid: 0,
            exit_signal: libc::SIGCHLD as u64,
            stack: 0,
            stack_size: 0,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: 0,
        };
        // SAFETY: without CLONE_VM the child runs on a copy of this memory: to
        // this program it is fork(2). The structure and its size are the
        // kernel's own, and `pidfd` outlives the call. The caller has one
        // thread, so that the copy holds no lock that another thread took.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => hold(parent),
            pid => Ok(Self {
                pid: i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?,
                // SAFETY: the kernel has just written a new descriptor there,
                // and nothing else knows it.
                pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            }),
        }
    }

    /// Its process id in the caller's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

/// Does nothing for as long as the parent lives.
fn hold(parent: u32) -> ! {
    // SAFETY: these calls take numbers only, and are allowed after a fork.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // It may have ended before it was asked for.
        while u32::try_from(libc::getppid()) == Ok(parent) {
            libc::pause();
        }
        libc::_exit(0)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It does not end by itself while this process lives.
        let _ = crate::signal::send(self.pidfd.as_fd(), libc::SIGKILL);
        let Ok(pidfd) = libc::id_t::try_from(self.pidfd.as_raw_fd()) else {
            return;
        };
        // SAFETY: the structure is of integers, for which zeros are valid; the
        // kernel fills it while it lives.
        unsafe {
            let mut ended: libc::siginfo_t = std::mem::zeroed();
            while libc::waitid(libc::P_PIDFD, pidfd, &raw mut ended, libc::WEXITED) != 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}
