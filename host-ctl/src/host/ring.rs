//! A log of bounded size: what a guest or a VMM says is endless, the disk is
//! not. Two files take turns; together they hold the last part of the output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::call::{CallFailed, failed};

/// Appends to `path`; when that has `half` bytes it becomes `path.1`, replacing
/// the one before, and a new `path` begins.
#[derive(Debug)]
pub struct Ring {
    path: PathBuf,
    file: File,
    written: u64,
    half: u64,
}

impl Ring {
    /// Size of each of the two files unless told otherwise.
    pub const HALF: u64 = 128 << 10;

    /// Opens or creates the log, 0600, going on where it ended.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, half: u64) -> Result<Ring, CallFailed> {
        let file = open_log(path).map_err(failed("open", path))?;
        let written = file.metadata().map_err(failed("fstat", path))?.len();
        Ok(Ring {
            path: path.to_owned(),
            file,
            written,
            half: half.max(1),
        })
    }

    /// What the log holds now: between one and two halves once it has turned.
    /// At most `2 * half` bytes are read, whatever lies there.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn read(path: &Path, half: u64) -> Result<Vec<u8>, CallFailed> {
        let mut held = Vec::new();
        for part in [older(path), path.to_owned()] {
            match open_to_read(&part) {
                Ok(file) => {
                    file.take(half)
                        .read_to_end(&mut held)
                        .map_err(failed("read", &part))?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("open", &part)(error)),
            }
        }
        Ok(held)
    }

    fn turn(&mut self) -> io::Result<()> {
        fs::rename(&self.path, older(&self.path))?;
        self.file = open_log(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.half {
            self.turn()?;
        }
        let room = usize::try_from(self.half - self.written).unwrap_or(usize::MAX);
        let count = self.file.write(&bytes[..bytes.len().min(room)])?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

fn open_to_read(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Each case opens some thirty real files.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_ring_holds_the_end_of_what_was_written_within_its_bound(
            writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..30),
            half in 1u64..32,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("console.log");
            let mut all = Vec::new();
            for bytes in &writes {
                // Opened each time: a later supervisor goes on where it ended.
                Ring::open(&path, half).unwrap().write_all(bytes).unwrap();
                all.extend_from_slice(bytes);
            }
            let held = Ring::read(&path, half).unwrap();
            prop_assert!(all.ends_with(&held));
            prop_assert!(held.len() as u64 <= 2 * half);
            prop_assert!(held.len() as u64 >= half.min(all.len() as u64));
        }
    }
}
