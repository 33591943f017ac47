//! What is done with a driver: in the lab with the real VMM, elsewhere with a
//! recording of what that had answered.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::cloud_hypervisor::CloudHypervisor;
use hypervisor::{
    AgentDevice, Backing, Deadlines, Disk, Error, Hypervisor, Memory, MemoryMode, Rebind, VmExit,
    VmSpec, VmState, adopt,
};

/// RAM of the guests: enough for a distribution's kernel and the agent.
pub(crate) const MEMORY_MIB: u32 = 256;

/// A driver, and where its VMs' files are.
pub(crate) struct Scene {
    pub(crate) driver: CloudHypervisor,
    pub(crate) run: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Scene {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    /// A VM with a disk, whose agent listens on port 1024.
    pub(crate) fn spec(&self, name: &str, backing: Backing) -> VmSpec {
        let disk = self.path("disk");
        fs::write(&disk, vec![b'D'; 1 << 20]).unwrap();
        VmSpec {
            name: name.to_owned(),
            uuid: "6dc6a3a1-5d2a-4b0f-9a52-0b7e2d5c1f10".to_owned(),
            vcpus: 1,
            memory: Memory {
                size_mib: MEMORY_MIB,
                backing,
            },
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: "console=ttyS0 quiet panic=-1 agent.server_addr=vsock://-1:1024".to_owned(),
            disks: vec![Disk {
                id: "root".to_owned(),
                path: disk,
                readonly: true,
            }],
            agent: self.agent(name),
            console: self.path(&format!("{name}.console")),
            monitor: self.path(&format!("{name}.api")),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: self.path(&format!("{name}.log")),
            cgroup: None,
        }
    }

    fn agent(&self, name: &str) -> AgentDevice {
        AgentDevice::HybridVsock {
            socket: self.path(&format!("{name}.vsock")),
            cid: 3,
        }
    }

    /// What makes a clone of a VM.
    pub(crate) fn rebind(&self, name: &str, memory: Backing) -> Rebind {
        let own = self.spec(name, memory);
        Rebind {
            name: Some(own.name),
            monitor: Some(own.monitor),
            console: Some(own.console),
            log: Some(own.log),
            agent: Some(own.agent),
            memory: Some(own.memory.backing),
            ..Rebind::default()
        }
    }

    pub(crate) fn memory(&self, shared: bool) -> Backing {
        Backing::FileBacked {
            path: self.path("memory"),
            shared,
        }
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// What is below the directory of the VMs' files but for logs, by name.
    pub(crate) fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.run).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with(".log")).collect();
        names.sort();
        names
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A template is saved and cloned; every verb that asks the VMM for something.
pub(crate) async fn template_and_clone(scene: &Scene) {
    let spec = scene.spec("template", scene.memory(true));
    let vm = scene.driver.boot(&spec).await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    vm.resume().await.unwrap();
    let saved = scene.directory("saved");
    let error = vm.save(&saved).await.unwrap_err();
    assert!(matches!(error, Error::State { .. }), "{error}");
    vm.pause().await.unwrap();
    vm.pause().await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Paused);
    let outcome = vm.save(&saved).await.unwrap();
    assert_eq!(outcome.memory_file, Some(scene.path("memory")));
    assert_eq!(outcome.files, [saved.join("state")]);
    assert_eq!(names(&saved), ["state"]);
    assert_eq!(vm.info().await.unwrap().state, VmState::Saved);
    assert!(matches!(vm.resume().await, Err(Error::MemorySaved)));
    assert!(matches!(vm.save(&saved).await, Err(Error::MemorySaved)));
    // Whoever takes it over knows, too.
    let record = vm.record();
    drop(vm);
    let vm = adopt(&record, Deadlines::default()).await.unwrap();
    assert!(matches!(vm.resume().await, Err(Error::MemorySaved)));
    vm.kill().await.unwrap();

    let rebind = scene.rebind("clone", scene.memory(false));
    let clone = scene.driver.restore(&saved, &spec, &rebind).await.unwrap();
    assert_eq!(clone.info().await.unwrap().state, VmState::Paused);
    clone.resume().await.unwrap();
    clone.resume().await.unwrap();
    let exit = clone.shutdown(Duration::from_millis(300)).await.unwrap();
    assert_eq!(exit, VmExit::Signalled(9));
}

/// RAM that is saved with the state, and both ways of reading it again.
pub(crate) async fn anonymous_memory(scene: &Scene) {
    let spec = scene.spec("source", Backing::Anonymous);
    let vm = scene.driver.boot(&spec).await.unwrap();
    vm.pause().await.unwrap();
    let saved = scene.directory("saved");
    let outcome = vm.save(&saved).await.unwrap();
    assert_eq!(outcome.memory_file, None);
    assert_eq!(names(&saved), ["memory-ranges", "state"]);
    let again = vm.save(&saved).await.unwrap_err();
    assert!(matches!(again, Error::Path { .. }), "{again}");
    vm.resume().await.unwrap();
    vm.kill().await.unwrap();
    for (name, mode) in [("copy", MemoryMode::Copy), ("demand", MemoryMode::OnDemand)] {
        if !scene.driver.capabilities().memory_modes.contains(&mode) {
            eprintln!("skipped: {mode:?}: the host can't");
            continue;
        }
        let mut rebind = scene.rebind(name, Backing::Anonymous);
        rebind.memory_mode = Some(mode);
        let vm = scene.driver.restore(&saved, &spec, &rebind).await.unwrap();
        vm.resume().await.unwrap();
        vm.kill().await.unwrap();
    }
}

/// A state that is none: the VMM's words, and nothing left.
pub(crate) async fn wrong_state(scene: &Scene) {
    let saved = scene.directory("saved");
    fs::write(saved.join("state"), r#"{"snapshots":{}}"#).unwrap();
    let spec = scene.spec("broken", scene.memory(false));
    let memory = fs::File::create(scene.path("memory")).unwrap();
    memory.set_len(u64::from(MEMORY_MIB) << 20).unwrap();
    let before = scene.left();
    let restored = scene
        .driver
        .restore(&saved, &spec, &Rebind::default())
        .await;
    let error = restored.err().unwrap();
    assert!(
        matches!(
            error,
            Error::Migration {
                verb: "restore",
                ..
            }
        ),
        "{error}"
    );
    let words = "Could not find VM config snapshot section";
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(scene.left(), before);
}
