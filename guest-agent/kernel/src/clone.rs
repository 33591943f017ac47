//! clone3(2) as a fork that makes a sibling: the child's parent is the
//! caller's own parent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// linux/sched.h; the C libraries' constant does not fit their type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Namespaces for the child, a set of `CLONE_NEW*` (namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces(u64);

impl Namespaces {
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// Process ids.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// Hostname.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// Network.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET as u64);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Cloned {
    /// The caller.
    Caller {
        /// The child's process id in the caller's pid namespace.
        pid: i32,
        /// Refers to the child, pidfd_open(2).
        pidfd: OwnedFd,
    },
    /// The child.
    Child,
}

/// Makes a sibling of the calling process in new `namespaces` and inside the
/// cgroup v2 directory `cgroup`. It is a child of the caller's parent, which
/// must reap it.
///
/// # Errors
/// `EBUSY` if the caller has more than one thread: the child would inherit
/// locks that nobody can release. Otherwise those of clone3(2).
pub fn sibling(namespaces: Namespaces, cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    require_one_thread()?;
    let mut pidfd: RawFd = -1;
    let mut arguments = libc::clone_args {
        // CLONE_PARENT takes the caller's own exit signal: exit_signal must
        // be 0 (clone(2)).
        flags: namespaces.0
            | libc::CLONE_PARENT as u64
            | libc::CLONE_PIDFD as u64
            | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::try_from(cgroup.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    // SAFETY: without CLONE_VM the child runs on a copy of this memory, with
    // the same stack: to this program it is fork(2). The structure and its
    // size are the kernel's own, and `pidfd` outlives the call. The caller has
    // one thread, so that the copy holds no lock that another thread took.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Caller {
            pid: i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?,
            // SAFETY: the kernel has just written a new descriptor there, and
            // nothing else knows it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// unshare(2) of CLONE_THREAD does nothing but to say `EINVAL` to a process
/// with more than one thread.
pub(crate) fn require_one_thread() -> io::Result<()> {
    // SAFETY: as said, there is no effect.
    match unsafe { libc::unshare(libc::CLONE_THREAD) } {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // The test harness has one for this test beside its main one; another
        // is made in case it has not.
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receiver.recv());
        let directory = std::fs::File::open("/").unwrap();
        let error = sibling(Namespaces::default(), directory.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(sender);
        assert!(thread.join().unwrap().is_err());
    }
}
