//! A kernel's image without its wrapping: the ELF vmlinux that a bzImage
//! unpacks itself to. Some VMMs boot nothing else.
//!
//! Where things lie is from the kernel's Documentation/arch/x86/boot.rst, "The
//! Real-Mode Kernel Header"; how they are packed from its scripts/Makefile.lib.

use std::io::{self, Read};

/// The largest image that is read or unpacked, in bytes. A distribution's is
/// 50 MiB.
pub const MAX_IMAGE_BYTES: usize = 512 << 20;

/// Size of a setup sector, and the sectors of a header that names none.
const SECTOR: usize = 512;
const DEFAULT_SECTORS: usize = 4;
/// Fields of the header.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version of the header that tells where the payload is.
const OLDEST: u16 = 0x0208;
/// How an ELF file begins (elf(5)).
const ELF: &[u8] = b"\x7fELF";

/// Why an image can't be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Neither a bzImage nor an ELF image.
    #[error("neither a bzImage nor an elf image")]
    Unknown,
    /// More than is read.
    #[error("larger than {MAX_IMAGE_BYTES} bytes")]
    Large,
    /// A bzImage of before 2008, Linux 2.6.26.
    #[error(
        "boot protocol {0:#06x} is older than {OLDEST:#06x} and does not tell where the payload is"
    )]
    Old(u16),
    /// It ends before its payload does.
    #[error("cut short")]
    Short,
    /// Compressed in a way that is not known here.
    #[error("compressed in an unknown way: the payload begins with {0:02x?}")]
    Compression([u8; 4]),
    /// The payload is damaged.
    #[error("unpack {format}: {source}")]
    Unpack {
        /// How it is compressed.
        format: &'static str,
        /// What the decoder said.
        source: io::Error,
    },
    /// More or less came out than the payload says.
    #[error("unpacked to {found} bytes, {wanted} were announced")]
    Length {
        /// What came out, at most one more than [`MAX_IMAGE_BYTES`].
        found: usize,
        /// What was to come out.
        wanted: usize,
    },
    /// What came out is no kernel.
    #[error("what is packed in it is no elf image")]
    NotElf,
}

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Xz,
    Zstd,
    Lz4,
}

impl Format {
    fn of(payload: &[u8]) -> Result<Self, ImageError> {
        let beginning: [u8; 4] = array(payload, 0)?;
        match beginning {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0xfd, b'7', b'z', b'X'] => Ok(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd] => Ok(Self::Zstd),
            // The old frame format, which is what the kernel's build makes.
            [0x02, 0x21, 0x4c, 0x18] => Ok(Self::Lz4),
            other => Err(ImageError::Compression(other)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }

    fn unpack(self, packed: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => read_all(flate2::read::GzDecoder::new(packed)),
            Self::Xz => read_all(lzma_rust2::XzReader::new(packed, false)),
            Self::Lz4 => read_all(lz4_flex::frame::FrameDecoder::new(packed)),
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
                read_all(decoder.map_err(io::Error::other)?)
            }
        }
    }
}

/// The ELF image of a kernel, of a bzImage or of itself.
///
/// # Errors
/// When it is neither, larger than [`MAX_IMAGE_BYTES`], damaged, or compressed
/// in a way that is not known here.
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>, ImageError> {
    if image.len() > MAX_IMAGE_BYTES {
        return Err(ImageError::Large);
    }
    if image.starts_with(ELF) {
        return Ok(image.to_vec());
    }
    let payload = payload(image)?;
    let format = Format::of(payload)?;
    // The length of what comes out closes the payload. It is a part of gzip's
    // own format, and is appended to all others.
    let size = payload.len().checked_sub(4).ok_or(ImageError::Short)?;
    let (packed, announced) = payload.split_at(size);
    let packed = if format == Format::Gzip {
        payload
    } else {
        packed
    };
    let unpacked = format.unpack(packed);
    let unpacked = unpacked.map_err(|source| ImageError::Unpack {
        format: format.name(),
        source,
    })?;
    let wanted = number(announced, 0)?;
    if unpacked.len() != wanted || wanted > MAX_IMAGE_BYTES {
        return Err(ImageError::Length {
            found: unpacked.len(),
            wanted,
        });
    }
    if unpacked.starts_with(ELF) {
        Ok(unpacked)
    } else {
        Err(ImageError::NotElf)
    }
}

