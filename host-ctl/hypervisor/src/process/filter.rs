//! A filter of system calls that a process is started with, which its own comes
//! on top of: it makes no set-user-id and no set-group-id program.
//!
//! What a guest writes to a shared directory belongs to the directory's owner,
//! and would run as that owner for every user of the host. All calls that set
//! the mode of a file that is there refuse these two bits. Calls that make a file
//! may set them, as openat2(2) takes the mode where no filter sees it; but what
//! they make is empty, and the kernel takes the bits from a file that is written
//! to, lengthened or given another's contents by a process without CAP_FSETID
//! (inode(7)), which such a process has not.
//!
//! It leaves a file the set-group-id bit that its group may not execute, which
//! means nothing. A change of its mode would be refused or take the bit away, but
//! one of its access control list would do neither (acl(5)): no extended
//! attribute is set. That is one of the calls that io_uring(7) has, too.
//!
//! A directory passes its set-group-id bit on to those made in it as ever: that
//! is the kernel's doing.
#![expect(unsafe_code, reason = "a filter of system calls has no safe interface")]

use std::mem::offset_of;

use rustix::io::Errno;

use super::spawn::last_errno;

/// What a process is started with besides its own filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// This one.
    NoPrivilegedPrograms,
}

/// The bits of a mode that no call may set.
const REFUSED: u32 = libc::S_ISUID | libc::S_ISGID;

/// The architecture's number, linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// The architecture's number, linux/audit.h.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The bit of the numbers of x32, which other architectures do not get to.
const X32: u32 = 0x4000_0000;

/// The same on every architecture, since Linux 6.6; a C library may not know it.
const FCHMODAT2: u32 = 452;
/// The same, since Linux 6.13.
const SETXATTRAT: u32 = 463;

/// The calls that set a mode, and where they take it.
#[cfg(target_arch = "x86_64")]
const CALLS: [(u32, usize); 4] = [
    (libc::SYS_chmod as u32, 1),
    (libc::SYS_fchmod as u32, 1),
    (libc::SYS_fchmodat as u32, 2),
    (FCHMODAT2, 2),
];
/// The calls that set a mode, and where they take it.
#[cfg(target_arch = "aarch64")]
const CALLS: [(u32, usize); 3] = [
    (libc::SYS_fchmod as u32, 1),
    (libc::SYS_fchmodat as u32, 2),
    (FCHMODAT2, 2),
];

/// The calls that are refused whatever their arguments are: those that set an
/// extended attribute, and io_uring_setup(2).
const OTHERS: [u32; 5] = [
    libc::SYS_setxattr as u32,
    libc::SYS_lsetxattr as u32,
    libc::SYS_fsetxattr as u32,
    SETXATTRAT,
    libc::SYS_io_uring_setup as u32,
];

/// Load a word of what the kernel tells of a call, linux/bpf_common.h.
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
/// Go on where the word is this.
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
/// Go on where it is not below this.
const NOT_LESS: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
/// Go on where it has one of these bits.
const HAS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
/// Answer.
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// How many instructions come before those of the calls, for each that takes a
/// mode, and for each of the others.
const FIRST: usize = 6;
const EACH: usize = 5;
const EACH_OTHER: usize = 2;
const LENGTH: usize = FIRST + EACH * CALLS.len() + EACH_OTHER * OTHERS.len() + 1;

/// What the kernel asks about each call (seccomp(2)).
static PROGRAM: [libc::sock_filter; LENGTH] = program();

const fn program() -> [libc::sock_filter; LENGTH] {
    const ALLOW: libc::sock_filter = instruction(RETURN, libc::SECCOMP_RET_ALLOW);
    const KILL: libc::sock_filter = instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS);
    const REFUSE: libc::sock_filter =
        instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    let mut program = [ALLOW; LENGTH];
    program[0] = instruction(LOAD, offset_of!(libc::seccomp_data, arch) as u32);
    program[1] = jump(EQUAL, ARCHITECTURE, 1, 0);
    program[2] = KILL;
    program[3] = instruction(LOAD, offset_of!(libc::seccomp_data, nr) as u32);
    program[4] = jump(NOT_LESS, X32, 0, 1);
    program[5] = KILL;
    let mut index = 0;
    while index < CALLS.len() {
        let (number, argument) = CALLS[index];
        let at = FIRST + EACH * index;
        // Both architectures have the lower half of an argument first.
        let mode = offset_of!(libc::seccomp_data, args) + argument * size_of::<u64>();
        program[at] = jump(EQUAL, number, 0, 4);
        program[at + 1] = instruction(LOAD, mode as u32);
        program[at + 2] = jump(HAS, REFUSED, 0, 1);
        program[at + 3] = REFUSE;
        program[at + 4] = ALLOW;
        index += 1;
    }
    let others = FIRST + EACH * CALLS.len();
    let mut index = 0;
    while index < OTHERS.len() {
        let at = others + EACH_OTHER * index;
        program[at] = jump(EQUAL, OTHERS[index], 0, 1);
        program[at + 1] = REFUSE;
        index += 1;
    }
    program
}

