//! seccomp profiles (OCI `config-linux.md`, "Seccomp"): which system calls a
//! process may make.
//!
//! A profile names system calls; [`table`] knows their numbers on each
//! architecture and [`filter`] makes the program that the kernel asks.
//!
//! What a profile leaves open is decided so: of the rules of one system call,
//! those that look at arguments come first, then the first that does not, each
//! in the profile's order; a rule that looks twice at one argument is a rule
//! for each look, as it is to runc. The machine's own architecture is always
//! filtered; a call by way of one that the profile does not name kills the
//! process.

mod filter;
mod instruction;
mod table;
#[cfg(test)]
mod tests;
mod vsock;

use super::error::Refused;
use guest_kernel::seccomp;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

pub(super) use filter::Filter;
pub(super) use vsock::refuse_vsock;

/// `EPERM`: what a call fails with if the profile does not say.
const DEFAULT_ERRNO: u16 = 1;
/// `MAX_ERRNO`, linux/err.h: the kernel would turn more into this.
const ERRNO_MAX: u32 = 4095;
/// Arguments of a system call.
const ARGUMENTS: u64 = 6;

/// A profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompProfile {
    /// For a system call that no rule is for.
    pub default_action: SeccompAction,
    /// Whose system calls may be made, beside the machine's own.
    pub architectures: Vec<SeccompArchitecture>,
    /// How it is installed.
    pub flags: Vec<SeccompFlag>,
    /// The rest.
    pub rules: Vec<SeccompRule>,
}

/// What becomes of a system call (seccomp(2), `SECCOMP_RET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompAction {
    /// The thread is killed.
    KillThread,
    /// The process is killed.
    KillProcess,
    /// SIGSYS.
    Trap,
    /// It fails with this number.
    Errno(u16),
    /// It is made, and logged.
    Log,
    /// It is made.
    Allow,
}

/// Whose system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompArchitecture {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 32-bit pointers on 64-bit x86.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM.
    Arm,
    /// One whose programs no machine of the agent's runs.
    Foreign,
}

/// How a filter is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompFlag {
    /// For all threads: there is one.
    SynchronizeThreads,
    /// Every action but allow is logged.
    Log,
    /// Speculative stores are left alone.
    SpeculationAllowed,
}

/// What becomes of some system calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompRule {
    /// Their names.
    pub names: Vec<String>,
    /// What becomes of them,
    pub action: SeccompAction,
    /// if all of these hold.
    pub tests: Vec<ArgumentTest>,
}

/// A look at an argument of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ArgumentTest {
    /// Which argument, from 0.
    pub(super) index: u8,
    /// How it is compared.
    pub(super) operator: ArgumentOperator,
    /// With what; the mask, if there is one.
    pub(super) value: u64,
    /// What is left under the mask.
    pub(super) masked: u64,
}

/// How an argument is compared, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ArgumentOperator {
    /// It is another.
    NotEqual,
    /// It is less.
    Less,
    /// It is not more.
    LessOrEqual,
    /// It is the same.
    Equal,
    /// It is not less.
    GreaterOrEqual,
    /// It is more.
    Greater,
    /// What is left of it under the mask is the second value.
    MaskedEqual,
}

/// A word of a profile that has no meaning here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seccomp {what} {word:?}")]
pub struct UnknownSeccomp {
    what: &'static str,
    word: String,
}

impl UnknownSeccomp {
    fn new(what: &'static str, word: impl ToString) -> Self {
        Self {
            what,
            word: word.to_string(),
        }
    }
}

impl SeccompAction {
    /// The OCI form with the error number beside it, 0 for none.
    ///
    /// # Errors
    /// `SCMP_ACT_NOTIFY` and `SCMP_ACT_TRACE`, which need somebody who listens;
    /// an unknown word; a number where none belongs, or that is none.
    pub fn parse(word: &str, errno: u32) -> Result<Self, UnknownSeccomp> {
        if errno > ERRNO_MAX || (errno != 0 && word != "SCMP_ACT_ERRNO") {
            return Err(UnknownSeccomp::new("error number", errno));
        }
        Ok(match word {
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Self::KillThread,
            "SCMP_ACT_KILL_PROCESS" => Self::KillProcess,
            "SCMP_ACT_TRAP" => Self::Trap,
            "SCMP_ACT_ERRNO" => Self::Errno(match u16::try_from(errno) {
                Ok(0) | Err(_) => DEFAULT_ERRNO,
                Ok(errno) => errno,
            }),
            "SCMP_ACT_LOG" => Self::Log,
            "SCMP_ACT_ALLOW" => Self::Allow,
            word => return Err(UnknownSeccomp::new("action", word)),
        })
    }

