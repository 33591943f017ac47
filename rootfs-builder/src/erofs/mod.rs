//! EROFS images by `mkfs.erofs` (package erofs-utils, 1.5 or newer).
//!
//! Fixed by us, so that the same tree gives the same bytes: the time of every
//! file, root as every owner, and the file system's UUID, which is made of the
//! tree's digest. mkfs.erofs itself sorts directories.

use crate::compression::Compression;
use crate::digest::Digest;
use crate::output::{OutputError, Partial};
use crate::tool::{self, Streams, Tool, ToolError};
use crate::tree::{self, TreeError};
use crate::uuid::Uuid;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest help that is read, in bytes.
const MAX_HELP_BYTES: usize = 64 << 10;

/// How file data is stored.
///
/// `None` is the default: an emulated guest read the whole of a 22 MB image in
/// 0.18 s plain and in 0.27 s packed (to 13 MB); mounting took the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// As it is.
    #[default]
    None,
    /// LZ4, packed as well as it goes (`lz4hc`); needs a kernel with
    /// EROFS_FS_ZIP.
    Lz4,
    /// Zstandard; needs erofs-utils 1.8 built with it, and a kernel of 6.10 or
    /// newer with EROFS_FS_ZIP_ZSTD.
    Zstd,
}

impl Packing {
    /// The compressor's name, and what mkfs.erofs is told.
    fn compressor(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::None => None,
            Self::Lz4 => Some(("lz4hc", "-zlz4hc,12")),
            // Beyond level 19 unpacking takes more memory than a small guest
            // has to spare.
            Self::Zstd => Some(("zstd", "-zzstd,level=19")),
        }
    }
}

impl From<Packing> for Compression {
    fn from(packing: Packing) -> Self {
        match packing {
            Packing::None => Self::None,
            Packing::Lz4 => Self::Lz4,
            Packing::Zstd => Self::Zstd,
        }
    }
}

/// What becomes an image.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tree; the image's root is this directory.
    pub tree: PathBuf,
    /// The image.
    pub output: PathBuf,
    /// How file data is stored.
    pub packing: Packing,
    /// The time of every entry, in seconds since 1970.
    pub source_date_epoch: u32,
    /// How long mkfs.erofs may take before it is killed.
    pub deadline: Duration,
}

/// What became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// Of the image.
    pub sha256: Digest,
    /// Of the image in bytes.
    pub size: u64,
    /// Of the tree: see [`tree::Survey::digest`].
    pub tree_sha256: Digest,
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes in the tree's files.
    pub bytes: u64,
    /// The file system's UUID.
    pub uuid: Uuid,
}

