//! What a container gets of the guest's tree, taken as mounts that lie nowhere
//! yet, while the stage may still go everywhere: root of a user namespace finds
//! no way through the guest's directories, and may neither make device nodes
//! nor mount a file system over a namespace that is not its own.

use super::namespaces::Entrance;
use crate::container::destination::{attach, clone_mount, find_in_guest, new_mount, open_root};
use crate::container::error::{Failure, Step};
use crate::container::id_mapping::outside;
use crate::container::spec::{ContainerSpec, DeviceNode, DeviceSpec, MountSpec, NamespaceKind};
use crate::mount_options::{Bind, MountOptions};
use guest_kernel::mount::map_ids;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, major, makedev, minor, mknodat,
    openat,
};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// File systems that show a namespace, and which.
const OF_NAMESPACES: [(&str, NamespaceKind); 2] = [
    ("sysfs", NamespaceKind::Network),
    ("mqueue", NamespaceKind::Ipc),
];

/// Detached mounts.
#[derive(Debug)]
pub(in crate::container) struct Taken {
    /// The root file system, with all that is mounted in it.
    pub(in crate::container) root: OwnedFd,
    /// By their place in the spec: what is bound, and what the container
    /// cannot mount itself.
    pub(in crate::container) mounts: BTreeMap<usize, OwnedFd>,
    /// The files of its identity, and where they are looked for.
    pub(in crate::container) identity: Vec<(&'static str, OwnedFd)>,
    /// Device nodes, by their place in the spec, if it cannot make them itself.
    pub(in crate::container) devices: BTreeMap<usize, OwnedFd>,
}

impl Taken {
    /// Takes all. The namespaces that the container joins have been entered,
    /// but for its user namespace.
    pub(super) fn take(spec: &ContainerSpec, entrance: &Entrance<'_>) -> Result<Self, Failure> {
        let path = &spec.root.path;
        let root = take_tree(path, true)
            .map_err(|error| Failure::at(Step::Root, path.to_string_lossy())(error.into()))?;
        let mut mounts = BTreeMap::new();
        for (index, mount) in spec.mounts.iter().enumerate() {
            let taken = take_mount(spec, mount).map_err(Failure::at(Step::Mount, mount.name()))?;
            if let Some(taken) = &taken {
                map_owners(mount, taken.as_fd(), entrance.owners(index))?;
            }
            mounts.extend(taken.map(|taken| (index, taken)));
        }
        let mut identity = Vec::new();
        for (file, place) in spec.identity_files.places() {
            if let Some(file) = file {
                let taken = take_tree(file, false);
                let failed = |error: Errno| Failure::at(Step::Identity, place)(error.into());
                identity.push((place, taken.map_err(failed)?));
            }
        }
        // Last: what is taken after it is no longer a peer of the guest's.
        let devices = if spec.has_own(NamespaceKind::User) {
            take_devices(spec)?
        } else {
            BTreeMap::new()
        };
        Ok(Self {
            root,
            mounts,
            identity,
            devices,
        })
    }
}

fn take_tree(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    find_in_guest(path).and_then(|place| clone_mount(place.as_fd(), recursive))
}

fn take_mount(spec: &ContainerSpec, mount: &MountSpec) -> io::Result<Option<OwnedFd>> {
    let options = MountOptions::parse(&mount.options).map_err(|_| Errno::INVAL)?;
    if let Some(bind) = options.bind {
        let source = mount.source.as_deref().ok_or(Errno::INVAL)?;
        return Ok(Some(take_tree(source, bind == Bind::Recursive)?));
    }
    if !spec.has_own(NamespaceKind::User) {
        return Ok(None);
    }
    let fstype = mount.fstype.as_deref().unwrap_or_default();
    let mut kinds = OF_NAMESPACES.iter();
    match kinds.find(|(shows, _)| *shows == fstype) {
        Some((_, kind)) if !spec.makes(*kind) => {
            new_mount(fstype, Path::new(fstype), &options.data).map(Some)
        }
        _ => Ok(None),
    }
}

/// Has a bind mount show other owners, if it is to.
fn map_owners(
    spec: &MountSpec,
    mount: BorrowedFd<'_>,
    owners: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    let options = MountOptions::parse(&spec.options).unwrap_or_default();
    let recursive = options.id_map == Some(Bind::Recursive);
    let is_mapped = spec.id_mappings.is_some() || options.id_map.is_some();
    let Some(namespace) = owners.filter(|_| is_mapped) else {
        return Ok(());
    };
    map_ids(mount, namespace, recursive).map_err(|error| {
        let fstype = file_system(mount).unwrap_or_else(|_| "unknown".into());
        let subject = format!("{}, idmap on file system {fstype}", spec.name());
        Failure::at(Step::Mount, subject)(error)
    })
}

/// Of which type the file system of a place is, as mountinfo has it, proc(5).
fn file_system(place: BorrowedFd<'_>) -> io::Result<String> {
    let device = fstat(place)?.st_dev;
    let device = format!("{}:{}", major(device), minor(device));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        (head.split(' ').nth(2)? == device).then(|| tail.split(' ').next())?
    });
    found.map(Into::into).ok_or_else(|| Errno::NOENT.into())
}

