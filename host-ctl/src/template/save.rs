//! A sandbox in use becomes a template, as one list: a second generation, with
//! all that was done in it.
//!
//! The sandbox ends in it. Its guest is frozen under a name that only a thaw
//! ends, and it would have to become another machine to go on beside its own
//! clones; where the VMM has left its memory in a file that is the template's
//! now, it must not run at all. One rule for all of them: from the moment the
//! guest is frozen the sandbox is worth nothing but its template. Whoever needs
//! it further makes a clone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_client::AgentClient;
use hypervisor::{Backing, Vm, VmRecord};
use protocols::Link;

use super::freeze::{Frozen, Quiet, SaveSteps, quiesce};
use super::kept::Kept;
use super::publish::{Naming, Publication};
use super::requirements::{Platform, requirements};
use super::{BuildError, Built, Workplace};
use crate::config::{SandboxId, TemplateName};
use crate::host::failed;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::vmm::Vmm;
use crate::store::{BuildLock, Claim, SavedOrigin, Staging, Store};
use crate::timeline::Timeline;

/// How long another save of the same sandbox is waited for; there is none.
const CLAIM_DEADLINE: Duration = Duration::from_secs(10);
/// More than any VMM's state of a sandbox takes, in bytes.
const LARGEST_STATE: u64 = 16 << 20;
/// One call to the agent.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Every step at which a save can be killed, in order
/// ([`crate::timeline::step`]). Whatever the step, a sweep leaves nothing that
/// is half made.
pub const STEPS: [&str; 9] = [
    "save: keep the images",
    "save: make the staging directory",
    "save: write the record",
    "save: agent call Quiesce",
    "save: close the link",
    "save: pause and save",
    "save: kill and reap the VM",
    "save: publish",
    "save: set the name",
];

/// What a save calls the steps that a build has too.
const SAVE_STEPS: SaveSteps = SaveSteps {
    close: "save: close the link",
    save: "save: pause and save",
};

/// What a save takes beside what its memory adds: keeping images, freezing.
const DEADLINE: Duration = Duration::from_secs(900);
/// Memory that is written, or read and hashed, in a second, in MiB: both one
/// after the other, by a slow disk.
const PACE: u32 = 16;

/// How long the save of a sandbox with this much memory may take, in MiB.
#[must_use]
pub fn deadline(memory_mib: u32) -> Duration {
    let once = Duration::from_secs((memory_mib / PACE).into());
    DEADLINE.saturating_add(once.saturating_mul(2))
}

/// A sandbox that can be saved: nothing of it was touched yet.
pub struct Saving {
    name: TemplateName,
    sandbox: SandboxId,
    store: Store,
    kept: Kept,
    lock: Box<BuildLock>,
    staging: Staging,
    memory_opened_for_writing: bool,
    timeline: Timeline,
}

/// A guest that is frozen for its save.
pub struct QuietGuest(Quiet);

/// What the save has left; its VM is to be killed now.
pub struct FrozenGuest(Frozen);

impl Saving {
    /// Finds out whether the sandbox of this record can be saved, as what, and
    /// makes room for it.
    ///
    /// # Errors
    /// Why not; the sandbox runs on as it did.
    pub fn prepare(
        name: &TemplateName,
        record: &SandboxRecord,
        running: &VmRecord,
        place: Workplace<'_>,
        timeline: &Timeline,
    ) -> Result<Self, BuildError> {
        if !record.spec.directories.is_empty() {
            return Err(BuildError::SharedDirectory);
        }
        if record.spec.vmm != Vmm::Firecracker && running.memory == Backing::Anonymous {
            return Err(BuildError::NoFile(record.id.clone()));
        }
        check_program(running.pid, &place.driver.program)?;
        let kept = {
            let _span = timeline.step("save: keep the images");
            Kept::import(&record.spec, place.store)?
        };
        let spec = kept.applied_to(&record.spec);
        let capabilities = place.driver.capabilities();
        let platform = Platform::of(place.store, place.driver)?;
        let wanted = requirements(
            &spec,
            &kept.images(),
            &record.warm_up,
            Some(origin(record)),
            capabilities,
            &platform,
        );
        let _span = timeline.step("save: make the staging directory");
        let lock = match place.store.claim(&wanted, CLAIM_DEADLINE)? {
            Claim::Build(lock) => lock,
            Claim::Existing(_) => return Err(BuildError::Twice(record.id.clone())),
        };
        let staging = place.store.stage()?;
        check_room(staging.path(), u64::from(spec.memory_mib) << 20)?;
        Ok(Self {
            name: name.clone(),
            sandbox: record.id.clone(),
            staging,
            store: place.store.clone(),
            kept,
            lock,
            memory_opened_for_writing: !capabilities.private_memory_is_read_only,
            timeline: timeline.clone(),
        })
    }

