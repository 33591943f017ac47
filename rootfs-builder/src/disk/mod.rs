//! A disk: a file system by itself, or in a partition table, with or without
//! the hash tree that the kernel checks it against.
//!
//! Partition types, and the UUIDs of partitions with a tree (the halves of the
//! root hash), are those of the Discoverable Partitions Specification.

pub mod gpt;

use crate::digest::Digest;
use crate::uuid::Uuid;
use crate::verity::{self, BLOCK, HASH_START, Superblock};
use gpt::{Partition, RESERVED_SECTORS, SECTOR, Table};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// What sizes and starts are multiples of, unless it is said otherwise: that of
/// huge pages, which a VMM can map a disk with.
pub const DEFAULT_ALIGNMENT: u64 = 2 << 20;

/// A root file system for x86-64.
pub(crate) const ROOT_X86_64: Uuid = Uuid::new(0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709);
/// Its hash tree.
const ROOT_X86_64_VERITY: Uuid = Uuid::new(0x2c73_57ed_ebd2_46d9_aec1_23d4_37ec_2bf5);
/// A root file system for 64-bit Arm.
const ROOT_ARM64: Uuid = Uuid::new(0xb921_b045_1df0_41c3_af44_4c6f_280d_3fae);
/// Its hash tree.
const ROOT_ARM64_VERITY: Uuid = Uuid::new(0xdf33_00ce_d69f_4c92_978c_9bfb_0f38_d820);

/// How a disk is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// The file system and nothing else.
    #[default]
    Plain,
    /// A GUID partition table with the file system as its one partition.
    Partition,
    /// A second partition with dm-verity's hash tree over the first.
    Verity,
}

/// The processor a root file system is for; it shows in the partition's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Arm64,
}

impl Architecture {
    /// Of programs with this `e_machine`.
    #[must_use]
    pub fn of(machine: u16) -> Option<Self> {
        match machine {
            62 => Some(Self::X86_64),
            183 => Some(Self::Arm64),
            _ => None,
        }
    }

    fn types(self) -> (Uuid, Uuid) {
        match self {
            Self::X86_64 => (ROOT_X86_64, ROOT_X86_64_VERITY),
            Self::Arm64 => (ROOT_ARM64, ROOT_ARM64_VERITY),
        }
    }
}

/// What lies where, in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file system's UUID.
    pub uuid: Uuid,
    /// Where the file system starts, in bytes.
    pub offset: u64,
    /// What is set aside for it, in bytes.
    pub size: u64,
    /// The tree over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Verity>,
}

/// A hash tree, in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verity {
    /// What the kernel is told, and all that has to be trusted.
    pub root_hash: Digest,
    /// What each digest starts with.
    pub salt: Digest,
    /// What is covered, in blocks of 4096 bytes.
    pub data_blocks: u64,
    /// Where its partition starts, in bytes.
    pub offset: u64,
    /// The partition's size, in bytes.
    pub size: u64,
}

impl Verity {
    /// The device-mapper table of the disk `device` (such as `/dev/vda`), as
    /// verity.rst has it: start, length, target and the target's parameters.
    #[must_use]
    pub fn table(&self, device: &str) -> String {
        // As the kernel does: after a digit the number needs something between.
        let separator = if device.ends_with(|last: char| last.is_ascii_digit()) {
            "p"
        } else {
            ""
        };
        let partition = format!("{device}{separator}");
        let Self {
            root_hash,
            salt,
            data_blocks,
            ..
        } = self;
        let sectors = data_blocks * BLOCK as u64 / SECTOR;
        format!(
            "0 {sectors} verity 1 {partition}1 {partition}2 {BLOCK} {BLOCK} {data_blocks} \
             {HASH_START} sha256 {root_hash} {salt}"
        )
    }
}

