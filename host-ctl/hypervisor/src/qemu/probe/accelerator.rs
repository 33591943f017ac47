//! Whether KVM runs a kernel: found out by running it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ProbeRequest, Version};
use crate::error::{Error, quote};
use crate::log::read_tail;
use crate::process::{Confinement, Launch, Needs, Process, User, spawn};
use crate::program::{KVM, KvmHost, memory_file, open_kvm};
use crate::qemu::command_line::probe_arguments;
use crate::vm::Accelerator;

/// How long the firmware may take to be heard, the start of QEMU included: half
/// a second, but two on a busy machine that is itself emulated.
const FIRST_SOUND: Duration = Duration::from_secs(6);
/// How long firmware and kernel may then be silent, at least; the firmware
/// copies the kernel meanwhile, which unpacks itself.
const SILENCE: Duration = Duration::from_secs(2);
/// The same as a multiple of what the first sound took: what is slow at first
/// stays slow. On every machine that was tried it is less than one.
const SILENCE_FACTOR: u32 = 5;
/// How long all of it may take before the kernel speaks, whatever is heard.
const LONGEST: Duration = Duration::from_secs(20);
/// How long a kernel that speaks is listened to.
const DEADLINE: Duration = Duration::from_secs(3);
/// What a kernel says first on its console.
const FIRST_WORDS: &[u8] = b"Linux version";
/// What it says when it has found no root file system: it has started CPUs,
/// timers, memory management and processes by then.
const LAST_WORDS: &[u8] = b"Kernel panic";
/// How much of the console is searched at a time.
const WINDOW: usize = 8 << 10;

/// Which accelerator to use, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceleratorProbe {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why it is this one.
    pub reason: String,
    /// What the answer depends on; none where nothing was shown, so that it is
    /// asked again.
    key: Option<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    kernel_digest: Option<String>,
    host: KvmHost,
    version: String,
}

/// A QEMU that is tried, and how it is confined meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Tried<'a> {
    pub(super) program: &'a Path,
    pub(super) version: Version,
    pub(super) confinement: &'a Confinement,
}

/// Answers from what is known if that has the same key, else tries.
pub(super) async fn probe(
    request: &ProbeRequest<'_>,
    tried: Tried<'_>,
    version_text: &str,
    known: Option<&AcceleratorProbe>,
) -> AcceleratorProbe {
    let key = Key {
        kernel_digest: request.kernel.map(|_| request.kernel_digest.to_owned()),
        host: KvmHost::here(),
        version: version_text.to_owned(),
    };
    if let Some(known) = known.filter(|known| known.is_answer_to(&key)) {
        return known.clone();
    }
    AcceleratorProbe::of(try_kvm(request.kernel, tried).await, key)
}

impl AcceleratorProbe {
    /// What follows from a try: that of one which could not be made holds for
    /// this time only.
    fn of(tried: Result<Result<String, String>, Error>, key: Key) -> Self {
        let (accelerator, reason, key) = match tried {
            Ok(Ok(reason)) => (Accelerator::Kvm, reason, Some(key)),
            Ok(Err(reason)) => (Accelerator::Tcg, reason, Some(key)),
            Err(error) => {
                let reason = format!("kvm could not be tried: {error}");
                (Accelerator::Tcg, reason, None)
            }
        };
        Self {
            accelerator,
            reason,
            key,
        }
    }

    fn is_answer_to(&self, key: &Key) -> bool {
        self.key.as_ref() == Some(key)
    }
}

/// Says why KVM can be used, or why not; an error, why that cannot be said.
async fn try_kvm(kernel: Option<&Path>, tried: Tried<'_>) -> Result<Result<String, String>, Error> {
    let Some(kernel) = kernel else {
        return Ok(Err("no kernel was given to try kvm with".to_owned()));
    };
    if let Err(error) = open_kvm() {
        return Ok(Err(format!("open {KVM}: {error}")));
    }
    run(kernel, tried).await
}