    /// Where its times are noted.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Has the guest freeze its workload.
    ///
    /// # Errors
    /// When it refuses: it runs on. One that has not answered may be frozen.
    pub async fn quiesce(&self, link: &Link) -> Result<QuietGuest, BuildError> {
        let _span = self.timeline.step("save: agent call Quiesce");
        let client = AgentClient::connect(link, CALL_DEADLINE)
            .await
            .map_err(BuildError::agent("open the agent's port"))?;
        let version = client
            .version(CALL_DEADLINE)
            .await
            .map_err(BuildError::agent("ask for the agent's version"))?;
        Ok(QuietGuest(Quiet {
            quiesce_id: quiesce(&client, &self.timeline).await?,
            agent_version: version.agent,
        }))
    }

    /// Saves the VM, over whose agent's link nothing else is said any more. It
    /// is to be killed then, whatever came of it.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn save(
        &self,
        vm: &dyn Vm,
        link: Link,
        quiet: QuietGuest,
    ) -> Result<FrozenGuest, BuildError> {
        let QuietGuest(quiet) = quiet;
        let (sandbox, staging) = (&self.sandbox, &self.staging);
        let saved = quiet.save(vm, link, sandbox, staging, SAVE_STEPS, &self.timeline);
        saved.await.map(FrozenGuest)
    }

    /// Puts the template in its place, and names it. The VM must be dead.
    ///
    /// # Errors
    /// When the store does not take it, of which nothing is left then; or when
    /// only its name could not be set ([`BuildError::Unnamed`]).
    pub fn publish(self, frozen: FrozenGuest) -> Result<Built, BuildError> {
        crate::timeline::step("save: publish");
        let publication = Publication {
            store: &self.store,
            lock: &self.lock,
            kept: &self.kept,
            memory_opened_for_writing: self.memory_opened_for_writing,
            naming: Naming {
                name: &self.name,
                step: "save: set the name",
            },
        };
        publication.publish(self.staging, frozen.0, &self.timeline)
    }

    /// The way down: nothing of the template is left.
    ///
    /// # Errors
    /// When the staging directory could not be removed; a sweep will.
    pub fn discard(self) -> Result<(), BuildError> {
        Ok(self.staging.discard()?)
    }
}

/// Where a template of this sandbox comes from.
fn origin(record: &SandboxRecord) -> SavedOrigin {
    let is_clone = record.generation.is_some();
    SavedOrigin {
        sandbox: record.id.clone(),
        uuid: record.uuid.to_string(),
        parent: record.template.clone().filter(|_| is_clone),
        generation: record.saves.saturating_add(1),
    }
}

/// Refuses a disk that has no room for all of the memory and a state.
fn check_room(path: &Path, memory: u64) -> Result<(), BuildError> {
    let found = rustix::fs::statvfs(path)
        .map_err(io::Error::from)
        .map_err(failed("statvfs", path))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let needed = memory.saturating_add(LARGEST_STATE);
    if free < needed {
        return Err(BuildError::Room {
            path: path.to_owned(),
            free,
            needed,
        });
    }
    Ok(())
}

/// A state fits the very program that saved it: not the one that an upgrade has
/// put in its place since.
fn check_program(pid: i32, program: &Path) -> Result<(), BuildError> {
    // Leads to the running file, also when it was replaced on disk, proc(5).
    let running = PathBuf::from(format!("/proc/{pid}/exe"));
    let of = |path: &Path| {
        let found = fs::metadata(path).map_err(failed("stat", path))?;
        Ok::<_, BuildError>((found.dev(), found.ino()))
    };
    if of(&running)? == of(program)? {
        Ok(())
    } else {
        Err(BuildError::Program(program.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_may_take_longer_the_more_memory_there_is() {
        assert_eq!(deadline(0), DEADLINE);
        let hour = Duration::from_secs(3600);
        assert!(deadline(64 << 10) > 2 * hour);
        assert!(deadline(u32::MAX) > deadline(64 << 10));
    }

    #[test]
    fn a_vmm_that_was_replaced_since_its_start_is_found_out() {
        let own = std::env::current_exe().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        check_program(pid, &own).unwrap();
        let error = check_program(pid, Path::new("/bin/sh")).unwrap_err();
        assert!(error.to_string().contains("/bin/sh"), "{error}");
    }
}
