//! A supervisor's first task: a sandbox made as ordered, in its run directory,
//! ready to be handed over. Nothing is left of one that fails.

use super::order::{Handover, Making, Order};
use super::process::log_to;
use super::server::{ServeError, Sockets, Supervised};
use crate::config::{Paths, SandboxId, TemplateDigest};
use crate::host::{
    ProcessError, ProcessIdentity, RecordError, RunDirectory, RunDirectoryError, explain,
};
use crate::sandbox::Made;
use crate::sandbox::boot::{BootError, boot};
use crate::sandbox::driver::driver;
use crate::sandbox::identity::Uuid;
use crate::sandbox::link::AgentLink;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::restore::{Verified, restore};
use crate::sandbox::spec::SandboxSpec;
use crate::sandbox::state::{Event, Refused};
use crate::store::{CloneRefusal, Sha256, Store, StoreError};
use crate::template::{ClonePlan, cold_spec, plan_clone};
use crate::timeline::{Timeline, now};
use hypervisor::qemu::Qemu;
use hypervisor::{Accelerator, Backing, Hypervisor};
use protocols::AgentAddress;
use rustix::io::Errno;

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
    "clone: resume",
    "clone: meet the agent",
    "clone: agent call Thaw",
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
    #[error("find a vmm")]
    Driver(#[source] hypervisor::Error),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("getrandom")]
    Random(#[from] Errno),
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    #[error("cold boot")]
    Boot(#[source] BootError),
    #[error("no clone ({refusal}), and no cold boot in its place")]
    Fallback {
        refusal: String,
        #[source]
        source: BootError,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    State(#[from] Refused),
    #[error(transparent)]
    Serve(#[from] ServeError),
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
    driver: Qemu,
    spec: SandboxSpec,
    template: Option<TemplateDigest>,
    clone: Result<ClonePlan, Option<String>>,
}

/// Makes a sandbox as ordered; the reason, for people, when there is none.
pub(super) async fn make(paths: &Paths, order: Order) -> Result<Ready, String> {
    let timeline = Timeline::new();
    crate::timeline::step("clone: order received");
    timeline.record(
        "execve of the supervisor, its order read",
        order.given,
        now(),
    );
    let made = match order.making {
        Making::Boot { spec, kernel } => plan_of_boot(paths, spec, &kernel, &timeline).await,
        Making::Clone { template } => plan_of_clone(paths, template, &timeline).await,
    };
    let made = match made {
        Ok(plan) => carry_out(paths, &order.sandbox, plan, &timeline).await,
        Err(error) => Err(error),
    };
    made.map_err(|error| explain(&error))
}

async fn plan_of_boot(
    paths: &Paths,
    spec: SandboxSpec,
    kernel: &Sha256,
    timeline: &Timeline,
) -> Result<Plan, MakeError> {
    let _span = timeline.span("boot: probe the vmm");
    Ok(Plan {
        driver: driver(paths, &spec.kernel, kernel)
            .await
            .map_err(MakeError::Driver)?,
        spec,
        template: None,
        clone: Err(None),
    })
}

async fn plan_of_clone(
    paths: &Paths,
    digest: TemplateDigest,
    timeline: &Timeline,
) -> Result<Plan, MakeError> {
    let (store, spec, kernel) = {
        let _span = timeline.step("clone: read the manifest");
        let store = Store::open(paths)?;
        let spec = cold_spec(&store, &digest).map_err(MakeError::NoSpec)?;
        let template = store.load(&digest).map_err(MakeError::NoSpec)?;
        let kernel = template.manifest().requirements.machine.kernel.clone();
        (store, spec, kernel)
    };
    let driver = {
        let _span = timeline.step("clone: probe the vmm");
        driver(paths, &spec.kernel, &kernel)
            .await
            .map_err(MakeError::Driver)?
    };
    let clone = {
        let _span = timeline.step("clone: check the files");
        plan_clone(&store, &digest, driver.capabilities())
    };
    Ok(Plan {
        driver,
        spec,
        template: Some(digest),
        clone: clone.map_err(|refusal| Some(refusal.reason())),
    })
}

/// Does it, in a run directory that is there before anything is started.
async fn carry_out(
    paths: &Paths,
    sandbox: &SandboxId,
    plan: Plan,
    timeline: &Timeline,
) -> Result<Ready, MakeError> {
    let uuid = Uuid::draw()?;
    let mut record = SandboxRecord::begin(sandbox.clone(), uuid, plan.spec.clone());
    record.template.clone_from(&plan.template);
    record.head.supervisor = Some(ProcessIdentity::current()?);
    let directory = {
        let _span = timeline.step("clone: write the record");
        RunDirectory::create(paths, sandbox, "supervise", &record)?
    };
    log_to(&directory.paths().supervisor_log());
    let accelerator = plan.driver.capabilities().accelerator;
    let (made, fallback) = match bring_to_life(plan, &directory, uuid, timeline).await {
        Ok(made) => made,
        // A VM that could not be killed keeps its directory, for a sweep.
        Err(error) if error.lingers() => return Err(error),
        Err(error) => {
            // The first failure is what counts; what remains is a sweep's.
            let _ = directory.remove();
            return Err(error);
        }
    };
    record.fallback = fallback;
    commit(directory, record, made, accelerator, timeline).await
}

/// The clone, or the boot in its place with the reason.
async fn bring_to_life(
    plan: Plan,
    directory: &RunDirectory,
    uuid: Uuid,
    timeline: &Timeline,
) -> Result<(Made, Option<String>), MakeError> {
    let reason = match plan.clone {
        Err(reason) => reason,
        Ok(clone) => {
            match restore(verified(clone), directory, uuid, &plan.driver, timeline).await {
                Ok(made) => return Ok((made, None)),
                Err(error) => Some(explain(&error)),
            }
        }
    };
    let booted = boot(
        &plan.spec,
        directory,
        uuid,
        Backing::Anonymous,
        &plan.driver,
        timeline,
    );
    match (booted.await, reason) {
        (Ok(made), reason) => Ok((made, reason)),
        (Err(source), None) => Err(MakeError::Boot(source)),
        (Err(source), Some(refusal)) => Err(MakeError::Fallback { refusal, source }),
    }
}

fn verified(plan: ClonePlan) -> Verified {
    Verified {
        state: plan.template.directory().to_owned(),
        memory: plan.template.memory(),
        saved: plan.vm,
        quiesce_id: plan.quiesce_id.into(),
    }
}

/// The commit: record and sockets in place. Whatever fails before takes the VM
/// down again; what fails after is a dead supervisor of a running sandbox.
async fn commit(
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
                // The first failure is what counts; what remains is a sweep's.
                let _ = directory.remove();
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
        clock_error_nanos: made.clock_error_nanos,
        round_trip_nanos: made.round_trip_nanos,
        not_unique: made.not_unique,
        moments: made.moments,
        timeline: timeline.report(),
    });
    let socket = directory.paths().serial();
    Ok(Ready {
        supervised: Supervised {
            vm: made.vm,
            link: AgentLink::keep(AgentAddress::Serial { socket }, Some(made.link)),
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
            Self::Boot(BootError::Lingers { .. })
                | Self::Fallback {
                    source: BootError::Lingers { .. },
                    ..
                }
        )
    }
}
