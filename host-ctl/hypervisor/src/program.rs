//! A VMM's program: where it is, what it says of itself, and whether it is still
//! the same.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::Error;

/// The device of KVM.
pub(crate) const KVM: &str = "/dev/kvm";
/// How long a program may take to print a line about itself.
const DEADLINE: Duration = Duration::from_secs(5);
/// How much of it is read.
const MOST_OUTPUT: u64 = 4 << 10;

/// A file's contents, by what changes with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let found = std::fs::metadata(path).map_err(Error::path("stat", path))?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// What decides whether KVM can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KvmHost {
    /// Device number, owner and mode of /dev/kvm, if there is one.
    device: Option<(u64, u32, u32)>,
    user: u32,
    kernel: String,
}

impl KvmHost {
    pub(crate) fn here() -> Self {
        let device = std::fs::metadata(KVM).ok();
        Self {
            device: device.map(|found| (found.rdev(), found.uid(), found.mode())),
            user: rustix::process::geteuid().as_raw(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        }
    }
}

/// Opens what a VMM needs for KVM, since what the mode of the device says is not
/// all that decides.
pub(crate) fn open_kvm() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(KVM)
}

/// A version; patch levels are not distinguished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl Version {
    /// Reads `MAJOR.MINOR`; what follows another dot or a space does not count.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', ' ']);
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The error of a program that can't be used.
pub(crate) fn unusable(program: &Path, reason: impl Into<String>) -> Error {
    Error::Probe {
        program: program.to_owned(),
        reason: reason.into(),
    }
}

/// Finds a program: the wanted one, or else the one a variable names, or else
/// the first on PATH.
pub(crate) fn find(wanted: Option<&Path>, variable: &str, name: &str) -> Result<PathBuf, Error> {
    let named = wanted
        .map(Path::to_owned)
        .or_else(|| std::env::var_os(variable).map(PathBuf::from));
    if let Some(program) = named {
        return match program.canonicalize() {
            Ok(program) if program.is_file() => Ok(program),
            _ => Err(unusable(&program, "there is no such program")),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).find_map(|directory| program_in(&directory, name.as_ref()));
    let missing = || {
        unusable(
            Path::new(name),
            format!("not on PATH, and ${variable} is not set"),
        )
    };
    found.ok_or_else(missing)
}

fn program_in(directory: &Path, name: &OsStr) -> Option<PathBuf> {
    let program = directory.join(name).canonicalize().ok()?;
    program.is_file().then_some(program)
}

/// What a program prints when it is run with one option.
pub(crate) async fn printed(program: &Path, option: &str) -> Result<String, Error> {
    let printed = timeout(DEADLINE, run(program, option)).await;
    let printed =
        printed.map_err(|_| unusable(program, format!("no version within {DEADLINE:?}")))?;
    printed.map_err(|error| unusable(program, format!("{option}: {error}")))
}

async fn run(program: &Path, option: &str) -> std::io::Result<String> {
    let mut command = Command::new(program);
    command
        .arg(option)
        .env_clear()
        .current_dir("/")
        .kill_on_drop(true);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut printed = String::new();
    if let Some(output) = child.stdout.take() {
        output
            .take(MOST_OUTPUT)
            .read_to_string(&mut printed)
            .await?;
    }
    child.wait().await?;
    Ok(printed)
}
