//! What confines a VMM beyond what always does: namespaces of its own, and
//! where root starts it, a user of its own.
//!
//! A user of its own is one that nobody else has: a number out of a range, held
//! by a lock that the VMM inherits, so that it is free again when the VMM is
//! gone, whatever became of us. The lock is of a file of that number only, which
//! the VMM can neither write to nor open again. What such a VMM opens by itself it is handed as
//! a descriptor, and opens as /proc/self/fd/NUMBER: no directory has to let it
//! through, and the file alone decides, by its group.
use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, flock, open, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Gid, Uid, getpriority_user};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};

use super::directory::{Given, OwnMount, Placed};
use super::mount::{Attributes, UNCHANGED, set_attributes};
use super::spawn::EXECVE;
use crate::error::Error;
use crate::spec::VmSpec;

/// Root's directory of empty files, each locked by the VMM whose user has its
/// name. They stay, as many as there were users.
const USERS: &str = "/run/tardigrade-uids";
/// How many users there are to choose from.
const MOST_USERS: u32 = 1 << 16;
/// How many are tried: if half of them were taken, one try in two would do.
const ATTEMPTS: u32 = 64;
/// What a host has for its users, and no VMM for itself: it is handed what it
/// opens there.
const HIDDEN: [&CStr; 9] = [
    c"/boot", c"/home", c"/media", c"/mnt", c"/root", c"/run", c"/srv", c"/tmp", c"/var",
];
/// What is the kernel's, and no VMM writes to, whatever else it does.
const KERNELS: [&CStr; 2] = [c"/proc", c"/sys"];
/// What is seen in place of what is hidden; gone when the program runs.
const EMPTY: &CStr = c"/dev/empty";
/// Where a host has its devices, and shared memory and terminals of its users.
const ALL_DEVICES: &CStr = c"/dev";
/// What any VMM may open of /dev.
const DEVICES: [&str; 5] = ["null", "zero", "random", "urandom", "kvm"];
/// What one may open besides that opens taps by their names.
const TAPS: &str = "net/tun";
/// The directory of that.
const TAPS_DIRECTORY: &CStr = c"/dev/net";
/// The mode of a socket that one user beside us connects to.
const SOCKET_MODE: Mode = Mode::from_raw_mode(0o660);

/// How far a VMM is confined. Whatever it is: it has no capabilities and cannot
/// gain any, no environment, and no descriptor but those it needs.
#[derive(Debug, Clone, Default)]
pub enum Confinement {
    /// By nothing else.
    #[default]
    Insecure,
    /// By namespaces of its own; its user is ours. It takes either root or a
    /// kernel that gives everyone user namespaces.
    ///
    /// A VMM that names a tap of its VM keeps our network namespace.
    Namespaces,
    /// By namespaces and a user of its own. It takes root.
    User(Arc<User>),
}

/// How far a VMM was confined when it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confined {
    /// See [`Confinement::Insecure`].
    #[default]
    Insecure,
    /// See [`Confinement::Namespaces`].
    Namespaces,
    /// See [`Confinement::User`].
    User {
        /// The user.
        uid: u32,
    },
}

/// A user that no other VMM has while this or the VMM lives.
#[derive(Debug)]
pub struct User {
    uid: u32,
    group: u32,
    lock: File,
}

impl Confinement {
    /// The most that can be had: a user out of a range that begins at `base`, or
    /// without root, namespaces.
    ///
    /// # Errors
    /// When no user can be had.
    pub fn strictest(base: u32) -> Result<Self, Error> {
        if rustix::process::geteuid().is_root() {
            User::take(base).map(|user| Self::User(Arc::new(user)))
        } else {
            Ok(Self::Namespaces)
        }
    }

    /// The same for a virtiofsd of the VMM: with another user, where that has one of
    /// its own, and never with less than namespaces.
    ///
    /// # Errors
    /// When no user can be had.
    pub(crate) fn for_virtiofsd(&self) -> Result<Self, Error> {
        match self {
            Self::User(user) => User::take(user.group).map(|user| Self::User(Arc::new(user))),
            Self::Insecure | Self::Namespaces => Ok(Self::Namespaces),
        }
    }

