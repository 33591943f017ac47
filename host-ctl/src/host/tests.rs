//! Run directories, removal and sweeps against real files and processes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::*;
use crate::config::{Paths, SandboxId};

/// A state root of its own.
struct Home {
    _directory: tempfile::TempDir,
    paths: Paths,
}

fn home() -> Home {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths::below(&directory.path().join("state")).unwrap();
    Home {
        _directory: directory,
        paths,
    }
}

fn head(stage: Stage) -> RecordHead {
    RecordHead {
        stage,
        supervisor: None,
        vmm: None,
        virtiofsds: Vec::new(),
        tap: None,
        cgroup: None,
    }
}

/// A process that carries a VM's name as a VMM would: the arguments of this
/// shell after its script are its own to ignore.
fn named_process(id: &SandboxId) -> Child {
    Command::new("sh")
        .args(["-c", "read line", "vmm", "-name", &id.vm_name()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

fn identity(child: &Child) -> ProcessIdentity {
    ProcessIdentity::capture(child.id().cast_signed()).unwrap()
}

/// A sandbox whose supervisor is dead: the lock is released.
fn abandoned(home: &Home, record: &RecordHead) -> SandboxId {
    let id = SandboxId::random().unwrap();
    drop(RunDirectory::create(&home.paths, &id, "test", record).unwrap());
    id
}

fn removed(findings: &[Finding]) -> usize {
    findings
        .iter()
        .filter(|finding| finding.action == Action::Removed)
        .count()
}

#[test]
fn a_run_directory_is_private_locked_and_leaves_nothing() {
    let home = home();
    let id = SandboxId::random().unwrap();
    let directory =
        RunDirectory::create(&home.paths, &id, "supervise", &head(Stage::Starting)).unwrap();
    let mode = fs::metadata(directory.paths().directory())
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o7777, 0o700);
    // Where a VMM may make files, it finds neither record nor lock.
    let vmm = directory.paths().link().parent().unwrap().to_owned();
    assert_eq!(fs::read_dir(&vmm).unwrap().count(), 0);
    let mode = fs::metadata(vmm).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    assert!(matches!(
        RunDirectory::open(&home.paths, &id, "second"),
        Err(RunDirectoryError::Lock(LockError::Held { .. }))
    ));
    assert!(matches!(
        RunDirectory::create(&home.paths, &id, "third", &head(Stage::Starting)),
        Err(RunDirectoryError::Exists(_))
    ));
    fs::create_dir_all(directory.paths().directory().join("a/b")).unwrap();
    fs::write(directory.paths().directory().join("a/b/file"), "x").unwrap();
    assert_eq!(sandboxes(&home.paths).unwrap(), std::slice::from_ref(&id));
    directory.remove().unwrap();
    assert!(sandboxes(&home.paths).unwrap().is_empty());
    assert!(matches!(
        RunDirectory::open(&home.paths, &id, "late"),
        Err(RunDirectoryError::NotFound(_))
    ));
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    struct Unserializable;
    impl serde::Serialize for Unserializable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    let home = home();
    let id = SandboxId::random().unwrap();
    assert!(RunDirectory::create(&home.paths, &id, "x", &Unserializable).is_err());
    assert_eq!(fs::read_dir(&home.paths.run).unwrap().count(), 0);
}

#[test]
fn removal_follows_no_symlink() {
    let home = home();
    let victim = tempfile::tempdir().unwrap();
    fs::write(victim.path().join("precious"), "x").unwrap();
    let id = abandoned(&home, &head(Stage::Starting));
    symlink(victim.path(), home.paths.run.join(id.as_str()).join("link")).unwrap();
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 1);
    assert!(victim.path().join("precious").exists());
    assert!(sandboxes(&home.paths).unwrap().is_empty());
}

#[test]
fn a_run_directory_swapped_for_a_symlink_is_left_alone() {
    let home = home();
    let victim = tempfile::tempdir().unwrap();
    fs::write(victim.path().join("precious"), "x").unwrap();
    let id = SandboxId::random().unwrap();
    symlink(victim.path(), home.paths.run.join(id.as_str())).unwrap();
    let findings = sweep(&home.paths).unwrap();
    assert_eq!((findings.len(), removed(&findings)), (1, 0), "{findings:?}");
    let run = File::open(&home.paths.run).unwrap();
    let name = OsStr::new(id.as_str());
    assert!(matches!(
        remove_tree(run.as_fd(), &home.paths.run, name),
        Err(TreeError::NotOurs(_))
    ));
    assert!(matches!(
        RunDirectory::open(&home.paths, &id, "x"),
        Err(RunDirectoryError::NotOurs(_))
    ));
    assert!(victim.path().join("precious").exists());
}

#[test]
fn gc_kills_the_vm_of_a_half_made_clone() {
    let home = home();
    let mut vmm = Command::new("sleep").arg("600").spawn().unwrap();
    let record = RecordHead {
        vmm: Some(identity(&vmm)),
        ..head(Stage::Starting)
    };
    abandoned(&home, &record);
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 2);
    assert!(!vmm.wait().unwrap().success());
    assert!(sweep(&home.paths).unwrap().is_empty());
}

