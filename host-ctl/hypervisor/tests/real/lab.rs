//! What the tests stand on: a directory with a VM's files, and a guest's console.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::qemu::{ProbeRequest, Qemu, probe};
use hypervisor::{AgentDevice, Backing, Deadlines, Memory, Rebind, VmSpec};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a guest may take to say something: emulated, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// RAM of the guests: enough for a distribution's kernel.
pub(crate) const MEMORY_MIB: u32 = 128;

/// A directory for VMs, and a driver.
pub(crate) struct Lab {
    pub(crate) directory: TempDir,
    pub(crate) driver: Qemu,
    kernel: PathBuf,
    /// Of every VM of this lab, and of no other.
    uuid: String,
}

impl Lab {
    /// None when something is missing, which is said.
    pub(crate) async fn new() -> Option<Self> {
        let Some(kernel) = guest_file("TARDIGRADE_TEST_KERNEL", "vmlinuz") else {
            return skipped("no guest kernel: set TARDIGRADE_TEST_KERNEL");
        };
        let request = ProbeRequest {
            program: None,
            kernel: None,
            kernel_digest: "",
        };
        let found = match probe(&request, None, &hypervisor::Confinement::Insecure).await {
            Ok(found) => found,
            Err(error) => return skipped(&error.to_string()),
        };
        let directory = tempfile::tempdir().unwrap();
        let mut initrd = File::create(directory.path().join("initrd")).unwrap();
        initrd.write_all(&[0; 512]).unwrap();
        let driver = Qemu::new(&found, Deadlines::default());
        Some(Self {
            directory,
            driver,
            kernel,
            uuid: random_uuid(),
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// A VM without devices beyond the agent's and the console, whose kernel
    /// finds no root file system, panics and resets.
    pub(crate) fn spec(&self, name: &str, backing: Backing) -> VmSpec {
        let run = self.path(name);
        fs::create_dir_all(&run).unwrap();
        VmSpec {
            name: name.to_owned(),
            uuid: self.uuid.clone(),
            vcpus: 1,
            memory: Memory {
                size_mib: MEMORY_MIB,
                backing,
            },
            kernel: self.kernel.clone(),
            initrd: self.path("initrd"),
            cmdline: "console=ttyS0 panic=-1 agent.server_addr=serial://tardigrade.agent"
                .to_owned(),
            disks: Vec::new(),
            agent: AgentDevice::Serial {
                socket: run.join("serial.sock"),
                port_name: "tardigrade.agent".to_owned(),
            },
            console: run.join("console.sock"),
            monitor: run.join("qmp.sock"),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: run.join("vmm.log"),
            cgroup: None,
        }
    }

    /// What makes a clone of a VM with this spec.
    pub(crate) fn rebind(&self, spec: &VmSpec, name: &str, memory: Backing) -> Rebind {
        let own = self.spec(name, Backing::Anonymous);
        assert_ne!(own.name, spec.name);
        Rebind {
            name: Some(own.name),
            uuid: None,
            monitor: Some(own.monitor),
            console: Some(own.console),
            log: Some(own.log),
            agent: Some(own.agent),
            memory: Some(memory),
            ..Rebind::default()
        }
    }

    /// Whether a VM of this name has a process.
    pub(crate) fn runs(&self, name: &str) -> bool {
        !processes_with(&[&self.uuid, &format!("guest={name}")]).is_empty()
    }

    pub(crate) fn shared(&self) -> Backing {
        Backing::FileBacked {
            path: self.path("memory"),
            shared: true,
        }
    }

    pub(crate) fn private(&self) -> Backing {
        Backing::FileBacked {
            path: self.path("memory"),
            shared: false,
        }
    }
}

/// Says that a test was skipped, or fails it.
pub(crate) fn skipped<T>(why: &str) -> Option<T> {
    assert!(
        std::env::var_os("REQUIRE_ALL").is_none_or(|all| all != "1"),
        "missing: {why}"
    );
    eprintln!("skipped: {why}");
    None
}

/// A file of the guest: named by a variable, or built below target/guest.
pub(crate) fn guest_file(variable: &str, name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let built = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/guest")
            .join(name)
    };
    Some(named.unwrap_or_else(built)).filter(|path| path.is_file())
}

/// A guest's console, read from now on.
pub(crate) struct Console {
    stream: UnixStream,
    heard: String,
}

impl Console {
    pub(crate) async fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await.unwrap();
        Self {
            stream,
            heard: String::new(),
        }
    }

    /// Reads until the guest has said this. From then on nobody reads, and the
    /// guest soon waits when it has more to say.
    pub(crate) async fn hear(&mut self, words: &str) {
        let listening = async {
            while !self.heard.contains(words) {
                assert!(self.read().await, "closed before {words:?}: {}", self.heard);
            }
        };
        let heard = timeout(PATIENCE, listening).await;
        assert!(
            heard.is_ok(),
            "no {words:?} within {PATIENCE:?}: {}",
            self.heard
        );
    }

    /// Reads until the VM has ended; returns all it has said.
    pub(crate) async fn hear_all(&mut self) -> &str {
        let listening = async { while self.read().await {} };
        let heard = timeout(PATIENCE, listening).await;
        assert!(
            heard.is_ok(),
            "not over within {PATIENCE:?}: {}",
            self.heard
        );
        &self.heard
    }

    async fn read(&mut self) -> bool {
        let mut part = [0; 4096];
        let length = self.stream.read(&mut part).await.unwrap();
        self.heard
            .push_str(&String::from_utf8_lossy(&part[..length]));
        length > 0
    }
}

pub(crate) fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

fn random_uuid() -> String {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Processes with all of these words on their command line.
fn processes_with(words: &[&str]) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let matches = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        words
            .iter()
            .all(|word| line.split('\0').any(|found| found == *word))
    };
    numbers.filter(matches).collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A VM outlives its owner, so also a test that failed.
        for pid in processes_with(&["-uuid", &self.uuid]) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
