//! Small ELF files for the tests: kernel modules and programs that say what a
//! test wants them to say.

use std::path::Path;

/// x86_64 in `e_machine`.
pub(crate) const MACHINE: u16 = 62;
pub(crate) const RELEASE: &str = "6.1.0-test";

/// The ELF header and what it points at, by elf(5).
struct Layout<'a> {
    kind: u16,
    machine: u16,
    segments: &'a [u8],
    sections: &'a [(&'a str, &'a [u8])],
}

impl Layout<'_> {
    fn to_bytes(&self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const SEGMENT: usize = 56;
        let mut names = vec![0];
        let mut data: Vec<u8> = Vec::new();
        let mut headers = vec![0; 64];
        let data_start = HEADER + self.segments.len() as u64;
        let mut add = |name: &str, kind: u32, bytes: &[u8], names: &mut Vec<u8>| {
            headers.extend((names.len() as u32).to_le_bytes());
            headers.extend(kind.to_le_bytes());
            headers.extend([0; 16]);
            headers.extend((data_start + data.len() as u64).to_le_bytes());
            headers.extend((bytes.len() as u64).to_le_bytes());
            headers.extend([0; 24]);
            names.extend(name.as_bytes());
            names.push(0);
            data.extend(bytes);
        };
        for (name, bytes) in self.sections {
            add(name, 1, bytes, &mut names);
        }
        // Its own name first, so that it lies in what is added.
        let mut all_names = names.clone();
        all_names.extend(b".shstrtab\0");
        add(".shstrtab", 3, &all_names, &mut names);
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(self.kind.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(HEADER.to_le_bytes());
        file.extend((data_start + data.len() as u64).to_le_bytes());
        file.extend([0; 4]);
        file.extend(64u16.to_le_bytes());
        file.extend((SEGMENT as u16).to_le_bytes());
        file.extend(((self.segments.len() / SEGMENT) as u16).to_le_bytes());
        file.extend(64u16.to_le_bytes());
        file.extend((self.sections.len() as u16 + 2).to_le_bytes());
        file.extend((self.sections.len() as u16 + 1).to_le_bytes());
        file.extend(self.segments);
        file.extend(data);
        file.extend(headers);
        file
    }
}

/// A kernel module with these words in its `.modinfo`.
pub(crate) fn module_saying(words: &[String]) -> Vec<u8> {
    let information = words.join("\0") + "\0";
    let layout = Layout {
        kind: 1,
        machine: MACHINE,
        segments: &[],
        sections: &[(".modinfo", information.as_bytes())],
    };
    layout.to_bytes()
}

/// A kernel module of [`RELEASE`].
pub(crate) fn module(name: &str, depends: &[&str]) -> Vec<u8> {
    module_saying(&[
        format!("name={name}"),
        format!("depends={}", depends.join(",")),
        format!("vermagic={RELEASE} SMP mod_unload "),
    ])
}

/// A program without an interpreter.
pub(crate) fn static_program(machine: u16) -> Vec<u8> {
    let layout = Layout {
        kind: 2,
        machine,
        segments: &[],
        sections: &[(".text", b"\x90")],
    };
    layout.to_bytes()
}

/// A program that wants `/lib64/ld.so`.
pub(crate) fn dynamic_program() -> Vec<u8> {
    let name = b"/lib64/ld.so\0";
    let mut segment = 3u32.to_le_bytes().to_vec();
    segment.extend(4u32.to_le_bytes());
    segment.extend(120u64.to_le_bytes());
    segment.extend([0; 16]);
    segment.extend((name.len() as u64).to_le_bytes());
    segment.extend((name.len() as u64).to_le_bytes());
    segment.extend(1u64.to_le_bytes());
    let layout = Layout {
        kind: 3,
        machine: MACHINE,
        segments: &segment,
        sections: &[(".interp", name)],
    };
    layout.to_bytes()
}

/// Lays modules out as a distribution does: some directories down, and with
/// hyphens in file names.
pub(crate) fn lay_out(directory: &Path, modules: &[(&str, &[&str])]) {
    let below = directory.join("kernel/drivers");
    std::fs::create_dir_all(&below).unwrap();
    for (name, depends) in modules {
        let file = below.join(format!("{}.ko", name.replace('_', "-")));
        std::fs::write(file, module(name, depends)).unwrap();
    }
}

/// Every module the guest loads, each depending on the one before it.
pub(crate) fn lay_out_guest_modules(directory: &Path) {
    let names: Vec<_> = kernel_config::modules_in_load_order(None).collect();
    lay_out(directory, &[(names[0], &[])]);
    for pair in names.windows(2) {
        lay_out(directory, &[(pair[1], &[pair[0]])]);
    }
}

/// A member of a tar archive, by POSIX's ustar.
pub(crate) struct TarMember<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) link: &'a str,
    pub(crate) data: &'a [u8],
}

/// A file or, of kind 5, a directory.
pub(crate) fn member<'a>(path: &'a str, kind: u8, data: &'a [u8]) -> TarMember<'a> {
    TarMember {
        path,
        kind,
        mode: 0o755,
        owner: (0, 0),
        link: "",
        data,
    }
}

/// A link of that kind.
pub(crate) fn link<'a>(path: &'a str, kind: u8, link: &'a str) -> TarMember<'a> {
    TarMember {
        link,
        ..member(path, kind, b"")
    }
}

/// An archive of these members.
pub(crate) fn tar(members: &[TarMember<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, member.path);
        put(100, &format!("{:07o}", member.mode));
        put(108, &format!("{:07o}", member.owner.0));
        put(116, &format!("{:07o}", member.owner.1));
        put(124, &format!("{:011o}", member.data.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(156, &char::from(member.kind).to_string());
        put(157, member.link);
        put(257, "ustar\u{0}00");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(header);
        bytes.extend(member.data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
