//! Hooks in the guest's own namespaces: processes of the workload, outside
//! every container.

use super::{HookKind, HookSpec, state};
use crate::container::error::ExecError;
use crate::container::spec::{ContainerSpec, ProcessSpec};
use crate::container::{ExecProcess, Launcher};
use crate::process::OutputReader;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What is told of a hook's complaint, in bytes.
const COMPLAINT: usize = 512;
/// One read of it, and how long what it said may still be on its way.
const CHUNK: usize = 4096;
const DRAIN_WINDOW: Duration = Duration::from_millis(100);
/// How long what a hook has started may take to be gone once it is killed.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Why a hook has failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It was not run.
    #[error("{kind} hook {}", path.display())]
    Run {
        /// Of which kind.
        kind: HookKind,
        /// Its program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ExecError,
    },
    /// It ended with another status than 0.
    #[error("{kind} hook {}: exit status {status}{}{complaint}", path.display(), separator(.complaint))]
    Status {
        /// Of which kind.
        kind: HookKind,
        /// Its program.
        path: PathBuf,
        /// As a shell has it.
        status: i32,
        /// The beginning of what it said on stderr.
        complaint: String,
    },
    /// It did not end in time, and was killed.
    #[error("{kind} hook {}: not done within {timeout:?}", path.display())]
    Timeout {
        /// Of which kind.
        kind: HookKind,
        /// Its program.
        path: PathBuf,
        /// How long it had.
        timeout: Duration,
    },
    /// The container's state cannot be told.
    #[error("state of the container")]
    State(#[source] serde_json::Error),
}

fn separator(complaint: &str) -> &'static str {
    if complaint.is_empty() { "" } else { ": " }
}

impl Launcher {
    /// Runs the hooks of a kind in the guest, one after the other, up to the
    /// first that fails. `pid` is the container's init process, if there is
    /// one.
    ///
    /// # Errors
    /// How the first has failed.
    pub async fn run_hooks(
        &self,
        spec: &ContainerSpec,
        kind: HookKind,
        pid: Option<i32>,
    ) -> Result<(), HookError> {
        let hooks = spec.hooks.of(kind);
        if hooks.is_empty() {
            return Ok(());
        }
        let state = state(spec, kind, pid).map_err(HookError::State)?;
        for hook in hooks {
            self.run_hook(kind, hook, &state).await?;
        }
        Ok(())
    }

    async fn run_hook(
        &self,
        kind: HookKind,
        hook: &HookSpec,
        state: &[u8],
    ) -> Result<(), HookError> {
        let mut process = ProcessSpec::guest_root();
        process.program = Some(hook.path.clone());
        process.args.clone_from(&hook.args);
        process.env.clone_from(&hook.env);
        let path = hook.path.clone();
        let not_run = |source| HookError::Run {
            kind,
            path: hook.path.clone(),
            source,
        };
        let cgroup = self.workload().create_hook();
        let cgroup = cgroup.map_err(|error| not_run(error.into()))?;
        let started = match self.exec_hook(&process, &cgroup).await {
            Ok(started) => started,
            Err(source) => {
                cgroup.release();
                return Err(not_run(source));
            }
        };
        let mut complaint = Vec::new();
        let talk = async {
            tokio::join!(
                tell(&started, state),
                hear(started.stdio.stdout.as_ref(), None),
                hear(started.stdio.stderr.as_ref(), Some(&mut complaint)),
            )
        };
        let ended = async {
            tokio::pin!(talk);
            // What holds its streams open may outlive it.
            tokio::select! {
                status = started.process.wait() => {
                    let _ = tokio::time::timeout(DRAIN_WINDOW, talk).await;
                    status
                }
                _ = &mut talk => started.process.wait().await,
            }
        };
        let Ok(status) = tokio::time::timeout(hook.timeout, ended).await else {
            // With all that it has started. What cannot be killed stays in its
            // cgroup; that the hook was too slow is what to tell.
            let _ = cgroup.kill(KILL_DEADLINE).await;
            let _ = tokio::time::timeout(KILL_DEADLINE, started.process.wait()).await;
            let timeout = hook.timeout;
            return Err(HookError::Timeout {
                kind,
                path,
                timeout,
            });
        };
        cgroup.release();
        match status.code() {
            0 => Ok(()),
            status => Err(HookError::Status {
                kind,
                path,
                status,
                complaint: String::from_utf8_lossy(&complaint).trim().into(),
            }),
        }
    }
}

/// A hook need not listen.
async fn tell(hook: &ExecProcess, state: &[u8]) {
    if let Some(stdin) = &hook.stdio.stdin {
        let told: io::Result<()> = stdin.write_all(state).await;
        drop(told);
        stdin.close();
    }
}

/// Reads to the end and keeps the beginning.
async fn hear(output: Option<&OutputReader>, mut kept: Option<&mut Vec<u8>>) {
    let Some(output) = output else { return };
    while let Ok(data) = output.read(CHUNK).await {
        if data.is_empty() {
            return;
        }
        if let Some(kept) = &mut kept {
            let room = COMPLAINT.saturating_sub(kept.len());
            kept.extend(data.iter().take(room));
        }
    }
}
