//! Guests that boot from a root disk, and what becomes of one whose disk was
//! tampered with: never wrong data.
//!
//! Of the distribution's kernel: the initrd by itself is what all other tests
//! boot. Of the guest's own, which mounts a disk by itself, all four are in a
//! module named after it, which is left out where it was not built.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as expected"
)]

use hypervisor::VmSpec;
use std::fs;
use std::path::{Path, PathBuf};
use tardigrade_tests::console::listen;
use tardigrade_tests::images::{root_disk, verity_initrd, verity_words};
use tardigrade_tests::machine::{self, Failure};
use tardigrade_tests::root_disks::{
    ROOTS, erofs_script, ext4_script, see_erofs, see_ext4, see_initrd, spec,
};
use tardigrade_tests::{console, root_disks};

const BLOCK: usize = 4096;
/// Words as an existing runtime has them for an image with systemd.
const RUNTIME_WORDS: &str = "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 reboot=k \
     cryptomgr.notests net.ifnames=0 noreplace-smp systemd.show_status=false nr_cpus=1 selinux=0 \
     systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service \
     systemd.mask=systemd-networkd.socket scsi_mod.scan=none agent.log=info \
     agent.debug_console_vport=1026 agent.container_pipe_size=1 agent.unheard_of=yes init \
     cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1";

/// Boots it on QEMU; see [`root_disks::boot_and_ask`].
async fn boot_and_ask(spec: &VmSpec, script: &str) -> Result<String, Failure> {
    root_disks::boot_and_ask(&machine::qemu().await?, spec, script).await
}

#[tokio::test]
async fn a_guest_boots_from_ext4_under_an_existing_runtimes_command_line() -> Result<(), Failure> {
    let (_guard, directory) = machine::directory();
    let words = ["--format", "ext4", "--layout", "partition"];
    let (disk, _) = root_disk(&directory, &words);
    let initrd = verity_initrd(&directory, "zstd");
    let words =
        format!("root=/dev/vda1 rootflags=errors=remount-ro ro rootfstype=ext4 {RUNTIME_WORDS}");
    let spec = spec(&directory, &initrd, &disk, &words);
    see_ext4(&boot_and_ask(&spec, &ext4_script()).await?);
    Ok(())
}

#[tokio::test]
async fn a_guest_boots_from_erofs_alone_on_its_disk() -> Result<(), Failure> {
    let (_guard, directory) = machine::directory();
    let (disk, _) = root_disk(&directory, &["--compression", "lz4"]);
    let initrd = verity_initrd(&directory, "lz4");
    let spec = spec(&directory, &initrd, &disk, "root=/dev/vda");
    see_erofs(&boot_and_ask(&spec, &erofs_script()).await?);
    Ok(())
}

/// Where `content` lies in `bytes`.
fn find(bytes: &[u8], content: &[u8]) -> usize {
    let mut windows = bytes.chunks_exact(BLOCK);
    windows
        .position(|block| block.starts_with(content))
        .unwrap()
        * BLOCK
}

/// Two equal files on a disk with a hash tree, of which one is damaged.
struct Spoilt {
    disk: PathBuf,
    words: String,
}

fn spoilt(directory: &Path) -> Result<Spoilt, Failure> {
    // A file of some blocks, of which the second is damaged.
    let mut payload = vec![b'-'; 4 * BLOCK];
    payload[BLOCK..BLOCK + 6].copy_from_slice(b"needle");
    fs::write(directory.join("payload"), &payload)?;
    let source = directory.join("payload").display().to_string();
    let (spoilt, sound) = (
        format!("{source}:/srv/spoilt"),
        format!("{source}:/srv/sound"),
    );
    // EROFS keeps equal files apart.
    let words = ["--layout", "verity", "--file", &spoilt, "--file", &sound];
    let (disk, manifest) = root_disk(directory, &words);
    let mut bytes = fs::read(&disk)?;
    let at = find(&bytes, b"needle");
    let other = at + BLOCK + find(&bytes[at + BLOCK..], b"needle");
    bytes[other + 100] ^= 1;
    fs::write(&disk, bytes)?;
    let words = verity_words(&manifest, None);
    Ok(Spoilt { disk, words })
}

/// One of the two is read whole, and nothing of the other that is wrong.
async fn see_spoilt(spec: &VmSpec) -> Result<(), Failure> {
    let script = format!(
        "{ROOTS} for file in sound spoilt; do if cat /srv/$file > /tmp/$file; then echo $file whole; \
         else echo $file refused; fi; done; cat /tmp/s*"
    );
    let said = boot_and_ask(spec, &script).await?;
    assert!(said.lines().any(|line| line == "/ erofs ro"), "{said}");
    // Which of the two files comes first is for mkfs.erofs to say.
    let whole = said.matches(" whole").count();
    let refused = said.matches(" refused").count();
    assert_eq!((whole, refused), (1, 1), "{said}");
    assert_eq!(said.matches("needle").count(), 1, "wrong data was read");
    Ok(())
}

