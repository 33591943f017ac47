//! How a template is built, as one list.

use std::time::Duration;

use agent_client::AgentClient;
use hypervisor::Vm;
use protocols::Link;

use super::BuildError;
use super::freeze::{Frozen, Quiet, SaveSteps, quiesce};
use super::kept::Kept;
use super::publish::{Naming, Publication};
use super::requirements::{Platform, requirements};
use super::warm::warm_up;
use super::workshop::Workshop;
use crate::config::{Paths, TemplateName};
use crate::sandbox::boot::{Interruption, boot};
use crate::sandbox::console::Console;
use crate::sandbox::driver::Driver;
use crate::sandbox::spec::SandboxSpec;
use crate::sandbox::{Made, Site};
use crate::store::{BuildLock, Claim, SavedWarmUp, Store, Template};
use crate::timeline::Timeline;

/// How long the same build of another process is waited for.
const CLAIM_DEADLINE: Duration = Duration::from_secs(600);
/// One call to the agent.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// What a build calls the steps that a save has too.
const SAVE_STEPS: SaveSteps = SaveSteps {
    close: "build: close the link",
    save: "build: pause and save",
};

/// Every step at which a build can be killed, in order
/// ([`crate::timeline::step`]). Whatever the step, a sweep leaves nothing.
pub const STEPS: [&str; 21] = [
    "build: import the images",
    "build: claim the template",
    "build: write the record",
    "build: make the staging directory",
    "boot: start the vm",
    "boot: guest kernel and agent, until the port is open",
    "boot: session and port 1024",
    "boot: agent call CreateSandbox",
    "boot: agent call CreateContainer",
    "boot: agent call StartContainer",
    "build: record the VM",
    "warm up: readiness command",
    "warm up: warm commands",
    "build: agent call Quiesce",
    "build: close the link",
    "build: pause and save",
    "build: kill and reap the VM",
    "build: fsync and hash",
    "build: write the manifest",
    "build: rename into place",
    "build: set the name",
];

/// What to build.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// By which name it is to be found.
    pub name: TemplateName,
    /// The sandbox.
    pub spec: SandboxSpec,
    /// What is run in its first container before the freeze.
    pub warm_up: SavedWarmUp,
}

/// Where to build it.
#[derive(Clone, Copy)]
pub struct Workplace<'a> {
    /// The state root.
    pub paths: &'a Paths,
    /// Where it is kept.
    pub store: &'a Store,
    /// What runs it.
    pub driver: &'a Driver,
}

/// A template that is there now.
#[derive(Debug)]
pub struct Built {
    /// The template.
    pub template: Template,
    /// What building it cost; none when it was there already.
    pub cost: Option<Cost>,
}

/// What a build cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of device state.
    pub state_bytes: u64,
    /// Time of the save verb: of the device state only, where the RAM lies in
    /// its file already.
    pub save: Duration,
    /// Bytes of RAM that were not zero.
    pub touched_bytes: u64,
    /// Time from the first fsync to the durable name.
    pub publish: Duration,
}

/// Builds a template, or finds that it is there. Any failure kills the VM and
/// leaves nothing, unless it says that there is a template. So does an interruption, which is heeded as long as there is
/// a VM, and not polled before.
///
/// Runs on the calling task and blocks it while files are copied and hashed.
///
/// # Errors
/// The first step that failed.
pub async fn build(
    recipe: &Recipe,
    place: Workplace<'_>,
    timeline: &Timeline,
    interruption: Interruption<'_>,
) -> Result<Built, BuildError> {
    check_disks(&recipe.spec)?;
    if !recipe.spec.directories.is_empty() {
        return Err(BuildError::SharedDirectory);
    }
    let kept = {
        let _span = timeline.step("build: import the images");
        Kept::import(&recipe.spec, place.store)?
    };
    let spec = kept.applied_to(&recipe.spec);
    let capabilities = place.driver.capabilities();
    let platform = Platform::of(place.store, place.driver)?;
    let images = kept.images();
    let wanted = requirements(
        &spec,
        &images,
        &recipe.warm_up,
        None,
        capabilities,
        &platform,
    );
    let claim = {
        let _span = timeline.step("build: claim the template");
        place.store.claim(&wanted, CLAIM_DEADLINE)?
    };
    let naming = Naming {
        name: &recipe.name,
        step: "build: set the name",
    };
    match claim {
        Claim::Existing(template) => {
            naming.set(place.store, &template, timeline)?;
            Ok(Built {
                template: *template,
                cost: None,
            })
        }
        Claim::Build(lock) => {
            let workshop = Workshop::open(place.paths, place.store, &spec, timeline).await?;
            let job = Job {
                warm_up: &recipe.warm_up,
                spec: &spec,
                place,
                naming,
                timeline,
            };
            job.make(workshop, &lock, &kept, interruption).await
        }
    }
}

