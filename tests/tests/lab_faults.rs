//! Faults on every VMM, in the nested host: what is killed, replaced, removed or
//! full at the wrong moment leaves whole sandboxes or nothing, and nobody else
//! notices. `faults` does the same and more, emulated, on QEMU.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use host_ctl::supervisor::CLONE_STEPS;
use host_ctl::template::save;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tardigrade_tests::place::Place;
use tardigrade_tests::read_only::ReadOnly;
use tardigrade_tests::{processes, sandbox};

/// The variable by which a debug build of `host-ctl` is told where to die.
const KILL_AT: &str = "TARDIGRADE_KILL_AT";
/// For what was killed to be gone, in a machine that is emulated twice.
const GONE: Duration = Duration::from_secs(120);
/// The steps of a build that a VMM has to do with.
const BUILD_STEPS: [&str; 5] = [
    "boot: agent call CreateSandbox",
    "build: record the VM",
    "build: pause and save",
    "build: kill and reap the VM",
    "build: rename into place",
];

/// The steps of a save before its guest is to freeze.
const BEFORE_THE_FREEZE: [&str; 3] = [
    "save: keep the images",
    "save: make the staging directory",
    "save: write the record",
];

/// A template, and a clone of it that must not notice what dies beside it.
struct Street {
    place: Place,
    neighbour: String,
    machines: BTreeSet<i32>,
}

impl Street {
    fn new(vmm: &'static str) -> Self {
        let place = Place::new(vmm);
        let _ = place.make(&["template", "build", "shell"], &[]);
        let clones = place.home.clone_template("shell", 1);
        Self {
            neighbour: sandbox(&clones[0]).to_owned(),
            machines: machines(place.home.path()),
            place,
        }
    }

    /// What is there beside the neighbour's.
    fn left(&self) -> Vec<String> {
        let home = self.place.home.path();
        let mut left: Vec<String> = machines(home)
            .symmetric_difference(&self.machines)
            .map(|pid| format!("process {pid} came or went"))
            .collect();
        for directory in ["run", "store/staging"] {
            let entries = fs::read_dir(home.join(directory)).unwrap().flatten();
            let names = entries.map(|entry| entry.path().display().to_string());
            left.extend(names.filter(|name| !name.ends_with(&self.neighbour)));
        }
        left
    }

    /// Sweeps until nothing but the neighbour is left, which answers.
    fn sweep(&self, fault: &str) {
        let deadline = Instant::now() + GONE;
        loop {
            self.place.home.text(["gc"]);
            let left = self.left();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "{fault}: {left:#?}");
        }
        let answer = self.place.shell(&self.neighbour, "echo here");
        assert_eq!(answer, "here\n", "{fault}");
    }

    /// Every sandbox beside the neighbour answers; they are removed.
    fn remove_whole(&self, fault: &str) {
        let listed = self.place.home.json(["list"]);
        for other in listed["sandboxes"].as_array().unwrap() {
            let id = sandbox(other);
            if id != self.neighbour && other["state"] == "running" {
                assert_eq!(self.place.shell(id, "echo here"), "here\n", "{fault}");
            }
            if id != self.neighbour {
                self.place.home.text(["rm", id]);
            }
        }
        self.sweep(fault);
    }
}

fn machines(home: &Path) -> BTreeSet<i32> {
    let pids = processes::machines(home).into_iter();
    pids.map(|pid| pid.as_raw_nonzero().get()).collect()
}

fn output_of(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{}\n{out}{error}", output.status)
}

fn clones_killed(vmm: &'static str) {
    let street = Street::new(vmm);
    let home = &street.place.home;
    for step in CLONE_STEPS {
        let mut command = home.command(["clone", "shell"]);
        let output = command.env(KILL_AT, step).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{step}: {}",
            output_of(&output)
        );
        street.sweep(step);
    }
    for step in save::STEPS {
        let mut command = home.command(["--output", "json", "clone", "shell"]);
        let output = command.env(KILL_AT, step).output().unwrap();
        assert!(output.status.success(), "{step}: {}", output_of(&output));
        let cloned: Value = serde_json::from_slice(&output.stdout).unwrap();
        let id = sandbox(&cloned["clones"][0]);
        let error = home.failure(["template", "save", "doomed", id]);
        let is_told = error.contains("went away") || error.contains("is stopped");
        assert!(is_told, "{step}: {error}");
        home.text(["gc"]);
        // Until its guest was to freeze, the sandbox is its owner's; then it is
        // over.
        let lives = BEFORE_THE_FREEZE.contains(&step);
        let state = &home.json(["inspect", id])["state"];
        assert_eq!(*state == "running", lives, "{step}: {state}");
        street.remove_whole(step);
    }
    street.place.home.text(["rm", &street.neighbour]);
    street.place.end();
}

