//! Pausing, saving and restoring.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use hypervisor::{
    Backing, Deadlines, Disk, Error, Hypervisor, Nic, NicBackend, VmExit, VmSpec, VmState, adopt,
};

use crate::lab::{Console, Lab, digest, skipped};

/// Boots a VM until its kernel speaks, saves it and kills it.
async fn save_early(lab: &Lab, spec: &VmSpec) {
    let vm = lab.driver.boot(spec).await.unwrap();
    Console::connect(&spec.console)
        .await
        .hear("Linux version")
        .await;
    vm.pause().await.unwrap();
    let saved = vm.save(lab.directory.path()).await.unwrap();
    assert_eq!(fs::metadata(&saved.path).unwrap().len(), saved.bytes);
    let shared = matches!(spec.memory.backing, Backing::FileBacked { .. });
    assert_eq!(saved.memory_file.is_some(), shared);
    if shared {
        assert!(
            saved.bytes < 4 << 20,
            "the ram was copied: {} bytes",
            saved.bytes
        );
    }
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn two_clones_of_one_memory_file_run_side_by_side_and_leave_it_unchanged() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("template", lab.shared());
    save_early(&lab, &spec).await;
    let memory = lab.path("memory");
    fs::set_permissions(&memory, Permissions::from_mode(0o600)).unwrap();
    let before = digest(&memory);
    let mut clones = Vec::new();
    for name in ["clone-1", "clone-2"] {
        let rebind = lab.rebind(&spec, name, lab.private());
        let vm = lab
            .driver
            .restore(lab.directory.path(), &spec, &rebind)
            .await
            .unwrap();
        assert_eq!(vm.info().await.unwrap().state, VmState::Paused);
        let console = Console::connect(&rebind.console.unwrap()).await;
        clones.push((vm, console));
    }
    for (vm, _) in &clones {
        vm.resume().await.unwrap();
    }
    let mut consoles = clones.iter_mut().map(|(_, console)| console);
    let (first, second) = (consoles.next().unwrap(), consoles.next().unwrap());
    for said in <[&str; 2]>::from(tokio::join!(first.hear_all(), second.hear_all())) {
        // They go on where the template was.
        assert!(said.contains("Kernel panic"), "{said}");
    }
    for (vm, _) in &clones {
        assert_eq!(vm.wait().await.unwrap(), VmExit::Exited(0));
    }
    assert_eq!(digest(&memory), before);
}

#[tokio::test]
async fn ram_that_is_in_no_shared_file_is_saved_and_restored_with_the_state() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("whole", Backing::Anonymous);
    save_early(&lab, &spec).await;
    let rebind = lab.rebind(&spec, "whole-2", Backing::Anonymous);
    let vm = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .unwrap();
    let mut console = Console::connect(&rebind.console.unwrap()).await;
    vm.resume().await.unwrap();
    console.hear("Kernel panic").await;
}

#[tokio::test]
async fn a_clone_can_be_saved_again_and_run_on() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("first", lab.shared());
    save_early(&lab, &spec).await;
    let rebind = lab.rebind(&spec, "second", lab.private());
    let clone = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .unwrap();
    let again = lab.path("again");
    fs::create_dir(&again).unwrap();
    let saved = clone.save(&again).await.unwrap();
    // All of its RAM, beside the state and as large as the first one's.
    let memory = again.join("memory");
    assert_eq!(saved.memory_file.as_ref(), Some(&memory));
    assert_eq!(saved.files, [again.join("state"), memory.clone()]);
    let size = |path: &std::path::Path| fs::metadata(path).unwrap().len();
    assert_eq!(size(&memory), size(&lab.path("memory")));
    assert!(size(&again.join("state")) < 4 << 20);
    clone.resume().await.unwrap();
    assert_eq!(clone.info().await.unwrap().state, VmState::Running);
    clone.kill().await.unwrap();

    // Nothing of the first is needed any more, and two map the second.
    fs::remove_file(lab.path("memory")).unwrap();
    let before = digest(&memory);
    for name in ["third", "fourth"] {
        let private = Backing::FileBacked {
            path: memory.clone(),
            shared: false,
        };
        let rebind = lab.rebind(&spec, name, private);
        let third = lab.driver.restore(&again, &spec, &rebind).await.unwrap();
        let mut console = Console::connect(&rebind.console.unwrap()).await;
        third.resume().await.unwrap();
        console.hear("Kernel panic").await;
    }
    assert_eq!(digest(&memory), before);
}

