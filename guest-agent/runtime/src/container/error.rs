//! Why a container or a process did not come to be.

use super::channel::ChannelError;
use super::hooks::HookError;
use crate::cgroup::CgroupError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// What a spec asks for and this runtime does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not supported")]
pub struct Refused(pub String);

/// What a child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Receiving orders.
    Orders,
    /// setns(2).
    JoinNamespace,
    /// A new user namespace and its mappings.
    UserNamespace,
    /// A new time namespace and its clocks.
    TimeNamespace,
    /// clone3(2).
    Clone,
    /// A session keyring of its own.
    Keyring,
    /// Its cgroup namespace.
    CgroupNamespace,
    /// sethostname(2).
    Hostname,
    /// A file of /proc/sys.
    Sysctl,
    /// sched_setattr(2) or ioprio_set(2).
    Scheduling,
    /// /proc/self/oom_score_adj.
    OomScore,
    /// Binding the root file system.
    Root,
    /// A mount of the spec.
    Mount,
    /// A device node.
    Device,
    /// A file of its identity.
    Identity,
    /// Making a path read-only.
    ReadonlyPath,
    /// Masking a path.
    MaskedPath,
    /// pivot_root(2) and what belongs to it.
    Pivot,
    /// Opening its terminal.
    Terminal,
    /// Its session and its streams.
    Stdio,
    /// setrlimit(2).
    Rlimit,
    /// Its working directory.
    WorkingDirectory,
    /// Its user and groups.
    User,
    /// Its capabilities.
    Capabilities,
    /// Its signals, its file mode mask, PR_SET_NO_NEW_PRIVS.
    Attributes,
    /// close_range(2).
    Descriptors,
    /// seccomp(2).
    Seccomp,
    /// /proc/thread-self/attr.
    Security,
    /// A hook in the container.
    Hook,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Orders => "receive orders",
            Self::JoinNamespace => "setns",
            Self::UserNamespace => "make the user namespace",
            Self::TimeNamespace => "make the time namespace",
            Self::Clone => "clone3",
            Self::Keyring => "join a new session keyring",
            Self::CgroupNamespace => "unshare the cgroup namespace",
            Self::Hostname => "sethostname",
            Self::Sysctl => "set the sysctl",
            Self::Scheduling => "set the scheduling",
            Self::OomScore => "write oom_score_adj",
            Self::Root => "bind the root file system",
            Self::Mount => "mount",
            Self::Device => "make the device node",
            Self::Identity => "mount the identity file",
            Self::ReadonlyPath => "make read-only",
            Self::MaskedPath => "mask",
            Self::Pivot => "pivot_root",
            Self::Terminal => "open the terminal",
            Self::Stdio => "set up the streams",
            Self::Rlimit => "setrlimit",
            Self::WorkingDirectory => "chdir",
            Self::User => "set the user",
            Self::Capabilities => "set the capabilities",
            Self::Attributes => "set the attributes",
            Self::Descriptors => "close_range",
            Self::Seccomp => "install the seccomp filter",
            Self::Security => "tell the security module",
            Self::Hook => "run the hook",
        })
    }
}

/// What a child tells of its failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}{}{subject}: {}", separator(.subject), io::Error::from_raw_os_error(*.errno))]
pub struct Failure {
    /// What it did.
    pub step: Step,
    /// On what; may be empty.
    pub subject: String,
    /// The system's error number.
    pub errno: i32,
}

fn separator(subject: &str) -> &'static str {
    if subject.is_empty() { "" } else { " " }
}

/// Why a child did not get as far as being ready.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The copy of the agent cannot be made, or not be started.
    #[error("{call}")]
    System {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The child cannot be talked to.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The child failed at a step, and said so.
    #[error(transparent)]
    Child(#[from] Failure),
    /// The child ended without a word: it was killed.
    #[error("the child ended before it was ready")]
    Ended,
    /// The child said what it cannot say now.
    #[error("the child broke the protocol")]
    Protocol,
}

/// Why a container was not created. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It asks for something that is not supported.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its cgroup cannot be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its init process did not get ready.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A hook has failed.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// Why a created container does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program cannot be executed.
    #[error("execute {program}")]
    Execute {
        /// The first argument.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The init process was not reached.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Why a process was not added.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The program cannot be executed.
    #[error("execute {program}")]
    Execute {
        /// The first argument.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It asks for something that is not supported.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The container's cgroup cannot be opened.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The process did not get ready.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl LaunchError {
    pub(super) fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}

impl StartError {
    /// What a shell would report: 127 if there is no such program, 126 if it
    /// cannot be executed; none if it is not the program's fault.
    #[must_use]
    pub fn exit_status(&self) -> Option<i32> {
        match self {
            Self::Execute { source, .. } => Some(shell_status(source)),
            Self::Launch(_) => None,
        }
    }
}

impl ExecError {
    /// As [`StartError::exit_status`].
    #[must_use]
    pub fn exit_status(&self) -> Option<i32> {
        match self {
            Self::Execute { source, .. } => Some(shell_status(source)),
            _ => None,
        }
    }
}

impl From<StartError> for ExecError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Execute { program, source } => Self::Execute { program, source },
            StartError::Launch(error) => Self::Launch(error),
        }
    }
}

/// Shell Command Language, 2.8.2 "Exit Status for Commands".
fn shell_status(error: &io::Error) -> i32 {
    if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    }
}
