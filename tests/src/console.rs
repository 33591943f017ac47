//! What machines say on their consoles: one that is only listened to, for boots
//! that are to fail, and those that tell what the agent does.

use crate::built;
use crate::machine::Failure;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// In seconds; a machine that has not ended then is ended.
const DEADLINE: &str = "240";
/// How long words are waited for, of an emulated guest on a shared machine.
const HEAR_DEADLINE: Duration = Duration::from_secs(120);

/// The console of a machine, and what it has said since somebody listens.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    said: Vec<u8>,
}

impl Console {
    /// Listens to the console whose socket is `path`.
    ///
    /// # Errors
    /// Those of connect(2).
    pub async fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let said = Vec::new();
        Ok(Self { stream, said })
    }

    /// Waits until it has said a line with these words; all that it has said.
    ///
    /// # Errors
    /// It ends before, or does not say them in time.
    pub async fn hear(&mut self, words: &str) -> Result<String, Failure> {
        let listening = async {
            loop {
                let said = String::from_utf8_lossy(&self.said).into_owned();
                let mut lines = said.split_inclusive('\n');
                if lines.any(|line| line.contains(words) && line.ends_with('\n')) {
                    return Ok(said);
                }
                let mut part = [0; 4096];
                let length = self.stream.read(&mut part).await?;
                if length == 0 {
                    return Err(format!("the console has ended: {said}").into());
                }
                self.said.extend_from_slice(&part[..length]);
            }
        };
        match tokio::time::timeout(HEAR_DEADLINE, listening).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let said = String::from_utf8_lossy(&self.said);
                Err(format!("{words:?} is not said: {said}").into())
            }
        }
    }

    /// What it has said so far is heard no more.
    pub fn forget(&mut self) {
        self.said.clear();
    }

    /// Reads on until it ends: otherwise the guest's console would fill up.
    pub async fn drain(mut self) {
        let mut rest = Vec::new();
        // It may end in any way.
        let _ = self.stream.read_to_end(&mut rest).await;
    }
}

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
