//! A directory that is shared with a guest, as the process that serves it is
//! given it.
//!
//! Where root shares it, that is a mount of its own, which is in no namespace: a
//! directory that is only to be read is read-only there, whatever the process
//! does. One with a user of its own sees the directory's owner as itself in it
//! (an idmapped mount), as far as the file system has such mounts: it writes what
//! the owner may, what it makes is the owner's, and all other files are others'.
#![expect(
    unsafe_code,
    reason = "a process in a user namespace of its own has no safe interface"
)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, ResolveFlags, accessat, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, WaitOptions, geteuid, kill_process, waitpid};

use super::confinement::{Confinement, User};
use super::mount::{Attributes, UNCHANGED, set_attributes};
use super::spawn::last_errno;
use crate::error::Error;
use crate::spec::SharedDirectory;

/// The field that an error names.
const FIELD: &str = "directories.path";

/// A shared directory, as whoever serves it gets at it.
#[derive(Debug)]
pub(crate) enum Given {
    /// A descriptor.
    Descriptor(OwnedFd),
    /// Its path, in mounts that are read-only to it.
    Path(PathBuf),
}

impl Given {
    /// What is inherited for it.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Descriptor(directory) => Some(directory.as_fd()),
            Self::Path(_) => None,
        }
    }

    /// What it is opened by. A link of /proc is not taken for a directory, but
    /// what is in it is.
    pub(crate) fn seen(&self) -> PathBuf {
        match self {
            Self::Descriptor(directory) => {
                format!("/proc/self/fd/{}/.", directory.as_raw_fd()).into()
            }
            Self::Path(path) => path.clone(),
        }
    }
}

impl Confinement {
    /// Gives a directory to a process that is confined like this.
    ///
    /// # Errors
    /// [`Error::Path`] when it is none; [`Error::Spec`] when such a process may
    /// not read it, or not write where it is to.
    pub(crate) fn give(&self, directory: &SharedDirectory) -> Result<Given, Error> {
        let path = &directory.path;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The path has no link in it: one that is there now was put there since.
        let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let opened = opened.map_err(|errno| Error::path("open", path)(errno.into()))?;
        let is_root = geteuid().is_root();
        if let Some(user) = self.user() {
            let mount = own_mount(&opened, directory)?;
            show_to(user, &mount, directory)?;
            return Ok(Given::Descriptor(mount));
        }
        // The modes decide for everyone but root, whose capabilities it has not.
        let mut wanted = Access::READ_OK | Access::EXEC_OK;
        if !directory.readonly {
            wanted |= Access::WRITE_OK;
        }
        let allowed = is_root || accessat(CWD, path, wanted, AtFlags::EACCESS).is_ok();
        if !allowed {
            return Err(refused(path, "this user may not get at it"));
        }
        match (self, directory.readonly) {
            (_, true) if is_root => own_mount(&opened, directory).map(Given::Descriptor),
            (Self::Insecure, _) | (_, false) => Ok(Given::Descriptor(opened)),
            // All mounts of its own are read-only.
            (_, true) => Ok(Given::Path(path.clone())),
        }
    }
}

