//! Directories of the host on Cloud Hypervisor, and on QEMU, in the nested host.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tardigrade_tests::place::Place;
use tardigrade_tests::{confinement, processes, sandbox, virtiofsd};

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

mod cloud_hypervisor {
    #[test]
    fn a_container_reads_and_writes_a_directory() {
        super::a_container_reads_and_writes("cloud-hypervisor");
    }
}

mod qemu {
    #[test]
    fn a_container_reads_and_writes_a_directory() {
        super::a_container_reads_and_writes("qemu");
    }
}
