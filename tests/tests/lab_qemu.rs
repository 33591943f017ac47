//! QEMU with KVM and vhost-vsock, in the nested host.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

mod qemu {
    use agent_client::{Generation, Identity, Network, Purpose, Receipt, ThawOrder};
    use guest_runtime::container::Capability;
    use hypervisor::qemu::{ProbeRequest, Qemu, probe};
    use hypervisor::{Accelerator, AgentDevice, Deadlines, VmSpec};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Duration;
    use tardigrade_tests::machine::{self, Failure, Machine};
    use tardigrade_tests::{Home, built, images, lab, processes, sandbox};

    /// Every wait here is for a guest of an emulated machine.
    const DEADLINE: Duration = Duration::from_secs(120);
    const MEMORY_MIB: u32 = 128;
    const TEMPLATE_CID: u32 = 77;
    const PROBE: &str = "x86_64-unknown-linux-musl/release/uniqueness-probe";

    async fn driver() -> Result<Qemu, Failure> {
        lab::assert_nested_host();
        let kernel = built("guest/vmlinuz");
        let request = ProbeRequest {
            program: None,
            kernel: Some(&kernel),
            kernel_digest: "test",
        };
        let found = probe(&request, None, &hypervisor::Confinement::Insecure).await?;
        let accelerator = &found.accelerator;
        assert_eq!(
            accelerator.accelerator,
            Accelerator::Kvm,
            "{}",
            accelerator.reason
        );
        Ok(Qemu::new(&found, Deadlines::default()))
    }

    #[tokio::test]
    async fn the_probe_runs_a_kernel_on_kvm_and_takes_it() {
        lab::assert_nested_host();
        let kernel = built("guest/vmlinuz");
        let request = ProbeRequest {
            program: None,
            kernel: Some(&kernel),
            kernel_digest: "test",
        };
        let found = probe(&request, None, &hypervisor::Confinement::Insecure)
            .await
            .unwrap();
        let text = &found.accelerator.reason;
        assert_eq!(found.accelerator.accelerator, Accelerator::Kvm, "{text}");
        assert!(text.contains("kvm runs the kernel"), "{text}");
        // What is known is not tried again, and stays true.
        let again = probe(&request, Some(&found), &hypervisor::Confinement::Insecure)
            .await
            .unwrap();
        assert_eq!(again.accelerator, found.accelerator);
    }

    #[test]
    fn two_clones_of_a_template_run_on_kvm_side_by_side() {
        lab::assert_nested_host();
        let home = Home::new();
        let rootfs = images::busybox();
        home.build_template("shell", &rootfs, &["sleep", "100000"]);
        let clones = home.clone_template("shell", 2);
        let machines = processes::machines(home.path());
        assert_eq!(machines.len(), 2, "{machines:?}");
        for machine in machines {
            let path = format!("/proc/{}/cmdline", machine.as_raw_nonzero());
            let words = std::fs::read_to_string(path).unwrap();
            assert!(words.contains("kvm"), "{}", words.replace('\0', " "));
        }
        let command = ["sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id"];
        let said = |clone| {
            let arguments = ["exec", sandbox(clone), "--"];
            home.text(arguments.into_iter().chain(command))
        };
        let (one, other) = (said(&clones[0]), said(&clones[1]));
        assert_eq!(one.lines().count(), 2, "{one}");
        let differ = one
            .lines()
            .zip(other.lines())
            .all(|(one, other)| one != other);
        assert!(differ, "{one}{other}");
    }

    /// A guest whose agent listens on vsock, and its files.
    struct Guest {
        machine: Machine,
        spec: VmSpec,
        directory: PathBuf,
        _files: tempfile::TempDir,
    }

    async fn boot(driver: &Qemu, rootfs: &Path, capabilities: &[&str]) -> Result<Guest, Failure> {
        let (files, directory) = machine::directory();
        let spec = lab::vsock_spec(&directory, MEMORY_MIB, Some(rootfs), TEMPLATE_CID);
        let machine = Machine::boot(driver, &spec).await?;
        let command = ["sleep", "100000"];
        let mut container = machine::container(&command);
        container.capabilities = capabilities.iter().map(ToString::to_string).collect();
        machine.start_as(container).await?;
        Ok(Guest {
            machine,
            spec,
            directory,
            _files: files,
        })
    }

