//! After-thaw hooks: what a container asked to have run in it once it is
//! unique and runs again.

use super::Agent;
use super::container::Container;
use super::lifecycle::HookOutcome;
use guest_runtime::ExecId;
use std::sync::Arc;
use std::time::Duration;

/// What a hook that could not be started is reported as, like a shell would.
const NOT_STARTED: i32 = 127;
const SIGKILL: i32 = 9;

impl Agent {
    /// Runs the hooks of all containers, one after the other, each with its
    /// own deadline. A hook that fails is reported and keeps nobody back.
    pub(super) async fn run_hooks(&self, deadline: Duration) -> Vec<HookOutcome> {
        let mut outcomes = Vec::new();
        for container in self.registry.all() {
            for (index, hook) in container.after_thaw_hooks.iter().enumerate() {
                outcomes.push(self.run_hook(&container, index, hook, deadline).await);
            }
        }
        outcomes
    }

    async fn run_hook(
        &self,
        container: &Arc<Container>,
        index: usize,
        args: &[String],
        deadline: Duration,
    ) -> HookOutcome {
        let mut outcome = HookOutcome {
            container: container.id.to_string(),
            path: args.first().cloned().unwrap_or_default(),
            exit_status: NOT_STARTED,
            timed_out: false,
        };
        let mut process = container.spec.process.clone();
        process.args = args.to_vec();
        process.terminal = false;
        let Ok(exec) = format!("after-thaw-{index}").parse::<ExecId>() else {
            return outcome;
        };
        let Ok(entry) = self.exec_in(container, exec.clone(), process, false).await else {
            return outcome;
        };
        match tokio::time::timeout(deadline, entry.process.wait()).await {
            Ok(status) => outcome.exit_status = status.code(),
            Err(_) => {
                outcome.timed_out = true;
                // It may have ended in this very moment.
                let _ = entry.process.signal(SIGKILL);
            }
        }
        container.processes.release(&exec);
        outcome
    }
}
