//! What lies where in a guest's memory when its kernel is entered: nothing but
//! this, no firmware and no loader, has been there before.
//!
//! The kernel takes all memory of its map as its own and as accepted. It can
//! accept none of it by itself without a firmware's help, so every page that the
//! map gives it is a page of the file, also those that are empty: each is
//! measured, and the guest has as much memory as was said when the file was made.

use std::collections::BTreeMap;

/// In bytes; a page of the file and of the guest.
pub(crate) const PAGE: u64 = 4096;
/// The kernel looks for the place of its real-mode code below this; our own
/// pages lie above, so that it uses none of them for something else.
const LOW_MEMORY_END: u64 = 0x9_0000;
/// The zero page, which tells the kernel all it knows (boot.rst).
pub(crate) const BOOT_PARAMS: u64 = LOW_MEMORY_END;
/// The segment descriptors.
pub(crate) const DESCRIPTORS: u64 = 0x9_1000;
/// Six pages, from the top level on.
pub(crate) const PAGE_TABLES: u64 = 0x9_2000;
/// The command line, at most a page with its NUL.
pub(crate) const COMMAND_LINE: u64 = 0x9_8000;
/// Tells the kernel of the next two (SEV-SNP).
pub(crate) const CONFIDENTIAL: u64 = 0x9_9000;
/// The answers to CPUID, which the firmware of the processor checks (SEV-SNP).
pub(crate) const CPUID: u64 = 0x9_a000;
/// The keys to talk to that firmware (SEV-SNP).
pub(crate) const SECRETS: u64 = 0x9_b000;
/// Where a VMM that wants it in memory lays the processor's state; the kernel
/// never looks there.
pub(crate) const CONTEXT: u64 = 0x9_c000;
/// The machine's tables, a page of them. The map has nothing between its end and
/// [`HIGH_MEMORY`], where some machines have a VGA card and a BIOS, and a kernel
/// that looks there finds pages that nobody has accepted.
pub(crate) const TABLES: u64 = 0x9_d000;
/// See [`TABLES`].
pub(crate) const TABLES_END: u64 = TABLES + PAGE;
/// See [`TABLES`].
const HIGH_MEMORY: u64 = 0x10_0000;

/// The least and the most memory, in bytes. QEMU's machines have a hole above
/// 2 GiB.
pub const MIN_MEMORY: u64 = 32 << 20;
/// See [`MIN_MEMORY`].
pub const MAX_MEMORY: u64 = 2 << 30;

/// What a range of the memory map is to the kernel, by its number there (ACPI
/// specification 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It may have it.
    Any = 1,
    /// It is to leave it alone.
    Reserved = 2,
    /// It is to read it. In a guest of SEV-SNP the kernel looks at tables as at
    /// memory of its own, and at what is reserved as at its host's.
    Tables = 3,
}

/// The ranges of the memory map: start, end, and what each is.
pub(crate) fn memory_map(memory: u64) -> [(u64, u64, Use); 4] {
    [
        (0, LOW_MEMORY_END, Use::Any),
        (LOW_MEMORY_END, TABLES, Use::Reserved),
        (TABLES, TABLES_END, Use::Tables),
        (HIGH_MEMORY, memory, Use::Any),
    ]
}

/// A page of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// It has these bytes, and zeros after them.
    Data(Vec<u8>),
    /// Nothing but zeros.
    Empty,
    /// The VMM and the processor's firmware say what is on it.
    Cpuid,
    /// The processor's firmware says what is on it.
    Secrets,
}

/// Something lies in the way of something else, or outside of the memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} does not fit: {size} bytes at {address:#x}, in {memory} bytes of memory")]
pub struct PlaceError {
    what: &'static str,
    address: u64,
    size: u64,
    memory: u64,
}

/// A guest's memory, page by page.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    size: u64,
    pages: BTreeMap<u64, Page>,
    /// What the kernel uses before it looks at anything: start and end.
    kernel: (u64, u64),
}

