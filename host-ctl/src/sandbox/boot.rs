//! A cold boot, in order: VM, agent, sandbox, containers. Fails whole: whatever
//! does not get to the end leaves no VM.

use super::identity::Uuid;
use super::made::{Made, Making, Moments, dial};
use super::spec::{ContainerPlan, SandboxSpec, VmFiles};
use crate::host::RunDirectory;
use crate::timeline::{Timeline, now};
use agent_client::{AgentClient, ClientError, SandboxConfig};
use hypervisor::{Backing, Hypervisor};
use protocols::Link;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How long a guest may take from its first instruction to its agent. Under
/// plain emulation on a loaded host it takes a good part of this.
const AGENT_DEADLINE: Duration = Duration::from_secs(120);
/// How long one call of the recipe may take.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Why there is no sandbox. No VM is left, unless the last variant says so.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The VMM failed.
    #[error("{step}")]
    Vm {
        /// The step.
        step: &'static str,
        /// What the driver said.
        #[source]
        source: hypervisor::Error,
    },
    /// The agent's port could not be dialled.
    #[error("connect to {socket}")]
    Connect {
        /// The VMM's socket.
        socket: PathBuf,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// The agent refused, failed or did not answer.
    #[error("{step}")]
    Agent {
        /// The step.
        step: &'static str,
        /// What the client said.
        #[source]
        source: ClientError,
    },
    /// A container is to start from a disk that no guest has.
    #[error("container {container}: there is no disk {disk}")]
    Disk {
        /// The container.
        container: String,
        /// The index of its disk.
        disk: usize,
    },
    /// A container could not be created or started.
    #[error("{step} {container}")]
    Container {
        /// The step.
        step: &'static str,
        /// The container.
        container: String,
        /// What the client said.
        #[source]
        source: ClientError,
    },
    /// The boot failed, and its VM could not be killed.
    #[error("{first}; its VM could not be killed")]
    Lingers {
        /// Why the boot failed.
        first: Box<BootError>,
        /// Why the VM is still there.
        #[source]
        kill: hypervisor::Error,
    },
}

/// Boots a sandbox in `directory`, its RAM as `backing` says.
///
/// # Errors
/// The first step that failed; no VM is left then.
pub async fn boot(
    spec: &SandboxSpec,
    directory: &RunDirectory,
    uuid: Uuid,
    backing: Backing,
    hypervisor: &dyn Hypervisor,
    timeline: &Timeline,
) -> Result<Made, BootError> {
    let files = VmFiles::below(directory.paths().directory());
    let vm = spec.vm(&directory.id().vm_name(), uuid, &files, backing);
    let booted = {
        let _span = timeline.step("boot: start the vm");
        hypervisor.boot(&vm).await
    };
    let started = now();
    let mut making = Making {
        vm: booted.map_err(|source| BootError::Vm {
            step: "boot",
            source,
        })?,
        moments: Moments {
            vmm: started,
            vcpu: started,
            ..Moments::default()
        },
        timeline: timeline.clone(),
    };
    making.note_verb();
    match bring_up(&mut making, spec, directory).await {
        Ok(link) => Ok(Made {
            vm: making.vm,
            link,
            identity: None,
            generation: None,
            clock_error_nanos: None,
            round_trip_nanos: None,
            not_unique: Vec::new(),
            moments: making.moments,
        }),
        Err(first) => Err(match making.down().await {
            Ok(()) => first,
            Err(kill) => BootError::Lingers {
                first: Box::new(first),
                kill,
            },
        }),
    }
}

/// From a VM whose vCPUs run to one whose containers do.
async fn bring_up(
    making: &mut Making,
    spec: &SandboxSpec,
    directory: &RunDirectory,
) -> Result<Link, BootError> {
    making
        .step(
            "boot: guest kernel and agent, until the port is open",
            making.vm.agent_port_opened(AGENT_DEADLINE),
        )
        .await
        .map_err(|source| BootError::Vm {
            step: "wait for the agent",
            source,
        })?;
    let socket = directory.paths().serial();
    let link = dial(&socket)
        .await
        .map_err(|source| BootError::Connect { socket, source })?;
    let failed = |step| move |source| BootError::Agent { step, source };
    let client = making
        .step("boot: session and port 1024 over virtio-serial", async {
            let client = AgentClient::connect(&link, CALL_DEADLINE).await?;
            client.check(CALL_DEADLINE).await.map(|()| client)
        })
        .await
        .map_err(failed("dial the agent"))?;
    making.moments.agent = now();
    let sandbox = SandboxConfig {
        hostname: directory.id().vm_name(),
        dns: Vec::new(),
        sandbox_id: directory.id().to_string(),
    };
    making
        .step(
            "boot: agent call CreateSandbox",
            client.create_sandbox(&sandbox, CALL_DEADLINE),
        )
        .await
        .map_err(failed("create the sandbox"))?;
    for container in &spec.containers {
        start(making, &client, container).await?;
    }
    making.moments.released = now();
    Ok(link)
}

async fn start(
    making: &Making,
    client: &AgentClient,
    container: &ContainerPlan,
) -> Result<(), BootError> {
    let failed = |step| {
        move |source| BootError::Container {
            step,
            container: container.id.clone(),
            source,
        }
    };
    let config = container.config().ok_or_else(|| BootError::Disk {
        container: container.id.clone(),
        disk: container.disk,
    })?;
    making
        .step(
            "boot: agent call CreateContainer",
            client.create_container(&config, CALL_DEADLINE),
        )
        .await
        .map_err(failed("create container"))?;
    making
        .step(
            "boot: agent call StartContainer",
            client.start_container(&container.id, CALL_DEADLINE),
        )
        .await
        .map_err(failed("start container"))
}
