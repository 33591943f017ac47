//! Every message that a client can send, on the way it goes: decoded, shown to
//! a policy, authorised, converted to the service's own request.
//!
//! The first byte of an input says which message the others are.

use crate::service::container::{CreateContainer, RemoveContainer, StartContainer};
use crate::service::control::{PauseContainer, ResumeContainer, StatsContainer, UpdateContainer};
use crate::service::diagnostics::{GetMetrics, GetTerminationLog, GetVolumeStats};
use crate::service::files::CopyFile;
use crate::service::hotplug::{AddSwap, AddSwapDevice, OnlineResources, ProbeMemory};
use crate::service::lifecycle::{Quiesce, Release, Thaw};
use crate::service::machine::{
    CreateSandbox, DestroySandbox, GetGuestDetails, ReseedRandomDevice, SetGuestDateTime,
};
use crate::service::memory_agent::{SetMemoryCompaction, SetMemoryReclaim};
use crate::service::mounts::{RemoveStaleMounts, UpdateEphemeralMounts};
use crate::service::network::{
    AddNeighbors, ListInterfaces, ListRoutes, UpdateInterface, UpdateRoutes,
};
use crate::service::oom::GetOomEvent;
use crate::service::packet_filter::{GetPacketFilter, SetPacketFilter};
use crate::service::process::{
    CloseStdin, ExecProcess, ReadStream, ResizeTerminal, SignalProcess, WaitProcess, WriteStdin,
};
use crate::service::streams::ExecStream;
use crate::{seeds, structure};
use authz::{Gate, Request};
use policy::Policy;
use protobuf::reflect::MessageDescriptor;
use protobuf::{Message as _, MessageFull};
use protocols::wire::{agent, lifecycle};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// The one message to try, by its name; none tries all.
const ONE: &str = "FUZZ_MESSAGE";
/// Has the names of all messages printed.
const LIST: &str = "FUZZ_LIST";

struct Message {
    name: &'static str,
    descriptor: fn() -> MessageDescriptor,
    run: fn(&[u8]),
}

macro_rules! messages {
    ($($wire:ty, $run:expr;)*) => {
        const MESSAGES: &[Message] = &[$(Message {
            name: <$wire as protobuf::Message>::NAME,
            descriptor: <$wire as MessageFull>::descriptor,
            run: $run,
        }),*];
    };
}

macro_rules! served {
    ($wire:ty, $domain:ty) => {
        |bytes| drop(converted::<$wire, $domain>(bytes))
    };
}

messages! {
    agent::CreateContainerRequest, |bytes| {
        if let Some(create) = converted::<agent::CreateContainerRequest, CreateContainer>(bytes) {
            let _ = create.spec.validate();
        }
    };
    agent::StartContainerRequest, served!(agent::StartContainerRequest, StartContainer);
    agent::RemoveContainerRequest, served!(agent::RemoveContainerRequest, RemoveContainer);
    agent::ExecProcessRequest, |bytes| {
        if let Some(exec) = converted::<agent::ExecProcessRequest, ExecProcess>(bytes) {
            let _ = exec.process.validate();
        }
    };
    agent::SignalProcessRequest, served!(agent::SignalProcessRequest, SignalProcess);
    agent::WaitProcessRequest, served!(agent::WaitProcessRequest, WaitProcess);
    agent::UpdateContainerRequest, served!(agent::UpdateContainerRequest, UpdateContainer);
    agent::UpdateEphemeralMountsRequest,
        served!(agent::UpdateEphemeralMountsRequest, UpdateEphemeralMounts);
    agent::StatsContainerRequest, served!(agent::StatsContainerRequest, StatsContainer);
    agent::PauseContainerRequest, served!(agent::PauseContainerRequest, PauseContainer);
    agent::ResumeContainerRequest, served!(agent::ResumeContainerRequest, ResumeContainer);
    agent::RemoveStaleVirtiofsShareMountsRequest,
        served!(agent::RemoveStaleVirtiofsShareMountsRequest, RemoveStaleMounts);
    agent::GetDiagnosticDataRequest, served!(agent::GetDiagnosticDataRequest, GetTerminationLog);
    agent::WriteStreamRequest, served!(agent::WriteStreamRequest, WriteStdin);
    agent::ReadStreamRequest, served!(agent::ReadStreamRequest, ReadStream);
    agent::CloseStdinRequest, served!(agent::CloseStdinRequest, CloseStdin);
    agent::TtyWinResizeRequest, served!(agent::TtyWinResizeRequest, ResizeTerminal);
    agent::UpdateInterfaceRequest, served!(agent::UpdateInterfaceRequest, UpdateInterface);
    agent::UpdateRoutesRequest, served!(agent::UpdateRoutesRequest, UpdateRoutes);
    agent::ListInterfacesRequest, served!(agent::ListInterfacesRequest, ListInterfaces);
    agent::ListRoutesRequest, served!(agent::ListRoutesRequest, ListRoutes);
    agent::AddARPNeighborsRequest, served!(agent::AddARPNeighborsRequest, AddNeighbors);
    agent::GetIPTablesRequest, served!(agent::GetIPTablesRequest, GetPacketFilter);
    agent::SetIPTablesRequest, served!(agent::SetIPTablesRequest, SetPacketFilter);
    agent::GetMetricsRequest, served!(agent::GetMetricsRequest, GetMetrics);
    agent::MemAgentMemcgConfig, served!(agent::MemAgentMemcgConfig, SetMemoryReclaim);
    agent::MemAgentCompactConfig, served!(agent::MemAgentCompactConfig, SetMemoryCompaction);
    agent::CreateSandboxRequest, served!(agent::CreateSandboxRequest, CreateSandbox);
    agent::DestroySandboxRequest, served!(agent::DestroySandboxRequest, DestroySandbox);
    agent::OnlineCPUMemRequest, served!(agent::OnlineCPUMemRequest, OnlineResources);
    agent::ReseedRandomDevRequest, served!(agent::ReseedRandomDevRequest, ReseedRandomDevice);
    agent::GuestDetailsRequest, served!(agent::GuestDetailsRequest, GetGuestDetails);
    agent::MemHotplugByProbeRequest, served!(agent::MemHotplugByProbeRequest, ProbeMemory);
    agent::SetGuestDateTimeRequest, served!(agent::SetGuestDateTimeRequest, SetGuestDateTime);
    agent::CopyFileRequest, served!(agent::CopyFileRequest, CopyFile);
    agent::GetOOMEventRequest, served!(agent::GetOOMEventRequest, GetOomEvent);
    agent::AddSwapRequest, served!(agent::AddSwapRequest, AddSwapDevice);
    agent::AddSwapPathRequest, served!(agent::AddSwapPathRequest, AddSwap);
    agent::VolumeStatsRequest, served!(agent::VolumeStatsRequest, GetVolumeStats);
    agent::SetPolicyRequest, set_policy;
    lifecycle::QuiesceRequest, served!(lifecycle::QuiesceRequest, Quiesce);
    lifecycle::ThawRequest, served!(lifecycle::ThawRequest, Thaw);
    lifecycle::ReleaseRequest, served!(lifecycle::ReleaseRequest, Release);
    lifecycle::ExecRequest, served!(lifecycle::ExecRequest, ExecStream);
    // Judged, and not served.
    agent::ResizeVolumeRequest, judged::<agent::ResizeVolumeRequest>;
    lifecycle::CopyRequest, judged::<lifecycle::CopyRequest>;
    lifecycle::ForwardRequest, judged::<lifecycle::ForwardRequest>;
    lifecycle::LogsRequest, judged::<lifecycle::LogsRequest>;
    lifecycle::EventsRequest, judged::<lifecycle::EventsRequest>;
    // Health: neither judged nor looked at.
    agent::CheckRequest, |bytes| drop(agent::CheckRequest::parse_from_bytes(bytes));
}

