//! The tree a container sees: its root, the mounts in it, and the step into
//! it.

use super::copy_up;
use super::devices::{self, Node};
use crate::container::destination::{
    Kind, attach, find_in_guest, find_or_make, find_with, is_directory, is_in_proc, new_mount,
    open_root,
};
use crate::container::error::{Failure, Step};
use crate::container::spec::{ContainerSpec, MountSpec};
use crate::mount_options::{Bind, MountOptions, propagation_of};
use guest_kernel::mount::{Attributes, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, set_attributes};
use rustix::fs::{FileType, OFlags, ResolveFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{fchdir, pivot_root};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Files of a procfs that may be covered by a file of the guest (lxcfs does
/// it); everything else there is the kernel's interface.
const PROC_FILES: [&str; 8] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "stat",
    "swaps",
    "uptime",
];
/// Where a container has its device nodes.
pub(super) const DEV: &str = "/dev";
/// File systems that are a container's own and whose files SELinux labels as
/// they are mounted.
const LABELLED: [&str; 2] = ["devpts", "tmpfs"];
/// What a container gets there if its spec mounts nothing.
const DEV_OPTIONS: [&str; 3] = ["nosuid", "mode=755", "size=65536k"];

/// What the stage has taken for the mounts of the spec, by their place in it.
pub(super) type Mounts = BTreeMap<usize, OwnedFd>;

/// Cuts the tie to the guest's mounts, but that what is mounted in them may be
/// seen where a mount asks for it, and puts `tree`, the root file system, where
/// it lies in the guest. No device node in it can be opened.
pub(super) fn attach_root(
    tree: BorrowedFd<'_>,
    path: &Path,
    propagation: Option<&str>,
) -> Result<(), Failure> {
    let failed = |error: Errno| Failure::at(Step::Root, path.to_string_lossy())(error.into());
    let downstream = MountPropagationFlags::DOWNSTREAM;
    mount_change("/", downstream | MountPropagationFlags::REC).map_err(failed)?;
    let kept = if follows(propagation) {
        downstream
    } else {
        MountPropagationFlags::PRIVATE
    };
    let no_devices = Attributes {
        set: NO_DEV,
        propagation: kept.bits().into(),
        ..Attributes::default()
    };
    set_attributes(tree, no_devices, true)
        .map_err(Failure::at(Step::Root, path.to_string_lossy()))?;
    let place = match find_in_guest(path) {
        // Root of a user namespace may find no way there; it is a place like
        // any other.
        Err(Errno::ACCESS) => open_root(),
        outcome => outcome,
    };
    attach(tree, place.map_err(failed)?.as_fd()).map_err(failed)
}

/// Mounts all of the spec, in its order, and /dev if the spec does not.
pub(super) fn mount_all(
    root: BorrowedFd<'_>,
    spec: &ContainerSpec,
    mut taken: Mounts,
    mut nodes: Mounts,
) -> Result<(), Failure> {
    let label = spec.mount_label.as_deref();
    let devices = spec.devices.iter().enumerate();
    let (below, elsewhere): (Vec<Node<'_>>, Vec<Node<'_>>) = devices
        .map(|(index, device)| (device, nodes.remove(&index)))
        .partition(|(device, _)| device.path.starts_with(DEV));
    let implied = (!spec.mounts.iter().any(is_dev)).then(|| MountSpec {
        destination: DEV.into(),
        source: None,
        fstype: Some("tmpfs".into()),
        options: DEV_OPTIONS.iter().map(ToString::to_string).collect(),
        id_mappings: None,
    });
    if let Some(mount) = &implied {
        mount_one(root, mount, None, &below, label)?;
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        mount_one(root, mount, taken.remove(&index), &below, label)?;
    }
    devices::make(root, &elsewhere)
}

fn is_dev(mount: &MountSpec) -> bool {
    mount
        .destination
        .components()
        .eq(Path::new(DEV).components())
}

/// Of the devices are made those that lie on it, if it is the /dev.
fn mount_one(
    root: BorrowedFd<'_>,
    spec: &MountSpec,
    taken: Option<OwnedFd>,
    devices: &[Node<'_>],
    label: Option<&str>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| match error.downcast::<Failure>() {
        Ok(told) => told,
        Err(error) => Failure::at(Step::Mount, spec.name())(error),
    };
    let mut options = MountOptions::parse(&spec.options)
        .map_err(|_| failed(io::Error::from_raw_os_error(nix::libc::EINVAL)))?;
    let fstype = spec.fstype.as_deref().unwrap_or_default();
    if let Some(label) = label.filter(|_| LABELLED.contains(&fstype) && options.bind.is_none()) {
        // Of all that is in it, mount(8).
        options.data.push(("context".into(), Some(label.into())));
    }
    let Some((dev, options)) = mount_parsed(root, spec, taken, options).map_err(failed)? else {
        return Ok(());
    };
    // /dev is filled before it is made what the spec says.
    devices::make(root, devices)?;
    set_all(dev.as_fd(), &options).map_err(failed)
}

/// Gives a /dev that is not yet what its options say.
fn mount_parsed(
    root: BorrowedFd<'_>,
    spec: &MountSpec,
    taken: Option<OwnedFd>,
    mut options: MountOptions,
) -> io::Result<Option<(OwnedFd, MountOptions)>> {
    let (mount, kind) = match (options.bind, taken) {
        (Some(_), taken) => {
            let mount = taken.ok_or(Errno::INVAL)?;
            let kind = check_source(mount.as_fd(), &mut options)?;
            (mount, kind)
        }
        // Of a namespace that is not the container's.
        (None, Some(mount)) => {
            options.force(NO_DEV);
            if spec.fstype.as_deref() == Some("sysfs") {
                options.force(READ_ONLY);
            }
            (mount, Kind::Directory)
        }
        (None, None) => (new_file_system(spec, &mut options)?, Kind::Directory),
    };
    let place = find_or_make(root, &spec.destination, kind)?;
    check_place(root, place.as_fd(), spec)?;
    if options.bind.is_none() && is_dev(spec) {
        options.force(NO_DEV);
        let no_devices = Attributes {
            set: NO_DEV,
            ..Attributes::default()
        };
        set_attributes(mount.as_fd(), no_devices, false)?;
        attach(mount.as_fd(), place.as_fd())?;
        devices::fill(mount.as_fd())?;
        return Ok(Some((mount, options)));
    }
    if options.copy_up {
        let given = |name: &&str| options.data.iter().any(|(key, _)| key == name);
        if !["mode", "uid", "gid"].iter().any(given) {
            copy_up::copy_owner_and_mode(place.as_fd(), mount.as_fd())?;
        }
        let copied = copy_up::copy(place.as_fd(), mount.as_fd());
        copied.map_err(|error| not_copied(spec, error))?;
    }
    set_all(mount.as_fd(), &options)?;
    attach(mount.as_fd(), place.as_fd())?;
    Ok(None)
}

/// Names the device node that may not be made, if it was for one.
fn not_copied(spec: &MountSpec, error: copy_up::CopyError) -> io::Error {
    let copy_up::CopyError { errno, device } = error;
    let Some(device) = device else {
        return errno.into();
    };
    let subject = format!("{}, tmpcopyup of device {device}", spec.name());
    io::Error::other(Failure::at(Step::Mount, subject)(errno.into()))
}

/// Has a mount be what its options say.
fn set_all(mount: BorrowedFd<'_>, options: &MountOptions) -> io::Result<()> {
    if options.bind == Some(Bind::Recursive) {
        let forced = Attributes {
            set: options.attributes.set & NO_DEV,
            ..Attributes::default()
        };
        set_attributes(mount, forced, true)?;
    }
    if options.recursive != Attributes::default() {
        set_attributes(mount, options.recursive, true)?;
    }
    set_attributes(mount, options.attributes, false)?;
    let wanted = options.propagation;
    // It is a peer of the guest's where that is to see what it does, and a
    // slave where it is to see what the guest does.
    let kept = |flag| wanted.is_some_and(|one| one.flag == flag);
    if !kept(MountPropagationFlags::SHARED) && !kept(MountPropagationFlags::DOWNSTREAM) {
        propagate(mount, MountPropagationFlags::PRIVATE, true)?;
    }
    match wanted {
        Some(one) => propagate(mount, one.flag, one.recursive),
        None => Ok(()),
    }
}

fn propagate(
    mount: BorrowedFd<'_>,
    flag: MountPropagationFlags,
    recursive: bool,
) -> io::Result<()> {
    let attributes = Attributes {
        propagation: flag.bits().into(),
        ..Attributes::default()
    };
    set_attributes(mount, attributes, recursive)
}

/// What a bind mount is to be put on. A device node is bound only if every
/// container has it: others lead to disks, or to the agent's own transport.
fn check_source(mount: BorrowedFd<'_>, options: &mut MountOptions) -> io::Result<Kind> {
    let kind = match FileType::from_raw_mode(fstat(mount)?.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::BlockDevice => return Err(Errno::PERM.into()),
        FileType::CharacterDevice if !devices::is_default(mount)? => {
            return Err(Errno::PERM.into());
        }
        _ => Kind::File,
    };
    let is_device = kind == Kind::File && devices::is_default(mount)?;
    if !is_device {
        options.force(NO_DEV);
    }
    if !options.data.is_empty() {
        // The kernel would ignore them.
        return Err(Errno::INVAL.into());
    }
    Ok(kind)
}

/// A new, detached instance of a file system.
fn new_file_system(spec: &MountSpec, options: &mut MountOptions) -> io::Result<OwnedFd> {
    let fstype = match spec.fstype.as_deref() {
        Some("cgroup" | "cgroup2") => {
            // Whatever the options say: no container writes its cgroup.
            options.force(READ_ONLY | NO_SUID | NO_DEV | NO_EXEC);
            // Those of the hierarchy are the guest's to set.
            options.data.clear();
            "cgroup2"
        }
        // Its nodes are the kernel's own, one a terminal.
        Some("devpts") => "devpts",
        Some(fstype) => {
            options.force(NO_DEV);
            fstype
        }
        None => return Err(Errno::INVAL.into()),
    };
    let source = spec.source.as_deref().unwrap_or(Path::new(fstype));
    new_mount(fstype, source, &options.data)
}

/// A symbolic link of the image must not turn a mount into one over the
/// kernel's interface, nor a procfs into one that programs do not find.
fn check_place(root: BorrowedFd<'_>, place: BorrowedFd<'_>, spec: &MountSpec) -> io::Result<()> {
    if matches!(spec.fstype.as_deref(), Some("proc" | "sysfs")) {
        let no_links = ResolveFlags::NO_SYMLINKS;
        let plain = find_with(root, &spec.destination, OFlags::PATH, no_links)?;
        if !is_directory(plain.as_fd())? {
            return Err(Errno::NOTDIR.into());
        }
        return Ok(());
    }
    if !is_in_proc(place)? {
        return Ok(());
    }
    let allowed = PROC_FILES
        .iter()
        .any(|file| spec.destination == Path::new("/proc").join(file));
    if allowed {
        Ok(())
    } else {
        Err(Errno::PERM.into())
    }
}

/// Makes the root itself what the spec says.
pub(super) fn finish(root: BorrowedFd<'_>, spec: &ContainerSpec) -> Result<(), Failure> {
    if !spec.root.readonly {
        return Ok(());
    }
    let read_only = Attributes {
        set: READ_ONLY,
        ..Attributes::default()
    };
    set_attributes(root, read_only, false).map_err(Failure::at(Step::Pivot, "read-only root"))
}

/// Whether what is mounted in the guest's root file system later is to be seen.
fn follows(propagation: Option<&str>) -> bool {
    let parsed = propagation.and_then(propagation_of);
    parsed.is_some_and(|one| one.flag == MountPropagationFlags::DOWNSTREAM)
}

/// Makes the tree the root and lets go of the guest's; then what is mounted in
/// it is passed on as the spec says, which no root to be may be.
pub(super) fn pivot(root: BorrowedFd<'_>, propagation: Option<&str>) -> Result<(), Failure> {
    fn failed(call: &'static str) -> impl FnOnce(Errno) -> Failure {
        move |error| Failure::at(Step::Pivot, call)(error.into())
    }
    fchdir(root).map_err(failed("fchdir"))?;
    // The old root comes to lie on the new one, pivot_root(2), NOTES.
    pivot_root(".", ".").map_err(failed(""))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("unmount the guest's root"))?;
    rustix::process::chdir("/").map_err(failed("chdir"))?;
    if let Some(one) = propagation.and_then(propagation_of) {
        let recursive = if one.recursive {
            MountPropagationFlags::REC
        } else {
            MountPropagationFlags::empty()
        };
        mount_change("/", one.flag | recursive).map_err(failed("rootfsPropagation"))?;
    }
    open_root().map(drop).map_err(failed("open /"))
}
