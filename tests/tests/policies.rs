//! A policy baked into the guest image is in force from the agent's start.

use std::process::Command;
use tardigrade_tests::{Home, built, images, sandbox};

#[test]
fn a_policy_in_the_image_denies_exec_in_the_guest_and_not_in_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd.img");
    let policy = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../policy/rego/deny-guest-exec.rego"
    );
    let output = Command::new(built("release/rootfs-builder"))
        .args(["initrd", "--policy", policy, "--agent"])
        .arg(built("x86_64-unknown-linux-musl/release/guest-agent"))
        .arg("--modules")
        .arg(built("guest/modules"))
        .arg("--output")
        .arg(&initrd)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rootfs-builder: {error}");

    let home = Home::new();
    let rootfs = images::busybox();
    let mut arguments = vec!["run", "--initrd", initrd.to_str().unwrap(), "--rootfs"];
    arguments.extend([rootfs.to_str().unwrap(), "--memory", "128"]);
    arguments.extend(["--", "sleep", "100000"]);
    let booted = home.json(arguments);
    let id = sandbox(&booted);
    assert_eq!(
        home.text(["exec", id, "--", "echo", "allowed"]),
        "allowed\n"
    );
    let output = home.run(["exec", id, "--guest", "--", "/sbin/guest-agent"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        error.contains("ExecRequest is blocked by policy"),
        "{error}"
    );
}