fn converted<W: Request, D: TryFrom<W>>(bytes: &[u8]) -> Option<D> {
    let message = W::parse_from_bytes(bytes).ok()?;
    let _ = authz::questions(&message);
    let gate = Gate::new(Policy::AllowAll);
    let authorized = gate.authorize(message).ok()?.convert::<D>().ok()?;
    Some(authorized.into_inner())
}

fn judged<W: Request>(bytes: &[u8]) {
    if let Ok(message) = W::parse_from_bytes(bytes) {
        let _ = authz::questions(&message);
    }
}

fn set_policy(bytes: &[u8]) {
    if let Ok(message) = agent::SetPolicyRequest::parse_from_bytes(bytes) {
        let _ = authz::questions(&message);
        let _ = Gate::new(Policy::AllowAll).set_policy(&message);
    }
}

/// Once, before the first input.
///
/// # Panics
/// A method's message is missing here.
pub fn begin() {
    let files = [agent::file_descriptor(), lifecycle::file_descriptor()];
    let methods = files
        .into_iter()
        .flat_map(|file| file.services().collect::<Vec<_>>())
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    let all: BTreeSet<String> = methods
        .map(|method| method.input_type().name().to_owned())
        .collect();
    let known: BTreeSet<String> = MESSAGES.iter().map(|one| one.name.to_owned()).collect();
    assert_eq!(all, known, "the messages of the services");
    if std::env::var_os(LIST).is_some() {
        known.iter().for_each(|name| println!("{name}"));
        std::process::exit(0);
    }
    structure::write_seeds(inputs());
}

fn one() -> Option<usize> {
    static ONE_OF: OnceLock<Option<usize>> = OnceLock::new();
    *ONE_OF.get_or_init(|| {
        let name = std::env::var(ONE).ok()?;
        let found = MESSAGES.iter().position(|message| message.name == name);
        Some(found.expect("a message of that name"))
    })
}

fn inputs() -> Vec<Vec<u8>> {
    let wanted = |index: &usize| one().is_none_or(|one| one == *index);
    (0..MESSAGES.len())
        .filter(wanted)
        .flat_map(|index| {
            let descriptor = (MESSAGES[index].descriptor)();
            let messages = structure::first(&descriptor).into_iter();
            let messages = messages.chain(seeds::of(MESSAGES[index].name));
            messages.map(move |message| [vec![index as u8], message].concat())
        })
        .collect()
}

/// One input.
pub fn run(input: &[u8]) {
    if let Some((which, bytes)) = input.split_first() {
        (MESSAGES[usize::from(*which) % MESSAGES.len()].run)(bytes);
    }
}

/// See [`structure::mutate`].
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let size = size.max(1);
    if max_size == 0 {
        return 0;
    }
    let which = one().unwrap_or_else(|| usize::from(data[0]) % MESSAGES.len());
    data[0] = which as u8;
    let descriptor = (MESSAGES[which].descriptor)();
    structure::mutate(data, 1, size, max_size, seed, &descriptor)
}
