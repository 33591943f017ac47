//! Which Firecracker there is, and whether it runs a guest here: /dev/kvm may be
//! there and of no use, so that a guest is started and must be heard. The guest
//! is a few instructions; a kernel may still ask for more than a host that is
//! itself a VM can do, which is for whoever boots it to notice.

mod guest;
mod version;

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;

use super::request::{INITRD, KERNEL, inherited};
use crate::error::Error;
use crate::log::read_tail;
use crate::process::{Confinement, Launch, Needs, Process, User, spawn};
use crate::program::{FileIdentity, KVM, KvmHost, find, memory_file, open_kvm, unusable};

pub(super) use version::MOVES_VSOCK;
pub use version::Version;

/// The program's name on PATH.
const PROGRAM: &str = "firecracker";
/// How long the smallest guest may take: below a second, also where all of the
/// host is emulated.
const DEADLINE: Duration = Duration::from_secs(10);
/// How much of what it printed is searched for the guest's word.
const MOST_OUTPUT: usize = 64 << 10;

/// What was found. It can be kept and given to the next [`probe`], which looks
/// again only where something it depends on has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its version as it prints it.
    pub version_text: String,
    /// The version of the states it writes and reads.
    pub state_format: String,
    identity: FileIdentity,
    host: KvmHost,
}

/// Finds Firecracker: the given program, or what $FIRECRACKER names, or the
/// first on PATH. Takes some milliseconds when nothing has changed since
/// `known`, at most some seconds otherwise. Whatever is started is confined like
/// this.
///
/// # Errors
/// [`Error::Probe`] when there is none, it is too old, or KVM can't be used.
pub async fn probe(
    program: Option<&Path>,
    known: Option<&Probe>,
    confinement: &Confinement,
) -> Result<Probe, Error> {
    let program = find(program, "FIRECRACKER", PROGRAM)?;
    let identity = FileIdentity::of(&program)?;
    let known = known.filter(|known| known.program == program && known.identity == identity);
    let (version, version_text, state_format) = match known {
        Some(known) => (
            known.version,
            known.version_text.clone(),
            known.state_format.clone(),
        ),
        None => {
            let asked = version::ask(&program, confinement).await?;
            (asked.version, asked.text, asked.state_format)
        }
    };
    open_kvm().map_err(|error| unusable(&program, format!("it needs kvm: open {KVM}: {error}")))?;
    let host = KvmHost::here();
    if known.is_none_or(|known| known.host != host) {
        run_guest(&program, confinement).await?;
    }
    Ok(Probe {
        program,
        version,
        version_text,
        state_format,
        identity,
        host,
    })
}

/// Starts the smallest guest and waits for its word and its end.
async fn run_guest(program: &Path, confinement: &Confinement) -> Result<(), Error> {
    let configuration = json!({
        "boot-source": { "kernel_image_path": inherited(KERNEL), "boot_args": "" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 32 },
        "drives": [],
    });
    let kernel = memory_file(&guest::image())?;
    let configuration = memory_file(configuration.to_string().as_bytes())?;
    let output = memory_file(&[])?;
    let arguments = ["--no-api", "--level", "Error", "--config-file"];
    let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
    // The initrd's place is free: this guest has none.
    arguments.push(inherited(INITRD));
    let cell = confinement.cell(Needs::default())?;
    let held: Vec<_> = confinement.user().map(User::lock).into_iter().collect();
    let launch = Launch {
        program,
        arguments: &arguments,
        inherited: &held,
        placed: &[(kernel.as_fd(), KERNEL), (configuration.as_fd(), INITRD)],
        log: &output,
        output: None,
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: None,
    };
    let pid = spawn(&launch)?;
    let process = Process::child(pid)?;
    let ended = timeout(DEADLINE, process.exited()).await;
    let Ok(exit) = ended else {
        let reason = format!("it does not run a guest: no end within {DEADLINE:?}");
        return Err(unusable(program, reason));
    };
    let exit = exit?;
    let mut printed = vec![0; MOST_OUTPUT];
    let length = output.read_at(&mut printed, 0).unwrap_or_default();
    let is_word = |window: &[u8]| window == guest::WORD;
    if printed[..length].windows(guest::WORD.len()).any(is_word) {
        return Ok(());
    }
    let words = read_tail(&output).unwrap_or_default();
    let reason = format!("it does not run a guest: {exit}: {words}");
    Err(unusable(program, reason))
}
