//! Disks that are made to be called right: each has everything of a genuine one
//! that the root hash stands for, and something else where the kernel looks.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails, also in what it calls"
)]

use rootfs_builder::digest::Digest;
use rootfs_builder::disk::gpt::{RESERVED_SECTORS, SECTOR, Table};
use rootfs_builder::disk::{Architecture, DEFAULT_ALIGNMENT, Disk, Layout, Verity, write};
use rootfs_builder::uuid::Uuid;
use rootfs_builder::verify::{Trusted, verify_by};
use rootfs_builder::verity::{BLOCK, HASH_START, Superblock};
use std::fs;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rootfs-builder");
const TABLE: usize = (RESERVED_SECTORS * SECTOR) as usize;

/// A genuine disk with 1536 blocks of data, and what its builder said of it.
struct Genuine {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
    disk: Disk,
    tree: Verity,
}

fn genuine() -> Genuine {
    let directory = tempfile::tempdir().unwrap();
    let mut source = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..5_u32 << 20).map(|at| (at / 5) as u8).collect();
    source.write_all(&content).unwrap();
    let mut output = tempfile::tempfile().unwrap();
    let disk = write(
        &mut source,
        Uuid::of(&Digest::of(b"fs")),
        Layout::Verity,
        DEFAULT_ALIGNMENT,
        Architecture::X86_64,
        &mut output,
    )
    .unwrap();
    output.rewind().unwrap();
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    let tree = disk.verity.clone().unwrap();
    Genuine {
        directory,
        bytes,
        disk,
        tree,
    }
}

impl Genuine {
    fn words(&self) -> String {
        self.tree.table("/dev/vda")
    }

