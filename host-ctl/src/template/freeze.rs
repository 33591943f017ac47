//! What a build and a save have in common: the guest's way into the freeze.

use std::time::Duration;

use agent_client::{AgentClient, Purpose, QuiesceId};
use hypervisor::Vm;
use protocols::{AgentAddress, Link};

use super::BuildError;
use crate::config::SandboxId;
use crate::sandbox::agent::address;
use crate::store::Staging;
use crate::timeline::{Timeline, now};

/// A Quiesce, or the beginning of a session.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// From asking a link to close to its end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// A guest that is frozen: its workload does nothing until a thaw.
pub(super) struct Quiet {
    pub(super) quiesce_id: QuiesceId,
    pub(super) agent_version: String,
}

/// What a save has left; its VM is to be killed then.
pub(super) struct Frozen {
    pub(super) quiesce_id: QuiesceId,
    pub(super) agent_version: String,
    /// Bytes that were written.
    pub(super) state_bytes: u64,
    /// Time of the save verb.
    pub(super) save: Duration,
}

/// What the steps of [`Quiet::save`] are called, see [`crate::timeline::step`].
#[derive(Clone, Copy)]
pub(super) struct SaveSteps {
    pub(super) close: &'static str,
    pub(super) save: &'static str,
}

impl Quiet {
    /// Saves the VM of this guest, over whose link nothing else is said any
    /// more. It is to be killed then, whatever came of it.
    ///
    /// # Errors
    /// The first step that failed.
    pub(super) async fn save(
        self,
        vm: &dyn Vm,
        link: Link,
        sandbox: &SandboxId,
        staging: &Staging,
        steps: SaveSteps,
        timeline: &Timeline,
    ) -> Result<Frozen, BuildError> {
        let rest = {
            let _span = timeline.step(steps.close);
            close(link, sandbox).await?;
            begin_anew(&address(&vm.record().agent)).await?
        };
        let _span = timeline.step(steps.save);
        vm.pause().await.map_err(BuildError::vm("pause the VM"))?;
        note_verb(vm, timeline);
        let saved = vm.save(staging.path()).await;
        note_verb(vm, timeline);
        drop(rest);
        let saved = saved.map_err(BuildError::vm("save the VM"))?;
        if saved.memory_file.as_ref() != Some(&staging.memory()) {
            return Err(BuildError::NoMemory);
        }
        Ok(Frozen {
            quiesce_id: self.quiesce_id,
            agent_version: self.agent_version,
            state_bytes: saved.bytes,
            save: saved.duration,
        })
    }
}

/// Has the guest freeze its workload.
///
/// # Errors
/// When it refuses: it runs on. One that has not answered may be frozen.
pub(super) async fn quiesce(
    client: &AgentClient,
    timeline: &Timeline,
) -> Result<QuiesceId, BuildError> {
    let begun = now();
    let quiesced = client
        .quiesce(Purpose::Template, CALL_DEADLINE)
        .await
        .map_err(BuildError::agent("quiesce the guest"))?;
    let steps = quiesced.steps.into_iter().map(|step| {
        let took = Duration::from_micros(step.micros);
        (format!("guest: {}", step.name), took)
    });
    timeline.record_sequence(begun, steps);
    Ok(quiesced.quiesce_id)
}

/// A guest is not saved in mid-sentence.
async fn close(link: Link, sandbox: &SandboxId) -> Result<(), BuildError> {
    let watched = link.clone();
    link.close();
    tokio::time::timeout(CLOSE_DEADLINE, watched.closed())
        .await
        .map_err(|_| BuildError::StillConnected(sandbox.clone()))
}

/// Begins a session in which nothing is said, where there are sessions. That
/// the guest answers it shows that it is done with the one before: what
/// remained of that, every clone would have to clear away before it can listen.
/// Connections of vsock would only be reset in every clone.
async fn begin_anew(agent: &AgentAddress) -> Result<Option<Link>, BuildError> {
    if !matches!(agent, AgentAddress::Serial { .. }) {
        return Ok(None);
    }
    Link::connect(agent, CALL_DEADLINE)
        .await
        .map(Some)
        .map_err(BuildError::Session)
}

/// Notes the spans of a VM's last verb.
fn note_verb(vm: &dyn Vm, timeline: &Timeline) {
    for span in vm.spans() {
        let end = span.start_ns.saturating_add(span.duration_ns);
        timeline.record(span.name, span.start_ns, end);
    }
}