impl GuestMemory {
    /// Memory of `size` bytes, all empty, whose kernel uses that much from
    /// `kernel` on.
    ///
    /// # Errors
    /// When the kernel does not fit.
    pub(crate) fn new(size: u64, kernel: u64, kernel_size: u64) -> Result<Self, PlaceError> {
        let end = kernel.checked_add(kernel_size).filter(|&end| end <= size);
        let end = end.ok_or(PlaceError {
            what: "the kernel",
            address: kernel,
            size: kernel_size,
            memory: size,
        })?;
        let usable = memory_map(size).into_iter();
        let usable = usable.filter(|range| range.2 == Use::Any);
        let pages = usable
            .flat_map(|(start, end, _)| (start..end).step_by(PAGE as usize))
            .map(|address| (address, Page::Empty))
            .collect();
        Ok(Self {
            size,
            pages,
            kernel: (kernel, end),
        })
    }

    /// Puts bytes at the start of a page and of as many after it as they need.
    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        for (number, chunk) in (0..).zip(bytes.chunks(PAGE as usize)) {
            let page = if chunk.iter().all(|&byte| byte == 0) {
                Page::Empty
            } else {
                Page::Data(chunk.to_vec())
            };
            self.pages.insert(address + number * PAGE, page);
        }
    }

    /// Puts a page of another kind.
    pub(crate) fn put_page(&mut self, address: u64, page: Page) {
        self.pages.insert(address, page);
    }

    /// Puts bytes as far up as there is room, and says where.
    ///
    /// # Errors
    /// When the kernel is in the way.
    pub(crate) fn put_high(&mut self, what: &'static str, bytes: &[u8]) -> Result<u64, PlaceError> {
        let size = (bytes.len() as u64).next_multiple_of(PAGE);
        let address = self.size.checked_sub(size);
        let address = address.filter(|&address| address >= self.kernel.1);
        let address = address.ok_or(PlaceError {
            what,
            address: self.kernel.1,
            size,
            memory: self.size,
        })?;
        self.put(address, bytes);
        Ok(address)
    }

    /// All pages, by address.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.pages.iter().map(|(&address, page)| (address, page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMORY: u64 = 32 << 20;

    #[test]
    fn the_map_s_memory_is_in_the_file_and_nothing_else_is() {
        let memory = GuestMemory::new(MEMORY, 0x20_0000, 0x10_0000).unwrap();
        let pages: Vec<(u64, &Page)> = memory.pages().collect();
        let addresses: Vec<u64> = pages.iter().map(|page| page.0).collect();
        let expected: Vec<u64> = (0..MEMORY)
            .step_by(4096)
            .filter(|address| !(0x9_0000..0x10_0000).contains(address))
            .collect();
        assert_eq!(addresses, expected);
        assert!(pages.iter().all(|page| *page.1 == Page::Empty));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = GuestMemory::new(MEMORY, 0x20_0000, MEMORY).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel does not fit: 33554432 bytes at 0x200000, in 33554432 bytes of memory"
        );
        assert!(GuestMemory::new(MEMORY, u64::MAX, 1).is_err());
        let mut memory = GuestMemory::new(MEMORY, 0x20_0000, MEMORY - 0x20_1000).unwrap();
        assert!(memory.put_high("the initrd", &[1; 4097]).is_err());
        assert_eq!(
            memory.put_high("the initrd", &[1; 4096]),
            Ok(MEMORY - 0x1000)
        );
    }

    proptest! {
        #[test]
        fn what_was_put_is_there_and_empty_pages_have_no_bytes(
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 1..20_000),
        ) {
            let mut memory = GuestMemory::new(MEMORY, 0x20_0000, 0x10_0000).unwrap();
            let start = memory.put_high("it", &bytes).unwrap();
            let mut found = Vec::new();
            for (address, page) in memory.pages() {
                if address < start {
                    continue;
                }
                let mut data = match page {
                    Page::Data(data) => {
                        prop_assert!(data.iter().any(|&byte| byte != 0));
                        data.clone()
                    }
                    _ => Vec::new(),
                };
                data.resize(4096, 0);
                found.extend(data);
            }
            prop_assert_eq!(found.len() as u64, MEMORY - start);
            prop_assert_eq!(&found[..bytes.len()], &bytes[..]);
            prop_assert!(found[bytes.len()..].iter().all(|&byte| byte == 0));
        }
    }
}
