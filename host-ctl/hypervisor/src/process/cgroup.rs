//! Starting a VMM in a cgroup of its own, whose limits hold from its first
//! instruction on. What is made and removed of cgroups is the caller's.
#![expect(
    unsafe_code,
    reason = "clone3(2), which alone starts a process in another cgroup, has no safe interface"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;

use super::spawn::last_errno;
use crate::error::Error;
use crate::spec::VmSpec;

/// The size of the first `clone_args` that has a cgroup in it
/// (CLONE_ARGS_SIZE_VER2, linux/sched.h).
const WITH_CGROUP: usize = 88;

/// CLONE_INTO_CGROUP, linux/sched.h: more than the bits of a C integer.
const INTO_CGROUP: u64 = 1 << 33;

/// A cgroup to start a process in.
#[derive(Debug)]
pub(crate) struct Cgroup(OwnedFd);

/// What a child runs, and what it is given: it does not return, but for its exit
/// status.
pub(super) type Run = extern "C" fn(*mut libc::c_void) -> libc::c_int;

impl Cgroup {
    /// Opens the cgroup of a VM, if it has one.
    pub(crate) fn of(spec: &VmSpec) -> Result<Option<Self>, Error> {
        spec.cgroup.as_deref().map(Self::open).transpose()
    }

    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open(path, flags, Mode::empty());
        let opened = opened.map_err(|errno| Error::path("open", path)(errno.into()))?;
        Ok(Self(opened))
    }

    /// Starts a process in it that runs `run`, in a copy of our memory: clone3(2)
    /// leaves it on our stack. Returns once it has called execve or has ended.
    ///
    /// # Safety
    /// `run` must keep to what a forked child of many threads may do (fork(2)),
    /// and get along with `given`.
    pub(super) unsafe fn start(
        &self,
        namespaces: libc::c_int,
        run: Run,
        given: *mut libc::c_void,
    ) -> io::Result<Pid> {
        let flags = libc::CLONE_VFORK | namespaces;
        let mut wanted = arguments(self.0.as_raw_fd().unsigned_abs().into());
        wanted.flags |= u64::from(flags.unsigned_abs());
        wanted.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
        // SAFETY: the structure outlives the call, which reads as many of its
        // bytes as it is told. Without CLONE_VM the child has a copy of this
        // frame to go on in, as after fork(2), and does not leave it.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone3, &raw const wanted, WITH_CGROUP);
            if pid == 0 {
                libc::_exit(run(given));
            }
            pid
        };
        let started = i32::try_from(pid).ok().filter(|pid| *pid > 0);
        let started = started.and_then(Pid::from_raw);
        started.ok_or_else(|| last_errno().into())
    }
}

/// Whether this kernel, and whatever filters our system calls, lets a process be
/// started in a cgroup (Linux 5.7).
#[must_use]
pub fn starts_in_cgroups() -> bool {
    let wanted = arguments(u64::MAX);
    // SAFETY: the structure outlives the call, which starts nothing: no
    // descriptor has this number. An older kernel has no room for one (E2BIG).
    let refused = unsafe { libc::syscall(libc::SYS_clone3, &raw const wanted, WITH_CGROUP) };
    refused == -1 && last_errno() == rustix::io::Errno::INVAL
}

fn arguments(cgroup: u64) -> libc::clone_args {
    // SAFETY: a structure of numbers, all of which may be 0.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = INTO_CGROUP;
    arguments.cgroup = cgroup;
    arguments
}

/// Memory that a child shares with us, whether or not it shares the rest: one
/// value, of which only one side at a time knows.
pub(super) struct Told<T> {
    place: *mut Option<T>,
}