#[test]
fn gc_finds_a_vm_that_was_never_recorded() {
    let home = home();
    let id = abandoned(&home, &head(Stage::Building));
    let mut vmm = named_process(&id);
    let mut other = named_process(&SandboxId::random().unwrap());
    // The child is named once it has become the shell.
    wait_for(|| {
        fs::read_to_string(format!("/proc/{}/cmdline", vmm.id()))
            .is_ok_and(|line| line.contains("-name"))
    });
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 2);
    assert!(!vmm.wait().unwrap().success());
    assert!(identity(&other).is_alive());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn gc_leaves_a_sandbox_that_was_handed_over_whether_its_vm_lives_or_not() {
    let home = home();
    let mut vmm = Command::new("sleep").arg("600").spawn().unwrap();
    let record = RecordHead {
        vmm: Some(identity(&vmm)),
        ..head(Stage::Ready)
    };
    let id = abandoned(&home, &record);
    assert!(sweep(&home.paths).unwrap().is_empty());
    assert!(identity(&vmm).is_alive());
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    // Nobody has written the end down; its logs are its owner's all the same.
    assert!(sweep(&home.paths).unwrap().is_empty());
    assert_eq!(sandboxes(&home.paths).unwrap(), [id]);
}

#[test]
fn gc_leaves_the_logs_of_a_stopped_sandbox_and_finishes_its_removal() {
    let home = home();
    let id = abandoned(&home, &head(Stage::Ended));
    let log = home.paths.sandbox(&id).console_log();
    fs::write(&log, "last words").unwrap();
    assert!(sweep(&home.paths).unwrap().is_empty());
    assert!(log.exists());
    // A removal that was killed.
    let directory = RunDirectory::open(&home.paths, &id, "rm").unwrap();
    directory.write_record(&head(Stage::Ending)).unwrap();
    drop(directory);
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 1);
    assert!(sandboxes(&home.paths).unwrap().is_empty());
}

#[test]
fn gc_kills_the_vm_of_an_ended_sandbox_and_leaves_its_logs() {
    let home = home();
    let mut vmm = Command::new("sleep").arg("600").spawn().unwrap();
    let record = RecordHead {
        vmm: Some(identity(&vmm)),
        ..head(Stage::Ended)
    };
    let id = abandoned(&home, &record);
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 1);
    assert!(!vmm.wait().unwrap().success());
    assert_eq!(sandboxes(&home.paths).unwrap(), [id]);
}

#[test]
fn gc_removes_a_directory_whose_record_a_power_loss_has_emptied() {
    let home = home();
    let id = abandoned(&home, &head(Stage::Ready));
    File::create(home.paths.sandbox(&id).record()).unwrap();
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 1);
    assert!(sandboxes(&home.paths).unwrap().is_empty());
}

