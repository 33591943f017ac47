//! What the builder wants to know of an ELF file: machine, interpreter, and
//! what a kernel module says about itself.

use object::Endianness;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Object, ObjectSection};

/// Why a file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not a 64-bit ELF file, or a damaged one.
    #[error("parse as a 64-bit ELF file")]
    Parse(#[from] object::Error),
    /// PID 1 of an initrd cannot load shared libraries: there are none.
    #[error("a program for an initrd is static, but this one wants the interpreter {0}")]
    Interpreter(String),
    /// A section every kernel module has is not there.
    #[error("no kernel module: its .modinfo has no {0}")]
    NoModule(&'static str),
}

/// The `e_machine` of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine(pub u16);

type Elf<'a> = ElfFile64<'a, Endianness>;

/// The machine of a program that runs without an interpreter.
///
/// # Errors
/// See [`ElfError`].
pub fn static_program(bytes: &[u8]) -> Result<Machine, ElfError> {
    let elf = Elf::parse(bytes)?;
    for segment in elf.elf_program_headers() {
        if let Some(interpreter) = segment.interpreter(elf.endian(), bytes)? {
            let name = String::from_utf8_lossy(interpreter)
                .chars()
                .take(128)
                .collect();
            return Err(ElfError::Interpreter(name));
        }
    }
    Ok(machine(&elf))
}

/// What a kernel module says about itself in its `.modinfo` section: see
/// `modinfo(8)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its name, with underscores.
    pub name: String,
    /// The modules it needs loaded before it.
    pub depends: Vec<String>,
    /// The release of the kernel it was built for: the first word of
    /// `vermagic`.
    pub release: String,
    /// The machine it was built for.
    pub machine: Machine,
}

/// Reads a kernel module's description of itself.
///
/// # Errors
/// See [`ElfError`].
pub fn module_info(bytes: &[u8]) -> Result<ModuleInfo, ElfError> {
    let elf = Elf::parse(bytes)?;
    let section = elf
        .section_by_name(".modinfo")
        .ok_or(ElfError::NoModule("entry"))?;
    let mut info = ModuleInfo {
        name: String::new(),
        depends: Vec::new(),
        release: String::new(),
        machine: machine(&elf),
    };
    for entry in section.data()?.split(|&byte| byte == 0) {
        let Some((key, value)) = std::str::from_utf8(entry)
            .ok()
            .and_then(|text| text.split_once('='))
        else {
            continue;
        };
        match key {
            "name" => info.name = value.replace('-', "_"),
            "vermagic" => value
                .split(' ')
                .next()
                .unwrap_or_default()
                .clone_into(&mut info.release),
            "depends" => {
                info.depends = value
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(|name| name.replace('-', "_"))
                    .collect();
            }
            _ => {}
        }
    }
    if info.name.is_empty() {
        return Err(ElfError::NoModule("name"));
    }
    if info.release.is_empty() {
        return Err(ElfError::NoModule("vermagic"));
    }
    Ok(info)
}

fn machine(elf: &Elf<'_>) -> Machine {
    Machine(elf.elf_header().e_machine(elf.endian()).0)
}
