//! The end of the machine.

use std::io;

/// Powers the machine off, at once: nothing is synced. Returns only on error.
///
/// # Errors
/// Those of reboot(2): `EPERM` without CAP_SYS_BOOT.
pub fn power_off() -> io::Result<()> {
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).map_err(io::Error::from)
}

/// Resets the machine, at once: nothing is synced. Returns only on error.
///
/// # Errors
/// Those of reboot(2): `EPERM` without CAP_SYS_BOOT.
pub fn reset() -> io::Result<()> {
    rustix::system::reboot(rustix::system::RebootCommand::Restart).map_err(io::Error::from)
}
