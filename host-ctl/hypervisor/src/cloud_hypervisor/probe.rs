//! Which Cloud Hypervisor there is, and whether it can be used here.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::launch::arguments;
use super::vmm::path;
use crate::error::{Error, quote};
use crate::log::last_line;
use crate::process::{Confinement, Launch, Needs, Process, User, landlock_version, spawn};
use crate::program::{FileIdentity, KVM, find, open_kvm, unusable};
use crate::rest::{Request, RestVmm};
use crate::socket::Listener;

pub use crate::program::Version;

/// The program's name on PATH.
const PROGRAM: &str = "cloud-hypervisor";
/// What loads RAM on demand without a privilege (userfaultfd(2), Linux 6.1).
const USERFAULTFD: &str = "/dev/userfaultfd";
/// How long it may take to start and to answer: it opens /dev/kvm and no more.
const DEADLINE: Duration = Duration::from_secs(10);
/// The oldest version whose behaviour was tried.
const OLDEST: Version = Version {
    major: 53,
    minor: 0,
};
/// The version of Landlock without which the VMM confines itself to nothing and
/// fails (vmm/src/landlock.rs of Cloud Hypervisor); Linux 6.2.
const OLDEST_LANDLOCK: u32 = 3;

/// What was found. It can be kept and given to the next [`probe`], which does
/// not start the program again while that is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its version with the builder's additions, as it gives it.
    pub version_text: String,
    /// Whether RAM can be loaded on demand: its user may open /dev/userfaultfd.
    pub loads_on_demand: bool,
    /// Whether it can keep itself to the files it was given (Landlock).
    pub confines_files: bool,
    identity: FileIdentity,
}

/// Finds Cloud Hypervisor: the given program, or else $CLOUD_HYPERVISOR, or else
/// the first on PATH. Takes some milliseconds, starting it once some more, when it
/// is confined like this. That
/// KVM runs a guest is only known when one was booted: a host that is itself a
/// VM may have /dev/kvm and still fail.
///
/// # Errors
/// [`Error::Probe`] when there is none that can be used, or /dev/kvm can't be
/// opened.
pub async fn probe(
    program: Option<&Path>,
    known: Option<&Probe>,
    confinement: &Confinement,
) -> Result<Probe, Error> {
    let program = find(program, "CLOUD_HYPERVISOR", PROGRAM)?;
    let identity = FileIdentity::of(&program)?;
    open_kvm().map_err(|error| unusable(&program, format!("open {KVM}: {error}")))?;
    let known = known.filter(|known| known.program == program && known.identity == identity);
    let (version, version_text) = match known {
        Some(known) => (known.version, known.version_text.clone()),
        None => ask(&program, confinement).await?,
    };
    Ok(Probe {
        program,
        version,
        version_text,
        loads_on_demand: OpenOptions::new()
            .read(true)
            .write(true)
            .open(USERFAULTFD)
            .is_ok(),
        confines_files: landlock_version() >= OLDEST_LANDLOCK,
        identity,
    })
}

/// Starts it, without a VM, and asks who it is.
async fn ask(program: &Path, confinement: &Confinement) -> Result<(Version, String), Error> {
    let directory = PrivateDirectory::create()?;
    let socket = directory.0.join("api");
    let log = directory.0.join("log");
    let listener = Listener::bind(&socket)?;
    let log_file = crate::log::open_log(&log)?;
    let cell = confinement.cell(Needs::default())?;
    let inherited: Vec<_> = std::iter::once(listener.descriptor.as_fd())
        .chain(confinement.user().map(User::lock))
        .collect();
    let pid = spawn(&Launch {
        program,
        arguments: &arguments(listener.descriptor.as_raw_fd()),
        inherited: &inherited,
        placed: &[],
        log: &log_file,
        output: None,
        keeps: None,
        filter: None,
        cell: cell.as_ref(),
        cgroup: None,
    })?;
    let vmm = RestVmm {
        process: Process::child(pid)?,
        socket,
        log: log.clone(),
    };
    let asked = vmm.ask("probe", Request::get(path::PING), DEADLINE).await;
    let words = last_line(&log);
    vmm.process.kill().await?;
    let answer = asked.map_err(|error| {
        let words = if words.is_empty() {
            words
        } else {
            format!(": {words}")
        };
        unusable(
            program,
            format!("it was started and did not tell its version: {error}{words}"),
        )
    })?;
    let (version, text) =
        parse(&answer).ok_or_else(|| unusable(program, "its answer has no version".to_owned()))?;
    if version < OLDEST {
        let reason = format!("version {version} is older than {OLDEST}");
        return Err(unusable(program, reason));
    }
    Ok((version, text))
}

/// `{"build_version": "v53.0", "version": "53.0.0", ...}`.
fn parse(answer: &Value) -> Option<(Version, String)> {
    let version = Version::parse(answer["version"].as_str()?)?;
    let text = answer["build_version"].as_str()?;
    Some((version, quote(text)))
}

/// A directory for us alone, removed when this is dropped.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn create() -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let mut random = [0; 16];
        let flags = rustix::rand::GetRandomFlags::empty();
        rustix::rand::getrandom(&mut random, flags).map_err(Error::process("getrandom"))?;
        let name = format!("probe-{:032x}", u128::from_ne_bytes(random));
        let path = std::env::temp_dir().join(name);
        let created = std::fs::DirBuilder::new().mode(0o700).create(&path);
        created.map_err(Error::path("mkdir", &path))?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // Nothing is left to be done about a directory that can't be removed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_version_is_read_from_the_answer_and_nothing_else_is() {
        let answer = json!({"build_version": "v53.0-dirty", "version": "53.0.0", "pid": 1});
        let wanted = Version {
            major: 53,
            minor: 0,
        };
        assert_eq!(parse(&answer), Some((wanted, "v53.0-dirty".to_owned())));
        for other in [
            json!({}),
            json!({"version": 53}),
            json!({"version": "53", "build_version": "v53"}),
            json!({"version": "x.y", "build_version": "v53"}),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = probe(Some(Path::new("/no/such")), None, &Confinement::Insecure)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
    }
}
