//! Disks, byte for byte.

use super::*;
use crate::verity::check;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;

/// A "file system" of that many bytes, and a disk with it.
fn disk(bytes: usize, layout: Layout) -> (Vec<u8>, File, Disk) {
    let content: Vec<u8> = (0..bytes).map(|at| (at / 7) as u8).collect();
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&content).unwrap();
    let mut output = tempfile::tempfile().unwrap();
    let uuid = Uuid::of(&Digest::of(b"fs"));
    let architecture = Architecture::X86_64;
    let alignment = DEFAULT_ALIGNMENT;
    let disk = write(
        &mut source,
        uuid,
        layout,
        alignment,
        architecture,
        &mut output,
    )
    .unwrap();
    (content, output, disk)
}

fn at(file: &File, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn a_plain_disk_is_the_file_system_and_zeros() {
    let (content, file, disk) = disk(5000, Layout::Plain);
    assert_eq!((disk.offset, disk.size), (0, 2 * MIB));
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB);
    assert_eq!(at(&file, 0, 5000), content);
    assert!(
        at(&file, 5000, 2 * MIB - 5000)
            .iter()
            .all(|&byte| byte == 0)
    );
}

#[test]
fn a_partitioned_disk_has_its_file_system_where_the_table_says() {
    let (content, file, disk) = disk(3 << 20, Layout::Partition);
    assert_eq!((disk.offset, disk.size), (2 * MIB, 4 * MIB));
    let size = file.metadata().unwrap().len();
    assert_eq!(size, 8 * MIB);
    let table = Table::read(&at(&file, 0, RESERVED_SECTORS * SECTOR)).unwrap();
    assert_eq!(table.sectors * SECTOR, size);
    let [root] = table.partitions.as_slice() else {
        panic!("{table:?}")
    };
    assert_eq!((root.kind, root.uuid), (ROOT_X86_64, disk.uuid));
    assert_eq!(at(&file, root.first * SECTOR, 3 << 20), content);
}

#[test]
fn a_tree_covers_its_partition_and_names_both() {
    let (_, file, disk) = disk(3 << 20, Layout::Verity);
    let verity = disk.verity.unwrap();
    assert_eq!(verity.data_blocks * BLOCK as u64, disk.size);
    assert_eq!(verity.offset, disk.offset + disk.size);
    let data = at(&file, disk.offset, disk.size);
    let area = at(&file, verity.offset, verity.size);
    let superblock = check(data.as_slice(), &area, &verity.root_hash).unwrap();
    assert_eq!(superblock.salt, verity.salt);
    let table = Table::read(&at(&file, 0, RESERVED_SECTORS * SECTOR)).unwrap();
    let uuids: Vec<u8> = table
        .partitions
        .iter()
        .flat_map(|partition| partition.uuid.to_bytes())
        .collect();
    assert_eq!(uuids, verity.root_hash.as_bytes());
}

#[test]
fn a_table_for_the_kernel_counts_in_its_units_and_names_partitions_its_way() {
    let (_, _, disk) = disk(5000, Layout::Verity);
    let verity = disk.verity.unwrap();
    let table = verity.table("/dev/vda");
    let expected = "0 4096 verity 1 /dev/vda1 /dev/vda2 4096 4096 512 1 sha256 ";
    assert!(table.starts_with(expected), "{table}");
    assert!(table.ends_with(&format!("{} {}", verity.root_hash, verity.salt)));
    assert!(
        verity
            .table("/dev/pmem0")
            .contains(" /dev/pmem0p1 /dev/pmem0p2 ")
    );
}

#[test]
fn an_alignment_is_a_power_of_two_of_some_size() {
    assert!(is_alignment(4096) && is_alignment(DEFAULT_ALIGNMENT) && is_alignment(1 << 30));
    for bytes in [0, 1, 512, 4097, 3 << 20, 1 << 31, u64::MAX] {
        assert!(!is_alignment(bytes), "{bytes}");
    }
}
