//! A directory that nobody can write to, root neither.

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount,
    unmount,
};
use std::io;
use std::path::{Path, PathBuf};

/// A directory that is read-only until this is dropped: mounted over itself, for
/// whoever sees this process's mounts.
#[derive(Debug)]
pub struct ReadOnly(PathBuf);

impl ReadOnly {
    /// Makes a directory read-only.
    ///
    /// # Errors
    /// What mount(2) says; it takes the right to mount.
    pub fn make(directory: &Path) -> io::Result<Self> {
        mount_bind(directory, directory)?;
        let mounted = Self(directory.to_owned());
        // Not for the mounts that VMMs have been given before.
        mount_change(directory, MountPropagationFlags::PRIVATE)?;
        mount_remount(directory, MountFlags::BIND | MountFlags::RDONLY, "")?;
        Ok(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // Best effort: what a failed test still has open there keeps it.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
