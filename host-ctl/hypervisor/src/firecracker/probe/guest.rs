//! The smallest guest: it says one word on its console and resets.

/// What it says.
pub(super) const WORD: &[u8] = b"tardigrade";

/// Where it is loaded: above the first MiB, which a PC reserves in part.
const ADDRESS: u64 = 0x100_0000;
/// Sizes of the ELF header and of one program header (elf(5)).
const HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// x86-64 machine code. It is entered in long mode with memory mapped one to
/// one (the kernel's 64-bit boot protocol).
const CODE: [u8; 29] = [
    0x66,
    0xba,
    0xf8,
    0x03, // mov dx, 0x3f8: the first UART
    0x48,
    0x8d,
    0x35,
    0x12,
    0x00,
    0x00,
    0x00, // lea rsi, [rip + 18]: the word
    0xb9,
    WORD.len() as u8,
    0x00,
    0x00,
    0x00, // mov ecx, its length
    0xfc, // cld
    0xac, // lodsb
    0xee, // out dx, al
    0xe2,
    0xfc, // loop to lodsb
    0xb0,
    0xfe, // mov al, 0xfe: pulse the reset line
    0xe6,
    0x64, // out 0x64, al: the keyboard controller
    0xf4, // hlt
    0xeb,
    0xfd, // jmp to hlt
    0x90, // nop
];

/// The guest as an ELF image of one segment.
pub(super) fn image() -> Vec<u8> {
    let begin = HEADER + PROGRAM_HEADER;
    let size = u64::from(begin) + (CODE.len() + WORD.len()) as u64;
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01");
    image.resize(16, 0);
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes()); // ET_EXEC, EM_X86_64
    }
    image.extend(1u32.to_le_bytes());
    for word in [ADDRESS + u64::from(begin), u64::from(HEADER), 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    image.extend(0u32.to_le_bytes());
    for half in [HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        image.extend(word.to_le_bytes()); // PT_LOAD, to be read and executed
    }
    // The file from its beginning, to this address, physical and virtual.
    for word in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        image.extend(word.to_le_bytes());
    }
    image.extend(CODE);
    image.extend(WORD);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_as_long_as_its_segment_and_ends_with_the_word() {
        let image = image();
        let field = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let entry = usize::try_from(field(24) - ADDRESS).unwrap();
        assert_eq!(field(96), image.len() as u64);
        assert_eq!(image[entry..entry + 4], CODE[..4]);
        // What lea names: its operand counts from the next instruction.
        let named = entry + 11 + usize::from(CODE[7]);
        assert_eq!(&image[named..], WORD);
    }
}
