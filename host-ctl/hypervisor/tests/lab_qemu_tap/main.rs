//! The QEMU driver and a tap device, which takes a host that has them: the
//! nested one (`make test-lab`). The guest's kernel is $TARDIGRADE_KERNEL.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod qemu {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use hypervisor::qemu::{ProbeRequest, Qemu, probe};
    use hypervisor::{
        AgentDevice, Backing, Deadlines, Hypervisor, Memory, Nic, NicBackend, Rebind, Vm, VmSpec,
    };

    fn spec(directory: &Path, tap: &str) -> VmSpec {
        let initrd = directory.join("initrd");
        fs::write(&initrd, [0; 512]).unwrap();
        VmSpec {
            name: "tapped".to_owned(),
            uuid: "6dc6a3a1-5d2a-4b0f-9a52-0b7e2d5c1f10".to_owned(),
            vcpus: 1,
            memory: Memory {
                size_mib: 128,
                backing: Backing::Anonymous,
            },
            kernel: std::env::var_os("TARDIGRADE_KERNEL").unwrap().into(),
            initrd,
            cmdline: "console=ttyS0 panic=-1".to_owned(),
            disks: Vec::new(),
            agent: AgentDevice::Serial {
                socket: directory.join("serial.sock"),
                port_name: "agent".to_owned(),
            },
            console: directory.join("console.sock"),
            monitor: directory.join("qmp.sock"),
            nics: vec![Nic {
                id: "net0".to_owned(),
                mac: "52:54:00:00:00:07".to_owned(),
                backend: NicBackend::Tap {
                    name: tap.to_owned(),
                },
            }],
            directories: Vec::new(),
            cpu_model: None,
            log: directory.join("vmm.log"),
            cgroup: None,
        }
    }

    fn make_tap(name: &str) {
        let made = Command::new("ip")
            .args(["tuntap", "add", name, "mode", "tap"])
            .status();
        assert!(made.unwrap().success(), "ip tuntap add {name}");
    }

    /// The tap devices a process holds a queue of (tun_chr_show_fdinfo of Linux).
    fn taps(vm: &dyn Vm) -> Vec<String> {
        let directory = format!("/proc/{}/fdinfo", vm.record().pid);
        let infos = fs::read_dir(directory).unwrap().flatten();
        let infos = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
        let name = |info: String| {
            let name = info.lines().find_map(|line| line.strip_prefix("iff:"))?;
            Some(name.trim().to_owned())
        };
        infos.filter_map(name).collect()
    }

    #[tokio::test]
    async fn an_interface_is_on_the_tap_it_was_given_and_a_clones_on_another() {
        assert!(
            std::env::var_os("TARDIGRADE_LAB").is_some(),
            "taps are made: run this with make test-lab"
        );
        let request = ProbeRequest {
            program: None,
            kernel: None,
            kernel_digest: "",
        };
        let found = probe(&request, None, &hypervisor::Confinement::Insecure)
            .await
            .unwrap();
        let driver = Qemu::new(&found, Deadlines::default());
        let directory = tempfile::tempdir().unwrap();
        let spec = spec(directory.path(), "qemu-one");
        let error = driver.boot(&spec).await.err().unwrap();
        assert!(error.to_string().contains("open tap qemu-one"), "{error}");

        make_tap("qemu-one");
        make_tap("qemu-two");
        let vm = driver.boot(&spec).await.unwrap();
        assert_eq!(taps(&*vm), ["qemu-one"]);
        vm.pause().await.unwrap();
        vm.save(directory.path()).await.unwrap();
        vm.kill().await.unwrap();
        let mut rebind = Rebind::default();
        let tap = NicBackend::Tap {
            name: "qemu-two".to_owned(),
        };
        rebind.nics.insert("net0".to_owned(), tap);
        let clone = driver
            .restore(directory.path(), &spec, &rebind)
            .await
            .unwrap();
        assert_eq!(taps(&*clone), ["qemu-two"]);
        clone.resume().await.unwrap();
        clone.kill().await.unwrap();
    }
}
