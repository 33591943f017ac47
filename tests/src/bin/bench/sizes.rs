//! Bytes: the agent's file, and what processes hold in memory.

use super::{Failure, Goal, report};
use rustix::process::{Pid, Signal, kill_process};
use std::ops::Add;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEGABYTE: f64 = 1e6;
/// Bytes.
pub(super) const MEBIBYTE: f64 = 1_048_576.0;
/// How long an idle agent may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
pub(super) const START_DEADLINE: Duration = Duration::from_secs(10);

/// The policy that the resident size is measured under, beside the built-in
/// one: it allows the same, but an engine looks at each request.
const POLICY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policy/rego/allow-all.rego");

/// The agent as an ordinary process, idle: its file, and what it holds under
/// the built-in allow-all and under a policy in Rego.
pub(super) fn agent(program: &Path) -> Result<(), Failure> {
    let size = std::fs::metadata(program)?.len() as f64;
    report("agent_size", size / MEGABYTE, "MB", Goal::AtMost(5.0));
    let resident = idle(program, &[])?;
    report("agent_rss", resident / MEGABYTE, "MB", Goal::AtMost(4.0));
    let resident = idle(program, &["--policy", POLICY])?;
    report("agent_rss_policy", resident / MEGABYTE, "MB", Goal::None);
    Ok(())
}

/// The resident size of an agent that was asked nothing yet.
fn idle(program: &Path, arguments: &[&str]) -> Result<f64, Failure> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("agent.sock");
    let mut child = Command::new(program)
        .arg("--server")
        .arg(format!("unix://{}", socket.display()))
        .args(arguments)
        .stderr(Stdio::null())
        .spawn()?;
    let resident = wait_for(&mut child, &socket).and_then(|()| status(child.id(), "VmRSS:"));
    end(&mut child)?;
    resident
}

/// Ends an agent as it wants to be ended: then it removes its cgroup.
fn end(child: &mut Child) -> Result<(), Failure> {
    let pid = Pid::from_child(child);
    kill_process(pid, Signal::TERM)?;
    let deadline = Instant::now() + END_DEADLINE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Waits until an agent listens.
pub(super) fn wait_for(child: &mut Child, socket: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + START_DEADLINE;
    while !socket.exists() {
        if child.try_wait()?.is_some() || Instant::now() > deadline {
            return Err("the agent does not listen".into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// A field of /proc/PID/status, in bytes.
pub(super) fn status(pid: u32, field: &str) -> Result<f64, Failure> {
    kibibytes(
        &std::fs::read_to_string(format!("/proc/{pid}/status"))?,
        field,
    )
}

/// The proportional set size of a process, in bytes.
pub(super) fn proportional(pid: u32) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kibibytes(&text, "Pss:")
}

/// What processes hold of the host's memory, in bytes: parts of one sum.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts {
    /// The guest's RAM, mapped from its file.
    pub(super) ram: f64,
    /// All else.
    pub(super) rest: f64,
}

impl Parts {
    /// The proportional set size of a process whose guest's RAM is that file,
    /// from its smaps (proc_pid_smaps(5)).
    pub(super) fn of(pid: u32, ram: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        Self::read(&text, ram)
    }

    fn read(smaps: &str, ram: &Path) -> Result<Self, Failure> {
        let mut parts = Self::default();
        let mut is_ram = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            let bytes = || Ok::<f64, Failure>(value.parse::<f64>()? * 1024.0);
            match name {
                "Pss:" if is_ram => parts.ram += bytes()?,
                "Pss:" => parts.rest += bytes()?,
                // The head of a mapping: its path is the sixth word.
                _ if !name.ends_with(':') => {
                    is_ram = words.nth(3).is_some_and(|path| Path::new(path) == ram);
                }
                _ => {}
            }
        }
        Ok(parts)
    }

    /// All of it.
    pub(super) fn sum(self) -> f64 {
        self.ram + self.rest
    }

    /// What is more than in the other, for each of so many.
    pub(super) fn growth(self, before: Self, count: f64) -> Self {
        Self {
            ram: (self.ram - before.ram) / count,
            rest: (self.rest - before.rest) / count,
        }
    }
}

impl Add for Parts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ram: self.ram + other.ram,
            rest: self.rest + other.rest,
        }
    }
}

/// A field of such a list of the kernel's, in bytes.
pub(super) fn kibibytes(text: &str, field: &str) -> Result<f64, Failure> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .ok_or_else(|| format!("no {field}"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    Ok(number.parse::<f64>()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 fe:00 12 /store/memory
Size:             131072 kB
Rss:                  24 kB
Pss:                  12 kB
Pss_Dirty:             4 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
VmFlags: rd wr mr mw me
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Pss:                   8 kB
Private_Dirty:         8 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
Pss:                   1 kB
";

    #[test]
    fn the_guests_ram_is_told_from_what_the_vmm_holds_beside_it() {
        let parts = Parts::read(SMAPS, Path::new("/store/memory")).unwrap();
        assert_eq!([parts.ram, parts.rest], [12.0 * 1024.0, 9.0 * 1024.0]);
        let parts = Parts::read(SMAPS, Path::new("/store/other")).unwrap();
        assert_eq!(parts.sum() / 1024.0, 21.0);
    }
}
