//! What is kept on disk of a sandbox: a saved type, never a live one. Written
//! by the supervisor that holds the run directory's lock, read by everyone.

use super::identity::Uuid;
use super::spec::SandboxSpec;
use super::state::State;
use crate::config::{Paths, SandboxId, TemplateDigest};
use crate::host::{ProcessIdentity, RecordError, RecordHead, Stage, read_record};
use crate::store::SavedWarmUp;
use agent_client::{Generation, Identity};
use hypervisor::{DirectoryRecord, VmRecord};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// The form this program writes; another form is not read.
pub const FORMAT: u32 = 1;

/// A sandbox on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// The part a sweep understands.
    #[serde(flatten)]
    pub head: RecordHead,
    /// The sandbox.
    pub id: SandboxId,
    /// Where it stands.
    pub state: State,
    /// When its making began, in seconds since 1970.
    pub created: u64,
    /// What it is made of.
    pub spec: SandboxSpec,
    /// The template it was cloned from.
    pub template: Option<TemplateDigest>,
    /// The owner of that template, if that is another user.
    #[serde(default)]
    pub shared_with: Option<u32>,
    /// How many saves lie between it and its first boot; 0 for a boot.
    #[serde(default)]
    pub saves: u32,
    /// How it is known to be ready, and what was done to warm it.
    #[serde(default)]
    pub warm_up: SavedWarmUp,
    /// Why it was booted cold although a template was asked for.
    pub fallback: Option<String>,
    /// The UUID of its VM.
    pub uuid: Uuid,
    /// What the guest answers to.
    pub identity: Option<Identity>,
    /// The name of this life, once thawed.
    pub generation: Option<Generation>,
    /// Why its VMM has no cgroup of its own.
    #[serde(default)]
    pub unlimited: Option<String>,
    /// What the hypervisor driver needs to take the VM over again.
    pub vm: Option<VmRecord>,
    /// How the VM ended.
    pub exit: Option<String>,
}

impl SandboxRecord {
    /// The record of a sandbox whose making begins now.
    #[must_use]
    pub fn begin(id: SandboxId, uuid: Uuid, spec: SandboxSpec) -> Self {
        Self {
            format: FORMAT,
            head: RecordHead {
                stage: Stage::Starting,
                supervisor: None,
                vmm: None,
                virtiofsds: Vec::new(),
                tap: None,
                cgroup: None,
            },
            id,
            state: State::Created,
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            spec,
            template: None,
            shared_with: None,
            saves: 0,
            warm_up: SavedWarmUp::default(),
            fallback: None,
            uuid,
            identity: None,
            generation: None,
            unlimited: None,
            vm: None,
            exit: None,
        }
    }

    /// Reads the record of a sandbox.
    ///
    /// # Errors
    /// [`RecordError::Missing`] for an unknown sandbox.
    pub fn read(paths: &Paths, id: &SandboxId) -> Result<Self, RecordError> {
        read_record(&paths.sandbox(id).record())
    }

    /// Sets the state, and with it what a sweep may do.
    pub fn set_state(&mut self, state: State) {
        self.state = state;
        self.head.stage = match state {
            State::Created => Stage::Starting,
            State::Running | State::Paused => Stage::Ready,
            State::Saved | State::Stopped => Stage::Ended,
        };
    }

    /// Notes the VM that was just spawned.
    pub fn set_vm(&mut self, vm: VmRecord) {
        self.head.vmm = Some(process_identity(&vm));
        self.head.virtiofsds = vm.directories.iter().map(server_identity).collect();
        self.vm = Some(vm);
    }

    /// Notes the end of the VM.
    pub fn set_exit(&mut self, exit: String) {
        self.set_state(State::Stopped);
        self.head.vmm = None;
        self.head.virtiofsds.clear();
        self.vm = None;
        self.exit = Some(exit);
    }

    /// The same where what ran it could not be ended, or that is not known: what
    /// still lives stays in the record, for whoever removes or sweeps it.
    pub fn set_lost(&mut self, exit: String) {
        let before = self.head.clone();
        self.set_exit(exit);
        self.head.vmm = before.vmm.filter(ProcessIdentity::is_alive);
        self.head.virtiofsds = before.virtiofsds;
        self.head.virtiofsds.retain(ProcessIdentity::is_alive);
    }

