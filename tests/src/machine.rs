//! One microVM, driven by the library directly: for what `host-ctl` refuses to
//! do, such as saving a VM whose workload was not frozen and resuming copies of
//! it that were never thawed.

use crate::built;
use crate::console::Console;
use agent_client::{AgentClient, ContainerConfig, ExecConfig, ExecEvent, Rootfs, SandboxConfig};
use hypervisor::qemu::{ProbeRequest, Qemu, probe};
use hypervisor::{
    AgentDevice, Backing, Deadlines, Disk, Hypervisor, Memory, Rebind, Saved, Vm, VmSpec, VmState,
};
use protocols::{AgentAddress, Link, port};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every wait here is for an emulated guest on a shared machine.
const DEADLINE: Duration = Duration::from_secs(120);
const PORT_NAME: &str = "tardigrade.agent";
const CONTAINER: &str = "main";
const GENERATION: &str = "generation";
/// Where the container's files are in the guest.
pub const ROOTFS: &str = "/run/kata-containers/main/rootfs";

/// Anything that may go wrong in a test.
pub type Failure = Box<dyn Error + Send + Sync>;

/// QEMU on this machine.
///
/// # Errors
/// When there is none.
pub async fn qemu() -> Result<Qemu, Failure> {
    qemu_at(None).await
}

/// A QEMU at that path, or else the one on this machine.
///
/// # Errors
/// When there is none, or it is none.
pub async fn qemu_at(program: Option<PathBuf>) -> Result<Qemu, Failure> {
    let kernel = built("guest/vmlinuz");
    let request = ProbeRequest {
        program,
        kernel: Some(&kernel),
        kernel_digest: "test",
    };
    let probe = probe(&request, None, &hypervisor::Confinement::Insecure).await?;
    Ok(Qemu::new(&probe, Deadlines::default()))
}

/// QEMU on this machine, as somebody else may run it: with a device that tells a
/// guest when it is a copy. What it tells is in a file of `directory`, to be
/// written by [`set_generation`] before each boot and restore. Its firmware is
/// QEMU's own choice, since the driver's stops where that device wants to be told
/// its place.
///
/// # Errors
/// When there is no QEMU, or the file of the program cannot be written.
pub async fn qemu_with_generations(directory: &Path) -> Result<Qemu, Failure> {
    let real = find_qemu().ok_or("there is no QEMU; `make tools` installs it")?;
    let program = directory.join("qemu");
    let script = format!(
        "#!/bin/sh\nread -r generation < '{}'\nexec '{}' \"$@\" -bios bios-256k.bin \
         -device vmgenid,guid=\"$generation\"\n",
        directory.join(GENERATION).display(),
        real.display()
    );
    set_generation(directory, 0)?;
    std::fs::write(&program, script)?;
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    qemu_at(Some(program)).await
}

/// The QEMU that the environment names, or the one on PATH.
#[must_use]
pub fn find_qemu() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("QEMU") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|place| place.join("qemu-system-x86_64"));
    places.find(|program| program.is_file())
}

/// What machines of [`qemu_with_generations`] are told from now on.
///
/// # Errors
/// Those of the file.
pub fn set_generation(directory: &Path, number: u8) -> std::io::Result<()> {
    let text = format!("00000000-0000-4000-8000-0000000000{number:02x}\n");
    std::fs::write(directory.join(GENERATION), text)
}

/// A VM with `memory_mib` of shared memory in a file in `directory`.
#[must_use]
pub fn spec(directory: &Path, memory_mib: u32, rootfs: Option<&Path>) -> VmSpec {
    VmSpec {
        name: "tardigrade-test".into(),
        uuid: "01234567-89ab-4cde-8f01-23456789abcd".into(),
        vcpus: 1,
        memory: Memory {
            size_mib: memory_mib,
            backing: Backing::FileBacked {
                path: directory.join("memory"),
                shared: true,
            },
        },
        kernel: built("guest/vmlinuz"),
        initrd: built("guest/initrd.img"),
        cmdline: format!("console=ttyS0 quiet panic=-1 agent.server_addr=serial://{PORT_NAME}"),
        disks: rootfs
            .map(|path| Disk {
                id: "rootfs".into(),
                path: path.into(),
                readonly: true,
            })
            .into_iter()
            .collect(),
        agent: AgentDevice::Serial {
            socket: directory.join("serial.sock"),
            port_name: PORT_NAME.into(),
        },
        console: directory.join("console.sock"),
        monitor: directory.join("qmp.sock"),
        nics: Vec::new(),
        directories: Vec::new(),
        cpu_model: None,
        log: directory.join("vmm.log"),
        cgroup: None,
    }
}

