//! Firecracker's driver.

use std::fs;

use hypervisor::firecracker::{Firecracker, Probe};
use hypervisor::{Deadlines, Error, Hypervisor};
use serde_json::json;
use tempfile::TempDir;

use crate::firecracker_scenario::{Scene, template_and_clone, wrong_state};
use crate::playback::{replaying, starts};
use crate::stand_in::StandIn;

const RECORDING: &str = "firecracker-v1.16.json";

/// A driver whose VMM is a stand-in.
struct Stage {
    scene: Scene,
    stand_in: StandIn,
    _directory: TempDir,
}

impl Stage {
    fn replaying(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        fs::create_dir(&run).unwrap();
        let stand_in = replaying(directory.path(), RECORDING, name, &run);
        let kernel = directory.path().join("kernel");
        let initrd = directory.path().join("initrd");
        fs::write(&kernel, b"\x7fELF").unwrap();
        fs::write(&initrd, "initrd").unwrap();
        let driver = Firecracker::new(&found(&stand_in), Deadlines::default());
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

    /// Nothing is left of a VM but its log.
    fn assert_nothing_left(&self, name: &str) {
        let entries = fs::read_dir(self.scene.run.join(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name != "log").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// What a probe in the lab had found.
fn found(stand_in: &StandIn) -> Probe {
    let found = json!({
        "program": stand_in.program,
        "version": {"major": 1, "minor": 16, "patch": 1},
        "version_text": "1.16.1",
        "state_format": "10.0.0",
        "identity": {"device": 0, "inode": 0, "size": 0, "changed": [0, 0]},
        "host": {"device": [0, 0, 0], "user": 0, "kernel": ""},
    });
    serde_json::from_value(found).unwrap()
}

#[tokio::test]
async fn a_template_and_its_clone_are_asked_for_as_recorded() {
    let stage = Stage::replaying("template_and_clone");
    template_and_clone(&stage.scene).await;
    assert_eq!(starts(&stage.stand_in), 2);
    stage.assert_nothing_left("clone");
}

#[tokio::test]
async fn a_state_that_is_none_is_refused_as_recorded() {
    let stage = Stage::replaying("wrong_state");
    wrong_state(&stage.scene).await;
    assert_eq!(starts(&stage.stand_in), 1);
    stage.assert_nothing_left("broken");
}

/// The check itself: what is asked for otherwise is noticed.
#[tokio::test]
async fn a_request_that_is_not_the_recorded_one_is_refused() {
    let stage = Stage::replaying("template_and_clone");
    let mut spec = stage.scene.spec("template");
    spec.vcpus = 2;
    let error = stage.scene.driver.boot(&spec).await.err().unwrap();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    let words = "/machine-config: /body/vcpu_count is 2, recorded was 1";
    assert!(error.to_string().contains(words), "{error}");
    stage.assert_nothing_left("template");
}
