//! What the tests stand on: a directory with a VM's files, its agent and its
//! console.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::firecracker::{Firecracker, probe};
use hypervisor::{AgentDevice, Backing, Deadlines, Memory, Rebind, Vm, VmSpec};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{interval, timeout};

/// How long a guest may take to say something: its processor is emulated twice.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// RAM of the guests.
pub(crate) const MEMORY_MIB: u32 = 192;
/// The port the agent listens on.
const AGENT_PORT: u32 = 1024;
/// How often a port is dialled: nothing on the host tells that a guest has
/// opened it.
const DIAL_PERIOD: Duration = Duration::from_millis(100);

/// A directory for VMs, and a driver.
pub(crate) struct Lab {
    pub(crate) directory: TempDir,
    pub(crate) driver: Firecracker,
    kernel: PathBuf,
    initrd: PathBuf,
    /// Of every VM of this lab, and of no other.
    uuid: String,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let found = probe(None, None, &hypervisor::Confinement::Insecure)
            .await
            .expect("a firecracker that runs a guest");
        assert_eq!(
            probe(None, Some(&found), &hypervisor::Confinement::Insecure)
                .await
                .unwrap(),
            found
        );
        let command = Duration::from_secs(30);
        let deadlines = Deadlines {
            start: Duration::from_secs(60),
            command,
            ..Deadlines::default()
        };
        Self {
            directory: tempfile::tempdir().unwrap(),
            driver: Firecracker::new(&found, deadlines),
            kernel: guest_file("TARDIGRADE_TEST_VMLINUX", "vmlinux"),
            initrd: guest_file("TARDIGRADE_INITRD", "initrd.img"),
            uuid: random_uuid(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A VM whose agent listens, without disks or networks.
    pub(crate) fn spec(&self, name: &str) -> VmSpec {
        let run = self.path(name);
        fs::create_dir_all(&run).unwrap();
        VmSpec {
            name: name.to_owned(),
            uuid: self.uuid.clone(),
            vcpus: 1,
            memory: Memory {
                size_mib: MEMORY_MIB,
                backing: Backing::Anonymous,
            },
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: format!(
                "console=ttyS0 panic=-1 reboot=k agent.server_addr=vsock://-1:{AGENT_PORT}"
            ),
            disks: Vec::new(),
            agent: AgentDevice::HybridVsock {
                socket: run.join("agent.sock"),
                cid: 3,
            },
            console: run.join("console.sock"),
            monitor: run.join("api.sock"),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: run.join("vmm.log"),
            cgroup: None,
        }
    }

    /// What makes a clone on a memory file.
    pub(crate) fn rebind(&self, name: &str, memory: &Path) -> Rebind {
        let own = self.spec(name);
        Rebind {
            name: Some(own.name),
            monitor: Some(own.monitor),
            console: Some(own.console),
            log: Some(own.log),
            agent: Some(own.agent),
            memory: Some(Backing::FileBacked {
                path: memory.to_owned(),
                shared: false,
            }),
            ..Rebind::default()
        }
    }

    /// The processes of this lab's VMs.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0').any(|word| word == self.uuid)
        };
        numbers.filter(ours).collect()
    }

    /// What a VM's directory holds beyond its log.
    pub(crate) fn left(&self, name: &str) -> Vec<String> {
        let files = fs::read_dir(self.path(name)).unwrap().flatten();
        let names = files.map(|file| file.file_name().into_string().unwrap());
        names.filter(|name| name != "vmm.log").collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A VM outlives its owner, so also a test that failed.
        for pid in self.processes() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

pub(crate) fn guest_file(variable: &str, name: &str) -> PathBuf {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let built = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/guest")
            .join(name)
    };
    let path = named.unwrap_or_else(built);
    assert!(path.is_file(), "missing: {} (${variable})", path.display());
    path
}

/// Where a VM's agent is reached.
pub(crate) fn agent_socket(vm: &dyn Vm) -> PathBuf {
    match vm.record().agent {
        AgentDevice::HybridVsock { socket, .. } => socket,
        device => panic!("{device:?}"),
    }
}

/// Dials the agent until it answers, or the VM is over.
pub(crate) async fn agent_answers(vm: &dyn Vm) -> UnixStream {
    let socket = agent_socket(vm);
    let dialling = async {
        let mut ticks = interval(DIAL_PERIOD);
        loop {
            ticks.tick().await;
            if let Ok(stream) = dial(&socket).await {
                return stream;
            }
        }
    };
    let log = || fs::read_to_string(vm.record().log).unwrap();
    tokio::select! {
        stream = timeout(PATIENCE, dialling) => match stream {
            Ok(stream) => stream,
            Err(_) => panic!("no answer within {PATIENCE:?}: {}", log()),
        },
        exit = vm.wait() => panic!("no answer, the vm has ended: {}: {}", exit.unwrap(), log()),
    }
}

async fn dial(socket: &Path) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    let line = format!("CONNECT {AGENT_PORT}\n");
    stream.write_all(line.as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
    }
    assert!(answer.starts_with(b"OK "), "{}", answer.escape_ascii());
    Ok(stream)
}

/// Whether the agent is silent for a while: its guest is paused.
pub(crate) async fn agent_is_silent(vm: &dyn Vm) -> bool {
    let socket = agent_socket(vm);
    timeout(Duration::from_secs(1), dial(&socket))
        .await
        .is_err()
}

/// A guest's console, read from now on.
pub(crate) struct Console {
    stream: UnixStream,
    heard: String,
}

impl Console {
    pub(crate) async fn connect(path: &Path) -> Self {
        Self {
            stream: UnixStream::connect(path).await.unwrap(),
            heard: String::new(),
        }
    }

    /// Reads until the guest has said this, or has ended.
    pub(crate) async fn hear(&mut self, words: &str) {
        let listening = async {
            while !self.heard.contains(words) {
                let mut part = [0; 4096];
                let length = self.stream.read(&mut part).await.unwrap();
                assert!(length > 0, "closed before {words:?}: {}", self.heard);
                self.heard
                    .push_str(&String::from_utf8_lossy(&part[..length]));
            }
        };
        let heard = timeout(PATIENCE, listening).await;
        assert!(heard.is_ok(), "no {words:?}: {}", self.heard);
    }
}

/// The open files of a process below a directory, and whether each can be
/// written to.
pub(crate) fn open_files(pid: i32, below: &Path) -> Vec<(PathBuf, bool)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let Ok(path) = fs::read_link(entry.path()) else {
            continue;
        };
        if !path.starts_with(below) {
            continue;
        }
        let number = entry.file_name().into_string().unwrap();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        // O_ACCMODE of open(2): 0 is reading only.
        found.push((path, flags & 3 != 0));
    }
    found
}

/// A field of /proc/PID/status.
pub(crate) fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap().trim().to_owned()
}

pub(crate) fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

/// A disk of a size no other has, so that the guest's console tells it.
pub(crate) fn disk(path: &Path, sectors: u64) {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).open(path).unwrap();
    file.set_len(sectors * 512).unwrap();
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
