//! After-thaw hooks: what a container asked to have run in it once it is
//! unique and runs again.

use super::Agent;
use super::container::Container;
use super::identity::random_hex;
use super::lifecycle::HookOutcome;
use super::process::{Output, ProcessEntry};
use guest_runtime::ExecId;
use std::sync::Arc;
use std::time::Duration;

/// What a hook that could not be started is reported as, like a shell would.
const NOT_STARTED: i32 = 127;
const SIGKILL: i32 = 9;
/// Read and thrown away at once, so that a hook that talks is not held up.
const CHUNK: usize = 64 * 1024;

impl Agent {
    /// Runs the hooks of all containers, one after the other, each with its
    /// own deadline. A hook that fails is reported and keeps nobody back.
    pub(super) async fn run_hooks(&self, deadline: Duration) -> Vec<HookOutcome> {
        let mut outcomes = Vec::new();
        for container in self.registry.all() {
            for hook in &container.after_thaw_hooks {
                let ran = self.run_hook(&container, hook);
                // A hook that is not even started in time is left to the exec's
                // own deadline.
                let status = tokio::time::timeout(deadline, ran).await;
                outcomes.push(HookOutcome {
                    container: container.id.to_string(),
                    path: hook.first().cloned().unwrap_or_default(),
                    exit_status: *status.as_ref().unwrap_or(&(128 + SIGKILL)),
                    timed_out: status.is_err(),
                });
            }
        }
        outcomes
    }

    /// The exit status of a hook. Dropped before its end, it kills the hook.
    async fn run_hook(&self, container: &Arc<Container>, args: &[String]) -> i32 {
        let mut process = container.spec.process.clone();
        process.args = args.to_vec();
        process.terminal = false;
        let Some(exec) = random_hex().ok().and_then(|id| id.parse::<ExecId>().ok()) else {
            return NOT_STARTED;
        };
        let Ok(entry) = self.exec_in(container, exec.clone(), process, false).await else {
            return NOT_STARTED;
        };
        let hook = Hook {
            container: container.clone(),
            exec,
            entry,
        };
        tokio::join!(
            drain(&hook.entry, Output::Stdout),
            drain(&hook.entry, Output::Stderr)
        );
        hook.entry.process.wait().await.code()
    }
}

/// A hook that runs: killed and forgotten when this is dropped.
struct Hook {
    container: Arc<Container>,
    exec: ExecId,
    entry: Arc<ProcessEntry>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.entry.process.signal(SIGKILL);
        self.container.processes.release(&self.exec);
    }
}

/// Reads an output to its end.
async fn drain(entry: &ProcessEntry, output: Output) {
    while entry
        .read(output, CHUNK)
        .await
        .is_ok_and(|data| !data.is_empty())
    {}
}
