//! Copies under a VMM that tells every guest it restores that it is one, in the
//! nested host: one that nobody thawed, and one of ours.
//!
//! Cloud Hypervisor has no device that tells; QEMU's is in the tests of `copies`.

mod firecracker {
    mod own_kernel {
        use agent_client::Purpose;
        use hypervisor::firecracker::{Firecracker, probe};
        use hypervisor::{AgentDevice, Backing, Confinement, Deadlines, VmSpec};
        use std::path::Path;
        use tardigrade_tests::copies::{
            DEADLINE, boot_and_count, see_a_thawed_one_run, see_frozen_until_thawed,
        };
        use tardigrade_tests::images::{agent_initrd, busybox, own_vmlinux};
        use tardigrade_tests::lab;
        use tardigrade_tests::machine::{self, Failure};

        /// Of a guest's vsock, which is its VMM's own.
        const CID: u32 = 3;

        async fn firecracker() -> Result<Firecracker, Failure> {
            lab::assert_nested_host();
            let found = probe(None, None, &Confinement::Insecure).await?;
            Ok(Firecracker::new(&found, Deadlines::default()))
        }

        fn spec(directory: &Path) -> VmSpec {
            let mut spec = lab::vsock_spec(directory, 128, Some(&busybox()), CID);
            spec.agent = AgentDevice::HybridVsock {
                socket: directory.join("agent.sock"),
                cid: CID,
            };
            spec.memory.backing = Backing::Anonymous;
            spec.kernel = own_vmlinux();
            spec.initrd = agent_initrd(directory);
            spec
        }

        /// The machine as it is once it was saved: its RAM is in a file then.
        fn saved(spec: &VmSpec, state: &Path) -> VmSpec {
            let mut saved = spec.clone();
            saved.memory.backing = Backing::FileBacked {
                path: state.join("memory"),
                shared: false,
            };
            saved
        }

        #[tokio::test]
        async fn a_copy_that_nobody_thawed_is_frozen_and_says_so_until_it_is_thawed()
        -> Result<(), Failure> {
            let firecracker = firecracker().await?;
            let (_kept, template) = machine::directory();
            let spec = spec(&template);
            let state = template.join("state");
            std::fs::create_dir(&state)?;
            let booted = boot_and_count(&firecracker, &spec).await?;
            booted.save_as_it_is(&state).await?;
            see_frozen_until_thawed(&firecracker, &state, &saved(&spec, &state)).await
        }

        #[tokio::test]
        async fn a_clone_that_is_thawed_runs_whatever_its_kernel_is_told_of_it()
        -> Result<(), Failure> {
            let firecracker = firecracker().await?;
            let (_kept, template) = machine::directory();
            let spec = spec(&template);
            let state = template.join("state");
            std::fs::create_dir(&state)?;
            let booted = boot_and_count(&firecracker, &spec).await?;
            let quiesced = booted.agent.quiesce(Purpose::Template, DEADLINE).await?;
            booted.save(&state).await?;
            let saved = saved(&spec, &state);
            see_a_thawed_one_run(&firecracker, &state, &saved, quiesced.quiesce_id).await
        }
    }
}
