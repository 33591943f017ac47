//! Directories of the host on Cloud Hypervisor, in the nested host: from a
//! container, and through a save and a restore.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use agent_client::{
    AgentClient, ContainerConfig, ExecConfig, ExecEvent, HostDirectory, SandboxConfig,
};
use hypervisor::cloud_hypervisor::{CloudHypervisor, probe};
use hypervisor::{
    AgentDevice, Backing, Confinement, Deadlines, Error, Hypervisor, MemoryMode, Rebind,
    SharedDirectory, VmExit, VmSpec,
};
use protocols::{AgentAddress, Link, port};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tardigrade_tests::place::Place;
use tardigrade_tests::{confinement, images, lab, machine, processes, sandbox, virtiofsd};

/// Emulated twice.
const DEADLINE: Duration = Duration::from_secs(180);

/// A directory that every user may write to: the nested host's root has no
/// idmapped mounts.
fn open_to_all(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    fs::write(path.join("found"), "of the host\n").unwrap();
}

/// From a container, through the command line.
fn a_container_reads_and_writes(vmm: &'static str) {
    virtiofsd().expect("the lab has one");
    let place = Place::new(vmm);
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    open_to_all(&data);
    let written = format!("{}:/data", data.display());
    let read = format!("{}:/lower:ro", data.display());
    let options = ["--directory", &written, "--directory", &read];
    let made = place.make(&["run"], &options);
    let id = sandbox(&made);
    let script = "cat /data/found; echo new > /data/new; cat /lower/new; \
                  (echo x > /lower/more) 2>/dev/null || echo refused";
    assert_eq!(place.shell(id, script), "of the host\nnew\nrefused\n");
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
    let vm = &place.home.json(["inspect", id])["vm"];
    for one in vm["directories"].as_array().unwrap() {
        let pid = i32::try_from(one["pid"].as_i64().unwrap()).unwrap();
        let uid = u32::try_from(one["confined"]["user"]["uid"].as_u64().unwrap()).unwrap();
        confinement::assert_confined(rustix::process::Pid::from_raw(pid).unwrap(), uid);
    }
    assert_eq!(processes::machines(place.home.path()).len(), 3);
    place.home.text(["stop", id]);
    assert!(processes::machines(place.home.path()).is_empty());
    place.end();
}

/// A VM whose agent listens on hybrid vsock, with one directory.
fn spec(directory: &Path, name: &str, data: &Path) -> VmSpec {
    let run = directory.join(name);
    fs::create_dir(&run).unwrap();
    let mut spec = machine::spec(&run, 256, Some(&images::busybox()));
    spec.name = name.to_owned();
    spec.memory.backing = Backing::Anonymous;
    spec.agent = AgentDevice::HybridVsock {
        socket: run.join("agent.sock"),
        cid: 3,
    };
    spec.cmdline = format!(
        "console=ttyS0 quiet panic=-1 agent.server_addr=vsock://-1:{}",
        port::RPC
    );
    spec.directories = vec![SharedDirectory {
        tag: "data".to_owned(),
        path: data.to_owned(),
        readonly: false,
    }];
    spec
}

async fn agent_of(vm: &str, directory: &Path) -> (Link, AgentClient) {
    let address = AgentAddress::HybridVsock {
        socket: directory.join(vm).join("agent.sock"),
        port: port::RPC,
    };
    let link = lab::dial(&address, DEADLINE).await.unwrap();
    let client = AgentClient::connect(&link, DEADLINE).await.unwrap();
    (link, client)
}

async fn shell(client: &AgentClient, script: &str) -> String {
    let config = ExecConfig {
        container_id: Some("main".to_owned()),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecConfig::default()
    };
    let mut stream = client.exec(&config, DEADLINE).await.unwrap();
    let mut said = Vec::new();
    loop {
        match stream.next_event().await.unwrap() {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => said.extend(bytes),
            ExecEvent::Exit(_) => return String::from_utf8(said).unwrap(),
            ExecEvent::Error(reason) => return reason,
        }
    }
}

fn container() -> ContainerConfig {
    let mut config = machine::container(&["sleep", "100000"]);
    config.directories.push(HostDirectory {
        tag: "data".to_owned(),
        destination: "/data".to_owned(),
        readonly: false,
    });
    config
}

