//! In which network namespace a link is: by another one's numbers it would
//! mean another link.

use super::super::call::failed;
use super::super::process::boot_id;
use super::NetworkError;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The network namespace of the calling thread, namespaces(7).
const OWN: &str = "/proc/thread-self/ns/net";

/// One network namespace: its file's device and inode, which nothing else has
/// for as long as it is there (namespaces(7)), in one boot of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkNamespace {
    /// Which boot, from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// `st_dev` of its file.
    pub device: u64,
    /// `st_ino` of its file, by which readlink(2) on it names it.
    pub inode: u64,
}

impl NetworkNamespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> Result<Self, NetworkError> {
        let path = Path::new(OWN);
        let file = std::fs::metadata(path).map_err(failed("stat", path))?;
        Ok(Self {
            boot_id: boot_id()?,
            device: file.dev(),
            inode: file.ino(),
        })
    }
}
