//! The drivers. Each says whether it has mounted something.

use super::{StorageError, StorageSpec, failed, refused, tree};
use crate::mount_options::{Bind, MountOptions};
use guest_kernel::mount::{Attributes, READ_ONLY, set_attributes};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, chmod, chown, open, stat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How much mount(2) takes of a file system's options, in bytes.
const PAGE_SIZE: usize = 4096;

/// Given the spec, its sorted options, and where to note the directories it
/// makes.
pub(super) type Driver =
    fn(&StorageSpec, &MountOptions, &mut Vec<PathBuf>) -> Result<bool, StorageError>;

/// A driver option of overlayfs: directories to be made before the mount.
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";
/// Of mount points made on the way.
pub(super) const MODE: u32 = 0o755;
/// Of directories a container is to share with others.
const SHARED_MODE: u32 = 0o777;

pub(super) fn find(name: &str) -> Result<Driver, StorageError> {
    match name {
        "blk" => Ok(block),
        "overlayfs" => Ok(overlay),
        "ephemeral" => Ok(ephemeral),
        "local" => Ok(local),
        "virtio-fs" => Ok(virtio_fs),
        "bind" => Ok(bind),
        _ => Err(StorageError::UnknownDriver(name.into())),
    }
}

/// A file system on a block device that is there.
fn block(
    spec: &StorageSpec,
    options: &MountOptions,
    made: &mut Vec<PathBuf>,
) -> Result<bool, StorageError> {
    refuse_driver_options(spec)?;
    if !spec.source.starts_with("/dev/") {
        return Err(refused(spec, format!("source {}", spec.source)));
    }
    let found = stat(&spec.source).map_err(failed("stat", &spec.source))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice {
        return Err(failed("stat", &spec.source)(Errno::NOTBLK));
    }
    if spec.fstype.is_empty() {
        return Err(refused(spec, "a device without a file system"));
    }
    tree::make(&spec.mount_point, MODE, made)?;
    mount_new(spec, options, &spec.fstype)?;
    Ok(true)
}

/// A directory of the host's.
fn virtio_fs(
    spec: &StorageSpec,
    options: &MountOptions,
    made: &mut Vec<PathBuf>,
) -> Result<bool, StorageError> {
    refuse_driver_options(spec)?;
    tree::make(&spec.mount_point, MODE, made)?;
    mount_new(spec, options, "virtiofs")?;
    Ok(true)
}

/// Layers, the uppermost of which can be written.
fn overlay(
    spec: &StorageSpec,
    options: &MountOptions,
    made: &mut Vec<PathBuf>,
) -> Result<bool, StorageError> {
    for option in &spec.driver_options {
        let Some(directory) = option.strip_prefix(CREATE_DIRECTORY) else {
            return Err(refused(spec, format!("driver option {option}")));
        };
        let directory = Path::new(directory);
        let goes_up = directory.components().any(|part| part.as_os_str() == "..");
        if !directory.is_absolute() || goes_up {
            return Err(refused(spec, format!("driver option {option}")));
        }
        tree::make(directory, MODE, made)?;
    }
    tree::make(&spec.mount_point, MODE, made)?;
    mount_new(spec, options, "overlay")?;
    Ok(true)
}

/// Memory; all options count, the size too.
fn ephemeral(
    spec: &StorageSpec,
    options: &MountOptions,
    made: &mut Vec<PathBuf>,
) -> Result<bool, StorageError> {
    refuse_driver_options(spec)?;
    if !matches!(spec.fstype.as_str(), "" | "tmpfs") {
        return Err(refused(spec, format!("file system {}", spec.fstype)));
    }
    let (group, options) = take_group(spec, options)?;
    tree::make(&spec.mount_point, MODE, made)?;
    mount_new(spec, &options, "tmpfs")?;
    let owned = group.map_or(Ok(()), |group| give_to_group(&spec.mount_point, group));
    if let Err(error) = owned {
        // The failure before is the one to tell.
        let _ = unmount(&spec.mount_point, UnmountFlags::DETACH);
        return Err(error);
    }
    Ok(true)
}

/// A directory of the guest's, for containers to share.
fn local(
    spec: &StorageSpec,
    options: &MountOptions,
    made: &mut Vec<PathBuf>,
) -> Result<bool, StorageError> {
    refuse_driver_options(spec)?;
    let (group, options) = take_group(spec, options)?;
    let mut mode = SHARED_MODE;
    for (key, value) in options.data {
        match (key.as_str(), value) {
            ("mode", Some(value)) => {
                mode = u32::from_str_radix(&value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| refused(spec, format!("mode {value}")))?;
            }
            (key, _) => return Err(refused(spec, format!("option {key}"))),
        }
    }
    let exists = spec.mount_point.is_dir();
    tree::make(&spec.mount_point, MODE, made)?;
    if !exists {
        chmod(&spec.mount_point, Mode::from_raw_mode(mode))
            .map_err(failed("chmod", &spec.mount_point))?;
    }
    group.map_or(Ok(()), |group| give_to_group(&spec.mount_point, group))?;
    Ok(false)
}

