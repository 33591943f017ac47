//! The lab's own life, on this machine: what goes in, what comes out, how it
//! ends, and that nothing of it is left then.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long processes that were killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

fn target() -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project.join("target"), PathBuf::from)
}

/// A place of a test's own, in which a lab leaves nothing.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        // Sockets lie in it: their paths are short.
        let place = tempfile::Builder::new().prefix("l").tempdir_in("/tmp");
        Self(place.unwrap())
    }

    fn lab(&self, options: &[&str], command: &str) -> Command {
        let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
        lab.arg("run").arg("--kernel").arg(target().join("guest"));
        lab.arg("--tools").arg(target().join("lab-tools/bin"));
        lab.args(["--memory", "1024"]).args(options);
        lab.args(["--", "sh", "-c", command]);
        lab.env("TMPDIR", self.0.path()).stdin(Stdio::null());
        lab
    }

    fn run(&self, options: &[&str], command: &str) -> Output {
        self.lab(options, command).output().unwrap()
    }

    /// Processes whose command line names this place.
    fn processes(&self) -> Vec<(PathBuf, String)> {
        let name = self.0.path().to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| {
                let words = std::fs::read(entry.path().join("cmdline")).ok()?;
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                Some((entry.path(), words))
            })
            .filter(|(_, words)| words.contains(name))
            .collect()
    }

    /// The only one of them that has this word.
    fn process(&self, word: &str) -> Pid {
        let mut found = self.processes();
        found.retain(|(_, words)| words.contains(word));
        assert_eq!(found.len(), 1, "{found:?}");
        let number = found[0].0.file_name().unwrap().to_str().unwrap();
        Pid::from_raw(number.parse().unwrap()).unwrap()
    }

    fn assert_no_process(&self) {
        let begun = Instant::now();
        while !self.processes().is_empty() {
            assert!(begun.elapsed() < GONE, "{:?}", self.processes());
            std::thread::yield_now();
        }
    }

    fn assert_empty(&self) {
        self.assert_no_process();
        let left: Vec<_> = std::fs::read_dir(self.0.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn streams_and_status_come_out_and_only_the_shared_directory_is_changed() {
    let place = Place::new();
    let shared = tempfile::tempdir_in("/tmp").unwrap();
    let other = tempfile::tempdir_in("/tmp").unwrap();
    let (shared, other) = (shared.path(), other.path());
    std::fs::write(other.join("old"), "old").unwrap();
    let command = format!(
        "head -c 3000000 /dev/zero; echo only error >&2; echo kept >{0}/kept; \
         cat {1}/old >{0}/copy; echo new >{1}/old; echo lost >{1}/lost; \
         test -c /dev/kvm && test -c /dev/vhost-vsock && test -f /run/tardigrade-lab || exit 1; \
         sleep 1000 & exit 7",
        shared.display(),
        other.display()
    );
    let options = ["--quiet", "--share", shared.to_str().unwrap()];
    let output = place.run(&options, &command);
    assert_eq!(text(&output.stderr), "only error\n");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout.len(), 3_000_000);
    let read = |directory: &Path, name| std::fs::read_to_string(directory.join(name)).ok();
    assert_eq!(read(shared, "kept").as_deref(), Some("kept\n"));
    assert_eq!(read(shared, "copy").as_deref(), Some("old"));
    assert_eq!(read(other, "old").as_deref(), Some("old"));
    assert_eq!(read(other, "lost"), None);
    place.assert_empty();
}

/// As much as the pipes and queues on the way hold, and more than the last does.
#[test]
fn a_reader_that_takes_its_time_misses_nothing() {
    let place = Place::new();
    let mut lab = place
        .lab(&[], "head -c 200000 /dev/zero")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(lab.stderr.take().unwrap()).lines();
    let has_ended = |line: std::io::Result<String>| line.unwrap().contains("has ended");
    assert!(said.any(has_ended));
    let mut output = Vec::new();
    lab.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert_eq!(output.len(), 200_000);
    assert_eq!(said.last().unwrap().unwrap().split(' ').nth(3), Some("0"));
    assert!(lab.wait().unwrap().success());
    place.assert_empty();
}

#[test]
fn a_command_that_takes_too_long_is_told_and_ended() {
    let place = Place::new();
    let output = place.run(&["--quiet", "--deadline", "1"], "sleep 1000");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(error.contains("the deadline of 1 s has passed"), "{error}");
    place.assert_empty();
}

#[test]
fn a_machine_that_stands_still_is_told_and_ended() {
    let place = Place::new();
    let lab = up(&place, &["--quiet", "--silence", "30"]);
    let emulator = place.process("-nodefaults");
    kill_process(emulator, Signal::STOP).unwrap();
    let output = lab.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{error}");
    assert!(error.contains("no sign of life for 30 s"), "{error}");
    place.assert_empty();
}

#[test]
fn a_panic_of_the_kernel_is_told_with_its_reason() {
    let place = Place::new();
    let output = place.run(&["--quiet"], "echo c >/proc/sysrq-trigger; sleep 1000");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    let reason = "Kernel panic - not syncing: sysrq triggered crash";
    assert!(error.contains(reason), "{error}");
    place.assert_empty();
}

/// Starts a lab and waits until its command speaks.
fn up(place: &Place, options: &[&str]) -> std::process::Child {
    let mut lab = place
        .lab(options, "echo up; sleep 1000")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = lab.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    assert!(!place.processes().is_empty());
    lab
}

fn kill(lab: &std::process::Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(lab.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_signal_ends_the_machine_and_all_that_belongs_to_it() {
    let place = Place::new();
    let lab = up(&place, &["--quiet"]);
    kill(&lab, Signal::TERM);
    let output = lab.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    assert_eq!(text(&output.stderr), "lab: ended by SIGTERM\n");
    place.assert_empty();
}

#[test]
fn a_killed_lab_takes_its_processes_along() {
    let place = Place::new();
    let mut lab = up(&place, &["--quiet"]);
    kill(&lab, Signal::KILL);
    lab.wait().unwrap();
    place.assert_no_process();
}

#[test]
fn all_that_is_missing_is_named_at_once() {
    let place = Place::new();
    let output = place
        .lab(&[], "true")
        .env("PATH", "/nonexistent")
        .env("VIRTIOFSD", "/nonexistent/virtiofsd")
        .output()
        .unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    let packages = [
        "qemu-system-x86",
        "busybox-static",
        "/nonexistent/virtiofsd",
    ];
    for package in packages {
        assert!(error.contains(package), "{package}: {error}");
    }
    let error = text(&place.run(&["--kernel-twice"], "true").stderr);
    assert!(error.contains("--kernel-twice"), "{error}");
    place.assert_empty();
}