    fn identity(number: u32) -> Identity {
        Identity {
            hostname: format!("clone-{number}"),
            machine_id: format!("{number:032x}"),
            boot_id: format!("00000000-0000-4000-8000-{number:012x}"),
        }
    }

    #[tokio::test]
    async fn a_copy_answers_on_its_own_context_id_and_is_thawed_there() {
        let driver = driver().await.unwrap();
        let guest = boot(
            &driver,
            &images::busybox(),
            &agent_client::DEFAULT_CAPABILITIES,
        )
        .await
        .unwrap();
        let quiesced = guest.machine.agent.quiesce(Purpose::Template, DEADLINE);
        let quiesce_id = quiesced.await.unwrap().quiesce_id;
        let state = guest.directory.join("state");
        std::fs::create_dir(&state).unwrap();
        guest.machine.save(&state).await.unwrap();

        let mut copies = Vec::new();
        for cid in [TEMPLATE_CID + 1, TEMPLATE_CID + 2] {
            let (files, directory) = machine::directory();
            let agent = AgentDevice::Vsock { cid };
            let copy =
                Machine::resume_copy_with(&driver, &state, &guest.spec, &directory, agent).await;
            copies.push((cid, copy.unwrap(), files));
        }
        let mut receipts: Vec<Receipt> = Vec::new();
        for (cid, copy, _) in &copies {
            let order = ThawOrder {
                quiesce_id,
                generation: Generation::random().unwrap(),
                identity: identity(*cid),
                network: Network::default(),
                dns: Vec::new(),
                files: Vec::new(),
            };
            let receipt = copy.agent.thaw(&order, DEADLINE).await.unwrap();
            copy.agent
                .release(order.generation, None, DEADLINE)
                .await
                .unwrap();
            receipts.push(receipt);
        }
        assert_ne!(receipts[0].generation, receipts[1].generation);
        for (cid, copy, _) in &copies {
            let (status, name) = copy.exec(&["hostname"]).await.unwrap();
            assert_eq!((status, name.trim()), (0, identity(*cid).hostname.as_str()));
            assert!(answers(*cid), "nobody answers on the copy's own id");
        }
        // Nobody has the template's.
        assert!(!answers(TEMPLATE_CID));
        for (_, copy, _) in copies {
            copy.kill().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_container_with_all_capabilities_reaches_no_agent_over_vsock() {
        let driver = driver().await.unwrap();
        let all: Vec<String> = Capability::all().map(|one| one.to_string()).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let guest = boot(&driver, &images::busybox(), &all).await.unwrap();
        // The dialler is heard by this very agent when the host dials.
        assert!(answers(TEMPLATE_CID), "the host's own call fails");
        let mut command: Vec<String> = vec!["/bin/probe".into(), "dial".into()];
        // This guest by the address of every guest, by its own, as the host of
        // another, and as anyone.
        for cid in [1, TEMPLATE_CID, 0, u32::MAX] {
            command.extend((1024..=1028).map(|port| format!("{cid}:{port}")));
        }
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let (status, text) = guest.machine.exec(&words).await.unwrap();
        assert_eq!(status, 0, "{text}");
        assert_eq!(text.lines().count(), words.len() - 2, "{text}");
        for line in text.lines() {
            assert!(
                line.contains(" refused: ") || line.ends_with(" closed"),
                "{text}"
            );
        }
        // It has all it needs to try: what was refused is vsock, not the call.
        let (_, held) = guest
            .machine
            .exec(&[
                "sh",
                "-c",
                "while read -r n v; do [ $n = CapBnd: ] && echo $v; done </proc/1/status",
            ])
            .await
            .unwrap();
        assert_eq!(held.trim(), "000001ffffffffff");
        guest.machine.agent.check(DEADLINE).await.unwrap();
        guest.machine.kill().await.unwrap();
    }

    /// Whether an agent answers this host's call to the guest `cid`.
    fn answers(cid: u32) -> bool {
        let address = format!("{cid}:1024");
        let output = Command::new(built(PROBE))
            .args(["dial", &address])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        text.trim_end().ends_with(" answered")
    }
}