#[test]
fn a_clone_saved_into_a_full_directory_is_told_which_file_and_stays_paused() {
    let tried = std::thread::spawn(|| {
        let Some(small) = SmallFileSystem::mount() else {
            return;
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let Some(lab) = Lab::new().await else { return };
            let spec = lab.spec("first", lab.shared());
            save_early(&lab, &spec).await;
            let rebind = lab.rebind(&spec, "second", lab.private());
            let state = lab.directory.path();
            let clone = lab.driver.restore(state, &spec, &rebind).await.unwrap();
            let error = clone.save(small.0.path()).await.unwrap_err();
            assert!(
                matches!(error, Error::Path { call: "write", .. }),
                "{error}"
            );
            assert_eq!(fs::read_dir(small.0.path()).unwrap().count(), 0);
            assert_eq!(clone.info().await.unwrap().state, VmState::Paused);
            clone.kill().await.unwrap();
        });
    });
    tried.join().unwrap();
}

#[tokio::test]
async fn every_kind_of_device_is_restored() {
    let Some(lab) = Lab::new().await else { return };
    let mut spec = lab.spec("devices", lab.shared());
    fs::write(lab.path("image"), vec![7; 1 << 20]).unwrap();
    fs::write(lab.path("image-2"), vec![7; 1 << 20]).unwrap();
    spec.disks = vec![Disk {
        id: "root".into(),
        path: lab.path("image"),
        readonly: true,
    }];
    spec.nics = vec![
        Nic {
            id: "user".into(),
            mac: "52:54:00:00:00:01".into(),
            backend: NicBackend::User,
        },
        Nic {
            id: "none".into(),
            mac: "52:54:00:00:00:02".into(),
            backend: NicBackend::None,
        },
    ];
    save_early(&lab, &spec).await;
    let mut rebind = lab.rebind(&spec, "devices-2", lab.private());
    rebind.disks.insert("root".into(), lab.path("image-2"));
    let vm = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .unwrap();
    vm.resume().await.unwrap();
    vm.kill().await.unwrap();
    rebind.disks.insert("other".into(), lab.path("image-2"));
    let error = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, Error::Spec { field: "disks", .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_vm_whose_memory_was_saved_never_runs_again() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("saved", lab.shared()))
        .await
        .unwrap();
    vm.pause().await.unwrap();
    vm.save(lab.directory.path()).await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Saved);
    assert!(matches!(vm.resume().await, Err(Error::MemorySaved)));
    assert!(matches!(
        vm.save(&lab.path("saved")).await,
        Err(Error::MemorySaved)
    ));
    // Nor does it for who adopts it.
    let record = vm.record();
    drop(vm);
    let vm = adopt(&record, Deadlines::default()).await.unwrap();
    assert!(matches!(vm.resume().await, Err(Error::MemorySaved)));
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_running_vm_is_not_saved() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("running", lab.shared()))
        .await
        .unwrap();
    let error = vm.save(lab.directory.path()).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::State {
                found: VmState::Running,
                ..
            }
        ),
        "{error}"
    );
    assert!(!lab.path("state").exists());
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_save_into_a_missing_or_used_directory_is_an_error_and_the_vm_stays_paused() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("nowhere", lab.shared()))
        .await
        .unwrap();
    vm.pause().await.unwrap();
    let error = vm.save(&lab.path("missing")).await.unwrap_err();
    assert!(
        matches!(error, Error::Path { call: "create", .. }),
        "{error}"
    );
    fs::write(lab.path("state"), b"another's").unwrap();
    let error = vm.save(lab.directory.path()).await.unwrap_err();
    assert!(
        matches!(error, Error::Path { call: "create", .. }),
        "{error}"
    );
    assert_eq!(fs::read(lab.path("state")).unwrap(), b"another's");
    assert_eq!(vm.info().await.unwrap().state, VmState::Paused);
    vm.resume().await.unwrap();
    vm.kill().await.unwrap();
}

#[test]
fn a_save_into_a_full_directory_is_an_error_and_the_vm_stays_paused() {
    // A mount namespace belongs to a thread: the file system is nobody else's.
    let tried = std::thread::spawn(|| {
        let Some(small) = SmallFileSystem::mount() else {
            return;
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let Some(lab) = Lab::new().await else { return };
            let vm = lab
                .driver
                .boot(&lab.spec("full", lab.shared()))
                .await
                .unwrap();
            vm.pause().await.unwrap();
            let error = vm.save(small.0.path()).await.unwrap_err();
            assert!(
                matches!(error, Error::Migration { verb: "save", .. }),
                "{error}"
            );
            assert!(!small.0.path().join("state").exists());
            assert_eq!(vm.info().await.unwrap().state, VmState::Paused);
            // QEMU can save again after the VM has run.
            let error = vm.save(lab.directory.path()).await.unwrap_err();
            assert!(matches!(error, Error::Unsupported(_)), "{error}");
            assert!(!lab.path("state").exists());
            vm.resume().await.unwrap();
            vm.pause().await.unwrap();
            vm.save(lab.directory.path()).await.unwrap();
            vm.kill().await.unwrap();
        });
    });
    tried.join().unwrap();
}