#[test]
fn gc_leaves_a_reused_process_number_alive() {
    let home = home();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let mut stale = identity(&stranger);
    stale.start_time -= 1;
    let record = RecordHead {
        vmm: Some(stale),
        ..head(Stage::Starting)
    };
    abandoned(&home, &record);
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 1);
    assert!(identity(&stranger).is_alive());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn gc_kills_a_vmm_that_was_told_no_name_by_the_log_it_writes() {
    let home = home();
    let id = abandoned(&home, &head(Stage::Starting));
    let log = File::create(home.paths.sandbox(&id).vmm_log()).unwrap();
    let process = |errors: std::process::Stdio| {
        let mut command = Command::new("sh");
        command.args(["-c", "read line"]).stderr(errors);
        command.stdin(std::process::Stdio::piped());
        command.stdout(log.try_clone().unwrap()).spawn().unwrap()
    };
    let mut vmm = process(log.try_clone().unwrap().into());
    let mut reader = process(std::process::Stdio::null());
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 2);
    assert!(!vmm.wait().unwrap().success());
    assert!(reader.try_wait().unwrap().is_none(), "it is no vmm");
    reader.kill().unwrap();
    reader.wait().unwrap();
}

#[test]
fn gc_removes_no_tap_that_is_recorded_as_another_sandboxs() {
    let home = home();
    let theirs = SandboxId::random().unwrap();
    let addresses = network::Block::SHARED.pair(0);
    let guest = network::HardwareAddress::TEMPLATE;
    let record = RecordHead {
        tap: Some(network::TapRecord::planned(&theirs, addresses, guest)),
        ..head(Stage::Starting)
    };
    let ours = abandoned(&home, &record);
    let findings = sweep(&home.paths).unwrap();
    assert_eq!((findings.len(), removed(&findings)), (1, 0), "{findings:?}");
    assert!(home.paths.sandbox(&ours).record().exists());
}

#[test]
fn gc_tells_of_a_tap_of_another_network_namespace_and_leaves_its_record() {
    let home = home();
    let own = SandboxId::random().unwrap();
    let addresses = network::Block::SHARED.pair(0);
    let guest = network::HardwareAddress::TEMPLATE;
    let mut tap = network::TapRecord::planned(&own, addresses, guest);
    let mut namespace = network::NetworkNamespace::current().unwrap();
    namespace.inode += 1;
    tap.namespace = Some(namespace);
    let record = RecordHead {
        tap: Some(tap),
        ..head(Stage::Starting)
    };
    let files = home.paths.sandbox(&abandoned(&home, &record));
    fs::rename(files.directory(), home.paths.sandbox(&own).directory()).unwrap();
    let findings = sweep(&home.paths).unwrap();
    assert_eq!((findings.len(), removed(&findings)), (1, 0), "{findings:?}");
    assert!(findings[0].reason.contains("network namespace"));
    assert!(home.paths.sandbox(&own).record().exists());
}

#[test]
fn gc_leaves_what_a_live_supervisor_holds_or_is_recorded_for() {
    let home = home();
    let held = SandboxId::random().unwrap();
    let guard =
        RunDirectory::create(&home.paths, &held, "supervise", &head(Stage::Starting)).unwrap();
    let record = RecordHead {
        supervisor: Some(ProcessIdentity::current().unwrap()),
        ..head(Stage::Starting)
    };
    abandoned(&home, &record);
    assert!(sweep(&home.paths).unwrap().is_empty());
    assert_eq!(sandboxes(&home.paths).unwrap().len(), 2);
    guard.remove().unwrap();
}

#[test]
fn gc_removes_a_directory_whose_maker_died_before_lock_or_record() {
    let home = home();
    let bare = home.paths.run.join(SandboxId::random().unwrap().as_str());
    fs::create_dir(&bare).unwrap();
    let locked = abandoned(&home, &head(Stage::Starting));
    fs::remove_file(home.paths.sandbox(&locked).record()).unwrap();
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 2);
    assert_eq!(fs::read_dir(&home.paths.run).unwrap().count(), 0);
}