/// A copy of the mounts at a directory, which goes when it is closed.
fn own_mount(opened: &OwnedFd, directory: &SharedDirectory) -> Result<OwnedFd, Error> {
    let failed = |call| {
        let path = directory.path.clone();
        move |errno: Errno| Error::path(call, path)(errno.into())
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(opened, "", flags).map_err(failed("open_tree"))?;
    let mut wanted = Attributes {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        ..UNCHANGED
    };
    if directory.readonly {
        wanted.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    change(&mount, &wanted).map_err(failed("mount_setattr"))?;
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
mod tests {
    use super::super::confinement::Needs;
    use super::super::spawn::{Launch, spawn};
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    proptest! {
        #[test]
        fn a_map_swaps_two_numbers_and_keeps_each_other_one(
            one in 0..u32::MAX, other in 0..u32::MAX, third in 0..u32::MAX
        ) {
            let map = swap(one, other);
            let outside = |inside: u32| {
                let mut found = map.lines().filter_map(|line| {
                    let mut numbers = line.split(' ').map(|number| number.parse::<u32>().unwrap());
                    let (first, at, length) = (
                        numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap(),
                    );
                    let index = inside.checked_sub(first).filter(|index| *index < length)?;
                    Some(at + index)
                });
                let is = found.next();
                assert!(found.next().is_none(), "{map}");
                is
            };
            prop_assert_eq!(outside(one), Some(other));
            prop_assert_eq!(outside(other), Some(one));
            if third != one && third != other {
                prop_assert_eq!(outside(third), Some(third));
            }
        }
    }

    const BASE: u32 = 0x7e00_0000;

    fn shared(path: &Path, readonly: bool) -> SharedDirectory {
        SharedDirectory {
            tag: "data".to_owned(),
            path: path.to_owned(),
            readonly,
        }
    }

    /// What a confined process does to a directory that it was given: what it
    /// wrote on its standard output.
    fn done_by(confinement: &Confinement, directory: &SharedDirectory, script: &str) -> String {
        let given = confinement.give(directory).unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let cell = confinement.cell(Needs::default()).unwrap();
        let inherited: Vec<_> = given
            .descriptor()
            .into_iter()
            .chain(confinement.user().map(User::lock))
            .collect();
        let script = format!("cd {} && {script}", given.seen().display());
        let pid = spawn(&Launch {
            program: Path::new("/bin/sh"),
            arguments: &["-c".to_owned(), script],
            inherited: &inherited,
            placed: &[],
            log: log.as_file(),
            output: None,
            keeps: None,
            cell: cell.as_ref(),
            cgroup: None,
        });
        waitpid(Some(pid.unwrap()), WaitOptions::empty()).unwrap();
        fs::read_to_string(log.path()).unwrap()
    }

    const TRIED: &str = "cat theirs; (echo x > new) 2>/dev/null && echo wrote; \
        (echo x > others) 2>/dev/null && echo wrote what is another\\'s; cat secret 2>/dev/null; \
        rm -f theirs 2>/dev/null; ls; true";

    #[test]
    fn a_process_with_a_user_of_its_own_is_a_directorys_owner_in_it_and_nobody_elsewhere() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        fs::create_dir(&path).unwrap();
        for owner in [0, 1234] {
            fs::write(path.join("theirs"), "read\n").unwrap();
            for (name, mode) in [("others", 0o644), ("secret", 0o600)] {
                fs::write(path.join(name), "secret\n").unwrap();
                fs::set_permissions(path.join(name), Permissions::from_mode(mode)).unwrap();
                chown(path.join(name), Some(owner + 1), Some(owner + 1)).unwrap();
            }
            chown(&path, Some(owner), Some(owner)).unwrap();
            chown(path.join("theirs"), Some(owner), Some(owner)).unwrap();
            // No other gets into it.
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            let confinement = Confinement::strictest(BASE).unwrap();
            let told = done_by(&confinement, &shared(&path, true), TRIED);
            assert_eq!(told, "read\nothers\nsecret\ntheirs\n");
            let told = done_by(&confinement, &shared(&path, false), TRIED);
            assert_eq!(told, "read\nwrote\nnew\nothers\nsecret\n");
            let made = fs::metadata(path.join("new")).unwrap();
            assert_eq!((made.uid(), made.gid()), (owner, owner));
            assert_eq!(fs::read_to_string(path.join("others")).unwrap(), "secret\n");
            fs::remove_file(path.join("new")).unwrap();
        }
    }

    #[test]
    fn a_directory_that_is_only_to_be_read_is_read_only_whoever_shares_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("theirs"), "read\n").unwrap();
        let directory = shared(directory.path(), true);
        let told =
            match std::thread::spawn(move || done_by(&Confinement::Namespaces, &directory, TRIED))
                .join()
            {
                Ok(told) => told,
                Err(_) if !geteuid().is_root() => {
                    eprintln!("skipped: this kernel gives namespaces to root only");
                    return;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            };
        assert_eq!(told, "read\ntheirs\n");
    }

    #[test]
    fn what_is_no_directory_or_is_not_there_is_refused_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file, directory.path().join("none")] {
            let error = Confinement::Insecure.give(&shared(&path, true));
            let error = error.unwrap_err();
            assert!(
                matches!(&error, Error::Path { path: named, .. } if *named == path),
                "{error}"
            );
        }
    }

    #[test]
    fn a_directory_that_its_owner_may_not_write_to_is_refused_before_anything_is_started() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).unwrap();
        let confinement = Confinement::strictest(BASE).unwrap();
        confinement.give(&shared(directory.path(), true)).unwrap();
        let error = confinement.give(&shared(directory.path(), false));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("mode 500"), "{error}");
    }
}
