//! Templates made of sandboxes in use: the second generation, and the next.
//! `lab_vmms` does the same on all VMMs.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use host_ctl::config::Paths;
use host_ctl::supervisor::client::Supervisors;
use host_ctl::supervisor::control::Request;
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tardigrade_tests::{Home, images, processes, sandbox, skipped};

/// For what takes seconds: an emulated guest is waited for on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// Says every second who it is.
const COMMAND: [&str; 3] = [
    "sh",
    "-c",
    "while sleep 1; do cat /proc/sys/kernel/random/boot_id; done",
];
const WHO: &str = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; \
                   dd if=/dev/urandom bs=32 count=1 2>/dev/null | sha256sum";

fn shell(home: &Home, id: &str, script: &str) -> String {
    home.text(["exec", id, "--", "sh", "-c", script])
}

/// Hostname, machine id, boot id, and something random.
fn who(home: &Home, id: &str) -> Vec<String> {
    let said = shell(home, id, WHO);
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4, "{said}");
    lines
}

/// Waits until the sandbox's own boot id is in its log: the container goes on,
/// and what it says is read.
fn speaks_for_itself(home: &Home, id: &str, boot_id: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !home.text(["logs", id]).contains(boot_id) {
        assert!(Instant::now() < deadline, "{id} has said nothing");
    }
}

fn manifest(home: &Home, name: &str) -> Value {
    home.json(["template", "inspect", name])
}

#[test]
fn a_clone_is_saved_and_its_clones_keep_what_it_did_and_share_nothing() {
    let home = Home::new();
    let rootfs = images::busybox();
    let mut build = vec!["template", "build", "first", "--memory", "128"];
    build.extend([
        "--ready",
        "true",
        "--rootfs",
        rootfs.to_str().unwrap(),
        "--",
    ]);
    build.extend(COMMAND);
    home.json(build);
    let first = manifest(&home, "first");
    assert_eq!(first["requirements"]["origin"], Value::Null);
    let clones = home.clone_template("first", 2);
    let (parent, uncle) = (sandbox(&clones[0]), sandbox(&clones[1]));
    let mut said: HashSet<String> = HashSet::new();
    said.extend(who(&home, parent));
    said.extend(who(&home, uncle));
    shell(&home, parent, "echo mine > /tmp/kept");

    let saved = home.json(["template", "save", "second", parent]);
    let second = manifest(&home, "second");
    let origin = &second["requirements"]["origin"];
    assert_eq!(origin["sandbox"], parent);
    assert_eq!(origin["parent"], first["digest"]);
    assert_eq!(origin["generation"], 2);
    assert_eq!(saved["digest"], second["digest"]);
    for field in ["machine", "vmm", "containers", "warm_up", "policy", "owner"] {
        let [own, parents] = [&second, &first].map(|one| &one["requirements"][field]);
        assert_eq!(own, parents, "{field}");
    }
    assert_ne!(second["quiesce_id"], first["quiesce_id"]);

    // The sandbox has ended in it, and the other clone has not noticed.
    let error = home.failure(["exec", parent, "--", "echo", "here"]);
    assert!(error.contains("saved as template"), "{error}");
    assert_eq!(home.text(["exec", uncle, "--", "echo", "here"]), "here\n");
    assert_eq!(processes::machines(home.path()).len(), 1);
    let error = home.failure(["template", "save", "again", parent]);
    assert!(error.contains("stopped"), "{error}");
    home.text(["rm", parent]);

    // It needs nothing of the first.
    home.text(["template", "rm", "first"]);
    home.text(["gc"]);
    home.text(["template", "verify", "second"]);
    let clones = home.json(["clone", "second", "-n", "2", "--ready"]);
    for clone in clones["clones"].as_array().unwrap() {
        assert_eq!(clone["booted"], false, "{clone}");
        let id = sandbox(clone);
        assert_eq!(shell(&home, id, "cat /tmp/kept"), "mine\n");
        said.extend(who(&home, id));
        speaks_for_itself(&home, id, clone["identity"]["boot_id"].as_str().unwrap());
    }
    let child = sandbox(&clones["clones"][0]);
    shell(&home, child, "echo and mine >> /tmp/kept");
    home.text(["template", "save", "third", child]);
    let origin = &manifest(&home, "third")["requirements"]["origin"];
    assert_eq!(origin["parent"], second["digest"]);
    assert_eq!(origin["generation"], 3);
    let clones = home.clone_template("third", 1);
    let id = sandbox(&clones[0]);
    assert_eq!(shell(&home, id, "cat /tmp/kept"), "mine\nand mine\n");
    said.extend(who(&home, id));
    assert_eq!(said.len(), 5 * 4, "somebody shares something: {said:?}");
    home.text(["rm", "--all"]);
    home.text(["gc"]);
    assert!(processes::of_home(home.path()).is_empty());
}