#[test]
fn gc_reports_and_keeps_what_it_does_not_understand() {
    let home = home();
    fs::create_dir(home.paths.run.join("notes")).unwrap();
    fs::write(home.paths.run.join("0123456789ab"), "a file").unwrap();
    let garbled = abandoned(&home, &head(Stage::Starting));
    fs::write(home.paths.sandbox(&garbled).record(), "{").unwrap();
    let findings = sweep(&home.paths).unwrap();
    assert_eq!((findings.len(), removed(&findings)), (3, 0), "{findings:?}");
    assert_eq!(fs::read_dir(&home.paths.run).unwrap().count(), 3);
}

#[test]
fn creations_and_removals_live_beside_sweeps_in_a_loop() {
    let home = home();
    let paths = &home.paths;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let findings = sweep(paths).unwrap();
                    assert!(findings.is_empty(), "{findings:?}");
                }
            });
        }
        let makers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..60 {
                        let id = SandboxId::random().unwrap();
                        RunDirectory::create(paths, &id, "live", &head(Stage::Starting))
                            .unwrap()
                            .remove()
                            .unwrap();
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = makers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
}

#[test]
fn a_mount_below_a_run_directory_survives_gc_with_everything_beside_it() {
    let test = "a_mount_below_a_run_directory_survives_gc_with_everything_beside_it";
    if crate::own_root::small_disk(module_path!(), test).is_none() {
        return;
    }
    let home = home();
    let id = abandoned(&home, &head(Stage::Starting));
    let directory = home.paths.run.join(id.as_str());
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("precious"), "x").unwrap();
    let target = directory.join("deep/mounted");
    fs::create_dir_all(&target).unwrap();
    fs::write(directory.join("beside"), "x").unwrap();
    bind_mount(source.path(), &target);
    let findings = sweep(&home.paths).unwrap();
    assert_eq!(removed(&findings), 0, "{findings:?}");
    assert!(findings[0].reason.contains("mounted"), "{findings:?}");
    assert!(source.path().join("precious").exists());
    assert!(directory.join("beside").exists() && directory.join("record.json").exists());
    assert!(
        Command::new("umount")
            .arg(&target)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 1);
}

fn bind_mount(source: &Path, target: &Path) {
    let status = Command::new("mount")
        .arg("--bind")
        .args([source, target])
        .status();
    assert!(status.unwrap().success());
}

fn wait_for(condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < end, "nothing happened in 10 s");
        std::thread::yield_now();
    }
}

#[test]
fn a_cgroup_that_bears_another_sandboxs_name_is_kept_with_its_directory() {
    let home = home();
    let record = RecordHead {
        cgroup: Some(CgroupRecord {
            path: "/sys/fs/cgroup/tardigrade/tardigrade-0123456789ab".into(),
            limits: Limits::of(64, 1),
            inode: None,
        }),
        ..head(Stage::Starting)
    };
    abandoned(&home, &record);
    let findings = sweep(&home.paths).unwrap();
    assert_eq!(removed(&findings), 0, "{findings:?}");
    assert!(
        findings[0].reason.contains("another's cgroup"),
        "{findings:?}"
    );
}

#[test]
fn the_cgroup_of_a_sandbox_without_a_vm_is_removed_before_its_directory() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut mounts = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
    let Some(mount) = mounts.next().and_then(|line| line.split(' ').nth(4)) else {
        eprintln!("skipped: no cgroup v2 hierarchy");
        return;
    };
    let home = home();
    let id = SandboxId::random().unwrap();
    let path = PathBuf::from(mount).join(id.vm_name());
    if let Err(error) = fs::create_dir(&path) {
        eprintln!("skipped: mkdir {}: {error}", path.display());
        return;
    }
    let record = RecordHead {
        cgroup: Some(CgroupRecord {
            path: path.clone(),
            limits: Limits::of(64, 1),
            // As it was planned: nobody lived to note more.
            inode: None,
        }),
        ..head(Stage::Starting)
    };
    drop(RunDirectory::create(&home.paths, &id, "test", &record).unwrap());
    assert_eq!(removed(&sweep(&home.paths).unwrap()), 2);
    assert!(!path.exists());
    assert!(!home.paths.sandbox(&id).directory().exists());
}
