//! Private RAM on its way out of QEMU, put into a file of its own.
//!
//! QEMU leaves shared RAM out of a state and writes all other RAM into it
//! (docs/devel/migration, "x-ignore-shared"). A clone's RAM is private, and a
//! state with the RAM in it can be loaded, but not mapped by many. So what QEMU
//! writes goes through here: the pages of the guest's RAM to a memory file,
//! everything else to the state, which then is as if that RAM had been shared.
//! The form of the stream is what QEMU keeps stable for migrations between its
//! versions (migration/savevm.c, migration/ram.c); what is not known in it is
//! refused, and nothing in it is believed: the sender may be hijacked.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;

/// The name of the guest's RAM among QEMU's memory blocks.
pub(super) const BLOCK: &str = "ram";

/// `QEMU_VM_FILE_MAGIC` and `QEMU_VM_FILE_VERSION`, migration/savevm.h.
const MAGIC: u32 = 0x5145_564d;
const VERSION: u32 = 3;
/// `QEMU_VM_*` of the same file: what a byte between two parts announces.
const SECTION_START: u8 = 1;
const SECTION_PART: u8 = 2;
const SECTION_END: u8 = 3;
const SUBSECTION: u8 = 5;
const CONFIGURATION: u8 = 7;
const SECTION_FOOTER: u8 = 0x7e;
/// `RAM_SAVE_FLAG_*` of migration/ram.c: the low bits of a page's address.
const ZERO: u64 = 0x02;
const MEMORY_SIZE: u64 = 0x04;
const PAGE: u64 = 0x08;
const END: u64 = 0x10;
const CONTINUE: u64 = 0x20;
/// `TARGET_PAGE_SIZE` on x86.
const PAGE_SIZE: usize = 4096;
/// Most bytes of the state: of devices, firmware and video memory.
const STATE_MAXIMUM: u64 = 256 << 20;
/// Most bytes written to the memory file at once.
const RUN_MAXIMUM: usize = 1 << 20;
/// Most items of a list in the stream's head.
const LIST_MAXIMUM: u32 = 64;

