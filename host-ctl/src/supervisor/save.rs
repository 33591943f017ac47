//! A sandbox's last task: to become a template. Nothing is touched before it is
//! known that it can be saved, and a guest that refuses to freeze runs on; from
//! the freeze on the sandbox ends, with a template or without. Meanwhile its
//! clients are answered: what takes long is a step beside them.

use super::control::{Reply, Request, SavedSandbox};
use super::server::{Client, Supervised};
use crate::config::{Paths, TemplateName};
use crate::host::explain;
use crate::sandbox::driver::{DriverError, GuestKernel, driver};
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::state::{Event, State};
use crate::store::{Store, StoreError};
use crate::template::save::{FrozenGuest, QuietGuest, Saving};
use crate::template::{BuildError, Built, Workplace};
use crate::timeline::Timeline;
use agent_client::ClientError;
use hypervisor::{Confined, VmRecord};
use protocols::Link;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};

/// Why a sandbox is no template.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("it runs on")]
    RunsOn(#[source] BuildError),
    #[error("it has not answered and may be frozen: it is of no use but to be stopped")]
    Silent(#[source] BuildError),
    #[error("it has ended, and there is no template of it")]
    Ended(#[source] BuildError),
    #[error("it has ended")]
    Unnamed(#[source] BuildError),
    #[error("its vm could not be killed")]
    Lingers(#[source] hypervisor::Error),
    #[error("it runs on: {0}")]
    Refused(String),
    #[error("a thread of the save")]
    Task(#[source] JoinError),
}

impl SaveError {
    /// How the sandbox has ended in it, if it has.
    fn exit(&self) -> Option<String> {
        match self {
            Self::Unnamed(BuildError::Unnamed { digest, .. }) => {
                Some(format!("saved as template {digest}"))
            }
            Self::Ended(error) | Self::Unnamed(error) => {
                Some(format!("its save as a template failed: {}", explain(error)))
            }
            _ => None,
        }
    }
}

/// A save that is under way. Everything that takes long is in its step, which is
/// polled beside the clients' requests.
pub(super) struct Save {
    name: TemplateName,
    client: Client,
    phase: Phase,
    timeline: Timeline,
    step: Pin<Box<dyn Future<Output = Step> + Send>>,
}

/// What a save's step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The sandbox runs, and nothing of it was touched.
    Preparing,
    /// Its guest is asked to freeze.
    Quiescing,
    /// Its VM is saved and killed.
    Freezing,
    /// Its VM is gone.
    Publishing,
}

/// How a step has ended.
pub(super) enum Step {
    Prepared(Result<Saving, SaveError>),
    Quiesced(Saving, Link, Result<QuietGuest, BuildError>),
    Frozen(
        Saving,
        Result<FrozenGuest, BuildError>,
        Result<(), hypervisor::Error>,
    ),
    Published(Result<Box<Built>, SaveError>),
}

impl Save {
    /// Whether the end of the VM is news.
    pub(super) fn needs_vm(&self) -> bool {
        matches!(self.phase, Phase::Preparing | Phase::Quiescing)
    }

    /// Why a request has to wait, if it does; what is asked again then is
    /// answered otherwise.
    pub(super) fn refuses(&self, request: &Request) -> Option<String> {
        let name = &self.name;
        match (request, self.phase) {
            (Request::Inspect {}, _) => None,
            (Request::Stop { .. }, Phase::Publishing) => Some(format!(
                "its VM has ended, and it is being published as template {name}"
            )),
            (Request::Stop { .. }, _) => None,
            _ => Some(format!("it is being saved as template {name}")),
        }
    }

    /// How much grace a stop can still give: a guest that may be frozen hears of
    /// nothing.
    pub(super) fn grace(&self, wanted: Duration) -> Duration {
        match self.phase {
            Phase::Preparing => wanted,
            Phase::Quiescing | Phase::Freezing | Phase::Publishing => Duration::ZERO,
        }
    }

    /// One that has come to a step which never ends; it holds `held`.
    #[cfg(test)]
    pub(super) fn stuck(freezing: bool, client: Client, held: impl Send + 'static) -> Self {
        let step = async move {
            let _held = held;
            pending().await
        };
        Self {
            name: "second".parse().unwrap(),
            client,
            phase: if freezing {
                Phase::Freezing
            } else {
                Phase::Quiescing
            },
            timeline: Timeline::new(),
            step: Box::pin(step),
        }
    }

    /// Gives it up, and tells who asked for it.
    pub(super) fn give_up(self) -> oneshot::Receiver<()> {
        let reason = "it was stopped before it was a template".to_owned();
        self.client.tell(Reply::Failed { reason })
    }
}

/// The end of the step of a save, if there is one. Dropped before that, it goes
/// on when asked for again.
pub(super) async fn next_step(save: Option<&mut Save>) -> Step {
    match save {
        Some(save) => save.step.as_mut().await,
        None => pending().await,
    }
}

impl Supervised {
    /// Begins to make a template of the sandbox, unless it can be seen at once
    /// that it cannot be saved.
    pub(super) fn begin_save(
        &self,
        name: TemplateName,
        client: Client,
    ) -> Result<Save, oneshot::Receiver<()>> {
        if let Err(reason) = self.next(Event::Paused) {
            let reason = explain(&SaveError::Refused(reason));
            return Err(client.tell(Reply::Failed { reason }));
        }
        let timeline = Timeline::new();
        let preparing = prepare(
            name.clone(),
            self.paths.clone(),
            self.record.clone(),
            self.vm.record(),
            timeline.clone(),
        );
        Ok(Save {
            name,
            client,
            phase: Phase::Preparing,
            timeline,
            step: Box::pin(async { Step::Prepared(preparing.await) }),
        })
    }

    /// Goes on after a step. `guest` are the tasks that talk to its agent: they
    /// are ended before the freeze, and begun anew where it runs on. A save that
    /// has ended is answered.
    pub(super) async fn continue_save(
        &mut self,
        mut save: Save,
        step: Step,
        guest: &mut JoinSet<()>,
    ) -> Result<Save, oneshot::Receiver<()>> {
        let timeline = save.timeline.clone();
        let begun = match step {
            Step::Prepared(Ok(saving)) => self.begin_quiesce(saving, &timeline, guest).await,
            Step::Prepared(Err(error)) | Step::Published(Err(error)) => Err(error),
            Step::Quiesced(saving, link, Ok(quiet)) => Ok(self.begin_freeze(saving, link, quiet)),
            Step::Quiesced(saving, _, Err(error)) => {
                self.run_on(saving, guest);
                Err(refused(error))
            }
            // One that is still there is a sweep's: it is recorded as saved.
            Step::Frozen(_, _, Err(kill)) => Err(SaveError::Lingers(kill)),
            Step::Frozen(saving, Ok(frozen), Ok(())) => Ok(begin_publish(saving, frozen)),
            Step::Frozen(_, Err(error), Ok(())) => Err(SaveError::Ended(error)),
            Step::Published(Ok(built)) => {
                let exit = format!("saved as template {}", built.template.digest());
                // The VM is gone, whatever stands on disk.
                let _ = self.write_end(exit).await;
                let saved = Reply::Saved(Box::new(describe(&built, &timeline)));
                return Err(save.client.tell(saved));
            }
        };
        match begun {
            Ok((phase, step)) => {
                save.phase = phase;
                save.step = step;
                Ok(save)
            }
            Err(error) => {
                if let Some(exit) = error.exit() {
                    let _ = self.write_end(exit).await;
                }
                let reason = explain(&error);
                Err(save.client.tell(Reply::Failed { reason }))
            }
        }
    }

    /// Records that the sandbox is worth nothing without this process any more,
    /// and has it freeze.
    async fn begin_quiesce(
        &mut self,
        saving: Saving,
        timeline: &Timeline,
        guest: &mut JoinSet<()>,
    ) -> Result<Begun, SaveError> {
        let Some(link) = self.link.handle().current() else {
            let error = BuildError::NotConnected(self.record.id.clone());
            return Err(SaveError::RunsOn(error));
        };
        // What is read now is read by nobody in the clones.
        guest.shutdown().await;
        let written = {
            let _span = timeline.step("save: write the record");
            self.write_state(State::Saved)
        };
        if let Err(reason) = written {
            self.run_on(saving, guest);
            return Err(SaveError::Refused(reason));
        }
        let step = async move {
            let quiet = saving.quiesce(&link).await;
            Step::Quiesced(saving, link, quiet)
        };
        Ok((Phase::Quiescing, Box::pin(step)))
    }

    /// A guest that was not frozen goes on.
    fn run_on(&mut self, saving: Saving, guest: &mut JoinSet<()>) {
        // What stands on disk otherwise costs the sandbox only if this process
        // dies before the next change.
        let _ = self.write_state(State::Running);
        *guest = self.watch_guest();
        // The first failure counts; a sweep removes what is left.
        let _ = saving.discard();
    }

    fn begin_freeze(&self, saving: Saving, link: Link, quiet: QuietGuest) -> Begun {
        // Nobody dials again.
        let _ = self.link.release();
        let vm = Arc::clone(&self.vm);
        let step = async move {
            let frozen = saving.save(&*vm, link, quiet).await;
            let killed = {
                let _span = saving.timeline().step("save: kill and reap the VM");
                vm.kill().await
            };
            Step::Frozen(saving, frozen, killed)
        };
        (Phase::Freezing, Box::pin(step))
    }
}

fn begin_publish(saving: Saving, frozen: FrozenGuest) -> Begun {
    let step = async move {
        let published = beside(move || saving.publish(frozen)).await;
        Step::Published(published.and_then(|built| {
            built.map(Box::new).map_err(|error| match error {
                BuildError::Unnamed { .. } => SaveError::Unnamed(error),
                error => SaveError::Ended(error),
            })
        }))
    };
    (Phase::Publishing, Box::pin(step))
}

/// A step of a save, and what it is about.
type Begun = (Phase, Pin<Box<dyn Future<Output = Step> + Send>>);

/// Finds out whether the sandbox can be saved; files are copied and hashed in a
/// thread of their own. Whoever drops it does not end that thread, but gets rid
/// of what it has made as soon as it is done.
async fn prepare(
    name: TemplateName,
    paths: Paths,
    record: SandboxRecord,
    running: VmRecord,
    timeline: Timeline,
) -> Result<Saving, SaveError> {
    let (opened, source) = (paths.clone(), record.spec.kernel.clone());
    let imported = move || {
        let store = Store::open(&opened)?;
        let kernel = store.import(&source)?;
        Ok::<_, StoreError>((store, kernel))
    };
    let (store, kernel) = beside(imported).await??;
    let kernel = GuestKernel {
        path: &record.spec.kernel,
        digest: kernel.sha256(),
    };
    // It starts no VM, but may have to ask the program what it can do.
    let insecure = running.confined == Confined::Insecure;
    let driver = driver(&paths, record.spec.vmm, kernel, insecure).await?;
    let prepared = move || {
        let place = Workplace {
            paths: &paths,
            store: &store,
            driver: &driver,
        };
        Saving::prepare(&name, &record, &running, place, &timeline)
    };
    beside(prepared).await?.map_err(SaveError::RunsOn)
}

/// Does what takes long and waits for no event in a thread of its own.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SaveError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(SaveError::Task)
}

/// A guest that says no runs on; of one that says nothing that is not known.
fn refused(error: BuildError) -> SaveError {
    match &error {
        BuildError::Agent {
            source: ClientError::Dead { .. } | ClientError::Deadline { .. },
            ..
        } => SaveError::Silent(error),
        _ => SaveError::RunsOn(error),
    }
}

fn describe(built: &Built, timeline: &Timeline) -> SavedSandbox {
    let origin = built.template.manifest().requirements.origin.as_ref();
    let cost = built.cost;
    let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    SavedSandbox {
        digest: built.template.digest().clone(),
        parent: origin.and_then(|origin| origin.parent.clone()),
        generation: origin.map_or(0, |origin| origin.generation),
        saved_bytes: cost.map_or(0, |cost| cost.state_bytes),
        save_micros: cost.map_or(0, |cost| micros(cost.save)),
        touched_bytes: cost.map_or(0, |cost| cost.touched_bytes),
        publish_micros: cost.map_or(0, |cost| micros(cost.publish)),
        timeline: timeline.report(),
    }
}
