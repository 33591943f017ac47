//! Cloud Hypervisor's driver.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hypervisor::cloud_hypervisor::{CloudHypervisor, Probe, probe};
use hypervisor::{Backing, Deadlines, Error, Hypervisor, MemoryMode, MonitorError};
use serde_json::json;
use tempfile::TempDir;

use crate::cloud_hypervisor_scenario::{Scene, anonymous_memory, template_and_clone, wrong_state};
use crate::playback::{replaying, silent, starts};
use crate::stand_in::StandIn;

const RECORDING: &str = "cloud-hypervisor-v53.json";

/// A driver whose VMM is a stand-in.
struct Stage {
    scene: Scene,
    stand_in: StandIn,
    _directory: TempDir,
}

impl Stage {
    fn new(make: impl FnOnce(&Path, &Path) -> StandIn, deadlines: Deadlines) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        fs::create_dir(&run).unwrap();
        let stand_in = make(directory.path(), &run);
        let kernel = directory.path().join("kernel");
        let initrd = directory.path().join("initrd");
        fs::write(&kernel, "kernel").unwrap();
        fs::write(&initrd, "initrd").unwrap();
        let driver = CloudHypervisor::new(&found(&stand_in), deadlines);
        Self {
            scene: Scene {
                driver,
                run,
                kernel,
                initrd,
            },
            stand_in,
            _directory: directory,
        }
    }

    fn replaying(name: &str) -> Self {
        let stand_in = |directory: &Path, run: &Path| replaying(directory, RECORDING, name, run);
        Self::new(stand_in, Deadlines::default())
    }
}

/// What a probe in the lab had found.
fn found(stand_in: &StandIn) -> Probe {
    let found = json!({
        "program": stand_in.program,
        "version": {"major": 53, "minor": 0},
        "version_text": "v53.0",
        "loads_on_demand": true,
        "confines_files": false,
        "identity": {"device": 0, "inode": 0, "size": 0, "changed": [0, 0]},
    });
    serde_json::from_value(found).unwrap()
}

#[tokio::test]
async fn a_template_and_its_clone_are_asked_for_as_recorded() {
    let stage = Stage::replaying("template_and_clone");
    template_and_clone(&stage.scene).await;
    assert_eq!(starts(&stage.stand_in), 2);
}

#[tokio::test]
async fn anonymous_memory_is_saved_and_read_again_as_recorded() {
    let stage = Stage::replaying("anonymous_memory");
    anonymous_memory(&stage.scene).await;
    assert_eq!(starts(&stage.stand_in), 3);
}

#[tokio::test]
async fn a_state_that_is_none_is_refused_as_recorded() {
    let stage = Stage::replaying("wrong_state");
    wrong_state(&stage.scene).await;
    assert_eq!(starts(&stage.stand_in), 1);
}

/// The check itself: what is asked for otherwise is noticed.
#[tokio::test]
async fn a_request_that_is_not_the_recorded_one_is_refused() {
    let stage = Stage::replaying("template_and_clone");
    let mut spec = stage.scene.spec("template", stage.scene.memory(true));
    spec.vcpus = 2;
    let before = stage.scene.left();
    let error = stage.scene.driver.boot(&spec).await.err().unwrap();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    let words = "vm.create: /body/cpus/boot_vcpus is 2, recorded was 1";
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(stage.scene.left(), before);
}

