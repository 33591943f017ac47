//! Why a template was not built.

use protocols::LinkError;
use rustix::io::Errno;
use std::path::PathBuf;
use thiserror::Error;

use super::WarmUpError;
use crate::config::{NameError, SandboxId, TemplateDigest};
use crate::host::{CallFailed, ProcessError, RecordError, RunDirectoryError, explain};
use crate::sandbox::boot::BootError;
use crate::sandbox::limits::GiveBackError;
use crate::sandbox::network::AttachError;
use crate::store::StoreError;

/// Why a template was not built. Nothing of it is left then, unless a variant
/// says so.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A container names a disk that is not there.
    #[error("container {container}: there is no disk {disk}")]
    Disk {
        /// The container.
        container: String,
        /// The index of its disk.
        disk: usize,
    },
    /// It has a directory of the host's: what its virtiofsd knows of the guest is
    /// no part of the memory that clones map, and that memory is the guest's alone.
    #[error(
        "a sandbox with a shared directory is no template: the memory of its clones would be \
         private to each, and a virtiofsd gets at shared memory only"
    )]
    SharedDirectory,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VMM or this host cannot be told from another.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// No run directory.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// This process could not be identified.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No id could be drawn.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The kernel gave no random bytes.
    #[error("getrandom")]
    Random(#[from] Errno),
    /// It could not be connected to its fenced network.
    #[error("connect the VM to its network")]
    Attach(#[from] AttachError),
    /// Its tap or its cgroup could not be removed; a sweep will.
    #[error("give back what the VM had")]
    GiveBack(#[from] GiveBackError),
    /// The sandbox did not come up.
    #[error("boot the sandbox")]
    Boot(#[from] BootError),
    /// The VMM failed.
    #[error("{step}")]
    Vm {
        /// The step.
        step: &'static str,
        /// What the driver said.
        #[source]
        source: hypervisor::Error,
    },
    /// The agent refused, failed or did not answer.
    #[error("{step}")]
    Agent {
        /// The step.
        step: &'static str,
        /// What the client said.
        #[source]
        source: agent_client::ClientError,
    },
    /// The container did not get ready, or warm.
    #[error(transparent)]
    WarmUp(#[from] WarmUpError),
    /// Whoever wanted the template does no more.
    #[error("interrupted")]
    Interrupted,
    /// The link to the agent did not end when asked to.
    #[error("the link to the agent of {0} did not close")]
    StillConnected(SandboxId),
    /// The VMM has put the RAM somewhere else than beside the state.
    #[error("the saved VM's memory is in no file of the template")]
    NoMemory,
    /// Its RAM was given to no file when it was booted.
    #[error("sandbox {0} was booted, not cloned: its memory is in no file a template could have")]
    NoFile(SandboxId),
    /// The disk is too full for the memory that would be written.
    #[error("{} has {} MiB left, and the sandbox may write {} MiB", .path.display(), .free >> 20, .needed >> 20)]
    Room {
        /// Where it would be written.
        path: PathBuf,
        /// What is left there, in bytes.
        free: u64,
        /// What it may take, in bytes.
        needed: u64,
    },
    /// The template is in the store, and the name leads elsewhere.
    #[error("it is template {digest}, but not by that name")]
    Unnamed {
        /// The template's.
        digest: TemplateDigest,
        /// Why the name could not be set.
        #[source]
        source: StoreError,
    },
    /// The template is in the store and has its name, and something of the build
    /// is left, for a sweep.
    #[error("it is template {digest}, but something of its build is left")]
    Untidy {
        /// The template's.
        digest: TemplateDigest,
        /// What could not be removed.
        #[source]
        source: Box<BuildError>,
    },
    /// A sandbox can be saved once.
    #[error("sandbox {0} is a template already")]
    Twice(SandboxId),
    /// The VMM on disk is not the one that runs.
    #[error("{0} was replaced since this sandbox was made: its state would fit no clone")]
    Program(PathBuf),
    /// There is no way to the agent at this moment.
    #[error("the agent of {0} is not connected")]
    NotConnected(SandboxId),
    /// The agent did not answer the session that the template is saved in.
    #[error("begin the session to be saved in")]
    Session(#[source] LinkError),
    /// Its VM could not be killed; a sweep will.
    #[error("kill the VM{}", because(first.as_deref()))]
    Lingers {
        /// Why the build had failed already, if it had.
        first: Option<Box<BuildError>>,
        /// Why the VM is still there.
        #[source]
        kill: hypervisor::Error,
    },
}

fn because(first: Option<&BuildError>) -> String {
    first.map_or_else(String::new, |first| format!(" after: {}", explain(first)))
}

impl BuildError {
    pub(super) fn vm(step: &'static str) -> impl FnOnce(hypervisor::Error) -> BuildError {
        move |source| BuildError::Vm { step, source }
    }

    pub(super) fn agent(
        step: &'static str,
    ) -> impl FnOnce(agent_client::ClientError) -> BuildError {
        move |source| BuildError::Agent { step, source }
    }

    /// Whether a VM of the build may still run.
    pub(super) fn leaves_vm(&self) -> bool {
        matches!(
            self,
            BuildError::Lingers { .. } | BuildError::Boot(BootError::Lingers { .. })
        )
    }
}
