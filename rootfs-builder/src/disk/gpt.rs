//! A GUID partition table: UEFI specification, section 5.

use crate::uuid::Uuid;

/// In bytes; virtual disks have no other.
pub const SECTOR: u64 = 512;
const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER: usize = 92;
const ENTRY: usize = 128;
const ENTRIES: usize = 128;
const ENTRIES_SECTORS: u64 = (ENTRY * ENTRIES) as u64 / SECTOR;
/// What the table takes at the start of a disk, with the protective MBR, and
/// (without it) at its end.
pub const RESERVED_SECTORS: u64 = 2 + ENTRIES_SECTORS;

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Uuid,
    /// Its own.
    pub uuid: Uuid,
    /// In sectors from the disk's start.
    pub first: u64,
    /// In sectors, at least one.
    pub sectors: u64,
    /// At most 36 characters.
    pub name: String,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Of the disk.
    pub uuid: Uuid,
    /// Of the disk.
    pub sectors: u64,
    /// At most 128.
    pub partitions: Vec<Partition>,
}

/// Why a disk's start is no table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Too short, or without the signature.
    #[error("there is no GUID partition table")]
    None,
    /// A checksum that is not right.
    #[error("the partition table's {0} is corrupted")]
    Checksum(&'static str),
    /// A table that we do not write.
    #[error("the partition table has an odd {0}")]
    Odd(&'static str),
}

impl Table {
    /// The first [`RESERVED_SECTORS`]: MBR, header, entries.
    #[must_use]
    pub fn start(&self) -> Vec<u8> {
        let entries = self.entries();
        let mut bytes = self.protective_mbr();
        bytes.extend(self.header(&entries, 1, self.sectors - 1, 2));
        bytes.extend(entries);
        bytes
    }

    /// The last `RESERVED_SECTORS - 1`: entries, header.
    #[must_use]
    pub fn end(&self) -> Vec<u8> {
        let mut bytes = self.entries();
        let header = self.header(
            &bytes,
            self.sectors - 1,
            1,
            self.sectors - 1 - ENTRIES_SECTORS,
        );
        bytes.extend(header);
        bytes
    }

    fn entries(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENTRY * ENTRIES);
        for partition in &self.partitions {
            let start = bytes.len();
            bytes.extend(partition.kind.to_gpt());
            bytes.extend(partition.uuid.to_gpt());
            bytes.extend(partition.first.to_le_bytes());
            bytes.extend((partition.first + partition.sectors - 1).to_le_bytes());
            bytes.extend(0_u64.to_le_bytes()); // attributes
            bytes.extend(partition.name.encode_utf16().flat_map(u16::to_le_bytes));
            bytes.resize(start + ENTRY, 0);
        }
        bytes.resize(ENTRY * ENTRIES, 0);
        bytes
    }

    fn header(&self, entries: &[u8], own: u64, other: u64, entries_at: u64) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend(REVISION.to_le_bytes());
        bytes.extend((HEADER as u32).to_le_bytes());
        bytes.extend([0; 8]); // checksum, filled in below, and a reserved field
        for number in [
            own,
            other,
            RESERVED_SECTORS,
            self.sectors - RESERVED_SECTORS,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.uuid.to_gpt());
        bytes.extend(entries_at.to_le_bytes());
        bytes.extend((ENTRIES as u32).to_le_bytes());
        bytes.extend((ENTRY as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(entries).to_le_bytes());
        let checksum = crc32fast::hash(&bytes);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes.resize(SECTOR as usize, 0);
        bytes
    }

    /// Tells who does not know GPT that the disk is taken.
    fn protective_mbr(&self) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        let size = u32::try_from(self.sectors - 1).unwrap_or(u32::MAX);
        // Cylinder, head and sector of the first and the last sector, as the
        // specification wants them; the type; the extent.
        bytes[447..450].copy_from_slice(&[0, 2, 0]);
        bytes[450..454].copy_from_slice(&[0xee, 0xff, 0xff, 0xff]);
        bytes[454..458].copy_from_slice(&1_u32.to_le_bytes());
        bytes[458..462].copy_from_slice(&size.to_le_bytes());
        bytes[510..].copy_from_slice(&[0x55, 0xaa]);
        bytes
    }

    /// Reads the table at the start of a disk, from its first
    /// [`RESERVED_SECTORS`].
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn read(start: &[u8]) -> Result<Self, TableError> {
        let sector = SECTOR as usize;
        let header = start.get(sector..sector + HEADER).ok_or(TableError::None)?;
        if !header.starts_with(SIGNATURE) {
            return Err(TableError::None);
        }
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let mut unsigned = header.to_vec();
        unsigned[16..20].fill(0);
        if crc32fast::hash(&unsigned) != word(16) {
            return Err(TableError::Checksum("header"));
        }
        if word(12) != HEADER as u32 || word(80) != ENTRIES as u32 || word(84) != ENTRY as u32 {
            return Err(TableError::Odd("size"));
        }
        if long(header, 24) != 1 || long(header, 72) != 2 {
            return Err(TableError::Odd("place"));
        }
        let entries = start
            .get(2 * sector..2 * sector + ENTRY * ENTRIES)
            .ok_or(TableError::None)?;
        if crc32fast::hash(entries) != word(88) {
            return Err(TableError::Checksum("list of partitions"));
        }
        let sectors = long(header, 32)
            .checked_add(1)
            // Both tables fit.
            .filter(|sectors| (2 * RESERVED_SECTORS..=u64::MAX / SECTOR).contains(sectors))
            .ok_or(TableError::Odd("size"))?;
        let partitions = entries
            .chunks_exact(ENTRY)
            .filter(|entry| entry[..16] != [0; 16])
            .map(|entry| read_entry(entry, sectors))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            uuid: uuid(header, 56),
            sectors,
            partitions,
        })
    }
}

