//! What the kernel says of a VMM's process.

use crate::Home;
use rustix::process::Pid;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// The sets of capabilities, proc_pid_status(5).
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// What is empty to what serves a directory.
const HIDDEN: [&str; 10] = [
    "/boot", "/dev", "/home", "/media", "/mnt", "/root", "/run", "/srv", "/tmp", "/var",
];

/// A sandbox's VMM, and how far it is confined by its record.
///
/// # Panics
/// When there is no such sandbox, or it has no VMM.
#[must_use]
pub fn vmm_of(home: &Home, id: &str) -> (Pid, Value) {
    let vm = &home.json(["inspect", id])["vm"];
    let pid = vm["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).expect("a VMM");
    (pid, vm["confined"].clone())
}

/// A file of a process, as text.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn told(pid: Pid, file: &str) -> String {
    let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
    fs::read_to_string(path).expect("a process that lives")
}

/// What a process has open.
///
/// # Panics
/// When that cannot be read.
#[must_use]
pub fn opened(pid: Pid) -> Vec<PathBuf> {
    let files = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    let files = files.expect("a process that lives").flatten();
    // One may be closed meanwhile.
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .collect()
}

/// Sees that a VMM has this user, nothing that gives it privileges, its own
/// filter of system calls, and namespaces of its own.
///
/// # Panics
/// When it has more.
pub fn assert_confined(pid: Pid, uid: u32) {
    let status = told(pid, "status");
    let field = |name| field(&status, name);
    for name in ["Uid", "Gid"] {
        assert_eq!(
            field(name),
            [uid.to_string().as_str(); 4].join(" "),
            "{name}"
        );
    }
    for set in SETS {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_filtered(pid);
    assert_eq!(told(pid, "environ"), "");
    assert_has_namespaces(pid);
}

/// Sees that what serves a directory has, whoever it is, no capability, a filter of
/// system calls beside its own, and namespaces of its own, with nothing in them of
/// the host's users and devices.
///
/// # Panics
/// When it has more.
pub fn assert_serves_alone(pid: Pid) {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let threads = fs::read_dir(format!("{directory}/task"));
    let threads = threads.expect("a process that lives").flatten();
    let mut seen = 0;
    // One may end meanwhile.
    for status in threads.filter_map(|one| fs::read_to_string(one.path().join("status")).ok()) {
        for set in SETS.iter().filter(|set| **set != "CapBnd") {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        assert_eq!(field(&status, "Seccomp"), "2");
        // Kernels before 5.9 do not tell.
        let filters = field(&status, "Seccomp_filters");
        assert!(["2", ""].contains(&filters.as_str()), "{filters}");
        seen += 1;
    }
    assert!(seen > 0, "{directory}");
    assert_eq!(told(pid, "environ"), "");
    assert_has_namespaces(pid);
    for hidden in HIDDEN {
        let path = PathBuf::from(format!("{directory}/root{hidden}"));
        // A link would lead to ours.
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            let entries = fs::read_dir(&path).expect("a directory for everyone");
            assert_eq!(entries.count(), 0, "{hidden}");
        }
    }
}

/// A value of proc_pid_status(5), or nothing.
fn field(status: &str, name: &str) -> String {
    let lines = status.lines();
    let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = values.next().unwrap_or_default();
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn assert_has_namespaces(pid: Pid) {
    for namespace in ["mnt", "pid", "net"] {
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/{namespace}")).ok();
        let theirs = link(&pid.as_raw_nonzero().to_string());
        assert!(theirs.is_some() && theirs != link("self"), "{namespace}");
    }
}

/// Sees that a VMM filters its system calls: in every thread, but for the two
/// of Cloud Hypervisor's that only wait for the others or for signals.
fn assert_filtered(pid: Pid) {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let name = fs::read_to_string(format!("{directory}/comm")).expect("a process that lives");
    let threads = fs::read_dir(format!("{directory}/task"));
    let threads = threads.expect("a process that lives").flatten();
    // One may end meanwhile.
    let filters: Vec<bool> = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
        .map(|status| status.contains("Seccomp:\t2"))
        .collect();
    let open = filters.iter().filter(|filtered| !**filtered).count();
    let most = if name.starts_with("cloud-hyp") { 2 } else { 0 };
    assert!(open <= most && open < filters.len(), "{name}: {filters:?}");
}
