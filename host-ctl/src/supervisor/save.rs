//! A sandbox's last task: to become a template. Nothing is touched before it is
//! known that it can be saved, and a guest that refuses to freeze runs on; from
//! the freeze on the sandbox ends, with a template or without.

use super::control::{Reply, SavedSandbox};
use super::server::Supervised;
use crate::config::TemplateName;
use crate::host::explain;
use crate::sandbox::driver::{DriverError, GuestKernel, driver};
use crate::sandbox::state::{Event, State};
use crate::store::{Store, StoreError};
use crate::template::save::{Quiet, Saving};
use crate::template::{BuildError, Built, Workplace};
use crate::timeline::Timeline;
use agent_client::ClientError;
use protocols::Link;
use std::time::Duration;
use tokio::task::JoinSet;

/// Why a sandbox is no template.
#[derive(Debug, thiserror::Error)]
enum SaveError {
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
}

impl Supervised {
    /// Makes a template of the sandbox. `guest` are the tasks that talk to its
    /// agent: they are ended first, and begun anew where it runs on.
    pub(super) async fn save(&mut self, name: &TemplateName, guest: &mut JoinSet<()>) -> Reply {
        match self.become_template(name, guest).await {
            Ok(saved) => Reply::Saved(Box::new(saved)),
            Err(error) => Reply::Failed {
                reason: explain(&error),
            },
        }
    }

    async fn become_template(
        &mut self,
        name: &TemplateName,
        guest: &mut JoinSet<()>,
    ) -> Result<SavedSandbox, SaveError> {
        self.next(Event::Paused).map_err(SaveError::Refused)?;
        let timeline = Timeline::new();
        let saving = self.prepare(name, &timeline).await?;
        let Some(link) = self.link.handle().current() else {
            let error = BuildError::NotConnected(self.record.id.clone());
            return Err(SaveError::RunsOn(error));
        };
        // What is read now is read by nobody in the clones.
        guest.shutdown().await;
        let quiet = match self.quiesce(&saving, &link, &timeline).await {
            Ok(quiet) => quiet,
            Err(error) => {
                *guest = self.watch_guest();
                // The first failure counts; a sweep removes what is left.
                let _ = saving.discard();
                return Err(error);
            }
        };
        // Nobody dials again.
        let _ = self.link.release();
        let frozen = saving.save(&*self.vm, link, quiet).await;
        {
            let _span = timeline.step("save: kill and reap the VM");
            // One that is still there is a sweep's: it is recorded as saved.
            self.vm.kill().await.map_err(SaveError::Lingers)?;
        }
        let built = frozen.and_then(|frozen| saving.publish(frozen));
        let exit = match &built {
            Ok(built) => format!("saved as template {}", built.template.digest()),
            Err(BuildError::Unnamed { digest, .. }) => format!("saved as template {digest}"),
            Err(error) => format!("its save as a template failed: {}", explain(error)),
        };
        // The VM is gone, whatever stands on disk.
        let _ = self.write_end(exit).await;
        let built = built.map_err(|error| match error {
            BuildError::Unnamed { .. } => SaveError::Unnamed(error),
            error => SaveError::Ended(error),
        })?;
        Ok(describe(&built, &timeline))
    }

    async fn prepare(&self, name: &TemplateName, timeline: &Timeline) -> Result<Saving, SaveError> {
        let store = Store::open(&self.paths)?;
        let spec = &self.record.spec;
        let kernel = store.import(&spec.kernel)?;
        let kernel = GuestKernel {
            path: &spec.kernel,
            digest: kernel.sha256(),
        };
        // It starts no VM, so there is nothing to confine.
        let insecure = true;
        let driver = driver(&self.paths, spec.vmm, kernel, insecure).await?;
        let place = Workplace {
            paths: &self.paths,
            store: &store,
            driver: &driver,
        };
        Saving::prepare(name, &self.record, &self.vm.record(), place, timeline)
            .map_err(SaveError::RunsOn)
    }

    /// Records that the sandbox is worth nothing without this process any more,
    /// and has it freeze.
    async fn quiesce(
        &mut self,
        saving: &Saving,
        link: &Link,
        timeline: &Timeline,
    ) -> Result<Quiet, SaveError> {
        let written = {
            let _span = timeline.step("save: write the record");
            self.write_state(State::Saved)
        };
        let quiet = match written {
            Ok(()) => saving.quiesce(link).await.map_err(refused),
            Err(reason) => Err(SaveError::Refused(reason)),
        };
        if quiet.is_err() {
            // What stands on disk otherwise costs the sandbox only if this process
            // dies before the next change.
            let _ = self.write_state(State::Running);
        }
        quiet
    }
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