const fn instruction(code: u32, operand: u32) -> libc::sock_filter {
    jump(code, operand, 0, 0)
}

/// How many instructions are left out where a test holds, and where not.
const fn jump(code: u32, operand: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k: operand,
    }
}

impl Filter {
    /// Has the kernel ask about every further call of this thread and of what it
    /// executes. It takes no_new_privs. Allocates nothing.
    pub(super) fn install(self) -> Result<(), Errno> {
        let Self::NoPrivilegedPrograms = self;
        let program = libc::sock_fprog {
            len: LENGTH as libc::c_ushort,
            filter: PROGRAM.as_ptr().cast_mut(),
        };
        // SAFETY: the call copies as many instructions as there are, and changes
        // none of them.
        let installed = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        if installed == 0 {
            Ok(())
        } else {
            Err(last_errno())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, CWD, Mode, fchmod};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities, set_no_new_privs};
    use std::fs::{self, File, OpenOptions, Permissions};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    use std::path::Path;

    /// Does it as a process with the filter would, without capabilities.
    fn filtered<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        // Filters and capabilities are each thread's own.
        let working = std::thread::spawn(|| {
            let mut own = capabilities(None).unwrap();
            own.effective = CapabilitySet::empty();
            set_capabilities(None, own).unwrap();
            set_no_new_privs(true).unwrap();
            Filter::NoPrivilegedPrograms.install().unwrap();
            work()
        });
        working.join().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn no_call_gives_a_file_the_bits_by_which_it_runs_as_its_owner_or_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let found = filtered({
            let path = path.clone();
            move || {
                let set = |mode: u32| {
                    let file = File::open(&path).unwrap();
                    let as_mode = Mode::from_raw_mode(mode);
                    // SAFETY: it takes numbers and a string that ends in 0.
                    let newest = unsafe {
                        let (empty, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
                        libc::syscall(FCHMODAT2.into(), file.as_raw_fd(), empty, mode, flags)
                    };
                    let newest = (newest == 0).then_some(()).ok_or_else(last_errno);
                    [
                        fs::set_permissions(&path, Permissions::from_mode(mode))
                            .map_err(|error| Errno::from_io_error(&error).unwrap()),
                        fchmod(&file, as_mode),
                        rustix::fs::chmodat(CWD, &path, as_mode, AtFlags::empty()),
                        newest,
                    ]
                };
                [0o4755, 0o2755, 0o6000, 0o1755].map(set)
            }
        });
        let [privileged @ .., sticky] = found;
        for refused in privileged.iter().flatten() {
            assert_eq!(*refused, Err(Errno::PERM));
        }
        // fchmodat2(2) is as new as Linux 6.6.
        assert_eq!(sticky[..3], [Ok(()); 3]);
        assert!([Ok(()), Err(Errno::NOSYS)].contains(&sticky[3]));
        assert_eq!(mode(&path), 0o1755);
    }

    #[test]
    fn a_file_that_was_made_with_these_bits_has_lost_them_when_there_is_something_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        filtered(move || {
            let make = |name: &str| {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o6755);
                options.open(path.join(name)).unwrap()
            };
            make("written").write_all(b"#!/bin/sh\n").unwrap();
            make("lengthened").set_len(10).unwrap();
            make("empty");
            let mut listed = make("listed");
            let (own, list) = (c"user.own", c"system.posix_acl_access");
            for name in [own, list] {
                let flags = rustix::fs::XattrFlags::empty();
                let set = rustix::fs::fsetxattr(&listed, name, b"x", flags);
                assert_eq!(set, Err(Errno::PERM), "{name:?}");
            }
            listed.write_all(b"x").unwrap();
        });
        let bits = |name: &str| mode(&directory.path().join(name)) & REFUSED;
        assert_eq!((bits("written"), bits("lengthened")), (0, 0));
        // By which nothing runs. So the others had them, too.
        assert_eq!(bits("empty"), REFUSED);
        assert_eq!(fs::read(directory.path().join("empty")).unwrap(), b"");
    }
}
