//! A copy that nobody thawed: somebody restored a saved state of this machine
//! and let it run. Where the kernel is told so by the VMM, the workload is frozen
//! at once, until a quiesce, a thaw and a release that are this copy's own.

use super::{Agent, FREEZE_DEADLINE};
use guest_runtime::kernel_word::{self, Heard, KernelWord};
use slog::{error, info, warn};
use std::sync::Arc;
use std::time::Instant;

impl Agent {
    /// Listens for the kernel's word, from now on and for as long as the agent
    /// lives; nothing is done on a kernel that does not give it.
    pub(crate) fn watch_for_copies(self: &Arc<Self>) {
        if !kernel_word::is_given() {
            return;
        }
        let word = match KernelWord::listen() {
            Ok(word) => word,
            Err(error) => {
                warn!(self.log, "copies are not watched for"; "error" => %error);
                return;
            }
        };
        info!(self.log, "copies are watched for");
        let agent = Arc::clone(self);
        tokio::spawn(agent.listen(word));
    }

    async fn listen(self: Arc<Self>, mut word: KernelWord) {
        loop {
            match word.next().await {
                Ok(Heard::Copied) => self.copied().await,
                Ok(Heard::Lost) => {
                    warn!(
                        self.log,
                        "lines of the kernel's were lost: a copy may go unnoticed"
                    );
                }
                Err(error) => {
                    error!(self.log, "copies are watched for no longer"; "error" => %error);
                    return;
                }
            }
        }
    }

    /// What is frozen first is said afterwards: a console is slow.
    async fn copied(&self) {
        if self.lifecycle.copied(Instant::now()) {
            return;
        }
        let frozen = match &self.launcher {
            Some(launcher) => launcher.workload().freeze(FREEZE_DEADLINE).await,
            None => Ok(()),
        };
        match frozen {
            Ok(()) => error!(
                self.log,
                "this machine is a copy that nobody has thawed: its workload is frozen"
            ),
            Err(error) => error!(
                self.log,
                "this machine is a copy that nobody has thawed, and its workload does not stand still";
                "error" => %error
            ),
        }
    }
}
