//! Sandboxes as a user meets them: exec, logs, stop, and what happens when a
//! process of ours or the VMM is killed.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use rustix::process::{Gid, Signal, Uid, kill_process};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tardigrade_tests::{Home, confinement, images, processes, sandbox, skipped};

/// Every wait here is for emulated guests on a shared machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// Below every deadline of host-ctl's, which are 30 s and more, and above what a
/// busy machine makes of some milliseconds.
const AT_ONCE: Duration = Duration::from_secs(20);

fn template(home: &Home) {
    let rootfs = images::busybox();
    home.build_template("shell", &rootfs, &["sleep", "100000"]);
}

#[test]
fn exec_passes_on_exit_code_streams_and_stdin() {
    let home = Home::new();
    template(&home);
    let clones = home.clone_template("shell", 1);
    let id = sandbox(&clones[0]);

    let output = home.run([
        "exec",
        id,
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");

    let started = Instant::now();
    let output = home.run(["exec", id, "--", "no-such-command"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(started.elapsed() < AT_ONCE);
    let output = home.run(["exec", id, "--", "/etc/passwd"]);
    assert_eq!(output.status.code(), Some(126));

    let mut child = home
        .command(["exec", id, "--", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let payload = vec![0xff; 300_000];
    child.stdin.take().unwrap().write_all(&payload).unwrap();
    let output = child.wait_with_output().unwrap();
    let expected = {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(&payload);
        digest
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    assert!(String::from_utf8_lossy(&output.stdout).starts_with(&expected));

    // Two at once: neither waits for the other.
    let mut slow = home
        .command(["exec", id, "--", "sleep", "30"])
        .spawn()
        .unwrap();
    assert_eq!(home.text(["exec", id, "--", "echo", "quick"]), "quick\n");
    slow.kill().unwrap();
    slow.wait().unwrap();

    let output = home.run(["exec", id, "--container", "nobody", "--", "true"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody"));
    let error = home.failure(["exec", "0123456789ab", "--", "true"]);
    assert!(error.contains("0123456789ab"), "{error}");
}

#[test]
fn a_killed_supervisor_is_replaced_by_the_next_command() {
    let home = Home::new();
    template(&home);
    let clones = home.clone_template("shell", 1);
    let id = sandbox(&clones[0]);
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let before = home.text(["exec", id, "--", "cat", boot_id]);

    let inspected = home.json(["inspect", id]);
    let pid = inspected["supervisor"]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();

    assert!(home.text(["list"]).contains(id));
    assert_eq!(home.text(["exec", id, "--", "cat", boot_id]), before);
    home.text(["stop", id]);
    assert!(processes::machines(home.path()).is_empty());
    home.text(["rm", id]);
    assert!(!home.text(["list"]).contains(id));
}

/// What the user with this number may not do in a home.
fn try_as(uid: u32, home: &Path, template: &str, id: &str) {
    let digest = home.join("store/templates").join(template);
    let run = home.join("run").join(id);
    let tried = std::thread::spawn(move || {
        // Users are each thread's own.
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let refused = std::io::ErrorKind::PermissionDenied;
        let memory = std::fs::File::open(digest.join("memory"));
        assert_eq!(memory.unwrap_err().kind(), refused);
        for socket in [
            "vmm/link.sock",
            "monitor.sock",
            "control.sock",
            "agent.sock",
        ] {
            let dialled = UnixStream::connect(run.join(socket));
            assert_eq!(dialled.unwrap_err().kind(), refused, "{socket}");
        }
    });
    tried.join().unwrap();
}

#[test]
fn each_vmm_has_a_user_and_namespaces_of_its_own_and_only_what_it_needs() {
    if !rustix::process::geteuid().is_root() {
        skipped("only root gives VMMs users of their own");
        return;
    }
    let home = Home::new();
    let rootfs = images::busybox();
    let built = home.build_template("shell", &rootfs, &["sleep", "100000"]);
    let template = built["digest"].as_str().unwrap();
    let clones = home.clone_template("shell", 2);
    let mut uids = Vec::new();
    for clone in &clones {
        let id = sandbox(clone);
        let (pid, confined) = confinement::vmm_of(&home, id);
        assert_eq!(clone["confined"], confined);
        let uid = confined["user"]["uid"].as_u64().unwrap();
        let uid = u32::try_from(uid).unwrap();
        confinement::assert_confined(pid, uid);
        let run = home.path().join("run").join(id);
        let templates = home.path().join("store/templates");
        for path in confinement::opened(pid) {
            let text = path.to_string_lossy();
            let kernels = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/"];
            let is_kernels = kernels.iter().any(|kind| text.starts_with(kind));
            let is_its_own = path == run.join("vmm.log")
                || path == templates.join(template).join("memory")
                || path.starts_with(home.path().join("store/blobs"))
                || text == format!("/run/tardigrade-uids/{uid}");
            assert!(is_kernels || is_its_own, "{text}");
        }
        try_as(uid, home.path(), template, id);
        uids.push(uid);
    }
    assert_ne!(uids[0], uids[1]);

    let woken = home.json(["clone", "shell", "--insecure"]);
    let clone = &woken["clones"][0];
    assert_eq!(clone["confined"], "insecure");
    let (pid, confined) = confinement::vmm_of(&home, sandbox(clone));
    assert_eq!(confined, "insecure");
    assert!(confinement::told(pid, "status").contains("\nUid:\t0\t0\t0\t0\n"));
}

/// nobody's user and group.
const NOBODY: u32 = 65534;

#[test]
fn who_is_not_root_has_vmms_with_namespaces_of_their_own() {
    let parent = tardigrade_tests::target().join("homes");
    std::fs::create_dir_all(&parent).unwrap();
    let home = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir_in(parent)
        .unwrap();
    // Who is not root is somebody already.
    let is_root = rustix::process::geteuid().is_root();
    let user = if is_root {
        std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let nobody = |arguments: &[&str]| {
        let mut command = std::process::Command::new(tardigrade_tests::built("debug/host-ctl"));
        command.args(arguments);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.env("TARDIGRADE_HOME", home.path());
        command.env(
            "TARDIGRADE_KERNEL",
            tardigrade_tests::built("guest/vmlinuz"),
        );
        command.env(
            "TARDIGRADE_INITRD",
            tardigrade_tests::built("guest/initrd.img"),
        );
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(errors),
        }
    };
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let machine = [
        "--memory", "128", "--rootfs", rootfs, "--", "sleep", "100000",
    ];
    let build = [&["template", "build", "shell"], machine.as_slice()].concat();
    match nobody(&build) {
        Err(refused) if refused.contains("namespaces of its own") => {
            skipped(format!("this kernel gives nobody namespaces: {refused}"));
            return;
        }
        built => drop(built.unwrap()),
    }
    let woken = nobody(&["--output", "json", "clone", "shell"]).unwrap();
    let woken: serde_json::Value = serde_json::from_str(&woken).unwrap();
    let clone = &woken["clones"][0];
    assert_eq!(clone["booted"], false, "{clone}");
    assert_eq!(clone["confined"], "namespaces");
    let machines = processes::machines(home.path());
    assert_eq!(machines.len(), 1);
    confinement::assert_confined(machines[0], user);
    nobody(&["rm", "--all"]).unwrap();
    assert!(processes::machines(home.path()).is_empty());
}

/// The program that `host-ctl` takes for QEMU.
fn qemu() -> PathBuf {
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        let mut programs = std::env::split_paths(&path).map(|at| at.join("qemu-system-x86_64"));
        programs.find(|program| program.is_file())
    };
    let named = std::env::var_os("QEMU").map(PathBuf::from);
    named.or_else(on_path).expect("qemu-system-x86_64 on PATH")
}

#[test]
fn a_sandbox_whose_vmm_was_uninstalled_is_adopted_stopped_and_removed() {
    let home = Home::new();
    let program = home.path().join("qemu");
    std::os::unix::fs::symlink(qemu(), &program).unwrap();
    let by_it = |arguments: &[&str]| {
        let output = home.command(arguments).env("QEMU", &program).output();
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let booted = by_it(&[
        "--output", "json", "run", "--memory", "128", "--rootfs", rootfs, "--", "sleep", "100000",
    ]);
    let booted: serde_json::Value = serde_json::from_str(&booted).unwrap();
    let id = sandbox(&booted);
    let inspected = home.json(["inspect", id]);
    let pid = inspected["supervisor"]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    std::fs::remove_file(&program).unwrap();

    assert_eq!(by_it(&["exec", id, "--", "echo", "here"]), "here\n");
    by_it(&["stop", id]);
    assert!(processes::machines(home.path()).is_empty());
    by_it(&["rm", id]);
}

#[test]
fn a_killed_vmm_is_a_stopped_sandbox() {
    let home = Home::new();
    template(&home);
    let clones = home.clone_template("shell", 1);
    let id = sandbox(&clones[0]);
    for machine in processes::machines(home.path()) {
        kill_process(machine, Signal::KILL).unwrap();
    }
    let deadline = Instant::now() + DEADLINE;
    while home.json(["inspect", id])["state"] != "stopped" {
        assert!(
            Instant::now() < deadline,
            "the sandbox is not listed as stopped"
        );
    }
    let started = Instant::now();
    let error = home.failure(["exec", id, "--", "true"]);
    assert!(error.contains("stopped"), "{error}");
    assert!(started.elapsed() < AT_ONCE);
}

#[test]
fn a_container_cannot_reach_the_agent() {
    let home = Home::new();
    template(&home);
    let clones = home.clone_template("shell", 1);
    let id = sandbox(&clones[0]);
    // The agent's port is no device of the container's, and making one is
    // refused as well as opening it.
    let script = "ls /dev/vport* /dev/virtio-ports 2>/dev/null; cat /proc/self/mountinfo";
    let text = home.text(["exec", id, "--", "sh", "-c", script]);
    assert!(!text.contains("vport"), "{text}");
}

#[test]
fn bad_input_is_told_at_once_and_leaves_nothing() {
    let home = Home::new();
    let error = home.failure(["clone", "nothing"]);
    assert!(error.contains("nothing"), "{error}");
    let arguments = [
        "template",
        "build",
        "x",
        "--rootfs",
        "/no/such/image",
        "--",
        "true",
    ];
    let error = home.failure(arguments);
    assert!(error.contains("/no/such/image"), "{error}");
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let arguments = [
        "template",
        "build",
        "x",
        "--rootfs",
        rootfs,
        "--",
        "/no/such/command",
    ];
    let error = home.failure(arguments);
    assert!(error.contains("/no/such/command"), "{error}");
    assert!(processes::machines(home.path()).is_empty());
    assert_eq!(
        home.json(["list"])["sandboxes"].as_array().unwrap().len(),
        0
    );
    assert_eq!(
        home.json(["template", "list"])["templates"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}
