//! Programs of the guest that do a part of the agent's work: run below the
//! workload's cgroup, fed, read, and never waited for longer than a deadline.

use super::Agent;
use super::error::ServiceError;
use super::process::{Output, ProcessEntry};
use guest_runtime::ExecId;
use guest_runtime::container::ProcessSpec;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The most a program may say on one output, in bytes: what one reply holds.
const OUTPUT_MAX: usize = 4 << 20;
const CHUNK: usize = 64 * 1024;
const SIGKILL: i32 = 9;

/// Killed when dropped: a program that ends in time ignores it.
struct Running(Arc<ProcessEntry>);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.process.signal(SIGKILL);
    }
}

impl Agent {
    /// Runs the first of `programs` that the guest has, with these arguments
    /// and this input; what it says, if it succeeds.
    pub(super) async fn run_program(
        &self,
        programs: &[&'static str],
        arguments: Vec<String>,
        input: &[u8],
        deadline: Duration,
    ) -> Result<Vec<u8>, ServiceError> {
        let found = programs.iter().find(|path| Path::new(path).exists());
        let program = *found.ok_or_else(|| ServiceError::NoProgram {
            programs: programs.join(" or "),
        })?;
        let mut process = ProcessSpec::guest_root();
        process.args = [program.into()].into_iter().chain(arguments).collect();
        let started = self.launcher()?.exec_in_guest(&process, true).await;
        let started = started.map_err(|source| not_started(program, source))?;
        let running = Running(ProcessEntry::new(started.process, started.stdio));
        let ended = tokio::time::timeout(deadline, finish(&running.0, input)).await;
        let (status, stdout, stderr) = ended.map_err(|_| ServiceError::Deadline {
            call: "run a program of the guest",
        })??;
        if status != 0 {
            let said = String::from_utf8_lossy(&stderr);
            let said = said.trim().chars().take(1024).collect();
            return Err(ServiceError::Program {
                program,
                status,
                said,
            });
        }
        Ok(stdout)
    }
}

fn not_started(program: &str, source: guest_runtime::container::ExecError) -> ServiceError {
    let name = Path::new(program).file_name().unwrap_or_default();
    // A program's name is an exec's as well; what else it may be is told.
    match name.to_string_lossy().parse::<ExecId>() {
        Ok(exec) => ServiceError::Exec { exec, source },
        Err(error) => ServiceError::System {
            call: "name a program",
            source: std::io::Error::other(error),
        },
    }
}

async fn finish(
    entry: &ProcessEntry,
    input: &[u8],
) -> Result<(i32, Vec<u8>, Vec<u8>), ServiceError> {
    let feed = async {
        if let Some(stdin) = &entry.stdio.stdin {
            // One that does not read its input says by its status whether it
            // minds.
            let _ = stdin.write_all(input).await;
            stdin.close();
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(
        feed,
        read_all(entry, Output::Stdout),
        read_all(entry, Output::Stderr)
    )?;
    Ok((entry.process.wait().await.code(), stdout, stderr))
}

async fn read_all(entry: &ProcessEntry, output: Output) -> Result<Vec<u8>, ServiceError> {
    let mut all = Vec::new();
    loop {
        let data = entry.read(output, CHUNK).await;
        let data = data.map_err(ServiceError::system("read what a program says"))?;
        if data.is_empty() {
            return Ok(all);
        }
        if all.len() + data.len() > OUTPUT_MAX {
            return Err(ServiceError::System {
                call: "read what a program says",
                source: std::io::ErrorKind::FileTooLarge.into(),
            });
        }
        all.extend(data);
    }
}