/// The packed kernel in a bzImage.
fn payload(image: &[u8]) -> Result<&[u8], ImageError> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(ImageError::Unknown);
    }
    let version = u16::from_le_bytes(array(image, VERSION)?);
    if version < OLDEST {
        return Err(ImageError::Old(version));
    }
    let sectors = match image.get(SETUP_SECTS) {
        None | Some(0) => DEFAULT_SECTORS,
        Some(&count) => usize::from(count),
    };
    // After the boot sector and the setup sectors.
    let begin = (sectors + 1) * SECTOR;
    let begin = begin.checked_add(number(image, PAYLOAD_OFFSET)?);
    let length = number(image, PAYLOAD_LENGTH)?;
    let range = begin.and_then(|begin| Some(begin..begin.checked_add(length)?));
    range
        .and_then(|range| image.get(range))
        .ok_or(ImageError::Short)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ImageError> {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    found.copied().ok_or(ImageError::Short)
}

fn number(bytes: &[u8], at: usize) -> Result<usize, ImageError> {
    let number = u32::from_le_bytes(array(bytes, at)?);
    usize::try_from(number).map_err(|_| ImageError::Short)
}

/// All of it, and one byte more than is allowed where there is more.
fn read_all(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(MAX_IMAGE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A bzImage around a payload, its length announced as the kernel's build
    /// does.
    fn wrapped(format: Format, kernel: &[u8]) -> Vec<u8> {
        let mut payload = packed(format, kernel);
        if format != Format::Gzip {
            payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        }
        let mut image = vec![0; 3 * SECTOR + 100];
        image[SETUP_SECTS] = 2;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&100u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image.extend(b"what follows it");
        image
    }

    fn packed(format: Format, kernel: &[u8]) -> Vec<u8> {
        match format {
            Format::Gzip => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(kernel).unwrap();
                encoder.finish().unwrap()
            }
            Format::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(1);
                let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                encoder.write_all(kernel).unwrap();
                encoder.finish().unwrap()
            }
            Format::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                ruzstd::encoding::compress_to_vec(kernel, level)
            }
            // Blocks of at most 8 MiB, each after its length.
            Format::Lz4 => {
                let mut bytes = vec![0x02, 0x21, 0x4c, 0x18];
                for block in kernel.chunks(8 << 20) {
                    let block = lz4_flex::block::compress(block);
                    bytes.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
                    bytes.extend(block);
                }
                bytes
            }
        }
    }

    const FORMATS: [Format; 4] = [Format::Gzip, Format::Xz, Format::Zstd, Format::Lz4];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_was_packed_comes_out(body in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let kernel = [ELF, &body].concat();
            for format in FORMATS {
                prop_assert_eq!(&vmlinux(&wrapped(format, &kernel)).unwrap(), &kernel);
            }
            prop_assert_eq!(&vmlinux(&kernel).unwrap(), &kernel);
        }

        #[test]
        fn a_damaged_image_is_an_error_or_the_same_kernel(
            at in any::<proptest::sample::Index>(),
            bit in 0..8u8,
            cut in any::<proptest::sample::Index>(),
        ) {
            let kernel = [ELF, b"kernel".repeat(50).as_slice()].concat();
            for format in FORMATS {
                let image = wrapped(format, &kernel);
                let cut = cut.index(image.len());
                if let Ok(unpacked) = vmlinux(&image[..cut]) {
                    prop_assert_eq!(&unpacked, &kernel);
                }
                let mut flipped = image.clone();
                flipped[at.index(image.len())] ^= 1 << bit;
                // What one bit does to a byte of the kernel, the checksums of
                // lz4 and zstd do not tell; its length does not change.
                if let Ok(unpacked) = vmlinux(&flipped) {
                    prop_assert_eq!(unpacked.len(), kernel.len());
                }
            }
        }
    }

    #[test]
    fn several_blocks_of_lz4_are_one_kernel() {
        let mut kernel = ELF.to_vec();
        kernel.resize((8 << 20) + 5, 7);
        assert_eq!(vmlinux(&wrapped(Format::Lz4, &kernel)).unwrap(), kernel);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |image: &[u8]| vmlinux(image).unwrap_err().to_string();
        assert!(named(b"no kernel").contains("neither"));
        let mut old = wrapped(Format::Gzip, ELF);
        old[VERSION] = 7;
        assert!(named(&old).contains("0x0207"));
        let mut unknown = wrapped(Format::Gzip, ELF);
        unknown[3 * SECTOR + 100] = b'B';
        assert!(named(&unknown).contains("[42, 8b"));
        assert!(named(&wrapped(Format::Xz, b"no elf")).contains("no elf image"));
        let mut longer = wrapped(Format::Lz4, ELF);
        let last = longer.len() - b"what follows it".len() - 4;
        longer[last] += 1;
        assert!(named(&longer).contains("4 bytes, 5 were"));
        let mut large = vec![0; MAX_IMAGE_BYTES + 1];
        large[..ELF.len()].copy_from_slice(ELF);
        assert!(named(&large).contains("larger than"));
    }
}
