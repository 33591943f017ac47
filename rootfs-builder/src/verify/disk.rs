//! Holds a disk against what is known of it: its table, and data and tree in
//! the partitions that the kernel will find by that table.

use super::Trusted;
use crate::disk::Disk;
use crate::disk::gpt::{Partition, RESERVED_SECTORS, SECTOR, Table};
use crate::verity::{self, BLOCK, Superblock};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// The largest hash partition, in bytes: of a disk of 128 GiB.
const MAX_TREE_BYTES: u64 = 1 << 30;

/// A disk's table, and what is wrong with it.
pub(super) struct TableFound {
    /// What the kernel goes by; none if it would find no table.
    pub(super) table: Option<Table>,
    /// A line each.
    pub(super) findings: Vec<String>,
}

/// Table and copy, both. It must be such as we write, to the last byte: with
/// another MBR the kernel would go by that, and with gaps in the list it would
/// count partitions otherwise.
pub(super) fn table(file: &mut File, size: u64) -> io::Result<TableFound> {
    let mut start = Vec::new();
    file.rewind()?;
    let length = RESERVED_SECTORS * SECTOR;
    file.by_ref().take(length).read_to_end(&mut start)?;
    let table = match Table::read(&start) {
        Ok(table) => table,
        Err(error) => {
            return Ok(TableFound {
                table: None,
                findings: vec![error.to_string()],
            });
        }
    };
    let mut findings = Vec::new();
    if start != table.start() {
        findings.push("the partition table is not as this program writes it".into());
    }
    if table.sectors.checked_mul(SECTOR) != Some(size) {
        findings.push("the partition table is of a disk of another size".into());
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(length - SECTOR)))?;
    file.by_ref().take(length).read_to_end(&mut end)?;
    if end != table.end() {
        findings.push("the copy of the partition table at the disk's end is another".into());
    }
    Ok(TableFound {
        table: Some(table),
        findings,
    })
}

/// Whether partitions lie where a manifest says.
pub(super) fn places(table: &Table, disk: &Disk) -> Vec<String> {
    let mut expected = vec![(disk.offset, disk.size)];
    expected.extend(disk.verity.as_ref().map(|tree| (tree.offset, tree.size)));
    let found: Vec<_> = table.partitions.iter().map(extent).collect();
    if found == expected {
        Vec::new()
    } else {
        vec!["the partition table has other partitions than the manifest".into()]
    }
}

/// Offset and size in bytes. A table is read only if they fit.
fn extent(partition: &Partition) -> (u64, u64) {
    (partition.first * SECTOR, partition.sectors * SECTOR)
}

/// The first damage of data or tree, or what of the tree is not as it is known.
pub(super) fn tree(
    file: &mut File,
    table: &Table,
    trusted: &Trusted,
) -> io::Result<Option<String>> {
    let place = |number: usize| table.partitions.get(number - 1).map(extent);
    let Some((data, hashes)) = place(trusted.data).zip(place(trusted.hashes)) else {
        return Ok(Some(format!(
            "the partition table has no partitions {} and {}",
            trusted.data, trusted.hashes
        )));
    };
    if trusted.data_blocks.checked_mul(BLOCK as u64) != Some(data.1) {
        return Ok(Some(format!(
            "the data's partition has {} bytes, and not {} blocks",
            data.1, trusted.data_blocks
        )));
    }
    let mut area = Vec::new();
    file.seek(SeekFrom::Start(hashes.0))?;
    let length = hashes.1.min(MAX_TREE_BYTES);
    file.by_ref().take(length).read_to_end(&mut area)?;
    // What the superblock says is held against what is known before it is
    // followed.
    if let Some(Ok(found)) = area.first_chunk().map(Superblock::from_block) {
        if found.data_blocks != trusted.data_blocks {
            return Ok(Some("the hash tree covers another count of blocks".into()));
        }
        if trusted.salt.is_some_and(|salt| salt != found.salt) {
            return Ok(Some("the hash tree has another salt".into()));
        }
    }
    file.seek(SeekFrom::Start(data.0))?;
    let data = io::BufReader::with_capacity(1 << 20, file.take(data.1));
    match verity::check(data, &area, &trusted.root_hash) {
        Ok(_) => Ok(None),
        Err(verity::CheckError::Read(error)) => Err(error),
        Err(verity::CheckError::Superblock(error)) => Ok(Some(error.to_string())),
        Err(error) => Ok(Some(error.to_string())),
    }
}
