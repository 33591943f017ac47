//! EROFS images by `mkfs.erofs` (package erofs-utils, 1.5 or newer).
//!
//! Fixed by us, so that the same tree gives the same bytes: the time of every
//! file, root as every owner, and the file system's UUID, which is made of the
//! tree's digest. mkfs.erofs itself sorts directories.

use crate::digest::Digest;
use crate::output::{OutputError, Partial};
use crate::tree::{self, Survey, TreeError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The most of mkfs.erofs's complaints that is shown, in bytes.
const MAX_COMPLAINT: usize = 4 << 10;

/// How file data is stored.
///
/// `None` is the default: an emulated guest read the whole of a 22 MB image in
/// 0.18 s plain and in 0.27 s packed (to 13 MB); mounting took the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// As it is.
    #[default]
    None,
    /// LZ4, packed as well as it goes (`lz4hc`); needs a kernel with
    /// EROFS_FS_ZIP.
    Lz4,
}

/// What becomes an image.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tree; the image's root is this directory.
    pub tree: PathBuf,
    /// The image.
    pub output: PathBuf,
    /// How file data is stored.
    pub packing: Packing,
    /// The time of every entry, in seconds since 1970.
    pub source_date_epoch: u32,
    /// How long mkfs.erofs may take before it is killed.
    pub deadline: Duration,
}

/// What became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// Of the image.
    pub sha256: Digest,
    /// Of the image in bytes.
    pub size: u64,
    /// Of the tree: see [`Survey::digest`].
    pub tree_sha256: Digest,
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes in the tree's files.
    pub bytes: u64,
    /// The file system's UUID.
    pub uuid: String,
}

/// Why no image was written. What had been written is gone again.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The tree cannot become an image.
    #[error("look through the tree")]
    Tree(#[from] TreeError),
    /// The image would lie inside the tree it is made of.
    #[error("write {0}: it lies inside the tree")]
    Inside(PathBuf),
    /// The image cannot be written.
    #[error("write the image")]
    Output(#[from] OutputError),
    /// A call failed.
    #[error("{call}")]
    Call {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// mkfs.erofs cannot be started: mostly, it is not installed.
    #[error("start mkfs.erofs (package erofs-utils)")]
    Start(#[source] io::Error),
    /// mkfs.erofs took too long.
    #[error("mkfs.erofs was killed after {0:?}")]
    Deadline(Duration),
    /// mkfs.erofs failed.
    #[error("mkfs.erofs: {status}: {complaint}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, escaped.
        complaint: String,
    },
    /// The image was not of use: mkfs.erofs 1.5 does not always notice a full
    /// disk.
    #[error("mkfs.erofs wrote no file system: is the disk full?")]
    NoFileSystem,
}

/// Makes an EROFS image of a tree.
///
/// # Errors
/// See [`ErofsError`].
pub fn build(request: &Request) -> Result<Image, ErofsError> {
    let tree = canonical("find the tree", &request.tree)?;
    let directory = match request.output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if canonical("find the output's directory", directory)?.starts_with(&tree) {
        return Err(ErofsError::Inside(request.output.clone()));
    }
    let survey = tree::survey(&tree)?;
    let uuid = uuid_of(&survey);
    let mut partial = Partial::create(&request.output)?;
    run_mkfs(request, &tree, &uuid, partial.path())?;
    check_superblock(partial.file())?;
    let (sha256, size) =
        Digest::of_reader(rewound(partial.file())?).map_err(call("read the image"))?;
    partial.commit()?;
    Ok(Image {
        sha256,
        size,
        tree_sha256: survey.digest,
        entries: survey.entries,
        bytes: survey.bytes,
        uuid,
    })
}

/// A UUID of version 8 (RFC 9562, section 5.8: the bits are ours).
fn uuid_of(survey: &Survey) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&survey.digest.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

fn run_mkfs(request: &Request, tree: &Path, uuid: &str, image: &Path) -> Result<(), ErofsError> {
    // A file, not a pipe: nothing has to drain it while we wait.
    let complaints = anonymous_file().map_err(call("create a file in memory"))?;
    let to_complaints = || {
        complaints
            .try_clone()
            .map_err(call("duplicate a descriptor"))
    };
    let mut command = Command::new("mkfs.erofs");
    command
        .arg("--quiet")
        .arg("--all-root")
        .arg(format!("-T{}", request.source_date_epoch))
        .arg(format!("-U{uuid}"))
        // Attributes of the tree are refused by the survey; those of the
        // machine (security labels) must not show.
        .arg("-x-1")
        .stdin(Stdio::null())
        .stdout(to_complaints()?)
        .stderr(to_complaints()?);
    if request.packing == Packing::Lz4 {
        command.arg("-zlz4hc,12");
    }
    let mut child = command
        .arg(absolute(image)?)
        .arg(tree)
        .spawn()
        .map_err(ErofsError::Start)?;
    let status = wait(&mut child, request.deadline)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    rewound(&complaints)?
        .read_to_end(&mut text)
        .map_err(call("read what mkfs.erofs said"))?;
    let tail = &text[text.len().saturating_sub(MAX_COMPLAINT)..];
    Err(ErofsError::Failed {
        status,
        complaint: tail.trim_ascii().escape_ascii().to_string(),
    })
}

/// Waits for the child's end; kills it at the deadline.
fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus, ErofsError> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .map_err(|source| call("pidfd_open")(source.into()))?;
    let timeout = Timespec {
        tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(deadline.subsec_nanos()),
    };
    let ended = loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(count) => break count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(call("poll")(source.into())),
        }
    };
    if !ended {
        child.kill().map_err(call("kill mkfs.erofs"))?;
    }
    let status = child.wait().map_err(call("wait for mkfs.erofs"))?;
    if ended {
        Ok(status)
    } else {
        Err(ErofsError::Deadline(deadline))
    }
}

/// The magic number at 1024 of fs/erofs/erofs_fs.h, little-endian.
fn check_superblock(image: &File) -> Result<(), ErofsError> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 4];
    match image.read_exact_at(&mut magic, 1024) {
        Ok(()) if u32::from_le_bytes(magic) == 0xe0f5_e1e2 => Ok(()),
        Ok(()) => Err(ErofsError::NoFileSystem),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ErofsError::NoFileSystem),
        Err(source) => Err(call("read the image")(source)),
    }
}

fn anonymous_file() -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(File::from(rustix::fs::memfd_create(c"mkfs.erofs", flags)?))
}

fn rewound(mut file: &File) -> Result<&File, ErofsError> {
    io::Seek::rewind(&mut file).map_err(call("seek"))?;
    Ok(file)
}

fn canonical(what: &'static str, path: &Path) -> Result<PathBuf, ErofsError> {
    path.canonicalize().map_err(call(what))
}

/// A path that cannot be taken for an option.
fn absolute(path: &Path) -> Result<PathBuf, ErofsError> {
    std::path::absolute(path).map_err(call("find the current directory"))
}

fn call(call: &'static str) -> impl FnOnce(io::Error) -> ErofsError {
    move |source| ErofsError::Call { call, source }
}

#[cfg(test)]
mod tests;
