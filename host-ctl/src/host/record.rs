//! Small JSON records that are replaced as a whole: a reader sees the old one
//! or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::call::{CallFailed, failed};
use super::cgroup::CgroupRecord;
use super::network::TapRecord;
use super::process::ProcessIdentity;
use crate::config::{hexadecimal, random_bytes};

/// Most bytes read of any record, so that a damaged one cannot fill memory.
pub const RECORD_LIMIT: u64 = 1 << 20;

/// Why a record was not read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// There is none.
    #[error("{0}: no such record")]
    Missing(PathBuf),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// Larger than any record we write.
    #[error("{path}: larger than {RECORD_LIMIT} bytes")]
    TooLarge {
        /// The record.
        path: PathBuf,
    },
    /// Not the JSON we write.
    #[error("parse {path}")]
    Parse {
        /// The record.
        path: PathBuf,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
    /// The value cannot be JSON.
    #[error("serialize {path}")]
    Serialize {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// How far a sandbox has come; decides what a sweep may do with its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A template is being built in it. Never handed to anybody.
    Building,
    /// A boot or a clone that was not handed over yet.
    Starting,
    /// Handed over: its VM outlives its supervisor.
    Ready,
    /// Handed over once; its VM has ended, or is worth nothing. What it left
    /// stays until somebody removes it.
    Ended,
    /// Its removal was asked for.
    Ending,
}

impl Stage {
    /// Whether a VM in this stage is worth nothing without its supervisor.
    #[must_use]
    pub fn is_abandoned_without_supervisor(self) -> bool {
        self != Stage::Ready
    }
}

/// The part of a sandbox's record that a sweep has to understand; the record
/// holds it flattened (`#[serde(flatten)]`) beside whatever else it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    /// How far the sandbox has come.
    pub stage: Stage,
    /// Who acts on it; none before the first one started.
    pub supervisor: Option<ProcessIdentity>,
    /// Its VM; none before the VMM was spawned and after it was reaped.
    pub vmm: Option<ProcessIdentity>,
    /// What serves directories of the host to its guest; of no use without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub virtiofsds: Vec<ProcessIdentity>,
    /// Its tap device; none before it was planned and after it was removed.
    #[serde(default)]
    pub tap: Option<TapRecord>,
    /// Its VMM's cgroup; none before it was planned and after it was removed, and
    /// where there is none to be had.
    #[serde(default)]
    pub cgroup: Option<CgroupRecord>,
}

impl RecordHead {
    /// What runs its VM, the VMM first.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessIdentity> {
        self.vmm.iter().chain(&self.virtiofsds).cloned().collect()
    }
}

/// Replaces a record: temporary file, rename. The file is 0600. The caller is
/// the only writer, by a lock.
///
/// Nothing is fsynced: a record speaks of processes, and after a power loss
/// there are none. What a power loss may leave in its place is an empty file,
/// which [`read_record`] takes for none.
///
/// # Errors
/// When a call fails; the old record is untouched then.
pub fn write_record<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let text = text_of(path, value)?;
    Ok(replace(path, &text, 0o600, Durability::Process)?)
}

/// The same for a record that several may write at once, each of them the same
/// as far as it matters: whoever renames last counts. A kill in between leaves a
/// file beside it.
///
/// # Errors
/// When a call fails; the old record is untouched then.
pub fn write_shared_record<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let text = text_of(path, value)?;
    let random = random_bytes::<8>().map_err(failed("getrandom", path))?;
    let temporary = temporary_name(path, &format!(".{}.new", hexadecimal(&random)));
    Ok(replace_by(
        &temporary,
        path,
        &text,
        0o600,
        Durability::Process,
    )?)
}

