//! What the tests of copies share that somebody made without our host: a
//! workload that counts, and what its guest's agent and kernel say.

use crate::console::Console;
use crate::machine::{self, Failure, Machine};
use agent_client::{Generation, Identity, Network, Purpose, QuiesceId, ThawOrder};
use hypervisor::{Hypervisor, VmSpec};
use std::path::Path;
use std::time::{Duration, Instant};

/// Every wait here is for an emulated guest on a shared machine.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Counts, for as long as it runs.
pub const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done";
/// What every refusal says.
const STRAY: &str = "a copy that nobody has thawed";
/// What the console says.
const FROZEN: &str = "a copy that nobody has thawed: its workload is frozen";

/// Boots a machine whose agent watches for being in a copy, and lets it count.
///
/// # Errors
/// When any of it fails, or the agent does not watch.
pub async fn boot_and_count(
    hypervisor: &dyn Hypervisor,
    spec: &VmSpec,
) -> Result<Machine, Failure> {
    let booted = Machine::boot(hypervisor, spec).await?;
    let details = booted.agent.guest_details(DEADLINE).await?;
    if !details.extra_features.contains(&"copy-watch".to_owned()) {
        return Err(format!("the agent watches for no copy: {details:?}").into());
    }
    booted.start(&["sh", "-c", COUNTER]).await?;
    see_running(&booted).await?;
    Ok(booted)
}

/// What the workload has counted up to.
///
/// # Errors
/// When it is not told.
async fn count(machine: &Machine) -> Result<u64, Failure> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        // Between being emptied and written the file holds nothing.
        let (_, shown) = machine.exec(&["cat", "/tmp/count"]).await?;
        if let Ok(count) = shown.trim().parse() {
            return Ok(count);
        }
    }
    Err("nothing is counted".into())
}

/// Waits until it has counted further.
///
/// # Errors
/// When it does not.
pub async fn see_running(machine: &Machine) -> Result<(), Failure> {
    let deadline = Instant::now() + DEADLINE;
    let before = count(machine).await?;
    while count(machine).await? <= before {
        if Instant::now() > deadline {
            return Err("the workload stands still".into());
        }
    }
    Ok(())
}

/// How often the guest's kernel was told that it runs in a copy.
///
/// # Errors
/// When it cannot be asked.
pub async fn told(machine: &Machine) -> Result<usize, Failure> {
    let busybox = format!("{}/bin/busybox dmesg", machine::ROOTFS);
    let (_, log) = machine.exec_in_guest(&busybox).await?;
    let told = log.matches("crng reseeded due to virtual machine fork");
    Ok(told.count())
}

/// Restores a copy of a machine that was saved while it counted, thaws nothing,
/// and sees that it says so, does nothing and refuses all until it is thawed.
///
/// # Errors
/// When any of it fails.
///
/// # Panics
/// When the copy runs, or does not as soon as it may.
pub async fn see_frozen_until_thawed(
    hypervisor: &dyn Hypervisor,
    state: &Path,
    saved: &VmSpec,
) -> Result<(), Failure> {
    let (_kept, directory) = machine::directory();
    let (copy, mut console) =
        Machine::resume_and_listen(hypervisor, state, saved, &directory).await?;
    console.hear(FROZEN).await?;
    let draining = tokio::spawn(Console::drain(console));
    let serves = refusal(copy.agent.check(DEADLINE).await)?;
    assert!(serves.contains("does not serve"), "{serves}");
    let refused = refusal(copy.exec(&["true"]).await)?;
    assert!(refused.contains(STRAY), "{refused}");

    let quiesced = copy.agent.quiesce(Purpose::Template, DEADLINE).await?;
    let order = own_life(quiesced.quiesce_id)?;
    copy.agent.thaw(&order, DEADLINE).await?;
    let released = copy.agent.release(order.generation, None, DEADLINE).await;
    released?;
    copy.agent.check(DEADLINE).await?;
    see_running(&copy).await?;
    assert_eq!(told(&copy).await?, 1);
    copy.kill().await?;
    draining.await?;
    Ok(())
}

/// Restores a copy of a machine that was saved quiesced, thaws and releases it,
/// and sees that it runs although its kernel is told that it is a copy.
///
/// # Errors
/// When any of it fails.
pub async fn see_a_thawed_one_run(
    hypervisor: &dyn Hypervisor,
    state: &Path,
    saved: &VmSpec,
    quiesce_id: QuiesceId,
) -> Result<(), Failure> {
    let (_kept, directory) = machine::directory();
    let clone = Machine::resume_copy(hypervisor, state, saved, &directory).await?;
    let order = own_life(quiesce_id)?;
    clone.agent.thaw(&order, DEADLINE).await?;
    let released = clone.agent.release(order.generation, None, DEADLINE).await;
    released?;
    let deadline = Instant::now() + DEADLINE;
    while told(&clone).await? == 0 {
        if Instant::now() > deadline {
            return Err("the kernel was told nothing".into());
        }
    }
    see_running(&clone).await?;
    clone.agent.check(DEADLINE).await?;
    clone.kill().await
}

fn refusal<T, E: std::fmt::Display>(outcome: Result<T, E>) -> Result<String, Failure> {
    match outcome {
        Ok(_) => Err("it was not refused".into()),
        Err(error) => Ok(error.to_string()),
    }
}

fn own_life(quiesce_id: QuiesceId) -> Result<ThawOrder, Failure> {
    Ok(ThawOrder {
        quiesce_id,
        generation: Generation::random()?,
        identity: Identity {
            hostname: "copy".into(),
            machine_id: "1".repeat(32),
            boot_id: "00000000-0000-4000-8000-000000000001".into(),
        },
        network: Network::default(),
        dns: Vec::new(),
        files: Vec::new(),
    })
}
