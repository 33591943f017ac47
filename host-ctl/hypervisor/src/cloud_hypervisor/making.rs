//! From a started VMM to a VM: the kernel runs, or a saved state is loaded.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use serde_json::Value;

use super::CloudHypervisor;
use super::config::{Surroundings, interfaces, new_vm, restore as restore_request, restored_vm};
use super::files::SavedState;
use super::launch::{Belongings, Started, check_memory, launch};
use super::view::{Start, View};
use super::vm::ChVm;
use super::vmm::{path, refused};
use crate::error::Error;
use crate::rest::Request;
use crate::span::{Timeline, now};
use crate::spec::{Backing, MemoryMode, VmSpec};
use crate::virtiofsd::Offer;

/// Boots a spec that was checked; returns when its CPUs run.
pub(super) async fn boot(driver: &CloudHypervisor, spec: &VmSpec) -> Result<ChVm, Error> {
    let timeline = Timeline::default();
    let begun = now();
    let user = driver.confinement.user();
    let offer = Offer::of(spec, &driver.confinement).await?;
    let mut belongings = Belongings::prepare(spec)?;
    belongings.create_memory(spec, user)?;
    let view = View::of(spec, &belongings.files, Start::Boot, user)?;
    belongings.expect(view.made_console());
    belongings.files.show_kernel(&view.spec)?;
    timeline.since("bind, mkdir, create memory", begun);
    let config = new_vm(&view.spec, surroundings(driver, &view))?;
    let started = launch(driver, spec, &view, belongings, &offer, timeline)?;
    let (vmm, deadlines) = (&started.vmm, driver.deadlines);
    let booted = async {
        let request = Request::put(path::CREATE, Some(config));
        vmm.ask("boot", request, deadlines.start).await?;
        for (interface, tap) in interfaces(spec).into_iter().zip(&started.taps) {
            let descriptors = [tap.as_fd()];
            let request = with_descriptors(path::ADD_NET, interface, &descriptors);
            vmm.ask("boot", request, deadlines.command).await?;
        }
        let request = Request::put(path::BOOT, None);
        vmm.ask("boot", request, deadlines.boot).await
    };
    started.daemons.beside(&spec.log, booted).await?;
    let begun = now();
    started.belongings.files.hide_kernel()?;
    view.take_console(&spec.console)?;
    vmm.timeline.since("unlink", begun);
    Ok(ChVm::new(started, spec))
}

/// Loads a saved state; the VM is paused then.
pub(super) async fn restore(
    driver: &CloudHypervisor,
    spec: &VmSpec,
    state: &Path,
    mode: MemoryMode,
) -> Result<ChVm, Error> {
    let timeline = Timeline::default();
    if !spec.directories.is_empty() {
        // Version 53 takes no virtiofsd's state back ("backend internal error").
        return Err(Error::Unsupported("restoring a vm with a shared directory"));
    }
    let offer = Offer::of(spec, &driver.confinement).await?;
    let begun = now();
    let state = SavedState::read(state)?;
    check_where_memory_is(&state, spec)?;
    check_memory(spec)?;
    let begun = timeline.since("read the state", begun);
    let user = driver.confinement.user();
    let mut belongings = Belongings::prepare(spec)?;
    let view = View::of(spec, &belongings.files, Start::Restore(&state), user)?;
    belongings.expect(view.made_console());
    let config = restored_vm(&view.spec, surroundings(driver, &view))?;
    let files = &belongings.files;
    files.prepare_restore(&state, &config, &view, user)?;
    timeline.since("bind, mkdir, write the state", begun);
    let request = restore_request(spec, &view.files.restore(), mode)?;
    let started = launch(driver, spec, &view, belongings, &offer, timeline)?;
    let loaded = load(driver, &started, request);
    started.daemons.beside(&spec.log, loaded).await?;
    let begun = now();
    started.belongings.files.finish_restore()?;
    view.take_console(&spec.console)?;
    started.vmm.timeline.since("unlink, rmdir", begun);
    Ok(ChVm::new(started, spec))
}

async fn load(driver: &CloudHypervisor, started: &Started, request: Value) -> Result<(), Error> {
    let descriptors: Vec<BorrowedFd<'_>> = started.taps.iter().map(AsFd::as_fd).collect();
    let request = with_descriptors(path::RESTORE, request, &descriptors);
    // The first request, too: the VMM has to start before it reads it.
    let deadline = driver.deadlines.start + driver.deadlines.load;
    let loaded = started.vmm.ask("restore", request, deadline).await;
    loaded.map(drop).map_err(refused("restore"))
}

fn surroundings<'a>(driver: &CloudHypervisor, view: &'a View) -> Surroundings<'a> {
    Surroundings {
        files: &view.files,
        confines_files: driver.confines_files,
    }
}

fn with_descriptors<'a>(
    path: &'static str,
    body: Value,
    descriptors: &'a [BorrowedFd<'a>],
) -> Request<'a> {
    Request {
        descriptors,
        ..Request::put(path, Some(body))
    }
}

/// Refuses a state whose RAM is not where the spec says: the VMM would start
/// with memory full of zeros, or fail late.
fn check_where_memory_is(state: &SavedState, spec: &VmSpec) -> Result<(), Error> {
    let reason = match (&state.memory, &spec.memory.backing) {
        (Some(_), Backing::FileBacked { .. }) => "the ram was saved with the state",
        (None, Backing::Anonymous) => "the ram was not saved with the state, but is a memory file",
        _ => return Ok(()),
    };
    Err(Error::Spec {
        field: "memory.backing",
        reason: reason.to_owned(),
    })
}
