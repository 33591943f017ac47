//! The place where one template is built: a run directory, so that a sweep
//! finds what a kill leaves, and a staging directory.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hypervisor::{Backing, Capabilities, Vm};

use super::BuildError;
use crate::config::{Paths, SandboxId};
use crate::host::{CallFailed, ProcessIdentity, RunDirectory, Stage, failed};
use crate::sandbox::identity::Uuid;
use crate::sandbox::limits::{give_back, limit};
use crate::sandbox::network::{Attached, NetworkKind, Role, attach};
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::spec::{SLOT_BYTES, SandboxSpec, VmFiles};
use crate::store::{Staging, Store};
use crate::timeline::Timeline;

/// A place to build in, made before there is anything to lose in it.
pub(super) struct Workshop {
    pub(super) directory: RunDirectory,
    pub(super) staging: Staging,
    pub(super) uuid: Uuid,
    /// What the interface is connected to: a tap that stays fenced.
    pub(super) network: Option<Attached>,
    record: SandboxRecord,
}

impl Workshop {
    /// Makes both directories. The record says from the beginning that this is
    /// a build, worth nothing without this process.
    pub(super) async fn open(
        paths: &Paths,
        store: &Store,
        spec: &SandboxSpec,
        timeline: &Timeline,
    ) -> Result<Workshop, BuildError> {
        let id = SandboxId::random()?;
        let uuid = Uuid::draw()?;
        let mut record = SandboxRecord::begin(id.clone(), uuid, spec.clone());
        record.head.stage = Stage::Building;
        record.head.supervisor = Some(ProcessIdentity::current()?);
        let directory = {
            let _span = timeline.step("build: write the record");
            RunDirectory::create(paths, &id, "build a template", &record)?
        };
        let staged = {
            let _span = timeline.step("build: make the staging directory");
            store.stage()
        };
        let staging = match staged {
            Ok(staging) => staging,
            Err(error) => {
                directory.remove()?;
                return Err(error.into());
            }
        };
        let mut workshop = Workshop {
            directory,
            staging,
            uuid,
            network: None,
            record,
        };
        match workshop.furnish(paths, timeline).await {
            Ok(()) => Ok(workshop),
            Err(error) => Err(workshop.close(error).await),
        }
    }

    /// What the VM is plugged into beside its images.
    async fn furnish(&mut self, paths: &Paths, timeline: &Timeline) -> Result<(), BuildError> {
        if self.record.spec.has_slots() {
            make_slot(&VmFiles::below(self.directory.paths().directory()).slot)?;
        }
        self.attach(paths, timeline).await
    }

    async fn attach(&mut self, paths: &Paths, timeline: &Timeline) -> Result<(), BuildError> {
        if self.record.spec.network == NetworkKind::Tap {
            let (directory, record) = (&self.directory, &mut self.record);
            let attached = attach(paths, directory, record, Role::Template, timeline);
            self.network = Some(attached.await?);
        }
        Ok(limit(&self.directory, &mut self.record)?)
    }

    /// Where the guest's RAM is to lie: in the template's file from the boot
    /// on, or, where a VMM cannot do that, wherever it saves it from.
    pub(super) fn memory(&self, capabilities: &Capabilities) -> Backing {
        if capabilities.boots_on_memory_file {
            Backing::FileBacked {
                path: self.staging.memory(),
                shared: true,
            }
        } else {
            Backing::Anonymous
        }
    }

    /// The cgroup its VMM is started in.
    pub(super) fn cgroup(&self) -> Option<&Path> {
        self.record.cgroup()
    }

    /// Records the VM. Until then a sweep finds it by its name.
    pub(super) fn record_vm(&mut self, vm: &dyn Vm) -> Result<(), BuildError> {
        self.record.set_vm(vm.record());
        Ok(self.directory.write_record(&self.record)?)
    }

    /// The way down without a VM: removes both directories, unless a VM may
    /// still use them; then only a sweep that has killed it may.
    pub(super) async fn close(mut self, error: BuildError) -> BuildError {
        if error.leaves_vm() {
            self.staging.abandon();
            return error;
        }
        // The first failure is what counts; a sweep removes the rest.
        let _ = self.staging.discard();
        if give_back(&mut self.record.head).await.is_ok() {
            let _ = self.directory.remove();
        }
        error
    }

    /// The end of a build whose template is published: the run directory goes,
    /// after the tap and the cgroup, and the staging directory is another's.
    pub(super) async fn finish(self) -> (Staging, Result<(), BuildError>) {
        let Workshop {
            directory,
            staging,
            mut record,
            ..
        } = self;
        let removed = match give_back(&mut record.head).await {
            Ok(()) => directory.remove().map_err(BuildError::from),
            Err(error) => Err(error.into()),
        };
        (staging, removed)
    }
}

/// Makes what is plugged into slots: one hole, which takes no room. For all to
/// read: its directory lets only its owner through, and VMMs are given
/// descriptors.
fn make_slot(path: &Path) -> Result<(), CallFailed> {
    let mut how = OpenOptions::new();
    how.write(true).create_new(true).mode(0o400);
    let slot = how.open(path).map_err(failed("create", path))?;
    // Whatever the umask.
    slot.set_permissions(Permissions::from_mode(0o444))
        .map_err(failed("chmod", path))?;
    slot.set_len(SLOT_BYTES).map_err(failed("ftruncate", path))
}
