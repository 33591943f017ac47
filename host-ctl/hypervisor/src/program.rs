//! A VMM's program: where it is, what it says of itself, and whether it is still
//! the same.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::error::{Error, quote};
use crate::process::{Confinement, Launch, Needs, Process, User, spawn};
use crate::vm::VmExit;

/// The device of KVM.
pub(crate) const KVM: &str = "/dev/kvm";
/// How long a program may take to print a line about itself: the first time it
/// is read from a disk, on a host whose processors others keep busy.
const DEADLINE: Duration = Duration::from_secs(15);
/// How much of it is read.
const MOST_OUTPUT: usize = 64 << 10;

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

/// What a program prints when it is run with one option, confined like this.
///
/// # Errors
/// [`Error::Probe`] when it does not end in time or fails; [`Error::Path`] when
/// it cannot be started, and [`Error::Confinement`] when it cannot be confined.
pub async fn printed(
    program: &Path,
    option: &str,
    confinement: &Confinement,
) -> Result<String, Error> {
    // What a library or the loader has to say is not the program's answer.
    let (output, log) = (memory_file(&[])?, memory_file(&[])?);
    let cell = confinement.cell(Needs::default())?;
    let held: Vec<_> = confinement.user().map(User::lock).into_iter().collect();
    let pid = spawn(&Launch {
        program,
        arguments: &[option.to_owned()],
        inherited: &held,
        placed: &[],
        log: &log,
        output: Some(&output),
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: None,
    })?;
    let process = Process::child(pid)?;
    let late = |_| unusable(program, format!("{option}: no end within {DEADLINE:?}"));
    let exit = timeout(DEADLINE, process.exited()).await.map_err(late)??;
    let printed = beginning(&output);
    if exit == VmExit::Exited(0) {
        Ok(printed)
    } else {
        let words = format!("{}{printed}", beginning(&log));
        let reason = format!("{option}: {exit}: {}", quote(&words));
        Err(unusable(program, reason))
    }
}

/// How a file begins, as text.
fn beginning(file: &File) -> String {
    let mut bytes = vec![0; MOST_OUTPUT];
    let length = file.read_at(&mut bytes, 0).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// A file that is in no directory.
pub(crate) fn memory_file(bytes: &[u8]) -> Result<File, Error> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create(c"probe", flags);
    let mut file = File::from(file.map_err(Error::process("memfd_create"))?);
    file.write_all(bytes).map_err(|source| Error::Process {
        call: "write memfd",
        source,
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Confined;

    #[tokio::test]
    async fn a_program_that_does_not_end_or_fails_tells_nothing() {
        let asked = async |program: &str, option: &str| {
            let answer = printed(Path::new(program), option, &Confinement::Insecure).await;
            answer.unwrap_err().to_string()
        };
        let error = asked("/bin/false", "--version").await;
        assert!(error.contains("exit status 1"), "{error}");
        let error = asked("/no/such", "--version").await;
        assert!(error.contains("/no/such"), "{error}");
        let error = asked("/bin/sleep", "60").await;
        assert!(error.contains("no end within"), "{error}");
    }

    #[tokio::test]
    async fn what_is_said_on_standard_error_is_no_part_of_the_answer() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        let script = "#!/bin/sh\necho 'ld.so: warning' >&2\necho version 1\nexit 0\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let asked = printed(&program, "--version", &Confinement::Insecure).await;
        assert_eq!(asked.unwrap(), "version 1\n");
        std::fs::write(&program, script.replace("exit 0", "exit 7")).unwrap();
        let asked = printed(&program, "--version", &Confinement::Insecure).await;
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("exit status 7"), "{error}");
        assert!(error.contains("ld.so: warning"), "{error}");
    }

    #[tokio::test]
    async fn a_program_is_asked_as_confined_as_a_vmm_is() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: users of their own take root");
            return;
        }
        let confinement = Confinement::strictest(2_000_000_000).unwrap();
        let Confined::User { uid } = confinement.noted() else {
            panic!("{confinement:?}");
        };
        let id = Path::new("/usr/bin/id");
        let answer = printed(id, "-u", &confinement).await.unwrap();
        assert_eq!(answer.trim(), uid.to_string());
        let answer = printed(id, "-u", &Confinement::Namespaces).await;
        assert_eq!(answer.unwrap().trim(), "0");
    }
}
