//! Resource limits by name, getrlimit(2).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// `RLIM_INFINITY`, sys/resource.h: no limit at all.
const INFINITY: u64 = u64::MAX;

/// The names of OCI `config.md`, "POSIX process".
const KINDS: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RlimitKind(Resource);

/// A name that is no limit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no resource limit of that name")]
pub struct UnknownRlimit;

/// A limit for a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitSpec {
    /// Which.
    pub kind: RlimitKind,
    /// What is enforced, in the limit's own unit.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Open files a service has where distributions start it; it may ask for all
/// that the agent may have.
const OPEN_FILES: u64 = 1024;

impl RlimitSpec {
    /// The usual limit of open files, for a process whose spec names none: it
    /// would get the agent's own, which is as high as it may be.
    #[must_use]
    pub fn open_files() -> Self {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(INFINITY);
        Self {
            kind: RlimitKind(Resource::Nofile),
            soft: OPEN_FILES.min(hard),
            hard,
        }
    }

    /// Lets the calling process, and its children, raise it that far.
    pub(crate) fn allow(&self) -> rustix::io::Result<()> {
        let now = getrlimit(self.kind.0);
        let hard = now.maximum.unwrap_or(INFINITY).max(self.hard);
        let maximum = (hard != INFINITY).then_some(hard);
        setrlimit(self.kind.0, Rlimit { maximum, ..now })
    }

    /// Sets it for the calling process.
    pub(crate) fn apply(&self) -> rustix::io::Result<()> {
        let limit = |value| (value != INFINITY).then_some(value);
        let new = Rlimit {
            current: limit(self.soft),
            maximum: limit(self.hard),
        };
        setrlimit(self.kind.0, new)
    }
}

impl FromStr for RlimitKind {
    type Err = UnknownRlimit;

    /// The OCI form, `RLIMIT_NOFILE`.
    fn from_str(text: &str) -> Result<Self, UnknownRlimit> {
        KINDS
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, resource)| Self(*resource))
            .ok_or(UnknownRlimit)
    }
}

impl fmt::Display for RlimitKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, resource)| *resource == self.0);
        out.write_str(name.map_or("RLIMIT_?", |(name, _)| name))
    }
}

impl TryFrom<String> for RlimitKind {
    type Error = UnknownRlimit;

    fn try_from(text: String) -> Result<Self, UnknownRlimit> {
        text.parse()
    }
}

impl From<RlimitKind> for String {
    fn from(kind: RlimitKind) -> Self {
        kind.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_limit() {
        for (name, _) in KINDS {
            assert_eq!(name.parse::<RlimitKind>().unwrap().to_string(), name);
        }
        assert_eq!("RLIMIT_X".parse::<RlimitKind>(), Err(UnknownRlimit));
    }
}
