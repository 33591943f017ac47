//! Which devices may be used in a cgroup (OCI `config-linux.md`, "Device
//! allowlist"): cgroup v2 has no file for it, but asks a program.
//!
//! Of the rules about one device the last counts, for each kind of access by
//! itself, as in cgroup v1. What no rule is about is denied. The agent puts
//! rules of its own around those of a spec:
//!
//! - what every container has (OCI, "Default Devices") is allowed, and so is to
//!   make nodes, which lead nowhere;
//! - memory and I/O ports, and what the agent talks to the host by, are denied
//!   whatever a spec says;
//! - a rule for many devices at once is none for the disks among them, which
//!   have to be allowed by both numbers.

mod program;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

pub(super) use program::DeviceProgram;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Block and character devices.
    Any,
    /// Block devices.
    Block,
    /// Character devices.
    Character,
}

/// Kinds of access, a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAccess(u8);

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    allow: bool,
    kind: DeviceKind,
    /// None is every one.
    major: Option<u32>,
    minor: Option<u32>,
    access: DeviceAccess,
}

/// A rule that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device rule with {what} {value:?}")]
pub struct UnknownDeviceRule {
    what: &'static str,
    value: String,
}

impl DeviceAccess {
    /// To make a node of it (`BPF_DEVCG_ACC_*`, linux/bpf.h).
    const MAKE: Self = Self(1);
    const READ: Self = Self(2);
    const WRITE: Self = Self(4);
    const ALL: Self = Self(7);

    fn parse(text: &str) -> Option<Self> {
        let mut bits = text.chars().map(|letter| match letter {
            'r' => Some(Self::READ.0),
            'w' => Some(Self::WRITE.0),
            'm' => Some(Self::MAKE.0),
            _ => None,
        });
        let set = bits.try_fold(0, |set, bit| Some(set | bit?))?;
        (set != 0).then_some(Self(set))
    }
}

impl DeviceRule {
    /// The OCI form. A number of -1 is every number, and so is a major number
    /// of 0, which no device has: on the wire it is what is not said. A minor
    /// number of 0 may be meant or not said: it is 0 for what is allowed, and
    /// every number for what is denied.
    ///
    /// # Errors
    /// What has no meaning.
    pub fn parse(
        allow: bool,
        kind: &str,
        (major, minor): (i64, i64),
        access: &str,
    ) -> Result<Self, UnknownDeviceRule> {
        let unknown = |what, value: String| UnknownDeviceRule { what, value };
        let kind = match kind {
            "a" | "" => DeviceKind::Any,
            "b" => DeviceKind::Block,
            "c" | "u" => DeviceKind::Character,
            kind => return Err(unknown("type", kind.into())),
        };
        let number = |what, value: i64| match value {
            -1 => Ok(None),
            value => u32::try_from(value)
                .map(Some)
                .map_err(|_| unknown(what, value.to_string())),
        };
        let major = number("major number", major)?.filter(|major| *major != 0);
        let is_said = |minor: &u32| *minor != 0 || (allow && major.is_some());
        let minor = number("minor number", minor)?.filter(is_said);
        Ok(Self {
            allow,
            kind,
            major,
            minor,
            access: DeviceAccess::parse(access)
                .ok_or_else(|| unknown("access", access.chars().take(16).collect()))?,
        })
    }

    fn exactly(allow: bool, major: u32, minor: u32) -> Self {
        Self {
            allow,
            kind: DeviceKind::Character,
            major: Some(major),
            minor: Some(minor),
            access: DeviceAccess::ALL,
        }
    }
}

/// Character devices of every container: null, zero, full, random, urandom, tty,
/// console and ptmx (Documentation/admin-guide/devices.txt).
const DEFAULT: [(u32, u32); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];
/// The terminals of a devpts.
const TERMINALS: u32 = 136;
/// Character devices of no container: mem, kmem and port.
const NEVER: [(u32, u32); 3] = [(1, 1), (1, 2), (1, 4)];
/// Classes of devices that lead to the host, and names in them; none is all.
const TRANSPORTS: [(&str, Option<&str>); 3] = [
    ("/sys/class/misc", Some("vsock")),
    ("/sys/class/misc", Some("vhost-vsock")),
    ("/sys/class/virtio-ports", None),
];

/// The rules of a spec between those of the agent; the last counts.
fn with_own(rules: &[DeviceRule], transports: &[(u32, u32)]) -> Vec<DeviceRule> {
    let make = |kind| DeviceRule {
        allow: true,
        kind,
        major: None,
        minor: None,
        access: DeviceAccess::MAKE,
    };
    let mut all: Vec<DeviceRule> = rules.iter().flat_map(without_disks).collect();
    all.push(make(DeviceKind::Any));
    all.extend(
        DEFAULT
            .iter()
            .map(|(major, minor)| DeviceRule::exactly(true, *major, *minor)),
    );
    all.push(DeviceRule {
        minor: None,
        ..DeviceRule::exactly(true, TERMINALS, 0)
    });
    let never = NEVER.iter().chain(transports);
    all.extend(never.map(|(major, minor)| DeviceRule::exactly(false, *major, *minor)));
    all
}

/// The rule, or what is left of it for character devices if it allows disks
/// without naming one.
fn without_disks(rule: &DeviceRule) -> Option<DeviceRule> {
    let names_one = rule.major.is_some() && rule.minor.is_some();
    match rule.kind {
        _ if !rule.allow || names_one => Some(*rule),
        DeviceKind::Character => Some(*rule),
        DeviceKind::Any => Some(DeviceRule {
            kind: DeviceKind::Character,
            ..*rule
        }),
        DeviceKind::Block => None,
    }
}

/// The numbers of the devices that lead to the host, as sysfs has them.
fn transports() -> Vec<(u32, u32)> {
    TRANSPORTS
        .iter()
        .flat_map(|(class, name)| match name {
            Some(name) => vec![Path::new(class).join(name)],
            None => fs::read_dir(class)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect(),
        })
        .filter_map(|device| fs::read_to_string(device.join("dev")).ok())
        .filter_map(|text| {
            let (major, minor) = text.trim().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .collect()
}
