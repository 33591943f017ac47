//! Requests in, replies out: authorise, convert, call, convert. Protobuf types
//! end here.

mod agent;
mod convert;
mod health;
mod lifecycle;
mod status;

use crate::service::Agent;
use authz::Gate;
use protocols::wire::{agent_ttrpc, lifecycle_ttrpc};
use std::collections::HashMap;
use std::sync::Arc;
use ttrpc::r#async::Service;

/// The methods of `grpc.AgentService` that are served; the ttrpc server itself
/// answers UNIMPLEMENTED to every other.
pub(crate) const AGENT_METHODS: [&str; 41] = [
    "CreateContainer",
    "StartContainer",
    "RemoveContainer",
    "ExecProcess",
    "SignalProcess",
    "WaitProcess",
    "UpdateContainer",
    "StatsContainer",
    "PauseContainer",
    "ResumeContainer",
    "WriteStdin",
    "ReadStdout",
    "ReadStderr",
    "CloseStdin",
    "TtyWinResize",
    "UpdateInterface",
    "UpdateRoutes",
    "ListInterfaces",
    "ListRoutes",
    "AddARPNeighbors",
    "CreateSandbox",
    "DestroySandbox",
    "ReseedRandomDev",
    "GetGuestDetails",
    "SetGuestDateTime",
    "CopyFile",
    "OnlineCPUMem",
    "MemHotplugByProbe",
    "AddSwap",
    "AddSwapPath",
    "GetIPTables",
    "SetIPTables",
    "MemAgentMemcgSet",
    "MemAgentCompactSet",
    "UpdateEphemeralMounts",
    "RemoveStaleVirtiofsShareMounts",
    "GetDiagnosticData",
    "GetMetrics",
    "GetOOMEvent",
    "GetVolumeStats",
    "SetPolicy",
];

/// The same for `tardigrade.v1.Lifecycle`.
pub(crate) const LIFECYCLE_METHODS: [&str; 4] = ["Quiesce", "Thaw", "Release", "Exec"];

/// The handlers: what a request passes on its way to the service.
#[derive(Clone)]
pub(crate) struct Handlers {
    gate: Arc<Gate>,
    agent: Arc<Agent>,
}

/// All services, by name, as a ttrpc server takes them.
pub(crate) fn services(gate: Arc<Gate>, agent: Arc<Agent>) -> HashMap<String, Service> {
    let handlers = Arc::new(Handlers { gate, agent });
    let mut services = agent_ttrpc::create_agent_service(handlers.clone());
    services.extend(agent_ttrpc::create_health(handlers.clone()));
    services.extend(lifecycle_ttrpc::create_lifecycle(handlers));
    for (service, served) in [
        ("grpc.AgentService", AGENT_METHODS.as_slice()),
        ("tardigrade.v1.Lifecycle", LIFECYCLE_METHODS.as_slice()),
    ] {
        if let Some(service) = services.get_mut(service) {
            service
                .methods
                .retain(|method, _| served.contains(&method.as_str()));
        }
    }
    services
}
