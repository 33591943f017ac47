//! A Firecracker virtual machine and its verbs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;
use tokio::time::timeout;

use super::DRIVER;
use super::console::Relay;
use super::launch::{Saving, Sockets, Started};
use super::request::{MONITOR_DIRECTORY, inherited};
use crate::error::{Error, MonitorError};
use crate::process::{Confined, Process};
use crate::rest::{Request, RestVmm};
use crate::span::{Span, Timeline, now};
use crate::spec::{AgentDevice, VmSpec};
use crate::vm::{Deadlines, Saved, Vm, VmExit, VmInfo, VmRecord, VmState};

/// How long the console's task may take to notice that its VMM is gone.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(2);

/// A virtual machine of Firecracker's.
pub(crate) struct FirecrackerVm {
    vmm: RestVmm,
    deadlines: Deadlines,
    record: VmRecord,
    /// The console's task, in the process that booted or restored the VM.
    console: Option<Relay>,
    /// Whether the guest finds the event that its vsock was reset when it runs
    /// again; see [`FirecrackerVm::reset_vsock`].
    resets_vsock: AtomicBool,
    /// Whether it was restored and not told anything since: it is paused, and
    /// need not be asked.
    untouched: AtomicBool,
    timeline: Timeline,
}

impl FirecrackerVm {
    /// Settles a Firecracker that has a guest, which was `restored` or booted.
    /// Must be called inside a runtime.
    pub(super) fn new(
        started: Started,
        spec: &VmSpec,
        deadlines: Deadlines,
        restored: bool,
    ) -> Self {
        let confined = started.confined;
        let (vmm, timeline, console) = started.settle();
        let record = VmRecord::new(DRIVER, vmm.process.identity(), spec, confined, Vec::new());
        Self {
            vmm,
            deadlines,
            record,
            console: Some(console.keep()),
            resets_vsock: AtomicBool::new(restored),
            untouched: AtomicBool::new(restored),
            timeline,
        }
    }

    async fn ask(&self, verb: &'static str, request: Request<'_>) -> Result<(), Error> {
        let asked = self.vmm.ask(verb, request, self.deadlines.command).await;
        asked.map(drop)
    }

    /// Has the CPUs stopped or started.
    async fn turn(&self, verb: &'static str, state: &'static str) -> Result<(), Error> {
        let begun = now();
        let request = Request::patch("/vm", json!({ "state": state }));
        self.ask(verb, request).await?;
        self.timeline.since(format!("PATCH /vm {state}"), begun);
        Ok(())
    }

    /// Leaves the guest the event that its vsock was reset, where none is left.
    ///
    /// On every resume Firecracker (1.16.1) holds back what goes to the guest
    /// until that has seen such an event, but it leaves one in a save only:
    /// after a mere pause nobody would ever reach the agent again. A save leaves
    /// it before it opens its files, so one that can open none does nothing but
    /// that. The guest's connections are over then, as after a restore.
    async fn reset_vsock(&self) -> Result<(), Error> {
        if self.resets_vsock.load(Ordering::Acquire) {
            return Ok(());
        }
        let begun = now();
        // A directory can't be written to.
        let nowhere = inherited(MONITOR_DIRECTORY);
        let request = json!({"snapshot_path": nowhere, "mem_file_path": nowhere});
        let request = Request::put("/snapshot/create", Some(request));
        match self.ask("resume", request).await {
            Ok(()) | Err(Error::Monitor(MonitorError::Refused { .. })) => {}
            Err(error) => return Err(error),
        }
        self.resets_vsock.store(true, Ordering::Release);
        self.timeline
            .since("PUT /snapshot/create (vsock reset)", begun);
        Ok(())
    }

    async fn state(&self, verb: &'static str) -> Result<VmState, Error> {
        let asked = self
            .vmm
            .ask(verb, Request::get("/"), self.deadlines.command);
        Ok(state_of(asked.await?["state"].as_str().unwrap_or_default()))
    }

    /// Kills it and removes what it does not remove itself.
    async fn end(&self) -> Result<VmExit, Error> {
        let begun = now();
        let exit = self.vmm.process.kill().await?;
        self.timeline
            .since("pidfd_send_signal SIGKILL, waitid", begun);
        self.clear().await;
        Ok(exit)
    }

    /// Removes the sockets of one that has ended.
    async fn clear(&self) {
        if let Some(console) = &self.console {
            // A task that is late removes its socket later.
            let _ = timeout(CONSOLE_DEADLINE, console.closed()).await;
        }
        // Dropped, they are removed; what is in use by now is not ours.
        drop(Sockets::new(&self.record.monitor, &self.record.agent));
    }
}

#[async_trait]
impl Vm for FirecrackerVm {
    async fn pause(&self) -> Result<(), Error> {
        self.timeline.restart();
        self.turn("pause", "Paused").await
    }

