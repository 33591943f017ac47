//! Root disks on every VMM, in the nested host: each kind of them, under the
//! distribution's kernel and under the guest's own.

use hypervisor::{AgentDevice, Backing, Confinement, Deadlines, Hypervisor, VmSpec};
use std::path::{Path, PathBuf};
use tardigrade_tests::images::{agent_initrd, no_initrd, own_vmlinux, root_disk};
use tardigrade_tests::images::{verity_initrd, verity_words};
use tardigrade_tests::machine::{self, Failure};
use tardigrade_tests::root_disks::{
    boot_and_ask, erofs_script, ext4_script, put_first, see_erofs, see_ext4, see_initrd,
};
use tardigrade_tests::{built, images, lab};

/// Of a guest's vsock, which is its VMM's own.
const CID: u32 = 3;

/// Which kernel there is, and how it comes by its root disk.
#[derive(Clone, Copy)]
enum Kernel {
    /// It needs an initrd with modules.
    Distribution,
    /// It needs none.
    Own,
}

/// A machine with that root disk first, and a container's image after it.
fn spec(directory: &Path, kernel: PathBuf, initrd: PathBuf, disk: &Path, words: &str) -> VmSpec {
    let mut spec = lab::vsock_spec(directory, 128, Some(&images::busybox()), CID);
    spec.agent = AgentDevice::HybridVsock {
        socket: directory.join("agent.sock"),
        cid: CID,
    };
    spec.memory.backing = Backing::Anonymous;
    spec.kernel = kernel;
    spec.initrd = initrd;
    spec.cmdline = format!("{} {words}", spec.cmdline);
    put_first(&mut spec, disk);
    spec
}

/// Boots from each kind of root disk, one after the other.
async fn each_kind(hypervisor: &dyn Hypervisor, kernel: Kernel) -> Result<(), Failure> {
    let verity = ["--layout", "verity"];
    let ext4 = ["--format", "ext4", "--layout", "partition"];
    let lz4 = ["--compression", "lz4"];
    let kinds: [(&str, &[&str]); 4] = [
        ("initrd", &[]),
        ("ext4", &ext4),
        ("erofs", &lz4),
        ("verity", &verity),
    ];
    for (kind, how) in kinds {
        eprintln!("{kind}");
        let (_guard, directory) = machine::directory();
        let (disk, manifest) = root_disk(&directory, how);
        let words = match kind {
            "initrd" => String::new(),
            "ext4" => "root=/dev/vda1 rootfstype=ext4 ro".into(),
            "erofs" => "root=/dev/vda ro".into(),
            _ => verity_words(&manifest, None),
        };
        let (image, initrd) = match (kernel, kind) {
            (Kernel::Distribution, _) => {
                (built("guest/vmlinux"), verity_initrd(&directory, "none"))
            }
            (Kernel::Own, "initrd") => (own_vmlinux(), agent_initrd(&directory)),
            (Kernel::Own, _) => (own_vmlinux(), no_initrd(&directory)),
        };
        let spec = spec(&directory, image, initrd, &disk, &words);
        let script = if kind == "initrd" || kind == "ext4" {
            ext4_script()
        } else {
            erofs_script()
        };
        let said = boot_and_ask(hypervisor, &spec, &script).await?;
        match kind {
            "initrd" => see_initrd(&said),
            "ext4" => see_ext4(&said),
            _ => see_erofs(&said),
        }
    }
    Ok(())
}

async fn on_cloud_hypervisor(kernel: Kernel) -> Result<(), Failure> {
    lab::assert_nested_host();
    let found = hypervisor::cloud_hypervisor::probe(None, None, &Confinement::Insecure).await?;
    let driver = hypervisor::cloud_hypervisor::CloudHypervisor::new(&found, Deadlines::default());
    each_kind(&driver, kernel).await
}

async fn on_firecracker(kernel: Kernel) -> Result<(), Failure> {
    lab::assert_nested_host();
    let found = hypervisor::firecracker::probe(None, None, &Confinement::Insecure).await?;
    let driver = hypervisor::firecracker::Firecracker::new(&found, Deadlines::default());
    each_kind(&driver, kernel).await
}

macro_rules! on_each_vmm {
    ($($module:ident: $boot:ident),*) => {$(
        mod $module {
            use super::{Failure, Kernel};

            #[tokio::test]
            async fn a_guest_boots_from_each_kind_of_root_disk() -> Result<(), Failure> {
                super::$boot(Kernel::Distribution).await
            }

            mod own_kernel {
                use super::{Failure, Kernel};

                #[tokio::test]
                async fn a_guest_boots_from_each_kind_of_root_disk() -> Result<(), Failure> {
                    super::super::$boot(Kernel::Own).await
                }
            }
        }
    )*};
}

on_each_vmm! {
    cloud_hypervisor: on_cloud_hypervisor,
    firecracker: on_firecracker
}
