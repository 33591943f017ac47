//! What a boot and a restore have in common: a VM with its agent, the moments
//! of its making, and the way down.

use super::console::Console;
use super::identity::Uuid;
use super::network::Attached;
use crate::host::RunDirectory;
use crate::timeline::{Timeline, now};
use agent_client::{Generation, Identity, Step};
use hypervisor::{Hypervisor, Vm};
use protocols::Link;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// The moments every making is measured by, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    /// The VMM has loaded the state; for a boot, has been started.
    pub vmm: u64,
    /// The vCPUs run.
    pub vcpu: u64,
    /// The agent has answered: a clone's receipt, a boot's first reply.
    pub agent: u64,
    /// The workload runs.
    pub released: u64,
}

/// A sandbox that was made and can be handed over.
pub struct Made {
    /// The VM.
    pub vm: Box<dyn Vm>,
    /// The link to its agent.
    pub link: Link,
    /// Its console, when it is read already.
    pub console: Option<Console>,
    /// What the guest answers to, read back from it; a boot draws its own and
    /// does not tell.
    pub identity: Option<Identity>,
    /// The name of this life; a boot draws its own and does not tell.
    pub generation: Option<Generation>,
    /// How far the guest's clock was from the host's when it was set right, at
    /// most.
    pub clock_error_nanos: Option<u64>,
    /// From the thaw's request, or the resume if that was later, to its receipt
    /// by the host's clock.
    pub round_trip_nanos: Option<u64>,
    /// What a thaw cannot make unique, as the agent names it.
    pub not_unique: Vec<String>,
    /// When it got where.
    pub moments: Moments,
}

/// Where a sandbox is made, and by what.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Its run directory.
    pub directory: &'a RunDirectory,
    /// The UUID of its VM.
    pub uuid: Uuid,
    /// What makes its VM.
    pub hypervisor: &'a dyn Hypervisor,
    /// What its interface is connected to, fenced; none if it has none.
    pub network: Option<&'a Attached>,
    /// The cgroup its VMM is started in; none for ours.
    pub cgroup: Option<&'a Path>,
    /// Where the time goes.
    pub timeline: &'a Timeline,
}

/// A VM on its way, with the clock running.
pub(super) struct Making {
    pub(super) vm: Box<dyn Vm>,
    pub(super) moments: Moments,
    pub(super) timeline: Timeline,
}

impl Making {
    /// Notes the spans of the VM's last verb.
    pub(super) fn note_verb(&self) {
        for span in self.vm.spans() {
            let end = span.start_ns.saturating_add(span.duration_ns);
            self.timeline.record(span.name, span.start_ns, end);
        }
    }

    /// Runs a step: a span, and a place where a test can kill us.
    pub(super) async fn step<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let _span = self.timeline.step(name);
        work.await
    }

    /// The way down of everything that has a VM.
    pub(super) async fn down(self) -> Result<(), hypervisor::Error> {
        self.vm.kill().await
    }
}

/// Notes a call to the agent that began at `begun` and is answered now, and the
/// steps the guest has taken for it. Only their lengths are known; what is left
/// of the time is taken to be the way there and the way back.
pub(super) fn note_call(timeline: &Timeline, begun: u64, steps: &[Step]) {
    let answered = now();
    let took = |step: &Step| Duration::from_micros(step.micros);
    let whole: Duration = steps.iter().map(took).sum();
    let whole = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    let spare = answered.saturating_sub(begun).saturating_sub(whole);
    let start = begun.saturating_add(spare / 2);
    timeline.record("agent link: request on its way", begun, start);
    let named = steps
        .iter()
        .map(|step| (format!("guest: {}", step.name), took(step)));
    timeline.record_sequence(start, named);
    let end = start.saturating_add(whole).min(answered);
    timeline.record("agent link: reply on its way", end, answered);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_explained_from_its_begin_to_its_end() {
        let timeline = Timeline::new();
        let begun = now().saturating_sub(10_000_000);
        let steps = ["clock_settime", "sethostname"].map(|name| Step {
            name: name.into(),
            micros: 2_000,
        });
        note_call(&timeline, begun, &steps);
        let report = timeline.report();
        assert_eq!(report.spans.len(), 4);
        assert_eq!(report.spans[1].name, "guest: clock_settime");
        assert!(report.coverage() > 99.9, "{}", report.table());
        assert_eq!(report.spans[0].start, begun);
    }

    #[test]
    fn a_guest_that_claims_more_time_than_passed_harms_nobody() {
        let timeline = Timeline::new();
        let endless = Step {
            name: "x".into(),
            micros: u64::MAX,
        };
        note_call(&timeline, now(), &[endless]);
        assert!(timeline.report().coverage() <= 100.0);
    }
}
