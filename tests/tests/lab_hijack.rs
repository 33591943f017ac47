//! A VMM in the wrong hands, in the nested host: what it can put in the place of
//! its own files leads nowhere.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tardigrade_tests::place::Place;
use tardigrade_tests::sandbox;

/// The socket of a sandbox's vsock, which its VMM has made.
fn socket(place: &Place, id: &str) -> PathBuf {
    let inspected = place.home.json(["inspect", id]);
    let agent = &inspected["vm"]["agent"]["hybridvsock"];
    PathBuf::from(agent["socket"].as_str().unwrap())
}

fn agents_are_not_swapped(vmm: &'static str) {
    let place = Place::new(vmm);
    let _ = place.make(&["template", "build", "shell"], &[]);
    let clones = place.home.clone_template("shell", 2);
    let [hijacked, neighbour] = [0, 1].map(|index| sandbox(&clones[index]));
    let own = socket(&place, hijacked);
    fs::remove_file(&own).unwrap();
    symlink(socket(&place, neighbour), &own).unwrap();
    // Whoever dials again finds the neighbour's agent there.
    let inspected = place.home.json(["inspect", hijacked]);
    let pid = inspected["supervisor"]["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let error = place.home.failure(["exec", hijacked, "--", "hostname"]);
    assert!(error.contains("closed"), "{error}");
    let inspected = place.home.json(["inspect", hijacked]);
    assert_eq!(inspected["status"]["agent_connected"], false, "{inspected}");
    assert_eq!(place.shell(neighbour, "echo here"), "here\n");
    place.end();
}

mod cloud_hypervisor {
    #[test]
    fn a_link_to_a_neighbours_agent_is_not_taken_for_the_own() {
        super::agents_are_not_swapped("cloud-hypervisor");
    }
}

mod firecracker {
    #[test]
    fn a_link_to_a_neighbours_agent_is_not_taken_for_the_own() {
        super::agents_are_not_swapped("firecracker");
    }
}
