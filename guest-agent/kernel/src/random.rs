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

/// The generator's device, opened once and ready: whoever wakes up in a copy
/// of a machine has no time to look for it.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(Self(open("/dev/urandom", flags, Mode::empty())?))
    }

    /// Mixes `bytes` into the kernel's pool and credits it with
    /// `credited_bits`. The copy made on the way is wiped.
    ///
    /// # Errors
    /// `InvalidInput` if there are no bytes, more than [`ENTROPY_LIMIT`], or
    /// more bits credited than there are; otherwise those of the ioctl:
    /// `EPERM` without CAP_SYS_ADMIN.
    pub fn add_entropy(&self, bytes: &[u8], credited_bits: u16) -> io::Result<()> {
        let fits = (1..=ENTROPY_LIMIT).contains(&bytes.len());
        if !fits || usize::from(credited_bits) > bytes.len() * 8 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // `struct rand_pool_info`: two counts, then the bytes in whole words.
        let mut info = Vec::with_capacity(2 + bytes.len().div_ceil(4));
        info.extend([u32::from(credited_bits), size]);
        info.extend(bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        }));
        // SAFETY: the request reads the two counts and `size` bytes after them,
        // all of which lie in `info`. (The request's type is int in musl and
        // unsigned long in glibc: the cast is one that changes no bit.)
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) };
        let outcome = match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        info.fill(0);
        std::hint::black_box(&info);
        outcome
    }

    /// Rekeys the generator from its pool now, not only within the next minute.
    ///
    /// # Errors
    /// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
    pub fn reseed(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), RNDRESEEDCRNG as _) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_credit_than_there_are_bits_is_refused() {
        for (length, bits) in [(0, 0), (1, 9), (32, 257), (ENTROPY_LIMIT + 1, 8)] {
            let device = Device::open().unwrap();
            let error = device.add_entropy(&vec![1; length], bits).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn bytes_are_mixed_in_without_credit() {
        match Device::open().unwrap().add_entropy(&[7; 31], 0) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: the ioctl needs CAP_SYS_ADMIN");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