    /// The user and the group that a process with this is to itself.
    pub(crate) fn ids(&self) -> (u32, u32) {
        match self {
            Self::User(user) => (user.uid, user.uid),
            // Of a namespace that nobody has mapped into (user_namespaces(7)).
            Self::Namespaces if !rustix::process::geteuid().is_root() => {
                (overflow("uid"), overflow("gid"))
            }
            Self::Insecure | Self::Namespaces => (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        }
    }

    /// Its user, if it has one of its own.
    pub(crate) fn user(&self) -> Option<&User> {
        match self {
            Self::User(user) => Some(user),
            Self::Insecure | Self::Namespaces => None,
        }
    }

    /// For the record.
    pub(crate) fn noted(&self) -> Confined {
        match self {
            Self::Insecure => Confined::Insecure,
            Self::Namespaces => Confined::Namespaces,
            Self::User(user) => Confined::User { uid: user.uid },
        }
    }

    /// What a child needs to confine itself.
    pub(crate) fn cell(&self, needs: Needs) -> Result<Option<Cell>, Error> {
        let devices = match self {
            Self::Insecure => return Ok(None),
            Self::Namespaces => Vec::new(),
            Self::User(_) => devices(needs.opens_taps)?,
        };
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        if !needs.host_network {
            flags |= libc::CLONE_NEWNET;
        }
        if !rustix::process::geteuid().is_root() {
            flags |= libc::CLONE_NEWUSER;
        }
        Ok(Some(Cell {
            flags,
            read_only: !needs.writes_by_path,
            taps: needs.opens_taps,
            devices,
            user: self.user().map(|user| (user.uid, user.group)),
            serves: false,
            directory: None,
        }))
    }
}

/// What a VMM cannot do without.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    /// It asks for links by their names.
    pub(crate) host_network: bool,
    /// It opens tap devices by their names. One with a user of its own has to be
    /// given them, see [`User::give_taps`].
    pub(crate) opens_taps: bool,
    /// It makes files and sockets by their paths.
    pub(crate) writes_by_path: bool,
}

impl User {
    /// Takes one that is free, at random.
    fn take(base: u32) -> Result<Self, Error> {
        Self::take_of(&open_users(Path::new(USERS))?, base)
    }