/// Why RAM was not taken apart from the state.
#[derive(Debug, thiserror::Error)]
pub(super) enum SplitError {
    /// The stream ended early or could not be read.
    #[error("read the stream")]
    Read(#[source] io::Error),
    /// The memory file could not be written.
    #[error("write the memory file")]
    Memory(#[source] io::Error),
    /// The state could not be written.
    #[error("write the state")]
    State(#[source] io::Error),
    /// The stream is not as known.
    #[error("the state's form is not known: {0}")]
    Form(&'static str),
}

/// Takes the stream of a guest with `size` bytes of RAM apart to its end, and
/// returns the bytes of the state.
pub(super) fn split(
    stream: impl Read,
    size: u64,
    memory: &File,
    state: &File,
) -> Result<u64, SplitError> {
    let mut splitter = Splitter {
        stream: BufReader::with_capacity(RUN_MAXIMUM, stream),
        state: BufWriter::with_capacity(RUN_MAXIMUM, state),
        state_bytes: 0,
        pages: Pages {
            file: memory,
            wanted: size,
            size: 0,
            run: Vec::new(),
            run_offset: 0,
            written: 0,
        },
        current: None,
    };
    splitter.head()?;
    splitter.sections()?;
    splitter.rest()?;
    splitter.pages.flush()?;
    splitter.state.flush().map_err(SplitError::State)?;
    if splitter.pages.size == 0 {
        return Err(SplitError::Form("the guest's ram is not in it"));
    }
    Ok(splitter.state_bytes)
}

struct Splitter<'a, R> {
    stream: BufReader<R>,
    state: BufWriter<&'a File>,
    state_bytes: u64,
    pages: Pages<'a>,
    /// Whether the last page with a name was the guest's RAM; none before one.
    current: Option<bool>,
}

impl<R: Read> Splitter<'_, R> {
    /// Magic, version and configuration.
    fn head(&mut self) -> Result<(), SplitError> {
        if self.pass_u32()? != MAGIC || self.pass_u32()? != VERSION {
            return Err(SplitError::Form("its beginning"));
        }
        Ok(())
    }

    /// The configuration, then the sections of RAM, up to the first that is
    /// another's: QEMU writes all of the RAM before the devices.
    fn sections(&mut self) -> Result<(), SplitError> {
        let mut tag = self.pass_byte()?;
        if tag == CONFIGURATION {
            let length = self.pass_u32()?;
            self.pass(length.into())?;
            tag = self.pass_byte()?;
            while tag == SUBSECTION {
                self.subsection()?;
                tag = self.pass_byte()?;
            }
        }
        let mut section = None;
        loop {
            let number = match tag {
                SECTION_START | SECTION_PART | SECTION_END => self.pass_u32()?,
                _ => return Err(SplitError::Form("a part before the end of the ram")),
            };
            match (tag, section) {
                (SECTION_START, None) => {
                    if self.pass_text()? != b"ram" {
                        return Err(SplitError::Form("its first section is not the ram"));
                    }
                    // Instance and version.
                    self.pass(8)?;
                    section = Some(number);
                }
                (SECTION_PART | SECTION_END, Some(known)) if known == number => {}
                _ => return Err(SplitError::Form("a section beside the ram")),
            }
            self.records()?;
            if self.pass_byte()? != SECTION_FOOTER || self.pass_u32()? != number {
                return Err(SplitError::Form("the end of a section"));
            }
            if tag == SECTION_END {
                return Ok(());
            }
            tag = self.pass_byte()?;
        }
    }

    /// A part of the configuration, of those that are known.
    fn subsection(&mut self) -> Result<(), SplitError> {
        let name = self.pass_text()?;
        self.pass_u32()?;
        match name.as_slice() {
            b"configuration/capabilities" => {
                let count = self.pass_u32()?;
                if count > LIST_MAXIMUM {
                    return Err(SplitError::Form("its list of capabilities"));
                }
                for _ in 0..count {
                    self.pass_text()?;
                }
                Ok(())
            }
            b"configuration/target-page-bits" => self.pass(4),
            b"configuration/uuid" => self.pass(16),
            _ => Err(SplitError::Form("its configuration")),
        }
    }

    /// The records of one section of RAM: the list of the blocks, and pages.
    fn records(&mut self) -> Result<(), SplitError> {
        loop {
            let word = u64::from_be_bytes(self.take()?);
            let flags = word % PAGE_SIZE as u64;
            let address = word - flags;
            match flags & !CONTINUE {
                END if flags == END => return self.emit(&word.to_be_bytes()),
                MEMORY_SIZE if flags == MEMORY_SIZE => {
                    self.emit(&word.to_be_bytes())?;
                    self.blocks(address)?;
                }
                kind @ (ZERO | PAGE) => {
                    let named = flags & CONTINUE == 0;
                    self.page(word, address, kind, named)?;
                }
                _ => return Err(SplitError::Form("a record of the ram")),
            }
        }
    }

    /// The list of the blocks, which is `total` bytes of RAM long.
    fn blocks(&mut self, total: u64) -> Result<(), SplitError> {
        let mut left = total;
        for _ in 0..LIST_MAXIMUM {
            if left == 0 {
                return Ok(());
            }
            let name = self.pass_text()?;
            let length = self.take()?;
            self.emit(&length)?;
            let length = u64::from_be_bytes(length);
            // Where it lies, sent because shared RAM is left where it is.
            self.pass(8)?;
            if name == BLOCK.as_bytes() {
                self.pages.resize(length)?;
            }
            left = left
                .checked_sub(length)
                .ok_or(SplitError::Form("its list of memory blocks"))?;
        }
        Err(SplitError::Form("its list of memory blocks"))
    }

    /// A page: that of another block is passed on, that of the guest's RAM is
    /// put where it belongs.
    fn page(&mut self, word: u64, address: u64, kind: u64, named: bool) -> Result<(), SplitError> {
        let name = if named { Some(self.text()?) } else { None };
        let is_ram = match &name {
            Some(name) => name == BLOCK.as_bytes(),
            None => self.current.ok_or(SplitError::Form("a page of no block"))?,
        };
        self.current = Some(is_ram);
        if !is_ram {
            self.emit(&word.to_be_bytes())?;
            if let Some(name) = name {
                self.emit(&[u8::try_from(name.len()).unwrap_or(u8::MAX)])?;
                self.emit(&name)?;
            }
            return self.pass(if kind == ZERO { 1 } else { PAGE_SIZE as u64 });
        }
        if kind == ZERO {
            let [byte] = self.take()?;
            return self.pages.put(address, &[byte; PAGE_SIZE]);
        }
        let page: [u8; PAGE_SIZE] = self.take()?;
        self.pages.put(address, &page)
    }

    /// Everything after the RAM.
    fn rest(&mut self) -> Result<(), SplitError> {
        let room = STATE_MAXIMUM.saturating_sub(self.state_bytes);
        let mut buffer = vec![0; RUN_MAXIMUM];
        let mut passed = 0;
        loop {
            let length = match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(SplitError::Read(error)),
            };
            passed += length as u64;
            if passed > room {
                return Err(SplitError::Form("it is too long"));
            }
            self.emit(&buffer[..length])?;
        }
        if passed == 0 {
            return Err(SplitError::Form("no device is in it"));
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], SplitError> {
        let mut bytes = [0; N];
        self.stream
            .read_exact(&mut bytes)
            .map_err(SplitError::Read)?;
        Ok(bytes)
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        self.state_bytes += bytes.len() as u64;
        if self.state_bytes > STATE_MAXIMUM {
            return Err(SplitError::Form("it is too long"));
        }
        self.state.write_all(bytes).map_err(SplitError::State)
    }

    fn pass_byte(&mut self) -> Result<u8, SplitError> {
        let [byte] = self.take()?;
        self.emit(&[byte])?;
        Ok(byte)
    }

    fn pass_u32(&mut self) -> Result<u32, SplitError> {
        let bytes = self.take()?;
        self.emit(&bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn pass(&mut self, length: u64) -> Result<(), SplitError> {
        let mut left = length;
        let mut buffer = [0; PAGE_SIZE];
        while left > 0 {
            let part = usize::try_from(left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE));
            self.stream
                .read_exact(&mut buffer[..part])
                .map_err(SplitError::Read)?;
            self.emit(&buffer[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// A text with its length in one byte before it.
    fn text(&mut self) -> Result<Vec<u8>, SplitError> {
        let [length] = self.take()?;
        let mut text = vec![0; length.into()];
        self.stream
            .read_exact(&mut text)
            .map_err(SplitError::Read)?;
        Ok(text)
    }

    fn pass_text(&mut self) -> Result<Vec<u8>, SplitError> {
        let text = self.text()?;
        self.emit(&[u8::try_from(text.len()).unwrap_or(u8::MAX)])?;
        self.emit(&text)?;
        Ok(text)
    }
}

/// The memory file: neighbouring pages are written at once, and a page of
/// zeroes that nothing was written over stays a hole.
struct Pages<'a> {
    file: &'a File,
    /// The size that the guest's RAM has.
    wanted: u64,
    /// The same once the stream has told it, 0 before.
    size: u64,
    run: Vec<u8>,
    run_offset: u64,
    /// Nothing was written from here on.
    written: u64,
}

impl Pages<'_> {
    fn resize(&mut self, size: u64) -> Result<(), SplitError> {
        if size != self.wanted || !size.is_multiple_of(PAGE_SIZE as u64) {
            return Err(SplitError::Form("the size of the ram"));
        }
        self.file.set_len(size).map_err(SplitError::Memory)?;
        self.size = size;
        Ok(())
    }

    fn put(&mut self, offset: u64, page: &[u8; PAGE_SIZE]) -> Result<(), SplitError> {
        if offset >= self.size {
            return Err(SplitError::Form("a page beyond the end of the ram"));
        }
        let end = self.run_offset + self.run.len() as u64;
        let is_hole = page.iter().all(|byte| *byte == 0) && offset >= self.written.max(end);
        if is_hole {
            return Ok(());
        }
        if offset != end || self.run.len() >= RUN_MAXIMUM {
            self.flush()?;
            self.run_offset = offset;
        }
        self.run.extend_from_slice(page);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SplitError> {
        self.file
            .write_all_at(&self.run, self.run_offset)
            .map_err(SplitError::Memory)?;
        self.written = self.written.max(self.run_offset + self.run.len() as u64);
        self.run_offset += self.run.len() as u64;
        self.run.clear();
        Ok(())
    }
}

#[cfg(test)]
#[path = "ram_tests.rs"]
mod tests;