    /// Connections to the guest's vsock are over when it runs again.
    async fn resume(&self) -> Result<(), Error> {
        self.timeline.restart();
        // What comes of this attempt is not known should it be given up.
        if !self.untouched.swap(false, Ordering::AcqRel) {
            let begun = now();
            let found = self.state("resume").await?;
            self.timeline.since("GET /", begun);
            // To resume a running one would hold back its vsock.
            if found == VmState::Running {
                return Ok(());
            }
        }
        self.reset_vsock().await?;
        self.turn("resume", "Resumed").await?;
        self.resets_vsock.store(false, Ordering::Release);
        Ok(())
    }

    async fn save(&self, directory: &Path) -> Result<Saved, Error> {
        self.timeline.restart();
        let started = Instant::now();
        let begun = now();
        let found = self.state("save").await?;
        let begun = self.timeline.since("GET /", begun);
        if found != VmState::Paused {
            return Err(Error::State {
                verb: "save",
                needed: VmState::Paused,
                found,
            });
        }
        let user = match (self.record.confined, &self.record.agent) {
            (Confined::User { uid }, AgentDevice::HybridVsock { socket, .. }) => {
                socket.parent().map(|shown| (uid, shown))
            }
            _ => None,
        };
        let saving = Saving::create(directory, user)?;
        let [state, memory] = saving.targets()?;
        let begun = self.timeline.since("open O_EXCL", begun);
        let request = json!({
            "snapshot_type": "Full",
            "snapshot_path": state,
            "mem_file_path": memory,
        });
        let request = Request::put("/snapshot/create", Some(request));
        let deadline = self.deadlines.save_of(&self.record);
        let saved = self.vmm.ask("save", request, deadline).await;
        saved.map_err(|error| in_its_words("save", error))?;
        self.resets_vsock.store(true, Ordering::Release);
        self.timeline.since("PUT /snapshot/create", begun);
        let path = saving.state.clone();
        let bytes = std::fs::metadata(&path).map_err(Error::path("stat", &path))?;
        let memory_file = Some(saving.memory.clone());
        let files = vec![path.clone(), saving.memory.clone()];
        saving.keep();
        Ok(Saved {
            path,
            files,
            bytes: bytes.len(),
            duration: started.elapsed(),
            memory_file,
        })
    }

    async fn info(&self) -> Result<VmInfo, Error> {
        Ok(VmInfo {
            state: self.state("info").await?,
            pid: self.record.pid,
        })
    }

    async fn wait(&self) -> Result<VmExit, Error> {
        self.vmm.process.exited().await
    }

    /// There is no power button: Ctrl-Alt-Del is pressed on a PS/2 keyboard, on
    /// which a kernel with that driver (CONFIG_KEYBOARD_ATKBD) resets at once,
    /// or tells its PID 1 where that has asked for it (reboot(2)). A reset ends
    /// Firecracker if it goes through the keyboard controller too: the command
    /// line has to say `reboot=k`, or the guest is killed at the deadline.
    async fn shutdown(&self, deadline: Duration) -> Result<VmExit, Error> {
        self.timeline.restart();
        let begun = now();
        let asked = async {
            // A VMM that does not answer is killed like one that takes too long.
            if self.state("shutdown").await.ok()? != VmState::Running {
                return None;
            }
            let keys = Request::put("/actions", Some(json!({"action_type": "SendCtrlAltDel"})));
            self.ask("shutdown", keys).await.ok()
        };
        let exit = self.vmm.process.ended_within(deadline, asked).await;
        self.timeline.since("SendCtrlAltDel", begun);
        if let Some(exit) = exit {
            self.clear().await;
            return Ok(exit);
        }
        self.end().await
    }

    async fn kill(&self) -> Result<(), Error> {
        self.timeline.restart();
        self.end().await.map(drop)
    }

    async fn agent_port_opened(&self, _deadline: Duration) -> Result<(), Error> {
        Err(Error::Unsupported("telling when a vsock port is opened"))
    }

    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    fn spans(&self) -> Vec<Span> {
        self.timeline.spans()
    }
}

/// Firecracker's states as ours.
fn state_of(state: &str) -> VmState {
    match state {
        "Running" => VmState::Running,
        "Paused" => VmState::Paused,
        _ => VmState::Halted,
    }
}

/// A refused save or restore is the VMM's own failure at it.
pub(super) fn in_its_words(verb: &'static str, error: Error) -> Error {
    match error {
        Error::Monitor(MonitorError::Refused { reason, .. }) => Error::Migration { verb, reason },
        error => error,
    }
}

/// Connects to a Firecracker whose process was identified.
pub(crate) async fn adopt(
    record: &VmRecord,
    process: Process,
    deadlines: Deadlines,
) -> Result<FirecrackerVm, Error> {
    let vm = FirecrackerVm {
        vmm: RestVmm {
            process,
            socket: record.monitor.clone(),
            log: record.log.clone(),
        },
        deadlines,
        record: record.clone(),
        console: None,
        resets_vsock: AtomicBool::new(false),
        untouched: AtomicBool::new(false),
        timeline: Timeline::default(),
    };
    let begun = now();
    vm.state("adopt").await?;
    vm.timeline.since("GET /", begun);
    Ok(vm)
}
