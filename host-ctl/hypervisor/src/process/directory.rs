//! A directory that is shared with a guest, as the process that serves it is
//! given it.
//!
//! That is a mount of its own, which is in no namespace: it has nothing above it.
//! A guest may send any name, "../file" too, or one that begins with a link, and
//! virtiofsd hands most of them to the kernel as they are: what keeps them in the
//! directory is that mount, and that all others are read-only to it. One that is
//! only to be read is read-only there, whatever the process does. Where
//! root shares it, we make it; else the process makes it for itself, before its
//! program runs, in the mount namespace that it has of its own.
//!
//! One with a user of its own sees the directory's owner as itself in it
//! (an idmapped mount), as far as the file system has such mounts: it writes what
//! the owner may, what it makes is the owner's, and all other files are others'.
#![expect(
    unsafe_code,
    reason = "a process in a user namespace of its own has no safe interface"
)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, ResolveFlags, accessat, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, WaitOptions, geteuid, kill_process, waitpid};

use super::confinement::{Confinement, Failed, User};
use super::mount::{Attributes, UNCHANGED, set_attributes};
use super::spawn::last_errno;
use crate::error::Error;
use crate::spec::SharedDirectory;

/// The field that an error names.
const FIELD: &str = "directories.path";

/// The steps in which a host refuses a process mounts of its own: by their calls.
const MOUNTS: [&str; 3] = ["clone", "mount", "open_tree"];

/// A shared directory, as whoever serves it gets at it.
#[derive(Debug)]
pub(crate) enum Given {
    /// A descriptor of a mount.
    Mount(OwnedFd),
    /// What it makes a mount of.
    Own(OwnMount),
}

/// A directory that a process makes a mount of for itself, in a mount namespace
/// of its own.
#[derive(Debug, Clone)]
pub(crate) struct OwnMount {
    path: CString,
    readonly: bool,
    /// What keeps a number for it: that of the directory as we have it open.
    kept: Arc<OwnedFd>,
}

/// A mount that a process has made for itself, and the number that it is to have.
pub(super) struct Placed {
    pub(super) mount: OwnedFd,
    pub(super) number: RawFd,
}

impl Given {
    /// What is inherited for it.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Mount(directory) => Some(directory.as_fd()),
            Self::Own(_) => None,
        }
    }

    /// What is made for it by the process itself.
    pub(crate) fn own(&self) -> Option<&OwnMount> {
        match self {
            Self::Mount(_) => None,
            Self::Own(own) => Some(own),
        }
    }

    /// What it is opened by. A link of /proc is not taken for a directory, but
    /// what is in it is.
    pub(crate) fn seen(&self) -> PathBuf {
        let number = match self {
            Self::Mount(directory) => directory.as_raw_fd(),
            Self::Own(own) => own.kept.as_raw_fd(),
        };
        format!("/proc/self/fd/{number}/.").into()
    }
}

impl OwnMount {
    fn of(directory: &SharedDirectory, opened: OwnedFd) -> Result<Self, Error> {
        let path = &directory.path;
        let zero = |_| refused(path, "there is a zero in it");
        Ok(Self {
            path: CString::new(path.as_os_str().as_bytes()).map_err(zero)?,
            readonly: directory.readonly,
            kept: Arc::new(opened),
        })
    }

    /// A child's part. Allocates nothing.
    pub(super) fn make(&self) -> Result<Placed, Failed> {
        let path = self.path.as_c_str();
        let opened = openat2(CWD, path, DIRECTORY_ONLY, Mode::empty(), NO_LINKS);
        let opened = opened.map_err(|errno| ("open the shared directory", errno))?;
        Ok(Placed {
            mount: copy_mounts(&opened, self.readonly)?,
            number: self.kept.as_raw_fd(),
        })
    }
}

/// Why no directory is shared where this step has failed, if a host refuses to a
/// process what any virtiofsd has: mounts of its own.
pub(super) fn without_mounts(step: &str, error: &io::Error) -> Option<Error> {
    let refuses = match Errno::from_io_error(error) {
        // The second where there may be no more user namespaces.
        Some(Errno::PERM | Errno::NOSPC) => MOUNTS.iter().any(|call| step.starts_with(call)),
        // What clone(2) is so refused is a cgroup.
        Some(Errno::ACCESS) => MOUNTS[1..].iter().any(|call| step.starts_with(call)),
        _ => false,
    };
    refuses.then(|| Error::Confinement {
        reason: format!(
            "a shared directory takes a virtiofsd with mounts of its own, which this host refuses, \
             also with --insecure ({step}: {error})"
        ),
    })
}

/// How a shared directory is opened.
const DIRECTORY_ONLY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Its path has no link in it: one that is there now was put there since.
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS;

