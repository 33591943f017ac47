//! The identity of this copy of the guest: machine-id, boot_id, hostname and
//! the generation file.
//!
//! Each is one agent-owned file below /run/tardigrade, bind-mounted read-only
//! where software looks for it, in the guest and in every container. A thaw
//! rewrites the files in place: the mounts see it at once, and nothing has to
//! be mounted, nor even opened, on the way of a clone.

use super::error::ServiceError;
use guest_runtime::container::IdentityFiles;
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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
    machine_id: IdentityFile,
    boot_id: IdentityFile,
    generation: IdentityFile,
}

/// One of them, open. All values it ever holds have one length.
#[derive(Debug)]
struct IdentityFile {
    file: File,
    length: usize,
}

impl IdentityFile {
    fn create(path: &Path, value: &str) -> io::Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o444)
            .open(path)?;
        let created = Self {
            file,
            length: value.len(),
        };
        created.write(value)?;
        Ok(created)
    }

    /// In place, never by a rename: the bind mounts show this very inode. One
    /// write replaces the other whole, and no reader runs meanwhile: the
    /// workload is frozen.
    fn write(&self, value: &str) -> io::Result<()> {
        if value.len() != self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(format!("{value}\n").as_bytes(), 0)
    }

    fn read(&self) -> io::Result<String> {
        let mut value = vec![0; self.length];
        self.file.read_exact_at(&mut value, 0)?;
        String::from_utf8(value).map_err(|_| io::ErrorKind::InvalidData.into())
    }
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
        let store =
            Self::files_in(directory).map_err(ServiceError::system("make the identity files"))?;
        if in_guest {
            store
                .cover_guest()
                .map_err(ServiceError::system("mount the identity files"))?;
        }
        Ok(store)
    }

    fn files_in(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let file = |name, value: &str| IdentityFile::create(&directory.join(name), value);
        Ok(Self {
            directory: directory.into(),
            machine_id: file(MACHINE_ID, &random_hex()?)?,
            boot_id: file(BOOT_ID, fs::read_to_string(KERNEL_BOOT_ID)?.trim())?,
            generation: file(GENERATION, &random_hex()?)?,
        })
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

    /// Removes the files, for an agent that leaves its machine as it was.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
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
        self.machine_id.write(&identity.machine_id)?;
        self.boot_id.write(&identity.boot_id)?;
        Ok((self.machine_id.read()?, self.boot_id.read()?))
    }

    /// Makes the new generation visible; the last step that software can see.
    pub(crate) fn set_generation(&self, generation: Generation) -> io::Result<()> {
        self.generation.write(&generation.to_string())
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
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        let before = inode();
        let identity = Identity {
            hostname: "one".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
        };
        let (machine_id, boot_id) = store.set(&identity).unwrap();
        assert_eq!(machine_id, identity.machine_id);
        assert_eq!(boot_id, identity.boot_id);
        assert_eq!(before, inode());
        let shown = fs::read_to_string(&path).unwrap();
        assert_eq!(shown, format!("{}\n", identity.machine_id));
        let generation = Generation([0xab; 16]);
        store.set_generation(generation).unwrap();
        let shown = fs::read_to_string(directory.path().join(GENERATION)).unwrap();
        assert_eq!(shown, format!("{generation}\n"));
        let short = Identity {
            boot_id: "0".into(),
            ..identity
        };
        assert!(store.set(&short).is_err());
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
