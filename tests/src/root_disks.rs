//! Machines with a root disk of their own, and what their guests say of it.

use crate::images;
use crate::machine::{self, Failure, Machine};
use hypervisor::{Disk, Hypervisor, VmSpec};
use std::path::Path;

/// Which file system is mounted where, of those this is about.
pub const ROOTS: &str = "while read -r _ at kind options _; do case $at in /|/etc|/tmp|/root) \
     echo $at $kind ${options%%,*};; esac; done < /proc/mounts; ";

/// A machine with that root disk first, and a container's image after it.
#[must_use]
pub fn spec(directory: &Path, initrd: &Path, disk: &Path, words: &str) -> VmSpec {
    let mut spec = machine::spec(directory, 128, Some(&images::busybox()));
    spec.initrd = initrd.into();
    spec.cmdline = format!("{} {words}", spec.cmdline);
    put_first(&mut spec, disk);
    spec
}

/// Gives a machine another first disk, read-only.
pub fn put_first(spec: &mut VmSpec, disk: &Path) {
    let root = Disk {
        id: "root".into(),
        path: disk.into(),
        readonly: true,
    };
    spec.disks.insert(0, root);
}

/// Boots it and runs a container; what the guest itself then says to `script`.
///
/// # Errors
/// When any of it fails.
///
/// # Panics
/// When the container is not what it should be.
pub async fn boot_and_ask(
    hypervisor: &dyn Hypervisor,
    spec: &VmSpec,
    script: &str,
) -> Result<String, Failure> {
    let machine = Machine::boot(hypervisor, spec).await?;
    let said = ask(&machine, script).await?;
    machine.kill().await?;
    Ok(said)
}

/// The same of a machine that runs, and goes on running.
///
/// # Errors
/// When any of it fails.
///
/// # Panics
/// When the container is not what it should be.
pub async fn ask(machine: &Machine, script: &str) -> Result<String, Failure> {
    let container = machine::container_on("/dev/vdb", &["sleep", "100000"]);
    machine.start_as(container).await?;
    let (status, said) = machine.exec(&["cat", "/etc/passwd"]).await?;
    assert_eq!(
        (status, said.as_str()),
        (0, "root:x:0:0:root:/root:/bin/sh\n")
    );
    let (_, said) = machine.exec_in_guest(script).await?;
    Ok(said)
}

/// What is asked of a guest for [`see_ext4`].
#[must_use]
pub fn ext4_script() -> String {
    format!("{ROOTS} echo x > /etc/hosts && echo written")
}

/// What is asked of a guest for [`see_erofs`].
#[must_use]
pub fn erofs_script() -> String {
    format!("{ROOTS} echo x > /sbin/init || echo refused")
}

/// What a guest says that stands on an ext4 disk.
///
/// # Panics
/// When it does not.
pub fn see_ext4(said: &str) {
    see(
        said,
        &[
            "/ ext4 ro",
            "/etc tmpfs rw",
            "/tmp tmpfs rw",
            "/root tmpfs rw",
            "written",
        ],
    );
}

/// The same of an EROFS disk.
///
/// # Panics
/// When it does not.
pub fn see_erofs(said: &str) {
    see(said, &["/ erofs ro", "/etc tmpfs rw", "refused"]);
}

/// The same of a guest that has no root disk.
///
/// # Panics
/// When it does not.
pub fn see_initrd(said: &str) {
    see(said, &["/ tmpfs rw", "written"]);
}

fn see(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(said.lines().any(|found| found == *line), "{line}: {said}");
    }
}
