//! Starting a VMM: an own session, no environment, no descriptor and no
//! privilege beyond what was listed. And following it: the code of this package
//! that needs unsafe is all here.
//!
//! The child borrows our memory until its execve, as vfork(2)'s does: a copy of
//! the page tables, and then of each page either side writes to, would be made
//! only to be thrown away. Only one that is started in a cgroup has a copy: for
//! a stack of its own clone3(2) has no function in the C library, and to be moved
//! into a cgroup later would cost milliseconds.
#![expect(
    unsafe_code,
    reason = "what a child does before its exec, and registering a pidfd, has no safe interface"
)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::fs::Mode;
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Resource, Rlimit, chdir, geteuid, setrlimit, setsid, umask};
use rustix::thread::{
    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::{Cgroup, Told};
use super::confinement::{Cell, Failed, Own};
use super::directory::without_mounts;
use super::filter::Filter;
use crate::error::Error;

/// The stack a child has until its execve, in units of 16 bytes, which is how a
/// stack is aligned.
const STACK: usize = (256 << 10) / size_of::<u128>();
/// The lowest descriptor that is no standard one.
const FIRST_OWN: RawFd = 3;
/// The step that every failure is of that is not of a confinement.
pub(super) const EXECVE: &str = "execve";
/// The highest signal, signal(7).
const LAST_SIGNAL: libc::c_int = 64;

/// A capability that a program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// That of opening files against their mode.
    OverridingModes,
    /// That of dropping capabilities: it drops that by itself, and its own filter
    /// of system calls ends it where it has nothing to drop.
    Dropping,
}

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
    /// Its standard error, and its standard output unless that goes elsewhere.
    pub(crate) log: &'a File,
    /// Where its standard output goes.
    pub(crate) output: Option<&'a File>,
    /// It inherits no capability, and started by root it loses every one, but
    /// for this.
    pub(crate) keeps: Option<Keeps>,
    /// What its system calls are held against besides its own filter.
    pub(crate) filter: Option<Filter>,
    /// What else confines it, if anything does.
    pub(crate) cell: Option<&'a Cell>,
    /// Where it is counted and limited, if not with us.
    pub(crate) cgroup: Option<&'a Cgroup>,
}

/// Starts it and returns once execve(2) succeeded. The child is in a session of
/// its own and outlives us.
///
/// # Errors
/// [`Error::Path`] with the program when that cannot be started, and
/// [`Error::Confinement`] when it cannot be confined as it is to be.
pub(crate) fn spawn(launch: &Launch<'_>) -> Result<Pid, Error> {
    let started = start(launch).map_err(Error::path("execve", launch.program))?;
    let serves = launch.cell.is_some_and(Cell::serves);
    started.map_err(|(step, error)| {
        let refused = serves.then(|| without_mounts(step, &error)).flatten();
        refused.unwrap_or_else(|| Error::Confinement {
            reason: format!("{step}: {error}"),
        })
    })
}

/// The program's trouble, or else that of its confinement.
fn start(launch: &Launch<'_>) -> io::Result<Result<Pid, (&'static str, io::Error)>> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::ErrorKind::InvalidInput);
    let program = text(launch.program.as_os_str().as_bytes())?;
    let arguments = launch
        .arguments
        .iter()
        .map(|argument| text(argument.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    // Above the standard ones, in whose place they are to be put.
    let above = |file: &File| fcntl_dupfd_cloexec(file, FIRST_OWN);
    let (null, log) = (above(&File::open("/dev/null")?)?, above(launch.log)?);
    let output = above(launch.output.unwrap_or(launch.log))?;
    let inherited: Vec<RawFd> = launch.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let placed = launch.placed.iter();
    let placed: Vec<(RawFd, RawFd)> = placed
        .map(|(descriptor, number)| (descriptor.as_raw_fd(), *number))
        .collect();
    // By its descriptor alone, which asks nothing of it or its directories.
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(program.as_c_str(), flags, Mode::empty())?;
    let argv: Vec<*const libc::c_char> = std::iter::once(&program)
        .chain(&arguments)
        .map(|argument| argument.as_ptr())
        .chain([ptr::null()])
        .collect();
    let kept = match launch.keeps {
        None => CapabilitySet::empty(),
        Some(Keeps::OverridingModes) => CapabilitySet::DAC_OVERRIDE,
        Some(Keeps::Dropping) => CapabilitySet::SETPCAP,
    };
    let mut child = Child {
        program: &program,
        file: file.as_fd(),
        argv: &argv,
        null: null.as_fd(),
        log: log.as_fd(),
        output: output.as_fd(),
        inherited: &inherited,
        placed: &placed,
        // In a user namespace of its own it would have all of its capabilities.
        kept: (geteuid().is_root() || launch.cell.is_some()).then_some(kept),
        filter: launch.filter,
        cell: launch.cell,
        cgroup: launch.cgroup,
        failure: Told::nothing()?,
    };
    let pid = match child.start() {
        Ok(pid) => pid,
        Err((EXECVE, error)) => return Err(error),
        Err(failed) => return Ok(Err(failed)),
    };
    match child.failure.told() {
        None => Ok(Ok(pid)),
        Some((step, errno)) => {
            // It has ended without an execve. What matters is why.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            match step {
                EXECVE => Err(errno.into()),
                step => Ok(Err((step, errno.into()))),
            }
        }
    }
}

