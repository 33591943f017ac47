//! A clone, from a template to a sandbox of its own. Reads as one list:
//!
//! `Verified -> Prepared -> Restored (paused) -> Resumed -> Thawed -> Connected ->
//! Released`, and containers, where it was frozen without
//!
//! Each is a type. What has a VM has one way down, which kills it: a clone that
//! fails leaves nothing, and nothing half made is handed over. The workload is
//! frozen until the last step, whatever the vCPUs do.

use super::agent::{
    CID_ATTEMPTS, Reached, Unreached, address, begin, draw_cid, is_cid_taken, reach, rebound,
};
use super::containers::{ContainerError, Steps, start_containers};
use super::identity::draw_identity;
use super::made::{Made, Making, Moments, Site, note_call};
use super::network::{Attached, NIC};
use super::silence::listening;
use super::spec::{ContainerPlan, VmFiles};
use crate::host::explain;
use crate::host::network::NetworkError;
use crate::timeline::{Timeline, now, step};
use agent_client::{
    AgentClient, ClientError, Connecting, Generation, Moment, Offset, QuiesceId, Receipt, ThawOrder,
};
use hypervisor::{Backing, Hypervisor, MemoryMode, Rebind, Vm, VmSpec};
use protocols::{AgentAddress, Link};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

/// How long it may take to put the question for the port on its way.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a guest that is dialled may take to wake up and answer; generous, as
/// it only decides when one counts as silent, and a host may be busy.
const WAKE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a thaw may take, the guest's waking up included.
const THAW_DEADLINE: Duration = Duration::from_secs(60);
/// How long a release may take, its hooks included.
const RELEASE_DEADLINE: Duration = Duration::from_secs(60);

/// What a clone calls the steps of containers that come after the freeze.
const FILL_STEPS: Steps = Steps {
    create: "clone: agent call CreateContainer",
    start: "clone: agent call StartContainer",
};

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
    /// The host's end of its network could not be opened.
    #[error("lift the fence")]
    Network(#[from] NetworkError),
    /// A container could not be started in a clone that was frozen without.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The guest answers to another identity than it was given.
    #[error("the receipt of the thaw names another identity")]
    Identity,
    /// The guest did not answer. What it said meanwhile is the best there is to
    /// know why.
    #[error("{}; the guest's console ends with: {console}", explain(&**first))]
    Silent {
        /// What failed.
        first: Box<RestoreError>,
        /// The end of the console, escaped.
        console: String,
    },
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
    /// How the RAM gets into the clone; none is the driver's own way.
    pub memory_mode: Option<MemoryMode>,
    /// What comes into its slots, each image by the id of its disk.
    pub images: BTreeMap<String, PathBuf>,
    /// What is started in it when it runs: nothing in one that was frozen with
    /// its containers.
    pub containers: Vec<ContainerPlan>,
    /// The name of the freeze that this clone's thaw ends.
    pub quiesce_id: QuiesceId,
}

/// A template, and all that is to be this clone's own. Nothing was done yet.
struct Prepared {
    verified: Verified,
    rebind: Rebind,
    files: VmFiles,
    own: ThawOrder,
    timeline: Timeline,
}

/// A VM with its vCPUs stopped; where the agent's device can hold them, the
/// host's first words are waiting there.
struct Restored {
    making: Making,
    agent: AgentAddress,
    link: Option<Link>,
    own: ThawOrder,
}

