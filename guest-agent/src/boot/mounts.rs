//! The file systems of the guest, mounted by PID 1 in two steps: what the
//! module loader needs before the root is switched, the rest after it.

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::path::Path;

/// A file system PID 1 could not mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("mkdir {path}")]
    CreateDirectory {
        path: &'static str,
        source: std::io::Error,
    },
    #[error("mount {fstype} on {path}")]
    Mount {
        fstype: &'static str,
        path: &'static str,
        source: Errno,
    },
}

struct Entry {
    fstype: &'static str,
    path: &'static str,
    flags: MountFlags,
    data: Option<&'static std::ffi::CStr>,
}

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Needed to see devices and to load modules; moved along by the switch.
const EARLY: [Entry; 3] = [
    Entry {
        fstype: "proc",
        path: "/proc",
        flags: HARDENED,
        data: None,
    },
    Entry {
        fstype: "sysfs",
        path: "/sys",
        flags: HARDENED,
        data: None,
    },
    Entry {
        fstype: "devtmpfs",
        path: "/dev",
        flags: MountFlags::NOSUID,
        data: None,
    },
];

/// Everything else, on the final root.
const LATE: [Entry; 4] = [
    Entry {
        fstype: "devpts",
        path: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"mode=620,ptmxmode=666,newinstance"),
    },
    Entry {
        fstype: "tmpfs",
        path: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(c"mode=1777"),
    },
    Entry {
        fstype: "tmpfs",
        path: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(c"mode=755"),
    },
    Entry {
        fstype: "cgroup2",
        path: "/sys/fs/cgroup",
        flags: HARDENED,
        data: Some(c"nsdelegate"),
    },
];

/// The mount points that the switch of the root takes along.
pub(crate) fn early_paths() -> impl Iterator<Item = &'static str> {
    EARLY.iter().map(|entry| entry.path)
}

/// Mounts /proc, /sys and /dev. What is mounted already is left as it is.
pub(crate) fn mount_early() -> Result<(), MountError> {
    EARLY.iter().try_for_each(mount_entry)
}

/// Mounts /dev/pts, /dev/shm, /run and the cgroup v2 hierarchy.
pub(crate) fn mount_late() -> Result<(), MountError> {
    LATE.iter().try_for_each(mount_entry)
}

fn mount_entry(entry: &Entry) -> Result<(), MountError> {
    if !Path::new(entry.path).is_dir() {
        std::fs::create_dir_all(entry.path).map_err(|source| MountError::CreateDirectory {
            path: entry.path,
            source,
        })?;
    }
    match mount(
        entry.fstype,
        entry.path,
        entry.fstype,
        entry.flags,
        entry.data,
    ) {
        // EBUSY: the same file system is there already (the kernel mounts
        // devtmpfs itself under CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(source) => Err(MountError::Mount {
            fstype: entry.fstype,
            path: entry.path,
            source,
        }),
    }
}
