//! What a build and a save have in common: the guest's way into the freeze.

use std::time::Duration;

use agent_client::{AgentClient, Purpose, QuiesceId};
use hypervisor::Vm;
use protocols::{AgentAddress, Link};

use super::BuildError;
use crate::config::SandboxId;
use crate::timeline::{Timeline, now};

/// A Quiesce, or the beginning of a session.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// From asking a link to close to its end.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

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
pub(super) async fn close(link: Link, sandbox: &SandboxId) -> Result<(), BuildError> {
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
pub(super) async fn begin_anew(agent: &AgentAddress) -> Result<Option<Link>, BuildError> {
    if !matches!(agent, AgentAddress::Serial { .. }) {
        return Ok(None);
    }
    Link::connect(agent, CALL_DEADLINE)
        .await
        .map(Some)
        .map_err(BuildError::Session)
}

/// Notes the spans of a VM's last verb.
pub(super) fn note_verb(vm: &dyn Vm, timeline: &Timeline) {
    for span in vm.spans() {
        let end = span.start_ns.saturating_add(span.duration_ns);
        timeline.record(span.name, span.start_ns, end);
    }
}
