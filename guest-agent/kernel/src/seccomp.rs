//! seccomp(2): filters of the calling thread's system calls.

use std::io;

/// An instruction of the classic BPF machine (`struct sock_filter`,
/// linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions to skip where its test holds.
    pub if_true: u8,
    /// How many to skip where it does not.
    pub if_false: u8,
    /// Its operand.
    pub operand: u32,
}

/// The most instructions of a program (`BPF_MAXINSNS`, linux/bpf_common.h).
pub const INSTRUCTIONS_MAX: usize = 4096;
/// Filter the other threads of the process too.
pub const SYNCHRONIZE_THREADS: u32 = libc::SECCOMP_FILTER_FLAG_TSYNC as u32;
/// Log every action but allow.
pub const LOG: u32 = libc::SECCOMP_FILTER_FLAG_LOG as u32;
/// Do not turn the mitigation of speculative stores on.
pub const SPECULATION_ALLOWED: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;

/// Has the kernel ask `program` about every further system call of the calling
/// thread and of what it executes.
///
/// # Errors
/// Those of seccomp(2): `EACCES` with neither no_new_privs nor CAP_SYS_ADMIN,
/// `EINVAL` for a program that is none or where the kernel has no filters.
pub fn install(program: &[Instruction], flags: u32) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|one| libc::sock_filter {
            code: one.code,
            jt: one.if_true,
            jf: one.if_false,
            k: one.operand,
        })
        .collect();
    let argument = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the structure and the instructions it points at outlive the
    // call, which copies and checks them; their number is that of the vector.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const argument,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        // A thread that could not be filtered.
        _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_an_end_is_refused() {
        assert!(install(&[], 0).is_err());
        // A lone load: it falls off the end.
        let load = Instruction {
            code: 0x20,
            if_true: 0,
            if_false: 0,
            operand: 0,
        };
        assert!(install(&[load], 0).is_err());
    }
}