    fn table(&self) -> Table {
        Table::read(&self.bytes[..TABLE]).unwrap()
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("disk");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Its table's words must catch it, and root hash and count as well.
    fn catches(&self, forged: &[u8], reason: &str) {
        let path = self.write(forged);
        let known = Trusted::of(self.tree.root_hash, self.tree.data_blocks);
        for trusted in [self.words().parse().unwrap(), known] {
            let findings = verify_by(&path, &trusted).unwrap();
            assert!(
                findings.iter().any(|line| line.contains(reason)),
                "{reason}: {findings:?}"
            );
        }
    }
}

fn put_table(bytes: &mut [u8], table: &Table) {
    let (start, end) = (table.start(), table.end());
    bytes[..start.len()].copy_from_slice(&start);
    let at = bytes.len() - end.len();
    bytes[at..].copy_from_slice(&end);
}

#[test]
fn a_genuine_disk_is_right_by_each_thing_that_can_be_trusted() {
    let genuine = genuine();
    let path = genuine.write(&genuine.bytes);
    let image = path.to_str().unwrap();
    let root_hash = genuine.tree.root_hash.to_string();
    let blocks = genuine.tree.data_blocks.to_string();
    let line = format!(
        "quiet dm-mod.create=\"root,,,ro,{}\" root=/dev/dm-0",
        genuine.words()
    );
    let ways: [&[&str]; 3] = [
        &["--table", &genuine.words()],
        &["--table", &line],
        &["--root-hash", &root_hash, "--data-blocks", &blocks],
    ];
    for way in ways {
        let output = Command::new(PROGRAM)
            .args(["verify", image])
            .args(way)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("bound by a manifest only"), "{said}");
    }
    // A root hash alone is not enough to go by.
    let output = Command::new(PROGRAM)
        .args(["verify", image, "--root-hash", &root_hash])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn the_top_of_the_tree_is_not_taken_for_the_data() {
    // A disk of one block of data, which is the genuine tree's top block: its
    // root hash is the genuine one.
    let genuine = genuine();
    let mut forged = genuine.bytes.clone();
    let top = genuine.tree.offset as usize + HASH_START as usize * BLOCK;
    let top = genuine.bytes[top..top + BLOCK].to_vec();
    let (data, hashes) = (genuine.disk.offset as usize, genuine.tree.offset as usize);
    forged[data..data + BLOCK].copy_from_slice(&top);
    let superblock = Superblock {
        uuid: Uuid::new(1),
        data_blocks: 1,
        salt: genuine.tree.salt,
    };
    forged[hashes..hashes + BLOCK].copy_from_slice(&superblock.to_block());
    genuine.catches(&forged, "covers another count");
    let mut table = genuine.table();
    table.partitions[0].sectors = BLOCK as u64 / SECTOR;
    put_table(&mut forged, &table);
    genuine.catches(&forged, "has 4096 bytes, and not 1536 blocks");
    // By itself it is as right as a disk can be: the count is what tells.
    let path = genuine.write(&forged);
    let fooled = Trusted::of(genuine.tree.root_hash, 1);
    assert_eq!(verify_by(&path, &fooled).unwrap(), [""; 0]);
}

#[test]
fn what_lies_behind_the_blocks_that_a_superblock_counts_is_looked_at() {
    let genuine = genuine();
    let mut forged = genuine.bytes.clone();
    let last = genuine.tree.offset as usize - 1;
    forged[last] ^= 1;
    genuine.catches(&forged, "data block 1535 is corrupted");
    let count = genuine.tree.offset as usize + 72;
    forged[count..count + 8].copy_from_slice(&1535_u64.to_le_bytes());
    genuine.catches(&forged, "covers another count");
    let mut table = genuine.table();
    table.partitions[0].sectors -= BLOCK as u64 / SECTOR;
    put_table(&mut forged, &table);
    genuine.catches(&forged, "and not 1536 blocks");
}

#[test]
fn partitions_are_looked_for_where_the_kernel_looks() {
    // The genuine partitions are where they were; the table leads elsewhere.
    let genuine = genuine();
    let mut forged = genuine.bytes.clone();
    let moved = forged.len() - (TABLE - SECTOR as usize);
    let data = genuine.disk.offset as usize..genuine.tree.offset as usize;
    forged.truncate(moved);
    let mut evil = genuine.bytes[data].to_vec();
    evil[123_456] ^= 4;
    let first = forged.len() as u64 / SECTOR;
    forged.extend(evil);
    forged.resize(forged.len() + TABLE, 0);
    let mut table = genuine.table();
    table.partitions[0].first = first;
    table.sectors = forged.len() as u64 / SECTOR;
    put_table(&mut forged, &table);
    genuine.catches(&forged, "data block 30 is corrupted");
    // With the two in the other order, and with one only.
    let mut table = genuine.table();
    table.partitions.swap(0, 1);
    let mut forged = genuine.bytes.clone();
    put_table(&mut forged, &table);
    genuine.catches(&forged, "and not 1536 blocks");
    table.partitions.truncate(1);
    put_table(&mut forged, &table);
    genuine.catches(&forged, "has no partitions 1 and 2");
}

#[test]
fn a_table_that_the_kernel_reads_otherwise_is_refused() {
    let genuine = genuine();
    // Not protective: the kernel goes by the MBR's own partitions.
    let mut forged = genuine.bytes.clone();
    forged[450] = 0x83;
    genuine.catches(&forged, "is not as this program writes it");
    // An empty entry first: the kernel counts it.
    let mut forged = genuine.bytes.clone();
    let mut entries = vec![0; 128];
    entries.extend(&genuine.bytes[1024..TABLE - 128]);
    forged[1024..TABLE].copy_from_slice(&entries);
    let checksum = crc32fast::hash(&entries).to_le_bytes();
    forged[512 + 88..512 + 92].copy_from_slice(&checksum);
    forged[512 + 16..512 + 20].fill(0);
    let checksum = crc32fast::hash(&forged[512..512 + 92]).to_le_bytes();
    forged[512 + 16..512 + 20].copy_from_slice(&checksum);
    genuine.catches(&forged, "is not as this program writes it");
    // None at all, and one of a disk too small for it.
    let mut forged = genuine.bytes.clone();
    forged[512] = 0;
    genuine.catches(&forged, "there is no GUID partition table");
    genuine.catches(&[], "there is no GUID partition table");
}