/// A file system that is full after 64 KiB.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn mount() -> Option<Self> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        let directory = tempfile::tempdir().unwrap();
        let mounted = || {
            #[expect(
                deprecated,
                reason = "the unsafe variant is for sharing descriptors, which this does not change"
            )]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS)?;
            mount_change(
                "/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            )?;
            mount(
                "full",
                directory.path(),
                "tmpfs",
                MountFlags::empty(),
                Some(c"size=64k"),
            )
        };
        match mounted() {
            Ok(()) => Some(Self(directory)),
            Err(error) => skipped(&format!("mounting a small file system: {error}")),
        }
    }
}

#[tokio::test]
async fn a_state_that_does_not_fit_is_refused_with_the_vmms_words_and_nothing_is_left() {
    let Some(lab) = Lab::new().await else { return };
    let mut spec = lab.spec("origin", lab.shared());
    spec.disks = vec![Disk {
        id: "root".into(),
        path: lab.path("initrd"),
        readonly: true,
    }];
    save_early(&lab, &spec).await;
    let mut other = spec.clone();
    other.disks.clear();
    let rebind = lab.rebind(&spec, "misfit", lab.private());
    let error = lab
        .driver
        .restore(lab.directory.path(), &other, &rebind)
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            Error::Ended {
                verb: "restore",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("load of migration failed"),
        "{error}"
    );
    assert!(!lab.runs("misfit"));
    assert!(!rebind.monitor.clone().unwrap().exists());

    let state = fs::read(lab.path("state")).unwrap();
    for (damage, damaged) in [
        ("cut", &state[..state.len() / 2]),
        ("empty", &[][..]),
        ("noise", &[0xa5; 9000]),
    ] {
        let directory = lab.path(damage);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("state"), damaged).unwrap();
        let restored = lab.driver.restore(&directory, &spec, &rebind);
        let error = tokio::time::timeout(Duration::from_secs(30), restored)
            .await
            .unwrap()
            .err()
            .unwrap();
        assert!(
            matches!(error, Error::Ended { .. } | Error::Migration { .. }),
            "{damage}: {error}"
        );
    }
    fs::remove_file(lab.path("state")).unwrap();
    let error = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Path { call: "open", .. }), "{error}");
}

#[tokio::test]
async fn a_memory_file_of_another_size_is_refused_and_not_lengthened() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("origin", lab.shared());
    save_early(&lab, &spec).await;
    fs::write(lab.path("short"), b"short").unwrap();
    let short = Backing::FileBacked {
        path: lab.path("short"),
        shared: false,
    };
    let rebind = lab.rebind(&spec, "short-clone", short);
    let error = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            Error::Spec {
                field: "memory.path",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read(lab.path("short")).unwrap(), b"short");
}

#[tokio::test]
async fn a_cancelled_restore_leaves_nothing() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("origin", lab.shared());
    save_early(&lab, &spec).await;
    let rebind = lab.rebind(&spec, "cancelled-restore", lab.private());
    let restore = lab.driver.restore(lab.directory.path(), &spec, &rebind);
    assert!(
        tokio::time::timeout(Duration::from_millis(1), restore)
            .await
            .is_err()
    );
    assert!(!lab.runs("cancelled-restore"));
    assert!(!rebind.monitor.unwrap().exists());
}

#[tokio::test]
async fn the_spans_of_a_restore_are_leaves_in_order() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("origin", lab.shared());
    save_early(&lab, &spec).await;
    let rebind = lab.rebind(&spec, "timed", lab.private());
    let vm = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .unwrap();
    let spans = vm.spans();
    assert!(spans.iter().any(|span| span.name == "fork, execve"));
    assert_eq!(spans.last().unwrap().name, "MIGRATION completed");
    for pair in spans.windows(2) {
        assert!(
            pair[0].start_ns + pair[0].duration_ns <= pair[1].start_ns,
            "{pair:?}"
        );
    }
    vm.resume().await.unwrap();
    assert_eq!(vm.spans().len(), 1);
    vm.kill().await.unwrap();
}
