//! Copies that nobody thawed, restored by somebody else: where the VMM tells the
//! guest of it, nothing of their workload goes on, and they say so.
//!
//! The distribution's kernel has no driver for that: these tests are about the
//! guest's own, and lie in a module named after it.

mod own_kernel {
    use agent_client::Purpose;
    use hypervisor::VmSpec;
    use std::path::Path;
    use tardigrade_tests::copies::{
        DEADLINE, boot_and_count, see_a_thawed_one_run, see_frozen_until_thawed, see_running, told,
    };
    use tardigrade_tests::images::{agent_initrd, busybox, own_kernel};
    use tardigrade_tests::machine::{self, Failure, Machine, set_generation};

    fn spec(directory: &Path) -> VmSpec {
        let mut spec = machine::spec(directory, 128, Some(&busybox()));
        spec.kernel = own_kernel();
        spec.initrd = agent_initrd(directory);
        spec
    }

    #[tokio::test]
    async fn a_copy_that_nobody_thawed_is_frozen_and_says_so_until_it_is_thawed()
    -> Result<(), Failure> {
        let (_kept, template) = machine::directory();
        let qemu = machine::qemu_with_generations(&template).await?;
        let spec = spec(&template);
        let booted = boot_and_count(&qemu, &spec).await?;
        // Somebody saves it as it is.
        booted.save_as_it_is(&template).await?;

        // The control: the same machine goes on elsewhere.
        let (_kept, directory) = machine::directory();
        let moved = Machine::resume_copy(&qemu, &template, &spec, &directory).await?;
        see_running(&moved).await?;
        assert_eq!(told(&moved).await?, 0);
        moved.agent.check(DEADLINE).await?;
        moved.kill().await?;

        set_generation(&template, 1)?;
        see_frozen_until_thawed(&qemu, &template, &spec).await
    }

    #[tokio::test]
    async fn a_clone_that_is_thawed_runs_whatever_its_kernel_is_told_of_it() -> Result<(), Failure>
    {
        let (_kept, template) = machine::directory();
        let qemu = machine::qemu_with_generations(&template).await?;
        let spec = spec(&template);
        let booted = boot_and_count(&qemu, &spec).await?;
        let quiesced = booted.agent.quiesce(Purpose::Template, DEADLINE).await?;
        booted.save(&template).await?;

        set_generation(&template, 1)?;
        see_a_thawed_one_run(&qemu, &template, &spec, quiesced.quiesce_id).await
    }
}
