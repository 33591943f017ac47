//! Copies that nobody thawed, restored by somebody else: where the VMM tells the
//! guest of it, nothing of their workload goes on, and they say so.
//!
//! The distribution's kernel has no driver for that: these tests are about the
//! guest's own, and lie in a module named after it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as expected"
)]

mod own_kernel {
    use agent_client::{Generation, Identity, Network, Purpose, ThawOrder};
    use hypervisor::VmSpec;
    use std::path::Path;
    use std::time::{Duration, Instant};
    use tardigrade_tests::images::{agent_initrd, busybox, own_kernel};
    use tardigrade_tests::machine::{self, Machine, set_generation};

    const DEADLINE: Duration = Duration::from_secs(120);
    /// Counts, for as long as it runs.
    const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done";
    const STRAY: &str = "a copy that nobody has thawed";
    const FROZEN: &str = "a copy that nobody has thawed: its workload is frozen";

    fn spec(directory: &Path) -> VmSpec {
        let mut spec = machine::spec(directory, 128, Some(&busybox()));
        spec.kernel = own_kernel();
        spec.initrd = agent_initrd(directory);
        spec
    }

    /// What the workload has counted up to.
    async fn count(machine: &Machine) -> u64 {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            // Between being emptied and written the file holds nothing.
            let (_, shown) = machine.exec(&["cat", "/tmp/count"]).await.unwrap();
            if let Ok(count) = shown.trim().parse() {
                return count;
            }
        }
        panic!("nothing is counted");
    }

    /// Waits until it has counted further.
    async fn see_running(machine: &Machine) {
        let deadline = Instant::now() + DEADLINE;
        let before = count(machine).await;
        while count(machine).await <= before {
            assert!(Instant::now() < deadline, "the workload stands still");
        }
    }

    /// How often the guest's kernel was told that it runs in a copy.
    async fn told(machine: &Machine) -> usize {
        let busybox = format!("{}/bin/busybox dmesg", machine::ROOTFS);
        let (_, log) = machine.exec_in_guest(&busybox).await.unwrap();
        log.matches("crng reseeded due to virtual machine fork")
            .count()
    }

    fn own_life(quiesce_id: agent_client::QuiesceId) -> ThawOrder {
        ThawOrder {
            quiesce_id,
            generation: Generation::random().unwrap(),
            identity: Identity {
                hostname: "copy".into(),
                machine_id: "1".repeat(32),
                boot_id: "00000000-0000-4000-8000-000000000001".into(),
            },
            network: Network::default(),
            dns: Vec::new(),
            files: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_copy_that_nobody_thawed_is_frozen_and_says_so_until_it_is_thawed() {
        let (_kept, template) = machine::directory();
        let qemu = machine::qemu_with_generations(&template).await.unwrap();
        let spec = spec(&template);
        let booted = Machine::boot(&qemu, &spec).await.unwrap();
        let details = booted.agent.guest_details(DEADLINE).await.unwrap();
        assert!(
            details.extra_features.contains(&"copy-watch".to_owned()),
            "{details:?}"
        );
        booted.start(&["sh", "-c", COUNTER]).await.unwrap();
        see_running(&booted).await;
        // Somebody saves it as it is.
        booted.save_as_it_is(&template).await.unwrap();

        // The control: the same machine goes on elsewhere.
        let (_kept, directory) = machine::directory();
        let moved = Machine::resume_copy(&qemu, &template, &spec, &directory).await;
        let moved = moved.unwrap();
        see_running(&moved).await;
        assert_eq!(told(&moved).await, 0);
        moved.agent.check(DEADLINE).await.unwrap();
        moved.kill().await.unwrap();

        set_generation(&template, 1).unwrap();
        let (_kept, directory) = machine::directory();
        let resumed = Machine::resume_and_listen(&qemu, &template, &spec, &directory).await;
        let (copy, mut console) = resumed.unwrap();
        console.hear(FROZEN).await.unwrap();
        let draining = tokio::spawn(console.drain());
        let serves = copy.agent.check(DEADLINE).await.unwrap_err();
        assert!(serves.to_string().contains("does not serve"), "{serves}");
        let refused = copy.exec(&["true"]).await.unwrap_err().to_string();
        assert!(refused.contains(STRAY), "{refused}");

        let quiesced = copy.agent.quiesce(Purpose::Template, DEADLINE).await;
        let order = own_life(quiesced.unwrap().quiesce_id);
        copy.agent.thaw(&order, DEADLINE).await.unwrap();
        let released = copy.agent.release(order.generation, None, DEADLINE).await;
        released.unwrap();
        copy.agent.check(DEADLINE).await.unwrap();
        see_running(&copy).await;
        assert_eq!(told(&copy).await, 1);
        copy.kill().await.unwrap();
        draining.await.unwrap();
    }

    #[tokio::test]
    async fn a_clone_that_is_thawed_runs_whatever_its_kernel_is_told_of_it() {
        let (_kept, template) = machine::directory();
        let qemu = machine::qemu_with_generations(&template).await.unwrap();
        let spec = spec(&template);
        let booted = Machine::boot(&qemu, &spec).await.unwrap();
        booted.start(&["sh", "-c", COUNTER]).await.unwrap();
        see_running(&booted).await;
        let quiesced = booted.agent.quiesce(Purpose::Template, DEADLINE).await;
        let quiesce_id = quiesced.unwrap().quiesce_id;
        booted.save(&template).await.unwrap();

        set_generation(&template, 1).unwrap();
        let (_kept, directory) = machine::directory();
        let clone = Machine::resume_copy(&qemu, &template, &spec, &directory).await;
        let clone = clone.unwrap();
        let order = own_life(quiesce_id);
        clone.agent.thaw(&order, DEADLINE).await.unwrap();
        let released = clone.agent.release(order.generation, None, DEADLINE).await;
        released.unwrap();
        let deadline = Instant::now() + DEADLINE;
        while told(&clone).await == 0 {
            assert!(Instant::now() < deadline, "the kernel was told nothing");
        }
        see_running(&clone).await;
        clone.agent.check(DEADLINE).await.unwrap();
        clone.kill().await.unwrap();
    }
}