/// Makes the nodes of a spec where they can be opened, and takes each by itself.
fn take_devices(spec: &ContainerSpec) -> Result<BTreeMap<usize, OwnedFd>, Failure> {
    let nodes = |device: &&DeviceSpec| device.node != DeviceNode::Fifo;
    if !spec.devices.iter().any(|device| nodes(&device)) {
        return Ok(BTreeMap::new());
    }
    let failed = |error| Failure::at(Step::Device, "a place for them")(error);
    let place = device_place().map_err(failed)?;
    let mut taken = BTreeMap::new();
    for (index, device) in spec
        .devices
        .iter()
        .enumerate()
        .filter(|(_, one)| nodes(one))
    {
        let failed = Failure::at(Step::Device, device.path.to_string_lossy());
        let node = take_device(spec, device, &place, &index.to_string());
        taken.insert(index, node.map_err(|error| failed(error.into()))?);
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    unmount(path, UnmountFlags::DETACH).map_err(|error| failed(error.into()))?;
    Ok(taken)
}

/// A tmpfs that only this process sees: mounts are taken of what is mounted
/// somewhere.
fn device_place() -> io::Result<OwnedFd> {
    guest_kernel::namespace::unshare_mount()?;
    let apart = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", apart)?;
    let place = new_mount("tmpfs", Path::new("devices"), &[])?;
    attach(place.as_fd(), open_root()?.as_fd())?;
    rustix::process::umask(Mode::empty());
    Ok(place)
}

fn take_device(
    spec: &ContainerSpec,
    device: &DeviceSpec,
    place: &OwnedFd,
    name: &str,
) -> rustix::io::Result<OwnedFd> {
    let (kind, number) = match device.node {
        DeviceNode::Character(major, minor) => (FileType::CharacterDevice, makedev(major, minor)),
        DeviceNode::Block(major, minor) => (FileType::BlockDevice, makedev(major, minor)),
        DeviceNode::Fifo => return Err(Errno::INVAL),
    };
    mknodat(place, name, kind, Mode::from_raw_mode(device.mode), number)?;
    let maps = &spec.id_mappings;
    let user = outside(&maps.users, device.uid).ok_or(Errno::OVERFLOW)?;
    let group = outside(&maps.groups, device.gid).ok_or(Errno::OVERFLOW)?;
    let owner = (Uid::from_raw(user), Gid::from_raw(group));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    chownat(place, name, Some(owner.0), Some(owner.1), flags)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(place, name, flags, Mode::empty())?;
    clone_mount(node.as_fd(), false)
}
