//! Output files: written beside their final name and renamed, so that the name
//! shows a whole file or none, whatever happens in between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why an output file was not written. What had been written is gone again.
#[derive(Debug, thiserror::Error)]
#[error("{call} {path}")]
pub struct OutputError {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A file on its way: removed when dropped, unless [`Partial::commit`]ted.
#[derive(Debug)]
pub struct Partial {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl Partial {
    /// Creates an empty file beside `target`, with an unpredictable name.
    ///
    /// # Errors
    /// When `target` names no file, or its directory cannot be written.
    pub fn create(target: &Path) -> Result<Self, OutputError> {
        let error = |call| {
            move |source| OutputError {
                call,
                path: target.into(),
                source,
            }
        };
        let name = target
            .file_name()
            .ok_or_else(|| error("create")(io::ErrorKind::InvalidInput.into()))?;
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|source| error("draw a name for")(source.into()))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{:016x}.partial", u64::from_ne_bytes(random)));
        let temporary = target.with_file_name(partial);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(error("create"))?;
        Ok(Self {
            file,
            temporary,
            target: target.into(),
            committed: false,
        })
    }

    /// Where the bytes lie until then; for programs that open it by name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// The open file.
    #[must_use]
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts the file under its final name, after its bytes have reached the
    /// disk.
    ///
    /// # Errors
    /// When syncing or renaming fails.
    pub fn commit(mut self) -> Result<(), OutputError> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(|source| OutputError {
                call: "write",
                path: self.target.clone(),
                source,
            })?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes `bytes` to `target`, whole or not at all.
///
/// # Errors
/// Any failing call, a full disk included; `target` is then what it was.
pub fn write_whole(target: &Path, bytes: &[u8]) -> Result<(), OutputError> {
    let mut partial = Partial::create(target)?;
    partial
        .file()
        .write_all(bytes)
        .map_err(|source| OutputError {
            call: "write",
            path: target.into(),
            source,
        })?;
    partial.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<std::ffi::OsString> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn a_written_file_is_whole_and_alone() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        fs::write(&target, "old").unwrap();
        write_whole(&target, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn a_dropped_file_leaves_the_old_one_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image");
        fs::write(&target, "old").unwrap();
        let mut partial = Partial::create(&target).unwrap();
        partial.file().write_all(b"half").unwrap();
        drop(partial);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn an_error_names_the_target() {
        let error = write_whole(Path::new("/nowhere/at/all"), b"").unwrap_err();
        assert_eq!(error.to_string(), "create /nowhere/at/all");
        assert!(write_whole(Path::new("/"), b"").is_err());
    }
}
