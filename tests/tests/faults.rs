//! What kills and full disks leave behind: after `gc` nothing, and nothing of
//! anybody else is touched.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use host_ctl::supervisor::CLONE_STEPS;
use host_ctl::template::{STEPS, save};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};
use tardigrade_tests::read_only::ReadOnly;
use tardigrade_tests::{Home, images, processes, sandbox, skipped};

/// For what takes seconds: an emulated guest is waited for on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// For a process that was killed to be gone, on a busy machine.
const GONE: Duration = Duration::from_secs(60);
/// The variable by which a debug build of `host-ctl` is told where to die.
const KILL_AT: &str = "TARDIGRADE_KILL_AT";
/// Its last step: the template is published, whole, and has no name yet.
const PUBLISHED: &str = "build: set the name";

/// A home with a healthy template and a clone of it, which must not notice
/// what dies beside it.
struct Street {
    home: Home,
    neighbour: String,
    processes: BTreeSet<i32>,
    files: BTreeSet<PathBuf>,
}

impl Street {
    fn new() -> Self {
        let home = Home::new();
        home.build_template("shell", &images::busybox(), &["sleep", "100000"]);
        let clones = home.clone_template("shell", 1);
        let neighbour = sandbox(&clones[0]).to_owned();
        // A clone is handed over before its console is first read: its log is
        // the last of its files to appear.
        let deadline = Instant::now() + GONE;
        let is_console = |file: &PathBuf| file.ends_with(format!("{neighbour}/console.log"));
        while !tree(home.path()).iter().any(is_console) {
            assert!(Instant::now() < deadline, "the neighbour has no console");
            home.text(["gc"]);
        }
        Self {
            processes: pids(home.path()),
            files: tree(home.path()),
            neighbour,
            home,
        }
    }

    /// What is there beside the neighbour's, and what is missing of it.
    fn differences(&self) -> Vec<String> {
        let path = self.home.path();
        let (processes, files) = (pids(path), tree(path));
        let extra = processes.difference(&self.processes).map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("process {pid}: {}", String::from_utf8_lossy(&line))
        });
        let ended = self.processes.difference(&processes);
        let left = files.difference(&self.files);
        let lost = self.files.difference(&files);
        extra
            .chain(ended.map(|pid| format!("process {pid} was ended")))
            .chain(left.map(|file| format!("{} was left", file.display())))
            .chain(lost.map(|file| format!("{} was removed", file.display())))
            .chain(mounts_below(path))
            .collect()
    }

    fn assert_untouched(&self, fault: &str) {
        assert_eq!(self.differences(), [""; 0], "{fault}");
        let output = self
            .home
            .text(["exec", &self.neighbour, "--", "echo", "here"]);
        assert_eq!(output, "here\n", "{fault}");
    }

    /// Sweeps until nothing but the neighbour is left: a supervisor that was
    /// killed may be dying still, and then it is the next sweep's.
    fn sweep(&self, fault: &str) {
        let deadline = Instant::now() + GONE;
        loop {
            self.home.text(["gc"]);
            if self.differences().is_empty() || Instant::now() > deadline {
                return self.assert_untouched(fault);
            }
        }
    }

    fn build_killed_at(&self, step: &str, index: usize) {
        let rootfs = images::busybox();
        let rootfs = rootfs.to_str().unwrap();
        // A template of its own: one that is there is not built again.
        let seconds = (200_000 + index).to_string();
        let build = ["template", "build", "doomed", "--rootfs", rootfs];
        let commands = ["--memory", "128", "--ready", "true", "--warm", "true", "--"];
        let output = finish(
            self.home
                .command(build.into_iter().chain(commands))
                .args(["sleep", &seconds])
                .env(KILL_AT, step)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        assert_eq!(output.status.signal(), Some(9), "{step}: {output:?}");

        let listed = self.home.json(["template", "list"]);
        let digests: Vec<_> = listed["templates"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|template| template["names"].as_array().unwrap().is_empty())
            .map(|template| template["digest"].as_str().unwrap())
            .collect();
        assert_eq!(digests.len(), usize::from(step == PUBLISHED), "{step}");
        self.home.text(["gc"]);
        for digest in digests {
            self.home.text(["template", "verify", digest]);
            self.home.text(["template", "rm", digest]);
            self.home.text(["gc"]);
        }
        self.assert_untouched(step);
    }

    fn clone_killed_at(&self, step: &str) {
        let mut command = self.home.command(["clone", "shell"]);
        command.env(KILL_AT, step);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command.spawn().unwrap());
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("went away"), "{step}: {output:?}");
        assert_eq!(output.status.code(), Some(1), "{step}");
        self.sweep(step);
    }
}

