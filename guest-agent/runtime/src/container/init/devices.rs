//! A container's /dev: the nodes and links of OCI `config-linux.md`, "Default
//! Devices".
//!
//! These nodes are bind mounts of the guest's, each by itself, in a /dev where no
//! node can be opened: a container that may make nodes (CAP_MKNOD) makes none
//! that leads anywhere, be it a disk or the agent's own transport.

use crate::container::destination::{Kind, attach, clone_mount, find, find_in_guest, find_or_make};
use crate::container::error::{Failure, Step};
use crate::container::spec::{DeviceNode, DeviceSpec};
use guest_kernel::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, major, makedev, minor, mknodat,
    openat, symlinkat,
};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Name, major and minor number (Documentation/admin-guide/devices.txt).
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Target and name.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Of a mount whose node leads somewhere.
const USABLE: Attributes = Attributes {
    set: NO_SUID | NO_EXEC,
    clear: NO_DEV,
    propagation: 0,
};

/// Fills `dev`, the root of the container's /dev.
pub(super) fn fill(dev: BorrowedFd<'_>) -> io::Result<()> {
    for (target, name) in LINKS {
        symlinkat(target, dev, name)?;
    }
    for (name, major, minor) in NODES {
        let node = guest_node(name, major, minor)?;
        let place = find_or_make(dev, Path::new(name), Kind::File)?;
        bind_node(node.as_fd(), place.as_fd())?;
    }
    Ok(())
}

/// A node of a spec, and a mount of it where the container cannot make it.
pub(super) type Node<'a> = (&'a DeviceSpec, Option<OwnedFd>);

/// Makes the nodes of a spec. Each is then a mount by itself, on itself: only
/// there, and nowhere else in the container, does a node lead anywhere.
pub(super) fn make(root: BorrowedFd<'_>, devices: &[Node<'_>]) -> Result<(), Failure> {
    devices.iter().try_for_each(|(device, taken)| {
        let made = match taken {
            Some(node) => place(root, device, node.as_fd()),
            None => make_one(root, device),
        };
        made.map_err(Failure::at(Step::Device, device.path.to_string_lossy()))
    })
}

/// Puts a node where the spec has it.
fn place(root: BorrowedFd<'_>, device: &DeviceSpec, node: BorrowedFd<'_>) -> io::Result<()> {
    match find(root, &device.path) {
        Err(Errno::NOENT) => {}
        // Whatever it is, it is not what was asked for.
        outcome => return outcome.and(Err(Errno::EXIST)).map_err(Into::into),
    }
    let place = find_or_make(root, &device.path, Kind::File)?;
    set_attributes(node, USABLE, false)?;
    Ok(attach(node, place.as_fd())?)
}

fn make_one(root: BorrowedFd<'_>, device: &DeviceSpec) -> io::Result<()> {
    let name = device.path.file_name().ok_or(Errno::INVAL)?;
    let parent = device.path.parent().ok_or(Errno::INVAL)?;
    let parent = find_or_make(root, parent, Kind::Directory)?;
    let (kind, number) = match device.node {
        DeviceNode::Character(major, minor) => (FileType::CharacterDevice, makedev(major, minor)),
        DeviceNode::Block(major, minor) => (FileType::BlockDevice, makedev(major, minor)),
        DeviceNode::Fifo => (FileType::Fifo, 0),
    };
    match mknodat(
        &parent,
        name,
        kind,
        Mode::from_raw_mode(device.mode),
        number,
    ) {
        Ok(()) => {
            let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(&parent, name, Some(owner.0), Some(owner.1), flags)?;
        }
        // What it is is looked at below.
        Err(Errno::EXIST) => {}
        // No node can be made here, but one that is there be shown.
        Err(Errno::PERM) if kind != FileType::Fifo => {
            let node = find_in_guest(&device.path)?;
            if !leads_to(node.as_fd(), kind, number)? {
                return Err(Errno::NODEV.into());
            }
            let place = find_or_make(root, &device.path, Kind::File)?;
            return bind_node(node.as_fd(), place.as_fd());
        }
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(&parent, name, flags, Mode::empty())?;
    if !leads_to(node.as_fd(), kind, number)? {
        return Err(Errno::EXIST.into());
    }
    if kind == FileType::Fifo {
        return Ok(());
    }
    let mount = clone_mount(node.as_fd(), false)?;
    set_attributes(mount.as_fd(), USABLE, false)?;
    Ok(attach(mount.as_fd(), node.as_fd())?)
}

fn leads_to(node: BorrowedFd<'_>, kind: FileType, number: u64) -> rustix::io::Result<bool> {
    let stat = fstat(node)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number)
}

/// The guest's node of that name, if it is what it is called.
pub(super) fn guest_node(name: &str, number: u32, unit: u32) -> io::Result<OwnedFd> {
    let place = find_in_guest(&Path::new("/dev").join(name))?;
    if character_device(place.as_fd())? == Some((number, unit)) {
        Ok(place)
    } else {
        Err(Errno::NODEV.into())
    }
}

/// Whether it is one of the nodes every container has.
pub(super) fn is_default(place: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let numbers = character_device(place)?;
    Ok(NODES
        .iter()
        .any(|(_, number, unit)| numbers == Some((*number, *unit))))
}

fn character_device(place: BorrowedFd<'_>) -> rustix::io::Result<Option<(u32, u32)>> {
    let stat = fstat(place)?;
    let is_one = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_one.then(|| (major(stat.st_rdev), minor(stat.st_rdev))))
}

/// Read-only does not keep a device from being written, but its node, which is
/// the guest's, from being changed.
fn bind_node(node: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let mount = clone_mount(node, false)?;
    let attributes = Attributes {
        set: READ_ONLY | NO_SUID | NO_EXEC,
        ..Attributes::default()
    };
    set_attributes(mount.as_fd(), attributes, false)?;
    Ok(attach(mount.as_fd(), place)?)
}

/// Has /dev/console be the container's terminal.
pub(super) fn bind_console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<(), Failure> {
    let bind = || -> io::Result<()> {
        let place = find_or_make(root, Path::new("/dev/console"), Kind::File)?;
        let mount = clone_mount(slave, false)?;
        Ok(attach(mount.as_fd(), place.as_fd())?)
    };
    bind().map_err(Failure::at(Step::Device, "/dev/console"))
}