    /// Takes one that is free of a directory of users.
    fn take_of(users: &File, base: u32) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS {
            let mut random = [0; size_of::<u32>()];
            let flags = rustix::rand::GetRandomFlags::empty();
            rustix::rand::getrandom(&mut random, flags).map_err(Error::process("getrandom"))?;
            // The first number is the group's.
            let number = 1 + u32::from_ne_bytes(random) % (MOST_USERS - 1);
            let uid = base
                .checked_add(number)
                .filter(|uid| *uid < u32::MAX)
                .ok_or_else(|| refused(format!("no users from {base} on")))?;
            if let Some(lock) = lock_user(users, uid)? {
                let group = base;
                return Ok(Self { uid, group, lock });
            }
        }
        Err(refused(format!(
            "{ATTEMPTS} of the users from {base} on are taken"
        )))
    }

    /// Its number, and that of its own group.
    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    /// The group of all users of its range.
    pub(super) fn group(&self) -> u32 {
        self.group
    }

    /// What keeps the user taken.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Lets it open a file of ours, for writing too.
    pub(crate) fn share(&self, file: &File) -> io::Result<()> {
        share_with(self.uid, file)
    }

    /// Gives it a pipe.
    pub(crate) fn give(&self, pipe: impl AsFd) -> io::Result<()> {
        fchown(pipe, Some(self.uid), Some(self.uid))
    }

    /// Lets it open the taps of a VM by their names.
    pub(crate) fn give_taps(&self, spec: &VmSpec) -> Result<(), Error> {
        super::tap::give_taps(spec, self.uid)
    }

    /// Lets it make files in a directory of ours; what others have made there it
    /// can neither remove nor rename (inode(7), the sticky bit).
    pub(crate) fn share_directory(&self, path: &Path) -> Result<(), Error> {
        let shared = File::open(path).and_then(|directory| {
            fchown(&directory, None, Some(self.uid))?;
            directory.set_permissions(Permissions::from_mode(0o1770))
        });
        shared.map_err(Error::path("fchown", path))
    }

    /// Lets it connect to a socket of ours, in a directory where nobody else makes
    /// any.
    pub(crate) fn show_socket(&self, path: &Path) -> Result<(), Error> {
        let group = Some(Gid::from_raw(self.uid));
        rustix::fs::chownat(CWD, path, None, group, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| rustix::fs::chmodat(CWD, path, SOCKET_MODE, AtFlags::empty()))
            .map_err(|errno| Error::path("chown", path)(errno.into()))
    }

    /// Lets it use a file or a directory of ours as the mode lets our group.
    pub(crate) fn show(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let shown = File::open(path).and_then(|file| {
            fchown(&file, None, Some(self.uid))?;
            file.set_permissions(Permissions::from_mode(mode))
        });
        shown.map_err(Error::path("fchown", path))
    }

    /// Opens a file for it to open again by its descriptor.
    ///
    /// # Errors
    /// [`Error::Spec`] when it may not.
    pub(crate) fn open(
        &self,
        field: &'static str,
        path: &Path,
        writes: bool,
    ) -> Result<File, Error> {
        let file = File::open(path).map_err(Error::path("open", path))?;
        let found = file.metadata().map_err(Error::path("stat", path))?;
        if self.may(&found, writes) {
            return Ok(file);
        }
        Err(Error::Spec {
            field,
            reason: format!(
                "{}: mode {:o} and group {} keep it from a vmm with a user of its own, which is in \
                 group {}",
                path.display(),
                found.mode() & 0o7777,
                found.gid(),
                self.group
            ),
        })
    }

    /// Opens a file for it to read, or a copy of it where it may not: one that
    /// is small.
    pub(crate) fn open_or_copy(&self, path: &Path) -> Result<File, Error> {
        let mut file = File::open(path).map_err(Error::path("open", path))?;
        let found = file.metadata().map_err(Error::path("stat", path))?;
        if self.may(&found, false) {
            return Ok(file);
        }
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let copy = rustix::fs::memfd_create(c"copy", flags);
        let mut copy = File::from(copy.map_err(Error::process("memfd_create"))?);
        io::copy(&mut file, &mut copy).map_err(Error::path("copy", path))?;
        Ok(copy)
    }

    /// Whether it may list a directory and go through it, and make files there.
    pub(super) fn may_search(&self, directory: &Metadata, writes: bool) -> bool {
        self.has(directory, if writes { 0o7 } else { 0o5 })
    }

    fn may(&self, file: &Metadata, writes: bool) -> bool {
        self.has(file, if writes { 0o6 } else { 0o4 })
    }

    /// What the kernel would say (path_resolution(7), "Permissions").
    fn has(&self, file: &Metadata, wanted: u32) -> bool {
        let bits = if file.uid() == self.uid {
            file.mode() >> 6
        } else if [self.uid, self.group].contains(&file.gid()) {
            file.mode() >> 3
        } else {
            file.mode()
        };
        bits & wanted == wanted
    }
}

/// What is told in place of a user or group that is not mapped.
fn overflow(kind: &str) -> u32 {
    const USUAL: u32 = 65534;
    let told = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"));
    let told = told.ok().and_then(|text| text.trim().parse().ok());
    told.unwrap_or(USUAL)
}

/// Lets the user with this number open a file of ours, for writing too.
pub(crate) fn share_with(uid: u32, file: &File) -> io::Result<()> {
    fchown(file, None, Some(uid))?;
    file.set_permissions(Permissions::from_mode(0o660))
}

fn refused(reason: String) -> Error {
    Error::Confinement { reason }
}

/// Opens the directory of users, which is made if there is none.
///
/// # Errors
/// [`Error::Confinement`] when it is no directory, or one that somebody besides
/// root gets at.
fn open_users(path: &Path) -> Result<File, Error> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::path("mkdir", path)(error));
        }
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let users = match open(path, flags, Mode::empty()) {
        Ok(users) => File::from(users),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(refused(format!("{} is no directory", path.display())));
        }
        Err(errno) => return Err(Error::path("open", path)(errno.into())),
    };
    let found = users.metadata().map_err(Error::path("stat", path))?;
    let mode = found.mode() & 0o7777;
    if found.uid() != 0 || mode != 0o700 {
        return Err(refused(format!(
            "{} is user {}'s with mode {mode:o}, and must be root's with 700",
            path.display(),
            found.uid()
        )));
    }
    Ok(users)
}

/// Takes the user with this number, if it is free. The lock belongs to the open
/// file, and to every copy of its descriptor (flock(2)).
fn lock_user(users: &File, uid: u32) -> Result<Option<File>, Error> {
    let name = uid.to_string();
    let failed = |call, errno: Errno| Error::path(call, Path::new(USERS).join(&name))(errno.into());
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(users, &name, flags, Mode::RUSR).map_err(|errno| failed("open", errno))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(failed("flock", errno)),
    }
    // A VMM can unlock what it inherits, but not be nobody's: getpriority(2)
    // finds a user's processes, and fails where there are none.
    match getpriority_user(Uid::from_raw(uid)) {
        Err(Errno::SRCH) => Ok(Some(file.into())),
        Ok(_) => Ok(None),
        Err(errno) => Err(failed("getpriority", errno)),
    }
}

