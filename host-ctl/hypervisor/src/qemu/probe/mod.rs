//! Which QEMU there is, and whether KVM really runs the guest's kernel: a host
//! that is itself a VM may have /dev/kvm and still fail on the first guest, so
//! a guest is started and must be heard.

mod accelerator;
mod version;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command_line::Platform;
use crate::error::Error;
use crate::process::Confinement;
use crate::program::{FileIdentity, find};

pub use crate::program::Version;
use accelerator::Tried;

pub use accelerator::AcceleratorProbe;

/// The program's name on PATH.
const PROGRAM: &str = "qemu-system-x86_64";

/// What to look for.
#[derive(Debug, Clone)]
pub struct ProbeRequest<'a> {
    /// The program; `None` takes $QEMU, or else the first on PATH.
    pub program: Option<PathBuf>,
    /// The kernel that KVM must run; `None` asks for emulation.
    pub kernel: Option<&'a Path>,
    /// The kernel's digest, by which the answer is kept.
    pub kernel_digest: &'a str,
}

/// What was found. It can be kept and given to the next [`probe`], which looks
/// again only where something it depends on has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its version with the packager's additions, as it prints it.
    pub version_text: String,
    /// How guests are run.
    pub accelerator: AcceleratorProbe,
    identity: FileIdentity,
}

impl Probe {
    /// What a command line for it is made for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            accelerator: self.accelerator.accelerator,
            version: self.version,
        }
    }
}

/// Finds QEMU and an accelerator. Takes some milliseconds when nothing has
/// changed since `known`, at most some seconds otherwise. Whatever is started is
/// confined like this.
///
/// # Errors
/// [`Error::Probe`] when there is no QEMU that can be used. That KVM can't be
/// used is no error: the result says why.
pub async fn probe(
    request: &ProbeRequest<'_>,
    known: Option<&Probe>,
    confinement: &Confinement,
) -> Result<Probe, Error> {
    let program = find(request.program.as_deref(), "QEMU", PROGRAM)?;
    let identity = FileIdentity::of(&program)?;
    let known = known.filter(|known| known.program == program && known.identity == identity);
    let (version, version_text) = match known {
        Some(known) => (known.version, known.version_text.clone()),
        None => version::ask(&program, confinement).await?,
    };
    let known = known.map(|known| &known.accelerator);
    let tried = Tried {
        program: &program,
        version,
        confinement,
    };
    let accelerator = accelerator::probe(request, tried, &version_text, known).await;
    Ok(Probe {
        program,
        version,
        version_text,
        accelerator,
        identity,
    })
}