/// What a copy of a saved VM is to be: its sockets and its log in `directory`,
/// its RAM a private view of the saved one.
///
/// # Errors
/// When the VM's agent is reached by the host's vsock: a copy needs a context id
/// of its own.
pub fn copy_of(saved: &VmSpec, memory: &Path, directory: &Path) -> Result<VmSpec, Failure> {
    let agent = match &saved.agent {
        AgentDevice::Serial { port_name, .. } => AgentDevice::Serial {
            socket: directory.join("serial.sock"),
            port_name: port_name.clone(),
        },
        AgentDevice::HybridVsock { cid, .. } => AgentDevice::HybridVsock {
            socket: directory.join("agent.sock"),
            cid: *cid,
        },
        AgentDevice::Vsock { .. } => return Err("a copy needs a context id of its own".into()),
    };
    copy_with(saved, memory, directory, agent)
}

/// [`copy_of`], whose agent is reached in a way of its own.
fn copy_with(
    saved: &VmSpec,
    memory: &Path,
    directory: &Path,
    agent: AgentDevice,
) -> Result<VmSpec, Failure> {
    let rebind = Rebind {
        monitor: Some(directory.join("qmp.sock")),
        console: Some(directory.join("console.sock")),
        log: Some(directory.join("vmm.log")),
        agent: Some(agent),
        memory: Some(Backing::FileBacked {
            path: memory.to_owned(),
            shared: false,
        }),
        ..Rebind::default()
    };
    Ok(saved.rebound(&rebind)?)
}

/// The file with a saved VM's RAM.
fn memory_of(saved: &VmSpec) -> Result<&Path, Failure> {
    match &saved.memory.backing {
        Backing::FileBacked { path, .. } => Ok(path),
        Backing::Anonymous => Err("the saved memory is in no file".into()),
    }
}

/// The one container, on an overlay over the VM's disk.
#[must_use]
pub fn container(command: &[&str]) -> ContainerConfig {
    container_on("/dev/vda", command)
}

/// The same over another disk of the VM's.
#[must_use]
pub fn container_on(device: &str, command: &[&str]) -> ContainerConfig {
    let rootfs = Rootfs::OverlayDisk {
        device: device.into(),
        fstype: "erofs".into(),
        upper_size_mib: None,
    };
    let words = command.iter().map(ToString::to_string).collect();
    ContainerConfig::new(CONTAINER, rootfs, words)
}

/// A running VM whose agent answers.
pub struct Machine {
    /// The VM.
    pub vm: Box<dyn Vm>,
    /// Its agent.
    pub agent: AgentClient,
    link: Link,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Machine")
    }
}

impl Machine {
    /// Boots `spec` and waits for the agent.
    ///
    /// # Errors
    /// When any of it fails; the VM is killed then.
    pub async fn boot(hypervisor: &dyn Hypervisor, spec: &VmSpec) -> Result<Self, Failure> {
        let vm = hypervisor.boot(spec).await?;
        if matches!(spec.agent, AgentDevice::Serial { .. })
            && let Err(error) = vm.agent_port_opened(DEADLINE).await
        {
            vm.kill().await?;
            return Err(error.into());
        }
        Self::reach(vm, spec).await
    }

