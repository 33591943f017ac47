//! What is done with a driver: in the lab with the real Firecracker, elsewhere
//! with a recording of what that had answered.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hypervisor::firecracker::Firecracker;
use hypervisor::{
    AgentDevice, Backing, Deadlines, Disk, Error, Hypervisor, Memory, Rebind, VmExit, VmSpec,
    VmState, adopt,
};

/// RAM of the guests: enough for a distribution's kernel.
const MEMORY_MIB: u32 = 128;

/// A driver, and where its VMs' files are.
pub(crate) struct Scene {
    pub(crate) driver: Firecracker,
    pub(crate) run: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }

    /// A VM with a disk, in a directory of its own.
    pub(crate) fn spec(&self, name: &str) -> VmSpec {
        let disk = self.path("disk");
        fs::write(&disk, vec![b'D'; 1 << 20]).unwrap();
        let own = self.path(name);
        fs::create_dir_all(&own).unwrap();
        VmSpec {
            name: name.to_owned(),
            uuid: "6dc6a3a1-5d2a-4b0f-9a52-0b7e2d5c1f10".to_owned(),
            vcpus: 1,
            memory: Memory {
                size_mib: MEMORY_MIB,
                backing: Backing::Anonymous,
            },
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: "console=ttyS0 quiet panic=-1 reboot=k agent.server_addr=vsock://-1:1024"
                .to_owned(),
            disks: vec![Disk {
                id: "root".to_owned(),
                path: disk,
                readonly: true,
            }],
            agent: AgentDevice::HybridVsock {
                socket: own.join("agent"),
                cid: 3,
            },
            console: own.join("console"),
            monitor: own.join("api"),
            nics: Vec::new(),
            directories: Vec::new(),
            cpu_model: None,
            log: own.join("log"),
            cgroup: None,
        }
    }

    /// What makes a clone of a VM.
    fn rebind(&self, name: &str) -> Rebind {
        let own = self.spec(name);
        Rebind {
            name: Some(own.name),
            monitor: Some(own.monitor),
            console: Some(own.console),
            log: Some(own.log),
            agent: Some(own.agent),
            memory: Some(Backing::FileBacked {
                path: self.path("saved/memory"),
                shared: false,
            }),
            ..Rebind::default()
        }
    }

    /// The length that the real one has given its memory file.
    fn lengthen_memory(&self) {
        let path = self.path("saved/memory");
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(u64::from(MEMORY_MIB) << 20).unwrap();
    }
}

/// A template is saved and cloned; every verb that asks the VMM for something.
pub(crate) async fn template_and_clone(scene: &Scene) {
    let spec = scene.spec("template");
    let vm = scene.driver.boot(&spec).await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    let saved = scene.path("saved");
    fs::create_dir(&saved).unwrap();
    let error = vm.save(&saved).await.unwrap_err();
    assert!(matches!(error, Error::State { .. }), "{error}");
    vm.pause().await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Paused);
    // Its vsock is reset first: nothing was saved since the pause.
    vm.resume().await.unwrap();
    vm.pause().await.unwrap();
    let outcome = vm.save(&saved).await.unwrap();
    assert_eq!(outcome.memory_file, Some(saved.join("memory")));
    assert_eq!(outcome.files, [saved.join("state"), saved.join("memory")]);
    // And now it is not.
    vm.resume().await.unwrap();
    let record = vm.record();
    drop(vm);
    let vm = adopt(&record, Deadlines::default()).await.unwrap();
    vm.pause().await.unwrap();
    vm.kill().await.unwrap();

    scene.lengthen_memory();
    let rebind = scene.rebind("clone");
    let clone = scene.driver.restore(&saved, &spec, &rebind).await.unwrap();
    assert_eq!(clone.info().await.unwrap().state, VmState::Paused);
    clone.resume().await.unwrap();
    clone.resume().await.unwrap();
    clone.pause().await.unwrap();
    let exit = clone.shutdown(Duration::from_millis(300)).await.unwrap();
    assert_eq!(exit, VmExit::Signalled(9));
}

/// A state that is none: the VMM's words, and nothing left.
pub(crate) async fn wrong_state(scene: &Scene) {
    let saved = scene.path("saved");
    fs::create_dir(&saved).unwrap();
    fs::write(saved.join("state"), "no state at all").unwrap();
    fs::write(saved.join("memory"), "").unwrap();
    scene.lengthen_memory();
    let spec = scene.spec("template");
    let rebind = scene.rebind("broken");
    let restored = scene.driver.restore(&saved, &spec, &rebind).await;
    let error = restored.err().unwrap();
    let is_refused = matches!(
        error,
        Error::Migration {
            verb: "restore",
            ..
        }
    );
    assert!(is_refused, "{error}");
    assert!(error.to_string().contains("snapshot"), "{error}");
}
