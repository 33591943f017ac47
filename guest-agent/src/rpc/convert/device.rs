//! The wire's devices, and the rules for them, to the runtime's.

use super::{ConvertError, invalid, unsupported};
use guest_runtime::cgroup::DeviceRule;
use guest_runtime::container::{DeviceNode, DeviceSpec};
use protocols::wire::agent;

/// What a node may be used for if the spec does not say: what runc takes.
const DEFAULT_MODE: u32 = 0o666;
/// The permissions in the wire's mode; a Go client leaves its own bits of the
/// node's type beside them.
const PERMISSIONS: u32 = 0o777;

pub(super) fn device(device: agent::LinuxDevice) -> Result<DeviceSpec, ConvertError> {
    let number =
        |field, value: i64| u32::try_from(value).map_err(invalid(field, &value.to_string()));
    let numbers = || -> Result<(u32, u32), ConvertError> {
        Ok((
            number("device major", device.Major)?,
            number("device minor", device.Minor)?,
        ))
    };
    let node = match device.Type.as_str() {
        // Unbuffered is the same.
        "c" | "u" => numbers().map(|(major, minor)| DeviceNode::Character(major, minor))?,
        "b" => numbers().map(|(major, minor)| DeviceNode::Block(major, minor))?,
        "p" => DeviceNode::Fifo,
        other => return Err(unsupported(format!("device type {other:?}"))),
    };
    Ok(DeviceSpec {
        node,
        mode: match device.FileMode & PERMISSIONS {
            0 => DEFAULT_MODE,
            mode => mode,
        },
        uid: device.UID,
        gid: device.GID,
        path: device.Path.into(),
    })
}

pub(super) fn device_rule(rule: &agent::LinuxDeviceCgroup) -> Result<DeviceRule, ConvertError> {
    DeviceRule::parse(
        rule.Allow,
        &rule.Type,
        (rule.Major, rule.Minor),
        &rule.Access,
    )
    .map_err(|error| unsupported(error.to_string()))
}