/// A template to be made, and with what.
#[derive(Clone, Copy)]
struct Job<'a> {
    warm_up: &'a SavedWarmUp,
    spec: &'a SandboxSpec,
    place: Workplace<'a>,
    naming: Naming<'a>,
    timeline: &'a Timeline,
}

impl Job<'_> {
    /// From an empty workshop to a published template, or to nothing.
    async fn make(
        self,
        mut workshop: Workshop,
        lock: &BuildLock,
        kept: &Kept,
        mut interruption: Interruption<'_>,
    ) -> Result<Built, BuildError> {
        let hypervisor = &*self.place.driver.hypervisor;
        let memory = workshop.memory(hypervisor.capabilities());
        let booted = {
            let site = Site {
                directory: &workshop.directory,
                uuid: workshop.uuid,
                hypervisor,
                network: workshop.network.as_ref(),
                cgroup: workshop.cgroup(),
                timeline: self.timeline,
            };
            boot(self.spec, memory, site, interruption.as_mut()).await
        };
        let frozen = match booted {
            Ok(made) => {
                self.freeze_and_kill(&mut workshop, made, interruption)
                    .await
            }
            Err(error) => Err(error.into()),
        };
        let frozen = match frozen {
            Ok(frozen) => frozen,
            Err(error) => return Err(workshop.close(error).await),
        };
        let publication = Publication {
            store: self.place.store,
            lock,
            kept,
            memory_opened_for_writing: !hypervisor.capabilities().private_memory_is_read_only,
            naming: self.naming,
        };
        let (staging, removed) = workshop.finish().await;
        let built = publication.publish(staging, frozen, self.timeline)?;
        match removed {
            Ok(()) => Ok(built),
            Err(source) => Err(BuildError::Untidy {
                digest: built.template.digest().clone(),
                source: Box::new(source),
            }),
        }
    }

    /// The VM is dead afterwards, whatever happened: one that was saved must
    /// never run again on its files, and one that was not is of no use.
    async fn freeze_and_kill(
        self,
        workshop: &mut Workshop,
        made: Made,
        interruption: Interruption<'_>,
    ) -> Result<Frozen, BuildError> {
        let Made {
            vm, link, console, ..
        } = made;
        let frozen = tokio::select! {
            frozen = self.freeze(workshop, &*vm, link, console) => frozen,
            () = interruption => Err(BuildError::Interrupted),
        };
        let killed = {
            let _span = self.timeline.step("build: kill and reap the VM");
            vm.kill().await
        };
        match (frozen, killed) {
            (frozen, Ok(())) => frozen,
            (frozen, Err(kill)) => Err(BuildError::Lingers {
                first: frozen.err().map(Box::new),
                kill,
            }),
        }
    }

    /// From a sandbox that runs to one that is saved.
    async fn freeze(
        self,
        workshop: &mut Workshop,
        vm: &dyn Vm,
        link: Link,
        console: Option<Console>,
    ) -> Result<Frozen, BuildError> {
        let timeline = self.timeline;
        {
            let _span = timeline.step("build: record the VM");
            workshop.record_vm(vm)?;
        }
        let client = AgentClient::connect(&link, CALL_DEADLINE)
            .await
            .map_err(BuildError::agent("open the agent's port"))?;
        let version = client
            .version(CALL_DEADLINE)
            .await
            .map_err(BuildError::agent("ask for the agent's version"))?;
        warm_up(self.warm_up, self.spec, &client, timeline).await?;
        let quiesce_id = {
            let _span = timeline.step("build: agent call Quiesce");
            quiesce(&client, timeline).await?
        };
        drop(console);
        drop(client);
        let quiet = Quiet {
            quiesce_id,
            agent_version: version.agent,
        };
        let (sandbox, staging) = (workshop.directory.id(), &workshop.staging);
        let saved = quiet.save(vm, link, sandbox, staging, SAVE_STEPS, timeline);
        saved.await
    }
}

/// Said before anything is copied or started.
fn check_disks(spec: &SandboxSpec) -> Result<(), BuildError> {
    let missing = spec
        .containers
        .iter()
        .find(|container| container.disk >= spec.disks.len());
    match missing {
        None => Ok(()),
        Some(container) => Err(BuildError::Disk {
            container: container.id.clone(),
            disk: container.disk,
        }),
    }
}
