//! The numbers of system calls, by architecture.

use super::SeccompArchitecture;
#[cfg(any(test, not(target_arch = "x86_64")))]
use syscalls::{aarch64, arm};
#[cfg(any(test, not(target_arch = "aarch64")))]
use syscalls::{x86, x86_64};

/// `__X32_SYSCALL_BIT`, asm/unistd.h: set in the numbers of x32.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Those of x32 that are not x86_64's (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(any(test, not(target_arch = "aarch64")))]
const X32: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// Those of ARM that no other architecture has (asm/unistd.h, `__ARM_NR_*`).
#[cfg(any(test, not(target_arch = "x86_64")))]
const ARM: [(&str, u32); 6] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
    ("get_tls", 0xf_0006),
];

/// The number of the system call `name`, if the architecture has it.
pub(super) fn number(architecture: SeccompArchitecture, name: &str) -> Option<u32> {
    let listed = |list: &[(&str, u32)]| {
        let mut list = list.iter();
        list.find(|(other, _)| *other == name)
            .map(|(_, number)| *number)
    };
    // A machine runs programs of its own family only: the other's tables would
    // be a hundredth of the agent.
    let number = match architecture {
        #[cfg(any(test, not(target_arch = "aarch64")))]
        SeccompArchitecture::X86_64 => among(
            x86_64::Sysno::iter().map(|one| (one.name(), one.id())),
            name,
        ),
        #[cfg(any(test, not(target_arch = "aarch64")))]
        SeccompArchitecture::X86 => {
            among(x86::Sysno::iter().map(|one| (one.name(), one.id())), name)
        }
        #[cfg(any(test, not(target_arch = "aarch64")))]
        SeccompArchitecture::X32 => listed(&X32)
            .or_else(|| number(SeccompArchitecture::X86_64, name))
            .map(|number| number | X32_BIT),
        #[cfg(any(test, not(target_arch = "x86_64")))]
        SeccompArchitecture::Aarch64 => among(
            aarch64::Sysno::iter().map(|one| (one.name(), one.id())),
            name,
        ),
        #[cfg(any(test, not(target_arch = "x86_64")))]
        SeccompArchitecture::Arm => {
            among(arm::Sysno::iter().map(|one| (one.name(), one.id())), name)
                .or_else(|| listed(&ARM))
        }
        _ => None,
    };
    number.filter(|number| *number != u32::MAX)
}

/// A few hundred names, looked through once for each of a profile.
fn among(mut all: impl Iterator<Item = (&'static str, i32)>, name: &str) -> Option<u32> {
    let (_, number) = all.find(|(other, _)| *other == name)?;
    number.try_into().ok()
}

/// Whether any architecture of this machine has it.
pub(super) fn is_known(name: &str) -> bool {
    [
        SeccompArchitecture::X86_64,
        SeccompArchitecture::X86,
        SeccompArchitecture::Aarch64,
        SeccompArchitecture::Arm,
    ]
    .into_iter()
    .any(|architecture| number(architecture, name).is_some())
}