impl<T: Copy> Told<T> {
    pub(super) fn nothing() -> io::Result<Self> {
        // SAFETY: a new mapping of no file, at an address of the kernel's choice.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Option<T>>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(last_errno().into());
        }
        let place = place.cast::<Option<T>>();
        // SAFETY: the mapping is large enough, page-aligned and writable.
        unsafe { place.write(None) };
        Ok(Self { place })
    }

    pub(super) fn tell(&self, value: Option<T>) {
        // SAFETY: as in `nothing`; the other side waits for this one's end.
        unsafe { self.place.write(value) };
    }

    pub(super) fn told(&self) -> Option<T> {
        // SAFETY: `nothing` has written a value, and maybe `tell` another.
        unsafe { self.place.read() }
    }
}

impl<T> Drop for Told<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a pointer into it.
        unsafe { libc::munmap(self.place.cast(), size_of::<Option<T>>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Launch;
    use crate::process::confinement::{Confinement, Needs};
    use rustix::process::{WaitOptions, geteuid, waitpid};
    use std::fs::File;
    use std::path::PathBuf;

    /// A cgroup of our own, removed with this.
    struct Own(PathBuf);

    impl Drop for Own {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    /// One below the root of a hierarchy that we may write to.
    fn own(name: &str) -> Option<Own> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut mounts = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
        let at = mounts.next()?.split(' ').nth(4)?;
        let path = Path::new(at).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&path).ok().map(|()| Own(path))
    }

    fn start(
        cgroup: &Own,
        confinement: &Confinement,
        program: &str,
        arguments: &[&str],
    ) -> Result<String, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = File::create(&path).unwrap();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let cell = confinement.cell(Needs::default()).unwrap();
        let cgroup = Cgroup::open(&cgroup.0).unwrap();
        let pid = super::super::spawn(&Launch {
            program: Path::new(program),
            arguments: &arguments,
            inherited: &[],
            placed: &[],
            log: &log,
            output: None,
            keeps: None,
            filter: None,
            cell: cell.as_ref(),
            cgroup: Some(&cgroup),
        })?;
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        Ok(std::fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn a_child_is_in_its_cgroup_from_its_first_instruction_and_confined_all_the_same() {
        let Some(own) = own("tardigrade-test-start") else {
            eprintln!("skipped: no cgroup v2 hierarchy that this user may write to");
            return;
        };
        assert!(starts_in_cgroups());
        const ASKED: &str = "cat /proc/self/cgroup; grep NoNewPrivs /proc/self/status; id -u";
        let mut confinements = vec![Confinement::Insecure];
        if geteuid().is_root() {
            confinements.push(Confinement::strictest(0x7e00_0000).unwrap());
        }
        for confinement in confinements {
            let told = start(&own, &confinement, "/bin/sh", &["-c", ASKED]).unwrap();
            let name = own.0.file_name().unwrap().to_str().unwrap();
            let place = told.lines().find_map(|line| line.strip_prefix("0::"));
            assert!(place.unwrap().ends_with(name), "{told}");
            assert!(told.contains("NoNewPrivs:\t1"), "{told}");
            if let Some(user) = confinement.user() {
                let last = told.lines().last().unwrap();
                assert_eq!(last, user.uid().to_string());
            }
        }
    }

    #[test]
    fn what_fails_in_a_child_of_a_cgroup_is_told_and_leaves_it_empty() {
        let Some(own) = own("tardigrade-test-fail") else {
            eprintln!("skipped: no cgroup v2 hierarchy that this user may write to");
            return;
        };
        let error = start(&own, &Confinement::Insecure, "/etc/passwd", &[]).unwrap_err();
        assert!(matches!(error, Error::Path { .. }), "{error}");
        let left = std::fs::read_to_string(own.0.join("cgroup.procs")).unwrap();
        assert_eq!(left, "");
    }

    #[test]
    fn what_is_no_cgroup_starts_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = Own(directory.path().join("no-cgroup"));
        std::fs::create_dir(&nothing.0).unwrap();
        let error = start(&nothing, &Confinement::Insecure, "/bin/true", &[]).unwrap_err();
        assert!(matches!(error, Error::Confinement { .. }), "{error}");
    }
}
