//! Lays an archive's entries out as a directory tree, for the tools that make a
//! file system of one.

use crate::archive::{Archive, Content};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Why entries cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// A call failed.
    #[error("{call} {path}")]
    Path {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Device nodes need root, and a disk's are made by the kernel.
    #[error("lay out {0}: device nodes have no place on a disk")]
    Device(String),
    /// Mostly setgid bits, which the system takes away.
    #[error("lay out {path}: asked for mode {wanted:04o}, got {found:04o}")]
    Mode {
        /// The entry.
        path: String,
        /// What it should have.
        wanted: u32,
        /// What it has.
        found: u32,
    },
}

/// A temporary directory beside an output file, removed when dropped.
#[derive(Debug)]
pub struct Staging {
    directory: TempDir,
}

impl Staging {
    /// Creates one beside `output`, where there is room for a file system.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn beside(output: &Path) -> Result<Self, StagingError> {
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = tempfile::Builder::new()
            .prefix(".rootfs-builder.")
            .tempdir_in(parent)
            .map_err(path_error("create a directory in", parent))?;
        Ok(Self { directory })
    }

    /// Where a file system may be written.
    #[must_use]
    pub fn file_system(&self) -> PathBuf {
        self.directory.path().join("file-system")
    }

    /// Lays out `archive`; the tree's root has mode 0755.
    ///
    /// # Errors
    /// See [`StagingError`].
    pub fn lay_out(&self, archive: &Archive) -> Result<PathBuf, StagingError> {
        let root = self.directory.path().join("tree");
        let create = |path: &Path| {
            let created = DirBuilder::new().mode(0o700).create(path);
            created.map_err(path_error("mkdir", path))
        };
        create(&root)?;
        let mut modes = vec![(root.clone(), String::from("/"), 0o755)];
        for (path, entry) in archive.entries() {
            let target = root.join(path.as_str());
            match &entry.content {
                Content::Directory => create(&target)?,
                Content::File(bytes) => write_new(&target, bytes)?,
                Content::Symlink(to) => {
                    symlink(to, &target).map_err(path_error("symlink", &target))?;
                    continue;
                }
                Content::CharacterDevice { .. } => {
                    return Err(StagingError::Device(path.to_string()));
                }
            }
            modes.push((target, path.to_string(), entry.permissions));
        }
        // Last, and from below: nothing is written under a directory that is
        // not to be written.
        for (target, path, wanted) in modes.into_iter().rev() {
            fs::set_permissions(&target, Permissions::from_mode(wanted))
                .map_err(path_error("chmod", &target))?;
            let found = fs::symlink_metadata(&target).map_err(path_error("stat", &target))?;
            let found = found.permissions().mode() & 0o7777;
            if found != wanted {
                return Err(StagingError::Mode {
                    path,
                    wanted,
                    found,
                });
            }
        }
        Ok(root)
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StagingError> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(path_error("write", path))
}

fn path_error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StagingError + use<> {
    let path = path.to_path_buf();
    move |source| StagingError::Path { call, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Entry;

    fn entry(permissions: u32, content: Content) -> Entry {
        Entry {
            permissions,
            content,
        }
    }

    #[test]
    fn entries_are_laid_out_with_their_modes_and_removed_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        let file = entry(0o4750, Content::File(b"x".to_vec()));
        archive.add("closed/file".parse().unwrap(), file).unwrap();
        let link = entry(0o777, Content::Symlink("../../etc/shadow".into()));
        archive.add("link".parse().unwrap(), link).unwrap();
        let sticky = entry(0o1777, Content::Directory);
        archive.add("tmp".parse().unwrap(), sticky).unwrap();
        let staging = Staging::beside(&directory.path().join("image")).unwrap();
        let root = staging.lay_out(&archive).unwrap();
        let mode = |path: &str| {
            let metadata = fs::symlink_metadata(root.join(path)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!(
            (mode(""), mode("closed/file"), mode("tmp")),
            (0o755, 0o4750, 0o1777)
        );
        let target = fs::read_link(root.join("link")).unwrap();
        assert_eq!(target, Path::new("../../etc/shadow"));
        drop(staging);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_device_node_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::default();
        let node = entry(0o600, Content::CharacterDevice { major: 5, minor: 1 });
        archive.add("dev/console".parse().unwrap(), node).unwrap();
        let staging = Staging::beside(&directory.path().join("image")).unwrap();
        let error = staging.lay_out(&archive).unwrap_err();
        assert!(matches!(error, StagingError::Device(_)), "{error}");
    }
}
