//! The step of a thaw that gives the guest's random generator a state of its
//! own.

use std::io;

/// The kernel's pool is full at 256 bits (drivers/char/random.c, POOL_BITS):
/// more credit has no effect.
const CREDIT_LIMIT: usize = 256;

/// The random generator, ready to be given a state of its own.
#[derive(Debug)]
pub struct Generator(guest_kernel::random::Device);

impl Generator {
    /// Opens its device.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open() -> io::Result<Self> {
        guest_kernel::random::Device::open().map(Self)
    }

    /// Mixes `bytes` in, credited with eight bits each up to what the pool holds,
    /// then rekeys the generator: every later draw depends on `bytes`.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes or more than 4096; otherwise those of the two
    /// ioctls, `EPERM` without CAP_SYS_ADMIN.
    pub fn reseed(&self, bytes: &[u8]) -> io::Result<()> {
        let bits = (bytes.len() * 8).min(CREDIT_LIMIT);
        let bits = u16::try_from(bits).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0.add_entropy(bytes, bits)?;
        self.0.reseed()
    }
}