/// A directory or file of the guest's at another place.
fn bind(
    spec: &StorageSpec,
    options: &MountOptions,
    made: &mut Vec<PathBuf>,
) -> Result<bool, StorageError> {
    refuse_driver_options(spec)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if options.bind == Some(Bind::Recursive) {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if let Some((key, _)) = options.data.first() {
        return Err(refused(spec, format!("option {key}")));
    }
    let mount = open_tree(CWD, &spec.source, flags).map_err(failed("open_tree", &spec.source))?;
    change(spec, options, &mount)?;
    let point = &spec.mount_point;
    tree::make(point, MODE, made)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", CWD, point, flags).map_err(failed("move_mount to", point))?;
    Ok(true)
}

fn refuse_driver_options(spec: &StorageSpec) -> Result<(), StorageError> {
    match spec.driver_options.first() {
        None => Ok(()),
        Some(option) => Err(refused(spec, format!("driver option {option}"))),
    }
}

/// A new instance of a file system on the mount point.
///
/// By mount(2), not fsconfig(2), which takes no value longer than 255 bytes:
/// the layers of an overlay are longer.
fn mount_new(spec: &StorageSpec, options: &MountOptions, fstype: &str) -> Result<(), StorageError> {
    let point = &spec.mount_point;
    let source = if spec.source.is_empty() {
        fstype
    } else {
        &spec.source
    };
    let data = data_of(options);
    // The kernel would cut what is longer, mount(2).
    if data.len() >= PAGE_SIZE {
        return Err(refused(spec, format!("{} bytes of options", data.len())));
    }
    let data = CString::new(data).map_err(|_| refused(spec, "a zero byte in an option"))?;
    // Also the file system's business: a read-only device could not be mounted
    // otherwise.
    let flags = if options.attributes.set & READ_ONLY == 0 {
        MountFlags::empty()
    } else {
        MountFlags::RDONLY
    };
    mount(source, point, fstype, flags, Some(data.as_c_str())).map_err(failed("mount", point))?;
    let changed = change_mounted(spec, options);
    if changed.is_err() {
        // The failure before is the one to tell.
        let _ = unmount(point, UnmountFlags::DETACH);
    }
    changed
}

/// Gives the mount that is there its attributes.
pub(super) fn change_mounted(
    spec: &StorageSpec,
    options: &MountOptions,
) -> Result<(), StorageError> {
    let point = &spec.mount_point;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mounted = open(point, flags, Mode::empty()).map_err(failed("open", point))?;
    change(spec, options, &mounted)
}

/// The file system's own options, as mount(2) takes them.
fn data_of(options: &MountOptions) -> String {
    let words: Vec<String> = options
        .data
        .iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        })
        .collect();
    words.join(",")
}

/// Gives a mount its attributes.
fn change(spec: &StorageSpec, options: &MountOptions, mount: &OwnedFd) -> Result<(), StorageError> {
    let failed = |source| StorageError::Path {
        call: "mount_setattr",
        path: spec.mount_point.clone(),
        source,
    };
    set_attributes(mount.as_fd(), options.attributes, false).map_err(failed)?;
    let Some(propagation) = options.propagation else {
        return Ok(());
    };
    let attributes = Attributes {
        propagation: propagation.flag.bits().into(),
        ..Attributes::default()
    };
    set_attributes(mount.as_fd(), attributes, propagation.recursive).map_err(failed)
}

/// Takes `fsgid=N` out of the options: it is not the file system's.
pub(super) fn take_group(
    spec: &StorageSpec,
    options: &MountOptions,
) -> Result<(Option<u32>, MountOptions), StorageError> {
    let mut others = options.clone();
    let mut group = None;
    for (key, value) in &options.data {
        if key == "fsgid" {
            let number = value.as_deref().and_then(|value| value.parse().ok());
            group = Some(number.ok_or_else(|| refused(spec, "fsgid without a number"))?);
        }
    }
    others.data.retain(|(key, _)| key != "fsgid");
    Ok((group, others))
}

/// Has the group own it, and what is made in it.
fn give_to_group(path: &Path, group: u32) -> Result<(), StorageError> {
    chown(path, None, Some(Gid::from_raw(group))).map_err(failed("chown", path))?;
    let mode = Mode::from_raw_mode(stat(path).map_err(failed("stat", path))?.st_mode & 0o7777);
    chmod(path, mode | Mode::SGID).map_err(failed("chmod", path))
}
