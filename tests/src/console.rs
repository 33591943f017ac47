//! A machine that is only listened to: for boots that are to fail.

use crate::built;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// In seconds; a machine that has not ended then is ended.
const DEADLINE: &str = "240";

/// What became of such a machine.
#[derive(Debug)]
pub struct Listened {
    /// All that its console said.
    pub said: String,
    /// How its VMM ended: 124 is the deadline.
    pub status: ExitStatus,
}

/// Boots the distribution's kernel with `initrd` and `disk`, read-only, and
/// listens until the machine ends: by itself, for a kernel that panics resets
/// it.
///
/// # Panics
/// When QEMU cannot be started.
#[must_use]
pub fn listen(initrd: &Path, disk: &Path, words: &str) -> Listened {
    let drive = format!("file={},format=raw,if=virtio,readonly=on", disk.display());
    let output = Command::new("timeout")
        .args(["--kill-after=5", DEADLINE, "qemu-system-x86_64"])
        .args([
            "-accel",
            "tcg",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(built("guest/vmlinuz"))
        .arg("-initrd")
        .arg(initrd)
        // The kernel's check of its timer is one of how busy the host is.
        .args([
            "-append",
            &format!("console=ttyS0 quiet panic=-1 no_timer_check {words}"),
        ])
        .args(["-drive", &drive])
        .output()
        .expect("start QEMU");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(127), "start QEMU: {error}");
    Listened {
        said: String::from_utf8_lossy(&output.stdout).into_owned(),
        status: output.status,
    }
}
