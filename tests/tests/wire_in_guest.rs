//! The suite of the wire (guest-agent/tests/wire) once more, inside a microVM:
//! on the guest's kernel, with the guest's cgroups and the agent that is the
//! guest's PID 1, started again for each test. What a host may lack, and what
//! is skipped there, is all there: a skip is an error. Left out is one test, of
//! hundreds of containers: it takes minutes of an emulated processor.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as expected"
)]

use hypervisor::Disk;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use tardigrade_tests::images::root_disk;
use tardigrade_tests::machine::{self, Machine};

/// What the suite runs, beside busybox and itself: programs of the
/// distribution's that busybox has not, or not with what is asked of them.
const PROGRAMS: [&str; 2] = ["setpriv", "unshare"];
const APPLETS: [&str; 9] = [
    "sh", "mount", "mkdir", "printf", "sed", "cat", "chmod", "echo", "yes",
];
/// The least that it has, so that an empty one is no success.
const TESTS_MIN: usize = 39;
/// Tests of concurrency, which look at who waits for whom, have the guest to
/// themselves.
const SCRIPT: &str = "export PATH=/bin GUEST_AGENT=/sbin/init REQUIRE_ALL=1; exec 2>&1; \
    wire --skip concurrency:: && \
    wire concurrency:: --skip many_containers_whose_clients_vanish --test-threads 1";
const SUITE: &str = "wire";

/// The suite, built of the sources as they are. Where the workspace's tests are,
/// as when this one is run with them, that is to be told where it lies.
fn suite() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args([
            "test",
            "--quiet",
            "--locked",
            "--offline",
            "--workspace",
            "--test",
            SUITE,
        ])
        .args(["--no-run", "--message-format", "json"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let built = output(&mut build);
    let messages = built.lines().map(serde_json::from_str::<Value>);
    let mut artifacts = messages.flatten().filter(|message| {
        let target = &message["target"];
        let of_the_agent = message["manifest_path"]
            .as_str()
            .is_some_and(|path| path.ends_with("guest-agent/Cargo.toml"));
        of_the_agent && target["name"] == SUITE && target["kind"][0] == "test"
    });
    let suite = artifacts.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    suite.unwrap_or_else(|| panic!("cargo tells of no {SUITE}: {built}"))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The absolute paths in what ldd(1) says: libraries, and their loader.
fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let said = output(Command::new("ldd").arg(program));
    let words = said.split_whitespace().map(PathBuf::from);
    words.filter(|word| word.is_absolute()).collect()
}

/// The root of the guest, in `tree`, without the agent.
fn make_root(tree: &Path) {
    for directory in ["bin", "usr/sbin", "etc", "lib", "lib64"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    let wire = tree.join("bin/wire");
    output(Command::new("strip").arg("-o").arg(&wire).arg(suite()));
    let mut needed = libraries(&wire);
    for program in PROGRAMS {
        let path = output(Command::new("sh").args(["-c", &format!("command -v {program}")]));
        let path = PathBuf::from(path.trim());
        fs::copy(&path, tree.join("bin").join(program)).unwrap();
        needed.extend(libraries(&path));
    }
    for library in needed {
        let place = tree.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(&library, place).unwrap();
    }
}

/// How many tests have passed, by what each run of the suite sums up: on a line of
/// a single test's there may be words of a process that it has started.
fn passed(said: &str) -> usize {
    let sums = said.split("test result: ok. ").skip(1);
    let sums = sums.filter_map(|sum| sum.split_once(" passed")?.0.parse::<usize>().ok());
    sums.sum()
}

#[tokio::test]
async fn the_suite_of_the_wire_passes_in_a_guest_with_nothing_skipped() {
    let (_kept, directory) = machine::directory();
    let tree = directory.join("tree");
    make_root(&tree);
    let (disk, _) = root_disk(&directory, &["--base", tree.to_str().unwrap()]);
    let mut spec = machine::spec(&directory, 512, None);
    spec.cmdline = format!("{} root=/dev/vda", spec.cmdline);
    spec.vcpus = 2;
    spec.disks.push(Disk {
        id: "root".into(),
        path: disk,
        readonly: true,
    });
    let qemu = machine::qemu().await.unwrap();
    let machine = Machine::boot(&qemu, &spec).await.unwrap();
    let ended = machine.run_in_guest(&["/bin/sh", "-c", SCRIPT]).await;
    machine.kill().await.unwrap();
    let (status, said) = ended.unwrap();
    eprintln!("{said}");
    assert_eq!(status, 0);
    assert!(passed(&said) >= TESTS_MIN);
}
