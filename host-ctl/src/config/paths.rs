//! The layout below the state root: one place that knows every file name.

use std::path::{Path, PathBuf};

use super::SandboxId;

/// The two trees below the state root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Templates, blobs, names and locks.
    pub store: PathBuf,
    /// One directory a sandbox.
    pub run: PathBuf,
}

impl Paths {
    /// The files of one sandbox. Nothing is created.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> SandboxPaths {
        SandboxPaths {
            directory: self.run.join(id.as_str()),
        }
    }
}

/// The files in one sandbox's run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    directory: PathBuf,
}

impl SandboxPaths {
    /// The run directory itself.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is known of the sandbox, replaced as a whole at each change.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.directory.join(Self::RECORD)
    }

    /// Held by the process that may act on this sandbox.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.directory.join(Self::LOCK)
    }

    /// The supervisor's socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// The agent's ports, offered by the supervisor as hybrid vsock.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// The VMM's control socket.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.directory.join("monitor.sock")
    }

    /// What a VMM may make files in, which binds a socket itself: the record of
    /// its sandbox is none of its business.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.directory.join("vmm")
    }

    /// The VMM's end of the device that carries the agent's link.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        self.vmm().join("link.sock")
    }

    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.sock")
    }

    /// The last part of what the console said.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// What the VMM said on stderr.
    #[must_use]
    pub fn vmm_log(&self) -> PathBuf {
        self.directory.join("vmm.log")
    }

    /// What the supervisor said.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.directory.join("supervisor.log")
    }

    /// The guest's RAM, only when this VM is to be saved.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }

    /// File name of the record in a run directory.
    pub const RECORD: &'static str = "record.json";
    /// File name of the lock in a run directory.
    pub const LOCK: &'static str = "supervisor.lock";
}
