//! The identity of this copy of the guest: machine-id, boot_id, hostname and
//! the generation file.
//!
//! Each is one agent-owned file below /run/tardigrade, bind-mounted read-only
//! where software looks for it, in the guest and in every container. A thaw
//! rewrites the files in place: the mounts see it at once, and nothing has to
//! be mounted on the way of a clone.

use super::error::ServiceError;
use guest_runtime::container::IdentityFiles;
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Names one life of the guest; fresh for every boot and every thaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(pub(crate) [u8; 16]);

impl std::fmt::Display for Generation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// What a thaw makes of this copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    /// 32 lower-case hexadecimal digits, machine-id(5).
    pub(crate) machine_id: String,
    /// A UUID as text, as /proc/sys/kernel/random/boot_id gives it.
    pub(crate) boot_id: String,
}

/// The agent-owned files.
#[derive(Debug)]
pub(crate) struct IdentityStore {
    directory: PathBuf,
}

const MACHINE_ID: &str = "machine-id";
const BOOT_ID: &str = "boot-id";
const GENERATION: &str = "generation";
/// The kernel's own, which cannot be written: it is covered.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl IdentityStore {
    /// Makes the files, with values drawn now; in a guest also covers the
    /// guest's own places with them.
    pub(crate) fn create(directory: &Path, in_guest: bool) -> Result<Self, ServiceError> {
        let store = Self {
            directory: directory.into(),
        };
        store
            .initialise()
            .map_err(ServiceError::system("make the identity files"))?;
        if in_guest {
            store
                .cover_guest()
                .map_err(ServiceError::system("mount the identity files"))?;
        }
        Ok(store)
    }

    fn initialise(&self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let machine_id: String = random_hex()?;
        let generation: String = random_hex()?;
        self.write(MACHINE_ID, &machine_id)?;
        self.write(BOOT_ID, fs::read_to_string(KERNEL_BOOT_ID)?.trim())?;
        self.write(GENERATION, &generation)
    }

    fn cover_guest(&self) -> io::Result<()> {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o444)
            .open("/etc/machine-id")?;
        for (name, target) in [(MACHINE_ID, "/etc/machine-id"), (BOOT_ID, KERNEL_BOOT_ID)] {
            mount_bind(self.directory.join(name), target)?;
            let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID;
            mount_remount(target, read_only, "")?;
        }
        Ok(())
    }

    /// What a container's mounts show.
    pub(crate) fn files(&self) -> IdentityFiles {
        IdentityFiles {
            machine_id: Some(self.directory.join(MACHINE_ID)),
            boot_id: Some(self.directory.join(BOOT_ID)),
            generation: Some(self.directory.join(GENERATION)),
        }
    }

    /// Rewrites machine-id and boot_id, and says what the files now hold.
    pub(crate) fn set(&self, identity: &Identity) -> io::Result<(String, String)> {
        self.write(MACHINE_ID, &identity.machine_id)?;
        self.write(BOOT_ID, &identity.boot_id)?;
        let read = |name| fs::read_to_string(self.directory.join(name));
        Ok((
            read(MACHINE_ID)?.trim().into(),
            read(BOOT_ID)?.trim().into(),
        ))
    }

    /// Makes the new generation visible; the last step that software can see.
    pub(crate) fn set_generation(&self, generation: Generation) -> io::Result<()> {
        self.write(GENERATION, &generation.to_string())
    }

    /// In place, never by a rename: the bind mounts show this very inode. All
    /// values of a name have one length, so that one write replaces the other
    /// whole, and no reader runs meanwhile: the workload is frozen.
    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o444)
            .open(self.directory.join(name))?;
        file.write_all(format!("{value}\n").as_bytes())?;
        file.set_len(value.len() as u64 + 1)
    }
}

/// 128 bits from getrandom(2), as 32 hexadecimal digits.
pub(crate) fn random_hex() -> io::Result<String> {
    Ok(Generation(random_bytes()?).to_string())
}

/// 128 bits from getrandom(2), drawn now.
pub(crate) fn random_bytes() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // Fewer than 256 bytes are never returned short, random(7).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_identity_replaces_the_old_one_in_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let store = IdentityStore::create(directory.path(), false).unwrap();
        let path = directory.path().join(MACHINE_ID);
        let before = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        let identity = Identity {
            hostname: "one".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
        };
        let (machine_id, boot_id) = store.set(&identity).unwrap();
        assert_eq!(machine_id, identity.machine_id);
        assert_eq!(boot_id, identity.boot_id);
        let after = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        assert_eq!(before, after);
    }

    #[test]
    fn two_boots_have_different_identities() {
        let one = tempfile::tempdir().unwrap();
        let two = tempfile::tempdir().unwrap();
        IdentityStore::create(one.path(), false).unwrap();
        IdentityStore::create(two.path(), false).unwrap();
        for name in [MACHINE_ID, GENERATION] {
            let read = |directory: &Path| fs::read_to_string(directory.join(name)).unwrap();
            assert_ne!(read(one.path()), read(two.path()));
        }
    }
}
