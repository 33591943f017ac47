//! `doctor --guest`: a guest that is booted to be looked at, and is gone after.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tardigrade_tests::{Home, built, processes};

/// For an emulated guest on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The findings, and whether nothing that is needed is missing.
fn doctor(home: &Home, further: &[&str]) -> (Vec<Value>, bool) {
    let words = [&["--output", "json", "doctor", "--guest"], further].concat();
    let output = home.run(words);
    let told = serde_json::from_slice::<Value>(&output.stdout);
    assert!(told.is_ok(), "{told:?}: {output:?}");
    let told = told.unwrap();
    // Whatever was found, no sandbox is left.
    assert_eq!(home.json(["list"])["sandboxes"], json!([]));
    let findings = told["findings"].as_array().unwrap().clone();
    (findings, output.status.success())
}

fn of<'a>(findings: &'a [Value], what: &str) -> &'a Value {
    let found = findings.iter().find(|finding| finding["what"] == what);
    assert!(found.is_some(), "{what} is not in {findings:?}");
    found.unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_guest_is_booted_and_what_its_kernel_lacks_is_named_with_what_it_is_for() {
    let home = Home::new();
    let (findings, healthy) = doctor(&home, &[]);
    assert!(healthy, "{findings:?}");
    let boot = of(&findings, "boot");
    assert!(
        boot["found"].as_str().unwrap().starts_with("agent "),
        "{boot}"
    );
    assert_eq!(of(&findings, "agent")["ok"], true);
    assert_eq!(of(&findings, "confinement")["ok"], true);
    assert_eq!(of(&findings, "kernel configuration")["ok"], true);
    // By a configuration that lacks one thing, the same guest lacks it.
    let config = fs::read_to_string(built("guest/config")).unwrap();
    let without = config.replace("CONFIG_OVERLAY_FS=", "CONFIG_NONE=");
    assert_ne!(config, without);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("without");
    fs::write(&path, without).unwrap();
    let (findings, healthy) = doctor(&home, &["--kernel-config", text(&path)]);
    assert!(!healthy);
    let missing = of(&findings, "CONFIG_OVERLAY_FS");
    assert_eq!(
        (&missing["ok"], &missing["needed"]),
        (&json!(false), &json!(true))
    );
}

#[test]
fn no_program_is_started_to_be_looked_at_that_could_not_be_confined() {
    let home = Home::new();
    let directory = tempfile::tempdir().unwrap();
    let [program, started]: [PathBuf; 2] =
        ["program", "started"].map(|name| directory.path().join(name));
    fs::write(&program, format!("#!/bin/sh\necho >{}\n", text(&started))).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut doctor = home.command(["--output", "json", "doctor"]);
    for variable in ["QEMU", "CLOUD_HYPERVISOR", "FIRECRACKER", "VIRTIOFSD"] {
        doctor.env(variable, &program);
    }
    // Beyond it there are no users.
    let base = u32::MAX.to_string();
    let output = doctor.env("TARDIGRADE_UID_BASE", base).output().unwrap();
    assert!(!output.status.success());
    let told = serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let findings = told["findings"].as_array().unwrap();
    for what in ["qemu", "cloud-hypervisor", "firecracker", "virtiofsd"] {
        let found = of(findings, what);
        assert_eq!(found["ok"], false, "{found}");
        assert!(
            found["advice"].as_str().unwrap().contains("--insecure"),
            "{found}"
        );
    }
    assert!(!started.exists());
}

#[test]
fn a_guest_that_does_not_boot_and_a_kernel_nobody_knows_are_not_called_right() {
    let home = Home::new();
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    fs::write(&kernel, "no kernel").unwrap();
    let (findings, healthy) = doctor(&home, &["--kernel", text(&kernel)]);
    assert!(!healthy);
    assert_eq!(of(&findings, "boot")["ok"], false);
    let unknown = of(&findings, "kernel configuration");
    assert_eq!(unknown["ok"], false);
    assert!(
        unknown["found"].as_str().unwrap().contains("No such file"),
        "{unknown}"
    );
}

#[test]
fn a_guest_that_is_looked_at_is_gone_when_that_is_interrupted() {
    let home = Home::new();
    let mut doctor = home.command(["doctor", "--guest"]).spawn().unwrap();
    let run = home.path().join("run");
    let deadline = Instant::now() + DEADLINE;
    let count = || fs::read_dir(&run).map_or(0, Iterator::count);
    // From when its VM is recorded until it answers there are seconds.
    let is_running = || !processes::machines(home.path()).is_empty();
    while !is_running() {
        assert!(Instant::now() < deadline, "it boots nothing");
        std::thread::yield_now();
    }
    let pid = Pid::from_raw(i32::try_from(doctor.id()).unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = poll(
        &mut [PollFd::new(&pidfd, PollFlags::IN)],
        Some(&left.try_into().unwrap()),
    );
    assert_eq!(ended.unwrap(), 1, "it goes on");
    assert!(!doctor.wait().unwrap().success());
    while is_running() || count() > 0 {
        assert!(Instant::now() < deadline, "its sandbox is left");
        std::thread::yield_now();
    }
}
