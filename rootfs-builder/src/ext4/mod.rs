//! ext4 file systems by `mke2fs -d` (package e2fsprogs, 1.45 or newer).
//!
//! mke2fs takes owners and times from the tree, and some of its own from the
//! clock. Both are set here afterwards, in the inodes: no file system of ours
//! has checksums of its metadata, for dm-verity is the better one. Features,
//! UUID, hash seed and size are said outright, whatever the machine's
//! mke2fs.conf has. There is no journal: the root is read-only.

mod inodes;
mod size;

use crate::digest::Digest;
use crate::tool::{Tool, ToolError};
use crate::tree::{self, Survey, TreeError};
use crate::uuid::Uuid;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use inodes::LayoutError;

/// In bytes.
const BLOCK: u64 = 4096;
/// What a read-only root needs; nothing that changes between versions.
const FEATURES: &str =
    "none,extent,filetype,sparse_super,large_file,huge_file,dir_nlink,extra_isize";

/// What becomes a file system.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tree; the file system's root is this directory.
    pub tree: PathBuf,
    /// The file system's file.
    pub output: PathBuf,
    /// The time of every entry, in seconds since 1970.
    pub source_date_epoch: u32,
    /// How long mke2fs may take before it is killed.
    pub deadline: Duration,
}

/// Why no file system was made.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// The tree cannot become a file system.
    #[error("look through the tree")]
    Tree(#[from] TreeError),
    /// mke2fs failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// mke2fs made something else than it was asked for.
    #[error("set owners and times")]
    Layout(#[from] LayoutError),
    /// A call failed.
    #[error("{0}")]
    Call(&'static str, #[source] io::Error),
}

/// Makes an ext4 file system of a tree.
///
/// # Errors
/// See [`Ext4Error`]. What lies at `output` is then of no use.
pub fn build(request: &Request) -> Result<Uuid, Ext4Error> {
    let survey = tree::survey(&request.tree)?;
    let needed = size::of_tree(&request.tree)
        .map_err(|source| Ext4Error::Call("measure the tree", source))?;
    run_mke2fs(request, &survey, needed)?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(&request.output)
        .map_err(|source| Ext4Error::Call("open the file system", source))?;
    inodes::settle(&file, request.source_date_epoch)?;
    file.sync_all()
        .map_err(|source| Ext4Error::Call("sync the file system", source))?;
    Ok(survey.uuid())
}

fn run_mke2fs(request: &Request, survey: &Survey, needed: size::Needed) -> Result<(), Ext4Error> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|source| Ext4Error::Call("find the current directory", source))
    };
    // Of directories that mke2fs would hash; ours are too small for it.
    let hash_seed = Uuid::of(&Digest::of_both(b"hash seed", survey.digest.as_bytes()));
    let mut tool = Tool {
        name: "mke2fs",
        package: "e2fsprogs",
        arguments: ["-q", "-F", "-O", FEATURES, "-I", "256", "-m", "0"]
            .map(Into::into)
            .to_vec(),
        environment: vec![
            ("MKE2FS_CONFIG", "/dev/null".into()),
            // Its clock: the second name is that of older versions, for which
            // zero means none.
            ("SOURCE_DATE_EPOCH", request.source_date_epoch.to_string()),
            (
                "E2FSPROGS_FAKE_TIME",
                request.source_date_epoch.max(1).to_string(),
            ),
        ],
    };
    let further = [
        "-b".into(),
        BLOCK.to_string(),
        "-N".into(),
        needed.inodes.to_string(),
        "-U".into(),
        survey.uuid().to_string(),
        "-E".into(),
        format!("hash_seed={hash_seed},root_owner=0:0,lazy_itable_init=0,nodiscard"),
        "-d".into(),
    ];
    tool.arguments.extend(further.map(Into::into));
    tool.arguments.push(absolute(&request.tree)?.into());
    tool.arguments.push(absolute(&request.output)?.into());
    tool.arguments.push(needed.blocks.to_string().into());
    Ok(tool.run(request.deadline)?)
}

#[cfg(test)]
mod tests;
