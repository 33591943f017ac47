//! The directories the nested host sees: a file system daemon for each.

use crate::error::{At, LabError};
use crate::tools::{Flavour, Tools};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A running daemon. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Share {
    /// The name the nested host mounts it by.
    pub(crate) tag: String,
    /// Where it serves.
    pub(crate) socket: PathBuf,
    /// Where it logs.
    pub(crate) log: PathBuf,
    /// The process.
    pub(crate) daemon: Child,
}

/// What is shared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    /// All that is mounted, read-only, through an empty directory.
    Root(&'a Path),
    /// A directory, to be written to.
    Directory(&'a Path),
}

impl Share {
    /// Starts a daemon for `what`, with its files in `directory`.
    ///
    /// # Errors
    /// When it cannot be started. One that ends later is seen by its process.
    pub(crate) fn start(
        tools: &Tools,
        own: &Path,
        tag: String,
        what: What<'_>,
        directory: &Path,
    ) -> Result<Self, LabError> {
        let socket = directory.join(format!("{tag}.socket"));
        let log = directory.join(format!("{tag}.log"));
        // It listens before it is there: nobody has to wait for it to appear.
        let listener: OwnedFd = UnixListener::bind(&socket).at("bind", &socket)?.into();
        let file = std::fs::File::create(&log).at("create", &log)?;
        let mut command = Command::new(&tools.unshare);
        if !tools.root {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--propagation", "private", "--"]);
        command.arg(own).arg("child");
        if let What::Root(view) = what {
            command.arg("--root-view").arg(view);
        }
        let errors = file.try_clone().at("create", &log)?;
        let daemon = command
            .arg("--")
            .args(virtiofsd(tools, what))
            .stdin(Stdio::from(listener))
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| LabError::Spawn {
                program: tools.unshare.clone(),
                source,
            })?;
        Ok(Self {
            tag,
            socket,
            log,
            daemon,
        })
    }
}

/// The daemon's command line. What it serves read-only does not change while
/// it serves, so that the nested host may keep all it has seen.
fn virtiofsd(tools: &Tools, what: What<'_>) -> Vec<OsString> {
    let (path, cache, is_root) = match what {
        What::Root(path) => (path, "always", true),
        What::Directory(path) => (path, "auto", false),
    };
    let mut words: Vec<OsString> = vec![tools.virtiofsd.clone().into(), "--fd=0".into()];
    match tools.flavour {
        Flavour::Qemu => {
            words.extend(["-f".into(), "-o".into(), format!("cache={cache}").into()]);
            let mut source = OsString::from("source=");
            source.push(path);
            words.extend(["-o".into(), source]);
        }
        Flavour::Crate {
            no_announce_submounts,
            readonly,
        } => {
            words.extend([
                "--sandbox=namespace".into(),
                format!("--cache={cache}").into(),
            ]);
            if no_announce_submounts {
                words.push("--no-announce-submounts".into());
            }
            if readonly && is_root {
                words.push("--readonly".into());
            }
            words.extend(["--shared-dir".into(), path.into()]);
        }
    }
    words
}
