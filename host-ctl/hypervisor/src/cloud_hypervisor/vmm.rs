//! A Cloud Hypervisor process: asking, and noting how long each answer took.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, MonitorError};
use crate::rest::{Request, RestVmm};
use crate::span::{Timeline, now};
use crate::vm::{Deadlines, VmState};

/// Its requests. The version of its interface has never changed.
pub(super) mod path {
    pub(in super::super) const PING: &str = "/api/v1/vmm.ping";
    pub(in super::super) const CREATE: &str = "/api/v1/vm.create";
    pub(in super::super) const ADD_NET: &str = "/api/v1/vm.add-net";
    pub(in super::super) const BOOT: &str = "/api/v1/vm.boot";
    pub(in super::super) const INFO: &str = "/api/v1/vm.info";
    pub(in super::super) const PAUSE: &str = "/api/v1/vm.pause";
    pub(in super::super) const RESUME: &str = "/api/v1/vm.resume";
    pub(in super::super) const SNAPSHOT: &str = "/api/v1/vm.snapshot";
    pub(in super::super) const RESTORE: &str = "/api/v1/vm.restore";
    pub(in super::super) const POWER_BUTTON: &str = "/api/v1/vm.power-button";
}

/// Cloud Hypervisor, running.
pub(super) struct Vmm {
    pub(super) rest: RestVmm,
    pub(super) deadlines: Deadlines,
    pub(super) timeline: Timeline,
}

impl Vmm {
    /// One request, which is a step of its own in the timeline.
    pub(super) async fn ask(
        &self,
        verb: &'static str,
        request: Request<'_>,
        deadline: Duration,
    ) -> Result<Value, Error> {
        let (name, begun) = (request.path, now());
        let answer = self.rest.ask(verb, request, deadline).await?;
        self.timeline.since(name, begun);
        Ok(answer)
    }

    /// What the VM does, in the VMM's words.
    pub(super) async fn state(&self, verb: &'static str) -> Result<VmState, Error> {
        let request = Request::get(path::INFO);
        let info = self.ask(verb, request, self.deadlines.command).await?;
        Ok(state_of(info["state"].as_str().unwrap_or_default()))
    }

    /// Has the VM change its state. The VMM refuses what is so already; then it
    /// is asked, and nothing happens.
    pub(super) async fn change(
        &self,
        verb: &'static str,
        request: Request<'_>,
        to: VmState,
    ) -> Result<(), Error> {
        match self.ask(verb, request, self.deadlines.command).await {
            Err(refused @ Error::Monitor(MonitorError::Refused { .. })) => {
                if self.state(verb).await? == to {
                    Ok(())
                } else {
                    Err(refused)
                }
            }
            changed => changed.map(drop),
        }
    }
}

/// The VMM's states (VmState of its API) as ours. `Created` is one that was
/// described and never began.
pub(super) fn state_of(word: &str) -> VmState {
    match word {
        "Running" => VmState::Running,
        "Paused" | "BreakPoint" => VmState::Paused,
        _ => VmState::Halted,
    }
}

/// A save or restore that the VMM refused, as such.
pub(super) fn refused(verb: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| match error {
        Error::Monitor(MonitorError::Refused { reason, .. }) => Error::Migration { verb, reason },
        error => error,
    }
}