/// Writes a disk with the file system in `source` into an empty `output`.
///
/// # Errors
/// Those of reading and writing.
pub fn write(
    source: &mut File,
    uuid: Uuid,
    layout: Layout,
    alignment: u64,
    architecture: Architecture,
    output: &mut File,
) -> io::Result<Disk> {
    let length = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let size = length.next_multiple_of(alignment);
    let table_size = (RESERVED_SECTORS * SECTOR).next_multiple_of(alignment);
    let offset = match layout {
        Layout::Plain => 0,
        Layout::Partition | Layout::Verity => table_size,
    };
    output.seek(SeekFrom::Start(offset))?;
    copy_sparse(source, output)?;
    output.set_len(offset + size)?;
    let mut disk = Disk {
        uuid,
        offset,
        size,
        verity: None,
    };
    if layout == Layout::Plain {
        return Ok(disk);
    }
    let mut end = offset + size;
    if layout == Layout::Verity {
        let verity = write_tree(output, &disk, alignment)?;
        end = verity.offset + verity.size;
        disk.verity = Some(verity);
    }
    write_table(output, &disk, end + table_size, architecture)?;
    Ok(disk)
}

/// What is all zeros is not written.
fn copy_sparse(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut chunk = Vec::new();
    loop {
        chunk.clear();
        let read = Read::by_ref(from).take(64 << 10).read_to_end(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        if chunk.iter().all(|&byte| byte == 0) {
            to.seek_relative(read as i64)?;
        } else {
            to.write_all(&chunk)?;
        }
    }
}

fn write_tree(output: &mut File, disk: &Disk, alignment: u64) -> io::Result<Verity> {
    let data_blocks = disk.size / BLOCK as u64;
    let read = |from: &mut File| -> io::Result<_> {
        from.seek(SeekFrom::Start(disk.offset))?;
        Ok(io::BufReader::with_capacity(
            1 << 20,
            from.try_clone()?.take(disk.size),
        ))
    };
    // A salt is there so that nobody has digests of blocks beforehand; made of
    // the content, it is another for every image, and the same in every build.
    let (content, _) = Digest::of_reader(read(output)?)?;
    let superblock = Superblock {
        uuid: Uuid::of(&Digest::of_both(b"hash tree", content.as_bytes())),
        data_blocks,
        salt: Digest::of_both(b"salt", content.as_bytes()),
    };
    let tree = verity::build(read(output)?, &superblock)?;
    let offset = disk.offset + disk.size;
    let size = (tree.area.len() as u64).next_multiple_of(alignment);
    output.seek(SeekFrom::Start(offset))?;
    output.write_all(&tree.area)?;
    Ok(Verity {
        root_hash: tree.root,
        salt: superblock.salt,
        data_blocks,
        offset,
        size,
    })
}

fn write_table(
    output: &mut File,
    disk: &Disk,
    size: u64,
    architecture: Architecture,
) -> io::Result<()> {
    let (root, root_verity) = architecture.types();
    let partition = |kind, uuid, offset: u64, size: u64, name: &str| Partition {
        kind,
        uuid,
        first: offset / SECTOR,
        sectors: size / SECTOR,
        name: name.into(),
    };
    let partitions = match &disk.verity {
        None => vec![partition(root, disk.uuid, disk.offset, disk.size, "root")],
        Some(verity) => {
            let number = |from: usize| {
                let mut half = [0; 16];
                half.copy_from_slice(&verity.root_hash.as_bytes()[from..from + 16]);
                Uuid::new(u128::from_be_bytes(half))
            };
            vec![
                partition(root, number(0), disk.offset, disk.size, "root"),
                partition(
                    root_verity,
                    number(16),
                    verity.offset,
                    verity.size,
                    "root-verity",
                ),
            ]
        }
    };
    let table = Table {
        uuid: Uuid::of(&Digest::of_both(b"disk", &disk.uuid.to_bytes())),
        sectors: size / SECTOR,
        partitions,
    };
    output.set_len(size)?;
    output.rewind()?;
    output.write_all(&table.start())?;
    let end = table.end();
    output.seek(SeekFrom::Start(size - end.len() as u64))?;
    output.write_all(&end)
}

/// Whether sizes can be multiples of `bytes`: a power of two from 4096 to 1 GiB.
#[must_use]
pub fn is_alignment(bytes: u64) -> bool {
    bytes.is_power_of_two() && (BLOCK as u64..=1 << 30).contains(&bytes)
}

#[cfg(test)]
mod tests;
