//! The sandbox, its clock and its randomness.

use super::ConvertError;
use super::container::storage;
use super::diagnostics::absolute;
use crate::service::machine::{
    CreateSandbox, DestroySandbox, GetGuestDetails, GuestDetails, KernelModule, ReseedRandomDevice,
    SetGuestDateTime,
};
use crate::service::secret::Secret;
use protobuf::MessageField;
use protocols::wire::agent;

impl TryFrom<agent::CreateSandboxRequest> for CreateSandbox {
    type Error = ConvertError;

    fn try_from(request: agent::CreateSandboxRequest) -> Result<Self, ConvertError> {
        let hooks = request.guest_hook_path;
        let hooks = (!hooks.is_empty()).then(|| absolute("guest_hook_path", hooks));
        Ok(Self {
            guest_hooks: hooks.transpose()?.map(Into::into),
            hostname: request.hostname,
            dns: request.dns,
            storages: request
                .storages
                .into_iter()
                .map(storage)
                .collect::<Result<_, _>>()?,
            kernel_modules: request
                .kernel_modules
                .into_iter()
                .map(kernel_module)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn kernel_module(module: agent::KernelModule) -> Result<KernelModule, ConvertError> {
    if module.name.is_empty() {
        return Err(ConvertError::Missing {
            field: "kernel_modules.name",
        });
    }
    Ok(KernelModule {
        name: module.name,
        parameters: module.parameters,
    })
}

impl TryFrom<agent::DestroySandboxRequest> for DestroySandbox {
    type Error = ConvertError;

    fn try_from(_request: agent::DestroySandboxRequest) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

impl TryFrom<agent::GuestDetailsRequest> for GetGuestDetails {
    type Error = ConvertError;

    fn try_from(_request: agent::GuestDetailsRequest) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

impl TryFrom<agent::ReseedRandomDevRequest> for ReseedRandomDevice {
    type Error = ConvertError;

    fn try_from(request: agent::ReseedRandomDevRequest) -> Result<Self, ConvertError> {
        if request.data.is_empty() {
            return Err(ConvertError::Missing { field: "data" });
        }
        Ok(Self {
            data: Secret::new(request.data),
        })
    }
}

impl TryFrom<agent::SetGuestDateTimeRequest> for SetGuestDateTime {
    type Error = ConvertError;

    fn try_from(request: agent::SetGuestDateTimeRequest) -> Result<Self, ConvertError> {
        let nanos = request
            .Sec
            .checked_mul(1_000_000_000)
            .and_then(|nanos| nanos.checked_add(request.Usec.checked_mul(1_000)?));
        let out_of_range = || ConvertError::Value {
            field: "Sec",
            value: request.Sec.to_string(),
            reason: "out of range".into(),
        };
        Ok(Self {
            realtime_nanos: nanos.ok_or_else(out_of_range)?,
        })
    }
}

pub(in crate::rpc) fn details_to_wire(details: GuestDetails) -> agent::GuestDetailsResponse {
    let mut agent_details = agent::AgentDetails::new();
    agent_details.version = env!("CARGO_PKG_VERSION").into();
    agent_details.init_daemon = details.is_init;
    agent_details.storage_handlers = guest_runtime::storage::DRIVERS
        .iter()
        .map(ToString::to_string)
        .collect();
    agent_details.extra_features = vec!["agent-policy".into()];
    if details.watches_for_copies {
        agent_details.extra_features.push("copy-watch".into());
    }
    let mut reply = agent::GuestDetailsResponse::new();
    reply.mem_block_size_bytes = details.memory_block_size;
    reply.support_mem_hotplug_probe = details.memory_hotplug_probe;
    reply.agent_details = MessageField::some(agent_details);
    reply
}
