//! A clone, from a template to a sandbox of its own. Reads as one list:
//!
//! `Verified -> Prepared -> Restored (paused) -> Resumed -> Thawed -> Released`
//!
//! Each is a type. What has a VM has one way down, which kills it: a clone that
//! fails leaves nothing, and nothing half made is handed over. The workload is
//! frozen until the last step, whatever the vCPUs do.

use super::identity::{Uuid, draw_identity};
use super::made::{Made, Making, Moments, dial, note_call};
use crate::host::RunDirectory;
use crate::timeline::{Timeline, now, step};
use agent_client::{
    AgentClient, ClientError, Connecting, Generation, Moment, Network, Offset, QuiesceId, Receipt,
    ThawOrder,
};
use hypervisor::{AgentDevice, Backing, Hypervisor, Rebind, VmSpec};
use protocols::Link;
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// How long it may take to put the question for the port on its way.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a thaw may take, the guest's waking up included.
const THAW_DEADLINE: Duration = Duration::from_secs(60);
/// How long a release may take, its hooks included.
const RELEASE_DEADLINE: Duration = Duration::from_secs(60);

/// Why there is no clone. No VM of it is left, unless the last variant says so.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The kernel gave no random bytes.
    #[error("getrandom")]
    Random(#[from] Errno),
    /// The VMM failed.
    #[error("{step}")]
    Vm {
        /// The step of the list.
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
        /// The step of the list.
        step: &'static str,
        /// What the client said.
        #[source]
        source: ClientError,
    },
    /// The task that carried the request to thaw has panicked.
    #[error("thaw")]
    Lost(#[from] JoinError),
    /// The guest answers to another identity than it was given.
    #[error("the receipt of the thaw names another identity")]
    Identity,
    /// The clone failed, and its VM could not be killed.
    #[error("{first}; its VM could not be killed")]
    Lingers {
        /// Why the clone failed.
        first: Box<RestoreError>,
        /// Why the VM is still there.
        #[source]
        kill: hypervisor::Error,
    },
}

/// A template that was checked against its manifest and against what is wanted.
#[derive(Debug)]
pub struct Verified {
    /// The directory with the saved state.
    pub state: PathBuf,
    /// The VM it was saved from.
    pub saved: VmSpec,
    /// The guest's RAM.
    pub memory: PathBuf,
    /// The name of the freeze that this clone's thaw ends.
    pub quiesce_id: QuiesceId,
}

/// A template, and all that is to be this clone's own. Nothing was done yet.
struct Prepared {
    verified: Verified,
    rebind: Rebind,
    serial: PathBuf,
    own: ThawOrder,
    timeline: Timeline,
}

/// A VM with its vCPUs stopped, and the host's first words to its agent waiting
/// in the serial port.
struct Restored {
    making: Making,
    link: Link,
    own: ThawOrder,
}

/// A VM whose vCPUs run, and which finds the request to thaw where it reads
/// first; the workload is frozen.
struct Resumed {
    making: Making,
    link: Link,
    client: AgentClient,
    connecting: Connecting,
    exchange: AbortOnDropHandle<Result<Receipt, RestoreError>>,
    /// Nothing of the guest ran before.
    resumed: Moment,
}

/// A VM that is unique; the workload is frozen.
struct Thawed {
    making: Making,
    link: Link,
    client: AgentClient,
    receipt: Receipt,
    /// How far its clock is off, to be corrected.
    offset: Offset,
}

/// Makes a clone of a verified template in `directory`.
///
/// # Errors
/// The first step that failed; no VM is left then.
pub async fn restore(
    verified: Verified,
    directory: &RunDirectory,
    uuid: Uuid,
    hypervisor: &dyn Hypervisor,
    timeline: &Timeline,
) -> Result<Made, RestoreError> {
    let prepared = verified.prepare(directory, uuid, timeline)?;
    let restored = prepared.restore(hypervisor).await?;
    let resumed = restored.resume().await?;
    let thawed = resumed.thaw().await?;
    thawed.release().await
}

impl Verified {
    fn prepare(
        self,
        directory: &RunDirectory,
        uuid: Uuid,
        timeline: &Timeline,
    ) -> Result<Prepared, RestoreError> {
        let _span = timeline.step("clone: draw its identity");
        let paths = directory.paths();
        let agent = match &self.saved.agent {
            AgentDevice::Serial { port_name, .. } => Some(AgentDevice::Serial {
                socket: paths.serial(),
                port_name: port_name.clone(),
            }),
            AgentDevice::HybridVsock { cid, .. } => Some(AgentDevice::HybridVsock {
                socket: paths.serial(),
                cid: *cid,
            }),
            AgentDevice::Vsock { .. } => None,
        };
        Ok(Prepared {
            rebind: Rebind {
                name: Some(directory.id().vm_name()),
                uuid: Some(uuid.to_string()),
                monitor: Some(paths.monitor()),
                console: Some(paths.console()),
                log: Some(paths.vmm_log()),
                agent,
                memory: Some(Backing::FileBacked {
                    path: self.memory.clone(),
                    shared: false,
                }),
                ..Rebind::default()
            },
            serial: paths.serial(),
            own: ThawOrder {
                quiesce_id: self.quiesce_id,
                generation: Generation::random().map_err(agent_failed("draw a generation"))?,
                identity: draw_identity(directory.id())?,
                network: Network::default(),
                dns: Vec::new(),
                files: Vec::new(),
            },
            verified: self,
            timeline: timeline.clone(),
        })
    }
}

impl Prepared {
    async fn restore(self, hypervisor: &dyn Hypervisor) -> Result<Restored, RestoreError> {
        let verified = &self.verified;
        let restored = {
            let _span = self.timeline.step("clone: restore");
            hypervisor
                .restore(&verified.state, &verified.saved, &self.rebind)
                .await
        };
        let making = Making {
            vm: restored.map_err(vm_failed("restore"))?,
            moments: Moments {
                vmm: now(),
                ..Moments::default()
            },
            timeline: self.timeline,
        };
        making.note_verb();
        match dial(&self.serial).await {
            Ok(link) => Ok(Restored {
                making,
                link,
                own: self.own,
            }),
            Err(source) => {
                let socket = self.serial;
                Err(down(making, RestoreError::Connect { socket, source }).await)
            }
        }
    }
}

impl Restored {
    /// Asks for the port and the thaw first and resumes then: the guest finds
    /// all of it at once, and nothing goes to and fro before it has thawed.
    async fn resume(self) -> Result<Resumed, RestoreError> {
        let mut making = self.making;
        step("clone: meet the agent");
        let (client, connecting) = match AgentClient::connect_early(&self.link, DIAL_DEADLINE).await
        {
            Ok(early) => early,
            Err(error) => return Err(down(making, agent_failed("dial the agent")(error)).await),
        };
        step("clone: agent call Thaw");
        let exchange = tokio::spawn(thaw(client.clone(), self.own));
        let exchange = AbortOnDropHandle::new(exchange);
        let before = Moment::now();
        let resumed = making.step("clone: resume", making.vm.resume()).await;
        making.moments.vcpu = now();
        making.note_verb();
        match resumed {
            Ok(()) => Ok(Resumed {
                making,
                link: self.link,
                client,
                connecting,
                exchange,
                resumed: before,
            }),
            Err(error) => Err(down(making, vm_failed("resume")(error)).await),
        }
    }
}

impl Resumed {
    async fn thaw(self) -> Result<Thawed, RestoreError> {
        let mut making = self.making;
        let begun = now();
        let session = async {
            let _ = self.link.established(THAW_DEADLINE).await;
            now()
        };
        let granted = self.connecting.granted(THAW_DEADLINE);
        let (answered, granted, receipt) = tokio::join!(session, granted, self.exchange);
        making.moments.agent = now();
        making
            .timeline
            .record("guest wakes, answers the serial session", begun, answered);
        // A port that was refused is why its call failed, not the other way.
        let receipt = granted
            .map_err(agent_failed("dial the agent"))
            .and_then(|()| receipt?);
        let found = receipt.and_then(|mut receipt| {
            receipt.exchange.not_before(self.resumed);
            let offset = receipt.exchange.offset().map_err(agent_failed("thaw"))?;
            Ok((receipt, offset))
        });
        match found {
            Ok((receipt, offset)) => {
                note_call(&making.timeline, answered, &receipt.steps);
                Ok(Thawed {
                    making,
                    link: self.link,
                    client: self.client,
                    receipt,
                    offset,
                })
            }
            Err(error) => Err(down(making, error).await),
        }
    }
}

impl Thawed {
    /// Lets the workload run, by a clock that is right: what the receipt told
    /// of it is corrected in the same step.
    async fn release(self) -> Result<Made, RestoreError> {
        let mut making = self.making;
        let exchange = &self.receipt.exchange;
        let corrected = exchange.corrected_nanos(&self.offset);
        let generation = self.receipt.generation;
        let released = making
            .step("clone: agent call Release", async {
                let begun = now();
                let released = self
                    .client
                    .release(generation, Some(corrected), RELEASE_DEADLINE)
                    .await?;
                note_call(&making.timeline, begun, &released.steps);
                Ok(())
            })
            .await;
        making.moments.released = now();
        if let Err(error) = released {
            return Err(down(making, agent_failed("release")(error)).await);
        }
        let round_trip = exchange.round_trip();
        Ok(Made {
            vm: making.vm,
            link: self.link,
            // Read from the hand-over on: a clone waits for nothing it can do
            // without.
            console: None,
            identity: Some(self.receipt.identity),
            generation: Some(generation),
            clock_error_nanos: Some(self.offset.error_nanos),
            round_trip_nanos: Some(u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX)),
            not_unique: self.receipt.not_unique,
            moments: making.moments,
        })
    }
}

/// Thaws and checks the receipt: the client has refused another generation's.
async fn thaw(client: AgentClient, own: ThawOrder) -> Result<Receipt, RestoreError> {
    let receipt = client
        .thaw(&own, THAW_DEADLINE)
        .await
        .map_err(agent_failed("thaw"))?;
    if receipt.identity == own.identity {
        Ok(receipt)
    } else {
        Err(RestoreError::Identity)
    }
}

/// The way down: the VM is killed, and the first failure is what is told.
async fn down(making: Making, first: RestoreError) -> RestoreError {
    match making.down().await {
        Ok(()) => first,
        Err(kill) => RestoreError::Lingers {
            first: Box::new(first),
            kill,
        },
    }
}

fn vm_failed(step: &'static str) -> impl FnOnce(hypervisor::Error) -> RestoreError {
    move |source| RestoreError::Vm { step, source }
}

fn agent_failed(step: &'static str) -> impl FnOnce(ClientError) -> RestoreError {
    move |source| RestoreError::Agent { step, source }
}