/// Saves a clone whose supervisor dies at that step.
fn save_killed_at(street: &Street, step: &str) {
    let home = &street.home;
    let mut command = home.command(["--output", "json", "clone", "shell"]);
    command.env(KILL_AT, step);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{step}: {output:?}");
    let cloned: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = sandbox(&cloned["clones"][0]);
    let error = home.failure(["template", "save", "doomed", id]);
    // Of a VM that was killed already it is told that it is over.
    let is_told = error.contains("went away") || error.contains("is stopped");
    assert!(is_told, "{step}: {error}");
    let listed = home.json(["template", "list"]);
    let nameless = |template: &&Value| template["names"] == serde_json::json!([]);
    let templates = listed["templates"].as_array().unwrap().iter();
    let nameless: Vec<_> = templates.filter(nameless).collect();
    // Its last step: it is published, whole, and has no name yet.
    let is_published = step == "save: set the name";
    assert_eq!(nameless.len(), usize::from(is_published), "{step}");
    for template in nameless {
        let digest = template["digest"].as_str().unwrap();
        home.text(["template", "verify", digest]);
        home.text(["template", "rm", digest]);
    }
    // Until the guest was to freeze, the sandbox is its owner's; then it is over.
    let lives = step.contains("images") || step.contains("staging") || step.contains("record");
    if lives {
        // The next supervisor's link may be reset by what was left of the last's.
        let answers = || home.run(["exec", id, "--", "echo", "here"]).stdout == b"here\n";
        until(&format!("an answer after {step}"), || {
            answers().then_some(())
        });
    } else {
        let error = home.failure(["exec", id, "--", "echo", "here"]);
        assert!(error.contains("is stopped"), "{step}: {error}");
    }
    home.text(["rm", id]);
    street.sweep(step);
}

#[test]
fn a_supervisor_killed_at_any_step_of_a_save_leaves_a_sandbox_or_a_template_or_nothing() {
    let street = Street::new();
    for step in save::STEPS {
        save_killed_at(&street, step);
    }
}

/// Every second step, so that two tests share the work.
fn kill_builds(first: usize) {
    let street = Street::new();
    for (index, step) in STEPS.iter().enumerate().skip(first).step_by(2) {
        street.build_killed_at(step, index);
    }
}

#[test]
fn a_build_killed_at_an_even_step_leaves_nothing() {
    kill_builds(0);
}

#[test]
fn a_build_killed_at_an_odd_step_leaves_nothing() {
    kill_builds(1);
}

#[test]
fn a_supervisor_killed_at_any_step_of_a_clone_leaves_nothing() {
    let street = Street::new();
    for step in CLONE_STEPS {
        street.clone_killed_at(step);
    }
}

