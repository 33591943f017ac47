//! The QEMU driver against a program that only seems to be QEMU: it inherits the
//! control socket and never reads from it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't go on fails there, also in what tests share"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hypervisor::qemu::{Probe, Qemu};
use hypervisor::{
    AgentDevice, Backing, Deadlines, Error, Hypervisor, Memory, MonitorError, Rebind, VmSpec,
};
use serde_json::json;
use tempfile::TempDir;

/// How long the driver waits for each answer.
const SHORT: Duration = Duration::from_millis(300);
/// How long all of it may take: many times that, on a busy machine.
const BOUND: Duration = Duration::from_secs(10);

struct Fake {
    directory: TempDir,
    program: PathBuf,
}

impl Fake {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("qemu");
        fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("run")).unwrap();
        fs::create_dir(directory.path().join("saved")).unwrap();
        Self { directory, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A driver for it that was never probed for real.
    fn driver(&self) -> Qemu {
        let version = json!({"major": 7, "minor": 2});
        let found: Probe = serde_json::from_value(json!({
            "program": self.program,
            "version": version,
            "version_text": "7.2.0",
            "accelerator": {
                "accelerator": "tcg",
                "reason": "a test",
                "key": {
                    "kernel_digest": null,
                    "host": {"device": null, "user": 0, "kernel": ""},
                    "version": "7.2.0",
                },
            },
            "identity": {"device": 0, "inode": 0, "size": 0, "changed": [0, 0]},
        }))
        .unwrap();
        let deadlines = Deadlines {
            start: SHORT,
            command: SHORT,
            boot: SHORT,
            save: SHORT,
            load: SHORT,
        };
        Qemu::new(&found, deadlines)
    }

    fn spec(&self, backing: Backing) -> VmSpec {
        for name in ["kernel", "initrd"] {
            fs::write(self.path(name), name).unwrap();
        }
        VmSpec {
            name: "vm".into(),
            uuid: "00112233-4455-6677-8899-aabbccddeeff".into(),
            vcpus: 1,
            memory: Memory {
                size_mib: 32,
                backing,
            },
            kernel: self.path("kernel"),
            initrd: self.path("initrd"),
            cmdline: String::new(),
            disks: Vec::new(),
            agent: AgentDevice::Serial {
                socket: self.path("run/agent"),
                port_name: "agent".into(),
            },
            console: self.path("run/console"),
            monitor: self.path("run/monitor"),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: self.path("log"),
            cgroup: None,
        }
    }

    /// No file of the VM's, and no process.
    fn assert_nothing_left(&self) {
        let left: Vec<_> = fs::read_dir(self.path("run")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let log = self.path("log");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let output = fs::read_link(process.path().join("fd/2")).unwrap_or_default();
            assert_ne!(output, log, "{:?} is still there", process.path());
        }
    }
}

fn is_silence(error: &Error) -> bool {
    matches!(
        error,
        Error::Monitor(MonitorError::Silent { .. }) | Error::Deadline { .. }
    )
}

#[tokio::test]
async fn a_control_socket_that_never_answers_is_given_up_and_nothing_is_left() {
    let fake = Fake::new();
    let begun = Instant::now();
    let memory = fake.path("run/memory");
    let backing = Backing::FileBacked {
        path: memory,
        shared: true,
    };
    let error = fake.driver().boot(&fake.spec(backing)).await;
    let error = error.err().unwrap();
    assert!(is_silence(&error), "{error}");
    fake.assert_nothing_left();

    let memory = fs::File::create(fake.path("memory")).unwrap();
    memory.set_len(32 << 20).unwrap();
    fs::write(fake.path("saved/state"), "state").unwrap();
    let rebind = Rebind {
        memory: Some(Backing::FileBacked {
            path: fake.path("memory"),
            shared: false,
        }),
        ..Rebind::default()
    };
    let spec = fake.spec(Backing::Anonymous);
    let (driver, saved) = (fake.driver(), fake.path("saved"));
    let restored = driver.restore(&saved, &spec, &rebind).await;
    let error = restored.err().unwrap();
    assert!(is_silence(&error), "{error}");
    fake.assert_nothing_left();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_boot_nobody_waits_for_leaves_nothing_of_a_silent_vmm() {
    let fake = Fake::new();
    let (driver, spec) = (fake.driver(), fake.spec(Backing::Anonymous));
    let boot = tokio::time::timeout(SHORT / 3, driver.boot(&spec)).await;
    assert!(boot.is_err(), "it was answered");
    fake.assert_nothing_left();
}
