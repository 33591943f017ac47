//! Each test boots its own guest: what one leaves can't help another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::firecracker::{Firecracker, probe};
use hypervisor::{
    Confinement, Deadlines, Disk, Error, Hypervisor, Nic, NicBackend, Vm, VmExit, VmState, adopt,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::lab::{
    Console, Lab, MEMORY_MIB, PATIENCE, agent_answers, agent_is_silent, agent_socket, digest, disk,
    guest_file, open_files, status,
};
use crate::scenario::{Scene, template_and_clone, wrong_state};
use crate::stand_in::StandIn;

async fn state(vm: &dyn Vm) -> VmState {
    vm.info().await.unwrap().state
}

fn assert_open_read_only(lab: &Lab, pid: i32, path: &Path) {
    let opened = open_files(pid, lab.directory.path());
    let mut ours = opened
        .iter()
        .filter(|(opened, _)| opened == path)
        .peekable();
    assert!(ours.peek().is_some(), "{} is open", path.display());
    assert!(ours.all(|(_, writable)| !writable), "{}", path.display());
}

fn spans(what: &str, vm: &dyn Vm) {
    for span in vm.spans() {
        let micros = span.duration_ns / 1_000;
        println!("{what}: {}: {micros} us", span.name);
    }
}

#[tokio::test]
async fn a_guest_boots_answers_pauses_resumes_and_is_killed_without_a_trace() {
    let lab = Lab::new().await;
    let mut spec = lab.spec("vm");
    disk(&lab.path("a.img"), 4096);
    spec.disks.push(Disk {
        id: "data-0".into(),
        path: lab.path("a.img"),
        readonly: true,
    });
    let vm = lab.driver.boot(&spec).await.unwrap();
    spans("boot", vm.as_ref());
    // The first output was before anyone listened.
    let mut console = Console::connect(&spec.console).await;
    console.hear("Linux version").await;
    console.hear("[vda] 4096 512-byte").await;
    agent_answers(vm.as_ref()).await;

    let pid = vm.info().await.unwrap().pid;
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert!(fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    for socket in [&spec.monitor, &agent_socket(vm.as_ref()), &spec.console] {
        let mode = fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", socket.display());
    }
    assert_open_read_only(&lab, pid, &lab.path("a.img"));

    for _ in 0..2 {
        vm.pause().await.unwrap();
        assert_eq!(state(vm.as_ref()).await, VmState::Paused);
    }
    assert!(agent_is_silent(vm.as_ref()).await);
    for _ in 0..2 {
        vm.resume().await.unwrap();
        assert_eq!(state(vm.as_ref()).await, VmState::Running);
    }
    agent_answers(vm.as_ref()).await;
    // Once more: each time the guest has to be told.
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    spans("resume", vm.as_ref());
    agent_answers(vm.as_ref()).await;
    let refused = vm.save(&lab.path("vm")).await.unwrap_err();
    assert!(matches!(refused, Error::State { .. }), "{refused}");
    let opened = vm.agent_port_opened(PATIENCE).await.unwrap_err();
    assert!(matches!(opened, Error::Unsupported(_)), "{opened}");

    vm.kill().await.unwrap();
    vm.kill().await.unwrap();
    assert_eq!(vm.wait().await.unwrap(), VmExit::Signalled(9));
    assert!(lab.processes().is_empty());
    assert_eq!(lab.left("vm"), Vec::<String>::new());
    vm.info().await.unwrap_err();
}

#[tokio::test]
async fn two_clones_live_on_one_memory_file_and_a_clone_is_saved_and_cloned_again() {
    let lab = Lab::new().await;
    let mut spec = lab.spec("first");
    disk(&lab.path("a.img"), 4096);
    spec.disks.push(Disk {
        id: "root".into(),
        path: lab.path("a.img"),
        readonly: true,
    });
    let first = lab.driver.boot(&spec).await.unwrap();
    drop(agent_answers(first.as_ref()).await);
    first.pause().await.unwrap();
    fs::create_dir(lab.path("saved")).unwrap();
    let saved = first.save(&lab.path("saved")).await.unwrap();
    spans("save", first.as_ref());
    let memory = saved.memory_file.clone().unwrap();
    assert_eq!(memory, lab.path("saved/memory"));
    assert_eq!(
        fs::metadata(&memory).unwrap().len(),
        u64::from(MEMORY_MIB) << 20
    );
    for file in [&memory, &saved.path] {
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
    let again = first.save(&lab.path("saved")).await.unwrap_err();
    assert!(
        matches!(again, Error::Path { .. }),
        "there is a state: {again}"
    );
    // No path of ours is in what will be loaded.
    let state_bytes = fs::read(&saved.path).unwrap();
    println!("state: {} bytes", state_bytes.len());
    let needle = lab.directory.path().as_os_str().as_encoded_bytes();
    assert!(
        !state_bytes
            .windows(needle.len())
            .any(|window| window == needle)
    );
    // Its file is not its RAM: it runs on.
    first.resume().await.unwrap();
    agent_answers(first.as_ref()).await;
    first.kill().await.unwrap();

    for file in [&memory, &saved.path] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let before = (digest(&memory), digest(&saved.path));
    // Another image of the same size: the saved one is gone.
    fs::remove_file(lab.path("a.img")).unwrap();
    disk(&lab.path("b.img"), 4096);
    let rebind = |name: &str| {
        let mut rebind = lab.rebind(name, &memory);
        rebind.disks.insert("root".into(), lab.path("b.img"));
        rebind
    };
    let directory = lab.path("saved");
    let (one, two) = (rebind("one"), rebind("two"));
    let (one, two) = tokio::join!(
        lab.driver.restore(&directory, &spec, &one),
        lab.driver.restore(&directory, &spec, &two),
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    spans("restore", one.as_ref());
    for clone in [&one, &two] {
        assert_eq!(state(clone.as_ref()).await, VmState::Paused);
        clone.resume().await.unwrap();
    }
    assert_ne!(agent_socket(one.as_ref()), agent_socket(two.as_ref()));
    for clone in [&one, &two] {
        drop(agent_answers(clone.as_ref()).await);
        let pid = clone.info().await.unwrap().pid;
        for path in [&memory, &saved.path, &lab.path("b.img")] {
            assert_open_read_only(&lab, pid, path);
        }
    }
    assert_eq!((digest(&memory), digest(&saved.path)), before);

    one.pause().await.unwrap();
    fs::create_dir(lab.path("second")).unwrap();
    let second = one.save(&lab.path("second")).await.unwrap();
    one.kill().await.unwrap();
    let rebind = {
        let mut rebind = lab.rebind("three", second.memory_file.as_ref().unwrap());
        rebind.disks.insert("root".into(), lab.path("b.img"));
        rebind
    };
    let restored = lab
        .driver
        .restore(&lab.path("second"), &spec, &rebind)
        .await;
    let three = restored.unwrap();
    three.resume().await.unwrap();
    agent_answers(three.as_ref()).await;
    agent_answers(two.as_ref()).await;
    assert_eq!((digest(&memory), digest(&saved.path)), before);

    two.kill().await.unwrap();
    three.kill().await.unwrap();
    assert!(lab.processes().is_empty());
    for name in ["first", "one", "two", "three"] {
        assert_eq!(lab.left(name), Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn a_damaged_state_or_memory_file_is_refused_in_the_vmms_words() {
    let lab = Lab::new().await;
    let spec = lab.spec("vm");
    let vm = lab.driver.boot(&spec).await.unwrap();
    vm.pause().await.unwrap();
    fs::create_dir(lab.path("saved")).unwrap();
    let saved = vm.save(&lab.path("saved")).await.unwrap();
    // Killed with a save just done.
    vm.kill().await.unwrap();
    let memory = saved.memory_file.unwrap();
    let good = fs::read(&saved.path).unwrap();
    let mut altered = good.clone();
    altered[good.len() / 2] ^= 1;
    for (bad, what) in [
        (&good[..good.len() / 2], "cut short"),
        (b"no state".as_slice(), "something else"),
        (&altered, "altered"),
    ] {
        fs::write(&saved.path, bad).unwrap();
        let rebind = lab.rebind("clone", &memory);
        let restored = lab.driver.restore(&lab.path("saved"), &spec, &rebind).await;
        let Err(error) = restored else {
            panic!("{what}: restored");
        };
        println!("{what}: {error}");
        let Error::Migration {
            verb: "restore",
            reason,
        } = &error
        else {
            panic!("{what}: {error}");
        };
        assert!(reason.contains("snapshot"), "{what}: {reason}");
        assert!(lab.processes().is_empty(), "{what}");
        assert_eq!(lab.left("clone"), Vec::<String>::new(), "{what}");
    }
    fs::write(&saved.path, &good).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&memory).unwrap();
    file.set_len(1 << 20).unwrap();
    let rebind = lab.rebind("clone", &memory);
    let restored = lab.driver.restore(&lab.path("saved"), &spec, &rebind).await;
    assert!(matches!(
        restored,
        Err(Error::Spec {
            field: "memory.path",
            ..
        })
    ));
    assert_eq!(lab.left("clone"), Vec::<String>::new());
}

#[test]
fn a_vm_outlives_its_owner_and_is_adopted_without_a_console() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let owner = runtime();
    let (lab, record) = owner.block_on(async {
        let lab = Lab::new().await;
        let mut spec = lab.spec("vm");
        // So that the guest writes much more than a pipe holds.
        spec.cmdline.push_str(" ignore_loglevel initcall_debug");
        let vm = lab.driver.boot(&spec).await.unwrap();
        let record = vm.record();
        drop(vm);
        (lab, record)
    });
    // With the runtime the console's task is gone, and nobody reads the pipe.
    drop(owner);
    runtime().block_on(async {
        let vm = adopt(&record, Deadlines::default()).await.unwrap();
        assert_eq!(vm.record(), record);
        agent_answers(vm.as_ref()).await;
        vm.pause().await.unwrap();
        assert_eq!(state(vm.as_ref()).await, VmState::Paused);
        // It is not our child for all the driver knows; here it is.
        fs::create_dir(lab.path("saved")).unwrap();
        let saved = vm.save(&lab.path("saved")).await.unwrap();
        vm.kill().await.unwrap();
        assert!(lab.processes().is_empty());
        let gone = adopt(&record, Deadlines::default()).await;
        assert!(matches!(gone, Err(Error::Identity { .. })));
        let rebind = lab.rebind("clone", saved.memory_file.as_ref().unwrap());
        let spec = lab.spec("vm");
        let restored = lab.driver.restore(&lab.path("saved"), &spec, &rebind).await;
        let clone = restored.unwrap();
        clone.resume().await.unwrap();
        agent_answers(clone.as_ref()).await;
        clone.kill().await.unwrap();
    });
}

#[tokio::test]
async fn a_guest_that_is_asked_to_shut_down_resets() {
    let lab = Lab::new().await;
    let spec = lab.spec("vm");
    let vm = lab.driver.boot(&spec).await.unwrap();
    agent_answers(vm.as_ref()).await;
    let exit = vm.shutdown(PATIENCE).await.unwrap();
    spans("shutdown", vm.as_ref());
    assert_eq!(exit, VmExit::Exited(0));
    assert_eq!(lab.left("vm"), Vec::<String>::new());
}

#[tokio::test]
async fn a_boot_or_a_restore_nobody_waits_for_leaves_nothing() {
    let lab = Lab::new().await;
    let spec = lab.spec("vm");
    for millis in [0, 20, 100, 200, 400] {
        let patience = Duration::from_millis(millis);
        let booted = timeout(patience, lab.driver.boot(&spec)).await;
        println!("boot within {patience:?}: {}", booted.is_ok());
        if let Ok(vm) = booted {
            vm.unwrap().kill().await.unwrap();
        }
        assert!(lab.processes().is_empty(), "{patience:?}");
        assert_eq!(lab.left("vm"), Vec::<String>::new(), "{patience:?}");
    }
    let vm = lab.driver.boot(&spec).await.unwrap();
    vm.pause().await.unwrap();
    fs::create_dir(lab.path("saved")).unwrap();
    let saved = vm.save(&lab.path("saved")).await.unwrap();
    vm.kill().await.unwrap();
    let memory = saved.memory_file.unwrap();
    for millis in [0, 20, 60, 120, 240] {
        let patience = Duration::from_millis(millis);
        let rebind = lab.rebind("clone", &memory);
        let directory = lab.path("saved");
        let restored = timeout(patience, lab.driver.restore(&directory, &spec, &rebind)).await;
        println!("restore within {patience:?}: {}", restored.is_ok());
        if let Ok(clone) = restored {
            clone.unwrap().kill().await.unwrap();
        }
        assert!(lab.processes().is_empty(), "{patience:?}");
        assert_eq!(lab.left("clone"), Vec::<String>::new(), "{patience:?}");
    }
}

#[tokio::test]
async fn a_clone_gets_the_tap_of_its_own() {
    let lab = Lab::new().await;
    let tap = |name: &str| {
        let made = std::process::Command::new("ip")
            .args(["tuntap", "add", "mode", "tap", "name", name])
            .status();
        assert!(made.is_ok_and(|status| status.success()), "ip tuntap");
        NicBackend::Tap { name: name.into() }
    };
    // Whether somebody has the tap open: only then has it a carrier.
    let attached = |name: &str| {
        let up = std::process::Command::new("ip")
            .args(["link", "set", name, "up"])
            .status();
        assert!(up.unwrap().success());
        fs::read_to_string(format!("/sys/class/net/{name}/carrier"))
            .unwrap()
            .trim()
            == "1"
    };
    let mut spec = lab.spec("vm");
    spec.nics.push(Nic {
        id: "eth-0".into(),
        mac: "02:00:00:00:00:07".into(),
        backend: tap("fcvm"),
    });
    let vm = lab.driver.boot(&spec).await.unwrap();
    assert!(attached("fcvm"));
    agent_answers(vm.as_ref()).await;
    vm.pause().await.unwrap();
    fs::create_dir(lab.path("saved")).unwrap();
    let saved = vm.save(&lab.path("saved")).await.unwrap();
    let mut rebind = lab.rebind("clone", saved.memory_file.as_ref().unwrap());
    rebind.nics.insert("eth-0".into(), tap("fcclone"));
    assert!(!attached("fcclone"));
    // The saved VM still has its own: the clone does not touch it.
    let restored = lab.driver.restore(&lab.path("saved"), &spec, &rebind).await;
    let clone = restored.unwrap();
    assert!(attached("fcclone"));
    clone.resume().await.unwrap();
    agent_answers(clone.as_ref()).await;
    clone.kill().await.unwrap();
    vm.kill().await.unwrap();
}

/// The scenarios that are played back elsewhere, and their recordings.
#[tokio::test]
async fn the_recorded_scenarios_go_as_they_do_elsewhere() {
    let mut recordings = serde_json::Map::new();
    for name in ["template_and_clone", "wrong_state"] {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        fs::create_dir(&run).unwrap();
        let mut found = probe(None, None, &Confinement::Insecure).await.unwrap();
        let stand_in = StandIn::with(directory.path(), &run, &json!({ "record": found.program }));
        found.program.clone_from(&stand_in.program);
        let command = Duration::from_secs(60);
        let deadlines = Deadlines {
            start: command,
            command,
            ..Deadlines::default()
        };
        let scene = Scene {
            driver: Firecracker::new(&found, deadlines),
            run,
            kernel: guest_file("TARDIGRADE_TEST_VMLINUX", "vmlinux"),
            initrd: guest_file("TARDIGRADE_INITRD", "initrd.img"),
        };
        match name {
            "template_and_clone" => template_and_clone(&scene).await,
            _ => wrong_state(&scene).await,
        }
        let files = (0..).map(|start| stand_in.left(start, "json"));
        let files = files.take_while(|path| path.is_file());
        let read = |path: PathBuf| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let conversations: Vec<Value> = files.map(read).collect();
        assert!(!conversations.is_empty());
        recordings.insert(name.to_owned(), conversations.into());
    }
    if let Some(directory) = std::env::var_os("RECORD") {
        let path = Path::new(&directory).join("firecracker-v1.16.json");
        let text = serde_json::to_string_pretty(&recordings).unwrap();
        fs::write(path, text + "\n").unwrap();
    }
}