fn builds_killed(vmm: &'static str) {
    let street = Street::new(vmm);
    for (seconds, step) in (200_000..).zip(BUILD_STEPS) {
        let words = street
            .place
            .words(&["template", "build", "doomed"], &[], seconds);
        let mut command = street.place.home.command(words);
        let output = command.env(KILL_AT, step).output().unwrap();
        assert_eq!(output.status.code(), None, "{step}: {}", output_of(&output));
        street.sweep(step);
        let listed = street.place.home.json(["template", "list"]);
        assert_eq!(listed["templates"].as_array().unwrap().len(), 1, "{step}");
    }
    street.place.home.text(["rm", &street.neighbour]);
    street.place.end();
}

/// The VMM dies: of a clone in the making, and of one that runs.
fn vmms_killed(vmm: &'static str) {
    let street = Street::new(vmm);
    let home = &street.place.home;
    let mut cloning = home.command(["clone", "shell"]);
    let cloning = cloning.stdout(Stdio::piped()).stderr(Stdio::piped());
    let cloning = cloning.spawn().unwrap();
    let deadline = Instant::now() + GONE;
    let victim = loop {
        let now = machines(home.path());
        if let Some(pid) = now.difference(&street.machines).next() {
            break *pid;
        }
        assert!(Instant::now() < deadline, "no VMM was started");
    };
    end(victim);
    let output = cloning.wait_with_output().unwrap();
    let told = output_of(&output);
    // Booted cold in its place, or told; or handed over a moment before.
    println!("{vmm}: killed in the making: {told}");
    assert!(
        told.contains("1 ready") || told.contains("1 failed"),
        "{told}"
    );
    street.remove_whole("a VMM killed in the making");

    let clones = home.clone_template("shell", 1);
    let id = sandbox(&clones[0]);
    let pid = home.json(["inspect", id])["vm"]["pid"].as_i64().unwrap();
    end(i32::try_from(pid).unwrap());
    home.failure(["exec", id, "--", "echo", "here"]);
    let deadline = Instant::now() + GONE;
    while home.json(["inspect", id])["state"] != "stopped" {
        assert!(Instant::now() < deadline, "{id} is not told to have ended");
    }
    street.remove_whole("a VMM killed at work");
    street.place.home.text(["rm", &street.neighbour]);
    street.place.end();
}