#[tokio::test]
async fn of_a_disk_with_a_hash_tree_a_flipped_bit_is_never_read() -> Result<(), Failure> {
    let (_guard, directory) = machine::directory();
    let Spoilt { disk, words } = spoilt(&directory)?;
    let initrd = verity_initrd(&directory, "gzip");
    see_spoilt(&spec(&directory, &initrd, &disk, &words)).await
}

mod own_kernel {
    use super::*;
    use tardigrade_tests::images::{agent_initrd, no_initrd, own_kernel};

    /// A machine whose kernel mounts that disk by itself.
    fn spec_of(directory: &Path, disk: &Path, words: &str) -> VmSpec {
        let mut spec = spec(directory, &no_initrd(directory), disk, words);
        spec.kernel = own_kernel();
        spec
    }

    #[tokio::test]
    async fn a_guest_boots_from_an_initrd_with_nothing_but_the_agent() -> Result<(), Failure> {
        let (_guard, directory) = machine::directory();
        // A disk of no concern, so that the container's is where it is elsewhere.
        let (disk, _) = root_disk(&directory, &[]);
        let mut spec = spec(&directory, &agent_initrd(&directory), &disk, "");
        spec.kernel = own_kernel();
        see_initrd(&boot_and_ask(&spec, &ext4_script()).await?);
        Ok(())
    }

    #[tokio::test]
    async fn a_guest_boots_from_ext4_under_an_existing_runtimes_command_line() -> Result<(), Failure>
    {
        let (_guard, directory) = machine::directory();
        let words = ["--format", "ext4", "--layout", "partition"];
        let (disk, _) = root_disk(&directory, &words);
        let words = format!(
            "root=/dev/vda1 rootflags=errors=remount-ro ro rootfstype=ext4 {RUNTIME_WORDS}"
        );
        let spec = spec_of(&directory, &disk, &words);
        see_ext4(&boot_and_ask(&spec, &ext4_script()).await?);
        Ok(())
    }

    #[tokio::test]
    async fn a_guest_boots_from_erofs_alone_on_its_disk() -> Result<(), Failure> {
        let (_guard, directory) = machine::directory();
        let (disk, _) = root_disk(&directory, &["--compression", "lz4"]);
        let spec = spec_of(&directory, &disk, "root=/dev/vda ro");
        see_erofs(&boot_and_ask(&spec, &erofs_script()).await?);
        Ok(())
    }

    #[tokio::test]
    async fn of_a_disk_with_a_hash_tree_a_flipped_bit_is_never_read() -> Result<(), Failure> {
        let (_guard, directory) = machine::directory();
        let Spoilt { disk, words } = spoilt(&directory)?;
        see_spoilt(&spec_of(&directory, &disk, &words)).await
    }
}

/// Boots from a disk that was tampered with, and says what the console said.
fn boot_tampered(tamper: impl FnOnce(&mut [u8], usize, usize), root_hash: Option<&str>) -> String {
    let (_guard, directory) = machine::directory();
    let (disk, manifest) = root_disk(&directory, &["--layout", "verity"]);
    let at = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let (data, tree) = (
        &manifest["disk"]["offset"],
        &manifest["disk"]["verity"]["offset"],
    );
    let mut bytes = fs::read(&disk).unwrap();
    tamper(&mut bytes, at(data), at(tree));
    fs::write(&disk, bytes).unwrap();
    let initrd = verity_initrd(&directory, "none");
    let words = verity_words(&manifest, root_hash);
    let console::Listened { said, status } = listen(&initrd, &disk, &words);
    assert!(status.success(), "{status}: {said}");
    assert!(!said.contains("\"starting\""), "the agent started: {said}");
    said
}

const REFUSED: &str = "tardigrade: init: the root disk is corrupted: dm-verity found /dev/dm-0 not";

#[test]
fn a_damaged_superblock_stops_the_boot() {
    let said = boot_tampered(|bytes, data, _| bytes[data + 1024] ^= 1, None);
    assert!(said.contains(REFUSED), "{said}");
    assert!(said.contains("data block 0 is corrupted"), "{said}");
}

#[test]
fn a_damaged_agent_does_not_start() {
    let damage = |bytes: &mut [u8], data: usize, _| {
        // The program's first block: what execve(2) reads.
        let agent = data + find(&bytes[data..], b"\x7fELF");
        bytes[agent + 50] ^= 0x80;
    };
    let said = boot_tampered(damage, None);
    assert!(said.contains(REFUSED), "{said}");
}

#[test]
fn a_damaged_hash_tree_stops_the_boot() {
    // The first block of digests below the top: after superblock and top.
    let said = boot_tampered(|bytes, _, tree| bytes[tree + 2 * BLOCK] ^= 4, None);
    assert!(said.contains(REFUSED), "{said}");
    assert!(said.contains("metadata block 2 is corrupted"), "{said}");
}

#[test]
fn another_root_hash_stops_the_boot() {
    let said = boot_tampered(|_, _, _| (), Some(&"5a".repeat(32)));
    assert!(said.contains(REFUSED), "{said}");
}
