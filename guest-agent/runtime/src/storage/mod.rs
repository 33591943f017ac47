//! What is mounted in the guest for containers: one driver for each way a file
//! system comes in.
//!
//! All of it blocks and belongs on a thread of its own.

mod drivers;
mod ephemeral;
mod stale;
mod tree;

pub use ephemeral::update_ephemeral;
pub use stale::detach_stale;

use crate::mount_options::{MountOptions, UnsupportedOption};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::io;
use std::path::{Component, PathBuf};

/// The names of the drivers.
pub const DRIVERS: [&str; 6] = [
    "blk",
    "overlayfs",
    "ephemeral",
    "local",
    "virtio-fs",
    "bind",
];

/// What a storage is to be, by the names of the agent's wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageSpec {
    /// One of [`DRIVERS`].
    pub driver: String,
    /// For the driver.
    pub driver_options: Vec<String>,
    /// What is mounted: a device, a tag, a path.
    pub source: String,
    /// The file system's type.
    pub fstype: String,
    /// As for mount(8).
    pub options: Vec<String>,
    /// Where; absolute, made if it is missing.
    pub mount_point: PathBuf,
    /// Whether other containers use it as well: it then stays.
    pub shared: bool,
}

/// Why a storage is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// There is no such driver. The text is what clients know it by.
    #[error("Failed to find the storage handler {0}")]
    UnknownDriver(String),
    /// It asks for something that is not supported.
    #[error("storage {driver}: {feature} is not supported")]
    Unsupported {
        /// The driver.
        driver: String,
        /// What it was asked for.
        feature: String,
    },
    /// Something on the way failed.
    #[error("{call} {path}", path = path.display())]
    Path {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// There is something mounted already, and it is another file system.
    #[error("{} has another file system mounted", .0.display())]
    Busy(PathBuf),
}

fn failed(call: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> StorageError {
    let path = path.into();
    move |source| StorageError::Path {
        call,
        path,
        source: source.into(),
    }
}

/// What was done for a storage. It stays until [`MountedStorage::unmount`].
#[derive(Debug)]
pub struct MountedStorage {
    mount_point: PathBuf,
    /// None if nothing was mounted, or it is not this storage's to unmount.
    mounted: bool,
    /// Directories that were made, outermost first.
    made: Vec<PathBuf>,
}

impl MountedStorage {
    /// Where it is.
    #[must_use]
    pub fn mount_point(&self) -> &std::path::Path {
        &self.mount_point
    }

    /// Undoes what was done: unmounts, and removes the directories that were
    /// made, as far as they are empty. What is gone already is no error, so
    /// that it may be tried again.
    ///
    /// # Errors
    /// Those of umount2(2): `EBUSY` while something uses it.
    pub fn unmount(&self) -> Result<(), StorageError> {
        if self.mounted {
            match unmount(&self.mount_point, UnmountFlags::NOFOLLOW) {
                // EINVAL: nothing is mounted there.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(failed("umount", &self.mount_point)(error)),
            }
        }
        tree::remove_empty(&self.made);
        Ok(())
    }
}

/// Does what `spec` says. A file system of the same type that is mounted there
/// already is left as it is, now and at the end: it is whoever's mounted it.
///
/// # Errors
/// What is not supported, and what failed; nothing is left then.
pub fn mount_storage(spec: &StorageSpec) -> Result<MountedStorage, StorageError> {
    let driver = drivers::find(&spec.driver)?;
    check(spec)?;
    let options = MountOptions::parse_of_guest(&spec.options)
        .map_err(|UnsupportedOption(option)| refused(spec, format!("mount option {option}")))?;
    if let Some(there) = tree::mounted_on(&spec.mount_point)? {
        return reuse(spec, &there);
    }
    let mut made = Vec::new();
    match driver(spec, &options, &mut made) {
        Ok(mounted) => Ok(MountedStorage {
            mount_point: spec.mount_point.clone(),
            mounted: mounted && !spec.shared,
            made: if spec.shared { Vec::new() } else { made },
        }),
        Err(error) => {
            tree::remove_empty(&made);
            Err(error)
        }
    }
}

/// What is there already does, if it is the same.
fn reuse(spec: &StorageSpec, fstype: &str) -> Result<MountedStorage, StorageError> {
    let wanted = match spec.driver.as_str() {
        "virtio-fs" => "virtiofs",
        "overlayfs" => "overlay",
        "ephemeral" => "tmpfs",
        // Neither is one to be told by its type; a directory in one is fine.
        "bind" | "local" => fstype,
        _ => spec.fstype.as_str(),
    };
    if fstype != wanted {
        return Err(StorageError::Busy(spec.mount_point.clone()));
    }
    Ok(MountedStorage {
        mount_point: spec.mount_point.clone(),
        mounted: false,
        made: Vec::new(),
    })
}

fn refused(spec: &StorageSpec, feature: impl Into<String>) -> StorageError {
    StorageError::Unsupported {
        driver: spec.driver.clone(),
        feature: feature.into(),
    }
}

/// Places that are the guest's own, and never a storage's.
const GUEST_PLACES: [&str; 8] = ["bin", "dev", "etc", "lib", "proc", "sbin", "sys", "usr"];

fn check(spec: &StorageSpec) -> Result<(), StorageError> {
    let path = &spec.mount_point;
    let names: Vec<_> = path
        .components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .collect();
    let goes_up = names.contains(&Component::ParentDir);
    let is_guests = names
        .first()
        .is_none_or(|first| GUEST_PLACES.iter().any(|place| first.as_os_str() == *place));
    if !path.is_absolute() || goes_up || is_guests {
        return Err(refused(spec, format!("mount point {}", path.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