fn end(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Where the VMM's program is.
fn program(home: &Path) -> PathBuf {
    let pid = *machines(home).first().unwrap();
    fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// A template that another build of the VMM has saved is not cloned by this.
fn another_program(vmm: &'static str) {
    let street = Street::new(vmm);
    let home = &street.place.home;
    // QEMU finds its firmware and its modules beside the directory it lies in,
    // where its user has to get at them.
    let installed = tempfile::tempdir().unwrap();
    fs::set_permissions(installed.path(), Permissions::from_mode(0o755)).unwrap();
    let directory = installed.path().join("bin");
    fs::create_dir(&directory).unwrap();
    for name in ["share", "lib"] {
        let there = Path::new("/usr").join(name);
        symlink(there, installed.path().join(name)).unwrap();
    }
    let copy = directory.join(vmm);
    fs::copy(program(home.path()), &copy).unwrap();
    // Nothing that is loaded: the same program, and not the same file.
    let mut appended = File::options().append(true).open(&copy).unwrap();
    appended.write_all(b"another build").unwrap();
    drop(appended);
    let variable = vmm.to_uppercase().replace('-', "_");
    let mut command = home.command(["--output", "json", "clone", "shell"]);
    let output = command.env(&variable, &copy).output().unwrap();
    assert!(output.status.success(), "{}", output_of(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let clone = &outcome["clones"][0];
    assert_eq!(clone["booted"], true, "{clone}");
    let reason = clone["fallback"].as_str().unwrap();
    assert!(reason.contains("vmm.program differs"), "{reason}");
    let id = sandbox(clone);
    assert_eq!(street.place.shell(id, "echo here"), "here\n");
    street.remove_whole("another program");

    // Nor does a sandbox become a template of a program that is not its own.
    let clones = home.clone_template("shell", 1);
    let id = sandbox(&clones[0]);
    let supervisor = home.json(["inspect", id])["supervisor"]["pid"]
        .as_i64()
        .unwrap();
    end(i32::try_from(supervisor).unwrap());
    let mut command = home.command(["template", "save", "other", id]);
    let output = command.env(&variable, &copy).output().unwrap();
    let told = output_of(&output);
    assert!(told.contains("was replaced since"), "{told}");
    assert_eq!(street.place.shell(id, "echo here"), "here\n");
    street.remove_whole("another program at a save");
    street.place.home.text(["rm", &street.neighbour]);
    street.place.end();
}

/// A template is removed while four clones of it start.
fn removed_while_cloned(vmm: &'static str) {
    let street = Street::new(vmm);
    let home = &street.place.home;
    let mut cloning = home.command(["--output", "json", "clone", "shell", "-n", "4"]);
    let cloning = cloning.stdout(Stdio::piped()).stderr(Stdio::piped());
    let cloning = cloning.spawn().unwrap();
    let deadline = Instant::now() + GONE;
    while machines(home.path()).len() < 3 {
        assert!(Instant::now() < deadline, "no VMM was started");
    }
    home.text(["template", "rm", "shell"]);
    home.text(["gc"]);
    let output = cloning.wait_with_output().unwrap();
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |what: &str| outcome[what].as_array().unwrap().len();
    assert_eq!(count("clones") + count("failures"), 4, "{outcome}");
    println!(
        "{vmm}: {} ready, {} failed",
        count("clones"),
        count("failures")
    );
    for clone in outcome["clones"].as_array().unwrap() {
        let answer = street.place.shell(sandbox(clone), "echo here");
        assert_eq!(answer, "here\n", "{clone}");
    }
    street.remove_whole("a template removed");
    street.place.home.text(["rm", &street.neighbour]);
    street.place.end();
}

/// The disk is full when a clone is saved.
fn full_disk(vmm: &'static str) {
    let place = Place::new(vmm);
    let home = &place.home;
    let small = c"size=400m,mode=700";
    mount("tmpfs", home.path(), "tmpfs", MountFlags::NODEV, small).unwrap();
    let _disk = Disk(home.path().to_owned());
    let _ = place.make(&["template", "build", "shell"], &[]);
    let clones = home.clone_template("shell", 2);
    let (refused, other) = (sandbox(&clones[0]), sandbox(&clones[1]));
    let filler = home.path().join("filler");
    fill(&filler);
    // Room for records, for less than any guest's memory.
    File::options()
        .write(true)
        .open(&filler)
        .and_then(|file| file.set_len(file.metadata()?.len() - (4 << 20)))
        .unwrap();
    let error = home.failure(["template", "save", "full", refused]);
    println!("{vmm}: {error}");
    assert!(error.contains("it runs on"), "{error}");
    assert!(error.contains("MiB left"), "{error}");
    for id in [refused, other] {
        assert_eq!(place.shell(id, "echo here"), "here\n");
    }
    fs::remove_file(filler).unwrap();
    let listed = home.json(["template", "list"]);
    assert_eq!(listed["templates"].as_array().unwrap().len(), 1);
    home.text(["rm", refused]);
    home.text(["template", "save", "fits", other]);
    home.clone_template("fits", 1);
    place.end();
}

struct Disk(PathBuf);

impl Drop for Disk {
    fn drop(&mut self) {
        // Best effort: what a failed test still runs there keeps it in use.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Writes until there is no space left.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let zeroes = vec![0; 1 << 20];
    let full = loop {
        if let Err(error) = file.write_all(&zeroes) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
}

/// What cannot be written down is told, and nothing comes of it.
fn read_only(vmm: &'static str) {
    let street = Street::new(vmm);
    let home = &street.place.home;
    for directory in ["run", "store"] {
        let mounted = ReadOnly::make(&home.path().join(directory)).unwrap();
        let error = home.failure(["template", "save", "doomed", &street.neighbour]);
        assert!(error.contains("Read-only file system"), "{error}");
        let output = home.run(["clone", "shell"]);
        let told = output_of(&output);
        // A clone writes nothing to the store; one whose VMM needs to is booted.
        assert_eq!(output.status.success(), directory == "store", "{told}");
        drop(mounted);
        street.remove_whole(directory);
    }
    street.place.end();
}

macro_rules! on_each_vmm {
    ($($module:ident: $vmm:literal),*) => {$(
        mod $module {
            #[test]
            fn a_supervisor_killed_at_any_step_of_a_clone_or_a_save_leaves_what_is_whole() {
                super::clones_killed($vmm);
            }

            #[test]
            fn a_killed_build_leaves_nothing() {
                super::builds_killed($vmm);
            }

            #[test]
            fn a_vmm_that_is_killed_is_told_or_replaced_and_leaves_nothing() {
                super::vmms_killed($vmm);
            }

            #[test]
            fn the_state_of_another_build_of_the_vmm_is_not_loaded() {
                super::another_program($vmm);
            }

            #[test]
            fn a_template_removed_while_four_clones_start_harms_none_that_is_handed_over() {
                super::removed_while_cloned($vmm);
            }

            #[test]
            fn a_full_disk_refuses_a_save_and_harms_nothing() {
                super::full_disk($vmm);
            }

            #[test]
            fn a_read_only_directory_is_told_and_harms_nothing() {
                super::read_only($vmm);
            }
        }
    )*};
}

on_each_vmm! {
    qemu: "qemu",
    cloud_hypervisor: "cloud-hypervisor",
    firecracker: "firecracker"
}
