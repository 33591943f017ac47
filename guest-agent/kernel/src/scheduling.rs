//! How the calling thread gets its time: sched_setattr(2), ioprio_set(2).

use std::io;

/// `struct sched_attr` (linux/sched/types.h) as it was first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Attributes {
    size: u32,
    /// `SCHED_*`, sched(7).
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the policies that have one.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// For the deadline policy, in nanoseconds, as the next two.
    pub runtime: u64,
    /// See there.
    pub deadline: u64,
    /// See there.
    pub period: u64,
}

/// `IOPRIO_WHO_PROCESS`, linux/ioprio.h.
const PROCESS: libc::c_long = 1;
/// `IOPRIO_CLASS_SHIFT`.
const CLASS_SHIFT: u32 = 13;

/// Sets how the calling thread is scheduled.
///
/// # Errors
/// Those of sched_setattr(2).
pub fn set_scheduler(attributes: Attributes) -> io::Result<()> {
    let argument = Attributes {
        size: u32::try_from(size_of::<Attributes>()).map_err(|_| io::ErrorKind::InvalidInput)?,
        ..attributes
    };
    // SAFETY: the structure says its size, and outlives the call, which reads
    // it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const argument, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the place of the calling thread before disks: a class
/// (`IOPRIO_CLASS_*`) and a level in it.
///
/// # Errors
/// Those of ioprio_set(2).
pub fn set_io_priority(class: u8, level: u8) -> io::Result<()> {
    let priority = u32::from(class) << CLASS_SHIFT | u32::from(level);
    // SAFETY: three numbers, of which 0 names the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, priority) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
