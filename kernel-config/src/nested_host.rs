//! What the kernel of the nested host needs: the machine emulated for the
//! tests, in which virtual machines run for real. It is the guest's kernel,
//! started as a host.

use crate::requirement::Requirement;
use crate::requirement::{built_in, module, optional};

/// Everything the nested host relies on; the modules of what is required are
/// loaded at its start, the others when they are asked for.
pub const NESTED_HOST: &[Requirement] = &[
    built_in("BLK_DEV_INITRD", "it starts from an initrd"),
    built_in("BINFMT_SCRIPT", "its first program is a shell script"),
    built_in("DEVTMPFS", "/dev/kvm and the like appear by themselves"),
    built_in(
        "TMPFS_XATTR",
        "the overlay over the shared root is on tmpfs",
    ),
    built_in(
        "SERIAL_8250_CONSOLE",
        "its console is the first serial port",
    ),
    built_in("USERFAULTFD", "VMMs restore memory on demand with it"),
    built_in("NET_NS", "a network namespace for each sandbox"),
    built_in("CGROUPS", "the tests of the runtime make cgroups"),
    module("VIRTIO_PCI", &["virtio_pci"], "its devices"),
    module("VIRTIO_CONSOLE", &["virtio_console"], "how it speaks"),
    module("FUSE_FS", &["fuse"], "virtio-fs is built on it"),
    module("VIRTIO_FS", &["virtiofs"], "the shared root"),
    module(
        "OVERLAY_FS",
        &["overlay"],
        "writes to the shared root stay in memory",
    ),
    module(
        "KVM_AMD",
        &["kvm_amd"],
        "/dev/kvm, on the processor that is emulated",
    ),
    module("VHOST_VSOCK", &["vhost_vsock"], "/dev/vhost-vsock"),
    module("VHOST_NET", &["vhost_net"], "/dev/vhost-net"),
    module("TUN", &["tun"], "/dev/net/tun: taps"),
    module("BLK_DEV_LOOP", &["loop"], "images are mounted"),
    module("EROFS_FS", &["erofs"], "container images"),
    module("BRIDGE", &["bridge"], "connects taps"),
    module("VETH", &["veth"], "connects network namespaces"),
    module("NET_SCH_INGRESS", &["sch_ingress"], "fences of taps"),
    module("NET_CLS_BPF", &["cls_bpf"], "fences of taps"),
    optional(module(
        "NET_ACT_MIRRED",
        &["act_mirred"],
        "traffic between taps",
    )),
    optional(module("NF_TABLES", &["nf_tables"], "packet filters")),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check_nested_host;
    use crate::requirement::{Necessity, Presence};
    use std::collections::BTreeSet;

    #[test]
    fn no_option_is_named_twice() {
        let options: BTreeSet<_> = NESTED_HOST.iter().map(|each| each.option).collect();
        assert_eq!(options.len(), NESTED_HOST.len());
    }

    #[test]
    fn what_it_lacks_is_named_and_what_a_guest_must_not_have_is_no_matter() {
        let all = |without: &str| {
            NESTED_HOST
                .iter()
                .filter(|each| each.option != without)
                .map(|each| format!("CONFIG_{}=y\n", each.option))
                .collect::<String>()
        };
        assert!(check_nested_host(&all("").parse().unwrap()).passes());
        for each in NESTED_HOST {
            let report = check_nested_host(&all(each.option).parse().unwrap());
            let required = each.necessity == Necessity::Required;
            assert_eq!(report.passes(), !required, "{}", each.option);
        }
    }

    #[test]
    fn only_modules_can_be_loaded_later() {
        for each in NESTED_HOST {
            let optional = each.necessity == Necessity::Optional;
            assert!(!optional || each.presence != Presence::BuiltIn);
        }
    }
}
