//! The processes of this machine, found by what their command line names.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
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
    let mut found = with(&["cmdline", "environ"], &directory.to_string_lossy());
    // A confined VMM is told no path.
    for machine in machines(directory) {
        if !found.contains(&machine) {
            found.push(machine);
        }
    }
    found
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

/// The VMMs of a home: the QEMU processes whose command line names `directory`,
/// and whatever writes to the log of a VMM below it, for not all are told a path.
///
/// # Panics
/// When /proc cannot be read.
#[must_use]
pub fn machines(directory: &Path) -> Vec<Pid> {
    let text = directory.to_string_lossy();
    let is_machine = |pid: &Pid| {
        let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let named = String::from_utf8_lossy(&command).contains(&*text);
        // A file that was removed is told by its old name, and more after it.
        let output = std::fs::read_link(process.join("fd/1")).unwrap_or_default();
        let logs = output.starts_with(directory) && output.to_string_lossy().contains("/vmm.log");
        named && name.starts_with("qemu") || logs
    };
    let all = naming("").into_iter();
    all.filter(is_machine).collect()
}

/// Kills every process whose command line names `directory`, and its VMMs.
pub fn kill_those_naming(directory: &Path) {
    let named = naming(&directory.to_string_lossy());
    for pid in named.into_iter().chain(machines(directory)) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills the process of that number, if it is still the one that started at that
/// time, in clock ticks since boot.
pub fn kill_if_still(pid: i32, start_time: u64) {
    let process = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(process) = process else { return };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // proc_pid_stat(5): field 22, of which the second ends with the last bracket.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let started = after_name.split_whitespace().nth(19);
    if started.and_then(|text| text.parse().ok()) == Some(start_time) {
        // It may have ended by itself meanwhile.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
}