/// Starts the kernel, without a root file system, and listens to its console.
async fn run(kernel: &Path, tried: Tried<'_>) -> Result<Result<String, String>, Error> {
    let Tried {
        program,
        version,
        confinement,
    } = tried;
    let broken = |call| move |source: io::Error| Error::Process { call, source };
    let (console, theirs) = std::os::unix::net::UnixStream::pair().map_err(broken("socketpair"))?;
    console
        .set_nonblocking(true)
        .map_err(broken("fcntl O_NONBLOCK"))?;
    let console = UnixStream::from_std(console).map_err(broken("epoll_ctl"))?;
    let log = memory_file(&[])?;
    let user = confinement.user();
    // One with a user of its own may not go where the kernel lies.
    let handed = user.map(|user| user.open_or_copy(kernel)).transpose()?;
    let kernel = handed.as_ref().map_or_else(
        || kernel.to_owned(),
        |file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
    );
    let arguments = probe_arguments(version, &kernel, theirs.as_raw_fd())?;
    let inherited: Vec<_> = [theirs.as_fd()]
        .into_iter()
        .chain(handed.as_ref().map(AsFd::as_fd))
        .chain(user.map(User::lock))
        .collect();
    let cell = confinement.cell(Needs::default())?;
    let launch = Launch {
        program,
        arguments: &arguments,
        inherited: &inherited,
        placed: &[],
        log: &log,
        output: None,
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: None,
    };
    let pid = spawn(&launch)?;
    let process = Process::child(pid)?;
    drop(theirs);

    let mut progress = Progress {
        begun: Instant::now(),
        first_sound: None,
        first_words: None,
        last_words: false,
    };
    let listening = listen(&console, &mut progress).await;
    let ended_early = listening == Listening::Ended && !progress.last_words;
    let exit = process.kill().await?;
    if progress.last_words {
        return Ok(Ok("kvm runs the kernel to its end".to_owned()));
    }
    if ended_early {
        let words = read_tail(&log).unwrap_or_default();
        return Ok(Err(format!(
            "kvm does not run the kernel: {exit}: {}",
            quote(&words)
        )));
    }
    Ok(if progress.first_words.is_some() {
        Ok(format!(
            "kvm runs the kernel, not to its end within {DEADLINE:?}"
        ))
    } else {
        Err(format!(
            "kvm does not run the kernel: {}",
            if progress.first_sound.is_some() {
                "the firmware is heard, the kernel is not"
            } else {
                "nothing is heard"
            }
        ))
    })
}

struct Progress {
    begun: Instant,
    /// How long it took until something was heard, perhaps the firmware.
    first_sound: Option<Duration>,
    /// When the kernel's first words were heard.
    first_words: Option<Instant>,
    last_words: bool,
}

impl Progress {
    /// How much longer to listen for the next sound.
    fn patience(&self) -> Duration {
        let left = LONGEST.saturating_sub(self.begun.elapsed());
        match (self.first_words, self.first_sound) {
            (Some(heard), _) => DEADLINE.saturating_sub(heard.elapsed()),
            (None, Some(took)) => SILENCE.max(took * SILENCE_FACTOR).min(left),
            (None, None) => FIRST_SOUND.min(left),
        }
    }
}

/// Why listening ended.
#[derive(PartialEq, Eq)]
enum Listening {
    /// The VMM is gone, or the kernel has said its last words.
    Ended,
    /// Silence, or enough was heard.
    Stopped,
}

/// Reads the console until the kernel's last words, its end, or a silence. A VM
/// that is slow is told from one that hangs by what it says meanwhile.
async fn listen(console: &UnixStream, progress: &mut Progress) -> Listening {
    let mut heard = Vec::new();
    while !progress.last_words {
        match timeout(progress.patience(), console.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Listening::Ended,
            Err(_) => return Listening::Stopped,
        }
        let mut part = [0; 4 << 10];
        match console.try_read(&mut part) {
            Ok(0) => return Listening::Ended,
            Ok(length) => heard.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Listening::Ended,
        }
        if progress.first_sound.is_none() {
            progress.first_sound = Some(progress.begun.elapsed());
        }
        let has = |words: &[u8]| heard.windows(words.len()).any(|window| window == words);
        if progress.first_words.is_none() && has(FIRST_WORDS) {
            progress.first_words = Some(Instant::now());
        }
        progress.last_words |= has(LAST_WORDS);
        let surplus = heard.len().saturating_sub(WINDOW);
        heard.drain(..surplus);
    }
    Listening::Ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            kernel_digest: Some("digest".to_owned()),
            host: KvmHost::here(),
            version: "7.2.0".to_owned(),
        }
    }

    #[test]
    fn what_a_try_has_shown_is_kept_and_that_there_was_none_is_not() {
        let words = || "words".to_owned();
        for shown in [Ok(words()), Err(words())] {
            let probe = AcceleratorProbe::of(Ok(shown.clone()), key());
            assert_eq!(probe.accelerator == Accelerator::Kvm, shown.is_ok());
            let text = serde_json::to_string(&probe).unwrap();
            let kept: AcceleratorProbe = serde_json::from_str(&text).unwrap();
            assert!(kept.is_answer_to(&key()), "{shown:?}");
        }
        let reason = "clone with namespaces of its own: no space".to_owned();
        let probe = AcceleratorProbe::of(Err(Error::Confinement { reason }), key());
        assert_eq!(probe.accelerator, Accelerator::Tcg);
        assert!(probe.reason.contains("could not be tried"), "{probe:?}");
        assert!(!probe.is_answer_to(&key()));
    }
}
