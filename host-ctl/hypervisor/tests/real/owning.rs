//! Who owns a VM: its end, taking it over, and mistaken identities.

use std::time::Duration;

use hypervisor::qemu::{ProbeRequest, Qemu, probe};
use hypervisor::{
    Accelerator, Backing, Deadlines, Error, Hypervisor, MonitorError, VmExit, VmState, adopt,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use crate::lab::{Lab, PATIENCE};

const EMULATION: ProbeRequest<'static> = ProbeRequest {
    program: None,
    kernel: None,
    kernel_digest: "",
};

#[tokio::test]
async fn killing_twice_is_no_error() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("twice", Backing::Anonymous))
        .await
        .unwrap();
    vm.kill().await.unwrap();
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await.unwrap(), VmExit::Signalled(9));
    let error = vm.info().await.unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
}

#[tokio::test]
async fn a_vmm_killed_from_outside_is_noticed_at_once_by_everyone_who_waits() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("outside", Backing::Anonymous))
        .await
        .unwrap();
    let pid = Pid::from_raw(vm.record().pid).unwrap();
    let killed = async {
        kill_process(pid, Signal::KILL).unwrap();
        std::time::Instant::now()
    };
    let both = async { tokio::join!(vm.wait(), vm.wait(), killed) };
    let (first, second, at) = timeout(PATIENCE, both).await.unwrap();
    // Before anything that is asked from time to time could have told.
    assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
    assert_eq!(
        (first.unwrap(), second.unwrap()),
        (VmExit::Signalled(9), VmExit::Signalled(9))
    );
}

#[tokio::test]
async fn a_vm_outlives_its_owner_and_is_adopted_in_the_state_it_is_in() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("orphan", Backing::Anonymous))
        .await
        .unwrap();
    vm.pause().await.unwrap();
    let record = vm.record();
    drop(vm);
    let record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    let vm = adopt(&record, Deadlines::default()).await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Paused);
    vm.resume().await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_vm_that_has_an_owner_is_not_adopted() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("owned", Backing::Anonymous))
        .await
        .unwrap();
    let short = Deadlines {
        command: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let error = adopt(&vm.record(), short).await.err().unwrap();
    assert!(
        matches!(error, Error::Monitor(MonitorError::Silent { .. })),
        "{error}"
    );
    // The owner has lost nothing by it.
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_vmm_that_hangs_is_a_deadline_and_can_be_killed() {
    let Some(lab) = Lab::new().await else { return };
    let found = probe(&EMULATION, None, &hypervisor::Confinement::Insecure)
        .await
        .unwrap();
    let short = Deadlines {
        command: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let vm = Qemu::new(&found, short)
        .boot(&lab.spec("hangs", Backing::Anonymous))
        .await
        .unwrap();
    kill_process(Pid::from_raw(vm.record().pid).unwrap(), Signal::STOP).unwrap();
    for error in [vm.info().await.unwrap_err(), vm.pause().await.unwrap_err()] {
        assert!(
            matches!(error, Error::Monitor(MonitorError::Silent { .. })),
            "{error}"
        );
    }
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn another_process_with_the_recorded_number_is_not_adopted_nor_touched() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("identity", Backing::Anonymous))
        .await
        .unwrap();
    let record = vm.record();
    let mut wrong = [
        record.clone(),
        record.clone(),
        record.clone(),
        record.clone(),
    ];
    wrong[0].start_time += 1;
    wrong[1].boot_id = "00000000-0000-0000-0000-000000000000".into();
    wrong[2].pid = i32::try_from(std::process::id()).unwrap();
    wrong[3].pid = 0;
    for record in wrong {
        let error = adopt(&record, Deadlines::default()).await.err().unwrap();
        assert!(matches!(error, Error::Identity { .. }), "{error}");
    }
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    vm.kill().await.unwrap();
    let error = adopt(&record, Deadlines::default()).await.err().unwrap();
    assert!(matches!(error, Error::Identity { .. }), "{error}");
}

#[tokio::test]
async fn a_paused_vm_is_shut_down_at_once_and_a_deaf_one_at_the_deadline() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("paused", Backing::Anonymous))
        .await
        .unwrap();
    vm.pause().await.unwrap();
    assert_eq!(vm.shutdown(PATIENCE).await.unwrap(), VmExit::Signalled(9));
    let vm = lab
        .driver
        .boot(&lab.spec("deaf", Backing::Anonymous))
        .await
        .unwrap();
    // Its kernel has not even started: it does not see the button.
    assert_eq!(
        vm.shutdown(Duration::from_millis(50)).await.unwrap(),
        VmExit::Signalled(9)
    );
    assert_eq!(vm.shutdown(PATIENCE).await.unwrap(), VmExit::Signalled(9));
}

#[tokio::test]
async fn a_probe_is_bounded_says_why_and_is_repeated_only_when_something_changed() {
    let Some(lab) = Lab::new().await else { return };
    let request = ProbeRequest {
        program: None,
        kernel: Some(lab.kernel()),
        kernel_digest: "digest",
    };
    let found = timeout(
        Duration::from_secs(10),
        probe(&request, None, &hypervisor::Confinement::Insecure),
    )
    .await
    .unwrap()
    .unwrap();
    assert!(!found.accelerator.reason.is_empty());
    eprintln!(
        "{}: {}",
        found.accelerator.accelerator, found.accelerator.reason
    );
    let kept = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
    let again = timeout(
        Duration::from_secs(2),
        probe(&request, Some(&kept), &hypervisor::Confinement::Insecure),
    )
    .await
    .unwrap();
    assert_eq!(again.unwrap(), found);
    let none = ProbeRequest {
        kernel: None,
        ..request
    };
    let emulated = probe(&none, Some(&kept), &hypervisor::Confinement::Insecure)
        .await
        .unwrap();
    assert_eq!(emulated.accelerator.accelerator, Accelerator::Tcg);
}
