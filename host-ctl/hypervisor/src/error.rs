//! Why a verb failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::vm::{VmExit, VmState};

/// Why a verb failed. Where a VMM is named as gone, it is also reaped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec asks for something no VMM may be given.
    #[error("vm spec: {field}: {reason}")]
    Spec {
        /// Field of [`crate::VmSpec`] or [`crate::Rebind`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// This driver, or this version of its VMM, cannot do it.
    #[error("not supported by this driver: {0}")]
    Unsupported(&'static str),
    /// A call on a path failed.
    #[error("{call} {path}")]
    Path {
        /// The call.
        call: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A call on the VMM's process failed.
    #[error("{call}")]
    Process {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The VMM's control socket answered wrongly, or not at all.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The VMM did not get there in time.
    #[error("{waiting_for}: not within {deadline:?}")]
    Deadline {
        /// What was waited for.
        waiting_for: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// The VMM ended in the middle of a verb.
    #[error("vmm ended during {verb} ({exit}): {log}")]
    Ended {
        /// The verb.
        verb: &'static str,
        /// How it ended.
        exit: VmExit,
        /// The last line it wrote on its standard error, shortened.
        log: String,
    },
    /// The virtiofsd of a shared directory ended while its VM was made.
    #[error("virtiofsd of {path} ended ({exit}): {log}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// How it ended.
        exit: VmExit,
        /// The last line it wrote on its standard error, shortened.
        log: String,
    },
    /// Saving or loading the VM's state failed inside the VMM.
    #[error("{verb}: vmm reports: {reason}")]
    Migration {
        /// `save` or `restore`.
        verb: &'static str,
        /// The VMM's words, shortened.
        reason: String,
    },
    /// The verb needs the VM in another state.
    #[error("{verb} needs a {needed} vm, it is {found}")]
    State {
        /// The verb.
        verb: &'static str,
        /// The state it needs.
        needed: VmState,
        /// The state the VM is in.
        found: VmState,
    },
    /// The VM's RAM file is part of a saved state now; running on would write
    /// into it.
    #[error("the vm's memory file belongs to a saved state: it may only be killed")]
    MemorySaved,
    /// The process of a record is gone, or another one has its number.
    #[error("process {pid} is not the recorded vmm: {difference}")]
    Identity {
        /// The recorded process.
        pid: i32,
        /// What differs.
        difference: &'static str,
    },
    /// A VMM cannot be confined as it should.
    #[error("confine the vmm: {reason}")]
    Confinement {
        /// Why.
        reason: String,
    },
    /// No usable VMM was found.
    #[error("probe {program}: {reason}")]
    Probe {
        /// The program.
        program: PathBuf,
        /// Why it can't be used.
        reason: String,
    },
}

/// What went wrong on a VMM's control socket. Nothing read from it is kept
/// beyond the bounds given here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The VMM closed it.
    #[error("monitor: closed by the vmm")]
    Closed,
    /// Something that is no message of its protocol, its first 64 bytes escaped.
    #[error("monitor: no message of its protocol: {0}")]
    Garbage(String),
    /// A message of more than this many bytes.
    #[error("monitor: message longer than {0} bytes")]
    Long(usize),
    /// Nothing came in time.
    #[error("monitor: {command}: no answer within {deadline:?}")]
    Silent {
        /// What was asked.
        command: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// The VMM refused a command.
    #[error("monitor: {command}: {class}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QMP's error class, or the status of an HTTP answer.
        class: String,
        /// The VMM's words, shortened.
        reason: String,
    },
    /// Reading or writing failed.
    #[error("monitor: {call}: {kind}")]
    Stream {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        kind: io::ErrorKind,
    },
}

/// The longest foreign text kept in an error, in characters.
const LONGEST_QUOTE: usize = 300;

/// Foreign text made fit for an error: one line, escaped, bounded.
pub(crate) fn quote(text: &str) -> String {
    text.trim()
        .chars()
        .take(LONGEST_QUOTE)
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
            .chars()
            .collect::<Vec<_>>()
        })
        .collect()
}

impl Error {
    /// Shortens the common case of a call on a path.
    pub(crate) fn path(
        call: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { call, path, source }
    }

    /// Shortens the common case of a call on a process.
    pub(crate) fn process(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Process {
            call,
            source: errno.into(),
        }
    }
}
