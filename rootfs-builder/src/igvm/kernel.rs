//! What of a kernel's bzImage lies in the memory of a guest that enters it
//! directly. Where things lie in the file is from the kernel's
//! Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit
//! Boot Protocol".

use super::layout::PAGE;

/// Size of a setup sector, and the sectors of a header that names none.
const SECTOR: usize = 512;
const DEFAULT_SECTORS: usize = 4;
/// Fields of the header, counted from the start of the file.
pub(crate) const SETUP_SECTS: usize = 0x1f1;
const HEADER_END: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The first version of the header that says whether it can be entered in 64
/// bits (Linux 3.8).
const OLDEST: u16 = 0x020c;
/// In [`XLOADFLAGS`]: entered in 64 bits, at [`ENTRY`].
const KERNEL_64: u16 = 1;
/// Where the 64-bit entry is, counted from the start of the code.
const ENTRY: u64 = 0x200;
/// The code is mapped, and decompressed, in pages of 2 MiB.
const ALIGNMENT: u64 = 2 << 20;

/// Why a kernel can't be entered directly.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An ELF image, or no kernel at all.
    #[error("not a bzImage")]
    NotBzImage,
    /// It ends before its header or its code does.
    #[error("cut short")]
    Short,
    /// A bzImage of before 2013.
    #[error("boot protocol {0:#06x} is older than {OLDEST:#06x}: it tells of no 64-bit entry")]
    Old(u16),
    /// One of 32 bits.
    #[error("it has no 64-bit entry")]
    No64,
    /// Its place is not one that a guest of ours has for it.
    #[error("it wants to be at {0:#x}, which is below 1 MiB or no multiple of 2 MiB")]
    Place(u64),
    /// It says that it needs less memory than its code has.
    #[error("it needs {needed} bytes of memory, it says, and has {code} bytes of code")]
    Size {
        /// By its header.
        needed: u64,
        /// In its file.
        code: u64,
    },
}

/// A kernel, and where it wants to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel<'a> {
    /// The header, which is handed on to the kernel; it belongs at
    /// [`SETUP_SECTS`] there, too.
    pub(crate) header: &'a [u8],
    /// What is loaded.
    pub(crate) code: &'a [u8],
    /// Where it is loaded.
    pub(crate) address: u64,
    /// How much memory it uses from there on before it looks at the memory map.
    pub(crate) memory: u64,
    /// The longest command line, in bytes and without the end's NUL.
    pub(crate) command_line: usize,
}

impl<'a> Kernel<'a> {
    /// Looks at a bzImage.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub(crate) fn parse(image: &'a [u8]) -> Result<Self, KernelError> {
        if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
            return Err(KernelError::NotBzImage);
        }
        let version = u16::from_le_bytes(field(image, VERSION)?);
        if version < OLDEST {
            return Err(KernelError::Old(version));
        }
        if u16::from_le_bytes(field(image, XLOADFLAGS)?) & KERNEL_64 == 0 {
            return Err(KernelError::No64);
        }
        // The second byte of a jump over the header, which ends where it leads.
        let [end] = field(image, HEADER_END)?;
        let end = MAGIC + usize::from(end);
        let header = image.get(SETUP_SECTS..end).ok_or(KernelError::Short)?;
        if end < INIT_SIZE + 4 {
            return Err(KernelError::Short);
        }
        let [sectors] = field(image, SETUP_SECTS)?;
        let sectors = match sectors {
            0 => DEFAULT_SECTORS,
            sectors => usize::from(sectors),
        };
        let code = image.get((sectors + 1) * SECTOR..);
        let code = code.filter(|code| code.len() as u64 > ENTRY);
        let code = code.ok_or(KernelError::Short)?;
        let address = u64::from_le_bytes(field(image, PREF_ADDRESS)?);
        if address < 1 << 20 || !address.is_multiple_of(ALIGNMENT) {
            return Err(KernelError::Place(address));
        }
        let needed = u64::from(u32::from_le_bytes(field(image, INIT_SIZE)?));
        if needed < code.len() as u64 {
            return Err(KernelError::Size {
                needed,
                code: code.len() as u64,
            });
        }
        let limit = u32::from_le_bytes(field(image, CMDLINE_SIZE)?);
        Ok(Self {
            header,
            code,
            address,
            memory: needed.next_multiple_of(PAGE),
            command_line: usize::try_from(limit).unwrap_or(usize::MAX),
        })
    }

    /// The address of the first instruction.
    pub(crate) fn entry(&self) -> u64 {
        self.address + ENTRY
    }
}

fn field<const SIZE: usize>(image: &[u8], at: usize) -> Result<[u8; SIZE], KernelError> {
    let bytes = image.get(at..at + SIZE).ok_or(KernelError::Short)?;
    bytes.try_into().map_err(|_| KernelError::Short)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The smallest bzImage: a header, and code that counts.
    pub(crate) fn bzimage(code: usize, init_size: u32) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[SETUP_SECTS] = 1;
        image[HEADER_END] = 0x6a;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[XLOADFLAGS] = 1;
        image[CMDLINE_SIZE..CMDLINE_SIZE + 4].copy_from_slice(&2047_u32.to_le_bytes());
        image[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        image[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&init_size.to_le_bytes());
        image.extend((0..code).map(|at| (at / 3) as u8 | 1));
        image
    }

    #[test]
    fn code_and_place_are_found() {
        let image = bzimage(5000, 1 << 20);
        let kernel = Kernel::parse(&image).unwrap();
        assert_eq!(kernel.code, &image[1024..]);
        assert_eq!(kernel.header, &image[0x1f1..0x26c]);
        assert_eq!((kernel.address, kernel.memory), (0x20_0000, 1 << 20));
        assert_eq!((kernel.entry(), kernel.command_line), (0x20_0200, 2047));
    }

    #[test]
    fn a_kernel_that_cannot_be_entered_is_refused() {
        type Change = fn(&mut Vec<u8>);
        let changes: [(Change, KernelError); 8] = [
            (|image| image[MAGIC] = b'h', KernelError::NotBzImage),
            (|image| image[VERSION] = 0x0b, KernelError::Old(0x020b)),
            (|image| image[XLOADFLAGS] = 2, KernelError::No64),
            (|image| image[HEADER_END] = 0x10, KernelError::Short),
            (|image| image.truncate(1024 + 0x200), KernelError::Short),
            (|image| image[SETUP_SECTS] = 200, KernelError::Short),
            (
                |image| image[PREF_ADDRESS] = 1,
                KernelError::Place(0x20_0001),
            ),
            (
                |image| image[INIT_SIZE + 2] = 0,
                KernelError::Size {
                    needed: 0,
                    code: 5000,
                },
            ),
        ];
        for (change, expected) in changes {
            let mut image = bzimage(5000, 1 << 20);
            change(&mut image);
            assert_eq!(Kernel::parse(&image), Err(expected));
        }
        assert_eq!(Kernel::parse(b"\x7fELF"), Err(KernelError::NotBzImage));
    }

    proptest! {
        #[test]
        fn a_damaged_header_never_panics(at in 0x1f0_usize..0x270, byte: u8, length in 0_usize..2000) {
            let mut image = bzimage(700, 1 << 20);
            image[at] = byte;
            let _ = Kernel::parse(&image);
            image.truncate(length);
            let _ = Kernel::parse(&image);
        }
    }
}