/// A VM whose vCPUs run, and which was asked to thaw; the workload is frozen.
struct Resumed {
    making: Making,
    link: Link,
    client: AgentClient,
    connecting: Connecting,
    /// Whether the agent had answered before it was asked to thaw.
    is_met: bool,
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

/// A VM that is unique, and on its network if it has one; the workload is
/// frozen.
struct Connected(Thawed);

/// A VM whose workload runs, if it was frozen with one.
struct Released {
    client: AgentClient,
    made: Made,
}

/// Makes a clone of a verified template.
///
/// # Errors
/// The first step that failed; no VM is left then.
pub async fn restore(mut verified: Verified, site: Site<'_>) -> Result<Made, RestoreError> {
    let containers = std::mem::take(&mut verified.containers);
    let prepared = verified.prepare(site)?;
    let restored = prepared.restore(site.hypervisor).await?;
    listening(site.directory, async {
        let resumed = restored.resume().await?;
        let thawed = resumed.thaw().await?;
        let connected = thawed.connect(site.network).await?;
        let released = connected.release().await?;
        released.fill(&containers, site.timeline).await
    })
    .await
}

impl Verified {
    fn prepare(self, site: Site<'_>) -> Result<Prepared, RestoreError> {
        let _span = site.timeline.step("clone: draw its identity");
        let directory = site.directory;
        let paths = directory.paths();
        let nics = site
            .network
            .map(|network| (NIC.to_owned(), network.backend()));
        Ok(Prepared {
            rebind: Rebind {
                name: Some(directory.id().vm_name()),
                uuid: Some(site.uuid.to_string()),
                monitor: Some(paths.monitor()),
                console: Some(paths.console()),
                log: Some(paths.vmm_log()),
                memory: Some(Backing::FileBacked {
                    path: self.memory.clone(),
                    shared: false,
                }),
                memory_mode: self.memory_mode,
                disks: self.images.clone(),
                nics: nics.into_iter().collect(),
                cgroup: site.cgroup.map(Path::to_owned),
                ..Rebind::default()
            },
            files: VmFiles::below(paths.directory()),
            own: ThawOrder {
                quiesce_id: self.quiesce_id,
                generation: Generation::random().map_err(agent_failed("draw a generation"))?,
                identity: draw_identity(directory.id())?,
                network: site.network.and_then(Attached::guest).unwrap_or_default(),
                dns: Vec::new(),
                files: Vec::new(),
            },
            verified: self,
            timeline: site.timeline.clone(),
        })
    }
}

impl Prepared {
    async fn restore(mut self, hypervisor: &dyn Hypervisor) -> Result<Restored, RestoreError> {
        let restored = {
            let _span = self.timeline.step("clone: restore");
            self.restore_vm(hypervisor).await
        };
        let (vm, agent) = restored?;
        let making = Making {
            vm,
            moments: Moments {
                vmm: now(),
                ..Moments::default()
            },
            timeline: self.timeline,
        };
        making.note_verb();
        let begun = {
            let _span = making.timeline.span("clone: connect to the agent's device");
            begin(&agent).await
        };
        match begun {
            Ok(link) => Ok(Restored {
                making,
                agent,
                link,
                own: self.own,
            }),
            Err(source) => {
                let address = agent;
                Err(down(making, RestoreError::Connect { address, source }).await)
            }
        }
    }

    /// Restores the VM, with another context id where the one drawn is taken.
    /// Gives it with the address of its agent.
    async fn restore_vm(
        &mut self,
        hypervisor: &dyn Hypervisor,
    ) -> Result<(Box<dyn Vm>, AgentAddress), RestoreError> {
        let verified = &self.verified;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let device = rebound(&verified.saved.agent, &self.files, draw_cid()?);
            let agent = address(&device);
            self.rebind.agent = Some(device);
            let restored = hypervisor.restore(&verified.state, &verified.saved, &self.rebind);
            match restored.await {
                Ok(vm) => return Ok((vm, agent)),
                Err(error) if is_cid_taken(&error) && attempts < CID_ATTEMPTS => {}
                Err(error) => return Err(vm_failed("restore")(error)),
            }
        }
    }
}

impl Restored {
    async fn resume(self) -> Result<Resumed, RestoreError> {
        let Self {
            making,
            agent,
            link,
            own,
        } = self;
        match link {
            Some(link) => resume_into_words(making, link, own).await,
            None => resume_and_dial(making, &agent, own).await,
        }
    }
}

/// Asks for the port and the thaw first and resumes then: the guest finds all
/// of it at once, and nothing goes to and fro before it has thawed.
async fn resume_into_words(
    mut making: Making,
    link: Link,
    own: ThawOrder,
) -> Result<Resumed, RestoreError> {
    step("clone: meet the agent");
    let begun = now();
    let (client, connecting) = match AgentClient::connect_early(&link, DIAL_DEADLINE).await {
        Ok(early) => early,
        Err(error) => return Err(down(making, agent_failed("dial the agent")(error)).await),
    };
    let exchange = ask_to_thaw(&client, own);
    let timeline = &making.timeline;
    timeline.record("clone: write its first words", begun, now());
    let before = Moment::now();
    match resume_vm(&mut making).await {
        Ok(()) => Ok(Resumed {
            making,
            link,
            client,
            connecting,
            is_met: false,
            exchange,
            resumed: before,
        }),
        Err(error) => Err(down(making, error).await),
    }
}

