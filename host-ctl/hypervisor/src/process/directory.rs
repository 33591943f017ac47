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

/// As which number a process has the mount that it has made for itself.
pub(super) const DIRECTORY: RawFd = 900;

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
            Self::Own(_) => DIRECTORY,
        };
        format!("/proc/self/fd/{number}/.").into()
    }
}

impl OwnMount {
    fn of(directory: &SharedDirectory) -> Result<Self, Error> {
        let path = &directory.path;
        let zero = |_| refused(path, "there is a zero in it");
        Ok(Self {
            path: CString::new(path.as_os_str().as_bytes()).map_err(zero)?,
            readonly: directory.readonly,
        })
    }

    /// A child's part. Allocates nothing.
    pub(super) fn make(&self) -> Result<OwnedFd, Failed> {
        let path = self.path.as_c_str();
        let opened = openat2(CWD, path, DIRECTORY_ONLY, Mode::empty(), NO_LINKS);
        let opened = opened.map_err(|errno| ("open the shared directory", errno))?;
        copy_mounts(&opened, self.readonly)
    }
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
            let mount = mount.map_err(|(call, errno)| Error::path(call, path)(errno.into()))?;
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
        OwnMount::of(directory).map(Given::Own)
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
    fn done_by(
        confinement: &Confinement,
        directory: &SharedDirectory,
        script: &str,
    ) -> Result<String, Error> {
        let given = confinement.give(directory)?;
        let log = tempfile::tempfile().unwrap();
        let cell = confinement.cell(Needs::default()).unwrap();
        let cell = cell.map(|cell| cell.with(&given));
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
            log: &log,
            output: None,
            keeps: None,
            filter: None,
            cell: cell.as_ref(),
            cgroup: None,
        })?;
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        let mut told = vec![0; 4096];
        let length = std::os::unix::fs::FileExt::read_at(&log, &mut told, 0).unwrap();
        told.truncate(length);
        Ok(String::from_utf8(told).unwrap())
    }

    /// Who this thread is where it has to be somebody, not root.
    const SOMEBODY: u32 = 65534;

    /// Does it as a user who is not root. None where this kernel gives no
    /// namespaces to such.
    fn as_somebody(
        work: impl FnOnce() -> Result<String, Error> + Send + 'static,
    ) -> Option<String> {
        let working = std::thread::spawn(|| {
            if geteuid().is_root() {
                // Users are each thread's own.
                let [user, group] = [SOMEBODY; 2];
                let group = rustix::process::Gid::from_raw(group);
                let user = rustix::process::Uid::from_raw(user);
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_res_gid(group, group, group).unwrap();
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            }
            work()
        });
        match working.join().unwrap() {
            Ok(told) => Some(told),
            Err(Error::Confinement { reason }) if reason.contains("namespaces of its own") => {
                eprintln!("skipped: this kernel gives namespaces to root only");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A directory that is shared, and what lies beside it: of whoever
    /// [`as_somebody`] is, or of root.
    fn beside(owner: Option<u32>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::create_dir(directory.path().join("beside")).unwrap();
        fs::write(directory.path().join("secret"), "secret\n").unwrap();
        fs::write(path.join("theirs"), "read\n").unwrap();
        if let Some(owner) = owner.filter(|_| geteuid().is_root()) {
            for of in [".", "data", "data/theirs", "beside", "secret"] {
                chown(directory.path().join(of), Some(owner), Some(owner)).unwrap();
            }
        }
        (directory, path)
    }

    /// What a guest can have done whose names are those of no file, but paths.
    const LEFT: &str = "cat theirs; echo x > own && echo wrote; for d in .. ../.. ../../..; do \
        { cat $d/secret; ls $d; mkdir $d/beside/new; mv own $d/taken; rm $d/secret; \
        ln theirs $d/linked; } 2>/dev/null; done; \
        { cat BESIDE/secret; mkdir BESIDE/new; rm BESIDE/secret; } 2>/dev/null; ls";

    #[test]
    fn nothing_beside_a_shared_directory_is_got_at_through_it_whoever_shares_it() {
        let seen = |told: &str, directory: &tempfile::TempDir, readonly: bool| {
            assert!(told.starts_with("read\n"), "{told}");
            assert!(!told.contains("secret"), "{told}");
            assert_eq!(told.contains("wrote"), !readonly, "{told}");
            let names = |path: &Path| {
                let entries = fs::read_dir(path).unwrap();
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(names(directory.path()), ["beside", "data", "secret"]);
            assert!(names(&directory.path().join("beside")).is_empty());
        };
        let script = |directory: &tempfile::TempDir| {
            LEFT.replace("BESIDE", directory.path().to_str().unwrap())
        };
        for readonly in [false, true] {
            let (directory, path) = beside(Some(SOMEBODY));
            let (shared, script_text) = (shared(&path, readonly), script(&directory));
            let told =
                as_somebody(move || done_by(&Confinement::Namespaces, &shared, &script_text));
            if let Some(told) = told {
                seen(&told, &directory, readonly);
            }
        }
        if !geteuid().is_root() {
            eprintln!("skipped in part: only root gives users away");
            return;
        }
        for readonly in [false, true] {
            let (directory, path) = beside(None);
            let confinement = Confinement::strictest(BASE).unwrap();
            let told = done_by(&confinement, &shared(&path, readonly), &script(&directory));
            seen(&told.unwrap(), &directory, readonly);
            // So it is where the VMM has no user of its own.
            let shared = shared(&path, readonly);
            let told = done_by(&Confinement::Namespaces, &shared, &script(&directory));
            seen(&told.unwrap(), &directory, readonly);
        }
    }

    #[test]
    fn a_directory_is_not_shared_where_a_guest_could_leave_it() {
        let (_directory, path) = beside(None);
        let error = Confinement::Insecure.give(&shared(&path, false));
        assert!(error.unwrap_err().to_string().contains("could leave it"));
        // So a virtiofsd is never as little confined as a VMM may be.
        let another = Confinement::Insecure.for_virtiofsd().unwrap();
        assert!(matches!(another, Confinement::Namespaces));
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
            let told = done_by(&confinement, &shared(&path, true), TRIED).unwrap();
            assert_eq!(told, "read\nothers\nsecret\ntheirs\n");
            let told = done_by(&confinement, &shared(&path, false), TRIED).unwrap();
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
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let given = shared(directory.path(), true);
        let told = as_somebody(move || done_by(&Confinement::Namespaces, &given, TRIED));
        assert_eq!(
            told.unwrap_or("read\ntheirs\n".to_owned()),
            "read\ntheirs\n"
        );
        if geteuid().is_root() {
            let given = shared(directory.path(), true);
            let told = done_by(&Confinement::Namespaces, &given, TRIED);
            assert_eq!(told.unwrap(), "read\ntheirs\n");
        }
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
