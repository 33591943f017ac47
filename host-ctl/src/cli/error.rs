//! Why a command failed, as it is told to people.

use super::attach::AttachError;
use crate::config::{ConfigError, NameError};
use crate::host::{CallFailed, RecordError};
use crate::sandbox::driver::DriverError;
use crate::store::{ArchiveError, CloneRefusal, StoreError};
use crate::supervisor::client::ClientError;
use crate::template::BuildError;
use std::io;
use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No usable state root.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No id could be drawn.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A system call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such template, or it cannot be used.
    #[error(transparent)]
    Template(#[from] CloneRefusal),
    /// A template was not exported or imported.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// No template was built.
    #[error("build the template")]
    Build(#[from] BuildError),
    /// There is no VMM.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A supervisor failed.
    #[error(transparent)]
    Supervisor(#[from] ClientError),
    /// The agent failed.
    #[error("{call}")]
    Agent {
        /// What was asked.
        call: &'static str,
        /// What came back.
        #[source]
        source: agent_client::ClientError,
    },
    /// A command in a sandbox gave no exit status.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Our own streams or runtime failed.
    #[error("{call}")]
    Io {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// By a signal, which nothing is left of.
    #[error("interrupted")]
    Interrupted,
    /// Something is missing that the user can name.
    #[error("{what}: {hint}")]
    Missing {
        /// What.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file that was named cannot be used.
    #[error("{what} {path}: {reason}")]
    File {
        /// What it was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl CliError {
    /// For `map_err` on a call.
    pub(super) fn io(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { call, source }
    }
}
