//! Questions for what is in the guest, and changes of what all containers
//! share.

use super::container::{container_id, storage};
use super::{ConvertError, invalid};
use crate::service::diagnostics::{GetMetrics, GetTerminationLog, GetVolumeStats};
use crate::service::mounts::{RemoveStaleMounts, UpdateEphemeralMounts};
use crate::service::oom::GetOomEvent;
use guest_runtime::guest_file::{Room, Usage};
use protobuf::MessageField;
use protocols::wire::agent;
use protocols::wire::agent::volume_usage::Unit;

/// The one log there is.
const TERMINATION_LOG: &str = "termination_log";

impl TryFrom<agent::GetOOMEventRequest> for GetOomEvent {
    type Error = ConvertError;

    fn try_from(_request: agent::GetOOMEventRequest) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

impl TryFrom<agent::GetMetricsRequest> for GetMetrics {
    type Error = ConvertError;

    fn try_from(_request: agent::GetMetricsRequest) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

impl TryFrom<agent::GetDiagnosticDataRequest> for GetTerminationLog {
    type Error = ConvertError;

    fn try_from(request: agent::GetDiagnosticDataRequest) -> Result<Self, ConvertError> {
        if request.log_type != TERMINATION_LOG {
            let log_type = request.log_type.chars().take(128).collect();
            return Err(ConvertError::DiagnosticLog(log_type));
        }
        let id = container_id(&request.container_id)?;
        Ok(Self { id })
    }
}

impl TryFrom<agent::VolumeStatsRequest> for GetVolumeStats {
    type Error = ConvertError;

    fn try_from(request: agent::VolumeStatsRequest) -> Result<Self, ConvertError> {
        let path = absolute("volume_guest_path", request.volume_guest_path)?;
        Ok(Self { path: path.into() })
    }
}

impl TryFrom<agent::UpdateEphemeralMountsRequest> for UpdateEphemeralMounts {
    type Error = ConvertError;

    fn try_from(request: agent::UpdateEphemeralMountsRequest) -> Result<Self, ConvertError> {
        let storages = request.storages.into_iter().map(storage);
        Ok(Self {
            storages: storages.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<agent::RemoveStaleVirtiofsShareMountsRequest> for RemoveStaleMounts {
    type Error = ConvertError;

    fn try_from(
        _request: agent::RemoveStaleVirtiofsShareMountsRequest,
    ) -> Result<Self, ConvertError> {
        Ok(Self)
    }
}

/// A path in its normal form: from the root, and never up.
pub(super) fn absolute(field: &'static str, path: String) -> Result<String, ConvertError> {
    let is_name = |name: &str| !matches!(name, "." | "..") && !name.contains('\0');
    if !path.starts_with('/') || !path.split('/').all(is_name) {
        return Err(invalid(field, &path)("no absolute path in its normal form"));
    }
    Ok(path)
}

pub(in crate::rpc) fn room_to_wire(room: Room) -> agent::VolumeStatsResponse {
    let usage = |usage: Usage, unit: Unit| {
        let mut out = agent::VolumeUsage::new();
        out.total = usage.total;
        out.used = usage.used;
        out.available = usage.available;
        out.unit = unit.into();
        out
    };
    let mut condition = agent::VolumeCondition::new();
    condition.message = "OK".into();
    let mut reply = agent::VolumeStatsResponse::new();
    reply.usage = vec![
        usage(room.bytes, Unit::BYTES),
        usage(room.inodes, Unit::INODES),
    ];
    reply.volume_condition = MessageField::some(condition);
    reply
}
