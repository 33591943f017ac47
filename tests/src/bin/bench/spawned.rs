//! Which processes a command starts, as the kernel's trace of them tells it:
//! also those that have ended before anyone could have looked.

use super::Failure;
use rustix::mount::{MountFlags, mount};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where tracefs is mounted (Documentation/trace/ftrace.rst of Linux).
const TRACEFS: &str = "/sys/kernel/tracing";
/// Told of each new task and each execve(2).
const EVENTS: [&str; 2] = ["task/task_newtask", "sched/sched_process_exec"];
/// clone(2): a thread of the process, not a process.
const CLONE_THREAD: u64 = 0x0001_0000;
/// What shells are called.
const SHELLS: [&str; 6] = ["sh", "ash", "bash", "busybox", "dash", "zsh"];

/// What a command has started, beside itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spawned {
    /// Processes; threads are none.
    pub(super) processes: usize,
    /// The programs of execve, by their paths.
    pub(super) programs: Vec<String>,
}

impl Spawned {
    /// How many shells were started.
    pub(super) fn shells(&self) -> usize {
        let is_shell = |path: &&String| {
            let name = Path::new(path).file_name().unwrap_or_default();
            SHELLS.iter().any(|shell| name == *shell)
        };
        self.programs.iter().filter(is_shell).count()
    }

    /// Reads a trace for the process `root` and all that come from it.
    fn read(trace: &str, root: u32) -> Self {
        let mut family = HashSet::from([root]);
        let mut spawned = Self::default();
        for line in trace.lines() {
            if let Some((head, event)) = line.split_once(": task_newtask: ") {
                let parent = head
                    .rsplit_once(" [")
                    .and_then(|(task, _)| task.trim_end().rsplit_once('-'))
                    .and_then(|(_, pid)| pid.parse().ok());
                let flags = field(event, "clone_flags")
                    .and_then(|flags| u64::from_str_radix(flags, 16).ok());
                let child = field(event, "pid").and_then(|pid| pid.parse().ok());
                let (Some(parent), Some(flags), Some(child)) = (parent, flags, child) else {
                    continue;
                };
                if family.contains(&parent) {
                    family.insert(child);
                    spawned.processes += usize::from(flags & CLONE_THREAD == 0);
                }
            } else if let Some((_, event)) = line.split_once(": sched_process_exec: ") {
                let pid = field(event, "pid").and_then(|pid| pid.parse().ok());
                let is_ours = pid.is_some_and(|pid| pid != root && family.contains(&pid));
                if let (true, Some(program)) = (is_ours, field(event, "filename")) {
                    spawned.programs.push(program.to_owned());
                }
            }
        }
        spawned
    }
}

/// The value of `NAME=VALUE` in an event.
fn field<'a>(event: &'a str, name: &str) -> Option<&'a str> {
    event
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// Runs a command to its end.
pub(super) fn trace(command: &mut Command) -> Result<(Output, Spawned), Failure> {
    let trace = Trace::begin()?;
    let child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let root = child.id();
    let output = child.wait_with_output()?;
    Ok((output, Spawned::read(&trace.end()?, root)))
}

/// A trace of our own, removed when this is dropped.
struct Trace(PathBuf);

impl Trace {
    fn begin() -> Result<Self, Failure> {
        let root = Path::new(TRACEFS);
        if !root.join("instances").exists() {
            mount("tracefs", root, "tracefs", MountFlags::empty(), None)?;
        }
        let trace = Self(root.join(format!("instances/bench-{}", std::process::id())));
        fs::create_dir(&trace.0)?;
        for event in EVENTS {
            fs::write(trace.0.join("events").join(event).join("enable"), "1")?;
        }
        Ok(trace)
    }

    fn end(self) -> Result<String, Failure> {
        fs::write(self.0.join("tracing_on"), "0")?;
        Ok(fs::read_to_string(self.0.join("trace"))?)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // A trace that stays costs some memory, and tells of nobody else.
        let _ = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that starts one, which has a thread that starts another; and
    /// one that has nothing to do with it.
    const TRACE: &str = "\
# tracer: nop
           bench-7       [000] .....   1.000: task_newtask: pid=10 comm=bench clone_flags=4100 oom_score_adj=0
        host-ctl-10      [001] .....   1.001: sched_process_exec: filename=/x/host-ctl pid=10 old_pid=10
        host-ctl-10      [001] .....   1.002: task_newtask: pid=11 comm=host-ctl clone_flags=4100 oom_score_adj=0
        host-ctl-11      [000] .....   1.003: sched_process_exec: filename=/x/host-ctl pid=11 old_pid=11
    tokio [1]-rt-11      [000] .....   1.004: task_newtask: pid=12 comm=tokio [1]-rt clone_flags=3d0f00 oom_score_adj=0
    tokio [1]-rt-12      [000] .....   1.005: task_newtask: pid=13 comm=tokio [1]-rt clone_flags=1200000 oom_score_adj=0
              sh-13      [000] .....   1.006: sched_process_exec: filename=/bin/sh pid=13 old_pid=13
        kthreadd-2       [000] .....   1.007: task_newtask: pid=14 comm=kthreadd clone_flags=800711 oom_score_adj=0
            cron-3       [000] .....   1.008: task_newtask: pid=15 comm=cron clone_flags=1200000 oom_score_adj=0
            cron-15      [000] .....   1.009: sched_process_exec: filename=/bin/dash pid=15 old_pid=15
";

    #[test]
    fn only_processes_that_come_from_the_command_are_counted() {
        let spawned = Spawned::read(TRACE, 10);
        assert_eq!(spawned.processes, 2);
        assert_eq!(spawned.programs, ["/x/host-ctl", "/bin/sh"]);
        assert_eq!(spawned.shells(), 1);
    }
}