/// A child between its clone(2) and its execve(2), and what it needs: all made
/// before, for it must not allocate.
struct Child<'a> {
    program: &'a CStr,
    /// The same, opened by us.
    file: BorrowedFd<'a>,
    /// Pointers into strings that the caller keeps, and a null one.
    argv: &'a [*const libc::c_char],
    null: BorrowedFd<'a>,
    log: BorrowedFd<'a>,
    output: BorrowedFd<'a>,
    inherited: &'a [RawFd],
    placed: &'a [(RawFd, RawFd)],
    /// The capabilities that are kept, if any are to be dropped.
    kept: Option<CapabilitySet>,
    filter: Option<Filter>,
    cell: Option<&'a Cell>,
    cgroup: Option<&'a Cgroup>,
    /// The step that failed, and why.
    failure: Told<Failed>,
}

impl Child<'_> {
    /// Starts it and returns once it has called execve, or has failed and says
    /// why in `failure`.
    fn start(&mut self) -> Result<Pid, (&'static str, io::Error)> {
        let blocked = BlockedSignals::all().map_err(|error| (EXECVE, error))?;
        let namespaces = self.cell.map_or(0, |cell| cell.flags);
        let started = match self.cgroup {
            // SAFETY: `run` keeps to its own stack and its system calls, and no
            // signal's handler runs before it has reset them.
            Some(cgroup) => unsafe { cgroup.start(namespaces, run, ptr::from_mut(self).cast()) },
            None => self.start_beside(namespaces),
        };
        drop(blocked);
        started.map_err(|error| match (self.cgroup, self.cell) {
            (Some(_), _) => ("clone3 into a cgroup", error),
            // What gives everyone user namespaces is a matter of the kernel's.
            (None, Some(_)) => ("clone with namespaces of its own", error),
            (None, None) => (EXECVE, error),
        })
    }

    /// Starts it in our memory.
    fn start_beside(&mut self, namespaces: libc::c_int) -> io::Result<Pid> {
        let mut stack = vec![0_u128; STACK];
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: CLONE_VFORK has this thread wait until the child has its own
        // memory or has ended, so all that `run` gets at, our frames and the
        // stack above all, outlives the child's use of it, and nobody else
        // changes it meanwhile; a namespace of its own shares no memory with
        // anything. The child has signal handlers and descriptors
        // of its own (no CLONE_SIGHAND, no CLONE_FILES), and no signal's
        // handler runs in our memory: all are blocked until it has reset them.
        let pid = unsafe {
            libc::clone(
                run,
                top.cast(),
                libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD | namespaces,
                ptr::from_mut(self).cast(),
            )
        };
        let error = io::Error::last_os_error();
        drop(stack);
        match pid {
            1.. => Pid::from_raw(pid).ok_or(error),
            _ => Err(error),
        }
    }

    /// The child's way to its new program; returns only if that fails.
    fn become_program(&self) -> Result<(), Failed> {
        reset_handlers();
        let own = match self.cell {
            Some(cell) => cell.own_mounts(self.program)?,
            None => Own::default(),
        };
        self.let_go().map_err(|errno| (EXECVE, errno))?;
        if let Some(directory) = &own.directory {
            let placed = put(directory.mount.as_raw_fd(), directory.number);
            placed.map_err(|errno| ("dup2 of a shared directory", errno))?;
        }
        if let Some(cell) = self.cell {
            cell.become_user()?;
        }
        if let Some(filter) = self.filter {
            filter.install().map_err(|errno| ("seccomp", errno))?;
        }
        let file = own.program.as_ref().map_or(self.file, AsFd::as_fd);
        Err((EXECVE, self.execute(file)))
    }

    /// Everything that is no namespace's and no user's.
    fn let_go(&self) -> Result<(), Errno> {
        setsid()?;
        chdir(c"/")?;
        set_no_new_privs(true)?;
        // A core file would be a copy of the guest's memory.
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Core, none)?;
        inherit_no_capability()?;
        if let Some(kept) = self.kept {
            drop_capabilities(kept)?;
        }
        // What it creates is for its user alone.
        umask(Mode::RWXG | Mode::RWXO);
        rustix::stdio::dup2_stdin(self.null)?;
        rustix::stdio::dup2_stdout(self.output)?;
        rustix::stdio::dup2_stderr(self.log)?;
        close_all_but(self.inherited)?;
        place(self.placed)
    }

    /// Executes its program, which is opened as this file, too. Returns only if it
    /// fails.
    fn execute(&self, file: BorrowedFd<'_>) -> Errno {
        let no_environment: [*const libc::c_char; 1] = [ptr::null()];
        // SAFETY: `program` and what `argv` points to are strings that end in
        // 0, both lists end in a null pointer, and all of it outlives the call.
        // An empty set is made by filling it in.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::execve(
                self.program.as_ptr(),
                self.argv.as_ptr(),
                no_environment.as_ptr(),
            );
            // By its path first: a process is called after what it is executed by.
            // Its user may not go there, or it lies in what is hidden.
            if [Errno::ACCESS, Errno::NOENT].contains(&last_errno()) {
                libc::execveat(
                    file.as_raw_fd(),
                    c"".as_ptr(),
                    self.argv.as_ptr().cast(),
                    no_environment.as_ptr().cast(),
                    libc::AT_EMPTY_PATH,
                );
            }
        }
        last_errno()
    }
}

