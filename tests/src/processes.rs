//! The processes of this machine, found by what their command line names.

use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;

/// The processes whose command line holds `text`, this one excepted.
///
/// # Panics
/// When /proc cannot be read.
#[must_use]
pub fn naming(text: &str) -> Vec<Pid> {
    with(&["cmdline"], text)
}

/// The processes whose command line or environment names `directory`: every
/// `host-ctl` of that home, supervisors included, and every VMM.
///
/// # Panics
/// When /proc cannot be read.
#[must_use]
pub fn of_home(directory: &Path) -> Vec<Pid> {
    with(&["cmdline", "environ"], &directory.to_string_lossy())
}

/// The processes that hold `text` in one of these files of theirs, proc(5).
fn with(files: &[&str], text: &str) -> Vec<Pid> {
    let own = rustix::process::getpid();
    std::fs::read_dir("/proc")
        .expect("read /proc")
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let holds = |file: &&str| {
                // Another user's, or ended meanwhile: none of ours.
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(text)
            };
            let found = files.iter().any(holds);
            Pid::from_raw(pid).filter(|pid| found && *pid != own)
        })
        .collect()
}

/// The QEMU processes whose command line names `directory`.
///
/// # Panics
/// When /proc cannot be read.
#[must_use]
pub fn machines(directory: &Path) -> Vec<Pid> {
    let name = |pid: &Pid| {
        let path = format!("/proc/{}/comm", pid.as_raw_nonzero());
        std::fs::read_to_string(path).unwrap_or_default()
    };
    naming(&directory.to_string_lossy())
        .into_iter()
        .filter(|pid| name(pid).starts_with("qemu"))
        .collect()
}

/// Kills every process whose command line names `directory`.
pub fn kill_those_naming(directory: &Path) {
    for pid in naming(&directory.to_string_lossy()) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}