/// A file that the guest has open at the save is open in the restored VM, whose
/// directory is served by another virtiofsd.
async fn a_saved_vm_has_its_directory_when_it_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    open_to_all(&data);
    let confinement = || Confinement::strictest(0x7e00_0000).unwrap();
    let found = probe(None, None, &confinement()).await.unwrap();
    let driver = CloudHypervisor::new(&found, Deadlines::default());
    let spec = spec(directory.path(), "saved", &data);
    let vm = driver
        .clone()
        .confined(confinement())
        .boot(&spec)
        .await
        .unwrap();
    let (link, client) = agent_of("saved", directory.path()).await;
    let sandbox = SandboxConfig {
        hostname: "saved".to_owned(),
        dns: Vec::new(),
        sandbox_id: "saved".to_owned(),
    };
    client.create_sandbox(&sandbox, DEADLINE).await.unwrap();
    client
        .create_container(&container(), DEADLINE)
        .await
        .unwrap();
    client.start_container("main", DEADLINE).await.unwrap();
    // Held open by a process that lives through the save.
    let holds = "exec 3>>/data/log; echo before >&3; (while :; do sleep 1; echo tick >&3; done) \
                 >/dev/null 2>&1 & cat /data/log";
    let said = shell(&client, holds).await;
    assert!(said.starts_with("before\n"), "{said}");
    drop((client, link));
    vm.pause().await.unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let saved = vm.save(&state).await.unwrap();
    assert_eq!(saved.memory_file, None);
    vm.kill().await.unwrap();
    let before = fs::read_to_string(data.join("log")).unwrap();

    // Neither pages on demand nor a private mapping goes along with it.
    let own = self::spec(directory.path(), "clone", &data);
    let mut rebind = Rebind {
        name: Some(own.name.clone()),
        monitor: Some(own.monitor.clone()),
        console: Some(own.console.clone()),
        log: Some(own.log.clone()),
        agent: Some(own.agent.clone()),
        ..Rebind::default()
    };
    let memory = state.join("memory-ranges");
    for (memory, mode, word) in [
        (None, Some(MemoryMode::OnDemand), "on demand"),
        (
            Some(Backing::FileBacked {
                path: memory,
                shared: false,
            }),
            None,
            "copy-on-write",
        ),
    ] {
        let refused = Rebind {
            memory,
            memory_mode: mode,
            ..rebind.clone()
        };
        let error = driver.restore(&state, &spec, &refused).await.err().unwrap();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    rebind.memory_mode = Some(MemoryMode::Copy);
    let driver = driver.confined(confinement());
    let vm = driver.restore(&state, &spec, &rebind).await.unwrap();
    vm.resume().await.unwrap();
    let (link, client) = agent_of("clone", directory.path()).await;
    let goes_on = "before=$(cat /data/log); while [ \"$(cat /data/log)\" = \"$before\" ]; do :; done; \
                   cat /data/log; echo restored > /data/restored";
    let after = shell(&client, goes_on).await;
    assert!(
        after.starts_with(&before) && after.len() > before.len(),
        "{after}"
    );
    assert_eq!(
        fs::read_to_string(data.join("restored")).unwrap(),
        "restored\n"
    );
    drop((client, link));

    // A VM whose directory is lost has ended.
    let served = vm.record().directories[0].pid;
    let served = rustix::process::Pid::from_raw(served).unwrap();
    rustix::process::kill_process(served, rustix::process::Signal::KILL).unwrap();
    assert_eq!(vm.wait().await.unwrap(), VmExit::LostDirectory);
    vm.kill().await.unwrap();
    assert!(processes::machines(directory.path()).is_empty());
}

mod cloud_hypervisor {
    #[test]
    fn a_container_reads_and_writes_a_directory() {
        super::a_container_reads_and_writes("cloud-hypervisor");
    }

    #[test]
    fn a_saved_vm_has_its_directory_when_it_is_restored() {
        super::lab::assert_nested_host();
        super::virtiofsd().expect("the lab has one");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(super::a_saved_vm_has_its_directory_when_it_is_restored());
    }
}

mod qemu {
    #[test]
    fn a_container_reads_and_writes_a_directory() {
        super::a_container_reads_and_writes("qemu");
    }
}