    /// Restores a copy of the VM that was saved to `state` from `saved`, with
    /// files of its own in `directory`, and resumes it. Nothing is thawed.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn resume_copy(
        hypervisor: &dyn Hypervisor,
        state: &Path,
        saved: &VmSpec,
        directory: &Path,
    ) -> Result<Self, Failure> {
        let copy = copy_of(saved, memory_of(saved)?, directory)?;
        Self::resume_as(hypervisor, state, copy).await
    }

    /// The same for a copy whose agent is reached by `agent`.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn resume_copy_with(
        hypervisor: &dyn Hypervisor,
        state: &Path,
        saved: &VmSpec,
        directory: &Path,
        agent: AgentDevice,
    ) -> Result<Self, Failure> {
        let copy = copy_with(saved, memory_of(saved)?, directory, agent)?;
        Self::resume_as(hypervisor, state, copy).await
    }

    /// [`Machine::resume_copy`], whose agent is not asked whether it serves; and
    /// all that the copy says on its console.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn resume_and_listen(
        hypervisor: &dyn Hypervisor,
        state: &Path,
        saved: &VmSpec,
        directory: &Path,
    ) -> Result<(Self, Console), Failure> {
        let copy = copy_of(saved, memory_of(saved)?, directory)?;
        let vm = hypervisor.restore(state, &copy, &Rebind::default()).await?;
        let console = Console::connect(&copy.console).await?;
        vm.resume().await?;
        Ok((Self::connect(vm, &copy).await?, console))
    }

    async fn resume_as(
        hypervisor: &dyn Hypervisor,
        state: &Path,
        copy: VmSpec,
    ) -> Result<Self, Failure> {
        let vm = hypervisor.restore(state, &copy, &Rebind::default()).await?;
        vm.resume().await?;
        Self::reach(vm, &copy).await
    }

    async fn reach(vm: Box<dyn Vm>, spec: &VmSpec) -> Result<Self, Failure> {
        let machine = Self::connect(vm, spec).await?;
        machine.agent.check(DEADLINE).await?;
        Ok(machine)
    }

    async fn connect(vm: Box<dyn Vm>, spec: &VmSpec) -> Result<Self, Failure> {
        match Self::meet(spec).await {
            Ok((agent, link)) => Ok(Self { vm, agent, link }),
            Err(error) => {
                vm.kill().await?;
                Err(error)
            }
        }
    }

    async fn meet(spec: &VmSpec) -> Result<(AgentClient, Link), Failure> {
        let link = match &spec.agent {
            AgentDevice::Serial { socket, .. } => {
                let address = AgentAddress::Serial {
                    socket: socket.clone(),
                };
                Link::connect(&address, DEADLINE).await?
            }
            AgentDevice::Vsock { cid } => {
                let address = AgentAddress::Vsock {
                    cid: *cid,
                    port: port::RPC,
                };
                crate::lab::dial(&address, DEADLINE).await?
            }
            AgentDevice::HybridVsock { socket, .. } => {
                let address = AgentAddress::HybridVsock {
                    socket: socket.clone(),
                    port: port::RPC,
                };
                crate::lab::dial(&address, DEADLINE).await?
            }
        };
        let agent = AgentClient::connect(&link, DEADLINE).await?;
        Ok((agent, link))
    }

    /// Starts the one container, on an overlay over the VM's disk.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn start(&self, command: &[&str]) -> Result<(), Failure> {
        self.start_as(container(command)).await
    }

    /// Starts the one container, as given: see [`container`].
    ///
    /// # Errors
    /// What the agent says.
    pub async fn start_as(&self, container: ContainerConfig) -> Result<(), Failure> {
        let sandbox = SandboxConfig {
            hostname: "template".into(),
            ..SandboxConfig::default()
        };
        self.agent.create_sandbox(&sandbox, DEADLINE).await?;
        self.add(container).await
    }

    /// Starts another container.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn add(&self, container: ContainerConfig) -> Result<(), Failure> {
        self.agent.create_container(&container, DEADLINE).await?;
        self.agent.start_container(&container.id, DEADLINE).await?;
        Ok(())
    }

    /// Runs a command in the container: its exit status and its stdout.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn exec(&self, command: &[&str]) -> Result<(i32, String), Failure> {
        self.run(Some(CONTAINER), command).await
    }

    /// Runs a script of busybox in the guest itself, with the container's file:
    /// its exit status and its stdout. Its parent is the agent.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn exec_in_guest(&self, script: &str) -> Result<(i32, String), Failure> {
        let busybox = format!("{ROOTFS}/bin/busybox");
        self.run_in_guest(&[&busybox, "sh", "-c", script]).await
    }

    /// Runs a program of the guest's root outside every container: its exit
    /// status and its stdout.
    ///
    /// # Errors
    /// What the agent says.
    pub async fn run_in_guest(&self, command: &[&str]) -> Result<(i32, String), Failure> {
        self.run(None, command).await
    }

    async fn run(
        &self,
        container: Option<&str>,
        command: &[&str],
    ) -> Result<(i32, String), Failure> {
        let config = ExecConfig {
            container_id: container.map(Into::into),
            args: command.iter().map(ToString::to_string).collect(),
            ..ExecConfig::default()
        };
        let mut stream = self.agent.exec(&config, DEADLINE).await?;
        let mut stdout = Vec::new();
        loop {
            match tokio::time::timeout(DEADLINE, stream.next_event()).await?? {
                ExecEvent::Stdout(data) => stdout.extend(data),
                ExecEvent::Stderr(_) => {}
                ExecEvent::Exit(status) => {
                    return Ok((status, String::from_utf8_lossy(&stdout).into_owned()));
                }
                ExecEvent::Error(reason) => return Err(reason.into()),
            }
        }
    }

    /// Hangs up, then sends bytes that mean nothing until the VM is paused,
    /// which it is then: it sleeps with its port full of them.
    ///
    /// # Errors
    /// What the VMM says, or connect(2).
    pub async fn pause_with_unread_bytes(&self, serial: &Path) -> Result<(), Failure> {
        self.link.clone().close();
        let stream = protocols::unix::connect(serial).await?;
        let full = tokio::sync::Notify::new();
        let send = async {
            loop {
                stream.writable().await?;
                match stream.try_write(&[0x5a; 4096]) {
                    Ok(_) => {}
                    // The guest is behind with what it was sent.
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        full.notify_one();
                    }
                    Err(error) => return Err::<(), _>(error),
                }
            }
        };
        let pause = async {
            tokio::time::timeout(DEADLINE, full.notified()).await?;
            Ok::<_, Failure>(self.vm.pause().await?)
        };
        tokio::select! {
            error = send => Ok(error?),
            paused = pause => paused,
        }
    }

    /// Pauses the VM if it runs, saves it into `directory` and kills it.
    ///
    /// # Errors
    /// What the VMM says.
    pub async fn save(self, directory: &Path) -> Result<Saved, Failure> {
        self.link.clone().close();
        self.save_as_it_is(directory).await
    }

    /// The same without hanging up, as somebody does who knows of no agent. Its
    /// copies find what was under way: of those that were hung up on just before,
    /// one in some dozens never answers again.
    ///
    /// # Errors
    /// What the VMM says.
    pub async fn save_as_it_is(self, directory: &Path) -> Result<Saved, Failure> {
        if self.vm.info().await?.state == VmState::Running {
            self.vm.pause().await?;
        }
        let saved = self.vm.save(directory).await?;
        self.vm.kill().await?;
        Ok(saved)
    }

    /// Ends the VM.
    ///
    /// # Errors
    /// What the VMM says.
    pub async fn kill(self) -> Result<(), Failure> {
        Ok(self.vm.kill().await?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A VM outlives its owner, so also a test that failed.
        let record = self.vm.record();
        crate::processes::kill_if_still(record.pid, record.start_time);
    }
}

/// A directory of a test's own for a VM's sockets and files, on a short path.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn directory() -> (tempfile::TempDir, PathBuf) {
    let parent = crate::target().join("homes");
    std::fs::create_dir_all(&parent).expect("make the directory of homes");
    let directory = tempfile::tempdir_in(parent).expect("make a directory");
    let path = directory.path().to_owned();
    (directory, path)
}
