//! Containers: what they are made of, and the calls about them.

mod request;
mod spec;

use std::collections::BTreeMap;
use std::time::Duration;

use protocols::wire::agent;

use crate::call::call;
use crate::client::AgentClient;
use crate::error::ClientError;

/// What a container may do that an ordinary user may not: the set Docker
/// gives (moby, oci/caps/defaults.go).
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Where a process looks for programs unless it is told.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The files a container starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// A read-only disk with a writable layer in the guest's memory above it.
    OverlayDisk {
        /// The device node in the guest, e.g. `/dev/vda`.
        device: String,
        /// The disk's filesystem, e.g. `erofs`.
        fstype: String,
        /// Largest size of the writable layer; none is what the guest's /run
        /// holds.
        upper_size_mib: Option<u32>,
    },
    /// A directory that is there already in the guest.
    Existing(String),
}

/// A directory of the host's in a container. The guest's kernel must have
/// virtio-fs, and its machine a device with this tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDirectory {
    /// The device's tag.
    pub tag: String,
    /// Where the container sees it, an absolute path.
    pub destination: String,
    /// Whether it can only be read there.
    pub readonly: bool,
}

/// Who a container's init process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id; the default is root.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further group ids.
    pub additional_gids: Vec<u32>,
}

/// A container to be created.
#[derive(Clone, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Its id: 2 to 128 letters, digits, `.`, `-` and `_`, a letter or digit
    /// first.
    pub id: String,
    /// Its files.
    pub rootfs: Rootfs,
    /// The command of its init process, and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Who it is.
    pub user: User,
    /// Hostname; none is the sandbox's.
    pub hostname: Option<String>,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Most memory, bytes.
    pub memory_limit: Option<u64>,
    /// Most processes.
    pub pids_limit: Option<u32>,
    /// Capabilities by name, e.g. those of [`DEFAULT_CAPABILITIES`].
    pub capabilities: Vec<String>,
    /// Annotations of the OCI spec.
    pub annotations: BTreeMap<String, String>,
    /// Directories of the host's in it.
    pub directories: Vec<HostDirectory>,
}

impl ContainerConfig {
    /// A container of root in `/` with the default capabilities, a common PATH
    /// and no limits.
    #[must_use]
    pub fn new(id: impl Into<String>, rootfs: Rootfs, args: Vec<String>) -> Self {
        Self {
            id: id.into(),
            rootfs,
            args,
            env: vec![PATH.to_owned()],
            cwd: "/".to_owned(),
            user: User::default(),
            hostname: None,
            terminal: false,
            memory_limit: None,
            pids_limit: None,
            capabilities: DEFAULT_CAPABILITIES.map(str::to_owned).to_vec(),
            annotations: BTreeMap::new(),
            directories: Vec::new(),
        }
    }
}

/// Shows neither arguments nor environment.
impl std::fmt::Debug for ContainerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerConfig")
            .field("id", &self.id)
            .field("rootfs", &self.rootfs)
            .finish_non_exhaustive()
    }
}

impl AgentClient {
    /// Creates a container; its init process waits for
    /// [`start_container`](Self::start_container).
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn create_container(
        &self,
        config: &ContainerConfig,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = request::create(config);
        call("CreateContainer", deadline, |context| {
            self.agent.create_container(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Lets the init process of a container run its command.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn start_container(
        &self,
        container_id: &str,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::StartContainerRequest {
            container_id: container_id.to_owned(),
            ..Default::default()
        };
        call("StartContainer", deadline, |context| {
            self.agent.start_container(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Removes a container, killing what is left of it.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove_container(
        &self,
        container_id: &str,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let request = agent::RemoveContainerRequest {
            container_id: container_id.to_owned(),
            ..Default::default()
        };
        call("RemoveContainer", deadline, |context| {
            self.agent.remove_container(context, &request)
        })
        .await?;
        Ok(())
    }
}
