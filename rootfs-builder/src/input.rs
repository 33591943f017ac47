//! Reads input files: regular ones, of bounded size.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why an input file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Opening or reading failed.
    #[error("{call} {path}")]
    Path {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory, FIFO, device or socket.
    #[error("read {0}: it is not a regular file")]
    NotRegular(PathBuf),
    /// Larger than the caller allows.
    #[error("read {path}: more than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// In bytes.
        limit: usize,
    },
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// See [`InputError`]. A FIFO is refused at once: it is opened without waiting
/// for a writer.
pub fn read_regular(path: &Path, limit: usize) -> Result<Vec<u8>, InputError> {
    let error = |call| {
        move |source| InputError::Path {
            call,
            path: path.into(),
            source,
        }
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|source| error("open")(source.into()))?;
    read_open(File::from(file), path, limit)
}

/// Reads a file that is open, if it is a regular one of at most `limit` bytes;
/// `path` is for errors.
///
/// # Errors
/// See [`InputError`].
pub fn read_open(file: File, path: &Path, limit: usize) -> Result<Vec<u8>, InputError> {
    let error = |call| {
        move |source| InputError::Path {
            call,
            path: path.into(),
            source,
        }
    };
    let metadata = file.metadata().map_err(error("stat"))?;
    if !metadata.is_file() {
        return Err(InputError::NotRegular(path.into()));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(error("read"))?;
    if bytes.len() > limit {
        return Err(InputError::TooLarge {
            path: path.into(),
            limit,
        });
    }
    Ok(bytes)
}