impl Confinement {
    /// Gives a directory to a process that is confined like this.
    ///
    /// # Errors
    /// [`Error::Path`] when it is none; [`Error::Spec`] when such a process may
    /// not read it, or not write where it is to.
    pub(crate) fn give(&self, directory: &SharedDirectory) -> Result<Given, Error> {
        let path = &directory.path;
        let opened = openat2(CWD, path, DIRECTORY_ONLY, Mode::empty(), NO_LINKS);
        let opened = opened.map_err(|errno| Error::path("open", path)(errno.into()))?;
        if matches!(self, Self::Insecure) {
            let reason = "a guest could leave it, where its virtiofsd has no mounts of its own";
            return Err(refused(path, reason));
        }
        if geteuid().is_root() {
            let mount = copy_mounts(&opened, directory.readonly);
            let mount = mount.map_err(|(call, errno)| {
                let error = io::Error::from(errno);
                without_mounts(call, &error).unwrap_or_else(|| Error::path(call, path)(error))
            })?;
            if let Some(user) = self.user() {
                show_to(user, &mount, directory)?;
            }
            return Ok(Given::Mount(mount));
        }
        let mut wanted = Access::READ_OK | Access::EXEC_OK;
        if !directory.readonly {
            wanted |= Access::WRITE_OK;
        }
        if accessat(CWD, path, wanted, AtFlags::EACCESS).is_err() {
            return Err(refused(path, "this user may not get at it"));
        }
        OwnMount::of(directory, opened).map(Given::Own)
    }
}

/// A copy of the mounts at a directory, which goes when it is closed, and in which
/// nothing is seen that is mounted later. Allocates nothing.
fn copy_mounts(opened: &OwnedFd, readonly: bool) -> Result<OwnedFd, Failed> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(opened, c"", flags).map_err(|errno| ("open_tree", errno))?;
    let mut wanted = Attributes {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        propagation: libc::MS_PRIVATE,
        ..UNCHANGED
    };
    if readonly {
        wanted.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    change(&mount, &wanted).map_err(|errno| ("mount_setattr", errno))?;
    Ok(mount)
}

fn change(mount: &OwnedFd, wanted: &Attributes) -> Result<(), Errno> {
    set_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, wanted)
}

/// Has a mount show its directory's owner and group as this user.
fn show_to(user: &User, mount: &OwnedFd, directory: &SharedDirectory) -> Result<(), Error> {
    let path = &directory.path;
    let found = || File::from(mount.try_clone()?).metadata();
    let of = found().map_err(Error::path("stat", path))?;
    let namespace = user_namespace([(of.uid(), user.uid()), (of.gid(), user.uid())]);
    let namespace = namespace.map_err(Error::path("make a user namespace for", path))?;
    let number = u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX);
    let wanted = Attributes {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: number,
        ..UNCHANGED
    };
    match change(mount, &wanted) {
        // A file system without idmapped mounts, or mapped already: its modes
        // decide as they are.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(Error::path("mount_setattr", path)(errno.into())),
    }
    let seen = found().map_err(Error::path("stat", path))?;
    if user.may_search(&seen, !directory.readonly) {
        return Ok(());
    }
    let reason = format!(
        "mode {:o}, user {} and group {} keep it from a virtiofsd with a user of its own, which is \
         in group {}",
        seen.mode() & 0o7777,
        seen.uid(),
        seen.gid(),
        user.group()
    );
    Err(refused(path, &reason))
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::Spec {
        field: FIELD,
        reason: format!("{}: {reason}", path.display()),
    }
}

/// A user namespace in which one user and one group are called by another number
/// each, that by theirs, and all others by their own.
fn user_namespace(swapped: [(u32, u32); 2]) -> io::Result<OwnedFd> {
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child has a copy of our memory and goes on in
    // a copy of this frame, as after fork(2). It makes two system calls, the
    // second again and again, and never returns from here.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone, flags, none, none, none, none);
        if pid == 0 {
            // Until we kill it. Should we be gone first, it ends by itself.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
        pid
    };
    let child = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let child = child
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from(last_errno()))?;
    let made = map_and_open(child, swapped);
    // It has no handler and is in no call that could put the signal off.
    let _ = kill_process(child, Signal::KILL);
    while let Err(Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
    made
}

fn map_and_open(child: Pid, [user, group]: [(u32, u32); 2]) -> io::Result<OwnedFd> {
    let directory = PathBuf::from(format!("/proc/{}", child.as_raw_nonzero()));
    for (name, (one, other)) in [("uid_map", user), ("gid_map", group)] {
        // As a whole, by one write(2).
        let mut map = File::options().write(true).open(directory.join(name))?;
        map.write_all(swap(one, other).as_bytes())?;
    }
    Ok(File::open(directory.join("ns/user"))?.into())
}

/// The map of a user namespace that swaps two numbers (user_namespaces(7)): a
/// line for each range, its first number inside and outside, and its length.
fn swap(one: u32, other: u32) -> String {
    let (low, high) = (one.min(other), one.max(other));
    let mut map = String::new();
    let mut range = |inside: u32, outside: u32, length: u32| {
        if length > 0 {
            map.push_str(&format!("{inside} {outside} {length}\n"));
        }
    };
    // The last number of all is nobody's.
    if low == high {
        range(0, 0, u32::MAX);
    } else {
        range(0, 0, low);
        range(low, high, 1);
        range(low + 1, low + 1, high - low - 1);
        range(high, low, 1);
        range(high + 1, high + 1, u32::MAX - high - 1);
    }
    map
}

#[cfg(test)]
mod tests;