fn read_entry(entry: &[u8], sectors: u64) -> Result<Partition, TableError> {
    let (first, last) = (long(entry, 32), long(entry, 40));
    if first > last || last >= sectors {
        return Err(TableError::Odd("partition"));
    }
    let name: Vec<u16> = entry[56..ENTRY]
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    Ok(Partition {
        kind: uuid(entry, 0),
        uuid: uuid(entry, 16),
        first,
        sectors: last - first + 1,
        name: String::from_utf16_lossy(&name),
    })
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn uuid(bytes: &[u8], at: usize) -> Uuid {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_gpt(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Table {
        let partition = |number: u64| Partition {
            kind: super::super::ROOT_X86_64,
            uuid: Uuid::new(u128::from(number) << 64 | 7),
            first: 4096 * number,
            sectors: 4096,
            name: format!("part-{number}"),
        };
        Table {
            uuid: Uuid::new(99),
            sectors: 20_000,
            partitions: vec![partition(1), partition(2)],
        }
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let start = table().start();
        assert_eq!(start.len() as u64, RESERVED_SECTORS * SECTOR);
        assert_eq!(Table::read(&start), Ok(table()));
        assert_eq!(table().end().len() as u64, (RESERVED_SECTORS - 1) * SECTOR);
    }

    #[test]
    fn another_program_reads_the_same_table() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let mut bytes = table().start();
        bytes.resize((20_000 * SECTOR) as usize - table().end().len(), 0);
        bytes.extend(table().end());
        std::fs::write(&disk, bytes).unwrap();
        let Ok(output) = crate::tool::command("sfdisk")
            .arg("--verify")
            .arg(&disk)
            .output()
        else {
            eprintln!("skipped: sfdisk is not installed (package fdisk)");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("No errors detected"), "{output:?}");
        let listed = crate::tool::command("sfdisk")
            .arg("--dump")
            .arg(&disk)
            .output();
        let listed = String::from_utf8_lossy(&listed.unwrap().stdout).into_owned();
        for wanted in ["start=        4096, size=        4096", "name=\"part-2\""] {
            assert!(listed.contains(wanted), "{listed}");
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_of_header_or_list_is_found(at in 512_usize..34 * 512, bit in 0_u8..8) {
            let mut start = table().start();
            // Behind the header its sector is empty.
            prop_assume!(!(512 + HEADER..1024).contains(&at));
            start[at] ^= 1 << bit;
            prop_assert!(Table::read(&start).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = Table::read(&bytes);
        }
    }
}
