//! bpf(2), for one kind of program: which devices may be used in a cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An instruction of the BPF machine (`struct bpf_insn`, linux/bpf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// The register it changes in the lower four bits, the one it reads in the
    /// upper.
    pub registers: u8,
    /// A jump's distance, or a place in memory.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

/// `enum bpf_cmd`.
const PROGRAM_LOAD: libc::c_long = 5;
const PROGRAM_ATTACH: libc::c_long = 8;
const PROGRAM_DETACH: libc::c_long = 9;
const PROGRAM_BY_ID: libc::c_long = 13;
const PROGRAM_QUERY: libc::c_long = 16;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: a program further up has its say too.
const ALLOW_MULTIPLE: u32 = 2;
/// It calls nothing that a licence would matter for.
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// The first fields of `union bpf_attr` for loading.
#[repr(C)]
struct LoadArgument {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The first fields of `union bpf_attr` for attaching.
#[repr(C)]
struct AttachArgument {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// The first fields of `union bpf_attr` for asking what is attached.
#[repr(C)]
struct QueryArgument {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// Those for a descriptor of a program.
#[repr(C)]
struct IdArgument {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// How often a command is tried. The kernel gives up checking a program when a
/// signal is pending, and says `EAGAIN`; the signal is gone by the next time.
const ATTEMPTS: usize = 16;

fn call<T>(command: libc::c_long, argument: &T) -> io::Result<i32> {
    let mut outcome = call_once(command, argument);
    for _ in 1..ATTEMPTS {
        match &outcome {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            _ => break,
        }
        outcome = call_once(command, argument);
    }
    outcome
}

fn call_once<T>(command: libc::c_long, argument: &T) -> io::Result<i32> {
    call_with(command, std::ptr::from_ref(argument).cast_mut())
}

fn call_with<T>(command: libc::c_long, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the commands read the fields of their argument, whose size says
    // how many there are, and what its pointers lead to; it and they outlive
    // the call. Only PROGRAM_QUERY writes, to fields and to a place that its
    // caller made to be written.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, argument, size_of::<T>()) };
    match i32::try_from(result) {
        Ok(-1) => Err(io::Error::last_os_error()),
        Ok(result) => Ok(result),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Has the kernel check a program that says whether a device may be used.
///
/// # Errors
/// Those of bpf(2): `EINVAL` or `EACCES` for a program that may not run,
/// `ENOSYS` and `EINVAL` where the kernel has none of this.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let argument = LoadArgument {
        program_type: CGROUP_DEVICE_PROGRAM,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    let program = call(PROGRAM_LOAD, &argument)?;
    // SAFETY: the kernel has just made the descriptor, close-on-exec as all of
    // bpf's are, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Has `program` asked about every device used by a process in the cgroup v2
/// directory `cgroup` and below it, for as long as the cgroup lives.
///
/// # Errors
/// Those of bpf(2): `EBADF` for what is no cgroup.
pub fn attach_device_program(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let number = |descriptor: BorrowedFd<'_>| {
        u32::try_from(descriptor.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)
    };
    let argument = AttachArgument {
        target: number(cgroup)?,
        program: number(program)?,
        attach_type: CGROUP_DEVICE,
        flags: ALLOW_MULTIPLE,
    };
    call(PROGRAM_ATTACH, &argument).map(drop)
}

/// Takes the device programs off `cgroup` itself, not off those above it; how
/// many it had. It is what a workload that may do so could do to its own, for
/// the tests of that.
///
/// # Errors
/// Those of bpf(2): `EPERM` without CAP_SYS_ADMIN.
pub fn detach_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<usize> {
    let number = |descriptor: BorrowedFd<'_>| {
        u32::try_from(descriptor.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)
    };
    let mut ids = [0u32; 64];
    let mut query = QueryArgument {
        target: number(cgroup)?,
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: 64,
    };
    call_with(PROGRAM_QUERY, &raw mut query)?;
    let count = usize::try_from(query.count).map_err(|_| io::ErrorKind::InvalidData)?;
    for id in ids.iter().take(count) {
        let argument = IdArgument {
            id: *id,
            next_id: 0,
            flags: 0,
        };
        let program = call(PROGRAM_BY_ID, &argument)?;
        // SAFETY: as of every descriptor that bpf(2) has just made.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let argument = AttachArgument {
            target: number(cgroup)?,
            program: number(program.as_fd())?,
            attach_type: CGROUP_DEVICE,
            flags: 0,
        };
        call(PROGRAM_DETACH, &argument)?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_says_nothing_is_refused_and_one_that_does_is_not() {
        let exit = Instruction {
            code: 0x95,
            registers: 0,
            offset: 0,
            immediate: 0,
        };
        // It must be in register 0 what it says.
        assert!(load_device_program(&[exit]).is_err());
        let zero = Instruction { code: 0xb7, ..exit };
        match load_device_program(&[zero, exit]) {
            Ok(program) => {
                let file = std::fs::File::open("/").unwrap();
                let error = attach_device_program(program.as_fd(), file.as_fd()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EBADF));
            }
            Err(error) => eprintln!("skipped: no device programs here: {error}"),
        }
    }
}
