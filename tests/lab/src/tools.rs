//! What the lab is made of: looked for, all of it, before anything starts.

use crate::arguments::KernelArguments;
use crate::error::LabError;
use kernel_config::{ConfigError, KernelConfig, check_nested_host, nested_host_modules};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the distributions put virtiofsd, which is on nobody's PATH.
const VIRTIOFSD_PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    // The C program of QEMU before 8.0: Debian 12, Ubuntu 22.04.
    "/usr/lib/qemu/virtiofsd",
];

/// The two programs called virtiofsd. Their options differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// Of QEMU before 8.0. It hands O_NOATIME, which an overlay opens its lower
    /// files with, down to the kernel, which grants it to a file's owner only:
    /// not good enough for a user who is not root.
    Qemu,
    /// The crate of that name, and what its version has options for.
    Crate {
        /// Mount points are announced unless this is said. To the nested host
        /// they would be automounts, which an overlay cannot be laid over.
        no_announce_submounts: bool,
        /// Writing is refused by the daemon as well.
        readonly: bool,
    },
}

/// The programs and files of a nested host.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) qemu: PathBuf,
    pub(crate) virtiofsd: PathBuf,
    pub(crate) flavour: Flavour,
    pub(crate) unshare: PathBuf,
    pub(crate) busybox: PathBuf,
    pub(crate) vmlinuz: PathBuf,
    pub(crate) modules: PathBuf,
    /// What makes the kernel a host's, in the order in which it is loaded.
    pub(crate) load: Vec<&'static str>,
    /// Whether the lab runs as root; else its file system daemons are root in a
    /// user namespace.
    pub(crate) root: bool,
}

impl Tools {
    /// Finds everything, or tells all that is missing at once.
    ///
    /// # Errors
    /// [`LabError::Missing`].
    pub(crate) fn find(arguments: &KernelArguments) -> Result<Self, LabError> {
        let mut missing = Vec::new();
        if std::env::consts::ARCH != "x86_64" {
            missing.push(format!(
                "an x86_64 machine: this is {}, and the lab emulates AMD's virtualisation with the host's own kernel packages",
                std::env::consts::ARCH
            ));
        }
        let root = rustix::process::geteuid().is_root();
        let mut program = |name: &str, package: &str| {
            on_path(name).unwrap_or_else(|| {
                missing.push(format!("{name} (package {package})"));
                PathBuf::new()
            })
        };
        let qemu = program("qemu-system-x86_64", "qemu-system-x86");
        let unshare = program("unshare", "util-linux");
        let busybox = program("busybox", "busybox-static");
        let vmlinuz = arguments.kernel.join("vmlinuz");
        let modules = arguments.kernel.join("modules");
        for path in [&vmlinuz, &modules.join("modules.dep")] {
            if !path.exists() {
                missing.push(format!(
                    "{} (kernel-config/fetch-distro-kernel.sh puts it there)",
                    path.display()
                ));
            }
        }
        let load = host_modules(&arguments.kernel.join("config"), &mut missing);
        let virtiofsd = find_virtiofsd(arguments.tools.as_deref(), root, &mut missing);
        if !missing.is_empty() {
            return Err(LabError::Missing(missing));
        }
        let (virtiofsd, flavour) = virtiofsd.unwrap_or((PathBuf::new(), Flavour::Qemu));
        Ok(Self {
            qemu,
            virtiofsd,
            flavour,
            unshare,
            busybox,
            vmlinuz,
            modules,
            load,
            root,
        })
    }
}

impl fmt::Display for Tools {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = match self.flavour {
            Flavour::Qemu => "QEMU's own, for root",
            Flavour::Crate { .. } => "the crate's",
        };
        let user = if self.root {
            "root"
        } else {
            "root of a user namespace"
        };
        write!(
            out,
            "emulator {}, file system daemon {} ({flavour}) as {user}, kernel {}",
            self.qemu.display(),
            self.virtiofsd.display(),
            self.vmlinuz.display()
        )
    }
}

/// Checks the kernel's configuration.
fn host_modules(path: &Path, missing: &mut Vec<String>) -> Vec<&'static str> {
    let config = std::fs::read_to_string(path)
        .map_err(|error| error.to_string())
        .and_then(|text| text.parse().map_err(|error: ConfigError| error.to_string()));
    let config: KernelConfig = match config {
        Ok(config) => config,
        Err(error) => {
            missing.push(format!("{}: {error}", path.display()));
            return Vec::new();
        }
    };
    for lack in check_nested_host(&config).missing {
        missing.push(format!(
            "CONFIG_{} in {}: {}",
            lack.option,
            path.display(),
            lack.why
        ));
    }
    nested_host_modules(Some(&config)).collect()
}

/// `$VIRTIOFSD`, else the first that serves this user.
fn find_virtiofsd(
    tools: Option<&Path>,
    root: bool,
    missing: &mut Vec<String>,
) -> Option<(PathBuf, Flavour)> {
    if let Some(named) = std::env::var_os("VIRTIOFSD").filter(|name| !name.is_empty()) {
        let path = PathBuf::from(named);
        let flavour = flavour(&path);
        if flavour.is_none() {
            missing.push(format!(
                "VIRTIOFSD={}: it does not run, or is no virtiofsd",
                path.display()
            ));
        }
        return flavour.map(|flavour| (path, flavour));
    }
    let own = tools.map(|directory| directory.join("virtiofsd"));
    let places = VIRTIOFSD_PLACES.map(|place| Some(place.into()));
    let mut unfit = None;
    for path in [own, on_path("virtiofsd")]
        .into_iter()
        .chain(places)
        .flatten()
    {
        match flavour(&path) {
            Some(Flavour::Qemu) if !root => unfit = Some(path),
            Some(flavour) => return Some((path, flavour)),
            None => {}
        }
    }
    missing.push(match unfit {
        Some(path) => format!(
            "virtiofsd: {} is QEMU's old one and serves root only; `make lab` builds the crate's",
            path.display()
        ),
        None => "virtiofsd (package qemu-system-common or virtiofsd, or let `make lab` build one)"
            .into(),
    });
    None
}

/// Which virtiofsd a program is, told by the options it knows.
fn flavour(path: &Path) -> Option<Flavour> {
    let output = Command::new(path).arg("--help").output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    if text.contains("--shared-dir") {
        Some(Flavour::Crate {
            no_announce_submounts: text.contains("--no-announce-submounts"),
            readonly: text.contains("--readonly"),
        })
    } else if text.contains("-o source=PATH") {
        Some(Flavour::Qemu)
    } else {
        None
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| {
            rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
        })
}
