//! Debian by mmdebstrap, as an ordinary user: the archive it writes is a layer.

use super::layer::{Capped, LayerError, Layers};
use crate::digest::Measured;
use crate::manifest::{Input, Role};
use crate::tool::{Tool, ToolError};
use std::fs::File;
use std::io;
use std::time::Duration;

/// Packages come over a network, and their scripts run.
const DEADLINE: Duration = Duration::from_secs(3600);
/// Of this machine: mmdebstrap copies them, so that names are found meanwhile.
const LOCAL_FILES: [&str; 2] = ["etc/hostname", "etc/resolv.conf"];

/// Why there is no such base.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    /// A suite or package that is none by its name.
    #[error("{0:?} is no name of a suite or package")]
    Name(String),
    /// mmdebstrap failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A call failed.
    #[error("{0}")]
    Call(&'static str, #[source] io::Error),
    /// Its archive cannot be used.
    #[error("read what mmdebstrap made")]
    Layer(#[from] LayerError),
}

/// A Debian of its essential packages and others.
pub(super) fn load(
    suite: &str,
    packages: &[String],
    source_date_epoch: u32,
) -> Result<(Layers, Input), DebianError> {
    for name in packages.iter().map(String::as_str).chain([suite]) {
        if !is_name(name) {
            return Err(DebianError::Name(name.chars().take(128).collect()));
        }
    }
    let directory = tempfile::Builder::new()
        .prefix("rootfs-builder.")
        .tempdir()
        .map_err(|source| DebianError::Call("create a temporary directory", source))?;
    let output = directory.path().join("base.tar");
    let mut tool = Tool {
        name: "mmdebstrap",
        package: "mmdebstrap",
        arguments: [
            // Root, too, has no mounts made but in a namespace. For others
            // it finds what there is: user namespaces, or fakechroot.
            if rustix::process::geteuid().is_root() {
                "--mode=unshare"
            } else {
                "--mode=auto"
            },
            "--variant=essential",
            "--format=tar",
            "--quiet",
            // The kernel makes its own; an image holds none.
            "--skip=output/dev,output/mknod",
        ]
        .map(Into::into)
        .to_vec(),
        environment: vec![("SOURCE_DATE_EPOCH", source_date_epoch.to_string())],
    };
    if !packages.is_empty() {
        let list = format!("--include={}", packages.join(","));
        tool.arguments.push(list.into());
    }
    tool.arguments.push(suite.into());
    tool.arguments.push(output.clone().into());
    tool.run(DEADLINE)?;
    let file = File::open(&output)
        .map_err(|source| DebianError::Call("open what mmdebstrap made", source))?;
    let mut layers = Layers::default();
    let capped = Capped {
        from: io::BufReader::with_capacity(1 << 20, file),
        left: layers.room().saturating_mul(2),
    };
    let measured = layers.apply(Measured::new(capped))?;
    for path in LOCAL_FILES {
        if let Ok(path) = path.parse() {
            layers.archive.remove(&path);
        }
    }
    let input = Input {
        role: Role::Base,
        name: format!("base debian {suite}"),
        size: measured.length(),
        sha256: measured.digest(),
    };
    Ok((layers, input))
}

/// As Debian's policy has the names of packages; nothing that is taken for an
/// option, a list or a path.
fn is_name(text: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let rest = |byte: u8| first(byte) || matches!(byte, b'+' | b'-' | b'.');
    text.bytes().next().is_some_and(first) && text.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_option_no_list_and_no_path() {
        for name in ["bookworm", "libstdc++6", "python3.11"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "-x",
            "a,b",
            "a b",
            "a/b",
            "A",
            "--include=x",
            "a:b",
            "a\n",
        ] {
            assert!(!is_name(name), "{name}");
            assert!(matches!(load(name, &[], 0), Err(DebianError::Name(_))));
        }
    }
}