/// A device that a child makes for itself.
#[derive(Debug)]
struct Device {
    path: CString,
    number: u64,
}

fn devices(taps: bool) -> Result<Vec<Device>, Error> {
    let mut devices = Vec::new();
    for name in DEVICES.into_iter().chain(taps.then_some(TAPS)) {
        let path = format!("/dev/{name}");
        match std::fs::metadata(&path) {
            // Without KVM there is emulation, and who has no taps is told so.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => devices.push(Device {
                number: found.map_err(Error::path("stat", &path))?.rdev(),
                path: CString::new(path).map_err(|_| refused("a zero in a name".to_owned()))?,
            }),
        }
    }
    Ok(devices)
}

/// A child's part in its confinement. It allocates nothing and calls no function
/// of the C library that would speak to other threads.
#[derive(Debug)]
pub(crate) struct Cell {
    /// The namespaces, for clone(2).
    pub(super) flags: libc::c_int,
    read_only: bool,
    /// There is to be a directory for their device.
    taps: bool,
    devices: Vec<Device>,
    user: Option<(u32, u32)>,
    /// It is given a directory, and sees nothing else of the host's users.
    serves: bool,
    /// What it makes a mount of.
    directory: Option<OwnMount>,
}

/// A step of a child that failed.
pub(super) type Failed = (&'static str, Errno);

/// What a child has when its mounts are its own.
#[derive(Default)]
pub(super) struct Own {
    /// Its program, opened, where that may lie in what is hidden.
    pub(super) program: Option<OwnedFd>,
    /// The directory that it has made a mount of.
    pub(super) directory: Option<Placed>,
}

impl Cell {
    /// The same for a process that is given a directory, and opens no device.
    pub(crate) fn with(self, given: &Given) -> Self {
        Self {
            serves: true,
            directory: given.own().cloned(),
            devices: Vec::new(),
            ..self
        }
    }

    /// Whether this is for a process that is given a directory.
    pub(super) fn serves(&self) -> bool {
        self.serves
    }

    /// Makes the mounts its own. The descriptors it inherits are of our mounts, and
    /// not touched by that.
    ///
    /// One with a user of its own has no other processes in its /proc, and what
    /// hosts have for their users is empty to it, unless its program lies there.
    ///
    /// So it is, too, for one that is given a directory, wherever its program lies,
    /// and so is its /dev. Where it makes a mount of the directory, this gives it.
    pub(super) fn own_mounts(&self, program: &CStr) -> Result<Own, Failed> {
        let mut own = Own {
            // As it is mounted on the host: all else is read-only from here on.
            directory: self.directory.as_ref().map(OwnMount::make).transpose()?,
            program: None,
        };
        self.restrict_mounts()?;
        let mut exempt = Some(program);
        if self.serves {
            // By its own mounts: what it gets at by /proc/self/exe is read-only, too.
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let opened = open(program, flags, Mode::empty()).map_err(|errno| (EXECVE, errno))?;
            own.program = Some(opened);
            exempt = None;
        }
        if let Some((uid, _)) = self.user {
            mount_read_only(c"/proc", c"proc", None).map_err(|errno| ("mount /proc", errno))?;
            self.own_devices(uid)?;
            // Nothing can be made in it.
            make_passable(EMPTY).map_err(|errno| ("mkdir in /dev", errno))?;
            hide_all_but(exempt, |hidden| mount_bind(EMPTY, hidden))?;
            let removed = rustix::fs::unlinkat(CWD, EMPTY, AtFlags::REMOVEDIR);
            removed.map_err(|errno| ("rmdir in /dev", errno))?;
        } else if self.serves {
            match mount_read_only(c"/proc", c"proc", None) {
                // Where something hides a part of the host's, its whole is not
                // for a user namespace: by the host's it gets at no process
                // outside its own (ptrace(2), "access mode checking"), but reads of
                // them what everybody may, the command lines above all.
                Err(Errno::PERM) if own.directory.is_some() => Ok(()),
                mounted => mounted.map_err(|errno| ("mount /proc", errno)),
            }?;
            hide(ALL_DEVICES, cover_by_nothing)?;
            hide_all_but(exempt, cover_by_nothing)?;
        }
        Ok(own)
    }

    /// Nothing that it or others mount passes between them, and unless it has to, it
    /// writes to no file by its path. One that is given a directory opens no device,
    /// which a read-only mount alone does not keep it from.
    fn restrict_mounts(&self) -> Result<(), Failed> {
        let mut wanted = Attributes {
            attr_set: libc::MOUNT_ATTR_NOSUID,
            propagation: libc::MS_PRIVATE,
            ..UNCHANGED
        };
        if self.read_only {
            wanted.attr_set |= libc::MOUNT_ATTR_RDONLY;
        }
        if self.serves {
            wanted.attr_set |= libc::MOUNT_ATTR_NODEV;
        }
        change(c"/", &wanted).map_err(|errno| ("mount_setattr /", errno))?;
        if self.read_only {
            return Ok(());
        }
        let read_only = Attributes {
            attr_set: libc::MOUNT_ATTR_RDONLY,
            ..UNCHANGED
        };
        for kernels in KERNELS {
            match change(kernels, &read_only) {
                // There is none, or nothing mounted there.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(errno) => return Err(("mount_setattr /proc", errno)),
            }
        }
        Ok(())
    }

    /// Puts a /dev in place of the host's, with nothing in it but what is listed.
    fn own_devices(&self, uid: u32) -> Result<(), Failed> {
        let mut flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        if self.devices.is_empty() {
            flags |= MountFlags::NODEV;
        }
        let options = c"mode=755,size=64k";
        mount(c"none", ALL_DEVICES, c"tmpfs", flags, options)
            .map_err(|errno| ("mount /dev", errno))?;
        if self.taps {
            make_passable(TAPS_DIRECTORY).map_err(|errno| ("mkdir /dev/net", errno))?;
        }
        let mode = Mode::RUSR | Mode::WUSR;
        for device in &self.devices {
            let path = device.path.as_c_str();
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, device.number)
                .map_err(|errno| ("mknod in /dev", errno))?;
            let owner = Some(Uid::from_raw(uid));
            rustix::fs::chownat(CWD, path, owner, None, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| ("chown in /dev", errno))?;
        }
        Ok(())
    }

    /// Becomes its user; the last step that takes a capability.
    pub(super) fn become_user(&self) -> Result<(), Failed> {
        let Some((uid, group)) = self.user else {
            return Ok(());
        };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        set_thread_groups(&[Gid::from_raw(group)]).map_err(|errno| ("setgroups", errno))?;
        set_thread_res_gid(gid, gid, gid).map_err(|errno| ("setresgid", errno))?;
        set_thread_res_uid(uid, uid, uid).map_err(|errno| ("setresuid", errno))
    }
}

