//! The distribution's busybox, static, with a link for each of its applets.

use crate::archive::{Archive, ArchiveError, Content, Entry, EntryPath, PathError};
use crate::elf::{self, ElfError};
use crate::input::{self, InputError};
use crate::manifest::{Input, Role};
use crate::tool::{self, Streams, ToolError};
use std::path::PathBuf;
use std::time::Duration;

/// Far above any busybox, in bytes.
const MAX_BYTES: usize = 64 << 20;
/// The longest list of applets, in bytes.
const MAX_LIST_BYTES: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(30);
/// Names another program than the one on PATH.
const VARIABLE: &str = "BUSYBOX";
const PACKAGE: &str = "busybox-static";
const HOME: &str = "bin/busybox";

/// Why busybox is no base.
#[derive(Debug, thiserror::Error)]
pub enum BusyboxError {
    /// It is not there.
    #[error("find busybox on PATH or by ${VARIABLE} (package {PACKAGE})")]
    Missing,
    /// It cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// It would not run by itself.
    #[error("use {path} (is it of the package {PACKAGE}?)")]
    Elf {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// It does not say what it can do.
    #[error("ask busybox for its applets")]
    Tool(#[from] ToolError),
    /// An applet has an odd name.
    #[error("make a link for an applet")]
    Path(#[from] PathError),
    /// An entry cannot be in an image.
    #[error("put the base together")]
    Archive(#[from] ArchiveError),
}

/// Its entries and itself.
pub(super) fn load() -> Result<(Archive, Input), BusyboxError> {
    let path = find().ok_or(BusyboxError::Missing)?;
    let bytes = input::read_regular(&path, MAX_BYTES)?;
    elf::static_program(&bytes).map_err(|source| BusyboxError::Elf {
        path: path.clone(),
        source,
    })?;
    let mut list = tool::command(&path);
    list.arg("--list-full");
    let list = tool::listen(
        ("busybox", PACKAGE),
        list,
        Streams::Output,
        DEADLINE,
        MAX_LIST_BYTES,
    )?;
    let input = Input::new(Role::Base, "/bin/busybox", &bytes);
    let mut archive = Archive::default();
    let mut add = |path: EntryPath, permissions, content| {
        archive.put(
            path,
            Entry {
                permissions,
                content,
            },
        )
    };
    for applet in String::from_utf8_lossy(&list).lines() {
        let link = Content::Symlink(format!("/{HOME}"));
        add(applet.parse()?, 0o777, link)?;
    }
    // Last: among the applets is its own name.
    add(HOME.parse()?, 0o755, Content::File(bytes))?;
    Ok((archive, input))
}

/// The program that would be started.
fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        return Some(named.into());
    }
    let path = tool::search_path();
    std::env::split_paths(&path)
        .map(|directory| directory.join("busybox"))
        .find(|program| program.is_file())
}