fn text_of<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, RecordError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| RecordError::Serialize {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// A hidden name beside a file.
fn temporary_name(path: &Path, end: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(end);
    path.with_file_name(name)
}

/// Reads a record of at most [`RECORD_LIMIT`] bytes, following no symlink.
///
/// # Errors
/// [`RecordError::Missing`] when there is none, or only the name of one.
pub fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let text = read_bounded(path)?;
    if text.is_empty() {
        return Err(RecordError::Missing(path.to_owned()));
    }
    serde_json::from_slice(&text).map_err(|source| RecordError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// The bytes of a small file, following no symlink.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>, RecordError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RecordError::Missing(path.to_owned()));
        }
        Err(error) => return Err(failed("open", path)(error).into()),
    };
    let mut text = Vec::new();
    file.take(RECORD_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(failed("read", path))?;
    if text.len() as u64 > RECORD_LIMIT {
        return Err(RecordError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

/// What a write is to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// The end of this process.
    Process,
    /// A power loss (fsync(2) of the file and of its directory).
    Host,
}

/// Replaces a file as a whole, durably: a reader sees the old one or the new
/// one, also after a power loss in between.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CallFailed> {
    replace(path, bytes, mode, Durability::Host)
}

/// Replaces a file as a whole. The temporary name is fixed, so that a kill in
/// between leaves at most one, which the next write takes over.
fn replace(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<(), CallFailed> {
    replace_by(&temporary_name(path, ".new"), path, bytes, mode, durability)
}

fn replace_by(
    temporary: &Path,
    path: &Path,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<(), CallFailed> {
    let written = write_new(temporary, bytes, mode, durability).and_then(|()| {
        fs::rename(temporary, path).map_err(failed("rename", path))?;
        match durability {
            Durability::Process => Ok(()),
            Durability::Host => sync_directory(path.parent().unwrap_or(Path::new("/"))),
        }
    });
    if written.is_err() {
        // The first failure is what counts; a full disk is freed again.
        let _ = fs::remove_file(temporary);
    }
    written
}

fn write_new(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<(), CallFailed> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(failed("open", path))?;
    file.write_all(bytes).map_err(failed("write", path))?;
    match durability {
        Durability::Process => Ok(()),
        Durability::Host => file.sync_all().map_err(failed("fsync", path)),
    }
}

/// Makes renames and removals in a directory durable (fsync(2)).
pub(crate) fn sync_directory(path: &Path) -> Result<(), CallFailed> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("fsync", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sweep_reads_its_part_of_a_larger_record() {
        #[derive(Serialize)]
        struct Whole {
            #[serde(flatten)]
            head: RecordHead,
            containers: Vec<String>,
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let head = RecordHead {
            stage: Stage::Starting,
            supervisor: Some(ProcessIdentity::current().unwrap()),
            vmm: None,
            virtiofsds: Vec::new(),
            tap: None,
            cgroup: None,
        };
        let whole = Whole {
            head: head.clone(),
            containers: vec!["web".to_owned()],
        };
        write_record(&path, &whole).unwrap();
        assert_eq!(read_record::<RecordHead>(&path).unwrap(), head);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_endless_record_is_refused_before_it_fills_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(
            read_record::<RecordHead>(&path),
            Err(RecordError::TooLarge { .. })
        ));
    }

    #[test]
    fn what_a_power_loss_leaves_of_a_record_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        File::create(&path).unwrap();
        assert!(matches!(
            read_record::<RecordHead>(&path),
            Err(RecordError::Missing(_))
        ));
    }

    #[test]
    fn two_who_write_one_record_at_once_leave_a_whole_one_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        std::thread::scope(|scope| {
            for writer in ["one", "other"] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..200 {
                        write_shared_record(path, &writer.repeat(1000)).unwrap();
                        read_record::<String>(path).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        write_record(&path, &"old").unwrap();
        // A directory in the way of the temporary file makes the write fail.
        fs::create_dir(directory.path().join(".record.json.new")).unwrap();
        assert!(write_record(&path, &"new").is_err());
        assert_eq!(read_record::<String>(&path).unwrap(), "old");
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_nothing_worse(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("record.json");
            fs::write(&path, bytes).unwrap();
            prop_assert!(read_record::<RecordHead>(&path).is_err());
        }
    }
}
