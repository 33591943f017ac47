//! What a kernel finds in memory when it is entered in 64 bits: the zero page
//! with the memory map, segment descriptors and page tables (the kernel's
//! Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use super::kernel::{Kernel, SETUP_SECTS};
use super::layout::{self, PAGE};

/// Fields of the zero page (the kernel's Documentation/arch/x86/zero-page.rst
/// and boot.rst).
const TABLES: usize = 0x70;
const MAP_ENTRIES: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const MAP: usize = 0x2d0;
const MAP_ENTRY: usize = 20;
/// A loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;

/// The selectors that the protocol asks for.
pub(crate) const CODE_SELECTOR: u16 = 0x10;
/// See [`CODE_SELECTOR`].
pub(crate) const DATA_SELECTOR: u16 = 0x18;
/// Two that are unused, code of 64 bits, data; all flat, both accessed.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// The last byte of the descriptors.
pub(crate) const DESCRIPTORS_LIMIT: u16 = 31;

/// Bits of an entry of a page table: present and writable; a page of 2 MiB.
const PRESENT: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// Marks a page as encrypted; here on every processor that has SEV-SNP.
pub(crate) const ENCRYPTED: u64 = 1 << 51;
/// Directories of a gibibyte each: everything below 4 GiB is mapped.
const DIRECTORIES: u64 = 4;

/// `SETUP_CC_BLOB`, and what the blob begins with: "AMDE".
const BLOB_TYPE: u32 = 7;
const BLOB_MAGIC: u32 = 0x4544_4d41;

/// The zero page. `initrd` is its address and size.
pub(crate) fn boot_params(
    kernel: &Kernel<'_>,
    initrd: Option<(u64, u64)>,
    memory: u64,
    confidential: bool,
) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTS, kernel.header);
    put(TABLES, &layout::TABLES.to_le_bytes());
    put(TYPE_OF_LOADER, &[UNKNOWN_LOADER]);
    put(CODE32_START, &(kernel.address as u32).to_le_bytes());
    let (address, size) = initrd.unwrap_or((0, 0));
    put(RAMDISK_IMAGE, &(address as u32).to_le_bytes());
    put(RAMDISK_SIZE, &(size as u32).to_le_bytes());
    put(CMD_LINE_PTR, &(layout::COMMAND_LINE as u32).to_le_bytes());
    let setup_data = if confidential {
        layout::CONFIDENTIAL
    } else {
        0
    };
    put(SETUP_DATA, &setup_data.to_le_bytes());
    let map = layout::memory_map(memory);
    put(MAP_ENTRIES, &[map.len() as u8]);
    for (number, (start, end, kind)) in map.into_iter().enumerate() {
        let at = MAP + number * MAP_ENTRY;
        put(at, &start.to_le_bytes());
        put(at + 8, &(end - start).to_le_bytes());
        put(at + 16, &(kind as u32).to_le_bytes());
    }
    page
}

/// The segment descriptors.
pub(crate) fn descriptors() -> Vec<u8> {
    DESCRIPTORS.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Page tables of four levels that map each address to itself; `mark` is set in
/// every entry.
pub(crate) fn page_tables(mark: u64) -> Vec<u8> {
    let table = |number: u64| (layout::PAGE_TABLES + number * PAGE) | PRESENT | mark;
    let directories = (0..DIRECTORIES).map(|number| table(2 + number));
    let pages = (0..DIRECTORIES * 512).map(|number| (number << 21) | PRESENT | LARGE | mark);
    let empty = std::iter::repeat(0);
    let top = std::iter::once(table(1)).chain(empty.clone()).take(512);
    let entries = top.chain(directories.chain(empty).take(512)).chain(pages);
    entries.flat_map(u64::to_le_bytes).collect()
}

/// An entry of the kernel's list of setup data, and behind it the blob that it
/// points at: where the pages of CPUID and of the secrets are (the kernel's
/// arch/x86/include/asm/sev.h, `struct cc_blob_sev_info`).
pub(crate) fn confidential_blob() -> Vec<u8> {
    const SETUP_ENTRY: u64 = 32;
    let blob = layout::CONFIDENTIAL + SETUP_ENTRY;
    let mut bytes = Vec::new();
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(BLOB_TYPE.to_le_bytes());
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend((blob as u32).to_le_bytes());
    bytes.resize(SETUP_ENTRY as usize, 0);
    bytes.extend(BLOB_MAGIC.to_le_bytes());
    // Version and a reserved field.
    bytes.extend(0_u32.to_le_bytes());
    for page in [layout::SECRETS, layout::CPUID] {
        bytes.extend(page.to_le_bytes());
        bytes.extend((PAGE as u32).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Walks the tables as a processor does.
    fn translate(tables: &[u8], mark: u64, address: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let at = (table - layout::PAGE_TABLES + (address >> shift & 511) * 8) as usize;
            let entry = u64::from_le_bytes(tables[at..at + 8].try_into().unwrap());
            if entry & PRESENT != PRESENT {
                return None;
            }
            assert_eq!(entry & mark, mark);
            let next = entry & !mark & 0x000f_ffff_ffff_f000;
            if entry & LARGE != 0 {
                return Some(next + (address & ((1 << shift) - 1)));
            }
            table = next;
        }
        None
    }

    proptest! {
        #[test]
        fn every_address_below_4_gib_is_mapped_to_itself(address in 0_u64..1 << 32, encrypted: bool) {
            let mark = if encrypted { ENCRYPTED } else { 0 };
            let tables = page_tables(mark);
            prop_assert_eq!(tables.len() as u64, layout::COMMAND_LINE - layout::PAGE_TABLES);
            prop_assert_eq!(translate(&tables, mark, address), Some(address));
            prop_assert_eq!(translate(&tables, mark, address + (4 << 30)), None);
        }
    }

    #[test]
    fn the_zero_page_has_header_initrd_and_map() {
        let image = crate::igvm::kernel::tests::bzimage(5000, 1 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        let page = boot_params(&kernel, Some((0x1f0_0000, 77)), 32 << 20, true);
        assert_eq!(page.len(), 4096);
        assert_eq!(&page[0x202..0x208], &image[0x202..0x208]);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(&page[0x218..0x220], b"\x00\x00\xf0\x01\x4d\0\0\0");
        assert_eq!(&page[0x228..0x22c], b"\x00\x80\x09\0");
        assert_eq!(&page[0x250..0x258], b"\x00\x90\x09\0\0\0\0\0");
        assert_eq!(&page[0x70..0x78], b"\x00\xd0\x09\0\0\0\0\0");
        assert_eq!(page[0x1e8], 4);
        let tables = &page[0x2d0 + 40..0x2d0 + 60];
        assert_eq!(tables, b"\0\xd0\x09\0\0\0\0\0\0\x10\0\0\0\0\0\0\x03\0\0\0");
        let last = &page[0x2d0 + 60..0x2d0 + 80];
        assert_eq!(last, b"\0\0\x10\0\0\0\0\0\0\0\xf0\x01\0\0\0\0\x01\0\0\0");
    }

    #[test]
    fn the_blob_names_the_pages_of_cpuid_and_secrets() {
        let bytes = confidential_blob();
        assert_eq!(&bytes[8..20], b"\x07\0\0\0\x04\0\0\0\x20\x90\x09\0");
        assert_eq!(&bytes[32..36], b"AMDE");
        assert_eq!(&bytes[40..52], b"\x00\xb0\x09\0\0\0\0\0\0\x10\0\0");
        assert_eq!(&bytes[56..68], b"\x00\xa0\x09\0\0\0\0\0\0\x10\0\0");
        assert_eq!(bytes.len(), 72);
    }
}
