//! A VMM and a VM for tests, which only know whether they were ended.

use crate::host::ProcessIdentity;
use async_trait::async_trait;
use hypervisor::{
    Accelerator, AgentDevice, AgentDevices, Backing, Capabilities, Confined, Error, Hypervisor,
    MemoryMode, Rebind, Saved, Span, Vm, VmExit, VmInfo, VmRecord, VmSpec, VmState,
};
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// What became of a VM.
#[derive(Default)]
pub(crate) struct StandIn {
    pub(crate) paused: AtomicBool,
    ended: Notify,
    pub(crate) is_over: AtomicBool,
    /// It cannot be ended, and is told to have been lost.
    pub(crate) is_lost: AtomicBool,
    /// Its agent is never heard of, and its VMM does not end by itself.
    pub(crate) is_mute: AtomicBool,
    /// Somebody waits for its agent.
    pub(crate) waited_for: Notify,
    /// Its VMM's log, if it has one.
    pub(crate) log: PathBuf,
}

impl StandIn {
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.ended.notify_waiters();
        self.ended.notify_one();
    }
}

pub(crate) struct StandInVm(pub(crate) Arc<StandIn>);

#[async_trait]
impl Vm for StandInVm {
    async fn pause(&self) -> Result<(), Error> {
        self.0.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn resume(&self) -> Result<(), Error> {
        self.0.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn save(&self, _directory: &Path) -> Result<Saved, Error> {
        Err(Error::Unsupported("save"))
    }

    async fn info(&self) -> Result<VmInfo, Error> {
        let state = VmState::Running;
        Ok(VmInfo { state, pid: 1 })
    }

    async fn wait(&self) -> Result<VmExit, Error> {
        while !self.0.is_over.load(Ordering::SeqCst) {
            self.0.ended.notified().await;
        }
        if self.0.is_lost.load(Ordering::SeqCst) {
            return Err(Error::Deadline {
                waiting_for: "exit of a killed vmm",
                deadline: Duration::ZERO,
            });
        }
        Ok(VmExit::Exited(0))
    }

    async fn shutdown(&self, _deadline: Duration) -> Result<VmExit, Error> {
        self.kill().await?;
        self.wait().await
    }

    async fn kill(&self) -> Result<(), Error> {
        self.0.end();
        Ok(())
    }

    /// No guest is there to open it: the VM ends instead.
    async fn agent_port_opened(&self, _deadline: Duration) -> Result<(), Error> {
        self.0.waited_for.notify_one();
        if self.0.is_mute.load(Ordering::SeqCst) {
            pending().await
        } else {
            Err(Error::Ended {
                verb: "agent_port_opened",
                exit: VmExit::Exited(0),
                log: String::new(),
            })
        }
    }

    /// This very process stands in for the VMM: it lives.
    fn record(&self) -> VmRecord {
        let process = ProcessIdentity::current().unwrap();
        VmRecord {
            driver: "stand-in".into(),
            pid: process.pid,
            start_time: process.start_time,
            boot_id: process.boot_id,
            monitor: "/nonexistent".into(),
            console: "/nonexistent".into(),
            agent: AgentDevice::Serial {
                socket: "/nonexistent".into(),
                port_name: "none".into(),
            },
            memory: Backing::Anonymous,
            memory_mib: 64,
            log: self.0.log.clone(),
            confined: Confined::default(),
            directories: Vec::new(),
        }
    }

    fn spans(&self) -> Vec<Span> {
        Vec::new()
    }
}

/// What a VMM can do that does not exist.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities {
        vmm: "stand-in".into(),
        version: "1".into(),
        accelerator: Accelerator::Tcg,
        accelerator_reason: "a test".into(),
        machine: "none".into(),
        default_cpu_model: "none".into(),
        private_memory_is_read_only: true,
        agent_devices: AgentDevices {
            serial: true,
            vsock: false,
            hybrid_vsock: false,
        },
        boots_on_memory_file: true,
        saves_anonymous_memory: true,
        memory_modes: vec![MemoryMode::CopyOnWrite],
        console_outlives_owner: true,
        shared_directories: false,
    }
}

/// A VMM whose VMs are all the same one.
pub(crate) struct StandInVmm {
    pub(crate) vm: Arc<StandIn>,
    capabilities: Capabilities,
}

impl StandInVmm {
    pub(crate) fn new() -> Self {
        Self {
            vm: Arc::default(),
            capabilities: capabilities(),
        }
    }
}

#[async_trait]
impl Hypervisor for StandInVmm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, _spec: &VmSpec) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(StandInVm(Arc::clone(&self.vm))))
    }

    async fn restore(&self, _: &Path, _: &VmSpec, _: &Rebind) -> Result<Box<dyn Vm>, Error> {
        Err(Error::Unsupported("restore"))
    }
}
