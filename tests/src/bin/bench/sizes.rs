//! Bytes: the agent's file, and what processes hold in memory.

use super::{Failure, Goal, report};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MEGABYTE: f64 = 1e6;
const START_DEADLINE: Duration = Duration::from_secs(10);

/// The agent as an ordinary process, idle, under the built-in allow-all.
pub(super) fn agent(program: &Path) -> Result<(), Failure> {
    let size = std::fs::metadata(program)?.len() as f64;
    report("agent_size", size / MEGABYTE, "MB", Goal::AtMost(5.0));

    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("agent.sock");
    let mut child = Command::new(program)
        .arg("--server")
        .arg(format!("unix://{}", socket.display()))
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + START_DEADLINE;
    while !socket.exists() {
        if child.try_wait()?.is_some() || Instant::now() > deadline {
            return Err("the agent does not listen".into());
        }
        std::thread::yield_now();
    }
    let resident = status(child.id(), "VmRSS:");
    child.kill()?;
    child.wait()?;
    report("agent_rss", resident? / MEGABYTE, "MB", Goal::AtMost(5.0));
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

fn kibibytes(text: &str, field: &str) -> Result<f64, Failure> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .ok_or_else(|| format!("no {field}"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    Ok(number.parse::<f64>()? * 1024.0)
}