    /// Whether a call that is made is one the workload gets its answer of.
    fn lets_through(self) -> bool {
        matches!(self, Self::Log | Self::Allow)
    }
}

impl FromStr for SeccompArchitecture {
    type Err = UnknownSeccomp;

    /// The OCI form, `SCMP_ARCH_X86_64`.
    fn from_str(word: &str) -> Result<Self, UnknownSeccomp> {
        const FOREIGN: [&str; 19] = [
            "LOONGARCH64",
            "M68K",
            "MIPS",
            "MIPS64",
            "MIPS64N32",
            "MIPSEL",
            "MIPSEL64",
            "MIPSEL64N32",
            "PARISC",
            "PARISC64",
            "PPC",
            "PPC64",
            "PPC64LE",
            "RISCV32",
            "RISCV64",
            "S390",
            "S390X",
            "SH",
            "SHEB",
        ];
        let unknown = || UnknownSeccomp::new("architecture", word);
        Ok(match word.strip_prefix("SCMP_ARCH_").ok_or_else(unknown)? {
            "X86_64" => Self::X86_64,
            "X86" => Self::X86,
            "X32" => Self::X32,
            "AARCH64" => Self::Aarch64,
            "ARM" => Self::Arm,
            name if FOREIGN.contains(&name) => Self::Foreign,
            _ => return Err(unknown()),
        })
    }
}

impl FromStr for SeccompFlag {
    type Err = UnknownSeccomp;

    /// The OCI form, `SECCOMP_FILTER_FLAG_LOG`.
    fn from_str(word: &str) -> Result<Self, UnknownSeccomp> {
        Ok(match word {
            "SECCOMP_FILTER_FLAG_TSYNC" => Self::SynchronizeThreads,
            "SECCOMP_FILTER_FLAG_LOG" => Self::Log,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Self::SpeculationAllowed,
            word => return Err(UnknownSeccomp::new("flag", word)),
        })
    }
}

impl SeccompFlag {
    fn bits(self) -> u32 {
        match self {
            Self::SynchronizeThreads => seccomp::SYNCHRONIZE_THREADS,
            Self::Log => seccomp::LOG,
            Self::SpeculationAllowed => seccomp::SPECULATION_ALLOWED,
        }
    }
}

impl FromStr for ArgumentOperator {
    type Err = UnknownSeccomp;

    /// The OCI form, `SCMP_CMP_EQ`.
    fn from_str(word: &str) -> Result<Self, UnknownSeccomp> {
        Ok(match word {
            "SCMP_CMP_NE" => Self::NotEqual,
            "SCMP_CMP_LT" => Self::Less,
            "SCMP_CMP_LE" => Self::LessOrEqual,
            "SCMP_CMP_EQ" => Self::Equal,
            "SCMP_CMP_GE" => Self::GreaterOrEqual,
            "SCMP_CMP_GT" => Self::Greater,
            "SCMP_CMP_MASKED_EQ" => Self::MaskedEqual,
            word => return Err(UnknownSeccomp::new("operator", word)),
        })
    }
}

impl ArgumentTest {
    /// A test of argument `index`, from 0.
    ///
    /// # Errors
    /// There is no such argument.
    pub fn new(
        index: u64,
        operator: ArgumentOperator,
        value: u64,
        value_two: u64,
    ) -> Result<Self, UnknownSeccomp> {
        let within = u8::try_from(index).ok().filter(|_| index < ARGUMENTS);
        Ok(Self {
            index: within.ok_or_else(|| UnknownSeccomp::new("argument", index))?,
            operator,
            value,
            masked: value_two,
        })
    }
}

impl SeccompProfile {
    /// Whether there is a filter for it.
    ///
    /// # Errors
    /// What cannot be filtered.
    pub(super) fn validate(&self) -> Result<(), Refused> {
        Filter::of(self).map(drop)
    }
}
