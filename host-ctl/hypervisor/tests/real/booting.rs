//! Making a VM, and what its process may do.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use hypervisor::{Backing, Disk, Error, Hypervisor, Nic, NicBackend, VmExit, VmState};

use crate::lab::{Console, Lab, PATIENCE, guest_file, skipped};

#[tokio::test]
async fn a_kernel_boots_to_its_console_and_its_end_is_seen() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("boots", Backing::Anonymous);
    let vm = lab.driver.boot(&spec).await.unwrap();
    let mut console = Console::connect(&spec.console).await;
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    let said = console.hear_all().await;
    assert!(said.contains("Kernel panic"), "{said}");
    assert!(
        said.contains("Linux version"),
        "the first line was lost: {said}"
    );
    let exit = tokio::time::timeout(PATIENCE, vm.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(exit, VmExit::Exited(0));
    assert_eq!(
        vm.wait().await.unwrap(),
        exit,
        "the exit can be asked for again"
    );
}

#[tokio::test]
async fn every_kind_of_device_is_accepted() {
    let Some(lab) = Lab::new().await else { return };
    fs::write(lab.path("image,with a \"comma\""), vec![7; 1 << 20]).unwrap();
    let mut spec = lab.spec("devices", Backing::Anonymous);
    for (id, readonly) in [("root", true), ("scratch", false)] {
        let path = lab.path("image,with a \"comma\"");
        spec.disks.push(Disk {
            id: id.into(),
            path,
            readonly,
        });
    }
    for (id, backend) in [
        ("closed", NicBackend::User),
        ("unplugged", NicBackend::None),
    ] {
        spec.nics.push(Nic {
            id: id.into(),
            mac: "52:54:00:12:34:56".into(),
            backend,
        });
    }
    spec.vcpus = 2;
    let vm = lab.driver.boot(&spec).await.unwrap();
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn the_vmm_has_no_privileges_no_environment_and_no_descriptors_of_ours() {
    let Some(lab) = Lab::new().await else { return };
    let leaked = File::open("/proc/self/status").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let leak = fs::read_link(format!("/proc/self/fd/{}", leaked.as_raw_fd())).unwrap();
    let spec = lab.spec("bare", lab.shared());
    let vm = lab.driver.boot(&spec).await.unwrap();
    let process = Path::new("/proc").join(vm.record().pid.to_string());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default()
            .trim_start_matches(':')
            .trim()
            .to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("CapEff"), "0000000000000000");
    if rustix::process::geteuid().is_root() {
        // Others have nothing that a bounding set could bound.
        assert_eq!(field("CapBnd"), "0000000000000000");
    }
    assert_eq!(fs::read(process.join("environ")).unwrap(), b"");
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
    let descriptors = fs::read_dir(process.join("fd")).unwrap().flatten();
    for descriptor in descriptors {
        assert_ne!(fs::read_link(descriptor.path()).unwrap(), leak);
    }
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    assert_eq!(session, vm.record().pid.to_string(), "a session of its own");
    for socket in [&spec.monitor, &spec.console] {
        let found = fs::metadata(socket).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
    }
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_refused_boot_leaves_nothing_and_tells_the_vmms_words() {
    let Some(lab) = Lab::new().await else { return };
    let mut spec = lab.spec("refused", lab.shared());
    spec.cpu_model = Some("no-such-cpu".into());
    let error = lab.driver.boot(&spec).await.err().unwrap();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(error.to_string().contains("no-such-cpu"), "{error}");
    for path in [&spec.monitor, &spec.console, &lab.path("memory")] {
        assert!(!path.exists(), "{path:?} is left");
    }
}

#[tokio::test]
async fn a_cancelled_boot_leaves_nothing() {
    let Some(lab) = Lab::new().await else { return };
    let spec = lab.spec("cancelled-boot", lab.shared());
    let boot = tokio::time::timeout(Duration::from_millis(1), lab.driver.boot(&spec)).await;
    assert!(boot.is_err(), "cancelled too late to show anything");
    assert!(!lab.runs("cancelled-boot"));
    for path in [&spec.monitor, &spec.console, &lab.path("memory")] {
        assert!(!path.exists(), "{path:?} is left");
    }
}

#[tokio::test]
async fn an_existing_memory_file_is_not_booted_over() {
    let Some(lab) = Lab::new().await else { return };
    fs::write(lab.path("memory"), b"precious").unwrap();
    let error = lab
        .driver
        .boot(&lab.spec("over", lab.shared()))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(error, Error::Path { call: "create", .. }),
        "{error}"
    );
    assert_eq!(fs::read(lab.path("memory")).unwrap(), b"precious");
}

#[tokio::test]
async fn the_agents_port_tells_when_it_is_opened() {
    let Some(lab) = Lab::new().await else { return };
    let Some(initrd) = guest_file("TARDIGRADE_TEST_INITRD", "initrd.img") else {
        return skipped("no initrd that opens the agent's port: set TARDIGRADE_TEST_INITRD")
            .unwrap_or(());
    };
    let mut spec = lab.spec("agent", lab.shared());
    spec.initrd = initrd;
    let vm = lab.driver.boot(&spec).await.unwrap();
    vm.agent_port_opened(PATIENCE).await.unwrap();
    // Open already: told at once.
    vm.agent_port_opened(Duration::from_secs(10)).await.unwrap();
    vm.pause().await.unwrap();
    vm.save(lab.directory.path()).await.unwrap();
    vm.kill().await.unwrap();

    // A clone has it open as soon as it runs.
    let rebind = lab.rebind(&spec, "agent-clone", lab.private());
    let clone = lab
        .driver
        .restore(lab.directory.path(), &spec, &rebind)
        .await
        .unwrap();
    clone.resume().await.unwrap();
    clone.agent_port_opened(PATIENCE).await.unwrap();
    clone.kill().await.unwrap();
}

#[tokio::test]
async fn an_agents_port_that_stays_closed_is_a_deadline() {
    let Some(lab) = Lab::new().await else { return };
    let vm = lab
        .driver
        .boot(&lab.spec("closed", Backing::Anonymous))
        .await
        .unwrap();
    vm.pause().await.unwrap();
    let error = vm
        .agent_port_opened(Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    vm.kill().await.unwrap();
    let error = vm.agent_port_opened(PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
}
