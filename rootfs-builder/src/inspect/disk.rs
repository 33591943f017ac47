//! A disk: a file system by itself, or a partition table with one.

use crate::digest::Digest;
use crate::disk::gpt::{RESERVED_SECTORS, SECTOR, Table, TableError};
use crate::uuid::Uuid;
use crate::verity::{BLOCK, HASH_START, Superblock};
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;

/// What is on a disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskListing {
    /// Of the file.
    pub sha256: Digest,
    /// In bytes.
    pub size: u64,
    /// The disk's UUID, if it has a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its partitions; without a table one that is the disk.
    pub partitions: Vec<PartitionLine>,
}

/// A partition.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionLine {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// In bytes.
    pub size: u64,
    /// Its name, escaped.
    pub name: String,
    /// Its UUID, if there is a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// The file system in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystem>,
    /// The hash tree in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_tree: Option<HashTree>,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// `ext4` or `erofs`.
    pub kind: &'static str,
    /// From its superblock.
    pub uuid: Uuid,
}

/// A hash tree, as it says itself; `verify` looks whether it is true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HashTree {
    /// Of its top block.
    pub root_hash: Digest,
    /// What each digest starts with.
    pub salt: Digest,
    /// What is covered, in blocks of 4096 bytes.
    pub data_blocks: u64,
}

/// Why a disk cannot be listed.
#[derive(Debug)]
pub(super) enum Problem {
    Table(TableError),
    Read(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Whether the file starts like a disk: with a table, or a file system.
pub(super) fn is_disk(file: &File) -> io::Result<bool> {
    let start = read(file, 0, 8 << 10)?;
    let table = start.get(SECTOR as usize..SECTOR as usize + 8) == Some(b"EFI PART");
    Ok(table || file_system(&start).is_some())
}

/// Lists it.
pub(super) fn list(mut file: File) -> Result<DiskListing, Problem> {
    file.rewind()?;
    let (sha256, size) = Digest::of_reader(&file)?;
    let start = read(&file, 0, RESERVED_SECTORS * SECTOR)?;
    let (uuid, partitions) = match Table::read(&start) {
        Ok(table) => (Some(table.uuid), table.partitions),
        Err(TableError::None) => (None, Vec::new()),
        Err(error) => return Err(Problem::Table(error)),
    };
    let mut lines = Vec::new();
    if uuid.is_none() {
        lines.push(line(&file, 0, size, String::new(), None)?);
    }
    for partition in partitions {
        let (offset, size) = (partition.first * SECTOR, partition.sectors * SECTOR);
        let name = partition.name.escape_default().to_string();
        lines.push(line(&file, offset, size, name, Some(partition.uuid))?);
    }
    Ok(DiskListing {
        sha256,
        size,
        uuid,
        partitions: lines,
    })
}

fn line(
    file: &File,
    offset: u64,
    size: u64,
    name: String,
    uuid: Option<Uuid>,
) -> io::Result<PartitionLine> {
    let start = read(file, offset, size.min(2 * BLOCK as u64))?;
    Ok(PartitionLine {
        offset,
        size,
        name,
        uuid,
        file_system: file_system(&start),
        hash_tree: hash_tree(&start),
    })
}

fn file_system(start: &[u8]) -> Option<FileSystem> {
    let superblock = start.get(1024..2048)?;
    let (kind, at) = if superblock.starts_with(&0xe0f5_e1e2_u32.to_le_bytes()) {
        // fs/erofs/erofs_fs.h
        ("erofs", 48)
    } else if superblock[56..58] == 0xef53_u16.to_le_bytes() {
        // Documentation/filesystems/ext4/super.rst
        ("ext4", 104)
    } else {
        return None;
    };
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&superblock[at..at + 16]);
    Some(FileSystem {
        kind,
        uuid: Uuid::new(u128::from_be_bytes(uuid)),
    })
}

fn hash_tree(start: &[u8]) -> Option<HashTree> {
    let superblock = Superblock::from_block(start.first_chunk()?).ok()?;
    let top = start
        .get(HASH_START as usize * BLOCK..)?
        .first_chunk::<BLOCK>()?;
    Some(HashTree {
        root_hash: Digest::of_both(superblock.salt.as_bytes(), top),
        salt: superblock.salt,
        data_blocks: superblock.data_blocks,
    })
}

/// What is there of `length` bytes.
fn read(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A line for the disk and each partition.
impl fmt::Display for DiskListing {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "disk of {} bytes, sha256 {}", self.size, self.sha256)?;
        for (number, line) in (1..).zip(&self.partitions) {
            match line.uuid {
                Some(uuid) => write!(to, "partition {number} {:?} {uuid}", line.name)?,
                None => write!(to, "no partitions")?,
            }
            write!(to, ": {} bytes at {}", line.size, line.offset)?;
            if let Some(FileSystem { kind, uuid }) = &line.file_system {
                write!(to, ", {kind} {uuid}")?;
            }
            if let Some(tree) = &line.hash_tree {
                let HashTree {
                    root_hash,
                    data_blocks,
                    ..
                } = tree;
                write!(
                    to,
                    ", hash tree over {data_blocks} blocks, root hash {root_hash}"
                )?;
            }
            writeln!(to)?;
        }
        Ok(())
    }
}