/// What the child runs. It must not return into the caller's frames, which are
/// on another stack, and does not: clone(2) ends it with what this returns.
extern "C" fn run(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes its own `Child` and does not touch it before this
    // process is gone from its memory.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    child.failure.tell(child.become_program().err());
    127
}

pub(super) fn last_errno() -> Errno {
    let code = io::Error::last_os_error().raw_os_error();
    code.map_or(Errno::INVAL, Errno::from_raw_os_error)
}

/// Gives every signal that has a handler of ours, and SIGPIPE, which Rust's
/// start ignores, its default again. A handler is a function in our memory.
fn reset_handlers() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: sigaction(2) reads and writes the structures it is given,
        // whose fields may all be 0. It refuses signals that cannot be handled,
        // which is as good.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, ptr::null(), &raw mut action) == 0;
            let ignored = action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE;
            if known && action.sa_sigaction != libc::SIG_DFL && !ignored {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
    }
}

/// No signal reaches this thread until this is dropped.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> io::Result<Self> {
        // SAFETY: both sets are filled in by the calls before they are read,
        // and outlive them.
        let (code, before) = unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            let code = libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            (code, before)
        };
        match code {
            0 => Ok(Self(before)),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask(3) has given.
        // It fails only for an operation it does not know.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut());
        }
    }
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

/// Empties the inheritable set, and with it the ambient one: of both execve takes
/// capabilities that no bounding set holds back (capabilities(7)).
fn inherit_no_capability() -> Result<(), Errno> {
    let mut own = capabilities(None)?;
    own.inheritable = CapabilitySet::empty();
    set_capabilities(None, own)
}

/// Empties the bounding set, from which root's capabilities are made at execve
/// (capabilities(7)). Without CAP_SETPCAP that is refused, and there is little
/// to drop.
fn drop_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    // Dropping CAP_SETPCAP only counts from execve on, so the order is free.
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Unknown to this kernel.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::PERM) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Marks every descriptor but the standard and the listed ones to be closed by
/// execve.
fn close_all_but(inherited: &[RawFd]) -> Result<(), Errno> {
    // SAFETY: close_range(2) takes three numbers and touches no memory of ours.
    let closed = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_OWN,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if closed != 0 {
        return Err(last_errno());
    }
    for &descriptor in inherited {
        // SAFETY: the parent owns these descriptors, and does not go on, to
        // close them, before the child is done.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    Ok(())
}

/// Gives descriptors the numbers they shall have, which must be free.
fn place(placed: &[(RawFd, RawFd)]) -> Result<(), Errno> {
    for &(descriptor, number) in placed {
        // SAFETY: F_GETFD takes two numbers and touches no memory of ours.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } != -1 {
            return Err(Errno::MFILE);
        }
        put(descriptor, number)?;
    }
    Ok(())
}

/// Gives a descriptor of the child's this number, whatever has it.
fn put(descriptor: RawFd, number: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2(2) takes two numbers; the new one is free, or kept for this by
    // the parent, and the child's descriptors are its own, with no other thread to
    // use them.
    if unsafe { libc::dup2(descriptor, number) } == -1 {
        return Err(last_errno());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