/// Why no image was written. What had been written is gone again.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The tree cannot become an image.
    #[error("look through the tree")]
    Tree(#[from] TreeError),
    /// The image would lie inside the tree it is made of.
    #[error("write {0}: it lies inside the tree")]
    Inside(PathBuf),
    /// The image cannot be written.
    #[error("write the image")]
    Output(#[from] OutputError),
    /// A call failed.
    #[error("{call}")]
    Call {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// mkfs.erofs failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The compressor is not built into it.
    #[error(
        "this mkfs.erofs cannot compress with {0}: it has {1} (for zstd, erofs-utils 1.8 or newer \
         built with libzstd)"
    )]
    Compressor(&'static str, String),
    /// The image was not of use: mkfs.erofs 1.5 does not always notice a full
    /// disk.
    #[error("mkfs.erofs wrote no file system: is the disk full?")]
    NoFileSystem,
}

/// Makes an EROFS image of a tree.
///
/// # Errors
/// See [`ErofsError`].
pub fn build(request: &Request) -> Result<Image, ErofsError> {
    let tree = canonical("find the tree", &request.tree)?;
    let directory = match request.output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if canonical("find the output's directory", directory)?.starts_with(&tree) {
        return Err(ErofsError::Inside(request.output.clone()));
    }
    let survey = tree::survey(&tree)?;
    let uuid = survey.uuid();
    let mut partial = Partial::create(&request.output)?;
    run_mkfs(request, &tree, &uuid, partial.path())?;
    check_superblock(partial.file())?;
    let (sha256, size) =
        Digest::of_reader(rewound(partial.file())?).map_err(call("read the image"))?;
    partial.commit()?;
    Ok(Image {
        sha256,
        size,
        tree_sha256: survey.digest,
        entries: survey.entries,
        bytes: survey.bytes,
        uuid,
    })
}

fn run_mkfs(request: &Request, tree: &Path, uuid: &Uuid, image: &Path) -> Result<(), ErofsError> {
    let mut tool = Tool {
        name: "mkfs.erofs",
        package: "erofs-utils",
        arguments: vec![
            "--quiet".into(),
            "--all-root".into(),
            format!("-T{}", request.source_date_epoch).into(),
            format!("-U{uuid}").into(),
            // Attributes of the tree are refused by the survey; those of the
            // machine (security labels) must not show.
            "-x-1".into(),
        ],
        environment: Vec::new(),
    };
    if let Some((name, option)) = request.packing.compressor() {
        let known = compressors(request.deadline)?;
        if !known.iter().any(|known| known == name) {
            return Err(ErofsError::Compressor(name, known.join(", ")));
        }
        tool.arguments.push(option.into());
    }
    tool.arguments.push(absolute(image)?.into());
    tool.arguments.push(tree.into());
    Ok(tool.run(request.deadline)?)
}

/// The compressors of this machine's mkfs.erofs, as its help lists them.
fn compressors(deadline: Duration) -> Result<Vec<String>, ErofsError> {
    let mut help = tool::command("mkfs.erofs");
    help.arg("--help");
    // Older versions have it among their complaints.
    let help = tool::listen(
        ("mkfs.erofs", "erofs-utils"),
        help,
        Streams::Both,
        deadline,
        MAX_HELP_BYTES,
    )?;
    Ok(listed(&String::from_utf8_lossy(&help)))
}

/// Up to version 1.7 a line "Available compressors are: lz4hc, lz4". Since then a
/// line for each, such as "    zstd[,level=<0-22>]  ...", after one that ends in
/// "compressor" and "supported".
fn listed(help: &str) -> Vec<String> {
    let names = |text: &str| {
        let words = text.split([',', ' ', '[', '(', ';']);
        let words = words.map(str::trim).filter(|word| !word.is_empty());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    if let Some((_, list)) = help.split_once("Available compressors are:") {
        return names(list.lines().next().unwrap_or_default());
    }
    let known = ["lz4", "lz4hc", "lzma", "deflate", "libdeflate", "zstd"];
    let mut found: Vec<String> = help
        .lines()
        .filter_map(|line| names(line).into_iter().next())
        .filter(|name| known.contains(&name.as_str()))
        .collect();
    found.dedup();
    found
}

/// The magic number at 1024 of fs/erofs/erofs_fs.h, little-endian.
fn check_superblock(image: &File) -> Result<(), ErofsError> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 4];
    match image.read_exact_at(&mut magic, 1024) {
        Ok(()) if u32::from_le_bytes(magic) == 0xe0f5_e1e2 => Ok(()),
        Ok(()) => Err(ErofsError::NoFileSystem),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ErofsError::NoFileSystem),
        Err(source) => Err(call("read the image")(source)),
    }
}

fn rewound(mut file: &File) -> Result<&File, ErofsError> {
    io::Seek::rewind(&mut file).map_err(call("seek"))?;
    Ok(file)
}

fn canonical(what: &'static str, path: &Path) -> Result<PathBuf, ErofsError> {
    path.canonicalize().map_err(call(what))
}

/// A path that cannot be taken for an option.
fn absolute(path: &Path) -> Result<PathBuf, ErofsError> {
    std::path::absolute(path).map_err(call("find the current directory"))
}

fn call(call: &'static str) -> impl FnOnce(io::Error) -> ErofsError {
    move |source| ErofsError::Call { call, source }
}

#[cfg(test)]
mod tests;