/// Changes a mount that is seen at a path, and all below it.
fn change(path: &CStr, wanted: &Attributes) -> Result<(), Errno> {
    set_attributes(libc::AT_FDCWD, path, 0, wanted)
}

/// Makes a directory for everyone, whatever our umask is.
fn make_passable(path: &CStr) -> Result<(), Errno> {
    let passable = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
    rustix::fs::mkdirat(CWD, path, passable)?;
    rustix::fs::chmodat(CWD, path, passable, AtFlags::empty())
}

/// Puts something empty in place of each hidden directory that the program is not
/// in, if there is one that is to be seen.
fn hide_all_but(
    program: Option<&CStr>,
    cover: impl Fn(&CStr) -> Result<(), Errno>,
) -> Result<(), Failed> {
    let is_in = |hidden: &CStr| {
        let rest = program.and_then(|program| program.to_bytes().strip_prefix(hidden.to_bytes()));
        rest.is_some_and(|rest| rest.starts_with(b"/"))
    };
    let is_hidden = HIDDEN.into_iter().any(is_in);
    for hidden in HIDDEN {
        // A link may lead to where the program is (/home to /var/home).
        if is_in(hidden) || (is_hidden && is_link(hidden)) {
            continue;
        }
        hide(hidden, &cover)?;
    }
    Ok(())
}

fn hide(hidden: &CStr, cover: impl Fn(&CStr) -> Result<(), Errno>) -> Result<(), Failed> {
    match cover(hidden) {
        // It is not on every host.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(("mount in place of what is hidden", errno)),
    }
}

fn is_link(path: &CStr) -> bool {
    let found = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
}