/// Resumes, and asks for the thaw when the guest has answered a dial: before,
/// the device takes no words.
async fn resume_and_dial(
    mut making: Making,
    agent: &AgentAddress,
    own: ThawOrder,
) -> Result<Resumed, RestoreError> {
    let before = Moment::now();
    if let Err(error) = resume_vm(&mut making).await {
        return Err(down(making, error).await);
    }
    step("clone: meet the agent");
    let begun = now();
    let reached = reach(agent, &*making.vm, WAKE_DEADLINE).await;
    let timeline = &making.timeline;
    timeline.record("guest wakes, answers on port 1024", begun, now());
    match reached {
        Ok(Reached {
            link,
            client,
            connecting,
        }) => Ok(Resumed {
            making,
            link,
            exchange: ask_to_thaw(&client, own),
            client,
            connecting,
            is_met: true,
            resumed: before,
        }),
        Err(error) => Err(down(making, error.into()).await),
    }
}

async fn resume_vm(making: &mut Making) -> Result<(), RestoreError> {
    let resumed = making.step("clone: resume", making.vm.resume()).await;
    making.moments.vcpu = now();
    making.note_verb();
    resumed.map_err(vm_failed("resume"))
}

/// Sends the request, in a task of its own.
fn ask_to_thaw(
    client: &AgentClient,
    own: ThawOrder,
) -> AbortOnDropHandle<Result<Receipt, RestoreError>> {
    step("clone: agent call Thaw");
    AbortOnDropHandle::new(tokio::spawn(thaw(client.clone(), own)))
}

impl Resumed {
    async fn thaw(self) -> Result<Thawed, RestoreError> {
        let mut making = self.making;
        let begun = now();
        let (answered, granted, receipt) = if self.is_met {
            let receipt = self.exchange.await;
            making.moments.agent = now();
            // Only now: the guest has one thing less to do until then.
            let granted = self.connecting.granted(THAW_DEADLINE).await;
            (begun, granted, receipt)
        } else {
            let session = async {
                let _ = self.link.established(THAW_DEADLINE).await;
                now()
            };
            let granted = self.connecting.granted(THAW_DEADLINE);
            let (answered, granted, receipt) = tokio::join!(session, granted, self.exchange);
            making.moments.agent = now();
            let timeline = &making.timeline;
            timeline.record("guest wakes, answers the serial session", begun, answered);
            (answered, granted, receipt)
        };
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
    /// Lifts the fence: the receipt says that the guest is itself. What
    /// happens next in the guest is not taken on its word, though: the host's
    /// end takes packets from the address it gave.
    async fn connect(self, network: Option<&Attached>) -> Result<Connected, RestoreError> {
        let Some(network) = network else {
            return Ok(Connected(self));
        };
        let lifted = {
            let _span = self.making.timeline.span("clone: lift the fence");
            network.lift_fence().await
        };
        match lifted {
            Ok(()) => Ok(Connected(self)),
            Err(error) => Err(down(self.making, error.into()).await),
        }
    }
}

impl Connected {
    /// Lets the workload run, by a clock that is right: what the receipt told
    /// of it is corrected in the same step.
    async fn release(self) -> Result<Released, RestoreError> {
        let Thawed {
            mut making,
            link,
            client,
            receipt,
            offset,
        } = self.0;
        let corrected = receipt.exchange.corrected_nanos(&offset);
        let generation = receipt.generation;
        let released = making
            .step("clone: agent call Release", async {
                let begun = now();
                let released = client
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
        let round_trip = receipt.exchange.round_trip();
        let made = Made {
            vm: making.vm,
            link,
            // Read from the hand-over on: a clone waits for nothing it can do
            // without.
            console: None,
            identity: Some(receipt.identity),
            generation: Some(generation),
            clock_error_nanos: Some(offset.error_nanos),
            round_trip_nanos: Some(u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX)),
            not_unique: receipt.not_unique,
            moments: making.moments,
        };
        Ok(Released { client, made })
    }
}

impl Released {
    /// Starts the containers that come after the freeze.
    async fn fill(
        self,
        containers: &[ContainerPlan],
        timeline: &Timeline,
    ) -> Result<Made, RestoreError> {
        let Self { client, mut made } = self;
        if containers.is_empty() {
            return Ok(made);
        }
        let started = start_containers(containers, &client, FILL_STEPS, timeline).await;
        made.moments.released = now();
        match started {
            Ok(()) => Ok(made),
            Err(error) => Err(killed(made.vm.kill().await, error.into())),
        }
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
    killed(making.down().await, first)
}

/// What is told of a clone that failed, by how its end went.
fn killed(end: Result<(), hypervisor::Error>, first: RestoreError) -> RestoreError {
    match end {
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
