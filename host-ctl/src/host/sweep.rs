//! Finishes what a kill began: run directories whose supervisor died before it
//! could hand its sandbox over, or in the middle of a removal. A sandbox that
//! was handed over stays, stopped or not, until its owner removes it.
//!
//! A directory is touched only while its lock is held, a process is killed
//! only when its identity matches, and whatever is not certainly ours stays.
//! Safe to run in a loop beside live sandboxes, clones and builds.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::geteuid;
use serde::Serialize;

use super::call::{CallFailed, explain, failed};
use super::cgroup::CgroupRecord;
use super::lock::{Lock, LockError, flock_now};
use super::network::remove_tap_now;
use super::process::{ProcessIdentity, kill_all};
use super::record::{RecordError, RecordHead, Stage, read_record};
use super::run_directory::open_directory;
use super::tree::remove_tree;
use crate::config::{Paths, SandboxId, SandboxPaths};

/// How long a killed VMM may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What a sweep did with something it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Killed or removed.
    Removed,
    /// Left alone, and worth a look by a person.
    Kept,
}

/// One thing a sweep found that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was done.
    pub action: Action,
    /// A path or a process.
    pub subject: String,
    /// Why.
    pub reason: String,
}

impl Finding {
    pub(crate) fn removed(subject: impl Into<String>, reason: impl Into<String>) -> Finding {
        Finding {
            action: Action::Removed,
            subject: subject.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn kept(subject: impl Into<String>, reason: impl Into<String>) -> Finding {
        Finding {
            action: Action::Kept,
            subject: subject.into(),
            reason: reason.into(),
        }
    }
}

/// Removes what dead supervisors left in the run tree.
///
/// # Errors
/// When the run tree itself cannot be read; trouble with one directory is a
/// finding and does not keep the sweep from the others.
pub fn sweep(paths: &Paths) -> Result<Vec<Finding>, CallFailed> {
    let run = open_directory(&paths.run).map_err(failed("open", &paths.run))?;
    let mut findings = Vec::new();
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(&paths.run).map_err(failed("opendir", &paths.run))? {
        names.push(entry.map_err(failed("readdir", &paths.run))?.file_name());
    }
    for name in names {
        findings.extend(sweep_entry(paths, &run, &name));
    }
    Ok(findings)
}

fn sweep_entry(paths: &Paths, run: &File, name: &OsStr) -> Vec<Finding> {
    let path = paths.run.join(name);
    let subject = path.display().to_string();
    let Some(Ok(id)) = name.to_str().map(str::parse::<SandboxId>) else {
        return vec![Finding::kept(subject, "not named like a sandbox")];
    };
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() && found.uid() == geteuid().as_raw() => {}
        // Removed by its owner meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        _ => return vec![Finding::kept(subject, "not a directory of ours")],
    }
    let files = paths.sandbox(&id);
    // A directory without lock or record is being made or removed, or its maker
    // died: alone with the run tree we know which. Else removing it is shared.
    let whole = files.lock().exists() && files.record().exists();
    let alone = if whole {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock_now(run, alone) {
        Ok(true) => {}
        // The next sweep will see to it.
        Ok(false) => return Vec::new(),
        Err(error) => return vec![Finding::kept(subject, format!("flock: {error}"))],
    }
    let findings = sweep_sandbox(paths, run, &id, whole);
    // Creations may be waiting for it.
    let _ = flock_now(run, FlockOperation::Unlock);
    findings
}

fn sweep_sandbox(paths: &Paths, run: &File, id: &SandboxId, whole: bool) -> Vec<Finding> {
    let files = paths.sandbox(id);
    let subject = files.directory().display().to_string();
    let lock = if whole {
        Lock::try_acquire_existing(&files.lock(), "gc")
    } else {
        Lock::try_acquire(&files.lock(), "gc")
    };
    let _lock = match lock {
        Ok(lock) => lock,
        // Somebody acts on it, or its owner removed it meanwhile.
        Err(LockError::Held { .. }) => return Vec::new(),
        Err(_) if !files.lock().exists() => return Vec::new(),
        Err(error) => return vec![Finding::kept(subject, explain(&error))],
    };
    let head = match read_record::<RecordHead>(&files.record()) {
        Ok(head) => Some(head),
        Err(RecordError::Missing(_)) => None,
        Err(error) => return vec![Finding::kept(subject, explain(&error))],
    };
    let mut findings = Vec::new();
    let verdict = verdict(&files, id, head.as_ref());
    let mut lingers = false;
    let killed = kill_all(&verdict.kill, KILL_DEADLINE);
    for (process, killed) in verdict.kill.iter().zip(killed) {
        let name = format!("process {}", process.pid);
        match killed {
            Ok(true) => findings.push(Finding::removed(
                name,
                format!("VM of sandbox {id}, abandoned"),
            )),
            Ok(false) => {}
            Err(error) => {
                findings.push(Finding::kept(name, explain(&error)));
                lingers = true;
            }
        }
    }
    if lingers {
        return findings;
    }
    let tap = head.as_ref().and_then(|head| head.tap.as_ref());
    if let Some(tap) = tap.filter(|_| verdict.release) {
        let name = format!("link {}", tap.name);
        // Its alias is compared with what is recorded beside it.
        if tap.sandbox != *id {
            let reason = format!("sandbox {id} has recorded another's tap");
            findings.push(Finding::kept(name, reason));
            return findings;
        }
        match remove_tap_now(tap) {
            Ok(true) => findings.push(Finding::removed(
                name,
                format!("tap of sandbox {id}, which has no VM"),
            )),
            Ok(false) => {}
            // Its directory is what says whose it is.
            Err(error) => {
                findings.push(Finding::kept(name, explain(&error)));
                return findings;
            }
        }
    }
    let cgroup = head.as_ref().and_then(|head| head.cgroup.as_ref());
    if let Some(cgroup) = cgroup.filter(|_| verdict.release) {
        let name = cgroup.path.display().to_string();
        match remove_cgroup(cgroup, id) {
            Ok(true) => findings.push(Finding::removed(
                name,
                format!("cgroup of sandbox {id}, which has no VM"),
            )),
            Ok(false) => {}
            Err(reason) => {
                findings.push(Finding::kept(name, reason));
                return findings;
            }
        }
    }
    if !verdict.remove {
        return findings;
    }
    findings.push(
        match remove_tree(run.as_fd(), &paths.run, OsStr::new(id.as_str())) {
            Ok(()) => Finding::removed(subject, "its supervisor and its VM are dead"),
            Err(error) => Finding::kept(subject, explain(&error)),
        },
    );
    findings
}

/// Removes the cgroup that a sandbox has recorded, whose name must be its own.
fn remove_cgroup(cgroup: &CgroupRecord, id: &SandboxId) -> Result<bool, String> {
    if cgroup.path.file_name() != Some(OsStr::new(&id.vm_name())) {
        return Err(format!("sandbox {id} has recorded another's cgroup"));
    }
    cgroup.remove().map_err(|error| explain(&error))
}

/// What is to become of a sandbox.
#[derive(Default)]
struct Verdict {
    /// Processes that nobody has a use for.
    kill: Vec<ProcessIdentity>,
    /// Whether it has no VM then, so that nobody has a use for its tap and its
    /// cgroup.
    release: bool,
    /// Whether nobody has a use for its directory then.
    remove: bool,
}

/// What is to become of a sandbox whose lock is ours.
fn verdict(files: &SandboxPaths, id: &SandboxId, head: Option<&RecordHead>) -> Verdict {
    let supervisor = head.and_then(|head| head.supervisor.as_ref());
    if supervisor.is_some_and(ProcessIdentity::is_alive) {
        return Verdict::default();
    }
    let recorded = head.and_then(|head| head.vmm.clone());
    let alive = recorded.filter(ProcessIdentity::is_alive);
    let servers = head.map(|head| head.virtiofsds.clone()).unwrap_or_default();
    match head.map(|head| head.stage) {
        // Its owner knows its name: it runs on, or it has ended and its logs
        // are the owner's.
        Some(Stage::Ready) if alive.is_some() => Verdict::default(),
        Some(Stage::Ready) => Verdict {
            kill: servers,
            release: true,
            remove: false,
        },
        Some(Stage::Ended) => Verdict {
            kill: alive.into_iter().chain(servers).collect(),
            release: true,
            remove: false,
        },
        Some(Stage::Building | Stage::Starting | Stage::Ending) | None => Verdict {
            kill: match alive {
                Some(vmm) => std::iter::once(vmm).chain(servers).collect(),
                // Killed between spawning the VMM and recording it.
                None => {
                    let found = vmms_of(&id.vm_name(), &files.vmm_log());
                    found.into_iter().chain(servers).collect()
                }
            },
            release: true,
            remove: true,
        },
    }
}

/// Processes of ours that run a VM of this name, or have this file for all that
/// they say, as every VMM has its log: not each is told a name.
fn vmms_of(name: &str, log: &Path) -> Vec<ProcessIdentity> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let log = fs::symlink_metadata(log).ok().filter(fs::Metadata::is_file);
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            // In this order: had the number been reused in between, the kill
            // would find another start time.
            let identity = ProcessIdentity::capture(pid).ok()?;
            let directory = PathBuf::from(format!("/proc/{pid}"));
            // Root's VMMs have users of their own.
            let user = geteuid();
            let ours = user.is_root() || fs::metadata(&directory).ok()?.uid() == user.as_raw();
            let is_vmm = ours
                && (runs_vm_named(&directory, name)
                    || log.as_ref().is_some_and(|log| says_all_to(&directory, log)));
            is_vmm.then_some(identity)
        })
        .collect()
}

