//! A program that can be a container's stage, as the agent is, for the tests; and
//! a workload that takes the device programs off its own cgroup.

use std::os::fd::AsFd;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(guest_runtime::container::STAGE_WORD) => guest_runtime::container::stage_main(),
        Some("detach") => {
            let detached = std::fs::File::open("/sys/fs/cgroup")
                .and_then(|own| guest_kernel::bpf::detach_device_programs(own.as_fd()));
            println!("{detached:?}");
        }
        _ => eprintln!("this program is only for the tests of guest-runtime"),
    }
}
