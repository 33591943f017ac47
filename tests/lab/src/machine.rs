//! The emulated machine: one QEMU command line.

use crate::share::Share;
use crate::tools::Tools;
use std::ffi::OsString;
use std::path::Path;

/// AMD's first EPYC, with what a hypervisor needs and QEMU's emulator has. KVM
/// asks for all of it: nested paging above all.
const CPU: &str = "EPYC-v1,+svm,+npt,+x2apic";
/// panic=-1 ends the machine, for -no-reboot makes an exit of a reboot.
const KERNEL: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on";
/// The ports of the nested host, by which it speaks: one process for each.
pub(crate) const PORTS: [&str; 4] = ["stdout", "stderr", "report", "pulse"];
/// What the rest of this machine keeps of its memory, in MiB.
const KEPT_MIB: u64 = 512;

/// How big the machine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Its memory, in MiB.
    pub(crate) memory_mib: u64,
    /// Its processors.
    pub(crate) cpus: u8,
}

/// The memory to emulate: what is wanted, but not more than is to be had.
pub(crate) fn memory(wanted_mib: u64, meminfo: &str) -> u64 {
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(u64::MAX, |kib| (kib >> 10).saturating_sub(KEPT_MIB));
    wanted_mib.min(available)
}

/// QEMU's arguments. Its sockets and logs lie in `directory`.
pub(crate) fn arguments(
    tools: &Tools,
    size: Size,
    shares: &[Share],
    directory: &Path,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: &str| {
        words.push(option.into());
        if !value.is_empty() {
            words.push(value.into());
        }
    };
    add("-nodefaults", "");
    add("-no-user-config", "");
    add("-no-reboot", "");
    add("-display", "none");
    add("-machine", "q35,memory-backend=memory");
    add("-accel", "tcg,thread=multi");
    add("-cpu", CPU);
    add("-smp", &size.cpus.to_string());
    add("-m", &format!("{}M", size.memory_mib));
    // The file system daemons map the same memory.
    add(
        "-object",
        &format!(
            "memory-backend-memfd,id=memory,size={}M,share=on",
            size.memory_mib
        ),
    );
    add("-append", KERNEL);
    add("-device", "virtio-serial-pci");
    for share in shares {
        let tag = &share.tag;
        let id = format!("share-{tag}");
        add("-chardev", &socket(&id, &share.socket));
        add(
            "-device",
            &format!("vhost-user-fs-pci,chardev={id},tag={tag},queue-size=1024"),
        );
    }
    for name in PORTS {
        add("-chardev", &socket(name, &directory.join(name)));
        add(
            "-device",
            &format!("virtserialport,chardev={name},name=lab.{name}"),
        );
    }
    add(
        "-serial",
        &format!("file:{}", directory.join("console").display()),
    );
    for (option, path) in [
        ("-kernel", tools.vmlinuz.clone()),
        ("-initrd", directory.join("initrd")),
    ] {
        words.push(option.into());
        words.push(path.into());
    }
    words
}

/// A comma in a path is doubled: QEMU's option syntax.
fn socket(id: &str, path: &Path) -> String {
    format!(
        "socket,id={id},path={}",
        path.display().to_string().replace(',', ",,")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_memory_is_taken_than_there_is() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(memory(1024, meminfo), 1024);
        assert_eq!(memory(4096, meminfo), 2048 - KEPT_MIB);
        assert_eq!(memory(4096, "MemAvailable: 5 kB\n"), 0);
        assert_eq!(memory(4096, ""), 4096);
    }
}
