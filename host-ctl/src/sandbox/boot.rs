//! A cold boot, in order: VM, agent, sandbox, containers. Fails whole: whatever
//! does not get to the end leaves no VM.

use super::agent::{CID_ATTEMPTS, Unreached, address, begin, draw_cid, is_cid_taken, reach};
use super::console::Console;
use super::containers::{ContainerError, Steps, start_containers};
use super::made::{Made, Making, Moments, Site};
use super::network::Attached;
use super::spec::{Own, SandboxSpec, VmFiles};
use crate::host::explain;
use crate::host::network::NetworkError;
use crate::timeline::now;
use agent_client::{AgentClient, ClientError, SandboxConfig};
use hypervisor::{Backing, Vm};
use protocols::{AgentAddress, Link};
use rustix::io::Errno;
use std::io;
use std::pin::Pin;
use std::time::Duration;

/// How long a guest may take from its first instruction to its agent. Under
/// plain emulation on a loaded host it takes a good part of this.
const AGENT_DEADLINE: Duration = Duration::from_secs(120);
/// How long one call of the recipe may take.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// What a boot calls the steps of its containers.
const STEPS: Steps = Steps {
    create: "boot: agent call CreateContainer",
    start: "boot: agent call StartContainer",
};

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
    /// The kernel gave no random bytes.
    #[error("getrandom")]
    Random(#[from] Errno),
    /// The VMM's socket for the agent could not be connected to.
    #[error("connect to {address}")]
    Connect {
        /// The agent's address.
        address: AgentAddress,
        /// What connect(2) said.
        #[source]
        source: io::Error,
    },
    /// The agent did not answer.
    #[error("reach the agent")]
    Reach(#[from] Unreached),
    /// The host's end of its network could not be opened.
    #[error("lift the fence")]
    Network(#[from] NetworkError),
    /// The agent refused, failed or did not answer.
    #[error("{step}")]
    Agent {
        /// The step.
        step: &'static str,
        /// What the client said.
        #[source]
        source: ClientError,
    },
    /// A container could not be started.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The VM ended, or its agent was not heard of. What the guest said last is
    /// the best there is to know why.
    #[error("{}; the guest's console ends with: {console}", explain(&**first))]
    Silent {
        /// What failed.
        first: Box<BootError>,
        /// The end of the console, escaped.
        console: String,
    },
    /// Whoever wanted the sandbox does no more.
    #[error("interrupted")]
    Interrupted,
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

/// Resolves when a making is to be given up; never polled again then.
pub type Interruption<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// Boots a sandbox in `directory`, its RAM as `backing` says.
///
/// # Errors
/// The first step that failed, or [`BootError::Interrupted`]; no VM is left
/// then.
pub async fn boot(
    spec: &SandboxSpec,
    backing: Backing,
    site: Site<'_>,
    mut interruption: Interruption<'_>,
) -> Result<Made, BootError> {
    let timeline = site.timeline;
    let started = {
        let _span = timeline.step("boot: start the vm");
        tokio::select! {
            started = start_vm(spec, backing, site) => started,
            () = &mut interruption => return Err(BootError::Interrupted),
        }
    };
    let (vm, agent) = started?;
    let started = now();
    let mut making = Making {
        vm,
        moments: Moments {
            vmm: started,
            vcpu: started,
            ..Moments::default()
        },
        timeline: timeline.clone(),
    };
    making.note_verb();
    let files = site.directory.paths();
    let console = Console::keep(files.console(), files.console_log());
    let brought_up = tokio::select! {
        brought_up = bring_up(&mut making, spec, site, &agent) => brought_up,
        () = interruption => Err(BootError::Interrupted),
    };
    match brought_up {
        Ok(link) => Ok(Made {
            vm: making.vm,
            link,
            console: Some(console),
            identity: None,
            generation: None,
            clock_error_nanos: None,
            round_trip_nanos: None,
            not_unique: Vec::new(),
            moments: making.moments,
        }),
        Err(first) => Err(match making.down().await {
            Ok(()) if first.is_silence() => BootError::Silent {
                first: Box::new(first),
                console: console.last_words().await,
            },
            Ok(()) => first,
            Err(kill) => BootError::Lingers {
                first: Box::new(first),
                kill,
            },
        }),
    }
}

impl BootError {
    /// Whether the guest was not heard of, so that its console is to be asked.
    fn is_silence(&self) -> bool {
        match self {
            Self::Vm { .. } | Self::Connect { .. } | Self::Reach(_) => true,
            Self::Agent { source, .. } => {
                source.is_dead() || matches!(source, ClientError::Deadline { .. })
            }
            Self::Container(error) => error.is_silence(),
            Self::Random(_)
            | Self::Network(_)
            | Self::Silent { .. }
            | Self::Interrupted
            | Self::Lingers { .. } => false,
        }
    }
}

/// Starts the VM, with another context id where the one drawn is taken. Gives
/// it with the address of its agent.
async fn start_vm(
    spec: &SandboxSpec,
    backing: Backing,
    site: Site<'_>,
) -> Result<(Box<dyn Vm>, AgentAddress), BootError> {
    let files = VmFiles::below(site.directory.paths().directory());
    let mut attempts = 0;
    loop {
        attempts += 1;
        let vm = spec.vm(Own {
            name: &site.directory.id().vm_name(),
            uuid: site.uuid,
            files: &files,
            backing: backing.clone(),
            cid: draw_cid()?,
            tap: site.network.map(Attached::tap),
            cgroup: site.cgroup,
        });
        match site.hypervisor.boot(&vm).await {
            Ok(booted) => return Ok((booted, address(&vm.agent))),
            Err(error) if is_cid_taken(&error) && attempts < CID_ATTEMPTS => {}
            Err(source) => {
                return Err(BootError::Vm {
                    step: "boot",
                    source,
                });
            }
        }
    }
}

/// From vCPUs that run to an agent that answers.
async fn meet(making: &Making, address: &AgentAddress) -> Result<(Link, AgentClient), BootError> {
    let connect_failed = |source| BootError::Connect {
        address: address.clone(),
        source,
    };
    let agent_failed = |source| BootError::Agent {
        step: "dial the agent",
        source,
    };
    if !matches!(address, AgentAddress::Serial { .. }) {
        let reached = making
            .step(
                "boot: guest kernel and agent, until it answers",
                reach(address, &*making.vm, AGENT_DEADLINE),
            )
            .await?;
        let granted = reached.connecting.granted(CALL_DEADLINE).await;
        granted.map_err(agent_failed)?;
        return Ok((reached.link, reached.client));
    }
    let link = making
        .step(
            "boot: guest kernel and agent, until the port is open",
            async {
                let opened = making.vm.agent_port_opened(AGENT_DEADLINE).await;
                opened.map_err(|source| BootError::Vm {
                    step: "wait for the agent",
                    source,
                })?;
                let begun = begin(address).await.map_err(connect_failed)?;
                begun.ok_or_else(|| connect_failed(io::ErrorKind::Unsupported.into()))
            },
        )
        .await?;
    let client = making
        .step("boot: session and port 1024", async {
            let client = AgentClient::connect(&link, CALL_DEADLINE).await?;
            client.check(CALL_DEADLINE).await.map(|()| client)
        })
        .await;
    Ok((link, client.map_err(agent_failed)?))
}

/// From a VM whose vCPUs run to one whose containers do.
async fn bring_up(
    making: &mut Making,
    spec: &SandboxSpec,
    site: Site<'_>,
    agent: &AgentAddress,
) -> Result<Link, BootError> {
    let (link, client) = meet(making, agent).await?;
    making.moments.agent = now();
    let failed = |step| move |source| BootError::Agent { step, source };
    let sandbox = SandboxConfig {
        hostname: site.directory.id().vm_name(),
        dns: Vec::new(),
        sandbox_id: site.directory.id().to_string(),
    };
    making
        .step(
            "boot: agent call CreateSandbox",
            client.create_sandbox(&sandbox, CALL_DEADLINE),
        )
        .await
        .map_err(failed("create the sandbox"))?;
    if let Some(network) = site.network {
        connect(making, &client, network).await?;
    }
    start_containers(&spec.containers, &client, STEPS, &making.timeline).await?;
    making.moments.released = now();
    Ok(link)
}

/// Gives the guest its own addresses, and lifts the fence when it has them. A
/// guest that is to be nobody stays behind it.
async fn connect(
    making: &Making,
    client: &AgentClient,
    network: &Attached,
) -> Result<(), BootError> {
    let Some(guest) = network.guest() else {
        return Ok(());
    };
    let failed = |source| BootError::Agent {
        step: "configure the guest's network",
        source,
    };
    {
        let _span = making.timeline.span("boot: agent calls for the network");
        for interface in &guest.interfaces {
            let updated = client.update_interface(interface, CALL_DEADLINE).await;
            updated.map_err(failed)?;
        }
        let updated = client.update_routes(&guest.routes, CALL_DEADLINE).await;
        updated.map_err(failed)?;
        let added = client.add_neighbors(&guest.neighbors, CALL_DEADLINE).await;
        added.map_err(failed)?;
    }
    let _span = making.timeline.span("boot: lift the fence");
    Ok(network.lift_fence().await?)
}

#[cfg(test)]
mod tests {
    use super::super::identity::Uuid;
    use super::super::network::NetworkKind;
    use super::super::stand_in::StandInVmm;
    use super::super::vmm::{Carrier, Vmm};
    use super::*;
    use crate::config::{Paths, SandboxId};
    use crate::host::RunDirectory;
    use crate::timeline::Timeline;
    use std::future::pending;
    use std::pin::pin;
    use std::sync::atomic::Ordering;
    use tokio::io::AsyncWriteExt;

    /// Boots a stand-in whose console says something, and gives why there is no
    /// sandbox.
    fn failure(vmm: &StandInVmm, interruption: Interruption<'_>) -> BootError {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(&root.path().join("state")).unwrap();
        let id = SandboxId::random().unwrap();
        let directory = RunDirectory::create(&paths, &id, "test", &"a record").unwrap();
        let console = protocols::unix::bind(&directory.paths().console()).unwrap();
        console.set_nonblocking(true).unwrap();
        let spec = SandboxSpec {
            vmm: Vmm::Qemu,
            carrier: Carrier::Serial,
            network: NetworkKind::None,
            vcpus: 1,
            memory_mib: 64,
            kernel: "/k".into(),
            initrd: "/i".into(),
            disks: Vec::new(),
            directories: Vec::new(),
            containers: Vec::new(),
        };
        let (uuid, timeline) = (Uuid::NIL, Timeline::new());
        let guest = async {
            let console = tokio::net::UnixListener::from_std(console).unwrap();
            let (mut console, _) = console.accept().await.unwrap();
            console.write_all(b"Kernel \x1bpanic\r\n").await.unwrap();
        };
        let site = Site {
            directory: &directory,
            uuid,
            hypervisor: vmm,
            network: None,
            cgroup: None,
            timeline: &timeline,
        };
        let booted = boot(&spec, Backing::Anonymous, site, interruption);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (booted, _) = runtime.block_on(async {
            let guest = tokio::spawn(guest);
            (booted.await, guest.abort())
        });
        booted.err().unwrap()
    }

    #[test]
    fn a_guest_that_dies_is_quoted() {
        let vmm = StandInVmm::new();
        let error = failure(&vmm, pin!(pending()));
        assert!(vmm.vm.is_over.load(Ordering::SeqCst));
        let text = explain(&error);
        assert!(text.starts_with("wait for the agent: vmm ended"), "{text}");
        assert!(
            text.ends_with("console ends with: Kernel \\u{1b}panic"),
            "{text}"
        );
    }

    #[test]
    fn an_interrupted_boot_leaves_no_vm() {
        let vmm = StandInVmm::new();
        vmm.vm.is_mute.store(true, Ordering::SeqCst);
        let waited_for = vmm.vm.clone();
        let interruption = pin!(async move { waited_for.waited_for.notified().await });
        let error = failure(&vmm, interruption);
        assert!(matches!(error, BootError::Interrupted), "{error}");
        assert!(vmm.vm.is_over.load(Ordering::SeqCst));
    }
}