/// Keeps everybody else from what this file guards, until it is closed.
fn held(path: &Path) -> File {
    let file = File::open(path).unwrap();
    file.lock().unwrap();
    file
}

/// Waits until the sandbox's supervisor has heard of a save.
fn is_being_saved(home: &Home, id: &str) {
    let paths = Paths::below(home.path()).unwrap();
    let id = id.parse().unwrap();
    let supervisors = Supervisors::of_this_program(paths);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let asked = runtime.block_on(supervisors.ask(&id, &Request::Resume {}));
        if asked.unwrap_err().to_string().contains("being saved") {
            return;
        }
        assert!(Instant::now() < deadline, "the save has not begun");
    }
}

#[test]
fn a_sandbox_is_answered_for_while_it_is_saved() {
    let home = Home::new();
    home.build_template("first", &images::busybox(), &["sleep", "100000"]);
    let clones = home.clone_template("first", 1);
    let id = sandbox(&clones[0]);
    // The save finds no place yet.
    let staging = held(&home.path().join("store/staging"));
    let saving = home
        .command(["--output", "json", "template", "save", "second", id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    is_being_saved(&home, id);
    assert_eq!(home.text(["exec", id, "--", "echo", "here"]), "here\n");
    assert!(home.text(["list"]).contains("running"));
    let error = home.failure(["template", "save", "third", id]);
    assert!(error.contains("being saved"), "{error}");

    // Published, it gets no name yet.
    let names = held(&home.path().join("store/locks/names.lock"));
    drop(staging);
    let deadline = Instant::now() + DEADLINE;
    while !processes::machines(home.path()).is_empty() {
        assert!(Instant::now() < deadline, "its VM is still there");
    }
    let begun = Instant::now();
    home.failure(["exec", id, "--", "echo", "here"]);
    assert!(home.text(["list"]).contains("stopped"));
    home.text(["stop", id]);
    assert!(begun.elapsed() < Duration::from_secs(5), "somebody waited");
    drop(names);
    let output = saving.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    home.text(["rm", id]);
    home.clone_template("second", 1);
}

#[test]
fn a_stop_ends_a_save_that_is_prepared() {
    let home = Home::new();
    home.build_template("first", &images::busybox(), &["sleep", "100000"]);
    let clones = home.clone_template("first", 1);
    let id = sandbox(&clones[0]);
    let staging = held(&home.path().join("store/staging"));
    let saving = home
        .command(["template", "save", "second", id])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    is_being_saved(&home, id);
    home.text(["stop", id, "--grace", "0"]);
    let output = saving.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("stopped before"),
        "{told}"
    );
    drop(staging);
    home.text(["rm", id]);
    home.text(["gc"]);
    home.failure(["clone", "second"]);
    assert_eq!(
        fs::read_dir(home.path().join("store/staging"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_template_that_gets_no_name_is_told_of() {
    let home = Home::new();
    home.text(["template", "list"]);
    let in_the_way = |name| {
        let path = home.path().join("store/names").join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let rootfs = images::busybox();
    let build = |name: &str| {
        let rootfs = rootfs.to_str().unwrap();
        let words = [
            "template", "build", name, "--memory", "128", "--rootfs", rootfs, "--", "true",
        ];
        words.map(str::to_owned)
    };
    // Made for nothing, and found by the digest that is told.
    for _ in 0..2 {
        let path = in_the_way("first");
        let error = home.failure(build("first"));
        assert!(error.contains("but not by that name"), "{error}");
        fs::remove_dir(path).unwrap();
        let digest = error.split("template ").nth(1).unwrap();
        home.text(["template", "verify", &digest[..64]]);
    }
    assert_eq!(home.json(build("first"))["existing"], true);
    let clones = home.clone_template("first", 1);
    let id = sandbox(&clones[0]);
    let path = in_the_way("second");
    let error = home.failure(["template", "save", "second", id]);
    assert!(error.contains("but not by that name"), "{error}");
    fs::remove_dir(path).unwrap();
    let listed = home.json(["template", "list"]);
    assert_eq!(listed["templates"].as_array().unwrap().len(), 2);
    assert!(processes::machines(home.path()).is_empty());
}

#[test]
fn a_saved_sandbox_is_never_booted_in_place_of_its_clone() {
    let home = Home::new();
    home.build_template("first", &images::busybox(), &["sleep", "100000"]);
    let clones = home.clone_template("first", 1);
    let saved = home.json(["template", "save", "second", sandbox(&clones[0])]);
    let directory = home.path().join("store/templates");
    let state = directory
        .join(saved["digest"].as_str().unwrap())
        .join("state");
    fs::remove_file(state).unwrap();
    let output = home.run(["clone", "second"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(told.contains("state is missing"), "{told}");
    assert!(told.contains("nothing can be booted"), "{told}");
    assert!(processes::machines(home.path()).is_empty());
}

#[test]
fn a_sandbox_that_cannot_be_saved_runs_on() {
    let home = Home::new();
    let rootfs = images::busybox();
    let mut run = vec![
        "run",
        "--memory",
        "128",
        "--rootfs",
        rootfs.to_str().unwrap(),
    ];
    run.extend(["--", "sleep", "100000"]);
    let booted = home.json(run);
    let id = sandbox(&booted);
    // QEMU writes RAM that is in no file into its state, where none can map it.
    let error = home.failure(["template", "save", "none", id]);
    assert!(error.contains("was booted, not cloned"), "{error}");
    assert_eq!(home.text(["exec", id, "--", "echo", "here"]), "here\n");

    let listed = home.json(["template", "list"]);
    assert_eq!(listed["templates"], Value::Array(Vec::new()));
    let staging = fs::read_dir(home.path().join("store/staging")).unwrap();
    assert_eq!(staging.count(), 0);
}

#[test]
fn a_clone_of_a_saved_clone_has_its_own_network_and_nothing_of_its_parents() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        skipped("taps need root and /dev/net/tun");
        return;
    }
    let home = Home::new();
    let rootfs = images::busybox();
    let mut build = vec!["template", "build", "net", "--network", "tap"];
    build.extend(["--memory", "128", "--rootfs", rootfs.to_str().unwrap()]);
    build.extend(["--", "sleep", "100000"]);
    home.json(build);
    let parent = home.clone_template("net", 1).remove(0);
    home.json(["template", "save", "net2", sandbox(&parent)]);
    let tap = home.json(["inspect", sandbox(&parent)])["tap"].clone();
    assert_eq!(tap, Value::Null);
    let child = home.clone_template("net2", 1).remove(0);
    let id = sandbox(&child);
    let own = child["addresses"]["guest"].as_str().unwrap();
    assert_ne!(child["addresses"], parent["addresses"]);
    let shown = shell(&home, id, "/bin/busybox ip addr show eth0");
    assert!(shown.contains(&format!("inet {own}")), "{shown}");
    assert_eq!(shown.matches("inet ").count(), 1, "{shown}");
    let mac = home.json(["inspect", id])["tap"]["guest"].clone();
    assert!(shown.contains(mac.as_str().unwrap()), "{shown}");
    let routes = shell(&home, id, "/bin/busybox ip route");
    let host = child["addresses"]["host"].as_str().unwrap();
    let default: Vec<_> = routes
        .lines()
        .filter(|line| line.starts_with("default"))
        .collect();
    assert_eq!(default.len(), 1, "{routes}");
    assert!(default[0].contains(host), "{routes}");
}
