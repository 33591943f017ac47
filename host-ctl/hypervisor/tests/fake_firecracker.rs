//! The Firecracker driver against programs that only seem to be Firecracker:
//! what it refuses, and that it never waits for ever nor leaves anything. No KVM
//! is needed.
//!
//! A fake is a shell script. Where it has to own a socket it becomes this very
//! test program, which then runs the ignored test at the end.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on fails there, also in what tests share"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::firecracker::{Firecracker, Probe, probe};
use hypervisor::{
    AgentDevice, Backing, Deadlines, Disk, Error, Hypervisor, Memory, MemoryMode, MonitorError,
    Nic, NicBackend, Rebind, VmExit, VmSpec,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

/// How long a fake is waited for. Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the fake is told its socket by.
const SOCKET: &str = "FAKE_FIRECRACKER_SOCKET";

struct Fake {
    directory: TempDir,
    program: PathBuf,
}

impl Fake {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("firecracker");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("run")).unwrap();
        Self { directory, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A driver for it that was never probed for real.
    fn driver(&self, minor: u16, deadlines: Deadlines) -> Firecracker {
        let found: Probe = serde_json::from_value(json!({
            "program": self.program,
            "version": {"major": 1, "minor": minor, "patch": 0},
            "version_text": format!("1.{minor}.0"),
            "state_format": "10.0.0",
            "identity": {"device": 0, "inode": 0, "size": 0, "changed": [0, 0]},
            "host": {"device": [0, 0, 0], "user": 0, "kernel": ""},
        }))
        .unwrap();
        Firecracker::new(&found, deadlines)
    }

    fn spec(&self) -> VmSpec {
        let kernel = self.path("vmlinux");
        fs::write(&kernel, b"\x7fELF").unwrap();
        fs::write(self.path("initrd"), b"").unwrap();
        VmSpec {
            name: "vm".into(),
            uuid: "00112233-4455-6677-8899-aabbccddeeff".into(),
            vcpus: 1,
            memory: Memory {
                size_mib: 32,
                backing: Backing::Anonymous,
            },
            kernel,
            initrd: self.path("initrd"),
            cmdline: String::new(),
            disks: Vec::new(),
            agent: AgentDevice::HybridVsock {
                socket: self.path("run/agent"),
                cid: 3,
            },
            console: self.path("run/console"),
            monitor: self.path("run/api"),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: self.path("log"),
            cgroup: None,
        }
    }

    fn rebind(&self) -> Rebind {
        Rebind {
            memory: Some(Backing::FileBacked {
                path: self.path("memory"),
                shared: false,
            }),
            ..Rebind::default()
        }
    }

    /// Nothing but the log is left, and no process.
    fn assert_nothing_left(&self) {
        let left: Vec<_> = fs::read_dir(self.path("run")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let program = self.program.to_str().unwrap();
            assert!(!line.contains(program), "{line}");
        }
    }
}

fn short() -> Deadlines {
    Deadlines {
        start: Duration::from_secs(3),
        command: Duration::from_millis(300),
        ..Deadlines::default()
    }
}

/// Becomes this test program, with the socket it was told.
fn silent() -> String {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    assert!(!own.contains('\''), "{own}");
    // --id UUID --enable-pci --api-sock PATH. Its word that it listens must get
    // into the log, as Firecracker's does: the driver waits for either.
    let words = "--ignored --nocapture --exact a_vmm_that_accepts_and_never_answers";
    format!("{SOCKET}=\"$5\" exec '{own}' {words}")
}

#[tokio::test]
async fn a_control_socket_that_never_answers_is_given_up_and_nothing_is_left() {
    let fake = Fake::new(&silent());
    let driver = fake.driver(16, short());
    let begun = Instant::now();
    let booted = timeout(PATIENCE, driver.boot(&fake.spec())).await.unwrap();
    let Err(Error::Monitor(MonitorError::Silent { command, .. })) = booted else {
        panic!("{:?}", booted.err());
    };
    assert_eq!(command, "/logger");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    fake.assert_nothing_left();
}

#[tokio::test]
async fn a_boot_that_is_dropped_leaves_nothing() {
    let fake = Fake::new(&silent());
    let driver = fake.driver(16, Deadlines::default());
    for millis in [0, 5, 50, 500] {
        let patience = Duration::from_millis(millis);
        let booted = timeout(patience, driver.boot(&fake.spec())).await;
        assert!(booted.is_err());
        fake.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_program_that_never_makes_its_socket_is_given_up() {
    let fake = Fake::new("exec sleep 600");
    let driver = fake.driver(16, short());
    let booted = timeout(PATIENCE, driver.boot(&fake.spec())).await.unwrap();
    let Err(Error::Deadline { waiting_for, .. }) = booted else {
        panic!("{:?}", booted.err());
    };
    assert_eq!(waiting_for, "firecracker's control socket");
    fake.assert_nothing_left();
}

#[tokio::test]
async fn a_program_that_ends_is_told_with_its_last_words() {
    let fake = Fake::new("echo first; echo no such luck >&2; exit 7");
    let driver = fake.driver(16, Deadlines::default());
    let booted = timeout(PATIENCE, driver.boot(&fake.spec())).await.unwrap();
    let Err(Error::Ended { exit, log, .. }) = booted else {
        panic!("{:?}", booted.err());
    };
    assert_eq!(exit, VmExit::Exited(7));
    assert_eq!(log, "no such luck");
    fake.assert_nothing_left();
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone() {
    let fake = Fake::new("exit 0");
    let driver = fake.driver(16, Deadlines::default());
    let listener = UnixListener::bind(fake.path("run/agent")).unwrap();
    let booted = driver.boot(&fake.spec()).await;
    assert!(matches!(booted, Err(Error::Path { call: "bind", .. })));
    assert!(fake.path("run/agent").exists());
    drop(listener);
}

#[tokio::test]
async fn what_firecracker_has_not_is_refused_before_there_is_a_process() {
    let fake = Fake::new("exit 0");
    let driver = fake.driver(16, Deadlines::default());
    let refused = |change: fn(&mut VmSpec)| {
        let mut spec = fake.spec();
        change(&mut spec);
        let driver = &driver;
        async move {
            match driver.boot(&spec).await {
                Err(error) => error.to_string(),
                Ok(_) => panic!("booted"),
            }
        }
    };
    let nic = |backend| Nic {
        id: "n".into(),
        mac: "02:00:00:00:00:01".into(),
        backend,
    };
    for (text, words) in [
        (
            refused(|spec| spec.cpu_model = Some("T2".into())).await,
            "cpu model",
        ),
        (
            refused(|spec| spec.agent = AgentDevice::Vsock { cid: 3 }).await,
            "host kernel's vsock",
        ),
        (
            refused(|spec| {
                spec.agent = AgentDevice::Serial {
                    socket: "/s".into(),
                    port_name: "p".into(),
                };
            })
            .await,
            "virtio-serial",
        ),
        (
            refused(|spec| {
                spec.memory.backing = Backing::FileBacked {
                    path: "/m".into(),
                    shared: true,
                };
            })
            .await,
            "memory file",
        ),
        (
            refused(|spec| fs::write(&spec.kernel, b"MZ bzImage").unwrap()).await,
            "no elf image",
        ),
    ] {
        assert!(text.contains(words), "{text}");
    }
    for (backend, words) in [
        (NicBackend::None, "without a tap"),
        (NicBackend::User, "user-mode"),
    ] {
        let mut spec = fake.spec();
        spec.nics.push(nic(backend));
        let Err(error) = driver.boot(&spec).await else {
            panic!("booted");
        };
        assert!(error.to_string().contains(words), "{error}");
    }
    fake.assert_nothing_left();
    assert!(!fake.path("log").exists(), "nothing was started");
}

#[tokio::test]
async fn ways_of_restoring_it_has_not_are_refused_by_name() {
    let fake = Fake::new("exit 0");
    let refused = async |minor, rebind: Rebind| {
        let driver = fake.driver(minor, Deadlines::default());
        match driver
            .restore(&fake.path("saved"), &fake.spec(), &rebind)
            .await
        {
            Err(error) => error.to_string(),
            Ok(_) => panic!("restored"),
        }
    };
    let text = refused(15, fake.rebind()).await;
    assert!(
        text.contains("before 1.16") && text.contains("vsock"),
        "{text}"
    );
    for (mode, words) in [
        (MemoryMode::Copy, "copying"),
        (MemoryMode::OnDemand, "on demand"),
    ] {
        let rebind = Rebind {
            memory_mode: Some(mode),
            ..fake.rebind()
        };
        let text = refused(16, rebind).await;
        assert!(text.contains(words), "{text}");
    }
    let text = refused(16, Rebind::default()).await;
    assert!(text.contains("without a memory file"), "{text}");
    let shared = Rebind {
        memory: Some(Backing::FileBacked {
            path: fake.path("memory"),
            shared: true,
        }),
        ..Rebind::default()
    };
    let text = refused(16, shared).await;
    assert!(text.contains("shared mapping"), "{text}");
    // All of that is as it should be, but there is no state.
    let text = refused(16, fake.rebind()).await;
    assert!(text.contains("saved/state"), "{text}");
    fake.assert_nothing_left();
}

#[tokio::test]
async fn a_missing_disk_is_named_before_there_is_a_process() {
    let fake = Fake::new("exit 0");
    let driver = fake.driver(16, Deadlines::default());
    let mut spec = fake.spec();
    spec.disks.push(Disk {
        id: "root".into(),
        path: fake.path("nowhere.img"),
        readonly: true,
    });
    let booted = driver.boot(&spec).await;
    let Err(Error::Path { path, .. }) = booted else {
        panic!("{:?}", booted.err());
    };
    assert_eq!(path, fake.path("nowhere.img"));
    fake.assert_nothing_left();
}

#[tokio::test]
async fn a_probe_says_what_is_wrong_with_a_program() {
    let failed =
        async |program: &Path| match probe(Some(program), None, &hypervisor::Confinement::Insecure)
            .await
        {
            Err(error) => error.to_string(),
            Ok(found) => panic!("{found:?}"),
        };
    let text = failed(Path::new("/nonexistent/firecracker")).await;
    assert!(text.contains("no such program"), "{text}");
    let old = Fake::new("echo 'Firecracker v1.13.2'");
    let text = failed(&old.program).await;
    assert!(text.contains("1.13.2 is older than 1.14.0"), "{text}");
    let other = Fake::new("echo 'QEMU emulator version 7.2'");
    let text = failed(&other.program).await;
    assert!(text.contains("not firecracker's version"), "{text}");
    // One that says the right words and runs no guest.
    let fake = Fake::new(
        "case $1 in --version) echo Firecracker v1.16.1;; --snapshot-version) echo v10.0.0;; \
         *) echo out of guests; exit 3;; esac",
    );
    let text = failed(&fake.program).await;
    let without_kvm = text.contains("it needs kvm: open /dev/kvm");
    let without_guest = text.contains("does not run a guest: exit status 3: out of guests");
    assert!(without_kvm || without_guest, "{text}");
}

/// Not a test: the body of a fake.
#[test]
#[ignore = "run by the other tests, as a program"]
fn a_vmm_that_accepts_and_never_answers() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let listener = UnixListener::bind(socket).unwrap();
    println!("listening");
    let mut kept = Vec::new();
    // Until it is killed.
    while let Ok((stream, _)) = listener.accept() {
        kept.push(stream);
    }
}
