//! Hooks that a container's own first process runs: in its namespaces, before
//! it becomes the workload.

use super::{HookKind, HookSpec, state};
use crate::container::error::{Failure, Step};
use crate::container::spec::ContainerSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, umask};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The usual file mode mask: that of this process is none for a while.
const UMASK: Mode = Mode::from_raw_mode(0o022);

/// Runs the hooks of a kind, one after the other, up to the first that fails.
pub(in crate::container) fn run(spec: &ContainerSpec, kind: HookKind) -> Result<(), Failure> {
    for hook in spec.hooks.of(kind) {
        let subject = format!("{kind} {}", hook.path.display());
        let failed = |error| Failure::at(Step::Hook, subject.as_str())(error);
        let pid = i32::try_from(std::process::id()).ok();
        let state = state(spec, kind, pid).map_err(|error| failed(io::Error::other(error)))?;
        let before = umask(UMASK);
        let ended = run_one(hook, &state);
        umask(before);
        let status = ended.map_err(failed)?;
        if !status.success() {
            let subject = format!("{subject} ({status})");
            return Err(Failure::at(Step::Hook, subject)(Errno::CANCELED.into()));
        }
    }
    Ok(())
}

fn run_one(hook: &HookSpec, state: &[u8]) -> io::Result<ExitStatus> {
    // A file, which a hook that does not read holds nobody up with.
    let mut told = File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
    told.write_all(state)?;
    told.rewind()?;
    let mut command = Command::new(&hook.path);
    let mut args = hook.args.iter();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let variables = hook.env.iter().filter_map(|one| one.split_once('='));
    let child = command
        .args(args)
        .env_clear()
        .envs(variables)
        .stdin(told)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait(child, hook)
}

fn wait(mut child: Child, hook: &HookSpec) -> io::Result<ExitStatus> {
    let watched = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let watched = pidfd_open(watched.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    let deadline = Timespec {
        tv_sec: i64::try_from(hook.timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: hook.timeout.subsec_nanos().into(),
    };
    let mut ended = [PollFd::new(&watched, PollFlags::IN)];
    match poll(&mut ended, Some(&deadline)) {
        Ok(1..) => child.wait(),
        outcome => {
            child.kill()?;
            child.wait()?;
            outcome?;
            Err(Errno::TIMEDOUT.into())
        }
    }
}