#[test]
fn a_killed_clone_command_leaves_whole_sandboxes_or_nothing() {
    let street = Street::new();
    let home = &street.home;
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("at once", &|| true),
        ("at the first directory", &|| {
            fs::read_dir(home.path().join("run")).unwrap().count() > 1
        }),
        ("at the second VMM", &|| {
            processes::machines(home.path()).len() > 2
        }),
        ("at the first running sandbox", &|| {
            let others = others(&street);
            others.iter().any(|other| other["state"] == "running")
        }),
    ];
    for (moment, reached) in moments {
        let mut child = home
            .command(["clone", "shell", "-n", "4"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + DEADLINE;
        while !reached() {
            assert!(Instant::now() < deadline, "{moment} never came");
        }
        child.kill().unwrap();
        finish(child);

        // Its supervisors live on, and end by themselves when they find that
        // nobody asks for their sandboxes any more.
        let deadline = Instant::now() + DEADLINE;
        while !others_are_whole(&street) {
            assert!(
                Instant::now() < deadline,
                "{moment}: {:#?}",
                street.differences()
            );
        }
        let whole = others(&street);
        eprintln!("killed {moment}: {} sandboxes are there", whole.len());
        for other in &whole {
            home.text(["rm", sandbox(other)]);
        }
        street.sweep(moment);
    }
}

/// The sandboxes that are listed, without the neighbour.
fn others(street: &Street) -> Vec<Value> {
    let listed = street.home.json(["list"]);
    let sandboxes = listed["sandboxes"].as_array().unwrap().iter();
    sandboxes
        .filter(|listed| sandbox(listed) != street.neighbour)
        .cloned()
        .collect()
}

/// Whether, after a sweep, every other sandbox answers and nothing is there
/// that belongs to none of them.
fn others_are_whole(street: &Street) -> bool {
    let home = &street.home;
    home.text(["gc"]);
    let others = others(street);
    let answers = |other: &Value| {
        let output = home.run(["exec", sandbox(other), "--", "echo", "here"]);
        output.status.success() && output.stdout == b"here\n"
    };
    let directories = fs::read_dir(home.path().join("run")).unwrap().count();
    // A sandbox is a supervisor and a VMM.
    others.iter().all(answers)
        && directories == others.len() + 1
        && pids(home.path()).len() == street.processes.len() + 2 * others.len()
}

#[test]
fn a_disk_that_is_full_when_a_template_is_saved_is_told_and_leaves_nothing() {
    let Some(home) = SmallHome::new(256) else {
        return;
    };
    let home = &home.home;
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let build = |warm| {
        let build = ["template", "build", "big", "--rootfs", rootfs];
        home.command(build)
            .args(["--memory", "128", "--warm", warm])
            .args(["--", "sleep", "100000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // The warm command is the time in which the disk is filled.
    let building = build("sleep 5");
    let memory = until("the VM is recorded", || recorded_memory(home.path()));
    // The guest's own memory has its place: it is the save that finds none.
    let memory = OpenOptions::new().write(true).open(memory).unwrap();
    let size = memory.metadata().unwrap().len();
    fallocate(&memory, FallocateFlags::empty(), 0, size).unwrap();
    drop(memory);
    let filler = home.path().join("filler");
    fill(&filler);

    let output = finish(building);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("No space left on device"), "{error}");
    assert!(error.contains("save"), "{error}");
    assert_eq!(pids(home.path()), BTreeSet::new());
    for directory in ["run", "store/staging", "store/templates", "store/names"] {
        let left: Vec<_> = fs::read_dir(home.path().join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
    fs::remove_file(filler).unwrap();
    let output = finish(build("true"));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_disk_too_small_for_the_images_or_the_memory_is_told_and_leaves_nothing() {
    // Room for less than the kernel; for the images and less memory than any
    // guest touches, which a mapping tells by a signal only.
    let disks = [
        (8, "No space left on device"),
        (40, "disk of its memory file"),
    ];
    for (size_mib, cause) in disks {
        let Some(home) = SmallHome::new(size_mib) else {
            return;
        };
        let home = &home.home;
        let rootfs = images::busybox();
        let rootfs = rootfs.to_str().unwrap();
        let build = ["template", "build", "big", "--rootfs", rootfs];
        let rest = ["--memory", "128", "--", "sleep", "100000"];
        let mut command = home.command(build.into_iter().chain(rest));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command.spawn().unwrap());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(cause), "{size_mib} MiB: {error}");
        assert_eq!(pids(home.path()), BTreeSet::new());
        for directory in ["run", "store/staging", "store/templates"] {
            let left: Vec<_> = fs::read_dir(home.path().join(directory)).unwrap().collect();
            assert!(left.is_empty(), "{size_mib} MiB, {directory}: {left:?}");
        }
    }
}

#[test]
fn a_read_only_directory_is_told_and_harms_nothing() {
    let street = Street::new();
    let (home, neighbour) = (&street.home, street.neighbour.as_str());
    let rootfs = images::busybox();
    let rootfs = rootfs.to_str().unwrap();
    let build = [
        "template", "build", "doomed", "--memory", "128", "--rootfs", rootfs,
    ];
    let build = [&build[..], &["--", "sleep", "300000"]].concat();
    for directory in ["run", "store"] {
        let mounted = match ReadOnly::make(&home.path().join(directory)) {
            Ok(mounted) => mounted,
            Err(error) => return skipped(format!("mounting a directory: {error}")),
        };
        let save = vec!["template", "save", "doomed", neighbour];
        for words in [build.clone(), save] {
            let error = home.failure(&words);
            assert!(
                error.contains("Read-only file system"),
                "{words:?}: {error}"
            );
        }
        let answer = home.text(["exec", neighbour, "--", "echo", "here"]);
        assert_eq!(answer, "here\n", "{directory}");
        // A clone writes nothing to the store; QEMU before 8.2 opens its memory as
        // if it did, and is booted in its place.
        let output = home.run(["clone", "shell"]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), directory == "store", "{output:?}");
        let is_told = told.contains("Read-only file system");
        let is_clone = directory == "store" && !told.contains("cold boot");
        assert_ne!(is_told, is_clone, "{told}");
        drop(mounted);
        let listed = home.json(["list"]);
        for other in listed["sandboxes"].as_array().unwrap() {
            if sandbox(other) != neighbour {
                home.text(["rm", sandbox(other)]);
            }
        }
        street.sweep(directory);
    }
}

/// A home on a small disk of its own.
struct SmallHome {
    // Dropped in this order: the home still acts on its disk.
    home: Home,
    _disk: Disk,
}

struct Disk(PathBuf);

impl SmallHome {
    /// `None`, said aloud, where no disk can be mounted.
    fn new(size_mib: u32) -> Option<Self> {
        let home = Home::new();
        let options = format!("size={size_mib}m,mode=700");
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        match mount("tmpfs", home.path(), "tmpfs", flags, options.as_c_str()) {
            Ok(()) => Some(Self {
                _disk: Disk(home.path().to_owned()),
                home,
            }),
            Err(error) => {
                skipped(format!(
                    "a small disk needs the right to mount one: {error}"
                ));
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Best effort: what a failed test still runs there keeps it in use.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

/// The file with the guest's memory of the build in this home, once the VM is
/// recorded: nothing more is written to disk then until it is saved.
fn recorded_memory(home: &Path) -> Option<PathBuf> {
    let only = |directory: &str| {
        let mut entries = fs::read_dir(home.join(directory)).ok()?;
        Some(entries.next()?.ok()?.path())
    };
    let record = fs::read(only("run")?.join("record.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    let memory = only("store/staging")?.join("memory");
    (!record["vm"].is_null() && memory.exists()).then_some(memory)
}

/// Writes until there is no space left.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096] {
        let zeroes = vec![0; size];
        let full = loop {
            if let Err(error) = file.write_all(&zeroes) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}

fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
    }
}

/// Waits for a process with little to say to end.
fn finish(child: Child) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let mut waited = [PollFd::new(&pidfd, PollFlags::IN)];
    let deadline = Timespec::try_from(DEADLINE).unwrap();
    let ready = poll(&mut waited, Some(&deadline)).unwrap();
    assert_eq!(ready, 1, "{child:?} did not end within {DEADLINE:?}");
    child.wait_with_output().unwrap()
}

fn pids(home: &Path) -> BTreeSet<i32> {
    let pids = processes::of_home(home).into_iter();
    pids.map(|pid| pid.as_raw_nonzero().get()).collect()
}

/// Every file below `root`, by its path from there, without the cache of
/// digests: what it knows of a file of the user's stays true.
fn tree(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        if directory.ends_with("store/hashes") {
            continue;
        }
        for entry in fs::read_dir(directory).unwrap().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            }
            found.insert(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    found
}

fn mounts_below(path: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let name = path.canonicalize().unwrap();
    let name = name.to_string_lossy();
    let lines = mounts.lines().filter(|line| line.contains(&*name));
    lines.map(|line| format!("mounted: {line}")).collect()
}