    /// The state as it is now: a sandbox whose VMM is gone is stopped, also
    /// when nobody was left to write it down.
    #[must_use]
    pub fn present_state(&self) -> State {
        let gone = |process: &Option<ProcessIdentity>| {
            process.as_ref().is_none_or(|process| !process.is_alive())
        };
        match self.state {
            State::Stopped => State::Stopped,
            // Its VMM may not have been recorded yet; its supervisor was.
            State::Created if gone(&self.head.vmm) && gone(&self.head.supervisor) => State::Stopped,
            State::Created => State::Created,
            state if gone(&self.head.vmm) => state
                .after(super::state::Event::Exited)
                .unwrap_or(State::Stopped),
            state => state,
        }
    }
}

/// A driver's way to name a process, in the host's.
fn process_identity(vm: &VmRecord) -> ProcessIdentity {
    ProcessIdentity {
        pid: vm.pid,
        start_time: vm.start_time,
        boot_id: vm.boot_id.clone(),
    }
}

fn server_identity(directory: &DirectoryRecord) -> ProcessIdentity {
    ProcessIdentity {
        pid: directory.pid,
        start_time: directory.start_time,
        boot_id: directory.boot_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::NetworkKind;
    use super::super::vmm::{Carrier, Vmm};
    use super::*;

    fn record() -> SandboxRecord {
        let spec = SandboxSpec {
            vmm: Vmm::Qemu,
            carrier: Carrier::Serial,
            network: NetworkKind::None,
            vcpus: 1,
            memory_mib: 64,
            kernel: "/k".into(),
            initrd: "/i".into(),
            disks: Vec::new(),
            directories: Vec::new(),
            containers: Vec::new(),
        };
        let id = SandboxId::random().unwrap();
        SandboxRecord::begin(id, Uuid::draw().unwrap(), spec)
    }

    fn gone() -> ProcessIdentity {
        let mut process = ProcessIdentity::current().unwrap();
        process.start_time += 1;
        process
    }

    #[test]
    fn a_record_survives_its_text_and_a_sweep_reads_its_head() {
        let mut before = record();
        before.head.supervisor = Some(gone());
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(
            serde_json::from_str::<SandboxRecord>(&text).unwrap(),
            before
        );
        let head: RecordHead = serde_json::from_str(&text).unwrap();
        assert_eq!(head, before.head);
    }

    #[test]
    fn a_sandbox_whose_vmm_is_gone_is_stopped_whatever_was_written() {
        for state in [State::Running, State::Paused, State::Saved] {
            let mut record = record();
            record.set_state(state);
            record.head.vmm = Some(gone());
            assert_eq!(record.present_state(), State::Stopped, "{state}");
            record.head.vmm = Some(ProcessIdentity::current().unwrap());
            assert_eq!(record.present_state(), state);
        }
    }

    #[test]
    fn what_could_not_be_ended_stays_in_the_record_of_a_sandbox_that_is_lost() {
        let alive = ProcessIdentity::current().unwrap();
        let mut record = record();
        record.head.vmm = Some(alive.clone());
        record.head.virtiofsds = vec![gone(), alive.clone()];
        record.set_lost("not within 10s".to_owned());
        assert_eq!(record.present_state(), State::Stopped);
        assert_eq!(record.head.processes(), [alive.clone(), alive]);
        record.head.vmm = Some(gone());
        record.set_lost("not within 10s".to_owned());
        assert_eq!(record.head.vmm, None);
        record.set_exit("exit status 0".to_owned());
        assert!(record.head.processes().is_empty());
    }

    #[test]
    fn a_sandbox_in_the_making_lives_by_its_supervisor() {
        let mut record = record();
        record.head.supervisor = Some(ProcessIdentity::current().unwrap());
        assert_eq!(record.present_state(), State::Created);
        record.head.supervisor = Some(gone());
        assert_eq!(record.present_state(), State::Stopped);
    }

    #[test]
    fn only_what_was_handed_over_outlives_its_supervisor() {
        let mut record = record();
        for state in State::ALL {
            record.set_state(state);
            let outlives = !record.head.stage.is_abandoned_without_supervisor();
            let handed_over = matches!(state, State::Running | State::Paused);
            assert_eq!(outlives, handed_over, "{state}");
        }
    }
}
