//! Starting a VMM: an own session, no environment, no descriptor and no
//! privilege beyond what was listed. And following it: the code of this package
//! that needs unsafe is all here.
#![expect(
    unsafe_code,
    reason = "what a child does between fork and exec, and registering a pidfd, has no safe interface"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Resource, Rlimit, geteuid, setrlimit, setsid, umask};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A VMM to start.
pub(crate) struct Launch<'a> {
    /// The program, an absolute path.
    pub(crate) program: &'a Path,
    /// Its arguments, without its own name.
    pub(crate) arguments: &'a [String],
    /// Descriptors it inherits, under the numbers they have here. All others
    /// but the standard ones are closed.
    pub(crate) inherited: &'a [BorrowedFd<'a>],
    /// Descriptors it inherits under numbers that were chosen for them. None of
    /// the numbers may be in use here at that moment: high ones never are, unless
    /// this process is about to run out of descriptors.
    pub(crate) placed: &'a [(BorrowedFd<'a>, RawFd)],
    /// Its standard output and error.
    pub(crate) log: &'a File,
    /// Started by root, it loses every capability; with this, all but that of
    /// opening files against their mode.
    pub(crate) may_override_modes: bool,
}

/// Starts it and returns once execve(2) succeeded. The child is in a session of
/// its own and outlives us.
///
/// # Errors
/// What fork(2), execve(2) or a step between them said.
pub(crate) fn spawn(launch: &Launch<'_>) -> io::Result<Pid> {
    let inherited: Vec<RawFd> = launch.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let placed = launch.placed.iter();
    let placed: Vec<(RawFd, RawFd)> = placed
        .map(|(descriptor, number)| (descriptor.as_raw_fd(), *number))
        .collect();
    let kept = if launch.may_override_modes {
        CapabilitySet::DAC_OVERRIDE
    } else {
        CapabilitySet::empty()
    };
    let is_root = geteuid().is_root();
    let mut command = Command::new(launch.program);
    command
        .args(launch.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(launch.log.try_clone()?)
        .stderr(launch.log.try_clone()?);
    // SAFETY: between fork and exec only system calls are made and memory that
    // was allocated before is read: nothing allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            set_no_new_privs(true)?;
            // A core file would be a copy of the guest's memory.
            let none = Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            setrlimit(Resource::Core, none)?;
            if is_root {
                drop_capabilities(kept)?;
            }
            // What it creates is for its user alone.
            umask(Mode::RWXG | Mode::RWXO);
            close_all_but(&inherited)?;
            place(&placed)
        });
    }
    let child = command.spawn()?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Has the runtime tell when a pidfd, or another descriptor that never says that
/// it is writable, becomes readable.
///
/// # Errors
/// What epoll_ctl(2) said.
pub(crate) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd has one open descriptor and always the same; nobody
    // else gets at it.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}

/// Empties the bounding set, from which root's capabilities are made at execve
/// (capabilities(7)). Without CAP_SETPCAP that is refused, and there is little
/// to drop.
fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    // Dropping CAP_SETPCAP only counts from execve on, so the order is free.
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Unknown to this kernel.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::PERM) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Marks every descriptor but the standard and the listed ones to be closed by
/// execve; closing them here would close the one the parent waits on.
fn close_all_but(inherited: &[RawFd]) -> io::Result<()> {
    // SAFETY: close_range(2) takes three numbers and touches no memory of ours.
    let closed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    for &descriptor in inherited {
        // SAFETY: the parent owns these descriptors, and its memory, which this
        // is a copy of, keeps them open until spawn has returned.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    Ok(())
}

/// Gives descriptors the numbers they shall have. The one that the parent waits
/// on is open here too, and must not be written over.
fn place(placed: &[(RawFd, RawFd)]) -> io::Result<()> {
    for &(descriptor, number) in placed {
        // SAFETY: F_GETFD takes two numbers and touches no memory of ours.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } != -1 {
            return Err(Errno::MFILE.into());
        }
        // SAFETY: dup2(2) takes two numbers; the new one was free just now, and
        // after fork there is no other thread that could have taken it.
        if unsafe { libc::dup2(descriptor, number) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
