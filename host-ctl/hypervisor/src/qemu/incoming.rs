//! From a started QEMU to a VM: the kernel runs, or a saved state is loaded.

use std::fs::File;

use serde_json::json;

use super::Qemu;
use super::launch::Started;
use super::qmp::{Command, Reply};
use super::vm::QemuVm;
use super::vmm::{STATE_NAME, migration_capabilities, migration_end};
use crate::error::Error;
use crate::spec::VmSpec;
use crate::vm::VmState;

/// Waits until a new VM's CPUs run.
pub(super) async fn boot(driver: &Qemu, spec: &VmSpec, started: Started) -> Result<QemuVm, Error> {
    let vmm = &started.vmm;
    let commands = vec![
        Command::new("qmp_capabilities"),
        Command::new("query-status"),
    ];
    let asked = vmm.ask("boot", commands, driver.deadlines.start);
    let replies = started.making(&spec.log, asked).await?;
    let names = ["qmp_capabilities (machine created)", "query-status"];
    note(&started, &names, &replies).await?;
    let status = replies
        .last()
        .and_then(|reply| reply.value["status"].as_str());
    if status != Some("running") {
        return Err(Error::State {
            verb: "boot",
            needed: VmState::Running,
            found: super::vm::state_of(status.unwrap_or_default()),
        });
    }
    Ok(QemuVm::new(started, spec))
}

/// Loads a saved state; the VM is paused then.
pub(super) async fn restore(
    driver: &Qemu,
    spec: &VmSpec,
    state: File,
    started: Started,
) -> Result<QemuVm, Error> {
    let vmm = &started.vmm;
    let mut events = vmm.monitor.events();
    let commands = vec![
        Command::new("qmp_capabilities"),
        migration_capabilities(),
        Command::leave(STATE_NAME, state.into()),
        Command::with(
            "migrate-incoming",
            json!({ "uri": format!("fd:{STATE_NAME}") }),
        ),
    ];
    let replies = vmm.ask("restore", commands, driver.deadlines.start).await?;
    let names = [
        "qmp_capabilities (machine created)",
        "migrate-set-capabilities",
        "getfd",
        "migrate-incoming",
    ];
    let answered = note(&started, &names, &replies).await?;
    let loaded = vmm.event(
        "restore",
        "loading the state",
        &mut events,
        driver.deadlines.load,
        migration_end,
    );
    let (complete, at) = loaded.await?;
    started
        .timeline
        .between("MIGRATION completed", answered, at.max(answered));
    if !complete {
        return Err(vmm.migration_error("restore").await);
    }
    drop(events);
    Ok(QemuVm::new(started, spec))
}

/// Notes when QEMU greeted and when it answered each command; returns when the
/// last answer came.
async fn note(started: &Started, names: &[&'static str], replies: &[Reply]) -> Result<u64, Error> {
    let greeted = started
        .vmm
        .monitor
        .greeting(started.vmm.deadlines.command)
        .await?;
    let timeline = &started.timeline;
    let mut before = timeline.between(
        "qmp greeting (qemu linked, options read)",
        started.at,
        greeted,
    );
    for (name, reply) in names.iter().copied().zip(replies) {
        before = timeline.between(name, before, reply.at);
    }
    Ok(before)
}