/// One that hangs must not hang its owner, and goes with all that was made.
#[tokio::test]
async fn a_vmm_that_takes_requests_and_never_answers_is_given_up_and_killed() {
    let short = Duration::from_millis(300);
    let deadlines = Deadlines {
        start: short,
        command: short,
        boot: short,
        save: short,
        load: short,
    };
    let stage = Stage::new(silent, deadlines);
    let spec = stage.scene.spec("mute", stage.scene.memory(true));
    let before = stage.scene.left();
    let begun = Instant::now();
    let error = stage.scene.driver.boot(&spec).await.err().unwrap();
    assert!(
        matches!(error, Error::Monitor(MonitorError::Silent { .. })),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(stage.scene.left(), before);
    assert_eq!(starts(&stage.stand_in), 1);

    // A future that is dropped is no different.
    let boot = stage.scene.driver.boot(&spec);
    tokio::time::timeout(Duration::from_millis(100), boot)
        .await
        .err()
        .unwrap();
    assert_eq!(stage.scene.left(), before);
}

#[tokio::test]
async fn what_it_can_not_do_is_said_before_a_process_is_spawned() {
    let stage = Stage::new(silent, Deadlines::default());
    let driver = &stage.scene.driver;
    let spec = stage.scene.spec("refused", Backing::Anonymous);
    for (backend, words) in [
        ("none", "connected to nothing"),
        ("user", "a user-mode network"),
    ] {
        let mut spec = spec.clone();
        let nic = json!({"id": "net0", "mac": "52:54:00:00:00:01", "backend": backend});
        spec.nics = vec![serde_json::from_value(nic).unwrap()];
        let error = driver.boot(&spec).await.err().unwrap();
        assert!(error.to_string().contains(words), "{error}");
    }
    let mut model = spec.clone();
    model.cpu_model = Some("qemu64".to_owned());
    let error = driver.boot(&model).await.err().unwrap();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let mut long = spec.clone();
    long.console = stage.scene.path(&"c".repeat(100));
    let error = driver.boot(&long).await.err().unwrap();
    assert!(
        matches!(
            error,
            Error::Spec {
                field: "console",
                ..
            }
        ),
        "{error}"
    );
    // So is that of a directory, which is called after that of the monitor.
    let mut served = spec.clone();
    served.monitor = stage.scene.path(&"m".repeat(80));
    let directory = json!({"tag": "data", "path": "/no/such", "readonly": true});
    served.directories = vec![serde_json::from_value(directory).unwrap()];
    let error = driver.boot(&served).await.err().unwrap();
    assert!(
        matches!(
            error,
            Error::Spec {
                field: "monitor",
                ..
            }
        ),
        "{error}"
    );
    let mut tap = spec.clone();
    let nic =
        json!({"id": "n", "mac": "52:54:00:00:00:01", "backend": {"tap": {"name": "no-such-tap"}}});
    tap.nics = vec![serde_json::from_value(nic).unwrap()];
    let error = driver.boot(&tap).await.err().unwrap();
    assert!(
        error.to_string().contains("open tap no-such-tap"),
        "{error}"
    );

    // Modes that do not fit where the memory lies, and states that do not.
    let saved = stage.scene.directory("saved");
    fs::write(saved.join("state"), "{}").unwrap();
    let file = stage.scene.memory(false);
    for (memory, mode) in [
        (Backing::Anonymous, MemoryMode::CopyOnWrite),
        (file.clone(), MemoryMode::Copy),
        (file.clone(), MemoryMode::OnDemand),
    ] {
        let mut rebind = stage.scene.rebind("clone", memory);
        rebind.memory_mode = Some(mode);
        let error = driver.restore(&saved, &spec, &rebind).await.err().unwrap();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
    let rebind = stage.scene.rebind("clone", Backing::Anonymous);
    let error = driver.restore(&saved, &spec, &rebind).await.err().unwrap();
    assert!(
        error.to_string().contains("was not saved with the state"),
        "{error}"
    );
    fs::write(stage.scene.path("memory"), "short").unwrap();
    let rebind = stage.scene.rebind("clone", file);
    let error = driver.restore(&saved, &spec, &rebind).await.err().unwrap();
    assert!(error.to_string().contains("5 bytes long"), "{error}");
    assert_eq!(starts(&stage.stand_in), 0);
}

#[tokio::test]
async fn a_program_that_is_no_cloud_hypervisor_is_no_vmm() {
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        eprintln!("skipped: /dev/kvm: {error}");
        return;
    }
    let error = probe(
        Some("/bin/true".as_ref()),
        None,
        &hypervisor::Confinement::Insecure,
    )
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains("did not tell its version"),
        "{error}"
    );
}
