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
use super::confinement::{Cell, Failed};
use crate::error::Error;

/// The stack a child has until its execve, in units of 16 bytes, which is how a
/// stack is aligned.
const STACK: usize = (256 << 10) / size_of::<u128>();
/// The lowest descriptor that is no standard one.
const FIRST_OWN: RawFd = 3;
/// The step that every failure is of that is not of a confinement.
const EXECVE: &str = "execve";
/// The highest signal, signal(7).
const LAST_SIGNAL: libc::c_int = 64;

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
    /// It inherits no capability, and started by root it loses every one; with
    /// this, all but that of opening files against their mode.
    pub(crate) may_override_modes: bool,
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
    started.map_err(|(step, error)| Error::Confinement {
        reason: format!("{step}: {error}"),
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
    let kept = if launch.may_override_modes {
        CapabilitySet::DAC_OVERRIDE
    } else {
        CapabilitySet::empty()
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
    /// The same, opened: for a user that may not go where it lies.
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
        if let Some(cell) = self.cell {
            cell.own_mounts()?;
        }
        self.let_go().map_err(|errno| (EXECVE, errno))?;
        if let Some(cell) = self.cell {
            cell.become_user()?;
        }
        Err((EXECVE, self.execute()))
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

    /// Returns only if it fails.
    fn execute(&self) -> Errno {
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
            if last_errno() == Errno::ACCESS {
                libc::execveat(
                    self.file.as_raw_fd(),
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
        // SAFETY: dup2(2) takes two numbers; the new one was free just now, and
        // the child's descriptors are its own, with no other thread to use them.
        if unsafe { libc::dup2(descriptor, number) } == -1 {
            return Err(last_errno());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::confinement::{Confined, Confinement, Needs};
    use super::*;
    use rustix::process::{WaitOptions, waitpid};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    use std::fs::read_to_string;

    fn start(program: &str, arguments: &[&str], log: &File) -> Result<Pid, Error> {
        start_in(None, program, arguments, log)
    }

    fn start_in(
        cell: Option<&Cell>,
        program: &str,
        arguments: &[&str],
        log: &File,
    ) -> Result<Pid, Error> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        spawn(&Launch {
            program: Path::new(program),
            arguments: &arguments,
            inherited: &[],
            placed: &[],
            log,
            output: None,
            may_override_modes: false,
            cell,
            cgroup: None,
        })
    }

    fn field<'a>(status: &'a str, name: &str) -> &'a str {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim_start_matches(':').trim()
    }

    #[test]
    fn a_child_has_default_signals_and_ours_are_as_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = File::create(&path).unwrap();
        let ours = || {
            let status = read_to_string("/proc/thread-self/status").unwrap();
            ["SigBlk", "SigIgn", "SigCgt"].map(|name| field(&status, name).to_owned())
        };
        let before = ours();
        let pid = start("/bin/cat", &["/proc/self/status"], &log).unwrap();
        assert_eq!(ours(), before);
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        let theirs = read_to_string(&path).unwrap();
        for name in ["SigBlk", "SigCgt", "CapEff"] {
            assert_eq!(field(&theirs, name), "0000000000000000", "{name}");
        }
        // What whoever started us ignores, we and it do.
        let ignored = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let pipe = 1 << (libc::SIGPIPE - 1);
        assert_ne!(ignored(&before[1]) & pipe, 0, "Rust ignores SIGPIPE");
        assert_eq!(
            ignored(field(&theirs, "SigIgn")),
            ignored(&before[1]) & !pipe
        );
        assert_eq!(field(&theirs, "NoNewPrivs"), "1");
    }

    /// What a confined child tells of itself, a line each.
    const WHO: &str = "id -u; id -G; readlink /proc/self/ns/mnt /proc/self/ns/pid \
        /proc/self/ns/net; (echo > /tmp/written) 2>/dev/null && echo wrote; cut -s -d: -f1 /proc/self/net/dev | tr -d ' '; ls /dev";

    fn told_by(confinement: &Confinement) -> Result<Vec<String>, String> {
        told(confinement, Needs::default(), WHO)
    }

    fn told(confinement: &Confinement, needs: Needs, asked: &str) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = File::create(&path).unwrap();
        let cell = confinement.cell(needs).unwrap();
        let pid = start_in(cell.as_ref(), "/bin/sh", &["-c", asked], &log);
        let pid = pid.map_err(|error| error.to_string())?;
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        let told = read_to_string(&path).unwrap();
        Ok(told.lines().map(str::to_owned).collect())
    }

    fn are_not_ours(namespaces: &[String]) {
        for (name, theirs) in ["mnt", "pid", "net"].into_iter().zip(namespaces) {
            let ours = std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
            assert_ne!(ours.to_string_lossy(), *theirs);
            assert!(theirs.starts_with(name), "{theirs}");
        }
    }

    #[test]
    fn a_child_of_root_has_a_user_and_namespaces_of_its_own_and_listed_devices() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return;
        }
        const BASE: u32 = 0x7e00_0000;
        let confinement = Confinement::strictest(BASE).unwrap();
        let told = told_by(&confinement).unwrap();
        let Confined::User { uid } = confinement.noted() else {
            panic!("{confinement:?}");
        };
        assert_eq!(told[..2], [uid.to_string(), format!("{uid} {BASE}")]);
        are_not_ours(&told[2..5]);
        // One link, and nothing of ours in /dev; nothing was written.
        assert_eq!(told[5], "lo", "{told:?}");
        let devices = &told[6..];
        assert!(devices.contains(&"null".to_owned()), "{devices:?}");
        assert!(devices.len() <= 5, "{devices:?}");
    }

    #[test]
    fn a_program_is_started_for_a_user_that_may_not_go_where_it_lies() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return;
        }
        // For its owner only, which tempdir(3) makes sure of.
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        std::fs::copy("/bin/true", &program).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let confinement = Confinement::strictest(0x7e00_0000).unwrap();
        let cell = confinement.cell(Needs::default()).unwrap();
        let pid = start_in(cell.as_ref(), program.to_str().unwrap(), &[], &log).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn a_child_that_opens_taps_by_their_names_has_their_device_and_our_network_and_no_more() {
        const ASKED: &str = "id -u; readlink /proc/self/ns/net; stat -c %a /dev/net; \
            (exec 3<>/dev/net/tun) && echo opened; (echo > /tmp/written) 2>/dev/null && echo wrote; \
            ls /dev /dev/net | grep -c .";
        if !geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: it takes root and /dev/net/tun");
            return;
        }
        let confinement = Confinement::strictest(0x7e00_0000).unwrap();
        let needs = Needs {
            host_network: true,
            opens_taps: true,
            writes_by_path: false,
        };
        // The directory of a device is passable whatever our umask is.
        let asked = std::thread::spawn(move || {
            // SAFETY: this thread gets an umask of its own; its descriptors stay.
            let unshared = unsafe { unshare_unsafe(UnshareFlags::FS) };
            unshared.unwrap();
            umask(Mode::RWXG | Mode::RWXO);
            let told = told(&confinement, needs, ASKED).unwrap();
            (told, confinement.noted())
        });
        let (told, noted) = asked.join().unwrap();
        let Confined::User { uid } = noted else {
            panic!("{noted:?}");
        };
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let ours = ours.to_str().unwrap();
        assert_eq!(told[..4], [&uid.to_string(), ours, "755", "opened"]);
        // Two names of directories, that of one device, and at most six others.
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[4].parse::<u32>().unwrap() <= 9, "{told:?}");
    }

    #[test]
    fn a_child_of_anybody_has_namespaces_of_its_own_or_is_not_started() {
        let told = std::thread::spawn(|| {
            if geteuid().is_root() {
                // Users are each thread's own.
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            told_by(&Confinement::strictest(0).unwrap())
        });
        match told.join().unwrap() {
            Ok(told) => {
                are_not_ours(&told[2..5]);
                assert_eq!(told[5], "lo", "{told:?}");
            }
            // This kernel does not let everyone.
            Err(told) => assert!(told.contains("namespaces of its own"), "{told}"),
        }
    }

    #[test]
    fn what_this_thread_would_hand_down_of_its_capabilities_stays_here() {
        use rustix::thread::configure_capability_in_ambient_set;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = File::create(&path).unwrap();
        // Capabilities are each thread's own.
        let started = std::thread::spawn(move || {
            let mut own = capabilities(None).unwrap();
            if own.permitted.is_empty() {
                eprintln!("skipped in part: this user has no capability to hand down");
            }
            own.inheritable = own.permitted;
            set_capabilities(None, own).unwrap();
            for capability in own.permitted.iter() {
                configure_capability_in_ambient_set(capability, true).unwrap();
            }
            let pid = start("/bin/cat", &["/proc/self/status"], &log).unwrap();
            waitpid(Some(pid), WaitOptions::empty()).unwrap();
        });
        started.join().unwrap();
        let theirs = read_to_string(&path).unwrap();
        for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(&theirs, name), "0000000000000000", "{name}");
        }
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_told_and_leaves_no_child() {
        let log = tempfile::tempfile().unwrap();
        let kind = |program: &str, arguments: &[&str]| match start(program, arguments, &log)
            .unwrap_err()
        {
            Error::Path { path, source, .. } => {
                assert_eq!(path, Path::new(program));
                source.kind()
            }
            other => panic!("{other}"),
        };
        assert_eq!(kind("/no/such/program", &[]), io::ErrorKind::NotFound);
        assert_eq!(kind("/etc/passwd", &[]), io::ErrorKind::PermissionDenied);
        let refused = kind("/bin/true", &["nul\0in it"]);
        assert_eq!(refused, io::ErrorKind::InvalidInput);
        let children = read_to_string("/proc/thread-self/children");
        assert_eq!(children.unwrap_or_default(), "");
    }
}
