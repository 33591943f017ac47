//! A supervisor's first task: a sandbox made as ordered, in its run directory,
//! ready to be handed over. Nothing is left of one that fails.

use super::order::{Handover, Making, Order};
use super::process::log_to;
use super::server::{ServeError, Sockets, Supervised};
use crate::config::{Paths, SandboxId, TemplateDigest};
use crate::host::network::NetworkError;
use crate::host::{
    ProcessError, ProcessIdentity, RecordError, RunDirectory, RunDirectoryError, explain,
};
use crate::sandbox::agent::destination;
use crate::sandbox::boot::{BootError, Interruption, boot};
use crate::sandbox::driver::{Driver, DriverError, GuestKernel, driver};
use crate::sandbox::identity::Uuid;
use crate::sandbox::limits::{give_back, limit};
use crate::sandbox::link::AgentLink;
use crate::sandbox::network::{AttachError, Attached, NetworkKind, Role, attach};
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::restore::{RestoreError, Verified, restore};
use crate::sandbox::spec::SandboxSpec;
use crate::sandbox::state::{Event, Refused};
use crate::sandbox::vmm::{Vmm, memory_mode_name};
use crate::sandbox::{Made, Site};
use crate::store::{CloneRefusal, SavedWarmUp, Sha256, Store, StoreError};
use crate::template::{ClonePlan, WarmUpError, cold_spec, emptied_template, plan_clone, warm_up};
use crate::timeline::{Timeline, now};
use agent_client::{AgentClient, ClientError};
use hypervisor::{Accelerator, Backing, MemoryMode};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::time::Duration;

/// How long the agent of a sandbox that was just booted may take to accept a
/// connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);