/// Covers a directory where there is none to put in its place.
fn cover_by_nothing(hidden: &CStr) -> Result<(), Errno> {
    mount_read_only(hidden, c"tmpfs", Some(c"mode=555,size=4k"))
}

fn mount_read_only(at: &CStr, what: &CStr, options: Option<&CStr>) -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount(c"none", at, what, flags, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 0x7e00_0000;

    /// A directory of users, if this is root.
    fn users() -> Option<(tempfile::TempDir, File)> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root gives users away");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let users = open_users(&directory.path().join("users")).unwrap();
        Some((directory, users))
    }

    #[test]
    fn two_users_that_live_are_never_the_same_and_one_that_is_gone_is_free_again() {
        let Some((_directory, users)) = users() else {
            return;
        };
        let user = User::take_of(&users, BASE).unwrap();
        let uid = user.uid;
        let free = || lock_user(&users, uid).unwrap().is_some();
        assert!(!free());
        let inherited = user.lock.try_clone().unwrap();
        drop(user);
        assert!(!free(), "its VMM lives");
        drop(inherited);
        assert!(free());
    }

    #[test]
    fn a_user_that_a_process_has_is_taken_whoever_unlocked_its_file() {
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};
        let Some((_directory, users)) = users() else {
            return;
        };
        let user = User::take_of(&users, BASE).unwrap();
        // It reads until we close its pipe.
        let mut vmm = Command::new("/bin/cat")
            .stdin(Stdio::piped())
            .uid(user.uid)
            .spawn()
            .unwrap();
        flock(&user.lock, FlockOperation::Unlock).unwrap();
        assert!(lock_user(&users, user.uid).unwrap().is_none());
        drop(vmm.stdin.take());
        assert!(vmm.wait().unwrap().success());
        assert!(lock_user(&users, user.uid).unwrap().is_some());
    }

    #[test]
    fn what_a_vmm_inherits_of_its_user_takes_no_byte_and_is_not_another_users() {
        use std::io::Write;
        let Some((_directory, users)) = users() else {
            return;
        };
        let [mut one, other] = [(); 2].map(|()| User::take_of(&users, BASE).unwrap());
        let error = one.lock.write_all(b"full").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
        assert!(one.lock.set_len(1 << 20).is_err());
        let [found, others] = [&one, &other].map(|user| user.lock.metadata().unwrap());
        assert_ne!(found.ino(), others.ino());
        assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o400));
    }

    #[test]
    fn a_directory_of_users_that_is_not_roots_alone_is_refused() {
        let Some((directory, users)) = users() else {
            return;
        };
        let path = directory.path().join("users");
        let refuses = |path: &Path| match open_users(path).unwrap_err() {
            Error::Confinement { reason } => reason,
            other => panic!("{other}"),
        };
        users
            .set_permissions(Permissions::from_mode(0o755))
            .unwrap();
        assert!(refuses(&path).contains("755"));
        users
            .set_permissions(Permissions::from_mode(0o700))
            .unwrap();
        assert!(open_users(&path).is_ok());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refuses(&link).contains("no directory"));
        let file = directory.path().join("file");
        File::create(&file).unwrap();
        assert!(refuses(&file).contains("no directory"));
        fchown(&users, Some(BASE), None).unwrap();
        assert!(refuses(&path).contains(&BASE.to_string()));
    }

    #[test]
    fn a_file_decides_by_its_owner_its_group_and_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let lock = File::create(&path).unwrap();
        let own = lock.metadata().unwrap();
        let user = |uid, group| User {
            uid,
            group,
            lock: lock.try_clone().unwrap(),
        };
        let cases = [
            (0o600, own.uid(), 1, true, true),
            (0o040, own.uid(), own.gid(), false, false),
            (0o640, own.uid() + 1, own.gid(), true, false),
            (0o660, own.uid() + 1, own.gid(), true, true),
            (0o606, own.uid() + 1, own.gid(), false, false),
            (0o606, own.uid() + 1, own.gid() + 1, true, true),
            (0o660, own.uid() + 1, own.gid() + 1, false, false),
        ];
        for (mode, uid, group, reads, writes) in cases {
            lock.set_permissions(Permissions::from_mode(mode)).unwrap();
            let found = lock.metadata().unwrap();
            let user = user(uid, group);
            let may = (user.may(&found, false), user.may(&found, true));
            assert_eq!(may, (reads, writes), "{mode:o} for {uid} in {group}");
        }
    }
}