fn runs_vm_named(process: &Path, name: &str) -> bool {
    fs::read(process.join("cmdline")).is_ok_and(|line| names_vm(&line, name))
}

/// Whether standard output and error of a process are this file.
fn says_all_to(process: &Path, log: &fs::Metadata) -> bool {
    ["fd/1", "fd/2"].iter().all(|descriptor| {
        fs::metadata(process.join(descriptor))
            .is_ok_and(|found| (found.dev(), found.ino()) == (log.dev(), log.ino()))
    })
}

/// Whether a command line names its VM so: the value of `-name` of qemu(1), not
/// a mere mention.
fn names_vm(command_line: &[u8], name: &str) -> bool {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    arguments.windows(2).any(|pair| {
        let option = matches!(pair[0], b"-name" | b"--name");
        option
            && pair[1].split(|byte| *byte == b',').any(|part| {
                let value = part.strip_prefix(b"guest=").unwrap_or(part);
                OsStr::from_bytes(value) == OsStr::new(name)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_option_names_a_vm() {
        let name = "tardigrade-0123456789ab";
        for line in [
            "qemu\0-name\0tardigrade-0123456789ab\0-S",
            "qemu\0-name\0guest=tardigrade-0123456789ab,debug-threads=on\0",
            "qemu\0-name\0tardigrade-0123456789ab,process=x\0",
        ] {
            assert!(names_vm(line.as_bytes(), name), "{line:?}");
        }
        for line in [
            "grep\0tardigrade-0123456789ab\0",
            "vim\0/run/tardigrade-0123456789ab/record.json\0",
            "qemu\0-name\0tardigrade-0123456789abc\0",
            "find\0.\0-name\0tardigrade-*\0",
        ] {
            assert!(!names_vm(line.as_bytes(), name), "{line:?}");
        }
    }
}
