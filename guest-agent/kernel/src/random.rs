//! The kernel's random generator, random(4).

use rustix::fs::{Mode, OFlags, open};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// `_IOW('R', 0x03, int [2])`, linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`, linux/random.h.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// The most bytes of one [`add_entropy`].
pub const ENTROPY_LIMIT: usize = 4096;

/// `struct rand_pool_info` with room for the largest request.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; ENTROPY_LIMIT],
}

/// Mixes `bytes` into the kernel's pool and credits it with `credited_bits`.
/// The copy made on the way is wiped.
///
/// # Errors
/// `InvalidInput` if there are no bytes, more than [`ENTROPY_LIMIT`], or more
/// bits credited than there are; otherwise those of the ioctl: `EPERM` without
/// CAP_SYS_ADMIN.
pub fn add_entropy(bytes: &[u8], credited_bits: u16) -> io::Result<()> {
    let fits = (1..=ENTROPY_LIMIT).contains(&bytes.len());
    if !fits || usize::from(credited_bits) > bytes.len() * 8 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let device = open_device()?;
    let mut info = PoolInfo {
        entropy_count: credited_bits.into(),
        buf_size: libc::c_int::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        buf: [0; ENTROPY_LIMIT],
    };
    info.buf[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the request reads the two counts and `buf_size` bytes after
    // them, all of which lie in `info`. (The request's type is int in musl and
    // unsigned long in glibc: the cast is one that changes no bit.)
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const info) };
    let outcome = match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    wipe(&mut info.buf);
    outcome
}

/// Rekeys the generator from its pool now, not only within the next minute.
///
/// # Errors
/// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
pub fn reseed() -> io::Result<()> {
    let device = open_device()?;
    // SAFETY: the request takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_device() -> io::Result<OwnedFd> {
    Ok(open(
        "/dev/urandom",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Overwrites `bytes` in a way the compiler cannot leave out.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_credit_than_there_are_bits_is_refused() {
        for (length, bits) in [(0, 0), (1, 9), (32, 257), (ENTROPY_LIMIT + 1, 8)] {
            let error = add_entropy(&vec![1; length], bits).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn bytes_are_mixed_in_without_credit() {
        match add_entropy(&[7; 32], 0) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: the ioctl needs CAP_SYS_ADMIN");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
