//! Linux capabilities by name, capabilities(7).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The names, in the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// One capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(u8);

/// A name that is no capability's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no capability of that name")]
pub struct UnknownCapability;

/// The five sets of a process, capabilities(7).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// What execve(2) may ever give.
    pub bounding: Vec<Capability>,
    /// What the kernel checks.
    pub effective: Vec<Capability>,
    /// What is kept over an execve(2) of a file that has it inheritable.
    pub inheritable: Vec<Capability>,
    /// What may be made effective.
    pub permitted: Vec<Capability>,
    /// What is kept over every execve(2).
    pub ambient: Vec<Capability>,
}

impl Capability {
    /// Every capability this program knows.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).zip(NAMES).map(|(number, _)| Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its bit in a set of 64.
    pub(crate) fn bit(self) -> u64 {
        1 << self.0
    }
}

impl FromStr for Capability {
    type Err = UnknownCapability;

    /// The OCI form, `CAP_CHOWN`.
    fn from_str(text: &str) -> Result<Self, UnknownCapability> {
        Self::all()
            .find(|capability| capability.to_string() == text)
            .ok_or(UnknownCapability)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(NAMES.get(usize::from(self.0)).copied().unwrap_or("CAP_?"))
    }
}

impl TryFrom<String> for Capability {
    type Error = UnknownCapability;

    fn try_from(text: String) -> Result<Self, UnknownCapability> {
        text.parse()
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.to_string()
    }
}

impl CapabilitySets {
    /// What this very process has, as bounding, effective and permitted set;
    /// nothing if it cannot be read, which is on the safe side.
    #[must_use]
    pub fn own() -> Self {
        let permitted = guest_kernel::capability::permitted().unwrap_or(0);
        let all: Vec<Capability> = Capability::all()
            .filter(|capability| permitted & capability.bit() != 0)
            .collect();
        Self {
            bounding: all.clone(),
            effective: all.clone(),
            inheritable: Vec::new(),
            permitted: all,
            ambient: Vec::new(),
        }
    }
}

/// The set as the kernel takes it.
pub(crate) fn mask(capabilities: &[Capability]) -> u64 {
    capabilities.iter().fold(0, |mask, one| mask | one.bit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_number() {
        for capability in Capability::all() {
            assert_eq!(capability.to_string().parse(), Ok(capability));
        }
        assert_eq!("CAP_SYS_ADMIN".parse(), Ok(Capability(21)));
        assert_eq!("CAP_CHECKPOINT_RESTORE".parse(), Ok(Capability(40)));
    }

    #[test]
    fn an_unknown_name_is_an_error_and_no_panic() {
        for name in ["", "SYS_ADMIN", "cap_chown", "CAP_ALL"] {
            assert_eq!(name.parse::<Capability>(), Err(UnknownCapability));
        }
    }
}