/// The steps of a clone at which it can be killed, in order
/// ([`crate::timeline::step`]). Whatever the step, a sweep leaves nothing.
pub const CLONE_STEPS: [&str; 12] = [
    "clone: order received",
    "clone: read the manifest",
    "clone: probe the vmm",
    "clone: check the files",
    "clone: write the record",
    "clone: draw its identity",
    "clone: restore",
    "clone: meet the agent",
    "clone: agent call Thaw",
    "clone: resume",
    "clone: agent call Release",
    "hand over: write the record",
];

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is nothing to boot either")]
    NoSpec(#[source] CloneRefusal),
    #[error("no clone ({refusal}), and what would be booted in its place is not as it was")]
    Changed {
        refusal: String,
        #[source]
        source: CloneRefusal,
    },
    #[error("the template has nothing in it: `run` starts containers in copies of it")]
    Empty,
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{vmm} has no way {mode} of memory into a clone here")]
    Memory { vmm: Vmm, mode: &'static str },
    #[error("the clone's memory as asked for")]
    Unsupported(#[source] hypervisor::Error),
    #[error("getrandom")]
    Random(#[from] Errno),
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    #[error("clone")]
    Clone(#[source] RestoreError),
    #[error("cold boot")]
    Boot(#[source] BootError),
    #[error(
        "no clone ({refusal}), and nothing can be booted in its place: the template was saved from a sandbox in use"
    )]
    Irreplaceable { refusal: String },
    #[error("no clone ({refusal}), and no cold boot in its place")]
    Fallback {
        refusal: String,
        #[source]
        source: BootError,
    },
    #[error("no clone ({refusal}), and the sandbox booted in its place is not like the template")]
    WarmUp {
        refusal: String,
        #[source]
        source: WarmUpError,
    },
    #[error("{first}; its vm could not be killed")]
    Lingers {
        first: Box<MakeError>,
        #[source]
        kill: hypervisor::Error,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    State(#[from] Refused),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("connect the sandbox to its network")]
    Attach(#[from] AttachError),
    #[error("fence the sandbox's network again")]
    Fence(#[from] NetworkError),
}

/// A sandbox that was made, and what is to be told about it.
pub(super) struct Ready {
    pub(super) supervised: Supervised,
    pub(super) sockets: Sockets,
    pub(super) handover: Box<Handover>,
}

/// What is to be made: a clone if a plan for one could be made, else a boot,
/// with the reason if it was to be a clone.
struct Plan {
    driver: Driver,
    /// How the RAM gets into a clone, if that was asked for.
    memory: Option<MemoryMode>,
    spec: SandboxSpec,
    template: Option<TemplateDigest>,
    /// Its owner, if that is another user.
    shared_with: Option<u32>,
    /// What a boot in place of a clone still lacks.
    warm_up: SavedWarmUp,
    /// How many saves the template is from its first boot, if it was saved from
    /// a sandbox in use: nothing that is booted is like it.
    saved: Option<u32>,
    clone: Result<ClonePlan, Option<String>>,
}

/// Makes a sandbox as ordered; the reason, for people, when there is none. A
/// boot that is interrupted is not made to its end.
pub(super) async fn make(
    paths: &Paths,
    order: Order,
    interruption: Interruption<'_>,
) -> Result<Ready, String> {
    let timeline = Timeline::new();
    crate::timeline::step("clone: order received");
    timeline.record(
        "execve of the supervisor, its order read",
        order.given,
        now(),
    );
    let made = match order.making {
        Making::Boot { spec, kernel } => {
            plan_of_boot(paths, spec, &kernel, order.insecure, &timeline).await
        }
        Making::Clone {
            template,
            memory,
            share,
        } => {
            let store = Store::open(paths).map(|store| if share { store.shared() } else { store });
            match store {
                Ok(store) => {
                    let taken = (store, template);
                    plan_of_clone(paths, taken, memory, order.insecure, &timeline).await
                }
                Err(error) => Err(error.into()),
            }
        }
    };
    let made = match made {
        Ok(plan) => carry_out(paths, &order.sandbox, plan, &timeline, interruption).await,
        Err(error) => Err(error),
    };
    made.map_err(|error| explain(&error))
}

async fn plan_of_boot(
    paths: &Paths,
    spec: SandboxSpec,
    kernel: &Sha256,
    insecure: bool,
    timeline: &Timeline,
) -> Result<Plan, MakeError> {
    let driver = {
        let _span = timeline.span("boot: probe the vmm");
        driver_for(paths, &spec, kernel, insecure).await?
    };
    let _span = timeline.span("boot: look for a template of this size");
    let store = Store::open(paths)?;
    // What cannot be looked for is not there: a boot needs none.
    let found = if spec.directories.is_empty() {
        emptied_template(&store, &spec, &driver).unwrap_or(None)
    } else {
        // A template's memory is mapped privately, which no virtiofsd gets at.
        None
    };
    let template = found.filter(|_| spec.fits_slots());
    let clone = template.as_ref().map(|digest| {
        let plan = plan_clone(&store, digest, &driver);
        plan.map_err(|refusal| refusal.reason())
    });
    Ok(Plan {
        driver,
        memory: None,
        spec,
        template,
        shared_with: None,
        warm_up: SavedWarmUp::default(),
        saved: None,
        clone: clone.map_or(Err(None), |clone| clone.map_err(Some)),
    })
}

async fn plan_of_clone(
    paths: &Paths,
    (store, digest): (Store, TemplateDigest),
    memory: Option<MemoryMode>,
    insecure: bool,
    timeline: &Timeline,
) -> Result<Plan, MakeError> {
    let (template, spec, kernel, warm_up, saved, owner) = {
        let _span = timeline.step("clone: read the manifest");
        let spec = cold_spec(&store, &digest).map_err(MakeError::NoSpec)?;
        if spec.has_slots() {
            return Err(MakeError::Empty);
        }
        let template = store.load(&digest).map_err(MakeError::NoSpec)?;
        let requirements = &template.manifest().requirements;
        let kernel = requirements.machine.kernel.clone();
        let saved = requirements.origin.as_ref().map(|origin| origin.generation);
        let warm_up = requirements.warm_up.clone();
        let made_by = template.manifest().imported;
        let owner = made_by.map_or(requirements.owner, |imported| imported.owner);
        (template, spec, kernel, warm_up, saved, owner)
    };
    let driver = {
        let _span = timeline.step("clone: probe the vmm");
        driver_for(paths, &spec, &kernel, insecure).await?
    };
    if let Some(mode) = memory
        && !driver.capabilities().memory_modes.contains(&mode)
    {
        return Err(MakeError::Memory {
            vmm: spec.vmm,
            mode: memory_mode_name(mode),
        });
    }
    let clone = {
        let _span = timeline.step("clone: check the files");
        let clone = plan_clone(&store, &digest, &driver).map_err(|refusal| refusal.reason());
        if let Err(refusal) = &clone {
            let images = store.check_images(&template);
            images.map_err(|source| MakeError::Changed {
                refusal: refusal.clone(),
                source,
            })?;
        }
        clone
    };
    Ok(Plan {
        driver,
        memory,
        spec,
        template: Some(digest),
        shared_with: (owner != geteuid().as_raw()).then_some(owner),
        warm_up,
        saved,
        clone: clone.map_err(Some),
    })
}

/// The driver of the VMM that a sandbox is to run on.
async fn driver_for(
    paths: &Paths,
    spec: &SandboxSpec,
    kernel: &Sha256,
    insecure: bool,
) -> Result<Driver, DriverError> {
    let kernel = GuestKernel {
        path: &spec.kernel,
        digest: kernel,
    };
    driver(paths, spec.vmm, kernel, insecure).await
}

/// Does it, in a run directory that is there before anything is started.
async fn carry_out(
    paths: &Paths,
    sandbox: &SandboxId,
    plan: Plan,
    timeline: &Timeline,
    interruption: Interruption<'_>,
) -> Result<Ready, MakeError> {
    let uuid = Uuid::draw()?;
    let mut record = SandboxRecord::begin(sandbox.clone(), uuid, plan.spec.clone());
    record.template.clone_from(&plan.template);
    record.warm_up.clone_from(&plan.warm_up);
    record.head.supervisor = Some(ProcessIdentity::current()?);
    let directory = {
        let _span = timeline.step("clone: write the record");
        RunDirectory::create(paths, sandbox, "supervise", &record)?
    };
    log_to(&directory.paths().supervisor_log());
    let accelerator = plan.driver.capabilities().accelerator;
    let network = attach_if_wanted(paths, &plan.spec, &directory, &mut record, timeline).await;
    let limited = {
        let _span = timeline.span("make the cgroup");
        limit(&directory, &mut record)
    };
    let prepared = network
        .map_err(MakeError::from)
        .and_then(|network| limited.map(|()| network).map_err(MakeError::from));
    let brought = match prepared {
        Ok(network) => {
            let site = Site {
                directory: &directory,
                uuid,
                hypervisor: &*plan.driver.hypervisor,
                network: network.as_ref(),
                cgroup: record.cgroup(),
                timeline,
            };
            bring_to_life(&plan, site, interruption).await
        }
        Err(error) => Err(error),
    };
    let (made, fallback) = match brought {
        Ok(made) => made,
        // A VM that could not be killed keeps its directory, for a sweep.
        Err(error) if error.lingers() => return Err(error),
        Err(error) => {
            take_back(directory, record).await;
            return Err(error);
        }
    };
    if let (Some(digest), Some(reason)) = (&record.template, &fallback) {
        // A count that is lost costs nobody a sandbox.
        let _ = Store::open(paths).and_then(|store| store.count_cold_boot(digest, reason));
    }
    if plan.template.is_some() && fallback.is_none() {
        record.saves = plan.saved.unwrap_or(1);
        record.shared_with = plan.shared_with;
    }
    record.fallback = fallback;
    commit(paths, directory, record, made, accelerator, timeline).await
}

async fn attach_if_wanted(
    paths: &Paths,
    spec: &SandboxSpec,
    directory: &RunDirectory,
    record: &mut SandboxRecord,
    timeline: &Timeline,
) -> Result<Option<Attached>, AttachError> {
    match spec.network {
        NetworkKind::None => Ok(None),
        NetworkKind::Tap => attach(paths, directory, record, Role::Sandbox, timeline)
            .await
            .map(Some),
    }
}

/// The way down of a sandbox without a VM: tap and cgroup, then the directory that
/// says whose it is. Another failure has come first and is what counts; what
/// remains is a sweep's.
pub(super) async fn take_back(directory: RunDirectory, mut record: SandboxRecord) {
    if give_back(&mut record.head).await.is_ok() {
        let _ = directory.remove();
    }
}

/// The clone, or the boot in its place with the reason.
async fn bring_to_life(
    plan: &Plan,
    site: Site<'_>,
    mut interruption: Interruption<'_>,
) -> Result<(Made, Option<String>), MakeError> {
    let timeline = site.timeline;
    let reason = match &plan.clone {
        Err(reason) => reason.clone(),
        Ok(clone) => match restore(verified(clone, plan), site).await {
            Ok(made) => return Ok((made, None)),
            // A boot would only hear the same again, or start again what may have
            // begun its work.
            Err(RestoreError::Container(error)) if !error.is_silence() || error.was_starting() => {
                return Err(MakeError::Clone(error.into()));
            }
            // What was asked for by name is not replaced by something else.
            Err(RestoreError::Vm {
                source: source @ hypervisor::Error::Unsupported(_),
                ..
            }) if plan.memory.is_some() => return Err(MakeError::Unsupported(source)),
            // Its VM still has the memory, the sockets and the tap: nothing can be
            // booted beside it.
            Err(error @ RestoreError::Lingers { .. }) => return Err(MakeError::Clone(error)),
            Err(error) => Some(explain(&error)),
        },
    };
    if let (Some(_), Some(refusal)) = (plan.saved, &reason) {
        let refusal = refusal.clone();
        return Err(MakeError::Irreplaceable { refusal });
    }
    if let (Some(network), Some(_)) = (site.network, &reason) {
        // The clone may have failed after its fence was lifted.
        network.fence().await?;
    }
    let booted = boot(&plan.spec, Backing::Anonymous, site, interruption.as_mut());
    match (booted.await, reason) {
        (Ok(made), None) => Ok((made, None)),
        (Ok(made), Some(refusal)) => {
            let warmed = tokio::select! {
                warmed = warm(&plan.warm_up, &plan.spec, &made, timeline) => warmed,
                () = interruption => Err(WarmUpError::Interrupted),
            };
            match warmed {
                Ok(()) => Ok((made, Some(refusal))),
                Err(source) => Err(end(made, MakeError::WarmUp { refusal, source }).await),
            }
        }
        (Err(source), None) => Err(MakeError::Boot(source)),
        (Err(source), Some(refusal)) => Err(MakeError::Fallback { refusal, source }),
    }
}

/// Brings a sandbox that was booted to where a clone would be.
async fn warm(
    commands: &SavedWarmUp,
    spec: &SandboxSpec,
    made: &Made,
    timeline: &Timeline,
) -> Result<(), WarmUpError> {
    let refused = |source: ClientError| WarmUpError::Agent {
        step: "open the agent's port",
        source,
    };
    let client = AgentClient::connect(&made.link, CONNECT_DEADLINE)
        .await
        .map_err(refused)?;
    warm_up(commands, spec, &client, timeline).await
}

/// The way down of a sandbox that runs and is not handed over.
async fn end(made: Made, first: MakeError) -> MakeError {
    match made.vm.kill().await {
        Ok(()) => first,
        Err(kill) => MakeError::Lingers {
            first: Box::new(first),
            kill,
        },
    }
}

/// What a clone is made of: the template, and what was not in it at the freeze.
fn verified(clone: &ClonePlan, plan: &Plan) -> Verified {
    let (images, containers) = if clone.spec.has_slots() {
        (plan.spec.images(), plan.spec.containers.clone())
    } else {
        Default::default()
    };
    Verified {
        state: clone.template.directory().to_owned(),
        memory: clone.template.memory(),
        saved: clone.vm.clone(),
        memory_mode: plan.memory,
        images,
        containers,
        quiesce_id: clone.quiesce_id.into(),
    }
}

/// The commit: record and sockets in place. Whatever fails before takes the VM
/// down again; what fails after is a dead supervisor of a running sandbox.
async fn commit(
    paths: &Paths,
    directory: RunDirectory,
    mut record: SandboxRecord,
    made: Made,
    accelerator: Accelerator,
    timeline: &Timeline,
) -> Result<Ready, MakeError> {
    let committed = {
        let _span = timeline.step("hand over: write the record");
        note(&mut record, &made)
            .and_then(|()| Ok(Sockets::bind(&directory)?))
            .and_then(|sockets| {
                directory.write_record(&record)?;
                Ok(sockets)
            })
    };
    let sockets = match committed {
        Ok(sockets) => sockets,
        Err(error) => {
            if made.vm.kill().await.is_ok() {
                take_back(directory, record).await;
            }
            return Err(error);
        }
    };
    let handover = Box::new(Handover {
        sandbox: record.id.clone(),
        uuid: record.uuid,
        identity: made.identity,
        generation: made.generation,
        booted: made.generation.is_none(),
        fallback: record.fallback.clone(),
        accelerator,
        confined: made.vm.record().confined,
        limited: record.limited(),
        shared_with: record.shared_with,
        addresses: record.head.tap.as_ref().map(|tap| tap.addresses),
        clock_error_nanos: made.clock_error_nanos,
        round_trip_nanos: made.round_trip_nanos,
        not_unique: made.not_unique,
        moments: made.moments,
        timeline: timeline.report(),
    });
    let agent = destination(&made.vm.record());
    Ok(Ready {
        supervised: Supervised {
            paths: paths.clone(),
            vm: made.vm.into(),
            link: AgentLink::keep(agent, Some(made.link)),
            console: made.console,
            directory,
            record,
        },
        sockets,
        handover,
    })
}

fn note(record: &mut SandboxRecord, made: &Made) -> Result<(), MakeError> {
    record.set_state(record.state.after(Event::HandedOver)?);
    record.set_vm(made.vm.record());
    record.identity.clone_from(&made.identity);
    record.generation = made.generation;
    Ok(())
}

impl MakeError {
    /// Whether a VM is left that could not be killed.
    fn lingers(&self) -> bool {
        matches!(
            self,
            Self::Lingers { .. }
                | Self::Clone(RestoreError::Lingers { .. })
                | Self::Boot(BootError::Lingers { .. })
                | Self::Fallback {
                    source: BootError::Lingers { .. },
                    ..
                }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_that_could_not_be_killed_keeps_its_directory_and_its_tap() {
        let lingers = RestoreError::Lingers {
            first: Box::new(RestoreError::Identity),
            kill: hypervisor::Error::MemorySaved,
        };
        assert!(MakeError::Clone(lingers).lingers());
        assert!(!MakeError::Clone(RestoreError::Identity).lingers());
    }
}
